"""The benchmark of the search: each way to the k best blocks, timed, checked in float64, held to its floor.

A peer is transformers' way (a matrix product with all blocks, then `topk`) or FAISS's flat index.
"""

import functools
import itertools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from realm_min.app.console import Progress
from realm_min.search.mips import COMPRESSIONS, BlockIndex, mips_topk

from .bench_clock import NEED, Clock, Row, extra_memory, figures, ratio

DIMENSIONS = 128


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


def indexes_of(blocks: Tensor, compressions: tuple[str | None, ...]) -> dict[str, BlockIndex]:
    """An index for each compression, under its contender's name."""
    return {f"index {kind or 'float32'}": BlockIndex(blocks, kind) for kind in compressions}


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
    indexes = indexes_of(blocks, COMPRESSIONS)
    faiss = faiss_search(blocks, threads)
    task = progress.add_task("search", total=len(counts) * len(ks))
    for count, k in itertools.product(counts, ks):
        asked = queries[:count]
        contenders: dict[str, Callable] = {"torch": functools.partial(transformers_search, asked, blocks, k)}
        if faiss:
            contenders["faiss"] = functools.partial(faiss, asked, k)
        contenders["mips_topk"] = functools.partial(mips_topk, asked, blocks, k)
        contenders |= {name: functools.partial(index.search, asked, k) for name, index in indexes.items()}
        checks: dict[str, str] = {}

        def check(name: str, result, checks=checks, count=count, k=k) -> None:
            checks[name] = oracle.check(result, count, k)

        times = clock.by_turns(contenders, check)
        for name, seconds in times.items():
            ours, index = name not in ("torch", "faiss"), indexes.get(name)
            compression, report = (index.compression, index.last_search) if index else (None, None)
            floor = search_floor(measured, n, count, compression, clock.device.type == "cuda")
            row: Row = {"section": "search", "contender": name, "blocks": n, "queries": count, "k": k}
            row |= figures(seconds, floor, times["torch"])
            row["against_faiss"] = ratio(times["faiss"], seconds) if faiss else None
            row["extra_bytes"] = extra_memory(contenders[name], clock.device) if count == 64 and ours else None
            row["rescored_groups"] = report and statistics.mean(report.rescored_groups)
            row["groups"] = report and report.groups
            rows.append(row | {"check": checks[name]})
        progress.advance(task)
    return rows


def bench_sweeps(
    clock: Clock,
    measured: dict[str, float],
    blocks: Tensor,
    queries: Tensor,
    base: int,
    sizes: list[int],
    ks: tuple[int, ...],
    progress: Progress,
) -> list[Row]:
    """One query: time against the number of blocks at k = 5, and against k over the `base` blocks of the search."""
    rows, query = [], queries[:1]
    task = progress.add_task("sweeps", total=len(sizes) + len(ks))
    points = [("blocks", n, 5) for n in sizes] + [("k", base, k) for k in ks]
    indexes, built = {}, None
    for section, n, k in points:
        if n != built:
            indexes.clear()  # before the next take their memory
            indexes, built = indexes_of(blocks[:n], (None, "int8")), n
        contenders: dict[str, Callable] = {"torch": functools.partial(transformers_search, query, blocks[:n], k)}
        contenders |= {name: functools.partial(index.search, query, k) for name, index in indexes.items()}
        found = {}
        times = clock.by_turns(contenders, found.__setitem__)
        same = all(torch.equal(a, b) for a, b in zip(found["index float32"], found["index int8"], strict=True))
        for name, seconds in times.items():
            floor = search_floor(measured, n, 1, "int8" if "int8" in name else None, clock.device.type == "cuda")
            row: Row = {"section": f"time against {section}", "contender": name, "blocks": n, "queries": 1, "k": k}
            row |= figures(seconds, floor, times["torch"])
            row["check"] = None if name == "torch" else "int8 = float32" if same else "int8 and float32 DIFFER"
            rows.append(row)
        progress.advance(task)
    return rows
