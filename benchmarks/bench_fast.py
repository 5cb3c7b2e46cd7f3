"""What each line of `model/fast.py` brings: it beside the plain line that it replaces, `make bench-fast`.

The trunk at BERT-base's width with 2 layers, float32: one question of 14 tokens and 8 Factbook blocks through the
embedder, 5 blocks of 320 tokens through the reader, and a reader's training step without dropout. One line is made
plain at a time, all others stay fast; the two alternate in one process, and a figure is the median of the ratios of
their times, plain over fast. Both give the same numbers, but for rounding.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench_model import cpu_name
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import realm_min
from realm_min.jobs.memory import keep_freed_memory
from realm_min.model import bert, fast, ops, realm
from realm_min.text import corpus

LAYERS = 2
Work = Callable[[], Tensor]
NO_LIMIT = 1 << 60


def three_products(p: Any, config: Any, name: str, x: Tensor, only: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """`fast.project` with a product each for query, key and value."""
    hidden = config.hidden_size
    weight, bias = p.qkv[name]
    query, key, value = (
        torch.addmm(bias[first : first + hidden], of_rows, weight[:, first : first + hidden])
        for first, of_rows in ((0, x if only is None else x[only]), (hidden, x), (2 * hidden, x))
    )
    return query * (hidden // config.num_attention_heads) ** -0.5, key, value


def product_then_sum(p: Any, name: str, x: Tensor, h: Tensor, rows: Any, masks: Any) -> tuple[Tensor, Any]:
    """`fast.add_linear` without dropout: the product, and then what it is added to."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    return x + ops.linear(h, weight, bias), (h, weight, name, None)


def all_positions(p: Any, config: Any, batch: Any, read: str, run: Any = bert.PLAIN) -> tuple[Any, Any]:
    """`bert.bert` with a last layer for every position, also where the first alone is read."""
    if read != "first":
        return bert.bert(p, config, batch, read, run)
    encoded, kept = bert.bert(p, config, batch, "unpadded", run)
    return encoded._replace(hidden=encoded.hidden[:, 0]), kept


# What is read in fast.py: the attribute that is made plain, and the plain one.
PLAIN_LINES: dict[str, tuple[Any, str, Any]] = {
    "rows_of": (fast, "is_right_padded", lambda mask: False),
    "first_rows": (realm, "bert", all_positions),
    "attend: one product": (fast, "project", three_products),
    "attend: pieces": (fast, "SCORES_AT_ONCE", NO_LIMIT),
    "add_linear": (fast, "add_linear", product_then_sum),
    "mlp: pieces": (fast, "MLP_ROWS", NO_LIMIT),
    "mlp: pieces of the activation": (ops, "PIECE", NO_LIMIT),
}
# Where a line is used: of the pieces of work below, by the first word of their names.
USED = {
    "rows_of": {"embed 8"},
    "first_rows": {"embed 1", "embed 8"},
    "attend: one product": {"embed 1", "embed 8", "read"},
    "attend: pieces": {"embed 8", "read", "a reader"},
    "add_linear": {"embed 1", "embed 8", "read"},
    "mlp: pieces": {"embed 8", "read"},
    "mlp: pieces of the activation": {"a reader"},
}


def works(seed: int) -> dict[str, Work]:
    """The pieces of work by name; each returns numbers by which the plain and the fast line are compared."""
    config = realm_min.RealmConfig(
        num_hidden_layers=LAYERS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, reader_beam_size=5
    )
    embedder, reader = (kind(config, seed=seed).eval() for kind in (realm_min.RealmEmbedder, realm_min.RealmReader))
    learner = realm_min.RealmReader(config, seed=seed).train()
    generator = torch.Generator().manual_seed(seed)
    tokenizer = realm_min.RealmTokenizerFast(Path(realm_min.__file__).parent / "assets" / "vocab.txt")
    cut = list(corpus.cut_blocks(corpus.factbook_documents(), tokenizer))
    chosen = torch.randperm(len(cut), generator=generator)[:8].tolist()
    blocks = dict(tokenizer([cut[i].text for i in chosen], padding=True, return_tensors="pt"))
    question = torch.randint(1000, 20000, (1, 14), generator=generator)
    types = (torch.arange(320) >= 16).long().expand(5, -1).contiguous()
    read = {
        "input_ids": torch.randint(1000, 20000, (5, 320), generator=generator),
        "token_type_ids": types,
        "relevance_score": torch.randn(5, generator=generator),
        "block_mask": types.bool(),
    }
    answers = torch.tensor([[40], [60], [100], [-1], [-1]])
    labels = {"start_positions": answers, "end_positions": answers, "has_answers": answers[:, 0] >= 0}

    def learn() -> Tensor:
        learner.zero_grads()
        learner(**read, **labels)
        learner.backward()
        return learner.grads["realm.encoder.layer.0.attention.self.query.weight"]

    return {
        "embed 1 question of 14 tokens": lambda: embedder(question).projected_score,
        f"embed 8 blocks of {int(blocks['attention_mask'].sum(1).min())} to {blocks['input_ids'].shape[1]} tokens": (
            lambda: embedder(**blocks).projected_score
        ),
        "read 5 blocks of 320 tokens": lambda: reader(**read).candidate.double(),
        "a reader's training step": learn,
    }


@contextlib.contextmanager
def made_plain(line: str) -> Iterator[None]:
    owner, name, plain = PLAIN_LINES[line]
    with patch.object(owner, name, plain):
        yield


def compare(line: str, work: Work, repeats: int) -> list[float]:
    """Ratios of the times, plain over fast, after a run of each that shows that they agree."""
    found = work().clone()
    with made_plain(line):
        expected = work()
    error = float((found - expected).abs().max() / expected.abs().max())
    if error > 1e-4:
        raise SystemExit(f"{line}: the plain line differs by {error:.1e} of the largest value")
    ratios = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        middle = time.perf_counter()
        with made_plain(line):
            work()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/fast.csv"))
    arguments = parser.parse_args()
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        pairs = [(line, *item) for item in works(arguments.seed).items() for line in PLAIN_LINES]
        for line, title, work in track(pairs, transient=True):
            if not title.startswith(tuple(USED[line])):
                continue
            ratios = sorted(compare(line, work, arguments.repeats * (5 if title.startswith("embed 1") else 1)))
            quarter = len(ratios) // 4
            rows.append(
                {
                    "line": line,
                    "work": title,
                    "plain_over_fast": f"{statistics.median(ratios):.3f}",
                    "quartile_1": f"{ratios[quarter]:.3f}",
                    "quartile_3": f"{ratios[-1 - quarter]:.3f}",
                    "repeats": len(ratios),
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                    "cpu": cpu_name(),
                    "seed": arguments.seed,
                    "date": datetime.date.today().isoformat(),
                }
            )
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = Table(title=f"Time of the plain line over the fast one, {LAYERS} layers of BERT-base's width, float32")
    for column in ("line", "work", "plain / fast", "quartiles"):
        table.add_column(column, justify="left" if column in ("line", "work") else "right")
    for row in rows:
        table.add_row(row["line"], row["work"], row["plain_over_fast"], f"{row['quartile_1']} to {row['quartile_3']}")
    Console().print(table)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
