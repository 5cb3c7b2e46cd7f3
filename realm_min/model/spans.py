"""Span logits of the reader (ORQA, Lee et al. 2019, section 3; REALM, section 3.2): every span's score, or the best.

Part 8 of the book, read after `realm.py`. For block b and the span of tokens i..j, with S and E the two halves of one
projection of the encoder's output,

    h     = relu(S[b, i] + E[b, j])                                  [hidden]
    logit = v . LayerNorm(h) + c                                     v, c: the output weight and bias

With γ, β the LayerNorm's weight and bias, ∘ elementwise, u = v ∘ γ and ũ = u - mean(u), the normalised h need not
exist, because taking the mean out of u does the same as taking it out of h:

    logit = (Σ ũ h) / sqrt(var(h) + eps) + v . β + c

Masked spans (a token at either end outside the block) get the dtype's minimum added; the block's relevance score is
added last. Spans stand in the order of widths: every span of one token, then every span of two, and so on.

Gradients, for g = ∂loss/∂logit, r = 1 / sqrt(var(h) + eps), n = Σ ũ h and H the hidden size:

    dh    = g r (ũ - (h - mean(h)) r² n / H)     where h > 0, else 0; it goes to S[b, i] and to E[b, j]
    A     = Σ over spans of g r (h - mean(h))    dγ = v ∘ A,  dv = γ ∘ A + β Σ g,  dβ = v Σ g,  dc = Σ g

CPU tensors go through torch here, in pieces that stay in the processor's cache, and CUDA tensors to the Triton kernels
of `kernels/span_logits.py`. Neither holds h of all spans at once, and equal spans get equal bits wherever they stand,
so that ties are true ties. `more` is j - i: so many tokens follow a span's first. In shapes: B blocks, T tokens, H
hidden.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kinds

PIECE_ELEMENTS = 2**19  # floats of one width's h held at a time: 2 MB, about one second-level cache


class SpanInputs(NamedTuple):
    """What spans are scored by. The projections are bfloat16, float16, float32 or, on a CPU, float64."""

    start_projection: Tensor  # [B, T, H]
    end_projection: Tensor  # [B, T, H], of the same dtype
    norm_weight: Tensor  # [H]
    norm_bias: Tensor  # [H]
    output_weight: Tensor  # [H]
    output_bias: Tensor | float  # a number, or a tensor of one element
    max_span_width: int  # tokens in the widest span; widths above T have no spans
    eps: float  # the LayerNorm's epsilon, above 0
    block_mask: Tensor | None = None  # bool [B, T], True where a span may begin or end; None for everywhere
    relevance_score: Tensor | None = None  # [B], added to every logit of its block; None for 0

    @property
    def on_kernels(self) -> bool:
        """Whether the Triton kernels have to score them: they are a GPU's, and not float64."""
        projection = self.start_projection
        return isinstance(projection, Tensor) and projection.is_cuda and projection.dtype != torch.float64

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits: half-precision projections are accumulated in float32."""
        return torch.float64 if self.start_projection.dtype == torch.float64 else torch.float32


def span_candidates(tokens: int, max_span_width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """First and last token of each span, both int64 [spans]: widths 1 to `max_span_width`, as far as `tokens` allow."""
    widths = range(min(tokens, max_span_width))
    starts = torch.cat([torch.arange(tokens - more, device=device) for more in widths])
    ends = torch.cat([torch.arange(more, tokens, device=device) for more in widths])
    return starts, ends


def span_candidate(start: Tensor | int, end: Tensor | int, tokens: int) -> Tensor | int:
    """The index of the spans start..end in the order of `span_candidates`: int64, in the arguments' shape."""
    more = end - start
    return more * (2 * tokens + 1 - more) // 2 + start


def span_count(tokens: int, max_span_width: int) -> int:
    """How many spans of 1 to `max_span_width` tokens a sequence of `tokens` has."""
    widths = min(tokens, max_span_width)
    return widths * tokens - widths * (widths - 1) // 2


def span_logits(inputs: SpanInputs) -> Tensor:
    """Logits of all spans, [B, spans], spans in the order of `span_candidates`.

    They are float64 for float64 projections, else float32. Where a span is masked the minimum of that dtype is added.
    Raises ValueError or TypeError for inputs that do not fit together.
    """
    if inputs.on_kernels:
        from realm_min.kernels import span_logits as kernels

        return kernels.span_logits(inputs)
    check_spans(inputs)
    blocks, tokens, _ = inputs.start_projection.shape
    logits = inputs.start_projection.new_empty(blocks, span_count(tokens, inputs.max_span_width), dtype=inputs.dtype)
    for rows, more, first, piece in _logits_by_piece(inputs):
        logits[rows, first : first + tokens - more] = piece
    return logits  # [B, spans]


def best_span(inputs: SpanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best span of all blocks as (score, block, start, end), storing no logits.

    score: float32, or float64 for float64 projections, []; block, start, end: int64 []. Ties fall as in transformers,
    which chooses block and span each on its own: block is the first that holds the best score, and start..end the first
    span in the order of `span_candidates` that has the best score in any block. `span_candidate` gives its index.
    Scores that are NaN do not count.
    """
    if inputs.on_kernels:
        from realm_min.kernels import span_logits as kernels

        return kernels.best_span(inputs)
    check_spans(inputs)
    blocks, tokens, _ = inputs.start_projection.shape
    scores = inputs.start_projection.new_full((blocks,), -torch.inf, dtype=inputs.dtype)  # [B], each block's best
    candidates = torch.zeros(blocks, dtype=torch.int64, device=scores.device)  # [B], the first span that has it
    for rows, _, first, piece in _logits_by_piece(inputs):
        position = piece.argmax(1)
        score = piece.gather(1, position[:, None])[:, 0]
        better = score > scores[rows]  # an equal score of a wider span comes later: the first stays
        scores[rows] = torch.where(better, score, scores[rows])
        candidates[rows] = torch.where(better, first + position, candidates[rows])
    return choose_span(scores, torch.arange(blocks, device=scores.device), candidates, tokens, inputs.max_span_width)


def choose_span(
    scores: Tensor, blocks: Tensor, candidates: Tensor, tokens: int, max_span_width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(score, block, start, end) from each part's best score and the first block and first candidate that have it.

    scores, blocks, candidates: [parts], where the parts cover all blocks.
    """
    score = scores.amax()
    last = torch.iinfo(torch.int64).max
    block, candidate = (torch.where(scores == score, place.long(), last).amin() for place in (blocks, candidates))
    more = torch.arange(min(tokens, max_span_width), device=scores.device)
    more = (span_candidate(0, more, tokens) <= candidate).sum() - 1  # the last width whose first span comes before
    start = candidate - span_candidate(0, more, tokens)
    return score, block, start, start + more


def span_logits_backward(grad_logits: Tensor, inputs: SpanInputs) -> dict[str, Tensor]:
    """Gradients of `span_logits` by input name, for grad_logits [B, spans] = ∂loss/∂logits; h is computed again.

    Each gradient has its input's shape and dtype; "relevance_score" is there where that is given. The mask is a
    constant that is added, so it changes no gradient. The same inputs give the same bits.
    """
    if inputs.on_kernels:
        from realm_min.kernels import span_logits as kernels

        return kernels.span_logits_backward(grad_logits, inputs)
    check_spans(inputs, grad_logits)
    blocks, tokens, hidden = inputs.start_projection.shape
    dtype = inputs.dtype
    u, _ = fold_weights(inputs, dtype)
    dstart = inputs.start_projection.new_zeros(blocks, tokens, hidden, dtype=dtype)
    dend = torch.zeros_like(dstart)
    normed_sum = dstart.new_zeros(hidden)  # A
    positive = dstart.new_empty(0)
    for rows, more, first, h in _hidden_by_piece(inputs):
        g = grad_logits[rows, first : first + tokens - more].to(dtype)[..., None]  # [rows, tokens, 1]
        positive = torch.sign(h, out=positive.resize_(h.shape))  # 1 where h > 0, else 0
        h.sub_(h.sum(-1, keepdim=True) / hidden)
        r = _inverse_deviation(h, inputs.eps)[..., None]
        n = (h @ u)[..., None]
        normed_sum += (g * r).flatten() @ h.flatten(0, 1)
        dh = h.mul_(g * r.pow(3) * n / -hidden).addcmul_(g * r, u).mul_(positive)  # [rows, tokens, hidden]
        dstart[rows, : tokens - more] += dh
        dend[rows, more:] += dh
    return gradients_by_name(dstart, dend, normed_sum, grad_logits, inputs)


def gradients_by_name(
    dstart: Tensor, dend: Tensor, normed_sum: Tensor, grad_logits: Tensor, inputs: SpanInputs
) -> dict[str, Tensor]:
    """The dict of `span_logits_backward` from the two projections' gradients [B, T, H] and A [H] (module head)."""
    dtype = normed_sum.dtype
    block_sum = grad_logits.to(dtype).sum(1)  # [B]
    total = block_sum.sum()
    v, gamma, beta = (weight.to(dtype) for weight in (inputs.output_weight, inputs.norm_weight, inputs.norm_bias))
    bias = inputs.output_bias
    bias = bias if isinstance(bias, Tensor) else total.new_tensor(bias)
    grads = {
        "start_projection": dstart.to(inputs.start_projection.dtype),
        "end_projection": dend.to(inputs.end_projection.dtype),
        "norm_weight": (v * normed_sum).to(inputs.norm_weight.dtype),
        "norm_bias": (v * total).to(inputs.norm_bias.dtype),
        "output_weight": (gamma * normed_sum + beta * total).to(inputs.output_weight.dtype),
        "output_bias": total.to(bias.dtype).reshape(bias.shape),
    }
    if inputs.relevance_score is not None:
        grads["relevance_score"] = block_sum.to(inputs.relevance_score.dtype)
    return grads


def fold_weights(inputs: SpanInputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """ũ [H] and the constant v . β + c [], both of the dtype given."""
    v, gamma, beta = (weight.double() for weight in (inputs.output_weight, inputs.norm_weight, inputs.norm_bias))
    u = v * gamma
    constant = (v * beta).sum() + torch.as_tensor(inputs.output_bias, dtype=torch.float64, device=v.device).sum()
    return (u - u.mean()).to(dtype), constant.to(dtype)


def check_spans(inputs: SpanInputs, grad_logits: Tensor | None = None) -> None:
    """Raise the ValueError or TypeError that names what is wrong with the inputs of the functions above."""
    kinds.check_fields(inputs)
    _check_numbers(inputs)
    start_projection, end_projection = inputs.start_projection, inputs.end_projection
    if start_projection.dim() != 3 or 0 in start_projection.shape:
        raise ValueError(
            f"start_projection must be [blocks, tokens, hidden], none of them 0: got {start_projection.shape}"
        )
    if not start_projection.is_floating_point():
        raise TypeError(f"start_projection must be floating point: got {start_projection.dtype}")
    if end_projection.dtype != start_projection.dtype:
        raise TypeError(f"the projections' dtypes differ: {start_projection.dtype} and {end_projection.dtype}")
    if inputs.block_mask is not None and inputs.block_mask.dtype != torch.bool:
        raise TypeError(f"block_mask must be bool: got {inputs.block_mask.dtype}; compare it with 0 first")
    blocks, tokens, hidden = start_projection.shape
    shapes = {
        "start_projection": (start_projection, (blocks, tokens, hidden)),
        "end_projection": (end_projection, (blocks, tokens, hidden)),
        "norm_weight": (inputs.norm_weight, (hidden,)),
        "norm_bias": (inputs.norm_bias, (hidden,)),
        "output_weight": (inputs.output_weight, (hidden,)),
        "block_mask": (inputs.block_mask, (blocks, tokens)),
        "relevance_score": (inputs.relevance_score, (blocks,)),
        "grad_logits": (grad_logits, (blocks, span_count(tokens, inputs.max_span_width))),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}: got {list(tensor.shape)}")
        if tensor.device != start_projection.device:
            raise ValueError(f"{name} is on {tensor.device}, start_projection on {start_projection.device}: move one")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, which span_logits_backward gives: detach() it")


def _check_numbers(inputs: SpanInputs) -> None:
    if inputs.max_span_width < 1:
        raise ValueError(f"max_span_width must be at least 1: got {inputs.max_span_width}")
    if not 0 < inputs.eps < 2**31:
        raise ValueError(f"eps must be above 0: got {inputs.eps}")
    bias = inputs.output_bias
    if isinstance(bias, Tensor) and bias.numel() != 1:
        raise ValueError(f"output_bias must hold one number: got shape {list(bias.shape)}")
    if not isinstance(bias, Tensor) and not abs(bias) < 3e38:
        raise ValueError(f"output_bias must be finite: got {bias}")


def _hidden_by_piece(inputs: SpanInputs) -> Iterator[tuple[slice, int, int, Tensor]]:
    """Yield (rows, more, index of the first span, h [rows, T - more, H]); the caller may overwrite h."""
    blocks, tokens, hidden = inputs.start_projection.shape
    step = max(1, PIECE_ELEMENTS // (tokens * hidden))
    buffer = inputs.start_projection.new_empty(min(step, blocks) * tokens * hidden, dtype=inputs.dtype)
    for begin in range(0, blocks, step):
        rows = slice(begin, min(begin + step, blocks))
        start, end = inputs.start_projection[rows].to(buffer.dtype), inputs.end_projection[rows].to(buffer.dtype)
        first = 0
        for more in range(min(tokens, inputs.max_span_width)):
            spans = tokens - more
            h = buffer[: start.shape[0] * spans * hidden].view(-1, spans, hidden)
            torch.add(start[:, :spans], end[:, more:], out=h)
            yield rows, more, first, h.clamp_(min=0)
            first += spans


def _logits_by_piece(inputs: SpanInputs) -> Iterator[tuple[slice, int, int, Tensor]]:
    """Yield (rows, more, index of the first span, logits [rows, T - more]), mask and relevance included."""
    tokens, hidden = inputs.start_projection.shape[1:]
    dtype, block_mask = inputs.dtype, inputs.block_mask
    u, constant = fold_weights(inputs, dtype)
    for rows, more, first, h in _hidden_by_piece(inputs):
        h.sub_(h.sum(-1, keepdim=True) / hidden)
        r = _inverse_deviation(h, inputs.eps)
        # A product with u and a sum, not a matrix-vector product: that one rounds a row by where it stands.
        logits = h.mul_(u).sum(-1).mul_(r).add_(constant)  # [rows, spans of this width]
        if block_mask is not None:
            outside = ~(block_mask[rows, : tokens - more] & block_mask[rows, more:])
            logits += outside.to(dtype).mul_(torch.finfo(dtype).min)
        if inputs.relevance_score is not None:
            logits += inputs.relevance_score[rows, None].to(dtype)
        yield rows, more, first, logits


def _inverse_deviation(centred: Tensor, eps: float) -> Tensor:
    """1 / sqrt(var + eps) over the last axis of a tensor whose mean there is 0."""
    variance = torch.linalg.vector_norm(centred, dim=-1).square_().div_(centred.shape[-1])
    return variance.add_(eps).rsqrt_()
