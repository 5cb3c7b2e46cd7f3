"""Exact MIPS top-k on a GPU (REALM, section 3.3): scan for group maxima, certify, rescore. No score is stored.

The algorithm and the proof of its error bound stand in `realm_min/search/mips.py` and `bounds.py` beside it. Here it
is a pipeline of five phases, each of one kernel or one `topk`, with nothing for the host to wait for in between:

1. `prepare`: the queries as the scan multiplies them, and each one's share of the error bound.
2. `scan`: a stream of row tiles through a grid that stays. Scores of a tile never leave the registers: a group of G
   rows ends in the lower end of its best score. One query is bound by memory and multiplied on the ordinary cores;
   several, and int8 codes, go to the tensor cores, where float32 is cut to TF32.
3. `threshold`: the k-th largest lower end. No answer is under it.
4. `rescore`: groups whose upper end reaches the threshold are listed, their rows are held to it one by one, and those
   that pass get the float64 score of `mips.exact_scores`, added in the same order.
5. `select`: the k best of those.

Where there are few rows, all get their final score: launching the phases would take longer than they spare.

How much there is to rescore only the device knows. Room is made for what is usual; the counts come back with the
answer, and where they are larger than the room, the fourth phase runs again with as much as it takes.

The kernels stand in `mips_kernels.py`. Symbols: Q queries, N blocks, D dimensions, G rows a group.
"""

# A launch gives plain numbers for constexprs.
# pyright: reportArgumentType=false

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from realm_min.ranks.devices import plain_arithmetic
from realm_min.search import bounds, mips

from .mips_kernels import (
    INTERPRETED,
    certify_kernel,
    filter_kernel,
    prepare_kernel,
    rescore_kernel,
    scan_many_kernel,
    scan_one_kernel,
    unpack_kernel,
)
from .triton_language import triton

PHASES = ("prepare", "scan", "threshold", "rescore", "select")
GROUPS = (128, 64, 32, 16)  # rows a group can have
GROUPS_PER_K = 256  # groups for each of the k answers, at least: fewer would make most of them candidates
ENDS_BYTES = 256 << 20  # of lower ends held at once: queries are searched in chunks that fit
KEYS_BYTES = 512 << 20  # of rescored rows held at once
ROOM = (8, 1024)  # candidates a query that room is made for at first: so many times k, and so many more
FEW_SCORES = 1 << 21  # of queries and blocks in all, that are computed without a scan
TILE_ELEMENTS = 4096  # numbers of rows in the registers of a program that looks at few of them
FILTER_WARPS = 4  # of a program that looks at 16 to 128 rows
CERTIFY_GROUPS = 1024  # groups that one program certifies
TF32 = 2.2 * 2.0**-10  # both factors cut to 10 bits of mantissa
OPTIONS = dict(enable_fp_fusion=True)  # a product and a sum in one rounding: the bounds hold with it and without
# Left alone, the assembler of Triton 3.7 chooses few registers in places, and spills: 255 is the hardware's limit.
REGISTERS = dict(maxnreg=255)


# ------------------------------------------------------------------------------------------------------- the phases


@dataclass(frozen=True)
class Prepared:
    """Queries as the scan takes them, and what the device counts from then on."""

    queries: Tensor  # [Q, D] q
    coded: Tensor  # [Q, D] q̂ / unit, float32 or in the type of the codes
    shares: Tensor  # [Q, 8] float32, of the error bound
    counts: Tensor  # [3 + 2 Q] int32: see `certify_kernel`


@dataclass(frozen=True)
class Scanned:
    """What the scan leaves of the blocks."""

    ends: Tensor  # [Q, groups] float32, lower ends of the groups' best scores
    group_bounds: Tensor  # [2, groups] float32, norms and residuals
    norm: Tensor  # [base groups] float64
    group: int  # rows a group


def mips_topk(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k blocks of largest inner product with each query, exact, best first.

    queries [Q, D] and blocks [N, D]: float32, float16 or bfloat16, finite, on one device.
    Returns (scores [Q, k] float32 descending, ids [Q, k] int64); equal scores go to the smaller id.

    Raises ValueError for k < 1 or k > N, shapes that do not match, other dtypes, values that are not finite.
    """
    mips.check_blocks(blocks)
    return search(queries, blocks, bounds.Codes(blocks, None, 0, None, None), k)[:2]


@plain_arithmetic("cuda")
def search(queries: Tensor, blocks: Tensor, codes: bounds.Codes, k: int) -> tuple[Tensor, Tensor, mips.SearchReport]:
    """Exact top-k of queries [Q, D] over blocks [N, D] scanned through `codes`. -> scores, ids, report."""
    mips.check_search_shapes(queries, blocks, k)
    n, d = blocks.shape
    if n + 128 >= 1 << 31:  # rows are counted in int32, elements in int64
        raise ValueError(f"{n} blocks: the kernels count up to {(1 << 31) - 129}")
    if not (blocks.is_cuda or INTERPRETED):
        raise ValueError("the kernels need CUDA tensors: give CPU tensors to realm_min.search.mips")
    group = group_rows(n, k, largest_group(codes.codes.dtype, len(queries), d))
    report = mips.SearchReport(group, -(-n // group), [], [])
    if not len(queries):
        return queries.new_zeros(0, k, dtype=torch.float32), queries.new_zeros(0, k, dtype=torch.int64), report
    queries, blocks, codes = _aligned(queries), _aligned(blocks), replace(codes, codes=_aligned(codes.codes))
    some = min(ENDS_BYTES // (4 * report.groups), KEYS_BYTES // (8 * room_for(n, k)), 1 << 14)
    tile = next(tile for tile in (128, 64, 16, 1) if some >= tile)
    some = max(1, some // tile * tile)  # whole tiles of queries
    with torch.cuda.device_of(blocks):  # Triton launches on the current device
        if len(queries) * n <= FEW_SCORES:
            return *search_all(queries, blocks, k, report), report
        found = [search_chunk(part, blocks, codes, k, report) for part in queries.split(some)]
    scores, ids = found[0] if len(found) == 1 else (torch.cat(parts) for parts in zip(*found, strict=True))
    return scores, ids, report


def search_chunk(
    queries: Tensor, blocks: Tensor, codes: bounds.Codes, k: int, report: mips.SearchReport
) -> tuple[Tensor, Tensor]:
    """The five phases, for as many queries [q, D] as there is memory for. -> scores, ids; `report` grows by theirs."""
    q = len(queries)
    prepared = prepare(queries, codes)
    scanned = scan(prepared, codes, report.group_size)
    thresholds = threshold(scanned.ends, k)
    room, width = q * min(report.groups, room_for(len(blocks), k)), room_for(len(blocks), k)
    while True:
        keys = rescore(prepared, scanned, thresholds, blocks, codes, room, width)
        scores, ids = select(keys, k)
        candidates, bad_query, bad_block, *counts = prepared.counts.tolist()  # the host waits here, and nowhere else
        if bad_query:
            mips.refuse_queries(queries)
        if bad_block:
            mips.finite_norm(blocks, scanned.norm)  # names it
        if candidates <= room and max(counts[q:]) <= width:
            report.rescored_groups += counts[:q]
            report.rescored_rows += counts[q:]
            return scores, ids
        room, width = max(room, candidates), max(width, *counts[q:])  # of rows, no more than were counted so far
        if q > 1 and 8 * q * width > KEYS_BYTES:
            halves = [search_chunk(half, blocks, codes, k, report) for half in queries.split(-(-q // 2))]
            return torch.cat([half[0] for half in halves]), torch.cat([half[1] for half in halves])
        prepared.counts.zero_()


def search_all(queries: Tensor, blocks: Tensor, k: int, report: mips.SearchReport) -> tuple[Tensor, Tensor]:
    """The search of few rows: each gets its final score. -> scores, ids; `report` says that all were rescored."""
    q, n = len(queries), len(blocks)
    counts = torch.zeros(3, dtype=torch.int32, device=queries.device)
    keys = torch.empty(q, n, dtype=torch.int64, device=queries.device)
    _launch_rescore(queries, blocks, counts, keys, keys, every=True)
    scores, ids = select(keys, k)
    _, bad_query, bad_block = counts.tolist()  # the host waits here, and nowhere else
    if bad_query:
        mips.refuse_queries(queries)
    if bad_block:
        bounds.refuse_non_finite(blocks, 0)
    report.rescored_groups, report.rescored_rows = [report.groups] * q, [n] * q
    return scores, ids


def prepare(queries: Tensor, codes: bounds.Codes) -> Prepared:
    """Phase 1, for queries [q, D]."""
    (q, d), device = queries.shape, queries.device
    dtype = torch.float32 if _alone(codes.codes.dtype, q) else codes.codes.dtype
    # Sums are off by 2 d units in the last place at most: enough is left of 4 d + 16 for a score's scaling, for the
    # bound's subtraction from it, and for what final scores are rounded by.
    gamma = bounds.rounding(d, stored=0.0).gamma
    prepared = Prepared(
        queries,
        coded=torch.empty(q, d, dtype=dtype, device=device),
        shares=torch.empty(q, 8, dtype=torch.float32, device=device),
        counts=torch.zeros(3 + 2 * q, dtype=torch.int32, device=device),
    )
    cut = TF32 if dtype == torch.float32 and not _alone(dtype, q) else 0.0
    prepare_kernel[(q,)](
        *(queries, prepared.coded, prepared.shares, prepared.counts),
        *(d, codes.exponent, gamma + cut, gamma),
        **dict(INT8=codes.scale is not None, BLOCK_D=_power_of_two_from(d)),
        **OPTIONS,
    )
    return prepared


def scan(prepared: Prepared, codes: bounds.Codes, group: int) -> Scanned:
    """Phase 2."""
    (q, d), (n, _), device = prepared.coded.shape, codes.codes.shape, codes.codes.device
    groups = -(-n // group)
    ends = torch.empty(q, groups, dtype=torch.float32, device=device)
    group_bounds = torch.empty(2, groups, dtype=torch.float32, device=device)
    norm = codes.norm
    alone = _alone(codes.codes.dtype, q)
    if norm is None:
        norm = torch.empty(-(-n // bounds.BASE_GROUP), dtype=torch.float64, device=device)
        if not alone:  # several queries are bound by their products: one more pass for the norms costs little
            nothing = torch.zeros(1, max(d, 8), dtype=torch.float32, device=device)
            nowhere = replace(prepared, coded=nothing, shares=nothing)
            _launch_one(nowhere, codes, Scanned(ends, group_bounds, norm, bounds.BASE_GROUP), with_norm=True)
    scanned = Scanned(ends, group_bounds, norm, group)
    if alone:
        _launch_one(prepared, codes, scanned, with_norm=codes.norm is None)
    else:
        _launch_many(prepared, codes, scanned)
    return scanned


def threshold(ends: Tensor, k: int) -> Tensor:
    """Phase 3: lower ends [q, groups] -> [q] the k-th largest; minus infinity, where there are fewer groups."""
    if ends.shape[1] < k:
        return ends.new_full((len(ends),), -float("inf"))
    return ends.topk(k, sorted=False).values.amin(1)


def rescore(
    prepared: Prepared, scanned: Scanned, thresholds: Tensor, blocks: Tensor, codes: bounds.Codes, room: int, width: int
) -> Tensor:
    """Phase 4 -> keys [q, width] of the rows that pass, in any order; `prepared.counts` says how many they are."""
    (q, groups), (n, d), device = scanned.ends.shape, blocks.shape, blocks.device
    pairs = torch.empty(room, dtype=torch.int64, device=device)
    rows = torch.empty(q, width, dtype=torch.int32, device=device)
    keys = torch.empty(q, width, dtype=torch.int64, device=device)
    shares, counts, norm, residual = prepared.shares, prepared.counts, scanned.norm, codes.residual is not None
    certify_kernel[(-(-groups // CERTIFY_GROUPS), q)](
        *(scanned.ends, thresholds, shares, scanned.group_bounds, counts, pairs, groups, room),
        **dict(RESIDUAL=residual, BLOCK=CERTIFY_GROUPS),
        **OPTIONS,
    )
    block_d = _power_of_two_from(d)
    some = max(1, TILE_ELEMENTS // block_d)  # rows in the registers of one program
    filter_kernel[(16 * _multiprocessors(blocks),)](
        *(prepared.coded, codes.codes, norm if codes.scale is None else codes.scale, shares, thresholds),
        *(norm, norm if codes.residual is None else codes.residual, counts, pairs, rows),
        *(n, q, d // _unit(d), groups, _shift(codes), room, width),
        **dict(INT8=codes.scale is not None, RESIDUAL=residual, UNIT=_unit(d), G=scanned.group),
        **dict(ROWS=min(scanned.group, some), BLOCK_D=block_d, num_warps=FILTER_WARPS),
        **OPTIONS,
    )
    _launch_rescore(prepared.queries, blocks, counts, rows, keys, every=False)
    return keys


def select(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Phase 5: keys [q, width] -> (scores [q, k] float32, ids [q, k] int64), best first."""
    best = keys.topk(k).values
    scores = torch.empty(best.shape, dtype=torch.float32, device=keys.device)
    ids = torch.empty_like(best)
    unpack_kernel[(-(-best.numel() // 1024),)](best, scores, ids, best.numel(), BLOCK=1024, **OPTIONS)
    return scores, ids


# --------------------------------------------------------------------------------------- how the kernels are launched


def scan_config(dtype: torch.dtype, queries: int, d: int) -> dict[str, int]:
    """Sizes of the scan's tiles for so many queries of d dimensions over codes of `dtype`, and warps and stages.

    A program's shared memory stays within 99 KB, which every GPU since Ampere has.
    """
    size, wide = dtype.itemsize, d > 128
    block_d = 128 if d > 64 else 64
    if _alone(dtype, queries):
        rows = next(rows for rows in (128, 64, 32, 16) if rows * d * size <= 32 << 10 or rows == 16)
        stages = 1 if rows * d * size > 32 << 10 else 3
        return dict(ROWS=rows, BLOCK_Q=1, BLOCK_D=block_d, num_warps=4, num_stages=stages)
    block_q = 16 if queries <= 16 else 64 if queries <= 64 or size == 4 or wide else 128
    rows = 64 if size == 4 or wide else 128  # 128 wide rows take more registers than sm_80 and sm_120 have
    if size == 4 and wide:
        block_d = 64
    return dict(
        ROWS=rows,
        BLOCK_Q=block_q,
        BLOCK_D=block_d,
        num_warps=4 if block_q <= 64 else 8,
        num_stages=3 if size == 1 else 2,
    )


def group_rows(n: int, k: int, most: int) -> int:
    """Rows a group: large groups make few ends to select from, small ones few rows to rescore for a large k."""
    return next((g for g in GROUPS if g <= most and n >= GROUPS_PER_K * k * g), GROUPS[-1])


def largest_group(dtype: torch.dtype, queries: int, d: int) -> int:
    """Rows that a group of the scan can have at most: those of a tile."""
    # Alone and of 16 bits, 32 rows lie in one warp; more would make it wait for the others at each tile.
    rows = scan_config(dtype, queries, d)["ROWS"]
    return min(rows, 32) if _alone(dtype, queries) and dtype.itemsize == 2 else rows


def room_for(n: int, k: int) -> int:
    """Candidates of a query that there is room for at first."""
    return min(n, ROOM[0] * k + ROOM[1])


def _alone(dtype: torch.dtype, queries: int) -> bool:
    """Whether one query is multiplied on the ordinary cores."""
    return queries == 1 and dtype != torch.int8


def _shift(codes: bounds.Codes) -> int:
    """Bounds are held in units of two to this power: those of float32 rows stay below the largest float32."""
    return 8 if codes.scale is None else codes.exponent


def _unit(d: int) -> int:
    """The power of two in D, up to 16: it tells the compiler how many elements it may load at once."""
    return d & -d if d & 15 else 16


def _power_of_two_from(d: int) -> int:
    return max(16, 1 << (d - 1).bit_length())


def _multiprocessors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _programs(tensor: Tensor, shared: int, warps: int) -> int:
    """Programs of a grid that stays: as many as run at once, each with so many bytes of shared memory."""
    if not tensor.is_cuda:
        return 3
    device = torch.cuda.get_device_properties(tensor.device)
    each = min(device.shared_memory_per_multiprocessor // (shared + 1024), 32 // warps)
    return max(1, each) * device.multi_processor_count


def _aligned(tensor: Tensor) -> Tensor:
    """The kernels read 16 bytes at a time: a view that starts elsewhere is copied."""
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _launch_rescore(queries: Tensor, blocks: Tensor, counts: Tensor, rows: Tensor, keys: Tensor, every: bool) -> None:
    (q, width), d = keys.shape, blocks.shape[1]
    block_d = _power_of_two_from(d)
    some = max(1, TILE_ELEMENTS // block_d)
    rescore_kernel[(min(-(-width // some), max(1, 16 * _multiprocessors(blocks) // q)), q)](
        *(queries, blocks, counts, rows, keys, q, d // _unit(d), width),
        **dict(ALL=every, UNIT=_unit(d), ROWS=some, BLOCK_D=block_d),
        **OPTIONS,
    )


def _launch_one(prepared: Prepared, codes: bounds.Codes, scanned: Scanned, with_norm: bool) -> None:
    n, d = codes.codes.shape
    config = scan_config(codes.codes.dtype, 1, d)
    rows, block_d, stages = config["ROWS"], config["BLOCK_D"], config["num_stages"]
    rows = max(rows, scanned.group)
    shared = rows * d * codes.codes.element_size() * (stages - 1)
    scan_one_kernel[(min(-(-n // rows), _programs(codes.codes, shared + 4096, 4)),)](
        *(prepared.coded, codes.codes, prepared.shares),
        *(scanned.norm, scanned.norm if codes.residual is None else codes.residual, scanned.ends, scanned.group_bounds),
        *(prepared.counts, n, d // _unit(d), scanned.ends.shape[1], _shift(codes)),
        **dict(NORM=with_norm, RESIDUAL=codes.residual is not None, UNIT=_unit(d), G=scanned.group, ROWS=rows),
        **dict(BLOCK_D=block_d, CHUNKS=-(-d // block_d), STAGES=stages, num_warps=4, num_stages=stages),
        **REGISTERS,
        **OPTIONS,
    )


def _launch_many(prepared: Prepared, codes: bounds.Codes, scanned: Scanned) -> None:
    (n, d), q = codes.codes.shape, len(prepared.coded)
    config = scan_config(codes.codes.dtype, q, d)
    rows, block_q, block_d, warps, stages = config.values()
    chunks = -(-d // block_d)
    held = block_q + stages * rows if chunks == 1 else stages * (block_q + rows)
    q_tiles = -(-q // block_q)
    programs = -(-_programs(codes.codes, held * block_d * codes.codes.element_size(), warps) // q_tiles)
    scan_many_kernel[(q_tiles, min(-(-n // rows), programs))](
        *(prepared.coded, codes.codes, scanned.norm if codes.scale is None else codes.scale, prepared.shares),
        *(scanned.norm, scanned.norm if codes.residual is None else codes.residual, scanned.ends, scanned.group_bounds),
        *(n, q, d // _unit(d), scanned.ends.shape[1], _shift(codes)),
        **dict(INT8=codes.scale is not None, RESIDUAL=codes.residual is not None, UNIT=_unit(d), G=scanned.group),
        **dict(ROWS=rows, BLOCK_Q=block_q, BLOCK_D=block_d, CHUNKS=chunks, STAGES=stages if chunks == 1 else 1),
        **dict(num_warps=warps, num_stages=stages),
        **OPTIONS,
    )


Variant = tuple[str, triton.JITFunction, dict[str, str], dict, dict]  # name, kernel, signature, constexprs, options


def compile_variants() -> Iterator[Variant]:
    """What common shapes ask to be compiled, each once."""
    seen = set()
    for variant in _common_variants():
        if repr(variant[1:]) not in seen:
            yield variant
        seen.add(repr(variant[1:]))


def _common_variants() -> Iterator[Variant]:
    """A signature maps each argument to its Triton type, with ":16" where a launch promises an address 16 divides."""
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "i8"}
    known = {name: "i32" for name in ("n", "q_count", "units", "groups", "shift", "room", "width", "d", "exponent")}
    known |= dict(scale="*fp32", shares="*fp32", norm="*fp64", residual="*fp64", ends="*fp32", group_bounds="*fp32")
    known |= dict(thresholds="*fp32", counts="*i32", pairs="*i64", rows="*i32", keys="*i64", ids="*i64", size="i32")
    known |= dict(scores="*fp32", gamma="fp32", gamma_row="fp32", query="*fp32:16", queries="*fp32")

    def variant(name: str, kernel, sizes: dict, options: dict, **types) -> Variant:
        signature = {name: (known | types)[name] for name in kernel.arg_names if name in known | types}
        return name, kernel, signature, {name: sizes[name] for name in kernel.arg_names if name in sizes}, options

    for (dtype, name), d in itertools.product(names.items(), (100, 128, 768)):
        int8, codes, block_d = dtype == torch.int8, f"*{name}:16", _power_of_two_from(d)
        for q, group in ((1, 128), (1, 16), (16, 128), (64, 128), (64, 16), (512, 128)):
            config, group = scan_config(dtype, q, d), min(group, largest_group(dtype, q, d))
            options = OPTIONS | {option: config[option] for option in ("num_warps", "num_stages")}
            chunks, stages = -(-d // config["BLOCK_D"]), config["num_stages"]
            sizes = config | dict(UNIT=_unit(d), G=group, CHUNKS=chunks, RESIDUAL=dtype.itemsize < 4, INT8=int8)
            sizes |= dict(STAGES=stages if chunks == 1 or _alone(dtype, q) else 1)
            title = f"{name} D={d} Q={q} G={group}"
            if _alone(dtype, q):
                for norm in (False, True):
                    wanted = sizes | dict(NORM=norm)
                    yield variant(
                        f"scan {title} NORM={norm}", scan_one_kernel, wanted, options | REGISTERS, codes=codes
                    )
            else:
                yield variant(f"scan {title}", scan_many_kernel, sizes, options, codes=codes, queries=codes)
        some = max(1, TILE_ELEMENTS // block_d)
        sizes = dict(UNIT=_unit(d), BLOCK_D=block_d, INT8=int8, RESIDUAL=int8, G=16, ROWS=min(16, some))
        yield variant(f"prepare {name} D={d}", prepare_kernel, sizes, OPTIONS, coded=f"*{name}")
        yield variant(f"filter {name} D={d}", filter_kernel, sizes, OPTIONS, coded=f"*{name}", codes=codes)
        if not int8:
            for every in (False, True):
                sizes |= dict(ALL=every, ROWS=some)
                yield variant(f"rescore {name} D={d} ALL={every}", rescore_kernel, sizes, OPTIONS, blocks=codes)
    for residual in (False, True):
        sizes = dict(RESIDUAL=residual, BLOCK=CERTIFY_GROUPS)
        yield variant(f"certify RESIDUAL={residual}", certify_kernel, sizes, OPTIONS)
    yield variant("unpack", unpack_kernel, dict(BLOCK=1024), OPTIONS)
