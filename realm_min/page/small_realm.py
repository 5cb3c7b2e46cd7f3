"""The small REALM of the Learn view: a model that is not done learning, and all that it knows.

The default model answers questions and has no head to fill in masked words, so it cannot take a step of REALM's
pre-training. This one can: two encoders of one layer and 64 numbers, 120 lines of the CIA World Factbook, three
sentences about each of them. `benchmarks/train_small.py` trained it by masked words and stopped half-way.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from ..config import RealmConfig
from ..files.atomic import write_atomically
from ..files.safetensors_file import read_with_metadata, write_safetensors
from ..interface.base import RealmModel
from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..jobs.preparation import encode_evidence
from ..search.mips import BlockIndex
from ..text.corpus import Block
from ..text.sequences import document_sequences, pad
from ..text.tokenizer import RealmTokenizerFast

FILE = Path(__file__).parents[1] / "assets" / "small-realm.safetensors"


class SmallRealm(NamedTuple):
    """Document i states a fact; sentences[i] say it in other words, none of them with the document's but one or two."""

    tokenizer: RealmTokenizerFast  # whose pieces are whole words
    embedder: RealmEmbedder
    encoder: RealmKnowledgeAugEncoder
    documents: list[Block]
    sentences: list[list[str]]
    never_asked: list[int]  # the facts that training did not ask about


def save(realm: SmallRealm, path: str | os.PathLike) -> None:
    """Write the file of `load`: weights in 16 bits, and the texts in its metadata."""
    tensors = {
        f"{name}.{key}": tensor.half().contiguous()
        for name, model in (("embedder", realm.embedder), ("encoder", realm.encoder))
        for key, tensor in own_weights(model).items()
    }
    words = sorted(realm.tokenizer.get_vocab(), key=realm.tokenizer.get_vocab().__getitem__)
    texts = {
        "config": realm.embedder.config.to_dict(), "vocabulary": words, "documents": realm.documents,
        "sentences": realm.sentences, "never_asked": realm.never_asked,
    }  # fmt: skip
    with write_atomically(path) as temporary:
        write_safetensors(temporary, tensors, {"texts": json.dumps(texts, ensure_ascii=False)})


def load(path: str | os.PathLike = FILE) -> SmallRealm:
    """The model of a file that `save` wrote, in evaluation mode.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is damaged.
    """
    tensors, metadata = read_with_metadata(Path(path))
    texts = json.loads(metadata["texts"])
    config = RealmConfig(**texts["config"])
    embedder, encoder = RealmEmbedder(config, seed=0).eval(), RealmKnowledgeAugEncoder(config, seed=0).eval()
    for name, model in (("embedder", embedder), ("encoder", encoder)):
        for key, tensor in own_weights(model).items():
            tensor.copy_(tensors[f"{name}.{key}"])
    return SmallRealm(
        whole_words(texts["vocabulary"]), embedder, encoder, [Block(*document) for document in texts["documents"]],
        texts["sentences"], texts["never_asked"],
    )  # fmt: skip


def own_weights(model: RealmModel) -> dict:
    """The weights that an output depends on, tied ones once."""
    aliases = model.aliases()
    return {key: x for key, x in model.p.items() if key not in aliases and not key.startswith(model.unread)}


def whole_words(vocabulary: list[str]) -> RealmTokenizerFast:
    """The tokenizer of a vocabulary."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("".join(f"{word}\n" for word in vocabulary), encoding="utf-8")
        return RealmTokenizerFast(path)


def index_of(realm: SmallRealm) -> BlockIndex:
    """The search index of all documents, by the embedder as it is now."""
    longest = realm.embedder.config.max_position_embeddings
    blocks = encode_evidence(realm.documents, realm.tokenizer)
    _, *documents = document_sequences(realm.tokenizer, blocks, longest)  # the null document is in no index
    return BlockIndex(realm.embedder(**pad(documents, realm.embedder)).projected_score)
