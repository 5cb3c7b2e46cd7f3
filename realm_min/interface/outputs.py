"""What the models return: fields by name, by key or by position, with transformers' names and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass
class Call:
    """A model's call, for its backward."""

    forward: Callable[[bool], tuple[ModelOutput, Any]]  # makes it once more, keeping what the backward takes if told so
    outputs: dict[str, tuple[int, ...]]  # shapes of those that have a gradient
    kept: Any  # None where nothing was kept
    state: tuple  # of the model's modes and weights

    def check(self, cotangents: dict[str, Tensor]) -> None:
        """Raise the ValueError that names a cotangent of no output, or of another shape."""
        for name, cotangent in cotangents.items():
            if name not in self.outputs:
                raise ValueError(
                    f"the last call returned no {name!r} to differentiate: it has {', '.join(self.outputs)}"
                )
            if cotangent.shape != self.outputs[name]:
                expected = tuple(self.outputs[name])
                raise ValueError(f"the cotangent of {name} has shape {tuple(cotangent.shape)}: expected {expected}")


@dataclass(repr=False)
class ModelOutput:
    """A dataclass whose fields that are not None also read as a tuple (`out[0]`) and as a mapping (`out["loss"]`).

    `call` is what `model.backward(output)` takes; it is none of the fields.
    """

    call: Call | None = field(default=None, init=False, compare=False)

    def keys(self) -> tuple[str, ...]:
        names = (field.name for field in fields(self) if field.name != "call")
        return tuple(name for name in names if getattr(self, name) is not None)

    def values(self) -> tuple[Any, ...]:
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:
        return tuple((key, getattr(self, key)) for key in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, key) for key in self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no {key!r}: this call returned {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __len__(self) -> int:
        return len(self.keys())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.items())})"


@dataclass(repr=False)
class RealmEmbedderOutput(ModelOutput):
    """`projected_score` [batch, retriever_proj_size]; hidden states and attentions where asked for."""

    projected_score: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
class RealmScorerOutput(ModelOutput):
    """`relevance_score` [batch, candidates], the product of the other two.

    `query_score` is [batch, retriever_proj_size], `candidate_score` [batch, candidates, retriever_proj_size].
    """

    relevance_score: Tensor | None = None
    query_score: Tensor | None = None
    candidate_score: Tensor | None = None


@dataclass(repr=False)
class MaskedLMOutput(ModelOutput):
    """`loss` [], `logits` [batch * candidates, tokens, vocabulary]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(repr=False)
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


@dataclass(repr=False)
class RealmForOpenQAOutput(ModelOutput):
    """`reader_output` and the wordpiece ids of the predicted answer; of several questions, a tuple of each."""

    reader_output: RealmReaderOutput | tuple[RealmReaderOutput, ...] | None = None
    predicted_answer_ids: Tensor | tuple[Tensor, ...] | None = None
