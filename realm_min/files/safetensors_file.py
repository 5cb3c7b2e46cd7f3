"""One file in the safetensors format, in and out, with the checksum that the format lacks."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import safetensors
import torch

from ..ranks.distributed import World
from .checksum import combine_crc32

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


CHECKSUM = "metadata_and_tensors_crc32"
EARLIER_CHECKSUM = "crc32"  # of the tensors alone
_OWN = ("format", CHECKSUM, EARLIER_CHECKSUM)


def damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} cannot be read ({why}): it is damaged or not a checkpoint; fetch or write it again")


def read_safetensors(path: Path, sliced: str | None = None, world: World | None = None) -> dict[str, torch.Tensor]:
    """The tensors of one file; arguments, tensors and errors as those of `checkpoint.read_state_dict`."""
    return read_with_metadata(path, sliced, world)[0]


def read_with_metadata(
    path: Path, sliced: str | None = None, world: World | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """As `read_safetensors`, and the metadata that was given to `write_safetensors`."""
    world = world or World()
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}

    def read() -> list[tuple[int, int]]:
        """CRC-32 and length of what stands before this rank's slice, of the slice, and of what stands after it."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata.update(file.metadata() or {})
                tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except Exception as error:  # whatever the parser says of untrusted bytes, the file is at fault
            raise damaged(path, str(error).partition("\n")[0]) from None
        return _pieces(tensors, sliced, world, _heading_of_all(metadata)) if _stored(metadata) else []

    pieces = world.gather_results(read)
    if (stored := _stored(metadata)) is not None:
        crc = 0
        for piece in (pieces[0][0], *(mine for _, mine, _ in pieces), pieces[0][2]):
            crc = combine_crc32(crc, *piece)
        if f"{crc:08x}" != stored:
            raise damaged(path, f"its checksum is {crc:08x}, not the stored {stored}")
    return tensors, {name: value for name, value in metadata.items() if name not in _OWN}


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The format: the header's length as 8 bytes, the header as JSON, the tensors' bytes one after another.

    The format has no checksum; one over `metadata`, keys, dtypes, shapes and bytes stands beside the other metadata,
    for `read_safetensors`.

    Raises:
        ValueError: a tensor has a dtype that the format lacks.
    """
    entries: dict[str, dict] = {}
    end = 0
    for key in _stored_order(tensors):
        tensor = tensors[key]
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{key} is {tensor.dtype}, which safetensors files of this project do not hold: cast it")
        begin, end = end, end + tensor.nbytes
        entries[key] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }

    def header(crc: int) -> bytes:
        text = json.dumps({"__metadata__": {"format": "pt", CHECKSUM: f"{crc:08x}", **metadata}, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    with open(path, "wb") as file:
        file.write(header(0))
        crc = zlib.crc32(_heading_of_all({**metadata, CHECKSUM: ""}))
        for key in entries:
            data = _bytes_of(tensors[key])
            crc = zlib.crc32(data, zlib.crc32(_heading(key, tensors[key]), crc))
            file.write(data)
        file.seek(0)
        file.write(header(crc))  # of the same length: the checksum always has 8 digits


# --- The checksum -----------------------------------------------------------------------------------------------------


def _stored_order(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Wide elements first, so that each tensor begins at a multiple of its element's size."""
    return sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _stored(metadata: dict[str, str]) -> str | None:
    """The checksum of a file, 8 digits; None in a file of others."""
    return metadata.get(CHECKSUM, metadata.get(EARLIER_CHECKSUM))


def _heading_of_all(metadata: dict[str, str]) -> bytes:
    """What stands for the metadata in the checksum, before the tensors."""
    given = {name: value for name, value in metadata.items() if name not in _OWN}
    return json.dumps(given, sort_keys=True).encode() if CHECKSUM in metadata else b""


def _heading(key: str, tensor: torch.Tensor) -> bytes:
    """What stands for a tensor in the checksum, before its bytes."""
    return f"{key} {tensor.dtype} {list(tensor.shape)}".encode()


def _pieces(tensors: dict[str, torch.Tensor], sliced: str | None, world: World, start: bytes) -> list[tuple[int, int]]:
    crcs, lengths = [zlib.crc32(start), 0, 0], [len(start), 0, 0]
    place = 0
    for key in _stored_order(tensors):
        tensor, heading = tensors[key], _heading(key, tensors[key])
        crcs[place], lengths[place] = zlib.crc32(heading, crcs[place]), lengths[place] + len(heading)
        if key == sliced and tensor.dim():
            mine = _bytes_of(tensor[world.slice_of(len(tensor))])
            crcs[1], lengths[1], place = zlib.crc32(mine), len(mine), 2
        else:
            crcs[place], lengths[place] = zlib.crc32(_bytes_of(tensor), crcs[place]), lengths[place] + tensor.nbytes
    return list(zip(crcs, lengths, strict=True))
