"""The CPU search against float64: exact for every compression, on data made to break it."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realm_min import mips
from realm_min.mips import BlockIndex, mips_topk
from realm_min.numpy_reference import mips_topk as reference_topk

PATHS = ("function", None, "bfloat16", "int8")
CASES = settings(deadline=None, derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def search(path, queries, blocks, k):
    return mips_topk(queries, blocks, k) if path == "function" else BlockIndex(blocks, path).search(queries, k)


def rounded_reference(queries, blocks, k):
    """The contract, spelt out: float64 inner products rounded to float32, ties to the smaller id."""
    with np.errstate(over="ignore"):
        scores = (queries.double().numpy() @ blocks.double().numpy().T).astype(np.float32)
    ids = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids


def assert_exact(path, queries, blocks, k):
    scores, ids = search(path, queries, blocks, k)
    expected_scores, expected_ids = rounded_reference(queries, blocks, k)
    assert scores.dtype == torch.float32 and ids.dtype == torch.int64
    assert scores.shape == ids.shape == (queries.shape[0], k)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


@st.composite
def shapes(draw):
    n = draw(st.one_of(st.integers(1, 40), st.integers(1, 700)))
    k = draw(st.one_of(st.integers(1, min(n, 8)), st.integers(1, n), st.just(n)))
    return draw(st.integers(1, 20)), n, draw(st.sampled_from([8, 16, 24, 32, 64, 128, 200])), k


def integers(shape, largest, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("path", PATHS)
@CASES
@given(
    shape=shapes(),
    largest=st.sampled_from([0, 1, 2, 100]),
    dtype=st.sampled_from(mips.BLOCK_DTYPES),
    seed=st.integers(0, 999),
)
def test_integers_match_the_float64_reference_bit_for_bit_ties_included(path, shape, largest, dtype, seed):
    q, n, d, k = shape
    queries, blocks = integers((q, d), largest, seed), integers((n, d), largest, seed + 1, dtype)
    scores, ids = search(path, queries, blocks, k)
    expected_scores, expected_ids = reference_topk(queries.double().numpy(), blocks.double().numpy(), k)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)
