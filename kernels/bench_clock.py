"""What the benchmark measures with: a clock by turns, percentiles, peak memory, and what to do when a contender fails.

On a GPU a call is timed by two of its own events, and the second-level cache is overwritten before each, so that no
contender finds there what the one before it has left. The host waits for the device before and after. It begins to
launch while the cache is being overwritten, which hides some 0.1 ms of it; what a search makes the host wait for in
between counts. On a CPU it is `time.perf_counter`.
"""

from __future__ import annotations

import copy
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

NEED = "install what the benchmark compares with: pip install -e '.[bench]'"
# On a CPU, seconds: threads of the library that the contender before used wait for work so long, and take the cores.
SETTLE = 0.1
# Numbers multiplied after that wait: torch's own threads sleep by then, and to wake them takes up to 8 ms on some
# machines. A model that has just embedded the query has them awake.
WAKING = 1 << 20
FLUSHED = 4  # times the second-level cache is overwritten between two calls

Row = dict[str, Any]  # of the table of figures, by the names of its columns


class Turns(NamedTuple):
    """What contenders gave: of those that failed there are no times, and the check says why."""

    times: dict[str, list[float]]  # seconds, one of each repeat
    checks: dict[str, str]


class Clock:
    """Times contenders by turns on one device, until `limit` seconds from now are spent."""

    def __init__(self, device: torch.device, repeats: int, seconds: float, limit: float = math.inf):
        self.device, self.repeats, self.seconds = device, repeats, seconds
        self.cuda = device.type == "cuda"
        self.end = time.perf_counter() + limit
        self.settle = 0.0  # seconds before a call: see SETTLE
        if self.cuda:
            cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20)
            self.flushed = torch.empty(FLUSHED * cache, dtype=torch.int8, device=device)

    def left(self) -> float:
        """Seconds until the limit; below 0 after it."""
        return self.end - time.perf_counter()

    def until(self, limit: float) -> Clock:
        """This clock with at most `limit` seconds from now."""
        clock = copy.copy(self)
        clock.end = min(self.end, time.perf_counter() + limit)
        return clock

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def mark(self) -> Any:
        """A moment: of the device's own work on a GPU, of the host on a CPU. Not to be read before `wait`."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one mark to another."""
        return start.elapsed_time(end) / 1e3 if self.cuda else end - start

    def once(self, function: Callable, calls: int = 1) -> tuple[float, Any]:
        """Seconds for one call, from `calls` of them in a row, and what the last returned."""
        if self.cuda:
            self.wait()
            self.flushed.zero_()
        if self.settle:
            time.sleep(self.settle)
            torch.ones(WAKING, device="cpu").mul_(2)
        start = self.mark()
        for _ in range(calls):
            result = function()
        end = self.mark()
        self.wait()
        return self.between(start, end) / calls, result

    def by_turns(
        self, contenders: dict[str, Callable], check: Callable[[str, Any], str], compiles: bool = False
    ) -> Turns:
        """Seconds of each contender in each repeat; `check(name, result)` says what each one's results are worth.

        The first, untimed round warms up; where a round alone takes longer than `seconds`, it is the measurement, and
        a second one where the first compiles. First and last results are checked. A contender that fails drops out.
        """
        turns = Turns({}, {})
        for name, function in contenders.items():
            if self.left() <= 0:
                break
            with self.may_fail(name, turns):
                seconds, result = self.once(function)
                turns.checks[name] = check(name, result)
                del result
                turns.times[name] = [self.once(function)[0] if self.cuda or compiles else seconds]
        if self.left() <= 0 or sum(seconds for [seconds] in turns.times.values()) > self.seconds:
            return turns
        for name, last in self._repeat(contenders, turns).items():
            with self.may_fail(name, turns):
                again = check(name, last)
                turns.checks[name] += "" if again == turns.checks[name] else f", the last result {again}"
        return turns

    def _repeat(self, contenders: dict[str, Callable], turns: Turns) -> dict[str, Any]:
        """Time the contenders that are left by turns. -> each one's last result"""
        calls, last = {}, {}
        for name, [first] in turns.times.items():
            few = self.cuda or first > 0.05
            calls[name] = 1 if few else max(1, int(0.005 / self.once(contenders[name])[0]))
            turns.times[name] = []
        start = time.perf_counter()
        for repeat in range(self.repeats):
            if repeat and (self.left() <= 0 or (repeat >= 3 and time.perf_counter() - start > self.seconds)):
                break
            for name in list(turns.times):
                with self.may_fail(name, turns):
                    seconds, last[name] = self.once(contenders[name], calls[name])
                    turns.times[name].append(seconds)
        return {name: last[name] for name in turns.times}

    @contextmanager
    def may_fail(self, name: str, turns: Turns) -> Iterator[None]:
        """What fails in the block costs the contender its times, and is told in its check."""
        try:
            yield
        except Exception as error:  # whatever a peer raises
            turns.times.pop(name, None)
            turns.checks[name] = failure(error)
            self.recover()

    def recover(self) -> None:
        """After a failure. Raises what torch raises where the device itself is lost."""
        if self.cuda:
            self.wait()
            torch.cuda.empty_cache()


def failure(error: Exception) -> str:
    """One line that says what failed."""
    lines = str(error).strip().splitlines() or [""]
    return f"failed: {type(error).__name__}: {lines[0][:200]}"


def ratio(peer: list[float], ours: list[float]) -> float:
    """The median over the repeats of how many times longer the peer took."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def figures(seconds: list[float], floor: float | None, peer: list[float] | None) -> Row:
    """What a contender's repeats come to, beside its floor and the first peer's repeats."""
    p10, median, p90 = (float(value) for value in np.percentile(seconds, [10, 50, 90]))
    return {
        "repeats": len(seconds),
        "seconds": median,
        "seconds_p10": p10,
        "seconds_p90": p90,
        "floor": floor,
        "share_of_floor": floor and floor / median,
        "against_torch": ratio(peer, seconds) if peer else None,
    }


def extra_memory(function: Callable, device: torch.device) -> int | None:
    """Bytes by which one call raises the peak above what is held before it; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not serve this one unseen
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak resident set anew
    except (AttributeError, OSError):
        return None

    def resident(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) * 1024

    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before
