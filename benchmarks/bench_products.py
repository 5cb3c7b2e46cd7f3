"""Which way a dense weight should lie in memory: `python benchmarks/bench_products.py` writes products.csv.

`model/parameters.py` keeps W [out, in] as Wᵀ, contiguous. Here the three products of a dense layer, its forward, the
gradient of its input and that of its weight, are taken with the weight lying either way, and the forward by NumPy too,
for rows and sizes of BERT-base and of the default model. The two ways take turns; NumPy's library has threads of its
own that wait busily, so its turns come after. A figure is a median, in milliseconds.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_model import cpu_name
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROWS = (14, 160, 400, 1600)  # a question; a block; as many as `fast.mlp` takes; five blocks
SIZES = ((768, 2304), (768, 3072), (3072, 768), (384, 1152), (384, 1536), (1536, 384))  # in, out
SETTLE = 0.2  # seconds until the threads of the library used before have gone to sleep
PRODUCTS = ("forward", "input's gradient", "weight's gradient")


def in_turns(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """The median milliseconds of each, after a first call that is not counted."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken[1:]) for taken in times]


def measured(rows: int, inputs: int, outputs: int, seed: int) -> list[dict[str, str | float]]:
    """A row of the table for each product."""
    generator = torch.Generator().manual_seed(seed)
    x, dy = (torch.randn(rows, size, generator=generator) for size in (inputs, outputs))
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    transposed = weight.t().contiguous()  # [in, out]
    dweight, dtransposed = torch.zeros_like(weight), torch.zeros_like(transposed)
    repeats = max(5, min(60, 3_000_000_000 // (rows * inputs * outputs)))
    ways = [
        [lambda: torch.addmm(bias, x, transposed), lambda: torch.addmm(bias, x, weight.t())],
        [lambda: dy @ transposed.t(), lambda: dy @ weight],
        [lambda: dtransposed.addmm_(x.t(), dy), lambda: dweight.addmm_(dy.t(), x)],
    ]
    found = [in_turns(way, repeats) for way in ways]
    time.sleep(SETTLE)
    [by_numpy] = in_turns([lambda: x.numpy() @ transposed.numpy() + bias.numpy()], repeats)
    time.sleep(SETTLE)
    return [
        {
            "rows": rows,
            "in": inputs,
            "out": outputs,
            "product": name,
            "in_out_ms": f"{as_kept:.3f}",
            "out_in_ms": f"{other:.3f}",
            "numpy_ms": f"{by_numpy:.3f}" if name == "forward" else "",
            "other_over_ours": f"{other / as_kept:.3f}",
            "repeats": repeats,
        }
        for name, (as_kept, other) in zip(PRODUCTS, found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("products.csv"))
    arguments = parser.parse_args()
    cases = [(rows, *size) for rows in ROWS for size in SIZES]
    found = [row for case in track(cases, transient=True) for row in measured(*case, arguments.seed)]
    machine = {"cpu": cpu_name(), "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    machine |= {"threads": torch.get_num_threads(), "date": datetime.date.today().isoformat()}
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*found[0], *machine])
        writer.writeheader()
        writer.writerows({**row, **machine} for row in found)
    table = Table(title=f"time of out x in over in x out: {machine['cpu']}")
    for column in ("product", *(f"{rows} rows" for rows in ROWS)):
        table.add_column(column, justify="left" if column == "product" else "right")
    for name in PRODUCTS:
        of_rows = [[float(r["other_over_ours"]) for r in found if (r["rows"], r["product"]) == (n, name)] for n in ROWS]
        table.add_row(name, *(f"{min(x):.2f} to {max(x):.2f}" for x in of_rows))
    Console().print(table)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
