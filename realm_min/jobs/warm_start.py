"""Models to begin training with: from scratch, from any BERT folder, or from what an earlier stage wrote.

The stages hand on folders: `realm-min pretrain` and the Inverse Cloze Task write OUT/embedder, and pre-training
OUT/knowledge_encoder beside it; fine-tuning starts its reader from that encoder, as REALM does (figure 2).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import RealmConfig
from ..files import checkpoint
from ..files.causes import check_readable
from ..files.hub import resolve_folder
from ..files.json_file import read_json_object
from ..interface.base import RealmModel
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..interface.reader import RealmReader
from ..text.tokenizer import RealmTokenizerFast

EMBEDDER, KNOWLEDGE_ENCODER = "embedder", "knowledge_encoder"  # folders within a stage's
VOCABULARY = Path(__file__).parents[1] / "assets" / "vocab.txt"

Model = TypeVar("Model", bound=RealmModel)


def small_config(**values: Any) -> RealmConfig:
    """The sizes of a small model to train from scratch on two cores; `values` replace any of them.

    Its weights are drawn wider than BERT's, about as 1 / √hidden. From 0.02 the Inverse Cloze Task on the Factbook came
    to chance within 50 steps, all blocks having one vector, and was still there after 300, at learning rates of 1e-4,
    1e-3 and 3e-3; from 0.1 its loss goes on falling.
    """
    small = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "initializer_range": 0.1,
    }
    return RealmConfig(**{**small, **values})


def load(cls: type[Model], folder: str | os.PathLike | None, part: str, seed: int = 0, **values: Any) -> Model:
    """A `cls` to be trained, with the weights that `folder` has for it.

    Args:
        folder: a stage's folder (its `part` is read, or a reader's trunk from its knowledge encoder), a folder of a
            REALM model or of any BERT, or a hub name; None draws all weights of a small model.
        part: EMBEDDER or KNOWLEDGE_ENCODER.
        seed: of the weights that the folder has not: projections, a masked-language-model head, a span scorer.
        values: configuration values to replace, dropout say.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: it holds no BERT trunk, or one of other sizes than its configuration says.
    """
    if folder is None:
        return cls(small_config(**values), seed=seed)
    of_stage = (Path(folder) / part).is_dir()
    folder = Path(folder) / part if of_stage else resolve_folder(folder, "config", "weights")
    found = _realm_names(checkpoint.read_state_dict(folder))
    config = _config(folder, values)
    checkpoint.check_fits(cls.all_shapes, config, found, source=str(folder))
    model = cls(config, seed=seed)
    if of_stage and part == EMBEDDER and cls is RealmKnowledgeAugEncoder:
        # An embedder has a masked-language-model head in its checkpoint, which no stage has trained or tied.
        found = {key: tensor for key, tensor in found.items() if not key.startswith("cls.predictions.")}
    current = model.state_dict()
    taken = {key: tensor for key, tensor in found.items() if key in current}
    missing = [key for key in current if key.startswith("realm.") and key not in taken]
    if missing:
        raise ValueError(f"{folder} holds no whole BERT trunk, {missing[0]} is missing: give a folder of a BERT model")
    for alias, key in model.aliases().items():  # a decoder tied to word embeddings of which the folder has only these
        taken.setdefault(alias, taken.get(key, current[key]))
    model.load_state_dict({**current, **taken}, source=str(folder))
    return model


def embedder(folder: str | os.PathLike | None, seed: int = 0, **values: Any) -> Any:
    """A RealmEmbedder to train; arguments as `load`."""
    from ..interface.embedder import RealmEmbedder

    return load(RealmEmbedder, folder, EMBEDDER, seed, **values)


def knowledge_encoder(folder: str | os.PathLike | None, seed: int = 0, **values: Any) -> RealmKnowledgeAugEncoder:
    """A RealmKnowledgeAugEncoder to train; a stage that has none gives the trunk of its embedder."""
    part = KNOWLEDGE_ENCODER if folder is None or (Path(folder) / KNOWLEDGE_ENCODER).is_dir() else EMBEDDER
    return load(RealmKnowledgeAugEncoder, folder, part, seed, **values)


def reader(folder: str | os.PathLike | None, seed: int = 0, **values: Any) -> RealmReader:
    """A RealmReader to train, its trunk that of a stage's knowledge encoder, of its embedder if there is none."""
    part = KNOWLEDGE_ENCODER if folder is None or (Path(folder) / KNOWLEDGE_ENCODER).is_dir() else EMBEDDER
    return load(RealmReader, folder, part, seed, **values)


def tokenizer(folder: str | os.PathLike | None) -> RealmTokenizerFast:
    """The tokenizer of a folder; None gives the uncased vocabulary of BERT that the package carries."""
    if folder is None:
        return RealmTokenizerFast(vocab_file=str(VOCABULARY))
    return RealmTokenizerFast.from_pretrained(resolve_folder(folder, "tokenizer"))


def _config(folder: Path, values: dict[str, Any]) -> RealmConfig:
    """RealmConfig of a REALM folder, or the sizes of a BERT's."""
    path = folder / "config.json"
    check_readable(path, f"{path} is missing: give the folder of a model")
    found = read_json_object(path, "restore it from the checkpoint's source")
    if found.get("model_type") == RealmConfig.model_type:
        return RealmConfig.from_pretrained(folder, **values)
    known = RealmConfig().to_dict().keys() - {"model_type", "architectures", "torch_dtype", "transformers_version"}
    return RealmConfig(**{**{key: found[key] for key in known & found.keys()}, **values})


def _realm_names(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's trunk under `realm.`, from REALM's names, "bert.…" or a bare BertModel's; floats as float32."""
    found = {}
    bare = "embeddings.word_embeddings.weight" in state_dict
    for key, tensor in state_dict.items():
        if checkpoint.OLD_BUFFERS.fullmatch(key):
            continue
        if bare:
            key = f"realm.{key}"
        elif key.startswith("bert."):
            key = f"realm.{key[5:]}"
        key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        found[key] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return found
