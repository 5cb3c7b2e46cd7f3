"""What the scan reads in place of the blocks, how far off its scores are, and which groups that rules out.

The scan of exact MIPS (`mips.py`) multiplies codes: of the blocks, which are themselves or a compressed copy, and of
the queries, in the dtype of the product. Here are these codes, and each term of the bound on the scores they give.

The bound. A code ê stands for the row e, with ||e - ê|| <= r and ||ê|| <= n, and q̂ for the query q. By Cauchy-Schwarz
    |q.e - fl(q̂.ê)| <= ||q|| r + ||q - q̂|| n + gamma ||q̂|| n + rho |fl(q̂.ê)| + eta
where gamma bounds the rounding of a sum of D products, rho that of storing the result, and eta underflow. Norms of
differences are computed in float64 from the numbers themselves, so nothing is assumed about the data.

Symbols: Q queries, N blocks, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import large_pages

COMPRESSIONS = (None, "bfloat16", "int8")
BASE_GROUP = 16  # rows that share a scale and a bound; a search may join several into one group
CHUNK_ELEMENTS = 1 << 24  # elements looked through at once; a quarter of them, where they are compressed


@dataclass
class Codes:
    """What the scan reads in place of the blocks, and how far off it is. Bounds are per group of BASE_GROUP rows."""

    codes: Tensor  # [N, D] float32, float16, bfloat16 or int8
    scale: Tensor | None  # [base groups] float32, int8 only: a row is scale * 2**exponent * codes
    exponent: int
    residual: Tensor | None  # [base groups] float64 r >= ||e - ê||; None: the codes are the blocks
    norm: Tensor | None  # [base groups] float64 n >= ||ê||; None: taken while scanning
    terms: np.ndarray | None = None  # [base groups, 3] float64 `limit_terms` of all, where they were kept


@dataclass
class ScanQueries:
    """Queries as the scan multiplies them, with their share of the error bound. All but `codes` are float64."""

    exact: Tensor  # [Q, D] q
    codes: Tensor  # [Q, D] q̂ / unit, in the dtype of the product
    unit: Tensor  # [Q] one in the scan's arithmetic is `unit` in true scores
    norm: Tensor  # [Q] ||q||
    code_norm: Tensor  # [Q] ||q̂||
    delta: Tensor  # [Q] ||q - q̂||

    def select(self, places: Tensor) -> ScanQueries:
        """The queries at `places` [n] int64."""
        return ScanQueries(*(getattr(self, field.name)[places] for field in fields(self)))

    @cached_property
    def diagonal(self) -> Tensor:
        """A block-diagonal matrix of `fold` copies of the codes, where Q is small: [fold * D, fold * Q]."""
        q, d = self.codes.shape
        fold = 1
        while self.codes.dtype != torch.float32 and fold * 2 * q <= 16 and fold * 2 * d <= 2048:
            fold *= 2
        diagonal = self.codes.new_zeros(fold, d, fold, q)
        diagonal.diagonal(dim1=0, dim2=2).copy_(self.codes.t()[:, :, None])
        return diagonal.view(fold * d, fold * q)

    def bound_weights(self, errors: Rounding) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a row's norm, its residual and one are multiplied by in the bound, but for its term in the score: [Q]"""
        of_norm = self.delta.numpy() + errors.gamma * self.code_norm.numpy()
        return of_norm, self.norm.numpy(), errors.eta * self.unit.numpy()

    def limit_weights(self, thresholds: np.ndarray, errors: Rounding) -> np.ndarray:
        """What makes limits of `limit_terms`: for thresholds [Q] float64 -> [3, Q] float64.

        A score w of the scan may belong to a row that reaches the threshold t if w + rho |w| + b >= t, and b is
        a n + ||q|| r + c, linear in the row's norm and residual. Then, with x = 2 rho <= 1,
            w >= L = t - b - x (|t| + b):
        were w < L, w + rho |w| + b would be below t, whatever the signs. Half of x would do but for terms in rho**2 and
        the rounding of L itself, to float32 and in between. L is linear in n, r and 1, so the limits of many rows and
        queries, in the unit of the product, are one product of two small matrices.
        """
        x = 2 * errors.rho
        a, r, c = self.bound_weights(errors)
        rows = (-(1 + x) * a, -(1 + x) * r, thresholds - x * np.abs(thresholds) - (1 + x) * c)
        return np.stack(rows) / self.unit.numpy()


def compress(blocks: Tensor, compression: str | None, first: int = 0) -> Codes:
    """Codes of blocks [N, D] with their bounds. Raises ValueError naming the first row, from `first`, not finite."""
    n, d = blocks.shape
    groups = -(-n // BASE_GROUP)
    target = _stored_dtype(blocks.dtype, compression)
    same = target == blocks.dtype
    codes = blocks if same else large_pages.empty((n, d), target, blocks.device)
    scale = torch.empty(groups, dtype=torch.float32, device=blocks.device) if target == torch.int8 else None
    residual = None if same else torch.empty(groups, dtype=torch.float64, device=blocks.device)
    norm = torch.empty(groups, dtype=torch.float64, device=blocks.device)

    step = max(1, CHUNK_ELEMENTS // 4 // (d * BASE_GROUP)) * BASE_GROUP
    for start in range(0, n, step):
        rows = blocks[start : start + step]
        chunk = slice(start // BASE_GROUP, -(-(start + rows.shape[0]) // BASE_GROUP))
        largest = rows.abs().amax(1).float()  # [rows]
        if not largest.isfinite().all():
            refuse_non_finite(rows, first + start)
        if same:
            coded = rows.double()
        elif scale is None:  # bfloat16
            limit = torch.finfo(torch.bfloat16).max  # a float32 above it would round to infinity
            codes[start : start + step] = rows.float().clamp(-limit, limit).bfloat16()
            coded = codes[start : start + step].double()
        else:
            scale[chunk] = _int8_scale(largest)
            row_scale = scale[chunk].repeat_interleave(BASE_GROUP)[: rows.shape[0], None]
            codes[start : start + step] = (rows.float() / row_scale).round().clamp(-127, 127)
            coded = codes[start : start + step].double() * row_scale.double()
        norm[chunk] = _largest_norm(coded)
        if residual is not None:
            residual[chunk] = _largest_norm(coded - rows.double())
    scale, exponent = (None, 0) if scale is None else _without_exponent(scale)
    return Codes(codes, scale, exponent, residual, norm)


def shapes_of(blocks: Tensor, compression: str | None) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of all that an index of such blocks holds: the blocks, and what `compress` makes of them."""
    shape, groups = tuple(blocks.shape), (-(-blocks.shape[0] // BASE_GROUP),)
    found = {"blocks": (shape, blocks.dtype), "norm": (groups, torch.float64)}
    target = _stored_dtype(blocks.dtype, compression)
    if target != blocks.dtype:
        found |= {"codes": (shape, target), "residual": (groups, torch.float64)}
    if target == torch.int8:
        found["scale"] = groups, torch.float32
    return found


def _stored_dtype(dtype: torch.dtype, compression: str | None) -> torch.dtype:
    return {None: dtype, "bfloat16": torch.bfloat16, "int8": torch.int8}[compression]


def _int8_scale(largest: Tensor) -> Tensor:
    """What one in int8 stands for, from the largest magnitude of each row [n]. -> [base groups] float32"""
    # The smallest normal number keeps a group of zeros, or of subnormals, out of 0 / 0.
    return (group_max(largest[:, None], BASE_GROUP)[:, 0] / 127).clamp(min=2.0**-126)


def _without_exponent(scale: Tensor) -> tuple[Tensor, int]:
    """scale [base groups] -> (the same divided by 2**exponent, exponent), the largest of them under 1."""
    # A common power of two taken out keeps scale * int32 inside float32, however large the blocks are.
    exponent = math.frexp(float(scale.max()))[1]
    return (scale.double() * 2.0**-exponent).float(), exponent


def _largest_norm(rows: Tensor) -> Tensor:
    """Upper bound of the row norms of float64 rows [n, D], for each group of BASE_GROUP rows. -> [groups]"""
    return group_max((rows * rows).sum(1, keepdim=True).sqrt(), BASE_GROUP)[:, 0] * (1 + 1e-12)


def group_max(values: Tensor, group: int) -> Tensor:
    """Maximum of every `group` consecutive rows of values [n, columns], the last group maybe short. -> [groups, c]"""
    n, columns = values.shape
    whole = n // group * group
    if columns == 1:
        maxima = values[:whole].view(-1, group).amax(1, keepdim=True)  # torch reduces this shape faster
    else:
        maxima = values[:whole].view(-1, group, columns).amax(1)
    return maxima if whole == n else torch.cat([maxima, values[whole:].amax(0, keepdim=True)])


def widen(bounds: Tensor, group: int) -> Tensor:
    """Bounds of groups of BASE_GROUP rows -> of groups of `group` rows."""
    return group_max(bounds[:, None], group // BASE_GROUP)[:, 0]


def limit_terms(codes: Codes, bases: slice) -> np.ndarray:
    """Norm, residual and one of the base groups, in the unit of their codes. -> [bases, 3] float64

    Times `ScanQueries.limit_weights` they are the least products by which rows may reach a threshold.
    """
    if codes.terms is not None:
        return codes.terms[bases]
    assert codes.norm is not None
    norm = codes.norm[bases].numpy()
    residual = np.zeros_like(norm) if codes.residual is None else codes.residual[bases].numpy()
    terms = np.stack([norm, residual, np.ones_like(norm)], 1)
    return terms if codes.scale is None else terms / code_scale(codes.scale[bases].numpy())[:, None]


def code_scale(scale: np.ndarray) -> np.ndarray:
    """Stored scales, float32 -> float64, none of them 0: eta has room for the change."""
    return np.maximum(scale, 2.0**-149, dtype=np.float64)


def pair_ends(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray], codes: Codes, queries: ScanQueries, errors: Rounding
) -> tuple[np.ndarray, np.ndarray]:
    """Between what a true score lies, for (base group, query, product) [pairs] each. -> lower, upper [pairs] float64"""
    assert codes.norm is not None
    base, query, values = pairs
    values = values * of_query(queries.unit.numpy(), query)
    if codes.scale is not None:
        values = values * code_scale(codes.scale.numpy()[base])
    a, r, c = (of_query(weight, query) for weight in queries.bound_weights(errors))
    slack = codes.norm.numpy()[base] * a + c + errors.rho * np.abs(values)
    if codes.residual is not None:
        slack += codes.residual.numpy()[base] * r
    return values - slack, values + slack


def of_query(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """What each pair's query has of values [Q], to be broadcast where there is one query."""
    return values if len(values) == 1 else values[query]


def base_norms(norms: Tensor, rows: Tensor, start: int) -> Tensor:
    """Bounds on the norms of rows [n, D] float32, numbered from `start`, for each base group. -> [bases] float64

    norms: of all the numbers of a base group, in float32: it bounds that of each row. Squares below 2**-126 may have
    vanished, hence the addend; where squares overflow, the largest norm there is takes their place.
    Raises ValueError when they did because a row is not finite.
    """
    if not norms.isfinite().all():
        refuse_non_finite(rows, start)
    size = BASE_GROUP * rows.shape[1]
    largest = math.sqrt(size) * torch.finfo(torch.float32).max
    norms = norms.double() * (1 + size * 2.0**-23) + math.sqrt(size) * 2.0**-62
    return norms.nan_to_num_(largest, largest)


def scan_queries(queries: Tensor, codes: Codes, dtype: torch.dtype, limit: int = 127) -> ScanQueries:
    """Queries [Q, D] as the scan multiplies them by codes, in `dtype`: float32, bfloat16, or int8 up to `limit`."""
    exact = queries.double()
    norm = (exact * exact).sum(1).sqrt() * (1 + 1e-12)
    if dtype == torch.int8:
        step = (exact.abs().amax(1) / limit).clamp(min=2.0**-200)  # [Q] one unit of the int8 query
        coded = (exact / step[:, None]).round_()
        unit, hat = step, coded * step[:, None]
        coded = coded.to(torch.int8)
    else:
        # A power of two brings ||q|| under 2**-6: no partial sum of up to 1024 products can overflow.
        unit = torch.exp2(torch.frexp(norm).exponent.double() + 6)
        coded = (exact / unit[:, None]).to(dtype)
        hat = coded.double() * unit[:, None]
    delta = ((exact - hat) ** 2).sum(1).sqrt() * (1 + 1e-12)
    code_norm = (hat * hat).sum(1).sqrt() * (1 + 1e-12)
    return ScanQueries(exact, coded, unit * 2.0**codes.exponent, norm, code_norm, delta)


class Rounding(NamedTuple):
    """What the scan's arithmetic adds to the bound, whatever is multiplied: see the head of this module."""

    gamma: float
    rho: float
    eta: float


def rounding(d: int, stored: float) -> Rounding:
    """(gamma, rho, eta): rounding of a sum of d products and of its storing, and underflow, with room to spare.

    Sums of d products in float32, in any order, are off by under d * 2**-24 * ||q̂|| ||ê|| (Higham 2002, section 3.1);
    matrix units cut where a processor rounds, twice as much, and take subnormals for zero. The error of the final
    scores in float64 is covered too.
    """
    return Rounding((4 * d + 16) * 2.0**-24, stored, d * 2.0**-124)


def error_bound(queries: ScanQueries, norm: Tensor, residual: Tensor | None, gamma: float, eta: float) -> Tensor:
    """b without its term in the score: norm, residual [groups] float64 -> [Q, groups] float64."""
    bound = norm * (queries.delta + gamma * queries.code_norm)[:, None] + (eta * queries.unit)[:, None]
    return bound if residual is None else bound.addcmul_(residual, queries.norm[:, None])


def certify(maxima: Tensor, unit: Tensor, bound: Tensor, rho: float, k: int) -> tuple[Tensor, Tensor]:
    """Step 2. maxima [Q, groups] of the scan, bound [Q, groups] -> (upper ends [Q, groups], threshold [Q]).

    A group whose upper end is below the threshold holds none of the k best.
    """
    maxima = maxima.double() * unit[:, None]
    slack = maxima.abs().mul_(rho).add_(bound)
    if maxima.shape[1] < k:
        threshold = torch.full_like(unit, -math.inf)
    else:
        threshold = torch.from_numpy(just_below(kth_largest((maxima - slack).numpy(), k)))
    return maxima.add_(slack), threshold


def kth_largest(values: np.ndarray, k: int) -> np.ndarray:
    """values [.., n] -> [..]. NumPy's partition takes a tenth of the time of torch's topk."""
    return np.partition(values, -k, axis=-1)[..., -k]


def just_below(scores: np.ndarray) -> np.ndarray:
    """Numbers under every score that rounds to the same float32 as `scores` (float64), or to a larger one."""
    with np.errstate(over="ignore"):
        return np.nextafter(scores.astype(np.float32), np.float32(-np.inf)).astype(np.float64)


def finite_norm(blocks: Tensor, norm: Tensor) -> Tensor:
    """Bound from group norms [groups] taken in float32 while scanning `blocks` [N, D]. -> [groups] float64

    Squares below 2**-149 vanish, hence the addend; where squares overflow, the largest norm there is takes their place.
    Raises ValueError when they did because a block is not finite.
    """
    n, d = blocks.shape
    if not norm.isfinite().all():
        step = CHUNK_ELEMENTS // d
        for start in range(0, n, step):
            refuse_non_finite(blocks[start : start + step], start)
    norm = norm.double() * (1 + d * 2.0**-23) + math.sqrt(d) * 2.0**-70
    return norm.clamp_(max=math.sqrt(d) * torch.finfo(torch.float32).max)


def refuse_non_finite(rows: Tensor, start: int) -> None:
    """Raise ValueError naming the first of rows [n, D], numbered from `start`, that is not finite."""
    finite = rows.isfinite().all(1)
    if not finite.all():
        row = start + int((~finite).nonzero()[0])
        raise ValueError(f"block {row} holds NaN or infinity: remove or repair it before searching")
