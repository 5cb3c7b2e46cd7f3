"""Sequences of tokens fitted to a length: what is cut off where they are too long, what fills them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_remove(first: int, second: int | None, excess: int, strategy: str) -> tuple[int, int]:
    """How many tokens a strategy takes from the first and the second text, of so many, to be rid of `excess`.

    Fewer than `excess` where it cannot: a whole text is never taken, but by "longest_first" of a pair.
    """
    if strategy == "longest_first" and second is not None:
        # First from the longer one until both are equally long, then from both in turn.
        from_longer = min(abs(first - second), excess)
        rest = excess - from_longer
        return (from_longer + rest // 2, rest - rest // 2) if first > second else (rest // 2, excess - rest // 2)
    if strategy in ("longest_first", "only_first"):
        return (excess if excess < first else 0), 0
    is_of_second = strategy == "only_second" and second is not None and excess < second
    return 0, (excess if is_of_second else 0)


def cut(tokens: list, count: int, side: str) -> list:
    """Without `count` tokens at its end, or at its start if `side` is "left"."""
    return tokens[count:] if side == "left" else tokens[: max(len(tokens) - count, 0)]


def pad_row(row: Mapping[str, Any], length: int, fillers: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Each field of one text that has a filler, filled up with it from the length of `input_ids` to `length`."""
    missing = length - len(row["input_ids"])

    def padded(values: list, filler: Any) -> list:
        return [filler] * missing + values if side == "left" else values + [filler] * missing

    return {name: padded(values, fillers[name]) if name in fillers else values for name, values in row.items()}
