"""Products of int8 matrices by torch, and proof that they are right on this processor.

Processors without instructions for int8 (VNNI, AMX) multiply by older ones that take one factor without a sign, add two
products in 16 bits, and cut off what does not fit there. torch does not say so: most sums of numbers up to 127 are then
wrong, some by more than half. Of 255 * 64 + 255 * 64 all bits are kept, so the other factor must not exceed 64. Which
factor that is depends on the processor and on the shape; so each shape is tried once, with the worst there is.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LIMITS = (127, 64)  # of the right factor: all that int8 codes use, and what older instructions leave right
TRIED = ((64, 128, 64), (64, 2048, 16))  # rows, inner, columns: like those of many queries, and of one


@functools.lru_cache(maxsize=1)
def limit() -> int:
    """The largest magnitude of a right factor with which torch's products are right here, or 0."""
    threads = torch.get_num_threads()
    return next((most for most in LIMITS if all(is_exact(*shape, most, threads) for shape in TRIED)), 0)


@functools.lru_cache(maxsize=1024)
def is_exact(rows: int, inner: int, columns: int, most: int, threads: int) -> bool:
    """Whether [rows, inner] by [inner, columns] is right for numbers up to 127 on the left and `most` on the right.

    threads: of torch, which may cut the shape in pieces by their number.
    """
    left = torch.full((rows, inner), 127, dtype=torch.int8, device="cpu")
    right = torch.full((inner, columns), most, dtype=torch.int8, device="cpu")
    signs = torch.full((rows, columns), 127 * most * inner, dtype=torch.int32, device="cpu")
    # Within a sum all products have one sign: that is where two of them are the largest.
    left[1::2] *= -1
    signs[1::2] *= -1
    right[:, 1::2] *= -1
    signs[:, 1::2] *= -1
    return torch.equal(_product(left, right), signs)


def multiply(left: Tensor, right: Tensor, most: int, out: Tensor) -> None:
    """out [rows, columns] int32 = left [rows, inner] right [inner, columns], int8, the right one up to `most`."""
    if is_exact(*left.shape, right.shape[1], most, torch.get_num_threads()):
        _product(left, right.contiguous(), out)
    else:  # a single column, on some processors
        out.copy_(left.double() @ right.double())


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    # torch has no other product of int8.
    return torch._int_mm(left, right) if out is None else torch._int_mm(left, right, out=out)  # pyright: ignore[reportPrivateImportUsage]
