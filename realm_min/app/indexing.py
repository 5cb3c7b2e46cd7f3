"""Documents to a ready folder (`ready_folder.py`), and documents added to one or taken out of it.

The embeddings are Embed_doc(z) of every block z (REALM section 3.2), computed from `[CLS] title [SEP] text [SEP]`.

Work goes on in `FOLDER.partial/` (in `FOLDER/.partial/` where FOLDER is there, empty), in shards of a few dozen blocks,
which the ranks of `distributed.world()` share. A run that was stopped goes on with the shards that are not there yet,
with as many ranks as it then has.

Blocks stand in the order of their documents' ids, and an embedding does not depend on what else is embedded
(`jobs/embedding.py`). So the folder's bits are the same for any number of ranks and threads, however often the job was
stopped, and whether the documents came at once or one by one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import check_indexed
from ..files.atomic import only_writer, write_atomically
from ..files.hub import MANIFEST_FILE
from ..files.json_file import read_json_object
from ..files.output import (
    READY,
    check_folder,
    check_room,
    is_empty,
    partial_of,
    put_in_place,
    refuse_existing,
    workplace,
)  # fmt: skip
from ..files.packed import load_packed
from ..interface.open_qa import RealmForOpenQA
from ..jobs import embedding
from ..jobs.embedding import Report, embed_blocks
from ..kinds import checked
from ..ranks import distributed
from ..ranks.devices import chosen_device
from ..text.corpus import FACTBOOK, MAX_WORDPIECES, Block, Document, corpus_hash, record
from ..text.documents import read_documents
from ..text.leads import LEADS
from . import ready_folder
from .merging import NO_TEXT, Changes, Cut, cut_corpus, merged, unique
from .ready_folder import Indexed, load_unindexed, write_json

CHECKSUM_SIZE = 32  # bytes, at the end of a shard's file


class Job(NamedTuple):
    """How a folder is written: see `index`."""

    folder: Path
    model: RealmForOpenQA
    tokenizer: Any
    max_wordpieces: int
    restart: bool
    report: Report
    remark: Callable[[str], None]
    partial: Path = Path()  # where the work is, until it is done


@checked
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
        documents: no two of the same id and another text. One without an id is called by its place.
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
    job = Job(Path(folder), model, tokenizer, max_wordpieces, restart, report, remark)
    write_index(job, documents, None)
    return job.folder


def write_index(job: Job, documents: Iterable[Document], base: Indexed | None) -> None:
    """`index`, on top of blocks that are embedded already, if there are some."""
    job = on_this_rank(job)
    with ExitStack() as held:
        job = job._replace(partial=distributed.world().on_first(lambda: _reserve(job.folder, held)))
        cut, _ = merged(base, _cut(job, documents), ())
        if not cut:
            raise ValueError(NO_TEXT)
        _write(job, cut, base, _put_first)


def add(
    documents: Iterable[Document],
    folder: str | os.PathLike,
    *,
    remove: Sequence[str] = (),
    device: str | torch.device = "cpu",
    restart: bool = False,
    report: Report = lambda stage, done, total: None,
    remark: Callable[[str], None] = warnings.warn,
) -> Changes:
    """Add documents to a ready folder, and take out those whose ids are in `remove`; only new blocks are embedded.

    A document whose id is there already takes the place of the one that is there. The folder then is what `index` would
    have made of all its documents at once, and stays what it was until all is written. Otherwise as `index`.

    Raises:
        ValueError: `remove` names a document that is not there; nothing would be left; as `index`.
        FileNotFoundError: `folder` holds no index.
    """
    folder, world = Path(os.path.realpath(folder)), distributed.world()  # a link stays, what it leads to is replaced
    with ExitStack() as held:
        partial = world.on_first(lambda: _reserve_ready(folder, held))
        model, tokenizer = load_unindexed(folder)
        base, manifest = ready_folder.read_indexed(folder), ready_folder.read_manifest(folder)
        limit = manifest.get("max_wordpieces", MAX_WORDPIECES)
        job = on_this_rank(Job(folder, model, tokenizer, limit, restart, report, remark, partial))
        _check_manifest(job, base, manifest)
        model.embedder.to(device)
        given = _cut(job, documents)
        if not given and not remove:
            raise ValueError(NO_TEXT)
        cut, changes = merged(base, given, remove, str(folder))
        if not cut:
            raise ValueError(f"nothing would be left in {folder}: delete the folder, or keep a document")
        if not base.has_ids or cut != list(zip(base.blocks, base.sources, strict=True)):
            _write(job, cut, base, _put_instead)
    return changes


def _check_manifest(job: Job, base: Indexed, manifest: dict[str, Any]) -> None:
    """ValueError if a folder holds another model or other blocks than its manifest, where it has one, says."""
    if manifest and manifest.get("model") != ready_folder.model_hash(job.model, job.tokenizer):
        raise ValueError(f"{job.folder} holds another model than the one that its blocks belong to: index them anew")
    # A folder without sources is an earlier version's, whose records were others.
    if manifest and base.has_ids and manifest.get("corpus") != corpus_hash(base.blocks):
        raise ValueError(f"{job.folder} holds other blocks than its {MANIFEST_FILE} says: index the corpus anew")


def on_this_rank(job: Job) -> Job:
    """The job as this rank does it: rank 0 speaks for all, and a block is no longer than the model reads."""
    limit = min(job.max_wordpieces, job.model.config.max_position_embeddings)
    report = job.report if distributed.world().is_first else lambda stage, done, total: None
    return job._replace(max_wordpieces=limit, report=report)


def _cut(job: Job, documents: Iterable[Document]) -> Cut:
    return cut_corpus(unique(documents, job.remark), job.tokenizer, job.max_wordpieces, job.report)


# ---- the job


def _write(job: Job, cut: Cut, base: Indexed | None, put: Callable[[Path, Path], None]) -> None:
    """Embed what the base does not hold, write the folder and `put` it in its place."""
    blocks, world = [block for block, _ in cut], distributed.world()
    rows = {} if base is None else {block: row for row, block in enumerate(base.blocks)}
    new = [block for block in blocks if block not in rows]
    manifest = ready_folder.manifest_of(blocks, job.model, job.tokenizer, job.max_wordpieces)
    plan = {**manifest, "shards": [embedding.SHARD_SIZE, len(new), corpus_hash(new)]}
    _check_agreement(blocks, manifest)
    complete = world.on_first(lambda: _open_partial(job, plan))
    world.on_first(lambda: check_room(job.folder, _size_of(job.model, len(blocks))))
    _embed_shards(new, job, complete)

    def finish() -> None:
        known = None if base is None else base.read_embeddings()
        embeddings = _embeddings(job, blocks, rows, known)
        ready = job.partial / READY
        shutil.rmtree(ready, ignore_errors=True)
        sources = [source for _, source in cut]
        ready_folder.write_files(ready, blocks, sources, embeddings, job.model, job.tokenizer, manifest)
        del known  # Windows renames no folder of which a file is mapped
        put(ready, job.folder)
        shutil.rmtree(job.partial)

    world.on_first(finish)


def _reserve_ready(folder: Path, held: ExitStack) -> Path:
    """As `_reserve` for a folder that is an index; what a killed job has begun is ended."""
    if os.path.ismount(folder):
        raise ValueError(
            f"{folder} is a mount point, which no other folder can take the place of: copy it into another"
        )
    partial = partial_of(folder)
    check_folder(partial)
    held.enter_context(only_writer(folder))
    if (partial / EARLIER).is_dir():  # a job was killed between the two renames of `_put_instead`, or just after
        if folder.exists():
            shutil.rmtree(partial)
        else:
            os.replace(partial / EARLIER, folder)
    check_indexed(folder)
    _refuse_foreign(partial)
    return partial


EARLIER = "earlier"  # the folder that another takes the place of, in FOLDER.partial


def _put_first(ready: Path, folder: Path) -> None:
    put_in_place(ready, folder, ready_folder.LAST)


def _put_instead(ready: Path, folder: Path) -> None:
    """Let a folder take another's place; killed in between, the next job finds both."""
    os.replace(folder, ready.parent / EARLIER)
    os.replace(ready, folder)


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
    _refuse_foreign(partial)
    return partial


def _refuse_foreign(partial: Path) -> None:
    if partial.exists() and not (partial / MANIFEST_FILE).is_file() and not is_empty(partial):
        raise ValueError(f"{partial} is in the way and no indexing job's: remove it or name another folder")


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


def _open_partial(job: Job, plan: dict[str, Any]) -> list[int]:
    """Make or take over the folder of an unfinished job; returns the numbers of the shards that it holds."""
    partial, path = job.partial, job.partial / MANIFEST_FILE
    if path.is_file() and job.restart:
        shutil.rmtree(partial)
    elif path.is_file():
        found = read_json_object(path, "start anew with --restart, or name another folder")
        differing = [key for key in plan if found.get(key) != plan[key]]
        if differing:
            raise ValueError(
                f"{partial} was begun with another {', '.join(differing)}: start anew with --restart, "
                "or name another folder"
            )
    partial.mkdir(parents=True, exist_ok=True)
    write_json(path, plan)
    for half in partial.glob(".*.tmp"):  # what a killed rank was writing
        half.unlink()

    complete = []
    for number in range(-(-plan["shards"][1] // embedding.SHARD_SIZE)):
        shard = _shard_path(partial, number)
        if shard.is_file():
            try:
                _read_shard(shard)
                complete.append(number)
            except ValueError as error:
                job.remark(f"{error}: it is computed again")
                shard.unlink()
    return complete


def _embed_shards(blocks: list[Block], job: Job, complete: list[int]) -> None:
    """Embed the shards that are not in FOLDER.partial yet, each rank its part; returns when all ranks are done."""
    model, tokenizer, partial = job.model, job.tokenizer, job.partial
    world, shards = distributed.world(), embedding.shards_of(blocks)
    todo = {number: shard for number, shard in enumerate(shards) if number not in set(complete)}
    parts = embedding.parts_of(todo, tokenizer)
    others = [number for part in parts[1:] for number in part] if world.is_first else []  # not seen complete yet
    done = sum(len(shards[number]) for number in complete)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        job.report("Embedding blocks", done, len(blocks))

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


def _embeddings(job: Job, blocks: list[Block], rows: dict[Block, int], known: Tensor | None) -> Tensor:
    """The embeddings of all blocks [blocks, proj]: of those in `rows` what is known, of the others the shards."""
    embeddings = torch.empty(len(blocks), job.model.config.retriever_proj_size, dtype=torch.float32, device="cpu")
    old = [number for number, block in enumerate(blocks) if block in rows]
    if known is not None and old:
        embeddings[old] = known[[rows[blocks[number]] for number in old]].float()
    new = [number for number, block in enumerate(blocks) if block not in rows]
    for shard, numbers in enumerate(embedding.shards_of(new)):
        path = _shard_path(job.partial, shard)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: see that {path.parent} is the same folder for every rank, and give the same "
                "command again, which computes what is missing"
            )
        embeddings[numbers] = torch.from_numpy(_read_shard(path))
    return embeddings


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


# ---- command line


def run(options: argparse.Namespace) -> None:
    """Run `realm-min index`."""
    from .console import progress_report, skipped_named
    from .printable import remark as say

    device, out = chosen_device(options.device), options.add_to or options.out
    corpora, first = dict.fromkeys(options.corpora), distributed.world().is_first
    with skipped_named() as skip, progress_report() as report:
        if options.add_to:
            documents = chain.from_iterable(read_documents(corpus, skip) for corpus in corpora)
            changes = add(
                documents, out, remove=options.remove, device=device, restart=options.restart, report=report, remark=say
            )
        else:
            shipped = [corpus for corpus in (LEADS, FACTBOOK) if corpus in corpora]
            model, tokenizer, base = _base(options.model, shipped)
            others = [corpus for corpus in corpora if not (base and corpus in shipped)]
            documents = chain.from_iterable(read_documents(corpus, skip) for corpus in others)
            model.embedder.to(device)
            write_index(Job(out, model, tokenizer, MAX_WORDPIECES, options.restart, report, say), documents, base)
            changes = None
    if first and changes:
        say(
            f"{changes.added:,} documents added, {changes.replaced:,} replaced, {changes.left:,} left as they were, "
            f"{changes.removed:,} removed; {changes.embedded:,} blocks embedded"
        )
    if first:
        say(f'Ready: realm-min ask --model "{out}"')


def _base(name: str | None, shipped: list[str]) -> tuple[RealmForOpenQA, Any, Indexed | None]:
    """The model of a folder, or the one that ships, with its tokenizer; what that one holds of `shipped` corpora."""
    from . import default_model
    from .cli import one_line
    from .printable import remark

    if name:
        return *load_unindexed(name), None
    if not shipped:
        return *load_packed(default_model.PACKED_FILE)[:2], None
    try:
        model = default_model.load(shipped[0] if len(shipped) == 1 else default_model.ALL)
    except ValueError as error:  # another Factbook than the one that it was indexed with
        remark(f"{one_line(error)}: here all of it is embedded")
        return *load_packed(default_model.PACKED_FILE)[:2], None
    return model, model.retriever.tokenizer, ready_folder.indexed_by(model)
