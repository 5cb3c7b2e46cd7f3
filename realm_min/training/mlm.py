"""Masked language modelling without retrieval (Devlin et al. 2018, section 3.1): the knowledge encoder's warm start.

REALM begins with a BERT that can already fill masks (section 3.4). One that cannot, because its checkpoint came
without that head or all starts from scratch, learns it here first: 15% of a block's wordpieces are hidden, and one
salient span beside them. Until the encoder can use a document, what it says about documents is noise to the retriever.
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

from ..corpus import Block, corpus_hash
from ..knowledge_encoder import IGNORED, RealmKnowledgeAugEncoder
from . import loop, masking, options, warm_start
from .optimizer import AdamW
from .warm_start import KNOWLEDGE_ENCODER


class Settings(NamedTuple):
    """What decides a run, beside corpus and model."""

    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 2e-4
    warmup: float = 0.1  # of the steps
    max_wordpieces: int = 288
    freeze_word_embeddings: bool = True
    seed: int = 0


DEFAULTS = Settings()


def warm_up(
    folder: str | os.PathLike,
    blocks: list[Block],
    encoder: RealmKnowledgeAugEncoder,
    tokenizer: Any,
    settings: Settings = DEFAULTS,
    *,
    resume: bool = False,
    save_every: int = 100,
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> Path:
    """Train `encoder` in place and write it to FOLDER/knowledge_encoder.

    Raises:
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    folder = Path(folder)
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=int(settings.warmup * settings.steps))
    encoder.train()

    def step(number: int) -> dict[str, float]:
        rng = np.random.default_rng([settings.seed, number])
        picked = loop.batch(number, settings.batch_size, len(blocks), settings.seed)
        ids, mask, labels = batch([blocks[i] for i in picked], tokenizer, rng, settings.max_wordpieces)
        log_likelihood, cache = encoder.masked_log_likelihood(ids, mask, torch.zeros_like(ids), labels)
        count = int((labels != IGNORED).sum())
        encoder.masked_log_likelihood_backward(torch.full_like(log_likelihood, -1 / count), cache)
        return {"loss": -float(log_likelihood.sum()) / count}

    identity = {"task": "mlm", "corpus": corpus_hash(blocks), "config": encoder.config.to_dict()}
    loop.train(
        folder, {"knowledge_encoder": encoder}, optimizer, step,
        settings={**identity, **settings._asdict()}, seed=settings.seed, resume=resume, save_every=save_every,
        frozen=loop.freeze_word_embeddings if settings.freeze_word_embeddings else lambda name: False,
        stage="Masked language modelling", report=report,
    )  # fmt: skip
    encoder.eval()
    shutil.rmtree(folder / KNOWLEDGE_ENCODER, ignore_errors=True)
    encoder.save_pretrained(folder / KNOWLEDGE_ENCODER)
    return folder


def batch(
    blocks: list[Block], tokenizer: Any, rng: np.random.Generator, max_wordpieces: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[CLS] title. text [SEP] of each block with masks in it: ids, attention mask and labels, [batch, tokens] int64."""
    rows = []
    for passage in masking.passages([tuple(block) for block in blocks], tokenizer):
        positions = {*masking.random_tokens(passage, rng), *masking.salient_span(passage, rng)}
        rows.append(masking.mask(passage.ids, sorted(positions), tokenizer.mask_token_id))
    tokens = min(max_wordpieces, 2 + max(len(ids) for ids, _ in rows))
    ids = torch.full((len(rows), tokens), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    for i, (masked, targets) in enumerate(rows):
        masked, targets = masked[: tokens - 2], targets[: tokens - 2]
        ids[i, : len(masked) + 2] = torch.tensor([tokenizer.cls_token_id, *masked, tokenizer.sep_token_id])
        labels[i, 1 : len(masked) + 1] = torch.tensor(targets)
    return ids, (ids != tokenizer.pad_token_id).long(), labels


# ---- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min mlm`."""
    parser.add_argument("corpus", metavar="CORPUS", help=options.CORPUS_HELP)
    parser.add_argument(
        "--model", metavar="FOLDER", help="any BERT's to start from (default: a small model with random weights)"
    )
    options.add_run(parser)
    options.add_settings(
        parser, DEFAULTS,
        {
            "steps": "updates",
            "batch_size": "blocks an update",
            "learning_rate": "the highest, after the warm-up",
            "max_wordpieces": "of a block that are read",
            "freeze_word_embeddings": "leave the word embeddings as they are",
            "seed": "of weights, masks, batches and dropout",
        },
    )  # fmt: skip


def run(given: argparse.Namespace) -> None:
    """Run `realm-min mlm`."""
    from ..cli import progress_report, remark

    encoder = warm_start.knowledge_encoder(given.model, given.seed, **options.dropout(given))
    tokenizer = warm_start.tokenizer(given.model)
    with progress_report() as report:
        blocks = options.read_blocks(given.corpus, tokenizer, given.max_wordpieces, report)
        warm_up(
            given.out, blocks, encoder, tokenizer, options.settings_from(given, DEFAULTS), resume=given.resume,
            save_every=given.save_every, report=report,
        )  # fmt: skip
    remark(f"Ready: {given.out}")
