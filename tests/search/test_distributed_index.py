"""One corpus embedded by several ranks: the same folder to the byte, through killed ranks, damage and rivals."""

import os
import signal
import sys
import time

import numpy as np
import processes
import pytest
import ranks
import torch
from sizes import at_length

from realm_min import RealmConfig, RealmForOpenQA, RealmTokenizerFast
from realm_min.app import cli, indexing, ready_folder
from realm_min.jobs import embedding
from realm_min.ranks import distributed
from realm_min.text.corpus import Block, Document, cut_blocks

LIMIT = 40  # wordpieces of a block
SIZES = dict(SHARD_SIZE=6)  # blocks
SHARDS = 13  # that the corpus makes, the last one short
DOCUMENTS = [
    Document(f"Island {i}", " ".join(f"Field {j} of {i} is {'very ' * (j * i % 5)}{i * j}." for j in range(2 + i)))
    for i in range(21)
]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    for name, size in SIZES.items():
        monkeypatch.setattr(embedding, name, size)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, vocabulary):
    """The files that one process writes on one thread."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in SIZES.items():
            patch.setattr(embedding, name, size)
        return files_of(index(tmp_path_factory.mktemp("whole") / "out", vocabulary)[0])


def tiny(vocabulary, seed=0):
    config = RealmConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, retriever_proj_size=8,
        span_hidden_size=16, max_position_embeddings=64, num_block_records=1,
    )  # fmt: skip
    return RealmForOpenQA(config, seed=seed).eval(), RealmTokenizerFast(str(vocabulary))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def index(out, vocabulary, documents=DOCUMENTS, pause=0.0, stop_after=None, threads=1, seed=0):
    """Write the folder; returns it, what was reported, what was remarked and the shards that this rank embedded.

    pause: seconds before each shard. stop_after: shards of this rank after which the job is interrupted.
    """
    for name, size in SIZES.items():
        setattr(embedding, name, size)
    seen, remarks, embedded, write = [], [], [], indexing._write_shard

    def write_slowly(path, embeddings):
        time.sleep(pause)
        if len(embedded) == stop_after:
            raise KeyboardInterrupt
        write(path, embeddings)
        embedded.append(path.name)

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "_write_shard", write_slowly)
        torch.set_num_threads(threads)
        try:
            folder = indexing.index(
                documents, out, *tiny(vocabulary, seed), max_wordpieces=LIMIT, remark=remarks.append,
                report=lambda stage, done, total: seen.append((stage, done, total)),
            )  # fmt: skip
        finally:
            assert torch.get_num_threads() == threads
            torch.set_num_threads(before)
    return folder, seen, remarks, embedded


def shards_of(out):
    return sorted(out.with_name(out.name + ".partial").glob("*.npy"))


def wait_for_shards(running, out, count):
    ranks.until(running, lambda: len(shards_of(out)) >= count, f"{out} has {count} shards")


# ---- the same bits


@pytest.mark.parametrize("size", [2, 3])
def test_the_folder_is_the_same_for_any_number_of_ranks(tmp_path, vocabulary, whole, size):
    found = ranks.run(index, size, tmp_path / "out", vocabulary)
    assert files_of(tmp_path / "out") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no lock, no partial folder
    total = len(list(cut_blocks(DOCUMENTS, tiny(vocabulary)[1], LIMIT)))
    done = [done for stage, done, _ in found[0][1] if stage == "Embedding blocks"]
    assert done[0] == 0 and done[-1] == total and done == sorted(done)  # of all ranks
    assert all(seen == [] for _, seen, _, _ in found[1:])
    embedded = [name for _, _, _, names in found for name in names]
    assert len(embedded) == len(set(embedded)) == -(-total // SIZES["SHARD_SIZE"]) == SHARDS
    assert all(len(names) >= SHARDS // size - 1 for _, _, _, names in found)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_folder_is_the_same_for_any_number_of_threads(tmp_path, vocabulary, whole, threads):
    assert files_of(index(tmp_path / "out", vocabulary, threads=threads)[0]) == whole


@pytest.mark.parametrize("count", [1, 2, 5, 8, 17, 33])
def test_threads_do_not_change_embeddings(vocabulary, count):
    """Sizes at which a product of MKL's gives other bits on two threads; see tests of the folder for the rest."""
    config = RealmConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512, retriever_proj_size=8
    )
    model, tokenizer = RealmForOpenQA(config, seed=1).eval(), tiny(vocabulary)[1]
    blocks = [Block("Island", "one two three " * (1 + i % 7)) for i in range(count)]
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            counts = []
            found[threads] = embedding.embed_blocks(model.embedder, tokenizer, blocks, counts.append)
            assert sum(counts) == count and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[1], found[2]) and torch.equal(found[1], found[3])


def embed(vocabulary, count):
    for name, size in SIZES.items():
        setattr(embedding, name, size)
    model, tokenizer = tiny(vocabulary)
    blocks = list(cut_blocks(DOCUMENTS, tokenizer, LIMIT))[:count]
    counts = []
    embeddings = embedding.embed_on_ranks(model.embedder, tokenizer, blocks, counts.append)
    return embeddings.numpy(), counts


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", [55, 7])  # the second: fewer shards than 3 ranks
def test_every_rank_gets_all_embeddings(vocabulary, size, count):
    model, tokenizer = tiny(vocabulary)
    blocks = list(cut_blocks(DOCUMENTS, tokenizer, LIMIT))[:count]
    expected = embedding.embed_blocks(model.embedder, tokenizer, blocks).numpy()
    for rank, (embeddings, counts) in enumerate(ranks.run(embed, size, vocabulary, count)):
        assert embeddings.tobytes() == expected.tobytes()
        idle = rank >= -(-count // SIZES["SHARD_SIZE"])
        assert sum(counts) == (0 if idle else count) and all(step > 0 for step in counts)


def parts(vocabulary, shards):
    return embedding.parts_of(shards, tiny(vocabulary)[1])


def test_no_rank_has_more_tokens_than_the_longest_shard_explains(vocabulary):
    sizes = [3, 40, 5, 38, 11, 2, 29, 30, 17, 8, 1, 1]
    shards = {i + 5: [Block("A", "word " * size)] for i, size in enumerate(sizes)}
    found = ranks.run(parts, 3, vocabulary, shards)
    assert found[0] == found[1] == found[2]
    assert sorted(number for part in found[0] for number in part) == sorted(shards)
    tokens = [sum(4 + sizes[number - 5] for number in part) for part in found[0]]  # [CLS] a [SEP] … [SEP]
    assert max(tokens) <= 1.02 * sum(tokens) / 3
    assert all(part == sorted(part) for part in found[0])


# ---- stopped and resumed


@pytest.mark.parametrize(("victim", "again"), [(1, 2), (0, 1)])
def test_a_job_whose_rank_was_killed_goes_on_with_other_ranks(tmp_path, vocabulary, whole, victim, again):
    out = tmp_path / "out"
    running = ranks.start(index, 3, out, vocabulary, DOCUMENTS, 0.4, patience=4.0)
    wait_for_shards(running, out, 2)
    os.kill(running[victim].process.pid, signal.SIGKILL)
    ranks.finish(running, seconds=15)
    ranks.blame(running, victim, " died", ", which keeps the ranks together, is gone")
    assert not out.exists()
    kept = [path.name for path in shards_of(out)]
    assert 2 <= len(kept) < SHARDS
    for path in shards_of(out):
        assert indexing._read_shard(path).shape[1] == 8  # whole

    found = ranks.run(index, again, out, vocabulary)
    assert files_of(out) == whole
    assert sorted(name for *_, names in found for name in names) == [
        f"embeddings-{i:06d}.npy" for i in range(SHARDS) if f"embeddings-{i:06d}.npy" not in kept
    ]
    assert all(remarks == [] for _, _, remarks, _ in found)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_job_of_one_process_goes_on_with_two_ranks(tmp_path, vocabulary, whole):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match=r"^18 of 7\d blocks are embedded"):
        index(out, vocabulary, stop_after=3)
    (tmp_path / "out.partial" / ".embeddings-000004.npy.17.tmp").write_bytes(b"half")
    found = ranks.run(index, 2, out, vocabulary)
    assert files_of(out) == whole
    assert sum(len(names) for *_, names in found) == SHARDS - 3
    assert [done for stage, done, _ in found[0][1] if stage == "Embedding blocks"][0] == 18


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def change_one_bit(path):
    data = bytearray(path.read_bytes())
    data[150] ^= 1
    path.write_bytes(data)


def put_another_in_its_place(path):
    path.write_bytes(path.with_name("embeddings-000000.npy").read_bytes())


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, change_one_bit, put_another_in_its_place, empty])
def test_a_damaged_shard_is_named_and_computed_again(tmp_path, vocabulary, whole, damage):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        index(out, vocabulary, stop_after=3)
    damaged = shards_of(out)[1]
    damage(damaged)
    _, _, remarks, embedded = index(out, vocabulary)
    assert remarks == [f"{damaged} is damaged (its checksum is wrong): it is computed again"]
    assert embedded == [f"embeddings-{i:06d}.npy" for i in (1, *range(3, SHARDS))]
    assert files_of(out) == whole


def test_a_checksum_hides_nothing_from_numpy(tmp_path):
    embeddings = torch.randn(3, 8)
    path = indexing._shard_path(tmp_path, 7)
    indexing._write_shard(path, embeddings)
    assert np.array_equal(np.load(path, allow_pickle=False), embeddings.numpy())
    assert np.array_equal(indexing._read_shard(path), embeddings.numpy())


def index_out_of_sight(out, vocabulary):
    """Rank 1 writes its shards where rank 0 does not see them."""
    if distributed.world().rank == 1:
        write = indexing._write_shard
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(indexing, "_write_shard", lambda path, rows: write(out.parent / "other" / path.name, rows))
            return index(out, vocabulary)
    return index(out, vocabulary)


def test_a_shard_that_is_missing_at_the_end_is_named(tmp_path, vocabulary, whole):
    (tmp_path / "other").mkdir()
    outcomes = ranks.finish(ranks.start(index_out_of_sight, 2, tmp_path / "out", vocabulary))
    lost = sorted((tmp_path / "other").iterdir())[0].name
    assert outcomes[0].error.startswith(f"FileNotFoundError: {tmp_path / 'out.partial' / lost} is missing: ")
    assert "is the same folder for every rank" in outcomes[0].error
    assert outcomes[1].error == "SystemExit: 2"
    ranks.run(index, 3, tmp_path / "out", vocabulary)
    assert files_of(tmp_path / "out") == whole


# ---- refused


def test_a_second_launch_is_refused_and_harms_nothing(tmp_path, vocabulary, whole):
    out = tmp_path / "out"
    first = ranks.start(index, 2, out, vocabulary, DOCUMENTS, 0.5)
    wait_for_shards(first, out, 1)
    before = {path: path.stat().st_mtime_ns for path in shards_of(out)}
    second = ranks.finish(ranks.start(index, 2, out, vocabulary))
    assert second[0].error.startswith(f"FileExistsError: {out} is being written by process {first[0].process.pid} on ")
    assert second[0].error.endswith("wait for it, or name another folder")
    assert second[1].error == "SystemExit: 2"  # in silence
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items() if path.exists())
    assert [outcome.error for outcome in ranks.finish(first)] == [None, None]
    assert files_of(out) == whole
    third = ranks.finish(ranks.start(index, 2, out, vocabulary))
    assert (
        third[0].error
        == f"FileExistsError: {out} exists already: name another folder, or remove it if nothing in it is needed"
    )
    assert files_of(out) == whole


def index_something_else(out, vocabulary, what):
    documents = list(DOCUMENTS)
    if distributed.world().rank == 1:
        if what == "text":
            documents[9] = Document("Island 9", documents[9].text.replace("Field 4 of 9", "Field 4 of nine"))
        if what == "end":
            documents.pop()
    return index(out, vocabulary, documents, seed=int(what == "model" and distributed.world().rank == 1))


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("text", r"block \d+ is '[^']{,20}9 is [^']*' on rank 0 and '[^']*nine[^']*' on rank 1: give every rank the"),
        ("end", r"block \d+ is '[^']*' on rank 0 and missing on rank 1: give every rank the same CORPUS"),
        ("model", "rank 1 has another model than rank 0: give every rank the same --model"),
    ],
)
def test_ranks_must_have_the_same_corpus_and_model(tmp_path, vocabulary, what, complaint):
    outcomes = ranks.finish(ranks.start(index_something_else, 2, tmp_path / "out", vocabulary, what))
    with pytest.raises(ValueError, match=complaint):
        raise ValueError(outcomes[0].error)
    assert outcomes[1].error == "SystemExit: 2"
    assert list(tmp_path.iterdir()) == []


# ---- the command


@at_length
def test_torchrun_writes_the_folder_of_one_process(tmp_path, vocabulary, monkeypatch):
    monkeypatch.undo()  # shards as large as they are
    (tmp_path / "texts").mkdir()
    for i in range(80):
        text = DOCUMENTS[i % len(DOCUMENTS)].text
        (tmp_path / "texts" / f"Island {i}.txt").write_text(f"{text} " * (1 + i % 24), encoding="utf-8")
    indexing.index(DOCUMENTS, tmp_path / "model", *tiny(vocabulary))
    command = ["index", str(tmp_path / "texts"), "--model", str(tmp_path / "model"), "--out"]
    assert cli.main([*command, str(tmp_path / "one")]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "realm_min"]
    [(_, said)] = processes.run([*torchrun, *command, tmp_path / "two"])
    assert said.count("Ready: realm-min ask --model") == 1
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(ready_folder.read_blocks(tmp_path / "two")) > 2 * embedding.SHARD_SIZE
