"""Checkpoints: folders in Hugging Face's layout, in and out.

A folder holds `config.json` and the weights, which are a state dict (dotted key to tensor) in one of two formats,
whole or cut into shards that an index file lists. Weights are read through memory maps, so that reading costs no
memory of its own, and written one tensor at a time. Reading runs no pickled code. A single file in the safetensors
format is the affair of `safetensors_file.py`.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch

from ..config import CONFIG_FILE, RealmConfig
from ..kinds import checked
from ..model.parameters import Shapes
from ..ranks.distributed import World
from .atomic import write_atomically
from .causes import causes_named, check_readable, raise_machine_error
from .pickled_tensors import unpickle_tensors
from .safetensors_file import damaged, read_safetensors, write_safetensors
from .unknown_names import level_of_the_program

SAFETENSORS, PICKLED = ("model", ".safetensors"), ("pytorch_model", ".bin")
_WEIGHT_FILES = re.compile(
    r"(model(-\d{5}-of-\d{5})?\.safetensors|pytorch_model(-\d{5}-of-\d{5})?\.bin)(\.index\.json)?"
)

# Buffers that transformers stored until 4.31. They hold 0, 1, 2, … and zeros: a model needs no checkpoint for them.
OLD_BUFFERS = re.compile(r"(.*\.)?embeddings\.(position_ids|token_type_ids)")

_TODAY = {"gamma": "weight", "beta": "bias"}  # names of a LayerNorm's weights until 2019

# What the weights were trained with and no shape tells. Other values of a config.json are options of its user.
TRAINED_WITH = ("num_attention_heads", "hidden_act", "layer_norm_eps", "reader_layer_norm_eps")

FEW = 1 << 24  # numbers that a checkpoint may leave to be drawn, however small it is itself

# --- Reading ----------------------------------------------------------------------------------------------------------


def read_state_dict(
    folder: str | os.PathLike, sliced: str | None = None, world: World | None = None
) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint folder, by key, with the shapes and dtypes that are stored.

    With `sliced` and `world` it is a collective, and the checksum is the ranks' common work: of the tensor under the
    key `sliced`, each rank reads its slice alone (`World.slice_of`); it touches the rest of it where it uses it. Files
    of torch.save are read whole by every rank.

    Looks for model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json, in this
    order. The tensors are memory-mapped: writing into them changes no file, and they cost memory as they are touched.

    Raises:
        FileNotFoundError: `folder` is no folder, holds no weights, or lacks a shard that its index lists.
        ValueError: a file is truncated, damaged, of another format, a pointer of Git LFS, or asks for Python objects
            other than tensors.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder that holds config.json and the weights")
    safe = partial(read_safetensors, sliced=sliced, world=world or World())
    for (stem, suffix), read in ((SAFETENSORS, safe), (PICKLED, _read_pickled)):
        if (folder / (stem + suffix)).exists():
            return read(folder / (stem + suffix))
        if (folder / f"{stem}{suffix}.index.json").exists():
            return _read_shards(folder / f"{stem}{suffix}.index.json", read)
    raise FileNotFoundError(
        f"{folder} holds no weights: model.safetensors, pytorch_model.bin, or one of them in shards with its "
        ".index.json, is needed"
    )


def _read_shards(index: Path, read: Callable[[Path], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    check_readable(index)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        keys_of: dict[str, set[str]] = {}
        for key, shard in weight_map.items():
            keys_of.setdefault(shard, set()).add(key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, f"no weight_map of keys to files: {type(error).__name__} {error}") from None
    for shard in keys_of:
        if not isinstance(shard, str) or not re.fullmatch(r"[\w-][\w.-]*", shard):
            raise ValueError(f"{index} names the shard {shard!r}: a shard is a plain file name in the same folder")
        check_readable(index.parent / shard, f"{index} lists {shard}, which is not beside it: fetch the missing shard")

    state_dict: dict[str, torch.Tensor] = {}
    for shard, keys in sorted(keys_of.items()):
        tensors = read(index.parent / shard)
        if absent := sorted(keys - tensors.keys()):
            raise ValueError(f"{index} says {shard} holds {', '.join(absent)}, but it does not: fetch both again")
        if twice := sorted(state_dict.keys() & tensors.keys()):
            raise ValueError(f"{shard} and an earlier shard of {index} both hold {', '.join(twice)}: fetch them again")
        state_dict.update(tensors)
    return state_dict


def _read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """A `torch.save`d state dict. The pickle in it is read, never executed."""
    check_readable(path)
    try:
        with causes_named(path):
            state_dict = unpickle_tensors(path)
    except ValueError as error:
        raise damaged(path, error) from None
    if not isinstance(state_dict, dict):
        raise damaged(path, f"it holds a {type(state_dict).__name__}, not a dict of keys and tensors")
    for key, tensor in state_dict.items():
        if not isinstance(key, str):
            raise damaged(path, f"its key {key!r} is no string")
        if not isinstance(tensor, torch.Tensor):
            raise damaged(path, f"under {key[:200]!r} it holds a {type(tensor).__name__}, not a tensor")
    return state_dict


def check_config(folder: str | os.PathLike, config: RealmConfig) -> None:
    """Refuse a config.json that tells of another model than the weights beside it, which `write_folder` wrote.

    `read_state_dict` has read them. safetensors files of others and pickled ones do not tell: nothing is checked.

    Raises:
        ValueError: a value of `TRAINED_WITH` differs.
    """
    for path in sorted(Path(folder).glob("*.safetensors")):
        if not _WEIGHT_FILES.fullmatch(path.name):
            continue
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                written = json.loads((file.metadata() or {}).get("config", "{}"))
            differing = {name: value for name, value in written.items() if getattr(config, name, None) != value}
        except Exception as error:  # as above
            raise_machine_error(error, path)
            raise damaged(path, str(error).partition("\n")[0]) from None
        for name, value in differing.items():
            raise ValueError(
                f"{Path(folder) / CONFIG_FILE} says {name}={getattr(config, name, None)!r}, its weights were written "
                f"with {value!r}: restore the file; to change the value, give it to from_pretrained"
            )


# --- Into a model -----------------------------------------------------------------------------------------------------


def check_fits(
    shapes_of: Callable[[RealmConfig], Shapes],
    config: RealmConfig,
    found: dict[str, torch.Tensor],
    source: str,
    reshape: bool = False,
) -> list[tuple[str, torch.Size, torch.Size]]:
    """Refuse a configuration of another model than the weights are of, before anything of its sizes is allocated.

    Args:
        shapes_of: the shapes of the model's tensors, `all_shapes` of its class.
        found: the weights by key. Those that are absent may be `FEW` numbers, or as many as there are.
        source: what the error calls the checkpoint, such as its folder.
        reshape: tensors may be of another shape than the model's, and count as absent.

    Returns those: key, its shape, the model's.

    Raises:
        ValueError: too few tensors for the layers, tensors of another shape than the model's, which are all named, or
            far fewer numbers than the model has.
    """
    if config.num_hidden_layers > len(found):
        raise ValueError(
            f"{source} does not fit the model: num_hidden_layers={config.num_hidden_layers}, and the weights are "
            f"{len(found)} tensors; take the config.json that they were saved with"
        )
    shapes = {key: shape for key, shape in shapes_of(config).items() if not isinstance(shape, str)}
    wrong = [
        (key, found[key].shape, torch.Size(shape))
        for key, shape in shapes.items()
        if key in found and tuple(found[key].shape) != tuple(shape)
    ]
    if wrong and not reshape:
        raise misfit(source, [_misshaped(*each) for each in wrong])
    absent = {key: math.prod(shapes[key]) for key in shapes.keys() - found.keys() | {key for key, *_ in wrong}}
    held = sum(tensor.numel() for tensor in found.values())
    if sum(absent.values()) > max(held, FEW):
        largest = max(absent, key=absent.__getitem__)
        raise misfit(source, [f"missing: {largest} {list(shapes[largest])}, and the weights are {held:,} numbers"])
    return wrong


def check_sizes(shapes: Shapes, tensors: Mapping[str, torch.Tensor]) -> None:
    """ValueError if a model's configuration, of which `shapes` are, has grown apart from its weights."""
    for key, shape in shapes.items():
        found = list(tensors[key].shape) if key in tensors else "none"
        if not isinstance(shape, str) and found != list(shape):
            raise ValueError(
                f"the model's configuration says {key} {list(shape)}, its weights have {found}: set the value back, "
                "or make another model of the configuration"
            )


def _misshaped(key: str, found: Sequence[int], expected: Sequence[int]) -> str:
    return f"mis-shaped: {key} {list(found)}, the model has {list(expected)}"


class LoadedKeys(NamedTuple):
    """The keys that a state dict and the model it was loaded into do not share."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:  # as torch's
        keys = f"LoadedKeys(missing_keys={self.missing_keys}, unexpected_keys={self.unexpected_keys})"
        return keys if any(self) else "<All keys matched successfully>"


class Misfit(ValueError, RuntimeError):
    """Weights that do not fit a model; torch raises a RuntimeError for them."""


def misfit(source: str, problems: list[str]) -> Misfit:
    return Misfit(
        f"{source} does not fit the model; take the class and the config.json that it was saved with:\n  "
        + "\n  ".join(sorted(problems))
    )


def usual_names(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under today's names: no "module." before all of them, as DataParallel has it, no gamma and beta."""
    wrapped = bool(state_dict) and all(key.startswith("module.") for key in state_dict)
    found = {}
    for key, tensor in state_dict.items():
        name = key.removeprefix("module.") if wrapped else key
        found[re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: _TODAY[old[0]], name)] = tensor
    return found


def loading_info(missing: list[str], unexpected: list[str], wrong: list[tuple]) -> dict[str, list]:
    """What transformers' `output_loading_info` returns."""
    misshapen = {key for key, *_ in wrong}
    return {
        "missing_keys": [key for key in missing if key not in misshapen],
        "unexpected_keys": unexpected,
        "mismatched_keys": wrong,
        "error_msgs": [],
    }


def warn_of(info: dict[str, list], source: str) -> None:
    """Warn of weights that were drawn anew, or were left out."""
    drawn = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    for names, what in (
        (drawn, "are not there in the model's shape, and drawn anew"),
        (info["unexpected_keys"], "are none of the model's, and left out"),
    ):
        if names:
            warnings.warn(f"{source}: {', '.join(names)} {what}", stacklevel=level_of_the_program())


def assign(
    expected: dict[str, torch.Tensor],
    found: Mapping[str, torch.Tensor],
    aliases: dict[str, str],
    source: str = "the checkpoint",
    strict: bool = True,
    finite: bool = True,
) -> tuple[list[str], list[str]]:
    """Copy `found`, without `OLD_BUFFERS`, into `expected`, in place and in its dtypes, or raise and copy nothing.

    Args:
        expected: the model's tensors by key. Keys that are in `aliases` are left to their canonical key.
        found: the checkpoint's tensors by key.
        aliases: a key that repeats another tensor (tied weights) to that tensor's canonical key. A checkpoint may
            hold the alias, the canonical key, or both.
        source: what the error calls the checkpoint, such as its folder.
        strict: refuse keys that are missing or unexpected.
        finite: refuse NaN and infinity, also those that a weight becomes in the model's dtype.

    Returns:
        The keys that are missing, and those that are unexpected.

    Raises:
        ValueError: names every key that is missing, unexpected, of another shape or type, or whose two copies differ;
            or else the first that holds a value which is not finite.
    """
    weights, unexpected, problems = _by_canonical_key(found, expected, aliases)
    wanted = {key: tensor for key, tensor in expected.items() if key not in aliases}
    missing = [key for key in wanted if key not in weights]
    problems += [problem for key, weight in weights.items() if (problem := _other_kind(key, weight, wanted[key]))]
    if strict:
        problems += [f"missing: {key} {list(wanted[key].shape)}" for key in missing]
        problems += [f"unexpected: {key} {list(found[key].shape)}" for key in unexpected]
    if problems:
        raise misfit(source, problems)
    for key, weight in weights.items() if finite else ():
        check_finite(key, weight, wanted[key].dtype, source)
    for key, weight in weights.items():
        wanted[key].copy_(weight.detach())  # one that autograd follows would have it follow the model, too
    return missing, unexpected


def check_finite(key: str, weight: torch.Tensor, dtype: torch.dtype, source: str) -> None:
    """ValueError if a weight holds NaN or infinity, or will when it is cast to `dtype`: one pass, no copy."""
    if not weight.is_floating_point() or not weight.numel():
        return
    read = weight.detach() if weight.element_size() > 1 else weight.float()  # of a float8 torch tells no extremes
    if not all(end.to(dtype).isfinite() for end in torch.aminmax(read)):
        value = read[~read.to(dtype).isfinite()][0].item()
        raise ValueError(
            f"{source} cannot be taken: {key} holds {value:.6g}, which is not finite as {dtype}; take weights from "
            "before they were damaged, or diverged"
        )


def check_tensors(found: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse what is no dict of tensors of numbers: TypeError for no dict, ValueError for what it holds."""
    if not isinstance(found, Mapping):
        raise TypeError(f"{source} is a {type(found).__name__}: give a dict of tensors, as model.state_dict() is")
    if unnamed := [key for key in found if not isinstance(key, str)]:
        raise TypeError(f"{source} has a key {unnamed[0]!r}: give each tensor under its name")
    kinds = {key: type(x).__name__ for key, x in found.items() if not isinstance(x, torch.Tensor)}
    tensors = {key: tensor for key, tensor in found.items() if key not in kinds}
    kinds |= {key: "tensor of the meta device" for key, tensor in tensors.items() if tensor.device.type == "meta"}
    kinds |= {key: "sparse tensor" for key, tensor in tensors.items() if tensor.layout != torch.strided}
    kinds |= {key: "quantized tensor" for key, tensor in tensors.items() if tensor.is_quantized}
    if kinds:
        raise misfit(source, [f"no tensor of numbers: {key} is a {kind}" for key, kind in kinds.items()])


def _same_numbers(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal, where both may have lost the same numbers."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _other_kind(key: str, weight: torch.Tensor, expected: torch.Tensor) -> str | None:
    """What keeps a weight from being copied into the tensor that is expected, None if nothing does."""
    if weight.shape != expected.shape:
        return _misshaped(key, weight.shape, expected.shape)
    if weight.is_floating_point() != expected.is_floating_point():
        return f"mis-typed: {key} {weight.dtype}, the model has {expected.dtype}"
    return None


def _by_canonical_key(
    found: Mapping[str, torch.Tensor], expected: dict[str, torch.Tensor], aliases: dict[str, str]
) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """The tensors that a model expects, each once; keys it does not; copies that differ. Arguments as `assign`."""
    unexpected: list[str] = []
    problems: list[str] = []
    weights: dict[str, torch.Tensor] = {}
    for key, tensor in found.items():
        canonical = aliases.get(key, key)
        if canonical in weights:
            if not _same_numbers(weights[canonical], tensor):
                problems.append(f"differing copies of one weight: {key} and {canonical}")
        elif canonical in expected:
            weights[canonical] = tensor
        elif not OLD_BUFFERS.fullmatch(key):
            unexpected.append(key)
    return weights, unexpected, problems


# --- Writing ----------------------------------------------------------------------------------------------------------


@checked
def write_folder(
    folder: str | os.PathLike,
    config: RealmConfig,
    state_dict: dict[str, torch.Tensor],
    safe_serialization: bool = True,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write config.json and the weights; transformers reads the folder back, and so does `read_state_dict`.

    Of tensors that share their memory (tied weights) the first key is written, the others are left out: both readers
    fill them from it. All files are complete before the first takes its name; then weights that an earlier save left
    in the folder are removed.

    Args:
        safe_serialization: model.safetensors if true, pytorch_model.bin otherwise.
        max_shard_size: bytes, or a string such as "5GB" or "200MB". Weights above it are cut into shards between
            tensors, so that only a single tensor can make a shard larger.

    Raises:
        ValueError: `max_shard_size` is no size, or a tensor has a dtype that the format lacks.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if safe_serialization:
        (stem, suffix), write = SAFETENSORS, partial(write_safetensors, metadata=_trained_with(config))
    else:
        (stem, suffix), write = PICKLED, _write_pickled
    shards = _cut_into_shards(_without_repetitions(state_dict), _parse_size(max_shard_size))
    names = _shard_names(stem, suffix, len(shards))
    index_name = f"{stem}{suffix}.index.json"

    with ExitStack() as files:  # renamed last to first: the weights, their index, the configuration
        files.enter_context(write_atomically(folder / CONFIG_FILE)).write_text(_text_of(config), "utf-8")
        if len(shards) > 1:
            path = files.enter_context(write_atomically(folder / index_name))
            path.write_text(_index_of(names, shards), "utf-8")
        for name, shard in zip(names, shards, strict=True):
            write(files.enter_context(write_atomically(folder / name)), shard)

    _remove_weights(folder, but={*names, index_name} if len(shards) > 1 else {*names})


def _text_of(config: RealmConfig) -> str:
    return config.to_json_string(use_diff=False)


def _parse_size(size: int | str) -> int:
    if isinstance(size, int) and size > 0:
        return size
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"(\d+) *([A-Z]*)", str(size).upper())
    if not match or match[2] not in units or int(match[1]) == 0:
        raise ValueError(f'max_shard_size={size!r} is no size: give bytes, or a string such as "5GB" or "200MB"')
    return int(match[1]) * units[match[2]]


def _without_repetitions(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[tuple] = set()
    first = {}
    for key, tensor in state_dict.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() == 0 or memory not in seen:
            first[key] = tensor
        seen.add(memory)
    return first


def _cut_into_shards(state_dict: dict[str, torch.Tensor], max_bytes: int) -> list[dict[str, torch.Tensor]]:
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for key, tensor in state_dict.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    return shards


def _shard_names(stem: str, suffix: str, count: int) -> list[str]:
    if count == 1:
        return [stem + suffix]
    return [f"{stem}-{i:05d}-of-{count:05d}{suffix}" for i in range(1, count + 1)]


def _index_of(names: list[str], shards: list[dict[str, torch.Tensor]]) -> str:
    """The text of the file that tells which shard holds a key."""
    index = {
        "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    return json.dumps(index, indent=2) + "\n"


def _trained_with(config: RealmConfig) -> dict[str, str]:
    """What `check_config` looks for in the weights' metadata."""
    return {"config": json.dumps({name: getattr(config, name) for name in TRAINED_WITH})}


def _remove_weights(folder: Path, but: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in but and _WEIGHT_FILES.fullmatch(path.name):
            path.unlink()


def _write_pickled(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    # torch.save writes a tensor's whole storage, so a view of something larger is copied first.
    whole = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    torch.save(
        {key: t.clone() if t.untyped_storage().nbytes() != t.nbytes else t for key, t in whole.items()},
        path,
    )
