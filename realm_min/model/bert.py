"""BERT (Devlin et al. 2018): parts 2 and 3 of `textbook.py` in torch, under the same names and in the same order.

Axes: `batch` sequences of `tokens`; `rows` are the tokens of all sequences laid end to end, padding left out where
nothing reads it; `heads` x `width` = `hidden`. A forward takes the parameters `p`, and where it has some of its own the
name that they begin with in the state dict. It returns its output and what its backward takes, `kept`. Below it stands
its backward, which returns the gradient of its input and adds those of its parameters to `grads`. `fast.py` has the
steps that are written otherwise than in the book, for speed; `attention` is the book's with the sum and the LayerNorm
behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import RealmConfig
from . import fast, ops
from .fast import Dropout, LayerRun, Rows
from .parameters import Parameters

Kept = Any  # what a forward keeps for its backward: a tuple that only that backward reads


class Batch(NamedTuple):
    """Inputs as `interface.inputs.checked_batch` gives them, each [batch, tokens, ...]."""

    words: Tensor  # ids [batch, tokens] int64, or embeddings [batch, tokens, hidden]
    mask: Tensor
    types: Tensor
    positions: Tensor


class Run(NamedTuple):
    """How a forward is to run, beside what it reads.

    seeds: of each sequence's dropout masks, 0 to 2⁶³ - 1; None turns dropout off.
    keep: keep what the backward takes.
    checkpoint_layers: of each layer keep the input alone; `bert_backward` computes the rest again, bit for bit (Chen et
        al. 2016, "Training deep nets with sublinear memory cost").
    head_mask: [layers, heads], factors on the attention probabilities.
    passed: what the backward calls when it has gone through a part, "realm.encoder.layer.3" say, and so through all
        that lies behind it; None where other backward passes of the same gradients are to follow.
    """

    seeds: list[int] | None = None
    keep: bool = False
    checkpoint_layers: bool = False
    head_mask: Tensor | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    passed: Callable[[str], None] | None = None


PLAIN = Run()


class LayerAgain(NamedTuple):
    """What is kept of a layer that is to be computed again: the arguments of `layer`."""

    arguments: tuple


class Encoded(NamedTuple):
    """What `bert` returns; see there."""

    hidden: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


# ---- layers


def linear(p: Parameters, name: str, x: Tensor) -> tuple[Tensor, Kept]:
    """y = x Wᵀ + b, [rows, in] -> [rows, out]."""
    weight = p[f"{name}.weight"]  # [out, in]
    return ops.linear(x, weight, p[f"{name}.bias"]), (x, weight, name)


def linear_backward(dy: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """dx = dy W,  dW = Σ dyᵀ x,  db = Σ dy."""
    x, weight, name = kept
    return ops.linear_backward(dy, x, weight, grads[f"{name}.weight"], grads[f"{name}.bias"])


def layer_norm(p: Parameters, name: str, x: Tensor, eps: float) -> tuple[Tensor, Kept]:
    """y = γ n + β,  n = (x - mean) r,  r = 1 / √(variance + eps), over the last axis; `x` is overwritten."""
    normal, r = ops.standardize_(x, eps)
    weight = p[f"{name}.weight"]
    return torch.addcmul(p[f"{name}.bias"], normal, weight), (normal, r, weight, name)


def layer_norm_backward(dy: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """dx = r (dn - mean(dn) - n mean(dn n)),  dn = γ dy,  dγ = Σ dy n,  dβ = Σ dy."""
    normal, r, weight, name = kept
    return ops.layer_norm_backward(dy, normal, r, weight, grads[f"{name}.weight"], grads[f"{name}.bias"])


def gelu(x: Tensor, kind: str) -> tuple[Tensor, Kept]:
    """The activation that the configuration names, BERT's own "gelu_new" most times; kept is its slope at x."""
    return ops.activation_and_slope(kind, x)


def gelu_backward(dy: Tensor, kept: Kept) -> Tensor:
    return dy * kept


# ---- BERT


def attention(
    p: Parameters, config: RealmConfig, name: str, x: Tensor, rows: Rows, how: LayerRun
) -> tuple[Tensor, Tensor | None, Kept]:
    """LayerNorm(x + W softmax(Q Kᵀ / √width) V), the softmax in each head (Vaswani et al. 2017, equation 1)."""
    context, attentions, kept_heads = fast.attend(p, config, f"{name}.attention.self", x, rows, how)
    if how.only is not None:
        x, rows = x[how.only], rows._replace(lengths=[1] * len(rows.lengths))
    y, kept_out = fast.add_linear(p, f"{name}.attention.output.dense", x, context, rows, how.masks.hidden)
    y, kept_norm = layer_norm(p, f"{name}.attention.output.LayerNorm", y, config.layer_norm_eps)
    return y, attentions, (kept_heads, kept_out, kept_norm, how.only) if how.keep else None


def attention_backward(dx: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    kept_heads, kept_out, kept_norm, only = kept
    dx = layer_norm_backward(dx, kept_norm, grads)
    dattention = fast.attend_backward(fast.add_linear_backward(dx, kept_out, grads), kept_heads, grads)
    return dattention.add_(dx) if only is None else dattention.index_add_(0, only, dx)


def layer(
    p: Parameters, config: RealmConfig, number: int, x: Tensor, rows: Rows, run: Run, only: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Kept]:
    """x = LayerNorm(x + attention(x)), then x = LayerNorm(x + W₂ gelu(W₁ x)): [rows, hidden].

    Args:
        number: the layer's, from 0.
        only: rows to compute the output for, one a sequence; None means all.

    Returns:
        The output [rows | only, hidden], the attention probabilities where asked for, and what the backward takes.
    """
    how = LayerRun(
        fast.dropout_streams(config, run.seeds, number + 1, x.device),
        None if run.head_mask is None else run.head_mask[number],
        only, run.keep, run.output_attentions,
    )  # fmt: skip
    name = f"realm.encoder.layer.{number}"
    x, attentions, kept_attention = attention(p, config, name, x, rows, how)
    if only is not None:
        rows = rows._replace(lengths=[1] * len(rows.lengths))
    x, kept_mlp = fast.mlp(p, config, name, x, rows, how)
    x, kept_norm = layer_norm(p, f"{name}.output.LayerNorm", x, config.layer_norm_eps)
    return x, attentions, (kept_attention, kept_mlp, kept_norm) if run.keep else None


def layer_backward(dx: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """The lines above, from the last to the first. Where x was used twice, its two gradients are added."""
    kept_attention, kept_mlp, kept_norm = kept
    dx = layer_norm_backward(dx, kept_norm, grads)
    dx = dx + fast.mlp_backward(dx, kept_mlp, grads)
    return attention_backward(dx, kept_attention, grads)


def embeddings(p: Parameters, config: RealmConfig, batch: Batch, rows: Rows, run: Run) -> tuple[Tensor, Kept]:
    """dropout(LayerNorm(word + token type + position)) of the rows -> [rows, hidden]."""
    name = "realm.embeddings"

    def of_rows(values: Tensor) -> Tensor:
        values = values.reshape(-1, *values.shape[2:])
        return values if rows.places is None else values[rows.places]

    words = of_rows(batch.words)
    if batch.words.dim() == 2:  # ids
        words = ops.embedding(words, p[f"{name}.word_embeddings.weight"])
    types = ops.embedding(of_rows(batch.types), p[f"{name}.token_type_embeddings.weight"])
    positions = ops.embedding(of_rows(batch.positions), p[f"{name}.position_embeddings.weight"])
    x, kept_norm = layer_norm(p, f"{name}.LayerNorm", types.add_(words).add_(positions), config.layer_norm_eps)
    masks: Dropout = fast.dropout_streams(config, run.seeds, 0, x.device)
    x, kept_drop = fast.dropout(x, masks.hidden, rows.lengths)
    return x, (batch, rows.places, kept_norm, kept_drop, config.pad_token_id)


def embeddings_backward(dx: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """A row of a table collects the gradients of all places that used it; returned is that of the words."""
    batch, places, kept_norm, kept_drop, padding_id = kept
    dx = layer_norm_backward(fast.dropout_backward(dx, kept_drop), kept_norm, grads)
    if places is not None:
        dx = dx.new_zeros(batch.types.numel(), dx.shape[1]).index_copy_(0, places, dx)
    dx = dx.view(*batch.types.shape, -1)  # [batch, tokens, hidden]
    name = "realm.embeddings"
    if batch.words.dim() == 2:  # ids
        ops.embedding_backward(dx, batch.words, grads[f"{name}.word_embeddings.weight"], padding_id)
    ops.embedding_backward(dx, batch.types, grads[f"{name}.token_type_embeddings.weight"])
    ops.embedding_backward(dx, batch.positions, grads[f"{name}.position_embeddings.weight"])
    return dx


def bert(p: Parameters, config: RealmConfig, batch: Batch, read: str, run: Run = PLAIN) -> tuple[Encoded, Kept]:
    """Encode a batch.

    Args:
        batch: what `interface.inputs.checked_batch` returned.
        read: what the caller reads of the last layer, and so all that is computed: "tokens" gives every position
            [batch, tokens, hidden]; "unpadded" the same with zeros at padded positions; "first" the first position
            alone [batch, hidden].

    Returns:
        The last layer as `read` says; where asked for, the states [batch, tokens, hidden] before the first and after
        each layer, and each layer's attention probabilities [batch, heads, tokens, tokens].
    """
    whole = read == "tokens" or run.output_attentions or run.output_hidden_states
    words = p["realm.embeddings.word_embeddings.weight"]
    together = fast.computes_padding(config, run.seeds, words.device)
    rows = fast.rows_of(batch.mask, whole, words.dtype, together)
    x, kept_embeddings = embeddings(p, config, batch, rows, run)  # [rows, hidden]
    hidden_states, attentions, kept_layers, only = [x], [], [], None
    for number in range(config.num_hidden_layers):
        if number == config.num_hidden_layers - 1 and read == "first" and not whole:
            rows, only = fast.first_rows(rows, x.device)
        arguments = (p, config, number, x, rows, run, only)
        x, probabilities, kept = layer(*arguments)
        if run.keep:
            kept_layers.append(LayerAgain(arguments) if run.checkpoint_layers else kept)
        if run.output_hidden_states:
            hidden_states.append(x)
        if run.output_attentions:
            attentions.append(probabilities)
    shape = (*batch.types.shape, config.hidden_size)
    hidden = x if only is not None else fast.padded(x, rows, shape)
    encoded = Encoded(
        hidden[:, 0] if read == "first" and only is None else hidden,
        tuple(state.view(shape) for state in hidden_states) if run.output_hidden_states else None,
        tuple(attentions) if run.output_attentions else None,
    )
    return encoded, (kept_embeddings, kept_layers, rows, shape, read, only, run.passed) if run.keep else None


def bert_backward(dhidden: Tensor, kept: Kept, grads: Parameters) -> Tensor:
    """Add the gradients of the trunk's parameters to `grads`.

    Args:
        dhidden: ∂loss/∂hidden, shaped as the `hidden` that `bert` returned.

    Returns:
        ∂loss/∂inputs_embeds [batch, tokens, hidden], of the word embeddings where ids were given.
    """
    kept_embeddings, kept_layers, rows, shape, read, only, passed = kept
    if read == "first" and only is None:
        dfirst, dhidden = dhidden, dhidden.new_zeros(shape)
        dhidden[:, 0] = dfirst
    dx = dhidden if only is not None else fast.unpadded(dhidden, rows)
    for number in reversed(range(len(kept_layers))):
        kept_layer = kept_layers[number]
        if isinstance(kept_layer, LayerAgain):
            _, _, kept_layer = layer(*kept_layer.arguments)
        dx = layer_backward(dx, kept_layer, grads)
        if passed is not None:
            passed(f"realm.encoder.layer.{number}")
    dx = embeddings_backward(dx, kept_embeddings, grads)
    if passed is not None:
        passed("realm.embeddings")
    return dx


def dense_inputs(kept: Kept) -> Iterator[tuple[str, Tensor]]:
    """From what `bert` kept: the key of each dense weight of its layers, and the rows [rows, in] that it multiplied.

    `files/packed.py` rounds the weights by them. It stands here since it knows what the forwards above keep.
    """
    for number, ((kept_heads, kept_out, *_), kept_mlp, _) in enumerate(kept[1]):
        name = f"realm.encoder.layer.{number}"
        x, (h, *_), (inner_x, inner, *_, activation) = kept_heads[3], kept_out, kept_mlp
        yield from ((f"{name}.attention.self.{part}.weight", x) for part in ("query", "key", "value"))
        yield f"{name}.attention.output.dense.weight", h
        yield f"{name}.intermediate.dense.weight", inner_x
        yield f"{name}.output.dense.weight", ops.ACTIVATIONS[activation](inner.clone())
