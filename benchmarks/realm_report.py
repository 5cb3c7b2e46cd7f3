"""What `make realm` found: means over seeds with their intervals, a table and two plots, from the CSV of each run.

An interval is Student's 95 % interval of a mean over seeds. A difference to another arm is taken seed by seed, since
both arms of a seed began with the same models, and its interval is that of these differences. What seeds do not show is
how far other questions would differ: for that R@k has the interval of redrawn questions and seeds, too (`bootstrap`).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from realm_min.app.figures import large_letters, save_figure
from realm_min.files.atomic import write_atomically
from realm_min.jobs.loop import read_log
from realm_min.jobs.statistics import Estimate, paired_bootstrap

ARMS = ("ict-again", "ict-same", "realm-still", "realm-permuted", "realm")
TUNED = ("ict-tuned", "realm-tuned")
# The paper's table 2 beside these: what of the settings is another, and what is REALM's of the fine-tuned halves,
# (retriever, encoder).
VARIANTS: dict[str, dict[str, str]] = {
    "realm-tokens": {"masking": "tokens"}, "realm-spans": {"masking": "spans"}, "realm-stale": {},
}  # fmt: skip
HALVES = {"retriever-tuned": (True, False), "encoder-tuned": (False, True), "ict-tuned": (False, False)}
ROWS_2 = {  # of table 2: who was fine-tuned, and whose retriever is measured before that
    "realm-tuned": "realm", "retriever-tuned": "realm", "encoder-tuned": "ict", "ict-tuned": "ict",
    **{f"{name}-tuned": name for name in VARIANTS},
}  # fmt: skip
TABLE_2 = ("realm", *VARIANTS, *ROWS_2)
BEFORE = "ict"  # what all arms begin with: the last row of ict's own run, and the first of realm-still
SWAP = "swap.csv"  # of realm_swap.py
UNFINISHED, LAST = "unfinished.csv", 20  # updates of runs that were stopped, and how many of them are averaged
# What a difference is taken to: ICT that went on for as long, the control without a gradient, and what was tuned first.
BASES = {
    **{arm: (BEFORE, "ict-again", "ict-same", "realm-still") for arm in (*ARMS, *VARIANTS)},
    **{name: ("realm-tuned", "ict-tuned") for name in ROWS_2},
}
# 97.5 % of Student's distribution with 1, 2, … degrees of freedom lie below these.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
LABELS = {
    "ict-again": "ICT continued", "ict-same": "ICT continued, REALM's sentences", "realm-still": "no gradient",
    "realm-permuted": "p(y|z,x) permuted", "realm": "REALM",
}  # fmt: skip
LINES = {"all R@5": "R@5 of 1,009 questions (%)", "retrieval utility": "retrieval utility, nats a masked wordpiece"}

Curves = dict[str, dict[int, dict[str, list[float]]]]  # arm -> seed -> column -> values


def read_curves(folder: Path) -> Curves:
    """The columns of every run's CSV; an arm's begin with what all arms of its seed begin with."""
    curves: Curves = {}
    for path in sorted(folder.glob("*-[0-9]*.csv")):
        arm, _, seed = path.stem.rpartition("-")
        if arm in (BEFORE, *ARMS, *TABLE_2):
            curves.setdefault(arm, {})[int(seed)] = read_log(path)
    before: dict[int, dict[str, list[float]]] = {}
    for seed, columns in curves.get(BEFORE, {}).items():
        before[seed] = {name: values[-1:] for name, values in columns.items()} | {"step": [0.0]}
    for seed, columns in curves.get("realm-still", {}).items():
        before[seed] = before.get(seed, {}) | {name: values[:1] for name, values in columns.items()}
    for arm in (*ARMS, *VARIANTS):
        for seed, columns in curves.get(arm, {}).items():
            if seed in before and columns["step"][0] > 0:
                nan = [float("nan")]
                curves[arm][seed] = {name: [*before[seed].get(name, nan), *values] for name, values in columns.items()}
    return curves | ({BEFORE: before} if before else {})


def interval(values: list[float]) -> Estimate:
    """The mean over seeds and Student's 95 % interval; of one seed, none."""
    found = np.array(values)
    if len(found) < 2:
        return Estimate(float(found.mean()), float("nan"), float("nan"))
    half = STUDENT[len(found) - 2] * float(found.std(ddof=1)) / len(found) ** 0.5
    return Estimate(float(found.mean()), float(found.mean()) - half, float(found.mean()) + half)


def rows(curves: Curves, folder: Path) -> Iterator[dict[str, Any]]:
    """Each arm's last measures: their mean, and the mean difference to each of the arm's bases."""
    for arm in dict.fromkeys((BEFORE, *ARMS, *TABLE_2)):
        runs = {s: c for s, c in curves.get(arm, {}).items() if arm in (BEFORE, *ROWS_2) or len(c["step"]) > 1}
        measures = [name for name in next(iter(runs.values()), {}) if name != "step"]
        for measure in measures:
            last = {seed: columns[measure][-1] for seed, columns in runs.items() if measure in columns}
            row = {"arm": arm, "measure": measure, "against": "", "seeds": len(last)}
            yield row | numbers(interval(list(last.values())))
            for base in BASES.get(arm, ()):
                other = {seed: c[measure][-1] for seed, c in curves.get(base, {}).items() if measure in c}
                both = sorted(last.keys() & other.keys())
                if both and base != arm:
                    found = numbers(interval([last[seed] - other[seed] for seed in both]))
                    found |= redrawn(folder, arm, base, measure, both)
                    yield row | {"against": base, "seeds": len(both)} | found


def unfinished(path: Path) -> Iterator[dict[str, Any]]:
    """Of runs that were stopped: what their last updates measured of their batches, up to the last that all have.

    The batches of a seed are the same in all arms, no sentence comes twice, and a batch is measured before the arm
    learns from it.
    """
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    last = {(row["arm"], row["seed"]): int(row["step"]) for row in found}
    end = min(last.values())
    curves: Curves = {}
    for row in found:
        if end - LAST < int(row["step"]) <= end:
            columns = curves.setdefault(row["arm"], {}).setdefault(int(row["seed"]), {})
            for name in row.keys() - {"arm", "seed", "step"}:
                columns.setdefault(name, []).append(float(row[name]))
    for arm in (arm for arm in ARMS if arm in curves):
        for name in sorted(next(iter(curves[arm].values()))):
            means = {a: {s: float(np.mean(c[name])) for s, c in curves[a].items()} for a in curves}
            row = {"arm": arm, "measure": f"{name.replace('_', ' ')}, updates {end - LAST + 1} to {end}", "against": ""}
            yield row | {"seeds": len(means[arm])} | numbers(interval(list(means[arm].values())))
            for base in (base for base in ("realm-still", "realm-permuted") if arm == "realm" and base in curves):
                both = sorted(means[arm].keys() & means[base].keys())
                found_here = interval([means[arm][seed] - means[base][seed] for seed in both])
                yield row | {"against": base, "seeds": len(both)} | numbers(found_here)


def swapped(path: Path) -> Iterator[dict[str, Any]]:
    """Retrievers of several arms before the encoder of one, and how far each is from that of ICT."""
    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    measures = [name for name in found[0] if name not in ("seed", "encoder", "retriever")]
    for encoder, retriever in dict.fromkeys((row["encoder"], row["retriever"]) for row in found):
        some = {row["seed"]: row for row in found if (row["encoder"], row["retriever"]) == (encoder, retriever)}
        base = {row["seed"]: row for row in found if (row["encoder"], row["retriever"]) == (encoder, BEFORE)}
        for measure in measures:
            row = {"arm": f"{retriever} before the encoder of {encoder}", "measure": measure, "against": ""}
            yield row | {"seeds": len(some)} | numbers(interval([float(of[measure]) for of in some.values()]))
            if retriever != BEFORE:
                both = [float(some[seed][measure]) - float(base[seed][measure]) for seed in some.keys() & base.keys()]
                yield row | {"against": BEFORE, "seeds": len(both)} | numbers(interval(both))


def numbers(found: Estimate, name: str = "") -> dict[str, str]:
    return {f"{name}{part}": f"{value:.3f}" for part, value in found._asdict().items()}


def redrawn(folder: Path, arm: str, base: str, measure: str, seeds: list[int]) -> dict[str, str]:
    """The interval of a difference in R@k when questions and seeds are redrawn."""
    paths = [[folder / f"{name}-{seed}.ranks" for seed in seeds] for name in (base, arm)]
    if not measure.startswith("all R@") or not all(path.is_file() for side in paths for path in side):
        return {}
    k = int(measure.removeprefix("all R@"))
    ranks = [np.array([[int(n) for n in path.read_text().split()] for path in side]) for side in paths]
    first, second = (100 * ((side > 0) & (side <= k)) for side in ranks)
    found = paired_bootstrap(first, second).difference
    return {"bootstrap low": f"{found.low:.3f}", "bootstrap high": f"{found.high:.3f}"}


def write_summary(curves: Curves, folder: Path, path: Path) -> None:
    columns = ["arm", "measure", "against", "seeds", "mean", "low", "high", "bootstrap low", "bootstrap high"]
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows(curves, folder))
        if (folder / UNFINISHED).is_file():
            writer.writerows(unfinished(folder / UNFINISHED))
        if (folder / SWAP).is_file():
            writer.writerows(swapped(folder / SWAP))


@large_letters()
def plot(curves: Curves, measure: str, path: Path) -> None:
    """A measure against updates: the mean of each arm, and its interval over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(ARMS):
        runs = [c for c in curves.get(arm, {}).values() if measure in c and len(c["step"]) > 1]
        if not runs:
            continue
        steps = sorted(set.intersection(*(set(columns["step"]) for columns in runs)))
        found = [interval([columns[measure][columns["step"].index(step)] for columns in runs]) for step in steps]
        axes.plot(steps, [one.mean for one in found], color=f"C{number}", marker="o", markersize=3, label=LABELS[arm])
        axes.fill_between(
            steps, [one.low for one in found], [one.high for one in found], color=f"C{number}", alpha=0.15, linewidth=0
        )
    axes.set(xlabel="updates", ylabel=LINES[measure])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)


@large_letters()
def plot_unfinished(path: Path, out: Path) -> None:
    """Retrieval utility of the batches of runs that were stopped: means of ten updates, each seed thin, all thick."""
    from matplotlib.figure import Figure

    with open(path, encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, arm in ((number, arm) for number, arm in enumerate(ARMS) if arm in {row["arm"] for row in found}):
        curves: dict[str, list[float]] = {}
        for row in found:
            if row["arm"] == arm:
                curves.setdefault(row["seed"], []).append(float(row["retrieval_utility"]))
        tens = [np.array(values[: len(values) // 10 * 10]).reshape(-1, 10).mean(1) for values in curves.values()]
        steps = 10 * (1 + np.arange(min(map(len, tens))))
        for values in tens:
            axes.plot(steps, values[: len(steps)], color=f"C{number}", linewidth=0.7, alpha=0.5)
        mean = np.mean([values[: len(steps)] for values in tens], axis=0)
        axes.plot(steps, mean, color=f"C{number}", linewidth=2.2, marker="o", label=f"{LABELS[arm]}, {len(tens)} seeds")
    axes.set(xlabel="updates", ylabel=LINES["retrieval utility"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, out)


def table_2(curves: Curves) -> Iterator[dict[str, str]]:
    """The paper's table 2 of the runs that are done: exact match after fine-tuning, and R@5 before it, "zero-shot"."""
    for tuned, before in ROWS_2.items():
        row: dict[str, str] = {"run": tuned}
        measured = {"EM": (tuned, "official_exact_match", 100), "R@5 before": (before, "all R@5", 1)}
        for name, (arm, measure, per_cent) in measured.items():
            last = [per_cent * run[measure][-1] for run in curves.get(arm, {}).values() if measure in run]
            if last:
                row |= {f"{name} seeds": str(len(last))} | numbers(interval(last), f"{name} ")
        if len(row) > 1:
            yield row


def report(folder: Path) -> None:
    """Write summary.csv, and the tables and plots that there is something for, beside the runs' CSVs."""
    curves = read_curves(folder)
    if not curves:
        return
    write_summary(curves, folder, folder / "summary.csv")
    found = list(table_2(curves))
    if any("EM seeds" in row for row in found):
        with write_atomically(folder / "table-2.csv") as temporary, open(temporary, "w", newline="") as file:
            parts = [f"{name} {part}" for name in ("EM", "R@5 before") for part in ("seeds", "mean", "low", "high")]
            writer = csv.DictWriter(file, ["run", *parts], restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(found)
    for measure, name in (("all R@5", "recall.png"), ("retrieval utility", "utility.png")):
        if any(measure in c and len(c["step"]) > 1 for arm in ARMS for c in curves.get(arm, {}).values()):
            plot(curves, measure, folder / name)
    if (folder / UNFINISHED).is_file():
        plot_unfinished(folder / UNFINISHED, folder / "unfinished.png")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        report(Path(name))
