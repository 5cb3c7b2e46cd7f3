"""Drawn configurations, weights and inputs that several tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

ACTIVATIONS = ("gelu", "gelu_new", "relu", "selu", "silu")


@st.composite
def config_values(draw: st.DrawFn) -> dict[str, Any]:
    """Keyword arguments of a `RealmConfig` small enough to run hundreds of: odd sizes, one head, one layer."""
    heads = draw(st.integers(1, 3))
    return {
        "vocab_size": draw(st.integers(7, 19)),
        "hidden_size": heads * draw(st.integers(2, 5)) if heads > 1 else draw(st.integers(3, 9)),
        "num_attention_heads": heads,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "intermediate_size": draw(st.integers(1, 13)),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "max_position_embeddings": 13,
        "type_vocab_size": draw(st.integers(2, 3)),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-5])),
        "retriever_proj_size": draw(st.integers(3, 8)),
        "num_candidates": draw(st.integers(1, 4)),
        "span_hidden_size": draw(st.integers(2, 7)),
        "max_span_width": draw(st.integers(1, 5)),
        "reader_beam_size": draw(st.integers(1, 4)),
        "num_block_records": draw(st.integers(4, 11)),
        "searcher_beam_size": draw(st.integers(1, 4)),
    }


def fill(state: dict[str, Any], seed: int, scale: float) -> None:
    """Give every floating-point torch tensor of a state dict normal values in place, LayerNorm weights around 1.

    Keys go in their order; tensors that share memory are filled twice, which leaves them shared.
    """
    import torch

    rng = np.random.default_rng(seed)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            values = scale * rng.standard_normal(tuple(tensor.shape))
            if name.endswith(("LayerNorm.weight", "layer_normalization.weight")):
                values = 1.0 + values
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(values))


def to_numpy(state: dict[str, Any]) -> dict[str, np.ndarray]:
    """A torch state dict as the book takes it."""
    return {name: tensor.detach().double().numpy().copy() for name, tensor in state.items()}


def attention_masks(draw: st.DrawFn, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Padding on the right, holes anywhere, or nothing but padding in some rows: int64 of 0 and 1."""
    kind = draw(st.sampled_from(["all", "padding", "holes", "one row masked"]))
    mask = np.ones(shape, np.int64)
    rows = mask.reshape(-1, shape[-1])
    if kind == "padding":
        lengths = rng.integers(1, shape[-1] + 1, len(rows))
        rows[:] = np.arange(shape[-1]) < lengths[:, None]
    elif kind == "holes":
        rows[:] = rng.integers(0, 2, rows.shape)
    elif kind == "one row masked":
        rows[rng.integers(len(rows))] = 0
    return mask


def encoder_inputs(
    draw: st.DrawFn, values: dict[str, Any], shape: tuple[int, ...], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Inputs of the encoder for sequences of `shape` [..., tokens]: each optional one is there or not.

    `position_ids` and `inputs_embeds` are of the flat shape, as the models take them.
    """
    rows, tokens = int(np.prod(shape[:-1])), shape[-1]
    inputs: dict[str, np.ndarray] = {}
    if draw(st.booleans()):
        inputs["input_ids"] = rng.integers(0, values["vocab_size"], shape)
    else:
        inputs["inputs_embeds"] = rng.standard_normal((rows, tokens, values["hidden_size"]))
    if draw(st.booleans()):
        inputs["attention_mask"] = attention_masks(draw, rng, shape)
    if draw(st.booleans()):
        inputs["token_type_ids"] = rng.integers(0, values["type_vocab_size"], shape)
    position_rows = draw(st.sampled_from([0, 1, rows]))
    if position_rows:
        inputs["position_ids"] = rng.integers(0, values["max_position_embeddings"], (position_rows, tokens))
    inputs.update(head_masks(draw, values, rng))
    return inputs


def head_masks(draw: st.DrawFn, values: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    shape = draw(st.sampled_from([None, (heads,), (layers, heads)]))
    return {} if shape is None else {"head_mask": rng.integers(0, 2, shape).astype(np.float64)}


def reader_extras(
    draw: st.DrawFn, values: dict[str, Any], retrieved: int, tokens: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Relevance scores, block masks (some all false) and, sometimes, gold spans (some absent, some past the end)."""
    extras = {
        "relevance_score": draw(st.sampled_from([0.0, 1.0, 30.0])) * rng.standard_normal(retrieved),
        "block_mask": rng.random((retrieved, tokens)) < draw(st.sampled_from([0.0, 0.5, 1.0])),
    }
    if draw(st.booleans()):
        answers = draw(st.integers(1, 3))
        start = rng.integers(-1, tokens + 2, (retrieved, answers))
        extras["start_positions"] = start
        extras["end_positions"] = np.where(start < 0, -1, start + rng.integers(0, 4, start.shape))
        extras["has_answers"] = rng.random(retrieved) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return extras


def assert_close(actual: Any, expected: Any, tolerance: float, name: str = "") -> None:
    """Same shape, same kind, and no element further off than `tolerance` times the largest expected value.

    NaN equals NaN and each infinity itself; tuples and lists are compared element by element, None equals None.
    """
    if expected is None or actual is None:
        assert actual is None and expected is None, f"{name}: {actual} and {expected}"
        return
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected), f"{name}: {len(actual)} items, expected {len(expected)}"
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert_close(a, e, tolerance, f"{name}[{i}]")
        return
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, expected {expected.shape}"
    if expected.dtype.kind in "bi":
        np.testing.assert_array_equal(actual, expected, err_msg=name)
        return
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    # Masked scores near the largest float are compared relative to themselves, or they would hide all others.
    ordinary = np.abs(expected) < 1e30
    # An answer of 0 is what remains of larger terms: allow for their rounding, 1e-14 at a tolerance of 1e-10.
    largest = np.abs(expected[ordinary]).max(initial=1e-4)
    np.testing.assert_allclose(actual[ordinary], expected[ordinary], rtol=0, atol=tolerance * largest, err_msg=name)
    np.testing.assert_allclose(actual[~ordinary], expected[~ordinary], rtol=tolerance, atol=0, err_msg=name)


def assert_same_answer(
    actual: Any, expected: Any, logits: np.ndarray, spans: tuple[np.ndarray, np.ndarray], tolerance: float
) -> None:
    """block_idx, candidate, start_pos and end_pos of a reader are the expected ones; `logits` are of all `spans`.

    Where the best logits are closer to each other than the tolerance, rounding may choose any of them.
    """
    scale = tolerance * max(1.0, np.abs(logits[np.abs(logits) < 1e30]).max(initial=0.0))
    for field, axis in (("block_idx", 1), ("candidate", 0)):
        best = logits.max(axis=axis)
        chosen = np.asarray(getattr(actual, field))
        assert chosen.shape == ()
        if np.sum(best >= best.max() - scale) == 1:
            assert chosen == np.asarray(getattr(expected, field)), field
        else:
            assert best[chosen] >= best.max() - scale, field
    for field, tokens in zip(("start_pos", "end_pos"), spans, strict=True):
        np.testing.assert_array_equal(getattr(actual, field), tokens[[actual.candidate]])
