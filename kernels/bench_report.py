"""What the benchmark says of its rows: lines as they come, a table, a CSV, and how time grows in words."""

import csv
import re
import statistics
from pathlib import Path

from rich.table import Table

from realm_min.app.console import Console
from realm_min.files.atomic import write_atomically

from .bench_clock import Row

COLUMNS = ["section", "contender", "blocks", "queries", "k", "tokens", "repeats", "seconds", "floor", "share_of_floor"]
COLUMNS += ["against_torch", "against_faiss", "extra_bytes", "rescored_groups", "groups", "check"]
COLUMNS += ["seconds_p10", "seconds_p90", "limited_by", "rescored_rows", "checked_queries", "config", "against_own"]
AGAINST = {"against_torch": "the first peer", "against_faiss": "FAISS", "against_own": "the kernels' own"}
SPAN_TOLERANCE = 1e-4  # of span logits and gradients, relative to the largest
OURS = ("mips_topk", "index", "ours")  # how our contenders' names begin


class RowLog:
    """A CSV that has each row as soon as it was measured, so that a run that is cut short keeps its rows."""

    def __init__(self, path: Path, heading: dict[str, object]):
        self.path = path
        self.file = open(path, "w", encoding="utf-8", newline="")
        self.writer = start_csv(self.file, heading)
        self.file.flush()

    def write(self, row: Row) -> None:
        self.writer.writerow(as_text(row))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def start_csv(file, heading: dict[str, object]) -> csv.DictWriter:
    """Write a comment line for each item of the heading, and the columns' names."""
    file.writelines(f"# {name}: {value}\n" for name, value in heading.items())
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    return writer


def as_text(row: Row) -> dict[str, object]:
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}


def write_csv(rows: list[Row], heading: dict[str, object], path: Path) -> None:
    """The rows, below one comment line for each item of the heading."""
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        start_csv(file, heading).writerows(as_text(row) for row in rows)


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def work_of(row: Row) -> str:
    """What a row measures, whoever does it."""
    if "tokens" in row:
        return f"{row['section']}, {row['blocks']} x {row['tokens']}"
    if "queries" not in row:
        return row["section"]
    if row["section"].startswith("time against"):
        return f"{row['section']}: {row['blocks']:,}, k={row['k']}"
    section = "" if row["section"] == "search" else f"{row['section']}, "
    queries = f"{row['queries']} quer{'y' if row['queries'] == 1 else 'ies'}"
    return f"{section}{row['blocks']:,} blocks, {queries}, k={row['k']}"


def line(row: Row) -> str:
    """A row on a line of its own."""
    parts = [f"{row['contender']} {row.get('config', '')}".strip()]
    if row.get("seconds"):
        low, median, high = (milliseconds(row[name]) for name in ("seconds_p10", "seconds", "seconds_p90"))
        parts.append(f"{median} ms ({low} to {high})")
    if row.get("share_of_floor"):
        parts.append(f"{row['share_of_floor']:.0%} of the floor by {row['limited_by']}")
    parts += [f"{row[name]:.2f}x {peer}" for name, peer in AGAINST.items() if row.get(name)]
    parts += [row["check"]] if row.get("check") else []
    return f"{work_of(row)}: {', '.join(parts)}"


def show(rows: list[Row], console: Console) -> None:
    table = Table("work", "contender", title="times in milliseconds; ×: times as fast as the peer")
    for column in ("10 %", "time", "90 %", "floor", "share", "× first", "× FAISS", "extra MB", "rescored"):
        table.add_column(column, justify="right")
    table.add_column("checked")
    last = None
    for row in rows:
        work = work_of(row)
        if last not in (None, work):
            table.add_section()
        against = row.get("against_torch") or row.get("against_own")
        table.add_row(
            work if work != last else "",
            f"{row['contender']} {row.get('config', '')}".strip(),
            *(milliseconds(row.get(name)) for name in ("seconds_p10", "seconds", "seconds_p90", "floor")),
            f"{row['share_of_floor']:.0%}" if row.get("share_of_floor") else "",
            f"{against:.2f}" if against else "",
            f"{row['against_faiss']:.2f}" if row.get("against_faiss") else "",
            f"{row['extra_bytes'] / 1e6:.0f}" if row.get("extra_bytes") is not None else "",
            f"{row['rescored_groups']:,.0f} of {row['groups']:,}" if row.get("rescored_groups") else "",
            row.get("check") or "",
        )
        last = work
    console.print(table)


def summary(rows: list[Row]) -> list[str]:
    """How time grows, in words."""
    lines = []
    timed = [row for row in rows if row.get("seconds")]
    for name in ("index float32", "index int8"):
        by_blocks = [r for r in timed if r["section"] == "time against blocks" and r["contender"] == name]
        by_k = {r["k"]: r["seconds"] for r in timed if r["section"] == "time against k" and r["contender"] == name}
        if len(by_blocks) > 1:
            first, last = by_blocks[0], by_blocks[-1]
            times = last["seconds"] / first["seconds"]
            lines.append(
                f"{name}: {last['blocks'] / first['blocks']:.0f} times the blocks take {times:.1f} times as long"
            )
        if {1, 1000} <= by_k.keys():
            lines.append(f"{name}: k=1000 takes {by_k[1000] / by_k[1]:.2f} times as long as k=1")
    return lines


def proposals(rows: list[Row]) -> list[str]:
    """The fastest configuration that a sweep found right, for each index and number of queries."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.get("against_own") and row["check"] == "exact":
            found.setdefault((row["contender"], row["queries"]), []).append(row)
    lines = []
    for (contender, queries), of in found.items():
        best = max(of, key=lambda row: row["against_own"])
        spread = statistics.median(row["seconds_p90"] / row["seconds_p10"] for row in of)
        lines.append(
            f"sweep, {contender}, queries: {queries}: of {len(of)} the fastest is {best['config']}, "
            f"{best['against_own']:.2f}x the kernels' own (90th over 10th percentile: {spread:.2f})"
        )
    return lines


def wrong(rows: list[Row]) -> list[str]:
    """Our results that failed or are not the exact ones, and steps that failed."""
    found = []
    for row in rows:
        check, ours = row.get("check") or "", row["contender"] == "" or str(row["contender"]).startswith(OURS)
        if not check or not ours or (row["section"] == "sweep" and check.startswith("failed")):
            continue
        if row["section"].startswith("spans"):
            errors = [float(error) for error in re.findall(r"error ([\w.+-]+)", check)]
            right = bool(errors) and max(errors) < SPAN_TOLERANCE  # false for NaN
        else:
            right = check == "exact"
        if not right:
            found.append(line(row))
    return found
