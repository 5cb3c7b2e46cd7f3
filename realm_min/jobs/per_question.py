"""What a system gave for each question, as a file: JSON, an object a line, or a table where the name ends in .csv.

`evaluate` and `retrieve` write it, `compare` reads it. Beside what describes a question and its answer each row has the
measures by name, 0 to 1, or in place of them why the question was skipped. What is not known is null in JSON, and an
empty cell in a table. Other programs' files will do: what they need is "question" and measures.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..files.atomic import write_atomically
from ..text.lines import GZIPPED, json_lines, text_lines
from .journal import json_line
from .settings import LARGEST

TABLE = ".csv"
# Columns that are no measures.
PLACE = ("start_char", "end_char", "document_start", "document_end")
DESCRIBING = ("line", "id", "question", "prediction", "probability", "document", "title", "block", *PLACE, "skipped")

Key = tuple[str, str]  # id, "" where there is none, and question


class PerQuestion(NamedTuple):
    """A file that was read: each question's measures, None for a value it has not; of one that was skipped, None."""

    path: str
    rows: dict[Key, dict[str, float | None] | None]

    @property
    def measures(self) -> list[str]:
        """The names of those that some question has a value of."""
        values = [row for row in self.rows.values() if row]
        return [name for name in (values[0] if values else ()) if any(row[name] is not None for row in values)]


@contextmanager
def rows_written(path: Path | None) -> Iterator[list[dict[str, Any]]]:
    """A list to append rows to; as the block ends without an error they are the file `path`, if it is one."""
    rows: list[dict[str, Any]] = []
    yield rows
    if path is not None:
        data = table(rows) if is_table(path) else b"".join(map(json_line, rows))
        with write_atomically(path) as temporary:
            temporary.write_bytes(data)


def is_table(path: str | os.PathLike) -> bool:
    return os.fspath(path).lower().endswith(TABLE)


def table(rows: list[dict[str, Any]]) -> bytes:
    """Rows as CSV in UTF-8, with a column for each name that a row has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def read_per_question(path: str | os.PathLike) -> PerQuestion:
    """A file as `rows_written` writes it, or another program's.

    A column is a measure if it describes nothing (`DESCRIBING`) and all its values are numbers from 0 to 1.

    Raises:
        OSError: there is no such file.
        ValueError: it cannot be read, holds no question, or one twice with nothing to tell them apart.
    """
    path = os.fspath(path)
    found = list(
        _table_rows(path) if is_table(path.lower().removesuffix(GZIPPED)) else (value for _, value in json_lines(path))
    )
    for row in found:
        if not isinstance(row.get("question"), str):
            raise ValueError(f'{path} has no "question" of each row: give what evaluate or retrieve wrote, or its like')
    if not found:
        raise ValueError(f"{path} holds no question")
    names = dict.fromkeys(name for row in found for name in row if name not in DESCRIBING)
    measures = [name for name in names if all(_value(row.get(name)) is not None for row in found)]
    rows: dict[Key, dict[str, float | None] | None] = {}
    for row in found:
        given = row.get("id")
        key = ("" if given is None else str(given), row["question"])  # 0 is an id, too
        if key in rows:
            raise ValueError(f"{path} has the question {key[1]!r} twice, with no id to tell which is which")
        rows[key] = None if row.get("skipped") else {name: _value(row.get(name), None) for name in measures}
    return PerQuestion(path, rows)


def _value(given: Any, absent: float | None = 0.0) -> float | None:
    """A number from 0 to 1 as a float, `absent` for one that is not there, None for anything else."""
    if given is None or given == "":
        return absent
    try:
        value = float(given) if isinstance(given, (str, int, float)) else -1.0
    except (ValueError, OverflowError):
        return None
    return value if 0 <= value <= 1 else None


def _table_rows(path: str) -> Iterator[dict[str, Any]]:
    text = b"".join(text_lines(path)).decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    limit = csv.field_size_limit(LARGEST)  # one for all readers, and 131,072 characters else; a block may have more
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{path} line {reader.line_num} has other columns than the first: write it anew")
            yield row
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read after line {reader.line_num} ({error})") from None
    finally:
        csv.field_size_limit(limit)


# ---- two sides


def read_sides(
    files: Sequence[str | os.PathLike], against: Sequence[str | os.PathLike] | None
) -> tuple[list[PerQuestion], list[PerQuestion]]:
    """The files of A and those of B, one a seed; without `against`, of two files the first is A's, the second B's.

    Raises:
        OSError, ValueError: as `read_per_question`; a file has other questions than the first, of which one is named.
    """
    sides = (files[:1], files[1:]) if against is None else (files, against)
    a, b = ([read_per_question(path) for path in side] for side in sides)
    first, *others = (*a, *b)
    for other in others:
        for some, rest in ((first, other), (other, first)):
            missing = [question for question in some.rows if question not in rest.rows]
            if missing:
                raise ValueError(
                    f"{first.path} and {other.path} are not of the same questions: {len(missing):,} of {some.path} are "
                    f"not in {rest.path}, {missing[0][1]!r} the first: measure both on one file of questions"
                )
    return a, b


def shared_measures(a: list[PerQuestion], b: list[PerQuestion], wanted: Sequence[str] | None = None) -> list[str]:
    """The measures that all files have, or of these the wanted ones.

    Raises:
        ValueError: there is none, or a file lacks one that is wanted.
    """
    files = [*a, *b]
    for file in files:
        for name in wanted or ():
            if name not in file.measures:
                raise ValueError(f"{file.path} has no measure {name!r}: it has {', '.join(file.measures) or 'none'}")
    found = [name for name in wanted or a[0].measures if all(name in file.measures for file in files)]
    if not found:
        each = "; ".join(f"{file.path} has {', '.join(file.measures) or 'none'}" for file in files)
        raise ValueError(f"no measure is in every file: {each}: give what evaluate or retrieve wrote")
    return found


def measured_by_all(name: str, files: list[PerQuestion]) -> list[Key]:
    """The questions that all files have a value of the measure for, in the order of the first; skipped in none.

    Raises:
        ValueError: one file has a value where another has none, or there are no questions.
    """
    found = []
    for question in files[0].rows:
        rows = [file.rows[question] for file in files]
        given = [row[name] is not None for row in rows if row is not None]
        if len(given) == len(files) and any(given):
            if not all(given):
                has, lacks = files[given.index(True)].path, files[given.index(False)].path
                raise ValueError(f"{name} of {question[1]!r} is in {has} and not in {lacks}: measure both the same way")
            found.append(question)
    if not found:
        raise ValueError(f"no question has a value of {name} in every file: each was skipped in one of them")
    return found


def values(files: list[PerQuestion], name: str, questions: Iterable[Key]) -> list[list[float]]:
    """A measure as [files, questions], of `measured_by_all`."""
    questions = list(questions)
    return [[cast(dict, file.rows[question])[name] for question in questions] for file in files]
