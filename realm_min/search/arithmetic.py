"""Which scan is the fastest on this machine, measured once: what it reads, and what multiplies it (`scan.py`).

Products of a matrix by one vector differ by up to two between torch and NumPy, either way, from processor to processor,
and products of bfloat16 and int8 are many times as slow as those of float32 where there are no instructions for them.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from .bounds import BASE_GROUP, Codes
from .scan import coded_queries, is_native, pairs_reaching, scan_errors

SCANS = ("codes", "blocks")
SAMPLE_ROWS = {1: 1 << 17, 8: 1 << 16, 64: 1 << 15}  # timed at once, for so many queries
SETTLE = 0.1  # seconds: threads of the other library wait for work that long, and take the cores meanwhile
REPEATS = 4  # of what is timed, after once that is not; the fastest counts
HOPELESS = 3  # times the best: what took as long is timed once
AFTER_NUMPY = 1.5  # NumPy must be so much faster: what torch does next has to share a core with threads that still wait
# Seconds as well for each search: threads of torch, which has embedded the query, wait for work in turn. On two cores a
# search of 20,000 rows took 2.6 ms by torch after products of torch, and 15 to 22 ms by NumPy, which alone takes 2.
AFTER_TORCH = 0.02
QUERIES = tuple(SAMPLE_ROWS)  # at once, that are measured
NEVER = 1e300  # no score reaches it
_FASTEST: dict[tuple, Way] = {}  # what was measured in this process


class Way(NamedTuple):
    """What a scan reads, the index's "codes" or the "blocks" as they are, and in which arithmetic."""

    scan: str
    arithmetic: str

    def __str__(self) -> str:
        return f"{self.scan} by {self.arithmetic}"


def measured_queries(count: int) -> int:
    """The number of queries whose measurement `count` queries go by."""
    return next((q for q in QUERIES if count <= 2 * q - 1), QUERIES[-1])


def fastest(
    readable: dict[str, Codes], arithmetics: tuple[str, ...], queries: int, threads: int, fill_norms: bool
) -> Way:
    """The fastest way to scan, among what can be read, by the name of each scan, and `arithmetics`.

    It is measured on the first rows, and once a process for all that is alike. queries: one of QUERIES.
    threads: of torch. Where it was told to use fewer than there are cores, NumPy, which was not told, is not asked.
    fill_norms: the scan takes the norms of the rows too.
    """
    found = ways(readable, arithmetics, threads)
    dtypes = tuple(codes.codes.dtype for codes in readable.values())
    n, d = next(iter(readable.values())).codes.shape
    alike = (dtypes, tuple(found), d, (n * d).bit_length(), queries, threads, fill_norms)
    if alike not in _FASTEST:
        scans = {way: sample_scan(way, readable[way.scan], queries, fill_norms) for way in found}
        _FASTEST[alike] = quickest(scans, min(1.0, SAMPLE_ROWS[queries] / n))
    return _FASTEST[alike]


def ways(readable: dict[str, Codes], arithmetics: tuple[str, ...], threads: int) -> list[Way]:
    """All ways to scan what can be read; those of torch come first."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = []
    for arithmetic in sorted(arithmetics, key="numpy".__eq__):  # another library: each change is waited for
        told = arithmetic == "numpy" and threads < cores and len(arithmetics) > 1
        for scan, codes in readable.items():
            native = is_native(codes.codes.dtype, arithmetic)
            if not told and (arithmetic != "native" or len(arithmetics) == 1 or native):
                found.append(Way(scan, arithmetic))
    return found


def quickest(works: dict[Way, Callable[[], object]], share: float = 1.0) -> Way:
    """The one that takes the least time; of equals, the first. share: of a search, that each of them is."""
    best, least, library = next(iter(works)), float("inf"), None
    for way, work in works.items():
        if way.arithmetic != library:
            time.sleep(SETTLE)
        library = way.arithmetic
        _seconds(work)  # the first time, a product may be compiled
        seconds = _seconds(work)
        if seconds < HOPELESS * least:
            seconds = min(seconds, *(_seconds(work) for _ in range(REPEATS - 1)))
        if library == "numpy":
            seconds = seconds * AFTER_NUMPY + AFTER_TORCH * share
        if seconds < least:
            best, least = way, seconds
    return best


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sample_scan(way: Way, codes: Codes, queries: int, fill_norms: bool) -> Callable[[], object]:
    """A scan of the next rows, as if none of them reached its threshold, to be timed: what was scanned is in cache."""
    n, d = codes.codes.shape
    rows = min(SAMPLE_ROWS[queries], n)
    starts = itertools.cycle(range(0, n - rows + 1, -(-rows // BASE_GROUP) * BASE_GROUP))
    fill_norms = fill_norms and way.scan == "blocks"
    if fill_norms:
        bases = -(-n // BASE_GROUP)
        codes = Codes(codes.codes, None, 0, None, torch.empty(bases, dtype=torch.float64, device="cpu"))
    asked = torch.ones(queries, d, dtype=torch.float32, device="cpu")
    scanned = coded_queries(asked, codes, way.arithmetic)
    weights = scanned.limit_weights(np.full(queries, NEVER), scan_errors(codes, way.arithmetic))

    def scan() -> object:
        start = next(starts)
        return pairs_reaching(codes, scanned, weights, range(start, start + rows), way.arithmetic, fill_norms)

    return scan
