"""Published checkpoints, and the numbers that transformers' own integration tests state for them.

The values are those of `tests/models/realm/test_modeling_realm.py` of transformers 4.40.2, written with four digits.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..config import RealmConfig
from ..interface.embedder import RealmEmbedder
from ..interface.knowledge_encoder import RealmKnowledgeAugEncoder
from ..interface.open_qa import MAX_QUESTION_WORDPIECES, RealmForOpenQA
from ..interface.reader import RealmReader
from ..interface.scorer import RealmScorer
from ..text.retriever import RealmRetriever

KNOWN_TOLERANCE = 1e-4

Folder = str | os.PathLike
Value = float | str


class Known(NamedTuple):
    """A published checkpoint: how to compute its values from a folder, and what they are."""

    compute: Callable[[Folder], list[Value]]
    names: list[str]
    expected: list[Value]


@dataclass
class KnownValue:
    """One value of a published checkpoint beside what this one gives."""

    name: str
    expected: Value
    found: Value
    passed: bool


tensor = functools.partial(torch.tensor, device="cpu")


def ids(sequences: int, tokens: int) -> torch.Tensor:
    """0, 1, 2, … [sequences, tokens]"""
    return torch.arange(sequences * tokens, device="cpu").view(sequences, tokens)


def embedder_values(folder: Folder) -> list[Value]:
    model = RealmEmbedder.from_pretrained(folder)
    return model(ids(1, 6), return_dict=True).projected_score[0, :3].tolist()


def encoder_values(folder: Folder) -> list[Value]:
    model = RealmKnowledgeAugEncoder.from_pretrained(folder, num_candidates=2)
    logits = model(ids(2, 6), relevance_score=tensor([[0.3, 0.7]]), return_dict=True).logits
    return logits[1, :2, :2].flatten().tolist()


def scorer_values(folder: Folder) -> list[Value]:
    model = RealmScorer.from_pretrained(folder, num_candidates=2)
    output = model(ids(1, 6), candidate_input_ids=ids(2, 6), return_dict=True)
    return output.relevance_score[0].tolist()


def reader_values(folder: Folder) -> list[Value]:
    # transformers' test gives a configuration of its own, so that the folder's plays no part.
    sizes = RealmConfig.from_pretrained(folder)
    model = RealmReader.from_pretrained(folder, config=sizes, reader_beam_size=2, max_span_width=3)
    output = model(
        ids(2, 5),
        token_type_ids=tensor([[0, 0, 1, 1, 1]] * 2),
        relevance_score=tensor([0.3, 0.7]),
        block_mask=tensor([[False, False, True, True, False]] * 2),
        return_dict=True,
    )
    return [float(x) for x in (output.block_idx, output.start_pos, output.end_pos)]


QUESTION = "Who is the pioneer in modern computer science?"


def open_qa_values(folder: Folder) -> list[Value]:
    retriever = RealmRetriever.from_pretrained(folder)
    model = RealmForOpenQA.from_pretrained(folder, retriever=retriever)
    question = retriever.tokenizer(
        [QUESTION], padding=True, truncation=True, max_length=MAX_QUESTION_WORDPIECES, return_tensors="pt"
    )
    return [retriever.tokenizer.decode(model(**question, return_dict=True).predicted_answer_ids.tolist())]


KNOWN: dict[str, Known] = {
    "realm-cc-news-pretrained-embedder": Known(
        embedder_values, [f"projected_score[0, {i}]" for i in range(3)], [-0.0714, -0.0837, -0.1314]
    ),
    "realm-cc-news-pretrained-encoder": Known(
        encoder_values,
        [f"logits[1, {token}, {word}]" for token in range(2) for word in range(2)],
        [-11.0888, -11.2544, -10.2170, -10.3874],
    ),
    "realm-cc-news-pretrained-scorer": Known(
        scorer_values, [f"relevance_score[0, {i}]" for i in range(2)], [0.7410, 0.7170]
    ),
    "realm-orqa-nq-reader": Known(reader_values, ["block_idx", "start_pos", "end_pos"], [1.0, 3.0, 3.0]),
    "realm-orqa-nq-openqa": Known(open_qa_values, [f"answer to {QUESTION!r}"], ["alan mathison turing"]),
}


def recognise_known(checkpoint: str) -> str | None:
    """The published checkpoint that a folder or hub name is called after."""
    return next((name for name in KNOWN if name in checkpoint), None)


def compare_known(name: str, folder: Folder, known: dict[str, Known] = KNOWN) -> list[KnownValue]:
    """Each published value of checkpoint `name` beside that of the checkpoint in `folder`.

    Raises:
        ValueError: no values are known under that name.
    """
    if name not in known:
        raise ValueError(f"no values are known of {name!r}: choose one of {', '.join(known)}")
    compute, names, expected = known[name]
    return [
        KnownValue(label, value, found, agree(value, found))
        for label, value, found in zip(names, expected, compute(folder), strict=True)
    ]


def agree(expected: Value, found: Value) -> bool:
    if isinstance(expected, str) or isinstance(found, str):
        return found == expected
    return abs(found - expected) <= KNOWN_TOLERANCE
