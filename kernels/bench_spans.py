"""The benchmark of span logits: transformers' module with autograd against ours, both held to float64 and a floor.

Where transformers has no REALM any more, the module is `EagerSpans`, the same computation in plain torch. Either is
also timed as torch.compile makes it, on a GPU. A peer uses what users have: all of torch, which our own code does not.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from realm_min.model import spans

from .bench_clock import Clock, Row, figures

SPAN_HIDDEN, SPAN_WIDTH, SPAN_EPS = 256, 10, 1e-3  # RealmConfig's defaults
# An element of h, about.
OPERATIONS = {"forward": 8, "best span": 8, "backward": 24, "forward and backward": 32}


class EagerSpans(torch.nn.Module):
    """Span logits with whole tensors [B, spans, H]: expand, relu, LayerNorm, linear."""

    def __init__(self, hidden: int):
        super().__init__()
        self.layer_normalization = torch.nn.LayerNorm(hidden, eps=SPAN_EPS)
        self.dense_output = torch.nn.Linear(hidden, 1)

    def forward(self, projections: Tensor, mask: Tensor) -> tuple[Tensor]:
        """projections [B, T, 2H], mask bool [B, T] -> (logits [B, spans],)"""
        firsts, lasts = spans.span_candidates(mask.shape[1], SPAN_WIDTH, mask.device)
        start_projection, end_projection = projections.chunk(2, -1)
        h = torch.relu(start_projection[:, firsts] + end_projection[:, lasts])  # [B, spans, H]
        logits = self.dense_output(self.layer_normalization(h)).squeeze(-1)
        masked = ~(mask[:, firsts] & mask[:, lasts])
        return (logits + masked.to(logits.dtype) * torch.finfo(logits.dtype).min,)


def eager_module(hidden: int) -> tuple[str, torch.nn.Module]:
    """A name and a module (projections, mask) -> (logits, …): transformers' without its first product, or the above."""
    found = importlib.util.find_spec("transformers")  # which is slow to import
    places = list(found.submodule_search_locations or ()) if found else []
    if not any((Path(place) / "models" / "realm" / "modeling_realm.py").exists() for place in places):
        return "eager", EagerSpans(hidden)
    from transformers import RealmConfig
    from transformers.models.realm.modeling_realm import RealmReaderProjection

    module = RealmReaderProjection(
        RealmConfig(span_hidden_size=hidden, max_span_width=SPAN_WIDTH, reader_layer_norm_eps=SPAN_EPS)
    )
    # The product that makes the two projections is the same for every contender: leave it out.
    del module.dense_intermediate
    module.dense_intermediate = lambda projections: projections  # pyright: ignore[reportAttributeAccessIssue]
    return "transformers", module


class Eager:
    """The work on one input by a module with autograd."""

    def __init__(self, module: Callable, weights: list[Tensor], case: SpanCase):
        self.module, self.weights, self.case = module, weights, case
        self.leaf = case.projections.clone().requires_grad_()
        self.graph: Tensor | None = None

    def logits(self, projections: Tensor) -> Tensor:
        """Logits [blocks, spans] of projections [blocks, tokens, 2 * hidden]."""
        return self.module(projections, self.case.mask)[0] + self.case.relevance[:, None]

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.logits(self.case.projections)

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.forward()
        return logits.max(), logits.amax(1).argmax(), logits.amax(0).argmax()

    def backward(self) -> Tensor | None:
        if self.graph is None:
            self.graph = self.logits(self.leaf)
        self.clear_grads()
        self.graph.backward(self.case.grad, retain_graph=True)
        return self.leaf.grad

    def both(self) -> Tensor | None:
        self.clear_grads()
        self.logits(self.leaf).backward(self.case.grad)
        return self.leaf.grad

    def clear_grads(self) -> None:
        for tensor in (self.leaf, *self.weights):
            tensor.grad = None


class SpanCase:
    """Random blocks, and the work that is done on them: by a module with autograd, and by ours."""

    def __init__(self, blocks: int, tokens: int, seed: int, device: torch.device):
        torch.manual_seed(seed)
        self.name, self.module = eager_module(SPAN_HIDDEN)
        names = [f"{layer}.{kind}" for layer in ("layer_normalization", "dense_output") for kind in ("weight", "bias")]
        self.weights: list[Tensor] = [self.module.get_parameter(name) for name in names]
        for weight in self.weights:
            weight.data.normal_()
        self.module.to(device)
        self.projections = torch.randn(blocks, tokens, 2 * SPAN_HIDDEN, device="cpu").to(device)
        self.mask = torch.rand(blocks, tokens, device="cpu").to(device) < 0.9
        self.relevance = torch.randn(blocks, device="cpu").to(device)
        self.grad = torch.randn(blocks, spans.span_count(tokens, SPAN_WIDTH), device="cpu").to(device)  # of the logits
        norm_weight, norm_bias, output_weight, output_bias = (weight.detach().clone() for weight in self.weights)
        start_projection, end_projection = self.projections.chunk(2, -1)
        self.inputs = spans.SpanInputs(
            start_projection,
            end_projection,
            norm_weight,
            norm_bias,
            output_weight[0],
            output_bias,
            max_span_width=SPAN_WIDTH,
            eps=SPAN_EPS,
            block_mask=self.mask,
            relevance_score=self.relevance,
        )
        self.eager = Eager(self.module, self.weights, self)

    def compiled(self) -> Eager:
        """The same work by the module as torch.compile makes it."""
        from torch._functorch import config

        config.donated_buffer = False  # a graph is gone through again and again
        return Eager(torch.compile(self.module, dynamic=False), self.weights, self)

    def ours_both(self) -> dict[str, Tensor]:
        spans.span_logits(self.inputs)
        return spans.span_logits_backward(self.grad, self.inputs)

    def contenders(self, peers: dict[str, Eager]) -> dict[str, dict[str, Callable]]:
        """Functions by name, the peers first, for each kind of work, the most wanted first."""
        ours = {
            "forward": functools.partial(spans.span_logits, self.inputs),
            "backward": functools.partial(spans.span_logits_backward, self.grad, self.inputs),
            "forward and backward": self.ours_both,
        }
        if hasattr(spans, "best_span"):
            ours["best span"] = functools.partial(spans.best_span, self.inputs)
        methods = {"forward": "forward", "backward": "backward", "forward and backward": "both", "best span": "best"}
        return {
            work: {name: getattr(peer, methods[work]) for name, peer in peers.items()} | {"ours": function}
            for work, function in ours.items()
        }

    def exact(self) -> tuple[Tensor, Tensor]:
        """The module's logits and the gradient of the projections, in float64."""
        self.module.double()
        projections = self.projections.double().requires_grad_()
        logits = self.eager.logits(projections)
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


def span_floor(measured: dict[str, float], work: str, case: SpanCase) -> tuple[float, str]:
    """Seconds that the work must take: projections and logits moved once, operations at the rate of float32."""
    projections, out = 4 * case.projections.numel(), 4 * case.grad.numel()
    bytes_moved = {"forward": projections + out, "best span": projections, "backward": 2 * projections + out}
    bytes_moved["forward and backward"] = bytes_moved["forward"] + bytes_moved["backward"]
    memory = bytes_moved[work] / measured["bandwidth"]
    operations = OPERATIONS[work] * case.grad.numel() * SPAN_HIDDEN / measured["float32"]
    return (memory, "memory") if memory >= operations else (operations, "float32")


def span_rows(
    clock: Clock, measured: dict[str, float], size: tuple[int, int], seed: int, compiles: bool = False
) -> Iterator[Row]:
    """Each kind of work on `size` (blocks, tokens) by the module and ours; or, where it `compiles`, by it compiled."""
    case = SpanCase(*size, seed, clock.device)
    logits, dprojections = case.exact()
    peers = {case.name: case.eager} | ({"torch.compile": case.compiled()} if compiles else {})
    for work, contenders in case.contenders(peers).items():
        if compiles:
            del contenders["ours"]

        def check(who: str, result: Any, work: str = work) -> str:
            return f"error {span_error(work, result, logits, dprojections):.0e}"

        turns = clock.by_turns(contenders, check, compiles)
        floor, limited_by = span_floor(measured, work, case)
        for who in turns.checks:
            if compiles and who == case.name:
                continue
            row: Row = {"section": f"spans, {work}", "contender": who, "blocks": size[0], "tokens": size[1]}
            if who in turns.times:
                row |= figures(turns.times[who], floor, turns.times.get(case.name)) | {"limited_by": limited_by}
            yield row | {"check": turns.checks[who]}
