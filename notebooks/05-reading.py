# %% [markdown]
# # 5. Reading
#
# Five blocks have been retrieved. Which words in them answer the question? REALM takes the reader of ORQA (Lee et al.
# 2019, sections 2.2 and 3): it scores every *span*, that is every run of at most ten wordpieces of every block, and the
# best one is the answer. This notebook takes the scores apart, does the algebra that makes them cheap, draws all of
# them for one block, holds ORQA's softmax against equation 1, and asks where the reader and the retriever disagree.
#
# **Needed before:** LayerNorm (notebook 2), f(x, z) and p(z|x) (notebook 3), equation 1 (notebook 4).
#
# **After it you can** say how a span gets its score and why ten thousand spans cost little more than a thousand tokens,
# and tell two numbers apart that are both called p(y|x). About an hour.
#
# | paper | here | shape |
# | --- | --- | --- |
# | $q$, the question, and $b$, a block | `input_ids`, both in one sequence | [beam, tokens] |
# | $S_{retr}(b, q)$ | `relevance_score` | [beam] |
# | $h_{start}, h_{end}$, hidden states of a span's ends | `hidden` | [beam, tokens, hidden] |
# | $S_{read}(b, s, q) = \mathrm{MLP}([h_{start}; h_{end}])$ | `span_logits` less `relevance_score` | [beam, spans] |
#
# The code is `spans.py` and `realm.py` in `realm_min/model/`; `realm_min/interface/open_qa.py` puts the answer
# together. The model is the default one of `realm-min ask`, over one of its two corpora, the CIA World Factbook.
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
from realm_min import textbook
from realm_min.app.figures import for_a_room, show
from realm_min.interface.inputs import Inputs
from realm_min.interface.open_qa import block_mask, spans_equal_to
from realm_min.model import ops
from realm_min.model.realm import loss_of_correct
from realm_min.model.spans import SpanInputs, fold_weights, span_candidates, span_count, span_logits
from realm_min.verify.differences import central_difference

torch.set_num_threads(2)
torch.manual_seed(0)
for_a_room()

model = realm_min.load("factbook")  # the default model, of its two corpora the Factbook alone
tokenizer, config, reader = model.retriever.tokenizer, model.config, model.reader
question = "What is the capital of Uruguay?"
scores, block_ids = (found[0] for found in model.retrieve([question], 5))  # f(x, z) [beam], block numbers [beam]
for block_id, score, prior in zip(block_ids.tolist(), scores.tolist(), ops.softmax(scores).tolist(), strict=True):
    text = model.retriever.block_records[block_id].decode()
    print(f"S_retr {score:7.3f}   p(z|x) {prior:.3f}   {text[:70]}…")

# %% [markdown]
# The reader's input is `[CLS] question [SEP] block [SEP]`, one sequence for each block, so that every word of the
# block attends to the question. The *block mask* marks the tokens an answer may consist of: those of the block.

# %%
question_ids = tokenizer([question], return_tensors="pt").input_ids
*_, inputs = model.retriever(block_ids, question_ids, None, max_length=config.reader_seq_len)
in_block = block_mask(inputs)  # bool [beam, tokens]
beam, tokens = inputs.input_ids.shape
print(" ".join(tokenizer.convert_ids_to_tokens(inputs.input_ids[0].tolist())[:24]), "…")
print(f"{beam} blocks of up to {tokens} tokens; the first has {int(in_block[0].sum())} tokens of its own")

# %% [markdown]
# ## Spans
#
# A span is a start and an end. With T tokens there are T spans of one token, T - 1 of two, and so on to width W:
#
# $$\sum_{w=0}^{W-1} (T - w) = W T - \tfrac{W (W - 1)}{2}.$$
#
# `span_candidates` lists them narrow ones first, and everything about spans stands in that order: a `candidate` is a
# place in it. For six tokens and widths up to three, each span drawn over the middle of its tokens:

# %%
pieces = tokenizer.tokenize("Capital - name: Montevideo.")[:7]
starts, ends = span_candidates(len(pieces), 3)  # first and last token, [spans]
figure, axis = plt.subplots(figsize=(8, 3))
for candidate, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
    middle, width = (start + end) / 2, end - start + 1
    axis.text(middle, width, str(candidate), ha="center", va="center")
    axis.add_patch(plt.Rectangle((middle - 0.48, width - 0.45), 0.96, 0.9, facecolor=f"C{width - 1}", alpha=0.25))
axis.set(xlim=(-0.6, len(pieces) - 0.4), ylim=(0.4, 3.6), yticks=range(1, 4), ylabel="width")
axis.set_xticks(range(len(pieces)), pieces)
show(figure, "The span triangle of six tokens: a row of six spans of one token, above it five of two, then four "
     "of three, each over the middle of its tokens, numbered from left to right and from narrow to wide.")  # fmt: skip
print(f"{span_count(len(pieces), 3)} spans of {len(pieces)} tokens", end=", ")
print(f"{span_count(tokens, config.max_span_width):,} in each of the blocks above")

# %% [markdown]
# ## A score, and the first saving
#
# ORQA puts the hidden states of a span's two ends beside each other and through a small network: a dense layer, relu,
# LayerNorm, and a product with one vector $v$:
#
# $$\mathrm{logit} = v \cdot \mathrm{LayerNorm}\bigl(\mathrm{relu}(W [h_i; h_j] + b)\bigr) + c.$$
#
# Done as written, that is a matrix product for each of the spans. But $W [h_i; h_j] = W_s h_i + W_e h_j$ with the two
# halves $W = [W_s \; W_e]$, and each half depends on one token alone. So T products are enough for each half, and a
# span costs an addition: $h_{ij} = \mathrm{relu}(S_i + E_j)$. `dense_intermediate` is both halves in one matrix, and
# the bias of either goes along. Checked on the first block, in float64:

# %%
p = {name: tensor.double() for name, tensor in reader.state_dict().items() if name.startswith("qa_outputs")}
logits, encoded = reader.span_logits(
    Inputs(inputs.input_ids, inputs.attention_mask, inputs.token_type_ids), scores, in_block
)  # [beam, spans]
hidden = encoded.hidden.double()  # [beam, tokens, hidden]
starts, ends = span_candidates(tokens, config.max_span_width)

weight, bias = p["qa_outputs.dense_intermediate.weight"], p["qa_outputs.dense_intermediate.bias"]
start_weight, end_weight = weight.chunk(2)  # W_s, W_e [span_hidden, hidden]
start_bias, end_bias = bias.chunk(2)
pairs = torch.cat([hidden[0, starts], hidden[0, ends]], 1)  # [spans, 2 * hidden]: [h_i; h_j]
as_written = ops.linear(pairs, torch.cat([start_weight, end_weight], 1), start_bias + end_bias)

projections = ops.linear(hidden.flatten(0, 1), weight, bias).view(beam, tokens, -1)
S, E = projections.chunk(2, 2)  # [beam, tokens, span_hidden] each
print("largest difference below 1e-12:", bool((as_written - (S[0, starts] + E[0, ends])).abs().max() < 1e-12))
print(f"{len(pairs) / tokens:.1f} times fewer multiplications")

# %% [markdown]
# ## The LayerNorm algebra
#
# What is left is a LayerNorm of H numbers for each span, of which there are ten times as many as tokens. Written out
# with $\mu$ and $\sigma^2$ the mean and variance of the entries of $h = h_{ij}$, and $\gamma, \beta$ its weight and
# bias:
#
# $$\mathrm{logit} = \sum_k v_k \Bigl(\gamma_k \frac{h_k - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta_k\Bigr) + c.$$
#
# Nobody needs the normalised h, only its product with $v$. Let $u = v \circ \gamma$, pull the denominator out of the
# sum, and what does not depend on the span out of everything:
#
# $$\mathrm{logit} = \frac{\sum_k u_k h_k - \mu \sum_k u_k}{\sqrt{\sigma^2 + \varepsilon}} + v \cdot \beta + c,
# \qquad \mu = \tfrac{1}{H} \sum_k h_k, \quad \sigma^2 = \tfrac{1}{H} \sum_k h_k^2 - \mu^2.$$
#
# Three sums, $\sum h$, $\sum h^2$ and $\sum u h$, in one pass over h, and neither h nor its normalised form has to be
# stored. One step more: $\sum_k u_k h_k - \mu \sum_k u_k = \sum_k (u_k - \bar u) h_k$, since taking the mean out of u
# does the same as taking it out of h. So with $\tilde u = u - \bar u$, made once,
#
# $$\mathrm{logit} = \frac{\sum_k \tilde u_k h_k}{\sqrt{\sigma^2 + \varepsilon}} + v \cdot \beta + c.$$
#
# The naive way, the algebra, and `realm_min/model/spans.py`, for all spans of the first block:

# %%
gamma, beta = p["qa_outputs.layer_normalization.weight"], p["qa_outputs.layer_normalization.bias"]
v, c = p["qa_outputs.dense_output.weight"][0], p["qa_outputs.dense_output.bias"]
eps = config.reader_layer_norm_eps

h = (S[0, starts] + E[0, ends]).clamp(min=0)  # [spans, span_hidden]
norm = {"norm.weight": gamma.numpy(), "norm.bias": beta.numpy()}
naive = textbook.layer_norm(norm, "norm", h.numpy(), eps)[0] @ v.numpy() + c.numpy()

u = v * gamma
sum_h, sum_squares, sum_uh = h.sum(1), (h * h).sum(1), (h * u).sum(1)  # [spans] each
mean = sum_h / h.shape[1]
variance = sum_squares / h.shape[1] - mean**2
three_sums = (sum_uh - mean * u.sum()) / (variance + eps).sqrt() + v @ beta + c

weights = (gamma, beta, v, c)
options = dict(max_span_width=config.max_span_width, eps=eps)
scored = SpanInputs(S[:1], E[:1], *weights, **options)
ours = span_logits(scored)[0]
for name, logit in (("three sums", three_sums), ("spans.py", ours)):
    print(f"{name} against the naive way, largest difference below 1e-12:", np.abs(logit.numpy() - naive).max() < 1e-12)
print(f"h of these {beam} blocks in float32: {beam * h.numel() * 4 / 1e6:.0f} MB, their logits: ", end="")
print(f"{beam * h.shape[0] * 4 / 1e6:.2f} MB")

# %% [markdown]
# ### Equal on paper, not in float32
#
# $\sum h^2 / H - \mu^2$ subtracts two numbers that are nearly equal when h varies little about a large mean, and what
# is left is rounding: both are about $\mu^2$, each rounded by $2^{-24} \mu^2$, and the difference is $\sigma^2$. So the
# relative error is about $2^{-24} \mu^2 / \sigma^2$, squared in the mean. Taking the mean out first rounds the entries
# by $2^{-24} \mu$, an error of $2^{-24} \mu / \sigma$. To see it, a constant m is added to every entry of h: LayerNorm
# does not change, on paper. `spans.py` takes the mean out of h first and squares then, which needs a second pass, but
# over a piece of h that is still in the processor's cache.

# %%
offsets = 10.0 ** np.arange(0, 5, 0.5)
few = h[:: max(1, len(h) // 200)]  # [spans, span_hidden], some two hundred
error_of_sums, error_centred = [], []
for offset in offsets:
    moved = (few + offset).float()
    exact = textbook.layer_norm(norm, "norm", moved.double().numpy(), eps)[0] @ v.numpy() + c.numpy()
    mean = moved.mean(1)
    variance = ((moved * moved).mean(1) - mean**2).clamp(min=0)
    of_sums = (moved @ u.float() - mean * u.float().sum()) / (variance + eps).sqrt() + float(v @ beta + c)
    u_tilde, constant = fold_weights(scored, torch.float32)
    centred = moved - mean[:, None]
    of_centred = centred @ u_tilde / ((centred * centred).mean(1) + eps).sqrt() + constant
    spread = exact.std()
    error_of_sums.append(np.abs(of_sums.numpy() - exact).max() / spread)
    error_centred.append(np.abs(of_centred.numpy() - exact).max() / spread)
figure, axis = plt.subplots(figsize=(7, 3.4))
axis.loglog(offsets, error_of_sums, "o-", markersize=4, color="C1", label="Σh, Σh², Σuh")
axis.loglog(offsets, error_centred, "o-", markersize=4, color="C0", label="mean taken out first")
axis.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
axis.set(xlabel="constant added to h", ylabel="largest error / spread")
axis.legend()
show(figure, "The error of the logits in float32 against the constant added to h: by three sums it grows with the "
     "square of the constant, with the mean taken out first far more slowly.")  # fmt: skip

# %% [markdown]
# ## All spans of a block
#
# Masked spans, those with an end outside the block, get the most negative float32 added; the block's relevance score
# is added last. Here is one block with all its spans, the block of the Factbook that holds the fact, whether or not the
# retriever found it: each cell is a span, its first token across and its width upwards.

# %%
records = model.retriever.block_records
evidence = next(i for i, record in enumerate(records) if b"Capital - name: Montevideo" in bytes(record))
answers = [tokenizer.encode("Montevideo", add_special_tokens=False)]
_, gold_starts, gold_ends, read = model.retriever(
    torch.tensor([evidence]), question_ids, answers, max_length=config.reader_seq_len
)
of_block, _ = reader.span_logits(
    Inputs(read.input_ids, read.attention_mask, read.token_type_ids), torch.zeros(1), block_mask(read)
)  # S_read [1, spans]
length = read.input_ids.shape[1]
first_tokens, last_tokens = span_candidates(length, config.max_span_width)
inside = block_mask(read)[0]
valid = inside[first_tokens] & inside[last_tokens]
picture = np.full((config.max_span_width, length), np.nan)  # [width, first token]
picture[(last_tokens - first_tokens)[valid], first_tokens[valid]] = of_block[0, valid].numpy()

best = int(of_block[0].argmax())
gold = [(start, end) for start, end in zip(gold_starts[0], gold_ends[0], strict=True) if start >= 0]
low, high = (int(place) for place in inside.nonzero()[[0, -1], 0])
figure, axis = plt.subplots(figsize=(10, 3))
shown = axis.imshow(picture[:, low : high + 1], aspect="auto", cmap="viridis", origin="lower", interpolation="nearest",
                    extent=(low - 0.5, high + 0.5, 0.5, config.max_span_width + 0.5))  # fmt: skip
axis.set(yticks=(1, 4, 7, 10), ylabel="width", xlabel="first token", title=f"all {int(valid.sum()):,} spans of a block")
figure.colorbar(shown, ax=axis, label="S_read")
show(figure, "S_read of all spans of a block, first token across, width upwards. Stripes: spans that share an end "
     "have similar scores.")  # fmt: skip

# %% [markdown]
# Vertical stripes say that the first token decides, slanted ones (up and to the left) that the last token does: spans
# with one end in common share one of the two terms of $h_{ij}$.
#
# The neighbourhood of a right answer, as the triangle. The right answer has a black frame, the best span a red one.

# %%
words = tokenizer.convert_ids_to_tokens(read.input_ids[0].tolist())
left, widest = max(low, gold[0][0] - 7), 5
right = min(high, left + 15)
figure, axis = plt.subplots(figsize=(10, 4.2))
shades = plt.get_cmap("viridis")
scale = plt.Normalize(np.nanmin(picture[:widest, left : right + 1]), np.nanmax(picture))
for width in range(1, widest + 1):
    for start in range(left, right + 2 - width):
        place = (start + (width - 1) / 2 - 0.48, width - 0.45)
        span, score = (start, start + width - 1), picture[width - 1, start]
        frame = "red" if span == (int(first_tokens[best]), int(last_tokens[best])) else "black" if span in gold else "w"
        edge = dict(edgecolor=frame, linewidth=0.5 if frame == "w" else 2.5, zorder=1 if frame == "w" else 2)
        axis.add_patch(plt.Rectangle(place, 0.96, 0.9, facecolor=shades(scale(score)), **edge))
axis.set(xlim=(left - 0.6, right + 0.6), ylim=(0.4, widest + 0.6), yticks=range(1, widest + 1), ylabel="width")
axis.set_xticks(range(left, right + 1), words[left : right + 1], rotation=60, ha="right", rotation_mode="anchor")
figure.colorbar(plt.cm.ScalarMappable(scale, shades), ax=axis, label="S_read")
show(figure, "The span triangle about the right answer, coloured by S_read: the brightest cell is framed red, the "
     "right answer black where it is another; cells that hold an end of it are brighter than the rest.")  # fmt: skip
print("best span of this block:", " ".join(words[first_tokens[best] : last_tokens[best] + 1]))
for start, end in gold:
    better = (of_block[0, valid] > picture[end - start, start]).double().mean()
    print(f"the right answer at token {start}: {better:.1%} of the spans have a higher score")

# %% [markdown]
# ## From spans to an answer
#
# ORQA lets one softmax run over all spans s of all blocks b that are read. The answer's probability is the share of
# *every* span with the same wordpieces, wherever it stands:
#
# $$p_{\text{ORQA}}(b, s \mid x) = \frac{\exp\bigl(S_{retr}(b) + S_{read}(b, s)\bigr)}
#   {\sum_{b'} \sum_{s'} \exp\bigl(S_{retr}(b') + S_{read}(b', s')\bigr)}, \qquad
#   p_{\text{ORQA}}(y \mid x) = \sum_{(b, s)\,:\, s = y} p_{\text{ORQA}}(b, s \mid x).$$

# %%
probabilities = ops.softmax(logits.flatten()).view_as(logits)
order = logits.flatten().argsort(descending=True)[:5]
print("S_retr + S_read   p(span)   span")
for place in order.tolist():
    row, candidate = divmod(place, logits.shape[1])
    span = inputs.input_ids[row, starts[candidate] : ends[candidate] + 1].tolist()
    print(f"{logits[row, candidate]:15.3f} {probabilities[row, candidate]:9.4f}   {tokenizer.decode(span)!r}")

best_block, best = divmod(int(logits.argmax()), logits.shape[1])
answer_ids = inputs.input_ids[best_block, starts[best] : ends[best] + 1]
same = spans_equal_to(inputs.input_ids, starts, ends, answer_ids)  # bool [beam, spans]
(answer,) = model.answer([question])
words = tokenizer.decode(answer_ids.tolist())
print(f"\n{int(same.sum())} spans read {words!r}, together {probabilities[same].sum():.4f}")
print(f"model.answer: {answer.text!r}, p(y|x) = {answer.probability:.4f}")

# %% [markdown]
# ## Another number: equation 1
#
# REALM's equation 1 has two softmaxes, one over blocks and one over the spans of each:
#
# $$p_{1}(y \mid x) = \sum_b p(b \mid x)\, p(y \mid b, x), \qquad p(b \mid x) = \frac{e^{S_{retr}(b)}}{\sum_{b'}
#   e^{S_{retr}(b')}}, \qquad p(y \mid b, x) = \frac{1}{Z_b} \sum_{s = y} e^{S_{read}(b, s)}, \qquad
#   Z_b = \sum_s e^{S_{read}(b, s)}.$$
#
# Put $Z_b$ into ORQA's: $p_{\text{ORQA}}(y \mid x) = \sum_b w_b\, p(y \mid b, x)$ with
#
# $$w_b = \frac{p(b \mid x)\, Z_b}{\sum_{b'} p(b' \mid x)\, Z_{b'}}.$$
#
# So they differ in the weight of a block. In equation 1 it is the retriever's p(b|x), whatever the reader sees. In
# ORQA's softmax a block in which spans score high gets more: the reader may overrule the retriever, and a block without
# an answer need not waste its probability on something. The two agree only where all $Z_b$ are equal.

# %%
relevance = scores.double().numpy()  # S_retr [beam]
S_read = logits.double().numpy() - relevance[:, None]  # [beam, spans]; LOWEST where a span is none
prior = textbook.softmax(relevance)  # p(b|x)
Z = np.exp(textbook.logsumexp(S_read)[:, 0])  # [beam]
weights_of_blocks = prior * Z / (prior * Z).sum()  # w_b
of_block = textbook.softmax(S_read)  # p(s|b,x) [beam, spans]
of_answer = np.where(same.numpy(), of_block, 0).sum(1)  # p(y|b,x) [beam]
print("block    p(b|x)        Z_b   weight w_b   p(y|b,x)")
for row in zip(block_ids.tolist(), prior, Z, weights_of_blocks, of_answer, strict=True):
    print("{:5}   {:7.4f}   {:8.3g}      {:7.4f}    {:7.4f}".format(*row))
print(f"\nORQA's softmax: p(y|x) = {(weights_of_blocks * of_answer).sum():.4f}", end="")
print(f", answer.probability          {answer.probability:.4f}")
print(f"equation 1:     p(y|x) = {(prior * of_answer).sum():.4f}", end="")
print(f", answer.marginal_probability {answer.marginal_probability:.4f}")

# %%
figure, axis = plt.subplots(figsize=(8, 3.2))
place = np.arange(beam)
axis.bar(place - 0.2, prior, 0.38, color="0.7", label="equation 1: p(b|x)")
axis.bar(place + 0.2, weights_of_blocks, 0.38, color="C0", label="ORQA: p(b|x) Z_b, normalised")
axis.set(xticks=place, xlabel="block", ylabel="weight")
axis.set_xticks(place, [str(number) for number in block_ids.tolist()])
axis.legend()
show(figure, "For each of the five blocks its weight in equation 1 and in ORQA's softmax: they differ, and more of "
     "the weight goes to the block in which the reader's scores are high.")  # fmt: skip

# %% [markdown]
# Which one is right? Each is a model of its own, and each must be trained as it is used. REALM pre-trains with equation
# 1 over documents, where y is a masked word and the encoder's softmax runs over the vocabulary. It fine-tunes and
# answers with ORQA's, by which `model.answer` chooses; an `Answer` holds both numbers under their names.
#
# ## Where the reader and the retriever disagree
#
# Before reading, the blocks have the probabilities p(z|x) of the retriever. After reading, a block's share is the sum
# of p(span) over its spans. The difference is the reader's opinion. Ten questions, half of them picked
# because S_read alone prefers another block, five blocks each, in the retriever's order; the frame marks the block of
# the best span.

# %%
questions = [
    "What is the capital of Uruguay?",
    "Which colours has the flag of Mauritius?",
    "What is the highest point of Kenya?",
    "When did Finland become independent?",
    "What is the official language of Brazil?",
    "What is the currency of Norway?",
    "Who is the king of Sweden?",
    "Which minerals are found in Zambia?",
    "What is the highest mountain of Tanzania?",
    "What is the main religion of Indonesia?",
]
before, after, chosen, favourite = [], [], [], []
for asked in questions:
    found, ids = (result[0] for result in model.retrieve([asked], 5))
    *_, read = model.retriever(ids, tokenizer([asked], return_tensors="pt").input_ids, None, config.reader_seq_len)
    of_spans, _ = reader.span_logits(
        Inputs(read.input_ids, read.attention_mask, read.token_type_ids), found, block_mask(read)
    )
    before.append(ops.softmax(found))
    after.append(ops.softmax(of_spans.flatten()).view_as(of_spans).sum(1))  # [beam]
    chosen.append(int(of_spans.amax(1).argmax()))
    favourite.append(int((of_spans - found[:, None]).amax(1).argmax()))  # by S_read alone
before, after = torch.stack(before).numpy(), torch.stack(after).numpy()  # [questions, beam]

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), sharey=True)
for axis, values, title in zip(axes, (before, after), ("before reading: p(z|x)", "after reading"), strict=True):
    shown = axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set(title=title, xticks=range(5), xticklabels=range(1, 6), xlabel="block, by S_retr")
    for row, block in enumerate(chosen):
        axis.add_patch(plt.Rectangle((block - 0.47, row - 0.45), 0.94, 0.9, fill=False, color="C1", linewidth=2))
axes[0].set_yticks(range(len(questions)), questions)
figure.colorbar(shown, ax=axes, label="probability")
show(figure, "Ten questions by five blocks, their probability before and after reading. For most the mass gathers on "
     "one block, which is not always the retriever's first.")  # fmt: skip
print(
    f"The best span lies outside the retriever's first block for {sum(block > 0 for block in chosen)} of 10 questions."
)
print(
    f"By S_read alone it would for {sum(block > 0 for block in favourite)}: the retriever's score is part of the sum."
)

# %% [markdown]
# ## What the reader learns from
#
# ORQA's fine-tuning (section 6 there) has two losses, both of the same form: minus the logarithm of the probability
# that a softmax gives to everything that is correct *together*, since nobody knows which occurrence of the answer is
# the one that answers.
#
# $$L_{retr} = -\log \sum_{b \,:\, \text{answer in } b} p(b \mid q), \qquad
#   L_{read} = -\log \sum_{(b, s) \,:\, s = \text{answer}} p(b, s \mid q), \qquad L = L_{retr} + L_{read}.$$
#
# The first runs over many blocks, `searcher_beam_size`, 5000 in the paper, so that it can reach an answer that stands
# far down; the second over the few that are read. A question whose answer was not found in either has loss 0 and
# teaches nothing. Four of the blocks above, and the one that holds the fact:

# %%
candidates = torch.tensor([*(i for i in block_ids.tolist() if i != evidence)][:4] + [evidence])  # [beam]
relevance_score = model.block_emb[candidates] @ model.embedder(question_ids, return_dict=True).projected_score[0]
has_answers, gold_starts, gold_ends, read = model.retriever(
    candidates, question_ids, answers, max_length=config.reader_seq_len
)
output = reader(
    input_ids=read.input_ids, attention_mask=read.attention_mask, token_type_ids=read.token_type_ids,
    relevance_score=relevance_score, block_mask=block_mask(read), has_answers=torch.tensor(has_answers),
    start_positions=torch.tensor(gold_starts), end_positions=torch.tensor(gold_ends), return_dict=True,
)  # fmt: skip
print("blocks with the answer:", has_answers)
print("spans that are the answer:", output.reader_correct.sum(1).tolist())
print(f"L_retr {output.retriever_loss:.4f}   L_read {output.reader_loss:.4f}   L {output.loss:.4f}")

# %% [markdown]
# The gradient of such a loss has the shape of notebook 4: the softmax over all minus the softmax over what is correct,
# prior minus posterior.
#
# $$\frac{\partial L}{\partial \ell_i} = p_i - \frac{[i \text{ correct}]\, p_i}{\sum_{j \text{ correct}} p_j}.$$
#
# As each span's logit holds its block's relevance score, the reader's loss also teaches the retriever. Both, by hand
# and by finite differences of the book's `loss_of_correct`:

# %%
gradients = reader.backward()  # through the reader's own weights too, into reader.grads
of_spans, _ = reader.span_logits(
    Inputs(read.input_ids, read.attention_mask, read.token_type_ids), relevance_score, block_mask(read)
)
of_spans = (of_spans - relevance_score[:, None]).double().numpy()  # S_read [beam, spans]
correct, with_answer = output.reader_correct.numpy(), np.array(has_answers)


def loss_of_scores(scores: np.ndarray) -> float:
    reader_loss, _ = textbook.loss_of_correct((of_spans + scores[:, None]).reshape(1, -1), correct.reshape(1, -1))
    return reader_loss + textbook.loss_of_correct(scores[None], with_answer[None])[0]


found = central_difference(loss_of_scores, relevance_score.double().numpy())
loss, direct = loss_of_correct(relevance_score[None], torch.tensor(has_answers)[None])
print("∂L_retr/∂S_retr, p minus p among the correct", np.round(direct[0].numpy(), 4))
print("∂L/∂S_retr by `backward`                    ", np.round(gradients["relevance_score"].numpy(), 4))
print("∂L/∂S_retr by finite differences            ", np.round(found, 4))
print("L_retr is loss_of_correct:", bool(torch.isclose(loss, output.retriever_loss)))

# %% [markdown]
# ## Exercises
#
# **1.** At BERT's sizes (5 blocks of 320 tokens, W = 10, H = 256) how many bytes does h of all spans take in float32,
# and how many the logits? How many multiplications does the split of W save, with hidden = 768?
#
# <details><summary>Solution</summary>
#
# ```python
# spans = span_count(320, 10)                        # 3155 a block
# print(5 * spans * 256 * 4 / 1e6, "MB of h")         # 16.2
# print(5 * spans * 4 / 1e6, "MB of logits")          # 0.063
# as_written, split = spans * 256 * 2 * 768, 320 * 512 * 768
# print(as_written / split)                          # 9.9
# ```
# The normalised form, the squares and the products take as much as h again, each, if every step is written to memory:
# that is what the kernel of notebook 6 avoids.
# </details>
#
# **2.** Multiply S and E of the first block by 10. What happens to the logits, and why is it not quite nothing?
#
# <details><summary>Solution</summary>
#
# relu(10 a) = 10 relu(a), and LayerNorm takes the scale out again: only $\varepsilon$ notices, because
# $\sigma^2 + \varepsilon$ becomes $100 \sigma^2 + \varepsilon$. The smaller the variance of h, the more
# $\varepsilon$ = 0.001 counts.
#
# ```python
# scaled = span_logits(SpanInputs(10 * S[:1], 10 * E[:1], *weights, **options))[0]
# print((scaled - ours).abs().max() / ours.std())
# ```
# </details>
#
# **3.** The reader alone, or the retriever alone? Choose the answer of each question by S_read without the relevance
# score, and by the best span of the retriever's first block. For how many questions do the three ways agree?
#
# <details><summary>Solution</summary>
#
# ```python
# def answers(asked):
#     found, ids = (result[0] for result in model.retrieve([asked], 5))
#     *_, read = model.retriever(ids, tokenizer([asked], return_tensors="pt").input_ids, None, config.reader_seq_len)
#     of_spans, _ = reader.span_logits(
#         Inputs(read.input_ids, read.attention_mask, read.token_type_ids), found, block_mask(read)
#     )
#     starts, ends = span_candidates(read.input_ids.shape[1], config.max_span_width)
#     alone = of_spans - found[:, None]
#     for logits in (of_spans, alone, of_spans[:1]):
#         row, candidate = divmod(int(logits.argmax()), logits.shape[1])
#         yield tokenizer.decode(read.input_ids[row, starts[candidate] : ends[candidate] + 1].tolist())
#
# for asked in questions:
#     print(asked, list(answers(asked)))
# ```
# ORQA adds the two scores, so a block that reads well but is not relevant must read better by the difference in
# relevance.
# </details>
