# %% [markdown]
# # 0. One question, from end to end
#
# A question goes in, an answer comes out. What happens in between? This notebook follows one question through REALM and
# prints everything on the way: wordpieces, a vector, five blocks of text out of thousands, a score for each run of
# words in them, and the answer. Nothing is derived here; each step says which notebook does.
#
# **Needed before:** to have seen a vector and a probability. No code has to be understood.
#
# **After it you can** say what REALM does with a question, in five sentences, and where to look for each of them. Ten
# minutes.
#
# | step | in | out | notebook |
# | --- | --- | --- | --- |
# | 1 wordpieces | text x | ids [tokens] | 1 |
# | 2 embed | ids | Embed(x) [proj] | 2 |
# | 3 retrieve | Embed(x), Embed(z) of all blocks | the k most relevant blocks, p(z given x) | 3 |
# | 4 read | x beside each block | a score for each span | 5 |
# | 5 answer | scores | the text of the best span | 5 |
#
# How the model came to be able to do so is notebook 4; how it is made fast, notebook 6.
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
from realm_min.app.figures import for_a_room, show
from realm_min.model import ops

torch.set_num_threads(2)
for_a_room()

model = realm_min.load()  # the default model: it has read ten thousand Wikipedia leads and the CIA World Factbook
tokenizer, records = model.retriever.tokenizer, model.retriever.block_records
question = "What is the capital of Uruguay?"
print(f"{len(records):,} blocks of text")

# %% [markdown]
# ## 1. Wordpieces
#
# A model reads numbers. The text is cut into pieces of a fixed vocabulary, a number each. `[CLS]` and `[SEP]` mark the
# beginning and the end.

# %%
encoded = tokenizer([question], return_tensors="pt")
ids = encoded.input_ids[0].tolist()
print(tokenizer.convert_ids_to_tokens(ids))
print(ids)

# %% [markdown]
# ## 2. A vector
#
# BERT gives every piece a vector, and changes it layer by layer, by what the other pieces are. The last vector of
# `[CLS]` stands for the whole question. A small layer makes Embed(x) of it, which was trained so that texts about the
# same thing point the same way.

# %%
output = model.embedder(**encoded, output_hidden_states=True, return_dict=True)
shapes = {tuple(state.shape) for state in output.hidden_states}
print(f"{len(output.hidden_states)} times, [batch, pieces, hidden]:", *shapes)
cls = output.hidden_states[-1][0, 0]
x = output.projected_score[0]  # [proj]
print(f"[CLS], {len(cls)} numbers, the first six:   ", cls[:6].numpy().round(2))
print(f"Embed(x), {len(x)} numbers, the first six:", x[:6].numpy().round(2))

# %% [markdown]
# ## 3. Retrieve
#
# Every block was embedded once, when the index was made. Relevance is an inner product, f(x, z) = Embed(x) · Embed(z).
# A softmax over what is retrieved makes it a probability, p(z|x). Five blocks are read:

# %%
everywhere = (model.block_emb @ x).numpy()  # f(x, z) of all blocks; the search finds the best without storing this
scores, numbers = (found[0] for found in model.retrieve(question, 5))
prior = ops.softmax(scores)  # p(z|x)
for number, score, probability in zip(numbers.tolist(), scores.tolist(), prior.tolist(), strict=True):
    text = model.retriever.text(number)
    print(f"block {number:5}   f(x, z) {score:6.2f}   p(z|x) {probability:.3f}   {text[:62]} …")
print("the same as the five largest of all:", sorted(np.argsort(-everywhere)[:5]) == sorted(numbers.tolist()))

# %%
figure, axis = plt.subplots(figsize=(8, 3.4))
axis.hist(everywhere, bins=100, color="0.7")
for score in scores.tolist():
    axis.axvline(score, color="C3", linewidth=1.5)
axis.set(xlabel="f(x, z)", ylabel="blocks", yscale="log")
show(figure, "A histogram of the relevance of all blocks, with the five that are retrieved as red lines at its right "
     "end.")  # fmt: skip

# %% [markdown]
# ## 4. Read
#
# The question is put beside each block, `[CLS] question [SEP] block [SEP]`, and BERT reads both together. Then every
# *span*, every run of at most ten wordpieces of a block, gets a score: how well it reads as an answer, S_read, plus how
# relevant its block is, S_retr, which is f(x, z).

# %%
texts = [model.retriever.text(number) for number in numbers.tolist()]
read = model.score_spans(question, texts, scores)
blocks, spans = read.logits.shape
print("what is read first:", " ".join(tokenizer.convert_ids_to_tokens(read.ids[0].tolist())[:22]), "…")
print(f"{blocks} blocks of up to {read.ids.shape[1]} wordpieces, {spans:,} spans in each")

# %% [markdown]
# One softmax runs over all spans of all blocks. The five best:

# %%
probabilities = ops.softmax(read.logits.flatten()).view_as(read.logits)
for place in read.logits.flatten().argsort(descending=True)[:5].tolist():
    block, span = divmod(place, spans)
    pieces = read.ids[block, read.starts[span] : read.ends[span] + 1].tolist()
    score, relevance = float(read.logits[block, span]), float(scores[block])
    said = f"S_retr {relevance:5.2f} + S_read {score - relevance:5.2f} = {score:5.2f}"
    print(f"{said}   p {probabilities[block, span]:.4f}   block {numbers[block]:5}   {tokenizer.decode(pieces)!r}")
print("p of all spans of each block together:", probabilities.sum(1).numpy().round(3))

# %% [markdown]
# ## 5. Answer
#
# The best span is the answer, as it stands in the block, capitals and accents included. Its probability is the sum over
# all spans that read the same, wherever they stand.

# %%
(answer,) = model.answer([question])
source = answer.blocks[answer.block_rank]
begin = max(0, answer.start_char - 60)
print(f"{question}\n{answer.text}   p(y|x) = {answer.probability:.3f}")
print(f"… {source.text[begin : answer.start_char]}[[{answer.text}]]{source.text[answer.end_char :][:40]} …")

# %% [markdown]
# Five sentences: the question becomes a vector. The blocks whose vectors go best with it are found. Each is read beside
# the question. Every run of words gets a score. The best one is the answer, and its share of the probability says how
# sure the model is.
#
# ## Exercises
#
# **1.** Ask something of your own about the world. Then ask something that no encyclopedia can know. What happens to
# the answer, and what to its probability?
#
# <details><summary>Solution</summary>
#
# ```python
# for asked in ("What is the currency of Norway?", "Who mended my aunt's bicycle?"):
#     (answer,) = model.answer([asked])
#     print(asked, "->", answer.text, f"{answer.probability:.3f}")
# ```
# There is always a span of highest score, so there is always an answer. Only the probability is a sign of doubt, and
# not a sure one.
# </details>
#
# **2.** Let the model read one block in place of five, then twenty. Does the answer change? Does its probability? Why?
#
# <details><summary>Solution</summary>
#
# ```python
# for k in (1, 5, 20):
#     (answer,) = model.answer([question], num_blocks=k)
#     print(k, answer.text, f"{answer.probability:.4f}")
# ```
# With one block the softmax runs over its spans alone. Every further block adds spans, which take some of the
# probability or, where they read the same, add to it.
# </details>
#
# **3.** Which of the five steps looks at the question and the block *together*? Why not the other, which would surely
# judge better what is relevant?
#
# <details><summary>Solution</summary>
#
# Only reading does. Retrieval embeds both apart, so the blocks' vectors can be made once, before anyone asks, and
# searching them takes milliseconds. Reading all blocks beside the question would take this many times as long:
#
# ```python
# print(len(records) / 5)
# ```
# </details>
