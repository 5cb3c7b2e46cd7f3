"""The book's models, called as the tests call the others: their values, losses and gradients for one batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from realm_min import RealmConfig, textbook
from realm_min.textbook import Array, Batch, Weights


class Losses(NamedTuple):
    """Of one batch: the losses, the gradients of their sum, and the scores that they are of."""

    losses: list[float]
    drelevance: Array
    g: Weights
    scores: Array


def zeros(p: Weights) -> Weights:
    return {name: np.zeros_like(value) for name, value in p.items()}


def embedder(p: Weights, c: RealmConfig, batch: Batch, dy: Array) -> tuple[Array, Weights]:
    """Embed(x), and the gradients of Σ dy · Embed(x)."""
    y, kept = textbook.embed(p, c, batch)
    g = zeros(p)
    textbook.embed_backward(dy, kept, g)
    return y, g


def knowledge_encoder(
    p: Weights, c: RealmConfig, batch: Batch, labels: Array, relevance: Array, whole_span: bool = False
) -> Losses:
    """-log p(y|x) a masked word: labels [batch, tokens], relevance [batch, candidates]; the scores are log p(y|z,x)."""
    masked = labels != textbook.NO_LABEL
    count, repeated = max(masked.sum(), 1), labels.repeat(relevance.shape[1], 0)
    log_p, kept_words = textbook.masked_words(p, c, batch, repeated)
    log_likelihood, y = log_p.reshape(*relevance.shape, -1), masked  # [batch, candidates, tokens], [batch, tokens]
    if whole_span:
        log_likelihood, y = log_likelihood.sum(2, keepdims=True), masked.any(1, keepdims=True)
    marginal, kept = textbook.marginal_log_likelihood(log_likelihood, relevance)
    dlog_likelihood, drelevance = textbook.marginal_log_likelihood_backward(y * (-1.0 / count), kept)
    g = zeros(p)
    dlog_p = np.broadcast_to(dlog_likelihood, (*relevance.shape, labels.shape[1])).reshape(log_p.shape)
    textbook.masked_words_backward(dlog_p, kept_words, g)
    return Losses([-(marginal * y).sum() / count], drelevance, g, log_p)


def reader(
    p: Weights, c: RealmConfig, batch: Batch, in_block: Array, relevance: Array, answers: tuple[Array, Array, Array]
) -> Losses:
    """The retriever's and the reader's loss; answers are has_answers [retrieved], starts and ends [retrieved, answers].

    in_block [retrieved, tokens], relevance [retrieved], of which those of the batch are read; the scores are S(b, s).
    """
    has_answer, starts, ends = answers
    read, g, tokens = len(batch[0]), zeros(p), batch[0].shape[1]
    scores, kept = textbook.read(p, c, batch, in_block[:read], relevance[:read])
    first, last = textbook.span_candidates(tokens, c.max_span_width)
    correct = ((first == starts[:read, :, None]) & (last == ends[:read, :, None])).any(1)  # [blocks, spans]
    retriever_loss, drelevance = textbook.loss_of_correct(relevance[None], has_answer[None])
    reader_loss, dscores = textbook.loss_of_correct(scores.reshape(1, -1), correct.reshape(1, -1))
    drelevance[0, :read] += textbook.read_backward(dscores.reshape(scores.shape), kept, g)
    return Losses([retriever_loss, reader_loss], drelevance[0], g, scores)


def search(queries: Tensor, blocks: Tensor, k: int) -> tuple[Array, Array]:
    """The k largest inner products and their blocks, both [queries, k], the scores in float64."""
    x, z = queries.double().numpy(), blocks.double().numpy()
    ids = textbook.search(x, z, k)
    return np.take_along_axis(x @ z.T, ids, 1), ids
