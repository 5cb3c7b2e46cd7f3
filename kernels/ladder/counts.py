"""What each rung has to do, counted from the shapes, and how long a card needs for that at least.

A phase moves bytes between memory and chip, and does operations at a rate that depends on their kind; it takes at least
the longer of the two (the roofline: Williams, Waterman and Patterson 2009). What a phase asks the caches for is counted
beside it: where it is far more than what comes from memory, the prediction is too good. So it is where a phase waits:
for shuffles, for the host, for a selection that reads what it chooses from more than once.
"""

from __future__ import annotations

from typing import NamedTuple

from .mips import GROUP, query_tile, tile_rows
from .spans import span_count

RESCORED = 7  # times k groups a query, on rung 6: what random normal numbers of 128 dimensions come to


class Phase(NamedTuple):
    name: str
    memory: float  # bytes between memory and chip
    asked: float  # bytes that programs ask for, most of them from caches
    operations: float  # an addition or a multiplication is one
    kind: str = "float32"  # of the operations


class Card(NamedTuple):
    """A graphics card's rates: bytes a second, and operations a second by kind, dense."""

    bandwidth: float
    rates: dict[str, float]


# As their makers publish them.
CARDS = {
    "H200 SXM": Card(4.8e12, {"float32": 67e12, "tf32": 494e12, "int8": 1979e12}),
    "H100 SXM": Card(3.35e12, {"float32": 67e12, "tf32": 494e12, "int8": 1979e12}),
    "A100 SXM 80 GB": Card(2.039e12, {"float32": 19.5e12, "tf32": 156e12, "int8": 624e12}),
    "RTX 4090": Card(1.008e12, {"float32": 82.6e12, "tf32": 82.6e12, "int8": 660.6e12}),
    "L4": Card(0.3e12, {"float32": 30.3e12, "tf32": 60e12, "int8": 242e12}),
}


def seconds(phases: list[Phase], card: Card) -> float:
    """The least time that a card needs for the phases, one after the other."""
    return sum(max(phase.memory / card.bandwidth, phase.operations / card.rates[phase.kind]) for phase in phases)


def search_phases(rung: str, q: int, n: int, d: int, k: int) -> list[Phase]:
    """The phases of a search's rung, by its name in `mips.RUNGS`."""
    number = int(rung[0])
    group = tile_rows(d) if number <= 3 else GROUP
    groups = -(-n // group)
    chosen_from = 4 * q * (n if number == 1 else groups)  # bytes of scores or maxima
    element, kind = {4: (4, "tf32"), 5: (1, "int8"), 6: (1, "int8")}.get(number, (4, "float32"))
    whole = element * n * d  # bytes of all blocks, or their codes
    tiles = q if number <= 2 else 1 if number == 3 else -(-q // query_tile(q))
    asked = tiles * whole + (element * q * d * groups if number >= 3 else 0)
    read = q * whole if number <= 2 else whole
    phases = [Phase("scan", read + chosen_from, asked + chosen_from, 2 * q * n * d, kind)]
    if number == 6:
        bounds = 3 * 8 * q * groups  # float64 centres, lower and upper ends: written, and read again
        phases.append(Phase("certify", chosen_from + 2 * bounds, chosen_from + 2 * bounds, 5 * q * groups))
    else:
        phases.append(Phase("choose", chosen_from, chosen_from, 0))
    if number >= 2:
        rows = q * min(groups, k * (RESCORED if number == 6 else 1)) * group
        phases.append(Phase("rescore", min(rows, q * n) * 4 * d, rows * 4 * d, 2 * rows * d))
    return phases


def span_phases(rung: str, blocks: int, tokens: int, hidden: int, widest: int) -> list[Phase]:
    """The phases of a reader's rung, by its name in `spans.RUNGS`."""
    projections = 2 * 4 * blocks * tokens * hidden
    count = blocks * span_count(tokens, widest)
    h, logits = 4 * count * hidden, 4 * count
    if rung[0] == "1":
        hidden_phase = Phase("h", projections + h, 3 * h, 2 * count * hidden)
        return [hidden_phase, Phase("logits", h + logits, h + logits, 9 * count * hidden)]
    asked = {"2": 2 * h + logits, "3": projections / 2 + h + logits, "4": projections / 2 + h}[rung[0]]
    return [Phase("logits", projections + (logits if rung[0] != "4" else 0), asked, 9 * count * hidden)]
