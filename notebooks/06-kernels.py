# %% [markdown]
# # 6. The kernels
#
# Two steps of REALM are hot: the search through millions of block embeddings, and the scores of thousands of spans.
# Both do little arithmetic with much data, so what they cost is the traffic between memory and processor. This
# notebook goes from the naive version of each to the fused one and counts the bytes on the way, places recorded runs
# under the roofline of their machine, and runs the Triton kernels, tile by tile, in Triton's interpreter.
#
# | symbol | meaning | REALM |
# | --- | --- | --- |
# | N, D | blocks, and dimensions of their embeddings | 13,353,718 and 128 |
# | Q, k | queries, and blocks wanted for each | a batch, 5 to 5000 |
# | G | rows of a *group*, which the scan reduces to one number | 16 to 128 |
# | B, T, W, H | blocks read, their tokens, span widths, span hidden size | 5, 320, 10, 256 |
#
# The code is `realm_min/search/mips.py` and `realm_min/model/spans.py` for a processor, `kernels/mips_topk.py` and
# `kernels/span_logits.py` in Triton for a GPU, and `kernels/bench.py`, which recorded the figures.

# %%
import csv
import inspect
import os
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from realm_min import textbook
from realm_min.app.cli import load_model
from realm_min.interface.inputs import Inputs
from realm_min.interface.open_qa import block_mask
from realm_min.model import spans
from realm_min.search import bounds, mips
from realm_min.search.mips import BlockIndex
from realm_min.verify.differences import central_difference

os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported: they then run on tensors of the processor
from realm_min.kernels import mips_topk as search_kernels
from realm_min.kernels import span_logits as span_kernels

torch.set_num_threads(2)
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 80, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

model = load_model(None)
blocks = model.block_emb  # Embed_doc of every block of the Factbook, [N, D]
questions = [
    "What is the capital of Uruguay?",
    "Which countries border Switzerland?",
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
# between them the ridge at $I = \pi / \beta$. The benchmark measures $\beta$ (a large copy) and $\pi$ (a matrix
# product) first, and writes them at the head of its CSV.

# %%
with open(Path("..") / "benchmarks" / "kernels-cpu.csv", encoding="utf-8", newline="") as file:
    lines = file.read().splitlines()
heading = dict(line[2:].split(": ", 1) for line in lines if line.startswith("#"))
recorded = list(csv.DictReader(line for line in lines if not line.startswith("#")))
bandwidth = float(heading["copy bandwidth, GB/s read and written"]) * 1e9
rates = {dtype: float(heading[f"matrix rate, GFLOP/s {dtype}"]) * 1e9 for dtype in ("float32", "bfloat16")}
print(heading["device"], heading["date"], sep=", ")
print(f"bandwidth {bandwidth / 1e9:.1f} GB/s, ", end="")
print(
    *(f"{dtype} {rate / 1e9:.0f} GFLOP/s, ridge at {rate / bandwidth:.0f}" for dtype, rate in rates.items()), sep="; "
)

# %% [markdown]
# ## The search, naively
#
# All scores, then the k largest: two lines, and what transformers does.


# %%
def naive(queries: torch.Tensor, blocks: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    scores = queries @ blocks.t()  # [Q, N]
    return scores.topk(k)


naive_scores, naive_ids = naive(queries, blocks, 5)
print(naive_ids)

# %% [markdown]
# It reads the blocks once, 4ND bytes, writes 4QN bytes of scores and reads them again for the selection. The scores
# are used once and are as many as the blocks are long.
#
# ## Version 1: keep a maximum for each group
#
# Notebook 3 proves that the k groups of largest maximum hold the k best rows. So a tile of rows is scored, and only
# the maximum of each of its groups leaves the cache (or, on a GPU, the registers): 4QN/G bytes instead of 4QN.
# Afterwards k groups are read once more.


# %%
def grouped(queries: torch.Tensor, blocks: torch.Tensor, k: int, G: int) -> tuple[torch.Tensor, torch.Tensor]:
    maxima = []
    for tile in blocks.split(16 * G):  # the scores of a tile never leave the cache
        maxima.append(bounds.group_max(tile @ queries.t(), G))  # [groups of the tile, Q]
    groups = torch.cat(maxima).topk(k, dim=0).indices  # [k, Q]
    scores, ids = [], []
    for query, chosen in zip(queries, groups.t(), strict=True):
        rows = (chosen[:, None] * G + torch.arange(G)).flatten()
        rows = rows[rows < len(blocks)]  # [k * G]
        best = (blocks[rows] @ query).topk(k)
        scores.append(best.values)
        ids.append(rows[best.indices])
    return torch.stack(scores), torch.stack(ids)


print("same scores as the naive way:", torch.allclose(grouped(queries, blocks, 5, 32)[0], naive_scores, rtol=1e-5))

# %% [markdown]
# ## Version 2: scan a compressed copy, and certify
#
# Most of the traffic is now the blocks themselves. Scanned as int8 they are a quarter of the bytes, and off by a known
# bound: groups that the bound cannot rule out are rescored from the float32 rows, and the answer is still exact.
# `BlockIndex` is this version; `last_search` says how much it rescored. That depends on the data alone: where all
# scores lie closer together than the bound, everything is rescored, and the cost is time, never the answer.

# %%
indexes = {compression or "float32": BlockIndex(blocks, compression) for compression in mips.COMPRESSIONS}
for name, index in indexes.items():
    found_scores, _ = index.search(queries, 5)
    print(f"{name:9} same scores as the naive way: {torch.allclose(found_scores, naive_scores, rtol=1e-5)}")

# %% tags=["varies"]
for name, index in indexes.items():
    report = index.last_search
    print(f"{name:9} rescored groups {report.rescored_groups} of {report.groups}, rows {report.rescored_rows}")

# %% [markdown]
# ### The traffic, counted
#
# For REALM's 13 million blocks and k = 5. The rescoring is put at k groups a query, 2k for bfloat16 and 7k for int8,
# about what the benchmark counted on random data.


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
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained", sharey=True)
for axis, Q in zip(axes, (1, 64, 512), strict=True):
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
handles, labels = axes[2].get_legend_handles_labels()
parts = dict(zip(labels, handles, strict=True))
figure.legend(parts.values(), parts.keys(), loc="outside lower center", ncols=4, frameon=False)
plt.show()
print(f"the score matrix of 512 queries alone: {4 * 512 * 13_353_718 / 1e9:.1f} GB")

# %% [markdown]
# For one query the blocks are nearly all there is: only compression helps. For many, the score matrix is what counts,
# and it no longer exists.
#
# ## The roofline
#
# Recorded runs over two million blocks, k = 5, against their intensity: 2QND operations over the least bytes that the
# version has to move, as counted above. Each line of points is one contender at 1, 16, 64 and 512 queries.

# %%
figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
intensities = np.logspace(-0.7, 3, 200)
for dtype, style in (("float32", "k-"), ("bfloat16", "k--")):
    roof = np.minimum(intensities * bandwidth, rates[dtype])
    axis.loglog(intensities, roof / 1e9, style, linewidth=1, label=f"roof, {dtype} products")
contenders = {"torch": "naive", "faiss": "float32", "index float32": "float32", "index bfloat16": "bfloat16",
              "index int8": "int8"}  # fmt: skip
for number, (contender, version) in enumerate(contenders.items()):
    runs = [run for run in recorded if (run["section"], run["contender"], run["k"]) == ("search", contender, "5")]
    points = []
    for run in runs:
        Q, N = int(run["queries"]), int(run["blocks"])
        operations = 2 * Q * N * 128
        points.append((operations / sum(traffic(version, Q, N).values()), operations / float(run["seconds"]) / 1e9))
    name = {"torch": "naive (torch)", "faiss": "FAISS flat"}.get(contender, contender.replace("index", "ours,"))
    axis.loglog(*zip(*points, strict=True), "o-", color=f"C{number}", linewidth=0.8, markersize=5, label=name)
for who, marker in (("transformers", "x"), ("ours", "D")):
    run = next(
        r for r in recorded if r["section"] == "spans, forward" and r["contender"] == who and r["blocks"] == "64"
    )
    B, T, W, H = 64, 320, 10, 256
    operations = 8 * B * spans.span_count(T, W) * H
    least = 4 * (2 * B * T * H + B * spans.span_count(T, W))
    point = operations / least, operations / float(run["seconds"]) / 1e9
    axis.loglog(*point, marker, color="C6", markersize=6, label=f"span logits, {who}", linestyle="none")
axis.set(xlabel="operations a byte", ylabel="GFLOP/s")
axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
axis.grid(alpha=0.25)
plt.show()

# %% [markdown]
# At one query every contender hangs under the slope, and a smaller copy moves the point to the right and up. With more
# queries the naive version stops climbing, since each query brings its own column of scores: its intensity cannot pass
# $2D / 8$. The fused versions climb on towards the ceiling. Span logits stand far below the roof: relu and LayerNorm
# are not matrix products, and their ceiling is that of ordinary arithmetic.
#
# **On a GPU.** No GPU was at hand when these figures were recorded, so there is no GPU point here; `make bench`
# records one wherever it finds a device. What can be said without one is the intensity, which belongs to the
# algorithm. Hold it against the ridge of a device, its operations a second over its bytes a second:

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
# ## Span logits, naively
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
# read one each. That is 20 units if nothing stays in cache, and a library that does the LayerNorm in one step needs
# about 10.
#
# The fused version never stores h. By the algebra of notebook 5 it needs three sums over h, all taken while h is in
# registers (Triton) or in a piece of the cache (`spans.py`):
# $\mathrm{logit} = \sum \tilde u h \,/\, \sqrt{\mathrm{var}(h) + \varepsilon} + v \cdot \beta + c$. S and E are read,
# one number a span is written.

# %%
unit = 4 * B * spans.span_count(T, 10) * H
moved = {"every step stored": 20 * unit, "LayerNorm in one step": 10 * unit,
         "fused": 4 * (2 * B * T * H + B * spans.span_count(T, 10))}  # fmt: skip
figure, axis = plt.subplots(figsize=(6, 1.5), layout="constrained")
axis.barh(list(moved), [value / 1e6 for value in moved.values()], color=["C3", "C1", "C0"])
for place, value in enumerate(moved.values()):
    axis.text(value / 1e6, place, f" {value / 1e6:.1f} MB", va="center")
axis.invert_yaxis()
axis.set(xlabel="MB moved for the logits of these blocks", xlim=(0, 1.15 * 20 * unit / 1e6))
plt.show()

# %% [markdown]
# And the clock, on the machine this ran on (the better of several runs by turns):

# %% tags=["varies"]
many = torch.randn(300_000, 128)  # as in the benchmark: enough of them that no cache holds all
asked = torch.randn(1, 128)
compressed = BlockIndex(many, "int8")
index = BlockIndex(many)
contenders = {
    "search, naive": lambda: naive(asked, many, 5),
    "search, BlockIndex float32": lambda: index.search(asked, 5),
    "search, BlockIndex int8": lambda: compressed.search(asked, 5),
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
# ## The Triton kernels, tile by tile
#
# A Triton *program* is one of many that run the same code on another tile; inside it a tile is one value, kept in the
# registers of its threads. `tl.load` and `tl.store` are the only traffic with memory. The scan for one query,
# `_scan_one`, as it stands in the source:

# %%
source = inspect.getsource(search_kernels._scan_one.fn)
print(source[source.index("    d = units * UNIT") : source.index("        if NORM:")])

# %% [markdown]
# - `columns`, `inside`: D is padded to the tile's width `BLOCK_D` in registers, never in memory; what is outside reads
#   as 0.
# - The query is loaded once and stays.
# - `tl.range(program_id, groups, num_programs)`: a *persistent* grid. As many programs as the device can hold at once
#   walk over the groups in strides, and `num_stages` lets the loads of the next groups run while this one is
#   multiplied.
# - `rows` goes to int64 before it is multiplied with D: 13 million times 128 still fits int32, twenty million do not.
# - `e` is the one read of the blocks: a tile [G, BLOCK_D] of at most 32 kB. Its scores [G] live and die here; one
#   maximum is stored.
#
# With several queries `_scan_many` holds a tile of queries [BLOCK_D, BLOCK_Q] and uses `tl.dot`, the matrix units; the
# programs of one group and different query tiles run side by side, so the group comes from memory once.
#
# The span kernel `_scores_kernel` gives a program `BLOCK_T` = 8 tokens at which spans start. It loads their rows of S
# once, walks over the widths, and for each width loads 8 rows of E, one further to the right each time: seven of the
# eight were read a step before and come from a cache. The tile h [8, 256] is spread over 128 threads, 16 registers
# each.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
G, programs = 4, 3
for group in range(8):
    axes[0].add_patch(plt.Rectangle((0, group * G), 10, G, facecolor=f"C{group % programs}", alpha=0.35, edgecolor="k"))
    axes[0].annotate("", (12.5, group * G + G / 2), (10.2, group * G + G / 2), arrowprops=dict(arrowstyle="->"))
    axes[0].add_patch(plt.Rectangle((12.7, group * G + G / 2 - 0.5), 1, 1, facecolor=f"C{group % programs}"))
    axes[0].text(
        5, group * G + G / 2, f"group {group}, program {group % programs}", ha="center", va="center", fontsize=8
    )
axes[0].text(13.2, -1, "maxima", ha="center")
axes[0].set(xlim=(-0.5, 15), ylim=(32.5, -2.5), xlabel="dimensions D", ylabel="rows N", xticks=[],
            title="the scan: a tile is a group")  # fmt: skip
axes[0].set_yticks(range(0, 33, 4))

length, tile, widths = 20, 8, 6
for width in range(widths):
    for start in range(length - width):
        program = start // tile
        face = plt.Rectangle((start, width), 1, 1, facecolor=f"C{program}", alpha=0.4, edgecolor="w")
        axes[1].add_patch(face)
axes[1].add_patch(plt.Rectangle((8, 3), 8, 1, fill=False, edgecolor="k", linewidth=2))
note = "program 1 at width 4:\nrows 8..15 of S in registers,\nrows 11..18 of E loaded"
axes[1].annotate(note, (13, 4.05), (9.2, 8.3), arrowprops=dict(arrowstyle="->"), fontsize=8)  # fmt: skip
axes[1].set(xlim=(0, length), ylim=(9.2, 0), xlabel="first token of the span", ylabel="width", title="the span logits")
axes[1].set_yticks(np.arange(widths) + 0.5, range(1, widths + 1))
axes[1].set_xticks(np.arange(0, length, 4) + 0.5, range(0, length, 4))
plt.show()

# %% [markdown]
# The last tile of each row is ragged: a span must not run past the end of its block (`valid`), nor a tile past the
# last token. Masked lanes load 0 and store nothing. Spans of different blocks never mix, although the tiles do not
# care where a block ends: `token = rows % tokens` knows.
#
# ## Running them
#
# The interpreter runs the same source program by program with NumPy: slow, and exact enough to check. First the scan
# over 300 blocks of the Factbook, one query; then the whole search against the book.

# %%
few = blocks[:300].contiguous()
query = queries[:1].contiguous()
G = search_kernels.tile_rows(few.dtype, few.shape[1])
maxima, _ = search_kernels._launch_one(query, few, G, False)  # [1, groups]
scores = (few @ query[0]).numpy()  # [N]: what the kernel never stores
groups = np.arange(len(few)) // G
by_hand = np.array([scores[groups == group].max() for group in range(groups.max() + 1)])
print("group maxima are right:", np.allclose(maxima[0].numpy(), by_hand, rtol=1e-5))

found_scores, found_ids = search_kernels.mips_topk(queries, few, 5)
true_ids = textbook.search(queries.double().numpy(), few.double().numpy(), 5)
true_scores = np.take_along_axis((queries.double() @ few.double().T).numpy(), true_ids, 1)
print("against the book: same scores to 1e-6", np.allclose(found_scores.numpy(), true_scores, rtol=1e-6))
torch_scores, torch_ids = mips.mips_topk(queries, few, 5)
print(
    "against the torch path: same bits",
    torch.equal(found_scores, torch_scores),
    torch.equal(found_ids, torch_ids),
)

figure, axis = plt.subplots(figsize=(8, 2.6), layout="constrained")
threshold = np.sort(by_hand)[-2]
for group, maximum in enumerate(by_hand):
    rows = np.flatnonzero(groups == group)
    kept = maximum >= threshold
    axis.plot(rows, scores[rows], ".", markersize=4, color="C0" if kept else "0.75")
    axis.plot([rows[0], rows[-1]], [maximum] * 2, color="C0" if kept else "0.5", linewidth=1.5)
axis.axhline(threshold, color="C3", linewidth=0.8, linestyle=":")
axis.set(xlabel="row", ylabel="score", title=f"groups of {G} rows, their maxima; blue: the two groups kept for k = 2")
plt.show()

# %% [markdown]
# Now the spans, forward, the best span alone, and the backward: two blocks of 24 tokens.

# %%
few_S, few_E = S[:2, :24].contiguous(), E[:2, :24].contiguous()
few_options = options | dict(block_mask=torch.ones(2, 24, dtype=torch.bool), relevance_score=torch.tensor([0.5, -0.5]))
few_options["block_mask"][:, :3] = False  # the question
few_inputs = spans.SpanInputs(few_S, few_E, *weights, **few_options)
logits = span_kernels.span_logits(few_inputs)  # [2, spans]
allowed, relevance = few_options["block_mask"].numpy(), few_options["relevance_score"].double().numpy()
in_float64 = {name: tensor.double().numpy() for name, tensor in model.reader.state_dict().items()}
projections = torch.cat([few_S, few_E], 2).double().numpy()  # [2, tokens, 2 * span hidden]


def by_the_book(projections: np.ndarray) -> np.ndarray:
    return textbook.span_logits(in_float64, model.config, projections, allowed)[0] + relevance[:, None]


true_logits = by_the_book(projections)  # [2, spans]
inside = true_logits > -1e30
print("logits against the book, to 1e-5:", np.allclose(logits.numpy()[inside], true_logits[inside], atol=1e-5))

score, block, start, end = span_kernels.best_span(few_inputs)
true_block, true_span = np.unravel_index(true_logits.argmax(), true_logits.shape)
true_place = [true_block, *textbook.span_candidates(24, model.config.max_span_width)[:, true_span]]
print(f"best span: block {block}, tokens {start}..{end};", end=" ")
print("the book's:", [block, start, end] == true_place, abs(float(score) - true_logits.max()) < 1e-5)

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
# **1.** From how many queries on is the float32 scan of the recorded machine limited by arithmetic rather than by
# memory? And if the blocks are read as int8 but multiplied at the float32 rate?
#
# <details><summary>Solution</summary>
#
# The scan does 2QND operations on 4ND bytes: I = Q/2, or 2Q for int8. It meets the ridge where $I = \pi / \beta$.
#
# ```python
# ridge = rates["float32"] / bandwidth
# print("float32 from", 2 * ridge, "queries; int8 from", ridge / 2)
# ```
# That is why compression helps one query most, and a batch of 512 less.
# </details>
#
# **2.** Large groups make few maxima, small ones few rows to rescore. Which G moves the fewest bytes for one query
# over REALM's blocks, for k = 5 and for k = 5000? Compare with `mips.group_size`.
#
# <details><summary>Solution</summary>
#
# The maxima are written and read, 8N/G bytes, and kG rows of 4D bytes are rescored. The sum $8N/G + 4DkG$ is least
# where its derivative $-8N/G^2 + 4Dk$ vanishes, at $G = \sqrt{2N / (Dk)}$.
#
# ```python
# for k in (5, 5000):
#     print(k, (2 * 13_353_718 / (128 * k)) ** 0.5, mips.group_size(13_353_718, k))
# ```
# 204 and 6.5, against 128 and 64. Bytes are not all: even at k = 5000 the rescored rows are 164 MB with G = 64, a
# fortieth of the scan's 6.8 GB, and choosing among a tenth of the maxima takes less time.
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
