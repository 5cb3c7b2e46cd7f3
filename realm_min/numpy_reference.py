"""REALM as a textbook writes it: the forward pass of every model, the search and every loss, in float64 NumPy.

Nothing here is fast and nothing is shared with the models it checks; only the configuration is imported. Read it beside
the papers: BERT (Devlin et al. 2018, arXiv 1810.04805), REALM (Guu et al. 2020, arXiv 2002.08909) and ORQA (Lee et al.
2019, arXiv 1906.00300). Dropout is off throughout.

Parameters are a dict from transformers' state-dict keys to float64 arrays; `prefix` ("realm.", "reader.") selects the
part of the dict that belongs to a component. Each model returns a dict with the names of transformers' output fields,
all of them, always. Where a formula can be ambiguous (ties, masked rows, no answer at all) it does what transformers
4.40.2 does, and the comment there says so.

Axes in shape comments:
    batch       questions or sentences; in the reader, the retrieved blocks that are read
    candidates  retrieved documents z for one input x
    tokens      wordpieces of one sequence; queries, keys: the same axis on the two sides of attention
    layers, heads, head_size, hidden = heads * head_size, intermediate    sizes of the encoder
    vocabulary  wordpieces the masked language model chooses from
    projection  size of the retriever's embedding space
    spans       answer candidates: every start with width 1, then every start with width 2, and so on
    span_hidden size of the reader's span representation
    answers     gold spans per block, padded with -1
    blocks      all evidence blocks of the index
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from realm_min.config import RealmConfig

Array = np.ndarray
Parameters = Mapping[str, np.ndarray]

# Added to a score that must not count. The most negative number, not -inf: a score is lost in its rounding, so where
# *every* score of a row is masked all become equal, and their softmax is uniform instead of 0/0.
MASKED = float(np.finfo(np.float64).min)

# Label of a position that the masked language model is not asked about.
IGNORED_LABEL = -100


# ---------------------------------------------------------------------------------------------- elementary functions


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x) if np.size(x) else np.asarray(x, np.float64)


def gelu(x: Array) -> Array:
    """x Φ(x) with Φ the normal distribution function (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2)."""
    return x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))


def gelu_new(x: Array) -> Array:
    """The tanh approximation of `gelu` (same paper, section 2), which BERT's first code used."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, 0.0)


def selu(x: Array) -> Array:
    """λ x for x > 0, λ α (exp(x) - 1) elsewhere (Klambauer et al. 2017, arXiv 1706.02515, equation 2)."""
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def silu(x: Array) -> Array:
    """x sigmoid(x), the sigmoid as exp(-log(1 + exp(-x))) so that no x overflows."""
    return x * np.exp(-np.logaddexp(0.0, -x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": gelu_new,
    "relu": relu,
    "selu": selu,
    "silu": silu,
}


def logsumexp(x: Array, axis: int = -1) -> Array:
    """log Σ exp(x) along `axis`, which disappears; the largest term is taken out so that nothing overflows."""
    largest = np.max(x, axis=axis, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0.0)  # a row of -inf has the sum 0 and the logarithm -inf
    with np.errstate(divide="ignore", over="ignore"):
        return np.log(np.sum(np.exp(x - largest), axis=axis)) + np.squeeze(largest, axis=axis)


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - log Σ exp(x) along `axis`. Shape of `x`."""
    with np.errstate(over="ignore"):
        shifted = x - np.max(x, axis=axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))


def softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) / Σ exp(x) along `axis`. Shape of `x`."""
    with np.errstate(over="ignore"):
        weights = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return weights / np.sum(weights, axis=axis, keepdims=True)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """γ (x - μ) / sqrt(σ² + ε) + β over the last axis (Ba et al. 2016, arXiv 1607.06450), σ² over n, not n - 1."""
    mean = np.mean(x, axis=-1, keepdims=True)
    variance = np.mean((x - mean) ** 2, axis=-1, keepdims=True)
    return weight * (x - mean) / np.sqrt(variance + eps) + bias


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """x Wᵀ + b. x [..., inputs], weight [outputs, inputs], bias [outputs] -> [..., outputs]."""
    return x @ weight.T + bias


def embedding(ids: Array, table: Array) -> Array:
    """Rows of `table` [rows, hidden] at the integers `ids` [...] -> [..., hidden].

    Raises:
        ValueError: an id below 0 or not below `rows`. A negative id never counts from the end.
    """
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids have dtype {ids.dtype}; give integers")
    wrong = (ids < 0) | (ids >= len(table))
    if wrong.any():
        raise ValueError(f"id {ids[wrong].flat[0]} is outside the table: ids run from 0 to {len(table) - 1}")
    return np.asarray(table, np.float64)[ids]


def target_log_probability(logits: Array, labels: Array) -> Array:
    """log p(label) at each position, 0 where the label is `IGNORED_LABEL`.

    logits [..., vocabulary], labels [...] -> [...]. Minus this is the cross-entropy.

    Raises:
        ValueError: any other label below 0 or not below `vocabulary`.
    """
    labels = np.asarray(labels)
    counted = labels != IGNORED_LABEL
    wrong = counted & ((labels < 0) | (labels >= logits.shape[-1]))
    if wrong.any():
        raise ValueError(f"label {labels[wrong].flat[0]} is neither {IGNORED_LABEL} nor in 0..{logits.shape[-1] - 1}")
    chosen = np.where(counted, labels, 0)
    log_probability = np.take_along_axis(log_softmax(logits), chosen[..., None], axis=-1)[..., 0]
    return np.where(counted, log_probability, 0.0)


def central_difference(function: Callable[[Array], float], array: Array, eps: float = 1e-6) -> Array:
    """The gradient of a scalar function by (f(x + ε) - f(x - ε)) / 2ε, one element at a time. Shape of `array`."""
    array = np.array(array, dtype=np.float64)
    gradient = np.empty_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + eps
        above = float(function(array))
        array[index] = value - eps
        below = float(function(array))
        array[index] = value
        gradient[index] = (above - below) / (2.0 * eps)
    return gradient


# ------------------------------------------------------------------------------------------- BERT (BERT, section 3)


def additive_mask(attention_mask: Array) -> Array:
    """0 where a key may be attended to, `MASKED` where not.

    attention_mask [batch, keys], or [batch, queries, keys] with one row for each query, of 1 (attend) and 0 (ignore)
    -> [batch, 1, 1 or queries, keys], to be added to attention scores.

    Raises:
        ValueError: any other rank.
    """
    attention_mask = np.asarray(attention_mask, np.float64)
    if attention_mask.ndim == 2:
        attention_mask = attention_mask[:, None, None, :]
    elif attention_mask.ndim == 3:
        attention_mask = attention_mask[:, None, :, :]
    else:
        raise ValueError(f"attention_mask has shape {attention_mask.shape}; give [batch, keys]")
    return (1.0 - attention_mask) * MASKED


def head_weights(head_mask: Array | None, layers: int, heads: int) -> Array:
    """The factor of each head's attention: head_mask [heads] for all layers, or [layers, heads] -> [layers, heads].

    Raises:
        ValueError: any other shape.
    """
    if head_mask is None:
        return np.ones((layers, heads))
    head_mask = np.asarray(head_mask, np.float64)
    if head_mask.shape not in ((heads,), (layers, heads)):
        raise ValueError(f"head_mask has shape {head_mask.shape}; give [{heads}] or [{layers}, {heads}]")
    return np.broadcast_to(head_mask, (layers, heads))


def embeddings(
    parameters: Parameters,
    config: RealmConfig,
    input_ids: Array | None,
    token_type_ids: Array | None = None,
    position_ids: Array | None = None,
    inputs_embeds: Array | None = None,
    *,
    prefix: str = "embeddings.",
) -> Array:
    """Word + token type + position embedding, normalised (BERT, figure 2) -> [batch, tokens, hidden].

    Of `input_ids` [batch, tokens] and `inputs_embeds` [batch, tokens, hidden], which stands for the word embeddings,
    exactly one is given. token_type_ids [batch, tokens], default 0. position_ids [batch or 1, tokens], default 0, 1, 2.

    Raises:
        ValueError: both or neither input, a wrong rank, an id outside its table.
    """
    if input_ids is not None and inputs_embeds is None:
        if np.ndim(input_ids) != 2:
            raise ValueError(f"input_ids has shape {np.shape(input_ids)}; give [batch, tokens]")
        inputs_embeds = embedding(input_ids, parameters[f"{prefix}word_embeddings.weight"])
    elif input_ids is not None or inputs_embeds is None:
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    inputs_embeds = np.asarray(inputs_embeds, np.float64)  # [batch, tokens, hidden]
    if inputs_embeds.ndim != 3:
        raise ValueError(f"inputs_embeds has shape {inputs_embeds.shape}; give [batch, tokens, hidden]")
    batch, tokens, _ = inputs_embeds.shape
    if token_type_ids is None:
        token_type_ids = np.zeros((batch, tokens), np.int64)
    if position_ids is None:
        position_ids = np.arange(tokens, dtype=np.int64)[None]

    x = (
        inputs_embeds
        + embedding(token_type_ids, parameters[f"{prefix}token_type_embeddings.weight"])
        + embedding(position_ids, parameters[f"{prefix}position_embeddings.weight"])
    )
    return _layer_norm(parameters, f"{prefix}LayerNorm", x, config.layer_norm_eps)


def self_attention(
    parameters: Parameters, config: RealmConfig, x: Array, mask: Array, head_weight: Array, *, prefix: str
) -> tuple[Array, Array]:
    """softmax(Q Kᵀ / sqrt(head_size) + mask) V for each head (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    x [batch, tokens, hidden]; mask, from `additive_mask`; head_weight [heads] multiplies the probabilities
    -> (context [batch, tokens, hidden], probabilities [batch, heads, queries, keys]).
    """
    batch, tokens, hidden = x.shape
    heads = config.num_attention_heads
    head_size = hidden // heads

    def project(name: str) -> Array:
        y = _linear(parameters, f"{prefix}{name}", x)  # [batch, tokens, hidden]
        return y.reshape(batch, tokens, heads, head_size).transpose(0, 2, 1, 3)  # [batch, heads, tokens, head_size]

    query, key, value = project("query"), project("key"), project("value")
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(head_size)  # [batch, heads, queries, keys]
    probabilities = softmax(scores + mask) * head_weight[:, None, None]
    context = probabilities @ value  # [batch, heads, queries, head_size]
    return context.transpose(0, 2, 1, 3).reshape(batch, tokens, hidden), probabilities


def encoder_layer(
    parameters: Parameters, config: RealmConfig, x: Array, mask: Array, head_weight: Array, *, prefix: str
) -> tuple[Array, Array]:
    """Attention, then two dense layers, each added to its input and normalised after (Vaswani et al., section 3.1).

    Arguments and shapes as for `self_attention` -> (output [batch, tokens, hidden], attention probabilities).
    """
    eps = config.layer_norm_eps
    context, probabilities = self_attention(parameters, config, x, mask, head_weight, prefix=f"{prefix}attention.self.")
    attended = _linear(parameters, f"{prefix}attention.output.dense", context)
    attended = _layer_norm(parameters, f"{prefix}attention.output.LayerNorm", attended + x, eps)

    intermediate = ACTIVATIONS[config.hidden_act](_linear(parameters, f"{prefix}intermediate.dense", attended))
    output = _linear(parameters, f"{prefix}output.dense", intermediate)  # [batch, tokens, hidden]
    return _layer_norm(parameters, f"{prefix}output.LayerNorm", output + attended, eps), probabilities


def bert(
    parameters: Parameters,
    config: RealmConfig,
    input_ids: Array | None = None,
    attention_mask: Array | None = None,
    token_type_ids: Array | None = None,
    position_ids: Array | None = None,
    head_mask: Array | None = None,
    inputs_embeds: Array | None = None,
    *,
    prefix: str = "realm.",
) -> dict[str, Any]:
    """The encoder that every model shares: embeddings, layers, and the pooled first token (BERT, section 3).

    input_ids, token_type_ids [batch, tokens] integers; attention_mask [batch, tokens], default all 1; position_ids
    [batch or 1, tokens]; head_mask [heads] or [layers, heads]; inputs_embeds [batch, tokens, hidden].

    Returns:
        last_hidden_state [batch, tokens, hidden]; pooler_output [batch, hidden]; hidden_states, a tuple of the
        embeddings' and every layer's output; attentions, a tuple of [batch, heads, queries, keys] for each layer.
    """
    x = embeddings(
        parameters, config, input_ids, token_type_ids, position_ids, inputs_embeds, prefix=f"{prefix}embeddings."
    )
    mask = additive_mask(np.ones(x.shape[:2]) if attention_mask is None else attention_mask)
    weights = head_weights(head_mask, config.num_hidden_layers, config.num_attention_heads)

    hidden_states, attentions = [x], []
    for layer in range(config.num_hidden_layers):
        x, probabilities = encoder_layer(
            parameters, config, x, mask, weights[layer], prefix=f"{prefix}encoder.layer.{layer}."
        )
        hidden_states.append(x)
        attentions.append(probabilities)

    pooled = np.tanh(_linear(parameters, f"{prefix}pooler.dense", x[:, 0]))  # [batch, hidden]
    return {
        "last_hidden_state": x,
        "pooler_output": pooled,
        "hidden_states": tuple(hidden_states),
        "attentions": tuple(attentions),
    }


# ------------------------------------------------------------------- the retriever: p(z|x) (REALM, section 3.2)


def embedder(
    parameters: Parameters, config: RealmConfig, *, prefix: str = "", **inputs: Array | None
) -> dict[str, Any]:
    """Embed_input(x) or Embed_doc(z) = W BERT_CLS(x) (REALM, section 3.2), then a LayerNorm as in ORQA's code.

    `inputs` are those of `bert`.

    Returns:
        projected_score [batch, projection]; hidden_states and attentions as in `bert`.
    """
    outputs = bert(parameters, config, prefix=f"{prefix}realm.", **inputs)
    projected = _linear(parameters, f"{prefix}cls.dense", outputs["pooler_output"])  # [batch, projection]
    return {
        "projected_score": _layer_norm(parameters, f"{prefix}cls.LayerNorm", projected, config.layer_norm_eps),
        "hidden_states": outputs["hidden_states"],
        "attentions": outputs["attentions"],
    }


def scorer(
    parameters: Parameters,
    config: RealmConfig,
    *,
    candidate_input_ids: Array | None = None,
    candidate_attention_mask: Array | None = None,
    candidate_token_type_ids: Array | None = None,
    candidate_inputs_embeds: Array | None = None,
    prefix: str = "",
    **inputs: Array | None,
) -> dict[str, Array]:
    """f(x, z) = Embed_input(x)ᵀ Embed_doc(z) (REALM, section 3.2).

    `inputs` are the query's, as for `bert`; its position_ids and head_mask serve the candidates too.
    candidate_input_ids, candidate_attention_mask, candidate_token_type_ids [batch, candidates, tokens];
    candidate_inputs_embeds [batch * candidates, tokens, hidden].

    Returns:
        relevance_score [batch, candidates]; query_score [batch, projection];
        candidate_score [batch, candidates, projection].
    """
    query = embedder(parameters, config, prefix=f"{prefix}query_embedder.", **inputs)["projected_score"]
    candidate = embedder(
        parameters,
        config,
        prefix=f"{prefix}embedder.",
        input_ids=_flatten_candidates(candidate_input_ids),
        attention_mask=_flatten_candidates(candidate_attention_mask),
        token_type_ids=_flatten_candidates(candidate_token_type_ids),
        position_ids=inputs.get("position_ids"),
        head_mask=inputs.get("head_mask"),
        inputs_embeds=candidate_inputs_embeds,
    )["projected_score"]
    candidate = candidate.reshape(-1, config.num_candidates, config.retriever_proj_size)
    if len(candidate) != len(query):
        raise ValueError(f"{len(query)} queries but candidates for {len(candidate)}")
    return {
        "relevance_score": np.sum(query[:, None, :] * candidate, axis=-1),  # [batch, candidates]
        "query_score": query,
        "candidate_score": candidate,
    }


def mips_topk(queries: Array, blocks: Array, k: int) -> tuple[Array, Array]:
    """The k blocks of largest inner product with each query, best first; among equal scores the smaller id first.

    queries [queries, projection], blocks [blocks, projection] -> (scores [queries, k] float64, ids [queries, k] int64).

    Raises:
        ValueError: k below 1 or above the number of blocks, wrong ranks, sizes of projection that differ.
    """
    queries, blocks = np.asarray(queries, np.float64), np.asarray(blocks, np.float64)
    if queries.ndim != 2 or blocks.ndim != 2 or queries.shape[1] != blocks.shape[1]:
        raise ValueError(f"queries {queries.shape} and blocks {blocks.shape} must be [Q, D] and [N, D]")
    if not 1 <= k <= len(blocks):
        raise ValueError(f"k={k} must lie between 1 and the number of blocks, {len(blocks)}")
    scores = queries @ blocks.T  # [queries, blocks]
    ids = np.argsort(-scores, axis=-1, kind="stable")[:, :k]  # stable: equal scores stay in the order of their ids
    return np.take_along_axis(scores, ids, axis=-1), ids.astype(np.int64)


# ------------------------------------------------- the knowledge-augmented encoder: p(y|z,x) (REALM, section 3.2)


def masked_lm_logits(parameters: Parameters, config: RealmConfig, x: Array, *, prefix: str = "cls.") -> Array:
    """w_jᵀ h for every wordpiece j, h the transformed hidden state (BERT, section 3.1, task 1).

    x [..., hidden] -> [..., vocabulary].
    """
    h = ACTIVATIONS[config.hidden_act](_linear(parameters, f"{prefix}predictions.transform.dense", x))
    h = _layer_norm(parameters, f"{prefix}predictions.transform.LayerNorm", h, config.layer_norm_eps)
    return linear(h, parameters[f"{prefix}predictions.decoder.weight"], parameters[f"{prefix}predictions.bias"])


def marginal_masked_lm_loss(
    logits: Array,
    relevance_score: Array,
    labels: Array,
    mlm_mask: Array | None = None,
    *,
    whole_span: bool = False,
) -> Array:
    """Minus the mean marginal log-likelihood of the masked tokens: p(y|x) = Σ_z p(y|z,x) p(z|x) (REALM, equation 1).

    p(z|x) is the softmax of the relevance scores over the candidates (section 3.2).

    whole_span False, as transformers: each token y_j is marginalised on its own, p(y_j|x) = Σ_z p(y_j|z,x) p(z|x), and
    the loss is the mean of -log p(y_j|x) over the positions of `mlm_mask`. A position in the mask whose label is
    ignored contributes log 1 and counts in the mean. An empty mask has loss 0.

    whole_span True, as the paper: y is all the masked tokens of a row at once, p(y|z,x) = Π_j p(y_j|z,x), and the loss
    is Σ -log p(y|x) over the batch, divided by the same number of positions, so that both losses are per token and
    equal each other when there is one candidate.

    logits [batch, candidates, tokens, vocabulary]; relevance_score [batch, candidates]; labels [batch, tokens];
    mlm_mask [batch, tokens] of 0 and 1, default all 1 -> [].
    """
    labels = np.asarray(labels)
    mask = np.ones(labels.shape) if mlm_mask is None else np.asarray(mlm_mask, np.float64)
    repeated = np.broadcast_to(labels[:, None, :], logits.shape[:-1])  # the same y for each candidate
    log_p_token = target_log_probability(logits, repeated)  # log p(y_j|z,x) [batch, candidates, tokens]
    log_p_document = log_softmax(np.asarray(relevance_score, np.float64))  # log p(z|x) [batch, candidates]
    if whole_span:
        log_p_span = np.sum(log_p_token * mask[:, None, :], axis=-1)  # log p(y|z,x) [batch, candidates]
        log_likelihood = np.sum(logsumexp(log_p_document + log_p_span) * mask.any(axis=-1))  # no y: log 1
    else:
        log_p = logsumexp(log_p_document[:, :, None] + log_p_token, axis=1)  # log p(y_j|x) [batch, tokens]
        log_likelihood = np.sum(log_p * mask)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(-np.nansum(log_likelihood / np.sum(mask)))


def knowledge_encoder(
    parameters: Parameters,
    config: RealmConfig,
    input_ids: Array | None = None,
    attention_mask: Array | None = None,
    token_type_ids: Array | None = None,
    position_ids: Array | None = None,
    head_mask: Array | None = None,
    inputs_embeds: Array | None = None,
    relevance_score: Array | None = None,
    labels: Array | None = None,
    mlm_mask: Array | None = None,
    *,
    whole_span: bool = False,
    prefix: str = "",
) -> dict[str, Any]:
    """The masked language model that reads each candidate beside the input (REALM, section 3.2).

    input_ids, attention_mask, token_type_ids [batch, candidates, tokens]; inputs_embeds
    [batch * candidates, tokens, hidden]; relevance_score [batch, candidates]; labels, mlm_mask [batch, tokens].

    Returns:
        loss, from `marginal_masked_lm_loss`, None without labels; logits [batch * candidates, tokens, vocabulary];
        hidden_states and attentions as in `bert`.

    Raises:
        ValueError: labels without relevance_score.
    """
    outputs = bert(
        parameters,
        config,
        _flatten_candidates(input_ids),
        _flatten_candidates(attention_mask),
        _flatten_candidates(token_type_ids),
        position_ids,
        head_mask,
        inputs_embeds,
        prefix=f"{prefix}realm.",
    )
    logits = masked_lm_logits(parameters, config, outputs["last_hidden_state"], prefix=f"{prefix}cls.")
    loss = None
    if labels is not None:
        if relevance_score is None:
            raise ValueError("labels need relevance_score: the loss weighs each candidate with p(z|x)")
        per_candidate = logits.reshape(-1, config.num_candidates, *logits.shape[1:])
        loss = marginal_masked_lm_loss(per_candidate, relevance_score, labels, mlm_mask, whole_span=whole_span)
    return {
        "loss": loss,
        "logits": logits,
        "hidden_states": outputs["hidden_states"],
        "attentions": outputs["attentions"],
    }


# ------------------------------------------------------------------------------ the reader (ORQA; REALM, section 3.2)


def span_candidates(tokens: int, max_span_width: int) -> tuple[Array, Array]:
    """First and last token of every span of at most `max_span_width` tokens, narrow ones first -> two [spans]."""
    starts, ends = [], []
    for width in range(1, min(max_span_width, tokens) + 1):
        for start in range(tokens - width + 1):
            starts.append(start)
            ends.append(start + width - 1)
    return np.array(starts, np.int64), np.array(ends, np.int64)


def span_logits(
    start_projection: Array,
    end_projection: Array,
    norm_weight: Array,
    norm_bias: Array,
    output_weight: Array,
    output_bias: Array | float,
    *,
    max_span_width: int,
    eps: float,
    block_mask: Array | None = None,
    relevance_score: Array | None = None,
) -> Array:
    """v · LayerNorm(relu(S_start + E_end)) + c for every span: ORQA's MLP([h_start; h_end]) with its first layer split.

    start_projection S, end_projection E [batch, tokens, span_hidden]; norm_weight γ, norm_bias β, output_weight v
    [span_hidden]; output_bias c [] or [1]; block_mask [batch, tokens], true inside the evidence: a span counts if both
    its ends do; relevance_score [batch] is added last, so a span's logit is S_retr + S_read -> [batch, spans], spans
    ordered as in `span_candidates`.
    """
    start_projection, end_projection = np.asarray(start_projection, np.float64), np.asarray(end_projection, np.float64)
    starts, ends = span_candidates(start_projection.shape[1], max_span_width)
    h = relu(start_projection[:, starts] + end_projection[:, ends])  # [batch, spans, span_hidden]
    h = layer_norm(h, np.asarray(norm_weight, np.float64), np.asarray(norm_bias, np.float64), eps)
    logits = h @ np.asarray(output_weight, np.float64) + float(np.squeeze(output_bias))  # [batch, spans]
    if block_mask is not None:
        inside = np.asarray(block_mask, np.float64)  # [batch, tokens]
        logits = logits + (1.0 - inside[:, starts] * inside[:, ends]) * MASKED
    if relevance_score is not None:
        logits = logits + np.asarray(relevance_score, np.float64)[:, None]
    return logits


def best_span(
    start_projection: Array,
    end_projection: Array,
    norm_weight: Array,
    norm_bias: Array,
    output_weight: Array,
    output_bias: Array | float,
    *,
    max_span_width: int,
    eps: float,
    block_mask: Array | None = None,
    relevance_score: Array | None = None,
) -> tuple[float, int, int, int]:
    """The span of largest logit as (score, block, start, end), start and end its tokens, both inclusive.

    Arguments as for `span_logits`. Among equal logits block and span are chosen each on its own, as transformers does:
    the first block that holds the largest logit, and the first span that has it in any block.
    """
    logits = span_logits(
        start_projection,
        end_projection,
        norm_weight,
        norm_bias,
        output_weight,
        output_bias,
        max_span_width=max_span_width,
        eps=eps,
        block_mask=block_mask,
        relevance_score=relevance_score,
    )
    block, span = best_block_and_span(logits)
    starts, ends = span_candidates(np.shape(start_projection)[1], max_span_width)
    return float(np.max(logits)), block, int(starts[span]), int(ends[span])


def best_block_and_span(logits: Array) -> tuple[int, int]:
    """Row and column of the largest of the logits [batch, spans], the first of equals in each axis."""
    return int(np.argmax(np.max(logits, axis=1))), int(np.argmax(np.max(logits, axis=0)))


def marginal_log_loss(logits: Array, is_correct: Array) -> Array:
    """-log Σ_correct p: minus the log-probability that a softmax gives to the correct items together -> [].

    ORQA's two losses, over blocks and over spans. logits, is_correct [items]. When nothing is correct there is nothing
    to learn and the loss is multiplied by 0: it is 0, unless all logits are masked as well. Then the masks add up to
    -inf, the loss would be infinite, and the product is NaN; transformers does the same.
    """
    is_correct = np.asarray(is_correct, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        log_numerator = logsumexp(logits + (1.0 - is_correct) * MASKED)
        return (logsumexp(logits) - log_numerator) * float(is_correct.any())


def correct_spans(starts: Array, ends: Array, gold_starts: Array, gold_ends: Array) -> Array:
    """Whether each span is a gold one of its block.

    starts, ends [spans]; gold_starts, gold_ends [batch, answers], -1 and positions past the sequence match nothing
    -> bool [batch, spans].
    """
    gold_starts, gold_ends = np.asarray(gold_starts), np.asarray(gold_ends)
    same_start = gold_starts[:, :, None] == starts  # [batch, answers, spans]
    same_end = gold_ends[:, :, None] == ends
    return np.any(same_start & same_end, axis=1)


def reader(
    parameters: Parameters,
    config: RealmConfig,
    input_ids: Array | None = None,
    attention_mask: Array | None = None,
    token_type_ids: Array | None = None,
    position_ids: Array | None = None,
    head_mask: Array | None = None,
    inputs_embeds: Array | None = None,
    relevance_score: Array | None = None,
    block_mask: Array | None = None,
    start_positions: Array | None = None,
    end_positions: Array | None = None,
    has_answers: Array | None = None,
    *,
    prefix: str = "",
) -> dict[str, Any]:
    """Reads the question beside each of the best blocks and scores every span: S(b, s, q) = S_retr + S_read (ORQA).

    Inputs of `bert` for the first `reader_beam_size` retrieved blocks [batch, tokens]; relevance_score [retrieved],
    block_mask [retrieved, tokens], has_answers [retrieved] and start_positions, end_positions [retrieved, answers] for
    all that were retrieved.

    Returns:
        block_idx, candidate []: from `best_block_and_span`; start_pos, end_pos [1]: the candidate's
        tokens, both inclusive; with gold positions retriever_loss, reader_loss, loss (their sum), all [],
        retriever_correct [retrieved] and reader_correct [batch, spans], else None for these five; hidden_states and
        attentions as in `bert`; beyond transformers, reader_logits [batch, spans] and candidate_starts,
        candidate_ends [spans].

    Raises:
        ValueError: no relevance_score or block_mask, or fewer tokens than `max_span_width`.
    """
    if relevance_score is None or block_mask is None:
        raise ValueError("the reader needs relevance_score and block_mask")
    outputs = bert(
        parameters,
        config,
        input_ids,
        attention_mask,
        token_type_ids,
        position_ids,
        head_mask,
        inputs_embeds,
        prefix=f"{prefix}realm.",
    )
    x = outputs["last_hidden_state"]  # [batch, tokens, hidden]
    tokens = x.shape[1]
    if tokens < config.max_span_width:
        raise ValueError(f"{tokens} tokens are fewer than max_span_width={config.max_span_width}; pad the input")
    relevance_score = np.asarray(relevance_score, np.float64)
    beam = config.reader_beam_size

    name = f"{prefix}qa_outputs."
    projections = _linear(parameters, f"{name}dense_intermediate", x)  # [batch, tokens, 2 * span_hidden]
    starts, ends = span_candidates(tokens, config.max_span_width)
    logits = span_logits(
        projections[..., : config.span_hidden_size],
        projections[..., config.span_hidden_size :],
        parameters[f"{name}layer_normalization.weight"],
        parameters[f"{name}layer_normalization.bias"],
        parameters[f"{name}dense_output.weight"][0],
        parameters[f"{name}dense_output.bias"],
        max_span_width=config.max_span_width,
        eps=config.reader_layer_norm_eps,
        block_mask=np.asarray(block_mask)[:beam],
        relevance_score=relevance_score[:beam],
    )  # [batch, spans]
    block, candidate = best_block_and_span(logits)

    loss = retriever_loss = reader_loss = retriever_correct = reader_correct = None
    if start_positions is not None and end_positions is not None and has_answers is not None:
        retriever_correct = np.asarray(has_answers, bool)
        reader_correct = correct_spans(
            starts, ends, np.asarray(start_positions)[:beam], np.asarray(end_positions)[:beam]
        )
        retriever_loss = marginal_log_loss(relevance_score, retriever_correct)
        reader_loss = marginal_log_loss(logits.reshape(-1), reader_correct.reshape(-1))
        loss = retriever_loss + reader_loss
    return {
        "loss": loss,
        "retriever_loss": retriever_loss,
        "reader_loss": reader_loss,
        "retriever_correct": retriever_correct,
        "reader_correct": reader_correct,
        "block_idx": np.array(block),
        "candidate": np.array(candidate),
        "start_pos": starts[candidate][None],
        "end_pos": ends[candidate][None],
        "hidden_states": outputs["hidden_states"],
        "attentions": outputs["attentions"],
        "reader_logits": logits,
        "candidate_starts": starts,
        "candidate_ends": ends,
    }


# ------------------------------------------------------------------------------- open-domain question answering (ORQA)


def retrieve(
    parameters: Parameters,
    config: RealmConfig,
    block_emb: Array,
    k: int,
    *,
    prefix: str = "",
    **question: Array | None,
) -> tuple[Array, Array]:
    """S_retr(b, q) = h_qᵀ h_b and the k best blocks (ORQA).

    `question` are the inputs of `bert` for one question, [1, tokens]; block_emb [blocks, projection]
    -> (relevance_score [k] float64 descending, block ids [k] int64).
    """
    query = embedder(parameters, config, prefix=f"{prefix}embedder.", **question)["projected_score"]
    if len(query) != 1:
        raise ValueError(f"{len(query)} questions; give one")
    scores, ids = mips_topk(query, block_emb, k)
    return scores[0], ids[0]


def open_qa(
    parameters: Parameters,
    config: RealmConfig,
    block_emb: Array,
    concat_input_ids: Array,
    concat_attention_mask: Array,
    concat_token_type_ids: Array,
    concat_special_tokens_mask: Array,
    start_positions: Array | None = None,
    end_positions: Array | None = None,
    has_answers: Array | None = None,
    *,
    prefix: str = "",
    **question: Array | None,
) -> dict[str, Any]:
    """Question in, answer's wordpieces out: retrieve, then read (ORQA; REALM, section 3.1).

    `question` and block_emb as for `retrieve`. The concat inputs [retrieved, tokens] are what the retriever makes of
    the question and the text of the blocks that `retrieve` names, in that order; `retrieved` says how many those are.

    Returns:
        reader_output, the dict of `reader`; predicted_answer_ids [answer tokens]; and beyond transformers
        relevance_score, retrieved_block_ids [retrieved] and document_probability p(z|x) [retrieved], the softmax of the
        relevance scores over the blocks retrieved.
    """
    concat_input_ids = np.asarray(concat_input_ids)
    relevance_score, block_ids = retrieve(
        parameters, config, block_emb, len(concat_input_ids), prefix=prefix, **question
    )
    # The evidence is the second segment without its [SEP].
    block_mask = (np.asarray(concat_token_type_ids) != 0) & (np.asarray(concat_special_tokens_mask) == 0)
    beam = config.reader_beam_size
    output = reader(
        parameters,
        config,
        concat_input_ids[:beam],
        np.asarray(concat_attention_mask)[:beam],
        np.asarray(concat_token_type_ids)[:beam],
        relevance_score=relevance_score,
        block_mask=block_mask,
        start_positions=start_positions,
        end_positions=end_positions,
        has_answers=has_answers,
        prefix=f"{prefix}reader.",
    )
    answer = slice(int(output["start_pos"][0]), int(output["end_pos"][0]) + 1)
    return {
        "reader_output": output,
        "predicted_answer_ids": concat_input_ids[output["block_idx"]][answer],
        "relevance_score": relevance_score,
        "retrieved_block_ids": block_ids,
        "document_probability": softmax(relevance_score),
    }


# ------------------------------------------------------------------------------------------------------------- helpers


def _linear(parameters: Parameters, name: str, x: Array) -> Array:
    return linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def _layer_norm(parameters: Parameters, name: str, x: Array, eps: float) -> Array:
    return layer_norm(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], eps)


def _flatten_candidates(x: Array | None) -> Array | None:
    """[batch, candidates, tokens] -> [batch * candidates, tokens]; two axes stay as they are."""
    return x if x is None or np.ndim(x) <= 2 else np.reshape(x, (-1, np.shape(x)[-1]))
