"""The Ask view's numbers: a question from its wordpieces to its answer, each step as the model computes it.

Every function returns what JSON holds: texts, lists and numbers, rounded to six digits where there are many of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..app.answer_lines import CREDULOUS, name, sentence
from ..interface.open_qa import Answer, RealmForOpenQA, SpanScores
from ..jobs.calibration import Judge

Json = dict[str, Any]
MOST_BLOCKS = 20  # that the page reads for a question


def ask(model: RealmForOpenQA, question: str, k: int | None = None, judge: Judge = CREDULOUS) -> Json:
    """A question's answer, the blocks with text it was read from, and how they came to be: `answer_from`, step by step.

    Args:
        k: blocks to read; None reads as many as the model does.
        judge: decides whether the answer is found.

    Raises:
        ValueError: an empty or overlong question; k below 1, or above MOST_BLOCKS or the number of blocks.
    """
    model.check_questions([question])
    k = checked_count(model, k)
    x = vector_of(model, question)
    (scores,), (found,) = model.search(x[None], k)
    texts = [model.evidence.text(i) for i in found.tolist()]
    read = model.score_spans(question, texts, scores)
    answer = model.best_answer(question, scores, found, texts, read)
    shown = torch.nonzero(read.in_block.any(dim=1))[:, 0].tolist()  # an index of others' may have empty blocks
    alone = [
        model.best_answer(question, scores[i : i + 1], found[i : i + 1], texts[i : i + 1], part_of(read, i))
        for i in shown
    ]
    return {
        "question": question,
        "wordpieces": wordpieces(model, question),
        "vector": digits(x),
        "answer": {
            "text": answer.text, "probability": answer.probability, "block": shown.index(answer.block_rank),
            "start": answer.start_char, "end": answer.end_char, "source": name(answer.blocks[answer.block_rank]),
            "sentence": sentence(texts[answer.block_rank], answer.start_char, answer.end_char),
            "mixture": answer.marginal_probability, "found": judge.found(answer),
            "confidence": judge.confidence(answer),
        },
        "blocks": [block_of(answer, rank, own, part_of(read, rank)) for rank, own in zip(shown, alone, strict=True)],
    }  # fmt: skip


def checked_count(model: RealmForOpenQA, k: int | None) -> int:
    """How many blocks to read."""
    if k is None:
        return model.config.reader_beam_size
    most = min(MOST_BLOCKS, len(model.block_emb))
    if type(k) is not int or not 1 <= k <= most:
        raise ValueError(f"{k!r} blocks were asked for: give a whole number from 1 to {most}")
    return k


def wordpieces(model: RealmForOpenQA, text: str) -> list[Json]:
    """The tokens of "[CLS] text [SEP]": each piece, its id, and the characters of the text that it stands for."""
    tokenizer = model.evidence.tokenizer
    coded = tokenizer(text, return_offsets_mapping=True)
    ids = coded["input_ids"]
    places = zip(tokenizer.convert_ids_to_tokens(ids), ids, coded["offset_mapping"], strict=True)
    return [{"piece": piece, "id": i, "start": int(start), "end": int(end)} for piece, i, (start, end) in places]


def vector_of(model: RealmForOpenQA, question: str) -> Tensor:
    """Embed(x) [proj]."""
    inputs = model.evidence.tokenizer([question], return_tensors="pt").to(model.device)
    return model.embedder(**inputs).projected_score[0]


def part_of(read: SpanScores, rank: int) -> SpanScores:
    """What was read of one block."""
    one = slice(rank, rank + 1)
    return read._replace(
        ids=read.ids[one], offsets=read.offsets[one], in_block=read.in_block[one], logits=read.logits[one]
    )


def block_of(answer: Answer, rank: int, alone: Answer, read: SpanScores) -> Json:
    """A block that was read: f(x, z), p(z|x), its tokens, the score of each of its spans, and what it says alone."""
    block, scores, first = answer.blocks[rank], *span_table(read)
    tokens = read.offsets[0, first : first + scores.shape[1]].tolist()
    best = np.unravel_index(np.nanargmax(scores), scores.shape)
    return {
        "id": block.id, "title": block.title, "document": block.document, "text": block.text,
        "score": block.score, "probability": block.probability,
        "prefix": first,  # tokens before the block's own, "[CLS] question [SEP]"
        "tokens": tokens,  # the characters of the block's text that each stands for
        # By width: spans of w + 1 tokens from each token on, w fewer than there are tokens.
        "spans": [np.round(row[: len(row) - w].astype(float), 4).tolist() for w, row in enumerate(scores)],
        "best": {"first": int(best[1]), "width": int(best[0]) + 1, "score": round(float(scores[best]), 4)},
        "alone": {"text": alone.text, "probability": alone.probability, "start": alone.start_char,
                  "end": alone.end_char},
    }  # fmt: skip


def span_table(read: SpanScores) -> tuple[np.ndarray, int]:
    """S(b, s) of a block's spans by width - 1 and first token [widths, tokens of the block]; and its first token.

    NaN where a span would reach beyond the block.
    """
    inside = read.in_block[0].cpu().numpy()
    starts, ends, logits = (x.cpu().numpy() for x in (read.starts, read.ends, read.logits[0]))
    table = np.full(((ends - starts).max() + 1, len(inside)), np.nan)
    table[ends - starts, starts] = np.where(inside[starts] & inside[ends], logits, np.nan)
    places = np.flatnonzero(inside)
    return table[:, places[0] : places[-1] + 1], int(places[0])


# ---- attention


def attentions_of(model: RealmForOpenQA, question: str, number: int) -> tuple[np.ndarray, list[Json]]:
    """What every token of "[CLS] question [SEP] block [SEP]" attends to: [layers, heads, tokens, tokens]; the tokens.

    Raises:
        ValueError: an empty or overlong question; no such block.
    """
    model.check_questions([question])
    if type(number) is not int or not 0 <= number < len(model.block_emb):
        raise ValueError(f"there is no block {number!r}: give a number from 0 to {len(model.block_emb) - 1}")
    text = model.evidence.text(number)
    read = model.score_spans(question, [text], torch.zeros(1, device=model.device), output_attentions=True)
    count = read.offsets.shape[1]  # what follows is padding
    pieces = model.evidence.tokenizer.convert_ids_to_tokens(read.ids[0, :count].tolist())
    inside = read.in_block[0].tolist()
    tokens = [{"piece": piece, "block": inside[i]} for i, piece in enumerate(pieces)]
    return torch.cat(read.attentions)[:, :, :count, :count].cpu().numpy(), tokens


def attention(attentions: np.ndarray, tokens: list[Json], first: int, last: int) -> Json:
    """From the tokens first..last, averaged over them, to every token: [layers][heads][tokens].

    Raises:
        ValueError: there are no such tokens.
    """
    if not (type(first) is type(last) is int and 0 <= first <= last < len(tokens)):
        raise ValueError(f"there are no tokens {first!r} to {last!r}: give numbers from 0 to {len(tokens) - 1}")
    rows = attentions[:, :, first : last + 1].mean(2)  # [layers, heads, tokens]
    return {"tokens": tokens, "first": first, "last": last, "weights": np.round(rows.astype(float), 4).tolist()}


def digits(values: Tensor) -> list[float]:
    return [float(f"{x:.6g}") for x in values.tolist()]
