"""The byte strings of a pickled NumPy array, read without running the pickle.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program asks for. This machine
has the instructions by which a one-dimensional object array of byte strings is written (protocols 2 to 5; named as in
Python's `pickletools`), and no other. Asked to call something, it compares the name with those below and builds the one
thing that is meant; it imports nothing and calls nothing.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any


class _Name(str):
    """The name of a Python object that a pickle asks for; it is compared, never looked up."""


# What NumPy's pickle of an object array names, in NumPy 1 and 2. Protocol 2 has no byte strings: they are text there,
# to be encoded, and an empty one is the type called without arguments.
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_NDARRAY, _DTYPE, _ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
_BYTES = ("__builtin__.bytes", "builtins.bytes")
_NAMES = {*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE, *_BYTES}

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
    try:
        machine.run()
    except UnicodeError:
        raise ValueError(f"a text in it is damaged, before byte {machine.at}") from None
    except (IndexError, AttributeError, TypeError, MemoryError):
        raise ValueError(f"it is truncated or damaged, near byte {min(machine.at, len(data))}") from None
    if machine.at != (len(data) if end is None else end):
        raise ValueError(f"it goes on after its end at byte {machine.at}")
    records = machine.records
    if machine.stack != [_FILLED_ARRAY] or not isinstance(records, list) or machine.shape != (len(records),):
        raise ValueError("it is no array of one dimension")
    for i, record in enumerate(records):
        if type(record) is not bytes:
            raise ValueError(f"record {i} is a {type(record).__name__}, not bytes")
    return records


class _Machine:
    """The stack machine: `run` follows the program in `data` from byte `start` to its STOP.

    What a program must not do ends in a ValueError that names it. What it cannot do, such as take from an empty stack
    or append to a number, ends in the error that Python raises of itself: IndexError, AttributeError or TypeError.
    """

    def __init__(self, data: bytes | mmap.mmap, start: int) -> None:
        self.data, self.at = data, start  # the program, and the byte in it that is next
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: list[Any] = []
        self.encoded = 0  # bytes made of text
        self.shape: Any = ()  # of the array, as its state says
        self.records: Any = []

    def run(self) -> None:
        while True:
            self.push_byte_strings()
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return
            if code not in _INSTRUCTIONS:
                raise ValueError(
                    f"its instruction {bytes([code])!r} at byte {self.at - 1} is none that byte strings need"
                )
            _INSTRUCTIONS[code](self)

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

    # What instructions read beside them in the program

    def integer(self, size: int) -> int:
        self.at += size
        if self.at > len(self.data):
            raise IndexError
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def text(self, length: int) -> str:
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "surrogatepass")

    def line(self) -> str:
        begin, self.at = self.at, self.data.find(b"\n", self.at, self.at + 200) + 1
        if self.at == 0:
            raise IndexError
        return self.data[begin : self.at - 1].decode()

    # Instructions

    def push_long_bytes(self) -> None:
        length = self.integer(8)
        self.stack.append(self.data[self.at : self.at + length])
        self.at += length

    def push_signed(self) -> None:
        self.stack.append((self.integer(4) ^ 0x8000_0000) - 0x8000_0000)

    def since_mark(self) -> list[Any]:
        """Take from the stack what was pushed since the last mark."""
        items = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return items

    def append(self) -> None:
        item = self.stack.pop()
        self.stack[-1].append(item)

    def extend(self) -> None:
        items = self.since_mark()
        self.stack[-1].extend(items)

    def make_tuple(self, size: int) -> None:
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def push_name(self, full_name: str) -> None:
        if full_name not in _NAMES:
            raise ValueError(f"it asks for {full_name[:200]!r}, which byte strings do not need: nothing was executed")
        self.stack.append(_Name(full_name))

    def push_name_from_stack(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if type(attribute) is not str or type(module) is not str:  # a tuple within a tuple, say, however deep
            raise TypeError
        self.push_name(f"{module}.{attribute}")

    def call(self) -> None:
        arguments = self.stack.pop()
        called = self.stack.pop()
        if not isinstance(called, _Name):
            raise TypeError
        if called in _RECONSTRUCT:
            self.stack.append(_ARRAY)
        elif called == _DTYPE and arguments[0] in ("O", "O4", "O8"):
            self.stack.append(_OBJECT_DTYPE)
        elif called == _ENCODE and arguments[1:] == ("latin1",):
            self.stack.append(arguments[0].encode("latin1"))
            self.encoded += len(self.stack[-1])
            if self.encoded > len(self.data):  # one long text, encoded again and again to fill the memory
                raise ValueError("its byte strings are longer than the file")
        elif called in _BYTES and arguments == ():
            self.stack.append(b"")
        else:
            raise ValueError(f"it calls {called} in a way that byte strings do not need")

    def set_state(self) -> None:
        """Give the array its state, in which its records are; the state of its dtype says nothing that is needed."""
        state, built = self.stack.pop(), self.stack.pop()
        if built is _ARRAY:
            if len(state) != 5:
                raise TypeError
            _, self.shape, dtype, _, self.records = state
            if dtype is not _OBJECT_DTYPE:
                raise TypeError
            built = _FILLED_ARRAY
        elif built is not _OBJECT_DTYPE:
            raise TypeError
        self.stack.append(built)


# By their bytes; STOP, and the five of a row of byte strings, stand above.
_INSTRUCTIONS: dict[int, Callable[[_Machine], object]] = {
    # values
    0x8E: _Machine.push_long_bytes,  # BINBYTES8
    0x58: lambda machine: machine.stack.append(machine.text(machine.integer(4))),  # BINUNICODE
    0x8C: lambda machine: machine.stack.append(machine.text(machine.integer(1))),  # SHORT_BINUNICODE
    0x4B: lambda machine: machine.stack.append(machine.integer(1)),  # BININT1
    0x4D: lambda machine: machine.stack.append(machine.integer(2)),  # BININT2
    0x4A: _Machine.push_signed,  # BININT
    0x4E: lambda machine: machine.stack.append(None),  # NONE
    0x88: lambda machine: machine.stack.append(True),  # NEWTRUE
    0x89: lambda machine: machine.stack.append(False),  # NEWFALSE
    0x68: lambda machine: machine.stack.append(machine.memo[machine.integer(1)]),  # BINGET
    0x6A: lambda machine: machine.stack.append(machine.memo[machine.integer(4)]),  # LONG_BINGET
    # lists and tuples
    0x28: lambda machine: machine.marks.append(len(machine.stack)),  # MARK
    0x5D: lambda machine: machine.stack.append([]),  # EMPTY_LIST
    0x61: _Machine.append,  # APPEND
    0x65: _Machine.extend,  # APPENDS
    0x29: lambda machine: machine.stack.append(()),  # EMPTY_TUPLE
    0x85: lambda machine: machine.make_tuple(1),  # TUPLE1
    0x86: lambda machine: machine.make_tuple(2),  # TUPLE2
    0x87: lambda machine: machine.make_tuple(3),  # TUPLE3
    0x74: lambda machine: machine.stack.append(tuple(machine.since_mark())),  # TUPLE
    # names, calls, states
    0x63: lambda machine: machine.push_name(f"{machine.line()}.{machine.line()}"),  # GLOBAL
    0x93: _Machine.push_name_from_stack,  # STACK_GLOBAL
    0x52: _Machine.call,  # REDUCE
    0x62: _Machine.set_state,  # BUILD
    # what the program says of itself: its protocol, and the length of a frame
    0x80: lambda machine: machine.integer(1),  # PROTO
    0x95: lambda machine: machine.integer(8),  # FRAME
}
