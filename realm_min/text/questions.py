"""Files of questions and their answers, in the forms that people have them: to measure a model by, and to learn from.

    .jsonl       a line {"question": "…", "answer": ["…", …]}, as NQ-open's, with an "id" or without; or "answers";
                 or BEIR's queries, a line {"_id": "…", "text": "…"}: without answers, for judgements of documents
    .json        an array of such objects, as DPR's
    .tsv, .csv   a line question<tab>['…', …], as DPR's: the answers are a list of Python's string literals

Each may be gzipped. A line that cannot be read costs itself alone: `read_rows` says why.
"""

from __future__ import annotations

import ast
import csv
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from ..kinds import checked, is_iterable
from .lines import GZIPPED, checked_object, json_object, text_lines

TABLES = (".tsv", ".csv")
NO_QUESTION = 'has no "question"; each line needs one, a string that is not empty'
NO_ANSWER = 'has no "answer"; each line needs one, a list of strings'


class Question(NamedTuple):
    question: str
    answers: list[str]  # references, any of which is right; none where documents are judged instead


class Row(NamedTuple):
    """A line of a file of questions, or an item of its array: what it asks, or why it cannot be asked."""

    line: int  # from 1
    question: Question | None
    id: str = ""  # as the file gives it
    reason: str = ""  # to follow "FILE line N": has no "answer"; …


class TrainingQuestion(NamedTuple):
    """A question, its accepted answers and what is known of the evidence: its document's title, words that it holds."""

    question: str
    answers: list[str]
    title: str | None = None
    evidence: str | None = None


def listed(texts: str | Iterable[str]) -> list[str]:
    """Texts as a list, one alone as a list of one: it is never read letter by letter.

    Raises:
        ValueError: one of them is no text.
    """
    if isinstance(texts, str):
        return [texts]
    found: list[Any] = list(texts) if is_iterable(texts) else [texts]
    for text in found:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is a {type(text).__name__}, not a text: give a str, or a list of them")
    return found


@checked
def read_rows(path: str | os.PathLike) -> Iterator[Row]:
    """What each line of a file of questions asks, or why it cannot be asked; read as they are asked for.

    Raises:
        OSError: there is no such file.
        ValueError: nothing of the file can be read.
    """
    for number, value in _values(path):
        if isinstance(value, ValueError):
            yield Row(number, None, "", str(value))
            continue
        try:
            yield Row(number, checked_question(value), _id(value))
        except ValueError as error:
            yield Row(number, None, _id(value), str(error))


def rows_to_ask(path: str | os.PathLike, judged: bool = False) -> Iterator[Row]:
    """As `read_rows`, for an evaluation: a question without answers is malformed.

    Args:
        judged: documents are judged, by the questions' ids: answers are not needed, and an id that stands twice is
            malformed the second time. A question without an id has its line's number for one.
    """
    lines: dict[str, int] = {}
    for row in read_rows(path):
        row = row._replace(id=row.id or str(row.line))
        if row.question and not row.question.answers and not judged:
            row = row._replace(question=None, reason=NO_ANSWER)
        elif row.question and judged and lines.setdefault(row.id, row.line) != row.line:
            row = row._replace(question=None, reason=f"has the id {row.id!r} of line {lines[row.id]}")
        yield row


@checked
def read_questions(path: str | os.PathLike) -> Iterator[Question]:
    """As `read_rows`, the questions alone.

    Raises:
        ValueError: a line is malformed, or has no answers; it is named by its number.
    """
    for row in read_rows(path):
        if row.question is None or not row.question.answers:
            raise ValueError(f"{path} line {row.line} {row.reason or NO_ANSWER}")
        yield row.question


@checked
def read_training_questions(path: str | os.PathLike) -> list[TrainingQuestion]:
    """As `read_questions`, with "title" and "evidence" where they are known.

    Raises:
        ValueError: a line is malformed; it is named by its number.
    """
    return [question for _, question in training_rows(path)]


def training_rows(path: str | os.PathLike) -> Iterator[tuple[int, TrainingQuestion]]:
    """As `read_training_questions`, with the number of each one's line."""
    for number, value in _values(path):
        try:
            if isinstance(value, ValueError):
                raise value
            question, answers = checked_question(value)
            if not answers:
                raise ValueError(NO_ANSWER)
            known = {key: value[key] for key in ("title", "evidence") if value.get(key) is not None}
            for key, given in known.items():
                if not isinstance(given, str):
                    raise ValueError(f'"{key}" is {given!r}, not a string')
        except ValueError as error:
            raise ValueError(f"{path} line {number} {error}") from None
        yield number, TrainingQuestion(question, answers, **known)


def checked_question(value: dict[str, Any]) -> Question:
    """The question of an object, with the answers it has, none maybe; ValueError says what is wrong with it."""
    question = value.get("question", value.get("text"))
    answers = value.get("answer", value.get("answers", []))
    if not isinstance(question, str) or not question.strip():
        raise ValueError(NO_QUESTION)
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(NO_ANSWER)
    return Question(question, answers)


def _id(value: dict[str, Any]) -> str:
    found = next((value[key] for key in ("_id", "id", "qid", "question_id", "query_id") if key in value), "")
    return str(found).strip() if isinstance(found, (str, int)) else ""


_HEADER = {"question": "question", "answers": None}  # of a table


def _values(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Of each line that is not blank, or each item of an array: its number from 1, and the object, or what is wrong."""
    name = os.fspath(path).lower().removesuffix(GZIPPED)
    read: Callable[[Any], dict[str, Any]] = _table_row if name.endswith(TABLES) else json_object
    items: Iterable[Any] = text_lines(path)
    if name.endswith(".json") and (array := _array(path)) is not None:
        items, read = array, checked_object
    for number, item in enumerate(items, start=1):
        if isinstance(item, bytes) and not item.strip():
            continue
        try:
            value: dict[str, Any] | ValueError = read(item)
        except ValueError as error:
            value = error
        if number > 1 or value is not _HEADER:
            yield number, value


def _array(path: str | os.PathLike) -> list[Any] | None:
    """The items of a file that is one JSON array; None of one that is an object a line."""
    data = b"".join(text_lines(path))
    if not data.lstrip().startswith(b"["):
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is not valid JSON ({error})") from None


def _table_row(line: bytes) -> dict[str, Any]:
    """The object that a line question<tab>['…', …] stands for; no code in it is run."""
    try:
        text = line.decode().strip("\r\n")
        delimiter = "\t" if "\t" in text else ","
        cells = next(csv.reader([text], delimiter=delimiter))
        if len(cells) < 2 and delimiter == "\t":  # a quotation mark that nothing closes
            cells = text.split(delimiter)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot be read ({error})") from None
    if len(cells) != 2:
        raise ValueError(f"has {len(cells)} columns; each line needs two, a question and a list of answers")
    if [cell.strip().lower() for cell in cells] in (["question", "answers"], ["question", "answer"]):
        return _HEADER
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of a backslash that escapes nothing
            return {"question": cells[0], "answers": ast.literal_eval(cells[1].strip())}
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise ValueError(f"has {cells[1][:60]!r} for answers; give a list of strings, ['…', …]") from None
