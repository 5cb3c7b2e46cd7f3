"""A stack machine that reads pickles and runs nothing.

A pickle is a program for a stack machine, and Python's own machine calls whatever the program asks for. This one has
the instructions by which arrays and tensors are written (protocols 2 to 5; named as in Python's `pickletools`), and no
other. Asked to call something it asks its subclass, which compares the name with those it knows and builds what is
meant; nothing is imported and nothing called.

Every instruction pushes at most one thing, which is a number, a name, a piece of the program or a reference to what is
there already: so memory is bounded by the length of the program.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from typing import Any


class Name(str):
    """The name of a Python object that a pickle asks for; it is compared, never looked up."""


class Machine:
    """`run` follows the program in `data` from byte `start` to its STOP.

    What a program must not do ends in a ValueError that names it. What it cannot do, such as take from an empty stack
    or append to a number, ends first in the error that Python raises of itself: LookupError, AttributeError, TypeError.

    Of a subclass: the `names` that a program may ask for, and `needed_by` whom; `instructions` beside those below; what
    it means to `call` a name, and to give an object its state.
    """

    names: frozenset[str] = frozenset()
    needed_by = "nothing"
    instructions: Mapping[int, Callable[[Any], object]] = {}

    def __init__(self, data: bytes | mmap.mmap, start: int = 0) -> None:
        self.data, self.at = data, start  # the program, and the byte in it that is next
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: list[Any] = []

    def call(self, name: str, arguments: Any) -> Any:
        raise ValueError(f"it calls {name}, which {self.needed_by} do not need")

    def with_state(self, built: Any, state: Any) -> Any:
        raise TypeError

    def run(self) -> None:
        """Follow the program to its STOP. Raises ValueError where it is damaged, or asks for what nobody needs."""
        try:
            self._run()
        except UnicodeError:
            raise ValueError(f"a text in it is damaged, before byte {self.at}") from None
        except (LookupError, AttributeError, TypeError, OverflowError):
            raise ValueError(f"it is truncated or damaged, near byte {min(self.at, len(self.data))}") from None

    def _run(self) -> None:
        while True:
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return
            instruction = _INSTRUCTIONS.get(code) or self.instructions.get(code)
            if instruction is None:
                raise ValueError(
                    f"its instruction {bytes([code])!r} at byte {self.at - 1} is none that {self.needed_by} need"
                )
            instruction(self)

    # What instructions read beside them in the program

    def take(self, length: int) -> bytes:
        begin, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise IndexError
        return self.data[begin : self.at]

    def text(self, length: int) -> str:
        return self.take(length).decode("utf-8", "surrogatepass")

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def signed(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little", signed=True)

    def line(self) -> str:
        begin, self.at = self.at, self.data.find(b"\n", self.at, self.at + 200) + 1
        if self.at == 0:
            raise IndexError
        return self.data[begin : self.at - 1].decode()

    # Instructions

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, place: int) -> None:
        if place != len(self.memo):
            raise ValueError(f"its memo jumps to {place} at byte {self.at}")
        self.memo.append(self.stack[-1])

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
        if len(self.stack) < size:
            raise IndexError
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def push_name(self, full_name: str) -> None:
        if full_name not in self.names:
            raise ValueError(
                f"it asks for {full_name[:200]!r}, which {self.needed_by} do not need: nothing was executed"
            )
        self.push(Name(full_name))

    def push_name_from_stack(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if type(attribute) is not str or type(module) is not str:  # a tuple within a tuple, say, however deep
            raise TypeError
        if len(module) + len(attribute) > 200:
            raise ValueError("it asks for a name of hundreds of letters")
        self.push_name(f"{module}.{attribute}")

    def reduce(self) -> None:
        arguments = self.stack.pop()
        called = self.stack.pop()
        if not isinstance(called, Name):
            raise TypeError
        self.push(self.call(called, arguments))

    def build(self) -> None:
        state, built = self.stack.pop(), self.stack.pop()
        self.push(self.with_state(built, state))


# By their bytes; STOP stands above.
_INSTRUCTIONS: dict[int, Callable[[Machine], object]] = {
    # values
    0x42: lambda machine: machine.push(machine.take(machine.integer(4))),  # BINBYTES
    0x43: lambda machine: machine.push(machine.take(machine.integer(1))),  # SHORT_BINBYTES
    0x8E: lambda machine: machine.push(machine.take(machine.integer(8))),  # BINBYTES8
    0x58: lambda machine: machine.push(machine.text(machine.integer(4))),  # BINUNICODE
    0x8C: lambda machine: machine.push(machine.text(machine.integer(1))),  # SHORT_BINUNICODE
    0x4B: lambda machine: machine.push(machine.integer(1)),  # BININT1
    0x4D: lambda machine: machine.push(machine.integer(2)),  # BININT2
    0x4A: lambda machine: machine.push(machine.signed(4)),  # BININT
    0x4E: lambda machine: machine.push(None),  # NONE
    0x88: lambda machine: machine.push(True),  # NEWTRUE
    0x89: lambda machine: machine.push(False),  # NEWFALSE
    # the memo
    0x94: lambda machine: machine.remember(len(machine.memo)),  # MEMOIZE
    0x71: lambda machine: machine.remember(machine.integer(1)),  # BINPUT
    0x72: lambda machine: machine.remember(machine.integer(4)),  # LONG_BINPUT
    0x68: lambda machine: machine.push(machine.memo[machine.integer(1)]),  # BINGET
    0x6A: lambda machine: machine.push(machine.memo[machine.integer(4)]),  # LONG_BINGET
    # lists and tuples
    0x28: lambda machine: machine.marks.append(len(machine.stack)),  # MARK
    0x5D: lambda machine: machine.push([]),  # EMPTY_LIST
    0x61: Machine.append,  # APPEND
    0x65: Machine.extend,  # APPENDS
    0x29: lambda machine: machine.push(()),  # EMPTY_TUPLE
    0x85: lambda machine: machine.make_tuple(1),  # TUPLE1
    0x86: lambda machine: machine.make_tuple(2),  # TUPLE2
    0x87: lambda machine: machine.make_tuple(3),  # TUPLE3
    0x74: lambda machine: machine.push(tuple(machine.since_mark())),  # TUPLE
    # names, calls, states
    0x63: lambda machine: machine.push_name(f"{machine.line()}.{machine.line()}"),  # GLOBAL
    0x93: Machine.push_name_from_stack,  # STACK_GLOBAL
    0x52: Machine.reduce,  # REDUCE
    0x62: Machine.build,  # BUILD
    # what the program says of itself: its protocol, and the length of a frame
    0x80: lambda machine: machine.integer(1),  # PROTO
    0x95: lambda machine: machine.integer(8),  # FRAME
}
