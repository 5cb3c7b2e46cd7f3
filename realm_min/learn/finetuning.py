"""Fine-tuning on questions and answers (REALM section 3.3, open-QA; ORQA, Lee et al. 2019, sections 5 and 6).

For a question x the retriever's best blocks are searched among all; a block is taken for right when an answer's
wordpieces occur in it, since nobody has marked the evidence. Two losses, each -log of the probability of all that is
right: the retriever's over the `searcher_beam_size` best blocks, the reader's over every span of the
`reader_beam_size` best. Both reach the question's embedding through f(x, z); the blocks' embeddings stay as they are,
unless `refresh_blocks` re-embeds them as training goes on and lets the gradient into the blocks that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import RealmConfig
from ..interface.inputs import Inputs, checked_batch
from ..interface.open_qa import RealmForOpenQA
from ..model.bert import Batch
from ..model.realm import embed, embed_backward, loss_of_correct, read, read_backward
from ..model.spans import span_candidate, span_count
from ..text.corpus import Block
from ..text.sequences import padded, reader_inputs
from .steps import Sum

if TYPE_CHECKING:
    from ..jobs.draws import Draws
    from ..jobs.settings import Finetune


class EncodedQuestion(NamedTuple):
    """A question as the models read it: its wordpieces, those of its answers, the blocks that may be its evidence."""

    ids: np.ndarray  # with [CLS] before and [SEP] behind
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
    model: RealmForOpenQA, questions: list[EncodedQuestion], evidence: Evidence, settings: Finetune, draws: Draws
) -> dict[str, Sum]:
    """The losses of a batch of questions, added up; the sum's gradients are added to the model's."""
    embedder = model.embedder
    inputs = padded([question.ids for question in questions], model.config.pad_token_id)
    batch = checked_batch(embedder.config, Inputs(*inputs).to(embedder.device))
    run = embedder.run_to_learn(draws.dropout_seeds(), last=True)
    (x, _), kept_x = embed(embedder.p, embedder.config, batch, run)  # [batch, proj]
    _, found = model.search(x, min(model.config.searcher_beam_size, len(evidence.pieces)))  # [batch, searcher beam]
    results, dx = [], torch.zeros_like(x)
    for i, question in enumerate(questions):
        last = i == len(questions) - 1
        results.append(question_step(model, question, x[i], found[i], evidence, settings, draws.of(i), last))
        dx[i] = results[-1].dprojection
    embed_backward(dx, kept_x, embedder.own_grads)
    retriever_loss = sum(result.retriever_loss for result in results)
    reader_loss = sum(result.reader_loss for result in results)
    return {
        "loss": Sum(retriever_loss + reader_loss, len(results)),
        "retriever_loss": Sum(retriever_loss, len(results)),
        "reader_loss": Sum(reader_loss, len(results)),
        "read_an_answer": Sum(sum(result.hit for result in results), len(results)),
    }


def question_step(
    model: RealmForOpenQA,
    question: EncodedQuestion,
    x: Tensor,
    found: Tensor,
    evidence: Evidence,
    settings: Finetune,
    draws: Draws,
    last: bool,
) -> Read:
    """The losses of one question, which reads the first blocks of `found` [searcher beam]; adds the reader's gradients.

    Args:
        x: Embed_input(x) [proj].
        draws: this question's alone.
        last: the reader has no other question to read in this step.
    """
    config, reader = model.config, model.reader
    right = torch.tensor([is_evidence(question, block, evidence) for block in found.tolist()], device=x.device)
    block_ids, right = reading_order(found, right, config.reader_beam_size, settings.read_an_answer)
    beam = min(config.reader_beam_size, len(block_ids))
    embeddings, fresh = model.block_emb[block_ids].to(x), None  # [searcher beam, proj]
    if settings.refresh_blocks:
        blocks = [evidence.blocks[block] for block in block_ids[:beam].tolist()]
        fresh = embed_read(model, blocks, draws.dropout_seeds(1 + beam, beam))
        embeddings[:beam] = fresh[0]
    relevance = embeddings @ x  # f(x, z) [searcher beam]
    texts = [evidence.pieces[block] for block in block_ids[:beam].tolist()]
    batch, in_block, correct = pairs_to_read(config, question, texts, right[:beam])
    run = reader.run_to_learn(draws.dropout_seeds(1, beam), last=last)
    (scores, _), kept_read = read(reader.p, config, batch, in_block, relevance[:beam], run)  # [beam, spans]
    retriever_loss, drelevance = loss_of_correct(relevance[None], right[None])
    reader_loss, dscores = loss_of_correct(scores.view(1, -1), correct.view(1, -1))
    drelevance = drelevance[0]  # [searcher beam]
    if bool(right.any()):  # a question whose answer was not found teaches nothing
        drelevance[:beam] += read_backward(dscores.view_as(scores), kept_read, reader.own_grads)[0]
    if fresh is not None:
        embed_backward(drelevance[:beam, None] * x, fresh[1], model.embedder.own_grads)
    return Read(float(retriever_loss), float(reader_loss), bool(correct.any()), drelevance @ embeddings)


def pairs_to_read(
    config: RealmConfig, question: EncodedQuestion, texts: list[np.ndarray], right: Tensor
) -> tuple[Batch, Tensor, Tensor]:
    """A question beside each block, given as wordpieces, as the reader reads them.

    Args:
        right: in which blocks an answer counts, bool [beam].

    Returns:
        The batch, which of its tokens are the block's [beam, tokens], and which spans are an answer [beam, spans].
    """
    room = config.reader_seq_len - 3 - len(question.ids[1:-1])
    texts, device = [text[:room] for text in texts], right.device
    inputs, in_block = reader_inputs(question.ids, texts, config.pad_token_id, config.max_span_width)
    batch = checked_batch(config, Inputs(*inputs).to(device))
    tokens = batch.types.shape[1]
    correct = torch.zeros(len(texts), span_count(tokens, config.max_span_width), dtype=torch.bool, device="cpu")
    for row in right.nonzero()[:, 0].tolist():
        for answer in question.answers:
            for start in len(question.ids) + occurrences(texts[row], answer):
                correct[row, span_candidate(int(start), int(start) + len(answer) - 1, tokens)] = True
    return batch, in_block.to(device), correct.to(device)


def is_evidence(question: EncodedQuestion, block: int, evidence: Evidence) -> bool:
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
    order = torch.arange(len(block_ids), device=block_ids.device)
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
