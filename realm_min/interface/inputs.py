"""What a model is given to read: checked, and filled in where something was left out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import RealmConfig
from ..kinds import usual_numbers
from ..model.bert import Batch


class Inputs(NamedTuple):
    """What a model is given to read, under transformers' names; None where it was left out."""

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None

    def to(self, device: torch.device) -> Inputs:
        """The same, on a device."""
        return Inputs(*(None if tensor is None else tensor.to(device) for tensor in self))

    def usual(self) -> Inputs:
        """The same, in dtypes that torch computes with."""
        named = zip(self._fields, self, strict=True)
        return Inputs(*(None if tensor is None else usual_numbers(name, tensor) for name, tensor in named))


def own_tensor(name: str, value: Any, hint: str) -> Any:
    """An argument of a call: of a tensor a copy, so that what the caller writes into it later changes no gradient.

    A number that says yes or no is a bool.

    Args:
        hint: of the argument's type, as `forward` has it.

    Raises:
        TypeError: it is none, where the call takes tensors alone.
    """
    if isinstance(value, Tensor):
        return usual_numbers(name, value.detach()).clone()
    if isinstance(value, int) and hint.partition(" ")[0] == "bool":
        return bool(value)
    if value is not None and hint.partition(" ")[0] == "Tensor":
        raise TypeError(
            f'{name} is a {type(value).__name__}: give a tensor, as tokenizer(…, return_tensors="pt") makes them, '
            "each under its name (model(**encoding)), or torch.tensor(…)"
        )
    return value


def checked_batch(config: RealmConfig, inputs: Inputs) -> Batch:
    """Refuse what the encoder cannot read; fill in what was left out.

    Raises:
        ValueError: both or neither of ids and embeddings, a wrong rank or shape, no tokens at all, more tokens than
            positions, an id outside its table.
    """
    inputs = inputs.usual()
    words = checked_words(config, inputs)
    input_ids, attention_mask, token_type_ids, position_ids, _ = for_all(inputs, len(words))
    shape, device = words.shape[:2], words.device
    batch, tokens = shape
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
    check_mask("attention_mask", attention_mask)
    if attention_mask.dtype != torch.long and bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        attention_mask = attention_mask.long()  # as numbers or truth values of any kind
    if tuple(attention_mask.shape) not in ((batch, tokens), (batch, tokens, tokens)):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: expected {(batch, tokens)} as the input has"
        )
    if input_ids is not None:
        check_ids("input_ids", input_ids, config.vocab_size, shape)
    check_ids("token_type_ids", token_type_ids, config.type_vocab_size, shape)
    check_ids("position_ids", position_ids, config.max_position_embeddings, shape)
    return Batch(
        words if input_ids is None else words.long(),
        attention_mask,
        token_type_ids.long().expand(shape),
        position_ids.long().expand(shape),
    )


def for_all(inputs: Inputs, batch: int) -> Inputs:
    """With a row of types or positions, and a mask, that stand for all sequences, as one for each."""
    mask, *rows = inputs[1:4]
    if mask is not None and mask.dim() > 1 and len(mask) == 1:
        mask = mask.expand(batch, *mask.shape[1:])
    types, positions = (row[None] if row is not None and row.dim() == 1 else row for row in rows)
    return inputs._replace(attention_mask=mask, token_type_ids=types, position_ids=positions)


def checked_words(config: RealmConfig, inputs: Inputs) -> Tensor:
    """Whichever was given of ids [batch, tokens] and embeddings [batch, tokens, hidden], of one token at least."""
    ids, embeds = inputs.input_ids, inputs.inputs_embeds
    if ids is not None and embeds is None:
        words = ids
        if words.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(words.shape)}: expected [batch, tokens]")
    elif embeds is not None and ids is None:
        words = embeds.detach()
        if words.dim() != 3 or words.shape[2] != config.hidden_size:
            raise ValueError(
                f"inputs_embeds has shape {tuple(words.shape)}: expected [batch, tokens, {config.hidden_size}]"
            )
        check_finite("inputs_embeds", words)
    else:
        given = "both" if ids is not None else "neither"
        raise ValueError(f"{given} of input_ids and inputs_embeds were given: give exactly one")
    if 0 in words.shape[:2]:
        raise ValueError(
            f"the input has shape {tuple(words.shape[:2])}: give at least one sequence of at least one token"
        )
    return words


def check_ids(name: str, ids: Tensor, size: int, shape: torch.Size) -> None:
    """Refuse what are no ids of a table of `size` rows, for an input of `shape` [batch, tokens] or for each of them."""
    batch, tokens = shape
    check_integers(name, ids)
    if ids.dim() != 2 or ids.shape[0] not in (1, batch) or ids.shape[1] != tokens:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}: expected {tuple(shape)} as the input has")
    smallest, largest = (int(end) for end in torch.aminmax(ids))
    if smallest < 0 or largest >= size:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(f"{name} holds {wrong}, which is out of range: valid ids are 0..{size - 1}")


def check_integers(name: str, ids: Tensor) -> None:
    """Refuse a tensor of another dtype than an integer one."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {ids.dtype}: expected integers")


def check_finite(name: str, numbers: Tensor, *, barred: bool = False) -> None:
    """Refuse NaN, infinity and complex numbers; -inf is taken where it says that something is `barred`."""
    if numbers.is_complex():
        raise ValueError(f"{name} has dtype {numbers.dtype}: expected real numbers")
    if numbers.is_floating_point() and numbers.numel():
        low, high = (float(end) for end in torch.aminmax(numbers))
        if not high < math.inf or (low == -math.inf and not barred):
            raise ValueError(f"{name} holds {low if high < math.inf else high}: expected finite numbers")


def check_mask(name: str, mask: Tensor) -> None:
    """Refuse what is no mask: a number that does not lie from 0 to 1."""
    check_finite(name, mask)
    if mask.dtype != torch.bool and mask.numel():
        low, high = torch.aminmax(mask)
        if low < 0 or high > 1:
            raise ValueError(f"{name} holds {(low if low < 0 else high).item()}: expected 0 or 1, or truth values")


def check_relevance(relevance_score: Tensor) -> None:
    """Refuse f(x, z) that no softmax takes: what are no floats, NaN and infinity; -inf says that a block is barred."""
    if not relevance_score.is_floating_point():
        raise ValueError(f"relevance_score has dtype {relevance_score.dtype}: expected floating-point numbers")
    check_finite("relevance_score", relevance_score, barred=True)


def check_span_width(config: RealmConfig) -> None:
    """ValueError if the reader, which reads `max_span_width` tokens or more, has no positions for so many."""
    if config.max_span_width > config.max_position_embeddings:
        raise ValueError(
            f"max_span_width={config.max_span_width} is more than the max_position_embeddings="
            f"{config.max_position_embeddings} tokens that can be read: load the model with a smaller max_span_width"
        )


def checked_head_mask(head_mask: Tensor | None, config: RealmConfig) -> Tensor | None:
    """Head masks of every layer, [layers, heads]."""
    if head_mask is None:
        return None
    expected = (config.num_hidden_layers, config.num_attention_heads)
    if tuple(head_mask.shape) not in (expected, expected[1:]):
        raise ValueError(f"head_mask has shape {tuple(head_mask.shape)}: expected {expected[1:]} or {expected}")
    check_finite("head_mask", head_mask)
    return head_mask.expand(expected)


def flatten_candidates(*inputs: Tensor | None) -> list[Tensor | None]:
    """[batch, candidates, tokens] -> [batch * candidates, tokens]; None and [batch, tokens] stay as they are."""
    return [x if x is None or x.dim() <= 2 else x.flatten(0, -2) for x in inputs]
