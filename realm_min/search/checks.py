"""What can be searched: blocks, queries and k, or the error that names the value and the remedy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import kinds

BLOCK_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class NotFiniteError(ValueError, FloatingPointError):
    """What is searched for is no number: while a model learns, since training has diverged."""


def check_blocks(blocks: Tensor) -> None:
    """Raise ValueError, naming what is wrong, for blocks that are not [N, D] of a searchable dtype."""
    if not isinstance(blocks, Tensor) or blocks.dtype not in BLOCK_DTYPES:
        kind = blocks.dtype if isinstance(blocks, Tensor) else type(blocks).__name__
        raise ValueError(f"blocks are {kind}: give a torch tensor of float32, float16 or bfloat16")
    kinds.check("blocks", blocks, Tensor)
    if blocks.ndim != 2:
        raise ValueError(f"blocks have shape {tuple(blocks.shape)}: give [blocks, dimensions]")
    if 0 in blocks.shape:
        raise ValueError(f"blocks have shape {tuple(blocks.shape)}: an empty index cannot be searched")


def plain_count(k: Any) -> Any:
    """NumPy's integers as Python's, which do not overflow; all else as it is, to be checked."""
    return k.item() if isinstance(k, np.integer) else k


def check_search(queries: Tensor, blocks: Tensor, k: int, total: int | None = None) -> None:
    """Raise ValueError, naming the value, for queries [Q, D] or k that `blocks` [N, D] cannot be searched with.

    total: the number of blocks, where `blocks` are a slice of them.
    """
    check_search_shapes(queries, blocks, k, total)
    refuse_queries(queries)


def check_search_shapes(queries: Tensor, blocks: Tensor, k: int, total: int | None = None) -> None:
    """`check_search` but for the queries' values, which a GPU is not to be waited for."""
    if not isinstance(queries, Tensor) or queries.dtype not in BLOCK_DTYPES:
        kind = queries.dtype if isinstance(queries, Tensor) else type(queries).__name__
        raise ValueError(f"queries are {kind}: give a torch tensor of float32, float16 or bfloat16")
    if queries.ndim != 2:
        raise ValueError(f"queries have shape {tuple(queries.shape)}: give [queries, dimensions]")
    if queries.shape[1] != blocks.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions, the blocks {blocks.shape[1]}: they must agree")
    if queries.device != blocks.device:
        raise ValueError(f"queries are on {queries.device}, the blocks on {blocks.device}: move one with .to(device)")
    kinds.check("queries", queries, Tensor)
    if isinstance(k, bool) or not isinstance(k, int):
        raise ValueError(f"k is {k!r}: give an integer")
    total = blocks.shape[0] if total is None else total
    if not 1 <= k <= total:
        raise ValueError(f"k is {k}: it must lie in 1..{total}, the number of blocks")


def checked_rows(ids: Tensor, total: int) -> Tensor:
    """ids [...] as int64; ValueError, naming the value, where they are none of `total` blocks."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"ids are {ids.dtype}: give the numbers of blocks, int64")
    ids = kinds.usual_numbers("ids", ids).long()
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < total:
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(f"block {wrong} does not exist: there are blocks 0 to {total - 1}")
    return ids


def refuse_queries(queries: Tensor) -> None:
    """Raise NotFiniteError naming the first of queries [Q, D] that is not finite."""
    if math.isfinite(queries.sum(dtype=torch.float64).item()):  # a double holds any sum of float32
        return
    finite = queries.isfinite().all(1)
    if not finite.all():
        raise NotFiniteError(f"query {int((~finite).nonzero()[0])} holds NaN or infinity: queries must be finite")
