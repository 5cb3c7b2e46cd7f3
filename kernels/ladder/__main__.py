"""Every rung of both ladders, counted, predicted, compiled and, where there is a GPU, measured.

python -m realm_min.kernels.ladder                        (--help for the sizes)
TRITON_INTERPRET=1 python -m realm_min.kernels.ladder     small, without a GPU: how often each rung is wrong
"""

from __future__ import annotations

import argparse
import csv
import itertools
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.table import Table

from realm_min.app.console import Console

from ..bench_machine_code import Counts, compile_ahead, disassembled
from ..triton_language import triton
from . import measure, mips, picture, rows, spans
from .counts import CARDS, Card
from .rows import Row


def grouped(x: float) -> str:
    """Three digits at least."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


COMMAND = "python -m realm_min.kernels.ladder"
COLUMNS = ["ladder", "rung", "memory_bytes", "asked_bytes", "operations", "predicted_ms", "scan_ms", "measured_ms"]
COLUMNS += ["wrong_random", "wrong_close", "error"]
LIMITS = {"dimensions": mips.MOST_DIMENSIONS, "hidden": spans.MOST_HIDDEN}
FORMATS: dict[str, tuple[str, Callable]] = {  # column: heading, how a number is shown
    "rung": ("rung", str),
    "memory_bytes": ("MB from memory", lambda x: grouped(x / 1e6)),
    "asked_bytes": ("MB asked for", lambda x: grouped(x / 1e6)),
    "operations": ("10^9 operations", lambda x: grouped(x / 1e9)),
    "predicted_ms": ("ms at least", lambda x: f"{x:.3g}"),
    "scan_ms": ("kernel, ms", lambda x: f"{x:.3g}"),
    "measured_ms": ("whole, ms", lambda x: f"{x:.3g}"),
    "wrong_random": ("wrong, random", lambda x: f"{x:.1%}"),
    "wrong_close": ("wrong, close", lambda x: f"{x:.1%}"),
    "error": ("largest error", lambda x: f"{x:.0e}"),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND, description=(__doc__ or "").split("\n")[0])
    default = rows.SMALL if mips.INTERPRETED else rows.FULL
    for name, size in default._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default {size:,}")
    parser.add_argument("--card", choices=CARDS, default="H100 SXM", help="to predict for, where there is no GPU")
    parser.add_argument("--architecture", type=int, help="to compile for; default the GPU's, or 90: Hopper")
    parser.add_argument("--no-code", action="store_true", help="compile nothing ahead of time")
    parser.add_argument("--repeats", type=int, default=20, help="of each measurement")
    parser.add_argument("--csv", type=Path, help="a file for all figures; each row is written as it is measured")
    parser.add_argument("--plot", type=Path, help="a PNG of predicted and measured times")
    options = parser.parse_args(arguments)
    for name in (*default._fields, "repeats"):
        most = LIMITS.get(name, options.blocks if name == "k" else 2**31 - 1)
        if not 1 <= getattr(options, name) <= most:
            parser.error(f"--{name} is {getattr(options, name)}: give 1 to {most}")
    for path in (options.csv, options.plot):
        if path and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no folder {path.absolute().parent}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    device = where()
    card, title = CARDS[options.card], f"predicted for {options.card}"
    if device == "cuda":
        name = torch.cuda.get_device_name()
        card = measure.measured_card(next((c for known, c in CARDS.items() if known.split()[0] in name), None))
        title = f"{name}, torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}"
    console.print(f"{title}: {card.bandwidth / 1e12:.2f} TB/s;", *rates(card))
    made = run(options, card, device, title, console)
    for ladder in ("search", "spans"):
        console.print(table(ladder, [row for row in made if row["ladder"] == ladder]))
    if options.plot:
        picture.write(made, title, options.plot)
    if mips.INTERPRETED:
        console.print("machine code: unset TRITON_INTERPRET")
    elif not options.no_code:
        console.print(code_table(options, architecture(options.architecture)))
    if device is None:
        console.print(f"nothing ran. On a machine with a GPU: {COMMAND}; small, without: TRITON_INTERPRET=1 {COMMAND}")


def where() -> str | None:
    """The device on which the rungs can run."""
    if mips.INTERPRETED:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else None


def rates(card: Card) -> list[str]:
    return [f"{kind} {rate / 1e12:.0f} T/s" for kind, rate in card.rates.items()]


def run(options: argparse.Namespace, card: Card, device: str | None, title: str, console: Console) -> list[Row]:
    """All rows; each is written to the CSV at once, so that a run that is stopped has what it measured."""
    sizes = rows.Sizes(*(getattr(options, name) for name in rows.Sizes._fields))
    console.print(f"{sizes}".replace("Sizes", "sizes"))
    made = []
    both = (ladder(sizes, card, device, options.repeats) for ladder in (rows.search_rows, rows.span_rows))
    file = open(options.csv, "w", encoding="utf-8", newline="") if options.csv else None
    try:
        if file:
            file.write(f"# {title}\n# bandwidth {card.bandwidth:.4g}; {card.rates}\n# {sizes}\n")
            csv.writer(file).writerow(COLUMNS)
        for row in itertools.chain.from_iterable(both):
            made.append(row)
            if file:
                csv.writer(file).writerow([row.get(column, "") for column in COLUMNS])
                file.flush()
    finally:
        if file:
            file.close()
    return made


def table(ladder: str, made: list[Row]) -> Table:
    shown = [column for column in FORMATS if any(column in row for row in made)]
    found = Table(title=ladder)
    for column in shown:
        found.add_column(FORMATS[column][0], justify="left" if column == "rung" else "right")
    for row in made:
        found.add_row(*(FORMATS[column][1](row[column]) if column in row else "" for column in shown))
    return found


def architecture(asked: int | None) -> int:
    if asked is None and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return 10 * major + minor
    return asked or 90


def code_table(options: argparse.Namespace, sm: int) -> Table:
    """What the compiler made of each rung's kernel."""
    found = Table(title=f"machine code for sm_{sm} (triton {triton.__version__}); rung 6 scans with rung 5's kernel")
    for heading in ("rung", "registers", "spilled", "shared", *Counts._fields):
        found.add_column(heading.replace("_", " "), justify="left" if heading == "rung" else "right")
    for compiled in (mips.compiled_as(options.dimensions), spans.compiled_as(options.hidden)):
        for name, (kernel, pointers, constexprs) in compiled.items():
            code = disassembled(compile_ahead(kernel, types_of(kernel, pointers, constexprs), constexprs, sm))
            numbers = (code.registers, code.spilled, code.shared, *code.whole)
            found.add_row(name, *(f"{x:,}" if isinstance(x, int) else x for x in numbers))
    return found


def types_of(kernel, pointers: dict[str, str], constexprs: dict[str, int]) -> dict[str, str]:  # noqa: ANN001
    """Of what is neither a pointer nor a constexpr, two are floats, and 16 divides two more, as it does in REALM."""
    others = dict(c="fp32", eps="fp32", d="i32:16", hidden="i32:16")
    plain = {name: others.get(name, "i32") for name in kernel.arg_names if name not in constexprs}
    return plain | {name: f"{kind}:16" for name, kind in pointers.items()}


if __name__ == "__main__":
    main()
