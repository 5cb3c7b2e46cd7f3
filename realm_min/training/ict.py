"""The Inverse Cloze Task (Lee et al. 2019, section 4; REALM section 3.4): a retriever's warm start without labels.

A sentence is taken for a question and the block that it stood in for its evidence. The retriever is to find the block
among those of the batch: P(z|x) = exp f(x,z) / Σ_z' exp f(x,z'), the loss is -log P(z|x). In 9 of 10 examples the
sentence is removed from its block, so that meaning, not matching words, has to lead there.

Departures, since a Factbook sentence ("Capital - name: Berlin.") means nothing without its page: a sentence follows
its block's title in some examples (`title_rate`), and a batch is made of groups of neighbouring blocks, so that the
title alone does not tell the right block from the wrong ones.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import ops
from ..corpus import Block, corpus_hash, split_sentences
from ..embedder import RealmEmbedder
from . import loop, options, warm_start
from .optimizer import AdamW
from .warm_start import EMBEDDER


class Settings(NamedTuple):
    """What decides an Inverse Cloze run, beside corpus and model."""

    steps: int = 300
    batch_size: int = 32
    group: int = 4  # neighbouring blocks that come together
    removal_rate: float = 0.9
    title_rate: float = 0.5
    learning_rate: float = 1e-4
    warmup: float = 0.1  # of the steps
    max_query: int = 64  # wordpieces
    max_evidence: int = 288
    freeze_word_embeddings: bool = True
    seed: int = 0


DEFAULTS = Settings()


class Example(NamedTuple):
    query: str
    title: str
    text: str


def warm_up(
    folder: str | os.PathLike,
    blocks: list[Block],
    embedder: RealmEmbedder,
    tokenizer: Any,
    settings: Settings = DEFAULTS,
    *,
    resume: bool = False,
    save_every: int = 100,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> Path:
    """Train `embedder` in place and write it to FOLDER/embedder, with the tokenizer in FOLDER.

    Raises:
        ValueError: no block has two sentences; settings out of range.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    folder = Path(folder)
    usable = [block for block in blocks if len(split_sentences(block.text)) > 1]
    if len(usable) < 2:
        raise ValueError("the Inverse Cloze Task needs two blocks of two sentences or more: give a larger corpus")
    if settings.batch_size < 2 or settings.batch_size % settings.group:
        raise ValueError(
            f"batch_size={settings.batch_size} must be a multiple of group={settings.group} and at least 2: the other "
            "blocks of a batch are the wrong answers"
        )
    groups = [usable[i : i + settings.group] for i in range(0, len(usable) - settings.group + 1, settings.group)]
    if not groups:
        raise ValueError(f"{len(usable)} blocks are fewer than group={settings.group}: give a smaller group")
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=int(settings.warmup * settings.steps))
    embedder.train()

    def step(number: int) -> dict[str, float]:
        random = np.random.default_rng([settings.seed, number])
        picked = loop.batch(number, settings.batch_size // settings.group, len(groups), settings.seed)
        examples = [cloze(block, random, settings) for i in picked for block in groups[i]]
        loss, accuracy = in_batch_loss(embedder, tokenizer, examples, settings)
        return {"loss": loss, "accuracy": accuracy}

    identity = {"task": "ict", "corpus": corpus_hash(blocks), "config": embedder.config.to_dict()}
    loop.train(
        folder, {"embedder": embedder}, optimizer, step,
        settings={**identity, **settings._asdict()}, seed=settings.seed, resume=resume, save_every=save_every,
        evaluate=evaluate, evaluate_every=evaluate_every,
        frozen=loop.freeze_word_embeddings if settings.freeze_word_embeddings else lambda name: False,
        stage="Inverse Cloze Task", report=report,
    )  # fmt: skip
    embedder.eval()
    shutil.rmtree(folder / EMBEDDER, ignore_errors=True)
    embedder.save_pretrained(folder / EMBEDDER)
    tokenizer.save_pretrained(folder)
    return folder


def cloze(block: Block, random: np.random.Generator, settings: Settings) -> Example:
    """Draw a sentence of `block` as the question; its evidence is the block, most times without the sentence."""
    sentences = split_sentences(block.text)
    drawn = int(random.integers(len(sentences)))
    removed, titled = random.random() < settings.removal_rate, random.random() < settings.title_rate
    query = f"{block.title}. {sentences[drawn]}" if titled else sentences[drawn]
    return Example(query, block.title, " ".join(sentences[:drawn] + sentences[drawn + removed :]))


def in_batch_loss(
    embedder: RealmEmbedder, tokenizer: Any, examples: list[Example], settings: Settings
) -> tuple[float, float]:
    """-mean log P(z|x) over the batch and the share of examples whose own block scores best; gradients are added.

    ∂loss/∂f(x_i, z_j) = (P(z_j|x_i) - [i = j]) / batch, and f is an inner product, so each side's gradient is that
    matrix times the other side.
    """
    queries = tokenizer(
        [example.query for example in examples], padding=True, truncation=True, max_length=settings.max_query,
        return_tensors="pt",
    ).to(embedder.device)  # fmt: skip
    evidence = tokenizer(
        [example.title for example in examples], [example.text for example in examples], padding=True,
        truncation="only_second", max_length=settings.max_evidence, return_tensors="pt",
    ).to(embedder.device)  # fmt: skip
    x = embedder(**queries, return_dict=True).projected_score  # [batch, proj]
    of_queries = embedder._cache
    z = embedder(**evidence, return_dict=True).projected_score  # [batch, proj]
    scores = x @ z.t()  # [batch, batch]
    own = torch.arange(len(examples), device=scores.device)
    loss = ops.cross_entropy(scores, own).mean()
    accuracy = (scores.argmax(1) == own).float().mean()
    dscores = ops.softmax(scores)
    dscores[own, own] -= 1
    dscores.div_(len(examples))
    embedder.backward(projected_score=dscores.t() @ x)
    embedder._backward(of_queries, {"projected_score": dscores @ z})
    return float(loss), float(accuracy)


# ---- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min ict`."""
    parser.add_argument("corpus", metavar="CORPUS", help=options.CORPUS_HELP)
    parser.add_argument(
        "--model", metavar="FOLDER", help="any BERT's to start from (default: a small model with random weights)"
    )
    options.add_run(parser)
    options.add_settings(
        parser, DEFAULTS,
        {
            "steps": "updates",
            "batch_size": "sentences an update",
            "group": "neighbouring blocks that come together in a batch",
            "removal_rate": "share of the sentences that are taken out of their block",
            "title_rate": "share of the sentences that their block's title precedes",
            "learning_rate": "the highest, after the warm-up",
            "max_evidence": "wordpieces of a block that are read",
            "freeze_word_embeddings": "leave the word embeddings as they are",
            "seed": "of weights, sentences, batches and dropout",
        },
    )  # fmt: skip


def run(given: argparse.Namespace) -> None:
    """Run `realm-min ict`."""
    from ..cli import progress_report, remark

    embedder = warm_start.embedder(given.model, given.seed, **options.dropout(given))
    tokenizer = warm_start.tokenizer(given.model)
    with progress_report() as report:
        blocks = options.read_blocks(given.corpus, tokenizer, given.max_evidence, report)
        warm_up(
            given.out, blocks, embedder, tokenizer, options.settings_from(given, DEFAULTS), resume=given.resume,
            save_every=given.save_every, report=report,
        )  # fmt: skip
    remark(f"Ready: realm-min pretrain {given.corpus} --model {given.out} --out FOLDER")
