"""How good are the answers: the measures of ORQA (Lee et al. 2019, section 7), SQuAD's token F1, and our own.

Measures differ in what counts as equal, and a block "holds" an answer in three senses, each under its own name:

    top_k_match       its text holds the reference as it is written: ORQA's measure, as its published code has it
    top_k_word_match  its normalised words hold those of the normalised reference, as whole words
    top_k_span_match  its wordpieces hold those of the reference, as a span that the reader may choose

`reader_oracle` is of the third sense, in the part of the blocks that the reader sees: it is to be compared with
`top_k_span_match`. docs/evaluation.md says more. Reference answers of CuratedTrec are regular expressions: those decide
by a match, and have no F1.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from .. import kinds
from ..interface.open_qa import Answer
from ..kinds import checked
from ..ranks.distributed import World
from ..text.questions import Question, Row, listed
from .settings import BATCH
from .statistics import top_k_match, wilson

TOP_K = (1, 5, 10, 20, 50, 100)

# Questions and k to the scores [questions, k] float32 and numbers [questions, k] int64 of the k best blocks, in order.
Search = Callable[[list[str], int], tuple[Tensor, Tensor]]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


class Result(NamedTuple):
    """A question, its answer, and every measure by name: 0.0 to 1.0, or None where it has no meaning.

    Where it could not be answered, `reason` says why, and there are neither answer nor measures. Where nothing was to
    be read there is no answer, and the measures are of what was retrieved.
    """

    row: Row
    answer: Answer | None
    retrieved: list[tuple[int, float]]  # (block, f(x, z)) of those retrieved, best first
    measures: dict[str, float | None]
    reason: str = ""

    @property
    def question(self) -> Question | None:
        return self.row.question

    @property
    def prediction(self) -> str:
        return "" if self.answer is None else self.answer.text


# ---- one prediction against its references


@checked
def normalize_answer(text: str) -> str:
    """ORQA's normal form: canonical decomposition, lower case, no ASCII punctuation, no articles, single spaces."""
    text = unicodedata.normalize("NFD", text).lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", text).split())


@checked
def official_exact_match(prediction: str, answers: str | Iterable, regex: bool = False) -> bool:
    """Whether the normalised prediction equals a normalised reference, or, with `regex`, a pattern matches its start.

    A pattern that does not compile matches nothing, as in ORQA's evaluation of CuratedTrec.
    """
    if regex:
        return any(pattern.match(prediction) for pattern in map(compiled, listed(answers)) if pattern)
    return normalize_answer(prediction) in map(normalize_answer, listed(answers))


@checked
def exact_match(prediction: str, answers: str | Iterable, tokenize: Callable[[str], list[str]]) -> bool:
    """Whether prediction and a reference are the same wordpieces, whether their accents are composed or not."""
    prediction, *answers = (unicodedata.normalize("NFC", text) for text in (prediction, *listed(answers)))
    return tokenize(prediction) in map(tokenize, answers)


@checked
def token_f1(prediction: str, answers: str | Iterable) -> float:
    """SQuAD's F1 of normalised words, against the reference that gives most; two empty bags of words are equal."""
    words = normalize_answer(prediction).split()
    return max((_f1(words, normalize_answer(answer).split()) for answer in listed(answers)), default=0.0)


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
    except (re.error, OverflowError, RecursionError):  # a count of 20 digits, say, or a thousand brackets
        return None


# ---- blocks against the references


@checked
def has_answer(block: str, answers: str | Iterable, regex: bool = False) -> bool:
    """Whether the block's text holds a reference as it is written, or, with `regex`, a pattern is found in it.

    ORQA's measure: a plain substring, upper and lower case apart, inside a word or not (`HasAnswerOp` of orqa_ops.cc in
    google-research/language). Only an empty reference is in no block here, and in every block there.
    """
    if regex:
        return any(pattern.search(block) for pattern in map(compiled, listed(answers)) if pattern)
    return any(answer in block for answer in listed(answers) if answer)


def has_answer_words(block: str, answers: Sequence[str]) -> bool:
    """Whether whole words of the normalised block are a normalised reference.

    A reference of which nothing is left (an article, a punctuation mark) is in no block.
    """
    words = f" {_normalize_block(block)} "
    return any(f" {answer} " in words for answer in map(normalize_answer, listed(answers)) if answer)


@lru_cache(maxsize=20_000)
def _normalize_block(block: str) -> str:
    return normalize_answer(block)


def has_answer_span(block: Sequence, answers: Iterable[Sequence], max_span_width: int) -> bool:
    """Whether some span of at most `max_span_width` wordpieces of the block is a reference's wordpieces."""
    text = spelled(block)
    return any(spelled(answer) in text for answer in answers if 0 < len(answer) <= max_span_width)


def spelled(wordpieces: Sequence) -> str:
    """Wordpieces or their ids as text in which the text of a part is found."""
    return "".join(f" {wordpiece} " for wordpiece in wordpieces)


# ---- many questions


def evaluate(
    model: Any,
    questions: Iterable[Question | Row],
    regex: bool = False,
    ks: Sequence[int] = TOP_K,
    batch_size: int = 8,
    world: World | None = None,
    depth: int = 0,
) -> Iterator[Result]:
    """Answer questions and measure each answer, batch by batch; what cannot be answered costs itself alone.

    Args:
        model: a RealmForOpenQA with its retriever.
        regex: references are regular expressions (CuratedTrec).
        ks: retrieval depths; those above the number of blocks are left out.
        world: ranks that share the work: all call this with the same questions, each answers every so many batches, and
            all get all results, in order. The batches, and so the results, are those of one process. None: this process
            answers them all.
        depth: blocks to retrieve for each question, where that is more than the measures and the reader need.

    Raises:
        ValueError: there are fewer blocks than the reader is to read; `questions` are none.
    """
    task = _task(model, model.retrieve, regex, ks, depth, beam=model.config.reader_beam_size)
    return _on_all_ranks(task, questions, batch_size, world)


def evaluate_retrieval(
    model: Any,
    questions: Iterable[Question | Row],
    search: Search | None = None,
    regex: bool = False,
    ks: Sequence[int] = TOP_K,
    batch_size: int = 8,
    world: World | None = None,
    depth: int = 0,
) -> Iterator[Result]:
    """As `evaluate`, without a reader: the measures are those of the blocks that are found.

    Args:
        search: finds the model's blocks in its place. Under `world` each rank calls it with questions of its own, none
            maybe. None: the model itself finds them.
    """
    task = _task(model, search or model.retrieve, regex, ks, depth, beam=0)
    return _on_all_ranks(task, questions, batch_size, world)


class Task(NamedTuple):
    """What is asked of every question of an evaluation."""

    model: Any
    search: Search
    regex: bool
    ks: list[int]
    depth: int  # blocks to retrieve
    beam: int  # of them to read, 0 for none
    wordpieces: Callable[[int], list[int]]  # of a block


def _task(model: Any, search: Search, regex: bool, ks: Sequence[int], depth: int, beam: int) -> Task:
    kinds.check("regex", regex, bool)
    kinds.check("ks", ks, Sequence[int])
    kinds.check("depth", depth, int)
    num_blocks = len(model.retriever.block_records)
    ks = [k for k in ks if k <= num_blocks]
    depth = max(beam, min(num_blocks, max([1, depth, *ks])))
    wordpieces = lru_cache(maxsize=20_000)(lambda block: _wordpieces(model, [model.retriever.text(block)])[0])
    return Task(model, search, regex, ks, depth, beam, wordpieces)


def _on_all_ranks(
    task: Task, questions: Iterable[Question | Row], batch_size: int, world: World | None
) -> Iterator[Result]:
    kinds.check("questions", questions, str | Iterable)  # of a str it is told below that its letters are none
    BATCH.check("batch_size", batch_size)
    world = World() if world is None else world
    rows = (as_row(number, question) for number, question in enumerate(questions, start=1))
    while batches := [batch for _ in range(world.size) if (batch := list(islice(rows, batch_size)))]:
        mine = batches[world.rank] if world.rank < len(batches) else []
        for results in world.gather_objects(_evaluate_batch(task, mine)):
            yield from results


def _evaluate_batch(task: Task, batch: list[Row]) -> list[Result]:
    faults = [task.model.fault_of(row.question.question) if row.question else row.reason for row in batch]
    asked = [row.question.question for row, fault in zip(batch, faults, strict=True) if row.question and not fault]
    found = zip(*task.search(asked, task.depth), strict=True)  # every rank searches, whatever it asks
    return [
        _result(task, row, row.question, *next(found))
        if row.question and not fault
        else Result(row, None, [], {}, fault)
        for row, fault in zip(batch, faults, strict=True)
    ]


def _result(task: Task, row: Row, question: Question, scores: Tensor, blocks: Tensor) -> Result:
    model, beam = task.model, task.beam
    answer, measures = None, {}
    try:
        if beam:
            answer = model.answer_from(question.question, scores[:beam], blocks[:beam])
        if question.answers:
            if answer is not None:
                measures |= measure(model, question, answer.text, [block.text for block in answer.blocks], task.regex)
            measures |= _hits(task, question, blocks.tolist())
    except ValueError as error:  # every block is empty, say, or one is no text
        return Result(row, None, [], {}, str(error))
    return Result(row, answer, list(zip(blocks.tolist(), scores.tolist(), strict=True)), measures)


def _hits(task: Task, question: Question, blocks: list[int]) -> dict[str, float]:
    """Whether one of the first k blocks holds an answer, for each k, in every sense."""
    model, answers, blocks = task.model, question.answers, blocks[: max(task.ks, default=0)]
    texts = [model.retriever.text(block) for block in blocks]
    found = top_k_match([has_answer(text, answers, task.regex) for text in texts], task.ks)
    if task.regex:
        return found
    gold, widest = _wordpieces(model, answers), model.config.max_span_width
    in_span = [has_answer_span(task.wordpieces(block), gold, widest) for block in blocks]
    found |= top_k_match([has_answer_words(text, answers) for text in texts], task.ks, "word_match")
    return found | top_k_match(in_span, task.ks, "span_match")


def as_row(number: int, question: Question | Row) -> Row:
    """A question as the row of a file of questions; ValueError for what is none, a letter of a text say."""
    if isinstance(question, Row):
        return question
    if isinstance(question, Question):
        return Row(number, question)
    raise ValueError(f"{question!r} is no Question: give a list of Question(question, answers)")


def measure(
    model: Any, question: Question, prediction: str, read: Sequence[str], regex: bool = False
) -> dict[str, float | None]:
    """Measures of one prediction; `read` are the texts of the blocks the reader saw."""
    official = float(official_exact_match(prediction, question.answers, regex))
    if regex:
        oracle = any(has_answer(text, question.answers, regex) for text in read)
        return {"exact_match": official, "official_exact_match": official, "f1": None, "reader_oracle": float(oracle)}
    tokenizer, config = model.retriever.tokenizer, model.config
    # [CLS] question [SEP] block [SEP]: what does not fit in reader_seq_len the reader does not see.
    inputs = tokenizer(
        [question.question] * len(read), list(read), padding=True, truncation=True, max_length=config.reader_seq_len
    )
    gold = [ids for ids in _wordpieces(model, question.answers) if 0 < len(ids) <= config.max_span_width]
    oracle = any(model.retriever.block_has_answer(inputs, gold)[0])
    return {
        "exact_match": float(exact_match(prediction, question.answers, tokenizer.tokenize)),
        "official_exact_match": official,
        "f1": token_f1(prediction, question.answers),
        "reader_oracle": float(oracle),
    }


def _wordpieces(model: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text, without special tokens."""
    return model.retriever.tokenizer(texts, add_special_tokens=False)["input_ids"]


# ---- all questions together


@checked
def means(results: Iterable[Mapping[str, float | bool | None]]) -> dict[str, float | None]:
    """Mean of each measure over the questions that it has a meaning for; None where that is none of them."""
    return {name: sum(values) / len(values) if values else None for name, values in _columns(results).items()}


def summary(results: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    """`means`; "n", the questions that each is the mean of; and "interval_95", the low and high end of `wilson`."""
    found, counts = means(results), {name: len(values) for name, values in _columns(results).items()}
    intervals = {name: wilson(mean, counts[name]) for name, mean in found.items() if mean is not None}
    return {**found, "n": counts, "interval_95": intervals}


def _columns(results: Iterable[Mapping[str, float | bool | None]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    results = list(results)
    kinds.check("results", results, list[dict])
    for measures in results:
        for name, value in measures.items():
            column = columns.setdefault(name, [])
            if value is not None:
                column.append(value)
    return columns
