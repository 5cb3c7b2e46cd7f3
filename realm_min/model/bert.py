"""BERT (Devlin et al. 2018): what reads the text in every part of REALM.

Axes: `batch` sequences of `tokens`; `rows` are the tokens of all sequences laid end to end, padding left out where
nothing reads it; `heads` x `width` = `hidden`. Every function takes the parameters `p` and the name under which a
part's tensors stand in the state dict.
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
from .parameters import Parameters, Shapes

# Rows of the MLP computed at a time on a CPU: its intermediate activations then stay in cache.
MLP_ROWS = 400
# Attention scores computed at a time on a CPU, in numbers: they stay in its second-level caches.
SCORES_AT_ONCE = 1 << 19


# What a forward keeps for its backward, by name; None keeps nothing. A part's own cache lies in its caller's.
Cache = dict[str, Any]


class Encoded(NamedTuple):
    """What `bert` returns; see there."""

    hidden: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    cache: Cache  # what `bert_backward` needs; empty where nothing was to be kept


class LayerAgain(NamedTuple):
    """What stands for a layer's cache where the layer is to be computed again: the arguments of `layer`."""

    arguments: dict[str, Any]


class Inputs(NamedTuple):
    """Checked inputs of a batch: words, mask, types and positions, each [batch, tokens, ...]."""

    words: Tensor  # ids [batch, tokens] int64, or embeddings [batch, tokens, hidden]
    mask: Tensor
    types: Tensor
    positions: Tensor


def shapes(config: RealmConfig) -> Shapes:
    """The trunk's tensors, in the state dict's order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    found: Shapes = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        **norm_shapes("embeddings.LayerNorm", hidden),
    }
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layer.{index}"
        for part in ("query", "key", "value"):
            found |= dense_shapes(f"{layer}.attention.self.{part}", hidden, hidden)
        found |= dense_shapes(f"{layer}.attention.output.dense", hidden, hidden)
        found |= norm_shapes(f"{layer}.attention.output.LayerNorm", hidden)
        found |= dense_shapes(f"{layer}.intermediate.dense", hidden, inner)
        found |= dense_shapes(f"{layer}.output.dense", inner, hidden)
        found |= norm_shapes(f"{layer}.output.LayerNorm", hidden)
    return found | dense_shapes("pooler.dense", hidden, hidden)


def mlm_head_shapes(config: RealmConfig, tied_to: str | None = None) -> Shapes:
    """The masked-language-model head; its decoder is a matrix of its own or the word embeddings (`tied_to`)."""
    return {
        "cls.predictions.bias": (config.vocab_size,),
        **dense_shapes("cls.predictions.transform.dense", config.hidden_size, config.hidden_size),
        **norm_shapes("cls.predictions.transform.LayerNorm", config.hidden_size),
        "cls.predictions.decoder.weight": tied_to or (config.vocab_size, config.hidden_size),
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


def dense_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def check_inputs(
    config: RealmConfig,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
) -> Inputs:
    """Refuse what the encoder cannot read; fill in what was left out.

    Raises:
        ValueError: both or neither of ids and embeddings, a wrong rank or shape, no tokens at all, more tokens than
            positions, an id outside its table.
    """
    if input_ids is not None and inputs_embeds is None:
        words = input_ids
        if words.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(words.shape)}: expected [batch, tokens]")
    elif inputs_embeds is not None and input_ids is None:
        words = inputs_embeds.detach()
        if words.dim() != 3 or words.shape[2] != config.hidden_size:
            raise ValueError(
                f"inputs_embeds has shape {tuple(words.shape)}: expected [batch, tokens, {config.hidden_size}]"
            )
    else:
        given = "both" if input_ids is not None else "neither"
        raise ValueError(f"{given} of input_ids and inputs_embeds were given: give exactly one")
    shape, device = words.shape[:2], words.device
    batch, tokens = shape
    if batch == 0 or tokens == 0:
        raise ValueError(f"the input has shape {tuple(shape)}: give at least one sequence of at least one token")
    if position_ids is None:
        if tokens > config.max_position_embeddings:
            raise ValueError(
                f"{tokens} tokens are more than max_position_embeddings={config.max_position_embeddings}: "
                "truncate the text (tokenizer(..., truncation=True, max_length=...))"
            )
        position_ids = torch.arange(tokens, device=device)[None]
    if token_type_ids is None:
        token_type_ids = torch.zeros(shape, dtype=torch.long, device=device)
    if attention_mask is None:
        attention_mask = torch.ones(shape, dtype=torch.long, device=device)
    if tuple(attention_mask.shape) not in ((batch, tokens), (batch, tokens, tokens)):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: expected {(batch, tokens)} as the input has"
        )
    for name, ids, size in (
        ("input_ids", input_ids, config.vocab_size),
        ("token_type_ids", token_type_ids, config.type_vocab_size),
        ("position_ids", position_ids, config.max_position_embeddings),
    ):
        if ids is None:
            continue
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"{name} has dtype {ids.dtype}: expected integers")
        if name != "input_ids" and (ids.dim() != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != tokens):
            raise ValueError(f"{name} has shape {tuple(ids.shape)}: expected {tuple(shape)} as the input has")
        smallest, largest = (int(end) for end in torch.aminmax(ids))
        if smallest < 0 or largest >= size:
            wrong = smallest if smallest < 0 else largest
            raise ValueError(f"{name} holds {wrong}, which is out of range: valid ids are 0..{size - 1}")
    return Inputs(
        words if input_ids is None else words.long(),
        attention_mask,
        token_type_ids.long().expand(shape),
        position_ids.long().expand(shape),
    )


def bert(
    p: Parameters,
    config: RealmConfig,
    inputs: Inputs,
    *,
    read: str,
    head_mask: Tensor | None = None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    seeds: list[int] | None = None,
    keep: bool = False,
    checkpoint_layers: bool = False,
    name: str = "realm",
) -> Encoded:
    """Encode a batch.

    Args:
        inputs: what `check_inputs` returned.
        read: what the caller reads of the last layer, and so all that is computed: "tokens" gives every position
            [batch, tokens, hidden]; "unpadded" the same with zeros at padded positions; "first" the first position
            alone [batch, hidden].
        head_mask: [heads] or [layers, heads], factors on the attention probabilities.
        seeds: of each sequence's dropout masks; None turns dropout off.
        keep: keep what `bert_backward` needs.
        checkpoint_layers: of each layer keep the input alone; `bert_backward` computes the rest again, bit for bit
            (Chen et al. 2016, "Training deep nets with sublinear memory cost").

    Returns:
        The last layer as `read` says; where asked for, the states [batch, tokens, hidden] before the first and after
        each layer, and each layer's attention probabilities [batch, heads, tokens, tokens].
    """
    batch, tokens = inputs.types.shape
    head_mask = check_head_mask(head_mask, config)
    mask = inputs.mask
    keep_padding = read == "tokens" or output_attentions or output_hidden_states
    if keep_padding or not is_right_padded(mask):
        lengths, kept = [tokens] * batch, None
        dtype = p[f"{name}.embeddings.word_embeddings.weight"].dtype
        # A mask of ones adds nothing.
        key_mask = None if bool((mask == 1).all()) else ops.additive_mask(mask, dtype)
        key_mask = key_mask if key_mask is None or mask.dim() == 3 else key_mask[:, None]  # [batch, 1|tokens, tokens]
    else:
        lengths, key_mask = mask.sum(1).tolist(), None
        kept = None if min(lengths) == tokens else mask.reshape(-1).nonzero()[:, 0]

    cache: Cache | None = {"inputs": inputs, "kept": kept, "read": read, "layers": []} if keep else None
    x = embed(
        p, config, f"{name}.embeddings", inputs, kept, lengths, seeds, part_of(cache, "embeddings")
    )  # [rows, hidden]
    hidden_states, attentions = [x.view(batch, tokens, -1)] if output_hidden_states else [], []
    firsts = None
    for index in range(config.num_hidden_layers):
        if (
            index == config.num_hidden_layers - 1
            and read == "first"
            and not (output_attentions or output_hidden_states)
        ):
            firsts = torch.tensor(lengths, device=x.device).cumsum(0) - torch.tensor(lengths, device=x.device)
            key_mask = None if key_mask is None else key_mask[:, :1]  # of a [tokens, tokens] mask, the first row
        layer_cache: Cache | None = {} if keep else None
        arguments: dict[str, Any] = dict(
            name=f"{name}.encoder.layer.{index}", x=x, lengths=lengths, key_mask=key_mask,
            head_mask=None if head_mask is None else head_mask[index], queries=firsts, seeds=seeds, number=index,
        )  # fmt: skip
        x, probabilities = layer(p, config, **arguments, output_attentions=output_attentions, cache=layer_cache)
        if cache is not None:
            cache["layers"].append(LayerAgain(arguments) if checkpoint_layers else layer_cache)
        if output_hidden_states:
            hidden_states.append(x.view(batch, tokens, -1))
        if output_attentions:
            attentions.append(probabilities)

    if read == "first":
        x = x if firsts is not None else x.view(batch, tokens, -1)[:, 0]
    elif kept is not None:
        x = x.new_zeros(batch * tokens, x.shape[1]).index_copy_(0, kept, x).view(batch, tokens, -1)
    else:
        x = x.view(batch, tokens, -1)
    if cache is not None:
        cache["only_firsts"] = firsts is not None
    return Encoded(
        x,
        tuple(hidden_states) if output_hidden_states else None,
        tuple(attentions) if output_attentions else None,
        cache or {},
    )


def bert_backward(
    p: Parameters, config: RealmConfig, dhidden: Tensor, cache: Cache, grads: Parameters, name: str = "realm"
) -> Tensor:
    """Add the gradients of the trunk's parameters to `grads`.

    Args:
        dhidden: ∂loss/∂hidden, shaped as the `hidden` that `bert` returned.

    Returns:
        ∂loss/∂inputs_embeds [batch, tokens, hidden], of the word embeddings where ids were given.
    """
    batch, tokens = cache["inputs"].types.shape
    hidden, kept = config.hidden_size, cache["kept"]
    if cache["read"] == "first" and not cache["only_firsts"]:
        dx = dhidden.new_zeros(batch, tokens, hidden)
        dx[:, 0] = dhidden
        dx = dx.view(-1, hidden)
    elif cache["read"] == "first":
        dx = dhidden
    else:
        dx = dhidden.reshape(-1, hidden)
        dx = dx if kept is None else dx[kept]
    for index in reversed(range(config.num_hidden_layers)):
        layer_cache = cache["layers"][index]
        if isinstance(layer_cache, LayerAgain):
            again, layer_cache = layer_cache, {}
            layer(p, config, **again.arguments, cache=layer_cache)
        dx = layer_backward(p, config, f"{name}.encoder.layer.{index}", dx, layer_cache, grads)
        grads.passed(f"{name}.encoder.layer.{index}")
    dx = embed_backward(p, config, f"{name}.embeddings", dx, cache, grads)
    grads.passed(f"{name}.embeddings")
    return dx


def rows_of(cache: Cache, rows: Tensor) -> Cache:
    """A cache of tensors [all rows, ...] with some of its rows alone."""
    return {name: rows_of(kept, rows) if isinstance(kept, dict) else kept[rows] for name, kept in cache.items()}


def part_of(cache: Cache | None, name: str) -> Cache | None:
    """A new cache for one part, kept under `name`."""
    return None if cache is None else cache.setdefault(name, {})


def check_head_mask(head_mask: Tensor | None, config: RealmConfig) -> Tensor | None:
    """Head masks of every layer, [layers, heads]."""
    if head_mask is None:
        return None
    expected = (config.num_hidden_layers, config.num_attention_heads)
    if tuple(head_mask.shape) not in (expected, expected[1:]):
        raise ValueError(f"head_mask has shape {tuple(head_mask.shape)}: expected {expected[1:]} or {expected}")
    return head_mask.expand(expected)


def is_right_padded(mask: Tensor) -> bool:
    """Whether every row of the mask is ones, at least one, and then zeros: padding that can be left out."""
    return mask.dim() == 2 and bool(
        ((mask == 0) | (mask == 1)).all() and (mask[:, 0] == 1).all() and (mask[:, 1:] <= mask[:, :-1]).all()
    )


def embed(
    p: Parameters,
    config: RealmConfig,
    name: str,
    inputs: Inputs,
    kept: Tensor | None,
    lengths: list[int],
    seeds: list[int] | None,
    cache: Cache | None = None,
) -> Tensor:
    """LayerNorm(word + token type + position) of the rows `kept` (None: all) -> [rows, hidden]."""

    def rows(values: Tensor) -> Tensor:
        values = values.reshape(-1, *values.shape[2:])
        return values if kept is None else values[kept]

    words = rows(inputs.words)
    if inputs.words.dim() == 2:  # ids
        words = ops.embedding(words, p[f"{name}.word_embeddings.weight"])
    types = ops.embedding(rows(inputs.types), p[f"{name}.token_type_embeddings.weight"])
    positions = ops.embedding(rows(inputs.positions), p[f"{name}.position_embeddings.weight"])
    x = normalize(p, f"{name}.LayerNorm", types.add_(words).add_(positions), config, part_of(cache, "norm"))
    hidden_masks, _ = dropout_streams(config, seeds, 0, x.device)
    return drop(x, hidden_masks, lengths, cache, "dropped")


def embed_backward(
    p: Parameters, config: RealmConfig, name: str, dx: Tensor, trunk_cache: Cache, grads: Parameters
) -> Tensor:
    """Gradients of the three tables; returns that of the word embeddings, [batch, tokens, hidden]."""
    inputs, kept, cache = trunk_cache["inputs"], trunk_cache["kept"], trunk_cache["embeddings"]
    dx = ops.drop(dx, cache.get("dropped"), config.hidden_dropout_prob)
    dx = normalize_backward(p, f"{name}.LayerNorm", dx, cache["norm"], grads)
    if kept is not None:
        dx = dx.new_zeros(inputs.types.numel(), dx.shape[1]).index_copy_(0, kept, dx)
    dx = dx.view(*inputs.types.shape, -1)
    if inputs.words.dim() == 2:  # ids
        ops.embedding_backward(dx, inputs.words, grads[f"{name}.word_embeddings.weight"], config.pad_token_id)
    ops.embedding_backward(dx, inputs.types, grads[f"{name}.token_type_embeddings.weight"])
    ops.embedding_backward(dx, inputs.positions, grads[f"{name}.position_embeddings.weight"])
    return dx


class Dropout(NamedTuple):
    """Streams for the masks of hidden states and of attention probabilities; None drops nothing."""

    hidden: ops.DropoutStreams | None
    attention: ops.DropoutStreams | None


def dropout_streams(config: RealmConfig, seeds: list[int] | None, part: int, device: torch.device) -> Dropout:
    """The streams of one part of the trunk: 0 for the embeddings, i + 1 for layer i."""
    rates = config.hidden_dropout_prob, config.attention_probs_dropout_prob
    return Dropout(
        *(
            ops.DropoutStreams(seeds, 2 * part + i, rate, device) if seeds is not None and rate else None
            for i, rate in enumerate(rates)
        )
    )


def drop(x: Tensor, masks: ops.DropoutStreams | None, lengths: list[int], cache: Cache | None, name: str) -> Tensor:
    """Dropout of x [rows, hidden], the rows of sequences of `lengths`; its mask is kept under `name`."""
    if masks is None:
        return x
    kept = masks.mask([length * x.shape[1] for length in lengths]).view(x.shape)
    if cache is not None:
        cache[name] = kept
    return ops.drop(x, kept, masks.probability)


def layer(
    p: Parameters,
    config: RealmConfig,
    name: str,
    x: Tensor,
    lengths: list[int],
    key_mask: Tensor | None,
    *,
    head_mask: Tensor | None,
    queries: Tensor | None,
    seeds: list[int] | None = None,
    number: int = 0,
    output_attentions: bool = False,
    cache: Cache | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One encoder layer on `x` [rows, hidden]: attention, then the MLP, each added to its input and normalised.

    Args:
        lengths: tokens of each sequence; they sum to `rows`.
        key_mask: [batch, 1 or tokens, tokens], added to the attention scores.
        queries: rows to compute the output for, one a sequence; None means all.
        seeds: of each sequence's dropout masks; None turns dropout off.
        number: the layer's, from 0, which gives it masks of its own.

    Returns:
        The output [rows or queries, hidden] and, where asked for, the attention probabilities.
    """
    dropout = dropout_streams(config, seeds, number + 1, x.device)
    context, probabilities = self_attention(
        p, config, f"{name}.attention.self", x, lengths, key_mask, head_mask, queries, output_attentions,
        dropout.attention, part_of(cache, "attention"),
    )  # fmt: skip
    if queries is not None:
        x, lengths = x[queries], [1] * len(lengths)
    x = add_dense(p, f"{name}.attention.output.dense", x, context, lengths, dropout.hidden, part_of(cache, "output"))
    x = normalize(p, f"{name}.attention.output.LayerNorm", x, config, part_of(cache, "norm"))
    x = add_mlp(p, name, x, config, lengths, dropout.hidden, part_of(cache, "mlp"))
    return normalize(p, f"{name}.output.LayerNorm", x, config, part_of(cache, "mlp norm")), probabilities


def layer_backward(
    p: Parameters, config: RealmConfig, name: str, dy: Tensor, cache: Cache, grads: Parameters
) -> Tensor:
    """∂loss/∂x of `layer` [rows, hidden] from `dy` [rows | queries, hidden]; parameters' gradients are added."""
    dx = normalize_backward(p, f"{name}.output.LayerNorm", dy, cache["mlp norm"], grads)
    dx = dx + mlp_backward(p, name, dx, config, cache["mlp"], grads)
    dx = normalize_backward(p, f"{name}.attention.output.LayerNorm", dx, cache["norm"], grads)
    dcontext = add_dense_backward(p, f"{name}.attention.output.dense", dx, config, cache["output"], grads)
    dattention = self_attention_backward(p, config, f"{name}.attention.self", dcontext, cache["attention"], grads)
    queries = cache["attention"]["queries"]
    return dattention.add_(dx) if queries is None else dattention.index_add_(0, queries, dx)


def self_attention(
    p: Parameters,
    config: RealmConfig,
    name: str,
    x: Tensor,
    lengths: list[int],
    key_mask: Tensor | None,
    head_mask: Tensor | None,
    queries: Tensor | None,
    output_attentions: bool,
    dropout: ops.DropoutStreams | None,
    cache: Cache | None = None,
) -> tuple[Tensor, Tensor | None]:
    """softmax(Q Kᵀ / √width + mask) V within each sequence (Vaswani et al. 2017, eq. 1) -> [rows | queries, hidden]."""
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    weight, bias = p.qkv[name]  # [hidden, 3 hidden]
    if queries is None:
        query, key, value = torch.addmm(bias, x, weight).split(config.hidden_size, dim=1)
        query_lengths = lengths
    else:
        split = config.hidden_size
        query = torch.addmm(bias[:split], x[queries], weight[:, :split])
        key, value = torch.addmm(bias[split:], x, weight[:, split:]).split(split, dim=1)
        query_lengths = [1] * len(lengths)
    query.mul_(width**-0.5)

    context = torch.empty_like(query, memory_format=torch.contiguous_format)
    factors = None if head_mask is None else head_mask.to(x.dtype)
    attentions = x.new_empty(len(lengths), heads, lengths[0], lengths[0]) if output_attentions else None
    parts = []
    for part in attention_parts(query_lengths, lengths, heads, x.device):
        q, c = (by_head(rows, heads, part, part.query_rows) for rows in (query, context))
        k, v = (by_head(rows, heads, part, part.key_rows) for rows in (key, value))
        scores = q @ k.transpose(2, 3)  # [sequences, heads, queries, tokens]
        if key_mask is not None:
            scores.add_(key_mask[part.sequences, None])
        softmaxed = ops.softmax_(scores)
        probabilities = softmaxed
        if dropout is not None:
            sequences, heads_here, *plane = scores.shape
            kept = dropout.mask([math.prod(plane)] * sequences, part.sequences, portions=heads_here)
            probabilities = ops.drop(softmaxed, kept.view(scores.shape), dropout.probability)
        if factors is not None:
            probabilities = probabilities * factors[part.heads, None, None]
        if attentions is not None:
            attentions[part.sequences, part.heads] = probabilities
        if cache is not None:
            parts.append((part, softmaxed, probabilities))
        c.copy_(probabilities @ v)
    if cache is not None:
        cache.update(x=x, query=query, key=key, value=value, context=context, queries=queries, parts=parts)
    return context, attentions


def self_attention_backward(
    p: Parameters, config: RealmConfig, name: str, dcontext: Tensor, cache: Cache, grads: Parameters
) -> Tensor:
    """∂loss/∂x of `self_attention` [rows, hidden] from that of its context [rows | queries, hidden]."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    x, queries = cache["x"], cache["queries"]
    # One gradient where the forward made one product: of query, key and value, or of key and value alone.
    dproduct = x.new_empty(x.shape[0], (3 if queries is None else 2) * hidden)
    dquery = dproduct[:, :hidden] if queries is None else torch.empty_like(dcontext)
    dkey, dvalue = dproduct[:, -2 * hidden :].split(hidden, dim=1)
    for part, softmaxed, probabilities in cache["parts"]:
        q, c, dc, dq = (
            by_head(rows, heads, part, part.query_rows) for rows in (cache["query"], cache["context"], dcontext, dquery)
        )
        k, v, dk, dv = (
            by_head(rows, heads, part, part.key_rows) for rows in (cache["key"], cache["value"], dkey, dvalue)
        )
        dv.copy_(probabilities.transpose(2, 3) @ dc)
        # With s the softmax and p what dropout and head mask made of it: ds = s (∂loss/∂s - Σ s ∂loss/∂s), where
        # s ∂loss/∂s = p ∂loss/∂p, and its sum over the keys, Σ p (dc · v), is dc · c.
        along = (dc * c).sum(-1, keepdim=True)
        dscores = (dc @ v.transpose(2, 3)).mul_(probabilities).addcmul_(softmaxed, along, value=-1)
        dq.copy_(dscores @ k)
        dk.copy_(dscores.transpose(2, 3) @ q)
    dquery.mul_((hidden // heads) ** -0.5)  # the forward scaled its queries, and kept them so
    (weight, _), (dweight, dbias) = p.qkv[name], grads.qkv[name]  # weights [hidden, 3 hidden]
    if queries is None:
        return ops.linear_backward(dproduct, x, weight.t(), dweight.t(), dbias)
    dx = ops.linear_backward(dproduct, x, weight[:, hidden:].t(), dweight[:, hidden:].t(), dbias[hidden:])
    first = ops.linear_backward(dquery, x[queries], weight[:, :hidden].t(), dweight[:, :hidden].t(), dbias[:hidden])
    return dx.index_add_(0, queries, first)


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


def add_dense(
    p: Parameters,
    name: str,
    x: Tensor,
    h: Tensor,
    lengths: list[int],
    dropout: ops.DropoutStreams | None,
    cache: Cache | None = None,
) -> Tensor:
    """x + dropout(h Wᵀ + b) -> [rows, hidden]."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    if cache is not None:
        cache["h"] = h
    if dropout is None:
        return (x + bias).addmm_(h, weight.t())  # the product lands on the sum: one pass less
    return drop(ops.linear(h, weight, bias), dropout, lengths, cache, "dropped").add_(x)


def add_dense_backward(
    p: Parameters, name: str, dy: Tensor, config: RealmConfig, cache: Cache, grads: Parameters
) -> Tensor:
    """∂loss/∂h of `add_dense`; that of its x is `dy` itself."""
    dy = ops.drop(dy, cache.get("dropped"), config.hidden_dropout_prob)
    return dense_backward(p, name, dy, cache["h"], grads)


def dense_backward(p: Parameters, name: str, dy: Tensor, x: Tensor, grads: Parameters) -> Tensor:
    """∂loss/∂x of the dense layer `name`."""
    return ops.linear_backward(dy, x, p[f"{name}.weight"], grads[f"{name}.weight"], grads[f"{name}.bias"])


def add_mlp(
    p: Parameters,
    name: str,
    x: Tensor,
    config: RealmConfig,
    lengths: list[int],
    dropout: ops.DropoutStreams | None,
    cache: Cache | None = None,
) -> Tensor:
    """x + dropout(activation(x W₁ᵀ + b₁) W₂ᵀ + b₂) -> [rows, hidden]."""
    activation_ = ops.ACTIVATIONS[config.hidden_act]

    def inner(rows: Tensor) -> Tensor:
        return ops.linear(rows, p[f"{name}.intermediate.dense.weight"], p[f"{name}.intermediate.dense.bias"])

    if cache is not None:  # the activation is computed again backward: half the memory
        cache.update(x=x, inner=inner(x))
        activated = torch.empty_like(cache["inner"])
        for rows in ops.pieces(activated):
            activation_(activated[rows].copy_(cache["inner"][rows]))
        out = add_dense(p, f"{name}.output.dense", x, activated, lengths, dropout, part_of(cache, "output"))
        del cache["output"]["h"]
        return out
    if dropout is not None:
        return add_dense(p, f"{name}.output.dense", x, activation_(inner(x)), lengths, dropout)
    weight, out = p[f"{name}.output.dense.weight"], x + p[f"{name}.output.dense.bias"]
    step = MLP_ROWS if x.device.type == "cpu" else x.shape[0]
    for rows, out_rows in zip(x.split(step), out.split(step), strict=True):
        out_rows.addmm_(activation_(inner(rows)), weight.t())
    return out


def mlp_backward(p: Parameters, name: str, dy: Tensor, config: RealmConfig, cache: Cache, grads: Parameters) -> Tensor:
    """∂loss/∂x of `add_mlp` without its residual: that part is `dy` itself."""
    output, inner = f"{name}.output.dense", cache["inner"]
    dy = ops.drop(dy, cache["output"].get("dropped"), config.hidden_dropout_prob)
    activated, dinner = torch.empty_like(inner), dy @ p[f"{output}.weight"]
    for rows in ops.pieces(inner):
        activated[rows], slope = ops.activation_and_slope(config.hidden_act, inner[rows])
        dinner[rows].mul_(slope)
    ops.weight_backward(dy, activated, grads[f"{output}.weight"], grads[f"{output}.bias"])
    return dense_backward(p, f"{name}.intermediate.dense", dinner, cache["x"], grads)


def normalize(p: Parameters, name: str, x: Tensor, config: RealmConfig, cache: Cache | None = None) -> Tensor:
    """LayerNorm with the parameters `name`; `x` is overwritten."""
    standardized, inverse_deviation = ops.standardize_(x, config.layer_norm_eps)
    if cache is not None:
        cache.update(standardized=standardized, inverse_deviation=inverse_deviation)
    return torch.addcmul(p[f"{name}.bias"], standardized, p[f"{name}.weight"])


def normalize_backward(p: Parameters, name: str, dy: Tensor, cache: Cache, grads: Parameters) -> Tensor:
    return ops.layer_norm_backward(
        dy, cache["standardized"], cache["inverse_deviation"], p[f"{name}.weight"],
        grads[f"{name}.weight"], grads[f"{name}.bias"],
    )  # fmt: skip


def pool(p: Parameters, first: Tensor, name: str = "realm.pooler", cache: Cache | None = None) -> Tensor:
    """tanh(W h_CLS + b), BERT's summary of a sequence [batch, hidden] -> [batch, hidden]."""
    pooled = ops.linear(first, p[f"{name}.dense.weight"], p[f"{name}.dense.bias"]).tanh_()
    if cache is not None:
        cache.update(first=first, pooled=pooled)
    return pooled


def pool_backward(p: Parameters, dy: Tensor, cache: Cache, grads: Parameters, name: str = "realm.pooler") -> Tensor:
    """∂loss/∂h_CLS [batch, hidden]; the slope of tanh is 1 - tanh²."""
    dinner = dy * (1 - cache["pooled"] ** 2)
    return dense_backward(p, f"{name}.dense", dinner, cache["first"], grads)


def mlm_logits(
    p: Parameters, config: RealmConfig, hidden: Tensor, name: str = "cls.predictions", cache: Cache | None = None
) -> Tensor:
    """Scores of every vocabulary entry at each row, [rows, hidden] -> [rows, vocabulary]."""
    inner = ops.linear(hidden, p[f"{name}.transform.dense.weight"], p[f"{name}.transform.dense.bias"])
    activated = ops.ACTIVATIONS[config.hidden_act](inner if cache is None else inner.clone())
    transformed = normalize(p, f"{name}.transform.LayerNorm", activated, config, part_of(cache, "norm"))
    if cache is not None:
        cache.update(hidden=hidden, inner=inner, transformed=transformed)
    return ops.linear(transformed, p[f"{name}.decoder.weight"], p[f"{name}.bias"])


def mlm_logits_backward(
    p: Parameters, config: RealmConfig, dlogits: Tensor, cache: Cache, grads: Parameters, name: str = "cls.predictions"
) -> Tensor:
    """∂loss/∂hidden [rows, hidden] from that of the logits [rows, vocabulary]."""
    dtransformed = ops.linear_backward(
        dlogits, cache["transformed"], p[f"{name}.decoder.weight"], grads[f"{name}.decoder.weight"],
        grads[f"{name}.bias"],
    )  # fmt: skip
    dactivated = normalize_backward(p, f"{name}.transform.LayerNorm", dtransformed, cache["norm"], grads)
    _, slope = ops.activation_and_slope(config.hidden_act, cache["inner"])
    return dense_backward(p, f"{name}.transform.dense", dactivated.mul_(slope), cache["hidden"], grads)
