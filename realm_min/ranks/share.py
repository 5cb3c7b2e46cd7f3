"""One rank's part of a step's batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from .distributed import world

Item = TypeVar("Item")


class Share(NamedTuple):
    """Which examples of a batch are this rank's."""

    places: list[int]
    count: int  # of examples in the batch

    def of_all(self, rows: Tensor) -> Tensor:
        """The rows of the whole batch [count, ...], from every rank's rows of its own examples [places, ...]."""
        found = rows.new_zeros(self.count, *rows.shape[1:])
        found[self.places] = rows
        world().sum_(found)
        return found


def share_of(items: Sequence[Item]) -> tuple[Share, list[Item]]:
    """This rank's part of a batch, and the items of it."""
    places = world().share(list(range(len(items))))
    return Share(places, len(items)), [items[place] for place in places]
