"""Span logits on a GPU: the kernels behind `realm_min.model.spans`, whose head derives the formulas used here.

A span of tokens i..j of block b has h = relu(S[b, i] + E[b, j]) and logit = Σ u (h - mean) / sqrt(var + eps) + v.β + c.
The usual way writes h and its normalised form to memory, [spans, hidden] each. Here a program takes BLOCK_T tokens at
which spans start and walks over the widths: h lives in registers, three sums of it are taken in one pass over its
elements, and one number a span is written, or, where only the best span is asked for, one score and place a program.

The backward has two steps. The first computes h again and stores three numbers a span, from which dh follows without
any further sum; the second gathers, for each token, dh of all the spans that start there and of all that end there.
Every element of the result belongs to one program, so there are no atomics, and the same inputs give the same bits.

Under TRITON_INTERPRET=1 (set before this module is imported) the same functions take CPU tensors. In shapes: B blocks,
T tokens, H hidden.
"""

# Triton's language is compiled, not run: a launch gives plain numbers for constexprs.
# pyright: reportArgumentType=false

import itertools

import torch
from torch import Tensor

from realm_min.model.spans import SpanInputs, check_spans, choose_span, gradients_by_name, span_count

from .triton_language import knobs, tl, triton

LOGITS, BEST, COEFFICIENTS = 0, 1, 2  # what the scores kernel writes
INTERPRETED = knobs.runtime.interpret

# Tiles of 2,048 and 1,024 floats over 128 threads: 16 and 8 registers for each that is held.
SCORES_TILE = dict(BLOCK_T=8, BLOCK_H=256)
GRADIENTS_TILE = dict(BLOCK_T=8, BLOCK_H=128)
# Left alone, the assembler of Triton 3.7 chooses 168 registers in places, and spills: 255 is the hardware's limit.
OPTIONS = dict(num_warps=4, num_stages=1, enable_fp_fusion=True, maxnreg=255)


_WEIGHTS = ["gamma_ptr", "beta_ptr", "v_ptr", "bias_ptr"]
_SIZES = ["all_rows", "tokens", "widths", "hidden_units", "start_units", "end_units"]
_LIMITS = ["mask_rows", "relevance_rows"]


@triton.jit(
    do_not_specialize=_SIZES + _LIMITS,
    do_not_specialize_on_alignment=_WEIGHTS + ["mask_ptr", "relevance_ptr", "grad_ptr", "out_ptr", "place_ptr"],
)
def _scores_kernel(
    start_ptr,  # [B * T, H] float32 or bfloat16, rows start_units * UNIT elements apart
    end_ptr,  # [B * T, H], rows end_units * UNIT elements apart
    gamma_ptr,  # [H] float32, LayerNorm weight
    beta_ptr,  # [H] float32, LayerNorm bias
    v_ptr,  # [H] float32, output weight
    bias_ptr,  # [1] float32, output bias
    mask_ptr,  # [B, T] bool
    relevance_ptr,  # [B] float32
    grad_ptr,  # [B, spans] float32, read if MODE is COEFFICIENTS
    out_ptr,  # float32: LOGITS [B, spans], BEST the scores [programs], COEFFICIENTS [3, B, spans]
    place_ptr,  # [2, programs] int32, block and candidate, written if MODE is BEST
    all_rows,  # B * T
    tokens,
    widths,
    hidden_units,
    start_units,
    end_units,
    mask_rows,  # B * T, or 0 without a mask
    relevance_rows,  # B * T, or 0 without relevance scores
    eps,
    MODE: tl.constexpr,
    UNIT: tl.constexpr,  # 8 promises that rows begin at multiples of 16 bytes, 1 promises nothing
    ONE_CHUNK: tl.constexpr,  # H <= BLOCK_H
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    hidden = hidden_units * UNIT
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T] the spans' first tokens, all blocks in a row
    block = rows // tokens
    token = rows % tokens
    columns = tl.arange(0, BLOCK_H)
    start_rows = start_ptr + rows.to(tl.int64)[:, None] * (start_units * UNIT)
    spans = widths * tokens - widths * (widths - 1) // 2
    block_out = block.to(tl.int64) * spans
    plane = (all_rows // tokens).to(tl.int64) * spans
    relevance = tl.load(relevance_ptr + block, mask=rows < relevance_rows, other=0.0)
    start_inside = tl.load(mask_ptr + rows, mask=rows < mask_rows, other=1) != 0

    constant = tl.load(bias_ptr)  # v . β + c
    for column in range(0, hidden, BLOCK_H):
        inside = column + columns < hidden
        v = tl.load(v_ptr + column + columns, mask=inside, other=0.0)
        constant += tl.sum(v * tl.load(beta_ptr + column + columns, mask=inside, other=0.0))
    if ONE_CHUNK:
        inside = columns < hidden
        u = tl.load(v_ptr + columns, mask=inside, other=0.0) * tl.load(gamma_ptr + columns, mask=inside, other=0.0)
        start = tl.load(start_rows + columns, mask=(rows < all_rows)[:, None] & inside, other=0.0).to(tl.float32)

    best = tl.full([BLOCK_T], -float("inf"), tl.float32)
    best_candidate = token  # the span of one token, should every score be -inf
    first = 0  # index of the first span of this width
    for width in range(widths):
        valid = (token + width < tokens) & (rows < all_rows)
        end_rows = end_ptr + (rows + width).to(tl.int64)[:, None] * (end_units * UNIT)
        if ONE_CHUNK:
            h = start + tl.load(end_rows + columns, mask=valid[:, None] & inside, other=0.0).to(tl.float32)
            h = tl.where(h < 0.0, 0.0, h)  # [BLOCK_T, BLOCK_H]; max(h, 0) would turn NaN into 0
            mean = tl.sum(h, axis=1) / hidden
            centred = tl.where(inside, h - mean[:, None], 0.0)
            squares = tl.sum(centred * centred, axis=1)
            numerator = tl.sum(centred * u, axis=1)
        else:
            # Moments about the running mean, merged chunk by chunk (Chan, Golub and LeVeque 1979): Σ h² - H mean² would
            # cancel where h varies little about a large mean.
            mean = tl.full([BLOCK_T], 0.0, tl.float32)
            squares = tl.full([BLOCK_T], 0.0, tl.float32)
            numerator = tl.full([BLOCK_T], 0.0, tl.float32)
            u_sum = 0.0
            for column in range(0, hidden, BLOCK_H):
                inside = column + columns < hidden
                load = valid[:, None] & inside
                u = tl.load(v_ptr + column + columns, mask=inside, other=0.0)
                u *= tl.load(gamma_ptr + column + columns, mask=inside, other=0.0)
                h = tl.load(start_rows + column + columns, mask=load, other=0.0).to(tl.float32)
                h += tl.load(end_rows + column + columns, mask=load, other=0.0).to(tl.float32)
                h = tl.where(h < 0.0, 0.0, h)
                count = tl.minimum(hidden - column, BLOCK_H).to(tl.float32)
                fraction = count / (column + count)
                chunk_mean = tl.sum(h, axis=1) / count
                centred = tl.where(inside, h - chunk_mean[:, None], 0.0)
                delta = chunk_mean - mean
                chunk_u_sum = tl.sum(u)
                numerator += tl.sum(centred * u, axis=1) + delta * ((1.0 - fraction) * chunk_u_sum - fraction * u_sum)
                squares += tl.sum(centred * centred, axis=1) + delta * delta * (column * fraction)
                mean += delta * fraction
                u_sum += chunk_u_sum  # pyright: ignore[reportOperatorIssue] (the sum of one tensor is no tuple)
        inverse_deviation = 1.0 / tl.sqrt(squares / hidden + eps)
        candidates = first + token  # [BLOCK_T] index among the block's spans
        at = block_out + candidates
        if MODE == 2:
            a = tl.load(grad_ptr + at, mask=valid, other=0.0) * inverse_deviation
            tl.store(out_ptr + at, a, mask=valid)
            tl.store(out_ptr + plane + at, a * inverse_deviation * inverse_deviation * numerator / hidden, mask=valid)
            tl.store(out_ptr + 2 * plane + at, mean, mask=valid)
        else:
            end_inside = tl.load(mask_ptr + rows + width, mask=rows + width < mask_rows, other=1) != 0
            logits = numerator * inverse_deviation + constant
            logits += tl.where(start_inside & end_inside, 0.0, -3.4028234663852886e38)
            logits += relevance
            if MODE == 0:
                tl.store(out_ptr + at, logits, mask=valid)
            else:
                better = valid & (logits > best)  # an equal score of a wider span comes later: the first stays
                best = tl.where(better, logits, best)
                best_candidate = tl.where(better, candidates, best_candidate)
        first += tokens - width
    if MODE == 1:
        score = tl.max(best, axis=0)
        is_best = (best == score) & (rows < all_rows)
        tl.store(out_ptr + tl.program_id(0), score)
        tl.store(place_ptr + tl.program_id(0), tl.min(tl.where(is_best, block, 2147483647), axis=0))
        place_ptr += tl.num_programs(0)
        tl.store(place_ptr + tl.program_id(0), tl.min(tl.where(is_best, best_candidate, 2147483647), axis=0))


@triton.jit(
    do_not_specialize=_SIZES,
    do_not_specialize_on_alignment=["u_ptr", "coefficients_ptr", "dstart_ptr", "dend_ptr", "normed_sum_ptr"],
)
def _gradients_kernel(
    start_ptr,  # [B * T, H] float32 or bfloat16, rows start_units * UNIT elements apart
    end_ptr,  # [B * T, H], rows end_units * UNIT elements apart
    u_ptr,  # [H] float32, ũ
    coefficients_ptr,  # [3, B, spans] float32: a = g r, d = g r³ n / H and mean(h), with dh = a ũ - d (h - mean(h))
    dstart_ptr,  # [B * T, H] of the projections' dtype
    dend_ptr,  # [B * T, H]
    normed_sum_ptr,  # [programs, H] float32, each program's part of A
    all_rows,  # B * T
    tokens,
    widths,
    hidden_units,
    start_units,
    end_units,
    UNIT: tl.constexpr,  # as above
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    hidden = hidden_units * UNIT
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)  # [BLOCK_T] tokens of all blocks in a row
    token = rows % tokens
    columns = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = columns < hidden
    spans = widths * tokens - widths * (widths - 1) // 2
    plane = (all_rows // tokens).to(tl.int64) * spans
    u = tl.load(u_ptr + columns, mask=inside, other=0.0)
    here = (rows < all_rows)[:, None] & inside
    start_here = start_ptr + rows.to(tl.int64)[:, None] * (start_units * UNIT) + columns
    end_here = end_ptr + rows.to(tl.int64)[:, None] * (end_units * UNIT) + columns
    start = tl.load(start_here, mask=here, other=0.0).to(tl.float32)
    end = tl.load(end_here, mask=here, other=0.0).to(tl.float32)
    dstart = tl.full([BLOCK_T, BLOCK_H], 0.0, tl.float32)
    dend = tl.full([BLOCK_T, BLOCK_H], 0.0, tl.float32)
    normed_sum = tl.full([BLOCK_T, BLOCK_H], 0.0, tl.float32)
    at = coefficients_ptr + (rows // tokens).to(tl.int64) * spans + token  # the span of one token
    for width in range(widths):
        # the spans that start here
        valid = (token + width < tokens) & (rows < all_rows)
        a = tl.load(at, mask=valid, other=0.0)[:, None]
        d = tl.load(at + plane, mask=valid, other=0.0)[:, None]
        mean = tl.load(at + 2 * plane, mask=valid, other=0.0)[:, None]
        other = tl.load(end_here + width * (end_units * UNIT), mask=valid[:, None] & inside, other=0.0)
        h = start + other.to(tl.float32)
        h = tl.where(h < 0.0, 0.0, h)
        dstart += tl.where(h > 0.0, a * u - d * (h - mean), 0.0)
        normed_sum += a * (h - mean)
        # the spans that end here
        valid = (token >= width) & (rows < all_rows)
        a = tl.load(at - width, mask=valid, other=0.0)[:, None]
        d = tl.load(at - width + plane, mask=valid, other=0.0)[:, None]
        mean = tl.load(at - width + 2 * plane, mask=valid, other=0.0)[:, None]
        other = tl.load(start_here - width * (start_units * UNIT), mask=valid[:, None] & inside, other=0.0)
        h = other.to(tl.float32) + end
        h = tl.where(h < 0.0, 0.0, h)
        dend += tl.where(h > 0.0, a * u - d * (h - mean), 0.0)
        at += tokens - width
    out = rows.to(tl.int64)[:, None] * hidden + columns
    tl.store(dstart_ptr + out, dstart.to(dstart_ptr.dtype.element_ty), mask=here)
    tl.store(dend_ptr + out, dend.to(dend_ptr.dtype.element_ty), mask=here)
    part = tl.program_id(0).to(tl.int64) * hidden + columns
    tl.store(normed_sum_ptr + part, tl.sum(normed_sum, axis=0), mask=inside)


def span_logits(inputs: SpanInputs) -> Tensor:
    """`spans.span_logits` by the kernel above: float32 [B, spans]. The projections must not be float64."""
    _check(inputs)
    blocks, tokens, _ = inputs.start_projection.shape
    logits = _empty(inputs, blocks, span_count(tokens, inputs.max_span_width))
    _launch_scores(LOGITS, logits, inputs)
    return logits  # [B, spans]


def best_span(inputs: SpanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`realm_min.model.spans.best_span` by the kernel above: (score, block, start, end), and no logits are stored."""
    _check(inputs)
    blocks, tokens, _ = inputs.start_projection.shape
    programs = triton.cdiv(blocks * tokens, SCORES_TILE["BLOCK_T"])
    scores = _empty(inputs, programs)
    places = torch.empty(2, programs, dtype=torch.int32, device=scores.device)
    _launch_scores(BEST, scores, inputs, places=places)
    return choose_span(scores, places[0], places[1], tokens, inputs.max_span_width)


def span_logits_backward(grad_logits: Tensor, inputs: SpanInputs) -> dict[str, Tensor]:
    """`realm_min.model.spans.span_logits_backward` by the two kernels above: gradients by input name."""
    _check(inputs, grad_logits)
    blocks, tokens, hidden = inputs.start_projection.shape
    max_span_width = inputs.max_span_width
    coefficients = _empty(inputs, 3, blocks, span_count(tokens, max_span_width))
    grad = grad_logits.float().contiguous()
    _launch_scores(COEFFICIENTS, coefficients, inputs, grad=grad)
    u = inputs.output_weight.float() * inputs.norm_weight.float()
    start, end, units = _projections(inputs)
    programs = triton.cdiv(blocks * tokens, GRADIENTS_TILE["BLOCK_T"])
    dstart = torch.empty(blocks, tokens, hidden, dtype=start.dtype, device=start.device)
    dend = torch.empty_like(dstart)
    normed_sum = _empty(inputs, programs, hidden)
    with torch.cuda.device_of(start):
        _gradients_kernel[(programs, triton.cdiv(hidden, GRADIENTS_TILE["BLOCK_H"]))](
            start,
            end,
            u - u.mean(),
            coefficients,
            dstart,
            dend,
            normed_sum,
            blocks * tokens,
            tokens,
            min(tokens, max_span_width),
            **units,
            **GRADIENTS_TILE,
            **OPTIONS,
        )
    return gradients_by_name(dstart, dend, normed_sum.sum(0), grad, inputs)


def compile_variants():
    """Every compilation a launch above can ask for: (name, kernel, signature, constexprs, options).

    `signature` maps each argument to its Triton type, with ":16" where the launch promises an address that 16 divides.
    """
    for dtype, unit in itertools.product(("fp32", "bf16"), (1, 8)):
        projections = dict.fromkeys(["start_ptr", "end_ptr"], f"*{dtype}:16")
        sizes = dict.fromkeys(_SIZES, "i32")
        signature = {
            **projections,
            **dict.fromkeys(_WEIGHTS, "*fp32"),
            "mask_ptr": "*i1",
            **dict.fromkeys(["relevance_ptr", "grad_ptr", "out_ptr"], "*fp32"),
            "place_ptr": "*i32",
            **sizes,
            **dict.fromkeys(_LIMITS, "i32"),
            "eps": "fp32",
        }
        for mode, one_chunk in itertools.product((LOGITS, BEST, COEFFICIENTS), (True, False)):
            name = f"span {('logits', 'best', 'coefficients')[mode]} {dtype} UNIT={unit} ONE_CHUNK={one_chunk}"
            constexprs = dict(MODE=mode, UNIT=unit, ONE_CHUNK=one_chunk, **SCORES_TILE)
            yield name, _scores_kernel, signature, constexprs, OPTIONS
        signature = {
            **projections,
            **dict.fromkeys(["u_ptr", "coefficients_ptr"], "*fp32"),
            **dict.fromkeys(["dstart_ptr", "dend_ptr"], f"*{dtype}"),
            "normed_sum_ptr": "*fp32",
            **sizes,
        }
        constexprs = dict(UNIT=unit, **GRADIENTS_TILE)
        yield f"span gradients {dtype} UNIT={unit}", _gradients_kernel, signature, constexprs, OPTIONS


def _check(inputs: SpanInputs, grad_logits: Tensor | None = None) -> None:
    """Raise the error that names what does not fit together, or what the kernels cannot take."""
    check_spans(inputs, grad_logits)
    if inputs.start_projection.dtype == torch.float64:
        raise TypeError("the kernels compute in float32: give float64 projections to realm_min.model.spans")
    if not (inputs.start_projection.is_cuda or INTERPRETED):
        raise ValueError("the kernels need CUDA tensors: give CPU tensors to realm_min.model.spans")
    tokens, widest = inputs.start_projection.shape[1], inputs.max_span_width
    if span_count(tokens, widest) >= 2**31:
        raise ValueError(f"{tokens} tokens have 2**31 spans or more of max_span_width={widest}: cut one")


def _empty(inputs: SpanInputs, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=inputs.start_projection.device)


def _projections(inputs: SpanInputs) -> tuple[Tensor, Tensor, dict[str, int]]:
    """The projections as the kernels take them, copied only if they must be, and the kernels' size arguments."""
    start, end = inputs.start_projection, inputs.end_projection
    taken = []
    for projection in (start, end):
        if projection.dtype not in (torch.float32, torch.bfloat16):
            projection = projection.float()
        tokens = projection.shape[1]
        # Halves of one [B, T, 2H] tensor are read where they are.
        is_rows = projection.stride(2) == 1 and projection.stride(0) == tokens * projection.stride(1)
        if not is_rows or projection.data_ptr() % 16:
            projection = projection.clone(memory_format=torch.contiguous_format)
        taken.append(projection)
    sizes = dict(hidden=start.shape[2], start=taken[0].stride(1), end=taken[1].stride(1))
    unit = 1 if any(size % 8 for size in sizes.values()) else 8
    return *taken, {f"{name}_units": size // unit for name, size in sizes.items()} | {"UNIT": unit}


def _launch_scores(mode, out, inputs, places=None, grad=None):
    start, end, units = _projections(inputs)
    mask, relevance = inputs.block_mask, inputs.relevance_score
    blocks, tokens, hidden = start.shape
    nothing = torch.zeros(1, dtype=torch.float32, device=start.device)  # where an argument is not read
    rows = blocks * tokens
    with torch.cuda.device_of(start):  # Triton launches on the current device
        _scores_kernel[(triton.cdiv(rows, SCORES_TILE["BLOCK_T"]),)](
            start,
            end,
            inputs.norm_weight.float().contiguous(),
            inputs.norm_bias.float().contiguous(),
            inputs.output_weight.float().contiguous(),
            torch.as_tensor(inputs.output_bias, dtype=torch.float32, device=start.device).reshape(1),
            nothing.to(torch.bool) if mask is None else mask.contiguous(),
            nothing if relevance is None else relevance.float().contiguous(),
            nothing if grad is None else grad,
            out,
            nothing.to(torch.int32) if places is None else places,
            rows,
            tokens,
            min(tokens, inputs.max_span_width),
            **units,
            mask_rows=0 if mask is None else rows,
            relevance_rows=0 if relevance is None else rows,
            eps=inputs.eps,
            MODE=mode,
            ONE_CHUNK=hidden <= SCORES_TILE["BLOCK_H"],
            **SCORES_TILE,
            **OPTIONS,
        )
