"""The steps of `bert.py` that are written otherwise than in the book, for speed.

    rows_of       no padding: the tokens of all sequences laid end to end; on a GPU, where launches cost more, padding
    first_rows    the last layer for [CLS] alone, where nothing else is read
    attend        one product for query, key and value; scores in pieces that stay in cache
    add_linear    the product lands on what it is added to: one pass less
    mlp           the activation in pieces that stay in cache; in training it is computed again, not kept

Axes and conventions are those of `bert.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import RealmConfig
from . import ops
from .parameters import Parameters

# Rows of the MLP computed at a time on a CPU: its intermediate activations then stay in cache.
MLP_ROWS = 400
# Attention scores computed at a time on a CPU, in numbers: they stay in its second-level caches.
SCORES_AT_ONCE = 1 << 19


class Rows(NamedTuple):
    """Where the tokens of a batch [batch, tokens] stand when they are laid end to end."""

    lengths: list[int]  # tokens of each sequence
    places: Tensor | None  # of the rows among all batch * tokens; None: all of them
    key_mask: Tensor | None  # [batch, 1 | tokens, tokens], added to the attention scores
    real: Tensor | None = None  # [rows, 1], 0 at padding that is computed along and read as zeros; None: there is none


class Dropout(NamedTuple):
    """Streams for the masks of hidden states and of attention probabilities; None drops nothing."""

    hidden: ops.DropoutStreams | None
    attention: ops.DropoutStreams | None


class LayerRun(NamedTuple):
    """How one layer is to run."""

    masks: Dropout
    head_mask: Tensor | None  # [heads], factors on the attention probabilities
    only: Tensor | None  # rows to compute the output for, one a sequence; None: all
    keep: bool
    output_attentions: bool


PLAIN_LAYER = LayerRun(Dropout(None, None), head_mask=None, only=None, keep=False, output_attentions=False)


# ---- rows without padding


def rows_of(mask: Tensor, whole: bool, dtype: torch.dtype, together: bool = False) -> Rows:
    """The rows of a batch: all of them where it is read whole, else the tokens alone, where padding is on the right.

    Args:
        mask: [batch, tokens], or [batch, tokens, tokens] for each token a row of its own.
        dtype: of the attention scores.
        together: compute padding along, so that sequences of different lengths attend in one product.
    """
    batch, tokens = mask.shape[:2]
    real = None
    if not whole and is_right_padded(mask):
        if not together:
            lengths = mask.sum(1).tolist()
            return Rows(lengths, None if min(lengths) == tokens else mask.reshape(-1).nonzero()[:, 0], None)
        real = mask.reshape(-1, 1).to(dtype)
    key_mask = None  # a mask of ones adds nothing
    if not bool((mask == 1).all()):
        key_mask = ops.additive_mask(mask, dtype)
        key_mask = key_mask if mask.dim() == 3 else key_mask[:, None]  # [batch, 1 | tokens, tokens]
    return Rows([tokens] * batch, None, key_mask, real)


def computes_padding(config: RealmConfig, seeds: list[int] | None, device: torch.device) -> bool:
    """Whether padding is computed along: on a GPU, where a launch for each length takes longer than that.

    Not with dropout, whose masks follow from a sequence alone, and not from how long the others are.
    """
    drops = seeds is not None and (config.hidden_dropout_prob or config.attention_probs_dropout_prob)
    return device.type != "cpu" and not drops


def is_right_padded(mask: Tensor) -> bool:
    """Whether every row of the mask is ones, at least one, and then zeros: padding that can be left out."""
    return mask.dim() == 2 and bool(
        ((mask == 0) | (mask == 1)).all() and (mask[:, 0] == 1).all() and (mask[:, 1:] <= mask[:, :-1]).all()
    )


def padded(x: Tensor, rows: Rows, shape: tuple[int, ...]) -> Tensor:
    """[rows, hidden] -> [batch, tokens, hidden], zeros at what was left out."""
    if rows.places is not None:
        x = x.new_zeros(math.prod(shape[:2]), x.shape[1]).index_copy_(0, rows.places, x)
    return (x if rows.real is None else x * rows.real).view(shape)


def unpadded(dx: Tensor, rows: Rows) -> Tensor:
    """The backward of `padded`: [batch, tokens, hidden] -> [rows, hidden]."""
    dx = dx.reshape(-1, dx.shape[-1])
    dx = dx if rows.real is None else dx * rows.real
    return dx if rows.places is None else dx[rows.places]


def first_rows(rows: Rows, device: torch.device) -> tuple[Rows, Tensor]:
    """For a layer of which nothing but first positions is read: the rows as it attends to them, and those positions."""
    lengths = torch.tensor(rows.lengths, device=device)
    # Of a [tokens, tokens] mask, the first row.
    return rows._replace(key_mask=None if rows.key_mask is None else rows.key_mask[:, :1]), lengths.cumsum(0) - lengths


# ---- dropout


def dropout_streams(config: RealmConfig, seeds: list[int] | None, part: int, device: torch.device) -> Dropout:
    """The streams of one part of the trunk: 0 for the embeddings, i + 1 for layer i."""
    rates = config.hidden_dropout_prob, config.attention_probs_dropout_prob
    return Dropout(
        *(
            ops.DropoutStreams(seeds, 2 * part + i, rate, device) if seeds is not None and rate else None
            for i, rate in enumerate(rates)
        )
    )


def projection_stream(config: RealmConfig, seeds: list[int] | None, device: torch.device) -> ops.DropoutStreams | None:
    """The stream of Embed(x), the part after the last layer's."""
    rate, part = config.projection_dropout_prob, 2 * (config.num_hidden_layers + 1)
    return ops.DropoutStreams(seeds, part, rate, device) if seeds is not None and rate else None


def dropout(x: Tensor, masks: ops.DropoutStreams | None, lengths: list[int]) -> tuple[Tensor, Any]:
    """Dropout of x [rows, hidden], the rows of sequences of `lengths`."""
    if masks is None:
        return x, None
    mask = masks.mask([length * x.shape[1] for length in lengths]).view(x.shape)
    return ops.drop(x, mask, masks.probability), (mask, masks.probability)


def dropout_backward(dy: Tensor, kept: Any) -> Tensor:
    return dy if kept is None else ops.drop(dy, *kept)


# ---- x + W h + b


def add_linear(
    p: Parameters, name: str, x: Tensor, h: Tensor, rows: Rows, masks: ops.DropoutStreams | None
) -> tuple[Tensor, Any]:
    """x + dropout(h Wᵀ + b) -> [rows, hidden]."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    if masks is None:
        return (x + bias).addmm_(h, weight.t()), (h, weight, name, None)
    y, kept_drop = dropout(ops.linear(h, weight, bias), masks, rows.lengths)
    return y.add_(x), (h, weight, name, kept_drop)


def add_linear_backward(dy: Tensor, kept: Any, grads: Parameters) -> Tensor:
    """∂loss/∂h; that of x is `dy` itself."""
    h, weight, name, kept_drop = kept
    dy = dropout_backward(dy, kept_drop)
    return ops.linear_backward(dy, h, weight, grads[f"{name}.weight"], grads[f"{name}.bias"])


# ---- attention


def attend(
    p: Parameters, config: RealmConfig, name: str, x: Tensor, rows: Rows, how: LayerRun
) -> tuple[Tensor, Tensor | None, Any]:
    """softmax(Q Kᵀ / √width + mask) V within each sequence -> [rows | only, hidden].

    Returns:
        That, the attention probabilities where asked for, and what the backward takes.
    """
    heads = config.num_attention_heads
    query, key, value = project(p, config, name, x, how.only)
    query_lengths = rows.lengths if how.only is None else [1] * len(rows.lengths)
    context = torch.empty_like(query, memory_format=torch.contiguous_format)
    factors = None if how.head_mask is None else how.head_mask.to(x.dtype)
    attentions = None
    if how.output_attentions:
        attentions = x.new_empty(len(rows.lengths), heads, rows.lengths[0], rows.lengths[0])
    kept_parts = []
    for part in attention_parts(query_lengths, rows.lengths, heads, x.device):
        q, c = (by_head(of_rows, heads, part, part.query_rows) for of_rows in (query, context))
        k, v = (by_head(of_rows, heads, part, part.key_rows) for of_rows in (key, value))
        scores = q @ k.transpose(2, 3)  # [sequences, heads, queries, tokens]
        if rows.key_mask is not None:
            scores.add_(rows.key_mask[part.sequences, None])
        softmaxed = probabilities = ops.softmax_(scores)
        if how.masks.attention is not None:
            sequences, heads_here, *plane = scores.shape
            mask = how.masks.attention.mask([math.prod(plane)] * sequences, part.sequences, portions=heads_here)
            probabilities = ops.drop(softmaxed, mask.view(scores.shape), how.masks.attention.probability)
        if factors is not None:
            probabilities = probabilities * factors[part.heads, None, None]
        if attentions is not None:
            attentions[part.sequences, part.heads] = probabilities
        if how.keep:
            kept_parts.append((part, softmaxed, probabilities))
        c.copy_(probabilities @ v)
    return context, attentions, (p.qkv[name][0], name, heads, x, query, key, value, context, how.only, kept_parts)


def project(
    p: Parameters, config: RealmConfig, name: str, x: Tensor, only: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Q / √width [rows | only, hidden], K and V [rows, hidden] of every head; one product gives all three."""
    hidden = config.hidden_size
    weight, bias = p.qkv[name]  # [hidden, 3 hidden]
    if only is None:
        query, key, value = torch.addmm(bias, x, weight).split(hidden, dim=1)
    else:
        query = torch.addmm(bias[:hidden], x[only], weight[:, :hidden])
        key, value = torch.addmm(bias[hidden:], x, weight[:, hidden:]).split(hidden, dim=1)
    return query.mul_((hidden // config.num_attention_heads) ** -0.5), key, value


def attend_backward(dcontext: Tensor, kept: Any, grads: Parameters) -> Tensor:
    """∂loss/∂x of `attend` [rows, hidden] from that of its context [rows | only, hidden]."""
    weight, name, heads, x, query, key, value, context, only, kept_parts = kept
    hidden = x.shape[1]
    # One gradient where the forward made one product: of query, key and value, or of key and value alone.
    dproduct = x.new_empty(x.shape[0], (3 if only is None else 2) * hidden)
    dquery = dproduct[:, :hidden] if only is None else torch.empty_like(dcontext)
    dkey, dvalue = dproduct[:, -2 * hidden :].split(hidden, dim=1)
    for part, softmaxed, probabilities in kept_parts:
        q, c, dc, dq = (
            by_head(of_rows, heads, part, part.query_rows) for of_rows in (query, context, dcontext, dquery)
        )
        k, v, dk, dv = (by_head(of_rows, heads, part, part.key_rows) for of_rows in (key, value, dkey, dvalue))
        dv.copy_(probabilities.transpose(2, 3) @ dc)
        # With s the softmax and p what dropout and head mask made of it: s ∂loss/∂s = p ∂loss/∂p, and its sum over the
        # keys, Σ p (dc · v), is dc · c.
        product = (dc @ v.transpose(2, 3)).mul_(probabilities)
        dscores = ops.softmax_backward_(product, softmaxed, (dc * c).sum(-1, keepdim=True))
        dq.copy_(dscores @ k)
        dk.copy_(dscores.transpose(2, 3) @ q)
    dquery.mul_((hidden // heads) ** -0.5)  # the forward scaled its queries, and kept them so
    dweight, dbias = grads.qkv[name]  # weights [hidden, 3 hidden]
    if only is None:
        return ops.linear_backward(dproduct, x, weight.t(), dweight.t(), dbias)
    dx = ops.linear_backward(dproduct, x, weight[:, hidden:].t(), dweight[:, hidden:].t(), dbias[hidden:])
    first = ops.linear_backward(dquery, x[only], weight[:, :hidden].t(), dweight[:, :hidden].t(), dbias[:hidden])
    return dx.index_add_(0, only, first)


class AttentionPart(NamedTuple):
    """Some heads of some neighbouring sequences of equal length, and the rows of their queries and keys."""

    sequences: slice
    heads: slice
    query_rows: slice
    key_rows: slice


def attention_parts(
    query_lengths: list[int], lengths: list[int], heads: int, device: torch.device
) -> Iterator[AttentionPart]:
    """All sequences and heads, on a CPU as many at a time as `SCORES_AT_ONCE` allows, or one head."""
    sequence = query_row = key_row = 0
    for (queries, keys), group in groupby(zip(query_lengths, lengths, strict=True)):
        left = len(list(group))
        heads_at_once = max(1, SCORES_AT_ONCE // (queries * keys)) if device.type == "cpu" else heads * left
        at_once = max(1, heads_at_once // heads)
        heads_at_once = math.ceil(heads / math.ceil(heads / heads_at_once))  # in equal shares
        while left:
            count = min(left, at_once)
            next_query, next_key = query_row + count * queries, key_row + count * keys
            for head in range(0, heads, heads_at_once):
                some = slice(head, min(head + heads_at_once, heads))
                yield AttentionPart(
                    slice(sequence, sequence + count), some, slice(query_row, next_query), slice(key_row, next_key)
                )
            sequence, query_row, key_row, left = sequence + count, next_query, next_key, left - count


def by_head(x: Tensor, heads: int, part: AttentionPart, rows: slice) -> Tensor:
    """The part of x [all rows, all heads * width] in its `rows`: a view [sequences, heads, tokens, width]."""
    sequences = part.sequences.stop - part.sequences.start
    x = x[rows]
    return x.reshape(sequences, x.shape[0] // sequences, heads, -1).transpose(1, 2)[:, part.heads]


# ---- the MLP


def mlp(p: Parameters, config: RealmConfig, name: str, x: Tensor, rows: Rows, how: LayerRun) -> tuple[Tensor, Any]:
    """x + dropout(W₂ gelu(W₁ x + b₁) + b₂) -> [rows, hidden]."""
    activation_, masks = ops.ACTIVATIONS[config.hidden_act], how.masks.hidden
    weight, bias = p[f"{name}.intermediate.dense.weight"], p[f"{name}.intermediate.dense.bias"]
    if how.keep:  # the activation is computed again backward: half the memory
        inner = ops.linear(x, weight, bias)  # [rows, intermediate]
        activated = torch.empty_like(inner)
        for piece in ops.pieces(activated):
            activation_(activated[piece].copy_(inner[piece]))
        out, (_, out_weight, out_name, kept_drop) = add_linear(p, f"{name}.output.dense", x, activated, rows, masks)
        return out, (x, inner, weight, f"{name}.intermediate.dense", out_weight, out_name, kept_drop, config.hidden_act)
    if masks is not None:
        activated = activation_(ops.linear(x, weight, bias))
        return add_linear(p, f"{name}.output.dense", x, activated, rows, masks)[0], None
    out_weight, out = p[f"{name}.output.dense.weight"], x + p[f"{name}.output.dense.bias"]
    step = MLP_ROWS if x.device.type == "cpu" else x.shape[0]
    for some, out_rows in zip(x.split(step), out.split(step), strict=True):
        out_rows.addmm_(activation_(ops.linear(some, weight, bias)), out_weight.t())
    return out, None


def mlp_backward(dy: Tensor, kept: Any, grads: Parameters) -> Tensor:
    """∂loss/∂x of `mlp` without its residual: that part is `dy` itself."""
    x, inner, weight, name, out_weight, out_name, kept_drop, activation = kept
    dy = dropout_backward(dy, kept_drop)
    activated, dinner = torch.empty_like(inner), dy @ out_weight
    for piece in ops.pieces(inner):
        activated[piece], slope = ops.activation_and_slope(activation, inner[piece])
        dinner[piece].mul_(slope)
    ops.weight_backward(dy, activated, grads[f"{out_name}.weight"], grads[f"{out_name}.bias"])
    return ops.linear_backward(dinner, x, weight, grads[f"{name}.weight"], grads[f"{name}.bias"])
