"""REALM: parts 1, 4, 5 and 8 of `textbook.py` in torch, under the same names and in their order.

Equation 1 and its gradient, then the three models that stand on BERT: the embedder of texts and documents, the
knowledge-augmented encoder, the reader. As in `bert.py` a forward takes parameters and returns its output and what its
backward takes, `kept`; the backward stands below it. `interface/` makes transformers' classes of these functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import RealmConfig
from . import fast, ops
from .bert import (
    Batch,
    Encoded,
    Kept,
    Run,
    bert,
    bert_backward,
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
)
from .parameters import Parameters
from .spans import SpanInputs, span_logits, span_logits_backward

NO_LABEL = -100  # what stands in `labels` where no word is masked


# ---- Equation 1 and its gradient (REALM, sections 3.1 and 3.3)


def marginal_log_likelihood(log_likelihood: Tensor, relevance: Tensor) -> tuple[Tensor, Kept]:
    """log p(y|x) = log Σ_z p(y|z,x) p(z|x) (REALM equation 1): [batch, words].

    Args:
        log_likelihood: log p(y|z,x), [batch, candidates, words]: y is each word, or a "word" is all that is masked.
        relevance: f(x, z), [batch, candidates]; p(z|x) is its softmax.
    """
    # p(z|x) = e^f / Σ e^f, the sum taken out of the other: where each p(y|z,x) is 1, log p(y|x) is 0 to the bit.
    f = relevance[:, :, None]  # [batch, candidates, 1]
    log_joint = log_likelihood + f  # log p(y,z|x) + log Σ e^f [batch, candidates, words]
    return ops.logsumexp(log_joint, 1) - ops.logsumexp(f, 1), (f, log_joint)


def marginal_log_likelihood_backward(dy: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """The gradients of log p(y|z,x) [batch, candidates, words] and of f(x, z) [batch, candidates].

    With the posterior p(z|x,y) = p(y|z,x) p(z|x) / p(y|x), that of log p(y|x) is the posterior for each log p(y|z,x),
    and for f(x, z) it is p(z|x,y) - p(z|x): a document is pushed up as far as it predicts y better than the mixture
    does (REALM section 3.3, r(z)).
    """
    f, log_joint = kept
    prior = ops.softmax(f[:, :, 0])[:, :, None]  # [batch, candidates, 1]
    posterior = ops.softmax(log_joint.transpose(1, 2)).transpose(1, 2)  # [batch, candidates, words]
    dy = dy[:, None]  # [batch, 1, words]
    return dy * posterior, (dy * (posterior - prior)).sum(2)


def loss_of_correct(scores: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """-log of the probability that a softmax gives to what is correct, [] over all rows, and its gradient.

    That is equation 1 with p(y|z,x) = 1 where z is correct, and else 0: ORQA's losses are all of this form.

    Args:
        scores: [batch, choices].
        correct: bool [batch, choices]; a row without any counts 0.
    """
    # log 1 and log 0 [batch, choices, 1]. Where no span may be chosen at all, the loss is NaN, as transformers' is.
    certain = ops.additive_mask(correct, scores.dtype)[:, :, None]
    log_p, kept = marginal_log_likelihood(certain, scores)
    counts = correct.any(1, keepdim=True).to(scores.dtype)  # [batch, 1]
    return (-counts * log_p).sum(), marginal_log_likelihood_backward(-counts, kept)[1]


def marginal_loss(
    log_likelihood: Tensor, relevance: Tensor, mask: Tensor | None = None, whole_span: bool = False
) -> tuple[Tensor, Kept]:
    """-log p(y|x), summed and divided by the number of masked tokens: [], 0 where the mask is empty.

    Args:
        log_likelihood: log p(y_j|z,x), [batch, candidates, tokens].
        relevance: f(x, z), [batch, candidates].
        mask: which tokens count, [batch, tokens]; None counts all.
        whole_span: False, as transformers: each token is marginalised on its own, p(y_j|x) = Σ_z p(y_j|z,x) p(z|x).
            True, as the paper: y is all masked tokens of a text at once, p(y|z,x) = Π_j p(y_j|z,x).
    """
    mask = torch.ones_like(log_likelihood[:, 0]) if mask is None else mask.to(log_likelihood.dtype)
    counted = mask
    if whole_span:
        log_likelihood = (log_likelihood * mask[:, None]).sum(2, keepdim=True)  # [batch, candidates, 1]
        counted = mask.any(1, keepdim=True).to(mask.dtype)
    relevance = relevance - relevance.amax(1, keepdim=True)  # p(z|x) is the same, and large scores cost no digits
    log_marginal, kept = marginal_log_likelihood(log_likelihood, relevance)  # [batch, tokens | 1]
    loss = -torch.nansum((log_marginal * counted).sum() / mask.sum())
    return loss, (mask, counted, kept)


def marginal_loss_backward(dloss: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """∂loss/∂log_likelihood [batch, candidates, tokens] and ∂loss/∂relevance [batch, candidates], in their dtypes."""
    mask, counted, kept_marginal = kept
    # An empty mask has loss 0 and no gradient.
    scale = -dloss / mask.sum().clamp(min=torch.finfo(mask.dtype).tiny)
    dlog_likelihood, drelevance = marginal_log_likelihood_backward(scale * counted, kept_marginal)
    return (dlog_likelihood * mask[:, None]).to(mask.dtype), drelevance.to(kept_marginal[0].dtype)


# ---- The retriever, p(z|x) (REALM, sections 3.2 and 3.3)


def embed(p: Parameters, config: RealmConfig, batch: Batch, run: Run) -> tuple[tuple[Tensor, Encoded], Kept]:
    """Embed(x) = LayerNorm(W BERT_CLS(x)) [batch, proj], where BERT's pooler comes first; and what BERT returned.

    The paper writes W BERT_CLS(x) alone; the pooler and the LayerNorm are those of the released checkpoints.
    """
    encoded, kept_bert = bert(p, config, batch, "first", run)
    pooled, kept_pooler = pool(p, encoded.hidden)  # [batch, hidden]
    y, kept_dense = linear(p, "cls.dense", pooled)  # [batch, proj]
    y, kept_norm = layer_norm(p, "cls.LayerNorm", y, config.layer_norm_eps)
    y, kept_drop = fast.dropout(y, fast.projection_stream(config, run.seeds, y.device), [1] * len(y))
    return (y, encoded), (kept_bert, kept_pooler, kept_dense, kept_norm, kept_drop) if run.keep else None


def embed_backward(dy: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """∂loss/∂inputs_embeds [batch, tokens, hidden] from that of Embed(x) [batch, proj]."""
    kept_bert, kept_pooler, kept_dense, kept_norm, kept_drop = kept
    dy = fast.dropout_backward(dy, kept_drop)
    dpooled = linear_backward(layer_norm_backward(dy, kept_norm, grads), kept_dense, grads)
    return bert_backward(pool_backward(dpooled, kept_pooler, grads), kept_bert, grads)


def pool(p: Parameters, first: Tensor) -> tuple[Tensor, Kept]:
    """tanh(W h_CLS + b), BERT's summary of a sequence [batch, hidden] -> [batch, hidden]."""
    y, kept = linear(p, "realm.pooler.dense", first)
    pooled = y.tanh_()
    return pooled, (pooled, kept)


def pool_backward(dy: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """∂loss/∂h_CLS [batch, hidden]; the slope of tanh is 1 - tanh²."""
    pooled, kept_linear = kept
    return linear_backward(dy * (1 - pooled**2), kept_linear, grads)


def relevance_score(x: Tensor, z: Tensor) -> tuple[Tensor, Kept]:
    """f(x, z) = Embed(x) · Embed(z), [batch, proj] and [batch, candidates, proj] -> [batch, candidates]."""
    return (z @ x[:, :, None])[:, :, 0], (x, z)


def relevance_score_backward(dy: Tensor, kept: Kept) -> tuple[Tensor, Tensor]:
    """f is an inner product: the gradient of each side is the other side."""
    x, z = kept
    dy = dy[:, :, None]  # [batch, candidates, 1]
    return (dy * z).sum(1), dy * x[:, None]


# ---- The knowledge-augmented encoder, p(y|z,x) (REALM, section 3.2)


def masked_words(p: Parameters, config: RealmConfig, batch: Batch, labels: Tensor, run: Run) -> tuple[Tensor, Kept]:
    """log p(y_j|z,x) of the masked words y_j alone: no other position meets the vocabulary.

    Args:
        labels: [sequences, tokens] int64, NO_LABEL where no word is masked.

    Returns:
        [sequences, tokens], 0 where there is no label; and what the backward takes.
    """
    encoded, kept_bert = bert(p, config, batch, "unpadded", run)
    masked = (labels != NO_LABEL).reshape(-1).nonzero()[:, 0]
    hidden = encoded.hidden.reshape(-1, config.hidden_size)  # [sequences * tokens, hidden]
    logits, kept_head = mlm_logits(p, config, hidden[masked])  # [masked, vocabulary]
    targets = labels.reshape(-1)[masked]
    log_likelihood = hidden.new_zeros(len(hidden)).index_copy_(0, masked, -ops.cross_entropy(logits, targets))
    return log_likelihood.view(labels.shape), (kept_bert, kept_head, masked, logits, targets)


def masked_words_backward(dy: Tensor, kept: Kept, grads: Parameters) -> None:
    """Add to `grads` from the gradient of what `masked_words` returned, [sequences, tokens]."""
    kept_bert, kept_head, masked, logits, targets = kept
    dlogits = ops.cross_entropy_backward(-dy.reshape(-1)[masked], logits, targets)
    drows = mlm_logits_backward(dlogits, kept_head, grads)  # [masked, hidden]
    dhidden = drows.new_zeros(dy.numel(), drows.shape[1]).index_copy_(0, masked, drows)
    bert_backward(dhidden.view(*dy.shape, -1), kept_bert, grads)


def mlm_logits(p: Parameters, config: RealmConfig, hidden: Tensor) -> tuple[Tensor, Kept]:
    """Scores of every vocabulary entry at each row, [rows, hidden] -> [rows, vocabulary]."""
    name = "cls.predictions"
    inner, kept_dense = linear(p, f"{name}.transform.dense", hidden)
    activated = ops.ACTIVATIONS[config.hidden_act](inner.clone())
    transformed, kept_norm = layer_norm(p, f"{name}.transform.LayerNorm", activated, config.layer_norm_eps)
    weight = p[f"{name}.decoder.weight"]  # BERT ties it to the word embeddings
    logits = ops.linear(transformed, weight, p[f"{name}.bias"])
    return logits, (kept_dense, inner, config.hidden_act, kept_norm, transformed, weight)


def mlm_logits_backward(dlogits: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """∂loss/∂hidden [rows, hidden] from that of the logits [rows, vocabulary]."""
    kept_dense, inner, activation, kept_norm, transformed, weight = kept
    name = "cls.predictions"
    dtransformed = ops.linear_backward(
        dlogits, transformed, weight, grads[f"{name}.decoder.weight"], grads[f"{name}.bias"]
    )
    _, slope = gelu(inner, activation)
    dinner = gelu_backward(layer_norm_backward(dtransformed, kept_norm, grads), slope)
    return linear_backward(dinner, kept_dense, grads)


def rows_of_head(kept: Kept, rows: Tensor) -> Kept:
    """What `mlm_logits` keeps, of some of its rows alone."""
    (x, *of_dense), inner, activation, (normal, r, *of_norm), transformed, weight = kept
    return (x[rows], *of_dense), inner[rows], activation, (normal[rows], r[rows], *of_norm), transformed[rows], weight


# ---- The reader (ORQA, section 3)


def read(
    p: Parameters, config: RealmConfig, batch: Batch, in_block: Tensor, relevance: Tensor, run: Run
) -> tuple[tuple[Tensor, Encoded], Kept]:
    """S(b, s) = w · LayerNorm(relu(W₁ h_first + W₂ h_last)) + f(x, b) of spans in the block, lowest of others.

    Args:
        in_block: [beam, tokens], true where spans may begin and end.
        relevance: f(x, b) [beam].

    Returns:
        The scores [beam, spans] in the order of `span_candidates` with what BERT returned; and what the backward takes.
    """
    (inputs, encoded), kept = read_tokens(p, config, batch, in_block, relevance, run)
    return (span_logits(inputs), encoded), kept


def read_tokens(
    p: Parameters, config: RealmConfig, batch: Batch, in_block: Tensor, relevance: Tensor, run: Run
) -> tuple[tuple[SpanInputs, Encoded], Kept]:
    """`read` without its last line: what the spans are scored by, for whoever wants the best alone."""
    # Nobody reads padding, unless the block's mask says that answers may stand in it.
    padding_is_read = batch.mask.shape == in_block.shape and bool((in_block.bool() & (batch.mask == 0)).any())
    encoded, kept_bert = bert(p, config, batch, "tokens" if padding_is_read else "unpadded", run)
    beam, tokens, hidden = encoded.hidden.shape
    projections, kept_in = linear(p, "qa_outputs.dense_intermediate", encoded.hidden.reshape(-1, hidden))
    inputs = span_inputs(p, config, projections.view(beam, tokens, -1), in_block.bool(), relevance)
    return (inputs, encoded), (kept_bert, kept_in, inputs, encoded.hidden.shape) if run.keep else None


def read_backward(dy: Tensor, kept: Kept, grads: Parameters) -> tuple[Tensor, Tensor]:
    """∂loss/∂relevance [beam] and ∂loss/∂inputs_embeds [beam, tokens, hidden] from that of the scores [beam, spans]."""
    kept_bert, kept_in, inputs, shape = kept
    dspans = span_logits_backward(dy, inputs)  # by the name of the input
    grads["qa_outputs.layer_normalization.weight"] += dspans["norm_weight"]
    grads["qa_outputs.layer_normalization.bias"] += dspans["norm_bias"]
    grads["qa_outputs.dense_output.weight"][0] += dspans["output_weight"]
    grads["qa_outputs.dense_output.bias"] += dspans["output_bias"]
    dprojections = torch.cat([dspans["start_projection"], dspans["end_projection"]], 2).flatten(0, 1)
    dhidden = linear_backward(dprojections, kept_in, grads).view(shape)
    return dspans["relevance_score"], bert_backward(dhidden, kept_bert, grads)


def span_inputs(
    p: Parameters, config: RealmConfig, projections: Tensor, in_block: Tensor, relevance: Tensor | None = None
) -> SpanInputs:
    """What spans are scored by: projections [beam, tokens, 2 * span hidden], the starts' half first."""
    starts, ends = projections.chunk(2, dim=2)  # [beam, tokens, span hidden] each
    return SpanInputs(
        starts, ends, p["qa_outputs.layer_normalization.weight"], p["qa_outputs.layer_normalization.bias"],
        p["qa_outputs.dense_output.weight"][0], p["qa_outputs.dense_output.bias"],
        config.max_span_width, config.reader_layer_norm_eps, in_block, relevance,
    )  # fmt: skip


def correct_spans(starts: Tensor, ends: Tensor, gold_starts: Tensor, gold_ends: Tensor) -> Tensor:
    """Which candidate spans are answers.

    Args:
        starts, ends: first and last token of each candidate, [spans].
        gold_starts, gold_ends: the same of the answers, [beam, answers]; -1 matches nothing.

    Returns:
        bool [beam, spans].
    """
    is_start = starts == gold_starts[:, :, None]  # [beam, answers, spans]
    return (is_start & (ends == gold_ends[:, :, None])).any(1)


# ---- How probable an answer is


def joint_probability(scores: Tensor, same: Tensor) -> Tensor:
    """p(y|x) as ORQA trains it (Lee et al. 2019, section 6): the answer's share of one softmax over all spans read.

    Args:
        scores: S(b, s) of every span of every block, f(x, b) included, [beam, spans].
        same: which spans spell the answer, bool [beam, spans].
    """
    return ops.softmax(scores.reshape(-1)).view_as(scores)[same].sum()


def marginal_probability(scores: Tensor, same: Tensor, relevance: Tensor) -> Tensor:
    """p(y|x) = Σ_z p(y|z,x) p(z|x) (REALM, equation 1), with a softmax over the spans of each block on its own.

    It is another number than `joint_probability`, which lets a block whose spans score high weigh more than p(z|x).

    Args:
        scores, same: as there; f(x, z) is the same for all spans of a block, and so cancels in p(y|z,x).
        relevance: f(x, z) [beam].
    """
    has_spans = scores.amax(1, keepdim=True) > torch.finfo(scores.dtype).min / 2  # of an empty block, none counts
    of_block = ops.softmax(scores) * (same & has_spans)  # [beam, spans]
    return (ops.softmax(relevance) * of_block.sum(1)).sum()
