"""Time the two kernels against what users would pick instead, on whatever device is at hand.

    python -m realm_min.kernels.bench            (or `make bench`; --quick for a minute's run, --help for the sizes)

Search is held against transformers' way (a matrix product with all blocks, then `topk`) and FAISS's flat index, span
logits against transformers' own module. The device's copy bandwidth and matrix rate are measured first, and each time
stands beside its floor: the larger of bytes to be read over bandwidth and operations over rate. Contenders take turns
within each repeat, and a speed-up is the median of the repeats' ratios, so that a machine's drift strikes all alike.
Every result that is timed is also checked: search against scores in float64, spans against transformers in float64.

Written to --out: a CSV of every figure, with the device, versions, date and seed at its head, and four plots.
"""

import argparse
import csv
import ctypes
import datetime
import functools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from realm_min.files.atomic import write_atomically
from realm_min.model import spans
from realm_min.search.mips import COMPRESSIONS, BlockIndex, mips_topk

REALM_BLOCKS = 13_353_718  # the evidence blocks of REALM's Wikipedia
CPU_BLOCKS = 2_000_000
DIMENSIONS = 128
SPAN_SIZES = ((5, 320), (64, 320))  # blocks, tokens
SPAN_HIDDEN, SPAN_WIDTH, SPAN_EPS = 256, 10, 1e-3  # RealmConfig's defaults
SWEEP_BLOCKS = (100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 8_000_000)
SWEEP_K = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
NEED = "install what the benchmark compares with: pip install -e '.[bench]'"

Row = dict[str, Any]
COLUMNS = ["section", "contender", "blocks", "queries", "k", "tokens", "repeats", "seconds", "floor", "share_of_floor"]
COLUMNS += ["against_torch", "against_faiss", "extra_bytes", "rescored_groups", "groups", "check"]


class Clock:
    """Times contenders by turns on one device."""

    def __init__(self, device: torch.device, repeats: int, seconds: float):
        self.device, self.repeats, self.seconds = device, repeats, seconds

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def once(self, function: Callable, calls: int = 1) -> tuple[float, object]:
        """Seconds for one call, from `calls` of them in a row, and what the last returned."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        self.wait()
        return (time.perf_counter() - start) / calls, result

    def by_turns(self, contenders: dict[str, Callable], check: Callable[[str, object], None]) -> dict[str, list[float]]:
        """Seconds of each contender in each repeat; `check(name, result)` sees each one's first result.

        The first, untimed round warms up; where it alone takes longer than `seconds`, it is the measurement.
        """
        first = {}
        for name, function in contenders.items():
            first[name], result = self.once(function)
            check(name, result)
            del result
        if sum(first.values()) > self.seconds:
            return {name: [seconds] for name, seconds in first.items()}
        calls, times = {}, {name: [] for name in contenders}
        for name, function in contenders.items():
            calls[name] = 1 if first[name] > 0.05 else max(1, int(0.005 / self.once(function)[0]))
        start = time.perf_counter()
        for repeat in range(self.repeats):
            if repeat >= 3 and time.perf_counter() - start > self.seconds:
                break
            for name, function in contenders.items():
                times[name].append(self.once(function, calls[name])[0])
        return times


def ratio(peer: list[float], ours: list[float]) -> float:
    """The median over the repeats of how many times longer the peer took."""
    return statistics.median(a / b for a, b in zip(peer, ours, strict=True))


def extra_memory(function: Callable, device: torch.device) -> int | None:
    """Bytes by which one call raises the peak above what is held before it; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed must not serve this one unseen
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start the peak resident set anew
    except (AttributeError, OSError):
        return None

    def resident(field: str) -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0]) * 1024

    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def measure_device(clock: Clock) -> dict[str, float]:
    """Copy bandwidth in bytes read and written a second, and matrix rates in operations a second by dtype."""
    device, cuda = clock.device, clock.device.type == "cuda"
    source = torch.ones(2**28 if cuda else 2**26, device=device)
    target = torch.empty_like(source)
    seconds = min(clock.once(lambda: target.copy_(source))[0] for _ in range(8))
    measured = {"bandwidth": 2 * source.nbytes / seconds}
    n = 8192 if cuda else 2048
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        product = functools.partial(torch.matmul, a, b, out=out)
        measured[str(dtype)] = 2 * n**3 / min(clock.once(product)[0] for _ in range(5))
    return measured


def random_blocks(n: int, device: torch.device, seed: int) -> Tensor:
    """Standard normal [n, D], the same rows for any n."""
    blocks = torch.empty(n, DIMENSIONS, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for rows in blocks.split(1 << 18):
        rows.copy_(torch.randn(1 << 18, DIMENSIONS, device=device, generator=generator)[: len(rows)])
    return blocks


class Oracle:
    """The exact top-k: inner products in float64, rounded to float32, equal ones by ascending id."""

    def __init__(self, blocks: Tensor, queries: Tensor):
        self.blocks, self.queries = blocks, queries
        self.scores = functools.lru_cache(maxsize=16)(self._scores)

    def _scores(self, row: int) -> Tensor:
        query = self.queries[row].double()
        return torch.cat([(rows.double() @ query).float() for rows in self.blocks.split(1 << 18)])  # [N]

    def top(self, row: int, k: int) -> tuple[Tensor, Tensor]:
        scores = self.scores(row)
        ids = (scores >= scores.topk(k).values[-1]).nonzero()[:, 0]  # ascending
        ids = ids[scores[ids].sort(descending=True, stable=True).indices[:k]]
        return scores[ids], ids

    def check(self, found: tuple[Tensor, Tensor], count: int, k: int) -> str:
        """ "exact" where scores and ids are the oracle's own, else how far off they are."""
        scores, ids = found
        rows = sorted({0, count // 2, count - 1})
        wanted = [self.top(row, k) for row in rows]
        if all(torch.equal(scores[r], s) and torch.equal(ids[r], i) for r, (s, i) in zip(rows, wanted, strict=True)):
            return "exact"
        error = max(float((scores[r] - s).abs().max()) for r, (s, _) in zip(rows, wanted, strict=True))
        missed = sum(k - int(torch.isin(ids[r], i).sum()) for r, (_, i) in zip(rows, wanted, strict=True))
        return f"error {error:.0e}, {missed} of {k * len(rows)} missed"


def transformers_search(queries: Tensor, blocks: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """transformers' way: all the scores, then `topk`; on a GPU in as many pieces of queries as its memory demands."""
    step = len(queries)
    if blocks.is_cuda:
        free = torch.cuda.mem_get_info(blocks.device)[0]
        step = max(1, min(step, free // 3 // (4 * len(blocks))))
    found = [torch.einsum("bd,qd->qb", blocks, piece).topk(k) for piece in queries.split(step)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def faiss_search(blocks: Tensor, threads: int) -> Callable[[Tensor, int], tuple[Tensor, Tensor]] | None:
    """FAISS's flat inner-product index over the blocks; None on a GPU when this FAISS has no GPU part."""
    try:
        import faiss  # pyright: ignore[reportMissingImports] (of the extra `bench`)
    except ImportError as error:
        raise SystemExit(f"faiss is missing; {NEED}") from error
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(DIMENSIONS)
    if blocks.is_cuda:
        if not hasattr(faiss, "StandardGpuResources"):
            return None
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), blocks.device.index or 0, index)
    for rows in blocks.split(1 << 20):
        index.add(rows.cpu().numpy())

    def search(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, ids = index.search(queries.cpu().numpy(), k)
        return torch.from_numpy(scores).to(blocks.device), torch.from_numpy(ids).to(blocks.device)

    return search


def search_floor(measured: dict[str, float], n: int, queries: int, compression: str | None, cuda: bool) -> float:
    """Seconds that the scan must take: the codes read once, the products at the rate of the dtype they are done in."""
    size = {None: 4, "bfloat16": 2, "int8": 1}[compression]
    # int8 products are float32 ones on a CPU; on a GPU the bfloat16 rate is the nearest that was measured.
    rate = measured[
        "torch.float32" if compression is None or (compression == "int8" and not cuda) else "torch.bfloat16"
    ]
    return max(n * DIMENSIONS * size / measured["bandwidth"], 2 * queries * n * DIMENSIONS / rate)


def bench_search(
    clock: Clock,
    measured: dict[str, float],
    blocks: Tensor,
    queries: Tensor,
    counts: list[int],
    ks: list[int],
    threads: int,
    progress: Progress,
) -> list[Row]:
    """Every contender at each number of queries and k."""
    rows, oracle, n = [], Oracle(blocks, queries), len(blocks)
    indexes = {compression: BlockIndex(blocks, compression) for compression in COMPRESSIONS}
    faiss = faiss_search(blocks, threads)
    task = progress.add_task("search", total=len(counts) * len(ks))

    def check(checks: dict[str, str], count: int, k: int, name: str, result: Any) -> None:
        checks[name] = oracle.check(result, count, k)

    for count in counts:
        asked = queries[:count]
        for k in ks:
            contenders = {"torch": functools.partial(transformers_search, asked, blocks, k)}
            if faiss:
                contenders["faiss"] = functools.partial(faiss, asked, k)
            contenders["mips_topk"] = functools.partial(mips_topk, asked, blocks, k)
            for compression, index in indexes.items():
                contenders[f"index {compression or 'float32'}"] = functools.partial(index.search, asked, k)
            checks: dict[str, str] = {}
            times = clock.by_turns(contenders, functools.partial(check, checks, count, k))
            for name, seconds in times.items():
                ours = name not in ("torch", "faiss")
                compression = None if not ours or name in ("mips_topk", "index float32") else name.split()[1]
                report = indexes[compression].last_search if name.startswith("index") else None
                floor = search_floor(measured, n, count, compression, clock.device.type == "cuda")
                rows.append(
                    {
                        "section": "search",
                        "contender": name,
                        "blocks": n,
                        "queries": count,
                        "k": k,
                        "repeats": len(seconds),
                        "seconds": statistics.median(seconds),
                        "floor": floor,
                        "share_of_floor": floor / statistics.median(seconds),
                        "against_torch": ratio(times["torch"], seconds),
                        "against_faiss": ratio(times["faiss"], seconds) if faiss else None,
                        "extra_bytes": extra_memory(contenders[name], clock.device) if count == 64 and ours else None,
                        "rescored_groups": report and statistics.mean(report.rescored_groups),
                        "groups": report and report.groups,
                        "check": checks[name],
                    }
                )
            progress.advance(task)
    return rows


def bench_sweeps(clock, measured, blocks, queries, base, sizes, ks, progress) -> list[Row]:
    """One query: time against the number of blocks at k = 5, and against k over the `base` blocks of the search."""
    rows, query = [], queries[:1]
    task = progress.add_task("sweeps", total=len(sizes) + len(ks))
    points = [("blocks", n, 5) for n in sizes] + [("k", base, k) for k in ks]
    indexes, built = {}, None
    for section, n, k in points:
        if n != built:
            indexes.clear()
            indexes = {compression: BlockIndex(blocks[:n], compression) for compression in (None, "int8")}
            built = n
        contenders = {"torch": functools.partial(transformers_search, query, blocks[:n], k)}
        for compression, index in indexes.items():
            contenders[f"index {compression or 'float32'}"] = functools.partial(index.search, query, k)
        found = {}
        times = clock.by_turns(contenders, found.__setitem__)
        same = all(torch.equal(a, b) for a, b in zip(found["index float32"], found["index int8"], strict=True))
        for name, seconds in times.items():
            floor = search_floor(measured, n, 1, "int8" if "int8" in name else None, clock.device.type == "cuda")
            rows.append(
                {
                    "section": f"time against {section}",
                    "contender": name,
                    "blocks": n,
                    "queries": 1,
                    "k": k,
                    "repeats": len(seconds),
                    "seconds": statistics.median(seconds),
                    "floor": floor,
                    "share_of_floor": floor / statistics.median(seconds),
                    "against_torch": ratio(times["torch"], seconds),
                    "check": None if name == "torch" else "int8 = float32" if same else "int8 and float32 DIFFER",
                }
            )
        progress.advance(task)
    return rows


def transformers_spans(hidden: int) -> tuple[Callable, dict[str, Tensor]]:
    """transformers' RealmReaderProjection after its first product, and its weights by our argument names."""
    try:
        from transformers import RealmConfig
        from transformers.models.realm.modeling_realm import RealmReaderProjection
    except ImportError as error:
        raise SystemExit(f"transformers 4.40.2 is missing; {NEED}") from error
    module = RealmReaderProjection(
        RealmConfig(span_hidden_size=hidden, max_span_width=SPAN_WIDTH, reader_layer_norm_eps=SPAN_EPS)
    )
    # The product that makes the two projections is the same for every contender: leave it out.
    del module.dense_intermediate
    module.dense_intermediate = lambda projections: projections  # pyright: ignore[reportAttributeAccessIssue]
    weights = {
        "norm_weight": module.layer_normalization.weight,
        "norm_bias": module.layer_normalization.bias,
        "output_weight": module.dense_output.weight,
        "output_bias": module.dense_output.bias,
    }
    return module, weights


def bench_spans(clock, measured, sizes, seed, progress) -> list[Row]:
    """Forward, best span alone, backward, and forward with backward, against transformers' module and autograd."""
    rows, device = [], clock.device
    task = progress.add_task("spans", total=len(sizes))
    for blocks, tokens in sizes:
        torch.manual_seed(seed)
        module, weights = transformers_spans(SPAN_HIDDEN)
        for weight in weights.values():
            weight.data.normal_()
        module.to(device)
        whole = torch.randn(blocks, tokens, 2 * SPAN_HIDDEN).to(device)
        mask = torch.rand(blocks, tokens).to(device) < 0.9
        relevance = torch.randn(blocks).to(device)
        count = spans.span_count(tokens, SPAN_WIDTH)
        grad = torch.randn(blocks, count).to(device)
        plain = {name: weight.detach().clone() for name, weight in weights.items()}
        plain["output_weight"] = plain["output_weight"][0]
        starts, ends = whole.chunk(2, -1)
        inputs = spans.SpanInputs(
            starts, ends, **plain, max_span_width=SPAN_WIDTH, eps=SPAN_EPS, block_mask=mask, relevance_score=relevance
        )

        def eager(inputs, module=module, mask=mask, relevance=relevance):
            return module(inputs, mask)[0] + relevance[:, None]

        def eager_forward(whole=whole, eager=eager):
            with torch.no_grad():
                return eager(whole)

        def eager_best(forward=eager_forward):
            logits = forward()
            return logits.max(), logits.amax(1).argmax(), logits.amax(0).argmax()

        leaf = whole.clone().requires_grad_()
        graph = eager(leaf)

        def eager_backward(graph=graph, leaf=leaf, grad=grad, weights=weights):
            for tensor in (leaf, *weights.values()):
                tensor.grad = None
            graph.backward(grad, retain_graph=True)
            return leaf.grad

        def eager_both(leaf=leaf, grad=grad, weights=weights, eager=eager):
            for tensor in (leaf, *weights.values()):
                tensor.grad = None
            eager(leaf).backward(grad)
            return leaf.grad

        def ours_both(inputs=inputs, grad=grad):
            spans.span_logits(inputs)
            return spans.span_logits_backward(grad, inputs)

        pairs = {
            "forward": (eager_forward, functools.partial(spans.span_logits, inputs)),
            "best span": (eager_best, functools.partial(spans.best_span, inputs)),
            "backward": (eager_backward, functools.partial(spans.span_logits_backward, grad, inputs)),
            "forward and backward": (eager_both, ours_both),
        }
        module.double()
        exact = whole.double().requires_grad_()
        wanted = eager(exact)
        wanted.backward(grad.double())
        wanted, inside = wanted.detach(), wanted > -1e30
        module.float()

        projections, out = 4 * whole.numel(), 4 * grad.numel()
        bytes_moved = {"forward": projections + out, "best span": projections, "backward": 2 * projections + out}
        bytes_moved["forward and backward"] = bytes_moved["forward"] + bytes_moved["backward"]
        operations = {
            "forward": 8,
            "best span": 8,
            "backward": 24,
            "forward and backward": 32,
        }  # an element of h, about
        for name, (theirs, ours) in pairs.items():
            checks: dict[str, str] = {}

            def check(who, result, name=name, checks=checks, wanted=wanted, inside=inside, dwhole: Any = exact.grad):
                scale = wanted[inside].abs().max()
                if name == "forward":
                    error = (result.double() - wanted)[inside].abs().max()
                elif name == "best span":
                    error = (result[0].double() - wanted.max()).abs()
                else:
                    scale = dwhole.abs().max()
                    if who == "ours":
                        result = torch.cat([result["start_projection"], result["end_projection"]], -1)
                    error = (result.double() - dwhole).abs().max()
                checks[who] = f"error {float(error / scale):.0e}"

            times = clock.by_turns({"transformers": theirs, "ours": ours}, check)
            floor = max(
                bytes_moved[name] / measured["bandwidth"],
                operations[name] * blocks * count * SPAN_HIDDEN / measured["torch.float32"],
            )
            for who, seconds in times.items():
                rows.append(
                    {
                        "section": f"spans, {name}",
                        "contender": who,
                        "blocks": blocks,
                        "tokens": tokens,
                        "repeats": len(seconds),
                        "seconds": statistics.median(seconds),
                        "floor": floor,
                        "share_of_floor": floor / statistics.median(seconds),
                        "against_torch": ratio(times["transformers"], seconds),
                        "check": checks[who],
                    }
                )
        progress.advance(task)
    return rows


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


def plot(rows: list[Row], heading: dict[str, object], out: Path, stem: str) -> list[Path]:
    """Draw the four plots, each with the device and date in its corner."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit(f"matplotlib is missing; {NEED}") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {"torch": "transformers' way", "faiss": "FAISS flat", "mips_topk": "mips_topk"}
    names |= {f"index {kind}": f"BlockIndex, {kind}" for kind in ("float32", "bfloat16", "int8")}
    paths = []

    def save(figure, name):
        figure.text(0.995, 0.005, f"{heading['device']}, {heading['date']}", ha="right", va="bottom", fontsize=6)
        figure.tight_layout()
        paths.append(out / f"{stem}-{name}.png")
        with write_atomically(paths[-1]) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        pyplot.close(figure)

    for section, axis, label in (("blocks", "blocks", "blocks"), ("k", "k", "k")):
        chosen = [row for row in rows if row["section"] == f"time against {section}"]
        if not chosen:
            continue
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
        for contender in dict.fromkeys(row["contender"] for row in chosen):
            of = [row for row in chosen if row["contender"] == contender]
            axes.plot([r[axis] for r in of], [r["seconds"] * 1e3 for r in of], "o-", label=names[contender])
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel="milliseconds")
        fixed = "k = 5" if section == "blocks" else f"{chosen[0]['blocks']:,} blocks"
        axes.set_title(f"One query: time against {label} ({fixed}, {DIMENSIONS} dimensions)")
        if section == "k":
            axes.set_ylim(bottom=min(r["seconds"] for r in chosen) * 1e3 / 3)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        save(figure, f"time-against-{section}")

    searches = [row for row in rows if row["section"] == "search"]
    if searches:
        cells = list(dict.fromkeys((row["queries"], row["k"]) for row in searches))
        labels = [f"{q} quer{'y' if q == 1 else 'ies'}\nk={k}" for q, k in cells]
        at = {(r["queries"], r["k"], r["contender"]): r for r in searches}

        def bars(axes, contenders, value):
            for i, contender in enumerate(contenders):
                heights = [value(at[(*cell, contender)]) or 0 for cell in cells]
                x = np.arange(len(cells)) + (i - (len(contenders) - 1) / 2) * 0.8 / len(contenders)
                axes.bar(x, heights, 0.8 / len(contenders), label=names[contender])
            axes.set_xticks(range(len(cells)), labels)
            axes.grid(alpha=0.3, axis="y")
            axes.legend()

        ours = [name for name in names if name not in ("torch", "faiss") and (*cells[0], name) in at]
        figure, axes = pyplot.subplots(figsize=(8.5, 4.2))
        bars(axes, [name for name in names if (*cells[0], name) in at], lambda row: 100 * row["share_of_floor"])
        axes.set(ylabel="% of the floor reached")
        axes.set_title(
            "Share of the device: scan's bytes over copy bandwidth, or operations over matrix rate", fontsize=10
        )
        save(figure, "share-of-floor")

        peers = [peer for peer in ("torch", "faiss") if searches[0].get(f"against_{peer}")]
        wide = [row for row in rows if row["section"].startswith("spans") and row["contender"] == "ours"]
        panels = len(peers) + bool(wide)
        figure, all_axes = pyplot.subplots(panels, 1, figsize=(8.5, 3.4 * panels), squeeze=False)
        for axes, peer in zip(all_axes[:, 0], peers, strict=False):
            bars(axes, ours, lambda row, peer=peer: row[f"against_{peer}"])
            axes.axhline(1, color="black", lw=0.8)
            axes.set(ylabel="times as fast", title=f"{searches[0]['blocks']:,} blocks, against {names[peer]}")
        if wide:
            axes = all_axes[-1, 0]
            labels = [f"{r['section'].removeprefix('spans, ')}\n{r['blocks']} x {r['tokens']}" for r in wide]
            axes.bar(range(len(wide)), [row["against_torch"] for row in wide], 0.6)
            axes.set_xticks(range(len(wide)), labels, fontsize=7)
            axes.axhline(1, color="black", lw=0.8)
            axes.set(ylabel="times as fast", title="span logits, against transformers' module")
            axes.grid(alpha=0.3, axis="y")
        save(figure, "speed-up")
    return paths


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


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark; see the head of this module."""
    options = parse(arguments)
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
    sections = options.sections.split(",")
    measured = measure_device(clock)
    heading = describe(device, measured, options)
    for name, value in heading.items():
        console.print(f"[bold]{name}[/bold]: {value}", highlight=False)
    start, rows = time.perf_counter(), []
    with Progress(console=console, transient=True) as progress:
        if "search" in sections or "sweeps" in sections:
            largest = max([options.blocks] + (options.sizes if "sweeps" in sections else []))
            blocks = random_blocks(largest, device, options.seed)
            queries = random_blocks(max(options.queries), device, options.seed + 1)
            if "search" in sections:
                within = blocks[: options.blocks]
                ks = [k for k in options.k if k <= options.blocks]
                rows += bench_search(clock, measured, within, queries, options.queries, ks, options.threads, progress)
            if "sweeps" in sections:
                rows += bench_sweeps(clock, measured, blocks, queries, options.blocks, options.sizes, SWEEP_K, progress)
            del blocks
        if "spans" in sections:
            rows += bench_spans(clock, measured, SPAN_SIZES, options.seed, progress)
    show(rows, console)
    for line in summary(rows):
        console.print(line)
    if cuda and not any(row["contender"] == "faiss" for row in rows):
        console.print("this FAISS has no GPU part: not measured")
    stem = f"kernels-{'cpu' if not cuda else torch.cuda.get_device_name(device).lower().replace(' ', '-')}"
    options.out.mkdir(parents=True, exist_ok=True)
    heading["seconds in all"] = f"{time.perf_counter() - start:.0f}"
    write_csv(rows, heading, options.out / f"{stem}.csv")
    paths = [options.out / f"{stem}.csv", *plot(rows, heading, options.out, stem)]
    console.print("wrote", ", ".join(str(path) for path in paths), f"in {heading['seconds in all']} s")


if __name__ == "__main__":
    main()
