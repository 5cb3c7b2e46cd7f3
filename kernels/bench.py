"""Time the two kernels against what users would pick instead, on whatever device is at hand.

    python -m realm_min.kernels.bench            (or `make bench`; --quick for a minute's run, --help for the sizes)

Search is held against transformers' way (a matrix product with all blocks, then `topk`) and FAISS's flat index, span
logits against transformers' own module. The device's copy bandwidth and matrix rate are measured first, and each time
stands beside its floor: the larger of bytes to be read over bandwidth and operations over rate. Contenders take turns
within each repeat, and a speed-up is the median of the repeats' ratios, so that a machine's drift strikes all alike.
Every result that is timed is also checked: search against scores in float64, spans against transformers in float64.

Written to --out: a CSV of every figure, with the device, versions, date and seed at its head, and four plots.

Here are the options and the run. What is timed, and how it is checked, stands in `bench_search.py` and
`bench_spans.py`, the clock in `bench_clock.py`, the table, the CSV and the plots in `bench_report.py`.
"""

import argparse
import datetime
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

from realm_min.app.console import Console, Progress, Text, progress_bar
from realm_min.files.atomic import only_writer
from realm_min.files.output import check_folder

from .bench_clock import Clock, Row, measure_device
from .bench_report import plot, show, summary, write_csv
from .bench_search import DIMENSIONS, bench_search, bench_sweeps, random_blocks
from .bench_spans import SPAN_HIDDEN, SPAN_WIDTH, bench_spans

REALM_BLOCKS = 13_353_718  # the evidence blocks of REALM's Wikipedia
CPU_BLOCKS = 2_000_000
SPAN_SIZES = ((5, 320), (64, 320))  # blocks, tokens
SWEEP_BLOCKS = (100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 8_000_000)
SWEEP_K = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m realm_min.kernels.bench", description=description)

    def numbers(text: str) -> list[int]:
        return [int(number.replace("_", "")) for number in text.split(",")]

    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--blocks", type=int, help=f"default {REALM_BLOCKS:,} on a GPU with 40 GB, else {CPU_BLOCKS:,}")
    parser.add_argument("--queries", type=numbers, default=[1, 16, 64, 512], metavar="Q,Q,...")
    parser.add_argument("--k", type=numbers, default=[5, 5000], metavar="K,K,...")
    parser.add_argument(
        "--sizes", type=numbers, default=list(SWEEP_BLOCKS), metavar="N,N,...", help="blocks of the sweep"
    )
    parser.add_argument("--sections", default="search,sweeps,spans", help="which parts to run")
    parser.add_argument("--repeats", type=int, default=15, help="at most, for each measurement")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for the repeats of one measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder of the CSV and the plots")
    parser.add_argument("--quick", action="store_true", help="small sizes: a look, not a measurement")
    options = parser.parse_args(arguments)
    if options.quick:
        options.blocks, options.queries, options.repeats, options.seconds = 200_000, [1, 64], 5, 1.0
        options.sizes = [n for n in options.sizes if n <= 200_000]
    wrong = set(options.sections.split(",")) - {"search", "sweeps", "spans"}
    if wrong:
        parser.error(f"--sections: no section {sorted(wrong)}; choose from search, sweeps, spans")
    return options


def describe(device: torch.device, measured: dict[str, float], options: argparse.Namespace) -> dict[str, object]:
    """What the figures depend on, for the head of the CSV."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        models = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
        name = models[0].split(":")[1].strip() if models else platform.processor()
        name = f"{name}, {options.threads} threads"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    for package in ("triton", "faiss", "transformers"):
        try:
            versions[package] = __import__(package).__version__
        except ImportError:
            versions[package] = "absent"
    return {
        "device": name,
        "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        "date": datetime.date.today().isoformat(),
        "seed": options.seed,
        "data": f"standard normal blocks and queries, {DIMENSIONS} dimensions, float32",
        "spans": f"hidden {SPAN_HIDDEN}, width {SPAN_WIDTH}, float32",
        "copy bandwidth, GB/s read and written": f"{measured['bandwidth'] / 1e9:.1f}",
        "matrix rate, GFLOP/s float32": f"{measured['torch.float32'] / 1e9:.0f}",
        "matrix rate, GFLOP/s bfloat16": f"{measured['torch.bfloat16'] / 1e9:.0f}",
        "units": "seconds; share_of_floor: floor / seconds; against_*: medians of the repeats' ratios",
    }


def measure(options: argparse.Namespace, clock: Clock, measured: dict[str, float], progress: Progress) -> list[Row]:
    """The rows of the sections that were asked for."""
    sections, rows = options.sections.split(","), []
    if "search" in sections or "sweeps" in sections:
        largest = max([options.blocks] + (options.sizes if "sweeps" in sections else []))
        blocks = random_blocks(largest, clock.device, options.seed)
        queries = random_blocks(max(options.queries), clock.device, options.seed + 1)
        if "search" in sections:
            within = blocks[: options.blocks]
            ks = [k for k in options.k if k <= options.blocks]
            rows += bench_search(clock, measured, within, queries, options.queries, ks, options.threads, progress)
        if "sweeps" in sections:
            rows += bench_sweeps(clock, measured, blocks, queries, options.blocks, options.sizes, SWEEP_K, progress)
        del blocks
    if "spans" in sections:
        rows += bench_spans(clock, measured, SPAN_SIZES, options.seed, progress)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; see the head of this module."""
    options = parse(arguments)
    check_folder(options.out)
    with only_writer(options.out):
        measure_and_write(options)


def measure_and_write(options: argparse.Namespace) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=150)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    clock = Clock(device, options.repeats, options.seconds)
    cuda = device.type == "cuda"
    memory = torch.cuda.mem_get_info(device)[0] if cuda else 0
    if options.blocks is None:
        options.blocks = REALM_BLOCKS if memory > 40e9 else CPU_BLOCKS
        if options.blocks != REALM_BLOCKS:
            why = f"of {memory / 1e9:.0f} GB on the GPU" if cuda else "FAISS on a CPU would take too long"
            console.print(f"{options.blocks:,} blocks instead of REALM's {REALM_BLOCKS:,}, because {why}; see --blocks")
    measured = measure_device(clock)
    heading = describe(device, measured, options)
    for name, value in heading.items():
        console.print(Text.assemble((name, "bold"), f": {value}"))
    start = time.perf_counter()
    with progress_bar(console, transient=True) as progress:
        rows = measure(options, clock, measured, progress)
    show(rows, console)
    for line in summary(rows):
        console.print(line)
    if cuda and not any(row["contender"] == "faiss" for row in rows):
        console.print("this FAISS has no GPU part: not measured")
    stem = f"kernels-{'cpu' if not cuda else torch.cuda.get_device_name(device).lower().replace(' ', '-')}"
    options.out.mkdir(exist_ok=True)
    heading["seconds in all"] = f"{time.perf_counter() - start:.0f}"
    write_csv(rows, heading, options.out / f"{stem}.csv")
    paths = [options.out / f"{stem}.csv", *plot(rows, heading, options.out, stem)]
    console.print("wrote", ", ".join(str(path) for path in paths), f"in {heading['seconds in all']} s")


if __name__ == "__main__":
    main()
