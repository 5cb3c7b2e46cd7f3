"""Where the weights live: one tensor a state-dict key, laid out the way the matrix products read them.

A dense layer computes x Wᵀ, so W [out, in] is stored as Wᵀ, contiguous, and the state dict shows its transpose. The
query, key and value weights of a layer lie side by side in one [hidden, 3 hidden] matrix, so that one product gives
all three; the state dict shows its three parts. Both are views: writing to either side changes the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..config import RealmConfig

# A name maps to its shape, or to the name of the tensor it shares (tied weights).
Shapes = dict[str, "tuple[int, ...] | str"]


# Gradients begin at multiples of so many numbers in `flat`: whole cache lines.
ALIGNED = 64
ALIGNMENT = 64  # bytes: where torch's own tensors begin
QKV = ("query", "key", "value")


class Parameters(dict[str, Tensor]):
    """State-dict key -> tensor. `qkv` maps an attention's name to its fused weight [hidden, 3 hidden] and bias.

    Gradients lie side by side in one tensor, `flat`, in the order in which a forward meets their parameters.
    """

    qkv: dict[str, tuple[Tensor, Tensor]]
    flat: Tensor


def bert_shapes(config: RealmConfig) -> Shapes:
    """BERT's tensors, which all models have under `realm.`, in the state dict's order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    found: Shapes = {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        **norm_shapes("embeddings.LayerNorm", hidden),
    }
    for index in range(config.num_hidden_layers):
        layer = f"encoder.layer.{index}"
        for part in QKV:
            found |= linear_shapes(f"{layer}.attention.self.{part}", hidden, hidden)
        found |= linear_shapes(f"{layer}.attention.output.dense", hidden, hidden)
        found |= norm_shapes(f"{layer}.attention.output.LayerNorm", hidden)
        found |= linear_shapes(f"{layer}.intermediate.dense", hidden, inner)
        found |= linear_shapes(f"{layer}.output.dense", inner, hidden)
        found |= norm_shapes(f"{layer}.output.LayerNorm", hidden)
    found |= linear_shapes("pooler.dense", hidden, hidden)
    return {f"realm.{key}": shape for key, shape in found.items()}


def mlm_head_shapes(config: RealmConfig, tied_to: str | None = None) -> Shapes:
    """The masked-language-model head; its decoder is a matrix of its own or the word embeddings (`tied_to`)."""
    return {
        "cls.predictions.bias": (config.vocab_size,),
        **linear_shapes("cls.predictions.transform.dense", config.hidden_size, config.hidden_size),
        **norm_shapes("cls.predictions.transform.LayerNorm", config.hidden_size),
        "cls.predictions.decoder.weight": tied_to or (config.vocab_size, config.hidden_size),
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, size: int) -> Shapes:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


@torch.inference_mode(False)  # a model made within that mode is trained and loaded into outside of it, too
def allocate(
    shapes: Shapes, dtype: torch.dtype, device: torch.device | str, *, unread: tuple[str, ...] = ()
) -> Parameters:
    """Parameters in the order of `shapes`, of any values.

    Names that begin as one of `unread` are of what no output depends on: zeros, which cost no memory until they are
    written to. So is `block_emb`, which nothing initialises, and of which 6.8 GB may never be touched.
    """

    def empty(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.startswith(unread) or name == "block_emb":
            return untouched_zeros(shape, dtype, device)
        return torch.empty(shape, dtype=dtype, device=device)

    return lay_out(shapes, empty)


def allocate_gradients(
    shapes: Shapes, dtype: torch.dtype, device: torch.device | str, *, unread: tuple[str, ...] = ()
) -> Parameters:
    """Zeros, laid out as the parameters are, and side by side in `flat`.

    The gradient of what no output depends on, `unread`, is a single zero, seen at every place, and not in `flat`.
    """
    own = [shape for name, shape in shapes.items() if not (isinstance(shape, str) or name.startswith(unread))]
    flat = torch.zeros(sum(_aligned(math.prod(shape)) for shape in own), dtype=dtype, device=device)
    used = 0

    def empty(name: str, shape: tuple[int, ...]) -> Tensor:
        nonlocal used
        if name.startswith(unread):
            return flat.new_zeros(()).expand(shape)
        start, used = used, used + _aligned(math.prod(shape))
        return flat[start : start + math.prod(shape)].view(shape)

    gradients = lay_out(shapes, empty)
    gradients.flat = flat
    return gradients


def lay_out(shapes: Shapes, empty: Callable[[str, tuple[int, ...]], Tensor]) -> Parameters:
    """Tensors of `shapes` that `empty` makes, each as it lies in memory: see the head of this file."""
    parameters, fused = Parameters(), {}
    parameters.qkv = {}
    for name, shape in shapes.items():
        attention, _, role = name.rpartition("self.")
        part, _, kind = role.partition(".")  # "query" and "weight", say
        if isinstance(shape, str):
            parameters[name] = parameters[shape]
        elif attention and part in QKV:
            width, place = shape[0], QKV.index(part)
            if place == 0:
                fused[kind] = empty(name, (*shape[1:], 3 * width))
            # [in, out] for the weight, [out] for the bias; the transpose of a vector is itself.
            parameters[name] = fused[kind][..., place * width : (place + 1) * width].t()
            if kind == "bias":
                parameters.qkv[attention + "self"] = (fused["weight"], fused["bias"])
        elif is_dense_weight(name):
            parameters[name] = empty(name, shape[::-1]).t()
        else:
            parameters[name] = empty(name, shape)
    return parameters


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros that on a CPU cost neither time nor memory until they are touched, unlike those of `torch.zeros`."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    length = math.prod(shape) * dtype.itemsize
    data = np.zeros(length + ALIGNMENT, np.uint8)  # which the kernel hands out page by page
    start = -data.ctypes.data % ALIGNMENT
    return torch.from_numpy(data[start : start + length]).view(dtype).view(shape)


def _aligned(numbers: int) -> int:
    return -(-numbers // ALIGNED) * ALIGNED


def is_constant(tensor: Tensor) -> bool:
    """Whether it is one number seen at every place, as the gradient of what no loss reaches: it takes no memory."""
    return tensor.dim() > 0 and not any(tensor.stride())


def is_dense_weight(name: str) -> bool:
    return name.endswith(".weight") and "LayerNorm" not in name and "norm" not in name and "embeddings" not in name


def initialize_(parameters: Parameters, std: float, padding_id: int | None, seed: int) -> None:
    """BERT's initialisation: matrices from a normal distribution, biases 0, LayerNorm weights 1, padding row 0."""
    generator = torch.Generator().manual_seed(seed)
    done: set[int] = set()
    for name, tensor in parameters.items():
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        if name.endswith("bias"):
            tensor.zero_()
        elif name == "block_emb":
            pass
        elif tensor.dim() == 1:
            tensor.fill_(1)
        else:
            drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=generator.device)
            tensor.copy_(drawn.normal_(0, std, generator=generator))
            if name.endswith("word_embeddings.weight") and padding_id is not None:
                tensor[padding_id].zero_()
