"""What both benchmarks measure with: a clock by turns, peak memory, and the device's own rates."""

import ctypes
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NEED = "install what the benchmark compares with: pip install -e '.[bench]'"

Row = dict[str, Any]  # of the table of figures, by the names of its columns


class Clock:
    """Times contenders by turns on one device."""

    def __init__(self, device: torch.device, repeats: int, seconds: float):
        self.device, self.repeats, self.seconds = device, repeats, seconds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, function: Callable, calls: int = 1) -> tuple[float, object]:
        """Seconds for one call, from `calls` of them in a row, and what the last returned."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        self.wait()
        return (time.perf_counter() - start) / calls, result

    def by_turns(self, contenders: dict[str, Callable], check: Callable[[str, object], None]) -> dict[str, list[float]]:
        """Seconds of each contender in each repeat; `check(name, result)` sees each one's first result.

        The first, untimed round warms up; where it alone takes longer than `seconds`, it is the measurement.
        """
        first = {}
        for name, function in contenders.items():
            first[name], result = self.once(function)
            check(name, result)
            del result
        if sum(first.values()) > self.seconds:
            return {name: [seconds] for name, seconds in first.items()}
        calls, times = {}, {name: [] for name in contenders}
        for name, function in contenders.items():
            calls[name] = 1 if first[name] > 0.05 else max(1, int(0.005 / self.once(function)[0]))
        start = time.perf_counter()
        for repeat in range(self.repeats):
            if repeat >= 3 and time.perf_counter() - start > self.seconds:
                break
            for name, function in contenders.items():
                times[name].append(self.once(function, calls[name])[0])
        return times


def ratio(peer: list[float], ours: list[float]) -> float:
    """The median over the repeats of how many times longer the peer took."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def figures(seconds: list[float], floor: float, peer: list[float]) -> Row:
    """What a contender's repeats come to, beside its floor and transformers' repeats."""
    median = statistics.median(seconds)
    return {
        "repeats": len(seconds),
        "seconds": median,
        "floor": floor,
        "share_of_floor": floor / median,
        "against_torch": ratio(peer, seconds),
    }


def extra_memory(function: Callable, device: torch.device) -> int | None:
    """Bytes by which one call raises the peak above what is held before it; None where the system does not tell."""
    if device.type == "cuda":
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


def measure_device(clock: Clock) -> dict[str, float]:
    """Copy bandwidth in bytes read and written a second, and matrix rates in operations a second by dtype."""
    device, cuda = clock.device, clock.device.type == "cuda"
    source = torch.ones(2**28 if cuda else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = min(clock.once(lambda: target.copy_(source))[0] for _ in range(8))
    measured = {"bandwidth": 2 * source.nbytes / seconds}
    n = 8192 if cuda else 2048
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        product = functools.partial(torch.matmul, a, b, out=out)
        measured[str(dtype)] = 2 * n**3 / min(clock.once(product)[0] for _ in range(5))
    return measured
