"""The operations every layer is made of, on plain tensors, each with its gradient beside it.

torch only carries the numbers here: matrix products, elementwise arithmetic and reductions. Names ending in an
underscore overwrite their first argument, as torch's own do. In a `*_backward`, `dy` is ∂loss/∂y for the y that the
operation returned; it returns `dx` and adds to the `dweight` and `dbias` it is given. Axes in shape comments: `rows`
are tokens of any number of sequences laid end to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

# Numbers that several elementwise passes take at a time on a CPU: in between they stay in its second-level caches.
PIECE = 1 << 18

# λ and α of SELU (Klambauer et al. 2017, eq. 2).
SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def pieces(x: Tensor) -> Iterator[slice]:
    """The rows of x [rows, ...]: on a CPU as many at a time as hold `PIECE` numbers, elsewhere all."""
    rows = x.shape[0]
    step = max(1, PIECE // max(1, x.shape[1:].numel())) if x.device.type == "cpu" else rows
    for first in range(0, rows, step):
        yield slice(first, first + step)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b for x [rows, in], weight [out, in], bias [out] -> [rows, out]."""
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


def linear_backward(dy: Tensor, x: Tensor, weight: Tensor, dweight: Tensor, dbias: Tensor | None = None) -> Tensor:
    """dx = dy W [rows, in]; the weight's and the bias's gradients are added as `weight_backward` does."""
    weight_backward(dy, x, dweight, dbias)
    return dy @ weight


def weight_backward(dy: Tensor, x: Tensor, dweight: Tensor, dbias: Tensor | None = None) -> None:
    """Add dyᵀ x to `dweight` [out, in] and the sum of dy's rows to `dbias` [out]."""
    dweight.t().addmm_(x.t(), dy)  # transposed, as the weights lie in memory
    if dbias is not None:
        dbias.add_(dy.sum(0))


def embedding(ids: Tensor, table: Tensor) -> Tensor:
    """Rows of `table` [vocabulary, hidden] at `ids` (any shape, int64) -> [*ids.shape, hidden]."""
    return table.index_select(0, ids.reshape(-1)).view(*ids.shape, table.shape[1])


def embedding_backward(dy: Tensor, ids: Tensor, dtable: Tensor, padding_id: int | None = None) -> None:
    """Add dy [*ids.shape, hidden] to the rows `ids` of `dtable`; the row `padding_id` gets no gradient."""
    ids, dy = ids.reshape(-1), dy.reshape(-1, dtable.shape[1])
    if padding_id is not None:
        dy = dy.masked_fill((ids == padding_id)[:, None], 0)
    dtable.index_add_(0, ids, dy)


def standardize_(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x̂ = (x - mean) r and r = 1 / sqrt(variance + eps) [..., 1]: a LayerNorm before its weight and bias.

    Over the last axis (Ba et al. 2016, equation 4); `x` is overwritten.
    """
    inverse_deviation = x.new_empty(*x.shape[:-1], 1)
    for rows in pieces(x):
        centered = x[rows].sub_(x[rows].mean(-1, keepdim=True))
        torch.rsqrt((centered * centered).mean(-1, keepdim=True).add_(eps), out=inverse_deviation[rows])
        centered.mul_(inverse_deviation[rows])
    return x, inverse_deviation


def layer_norm_backward(
    dy: Tensor, standardized: Tensor, inverse_deviation: Tensor, weight: Tensor, dweight: Tensor, dbias: Tensor
) -> Tensor:
    """dx = r (g - mean(g) - x̂ mean(g x̂)) with g = dy γ; `dweight` gets Σ dy x̂ and `dbias` Σ dy."""
    dx, size = torch.empty_like(dy), weight.shape[0]
    for rows in pieces(dy):
        of_rows, normal = dy[rows], standardized[rows]
        product = of_rows * normal
        dweight.add_(product.sum(0))
        dbias.add_(of_rows.sum(0))
        # Means over a row of what is multiplied by γ are matrix-vector products with γ: no pass of their own.
        along = (product @ weight).div_(-size)[:, None]
        mean = (of_rows @ weight).div_(size)[:, None]
        g = torch.mul(of_rows, weight, out=dx[rows])
        g.sub_(mean).addcmul_(normal, along).mul_(inverse_deviation[rows])
    return dx


def softmax_(scores: Tensor) -> Tensor:
    """exp(s) / Σ exp(s) over the last axis; the maximum is taken out first, so that nothing overflows."""
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def softmax(scores: Tensor) -> Tensor:
    """As `softmax_`, into a new tensor."""
    return softmax_(scores.clone())


def softmax_backward_(ydy: Tensor, y: Tensor, sums: Tensor) -> Tensor:
    """dx = y dy - y Σ y dy, over the last axis.

    Args:
        ydy: y dy, which is overwritten; dropout behind the softmax changes y and dy, but not their product.
        y: the softmax.
        sums: Σ y dy [..., 1], which attention has without a pass over y.
    """
    return ydy.addcmul_(y, sums, value=-1)


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


def log_softmax_backward(dy: Tensor, y: Tensor) -> Tensor:
    """dx = dy - softmax(x) Σ dy, over the last axis."""
    return torch.addcmul(dy, y.exp(), dy.sum(-1, keepdim=True), value=-1)


class DropoutStreams:
    """Random bits for the dropout masks of one part of a model, a stream for each sequence.

    A sequence's masks follow from its seed and the part's number alone, not from what else is in the batch, and
    equal seeds give equal masks on any machine's CPU.
    """

    def __init__(self, seeds: list[int], part: int, probability: float, device: torch.device) -> None:
        """`seeds`: of each sequence, 0 to 2⁶³ - 1; `probability`: that a number is dropped, in [0, 1)."""
        self.probability = probability
        self.on_cpu = device.type == "cpu"
        if self.on_cpu:
            self.cpu_streams = [np.random.SFC64([seed, part]) for seed in seeds]
        else:
            own = (int(np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)[0] >> 1) for seed in seeds)
            self.device_streams = [torch.Generator(device).manual_seed(seed) for seed in own]

    def mask(self, counts: list[int], sequences: slice = slice(None), portions: int = 1) -> Tensor:
        """What dropout keeps: bools, false with `probability`, drawn for some of the sequences and laid end to end.

        Args:
            counts: of numbers in a portion of each sequence.
            portions: of each sequence (heads, say). One after the other they are what one draw of all would give.

        On a CPU the probability is rounded to a multiple of 2⁻¹⁶, since 16 random bits decide each number.
        """
        if not self.on_cpu:
            draws = (
                torch.rand(portions * count, generator=stream, device=stream.device)
                for stream, count in zip(self.device_streams[sequences], counts, strict=True)
            )
            return torch.cat([drawn >= self.probability for drawn in draws])
        mask = np.empty(portions * sum(counts), dtype=bool)
        start = 0
        for stream, count in zip(self.cpu_streams[sequences], counts, strict=True):
            # One draw of 64 bits serves four numbers: six times as fast as a draw for each.
            words = (count + 3) // 4
            bits = stream.random_raw(portions * words).view(np.uint16).reshape(portions, 4 * words)[:, :count]
            of_sequence = mask[start : start + portions * count].reshape(portions, count)
            np.greater_equal(bits, round(self.probability * 2**16), out=of_sequence)
            start += portions * count
        return torch.from_numpy(mask)


def drop(x: Tensor, mask: Tensor | None, probability: float) -> Tensor:
    """Dropout (Srivastava et al. 2014): 0 where the bool `mask`, of x's shape, is false, else x / (1 - probability).

    None keeps all. It is its own gradient: dx = drop(dy, mask, probability).
    """
    if mask is None:
        return x
    factors = mask.view(torch.uint8).to(x.dtype)  # bytes convert seven times as fast as bools
    return factors.mul_(1 / (1 - probability)).mul_(x)


def gelu_(x: Tensor) -> Tensor:
    """x Φ(x), Φ the standard normal distribution function (Hendrycks and Gimpel 2016)."""
    gate = (x * math.sqrt(0.5)).erf_()
    return x.mul_(0.5).addcmul_(x, gate)


def gelu_new_(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, BERT's and REALM's own: x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    # (1 + tanh(u)) / 2 = σ(2u), with 2u = x (a + b x²) in one pass and the product: four in all, each in cache.
    a, b = 2 * math.sqrt(2 / math.pi), 2 * 0.044715 * math.sqrt(2 / math.pi)
    return x.mul_(torch.addcmul(x.new_full((), a), x, x, value=b).mul_(x).sigmoid_())


def relu_(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return x.clamp_(min=0)


def selu_(x: Tensor) -> Tensor:
    """λ x above 0, λ α (eˣ - 1) below, with the constants of Klambauer et al. 2017, eq. 2."""
    negative = x.clamp(max=0).expm1_().mul_(SELU_SCALE * SELU_ALPHA)
    return x.clamp_(min=0).mul_(SELU_SCALE).add_(negative)


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


def activation_and_slope(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """`ACTIVATIONS[name]` of `x`, in a new tensor, and its derivative there, elementwise."""
    if name == "gelu":
        # x Φ(x), and Φ(x) + x φ(x)
        probability = (x * math.sqrt(0.5)).erf_().add_(1).mul_(0.5)
        density = (x * x).mul_(-0.5).exp_().mul_(math.sqrt(0.5 / math.pi))
        return x * probability, density.mul_(x).add_(probability)
    if name == "gelu_new":
        # With x/2 (1 + tanh(u)) = x σ(2u) = y: σ + y (1 - σ) 2u', where 2u = x (a + b x²) and 2u' = a + 3 b x².
        a, b = 2 * math.sqrt(2 / math.pi), 2 * 0.044715 * math.sqrt(2 / math.pi)
        slope = torch.addcmul(x.new_full((), a), x, x, value=b)
        gate = (slope * x).sigmoid_()
        y = x * gate
        slope.mul_(3).sub_(2 * a).mul_(y)
        return y, slope.addcmul_(slope, gate, value=-1).add_(gate)
    if name == "relu":
        return x.clamp(min=0), (x > 0).to(x.dtype)
    if name == "selu":
        scale, alpha = SELU_SCALE, SELU_ALPHA
        slope = torch.where(x > 0, torch.full_like(x, scale), x.clamp(max=0).exp_().mul_(scale * alpha))
        return selu_(x.clone()), slope
    gate = x.sigmoid()  # silu: σ (1 + x (1 - σ))
    return x * gate, gate * (1 + x * (1 - gate))


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is 1 and the most negative number of `dtype` where it is 0: what is added to a score."""
    return (1 - mask.to(dtype)) * torch.finfo(dtype).min


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] a row.

    Args:
        logits: [rows, classes].
        targets: [rows] int64.

    Raises:
        ValueError: a target that is no class.
    """
    check_targets(targets, logits.shape[1])
    return -log_softmax(logits, 1).gather(1, targets[:, None])[:, 0]


def cross_entropy_backward(dy: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """dlogits = dy (softmax(logits) - [class = target]) [rows, classes]."""
    dlog_p = torch.zeros_like(logits).scatter_(1, targets[:, None], -dy[:, None])
    return log_softmax_backward(dlog_p, log_softmax(logits, 1))


def check_targets(targets: Tensor, classes: int) -> None:
    """Raise the ValueError that names a target which is none of 0..classes - 1."""
    wrong = (targets < 0) | (targets >= classes)
    if wrong.any():
        raise ValueError(
            f"label {targets[wrong][0].item()} is out of range: labels are 0..{classes - 1}, "
            "or -100 where there is none"
        )
