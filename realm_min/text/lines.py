"""Text files as people have them, line by line or whole: with a byte order mark or none, UTF-16, gzipped."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..files.causes import causes_named, check_readable

GZIPPED = ".gz"
_GZIP_MAGIC = b"\x1f\x8b"  # with which no text begins
MOST_UNZIPPED = 100  # times its size: text is 3 to 20 times as long, and what repeats itself up to 1,032 times
ROOM = 1 << 20  # bytes that a file may hold beyond that

# The longer ones first: UTF-32's begins with UTF-16's. Each of these codecs takes the mark away.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def encoding_of(start: bytes) -> str:
    """The encoding that a file's first bytes tell by a byte order mark; UTF-8 where there is none."""
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8-sig")


@contextmanager
def open_plain(path: str | os.PathLike) -> Iterator[io.BufferedReader]:
    """A file's bytes, unzipped if it begins so or its name ends in .gz.

    Raises:
        OSError: there is no such file; or a folder, a pipe, which can be read once, or a device, which may have no end.
        ValueError: what is zipped is damaged, or a bomb.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{os.fspath(path)} is a folder: name a file")
    check_readable(path)
    try:
        with causes_named(path), open(path, "rb") as file:
            zipped = os.fspath(path).lower().endswith(GZIPPED) or file.peek(2)[:2] == _GZIP_MAGIC
            yield io.BufferedReader(_Unzipped(file)) if zipped else file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged or not gzipped ({error}): fetch it again") from None


class _Unzipped(io.RawIOBase):
    """What a gzipped file holds; ValueError where it is far larger than text is, of which a few bytes say gigabytes."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.name, self.data = file.name, gzip.GzipFile(fileobj=file)
        self.left = MOST_UNZIPPED * os.fstat(file.fileno()).st_size + ROOM

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.data.read(len(buffer))
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(
                f"{self.name} unzips to more than {MOST_UNZIPPED} times its size, as no text does: unzip it"
            )
        buffer[: len(data)] = data
        return len(data)


def text_lines(path: str | os.PathLike) -> Iterator[bytes]:
    """The lines of a file in UTF-8, whatever it is written in, without a byte order mark; only \\n ends a line."""
    with open_plain(path) as file:
        start = file.peek(4)[:4]
        encoding = encoding_of(start)
        if encoding == "utf-8-sig":  # left as it is, so that a line that cannot be decoded is known by its number
            if start.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            yield from file
            return
        try:
            yield from (line.encode() for line in io.TextIOWrapper(file, encoding, newline="\n"))
        except UnicodeError as error:
            raise ValueError(f"{os.fspath(path)} is not the {encoding} that it begins as ({error})") from None


def json_lines(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank; ValueError names the line that is no JSON object."""
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json_object(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} {error}") from None
        yield number, value


def json_object(line: bytes) -> dict[str, Any]:
    """The JSON object that a line is; ValueError says what it is instead, to follow the line's name."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON ({error})") from None
    return checked_object(value)


def checked_object(value: Any) -> dict[str, Any]:
    """A JSON value, if it is an object; ValueError as `json_object`."""
    if not isinstance(value, dict):
        raise ValueError(f"is a {type(value).__name__}; each line must be a JSON object")
    return value
