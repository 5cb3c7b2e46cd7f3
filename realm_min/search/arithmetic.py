"""Products for the scan of a search, by what multiplies the fastest on this machine: measured, not guessed.

torch's library of products and NumPy's differ by up to two either way from processor to processor (a matrix by one
vector), and products of bfloat16 and int8 are many times as slow as those of float32 where there are no instructions
for them. Whatever is
chosen, a search returns the same bits: its bounds hold for a sum in any order.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

GROUP = 16  # rows whose maximum is taken, in what is timed
REPEATS = 3  # of what is timed, after once that is not; the fastest counts
SAMPLE = (1 << 14, 128)  # rows and columns of a product that is timed: 8 MB, more than a second-level cache


def faster_scan(*scans: Callable[[], object], names: Sequence[str]) -> str:
    """The name of the fastest of `scans`; of equals, the first."""
    seconds = [seconds_of(scan) for scan in scans]
    return names[seconds.index(min(seconds))]


def seconds_of(work: Callable[[], object]) -> float:
    """The fastest of some repeats."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, [rows, inner] by [inner, columns]; int8 gives int32."""
    if a.dtype == torch.int8:
        torch._int_mm(a, b, out=out)  # pyright: ignore[reportPrivateImportUsage] (torch's only product of int8)
    elif b.shape[1] == 1:
        torch.mv(a, b[:, 0], out=out[:, 0])
    else:
        torch.mm(a, b, out=out)


def group_maxima(rows: Tensor, query: Tensor, group: int) -> np.ndarray:
    """The largest score of every `group` consecutive rows, the last group maybe short, by NumPy alone.

    rows [n, D], query [D], float32 -> [groups] float32. Nothing of torch's runs in between: threads of both libraries,
    each waiting for work, would take the cores from each other.
    """
    scores = np.dot(rows.numpy(), query.numpy())  # [n]
    whole = len(scores) // group * group
    maxima = scores[:whole].reshape(-1, group).max(1)
    return maxima if whole == len(scores) else np.append(maxima, scores[whole:].max())


@functools.lru_cache(maxsize=8)
def library(threads: int) -> str:
    """Whose product of a matrix with one vector is the faster here, "torch" or "numpy", maxima included.

    threads: of torch. Where it was told to use fewer than there are cores, NumPy, which was not told, is not asked.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < cores:
        return "torch"
    rows, query = (torch.ones(shape, dtype=torch.float32) for shape in (SAMPLE, SAMPLE[1]))
    out = torch.empty(SAMPLE[0], dtype=torch.float32)
    return faster_scan(
        lambda: torch.mv(rows, query, out=out).view(-1, GROUP).amax(1),
        lambda: group_maxima(rows, query, GROUP),
        names=("torch", "numpy"),
    )
