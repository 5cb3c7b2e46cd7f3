"""Several processes on one job: `torchrun` starts them, torch.distributed connects them (gloo on CPUs, NCCL on GPUs).

Each process is a rank of the world, and all run the same program. A process that torchrun did not start is rank 0 of a
world of one, where every exchange returns what it was given; so no caller asks how many there are.

When a rank dies, the others stop and say which: `watcher.py`.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .watcher import PATIENCE, RankFailedError, Watcher

# A collective waits this long for a rank that is alive: one may build an index while others wait for it.
COLLECTIVE_TIMEOUT = timedelta(hours=12)

Value = TypeVar("Value")


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
        letter = torch.tensor(number, device="cpu")
        with self.exchanging():
            work = dist.isend(letter, dst=self._global_rank(rank), group=self.group)

        def wait(letter: Tensor = letter) -> None:  # the letter lives as long
            with self.exchanging():
                if work is not None:
                    work.wait()

        return wait

    def receive(self, rank: int) -> int:
        """Wait for the next number that `rank` posts to this one."""
        letter = torch.tensor(0, device="cpu")
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
def join(patience: float = PATIENCE, say: Callable[[str], None] = warnings.warn) -> Iterator[World]:
    """Join the ranks that torchrun started, until the block ends; without torchrun, a world of one.

    Args:
        patience: seconds of silence after which a rank is held for dead.
        say: is told of a rank's failure where this one is stuck in a collective and cannot raise it.

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
    store, rank, size = _connect(int(os.environ["RANK"]), size)
    watcher = Watcher(store, rank, size, patience, say)
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


def _connect(rank: int, size: int) -> tuple[Any, int, int]:
    """Reach the other ranks, each on its GPU where there are GPUs. -> (torchrun's key-value store, rank, size)"""
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # torch's connection errors, and addresses that are none
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConnectionError(f"rank {rank} of {size} cannot reach the others at {address}: {error}") from error
    return store, rank, size
