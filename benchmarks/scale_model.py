"""What R ranks cost: memory, bytes and time of a search, of an embedding and of a training step, as formulas.

Arithmetic and nothing else. Its constants stand in scale.csv, where bench_scale.py writes what it measured with one
rank or by timing single operations; docs/scaling.md explains the formulas, and its tables are made here.

Symbols: N blocks, D dimensions, R ranks, M machines of C cores, Q queries, k blocks a query, P parameters.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from realm_min.config import RealmConfig
from realm_min.search.bounds import BASE_GROUP

DIMENSIONS = 128
CODE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # a dimension, as the scan reads it
BOUND_BYTES = {"float32": 8, "bfloat16": 16, "int8": 20}  # a group of BASE_GROUP rows: norm, residual, scale
HEAD_BYTES, CANDIDATE_BYTES = 32, 8  # how much a rank searches for; a score and an id, packed into one int64
BUCKET = 1 << 20  # gradients that are summed at a time
QUERIES_AT_ONCE = 64  # which one pass over the blocks can serve
# scale.csv holds searches that kept the maxima of groups of rows; today's keep the rows that reach a threshold.
MAXIMA_BYTES = 16 << 20
MAX_GROUP = 128
MEASURED_CODES = ("float32", "int8")
CSV = Path(__file__).parent / "scale.csv"

# Constants: name -> (unit, what it is). "Alone" is one rank while the other cores rest, "together" all cores at once.
CONSTANTS = {
    "cores": ("", "C, cores of a machine"),
    "process": ("bytes", "a rank before it holds anything: Python and torch"),
    "scan alone": ("bytes/s", "one query times blocks in memory, float32"),
    "scan together": ("bytes/s", "the same on all cores at once, in sum"),
    "product alone": ("FLOP/s", "a matrix product of the encoder's size, float32"),
    "product together": ("FLOP/s", "the same on all cores at once, in sum"),
    **{
        f"{codes} {name}": ("s", text)
        for codes in MEASURED_CODES
        for name, text in (
            ("block", f"a search, for each block: reading it as {codes}"),
            ("pair", "for each block and query: their product, and what becomes of it"),
            ("query", "for each query"),
            ("candidate", "for each query and row of its k best groups: looking at it again"),
        )
    },
    "gather latency": ("s", "a step of an all-gather, however short the message"),
    "gather bandwidth": ("bytes/s", "the same, for each byte"),
    "reduce latency": ("s", "a step of an all-reduce"),
    "reduce bandwidth": ("bytes/s", "the same, for each byte"),
    "embed rate": ("FLOP/s", "embedding blocks with the default model, one rank alone"),
    "embed rate base": ("FLOP/s", "embedding blocks at BERT-base size, one rank alone"),
    "tokens": ("", "of a Factbook block, on average"),
    "train rate": ("FLOP/s", "forward and backward pass of a training step, one rank alone"),
    "train rate base": ("FLOP/s", "the same at BERT-base size"),
    "update": ("s", "clipping and updating one parameter, one rank alone"),
}
Constants = dict[str, float]
Row = dict[str, Any]


class Plan(NamedTuple):
    """What the tables of sizes that nobody here can run suppose, beside the constants."""

    memory: tuple[float, ...] = (16, 64, 256)  # GiB of a machine
    codes: str = "int8"
    k: int = 5
    texts: int = 512  # of a training step, and candidates a text: the paper's (REALM, section 4.3)
    candidates: int = 8
    passage: int = 96  # wordpieces of a text
    block: int = 288  # wordpieces of a block


# ---- machines


def rank_rate(constants: Constants, work: str, ranks: float) -> float:
    """What each of `ranks` ranks of a machine gets: all that a core can do, until the machine's sum is shared out."""
    return min(constants[f"{work} alone"], constants[f"{work} together"] / ranks)


def stretch(constants: Constants, work: str, ranks: float) -> float:
    """How many times longer a rank takes among `ranks` than alone: bandwidth is shared, and so are too few cores."""
    return constants[f"{work} alone"] / rank_rate(constants, work, ranks)


def crowding(constants: Constants, ranks: float) -> float:
    """Ranks that wait for each core of a machine, at least 1."""
    return max(1.0, ranks / constants["cores"])


# ---- memory and bytes


def index_bytes(blocks: int, ranks: int, codes: str = "float32", dimensions: int = DIMENSIONS) -> int:
    """Bytes of a rank's slice: float32 blocks (memory-mapped), their compressed copy, the bounds."""
    rows = -(-blocks // ranks)
    copy = 0 if codes == "float32" else CODE_BYTES[codes] * dimensions * rows
    return 4 * dimensions * rows + copy + BOUND_BYTES[codes] * -(-rows // BASE_GROUP)


def training_bytes(parameters: int) -> int:
    """Bytes of a rank's weights, gradients and both averages of AdamW, float32; activations come on top."""
    return 16 * parameters


def exchanged_bytes(ranks: int, queries: int, k: int) -> list[int]:
    """Bytes that a rank sends to each other in the three exchanges of a search; every rank has its share of queries.

    How many queries, the queries in float32, and the k candidates of those of another rank.
    """
    share = -(-queries // ranks)
    return [HEAD_BYTES, share * 4 * DIMENSIONS, share * k * CANDIDATE_BYTES]


def machines_needed(
    constants: Constants, blocks: int, memory: float, codes: str = "float32", parameters: int = 0
) -> int:
    """The fewest machines of `memory` bytes, a rank on each of their cores, that hold the index and train a model."""
    cores = int(constants["cores"])
    left = memory / cores - constants["process"] - training_bytes(parameters)  # of a rank, for its slice
    if left < index_bytes(1, 1, codes):
        raise ValueError(
            f"{memory / 2**30:.3g} GiB leave {left / 2**30:.2g} GiB for a slice on each of {cores} ranks: take "
            "machines of more memory"
        )
    machines = max(1, math.floor(index_bytes(blocks, 1, codes) / left / cores))
    while index_bytes(blocks, machines * cores, codes) > left:
        machines += 1
    return machines


# ---- seconds


def gather_seconds(constants: Constants, ranks: int, bytes_a_rank: float, machines: int = 1) -> float:
    """A ring: what each rank has goes R - 1 steps, from neighbour to neighbour."""
    step = constants["gather latency"] + bytes_a_rank / constants["gather bandwidth"]
    return (ranks - 1) * step * crowding(constants, ranks / machines)


def reduce_seconds(constants: Constants, ranks: int, count: float, messages: int = 1) -> float:
    """A ring of `count` bytes: R - 1 steps that add the parts up and R - 1 that spread the sums, an R-th of it each.

    Sent as so many `messages`, each has its own latency. It goes on beside the backward pass: where ranks share a core,
    others compute while one waits.
    """
    step = messages * constants["reduce latency"] + count / ranks / constants["reduce bandwidth"]
    return 2 * (ranks - 1) * step


def group_size(rows: int, k: int) -> int:
    """Rows a group: large groups make few maxima to select from, small ones few rows to rescore for a large k."""
    group = MAX_GROUP
    while group > BASE_GROUP and rows < 32 * k * group:
        group //= 2
    return group


def passes(rows: int, queries: int, k: int) -> int:
    """How often a search reads its blocks: its queries go in chunks whose group maxima fit in MAXIMA_BYTES."""
    groups = -(-rows // group_size(rows, k))
    return -(-queries // max(1, min(QUERIES_AT_ONCE, MAXIMA_BYTES // (4 * groups))))


def search_terms(rows: int, queries: int, k: int) -> tuple[float, float, float, float]:
    """What the four constants of a search are multiplied by: blocks read, pairs, queries, candidate rows."""
    return rows * passes(rows, queries, k), rows * queries, queries, queries * k * group_size(rows, k)


def slice_seconds(
    constants: Constants, rows: int, queries: int, k: int, codes: str = "float32", ranks: float = 1
) -> float:
    """One rank's exact top-k over `rows` blocks, while the other `ranks` - 1 of its machine search theirs."""
    names = ("block", "pair", "query", "candidate")
    parts = [
        constants[f"{codes} {name}"] * count for name, count in zip(names, search_terms(rows, queries, k), strict=True)
    ]
    return parts[0] * stretch(constants, "scan", ranks) + sum(parts[1:]) * stretch(constants, "product", ranks)


def search_seconds(
    constants: Constants, blocks: int, ranks: int, queries: int, k: int, codes: str = "float32", machines: int = 1
) -> float:
    """A search on R ranks: all queries over the slice of each, and the exchanges of queries and candidates."""
    local = slice_seconds(constants, -(-blocks // ranks), queries, k, codes, ranks / machines)
    exchanges = exchanged_bytes(ranks, queries, k)
    return local + sum(gather_seconds(constants, ranks, count, machines) for count in exchanges)


def encoder_flops(config: RealmConfig, lengths: list[float]) -> float:
    """Operations of the encoder's forward pass over texts of these lengths in tokens, nothing padded.

    A layer has 4 H² + 2 H I weights, two operations each and token; attention multiplies T x T by H twice.
    """
    h, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    weights = 4 * h * h + 2 * h * i
    return float(sum(layers * (2 * weights * tokens + 4 * h * tokens * tokens) for tokens in lengths))


def encoder_parameters(config: RealmConfig) -> int:
    """Weights of a BERT of this size: its layers and its tables of embeddings."""
    h, i = config.hidden_size, config.intermediate_size
    layer = 4 * h * h + 2 * h * i + 9 * h + i
    tables = config.vocab_size + config.max_position_embeddings + config.type_vocab_size + 2
    return config.num_hidden_layers * layer + tables * h


def embed_seconds(constants: Constants, ranks: int, flops: float, rate: str = "embed rate", machines: int = 1) -> float:
    """Embedding on R ranks that share the tokens equally and exchange nothing."""
    return flops / ranks / constants[rate] * stretch(constants, "product", ranks / machines)


def gradients_seconds(constants: Constants, ranks: int, parameters: int) -> float:
    """The sum of all gradients over the ranks, in buckets of BUCKET numbers."""
    return reduce_seconds(constants, ranks, 4 * parameters, messages=-(-parameters // BUCKET))


def train_seconds(
    constants: Constants,
    ranks: int,
    flops: float,
    parameters: int,
    search: float = 0.0,
    rate: str = "train rate",
    machines: int = 1,
) -> float:
    """A data-parallel step: search, forward and backward pass of a rank's share of the batch, all-reduce, update.

    Args:
        flops: of the forward pass over the whole batch; the backward pass does twice as much.
        parameters: all float32, their gradients summed over the ranks.
        search: its seconds, from `search_seconds`.
    """
    slower = stretch(constants, "product", ranks / machines)
    compute = 3 * flops / ranks / constants[rate] * slower
    reduce = gradients_seconds(constants, ranks, parameters)
    update = parameters * constants["update"] * stretch(constants, "scan", ranks / machines)
    return search + compute + reduce + update


# ---- constants from measurements


def fit_search(measured: list[Row]) -> list[float]:
    """The four constants of a search from searches by one rank: {"blocks", "queries", "k", "value"}, in seconds.

    Least squares of the relative errors over `search_terms`; a constant that would be negative is 0.
    """
    terms = np.array([search_terms(int(m["blocks"]), int(m["queries"]), int(m["k"])) for m in measured], float)
    terms /= np.array([m["value"] for m in measured])[:, None]
    kept = list(range(terms.shape[1]))
    while True:
        found = np.linalg.lstsq(terms[:, kept], np.ones(len(measured)), rcond=None)[0]
        if (found >= 0).all():
            return [float(found[kept.index(i)]) if i in kept else 0.0 for i in range(terms.shape[1])]
        kept.pop(int(found.argmin()))


# ---- scale.csv


def read(path: Path = CSV) -> tuple[dict[str, str], list[Row]]:
    """The heading and the rows of a scale.csv; numbers as float, empty cells left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    heading = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    rows = [
        {key: _number(value) for key, value in row.items() if value}
        for row in csv.DictReader(line for line in lines if not line.startswith("# "))
    ]
    return heading, rows


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def constants_of(rows: list[Row]) -> Constants:
    """The constants among the rows of a scale.csv."""
    return {row["name"]: row["value"] for row in rows if row["section"] == "constant"}


def predicted(constants: Constants, row: Row) -> float | None:
    """What the model says of a measured row: a search, an embedding or a training step; nothing of several threads."""
    ranks = int(row["ranks"])
    if row["name"] == "threads":
        return None
    if row["section"] == "search":
        return search_seconds(
            constants, int(row["blocks"]), ranks, int(row["queries"]), int(row["k"]), str(row["codes"])
        )
    if row["section"] == "embedding":
        return embed_seconds(constants, ranks, row["flops"])
    return train_seconds(constants, ranks, row["flops"], int(row["parameters"]))


def over_network(rows: list[Row], latency: float | None, bandwidth: float | None) -> list[Row]:
    """The rows with another latency (seconds) and bandwidth (bytes a second) of the exchanges, where they are given."""
    given = {"latency": latency, "bandwidth": bandwidth}
    return [
        {**row, "value": given[kind]} if (kind := str(row["name"]).split()[-1]) in given and given[kind] else row
        for row in rows
    ]


# ---- tables


def table(head: list[str], rows: list[list[str]], text: int = 1) -> str:
    """A Markdown table; the first `text` columns are text, the others numbers."""
    lines = [head, ["---"] * text + ["---:"] * (len(head) - text), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def constants_table(constants: Constants) -> str:
    """Every constant with its value."""
    lines = [
        [name, _with_unit(constants[name], unit), text] for name, (unit, text) in CONSTANTS.items() if name in constants
    ]
    return table(["constant", "value", "what it is"], lines, text=3)


def measured_table(rows: list[Row], section: str) -> str:
    """Measured beside predicted: the rows of "search", "embedding" or "training"."""
    constants, lines = constants_of(rows), []
    for row in rows:
        if row["section"] != section:
            continue
        said = predicted(constants, row)
        lines.append(
            [
                label(row),
                NO_RANKS.get(str(row["name"]), f"{row['ranks']:.0f}"),
                _time(row["value"]),
                _time(said) if said else "",
                f"{said / row['value'] - 1:+.0%}" if said else "",
                f"{row['ratio']:.2f}x",
            ]
            + ([f"{row['share']:.1%}" if "share" in row else ""] if section == "search" else [])
        )
    head = ["work", "ranks", "measured", "predicted", "off by", "speed-up"]
    return table(head + ["exchange"] * (section == "search"), lines)


def summary_table(rows: list[Row]) -> str:
    """What 2 and 4 ranks bring: the largest search, the embedding, the training step."""
    lines: dict[str, list[str]] = {}
    largest = max(row.get("blocks", 0) for row in rows if row["section"] == "search")
    for row in rows:
        if row["name"] == "ranks" and (row["section"] != "search" or row["blocks"] == largest):
            found = lines.setdefault(label(row), [label(row)])
            found.append(_time(row["value"]))
            found += [f"{row['ratio']:.2f}x"] if row["ranks"] > 1 else []
    return table(["work", "1 rank", "2 ranks", "speed-up", "4 ranks", "speed-up"], list(lines.values()))


def memory_table(rows: list[Row]) -> str:
    """Memory that the largest index took on a rank, beside what the model says."""
    largest = max(row.get("blocks", 0) for row in rows if row["section"] == "search")
    found = {
        (row["codes"], row["ranks"]): row["bytes"]
        for row in rows
        if row["section"] == "search" and "bytes" in row and row["blocks"] == largest
    }
    lines = []
    for (codes, ranks), held in found.items():
        said = index_bytes(int(largest), int(ranks), str(codes))
        lines.append([str(codes), f"{ranks:.0f}", _bytes(held), _bytes(said), f"{said / held - 1:+.0%}"])
    return table(["codes", "ranks", "measured", "predicted", "off by"], lines)


def slices_table(sizes: list[int]) -> str:
    """Bytes of the index, and the slice of a rank."""
    shown = (1, 2, 4, 16, 64, 256)
    lines = [
        [f"{_count(blocks)}, {codes}", *(_bytes(index_bytes(blocks, ranks, codes)) for ranks in shown)]
        for blocks in sizes
        for codes in MEASURED_CODES
    ]
    return table(["blocks", *(f"R = {ranks}" for ranks in shown)], lines)


def search_table(constants: Constants, sizes: list[int], plan: Plan) -> str:
    """Machines that hold the index, and what a search takes on them."""
    cores, lines = int(constants["cores"]), []
    for blocks in sizes:
        needed = [machines_needed(constants, blocks, memory * 2**30, plan.codes) for memory in plan.memory]
        for i, (memory, machines) in enumerate(zip(plan.memory, needed, strict=True)):
            if machines in needed[:i]:
                continue  # less memory does
            ranks = machines * cores
            seconds = [
                search_seconds(constants, blocks, ranks, queries, plan.k, plan.codes, machines) for queries in (1, 64)
            ]
            received = (ranks - 1) * sum(exchanged_bytes(ranks, 1, plan.k))
            lines.append(
                [
                    _count(blocks), f"{memory:,.0f} GiB", f"{machines:,}", f"{ranks:,}",
                    _bytes(index_bytes(blocks, ranks, plan.codes)), *map(_time, seconds), _bytes(received),
                ]
            )  # fmt: skip
    head = ["blocks", "a machine's memory", "machines", "ranks", "a rank's slice", "1 query", "64 queries"]
    return table([*head, "a rank receives, 1 query"], lines)


def embedding_table(constants: Constants, sizes: list[int]) -> str:
    """A full re-embedding at BERT-base size: operations, machine-hours, hours on so many machines."""
    config, cores, shown, lines = RealmConfig(), int(constants["cores"]), (1, 16, 256, 4096), []
    for blocks in sizes:
        flops = blocks * encoder_flops(config, [constants["tokens"]])
        hours = [
            embed_seconds(constants, machines * cores, flops, "embed rate base", machines) / 3600 for machines in shown
        ]
        lines.append([_count(blocks), f"{flops:.2g}", f"{hours[0]:,.0f}", *(_hours(value) for value in hours[1:])])
    return table(["blocks", "FLOP", "machine-hours", *(f"on {machines:,} machines" for machines in shown[1:])], lines)


def step_flops(config: RealmConfig, plan: Plan) -> float:
    """Forward operations of one pre-training step: texts and documents embedded, and each pair read."""
    each = [plan.passage] + [plan.block] * plan.candidates + [plan.passage + plan.block] * plan.candidates
    return plan.texts * encoder_flops(config, each)


def training_table(constants: Constants, sizes: list[int], plan: Plan) -> str:
    """A pre-training step of the paper's batch at BERT-base size, on the fewest machines and on more."""
    config, cores = RealmConfig(), int(constants["cores"])
    parameters = 2 * encoder_parameters(config)
    flops, memory, lines = step_flops(config, plan), max(plan.memory), []
    for blocks in sizes:
        fewest = machines_needed(constants, blocks, memory * 2**30, plan.codes, parameters)
        for machines in sorted({fewest, *(count for count in (16, 64, 256) if count > fewest)}):
            ranks = machines * cores
            if ranks > plan.texts:
                continue
            search = search_seconds(constants, blocks, ranks, plan.texts, plan.candidates, plan.codes, machines)
            reduce = gradients_seconds(constants, ranks, parameters)
            whole = train_seconds(constants, ranks, flops, parameters, search, "train rate base", machines)
            parts = (search, whole - search - reduce, reduce, whole)
            lines.append([_count(blocks), f"{machines:,}", f"{ranks:,}", *map(_time, parts)])
    return table(["blocks", "machines", "ranks", "search", "compute and update", "all-reduce", "step"], lines)


SECTIONS = ("search", "embedding", "training")
NO_RANKS = {"BlockIndex": "`BlockIndex`", "threads": "`BlockIndex`, C threads"}
SIZES = [13_353_718, 100_000_000, 1_000_000_000, 10_000_000_000]


def plan_tables(constants: Constants, sizes: list[int], plan: Plan) -> dict[str, str]:
    """The tables of sizes that nobody here can run, by name."""
    return {
        "slices": slices_table(sizes),
        "plan search": search_table(constants, sizes, plan),
        "plan embedding": embedding_table(constants, sizes),
        "plan training": training_table(constants, sizes, plan),
    }


def tables(rows: list[Row]) -> dict[str, str]:
    """Every table of the documents by its name, from the rows of a scale.csv."""
    constants = constants_of(rows)
    return {
        "constants": constants_table(constants),
        **{section: measured_table(rows, section) for section in SECTIONS},
        "memory": memory_table(rows),
        "summary": summary_table(rows),
        **plan_tables(constants, SIZES, Plan()),
    }


def fill(document: str, made: dict[str, str]) -> str:
    """The document with its tables made anew; each stands between two comments, the first of which names it.

    Raises:
        ValueError: a table that the document asks for is not among `made`.
    """

    def replace(match: re.Match) -> str:
        if match[1] not in made:
            raise ValueError(f"no table is called {match[1]!r}: choose one of {', '.join(made)}")
        return f"<!-- table: {match[1]} -->\n{made[match[1]]}\n<!-- end of table -->"

    return re.sub(r"<!-- table: ([\w ]+) -->\n.*?<!-- end of table -->", replace, document, flags=re.DOTALL)


def label(row: Row) -> str:
    """What a measured row did."""
    if row["section"] == "search":
        queries = f"{row['queries']:.0f} quer{'y' if row['queries'] == 1 else 'ies'}"
        return f"{queries} over {_count(row['blocks'])} blocks, {row['codes']}, k = {row['k']:.0f}"
    if row["section"] == "embedding":
        work = "index" if row["name"] == "command" else "embed"
        return f"{work} {row['blocks']:.0f} Factbook blocks"
    return f"a training step of {row['queries']:.0f} blocks of 128 wordpieces"


def _count(value: float) -> str:
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.4g} {name}"
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for size, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {name}" if value < 999.5 * size else f"{value / size:,.0f} {name}"
    return f"{value:.0f} B"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2g} h"


def _with_unit(value: float, unit: str) -> str:
    if unit == "bytes":
        return _bytes(value)
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")):
        if value >= size and (unit != "" or size == 1):
            return f"{value / size:.3g} {prefix}{unit}".strip()
    return f"{value:.3g} {unit}".strip()
