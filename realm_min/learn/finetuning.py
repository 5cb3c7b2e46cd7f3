"""Fine-tuning on questions and answers (REALM section 3.3, open-QA; ORQA, Lee et al. 2019, sections 5 and 6).

For a question x the retriever's best blocks are searched among all; a block is taken for right when an answer's
wordpieces occur in it, since nobody has marked the evidence. Two losses, each -log of the probability of all that is
right: the retriever's over the `searcher_beam_size` best blocks, the reader's over every span of the
`reader_beam_size` best. Both reach the question's embedding through f(x, z); the blocks' embeddings stay as they are,
unless `refresh_blocks` re-embeds them as training goes on and lets the gradient into the blocks that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.base import Inputs, checked_batch
from ..model.embedder import embed, embed_backward
from ..model.open_qa import RealmForOpenQA
from ..model.reader import Answers, best_span_of, best_span_of_backward
from ..text.corpus import Block
from ..text.sequences import padded, reader_inputs
from .steps import Draws, Sum

if TYPE_CHECKING:
    from ..jobs.settings import Finetune


class Encoded(NamedTuple):
    """A question as the models read it: its wordpieces, those of its answers, the blocks that may be its evidence."""

    ids: np.ndarray
    answers: list[np.ndarray]
    title: str | None
    evidence: str | None


class Read(NamedTuple):
    """What one question gave: its losses, and what the batch needs for the embedder's gradient."""

    retriever_loss: float
    reader_loss: float
    hit: bool  # an answer stood in a block that was read
    dprojection: Tensor  # ∂loss/∂Embed_input(x) [proj]


class Evidence(NamedTuple):
    """All blocks: their records' wordpieces, and where they are known their titles and texts."""

    pieces: list[np.ndarray]
    blocks: Sequence[Block] = ()


def finetune_step(
    model: RealmForOpenQA, questions: list[Encoded], evidence: Evidence, settings: Finetune, draws: Draws
) -> dict[str, Sum]:
    """The losses of a batch of questions, added up; the sum's gradients are added to the model's."""
    embedder, reader = model.embedder, model.reader
    inputs = padded([question.ids for question in questions], model.config.pad_token_id)
    batch = checked_batch(embedder.config, Inputs(*inputs).to(embedder.device))
    (x, _), kept_x = embed(embedder.p, embedder.config, batch, embedder.run_to_learn(draws.dropout_seeds()))
    _, found = model.search(x, min(model.config.searcher_beam_size, len(evidence.pieces)))  # [batch, searcher beam]
    results, dx = [], torch.zeros_like(x)
    for i, question in enumerate(questions):
        right = torch.tensor([is_evidence(question, block, evidence) for block in found[i].tolist()])
        block_ids, right = reading_order(found[i], right, model.config.reader_beam_size, settings.read_an_answer)
        with reader.own_grads.last_pass() if i == len(questions) - 1 else nullcontext():
            results.append(read(model, question, x[i], block_ids, right, evidence, settings, draws.of(i)))
        dx[i] = results[-1].dprojection
    with embedder.own_grads.last_pass():
        embed_backward(dx, kept_x, embedder.own_grads)
    retriever_loss = sum(result.retriever_loss for result in results)
    reader_loss = sum(result.reader_loss for result in results)
    return {
        "loss": Sum(retriever_loss + reader_loss, len(results)),
        "retriever_loss": Sum(retriever_loss, len(results)),
        "reader_loss": Sum(reader_loss, len(results)),
        "read_an_answer": Sum(sum(result.hit for result in results), len(results)),
    }


def read(
    model: RealmForOpenQA,
    question: Encoded,
    x: Tensor,
    block_ids: Tensor,
    right: Tensor,
    evidence: Evidence,
    settings: Finetune,
    draws: Draws,
) -> Read:
    """Read the first of `block_ids` [searcher beam] for one question; the reader's gradients are added.

    Args:
        x: Embed_input(x) [proj].
        right: which blocks hold an answer, [searcher beam].
        draws: this question's alone.
    """
    config, reader = model.config, model.reader
    beam = min(config.reader_beam_size, len(block_ids))
    embeddings = model.block_emb[block_ids].to(x)  # [searcher beam, proj]
    fresh = None
    if settings.refresh_blocks:
        read_blocks = [evidence.blocks[block] for block in block_ids[:beam].tolist()]
        fresh = embed_read(model, read_blocks, draws.dropout_seeds(1 + beam, beam))
        embeddings[:beam] = fresh[0]
    room = config.reader_seq_len - 3 - len(question.ids[1:-1])
    texts = [evidence.pieces[block][:room] for block in block_ids[:beam].tolist()]
    inputs, in_block = reader_inputs(question.ids, texts, config.pad_token_id, config.max_span_width)
    spans = [
        [(start, len(answer)) for answer in question.answers for start in occurrences(text, answer)] if is_right else []
        for text, is_right in zip(texts, right[:beam].tolist(), strict=True)
    ]
    starts = torch.full((beam, max(1, *map(len, spans))), -1)
    ends = starts.clone()
    for row, places in enumerate(spans):
        for column, (start, length) in enumerate(places):
            starts[row, column] = len(question.ids) + start
            ends[row, column] = len(question.ids) + start + length - 1
    output: Any
    output, kept = best_span_of(
        reader.p, config, checked_batch(config, Inputs(*inputs).to(x.device)), in_block.to(x.device), embeddings @ x,
        Answers(starts.to(x.device), ends.to(x.device), right.to(x.device)),
        reader.run_to_learn(draws.dropout_seeds(1, beam)),
    )  # fmt: skip
    drelevance = x.new_zeros(len(block_ids))
    if bool(right.any()):
        dloss = torch.tensor(1.0, device=x.device)
        drelevance, _ = best_span_of_backward({"loss": dloss}, kept, reader.own_grads)
    if fresh is not None:
        embed_backward(drelevance[:beam, None] * x, fresh[1], model.embedder.own_grads)
    return Read(float(output.retriever_loss), float(output.reader_loss), any(spans), drelevance @ embeddings)


def is_evidence(question: Encoded, block: int, evidence: Evidence) -> bool:
    """Whether block number `block` holds an answer, and what else is known of the question's evidence."""
    if evidence.blocks:
        title, text = evidence.blocks[block]
        if question.title is not None and title != question.title:
            return False
        if question.evidence is not None and question.evidence not in text:
            return False
    return any(len(occurrences(evidence.pieces[block], answer)) for answer in question.answers)


def embed_read(model: RealmForOpenQA, blocks: list[Block], seeds: list[int]) -> tuple[Tensor, Any]:
    """Embed_doc of some blocks [blocks, proj], with dropout seeds for each, and what its backward needs."""
    embedder = model.embedder
    inputs = model.retriever.tokenizer(
        [block.title for block in blocks], [block.text for block in blocks], padding=True, return_tensors="pt"
    ).to(embedder.device)
    batch = checked_batch(embedder.config, Inputs(**inputs))
    (found, _), kept = embed(embedder.p, embedder.config, batch, embedder.run_to_learn(seeds))
    return found, kept


def reading_order(block_ids: Tensor, right: Tensor, beam: int, read_an_answer: bool) -> tuple[Tensor, Tensor]:
    """The blocks and which are right, best first; the best right one is moved up to be the last that is read."""
    places = right.nonzero()[:, 0]
    if not read_an_answer or not len(places) or int(places[0]) < beam:
        return block_ids, right
    order = torch.arange(len(block_ids))
    first = int(places[0])
    order[beam - 1], order[first] = first, beam - 1
    return block_ids[order], right[order]


# ---- inputs


def occurrences(block: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Where the wordpieces `answer` begin in `block`."""
    starts = np.flatnonzero(block[: max(len(block) - len(answer) + 1, 0)] == answer[0])
    for i in range(1, len(answer)):
        starts = starts[block[starts + i] == answer[i]]
    return starts
