"""Names that every model of transformers and every module of torch has: few lines each, and none that REALM needs.

What is not here is named in `compatible/left_out.py`. What a call, a folder and a gradient are stands in `base.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .. import kinds
from ..compatible.left_out import OF_MODELS, leaves_out
from ..config import RealmConfig
from ..files.checkpoint import check_finite
from ..kinds import device_of
from ..model.parameters import Parameters, is_constant
from .parts import Part, Tree, part

if TYPE_CHECKING:
    from typing_extensions import Self  # of the standard library from Python 3.11 on

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # what weights can be


@leaves_out(OF_MODELS)
class Module(Tree):
    """A model has its own tensors `p`, and `parts`, which are models."""

    base_model_prefix: ClassVar[str] = "realm"
    main_input_name: ClassVar[str] = "input_ids"
    framework: ClassVar[str] = "pt"
    is_parallelizable: ClassVar[bool] = False
    supports_gradient_checkpointing: ClassVar[bool] = True  # see `checkpoint_layers`
    buffers_of: ClassVar[tuple[str, ...]] = ()

    config: RealmConfig
    p: Parameters
    training: bool
    checkpoint_layers: bool
    # Tensors that are no parameters.
    own_buffers: ClassVar[tuple[str, ...]] = ()

    @property
    def parts(self) -> Mapping[str, Module]:
        """The models it is made of, each under the name that its keys begin with."""
        return {}

    @classmethod
    def can_generate(cls) -> bool:
        return False

    # ---- parts

    def tensors(self) -> dict[str, Tensor]:
        found = dict(self.p)
        for name, model in self.parts.items():
            found |= {f"{name}.{key}": tensor for key, tensor in model.tensors().items()}
        return found

    def buffer_names(self) -> tuple[str, ...]:
        of_parts = (f"{name}.{key}" for name, model in self.parts.items() for key in model.buffer_names())
        return (*self.own_buffers, *of_parts)

    def child(self, name: str) -> Tree:
        return self.parts[name] if name in self.parts else part(self, name)

    @property
    def realm(self) -> Part:
        """BERT: `model.realm(input_ids).last_hidden_state`, `model.realm.encoder.layer[0]`."""
        return part(self, "realm")

    @property
    def cls(self) -> Part:
        return part(self, "cls")

    @property
    def qa_outputs(self) -> Part:
        return part(self, "qa_outputs")

    @property
    def base_model(self) -> Tree:
        return self.realm if any(key.startswith("realm.") for key in self.p) else self

    def get_input_embeddings(self) -> Part:
        """The word embeddings: `.weight`, and called with ids their `inputs_embeds`."""
        if not self.p.keys() & {"realm.embeddings.word_embeddings.weight"}:
            raise NotImplementedError(f"{type(self).__name__} has the word embeddings of each part: ask the part")
        return part(self, "realm.embeddings.word_embeddings")

    def get_output_embeddings(self) -> Part | None:
        """The decoder of a masked-language model's head; None of the others."""
        return None

    def tie_weights(self) -> None:
        """Nothing: tied weights are one tensor from the beginning."""

    # ---- numbers

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers are learnt, tied ones counted once; all of them are trainable."""
        return sum(
            tensor.numel()
            for name, tensor in self.named_parameters()
            if not (exclude_embeddings and name.endswith("_embeddings.weight"))
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers with them."""
        return sum(x.nbytes for x in self.parameters()) + return_buffers * sum(x.nbytes for x in self.buffers())

    @property
    def name_or_path(self) -> str:
        return self.config.name_or_path

    # ---- devices and dtypes

    @property
    def device(self) -> torch.device:
        return next(iter(self.p.values())).device if self.p else next(iter(self.parts.values())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        raise NotImplementedError

    def half(self) -> Self:
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        return self.to(torch.float32)

    def double(self) -> Self:
        return self.to(torch.float64)

    def type(self, dst_type: torch.dtype) -> Self:
        return self.to(dst_type)

    def cpu(self) -> Self:
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device | None = None) -> Self:
        return self.to(f"cuda:{device}" if isinstance(device, int) else device or "cuda")

    # ---- training as torch.optim knows it

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.checkpoint_layers

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Nothing is recorded in any case, so False changes nothing.

        Raises:
            NotImplementedError: it is to be true.
        """
        if requires_grad:
            raise NotImplementedError(
                f"{type(self).__name__}.requires_grad_(): autograd records nothing here, and every weight has a "
                "gradient; call model.backward(), and give the optimizer the weights that are to learn"
            )
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `zero_grads`: the gradients are kept, and are zeros."""
        for model in (self, *self.parts.values()):
            model.zero_grads()

    def zero_grads(self) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        size = f"{self.num_parameters():,} parameters, {str(self.dtype)[6:]}, {self.device}"
        return f"{type(self).__name__}({', '.join([*self.parts, size])})"


def link_grads(p: Parameters, grads: Mapping[str, Tensor]) -> None:
    """Show each parameter its gradient as `.grad`, where torch.optim and torch.nn.utils look for it.

    What no output depends on has none, as autograd leaves it.
    """
    for name, grad in grads.items():
        if not is_constant(grad) and not p[name].is_inference():
            p[name].grad = grad


def begin_anew(p: Parameters, grads: Mapping[str, Tensor]) -> None:
    """Where an optimizer's `zero_grad` took a parameter's `.grad` away, its gradient begins from zero."""
    for name, grad in grads.items():
        if p[name].grad is None and not is_constant(grad) and not p[name].is_inference():
            grad.zero_()
            p[name].grad = grad


def moved_to(args: tuple, kwargs: dict[str, Any]) -> tuple[torch.device | None, torch.dtype | None]:
    """The device and the floating dtype that the arguments of a `to(...)` name; None for what stays.

    Raises:
        TypeError: an argument is neither, nor a tensor to be like.
    """
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for given in args:
        if isinstance(given, torch.dtype):
            dtype = given
        elif isinstance(given, Tensor):
            device, dtype = given.device, given.dtype
        elif isinstance(given, (str, int, torch.device)) and not isinstance(given, bool):
            device = given
        elif not isinstance(given, (bool, type(None))):  # non_blocking, copy
            raise TypeError(f"to({given!r}): give a device, a floating dtype, or both")
    if dtype not in (None, *FLOATS):
        raise TypeError(f"to({dtype}): give a floating dtype of 16 bits or more")
    if isinstance(device, int):
        device = f"cuda:{device}"
    device = None if device is None else device_of(device)
    if device is not None and device.type == "meta":
        raise ValueError('device "meta" holds no numbers: give "cpu" or "cuda:0", say')
    return device, dtype


def check_cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """ValueError if a weight would overflow as it is cast to `dtype`."""
    for key, tensor in tensors.items():
        if dtype is not None and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
            check_finite(key, tensor, dtype, source="the model")


def checked_seed(seed: int | None) -> int | None:
    """A seed as Python's number. ValueError if torch has no such seed."""
    kinds.check("seed", seed, int | None)
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} is out of range: give 0 to 2 ** 63 - 1")
    return None if seed is None else int(seed)
