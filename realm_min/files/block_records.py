"""block_records.npy: the blocks of evidence as pickled byte strings, as transformers' retriever keeps them.

The pickle is never executed: `pickled_bytes.py` reads it.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .causes import causes_named, check_readable
from .hub import BLOCK_RECORDS_FILE
from .npy_file import CRC_LENGTH, read_npy_header, stored_crc, write_npy
from .pickled_bytes import unpickle_byte_strings


def write_block_records(path: str | os.PathLike, records: Sequence[bytes] | np.ndarray) -> None:
    """Write blocks as `numpy.save` writes an object array of `bytes`, [blocks], and after it the file's CRC-32.

    NumPy and transformers read the file, and pass over the checksum; `read_block_records` checks it.

    Raises:
        ValueError: a record is not `bytes`.
    """
    array = np.empty(len(records), dtype=object)
    for i, record in enumerate(records):
        if not isinstance(record, bytes):
            raise ValueError(f"block {i} is a {type(record).__name__}: blocks are bytes, text is made so by .encode()")
        array[i] = bytes(record)
    write_npy(path, array)


def read_block_records(path: str | os.PathLike) -> np.ndarray:
    """Blocks as an object array of `bytes`, [blocks], from `numpy.save`d byte strings; nothing pickled is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or holds anything but a row of byte strings.
    """
    path = Path(path)
    check_readable(path, f"{path} does not exist: give the path of a {BLOCK_RECORDS_FILE}")
    try:
        with causes_named(path), open(path, "rb") as file:
            shape, _, dtype = read_npy_header(file)
            if len(shape) != 1 or dtype.kind not in "OS":
                raise ValueError(f"it is an array of shape {list(shape)} and dtype {dtype}, not a row of byte strings")
            if dtype.kind == "S":
                if dtype.itemsize == 0 or os.path.getsize(path) - file.tell() != shape[0] * dtype.itemsize:
                    raise ValueError("its size is not what its header says")
                return np.fromfile(file, dtype, shape[0]).astype(object)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                stored = stored_crc(data)
                end = len(data) - CRC_LENGTH if stored else len(data)
                with memoryview(data) as view, view[:end] as contents:
                    if stored and b"%08x" % zlib.crc32(contents) != stored:
                        raise ValueError("its checksum is not the stored one")
                records = unpickle_byte_strings(data, file.tell(), end)
            if len(records) != shape[0]:
                raise ValueError(f"its header says {shape[0]} blocks, it holds {len(records)}")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: {error}; {BLOCK_RECORDS_FILE} is what numpy.save writes of an object array of "
            "bytes: fetch or write it again"
        ) from None
    array = np.empty(len(records), dtype=object)
    array[:] = records
    return array
