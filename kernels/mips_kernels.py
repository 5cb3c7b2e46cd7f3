"""The Triton kernels of exact MIPS top-k, in the order in which `mips_topk.py` launches them.

Bounds are computed in float32 in the scan's own unit, in which a score and its bound are of moderate size, and each
is made larger than any rounding of it (`ROUND_UP`). Symbols: Q queries, N blocks, D dimensions, G rows a group.
"""

# Triton's language is compiled, not run: its `range` has no items, and a launch gives plain numbers for constexprs.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false

from realm_min.search import bounds

from .triton_language import knobs, tl, triton

INTERPRETED = knobs.runtime.interpret
COARSE = tl.constexpr(INTERPRETED)  # the interpreter's products are made as coarse as those of the tensor cores
ROUND_UP = tl.constexpr(1 + 2.0**-18)  # more than the roundings of a bound in float32
BASE = tl.constexpr(bounds.BASE_GROUP)


@triton.jit
def _power_of_two(exponent):
    """2.0**exponent, float64."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _cut(x):
    """Under the interpreter, x as coarse as the tensor cores may see it: 13 bits less, and no subnormal numbers."""
    if COARSE:
        x = x.to(tl.float32)
        x = (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        x = tl.where(tl.abs(x) < 2.0**-126, 0.0, x)
    return x


@triton.jit
def _least(threshold, mine):
    """What a row's upper end must reach. Scores round to float32, and of equal ones the first rows count: those that
    round to zero are as good as any that do, and those that round to infinity, or to minus infinity."""
    infinite = tl.load(mine + 5)
    least = tl.minimum(tl.load(threshold), infinite) - tl.load(mine + 4)
    return tl.where(least < -infinite, -float("inf"), least)


@triton.jit
def _bound_of(values, shift):
    """Float64 norms or residuals -> float32 in units of 2**shift, not smaller but where they are taken for zero."""
    return (values * _power_of_two(-shift) * ROUND_UP).to(tl.float32)


@triton.jit(
    do_not_specialize=["d", "exponent"], do_not_specialize_on_alignment=["queries", "coded", "shares", "counts"]
)
def prepare_kernel(
    queries,  # *fp32, *fp16 or *bf16 [Q, D] q
    coded,  # *fp32, *fp16, *bf16 or *i8 [Q, D] q̂ / unit
    shares,  # *fp32 [Q, 8] of the bound: norm in `scan`, in `filter_kernel`, residual, constant; of ties: 0, infinity
    counts,  # *i32, of which the second becomes Q less the number of the first query that is not finite
    d,
    exponent,  # of the codes
    gamma,
    gamma_row,  # of `rescore_kernel`'s sums
    INT8: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    columns = tl.arange(0, BLOCK_D)
    at = tl.program_id(0).to(tl.int64) * d + columns
    q = tl.load(queries + at, mask=columns < d, other=0.0).to(tl.float32).to(tl.float64)
    norm = tl.sqrt(tl.sum(q * q, axis=0))
    if INT8:
        shift = 1.0
        unit = tl.maximum(tl.max(tl.abs(q), axis=0) / 127, 1e-300)
        code = tl.floor(q / unit + 0.5)
    else:
        # A power of two brings ||q|| under 2**-6: no partial sum can overflow.
        shift = 256.0
        unit = _power_of_two(((norm.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1016)
        code = (q / unit).to(tl.float32).to(coded.dtype.element_ty).to(tl.float32).to(tl.float64)
    tl.store(coded + at, code.to(tl.float32).to(coded.dtype.element_ty), mask=columns < d)
    delta = tl.sqrt(tl.sum((q / unit - code) * (q / unit - code), axis=0))
    code_norm = tl.sqrt(tl.sum(code * code, axis=0))
    place = shares + tl.program_id(0) * 8
    tl.store(place, ((delta + gamma * code_norm) * shift * ROUND_UP).to(tl.float32))
    tl.store(place + 1, ((delta + gamma_row * code_norm) * shift * ROUND_UP).to(tl.float32))
    tl.store(place + 2, (norm / unit * shift * ROUND_UP).to(tl.float32))
    tl.store(place + 3, d.to(tl.float32) * 2.0**-116)  # products, and bounds, that are taken for zero
    tl.store(place + 4, (_power_of_two(-148 - exponent) / unit * ROUND_UP).to(tl.float32))
    tl.store(place + 5, (_power_of_two(127 - exponent) / unit).to(tl.float32))
    if norm - norm != 0.0:  # NaN, where the query is not finite
        tl.atomic_max(counts + 1, tl.num_programs(0) - tl.program_id(0))


@triton.jit
def _largest(values, PARTS: tl.constexpr, EACH: tl.constexpr):
    """Maximum of every EACH consecutive of values [PARTS * EACH] -> [PARTS]"""
    return tl.max(tl.reshape(values, (PARTS, EACH)), axis=1)


@triton.jit(
    do_not_specialize=["n", "units", "groups", "shift"],
    do_not_specialize_on_alignment=["shares", "norm", "residual", "ends", "group_bounds", "counts"],
)
def scan_one_kernel(
    query,  # *fp32 [D] q̂ / unit
    codes,  # *fp32, *fp16 or *bf16 [N, D]
    shares,  # *fp32 [8] of `prepare_kernel`
    norm,  # *fp64 [N / BASE] n >= ||ê||; written when NORM, from the rows themselves
    residual,  # *fp64 [N / BASE] r >= ||e - ê||; read when RESIDUAL
    ends,  # *fp32 [groups] lower ends
    group_bounds,  # *fp32 [2, groups] n and r of whole groups
    counts,  # *i32, of which the third becomes 1 where NORM and a block is not finite
    n,
    units,  # D / UNIT
    groups,
    shift,  # bounds are held in units of 2**shift
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    UNIT: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,  # of BLOCK_D columns
    STAGES: tl.constexpr,
):
    d = units * UNIT
    tile_rows = tl.arange(0, ROWS)
    tile_bases = tl.arange(0, ROWS // BASE)
    tile_groups = tl.arange(0, ROWS // G)
    last_base = (n - 1) // BASE
    for tile in tl.range(tl.program_id(0), tl.cdiv(n, ROWS), tl.num_programs(0), num_stages=STAGES):
        # Rows past the end are the last once more: that changes no maximum, and costs less than a mask.
        row = tl.minimum(tile * ROWS + tile_rows, n - 1).to(tl.int64)
        scores = tl.zeros([ROWS], tl.float32)
        squares = tl.zeros([ROWS], tl.float64)
        for chunk in tl.static_range(CHUNKS):
            columns = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
            inside = columns < d
            q = tl.load(query + columns, mask=inside, other=0.0)
            e = tl.load(codes + row[:, None] * d + columns[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
            scores += tl.sum(e * q[None, :], axis=1)
            if NORM:  # in float64, where no square vanishes or overflows
                wide = e.to(tl.float64)
                squares += tl.sum(wide * wide, axis=1)
        base = tl.minimum(tile_bases + tile * (ROWS // BASE), last_base)
        if NORM:
            squares = tl.where(squares == squares, squares, float("inf"))  # a maximum would lose NaN
            n_base = tl.sqrt(_largest(squares, ROWS // BASE, BASE))
            tl.store(norm + base, n_base, mask=tile_bases + tile * (ROWS // BASE) <= last_base)
            if tl.max(n_base, axis=0) == float("inf"):
                tl.store(counts + 2, 1)
        else:
            n_base = tl.load(norm + base)
        n_group = _bound_of(_largest(n_base, ROWS // G, G // BASE), shift)
        bound = tl.load(shares) * n_group + tl.load(shares + 3)
        group = tile * (ROWS // G) + tile_groups
        tl.store(group_bounds + group, n_group, mask=group < groups)
        if RESIDUAL:
            r_group = _bound_of(_largest(tl.load(residual + base), ROWS // G, G // BASE), shift)
            bound += tl.load(shares + 2) * r_group
            tl.store(group_bounds + groups + group, r_group, mask=group < groups)
        best = _largest(scores, ROWS // G, G)
        tl.store(ends + group, best - bound * ROUND_UP, mask=group < groups)


@triton.jit(
    do_not_specialize=["n", "q_count", "units", "groups", "shift"],
    do_not_specialize_on_alignment=["scale", "shares", "norm", "residual", "ends", "group_bounds"],
)
def scan_many_kernel(
    queries,  # *fp32, *fp16, *bf16 or *i8 [Q, D] q̂ / unit, in the type of the codes
    codes,  # the same type [N, D] ê
    scale,  # *fp32 [N / BASE] int8 only
    shares,  # *fp32 [Q, 8] of `prepare_kernel`
    norm,  # *fp64 [N / BASE] n >= ||ê||
    residual,  # *fp64 [N / BASE] r >= ||e - ê||; read when RESIDUAL
    ends,  # *fp32 [Q, groups] lower ends
    group_bounds,  # *fp32 [2, groups] n and r of whole groups
    n,
    q_count,
    units,  # D / UNIT
    groups,
    shift,  # bounds are held in units of 2**shift
    INT8: tl.constexpr,
    RESIDUAL: tl.constexpr,
    UNIT: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNKS: tl.constexpr,  # of BLOCK_D columns
    STAGES: tl.constexpr,
):
    d = units * UNIT
    columns = tl.arange(0, BLOCK_D)
    # Query tiles of one row tile run side by side, so that it comes from memory once and from L2 after that.
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    query_row = tl.minimum(query, q_count - 1).to(tl.int64)
    q_at = query_row[:, None] * d + columns[None, :]
    if CHUNKS == 1:
        q = tl.load(queries + q_at, mask=(columns < d)[None, :], other=0)  # [BLOCK_Q, BLOCK_D]
    norm_share = tl.load(shares + query_row * 8)
    residual_share = tl.load(shares + query_row * 8 + 2)
    constant = tl.load(shares + 3)
    last_base = (n - 1) // BASE
    for tile in tl.range(tl.program_id(1), tl.cdiv(n, ROWS), tl.num_programs(1), num_stages=STAGES):
        # Rows past the end are the last once more: that changes no maximum, and costs less than a mask.
        row = tl.minimum(tile * ROWS + tl.arange(0, ROWS), n - 1).to(tl.int64)
        at = row[None, :] * d + columns[:, None]
        base = tl.minimum(tl.arange(0, ROWS // BASE) + tile * (ROWS // BASE), last_base)
        # Queries are the rows of the product, so that a thread holds scores of many blocks and of few queries: most of
        # the maximum is taken inside it.
        if CHUNKS == 1:
            e = tl.load(codes + at, mask=(columns < d)[:, None], other=0)  # [BLOCK_D, ROWS]
            scores = _product(q, e, INT8)
        else:
            scores = tl.zeros([BLOCK_Q, ROWS], tl.int32 if INT8 else tl.float32)
            for chunk in range(CHUNKS):
                inside = chunk * BLOCK_D + columns < d
                q = tl.load(queries + q_at + chunk * BLOCK_D, mask=inside[None, :], other=0)
                e = tl.load(codes + at + chunk * BLOCK_D, mask=inside[:, None], other=0)
                scores += _product(q, e, INT8)
        if INT8:  # 16 rows share a scale: of four times four, each thread holds two pairs in the layout of a product
            parts = tl.reshape(scores, (BLOCK_Q, ROWS // BASE, 2, 4, 2))
            parts = tl.max(tl.max(parts, axis=4), axis=2).to(tl.float32)  # exact: below 2**24
            parts *= tl.load(scale + base)[None, :, None]
            best = tl.max(tl.max(tl.reshape(parts, (BLOCK_Q, ROWS // G, G // BASE, 4)), axis=2), axis=2)
        else:
            best = tl.max(tl.reshape(scores, (BLOCK_Q, ROWS // G, G)), axis=2)  # [BLOCK_Q, ROWS / G]
        group = tile * (ROWS // G) + tl.arange(0, ROWS // G)
        n_group = _bound_of(_largest(tl.load(norm + base), ROWS // G, G // BASE), shift)
        bound = norm_share[:, None] * n_group[None, :] + constant
        first = (tl.program_id(0) == 0) & (group < groups)
        tl.store(group_bounds + group, n_group, mask=first)
        if RESIDUAL:
            r_group = _bound_of(_largest(tl.load(residual + base), ROWS // G, G // BASE), shift)
            bound += residual_share[:, None] * r_group[None, :]
            tl.store(group_bounds + groups + group, r_group, mask=first)
        end = best - bound * ROUND_UP
        here = (query < q_count)[:, None] & (group < groups)[None, :]
        tl.store(ends + query.to(tl.int64)[:, None] * groups + group[None, :], end, mask=here)


@triton.jit
def _product(q, e, INT8: tl.constexpr):
    if INT8:
        return tl.dot(q, e, out_dtype=tl.int32)
    return tl.dot(_cut(q), _cut(e), input_precision="tf32")


@triton.jit(
    do_not_specialize=["groups", "room"],
    do_not_specialize_on_alignment=["ends", "thresholds", "shares", "group_bounds", "counts", "pairs"],
)
def certify_kernel(
    ends,  # *fp32 [Q, groups] lower ends
    thresholds,  # *fp32 [Q] the k-th largest of them
    shares,  # *fp32 [Q, 8] of `prepare_kernel`
    group_bounds,  # *fp32 [2, groups]
    counts,  # *i32 [3 + 2 Q] candidate groups of all; (two flags); of each query; rows of each query
    pairs,  # *i64 [room] query * groups + group, in any order
    groups,
    room,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    query = tl.program_id(1)
    group = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = group < groups
    mine = shares + query * 8
    bound = tl.load(mine) * tl.load(group_bounds + group, mask=inside, other=0.0) + tl.load(mine + 3)
    if RESIDUAL:
        bound += tl.load(mine + 2) * tl.load(group_bounds + groups + group, mask=inside, other=0.0)
    at = query.to(tl.int64) * groups + group
    end = tl.load(ends + at, mask=inside, other=-float("inf"))
    upper = end + bound * (2 * ROUND_UP * ROUND_UP)
    chosen = inside & (upper >= _least(thresholds + query, mine))
    count = tl.sum(chosen.to(tl.int32), axis=0)
    if count > 0:
        tl.atomic_add(counts + 3 + query, count)
        place = tl.atomic_add(counts, count) + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(pairs + place, at, mask=chosen & (place < room))


@triton.jit(
    do_not_specialize=["n", "q_count", "units", "groups", "shift", "room", "width"],
    do_not_specialize_on_alignment=[
        "coded", "scale", "shares", "thresholds", "norm", "residual", "counts", "pairs", "rows",
    ],
)  # fmt: skip
def filter_kernel(
    coded,  # *fp32, *fp16, *bf16 or *i8 [Q, D] q̂ / unit
    codes,  # *fp32, *fp16, *bf16 or *i8 [N, D] ê
    scale,  # *fp32 [N / BASE] int8 only
    shares,  # *fp32 [Q, 8] of `prepare_kernel`
    thresholds,  # *fp32 [Q]
    norm,  # *fp64 [N / BASE]
    residual,  # *fp64 [N / BASE] read when RESIDUAL
    counts,  # *i32 [3 + 2 Q] of `certify_kernel`; the last Q are counted here
    pairs,  # *i64 [room]
    rows,  # *i32 [Q, width] those that can be among the k best, in any order
    n,
    q_count,
    units,  # D / UNIT
    groups,
    shift,  # bounds are held in units of 2**shift
    room,
    width,  # rows of each query that there is room for
    INT8: tl.constexpr,
    RESIDUAL: tl.constexpr,
    UNIT: tl.constexpr,
    G: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = units * UNIT
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    items = tl.minimum(tl.load(counts), room).to(tl.int64) * (G // ROWS)
    for item in range(tl.program_id(0).to(tl.int64), items, tl.num_programs(0)):
        pair = tl.load(pairs + item // (G // ROWS))
        query = pair // groups
        row = pair % groups * G + item % (G // ROWS) * ROWS + tl.arange(0, ROWS)
        base = tl.minimum(row, n - 1) // BASE
        q_at = query * d + columns
        at = tl.minimum(row, n - 1)[:, None] * d + columns[None, :]
        if INT8:
            q = tl.load(coded + q_at, mask=inside, other=0).to(tl.int32)
            e = tl.load(codes + at, mask=inside[None, :], other=0).to(tl.int32)
            score = tl.sum(e * q[None, :], axis=1).to(tl.float32) * tl.load(scale + base)
        else:
            q = tl.load(coded + q_at, mask=inside, other=0.0).to(tl.float32)
            e = tl.load(codes + at, mask=inside[None, :], other=0.0).to(tl.float32)
            score = tl.sum(e * q[None, :], axis=1)
        mine = shares + query * 8
        bound = tl.load(mine + 1) * _bound_of(tl.load(norm + base), shift) + tl.load(mine + 3)
        if RESIDUAL:
            bound += tl.load(mine + 2) * _bound_of(tl.load(residual + base), shift)
        passes = (row < n) & (score + bound * ROUND_UP >= _least(thresholds + query, mine))
        count = tl.sum(passes.to(tl.int32), axis=0)
        if count > 0:
            place = tl.atomic_add(counts + 3 + q_count + query, count) + tl.cumsum(passes.to(tl.int32), axis=0) - 1
            tl.store(rows + query * width + place, row.to(tl.int32), mask=passes & (place < width))


@triton.jit(
    do_not_specialize=["q_count", "units", "width"],
    do_not_specialize_on_alignment=["queries", "counts", "rows", "keys"],
)
def rescore_kernel(
    queries,  # *fp32, *fp16 or *bf16 [Q, D] q
    blocks,  # *fp32, *fp16 or *bf16 [N, D] e
    counts,  # *i32 [3 + 2 Q] of `filter_kernel`
    rows,  # *i32 [Q, width]; when ALL, they are all rows, and this is not read
    keys,  # *i64 [Q, width] rank of (score descending, id ascending), as mips.pack_keys; the least, where no row is
    q_count,
    units,  # D / UNIT
    width,
    ALL: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = units * UNIT
    columns = tl.arange(0, BLOCK_D)
    query = tl.program_id(1).to(tl.int64)
    count = width
    if not ALL:
        count = tl.load(counts + 3 + q_count + query)
    for first in range(tl.program_id(0) * ROWS, width, tl.num_programs(0) * ROWS):
        place = first + tl.arange(0, ROWS)
        key = tl.full([ROWS], -0x7FFFFFFFFFFFFFFF, tl.int64)
        if first < count:
            there = place < tl.minimum(count, width)
            row = tl.minimum(place, width - 1).to(tl.int64)
            if not ALL:
                row = tl.load(rows + query * width + place, mask=there, other=0).to(tl.int64)
            q = tl.load(queries + query * d + columns, mask=columns < d, other=0.0).to(tl.float32).to(tl.float64)
            e = tl.load(blocks + row[:, None] * d + columns[None, :], mask=(columns < d)[None, :], other=0.0)
            sums = e.to(tl.float32).to(tl.float64) * q[None, :]  # [ROWS, BLOCK_D] exact
            if ALL:  # no kernel before this one saw the numbers
                if tl.max(tl.where(q - q == 0.0, 0, 1), axis=0) > 0:
                    tl.atomic_max(counts + 1, q_count - tl.program_id(1))
                if tl.max(tl.max(tl.where(e - e == 0.0, 0, 1), axis=1), axis=0) > 0:
                    tl.store(counts + 2, 1)
            # Halves to halves, the order of mips.exact_scores: a step adds just two numbers, so no layout changes it.
            for step in tl.static_range(0, 16):
                if BLOCK_D >> step > 1:
                    sums = tl.sum(tl.reshape(sums, (ROWS, 2, BLOCK_D >> (step + 1))), axis=1)
            exact = tl.reshape(sums, (ROWS,)).to(tl.float32) + 0.0  # -0 and 0 are one score
            bits = exact.to(tl.int32, bitcast=True)
            ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
            key = tl.where(there, (ordered.to(tl.int64) << 32) + (0xFFFFFFFF - row), key)
        tl.store(keys + query * width + place, key, mask=place < width)


@triton.jit(do_not_specialize=["size"], do_not_specialize_on_alignment=["keys", "scores", "ids"])
def unpack_kernel(
    keys,  # *i64 [Q * k] best first
    scores,  # *fp32 [Q * k]
    ids,  # *i64 [Q * k]
    size,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + at, mask=at < size, other=0)
    ordered = (key >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    tl.store(scores + at, bits.to(tl.float32, bitcast=True), mask=at < size)
    tl.store(ids + at, 0xFFFFFFFF - (key & 0xFFFFFFFF), mask=at < size)
