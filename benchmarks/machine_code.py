"""What the kernels compile to, for GPUs that are not here: `python benchmarks/machine_code.py` writes machine-code.csv.

How it is counted says kernels/bench_machine_code.py. Tests hold what compiles to this table
(tests/kernels/test_kernels_compile.py).
"""

from __future__ import annotations

import argparse
import csv
import importlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from realm_min.kernels.bench_machine_code import Counts, compile_ahead, disassembled, tool

ARCHITECTURES = (80, 90, 120)  # A100; H100, H200; RTX 5090 and RTX PRO 6000
MODULES = ("mips_topk", "span_logits")
MAIN = re.compile(  # of each kernel what is launched most
    r"scan (fp32|bf16|i8) D=128 Q=(1|64) G=(?!16\b)\d+( NORM=False)?|scan (bf16|i8) D=128 Q=512 G=128"
    r"|filter bf16 D=128|rescore bf16 D=128 ALL=\w+|prepare bf16 D=100|certify RESIDUAL=True|unpack"
    r"|span (logits|gradients) (fp32|bf16) H=256 stride i32:16|span (best|coefficients) fp32 H=256 stride i32:16"
    r"|span totals|span choice"
)
TABLE = Path(__file__).with_name("machine-code.csv")


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


def row_of(variant: Variant, architecture: int) -> dict[str, Any]:
    """A row of the table."""
    code = disassembled(
        compile_ahead(variant.kernel, variant.signature, variant.constexprs, architecture, **variant.options)
    )
    return {
        "module": variant.module,
        "variant": variant.name,
        "architecture": f"sm_{architecture}",
        "fp fusion": variant.options["enable_fp_fusion"],
        "registers": code.registers,
        "spilled bytes": code.spilled,
        "shared bytes": code.shared,
        **{name.replace("_", " "): count for name, count in zip(Counts._fields, code.whole, strict=True)},
        **{f"loop {name}".replace("_", " "): count for name, count in zip(Counts._fields, code.loop, strict=True)},
        "approximations": code.approximations,
    }


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
                row = row_of(variant, architecture)
                if writer is None:
                    writer = csv.DictWriter(file, row)
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
                print(variant.name, row["architecture"], file=sys.stderr)


if __name__ == "__main__":
    main()
