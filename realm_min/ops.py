"""The operations every layer is made of, on plain tensors.

torch only carries the numbers here: matrix products, elementwise arithmetic and reductions. Names ending in an
underscore overwrite their first argument, as torch's own do; a model that keeps its activations for a backward pass
uses the others. Axes in shape comments: `rows` are tokens of any number of sequences laid end to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x [rows, in], weight [out, in], bias [out] -> [rows, out]."""
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of `table` [vocabulary, hidden] at `ids` (any shape, int64) -> [*ids.shape, hidden]."""
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[1])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016, eq. 4)."""
    centered = x - x.mean(-1, keepdim=True)
    variance = (centered * centered).mean(-1, keepdim=True)
    return torch.addcmul(bias, centered.mul_(variance.add_(eps).rsqrt_()), weight)


def softmax_(scores: Tensor) -> Tensor:
    """exp(s) / Σ exp(s) over the last axis; the maximum is taken out first, so that nothing overflows."""
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def softmax(scores: Tensor) -> Tensor:
    """As `softmax_`, into a new tensor."""
    return softmax_(scores.clone())


def logsumexp(x: Tensor, dim: int) -> Tensor:
    """log Σ exp(x) along `dim`, exact for any magnitude; a slice of -inf alone gives -inf."""
    largest = x.amax(dim, keepdim=True)
    # Where the maximum is infinite, x - max would be nan: shift by zero there, exp does the rest.
    shift = torch.where(largest.isinf(), torch.zeros_like(largest), largest)
    return (x - shift).exp_().sum(dim).log_() + shift.squeeze(dim)


def log_softmax(x: Tensor, dim: int) -> Tensor:
    """log of the softmax along `dim`: x - logsumexp(x), the maximum taken out of both so that it costs no digits."""
    shifted = x - x.amax(dim, keepdim=True)
    return shifted - shifted.exp().sum(dim, keepdim=True).log_()


def dropout(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Zero each number with `probability`, scale the rest by 1 / (1 - probability) (Srivastava et al. 2014).

    `generator` draws the mask; None means evaluation and returns `x` itself.
    """
    if generator is None or probability == 0:
        return x
    kept = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) >= probability
    return x * kept * (1 / (1 - probability))


def gelu_(x: Tensor) -> Tensor:
    """x Φ(x), Φ the standard normal distribution function (Hendrycks and Gimpel 2016)."""
    gate = (x * math.sqrt(0.5)).erf_()
    return x.mul_(0.5).addcmul_(x, gate)


def gelu_new_(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, BERT's and REALM's own: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    slope = math.sqrt(2 / math.pi)
    # √(2/π) (1 + 0.044715 x²) in one pass over x, then times x: five passes in all, each in cache.
    gate = torch.addcmul(x.new_full((), slope), x, x, value=0.044715 * slope).mul_(x).tanh_()
    return x.mul_(0.5).addcmul_(x, gate)


def relu_(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return x.clamp_(min=0)


def selu_(x: Tensor) -> Tensor:
    """λ x above 0, λ α (eˣ - 1) below, with the constants of Klambauer et al. 2017, eq. 2."""
    scale, alpha = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
    negative = x.clamp(max=0).expm1_().mul_(scale * alpha)
    return x.clamp_(min=0).mul_(scale).add_(negative)


def silu_(x: Tensor) -> Tensor:
    """x σ(x) (Elfwing et al. 2017)."""
    return x.mul_(x.sigmoid())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu_,
    "gelu_new": gelu_new_,
    "relu": relu_,
    "selu": selu_,
    "silu": silu_,
}


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is 1 and the most negative number of `dtype` where it is 0: what is added to a score."""
    return (1 - mask.to(dtype)) * torch.finfo(dtype).min


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """-log softmax(logits)[target] a row, 0 where the target is `ignore_index`.

    Args:
        logits: [rows, classes].
        targets: [rows] int64.

    Raises:
        ValueError: a target that is neither a class nor `ignore_index`.
    """
    ignored = targets == ignore_index
    wrong = ~ignored & ((targets < 0) | (targets >= logits.shape[1]))
    if wrong.any():
        raise ValueError(
            f"label {targets[wrong][0].item()} is out of range: labels are 0..{logits.shape[1] - 1}, "
            f"or {ignore_index} where there is none"
        )
    shifted = logits - logits.amax(1, keepdim=True)
    picked = shifted.gather(1, targets.masked_fill(ignored, 0)[:, None])[:, 0]
    return (shifted.exp_().sum(1).log_() - picked).masked_fill_(ignored, 0)
