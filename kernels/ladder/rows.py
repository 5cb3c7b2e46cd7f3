"""One row of figures for each rung: counted and predicted anywhere, checked where it can run, timed on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from . import measure, mips, spans
from .counts import Card, Phase, search_phases, seconds, span_phases

Row = dict[str, Any]
MOST_CLOSE = 1 << 16  # blocks of the case made to mislead: more would only be closer


class Sizes(NamedTuple):
    queries: int
    blocks: int
    dimensions: int
    k: int
    read: int  # blocks that the reader reads
    tokens: int
    hidden: int
    widest: int  # tokens of the widest span


FULL = Sizes(queries=64, blocks=2_000_000, dimensions=128, k=5, read=64, tokens=320, hidden=256, widest=10)
SMALL = Sizes(queries=2, blocks=1000, dimensions=32, k=5, read=2, tokens=12, hidden=32, widest=4)  # to be interpreted


def counted(ladder: str, rung: str, phases: list[Phase], card: Card) -> Row:
    """What needs no device."""
    return {
        "ladder": ladder,
        "rung": rung,
        "memory_bytes": sum(phase.memory for phase in phases),
        "asked_bytes": sum(phase.asked for phase in phases),
        "operations": sum(phase.operations for phase in phases),
        "predicted_ms": 1e3 * seconds(phases, card),
    }


def search_rows(sizes: Sizes, card: Card, device: str | None, repeats: int) -> Iterator[Row]:
    """device: "cuda", "cpu" where Triton interprets, or None: nothing runs."""
    q, n, d, k = sizes[:4]
    if device:
        random = measure.random_case(q, n, d, device)
        close = measure.close_case(q, min(n, MOST_CLOSE), d, device)
        mips.check(*random, k)
        truths = [measure.true_ids(*case, min(k, len(case[1]))) for case in (random, close)]
        coded = [mips.compress(blocks) for _, blocks in (random, close)]
    for rung in mips.RUNGS:
        row = counted("search", rung.name, search_phases(rung.name, q, n, d, k), card)
        if device:
            codes = [{"codes": c} if rung.takes_codes else {} for c in coded]
            row["wrong_random"] = measure.share_wrong(rung, random, truths[0], codes[0])
            row["wrong_close"] = measure.share_wrong(rung, close, truths[1], codes[1])
        if device == "cuda":
            scanned = (mips.coded_queries(random[0])[0], coded[0].codes) if rung.takes_codes else random
            row["scan_ms"] = measure.milliseconds(lambda: rung.scan(*scanned), repeats)  # noqa: B023
            row["measured_ms"] = measure.milliseconds(lambda: rung.search(*random, k, **codes[0]), repeats)  # noqa: B023
        yield row


def span_rows(sizes: Sizes, card: Card, device: str | None, repeats: int) -> Iterator[Row]:
    """As `search_rows`, for the reader's ladder: what is wanted is the best span, which rungs 1 to 3 leave to torch."""
    shape = (sizes.read, sizes.tokens, sizes.hidden, sizes.widest)
    if device:
        x = measure.span_case(*shape, device)
        spans.check(x)
    for rung in spans.RUNGS:
        row = counted("spans", rung.name, span_phases(rung.name, *shape), card)
        if device:
            row["error"] = measure.span_error(rung.run(x), x)
        if device == "cuda":
            row["scan_ms"] = measure.milliseconds(lambda: rung.run(x), repeats)  # noqa: B023
            row["measured_ms"] = measure.milliseconds(lambda: measure.best_span(rung.run(x)), repeats)  # noqa: B023
        yield row
