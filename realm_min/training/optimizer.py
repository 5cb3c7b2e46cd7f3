"""BERT's AdamW (Loshchilov and Hutter 2019, algorithm 2; Devlin et al. 2018, section A.2), by hand.

Adam's step with the weight decay decoupled from it and kept off biases and LayerNorms; the learning rate rises
linearly over the warm-up and then falls linearly to 0; gradients are clipped by their global norm. Every update is in
place, so that a training step allocates next to nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
    step: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_steps <= self.total_steps or self.total_steps < 1:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} of total_steps={self.total_steps}: expected "
                "0 <= warmup_steps <= total_steps and at least one step"
            )
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"weight_decay={self.weight_decay} must not be negative, betas={self.betas} lie in [0, 1)")
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}

    def update(self, parameters: dict[str, Tensor], grads: dict[str, Tensor]) -> float:
        """One step, on `parameters` in place; `grads` are left clipped.

        Args:
            parameters, grads: name -> tensor. A tensor that stands under several names (tied weights) is updated once.

        Returns:
            The global norm of the gradients before clipping.

        Raises:
            FloatingPointError: that norm is not finite; nothing was changed.
        """
        once = {id(parameters[name]): name for name in reversed(grads)}
        names = [name for name in grads if once[id(parameters[name])] == name]
        norm = clip_(list({id(grads[name]): grads[name] for name in names}.values()), self.max_grad_norm)
        rate = self.rate()
        self.step += 1
        first, second = self.betas
        # Adam's corrections of the averages, which start at 0, folded into the step and the divisor.
        scale = rate / (1 - first**self.step)
        root = math.sqrt(1 - second**self.step)
        for name in names:
            parameter, grad = parameters[name], grads[name]
            if name not in self.mean:
                self.mean[name], self.square[name] = torch.zeros_like(grad), torch.zeros_like(grad)
            mean = self.mean[name].mul_(first).add_(grad, alpha=1 - first)
            square = self.square[name].mul_(second).addcmul_(grad, grad, value=1 - second)
            if decays(name):
                parameter.mul_(1 - rate * self.weight_decay)
            parameter.addcdiv_(mean, square.sqrt().div_(root).add_(self.eps), value=-scale)
        return norm

    def rate(self) -> float:
        """The learning rate of the step to come."""
        if self.step < self.warmup_steps:
            return self.learning_rate * (self.step + 1) / self.warmup_steps
        left = max(self.total_steps - self.step, 0)
        return self.learning_rate * left / max(self.total_steps - self.warmup_steps, 1)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors, for a checkpoint: `step`, `mean.NAME` and `square.NAME`."""
        state = {"step": torch.tensor(self.step)}
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


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to biases and LayerNorms."""
    return not name.endswith(("bias", "LayerNorm.weight", "layer_normalization.weight"))


def clip_(grads: list[Tensor], max_norm: float) -> float:
    """Scale `grads` in place so that their global norm is at most `max_norm`; returns the norm before.

    Raises:
        FloatingPointError: the norm is not finite; nothing was scaled.
    """
    norm = math.sqrt(sum(float((grad * grad).sum(dtype=torch.float64)) for grad in grads))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradients' global norm is {norm}: lower the learning rate or check the batch")
    if norm > max_norm:
        for grad in grads:
            grad.mul_(max_norm / norm)
    return norm
