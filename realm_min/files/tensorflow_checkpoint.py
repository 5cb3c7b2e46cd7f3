"""Google's original files in, Hugging Face folders out, for `realm-min convert`.

The release of REALM and ORQA holds TensorFlow checkpoints (variables by name), `encoded.ckpt` (the block embeddings, a
checkpoint of one variable) and `blocks.tfr` (the blocks' texts as TFRecords), which `tensorflow_files.py` reads. Names
and sizes are mapped here, as transformers' `load_tf_weights_in_realm` maps them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import RealmConfig
from ..interface.base import RealmModel
from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..interface.open_qa import RealmForOpenQA
from ..interface.reader import RealmReader
from ..interface.scorer import RealmScorer
from .causes import check_readable
from .checkpoint import check_finite
from .json_file import read_json_object
from .tensorflow_files import Checkpoint

# --- Names ------------------------------------------------------------------------------------------------------------

# Scopes: the start of a TensorFlow name, and what stands for it in the state dict of the part. The embedder is a
# TensorFlow Hub module; each module around it (two when pre-trained, three when fine-tuned) adds one "module/".
SCOPES = {
    "embedder": (
        (r"(module/)+bert/", "realm/"),
        (r"(module/)+cls/predictions/", "cls/predictions/"),
        (r"(module/)+LayerNorm/", "cls/LayerNorm/"),
        (r"(module/)+dense/", "cls/dense/"),
    ),
    "reader": (
        (r"reader/module/bert/", "realm/"),
        (r"reader/module/cls/", "cls/"),
        (r"reader/dense/", "qa_outputs/dense_intermediate/"),
        (r"reader/dense_1/", "qa_outputs/dense_output/"),
        (r"reader/layer_normalization/", "qa_outputs/layer_normalization/"),
    ),
    "bert": ((r"bert/", "realm/"), (r"cls/", "cls/")),
    "blocks": ((r"block_emb$", "block_emb"),),
}

# Last part of a TensorFlow name to that of a key. A "kernel" is transposed: TensorFlow computes x W, PyTorch x Wᵀ.
LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "output_bias": "bias"}

# What a model is made of: its class, and where its state dict has each of the parts above.
MODELS: dict[str, tuple[type[RealmModel], dict[str, str]]] = {
    "embedder": (RealmEmbedder, {"embedder": ""}),
    "scorer": (RealmScorer, {"embedder": "embedder."}),
    "encoder": (RealmKnowledgeAugEncoder, {"bert": ""}),
    "reader": (RealmReader, {"reader": ""}),
    "openqa": (RealmForOpenQA, {"embedder": "embedder.", "reader": "reader.", "bert": "reader.", "blocks": ""}),
}

_OPTIMIZER = {"adam_v", "adam_m", "AdamWeightDecayOptimizer", "AdamWeightDecayOptimizer_1", "global_step"}

# Sizes that shapes tell: the end of a key to the configuration's name of each axis.
SIZES = {
    "realm.embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
    "realm.embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
    "realm.embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
    "realm.encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
    "cls.dense.weight": ("retriever_proj_size", "hidden_size"),
    "qa_outputs.dense_output.weight": (None, "span_hidden_size"),
    "block_emb": ("num_block_records", "retriever_proj_size"),
}
# In every BERT that Google released.
_HEAD_WIDTH = 64


def part_of(name: str) -> str | None:
    """Which part of REALM a TensorFlow variable belongs to, a key of `SCOPES`; None for any other."""
    return next((part for part in SCOPES if any(re.match(scope, name) for scope, _ in SCOPES[part])), None)


def state_dict_key(name: str, kind: str) -> str | None:
    """The key of a TensorFlow variable in the state dict of a model `kind`; None where that model has no such part."""
    part = part_of(name)
    _, prefixes = MODELS[kind]
    if part not in prefixes:
        return None
    scope, replacement = next(pair for pair in SCOPES[part] if re.match(pair[0], name))
    *path, leaf = re.sub(rf"^{scope}", replacement, name).split("/")
    leaf = f"{leaf}.weight" if leaf.endswith("_embeddings") else LEAVES.get(leaf, leaf)
    return prefixes[part] + ".".join([re.sub(r"^layer_(\d+)$", r"layer.\1", step) for step in path] + [leaf])


# --- Converting -------------------------------------------------------------------------------------------------------


@dataclass
class Conversion:
    """A model's configuration and weights, and what became of everything.

    `unmapped`: variables that no parameter of the model takes. `optimizer`: how many more belong to an optimizer.
    `missing`: parameters that no variable filled; they hold initial values. `tied`: parameters that hold a copy of the
    word embeddings, since BERT's masked-language-model head multiplies with these and TensorFlow stores them once.
    `remarks`: what the files do not say and was taken for granted.
    """

    kind: str
    config: RealmConfig
    state_dict: dict[str, torch.Tensor]
    unmapped: list[str] = field(default_factory=list)
    optimizer: int = 0
    missing: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


_Source = tuple[Checkpoint, str]  # where a variable is: its checkpoint, and its name in it


class _Variables(NamedTuple):
    """The variables of one model: by key where each is, and its shape with the axes of that key; and who has no key."""

    sources: dict[str, _Source]
    shapes: dict[str, list[int]]
    unmapped: list[str]


def read_tensorflow(
    paths: Sequence[str | os.PathLike],
    kind: str | None = None,
    config_file: str | os.PathLike | None = None,
    initialize_missing: bool = False,
    seed: int = 0,
) -> Conversion:
    """Read one model from one or more TensorFlow checkpoints, together.

    Args:
        paths: as `find_checkpoint` takes them. Open QA may need two: the fine-tuned one and encoded.ckpt.
        kind: a key of `MODELS`; None tells it from the names.
        config_file: config.json, or Google's bert_config.json; needed where heads are not 64 wide.
        initialize_missing: draw parameters that no variable fills, from `seed`, instead of refusing.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: damaged files; two variables for one parameter; variables that do not fit each other or
            `config_file`; parameters that nothing fills, without `initialize_missing`.
        ModuleNotFoundError: without TensorFlow.
    """
    checkpoints = [Checkpoint(path) for path in paths]
    names = [name for checkpoint in checkpoints for name in checkpoint.shapes]
    weights = [name for name in names if not _is_optimizers(name)]
    kind = kind or recognise(weights)
    variables = _map_variables(checkpoints, kind)
    sources = variables.sources

    config, remarks = _config(variables.shapes, config_file)
    expected, aliases = expected_shapes(kind, config)
    _check_shapes(variables, expected)
    untaken = [name for key, (_, name) in sources.items() if key not in expected and key not in aliases]
    tied = _tied_to_words(expected, sources)
    missing = [key for key in expected if key not in sources and key not in tied]
    if missing and not initialize_missing:
        raise _unfilled(kind, missing)
    fresh = MODELS[kind][0](config, seed=seed).state_dict() if missing else {}
    state_dict = _fill(expected, sources, tied, fresh)
    unmapped, optimizer = sorted(variables.unmapped + untaken), len(names) - len(weights)
    return Conversion(kind, config, state_dict, unmapped, optimizer, missing, sorted(tied), remarks)


def _is_optimizers(name: str) -> bool:
    return bool(_OPTIMIZER & set(name.split("/")))


def _map_variables(checkpoints: list[Checkpoint], kind: str) -> _Variables:
    """Find the key of every variable in the state dict of a model `kind`; those of an optimizer are passed over.

    Raises:
        ValueError: two variables have the same key.
    """
    found = _Variables({}, {}, [])
    for checkpoint in checkpoints:
        for name, shape in sorted(checkpoint.shapes.items()):
            if _is_optimizers(name):
                continue
            key = state_dict_key(name, kind)
            if key is None:
                found.unmapped.append(name)
                continue
            if key in found.sources:
                other, twin = found.sources[key]
                raise ValueError(
                    f"{twin} of {other.path} and {name} of {checkpoint.path} both are {key}: "
                    "give the checkpoints of one model"
                )
            found.sources[key] = checkpoint, name
            found.shapes[key] = shape[::-1] if name.endswith("/kernel") else shape
    return found


def _check_shapes(variables: _Variables, expected: dict[str, tuple[int, ...]]) -> None:
    wrong = [
        f"{variables.sources[key][1]} is {variables.shapes[key]}, {key} is {list(shape)}"
        for key, shape in expected.items()
        if key in variables.sources and list(shape) != variables.shapes[key]
    ]
    if wrong:
        raise ValueError("the variables do not fit one model:\n  " + "\n  ".join(wrong))


def _tied_to_words(expected: Iterable[str], sources: dict[str, _Source]) -> dict[str, str]:
    """Decoders of BERT's head that no variable fills, each with the word embeddings that one does."""
    tied = {
        key: key.replace("cls.predictions.decoder", "realm.embeddings.word_embeddings")
        for key in expected
        if key.endswith("cls.predictions.decoder.weight") and key not in sources
    }
    return {key: words for key, words in tied.items() if words in sources}


def _unfilled(kind: str, missing: list[str]) -> ValueError:
    return ValueError(
        f"nothing fills {len(missing)} parameters of the {kind} model; give the checkpoint that has them too, "
        "another --kind, or --initialize-missing:\n  " + "\n  ".join(missing)
    )


def _fill(
    expected: Iterable[str], sources: dict[str, _Source], tied: dict[str, str], fresh: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state dict, in the model's own order: what is read, copies of what a key is tied to, `fresh` for the rest."""
    read = {key: _read_weight(*sources[key]) for key in expected if key in sources}
    copies = {key: read[words].clone() for key, words in tied.items()}
    found = fresh | read | copies
    return {key: found[key] for key in expected}


def recognise(names: Iterable[str]) -> str:
    """The kind of model, a key of `MODELS`, that the variables make.

    Raises:
        ValueError: they make none.
    """
    parts = {part for name in names if (part := part_of(name)) is not None}
    if len(parts) > 1:
        return "openqa"
    if not parts:
        raise ValueError(f"no variable is REALM's, ORQA's or BERT's; the first are {sorted(names)[:5]}")
    if parts == {"blocks"}:
        raise ValueError("block_emb alone makes no model: give the fine-tuned checkpoint too")
    return {"embedder": "embedder", "reader": "reader", "bert": "encoder"}[parts.pop()]


def expected_shapes(kind: str, config: RealmConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The shape of every parameter of a model, and the keys that repeat another; no tensor is allocated."""
    shapes = MODELS[kind][0].all_shapes(config)
    expected = {key: shape for key, shape in shapes.items() if not isinstance(shape, str)}
    return expected, {key: shape for key, shape in shapes.items() if isinstance(shape, str)}


def _config(shapes: dict[str, list[int]], file: str | os.PathLike | None) -> tuple[RealmConfig, list[str]]:
    """The configuration that the shapes and the file make together, and remarks on what neither says."""
    sizes: dict[str, int] = {}
    for key, shape in sorted(shapes.items()):
        axes = next((SIZES[end] for end in SIZES if key.endswith(end)), ())
        found = dict(zip(axes, shape, strict=False))
        if layer := re.search(r"encoder\.layer\.(\d{1,9})\.", key):
            found = {**found, "num_hidden_layers": max(int(layer[1]) + 1, sizes.pop("num_hidden_layers", 0))}
        for name, size in found.items():
            if name is not None and sizes.setdefault(name, size) != size:
                raise ValueError(
                    f"{key} is {shape}, but others have {name}={sizes[name]}: give one model's checkpoints"
                )

    values, remarks = {}, []
    if file is not None:
        values = _read_config(Path(file))
        for name, size in sizes.items():
            if values.get(name, size) != size:
                raise ValueError(f"{file} says {name}={values[name]}, the variables have {size}: give their own file")
        # Google's bert_config.json calls the tanh approximation "gelu"; Hugging Face calls the exact function so.
        if "model_type" not in values and values.get("hidden_act") == "gelu":
            values["hidden_act"] = "gelu_new"
    elif "hidden_size" in sizes:
        heads, rest = divmod(sizes["hidden_size"], _HEAD_WIDTH)
        if rest:
            raise ValueError(
                f"hidden_size={sizes['hidden_size']} is no multiple of {_HEAD_WIDTH}, so the number of attention heads "
                "is unknown: give --config with num_attention_heads"
            )
        values = {"num_attention_heads": heads}
        remarks.append(f"num_attention_heads={heads}: hidden_size / {_HEAD_WIDTH}, as in BERT; or give --config")
    config = RealmConfig(**values | sizes)
    if config.num_hidden_layers > max(len(shapes), RealmConfig.num_hidden_layers):
        raise ValueError(
            f"num_hidden_layers={config.num_hidden_layers}, and the checkpoints have {len(shapes)} variables"
        )
    return config, remarks


def _read_config(path: Path) -> dict[str, Any]:
    check_readable(path, f"{path} does not exist: give a config.json or bert_config.json")
    return read_json_object(path, "give a config.json or bert_config.json")


def _read_weight(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    array = checkpoint.read(name)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} of {checkpoint.path} is {array.dtype}: weights are floating-point numbers")
    array = array.T if name.endswith("/kernel") else array
    with np.errstate(over="ignore"):  # what overflows is refused
        weight = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    check_finite(name, weight, weight.dtype, source=str(checkpoint.path))
    return weight
