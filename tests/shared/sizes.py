"""How much the tests draw and read. `make test-long` takes four times the cases, the whole Factbook and more."""

import os

import pytest

LONG = "LONG" in os.environ
at_length = pytest.mark.skipif(not LONG, reason="repeats at length what other tests hold: make test-long")


def cases(number: int) -> int:
    """So many cases of a drawn test."""
    return 4 * number if LONG else number
