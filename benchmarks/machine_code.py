"""What the kernels compile to, for GPUs that are not here: `python benchmarks/machine_code.py` writes machine-code.csv.

Triton compiles ahead of time with its own assembler, and its disassembler says what came out. Counted are registers
and bytes spilled to local memory of a thread, shared memory of a program, and instructions: of the whole kernel, and of
its loop, the largest that holds no other. Loads are from global memory, by width: "128:8 8:1" are eight of 128 bits and
one of 8. Tests hold what compiles to this table (tests/kernels/test_kernels_compile.py).
"""

from __future__ import annotations

import argparse
import collections
import csv
import importlib
import inspect
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 120)  # A100; H100, H200; RTX 5090 and RTX PRO 6000
MODULES = ("mips_topk", "span_logits")
MAIN = re.compile(  # of each kernel what is launched most
    r"scan (fp32|bf16|i8) D=128 Q=(1|64) G=(?!16\b)\d+( NORM=False)?|scan (bf16|i8) D=128 Q=512 G=128"
    r"|filter bf16 D=128|rescore bf16 D=128 ALL=\w+|prepare bf16 D=100|certify RESIDUAL=True|unpack"
    r"|span (logits|gradients) (fp32|bf16) H=256 stride i32:16|span (best|coefficients) fp32 H=256 stride i32:16"
    r"|span totals|span choice"
)
TOOLS = Path(inspect.getfile(triton)).parent / "backends/nvidia/bin"
TABLE = Path(__file__).with_name("machine-code.csv")
WIDTHS = {"": 32, "U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}  # bits, by suffix


class Variant(NamedTuple):
    """As `compile_variants` of a kernel's module yields it, and that module."""

    module: str
    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any]


def variants() -> Iterator[Variant]:
    for module in MODULES:
        for variant in importlib.import_module(f"realm_min.kernels.{module}").compile_variants():
            yield Variant(module, *variant)


def compiled(variant: Variant, architecture: int) -> Any:
    """Triton's compilation of a variant, with its texts in `asm`, for compute capability `architecture` / 10."""
    kernel, signature = variant.kernel, variant.signature
    assert set(signature) | set(variant.constexprs) == set(kernel.arg_names), f"{variant.name}: arguments differ"
    types = {name: signature[name].partition(":")[0] if name in signature else "constexpr" for name in kernel.arg_names}
    divisors = {
        (kernel.arg_names.index(name),): [["tt.divisibility", int(kind.partition(":")[2])]]
        for name, kind in signature.items()
        if ":" in kind
    }
    source = ASTSource(kernel, types, variant.constexprs, divisors)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=variant.options)


def tool(name: str, *arguments: Any) -> str:
    return subprocess.run([TOOLS / name, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def facts(variant: Variant, architecture: int) -> dict[str, Any]:
    """A row of the table."""
    code = compiled(variant, architecture)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "cubin")
        cubin.write_bytes(code.asm["cubin"])
        usage = tool("cuobjdump", "--dump-resource-usage", cubin)
        disassembly = tool("nvdisasm", "--print-code", cubin)
    [line] = re.findall(rf"Function {code.metadata.name}:\s*(.*)", usage)
    bytes_of = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)}
    instructions, loop = parsed(disassembly)
    whole, inner = counted(instructions), counted(loop)
    return {
        "module": variant.module,
        "variant": variant.name,
        "architecture": f"sm_{architecture}",
        "fp fusion": variant.options["enable_fp_fusion"],
        "registers": bytes_of["REG"],
        # What is spilled counts as stack; local memory is for arrays that are indexed at run time.
        "spilled bytes": bytes_of["STACK"] + bytes_of["LOCAL"],
        "shared bytes": code.metadata.shared,
        **{name: whole[name] for name in COUNTS},
        **{f"loop {name}": inner[name] for name in COUNTS},
        "approximations": " ".join(sorted(set(APPROXIMATE.findall(code.asm["ptx"])))),
    }


COUNTS = ("instructions", "shuffles", "barriers", "tensor core", "loads")
# A root or quotient that PTX lets be wrong by some units in the last place, or that flushes subnormals.
APPROXIMATE = re.compile(r"\b((?:sqrt|rsqrt|rcp|div)\.(?:approx|full)[.\w]*)")


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


def counted(instructions: list[str]) -> dict[str, Any]:
    names = [re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".") for instruction in instructions]
    kinds = collections.Counter(name[0] for name in names)
    products = collections.Counter(".".join(name) for name in names if "MMA" in name[0])
    loads = collections.Counter(
        next((WIDTHS[part] for part in name[1:] if part in WIDTHS), 32)
        for name in names
        if name[0] in ("LDG", "LDGSTS")
    )
    return {
        "instructions": len(names),
        "shuffles": kinds["SHFL"],
        "barriers": kinds["BAR"],
        "tensor core": " ".join(f"{name}:{count}" for name, count in sorted(products.items())),
        "loads": " ".join(f"{width}:{count}" for width, count in sorted(loads.items(), reverse=True)),
    }


def read_table(path: Path = TABLE) -> dict[tuple[str, str], dict[str, str]]:
    """Rows by (variant, architecture)."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {(row["variant"], row["architecture"]): row for row in csv.DictReader(lines)}


def assembler(architecture: int) -> str:
    name = "ptxas-blackwell" if architecture >= 100 else "ptxas"
    return re.findall(r"V[\d.]+", tool(name, "--version"))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every variant, not the main ones alone")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, metavar="80")
    parser.add_argument(
        "--shard", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="each N-th, from the I-th"
    )
    parser.add_argument("--out", type=Path, default=TABLE, help="default: %(default)s")
    given = parser.parse_args()
    wanted = (x for x in variants() if given.all or MAIN.fullmatch(x.name))
    versions = ", ".join(f"ptxas {assembler(x)} for sm_{x}" for x in given.architectures)
    with given.out.open("w", encoding="utf-8", newline="") as file:
        print(f"# triton {triton.__version__}; {versions}", file=file)
        writer = None
        for variant in itertools.islice(wanted, given.shard[0], None, given.shard[1]):
            for architecture in given.architectures:
                row = facts(variant, architecture)
                if writer is None:
                    writer = csv.DictWriter(file, row)
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
                print(variant.name, row["architecture"], file=sys.stderr)


if __name__ == "__main__":
    main()
