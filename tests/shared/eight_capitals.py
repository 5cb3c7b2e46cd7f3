"""Eight countries with a block and a question each, and a model of that size: what the tests of training learn from."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from realm_min import RealmConfig, RealmEmbedder, RealmForOpenQA, RealmRetriever, RealmTokenizerFast
from realm_min.jobs import embedding, refresh, warm_start
from realm_min.text.corpus import Block, record
from realm_min.text.questions import TrainingQuestion

CONFIG = dict(
    vocab_size=160, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    retriever_proj_size=8,
    span_hidden_size=8, max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    initializer_range=0.2,  # so small a model learns nothing from 0.02
)  # fmt: skip
CAPITALS = {
    "Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo",
    "Chad": "Paris", "Cuba": "Havana", "Laos": "London", "Oman": "Berlin",
}  # fmt: skip
CLIMATES = ["cold", "dry in summer", "hot", "mild near the sea and dry in the mountains"] * 2  # blocks differ in length
BLOCKS = [
    Block(country, f"Capital: {city}. The climate of {country} is {climate}. Its people like music and food.")
    for (country, city), climate in zip(CAPITALS.items(), CLIMATES, strict=True)
]
QUESTIONS = [
    TrainingQuestion(f"what is the capital of {country.lower()}?", [city], country)
    for country, city in CAPITALS.items()
]


@functools.cache
def tokenizer() -> RealmTokenizerFast:
    """One whose vocabulary is the wordpieces of the texts above, and unused ones up to CONFIG's number of them.

    With BERT's 30,522 these models would be little else than word embeddings.
    """
    all_words = warm_start.tokenizer(None)
    texts = [f"{block.title}. {block.text}" for block in BLOCKS] + [question.question for question in QUESTIONS]
    pieces = dict.fromkeys(piece for text in texts for piece in all_words.tokenize(text))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    vocabulary += [f"[unused{i}]" for i in range(CONFIG["vocab_size"] - len(vocabulary))]
    assert len(vocabulary) == CONFIG["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
        return RealmTokenizerFast(f"{folder}/vocab.txt")


def open_qa(**values: Any) -> RealmForOpenQA:
    """A model of CONFIG and `values` that searches all BLOCKS and reads two."""
    config = RealmConfig(**CONFIG | values, num_block_records=len(BLOCKS), searcher_beam_size=6, reader_beam_size=2)
    model = RealmForOpenQA(config, retriever=RealmRetriever([record(block) for block in BLOCKS], tokenizer()), seed=1)
    model.eval().block_emb = embedding.embed_blocks(model.embedder, tokenizer(), BLOCKS)
    return model


def bert_folder(folder: Path) -> Path:
    """`folder`, with a BERT of CONFIG in it and the tokenizer."""
    RealmEmbedder(RealmConfig(**CONFIG), seed=3).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **CONFIG}))
    return folder


class BuilderHere:
    """Builds an index at once, without a process of its own, which takes seconds to start."""

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device

    def request(self, step: int) -> None:
        embedder = (
            RealmEmbedder(RealmConfig.from_pretrained(self.folder / "embedder"), initialize=False)
            .to(self.device)
            .eval()
        )
        embedder.load_state_dict(load_file(self.folder / f"snapshot-{step}.safetensors"))
        tokenizer = RealmTokenizerFast.from_pretrained(self.folder / "embedder")
        refresh._write_index(self.folder, step, embedding.embed_blocks(embedder, tokenizer, BLOCKS))

    def check(self) -> None:
        pass

    def close(self, failed: bool) -> None:
        pass
