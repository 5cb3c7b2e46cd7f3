"""What the benchmark says of its rows: a table, a CSV, four plots, and how time grows in words."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from realm_min.app.console import Console
from realm_min.files.atomic import write_atomically

from .bench_clock import NEED, Row
from .bench_search import DIMENSIONS

COLUMNS = ["section", "contender", "blocks", "queries", "k", "tokens", "repeats", "seconds", "floor", "share_of_floor"]
COLUMNS += ["against_torch", "against_faiss", "extra_bytes", "rescored_groups", "groups", "check"]
NAMES = {"torch": "transformers' way", "faiss": "FAISS flat", "mips_topk": "mips_topk"}
NAMES |= {f"index {kind}": f"BlockIndex, {kind}" for kind in ("float32", "bfloat16", "int8")}


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def show(rows: list[Row], console: Console) -> None:
    table = Table("work", "contender", title="times in milliseconds; ×: times as fast as the peer")
    for column in ("time", "floor", "share", "× torch", "× FAISS", "extra MB", "rescored"):
        table.add_column(column, justify="right")
    table.add_column("checked")
    last = None
    for row in rows:
        if row["section"] == "search":
            work = f"{row['blocks']:,} blocks, {row['queries']} queries, k={row['k']}"
        elif row["section"].startswith("spans"):
            work = f"{row['section']}, {row['blocks']} x {row['tokens']}"
        else:
            work = f"{row['section']}: {row['blocks']:,}, k={row['k']}"
        if last not in (None, work):
            table.add_section()
        table.add_row(
            work if work != last else "",
            str(row["contender"]),
            milliseconds(row["seconds"]),
            milliseconds(row["floor"]),
            f"{row['share_of_floor']:.0%}",
            f"{row['against_torch']:.2f}",
            f"{row['against_faiss']:.2f}" if row.get("against_faiss") else "",
            f"{row['extra_bytes'] / 1e6:.0f}" if row.get("extra_bytes") is not None else "",
            f"{row['rescored_groups']:,.0f} of {row['groups']:,}" if row.get("groups") else "",
            str(row["check"] or ""),
        )
        last = work
    console.print(table)


def write_csv(rows: list[Row], heading: dict[str, object], path: Path) -> None:
    """The rows, below one comment line for each item of the heading."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {name}: {value}\n" for name, value in heading.items())
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})


def summary(rows: list[Row]) -> list[str]:
    """How time grows over the sweeps, in words."""
    lines = []
    for name in ("index float32", "index int8"):
        by_blocks = [r for r in rows if r["section"] == "time against blocks" and r["contender"] == name]
        by_k = {r["k"]: r["seconds"] for r in rows if r["section"] == "time against k" and r["contender"] == name}
        if len(by_blocks) > 1:
            first, last = by_blocks[0], by_blocks[-1]
            times = last["seconds"] / first["seconds"]
            lines.append(
                f"{name}: {last['blocks'] / first['blocks']:.0f} times the blocks take {times:.1f} times as long"
            )
        if {1, 1000} <= by_k.keys():
            lines.append(f"{name}: k=1000 takes {by_k[1000] / by_k[1]:.2f} times as long as k=1")
    return lines


def plot(rows: list[Row], heading: dict[str, object], out: Path, stem: str) -> list[Path]:
    """Draw the four plots, each with the device and date in its corner."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"matplotlib is missing; {NEED}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = {}
    for axis in ("blocks", "k"):
        chosen = [row for row in rows if row["section"] == f"time against {axis}"]
        if chosen:
            drawn[f"time-against-{axis}"] = draw_sweep(chosen, axis)
    searches = [row for row in rows if row["section"] == "search"]
    if searches:
        drawn["share-of-floor"] = draw_share_of_floor(searches)
        spans = [row for row in rows if row["section"].startswith("spans") and row["contender"] == "ours"]
        drawn["speed-up"] = draw_speed_up(searches, spans)
    for name, figure in drawn.items():
        figure.text(0.995, 0.005, f"{heading['device']}, {heading['date']}", ha="right", va="bottom", fontsize=6)
        figure.tight_layout()
        with write_atomically(out / f"{stem}-{name}.png") as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        pyplot.close(figure)
    return [out / f"{stem}-{name}.png" for name in drawn]


def draw_sweep(rows: list[Row], axis: str) -> Any:
    """Time of one query against the number of blocks, or against k. -> matplotlib's figure"""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
    for contender in dict.fromkeys(row["contender"] for row in rows):
        of = [row for row in rows if row["contender"] == contender]
        axes.plot([r[axis] for r in of], [r["seconds"] * 1e3 for r in of], "o-", label=NAMES[contender])
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="milliseconds")
    fixed = "k = 5" if axis == "blocks" else f"{rows[0]['blocks']:,} blocks"
    axes.set_title(f"One query: time against {axis} ({fixed}, {DIMENSIONS} dimensions)")
    if axis == "k":
        axes.set_ylim(bottom=min(r["seconds"] for r in rows) * 1e3 / 3)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def draw_share_of_floor(searches: list[Row]) -> Any:
    """How near each search comes to what the device can do. -> matplotlib's figure"""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 4.2))
    bars(axes, searches, set(NAMES), lambda row: 100 * row["share_of_floor"])
    axes.set(ylabel="% of the floor reached")
    axes.set_title("Share of the device: scan's bytes over copy bandwidth, or operations over matrix rate", fontsize=10)
    return figure


def draw_speed_up(searches: list[Row], spans: list[Row]) -> Any:
    """Our searches against each peer that was measured, and our span logits. -> matplotlib's figure"""
    from matplotlib import pyplot

    peers = [peer for peer in ("torch", "faiss") if searches[0].get(f"against_{peer}")]
    panels = len(peers) + bool(spans)
    figure, all_axes = pyplot.subplots(panels, 1, figsize=(8.5, 3.4 * panels), squeeze=False)
    for axes, peer in zip(all_axes[:, 0], peers, strict=False):
        bars(axes, searches, NAMES.keys() - {"torch", "faiss"}, lambda row, peer=peer: row[f"against_{peer}"])
        axes.axhline(1, color="black", lw=0.8)
        axes.set(ylabel="times as fast", title=f"{searches[0]['blocks']:,} blocks, against {NAMES[peer]}")
    if spans:
        axes = all_axes[-1, 0]
        labels = [f"{r['section'].removeprefix('spans, ')}\n{r['blocks']} x {r['tokens']}" for r in spans]
        axes.bar(range(len(spans)), [row["against_torch"] for row in spans], 0.6)
        axes.set_xticks(range(len(spans)), labels, fontsize=7)
        axes.axhline(1, color="black", lw=0.8)
        axes.set(ylabel="times as fast", title="span logits, against transformers' module")
        axes.grid(alpha=0.3, axis="y")
    return figure


def bars(axes: Any, searches: list[Row], wanted: set[str], value: Callable[[Row], float | None]) -> None:
    """A group of bars for each number of queries and k, a bar in it for each wanted contender that was measured."""
    cells = list(dict.fromkeys((row["queries"], row["k"]) for row in searches))
    at = {(r["queries"], r["k"], r["contender"]): r for r in searches}
    contenders = [name for name in NAMES if name in wanted and (*cells[0], name) in at]
    for i, contender in enumerate(contenders):
        heights = [value(at[(*cell, contender)]) or 0 for cell in cells]
        x = np.arange(len(cells)) + (i - (len(contenders) - 1) / 2) * 0.8 / len(contenders)
        axes.bar(x, heights, 0.8 / len(contenders), label=NAMES[contender])
    axes.set_xticks(range(len(cells)), [f"{q} quer{'y' if q == 1 else 'ies'}\nk={k}" for q, k in cells])
    axes.grid(alpha=0.3, axis="y")
    axes.legend()
