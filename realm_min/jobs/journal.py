"""What a long job has found so far, a JSON object a line, so that one that was stopped goes on where it stood.

The first line says what the job is; one that is another does not go on with it. Each line ends in its checksum: what
stands from a damaged one on is found anew.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..files.atomic import write_atomically
from ..text.lines import json_object, text_lines

_CRC_LENGTH = 9  # of a space and 8 digits, in bytes


def open_journal(path: Path, identity: dict[str, Any], batch: int = 1) -> int:
    """Begin a journal, or go on with one; returns how many objects it holds.

    What is left of a killed job's last batch of `batch` objects is forgotten, since batches are to be the same again.

    Raises:
        ValueError: it is another job's.
        FileExistsError: it is no journal.
    """
    if not os.path.lexists(path):
        path.write_bytes(journal_line(identity))
        return 0
    if not path.is_file():  # to read a pipe is to wait for who writes it
        raise FileExistsError(f"{path} is no file, and what is found is kept there: move it away, or name another file")
    data = path.read_bytes()
    lines = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    if not lines and not journal_line(identity).startswith(data):
        raise FileExistsError(f"{path} is no journal of this job: move it away, or name another file")
    begun = (_value(lines[0]) or {}) if lines else identity
    differing = [key for key in identity if begun.get(key) != identity[key]]
    if differing:
        raise ValueError(
            f"{path} was begun with another {', '.join(differing)}: remove it to start anew, or name another file"
        )
    whole = list(takewhile(_value, lines))
    held = (len(whole) - 1) // batch * batch if whole else 0
    with write_atomically(path) as temporary:
        temporary.write_bytes(b"".join(whole[: held + 1]) or journal_line(identity))
    return held


def journal_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a journal, in order. Raises ValueError, naming the line, where it is damaged."""
    for number, line in enumerate(text_lines(path), start=1):
        value = _value(line)
        if value is None:
            raise ValueError(f"{path} line {number} is damaged: give the same command again, which mends it")
        if number > 1:
            yield value


def journal_line(value: dict[str, Any]) -> bytes:
    """An object as a line of a journal."""
    text = json_line(value)[:-1]
    return text + b" %08x\n" % zlib.crc32(text)


def _value(line: bytes) -> dict[str, Any] | None:
    """What a line of a journal says; None if it is not as it was written."""
    text, crc = line[: -_CRC_LENGTH - 1], line[-_CRC_LENGTH - 1 :]
    return json_object(text) if crc == b" %08x\n" % zlib.crc32(text) else None


def json_line(value: dict[str, Any]) -> bytes:
    """An object as a line of UTF-8; half a surrogate pair, which that has no bytes for, becomes JSON's escape."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
