"""Span logits on a GPU: the kernels behind `realm_min.model.spans`, whose head derives the formulas used here.

A span of tokens i..j of block b has h = relu(S[b, i] + E[b, j]) and logit = Σ ũ (h - mean) / sqrt(var + eps) + v.β + c.
The usual way writes h and its normalised form to memory, [spans, hidden] each. Here a program takes BLOCK_T tokens at
which spans start and walks over the widths: h lives in registers, and one number a span is written, or, where only the
best span is asked for, one score and place a program.

A row is taken in parts of LANE_H columns, each a tile [BLOCK_T, LANE_H]: eight lanes hold a row, not 32, and most of a
sum is taken within a thread. Rows beyond the end repeat the last one, and spans beyond a block's end the last span of
their token: what is read needs no mask, and what must not count is not stored.

The backward has three steps: three numbers a span, from which dh follows without any further sum; for each token, dh of
all the spans that start there and of all that end there; and what the weights get. Every element of the result belongs
to one program, so there are no atomics, and the same inputs give the same bits.

Under TRITON_INTERPRET=1 (set before this module is imported) the same functions take CPU tensors. In shapes: B blocks,
T tokens, H hidden.
"""

# Triton's language is compiled, not run: a launch gives plain numbers for constexprs, and static_range unrolls a loop.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import itertools

import torch
from torch import Tensor

from realm_min.model.spans import SpanInputs, check_spans, span_count

from .triton_language import knobs, tl, triton

LOGITS, BEST, COEFFICIENTS = 0, 1, 2  # what the scores kernel writes
INTERPRETED = knobs.runtime.interpret

SCORES_TILE = dict(BLOCK_T=16)  # up to 256 columns, where a row is eight parts; where there are more, fewer rows
GRADIENTS_TILE = dict(BLOCK_T=16)
GRADIENTS_COLUMNS = 128
LANE_BYTES = 128  # of a part of a row: eight lanes read 16 each
TOTALS_TILE = dict(BLOCK_P=128, BLOCK_H=32)
# Left alone, the assembler of Triton 3.7 chooses 168 registers in places, and spills: 255 is the hardware's limit.
# Multiplying and adding in one instruction rounds once instead of twice: it is asked for, not left to a default.
OPTIONS = dict(num_warps=4, num_stages=1, enable_fp_fusion=True, maxnreg=255)
_WEIGHTS = ["gamma_ptr", "beta_ptr", "v_ptr", "bias_ptr"]
_SIZES = ["all_rows", "tokens", "widths"]


@triton.jit
def _load(pointers, inside, WHOLE: tl.constexpr):
    """float32 of what is inside, 0 elsewhere; WHOLE promises that all is."""
    values = tl.load(pointers) if WHOLE else tl.load(pointers, mask=inside, other=0.0)
    return values.to(tl.float32)


@triton.jit
def _relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _key(scores, places):
    """int64 that are greater where a score is, and among equal scores where the place is smaller."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # -0.0 is no smaller than 0.0
    return (tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) << 32) + (0x7FFFFFFF - places)


@triton.jit(
    do_not_specialize=_SIZES,
    do_not_specialize_on_alignment=[*_WEIGHTS, "mask_ptr", "relevance_ptr", "grad_ptr", "out_ptr", "u_ptr"],
)
def _scores_kernel(
    start_ptr, end_ptr,  # [B * T, H] float32, bfloat16 or float16, rows `stride` elements apart
    gamma_ptr, beta_ptr,  # [H] LayerNorm weight and bias
    v_ptr, bias_ptr,  # [H] and [1], output weight and bias
    mask_ptr,  # [B, T] bool, or None
    relevance_ptr,  # [B], or None
    grad_ptr,  # [B, spans], read if MODE is COEFFICIENTS
    out_ptr,  # LOGITS float32 [B, spans]; BEST int64 [2, programs], `_key` of block and of candidate; COEFFICIENTS
    #           float32 [B, spans, 4]: a = g r, d = g r³ n / H, mean(h), nothing
    u_ptr,  # [H] float32, ũ, written if MODE is COEFFICIENTS
    all_rows, tokens, widths, stride, eps,  # B * T, T, at most T, elements from row to row
    MODE: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_T: tl.constexpr, LANE_H: tl.constexpr,
):  # fmt: skip
    WHOLE: tl.constexpr = HIDDEN % LANE_H == 0
    PARTS: tl.constexpr = (HIDDEN + LANE_H - 1) // LANE_H
    rows = tl.minimum(tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), all_rows - 1)  # [BLOCK_T] first tokens
    block = rows // tokens
    token = rows % tokens
    widest = tokens - 1 - token  # in the spans that start at a row 0 to so many more tokens follow
    columns = tl.arange(0, LANE_H)[None, :]
    start_rows = start_ptr + (rows.to(tl.int64) * stride)[:, None]
    end_rows = end_ptr + (rows.to(tl.int64) * stride)[:, None]
    block_out = block.to(tl.int64) * (widths * tokens - widths * (widths - 1) // 2)

    start, u = (), ()  # [BLOCK_T, LANE_H] and [1, LANE_H] of each part
    u_sum = tl.full([1, LANE_H], 0.0, tl.float32)
    constant = tl.full([1, LANE_H], 0.0, tl.float32)
    for part in tl.static_range(PARTS):
        at = part * LANE_H + columns
        v = _load(v_ptr + at, at < HIDDEN, WHOLE)
        u += (v * _load(gamma_ptr + at, at < HIDDEN, WHOLE),)
        u_sum += u[part]
        constant += v * _load(beta_ptr + at, at < HIDDEN, WHOLE)
        start += (_load(start_rows + at, at < HIDDEN, WHOLE),)
    u_mean = tl.sum(u_sum, axis=1)[:, None] / HIDDEN
    constant = tl.sum(constant, axis=1) + tl.load(bias_ptr).to(tl.float32)  # v . β + c
    if MODE == 2:
        if tl.program_id(0) == 0:
            for part in tl.static_range(PARTS):
                at = part * LANE_H + columns
                tl.store(u_ptr + at, u[part] - u_mean, mask=at < HIDDEN)
    if mask_ptr is not None:
        start_inside = tl.load(mask_ptr + rows)
    if relevance_ptr is not None:
        relevance = tl.load(relevance_ptr + block).to(tl.float32)

    best = tl.full([BLOCK_T], -float("inf"), tl.float32)
    best_candidate = token  # the span of one token, should every score be -inf
    first = 0  # index of the first span of this width
    for more in range(widths):
        valid = more <= widest
        further = tl.minimum(more, widest)
        end_here = end_rows + (further.to(tl.int64) * stride)[:, None]
        h = ()
        h_sum = tl.full([BLOCK_T, LANE_H], 0.0, tl.float32)
        for part in tl.static_range(PARTS):
            at = part * LANE_H + columns
            h += (_relu(start[part] + _load(end_here + at, at < HIDDEN, WHOLE)),)
            h_sum += h[part]
        mean = tl.sum(h_sum, axis=1) / HIDDEN
        squares = tl.full([BLOCK_T, LANE_H], 0.0, tl.float32)
        numerator = tl.full([BLOCK_T, LANE_H], 0.0, tl.float32)
        for part in tl.static_range(PARTS):
            centred = h[part] - mean[:, None]
            if not WHOLE:
                centred = tl.where(part * LANE_H + columns < HIDDEN, centred, 0.0)
            squares += centred * centred
            numerator += centred * (u[part] - u_mean)
        squares, numerator = tl.sum(squares, axis=1), tl.sum(numerator, axis=1)
        inverse_deviation = tl.rsqrt(squares / HIDDEN + eps)
        candidates = first + token  # [BLOCK_T] index among the block's spans
        span = block_out + candidates
        if MODE == 2:
            a = tl.load(grad_ptr + span, mask=valid, other=0.0).to(tl.float32) * inverse_deviation
            d = a * inverse_deviation * inverse_deviation * numerator / HIDDEN
            packed = tl.join(tl.join(a, mean), tl.join(d, d))  # [BLOCK_T, 2, 2]
            four = out_ptr + (span * 4)[:, None] + tl.arange(0, 4)[None, :]
            tl.store(four, tl.reshape(packed, [BLOCK_T, 4]), mask=valid[:, None])
        else:
            logits = numerator * inverse_deviation + constant
            if mask_ptr is not None:
                is_inside = start_inside & tl.load(mask_ptr + rows + further)
                logits += tl.where(is_inside != 0, 0.0, -3.4028234663852886e38)
            if relevance_ptr is not None:
                logits += relevance
            if MODE == 0:
                tl.store(out_ptr + span, logits, mask=valid)
            else:
                better = valid & (logits > best)  # an equal score of a wider span comes later: the first stays
                best = tl.where(better, logits, best)
                best_candidate = tl.where(better, candidates, best_candidate)
        first += tokens - more
    if MODE == 1:
        out_ptr += tl.program_id(0)
        tl.store(out_ptr, tl.max(_key(best, block), axis=0))
        tl.store(out_ptr + tl.num_programs(0), tl.max(_key(best, best_candidate), axis=0))


@triton.jit(do_not_specialize=["programs", "tokens", "widths"])
def _choose_kernel(
    keys_ptr,  # int64 [2, programs], as the kernel above writes them
    score_ptr,  # float32 []
    places_ptr,  # int64 [3]: block, start, end
    programs, tokens, widths,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    of_block = tl.full([BLOCK_P], -(2**63), tl.int64)
    of_candidate = of_block
    for program in range(0, programs, BLOCK_P):
        keys = keys_ptr + program + tl.arange(0, BLOCK_P)
        inside = program + tl.arange(0, BLOCK_P) < programs
        of_block = tl.maximum(of_block, tl.load(keys, mask=inside, other=-(2**63)))
        of_candidate = tl.maximum(of_candidate, tl.load(keys + programs, mask=inside, other=-(2**63)))
    key = tl.max(of_block, axis=0)
    bits = (key >> 32).to(tl.int32)
    tl.store(score_ptr, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True))
    tl.store(places_ptr, 0x7FFFFFFF - (key & 0x7FFFFFFF))
    start = 0x7FFFFFFF - (tl.max(of_candidate, axis=0) & 0x7FFFFFFF)
    more = 0
    while (more + 1 < widths) & (start >= tokens - more):  # past the spans of this width
        start -= tokens - more
        more += 1
    tl.store(places_ptr + 1, start)
    tl.store(places_ptr + 2, start + more)


@triton.jit
def _coefficients(pointers, valid):
    """a, d and mean(h) of spans [BLOCK_T], read 16 bytes at once; 0 where there is no span."""
    four = pointers[:, None] + tl.arange(0, 4)[None, :]
    packed = tl.reshape(tl.load(four, mask=valid[:, None], other=0.0), [pointers.shape[0], 2, 2])
    a_and_mean, d_and_d = tl.split(packed)
    a, mean = tl.split(a_and_mean)
    d, _ = tl.split(d_and_d)
    return a[:, None], d[:, None], mean[:, None]


@triton.jit(do_not_specialize=_SIZES)
def _gradients_kernel(
    start_ptr, end_ptr,  # [B * T, H] float32, bfloat16 or float16, rows `stride` elements apart
    u_ptr,  # [H] float32, ũ
    coefficients_ptr,  # [B, spans, 4] float32, as above, with dh = a ũ - d (h - mean(h))
    dstart_ptr, dend_ptr,  # [B * T, H] of the projections' dtype
    normed_ptr,  # [programs, H] float32, each program's part of A
    all_rows, tokens, widths, stride,
    HIDDEN: tl.constexpr, BLOCK_T: tl.constexpr, PARTS: tl.constexpr, LANE_H: tl.constexpr,
):  # fmt: skip
    WHOLE: tl.constexpr = HIDDEN % (PARTS * LANE_H) == 0
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T] tokens of all blocks in a row
    is_row = rows < all_rows
    rows = tl.minimum(rows, all_rows - 1)
    token = rows % tokens
    columns = tl.program_id(1) * PARTS * LANE_H + tl.arange(0, LANE_H)[None, :]
    start_here = start_ptr + (rows.to(tl.int64) * stride)[:, None]
    end_here = end_ptr + (rows.to(tl.int64) * stride)[:, None]
    u, start, end, dstart, dend, normed_sum = (), (), (), (), (), ()
    for part in tl.static_range(PARTS):
        at = part * LANE_H + columns
        u += (_load(u_ptr + at, at < HIDDEN, WHOLE),)
        start += (_load(start_here + at, at < HIDDEN, WHOLE),)
        end += (_load(end_here + at, at < HIDDEN, WHOLE),)
        dstart += (tl.zeros([BLOCK_T, LANE_H], tl.float32),)
        dend += (tl.zeros([BLOCK_T, LANE_H], tl.float32),)
        normed_sum += (tl.zeros([BLOCK_T, LANE_H], tl.float32),)
    spans = widths * tokens - widths * (widths - 1) // 2
    span = coefficients_ptr + ((rows // tokens).to(tl.int64) * spans + token) * 4  # the span of one token
    for more in range(widths):
        # the spans that start here, and those that end here
        further, back = tl.minimum(more, tokens - 1 - token), tl.minimum(more, token)
        a, d, mean = _coefficients(span, more == further)
        a_back, d_back, mean_back = _coefficients(span - 4 * back, more == back)
        ends = end_here + (further.to(tl.int64) * stride)[:, None]
        starts = start_here - (back.to(tl.int64) * stride)[:, None]
        new_dstart, new_dend, new_normed_sum = (), (), ()
        for part in tl.static_range(PARTS):
            at = part * LANE_H + columns
            h = _relu(start[part] + _load(ends + at, at < HIDDEN, WHOLE))
            centred = h - mean
            new_dstart += (dstart[part] + tl.where(h > 0.0, a * u[part] - d * centred, 0.0),)
            new_normed_sum += (normed_sum[part] + a * centred,)
            h = _relu(_load(starts + at, at < HIDDEN, WHOLE) + end[part])
            dh = tl.where(h > 0.0, a_back * u[part] - d_back * (h - mean_back), 0.0)
            new_dend += (dend[part] + dh,)
        dstart, dend, normed_sum = new_dstart, new_dend, new_normed_sum
        span += (tokens - more) * 4
    out = (rows.to(tl.int64) * HIDDEN)[:, None]
    for part in tl.static_range(PARTS):
        at = part * LANE_H + columns
        tl.store(dstart_ptr + out + at, dstart[part].to(dstart_ptr.dtype.element_ty), mask=at < HIDDEN)
        tl.store(dend_ptr + out + at, dend[part].to(dend_ptr.dtype.element_ty), mask=at < HIDDEN)
        of_program = tl.sum(tl.where(is_row[:, None], normed_sum[part], 0.0), axis=0)[None, :]  # the last row once
        tl.store(normed_ptr + tl.program_id(0).to(tl.int64) * HIDDEN + at, of_program, mask=at < HIDDEN)


@triton.jit(do_not_specialize=["programs", "blocks"], do_not_specialize_on_alignment=_WEIGHTS)
def _totals_kernel(
    normed_ptr,  # [programs, H] float32, the parts of A
    block_sums_ptr,  # [B] float32, Σ g of each block
    gamma_ptr, beta_ptr, v_ptr,  # [H] each, as above
    dgamma_ptr, dbeta_ptr, dv_ptr, dbias_ptr,  # [H] each and [1], of the weights' dtypes
    programs, blocks,
    HIDDEN: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < HIDDEN
    normed = tl.full([BLOCK_P, BLOCK_H], 0.0, tl.float32)
    for program in range(0, programs, BLOCK_P):
        parts = program + tl.arange(0, BLOCK_P)[:, None]
        load = (parts < programs) & inside
        normed += tl.load(normed_ptr + parts.to(tl.int64) * HIDDEN + columns, mask=load, other=0.0)
    normed_sum = tl.sum(normed, axis=0)  # [BLOCK_H] of A
    block_sums = tl.full([BLOCK_P], 0.0, tl.float32)
    for block in range(0, blocks, BLOCK_P):
        of_blocks = block + tl.arange(0, BLOCK_P)
        block_sums += tl.load(block_sums_ptr + of_blocks, mask=of_blocks < blocks, other=0.0)
    total = tl.sum(block_sums, axis=0)
    gamma = _load(gamma_ptr + columns, inside, False)
    v = _load(v_ptr + columns, inside, False)
    dv = gamma * normed_sum + _load(beta_ptr + columns, inside, False) * total
    tl.store(dgamma_ptr + columns, (v * normed_sum).to(dgamma_ptr.dtype.element_ty), mask=inside)
    tl.store(dbeta_ptr + columns, (v * total).to(dbeta_ptr.dtype.element_ty), mask=inside)
    tl.store(dv_ptr + columns, dv.to(dv_ptr.dtype.element_ty), mask=inside)
    tl.store(dbias_ptr, total.to(dbias_ptr.dtype.element_ty))  # the same from each program


def span_logits(inputs: SpanInputs) -> Tensor:
    """`spans.span_logits` by the kernel above: float32 [B, spans]. The projections must not be float64."""
    _check(inputs)
    blocks, tokens, _ = inputs.start_projection.shape
    logits = _empty(inputs, blocks, span_count(tokens, inputs.max_span_width))
    _launch_scores(LOGITS, logits, inputs, _projections(inputs))
    return logits  # [B, spans]


def best_span(inputs: SpanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`realm_min.model.spans.best_span` by the kernels above: (score, block, start, end), and no logits are stored."""
    _check(inputs)
    projections = _projections(inputs)
    blocks, tokens, _ = projections[0].shape
    programs = triton.cdiv(blocks * tokens, _scores_tile(projections[0])["BLOCK_T"])
    keys = _empty(inputs, 2, programs, dtype=torch.int64)
    _launch_scores(BEST, keys, inputs, projections)
    score, places = _empty(inputs), _empty(inputs, 3, dtype=torch.int64)
    with torch.cuda.device_of(projections[0]):  # Triton launches on the current device
        widths = min(tokens, inputs.max_span_width)
        _choose_kernel[(1,)](keys, score, places, programs, tokens, widths, BLOCK_P=1024, **OPTIONS)
    block, first, last = places.unbind()
    return score, block, first, last


def span_logits_backward(grad_logits: Tensor, inputs: SpanInputs) -> dict[str, Tensor]:
    """`realm_min.model.spans.span_logits_backward` by the three kernels above: gradients by input name."""
    _check(inputs, grad_logits)
    start, end, stride = projections = _projections(inputs)
    blocks, tokens, hidden = start.shape
    widths = min(tokens, inputs.max_span_width)
    coefficients, u = _empty(inputs, blocks, span_count(tokens, widths), 4), _empty(inputs, hidden)
    _launch_scores(COEFFICIENTS, coefficients, inputs, projections, grad_logits.contiguous(), u)
    tile = _gradients_tile(start)
    grid = (triton.cdiv(blocks * tokens, tile["BLOCK_T"]), triton.cdiv(hidden, tile["PARTS"] * tile["LANE_H"]))
    normed = _empty(inputs, grid[0], hidden)
    dstart, dend = (torch.empty(start.shape, dtype=start.dtype, device=start.device) for _ in range(2))
    block_sums = grad_logits.sum(1, dtype=torch.float32)
    gamma, beta, v, bias = _weights(inputs)
    dgamma, dbeta, dv, dbias = (torch.empty_like(weight) for weight in (gamma, beta, v, bias))
    with torch.cuda.device_of(start):
        _gradients_kernel[grid](
            start, end, u, coefficients, dstart, dend, normed, blocks * tokens, tokens, widths, stride,
            HIDDEN=hidden, **tile, **OPTIONS,
        )  # fmt: skip
        _totals_kernel[(triton.cdiv(hidden, TOTALS_TILE["BLOCK_H"]),)](
            normed, block_sums, gamma, beta, v, dgamma, dbeta, dv, dbias, grid[0], blocks,
            HIDDEN=hidden, **TOTALS_TILE, **OPTIONS,
        )  # fmt: skip
    found = dict(start_projection=dstart, end_projection=dend, norm_weight=dgamma, norm_bias=dbeta, output_weight=dv)
    found["output_bias"] = dbias
    if inputs.relevance_score is not None:
        found["relevance_score"] = block_sums.to(inputs.relevance_score.dtype)
    return found


def compile_variants():
    """What a launch above can ask for, in sizes that take each way: (name, kernel, signature, constexprs, options).

    `signature` maps each argument to its Triton type, with ":16" where 16 divides an address or a number.
    """
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for dtype, hidden, stride in itertools.product(dtypes, (256, 300, 40), ("i32:16", "i32")):
        of_all = {"stride": stride, "eps": "fp32"} | dict.fromkeys(["start_ptr", "end_ptr"], f"*{dtype}:16")
        projection = torch.empty(1, 1, hidden, dtype=dtypes[dtype], device="meta")
        case = f"{dtype} H={hidden} stride {stride}"
        for mode, name in enumerate(("logits", "best", "coefficients")):
            types = of_all | {"mask_ptr": "*i1", "out_ptr": "*i64" if mode == BEST else "*fp32"}
            yield _variant(
                f"span {name} {case}", _scores_kernel, types, dict(MODE=mode, HIDDEN=hidden) | _scores_tile(projection)
            )
        aligned = dict.fromkeys(["u_ptr", "coefficients_ptr", "normed_ptr"], "*fp32:16")
        types = of_all | aligned | dict.fromkeys(["dstart_ptr", "dend_ptr"], f"*{dtype}:16")
        constexprs = dict(HIDDEN=hidden) | _gradients_tile(projection)
        yield _variant(f"span gradients {case}", _gradients_kernel, types, constexprs)
    yield _variant("span totals", _totals_kernel, {}, dict(HIDDEN=256, **TOTALS_TILE))
    yield _variant("span choice", _choose_kernel, dict(keys_ptr="*i64", places_ptr="*i64"), dict(BLOCK_P=1024))


def _variant(name, kernel, types, constexprs):
    plain = {arg: "*fp32" if arg.endswith("_ptr") else "i32" for arg in kernel.arg_names if arg not in constexprs}
    return name, kernel, {arg: types.get(arg, kind) for arg, kind in plain.items()}, constexprs, OPTIONS


def _check(inputs: SpanInputs, grad_logits: Tensor | None = None) -> None:
    """Raise the error that names what does not fit together, or what the kernels cannot take."""
    check_spans(inputs, grad_logits)
    start, tokens, widest = inputs.start_projection, inputs.start_projection.shape[1], inputs.max_span_width
    if start.dtype == torch.float64:
        raise TypeError("the kernels compute in float32: give float64 projections to realm_min.model.spans")
    if not (start.is_cuda or INTERPRETED):
        raise ValueError("the kernels need CUDA tensors: give CPU tensors to realm_min.model.spans")
    if span_count(tokens, widest) >= 2**31:
        raise ValueError(f"{tokens} tokens have 2**31 spans or more of max_span_width={widest}: cut one")


def _empty(inputs: SpanInputs, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=inputs.start_projection.device)


def _projections(inputs: SpanInputs) -> tuple[Tensor, Tensor, int]:
    """The projections as the kernels take them, copied only if they must be, and the elements from row to row."""
    start, end = inputs.start_projection, inputs.end_projection
    blocks, tokens, _ = start.shape
    # Halves of one [B, T, 2H] tensor are read where they are.
    as_they_are = start.stride() == end.stride() and all(
        x.stride(2) == 1 and x.stride(0) == tokens * x.stride(1) and x.data_ptr() % 16 == 0 for x in (start, end)
    )
    if not as_they_are:
        start, end = (x.clone(memory_format=torch.contiguous_format) for x in (start, end))
    return start, end, start.stride(1)


def _scores_tile(projection: Tensor) -> dict[str, int]:
    """Parts as wide, and as few rows, as let a thread hold eight of each where it holds whole rows."""
    times = 1 << (-(-projection.shape[2] // 256) - 1).bit_length()  # 1 up to 256 columns, 2 up to 512
    return dict(BLOCK_T=max(SCORES_TILE["BLOCK_T"] // times, 1), LANE_H=times * LANE_BYTES // projection.element_size())


def _gradients_tile(projection: Tensor) -> dict[str, int]:
    lane_columns = LANE_BYTES // projection.element_size()
    return GRADIENTS_TILE | dict(PARTS=max(GRADIENTS_COLUMNS // lane_columns, 1), LANE_H=lane_columns)


def _weights(inputs: SpanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LayerNorm's weight and bias, the output weight and bias, without gaps."""
    bias, device = inputs.output_bias, inputs.start_projection.device
    if not isinstance(bias, Tensor):
        bias = torch.full((), bias, dtype=torch.float32, device=device)
    gamma, beta, v = inputs.norm_weight, inputs.norm_bias, inputs.output_weight
    return gamma.contiguous(), beta.contiguous(), v.contiguous(), bias.contiguous()


def _launch_scores(mode, out, inputs, projections, grad=None, u=None):
    start, end, stride = projections
    mask, relevance = (None if x is None else x.contiguous() for x in (inputs.block_mask, inputs.relevance_score))
    blocks, tokens, hidden = start.shape
    tile = _scores_tile(start)
    with torch.cuda.device_of(start):
        _scores_kernel[(triton.cdiv(blocks * tokens, tile["BLOCK_T"]),)](
            start, end, *_weights(inputs), mask, relevance, grad, out, u,
            blocks * tokens, tokens, min(tokens, inputs.max_span_width), stride, inputs.eps,
            MODE=mode, HIDDEN=hidden, **tile, **OPTIONS,
        )  # fmt: skip
