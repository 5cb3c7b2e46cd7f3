"""The plots of the benchmark's rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from realm_min.app.figures import large_letters, save_figure

from .bench_clock import NEED, Row
from .bench_peers import PEERS
from .bench_search import DIMENSIONS

NAMES = {"torch": "transformers' way", "torch tf32": "the same, TF32", "torch bfloat16": "the same, bfloat16"}
NAMES |= {"torch.compile": "the same, compiled", "faiss": "FAISS flat", "cuvs": "cuVS brute force"}
NAMES |= {"mips_topk": "mips_topk"} | {
    f"index {kind}": f"BlockIndex, {kind}" for kind in ("float32", "bfloat16", "int8")
}
WORKS = ("forward", "best span", "backward", "forward and backward")


@large_letters()
def plot(rows: list[Row], heading: dict[str, object], out: Path, stem: str) -> list[Path]:
    """Draw what was measured, each plot with the device and date in its corner."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"matplotlib is missing; {NEED}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [row for row in rows if row.get("seconds")]
    drawn = {}
    for axis in ("blocks", "k"):
        chosen = [row for row in timed if row["section"] == f"time against {axis}"]
        if chosen:
            drawn[f"time-against-{axis}"] = draw_growth(chosen, axis)
    searches = [row for row in timed if row["section"] == "search"]
    spans = [row for row in timed if row["section"].startswith("spans") and row.get("against_torch")]
    if searches:
        drawn["share-of-floor"] = draw_share_of_floor(searches)
    if searches or spans:
        drawn["speed-up"] = draw_speed_up(searches, spans)
    phases = [row for row in timed if row["section"].startswith("phase ")]
    if phases:
        drawn["phases"] = draw_phases(phases)
    for name, figure in drawn.items():
        figure.text(0.995, 0.005, f"{heading['device']}, {heading['date']}", ha="right", va="bottom")
        figure.tight_layout(rect=(0, 0.05, 1, 1))  # above the corner
        save_figure(figure, out / f"{stem}-{name}.png")
        pyplot.close(figure)
    return [out / f"{stem}-{name}.png" for name in drawn]


def draw_growth(rows: list[Row], axis: str) -> Any:
    """Time of one query against the number of blocks, or against k. -> matplotlib's figure"""
    from matplotlib import pyplot
    from matplotlib.ticker import LogFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5))
    for contender in dict.fromkeys(row["contender"] for row in rows):
        of = [row for row in rows if row["contender"] == contender]
        axes.plot([r[axis] for r in of], [r["seconds"] * 1e3 for r in of], "o-", label=NAMES[contender])
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="milliseconds")
    axes.xaxis.set_major_formatter("{x:,.0f}")  # not powers, whose exponents are small letters
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))
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

    figure, axes = pyplot.subplots(figsize=(12, 5))
    bars(axes, searches, set(NAMES), lambda row: 100 * (row.get("share_of_floor") or 0))
    axes.set(ylabel="% of the floor reached")
    axes.set_title("Share of the device: scan's bytes over copy bandwidth, or operations over matrix rate")
    return figure


def draw_speed_up(searches: list[Row], spans: list[Row]) -> Any:
    """All searches against each peer that was measured, and span logits. -> matplotlib's figure"""
    from matplotlib import pyplot

    peers = [peer for peer in ("torch", "faiss") if any(row.get(f"against_{peer}") for row in searches)]
    panels = len(peers) + bool(spans)
    figure, all_axes = pyplot.subplots(panels, 1, figsize=(12, 4.4 * panels), squeeze=False)
    for axes, peer in zip(all_axes[:, 0], peers, strict=False):
        shown = NAMES.keys() - ({"torch"} if peer == "torch" else set(PEERS))
        bars(axes, searches, shown, lambda row, peer=peer: row.get(f"against_{peer}"))
        axes.axhline(1, color="black", lw=0.8)
        axes.set(ylabel="times as fast", title=f"{searches[0]['blocks']:,} blocks, against {NAMES[peer]}")
    if spans:
        draw_spans(all_axes[-1, 0], spans)
    return figure


def draw_spans(axes: Any, spans: list[Row]) -> None:
    """A group of bars for each kind of work and size, a bar in it for each contender but the first."""
    cells = sorted(
        {(row["blocks"], row["tokens"], row["section"].removeprefix("spans, ")) for row in spans},
        key=lambda cell: (*cell[:2], WORKS.index(cell[2])),
    )
    against = {(r["blocks"], r["tokens"], r["section"].removeprefix("spans, "), r["contender"]): r for r in spans}
    first = next((r["contender"] for r in spans if r["contender"] in ("transformers", "eager")), "eager")
    contenders = [name for name in ("ours", "torch.compile") if any(r["contender"] == name for r in spans)]
    for i, contender in enumerate(contenders):
        heights = [against.get((*cell, contender), {}).get("against_torch") or 0 for cell in cells]
        x = np.arange(len(cells)) + (i - (len(contenders) - 1) / 2) * 0.8 / len(contenders)
        axes.bar(x, heights, 0.8 / len(contenders), label=contender, **looks(contender))
    works = [work.replace(" and ", " and\n") for _, _, work in cells]
    sizes = [f"{blocks} x {tokens}" for blocks, tokens, _ in cells]
    axes.set_xticks(range(len(cells)), map("\n".join, zip(works, sizes, strict=True)))
    axes.axhline(1, color="black", lw=0.8)
    whom = {"transformers": "transformers' module", "eager": "the same in eager torch"}[first]
    axes.set(ylabel="times as fast", title=f"span logits, against {whom}")
    axes.grid(alpha=0.3, axis="y")
    if len(contenders) > 1:
        axes.legend()


def draw_phases(phases: list[Row]) -> Any:
    """Where the time of our searches goes on a GPU: a bar for each search, of its phases. -> matplotlib's figure"""
    from matplotlib import pyplot

    searches = list(dict.fromkeys((row["queries"], row["k"], row["contender"]) for row in phases))
    names = list(dict.fromkeys(row["section"].removeprefix("phase ") for row in phases))
    figure, axes = pyplot.subplots(figsize=(12, 1.6 + 0.34 * len(searches)))
    left = np.zeros(len(searches))
    for name in names:
        times = {
            (r["queries"], r["k"], r["contender"]): r["seconds"] for r in phases if r["section"] == f"phase {name}"
        }
        widths = np.array([max(0.0, times.get(search, 0.0)) * 1e3 for search in searches])
        axes.barh(range(len(searches)), widths, left=left, label=name)
        left += widths
    axes.set_yticks(range(len(searches)), [f"{name.removeprefix('index ')}, Q={q}, k={k}" for q, k, name in searches])
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds", title=f"Phases of a search over {phases[0]['blocks']:,} blocks")
    axes.grid(alpha=0.3, axis="x")
    axes.legend()
    return figure


def looks(contender: str) -> dict[str, Any]:
    """Peers are pale and hatched, so that ours stand out."""
    return dict(alpha=0.55, hatch="//") if contender in PEERS else {}


def bars(axes: Any, searches: list[Row], wanted: set[str], value: Callable[[Row], float | None]) -> None:
    """A group of bars for each number of queries and k, a bar in it for each wanted contender that was measured."""
    cells = sorted({(row["queries"], row["k"]) for row in searches})
    at = {(r["queries"], r["k"], r["contender"]): r for r in searches}
    contenders = [name for name in NAMES if name in wanted and any(row["contender"] == name for row in searches)]
    for i, contender in enumerate(contenders):
        heights = [value(at[(*cell, contender)]) or 0 if (*cell, contender) in at else 0 for cell in cells]
        x = np.arange(len(cells)) + (i - (len(contenders) - 1) / 2) * 0.8 / len(contenders)
        axes.bar(x, heights, 0.8 / len(contenders), label=NAMES[contender], **looks(contender))
    axes.set_xticks(range(len(cells)), [f"{q} quer{'y' if q == 1 else 'ies'}\nk={k}" for q, k in cells])
    axes.grid(alpha=0.3, axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
