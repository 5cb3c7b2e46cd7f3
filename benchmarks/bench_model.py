"""Time the models against transformers 4.40.2 at BERT-base size, both in this run: `make bench-model`.

Four pieces of work: one question through the embedder, five reader inputs of 320 tokens, 200 Factbook blocks of their
natural lengths through the embedder, and the Factbook through both fast tokenizers. Peer and ours alternate; the table
gives each side's median and the median of the ratios. transformers embeds blocks as its users do: batches of 16 in
corpus order, each padded to its longest; ours takes the same batches, first sorted by length, as `realm-min index`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

import realm_min
from realm_min.text import corpus

Work = Callable[[], torch.Tensor]
BATCH = 16


def twins(class_name: str, seed: int) -> tuple[torch.nn.Module, realm_min.RealmEmbedder | realm_min.RealmReader]:
    """transformers' model and ours with the same random weights, in evaluation mode."""
    torch.manual_seed(seed)
    theirs = getattr(transformers, class_name)(transformers.RealmConfig()).eval()
    ours = getattr(realm_min, class_name)(realm_min.RealmConfig(), initialize=False).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def question(seed: int) -> tuple[str, Work, Work]:
    theirs, ours = twins("RealmEmbedder", seed)
    ids = torch.randint(1000, 20000, (1, 14), generator=torch.Generator().manual_seed(seed))
    return "embed 1 question of 14 tokens", lambda: theirs(ids).projected_score, lambda: ours(ids).projected_score


def reader(seed: int) -> tuple[str, Work, Work]:
    theirs, ours = twins("RealmReader", seed)
    generator = torch.Generator().manual_seed(seed)
    types = (torch.arange(320) >= 16).long().expand(5, -1)
    inputs = dict(
        input_ids=torch.randint(1000, 20000, (5, 320), generator=generator),
        token_type_ids=types,
        relevance_score=torch.randn(5, generator=generator),
        block_mask=types.bool(),
    )
    return "read 5 blocks of 320 tokens", lambda: theirs(**inputs).candidate, lambda: ours(**inputs).candidate


def blocks(seed: int, count: int) -> tuple[str, Work, Work]:
    theirs, ours = twins("RealmEmbedder", seed)
    tokenizer = realm_min.RealmTokenizerFast(Path(realm_min.__file__).parent / "assets" / "vocab.txt")
    cut = list(corpus.cut_blocks(corpus.factbook_documents(), tokenizer))
    chosen = torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))[:count].sort().values.tolist()
    pairs = [(cut[i].title, cut[i].text) for i in chosen]
    lengths = [len(ids) for ids in tokenizer(pairs).input_ids]

    def embed(model: Callable, order: list[int]) -> torch.Tensor:
        scores = torch.empty(count, model.config.retriever_proj_size)
        for first in range(0, count, BATCH):
            batch = order[first : first + BATCH]
            inputs = tokenizer([pairs[i] for i in batch], padding=True, return_tensors="pt")
            scores[batch] = model(**inputs).projected_score
        return scores

    by_length = sorted(range(count), key=lengths.__getitem__)
    title = f"embed {count} Factbook blocks, {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all"
    return title, lambda: embed(theirs, list(range(count))), lambda: embed(ours, by_length)


def compare(title: str, theirs: Work, ours: Work, repeats: int) -> dict[str, str | float]:
    """Alternate the two `repeats` times after one warm-up; check that they give the same numbers."""
    expected, found = theirs(), ours()
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if error > 1e-5:
        raise SystemExit(f"{title}: ours differs from transformers by {error:.1e} of the largest value")
    times = []
    for _ in track(range(repeats), description=title, transient=True):
        start = time.perf_counter()
        theirs()
        middle = time.perf_counter()
        ours()
        times.append((middle - start, time.perf_counter() - middle))
    return {
        "work": title,
        "transformers_ms": 1e3 * statistics.median(a for a, _ in times),
        "realm_min_ms": 1e3 * statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
        "largest_relative_error": error,
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=200, help="Factbook blocks to embed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/model.csv"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows = []
    with torch.no_grad():
        for make, repeats in (
            (lambda: question(arguments.seed), 21),
            (lambda: reader(arguments.seed), 7),
            (lambda: blocks(arguments.seed, arguments.blocks), 3),
        ):
            rows.append(compare(*make(), repeats))
    machine = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "seed": arguments.seed,
        "date": datetime.date.today().isoformat(),
    }
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)
    table = Table(title=f"BERT-base, float32; medians on {machine['cpu']}, {machine['threads']} threads")
    for column in ("work", "transformers", "realm-min", "ratio"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for row in rows:
        table.add_row(
            row["work"], f"{row['transformers_ms']:.0f} ms", f"{row['realm_min_ms']:.0f} ms", f"{row['ratio']:.2f}x"
        )
    Console().print(table)
    print(f"written to {arguments.out}")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
