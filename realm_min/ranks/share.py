"""One rank's part of a step's batch, and what its examples draw at random."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .distributed import world

Item = TypeVar("Item")


class Share(NamedTuple):
    """One rank's part of a step's batch.

    What an example draws at random follows from the run's seed, the step and the example's place in the whole batch,
    and so not from the number of ranks.
    """

    seed: int
    step: int
    places: list[int]  # of this rank's examples in the batch
    count: int  # of examples in the batch

    def random(self, place: int) -> np.random.Generator:
        """What decides the masks and other choices of the example at `place`."""
        return np.random.default_rng([self.seed, self.step, place])

    def dropout_seeds(self, first: int = 0, sequences: int = 1) -> list[int]:
        """Seeds for a model that reads so many sequences of each example, its `first` and the next."""
        return [dropout_seed(self.seed, self.step, place, first + i) for place in self.places for i in range(sequences)]

    def of_all(self, rows: Tensor) -> Tensor:
        """The rows of the whole batch [count, ...], from every rank's rows of its own examples [places, ...]."""
        found = rows.new_zeros(self.count, *rows.shape[1:])
        found[self.places] = rows
        world().sum_(found)
        return found

    def total(self, count: int) -> int:
        """The sum of what every rank counts in its part of the batch."""
        counted = torch.tensor(count)
        world().sum_(counted)
        return int(counted)


def share_of(seed: int, step: int, items: Sequence[Item]) -> tuple[Share, list[Item]]:
    """This rank's part of a batch, and the items of it."""
    places = world().share(list(range(len(items))))
    return Share(seed, step, places, len(items)), [items[place] for place in places]


def dropout_seed(seed: int, step: int, number: int, sequence: int) -> int:
    """The seed of the dropout masks of one sequence of a step: of example `number`, say."""
    drawn = np.random.SeedSequence([seed, step, number, 1 + sequence]).generate_state(1, np.uint64)[0]
    return int(drawn >> np.uint64(1))
