"""The five models, transformers' and ours, of the same tiny random weights; what they are called with."""

from __future__ import annotations

import functools
from typing import Any

import drawn_cases
import torch
from oracle import transformers

import realm_min

MODELS = ("RealmEmbedder", "RealmScorer", "RealmKnowledgeAugEncoder", "RealmReader", "RealmForOpenQA")
SIZES = dict(
    vocab_size=61, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
    max_position_embeddings=17, retriever_proj_size=7, span_hidden_size=5, num_block_records=9, searcher_beam_size=3,
    reader_beam_size=2, num_candidates=2, max_span_width=3, initializer_range=0.3,
)  # fmt: skip
BATCH, TOKENS = 2, 6
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
TYPES = torch.tensor([[0, 0, 1, 1, 1, 1]] * 2)
ONE = dict(input_ids=IDS, attention_mask=MASK, token_type_ids=TYPES)
PAIRS = IDS[:, None].repeat(1, 2, 1) + torch.tensor([0, 20])[None, :, None]
MASKS, PAIR_TYPES = (x[:, None].repeat(1, 2, 1) for x in (MASK, TYPES))
# What each model is called with; a RealmForOpenQA needs a retriever.
INPUTS: dict[str, dict[str, Any]] = {
    "RealmEmbedder": ONE,
    "RealmScorer": dict(
        **ONE, candidate_input_ids=PAIRS, candidate_attention_mask=MASKS,
        candidate_token_type_ids=PAIR_TYPES,
    ),
    "RealmKnowledgeAugEncoder": dict(
        input_ids=PAIRS, attention_mask=MASKS,
        token_type_ids=PAIR_TYPES, relevance_score=torch.tensor([[0.3, 0.7], [1.0, -1.0]]),
        labels=torch.tensor([[5, -100, 6, 7, -100, 8]] * 2), mlm_mask=torch.tensor([[1, 0, 1, 1, 0, 0]] * 2),
    ),
    "RealmReader": dict(
        **ONE, relevance_score=torch.tensor([0.5, -0.2, 0.1]), block_mask=TYPES.bool()[[0, 0, 0]],
        start_positions=torch.tensor([[2, -1], [3, 4], [2, 2]]), end_positions=torch.tensor([[3, -1], [3, 5], [2, 3]]),
        has_answers=torch.tensor([True, True, False]),
    ),
}  # fmt: skip


@functools.cache
def twins(name: str) -> tuple[Any, Any]:
    """transformers' model and ours of `SIZES`, in evaluation mode. Tests leave them as they are."""
    theirs = getattr(transformers, name)(transformers.RealmConfig(**SIZES)).eval()
    drawn_cases.fill(theirs.state_dict(), seed=MODELS.index(name), scale=0.3)
    ours = getattr(realm_min, name)(realm_min.RealmConfig(**SIZES), initialize=False).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def new(name: str, seed: int = 0, **values: Any) -> Any:
    """A model of ours that a test may change, in evaluation mode."""
    return getattr(realm_min, name)(realm_min.RealmConfig(**SIZES | values), seed=seed).eval()


def plain(value: Any) -> Any:
    """A result in a form that both sides' can be compared in: numbers rounded to what float32 allows."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().double()
        return str(value.dtype), tuple(value.shape), [round(x, 4) + 0.0 for x in numbers.flatten().tolist()]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6)
    if value is None or isinstance(value, (bool, int, str, torch.dtype, torch.device, torch.Size)):
        return value
    return type(value).__name__


def result(behaviour: Any, *given: Any) -> Any:
    """What a behaviour gives, `plain`; an error as its class of the standard library."""
    try:
        return plain(behaviour(*given))
    except Exception as error:
        standard = (
            KeyError,
            IndexError,
            AttributeError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
            OSError,
        )
        return "raises", next((kind.__name__ for kind in standard if isinstance(error, kind)), "Exception")
