"""What the models return: fields by name, by key or by position, with transformers' names and order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor


@dataclass
class Call:
    """A model's call, for its backward. It must not hold the model, which holds it: neither would be freed at once."""

    forward: Callable[[Any, bool], tuple[ModelOutput, Any]]  # makes it again; of the model, and whether to keep `kept`
    outputs: dict[str, tuple[int, ...]]  # shapes of those that have a gradient
    kept: Any  # None where nothing was kept
    state: tuple  # of the model's modes, weights and configurations

    def checked(self, cotangents: dict[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """The cotangents in the model's dtype. ValueError for one of no output, or of another shape."""
        found = {}
        for name, cotangent in cotangents.items():
            if name not in self.outputs:
                raise ValueError(
                    f"the last call returned no {name!r} to differentiate: it has {', '.join(self.outputs)}"
                )
            if isinstance(cotangent, Tensor) and cotangent.is_complex():
                raise ValueError(f"the cotangent of {name} has dtype {cotangent.dtype}: give real numbers")
            try:
                found[name] = torch.as_tensor(cotangent, dtype=dtype, device=device).detach().to_dense()
            except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError of the meta device among them
                raise ValueError(f"the cotangent of {name} is no tensor of numbers ({error}): give one") from None
            if found[name].shape != self.outputs[name]:
                shape, expected = tuple(found[name].shape), tuple(self.outputs[name])
                raise ValueError(f"the cotangent of {name} has shape {shape}: expected {expected}")
        return found


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """A dict of the fields that are not None, which are attributes too, and by place a tuple's (`out[0]`, `out[:2]`).

    `call` is what `model.backward(output)` takes; it is none of the fields, and no copy of the output has it.
    """

    call: Call | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in self._names():
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls) if field.name != "call")

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(f"{type(self).__name__} has no {key!r}: this call returned {', '.join(self)}")
        return super().__getitem__(key)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple:
        return type(self), tuple(getattr(self, name) for name in self._names())

    def _fixed(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has the fields that its call returned: make a dict of it, dict(output)")

    if not TYPE_CHECKING:  # whose types are a dict's
        __delitem__ = pop = setdefault = update = _fixed


def call_of(output: object) -> Call | None:
    """The call that returned an output; TypeError for a part of one, or something else."""
    if not isinstance(output, ModelOutput):
        raise TypeError(
            f"backward() was given a {type(output).__name__}: give the whole output that the call returned, with "
            "return_dict=True, or nothing, for the last call"
        )
    return output.call


@dataclass
class RealmEmbedderOutput(ModelOutput):
    """`projected_score` [batch, retriever_proj_size]; hidden states and attentions where asked for."""

    projected_score: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class RealmScorerOutput(ModelOutput):
    """`relevance_score` [batch, candidates], the product of the other two.

    `query_score` is [batch, retriever_proj_size], `candidate_score` [batch, candidates, retriever_proj_size].
    """

    relevance_score: Tensor | None = None
    query_score: Tensor | None = None
    candidate_score: Tensor | None = None


@dataclass
class MaskedLMOutput(ModelOutput):
    """`loss` [], `logits` [batch * candidates, tokens, vocabulary]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class RealmReaderOutput(ModelOutput):
    """Losses [] where answers were given; the best span as `block_idx` [], `candidate` [], `start_pos`, `end_pos` [1].

    `retriever_correct` [searcher beam] and `reader_correct` [reader beam, spans] mark what holds an answer.
    """

    loss: Tensor | None = None
    retriever_loss: Tensor | None = None
    reader_loss: Tensor | None = None
    retriever_correct: Tensor | None = None
    reader_correct: Tensor | None = None
    block_idx: Tensor | None = None
    candidate: Tensor | None = None
    start_pos: Tensor | None = None
    end_pos: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class RealmForOpenQAOutput(ModelOutput):
    """`reader_output` and the wordpiece ids of the predicted answer; of several questions, a tuple of each."""

    reader_output: RealmReaderOutput | tuple[RealmReaderOutput, ...] | None = None
    predicted_answer_ids: Tensor | tuple[Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPoolingAndCrossAttentions(ModelOutput):
    """What BERT alone returns: `last_hidden_state` [batch, tokens, hidden], `pooler_output` [batch, hidden]."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: None = None
