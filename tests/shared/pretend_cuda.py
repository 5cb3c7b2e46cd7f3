"""A GPU that is pretended where there is none: device "cuda", its tensors in this machine's memory.

A real one refuses an operation whose tensors are not all its own, and takes branches of the code that a CPU does not.
`pretend()` does both, so that tests without a GPU find what would fail on one: each tensor of the device is a wrapper,
and every operation comes by `run`, which looks whose tensors it is given. The kernels are interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from realm_min.kernels import mips_topk, span_logits
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

DEVICE = torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)  # which go from one device to another
INDEXING = (aten.index.Tensor, aten.index_put_.default)  # a GPU's tensor may be indexed by a CPU's
KERNELS = {
    mips_topk: ("mips_topk", "search"),
    span_logits: ("span_logits", "best_span", "span_logits_backward"),
}
# The interpreter pays for each program, not for its size: one takes what eight or more take on a real device.
TILES = (span_logits.SCORES_TILE, span_logits.GRADIENTS_TILE)
FEW_PROGRAMS = dict(BLOCK_T=64)
TILE_ELEMENTS = 1 << 17


class Pretended(torch.Tensor):
    """A tensor of the device. torch's own side takes it for one of "meta", which needs no driver."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="meta",
        )  # fmt: skip
        made.held = held
        return made

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self) -> None:
        raise TypeError("can't convert a tensor of cuda:0 to numpy: use .cpu() first")

    def __repr__(self) -> str:
        return f"Pretended({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run an operation on what the tensors hold, and say whose its result is; RuntimeError if devices are mixed."""
    tensors = tensors_of((args, kwargs))
    assert all(is_there(tensor) or tensor.device.type == "cpu" for tensor in tensors), f"{func} got past the pretence"
    together = tensors
    if func in COPIES:
        together = []
    elif func in INDEXING and is_there(args[0]):
        together = tensors_of((args[0], args[2:]))
    # A number in a tensor without axes may come from the CPU.
    if any(map(is_there, together)) and any(tensor.dim() for tensor in together if not is_there(tensor)):
        raise RuntimeError(f"{func}: expected all tensors on one device, found cpu and cuda:0")
    on_device = is_there(args[0]) if func in COPIES else any(map(is_there, tensors))
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type != "cpu"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held_args, held_kwargs = held((args, kwargs))
    result = func(*held_args, **held_kwargs)
    if not on_device:
        return result
    known = {id(tensor.held): tensor for tensor in tensors if is_there(tensor)}  # what was changed in place
    return each(lambda x: known.get(id(x), wrapped(x)), result)


def tensors_of(values: Any) -> list[torch.Tensor]:
    tensors: list[torch.Tensor] = []
    each(lambda x: tensors.append(x) if isinstance(x, torch.Tensor) else None, values)
    return tensors


def each(function: Callable[[Any], Any], values: Any) -> Any:
    """`function` of each leaf of tuples, lists and dicts: what torch's own tree_map does, in a fraction of its time."""
    kind = type(values)
    if kind in (tuple, list):
        return kind(each(function, value) for value in values)
    if kind is dict:
        return {key: each(function, value) for key, value in values.items()}
    if isinstance(values, tuple):  # a named one, as torch's results are
        parts = [each(function, value) for value in values]
        return kind(*parts) if hasattr(kind, "_fields") else kind(parts)
    return function(values)


def is_there(tensor: Any) -> bool:
    return isinstance(tensor, Pretended)


def wrapped(value: Any) -> Any:
    return Pretended(value) if isinstance(value, torch.Tensor) else value


def held(values: Any) -> Any:
    return each(lambda x: x.held if is_there(x) else x, values)


class Operations(TorchDispatchMode):
    """Sees operations none of whose tensors are the device's: those that make the first."""

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """Says "meta" to torch where "cuda" is asked for."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(meta(kwargs["device"]))
        if func is torch.device:
            return func(*args, **kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], index(args[1]), *args[2:])
        args, kwargs = each(meta, (args, kwargs))
        return func(*args, **kwargs)


def index(value: Any) -> Any:
    """Lists of numbers as tensors: torch would make them on "meta", where they hold nothing."""
    if isinstance(value, tuple):
        return tuple(index(part) for part in value)
    return torch.tensor(list(value)) if isinstance(value, list | range) else value


def meta(value: Any) -> Any:
    is_cuda = isinstance(value, torch.device | str) and str(value).split(":")[0] == "cuda"
    return torch.device("meta") if is_cuda else value


class Generator(torch.Generator):
    """A generator of either device; both draw on the CPU."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        made.where = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu"):
        pass

    device = property(lambda self: self.where)

    def manual_seed(self, seed: int) -> Generator:
        super().manual_seed(seed)
        return self


def interpreted(kernel: Callable) -> Callable:
    """`kernel` for tensors of the device, by Triton's interpreter."""

    def call(*args: Any, **kwargs: Any) -> Any:
        whose = {is_there(tensor) for tensor in tensors_of((args, kwargs)) if tensor.dim()}
        assert len(whose) == 1, "a kernel reads the memory of its own device"
        if whose == {False}:  # one kernel calls another
            return kernel(*args, **kwargs)
        with _disable_current_modes():
            result = kernel(*unwrapped(args), **unwrapped(kwargs))
        return each(wrapped, result)

    return call


def unwrapped(value: Any) -> Any:
    """`held`, within data classes too."""
    if isinstance(value, mips_topk.bounds.Codes):
        return type(value)(*(held(getattr(value, name)) for name in value.__dataclass_fields__))
    if isinstance(value, tuple):
        parts = [unwrapped(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return {key: unwrapped(part) for key, part in value.items()} if isinstance(value, dict) else held(value)


@contextmanager
def pretend() -> Iterator[torch.device]:
    """The device, while the block runs."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.cuda, "_lazy_init", lambda: None))
        stack.enter_context(patch.object(torch, "Generator", Generator))
        stack.enter_context(patch.object(mips_topk, "TILE_ELEMENTS", TILE_ELEMENTS))
        stack.enter_context(patch.object(span_logits, "LANE_BYTES", 2048))
        for tile in TILES:
            stack.enter_context(patch.dict(tile, FEW_PROGRAMS))
        for module, names in KERNELS.items():
            for name in names:
                stack.enter_context(patch.object(module, name, interpreted(getattr(module, name))))
        stack.enter_context(Functions())
        stack.enter_context(Operations())
        yield DEVICE
