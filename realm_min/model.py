"""What the five models share: parameters, folders, devices, train and eval."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import bert as trunk
from . import checkpoint
from .config import RealmConfig
from .hub import resolve_folder
from .parameters import Parameters, Shapes, allocate, initialize_


class RealmModel:
    """A model is a configuration, its own tensors `p` and, where it is made of models, its `parts`.

    Args:
        config: sizes and options.
        seed: draws the initial weights, and the dropout masks in training.

    A new model is in training mode, as transformers' are; one from a folder is in evaluation mode.
    """

    config_class: ClassVar[type[RealmConfig]] = RealmConfig
    # Arguments of `__init__` beside the configuration, and tensors that are no parameters.
    own_arguments: ClassVar[tuple[str, ...]] = ()
    part_classes: ClassVar[dict[str, type[RealmModel]]] = {}  # of the parts that have keys of their own
    buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: RealmConfig, *, seed: int = 0, initialize: bool = True) -> None:
        self.config = config
        self.training = True
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.parts: dict[str, RealmModel] = {}
        self.p = allocate(self.shapes(config), torch.float32, "cpu")
        if initialize:
            initialize_(self.p, config.initializer_range, config.pad_token_id, seed)

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

    # Tensors

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor under transformers' key. They are the model's own numbers, not copies."""
        found = dict(self.p)
        for name, part in self.parts.items():
            found |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
        return found

    def aliases(self) -> dict[str, str]:
        """Keys that name a tensor which an earlier key names already, with that earlier key."""
        first: dict[int, str] = {}
        return {
            key: first[id(tensor)]
            for key, tensor in self.state_dict().items()
            if first.setdefault(id(tensor), key) != key
        }

    def load_state_dict(self, state_dict: dict[str, Tensor], source: str = "the state dict") -> None:
        """Copy `state_dict` into the model, all of it or nothing; `source` names it in errors.

        Raises:
            ValueError: missing, unexpected or mis-shaped keys, all named at once.
        """
        checkpoint.assign(self.state_dict(), state_dict, self.aliases(), source=source)

    def num_parameters(self) -> int:
        """Trainable numbers, tied ones counted once."""
        return sum({id(tensor): tensor.numel() for tensor in self._trainable()}.values())

    def _trainable(self) -> list[Tensor]:
        return [
            tensor for part in (self, *self.parts.values()) for key, tensor in part.p.items() if key not in part.buffers
        ]

    # Modes and devices

    def train(self, mode: bool = True) -> RealmModel:
        self.training = mode
        for part in self.parts.values():
            part.train(mode)
        return self

    def eval(self) -> RealmModel:
        return self.train(False)

    @property
    def device(self) -> torch.device:
        return next(iter(self.p.values()), None).device if self.p else next(iter(self.parts.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.p.values())).dtype if self.p else next(iter(self.parts.values())).dtype

    def to(self, target: torch.device | str | torch.dtype) -> RealmModel:
        """Move every tensor to a device, or cast it to a floating dtype; returns the model itself."""
        dtype, device = (target, self.device) if isinstance(target, torch.dtype) else (self.dtype, torch.device(target))
        for part in {id(part): part for part in self.parts.values()}.values():
            part.to(target)
        if self.p:
            self.p = self._moved(dtype, device)
        # A generator belongs to one device: draw on from the same seed there.
        if self.generator.device != torch.device(device):
            self.generator = torch.Generator(device).manual_seed(self.seed)
        return self

    def _moved(self, dtype: torch.dtype, device: torch.device) -> Parameters:
        moved = allocate(self.shapes(self.config), dtype, device)
        for key, tensor in self.p.items():
            moved[key].copy_(tensor)
        return moved

    # Folders

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, *, config: RealmConfig | None = None, **arguments: Any):  # noqa: ANN206
        """Read a checkpoint folder, written here or by transformers, without running pickled code.

        Args:
            folder: config.json beside model.safetensors or pytorch_model.bin, sharded or not; or a hub name.
            config: used instead of the folder's.
            arguments: the model's own arguments (`retriever=`, `query_embedder=`), and values that replace the
                configuration's.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the weights are damaged, or do not fit the configuration.
        """
        folder = resolve_folder(folder, "config", "weights")
        own = {name: arguments.pop(name) for name in cls.own_arguments if name in arguments}
        state_dict = checkpoint.read_state_dict(folder)
        if config is None:
            config = cls.config_class.from_pretrained(folder)
            checkpoint.check_config(folder, config)
        unknown = [name for name in arguments if name not in config.__dict__]
        if unknown:
            raise TypeError(f"{cls.__name__}.from_pretrained has no argument or configuration value {unknown[0]!r}")
        config = cls.config_class.from_dict(config.to_dict() | arguments)
        # Before sizes that may be wrong, and enormous, are allocated.
        checkpoint.check_layers(config, state_dict, source=str(folder))
        checkpoint.check_shapes(cls.all_shapes(config), state_dict, source=str(folder))
        model = cls(config, initialize=False, **own)
        model.load_state_dict(state_dict, source=str(folder))
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike, **options: Any) -> None:
        """Write config.json and the weights, for us and for transformers; `options` as `checkpoint.write_folder`."""
        config = RealmConfig.from_dict(
            self.config.to_dict() | {"architectures": [type(self).__name__], "torch_dtype": str(self.dtype)[6:]}
        )
        checkpoint.write_folder(folder, config, self.state_dict(), **options)

    # Calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return self.config.return_dict if return_dict is None else return_dict

    def _encode(
        self,
        read: str,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        head_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
    ) -> trunk.Encoded:
        """Run the trunk under `realm.`, with the configuration's answer where an argument is None."""
        config = self.config
        return trunk.bert(
            self.p,
            config,
            trunk.check_inputs(config, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds),
            read=read,
            head_mask=head_mask,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            generator=self.generator if self.training else None,
        )
