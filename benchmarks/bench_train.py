"""Time a training step against transformers 4.40.2 with autograd and torch's AdamW: `make bench-train`.

Forward, backward, clipping by the global norm and update of the knowledge-augmented encoder and of the reader, at
BERT-base's width with 4 layers, in training mode with the configuration's dropout of 0.1. Both take the same weights
and the same inputs: Factbook blocks at their natural lengths, padded to the longest, and sequences without padding,
which is the harder case for us, since transformers computes padding too. AdamW is the fused one, torch's fastest on a
CPU. glibc keeps freed memory (`realm_min.jobs.memory`) for both, since both are faster with it; `--plain-malloc`
leaves it alone for both. Peer and ours alternate in one process; the table gives the median of the ratios, the CSV each
side's median of each phase too.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from bench_model import cpu_name
from rich.console import Console
from rich.progress import track
from rich.table import Table

import realm_min
from realm_min.jobs.memory import keep_freed_memory
from realm_min.learn.optimizer import AdamW, decays
from realm_min.text import corpus

LAYERS, CANDIDATES, BLOCKS = 4, 8, 5
RATE, DECAY, EPS, MAX_NORM = 1e-5, 0.01, 1e-6, 1.0
PHASES = ("forward", "backward", "update")
Inputs = dict[str, torch.Tensor]
Step = Callable[[], tuple[float, float, float]]  # seconds of each phase


@functools.cache
def factbook() -> tuple[realm_min.RealmTokenizerFast, list[corpus.Block]]:
    tokenizer = realm_min.RealmTokenizerFast(Path(realm_min.__file__).parent / "assets" / "vocab.txt")
    return tokenizer, list(corpus.cut_blocks(corpus.factbook_documents(), tokenizer))


def factbook_pairs(text: str, count: int, seed: int, max_length: int) -> Inputs:
    """The text beside each of some Factbook blocks, padded to the longest pair [count, tokens]."""
    tokenizer, blocks = factbook()
    chosen = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    pairs = [(text, blocks[i].text) for i in chosen]
    return dict(tokenizer(pairs, padding=True, truncation=True, max_length=max_length, return_tensors="pt"))


def full_pairs(first: int, count: int, tokens: int, seed: int) -> Inputs:
    """Drawn words without padding, the first text of `first` tokens, [count, tokens]."""
    ids = torch.randint(1000, 20000, (count, tokens), generator=torch.Generator().manual_seed(seed))
    types = (torch.arange(tokens) >= first).long().expand(count, -1).clone()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}


def reader_inputs(pairs: Inputs, seed: int) -> Inputs:
    """With one answer of two words in three of the blocks."""
    starts = torch.full((BLOCKS, 1), -1)
    starts[:3, 0] = torch.tensor([40, 60, 100])
    return pairs | {
        "relevance_score": torch.randn(BLOCKS, generator=torch.Generator().manual_seed(seed)),
        "block_mask": pairs["token_type_ids"].bool(),
        "start_positions": starts,
        "end_positions": torch.where(starts < 0, starts, starts + 1),
        "has_answers": starts[:, 0] >= 0,
    }


def encoder_inputs(pairs: Inputs, seed: int, masked: int = 6) -> Inputs:
    """With some words of the first text masked, the same in every candidate."""
    mask_id, ids = 103, pairs["input_ids"].clone()
    places = slice(5, 5 + masked)
    labels = torch.full((1, ids.shape[1]), -100)
    labels[0, places] = ids[0, places]
    ids[:, places] = mask_id
    return pairs | {
        "input_ids": ids,
        "relevance_score": torch.randn(1, CANDIDATES, generator=torch.Generator().manual_seed(seed)),
        "labels": labels,
        "mlm_mask": (labels != -100).float(),
    }


def twins(class_name: str, seed: int) -> tuple[torch.nn.Module, realm_min.RealmReader]:
    """transformers' model and ours with the same random weights, in training mode."""
    torch.manual_seed(seed)
    values = dict(num_hidden_layers=LAYERS, num_candidates=CANDIDATES, reader_beam_size=BLOCKS)
    theirs = getattr(transformers, class_name)(transformers.RealmConfig(**values))
    ours = getattr(realm_min, class_name)(realm_min.RealmConfig(**values), initialize=False)
    ours.load_state_dict(theirs.state_dict())
    return theirs.train(), ours.train()


def largest_error(theirs: torch.nn.Module, ours: realm_min.RealmReader, inputs: Inputs) -> float:
    """Without dropout: how far a weight matrix's gradient is from autograd's, relative to its largest value."""
    theirs.eval(), ours.eval()
    theirs(**inputs).loss.backward()
    ours(**inputs), ours.backward()
    grads, errors = ours.grads, []
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None and parameter.dim() == 2:
            errors.append(((grads[name] - parameter.grad).abs().max() / parameter.grad.abs().max()).item())
    theirs.train(), ours.train()
    return max(errors)


def their_step(model: torch.nn.Module, inputs: Inputs) -> Step:
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if decays(name)], "weight_decay": DECAY},
        {"params": [p for name, p in named.items() if not decays(name)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, eps=EPS, fused=True)

    def step() -> tuple[float, float, float]:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(**inputs).loss
        computed = time.perf_counter()
        loss.backward()
        derived = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        return computed - start, derived - computed, time.perf_counter() - derived

    return step


def our_step(model: realm_min.RealmReader, inputs: Inputs) -> Step:
    optimizer = AdamW(RATE, 10**6, weight_decay=DECAY, eps=EPS, max_grad_norm=MAX_NORM)

    def step() -> tuple[float, float, float]:
        start = time.perf_counter()
        model.zero_grads()
        model(**inputs)
        computed = time.perf_counter()
        model.backward()
        derived = time.perf_counter()
        optimizer.update(model.state_dict(), model.grads)
        return computed - start, derived - computed, time.perf_counter() - derived

    return step


def compare(class_name: str, title: str, inputs: Inputs, seed: int, repeats: int) -> dict[str, str | float]:
    """Alternate the two `repeats` times, after one step to warm up."""
    theirs, ours = twins(class_name, seed)
    error = largest_error(theirs, ours, inputs)
    if error > 2e-4:
        raise SystemExit(f"{title}: our gradients differ from autograd's by {error:.1e} of the largest value")
    steps = their_step(theirs, inputs), our_step(ours, inputs)
    for step in steps:
        step()
    times = [[step() for step in steps] for _ in track(range(repeats), description=title, transient=True)]
    row: dict[str, str | float] = {"model": class_name, "inputs": title}
    for side, name in enumerate(("transformers", "realm_min")):
        row[f"{name}_ms"] = 1e3 * statistics.median(sum(pair[side]) for pair in times)
        for i, phase in enumerate(PHASES):
            row[f"{name}_{phase}_ms"] = 1e3 * statistics.median(pair[side][i] for pair in times)
    ratios = [sum(a) / sum(b) for a, b in times]
    return row | {
        "ratio": statistics.median(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
        "largest_relative_error": error,
        "repeats": repeats,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, help="threads of torch; default: one for each core")
    parser.add_argument("--plain-malloc", action="store_true", help="let glibc return freed memory to the kernel")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/train.csv"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    kept, seed = not arguments.plain_malloc and keep_freed_memory(), arguments.seed
    question = "What is the highest mountain of the country with the longest coastline?"
    text = (
        "The president is elected by absolute majority popular vote for a five-year term; the last election was held."
    )
    cases = []
    for class_name, name, inputs in (
        ("RealmReader", f"{BLOCKS} Factbook blocks", reader_inputs(factbook_pairs(question, BLOCKS, seed, 320), seed)),
        ("RealmReader", f"{BLOCKS} blocks without padding", reader_inputs(full_pairs(16, BLOCKS, 320, seed), seed)),
        (
            "RealmKnowledgeAugEncoder",
            f"{CANDIDATES} Factbook blocks",
            encoder_inputs(factbook_pairs(text, CANDIDATES, seed, 288), seed),
        ),
        (
            "RealmKnowledgeAugEncoder",
            f"{CANDIDATES} candidates without padding",
            encoder_inputs(full_pairs(64, CANDIDATES, 128, seed), seed),
        ),
    ):
        lengths = inputs["attention_mask"].sum(1).tolist()
        spread = f"{lengths[0]}" if min(lengths) == max(lengths) else f"{min(lengths)} to {max(lengths)}"
        cases.append((class_name, f"{name} of {spread} tokens", inputs))
    rows = [compare(*case, seed, arguments.repeats) for case in cases]
    machine = {
        "layers": LAYERS,
        "dropout": realm_min.RealmConfig().hidden_dropout_prob,
        "keep_freed_memory": kept,
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "seed": seed,
        "date": datetime.date.today().isoformat(),
    }
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)
    table = Table(title=f"A training step, BERT-base width, {LAYERS} layers, float32; {machine['threads']} threads")
    for column in ("model", "inputs", "transformers", "realm-min", "ratio"):
        table.add_column(column, justify="left" if column in ("model", "inputs") else "right")
    for row in rows:
        times = (f"{row[f'{side}_ms']:,.0f} ms" for side in ("transformers", "realm_min"))
        table.add_row(row["model"], row["inputs"], *times, f"{row['ratio']:.2f}x")
    Console().print(table)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
