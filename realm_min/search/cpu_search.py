"""The exact search on a CPU: guess a threshold, scan for what reaches it, certify, rescore. See the head of `mips.py`.

Symbols: Q queries, N blocks, D dimensions, S rows in the sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bounds import (
    BASE_GROUP,
    Codes,
    ScanQueries,
    code_scale,
    just_below,
    kth_largest,
    pair_ends,
    refuse_non_finite,
    scan_queries,
)
from .checks import check_search
from .rescore import best_keys, largest_keys, unpack_keys
from .scan import Pairs, all_products, pairs_reaching, query_dtype, scan_errors

QUERIES_AT_ONCE = 64  # in one pass over the blocks
SAMPLE_ROWS = (1 << 12, 1 << 14)  # that a threshold is guessed from, at least and at most, for small and large k
PAIRS = 1 << 22  # of a row and a query that are kept at once; then the best of them are chosen


@dataclass
class SearchReport:
    """What one search did: rows a group, groups in the index, and for each query the groups and rows rescored.

    On a CPU a group is what shares a bound, and rescored where one of its rows was.
    """

    group_size: int
    groups: int
    rescored_groups: list[int]
    rescored_rows: list[int]


def search(
    queries: Tensor, blocks: Tensor, codes: Codes, k: int, arithmetic: str
) -> tuple[Tensor, Tensor, SearchReport]:
    """Exact top-k of queries [Q, D] over blocks [N, D] scanned through `codes`. -> scores, ids, report

    codes: without norms, they are taken while scanning, and blocks that are not finite refused.
    """
    check_search(queries, blocks, k)
    report = SearchReport(BASE_GROUP, -(-blocks.shape[0] // BASE_GROUP), [], [])
    keys = torch.empty(queries.shape[0], k, dtype=torch.int64, device="cpu")
    fill_norms = codes.norm is None
    if fill_norms:
        codes = Codes(codes.codes, None, 0, None, torch.empty(report.groups, dtype=torch.float64, device="cpu"))
    for start in range(0, queries.shape[0], QUERIES_AT_ONCE):
        coded = scan_queries(queries[start : start + QUERIES_AT_ONCE], codes, query_dtype(codes, arithmetic))
        found = _Search(blocks, codes, k, arithmetic, fill_norms).answer(coded)
        for i, best in enumerate(found):
            keys[start + i] = best.keys
            report.rescored_groups.append(best.groups)
            report.rescored_rows.append(best.rows)
        fill_norms = False
    return *unpack_keys(keys), report


@dataclass
class _Best:
    """Of one query, so far."""

    keys: Tensor  # best first, at most k
    groups: int = 0  # rescored
    rows: int = 0


@dataclass
class _Search:
    """Some queries' search: what its steps share."""

    blocks: Tensor  # [N, D]
    codes: Codes
    k: int
    arithmetic: str
    fill_norms: bool  # of the codes, which have none yet

    def answer(self, queries: ScanQueries) -> list[_Best]:
        """The k best of each query; `fill_norms` has been done."""
        sample = _Sample(self, queries)
        found = [_Best(torch.empty(0, dtype=torch.int64, device="cpu")) for _ in range(len(queries.unit))]
        wanted, rank = torch.arange(len(found), device="cpu"), sample.first_rank(self.k)
        while len(wanted):
            guess = sample.thresholds(rank)[wanted]
            some = [found[i] for i in wanted.tolist()]
            for best in some:
                best.keys = best.keys[:0]
            self._keep(queries.select(wanted), guess.clone(), some)
            self.fill_norms = False
            if rank > self.k:
                break  # all rows were kept
            # Whatever was not kept is below the guess; so is no answer, where the k-th best is not.
            reached = [
                len(best.keys) == self.k and bool(_least(best) >= g) for best, g in zip(some, guess, strict=True)
            ]
            wanted = wanted[~torch.tensor(reached, device="cpu")]
            # What k rows of the sample reach, k of all do, unless blocks have changed since they were compressed.
            rank = self.k + len(self.blocks) if rank == self.k else min(self.k, 4 * rank)
        if any(len(best.keys) < self.k for best in found):
            refuse_non_finite(self.blocks, 0)
        return found

    def _keep(self, queries: ScanQueries, thresholds: Tensor, best: list[_Best]) -> None:
        """Scan all rows, and choose the best of those that reach thresholds [q], which rise on the way."""
        errors = scan_errors(self.codes, self.arithmetic)
        n, q = len(self.blocks), len(best)
        step = max(1, PAIRS // (q * BASE_GROUP)) * BASE_GROUP
        waiting: list[Pairs] = []
        for start in range(0, n, step):
            rows = range(start, min(start + step, n))
            weights = queries.limit_weights(thresholds, errors)
            waiting.append(pairs_reaching(self.codes, queries, weights, rows, self.arithmetic, self.fill_norms))
            if rows.stop == n or sum(len(pairs.rows) for pairs in waiting) > PAIRS:
                self._choose(Pairs.join(waiting), queries, thresholds, best)
                waiting = []

    def _choose(self, pairs: Pairs, queries: ScanQueries, thresholds: Tensor, best: list[_Best]) -> None:
        """Certify and rescore the pairs, query by query, and raise the thresholds to what was found."""
        errors = scan_errors(self.codes, self.arithmetic)
        for i, rows, values in _by_query(pairs, len(best)):
            query = torch.full_like(rows, i)
            lower, upper = pair_ends((rows // BASE_GROUP, query, values), self.codes, queries, errors)
            if len(lower) >= self.k:
                threshold = just_below(kth_largest(lower[None], self.k))
                rows = rows[upper >= torch.maximum(threshold, thresholds[i])]
            rows = rows.sort().values
            keys = best_keys(self.blocks, queries.exact[i], rows, self.k)
            best[i].keys = largest_keys(torch.cat([best[i].keys, keys]), self.k)
            best[i].rows += len(rows)
            best[i].groups += len((rows // BASE_GROUP).unique_consecutive())
            if len(best[i].keys) == self.k:
                thresholds[i] = torch.maximum(thresholds[i], _least(best[i]))


def _least(best: _Best) -> Tensor:
    """What the last of its answers is above: [] float64."""
    return just_below(unpack_keys(best.keys[-1:])[0])[0]


def _by_query(pairs: Pairs, q: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The pairs of each query that has some: its number, rows and values."""
    order = np.argsort(pairs.queries.astype(np.uint8), kind="stable") if q > 1 else slice(None)
    rows, values = torch.from_numpy(pairs.rows[order]), torch.from_numpy(pairs.values[order])
    counts = np.bincount(pairs.queries, minlength=q).tolist()
    for i, (some, of_them) in enumerate(zip(rows.split(counts), values.split(counts), strict=True)):
        if len(some):
            yield i, some, of_them


class _Sample:
    """Evenly spaced rows and their scores, to guess a threshold from."""

    def __init__(self, search: _Search, queries: ScanQueries) -> None:
        codes = search.codes
        self.n, self.queries = len(codes.codes), queries
        least, most = SAMPLE_ROWS
        rows = torch.arange(0, self.n, -(-self.n // min(max(4 * search.k, least), most)), device="cpu")
        base = rows // BASE_GROUP
        some = codes.codes.index_select(0, rows)
        scale, residual, norm = (
            None if part is None else part[base] for part in (codes.scale, codes.residual, codes.norm)
        )
        if search.fill_norms:
            norm = some.double().norm(dim=1) * (1 + 1e-12)
        self.codes = Codes(some, scale, codes.exponent, residual, norm)  # each row a group of its own
        self.errors = scan_errors(codes, search.arithmetic)
        self.values = all_products(self.codes, queries, search.arithmetic).t().contiguous()  # [Q, S]
        self.scores = self.values if scale is None else self.values * code_scale(scale)

    def first_rank(self, k: int) -> int:
        """The place in the sample of a score that more than k of all rows should reach."""
        share = k * len(self.codes.codes) / self.n
        if len(self.codes.codes) == self.n:
            return k
        return min(k, math.ceil(share + 4 * math.sqrt(share) + 4))  # four standard deviations, and a few for small k

    def thresholds(self, rank: int) -> Tensor:
        """What `rank` rows of the sample reach: [Q] float64; where it has fewer, what all rows reach."""
        if rank > self.scores.shape[1]:
            return torch.full((len(self.scores),), -math.inf, dtype=torch.float64, device="cpu")
        places = torch.from_numpy(np.argpartition(self.scores.numpy(), -rank, axis=1)[:, -rank:].copy())  # [Q, rank]
        query = torch.arange(len(places), device="cpu")[:, None].expand_as(places)
        values = self.values.gather(1, places).double()
        lower, _ = pair_ends((places, query, values), self.codes, self.queries, self.errors)
        return just_below(lower.amin(1))
