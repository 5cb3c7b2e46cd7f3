"""Gradients summed over the ranks while the backward pass goes on: data-parallel training.

Every rank has the whole models and works on its share of a batch, and its gradients are its share of the sum that one
rank with the whole batch would have. A backward pass completes a model's gradients from their end (see `Run.passed`):
as soon as a bucket of them is final, its sum starts in the background (Li et al. 2020, "PyTorch Distributed", section
3.2). All ranks start the same sums in the same order, as they must: model after model, each from its end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..interface.base import RealmModel
from ..model.parameters import ALIGNED, Parameters, is_constant
from .distributed import world

BUCKET = 1 << 20  # numbers that are summed at a time, at most


class Bucket(NamedTuple):
    """Neighbouring gradients of one model: its number, where they begin in `flat`, and themselves."""

    model: int
    start: int
    numbers: Tensor


class GradientExchange:
    """Sums the gradients of a step over the ranks; in a world of one, nothing is done.

    Args:
        models: in the order in which their last backward passes come.
        grads: those to be summed, of these models; others, of frozen weights say, stay as they are.
    """

    def __init__(self, models: Iterable[RealmModel], grads: Iterable[Tensor]) -> None:
        self._buckets: list[Bucket] = []
        self._started: list[Callable[[], None]] = []  # for each bucket begun with, what waits for its sum
        if world().size == 1:
            return
        wanted = {grad.data_ptr() for grad in grads}
        parts = [part for model in models for part in (model, *model.parts.values()) if part.own_grads]
        for number, part in enumerate(parts):
            own = part.own_grads
            self._buckets += [
                Bucket(number, start, own.flat[start:stop]) for start, stop in buckets(own, wanted, BUCKET)
            ]
            part.passed = partial(self._passed, number, own)

    def finish(self) -> None:
        """Sum what the backward passes have not announced, and wait for all sums."""
        self._start(len(self._buckets))
        for wait in self._started:
            wait()
        self._started = []

    def _passed(self, model: int, grads: Parameters, name: str) -> None:
        """Start the sums of what is final now: the models before, and of this one all from the part `name` on."""
        start = min(grad.storage_offset() for key, grad in grads.items() if key.startswith(f"{name}."))
        final = (bucket.model < model or (bucket.model == model and bucket.start >= start) for bucket in self._buckets)
        self._start(sum(final))

    def _start(self, count: int) -> None:
        """Start the sums of the first `count` buckets, where they have not been started."""
        for bucket in self._buckets[len(self._started) : count]:
            self._started.append(world().start_sum(bucket.numbers))


def buckets(grads: Parameters, wanted: set[int], size: int) -> list[tuple[int, int]]:
    """Where in `grads.flat` the buckets of at most `size` numbers begin and end that hold some gradients, last first.

    Args:
        wanted: the addresses of these gradients.
    """
    spans = sorted(_place(grad) for grad in grads.values() if grad.data_ptr() in wanted and not is_constant(grad))
    whole: list[tuple[int, int]] = []
    for start, stop in spans:
        if whole and start < whole[-1][1] + ALIGNED:  # neighbours are joined
            first, last = whole.pop()
            start, stop = first, max(last, stop)
        whole.append((start, stop))
    return [
        (max(start, end - size), end) for start, stop in reversed(whole) for end in range(stop, start, -size)
    ]  # fmt: skip


def _place(grad: Tensor) -> tuple[int, int]:
    """Where its numbers begin in `flat`, and where they end."""
    start = int(grad.storage_offset())
    return start, start + 1 + sum((size - 1) * stride for size, stride in zip(grad.shape, grad.stride(), strict=True))
