"""What the examples of a step draw at random."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

OF_AN_ORDER = 1  # beside an example's other choices
OF_A_DOCUMENT = 1 << 20  # the sequence, for `dropout_seed`, of a document that a step embeds: no example has as many


class Draws(NamedTuple):
    """What the examples of a step draw at random.

    It follows from the run's seed, the step and the example's place in the batch, and so not from who computes it.
    """

    seed: int
    step: int
    places: list[int]  # of the examples in the batch

    def generators(self) -> list[np.random.Generator]:
        """For each example, what decides its masks and other choices."""
        return [np.random.default_rng([self.seed, self.step, place]) for place in self.places]

    def dropout_seeds(self, first: int = 0, sequences: int = 1) -> list[int]:
        """Seeds for a model that reads so many sequences of each example, its `first` and the next."""
        return [dropout_seed(self.seed, self.step, place, first + i) for place in self.places for i in range(sequences)]

    def seeds_of_documents(self, numbers: list[int]) -> list[int]:
        """Seeds for documents by their numbers: a document has the same masks whichever examples it is embedded for."""
        return [dropout_seed(self.seed, self.step, number, OF_A_DOCUMENT) for number in numbers]

    def permutations(self, size: int) -> torch.Tensor:
        """For each example an order of so many things, [examples, size] int64."""
        generators = (np.random.default_rng([self.seed, self.step, place, OF_AN_ORDER]) for place in self.places)
        return torch.from_numpy(np.stack([random.permutation(size) for random in generators]))

    def of(self, i: int) -> Draws:
        """Those of example i alone."""
        return self._replace(places=[self.places[i]])


def dropout_seed(seed: int, step: int, number: int, sequence: int) -> int:
    """The seed of the dropout masks of one sequence of a step: of example `number`, say."""
    drawn = np.random.SeedSequence([seed, step, number, 1 + sequence]).generate_state(1, np.uint64)[0]
    return int(drawn >> np.uint64(1))
