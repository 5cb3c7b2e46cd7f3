"""Documents to a ready folder: blocks, their embeddings, weights, configuration, vocabulary.

The embeddings are Embed_doc(z) of every block z (REALM section 3.2), computed from `[CLS] title [SEP] text [SEP]`.
The folder is what `RealmForOpenQA.from_pretrained(folder, retriever=RealmRetriever.from_pretrained(folder))` reads:

    config.json model.safetensors       block_emb [blocks, proj] among the weights
    vocab.txt tokenizer.json …          the tokenizer
    block_records.npy                   "title. text" of each block, UTF-8
    block_titles.txt                    the title alone, a line a block
    manifest.json                       hashes of the corpus and of the model that embedded it

Work goes on in `FOLDER.partial/` (in `FOLDER/.partial/` where FOLDER is there, empty), in shards of a few hundred
blocks, which the ranks of `distributed.world()` share. A run that was stopped goes on with the shards that are not
there yet, with as many ranks as it then has.

The folder's bits are the same for any number of ranks and threads, and however often the job was stopped: no batch
crosses a shard, and one thread computes a batch from end to end. (Several threads that share a product may add it up
in another order; MKL's do, where it has few rows.) A process with several threads computes as many batches at once.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import CONFIG_FILE, RealmConfig, check_open_qa
from ..files import checkpoint
from ..files.atomic import only_writer, write_atomically
from ..files.block_records import read_block_records
from ..files.causes import check_readable
from ..files.hub import BLOCK_RECORDS_FILE, resolve_folder
from ..files.output import READY, check_folder, check_room, is_empty, put_in_place, refuse_existing, workplace
from ..files.packed import load_packed
from ..interface.open_qa import RealmForOpenQA
from ..jobs import embedding
from ..jobs.embedding import Report, embed_blocks
from ..ranks import distributed
from ..ranks.devices import chosen_device
from ..text.corpus import MAX_WORDPIECES, Block, Document, corpus_hash, cut_blocks, from_record, record
from ..text.documents import read_documents
from ..text.retriever import RealmRetriever
from ..text.tokenizer import RealmTokenizerFast

CHECKSUM_SIZE = 32  # bytes, at the end of a shard's file

MANIFEST_FILE = "manifest.json"
BLOCK_TITLES_FILE = "block_titles.txt"
LAST = (MANIFEST_FILE, CONFIG_FILE)  # of the folder's files to appear: without them it is no model's


def index(
    documents: Iterable[Document],
    folder: str | os.PathLike,
    model: RealmForOpenQA,
    tokenizer: Any,
    *,
    max_wordpieces: int = MAX_WORDPIECES,
    restart: bool = False,
    report: Report = lambda stage, done, total: None,
    remark: Callable[[str], None] = warnings.warn,
) -> Path:
    """Write a ready folder for `documents`; a job that was stopped goes on where it stood.

    All ranks of `distributed.world()` call it with the same documents and model; each embeds its part of the blocks.

    Args:
        folder: to be made, or empty; what it holds appears when all is written. Every rank must see it.
        model: its `embedder` embeds the blocks, and its weights go into the folder; its `block_emb` is not read.
        tokenizer: a RealmTokenizerFast; it is saved too.
        restart: forget what an earlier job left in `folder.partial`.
        report: called on rank 0 alone, with the progress of all ranks.
        remark: called on rank 0 with what an earlier job left damaged, and is computed again.

    Raises:
        ValueError: the corpus has no text, or `folder.partial` is of another corpus, model or setting; the ranks do
            not have the same corpus or model.
        FileExistsError, OSError: `folder` holds something, another job writes it, or it cannot be written.
        FileNotFoundError: what a rank has written is not to be seen on rank 0.
        KeyboardInterrupt: as it came, with a message that says what is kept.
    """
    folder, world = Path(folder), distributed.world()
    if not world.is_first:
        report = lambda stage, done, total: None  # noqa: E731
    with ExitStack() as held:
        partial = world.on_first(lambda: _reserve(folder, held))
        limit = min(max_wordpieces, model.config.max_position_embeddings)
        blocks = blocks_of(documents, tokenizer, limit, report)
        manifest = {**_manifest(blocks, model, tokenizer, limit), "shard_size": embedding.SHARD_SIZE}
        _check_agreement(blocks, manifest)
        complete = world.on_first(lambda: _open_partial(partial, manifest, restart, remark))
        world.on_first(lambda: check_room(folder, _size_of(model, len(blocks))))
        _embed_shards(blocks, partial, complete, model, tokenizer, report)
        world.on_first(lambda: _finish(folder, partial, blocks, model, tokenizer, manifest))
    return folder


def write_ready(
    folder: str | os.PathLike,
    blocks: list[Block],
    embeddings: Tensor,
    model: RealmForOpenQA,
    tokenizer: Any,
    max_wordpieces: int,
) -> Path:
    """Write a ready folder for blocks that are embedded already; it appears when all is written.

    Args:
        embeddings: [blocks, proj] float32.
        max_wordpieces: to which the blocks were cut.
    """
    folder = Path(folder)
    manifest = _manifest(blocks, model, tokenizer, max_wordpieces)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _write_ready(partial, blocks, embeddings, model, tokenizer, manifest)
    put_in_place(partial, folder, LAST)
    return folder


def read_blocks(folder: str | os.PathLike) -> list[Block]:
    """The blocks of a ready folder, with their titles.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: titles and records are not of the same blocks.
    """
    path = Path(folder) / BLOCK_TITLES_FILE
    check_readable(path, f"{path} is missing: index the corpus anew with realm-min index")
    titles = path.read_text(encoding="utf-8").split("\n")[:-1]
    records = read_block_records(Path(folder) / BLOCK_RECORDS_FILE)
    found = (from_record(bytes(data), title) for data, title in zip(records, titles, strict=False))
    blocks = [block for block in found if block is not None]
    if not len(titles) == len(records) == len(blocks):
        raise ValueError(f"{path} does not name the blocks beside it: index the corpus anew with realm-min index")
    return blocks


def blocks_of(documents: Iterable[Document], tokenizer: Any, max_wordpieces: int, report: Report) -> list[Block]:
    """The blocks of documents; cutting them is reported.

    Raises:
        ValueError: the documents have no text.
    """
    blocks = []
    for block in cut_blocks(documents, tokenizer, max_wordpieces):
        blocks.append(block)
        report("Cutting documents into blocks", len(blocks), None)
    if not blocks:
        raise ValueError("the corpus has no text: give documents that hold some")
    return blocks


def _reserve(folder: Path, held: ExitStack) -> Path:
    """Make sure that nothing is in the way, and that no other job writes `folder` while `held` is open.

    Returns:
        Where to work.
    """
    check_folder(folder)
    refuse_existing(folder)
    held.enter_context(only_writer(folder))
    refuse_existing(folder)  # another job may have just finished it
    partial = workplace(folder)
    if partial.exists() and not (partial / MANIFEST_FILE).is_file() and not is_empty(partial):
        raise ValueError(f"{partial} is in the way and no indexing job's: remove it or name another folder")
    return partial


def _size_of(model: RealmForOpenQA, blocks: int) -> int:
    """The least that a ready folder of so many blocks takes, in bytes: the model's weights with their embeddings."""
    parts = {id(tensor): tensor.nbytes for part in model.parts.values() for tensor in part.state_dict().values()}
    return sum(parts.values()) + 4 * blocks * model.config.retriever_proj_size


def _check_agreement(blocks: list[Block], manifest: dict[str, Any]) -> None:
    """ValueError, the same on every rank, if one of them has another corpus or model than rank 0."""
    world = distributed.world()
    manifests = world.gather_objects(manifest)
    for rank, other in enumerate(manifests):
        if other["model"] != manifests[0]["model"]:
            raise ValueError(f"rank {rank} has another model than rank 0: give every rank the same --model")
        if other["corpus"] != manifests[0]["corpus"]:
            number, first, second = _first_difference(blocks, rank)
            raise ValueError(
                f"rank {rank} reads another corpus than rank 0: block {number} is {first} on rank 0 and {second} on "
                f"rank {rank}: give every rank the same CORPUS"
            )


def _first_difference(blocks: list[Block], rank: int) -> tuple[int, str, str]:
    """The first block that differs between rank 0 and `rank`, and what it is on either: where it begins to differ."""
    gather = distributed.world().gather_objects

    def first_difference(values: list[Any]) -> int:
        ours, theirs = (gather(values)[i] for i in (0, rank))
        return next(i for i in range(len(ours) + 1) if ours[i : i + 1] != theirs[i : i + 1])

    start = embedding.SHARD_SIZE * first_difference([corpus_hash(shard) for shard in embedding.shards_of(blocks)])
    number = start + first_difference(blocks[start : start + embedding.SHARD_SIZE])
    records = gather(record(blocks[number]).decode() if number < len(blocks) else None)
    ours, theirs = records[0], records[rank]
    same = len(os.path.commonprefix([ours or "", theirs or ""]))

    def excerpt(text: str | None) -> str:
        return "missing" if text is None else repr(text[max(same - 20, 0) :][:50])

    return number, excerpt(ours), excerpt(theirs)


def _open_partial(partial: Path, manifest: dict[str, Any], restart: bool, remark: Callable[[str], None]) -> list[int]:
    """Make or take over the folder of an unfinished job; returns the numbers of the shards that it holds."""
    path = partial / MANIFEST_FILE
    if path.is_file() and restart:
        shutil.rmtree(partial)
    elif path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in manifest if found.get(key) != manifest[key]]
        if differing:
            raise ValueError(
                f"{partial} was begun with another {', '.join(differing)}: start anew with --restart, "
                "or name another folder"
            )
    partial.mkdir(parents=True, exist_ok=True)
    _write_json(path, manifest)
    for half in partial.glob(".*.tmp"):  # what a killed rank was writing
        half.unlink()

    complete = []
    for number in range(-(-manifest["blocks"] // embedding.SHARD_SIZE)):
        shard = _shard_path(partial, number)
        if shard.is_file():
            try:
                _read_shard(shard)
                complete.append(number)
            except ValueError as error:
                remark(f"{error}: it is computed again")
                shard.unlink()
    return complete


def _embed_shards(
    blocks: list[Block], partial: Path, complete: list[int], model: RealmForOpenQA, tokenizer: Any, report: Report
) -> None:
    """Embed the shards that are not in `partial` yet, each rank its part; returns when all ranks are done."""
    world, shards = distributed.world(), embedding.shards_of(blocks)
    todo = {number: shard for number, shard in enumerate(shards) if number not in set(complete)}
    parts = embedding.parts_of(todo, tokenizer)
    others = [number for part in parts[1:] for number in part] if world.is_first else []  # not seen complete yet
    done = sum(len(shards[number]) for number in complete)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report("Embedding blocks", done, len(blocks))

    def look_at_others() -> None:
        for number in [number for number in others if _shard_path(partial, number).is_file()]:
            others.remove(number)
            advance(len(shards[number]))

    try:
        advance(0)
        for number in parts[world.rank]:
            _write_shard(_shard_path(partial, number), embed_blocks(model.embedder, tokenizer, shards[number], advance))
            look_at_others()
        world.barrier()
        look_at_others()
    except KeyboardInterrupt:
        done = sum(len(shard) for number, shard in enumerate(shards) if _shard_path(partial, number).is_file())
        raise KeyboardInterrupt(
            f"{done:,} of {len(blocks):,} blocks are embedded and kept in {partial}. "
            "The same command goes on from there."
        ) from None


def _finish(
    folder: Path, partial: Path, blocks: list[Block], model: RealmForOpenQA, tokenizer: Any, manifest: dict[str, Any]
) -> None:
    """Put the shards together and write the ready folder."""
    embeddings = torch.empty(len(blocks), model.config.retriever_proj_size, dtype=torch.float32)
    for number, rows in enumerate(embeddings.split(embedding.SHARD_SIZE)):
        path = _shard_path(partial, number)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: see that {partial.parent} is the same folder for every rank, and give the same "
                "command again, which computes what is missing"
            )
        rows.copy_(torch.from_numpy(_read_shard(path)))
    ready = partial / READY
    shutil.rmtree(ready, ignore_errors=True)
    _write_ready(ready, blocks, embeddings, model, tokenizer, manifest)
    put_in_place(ready, folder, LAST)
    shutil.rmtree(partial)


def _shard_path(partial: Path, number: int) -> Path:
    return partial / f"embeddings-{number:06d}.npy"


def _write_shard(path: Path, embeddings: Tensor) -> None:
    """Write [blocks, proj] float32 as .npy, and after it a checksum, which np.load does not read."""
    data = io.BytesIO()
    np.save(data, embeddings.numpy())
    with write_atomically(path) as temporary:
        temporary.write_bytes(data.getvalue() + _checksum(path, data.getvalue()))


def _read_shard(path: Path) -> np.ndarray:
    """[blocks, proj] float32; ValueError if the file is not as `_write_shard` left it, under that name."""
    data = path.read_bytes()
    if data[-CHECKSUM_SIZE:] != _checksum(path, data[:-CHECKSUM_SIZE]):
        raise ValueError(f"{path} is damaged (its checksum is wrong)")
    return np.load(io.BytesIO(data), allow_pickle=False)


def _checksum(path: Path, data: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + data).digest()


# ---- the ready folder


def _write_ready(
    ready: Path, blocks: list[Block], embeddings: Tensor, model: RealmForOpenQA, tokenizer: Any, manifest: dict
) -> None:
    config = model.config
    sizes = {
        "num_block_records": len(blocks),
        "searcher_beam_size": min(config.searcher_beam_size, len(blocks)),
        "reader_beam_size": min(config.reader_beam_size, len(blocks)),
    }
    indexed = RealmForOpenQA(RealmConfig.from_dict(config.to_dict() | sizes), initialize=False)
    indexed.load_state_dict(model.state_dict() | {"block_emb": embeddings})
    indexed.save_pretrained(ready)
    RealmRetriever([record(block) for block in blocks], tokenizer).save_pretrained(ready)
    with write_atomically(ready / BLOCK_TITLES_FILE) as temporary:
        temporary.write_text("".join(f"{block.title}\n" for block in blocks), encoding="utf-8")
    _write_json(ready / MANIFEST_FILE, manifest)


def _manifest(blocks: list[Block], model: RealmForOpenQA, tokenizer: Any, max_wordpieces: int) -> dict[str, Any]:
    """What a folder is made of; a stopped job goes on where this is the same."""
    return {
        "format": 1,
        "corpus": corpus_hash(blocks),
        "model": model_hash(model, tokenizer),
        "blocks": len(blocks),
        "max_wordpieces": max_wordpieces,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def model_hash(model: RealmForOpenQA, tokenizer: Any) -> str:
    """sha256 (hexadecimal) of all that makes the embeddings: configuration, vocabulary, the embedder's weights."""
    digest = hashlib.sha256(model.embedder.config.to_json_string().encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for key, tensor in sorted(model.embedder.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- models to index with


def load_unindexed(folder: str | os.PathLike) -> tuple[RealmForOpenQA, RealmTokenizerFast]:
    """The model and the tokenizer of a folder or hub name, without its block embeddings, which may be gigabytes.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the weights are damaged, or are not those of a RealmForOpenQA.
    """
    folder = resolve_folder(folder, "config", "weights", "tokenizer")
    check_open_qa(folder)
    config = RealmConfig.from_pretrained(folder, num_block_records=1)
    state_dict = checkpoint.read_state_dict(folder)
    checkpoint.check_config(folder, config)
    state_dict.pop("block_emb", None)
    checkpoint.check_fits(RealmForOpenQA.all_shapes, config, state_dict, source=str(folder))
    model = RealmForOpenQA(config, initialize=False)
    state_dict["block_emb"] = torch.zeros(1, config.retriever_proj_size, dtype=torch.float32)
    model.load_state_dict(state_dict)
    return model.eval(), RealmTokenizerFast.from_pretrained(folder)


# ---- command line


def run(options: argparse.Namespace) -> None:
    """Run `realm-min index`."""
    from . import default_model
    from .console import progress_report, skipped_named
    from .printable import remark

    device = chosen_device(options.device)
    if options.model:
        model, tokenizer = load_unindexed(options.model)
    else:
        model, tokenizer, _ = load_packed(default_model.PACKED_FILE)
    model.embedder.to(device)
    with skipped_named() as skip, progress_report() as report:
        documents = read_documents(options.corpus, skip)
        index(documents, options.out, model, tokenizer, restart=options.restart, report=report, remark=remark)
    if distributed.world().is_first:
        remark(f'Ready: realm-min ask --model "{options.out}"')
