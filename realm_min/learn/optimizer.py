"""AdamW (Loshchilov and Hutter 2019, algorithm 2) with the settings of BERT (Devlin et al. 2018, section A.2), by hand.

Adam's step with the weight decay decoupled from it and kept off biases and LayerNorms; the learning rate rises
linearly over the warm-up and then falls linearly to 0; gradients are clipped by their global norm. Every update is in
place, so that a training step allocates next to nothing.

With `bert` it is as BERT's own code has it, which does not correct the averages for their start at 0, so that at the
same rate its first steps go further, and whose rate falls from the first step on (docs/deviations.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import kinds
from ..model import ops
from ..model.parameters import is_constant


@dataclass
class AdamW:
    """Settings of the optimizer and its state, by parameter name.

    `mean` and `square` are Adam's running averages of g and g², shaped as the parameters; `step` counts the updates.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    max_grad_norm: float = 1.0
    bert: bool = False  # as its code: averages stay uncorrected, step 0 has a rate of 0, the decay counts from step 0
    step: int = 0

    def __post_init__(self) -> None:
        for name in ("total_steps", "warmup_steps", "step"):
            kinds.check(name, getattr(self, name), int)
        for name in ("learning_rate", "weight_decay", "eps", "max_grad_norm"):
            kinds.check(name, getattr(self, name), float)
        kinds.check("betas", self.betas, Sequence[float])
        if not 0 <= self.warmup_steps <= self.total_steps or self.total_steps < 1:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} of total_steps={self.total_steps}: expected "
                "0 <= warmup_steps <= total_steps and at least one step"
            )
        for name, largest in (("learning_rate", 1e38), ("eps", 1.0), ("max_grad_norm", math.inf)):
            if not 0 < getattr(self, name) <= largest:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0, and at most {largest}")
        if not 0 <= self.weight_decay < math.inf or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative, betas={self.betas} lie in [0, 1)")
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self._reached: dict[str, Tensor] = {}  # of each embedding table: bool [rows]

    def update(self, parameters: dict[str, Tensor], grads: dict[str, Tensor], count: float = 1) -> float:
        """One step, on `parameters` in place; `grads` are only read.

        Args:
            count: the gradients are those of a sum over so many terms; the step is that of its mean.
            parameters, grads: name -> tensor. A tensor that stands under several names (tied weights) is updated once,
                and one whose gradients have all been 0 so far, since no loss reaches it, not at all.

        Returns:
            The global norm of the gradients before clipping.

        Raises:
            FloatingPointError: that norm is not finite; nothing was changed.
        """
        norms = self._norms(parameters, grads)
        norm = global_norm(norms.values()) / count
        clip = (min(1.0, self.max_grad_norm / norm) if norm else 1.0) / count
        rate = self.rate()
        self.step += 1
        for name in norms:
            if name in self.mean or norms[name]:
                self._update_one(name, parameters[name], grads[name], clip, rate)
        return norm

    def _norms(self, parameters: dict[str, Tensor], grads: dict[str, Tensor]) -> dict[str, float]:
        """The norm of each gradient but constant ones, under the first name of its parameter."""
        once = {id(parameters[name]): name for name in reversed(grads)}
        norms = {
            name: self._norms_of_table(name, grad) if is_table(name) else norms_of(grad)
            for name, grad in grads.items()
            if once[id(parameters[name])] == name and not is_constant(grad)
        }
        numbers = iter(fetched([norm for of_one in norms.values() for norm in of_one]))
        return {name: math.hypot(*(next(numbers) for _ in of_one)) for name, of_one in norms.items()}

    def _norms_of_table(self, name: str, grad: Tensor) -> list[Tensor]:
        """As `norms_of`; which rows the gradient reaches is remembered on the way."""
        of_rows = torch.linalg.vector_norm(grad, dim=1)
        reached = of_rows != 0
        self._reached[name] = reached.logical_or_(self._reached.get(name, reached))
        return [torch.linalg.vector_norm(of_rows)]

    def _update_one(self, name: str, parameter: Tensor, grad: Tensor, clip: float, rate: float) -> None:
        """The step of one parameter, with `clip` times its gradient."""
        for averages in (self.mean, self.square):
            if name not in averages:
                averages[name] = torch.zeros_like(grad)
            if is_transposed(averages[name]) != is_transposed(parameter):  # as a checkpoint holds it
                averages[name] = torch.empty_like(grad).copy_(averages[name])
        decay = 1 - rate * self.weight_decay if decays(name) else 1.0
        tensors = as_stored(parameter, self.mean[name], self.square[name], grad)
        rows = self._reached_rows(name)
        if rows is None:
            self._adam(tensors, clip, rate, decay)
            return
        parameter.mul_(decay)  # which is all that happens to the other rows
        reached = [tensor.index_select(0, rows) for tensor in tensors]
        self._adam(reached, clip, rate, decay=1.0)
        for tensor, some in zip(tensors[:3], reached[:3], strict=True):
            tensor.index_copy_(0, rows, some)

    def _adam(self, tensors: Sequence[Tensor], clip: float, rate: float, decay: float) -> None:
        """Algorithm 2 on a parameter, its averages and its gradient, of one shape; in place, but for the gradient."""
        first, second = self.betas
        # Adam's corrections of the averages, which start at 0, folded into the step and into ε.
        root = 1.0 if self.bert else math.sqrt(1 - second**self.step)
        scale = rate if self.bert else rate * root / (1 - first**self.step)
        for piece in ops.pieces(tensors[0]):
            p, mean, square, g = (tensor[piece] for tensor in tensors)
            mean.mul_(first).add_(g, alpha=(1 - first) * clip)
            square.mul_(second).addcmul_(g, g, value=(1 - second) * clip**2)
            p.mul_(decay).addcdiv_(mean, root_(square.clone()).add_(self.eps * root), value=-scale)

    def _reached_rows(self, name: str) -> Tensor | None:
        """The rows of an embedding table that any gradient has reached, if they are the smaller part.

        The averages of the others are 0, and Adam leaves them where they are: a batch holds a few of the words.
        """
        reached = self._reached.get(name)
        if reached is None or 2 * int(reached.sum()) > len(reached):
            return None
        return reached.nonzero()[:, 0]

    def rate(self) -> float:
        """The learning rate of the step to come."""
        if self.step < self.warmup_steps:
            return self.learning_rate * (self.step + (not self.bert)) / self.warmup_steps
        left = max(self.total_steps - self.step, 0)
        return self.learning_rate * left / max(self.total_steps - (0 if self.bert else self.warmup_steps), 1)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors, for a checkpoint: `step`, `mean.NAME` and `square.NAME`."""
        state = {"step": torch.tensor(self.step, device="cpu")}
        state |= {f"mean.{name}": tensor for name, tensor in self.mean.items()}
        return state | {f"square.{name}": tensor for name, tensor in self.square.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave; the settings stay.

        Raises:
            ValueError: the step is missing, or an average has no counterpart.
        """
        averages = {
            kind: {key[len(kind) + 1 :]: value for key, value in state.items() if key.startswith(f"{kind}.")}
            for kind in ("mean", "square")
        }
        lonely = averages["mean"].keys() ^ averages["square"].keys()
        if "step" not in state or lonely:
            raise ValueError(f"this is no optimizer state: missing {'step' if 'step' not in state else sorted(lonely)}")
        self.step = int(state["step"])
        self.mean = {name: tensor.clone() for name, tensor in averages["mean"].items()}
        self.square = {name: tensor.clone() for name, tensor in averages["square"].items()}
        # An average that has faded to 0 moves its row no more than one that never was anything else.
        self._reached = {
            name: (tensor != 0).any(1) | (self.square[name] != 0).any(1)
            for name, tensor in self.mean.items()
            if is_table(name)
        }


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to biases and LayerNorms."""
    return not name.endswith(("bias", "LayerNorm.weight", "layer_normalization.weight"))


def is_table(name: str) -> bool:
    """Whether it is a table of embeddings, of which a batch reads some rows."""
    return name.endswith("embeddings.weight")


def root_(x: Tensor) -> Tensor:
    """√x of what is not negative, as x / √x: many times as fast as torch's `sqrt` on a CPU."""
    return x.mul_((x + torch.finfo(x.dtype).tiny).rsqrt_())


def as_stored(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape with the axes in the order of memory: dense weights are stored transposed."""
    transposed = is_transposed(tensors[0])
    return tuple(tensor.t() if transposed else tensor for tensor in tensors)


def is_transposed(tensor: Tensor) -> bool:
    """Whether it is a matrix whose columns are contiguous."""
    return tensor.dim() == 2 and tensor.stride(0) == 1


def norms_of(grad: Tensor) -> list[Tensor]:
    """The norms of a gradient's pieces, [] each, where they were computed."""
    (grad,) = as_stored(grad)
    return [torch.linalg.vector_norm(grad[rows]) for rows in ops.pieces(grad)]


def fetched(numbers: list[Tensor]) -> list[float]:
    """Tensors [] as numbers; those of one device come together, since to wait for each stops a GPU a hundred times."""
    kinds = {(number.device, number.dtype) for number in numbers}
    return torch.stack(numbers).tolist() if len(kinds) == 1 else [float(number) for number in numbers]


def global_norm(norms: Iterable[float]) -> float:
    """The norm of all gradients as one vector, from the norm of each.

    Raises:
        FloatingPointError: it is not finite.
    """
    norm = math.hypot(*norms)
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradients' global norm is {norm}: lower the learning rate or check the batch")
    return norm
