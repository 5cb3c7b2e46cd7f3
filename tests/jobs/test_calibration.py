"""Probabilities that an answer is right: fitted, measured, kept."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.jobs.calibration import (
    Bin,
    Calibration,
    bins,
    calibration_error,
    calibration_of,
    fit,
    read_calibration,
    threshold_that_loses,
    write_calibration,
)


def drawn(count, seed, a=0.8, b=0.5, c=-1.0):
    """Answers that are right as often as a calibration of these numbers says."""
    rng = np.random.default_rng(seed)
    p, s = 1 / (1 + np.exp(-rng.normal(0, 2, count))), rng.normal(1, 3, count)
    confidence = [Calibration(a, b, c, 0).confidence(*pair) for pair in zip(p, s, strict=True)]
    return p.tolist(), s.tolist(), (rng.random(count) < confidence).tolist()


def test_fit_finds_what_drew_the_answers():
    found = fit(*drawn(8_000, 0))
    assert found.log_odds == pytest.approx(0.8, abs=0.08)
    assert found.score == pytest.approx(0.5, abs=0.06)
    assert found.bias == pytest.approx(-1.0, abs=0.08)
    p, s, right = drawn(5_000, 1)
    assert calibration_error([found.confidence(*pair) for pair in zip(p, s, strict=True)], right) < 0.03


def test_confidence_by_hand():
    calibration = Calibration(0.5, 0.25, -1.0, 0.4)
    odds = 0.5 * math.log(0.8 / 0.2) + 0.25 * 3 - 1
    assert calibration.confidence(0.8, 3.0) == pytest.approx(1 / (1 + math.exp(-odds)), rel=1e-12)
    assert calibration.found(0.8, 3.0) and not calibration.found(0.2, 0.0)
    assert 0 <= calibration.confidence(0.0, -1e5) < 1e-9 and calibration.confidence(1.0, 1e5) == 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_threshold_loses_no_more_than_it_may(answers, lose):
    confidences, right = zip(*answers, strict=True)
    threshold = threshold_that_loses(confidences, right, lose)
    kept = sorted(c for c, y in answers if y)
    assert sum(c < threshold for c in kept) <= lose * len(kept)
    if kept:  # and a higher one would: the next answer falls too
        higher = np.nextafter(threshold, 2)
        assert threshold in kept and sum(c < higher for c in kept) > lose * len(kept)


def test_bins_and_their_error():
    confidences, right = [0.05, 0.1, 0.95, 1.0], [False, True, True, False]
    assert bins(confidences, right) == [Bin(0.05, 0.0, 1), Bin(0.1, 1.0, 1), Bin(0.975, 0.5, 2)]
    assert calibration_error(confidences, right) == pytest.approx((0.05 + 0.9 + 2 * 0.475) / 4)


def test_the_file_comes_back_and_what_is_wrong_with_it_is_said(tmp_path):
    calibration = Calibration(0.5, 0.25, -1.0, 0.4)
    assert read_calibration(tmp_path) is None
    write_calibration(calibration, tmp_path)
    assert read_calibration(tmp_path) == calibration
    for values in ({}, {**calibration._asdict(), "score": "1"}, {**calibration._asdict(), "score": math.nan}):
        with pytest.raises(ValueError, match=r"^FILE has no number '(log_odds|score)': write it again, or remove it"):
            calibration_of(values, "FILE")


@pytest.mark.parametrize(
    ("right", "said"),
    [([True, True], "2 of 2 answers are right: a calibration needs right and wrong ones"),
     ([True], "2 probabilities, 2 scores, 1 verdicts: give one each")],
)  # fmt: skip
def test_what_cannot_be_fitted(right, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        fit([0.5, 0.6], [1.0, 2.0], right)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, -math.inf, math.nan, True, "1", None, [1]])
@pytest.mark.parametrize("name", Calibration._fields)
def test_what_is_no_number_in_a_file_is_named(tmp_path, name, value):
    values = Calibration(1.0, 2.0, 3.0, 0.5)._asdict() | {name: value}
    (tmp_path / "calibration.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"calibration.json has no number '{name}': write it again, or remove it"):
        read_calibration(tmp_path)


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(probabilities=[0.5, math.nan]), "probabilities has nan: give finite numbers from 0 to 1"),
        (dict(probabilities=[1.5, 0.5]), "probabilities has 1.5: give finite numbers from 0 to 1"),
        (dict(scores=[math.inf, 0.0]), "scores has inf: give finite numbers"),
        (dict(right=[math.nan, 1]), "right has nan"),
        (dict(lose=-0.1), "lose has -0.1: give finite numbers from 0 to 1"),
        (dict(lose=math.nan), "lose has nan"),
    ],
)
def test_numbers_that_fit_nothing_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        fit(**{"probabilities": [0.5, 0.6], "scores": [1.0, 2.0], "right": [True, False], **given})


def test_confidences_that_measure_nothing_are_named():
    for measure in (bins, calibration_error):
        for p, right, message in (([2.0], [1], "has 2"), ([math.nan], [1], "has nan"), ([0.5], [1, 0], "2 verdicts")):
            with pytest.raises(ValueError, match=message):
                measure(p, right)
        with pytest.raises(ValueError, match="0 bins hold nothing: give 1 or more"):
            measure([0.5], [True], 0)
    with pytest.raises(ValueError, match="there is no answer to measure the calibration by: give one or more"):
        calibration_error([], [])
    with pytest.raises(ValueError, match="lose has 2: give"):
        threshold_that_loses([0.5], [True], 2)
