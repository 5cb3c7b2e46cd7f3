"""The Learn view's numbers: hide words of a sentence, see what each document makes of them, and take a step.

A lesson is a sentence with hidden words and the documents found for it. A step is the library's own: `pretrain_step`
gives the gradients of -log p(y|x), AdamW updates a copy of the models. Beside it goes a second copy, whose retriever
is not given its gradient.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..jobs.draws import Draws
from ..jobs.preparation import encode_evidence
from ..jobs.settings import Pretrain
from ..learn import masking
from ..learn.optimizer import AdamW
from ..learn.pretraining import NO_BLOCK, Example, Retrieved, gather_evidence, pretrain_step, read_evidence
from ..model.bert import PLAIN
from ..model.realm import embed, marginal_log_likelihood, marginal_log_likelihood_backward
from ..search.sharded_index import search_without
from .small_realm import SmallRealm, index_of

Json = dict[str, Any]
SETTINGS = Pretrain(num_candidates=8, marginal="span")  # the null document and seven others; y is all that is hidden
RATES = {
    "embedder": 2e-5,
    "encoder": 4e-6,
}  # of AdamW, a fiftieth of those of its training, so that the bars move slowly
FIRST = {"text": "The domain ao belongs to Angola.", "hidden": [2]}  # the document that states it is found, not first
MOST_STEPS = 40
MOST_WORDS = 30


class Models(NamedTuple):
    """What learns, and the optimizers' state."""

    embedder: RealmEmbedder
    encoder: RealmKnowledgeAugEncoder
    optimizers: dict[str, AdamW]


class Lesson(NamedTuple):
    """A sentence with hidden words, and what was found for it before the first step."""

    text: str
    pieces: list[tuple[int, int]]  # the characters of each wordpiece
    hidden: list[int]  # wordpieces
    retrieved: Retrieved
    numbers: list[int]  # of the documents found, best first; the null document stands before them


# ---- the sentence


def pieces_of(realm: SmallRealm, text: str) -> masking.Passage:
    """A typed sentence as wordpieces.

    Raises:
        ValueError: it is empty, or longer than the model reads.
    """
    coded = realm.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = coded["input_ids"]
    if not ids:
        raise ValueError("the sentence is empty: type one, or take another")
    if len(ids) > MOST_WORDS:
        raise ValueError(f"the sentence has {len(ids)} words and marks, the limit is {MOST_WORDS}: shorten it")
    return masking.Passage(text, ids, [tuple(place) for place in coded["offset_mapping"]], [True] * len(ids), 0)


def words_of(realm: SmallRealm, text: str) -> list[Json]:
    """The wordpieces of a sentence: the characters of each, and whether the model knows the word."""
    passage = pieces_of(realm, text)
    unknown = realm.tokenizer.unk_token_id
    return [
        {"start": start, "end": end, "known": number != unknown}
        for (start, end), number in zip(passage.offsets, passage.ids, strict=True)
    ]


def salient(realm: SmallRealm, text: str, seed: int) -> list[int]:
    """The wordpieces that salient span masking draws.

    Raises:
        ValueError: it finds no name or date whose words the model knows.
    """
    passage = pieces_of(realm, text)
    drawn = masking.salient_span(passage, np.random.default_rng(seed))
    if not drawn:
        raise ValueError("salient span masking finds no name or date here: click a word to hide it")
    return drawn


def lesson(realm: SmallRealm, text: str, hidden: list[int]) -> Lesson:
    """Hide wordpieces of a sentence, and find documents for what is left.

    Raises:
        ValueError: the sentence is empty or too long; nothing is hidden, or what is not there, or what the model has no
            word for.
    """
    passage = pieces_of(realm, text)
    if not hidden:
        raise ValueError("no word is hidden: click one")
    for place in hidden:
        if type(place) is not int or not 0 <= place < len(passage.ids):
            raise ValueError(f"there is no word {place!r}: give numbers from 0 to {len(passage.ids) - 1}")
        if passage.ids[place] == realm.tokenizer.unk_token_id:
            word = text[slice(*passage.offsets[place])]
            raise ValueError(f"the small model has no word for {word[:40]!r}: hide another")
    hidden = sorted(set(hidden))
    example = Example(*masking.mask(passage.ids, hidden, realm.tokenizer.mask_token_id), (NO_BLOCK,))
    index, models = index_of(realm), (realm.embedder, realm.encoder)
    blocks = encode_evidence(realm.documents, realm.tokenizer)
    found = gather_evidence(models, realm.tokenizer, blocks, index, [example], Draws(0, 0, [0]), SETTINGS)
    (x, _), _ = embed(realm.embedder.p, realm.embedder.config, found.texts, PLAIN)
    numbers = search_without(index, x, torch.tensor([[NO_BLOCK]], device=index.device), SETTINGS.num_candidates - 1)
    return Lesson(text, passage.offsets, hidden, found, numbers[0].tolist())


# ---- what the models say


def models_of(realm: SmallRealm) -> Models:
    """A copy of the models to train, and optimizers that have taken no step."""
    optimizers = {name: AdamW(rate, 10 * MOST_STEPS) for name, rate in RATES.items()}
    return Models(copy.deepcopy(realm.embedder), copy.deepcopy(realm.encoder), optimizers)


def likelihoods(models: Models, of: Lesson) -> tuple[Tensor, Tensor]:
    """f(x, z) and log p(y|z,x) of every candidate z, the null document first: [1, candidates] each."""
    relevance, log_p, _ = read_evidence((models.embedder, models.encoder), of.retrieved, (PLAIN, PLAIN, PLAIN))
    return relevance, log_p.sum(2)


def look(realm: SmallRealm, models: Models, of: Lesson) -> Json:
    """Equation 1 and its gradient as the models have it: a number for each candidate, the null document first."""
    relevance, log_likelihood = likelihoods(models, of)
    marginal, kept = marginal_log_likelihood(log_likelihood[:, :, None], relevance)
    posterior, r = marginal_log_likelihood_backward(torch.ones_like(marginal), kept)  # of log p(y|x)
    prior = posterior[:, :, 0] - r
    return {
        "log_p": float(marginal),
        "relevance": relevance[0].tolist(), "prior": prior[0].tolist(), "likelihood": log_likelihood.exp()[0].tolist(),
        "posterior": posterior[0, :, 0].tolist(), "r": r[0].tolist(), "guesses": guesses(realm, models, of),
    }  # fmt: skip


def guesses(realm: SmallRealm, models: Models, of: Lesson) -> list[Json]:
    """What the encoder would write in the first hidden place, having read each candidate."""
    pairs = of.retrieved.pairs
    read = models.encoder(input_ids=pairs.words, attention_mask=pairs.mask, token_type_ids=pairs.types)
    logits = read.logits[:, 1 + of.hidden[0]]  # [candidates, vocabulary], [CLS] stands before the sentence
    best = logits.max(1)
    p = (best.values - logits.logsumexp(1)).exp()
    words = realm.tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return [{"word": word, "probability": x} for word, x in zip(words, p.tolist(), strict=True)]


# ---- a step


def step(models: Models, of: Lesson, with_gradient: bool) -> float:
    """One update of the models, in place; returns the loss before it, -log p(y|x).

    Args:
        with_gradient: False leaves the retriever as it is.
    """
    for model in models[:2]:
        model.zero_grads()
    found = pretrain_step(models[:2], of.retrieved, SETTINGS)["loss"]
    learning = {"encoder": models.encoder, "embedder": models.embedder}
    for name, model in learning.items():
        if with_gradient or name == "encoder":
            models.optimizers[name].update(model.state_dict(), model.grads, found.count)
    return found.total
