"""Matrices rounded to whole multiples of a step, such that what they are multiplied with shows it least.

What rounding does to W x matters, not what it does to W. So W is rounded input by input, and each input's error is made
up for by the inputs after it, as far as they correlate (Frantar et al. 2022, *GPTQ*, section 3). With H = E[x xᵀ] over
a sample of texts and H⁻¹ = Uᵀ U, input j's error e_j costs (e_j / U_jj)² in the output; steps in proportion to U_jj
spread the cost evenly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DAMPING = 0.03  # added to the diagonal of E[x xᵀ], times its mean: the sample is small


def quantize(
    matrix: np.ndarray, levels: float, feedback: np.ndarray | None = None, draft: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Round `matrix` [rows, columns] to multiples of steps [rows, columns], each a row's factor times a column's.

    Args:
        levels: a row's factor is its standard deviation / levels, or as large as its largest entry needs.
        feedback: U [columns, columns], see `feedback_factor`; None rounds each entry to the nearest multiple.
        draft: leave the feedback out, not the steps that come with it.

    Returns:
        Codes [rows, columns] int8, factors [rows] and [columns] float16; their product is the rounded matrix.
    """
    rows = np.maximum(matrix.std(1) / levels, np.abs(matrix).max(1) / 127).astype(np.float16)
    each = np.where(rows > 0, rows, 1).astype(np.float32)  # a row of zeros has no step
    columns = np.ones(matrix.shape[1], np.float32)
    if feedback is not None:
        columns = np.diag(feedback) / np.exp(np.log(np.diag(feedback)).mean())  # geometric mean 1
        columns = np.maximum(columns, np.abs(matrix / each[:, None]).max(0) / 127)
    columns = columns.astype(np.float16)
    steps = columns.astype(np.float32)[:, None] * each  # [columns, rows]: what is rounded together lies together
    if feedback is None or draft:
        codes = np.clip(np.rint(matrix.T / steps), -127, 127)
    else:
        codes = round_with_feedback(matrix.T, steps, feedback)
    return codes.T.astype(np.int8), rows, columns


def dequantize(codes: np.ndarray, rows: np.ndarray, columns: np.ndarray, out: Tensor | None = None) -> Tensor:
    """Codes [rows, columns] int8 times factors [rows], [columns] float16 -> float32, in `out` where it is given.

    It is quick where the codes lie in memory in the order of `out`.
    """
    row_factors, column_factors = (torch.from_numpy(factors.astype(np.float32)) for factors in (rows, columns))
    return torch.mul(torch.from_numpy(codes), row_factors[:, None], out=out).mul_(column_factors)


def stored_order(columns: np.ndarray) -> np.ndarray:
    """Where a file has each column: those with the smallest factors first, whose codes spread alike."""
    return np.argsort(columns, kind="stable")


def round_with_feedback(weights: np.ndarray, steps: np.ndarray, feedback: np.ndarray, at_once: int = 64) -> np.ndarray:
    """Round `weights` [inputs, outputs] to multiples of `steps`, input by input; what follows makes up for the errors.

    With e_j the error of input j, the inputs k > j move by -e_j U_jk / U_jj (GPTQ, algorithm 1).

    Args:
        feedback: U [inputs, inputs] float32, upper triangular.
        at_once: inputs whose errors reach the later ones in one product.

    Returns:
        Codes [inputs, outputs] float32, whole numbers from -127 to 127.
    """
    rest, codes = weights.copy(), np.empty_like(weights)
    for start in range(0, len(rest), at_once):
        stop = min(start + at_once, len(rest))
        errors = np.empty_like(rest[start:stop])
        for j in range(start, stop):
            codes[j] = np.clip(np.rint(rest[j] / steps[j]), -127, 127)
            errors[j - start] = (rest[j] - codes[j] * steps[j]) / feedback[j, j]
            rest[j + 1 : stop] -= feedback[j, j + 1 : stop, None] * errors[j - start]
        rest[stop:] -= feedback[start:stop, stop:].T @ errors
    return codes


def feedback_factor(moment: np.ndarray) -> np.ndarray:
    """U, upper triangular [inputs, inputs] float32, with Uᵀ U = (H + damping)⁻¹ of H = E[x xᵀ] [inputs, inputs]."""
    damped = moment.astype(np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * np.trace(damped) / len(damped)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
