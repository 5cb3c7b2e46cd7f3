"""Exact MIPS top-k on a GPU (REALM, section 3.3): scan for group maxima, certify, rescore. No score is stored.

The algorithm stands in `realm_min/search/mips.py`, its error bound in `bounds.py` beside it; here are the two steps
that touch the blocks. The scan is a stream of row tiles through a persistent grid: a tile is one group, so its scores
end in one maximum a query.
One query is bound by memory and multiplied on the ordinary cores (`_scan_one`), several, and int8 codes, go to the
tensor cores (`_scan_many`). Float32 goes there as TF32, which is off by more: the bound says by how much, and the
groups that it cannot tell apart are rescored. The rescoring (`_rescore`) is the float64 sum of `mips.exact_scores`,
added in the same order, so that a GPU and a CPU return the same bits.

Symbols: Q queries, N blocks, D dimensions, G rows a group.
"""

# Triton's language is compiled, not run: its `range` has no items, and a launch gives plain numbers for constexprs.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from realm_min.search import bounds, mips

from .triton_language import knobs, tl, triton

MAX_DIMENSIONS = 1024
BLOCK_DIMENSIONS = (128, 256, 1024)  # D is padded to one of these in registers, never in memory
MAXIMA_BYTES = 256 << 20  # group maxima held at once
KEYS_BYTES = 512 << 20  # rescored candidates held at once
TF32 = 2.2 * 2.0**-10  # both factors cut to 10 bits of mantissa
TILE_BYTES = 32 << 10  # of blocks, for each stage of the pipeline
RESCORE_ELEMENTS = 4096  # float64 numbers in the registers of one program
OPTIONS = dict(num_warps=4)
# Left alone, the assembler of Triton 3.7 chooses 72 registers in places, and spills: 255 is the hardware's limit.
ONE_OPTIONS = OPTIONS | dict(maxnreg=255)
INTERPRETED = knobs.runtime.interpret
DOT_IN_FLOAT32 = tl.constexpr(INTERPRETED)  # the interpreter would multiply the bit patterns of bfloat16


@triton.jit(do_not_specialize=["n", "units", "groups"], do_not_specialize_on_alignment=["maxima", "norm"])
def _scan_one(
    query,  # *fp32 [D] q̂
    blocks,  # *fp32, *fp16 or *bf16 [N, D]
    maxima,  # *fp32 [groups]
    norm,  # *fp32 [groups] largest ||e|| of the group, written when NORM
    n,
    units,  # D / UNIT
    groups,
    NORM: tl.constexpr,
    UNIT: tl.constexpr,
    G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    d = units * UNIT
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    q = tl.load(query + columns, mask=inside, other=0.0)  # [BLOCK_D]
    for group in tl.range(tl.program_id(0), groups, tl.num_programs(0), num_stages=STAGES):
        rows = (group * G + tl.arange(0, G)).to(tl.int64)
        offsets = rows[:, None] * d + columns[None, :]
        e = tl.load(blocks + offsets, mask=(rows < n)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        scores = tl.sum(e * q[None, :], axis=1)  # [G]
        tl.store(maxima + group, tl.max(tl.where(rows < n, scores, float("-inf")), axis=0))
        if NORM:
            squares = tl.sum(e * e, axis=1)
            squares = tl.where(squares == squares, squares, float("inf"))  # a maximum would lose NaN
            tl.store(norm + group, tl.sqrt(tl.max(squares, axis=0)))


@triton.jit(do_not_specialize=["n", "q_count", "units", "groups"], do_not_specialize_on_alignment=["scale", "maxima"])
def _scan_many(
    queries,  # *fp32, *fp16, *bf16 or *i8 [Q, D] q̂, in the type of the codes
    codes,  # the same type [N, D] ê
    scale,  # *fp32 [N / BASE] int8 only
    maxima,  # *fp32 [Q, groups]
    n,
    q_count,
    units,  # D / UNIT
    groups,
    INT8: tl.constexpr,
    BASE: tl.constexpr,
    UNIT: tl.constexpr,
    G: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    d = units * UNIT
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    # Query tiles of one group run side by side, so that a group comes from memory once and from L2 after that.
    q_offsets = query.to(tl.int64)[None, :] * d + columns[:, None]
    q = tl.load(queries + q_offsets, mask=(query < q_count)[None, :] & inside[:, None], other=0)  # [BLOCK_D, BLOCK_Q]
    for group in tl.range(tl.program_id(1), groups, tl.num_programs(1), num_stages=STAGES):
        rows = (group * G + tl.arange(0, G)).to(tl.int64)
        offsets = rows[:, None] * d + columns[None, :]
        e = tl.load(codes + offsets, mask=(rows < n)[:, None] & inside[None, :], other=0)  # [G, BLOCK_D]
        if INT8:
            scores = tl.dot(e, q, out_dtype=tl.int32).to(tl.float32)  # exact: below 2**24
            scores *= tl.load(scale + rows // BASE, mask=rows < n, other=0.0)[:, None]
        else:
            if DOT_IN_FLOAT32:
                e, q = e.to(tl.float32), q.to(tl.float32)
            scores = tl.dot(e, q, input_precision="tf32")
        best = tl.max(tl.where((rows < n)[:, None], scores, float("-inf")), axis=0)  # [BLOCK_Q]
        tl.store(maxima + query.to(tl.int64) * groups + group, best, mask=query < q_count)


@triton.jit(do_not_specialize=["n", "units", "group", "width"], do_not_specialize_on_alignment=["candidates", "keys"])
def _rescore(
    queries,  # *fp64 [Q, D] q
    blocks,  # *fp32, *fp16 or *bf16 [N, D]
    candidates,  # *i64 [Q, candidates] groups to rescore, -1 for none
    keys,  # *i64 [Q, candidates, group] rank of (score descending, id ascending), as mips.pack_keys
    n,
    units,  # D / UNIT
    group,  # rows a group
    width,  # candidates a query
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    d = units * UNIT
    columns = tl.arange(0, BLOCK_D)
    inside = columns < d
    pair = tl.program_id(0).to(tl.int64)  # query * width + candidate
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # in the group
    chosen = tl.load(candidates + pair)
    q = tl.load(queries + pair // width * d + columns, mask=inside, other=0.0)
    ids = chosen * group + row
    valid = (ids >= 0) & (ids < n)  # group -1 has only negative ids
    e = tl.load(blocks + ids[:, None] * d + columns[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
    sums = e.to(tl.float64) * q[None, :]  # [ROWS, BLOCK_D] exact
    # Halves to halves, the order of mips.exact_scores: each step adds just two numbers, so no layout can change it.
    for step in tl.static_range(0, 10):
        if BLOCK_D >> step > 1:
            sums = tl.sum(tl.reshape(sums, (ROWS, 2, BLOCK_D >> (step + 1))), axis=1)
    scores = tl.reshape(sums, (ROWS,)).to(tl.float32) + 0.0  # -0 and 0 are one score
    bits = scores.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (ordered.to(tl.int64) << 32) + (0xFFFFFFFF - ids)
    tl.store(keys + pair * group + row, tl.where(valid, key, -0x7FFFFFFFFFFFFFFF))


def mips_topk(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k blocks of largest inner product with each query, exact, best first.

    queries [Q, D] and blocks [N, D]: float32, float16 or bfloat16, finite, on one device; D a multiple of 8 up to 1024.
    Returns (scores [Q, k] float32 descending, ids [Q, k] int64); equal scores go to the smaller id.

    Raises ValueError for k < 1 or k > N, shapes that do not match, other dtypes, values that are not finite.
    """
    mips.check_blocks(blocks)
    blocks = blocks.contiguous()
    return search(queries, blocks, bounds.Codes(blocks, None, 0, None, None), k)[:2]


def search(queries: Tensor, blocks: Tensor, codes: bounds.Codes, k: int) -> tuple[Tensor, Tensor, mips.SearchReport]:
    """Exact top-k of queries [Q, D] over blocks [N, D] scanned through `codes`. -> scores, ids, report."""
    mips.check_search(queries, blocks, k)
    n, d = blocks.shape
    if d % 8 or d > MAX_DIMENSIONS:
        raise ValueError(f"blocks have {d} dimensions: the kernels take multiples of 8 up to {MAX_DIMENSIONS}")
    if n + 128 >= 1 << 31:  # rows are counted in int32, elements in int64
        raise ValueError(f"{n} blocks: the kernels count up to {(1 << 31) - 129}")
    if not (blocks.is_cuda or INTERPRETED):
        raise ValueError("the kernels need CUDA tensors: give CPU tensors to realm_min.search.mips")

    group = tile_rows(codes.codes.dtype, d)
    groups = -(-n // group)
    one = queries.shape[0] == 1 and codes.scale is None
    dtype = torch.float32 if one else codes.codes.dtype
    gamma, rho, eta = bounds.rounding(d, stored=2.0**-22)
    if not one and dtype == torch.float32:
        gamma += TF32
    norm = None if codes.norm is None else bounds.widen(codes.norm, group)
    residual = None if codes.residual is None else bounds.widen(codes.residual, group)

    scores = torch.empty(queries.shape[0], k, dtype=torch.float32, device=blocks.device)
    ids = torch.empty(queries.shape[0], k, dtype=torch.int64, device=blocks.device)
    report = mips.SearchReport(group, groups, [], [])
    step = max(1, MAXIMA_BYTES // (4 * groups))
    for start in range(0, queries.shape[0], step):
        scanned = bounds.scan_queries(queries[start : start + step], codes, dtype)
        if one:
            maxima, squares = _launch_one(scanned.codes, codes.codes, group, norm is None)  # [1, groups]
            norm = bounds.finite_norm(blocks, squares) if norm is None else norm
        else:
            if norm is None:  # several queries are bound by their products: one more pass for the norms costs little
                nothing = torch.zeros(1, d, dtype=torch.float32, device=blocks.device)
                norm = bounds.finite_norm(blocks, _launch_one(nothing, blocks, group, True)[1])
            maxima = _launch_many(scanned.codes, codes, group)  # [q, groups]
        bound = bounds.error_bound(scanned, norm, residual, gamma, eta)  # [q, groups]
        upper, threshold = bounds.certify(maxima, scanned.unit, bound, rho, k)  # [q, groups], [q]
        counts = (upper >= threshold[:, None]).sum(1).tolist()
        width = max(counts)
        report.rescored_groups += counts
        report.rescored_rows += [count * group for count in counts]
        some = max(1, KEYS_BYTES // (8 * width * group))
        for first in range(0, upper.shape[0], some):
            top = upper[first : first + some].topk(width)
            candidates = top.indices.masked_fill(top.values < threshold[first : first + some, None], -1)
            keys = _launch_rescore(scanned.exact[first : first + some], blocks, candidates, group)
            here = slice(start + first, start + first + candidates.shape[0])
            scores[here], ids[here] = mips.unpack_keys(keys.topk(k).values)
    return scores, ids, report


def tile_rows(dtype: torch.dtype, d: int) -> int:
    """Rows a group: a tile of at most TILE_BYTES, of 16 (the least the tensor cores take) to 128 rows."""
    return max(16, min(128, TILE_BYTES // (_block_d(d) * dtype.itemsize)))


def _block_d(d: int) -> int:
    return next(size for size in BLOCK_DIMENSIONS if d <= size)


def _block_q(q: int, block_d: int) -> int:
    return 64 if q > 16 and block_d <= 256 else 16


def _unit(dtype: torch.dtype, d: int) -> int:
    """A divisor of D that tells the compiler how wide it may load: 16 bytes, where D allows."""
    return 16 if dtype == torch.int8 and d % 16 == 0 else 8


def _stages(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.float32 else 3


def _programs(tensor: Tensor) -> int:
    """Programs of a persistent grid: some for each multiprocessor, to hide each other's latency."""
    return 4 * torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 3


def _aligned(tensor: Tensor) -> Tensor:
    """The kernels read 16 bytes at a time: a view that starts elsewhere is copied."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _launch_one(query: Tensor, blocks: Tensor, group: int, with_norm: bool) -> tuple[Tensor, Tensor]:
    """query [1, D] float32 -> group maxima [1, groups] float32, group norms [groups] float32 (unset unless asked)."""
    n, d = blocks.shape
    groups = -(-n // group)
    maxima = torch.empty(1, groups, dtype=torch.float32, device=blocks.device)
    norm = torch.empty(groups, dtype=torch.float32, device=blocks.device)
    unit = _unit(blocks.dtype, d)
    constants = dict(NORM=with_norm, UNIT=unit, G=group, BLOCK_D=_block_d(d), STAGES=_stages(blocks.dtype))
    grid = (min(groups, _programs(blocks)),)
    with torch.cuda.device_of(blocks):  # Triton launches on the current device
        _scan_one[grid](
            _aligned(query), _aligned(blocks), maxima, norm, n, d // unit, groups, **constants, **ONE_OPTIONS
        )
    return maxima, norm


def _launch_many(queries: Tensor, codes: bounds.Codes, group: int) -> Tensor:
    """queries [Q, D] in the type of the codes [N, D] -> group maxima [Q, groups] float32."""
    n, d = codes.codes.shape
    q = queries.shape[0]
    groups = -(-n // group)
    maxima = torch.empty(q, groups, dtype=torch.float32, device=queries.device)
    unit = _unit(queries.dtype, d)
    block_d = _block_d(d)
    block_q = _block_q(q, block_d)
    int8 = codes.scale is not None
    constants = dict(INT8=int8, BASE=bounds.BASE_GROUP, UNIT=unit, G=group, BLOCK_Q=block_q, BLOCK_D=block_d)
    grid = (-(-q // block_q), min(groups, _programs(queries)))
    with torch.cuda.device_of(queries):
        _scan_many[grid](
            _aligned(queries),
            _aligned(codes.codes),
            codes.scale if int8 else maxima,  # read only when INT8
            maxima,
            n,
            q,
            d // unit,
            groups,
            **constants,
            STAGES=_stages(queries.dtype),
            **OPTIONS,
        )
    return maxima


def _launch_rescore(queries: Tensor, blocks: Tensor, candidates: Tensor, group: int) -> Tensor:
    """queries [Q, D] float64, candidates [Q, width] -> keys [Q, width * group] int64 of every row of their groups."""
    n, d = blocks.shape
    q, width = candidates.shape
    keys = torch.empty(q, width * group, dtype=torch.int64, device=blocks.device)
    unit = _unit(blocks.dtype, d)
    block_d = _block_d(d)
    rows = min(group, RESCORE_ELEMENTS // block_d)
    with torch.cuda.device_of(blocks):
        _rescore[(q * width, group // rows)](
            _aligned(queries),
            _aligned(blocks),
            candidates,
            keys,
            n,
            d // unit,
            group,
            width,
            UNIT=unit,
            ROWS=rows,
            BLOCK_D=block_d,
            **OPTIONS,
        )
    return keys


def compile_variants() -> Iterator[tuple[str, triton.JITFunction, dict[str, str], dict, dict]]:
    """Every compilation a launch above can ask for: (name, kernel, signature, constexprs, options).

    `signature` maps each argument to its Triton type, with ":16" where the launch promises an address that 16 divides.
    """
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "i8"}
    for dtype, d in itertools.product(names, BLOCK_DIMENSIONS):
        name, group, stages = names[dtype], tile_rows(dtype, d), _stages(dtype)
        sizes = dict(UNIT=_unit(dtype, d), G=group, BLOCK_D=d, STAGES=stages)
        signature = {
            "queries": f"*{name}:16",
            "codes": f"*{name}:16",
            **dict.fromkeys(["scale", "maxima"], "*fp32"),
            **dict.fromkeys(["n", "q_count", "units", "groups"], "i32"),
        }
        int8 = dtype == torch.int8
        for unit, q in itertools.product(sorted({8, _unit(dtype, d)}), sorted({_block_q(1, d), _block_q(64, d)})):
            constexprs = sizes | dict(INT8=int8, BASE=bounds.BASE_GROUP, BLOCK_Q=q, UNIT=unit)
            yield f"scan many {name} D<={d} BLOCK_Q={q} UNIT={unit}", _scan_many, signature, constexprs, OPTIONS
        if int8:
            continue
        signature = {
            "query": "*fp32:16",
            "blocks": f"*{name}:16",
            **dict.fromkeys(["maxima", "norm"], "*fp32"),
            **dict.fromkeys(["n", "units", "groups"], "i32"),
        }
        for norm in (False, True):
            yield f"scan one {name} D<={d} NORM={norm}", _scan_one, signature, sizes | dict(NORM=norm), ONE_OPTIONS
        signature = {
            "queries": "*fp64:16",
            "blocks": f"*{name}:16",
            **dict.fromkeys(["candidates", "keys"], "*i64"),
            **dict.fromkeys(["n", "units", "group", "width"], "i32"),
        }
        constexprs = dict(UNIT=_unit(dtype, d), ROWS=min(group, RESCORE_ELEMENTS // d), BLOCK_D=d)
        yield f"rescore {name} D<={d}", _rescore, signature, constexprs, OPTIONS
