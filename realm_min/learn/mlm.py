"""Masked language modelling without retrieval (Devlin et al. 2018, section 3.1): the knowledge encoder's warm start.

REALM begins with a BERT that can already fill masks (section 3.4). One that cannot, because its checkpoint came
without that head or all starts from scratch, learns it here first: 15% of a block's wordpieces are hidden, and one
salient span beside them.

With `evidence` it learns to use a document: words are hidden in a short stretch of a block, and a longer stretch around
it, "[CLS] x [SEP] z [SEP]", has them all, so that whoever looks them up is always right. Until the encoder can do that,
what it says about documents is noise to the retriever; from retrieved blocks, most of which are no help, it learns
it slowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..interface.inputs import Inputs, checked_batch
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..model.bert import Batch
from ..model.realm import NO_LABEL, masked_words, masked_words_backward
from ..text.corpus import Block
from ..text.sequences import join, pad
from . import masking
from .masking import Passage, SpanFinder, salient_spans
from .steps import Sum

if TYPE_CHECKING:
    from ..jobs.settings import Mlm

SHORTEST_STRETCH = 12  # wordpieces of the part of a block that is masked in, where its evidence stands beside it


def mlm_step(encoder: RealmKnowledgeAugEncoder, batch: Batch, labels: Tensor, seeds: list[int]) -> dict[str, Sum]:
    """-Σ log p of the hidden words, batch and labels as `masked_blocks` makes them; the sum's gradients are added."""
    run = encoder.run_to_learn(seeds, last=True)
    log_likelihood, kept = masked_words(encoder.p, encoder.config, batch, labels, run)
    masked_words_backward(torch.full_like(log_likelihood, -1.0), kept, encoder.own_grads)
    return {"loss": Sum(-float(log_likelihood.sum()), int((labels != NO_LABEL).sum()))}


def masked_blocks(
    blocks: list[Block],
    tokenizer: Any,
    random: list[np.random.Generator],
    encoder: RealmKnowledgeAugEncoder,
    settings: Mlm,
    find: SpanFinder = salient_spans,
) -> tuple[Batch, Tensor]:
    """What the encoder reads of each block, "[CLS] title. text [SEP]" with masks in it, and the labels.

    With `settings.evidence`, "[CLS] title. stretch [SEP] title. longer stretch [SEP]" with masks in the first.

    Args:
        random: draws the stretches and masks of each block.
        find: finds salient spans.

    Returns:
        The batch and the labels, [batch, tokens] int64, on the encoder's device.
    """
    sequences, targets = [], []
    read = settings.max_wordpieces - 2  # all but [CLS] and [SEP]
    passages = masking.passages([(block.title, block.text) for block in blocks], tokenizer)
    for passage, rng in zip(passages, random, strict=True):
        evidence = None
        if settings.evidence:
            passage, evidence = stretches(passage, rng, settings)
        positions = {*masking.random_tokens(passage, rng), *masking.salient_span(passage, rng, find)}
        if evidence:  # more of them, and in a row: what can be looked up need not be guessed from its neighbours
            positions |= {*masking.random_spans(passage, rng)}
        ids, labels = masking.mask(passage.ids, sorted(positions), tokenizer.mask_token_id)
        sequences.append(join(tokenizer, ids[:read], evidence))
        targets.append(labels[:read])
    inputs = pad(sequences, encoder)
    labels = torch.full(inputs["input_ids"].shape, NO_LABEL, device="cpu")
    for row, values in zip(labels, targets, strict=True):
        row[1 : 1 + len(values)] = torch.tensor(values, device="cpu")
    return checked_batch(encoder.config, Inputs(**inputs)), labels.to(encoder.device)


def stretches(passage: Passage, rng: np.random.Generator, settings: Mlm) -> tuple[Passage, list[int]]:
    """A stretch of a passage, and the wordpieces of a longer one that holds it; the title stands before both.

    Where they begin is drawn, so that a word is found by its neighbours and not by how far away it stands.
    """
    title, count = passage.first, len(passage.ids) - passage.first
    longest = max(1, settings.max_wordpieces - 2 - title)  # where a title leaves no room
    length = min(count, int(rng.integers(min(SHORTEST_STRETCH, longest), longest + 1)))
    begin = int(rng.integers(count - length + 1))
    around = min(count, max(length, settings.evidence - title))
    start = int(rng.integers(max(0, begin + length - around), min(begin, count - around) + 1))

    def cut(values: list, start: int, length: int) -> list:
        return [*values[:title], *values[title + start : title + start + length]]

    stretch = passage._replace(
        ids=cut(passage.ids, begin, length),
        offsets=cut(passage.offsets, begin, length),
        begins_word=cut(passage.begins_word, begin, length),
    )
    return stretch, cut(passage.ids, start, around)[: settings.evidence]
