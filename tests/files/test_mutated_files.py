"""Drawn damage to every kind of file: each is refused by one of our errors, or gives the same answer, to the bit.

Not all damage can be seen. A foreign file without a checksum (a plain safetensors file of transformers, TensorFlow's
aside) does not show a flipped bit in its numbers, nor a vocabulary another word, nor a config.json another option: of
those kinds a test below asks only that nothing but a clear error comes, or an answer of the same form.

The suite draws `FEW` in all; `make test-faults` draws 2,000, and more with MUTATIONS=N.
"""

import os
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from mutations import mutated

from realm_min import RealmConfig, RealmEmbedder, RealmForOpenQA, RealmTokenizerFast
from realm_min.app import indexing
from realm_min.files import packed
from realm_min.files.block_records import read_block_records, write_block_records
from realm_min.files.checkpoint import Misfit
from realm_min.files.npy_file import map_npy, write_npy
from realm_min.jobs.run_checkpoints import read_checkpoint, write_checkpoint
from realm_min.search.mips import BlockIndex
from realm_min.search.sharded_index import read_blocks
from realm_min.text.corpus import Document

FEW = 220
MUTATIONS = int(os.environ.get("MUTATIONS", FEW))
PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] alan ma ##thi ##son turing was a pioneer of computer science . , the who".split()
)
CONFIG = RealmConfig(
    vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=40, retriever_proj_size=4, span_hidden_size=6, num_block_records=3, reader_beam_size=2,
    searcher_beam_size=3, max_span_width=3,
)  # fmt: skip
BLOCKS = [b"alan turing was a pioneer", b"computer science . ", "thé who".encode()]


def embedder(seed=0):
    return RealmEmbedder(CONFIG, seed=seed)


def write_packed(path, seed):
    """A packed model of six blocks."""
    vocab = path.with_name("vocab.txt")
    letters = [f"{mark}{chr(letter)}" for mark in ("", "##") for letter in range(97, 123)]
    vocab.write_text("".join(f"{piece}\n" for piece in [*PIECES[:5], *letters]))
    tokenizer = RealmTokenizerFast(vocab)
    documents = [Document(f"t{i}", f"alan {i * 'a'} was. The who.") for i in range(3)]
    blocks = list(packed.cut_blocks(documents, tokenizer, 40))
    config = RealmConfig(**CONFIG.to_dict() | {"vocab_size": len(tokenizer), "num_block_records": len(blocks)})
    model = RealmForOpenQA(config, seed=seed)
    model.block_emb = torch.randn(len(blocks), 4, generator=torch.Generator().manual_seed(seed))
    packed.pack(model, tokenizer, documents, path, corpus="c", extra_texts=["who was alan"])


def tensors_of(model):
    return {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}


# Of each kind: how it is written, as another with another seed, and what is read of it. Those of others have no
# checksum, or none of all that is in them.
KINDS = {
    "index": (
        lambda path, seed: BlockIndex(torch.randn(40, 16, generator=torch.Generator().manual_seed(seed))).save(path),
        lambda path: BlockIndex.load(path).blocks,
    ),
    "int8 index": (
        lambda path, seed: BlockIndex(torch.randn(40, 16, generator=torch.Generator().manual_seed(seed)), "int8").save(
            path
        ),
        lambda path: BlockIndex.load(path, "cpu").search(torch.ones(1, 16), 5),
    ),
    "shard": (
        lambda path, seed: indexing._write_shard(
            path, torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))
        ),
        lambda path: indexing._read_shard(path),
    ),
    "index of a run": (
        lambda path, seed: write_npy(path, np.random.default_rng(seed).normal(size=(20, 8)).astype(np.float32)),
        lambda path: map_npy(path),
    ),
    "checkpoint of a run": (
        lambda path, seed: write_checkpoint(path.parent, tensors_of(embedder(seed)), 7 + seed),
        lambda path: read_checkpoint(path.parent, print),
    ),
    "packed": (write_packed, lambda path: [packed.load_packed(path)[0].state_dict(), packed.load_packed(path)[2]]),
    "weights": (
        lambda path, seed: embedder(seed).save_pretrained(path.parent),
        lambda path: RealmEmbedder.from_pretrained(path.parent).state_dict(),
    ),
    "block embeddings": (
        lambda path, seed: RealmForOpenQA(CONFIG, seed=seed).save_pretrained(path.parent),
        lambda path: read_blocks(path),
    ),
    "index of shards": (
        lambda path, seed: embedder(seed).save_pretrained(path.parent, max_shard_size="1KB"),
        lambda path: RealmEmbedder.from_pretrained(path.parent).state_dict(),
    ),
    "blocks": (
        lambda path, seed: write_block_records(path, [block * (1 + seed) for block in BLOCKS]),
        lambda path: list(read_block_records(path)),
    ),
    "pickled": (
        lambda path, seed: embedder(seed).save_pretrained(path.parent, safe_serialization=False),
        lambda path: RealmEmbedder.from_pretrained(path.parent).state_dict(),
    ),
}
UNSEEN = {
    "foreign safetensors": (
        lambda path, seed: safetensors.torch.save_file(tensors_of(embedder(seed)), path),
        lambda path: RealmEmbedder.from_pretrained(path.parent).state_dict(),
    ),
    "foreign blocks": (
        lambda path, seed: np.save(path, np.array([*BLOCKS, b"x" * seed], dtype=object), allow_pickle=True),
        lambda path: list(read_block_records(path)),
    ),
    "pickled before 1.6": (
        lambda path, seed: torch.save(tensors_of(embedder(seed)), path, _use_new_zipfile_serialization=False),
        lambda path: RealmEmbedder.from_pretrained(path.parent).state_dict(),
    ),
    "configuration": (
        lambda path, seed: RealmConfig(**CONFIG.to_dict(), x=seed).save_pretrained(path.parent),
        lambda path: RealmEmbedder.from_pretrained(path.parent).state_dict(),
    ),
    "vocabulary": (
        lambda path, seed: path.write_text("".join(f"{piece}\n" for piece in [*PIECES, f"x{seed}"])),
        lambda path: RealmTokenizerFast.from_pretrained(path.parent)("alan was the pioneer , who")["input_ids"],
    ),
    "tokenizer": (
        lambda path, seed: RealmTokenizerFast(_vocabulary(path.with_name("v.txt"), seed)).save_pretrained(path.parent),
        lambda path: RealmTokenizerFast.from_pretrained(path.parent)("alan was the pioneer , who")["input_ids"],
    ),
}
NAMES = {
    "index": "i.safetensors", "int8 index": "i.safetensors", "shard": "embeddings-000000.npy",
    "index of a run": "index-3.npy", "checkpoint of a run": "checkpoint.safetensors", "packed": "m.realm",
    "index of shards": "model.safetensors.index.json",
    "weights": "model.safetensors", "block embeddings": "model.safetensors", "blocks": "block_records.npy",
    "pickled": "pytorch_model.bin", "foreign safetensors": "model.safetensors", "foreign blocks": "block_records.npy",
    "pickled before 1.6": "pytorch_model.bin", "configuration": "config.json", "vocabulary": "vocab.txt",
    "tokenizer": "tokenizer.json",
}  # fmt: skip


UNNAMED = ("configuration", "vocabulary", "tokenizer")  # their errors name a value, not always the file


def _vocabulary(path, seed):
    path.write_text("".join(f"{piece}\n" for piece in [*PIECES, f"x{seed}"]))
    return path


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(same_bits(a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a == b


def same_bits(a, b):
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KINDS, *UNSEEN])
def test_damage_is_refused_or_changes_nothing(tmp_path, kind):
    write, read = {**KINDS, **UNSEEN}[kind]
    files = []
    for seed in (1, 0):
        path = tmp_path / str(seed) / NAMES[kind]
        path.parent.mkdir()
        if kind in ("foreign safetensors", "pickled before 1.6"):
            CONFIG.save_pretrained(path.parent)
        if kind == "configuration":
            safetensors.torch.save_file(tensors_of(embedder(0)), path.parent / "model.safetensors")
        write(path, seed)
        files.append(path.read_bytes())
    other, whole = files
    expected = read(path)
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    refused = unchanged = 0
    for _ in range(-(-MUTATIONS // len(NAMES))):
        done, data = mutated(whole, other, rng)
        path.unlink()  # what is mapped stays as it is
        path.write_bytes(data)
        try:
            found = read(path)
        except (ValueError, FileNotFoundError) as error:
            assert type(error) in (ValueError, FileNotFoundError, Misfit), f"{done}: {error!r}"
            assert str(path.parent) in str(error) or kind in UNNAMED, f"{done}: {error}"
            assert max(map(len, str(error).splitlines())) < 1_000, done
            refused += 1
            continue
        except BaseException as error:
            raise AssertionError(f"{done} ended in {error!r}") from error
        assert kind in UNSEEN or same(found, expected) or data == other, f"{done} was read as something else"
        unchanged += data == whole or same(found, expected)
    assert refused > 0
    if kind in KINDS:
        assert refused > 5 * unchanged, (refused, unchanged)


def test_numbers_that_are_gone_do_not_hide_behind_the_checksum(tmp_path):
    """Without 16 bytes of its data a file is as long as one without a checksum."""
    path = tmp_path / "index-3.npy"
    write_npy(path, np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    data = path.read_bytes()
    path.write_bytes(data[:300] + data[316:])
    with pytest.raises(ValueError, match="its checksum stands where the last numbers should.*it is damaged"):
        map_npy(path)
