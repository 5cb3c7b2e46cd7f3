# %% [markdown]
# # 6. The kernels
#
# Two steps of REALM are hot: the search through millions of block embeddings, and the scores of thousands of spans.
# Both do little arithmetic with much data, so what they cost is the traffic between memory and processor. This
# notebook climbs two ladders of small Triton kernels, one step of thought a rung, from the naive version of each to one
# that stores nothing it does not need. It runs every rung in Triton's interpreter, holds it to the book, counts what it
# moves, and places recorded runs under the roofline of their machine.
#
# **Needed before:** the search by groups and its certificate (notebook 3), the algebra of the span logits (notebook 5),
# and that a processor has registers, caches and memory. No GPU is needed.
#
# **After it you can** say of a kernel what it moves and what it computes, predict its time from both, and read the
# kernels that REALM runs. Two hours.
#
# | symbol | meaning | REALM |
# | --- | --- | --- |
# | N, D | blocks, and dimensions of their embeddings | 13,353,718 and 128 |
# | Q, k | queries, and blocks wanted for each | a batch, 5 to 5000 |
# | G | rows of a *group*, which the scan reduces to one number | 64 or 128 |
# | B, T, W, H | blocks read, their tokens, span widths, span hidden size | 5, 320, 10, 256 |
#
# The rungs are `kernels/ladder/mips.py` and `kernels/ladder/spans.py`. The code that REALM runs has climbed further:
# `realm_min/search/mips.py` and `realm_min/model/spans.py` for a processor, `kernels/mips_topk.py` and
# `kernels/span_logits.py` for a GPU, and `kernels/bench.py` recorded the figures.
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
import inspect
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import torch

import realm_min
from realm_min import textbook
from realm_min.app.figures import for_a_room, show
from realm_min.interface.inputs import Inputs
from realm_min.interface.open_qa import block_mask
from realm_min.model import spans
from realm_min.search.mips import BlockIndex
from realm_min.verify.differences import central_difference

os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported: they then run on tensors of the processor
from realm_min.kernels import mips_topk as search_kernels
from realm_min.kernels import span_logits as span_kernels
from realm_min.kernels.ladder import counts, measure
from realm_min.kernels.ladder import mips as search_ladder
from realm_min.kernels.ladder import spans as span_ladder

torch.set_num_threads(2)
torch.manual_seed(0)
for_a_room()

model = realm_min.load("factbook")  # the default model, of its two corpora the Factbook alone
blocks = model.block_emb  # Embed_doc of every block of the Factbook, [N, D]
questions = [
    "What is the capital of Uruguay?",
    "What is the capital of Burkina Faso?",
    "What is the climate of Iceland?",
]
inputs = model.retriever.tokenizer(questions, padding=True, return_tensors="pt")
queries = model.embedder(**inputs, return_dict=True).projected_score.contiguous()  # [Q, D]
print("blocks", tuple(blocks.shape), " queries", tuple(queries.shape))

# %% [markdown]
# ## A processor in two numbers
#
# A machine reads and writes at most $\beta$ bytes a second and does at most $\pi$ operations a second. Work that moves
# $b$ bytes and does $a$ operations takes
#
# $$t \ge \max\Bigl(\frac{b}{\beta}, \frac{a}{\pi}\Bigr), \qquad
#   \text{so its rate} \quad \frac{a}{t} \le \min\bigl(I \beta, \pi\bigr) \quad
#   \text{with the arithmetic intensity} \quad I = \frac{a}{b}.$$
#
# Against $I$, that bound is the *roofline*: a slope where memory is the limit, a ceiling where arithmetic is, and
# between them the ridge at $I = \pi / \beta$. Measured on an H200 by `make bench`, with a large copy and with matrix
# products (`benchmarks/kernels-nvidia-h200.csv`):

# %%
BANDWIDTH = 4258.2e9  # bytes a second, read and written
RATES = {"float32": 50989e9, "bfloat16": 799027e9, "int8": 963024e9}  # operations a second
for dtype, rate in RATES.items():
    print(f"{dtype:9} {rate / 1e12:4.0f} TFLOP/s, ridge at {rate / BANDWIDTH:4.0f} operations a byte")

# %% [markdown]
# ## The ladder of the search
#
# All scores, then the k largest: two lines, and what transformers does. Against these every rung is held, in float64.


# %%
def naive(queries: torch.Tensor, blocks: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    scores = queries @ blocks.t()  # [Q, N]
    return scores.topk(k)


def show_source(kernel: object, first: str) -> None:
    """A kernel's source from the line that holds `first`."""
    source = inspect.getsource(getattr(kernel, "fn", kernel))
    print(source[source.rindex("\n", 0, source.index(first)) + 1 :].rstrip())


few = blocks[:300].contiguous()
_, true_ids = naive(queries.double(), few.double(), 5)


def climb(number: int) -> None:
    rung = search_ladder.RUNGS[number - 1]
    _, ids = search_ladder.search(rung, queries, few, 5)
    print(f"rung {rung.name}: the book's blocks, in its order:", torch.equal(ids, true_ids))


# %% [markdown]
# ### Rung 1: scores stored
#
# A Triton *program* is one of many that run the same code, each on another tile. Inside it a tile is one value, spread
# over the registers of 128 threads; `tl.load` and `tl.store` are the only traffic with memory.

# %%
show_source(search_ladder._scores, "query = ")
climb(1)

# %% [markdown]
# - `columns`, `inside`: D is padded to a power of two in registers, never in memory; what is outside reads as 0.
# - `rows` goes to int64 before it is multiplied with D: 13 million times 128 still fits int32, twenty million do not.
# - `tl.sum(e * q)` is a tile of scores [ROWS], and each is stored: 4QN bytes, which `topk` reads again.
#
# *Question.* What of the scores does the selection need? Hardly any: k of N. Which could be left out before it?
#
# ### Rung 2: group maxima
#
# A tile of rows is a *group* and stores one number, its largest score. A row of the k best has a score no smaller than
# the k-th best, and so has its group's maximum; at most k groups can hold such a row. So the k groups of largest
# maximum hold the k best rows, and only those are scored again.

# %%
show_source(search_ladder._group_maxima, "query = ")
climb(2)

# %% [markdown]
# The last group is ragged: its programs read the last row again (`tl.minimum`), which changes no maximum and needs no
# mask. Here are 16 groups of the Factbook, the scores that are never stored, and the maxima that are:

# %%
some = blocks[:1024].contiguous()
maxima = search_ladder.maxima_by_query(queries[:1].contiguous(), some)[0]  # [groups]
scores = (some @ queries[0]).numpy()
G = search_ladder.tile_rows(some.shape[1])
print("maxima are right:", np.allclose(maxima.numpy(), scores.reshape(-1, G).max(1), rtol=1e-5))
threshold = maxima.sort().values[-2]
figure, axis = plt.subplots(figsize=(9, 3.4))
for group, maximum in enumerate(maxima.tolist()):
    rows = np.arange(group * G, (group + 1) * G)
    kept = maximum >= threshold
    axis.plot(rows, scores[rows], ".", markersize=4, color="C0" if kept else "0.75")
    axis.plot([rows[0], rows[-1]], [maximum] * 2, color="C0" if kept else "0.5", linewidth=1.5)
axis.axhline(threshold, color="C3", linewidth=0.8, linestyle=":")
axis.set(xlabel="row", ylabel="score", title=f"groups of {G} rows, their maxima; blue: kept for k = 2")
show(figure, "Scores of 1,024 blocks as dots, with a bar at the maximum of each group of neighbours. The two groups "
     "of largest maximum are blue and hold the two best scores.")  # fmt: skip

# %% [markdown]
# ### Rung 3: one pass
#
# Rungs 1 and 2 have a program for each tile *and query*: 64 queries read all blocks 64 times. Here a tile stays in
# registers while the queries go by.

# %%
show_source(search_ladder._one_pass, "e = tl.load")
climb(3)

# %% [markdown]
# *Question.* A row of 128 numbers lies across the 32 threads of a warp, four each. How does its sum come about?
# Each thread adds its four, and then the warp halves: 16 threads hand their sum to 16 others, 8 to 8, and so on. Five
# *shuffles* for a row and a query, as many instructions as the multiplications themselves. The memory is no longer the
# limit, and neither is arithmetic: it is handing numbers round.
#
# ### Rung 4: tensor cores
#
# A tensor core multiplies a tile with a tile and adds inside. Which of the two is laid out how decides what comes next:
# with queries as rows of the product, a thread holds many scores of *one* query, and their maximum needs no other
# thread.

# %%
show_source(search_ladder._tensor_cores, "scores = tl.zeros")
climb(4)

# %% [markdown]
# Tensor cores take float32 as TF32: of 23 binary digits behind the point the last 13 are cut (`_cut` does so in the
# interpreter, which would multiply exactly). A number that keeps 10 digits is short by less than $2^{-10}$ of itself,
# so a product of two is short by less than $2 \cdot 2^{-10} |q_i| |e_i|$. Summed over i, by Cauchy and Schwarz, that is
# at most $2 \cdot 2^{-10} |q| |e|$, and 2.2 in place of 2 leaves room for the rounding of the sum. Where scores lie
# closer than that, groups may be chosen wrongly. Blocks that all look in one direction are such a case:

# %%
close = measure.close_case(2, 1200, 32, "cpu")
close_truth = measure.true_ids(*close, 1)


def share_wrong(number: int) -> float:
    return measure.share_wrong(search_ladder.RUNGS[number - 1], close, close_truth, {})


for number in (1, 2, 3, 4):
    print(f"rung {search_ladder.RUNGS[number - 1].name:16} wrong where scores lie close: {share_wrong(number):.0%}")

# %% [markdown]
# ### Rung 5: int8
#
# What is left is the reading of the blocks. Rounded to 255 steps they are a quarter of the bytes, and whole numbers
# multiply without any error. All rows of a group share one scale, so their products can be compared before they are
# scaled: the kernel ends as rung 4's does, with a maximum, of integers.

# %%
show_source(search_ladder.compress, "n, d = ")
show_source(search_ladder._int8, "scores = tl.zeros")
climb(5)
print(f"wrong where scores lie close: {share_wrong(5):.0%}")

# %% [markdown]
# ### Rung 6: the certificate
#
# How wrong can rung 5 be? With codes $\hat e$ of e and $\hat q$ of q,
# $$q \cdot e - \hat q \cdot \hat e = q \cdot (e - \hat e) + (q - \hat q) \cdot \hat e, \qquad
#   |q \cdot e - \hat q \cdot \hat e| \le |q| |e - \hat e| + |q - \hat q| |\hat e|$$
# by Cauchy and Schwarz, and all four norms are known. So a group's best score lies in an interval round its maximum.
# The k-th largest *lower* end is a threshold that k rows surely reach; a group whose *upper* end is below it holds none
# of the k best. All others are scored again, in float64.

# %%
show_source(search_ladder.certificate, "codes = ")
show_source(search_ladder.undecided, "threshold = ")
climb(6)
print(f"wrong where scores lie close: {share_wrong(6):.0%}")

figure, axes = plt.subplots(1, 2, figsize=(10.5, 3.6))
for axis, (title, (q, e), k) in zip(
    axes, (("the Factbook, k = 2", (queries[:1], blocks[:4096]), 2), ("close scores, k = 1", close, 1)), strict=True
):
    lower, upper = search_ladder.intervals(q[:1].contiguous(), search_ladder.compress(e))
    chosen = search_ladder.undecided(lower, upper, k)[0]
    middle, half = ((upper + lower) / 2)[0], ((upper - lower) / 2)[0]
    for groups, color in ((torch.arange(len(middle)), "0.6"), (chosen, "C0")):
        axis.errorbar(groups, middle[groups], half[groups], fmt="none", ecolor=color, capsize=2)
    axis.axhline(float(lower.topk(k).values[0, -1]), color="C3", linewidth=0.8, linestyle=":")
    axis.set(title=f"{title}:\n{len(chosen)} of {len(middle)} groups scored again", xlabel="group", ylabel="score")
show(figure, "Intervals of the groups' best scores. On the Factbook few reach the threshold and are blue; where "
     "scores lie close, all do.")  # fmt: skip

# %% [markdown]
# Nothing is assumed about the data: where all scores lie together, everything is scored again, and the price is time,
# never the answer. On a processor `BlockIndex` does the same, with a scan that fits it; `last_search` says how much it
# scored again.

# %% tags=["varies"]
index = BlockIndex(blocks, "int8")
found_scores, _ = index.search(queries, 5)
print("same scores as the naive way:", torch.allclose(found_scores, naive(queries, blocks, 5)[0], rtol=1e-5))
print(f"groups scored again {index.last_search.rescored_groups} of {index.last_search.groups}")

# %% [markdown]
# ### The ladder, counted
#
# A phase of a rung moves bytes and does operations, and a card needs the longer of the two times at least
# (`kernels/ladder/counts.py`). Two million blocks, k = 5, on an H100 as its maker describes it:

# %%
card = counts.CARDS["H100 SXM"]
print(f"{'':16}{'1 query':>24}{'64 queries':>24}")
for rung in search_ladder.RUNGS:
    phases = [counts.search_phases(rung.name, Q, 2_000_000, 128, 5) for Q in (1, 64)]
    cells = [f"{sum(p.memory for p in of) / 1e6:10,.0f} MB {1e3 * counts.seconds(of, card):7.3f} ms" for of in phases]
    print(f"{rung.name:16}", *(f"{cell:>23}" for cell in cells))

# %%
figure, axis = plt.subplots(figsize=(9, 3.6))
for rung in search_ladder.RUNGS:
    left = 0.0
    for phase, color in zip(counts.search_phases(rung.name, 64, 2_000_000, 128, 5), ("0.6", "C1", "C2"), strict=False):
        width = 1e3 * counts.seconds([phase], card)
        axis.barh(rung.name, width, left=left, color=color)
        left += width
axis.invert_yaxis()
axis.set(title="64 queries (rungs 1 and 2: 20 ms)", xlim=(0, 0.6))
axis.set_xlabel("ms at least: scan grey, selection and bounds orange, rescoring green")
show(figure, "Bars of the least time of each rung for 64 queries: rungs 1 and 2 run off the scale, one pass takes "
     "half a millisecond, tensor cores less, and int8 the least, with some more for its certificate.")  # fmt: skip

# %% [markdown]
# A count knows nothing of shuffles. The compiler does, and needs no GPU: `python -m realm_min.kernels.ladder` compiles
# every rung and disassembles it. For Hopper, by Triton 3.7.1, D = 128 (a loop's instructions are counted once):
#
# | rung | registers | shared memory | instructions | shuffles | barriers | tensor cores |
# | --- | ---: | ---: | ---: | ---: | ---: | ---: |
# | 1 scores stored | 80 | 512 | 472 | 80 | 3 | 0 |
# | 2 group maxima | 80 | 512 | 488 | 82 | 4 | 0 |
# | 3 one pass | 119 | 512 | 576 | 82 | 5 | 0 |
# | 4 tensor cores | 122 | 73,728 | 440 | 4 | 5 | 4 |
# | 5 int8 | 120 | 73,728 | 400 | 4 | 5 | 4 |
#
# On rung 3 a warp needs 82 shuffles for *each* query, five for each of its 16 rows and two for the maximum; on rung 4
# it needs 4 for all 128 rows and its 16 queries. On a GPU the same command measures every rung beside its prediction.
#
# ### The ladder, measured
#
# On an H200, beside the least time that its own bandwidth and rates, measured first, allow. The *kernel* is the scan
# alone, the *whole* rung ends with the k best blocks, and *wrong* is the share of blocks that are not among the k best,
# of random numbers and where scores lie close.

# %%
MEASURED = {  # benchmarks/ladder-nvidia-h200.csv: at least, kernel, whole rung in ms; share wrong, random and close
    "1 scores stored": (15.670, 14.851, 16.577, 0.000, 0.009),
    "2 group maxima": (15.435, 14.160, 15.561, 0.000, 0.009),
    "3 one pass": (0.643, 3.309, 4.389, 0.000, 0.009),
    "4 tensor cores": (0.248, 0.245, 1.297, 0.003, 0.403),
    "5 int8": (0.067, 0.093, 1.117, 0.034, 1.000),
    "6 certificate": (0.108, 0.093, 1.515, 0.000, 0.000),
}
print(f"{'ms':16}{'at least':>10}{'kernel':>10}{'whole':>10}{'wrong':>10}{'close':>10}")
for rung, (least, kernel, whole, wrong, wrong_close) in MEASURED.items():
    print(f"{rung:16}{least:10.3f}{kernel:10.3f}{whole:10.3f}{wrong:10.1%}{wrong_close:10.1%}")

figure, axis = plt.subplots(figsize=(9.5, 3.6))
for place, (label, color) in enumerate(
    (("predicted at least", "0.75"), ("its kernel", "C0"), ("the whole rung", "C3"))
):
    axis.bar(
        np.arange(6) + 0.27 * (place - 1), [row[place] for row in MEASURED.values()], 0.26, label=label, color=color
    )
axis.set(yscale="log", ylabel="milliseconds")
axis.set_xticks(range(6), [rung.replace(" ", "\n", 1) for rung in MEASURED])
axis.legend()
show(figure, "Predicted and measured milliseconds of the six rungs on a logarithmic axis. Kernels come near their "
     "prediction but for rung 3; from rung 4 on the whole rung takes about a millisecond, far above its "
     "kernel.")  # fmt: skip

# %% [markdown]
# Rungs 1 and 2 are where the memory lets them be, their kernels a little better: some of a pass over the blocks may
# still be in the L2 cache when the next one comes. Rung 3 takes several times its prediction: the shuffles. Rung 4's
# kernel is back at the limit, of the memory again, and int8 lowers that. From there on the kernel is not what takes
# the time: choosing groups and scoring their rows again are dozens of small operations, and the host must wait for a
# number before it can start the next. There the kernels that REALM runs go on. And exactness: where scores lie close,
# TF32 and int8 are wrong often, float32 itself is at times, and the certificate never.
#
# The reader's ladder, below, ends in a surprise: *best only* moves the fewest bytes and is slower than the rung before.
# It carries the best through its loop, in more registers (106 a thread against 96), and ends in small operations of its
# own. A count of bytes predicts what is limited by bytes.
#
# ### Who else climbed here
#
# TPU-KNN (Chern et al. 2022) keeps the best of each bin and returns these: rung 2 without going through the best bins
# again, and so with a recall just under 1. Dr. Top-k (Gaihre et al. 2021) finds by maxima which parts of a vector can
# hold an answer: rung 2's argument, on a vector that is in memory. Radix selection (Alabi et al. 2012; AIR top-k,
# Zhang et al. 2023; RadiK, Li et al. 2024) counts digits of numbers in memory: another `topk` for what remains to be
# chosen. FAISS (Johnson et al. 2017) keeps the k best in registers while it scans, hence a limit on k. The VA-file
# (Weber et al. 1998) bounds distances by codes and reads what the bounds cannot decide: rung 6's ancestor. What is
# different here is how they meet: no score in memory, tensor cores on codes, and an answer that is proved.
# `kernels/ladder/__init__.py` says more.
#
# ## The traffic of a search
#
# For REALM's 13 million blocks and k = 5, as `BlockIndex` scans them. The rescoring is put at k groups a query, 2k for
# bfloat16 and 7k for int8, about what the benchmark counted on random data.


# %%
def traffic(version: str, Q: int, N: int = 13_353_718, D: int = 128, k: int = 5, G: int = 128) -> dict[str, float]:
    """Bytes moved by one search."""
    if version == "naive":
        return {"blocks": 4 * N * D, "scores, written and read": 2 * 4 * Q * N}
    size, rescored = {"float32": (4, k), "bfloat16": (2, 2 * k), "int8": (1, 7 * k)}[version]
    return {
        "blocks": size * N * D,
        "group maxima, written and read": 2 * 4 * Q * N / G,
        "rescored rows": Q * rescored * G * D * 4,
    }


versions = ("naive", "float32", "bfloat16", "int8")
colors = {"blocks": "0.7", "scores, written and read": "C3", "group maxima, written and read": "C0",
          "rescored rows": "C2"}  # fmt: skip
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True)
for axis, Q in zip(axes, (1, 64), strict=True):
    for place, version in enumerate(versions):
        left = 0.0
        for part, count in traffic(version, Q).items():
            axis.barh(place, count / 1e9, left=left, color=colors[part], label=part)
            left += count / 1e9
        axis.text(left, place, f" {left:.1f}", va="center")
    axis.set(title=f"{Q} {'query' if Q == 1 else 'queries'}", xlabel="GB moved")
    axis.set_xlim(0, 1.18 * sum(traffic("naive", Q).values()) / 1e9)
axes[0].set_yticks(range(4), versions)
axes[0].invert_yaxis()
handles, labels = axes[1].get_legend_handles_labels()
parts = dict(zip(labels, handles, strict=True))
figure.legend(parts.values(), parts.keys(), loc="outside lower center", ncols=2)
show(figure, "Gigabytes moved by a search: for one query nearly all of it is the blocks, for 64 queries of the naive "
     "way half of it is the score matrix.")  # fmt: skip
print(f"the score matrix of 512 queries alone: {4 * 512 * 13_353_718 / 1e9:.1f} GB")

# %% [markdown]
# For one query the blocks are nearly all there is: only compression helps. For many, the score matrix is what counts,
# and it no longer exists.
#
# ## The roofline
#
# Runs recorded on the H200 over 13,353,718 blocks, k = 5, against their intensity: 2QND operations over the least bytes
# that the version has to move, as counted above. Each line of points is one contender at 1, 16, 64 and 512 queries.

# %%
RECORDED = {  # benchmarks/kernels-nvidia-h200.csv: seconds of 1, 16, 64 and 512 queries
    "torch": (0.00394269, 0.00640486, 0.0155066, 0.130671),
    "index float32": (0.00186245, 0.00233126, 0.00248154, 0.0147126),
    "index bfloat16": (0.00113336, 0.00148, 0.0013948, 0.00559629),
    "index int8": (0.000775808, 0.00118013, 0.00104259, 0.0043249),
}
figure, axis = plt.subplots(figsize=(9, 4.8))
intensities = np.logspace(-0.7, 3.2, 200)
for dtype, style in (("float32", "k-"), ("int8", "k--")):
    axis.loglog(intensities, np.minimum(intensities * BANDWIDTH, RATES[dtype]) / 1e12, style, linewidth=1,
                label=f"roof, {dtype} products")  # fmt: skip
for contender, version in zip(RECORDED, versions, strict=True):
    operations = [2 * Q * 13_353_718 * 128 for Q in (1, 16, 64, 512)]
    moved = [sum(traffic(version, Q).values()) for Q in (1, 16, 64, 512)]
    rates = [work / seconds / 1e12 for work, seconds in zip(operations, RECORDED[contender], strict=True)]
    axis.loglog(np.divide(operations, moved), rates, "o-", label=contender.replace("torch", "naive (torch)"))
axis.set(xlabel="operations a byte", ylabel="TFLOP/s")
axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
axis.grid(alpha=0.25)
show(figure, "A roofline: a slope, then two ceilings. The naive way stops at the left, since its score matrix keeps "
     "its intensity low; the indices climb on to the right with the number of queries, int8 highest.")  # fmt: skip

# %% [markdown]
# At one query every contender hangs under the slope, and a smaller copy moves the point to the right and up. With more
# queries the naive version stops climbing, since each query brings its own column of scores: its intensity cannot pass
# $2D / 8 = 32$. The fused versions climb on towards the ceiling: from 16 queries to 64 their time hardly changes, since
# the blocks are read once, whoever asks. What keeps them below the roof is choosing groups and scoring them again. The
# float32 index rises above the roof of float32 products, because its scan multiplies in TF32 on tensor cores, and the
# certificate makes up for it.
#
# The intensity belongs to the algorithm, not to the machine. Hold it against the ridge of a device of yours:

# %%
print("operations a byte           1 query   64 queries   512 queries")
for version in versions:
    row = [2 * Q * 13_353_718 * 128 / sum(traffic(version, Q).values()) for Q in (1, 64, 512)]
    print(f"search, {version:14}", *(f"{value:12.1f}" for value in row))
B, T, W, H = 5, 320, 10, 256
count = B * spans.span_count(T, W)
for name, operations, least in (
    ("forward", 8, 2 * B * T * H + count),
    ("best span", 8, 2 * B * T * H),
    ("backward", 24, 4 * B * T * H + 7 * count),
):
    print(f"span logits, {name:9} {operations * count * H / (4 * least):12.1f}")

# %% [markdown]
# ## The ladder of the reader
#
# Written with whole tensors, every step of $v \cdot \mathrm{LayerNorm}(\mathrm{relu}(S_i + E_j)) + c$ reads and writes
# arrays of [B, spans, H], ten times as large as S or E. On real text, the reader's own S and E for a block and a
# question:

# %%
records = model.retriever.block_records
of_uruguay = [i for i, record in enumerate(records) if bytes(record).startswith(b"Uruguay. ")][:5]
question_ids = model.retriever.tokenizer(questions[:1], return_tensors="pt").input_ids
*_, read = model.retriever(of_uruguay, question_ids, None, max_length=model.config.reader_seq_len)
mask = block_mask(read)  # bool [B, T]
_, encoded = model.reader.span_logits(
    Inputs(read.input_ids, read.attention_mask, read.token_type_ids), torch.zeros(5), mask
)
p = {name.removeprefix("qa_outputs."): tensor for name, tensor in model.reader.state_dict().items()}
projections = encoded.hidden @ p["dense_intermediate.weight"].t() + p["dense_intermediate.bias"]
S, E = projections.chunk(2, 2)  # [B, T, H] each
weights = (p["layer_normalization.weight"], p["layer_normalization.bias"], p["dense_output.weight"][0],
           p["dense_output.bias"])  # fmt: skip
options = dict(max_span_width=model.config.max_span_width, eps=model.config.reader_layer_norm_eps)
B, T, H = S.shape
print(f"{B} blocks of {T} tokens, H = {H}: {B * spans.span_count(T, 10):,} spans")


# %%
def naive_spans(S: torch.Tensor, E: torch.Tensor) -> torch.Tensor:
    gamma, beta, v, c = weights
    starts, ends = spans.span_candidates(S.shape[1], options["max_span_width"])
    h = S[:, starts] + E[:, ends]  # [B, spans, H]
    h = torch.maximum(h, torch.zeros(()))
    centred = h - h.mean(2, keepdim=True)
    variance = (centred * centred).mean(2, keepdim=True)
    normed = centred / (variance + options["eps"]).sqrt() * gamma + beta
    return normed @ v + c


ours = spans.span_logits(spans.SpanInputs(S, E, *weights, **options))  # [B, spans]
print("spans.py and the naive way agree to 1e-4:", torch.allclose(naive_spans(S, E), ours, atol=1e-4))

# %% [markdown]
# Count in units of one [B, spans, H] array. Gathering S and E writes two; the sum reads two and writes one; relu reads
# and writes one; so do taking the mean out, squaring, dividing, scaling and shifting; the means and the last product
# read one each. That is 20 units if nothing stays in cache.
#
# ### Rung 1: two kernels, h between them
#
# The gathering, the sum and relu in one kernel, the LayerNorm and the product in a second: h is written once and read
# once, 2 units. Rungs run on two blocks of 16 tokens, without mask and relevance.

# %%
few_S, few_E = S[:2, :16].contiguous(), E[:2, :16].contiguous()
in_float64 = {name: tensor.double().numpy() for name, tensor in model.reader.state_dict().items()}
projections = torch.cat([few_S, few_E], 2).double().numpy()  # [2, tokens, 2 * span hidden]
everywhere = np.ones((2, 16), bool)
true_logits = textbook.span_logits(in_float64, model.config, projections, everywhere)[0]  # [2, spans]
gamma, beta, v, c = weights
x = span_ladder.Spans(few_S, few_E, gamma, beta, v, float(c), options["eps"], options["max_span_width"])


def climb_spans(number: int) -> None:
    rung = span_ladder.RUNGS[number - 1]
    logits = span_ladder.score_spans(rung, x).numpy()
    print(f"rung {rung.name}: the book's logits to 1e-5:", np.allclose(logits, true_logits, atol=1e-5))


show_source(span_ladder._hidden, "width = ")
show_source(span_ladder._normalised, "h = tl.load")
climb_spans(1)

# %% [markdown]
# ### Rung 2: the algebra
#
# The LayerNorm and the product are linear in h, but for one division. With $u = v \gamma$, mean $\mu$ and variance
# $\sigma^2$ of h (notebook 5): $\mathrm{logit} = \sum u (h - \mu) / \sqrt{\sigma^2 + \varepsilon} + v \cdot \beta + c$.
# Three sums over what is in registers, and nothing between two kernels.

# %%
show_source(span_ladder._logit, "h = tl.maximum")
climb_spans(2)

# %% [markdown]
# *Question.* A row of S is the start of up to W spans, and a row of E the end of as many. How often does rung 2 ask for
# each? Ten times, and mostly a cache answers, which has its limits too.
#
# ### Rung 3: one pass over the widths
#
# A program keeps eight rows of S and walks over the widths. For each it loads eight rows of E, one further to the
# right: seven of them were read a step before.

# %%
show_source(span_ladder._one_pass, "span = ")
climb_spans(3)

# %%
figure, axis = plt.subplots(figsize=(8, 4.2))
length, tile, widths = 20, 8, 6
for width in range(widths):
    for start in range(length - width):
        program = start // tile
        face = plt.Rectangle((start, width), 1, 1, facecolor=f"C{program}", alpha=0.4, edgecolor="w")
        axis.add_patch(face)
axis.add_patch(plt.Rectangle((8, 3), 8, 1, fill=False, edgecolor="k", linewidth=2))
note = "program 1 at width 4:\nrows 8..15 of S in registers,\nrows 11..18 of E loaded"
axis.annotate(note, (13, 4.05), (9.2, 8.3), arrowprops=dict(arrowstyle="->"))  # fmt: skip
axis.set(xlim=(0, length), ylim=(9.2, 0), xlabel="first token of the span", ylabel="width", title="the span logits")
axis.set_yticks(np.arange(widths) + 0.5, range(1, widths + 1))
axis.set_xticks(np.arange(0, length, 4) + 0.5, range(0, length, 4))
show(figure, "The span logits as rows of widths, coloured by the program that computes them; a frame marks eight "
     "spans that one program computes in one turn of its loop.")  # fmt: skip

# %% [markdown]
# The last tile of each row is ragged: a span must not run past the end of its block (`valid`), nor a tile past the
# last token. Spans of different blocks never mix, although the tiles do not care where a block ends:
# `token = rows % tokens` knows.
#
# ### Rung 4: best only
#
# To answer, one span is needed and not 3,155 logits a block: each program stores its best and where that is.

# %%
show_source(span_ladder._best_only, "span = ")
score, place = span_ladder.score_spans(span_ladder.RUNGS[3], x)
print("rung 4 best only: the book's best span:", int(place) == true_logits.argmax())

print("\n64 blocks of 320 tokens, on an H100 at least:")
for rung in span_ladder.RUNGS:
    phases = counts.span_phases(rung.name, 64, 320, 256, 10)
    asked, memory = sum(p.asked for p in phases) / 1e6, sum(p.memory for p in phases) / 1e6
    least = 1e3 * counts.seconds(phases, card)
    print(f"{rung.name:16} {asked:4.0f} MB asked for, {memory:4.0f} from memory {least:7.3f} ms")

# %% [markdown]
# ## The clock
#
# The span logits on the machine this ran on, the best of several runs by turns: the code for a processor took the same
# steps. (Notebook 3 times the search.)

# %% tags=["varies"]
contenders = {
    "span logits, naive": lambda: naive_spans(S, E),
    "span logits, spans.py": lambda: spans.span_logits(spans.SpanInputs(S, E, *weights, **options)),
}
best = dict.fromkeys(contenders, float("inf"))
for _ in range(7):
    for name, run in contenders.items():
        start = time.perf_counter()
        run()
        best[name] = min(best[name], time.perf_counter() - start)
for name, seconds in best.items():
    print(f"{name:28} {1e3 * seconds:7.2f} ms")

# %% [markdown]
# ## The kernels that REALM runs
#
# They have what a rung leaves out to be read: programs that stay and walk over many tiles, loads that run ahead, any
# dtype, the mask and the relevance score, errors. In the interpreter, against the book:

# %%
found_scores, found_ids = search_kernels.mips_topk(queries, few, 5)
print("search, the book's blocks:", torch.equal(found_ids, true_ids))
by_rung = search_ladder.search(search_ladder.RUNGS[5], queries, few, 5)
print(
    "and rung 6's answer, to the last bit:", torch.equal(found_scores, by_rung[0]), torch.equal(found_ids, by_rung[1])
)

few_options = options | dict(block_mask=torch.ones(2, 16, dtype=torch.bool), relevance_score=torch.tensor([0.5, -0.5]))
few_options["block_mask"][:, :3] = False  # the question
few_inputs = spans.SpanInputs(few_S, few_E, *weights, **few_options)
logits = span_kernels.span_logits(few_inputs)  # [2, spans]
allowed, relevance = few_options["block_mask"].numpy(), few_options["relevance_score"].double().numpy()


def by_the_book(projections: np.ndarray) -> np.ndarray:
    return textbook.span_logits(in_float64, model.config, projections, allowed)[0] + relevance[:, None]


true_logits = by_the_book(projections)  # [2, spans]
inside = true_logits > -1e30
print("logits against the book, to 1e-5:", np.allclose(logits.numpy()[inside], true_logits[inside], atol=1e-5))

dlogits = torch.randn(logits.shape)
gradients = span_kernels.span_logits_backward(dlogits, few_inputs)
column = [0, slice(None), 7]  # S of one hidden unit, for the finite differences


def weighted_sum(values: np.ndarray) -> float:
    moved = projections.copy()
    moved[tuple(column)] = values
    return float((by_the_book(moved)[inside] * dlogits.numpy()[inside]).sum())


by_difference = central_difference(weighted_sum, projections[tuple(column)])
by_kernel = gradients["start_projection"][tuple(column)].numpy()
measured = allowed[0]  # masked spans drown in -3.4e38: their gradient is there, unmeasurable
close = np.allclose(by_kernel[measured], by_difference[measured], atol=1e-4)
print("backward against finite differences, to 1e-4:", close)

# %% [markdown]
# The same source compiles for a GPU: `tests/kernels/test_kernels_compile.py` does so for every variant, without one.
#
# ## Exercises
#
# **1.** From how many queries on is the float32 scan of the H200 limited by arithmetic rather than by memory? And the
# int8 scan?
#
# <details><summary>Solution</summary>
#
# The scan does 2QND operations on 4ND bytes: I = Q/2, or 2Q for int8. It meets the ridge where $I = \pi / \beta$.
#
# ```python
# print("float32 from", 2 * RATES["float32"] / BANDWIDTH, "queries; int8 from", RATES["int8"] / BANDWIDTH / 2)
# ```
# In TF32, as the ladder's scan multiplies, eight times as many operations a second are done, and float32 gets there at
# eight times as many queries. That is why compression helps one query most, and a batch of 512 less.
# </details>
#
# **2.** Large groups make few maxima, small ones few rows to rescore. Which G moves the fewest bytes for one query
# over REALM's blocks, for k = 5 and for k = 5000? Rungs 4 to 6 take 128.
#
# <details><summary>Solution</summary>
#
# The maxima are written and read, 8N/G bytes, and kG rows of 4D bytes are rescored. The sum $8N/G + 4DkG$ is least
# where its derivative $-8N/G^2 + 4Dk$ vanishes, at $G = \sqrt{2N / (Dk)}$.
#
# ```python
# for k in (5, 5000):
#     print(k, (2 * 13_353_718 / (128 * k)) ** 0.5)
# ```
# 204 and 6.5. Bytes are not all: at k = 5000 and G = 64 the rescored rows are 164 MB, a fortieth of the scan's 6.8 GB,
# and choosing among a tenth of the maxima takes less time.
# </details>
#
# **3.** The backward of the span logits could store h in the forward. It stores three numbers a span instead (a, d and
# mean(h), see the head of `kernels/span_logits.py`) and computes h again from S and E. How many bytes does that save
# at B = 64, T = 320?
#
# <details><summary>Solution</summary>
#
# ```python
# count = 64 * spans.span_count(320, 10)
# print("h, written once and read twice:", 3 * 4 * count * 256 / 1e6, "MB")             # 620 MB
# print("three numbers, written, read twice:", 3 * 3 * 4 * count / 1e6, "MB")            # 7.3 MB
# print("S and E once more:", 2 * 4 * 64 * 320 * 256 / 1e6, "MB")                        # 42 MB
# ```
# Computing h again costs one addition and one comparison a number, far below the ridge: arithmetic is cheap where
# memory is the limit.
# </details>
