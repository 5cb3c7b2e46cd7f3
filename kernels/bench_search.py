"""The benchmark of the search: each way to the k best blocks, timed, checked in float64, held to its floor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realm_min.search.mips import COMPRESSIONS, BlockIndex, mips_topk

from .bench_clock import Clock, Row, Turns, extra_memory, figures, ratio
from .bench_peers import COMPILED, NOT_EXACT, Search, scores_then_topk, search_peers

DIMENSIONS = 128
CHECKED_QUERIES = 8  # of many, the first and the last among them
MEASURED_MEMORY = 64  # queries at which the extra memory of a search is measured
SIZES = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes an element


def random_blocks(n: int, device: torch.device, seed: int) -> Tensor:
    """Standard normal [n, D], the same rows for any n."""
    blocks = torch.empty(n, DIMENSIONS, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for rows in blocks.split(1 << 18):
        rows.copy_(torch.randn(1 << 18, DIMENSIONS, device=device, generator=generator)[: len(rows)])
    return blocks


class Oracle:
    """The exact top-k: inner products in float64, rounded to float32, equal ones by ascending id."""

    def __init__(self, blocks: Tensor, queries: Tensor):
        self.blocks, self.queries = blocks, queries
        self.scores = functools.lru_cache(maxsize=1)(self._scores)
        self.top = functools.lru_cache(maxsize=1)(self._top)

    def rows(self, count: int) -> tuple[int, ...]:
        """Which of `count` queries are checked."""
        some = min(count, CHECKED_QUERIES)
        return tuple(round(i * (count - 1) / max(1, some - 1)) for i in range(some))

    def _scores(self, rows: tuple[int, ...]) -> Tensor:
        queries = self.queries[list(rows)].double()
        pieces = [(queries @ piece.double().t()).float() for piece in self.blocks.split(1 << 18)]
        return torch.cat(pieces, 1)  # [rows, N]

    def _top(self, count: int, k: int) -> list[tuple[Tensor, Tensor]]:
        found = []
        for scores in self.scores(self.rows(count)):
            ids = (scores >= scores.topk(k).values[-1]).nonzero()[:, 0]  # ascending
            ids = ids[scores[ids].sort(descending=True, stable=True).indices[:k]]
            found.append((scores[ids], ids))
        return found

    def check(self, found: tuple[Tensor, Tensor], count: int, k: int) -> str:
        """ "exact" where scores and ids are the oracle's own, else how far off they are."""
        scores, ids = found
        rows, wanted = self.rows(count), self.top(count, k)
        if scores.shape != (count, k) or ids.shape != (count, k):
            return f"wrong: {tuple(scores.shape)} scores, {tuple(ids.shape)} ids"
        if all(torch.equal(scores[r], s) and torch.equal(ids[r], i) for r, (s, i) in zip(rows, wanted, strict=True)):
            return "exact"
        error = max(float((scores[r] - s).abs().max()) for r, (s, _) in zip(rows, wanted, strict=True))
        missed = sum(k - int(torch.isin(i, ids[r]).sum()) for r, (_, i) in zip(rows, wanted, strict=True))
        return f"error {error:.0e}, {missed} of {k * len(rows)} missed"

    def share_of_ids(self, found: tuple[Tensor, Tensor], count: int, k: int) -> str:
        """For what is not meant to be exact: how many of the right ids it has."""
        rows, wanted = self.rows(count), self.top(count, k)
        right = sum(int(torch.isin(i, found[1][r]).sum()) for r, (_, i) in zip(rows, wanted, strict=True))
        return f"not exact: {right / (k * len(rows)):.2%} of the ids"


class Searched(NamedTuple):
    """Blocks and queries, and all that is timed on them."""

    clock: Clock
    measured: dict[str, float]
    blocks: Tensor  # [N, D]
    queries: Tensor  # [largest number, D]
    oracle: Oracle
    searches: dict[str, Search]  # of all contenders, the peers first
    indexes: dict[str, BlockIndex]  # those among them that are ours


def prepare(
    clock: Clock, measured: dict[str, float], blocks: Tensor, queries: Tensor, peers: tuple[str, ...], threads: int
) -> Searched:
    """The wanted peers, the plain function, and an index of every compression over blocks [N, D]."""
    indexes = indexes_of(blocks, COMPRESSIONS)
    searches = search_peers(blocks, peers, threads)
    searches["mips_topk"] = lambda queries, k: mips_topk(queries, blocks, k)
    searches |= {name: index.search for name, index in indexes.items()}
    return Searched(clock, measured, blocks, queries, Oracle(blocks, queries), searches, indexes)


def indexes_of(blocks: Tensor, compressions: tuple[str | None, ...]) -> dict[str, BlockIndex]:
    """An index for each compression, under its contender's name."""
    return {f"index {kind or 'float32'}": BlockIndex(blocks, kind) for kind in compressions}


def what_is_read(index: BlockIndex | None) -> str:
    """The element type of what a scan of the index reads: on a CPU it may be the blocks for all its compression."""
    if index is None or getattr(index, "scan", None) == "blocks":
        return "float32"
    return index.compression or "float32"


def arithmetic(name: str, read: str, queries: int, cuda: bool) -> str:
    """In what a contender multiplies what it reads: a key of the measured rates."""
    if name in NOT_EXACT:
        return name.removeprefix("torch ")
    if name != "mips_topk" and not name.startswith("index"):
        return "float32"
    if read == "int8":
        return "int8" if cuda else "float32"
    if cuda and queries == 1:
        return "float32"  # on the ordinary cores
    return {"float32": "tf32" if cuda else "float32", "bfloat16": "bfloat16"}[read]


def search_floor(measured: dict[str, float], n: int, queries: int, read: str, products: str) -> tuple[float, str]:
    """Seconds that the scan must take, and what limits it: its bytes read once, or its products at their rate."""
    memory = n * DIMENSIONS * SIZES[read] / measured["bandwidth"]
    multiplied = 2 * queries * n * DIMENSIONS / measured.get(products, float("inf"))
    return (memory, "memory") if memory >= multiplied else (multiplied, products)


def floor_of(searched: Searched, name: str, queries: int) -> Row:
    """The columns of a contender's floor."""
    read = "bfloat16" if name == "torch bfloat16" else what_is_read(searched.indexes.get(name))
    products = arithmetic(name, read, queries, searched.clock.cuda)
    floor, limited_by = search_floor(searched.measured, len(searched.blocks), queries, read, products)
    return {"floor": floor, "limited_by": limited_by}


def search_rows(searched: Searched, count: int, k: int, compiles: bool = False) -> Iterator[Row]:
    """Every contender at a number of queries and k; or, where it `compiles`, what is compiled against the first."""
    asked, oracle = searched.queries[:count], searched.oracle
    contenders = {
        name: functools.partial(search, asked, k)
        for name, search in searched.searches.items()
        if name == "torch" or (name == COMPILED) == compiles
    }

    def check(name: str, result: Any) -> str:
        return (oracle.share_of_ids if name in NOT_EXACT else oracle.check)(result, count, k)

    turns = searched.clock.by_turns(contenders, check, compiles)
    for name in turns.checks:
        if not (compiles and name == "torch"):
            yield search_row(searched, turns, name, contenders[name], count, k)


def search_row(searched: Searched, turns: Turns, name: str, function: Callable, count: int, k: int) -> Row:
    clock, times = searched.clock, turns.times
    row: Row = {"section": "search", "contender": name, "blocks": len(searched.blocks), "queries": count, "k": k}
    row |= {"check": turns.checks[name]}
    if name not in times:
        return row
    row |= floor_of(searched, name, count)
    row |= figures(times[name], row["floor"], times.get("torch"))
    row["against_faiss"] = ratio(times["faiss"], times[name]) if "faiss" in times else None
    row["checked_queries"] = len(searched.oracle.rows(count))
    index = searched.indexes.get(name)
    if count == MEASURED_MEMORY and (clock.cuda or index or name == "mips_topk"):
        row["extra_bytes"] = extra_memory(function, clock.device)
    return row | rescored(index)


def rescored(index: BlockIndex | None) -> Row:
    """The columns of what the last search of an index rescored, a query."""
    report = None if index is None else index.last_search
    if report is None:
        return {}
    means = {}
    for name in ("rescored_groups", "rescored_rows"):
        value = getattr(report, name, None)
        means[name] = None if value is None else float(torch.as_tensor(value, device="cpu").double().mean())
    return means | {"groups": report.groups}


def growth_rows(searched: Searched, blocks: Tensor, section: str, points: list[tuple[int, int]]) -> Iterator[Row]:
    """One query: time against the number of blocks, or against k, at each point (blocks, k)."""
    part = None
    for n, k in points:
        if searched.clock.left() <= 0:
            return
        if part is None or len(part.blocks) != n:
            part = None  # before the next indexes take its memory
            rows = blocks[:n]
            indexes = indexes_of(rows, (None, "int8"))
            searches: dict[str, Search] = {"torch": functools.partial(scores_then_topk, rows)}
            searches |= {name: index.search for name, index in indexes.items()}
            oracle = Oracle(rows, searched.queries)
            part = searched._replace(blocks=rows, oracle=oracle, searches=searches, indexes=indexes)
        yield from (row | {"section": f"time against {section}"} for row in search_rows(part, 1, k))
