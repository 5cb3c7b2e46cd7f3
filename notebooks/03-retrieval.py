# %% [markdown]
# # 3. Retrieval as maximum inner product search
#
# The relevance of a document to a text is an inner product of two embeddings (REALM, section 3.2), and
# p(z|x) is its softmax over all documents:
#
# $$f(x, z) = \mathrm{Embed_{input}}(x)^\top\, \mathrm{Embed_{doc}}(z), \qquad
# p(z \mid x) = \frac{\exp f(x, z)}{\sum_{z'} \exp f(x, z')}.$$
#
# Nobody can read 13 million documents for one question, so the k with the largest f(x, z) are searched for: *maximum
# inner product search*, MIPS. This notebook shows how that is done exactly, why a GPU may look at maxima of groups
# alone, how it may even look at rounded numbers and *prove* that the answer is right, and what that is worth.
#
# **Needed before:** inner products, the inequality of Cauchy and Schwarz, and what an embedding is (notebook 2, last
# part).
#
# **After it you can** prove that k groups suffice, derive every term of the bound, and say when an exact search is
# fast. An hour.
#
# | symbol | meaning | here |
# | --- | --- | --- |
# | $q$ | query, $\mathrm{Embed_{input}}(x)$ | `queries` [Q, D] |
# | $e$ | a block, $\mathrm{Embed_{doc}}(z)$ | `blocks` [N, D] |
# | $\hat e$ | its code: the same in fewer bits | `Codes.codes` [N, D] |
# | $G$ | rows a group | `SearchReport.group_size` |
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
from realm_min.search import bounds, mips
from realm_min.text.corpus import factbook_documents

torch.set_num_threads(2)
for_a_room()

model = realm_min.load("factbook")  # the default model, of its two corpora the Factbook alone
tokenizer, records = model.retriever.tokenizer, model.retriever.block_records
blocks = model.block_emb  # [N, D]
N, D = blocks.shape


def embed(questions: list[str]) -> torch.Tensor:
    """Embed_input, [questions, D]."""
    return model.embedder(**tokenizer(questions, padding=True, return_tensors="pt")).projected_score


def relevance(queries: torch.Tensor) -> torch.Tensor:
    """f(x, z) of all blocks, [Q, N]: what a search must not need to store."""
    return queries @ blocks.t()


question = "What is the capital of Burkina Faso?"
query = embed([question])
scores, ids = mips.mips_topk(query, blocks, k=5)
print(f"{N:,} blocks of {D} dimensions\n\n{question}")
for score, i in zip(scores[0], ids[0], strict=True):
    print(f"  f = {score:7.3f}   block {i:>5}   {records[i].decode()[:70]} …")

# %% [markdown]
# How much of p(z|x) do the best k blocks hold? If it is much, a sum over them stands for the sum over all in
# $p(y \mid x) = \sum_z p(y \mid z, x)\, p(z \mid x)$ (equation 1). Sixty-four questions on capitals:

# %%
titles = list(dict.fromkeys(document.title for document in factbook_documents()))
questions = [f"What is the capital of {title}?" for title in titles[::4]]
queries = embed(questions)
retrieval = ops.softmax(relevance(queries)).sort(dim=1, descending=True).values  # p(z|x) [Q, N], best first
mass = retrieval.cumsum(1)

figure, axes = plt.subplots(figsize=(7.5, 3.6))
axes.semilogx(range(1, N + 1), mass.t().numpy(), color="tab:gray", alpha=0.2, linewidth=0.8)
axes.semilogx(range(1, N + 1), mass.mean(0).numpy(), color="tab:blue", linewidth=2)
axes.set(xlabel="k", ylabel="p(z|x) held by the k best", ylim=(0, 1.02))
show(figure, "The share of p(z|x) that the k best blocks hold, against k: a few blocks hold most of it for most "
     "questions, a hundred nearly all for all.")  # fmt: skip
print({k: round(float(mass[:, k - 1].mean()), 3) for k in (1, 5, 100, 1000)})

# %% [markdown]
# (The thick line is the mean. Training moved it up and to the left. How a retriever without training looks depends on
# how its weights were drawn: that of notebook 4 starts with p(z|x) spread over all blocks, a bend at the far right.)
#
# ## Why groups suffice
#
# Cut the blocks into groups of $G$ neighbours, $g_1, g_2, \dots$, and let $m(g) = \max_{e \in g} q^\top e$.
#
# **Claim.** The k best blocks lie in the k groups of largest $m$.
#
# **Proof.** Rank the blocks by score, equal scores by the smaller id, so that no two share a rank; rank the groups by
# their best blocks. Let $e$ be one of the k best, in group $g$. Each group that ranks before $g$ has a block that ranks
# before the best block of $g$, hence before $e$. These blocks lie in different groups, so there are at least as many of
# them as of such groups; and fewer than k blocks rank before $e$. So fewer than k groups rank before $g$. ∎
#
# So a scan can keep one number a group and forget the scores: $N / G$ in place of $N$. The scores of $k\, G$ rows are
# then computed anew. By hand:

# %%
G, k = 32, 5
maxima = bounds.group_max(relevance(query).t(), G)[:, 0]  # [groups]
kept_groups = maxima.topk(k).indices
rows = (kept_groups[:, None] * G + torch.arange(G)).flatten()
rows = rows[rows < N].sort().values  # ascending, so that equal scores keep the smaller id
best = (query @ blocks[rows].t())[0].sort(descending=True, stable=True)
print(f"{N:,} scores, {len(maxima)} maxima, {len(rows)} scores again")
print("blocks", rows[best.indices[:k]].tolist(), "as mips_topk finds them:", ids[0].tolist())
assert torch.equal(rows[best.indices[:k]], ids[0])

# %% [markdown]
# And k groups are needed. Below are 160 blocks in groups of 16, with k = 4; dots are scores, a bar is a group's
# maximum, the groups kept are shaded. On the right one group too few is kept: a block is lost, and another that is not
# among the best (the cross) takes its place.

# %%
few_k = 4
for seed in range(1000):  # draw until no group holds two of the best
    few = torch.randperm(N, generator=torch.Generator().manual_seed(seed))[:160]
    few_scores = relevance(query)[0, few]
    right_ids = set(few_scores.topk(few_k).indices.tolist())
    if len({i // 16 for i in right_ids}) == few_k:
        break
few_maxima = bounds.group_max(few_scores[:, None], 16)[:, 0]

figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), sharey=True)
for ax, count in zip(axes, (few_k, few_k - 1), strict=True):
    kept = few_maxima.topk(count).indices
    in_kept = torch.isin(torch.arange(160) // 16, kept)
    found = set(few_scores.masked_fill(~in_kept, -torch.inf).topk(few_k).indices.tolist())
    for g in kept.tolist():
        ax.axvspan(16 * g - 0.5, 16 * g + 15.5, color="gold", alpha=0.3, linewidth=0)
    ax.hlines(few_maxima, 16 * np.arange(10) - 0.5, 16 * np.arange(10) + 15.5, color="black", linewidth=1)
    ax.scatter(range(160), few_scores, s=6, color="tab:gray")
    for chosen, marker, color, label in (
        (found & right_ids, "o", "tab:green", "found"),
        (right_ids - found, "s", "tab:red", "lost"),
        (found - right_ids, "X", "tab:red", "in its place"),
    ):
        if chosen:
            ax.scatter(sorted(chosen), few_scores[sorted(chosen)], s=45, marker=marker, color=color, label=label)
    ax.set(xlabel="block", title=f"{count} groups kept, k = {few_k}")
    ax.legend(bbox_to_anchor=(0.5, -0.2), loc="upper center", ncols=3)
axes[0].set_ylabel("f(x, z)")
show(figure, "Scores of 160 blocks in groups of 16. With four groups kept the four best blocks are found; with "
     "three, one of them is lost and a worse one takes its place.")  # fmt: skip

# %% [markdown]
# How often does it matter? Over all questions, with k = 10 and m groups kept, the share of the true answers that is
# found. Neighbouring blocks of the Factbook are of one country and often relevant together, so few groups hold the
# answers. Shuffled, the answers lie apart, and every group counts. Only m = k is right whatever the data.

# %%
k, all_scores = 10, relevance(queries)
shuffled = all_scores[:, torch.randperm(N, generator=torch.Generator().manual_seed(0))]


def recall(scores: torch.Tensor, kept: int) -> float:
    maxima = bounds.group_max(scores.t().contiguous(), G).t()  # [Q, groups]
    kept_groups = maxima.topk(kept).indices  # [Q, kept]
    answer_groups = scores.topk(k).indices // G  # [Q, k]
    return float((answer_groups[:, :, None] == kept_groups[:, None]).any(2).float().mean())


figure, axes = plt.subplots(figsize=(7.5, 3.6))
for name, rows_scores in {"as in the Factbook": all_scores, "shuffled": shuffled}.items():
    axes.plot(range(1, 13), [recall(rows_scores, m) for m in range(1, 13)], "o-", label=name)
axes.axvline(k, color="black", linewidth=1, linestyle=":")
axes.set(xlabel="groups kept, m", ylabel=f"share of the {k} best found", xticks=range(1, 13))
axes.legend()
show(figure, "The share of the ten best blocks found against the number of groups kept: in the Factbook's order "
     "few groups hold most, shuffled it takes all ten.")  # fmt: skip
assert recall(all_scores, k) == recall(shuffled, k) == 1

# %% [markdown]
# ## The certificate
#
# The scan reads all N blocks and hardly computes: memory is what it waits for. So let it read codes $\hat e$ of half or
# a quarter of the bytes. Its scores are off, but not by more than Cauchy and Schwarz allow. With $r \ge \|e - \hat e\|$
# stored for each group,
#
# $$|q^\top e - q^\top \hat e| = |q^\top (e - \hat e)| \le \|q\|\, r .$$
#
# The query is coded too, and floating point rounds. Between the truth $q^\top e$ and the number $\hat s$ that the scan
# stores lie five small steps, and each has a bound, with $n \ge \|\hat e\|$ stored for each group as well:
#
# 1. the code of the block, $|q^\top (e - \hat e)| \le \|q\|\, r$;
# 2. the code of the query, $|(q - \hat q)^\top \hat e| \le \|q - \hat q\|\, n$;
# 3. the sum. Each operation in float32 is off by a factor $1 + \delta$ with $|\delta| \le u = 2^{-24}$, and a product
#    passes through at most D of them on its way into the sum. So the sum is off by at most
#    $\bigl((1 + u)^D - 1\bigr) \sum_i |\hat q_i \hat e_i| \le \gamma\, \|\hat q\|\, n$, with $\gamma \approx D u$.
#    Matrix units cut where a processor rounds, twice as much: `bounds.rounding` takes $\gamma = (4D + 16)\, u$;
# 4. storing the result in fewer digits, which is off by at most $\rho\, |\hat s|$;
# 5. underflow: numbers too small to be represented are lost, $\eta$ in all.
#
# Together
#
# $$b = \|q\|\, r + \|q - \hat q\|\, n + \gamma\, \|\hat q\|\, n + \rho\, |\hat s| + \eta.$$
#
# The true maximum of a group lies in $[m - b, m + b]$. Let $t$ be the k-th largest *lower* end. There
# are k groups that surely have a block of score $t$ or more, so no block under $t$ is among the k best, and **a group
# whose upper end is below $t$ holds no answer**. All others are rescored from the float32 blocks. The result is the
# float32 answer, with proof, whatever the codes; bad codes only cost time. Here for int8:


# %%
def certificate(queries: torch.Tensor, codes: bounds.Codes, group: int, k: int) -> tuple:
    """Scores of the scan, the group maxima, their lower and upper ends [Q, groups], and the threshold [Q]."""
    coded = bounds.scan_queries(queries, codes, torch.float32)
    scale = 1.0 if codes.scale is None else codes.scale.repeat_interleave(bounds.BASE_GROUP)[:N, None]
    scan = (codes.codes.float() @ coded.codes.float().t()) * scale  # [N, Q] in the scan's unit
    maxima = bounds.group_max(scan, group).t().contiguous()
    gamma, rho, eta = bounds.rounding(D, stored=2.0**-22)
    bound = bounds.error_bound(coded, bounds.widen(codes.norm, group), bounds.widen(codes.residual, group), gamma, eta)
    upper, threshold = bounds.certify(maxima, coded.unit, bound, rho, k)
    true_units = maxima.double() * coded.unit[:, None]
    return scan.t().double() * coded.unit[:, None], true_units, 2 * true_units - upper, upper, threshold


k = 5
codes = bounds.compress(blocks, "int8")
scan, maxima, lower, upper, threshold = certificate(query, codes, G, k)
order = maxima[0].argsort(descending=True)
answers = set((ids[0] // G).tolist())
figure, axes = plt.subplots(figsize=(9.5, 3.6))
for place, g in enumerate(order.tolist()):
    color = "tab:green" if g in answers else "tab:orange" if upper[0, g] >= threshold[0] else "lightgray"
    axes.vlines(place, lower[0, g], upper[0, g], color=color, linewidth=1.5)
axes.plot(maxima[0, order], color="black", linewidth=1)
axes.axhline(threshold[0], color="black", linestyle=":", linewidth=1)
axes.set(xlabel="groups, largest maximum first", ylabel="maximum ± b")
show(figure, "Groups sorted by their maximum, each with the interval of its true maximum. A dotted line is the "
     "threshold: green groups above it hold answers, orange ones reach it in vain, grey ones end below.")  # fmt: skip
count = int((upper[0] >= threshold[0]).sum())
print(f"t = {threshold[0]:.3f}: {count} of {maxima.shape[1]} groups are rescored, {len(answers)} hold the answers")

# %% [markdown]
# Green groups hold answers, orange ones are rescored in vain, grey ones are ruled out: their bar ends below the line.
#
# The bound must hold for every block and may not be far too wide. How far off the scan really is, as a share of b:

# %%
scan, *_ = certificate(queries, codes, bounds.BASE_GROUP, k)
coded = bounds.scan_queries(queries, codes, torch.float32)
gamma, rho, eta = bounds.rounding(D, stored=2.0**-22)
bound = bounds.error_bound(coded, codes.norm, codes.residual, gamma, eta).repeat_interleave(bounds.BASE_GROUP, 1)[:, :N]
share = ((scan - queries.double() @ blocks.double().t()).abs() / bound).flatten()
assert float(share.max()) < 1

figure, axes = plt.subplots(figsize=(7.5, 3.4))
axes.hist(share.numpy(), bins=np.linspace(0, 1, 101), color="tab:blue")
axes.axvline(1, color="black", linewidth=1)
axes.set(xlabel="error of the scan, as a share of its bound", ylabel="pairs")
show(figure, "A histogram of the scan's error as a share of its bound: nearly all pairs of question and block "
     "stay below a fifth, none reaches one.")  # fmt: skip
print(f"mean {share.mean():.3f}, largest {share.max():.3f} of the bound, over {share.numel():,} pairs")

# %% [markdown]
# Cauchy and Schwarz assume the worst, that the rounding of a block points straight at the query. In D dimensions it
# points anywhere, and its inner product with the query is about $1 / \sqrt{D}$ of that. The gap is the proof's price.
#
# `BlockIndex` keeps codes and bounds, and reports what a search rescored. With each compression the answer is the same
# to the last bit; the codes alone would not be right every time:

# %%
exact_scores, exact_ids = mips.mips_topk(queries, blocks, 100)
print(f"k = 100, {len(queries)} questions    megabytes read    groups rescored    blocks rescored")
for compression in mips.COMPRESSIONS:
    index = mips.BlockIndex(blocks, compression, scan=compression and "codes")  # whichever scan is the faster here
    found_scores, found_ids = index.search(queries, 100)
    assert torch.equal(found_ids, exact_ids) and torch.equal(found_scores, exact_scores)
    report = index.last_search
    megabytes = N * D * {None: 4, "bfloat16": 2, "int8": 1}[compression] / 1e6
    groups, rescored = np.mean(report.rescored_groups), np.mean(report.rescored_rows)
    print(f"{compression or 'float32':<24} {megabytes:>13.1f} {groups:>11.1f} of {report.groups} {rescored:>18.1f}")
by_codes = torch.stack([scores.topk(100).indices for scores in scan])
agreeing = (by_codes[:, :, None] == exact_ids[:, None]).any(2).float().mean()
print(f"int8 codes alone, no certificate: {agreeing:.1%} of the answers")

# %% [markdown]
# ## Time against N
#
# A clock in a notebook says as much about what else the machine does as about the search. So these times were recorded
# on a quiet one, by `make bench` (two cores of an AMD EPYC that multiply bfloat16 and int8 by themselves): one query,
# k = 5, blocks of 128 dimensions drawn at random. "product, top-k" is what one writes first: all scores, then `topk`.
# The dotted lines are the least time in which the memory, at 45.4 GB a second, can hand over the blocks or their codes.

# %%
BLOCKS = (100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000, 8_000_000)
SECONDS = {  # benchmarks/kernels-cpu.csv, "time against blocks"
    "torch": (0.0054319, 0.0108596, 0.0212798, 0.0432768, 0.0867434, 0.169782, 0.455684),
    "index float32": (0.00424585, 0.00606598, 0.0094127, 0.0146279, 0.0271191, 0.0583075, 0.141858),
    "index int8": (0.00306434, 0.00401753, 0.00573066, 0.00926318, 0.0163293, 0.030368, 0.0718276),
}
names = {"torch": "product, top-k", "index float32": "BlockIndex, float32", "index int8": "BlockIndex, int8"}
figure, axes = plt.subplots(figsize=(8.5, 4))
for (contender, times), color in zip(SECONDS.items(), ("tab:gray", "tab:green", "tab:blue"), strict=True):
    axes.loglog(BLOCKS, np.multiply(times, 1e3), "o-", label=names[contender], color=color)
for size, color in ((4, "tab:green"), (1, "tab:blue")):
    axes.loglog(BLOCKS, np.multiply(BLOCKS, 1e3 * 128 * size / 45.4e9), ":", color=color)
axes.set(xlabel="blocks, N", ylabel="milliseconds a query")
axes.legend()
show(figure, "Milliseconds of a search against the number of blocks, on two logarithmic axes. The lines become "
     "straight and parallel; float32 takes a third of the plain way's time and lies closest to what the memory "
     "allows, int8 takes half of that.")  # fmt: skip
for contender, times in SECONDS.items():
    print(f"{names[contender]:<20}", *(f"{1e3 * t:7.1f} ms" for t in times))

# %% [markdown]
# With many blocks the lines are straight and parallel, because a search takes what it reads: a quarter of the bytes is
# half of the time. With few they are flatter, since a search through `BlockIndex` has more steps than the plain way,
# and each costs its call. The plain way is the slowest, for a matrix times a vector keeps one core busy, not two. On a
# processor that cannot multiply int8 by itself, codes would be slower than the blocks; `BlockIndex` measures that once
# and scans whichever is faster. `docs/measured.md` has such a machine too.
#
# ## Exercises
#
# **1.** Of the 100 best blocks of each question, how many share a group of 32? Compare the Factbook's order with the
# shuffled one. What does that say about the order in which a corpus should be indexed?
#
# <details><summary>Solution</summary>
#
# ```python
# for scores in (all_scores, shuffled):
#     groups = [len(set((row.topk(100).indices // G).tolist())) for row in scores]
#     print(np.mean(groups), "groups hold the 100 best")
# ```
# Neighbours of a corpus are alike, so answers come in clusters and fewer groups hold them. The search is exact in any
# order; in the corpus's own it has less to rescore.
# </details>
#
# **2.** Is the block of largest inner product the one of smallest distance, or of largest cosine? When do the three
# agree? Try it on these embeddings.
#
# <details><summary>Solution</summary>
#
# $\|q - e\|^2 = \|q\|^2 - 2\, q^\top e + \|e\|^2$: the three rank alike if all blocks have one length.
#
# ```python
# unit = blocks / blocks.norm(dim=1, keepdim=True)
# by_cosine = mips.mips_topk(queries, unit, 5)[1]
# by_distance = torch.cdist(queries, blocks).topk(5, largest=False).indices
# by_product = mips.mips_topk(queries, blocks, 5)[1]
# print(blocks.norm(dim=1).aminmax())
# for other in (by_cosine, by_distance):
#     print(float((by_product[:, :, None] == other[:, None]).any(2).float().mean()))
# ```
# The embedder ends in a LayerNorm, which with $\gamma = 1$ and $\beta = 0$ gives all blocks the length $\sqrt D$. A
# trained $\gamma$ lets lengths differ, and a longer block is then more relevant to every question in its direction.
# </details>
#
# **3.** Make codes of 4 bits, whole numbers from -7 to 7 with a scale for each 16 blocks. How many groups of 32 must be
# rescored at k = 5, and how many with int8?
#
# <details><summary>Solution</summary>
#
# ```python
# for levels in (127, 7):
#     largest = bounds.group_max(blocks.abs().amax(1, keepdim=True), 16)
#     scale = (largest / levels).repeat_interleave(16, 0)[:N]
#     code = (blocks / scale).round() * scale
#     r = bounds.group_max((code - blocks).norm(dim=1, keepdim=True), G)[:, 0]
#     m = bounds.group_max((queries @ code.t()).t().contiguous(), G).t()
#     b = queries.norm(dim=1, keepdim=True) * r
#     t = (m - b).topk(5).values[:, -1:]
#     print(levels, float(((m + b) >= t).sum(1).float().mean()), "of", m.shape[1])
# ```
# Each bit less doubles $r$, so four bits fewer make it some 18 times as large (127 / 7), and hardly a group is ruled
# out: half the bytes are read in the scan, and nearly all blocks after it.
# </details>
