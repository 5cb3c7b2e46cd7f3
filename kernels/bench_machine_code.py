"""What a kernel compiles to, for a GPU that is not here: Triton compiles ahead of time and brings a disassembler.

Counted are registers and bytes spilled to local memory of a thread, shared memory of a program, and instructions as
they stand in the code: a loop's once, unrolled ones each; of the whole kernel, and of its loop, the largest that holds
no other. Loads are from memory, by width: "128:8 8:1" are eight of 128 bits and one of 8.

Threads of a warp hand numbers to each other by shuffles, warps by shared memory and barriers. More registers or shared
memory a program: fewer programs at once.
"""

from __future__ import annotations

import collections
import inspect
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from .triton_language import triton

TOOLS = Path(inspect.getfile(triton)).parent / "backends/nvidia/bin"
WIDTHS = {"": 32, "U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}  # bits, by suffix
# A root or quotient that PTX lets be wrong by some units in the last place, or that flushes subnormals.
APPROXIMATE = re.compile(r"\b((?:sqrt|rsqrt|rcp|div)\.(?:approx|full)[.\w]*)")


class Counts(NamedTuple):
    """Instructions, of them shuffles and barriers; products on tensor cores and loads as "name:count name:count"."""

    instructions: int
    shuffles: int
    barriers: int
    tensor_core: str
    loads: str


class Code(NamedTuple):
    registers: int  # a thread
    spilled: int  # bytes a thread
    shared: int  # bytes a program
    whole: Counts
    loop: Counts
    approximations: str  # roots and quotients that are not rounded right


def compile_ahead(kernel: Any, types: dict[str, str], constexprs: dict[str, Any], architecture: int, **options: Any):  # noqa: ANN201
    """-> triton.compiler.CompiledKernel, for compute capability `architecture` / 10. Not where Triton interprets.

    `types` names Triton's type of each argument that is no constexpr, with ":16" where 16 divides an address or number.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert set(types) | set(constexprs) == set(kernel.arg_names), f"{kernel.__name__}: arguments differ"
    signature = {name: types[name].partition(":")[0] if name in types else "constexpr" for name in kernel.arg_names}
    divisors = {
        (kernel.arg_names.index(name),): [["tt.divisibility", int(kind.partition(":")[2])]]
        for name, kind in types.items()
        if ":" in kind
    }
    source = ASTSource(kernel, signature, constexprs, divisors)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def disassembled(compiled: Any) -> Code:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", cubin)
        text = tool("nvdisasm", "--print-code", cubin)
    [line] = re.findall(rf"Function {compiled.metadata.name}:\s*(.*)", usage)
    bytes_of = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)}
    instructions, loop = parsed(text)
    return Code(
        bytes_of["REG"],
        bytes_of["STACK"] + bytes_of["LOCAL"],  # spills count as stack; local memory: arrays indexed at run time
        compiled.metadata.shared,
        counted(instructions),
        counted(loop),
        " ".join(sorted(set(APPROXIMATE.findall(compiled.asm["ptx"])))),
    )


def tool(name: str, *arguments: Any) -> str:
    return subprocess.run([TOOLS / name, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def parsed(disassembly: str) -> tuple[list[str], list[str]]:
    """The instructions, and those of the largest loop without a loop inside: from a label to the branch back to it."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            # A branch to itself ends the program's padding.
            target = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", instruction[1])
            if target and labels.get(target[1], len(instructions)) < len(instructions):
                loops.append(range(labels[target[1]], len(instructions) + 1))
            instructions.append(instruction[1])
    innermost = [x for x in loops if not any(y != x and x.start <= y.start and y.stop <= x.stop for y in loops)]
    largest = max(innermost, key=len, default=range(0))
    return instructions, instructions[largest.start : largest.stop]


def counted(instructions: list[str]) -> Counts:
    names = [re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".") for instruction in instructions]
    kinds = collections.Counter(name[0] for name in names)
    products = collections.Counter(".".join(name) for name in names if "MMA" in name[0])
    loads = collections.Counter(
        next((WIDTHS[part] for part in name[1:] if part in WIDTHS), 32)
        for name in names
        if name[0] in ("LDG", "LDGSTS")
    )
    return Counts(
        len(names),
        kinds["SHFL"],
        kinds["BAR"],
        " ".join(f"{name}:{count}" for name, count in sorted(products.items())),
        " ".join(f"{width}:{count}" for width, count in sorted(loads.items(), reverse=True)),
    )
