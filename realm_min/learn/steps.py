"""What the steps have in common: what they count, and how they run a model.

A step asks a model how to run (`model.run_to_learn`: dropout by a seed a sequence, keep what the backward takes), calls
the functions of `model/` with its parameters `model.p`, and adds gradients to `model.own_grads`. All that is random
comes from seeds which `jobs/draws.py` draws, so a step that is done again gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple


class Sum(NamedTuple):
    """Something that a step adds up over its examples, and over how many terms; its mean is what is logged.

    The gradients that a step leaves behind are those of `total`, of its "loss": who calls it divides by `count`.
    """

    total: float
    count: float
