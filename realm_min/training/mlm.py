"""Masked language modelling without retrieval (Devlin et al. 2018, section 3.1): the knowledge encoder's warm start.

REALM begins with a BERT that can already fill masks (section 3.4). One that cannot, because its checkpoint came
without that head or all starts from scratch, learns it here first: 15% of a block's wordpieces are hidden, and one
salient span beside them. Until the encoder can use a document, what it says about documents is noise to the retriever.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..corpus import Block
from ..knowledge_encoder import IGNORED, RealmKnowledgeAugEncoder
from . import loop, masking, options, warm_start
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
    **given: Any,
) -> Path:
    """Train `encoder` in place and write it to FOLDER/knowledge_encoder, with the tokenizer in FOLDER.

    Args:
        given: `loop.train`'s resume, save_every, evaluate, evaluate_every and report.

    Raises:
        ValueError: a batch of fewer blocks than there are ranks.
        FileExistsError, DivergedError, KeyboardInterrupt: as `loop.train`.
    """
    loop.check_batch(settings.batch_size)

    def step(number: int) -> dict[str, float]:
        picked = loop.batch(number, settings.batch_size, len(blocks), settings.seed)
        share, own = loop.share(settings.seed, number, [blocks[i] for i in picked])
        random = [share.random(place) for place in share.places]
        ids, mask, labels = (inputs.to(encoder.device) for inputs in batch(own, tokenizer, random, settings))
        encoder.dropout_seeds = share.dropout_seeds()
        log_likelihood, cache = encoder.masked_log_likelihood(ids, mask, torch.zeros_like(ids), labels)
        count = share.total(int((labels != IGNORED).sum()))
        with encoder.own_grads.last_pass():
            encoder.masked_log_likelihood_backward(torch.full_like(log_likelihood, -1 / count), cache)
        return {"loss": -float(log_likelihood.sum()) / count}

    return loop.train_one(
        folder, KNOWLEDGE_ENCODER, encoder, step, settings, blocks, tokenizer, task="mlm",
        stage="Masked language modelling", **given,
    )  # fmt: skip


def batch(
    blocks: list[Block], tokenizer: Any, random: list[np.random.Generator], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[CLS] title. text [SEP] of each block with masks in it: ids, attention mask and labels, [batch, tokens] int64.

    Args:
        random: draws the masks of each block.
    """
    rows = []
    passages = masking.passages([tuple(block) for block in blocks], tokenizer)
    for passage, rng in zip(passages, random, strict=True):
        positions = {*masking.random_tokens(passage, rng), *masking.salient_span(passage, rng)}
        rows.append(masking.mask(passage.ids, sorted(positions), tokenizer.mask_token_id))
    tokens = min(settings.max_wordpieces, 2 + max(len(ids) for ids, _ in rows))
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
    encoder = warm_start.knowledge_encoder(given.model, given.seed, **options.dropout(given))
    options.run_warm_up(given, warm_up, encoder, DEFAULTS, given.max_wordpieces)
    options.remark(f"Ready: {given.out}")
