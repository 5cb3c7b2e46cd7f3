"""The Triton kernels under the interpreter, held to the book bit for bit, and to the CPU search."""

from contextlib import nullcontext

import book_models
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realm_min.kernels import mips_topk as kernel
from sizes import cases

from realm_min.search import mips
from realm_min.search.mips import BlockIndex

CASES = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
pytestmark = [
    pytest.mark.skipif(not kernel.INTERPRETED, reason="needs TRITON_INTERPRET=1 before triton is imported"),
    pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered"),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter pays for each program, not for its size."""
    monkeypatch.setattr(kernel, "RESCORE_ELEMENTS", 1 << 17)


def search(path, queries, blocks, k):
    if path == "function":
        return kernel.mips_topk(queries, blocks, k)
    index = BlockIndex(blocks, path)
    return kernel.search(queries, index.blocks, index._codes, k)[:2]


@st.composite
def shapes(draw, dimensions=(8, 24, 128)):
    n = draw(st.integers(1, 300))
    k = draw(st.one_of(st.integers(1, min(n, 4)), st.integers(1, n), st.just(n)))
    return draw(st.sampled_from([1, 1, 2, 3])), n, draw(st.sampled_from(dimensions)), k


def assert_matches_the_book(path, shape, largest, dtype, seed):
    q, n, d, k = shape
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randint(-largest, largest + 1, (q, d), generator=generator).float()
    blocks = torch.randint(-largest, largest + 1, (n, d), generator=generator).to(dtype)
    scores, ids = search(path, queries, blocks, k)
    expected_scores, expected_ids = book_models.search(queries, blocks, k)
    assert scores.dtype == torch.float32 and ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


paths = st.sampled_from(["function", None, "bfloat16", "int8"])
largest = st.sampled_from([0, 1, 2, 100])
dtypes = st.sampled_from(mips.BLOCK_DTYPES)


@settings(CASES, max_examples=cases(36))
@given(path=paths, shape=shapes(), largest=largest, dtype=dtypes, seed=st.integers(0, 999))
def test_integers_match_the_book_ties_included(path, shape, largest, dtype, seed):
    assert_matches_the_book(path, shape, largest, dtype, seed)


@settings(CASES, max_examples=cases(6))
@given(path=paths, shape=shapes((136, 264, 1024)), largest=largest, dtype=dtypes, seed=st.integers(0, 999))
def test_wide_blocks_match_the_book(path, shape, largest, dtype, seed):
    assert_matches_the_book(path, shape, largest, dtype, seed)


@settings(CASES, max_examples=cases(16))
@given(
    path=paths, shape=shapes(), dtype=dtypes, scale=st.sampled_from([-140, -60, 0, 60, 124]), seed=st.integers(0, 999)
)
def test_the_bits_are_those_of_the_cpu_search(path, shape, dtype, scale, seed):
    q, n, d, k = shape
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(q, d, generator=generator) * 2.0 ** (scale / 2)
    blocks = torch.randn(n, d, generator=generator)
    blocks = (blocks if dtype == torch.float16 else blocks * 2.0**scale).to(dtype)
    blocks[n // 2 :] = blocks[: n - n // 2].clone()  # duplicates
    blocks[:, 3] *= 2.0 if dtype == torch.float16 else 2.0 ** (-min(scale, 0) / 2)  # an outlier dimension
    scores, ids = search(path, queries, blocks, k)
    expected_scores, expected_ids = mips.mips_topk(queries, blocks, k)
    np.testing.assert_array_equal(ids.numpy(), expected_ids.numpy())
    np.testing.assert_array_equal(scores.numpy(), expected_scores.numpy())


def test_many_query_tiles_and_query_chunks(monkeypatch):
    monkeypatch.setattr(kernel, "MAXIMA_BYTES", 4 * 1 * 20)
    monkeypatch.setattr(kernel, "KEYS_BYTES", 8 * 128 * 7)
    assert_matches_the_book(None, (33, 100, 16, 5), 3, torch.bfloat16, 0)


def test_small_rescoring_tiles(monkeypatch):
    monkeypatch.setattr(kernel, "RESCORE_ELEMENTS", 4096)
    assert_matches_the_book("function", (2, 200, 16, 9), 3, torch.float32, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("count", [1, 2])
def test_blocks_that_are_not_finite_are_refused_by_row(bad, count):
    blocks = torch.randn(200, 8)
    blocks[150, 3] = blocks[190, 1] = bad
    with pytest.raises(ValueError, match="block 150 "):
        kernel.mips_topk(torch.randn(count, 8), blocks, 3)


def test_a_view_that_is_not_contiguous_or_aligned_is_made_right():
    storage = torch.randn(50 * 16 + 1)
    queries = torch.randn(8, 2).t()
    for blocks in (storage[1:].view(50, 16)[:, :8], storage[1:401].view(50, 8)):
        scores, ids = kernel.mips_topk(queries, blocks, 4)
        expected = mips.mips_topk(queries, blocks, 4)
        assert torch.equal(scores, expected[0]) and torch.equal(ids, expected[1])


@pytest.mark.parametrize("d", [4, 12, 1032])
def test_dimensions_the_kernels_do_not_take_are_named(d):
    with pytest.raises(ValueError, match=f"{d} dimensions"):
        kernel.mips_topk(torch.zeros(1, d), torch.zeros(3, d), 1)


def test_k_above_n_is_refused():
    with pytest.raises(ValueError, match="k is 4"):
        kernel.mips_topk(torch.zeros(1, 8), torch.zeros(3, 8), 4)


def test_compile_variants_cover_what_launches_choose():
    constants = [tuple(sorted(v[3].items())) + (v[1].__name__, str(v[2])) for v in kernel.compile_variants()]
    assert len(set(constants)) == len(constants) == 52


@pytest.mark.parametrize(("count", "launches"), [(1, 2), (2, 3)])  # several queries: one more for the norms
def test_each_launch_is_on_the_device_of_its_tensors(monkeypatch, count, launches):
    """Triton takes the current device, which another GPU's tensors cannot be read from."""
    named = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext(named.append(tensor.shape[1])))
    kernel.mips_topk(torch.ones(count, 8), torch.ones(20, 8), 3)
    assert named == [8] * launches
