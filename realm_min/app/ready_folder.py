"""A ready folder: a model with its blocks, their embeddings and where they come from, to be asked.

It is what `RealmForOpenQA.from_pretrained(folder, retriever=RealmRetriever.from_pretrained(folder))` reads:

    config.json model.safetensors       block_emb [blocks, proj] among the weights
    vocab.txt tokenizer.json …          the tokenizer
    block_records.npy                   "title. text" of each block, UTF-8
    block_titles.txt                    the title alone, a line a block
    block_sources.jsonl                 its document's id, and which characters of it the block is
    manifest.json                       hashes of the corpus and of the model that embedded it; checksums of the two
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import CONFIG_FILE, DEFAULTS, RealmConfig, check_open_qa
from ..files import checkpoint
from ..files.atomic import write_atomically
from ..files.block_records import read_block_records
from ..files.block_sources import SUMS, Sources, Titles, checksums, read_sources, source_lines, title_lines
from ..files.causes import check_readable
from ..files.hub import BLOCK_RECORDS_FILE, BLOCK_TITLES_FILE, MANIFEST_FILE, resolve_folder
from ..files.json_file import read_json_object
from ..files.output import partial_of, put_in_place
from ..files.unknown_names import level_of_the_program
from ..interface.open_qa import RealmForOpenQA
from ..jobs import warm_start
from ..kinds import checked
from ..ranks.distributed import World
from ..search import sharded_index
from ..text.corpus import Block, Source, corpus_hash, from_record, record
from ..text.retriever import RealmRetriever
from ..text.tokenizer import RealmTokenizerFast

LAST = (MANIFEST_FILE, CONFIG_FILE)  # of the folder's files to appear: without them it is no model's
FORMAT = 2  # of the manifest

# Configuration values that say how many blocks there are, or are read: none of a block's embedding.
_BEAMS = ("searcher_beam_size", "reader_beam_size")
_OF_BLOCKS = {"num_block_records", *_BEAMS}


class Indexed(NamedTuple):
    """Blocks with their sources, and a function that reads their embeddings [blocks, proj].

    `has_ids`: whether the sources name documents, not just the blocks themselves.
    """

    blocks: list[Block]
    sources: list[Source]
    read_embeddings: Callable[[], Tensor]
    has_ids: bool = True


# ---- writing


@checked
def write_ready(
    folder: str | os.PathLike,
    blocks: list[Block],
    embeddings: Tensor,
    model: RealmForOpenQA,
    tokenizer: Any,
    max_wordpieces: int,
    sources: list[Source] | None = None,
) -> Path:
    """Write a ready folder for blocks that are embedded already; it appears when all is written.

    Args:
        embeddings: [blocks, proj] float32.
        max_wordpieces: to which the blocks were cut.
        sources: of the blocks; None where they are not known.
    """
    folder = Path(folder)
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    write_files(
        partial, blocks, sources, embeddings, model, tokenizer, manifest_of(blocks, model, tokenizer, max_wordpieces)
    )
    put_in_place(partial, folder, LAST)
    return folder


def write_files(
    ready: Path,
    blocks: list[Block],
    sources: list[Source] | None,
    embeddings: Tensor,
    model: RealmForOpenQA,
    tokenizer: Any,
    manifest: dict[str, Any],
) -> None:
    """Write the files of a ready folder; see `write_ready`."""
    config = model.config
    sizes = {name: min(getattr(config, name), len(blocks)) for name in _BEAMS} | {"num_block_records": len(blocks)}
    indexed = RealmForOpenQA(RealmConfig.from_dict(config.to_dict() | sizes), initialize=False)
    indexed.load_state_dict(model.state_dict() | {"block_emb": embeddings})
    indexed.save_pretrained(ready)
    titles = Titles(title_lines(block.title for block in blocks))
    known = None if sources is None else Sources(source_lines(sources))
    RealmRetriever([record(block) for block in blocks], tokenizer, titles, known).save_pretrained(ready)
    # The model's own beams: a folder of few blocks has smaller ones, which would stay small as it grows.
    beams = {name: getattr(config, name) for name in _BEAMS}
    write_json(ready / MANIFEST_FILE, manifest | beams | {SUMS: checksums(titles, known)})


def manifest_of(blocks: list[Block], model: RealmForOpenQA, tokenizer: Any, max_wordpieces: int) -> dict[str, Any]:
    """What a folder is made of; a stopped job goes on where this is the same."""
    return {
        "format": FORMAT,
        "corpus": corpus_hash(blocks),
        "model": model_hash(model, tokenizer),
        "blocks": len(blocks),
        "max_wordpieces": max_wordpieces,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def model_hash(model: RealmForOpenQA, tokenizer: Any) -> str:
    """sha256 (hexadecimal) of all that makes the embeddings: configuration, vocabulary, the embedder's weights."""
    config = model.embedder.config
    values = {name: getattr(config, name) for name in sorted(DEFAULTS) if name not in _OF_BLOCKS}
    digest = hashlib.sha256(json.dumps(values).encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for key, tensor in sorted(model.embedder.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- reading


@checked
def read_blocks(folder: str | os.PathLike) -> list[Block]:
    """The blocks of a ready folder, with their titles.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: titles and records are not of the same blocks.
    """
    path = Path(folder) / BLOCK_TITLES_FILE
    check_readable(path, f"{path} is missing: index the corpus anew with realm-min index")
    return _read_blocks(Path(folder))[0]


def _read_blocks(folder: Path) -> tuple[list[Block], Sources | None]:
    """Blocks and sources; where no titles are known, a block has none and its record is its text."""
    records = read_block_records(folder / BLOCK_RECORDS_FILE)
    titles, sources = read_sources(folder, len(records))
    found = [
        from_record(bytes(data), title) for data, title in zip(records, titles or [""] * len(records), strict=True)
    ]
    blocks = [block for block in found if block is not None]
    if len(blocks) != len(records):
        raise ValueError(
            f"{folder / BLOCK_TITLES_FILE} does not name the blocks beside it: index the corpus anew with "
            "realm-min index"
        )
    if sources is None and titles is not None:  # earlier versions wrote a full stop before a block without a title
        blocks = [Block("", text.removeprefix(". ")) if not title else Block(title, text) for title, text in blocks]
    return blocks, sources


def read_sources_of(folder: str | os.PathLike, blocks: int) -> list[Source] | None:
    """The sources of a ready folder's blocks; None where an earlier version wrote it."""
    sources = read_sources(folder, blocks)[1]
    return None if sources is None else list(sources)


def read_indexed(folder: str | os.PathLike) -> Indexed:
    """What a ready folder holds beside its model; its embeddings are memory-mapped when they are read.

    In a folder of an earlier version, or of transformers', a block stands for a document, whose id is its number.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or is not of the same blocks as another.
    """
    folder = Path(folder)
    blocks, sources = _read_blocks(folder)
    held = len(sharded_index.read_blocks(folder, World()))
    if held != len(blocks):
        raise ValueError(f"{folder} has {len(blocks)} blocks and {held} embeddings: index it anew")
    numbered = (Source(str(number), 0, len(block.text)) for number, block in enumerate(blocks))
    known = list(numbered if sources is None else sources)
    return Indexed(blocks, known, lambda: sharded_index.read_blocks(folder, World()), sources is not None)


def indexed_by(model: RealmForOpenQA) -> Indexed:
    """What a model with a retriever that knows titles and sources holds."""
    retriever = model.retriever
    assert retriever.titles is not None and retriever.sources is not None
    found = (
        from_record(bytes(data), title) for data, title in zip(retriever.block_records, retriever.titles, strict=True)
    )
    return Indexed([block for block in found if block is not None], list(retriever.sources), lambda: model.block_emb)


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """manifest.json of a ready folder; empty where there is none, or one of an earlier version.

    Raises:
        ValueError: it is damaged.
    """
    path = Path(folder) / MANIFEST_FILE
    manifest = read_json_object(path, "index the corpus anew") if path.is_file() else {}
    if manifest.get("format") != FORMAT:
        return {}
    for name in ("blocks", "max_wordpieces", *_BEAMS):
        if type(manifest.get(name, 1)) is not int or manifest.get(name, 1) < 1:
            raise ValueError(f"{path} says {name}={manifest[name]!r}, which must be a number above 0: index it anew")
    return manifest


@checked
def load_unindexed(folder: str | os.PathLike) -> tuple[RealmForOpenQA, RealmTokenizerFast]:
    """The model and the tokenizer of a folder or hub name, without its block embeddings, which may be gigabytes.

    Beams that are as large as the number of blocks are again what they were before the folder had so few.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights are damaged, or are not those of a RealmForOpenQA.
    """
    folder = resolve_folder(folder, "config", "weights", "tokenizer")
    if warm_start.is_bert(folder):
        return _untrained(folder), RealmTokenizerFast.from_pretrained(folder)
    check_open_qa(folder)
    manifest, config = read_manifest(folder), RealmConfig.from_pretrained(folder, num_block_records=1)
    for name in _BEAMS:
        if getattr(config, name) == manifest.get("blocks"):
            setattr(config, name, manifest.get(name, getattr(config, name)))
    config.check()
    state_dict = checkpoint.read_state_dict(folder)
    checkpoint.check_config(folder, config)
    state_dict.pop("block_emb", None)
    checkpoint.check_fits(RealmForOpenQA.all_shapes, config, state_dict, source=str(folder))
    model = RealmForOpenQA(config, initialize=False)
    state_dict["block_emb"] = torch.zeros(1, config.retriever_proj_size, dtype=torch.float32, device="cpu")
    model.load_state_dict(state_dict)
    return model.eval(), RealmTokenizerFast.from_pretrained(folder)


def _untrained(folder: Path) -> RealmForOpenQA:
    """A model whose two trunks are a BERT's."""
    embedder = warm_start.embedder(folder)
    model = RealmForOpenQA(
        RealmConfig.from_dict(embedder.config.to_dict() | {"num_block_records": 1}), initialize=False
    )
    model.embedder, model.reader = embedder, warm_start.reader(folder)
    warnings.warn(
        f"{folder} is a BERT, which no one has taught to retrieve or to read: its projection and its span scorer are "
        "drawn; train them first, realm-min ict and realm-min finetune",
        stacklevel=level_of_the_program(),
    )
    return model.eval()
