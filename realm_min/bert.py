"""BERT (Devlin et al. 2018): what reads the text in every part of REALM.

Axes: `batch` sequences of `tokens`; `rows` are the tokens of all sequences laid end to end, padding left out where
nothing reads it; `heads` x `width` = `hidden`. Every function takes the parameters `p` and the name under which a
part's tensors stand in the state dict.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops
from .config import RealmConfig
from .parameters import Parameters, Shapes

# Rows of the MLP computed at a time on a CPU: its intermediate activations then stay in cache.
MLP_ROWS = 400
# Attention scores held at a time, in numbers.
SCORES_AT_ONCE = 1 << 23


class Encoded(NamedTuple):
    """What `bert` returns; see there."""

    hidden: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class Inputs(NamedTuple):
    """Checked inputs of a batch: ids or embeddings, mask, types and positions, each [batch, tokens, ...]."""

    ids: Tensor | None
    embeds: Tensor | None
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
    if (input_ids is None) == (inputs_embeds is None):
        given = "both" if input_ids is not None else "neither"
        raise ValueError(f"{given} of input_ids and inputs_embeds were given: give exactly one")
    if inputs_embeds is not None and (inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != config.hidden_size):
        raise ValueError(
            f"inputs_embeds has shape {tuple(inputs_embeds.shape)}: expected [batch, tokens, {config.hidden_size}]"
        )
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: expected [batch, tokens]")
    shape = input_ids.shape if input_ids is not None else inputs_embeds.shape[:2]
    device = input_ids.device if input_ids is not None else inputs_embeds.device
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
        None if input_ids is None else input_ids.long(),
        None if inputs_embeds is None else inputs_embeds.detach(),
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
    generator: torch.Generator | None = None,
    name: str = "realm",
) -> Encoded:
    """Encode a batch.

    Args:
        inputs: what `check_inputs` returned.
        read: what the caller reads of the last layer, and so all that is computed: "tokens" gives every position
            [batch, tokens, hidden]; "unpadded" the same with zeros at padded positions; "first" the first position
            alone [batch, hidden].
        head_mask: [heads] or [layers, heads], factors on the attention probabilities.
        generator: draws the dropout masks; None turns dropout off.

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

    x = embed(p, config, f"{name}.embeddings", inputs, kept, generator)  # [rows, hidden]
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
        x, probabilities = layer(
            p, config, f"{name}.encoder.layer.{index}", x, lengths, key_mask,
            head_mask=None if head_mask is None else head_mask[index], queries=firsts,
            output_attentions=output_attentions, generator=generator,
        )  # fmt: skip
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
    return Encoded(
        x, tuple(hidden_states) if output_hidden_states else None, tuple(attentions) if output_attentions else None
    )


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
    generator: torch.Generator | None,
) -> Tensor:
    """LayerNorm(word + token type + position) of the rows `kept` (None: all) -> [rows, hidden]."""

    def rows(values: Tensor) -> Tensor:
        values = values.reshape(-1, *values.shape[2:])
        return values if kept is None else values[kept]

    if inputs.embeds is None:
        words = ops.embedding(rows(inputs.ids), p[f"{name}.word_embeddings.weight"])
    else:
        words = rows(inputs.embeds)
    types = ops.embedding(rows(inputs.types), p[f"{name}.token_type_embeddings.weight"])
    positions = ops.embedding(rows(inputs.positions), p[f"{name}.position_embeddings.weight"])
    x = normalize(p, f"{name}.LayerNorm", types.add_(words).add_(positions), config)
    return ops.dropout(x, config.hidden_dropout_prob, generator)


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
    output_attentions: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor | None]:
    """One encoder layer on `x` [rows, hidden]: attention, then the MLP, each added to its input and normalised.

    Args:
        lengths: tokens of each sequence; they sum to `rows`.
        key_mask: [batch, 1 or tokens, tokens], added to the attention scores.
        queries: rows to compute the output for; None means all.

    Returns:
        The output [rows or queries, hidden] and, where asked for, the attention probabilities.
    """
    context, probabilities = self_attention(
        p, config, f"{name}.attention.self", x, lengths, key_mask, head_mask, queries, output_attentions, generator
    )
    x = x if queries is None else x[queries]
    x = add_dense(p, f"{name}.attention.output.dense", x, context, config, generator)
    x = normalize(p, f"{name}.attention.output.LayerNorm", x, config)
    x = add_mlp(p, name, x, config, generator)
    return normalize(p, f"{name}.output.LayerNorm", x, config), probabilities


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
    generator: torch.Generator | None,
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
    all_probabilities = []
    for run, query_rows, key_rows in equal_runs(query_lengths, lengths, heads):

        def by_head(rows: Tensor, sequences: int = len(run)) -> Tensor:
            return rows.reshape(sequences, -1, heads, width).transpose(1, 2)  # [sequences, heads, tokens, width]

        scores = by_head(query[query_rows]) @ by_head(key[key_rows]).transpose(2, 3)
        if key_mask is not None:
            scores.add_(key_mask[run, None])
        probabilities = ops.dropout(ops.softmax_(scores), config.attention_probs_dropout_prob, generator)
        if head_mask is not None:
            probabilities = probabilities * head_mask.to(scores.dtype)[:, None, None]
        if output_attentions:
            all_probabilities.append(probabilities)
        by_head(context[query_rows]).copy_(probabilities @ by_head(value[key_rows]))
    return context, torch.cat(all_probabilities) if output_attentions else None


def equal_runs(query_lengths: list[int], lengths: list[int], heads: int) -> Iterator[tuple[range, slice, slice]]:
    """Neighbouring sequences of equal length, as many at a time as `SCORES_AT_ONCE` allows.

    Yields:
        Their numbers, the rows of their queries and the rows of their keys.
    """
    sequence = query_row = key_row = 0
    for (queries, keys), group in groupby(zip(query_lengths, lengths, strict=True)):
        left = len(list(group))
        at_once = max(1, SCORES_AT_ONCE // (heads * queries * keys))
        while left:
            count = min(left, at_once)
            next_query, next_key = query_row + count * queries, key_row + count * keys
            yield range(sequence, sequence + count), slice(query_row, next_query), slice(key_row, next_key)
            sequence, query_row, key_row, left = sequence + count, next_query, next_key, left - count


def add_dense(
    p: Parameters, name: str, x: Tensor, h: Tensor, config: RealmConfig, generator: torch.Generator | None
) -> Tensor:
    """x + dropout(h Wᵀ + b) -> [rows, hidden]."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    if generator is None:
        return (x + bias).addmm_(h, weight.t())  # the product lands on the sum: one pass less
    return ops.dropout(ops.linear(h, weight, bias), config.hidden_dropout_prob, generator).add_(x)


def add_mlp(p: Parameters, name: str, x: Tensor, config: RealmConfig, generator: torch.Generator | None) -> Tensor:
    """x + dropout(activation(x W₁ᵀ + b₁) W₂ᵀ + b₂) -> [rows, hidden]."""
    activation_ = ops.ACTIVATIONS[config.hidden_act]

    def inner(rows: Tensor) -> Tensor:
        return activation_(
            ops.linear(rows, p[f"{name}.intermediate.dense.weight"], p[f"{name}.intermediate.dense.bias"])
        )

    if generator is not None:
        return add_dense(p, f"{name}.output.dense", x, inner(x), config, generator)
    weight, out = p[f"{name}.output.dense.weight"], x + p[f"{name}.output.dense.bias"]
    step = MLP_ROWS if x.device.type == "cpu" else x.shape[0]
    for rows, out_rows in zip(x.split(step), out.split(step), strict=True):
        out_rows.addmm_(inner(rows), weight.t())
    return out


def normalize(p: Parameters, name: str, x: Tensor, config: RealmConfig) -> Tensor:
    return ops.layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], config.layer_norm_eps)


def pool(p: Parameters, first: Tensor, name: str = "realm.pooler") -> Tensor:
    """tanh(W h_CLS + b), BERT's summary of a sequence [batch, hidden] -> [batch, hidden]."""
    return ops.linear(first, p[f"{name}.dense.weight"], p[f"{name}.dense.bias"]).tanh_()


def mlm_logits(p: Parameters, config: RealmConfig, hidden: Tensor, name: str = "cls.predictions") -> Tensor:
    """Scores of every vocabulary entry at each row, [rows, hidden] -> [rows, vocabulary]."""
    transformed = ops.linear(hidden, p[f"{name}.transform.dense.weight"], p[f"{name}.transform.dense.bias"])
    transformed = ops.ACTIVATIONS[config.hidden_act](transformed)
    transformed = normalize(p, f"{name}.transform.LayerNorm", transformed, config)
    return ops.linear(transformed, p[f"{name}.decoder.weight"], p[f"{name}.bias"])
