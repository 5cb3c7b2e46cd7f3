"""The search's ladder: six kernels for the k blocks of largest inner product, each one step from the one before.

Read it from the top. A rung is a kernel and the function that launches it, and each takes and gives the same:
queries [Q, D] and blocks [N, D] float32 on one device -> (scores [Q, k] float32 best first, ids [Q, k] int64); of
equal scores the smaller id comes first. `search` checks what it is given and calls a rung.

    1 scores stored   every score is written, then the k largest are chosen
    2 group maxima    a tile of rows keeps its maximum alone; the k best groups hold the k best rows
    3 one pass        a tile that is in registers serves all queries
    4 tensor cores    the product of a tile with 64 queries is one instruction's work; TF32: not exact
    5 int8            a quarter of the bytes, and whole numbers compared before they are scaled: less exact still
    6 certificate     how far off rung 5 can be is known, and what it cannot tell apart is scored again: exact

Rungs 1 to 3 add in float32: scores that lie closer than its rounding come in either order. Rung 6 decides in float64.

Symbols: Q queries, N blocks, D dimensions, G rows a group.
"""

# Triton's language is compiled, not run: its `range` has no items, and a launch gives plain numbers for constexprs.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton_language import knobs, tl, triton

MOST_DIMENSIONS = 8192  # rungs 1 to 3 hold a whole row in registers
TILE_ELEMENTS = 8192  # numbers of a tile in the registers of one program of rungs 1 to 3
GROUP = 128  # rows a group on rungs 4 to 6
BLOCK_Q = 64  # queries in a tile of rungs 4 to 6: 64 are what the largest tensor-core instruction takes
TF32_COLUMNS = 32  # of rungs 4 to 6: dimensions multiplied at once, 128 bytes of a row
INT8_COLUMNS = 128
TF32 = 2.2 * 2.0**-10  # a TF32 product is off by at most this share of |q| |e|: both factors lose their last 13 bits
RESCORE_ELEMENTS = 4096
ROUNDING = 2.0**-38  # of float64, in the sums of up to MOST_DIMENSIONS products and in the bound itself
INTERPRETED = knobs.runtime.interpret
CUT = tl.constexpr(INTERPRETED)  # the interpreter multiplies float32 exactly: it is made as coarse as the hardware


# ------------------------------------------------------------------------------------------------ 1. scores stored


@triton.jit
def _scores(
    queries,  # *fp32 [Q, D]
    blocks,  # *fp32 [N, D]
    scores,  # *fp32 [Q, N]
    n,
    d,
    tiles,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    query = (tl.program_id(0) // tiles).to(tl.int64)  # all tiles of one query, then all of the next
    tile = tl.program_id(0) % tiles
    columns = tl.arange(0, BLOCK_D)
    rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = columns < d
    q = tl.load(queries + query * d + columns, mask=inside, other=0.0)  # [BLOCK_D]
    at = blocks + rows[:, None] * d + columns[None, :]
    e = tl.load(at, mask=(rows < n)[:, None] & inside[None, :], other=0.0)  # [ROWS, BLOCK_D]
    tl.store(scores + query * n + rows, tl.sum(e * q[None, :], axis=1), mask=rows < n)


def scores_stored(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """4QN bytes of scores are written, and read to be chosen from; the blocks are read once for each query."""
    return best(all_scores(queries, blocks), k)


def all_scores(queries: Tensor, blocks: Tensor) -> Tensor:
    """-> [Q, N] float32"""
    (q, d), n = queries.shape, blocks.shape[0]
    rows = tile_rows(d)
    tiles = triton.cdiv(n, rows)
    scores = torch.empty(q, n, dtype=torch.float32, device=blocks.device)
    _scores[(q * tiles,)](queries, blocks, scores, n, d, tiles, ROWS=rows, BLOCK_D=padded(d))
    return scores


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of scores [Q, n] and their places, best first, of equals the first. -> [Q, k], [Q, k]"""
    top = scores.topk(min(k + 1, scores.shape[1]))
    if top.values.shape[1] > k and bool((top.values[:, k] == top.values[:, k - 1]).any()):
        values, places = scores.sort(dim=1, descending=True, stable=True)  # topk takes any of equals
        return values[:, :k], places[:, :k]
    places, order = top.indices[:, :k].sort(1)
    values, order = top.values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


# ------------------------------------------------------------------------------------------------ 2. group maxima


@triton.jit
def _group_maxima(
    queries,  # *fp32 [Q, D]
    blocks,  # *fp32 [N, D]
    maxima,  # *fp32 [Q, groups]
    n,
    d,
    groups,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    query = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    columns = tl.arange(0, BLOCK_D)
    rows = tl.minimum(group * ROWS + tl.arange(0, ROWS), n - 1).to(tl.int64)  # the last row again, rather than a mask
    inside = columns < d
    q = tl.load(queries + query * d + columns, mask=inside, other=0.0)
    e = tl.load(blocks + rows[:, None] * d + columns[None, :], mask=inside[None, :], other=0.0)
    tl.store(maxima + query * groups + group, tl.max(tl.sum(e * q[None, :], axis=1), axis=0))


def group_maxima(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """One number a group is written in place of G. A row of the k best has a score no smaller than the k-th, and so has
    its group's maximum; at most k groups can hold such a row, so the k groups of largest maximum hold them all."""
    return best_of_groups(queries, blocks, maxima_by_query(queries, blocks), tile_rows(blocks.shape[1]), k)


def maxima_by_query(queries: Tensor, blocks: Tensor) -> Tensor:
    """-> [Q, groups] float32"""
    (q, d), n = queries.shape, blocks.shape[0]
    rows = tile_rows(d)
    groups = triton.cdiv(n, rows)
    maxima = torch.empty(q, groups, dtype=torch.float32, device=blocks.device)
    _group_maxima[(q * groups,)](queries, blocks, maxima, n, d, groups, ROWS=rows, BLOCK_D=padded(d))
    return maxima


@triton.jit
def _rescore(
    queries,  # *fp32 [Q, D]
    blocks,  # *fp32 [N, D]
    chosen,  # *i64 [Q, width] groups, -1 for none
    scores,  # *fp32, or *fp64 where EXACT [Q, width * group]
    n,
    d,
    group,  # rows a group
    width,
    EXACT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    parts = group // ROWS  # a group is more than the registers of one program hold, where D is large
    pair = (tl.program_id(0) // parts).to(tl.int64)  # query * width + candidate
    row = tl.program_id(0) % parts * ROWS + tl.arange(0, ROWS)  # in the group
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    ids = tl.load(chosen + pair) * group + row
    valid = (ids >= 0) & (ids < n)  # group -1 has negative ids only
    q = tl.load(queries + pair // width * d + columns, mask=inside, other=0.0)
    e = tl.load(blocks + ids[:, None] * d + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
    if EXACT:
        e, q = e.to(tl.float64), q.to(tl.float64)
    tl.store(scores + pair * group + row, tl.where(valid, tl.sum(e * q[None, :], axis=1), float("-inf")))


def rescore(queries: Tensor, blocks: Tensor, chosen: Tensor, group: int, k: int, exact: bool) -> tuple[Tensor, Tensor]:
    """The k best rows of the chosen groups [Q, width], ascending, then -1 for none; exact: by sums in float64."""
    (q, d), n, width = queries.shape, blocks.shape[0], chosen.shape[1]
    rows = min(group, max(1, RESCORE_ELEMENTS // padded(d)))
    scores = torch.empty(q, width * group, dtype=torch.float64 if exact else torch.float32, device=blocks.device)
    programs = q * width * (group // rows)
    _rescore[(programs,)](
        queries, blocks, chosen, scores, n, d, group, width, EXACT=exact, ROWS=rows, BLOCK_D=padded(d)
    )
    values, places = best(scores, k)
    return values.float(), chosen.gather(1, places // group) * group + places % group


def best_of_groups(queries: Tensor, blocks: Tensor, maxima: Tensor, group: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best rows of the k groups of largest maximum, given [Q, groups]."""
    _, chosen = best(maxima, min(k, maxima.shape[1]))
    return rescore(queries, blocks, chosen.sort(1).values, group, k, exact=False)


# ------------------------------------------------------------------------------------------------ 3. one pass


@triton.jit
def _one_pass(
    queries,  # *fp32 [Q, D]
    blocks,  # *fp32 [N, D]
    maxima,  # *fp32 [Q, groups]
    q_count,
    n,
    d,
    groups,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    rows = tl.minimum(group * ROWS + tl.arange(0, ROWS), n - 1)
    inside = columns < d
    e = tl.load(blocks + rows[:, None] * d + columns[None, :], mask=inside[None, :], other=0.0)  # and stays here
    place = maxima + group
    for query in range(q_count):
        q = tl.load(queries + query * d + columns, mask=inside, other=0.0)
        tl.store(place, tl.max(tl.sum(e * q[None, :], axis=1), axis=0))
        place += groups


def one_pass(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The blocks are read once, not Q times. What is left is arithmetic: a sum over D is spread over the threads of a
    warp, who must hand it from one to the other (five shuffles) for each row and query."""
    return best_of_groups(queries, blocks, maxima_at_once(queries, blocks), tile_rows(blocks.shape[1]), k)


def maxima_at_once(queries: Tensor, blocks: Tensor) -> Tensor:
    """-> [Q, groups] float32"""
    (q, d), n = queries.shape, blocks.shape[0]
    rows = tile_rows(d)
    groups = triton.cdiv(n, rows)
    maxima = torch.empty(q, groups, dtype=torch.float32, device=blocks.device)
    _one_pass[(groups,)](queries, blocks, maxima, q, n, d, groups, ROWS=rows, BLOCK_D=padded(d))
    return maxima


# ------------------------------------------------------------------------------------------------ 4. tensor cores


@triton.jit
def _cut(x):
    """A float32 as TF32 has it: the last 13 bits of 23 are gone."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def _tensor_cores(
    queries,  # *fp32 [Q, D]
    blocks,  # *fp32 [N, D]
    maxima,  # *fp32 [Q, groups]
    q_count,
    n,
    d,
    groups,
    G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    q_tiles = tl.cdiv(q_count, BLOCK_Q)  # query tiles of one group run side by side, and share it in the L2 cache
    query = tl.program_id(0) % q_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    group = tl.program_id(0) // q_tiles
    rows = tl.minimum(group * G + tl.arange(0, G), n - 1).to(tl.int64)
    q_rows = queries + tl.minimum(query, q_count - 1).to(tl.int64)[:, None] * d
    scores = tl.zeros([BLOCK_Q, G], tl.float32)
    for start in range(0, d, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        q = tl.load(q_rows + columns[None, :], mask=(columns < d)[None, :], other=0.0)  # [BLOCK_Q, COLUMNS]
        e = tl.load(blocks + rows[None, :] * d + columns[:, None], mask=(columns < d)[:, None], other=0.0)
        if CUT:
            q, e = _cut(q), _cut(e)
        scores = tl.dot(q, e, scores, input_precision="tf32")
    # Queries are the rows: a thread holds many blocks of one query, and their maximum needs no other thread.
    place = query.to(tl.int64) * groups + group
    tl.store(maxima + place, tl.max(scores, axis=1), mask=query < q_count)


def tensor_cores(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Not exact. A maximum is off by up to TF32 |q| |e|, so groups may be chosen wrongly where maxima lie closer; the
    rows of those that are chosen get their float32 scores. (A bfloat16 copy: half the bytes, off by 2**-8 |q| |e|.)"""
    return best_of_groups(queries, blocks, tf32_maxima(queries, blocks), GROUP, k)


def tf32_maxima(queries: Tensor, blocks: Tensor) -> Tensor:
    """-> [Q, groups] float32"""
    (q, d), n = queries.shape, blocks.shape[0]
    groups, tile = triton.cdiv(n, GROUP), query_tile(q)
    maxima = torch.empty(q, groups, dtype=torch.float32, device=blocks.device)
    _tensor_cores[(groups * triton.cdiv(q, tile),)](
        queries, blocks, maxima, q, n, d, groups, G=GROUP, BLOCK_Q=tile, COLUMNS=TF32_COLUMNS
    )
    return maxima


# ------------------------------------------------------------------------------------------------ 5. int8


class Codes(NamedTuple):
    """The blocks as int8, made once for many searches. A row e of group g stands as scale[g] * codes."""

    codes: Tensor  # [N, D] int8
    scale: Tensor  # [groups] float32
    residual: Tensor  # [groups] float64 the largest |e - scale * codes| of the group
    norm: Tensor  # [groups] float64 the largest |scale * codes|


def compress(blocks: Tensor) -> Codes:
    """Codes of blocks [N, D]. One scale a group: its largest whole number is its largest score."""
    n, d = blocks.shape
    codes = torch.empty(n, d, dtype=torch.int8, device=blocks.device)
    pieces = []
    step = GROUP * max(1, (1 << 23) // (GROUP * d))
    for start in range(0, n, step):
        rows = blocks[start : start + step].double()
        scale = (_by_group(rows.abs().amax(1)) / 127).clamp(min=2.0**-126).float()
        of_row = scale.double().repeat_interleave(GROUP)[: len(rows), None]
        codes[start : start + step] = (rows / of_row).round().clamp(-127, 127)
        coded = codes[start : start + step] * of_row
        norms = ((rows - coded).square().sum(1).sqrt(), coded.square().sum(1).sqrt())
        pieces.append((scale, *(_by_group(norm) for norm in norms)))
    return Codes(codes, *(torch.cat(parts) for parts in zip(*pieces, strict=True)))


def _by_group(values: Tensor) -> Tensor:
    """The largest of each GROUP of values [n] >= 0. -> [groups]"""
    return torch.nn.functional.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP).amax(1)


@triton.jit
def _int8(
    queries,  # *i8 [Q, D]
    codes,  # *i8 [N, D]
    maxima,  # *i32 [Q, groups]
    q_count,
    n,
    d,
    groups,
    G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    q_tiles = tl.cdiv(q_count, BLOCK_Q)
    query = tl.program_id(0) % q_tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    group = tl.program_id(0) // q_tiles
    rows = tl.minimum(group * G + tl.arange(0, G), n - 1).to(tl.int64)
    q_rows = queries + tl.minimum(query, q_count - 1).to(tl.int64)[:, None] * d
    scores = tl.zeros([BLOCK_Q, G], tl.int32)
    for start in range(0, d, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        q = tl.load(q_rows + columns[None, :], mask=(columns < d)[None, :], other=0)
        e = tl.load(codes + rows[None, :] * d + columns[:, None], mask=(columns < d)[:, None], other=0)
        scores = tl.dot(q, e, scores, out_dtype=tl.int32)
    place = query.to(tl.int64) * groups + group
    tl.store(maxima + place, tl.max(scores, axis=1), mask=query < q_count)  # one scale a group: it can wait


def int8(queries: Tensor, blocks: Tensor, k: int, codes: Codes | None = None) -> tuple[Tensor, Tensor]:
    """Not exact. As rung 4, but blocks and queries are rounded to 255 steps, and their products are exact."""
    codes = compress(blocks) if codes is None else codes
    maxima = int8_maxima(coded_queries(queries)[0], codes.codes)
    return best_of_groups(queries, blocks, maxima * codes.scale, GROUP, k)


def coded_queries(queries: Tensor) -> tuple[Tensor, Tensor]:
    """queries [Q, D] -> (int8 [Q, D], what one in it stands for: float64 [Q, 1])"""
    exact = queries.double()
    step = (exact.abs().amax(1, keepdim=True) / 127).clamp(min=2.0**-900)
    return (exact / step).round().to(torch.int8), step


def int8_maxima(queries: Tensor, codes: Tensor) -> Tensor:
    """int8 [Q, D] and [N, D] -> [Q, groups] int32"""
    (q, d), n = queries.shape, codes.shape[0]
    groups, tile = triton.cdiv(n, GROUP), query_tile(q)
    maxima = torch.empty(q, groups, dtype=torch.int32, device=codes.device)
    _int8[(groups * triton.cdiv(q, tile),)](
        queries, codes, maxima, q, n, d, groups, G=GROUP, BLOCK_Q=tile, COLUMNS=INT8_COLUMNS
    )
    return maxima


# ------------------------------------------------------------------------------------------------ 6. certificate


def certificate(queries: Tensor, blocks: Tensor, k: int, codes: Codes | None = None) -> tuple[Tensor, Tensor]:
    """Exact. A group's best score lies within its bound of its maximum. The k-th largest lower end is a threshold that
    k rows reach; a group whose upper end is below it holds none of the k best, and all others are scored in float64."""
    codes = compress(blocks) if codes is None else codes
    lower, upper = intervals(queries, codes)  # [Q, groups]
    return rescore(queries, blocks, undecided(lower, upper, k), GROUP, k, exact=True)


def intervals(queries: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
    """Between what lies each group's best score: two [Q, groups] float64.

    With codes ê of e and q̂ of q:  q.e - q̂.ê = q.(e - ê) + (q - q̂).ê, and by Cauchy-Schwarz
    |q.e - q̂.ê| <= |q| |e - ê| + |q - q̂| |ê|. All four norms are known, the last three from the numbers themselves.
    """
    coded, step = coded_queries(queries)
    maxima = int8_maxima(coded, codes.codes) * (step * codes.scale)  # q̂.ê, [Q, groups] float64
    norm = queries.double().square().sum(1, keepdim=True).sqrt()  # [Q, 1]
    delta = (queries.double() - coded * step).square().sum(1, keepdim=True).sqrt()
    bound = norm * codes.residual + delta * codes.norm
    bound += ROUNDING * norm * (codes.norm + codes.residual)
    return maxima - bound, maxima + bound


def undecided(lower: Tensor, upper: Tensor, k: int) -> Tensor:
    """The groups that may hold one of the k best, ascending, then -1 where a query has fewer: [Q, width] int64."""
    threshold = lower.topk(k).values[:, -1:] if k <= lower.shape[1] else torch.full_like(lower[:, :1], float("-inf"))
    held = upper >= threshold  # [Q, groups]
    rank = held.cumsum(1)
    width = int(rank[:, -1].max())  # the host waits for this number
    chosen = torch.full((len(upper), width + 1), -1, dtype=torch.int64, device=upper.device)
    groups = torch.arange(upper.shape[1], device=upper.device).expand_as(rank)
    chosen.scatter_(1, torch.where(held, rank - 1, width), groups)  # the last column takes the rest
    return chosen[:, :width].contiguous()


# ------------------------------------------------------------------------------------------------ all of them


class Rung(NamedTuple):
    name: str
    search: Callable[..., tuple[Tensor, Tensor]]  # (queries, blocks, k), and codes=compress(blocks) where it takes them
    scan: Callable[..., Tensor]  # its kernel alone, of what `scanned` gives
    takes_codes: bool
    exact: bool


RUNGS = (
    Rung("1 scores stored", scores_stored, all_scores, False, True),
    Rung("2 group maxima", group_maxima, maxima_by_query, False, True),
    Rung("3 one pass", one_pass, maxima_at_once, False, True),
    Rung("4 tensor cores", tensor_cores, tf32_maxima, False, False),
    Rung("5 int8", int8, int8_maxima, True, False),
    Rung("6 certificate", certificate, int8_maxima, True, True),
)


def search(rung: Rung, queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A rung's answer to queries [Q, D] over blocks [N, D], float32, finite, on one device; 1 <= k <= N.

    Raises ValueError, in one sentence, for what it cannot take.
    """
    check(queries, blocks, k)
    with torch.no_grad(), torch.cuda.device_of(blocks):  # Triton launches on the current device
        return rung.search(queries.contiguous(), blocks.contiguous(), k)


def check(queries: Tensor, blocks: Tensor, k: int) -> None:
    """Raise ValueError, naming the value and the remedy, for what `search` cannot take."""
    for name, given in (("queries", queries), ("blocks", blocks)):
        if given.dtype != torch.float32 or given.ndim != 2 or 0 in given.shape:
            raise ValueError(f"{name} are {given.dtype} of shape {list(given.shape)}: give float32 [rows, dimensions]")
        if not given.isfinite().all():
            raise ValueError(f"{name} hold NaN or infinity: remove or repair those rows")
    if queries.shape[1] != blocks.shape[1] or queries.device != blocks.device:
        theirs = [f"{given.shape[1]} on {given.device}" for given in (queries, blocks)]
        raise ValueError(f"queries have {theirs[0]} and blocks {theirs[1]}: dimensions and device must agree")
    (n, d), q = blocks.shape, queries.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}: give 1 to {n}, the number of blocks")
    if d > MOST_DIMENSIONS:
        raise ValueError(f"blocks have {d} dimensions: the ladder takes up to {MOST_DIMENSIONS}, a row in registers")
    if q * triton.cdiv(n, tile_rows(d)) >= 2**31 or n + GROUP >= 2**31:
        raise ValueError(f"{q} queries over {n} blocks are more than 2**31 programs: search in parts")
    if float(queries.abs().max()) * float(blocks.abs().max()) * d >= 2.0**127:
        raise ValueError("scores may pass the largest float32: divide queries or blocks by a power of two")
    if not (blocks.is_cuda or INTERPRETED):
        raise ValueError("the kernels need CUDA tensors, or TRITON_INTERPRET=1 set before Python starts")


def padded(d: int) -> int:
    """The power of two that a row fills in registers: a tile has no other size."""
    return max(16, 1 << (d - 1).bit_length())


def tile_rows(d: int) -> int:
    """Rows of a tile, and of a group, on rungs 1 to 3."""
    return max(1, min(64, TILE_ELEMENTS // padded(d)))


def query_tile(q: int) -> int:
    """Queries of a tile on rungs 4 to 6: tensor cores take 16 at least, and filling more than there are is waste."""
    return 16 if q <= 16 else BLOCK_Q


def compiled_as(d: int) -> dict[str, tuple]:
    """For each rung the kernel of its scan, its pointers' types and its constexprs, as launched for 64 queries."""
    whole = dict(ROWS=tile_rows(d), BLOCK_D=padded(d))
    tiled = dict(G=GROUP, BLOCK_Q=BLOCK_Q)
    floats = dict(queries="*fp32", blocks="*fp32", maxima="*fp32")
    integers = dict(queries="*i8", codes="*i8", maxima="*i32")
    return {
        "1 scores stored": (_scores, dict(queries="*fp32", blocks="*fp32", scores="*fp32"), whole),
        "2 group maxima": (_group_maxima, floats, whole),
        "3 one pass": (_one_pass, floats, whole),
        "4 tensor cores": (_tensor_cores, floats, tiled | dict(COLUMNS=TF32_COLUMNS)),
        "5 int8": (_int8, integers, tiled | dict(COLUMNS=INT8_COLUMNS)),
    }
