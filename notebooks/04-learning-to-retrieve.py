# %% [markdown]
# # 4. Learning to retrieve
#
# Nobody tells REALM which document answers what. It hides a word, retrieves documents, reads each beside the text and
# asks how probable the hidden word has become. From that alone the retriever learns. This notebook derives the gradient
# that does it (REALM, sections 3.1 and 3.3, appendix A), runs one training step line by line, puts it into a loop, and
# watches a retriever learn. Then it takes parts away, to see what each was good for.
#
# **Needed before:** the chain rule, the softmax, and what an embedding is (notebook 2, last part).
#
# **After it you can** derive r(z) with a pen, write REALM's training step from the book's functions, and say what the
# null document, the bar, the Inverse Cloze Task and the index refresh are for. About an hour.
#
# | paper | here | shape |
# | --- | --- | --- |
# | $x$, a text with a hidden word | `x`, ids; embedded, [batch, proj] | [tokens] |
# | $z$, a document | `z`, ids; embedded, [documents, proj] | [tokens] |
# | $y = (y_1, \dots, y_J)$, what is hidden | `labels`, -100 where nothing is hidden | [batch, tokens] |
# | $f(x, z) = \mathrm{Embed}(x)^\top \mathrm{Embed}(z)$ | `relevance` | [batch, candidates] |
# | $\log p(y_j \mid z, x)$ | `log_likelihood` | [batch, candidates, words] |
#
# Everything is NumPy, and the functions are those of the book, `realm_min/textbook.py`.
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
import copy
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy comes: for matrices this small threads only wait

import matplotlib.pyplot as plt
import numpy as np

from realm_min import textbook_example as example
from realm_min.app.figures import for_a_room, show
from realm_min.textbook import (
    MASK,
    NO_LABEL,
    embed,
    embed_backward,
    ict_step,
    join,
    log_softmax,
    marginal_log_likelihood,
    marginal_log_likelihood_backward,
    masked_words,
    masked_words_backward,
    pretrain_step,
    salient_spans,
    search,
    softmax,
    split_words,
)
from realm_min.verify.differences import central_difference

SEED = 0
for_a_room()

# %% [markdown]
# ## A sum over documents
#
# Retriever and encoder make one distribution, with the document as the latent variable (equation 1):
#
# $$p(y \mid x) = \sum_z p(y \mid z, x)\, p(z \mid x), \qquad
#   p(z \mid x) = \frac{\exp f(x, z)}{\sum_{z'} \exp f(x, z')}.$$
#
# The loss is $-\log p(y \mid x)$. Take four documents that the retriever cannot tell apart yet, so p(z|x) = 1/4 each.
# The first makes y likely, the second helps a little, the others do not:

# %%
likelihood = np.array([0.8, 0.2, 0.05, 0.05])  # p(y|z,x)
relevance = np.zeros((1, 4))  # [batch, candidates]
log_likelihood = np.log(likelihood)[None, :, None]  # [batch, candidates, words]: one hidden word

log_p, kept = marginal_log_likelihood(log_likelihood, relevance)
print(f"p(y|x) by hand   {(likelihood / 4).sum():.4f}")
print(f"p(y|x) from log  {np.exp(log_p[0, 0]):.4f}, the loss is {-log_p[0, 0]:.4f} nats")

# %% [markdown]
# ## The gradient, derived
#
# How does $\log p(y \mid x)$ change with one score $f(x, z)$? First the softmax. With $[\cdot]$ one where its argument
# holds and zero elsewhere,
#
# $$\frac{\partial p(z' \mid x)}{\partial f(x, z)} = p(z' \mid x)\,\bigl([z' = z] - p(z \mid x)\bigr).$$
#
# Only $p(z' \mid x)$ depends on the scores; $p(y \mid z', x)$ does not. So
#
# $$\frac{\partial \log p(y \mid x)}{\partial f(x, z)}
#   = \frac{1}{p(y \mid x)} \sum_{z'} p(y \mid z', x)\, p(z' \mid x)\,\bigl([z' = z] - p(z \mid x)\bigr)
#   = \frac{p(y \mid z, x)\, p(z \mid x)}{p(y \mid x)} - p(z \mid x).$$
#
# The first term is what Bayes' rule gives for the document once the word is known, the *posterior* $p(z \mid x, y)$.
# So there are two ways to say it. The second is the paper's, with its $r(z)$:
#
# $$\frac{\partial \log p(y \mid x)}{\partial f(x, z)} = \underbrace{p(z \mid x, y)}_{\text{posterior}}
#   - \underbrace{p(z \mid x)}_{\text{prior}}
#   = \underbrace{\Bigl[\frac{p(y \mid z, x)}{p(y \mid x)} - 1\Bigr] p(z \mid x)}_{r(z)}.$$
#
# A document is pushed up exactly as far as it predicts y better than the mixture does, and down if it predicts y worse.
# A document that the retriever gives no probability is not moved at all, however useful it is. It has to be found by
# some chance first. That is why REALM starts from the Inverse Cloze Task.
#
# The other branch is as short: $\partial \log p(y \mid x) / \partial \log p(y \mid z, x) = p(z \mid x, y)$. What the
# encoder learns from a document is weighed by the posterior, so it learns most from the document that helped.

# %%
dlog_likelihood, drelevance = marginal_log_likelihood_backward(np.ones((1, 1)), kept)  # of log p(y|x)
prior, posterior = softmax(relevance)[0], dlog_likelihood[0, :, 0]
print("z                 ", *(f"{z:7d}" for z in range(4)))
for name, values in {
    "p(z|x)": prior,
    "p(y|z,x)": likelihood,
    "p(z|x,y)": posterior,
    "posterior - prior": posterior - prior,
    "r(z)": (likelihood / np.exp(log_p[0, 0]) - 1) * prior,
    "drelevance": drelevance[0],
}.items():
    print(f"{name:18}", *(f"{value:7.3f}" for value in values))

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), sharey=True)
z = np.arange(4)
for axis, scores in zip(axes, ([0, 0, 0, 0], [2, 0, 0, 0], [-4, 3, 0, 0]), strict=True):
    before = softmax(np.array(scores, float))
    after = before * likelihood / (before * likelihood).sum()
    axis.bar(z - 0.2, before, 0.38, color="0.75", label="p(z|x)")
    axis.bar(z + 0.2, after, 0.38, color="C0", label="p(z|x,y)")
    for i in range(4):
        arrow = dict(arrowstyle="->", color="C2" if after[i] > before[i] else "C3", linewidth=2)
        axis.annotate("", (i, after[i]), (i, before[i]), arrowprops=arrow)
    axis.set(xticks=z, xlabel="document z", title=f"f = {scores}")
axes[0].set_ylabel("probability")
axes[0].legend()
show(figure, "Three panels of prior and posterior for four documents. Arrows from prior to posterior are the "
     "gradient: long where the retriever knows nothing, short where it is right, and nearly absent for a "
     "useful document that has no probability.")  # fmt: skip

# %% [markdown]
# The arrows are the gradient. On the left the retriever knows nothing and learns much. In the middle it is nearly
# right, and little is left to learn. On the right it is wrong, and sure of it: the useful document 0 has a probability
# of a thousandth. It is four times as good as document 1, and still the gradient lifts 1 most, because 1 predicts y
# better than the mixture does.
#
# Appendix B of the paper takes the extreme: one document $z^*$ has $p(y \mid z^*, x) = 1$ and all others 0. Then the
# posterior is 1 at $z^*$, and the gradient is $[z = z^*] - p(z \mid x)$. That is supervised learning of the retriever,
# with a label that nobody gave.
#
# ## From scores to embeddings, from words to logits
#
# $f$ is an inner product, so the gradient of each side is the other side, weighed by $r$:
#
# $$\frac{\partial \log p(y \mid x)}{\partial \mathrm{Embed}(x)} = \sum_z r(z)\, \mathrm{Embed}(z), \qquad
#   \frac{\partial \log p(y \mid x)}{\partial \mathrm{Embed}(z)} = r(z)\, \mathrm{Embed}(x).$$
#
# The text moves towards the documents that helped, and they towards it. And with $p(y_j \mid z, x)$ the softmax of the
# encoder's logits $\ell$, a word $w$ gets
# $\partial \log p(y \mid x) / \partial \ell_w = p(z \mid x, y)\,\bigl([w = y_j] - p(w \mid z, x)\bigr)$: the gradient
# of BERT's own pre-training, times the posterior.
#
# ## A token or the whole span
#
# Where y has several words, equation 1 is about all of them at once: $p(y \mid z, x) = \prod_j p(y_j \mid z, x)$, and
# one document has to explain them together. transformers marginalises each word on its own, so one document may explain
# the first word and another the second. Three documents and "Niels Bohr":

# %%
words = np.log([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])[None]  # log p(y_j|z,x) [batch, candidates, words]
for name, log_likelihood in (("each word", words), ("whole span", words.sum(2, keepdims=True))):
    log_p, kept = marginal_log_likelihood(log_likelihood, np.zeros((1, 3)))
    r = marginal_log_likelihood_backward(np.ones_like(log_p), kept)[1][0]
    pushed = ", ".join(f"{round(float(value), 3) + 0:+.3f}" for value in r)
    print(f"{name:10}  loss {-log_p.sum() / 2:.3f} nats a word   documents pushed by {pushed}")

# %% [markdown]
# With single tokens the three documents are equally good, and nothing is learnt. The whole span prefers the third, the
# only one that knows something of both words. `pretrain_step` takes `whole_span`; where one wordpiece is hidden, as in
# what follows, both are the same.
#
# ## One step, slowly
#
# The documents are lines of the CIA World Factbook, a fact each, and beside every line a *note*: its first word and its
# names and numbers. A corpus says most facts more than once, and so does this one. The last document is the *null
# document* ∅, which is empty. Two small models, an embedder and an encoder of one layer each, start from random
# weights.

# %%
rng = np.random.default_rng(SEED)
lines = example.lines_of(None)
facts, vocabulary = example.facts_of(lines, rng)  # 120 facts (x, y, z) in ids; every word is one piece
notes = [[*fact.x[:-1], fact.y] for fact in facts]
documents = [*(fact.z for fact in facts), *notes, []]
N, NULL = len(facts), len(documents) - 1
c, initial = example.models(vocabulary, rng)
p = copy.deepcopy(initial)
print(f"{N} lines, {N} notes, 1 null document; {vocabulary} words")

# %% [markdown]
# **1. Hide.** What is hidden must be worth finding. A name or a number mostly needs knowledge of the world, the word
# "of" needs grammar. `salient_spans` is the book's plain stand-in for the paper's tagger: capitals and digits.

# %%
line = next(line for line in lines if line.startswith("Costa Rica. Capital - name"))
words = split_words(line)
places = salient_spans(words)
print("z   ", line)
print("note", " ".join([words[0], *(words[i] for i in places)]))
print("x   ", " ".join([words[0], *(words[i] for i in places[:-1]), "[MASK]"]), "    y", words[places[-1]])

# %% [markdown]
# The paper draws one of the salient spans. Here it is always the last, so that a very small encoder has one kind of
# thing to copy. A batch of texts x:

# %%
picked = np.array([40, 57, 85, 99])  # numbers of facts
x_batch = example.texts([facts[i] for i in picked])  # ids, mask, types [batch, tokens]
y = np.array([facts[i].y for i in picked])
print("x_batch", x_batch[0].shape, " y", y.shape)

# %% [markdown]
# **2. Retrieve.** The *index* is Embed(z) of every document, made some steps ago. The text's own note is *barred*: x
# was made from it, so the answer stands in it, word for word, and finding it teaches nothing.
#
# **3. Add the null document.** A text that needs no evidence can give it the credit. Every other document then has to
# be better than nothing.

# %%
CANDIDATES = 7  # and the null document: 8, as in the paper
index, _ = embed(p["embedder"], c, join([(z,) for z in documents[:NULL]]))  # [lines and notes, proj]
x, kept_x = embed(p["embedder"], c, x_batch)  # [batch, proj]
found = search(x, index, CANDIDATES, barred=np.arange(NULL) == (N + picked)[:, None])  # [batch, 7]
candidates = np.pad(found, ((0, 0), (0, 1)), constant_values=NULL)  # [batch, 8]
print("candidates of the first text:", candidates[0], " barred:", N + picked[0])

# %% [markdown]
# **4. Relevance with fresh weights.** The index is stale and has no gradient, it only says *which* documents are worth
# computing. Those are embedded anew, each once, and p(z|x) is the softmax over them.

# %%
distinct, places = np.unique(candidates, return_inverse=True)
places = places.reshape(candidates.shape)  # of each candidate among the distinct ones
z_batch = join([(documents[z],) for z in distinct])
z, kept_z = embed(p["embedder"], c, z_batch)  # [distinct, proj]
relevance = np.take_along_axis(x @ z.T, places, 1)  # f(x, z) [batch, candidates]
print("z", z.shape, " f(x, z)", relevance.shape, " p(z|x) of the first text", softmax(relevance)[0].round(3))

# %% [markdown]
# **5. Read.** The encoder reads every text beside every candidate, "[CLS] x [SEP] z [SEP]", and says how likely the
# hidden word is.

# %%
pairs = join([(facts[i].x, documents[z]) for i, row in zip(picked, candidates, strict=True) for z in row])
labels = np.where(pairs[0][:: CANDIDATES + 1] == MASK, y[:, None], NO_LABEL)  # [batch, tokens]
log_p, kept_y = masked_words(p["encoder"], c, pairs, labels.repeat(CANDIDATES + 1, 0))  # [pairs, tokens]
log_likelihood = log_p.reshape(*candidates.shape, -1).sum(2, keepdims=True)  # log p(y|z,x) [batch, candidates, 1]
print("pairs", pairs[0].shape, " log p(y|z,x)", log_likelihood.shape)

# %% [markdown]
# **6. Equation 1**, and **7. its two gradients**, of the loss $-\log p(y|x)$, hence the sign.

# %%
log_marginal, kept = marginal_log_likelihood(log_likelihood, relevance)  # log p(y|x) [batch, 1]
loss = -log_marginal.sum()
dlog_likelihood, drelevance = marginal_log_likelihood_backward(-np.ones_like(log_marginal), kept)
print(f"loss {loss / len(picked):.3f} nats a text; with all words equally likely it would be {np.log(vocabulary):.3f}")
print("posterior of the first text", -dlog_likelihood[0, :, 0].round(3))
print("r(z) of the first text     ", -drelevance[0].round(3))

# %% [markdown]
# **8. Back into the weights.** The first gradient goes into the encoder: each pair gets that of its document. The
# second goes to both sides of $f = x \cdot z$, and from there into the embedder, twice, since texts and documents share
# it.

# %%
g = {model: {name: np.zeros_like(value) for name, value in p[model].items()} for model in p}
masked_words_backward(np.broadcast_to(dlog_likelihood, (*candidates.shape, labels.shape[1])).reshape(log_p.shape),
                      kept_y, g["encoder"])  # fmt: skip
df = np.zeros((len(x), len(z)), x.dtype)  # [batch, distinct]
np.put_along_axis(df, places, drelevance, 1)
embed_backward(df @ z, kept_x, g["embedder"])
embed_backward(df.T @ x, kept_z, g["embedder"])

whole = pretrain_step(p, c, (x_batch, z_batch, places, pairs, labels))
same = all(np.allclose(g[model][name], value, atol=1e-6) for model in g for name, value in whole[2][model].items())
print("as the book's pretrain_step: loss", bool(np.isclose(whole[0], loss)), " all gradients", same)

# %% [markdown]
# **9. Update.** The loss was a sum over texts, so the gradients are divided by their number; then BERT's Adam moves
# both models (`adamw`, in `example.update`).
#
# ## Checked by finite differences
#
# A derivation can be wrong, and so can its code. A *central difference* knows neither: it moves one number by
# $\pm\varepsilon$ and looks at the loss. First the relevance scores of this very step, in float64, for many ε:

# %%
exact = log_likelihood.astype(float), relevance.astype(float)


def loss_of_scores(scores: np.ndarray) -> float:
    return -float(marginal_log_likelihood(exact[0], scores)[0].sum())


_, kept = marginal_log_likelihood(*exact)
derived = marginal_log_likelihood_backward(-np.ones((len(picked), 1)), kept)[1]
steps = 10.0 ** np.arange(-13, 1)
errors = [np.abs(central_difference(loss_of_scores, exact[1], eps) - derived).max() for eps in steps]
figure, axis = plt.subplots(figsize=(6.5, 3.4))
axis.loglog(steps, errors, "o-", label="difference to the derivation")
axis.loglog(steps, 1e-15 / steps, "k:", linewidth=1, label="rounding, 1/ε")
axis.loglog(steps, 2e-2 * steps**2, "k--", linewidth=1, label="truncation, ε²")
axis.set(xlabel="ε", ylabel="largest difference", ylim=(1e-13, 1))
axis.legend()
show(figure, "The difference between derived and measured gradient against epsilon on two logarithmic axes: a "
     "valley, falling from the left with rounding, rising to the right with epsilon squared.")  # fmt: skip
print("smallest difference below 1e-8:", min(errors) < 1e-8)

# %% [markdown]
# The valley is how one knows that both are right: a wrong gradient would level off at its own error. To the right the
# difference quotient is coarse, to the left it drowns in the rounding of float64.
#
# And all the way down, into every weight of both models. Each weight tensor is moved along a random direction $d$, and
# $(L(\theta + \varepsilon d) - L(\theta - \varepsilon d)) / 2\varepsilon$ is held against the inner product of $d$ with
# the gradient.

# %%
wide = {model: {name: value.astype(float) for name, value in p[model].items()} for model in p}
batches = x_batch, z_batch, places, pairs, labels
gradients = pretrain_step(wide, c, batches)[2]
direction_rng, worst, largest, checked = np.random.default_rng(SEED), 0.0, 0.0, 0
for model in wide:
    for name in wide[model]:
        value, d = wide[model][name], direction_rng.standard_normal(wide[model][name].shape)
        ends = []
        for sign in (1, -1):
            wide[model][name] = value + sign * 1e-5 * d
            ends.append(pretrain_step(wide, c, batches)[0])
        wide[model][name] = value
        by_difference = (ends[0] - ends[1]) / 2e-5
        worst = max(worst, abs(by_difference - (gradients[model][name] * d).sum()))
        largest, checked = max(largest, abs(by_difference)), checked + 1
print(f"{checked} weight tensors; largest difference below 1e-6 of the largest derivative:", worst < 1e-6 * largest)

# %% [markdown]
# ## The loop
#
# Before the loop the encoder must be able to use a document, or every document is as good as any other, r(z) is 0 and
# the retriever learns nothing. So it first learns to copy: it gets x beside its line, but with another y dealt into
# both at every step, so that there is nothing to remember (`learn_to_copy`, no retriever in it). BERT's pre-training
# does this for the paper.

# %%
copied = example.learn_to_copy(p, c, facts, rng)
print("the encoder can copy from a document beside it:", copied[-1] < 0.5 < copied[0])

# %% [markdown]
# Now the steps above, again and again. Twice in a loop something is chosen that the steps above only mentioned: every
# `refresh` steps the index is made anew, and a quarter of the facts is never asked about, to see what carries over.

# %%
STEPS, BATCH = 60, 8


def embed_index(p: dict) -> np.ndarray:
    return embed(p["embedder"], c, join([(z,) for z in documents[:NULL]]))[0]


def batch_of(p: dict, index: np.ndarray, picked: np.ndarray, bar: bool = True) -> tuple:
    """Parts 1 to 5: what a step reads."""
    x_batch = example.texts([facts[i] for i in picked])
    own = np.arange(NULL) == (N + picked)[:, None]  # [batch, lines and notes]
    found = search(embed(p["embedder"], c, x_batch)[0], index, CANDIDATES, own if bar else False)
    candidates = np.pad(found, ((0, 0), (0, 1)), constant_values=NULL)
    distinct, places = np.unique(candidates, return_inverse=True)
    pairs, labels = example.pairs_and_labels([facts[i] for i in picked], documents, candidates)
    return x_batch, join([(documents[z],) for z in distinct]), places.reshape(candidates.shape), pairs, labels


def pretrain(p: dict, steps: int = STEPS, refresh: int = 5, bar: bool = True, rates: dict | None = None) -> tuple:
    """REALM's pre-training of p, in place -> losses [steps], and Embed of texts and index after every second step."""
    rng, moments, losses, snapshots = np.random.default_rng(SEED), {}, [], []
    for step in range(steps):
        if step % refresh == 0:
            index = embed_index(p)
        if step % 2 == 0:
            snapshots.append((embed(p["embedder"], c, example.texts(facts))[0], embed_index(p)))
        picked = rng.integers(N // 4, N, size=BATCH)  # the first quarter is never asked about
        loss, count, g = pretrain_step(p, c, batch_of(p, index, picked, bar))
        rate = example.schedule(rates or {"encoder": 2e-4, "embedder": 1e-3}, step, steps)
        example.update(p, g, count, moments, rate)
        losses.append(float(loss / count))
    return losses, [*snapshots, (embed(p["embedder"], c, example.texts(facts))[0], embed_index(p))]


def found_first(snapshot: tuple) -> np.ndarray:
    """Whether a text's line comes first among all documents but its own note: bool [facts]."""
    x, z = snapshot
    return search(x, z, 1, np.eye(N, NULL, k=N, dtype=bool))[:, 0] == np.arange(N)


learnt = copy.deepcopy(p)
losses, snapshots = pretrain(learnt)

# %% tags=["varies"]
steps = np.array([*range(0, STEPS, 2), STEPS])
print("step   loss, mean of the last 10   line found first: asked about, never asked about")
for step in range(0, STEPS + 1, 10):
    first = found_first(snapshots[step // 2])
    loss = f"{np.mean(losses[max(0, step - 10) : step]):4.2f}" if step else "   –"
    print(f"{step:4d}   {loss:>8}                    {first[N // 4 :].mean():9.0%} {first[: N // 4].mean():22.0%}")

# %% [markdown]
# *Found first* is for the measurement alone: training never sees which line belongs to a text. Chance is 1 in 240.
#
# ### p(z|x), moving
#
# One text and the documents that matter for it, at four moments. Grey is the prior, blue the posterior: where the
# gradient is going.

# %% tags=["varies"]
fact = int(np.flatnonzero(found_first(snapshots[-1])[N // 4 :])[0]) + N // 4
moments = [5, 10, 15, 30]
relevance = np.array([snapshots[m][0][fact] @ snapshots[m][1].T for m in moments])  # [moments, documents]
relevance[:, N + fact] = -np.inf  # barred
shown = np.argsort(-relevance.max(0))[:6]
shown = np.array([fact, *(z for z in shown if z != fact)][:6])
pairs, labels = example.pairs_and_labels([facts[fact]], documents, np.arange(NULL)[None])
log_p = masked_words(learnt["encoder"], c, pairs, labels.repeat(NULL, 0))[0].sum(1)  # log p(y|z,x) [documents]
figure, axes = plt.subplots(1, 4, figsize=(10, 3.4), sharey=True)
for axis, m, scores in zip(axes, moments, relevance, strict=True):
    prior, posterior = softmax(scores), softmax(scores + log_p)
    axis.barh(np.arange(6) - 0.2, prior[shown], 0.38, color="0.75", label="p(z|x)")
    axis.barh(np.arange(6) + 0.2, posterior[shown], 0.38, color="C0", label="p(z|x,y)")
    axis.set(title=f"step {2 * m}", xlim=(0, 1), xlabel="probability")
axes[0].set_yticks(range(6), [("line" if z < N else "note") + f" {z % N}" + (", its own" if z == fact else "")
                              for z in shown])  # fmt: skip
axes[0].invert_yaxis()
axes[-1].legend(loc="lower right")
show(figure, "Prior and posterior of six documents at four steps. The posterior of the text's own line is ahead of "
     "its prior, and the prior follows until both are near one.")  # fmt: skip

# %% [markdown]
# The blue bar runs ahead, and the grey one follows: the gradient is the distance between them. In the end they agree,
# and nothing is left to learn from this text. (The posterior is by the encoder as it is in the end.)
#
# ## What each part is good for
#
# ### Is it really that gradient?
#
# The same loop, but the embedder gets no update: its gradient is thrown away. The encoder learns as before. And a third
# run in which nothing is barred.

# %%
control, open_run = copy.deepcopy(p), copy.deepcopy(p)
control_losses, control_snapshots = pretrain(control, steps=20, rates={"encoder": 2e-4})
open_losses, open_snapshots = pretrain(open_run, steps=30, bar=False)


def own_note(snapshot: tuple) -> float:
    """p(z|x) of the note that x was made from, nothing barred, mean over the texts."""
    x, z = snapshot
    return float(np.exp(log_softmax(x @ z.T))[np.arange(N), N + np.arange(N)].mean())


asked = slice(N // 4, N)
print("the control's retriever has not moved:", np.array_equal(control_snapshots[0][1], control_snapshots[-1][1]))
print("without the bar it finds the note rather than the line:",
      own_note(open_snapshots[-1]) > 0.5 > found_first(open_snapshots[-1])[asked].mean())  # fmt: skip

# %% tags=["varies"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True)
for title, axis, value in (
    ("the line is found first", axes[0], lambda s: found_first(s)[asked].mean()),
    ("p(z|x) of the note x was made from", axes[1], own_note),
):
    for name, run, colour in (("as REALM does", snapshots, "C0"), ("no gradient", control_snapshots, "C1"),
                              ("no bar", open_snapshots, "C3")):  # fmt: skip
        axis.plot(2 * np.arange(len(run)), [value(s) for s in run], color=colour, label=name)
    axis.set(title=title, xlabel="step", ylim=(0, 1.02))
axes[0].legend()
show(figure, "Two panels over the steps. With REALM's gradient and the bar the line is found first ever more often; "
     "without the gradient never. Without the bar it goes to the note first, within ten steps.")  # fmt: skip

# %% [markdown]
# Without its gradient the retriever stays where chance put it. Without the bar it runs to the note: within ten steps
# the note has most of the probability, before any line is found. The answer can be copied from it, so little is left to
# learn, and the line follows later and less far, only because line and note share words. At question time there is no
# note to copy from. With the bar the order is the other way round.
#
# ### The Inverse Cloze Task: what in-batch negatives see
#
# A document that is never retrieved gets no gradient, so REALM starts from a retriever that has some idea. ORQA's warm
# start, the *Inverse Cloze Task*, takes a sentence as the question and its surroundings as the right answer, and all
# *other blocks of the batch* as wrong ones. Nothing is searched: the scores are one small matrix.
#
# $$L = -\sum_i \log \frac{\exp (x_i \cdot z_i)}{\sum_j \exp (x_i \cdot z_j)}, \qquad
#   \frac{\partial L}{\partial (x_i \cdot z_j)} = p(z_j \mid x_i) - [i = j].$$
#
# It is equation 1 with one right document that is known. Here the note, without its last word, asks for its line.

# %%
ict, rng, moments = copy.deepcopy(initial), np.random.default_rng(SEED), {}
before = {name: value.copy() for name, value in ict["embedder"].items()}
for step in range(40):
    chosen = [facts[i] for i in rng.choice(np.arange(N // 4, N), 16, replace=False)]
    loss, count, g = ict_step(ict["embedder"], c, example.texts(chosen), example.documents_of(chosen))
    example.update(ict, {"embedder": g}, count, moments, example.schedule({"embedder": 1e-3}, step, 40))


def share_right(weights: dict, negatives: int) -> float:
    """How often a text's line beats `negatives` lines drawn at random."""
    x, z = (embed(weights, c, batch)[0] for batch in (example.texts(facts), example.documents_of(facts)))
    better = (x @ z.T > (x * z).sum(1, keepdims=True)).sum(1)  # lines ahead of the right one, [facts]
    draws = np.random.default_rng(1).permuted(np.tile(np.arange(N - 1), (N, 1)), axis=1)[:, :negatives]
    return float((draws >= better[:, None]).all(1).mean())


# %% tags=["varies"]
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.5))
chosen = [facts[i] for i in range(40, 56)]
for axis, (title, weights) in zip(axes, {"before": before, "after 40 steps": ict["embedder"]}.items(), strict=False):
    x, z = (embed(weights, c, batch)[0] for batch in (example.texts(chosen), example.documents_of(chosen)))
    axis.imshow(softmax(x @ z.T), cmap="Blues", vmin=0, vmax=1)
    axis.set(title=f"p(z|x) in a batch, {title}", xlabel="block of the batch", ylabel="sentence")
counts = [1, 3, 7, 15, 31, 63, N - 1]
for name, weights, colour in (("before", before, "0.6"), ("after", ict["embedder"], "C0")):
    axes[2].semilogx(counts, [share_right(weights, n) for n in counts], "o-", color=colour, label=name)
axes[2].axvline(15, color="C3", linestyle=":", label="a batch of 16")
axes[2].set(xlabel="number of wrong lines", ylabel="right line first", ylim=(0, 1.02))
axes[2].legend()
show(figure, "Two matrices of p(z|x) within a batch: scattered before, a dark diagonal after training. A curve: the "
     "right line comes first among 15 others nearly always, among all lines less often.")  # fmt: skip

# %% [markdown]
# The diagonal is right, all else is wrong *in this batch*. That is all the loss sees: to beat 15 others drawn at random
# is easy, and once that is done hardly any gradient is left, although among all lines the right one is still often
# second. More negatives see more: ORQA takes batches of 4,096, and even that is a sample of 13 million. Searching, as
# REALM does, brings the hardest ones.
#
# ### The refresh: what staleness costs
#
# The index is embedded with old weights. How different does it become, and does it matter? First the index alone: of
# the 7 documents that the index of some steps ago finds, how many would the fresh one find?

# %%
stale_run = copy.deepcopy(p)
stale_losses, stale_snapshots = pretrain(stale_run, refresh=STEPS)


def overlap(now: int, ago: int) -> float:
    """Share of the 7 best by the weights of snapshot `now` that the index of snapshot `now - ago` also finds."""
    x, fresh = snapshots[now]
    right, got = (search(x, z, CANDIDATES, np.eye(N, NULL, k=N, dtype=bool)) for z in (fresh, snapshots[now - ago][1]))
    return float((right[:, :, None] == got[:, None]).any(2).mean())


# %% tags=["varies"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4))
ages = np.arange(0, 16)
for now, colour in ((16, "C1"), (30, "C0")):
    axes[0].plot(2 * ages, [overlap(now, age) for age in ages], "o-", color=colour, label=f"at step {2 * now}")
axes[0].set(xlabel="age of the index, steps", ylabel="share of the 7 best found", ylim=(0, 1.02))
for name, run, colour in (("every 5 steps", snapshots, "C0"), ("never", stale_snapshots, "C3")):
    axes[1].plot(steps, [found_first(s)[asked].mean() for s in run], color=colour, label=f"refreshed {name}")
axes[1].set(xlabel="step", ylabel="line found first", ylim=(0, 1.02))
for axis in axes:
    axis.legend()
show(figure, "Left: the share of the best documents that an index finds falls with its age. Right: with an index "
     "refreshed every five steps the retriever learns more than with one that is never refreshed.")  # fmt: skip
print(f"line found first: {found_first(snapshots[-1])[asked].mean():.0%} with the refresh, ", end="")
print(f"{found_first(stale_snapshots[-1])[asked].mean():.0%} without")

# %% [markdown]
# A stale index never makes a gradient wrong: relevance is computed with fresh weights. It chooses the wrong documents
# to compute it for, so the useful ones get no gradient, or too late. This retriever starts from random weights and
# changes beyond recognition in sixty steps, so an index that is never refreshed finds nothing of use. The paper's
# starts from the Inverse Cloze Task and changes slowly; there an index that is 30 times as stale costs 10 points of
# exact match (table 2). `realm-min pretrain` builds it anew in a process of its own, while training goes on, and
# reports its age.
#
# ## Exercises
#
# **1.** Show that the gradients over the candidates sum to zero, for any likelihoods. What does it mean for adding a
# constant to all scores?
#
# <details><summary>Solution</summary>
#
# The posterior and the prior both sum to one, so their difference sums to zero. Hence $\frac{d}{dc} \log p(y \mid x)$
# for scores $f(x, z) + c$, which is that sum, is 0: a softmax cannot see a common constant. Pushing one document up
# always pushes others down.
#
# ```python
# some, scores = -np.random.default_rng(0).exponential(size=(1, 7, 3)), np.arange(7.0)[None]
# log_p, kept = marginal_log_likelihood(some, scores)
# print(marginal_log_likelihood_backward(np.ones_like(log_p), kept)[1].sum())           # 0 but for rounding
# print(log_p - marginal_log_likelihood(some, scores + 5)[0])
# ```
# </details>
#
# **2.** The word "of" is hidden, and every document predicts it with $p(y \mid z, x) = 0.99$, the null document too.
# What does the retriever learn from it? What follows for the choice of what to hide (REALM, section 3.4)?
#
# <details><summary>Solution</summary>
#
# Nothing: $p(y \mid z, x) = p(y \mid x)$ for all z, so $r(z) = 0$. Only words that some documents predict better than
# others teach the retriever, and names and dates are such words. So REALM hides *salient spans*; the ablation in the
# paper's table 2 shows what random masks cost.
#
# ```python
# log_p, kept = marginal_log_likelihood(np.full((1, 5, 1), np.log(0.99)), np.arange(5.0)[None])
# print(marginal_log_likelihood_backward(np.ones_like(log_p), kept)[1])                  # zeros but for rounding
# ```
# </details>
#
# **3.** REALM cannot sum over 13 million documents: it takes the top k. What is the retriever's gradient at k = 1? What
# changes with the null document beside it?
#
# <details><summary>Solution</summary>
#
# With one candidate prior and posterior are both 1 and the gradient is 0, whatever the document: there is nothing to
# compare it with. With ∅ beside it, it is compared with reading nothing, and gains if it helps at all. That is the
# *retrieval utility* of the paper's appendix D, log p(y|z,x) - log p(y|∅,x); training logs that of all candidates
# together, log p(y|x) - log p(y|∅,x).
#
# ```python
# for likelihoods in ([0.8], [0.8, 0.1], [0.05, 0.1]):
#     log_p, kept = marginal_log_likelihood(np.log(likelihoods)[None, :, None], np.zeros((1, len(likelihoods))))
#     print(likelihoods, marginal_log_likelihood_backward(np.ones_like(log_p), kept)[1])
# ```
# </details>
