"""block_titles.txt and block_sources.jsonl: whose the blocks of evidence are, a line each, in the order of the blocks.

A title is the whole line. A source (`text/corpus.py`) is {"document": id, "start": …, "end": …}, and "shifts" where it
has some. Of millions of lines an answer needs a few, so a line is looked at when it is asked for. What no line tells,
that it stands in another's place say, the checksums tell that manifest.json has of the two files (`checksum.py`).
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..text.corpus import Source
from .atomic import write_atomically
from .hub import BLOCK_SOURCES_FILE, BLOCK_TITLES_FILE, MANIFEST_FILE
from .json_file import json_object, read_json_object

if TYPE_CHECKING:
    from typing_extensions import Self  # of the standard library from Python 3.11 on


SUMS = "crc32"  # the key of the checksums in manifest.json


class Titles:
    """The titles of blocks by their numbers, from the bytes of block_titles.txt."""

    def __init__(self, data: bytes, name: str = BLOCK_TITLES_FILE) -> None:
        self.data, self.name = data, name
        self._ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(f"{self.name} has {len(self)} lines, none for block {number}")
        start = int(self._ends[number - 1]) + 1 if number else 0
        try:
            return self.data[start : int(self._ends[number])].decode().rstrip("\r")  # Windows wrote some
        except UnicodeDecodeError as error:
            raise self._damaged(number, error) from None

    def __iter__(self) -> Iterator:
        return (self[number] for number in range(len(self)))

    def part(self, blocks: slice) -> Self:
        """The lines of blocks that follow one another; the first of them is then number 0."""
        starts = [0, *(self._ends + 1).tolist()]
        first, end, _ = blocks.indices(len(self))
        return type(self)(self.data[starts[first] : starts[end]], self.name)

    def _damaged(self, number: int, error: Exception | str) -> ValueError:
        return ValueError(f"{self.name} line {number + 1} is damaged ({error}): index the corpus anew")


class Sources(Titles):
    """The sources of blocks by their numbers, from the bytes of block_sources.jsonl."""

    def __getitem__(self, number: int) -> Source:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            value = json_object(super().__getitem__(number))
            value["document"].encode()  # half a surrogate pair is in no name
            shifts = tuple((at, by) for at, by in value.get("shifts", ()))
            source = Source(value["document"], value["start"], value["end"], shifts)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(number, f"{type(error).__name__}: {error}") from None
        places = (source.start, source.end, *chain.from_iterable(shifts))
        if any(type(place) is not int or abs(place) >= 2**63 for place in places):
            raise self._damaged(number, "its places are no whole numbers")
        if not 0 <= source.start <= source.end:
            raise self._damaged(number, "it ends before it starts")
        return source


def title_lines(titles: Iterable[str]) -> bytes:
    """The bytes of block_titles.txt. Titles have no line ends: their white space is single spaces."""
    return "".join(f"{title}\n" for title in titles).encode()


def source_lines(sources: Iterable[Source]) -> bytes:
    """The bytes of block_sources.jsonl."""
    return "".join(f"{json.dumps(_values(source), ensure_ascii=False)}\n" for source in sources).encode()


def _values(source: Source) -> dict:
    return {name: value for name, value in source._asdict().items() if value != ()}


def write_sources(folder: str | os.PathLike, titles: Titles | None, sources: Sources | None) -> None:
    """Write of the two files what there is; a manifest that has checksums of others gets theirs."""
    for name, lines in ((BLOCK_TITLES_FILE, titles), (BLOCK_SOURCES_FILE, sources)):
        if lines is None:
            (Path(folder) / name).unlink(missing_ok=True)  # of other blocks
        else:
            with write_atomically(Path(folder) / name) as temporary:
                temporary.write_bytes(lines.data)
    path, sums = Path(folder) / MANIFEST_FILE, checksums(titles, sources)
    manifest = _manifest(folder)
    if manifest.get(SUMS, sums) != sums:
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(manifest | {SUMS: sums}, indent=2) + "\n", encoding="utf-8")


def checksums(titles: Titles | None, sources: Sources | None) -> dict[str, str]:
    """What manifest.json has of the two files: the CRC-32 of each that there is, in hexadecimal, by its name."""
    both = {BLOCK_TITLES_FILE: titles, BLOCK_SOURCES_FILE: sources}
    return {name: f"{zlib.crc32(lines.data):08x}" for name, lines in both.items() if lines is not None}


def _manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """manifest.json of a folder, empty where there is none; ValueError where it or its checksums are damaged."""
    path = Path(folder) / MANIFEST_FILE
    found = read_json_object(path, "index the corpus anew") if path.is_file() else {}
    if not isinstance(found.get(SUMS, {}), dict):
        raise ValueError(f"{path} says {SUMS}={found[SUMS]!r}, which are no checksums: index the corpus anew")
    return found


def read_sources(folder: str | os.PathLike, blocks: int) -> tuple[Titles | None, Sources | None]:
    """The two files of a folder with so many blocks; None for one that is not there, as in folders of earlier versions.

    Raises:
        ValueError: one is not of these blocks, or has another checksum than in manifest.json.
    """
    found, sums = [], _manifest(folder).get(SUMS, {})
    for kind, name in ((Titles, BLOCK_TITLES_FILE), (Sources, BLOCK_SOURCES_FILE)):
        path = Path(folder) / name
        lines = kind(path.read_bytes(), str(path)) if path.is_file() else None
        if lines is not None and len(lines) != blocks:
            raise ValueError(
                f"{path} has {len(lines)} lines for {blocks} blocks: index the corpus anew with realm-min index"
            )
        if lines is not None and name in sums and f"{zlib.crc32(lines.data):08x}" != sums[name]:
            raise ValueError(
                f"{path} is damaged (its checksum is not that of {MANIFEST_FILE}): index the corpus anew with "
                "realm-min index"
            )
        found.append(lines)
    return found[0], found[1]
