"""An array in NumPy's .npy format, with a CRC-32 of the file behind it, which NumPy and others pass over.

Its last bytes are a line, `crc32 89abcdef`. Files of others end with the array, and are read too.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..ranks.distributed import World
from .atomic import write_atomically
from .causes import causes_named, check_readable
from .checksum import combine_crc32

_CRC = re.compile(rb"\ncrc32 ([0-9a-f]{8})\n")
CRC_LENGTH = 16  # of that line in bytes, with the line break before it
LONGEST_HEADER = 10_000  # NumPy's own limit since 1.24: its parser takes ever more memory and stack


def write_npy(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array as `numpy.save` does, pickled where it holds objects, and its checksum behind it."""
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        checked = _Checked(file)
        np.save(checked, array)
        file.write(b"\ncrc32 %08x\n" % checked.crc)


class _Checked:
    """A file to write to, with the CRC-32 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.crc = file, 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)


def stored_crc(data: bytes | mmap.mmap) -> bytes | None:
    """The 8 digits that stand at the end of a file; None where no checksum does."""
    found = _CRC.fullmatch(data[-CRC_LENGTH:])
    return found[1] if found else None


def map_npy(path: str | os.PathLike, world: World | None = None) -> np.ndarray:
    """A file's array of floating-point numbers, of any shape, memory-mapped: writing into it changes no file.

    With a `world` it is a collective, in which each rank checks its rows (`World.slice_of`), and no others are read.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut short, or no such array.
    """
    path, world = Path(path), world or World()
    check_readable(path, f"{path} does not exist: give a .npy file of block embeddings")
    mapped: list[_Mapped] = []

    def read() -> list[tuple[int, int]]:
        """CRC-32 and length of the header, and of this rank's rows."""
        try:
            with causes_named(path):
                mapped.append(_map(path))
        except ValueError as error:
            raise _damaged(path, error) from None
        found = mapped[0]
        if found.crc is None:
            return []
        rows = found.array[world.slice_of(len(found.array))]
        return [(zlib.crc32(found.header), len(found.header)), (zlib.crc32(_bytes_of(rows)), rows.nbytes)]

    pieces = world.gather_results(read)
    if (stored := mapped[0].crc) is not None:
        crc = pieces[0][0][0]
        for _, rows in pieces:
            crc = combine_crc32(crc, *rows)
        if b"%08x" % crc != stored:
            raise _damaged(path, f"its checksum is {crc:08x}, not the stored {stored.decode()}")
    return mapped[0].array


class _Mapped(NamedTuple):
    array: np.ndarray
    header: bytes
    crc: bytes | None  # as it is stored


def _map(path: Path) -> _Mapped:
    with open(path, "rb") as file:
        shape, fortran_order, dtype = read_npy_header(file)
        start = file.tell()
        file.seek(0)
        header = file.read(start)
        if dtype.kind != "f" or dtype.itemsize > 8 or not dtype.isnative or not shape:
            raise ValueError(f"it is an array of shape {list(shape)} and dtype {dtype}")
        end = start + math.prod(shape) * dtype.itemsize
        file.seek(0, os.SEEK_END)
        crc = None
        if file.tell() == end + CRC_LENGTH and not fortran_order:
            file.seek(end)
            crc = stored_crc(file.read())
        if crc is None and file.tell() != end:
            raise ValueError(f"it has {file.tell()} bytes, and its header asks for {end}")
        if crc is None and end - start >= CRC_LENGTH:
            file.seek(end - CRC_LENGTH)
            if stored_crc(file.read(CRC_LENGTH)):
                raise ValueError("its checksum stands where the last numbers should: some before it are gone")
    if math.prod(shape) == 0:
        return _Mapped(np.empty(shape, dtype), header, crc)
    order = "F" if fortran_order else "C"
    return _Mapped(np.memmap(path, dtype, "c", start, shape, order), header, crc)


def read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether its columns lie together, and dtype, read from the start of a file.

    Raises:
        ValueError: it is no header of the .npy format.
    """
    try:
        version = np.lib.format.read_magic(file)
        length = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        file.seek(8)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file)
    except (MemoryError, OSError):
        raise
    except Exception as error:  # what else NumPy's parser says of untrusted bytes, the header is at fault
        raise ValueError(f"no valid .npy header ({str(error).splitlines()[0] if str(error) else error!r})") from None
    if any(size < 0 for size in shape):
        raise ValueError(f"no valid .npy header (shape {list(shape)})")
    return shape, fortran_order, dtype


def _bytes_of(rows: np.ndarray) -> memoryview:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} cannot be read ({why}): it is damaged or no .npy file; write it again")
