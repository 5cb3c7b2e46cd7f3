"""`realm-min compare`: hold two systems against each other, question by question.

Two intervals that overlap do not say that two systems are equal: both have the hard questions in common. What each
question gave is compared here, so that those cancel.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..jobs.per_question import PerQuestion, measured_by_all, read_sides, shared_measures, values
from ..jobs.statistics import mcnemar, paired_bootstrap, wilson
from .printable import remark, say, say_json


def run(options: argparse.Namespace) -> None:
    """Run `realm-min compare`."""
    a, b = read_sides(options.files, options.against)
    names = shared_measures(a, b, options.measure)
    found = {name: compared(name, a, b, options.resamples, options.seed) for name in names}
    left_out = sum(any(file.rows[question] is None for file in (*a, *b)) for question in a[0].rows)
    if left_out:
        remark(f"Left out {left_out:,} of {len(a[0].rows):,} questions, which a file says were skipped.")
    if options.json:
        sides = {"a": [file.path for file in a], "b": [file.path for file in b]}
        say_json(
            {**sides, "left_out": left_out, "resamples": options.resamples, "seed": options.seed, "measures": found}
        )
        return
    for letter, side in (("A", a), ("B", b)):
        say(f"{letter:<6} {', '.join(file.path for file in side)}")
    for name, figures in found.items():
        say()
        print_comparison(name, figures)


def compared(name: str, a: list[PerQuestion], b: list[PerQuestion], resamples: int, seed: int) -> dict[str, Any]:
    """One measure of both sides, their difference, and the exact test of each pair of seeds where it has a meaning."""
    questions = measured_by_all(name, [*a, *b])
    of_a, of_b = values(a, name, questions), values(b, name, questions)
    found = paired_bootstrap(of_a, of_b, resamples, seed)
    figures: dict[str, Any] = {"n": len(questions)}
    for side, estimate, of_side in (("a", found.a, of_a), ("b", found.b, of_b)):
        # Of one file Wilson's, as evaluate has it, which holds near 0 and 1 too.
        low_high = estimate[1:] if len(of_side) > 1 else wilson(estimate.mean, len(questions))
        figures |= {side: estimate.mean, f"{side}_interval_95": low_high}
        figures[f"{side}_seeds"] = [sum(row) / len(row) for row in of_side]
    figures |= {"difference": found.difference.mean, "difference_interval_95": found.difference[1:]}
    right_or_wrong = {value for row in (*of_a, *of_b) for value in row} <= {0.0, 1.0}
    figures["mcnemar"] = (
        [mcnemar(*pair)._asdict() for pair in zip(of_a, of_b, strict=True)]
        if right_or_wrong and len(of_a) == len(of_b)
        else None
    )
    return figures


def print_comparison(name: str, figures: dict[str, Any]) -> None:
    say(f"{name}, n = {figures['n']:,}")
    for label, key in (("A", "a"), ("B", "b"), ("B - A", "difference")):
        mean, (low, high) = 100 * figures[key], figures[f"{key}_interval_95"]
        sign = "+" if key == "difference" else ""
        line = f"{label:<6} {mean:{sign}6.1f} %   {100 * low:{sign}6.1f} to {100 * high:{sign}6.1f} %"
        seeds = figures.get(f"{key}_seeds", [])
        say(line + (f"   by seed {', '.join(f'{100 * mean:.1f}' for mean in seeds)}" if len(seeds) > 1 else ""))
    for test in figures["mcnemar"] or ():
        say(f"       only A {test['only_a']:,}, only B {test['only_b']:,}: exact McNemar p = {test['p']:.2g}")
