"""What verifying found: as an object, a table, JSON and a plot."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..app.console import Console, Text
from ..app.figures import drawable, large_letters, save_figure
from ..app.printable import printable
from .known import KNOWN_TOLERANCE, KnownValue
from .measure import FLOAT32_ROUNDING, Error
from .stages import Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A table this wide shows absolute and relative errors too; a narrower one, units of rounding alone.
WIDE = 100


def finite_or_none(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def plain_error(error: Error) -> dict[str, Any]:
    return {
        "absolute": finite_or_none(error.absolute),
        "relative": finite_or_none(error.relative),
        "float32_roundings": finite_or_none(error.roundings),
        "differing_choices": error.differing,
    }


@dataclass
class Measured:
    """The errors of one path in one stage. `own` is None where the stage cannot be computed by itself."""

    accumulated: Error
    own: Error | None
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.accumulated.relative <= self.tolerance and self.own_passed

    @property
    def own_passed(self) -> bool:
        return self.own is None or self.own.relative <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        return {
            **plain_error(self.accumulated),
            "own": None if self.own is None else plain_error(self.own),
            "tolerance": self.tolerance,
            "passed": self.passed,
        }


@dataclass
class Row:
    """A stage, what its errors are relative to, what is wrong with its weights, and each path's errors."""

    stage: Stage
    scale: float
    weights: dict[str, str]
    errors: dict[str, Measured] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.weights and all(error.passed for error in self.errors.values())

    @property
    def at_fault(self) -> bool:
        """Whether the stage itself is wrong, rather than what it was given."""
        return bool(self.weights) or not all(error.own_passed for error in self.errors.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.stage.name,
            "part": self.stage.part,
            "label": self.stage.label,
            "scale": finite_or_none(self.scale),
            "passed": self.passed,
            "at_fault": self.at_fault,
            "weights": self.weights,
            "errors": {path: found.to_dict() for path, found in self.errors.items()},
        }


@dataclass
class Answer:
    """The answer of a model that holds its blocks: the text, and the number of the block."""

    text: str
    block: int


@dataclass
class Report:
    """Everything that `verify` found.

    weights: problems of weights by key, `differences` those to the checkpoint verified `against`, by key.
    left_out: paths that this machine lacks, and why.
    """

    kind: str
    sizes: dict[str, int]
    inputs: dict[str, list[int]]
    rows: list[Row]
    tolerances: dict[str, float | None]
    weights: dict[str, str]
    answer: Answer | None = None
    checkpoint: str = ""
    text: str | None = None
    seed: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    against: str | None = None
    differences: dict[str, str] = field(default_factory=dict)
    known: str | None = None
    known_values: list[KnownValue] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        return list(self.tolerances)

    @property
    def passed(self) -> bool:
        return (
            all(row.passed for row in self.rows)
            and not (self.weights or self.differences)
            and all(value.passed for value in self.known_values)
        )

    @property
    def first(self) -> Row | None:
        """The first stage that is past its tolerance or has damaged weights."""
        return next((row for row in self.rows if not row.passed), None)

    def first_of(self, path: str) -> Row | None:
        """The first stage past its tolerance in one path."""
        return next((row for row in self.rows if path in row.errors and not row.errors[path].passed), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. An error that is null is infinite: something was not finite."""
        return {
            "checkpoint": self.checkpoint,
            "kind": self.kind,
            "passed": self.passed,
            "first_failure": self.first and self.first.stage.name,
            "sizes": self.sizes,
            "seed": self.seed,
            "text": self.text,
            "inputs": self.inputs,
            "answer": self.answer and vars(self.answer),
            "paths": self.paths,
            "left_out": self.left_out,
            "stages": [row.to_dict() for row in self.rows],
            "weights": self.weights,
            "against": self.against,
            "differences": self.differences,
            "known": self.known,
            "known_values": [vars(value) for value in self.known_values],
        }


# --- Table ------------------------------------------------------------------------------------------------------------


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the table of stages, how to read it, and the verdict."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 160)
    sizes = report.sizes
    console.print(
        Text.assemble(
            (printable(report.checkpoint), "bold"),
            f"   {report.kind}, {sizes['layers']} layers, hidden size {sizes['hidden']}, {sizes['weights']:,} weights",
        )
    )
    given = f"inputs: ids drawn with seed {report.seed}" + ("" if report.text is None else f", and {report.text!r}")
    console.print(Text(given, style="dim"))
    for path, why in report.left_out.items():
        console.print(Text(f"without {path}: {why}", style="dim"))
    console.print()
    console.print(stage_table(report, wide=console.width >= WIDE))
    if report.answer:
        console.print(f"answer: {report.answer.text!r}, from block {report.answer.block}")
    print_legend(report, console)
    for title, found in (
        ("Weights that no training makes", report.weights),
        (f"Weights that differ from {report.against}", report.differences),
    ):
        if found:
            console.print()
            console.print(Text(printable(title), style="bold red"))
            for key, what in found.items():
                console.print(printable(f"  {key}: {what}"))
    if report.known_values:
        console.print(Text(f"\nPublished values of {report.known}, to {KNOWN_TOLERANCE:g}", style="bold"))
        console.print(known_table(report))
    console.print(verdict(report))


def stage_table(report: Report, wide: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\nstage", no_wrap=True)
    measures = {path: measures_of(report, path, wide) for path in report.paths}
    for path, names in measures.items():
        for i, name in enumerate(names):
            table.add_column(f"{'│ ' + path if i == 0 else ''}\n{'│ ' if i == 0 else ''}{name}", no_wrap=True,
                             justify="left" if i == 0 else "right")  # fmt: skip
    table.add_column("\n", no_wrap=True)

    part = None
    for row in report.rows:
        if row.stage.part != part and row.stage.part:
            table.add_row(
                Text(row.stage.part, style="bold"),
                *("│" if i == 0 else "" for names in measures.values() for i in range(len(names))),
            )
        part = row.stage.part
        cells = []
        for path, names in measures.items():
            for i, name in enumerate(names):
                cell = cell_of(row.errors.get(path), name, bool(row.stage.choices))
                cells.append(Text.assemble(("│ ", ""), cell) if i == 0 else cell)
        mark = Text("ok", style="green")
        if not row.passed:
            mark = Text("✗ wrong here" if row.at_fault else "✗ wrong from above", style="bold red")
            if row is report.first:
                mark.append("  ◄ first")
        table.add_row(f"{'  ' if part else ''}{row.stage.label}", *cells, mark)
    return table


def measures_of(report: Report, path: str, wide: bool) -> list[str]:
    """Columns of a path. Units of float32 rounding say nothing of a path in float64."""
    if report.tolerances[path] is not None:
        return ["rel"]
    return ["abs", "rel", "u", "own"] if wide else ["u", "own"]


def cell_of(measured: Measured | None, name: str, choice: bool) -> Text:
    error = None if measured is None else measured.own if name == "own" else measured.accumulated
    if measured is None or error is None:
        return Text("–", style="dim")
    failed = error.relative > measured.tolerance
    style = "bold red" if failed else ""
    if not math.isfinite(error.relative):
        return Text("nan", style=style)
    if choice and error.absolute == 0:
        return Text("same")
    value = {"abs": error.absolute, "rel": error.relative, "u": error.roundings, "own": error.roundings}[name]
    if value == 0:
        return Text("0", style=style)
    if name in ("u", "own"):
        return Text(f"{value:.1f}" if value < 1e4 else f"{value:.0e}", style=style)
    return Text(f"{value:.1e}", style=style)


def print_legend(report: Report, console: Console) -> None:
    lines = [
        "",
        "Errors are differences from the book in float64 (textbook.py), the largest in each stage.",
        "  abs  as it is     rel  over the largest number of the stage; of relevances, the largest sum of |terms|",
        f"  u    rel in units of float32 rounding, 2^-24 = {FLOAT32_ROUNDING:.1e}: what rounding one number may cost",
        "  own  u of the stage alone, when it is given the reference's values; the others add up from the inputs on",
        "  nan  something is not finite     –  this path does not compute the stage by itself     "
        "same  chose as the reference did",
        "“whole” rows call the model as a user does. Tolerances on rel and own: "
        + ", ".join(sorted({f"{row.stage.tolerance:g} ({row.stage.tolerance / FLOAT32_ROUNDING:.0f} u)"
                            + (" for losses" if "loss" in row.stage.label else "") for row in report.rows}))
        + "".join(f", {path} {tolerance:g}" for path, tolerance in report.tolerances.items() if tolerance) + ".",
    ]  # fmt: skip
    for line in lines:
        console.print(Text(line, style="dim"))


def known_table(report: Report) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("value", "published", "found", ""):
        table.add_column(heading)
    for value in report.known_values:
        shown = (x if isinstance(x, str) else f"{x:.4f}" for x in (value.expected, value.found))
        table.add_row(value.name, *shown, Text("ok", "green") if value.passed else Text("✗", "bold red"))
    return table


def verdict(report: Report) -> Text:
    if report.passed:
        return Text(
            f"\nPASSED: {len(report.rows)} stages in {len(report.paths)} paths within their tolerances"
            + (", and the published values agree" if report.known_values else ""),
            style="bold green",
        )
    lines = ["", "FAILED"]
    for path in report.paths:
        if row := report.first_of(path):
            found = row.errors[path]
            late = found.accumulated.relative > found.tolerance
            which = found.accumulated if late or found.own is None else found.own
            size = "not finite" if not math.isfinite(which.relative) else f"{which.relative:.1e} relative"
            lines.append(f"  {path}: first at {where(row)}, {size}, tolerance {found.tolerance:g}")
    faulty = [row for row in report.rows if row.weights]
    lines += [f"  weights of {where(row)}: {key}" for row in faulty for key in row.weights]
    read = {key for row in report.rows for key in row.weights}
    lines += [f"  weights that no stage reads: {key}" for key in report.weights if key not in read]
    if report.differences:
        lines.append(f"  weights that differ from {report.against}: {len(report.differences)}")
    wrong = [value.name for value in report.known_values if not value.passed]
    if wrong:
        lines.append(f"  published values of {report.known}: {', '.join(wrong)}")
    return Text("\n".join(map(printable, lines)), style="bold red")


def where(row: Row) -> str:
    return f"{row.stage.part + ', ' if row.stage.part else ''}{row.stage.label}"


# --- Plot -------------------------------------------------------------------------------------------------------------

COLOURS = {
    "float32": "tab:blue",
    "float64": "tab:gray",
    "transformers": "tab:orange",
    "triton": "tab:green",
    "against": "tab:purple",
}


@large_letters()
def plot(report: Report, path: Path) -> None:
    """Draw the relative error of every path by depth, accumulated above, each stage's own below, as a PNG."""
    from matplotlib.figure import Figure

    rows = report.rows
    figure = Figure(figsize=(max(8, 0.22 * len(rows) + 3), 8.5), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    titles = (
        "Accumulated error: from the inputs to this stage",
        "Own error: this stage alone, given the reference's values",
    )
    for axes, title in zip(panels, titles, strict=True):
        draw_errors(axes, report, own=axes is panels[1])
        axes.set_title(title, loc="left")
    panels[0].legend(ncols=3)
    ticks = [f"{row.stage.part + ': ' if row.stage.part else ''}{row.stage.label}" for row in rows]
    panels[1].set_xticks(range(len(rows)), ticks, rotation=90)
    panels[1].set_xlim(-0.7, len(rows) - 0.3)
    figure.supxlabel("Exact zeros are not drawn. Errors above 1, and what is not finite, are drawn at 1.")
    figure.suptitle(f"{drawable(report.checkpoint)}  ({report.kind}): error by depth against float64")
    save_figure(figure, path)


def draw_errors(axes: Axes, report: Report, own: bool) -> None:
    """One panel of `plot`: a line for each path, what is past its tolerance ringed in red, and the bounds."""
    rows = report.rows
    for name in report.paths:
        xs, ys, failed = [], [], []
        for x, row in enumerate(rows):
            error = row.errors.get(name)
            error = error and (error.own if own else error.accumulated)
            if error is None or error.relative == 0:
                continue
            xs.append(x)
            ys.append(min(error.relative, 1.0))
            failed.append(error.relative > row.errors[name].tolerance)
        colour = COLOURS.get(name)
        axes.plot(xs, ys, marker="o", markersize=3.5, linewidth=1.2, label=name, color=colour)
        bad = [(x, y) for x, y, wrong in zip(xs, ys, failed, strict=True) if wrong]
        if bad:
            axes.scatter(*zip(*bad, strict=True), s=60, facecolors="none", edgecolors="red", zorder=3)
    axes.step(range(len(rows)), [row.stage.tolerance for row in rows], where="mid", color="red", linestyle="--",
              linewidth=1, label="tolerance in float32")  # fmt: skip
    axes.axhline(FLOAT32_ROUNDING, color="black", linestyle=":", linewidth=1, label="float32 rounding, 2⁻²⁴")
    axes.set_yscale("log")
    axes.set_ylabel("relative error")
    axes.grid(axis="y", alpha=0.3)
    for x in range(1, len(rows)):
        if rows[x].stage.part != rows[x - 1].stage.part:
            axes.axvline(x - 0.5, color="black", linewidth=0.8)
