"""What only a device can tell: how often a rung is wrong and, on a GPU, how long it takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from .counts import Card
from .mips import Codes, Rung
from .spans import Spans

MIB = 1 << 20
PRODUCT = 8192  # rows and columns of the matrices that are multiplied to see a card's rates
PIECE = 1 << 18  # blocks multiplied in float64 at once


def milliseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """The median of `repeats` runs by CUDA events, none of which finds its data in the L2 cache."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    flush = torch.empty(max(256 * MIB, 2 * properties.L2_cache_size), dtype=torch.int8, device="cuda")
    run()  # compiles
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(8):  # while they run, the host gets ahead: launches cost time only where a rung makes it wait
            flush.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def measured_card(published: Card | None) -> Card:
    """The current GPU's bandwidth, the better of a copy's and a read's, and its matrix rates.

    A rate that cannot be measured is the published one.
    """
    source = torch.ones(256 * MIB, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / milliseconds(lambda: target.copy_(source), 5)
    read = source.nbytes / milliseconds(lambda: source.amax(), 5)
    bandwidth = 1e3 * max(copied, read)
    n = PRODUCT
    a, b = (torch.randn(n, n, dtype=torch.float32, device="cuda") for _ in range(2))
    a8, b8 = (torch.randint(-127, 128, (n, n), device="cuda", dtype=torch.int8) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    products = {
        "float32": ("highest", lambda: a @ b),
        "tf32": ("high", lambda: a @ b),
        "int8": (before, lambda: torch._int_mm(a8, b8.t())),  # pyright: ignore[reportPrivateImportUsage]
    }
    rates = {}
    for kind, (precision, product) in products.items():
        torch.set_float32_matmul_precision(precision)
        try:
            rates[kind] = 2 * n**3 / milliseconds(product, 5) * 1e3
        except RuntimeError:  # int8 products are not on every card
            rates[kind] = published.rates[kind] if published else float("inf")
        finally:
            torch.set_float32_matmul_precision(before)
    return Card(bandwidth, rates)


def random_case(q: int, n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Standard normal queries [Q, D] and blocks [N, D]."""
    generator = torch.Generator(device).manual_seed(0)
    queries = torch.randn(q, d, generator=generator, dtype=torch.float32, device=device)
    return queries, torch.randn(n, d, generator=generator, dtype=torch.float32, device=device)


def close_case(q: int, n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    """Blocks that all lie in one direction, and queries that look there: scores differ by a ten-thousandth."""
    queries, noise = random_case(q, n, d, device)
    towards = queries[:1]
    return towards + 1e-2 * queries, towards / towards.norm() + 1e-4 * noise


def exact_scores(queries: Tensor, blocks: Tensor, ids: Tensor) -> Tensor:
    """float64 scores of ids [Q, k], each added in the same order wherever it stands. -> [Q, k]"""
    return (blocks[ids].double() * queries.double()[:, None]).sum(2)


def true_ids(queries: Tensor, blocks: Tensor, k: int) -> Tensor:
    """The k best by scores in float64. -> [Q, k]"""
    scores, ids = [], []
    for start in range(0, len(blocks), PIECE):
        piece = queries.double() @ blocks[start : start + PIECE].double().T
        top = piece.topk(min(k, piece.shape[1]))
        scores.append(top.values)
        ids.append(top.indices + start)
    return torch.cat(ids, 1).gather(1, torch.cat(scores, 1).topk(k).indices)


def share_wrong(rung: Rung, case: tuple[Tensor, Tensor], truth: Tensor, codes: dict[str, Codes]) -> float:
    """The share of a rung's blocks that is not among the k best, truth [Q, k]. Equal scores may swap."""
    queries, blocks = case
    _, ids = rung.search(queries, blocks, truth.shape[1], **codes)
    least = exact_scores(queries, blocks, truth).amin(1, keepdim=True)
    return float((exact_scores(queries, blocks, ids) < least).double().mean())


def span_case(blocks: int, tokens: int, hidden: int, widest: int, device: str) -> Spans:
    """Standard normal projections and weights."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = 2 * [(blocks, tokens, hidden)] + 3 * [(hidden,)]
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float32, device=device) for shape in shapes)
    return Spans(*drawn, output_bias=0.5, eps=1e-3, widest=widest)


def best_span(found: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """A rung's best score and its place, from logits [B, spans] where it gives them."""
    if isinstance(found, tuple):
        return found
    score, place = found.flatten().max(0)
    return score, place


def span_error(found: Tensor | tuple[Tensor, Tensor], x: Spans) -> float:
    """How far logits [B, spans] are from those in float64; for a best span, how far its score is from the best."""
    start, end, gamma, beta, v = (tensor.double() for tensor in x[:5])
    logits = []
    for width in range(min(x.widest, start.shape[1])):
        h = (start[:, : start.shape[1] - width] + end[:, width:]).clamp(min=0)
        logits.append(torch.nn.functional.layer_norm(h, h.shape[-1:], gamma, beta, x.eps) @ v + x.output_bias)
    truth = torch.cat(logits, 1)  # [B, spans]
    if isinstance(found, tuple):
        score, place = found
        return float(max((score - truth.max()).abs(), truth.max() - truth.flatten()[place]))
    return float((found - truth).abs().max())
