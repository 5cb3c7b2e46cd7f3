"""The book at work: a small REALM learns to retrieve from masked words alone, in NumPy.

    python -m realm_min.textbook [CORPUS] [--seed 0] [--steps 60]

A document z is a short line of the corpus. The text x is its first word and its names and numbers; the last of them, y,
is masked:

    z   Norway. Capital - name: Oslo
    x   norway capital [MASK]

First the encoder learns to use a document: it gets x with its z, but with another y dealt into both each time, so that
it can copy and has nothing to remember. Then retriever and encoder learn from -log p(y|x) over the documents that
maximum inner product search finds and the null document; nobody says which z belongs to x. Its own z is not barred,
since no other states the fact. The same is done once more with the retriever's gradient thrown away.

`learn/` does so at full size, with three differences: the null document comes first and, since documents have titles
there, is "[CLS] [SEP] [SEP]"; the loss is divided by wordpieces; and the gradients of both models are clipped as one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .config import RealmConfig
from .text.corpus import factbook_documents
from .textbook import (
    MASK,
    NO_LABEL,
    POSITION,
    TYPE,
    WORD,
    Batch,
    Models,
    Weights,
    adamw,
    embed,
    join,
    pretrain_step,
    salient_spans,
    search,
    split_words,
    wordpiece,
)

FACTS, BATCH, CANDIDATES, REFRESH_EVERY = 120, 8, 15, 5
COPY_STEPS, COPY_BATCH = 150, 64
FIRST_WORD = 104  # the id after BERT's special tokens


class Fact(NamedTuple):
    x: list[int]
    y: int
    z: list[int]


class Record(NamedTuple):
    """How often z is found first, in per cent: for the x that training asks about, and for the quarter it does not."""

    step: int
    loss: float  # mean of the last ten steps; nan before the first
    asked: float
    not_asked: float


def lines_of(corpus: str | None) -> list[str]:
    """Lines of a file or of a folder's .txt files; without one, of the CIA World Factbook.

    Raises:
        SystemExit: there is no such file, it is not UTF-8 text, or the Factbook is not installed.
    """
    try:
        if corpus:
            files = sorted(Path(corpus).rglob("*.txt")) if Path(corpus).is_dir() else [Path(corpus)]
            return [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        return [f"{title}. {line}" for title, text, _ in factbook_documents() for line in text.splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise SystemExit(f"{corpus}: {why}: give a file of text, or a folder of .txt files") from None
    except ModuleNotFoundError as error:  # the Factbook
        raise SystemExit(str(error)) from None


def facts_of(lines: Sequence[str], rng: np.random.Generator) -> tuple[list[Fact], int]:
    """At most 120 facts and the size of their vocabulary, every word of which is one piece.

    Raises:
        SystemExit: the lines hold fewer than 16.
    """
    chosen = []
    for i in rng.permutation(len(lines)):
        words = split_words(lines[int(i)])
        if len(chosen) < FACTS and 4 <= len(words) <= 12 and salient_spans(words):
            chosen.append((words, salient_spans(words)))
    if len(chosen) < 16:
        raise SystemExit(
            f"16 lines of 4 to 12 words with a name or number are needed, and {len(chosen)} found: give a larger corpus"
        )
    vocabulary = {word.lower() for words, _ in chosen for word in words}
    vocabulary = {word: FIRST_WORD + i for i, word in enumerate(sorted(vocabulary))}
    facts = []
    for words, places in chosen:
        z = [piece for word in words for piece in wordpiece(word.lower(), vocabulary)]
        facts.append(Fact([z[0], *(z[place] for place in places[:-1]), MASK], z[places[-1]], z))
    return facts, FIRST_WORD + len(vocabulary)


def initial(c: RealmConfig, rng: np.random.Generator, heads: dict[str, list[int]]) -> Weights:
    """Random weights of BERT and of `heads`, {name: shape of the weight}; those of LayerNorms are 1, biases 0."""
    h, inner = [c.hidden_size], [c.intermediate_size]
    layer = {f"attention.{name}": h + h for name in ("self.query", "self.key", "self.value", "output.dense")}
    layer |= {"intermediate.dense": inner + h, "output.dense": h + inner}
    layer |= {"attention.output.LayerNorm": h, "output.LayerNorm": h}
    shapes = {f"realm.encoder.layer.{i}.{name}": layer[name] for i in range(c.num_hidden_layers) for name in layer}
    shapes |= {"realm.embeddings.LayerNorm": h, **heads}
    p = {f"{name}.bias": np.zeros(shape[0]) for name, shape in shapes.items()}
    shapes = {f"{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {WORD: [c.vocab_size, *h], TYPE: [c.type_vocab_size, *h], POSITION: [c.max_position_embeddings, *h]}
    for name, shape in shapes.items():
        p[name] = np.ones(shape) if len(shape) == 1 else rng.normal(0, c.initializer_range, shape)
    return {name: value.astype(np.float32) for name, value in p.items()}


def models(size: int, rng: np.random.Generator) -> tuple[RealmConfig, Models]:
    """An embedder and an encoder of one layer, which is enough to copy a word and to weigh the words of a text."""
    c = RealmConfig(
        vocab_size=size, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128,
        retriever_proj_size=64, max_position_embeddings=40, initializer_range=0.1, pad_token_id=0,
    )  # fmt: skip
    embedder = initial(c, rng, {"realm.pooler.dense": [64, 64], "cls.dense": [64, 64], "cls.LayerNorm": [64]})
    transform = "cls.predictions.transform"
    encoder = initial(c, rng, {f"{transform}.dense": [64, 64], f"{transform}.LayerNorm": [64]})
    encoder["cls.predictions.bias"] = np.zeros(size, np.float32)
    return c, {"embedder": embedder, "encoder": encoder}


def pairs_and_labels(facts: Sequence[Fact], documents: Sequence[list[int]], candidates: np.ndarray) -> tuple:
    """What the encoder reads: every x with each of its candidates, and y where x is masked."""
    pairs = join([(fact.x, documents[z]) for fact, row in zip(facts, candidates, strict=True) for z in row])
    of_x = pairs[0][:: candidates.shape[1]]  # [batch, tokens]
    return pairs, np.where(of_x == MASK, np.array([fact.y for fact in facts])[:, None], NO_LABEL)


def texts(facts: Sequence[Fact]) -> Batch:
    return join([(fact.x,) for fact in facts])


def documents_of(facts: Sequence[Fact]) -> Batch:
    return join([(fact.z,) for fact in facts])


def update(p: Models, g: Models, count: int, moments: dict, rates: dict[str, float]) -> None:
    """An update of every model that has a rate."""
    for model, rate in rates.items():
        mean = {name: dx / float(count) for name, dx in g[model].items()}
        adamw(p[model], mean, moments.setdefault(model, {}), rate)


def schedule(rates: dict[str, float], step: int, steps: int) -> dict[str, float]:
    """The rates of a step: they rise over the first 20, and fall to 0 at the end."""
    return {model: rate * min((step + 1) / 20, 1 - step / steps) for model, rate in rates.items()}


def learn_to_copy(p: Models, c: RealmConfig, facts: Sequence[Fact], rng: np.random.Generator) -> list[float]:
    """The encoder's warm-up, in place; the loss of each step. With one candidate r(z) is 0: no retriever is in it."""
    moments, losses = {}, []
    for step in range(COPY_STEPS):
        picked = [facts[i] for i in rng.integers(len(facts), size=COPY_BATCH)]
        dealt = [picked[i].y for i in rng.permutation(COPY_BATCH)]
        picked = [
            Fact(fact.x, y, [y if word == fact.y else word for word in fact.z])
            for fact, y in zip(picked, dealt, strict=True)
        ]
        candidates = np.arange(COPY_BATCH)[:, None]
        pairs, labels = pairs_and_labels(picked, [fact.z for fact in picked], candidates)
        loss, count, g = pretrain_step(p, c, (texts(picked), documents_of(picked), candidates, pairs, labels))
        update(p, g, count, moments, schedule({"encoder": 2e-3}, step, COPY_STEPS))
        losses.append(float(loss / count))
    return losses


def learn_to_retrieve(
    p: Models, c: RealmConfig, facts: Sequence[Fact], steps: int, rng: np.random.Generator, with_gradient: bool = True
) -> Iterator[Record]:
    """REALM's pre-training of p, in place; a record before it and every ten steps."""
    rates = {"encoder": 2e-4, "embedder": 1e-3} if with_gradient else {"encoder": 2e-4}
    moments, losses, documents = {}, [], [*(fact.z for fact in facts), []]  # the last is the null document
    yield measure(p, c, facts, 0, float("nan"))
    for step in range(steps):
        if step % REFRESH_EVERY == 0:  # between two refreshes the index is a little stale (section 3.3)
            index, _ = embed(p["embedder"], c, documents_of(facts))
        picked = [facts[i] for i in rng.integers(len(facts) // 4, len(facts), size=BATCH)]
        found = search(embed(p["embedder"], c, texts(picked))[0], index, CANDIDATES)
        candidates = np.pad(found, ((0, 0), (0, 1)), constant_values=len(index))
        pairs, labels = pairs_and_labels(picked, documents, candidates)
        examples = texts(picked), join([(z,) for z in documents]), candidates, pairs, labels
        loss, count, g = pretrain_step(p, c, examples)
        update(p, g, count, moments, schedule(rates, step, steps))
        losses.append(float(loss / count))
        if step % 10 == 9:
            yield measure(p, c, facts, step + 1, float(np.mean(losses[-10:])))


def measure(p: Models, c: RealmConfig, facts: Sequence[Fact], step: int, loss: float) -> Record:
    x, z = embed(p["embedder"], c, texts(facts))[0], embed(p["embedder"], c, documents_of(facts))[0]
    first = search(x, z, 1)[:, 0] == np.arange(len(facts))
    quarter = len(facts) // 4
    return Record(step, loss, 100 * float(first[quarter:].mean()), 100 * float(first[:quarter].mean()))


def natural(text: str) -> int:
    """A number of the command line."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} will not do: give a whole number, 0 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> dict[bool, list[Record]]:
    """Print the two runs, and return their records by whether the retriever had its gradient."""
    parser = argparse.ArgumentParser(
        prog="python -m realm_min.textbook",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("corpus", nargs="?", help="a file, or a folder of .txt files, of short lines (the Factbook)")
    parser.add_argument("--seed", type=natural, default=0, help="draws the facts and the weights (%(default)s)")
    parser.add_argument("--steps", type=natural, default=60, help="updates of a run (%(default)s)")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    facts, size = facts_of(lines_of(options.corpus), rng)
    c, p = models(size, rng)
    losses = learn_to_copy(p, c, facts, rng)
    print(f"{len(facts)} documents. The encoder has learnt to copy from one: loss {losses[0]:.2f} to {losses[-1]:.2f}.")
    print("Found first: the document of a text that training asks about, of one that it never asks about.")
    runs = {}
    for with_gradient in (True, False):
        print("with the retriever's gradient" if with_gradient else "without it")
        copy = {model: {name: value.copy() for name, value in p[model].items()} for model in p}
        runs[with_gradient] = []
        again = np.random.default_rng(options.seed)  # the same texts in both runs
        for record in learn_to_retrieve(copy, c, facts, options.steps, again, with_gradient):
            runs[with_gradient].append(record)
            loss = "" if record.step == 0 else f"   loss {record.loss:.2f}"
            print(f"  step {record.step:3}: {record.asked:5.1f} %, {record.not_asked:5.1f} %{loss}", flush=True)
    return runs
