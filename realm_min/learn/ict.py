"""The Inverse Cloze Task (Lee et al. 2019, section 4; REALM section 3.4): a retriever's warm start without labels.

A sentence is taken for a question and the block that it stood in for its evidence. The retriever is to find the block
among those of the batch: p(z|x) = exp f(x,z) / Σ_z' exp f(x,z'), the loss is -log p(z|x). In 9 of 10 examples the
sentence is removed from its block, so that meaning, not matching words, has to lead there.

Departures, since a Factbook sentence ("Capital - name: Berlin.") means nothing without its page: a sentence follows
its block's title in some examples (`title_rate`), and a batch is made of groups of neighbouring blocks, so that the
title alone does not tell the right block from the wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..interface.embedder import RealmEmbedder
from ..interface.inputs import Inputs, checked_batch
from ..model.bert import Batch
from ..model.realm import embed, embed_backward, loss_of_correct
from ..text.corpus import Block, split_sentences
from .steps import Sum

if TYPE_CHECKING:
    from ..jobs.settings import Ict


class Example(NamedTuple):
    query: str
    title: str
    text: str


def cloze(block: Block, random: np.random.Generator, settings: Ict) -> Example:
    """Draw a sentence of `block` as the question; its evidence is the block, most times without the sentence."""
    sentences = split_sentences(block.text)
    drawn = int(random.integers(len(sentences)))
    removed, titled = random.random() < settings.removal_rate, random.random() < settings.title_rate
    query = f"{block.title}. {sentences[drawn]}" if titled else sentences[drawn]
    return Example(query, block.title, " ".join(sentences[:drawn] + sentences[drawn + removed :]))


def sentences_and_blocks(
    examples: list[Example], tokenizer: Any, embedder: RealmEmbedder, settings: Ict
) -> tuple[Batch, Batch]:
    """What the embedder reads: "[CLS] sentence [SEP]" and "[CLS] title [SEP] text [SEP]" of each example."""
    queries, titles, texts = (list(column) for column in zip(*examples, strict=True))
    options: dict[str, Any] = dict(padding=True, return_tensors="pt")
    sentences = tokenizer(queries, truncation=True, max_length=settings.max_query, **options)
    blocks = tokenizer(titles, texts, truncation="only_second", max_length=settings.max_evidence, **options)
    device, config = embedder.device, embedder.config
    return checked_batch(config, Inputs(**sentences.to(device))), checked_batch(config, Inputs(**blocks.to(device)))


def ict_step(
    embedder: RealmEmbedder,
    sentences: Batch,
    blocks: Batch,
    seeds: tuple[list[int], list[int]],
    own: list[int] | slice = slice(None),
    of_all: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> dict[str, Sum]:
    """-Σ log p(z|x), and how many examples' own block scores best; the sum's gradients are added to the embedder's.

    ∂loss/∂f(x_i, z_j) = p(z_j|x_i) - [i = j], and f is an inner product, so each side's gradient is that matrix times
    the other side. All blocks of the batch compete: where others compute a part of it, `of_all` makes the whole batch's
    rows of one's `own`, and of the gradients those of one's own are used.

    Args:
        sentences, blocks: of the own examples.
        seeds: of their dropout.
    """
    p, c, grads = embedder.p, embedder.config, embedder.own_grads
    (x, _), kept_x = embed(p, c, sentences, embedder.run_to_learn(seeds[0], last=True))
    (z, _), kept_z = embed(p, c, blocks, embedder.run_to_learn(seeds[1]))
    x, z = of_all(torch.cat([x, z], 1)).chunk(2, 1)  # [own examples, 2 proj] -> [batch, proj] each
    scores = x @ z.t()  # [batch, batch]
    right = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    _, dscores = loss_of_correct(scores, right)
    embed_backward((dscores.t() @ x)[own], kept_z, grads)
    embed_backward((dscores @ z)[own], kept_x, grads)
    scores, right = scores[own], right[own]  # [own examples, batch]
    found = right.gather(1, scores.argmax(1)[:, None])  # whether the own block scores best
    loss = float(loss_of_correct(scores, right)[0])
    return {"loss": Sum(loss, len(scores)), "accuracy": Sum(float(found.sum()), len(scores))}
