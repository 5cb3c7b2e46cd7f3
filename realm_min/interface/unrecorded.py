"""Outputs that have a gradient by hand, and so none by autograd: their `backward()` says what to call."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor


class Unrecorded(Tensor):
    """A tensor as any other, but for `backward()`; so is what is computed from it. A copy on disk is a plain one."""

    def backward(self, *_: Any, **__: Any) -> None:
        """Raise the RuntimeError that says what to call instead."""
        raise RuntimeError(
            "no graph was recorded, gradients are written by hand: call model.backward() for the loss that the model "
            "returned, or model.backward(projected_score=g) with ∂loss/∂output for a loss of yours; it fills "
            "model.grads and the .grad of model.parameters()"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return plain(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(plain(self), memo)  # which keeps the plain one as long as the memo knows its id

    def __repr__(self, **_: Any) -> str:
        return repr(plain(self))

    def __format__(self, specification: str) -> str:
        return format(plain(self), specification)


def unrecorded(tensor: Tensor) -> Tensor:
    """The same numbers as an `Unrecorded`; a tensor of a class of its own stays one."""
    return tensor.as_subclass(Unrecorded) if type(tensor) is Tensor else tensor


def plain(tensor: Tensor) -> Tensor:
    """The numbers of an `Unrecorded` as a `torch.Tensor`."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor) if isinstance(tensor, Unrecorded) else tensor
