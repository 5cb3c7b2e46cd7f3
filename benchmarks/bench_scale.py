"""Measure what several ranks bring, and the constants of the cost model that says it beforehand: `make bench-scale`.

Single-threaded ranks, started by torchrun, in one run:

    constants    single operations, and one rank alone: what scale_model.py needs
    search       4,000,000 x 128 blocks on 1, 2 and 4 ranks, against one process with a BlockIndex
    embedding    Factbook blocks, as `realm-min index` embeds them
    training     one step of pre-training, the same batch on 1, 2 and 4 ranks

The contenders of a part take turns: where R of the ranks work, the others wait. A figure is the median of the repeats,
of each the slowest rank's time; a speed-up the median of the repeats' ratios. The exchange's share is of the rank that
came last to each exchange, since the others wait there for it, and not for the network.

    python benchmarks/bench_scale.py --parts search           # a part alone; the other rows of scale.csv stay
    python benchmarks/bench_scale.py --plan 13.35e6 1e9       # no measurement: the tables for so many blocks

Written to --out: scale.csv and scale.png, and the tables of the documents made from it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scale_model
import torch
import torch.distributed as dist
from rich.progress import Progress
from scale_model import Row

import realm_min
from realm_min.app import indexing
from realm_min.app.default_model import PACKED_FILE
from realm_min.files.atomic import write_atomically
from realm_min.files.packed import load_packed
from realm_min.jobs import loop, runs, warm_start
from realm_min.jobs.settings import Mlm, TrainingRun
from realm_min.learn.optimizer import AdamW
from realm_min.model.realm import NO_LABEL
from realm_min.ranks import distributed
from realm_min.ranks.distributed import World
from realm_min.search.mips import BlockIndex
from realm_min.search.sharded_index import ShardedBlockIndex, read_blocks
from realm_min.text import corpus

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "docs" / "scaling.md", ROOT / "docs" / "processes.md"]
PARTS = ("constants", "search", "embedding", "training")
RANKS = (1, 2, 4)
BLOCKS, K = 4_000_000, 5
QUERIES = {1: 3, 64: 1}  # at once: searches in a row that are timed together
CODES = {"float32": None, "int8": "int8"}
COLUMNS = ["section", "name", "ranks", "blocks", "queries", "k", "codes", "flops", "parameters", "value", "unit"]
COLUMNS += ["lowest", "highest", "ratio", "share", "bytes", "repeats", "date"]
HEAD_START = 0.02  # seconds in which all ranks hear when to begin
MESSAGE = 1 << 20  # numbers in a long message: as many as gradients are summed at a time
EMBEDDED, SHARD_SIZE = 512, 64  # blocks; smaller shards than an index has, since it is a smaller corpus
BATCH, TRAINED_TOKENS = 16, 128  # blocks of a training step, wordpieces of each


@dataclass
class Bench:
    """What every part is given: all the ranks, and the first R of them as a world of their own, by R."""

    world: World
    worlds: dict[int, World]
    progress: Progress
    process: int  # bytes of a rank that holds nothing yet
    repeats: int
    seed: int

    def seconds(self, ranks: int, work: Callable[[], Any]) -> tuple[float, float]:
        """Seconds of `work` on the first `ranks` ranks, which begin together, and of its exchanges; others wait."""
        # All ranks are of one machine, and so is their clock.
        begin = self.world.broadcast_object(time.perf_counter() + HEAD_START)
        mine = None
        if self.world.rank < ranks:
            with timed_exchanges() as exchanges:
                time.sleep(max(0.0, begin - time.perf_counter()))
                started = time.perf_counter()
                work()
                mine = (time.perf_counter() - started, exchanges)
        took = [other for other in self.world.gather_objects(mine) if other]
        # The last to come to an exchange waits for nobody.
        return max(whole for whole, _ in took), sum(map(min, zip(*(exchanges for _, exchanges in took), strict=True)))

    def by_turns(
        self,
        title: str,
        contenders: dict[Any, tuple[int, Callable[[], Any]]],
        repeats: int | None = None,
        warm: bool = True,
    ) -> dict[Any, list[tuple[float, float]]]:
        """`seconds` of each contender (ranks, work), in each repeat; if `warm`, after one to warm up."""
        repeats = (repeats or self.repeats) + warm
        task = self.progress.add_task(title, total=repeats * len(contenders))
        times: dict[Any, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, (ranks, work) in contenders.items():
                times[name].append(self.seconds(ranks, work))
                self.progress.advance(task)
        return {name: found[warm:] for name, found in times.items()}

    def median(self, ranks: int, work: Callable[[], Any], repeats: int = 7) -> float:
        """The median of `seconds`, after one to warm up."""
        return statistics.median([self.seconds(ranks, work)[0] for _ in range(1 + repeats)][1:])


@contextmanager
def timed_exchanges() -> Iterator[list[float]]:
    """The seconds that each exchange between ranks takes while the block runs."""
    seconds, plain = [], World.exchanging

    @contextmanager
    def exchanging(self: World) -> Iterator[None]:
        started = time.perf_counter()
        with plain(self):
            yield
        seconds.append(time.perf_counter() - started)

    with mock.patch.object(World, "exchanging", exchanging):
        yield seconds


@contextmanager
def inside(world: World) -> Iterator[None]:
    """What asks for the world gets this one."""
    with mock.patch.object(distributed, "_world", world):
        yield


def compared(times: dict[Any, list[tuple[float, float]]], peer: Any, calls: int = 1) -> dict[Any, Row]:
    """Of each contender: median and extremes of a call, the median ratio to the peer, the exchange's share of the time.

    Args:
        times: by contender, of `calls` calls, as `Bench.seconds` gives them.
    """
    rows = {}
    for name, found in times.items():
        whole = [seconds for seconds, _ in found]
        rows[name] = {
            "value": statistics.median(whole) / calls,
            "unit": "s",
            "lowest": min(whole) / calls,
            "highest": max(whole) / calls,
            "ratio": statistics.median(a / b for (a, _), b in zip(times[peer], whole, strict=True)),
            "repeats": len(found),
        }
        if any(exchange for _, exchange in found):
            rows[name]["share"] = statistics.median(exchange / seconds for seconds, exchange in found)
    return rows


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- constants


def constants(bench: Bench, path: Path) -> list[Row]:
    """Single operations, and searches by one rank over fewer blocks than are predicted."""
    blocks = read_blocks(path, World())
    found = {"cores": float(os.cpu_count() or 1), "process": float(bench.process)}
    found |= machine(bench, blocks) | exchange(bench)
    for codes, compression in CODES.items():
        measured = []
        for count in (len(blocks) // 8, len(blocks) // 4, len(blocks) // 2):
            index = BlockIndex(blocks[:count], compression) if bench.world.is_first else None
            for queries in (1, 8, 64):
                given = torch.randn(
                    queries, scale_model.DIMENSIONS, generator=torch.Generator().manual_seed(bench.seed)
                )
                for k in (5, 100):
                    seconds = bench.median(1, lambda k=k, given=given, index=index: index.search(given, k), 3)
                    measured.append({"blocks": count, "queries": queries, "k": k, "value": seconds})
        names = (f"{codes} {name}" for name in ("block", "pair", "query", "candidate"))
        found |= dict(zip(names, scale_model.fit_search(measured), strict=True))
    found |= embedding_constants(bench) | training_constants(bench, path.parent)
    return [constant(name, value) for name, value in found.items()]


def constant(name: str, value: float) -> Row:
    return {"section": "constant", "name": name, "value": value, "unit": scale_model.CONSTANTS[name][0]}


def machine(bench: Bench, blocks: torch.Tensor) -> dict[str, float]:
    """Rates of one core alone and of all cores at once, in sum: reading memory, and multiplying matrices."""
    count = min(len(blocks) // 4, 500_000)
    first = bench.world.rank % 4 * count
    rows, scores = blocks[first : first + count], torch.empty(count)
    query = torch.ones(scale_model.DIMENSIONS)
    tokens, hidden, inner = 400, 384, 1536
    a, b, out = torch.ones(tokens, hidden), torch.ones(hidden, inner), torch.empty(tokens, inner)

    def scan() -> None:
        for _ in range(4):
            torch.mv(rows, query, out=scores)

    def product() -> None:
        for _ in range(100):
            torch.mm(a, b, out=out)

    cores, found = os.cpu_count() or 1, {}
    for name, work, units in (
        ("scan", scan, 4 * 4 * count * scale_model.DIMENSIONS),
        ("product", product, 100 * 2 * tokens * hidden * inner),
    ):
        for among, ranks in (("alone", 1), ("together", cores)):
            found[f"{name} {among}"] = ranks * units / bench.median(ranks, work)
    return found


def exchange(bench: Bench) -> dict[str, float]:
    """Latency and bandwidth of one step of a ring between two ranks, of an all-gather and of an all-reduce."""
    pair = bench.worlds[2]
    short, long = torch.zeros(8), torch.zeros(MESSAGE)
    crowd = max(1.0, 2 / (os.cpu_count() or 1))  # one core runs both ranks by turns
    found = {}
    for name, work, steps, parts, wait in (
        ("gather", World.all_gather, 1, 1, crowd),
        ("reduce", World.sum_, 2, 2, 1),  # an all-reduce of two ranks: two steps of half the message
    ):

        def often(message: torch.Tensor, count: int, work: Callable = work) -> None:
            for _ in range(count):
                work(pair, message)

        latency = bench.median(2, functools.partial(often, short, 100)) / 100 / steps / wait
        step = bench.median(2, functools.partial(often, long, 20)) / 20 / steps / wait
        found[f"{name} latency"] = latency
        found[f"{name} bandwidth"] = long.nbytes / parts / (step - latency)
    return found


# ---- search


def write_blocks(path: Path, count: int, seed: int) -> None:
    """Standard normal rows [count, D] as a .npy file."""
    blocks = np.lib.format.open_memmap(path, "w+", "float32", (count, scale_model.DIMENSIONS))
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 1 << 18):
        rows = blocks[start : start + (1 << 18)]
        rows[:] = torch.randn(len(rows), scale_model.DIMENSIONS, generator=generator).numpy()


def search(bench: Bench, path: Path) -> list[Row]:
    """All blocks, and 3/8 of them, on R ranks and by one BlockIndex; R = 1 is a ShardedBlockIndex of one."""
    blocks = read_blocks(path, World())
    queries = torch.randn(max(QUERIES), scale_model.DIMENSIONS, generator=torch.Generator().manual_seed(bench.seed + 1))
    rows = []
    for count in (len(blocks), len(blocks) * 3 // 8):
        for codes, compression in CODES.items():
            single = BlockIndex(blocks[:count], compression) if bench.world.is_first else None
            sharded, held = shard(bench, path, count, compression)
            for number, calls in QUERIES.items():
                check(bench, single, sharded, queries[:number])
                title = f"{number} queries over {count:,} blocks, {codes}"
                times = bench.by_turns(title, searches(bench, single, sharded, queries[:number], calls))
                for name, row in compared(times, "BlockIndex", calls).items():
                    what = {"name": "ranks", "ranks": name} if name in RANKS else {"name": name, "ranks": 1}
                    what |= {"blocks": count, "queries": number, "k": K, "codes": codes}
                    rows.append({"section": "search", **what, **row, "bytes": held.get(name, "")})
    return rows


def shard(
    bench: Bench, path: Path, count: int, compression: str | None
) -> tuple[dict[int, ShardedBlockIndex], dict[int, int]]:
    """Indexes of the first `count` blocks on 1, 2 and 4 ranks, and the bytes by which the largest rank grew."""
    sharded, held = {}, {}
    for ranks, part in bench.worlds.items():
        bench.world.barrier()
        before = resident()
        if bench.world.rank < ranks:
            # A mapping of its own, so that what it touches counts.
            sharded[ranks] = ShardedBlockIndex(read_blocks(path, World())[:count], compression, world=part)
        held[ranks] = max(bench.world.gather_objects(resident() - before))
    return sharded, held


def searches(
    bench: Bench, single: BlockIndex | None, sharded: dict[int, ShardedBlockIndex], queries: torch.Tensor, calls: int
) -> dict[Any, tuple[int, Callable]]:
    """The contenders, each searching `calls` times in a row; each rank has its share of the queries.

    One process with a thread on each core is no peer to be beaten; it says what ranks on one machine are worth.
    """

    def alone() -> None:
        for _ in range(calls):
            single.search(queries, K)

    def with_threads() -> None:
        torch.set_num_threads(os.cpu_count() or 1)
        alone()
        torch.set_num_threads(1)

    contenders: dict[Any, tuple[int, Callable]] = {"BlockIndex": (1, alone), "threads": (1, with_threads)}
    for ranks, part in bench.worlds.items():

        def together(ranks: int = ranks, part: World = part) -> None:
            for _ in range(calls):
                sharded[ranks].search(queries[part.rank :: part.size], K)

        contenders[ranks] = (ranks, together)
    return contenders


def check(
    bench: Bench, single: BlockIndex | None, sharded: dict[int, ShardedBlockIndex], queries: torch.Tensor
) -> None:
    """What the ranks found must be what one BlockIndex finds, to the bit."""
    wanted = bench.world.broadcast_object(single.search(queries, K) if single else None)
    for ranks, index in sharded.items():
        part = bench.worlds[ranks]
        found = index.search(queries[part.rank :: part.size], K)
        for mine, all_of_it in zip(found, wanted, strict=True):
            if not torch.equal(mine, all_of_it[part.rank :: part.size]):
                raise SystemExit(f"rank {part.rank} of {ranks} found other blocks than one BlockIndex")


# ---- embedding


@functools.cache
def default_model() -> tuple[Any, Any]:
    """The model that comes with the package, and its tokenizer."""
    model, tokenizer, _ = load_packed(PACKED_FILE)
    return model, tokenizer


def factbook(count: int, seed: int) -> list[corpus.Document]:
    """Factbook documents, drawn at random, that are cut into `count` blocks."""
    documents = list(corpus.factbook_documents())
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    blocks = itertools.islice(corpus.cut_blocks((documents[i] for i in order), default_model()[1]), count)
    return [corpus.Document(*block) for block in blocks]  # each of which is one block again


def lengths(tokenizer: Any, blocks: list[corpus.Document]) -> list[int]:
    """Tokens of each block as the embedder reads it."""
    return [len(ids) for ids in tokenizer([b.title for b in blocks], [b.text for b in blocks])["input_ids"]]


def embedding_constants(bench: Bench) -> dict[str, float]:
    """Rates of one rank that embeds blocks, other ones than `embedding` takes, at two sizes of the model."""
    model, tokenizer = default_model()
    found = {"tokens": statistics.mean(lengths(tokenizer, factbook(2 * EMBEDDED, bench.seed + 2)))}
    base = realm_min.RealmEmbedder(realm_min.RealmConfig(), seed=0).eval() if bench.world.is_first else None
    for name, embedder, words, count in (
        ("embed rate", model.embedder, tokenizer, 64),
        ("embed rate base", base, warm_start.tokenizer(None), 8),
    ):
        blocks = factbook(count, bench.seed + 3)
        config = embedder.config if embedder else realm_min.RealmConfig()
        flops = scale_model.encoder_flops(config, lengths(words, blocks))
        work = functools.partial(embedding.embed_blocks, embedder, words, blocks)
        found[name] = flops / bench.median(1, work, 2)
    return found


def embedding(bench: Bench, path: Path) -> list[Row]:
    """Factbook blocks to a ready folder, as `realm-min index` makes it: the embedding, and all of it."""
    model, tokenizer = default_model()
    documents = factbook(EMBEDDED, bench.seed)
    flops = scale_model.encoder_flops(model.embedder.config, lengths(tokenizer, documents))
    embedded: dict[Any, list[tuple[float, float]]] = {ranks: [] for ranks in bench.worlds}
    contenders: dict[Any, tuple[int, Callable]] = {}
    for ranks, part in bench.worlds.items():

        def work(ranks: int = ranks, part: World = part) -> None:
            folder, times = path.parent / f"index-{ranks}", []

            def report(stage: str, done: int, total: int | None) -> None:
                if stage == "Embedding blocks":
                    times.append(time.perf_counter())

            with inside(part), mock.patch.object(embedding, "SHARD_SIZE", SHARD_SIZE):
                indexing.index(documents, folder, model, tokenizer, report=report)
            if part.is_first:
                embedded[ranks].append((times[-1] - times[0], 0.0))
                shutil.rmtree(folder)

        contenders[ranks] = (ranks, work)
    whole = bench.by_turns(f"embedding {len(documents)} blocks", contenders, repeats=2, warm=False)
    embedded = bench.world.broadcast_object(embedded)
    return [
        {"section": "embedding", "name": name, "ranks": ranks, "blocks": len(documents), "flops": flops, **row}
        for name, times in (("ranks", embedded), ("command", whole))
        for ranks, row in compared(times, 1).items()
    ]


# ---- training


def new_encoder(seed: int) -> realm_min.RealmKnowledgeAugEncoder:
    """An encoder of the default model's size, with BERT's vocabulary and random weights."""
    return realm_min.RealmKnowledgeAugEncoder(
        realm_min.RealmConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        ), seed=seed
    )  # fmt: skip


def training_blocks(seed: int) -> list[corpus.Block]:
    """Blocks that fill TRAINED_TOKENS wordpieces, so that every batch is the same work."""
    tokenizer = warm_start.tokenizer(None)
    drawn = factbook(4 * BATCH, seed)
    return [
        corpus.Block(*block) for block, tokens in zip(drawn, lengths(tokenizer, drawn), strict=True)
        if tokens > TRAINED_TOKENS + 8
    ]  # fmt: skip


def training_steps(bench: Bench, ranks: int, batch: int, folder: Path, steps: int = 4) -> list[float]:
    """Seconds of each step of a run on the first `ranks` ranks, the first step left out."""
    bench.world.barrier()
    if bench.world.rank < ranks:
        settings = Mlm(steps=steps, batch_size=batch, max_wordpieces=TRAINED_TOKENS, seed=bench.seed)
        with inside(bench.worlds[ranks]):
            run = TrainingRun(folder, save_every=steps)
            runs.mlm(run, training_blocks(bench.seed), new_encoder(bench.seed), warm_start.tokenizer(None), settings)
    bench.world.barrier()
    seconds = loop.read_log(folder / loop.LOG_FILE)["seconds"][1:]
    bench.world.barrier()
    if bench.world.is_first:
        shutil.rmtree(folder)
    return seconds


def training_work(batch: int) -> tuple[float, int]:
    """Operations of the forward pass over a batch, and parameters."""
    encoder = new_encoder(0)
    once = {tensor.data_ptr(): tensor.numel() for tensor in encoder.state_dict().values()}
    return scale_model.encoder_flops(encoder.config, [TRAINED_TOKENS] * batch), sum(once.values())


def training_constants(bench: Bench, folder: Path) -> dict[str, float]:
    """One rank alone: a batch half as large as `training` takes, and an update on its own."""
    flops, parameters = training_work(BATCH // 2)
    encoder, optimizer = new_encoder(bench.seed), AdamW(1e-5, 100)
    for grad in encoder.grads.values():
        grad.fill_(1e-3)
    update = bench.median(1, lambda: optimizer.update(encoder.state_dict(), encoder.grads), 3)
    step = statistics.median(training_steps(bench, 1, BATCH // 2, folder / "run"))
    found = {"train rate": 3 * flops / (step - update), "update": update / parameters}

    base = realm_min.RealmKnowledgeAugEncoder(realm_min.RealmConfig(), seed=0) if bench.world.is_first else None
    ids = torch.randint(1000, 20000, (4, TRAINED_TOKENS), generator=torch.Generator().manual_seed(bench.seed))
    labels = torch.where(torch.arange(TRAINED_TOKENS) % 7 == 3, ids, NO_LABEL)

    def passes() -> None:
        log_likelihood, cache = base.train().masked_log_likelihood(ids, torch.ones_like(ids), ids * 0, labels)
        base.masked_log_likelihood_backward(torch.ones_like(log_likelihood), cache)

    forward = scale_model.encoder_flops(realm_min.RealmConfig(), [TRAINED_TOKENS] * len(ids))
    return found | {"train rate base": 3 * forward / bench.median(1, passes, 2)}


def training(bench: Bench, path: Path) -> list[Row]:
    """Steps of masked language modelling: the loop, the all-reduce and the update that every training has."""
    flops, parameters = training_work(BATCH)
    times: dict[Any, list[tuple[float, float]]] = {ranks: [] for ranks in bench.worlds}
    task = bench.progress.add_task("training", total=2 * len(times))
    for _ in range(2):
        for ranks in times:
            times[ranks] += [(seconds, 0.0) for seconds in training_steps(bench, ranks, BATCH, path.parent / "run")]
            bench.progress.advance(task)
    return [
        {
            "section": "training", "name": "ranks", "ranks": ranks, "queries": BATCH, "flops": flops,
            "parameters": parameters, **row,
        }
        for ranks, row in compared(times, 1).items()
    ]  # fmt: skip


# ---- the ranks, and the process that starts them


def work(arguments: argparse.Namespace) -> None:
    """One of the ranks: measure, and let rank 0 write the rows beside the blocks."""
    torch.set_num_threads(1)
    measure = {"constants": constants, "search": search, "embedding": embedding, "training": training}
    with distributed.join() as world, Progress(disable=not world.is_first, transient=True) as progress:
        worlds = {1: World()}
        for ranks in RANKS[1:]:
            worlds[ranks] = World(world.rank, ranks, dist.new_group(range(ranks)), world.watcher)
        bench = Bench(world, worlds, progress, resident(), arguments.repeats, arguments.seed)
        rows: list[Row] = []
        for part in arguments.parts:
            began = time.perf_counter()
            rows += measure[part](bench, arguments.work)
            if world.is_first:
                progress.console.print(f"{part}: {time.perf_counter() - began:.0f} s")
        if world.is_first:
            arguments.work.with_suffix(".json").write_text(json.dumps(rows))


def start(arguments: argparse.Namespace) -> list[Row]:
    """Write the blocks, start the ranks by torchrun, and return the rows they measured."""
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        path = Path(folder) / "blocks.npy"
        if {"constants", "search"} & set(arguments.parts):
            write_blocks(path, arguments.blocks, arguments.seed)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(max(*RANKS, os.cpu_count() or 1)), __file__, "--work", str(path)]
        command += ["--parts", *arguments.parts, "--repeats", str(arguments.repeats), "--seed", str(arguments.seed)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        return json.loads(path.with_suffix(".json").read_text())


def others(path: Path, heading: dict[str, str], parts: list[str]) -> list[Row]:
    """The rows of the parts that are not measured anew.

    Raises:
        ValueError: they are of another machine or other versions.
    """
    if not path.is_file() or len(parts) == len(PARTS):
        return []
    found, rows = scale_model.read(path)
    differing = [key for key in heading if found.get(key) != heading[key]]
    if differing:
        raise ValueError(f"{path} is of another {', '.join(differing)}: measure all parts, or name another --out")
    return [row for row in rows if part_of(row) not in parts]


def part_of(row: Row) -> str:
    return "constants" if row["section"] == "constant" else row["section"]


def write_csv(path: Path, heading: dict[str, str], rows: list[Row]) -> None:
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in heading.items())
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def plot(path: Path, rows: list[Row]) -> None:
    """Time against ranks, measured and predicted: one picture for each section."""
    from matplotlib.figure import Figure

    known = scale_model.constants_of(rows)
    sections = [section for section in PARTS if any(row["section"] == section for row in rows)]
    figure = Figure(figsize=(5 * len(sections), 5), layout="constrained")
    for axis, section in zip(np.atleast_1d(figure.subplots(1, len(sections))), sections, strict=True):
        lines: dict[str, list[Row]] = {}
        for row in rows:
            if row["section"] == section and row["name"] == "ranks":
                lines.setdefault(scale_model.label(row), []).append(row)
        for i, (label, found) in enumerate(lines.items()):
            ranks = [row["ranks"] for row in found]
            axis.plot(ranks, [row["value"] for row in found], "o", color=f"C{i}", label=label)
            axis.plot(ranks, [scale_model.predicted(known, row) for row in found], "--", color=f"C{i}")
        axis.set(title=section, xlabel="ranks", ylabel="seconds", xscale="log")
        axis.set(yscale="log") if len(lines) > 1 else axis.set_ylim(bottom=0)
        axis.set_xticks(RANKS, [str(count) for count in RANKS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    figure.suptitle(f"{known['cores']:.0f} cores, one thread a rank; dots: measured, dashes: predicted")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--blocks", type=lambda text: int(float(text)), default=BLOCKS, help="to search")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="a folder with room for the blocks (default: the system's)")
    parser.add_argument("--out", type=Path, default=scale_model.CSV.parent, help="the folder of scale.csv")
    parser.add_argument("--plan", nargs="+", type=float, metavar="BLOCKS", help="print the tables for so many blocks")
    parser.add_argument(
        "--memory", nargs="+", type=float, metavar="GIB", default=scale_model.Plan().memory, help="of a machine"
    )
    parser.add_argument("--latency", type=float, metavar="SECONDS", help="of a network between the machines")
    parser.add_argument("--bandwidth", type=float, metavar="BYTES", help="of that network, a second")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # what a rank is started with
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.work:
        return work(arguments)
    from bench_model import cpu_name  # which imports much that a rank has no use for

    path = arguments.out / "scale.csv"
    if arguments.plan:
        plan = scale_model.Plan(memory=tuple(arguments.memory))
        rows = scale_model.over_network(scale_model.read(path)[1], arguments.latency, arguments.bandwidth)
        made = scale_model.plan_tables(scale_model.constants_of(rows), [int(size) for size in arguments.plan], plan)
        for name, text in made.items():
            print(f"{name}\n\n{text}\n")
        return None
    today = datetime.date.today().isoformat()
    heading = {"cpu": cpu_name(), "torch": torch.__version__, "seed": str(arguments.seed)}
    heading |= {"blocks": str(arguments.blocks), "threads of a rank": "1"}
    kept = others(path, heading, arguments.parts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    measured = [{**row, "date": today} for row in start(arguments)]
    rows = sorted(kept + measured, key=lambda row: PARTS.index(part_of(row)))
    write_csv(path, heading, rows)
    _, rows = scale_model.read(path)  # as a reader finds them
    if {part_of(row) for row in rows} < set(PARTS):
        missing = ", ".join(set(PARTS) - {part_of(row) for row in rows})
        print(f"written to {path}; the plot and the tables need what was not measured: {missing}")
        return None
    plot(path.with_suffix(".png"), rows)
    made = scale_model.tables(rows)
    for name in arguments.parts:
        print(f"{name}\n\n{made[name]}\n")
    if arguments.out == scale_model.CSV.parent:
        for document in DOCUMENTS:
            text = document.read_text(encoding="utf-8")
            with write_atomically(document) as temporary:
                temporary.write_text(scale_model.fill(text, made), encoding="utf-8")
    print(f"written to {path}, {path.with_suffix('.png')}, and into the documents' tables")
    return None


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(f"bench_scale: {error}") from None
