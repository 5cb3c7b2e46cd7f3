"""Errors of a path against the reference, and what is wrong with weights on the face of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.parameters import is_dense_weight
from .stages import MASKED, Stage

# Unit roundoff of float32: the largest relative error of rounding one number to it.
FLOAT32_ROUNDING = 2.0**-24

# No weight of a trained BERT comes near this.
LARGEST_WEIGHT = 1e3
# A weight this many times larger than every other of its tensor is damage, not training.
LONE_OUTLIER = 50
SMALLEST_OUTLIER = 0.5


class Error(NamedTuple):
    """How far a stage is off.

    absolute: the largest difference to the reference. relative: that over the stage's scale (`ReferencePath.scale`).
    Both are infinite where either side is not finite. For choices, the difference is the score that was given away by
    choosing as the path did, and `differing` counts the choices that are not the reference's.
    """

    absolute: float
    relative: float
    differing: int = 0

    @property
    def roundings(self) -> float:
        """The relative error in units of float32 rounding, 2⁻²⁴."""
        return self.relative / FLOAT32_ROUNDING


NOT_FINITE = Error(np.inf, np.inf)


def error_of(stage: Stage, expected: np.ndarray | None, actual: np.ndarray | None, scale: float) -> Error:
    """The error of a stage of numbers, relative to `scale`; None stands for a value that is not finite.

    Raises:
        ValueError: the shapes differ, so that the two did not compute the same stage.
    """
    if expected is None or actual is None:
        return NOT_FINITE
    if expected.shape != actual.shape:
        raise ValueError(f"{stage.name} has shape {actual.shape}, the reference {expected.shape}")
    outside = expected < MASKED if stage.masked else np.zeros(expected.shape, bool)
    if stage.masked and not np.array_equal(outside, actual < MASKED):
        return NOT_FINITE  # another mask
    expected, actual = expected[~outside], actual[~outside]
    if not (np.isfinite(expected).all() and np.isfinite(actual).all()):
        return NOT_FINITE
    absolute = float(np.abs(actual - expected).max(initial=0.0))
    return Error(absolute, _ratio(absolute, scale))


def choice_error(scores: np.ndarray | None, chosen: np.ndarray | None) -> Error:
    """The error of choosing items [rows, k] by the reference's scores [rows, items].

    Two items whose scores differ by less than rounding may change places: what counts is the score given away.
    """
    if scores is None or chosen is None:
        return NOT_FINITE
    best = choose(scores, chosen.shape[1])
    given_away = np.take_along_axis(scores, best, 1) - np.take_along_axis(scores, chosen, 1)
    absolute = float(np.abs(given_away).max())
    largest = float(np.abs(scores[scores > MASKED]).max(initial=0.0))
    return Error(absolute, _ratio(absolute, largest), int((best != chosen).sum()))


def choose(scores: np.ndarray, k: int) -> np.ndarray:
    """The k items of largest score, equal scores by number: [rows, items] -> [rows, k] int64."""
    if k == 1:
        return scores.argmax(1)[:, None]
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def _ratio(absolute: float, largest: float) -> float:
    return 0.0 if absolute == 0 else absolute / largest if largest else np.inf


# --- Weights ----------------------------------------------------------------------------------------------------------


def weight_problems(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Weights that no training makes, by key: not finite, absurdly large, one far above all others, all zero."""
    return {key: problem for key, tensor in state_dict.items() if (problem := weight_problem(key, tensor))}


def weight_problem(key: str, tensor: Tensor) -> str | None:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return None
    smallest, largest = (float(end) for end in tensor.aminmax())
    if not np.isfinite([smallest, largest]).all():
        count = int((~tensor.isfinite()).sum())
        return f"{count} of {tensor.numel()} values not finite, first at {_first(~tensor.isfinite())}"
    size = max(-smallest, largest)
    if size > LARGEST_WEIGHT:
        where = _first(tensor.abs() == size)
        return f"largest value {size:.3g} at {where}, trained weights stay below {LARGEST_WEIGHT:g}"
    if size > SMALLEST_OUTLIER and tensor.numel() > 1 and key != "block_emb":
        second = float(tensor.abs().flatten().topk(2).values[1])
        if size > LONE_OUTLIER * second:
            where = _first(tensor.abs() == size)
            return f"one value of {size:.3g} at {where}, all others below {second:.3g}"
    if size == 0 and is_dense_weight(key):
        return "all zero"
    return None


def _first(where: Tensor) -> list[int]:
    return where.nonzero()[0].tolist()


def weight_differences(ours: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, str]:
    """Where two checkpoints of one model differ, by key. Keys of one alone are left to the loading of each."""
    found = {}
    for key in ours.keys() & other.keys():
        a, b = ours[key], other[key]
        if a.shape != b.shape or torch.equal(a, b):
            continue
        different = ~((a == b) | (a.isnan() & b.isnan()))
        if different.any():
            largest = float((a.double() - b.double()).abs().nan_to_num(nan=np.inf).max())
            count = int(different.sum())
            found[key] = f"{count} of {a.numel()} values differ, by up to {largest:.3g}, first at {_first(different)}"
    return found
