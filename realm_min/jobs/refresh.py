"""The index of block embeddings, built again in the background as the embedder learns (REALM section 3.3).

Searching with f(x, z) of some hundred steps ago is good enough to find the top documents; what they are worth is
computed afresh. A second process, the builder, embeds all blocks with a snapshot of the embedder while training goes
on.

Which index a step uses depends on nothing but its number. With R = `every`, a snapshot is taken before each step that
is a multiple of R, and its index is used R steps later, when the builder should be done:

    step           0 … R-1    R … 2R-1    2R … 3R-1    3R … 4R-1
    snapshot       0          0           R            2R

Training waits if the builder is late, and before step 0. So a run that was killed finds or builds the same index again.
On several ranks, rank 0 takes the snapshots and has a builder; or some ranks do nothing but build, all of them together
(`build_on_ranks`). Every rank sees the folder, and maps the new index into its memory.
What the folder holds, each file complete or absent:

    blocks.jsonl, embedder/             what the builder reads: blocks, configuration and tokenizer
    snapshot-STEP.safetensors           the embedder's weights before that step, with a checksum
    index-STEP.npy                      their block embeddings, [blocks, proj] float32, with a checksum
    builder.log, progress               what the builder has to complain about; how many blocks it has embedded
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import RealmConfig
from ..files.atomic import write_atomically
from ..files.npy_file import map_npy, write_npy
from ..files.safetensors_file import read_safetensors, write_safetensors
from ..interface.embedder import RealmEmbedder
from ..learn.steps import Sum
from ..ranks.distributed import World, split, world
from ..search.mips import BlockIndex
from ..search.sharded_index import ShardedBlockIndex
from ..text.corpus import Block
from ..text.lines import json_lines
from ..text.tokenizer import RealmTokenizerFast
from .embedding import embed_blocks, embed_on_ranks
from .run_checkpoints import checkpoint_steps
from .settings import RUN_FILE, TrainingRun

INDEX_FOLDER = "index"  # within a run's folder
NICENESS = 5  # the builder yields to training
POLL_SECONDS = 0.02
PROGRESS_FILE = "progress"  # "STEP BLOCKS"
NO_MORE = -1  # in place of a snapshot's step: nothing more is to be built


def snapshot_for(step: int, every: int) -> int:
    """The step whose snapshot gave the index that `step` searches."""
    return max(step // every - 1, 0) * every


class IndexRefresher:
    """Gives the block embeddings that each step of a run searches.

    Args:
        run_folder: the run's, with the loop's checkpoint; files go to `index/` in it.
        blocks: the evidence.
        embedder: the model in training; it is read when a snapshot is due.
        tokenizer: a RealmTokenizerFast.
        every: R, steps between snapshots.
        steps: of the whole run, where they are known: no snapshot is taken whose index none of them would search.
        waiting: called on rank 0 as waiting(step, done, total) while a step waits for an index, of whose `total` blocks
            some are done.
        builders: makes what builds the indexes, of the folder `index/` and the device; None: a process of their own.

    Nothing is written and no process is started before the first call of `embeddings`. Leave a `with` block, or call
    `close`, to stop the builder; it also stops when this process dies.
    """

    def __init__(
        self,
        run_folder: str | os.PathLike,
        blocks: list[Block],
        embedder: RealmEmbedder,
        tokenizer: RealmTokenizerFast,
        *,
        every: int,
        steps: int | None = None,
        waiting: Callable[[int, int, int], None] = lambda step, done, total: None,
        builders: NewBuilder | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"the index is to be refreshed every {every} steps: give 1 or more")
        if not blocks:
            raise ValueError("there is no block to index: give a corpus that holds text")
        self.run_folder, self.folder = Path(run_folder), Path(run_folder) / INDEX_FOLDER
        self.blocks, self.embedder, self.tokenizer, self.every, self.steps = blocks, embedder, tokenizer, every, steps
        self.waiting = waiting
        self.seconds_waited = 0.0  # for the builder, in the last call of `embeddings`
        self._new_builder = builders or BuilderProcess
        self._builder: BuilderProcess | BuilderRanks | None = None
        self._requested: set[int] = set()
        self._latest: tuple[int, Tensor] | None = None  # a snapshot, and the embeddings of its index
        self._searched: tuple[Tensor, BlockIndex | ShardedBlockIndex] | None = None  # embeddings, and an index of them

    def __enter__(self) -> IndexRefresher:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(failed=error is not None)

    def embeddings(self, step: int) -> Tensor:
        """The block embeddings for `step`, [blocks, proj] float32 on the CPU: the same tensor until they change.

        Call it once a step, in order, before the step's update, on every rank; the first call may be of any step that
        the run's checkpoint stands at. On several ranks the tensor is a map of the index's file.

        Raises:
            ChildProcessError: the builder failed; its message is in it.
            FileNotFoundError: a run that is resumed lacks the snapshot it needs.
        """
        everyone = world()
        if everyone.is_first:
            if self._builder is None:
                self._start(step)
            else:
                self._builder.check()
            if step % self.every == 0 and self._will_be_searched(step):
                self._take_snapshot(step)
        snapshot, self.seconds_waited = snapshot_for(step, self.every), 0.0
        if self._latest is None or self._latest[0] != snapshot:
            everyone.on_first(lambda: self._wait_for(snapshot, step))
            self._latest = snapshot, self._read(snapshot)
        return self._latest[1]

    def index(self, step: int) -> BlockIndex | ShardedBlockIndex:
        """What searches `embeddings(step)`, on the embedder's device: the same until they change."""
        embeddings = self.embeddings(step)
        if self._searched is None or self._searched[0] is not embeddings:
            self._searched = embeddings, searchable(embeddings, self.embedder.device)
        return self._searched[1]

    def staleness(self, step: int) -> int:
        """How many steps ago the embedder was as the index of `step` has it."""
        return step - snapshot_for(step, self.every)

    def sums(self, step: int) -> dict[str, Sum]:
        """What the log has of the index of `step`: its `staleness`, and the `seconds_waited` for it."""
        return {"staleness": Sum(self.staleness(step), 1), "seconds_waited": Sum(self.seconds_waited, 1)}

    def close(self, failed: bool = False) -> None:
        """Stop the builder, whatever it is doing; `failed`: since training did."""
        if self._builder is not None:
            self._builder.close(failed)
            self._builder = None
            self._remove_halves()
            if failed and not (self.run_folder / RUN_FILE).is_file():  # the run was refused before its first step
                shutil.rmtree(self.folder, ignore_errors=True)

    # Files

    def _snapshot_path(self, step: int) -> Path:
        return self.folder / f"snapshot-{step}.safetensors"

    def _index_path(self, step: int) -> Path:
        return self.folder / f"index-{step}.npy"

    def _start(self, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_halves()
        text = "".join(json.dumps(block._asdict()) + "\n" for block in self.blocks)
        path = self.folder / "blocks.jsonl"
        if path.is_file() and path.read_bytes() != text.encode():
            shutil.rmtree(self.folder)  # of other blocks
            self.folder.mkdir()
        with write_atomically(path) as temporary:
            temporary.write_bytes(text.encode())
        self.embedder.config.save_pretrained(self.folder / "embedder")
        self.tokenizer.save_pretrained(self.folder / "embedder")

        self._running_builder()
        # What the run has begun before it was stopped.
        for snapshot in sorted({snapshot_for(step, self.every), step // self.every * self.every} - {step}):
            if self._will_be_searched(snapshot):
                self._request(snapshot)

    def _will_be_searched(self, snapshot: int) -> bool:
        return snapshot == 0 or self.steps is None or snapshot + self.every < self.steps

    def _take_snapshot(self, step: int) -> None:
        aliases = self.embedder.aliases()
        tensors = {
            key: tensor.detach().cpu().contiguous()
            for key, tensor in self.embedder.state_dict().items()
            if key not in aliases
        }
        path = self._snapshot_path(step)
        if not _holds(path, tensors):
            self._index_path(step).unlink(missing_ok=True)
            with write_atomically(path) as temporary:
                write_safetensors(temporary, tensors, {})
        self._request(step)
        self._remove_old()

    def _remove_halves(self) -> None:
        """Remove what a killed process was writing."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink()

    def _remove_old(self) -> None:
        """Remove what no step will use from the checkpoint before the last on, should that one be needed."""
        oldest = snapshot_for(min(checkpoint_steps(self.run_folder), default=0), self.every)
        for path in [*self.folder.glob("snapshot-*.safetensors"), *self.folder.glob("index-*.npy")]:
            if int(path.stem.split("-")[1]) < oldest:
                path.unlink()

    # The builder

    def _running_builder(self) -> BuilderProcess | BuilderRanks:
        """The builder, started if it is not running."""
        if self._builder is None:
            self._builder = self._new_builder(self.folder, self.embedder.device)
        return self._builder

    def _request(self, snapshot: int) -> None:
        """Ask for the index of a snapshot, unless it is there, and whole, or asked for already."""
        if snapshot in self._requested or _is_whole(self._index_path(snapshot)):
            return
        self._index_path(snapshot).unlink(missing_ok=True)
        if not self._snapshot_path(snapshot).is_file():
            raise FileNotFoundError(f"{self._snapshot_path(snapshot)} is missing: start the run anew in another folder")
        try:
            read_safetensors(self._snapshot_path(snapshot))
        except ValueError as error:
            raise ValueError(f"{error}; where it cannot be had, start the run anew in another folder") from None
        self._requested.add(snapshot)
        self._running_builder().request(snapshot)

    def _wait_for(self, snapshot: int, step: int) -> None:
        started = time.perf_counter()
        while not self._index_path(snapshot).is_file():
            self._running_builder().check()
            self.waiting(step, self._blocks_done(snapshot), len(self.blocks))
            time.sleep(POLL_SECONDS)
        self.seconds_waited = time.perf_counter() - started

    def _read(self, snapshot: int) -> Tensor:
        found = map_npy(self._index_path(snapshot), world())
        return torch.from_numpy(found if world().size > 1 else np.array(found))  # Windows removes no mapped file

    def _blocks_done(self, snapshot: int) -> int:
        """How many blocks the builder has embedded with a snapshot, by its own account."""
        path = self.folder / PROGRESS_FILE
        step, _, done = path.read_text(encoding="utf-8").partition(" ") if path.is_file() else ("", "", "")
        return int(done) if step == str(snapshot) and done else 0


class BuilderProcess:
    """A process of its own that builds the indexes, `build` below: it yields to training, and dies with it."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        given = [str(folder), str(torch.get_num_threads()), str(device)]
        with open(folder / "builder.log", "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "realm_min.jobs.refresh", *given],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
            )  # fmt: skip
        assert self.process.stdin is not None  # a pipe, as asked for
        self.requests = self.process.stdin

    def request(self, snapshot: int) -> None:
        """Have the index of a snapshot built, after those asked for before."""
        try:
            self.requests.write(b"%d\n" % snapshot)
            self.requests.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def check(self) -> None:
        """Raise ChildProcessError, with the builder's last words, if it has stopped."""
        if self.process.poll() is not None:
            raise self._failure()

    def close(self, failed: bool) -> None:
        """Stop the builder, whatever it is doing."""
        with suppress(BrokenPipeError):  # it has died already, which is said elsewhere
            self.requests.close()
        self.process.kill()
        self.process.wait()

    def _failure(self) -> ChildProcessError:
        status = self.process.wait()
        log = self.folder / "builder.log"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), f"it ended with status {status}")
        return ChildProcessError(f"the index builder stopped: {last} (all it said is in {log})")


class BuilderRanks:
    """The ranks that do nothing but build, as training's rank 0 sees them: it sends the first of them step numbers.

    Args:
        everyone: all ranks, those that train and those that build.
        first: of those that build.
    """

    def __init__(self, everyone: World, first: int) -> None:
        self.everyone, self.first = everyone, first
        self._posted: list[Callable[[], None]] = []

    def request(self, snapshot: int) -> None:
        """As `BuilderProcess`."""
        self._posted.append(self.everyone.post(snapshot, self.first))

    def check(self) -> None:
        """Nothing to look at: a rank that dies or fails is a RankFailedError everywhere."""

    def close(self, failed: bool) -> None:
        """Let them go when they have built what was asked for; where training failed, that stops them."""
        if failed:
            return
        self.request(NO_MORE)
        for wait in self._posted:
            wait()


NewBuilder = Callable[[Path, torch.device], BuilderProcess | BuilderRanks]


@contextmanager
def builders(
    run: TrainingRun, blocks: list[Block], embedder: RealmEmbedder, tokenizer: RealmTokenizerFast
) -> Iterator[NewBuilder | None]:
    """Part the ranks that train from the `run.refresh_ranks` last ones, which build, until the block ends.

    On those that train, the block has for `IndexRefresher` what builds: the others, or a process where there are none.
    On the others it has None, when all is built that training asked for.
    """
    everyone = world()
    first = everyone.size - run.refresh_ranks  # of those that build
    with split(run.refresh_ranks):
        if everyone.rank >= first:
            build_on_ranks(run.folder, blocks, embedder, tokenizer, everyone)
            yield None
        else:
            yield (lambda folder, device: BuilderRanks(everyone, first)) if run.refresh_ranks else BuilderProcess


def searchable(embeddings: Tensor, device: torch.device) -> BlockIndex | ShardedBlockIndex:
    """A search index over all blocks [blocks, proj]; on several ranks each has a slice, and all search together."""
    embeddings = embeddings.float() if embeddings.dtype == torch.float64 else embeddings
    if world().size > 1:
        return ShardedBlockIndex(embeddings, device=device)
    return BlockIndex(embeddings.to(device))


def _holds(snapshot: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether a snapshot is there, whole, and of these tensors."""
    try:
        found = read_safetensors(snapshot) if snapshot.is_file() else {}
    except ValueError:  # damaged: it is taken anew
        return False
    return found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in found)


def _is_whole(index: Path) -> bool:
    try:
        map_npy(index)
    except (FileNotFoundError, ValueError):  # absent, or damaged: it is built anew
        return False
    return True


# ---- on the ranks that build


def build_on_ranks(
    run_folder: str | os.PathLike,
    blocks: list[Block],
    embedder: RealmEmbedder,
    tokenizer: RealmTokenizerFast,
    everyone: World,
) -> None:
    """Build the indexes that training's rank 0 asks for, all ranks of `world()` together, until it lets them go.

    Args:
        embedder: of training's configuration; its weights are overwritten.
        everyone: all ranks, those that train too.
    """
    folder, builders = Path(run_folder) / INDEX_FOLDER, world()
    embedder.eval()
    while True:
        step = builders.broadcast_object(everyone.receive(0) if builders.is_first else NO_MORE)
        if step == NO_MORE:
            return
        snapshot = folder / f"snapshot-{step}.safetensors"
        embedder.load_state_dict(read_safetensors(snapshot), source=str(snapshot))
        embeddings = embed_on_ranks(embedder, tokenizer, blocks, _progress(folder, step))
        builders.on_first(lambda step=step, found=embeddings: _write_index(folder, step, found))


def _progress(folder: Path, step: int) -> Callable[[int], None]:
    """Writes down, on rank 0, how many blocks of a snapshot are done."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if world().is_first:
            with write_atomically(folder / PROGRESS_FILE) as temporary:
                temporary.write_text(f"{step} {done}", encoding="utf-8")

    return advance


def _write_index(folder: Path, step: int, embeddings: Tensor) -> None:
    write_npy(folder / f"index-{step}.npy", embeddings.numpy())


# ---- in the builder's process


def build(folder: Path, threads: int, device: str) -> None:
    """Read step numbers from the standard input, a line each, and write the index of each snapshot.

    Args:
        threads, device: of the training process.
    """
    # Ctrl-C is for the training process, which then closes the pipe; so does its death, of whatever kind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    requests: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()

    blocks = [Block(value["title"], value["text"]) for _, value in json_lines(folder / "blocks.jsonl")]
    tokenizer = RealmTokenizerFast.from_pretrained(folder / "embedder")
    embedder = RealmEmbedder(RealmConfig.from_pretrained(folder / "embedder"), initialize=False).to(device).eval()
    while True:
        step = requests.get()
        # Training waits for the first index, and works beside the others. An index built anew has the same bits.
        torch.set_num_threads(threads if step == 0 else 1)
        snapshot = folder / f"snapshot-{step}.safetensors"
        embedder.load_state_dict(read_safetensors(snapshot), source=str(snapshot))
        _write_index(folder, step, embed_blocks(embedder, tokenizer, blocks, _progress(folder, step)))


def _listen(requests: queue.SimpleQueue[int]) -> None:
    # Not sys.stdin, whose lock would be held by this thread when the interpreter ends.
    held = b""
    while data := os.read(0, 4096):
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            requests.put(int(line))
    os._exit(0)


if __name__ == "__main__":
    build(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
