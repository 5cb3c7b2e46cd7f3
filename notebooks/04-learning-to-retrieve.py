# %% [markdown]
# # 4. Learning to retrieve
#
# Nobody tells REALM which document answers what. It masks a word, retrieves documents, reads each beside the text and
# asks how probable the masked word has become. From that alone the retriever learns. This notebook derives the
# gradient that does it (REALM, sections 3.1 and 3.3, appendix A), checks it by finite differences, and then watches a
# retriever learn: p(z|x) moving step by step.
#
# | paper | here | shape |
# | --- | --- | --- |
# | $x$, a text with masks | `questions`, ids | [tokens] |
# | $z$, a document | a `Block`, one of the candidates | [tokens] |
# | $y = (y_1, \dots, y_J)$, the masked words | `labels`, -100 where nothing is masked | [batch, tokens] |
# | $f(x, z) = \mathrm{Embed_{input}}(x)^\top \mathrm{Embed_{doc}}(z)$ | `relevance_score` | [batch, candidates] |
# | $p(z \mid x)$ | `softmax(relevance_score)` | [batch, candidates] |
# | $\log p(y_j \mid z, x)$ | `log_likelihood` | [batch, candidates, tokens] |
#
# The code is the first part of `realm_min/model/realm.py` (`marginal_loss` and `marginal_loss_backward`) and, for the
# run at the end, `realm_min/app/learn.py`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from realm_min import RealmEmbedder, RealmKnowledgeAugEncoder, textbook
from realm_min.app import learn
from realm_min.model import ops
from realm_min.model.realm import IGNORED, marginal_loss, marginal_loss_backward
from realm_min.verify.differences import central_difference

SEED = 0
torch.set_num_threads(2)
torch.manual_seed(SEED)
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## A sum over documents
#
# The retriever and the reader of documents make one distribution, with the document as the latent variable (equation
# 1):
#
# $$p(y \mid x) = \sum_z p(y \mid z, x)\, p(z \mid x), \qquad
#   p(z \mid x) = \frac{\exp f(x, z)}{\sum_{z'} \exp f(x, z')}.$$
#
# The loss is $-\log p(y \mid x)$. Take four documents that the retriever cannot tell apart yet, so p(z|x) = 1/4 each,
# of which the first makes y likely, the second helps a little and the others do not:

# %%
likelihood = torch.tensor([0.8, 0.2, 0.05, 0.05], dtype=torch.float64)  # p(y|z,x)
relevance_score = torch.zeros(1, 4, dtype=torch.float64)  # [batch, candidates]
log_likelihood = likelihood.log()[None, :, None]  # [batch, candidates, tokens]: one masked word

loss, kept = marginal_loss(log_likelihood, relevance_score)
print(f"p(y|x) by hand   {(likelihood / 4).sum():.4f}")
print(f"p(y|x) from loss {(-loss).exp():.4f}, the loss is {loss:.4f} nats")

# %% [markdown]
# ## The gradient, derived
#
# How does $\log p(y \mid x)$ change with one score $f(x, z)$? First the softmax. With $[\cdot]$ one where its argument
# holds and zero elsewhere,
#
# $$\frac{\partial p(z' \mid x)}{\partial f(x, z)} = p(z' \mid x)\,\bigl([z' = z] - p(z \mid x)\bigr).$$
#
# Only $p(z' \mid x)$ depends on the scores, and $p(y \mid z', x)$ does not, so
#
# $$\frac{\partial \log p(y \mid x)}{\partial f(x, z)}
#   = \frac{1}{p(y \mid x)} \sum_{z'} p(y \mid z', x)\, p(z' \mid x)\,\bigl([z' = z] - p(z \mid x)\bigr)
#   = \frac{p(y \mid z, x)\, p(z \mid x)}{p(y \mid x)} - p(z \mid x).$$
#
# The first term is what Bayes' rule gives for the document once the word is known, the *posterior* $p(z \mid x, y)$.
# So there are two ways to say it, the second being the paper's, with its $r(z)$:
#
# $$\frac{\partial \log p(y \mid x)}{\partial f(x, z)} = \underbrace{p(z \mid x, y)}_{\text{posterior}}
#   - \underbrace{p(z \mid x)}_{\text{prior}}
#   = \underbrace{\Bigl[\frac{p(y \mid z, x)}{p(y \mid x)} - 1\Bigr] p(z \mid x)}_{r(z)}.$$
#
# A document is pushed up exactly as far as it predicts y better than the mixture does, and down if it predicts y
# worse. Documents that the retriever gives no probability are not moved at all, however useful they are: it has to
# find them by some chance first, which is why REALM starts from the Inverse Cloze Task.
#
# The other branch is as short. $\partial \log p(y \mid x) / \partial \log p(y \mid z, x) = p(z \mid x, y)$: what the
# encoder learns from a document is weighed by the posterior too, so it learns most from the document that helped.
#
# `marginal_loss_backward` returns both, for the loss, hence with the sign turned:

# %%
dlog_likelihood, drelevance = marginal_loss_backward(torch.ones(()), kept)
prior = ops.softmax(relevance_score)[0]  # p(z|x) [candidates]
posterior = -dlog_likelihood[0, :, 0]  # p(z|x,y) [candidates]
print("z                 ", *(f"{z:7d}" for z in range(4)))
for name, values in (
    ("p(z|x)", prior),
    ("p(y|z,x)", likelihood),
    ("p(z|x,y)", posterior),
    ("posterior - prior", posterior - prior),
    ("r(z)", (likelihood / (-loss).exp() - 1) * prior),
    ("-drelevance", -drelevance[0]),
):
    print(f"{name:18}", *(f"{value:7.3f}" for value in values.tolist()))

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained", sharey=True)
z = np.arange(4)
for axis, scores in zip(axes, ([0, 0, 0, 0], [2, 0, 0, 0], [-4, 3, 0, 0]), strict=True):
    scores = torch.tensor([scores], dtype=torch.float64)
    of_likelihood, _ = marginal_loss_backward(torch.ones(()), marginal_loss(log_likelihood, scores)[1])
    before, after = ops.softmax(scores)[0], -of_likelihood[0, :, 0]
    axis.bar(z - 0.2, before, 0.38, color="0.75", label="p(z|x)")
    axis.bar(z + 0.2, after, 0.38, color="C0", label="p(z|x,y)")
    for i in range(4):
        up = after[i] > before[i]
        axis.annotate(
            "", (i, float(after[i])), (i, float(before[i])),
            arrowprops=dict(arrowstyle="->", color="C2" if up else "C3", linewidth=1.5),
        )  # fmt: skip
    axis.set(xticks=z, xlabel="z", title=f"f = {[int(s) for s in scores[0].tolist()]}")
axes[0].set_ylabel("probability")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# The arrows are the gradient. On the left the retriever knows nothing and learns much; in the middle it is nearly
# right, and little is left to learn. On the right it is wrong, and sure of it: the useful document 0 has a probability
# of a thousandth, and although it is four times as good as document 1, the gradient lifts 1 as well, because 1
# predicts y better than the mixture does.
#
# Appendix B of the paper takes the extreme: one document $z^*$ has $p(y \mid z^*, x) = 1$ and all others 0. Then the
# posterior is 1 at $z^*$, and the gradient is $[z = z^*] - p(z \mid x)$: that of $\log p(z^* \mid x)$, supervised
# learning of the retriever, with a label that nobody gave.

# %%
certain = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf], dtype=torch.float64)[None, :, None]  # log p(y|z,x)
scores = torch.tensor([[0.3, 1.0, -0.5, 0.2]], dtype=torch.float64)
_, drelevance = marginal_loss_backward(torch.ones(()), marginal_loss(certain, scores)[1])
print("REALM     ", -drelevance[0])
print("supervised", torch.tensor([1.0, 0, 0, 0]) - ops.softmax(scores)[0])

# %% [markdown]
# ## From scores to embeddings, from words to logits
#
# $f$ is an inner product, so the gradient of each side is the other side, weighed by $r$:
#
# $$\frac{\partial \log p(y \mid x)}{\partial \mathrm{Embed_{input}}(x)} = \sum_z r(z)\, \mathrm{Embed_{doc}}(z), \qquad
#   \frac{\partial \log p(y \mid x)}{\partial \mathrm{Embed_{doc}}(z)} = r(z)\, \mathrm{Embed_{input}}(x).$$
#
# The text moves towards the documents that helped, and they towards it. And with $p(y_j \mid z, x)$ the softmax of the
# masked language model's logits $\ell$, a word $w$ gets
# $\partial \log p(y \mid x) / \partial \ell_w = p(z \mid x, y)\,\bigl([w = y_j] - p(w \mid z, x)\bigr)$: the gradient
# of BERT's own pre-training, times the posterior.
#
# ## Checked by finite differences
#
# A derivation can be wrong, and so can its code. A *central difference* knows neither: it moves one number by
# $\pm\varepsilon$ and looks at the loss. The loss is the one of the book, `textbook.py`, float64 and written
# independently. The data are real: lines of the CIA World Factbook, three for each of 16 countries, and sentences with
# a masked word that one of the lines holds.

# %%
settings = learn.DEFAULTS._replace(countries=16, steps=160, measure_every=10)
task = learn.make_task(settings.countries, SEED)
print(f"{len(task.facts)} documents, {sum(map(len, task.questions))} texts, {len(task.tokenizer)} words\n")
for i in (0, 17, 34):
    title, text = task.facts[i].block
    print(f"z  {title}. {text}")
    for question in task.questions[i]:
        print(f"   x  {task.tokenizer.decode(question)}")

# %%
encoder = RealmKnowledgeAugEncoder(learn.configuration(task, settings), seed=SEED)
fact, documents = 3, learn.evidence_ids(task)[:6]
inputs = learn.encoder_inputs(
    task, [task.questions[fact][0]] * 6, documents, [task.answers[fact]] * 6, encoder
)  # "[CLS] x [SEP] z [SEP]" for six documents
labels = inputs.pop("labels")[:1]  # [batch, tokens]
logits = encoder(**inputs).logits.double()  # [batch * candidates, tokens, vocabulary]
relevance_score = torch.tensor([[0.5, -1.0, 0.3, 2.0, 0.0, -0.7]], dtype=torch.float64)
mask = labels != IGNORED  # [batch, tokens]
place = int(mask[0].nonzero()[0])  # the masked token
rows, targets = logits[:, place], labels[:, place].expand(6)  # [candidates, vocabulary], [candidates]

log_likelihood = -ops.cross_entropy(rows, targets)[None, :, None]  # [batch, candidates, 1]
_, kept = marginal_loss(log_likelihood, relevance_score)
dlog_likelihood, drelevance = marginal_loss_backward(torch.ones(()), kept)
dlogits = ops.cross_entropy_backward(-dlog_likelihood.flatten(), rows, targets)  # [candidates, vocabulary]


def loss(logits: np.ndarray, scores: np.ndarray) -> float:
    """-log p(y|x): logits at the masked place [candidates, vocabulary], relevance scores [batch, candidates]."""
    log_p = textbook.log_softmax(logits)[None, :, [int(targets[0])]]  # log p(y|z,x) [batch, candidates, 1]
    return -float(textbook.marginal_log_likelihood(log_p, scores)[0].sum())


def loss_of_scores(scores: np.ndarray) -> float:
    return loss(rows.numpy(), scores)


steps = 10.0 ** np.arange(-13, 1)
errors = [
    np.abs(central_difference(loss_of_scores, relevance_score.numpy(), eps) - drelevance.numpy()).max() for eps in steps
]
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.loglog(steps, errors, "o-", markersize=4, label="difference to the derivation")
axis.loglog(steps, 4e-16 / steps, "k:", linewidth=1, label="rounding, 1/ε")
axis.loglog(steps, 6e-3 * steps**2, "k--", linewidth=1, label="truncation, ε²")
axis.set(xlabel="ε", ylabel="largest difference", ylim=(1e-13, 1))
axis.legend(frameon=False)
plt.show()
print("smallest difference below 1e-9:", min(errors) < 1e-9)

# %% [markdown]
# The valley is how one knows that both are right: a wrong gradient would level off at its own error. To the right the
# difference quotient is coarse, to the left it drowns in the rounding of float64.
#
# The logits' gradient in the same way, for ten words at the masked place of every document:

# %%
words = task.answers[:10]


def loss_of_logits(few: np.ndarray) -> float:
    moved = rows.numpy().copy()
    moved[:, words] = few.T
    return loss(moved, relevance_score.numpy())


found = central_difference(loss_of_logits, rows[:, words].numpy().T)  # [words, candidates]
difference = np.abs(found - dlogits[:, words].numpy().T).max()
print("largest difference below 1e-8:", difference < 1e-8, f"  largest gradient {np.abs(found).max():.3f}")

# %% [markdown]
# And all the way down, into every weight of the retriever. Each weight tensor is moved along a direction $d$ of its
# own, and $(L(\theta + \varepsilon d) - L(\theta - \varepsilon d)) / 2\varepsilon$ is held against the inner product
# of $d$ with the gradient that `embedder.backward` left in `embedder.grads`. The forward pass is the book's, the
# gradient float32 and by hand.

# %%
embedder = RealmEmbedder(learn.configuration(task, settings), seed=SEED + 1)
texts = learn.embedder_inputs(task, [task.questions[fact][0]], embedder)  # x and then all 48 documents
log_likelihood = -3 * torch.rand(1, 48, 1, dtype=torch.float64)  # [batch, documents, 1], what an encoder might say

projected = embedder(**texts).projected_score  # [1 + documents, proj]
query, blocks = projected[:1], projected[1:]
_, kept = marginal_loss(log_likelihood.float(), query @ blocks.t())
_, drelevance = marginal_loss_backward(torch.ones(()), kept)
embedder.zero_grads()
embedder.backward(projected_score=torch.cat([drelevance @ blocks, drelevance.t() @ query]))

arrays = {name: tensor.double().numpy() for name, tensor in embedder.state_dict().items()}
batch = tuple(texts[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids"))


def loss_of_weights(weights: dict[str, np.ndarray]) -> float:
    projected, _ = textbook.embed(weights, embedder.config, batch)
    return -float(textbook.marginal_log_likelihood(log_likelihood.numpy(), projected[:1] @ projected[1:].T)[0].sum())


rng = np.random.default_rng(SEED)
by_hand, by_difference = [], []
for name, gradient in embedder.grads.items():
    if not gradient.any():
        continue  # weights that the checkpoints hold and the embedder does not use
    direction, eps = rng.standard_normal(gradient.shape), 1e-5
    ends = [loss_of_weights(arrays | {name: arrays[name] + sign * eps * direction}) for sign in (1, -1)]
    by_difference.append((ends[0] - ends[1]) / (2 * eps))
    by_hand.append(float((gradient.double().numpy() * direction).sum()))
by_hand, by_difference = np.array(by_hand), np.array(by_difference)
error = np.abs(by_hand - by_difference).max() / np.abs(by_difference).max()
print(f"{len(by_hand)} weight tensors; largest difference below 1e-4 of the largest derivative:", error < 1e-4)

figure, axis = plt.subplots(figsize=(3, 3), layout="constrained")
axis.axline((0, 0), slope=1, color="0.7", linewidth=1)
axis.plot(by_difference, by_hand, "o", markersize=3)
axis.set(xscale="symlog", yscale="symlog", xlabel="by difference", ylabel="by hand", aspect="equal")
plt.show()

# %% [markdown]
# ## A token or the whole span
#
# Where y has several words, equation 1 is about all of them at once: $p(y \mid z, x) = \prod_j p(y_j \mid z, x)$, and
# one document has to explain them together. transformers, and `whole_span=False` here, marginalises each word on its
# own, so one document may explain the first word and another the second. Three documents and "Niels Bohr":

# %%
log_likelihood = torch.tensor(  # p(y_j|z,x)
    [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], dtype=torch.float64
).log()[None]  # [batch, candidates, tokens]
relevance_score = torch.zeros(1, 3, dtype=torch.float64)
for whole_span in (False, True):
    loss, kept = marginal_loss(log_likelihood, relevance_score, whole_span=whole_span)
    _, drelevance = marginal_loss_backward(torch.ones(()), kept)
    pushed = ", ".join(f"{round(-value, 3) + 0:+.3f}" for value in drelevance[0].tolist())
    print(f"whole_span={whole_span!s:5}  loss {loss:.3f} nats a word   documents pushed by {pushed}")

# %% [markdown]
# With single tokens the three documents are equally good, and nothing is learned. The whole span prefers the third,
# the only one that knows something of both words. In pre-training `marginal` chooses ("token" or "span"); where one
# wordpiece is masked, as in what follows, both are the same.
#
# ## Watching it
#
# Now all of it at once, on the 48 documents. The corpus is small enough for the sum over z to be exact. Texts and
# documents share no word but the country's name, so retrieval has to be learned: that "the parliament of … meets in"
# goes with "capital". A quarter of the facts is held out, that is never masked in training.
#
# First the encoder learns, without any retriever, to copy the masked word out of the document beside it (`warm_up`, on
# facts dealt anew, so that it can remember none of them). The retriever starts from random weights. After that both
# learn from $-\log p(y \mid x)$ and nothing else.

# %%
encoder = learn.warm_up(task, settings, SEED)
without = RealmKnowledgeAugEncoder(encoder.config, initialize=False)  # for the control run below
without.load_state_dict({name: tensor.clone() for name, tensor in encoder.state_dict().items()})
embedder = RealmEmbedder(learn.configuration(task, settings), seed=SEED + 1)


def distributions(fact: int, question: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """p(z|x) and p(z|x,y), [documents] each, for one text about a fact."""
    texts = [task.questions[fact][question]]
    projected = embedder(**learn.embedder_inputs(task, texts, embedder)).projected_score
    relevance_score = projected[:1] @ projected[1:].t()  # [1, documents]
    documents = learn.evidence_ids(task)
    pairs = texts * len(documents), documents, [task.answers[fact]] * len(documents)
    log_likelihood, _ = encoder.masked_log_likelihood(**learn.encoder_inputs(task, *pairs, encoder))
    return ops.softmax(relevance_score[0]), ops.softmax(relevance_score[0] + log_likelihood.sum(1))


trained = next(i for i in task.trained if task.facts[i].block.title == "Finland")
held_out = next(i for i in task.held_out if task.facts[i].block.title == "Algeria")
records, priors, posteriors = [], [], []
for record in learn.learn(task, encoder, embedder, settings, seed=SEED):
    records.append(record)
    both = [distributions(fact) for fact in (trained, held_out)]
    priors.append(torch.stack([prior for prior, _ in both]))  # [2, documents]
    posteriors.append(torch.stack([posterior for _, posterior in both]))
priors, posteriors = torch.stack(priors, 1).numpy(), torch.stack(posteriors, 1).numpy()  # [2, records, documents]

# %% tags=["varies"]
print("step  loss   R@1 trained   R@1 held out   p(z|x) of the evidence, held out")
for record in records[::4]:
    print(
        f"{record.step:4d}  {record.loss:4.2f}   {100 * record.trained_r1:7.0f} %     {100 * record.held_out_r1:7.0f} %"
        f"       {record.evidence_probability:.3f}"
    )

# %% [markdown]
# R@1 is how often the document that holds the fact comes first among the 48; chance is 2 %. It is for the measurement
# alone: the training never sees which document that is. Below is $p(z \mid x)$ for two texts, a column a document, a
# row every tenth step, time going down. The triangle marks the document that holds the fact.

# %% tags=["varies"]
figure, axes = plt.subplots(2, 1, figsize=(9, 4.6), layout="constrained", sharex=True)
for axis, fact, rows in zip(axes, (trained, held_out), priors, strict=True):
    shown = axis.imshow(rows, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest",
                        extent=(-0.5, 47.5, records[-1].step, 0))  # fmt: skip
    axis.plot([fact], [0], "v", color="C2", markersize=9, clip_on=False)
    kind = "trained" if fact == trained else "never masked in training"
    axis.set_title(f"{task.tokenizer.decode(task.questions[fact][0])}    ({kind})", loc="left", pad=9)
    axis.set_ylabel("step")
    for field in (16, 32):
        axis.axvline(field - 0.5, color="0.6", linewidth=0.8)
axes[1].set_xticks([7.5, 23.5, 39.5], ["capitals, 16 countries", "internet codes", "nationalities"])
figure.colorbar(shown, ax=axes, label="p(z|x)", shrink=0.7)
plt.show()

# %% [markdown]
# Random weights are sure of a random document. The first steps spread the mass, then the wrong fields and the wrong
# countries lose theirs, in the text that was never masked too: what was learned is how to put country and field
# together. Why the gradient goes there is best seen at single moments: prior and posterior for the trained text, for
# the documents that matter most.

# %% tags=["varies"]
moments = [0, 2, 6, len(records) - 1]
shown = np.argsort(-(priors[0] + posteriors[0])[moments].max(0))[:9]
shown = np.array([trained, *(i for i in shown if i != trained)][:9])
names = [f"{task.facts[i].block.title}, {task.facts[i].field}" for i in shown]
figure, axes = plt.subplots(1, len(moments), figsize=(10, 2.9), layout="constrained", sharex=True, sharey=True)
places = np.arange(len(shown))[::-1]
for axis, moment in zip(axes, moments, strict=True):
    axis.barh(places + 0.2, priors[0, moment, shown], 0.38, color="0.75", label="p(z|x)")
    axis.barh(places - 0.2, posteriors[0, moment, shown], 0.38, color="C0", label="p(z|x,y)")
    axis.set(title=f"step {records[moment].step}", xlim=(0, 1), xlabel="probability")
axes[0].set_yticks(places, names)
axes[-1].legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# The blue bar runs ahead of the grey one, and the grey one follows: the gradient is the distance between them. At the
# end they agree, and nothing is left to learn from this text.
#
# ### Is it really that gradient?
#
# The control run is the very same, but $\partial \mathrm{loss} / \partial f(x, z)$ is thrown away. Its encoder learns
# all the same.

# %%
silent = RealmEmbedder(learn.configuration(task, settings), seed=SEED + 1)
control = list(
    learn.learn(
        task, without, silent, settings._replace(steps=80, measure_every=20), seed=SEED, with_gradient=False
    )
)  # fmt: skip
print("held-out facts whose document comes first: ten times as many as by chance", records[-1].held_out_r1 > 10 / 48)
print("the control's retriever has moved:", control[-1].held_out_r1 != control[0].held_out_r1)

# %% tags=["varies"]
figure, axes = plt.subplots(1, 3, figsize=(10, 2.5), layout="constrained")
panels = ("loss", "trained_r1", "held_out_r1"), ("−log p(y|x), nats", "R@1, trained facts", "R@1, held-out facts")
for axis, column, title in zip(axes, *panels, strict=True):
    for run, color, label in ((records, "C0", "with the gradient"), (control, "C1", "without")):
        axis.plot([r.step for r in run], [getattr(r, column) for r in run], color=color, label=label)
    axis.set(title=title, xlabel="step", ylim=(0, None if column == "loss" else 1.02))
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# The control's retriever stays where chance put it, and its loss stays high, because the word it needs stands in a
# document that it does not retrieve. `make learn` runs the larger version: 40 countries, three seeds.
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
# log_likelihood, scores = torch.randn(1, 7, 3), torch.randn(1, 7)
# loss, kept = marginal_loss(log_likelihood, scores)
# print(marginal_loss_backward(torch.ones(()), kept)[1].sum())           # 0 but for rounding
# print(loss - marginal_loss(log_likelihood, scores + 5)[0])
# ```
# </details>
#
# **2.** The word "of" is masked, and every document predicts it with $p(y \mid z, x) = 0.99$, the empty *null
# document* too. What does the retriever learn from it? What follows for the choice of what to mask (REALM, section
# 3.4)?
#
# <details><summary>Solution</summary>
#
# Nothing: $p(y \mid z, x) = p(y \mid x)$ for all z, so $r(z) = 0$. Only words that some documents predict better than
# others teach the retriever, and names and dates are such words. So REALM masks *salient spans*; the ablation in the
# paper's table 2 shows what random masks cost. A null document gives texts that need no evidence a place to put their
# probability.
#
# ```python
# same = torch.full((1, 5, 1), 0.99).log()
# _, kept = marginal_loss(same, torch.randn(1, 5))
# print(marginal_loss_backward(torch.ones(()), kept)[1])                 # zeros but for rounding
# ```
# </details>
#
# **3.** REALM cannot sum over 13 million documents: it takes the top k of p(z|x) and lets the softmax run over those.
# What is the retriever's gradient at k = 1? With `priors` and `posteriors` from above, how many documents of the
# held-out text does it take, at each record, to cover 95 % of the posterior?
#
# <details><summary>Solution</summary>
#
# With one candidate prior and posterior are both 1 and the gradient is 0, whatever the document: there is nothing to
# compare it with. A document outside the top k gets no gradient at all, so k must be large enough to hold useful ones.
#
# ```python
# for record, prior, posterior in zip(records, priors[1], posteriors[1], strict=True):
#     covered = np.cumsum(posterior[np.argsort(-prior)])                 # in the order the retriever returns them
#     print(record.step, int((covered < 0.95).sum()) + 1)
# ```
# While the retriever knows little it takes many, in the end one is enough: a good retriever needs few candidates, and a
# bad one needs many to improve.
# </details>
