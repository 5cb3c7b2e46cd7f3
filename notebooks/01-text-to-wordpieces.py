# %% [markdown]
# # 1. From text to wordpieces
#
# REALM answers a question $x$ by retrieving *documents* $z$ and reading the answer $y$ in them. Its documents are not
# whole articles but *blocks* of at most 288 wordpieces (REALM, section 4.3), so that one always fits the reader.
# This notebook goes from text to blocks, and from blocks to the ids that every model here takes.
#
# **Needed before:** some Python. Notebook 0 shows where it leads.
#
# **After it you can** cut a corpus into blocks, spell a word in wordpieces by hand, and say what a model gets to read.
# Forty minutes.
#
# | step | here |
# | --- | --- |
# | a corpus to documents | `documents.read_documents`, `corpus.factbook_documents` |
# | a document to sentences | `corpus.split_sentences` |
# | sentences to blocks | `corpus.cut_blocks` |
# | a text to words, words to pieces | `realm_min/text/wordpiece.py`, called by `RealmTokenizer` |
# | pieces to ids, with special tokens | `RealmTokenizer`, and `RealmTokenizerFast` on the library `tokenizers` |
#
# The corpus is the CIA World Factbook. Take a `RealmTokenizer` to read and a `RealmTokenizerFast` to work: they give
# the same ids.
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
import re
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

import realm_min
from realm_min import RealmTokenizer, RealmTokenizerFast
from realm_min.app.figures import for_a_room, show
from realm_min.text.corpus import MAX_WORDPIECES, Document, cut_blocks, factbook_documents, record, split_sentences
from realm_min.text.wordpiece import (
    character_kind,
    lower_characters,
    split_punctuation,
    split_words,
    strip_accents,
    wordpiece,
)

torch.set_num_threads(2)
for_a_room()

VOCABULARY = Path(realm_min.__file__).parent / "assets" / "vocab.txt"
tokenizer, fast = RealmTokenizer(VOCABULARY), RealmTokenizerFast(VOCABULARY)
print(f"{tokenizer.vocab_size:,} wordpieces, for example", ", ".join(list(tokenizer.vocab)[7000:30000:3000]))

# %% [markdown]
# ## Documents
#
# A `Document` is a title and a text. The Factbook gives one for each section of each of its entries, a field a line.
# The title matters: it is part of what is embedded, and it may be the answer.

# %%
documents = list(factbook_documents())
print(f"{len(documents):,} documents, {sum(len(document.text) for document in documents):,} characters\n")
norway = next(d for d in documents if d.title == "Norway" and d.text.startswith("Country name"))
print(f"title: {norway.title}\ntext:  {norway.text[:500]} …")

# %% [markdown]
# ## Sentences
#
# Blocks are cut between sentences, so that no fact is torn apart. A full stop ends a sentence only sometimes. The
# obvious rule, "`.`, `!` or `?`, then a space", cuts names in two; `split_sentences` also asks what comes before (not
# an initial, a list's number or an abbreviation such as "St.") and after (a capital, a digit, or a letter without
# case). What the obvious rule does to three entries:


# %%
def split_obviously(text: str) -> list[str]:
    return [s for line in text.splitlines() for s in re.split(r"(?<=[.!?]) ", " ".join(line.split())) if s]


for document in documents:
    if document.title in ("France", "Japan", "Saint Lucia"):
        sentences, obvious = split_sentences(document.text), split_obviously(document.text)
        for i, piece in enumerate(obvious[:-1]):
            if piece not in sentences and not any(s.endswith(piece) for s in sentences):
                print(f"{document.title:<12} … {piece[-38:]} ✂ {obvious[i + 1][:38]} …")

# %%
all_sentences = [split_sentences(document.text) for document in documents]
obvious_count = sum(len(split_obviously(document.text)) for document in documents)
print(f"{sum(map(len, all_sentences)):,} sentences; the obvious rule makes {obvious_count:,}")
# Nothing is lost: joined by spaces, the sentences are all words of the text.
assert all(" ".join(s) == " ".join(d.text.split()) for s, d in zip(all_sentences, documents, strict=True))

# %% [markdown]
# ## Words
#
# Before it spells, BERT's tokenizer cuts the text into words. Each of the steps below is a function from characters to
# characters, and each passes along `places`, the index in the original text from which a character came. That is what
# later lets the reader answer with the text as it stands in the block, capitals and accents included.

# %%
text = "Country name - local short form: Türkiye; capital: Ankara (2024 est.)."
lowered, places = lower_characters(text, None)
words = list(split_words(lowered, places, split_cjk=True))
stripped = [strip_accents(word, word_places) for word, word_places in words]
split = [part for word, word_places in stripped for part in split_punctuation(word, word_places)]

print("lower case:     ", lowered)
print("white space:    ", [word for word, _ in words])
print("accents off:    ", [word for word, _ in stripped if word not in dict(words)], "was", "türkiye;")
print("punctuation off:", [word for word, _ in split])
print("kinds:          ", {char: character_kind(char) for char in "ü( 4$中\u200b"})

# %% [markdown]
# ## Wordpieces
#
# The vocabulary $V$ holds 30,522 pieces: whole words, and pieces that start with `##` and go on inside a word. A word
# $w_1 \dots w_n$ is spelled greedily, from the left, with the longest piece that fits:
#
# $$e_1 = \max \{e : w_1 \dots w_e \in V\}, \qquad e_{i+1} = \max \{e : \texttt{\#\#}\, w_{e_i + 1} \dots w_e \in V\},
# \qquad \text{until } e_i = n.$$
#
# If some set is empty the word is `[UNK]`, unknown. Rare words cost more pieces but none is out of vocabulary as long
# as its letters are in it. Step by step, by hand, for the capital of Burkina Faso:


# %%
def spell_aloud(word: str) -> None:
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        tries = [prefix + word[start:end] for end in range(len(word), start, -1)]
        found = next(piece for piece in tries if piece in tokenizer.vocab)
        refused = tries[: tries.index(found)]
        more = ", …" if len(refused) > 3 else ""
        print(
            f"{word[:start]:>12}|{word[start:]:<12}", f"{found:<7} after", ", ".join(refused[:3]) + more or "no other"
        )
        start += len(found) - len(prefix)


spell_aloud("ouagadougou")
longest = max(map(len, tokenizer.vocab))
print("\nwordpiece():", wordpiece("ouagadougou", tokenizer.vocab, longest))

# %% [markdown]
# The second and third number of each piece are its place in the word. `RealmTokenizer` puts the five steps together:

# %%
print(tokenizer.tokenize(text))
assert tokenizer.tokenize(text) == fast.tokenize(text)

encoded = tokenizer(text, return_offsets_mapping=True)
tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
where = {token: text[start:end] for token, (start, end) in zip(tokens, encoded["offset_mapping"], strict=True)}
print({token: where[token] for token in ("turk", "##iy", "##e", "ankara")})

# %% [markdown]
# Frequent words are pieces of their own, which keeps texts short. Below, each dot is a word of the Factbook: how often
# it stands there, and in how many pieces it is spelled. The line is the mean over words of similar frequency.

# %%
counts = Counter(word for d in documents for word in re.findall(r"[a-z]+", d.text.lower()))
frequencies = np.array(list(counts.values()))
lengths_of_words = np.array([len(wordpiece(word, tokenizer.vocab, longest) or [None]) for word in counts])

bins = 2.0 ** np.arange(0, 17)
group = np.digitize(frequencies, bins)
centers = [np.sqrt(bins[g - 1] * bins[g]) for g in range(1, 17) if (group == g).any()]
means = [lengths_of_words[group == g].mean() for g in range(1, 17) if (group == g).any()]
jitter = np.random.default_rng(0).uniform(-0.3, 0.3, (2, len(frequencies)))

figure, axes = plt.subplots(figsize=(7.5, 3.6))
axes.scatter(frequencies * np.exp(jitter[0]), lengths_of_words + jitter[1], s=2, alpha=0.2, color="gray", linewidths=0)
axes.plot(centers, means, "o-", color="tab:blue")
axes.set(xscale="log", xlabel="times in the Factbook", ylabel="wordpieces")
show(figure, "Words of the Factbook by how often they stand there and in how many wordpieces they are spelled: rare "
     "words take two to three, frequent ones one.")  # fmt: skip
per_word = (frequencies * lengths_of_words).sum() / frequencies.sum()
print(f"{len(counts):,} different words; {per_word:.3f} wordpieces a word of running text")

# %% [markdown]
# ## Special tokens
#
# A model reads more than the pieces. `[CLS]` stands first, and its last hidden state will become the embedding of the
# whole text. `[SEP]` ends each text. `[PAD]` fills the shorter rows of a batch, `[MASK]` hides a word (notebook 4), and
# `[UNK]` stands for what cannot be spelled. Three fields go to the model, each `[batch, tokens]`:
#
# - `input_ids`, the pieces;
# - `token_type_ids`, 0 for the first text and its `[CLS]`, 1 for the second;
# - `attention_mask`, 1 for a token and 0 for padding.
#
# $\mathrm{Embed_{doc}}$ reads title and text, `[CLS] title [SEP] text [SEP]`; $\mathrm{Embed_{input}}$ reads the
# question alone; the reader reads the question and the *record* of the block, which is `title. text`.

# %%
(block,) = cut_blocks([Document("Burkina Faso", "Capital - name: Ouagadougou.")], fast)
question = "What is the capital of Burkina Faso?"
for name, pair in {
    "Embed_input": (question, None),
    "Embed_doc": (block.title, block.text),
    "reader": (question, record(block).decode()),
}.items():
    encoded = tokenizer(*pair)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    print(f"{name}\n  {' '.join(tokens)}\n  types {''.join(map(str, encoded['token_type_ids']))}\n")

# %% [markdown]
# ## Blocks
#
# Wordpieces never cross a space, so the lengths $\ell$ of sentences add up: $\ell(s_1\, s_2) = \ell(s_1) + \ell(s_2)$.
# With three special tokens and the title, a block has room for
#
# $$R = 288 - 3 - \ell(\text{title})$$
#
# pieces of text. `cut_blocks` takes whole sentences as long as they fit, then begins the next block. No way to cut a
# document in order makes fewer blocks: let the first $j$ blocks of any other way end no later than greedy's first $j$;
# then its block $j + 1$ starts no later than greedy's, and ends no later, because greedy's goes on as long as there is
# room. (A sentence longer than $R$ is itself cut first, after a comma or between words.)

# %%
sentences = split_sentences(norway.text)
lengths = [len(fast.tokenize(sentence)) for sentence in sentences]
assert sum(lengths) == len(fast.tokenize(" ".join(sentences)))  # they add up

room = MAX_WORDPIECES - 3 - len(fast.tokenize(norway.title))
filled = [[]]  # by hand: for each block its sentences, with their lengths
for sentence, length in zip(sentences, lengths, strict=True):
    if sum(n for _, n in filled[-1]) + length > room:
        filled.append([])
    filled[-1].append((sentence, length))
assert [" ".join(text for text, _ in block) for block in filled] == [block.text for block in cut_blocks([norway], fast)]
print(f"{len(lengths)} sentences, {sum(lengths):,} wordpieces, room for {room} in a block")
print(f"{len(filled)} blocks; {-(-sum(lengths) // room)} would be the least if sentences could be torn")

figure, axes = plt.subplots(figsize=(9, 3.4))
for row, block in enumerate(filled):
    axes.barh(row, MAX_WORDPIECES - room, color="tab:orange")
    ends = MAX_WORDPIECES - room + np.cumsum([length for _, length in block])
    widths = np.diff(ends, prepend=MAX_WORDPIECES - room)
    shades = [("tab:blue", "lightsteelblue")[i % 2] for i in range(len(block))]
    axes.barh([row] * len(block), widths, left=ends - widths, color=shades)
axes.axvline(MAX_WORDPIECES, color="black", linewidth=1)
axes.invert_yaxis()
axes.set(xlabel="wordpieces", ylabel="block", yticks=range(len(filled)), title="Norway, Government")
show(figure, "Blocks of one document as bars: special tokens and title in orange, then its sentences in blue, up to "
     "the limit of 288 wordpieces.")  # fmt: skip

# %% [markdown]
# Orange is what every block pays: special tokens and the title. Each shade of blue is a sentence, and the line is the
# limit. Block 4 is short because the sentence after it is long. Now all of the Factbook:

# %%
some = documents[::4]  # a quarter of them shows as much
blocks = list(cut_blocks(some, fast))
encoded = fast([b.title for b in blocks], [b.text for b in blocks], return_token_type_ids=False)
block_lengths = np.array([len(ids) for ids in encoded["input_ids"]])
sentence_lengths = np.array(
    [len(ids) for s in all_sentences[::4] if s for ids in fast(s, add_special_tokens=False)["input_ids"]]
)
assert block_lengths.max() <= MAX_WORDPIECES

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
left.hist(sentence_lengths, bins=np.geomspace(1, sentence_lengths.max(), 40), color="tab:blue")
left.set(xscale="log", xlabel="wordpieces in a sentence", ylabel="sentences")
right.hist(block_lengths, bins=range(1, 290, 8), color="tab:blue")
right.axvline(MAX_WORDPIECES, color="black", linewidth=1)
right.set(xlabel="wordpieces in a block, all included", ylabel="blocks")
show(figure, "Histograms: sentences have some ten to thirty wordpieces, a few hundreds; most blocks are just below "
     "288.")  # fmt: skip
print(f"a quarter of the documents: {len(blocks):,} blocks")
print(f"on average {block_lengths.mean():.0f} of {MAX_WORDPIECES} wordpieces")
print(f"{(sentence_lengths > MAX_WORDPIECES - 3).sum()} of {len(sentence_lengths):,} sentences are longer than a block")

# %% [markdown]
# Most blocks are nearly full. The short ones are the last of their documents, or documents that are short themselves.
# REALM's own corpus, English Wikipedia, gives 13,353,718 such blocks.
#
# ## A batch
#
# A batch is a rectangle, so short rows are padded to the longest. Padding costs time and carries nothing, and
# `embedding.embed_blocks` therefore puts blocks of similar length together on a GPU, and takes one at a time on a CPU.
# Sixteen random blocks, and sixteen neighbours in the order of length:

# %%
random_rows = np.random.default_rng(0).choice(len(blocks), 16, replace=False)
sorted_rows = np.argsort(block_lengths, kind="stable")[500:516]
colors = {"padding": "white", "special": "black", "title": "tab:orange", "text": "lightsteelblue"}

figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.4))
for ax, rows, name in zip(axes, (random_rows, sorted_rows), ("random", "of similar length"), strict=True):
    batch = fast([blocks[i].title for i in rows], [blocks[i].text for i in rows], padding=True, return_tensors="pt")
    special = torch.isin(batch["input_ids"], torch.tensor([fast.cls_token_id, fast.sep_token_id]))
    kind = batch["attention_mask"] * (2 + batch["token_type_ids"])  # [blocks, tokens]
    kind[special] = 1
    ax.imshow(kind, aspect="auto", interpolation="nearest", cmap=ListedColormap(list(colors.values())), vmin=0, vmax=3)
    padded = 1 - batch["attention_mask"].float().mean()
    ax.set(title=f"{name}: {padded:.0%} padding", xlabel="token", yticks=range(0, 16, 5))
axes[0].set_ylabel("block of the batch")
legend = [Patch(facecolor=color, edgecolor="gray", label=name) for name, color in colors.items()]
axes[1].legend(handles=legend, bbox_to_anchor=(1, 1), loc="upper left")
show(figure, "Two batches of sixteen blocks: random ones are padded by a sixth, sixteen of similar length by "
     "hardly anything.")  # fmt: skip

# %% [markdown]
# ## Exercises
#
# **1.** How many blocks does the Factbook make at 64, 128, 288 and 512 wordpieces? What share of what is embedded is
# special tokens and titles? What speaks for short blocks, what for long ones?
#
# <details><summary>Solution</summary>
#
# ```python
# for limit in (64, 128, 288, 512):
#     cut = list(cut_blocks(documents[:150], fast, limit))
#     titles = sum(len(ids) for ids in fast([b.title for b in cut], add_special_tokens=False)["input_ids"])
#     texts = sum(len(ids) for ids in fast([b.text for b in cut], add_special_tokens=False)["input_ids"])
#     overhead = titles + 3 * len(cut)
#     print(f"{limit:>4}: {len(cut):>5,} blocks, {overhead / (overhead + texts):.1%} titles and special tokens")
# ```
# Short blocks: one vector has less to stand for, so retrieval is sharper; the index grows, more of it is titles, and
# the evidence may be in the neighbouring block. Long blocks: the reverse, and attention costs tokens squared.
# </details>
#
# **2.** Greedy spelling is fast, but does it use the fewest pieces? Write the exact minimum by dynamic programming,
# $m(e) = 1 + \min_s \{ m(s) : w_{s+1} \dots w_e \text{ is a piece} \}$, and find the most frequent word of the Factbook
# for which greedy needs more.
#
# <details><summary>Solution</summary>
#
# ```python
# def fewest(word):
#     best = [0] + [np.inf] * len(word)
#     for end in range(1, len(word) + 1):
#         for start in range(end):
#             if ("##" if start else "") + word[start:end] in tokenizer.vocab:
#                 best[end] = min(best[end], best[start] + 1)
#     return best[-1]
#
# for word, count in counts.most_common():
#     pieces = wordpiece(word, tokenizer.vocab, longest)
#     if pieces and len(pieces) > fewest(word):
#         print(word, count, [piece for piece, _, _ in pieces], fewest(word))
#         break
# ```
# *heliports*: `he ##lip ##ort ##s`, where `hel ##ip ##orts` would do. It happens to about 50 of 30,000 words.
# BERT was trained on greedy pieces, so a model must be fed greedy ones, shortest or not.
# </details>
#
# **3.** Which words of the Factbook become `[UNK]`? Can an answer contain one?
#
# <details><summary>Solution</summary>
#
# ```python
# unknown = Counter()
# for document in documents:
#     if not document.text.isascii():
#         for word in document.text.split():
#             if not word.isascii() and tokenizer.unk_token in tokenizer.tokenize(word):
#                 unknown[word] += 1
# print(sum(unknown.values()), unknown.most_common(8))
# ```
# Words in scripts of which the vocabulary lacks letters, and a few symbols. Accents are no problem, they are stripped.
# An answer may well contain one: it is a span of tokens, and `[UNK]` has its place in the text as every token has, so
# the answer is cut from the text by its offsets, not spelled from the ids.
# </details>
