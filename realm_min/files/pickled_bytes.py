"""The byte strings of a pickled NumPy array, read without running the pickle: `pickle_machine.py` says how."""

from __future__ import annotations

import mmap
from typing import Any

from .pickle_machine import Machine

# What NumPy's pickle of an object array names, in NumPy 1 and 2. Protocol 2 has no byte strings: they are text there,
# to be encoded, and an empty one is the type called without arguments.
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_NDARRAY, _DTYPE, _ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
_BYTES = ("__builtin__.bytes", "builtins.bytes")

# What stands on the stack for NumPy's objects. Plain objects: no instruction can do anything with them.
_ARRAY, _FILLED_ARRAY, _OBJECT_DTYPE = object(), object(), object()


def unpickle_byte_strings(data: bytes | mmap.mmap, start: int = 0, end: int | None = None) -> list[bytes]:
    """The byte strings of a pickled one-dimensional NumPy object array, without executing the pickle.

    Args:
        start, end: where the pickle stands in `data`, in bytes; None: to the end.

    Raises:
        ValueError: truncated or damaged data, or anything but byte strings; names what was asked for.
    """
    machine = _Machine(data, start)
    machine.run()
    if machine.at != (len(data) if end is None else end):
        raise ValueError(f"it goes on after its end at byte {machine.at}")
    records = machine.records
    if machine.stack != [_FILLED_ARRAY] or not isinstance(records, list) or machine.shape != (len(records),):
        raise ValueError("it is no array of one dimension")
    for i, record in enumerate(records):
        if type(record) is not bytes:
            raise ValueError(f"record {i} is a {type(record).__name__}, not bytes")
    return records


class _Machine(Machine):
    names = frozenset({*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE, *_BYTES})
    needed_by = "byte strings"

    def __init__(self, data: bytes | mmap.mmap, start: int) -> None:
        super().__init__(data, start)
        self.encoded = 0  # bytes made of text
        self.shape: Any = ()  # of the array, as its state says
        self.records: Any = []

    def push(self, value: Any) -> None:
        super().push(value)
        if type(value) is bytes:
            self.push_byte_strings()

    def push_byte_strings(self) -> None:
        """Push the byte strings that stand in a row here, and put them in the memo.

        Nearly all of a large file is these five instructions: they have a loop of their own, without calls.
        """
        data, stack, memo, at = self.data, self.stack, self.memo, self.at
        try:
            while True:
                code = data[at]
                if code == 0x42 or code == 0x43:  # BINBYTES, SHORT_BINBYTES
                    begin = at + (5 if code == 0x42 else 2)
                    at = begin + int.from_bytes(data[at + 1 : begin], "little")
                    stack.append(data[begin:at])
                elif code == 0x94:  # MEMOIZE
                    at += 1
                    memo.append(stack[-1])
                elif code == 0x71 or code == 0x72:  # BINPUT, LONG_BINPUT
                    begin, at = at + 1, at + (2 if code == 0x71 else 5)
                    if at > len(data):
                        raise IndexError
                    place = int.from_bytes(data[begin:at], "little")
                    if place != len(memo):
                        raise ValueError(f"its memo jumps to {place} at byte {at}")
                    memo.append(stack[-1])
                else:
                    return
        finally:
            self.at = at

    def call(self, name: str, arguments: Any) -> Any:
        if name in _RECONSTRUCT:
            return _ARRAY
        if name == _DTYPE and arguments[0] in ("O", "O4", "O8"):
            return _OBJECT_DTYPE
        if name == _ENCODE and arguments[1:] == ("latin1",):
            encoded = arguments[0].encode("latin1")
            self.encoded += len(encoded)
            if self.encoded > len(self.data):  # one long text, encoded again and again to fill the memory
                raise ValueError("its byte strings are longer than the file")
            return encoded
        if name in _BYTES and arguments == ():
            return b""
        raise ValueError(f"it calls {name} in a way that byte strings do not need")

    def with_state(self, built: Any, state: Any) -> Any:
        """Give the array its state, in which its records are; the state of its dtype says nothing that is needed."""
        if built is _OBJECT_DTYPE:
            return built
        if built is not _ARRAY or len(state) != 5:
            raise TypeError
        _, self.shape, dtype, _, self.records = state
        if dtype is not _OBJECT_DTYPE:
            raise TypeError
        return _FILLED_ARRAY
