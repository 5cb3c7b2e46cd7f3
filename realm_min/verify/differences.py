"""Central differences: the check of a gradient that knows nothing of how it was derived."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def central_difference(function: Callable[[np.ndarray], float], array: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """The gradient of a scalar function by (f(x + ε) - f(x - ε)) / 2ε, one element at a time.

    array [...], any shape -> float64 of the same shape.
    """
    array = np.array(array, dtype=np.float64)
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + eps
        above = float(function(array))
        array[index] = value - eps
        below = float(function(array))
        array[index] = value
        gradient[index] = (above - below) / (2.0 * eps)
    return gradient
