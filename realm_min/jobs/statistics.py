"""How sure a figure is, and a difference between two: pure functions of what each question gave.

A system's `hits` or `values` are a number a question, 0 to 1, in one order of the questions for all systems. Where it
was trained several times, `values` are [seeds, questions]. Of libraries NumPy alone is imported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..kinds import checked

RESAMPLES = 10_000
AT_ONCE = 2**20  # drawn questions held in memory, 8 MB of them


class Estimate(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two systems on the same questions; `difference` is b - a."""

    a: Estimate
    b: Estimate
    difference: Estimate


class McNemar(NamedTuple):
    """Questions that one of two systems alone has right, and how likely so uneven a split is between equal systems."""

    only_a: int
    only_b: int
    p: float


@checked
def top_k_match(hits: Sequence[bool], ks: Sequence[int], name: str = "match") -> dict[str, float]:
    """{"top_k_match": 1.0 if one of the first k retrieved blocks holds an answer} for each k; hits are best first.

    Its mean over the questions is R@k, the retrieval recall of REALM section 4.5.
    """
    first = next((place for place, hit in enumerate(hits) if hit), len(hits))
    return {f"top_{k}_{name}": float(first < min(k, len(hits))) for k in ks}


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: how far the mean of all such questions may be from that of these `n`.

    (Wilson 1927.) For values between 0 and 1, as F1's, it is rather too wide: their variance is below mean (1 - mean).
    """
    z = 1.959963984540054  # 97.5 % of a normal distribution lie below it
    centre, scale = mean + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """The exact, two-sided test of McNemar (1947) on two systems' hits, [questions] of 0 and 1.

    Of the n questions that one alone has right, each is as likely the one's as the other's if the systems are equal:
    p = 2 P(Binomial(n, 1/2) ≤ the smaller count), 1 at most.

    Raises:
        ValueError: a value is neither 0 nor 1, or there are not as many of both.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"hits of shapes {first.shape} and {second.shape}: give one a question, for both systems")
    for value in (*first, *second):
        if value not in (0, 1):
            raise ValueError(f"{value} is neither 0 nor 1: McNemar's test is of what is right or wrong")
    only_a, only_b = int((first > second).sum()), int((second > first).sum())
    n, term, tail = only_a + only_b, 1, 0
    for i in range(min(only_a, only_b) + 1):
        tail += term  # Σ of n over i
        term = term * (n - i) // (i + 1)
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


def bootstrap(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of one system's `values`, [questions] or [seeds, questions], as `paired_bootstrap` has it."""
    return paired_bootstrap(values, values, resamples, seed).a


def paired_bootstrap(a: ArrayLike, b: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Means of two systems and their difference, with the interval that redrawn questions and seeds give.

    Questions are drawn with replacement, the same for both systems, and so are the seeds of each (Efron 1979; the
    interval is from the 2.5th to the 97.5th percentile). Systems of as many seeds are paired by seed, too: what they
    share, a beginning or the order of the batches, is no part of the interval of their difference. A handful of seeds
    says less than its interval does: those of 3 vary by a third less than they should, those of 5 by a fifth.

    Args:
        a, b: [questions], or [seeds, questions]; as many questions in both, in one order.
        resamples: how many times to draw.
        seed: of the draws.

    Raises:
        ValueError: there are no questions, or not as many in both.
    """
    sides = [np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (a, b)]
    questions = sides[0].shape[1]
    if sides[1].shape[1] != questions or not questions or any(side.ndim != 2 for side in sides):
        raise ValueError(
            f"values of shapes {np.shape(a)} and {np.shape(b)}: give [questions] or [seeds, questions], of the same "
            "questions for both systems"
        )
    rng = np.random.default_rng(seed)
    seeds = {count: rng.integers(count, size=(resamples, count)) for count in dict.fromkeys(map(len, sides))}
    drawn: list[list[np.ndarray]] = [[], []]
    step = max(1, AT_ONCE // questions)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        places = rng.integers(questions, size=(count, questions)) + questions * np.arange(count)[:, None]
        times = np.bincount(places.ravel(), minlength=count * questions).reshape(count, questions)
        for side, found in zip(sides, drawn, strict=True):
            means = times @ side.T / questions  # [count, seeds]
            chosen = seeds[len(side)][start : start + count]  # [count, seeds]
            found.append(np.take_along_axis(means, chosen, axis=1).mean(axis=1))
    of_a, of_b = (np.concatenate(found) for found in drawn)
    mean_a, mean_b = (float(side.mean()) for side in sides)
    return Comparison(_estimate(mean_a, of_a), _estimate(mean_b, of_b), _estimate(mean_b - mean_a, of_b - of_a))


def _estimate(mean: float, drawn: np.ndarray) -> Estimate:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean, float(low), float(high))
