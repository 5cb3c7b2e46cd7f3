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

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model import ops
from ..model.base import Inputs, checked_batch
from ..model.embedder import RealmEmbedder, embed, embed_backward
from ..model.knowledge_encoder import (
    IGNORED,
    RealmKnowledgeAugEncoder,
    marginal_loss,
    marginal_loss_backward,
    masked_words,
    masked_words_backward,
)
from ..model.scorer import relevance, relevance_backward
from ..ranks.share import Share, dropout_seed
from ..search.mips import BlockIndex
from ..search.sharded_index import ShardedBlockIndex
from ..text.corpus import Block, Document, cut_blocks
from .masking import mask, passages

if TYPE_CHECKING:
    from ..jobs.settings import Pretrain

AT_ONCE = 1024  # texts tokenized in one call
OF_A_DOCUMENT = 1 << 20  # the sequence, for `loop.dropout_seed`, of a block that a step embeds: no text has as many

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


# ---- texts


def cut_texts(
    blocks: list[Block],
    tokenizer: Any,
    max_wordpieces: int,
    choose: Callable[..., list[int]],
    report: Callable[..., None] = lambda stage, done, total: None,
) -> list[Text]:
    """Cut blocks into texts of whole sentences; those in which `choose` finds nothing to mask are left out.

    Each carries the title of its block, without which "Capital - name: Oslo." could be anyone's.

    Raises:
        ValueError: nothing is left.
    """

    def letters(text: str) -> int:
        return sum(map(len, text.split()))

    texts, pending = [], []
    number, left = -1, 0  # the block that is being cut, and its letters still to come
    for cut in cut_blocks(map(Document._make, blocks), tokenizer, max_wordpieces):
        while left == 0:
            number += 1
            left = letters(blocks[number].text)
        left -= letters(cut.text)
        pending.append(Text(number, *cut))
        if len(pending) == AT_ONCE or (left == 0 and number == len(blocks) - 1):
            texts += with_something_to_mask(pending, tokenizer, choose)
            pending = []
            report("Cutting blocks into texts", number + 1, len(blocks))
    texts += with_something_to_mask(pending, tokenizer, choose)  # where the last blocks have no text
    if not texts:
        raise ValueError("no text of the corpus has anything to mask: give a larger corpus, or another masking")
    return texts


def with_something_to_mask(texts: list[Text], tokenizer: Any, choose: Callable[..., list[int]]) -> list[Text]:
    found = passages([(text.title, text.text) for text in texts], tokenizer)
    rng = np.random.default_rng(0)  # whether there is something to choose does not depend on what is drawn
    return [text for text, one in zip(texts, found, strict=True) if choose(one, rng)]


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


def pretrain_step(
    embedder: RealmEmbedder,
    knowledge_encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    blocks: list[Block],
    index: BlockIndex | ShardedBlockIndex,
    examples: list[Example],
    settings: Pretrain,
    share: Share,
) -> dict[str, float]:
    """Add the gradients of a batch's loss to both models, which are in training mode; the settings say what is frozen.

    Args:
        examples: this rank's part of the batch, as `share` says.

    Returns what adds up over the ranks to:
        loss: -log p(y|x) a masked wordpiece.
        retrieval_utility: Σ_z p(z|x) [log p(y|z,x) - log p(y|∅,x)], how much better than the null document the
            retrieved ones predict y, in nats a text, averaged over the batch (REALM appendix D).
        null_probability: p(∅|x), averaged. Neither is there without a null document.
        tokens: how many were read.
    """

    query_inputs = pad([[*sequence(tokenizer, example.ids)] for example in examples], embedder)
    p, config = embedder.p, embedder.config
    (queries, _), kept_x = embed(
        p, config, checked_batch(config, Inputs(**query_inputs)), embedder.run_to_learn(share.dropout_seeds())
    )
    own = torch.tensor([example.block for example in examples], device=index.device)
    found = retrieve(index, queries.to(index.device), own, settings.num_candidates - settings.null_document).tolist()

    distinct = sorted({block for row in found for block in row})
    rows = {block: row for row, block in enumerate(distinct, start=1)}  # row 0 is the null document
    first = [0] if settings.null_document else []
    candidates = torch.tensor([first + [rows[block] for block in row] for row in found], device=queries.device)
    evidence = [blocks[block] for block in distinct]
    frozen = settings.encoder_alone or settings.freeze_documents
    # Frozen blocks are as the index has them: the null document alone, which is in no index, is embedded.
    embedded = [] if frozen else evidence
    document_inputs = pad(document_sequences(tokenizer, embedded, embedder, settings.max_block), embedder)
    # A block has the same masks for all texts that retrieve it, and so on all ranks.
    numbers = [0] if frozen else [0, *(1 + block for block in distinct)]
    run = embedder.run_to_learn([dropout_seed(share.seed, share.step, number, OF_A_DOCUMENT) for number in numbers])
    (documents, _), kept_z = embed(p, config, checked_batch(config, Inputs(**document_inputs)), run)
    if frozen:
        documents = torch.cat([documents, index.rows(torch.tensor(distinct)).to(documents)])
    relevance_score, kept_relevance = relevance(queries, documents[candidates])  # [batch, candidates]

    joint, labels = joint_inputs(tokenizer, examples, candidates.tolist(), evidence, knowledge_encoder, settings)
    repeated = labels.repeat_interleave(settings.num_candidates, 0)  # the same y for each z
    log_likelihood, kept_words = masked_words(
        knowledge_encoder.p, knowledge_encoder.config, checked_batch(knowledge_encoder.config, Inputs(**joint)),
        repeated, knowledge_encoder.run_to_learn(share.dropout_seeds(1, settings.num_candidates)),
    )  # fmt: skip
    log_likelihood = log_likelihood.view(*candidates.shape, -1)  # [batch, candidates, tokens]

    masked, whole_span = labels != IGNORED, settings.marginal == "span"
    # The loss is a mean over the masked words of the whole batch.
    count = int(masked.sum())
    weight = count / max(share.total(count), 1)
    loss = weight * marginal_loss(log_likelihood, relevance_score, masked, whole_span)
    dlog_likelihood, drelevance = marginal_loss_backward(
        torch.full_like(loss, weight), log_likelihood, relevance_score, masked, whole_span
    )
    with knowledge_encoder.own_grads.last_pass():
        masked_words_backward(dlog_likelihood.flatten(0, 1), kept_words, knowledge_encoder.own_grads)
    dqueries, dpicked = relevance_backward(drelevance, kept_relevance)
    if not frozen:
        ddocuments = torch.zeros_like(documents).index_add_(0, candidates.flatten(), dpicked.flatten(0, 1))
        embed_backward(ddocuments, kept_z, embedder.own_grads)
    if not settings.encoder_alone:
        with embedder.own_grads.last_pass():
            embed_backward(dqueries, kept_x, embedder.own_grads)

    read = (query_inputs, document_inputs, joint)
    logged = {"loss": float(loss), "tokens": float(sum(inputs["attention_mask"].sum() for inputs in read))}
    if settings.null_document:
        prior = ops.softmax(relevance_score)
        span_log_likelihood = log_likelihood.sum(2)  # [batch, candidates]
        utility = span_log_likelihood - span_log_likelihood[:, :1]
        part = len(examples) / share.count
        logged["retrieval_utility"] = part * float((prior * utility).sum(1).mean())
        logged["null_probability"] = part * float(prior[:, 0].mean())
    return logged


def retrieve(index: BlockIndex | ShardedBlockIndex, queries: Tensor, barred: Tensor, count: int) -> Tensor:
    """The `count` blocks of largest inner product with each query, without its barred one.

    queries [batch, proj], barred [batch] int64 -> [batch, count] int64, best first. One more is searched for, so that
    the answer is exact.
    """
    _, ids = index.search(queries.float(), count + 1)
    kept = ids != barred[:, None]
    kept[:, -1] &= ~kept.all(1)  # where the barred block is not among them, the last is one too many
    return ids[kept].view(len(queries), count)


def sequence(tokenizer: Any, first: Iterable[int], second: Iterable[int] | None = None) -> list[tuple[int, int]]:
    """(id, type) of "[CLS] first [SEP]" or "[CLS] first [SEP] second [SEP]"."""
    of_first = [(token, 0) for token in (tokenizer.cls_token_id, *first, tokenizer.sep_token_id)]
    return of_first if second is None else [*of_first, *((token, 1) for token in (*second, tokenizer.sep_token_id))]


def pad(sequences: list[list[tuple[int, int]]], model: Any) -> dict[str, Tensor]:
    """`input_ids`, `token_type_ids` and `attention_mask` [sequences, tokens] for `model`."""
    tokens = max(map(len, sequences))
    padded = torch.full((len(sequences), tokens, 3), 0)
    padded[:, :, 0] = model.config.pad_token_id
    for row, values in zip(padded, sequences, strict=True):
        row[: len(values)] = torch.tensor([(token, kind, 1) for token, kind in values])
    ids, types, attention = padded.to(model.device).unbind(2)
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": attention}


def document_sequences(
    tokenizer: Any, evidence: list[Block], embedder: RealmEmbedder, max_wordpieces: int
) -> list[list[tuple[int, int]]]:
    """What Embed_doc reads, "[CLS] title [SEP] text [SEP]", of the null document "[CLS] [SEP] [SEP]" and each block."""
    null = sequence(tokenizer, (), ())
    if not evidence:
        return [null]
    encoded = tokenizer(
        [block.title for block in evidence], [block.text for block in evidence], truncation="only_second",
        max_length=min(max_wordpieces, embedder.config.max_position_embeddings),
    )  # fmt: skip
    pairs = zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    return [null, *(list(zip(ids, types, strict=True)) for ids, types in pairs)]


def joint_inputs(
    tokenizer: Any,
    examples: list[Example],
    candidates: list[list[int]],
    evidence: list[Block],
    knowledge_encoder: RealmKnowledgeAugEncoder,
    settings: Pretrain,
) -> tuple[dict[str, Tensor], Tensor]:
    """What the knowledge-augmented encoder reads, "[CLS] x [SEP] title. text [SEP]" for each candidate.

    Args:
        candidates: [batch, candidates], 0 for the null document, i for evidence[i - 1].

    Returns:
        Inputs [batch * candidates, tokens], and the labels [batch, tokens].
    """
    encoded = tokenizer([f"{block.title}. {block.text}" for block in evidence], add_special_tokens=False)
    documents = [[], *(ids[: settings.max_block - 3] for ids in encoded["input_ids"])]
    positions = knowledge_encoder.config.max_position_embeddings
    sequences = [
        sequence(tokenizer, example.ids, documents[candidate])[: positions - 1]
        for example, row in zip(examples, candidates, strict=True)
        for candidate in row
    ]
    for values in sequences:
        if values[-1][0] != tokenizer.sep_token_id:  # cut short
            values.append((tokenizer.sep_token_id, 1))
    inputs = pad(sequences, knowledge_encoder)
    labels = torch.full((len(examples), inputs["input_ids"].shape[1]), IGNORED)
    for row, example in zip(labels, examples, strict=True):
        row[1 : 1 + len(example.labels)] = torch.tensor(example.labels)
    return inputs, labels.to(knowledge_encoder.device)
