"""Several processes on one job: `torchrun` starts them, torch.distributed connects them (gloo on CPUs, NCCL on GPUs).

Each process is a rank of the world, and all run the same program. A process that torchrun did not start is rank 0 of a
world of one, where every exchange returns what it was given; so no caller asks how many there are.

When a rank dies, the others stop and say which. Every rank has a watcher, a thread that counts upwards in torchrun's
key-value store, once a second, and reads how far the others have come: a count that stands still for `PATIENCE`
seconds, a process of the same machine that is gone, or the message that a failing rank leaves behind, becomes a
`RankFailedError` in the main thread. A process of the same machine that computes is alive even if its watcher is kept
from counting: by other work on the machine, or by a long call that holds the interpreter. A collective that breaks off
because its peer is gone waits for that verdict, and raises it instead of its own error.

Bad input fails on every rank, and is said once: by rank 0. So a rank that fails waits until rank 0 has failed too, or
has come to an exchange where it waits in vain, or has computed for `GRACE` seconds; only then is the rank named.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

BEAT = 1.0  # seconds between two counts of a watcher
PATIENCE = 10.0  # seconds without a sign of life after which a rank is held for dead
GRACE = 5.0  # seconds a main thread that is stuck in a collective has to notice, and the other ranks have to leave
# A collective waits this long for a rank that is alive: one may build an index while others wait for it.
COLLECTIVE_TIMEOUT = timedelta(hours=12)

Value = TypeVar("Value")


class RankFailedError(ConnectionError):
    """Another rank died or failed; the message names it. What rank 0 failed of, rank 0 says: `said_by_first`."""

    said_by_first = False


@dataclass(frozen=True)
class World:
    """The ranks that work on one job, seen from one of them; `group` is theirs, None for all that torchrun started."""

    rank: int = 0
    size: int = 1
    group: Any = None
    watcher: Watcher | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes, prints and shows progress."""
        return self.rank == 0

    def share(self, items: list[Value]) -> list[Value]:
        """This rank's part of what all have in the same order: items rank, rank + size, …"""
        return items[self.rank :: self.size]

    def slice_of(self, total: int, unit: int = 16) -> slice:
        """This rank's part of `total` rows, consecutive ones, cut at multiples of `unit`; it may be empty."""
        units = -(-total // unit)
        ends = (self.rank * units // self.size, (self.rank + 1) * units // self.size)
        return slice(*(min(end * unit, total) for end in ends))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather_objects(None)

    def broadcast_object(self, value: Value) -> Value:
        """Rank 0's `value`, on every rank; anything that can be pickled."""
        if self.size == 1:
            return value
        box = [value]
        with self.exchanging():
            dist.broadcast_object_list(box, src=self._global_rank(0), group=self.group)
        return box[0]

    def gather_objects(self, value: Value) -> list[Value]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        with self.exchanging():
            dist.all_gather_object(box, value, group=self.group)
        return box

    def on_first(self, function: Callable[[], Value]) -> Value:
        """What `function` returns on rank 0, on every rank; what it raises there is raised on every rank."""
        if self.size == 1:
            return function()
        value = error = None
        if self.is_first:
            try:
                value = function()
            except Exception as raised:
                error = raised
        outcome: tuple[Any, Exception | None] = self.broadcast_object((value, error))
        value, error = outcome
        if error is not None:
            error.said_by_first = True  # pyright: ignore[reportAttributeAccessIssue] (it takes any, also pickled)
            raise error
        return value

    def gather_results(self, function: Callable[[], Value]) -> list[Value]:
        """What `function` returns on each rank, in their order, on every rank; what it raises on one, all raise.

        Where it raises on several, all raise the error of the first of them.
        """
        value = error = None
        try:
            value = function()
        except RankFailedError:
            raise
        except Exception as raised:
            if self.size == 1:
                raise
            error = raised
        results: list[tuple[Any, Exception | None]] = self.gather_objects((value, error))
        for _, error in results:
            if error is not None:  # rank 0 raises the same
                error.said_by_first = True  # pyright: ignore[reportAttributeAccessIssue]
                raise error
        return [value for value, _ in results]

    def broadcast_(self, tensor: Tensor) -> None:
        """Overwrite `tensor` with rank 0's; it is contiguous and of one shape and dtype on every rank."""
        if self.size > 1:
            with self.exchanging():
                dist.broadcast(tensor, src=self._global_rank(0), group=self.group)

    def sum_(self, tensor: Tensor) -> None:
        """Overwrite `tensor` with the sum of all ranks'; the bits are the same on every rank."""
        if self.size > 1:
            with self.exchanging():
                dist.all_reduce(tensor, group=self.group)

    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        """As `sum_`, in the background: `tensor` holds the sum once the function that this returns has been called.

        Every rank starts its exchanges in the same order, those in the background among them.
        """
        if self.size == 1:
            return lambda: None
        with self.exchanging():
            work = dist.all_reduce(tensor, group=self.group, async_op=True)

        def wait() -> None:
            with self.exchanging():
                if work is not None:  # it is None on a rank outside the group alone
                    work.wait()

        return wait

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's `tensor`, of one shape and dtype, in the order of ranks: [size, *shape]."""
        gathered = tensor.new_empty(self.size, *tensor.shape)
        if self.size == 1:
            return gathered.copy_(tensor[None])
        with self.exchanging():
            dist.all_gather(list(gathered.unbind(0)), tensor.contiguous(), group=self.group)
        return gathered

    def all_to_all(self, tensor: Tensor, counts: list[int]) -> Tensor:
        """Send each rank its rows of `tensor`: the first counts[0] to rank 0, the next counts[1] to rank 1, …

        tensor [sum of counts, …]; shape and counts are the same on every rank. Returns what the others, in their
        order, have for this one: [size, counts[rank], …].
        """
        if self.size == 1:
            return tensor[None]
        mine = counts[self.rank]
        received = tensor.new_empty(self.size * mine, *tensor.shape[1:])
        with self.exchanging():
            dist.all_to_all_single(received, tensor.contiguous(), [mine] * self.size, counts, group=self.group)
        return received.view(self.size, mine, *tensor.shape[1:])

    def post(self, number: int, rank: int) -> Callable[[], None]:
        """Send `number` to another rank, which may `receive` it later; what this returns waits until it has."""
        letter = torch.tensor(number)
        with self.exchanging():
            work = dist.isend(letter, dst=self._global_rank(rank), group=self.group)

        def wait(letter: Tensor = letter) -> None:  # the letter lives as long
            with self.exchanging():
                if work is not None:
                    work.wait()

        return wait

    def receive(self, rank: int) -> int:
        """Wait for the next number that `rank` posts to this one."""
        letter = torch.tensor(0)
        with self.exchanging():
            dist.recv(letter, src=self._global_rank(rank), group=self.group)
        return int(letter)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Around a collective of torch.distributed: where it fails, say which rank is to blame.

        Raises:
            RankFailedError: a rank died or failed.
        """
        try:
            with self.watcher.exchange() if self.watcher else nullcontext():
                yield
        except RuntimeError as error:
            raise (self.watcher.verdict() if self.watcher else None) or error from error

    def _global_rank(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)


_world = World()


def world() -> World:
    """The world that this process has joined: of one rank, unless `join` says otherwise."""
    return _world


@contextmanager
def split(last: int) -> Iterator[World]:
    """Part the ranks in two until the block ends: for the `last` ones `world()` is these, for the others the others.

    Every rank calls it. With `last` = 0 nothing changes.

    Raises:
        ValueError: no rank would be left in the first part.
    """
    global _world
    whole = _world
    first = whole.size - last
    if first < 1 or last < 0:
        raise ValueError(
            f"{last} of {whole.size} ranks cannot be parted from the others: start more ranks, or part fewer"
        )
    if last:
        parts = list(range(first)), list(range(first, whole.size))
        # A group is made by all ranks, those outside it too.
        groups = [dist.new_group(part, timeout=COLLECTIVE_TIMEOUT) for part in parts]
        number = int(whole.rank >= first)
        _world = World(parts[number].index(whole.rank), len(parts[number]), groups[number], whole.watcher)
    try:
        yield _world
    finally:
        _world = whole


@contextmanager
def join(patience: float = PATIENCE) -> Iterator[World]:
    """Join the ranks that torchrun started, until the block ends; without torchrun, a world of one.

    Args:
        patience: seconds of silence after which a rank is held for dead.

    Raises:
        OSError: there are several, on a platform that lacks what they need of POSIX.
        RankFailedError: while the block runs, in the main thread: another rank died or failed.
        ConnectionError: the other ranks cannot be reached.
    """
    global _world
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1 or _world.size > 1:
        yield _world
        return
    if not hasattr(signal, "SIGUSR1") or not hasattr(signal, "pthread_kill") or not dist.is_available():
        raise OSError(
            f"WORLD_SIZE={size} asks for several ranks, which need the signals of Linux or macOS and a torch with "
            "torch.distributed: start one process, without torchrun"
        )
    from torch.distributed.rendezvous import rendezvous

    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    except RuntimeError as error:  # torch's connection errors among them
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConnectionError(f"rank {rank} of {size} cannot reach the others at {address}: {error}") from error
    watcher = Watcher(store, rank, size, patience)
    _world = World(rank, size, watcher=watcher)
    try:
        with watcher:
            yield _world
            _world.barrier()  # nobody leaves, and takes the store along, while another works
    except Exception as error:
        if rank and (getattr(error, "said_by_first", False) or watcher.first_said(error)):
            sys.exit(2)  # the same bad input on every rank: one message is enough
        raise
    finally:
        _world = World()
        watcher.leave()
    dist.destroy_process_group()


class Watcher:
    """Counts upwards for this rank and watches the others' counts; see the head of this module."""

    def __init__(self, store: Any, rank: int, size: int, patience: float) -> None:
        self._store, self._rank, self._size, self._patience = store.clone(), rank, size, patience
        self._names = self._exchange_names(store)
        stats = [Path(f"/proc/{name.split()[1]}/stat") for name in self._names]
        here = socket.gethostname()
        self._stats = [
            stat if name.endswith(f" on {here}") and stat.is_file() else None
            for name, stat in zip(self._names, stats, strict=True)
        ]
        self._error: RankFailedError | None = None
        self._found, self._closing = threading.Event(), threading.Event()
        self._raised = self._failed = False
        self._heard: tuple[float, float] | None = None  # seconds of this process, and by the clock, when a rank failed
        self._seen = self._stuck = 0  # exchanges at the last beat; beats for which it has been the same one
        self._exchanges = 0  # begun and ended ones: odd while the main thread is in one
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watcher")

    def __enter__(self) -> Watcher:
        self._main = threading.get_ident()  # only the main thread may set signal handlers
        self._handlers = {
            signal.SIGUSR1: signal.signal(signal.SIGUSR1, self._raise),
            # As torchrun ends the ranks that are left: clean up behind us.
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)),
        }
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._closing.set()
        self._thread.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._failed = error is not None
        if error is not None and not isinstance(error, RankFailedError):
            self._say(f"failed {_text(error)}")

    def leave(self) -> None:
        """After a failure: say that this rank leaves. Rank 0, whose process keeps the store, leaves as the last."""
        if not self._failed or by_torchrun():
            return
        if self._rank:
            return self._set(f"left/{self._rank}", "")
        last = time.monotonic() + GRACE
        while time.monotonic() < last and not all(map(self._has_left, range(1, self._size))):
            time.sleep(BEAT / 20)

    def verdict(self) -> RankFailedError | None:
        """Which rank is to blame for a collective that broke off; waits until that is known, as it soon must be."""
        self._found.wait(self._patience + 2 * BEAT)
        self._raised = True
        return self._error

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Around what the main thread has to wait for others in."""
        self._exchanges += 1
        try:
            yield
        finally:
            self._exchanges += 1

    def first_said(self, error: Exception) -> bool:
        """Whether rank 0 fails of the very same; it is given the time to, as long as it shows that it is alive."""
        count, last = b"", time.monotonic()
        while time.monotonic() < last + self._patience:
            try:
                heart, verdict = self._store.multi_get(["heart/0", "verdict"])
            except RuntimeError:  # rank 0 has left, and the store with it
                return False
            if heart.startswith(b"failed "):
                return heart == f"failed {_text(error)}".encode()
            if verdict:
                return False
            if heart != count:
                count, last = heart, time.monotonic()
            time.sleep(BEAT / 4)
        return False

    def _exchange_names(self, store: Any) -> list[str]:
        self._say("0")
        if self._rank == 0:
            store.set("verdict", "")
        store.set(f"name/{self._rank}", f"process {os.getpid()} on {socket.gethostname()}")
        return [store.get(f"name/{rank}").decode() for rank in range(self._size)]

    def _say(self, text: str) -> None:
        self._set(f"heart/{self._rank}", text)

    def _set(self, key: str, text: str) -> None:
        with suppress(RuntimeError):  # if the store is gone, the others will notice that
            self._store.set(key, text)

    def _has_left(self, rank: int) -> bool:
        return self._store.check([f"left/{rank}"]) or self._life(rank) is None

    def _watch(self) -> None:
        keys = ["verdict", *(f"heart/{rank}" for rank in range(self._size))]
        count, before = 0, time.monotonic()
        counts, silence = [b""] * self._size, [0.0] * self._size
        lives: list[int | None] = [0] * self._size
        while not self._closing.wait(BEAT):
            count += 1
            try:
                self._store.set(f"heart/{self._rank}", str(count))
                verdict, *found = self._store.multi_get(keys)
            except RuntimeError:
                if not self._closing.wait(2 * BEAT):  # else the job ended, and its store with it
                    keeper = "torchrun" if by_torchrun() else f"rank 0 ({self._names[0]})"
                    self._fail(f"{keeper}, which keeps the ranks together, is gone")
                return
            if verdict:
                return self._fail(verdict.decode())
            now = time.monotonic()
            # What held this watcher up, such as a machine that was suspended, may have held up the others.
            passed, before = min(now - before, 2 * BEAT), now
            for rank, value in enumerate(found):
                if rank == self._rank:
                    continue
                if value.startswith(b"failed "):
                    # Rank 0 names the others, and they it.
                    if rank == 0 or self._rank == 0 and self._is_heard_out():
                        return self._fail(f"rank {rank} ({self._names[rank]}) failed: {value[7:].decode()}")
                    continue
                life = self._life(rank)
                if life is None and value == counts[rank]:
                    return self._fail(f"rank {rank} ({self._names[rank]}) died")
                silence[rank] += passed
                if (value, life) != (counts[rank], lives[rank]):
                    counts[rank], lives[rank], silence[rank] = value, life, 0.0
                elif silence[rank] > self._patience:
                    return self._fail(f"rank {rank} ({self._names[rank]}) has been silent for {silence[rank]:.0f} s")

    def _is_heard_out(self) -> bool:
        """Whether this rank, once another has failed, has had the time to fail of the same. Asked at every beat."""
        if self._heard is None:
            self._heard = (time.process_time(), time.monotonic())
        self._stuck = self._stuck + 1 if self._exchanges % 2 and self._exchanges == self._seen else 0
        self._seen = self._exchanges
        used, passed = time.process_time() - self._heard[0], time.monotonic() - self._heard[1]
        return self._stuck >= 2 or used > GRACE or passed > 4 * GRACE

    def _life(self, rank: int) -> int | None:
        """What its process, which was seen on this machine, has computed, in clock ticks; None if it is no more.

        0 for a process that cannot be seen.
        """
        stat = self._stats[rank]
        if stat is None:
            return 0
        try:
            state, *numbers = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if state in "ZX" else int(numbers[10]) + int(numbers[11])  # a zombie, or dead

    def _fail(self, reason: str) -> None:
        with suppress(RuntimeError):
            self._store.set("verdict", reason)  # so that all agree
        self._error = RankFailedError(
            f"{reason}. Rank {self._rank} stops too; what is complete is kept: start the same job again, with any "
            "number of ranks"
        )
        self._error.said_by_first = reason.startswith(f"rank 0 ({self._names[0]}) failed: ")
        self._found.set()
        if self._rank:  # it needs the store no longer, and may wait for rank 0, which waits for it
            self._set(f"left/{self._rank}", "")
        signal.pthread_kill(self._main, signal.SIGUSR1)
        if not self._closing.wait(GRACE):  # stuck in a collective that does not notice
            if not self._error.said_by_first:
                print(f"realm-min: {self._error}", file=sys.stderr, flush=True)
            os._exit(2)

    def _raise(self, *_: Any) -> None:
        if self._error is not None and not self._raised:
            self._raised = True
            raise self._error


def by_torchrun() -> bool:
    """Whether torchrun started this process, and keeps the store."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
