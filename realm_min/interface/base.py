"""What the five models share: parameters, folders, devices, train and eval."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..compatible.loading import take_loading_options, take_saving_options
from ..config import KNOWN, RealmConfig
from ..files import checkpoint
from ..files.checkpoint import LoadedKeys
from ..files.hub import located, take_hub_options
from ..files.unknown_names import did_you_mean
from ..kinds import check, checked
from ..model.bert import Kept, Run
from ..model.parameters import Parameters, Shapes, allocate, allocate_gradients, initialize_
from ..ranks.devices import plain_arithmetic
from .inputs import checked_head_mask, own_tensor
from .module import FLOATS, Module, begin_anew, check_cast, checked_seed, link_grads, moved_to
from .outputs import Call, ModelOutput, call_of
from .unrecorded import unrecorded

if TYPE_CHECKING:
    from typing_extensions import Self  # of the standard library from Python 3.11 on

Output = TypeVar("Output", bound=ModelOutput)


class RealmModel(Module):
    """A model is a configuration, its own tensors `p` and, where it is made of models, its `parts`.

    Args:
        config: sizes and options.
        seed: draws the initial weights, and the dropout masks in training; None leaves both to torch's own generator,
            which `torch.manual_seed` sets.

    `generator` draws a seed for the dropout masks of each sequence that is read in training; None is torch's own.

    A new model is in training mode, as transformers' are; one from a folder is in evaluation mode.
    """

    config_class: ClassVar[type[RealmConfig]] = RealmConfig
    # Arguments of `__init__` beside the configuration.
    own_arguments: ClassVar[tuple[str, ...]] = ()
    part_classes: ClassVar[dict[str, type[RealmModel]]] = {}  # of the parts that have keys of their own
    # How the names of the parameters begin that are in the checkpoints and that no output depends on.
    unread: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: RealmConfig, *, seed: int | None = None, initialize: bool = True) -> None:
        if not isinstance(config, RealmConfig):
            kind, name = f"{type(config).__module__}.{type(config).__qualname__}", type(self).__name__
            raise ValueError(f"{name}({kind}): give a realm_min.RealmConfig, or call {name}.from_pretrained(folder)")
        check("initialize", initialize, bool)
        config.check()
        self.config, self._checked = config, dict(vars(config))
        self.training = True
        self.seed = seed = checked_seed(seed)
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._grads: Parameters | None = None
        self._last: Call | None = None  # for `backward()`, of what was called last
        self.passed: Callable[[str], None] | None = None  # see `Run.passed`
        self._checkpoint_layers = False
        self.p = allocate(self.shapes(config), torch.float32, "cpu", unread=self.unread)
        if initialize:
            drawn = int(torch.randint(2**63 - 1, (), device="cpu")) if seed is None else seed
            initialize_(self.p, config.initializer_range, config.pad_token_id, drawn)

    @classmethod
    def shapes(cls, config: RealmConfig) -> Shapes:
        """The model's own tensors in the state dict's order; a composed model may have none."""
        return {}

    @classmethod
    def all_shapes(cls, config: RealmConfig) -> Shapes:
        """`shapes` of the whole state dict, the parts' tensors included, without allocating any."""
        found = dict(cls.shapes(config))
        for name, part in cls.part_classes.items():
            for key, shape in part.all_shapes(config).items():
                found[f"{name}.{key}"] = f"{name}.{shape}" if isinstance(shape, str) else shape
        return found

    @property
    def parts(self) -> Mapping[str, RealmModel]:
        """The models it is made of, each under the name that its keys begin with."""
        return {}

    # Tensors

    def state_dict(
        self, destination: dict[str, Tensor] | None = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Tensor]:
        """Every tensor under transformers' key, after `prefix`. They are the model's own numbers, not copies."""
        found = {} if destination is None else destination
        found.update({f"{prefix}{key}": tensor for key, tensor in self.tensors().items()})
        return found

    def aliases(self) -> dict[str, str]:
        """Keys that name a tensor which an earlier key names already, with that earlier key."""
        first: dict[int, str] = {}
        return {
            key: first[id(tensor)]
            for key, tensor in self.state_dict().items()
            if first.setdefault(id(tensor), key) != key
        }

    def load_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        strict: bool = True,
        assign: bool = False,
        *,
        source: str = "the state dict",
    ) -> LoadedKeys:
        """Copy `state_dict` into the model, all of it or nothing.

        Args:
            strict: refuse keys that are missing or unexpected; where false they are returned.
            assign: of no effect: the numbers are copied in any case.
            source: what errors call it.

        Raises:
            ValueError: keys that do not fit, all named at once. It is a RuntimeError too, which torch raises.
        """
        checkpoint.check_tensors(state_dict, source)
        return LoadedKeys(*checkpoint.assign(self.tensors(), state_dict, self.aliases(), source, strict))

    # Modes and devices

    @checked
    def train(self, mode: bool = True) -> Self:
        self.training = mode
        for part in self.parts.values():
            part.train(mode)
        return self

    def eval(self) -> Self:
        return self.train(False)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move every tensor to a device, cast it to a floating dtype, or both; returns the model itself.

        Arguments as those of a torch module: `to("cuda")`, `to(torch.float16)`, `to("cuda", torch.float16)`,
        `to(device=…, dtype=…)`, `to(tensor)`.
        """
        device, dtype = moved_to(args, kwargs)
        check_cast(self.tensors(), dtype)
        for part in {id(part): part for part in self.parts.values()}.values():
            part.to(device, dtype)
        self._grads = self._last = None
        own = [(tensor.device if device is None else device, dtype or tensor.dtype) for tensor in self.p.values()]
        if any((tensor.device, tensor.dtype) != to for tensor, to in zip(self.p.values(), own, strict=True)):
            self.p = self._moved(own[0][1], own[0][0])
        # A generator belongs to one device: draw on from the same seed there.
        if self.generator is not None and self.generator.device != self.device:
            self.seed_dropout(self.seed)
        return self

    def seed_dropout(self, seed: int | None) -> None:
        """Draw dropout masks from `seed` from now on, or from torch's own generator."""
        self.seed = seed
        self.generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)

    def _moved(self, dtype: torch.dtype, device: torch.device) -> Parameters:
        moved = allocate(self.shapes(self.config), dtype, device, unread=self.unread)
        for key, tensor in self.p.items():
            moved[key].copy_(tensor)
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """For a copy or a pickle: without the last call, which is of this very model, and the gradients gathered."""
        return self.__dict__ | {"p": dict(self.p), "_last": None, "_grads": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for tensor in list(self.p.values())[:1]:  # what lies side by side is to lie so again
            self.p = self._moved(tensor.dtype, tensor.device)

    # Folders

    @classmethod
    @checked
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *own_arguments: Any,
        config: RealmConfig | str | os.PathLike | None = None,
        torch_dtype: torch.dtype | str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **arguments: Any,
    ) -> Self:
        """Read a checkpoint folder, written here or by transformers, without running pickled code.

        Args:
            pretrained_model_name_or_path: a folder with config.json and weights, or a hub name; see `located`.
            own_arguments: the model's own (`retriever`, `query_embedder`), which can be given by name too.
            config, state_dict: used instead of the folder's.
            torch_dtype, dtype: of the weights, float32 where it is left out; "auto" takes that of the file.
            output_loading_info: draw anew what is missing, and return (model, what `checkpoint.loading_info` says).
            ignore_mismatched_sizes: draw anew, with a warning, what is missing or has another shape.
            arguments: where the files are (`revision`, `token`, …), and values that replace the configuration's.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError, TypeError: weights that are damaged or do not fit the configuration; an unknown argument.
        """
        take_loading_options(arguments)
        name, options = pretrained_model_name_or_path, take_hub_options(arguments)
        folder = located(name, options, alone=config is not None and state_dict is not None)
        torch_dtype, own = arguments.pop("dtype", torch_dtype), cls._own(own_arguments, arguments)
        found = checkpoint.usual_names(cls._read_weights(folder, own) if state_dict is None else state_dict)
        config = cls._read_config(folder, config, arguments | {"name_or_path": str(name)})
        dtype = chosen_dtype(torch_dtype, config)
        anew = ignore_mismatched_sizes or output_loading_info
        model, info = cls._filled(config, own, found, str(folder), anew, ignore_mismatched_sizes)
        model = (model if dtype is None else model.to(dtype)).eval()
        if anew and not output_loading_info:
            checkpoint.warn_of(info, source=str(folder))
        result: Any = (model, info) if output_loading_info else model
        return result

    @classmethod
    def _filled(
        cls,
        config: RealmConfig,
        own: dict[str, Any],
        found: dict[str, Tensor],
        source: str,
        anew: bool,
        reshape: bool,
    ) -> tuple[Self, dict[str, list]]:
        """A model with the tensors `found`, and what they lack; `anew` draws that, `reshape` what is mis-shaped."""
        wrong = checkpoint.check_fits(cls.all_shapes, config, found, source, reshape)
        model = cls(config, initialize=anew, **own)
        fitting = {key: tensor for key, tensor in found.items() if key not in {key for key, *_ in wrong}}
        return model, checkpoint.loading_info(*model.load_state_dict(fitting, not anew, source=source), wrong)

    @classmethod
    def _read_config(
        cls, folder: Path, config: RealmConfig | str | os.PathLike | None, overrides: dict[str, Any]
    ) -> RealmConfig:
        """The configuration given, or the folder's, with `overrides`."""
        if config is None:
            config = cls.config_class.from_pretrained(folder)
            checkpoint.check_config(folder, config)
        elif not isinstance(config, RealmConfig):
            config = cls.config_class.from_pretrained(config)
        both: Any = cls.config_class.from_dict(config.to_dict(), return_unused_kwargs=True, **overrides)
        found, unknown = both
        for name in unknown:
            meant = did_you_mean(name, {*KNOWN, *cls.own_arguments})
            raise TypeError(f"{cls.__name__}.from_pretrained has no argument or configuration value {name!r}{meant}")
        return found

    @classmethod
    def _own(cls, by_place: tuple, arguments: dict[str, Any]) -> dict[str, Any]:
        """The model's own arguments by name: those given by place, and those taken from `arguments`."""
        if len(by_place) > len(cls.own_arguments):
            raise TypeError(f"{cls.__name__} has {len(cls.own_arguments)} arguments of its own: {cls.own_arguments}")
        own = dict(zip(cls.own_arguments, by_place, strict=False))
        return own | {name: arguments.pop(name) for name in cls.own_arguments if name in arguments}

    @classmethod
    def _read_weights(cls, folder: Path, own: dict[str, Any]) -> dict[str, Tensor]:
        """`own`: the model's own arguments."""
        return checkpoint.read_state_dict(folder)

    @checked
    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Write config.json and the weights, for us and for transformers.

        Args:
            is_main_process: where false, write nothing.
            state_dict: written instead of the model's own.
            options: as `checkpoint.write_folder`.
        """
        take_saving_options(options)
        for name in options.keys() - {"safe_serialization", "max_shard_size"}:
            raise TypeError(f"{type(self).__name__}.save_pretrained has no argument {name!r}: leave it out")
        said = {"architectures": [type(self).__name__], "torch_dtype": str(self.dtype)[6:]}
        config = RealmConfig.from_dict(self.config.to_dict() | said)
        if is_main_process:
            state = self.state_dict() if state_dict is None else state_dict
            checkpoint.write_folder(save_directory, config, state, **options)

    # Calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._check_config()
        takes = {name: hint for name, hint in type(self).forward.__annotations__.items() if name != "return"}
        for name in kwargs.keys() - takes.keys():
            raise TypeError(f"{type(self).__name__} has no argument {name!r}{did_you_mean(name, takes)}")
        given = [own_tensor(name, value, takes[name]) for name, value in zip(takes, args, strict=False)]
        named = {name: own_tensor(name, value, takes[name]) for name, value in kwargs.items()}
        return self.forward(*given, *args[len(given) :], **named)

    def _check_config(self) -> None:
        """ValueError where a configuration, as it was set since the last call, is impossible or not the weights'."""
        for model in (self, *self.parts.values()):
            if vars(model.config) != model._checked:
                model.config.check()
                checkpoint.check_sizes(model.shapes(model.config), model.p)
                model._checked = dict(vars(model.config))

    def _called(
        self,
        forward: Callable[[Self, bool], tuple[Output, Kept]],
        differentiable: tuple[str, ...] | dict[str, tuple[int, ...]],
        return_dict: bool | None,
    ) -> Output | tuple:
        """Make a call, and remember it for `backward`: in evaluation mode without what it keeps.

        Args:
            forward: of the model, which it must not hold, and whether to keep what the backward takes; returns both.
            differentiable: names of the outputs that have a gradient, or their shapes where the output has them not.
        """
        self._last = None  # what the call before kept is freed first
        with plain_arithmetic(self.device.type):
            output, kept = forward(self, self.training)
        shapes = differentiable
        if not isinstance(shapes, dict):
            shapes = {name: tuple(output[name].shape) for name in shapes if name in output}
        for name in shapes:
            if name in output:
                output[name] = unrecorded(output[name])
        output.call = self._last = Call(forward, shapes, kept if self.training else None, self._state())
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _state(self) -> tuple:
        """What must not change between a call and its backward: modes, weights, configurations."""
        models = (self, *self.parts.values())
        modes, configs = (model.training for model in models), (dict(vars(model.config)) for model in models)
        return tuple(modes), tuple(version(x) for model in models for x in model.p.values()), tuple(configs)

    def run_now(
        self,
        sequences: int,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> Run:
        """How to read so many sequences now, with the configuration's answer where an argument is None."""
        config, seeds = self.config, None
        if self.training:
            drawn = torch.randint(2**63 - 1, (sequences,), generator=self.generator, device=self.device)
            seeds = drawn.tolist()
        return Run(
            seeds=seeds,
            checkpoint_layers=self.checkpoint_layers,
            head_mask=checked_head_mask(head_mask, config),
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )

    def run_to_learn(self, seeds: list[int], *, last: bool = False) -> Run:
        """How to read one sequence a seed and keep what the backward takes, dropout on in training mode alone.

        `last`: of a step's backward passes through this model, this one's comes last; `passed` hears what is final.
        """
        passed = self.passed if last else None
        return Run(seeds if self.training else None, keep=True, checkpoint_layers=self.checkpoint_layers, passed=passed)

    # Gradients

    @property
    def checkpoint_layers(self) -> bool:
        """Set it, and a forward keeps each layer's input alone for `backward`, which computes the layer once more.

        A quarter more time, and the gradients are the same to the bit. It holds for the model's parts too.
        """
        return self._checkpoint_layers

    @checkpoint_layers.setter
    def checkpoint_layers(self, checkpoint: bool) -> None:
        self._checkpoint_layers = checkpoint
        for part in self.parts.values():
            part.checkpoint_layers = checkpoint

    def backward(self, output: ModelOutput | None = None, **cotangents: Tensor) -> dict[str, Tensor]:
        """Add the gradients of a call's loss to `grads`.

        Args:
            output: what the call returned; None takes the last call. With it two calls can both be differentiated:
                `a, b = model(x), model(z); model.backward(a, projected_score=…); model.backward(b, projected_score=…)`.
            cotangents: ∂loss/∂output for each output named, where the loss is the caller's own (`projected_score=…`),
                of any dtype; none for the `loss` that the call returned.

        In evaluation mode a forward keeps no activations, so the call is first made once more; so it is for a second
        backward of one call, since the first frees them.

        Returns:
            Gradients with respect to the inputs that have one: `inputs_embeds` (of the word embeddings, where ids
            were given), `relevance_score`.

        Raises:
            RuntimeError: the model was not called, or its mode, weights or configuration have changed since.
            TypeError: `output` is something else than a call returned.
            ValueError: an output that the call did not return, or a cotangent of another shape.
        """
        call = self._last if output is None else call_of(output)
        if call is None:
            raise RuntimeError(f"{type(self).__name__}.backward() needs a forward: call the model first")
        now = zip(call.state, self._state(), ("mode (train or eval)", "weights", "configuration"), strict=True)
        for changed in [what for then, what_it_is, what in now if then != what_it_is]:
            raise RuntimeError(f"the model's {changed} changed after the call: call it again, then backward()")
        if not cotangents:
            if "loss" not in call.outputs:
                raise ValueError("the last call returned no loss: give labels, or a cotangent for an output")
            cotangents = {"loss": torch.ones(call.outputs["loss"], dtype=self.dtype, device=self.device)}
        cotangents = call.checked(cotangents, self.dtype, self.device)
        for model in (self, *self.parts.values()):
            if model._grads is not None:
                begin_anew(model.p, model._grads)
        kept, call.kept = call.kept, None
        with plain_arithmetic(self.device.type):
            if kept is None:
                _, kept = call.forward(self, True)
            return self._backward(kept, cotangents)

    def _backward(self, kept: Kept, cotangents: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def own_grads(self) -> Parameters:
        """Gradients of the model's own tensors, laid out as they are."""
        if self._grads is None:
            shapes = {key: shape for key, shape in self.shapes(self.config).items() if key not in self.own_buffers}
            self._grads = allocate_gradients(shapes, self.dtype, self.device, unread=self.unread)
            link_grads(self.p, self._grads)
        return self._grads

    @property
    def grads(self) -> dict[str, Tensor]:
        """∂loss/∂parameter under the state dict's keys, summed over the `backward` calls since `zero_grads`.

        What is `unread` has a gradient of zeros that takes no memory and cannot be written to.
        """
        found = dict(self.own_grads)
        for name, part in self.parts.items():
            found |= {f"{name}.{key}": tensor for key, tensor in part.grads.items()}
        return found

    def zero_grads(self) -> None:
        """Set the gradients gathered so far to zero, in place."""
        for model in (self, *self.parts.values()):
            if model._grads is not None:
                model._grads.flat.zero_()


def version(tensor: Tensor) -> tuple[int, int | None]:
    """Another for another tensor, and after a write to it; torch does not count those of inference mode."""
    return id(tensor), None if tensor.is_inference() else tensor._version


def chosen_dtype(dtype: torch.dtype | str | None, config: RealmConfig) -> torch.dtype | None:
    """The `torch_dtype` of a `from_pretrained`, None for the weights' usual one.

    Raises:
        ValueError: it is no floating dtype of torch.
    """
    given = getattr(config, "torch_dtype", None) if dtype == "auto" else dtype
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if given is None:
        return None
    if found not in FLOATS:
        raise ValueError(f'torch_dtype={dtype!r} is no floating dtype: give torch.float16, "float16" or "auto", say')
    return found


RealmPreTrainedModel = RealmModel  # transformers' name of it
