"""The file of a `BlockIndex`: its tensors as safetensors, with a checksum, and a header in the file's metadata."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from ..files.atomic import write_atomically
from ..files.json_file import json_object
from ..files.safetensors_file import read_with_metadata, write_safetensors
from .bounds import COMPRESSIONS, shapes_of
from .checks import check_blocks

FORMAT = "realm-min block index 2"
EARLIER_FORMAT = "realm-min block index 1"  # with sums in place of a checksum
LARGEST_EXPONENT = 200  # of a power of two taken out of float32 scales, with room to spare


def write_index(path: str | os.PathLike, header: dict, tensors: dict[str, Tensor]) -> None:
    """Write the file, complete or not at all."""
    with write_atomically(path) as temporary:
        write_safetensors(temporary, tensors, {"index": json.dumps({"format": FORMAT, **header})})


def read_index(path: str | os.PathLike) -> tuple[dict, dict[str, Tensor]]:
    """The header, `compression` and `exponent`, and the tensors, memory-mapped; they fit each other.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut short, or no index.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no block index at {path}")
    tensors, metadata = read_with_metadata(Path(path))
    try:
        return _checked_header(metadata, tensors), tensors
    except ValueError as error:
        raise ValueError(
            f"{path} is not a whole block index ({error}): build it again with BlockIndex(blocks).save(path)"
        ) from None


def _checked_header(metadata: dict[str, str], tensors: dict[str, Tensor]) -> dict:
    """The header of an index file, which fits the tensors beside it; ValueError says what does not."""
    if "index" not in metadata:
        raise ValueError("it is a safetensors file of something else")
    header = json_object(metadata["index"])
    if header.get("format") not in (FORMAT, EARLIER_FORMAT):
        raise ValueError(f"its format is {header.get('format')!r}, this version reads {FORMAT!r}")
    compression, exponent = header.get("compression"), header.get("exponent")
    if compression not in COMPRESSIONS:
        raise ValueError(f"its compression is {compression!r}, none of {COMPRESSIONS}")
    if type(exponent) is not int or abs(exponent) > LARGEST_EXPONENT:
        raise ValueError(f"its exponent is {exponent!r}")
    if "blocks" not in tensors:
        raise ValueError("it has no blocks")
    check_blocks(tensors["blocks"])
    expected = shapes_of(tensors["blocks"], compression)
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if found != expected:
        raise ValueError(f"its tensors are {found}, and of such blocks they are {expected}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all(end.isfinite() for end in torch.aminmax(tensor)):
            raise ValueError(f"its {name} hold NaN or infinity")
    if header["format"] == EARLIER_FORMAT:
        _check_sums(header.get("checksums"), tensors)
    return header


def _check_sums(sums: object, tensors: dict[str, Tensor]) -> None:
    """ValueError if a tensor is not the one whose sum of words an earlier version has written down."""
    for name, tensor in tensors.items():
        data = tensor.contiguous().view(-1).view(torch.uint8)
        whole = data.numel() // 8 * 8
        found = int(data[:whole].view(torch.int64).sum()) + int(data[whole:].sum())
        if not isinstance(sums, dict) or sums.get(name) != found:
            raise ValueError(f"the checksum of {name!r} does not match")
