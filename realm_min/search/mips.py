"""Exact maximum inner product search (MIPS) over the block embeddings: the retriever's p(z|x) needs its top-k blocks
(REALM, section 3.3). No approximation and no score matrix.

Rows are cut into groups of G consecutive blocks and three steps find the answer:

1. Scan. Scores of a tile of rows are computed in the fastest arithmetic at hand and reduced to one maximum a group.
2. Certify. The scan is off by at most a bound b known for each group, so a group's best true score lies in
   [maximum - b, maximum + b]. The k-th largest lower end is a threshold t no answer is under; a group whose upper end
   is below t holds none.
3. Rescore. Rows of the groups left are held to t one by one, and those that pass get their final score.

The bound b is proved, and computed, in `bounds.py`.

The score returned is the float32 nearest to the inner product: products and sums in float64, added in one fixed order
on every device, rounded once. Hence the answer does not depend on the path, the tile or the batch; equal scores go to
the smaller id.

Symbols: Q queries, N blocks, D dimensions, G rows a group.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ranks.devices import plain_arithmetic
from .arithmetic import faster_scan, group_maxima, library, matmul
from .bounds import (
    BASE_GROUP,
    BLOCK_DTYPES,
    CHUNK_ELEMENTS,
    COMPRESSIONS,
    Codes,
    Rounding,
    ScanQueries,
    certify,
    check_blocks,
    compress,
    error_bound,
    finite_norm,
    group_max,
    just_below,
    rounding,
    scan_queries,
    widen,
)
from .index_file import read_index, write_index

MAX_GROUP = 128
MAXIMA_BYTES = 16 << 20  # group maxima held at once: queries are searched in chunks that fit
SAMPLE_ROWS = 1 << 14  # scanned, to see which scan is the faster
EXACT_ROWS = 4096  # rows scored in float64 at once, in cache
TILE_BYTES = 16 << 20  # of codes in a tile of the scan: each is read once, so few tiles cost the fewest calls
CACHED_TILE_BYTES = 2 << 20  # the same where a tile is read twice, for its norms and its scores
SCORES_BYTES = 2 << 20  # of scores in a tile of the scan: they stay in cache until they are reduced
SCANS = (None, "codes", "blocks")


@dataclass
class SearchReport:
    """What one search did: rows a group, groups in the index, and for each query the groups and rows rescored."""

    group_size: int
    groups: int
    rescored_groups: list[int]
    rescored_rows: list[int]


def mips_topk(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k blocks of largest inner product with each query, exact, best first.

    queries [Q, D] and blocks [N, D]: float32, float16 or bfloat16, finite, on one device. Returns (scores [Q, k]
    float32 descending, ids [Q, k] int64); equal scores go to the smaller id. Search the same blocks again and again
    with a `BlockIndex`, which keeps the bounds and can scan a compressed copy.

    Raises ValueError for k < 1 or k > N, shapes that do not match, other dtypes, queries that are not finite.
    """
    check_blocks(blocks)
    if blocks.is_cuda:
        from realm_min.kernels import mips_topk as kernels

        return kernels.mips_topk(queries, blocks, k)
    blocks = blocks.contiguous()
    return search(queries, blocks, Codes(blocks, None, 0, None, None), k)[:2]


class BlockIndex:
    """Block embeddings [N, D], ready to be searched exactly on their device.

    compression: what the scan reads. None: the blocks; "bfloat16": half the bytes of float32; "int8": a quarter. The
    answer is the same, whatever the compression; the copy costs memory and data it represents badly costs time.
    first: the number of the first block, for errors, where the blocks are a slice of more.
    scan: "codes" has a CPU read the compressed copy, "blocks" the blocks themselves; None chooses at the first search
    by timing both on a sample, some milliseconds: where a processor has no instructions for products of bfloat16 and
    int8, they are many times as slow as those of float32.

    Raises ValueError for blocks that are empty, not [N, D] float32/float16/bfloat16, or not finite (naming the row).
    """

    def __init__(
        self, blocks: Tensor, compression: str | None = None, *, first: int = 0, scan: str | None = None
    ) -> None:
        check_blocks(blocks)
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression is {compression!r}: choose one of {COMPRESSIONS}")
        if scan not in SCANS:
            raise ValueError(f"scan is {scan!r}: choose one of {SCANS}")
        self.blocks = blocks.detach().contiguous()
        self.compression = compression
        self.scan = scan
        self.last_search: SearchReport | None = None
        self._codes = compress(self.blocks, compression, first)

    def __len__(self) -> int:
        return self.blocks.shape[0]

    def __repr__(self) -> str:
        n, d = self.blocks.shape
        how = f"compression={self.compression!r}"
        how += f", scan={self.scan!r}" if self.compression and not self.blocks.is_cuda else ""
        return f"BlockIndex({n} x {d} {self.blocks.dtype}, {how}, {self.blocks.device})"

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks, their compressed copy and the bounds."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def rows(self, ids: Tensor) -> Tensor:
        """The vectors of blocks ids [...] int64 -> [..., D]."""
        return self.blocks[ids.to(self.device)]

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`mips_topk` of queries [Q, D] over the index; `last_search` then tells how much was rescored."""
        if self.blocks.is_cuda:
            from realm_min.kernels import mips_topk as kernels

            scores, ids, self.last_search = kernels.search(queries, self.blocks, self._codes, k)
        else:
            check_search(queries, self.blocks, k)
            scores, ids, self.last_search = search(queries, self.blocks, self._scanned(len(queries)), k)
        return scores, ids

    def _scanned(self, queries: int) -> Codes:
        """What a search for so many queries reads on this CPU."""
        norm, residual = self._codes.norm, self._codes.residual
        if norm is None or residual is None:
            return self._codes
        as_they_are = Codes(self.blocks, None, 0, None, norm + residual)  # ||e|| <= ||ê|| + r
        if self.scan is None:
            sample = min(len(self), SAMPLE_ROWS)
            codes = [Codes(c.codes[:sample], c.scale, 0, None, None) for c in (self._codes, as_they_are)]
            some = self.blocks[: max(1, min(queries, 64))]
            self.scan = faster_scan(*(lambda c=c: _scan_sample(some, c) for c in codes), names=SCANS[1:])
        return self._codes if self.scan == "codes" else as_they_are

    def to(self, device: str | torch.device) -> BlockIndex:
        """This index on `device` (itself, when it is there already)."""
        if torch.device(device) == self.device:
            return self
        return self._restore({name: tensor.to(device) for name, tensor in self._tensors().items()}, self._header())

    def save(self, path: str | os.PathLike) -> None:
        """Write the index as one safetensors file with a checksum, complete or not at all."""
        write_index(path, self._header(), self._tensors())

    @classmethod
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> BlockIndex:
        """The index written by `save`. Raises FileNotFoundError, and ValueError for a file that is not whole."""
        header, tensors = read_index(path)
        return cls._restore({name: tensor.to(device) for name, tensor in tensors.items()}, header)

    def _header(self) -> dict:
        return {"compression": self.compression, "exponent": self._codes.exponent}

    def _tensors(self) -> dict[str, Tensor]:
        codes = self._codes
        tensors = {"blocks": self.blocks, "norm": codes.norm}
        if codes.residual is not None:
            tensors |= {"codes": codes.codes, "residual": codes.residual}
        if codes.scale is not None:
            tensors["scale"] = codes.scale
        return tensors

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict) -> BlockIndex:
        index = cls.__new__(cls)
        index.blocks, index.compression, index.last_search = tensors["blocks"], header["compression"], None
        index.scan = None  # the machine may be another
        index._codes = Codes(
            codes=tensors.get("codes", tensors["blocks"]),
            scale=tensors.get("scale"),
            exponent=header["exponent"],
            residual=tensors.get("residual"),
            norm=tensors["norm"],
        )
        return index


# ---------------------------------------------------------------------------------------------------- input checks


def check_search(queries: Tensor, blocks: Tensor, k: int, total: int | None = None) -> None:
    """Raise ValueError, naming the value, for queries [Q, D] or k that `blocks` [N, D] cannot be searched with.

    total: the number of blocks, where `blocks` are a slice of them.
    """
    check_search_shapes(queries, blocks, k, total)
    refuse_queries(queries)


def check_search_shapes(queries: Tensor, blocks: Tensor, k: int, total: int | None = None) -> None:
    """`check_search` but for the queries' values, which a GPU is not to be waited for."""
    if not isinstance(queries, Tensor) or queries.dtype not in BLOCK_DTYPES:
        kind = queries.dtype if isinstance(queries, Tensor) else type(queries).__name__
        raise ValueError(f"queries are {kind}: give a torch tensor of float32, float16 or bfloat16")
    if queries.ndim != 2:
        raise ValueError(f"queries have shape {tuple(queries.shape)}: give [queries, dimensions]")
    if queries.shape[1] != blocks.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the blocks {blocks.shape[1]}: they must agree")
    if queries.device != blocks.device:
        raise ValueError(f"queries are on {queries.device}, the blocks on {blocks.device}: move one with .to(device)")
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(f"k is {k!r}: give an integer")
    total = blocks.shape[0] if total is None else total
    if not 1 <= k <= total:
        raise ValueError(f"k is {k}: it must lie in 1..{total}, the number of blocks")


def refuse_queries(queries: Tensor) -> None:
    """Raise ValueError naming the first of queries [Q, D] that is not finite."""
    finite = queries.isfinite().all(1)
    if not finite.all():
        raise ValueError(f"query {int((~finite).nonzero()[0])} holds NaN or infinity: queries must be finite")


# ------------------------------------------------------------------------------------------------ the search on CPU


@plain_arithmetic("cpu")
def search(queries: Tensor, blocks: Tensor, codes: Codes, k: int) -> tuple[Tensor, Tensor, SearchReport]:
    """Exact top-k of queries [Q, D] over blocks [N, D] scanned through `codes`. -> scores, ids, report."""
    check_search(queries, blocks, k)
    n, d = blocks.shape
    group = group_size(n, k)
    groups = -(-n // group)
    bfloat16 = codes.codes.dtype == torch.bfloat16
    errors = rounding(d, stored=2.0**-8 if bfloat16 else 2.0**-22)
    report = SearchReport(group, groups, [], [])
    scores = torch.empty(queries.shape[0], k, dtype=torch.float32)
    ids = torch.empty(queries.shape[0], k, dtype=torch.int64)
    norm = codes.norm
    step = max(1, min(64, MAXIMA_BYTES // (4 * groups)))
    for start in range(0, queries.shape[0], step):
        chunk = scan_queries(queries[start : start + step], codes, torch.bfloat16 if bfloat16 else torch.float32)
        maxima, squares = _scan(codes, chunk.codes, group, norm is None)
        norm = finite_norm(blocks, squares) if norm is None else norm
        wide_norm = widen(norm, group)
        wide_residual = None if codes.residual is None else widen(codes.residual, group)
        for i in range(maxima.shape[0]):
            query = chunk.select(i)
            bound = error_bound(query, wide_norm, wide_residual, errors.gamma, errors.eta)
            upper, threshold = certify(maxima[i : i + 1], query.unit, bound, errors.rho, k)
            candidates = (upper[0] >= threshold).nonzero()[:, 0]  # ascending
            scan = _RowScan(query, codes, norm, errors, group)
            best, rows = _rescore(candidates, threshold, scan, blocks, query.exact[0], k)
            scores[start + i], ids[start + i] = unpack_keys(best)
            report.rescored_groups.append(candidates.shape[0])
            report.rescored_rows.append(rows)
    return scores, ids, report


def _scan_sample(queries: Tensor, codes: Codes) -> None:
    """Scan some rows, to be timed."""
    dtype = torch.bfloat16 if codes.codes.dtype == torch.bfloat16 else torch.float32
    _scan(codes, scan_queries(queries, codes, dtype).codes, BASE_GROUP, False)


def group_size(n: int, k: int) -> int:
    """Rows a group: large groups make few maxima to select from, small ones few rows to rescore for a large k."""
    group = MAX_GROUP
    while group > BASE_GROUP and n < 32 * k * group:
        group //= 2
    return group


def _scan(codes: Codes, queries: Tensor, group: int, with_norm: bool) -> tuple[Tensor, Tensor]:
    """Step 1. queries [q, D] coded -> (maxima [q, groups], norms [base groups] where asked for), float32."""
    n, d = codes.codes.shape
    q = queries.shape[0]
    maxima = torch.empty(-(-n // group), q, dtype=torch.float32)
    norm = torch.empty(-(-n // BASE_GROUP) if with_norm else 0, dtype=torch.float32)
    row_bytes = d * codes.codes.element_size()
    tile = min((CACHED_TILE_BYTES if with_norm else TILE_BYTES) // row_bytes, SCORES_BYTES // (4 * q))
    tile = max(1, tile // MAX_GROUP) * MAX_GROUP
    if q == 1 and codes.codes.dtype == torch.float32 and not with_norm and library(torch.get_num_threads()) == "numpy":
        for start in range(0, n, tile):
            values = group_maxima(codes.codes[start : start + tile], queries[0], group)
            maxima[start // group : start // group + len(values), 0] = torch.from_numpy(values)
        return maxima.t(), norm
    product = _TileProduct(queries, tile)
    for start in range(0, n, tile):
        rows = codes.codes[start : start + tile]
        base = slice(start // BASE_GROUP, -(-(start + rows.shape[0]) // BASE_GROUP))
        if with_norm:
            row_norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float32)
            norm[base] = group_max(row_norm, BASE_GROUP)[:, 0]
        values = product(rows)  # [rows, q]
        if codes.scale is not None:
            values = group_max(values, BASE_GROUP) * codes.scale[base, None]
            values = group_max(values, group // BASE_GROUP)
        else:
            values = group_max(values, group)
        maxima[start // group : start // group + values.shape[0]] = values
    return maxima.t().contiguous(), norm


class _TileProduct:
    """rows [t, D] @ queries.T [D, q] -> [t, q], in a buffer that the next call overwrites.

    Few queries leave most lanes of the matrix units empty and make them wait for memory. So `fold` rows are laid end
    to end as one long row, which is how they lie in memory, and multiplied by a block-diagonal copy of the queries:
    the same products, read as one stream. The added terms are zeros, so no score changes.
    """

    def __init__(self, queries: Tensor, tile: int):
        q, d = queries.shape
        self.queries = queries.t()
        dtype = torch.int32 if queries.dtype == torch.int8 else queries.dtype
        self.out = torch.empty(tile * q, dtype=dtype)
        fold = 1
        while queries.dtype != torch.float32 and fold * 2 * q <= 16 and fold * 2 * d <= 2048:
            fold *= 2
        self.fold = fold
        if fold > 1:
            diagonal = torch.zeros(fold, d, fold, q, dtype=queries.dtype)
            for i in range(fold):
                diagonal[i, :, i] = self.queries
            self.diagonal = diagonal.view(fold * d, fold * q)

    def __call__(self, rows: Tensor) -> Tensor:
        t, d = rows.shape
        q = self.queries.shape[1]
        out = self.out[: t * q].view(t, q)
        whole = t // self.fold * self.fold if self.fold > 1 else 0
        if rows.dtype == torch.float16:
            rows = rows.float()
        if whole:
            wide = rows[:whole].view(whole // self.fold, self.fold * d)
            matmul(wide, self.diagonal, out[:whole].view(-1, self.fold * q))
        if whole < t:
            matmul(rows[whole:], self.queries, out[whole:])
        return out


class _RowScan:
    """The scan's scores of one query again, now row by row: cheaper than final scores for all.

    norm: [base groups] of the codes, also where it was taken while scanning them.
    """

    def __init__(self, query: ScanQueries, codes: Codes, norm: Tensor, errors: Rounding, group: int):
        self.query, self.codes, self.norm, self.errors = query, codes, norm, errors
        n, d = codes.codes.shape
        self.last_base = (n - 1) // BASE_GROUP
        self.bases = torch.arange(group // BASE_GROUP)
        self.groups_at_once = max(1, CHUNK_ELEMENTS // (d * group))
        self.product = _TileProduct(query.codes, self.groups_at_once * group)

    def rows_reaching(self, threshold: Tensor, groups: Tensor) -> Tensor:
        """Those rows of `groups` whose upper end is not below the threshold [1]; both ascend. -> [rows] int64"""
        codes, (gamma, rho, eta) = self.codes, self.errors
        base = (groups[:, None] * self.bases.shape[0] + self.bases).view(-1)
        base = base[base <= self.last_base]
        values = self.product(gather_groups(codes.codes, base)).float().view(-1, BASE_GROUP)
        if codes.scale is not None:
            values = values * codes.scale[base, None]
        residual = None if codes.residual is None else codes.residual[base]
        # value + rho |value| + bound >= threshold, solved for the value in the scan's unit
        least = threshold - error_bound(self.query, self.norm[base], residual, gamma, eta)[0]
        least = just_below(least / (1 + rho * least.sign()) / self.query.unit).float()
        rows = (base[:, None] * BASE_GROUP + torch.arange(BASE_GROUP)).view(-1)
        rows = rows[(values >= least[:, None]).view(-1)]
        return rows[rows < codes.codes.shape[0]]


def _rescore(
    candidates: Tensor, threshold: Tensor, scan: _RowScan, blocks: Tensor, query: Tensor, k: int
) -> tuple[Tensor, int]:
    """Step 3 for one query [D]: the rows of the candidate groups, ascending. -> (keys [k] best first, rows rescored)"""
    best = torch.empty(0, dtype=torch.int64)
    pending, waiting, rescored = [], 0, 0
    for groups in candidates.split(scan.groups_at_once):
        rows = scan.rows_reaching(threshold, groups)
        rescored += rows.shape[0]
        for some in rows.split(EXACT_ROWS):
            pending.append(pack_keys(exact_scores(blocks.index_select(0, some), query), some))
        waiting += rows.shape[0]
        if waiting >= 2 * k + EXACT_ROWS or groups[-1] == candidates[-1]:
            best = torch.cat([best, *pending])
            pending, waiting = [], 0
            if best.shape[0] >= k:
                best = best.topk(k).values
                threshold = torch.maximum(threshold, just_below(unpack_keys(best[-1:])[0]))
    return best, rescored


def gather_groups(codes: Tensor, base: Tensor) -> Tensor:
    """All rows of the base groups `base` (ascending) of codes [N, D] -> [len(base) * BASE_GROUP, D].

    A group lies in one piece in memory and is copied as such. Rows past the end of the last group hold anything.
    """
    n, d = codes.shape
    whole = n // BASE_GROUP
    if whole == 0:
        return codes.index_select(0, torch.arange(BASE_GROUP).clamp(max=n - 1))
    groups = codes[: whole * BASE_GROUP].view(whole, BASE_GROUP * d)
    rows = groups.index_select(0, base.clamp(max=whole - 1)).view(-1, d)
    if base.numel() and base[-1] == whole:
        rows[-BASE_GROUP:][: n - whole * BASE_GROUP] = codes[whole * BASE_GROUP :]
    return rows


def exact_scores(rows: Tensor, query: Tensor) -> Tensor:
    """The returned score: rows [n, D] . query [D] float64 -> [n] float32.

    Halves are added to halves, so that the order of the sum depends on D alone. Products of float32 are exact in
    float64, and the sum of D of them is off by under 2**-43 of ||q|| ||e||, far below the final rounding.
    """
    products = rows.double().mul_(query)
    while products.shape[1] > 1:
        half = 1 << (products.shape[1] - 1).bit_length() - 1
        products[:, : products.shape[1] - half] += products[:, half:]
        products = products[:, :half]
    return products[:, 0].float() + 0.0  # -0 and 0 are one score


def pack_keys(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 keys that rank as (score descending, id ascending) when sorted in descending order. ids < 2**32"""
    bits = scores.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count downwards
    return (ordered.long() << 32) + (0xFFFFFFFF - ids)


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_keys` -> (scores float32, ids int64)."""
    ordered = (keys >> 32).int()
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)
