"""The kernels' search on a GPU from within: the time of each phase, and the tiles that would scan faster.

Both replace functions of `mips_topk.py` while they measure, by name: the phases are the functions that its `PHASES`
names, and what tile a scan takes is said by its `scan_config(dtype, queries, d)`.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .bench_clock import Clock, Row, figures, ratio
from .bench_search import Searched, floor_of

OWN = "as it is"  # the configuration that the kernels choose themselves
ONE_QUERY_TILES = ((16, None), (32, None), (64, None), (128, None))  # rows, queries
TILES = ((64, 64), (128, 32), (128, 64), (128, 128), (256, 64))
ONE_QUERY_WARPS, WARPS = (4,), (4, 8)  # a scan for one query is always launched with four
STAGES = (2, 3, 4)
OTHER = "other"  # than any phase: the host's work between them, mostly


def kernels() -> ModuleType:
    """The module of the search's kernels, which needs Triton."""
    from . import mips_topk

    return mips_topk


@contextmanager
def phases_marked(module: Any, clock: Clock) -> Iterator[list[tuple[str, Any, Any]]]:
    """Every call of the module's phases while the block lasts, as (name, mark before, mark after)."""
    marks: list[tuple[str, Any, Any]] = []
    functions = {name: getattr(module, name) for name in getattr(module, "PHASES", ()) if hasattr(module, name)}

    def marked(name: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            start = clock.mark()
            result = function(*arguments, **named)
            marks.append((name, start, clock.mark()))
            return result

        return call

    try:
        for name, function in functions.items():
            setattr(module, name, marked(name, function))
        yield marks
    finally:
        for name, function in functions.items():
            setattr(module, name, function)


def phase_times(clock: Clock, module: Any, function: Callable) -> dict[str, list[float]]:
    """Seconds of each phase in each repeat of a call that searches with the module; none if it names no phases."""
    times: dict[str, list[float]] = {}
    if not getattr(module, "PHASES", ()):
        return times
    function()  # warms up
    with phases_marked(module, clock) as marks:
        for _ in range(clock.repeats):
            marks.clear()
            whole, _ = clock.once(function)
            taken = dict.fromkeys(module.PHASES, 0.0)
            for name, start, end in marks:
                taken[name] += clock.between(start, end)
            taken[OTHER] = whole - sum(taken.values())
            for name, seconds in taken.items():
                times.setdefault(name, []).append(seconds)
    return times


def phase_rows(searched: Searched, module: Any, count: int, k: int) -> Iterator[Row]:
    """What each phase of a search takes, for an index of each compression."""
    for contender, index in searched.indexes.items():
        search = functools.partial(index.search, searched.queries[:count], k)
        for phase, seconds in phase_times(searched.clock, module, search).items():
            row: Row = {"section": f"phase {phase}", "contender": contender, "blocks": len(searched.blocks)}
            row |= {"queries": count, "k": k}
            floor = floor_of(searched, contender, count) if phase == "scan" else {"floor": None}
            yield row | figures(seconds, floor["floor"], None) | floor


@contextmanager
def configured(module: Any, changes: dict[str, int | None]) -> Iterator[None]:
    """Let the module's scans be launched with other numbers than its own, where it has such numbers."""
    original = getattr(module, "scan_config", None)
    if original is None or not changes:
        yield
        return

    def scan_config(*arguments: Any, **named: Any) -> dict[str, Any]:
        own = dict(original(*arguments, **named))
        one = (own.get("BLOCK_Q") or 1) == 1
        for name, value in changes.items():
            if value is not None and name in own and not (name == "BLOCK_Q" and one):
                own[name] = value
        return own

    module.scan_config = scan_config
    try:
        yield
    finally:
        module.scan_config = original


def configurations(
    tiles: list[tuple[int, int | None]] | None, warps: list[int] | None, stages: list[int] | None, queries: int
) -> list[dict[str, int | None]]:
    """Every combination of what is to be tried for a number of queries, mixed: the time may end before they do."""
    tiles = tiles or list(ONE_QUERY_TILES if queries == 1 else TILES)
    warps = warps or list(ONE_QUERY_WARPS if queries == 1 else WARPS)
    tried = [
        {"ROWS": rows, "BLOCK_Q": block_q, "num_warps": warp, "num_stages": stage}
        for (rows, block_q), warp, stage in itertools.product(tiles, warps, stages or STAGES)
    ]
    random.Random(0).shuffle(tried)
    return tried


def shown(changes: dict[str, int | None]) -> str:
    """A configuration in a word: ROWS=128 BLOCK_Q=64 num_warps=4 num_stages=3."""
    return " ".join(f"{name}={value}" for name, value in changes.items() if value is not None) or OWN


def sweep_rows(
    searched: Searched, module: Any, name: str, count: int, k: int, tried: list[dict[str, int | None]]
) -> Iterator[Row]:
    """One index's search with each configuration, against the kernels' own by turns; each result is checked."""
    asked, index = searched.queries[:count], searched.indexes[name]

    def search(changes: dict[str, int | None]) -> Any:
        with configured(module, changes):
            return index.search(asked, k)

    contenders = {shown(changes): functools.partial(search, changes) for changes in ({}, *tried)}
    turns = searched.clock.by_turns(contenders, lambda _, result: searched.oracle.check(result, count, k))
    for config, check in turns.checks.items():
        row: Row = {"section": "sweep", "contender": name, "blocks": len(searched.blocks), "queries": count, "k": k}
        row |= {"config": config, "check": check}
        if config in turns.times:
            floor = floor_of(searched, name, count)
            row |= figures(turns.times[config], floor["floor"], None) | floor
            own = turns.times.get(OWN)
            row["against_own"] = ratio(own, turns.times[config]) if own else None
        yield row
