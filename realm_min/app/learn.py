"""A retriever that learns from masked words alone: REALM in miniature, against the same run without its gradient.

    python -m realm_min.app.learn --seeds 0 1 2 --out FOLDER

The documents are lines of the CIA World Factbook, three for each of 40 countries: capital, internet code, nationality.
The texts x are sentences made from templates about one such fact, with the answer masked:

    x   the parliament of norway meets in [MASK] .
    z   norway [SEP] capital - name : oslo .

They share no word but the country's name. The corpus is so small that p(y|x) = Σ_z p(y|z,x) p(z|x) (REALM equation 1)
is summed over all of it: no index, no approximation, and nobody tells the retriever which document holds the fact. That
is known to the measurement alone: how often the fact's document comes first (R@1), or among five (R@5). A quarter of
the facts is never asked for in training, so the retriever has to put country and field together anew for them.

Both models start from random weights. The encoder first learns to use a document: for some steps it gets x with its
document, but with facts dealt anew at each step (Oslo becomes the capital of Peru), so that it can copy and has nothing
to remember. The retriever takes no part in that. Then both learn from -log p(y|x), and the control run is the very same
but that ∂loss/∂f(x, z) is thrown away.
"""

from __future__ import annotations

import argparse
import csv
import functools
import multiprocessing
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import RealmConfig
from ..files.atomic import only_writer, write_atomically
from ..files.output import check_folder
from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..jobs import loop
from ..learn.optimizer import AdamW
from ..model import ops
from ..model.realm import NO_LABEL, marginal_loss, marginal_loss_backward
from ..text.corpus import Block, factbook_documents
from ..text.sequences import join, pad
from ..text.tokenizer import RealmTokenizerFast
from .console import Console, progress_bar
from .figures import large_letters, save_figure
from .printable import say

SHIPPED_VOCABULARY = Path(__file__).parent.parent / "assets" / "vocab.txt"
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# field: the line that states it, and other ways to say it.
FIELDS = {
    "capital": (
        r"Capital - name: ([A-Z][a-z]+)\.",
        ["{} is governed from [MASK].", "The parliament of {} meets in [MASK].", "[MASK] is the first city of {}."],
    ),
    "code": (
        r"Internet country code: \.([a-z]{2})\.",
        [
            "Web sites from {} end in [MASK].",
            "The domain [MASK] belongs to {}.",
            "Addresses in {} have the ending [MASK].",
        ],
    ),
    "nationality": (
        r"Nationality - adjective: ([A-Z][a-z]+)\.",
        ["Somebody from {} is [MASK].", "[MASK] people live in {}.", "Passports of {} say [MASK]."],
    ),
}


class Settings(NamedTuple):
    """The sizes of the experiment. One layer is enough to copy a word, and to weigh the words of a text."""

    countries: int = 40
    warm_up_steps: int = 200
    warm_up_batch: int = 64
    steps: int = 300
    batch: int = 4
    measure_every: int = 20
    hidden_size: int = 64
    layers: int = 1
    warm_up_rate: float = 5e-3
    encoder_rate: float = 2e-4
    retriever_rate: float = 1e-3


DEFAULTS = Settings()


class Fact(NamedTuple):
    field: str
    answer: str
    block: Block


class Task(NamedTuple):
    """Facts and their texts as ids. Fact i is stated in document i.

    `documents[i]` are the ids of its title and its text, `questions[i]` the texts x about fact i, `answers[i]` is the
    masked word.
    """

    facts: list[Fact]
    tokenizer: RealmTokenizerFast
    documents: list[tuple[list[int], list[int]]]
    questions: list[list[list[int]]]
    answers: list[int]
    trained: list[int]  # facts that training asks for
    held_out: list[int]


class Record(NamedTuple):
    """How a run stands after `step` updates. Shares are of the texts about trained and held-out facts."""

    step: int
    loss: float  # -log p(y|x) in nats, mean since the last record; nan at the first
    trained_r1: float
    trained_r5: float
    held_out_r1: float
    held_out_r5: float
    evidence_probability: float  # p(z|x) of the fact's document, mean over the held-out texts
    probabilities: Tensor  # p(z|x) [documents] for task.questions[task.held_out[0]][0]: how one distribution moves


# ---- the task


@functools.cache
def facts_by_country() -> dict[str, dict[str, Fact]]:
    """The facts of every country of a one-word name that states all of them."""
    found: dict[str, dict[str, Fact]] = {}
    for title, text, _ in factbook_documents():
        for line in text.split("\n") if title.isalpha() else ():
            for field, (pattern, _) in FIELDS.items():
                if match := re.fullmatch(pattern, line):
                    found.setdefault(title, {})[field] = Fact(field, match[1], Block(title, line))
    return {title: facts for title, facts in found.items() if len(facts) == len(FIELDS)}


def draw_facts(countries: int, seed: int) -> list[Fact]:
    """All facts of so many countries, field by field.

    Raises:
        ValueError: there are fewer, or none could be held out and trained.
    """
    known = facts_by_country()
    if not 2 <= countries <= len(known):
        raise ValueError(f"countries={countries}: the Factbook has {len(known)} with every field; ask for 2 or more")
    drawn = np.random.default_rng(seed).choice(list(known), countries, replace=False)
    return [known[title][field] for field in FIELDS for title in drawn]


def make_task(countries: int, seed: int) -> Task:
    """Draw facts, hold a quarter of them out, and write every text in ids.

    Raises:
        ValueError: as `draw_facts`.
    """
    facts = draw_facts(countries, seed)
    texts = [[text.format(fact.block.title) for text in FIELDS[fact.field][1]] for fact in facts]
    tokenizer = whole_word_tokenizer(
        [*(text for group in texts for text in group), *(" ".join(f.block) for f in facts)]
    )

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    order = np.random.default_rng([seed, 1]).permutation(len(facts)).tolist()
    return Task(
        facts,
        tokenizer,
        documents=[(ids(fact.block.title), ids(fact.block.text)) for fact in facts],
        questions=[[ids(text) for text in group] for group in texts],
        answers=tokenizer.convert_tokens_to_ids([fact.answer.lower() for fact in facts]),
        trained=sorted(order[len(facts) // 4 :]),
        held_out=sorted(order[: len(facts) // 4]),
    )


def whole_word_tokenizer(texts: Sequence[str]) -> RealmTokenizerFast:
    """A tokenizer whose wordpieces are the whole words of `texts`, so that every answer is one."""
    shipped = RealmTokenizerFast(SHIPPED_VOCABULARY)
    words = {word for text in texts for word in " ".join(shipped.tokenize(text)).replace(" ##", "").split()}
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.txt"
        lines = [*SPECIAL_TOKENS, *sorted(words - set(SPECIAL_TOKENS))]
        vocabulary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return RealmTokenizerFast(vocabulary)


def configuration(task: Task, settings: Settings) -> RealmConfig:
    """Small, without dropout; wide initial weights, since so narrow a network passes little on with BERT's 0.02."""
    return RealmConfig(
        vocab_size=len(task.tokenizer), hidden_size=settings.hidden_size, num_hidden_layers=settings.layers,
        num_attention_heads=4, intermediate_size=2 * settings.hidden_size, hidden_act="relu",
        retriever_proj_size=settings.hidden_size, max_position_embeddings=48, pad_token_id=0, initializer_range=0.15,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def embedder_inputs(task: Task, questions: Sequence[list[int]], model: RealmEmbedder) -> dict[str, Tensor]:
    """The texts and then all documents, "[CLS] x [SEP]" and "[CLS] title [SEP] text [SEP]", as one batch."""
    of_texts = [join(task.tokenizer, question) for question in questions]
    return pad([*of_texts, *(join(task.tokenizer, *document) for document in task.documents)], model)


def encoder_inputs(
    task: Task, questions: Sequence[list[int]], documents: Sequence[list[int]], answers: Sequence[int], model: Any
) -> dict[str, Tensor]:
    """What the encoder reads of pairs, "[CLS] x [SEP] z [SEP]", and the labels, [pairs, tokens]."""
    tokenizer = task.tokenizer
    pairs = zip(questions, documents, strict=True)
    inputs = pad([join(tokenizer, question, document) for question, document in pairs], model)
    masked = inputs["input_ids"] == tokenizer.mask_token_id
    labels = torch.where(masked, torch.tensor(answers, device=masked.device)[:, None], NO_LABEL)
    return {**inputs, "labels": labels}


def evidence_ids(task: Task) -> list[list[int]]:
    """What the encoder reads of each document: "title. text"."""
    (stop,) = task.tokenizer.encode(".", add_special_tokens=False)
    return [[*title, stop, *text] for title, text in task.documents]


# ---- the encoder's warm-up: no retriever in it


def warm_up(task: Task, settings: Settings, seed: int) -> RealmKnowledgeAugEncoder:
    """A fresh encoder that has learned to fill a mask from the document beside it, on facts dealt anew."""
    encoder = RealmKnowledgeAugEncoder(configuration(task, settings), seed=seed)
    if not settings.warm_up_steps:
        return encoder
    optimizer = AdamW(settings.warm_up_rate, settings.warm_up_steps, warmup_steps=settings.warm_up_steps // 10)
    rng = np.random.default_rng([seed, 2])
    documents, count = evidence_ids(task), len(task.facts)
    for _ in range(settings.warm_up_steps):
        picked = rng.integers(count, size=settings.warm_up_batch).tolist()
        # Facts lie field by field, in one order of countries: each gets some country's answer to the same field.
        field = count // len(FIELDS)
        dealt = [task.answers[i - i % field + int(rng.integers(field))] for i in picked]
        evidence = [
            [answer if word == task.answers[i] else word for word in documents[i]]
            for i, answer in zip(picked, dealt, strict=True)
        ]
        questions = [task.questions[i][rng.integers(len(task.questions[i]))] for i in picked]
        log_likelihood, kept = encoder.masked_log_likelihood(
            **encoder_inputs(task, questions, evidence, dealt, encoder)
        )
        encoder.zero_grads()
        encoder.masked_log_likelihood_backward(torch.full_like(log_likelihood, -1 / len(picked)), kept)
        optimizer.update(encoder.state_dict(), encoder.grads)
    return encoder


# ---- learning to retrieve


def learn(
    task: Task,
    encoder: RealmKnowledgeAugEncoder,
    embedder: RealmEmbedder,
    settings: Settings = DEFAULTS,
    *,
    seed: int = 0,
    with_gradient: bool = True,
) -> Iterator[Record]:
    """Train both models in place on -log p(y|x); yield a record before the first step and every `measure_every`.

    Args:
        with_gradient: False throws ∂loss/∂f(x, z) away: the retriever learns nothing, the encoder all the same.
        seed: draws the texts.
    """
    rng = np.random.default_rng([seed, 3])
    of_encoder = AdamW(settings.encoder_rate, settings.steps)
    of_embedder = AdamW(settings.retriever_rate, settings.steps)
    losses = []
    yield measure(task, embedder, 0, float("nan"))
    for step in range(1, settings.steps + 1):
        picked = [task.trained[i] for i in loop.batch(step - 1, settings.batch, len(task.trained), seed)]
        questions = [task.questions[i][rng.integers(len(task.questions[i]))] for i in picked]
        answers = [task.answers[i] for i in picked]
        losses.append(forward_backward(task, encoder, embedder, questions, answers, with_gradient))
        of_encoder.update(encoder.state_dict(), encoder.grads)
        if with_gradient:
            of_embedder.update(embedder.state_dict(), embedder.grads)
        if step % settings.measure_every == 0 or step == settings.steps:
            yield measure(task, embedder, step, float(np.mean(losses)))
            losses = []


def forward_backward(
    task: Task,
    encoder: RealmKnowledgeAugEncoder,
    embedder: RealmEmbedder,
    questions: Sequence[list[int]],
    answers: Sequence[int],
    with_gradient: bool,
) -> float:
    """-log p(y|x) of a batch of texts, in nats; its gradients go to `encoder.grads` and, if asked, `embedder.grads`."""
    documents = evidence_ids(task)

    # f(x, z) = Embed(x)ᵀ Embed(z) for all documents z
    projected = embedder(**embedder_inputs(task, questions, embedder)).projected_score
    queries, blocks = projected[: len(questions)], projected[len(questions) :]
    relevance_score = queries @ blocks.t()  # [batch, documents]

    # log p(y|z,x): the encoder reads every text with every document
    inputs = encoder_inputs(
        task, [question for question in questions for _ in documents], documents * len(questions),
        [answer for answer in answers for _ in documents], encoder,
    )  # fmt: skip
    log_likelihood, kept_words = encoder.masked_log_likelihood(**inputs)
    log_likelihood = log_likelihood.view(*relevance_score.shape, -1)  # [batch, documents, tokens]
    masked = (inputs["labels"] != NO_LABEL).view(log_likelihood.shape)[:, 0]  # [batch, tokens]: one word each

    loss, kept = marginal_loss(log_likelihood, relevance_score, masked)
    dlog_likelihood, drelevance = marginal_loss_backward(torch.ones_like(loss), kept)
    encoder.zero_grads()
    encoder.masked_log_likelihood_backward(dlog_likelihood.flatten(0, 1), kept_words)
    if with_gradient:
        embedder.zero_grads()
        # f is an inner product: the gradient of each side is the other side.
        embedder.backward(projected_score=torch.cat([drelevance @ blocks, drelevance.t() @ queries]))
    return float(loss)


def measure(task: Task, embedder: RealmEmbedder, step: int, loss: float) -> Record:
    """Where the fact's own document stands among all, for every text about trained and about held-out facts."""
    facts = [*task.held_out, *task.trained]
    questions = [question for i in facts for question in task.questions[i]]
    embedder.eval()
    projected = embedder(**embedder_inputs(task, questions, embedder)).projected_score
    embedder.train()
    scores = projected[: len(questions)] @ projected[len(questions) :].t()  # [texts, documents]
    own = torch.tensor([[i] for i in facts for _ in task.questions[i]], device=scores.device)  # [texts, 1]
    rank = (scores >= scores.gather(1, own)).sum(1) - 1  # documents that stand before it; a tie counts against it
    probabilities = ops.softmax(scores)
    held_out = sum(len(task.questions[i]) for i in task.held_out)
    trained_rank, held_out_rank = rank[held_out:], rank[:held_out]
    return Record(
        step,
        loss,
        trained_r1=float((trained_rank < 1).float().mean()),
        trained_r5=float((trained_rank < 5).float().mean()),
        held_out_r1=float((held_out_rank < 1).float().mean()),
        held_out_r5=float((held_out_rank < 5).float().mean()),
        evidence_probability=float(probabilities.gather(1, own)[:held_out].mean()),
        probabilities=probabilities[0],
    )


# ---- the experiment


def run(seed: int, with_gradient: bool, settings: Settings = DEFAULTS) -> list[Record]:
    """One run from fresh weights; the two runs of a seed differ in the retriever's gradient alone."""
    task = make_task(settings.countries, seed)
    encoder = warm_up(task, settings, seed)
    embedder = RealmEmbedder(configuration(task, settings), seed=seed + 1)
    return list(learn(task, encoder, embedder, settings, seed=seed, with_gradient=with_gradient))


def experiment(seeds: Sequence[int], settings: Settings = DEFAULTS) -> Iterator[tuple[int, bool, list[Record]]]:
    """(seed, with_gradient, records) of both runs of every seed as they end, two at a time."""
    context = multiprocessing.get_context("spawn")
    # A thread each: the runs share the cores, and more threads would change the last digits.
    with ProcessPoolExecutor(2, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = {
            pool.submit(run, seed, with_gradient, settings): (seed, with_gradient)
            for seed in seeds
            for with_gradient in (True, False)
        }
        try:
            for done in as_completed(runs):
                yield *runs[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


Runs = dict[tuple[int, bool], list[Record]]  # by seed and gradient


def in_order(runs: Runs) -> list[tuple[tuple[int, bool], list[Record]]]:
    """Seed by seed, the run with the gradient first."""
    return sorted(runs.items(), key=lambda item: (item[0][0], not item[0][1]))


def write_csv(runs: Runs, path: Path) -> None:
    """A row a record: seed, gradient (1 or 0) and the record's numbers."""
    columns = Record._fields[:-1]
    with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", "gradient", *columns])
        for (seed, with_gradient), records in in_order(runs):
            for record in records:
                writer.writerow([seed, int(with_gradient), record.step, *(f"{value:.4f}" for value in record[1:-1])])


@large_letters()
def plot(runs: Runs, path: Path) -> None:
    """Loss and retrieval accuracy against the step: each seed thin, their mean thick.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    documents = len(next(iter(runs.values()))[0].probabilities)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = (
        ("loss", "−log p(y|x), nats a masked word", None),
        ("trained_r1", "R@1, facts that training asks for", 1 / documents),
        ("held_out_r1", "R@1, facts never asked for", 1 / documents),
    )
    for axes, (column, title, chance) in zip(figure.subplots(1, 3), panels, strict=True):
        for with_gradient, color, label in (
            (True, "C0", "the retriever gets its gradient"),
            (False, "C1", "the same without it"),
        ):
            curves = [records for (_, gradient), records in runs.items() if gradient == with_gradient]
            steps = [record.step for record in curves[0]]
            values = np.array([[getattr(record, column) for record in records] for records in curves])  # [seeds, steps]
            axes.plot(steps, values.T, color=color, linewidth=0.7, alpha=0.5)
            axes.plot(steps, values.mean(0), color=color, linewidth=2.2, label=label)
        if chance:
            axes.axhline(chance, color="black", linewidth=0.8, linestyle=":", label=f"chance, 1 of {documents}")
            axes.set_ylim(-0.02, 1.02)
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylim(0)
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def show(runs: Runs) -> None:
    """Print the first and the last record of every run."""
    from rich import box
    from rich.table import Table

    table = Table(title="The retriever before and after, by masked words alone", box=box.SIMPLE)
    table.add_column("seed", justify="right")
    table.add_column("gradient")
    for name in ("loss", "R@1\ntrained", "R@5\ntrained", "R@1\nheld out", "R@5\nheld out"):
        table.add_column(name, justify="right", no_wrap=True)
    for (seed, with_gradient), records in in_order(runs):
        # The first loss is the mean of the first steps: before them there is none.
        first, last = records[0]._replace(loss=records[1].loss), records[-1]
        numbers = [f"{first.loss:.2f} → {last.loss:.2f}"]
        numbers += [f"{100 * a:.0f} → {100 * b:.0f} %" for a, b in zip(first[2:6], last[2:6], strict=True)]
        table.add_row(str(seed), "yes" if with_gradient else "no", *numbers)
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m realm_min.app.learn", description=str(__doc__).split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=DEFAULTS.steps, help="updates a run (default %(default)s)")
    parser.add_argument(
        "--countries", type=int, default=DEFAULTS.countries, help="three documents each (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("."), help="where learn.csv and learn.png go")
    options = parser.parse_args(arguments)
    check_folder(options.out)
    with only_writer(options.out):
        learn_and_write(options)


def learn_and_write(options: argparse.Namespace) -> None:
    runs: Runs = {}
    settings = DEFAULTS._replace(steps=options.steps, countries=options.countries)
    with progress_bar(Console()) as progress:
        bar = progress.add_task("runs, two at a time", total=2 * len(set(options.seeds)))
        for seed, with_gradient, records in experiment(sorted(set(options.seeds)), settings):
            runs[seed, with_gradient] = records
            last = records[-1]
            progress.console.print(
                f"seed {seed} {'with' if with_gradient else 'without'} the gradient: loss {last.loss:.2f}, "
                f"R@1 {100 * last.trained_r1:.0f} % trained, {100 * last.held_out_r1:.0f} % held out"
            )
            progress.advance(bar)
    show(runs)
    options.out.mkdir(exist_ok=True)
    write_csv(runs, options.out / "learn.csv")
    plot(runs, options.out / "learn.png")
    say(f"Written: {options.out / 'learn.csv'} and {options.out / 'learn.png'}")


if __name__ == "__main__":
    from .cli import status_of

    sys.exit(status_of(main))
