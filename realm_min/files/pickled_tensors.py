"""Weights that torch.save wrote, read without running the pickle in them: `pickle_machine.py` says how.

Since torch 1.6 the file is a zip of that pickle, `data.pkl`, and of the numbers of each storage, `data/KEY`, none of it
compressed, each with a checksum. Before, it was five pickles one after another (a magic number, the protocol, the
machine's sizes, the object, the storages' keys) and then each storage: how many numbers as 8 bytes, and the numbers.

The pickle says of each tensor which storage it is in, from where on, and its shape and strides. No tensor may be larger
than its storage, none of them larger than what the file has of it, and all together not many times the file: a program
of a few hundred bytes could ask for any number of views of one number.
"""

from __future__ import annotations

import errno
import math
import mmap
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .pickle_machine import Machine, Name

MAGIC_NUMBER = bytes.fromhex("6cfc9c46f9206aa85019")  # of the first pickle, as a whole number
PROTOCOL = 1001
MOST_AXES = 64  # of a tensor of torch
MOST_SHARED = 4  # times the file: what tensors that share storages may have in all, copies of tied weights say

_DTYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}  # fmt: skip
_REBUILD, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_ORDERED = "collections.OrderedDict"


class Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numbers: int

    @property
    def nbytes(self) -> int:
        return self.numbers * self.dtype.itemsize


class Stored(NamedTuple):
    """Where a tensor's numbers are: [size] with strides in its storage, from `first` on."""

    storage: Storage
    first: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize


def unpickle_tensors(path: Path) -> Any:
    """What a file of torch.save holds: a dict of tensors, memory-mapped, or whatever else, without its tensors.

    Raises:
        ValueError: it is truncated or damaged, or asks for Python objects other than tensors; says what is wrong,
            without the file's name.
    """
    zipped = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        if not zipped and MAGIC_NUMBER not in file.read(32):
            raise ValueError("it is neither the zip that torch.save writes nor what it wrote before torch 1.6")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # writing into it changes no file
    found, places = _read_zip(path, data) if zipped else _read_plain(data)
    if not isinstance(found, dict):
        return found
    stored = [value for value in found.values() if isinstance(value, Stored)]
    for storage in {value.storage for value in stored}:
        start, end = places.get(storage.key, (0, 0))
        if storage.nbytes > end - start:
            raise ValueError(
                f"its storage {storage.key!r} has {end - start:,} bytes, and should have {storage.nbytes:,}"
            )
    if sum(value.nbytes for value in stored) > MOST_SHARED * len(data):
        raise ValueError(f"its tensors are more than {MOST_SHARED} times as large as the file")
    return {
        key: _tensor(data, places[value.storage.key][0], value) if isinstance(value, Stored) else value
        for key, value in found.items()
    }


def _tensor(data: mmap.mmap, start: int, stored: Stored) -> torch.Tensor:
    storage = stored.storage
    if not math.prod(stored.size):
        return torch.empty(stored.size, dtype=storage.dtype, device="cpu")
    if start % storage.dtype.itemsize:  # of files before 1.6: the processor wants them elsewhere
        numbers = torch.frombuffer(bytearray(data[start : start + storage.nbytes]), dtype=storage.dtype)
    else:
        numbers = torch.frombuffer(data, dtype=storage.dtype, count=storage.numbers, offset=start)
    return numbers.as_strided(stored.size, stored.stride, stored.first)


Places = dict[str, tuple[int, int]]  # of storages by key: first byte in the file, and the one after the last


def _read_zip(path: Path, data: mmap.mmap) -> tuple[Any, Places]:
    """What the pickle in a zip holds, and where its storages are."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("torch.save compresses nothing, this archive is compressed")
            if any(member.file_size != member.compress_size for member in members):
                raise ValueError("it tells of parts of two lengths")
            if sum(member.file_size for member in members) > len(data):
                raise ValueError("its parts overlap")
            if part := archive.testzip():
                raise ValueError(f"the checksum of its part {part} is wrong")
            programs = [member for member in members if member.filename.endswith("/data.pkl")]
            if len(programs) != 1:
                raise ValueError("it has no data.pkl, or several: no version of torch.save writes so")
            folder = programs[0].filename.removesuffix("data.pkl")
            contents = {member.filename.removeprefix(folder): _place_of(member, data) for member in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, LookupError, struct.error) as error:
        raise ValueError(f"it is no whole zip: {error}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place before the file's beginning
            raise
        raise ValueError("it is no whole zip: a part of it is nowhere") from None
    start, end = contents.get("byteorder", (0, 0))
    if data[start:end] not in (b"", sys.byteorder.encode()):
        raise ValueError(f"its numbers are written {data[start:end][:20]!r} end first: save it again on this machine")
    machine = _Machine(data[slice(*contents["data.pkl"])])
    machine.run()
    prefix = "data/"
    return machine.result(), {name[len(prefix) :]: at for name, at in contents.items() if name.startswith(prefix)}


def _place_of(member: zipfile.ZipInfo, data: mmap.mmap) -> tuple[int, int]:
    """Where the bytes of a part stand in the zip: behind its own header, of which the last lengths vary."""
    header = member.header_offset + 30
    name, extra = (int.from_bytes(data[header - at : header - at + 2], "little") for at in (4, 2))
    start = header + name + extra
    return start, start + member.file_size


def _read_plain(data: mmap.mmap) -> tuple[Any, Places]:
    """The same of a file from before torch 1.6."""
    at, contents = 0, []
    for _ in range(5):
        machine = _Machine(data, at)
        machine.run()
        contents.append(machine.result())
        at = machine.at
    magic, protocol, machine_sizes, found, keys = contents
    if magic != int.from_bytes(MAGIC_NUMBER, "little") or protocol != PROTOCOL:
        raise ValueError("it does not begin as torch.save began a file before torch 1.6")
    if not isinstance(machine_sizes, dict) or machine_sizes.get("little_endian") is not (sys.byteorder == "little"):
        raise ValueError("its numbers are written for another machine: save it again on this one")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("it does not say which storages it has")
    sizes: dict[str, Storage] = {}
    for value in found.values() if isinstance(found, dict) else ():
        if isinstance(value, Stored):
            sizes[value.storage.key] = value.storage
    places: Places = {}
    for key in keys:
        numbers = int.from_bytes(data[at : at + 8], "little")
        if key not in sizes or numbers != sizes[key].numbers:
            raise ValueError(f"its storage {key!r} is of no tensor, or of another length than the tensor says")
        places[key] = at + 8, at + 8 + sizes[key].nbytes
        at = places[key][1]
    if at != len(data):
        raise ValueError(f"its storages end at byte {at:,}, and it has {len(data):,}")
    return found, places


class _Machine(Machine):
    names = frozenset({*_DTYPES, _REBUILD, _PARAMETER, _ORDERED})
    needed_by = "tensors"

    def __init__(self, data: bytes | mmap.mmap, start: int = 0) -> None:
        super().__init__(data, start)
        self.storages: dict[str, Storage] = {}

    def result(self) -> Any:
        if len(self.stack) != 1:
            raise ValueError("it leaves more than one object, or none")
        return self.stack[0]

    def call(self, name: str, arguments: Any) -> Any:
        if name == _ORDERED and arguments == ():
            return {}
        if name == _PARAMETER and isinstance(arguments[0], Stored):
            return arguments[0]
        if name == _REBUILD:
            return _checked(Stored(*arguments[:4]))
        raise ValueError(f"it calls {name} in a way that tensors do not need")

    def with_state(self, built: Any, state: Any) -> Any:
        """A dict may have attributes, such as the versions of torch's modules, which say nothing of the tensors."""
        if not isinstance(built, dict):
            raise TypeError
        return built

    def persistent(self) -> Storage:
        asked = self.stack.pop()
        if type(asked) is not tuple or len(asked) not in (5, 6) or asked[5:] not in ((), (None,)):  # 6 before torch 1.6
            raise TypeError
        kind, of, key, _, numbers = asked[:5]
        if type(kind) is not str or kind != "storage" or not isinstance(of, Name) or type(key) is not str:
            raise TypeError
        if type(numbers) is not int or numbers < 0:
            raise ValueError(f"its storage {key[:50]!r} has {str(numbers)[:50]} numbers")
        storage = Storage(key, _DTYPES[of], numbers)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"it tells of two storages {key[:50]!r}")
        return storage

    def set_items(self, items: list[Any]) -> None:
        held = self.stack[-1]
        if not isinstance(held, dict) or len(items) % 2 or not all(isinstance(key, (str, int)) for key in items[::2]):
            raise TypeError
        held.update(zip(items[::2], items[1::2], strict=True))

    instructions = {
        0x7D: lambda machine: machine.push({}),  # EMPTY_DICT
        0x73: lambda machine: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),  # SETITEM
        0x75: lambda machine: machine.set_items(machine.since_mark()),  # SETITEMS
        0x51: lambda machine: machine.push(machine.persistent()),  # BINPERSID
        0x8A: lambda machine: machine.push(machine.signed(machine.integer(1))),  # LONG1
        0x47: lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),  # BINFLOAT
    }


def _checked(stored: Stored) -> Stored:
    """ValueError for a tensor that is not within its storage, or larger than that, as one is whose strides are 0."""
    storage, first, size, stride = stored
    numbers = (first, *size, *stride)
    if (
        not isinstance(storage, Storage)
        or not len(size) == len(stride) <= MOST_AXES
        or any(type(n) is not int or n < 0 for n in numbers)
    ):
        raise TypeError
    if max(math.prod(max(length, 1) for length in size), *stride, 0) >= 2**63:  # of an empty one, too
        raise ValueError(f"a tensor of shape {str(list(size))[:100]} is larger than any machine's memory")
    count = math.prod(size)
    last = first + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count > storage.numbers or (count and last >= storage.numbers):
        raise ValueError(
            f"a tensor of shape {str(list(size))[:100]} is larger than its storage of {storage.numbers:,} numbers"
        )
    return stored
