"""What the steps have in common: what they count."""

from __future__ import annotations

from typing import NamedTuple


class Sum(NamedTuple):
    """Something that a step adds up over its examples, and over how many terms; its mean is what is logged.

    The gradients that a step leaves behind are those of `total`, of its "loss": who calls it divides by `count`.
    """

    total: float
    count: float
