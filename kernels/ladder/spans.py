"""The reader's ladder: four kernels for the score of every span, each one step from the one before.

For block b, first token i and width w: h = relu(S[b, i] + E[b, i + w]) and logit = v . LayerNorm(h) + c (ORQA, section
3; textbook.py's `span_logits`). Read it from the top. Rungs 1 to 3 give all logits [B, spans], narrow spans first;
rung 4 gives the best one alone. The mask and the relevance score are left out: they are one addition a span.

    1 naive        h is written, and read by a second kernel
    2 the algebra  three sums over h are enough: h stays in registers
    3 one pass     a program keeps its rows of S and walks over the widths
    4 best only    no logit is written but the best of each program

Symbols: B blocks, T tokens, W the widest span in tokens, H hidden, spans = W T - W (W - 1) / 2 a block.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton_language import knobs, tl, triton

MOST_HIDDEN = 8192
LARGEST = 2.0**55  # of an input: its square times MOST_HIDDEN is a float32
TILE_ELEMENTS = 2048  # numbers of h in the registers of one program
INTERPRETED = knobs.runtime.interpret


class Spans(NamedTuple):
    """What every rung takes. All float32, on one device."""

    start: Tensor  # [B, T, H] S
    end: Tensor  # [B, T, H] E
    norm_weight: Tensor  # [H] the LayerNorm's gamma
    norm_bias: Tensor  # [H] its beta
    output_weight: Tensor  # [H] v
    output_bias: float  # c
    eps: float
    widest: int  # W, in tokens


def span_count(tokens: int, widest: int) -> int:
    """Spans of one block."""
    widest = min(tokens, widest)
    return widest * tokens - widest * (widest - 1) // 2


# ------------------------------------------------------------------------------------------------ 1. naive


@triton.jit
def _hidden(
    start,  # *fp32 [B, T, H]
    end,  # *fp32 [B, T, H]
    h_out,  # *fp32 [B, spans, H]
    all_rows,  # B T
    tokens,
    spans,
    hidden,
    tiles,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    width = tl.program_id(0) // tiles  # one less than the span's tokens
    rows = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)  # b T + i
    token = rows % tokens
    columns = tl.arange(0, BLOCK_H)
    mask = ((rows < all_rows) & (token + width < tokens))[:, None] & (columns < hidden)[None, :]
    at = rows.to(tl.int64)[:, None] * hidden + columns[None, :]
    s = tl.load(start + at, mask=mask, other=0.0)
    e = tl.load(end + at + width * hidden, mask=mask, other=0.0)
    span = (rows // tokens).to(tl.int64) * spans + width * tokens - width * (width - 1) // 2 + token
    tl.store(h_out + span[:, None] * hidden + columns[None, :], tl.maximum(s + e, 0.0), mask=mask)


@triton.jit
def _normalised(
    h_in,  # *fp32 [B, spans, H]
    gamma,  # *fp32 [H]
    beta,  # *fp32 [H]
    v,  # *fp32 [H]
    logits,  # *fp32 [B, spans]
    c,
    eps,
    all_spans,  # B spans
    hidden,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    span = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_H)
    inside = columns < hidden
    here = (span < all_spans)[:, None] & inside[None, :]
    h = tl.load(h_in + span[:, None] * hidden + columns[None, :], mask=here, other=0.0)
    centred = tl.where(inside[None, :], h - (tl.sum(h, axis=1) / hidden)[:, None], 0.0)
    deviation = tl.sqrt_rn(tl.sum(centred * centred, axis=1) / hidden + eps)
    weight = tl.load(gamma + columns, mask=inside, other=0.0)[None, :]
    shift = tl.load(beta + columns, mask=inside, other=0.0)[None, :]
    n = centred / deviation[:, None] * weight + shift  # LayerNorm(h)
    out = tl.load(v + columns, mask=inside, other=0.0)[None, :]
    tl.store(logits + span, tl.sum(n * out, axis=1) + c, mask=span < all_spans)


def naive(x: Spans) -> Tensor:
    """Two kernels, and 8 B spans H bytes between them."""
    blocks, tokens, hidden = x.start.shape
    widths, count = min(tokens, x.widest), span_count(tokens, x.widest)
    h = torch.empty(blocks, count, hidden, dtype=torch.float32, device=x.start.device)
    logits = torch.empty(blocks, count, dtype=torch.float32, device=x.start.device)
    sizes = tile(hidden)
    tiles = triton.cdiv(blocks * tokens, sizes["BLOCK_T"])
    _hidden[(widths * tiles,)](x.start, x.end, h, blocks * tokens, tokens, count, hidden, tiles, **sizes)
    _normalised[(triton.cdiv(blocks * count, sizes["BLOCK_T"]),)](
        h, x.norm_weight, x.norm_bias, x.output_weight, logits, x.output_bias, x.eps, blocks * count, hidden, **sizes
    )
    return logits


# ------------------------------------------------------------------------------------------------ 2. the algebra


@triton.jit
def _logit(s, e, u, constant, eps, inside, hidden):
    """v . LayerNorm(h) + c of s, e [BLOCK_T, BLOCK_H] by three sums. -> [BLOCK_T]

    With u = v gamma and constant = v . beta + c:  v . LayerNorm(h) + c = sum(u (h - mean)) / sqrt(variance + eps) +
    constant: sums of h, of (h - mean)**2 and of u (h - mean), all from registers.
    """
    h = tl.maximum(s + e, 0.0)
    centred = tl.where(inside, h - (tl.sum(h, axis=1) / hidden)[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / hidden
    return tl.sum(centred * u, axis=1) / tl.sqrt_rn(variance + eps) + constant


@triton.jit
def _algebra(
    start,  # *fp32 [B, T, H]
    end,  # *fp32 [B, T, H]
    u_in,  # *fp32 [H]
    constant_in,  # *fp32 [1]
    logits,  # *fp32 [B, spans]
    eps,
    all_rows,
    tokens,
    spans,
    hidden,
    tiles,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    width = tl.program_id(0) // tiles
    rows = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    token = rows % tokens
    columns = tl.arange(0, BLOCK_H)
    inside = (columns < hidden)[None, :]
    valid = (rows < all_rows) & (token + width < tokens)
    at = rows.to(tl.int64)[:, None] * hidden + columns[None, :]
    s = tl.load(start + at, mask=valid[:, None] & inside, other=0.0)
    e = tl.load(end + at + width * hidden, mask=valid[:, None] & inside, other=0.0)
    u = tl.load(u_in + columns, mask=columns < hidden, other=0.0)[None, :]
    logit = _logit(s, e, u, tl.load(constant_in), eps, inside, hidden)
    span = (rows // tokens).to(tl.int64) * spans + width * tokens - width * (width - 1) // 2 + token
    tl.store(logits + span, logit, mask=valid)


def algebra(x: Spans) -> Tensor:
    """h is made where it is used. S and E are asked for once for each width: 8 B spans H bytes, mostly from caches."""
    blocks, tokens, hidden = x.start.shape
    widths, count = min(tokens, x.widest), span_count(tokens, x.widest)
    logits = torch.empty(blocks, count, dtype=torch.float32, device=x.start.device)
    sizes = tile(hidden)
    tiles = triton.cdiv(blocks * tokens, sizes["BLOCK_T"])
    u, constant = folded(x)
    _algebra[(widths * tiles,)](
        x.start, x.end, u, constant, logits, x.eps, blocks * tokens, tokens, count, hidden, tiles, **sizes
    )
    return logits


def folded(x: Spans) -> tuple[Tensor, Tensor]:
    """u = v gamma [H], and the constant v . beta + c [1]."""
    return x.output_weight * x.norm_weight, (x.output_weight @ x.norm_bias + x.output_bias).reshape(1)


# ------------------------------------------------------------------------------------------------ 3. one pass


@triton.jit
def _one_pass(
    start,  # *fp32 [B, T, H]
    end,  # *fp32 [B, T, H]
    u_in,  # *fp32 [H]
    constant_in,  # *fp32 [1]
    logits,  # *fp32 [B, spans]
    eps,
    all_rows,
    tokens,
    spans,
    widths,
    hidden,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    token = rows % tokens
    columns = tl.arange(0, BLOCK_H)
    inside = (columns < hidden)[None, :]
    at = rows.to(tl.int64)[:, None] * hidden + columns[None, :]
    s = tl.load(start + at, mask=(rows < all_rows)[:, None] & inside, other=0.0)  # once, for all widths
    u = tl.load(u_in + columns, mask=columns < hidden, other=0.0)[None, :]
    constant = tl.load(constant_in)
    span = (rows // tokens).to(tl.int64) * spans + token
    for width in range(widths):
        valid = (rows < all_rows) & (token + width < tokens)
        e = tl.load(end + at + width * hidden, mask=valid[:, None] & inside, other=0.0)
        tl.store(logits + span, _logit(s, e, u, constant, eps, inside, hidden), mask=valid)
        span += tokens - width  # the next width's spans begin one place nearer


def one_pass(x: Spans) -> Tensor:
    """S is read once and E, one row further to the right for each width, comes from the L1 cache."""
    blocks, tokens, hidden = x.start.shape
    widths, count = min(tokens, x.widest), span_count(tokens, x.widest)
    logits = torch.empty(blocks, count, dtype=torch.float32, device=x.start.device)
    sizes = tile(hidden)
    u, constant = folded(x)
    _one_pass[(triton.cdiv(blocks * tokens, sizes["BLOCK_T"]),)](
        x.start, x.end, u, constant, logits, x.eps, blocks * tokens, tokens, count, widths, hidden, **sizes
    )
    return logits


# ------------------------------------------------------------------------------------------------ 4. best only


@triton.jit
def _best_only(
    start,  # *fp32 [B, T, H]
    end,  # *fp32 [B, T, H]
    u_in,  # *fp32 [H]
    constant_in,  # *fp32 [1]
    scores,  # *fp32 [programs]
    places,  # *i64 [programs] b spans + span
    eps,
    all_rows,
    tokens,
    spans,
    widths,
    hidden,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    token = rows % tokens
    columns = tl.arange(0, BLOCK_H)
    inside = (columns < hidden)[None, :]
    at = rows.to(tl.int64)[:, None] * hidden + columns[None, :]
    s = tl.load(start + at, mask=(rows < all_rows)[:, None] & inside, other=0.0)
    u = tl.load(u_in + columns, mask=columns < hidden, other=0.0)[None, :]
    constant = tl.load(constant_in)
    span = (rows // tokens).to(tl.int64) * spans + token
    best = tl.full([BLOCK_T], float("-inf"), tl.float32)
    place = tl.full([BLOCK_T], 0x7FFFFFFFFFFFFFFF, tl.int64)
    for width in range(widths):
        valid = (rows < all_rows) & (token + width < tokens)
        e = tl.load(end + at + width * hidden, mask=valid[:, None] & inside, other=0.0)
        logit = tl.where(valid, _logit(s, e, u, constant, eps, inside, hidden), float("-inf"))
        place = tl.where(logit > best, span, place)  # of equals the narrower, which came first
        best = tl.maximum(best, logit)
        span += tokens - width
    score = tl.max(best, axis=0)
    tl.store(scores + tl.program_id(0), score)
    first = tl.where(best == score, place, 0x7FFFFFFFFFFFFFFF)
    tl.store(places + tl.program_id(0), tl.min(first, axis=0))


def best_only(x: Spans) -> tuple[Tensor, Tensor]:
    """The largest logit and its place in the flattened [B, spans]; of equals the first."""
    blocks, tokens, hidden = x.start.shape
    widths, count = min(tokens, x.widest), span_count(tokens, x.widest)
    sizes = tile(hidden)
    programs = int(triton.cdiv(blocks * tokens, sizes["BLOCK_T"]))
    scores = torch.empty(programs, dtype=torch.float32, device=x.start.device)
    places = torch.empty(programs, dtype=torch.int64, device=x.start.device)
    u, constant = folded(x)
    _best_only[(programs,)](
        x.start, x.end, u, constant, scores, places, x.eps, blocks * tokens, tokens, count, widths, hidden, **sizes
    )
    score = scores.max()
    return score, torch.where(scores == score, places, 2**63 - 1).min()


# ------------------------------------------------------------------------------------------------ all of them


class Rung(NamedTuple):
    name: str
    run: Callable[[Spans], Tensor | tuple[Tensor, Tensor]]


RUNGS = (
    Rung("1 naive", naive),
    Rung("2 the algebra", algebra),
    Rung("3 one pass", one_pass),
    Rung("4 best only", best_only),
)


def score_spans(rung: Rung, x: Spans) -> Tensor | tuple[Tensor, Tensor]:
    """A rung's logits [B, spans], or for the last (score, place). Raises ValueError for what it cannot take."""
    check(x)
    tensors = {name: value.contiguous() for name, value in x._asdict().items() if isinstance(value, Tensor)}
    with torch.no_grad(), torch.cuda.device_of(x.start):  # Triton launches on the current device
        return rung.run(x._replace(**tensors))


def check(x: Spans) -> None:
    """Raise ValueError, naming the value and the remedy, for what the rungs cannot take."""
    if x.start.ndim != 3 or 0 in x.start.shape:
        raise ValueError(f"start has shape {list(x.start.shape)}: give [blocks, tokens, hidden], none of them 0")
    blocks, tokens, hidden = x.start.shape
    shapes = dict(start=x.start.shape, end=x.start.shape, norm_weight=(hidden,), norm_bias=(hidden,))
    for name, shape in (shapes | dict(output_weight=(hidden,))).items():
        given = getattr(x, name)
        if given.shape != tuple(shape) or given.dtype != torch.float32 or given.device != x.start.device:
            found = f"{given.dtype} {list(given.shape)} on {given.device}"
            raise ValueError(f"{name} is {found}: give float32 {list(shape)} on {x.start.device}")
        if not bool((given.abs() < LARGEST).all()):
            raise ValueError(f"{name} holds NaN or a magnitude of 2**55 or more: squares of h would overflow")
    if hidden > MOST_HIDDEN:
        raise ValueError(f"the hidden size is {hidden}: the ladder takes up to {MOST_HIDDEN}, a row in registers")
    if x.widest < 1 or not x.eps >= 2.0**-126:
        raise ValueError(f"widest is {x.widest} and eps {x.eps}: give 1 or more, and a normal float32 above 0")
    if min(tokens, x.widest) * (blocks * tokens + TILE_ELEMENTS) >= 2**31:
        raise ValueError(f"{blocks} x {tokens} tokens have more than 2**31 spans: score in parts")
    if not (x.start.is_cuda or INTERPRETED):
        raise ValueError("the kernels need CUDA tensors, or TRITON_INTERPRET=1 set before Python starts")


def tile(hidden: int) -> dict[str, int]:
    """Spans that a program scores side by side, and the power of two that h fills in registers."""
    block_h = max(16, 1 << (hidden - 1).bit_length())
    return {"BLOCK_T": max(1, TILE_ELEMENTS // block_h), "BLOCK_H": block_h}


def compiled_as(hidden: int) -> dict[str, tuple]:
    """For each rung the last of its kernels, its pointers' types and its constexprs."""
    inputs = dict.fromkeys(["start", "end", "u_in", "constant_in"], "*fp32")
    naive_inputs = dict.fromkeys(["h_in", "gamma", "beta", "v", "logits"], "*fp32")
    return {
        "1 naive": (_normalised, naive_inputs, tile(hidden)),
        "2 the algebra": (_algebra, inputs | dict(logits="*fp32"), tile(hidden)),
        "3 one pass": (_one_pass, inputs | dict(logits="*fp32"), tile(hidden)),
        "4 best only": (_best_only, inputs | dict(scores="*fp32", places="*i64"), tile(hidden)),
    }
