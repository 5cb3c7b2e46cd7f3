"""REALM pre-training: a retriever that learns from masked words (REALM sections 3.2 to 3.4).

One step, for each text x of a batch with a name or date masked out:

1. Embed x without dropout, and search the index for the blocks of largest f(x, z); those that hold x are barred.
2. Put the null document, an empty text, before them: what needs no evidence can take it from there.
3. Compute f(x, z) afresh, x and z embedded by the embedder as it is now, and p(z|x) = softmax f(x, z).
4. Read x and each z in one sequence, "[CLS] x [SEP] z [SEP]", and predict the masked words: p(y|z,x).
5. The loss is -log Σ_z p(y|z,x) p(z|x); its gradient reaches the encoder, and the embedder by way of x and of each z.
   By default y is each masked wordpiece by itself, as in transformers; with `marginal="span"` it is all that is masked
   in x, as in the paper and the book. Either way the sum is divided by the number of wordpieces, not of texts.

The index is some hundred steps old (`refresh`): it only chooses the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..interface.embedder import RealmEmbedder
from ..interface.inputs import Inputs, checked_batch
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..model import ops
from ..model.bert import PLAIN, Batch, Kept, Run
from ..model.realm import (
    NO_LABEL,
    embed,
    embed_backward,
    marginal_log_likelihood,
    marginal_loss,
    marginal_loss_backward,
    masked_words,
    masked_words_backward,
    relevance_score,
    relevance_score_backward,
)
from ..search.mips import BlockIndex
from ..search.sharded_index import ShardedBlockIndex, search_without
from ..text.sequences import EncodedBlock, document_sequences, join, joint_sequences, pad
from .masking import mask, passages
from .steps import Sum

if TYPE_CHECKING:
    from ..jobs.draws import Draws
    from ..jobs.settings import Pretrain

NO_BLOCK = -1


class Text(NamedTuple):
    """Sentences to be masked, the number of the block they were cut from or NO_BLOCK, and the other blocks they are in.

    `copies` has as many numbers for every text of a corpus: NO_BLOCK where there are fewer.
    """

    block: int
    title: str
    text: str
    copies: tuple[int, ...] = ()


class Example(NamedTuple):
    """x as wordpieces without special tokens, some of them masked; `labels` are the ids behind the masks."""

    ids: list[int]
    labels: list[int]
    barred: tuple[int, ...]  # the blocks that hold x: in them its words can be looked up, whatever they mean


def hide(
    texts: list[Text], tokenizer: Any, choose: Callable[..., list[int]], random: list[np.random.Generator]
) -> list[Example]:
    """Mask what `choose` draws of each text, with a generator of its own."""
    found = passages([(text.title, text.text) for text in texts], tokenizer)
    return [
        Example(*mask(one.ids, choose(one, rng), tokenizer.mask_token_id), (text.block, *text.copies))
        for text, one, rng in zip(texts, found, random, strict=True)
    ]


# ---- one step


class Retrieved(NamedTuple):
    """A batch of masked texts and what was retrieved for each, as the models read them, with the seeds of dropout."""

    texts: Batch
    seeds: list[int]
    candidates: Tensor  # rows of the documents [batch, candidates]; row 0 is the null document
    documents: Batch  # what Embed_doc reads, the null document first
    document_seeds: list[int]
    fixed: Tensor | None  # embeddings [documents, proj] of the rows after those, which do not learn
    pairs: Batch  # what the encoder reads, [batch * candidates, tokens]
    pair_seeds: list[int]
    labels: Tensor  # [batch, tokens of the pairs]
    dealt: Tensor | None  # whose p(y|z,x) the retriever is told for each candidate, [batch, candidates]; None: its own


def pretrain_step(
    models: tuple[RealmEmbedder, RealmKnowledgeAugEncoder], batch: Retrieved, settings: Pretrain
) -> dict[str, Sum]:
    """-Σ log p(y|x) of a batch; the sum's gradients are added to both models', where the settings do not freeze them.

    Returns:
        loss: over the masked wordpieces; tokens: how many were read; with a null document what `use_of_retrieval` says.
    """
    embedder, encoder = models
    runs = (
        embedder.run_to_learn(batch.seeds, last=True), embedder.run_to_learn(batch.document_seeds),
        encoder.run_to_learn(batch.pair_seeds, last=True),
    )  # fmt: skip
    relevance, log_likelihood, kept = read_evidence(models, batch, runs)
    kept_x, kept_z, kept_relevance, kept_words = kept

    masked, whole_span = batch.labels != NO_LABEL, settings.marginal == "span"
    count = int(masked.sum())  # the loss is the mean of so many
    loss, kept_loss = marginal_loss(log_likelihood, relevance, masked, whole_span)
    dloss = torch.full_like(loss, count)
    dlog_likelihood, drelevance = marginal_loss_backward(dloss, kept_loss)
    if batch.dealt is not None:
        told = log_likelihood.gather(1, batch.dealt[:, :, None].expand_as(log_likelihood))
        drelevance = marginal_loss_backward(dloss, marginal_loss(told, relevance, masked, whole_span)[1])[1]
    masked_words_backward(dlog_likelihood.flatten(0, 1), kept_words, encoder.own_grads)
    dx, dpicked = relevance_score_backward(drelevance, kept_relevance)
    if batch.fixed is None:
        dz = dx.new_zeros(len(batch.document_seeds), dx.shape[1])  # [documents, proj]
        dz.index_add_(0, batch.candidates.flatten(), dpicked.flatten(0, 1))
        embed_backward(dz, kept_z, embedder.own_grads)
    if not settings.encoder_alone:
        embed_backward(dx, kept_x, embedder.own_grads)

    tokens = sum(int(read.mask.sum()) for read in (batch.texts, batch.documents, batch.pairs))
    sums = {"loss": Sum(count * float(loss), count), "tokens": Sum(tokens, len(relevance))}
    return sums | use_of_retrieval(relevance, log_likelihood, masked) if settings.null_document else sums


def read_evidence(
    models: tuple[RealmEmbedder, RealmKnowledgeAugEncoder], batch: Retrieved, runs: tuple[Run, Run, Run]
) -> tuple[Tensor, Tensor, Kept]:
    """f(x, z) [batch, candidates], log p(y_j|z,x) [batch, candidates, tokens], and what the backward takes.

    `runs`: how the texts, the documents and the pairs are read.
    """
    (embedder, encoder), candidates = models, batch.candidates
    p, c = embedder.p, embedder.config
    (x, _), kept_x = embed(p, c, batch.texts, runs[0])  # [batch, proj]
    (z, _), kept_z = embed(p, c, batch.documents, runs[1])  # [documents, proj]
    z = z if batch.fixed is None else torch.cat([z, batch.fixed.to(z)])
    relevance, kept_relevance = relevance_score(x, z[candidates])  # f(x, z) [batch, candidates]
    labels = batch.labels.repeat_interleave(candidates.shape[1], 0)  # the same y for each z
    log_p, kept_words = masked_words(encoder.p, encoder.config, batch.pairs, labels, runs[2])
    return relevance, log_p.view(*candidates.shape, -1), (kept_x, kept_z, kept_relevance, kept_words)


def use_of_retrieval(relevance: Tensor, log_likelihood: Tensor, masked: Tensor) -> dict[str, Sum]:
    """What retrieval brings over the null document ∅, the first candidate.

    Args:
        relevance: f(x, z) [batch, candidates].
        log_likelihood: log p(y_j|z,x) [batch, candidates, tokens].
        masked: which tokens are masked words [batch, tokens].

    Returns:
        retrieval_utility: log p(y_j|x) - log p(y_j|∅,x), how much likelier a masked wordpiece is with what was
            retrieved, in nats (REALM appendix D and figure 4, each wordpiece marginalised on its own, as its code has
            it).
        null_probability: p(∅|x).
    """
    marginal = marginal_log_likelihood(log_likelihood, relevance)[0]  # [batch, tokens]
    utility = float(((marginal - log_likelihood[:, 0]) * masked).sum())
    return {
        "retrieval_utility": Sum(utility, int(masked.sum())),
        "null_probability": Sum(float(ops.softmax(relevance)[:, 0].sum()), len(relevance)),
    }


def gather_evidence(
    models: tuple[RealmEmbedder, RealmKnowledgeAugEncoder],
    tokenizer: Any,
    blocks: Sequence[EncodedBlock],
    index: BlockIndex | ShardedBlockIndex,
    examples: list[Example],
    draws: Draws,
    settings: Pretrain,
) -> Retrieved:
    """The examples, the null document and the blocks of largest f(x, z) for each, found without dropout."""
    embedder, encoder = models
    texts = masked_texts(tokenizer, examples, embedder)
    x = embed(embedder.p, embedder.config, texts, PLAIN)[0][0].to(index.device)  # [batch, proj]
    barred = torch.tensor([example.barred for example in examples], device=index.device)
    found = search_without(index, x.float(), barred, settings.num_candidates - settings.null_document)
    distinct, candidates = candidates_of(found, settings.null_document)
    evidence = [blocks[block] for block in distinct]
    # Frozen blocks are as the index has them: the null document alone, which is in no index, is embedded.
    frozen = settings.encoder_alone or settings.freeze_documents
    numbers = [0] if frozen else [0, *(1 + block for block in distinct)]
    longest = min(settings.max_block, embedder.config.max_position_embeddings)
    documents = document_sequences(tokenizer, [] if frozen else evidence, longest)
    pairs = pad(
        joint_sequences(
            tokenizer, [example.ids for example in examples], candidates.tolist(), evidence, settings.max_block,
            encoder.config.max_position_embeddings,
        ),
        encoder,
    )  # fmt: skip
    return Retrieved(
        texts, draws.dropout_seeds(), candidates.to(embedder.device),
        checked_batch(embedder.config, Inputs(**pad(documents, embedder))), draws.seeds_of_documents(numbers),
        index.rows(torch.tensor(distinct, device=index.device)) if frozen else None,
        checked_batch(encoder.config, Inputs(**pairs)), draws.dropout_seeds(1, candidates.shape[1]),
        labels_of(examples, pairs["input_ids"].shape[1]).to(encoder.device),
        draws.permutations(candidates.shape[1]).to(encoder.device) if settings.permute_evidence else None,
    )  # fmt: skip


def candidates_of(found: Tensor, null_document: bool) -> tuple[list[int], Tensor]:
    """The blocks found [batch, count], each once; and each text's candidates as rows of the null document and those.

    The null document, row 0, is the first candidate of every text, or of none: [batch, count (+ 1)] int64.
    """
    distinct, places = found.unique(return_inverse=True)
    rows = places + 1  # [batch, count]
    return distinct.tolist(), torch.cat([rows.new_zeros(len(rows), 1), rows], 1) if null_document else rows


def masked_texts(tokenizer: Any, examples: list[Example], embedder: RealmEmbedder) -> Batch:
    """x as the embedder reads it, "[CLS] x [SEP]"."""
    inputs = pad([join(tokenizer, example.ids) for example in examples], embedder)
    return checked_batch(embedder.config, Inputs(**inputs))


def labels_of(examples: list[Example], tokens: int) -> Tensor:
    """What is hidden at each place of "[CLS] x [SEP] …", else NO_LABEL: [examples, tokens]."""
    labels = torch.full((len(examples), tokens), NO_LABEL, device="cpu")
    for row, example in zip(labels, examples, strict=True):
        row[1 : 1 + len(example.labels)] = torch.tensor(example.labels, device="cpu")
    return labels
