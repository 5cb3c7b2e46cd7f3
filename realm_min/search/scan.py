"""The scan of a search on a CPU: which rows may score as high as a threshold.

Every row's code is multiplied by every query, a segment of rows at a time, whose products stay in cache until each has
been held to a limit: the threshold less the row's error bound (`bounds.py`), in the product's own unit. Only pairs of a
row and a query that reach it are kept.

Three arithmetics give these products. Which is the fastest, and by much, depends on the processor (`arithmetic.py`):

    torch    float32 by torch, all cores at one product; codes of fewer bits are decoded in cache
    numpy    float32 by NumPy; codes of fewer bits are decoded in cache, each core with rows of its own
    native   codes as they are, bfloat16 or int8, where a processor has instructions for that

The bounds hold for a sum in any order, so what a search returns does not depend on the arithmetic.

Symbols: Q queries, N blocks, D dimensions; a base group is BASE_GROUP rows, which share a scale and a bound.
"""

from __future__ import annotations

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import int8_products
from .bounds import BASE_GROUP, Codes, Rounding, ScanQueries, base_norms, limit_terms, rounding, scan_queries

ARITHMETICS = ("torch", "numpy", "native")
TILE_BYTES = 16 << 20  # of codes multiplied at once where they are read once: few tiles cost the fewest calls
# Of float32 rows that are read twice, from cache the second time; several queries take twice as many.
STAGED_BYTES = {"numpy": 1 << 20, "torch": 4 << 20}
SCORES_BYTES = {"numpy": 1 << 20, "torch": 4 << 20}  # of products that stay in cache until they are held to limits
# Numbers above 0 rank as their bits do, of which the largest is found several times as fast; all others rank below.
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
# Below all limits: what stands where there is no row.
LOWEST = {torch.float32: -math.inf, torch.bfloat16: -math.inf, torch.int32: -(1 << 31)}
# Above it, and at most what any other number is.
LEAST = {dtype: 1 - (1 << 31) if dtype == torch.int32 else torch.finfo(torch.float32).min for dtype in LOWEST}


class Pairs(NamedTuple):
    """Rows that may reach a query's threshold, and what the scan found for them."""

    rows: np.ndarray  # [pairs] int64
    queries: np.ndarray  # [pairs] int64
    values: np.ndarray  # [pairs] float64, in the unit of the product

    @staticmethod
    def join(some: list[Pairs]) -> Pairs:
        return some[0] if len(some) == 1 else Pairs(*(np.concatenate(column) for column in zip(*some, strict=True)))


def is_native(dtype: torch.dtype, arithmetic: str) -> bool:
    """Whether codes of that dtype are multiplied as they are, other than float32."""
    return arithmetic == "native" and (dtype == torch.bfloat16 or (dtype == torch.int8 and int8_products.limit() > 0))


def query_dtype(codes: Codes, arithmetic: str) -> torch.dtype:
    """The dtype in which queries are multiplied with the codes."""
    return codes.codes.dtype if is_native(codes.codes.dtype, arithmetic) else torch.float32


def coded_queries(queries: Tensor, codes: Codes, arithmetic: str) -> ScanQueries:
    """Queries [Q, D] as that arithmetic multiplies them with the codes."""
    dtype = query_dtype(codes, arithmetic)
    return scan_queries(queries, codes, dtype, int8_products.limit() if dtype == torch.int8 else 127)


def scan_errors(codes: Codes, arithmetic: str) -> Rounding:
    """What the arithmetic adds to the bound."""
    rounds = is_native(codes.codes.dtype, arithmetic) and codes.codes.dtype == torch.bfloat16
    return rounding(codes.codes.shape[1], stored=2.0**-8 if rounds else 2.0**-22)


def pairs_reaching(
    codes: Codes, queries: ScanQueries, weights: np.ndarray, rows: range, arithmetic: str, fill_norms: bool = False
) -> Pairs:
    """The pairs of `rows`, a range that starts with a base group, that reach the limits of `limit_weights` [3, Q].

    fill_norms: `codes.norm` has no values yet; those of `rows` are taken, and written, while these are in cache.
    Raises ValueError naming the first block that is not finite, where norms are taken.
    """
    # torch's operations use all cores by themselves; of NumPy's the products alone do.
    alone = arithmetic != "numpy" or not (fill_norms or decodes(codes.codes, queries.codes))
    share = -(-len(rows) // BASE_GROUP // (1 if alone else torch.get_num_threads())) * BASE_GROUP
    shares = [rows[i : i + share] for i in range(0, len(rows), share)]

    def work(mine: range) -> Pairs:
        with np.errstate(over="ignore", invalid="ignore"), torch.no_grad():
            products = (_NumpyProducts if arithmetic == "numpy" else _TorchProducts)(
                codes.codes, queries, len(mine), fill_norms
            )
            steps = range(0, len(mine), products.segment)
            return Pairs.join([_reaching(codes, products, weights, mine[i : i + products.segment]) for i in steps])

    if len(shares) == 1:
        return work(rows)
    # The threads are this search's own: searches at once share nothing, and a process that forks leaves none behind.
    with ThreadPoolExecutor(len(shares)) as pool:
        return Pairs.join(list(pool.map(work, shares)))


def all_products(codes: Codes, queries: ScanQueries, arithmetic: str) -> Tensor:
    """Of codes [n, D] and queries [Q, D], in the unit of the product: [n, Q] float32."""
    n = len(codes.codes)
    products = (_NumpyProducts if arithmetic == "numpy" else _TorchProducts)(codes.codes, queries, n, False)
    steps = range(0, n, products.segment)
    return torch.cat([products.fill(range(i, min(i + products.segment, n)))[: n - i].float() for i in steps])


def decodes(codes: Tensor, queries: Tensor) -> bool:
    """Whether codes become float32 before they are multiplied by the queries."""
    return codes.dtype != queries.dtype


def _reaching(codes: Codes, products: _Products, weights: np.ndarray, rows: range) -> Pairs:
    """The pairs of a segment of rows."""
    found = products.fill(rows)
    bases = slice(rows.start // BASE_GROUP, -(-rows.stop // BASE_GROUP))
    if products.norms is not None:
        assert codes.norm is not None
        norms = products.norms[: bases.stop - bases.start]
        codes.norm[bases] = base_norms(norms, codes.codes[rows.start : rows.stop], rows.start)
    limits = products.limits(limit_terms(codes, bases), weights)  # [bases, Q]
    place, queries, values = products.reaching(found, np.maximum(limits, LEAST[found.dtype], out=limits))
    return Pairs(place + rows.start, queries, values)


class _Products:
    """One thread's products of some codes and queries, a segment of rows at a time, and its buffers.

    rows: that it is to multiply. with_norms: the norm of all rows of a base group is taken too.
    """

    LIBRARY = ""

    def __init__(self, codes: Tensor, asked: ScanQueries, rows: int, with_norms: bool) -> None:
        queries = asked.codes
        q, d = queries.shape
        by_element = q == 1 and self.LIBRARY == "torch" and queries.dtype == torch.float32
        staged = with_norms or decodes(codes, queries) or by_element
        row_bytes = 4 * d if staged else d * codes.element_size()
        tile = _whole_groups((STAGED_BYTES[self.LIBRARY] << (q > 1) if staged else TILE_BYTES) // row_bytes)
        dtype = torch.int32 if queries.dtype == torch.int8 else queries.dtype
        segment = _whole_groups(SCORES_BYTES[self.LIBRARY] // (dtype.itemsize * q))
        if segment > tile:
            segment = segment // tile * tile
        self.segment = min(segment, -(-rows // BASE_GROUP) * BASE_GROUP)
        self.tile = min(tile, self.segment)
        self.found = queries.new_empty(self.segment, q, dtype=dtype)
        self.decoded = queries.new_empty(self.tile, d, dtype=torch.float32) if decodes(codes, queries) else None
        self.norms = queries.new_empty(self.segment // BASE_GROUP, dtype=torch.float32) if with_norms else None

    def fill(self, rows: range) -> Tensor:
        """The products of a segment of rows, its last base group filled up with the lowest number: [.., Q]"""
        for start in range(rows.start, rows.stop, self.tile):
            self._multiply(start, min(start + self.tile, rows.stop), start - rows.start)
        found = self.found[: -(-len(rows) // BASE_GROUP) * BASE_GROUP]
        found[len(rows) :] = LOWEST[found.dtype]
        return found

    def _multiply(self, start: int, stop: int, place: int) -> None:
        """A tile of rows; its products begin at `place`."""
        raise NotImplementedError

    def limits(self, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The product of `limit_terms` [bases, 3] and `limit_weights` [3, Q]."""
        raise NotImplementedError

    def reaching(self, found: Tensor, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Products [bases * BASE_GROUP, Q] that are not below limits [bases, Q] -> rows, queries, values [pairs]"""
        raise NotImplementedError


class _NumpyProducts(_Products):
    """By NumPy alone: threads of both libraries, each waiting for work, would take the cores from each other."""

    LIBRARY = "numpy"

    def __init__(self, codes: Tensor, asked: ScanQueries, rows: int, with_norms: bool) -> None:
        super().__init__(codes, asked, rows, with_norms)
        queries, one = asked.codes, len(asked.codes) == 1
        self.is_bfloat16 = codes.dtype == torch.bfloat16
        self.codes = (codes.view(torch.int16) if self.is_bfloat16 else codes).numpy()
        self.columns = queries[0].numpy() if one else np.ascontiguousarray(queries.numpy().T)  # [D] or [D, Q]
        self.out = self.found[:, 0].numpy() if one else self.found.numpy()
        self.rows = None if self.decoded is None else self.decoded.numpy()

    def _multiply(self, start: int, stop: int, place: int) -> None:
        rows = self.codes[start:stop]
        if self.rows is not None:
            rows = self._decode(rows, self.rows[: stop - start])
        np.dot(rows, self.columns, out=self.out[place : place + stop - start])
        if self.norms is not None:
            norms_by_numpy(rows, self.norms[place // BASE_GROUP :].numpy())

    def _decode(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        if self.is_bfloat16:  # the upper half of a float32
            bits = out.view(np.int32)
            np.copyto(bits, rows)
            np.left_shift(bits, 16, out=bits)
        else:
            np.copyto(out, rows)
        return out

    def limits(self, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.dot(terms, weights)

    def reaching(self, found: Tensor, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        bases, q = limits.shape
        array = found.numpy()
        limits = limits.astype(np.float32)  # the weights leave room for the rounding
        places = np.flatnonzero(array.reshape(bases, BASE_GROUP, q) >= limits[:, None])
        rows, queries = (places, np.zeros_like(places)) if q == 1 else np.divmod(places, q)
        return rows, queries, array.reshape(-1)[places].astype(np.float64)


def norms_by_torch(rows: Tensor, out: Tensor) -> None:
    """Of every base group of rows [n, D] float32, the last maybe short, the norm of all its numbers: out [bases ..]."""
    n, d = rows.shape
    whole = n // BASE_GROUP
    if whole:
        long = rows[: whole * BASE_GROUP].view(whole, BASE_GROUP * d)
        torch.linalg.vector_norm(long, dim=1, out=out[:whole])
    if n % BASE_GROUP:
        out[whole] = torch.linalg.vector_norm(rows[whole * BASE_GROUP :])


def norms_by_numpy(rows: np.ndarray, out: np.ndarray) -> None:
    """The same by NumPy."""
    n, d = rows.shape
    whole = n // BASE_GROUP
    # NumPy 2 has the inner product of each row with itself; before that a sum over an index says the same.
    square = getattr(np, "vecdot", functools.partial(np.einsum, "ij,ij->i"))
    if whole:
        long = rows[: whole * BASE_GROUP].reshape(whole, BASE_GROUP * d)
        square(long, long, out=out[:whole])
    if n % BASE_GROUP:
        last = rows[whole * BASE_GROUP :].reshape(1, -1)
        square(last, last, out=out[whole : whole + 1])
    np.sqrt(out[: -(-n // BASE_GROUP)], out=out[: -(-n // BASE_GROUP)])


class _TorchProducts(_Products):
    """By torch.

    One query: a matrix times a vector is one thread's work in the library that torch calls. So rows are multiplied by
    the query element by element, and summed, which all cores do.

    Few queries leave most lanes of the matrix units empty and make them wait for memory. So `fold` rows are laid end
    to end as one long row, which is how they lie in memory, and multiplied by a block-diagonal copy of the queries:
    the same products, read as one stream. The added terms are zeros, so no product changes.
    """

    LIBRARY = "torch"

    def __init__(self, codes: Tensor, asked: ScanQueries, rows: int, with_norms: bool) -> None:
        super().__init__(codes, asked, rows, with_norms)
        queries = asked.codes
        q, d = queries.shape
        self.codes, self.columns = codes, queries.t()
        self.one = queries[0] if q == 1 and queries.dtype == torch.float32 else None
        by_element = self.one is not None and self.decoded is None
        self.terms = queries.new_empty(self.tile, d, dtype=torch.float32) if by_element else None
        self.diagonal = asked.diagonal
        self.fold = len(self.diagonal) // d

    def _multiply(self, start: int, stop: int, place: int) -> None:
        rows, out = self.codes[start:stop], self.found[place : place + stop - start]
        if self.decoded is not None:
            rows = self.decoded[: stop - start].copy_(rows)
        n, d = rows.shape
        if self.norms is not None:
            norms_by_torch(rows, self.norms[place // BASE_GROUP :])
        if self.one is not None:
            terms = rows if self.terms is None else self.terms[:n]
            torch.sum(torch.mul(rows, self.one, out=terms), 1, out=out[:, 0])
            return
        whole = n // self.fold * self.fold if self.fold > 1 else 0
        if whole:
            _matmul(rows[:whole].view(-1, self.fold * d), self.diagonal, out[:whole].view(-1, self.diagonal.shape[1]))
        if whole < n:
            _matmul(rows[whole:], self.columns, out[whole:])

    def limits(self, terms: np.ndarray, weights: np.ndarray) -> np.ndarray:
        # NumPy's threads would wait for those of torch, which have just multiplied.
        return torch.mm(torch.from_numpy(terms), torch.from_numpy(weights)).numpy()

    def reaching(self, found: Tensor, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        bases, q = limits.shape
        # Most base groups have no pair that reaches its limit, and their maxima say so.
        grouped = found.view(bases, BASE_GROUP, q)
        if found.dtype in BITS and limits.min() > 0:
            maxima = grouped.view(BITS[found.dtype]).amax(1).view(found.dtype)  # [bases, Q], or else some below 0
        else:
            maxima = grouped.amax(1)
        maxima = maxima.float().numpy() if found.dtype == torch.bfloat16 else maxima.numpy()
        base, queries = np.divmod(np.flatnonzero(maxima >= limits), q)
        values = grouped[torch.from_numpy(base), :, torch.from_numpy(queries)].double().numpy()  # [.., BASE_GROUP]
        group, place = np.nonzero(values >= limits[base, queries][:, None])
        return base[group] * BASE_GROUP + place, queries[group], values[group, place]


def _whole_groups(rows: int) -> int:
    return max(1, rows // BASE_GROUP) * BASE_GROUP


def _matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, [rows, inner] by [inner, columns]; int8 gives int32."""
    if a.dtype == torch.int8:
        int8_products.multiply(a, b, int8_products.limit(), out)
    elif b.shape[1] == 1:
        torch.mv(a, b[:, 0], out=out[:, 0])
    else:
        torch.mm(a, b, out=out)
