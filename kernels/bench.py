"""Time the two kernels against what users would pick instead, on whatever device is at hand.

    python -m realm_min.kernels.bench            (or `make bench`; --quick for a minute's run, --help for the sizes)

Search is held against transformers' way (a matrix product with all blocks, then `topk`; on a GPU also with TF32, in
bfloat16 and compiled), FAISS's flat index and cuVS's brute force; span logits against transformers' own module, or the
same in plain torch. The device's bandwidth and matrix rates are measured first, and each time stands beside its floor:
the larger of bytes to be read over copy bandwidth and operations over the rate of their own arithmetic. Contenders take
turns within each repeat, and a speed-up is the median of the repeats' ratios, so that a machine's drift strikes all
alike. Every result that is timed is also checked: search against scores in float64, spans against the module in it.

Written to --out: a CSV of every figure, with the device, versions, commit, date and seed at its head, and plots. Each
row is in kernels-DEVICE.partial.csv as soon as it was measured; a contender that fails has a row that says why.
`--sweep` tries other tiles of the scan on a GPU, and proposes the fastest.

Here are the options and the run. What is timed, and how it is checked, stands in `bench_search.py`, `bench_peers.py`,
`bench_tuning.py` and `bench_spans.py`, the clock in `bench_clock.py`, the device in `bench_device.py`, the table, the
CSV and the plots in `bench_report.py` and `bench_plots.py`.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from realm_min.app.console import Console, Text
from realm_min.files.atomic import only_writer
from realm_min.files.output import check_folder
from realm_min.ranks.devices import chosen_device

from . import bench_tuning
from .bench_clock import SETTLE, Clock, Row, failure
from .bench_device import describe, measure_device
from .bench_peers import COMPILED, CPU_PEERS, PEERS, missing_peers
from .bench_plots import plot
from .bench_report import RowLog, line, proposals, show, summary, write_csv, wrong
from .bench_search import DIMENSIONS, Searched, growth_rows, prepare, random_blocks, search_rows
from .bench_spans import SPAN_HIDDEN, SPAN_WIDTH, span_rows

REALM_BLOCKS = 13_353_718  # the evidence blocks of REALM's Wikipedia
CPU_BLOCKS = 2_000_000
SPAN_SIZES = ((64, 320), (5, 320))  # blocks, tokens
GROWTH_BLOCKS = (100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 8_000_000)
GROWTH_K = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
HEADLINES = ((1, 5), (64, 5), (1, 5000), (64, 5000))  # queries and k that are measured first
SWEPT = (1, 64)  # queries
SECTIONS = ("search", "spans", "phases", "compile", "growth", "sweep")
REPEATS, SECONDS = {"cpu": 15, "cuda": 50}, {"cpu": 5.0, "cuda": 2.0}

Steps = Iterator[tuple[str, Callable[[], Iterable[Row]]]]  # what a step measures, and its rows


def numbers(text: str) -> list[int]:
    found = [int(number.replace("_", "")) for number in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{min(found)} will not do: give whole numbers, 1 or more")
    return found


def tiles(text: str) -> list[tuple[int, int | None]]:
    """ "128x64,256": rows and queries, or rows alone."""
    found = []
    for tile in text.split(","):
        rows, _, queries = tile.partition("x")
        found.append((int(rows), int(queries) if queries else None))
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m realm_min.kernels.bench", description=description)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--blocks", type=int, help=f"default {REALM_BLOCKS:,} on a GPU with 40 GB, else {CPU_BLOCKS:,}")
    parser.add_argument("--queries", type=numbers, default=[1, 16, 64, 512], metavar="Q,Q,...")
    parser.add_argument("--k", type=numbers, default=[5, 5000], metavar="K,K,...")
    parser.add_argument(
        "--sizes", type=numbers, default=list(GROWTH_BLOCKS), metavar="N,N,...", help="blocks whose time is plotted"
    )
    parser.add_argument("--sections", help=f"which parts to run, default {','.join(SECTIONS[:-1])}")
    parser.add_argument("--peers", help=f"{','.join(PEERS)} on a GPU, {','.join(CPU_PEERS)} on a CPU")
    parser.add_argument("--repeats", type=int, help="at most, for each measurement: 15 on a CPU, 50 on a GPU")
    parser.add_argument("--seconds", type=float, help="time for the repeats of one measurement: 5 on a CPU, 2 on a GPU")
    parser.add_argument(
        "--seconds-in-all", type=float, default=float("inf"), metavar="LIMIT",
        help="stop measuring after so many, what matters most first",
    )  # fmt: skip
    tuning = parser.add_argument_group("tiles of the scan on a GPU, in place of the kernels' own; several with --sweep")
    tuning.add_argument("--tile", type=tiles, metavar="ROWSxQUERIES,...", help="rows, or rows x queries, of a tile")
    tuning.add_argument("--warps", type=numbers, metavar="W,W,...")
    tuning.add_argument("--stages", type=numbers, metavar="S,S,...")
    tuning.add_argument("--sweep", action="store_true", help="try all their combinations, and propose the fastest")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="of the code that runs, where git cannot tell")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder of the CSV and the plots")
    parser.add_argument("--quick", action="store_true", help="small sizes: a look, not a measurement")
    return completed(parser, parser.parse_args(arguments))


def completed(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.Namespace:
    """The options with what follows from others; refuses what is unknown."""
    try:
        options.device = chosen_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    kind = options.device.type
    options.repeats = options.repeats or REPEATS[kind]
    options.seconds = options.seconds or SECONDS[kind]
    if options.quick:
        options.blocks, options.queries, options.repeats, options.seconds = 200_000, [1, 64], 5, 1.0
        options.sizes = [n for n in options.sizes if n <= 200_000]
    sections = options.sections.split(",") if options.sections else SECTIONS[:-1]
    options.sections = [*sections, *(["sweep"] if options.sweep and "sweep" not in sections else [])]
    peers = options.peers.split(",") if options.peers else PEERS if kind == "cuda" else CPU_PEERS
    options.peers = ("torch", *(name for name in peers if name != "torch"))  # the first is what all are held against
    for option, given, known in (("--sections", options.sections, SECTIONS), ("--peers", options.peers, PEERS)):
        if set(given) - set(known):
            parser.error(f"{option}: nothing is called {sorted(set(given) - set(known))}; choose from {known}")
    several = [len(given) > 1 for given in (options.tile, options.warps, options.stages) if given]
    if any(several) and "sweep" not in options.sections:
        parser.error("--tile, --warps and --stages take several numbers with --sweep alone")
    return options


def steps(options: argparse.Namespace, clock: Clock, measured: dict[str, float]) -> Steps:
    """What is to be measured, what matters most first. Blocks and indexes are made when they are first needed."""
    sections, seed = options.sections, options.seed
    grown = options.sizes if "growth" in sections else []

    @functools.cache
    def blocks() -> torch.Tensor:
        return random_blocks(max([options.blocks, *grown]), clock.device, seed)

    @functools.cache
    def searched() -> Searched:
        queries = random_blocks(max(options.queries), clock.device, seed + 1)
        within = blocks()[: options.blocks]
        return prepare(clock, measured, within, queries, options.peers, options.threads)

    wanted = cells(options)

    def each(name: str, rows: Callable, some: list, **given: bool) -> list:
        return [(f"{name} {of}", functools.partial(rows, of, **given)) for of in some]

    def search(cell: tuple[int, int], compiles: bool = False) -> Iterable[Row]:
        return search_rows(searched(), *cell, compiles=compiles)

    def spans(size: tuple[int, int], compiles: bool = False) -> Iterable[Row]:
        return span_rows(clock, measured, size, seed, compiles)

    def phases(cell: tuple[int, int]) -> Iterable[Row]:
        return bench_tuning.phase_rows(searched(), bench_tuning.kernels(), *cell)

    def growth(axis: str) -> Iterable[Row]:
        points = {
            "blocks": [(n, 5) for n in grown],
            "k": [(options.blocks, k) for k in GROWTH_K if k <= options.blocks],
        }
        return growth_rows(searched(), blocks(), axis, points[axis])

    compiled = each("search compiled", search, wanted[:2], compiles=True)
    compiled += each("spans compiled", spans, list(SPAN_SIZES), compiles=True)
    for section, some in (
        ("search", each("search", search, wanted[:2])),
        ("spans", each("spans", spans, list(SPAN_SIZES))),
        ("search", each("search", search, wanted[2:4])),
        ("phases", each("phases", phases, wanted[:4] if clock.cuda else [])),
        ("search", each("search", search, wanted[4:])),
        ("sweep", sweep(options, searched)),
        ("compile", compiled if COMPILED in options.peers else []),
        ("growth", each("growth", growth, ["blocks", "k"])),
    ):
        if section in sections:
            yield from some


def cells(options: argparse.Namespace) -> list[tuple[int, int]]:
    """Queries and k of every search, what matters most first."""
    asked = [(q, k) for k in options.k if k <= options.blocks for q in options.queries]
    first = [cell for cell in HEADLINES if cell in asked]
    return [*first, *(cell for cell in asked if cell not in first)]


def sweep(options: argparse.Namespace, searched: Callable[[], Searched]) -> Steps:
    """Every combination of the tile's numbers, for each index and number of queries, each with its part of the time."""
    module = bench_tuning.kernels()
    if not hasattr(module, "scan_config"):
        return
    names = ("index int8", "index float32", "index bfloat16")
    pairs = [(q, name) for q in SWEPT if q in options.queries for name in names]
    for done, (q, name) in enumerate(pairs):

        def rows(q: int = q, name: str = name, left: int = len(pairs) - done) -> Iterable[Row]:
            part = searched()
            part = part._replace(clock=part.clock.until(part.clock.left() / left))
            tried = bench_tuning.configurations(options.tile, options.warps, options.stages, q)
            return bench_tuning.sweep_rows(part, module, name, q, options.k[0], tried)

        yield f"sweep {name}, {q}", rows


def measure(
    options: argparse.Namespace, clock: Clock, measured: dict[str, float], log: RowLog, console: Console
) -> list[Row]:
    """The rows of all steps that the time allows, each written as it comes."""
    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row)
        log.write(row)
        console.print(line(row))

    for title, step in steps(options, clock, measured):
        if clock.left() <= 0:
            console.print(f"the time of --seconds-in-all is spent: {title} and what follows it were not measured")
            break
        try:
            for row in step():
                take(row)
        except Exception as error:  # whatever a peer raises: what follows may go well
            clock.recover()
            take({"section": title, "contender": "", "check": failure(error)})
    return rows


def own_or_given(options: argparse.Namespace) -> dict[str, int | None]:
    """The tile that all scans are launched with, in place of the kernels' own."""
    if "sweep" in options.sections:
        return {}
    rows, block_q = options.tile[0] if options.tile else (None, None)
    warps, stages = (given[0] if given else None for given in (options.warps, options.stages))
    changes = {"ROWS": rows, "BLOCK_Q": block_q, "num_warps": warps, "num_stages": stages}
    return {name: value for name, value in changes.items() if value is not None}


def choose_blocks(options: argparse.Namespace, console: Console) -> None:
    """REALM's number where it fits and ends in time, said so where not."""
    cuda = options.device.type == "cuda"
    memory = torch.cuda.mem_get_info(options.device)[0] if cuda else 0
    if options.blocks is None:
        options.blocks = REALM_BLOCKS if memory > 40e9 else CPU_BLOCKS
        if options.blocks != REALM_BLOCKS:
            why = f"of {memory / 1e9:.0f} GB on the GPU" if cuda else "FAISS on a CPU would take too long"
            console.print(f"{options.blocks:,} blocks instead of REALM's {REALM_BLOCKS:,}, because {why}; see --blocks")


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, write and draw."""
    start = time.perf_counter()
    torch.set_num_threads(options.threads)
    cuda = options.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(options.device)
    choose_blocks(options, console)
    clock = Clock(options.device, options.repeats, options.seconds, options.seconds_in_all)
    clock.settle = 0.0 if clock.cuda or options.quick else SETTLE
    measured = measure_device(clock)
    changes = own_or_given(options)
    heading = describe(clock, measured, options)
    heading["data"] = f"standard normal blocks and queries, {DIMENSIONS} dimensions, float32"
    heading["spans"] = f"hidden {SPAN_HIDDEN}, width {SPAN_WIDTH}, float32"
    heading |= {"tile given": bench_tuning.shown(changes)} if changes else {}
    for name, value in heading.items():
        console.print(Text.assemble((name, "bold"), f": {value}"))
    for name in missing_peers(options.peers):
        console.print(f"{name} is not installed: not measured")
    stem = f"kernels-{'cpu' if not cuda else torch.cuda.get_device_name(options.device).lower().replace(' ', '-')}"
    stem += "-sweep" if options.sections == ["sweep"] else ""
    options.out.mkdir(exist_ok=True, parents=True)
    log = RowLog(options.out / f"{stem}.partial.csv", heading)
    try:
        with bench_tuning.configured(bench_tuning.kernels() if cuda else None, changes):
            rows = measure(options, clock, measured, log, console)
    except BaseException:
        console.print(f"stopped: the rows measured so far are in {log.path}")
        raise
    finally:
        log.close()
    heading["seconds in all"] = f"{time.perf_counter() - start:.0f}"
    report(rows, heading, options.out, stem, console)


def report(rows: list[Row], heading: dict[str, object], out: Path, stem: str, console: Console) -> None:
    """Write the file of figures, then draw and say what they show. Exits with 1 if a result of ours is wrong."""
    write_csv(rows, heading, out / f"{stem}.csv")
    (out / f"{stem}.partial.csv").unlink()
    if console.is_terminal:  # elsewhere the rows stand above, a line each
        show(rows, console)
    for text in [*summary(rows), *proposals(rows)]:
        console.print(text)
    paths = [out / f"{stem}.csv", *plot(rows, heading, out, stem)]
    console.print("wrote", ", ".join(str(path) for path in paths), f"in {heading['seconds in all']} s")
    if wrong(rows):
        raise SystemExit("\n".join(["NOT EXACT, or failed:", *wrong(rows)]))


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; see the head of this module."""
    options = parse(arguments)
    check_folder(options.out)
    with only_writer(options.out):
        run(options, Console() if sys.stdout.isatty() else Console(width=170))


if __name__ == "__main__":
    main()
