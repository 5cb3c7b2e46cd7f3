"""Models to begin training with: from scratch, from any BERT folder, or from what an earlier stage wrote.

The stages hand on folders: `realm-min pretrain` and the Inverse Cloze Task write OUT/embedder, and pre-training
OUT/knowledge_encoder beside it; fine-tuning starts its reader from that encoder, as REALM does (figure 2).
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..config import CONFIG_FILE, DEFAULTS, RealmConfig
from ..files import checkpoint
from ..files.causes import check_readable
from ..files.hub import resolve_folder
from ..files.json_file import read_json_object
from ..files.unknown_names import level_of_the_program
from ..interface.base import RealmModel
from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..interface.reader import RealmReader
from ..kinds import checked
from ..text.tokenizer import RealmTokenizerFast

EMBEDDER, KNOWLEDGE_ENCODER = "embedder", "knowledge_encoder"  # folders within a stage's
VOCABULARY = Path(__file__).parents[1] / "assets" / "vocab.txt"

BERTS = (None, "bert", "dpr")  # models of this very arithmetic; the oldest configurations name none
RESTORE = "restore it from the checkpoint's source"
WORDS = "embeddings.word_embeddings.weight"
ACTIVATIONS = {"gelu_python": "gelu", "gelu_fast": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "swish": "silu"}
# What a BERT may lack, and a model reads; REALM's own projections and span scorers no BERT has.
READ = {
    RealmEmbedder: ("pooler", "realm.pooler."),
    RealmKnowledgeAugEncoder: ("masked-language-model head", "cls.predictions."),
}

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


@checked
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
    config = _config(folder, values)
    found = _realm_names(checkpoint.usual_names(checkpoint.read_state_dict(folder)), folder)
    checkpoint.check_fits(cls.all_shapes, config, found, source=str(folder))
    model = cls(config, seed=seed)
    if of_stage and part == EMBEDDER and cls is RealmKnowledgeAugEncoder:
        # An embedder has a masked-language-model head in its checkpoint, which no stage has trained or tied.
        found = {key: tensor for key, tensor in found.items() if not key.startswith("cls.predictions.")}
    current = model.state_dict()
    taken = {key: tensor for key, tensor in found.items() if key in current}
    _check_trunk(folder, current, found)
    what, begin = READ.get(cls, ("", ""))
    if not (of_stage or any(key.startswith(begin) for key in taken)):
        said = f"{folder} has no {what}: it is drawn from the seed, and means nothing before it is trained"
        warnings.warn(said, stacklevel=level_of_the_program())
    for alias, key in model.aliases().items():  # tied weights, of which the folder has either or none
        taken.setdefault(key, taken.get(alias, current[key]))
        taken.setdefault(alias, taken[key])
    model.load_state_dict({**current, **taken}, source=str(folder))
    return model


def _check_trunk(folder: Path, current: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """ValueError if a folder has less of BERT than the model, the pooler aside, or more layers."""
    trunk = [key for key in current if key.startswith("realm.") and not key.startswith("realm.pooler.")]
    missing = [key for key in trunk if key not in found]
    if missing:
        raise ValueError(f"{folder} holds no whole BERT trunk, {missing[0]} is missing: give a folder of a BERT model")
    beyond = [key for key in found if key.startswith("realm.encoder.layer.") and key not in current]
    if beyond:
        raise ValueError(f"{folder} holds {beyond[0]}, which its config.json does not tell of: fetch both again")


@checked
def embedder(folder: str | os.PathLike | None, seed: int = 0, **values: Any) -> RealmEmbedder:
    """A RealmEmbedder to train; arguments as `load`."""
    return load(RealmEmbedder, folder, EMBEDDER, seed, **values)


@checked
def knowledge_encoder(folder: str | os.PathLike | None, seed: int = 0, **values: Any) -> RealmKnowledgeAugEncoder:
    """A RealmKnowledgeAugEncoder to train; a stage that has none gives the trunk of its embedder."""
    part = KNOWLEDGE_ENCODER if folder is None or (Path(folder) / KNOWLEDGE_ENCODER).is_dir() else EMBEDDER
    return load(RealmKnowledgeAugEncoder, folder, part, seed, **values)


@checked
def reader(folder: str | os.PathLike | None, seed: int = 0, **values: Any) -> RealmReader:
    """A RealmReader to train, its trunk that of a stage's knowledge encoder, of its embedder if there is none."""
    part = KNOWLEDGE_ENCODER if folder is None or (Path(folder) / KNOWLEDGE_ENCODER).is_dir() else EMBEDDER
    return load(RealmReader, folder, part, seed, **values)


@checked
def tokenizer(folder: str | os.PathLike | None) -> RealmTokenizerFast:
    """The tokenizer of a folder; None gives the uncased vocabulary of BERT that the package carries."""
    if folder is None:
        return RealmTokenizerFast(vocab_file=str(VOCABULARY))
    return RealmTokenizerFast.from_pretrained(resolve_folder(folder, "tokenizer"))


def is_bert(folder: Path) -> bool:
    """Whether a folder's configuration is another model's than REALM's."""
    path = folder / CONFIG_FILE
    found = read_json_object(path, RESTORE) if path.is_file() else {}
    kind = found.get("model_type", RealmConfig.model_type if "retriever_proj_size" in found else None)
    return bool(found) and kind != RealmConfig.model_type


def _config(folder: Path, values: dict[str, Any]) -> RealmConfig:
    """RealmConfig of a REALM folder, or the sizes of a BERT's."""
    path = folder / CONFIG_FILE
    check_readable(path, f"{path} is missing: give the folder of a model")
    if not is_bert(folder):
        return RealmConfig.from_pretrained(folder, **values)
    found = read_json_object(path, RESTORE)
    if (kind := found.get("model_type")) not in BERTS:
        raise ValueError(f"{path} describes a model of type {kind!r}: give the folder of a BERT, or of a REALM model")
    known = {*DEFAULTS, "is_decoder", "add_cross_attention", "tie_word_embeddings"}
    sizes = {key: found[key] for key in known & found.keys()}
    activation = sizes.get("hidden_act", "gelu")
    sizes["hidden_act"] = ACTIVATIONS.get(str(activation), activation)
    return RealmConfig(**{**sizes, **values})


def _realm_names(state_dict: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """A checkpoint's trunk under `realm.` and its head under `cls.`, whatever they are within; floats as float32.

    The trunk is what stands before the word embeddings: "realm.", "bert.", nothing in a bare BertModel, or a wrapper's
    "question_encoder.bert_model.".

    Raises:
        ValueError: there are several trunks.
    """
    trunks = [key.removesuffix(WORDS) for key in state_dict if re.fullmatch(rf"(.*\.)?{re.escape(WORDS)}", key)]
    if len(trunks) > 1:
        raise ValueError(f"{folder} holds {len(trunks)} trunks, {' and '.join(trunks)}: give the folder of one BERT")
    trunk = trunks[0] if trunks else "realm."
    wrapper = re.sub(r"(realm|bert)\.$", "", trunk)
    found = {}
    for key, tensor in state_dict.items():
        if checkpoint.OLD_BUFFERS.fullmatch(key):
            continue
        name = f"realm.{key[len(trunk) :]}" if key.startswith(trunk) else key.removeprefix(wrapper)
        found[name] = tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    return found
