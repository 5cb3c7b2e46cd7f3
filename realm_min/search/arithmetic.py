"""Which scan is the fastest on this machine, measured once: what it reads, and what multiplies it (`scan.py`).

Products of a matrix by one vector differ by up to two between torch and NumPy, either way, from processor to processor,
and products of bfloat16 and int8 are many times as slow as those of float32 where there are no instructions for them.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from .bounds import BASE_GROUP, Codes, scan_queries
from .scan import is_native, pairs_reaching, query_dtype, scan_errors

SCANS = ("codes", "blocks")
SAMPLE_ROWS = {1: 1 << 16, 8: 1 << 15, 64: 1 << 14}  # timed at once, for so many queries
SETTLE = 0.1  # seconds: threads of the other library wait for work that long, and take the cores meanwhile
REPEATS = 4  # of what is timed, after once that is not; the fastest counts
HOPELESS = 3  # times the best: what took as long is timed once
AFTER_NUMPY = 1.5  # NumPy must be so much faster: what torch does next has to share a core with threads that still wait
QUERIES = tuple(SAMPLE_ROWS)  # at once, that are measured


class Way(NamedTuple):
    """What a scan reads, the index's "codes" or the "blocks" as they are, and in which arithmetic."""

    scan: str
    arithmetic: str

    def __str__(self) -> str:
        return f"{self.scan} by {self.arithmetic}"


def measured_queries(count: int) -> int:
    """The number of queries whose measurement `count` queries go by."""
    return next((q for q in QUERIES if count <= 2 * q - 1), QUERIES[-1])


@functools.lru_cache(maxsize=64)
def fastest(
    dtypes: tuple[tuple[str, torch.dtype], ...],
    arithmetics: tuple[str, ...],
    dimensions: int,
    queries: int,
    threads: int,
    fill_norms: bool,
) -> Way:
    """The fastest way to scan, of `dtypes`, each a scan and the dtype that it reads, and of `arithmetics`.

    threads: of torch. Where it was told to use fewer than there are cores, NumPy, which was not told, is not asked.
    fill_norms: the scan takes the norms of the rows too.
    """
    found = ways(dtypes, arithmetics, threads)
    samples = {dtype: _sample(dtype, dimensions, SAMPLE_ROWS[queries]) for _, dtype in found}
    return quickest({way: _sample_scan(way, samples[dtype], queries, fill_norms) for way, dtype in found})


def ways(
    dtypes: tuple[tuple[str, torch.dtype], ...], arithmetics: tuple[str, ...], threads: int
) -> list[tuple[Way, torch.dtype]]:
    """All ways to scan, with the dtype that each reads; the ones that may be hopeless come last."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = []
    for arithmetic in arithmetics:
        told = arithmetic == "numpy" and threads < cores and len(arithmetics) > 1
        for scan, dtype in dtypes:
            if not told and (arithmetic != "native" or len(arithmetics) == 1 or is_native(dtype, arithmetic)):
                found.append((Way(scan, arithmetic), dtype))
    return found


def quickest(works: dict[Way, Callable[[], object]]) -> Way:
    """The one that takes the least time; of equals, the first."""
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
            seconds *= AFTER_NUMPY
        if seconds < least:
            best, least = way, seconds
    return best


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _sample(dtype: torch.dtype, dimensions: int, rows: int) -> Codes:
    """Made-up rows: `rows` for each time that they are scanned, since what was scanned last would be in cache."""
    n = (1 + REPEATS) * rows
    bases = n // BASE_GROUP
    scale = torch.ones(bases, dtype=torch.float32, device="cpu") if dtype == torch.int8 else None
    norm = torch.ones(bases, dtype=torch.float64, device="cpu")
    return Codes(torch.ones(n, dimensions, dtype=dtype, device="cpu"), scale, 0, None, norm)


def _sample_scan(way: Way, codes: Codes, queries: int, fill_norms: bool) -> Callable[[], object]:
    """A scan of the next rows of a sample, none of which passes, to be timed."""
    asked = torch.ones(queries, codes.codes.shape[1], dtype=torch.float32, device="cpu")
    scanned = scan_queries(asked, codes, query_dtype(codes, way.arithmetic))
    thresholds = torch.full((queries,), 1e9, dtype=torch.float64, device="cpu")
    weights = scanned.limit_weights(thresholds, scan_errors(codes, way.arithmetic))
    n, rows = len(codes.codes), SAMPLE_ROWS[queries]
    starts = itertools.cycle(range(0, n, rows))

    def scan() -> object:
        start = next(starts)
        part = range(start, start + rows)
        return pairs_reaching(codes, scanned, weights, part, way.arithmetic, fill_norms and way.scan == "blocks")

    return scan
