"""How the kernels came to be what they are: two ladders, of the search and of the reader's span scores.

Each rung is a small complete Triton kernel and its launch; read `mips.py` and `spans.py` from the top. Each gives the
answer of the rung before, but two that say by how much they miss it and the last that mends them. `python -m
realm_min.kernels.ladder` says of each what it moves and computes (`counts.py`), how long a card needs for that at
least, what the compiler made of it (`../bench_machine_code.py`), how often it is wrong and, on a GPU, how long it takes
(`measure.py`). Notebook 6 climbs them. The kernels that REALM runs, `../mips_topk.py` and `../span_logits.py`, go
further.

The nearest relatives of the search, and what is different here:

- Top-k by bins: TPU-KNN (Chern et al. 2022, arXiv 2206.14286) keeps the best of each bin, as rung 2 keeps the maximum
  of a group, and returns these: a row that shares its bin with a better one is lost, so many bins are taken and recall
  is guaranteed in expectation. Here the rows of the best groups are scored again: none is lost.
- Delegates: Dr. Top-k (Gaihre et al. 2021, arXiv 2109.08219) takes the maximum of each subrange of a vector in memory,
  and so finds the subranges that can hold an answer: the argument of rung 2. Here that vector never is in memory: the
  maximum is taken where the scores are made.
- Radix and bucket selection (Alabi et al. 2012), AIR top-k (Zhang et al. 2023), RadiK (Li et al. 2024, arXiv
  2501.14336): numbers in memory are counted digit by digit until the k-th largest is known. They are another way to do
  what `torch.topk` does here: on all scores on rung 1, on one number for 64 or 128 scores after that.
- k-selection while scanning: FAISS (Johnson et al. 2017, arXiv 1702.08734) keeps the k best in registers as scores
  arrive, hence a limit on k. Here what a program keeps does not depend on k.
- Thresholds: what cannot reach a score that k others have is skipped, as in the dynamic pruning of inverted lists
  (WAND: Broder et al. 2003). Rung 6's threshold is of that kind, made of lower ends of scores, not of scores.
- Scalar quantisation: to scan int8 codes and rescore a fixed multiple of k is common, and most often right. The VA-file
  (Weber et al. 1998) bounds each distance by its codes and reads what the bounds cannot decide: exact. Rung 6 does so
  for inner products, with one residual norm a group of 128 rows, and bounds on groups, not on rows.
"""
