"""No rank waits for one that is gone.

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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BEAT = 1.0  # seconds between two counts of a watcher
PATIENCE = 10.0  # seconds without a sign of life after which a rank is held for dead
GRACE = 5.0  # seconds a main thread that is stuck in a collective has to notice, and the other ranks have to leave


class RankFailedError(ConnectionError):
    """Another rank died or failed; the message names it. What rank 0 failed of, rank 0 says: `said_by_first`."""

    said_by_first = False


class Watcher:
    """Counts upwards for this rank and watches the others' counts; see the head of this module."""

    def __init__(self, store: Any, rank: int, size: int, patience: float, say: Callable[[str], None]) -> None:
        self._store, self._rank, self._size, self._patience = store.clone(), rank, size, patience
        self._say_last = say  # before a process ends that cannot raise its error
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
        with self.exchange():  # it has broken off, and is waited in still
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
            try:
                if not self._error.said_by_first:
                    self._say_last(f"realm-min: {self._error}")
            finally:
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
