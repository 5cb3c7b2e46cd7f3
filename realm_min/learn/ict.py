"""The Inverse Cloze Task (Lee et al. 2019, section 4; REALM section 3.4): a retriever's warm start without labels.

A sentence is taken for a question and the block that it stood in for its evidence. The retriever is to find the block
among those of the batch: P(z|x) = exp f(x,z) / Σ_z' exp f(x,z'), the loss is -log P(z|x). In 9 of 10 examples the
sentence is removed from its block, so that meaning, not matching words, has to lead there.

Departures, since a Factbook sentence ("Capital - name: Berlin.") means nothing without its page: a sentence follows
its block's title in some examples (`title_rate`), and a batch is made of groups of neighbouring blocks, so that the
title alone does not tell the right block from the wrong ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..model import ops
from ..model.base import Inputs, checked_batch
from ..model.embedder import RealmEmbedder, embed, embed_backward
from ..ranks.share import Share
from ..text.corpus import Block, split_sentences

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


def ict_step(
    embedder: RealmEmbedder, tokenizer: Any, examples: list[Example], settings: Ict, share: Share
) -> tuple[float, float]:
    """-mean log P(z|x) over the batch and the share of examples whose own block scores best; gradients are added.

    ∂loss/∂f(x_i, z_j) = (P(z_j|x_i) - [i = j]) / batch, and f is an inner product, so each side's gradient is that
    matrix times the other side. The blocks of all ranks compete: each rank embeds its own `examples`, has the whole
    matrix from everybody's embeddings, and needs of either side's gradient the rows that are its own.
    """
    queries = tokenizer(
        [example.query for example in examples], padding=True, truncation=True, max_length=settings.max_query,
        return_tensors="pt",
    ).to(embedder.device)  # fmt: skip
    evidence = tokenizer(
        [example.title for example in examples], [example.text for example in examples], padding=True,
        truncation="only_second", max_length=settings.max_evidence, return_tensors="pt",
    ).to(embedder.device)  # fmt: skip
    p, config, grads = embedder.p, embedder.config, embedder.own_grads
    of_x, of_z = (embedder.run_to_learn(share.dropout_seeds(text)) for text in (0, 1))
    (x, _), kept_x = embed(p, config, checked_batch(config, Inputs(**queries)), of_x)
    (z, _), kept_z = embed(p, config, checked_batch(config, Inputs(**evidence)), of_z)
    x, z = share.of_all(torch.cat([x, z], 1)).chunk(2, 1)  # [own examples, 2 proj] -> [batch, proj] each
    scores = x @ z.t()  # [batch, batch]
    right = torch.arange(len(scores), device=scores.device)
    losses = ops.cross_entropy(scores, right)  # [batch]
    accuracy = (scores.argmax(1) == right).float().mean()
    dscores = ops.cross_entropy_backward(torch.full_like(losses, 1 / len(scores)), scores, right)
    embed_backward((dscores.t() @ x)[share.places], kept_z, grads)
    with grads.last_pass():
        embed_backward((dscores @ z)[share.places], kept_x, grads)
    return float(losses.mean()), float(accuracy)
