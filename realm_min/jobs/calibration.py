"""When to believe an answer: a probability that it is right, fitted to questions whose answers are known.

A reader's own p(y|x) is too high away from what it was trained on. Two numbers of an answer go into a logistic
regression (Platt 1999, of more features Kamath et al. 2020, arXiv 2006.09462):

    P(right) = 1 / (1 + exp(-(a log(p / (1 - p)) + b S + c)))

p is the answer's `probability`, its share among the spans that were read, and S its `score`, which a reader that was
trained beside a null span of score 0 gives below 0 to what no block answers. The threshold is the highest below which
at most a given share of the right answers falls; under it an answer is better called "not found".
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..files.atomic import write_atomically
from ..files.json_file import read_json_object
from ..interface.open_qa import Answer

CALIBRATION_FILE = "calibration.json"
CERTAIN = 1e-6  # p is taken between this and 1 less this
RIDGE = 1.0  # on a and b, of features of deviation 1: few answers may be told apart without error
BINS = 10


class Calibration(NamedTuple):
    """See the head of this file: a, b and c, and the threshold of P(right)."""

    log_odds: float
    score: float
    bias: float
    threshold: float

    def confidence(self, probability: float, score: float) -> float:
        """P(right) of an answer of p(y|x) = `probability` and S = `score`."""
        odds = self.log_odds * log_odds_of(probability) + self.score * score + self.bias
        return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0

    def found(self, probability: float, score: float) -> bool:
        """Whether such an answer is to be given, rather than "not found"."""
        return self.confidence(probability, score) >= self.threshold


class Judge(NamedTuple):
    """What an answer is believed by: its p(y|x), or where the model has a calibration the P(right) that it gives."""

    threshold: float  # below it an answer counts as not found
    calibration: Calibration | None = None

    def confidence(self, answer: Answer) -> float | None:
        """P(right), None where nothing is calibrated."""
        return self.calibration and self.calibration.confidence(answer.probability, answer.score)

    def found(self, answer: Answer) -> bool:
        confidence = self.confidence(answer)
        return (answer.probability if confidence is None else confidence) >= self.threshold


class Bin(NamedTuple):
    """Answers of similar confidence: the mean of it, and the share of them that is right."""

    confidence: float
    right: float
    count: int


def log_odds_of(probability: float) -> float:
    p = min(max(probability, CERTAIN), 1 - CERTAIN)
    return math.log(p / (1 - p))


def _numbers(name: str, values: ArrayLike, lowest: float = -math.inf, highest: float = math.inf) -> NDArray:
    """Numbers as float64; ValueError names the first that is not finite, or more than a rounding out of the range."""
    numbers = np.asarray(values, float)
    wrong = numbers[~np.isfinite(numbers) | (numbers < lowest - CERTAIN) | (numbers > highest + CERTAIN)]
    if wrong.size:
        bounds = f" from {lowest:g} to {highest:g}" if math.isfinite(lowest) else ""
        raise ValueError(f"{name} has {wrong[0]:g}: give finite numbers{bounds}")
    return numbers


def fit(
    probabilities: Sequence[float], scores: Sequence[float], right: Sequence[bool], lose: float = 0.1
) -> Calibration:
    """The calibration of greatest likelihood, by Newton's method, and the threshold that loses so many right answers.

    Args:
        probabilities, scores, right: of each answer p(y|x), S and whether it is right.
        lose: the share of the right answers that may fall below the threshold.

    Raises:
        ValueError: they are of different lengths or out of range, or the answers are all right or all wrong.
    """
    y = _numbers("right", right, 0, 1)
    if not len(probabilities) == len(scores) == len(y):
        raise ValueError(f"{len(probabilities)} probabilities, {len(scores)} scores, {len(y)} verdicts: give one each")
    if not 0 < y.sum() < len(y):
        raise ValueError(f"{int(y.sum())} of {len(y)} answers are right: a calibration needs right and wrong ones")
    _numbers("lose", lose, 0, 1)
    odds = [log_odds_of(p) for p in _numbers("probabilities", probabilities, 0, 1)]
    features = np.stack([odds, _numbers("scores", scores)], 1)
    mean, deviation = features.mean(0), np.maximum(features.std(0), 1e-9)
    x = np.concatenate([(features - mean) / deviation, np.ones((len(y), 1))], 1)  # [answers, 3]
    weights, ridge = np.zeros(3), np.diag([RIDGE, RIDGE, 1e-6])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + ridge @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    a, b = weights[:2] / deviation
    found = Calibration(float(a), float(b), float(weights[2] - mean @ (weights[:2] / deviation)), 0.0)
    confidences = [found.confidence(p, s) for p, s in zip(probabilities, scores, strict=True)]
    return found._replace(threshold=threshold_that_loses(confidences, right, lose))


def threshold_that_loses(confidences: ArrayLike, right: ArrayLike, lose: float) -> float:
    """The highest threshold under which at most the share `lose` of the right answers falls; 0 where none is right.

    Raises:
        ValueError: they are of different lengths or out of range.
    """
    _numbers("lose", lose, 0, 1)
    p, y = _confidences(confidences, right)
    kept = np.sort(p[y > 0])
    return float(kept[min(int(lose * len(kept)), len(kept) - 1)]) if len(kept) else 0.0


def _confidences(confidences: ArrayLike, right: ArrayLike) -> tuple[NDArray, NDArray]:
    p, y = _numbers("confidences", confidences, 0, 1), _numbers("right", right, 0, 1)
    if len(p) != len(y):
        raise ValueError(f"{len(p)} confidences, {len(y)} verdicts: give one each")
    return p, y


# ---- how well confidence says it


def bins(confidences: ArrayLike, right: ArrayLike, count: int = BINS) -> list[Bin]:
    """Answers by confidence, in `count` bins of equal width between 0 and 1; those that are empty are left out.

    Raises:
        ValueError: they are of different lengths or out of range, or there are fewer bins than one.
    """
    if count < 1:
        raise ValueError(f"{count} bins hold nothing: give 1 or more")
    p, y = _confidences(confidences, right)
    place: NDArray = np.minimum((p * count).astype(int), count - 1)
    return [
        Bin(float(p[place == i].mean()), float(y[place == i].mean()), int((place == i).sum()))
        for i in range(count)
        if (place == i).any()
    ]


def calibration_error(confidences: ArrayLike, right: ArrayLike, count: int = BINS) -> float:
    """Expected calibration error: Σ over bins of |confidence - share right|, by their number (Guo et al. 2017).

    Raises:
        ValueError: as `bins`, or there is no answer.
    """
    found = bins(confidences, right, count)
    if not found:
        raise ValueError("there is no answer to measure the calibration by: give one or more")
    return sum(one.count * abs(one.confidence - one.right) for one in found) / sum(one.count for one in found)


# ---- the file


def write_calibration(calibration: Calibration, folder: str | os.PathLike) -> None:
    """Write FOLDER/calibration.json."""
    with write_atomically(Path(folder) / CALIBRATION_FILE) as temporary:
        temporary.write_text(json.dumps(calibration._asdict(), indent=2) + "\n", encoding="utf-8")


def read_calibration(folder: str | os.PathLike) -> Calibration | None:
    """The calibration of a model's folder, None where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / CALIBRATION_FILE
    if not path.is_file():
        return None
    return calibration_of(read_json_object(path, "write it again, or remove it to be told every answer"), str(path))


def calibration_of(values: dict, source: str) -> Calibration:
    """A calibration from the object that a file holds.

    Raises:
        ValueError: it lacks a number, or has one that is none; `source` names it.
    """
    wrong = [name for name in Calibration._fields if not _is_number(values.get(name))]
    if wrong:
        raise ValueError(f"{source} has no number {wrong[0]!r}: write it again, or remove it to be told every answer")
    return Calibration(*(float(values[name]) for name in Calibration._fields))


def _is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that float64 holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # False for NaN, too
