"""The exact search on a CPU: guess a threshold, scan for what reaches it, certify, rescore. See the head of `mips.py`.

Symbols: Q queries, N blocks, D dimensions, S rows in the sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

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
    of_query,
    pair_ends,
    refuse_non_finite,
)
from .rescore import NO_KEY, exact_keys, largest_keys, unpack_keys
from .scan import Pairs, all_products, coded_queries, pairs_reaching, scan_errors

QUERIES_AT_ONCE = 64  # in one pass over the blocks
SAMPLE_ROWS = (1 << 12, 1 << 14)  # that a threshold is guessed from, at least and at most, for small and large k
SAMPLE_ROWS_A_QUERY = 1 << 10  # as well: more rows guess better, and leave each query fewer pairs
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
    queries: Tensor, blocks: Tensor, codes: Codes, k: int, arithmetic: str, sample: Codes | None = None
) -> tuple[Tensor, Tensor, SearchReport]:
    """Exact top-k of queries [Q, D] over blocks [N, D] scanned through `codes`. -> scores, ids, report

    codes: without norms, they are taken while scanning, and blocks that are not finite refused.
    sample: `sample_codes` of them, where they were kept; rows all over the memory take long to fetch.
    """
    report = SearchReport(BASE_GROUP, -(-blocks.shape[0] // BASE_GROUP), [], [])
    keys = torch.empty(queries.shape[0], k, dtype=torch.int64, device="cpu")
    fill_norms = codes.norm is None
    if fill_norms:
        codes = Codes(codes.codes, None, 0, None, torch.empty(report.groups, dtype=torch.float64, device="cpu"))
    for start in range(0, queries.shape[0], QUERIES_AT_ONCE):
        coded = coded_queries(queries[start : start + QUERIES_AT_ONCE], codes, arithmetic)
        found = _Found.none(keys[start : start + QUERIES_AT_ONCE])
        with np.errstate(over="ignore", invalid="ignore"):
            _Search(blocks, codes, sample, k, arithmetic, fill_norms).answer(coded, found)
        report.rescored_groups += found.groups.tolist()
        report.rescored_rows += found.rows.tolist()
        fill_norms = False
    return *unpack_keys(keys), report


class _Found(NamedTuple):
    """Of Q queries, so far."""

    keys: Tensor  # [Q, k] int64, best first; NO_KEY where there is none yet
    groups: np.ndarray  # [Q] int64, rescored
    rows: np.ndarray  # [Q] int64, rescored

    @staticmethod
    def none(keys: Tensor) -> _Found:
        return _Found(keys.fill_(NO_KEY), *np.zeros((2, len(keys)), np.int64))

    def thresholds(self) -> np.ndarray:
        """What the last of its answers is above, -inf where there are fewer than k: [Q] float64."""
        last = self.keys[:, -1]
        return np.where(last.numpy() == NO_KEY, -np.inf, just_below(unpack_keys(last)[0].numpy()))


@dataclass
class _Search:
    """Some queries' search: what its steps share."""

    blocks: Tensor  # [N, D]
    codes: Codes
    sample: Codes | None
    k: int
    arithmetic: str
    fill_norms: bool  # of the codes, which have none yet

    def answer(self, queries: ScanQueries, found: _Found) -> None:
        """Find the k best of each query; `fill_norms` has been done."""
        sample = _Sample(self, queries)
        wanted, rank = np.arange(len(found.keys)), sample.first_rank(self.k)
        while len(wanted):
            guess = sample.thresholds(rank)[wanted]
            some = _Found.none(torch.empty(len(wanted), self.k, dtype=torch.int64, device="cpu"))
            asked = queries if len(wanted) == len(found.keys) else queries.select(torch.from_numpy(wanted))
            self._keep(asked, guess.copy(), some)
            self.fill_norms = False
            found.keys.numpy()[wanted] = some.keys.numpy()
            found.groups[wanted] += some.groups
            found.rows[wanted] += some.rows
            if rank > self.k:
                break  # all rows were kept
            # Whatever was not kept is below the guess; so is no answer, where the k-th best is not.
            wanted = wanted[(some.keys[:, -1].numpy() == NO_KEY) | ~(some.thresholds() >= guess)]
            # What k rows of the sample reach, k of all do, unless blocks have changed since they were compressed.
            rank = self.k + len(self.blocks) if rank == self.k else min(self.k, 4 * rank)
        if (found.keys[:, -1] == NO_KEY).any():
            refuse_non_finite(self.blocks, 0)

    def _keep(self, queries: ScanQueries, thresholds: np.ndarray, found: _Found) -> None:
        """Scan all rows, and choose the best of those that reach thresholds [q], which rise on the way."""
        errors = scan_errors(self.codes, self.arithmetic)
        n, q = len(self.blocks), len(thresholds)
        step = max(1, PAIRS // (q * BASE_GROUP)) * BASE_GROUP
        waiting: list[Pairs] = []
        for start in range(0, n, step):
            rows = range(start, min(start + step, n))
            weights = queries.limit_weights(thresholds, errors)
            waiting.append(pairs_reaching(self.codes, queries, weights, rows, self.arithmetic, self.fill_norms))
            if rows.stop == n or sum(len(pairs.rows) for pairs in waiting) > PAIRS:
                self._choose(Pairs.join(waiting), queries, thresholds, found)
                waiting = []

    def _choose(self, pairs: Pairs, queries: ScanQueries, thresholds: np.ndarray, found: _Found) -> None:
        """Certify and rescore the pairs, and raise the thresholds to what was found."""
        rows, query, values = _by_query(pairs, len(thresholds))
        base = rows // BASE_GROUP
        lower, upper = pair_ends((base, query, values), self.codes, queries, scan_errors(self.codes, self.arithmetic))
        certified = np.full_like(thresholds, -np.inf)
        for i, ends in enumerate(_split(lower, query, len(thresholds))):
            if len(ends) >= self.k:
                certified[i] = kth_largest(ends, self.k)
        kept = upper >= of_query(np.maximum(thresholds, just_below(certified)), query)
        query, rows, base = query[kept], rows[kept], base[kept]
        keys = exact_keys(self.blocks, queries.exact, torch.from_numpy(query), torch.from_numpy(rows)).numpy()
        for i, some in enumerate(_split(keys, query, len(thresholds))):
            if len(some):
                found.keys[i] = largest_keys(np.concatenate([found.keys[i].numpy(), some]), self.k)
        found.rows[:] += np.bincount(query, minlength=len(thresholds))
        first = np.ones(len(base), bool)  # of its base group's rows
        first[1:] = (base[1:] != base[:-1]) | (query[1:] != query[:-1])
        found.groups[:] += np.bincount(query[first], minlength=len(thresholds))
        np.maximum(thresholds, found.thresholds(), out=thresholds)


def _by_query(pairs: Pairs, q: int) -> Pairs:
    """The pairs by query, and by row within."""
    if q == 1:  # the scan goes through the rows in order
        return pairs
    order = np.argsort(pairs.queries.astype(np.uint8), kind="stable")
    return Pairs(*(part[order] for part in pairs))


def _split(values: np.ndarray, query: np.ndarray, q: int) -> list[np.ndarray]:
    """The values of each query, of pairs by query."""
    return np.split(values, np.searchsorted(query, np.arange(1, q)))


def sample_codes(codes: Codes, count: int) -> Codes:
    """`count` evenly spaced rows, or all where there are fewer, each a base group of its own; and so is each half."""
    n = len(codes.codes)
    rows = torch.arange(min(count, n), device="cpu") * n // min(count, n)
    rows = torch.cat([rows[::2], rows[1::2]])
    base = rows // BASE_GROUP
    some = codes.codes.index_select(0, rows)
    scale, residual, norm = (None if part is None else part[base] for part in (codes.scale, codes.residual, codes.norm))
    return Codes(some, scale, codes.exponent, residual, norm)


def first_rows(sample: Codes, count: int) -> Codes:
    """The first half of a sample, where `count` rows are not more."""
    half = -(-len(sample.codes) // 2)
    if count > half:
        return sample
    parts = sample.codes, sample.scale, sample.residual, sample.norm
    some, scale, residual, norm = (None if part is None else part[:half] for part in parts)
    assert some is not None
    return Codes(some, scale, sample.exponent, residual, norm)


class _Sample:
    """Evenly spaced rows and their scores, to guess a threshold from."""

    def __init__(self, search: _Search, queries: ScanQueries) -> None:
        self.n, self.queries = len(search.codes.codes), queries
        least, most = SAMPLE_ROWS
        wanted = min(max(4 * search.k, SAMPLE_ROWS_A_QUERY * len(queries.unit), least), most)
        self.codes = first_rows(search.sample, wanted) if search.sample else sample_codes(search.codes, wanted)
        if search.fill_norms:
            self.codes.norm = self.codes.codes.double().norm(dim=1) * (1 + 1e-12)
        self.errors = scan_errors(self.codes, search.arithmetic)
        self.values = np.ascontiguousarray(all_products(self.codes, queries, search.arithmetic).numpy().T)  # [Q, S]
        scale = self.codes.scale
        self.scores = self.values if scale is None else self.values * code_scale(scale.numpy())

    def first_rank(self, k: int) -> int:
        """The place in the sample of a score that more than k of all rows should reach."""
        share = k * len(self.codes.codes) / self.n
        if len(self.codes.codes) == self.n:
            return k
        return min(k, math.ceil(share + 4 * math.sqrt(share) + 2))  # four standard deviations, and some for small k

    def thresholds(self, rank: int) -> np.ndarray:
        """What `rank` rows of the sample reach: [Q] float64; where it has fewer, what all rows reach."""
        q, size = self.scores.shape
        if rank > size:
            return np.full(q, -np.inf)
        places = np.argpartition(self.scores, -rank, axis=1)[:, -rank:]  # [Q, rank]
        query = np.arange(q)[:, None]
        pairs = places, query, self.values[query, places].astype(np.float64)
        lower, _ = pair_ends(pairs, self.codes, self.queries, self.errors)
        return just_below(lower.min(1))
