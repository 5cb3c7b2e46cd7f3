# %% [markdown]
# # 2. BERT by hand
#
# The retriever, the encoder and the reader of REALM read text with the same network, BERT (Devlin et al. 2018). This
# notebook takes it apart on one sentence of the Factbook. Each layer comes three times: as a formula, as a few lines of
# NumPy, and backwards: the gradient is derived, written in five lines at most, and checked by differences. Then the
# parts are put together, held against the book, `textbook.py`, and looked at.
#
# **Needed before:** matrix products and the chain rule; notebook 1 for wordpieces and `[CLS]`.
#
# **After it you can** derive and write the backward of a linear layer, LayerNorm, softmax, attention and GELU, check a
# gradient you do not trust, and say what attends to what. About an hour and a half.
#
# | symbol | here | shape |
# | --- | --- | --- |
# | $X$, hidden states, a row a token | `x` | [tokens, hidden] |
# | $Q, K, V$ | `q`, `k`, `v` | [heads, tokens, width] |
# | $A$, attention probabilities | `A` | [heads, tokens, tokens] |
# | $dx = \partial L / \partial x$ for any $x$ | `dx` | that of `x` |
# | parameters | `p`, a dict with the keys of `state_dict()` | |
#
# heads · width = hidden. The network is the embedder of the default model, in float64.
#
# To run it in Colab: `make sdist` packs the project into `dist/`. In [Colab](https://colab.research.google.com/) choose
# *File, Upload notebook* and take this file; then upload the package to the files on the left, and run the first cell.

# %%
# In Colab this installs the package that was uploaded, which takes some minutes. Elsewhere it does nothing.
import glob
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("realm_min") is None:
    packages = sorted(glob.glob("realm?min-*.tar.gz"))
    if not packages:
        raise FileNotFoundError("upload the package to the files on the left first: `make sdist` leaves it in dist/")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"{packages[-1]}[demo]"], check=True)

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import realm_min
from realm_min import RealmEmbedder, textbook
from realm_min.app.figures import for_a_room, show
from realm_min.text.corpus import factbook_documents, split_sentences

torch.set_num_threads(2)
for_a_room()

model = realm_min.load("factbook")  # the default model, of its two corpora the Factbook alone
tokenizer, embedder = model.retriever.tokenizer, model.embedder
config = embedder.config
p = {name: tensor.double().numpy() for name, tensor in embedder.state_dict().items()}
hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
width = hidden // heads
print(f"{layers} layers, hidden {hidden} = {heads} heads x width {width}, MLP {config.intermediate_size}")

sentence = next(s for d in factbook_documents() if d.title == "Norway" for s in split_sentences(d.text) if "1397" in s)
encoded = tokenizer(sentence, return_tensors="np")
ids = encoded["input_ids"][0]  # [tokens]
tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
print(sentence, tokens, sep="\n")

# %% [markdown]
# ## How to check a gradient
#
# A backward gets $dy = \partial L / \partial y$ and returns $dx$. To check it, invent an L: take random numbers for
# $dy$, and let $L = \sum dy \circ f(x)$. Move x a little along a random direction d. Then
#
# $$\frac{L(x + \varepsilon d) - L(x - \varepsilon d)}{2 \varepsilon} \approx \sum dx \circ d,$$
#
# where the left side is *measured* and knows nothing of how $dx$ was *derived*.

# %%
rng = np.random.default_rng(0)


def check(name: str, f: object, x: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> None:
    d, eps = rng.standard_normal(x.shape), 1e-5
    measured = ((f(x + eps * d) - f(x - eps * d)) * dy).sum() / (2 * eps)
    derived = (dx * d).sum()
    assert abs(measured - derived) < 1e-6 * (1 + abs(derived)), (name, measured, derived)
    print(f"{name:24} derived {derived:12.5f}   measured {measured:12.5f}")


# %% [markdown]
# ## Embeddings
#
# A token starts as the sum of three vectors: its wordpiece, the text it belongs to (type 0 or 1), and its position.
# Attention does not know the order of its inputs, so the position must be in the vectors.
#
# $$x_i = E_{\text{word}}[t_i] + E_{\text{type}}[0] + E_{\text{position}}[i]$$
#
# *Backward.* Row t of the table is copied to every place where token t stands. Whatever is copied gets the sum of the
# gradients of its copies: $dE_{\text{word}}[t] = \sum_{i : t_i = t} dx_i$.

# %%
WORD, TYPE, POSITION = textbook.WORD, textbook.TYPE, textbook.POSITION


def embeddings(table: np.ndarray) -> np.ndarray:
    return table[ids] + p[TYPE][0] + p[POSITION][: len(ids)]  # [tokens, hidden]


def embeddings_backward(dx: np.ndarray) -> np.ndarray:
    dtable = np.zeros_like(p[WORD])
    np.add.at(dtable, ids, dx)  # `dtable[ids] += dx` would keep one of the copies
    return dtable


summed = embeddings(p[WORD])
dy = rng.standard_normal(summed.shape)
check("embeddings, table", embeddings, p[WORD], embeddings_backward(dy), dy)

# %% [markdown]
# ## A linear layer
#
# $y = x W^\top + b$, for every token alone: $y_{io} = \sum_k x_{ik} W_{ok} + b_o$.
#
# *Backward.* $x_{ik}$ is in all $y_{io}$ of its row, each time with the factor $W_{ok}$. $W_{ok}$ is in column o of all
# rows, with the factor $x_{ik}$. $b_o$ is in column o of all rows, with the factor 1. So
#
# $$dx_{ik} = \sum_o dy_{io} W_{ok}, \quad dW_{ok} = \sum_i dy_{io}\, x_{ik}, \quad db_o = \sum_i dy_{io},
# \qquad dx = dy\, W, \quad dW = dy^\top x.$$


# %%
def linear(name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def linear_backward(name: str, dy: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    dx = dy @ p[f"{name}.weight"]  # [tokens, in]
    dweight = dy.T @ x  # [out, in]
    dbias = dy.sum(0)  # [out]
    return dx, dweight, dbias


name = "realm.encoder.layer.0.intermediate.dense"
dy = rng.standard_normal((len(ids), config.intermediate_size))
dx, dweight, dbias = linear_backward(name, dy, summed)
check("linear, x", lambda x: linear(name, x), summed, dx, dy)
check("linear, W", lambda w: summed @ w.T + p[f"{name}.bias"], p[f"{name}.weight"], dweight, dy)

# %% [markdown]
# ## LayerNorm
#
# $$y = \gamma \circ n + \beta, \qquad n = \frac{x - \mu}{\sigma}, \qquad
# \sigma = \sqrt{\tfrac{1}{H} \sum_k (x_k - \mu)^2 + \varepsilon},$$
#
# over the hidden axis of one token, H numbers. *Backward.* $dn = \gamma \circ dy$, $d\gamma = \sum dy \circ n$ and
# $d\beta = \sum dy$ are the linear layer's rules for a diagonal W. What is left is n of x, and x enters three times:
# itself, in μ and in σ. A small change δ of x changes μ by mean(δ) and σ by mean(n δ), the rest of it cancels. So
#
# $$\delta n = \frac{\delta - \mathrm{mean}(\delta)}{\sigma} - \frac{x - \mu}{\sigma^2}\, \mathrm{mean}(n \circ \delta)
#   = \frac{1}{\sigma} \bigl( \delta - \mathrm{mean}(\delta) - n\, \mathrm{mean}(n \circ \delta) \bigr).$$
#
# That is a symmetric matrix times δ: it takes two directions out, the constant one and n. The gradient goes through the
# transpose of the same matrix, which is the same:
#
# $$dx = \frac{1}{\sigma} \bigl( dn - \mathrm{mean}(dn) - n\, \mathrm{mean}(n \circ dn) \bigr).$$
#
# In words: the layer does not see if x grows as a whole or shifts as a whole, so no gradient points there.


# %%
def layer_norm(name: str, x: np.ndarray) -> tuple[np.ndarray, tuple]:
    x = x - x.mean(-1, keepdims=True)
    sigma = np.sqrt((x * x).mean(-1, keepdims=True) + config.layer_norm_eps)
    return p[f"{name}.weight"] * (x / sigma) + p[f"{name}.bias"], (x / sigma, sigma)


def layer_norm_backward(name: str, dy: np.ndarray, kept: tuple) -> np.ndarray:
    n, sigma = kept
    dn = p[f"{name}.weight"] * dy
    return (dn - dn.mean(-1, keepdims=True) - n * (n * dn).mean(-1, keepdims=True)) / sigma


name = "realm.embeddings.LayerNorm"
x, kept = layer_norm(name, summed)
dy = rng.standard_normal(x.shape)
dx = layer_norm_backward(name, dy, kept)
check("layer_norm, x", lambda x: layer_norm(name, x)[0], summed, dx, dy)
print("no dx along the constant direction, nor along n:",
      np.abs(dx.sum(-1)).max() < 1e-9, np.abs((dx * kept[0]).sum(-1)).max() < 1e-5)  # fmt: skip

# %% [markdown]
# (Along n it is not quite zero, because of ε.)
#
# ## Softmax
#
# $y_i = e^{x_i} / \sum_j e^{x_j}$. *Backward.* With $[\cdot]$ one where its argument holds and zero elsewhere,
# $\partial y_i / \partial x_j = y_i ([i = j] - y_j)$: a score pushes its own probability up and all others down. Then
#
# $$dx_j = \sum_i dy_i\, y_i ([i = j] - y_j) = y_j \Bigl( dy_j - \sum_i dy_i\, y_i \Bigr).$$
#
# A score is pushed by how much better than the average its choice is. REALM's r(z), in notebook 4, is this line.


# %%
def softmax(x: np.ndarray) -> np.ndarray:
    y = np.exp(x - x.max(-1, keepdims=True))  # the largest is taken out, so that exp does not overflow
    return y / y.sum(-1, keepdims=True)


def softmax_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    return y * (dy - (dy * y).sum(-1, keepdims=True))


scores = rng.standard_normal((3, 5))
dy = rng.standard_normal(scores.shape)
check("softmax", softmax, scores, softmax_backward(dy, softmax(scores)), dy)

# %% [markdown]
# ## Attention
#
# Each token asks, with its *query*, all tokens, which answer with their *keys*; what they have to say is their *value*.
# A head is one such conversation in `width` dimensions (Vaswani et al. 2017, equation 1):
#
# $$Q = X W_Q^\top + b_Q, \quad K = X W_K^\top + b_K, \quad V = X W_V^\top + b_V, \qquad
# S = \frac{Q K^\top}{\sqrt{\text{width}}}, \quad A = \mathrm{softmax}(S), \quad Y = A V.$$
#
# A row of A sums to 1: it says how a token mixes the values of all tokens. The heads' Y, side by side, pass through one
# more linear layer.
#
# *Backward.* Each line is a product or a softmax, from the last to the first. For a product $Y = A V$ the linear
# layer's argument gives $dA = dY\, V^\top$ and $dV = A^\top dY$. The softmax turns dA into dS. And $S = Q K^\top /
# \sqrt{w}$ gives $dQ = dS\, K / \sqrt{w}$ and $dK = dS^\top Q / \sqrt{w}$. X was used three times, so its gradient is a
# sum of three.


# %%
def split(y: np.ndarray) -> np.ndarray:
    return y.reshape(len(ids), heads, width).swapaxes(0, 1)  # [heads, tokens, width]


def join(y: np.ndarray) -> np.ndarray:
    return y.swapaxes(0, 1).reshape(len(ids), hidden)


def attention(name: str, x: np.ndarray) -> tuple[np.ndarray, tuple]:
    q, k, v = (split(linear(f"{name}.self.{role}", x)) for role in ("query", "key", "value"))
    A = softmax(q @ k.swapaxes(1, 2) / width**0.5)  # [heads, tokens, tokens]
    return linear(f"{name}.output.dense", join(A @ v)), (x, q, k, v, A)


def attention_backward(name: str, dy: np.ndarray, kept: tuple) -> np.ndarray:
    x, q, k, v, A = kept
    dY = split(linear_backward(f"{name}.output.dense", dy, join(A @ v))[0])
    dS = softmax_backward(dY @ v.swapaxes(1, 2), A) / width**0.5
    dqkv = {"query": dS @ k, "key": dS.swapaxes(1, 2) @ q, "value": A.swapaxes(1, 2) @ dY}
    return sum(linear_backward(f"{name}.self.{role}", join(d), x)[0] for role, d in dqkv.items())


layer0 = "realm.encoder.layer.0"
y, kept = attention(f"{layer0}.attention", x)
dy = rng.standard_normal(y.shape)
check("attention, x", lambda x: attention(f"{layer0}.attention", x)[0], x,
      attention_backward(f"{layer0}.attention", dy, kept), dy)  # fmt: skip
print("rows of A sum to", np.unique(kept[4].sum(-1).round(9)))

# %% [markdown]
# Why divide by $\sqrt{\text{width}}$? If the components of a query and a key were independent with mean 0 and variances
# $a$ and $b$, their inner product, a sum of `width` terms, would have the deviation $\sqrt{a\, b \cdot \text{width}}$.
# Undivided it grows with the width. A softmax of large scores picks one token, y is 0 or 1, and $y_j (dy_j - \dots)$ is
# nearly 0: no gradient. How evenly does a token attend? Count the tokens as $e^H$, with $H = -\sum_j A_{ij} \log
# A_{ij}$ the entropy of its row:

# %%
raw = kept[1] @ kept[2].swapaxes(1, 2)  # Q Kᵀ [heads, tokens, tokens]
for factor in (1 / width**0.5, 1, width**0.5):
    log_a = textbook.log_softmax(raw * factor)
    counted = np.exp(-(np.exp(log_a) * log_a).sum(-1)).mean()
    passed = np.abs(softmax_backward(dy := rng.standard_normal(raw.shape), np.exp(log_a))).mean()
    print(f"scores times {factor:6.3f}: {counted:5.2f} of {len(ids)} tokens attended to, gradient {passed:.4f}")

# %% [markdown]
# ## GELU
#
# $y = x\, \Phi(x)$, with Φ the normal distribution function: a ReLU with a soft knee. A small negative input still
# passes, and has a gradient. *Backward*, by the product rule: $dx = dy\, (\Phi(x) + x\, \Phi'(x))$, with $\Phi'(x) =
# e^{-x^2/2} / \sqrt{2\pi}$. Some models take a tanh that is close to Φ; the book has both.


# %%
def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return textbook.gelu(x, config.hidden_act)  # y, and Φ + x Φ' for the backward


inner = linear(f"{layer0}.intermediate.dense", x)
y, slope = gelu(inner)
dy = rng.standard_normal(y.shape)
check(f"{config.hidden_act}, x", lambda x: gelu(x)[0], inner, dy * slope, dy)

figure, axis = plt.subplots(figsize=(7, 3.6))
grid = np.linspace(-4, 3, 300)
axis.hist(inner.ravel(), bins=np.linspace(-4, 3, 71), color="lightgray", density=True, label="inputs here")
axis.plot(grid, np.maximum(grid, 0), color="0.4", linestyle="--", label="ReLU")
axis.plot(grid, gelu(grid)[0], color="C0", label="GELU")
axis.plot(grid, gelu(grid)[1], color="C3", label="its derivative")
axis.set(ylim=(-0.4, 2.5), xlabel="x")
axis.legend()
show(figure, "GELU and its derivative over x, with ReLU beside it and a histogram of this layer's inputs: most of them "
     "lie below zero, where GELU is small but not flat.")  # fmt: skip

# %% [markdown]
# ## A layer
#
# Attention looks at other tokens, the MLP at one token alone. Each is *added* to what it got, so that a layer only has
# to say what changes, and each sum is normalised:
#
# $$X' = \mathrm{LayerNorm}(X + \mathrm{attention}(X)), \qquad
# X'' = \mathrm{LayerNorm}(X' + W_2\, \mathrm{GELU}(W_1 X')).$$
#
# *Backward.* The same lines from the last to the first. Where x was used twice, its two gradients are added. (There is
# a picture of it in `docs/pictures.md`.)


# %%
def layer(name: str, x: np.ndarray) -> tuple[np.ndarray, tuple]:
    y, of_attention = attention(f"{name}.attention", x)
    middle, of_norm1 = layer_norm(f"{name}.attention.output.LayerNorm", x + y)
    activated, slope = gelu(linear(f"{name}.intermediate.dense", middle))  # [tokens, 4 hidden]
    out, of_norm2 = layer_norm(f"{name}.output.LayerNorm", middle + linear(f"{name}.output.dense", activated))
    return out, (of_attention, of_norm1, middle, activated, slope, of_norm2)


def layer_backward(name: str, dout: np.ndarray, kept: tuple) -> np.ndarray:
    of_attention, of_norm1, middle, activated, slope, of_norm2 = kept
    d = layer_norm_backward(f"{name}.output.LayerNorm", dout, of_norm2)
    dactivated = linear_backward(f"{name}.output.dense", d, activated)[0]
    d = d + linear_backward(f"{name}.intermediate.dense", dactivated * slope, middle)[0]
    d = layer_norm_backward(f"{name}.attention.output.LayerNorm", d, of_norm1)
    return d + attention_backward(f"{name}.attention", d, of_attention)


out, kept = layer(layer0, x)
dout = rng.standard_normal(out.shape)
dx = layer_backward(layer0, dout, kept)
check("layer, x", lambda x: layer(layer0, x)[0], x, dx, dout)

book_out, book_kept = textbook.layer(p, config, layer0, x[None], np.zeros(1), None)
gradients = {key: np.zeros_like(value) for key, value in p.items()}
book_dx = textbook.layer_backward(dout[None], book_kept, gradients)
print("as the book's: forward", np.allclose(out, book_out[0]), " backward", np.allclose(dx, book_dx[0]))

# %% [markdown]
# All layers, one after the other, and the same held against the model in torch. What A was in each is kept for the next
# pictures.

# %%
states, attentions, kept_layers = [x], [], []
for i in range(layers):
    state, kept = layer(f"realm.encoder.layer.{i}", states[-1])
    states.append(state)
    attentions.append(kept[0][4])
    kept_layers.append(kept)
attentions = np.stack(attentions)  # [layers, heads, tokens, tokens]
output = embedder(**{key: torch.from_numpy(value) for key, value in encoded.items()}, output_hidden_states=True)
agree = [np.allclose(a, b[0].numpy(), atol=1e-4) for a, b in zip(states, output.hidden_states, strict=True)]
print("by hand = what the model returns, layer by layer:", agree)

# %% [markdown]
# ### What the gradient is good for
#
# The length of the gradient says which token matters. Let L be the sum of the last layer's state of `[CLS]` times
# random numbers, and go back through all layers: how much would a small change of each token's embedding move it?

# %%
d = np.zeros_like(states[-1])
d[0] = rng.standard_normal(hidden)
for i in reversed(range(layers)):
    d = layer_backward(f"realm.encoder.layer.{i}", d, kept_layers[i])
influence = np.linalg.norm(d, axis=1)
figure, axis = plt.subplots(figsize=(9.5, 3.4))
axis.bar(range(len(tokens)), influence / influence.max(), color="C0")
axis.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right", rotation_mode="anchor")
axis.set_ylabel("length of the gradient")
show(figure, "A bar for each token of the sentence: how strongly a change of its embedding moves the summary of the "
     "sentence.")  # fmt: skip

# %% [markdown]
# ## What attends to what
#
# All heads on this sentence: a row of pictures a layer, a column a head, by number. In each picture row i is the token
# that asks, column j the token that is asked, dark is much. Typical of trained heads: a dark diagonal beside the main
# one is a head that looks at the token before or after; a dark column is a token that many look at, often `[CLS]`,
# `[SEP]` or the full stop, where a head rests that has nothing to say.

# %%
figure, axes = plt.subplots(layers, heads, figsize=(9, 9 * layers / heads + 0.4), squeeze=False, layout="none")
for (i, j), axis in np.ndenumerate(axes):
    axis.imshow(attentions[i, j] ** 0.5, cmap=plt.get_cmap("Greys", 12), vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, linewidth=0.3)
    if j == 0:
        axis.set_ylabel(f"layer {i}")
    if i == 0:
        axis.set_title(str(j))
figure.subplots_adjust(wspace=0.06, hspace=0.06)
show(figure, "A grid of attention matrices, layers by heads. Some heads show a diagonal beside the main one, many a "
     "dark column at the first or last token.")  # fmt: skip

# %% [markdown]
# In numbers: how much of its attention a token gives, on average, to the token before it, to the one after it, and to
# `[CLS]` and `[SEP]`. The head that does the first most:

# %%
kinds = {
    "the token before": attentions.diagonal(-1, 2, 3).mean(-1),  # [layers, heads]
    "the token after": attentions.diagonal(1, 2, 3).mean(-1),
    "[CLS] and [SEP]": attentions[..., [0, -1]].sum(-1).mean(-1),
}
for kind, share in kinds.items():
    i, j = divmod(int(share.argmax()), heads)
    print(f"to {kind:<17} all heads {share.mean():.3f}   most: layer {i} head {j} {share[i, j]:.3f}")
i, j = divmod(int(kinds["the token before"].argmax()), heads)
figure, axis = plt.subplots(figsize=(6.4, 6))
axis.imshow(attentions[i, j], cmap="Greys", vmin=0, vmax=0.7)
axis.set_xticks(range(len(tokens)), tokens, rotation=90)
axis.set_yticks(range(len(tokens)), tokens)
axis.set(xlabel="asked", ylabel="asks", title=f"layer {i}, head {j}")
show(figure, "One attention matrix, with the tokens named: a dark line just below the diagonal, every token looks at "
     "the one before it.")  # fmt: skip

# %% [markdown]
# ## From tokens to a vector
#
# After the last layer, the state of `[CLS]` is the text's summary. A pooler and a projection make the embedding of it,
#
# $$\mathrm{Embed_{input}}(x) = \mathrm{LayerNorm}(W \tanh(W_{\text{pool}}\, h_{\text{[CLS]}} + b_{\text{pool}}) + b),$$
#
# a vector of `retriever_proj_size` numbers (the paper writes $W\, \mathrm{BERT_{CLS}}(x)$ alone; pooler and LayerNorm
# are those of the released checkpoints). $d \tanh(x) = (1 - \tanh^2(x))\, dx$, and the rest has been derived. Notebook
# 3 searches with it.

# %%
pooled = np.tanh(linear("realm.pooler.dense", states[-1][:1]))  # [1, hidden]
embedding, _ = layer_norm("cls.LayerNorm", linear("cls.dense", pooled))  # [1, proj]
print(f"Embed_input(x): {embedding.shape}, length {np.linalg.norm(embedding):.2f}; as the model's:",
      np.allclose(embedding, output.projected_score.numpy(), atol=1e-3))  # fmt: skip

# %% [markdown]
# ## How exact is float32?
#
# float32 rounds each result by up to $u = 2^{-24} \approx 6 \cdot 10^{-8}$ of its size, since it has 24 binary digits
# and the last is off by half at most. Errors add up on the way, and a LayerNorm keeps them from growing with the
# states. What we did by hand was float64, so errors are against it, $\|x_{32} - x_{64}\| / \|x_{64}\|$ of all hidden
# states after each layer. bfloat16, with 8 digits, $u = 2^{-8}$, is there to compare.

# %% tags=["varies"]
half = RealmEmbedder(config, initialize=False).eval()
half.load_state_dict(embedder.state_dict())
inputs = {key: torch.from_numpy(value) for key, value in encoded.items()}
half_output = half.to(torch.bfloat16)(**inputs, output_hidden_states=True)
errors = {
    name: [
        np.linalg.norm(a[0].double().numpy() - b) / np.linalg.norm(b)
        for a, b in zip(found.hidden_states, states, strict=True)
    ]
    for name, found in {"float32": output, "bfloat16": half_output}.items()
}
figure, axis = plt.subplots(figsize=(7, 3.6))
for (name, values), unit, color in zip(errors.items(), (2.0**-24, 2.0**-8), ("C0", "C1"), strict=True):
    axis.semilogy(values, "o-", color=color, label=name)
    axis.axhline(unit, color=color, linestyle=":", linewidth=1, label=f"u of {name}")
axis.set(xlabel="layers passed", ylabel="relative error", xticks=range(layers + 1))
axis.legend(bbox_to_anchor=(1, 1), loc="upper left")
show(figure, "Relative error against layers passed, on a logarithmic axis: float32 stays near its rounding unit of six "
     "hundred-millionths, bfloat16 near its own of four thousandths; neither explodes with depth.")  # fmt: skip
for name, values in errors.items():
    print(f"{name:<9} after the embeddings {values[0]:.1e}, after the last layer {values[-1]:.1e}")

# %%
assert errors["float32"][-1] < 1e-5
print("float32 agrees with float64 to five digits and more")

# %% [markdown]
# The error does not explode with depth: residual connections pass it on, LayerNorm keeps its size relative, and
# roundings of either sign cancel in part. `realm-min verify` makes this measurement for any checkpoint, stage by stage.
#
# ## Exercises
#
# **1.** Count the parameters of one layer, as a formula in hidden $d$ with an MLP of $4d$. What share of the embedder's
# parameters are word embeddings?
#
# <details><summary>Solution</summary>
#
# Four $d \times d$ products with biases, $4d^2 + 4d$; two MLP products, $8d^2 + 5d$; two LayerNorms, $4d$:
# $12 d^2 + 13 d$.
#
# ```python
# counted = sum(array.size for key, array in p.items() if key.startswith("realm.encoder.layer.0."))
# print(counted, 12 * hidden**2 + 13 * hidden)
# print(p[WORD].size / embedder.num_parameters())
# ```
# The smaller the model, the larger the share of its words; the masked-word head, which checkpoints carry along, may
# hold them a second time. That is why the packed default model drops the wordpieces that its corpus never uses.
# </details>
#
# **2.** Attention is blind to order. Show it: give all tokens the same position, shuffle those between `[CLS]` and
# `[SEP]`, and compare the first layer's state of `[CLS]`. Then shuffle with positions on.
#
# <details><summary>Solution</summary>
#
# ```python
# order = np.concatenate([[0], 1 + rng.permutation(len(ids) - 2), [len(ids) - 1]])
# for positions in (np.zeros(len(ids), int), np.arange(len(ids))):
#     first = []
#     for row in (ids, ids[order]):
#         start = p[WORD][row] + p[TYPE][0] + p[POSITION][positions]
#         first.append(layer(layer0, layer_norm("realm.embeddings.LayerNorm", start)[0])[0][0])
#     print(np.linalg.norm(first[0] - first[1]) / np.linalg.norm(first[0]))
# ```
# Without positions the difference is rounding. Every step treats all tokens alike: attention sums over them, and
# everything else looks at one token at a time; so shuffling the inputs shuffles the outputs, and `[CLS]` stays.
# </details>
#
# **3.** Derive and write the backward of $y = x / \|x\|$, and check it. Which direction does its gradient never have?
#
# <details><summary>Solution</summary>
#
# $\delta y = \delta / \|x\| - x (x \cdot \delta) / \|x\|^3 = (\delta - y\, (y \cdot \delta)) / \|x\|$, again a
# symmetric matrix: $dx = (dy - y\, (y \cdot dy)) / \|x\|$. It never points along x, because the length of x does not
# matter.
#
# ```python
# def unit(x):
#     return x / np.linalg.norm(x, axis=-1, keepdims=True)
#
# few = rng.standard_normal((4, 6))
# y, dy = unit(few), rng.standard_normal((4, 6))
# dx = (dy - y * (y * dy).sum(-1, keepdims=True)) / np.linalg.norm(few, axis=-1, keepdims=True)
# check("unit vector", unit, few, dx, dy)
# print("along x:", abs((dx * few).sum(-1)).max())
# ```
# </details>
