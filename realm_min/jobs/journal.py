"""What a long job has found so far, a JSON object a line, so that one that was stopped goes on where it stood.

The first line says what the job is; one that is another does not go on with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files.atomic import write_atomically
from ..text.lines import json_lines, json_object


def open_journal(path: Path, identity: dict[str, Any], batch: int = 1) -> int:
    """Begin a journal, or go on with one; returns how many objects it holds.

    What is left of a killed job's last batch of `batch` objects is forgotten, since batches are to be the same again.

    Raises:
        ValueError: it is another job's.
    """
    if not path.exists():
        path.write_bytes(json_line(identity))
        return 0
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        begun = json_object(whole[0]) if whole else identity
    except ValueError:
        begun = {}
    differing = [key for key in identity if begun.get(key) != identity[key]]
    if differing:
        raise ValueError(
            f"{path} was begun with another {', '.join(differing)}: remove it to start anew, or name another file"
        )
    held = (len(whole) - 1) // batch * batch if whole else 0
    with write_atomically(path) as temporary:
        temporary.write_bytes(b"".join(whole[: held + 1]) or json_line(identity))
    return held


def journal_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a journal, in order. Raises ValueError, naming the line, where it is damaged."""
    yield from (value for number, value in json_lines(path) if number > 1)


def json_line(value: dict[str, Any]) -> bytes:
    """An object as a line of UTF-8; half a surrogate pair, which that has no bytes for, becomes JSON's escape."""
    return (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
