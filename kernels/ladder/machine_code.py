"""What the compiler made of a rung's kernel, without a GPU: Triton compiles for any of them, and brings a disassembler.

Threads of a warp that must hand numbers to each other do so by shuffles, warps by shared memory and barriers; what a
kernel spends on them it does not spend on its work. More registers or shared memory a program: fewer programs at once.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..triton_language import triton

FLOATS = ("c", "eps")  # arguments that are neither pointers nor whole numbers
MULTIPLES = ("d", "hidden")  # taken for multiples of 16, as they are in REALM
TENSOR_CORES = r"\w*(?:[HIQ]G?MMA|DMMA)"
PATTERNS = {"shuffles": "SHFL", "barriers": "BAR", "tensor_cores": TENSOR_CORES, "loads": "LDG|LDGSTS|UTMALDG"}


class Facts(NamedTuple):
    """Of one kernel. Instructions are counted as they stand in the code: a loop's once, unrolled ones each."""

    registers: int  # a thread
    spilled: int  # bytes a thread
    shared: int  # bytes a program
    instructions: int
    shuffles: int
    barriers: int
    tensor_cores: int
    loads: int  # from memory


def facts(compiled_as: tuple, architecture: int) -> Facts:
    """Compile one of `compiled_as` for an architecture, as 90 for Hopper. Not where Triton interprets."""
    kernel, pointers, constexprs = compiled_as
    compiled = ahead_of_time(kernel, pointers, constexprs, architecture)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(compiled.asm["cubin"])
        usage, code = (disassemble("--dump-resource-usage", file), disassemble("--dump-sass", file))
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", usage)}
    instructions = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", code, re.M)
    counts = {name: sum(bool(re.fullmatch(of, i)) for i in instructions) for name, of in PATTERNS.items()}
    return Facts(numbers["REG"], numbers["STACK"], compiled.metadata.shared, len(instructions), **counts)


def ahead_of_time(kernel, pointers: dict[str, str], constexprs: dict[str, int], architecture: int):  # noqa: ANN201
    """-> triton.compiler.CompiledKernel"""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        kinds = dict.fromkeys(constexprs, "constexpr") | dict.fromkeys(FLOATS, "fp32") | pointers
        types[name] = kinds.get(name, "i32")
        if name in pointers or name in MULTIPLES:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constexprs, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32))


def disassemble(option: str, file: Path) -> str:
    tool = Path(inspect.getfile(triton)).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, file], capture_output=True, text=True, check=True).stdout
