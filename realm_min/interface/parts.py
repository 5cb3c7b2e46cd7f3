"""A model's parts by the names that its state dict spans: `model.realm.encoder.layer[0].attention.self.query.weight`.

Layers are functions here, and weights lie in one dict. Programs that look for modules find places in that dict.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..compatible.left_out import OF_MODELS
from ..model.bert import bert
from ..model.realm import pool
from ..ranks.devices import plain_arithmetic
from .inputs import Inputs, checked_batch
from .outputs import BaseModelOutputWithPoolingAndCrossAttentions

_SIZES = {"num_embeddings": 0, "embedding_dim": 1, "out_features": 0, "in_features": 1}  # axes of a weight


class Tree:
    """What has tensors under dotted names: a model, or a part of one. Names and orders are those of torch's modules."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name within here."""
        raise NotImplementedError

    def child(self, name: str) -> Tree:
        """What stands under the first part of a dotted name."""
        raise NotImplementedError

    def buffer_names(self) -> tuple[str, ...]:
        """Those of `tensors` that are no parameters."""
        return ()

    def named_children(self) -> Iterator[tuple[str, Tree]]:
        """The parts right below, each once, though it has two names."""
        once: dict[Tree, str] = {}
        for name, child in self._children():
            once.setdefault(child, name)
        yield from ((name, child) for child, name in once.items())

    def _children(self) -> Iterator[tuple[str, Tree]]:
        """The parts right below, one under each of its names."""
        for name in dict.fromkeys(name.partition(".")[0] for name in self.tensors() if "." in name):
            yield name, self.child(name)

    def children(self) -> Iterator[Tree]:
        return (child for _, child in self.named_children())

    def named_modules(
        self, memo: set | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tree]]:
        """This and all parts below it, each once, or under each of its names."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self._children():
            yield from child.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)

    def modules(self, remove_duplicate: bool = True) -> Iterator[Tree]:
        return (module for _, module in self.named_modules(remove_duplicate=remove_duplicate))

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The weights themselves, tied ones once."""
        return self._named(prefix, recurse, remove_duplicate, buffers=False)

    def parameters(self, recurse: bool = True) -> Iterator[Tensor]:
        return (tensor for _, tensor in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        return self._named(prefix, recurse, remove_duplicate, buffers=True)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (tensor for _, tensor in self.named_buffers(recurse=recurse))

    def _named(self, prefix: str, recurse: bool, once: bool, buffers: bool) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for name, tensor in self.tensors().items():
            if (name in self.buffer_names()) == buffers and (recurse or "." not in name):
                if not (once and id(tensor) in seen):
                    yield f"{prefix}.{name}" if prefix else name, tensor
                seen.add(id(tensor))

    def get_submodule(self, target: str) -> Tree:
        found = self
        for name in target.split(".") if target else ():
            found = found.child(name)
        return found

    def get_parameter(self, target: str) -> Tensor:
        """AttributeError if there is none of that name."""
        if target not in self.tensors():
            raise AttributeError(f"{type(self).__name__} has no tensor {target!r}")
        return self.tensors()[target]

    def get_buffer(self, target: str) -> Tensor:
        if target not in self.buffer_names():
            raise AttributeError(f"{type(self).__name__} has no buffer {target!r}")
        return self.tensors()[target]


class Part(Tree):
    """The part of a model whose tensors' names begin with `name`.

    BERT, `model.realm`, and its embedding tables can be called; other parts hold weights alone.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.__dict__.update(model=model, name=name)

    def tensors(self) -> dict[str, Tensor]:
        begin = f"{self.name}."
        return {key[len(begin) :]: tensor for key, tensor in self.model.p.items() if key.startswith(begin)}

    def child(self, name: str) -> Part:
        return part(self.model, f"{self.name}.{name}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of any object, to copy it, say
            raise AttributeError(name)
        if name in OF_MODELS:
            raise AttributeError(f"{self!r}.{name}: {OF_MODELS[name]}")
        tensors = self.tensors()
        if name in _SIZES and "weight" in tensors:
            return tensors["weight"].shape[_SIZES[name]]
        return tensors[name] if name in tensors else self.child(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self!r}.{name} stays where it is: write into the tensors, weight.copy_(other), say")

    def __getitem__(self, index: int) -> Part:
        return self.child(str(range(len(self))[index]))

    def __len__(self) -> int:
        return len({name.partition(".")[0] for name in self.tensors() if name[0].isdigit()})

    def __iter__(self) -> Iterator[Part]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and self.model is other.model and self.name == other.name

    def __hash__(self) -> int:
        return hash((id(self.model), self.name))

    def __repr__(self) -> str:
        return f"{type(self.model).__name__}.{self.name}"

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        return {f"{prefix}{name}": tensor for name, tensor in self.tensors().items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.name == "realm":
            return trunk(self.model, *args, **kwargs)
        if self.name.endswith("_embeddings"):
            return self.weight[args[0]]
        raise TypeError(
            f"{self!r} holds weights, and its layer is a function of model/bert.py: call the model, with "
            "output_hidden_states=True for what stands between its layers"
        )


def part(model: Any, name: str) -> Part:
    """AttributeError if no tensor of the model stands under that name."""
    if not any(key.startswith(f"{name}.") for key in model.p):
        raise AttributeError(f"{type(model).__name__} has nothing under {name!r}")
    return Part(model, name)


def trunk(
    model: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    head_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    *,
    return_dict: bool | None = None,
    **outputs: bool | None,
) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
    """BERT alone, `model.realm(...)`; its gradient is none of `model.backward`.

    Args:
        outputs: output_attentions, output_hidden_states.
    """
    batch = checked_batch(model.config, Inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds))
    run = model.run_now(len(batch.types), head_mask, **outputs)
    with plain_arithmetic(model.device.type):
        encoded, _ = bert(model.p, model.config, batch, "tokens", run)
        pooled, _ = pool(model.p, encoded.hidden[:, 0])
    found = BaseModelOutputWithPoolingAndCrossAttentions(
        encoded.hidden, pooled, encoded.hidden_states, attentions=encoded.attentions
    )
    return found if (model.config.use_return_dict if return_dict is None else return_dict) else found.to_tuple()
