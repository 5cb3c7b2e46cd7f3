"""Misspelt keywords: each is named, with the nearest name that there is, at the line that gave it."""

import warnings

import pytest

from realm_min.files.unknown_names import warn_of_unknown

KNOWN = ("num_candidates", "hidden_size", "max_length")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("num_canditates", "RealmConfig has no 'num_canditates', which has no effect: did you mean 'num_candidates'?"),
        ("max_lenght", "RealmConfig has no 'max_lenght', which has no effect: did you mean 'max_length'?"),
        ("colour", "RealmConfig has no 'colour', which has no effect"),
    ],
)
def test_the_nearest_name(name, message):
    with pytest.warns(UserWarning) as warned:
        warn_of_unknown(["hidden_size", name], KNOWN, "RealmConfig")
    assert [str(warning.message) for warning in warned] == [message]
    assert warned[0].filename == __file__  # the program's line, not the package's


def test_what_is_known_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown(KNOWN, KNOWN, "RealmConfig")
        warn_of_unknown({}, KNOWN, "RealmConfig")
