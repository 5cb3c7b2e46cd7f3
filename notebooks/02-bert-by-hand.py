# %% [markdown]
# # 2. BERT by hand
#
# The retriever and the reader of REALM read text with the same network, BERT (Devlin et al. 2018). This notebook takes
# it apart on one sentence of the Factbook: embeddings, then one layer, that is attention, MLP and LayerNorm, each from
# the pieces of `ops.py`, each held against `bert.py`. Then it looks at what attends to what, and measures how far
# float32 is from the float64 of the book, `textbook.py`.
#
# | symbol | here | shape |
# | --- | --- | --- |
# | $X$, hidden states, a row a token | `x` | [rows, hidden] |
# | $Q, K, V$ | `query`, `key`, `value` | [heads, tokens, width] |
# | $A$, attention probabilities | `probabilities` | [heads, tokens, tokens] |
# | parameters | `p`, a dict with the keys of `state_dict()` | |
#
# heads · width = hidden. The network is the embedder of the default model.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from realm_min import RealmEmbedder, textbook
from realm_min.app.cli import load_model
from realm_min.model import bert, fast, ops
from realm_min.model.realm import pool
from realm_min.text.corpus import factbook_documents, split_sentences

torch.set_num_threads(2)
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

model = load_model(None)
tokenizer, embedder = model.retriever.tokenizer, model.embedder
config, p = embedder.config, embedder.p
hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
width = hidden // heads
print(f"{layers} layers, hidden {hidden} = {heads} heads x width {width}, MLP {config.intermediate_size}")

sentence = next(s for d in factbook_documents() if d.title == "Norway" for s in split_sentences(d.text) if "1397" in s)
encoded = tokenizer(sentence, return_tensors="pt")
ids = encoded["input_ids"]  # [1, tokens]
tokens = tokenizer.convert_ids_to_tokens(ids[0])
print(sentence, tokens, sep="\n")

# %% [markdown]
# ## Embeddings
#
# A token starts as the sum of three vectors: its wordpiece, the text it belongs to (type 0 or 1), and its position.
# Attention does not know the order of its inputs, so the position must be in the vectors. The sum is normalised,
#
# $$x_i = \mathrm{LayerNorm}(E_{\text{word}}[t_i] + E_{\text{type}}[0] + E_{\text{position}}[i]), \qquad
# \mathrm{LayerNorm}(h) = \gamma \circ \frac{h - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta,$$
#
# with $\mu$ and $\sigma^2$ the mean and variance over the hidden axis of one token.

# %%
name = "realm.embeddings"
words = ops.embedding(ids[0], p[f"{name}.word_embeddings.weight"])  # [tokens, hidden]
positions = p[f"{name}.position_embeddings.weight"][: len(tokens)]
types = p[f"{name}.token_type_embeddings.weight"][0]
summed = words + types + positions
x = ops.layer_norm(summed, p[f"{name}.LayerNorm.weight"], p[f"{name}.LayerNorm.bias"], config.layer_norm_eps)

output = embedder(**encoded, output_hidden_states=True, output_attentions=True)
assert torch.allclose(x, output.hidden_states[0][0], atol=1e-5)

standardized, _ = ops.standardize_(summed.clone(), config.layer_norm_eps)
print("lengths of the first three tokens' word embeddings", words.norm(dim=1)[:3].numpy().round(3))
print("standardised: mean", abs(round(float(standardized.mean()), 3)), "variance", round(float(standardized.var()), 2))

# %% [markdown]
# ## Attention
#
# Each token asks, with its *query*, all tokens, which answer with their *keys*; what they have to say is their *value*.
# A head is one such conversation in `width` dimensions (Vaswani et al. 2017, equation 1):
#
# $$Q = X W_Q^\top + b_Q, \quad K = X W_K^\top + b_K, \quad V = X W_V^\top + b_V, \qquad
# A = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt{\text{width}}}\right), \qquad \text{context} = A V.$$
#
# A row of $A$ sums to 1: it says how a token mixes the values of all tokens.

# %%
layer = "realm.encoder.layer.0"


def project(role: str) -> torch.Tensor:
    """[heads, tokens, width]."""
    y = ops.linear(x, p[f"{layer}.attention.self.{role}.weight"], p[f"{layer}.attention.self.{role}.bias"])
    return y.view(len(tokens), heads, width).transpose(0, 1)


query, key, value = project("query"), project("key"), project("value")
raw_scores = query @ key.transpose(1, 2)  # [heads, tokens, tokens]
probabilities = ops.softmax(raw_scores / width**0.5)
context = (probabilities @ value).transpose(0, 1).reshape(len(tokens), hidden)
assert torch.allclose(probabilities, output.attentions[0][0], atol=1e-5)
print("rows sum to", probabilities.sum(-1).unique().round(decimals=4).unique().tolist())

# %% [markdown]
# Why divide by $\sqrt{\text{width}}$? If the components of a query and a key were independent with mean 0 and variances
# $a$ and $b$, their inner product, a sum of `width` terms, would have the deviation $\sqrt{a\, b \cdot \text{width}}$.
# Undivided it grows with the width, and a softmax of large scores picks one token and has hardly any gradient. How
# evenly does a token attend? Count the tokens as $e^H$, with $H = -\sum_j A_{ij} \log A_{ij}$ the entropy of its row:


# %%
def attended(scores: torch.Tensor) -> float:
    """exp of the entropy of the softmax of scores [heads, tokens, tokens], on average."""
    log_probabilities = ops.log_softmax(scores, dim=-1)
    return float((-(log_probabilities.exp() * log_probabilities).sum(-1)).exp().mean())


print(f"deviation of the scores: {raw_scores.std():.3f}, divided {raw_scores.std() / width**0.5:.3f}")
for factor in (1 / width**0.5, 1, width**0.5):
    print(f"scores times {factor:7.3f}: {attended(raw_scores * factor):5.2f} of {len(tokens)} tokens attended to")

# %% [markdown]
# ## Output, residual, LayerNorm, MLP
#
# The heads' contexts, side by side, pass through a dense layer and are *added* to the layer's input, so that a layer
# only has to say what changes. After a LayerNorm, the MLP does the same for each token alone:
#
# $$X' = \mathrm{LayerNorm}(X + \text{context}\, W_O^\top + b_O), \qquad
# X'' = \mathrm{LayerNorm}(X' + \mathrm{GELU}(X' W_1^\top + b_1)\, W_2^\top + b_2).$$

# %%


def dense(name: str, x: torch.Tensor) -> torch.Tensor:
    return ops.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def norm(name: str, x: torch.Tensor) -> torch.Tensor:
    return ops.layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], config.layer_norm_eps)


x_attended = norm(f"{layer}.attention.output.LayerNorm", x + dense(f"{layer}.attention.output.dense", context))
inner = dense(f"{layer}.intermediate.dense", x_attended)  # [tokens, 4 hidden]
activated = ops.ACTIVATIONS[config.hidden_act](inner.clone())
x_out = norm(f"{layer}.output.LayerNorm", x_attended + dense(f"{layer}.output.dense", activated))

rows = fast.Rows([len(tokens)], None, None)
whole_layer, *_ = bert.layer(p, config, 0, x, rows, bert.PLAIN)
assert torch.allclose(x_out, whole_layer, atol=1e-5)
assert torch.allclose(x_out, output.hidden_states[1][0], atol=1e-5)
print("by hand = bert.layer = what the model returns")

# %% [markdown]
# GELU, $x\, \Phi(x)$ with $\Phi$ the normal distribution function, is a ReLU with a soft knee: a small negative input
# still passes, and has a gradient. In grey, where the inputs of this layer fall:

# %%
figure, axes = plt.subplots(figsize=(6, 2.6))
grid = torch.linspace(-4, 3, 300)
axes.hist(inner.flatten(), bins=np.linspace(-4, 3, 71), color="lightgray", density=True, label="inputs here")
axes.plot(grid, ops.relu_(grid.clone()), color="tab:gray", linestyle="--", label="ReLU")
axes.plot(grid, ops.ACTIVATIONS[config.hidden_act](grid.clone()), color="tab:blue", label=config.hidden_act)
axes.set(ylim=(-0.4, 2.5), xlabel="x")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What attends to what
#
# All heads on this sentence: a row of pictures a layer, a column a head; in each picture row $i$ is the token that
# asks, column $j$ the token that is asked, dark is much. Typical of trained heads: a dark diagonal beside the main one
# is a head that looks at the token before or after; a dark column is a token that many look at, often `[CLS]`, `[SEP]`
# or the full stop, where a head rests that has nothing to say. Weights that were never trained show an even grey.

# %%
attentions = torch.stack([attention[0] for attention in output.attentions])  # [layers, heads, tokens, tokens]
figure, axes = plt.subplots(layers, heads, figsize=(8, 8 * layers / heads + 0.3), squeeze=False)
for (i, j), ax in np.ndenumerate(axes):
    ax.imshow(attentions[i, j] ** 0.5, cmap=plt.get_cmap("Greys", 12), vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.3)
    if j == 0:
        ax.set_ylabel(f"layer {i}")
    if i == 0:
        ax.set_title(f"head {j}", fontsize=8)
figure.subplots_adjust(wspace=0.06, hspace=0.06)
plt.show()

# %% [markdown]
# In numbers: how much of its attention a token gives, on average, to the token before it, to the one after it, and to
# `[CLS]` and `[SEP]`. The head that does each most, larger:

# %%
kinds = {
    "the token before": attentions.diagonal(-1, 2, 3).mean(-1),  # [layers, heads]
    "the token after": attentions.diagonal(1, 2, 3).mean(-1),
    "[CLS] and [SEP]": attentions[..., [0, -1]].sum(-1).mean(-1),
}
figure, axes = plt.subplots(1, 3, figsize=(11, 4.2))
for ax, (kind, share) in zip(axes, kinds.items(), strict=True):
    i, j = divmod(int(share.argmax()), heads)
    ax.imshow(attentions[i, j], cmap="Greys", vmin=0, vmax=0.7)
    ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
    ax.set_yticks(range(len(tokens)), tokens, fontsize=7)
    ax.set_title(f"most to {kind}:\nlayer {i}, head {j}, {share[i, j]:.0%}", fontsize=9)
    print(f"to {kind:<17} all heads {share.mean():.3f}   layer {i} head {j} {share[i, j]:.3f}")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## From tokens to a vector
#
# After the last layer, the state of `[CLS]` is the text's summary. A pooler and a projection make the embedding of it,
#
# $$\mathrm{Embed_{input}}(x) = \mathrm{LayerNorm}(W \tanh(W_{\text{pool}}\, h_{\text{[CLS]}} + b_{\text{pool}}) + b),$$
#
# a vector of `retriever_proj_size` numbers (the paper writes $W\, \mathrm{BERT_{CLS}}(x)$ alone; pooler and LayerNorm
# are those of the released checkpoints). Notebook 3 searches with it.

# %%
pooled, _ = pool(p, output.hidden_states[-1][:, 0])  # [1, hidden]
embedding = norm("cls.LayerNorm", dense("cls.dense", pooled))
assert torch.allclose(embedding, embedder(**encoded).projected_score, atol=1e-4)
print(f"Embed_input(x): {tuple(embedding.shape)}, length {embedding.norm():.2f}")

# %% [markdown]
# ## How exact is float32?
#
# float32 rounds each result by up to $u = 2^{-24} \approx 6 \cdot 10^{-8}$ of its size. Errors add up on the way, and
# a LayerNorm keeps them from growing with the states. To see them, the book, `textbook.py`, does the same in float64,
# in code that is independent of `bert.py`: errors below are against it, $\|x_{32} - x_{64}\| / \|x_{64}\|$ of all
# hidden states after each layer. bfloat16, with 8 significant bits in place of 24, $u = 2^{-8}$, is there to compare.

# %% tags=["varies"]
weights = {key: tensor.double().numpy() for key, tensor in embedder.state_dict().items()}
batch = tuple(encoded[key].numpy() for key in ("input_ids", "attention_mask", "token_type_ids"))
exact, _ = textbook.embed(weights, config, batch)  # Embed(x) [1, proj]

x = weights[textbook.WORD][batch[0]] + weights[textbook.TYPE][batch[2]] + weights[textbook.POSITION][: len(tokens)]
x, _ = textbook.layer_norm(weights, "realm.embeddings.LayerNorm", x, config.layer_norm_eps)
exact_states = [x]  # the hidden states between its layers, [1, tokens, hidden] each
for i in range(layers):
    x, _ = textbook.layer(weights, config, f"realm.encoder.layer.{i}", x, np.zeros(1), None)  # no token is barred
    exact_states.append(x)


def relative_error(found: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - expected) / np.linalg.norm(expected))


half = RealmEmbedder(config, initialize=False).eval()
half.load_state_dict(embedder.state_dict())
half_output = half.to(torch.bfloat16)(**encoded, output_hidden_states=True)
errors = {
    name: [relative_error(*pair) for pair in zip(found.hidden_states, exact_states, strict=True)]
    for name, found in {"float32": output, "bfloat16": half_output}.items()
}

figure, axes = plt.subplots(figsize=(6, 2.8))
for (name, values), unit, color in zip(errors.items(), (2.0**-24, 2.0**-8), ("tab:blue", "tab:orange"), strict=True):
    axes.semilogy(values, "o-", color=color, label=name)
    axes.axhline(unit, color=color, linestyle=":", linewidth=1, label=f"u of {name}")
axes.set(xlabel="layers passed", ylabel="relative error", xticks=range(layers + 1))
axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")
plt.show()
for name, values in errors.items():
    print(f"{name:<9} after the embeddings {values[0]:.1e}, after the last layer {values[-1]:.1e}")

# %%
assert errors["float32"][-1] < 1e-5
assert relative_error(embedding, exact) < 1e-5
print("float32 agrees with the book to five digits and more")

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
# counted = sum(tensor.numel() for key, tensor in p.items() if key.startswith("realm.encoder.layer.0."))
# print(counted, 12 * hidden**2 + 13 * hidden)
# print(p["realm.embeddings.word_embeddings.weight"].numel() / embedder.num_parameters())
# ```
# The smaller the model, the larger the share of its words; the masked-word head, which checkpoints carry along, may
# hold them a second time. That is why the packed default model drops the wordpieces that its corpus never uses.
# </details>
#
# **2.** Attention is blind to order. Show it: give all tokens the same position, shuffle those between `[CLS]` and
# `[SEP]`, and compare the embeddings of the sentence. Then shuffle with positions on.
#
# <details><summary>Solution</summary>
#
# ```python
# order = torch.cat([torch.tensor([0]), 1 + torch.randperm(len(tokens) - 2), torch.tensor([len(tokens) - 1])])
# for positions in (torch.zeros_like(ids), torch.arange(len(tokens))[None]):
#     straight = embedder(ids, position_ids=positions).projected_score
#     shuffled = embedder(ids[:, order], position_ids=positions).projected_score
#     print(float((straight - shuffled).norm() / straight.norm()))
# ```
# Without positions the difference is rounding. Every step treats all tokens alike: attention sums over them, and
# everything else looks at one token at a time; so shuffling the inputs shuffles the outputs, and `[CLS]` stays.
# </details>
#
# **3.** Pad the sentence with five `[PAD]`. Does its embedding change with `attention_mask` 0 there, and with no mask?
# Why does `ops.additive_mask` add the most negative finite number to a score, rather than $-\infty$?
#
# <details><summary>Solution</summary>
#
# ```python
# padded = torch.cat([ids, torch.full((1, 5), tokenizer.pad_token_id)], dim=1)
# mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 5, dtype=torch.long)], dim=1)
# for attention_mask in (mask, None):
#     found = embedder(padded, attention_mask=attention_mask).projected_score
#     print(float((found - embedding).norm() / embedding.norm()))
# ```
# With the mask only rounding is left: $\exp$ of the masked scores is 0. A row in which all is masked would be $0 / 0$
# with $-\infty$, and NaN ever after; with the finite number its softmax is uniform, and harmless.
# </details>
