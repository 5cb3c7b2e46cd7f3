"""One file in the safetensors format, in and out, with the checksum that the format lacks."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import safetensors
import torch

from ..ranks.distributed import World
from .causes import check_readable, raise_machine_error
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
        check_readable(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata.update(file.metadata() or {})
                tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except Exception as error:  # what else the parser says of untrusted bytes, the file is at fault
            raise_machine_error(error, path)
            raise damaged(path, str(error).partition("\n")[0]) from None
        return _pieces(tensors, sliced, world) if metadata.keys() & {CHECKSUM, EARLIER_CHECKSUM} else []

    pieces = world.gather_results(read)
    if pieces[0]:
        crc = length = 0
        for piece in (pieces[0][0], *(mine for _, mine, _ in pieces), pieces[0][2]):
            crc, length = combine_crc32(crc, *piece), length + piece[1]
        found = {EARLIER_CHECKSUM: crc, CHECKSUM: combine_crc32(_crc_of_metadata(metadata), crc, length)}
        for name, number in found.items():
            if metadata.get(name, f"{number:08x}") != f"{number:08x}":
                raise damaged(path, f"its checksum is {number:08x}, not the stored {metadata[name]}")
    return tensors, {name: value for name, value in metadata.items() if name not in _OWN}


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The format: the header's length as 8 bytes, the header as JSON, the tensors' bytes one after another.

    The format has no checksum; one over keys, dtypes, shapes and bytes, and one over these and `metadata`, stand beside
    the other metadata, for `read_safetensors`. There are two, so that damage to a name of theirs does not hide them.

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

    def header(tensors: int, all_of_it: int) -> bytes:
        own = {"format": "pt", EARLIER_CHECKSUM: f"{tensors:08x}", CHECKSUM: f"{all_of_it:08x}"}
        text = json.dumps({"__metadata__": {**own, **metadata}, **entries}).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    with open(path, "wb") as file:
        file.write(header(0, 0))
        crc = length = 0
        for key in entries:
            heading, data = _heading(key, tensors[key]), _bytes_of(tensors[key])
            crc, length = zlib.crc32(data, zlib.crc32(heading, crc)), length + len(heading) + len(data)
            file.write(data)
        file.seek(0)
        file.write(header(crc, combine_crc32(_crc_of_metadata(metadata), crc, length)))  # as long: 8 digits each


# --- The checksum -----------------------------------------------------------------------------------------------------


def _stored_order(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Wide elements first, so that each tensor begins at a multiple of its element's size."""
    return sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _crc_of_metadata(metadata: dict[str, str]) -> int:
    given = {name: value for name, value in metadata.items() if name not in _OWN}
    return zlib.crc32(json.dumps(given, sort_keys=True).encode())


def _heading(key: str, tensor: torch.Tensor) -> bytes:
    """What stands for a tensor in the checksum, before its bytes."""
    return f"{key} {tensor.dtype} {list(tensor.shape)}".encode()


def _pieces(tensors: dict[str, torch.Tensor], sliced: str | None, world: World) -> list[tuple[int, int]]:
    crcs, lengths = [0, 0, 0], [0, 0, 0]
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
