"""The index is built in the background: when it is swapped in, what a killed run finds, how failures come through."""

import os
import signal
import time

import forked
import numpy as np
import processes
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from realm_min.config import RealmConfig
from realm_min.interface.embedder import RealmEmbedder
from realm_min.jobs import refresh
from realm_min.jobs.embedding import embed_blocks
from realm_min.jobs.refresh import IndexRefresher, snapshot_for
from realm_min.text.corpus import Block
from realm_min.text.tokenizer import RealmTokenizerFast

CONFIG = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, retriever_proj_size=8,
    max_position_embeddings=64,
)  # fmt: skip
BLOCKS = [Block(f"Country {i}", f"The capital of country {i} is city {7 * i}.") for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(str(vocabulary))


def new_embedder():
    return RealmEmbedder(RealmConfig(**CONFIG), seed=3).eval()


def weights_at(embedder, step):
    """Stands for training: what step `step` finds is a function of its number."""
    generator = torch.Generator().manual_seed(step)
    embedder.p["cls.dense.weight"].copy_(torch.randn(8, 16, generator=generator))


def expected_index(step, tokenizer, blocks=BLOCKS):
    """Built here, with the threads of training for step 0 and one for the others."""
    embedder, threads = new_embedder(), torch.get_num_threads()
    weights_at(embedder, step)
    torch.set_num_threads(threads if step == 0 else 1)
    try:
        return embed_blocks(embedder, tokenizer, blocks)
    finally:
        torch.set_num_threads(threads)


def checkpoint(run_folder, step):
    """What the loop leaves after `step`."""
    save_file({"x": torch.zeros(1)}, run_folder / "checkpoint.safetensors", metadata={"done": str(step)})


def run(folder, embedder, tokenizer, first, last, every=3, save_every=4, steps=None):
    """Steps first..last-1; which snapshot's embeddings each one searched."""
    found = {}
    with IndexRefresher(folder, BLOCKS, embedder, tokenizer, every=every, steps=steps) as refresher:
        for step in range(first, last):
            weights_at(embedder, step)
            found[step] = refresher.embeddings(step), refresher.staleness(step)
            if (step + 1) % save_every == 0:
                checkpoint(folder, step + 1)
    return found


class Forked:
    """What `refresh.BuilderProcess` uses of a subprocess, forked: the real one takes seconds to import torch."""

    def __init__(self, folder, threads, device):
        reader, writer = os.pipe()
        files = {0: reader, 1: folder / "builder.log", 2: folder / "builder.log"}
        self._process = forked.start(refresh.build, folder, threads, device, files=files, environment={})
        self.pid, self.stdin = self._process.pid, os.fdopen(writer, "wb")
        os.close(reader)

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join()
        return self._process.exitcode

    def kill(self):
        self._process.kill()


class ForkedBuilder(refresh.BuilderProcess):
    def __init__(self, folder, device):
        self.folder, self.process = folder, Forked(folder, torch.get_num_threads(), str(device))
        self.requests = self.process.stdin


@pytest.fixture
def forked_builder(monkeypatch):
    monkeypatch.setattr(refresh, "BuilderProcess", ForkedBuilder)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(1, 50))
def test_which_snapshot_a_step_searches(step, every):
    snapshot = snapshot_for(step, every)
    assert snapshot % every == 0 and 0 <= snapshot <= step
    if step >= 2 * every:
        assert every <= step - snapshot < 2 * every  # built for `every` steps, used for `every` steps
    else:
        assert snapshot == 0


def test_the_index_is_swapped_at_its_step_and_old_files_go(tmp_path, tokenizer):
    found = run(tmp_path, new_embedder(), tokenizer, 0, 14)
    assert [staleness for _, staleness in found.values()] == [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 3, 4]
    for step, (embeddings, staleness) in found.items():
        assert torch.equal(embeddings, expected_index(step - staleness, tokenizer)), step
        assert embeddings is found[step - step % 3][0]  # cheap while nothing changes
    steps = sorted(int(path.stem.split("-")[1]) for path in (tmp_path / "index").glob("snapshot-*"))
    assert steps == [9, 12]  # the checkpoint is that of step 12, which searches snapshot 9
    assert not list((tmp_path / "index").glob(".*"))


def test_no_index_is_built_that_no_step_searches(tmp_path, tokenizer, forked_builder):
    found = run(tmp_path, new_embedder(), tokenizer, 0, 9, steps=9)  # snapshot 6 would be searched from step 9 on
    assert [staleness for _, staleness in found.values()] == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert sorted(path.name for path in (tmp_path / "index").glob("*-*")) == [
        "index-0.npy", "index-3.npy", "snapshot-0.safetensors", "snapshot-3.safetensors",
    ]  # fmt: skip
    run(tmp_path, new_embedder(), tokenizer, 8, 9, steps=9)  # resumed past a snapshot that was not taken


@pytest.mark.parametrize("lost", ["nothing", "indices", "an older snapshot's index", "a bit of each"])
def test_a_killed_run_finds_or_builds_the_same_index(tmp_path, tokenizer, forked_builder, lost):
    folder = tmp_path
    run(folder, new_embedder(), tokenizer, 0, 11)  # checkpoint at 8, killed at 11
    if lost == "indices":
        for path in (folder / "index").glob("index-*"):
            path.unlink()
    if lost == "an older snapshot's index":  # of other weights, as an older version might have left it
        np.save(folder / "index" / "index-9.npy", np.zeros((40, 8), np.float32))
        path = folder / "index" / "snapshot-9.safetensors"
        save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, path)
    if lost == "a bit of each":  # but of the snapshot whose step is past
        for name in ("index-3.npy", "index-6.npy", "snapshot-9.safetensors"):
            data = bytearray((folder / "index" / name).read_bytes())
            data[-30] ^= 1
            (folder / "index" / name).write_bytes(data)
    (folder / "index" / ".index-9.npy.1.tmp").write_bytes(b"half")
    resumed = run(folder, new_embedder(), tokenizer, 8, 12)
    for step, (embeddings, staleness) in resumed.items():
        assert staleness == {8: 5, 9: 3, 10: 4, 11: 5}[step]
        assert torch.equal(embeddings, expected_index(step - staleness, tokenizer)), step
    assert not list((folder / "index").glob(".*"))


def test_a_snapshot_of_a_past_step_is_not_read_damaged(tmp_path, tokenizer, forked_builder):
    run(tmp_path, new_embedder(), tokenizer, 0, 9)
    (tmp_path / "index" / "index-3.npy").unlink()
    path = tmp_path / "index" / "snapshot-3.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(
        ValueError, match="snapshot-3.safetensors cannot be read .its checksum is .* start the run anew"
    ):
        run(tmp_path, new_embedder(), tokenizer, 8, 9)


def test_what_a_run_from_the_checkpoint_before_the_last_needs_is_kept(tmp_path, tokenizer, forked_builder):
    checkpoint(tmp_path, 2)
    (tmp_path / "checkpoint.safetensors").rename(tmp_path / "checkpoint-previous.safetensors")
    checkpoint(tmp_path, 14)
    run(tmp_path, new_embedder(), tokenizer, 0, 13, save_every=100)
    kept = sorted(int(path.stem.split("-")[1]) for path in (tmp_path / "index").glob("snapshot-*"))
    assert kept == [0, 3, 6, 9, 12]


def test_steps_complete_while_an_index_builds(tmp_path, tokenizer, forked_builder):
    blocks = BLOCKS * 20
    embedder = new_embedder()
    waited_for = []
    with IndexRefresher(
        tmp_path, blocks, embedder, tokenizer, every=50, waiting=lambda *progress: waited_for.append(progress)
    ) as refresher:
        for step in range(100):
            if step == 50:  # its index would be built before a slow machine has taken ten steps
                os.kill(refresher._builder.process.pid, signal.SIGSTOP)
            weights_at(embedder, step)
            embeddings = refresher.embeddings(step)
            assert refresher.seconds_waited == 0 or step == 0
        assert not (tmp_path / "index" / "index-50.npy").exists()
        os.kill(refresher._builder.process.pid, signal.SIGCONT)
        done = [blocks_done for _, blocks_done, _ in waited_for]
        assert done == sorted(done) and 0 < done[-1] <= len(blocks) and waited_for[0] == (0, 0, len(blocks))
        weights_at(embedder, 100)
        assert not torch.equal(refresher.embeddings(100), embeddings)
        assert torch.equal(refresher.embeddings(100), expected_index(50, tokenizer, blocks))


def test_the_builders_failure_is_reported(tmp_path, tokenizer, forked_builder):
    blocks = [*BLOCKS, Block("Long", "word " * 100)]
    with IndexRefresher(tmp_path, blocks, new_embedder(), tokenizer, every=2) as refresher:
        with pytest.raises(
            ChildProcessError, match="the index builder stopped: ValueError: 104 tokens are more than max"
        ):
            refresher.embeddings(0)


def test_a_killed_builder_is_reported_at_the_next_step(tmp_path, tokenizer, forked_builder):
    with IndexRefresher(tmp_path, BLOCKS, new_embedder(), tokenizer, every=5) as refresher:
        refresher.embeddings(0)
        os.kill(refresher._builder.process.pid, signal.SIGKILL)
        refresher._builder.process.wait()
        with pytest.raises(ChildProcessError, match="it ended with status -9"):
            refresher.embeddings(1)


def test_bad_arguments_are_named(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="every 0 steps"):
        IndexRefresher(tmp_path, BLOCKS, new_embedder(), tokenizer, every=0)
    with pytest.raises(ValueError, match="no block"):
        IndexRefresher(tmp_path, [], new_embedder(), tokenizer, every=1)
    with IndexRefresher(tmp_path, BLOCKS, new_embedder(), tokenizer, every=5) as refresher:
        with pytest.raises(FileNotFoundError, match="snapshot-5.safetensors is missing"):
            refresher.embeddings(12)


def train_for_ever(folder, vocabulary):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    refresher = IndexRefresher(folder, BLOCKS * 2000, new_embedder(), RealmTokenizerFast(str(vocabulary)), every=5)
    refresher._start(0)
    refresher._take_snapshot(0)
    ranks.say(refresher._builder.process.pid)
    refresher.embeddings(0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_builder_dies_with_its_parent(tmp_path, vocabulary, how):
    [parent] = running = ranks.start(train_for_ever, 1, tmp_path, vocabulary)
    [builder] = ranks.wait_for_words(running)
    time.sleep(0.5)  # somewhere between its imports and its work
    assert processes.is_alive(builder) and parent.process.is_alive()
    os.kill(parent.process.pid, how)
    [outcome] = ranks.finish(running)
    assert outcome == ranks.Outcome(error="KeyboardInterrupt: " if how == signal.SIGINT else None)
    processes.until(lambda: not processes.is_alive(builder), [builder], "the builder ends")
    assert not (tmp_path / "index" / "index-0.npy").exists()
