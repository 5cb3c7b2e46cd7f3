"""The benchmark of span logits: transformers' module with autograd against ours, both held to float64 and a floor."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from realm_min.app.console import Progress
from realm_min.model import spans

from .bench_clock import NEED, Clock, Row, figures

SPAN_HIDDEN, SPAN_WIDTH, SPAN_EPS = 256, 10, 1e-3  # RealmConfig's defaults
# An element of h, about.
OPERATIONS = {"forward": 8, "best span": 8, "backward": 24, "forward and backward": 32}


def transformers_spans(hidden: int) -> tuple[Callable, dict[str, Tensor]]:
    """transformers' RealmReaderProjection after its first product, and its weights by our argument names."""
    try:
        from transformers import RealmConfig
        from transformers.models.realm.modeling_realm import RealmReaderProjection
    except ImportError as error:
        raise SystemExit(f"transformers 4.40.2 is missing; {NEED}") from error
    module = RealmReaderProjection(
        RealmConfig(span_hidden_size=hidden, max_span_width=SPAN_WIDTH, reader_layer_norm_eps=SPAN_EPS)
    )
    # The product that makes the two projections is the same for every contender: leave it out.
    del module.dense_intermediate
    module.dense_intermediate = lambda projections: projections  # pyright: ignore[reportAttributeAccessIssue]
    weights = {
        "norm_weight": module.layer_normalization.weight,
        "norm_bias": module.layer_normalization.bias,
        "output_weight": module.dense_output.weight,
        "output_bias": module.dense_output.bias,
    }
    return module, weights


class SpanCase:
    """Random blocks, and the work that is done on them: by transformers' module with autograd, and by ours."""

    def __init__(self, blocks: int, tokens: int, seed: int, device: torch.device):
        torch.manual_seed(seed)
        self.module, self.weights = transformers_spans(SPAN_HIDDEN)
        for weight in self.weights.values():
            weight.data.normal_()
        self.module.to(device)
        self.projections = torch.randn(blocks, tokens, 2 * SPAN_HIDDEN).to(device)
        self.mask = torch.rand(blocks, tokens).to(device) < 0.9
        self.relevance = torch.randn(blocks).to(device)
        self.grad = torch.randn(blocks, spans.span_count(tokens, SPAN_WIDTH)).to(device)  # of the logits
        plain = {name: weight.detach().clone() for name, weight in self.weights.items()}
        plain["output_weight"] = plain["output_weight"][0]
        starts, ends = self.projections.chunk(2, -1)
        self.inputs = spans.SpanInputs(
            starts,
            ends,
            **plain,
            max_span_width=SPAN_WIDTH,
            eps=SPAN_EPS,
            block_mask=self.mask,
            relevance_score=self.relevance,
        )
        self.leaf = self.projections.clone().requires_grad_()
        self.graph = self.eager(self.leaf)

    def eager(self, projections: Tensor) -> Tensor:
        """transformers' logits [blocks, spans] of projections [blocks, tokens, 2 * hidden]."""
        return self.module(projections, self.mask)[0] + self.relevance[:, None]

    def eager_forward(self) -> Tensor:
        with torch.no_grad():
            return self.eager(self.projections)

    def eager_best(self) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.eager_forward()
        return logits.max(), logits.amax(1).argmax(), logits.amax(0).argmax()

    def eager_backward(self) -> Tensor | None:
        self.clear_grads()
        self.graph.backward(self.grad, retain_graph=True)
        return self.leaf.grad

    def eager_both(self) -> Tensor | None:
        self.clear_grads()
        self.eager(self.leaf).backward(self.grad)
        return self.leaf.grad

    def clear_grads(self) -> None:
        for tensor in (self.leaf, *self.weights.values()):
            tensor.grad = None

    def ours_both(self) -> dict[str, Tensor]:
        spans.span_logits(self.inputs)
        return spans.span_logits_backward(self.grad, self.inputs)

    def pairs(self) -> dict[str, tuple[Callable, Callable]]:
        """transformers' function and ours for each kind of work."""
        return {
            "forward": (self.eager_forward, functools.partial(spans.span_logits, self.inputs)),
            "best span": (self.eager_best, functools.partial(spans.best_span, self.inputs)),
            "backward": (self.eager_backward, functools.partial(spans.span_logits_backward, self.grad, self.inputs)),
            "forward and backward": (self.eager_both, self.ours_both),
        }

    def exact(self) -> tuple[Tensor, Tensor]:
        """transformers' logits and the gradient of the projections, in float64."""
        self.module.double()
        projections = self.projections.double().requires_grad_()
        logits = self.eager(projections)
        logits.backward(self.grad.double())
        self.module.float()
        assert projections.grad is not None
        return logits.detach(), projections.grad


def span_error(work: str, result: Any, logits: Tensor, dprojections: Tensor) -> float:
    """The largest error of what `work` gave, relative to the largest of the exact numbers."""
    inside = logits > -1e30  # the spans that are not masked
    scale = logits[inside].abs().max()
    if work == "forward":
        error = (result.double() - logits)[inside].abs().max()
    elif work == "best span":
        error = (result[0].double() - logits.max()).abs()
    else:
        scale = dprojections.abs().max()
        if isinstance(result, dict):  # ours
            result = torch.cat([result["start_projection"], result["end_projection"]], -1)
        error = (result.double() - dprojections).abs().max()
    return float(error / scale)


def span_floor(measured: dict[str, float], work: str, case: SpanCase) -> float:
    """Seconds that the work must take: projections and logits moved once, operations at the rate of float32."""
    projections, out = 4 * case.projections.numel(), 4 * case.grad.numel()
    bytes_moved = {"forward": projections + out, "best span": projections, "backward": 2 * projections + out}
    bytes_moved["forward and backward"] = bytes_moved["forward"] + bytes_moved["backward"]
    operations = OPERATIONS[work] * case.grad.numel() * SPAN_HIDDEN
    return max(bytes_moved[work] / measured["bandwidth"], operations / measured["torch.float32"])


def bench_spans(
    clock: Clock, measured: dict[str, float], sizes: Sequence[tuple[int, int]], seed: int, progress: Progress
) -> list[Row]:
    """Forward, best span alone, backward, and forward with backward, against transformers' module and autograd."""
    rows = []
    task = progress.add_task("spans", total=len(sizes))
    for blocks, tokens in sizes:
        case = SpanCase(blocks, tokens, seed, clock.device)
        logits, dprojections = case.exact()
        for work, (theirs, ours) in case.pairs().items():
            checks: dict[str, str] = {}

            def check(who, result, work=work, checks=checks, logits=logits, dprojections=dprojections):
                checks[who] = f"error {span_error(work, result, logits, dprojections):.0e}"

            times = clock.by_turns({"transformers": theirs, "ours": ours}, check)
            floor = span_floor(measured, work, case)
            for who, seconds in times.items():
                row: Row = {"section": f"spans, {work}", "contender": who, "blocks": blocks, "tokens": tokens}
                rows.append(row | figures(seconds, floor, times["transformers"]) | {"check": checks[who]})
        progress.advance(task)
    return rows
