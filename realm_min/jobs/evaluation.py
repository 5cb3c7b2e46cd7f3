"""How good are the answers: the measures of ORQA (Lee et al. 2019, section 7) and SQuAD's token F1.

Measures differ in what counts as equal. Wordpieces decide `exact_match` and `reader_oracle`, because the reader
chooses among spans of wordpieces; normalised strings decide `official_exact_match`, `f1` and `top_k_match`. Reference
answers of CuratedTrec are regular expressions: those decide by a match, and have no F1.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from ..ranks.distributed import World
from ..text.questions import Question

TOP_K = (1, 5, 10, 20, 50, 100)

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class Result(NamedTuple):
    """A question, its prediction, and every measure by name: 0.0 to 1.0, or None where it has no meaning."""

    question: Question
    prediction: str
    measures: dict[str, float | None]


# ---- one prediction against its references


def normalize_answer(text: str) -> str:
    """ORQA's normal form: canonical decomposition, lower case, no ASCII punctuation, no articles, single spaces."""
    text = unicodedata.normalize("NFD", text).lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", text).split())


def official_exact_match(prediction: str, answers: Sequence[str], regex: bool = False) -> bool:
    """Whether the normalised prediction equals a normalised reference, or, with `regex`, a pattern matches its start.

    A pattern that does not compile matches nothing, as in ORQA's evaluation of CuratedTrec.
    """
    if regex:
        return any(pattern.match(prediction) for pattern in map(compiled, answers) if pattern)
    return normalize_answer(prediction) in map(normalize_answer, answers)


def exact_match(prediction: str, answers: Sequence[str], tokenize: Callable[[str], list[str]]) -> bool:
    """Whether prediction and a reference are the same wordpieces: the predicted span is a gold span."""
    return tokenize(prediction) in map(tokenize, answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 of normalised words, against the reference that gives most; two empty bags of words are equal."""
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(answer).split()) for answer in answers)


def _f1(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * common / (len(predicted) + len(gold))


@lru_cache(maxsize=1024)
def compiled(source: str) -> re.Pattern | None:
    """The pattern that a reference is under `regex`; None if it does not compile."""
    try:
        return re.compile(source, re.IGNORECASE | re.MULTILINE)
    except re.error:
        return None


# ---- blocks against the references


def has_answer(block: str, answers: Sequence[str], regex: bool = False) -> bool:
    """Whether whole words of the normalised block are a normalised reference, or a pattern is found in the block.

    A reference of which nothing is left (an article, a punctuation mark) is in no block.
    """
    if regex:
        return any(pattern.search(block) for pattern in map(compiled, answers) if pattern)
    words = f" {_normalize_block(block)} "
    return any(f" {answer} " in words for answer in map(normalize_answer, answers) if answer)


@lru_cache(maxsize=20_000)
def _normalize_block(block: str) -> str:
    return normalize_answer(block)


def has_answer_span(block: Sequence[str], answers: Iterable[Sequence[str]], max_span_width: int) -> bool:
    """Whether some span of at most `max_span_width` wordpieces of the block is a reference's wordpieces."""
    block = list(block)
    return any(
        list(answer) == block[start : start + len(answer)]
        for answer in answers
        if 0 < len(answer) <= max_span_width
        for start in range(len(block) - len(answer) + 1)
    )


def top_k_match(hits: Sequence[bool], ks: Iterable[int]) -> dict[str, float]:
    """{"top_k_match": 1.0 if one of the first k retrieved blocks holds an answer} for each k; hits are best first."""
    first = hits.index(True) if True in hits else len(hits)
    return {f"top_{k}_match": float(first < min(k, len(hits))) for k in ks}


# ---- many questions


def evaluate(
    model: Any,
    questions: Iterable[Question],
    regex: bool = False,
    ks: Sequence[int] = TOP_K,
    batch_size: int = 8,
    world: World | None = None,
) -> Iterator[Result]:
    """Answer questions and measure each answer, batch by batch.

    Args:
        model: a RealmForOpenQA with its retriever.
        regex: references are regular expressions (CuratedTrec).
        ks: retrieval depths; those above the number of blocks are left out.
        world: ranks that share the work: all call this with the same questions, each answers every so many batches, and
            all get all results, in order. The batches, and so the results, are those of one process. None: this process
            answers them all.
    """
    world = World() if world is None else world
    num_blocks = len(model.retriever.block_records)
    ks = [k for k in ks if k <= num_blocks]
    questions = iter(questions)
    while batches := [batch for _ in range(world.size) if (batch := list(islice(questions, batch_size)))]:
        if world.size > 1:  # every rank sees a question that one cannot answer
            model.check_questions([question.question for batch in batches for question in batch])
        mine = batches[world.rank] if world.rank < len(batches) else []
        for results in world.gather_objects(_evaluate_batch(model, mine, regex, ks)):
            yield from results


def _evaluate_batch(model: Any, batch: list[Question], regex: bool, ks: Sequence[int]) -> list[Result]:
    texts = [question.question for question in batch]
    answers = model.answer(texts)
    _, retrieved = model.retrieve(texts, max(ks))  # [batch, max(ks)]
    results = []
    for question, answer, block_ids in zip(batch, answers, retrieved.tolist(), strict=True):
        records = [_record_text(model, block_id) for block_id in block_ids]
        hits = [has_answer(text, question.answers, regex) for text in records]
        read = [block.text for block in answer.blocks]
        measures = measure(model, question, answer.text, read, regex) | top_k_match(hits, ks)
        results.append(Result(question, answer.text, measures))
    return results


def measure(
    model: Any, question: Question, prediction: str, read: Sequence[str], regex: bool = False
) -> dict[str, float | None]:
    """Measures of one prediction; `read` are the texts of the blocks the reader saw."""
    official = float(official_exact_match(prediction, question.answers, regex))
    if regex:
        oracle = any(has_answer(text, question.answers, regex) for text in read)
        return {"exact_match": official, "official_exact_match": official, "f1": None, "reader_oracle": float(oracle)}
    tokenize = model.retriever.tokenizer.tokenize
    # [CLS] question [SEP] block [SEP]: what does not fit in reader_seq_len the reader does not see.
    room = max(model.config.reader_seq_len - 3 - len(tokenize(question.question)), 0)
    gold = [tokenize(answer) for answer in question.answers]
    oracle = any(has_answer_span(tokenize(text)[:room], gold, model.config.max_span_width) for text in read)
    return {
        "exact_match": float(exact_match(prediction, question.answers, tokenize)),
        "official_exact_match": official,
        "f1": token_f1(prediction, question.answers),
        "reader_oracle": float(oracle),
    }


def _record_text(model: Any, block_id: int) -> str:
    return bytes(model.retriever.block_records[block_id]).decode()


def means(results: Iterable[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean of each measure over the questions; None where the measure has no meaning for them."""
    columns: dict[str, list[float | None]] = {}
    for measures in results:
        for name, value in measures.items():
            columns.setdefault(name, []).append(value)
    found: dict[str, float | None] = {}
    for name, column in columns.items():
        values = [value for value in column if value is not None]
        found[name] = sum(values) / len(values) if len(values) == len(column) else None
    return found
