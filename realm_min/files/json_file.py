"""JSON that others may have written, read into plain data or refused in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .causes import check_readable

DEEPEST = 100  # objects and lists within each other: what is deeper could not be written, compared or shown again


def read_json_object(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        remedy: what to do about a file that holds none, for the error.

    Raises:
        FileNotFoundError: there is no such file, but maybe a folder or a pipe in its place.
        ValueError: it is not UTF-8, not JSON, nested deeper than `DEEPEST`, no object, or a pointer of Git LFS.
    """
    check_readable(path)
    try:
        return json_object(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}: {remedy}") from None


def json_object(text: str | bytes) -> dict[str, Any]:
    """The object that `text` says; ValueError, to be put after the name of what holds it, where it says none."""
    try:
        value = json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("is not valid JSON (it is nested too deeply)") from None
    except ValueError as error:  # of the syntax, of the encoding, or of a number with thousands of digits
        raise ValueError(f"is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__}, not a JSON object")
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Level by level: a recent Python's own parser goes to depths at which comparing and printing end in an error."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"is not valid JSON (it is nested deeper than {DEEPEST})")
