"""The ladders drawn: predicted and measured time by rung."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from realm_min.app.figures import large_letters, save_figure

NEED = "matplotlib is missing: pip install 'realm-min[plot]'"


@large_letters()
def draw(rows: list[dict[str, Any]]) -> Any:
    """-> matplotlib's figure"""
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    for axes, ladder in zip(all_axes, ("search", "spans"), strict=True):
        of = [row for row in rows if row["ladder"] == ladder]
        series = [("predicted at least", "predicted_ms", "0.75"), ("its kernel", "scan_ms", "C0")]
        series = [one for one in (*series, ("the whole rung", "measured_ms", "C3")) if any(one[1] in row for row in of)]
        for place, (label, column, color) in enumerate(series):
            wide = 0.8 / len(series)
            x = [i + (place - (len(series) - 1) / 2) * wide for i in range(len(of))]
            axes.bar(x, [row.get(column, 0.0) for row in of], wide, label=label, color=color)
        axes.set(yscale="log", ylabel="milliseconds", title=ladder)
        axes.yaxis.set_major_formatter("{x:g}")  # 0.1, since the exponents of powers are small letters
        axes.set_xticks(range(len(of)), [row["rung"].replace(" ", "\n") for row in of])
        axes.grid(alpha=0.3, axis="y")
        axes.legend(frameon=False)
    return figure


def write(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(NEED) from error
    matplotlib.use("Agg")
    figure = draw(rows)
    figure.suptitle(title)
    save_figure(figure, path)
