"""R@k, Wilson's interval, McNemar's test and the paired bootstrap, held to values known or counted by hand."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.jobs.statistics import McNemar, bootstrap, mcnemar, paired_bootstrap, top_k_match, wilson

check = settings(deadline=None, derandomize=True, max_examples=30)


def test_top_k_match():
    assert top_k_match([False, False, True, False], (1, 2, 3, 4)) == {
        "top_1_match": 0.0,
        "top_2_match": 0.0,
        "top_3_match": 1.0,
        "top_4_match": 1.0,
    }
    assert top_k_match([False], (1, 5)) == {"top_1_match": 0.0, "top_5_match": 0.0}


@pytest.mark.parametrize(
    "right, n, low, high",
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson(right, n, low, high):
    assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)


@check
@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_top_k_match_counts_the_first_k(hits):
    ks = range(1, len(hits) + 3)
    assert top_k_match(hits, ks) == {f"top_{k}_match": float(any(hits[:k])) for k in ks}
    assert top_k_match(hits, [1], "word_match") == {"top_1_word_match": float(hits[0])}


@pytest.mark.parametrize(
    "only_a, only_b, both, neither, p",
    [
        (0, 3, 41, 8, 0.25),  # 2 / 2³
        (2, 10, 5, 5, 2 * (1 + 12 + 66) / 4096),
        (10, 2, 5, 5, 2 * (1 + 12 + 66) / 4096),
        (4, 4, 1, 1, 1.0),
        (0, 0, 3, 3, 1.0),
        (0, 1200, 0, 1, 0.0),  # 2⁻¹¹⁹⁹ is no number
        (1450, 1550, 0, 0, 0.0707),  # the normal approximation, corrected: z = 99 / √3000
    ],
)
def test_mcnemar(only_a, only_b, both, neither, p):
    a = [1] * only_a + [0] * only_b + [1] * both + [0] * neither
    b = [0] * only_a + [1] * only_b + [1] * both + [0] * neither
    assert mcnemar(a, b) == McNemar(only_a, only_b, pytest.approx(p, rel=1e-3))


def test_mcnemar_is_of_right_and_wrong():
    with pytest.raises(ValueError, match="0.5 is neither 0 nor 1: McNemar's test is of what is right or wrong"):
        mcnemar([1, 0.5], [0, 1])
    with pytest.raises(ValueError, match=r"hits of shapes \(2,\) and \(3,\): give one a question"):
        mcnemar([1, 0], [0, 1, 1])


def test_bootstrap_over_questions():
    """The mean of four questions, one of them right, is Binomial(4, 1/4) / 4: 0.25³ · 0.75 · 4 + 0.25⁴ < 0.025."""
    assert bootstrap([0, 0, 0, 1]) == (0.25, 0.0, 0.75)
    right = [1] * 300 + [0] * 700  # many questions: normal, as far from the mean as Wilson's ends are
    assert bootstrap(right) == pytest.approx((0.3, *wilson(0.3, 1000)), abs=3e-3)


def test_bootstrap_over_seeds():
    """Two seeds, of which one has all questions right: a quarter of the draws are of one seed alone."""
    assert bootstrap([[0, 0], [1, 1]]) == (0.5, 0.0, 1.0)
    three = [[0] * 5, [0] * 5, [1] * 5]  # all draws of the third: 1/27 > 0.025
    assert bootstrap(three) == (pytest.approx(1 / 3), 0.0, 1.0)
    assert bootstrap([[0] * 5] * 3 + [[1] * 5]) == (0.25, 0.0, 0.75)  # all draws of the fourth: 1/256


def test_what_systems_share_is_no_part_of_their_difference():
    """The questions always, the seeds where there are as many of both."""
    hard = np.tile([0.0, 0.0, 0.5, 0.25], (3, 5)) + np.arange(3)[:, None] / 8  # [seeds, questions]
    found = paired_bootstrap(hard, hard + 0.25)
    assert found.difference == pytest.approx((0.25, 0.25, 0.25)) and found.a.high - found.a.low > 0.1
    other_order = paired_bootstrap([[0, 0], [1, 1]], [[1, 1], [0, 0]])
    assert other_order.difference == (0, -1, 1)
    assert paired_bootstrap([[0, 0], [1, 1]], [[0, 0], [1, 1]]).difference == (0, 0, 0)
    assert paired_bootstrap([[0, 0], [1, 1]], [[0, 0], [1, 1], [0.5, 0.5]]).difference[1:] != (0, 0)


@check
@given(st.lists(st.sampled_from([0, 0, 1, 0.5]), min_size=1, max_size=4), st.integers(0, 9))
def test_bootstrap_draws_what_can_be_drawn(values, seed):
    """Its ends are means of draws, and what all draws give."""
    found = bootstrap(values, 4000, seed)
    means = np.sort([math.fsum(drawn) / len(values) for drawn in product(values, repeat=len(values))])
    assert found.mean == pytest.approx(np.mean(values))
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        low, high = (means[int(max(0, min(0.999, part)) * len(means))] for part in (share - 0.01, share + 0.01))
        assert low - 1e-9 <= end <= high + 1e-9
    assert bootstrap(values, 4000, seed) == found


def test_the_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch):
    monkeypatch.setattr("realm_min.jobs.statistics.AT_ONCE", 64)
    assert bootstrap([0, 0, 0, 1]) == (0.25, 0.0, 0.75)
    assert bootstrap([[0, 0], [1, 1]], resamples=999) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("a, b", [([], []), ([1, 0], [1, 0, 0]), (np.zeros((2, 3, 4)), np.zeros((2, 3, 4)))])
def test_values_of_other_questions_are_refused(a, b):
    with pytest.raises(ValueError, match="of the same questions for both systems"):
        paired_bootstrap(a, b)
