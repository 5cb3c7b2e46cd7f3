"""The Search view's numbers: why the k best blocks of a question are sure to be found (`search/mips.py`).

The blocks lie in groups of 16 neighbours. A scan multiplies codes, and so knows the largest score m of each group up to
a bound b. The k-th largest m - b is a threshold that no answer is under: a group whose m + b stays below it is ruled
out, all others are rescored. So a GPU searches; a CPU holds every row to the same bound, and rescores rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..interface.open_qa import RealmForOpenQA
from ..search import bounds
from ..search.mips import COMPRESSIONS, BlockIndex, exact_scores
from ..search.scan import scan_errors
from .asked import checked_count, digits, vector_of

Json = dict[str, Any]
MOST_GROUPS = 600  # that are drawn, those of the largest upper ends
MOST_BLOCKS = 1 << 20  # of an index that the page looks through once more


def search(model: RealmForOpenQA, codes: bounds.Codes, question: str, k: int | None = None) -> Json:
    """How the groups of an index fare in the search for a question.

    `threshold` is None where there are fewer groups than k, and nothing is ruled out.

    Args:
        codes: of `model.block_emb`, as `codes_of` makes them.

    Raises:
        ValueError: an empty or overlong question; k out of range.
    """
    model.check_questions([question])
    k = checked_count(model, k)
    blocks, x = model.block_emb.float(), vector_of(model, question).float()
    maximum, upper, threshold = scan(codes, x, k)
    rescored = upper >= threshold
    exact = bounds.group_max(exact_scores(blocks, x.double())[:, None], bounds.BASE_GROUP)[:, 0]
    (scores,), (found,) = model.search(x[None], k)
    drawn = upper.topk(min(MOST_GROUPS, len(upper))).indices.sort().values
    return {
        "question": question, "k": k, "group": bounds.BASE_GROUP, "groups": len(upper), "blocks": len(blocks),
        "bytes": codes.codes.element_size(), "threshold": float(threshold) if threshold.isfinite() else None,
        "rescored": int(rescored.sum()),
        "drawn": {
            "group": drawn.tolist(), "maximum": digits(maximum[drawn]), "lower": digits((2 * maximum - upper)[drawn]),
            "upper": digits(upper[drawn]), "exact": digits(exact[drawn]), "rescored": rescored[drawn].tolist(),
        },
        "found": [
            {"id": i, "group": i // bounds.BASE_GROUP, "score": score, "title": model.evidence.title(i)}
            for i, score in zip(found.tolist(), scores.tolist(), strict=True)
        ],
        "report": report_of(model),
    }  # fmt: skip


def scan(codes: bounds.Codes, x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every group the scan's maximum m and m + b, [groups] float64 each, and the threshold []; x [proj] float32."""
    coded = bounds.scan_queries(x[None], codes, torch.float32)
    products = (codes.codes.float() @ coded.codes[0])[:, None]  # [blocks, 1], in the unit of the product
    if codes.scale is not None:
        products *= codes.scale.repeat_interleave(bounds.BASE_GROUP)[: len(products), None]
    maxima = bounds.group_max(products, bounds.BASE_GROUP).t()  # [1, groups]
    errors = scan_errors(codes, "torch")
    assert codes.norm is not None
    bound = bounds.error_bound(coded, codes.norm, codes.residual, errors.gamma, errors.eta)
    (upper,), (threshold,) = bounds.certify(maxima, coded.unit, bound, errors.rho, k)
    return maxima[0].double() * coded.unit, upper, threshold


def codes_of(model: RealmForOpenQA, compression: str | None) -> bounds.Codes:
    """What the scan reads in place of the blocks.

    Raises:
        ValueError: no such compression; an index too large to be drawn.
    """
    if compression not in COMPRESSIONS:
        raise ValueError(f"{compression!r} is no way to store the blocks: choose one of {COMPRESSIONS}")
    if len(model.block_emb) > MOST_BLOCKS:
        raise ValueError(
            f"the page draws searches of at most {MOST_BLOCKS:,} blocks, and here are {len(model.block_emb):,}"
        )
    return bounds.compress(model.block_emb.detach().float().contiguous(), compression)


def report_of(model: RealmForOpenQA) -> Json | None:
    """What the search that answered has rescored."""
    found = model.index.last_search if isinstance(model.index, BlockIndex) else None
    return found and {"groups": found.rescored_groups[0], "rows": found.rescored_rows[0]}
