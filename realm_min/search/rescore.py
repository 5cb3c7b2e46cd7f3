"""The scores that a search returns, and the choice of the best by them.

The score is the float32 nearest to the inner product: products and sums in float64, added in one fixed order on every
device, rounded once. Hence it does not depend on the path, the tile or the batch; equal scores go to the smaller id.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EXACT_ELEMENTS = 1 << 19  # of rows that are scored in float64 at once
NO_KEY = -(1 << 63)  # below the key of any score


def exact_keys(blocks: Tensor, queries: Tensor, query: Tensor, rows: Tensor) -> Tensor:
    """The keys of pairs: row rows[i] of blocks [N, D] for query query[i] of queries [Q, D] float64. -> [pairs] int64"""
    keys = torch.empty_like(rows)
    step = max(1, EXACT_ELEMENTS // blocks.shape[1])
    for i in range(0, len(rows), step):
        some = rows[i : i + step]
        asked = queries if len(queries) == 1 else queries.index_select(0, query[i : i + step])
        keys[i : i + step] = pack_keys(exact_scores(blocks.index_select(0, some), asked), some)
    return keys


def largest_keys(keys: np.ndarray, k: int) -> Tensor:
    """The k largest of keys [n], or all where there are fewer, in descending order."""
    ascending = np.sort(keys)
    return torch.from_numpy(ascending[::-1][:k].copy())


def exact_scores(rows: Tensor, query: Tensor) -> Tensor:
    """The returned score: rows [n, D] . query [D] or [n, D] float64 -> [n] float32.

    Halves are added to halves, so that the order of the sum depends on D alone. Products of float32 are exact in
    float64, and the sum of D of them is off by under 2**-43 of ||q|| ||e||, far below the final rounding.
    """
    products = rows.double().mul_(query)
    while products.shape[1] > 1:
        half = 1 << (products.shape[1] - 1).bit_length() - 1
        products[:, : products.shape[1] - half] += products[:, half:]
        products = products[:, :half]
    return products[:, 0].float() + 0.0  # -0 and 0 are one score


def pack_keys(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 keys that rank as (score descending, id ascending) when sorted in descending order. ids < 2**32"""
    bits = scores.view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats count downwards
    return (ordered.long() << 32) + (0xFFFFFFFF - ids)


def unpack_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack_keys` -> (scores float32, ids int64)."""
    ordered = (keys >> 32).int()
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.view(torch.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)
