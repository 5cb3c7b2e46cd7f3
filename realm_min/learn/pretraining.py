"""REALM pre-training: a retriever that learns from masked words (REALM sections 3.2 to 3.4).

One step, for each text x of a batch with a name or date masked out:

1. Embed x, and search the index for the blocks of largest f(x, z); the block that x was cut from is barred.
2. Put the null document, an empty text, before them: what needs no evidence can take it from there.
3. Compute f(x, z) afresh, x and z embedded by the embedder as it is now, and p(z|x) = softmax f(x, z).
4. Read x and each z in one sequence, "[CLS] x [SEP] z [SEP]", and predict the masked words: p(y|z,x).
5. The loss is -log Σ_z p(y|z,x) p(z|x); its gradient reaches both encoders, and the embedder on both of its sides.

The index is some hundred steps old (`refresh`): it only chooses the candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..interface.embedder import RealmEmbedder
from ..interface.inputs import Inputs, checked_batch
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..model import ops
from ..model.bert import Batch
from ..model.realm import (
    IGNORED,
    embed,
    embed_backward,
    marginal_loss,
    marginal_loss_backward,
    masked_words,
    masked_words_backward,
    relevance_score,
    relevance_score_backward,
)
from ..search.mips import BlockIndex
from ..search.sharded_index import ShardedBlockIndex
from ..text.corpus import Block
from ..text.sequences import document_sequences, join, joint_sequences, pad
from .masking import mask, passages
from .steps import Sum

if TYPE_CHECKING:
    from ..jobs.draws import Draws
    from ..jobs.settings import Pretrain

NO_BLOCK = -1


class Text(NamedTuple):
    """Sentences to be masked, and the number of the block they were cut from or NO_BLOCK."""

    block: int
    title: str
    text: str


class Example(NamedTuple):
    """x as wordpieces without special tokens, some of them masked; `labels` are the ids behind the masks."""

    ids: list[int]
    labels: list[int]
    block: int


def hide(
    texts: list[Text], tokenizer: Any, choose: Callable[..., list[int]], random: list[np.random.Generator]
) -> list[Example]:
    """Mask what `choose` draws of each text, with a generator of its own."""
    found = passages([(text.title, text.text) for text in texts], tokenizer)
    return [
        Example(*mask(one.ids, choose(one, rng), tokenizer.mask_token_id), text.block)
        for text, one, rng in zip(texts, found, random, strict=True)
    ]


# ---- one step


class Retrieved(NamedTuple):
    """What was retrieved for the texts of a batch: the candidates of each, as both encoders read them."""

    candidates: Tensor  # rows of the documents [batch, candidates]; row 0 is the null document
    documents: Batch  # what Embed_doc reads, the null document first
    seeds: list[int]  # of its dropout
    fixed: Tensor | None  # embeddings [documents, proj] of the rows after those, which do not learn
    pairs: Batch  # what the encoder reads, [batch * candidates, tokens]
    pair_seeds: list[int]
    labels: Tensor  # [batch, tokens of the pairs]


def pretrain_step(
    models: tuple[RealmEmbedder, RealmKnowledgeAugEncoder],
    texts: Batch,
    seeds: list[int],
    evidence_of: Callable[[Tensor], Retrieved],
    settings: Pretrain,
) -> dict[str, Sum]:
    """-Σ log p(y|x) of a batch; the sum's gradients are added to both models', where the settings do not freeze them.

    Args:
        texts, seeds: x, masked, and the seeds of its dropout.
        evidence_of: finds the candidates of the embedded texts [batch, proj], as `gather_evidence` does.

    Returns:
        loss: over the masked wordpieces; tokens: how many were read; with a null document what `use_of_retrieval` says.
    """
    embedder, encoder = models
    p, c = embedder.p, embedder.config
    (x, _), kept_x = embed(p, c, texts, embedder.run_to_learn(seeds, last=True))  # [batch, proj]
    candidates, documents, document_seeds, fixed, pairs, pair_seeds, labels = evidence_of(x)
    (z, _), kept_z = embed(p, c, documents, embedder.run_to_learn(document_seeds))  # [documents, proj]
    z = z if fixed is None else torch.cat([z, fixed.to(z)])
    relevance, kept_relevance = relevance_score(x, z[candidates])  # f(x, z) [batch, candidates]
    log_p, kept_words = masked_words(
        encoder.p, encoder.config, pairs, labels.repeat_interleave(candidates.shape[1], 0),  # the same y for each z
        encoder.run_to_learn(pair_seeds, last=True),
    )  # fmt: skip
    log_likelihood = log_p.view(*candidates.shape, -1)  # [batch, candidates, tokens]

    masked = labels != IGNORED
    count = int(masked.sum())  # the loss is the mean of so many
    loss, kept_loss = marginal_loss(log_likelihood, relevance, masked, settings.marginal == "span")
    dlog_likelihood, drelevance = marginal_loss_backward(torch.full_like(loss, count), kept_loss)
    masked_words_backward(dlog_likelihood.flatten(0, 1), kept_words, encoder.own_grads)
    dx, dpicked = relevance_score_backward(drelevance, kept_relevance)
    if fixed is None:
        dz = torch.zeros_like(z).index_add_(0, candidates.flatten(), dpicked.flatten(0, 1))
        embed_backward(dz, kept_z, embedder.own_grads)
    if not settings.encoder_alone:
        embed_backward(dx, kept_x, embedder.own_grads)

    tokens = sum(int(batch.mask.sum()) for batch in (texts, documents, pairs))
    sums = {"loss": Sum(count * float(loss), count), "tokens": Sum(tokens, len(x))}
    return sums | use_of_retrieval(relevance, log_likelihood) if settings.null_document else sums


def use_of_retrieval(relevance: Tensor, log_likelihood: Tensor) -> dict[str, Sum]:
    """What retrieval brings over the null document ∅, the first candidate.

    Args:
        relevance: f(x, z) [batch, candidates].
        log_likelihood: log p(y_j|z,x) [batch, candidates, tokens].

    Returns:
        retrieval_utility: Σ_z p(z|x) [log p(y|z,x) - log p(y|∅,x)], how much better than the null document the
            retrieved ones predict y, in nats a text: the mean of REALM's RU(z|x) (appendix D). Its published code has
            another number, log p(y|x) - log p(y|∅,x) a masked wordpiece, on held-out text (docs/deviations.md).
        null_probability: p(∅|x).
    """
    prior, of_span = ops.softmax(relevance), log_likelihood.sum(2)  # [batch, candidates] each
    utility = (prior * (of_span - of_span[:, :1])).sum()
    return {
        "retrieval_utility": Sum(float(utility), len(relevance)),
        "null_probability": Sum(float(prior[:, 0].sum()), len(relevance)),
    }


def gather_evidence(
    models: tuple[RealmEmbedder, RealmKnowledgeAugEncoder],
    tokenizer: Any,
    blocks: list[Block],
    index: BlockIndex | ShardedBlockIndex,
    examples: list[Example],
    draws: Draws,
    settings: Pretrain,
) -> Callable[[Tensor], Retrieved]:
    """What finds the candidates of the embedded examples: the null document and the blocks of largest f(x, z)."""
    embedder, encoder = models

    def evidence_of(x: Tensor) -> Retrieved:
        own = torch.tensor([example.block for example in examples], device=index.device)
        found = retrieve(index, x.to(index.device), own, settings.num_candidates - settings.null_document)
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
            candidates.to(x.device),
            checked_batch(embedder.config, Inputs(**pad(documents, embedder))),
            draws.seeds_of_documents(numbers),
            index.rows(torch.tensor(distinct)) if frozen else None,
            checked_batch(encoder.config, Inputs(**pairs)),
            draws.dropout_seeds(1, candidates.shape[1]),
            labels_of(examples, pairs["input_ids"].shape[1]).to(encoder.device),
        )

    return evidence_of


def candidates_of(found: Tensor, null_document: bool) -> tuple[list[int], Tensor]:
    """The blocks found [batch, count], each once; and each text's candidates as rows of the null document and those.

    The null document, row 0, is the first candidate of every text, or of none: [batch, count (+ 1)] int64.
    """
    distinct, places = found.unique(return_inverse=True)
    rows = places + 1  # [batch, count]
    return distinct.tolist(), torch.cat([rows.new_zeros(len(rows), 1), rows], 1) if null_document else rows


def retrieve(index: BlockIndex | ShardedBlockIndex, queries: Tensor, barred: Tensor, count: int) -> Tensor:
    """The `count` blocks of largest inner product with each query, without its barred one.

    queries [batch, proj], barred [batch] int64 -> [batch, count] int64, best first. One more is searched for, so that
    the answer is exact.
    """
    _, ids = index.search(queries.float(), count + 1)
    kept = ids != barred[:, None]
    kept[:, -1] &= ~kept.all(1)  # where the barred block is not among them, the last is one too many
    return ids[kept].view(len(queries), count)


def masked_texts(tokenizer: Any, examples: list[Example], embedder: RealmEmbedder) -> Batch:
    """x as the embedder reads it, "[CLS] x [SEP]"."""
    inputs = pad([join(tokenizer, example.ids) for example in examples], embedder)
    return checked_batch(embedder.config, Inputs(**inputs))


def labels_of(examples: list[Example], tokens: int) -> Tensor:
    """What is hidden at each place of "[CLS] x [SEP] …", else IGNORED: [examples, tokens]."""
    labels = torch.full((len(examples), tokens), IGNORED)
    for row, example in zip(labels, examples, strict=True):
        row[1 : 1 + len(example.labels)] = torch.tensor(example.labels)
    return labels
