"""REALM (Guu et al. 2020, arXiv 2002.08909) in NumPy, whole: read this file first.

A model that fills in masked words can look facts up. REALM retrieves documents, reads each of them beside the text, and
learns from the masked words alone which were worth it: one that made them likelier is retrieved more readily next time.

    x        a text with masked words, "the capital of norway is [MASK]", or a question
    z        a document, one of many
    y        the words behind the masks, or the answer
    f(x, z)  = Embed(x) · Embed(z)              relevance
    p(z|x)   = softmax over z of f(x, z)        the retriever
    p(y|z,x) = Π_j p(y_j|z,x)                   the encoder, which reads x and z together
    p(y|x)   = Σ_z p(y|z,x) p(z|x)              equation 1; the loss is -log p(y|x)

Parts: 1 equation 1, 2 layers, 3 BERT, 4 the retriever, 5 the encoder, 6 text, 7 pre-training, 8 questions and answers
(ORQA, Lee et al. 2019, arXiv 1906.00300), 9 the optimizer. `python -m realm_min.textbook` trains a small REALM with it.

A forward returns `(output, kept)`; a softmax keeps its output and no more. Below it stands its backward, which takes
the gradient of the output and `kept`, returns that of the input, unless this is ids, and adds those of the parameters
to `g`. For any x, dx is ∂loss/∂x. `p` holds the parameters, `c` the configuration. Shapes stand in [brackets].
"""

import numpy as np

from .config import RealmConfig

Array = np.ndarray
Weights = dict[str, Array]  # parameters, or their gradients, under transformers' names
Models = dict[str, Weights]  # of "embedder", "encoder", "reader"
Kept = tuple  # what a forward keeps for its backward, where that is more than one array
Result = tuple[Array, Kept]  # of a forward
Loss = tuple[float, int, dict]  # of a step: the sum of a loss, the number of its terms, and the sum's gradients
Batch = tuple[Array, Array, Array]  # ids, mask (1 on tokens, 0 on padding), token types: [batch, tokens] each
Rng = np.random.Generator | None  # draws dropout; None turns it off

UNK, CLS, SEP, MASK = 100, 101, 102, 103  # ids of BERT's vocabulary, where 0 is padding: `pad_token_id` has to be 0
NO_LABEL = -100  # what stands in `labels` where no word is masked
LOWEST = np.finfo(np.float32).min  # added to a score before a softmax, it makes the probability 0
WORD, TYPE, POSITION = (f"realm.embeddings.{table}_embeddings.weight" for table in ("word", "token_type", "position"))


# ---- 1. Equation 1 and its gradient (REALM, sections 3.1 and 3.3)
def logsumexp(x: Array, axis: int = -1) -> Array:
    largest = x.max(axis, keepdims=True)  # taken out, so that exp does not overflow
    return largest + np.log(np.exp(x - largest).sum(axis, keepdims=True))


def log_softmax(x: Array, axis: int = -1) -> Array:
    return x - logsumexp(x, axis)


def log_softmax_backward(dy: Array, y: Array) -> Array:
    """dx = dy - softmax(x) Σ dy, over the last axis."""
    return dy - np.exp(y) * dy.sum(-1, keepdims=True)


def marginal_log_likelihood(log_likelihood: Array, relevance: Array) -> Result:
    """log p(y|x) = log Σ_z p(y|z,x) p(z|x)  (equation 1).

    log_likelihood: log p(y|z,x) [batch, candidates, words]; relevance: f(x, z) [batch, candidates].
    In the paper y is everything that is masked in x: one "word". transformers gives each masked word a sum of its own.
    """
    log_prior = log_softmax(relevance)[:, :, None]  # log p(z|x) [batch, candidates, 1]
    log_joint = log_likelihood + log_prior  # log p(y,z|x) [batch, candidates, words]
    marginal = logsumexp(log_joint, axis=1)  # [batch, 1, words]
    return marginal[:, 0], (np.exp(log_prior), np.exp(log_joint - marginal))  # [batch, words]


def marginal_log_likelihood_backward(dy: Array, kept: Kept) -> tuple[Array, Array]:
    """The gradient, with the posterior p(z|x,y) = p(y|z,x) p(z|x) / p(y|x).

    ∂ log p(y|x) / ∂ log p(y|z,x) = p(z|x,y)
    ∂ log p(y|x) / ∂ f(x, z)      = p(z|x,y) - p(z|x) = [p(y|z,x) / p(y|x) - 1] p(z|x) = r(z)

    A document gains relevance if y is likelier with it than with the average candidate. This line is what REALM is.
    """
    prior, posterior = kept
    dlog_likelihood = dy[:, None] * posterior  # [batch, candidates, words]
    drelevance = (dy[:, None] * (posterior - prior)).sum(2)  # [batch, candidates]
    return dlog_likelihood, drelevance


def loss_of_correct(scores: Array, correct: Array) -> tuple[float, Array]:
    """-log of the probability of what is correct, and its gradient. Both [batch, choices]; a row without any counts 0.

    That is equation 1 with p(y|z,x) = 1 where z is correct, else 0 (its log -1e30: LOWEST and what scores have of it
    would overflow). All of ORQA's losses are of this form.
    """
    log_p, kept = marginal_log_likelihood(np.where(correct, 0, -1e30).astype(scores.dtype)[:, :, None], scores)
    counts = correct.any(1, keepdims=True).astype(scores.dtype)  # [batch, 1]
    return -(counts * log_p).sum(), marginal_log_likelihood_backward(-counts, kept)[1]


# ---- 2. Layers
def linear(p: Weights, name: str, x: Array) -> Result:
    """y = x Wᵀ + b."""
    w = p[f"{name}.weight"]  # [out, in]
    return x @ w.T + p[f"{name}.bias"], (x, w, name)  # [..., out]


def linear_backward(dy: Array, kept: Kept, g: Weights) -> Array:
    """dx = dy W,  dW = Σ dyᵀ x,  db = Σ dy."""
    x, w, name = kept
    rows = dy.reshape(-1, len(w))  # [rows, out]
    g[f"{name}.weight"] += rows.T @ x.reshape(-1, w.shape[1])
    g[f"{name}.bias"] += rows.sum(0)
    return dy @ w  # [..., in]


def layer_norm(p: Weights, name: str, x: Array, eps: float) -> Result:
    """y = γ n + β,  n = (x - mean) r,  r = 1 / √(variance + eps), over the last axis."""
    x, gamma = x - x.mean(-1, keepdims=True), p[f"{name}.weight"]
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return gamma * (x * r) + p[f"{name}.bias"], (x * r, r, gamma, name)


def layer_norm_backward(dy: Array, kept: Kept, g: Weights) -> Array:
    """dx = r (dn - mean(dn) - n mean(dn n)),  dn = γ dy,  dγ = Σ dy n,  dβ = Σ dy."""
    n, r, gamma, name = kept
    g[f"{name}.weight"] += (dy * n).reshape(-1, len(gamma)).sum(0)
    g[f"{name}.bias"] += dy.reshape(-1, len(gamma)).sum(0)
    dn = gamma * dy
    return r * (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True))


def softmax(x: Array) -> Array:
    y = np.exp(x - x.max(-1, keepdims=True))  # the largest is taken out, so that exp does not overflow
    return y / y.sum(-1, keepdims=True)


def softmax_backward(dy: Array, y: Array) -> Array:
    """dx = y (dy - Σ dy y)."""
    return y * (dy - (dy * y).sum(-1, keepdims=True))


def gelu(x: Array, kind: str) -> tuple[Array, Array]:
    """y = x Φ(x), Φ the normal distribution function, a tanh ("gelu_new") or a step ("relu"); kept is Φ + x dΦ/dx."""
    near = np.clip(x, -9, 9)  # beyond, Φ is 0 or 1 and dΦ/dx is 0; within, 149 terms do
    if kind == "gelu":  # Φ(x) = 1/2 + φ(x) (x + x³/3 + x⁵/(3·5) + …), φ = dΦ/dx, for NumPy has no erf
        slope, odd = np.exp(-near * near / 2) / (2 * np.pi) ** 0.5, np.arange(3, 301, 2, dtype=x.dtype)
        cdf = 0.5 + slope * near * (1 + np.cumprod((near * near)[..., None] / odd, -1).sum(-1))
    elif kind == "gelu_new":
        t = np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x * x * x))
        cdf, slope = (1 + t) / 2, (1 - t * t) / 2 * (2 / np.pi) ** 0.5 * (1 + 3 * 0.044715 * x * x)
    else:
        cdf, slope = {"relu": (x > 0).astype(x.dtype)}[kind], 0  # the book has no others
    return x * cdf, cdf + near * slope


def gelu_backward(dy: Array, kept: Array) -> Array:
    return dy * kept


def dropout(x: Array, rate: float, rng: Rng) -> tuple[Array, Array | int]:
    """y = x mask, the mask 0 at the given rate, else 1 / (1 - rate). It keeps the mask: dx = dy mask."""
    if rng is None:
        return x, 1
    mask = ((rng.random(x.shape) >= rate) / (1 - rate)).astype(x.dtype)
    return x * mask, mask


# ---- 3. BERT (Devlin et al. 2018, section 3)
def attention(p: Weights, c: RealmConfig, name: str, x: Array, barred: Array, rng: Rng) -> Result:
    """softmax(Q Kᵀ / √width) V in each head (Vaswani et al. 2017, equation 1), then a linear layer."""
    projected = [linear(p, f"{name}.self.{part}", x) for part in ("query", "key", "value")]
    heads = (*x.shape[:2], c.num_attention_heads, -1)
    q, k, v = (y.reshape(heads).swapaxes(1, 2) for y, _ in projected)  # [batch, heads, tokens, width]
    weights = softmax(q @ k.swapaxes(2, 3) * q.shape[3] ** -0.5 + barred)  # [batch, heads, tokens, tokens]
    dropped, mask = dropout(weights, c.attention_probs_dropout_prob, rng)
    y, kept_out = linear(p, f"{name}.output.dense", (dropped @ v).swapaxes(1, 2).reshape(x.shape))
    return y, ([kept for _, kept in projected], q, k, v, weights, dropped, mask, kept_out)  # [batch, tokens, hidden]


def attention_backward(dy: Array, kept: Kept, g: Weights) -> Array:
    """With A the weights and S the scores: dV = Aᵀ dY,  dA = dY Vᵀ,  dQ = dS K / √width,  dK = dSᵀ Q / √width."""
    kept_qkv, q, k, v, weights, dropped, mask, kept_out = kept
    dy = linear_backward(dy, kept_out, g)
    shape, heads = dy.shape, (*dy.shape[:2], q.shape[1], -1)
    dy = dy.reshape(heads).swapaxes(1, 2)  # [batch, heads, tokens, width]
    ds = softmax_backward(dy @ v.swapaxes(2, 3) * mask, weights) * q.shape[3] ** -0.5  # [batch, heads, tokens, tokens]
    dqkv = ds @ k, ds.swapaxes(2, 3) @ q, dropped.swapaxes(2, 3) @ dy  # [batch, heads, tokens, width] each
    dqkv = (d.swapaxes(1, 2).reshape(shape) for d in dqkv)  # [batch, tokens, hidden] each
    dx_q, dx_k, dx_v = (linear_backward(d, kept, g) for d, kept in zip(dqkv, kept_qkv, strict=True))
    return dx_q + dx_k + dx_v


def layer(p: Weights, c: RealmConfig, name: str, x: Array, barred: Array, rng: Rng) -> Result:
    """x = LayerNorm(x + attention(x)), then x = LayerNorm(x + W₂ gelu(W₁ x)): [batch, tokens, hidden]."""
    y, kept_attention = attention(p, c, f"{name}.attention", x, barred, rng)
    y, mask1 = dropout(y, c.hidden_dropout_prob, rng)
    x, kept_norm1 = layer_norm(p, f"{name}.attention.output.LayerNorm", x + y, c.layer_norm_eps)
    y, kept_in = linear(p, f"{name}.intermediate.dense", x)  # [batch, tokens, intermediate]
    y, kept_gelu = gelu(y, c.hidden_act)
    y, kept_out = linear(p, f"{name}.output.dense", y)  # [batch, tokens, hidden]
    y, mask2 = dropout(y, c.hidden_dropout_prob, rng)
    x, kept_norm2 = layer_norm(p, f"{name}.output.LayerNorm", x + y, c.layer_norm_eps)
    return x, (kept_attention, mask1, kept_norm1, kept_in, kept_gelu, kept_out, mask2, kept_norm2)


def layer_backward(dx: Array, kept: Kept, g: Weights) -> Array:
    """The lines above, from the last to the first. Where x was used twice, its two gradients are added."""
    kept_attention, mask1, kept_norm1, kept_in, kept_gelu, kept_out, mask2, kept_norm2 = kept
    dx = layer_norm_backward(dx, kept_norm2, g)
    dy = gelu_backward(linear_backward(dx * mask2, kept_out, g), kept_gelu)
    dx = layer_norm_backward(dx + linear_backward(dy, kept_in, g), kept_norm1, g)
    return dx + attention_backward(dx * mask1, kept_attention, g)


def bert(p: Weights, c: RealmConfig, batch: Batch, rng: Rng = None) -> Result:
    """The hidden states of the last layer, of a batch as `join` makes it."""
    ids, mask, types = batch  # [batch, tokens] each
    x = p[WORD][ids] + p[TYPE][types] + p[POSITION][: ids.shape[1]]  # [batch, tokens, hidden]
    x, kept_norm = layer_norm(p, "realm.embeddings.LayerNorm", x, c.layer_norm_eps)
    x, drop = dropout(x, c.hidden_dropout_prob, rng)
    barred = ((1 - mask) * LOWEST).astype(x.dtype)[:, None, None]  # [batch, 1, 1, tokens], added to scores: no padding
    kept_layers = []
    for i in range(c.num_hidden_layers):
        x, kept = layer(p, c, f"realm.encoder.layer.{i}", x, barred, rng)
        kept_layers.append(kept)
    return x, (ids, types, ids != c.pad_token_id, kept_norm, drop, kept_layers)


def bert_backward(dx: Array, kept: Kept, g: Weights) -> None:
    """A row of an embedding table collects the gradients of all places that used it (padding's own does not)."""
    ids, types, learns, kept_norm, drop, kept_layers = kept
    for kept_layer in reversed(kept_layers):
        dx = layer_backward(dx, kept_layer, g)
    dx = layer_norm_backward(dx * drop, kept_norm, g)
    np.add.at(g[WORD], ids, dx * learns[:, :, None])
    np.add.at(g[TYPE], types, dx)
    g[POSITION][: ids.shape[1]] += dx.sum(0)


# ---- 4. The retriever, p(z|x) (REALM, sections 3.2 and 3.3)
def embed(p: Weights, c: RealmConfig, batch: Batch, rng: Rng = None) -> Result:
    """Embed(x) = LayerNorm(W BERT_CLS(x)), where BERT's own pooler comes first; documents use the same weights."""
    hidden, kept_bert = bert(p, c, batch, rng)  # [batch, tokens, hidden]
    y, kept_pooler = linear(p, "realm.pooler.dense", hidden[:, 0])  # [batch, hidden]
    pooled = np.tanh(y)
    y, kept_dense = linear(p, "cls.dense", pooled)  # [batch, proj]
    y, kept_norm = layer_norm(p, "cls.LayerNorm", y, c.layer_norm_eps)
    y, drop = dropout(y, c.projection_dropout_prob, rng)
    return y, (hidden.shape, kept_bert, kept_pooler, pooled, kept_dense, kept_norm, drop)


def embed_backward(dy: Array, kept: Kept, g: Weights) -> None:
    shape, kept_bert, kept_pooler, pooled, kept_dense, kept_norm, drop = kept
    dpooled = linear_backward(layer_norm_backward(dy * drop, kept_norm, g), kept_dense, g)
    dhidden = np.zeros(shape, dy.dtype)
    dhidden[:, 0] = linear_backward(dpooled * (1 - pooled**2), kept_pooler, g)
    bert_backward(dhidden, kept_bert, g)


def search(x: Array, z: Array, k: int, barred: Array | bool = False) -> Array:
    """The k documents of largest f(x, z) of each x, of equals the smaller number; last those that hold x, `barred`."""
    relevance = np.where(barred, -np.inf, x @ z.T)  # [batch, proj] and [documents, proj] to [batch, documents]
    return np.argsort(-relevance, axis=1, kind="stable")[:, :k]


# ---- 5. The knowledge-augmented encoder, p(y|z,x) (REALM, section 3.2)
def masked_words(p: Weights, c: RealmConfig, batch: Batch, labels: Array, rng: Rng = None) -> Result:
    """log p(y_j|z,x) of every masked word, and 0 for other tokens: [batch, tokens], as `labels`."""
    hidden, kept_bert = bert(p, c, batch, rng)  # [batch, tokens, hidden]
    masked = labels != NO_LABEL
    y, kept_dense = linear(p, "cls.predictions.transform.dense", hidden[masked])  # [masked, hidden]
    y, kept_gelu = gelu(y, c.hidden_act)
    y, kept_norm = layer_norm(p, "cls.predictions.transform.LayerNorm", y, c.layer_norm_eps)
    log_p = log_softmax(y @ p[WORD].T + p["cls.predictions.bias"])  # [masked, vocabulary]; BERT ties W to the words
    log_likelihood = np.zeros(labels.shape, y.dtype)  # [batch, tokens]
    log_likelihood[masked] = log_p[np.arange(len(y)), labels[masked]]
    return log_likelihood, (hidden.shape, kept_bert, kept_dense, kept_gelu, kept_norm, y, p[WORD], log_p, labels)


def masked_words_backward(dy: Array, kept: Kept, g: Weights) -> None:
    shape, kept_bert, kept_dense, kept_gelu, kept_norm, y, word, log_p, labels = kept
    masked = labels != NO_LABEL
    dlog_p = np.zeros_like(log_p)  # [masked, vocabulary]
    dlog_p[np.arange(len(y)), labels[masked]] = dy[masked]
    dlogits = log_softmax_backward(dlog_p, log_p)
    g[WORD] += dlogits.T @ y
    g["cls.predictions.bias"] += dlogits.sum(0)
    dy = gelu_backward(layer_norm_backward(dlogits @ word, kept_norm, g), kept_gelu)  # [masked, hidden]
    dhidden = np.zeros(shape, dy.dtype)
    dhidden[masked] = linear_backward(dy, kept_dense, g)
    bert_backward(dhidden, kept_bert, g)


# ---- 6. Text (REALM, sections 3.2 and 3.4)
def split_words(text: str) -> list[str]:
    """Words and marks, each by itself. (BERT also takes accents away.)"""
    return "".join(a if a.isalnum() or a.isspace() else f" {a} " for a in text).split()


def wordpiece(word: str, vocabulary: dict[str, int]) -> list[int]:
    """Ids of the longest pieces that the vocabulary has, from left to right; [UNK] if some part has none."""
    ids, start = [], 0
    while start < len(word):
        end, prefix = len(word), "##" if start else ""
        while end > start and prefix + word[start:end] not in vocabulary:
            end -= 1
        if end == start:
            return [UNK]
        ids.append(vocabulary[prefix + word[start:end]])
        start = end
    return ids


def salient_spans(words: list[str]) -> list[int]:
    """Places of names and numbers, a word each: who guesses one has to know something. (The paper has a tagger.)"""
    return [i for i, word in enumerate(words) if word[0].isdigit() or (word[0].isupper() and i > 0)]


def join(texts: list[tuple]) -> Batch:
    """join_BERT: texts, tuples of id lists, to a batch of "[CLS] a [SEP] b [SEP]": ids, mask, types [batch, tokens]."""
    rows = [[CLS, *(token for part in text for token in (*part, SEP))] for text in texts]
    kinds = [[0, *(kind for kind, part in enumerate(text) for _ in (*part, SEP))] for text in texts]
    ids, mask, types = np.zeros((3, len(texts), max(map(len, rows))), int)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)], types[i, : len(row)] = row, 1, kinds[i]
    return ids, mask, types


# ---- 7. Pre-training (ORQA, section 4; REALM, section 3.3)
def ict_step(p: Weights, c: RealmConfig, sentences: Batch, blocks: Batch, rng: Rng = None) -> Loss:
    """Inverse Cloze Task: -log p(z|x), z the block among the batch's that sentence x is from (ORQA, section 4)."""
    g = {name: np.zeros_like(value) for name, value in p.items()}
    x, kept_x = embed(p, c, sentences, rng)  # [batch, proj]
    z, kept_z = embed(p, c, blocks, rng)  # [batch, proj]
    loss, dscores = loss_of_correct(x @ z.T, np.eye(len(x), dtype=bool))  # scores [batch, batch]
    embed_backward(dscores @ z, kept_x, g)
    embed_backward(dscores.T @ x, kept_z, g)
    return loss, len(x), g


def pretrain_step(p: Models, c: RealmConfig, examples: tuple, whole_span: bool = True, rng: Rng = None) -> Loss:
    """-log p(y|x) of REALM (figure 2): y is all that is masked (the paper), or each masked word (transformers).

    p: {"embedder": …, "encoder": …}, g the same. examples: a batch of texts x, one of documents z, the numbers of the z
    found for each x, distinct [batch, candidates], the batch of the pairs (x, z), labels of x [batch, tokens of the
    pairs]. One z found is the null document, an empty one: x that need none give it the credit.
    """
    texts, documents, candidates, pairs, labels = examples
    g = {model: {name: np.zeros_like(value) for name, value in p[model].items()} for model in p}
    x, kept_x = embed(p["embedder"], c, texts, rng)  # [batch, proj]
    z, kept_z = embed(p["embedder"], c, documents, rng)  # [documents, proj]
    relevance = np.take_along_axis(x @ z.T, candidates, 1)  # f(x, z) [batch, candidates]
    log_p, kept_y = masked_words(p["encoder"], c, pairs, labels.repeat(candidates.shape[1], 0), rng)
    log_likelihood, masked = log_p.reshape(*candidates.shape, -1), labels != NO_LABEL  # [batch, candidates, tokens]
    if whole_span:  # p(y|z,x) = Π_j p(y_j|z,x)
        log_likelihood, masked = log_likelihood.sum(2, keepdims=True), masked.any(1, keepdims=True)  # [.., 1]
    marginal, kept = marginal_log_likelihood(log_likelihood, relevance)  # [batch, words]
    dlog_likelihood, drelevance = marginal_log_likelihood_backward(-masked.astype(x.dtype), kept)
    dlog_p = np.broadcast_to(dlog_likelihood, (*candidates.shape, labels.shape[1])).reshape(log_p.shape)
    masked_words_backward(dlog_p, kept_y, g["encoder"])
    df = np.zeros((len(x), len(z)), x.dtype)  # [batch, documents]
    np.put_along_axis(df, candidates, drelevance, 1)
    embed_backward(df @ z, kept_x, g["embedder"])
    embed_backward(df.T @ x, kept_z, g["embedder"])
    return -(marginal * masked).sum(), masked.sum(), g


# ---- 8. Questions and answers (ORQA, sections 3 and 6)
def span_candidates(tokens: int, widest: int) -> Array:
    """First and last token of each span, the narrow ones first: [2, spans]."""
    return np.array([(first, first + more) for more in range(widest) for first in range(tokens - more)]).T


def span_logits(p: Weights, c: RealmConfig, y: Array, in_block: Array) -> Result:
    """w · LayerNorm(relu(starts_first + ends_last)) of spans in the block, LOWEST of others: [blocks, spans]."""
    first, last = span_candidates(y.shape[1], c.max_span_width)
    starts, ends = np.split(y, 2, axis=2)  # [blocks, tokens, span hidden] each
    h = np.maximum(starts[:, first] + ends[:, last], 0)  # [blocks, spans, span hidden]
    n, kept_norm = layer_norm(p, "qa_outputs.layer_normalization", h, c.reader_layer_norm_eps)
    scores, kept_out = linear(p, "qa_outputs.dense_output", n)  # [blocks, spans, 1]
    barred = (~(in_block[:, first] & in_block[:, last]) * LOWEST).astype(y.dtype)
    return scores[:, :, 0] + barred, (y.shape, first, last, h, kept_norm, kept_out)


def span_logits_backward(dscores: Array, kept: Kept, g: Weights) -> Array:
    shape, first, last, h, kept_norm, kept_out = kept
    dh = layer_norm_backward(linear_backward(dscores[:, :, None], kept_out, g), kept_norm, g) * (h > 0)
    dy = np.zeros(shape, h.dtype)  # [blocks, tokens, 2 * span hidden]
    for block in range(len(dy)):  # a token begins many spans, and ends many
        np.add.at(dy[block, :, : h.shape[2]], first, dh[block])
        np.add.at(dy[block, :, h.shape[2] :], last, dh[block])
    return dy


def read(p: Weights, c: RealmConfig, batch: Batch, in_block: Array, relevance: Array, rng: Rng = None) -> Result:
    """S(b, s) = w · LayerNorm(relu(W₁ h_first + W₂ h_last)) + f(x, b), of every span s of every block b."""
    hidden, kept_bert = bert(p, c, batch, rng)  # [blocks, tokens, hidden]
    y, kept_in = linear(p, "qa_outputs.dense_intermediate", hidden)  # [blocks, tokens, 2 * span hidden]
    scores, kept_spans = span_logits(p, c, y, in_block)  # [blocks, spans]
    return scores + relevance[:, None], (kept_bert, kept_in, kept_spans)


def read_backward(dy: Array, kept: Kept, g: Weights) -> Array:
    kept_bert, kept_in, kept_spans = kept
    bert_backward(linear_backward(span_logits_backward(dy, kept_spans, g), kept_in, g), kept_bert, g)
    return dy.sum(1)  # the gradient of the relevance [blocks]


def finetune_step(p: Models, c: RealmConfig, examples: tuple, rng: Rng = None) -> Loss:
    """One question: the loss of the retriever over all z found, and of the reader over all spans of those it reads.

    p: {"embedder": …, "reader": …}, g the same. examples: the question, a batch of one; Embed(z) [found, proj], which
    stays as it is; which z hold an answer [found]; the pairs (x, z) of the first few; which of their tokens are z's
    [blocks, tokens]; which of their `spans` are an answer [blocks, spans].
    """
    question, z, has_answer, pairs, in_block, correct = examples
    g = {model: {name: np.zeros_like(value) for name, value in p[model].items()} for model in p}
    x, kept_x = embed(p["embedder"], c, question, rng)  # [1, proj]
    relevance = x @ z.T  # [1, found]
    scores, kept_read = read(p["reader"], c, pairs, in_block, relevance[0, : len(in_block)], rng)  # [blocks, spans]
    retriever_loss, drelevance = loss_of_correct(relevance, has_answer[None])
    reader_loss, dscores = loss_of_correct(scores.reshape(1, -1), correct.reshape(1, -1))
    drelevance[0, : len(in_block)] += read_backward(dscores.reshape(scores.shape), kept_read, g["reader"])
    embed_backward(drelevance @ z, kept_x, g["embedder"])
    return retriever_loss + reader_loss, 1, g


def answer(
    p: Models, c: RealmConfig, question: list[int], documents: list[list[int]], index: Array, k: int
) -> tuple[Array, int, float]:
    """The best span of the k best documents: its ids, its document's number, and p(y|x) among all spans read."""
    x, _ = embed(p["embedder"], c, join([(question,)]))
    found = search(x, index, k)[0]
    ids, mask, types = join([(question, documents[z]) for z in found])
    scores, _ = read(p["reader"], c, (ids, mask, types), (types == 1) & (ids != SEP), index[found] @ x[0])
    block, span = np.unravel_index(scores.argmax(), scores.shape)
    first, last = span_candidates(ids.shape[1], c.max_span_width)[:, span]
    return ids[block, first : last + 1], found[block], softmax(scores.ravel()).max()


# ---- 9. The optimizer (Devlin et al. 2018, section A.2)
def adamw(p: Weights, g: Weights, moments: dict, rate: float, decay: float = 0.01) -> None:
    """BERT's Adam: m += .1 (g - m),  v += .001 (g² - v),  p -= rate (m / √v + decay p); g clipped to norm 1."""
    norm = sum(float((dx * dx).sum()) for dx in g.values()) ** 0.5
    for name, x in p.items():
        m, v = moments.setdefault(name, np.zeros((2, *x.shape), x.dtype))
        dx = g[name] / max(1.0, norm)
        m += 0.1 * (dx - m)
        v += 0.001 * (dx * dx - v)
        decays = not (name.endswith("bias") or "norm" in name.lower())
        x -= rate * (m / (np.sqrt(v) + 1e-6) + decays * decay * x)


if __name__ == "__main__":
    from .textbook_example import main

    main()
