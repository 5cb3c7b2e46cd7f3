"""The CPU search against float64: exact for every compression, on data made to break it."""

import contextlib
import sys
from unittest import mock

import book_models
import numpy as np
import processes
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sizes import cases

from realm_min.search import bounds, cpu_search, mips, scan
from realm_min.search.mips import BlockIndex, mips_topk

# The plain function, an index as it is, its codes, and a compressed one's blocks, in each arithmetic.
PATHS = [
    *(("function", arithmetic) for arithmetic in ("torch", "numpy")),
    *(("index", arithmetic) for arithmetic in ("torch", "numpy")),
    *((compression, arithmetic) for compression in ("bfloat16", "int8") for arithmetic in mips.ARITHMETICS),
    ("int8, its blocks", "numpy"),
]
# Buffers and samples so small that few rows fill many of them.
FEW = dict(
    TILE_BYTES=mock.patch.object(scan, "TILE_BYTES", 20_000),
    STAGED_BYTES=mock.patch.object(scan, "STAGED_BYTES", dict(numpy=10_000, torch=10_000)),
    SCORES_BYTES=mock.patch.object(scan, "SCORES_BYTES", dict(numpy=2_000, torch=2_000)),
    SAMPLE_ROWS=mock.patch.object(cpu_search, "SAMPLE_ROWS", (4, 32)),
    PAIRS=mock.patch.object(cpu_search, "PAIRS", 500),
    QUERIES_AT_ONCE=mock.patch.object(cpu_search, "QUERIES_AT_ONCE", 3),
)
CASES = settings(deadline=None, derandomize=True, max_examples=cases(16), suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module", autouse=True)
def few():
    with contextlib.ExitStack() as stack:
        for patch in FEW.values():
            stack.enter_context(patch)
        yield


def index_of(path, blocks):
    kind, arithmetic = path
    compression, _, its_blocks = kind.partition(", ")
    return BlockIndex(
        blocks,
        None if compression == "index" else compression,
        scan="blocks" if its_blocks else "codes",
        arithmetic=arithmetic,
    )


def search(path, queries, blocks, k, index=None):
    if path[0] == "function":
        return mips_topk(queries, blocks, k, arithmetic=path[1])
    return (index or index_of(path, blocks)).search(queries, k)


def rounded(queries, blocks, k):
    """The contract, spelt out: float64 inner products rounded to float32, ties to the smaller id."""
    with np.errstate(over="ignore"):
        scores = (queries.double().numpy() @ blocks.double().numpy().T).astype(np.float32)
    ids = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, 1), ids


def assert_exact(path, queries, blocks, k):
    scores, ids = search(path, queries, blocks, k)
    expected_scores, expected_ids = rounded(queries, blocks, k)
    assert scores.dtype == torch.float32 and ids.dtype == torch.int64
    assert scores.shape == ids.shape == (queries.shape[0], k)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


@st.composite
def shapes(draw):
    n = draw(st.one_of(st.integers(1, 40), st.integers(1, 400)))
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
def test_integers_match_the_book_bit_for_bit_ties_included(path, shape, largest, dtype, seed):
    q, n, d, k = shape
    queries, blocks = integers((q, d), largest, seed), integers((n, d), largest, seed + 1, dtype)
    scores, ids = search(path, queries, blocks, k)
    expected_scores, expected_ids = book_models.search(queries, blocks, k)
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


ADVERSARIES = {
    "plain": lambda blocks, generator: blocks,
    "huge": lambda blocks, generator: blocks * 2.0**123,
    "scores overflow": lambda blocks, generator: blocks * 2.0**125,
    "subnormal": lambda blocks, generator: blocks * 2.0**-140,
    "tiny": lambda blocks, generator: blocks * 2.0**-100,
    "norms from tiny to huge": lambda blocks, generator: (
        blocks * torch.exp2(torch.randint(-140, 120, (len(blocks), 1), generator=generator).float())
    ),
    "outlier dimension": lambda blocks, generator: blocks * torch.tensor([1e6] + [1.0] * (blocks.shape[1] - 1)),
    "outlier row": lambda blocks, generator: torch.cat([blocks[:-1], blocks[-1:] * 1e20]),
    "duplicates": lambda blocks, generator: blocks[torch.arange(len(blocks)) % min(3, len(blocks))],
    "zeros": lambda blocks, generator: torch.zeros_like(blocks),
    "near ties": lambda blocks, generator: blocks[:1] + blocks * 2.0**-22,
    "cancellation": lambda blocks, generator: torch.cat([blocks[:, ::2], -blocks[:, ::2]], 1) * 1e8 + blocks,
}


@pytest.mark.parametrize("path", PATHS)
@settings(CASES, max_examples=cases(20))
@given(
    shape=shapes(),
    adversary=st.sampled_from(sorted(ADVERSARIES)),
    scale=st.sampled_from([-140, -30, 0, 30, 125]),
    seed=st.integers(0, 999),
)
def test_adversarial_data_stays_exact(path, shape, adversary, scale, seed):
    q, n, d, k = shape
    generator = torch.Generator().manual_seed(seed)
    # Few bits a number: float64 sums are exact in any order, so the reference rounds as the search does.
    values = torch.randint(-7, 8, (q + n, d), generator=generator).float()
    queries, blocks = values[:q] * 2.0**scale, ADVERSARIES[adversary](values[q:], generator)
    assert_exact(path, queries, blocks, k)


@pytest.mark.parametrize("path", PATHS)
def test_gaussian_blocks_rescore_little(path):
    generator = torch.Generator().manual_seed(0)
    queries, blocks = torch.randn(7, 64, generator=generator), torch.randn(20_003, 64, generator=generator)
    with mock.patch.object(cpu_search, "SAMPLE_ROWS", (512, 512)):
        assert_exact(path, queries, blocks, 4)
        if path[0] != "function":
            index = index_of(path, blocks)
            search(path, queries, blocks, 4, index)
            report = index.last_search
            assert (report.group_size, report.groups) == (16, 1251)
            assert len(report.rescored_groups) == len(report.rescored_rows) == 7
            assert all(1 <= groups < 80 for groups in report.rescored_groups)
            assert all(4 <= rows < 80 for rows in report.rescored_rows)


def test_candidates_are_rows(monkeypatch):
    """With a large k of int8 codes: of 3,000 answers a query fewer than as many rows again are rescored in vain."""
    monkeypatch.setattr(cpu_search, "SAMPLE_ROWS", (1 << 12, 1 << 14))
    monkeypatch.setattr(cpu_search, "PAIRS", 1 << 22)
    generator = torch.Generator().manual_seed(0)
    queries, blocks = torch.randn(2, 64, generator=generator), torch.randn(60_000, 64, generator=generator)
    index = BlockIndex(blocks, "int8", scan="codes", arithmetic="numpy")
    index.search(queries, 3_000)
    assert all(3_000 <= rows < 6_000 for rows in index.last_search.rescored_rows)


@pytest.mark.parametrize("compression", mips.COMPRESSIONS)
def test_a_sample_and_its_first_half_are_evenly_spaced_and_have_their_rows_bounds(compression):
    codes = bounds.compress(torch.randn(1_000, 8, generator=torch.Generator().manual_seed(0)), compression)
    rows = torch.arange(64) * 1_000 // 64
    sample = cpu_search.sample_codes(codes, 64)
    assert torch.equal(sample.codes, codes.codes[torch.cat([rows[::2], rows[1::2]])])
    assert cpu_search.first_rows(sample, 33) is sample
    half = cpu_search.first_rows(sample, 32)
    assert torch.equal(half.codes, codes.codes[rows[::2]]) and half.exponent == codes.exponent
    for name in ("scale", "residual", "norm"):
        part, all_groups = getattr(half, name), getattr(codes, name)
        assert part is None if all_groups is None else torch.equal(part, all_groups[rows[::2] // 16])
    few = bounds.compress(codes.codes[:5].float(), compression)
    assert len(cpu_search.sample_codes(few, 64).codes) == 5


@pytest.mark.parametrize("path", PATHS)
def test_a_guess_that_was_too_high_is_lowered(path, monkeypatch):
    """All rows of the sample are among the best: what k of N should reach, fewer than k do."""
    scans = []
    monkeypatch.setattr(cpu_search._Search, "_keep", count_calls(cpu_search._Search._keep, scans))
    blocks = integers((1_600, 16), 3, 0)
    step = 1_600 // 32
    blocks[::step] = 40 + integers((32, 16), 3, 1)
    queries = 1 + integers((2, 16), 1, 2).abs()
    for k in (5, 40, 900):
        assert_exact(path, queries, blocks, k)
    assert len(scans) > 3


def test_k_rows_that_were_kept_are_no_proof():
    """Sixteen bad rows of coarse codes reach a guess that was too high, and better ones do not."""
    blocks = torch.zeros(1_600, 16)
    blocks[:, 0] = 20 + torch.arange(1_600) % 7
    blocks[::50, 0] = 100  # the sample
    blocks[16:32] = torch.tensor([1, 1e4] + [39] * 14)  # 146 off, at most, by their codes
    query = torch.zeros(1, 16)
    query[0, 0] = 1
    assert_exact(("int8", "numpy"), query, blocks, 40)


@pytest.mark.parametrize("arithmetic", ["torch", "numpy"])
def test_blocks_that_change_after_they_were_indexed_end_a_search(arithmetic):
    blocks = integers((64, 16), 3, 0)
    index = BlockIndex(blocks, arithmetic=arithmetic)
    blocks[1::2] = torch.nan
    with pytest.raises(ValueError, match="block 1 holds NaN"):
        index.search(torch.ones(1, 16), 40)


def count_calls(function, calls):
    def counted(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return counted


def test_compression_that_fails_costs_time_not_exactness():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(4_000, 32, generator=generator)
    queries = torch.randn(2, 32, generator=generator)
    blocks[:, 0], queries[:, 0] = 1e5, 0.0  # int8 keeps nothing of the other 31 dimensions
    index = BlockIndex(blocks, "int8", scan="codes", arithmetic="torch")
    scores, ids = index.search(queries, 3)
    assert index.last_search.rescored_groups == [index.last_search.groups] * 2
    expected = rounded(queries, blocks, 3)
    np.testing.assert_array_equal(scores.numpy(), expected[0])
    np.testing.assert_array_equal(ids.numpy(), expected[1])


def test_nbytes_counts_what_is_held():
    blocks = torch.randn(160, 16)
    held = 10 * 8  # of bounds
    assert BlockIndex(blocks).nbytes == 160 * 16 * 4 + held
    assert BlockIndex(blocks, "bfloat16").nbytes == 160 * 16 * (4 + 2) + 2 * held
    assert BlockIndex(blocks, "int8").nbytes == 160 * 16 * (4 + 1) + 2 * held + 10 * 4
    assert BlockIndex(blocks.bfloat16(), "bfloat16").nbytes == 160 * 16 * 2 + held  # the blocks are the codes


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (torch.zeros(0, 8), "empty"),
        (torch.zeros(3, 0), "empty"),
        (torch.zeros(8), r"\(8,\)"),
        (torch.zeros(2, 2, 8), r"\(2, 2, 8\)"),
        (torch.zeros(3, 8, dtype=torch.float64), "float64"),
        (torch.zeros(3, 8, dtype=torch.int32), "int32"),
        (np.zeros((3, 8), np.float32), "ndarray"),
    ],
)
def test_blocks_that_cannot_be_searched_are_named(blocks, message):
    with pytest.raises(ValueError, match=message):
        BlockIndex(blocks)
    with pytest.raises(ValueError, match=message):
        mips_topk(torch.zeros(1, 8), blocks, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", mips.BLOCK_DTYPES)
def test_the_first_row_that_is_not_finite_is_named(path, bad, dtype):
    blocks = torch.ones(300, 8, dtype=dtype)
    blocks[123, 4] = blocks[200, 1] = bad
    with pytest.raises(ValueError, match="block 123 holds NaN or infinity"):
        search(path, torch.ones(1, 8), blocks, 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (torch.zeros(1, 8), 0, "k is 0"),
        (torch.zeros(1, 8), -1, "k is -1"),
        (torch.zeros(1, 8), 6, r"k is 6: it must lie in 1\.\.5"),
        (torch.zeros(1, 8), 2.0, "k is 2.0"),
        (torch.zeros(1, 8), True, "k is True"),
        (torch.zeros(1, 9), 1, "9 dimensions, the blocks 8"),
        (torch.zeros(8), 1, r"\(8,\)"),
        (torch.zeros(1, 8, dtype=torch.int64), 1, "int64"),
        (torch.zeros(1, 8, device="meta"), 1, "queries are on meta"),
        (torch.tensor([[0.0] * 8, [float("nan")] * 8]), 1, "query 1 holds NaN"),
        (torch.tensor([[1.0] * 8, [float("inf"), float("-inf")] * 4]), 1, "query 1 holds NaN"),
        (torch.tensor([[float("-inf")] * 8]), 1, "query 0 holds NaN"),
    ],
)
def test_searches_that_cannot_be_done_are_named(path, queries, k, message):
    with pytest.raises(ValueError, match=message):
        search(path, queries, torch.ones(5, 8), k)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", mips.BLOCK_DTYPES)
def test_the_largest_queries_there_are_can_be_searched_with(path, dtype):
    queries = torch.full((3, 8), torch.finfo(dtype).max, dtype=dtype)
    scores, ids = search(path, queries, torch.eye(8)[:5] * 2.0**-10, 1)
    assert ids.tolist() == [[0]] * 3
    np.testing.assert_array_equal(scores.numpy(), (queries[:, :1].double() * 2.0**-10).float().numpy())


def test_other_compressions_are_named():
    with pytest.raises(ValueError, match="'int4'"):
        BlockIndex(torch.ones(5, 8), "int4")


@pytest.mark.parametrize("path", PATHS)
def test_strided_input_half_queries_and_no_queries(path):
    storage = torch.randn(16, 90)
    blocks, queries = storage[:, :80].t(), torch.randn(16, 3).t()
    assert_exact(path, queries, blocks, 5)
    assert_exact(path, queries.bfloat16(), blocks, 5)
    scores, ids = search(path, torch.empty(0, 16), blocks, 5)
    assert scores.shape == ids.shape == (0, 5)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64])
def test_k_may_be_an_integer_of_numpy(kind):
    generator = torch.Generator().manual_seed(0)
    blocks, queries = (torch.randn(rows, 8, generator=generator) for rows in (1000, 2))
    scores, ids = mips_topk(queries, blocks, 100)
    for index in (BlockIndex(blocks), BlockIndex(blocks, "int8")):
        found = index.search(queries, kind(100))  # 100 * 1000 is no uint8 and no int16
        assert torch.equal(found[1], ids) and torch.allclose(found[0], scores)
    assert torch.equal(mips_topk(queries, blocks, kind(100))[1], ids)


def test_keys_rank_scores_then_ids():
    scores = torch.tensor([1.0, -1.0, 0.0, float("inf"), float("-inf"), 1.0, 1e-45, -1e-45])
    ids = torch.tensor([7, 3, 5, 9, 2, 4, (1 << 31) + 5, 0])
    keys = mips.pack_keys(scores, ids)
    ranked, order = mips.unpack_keys(keys.sort(descending=True).values)
    assert order.tolist() == [9, 4, 7, (1 << 31) + 5, 5, 0, 3, 2]
    assert torch.equal(ranked, scores.sort(descending=True).values)


def test_the_module_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; import torch, realm_min.search.mips as m; "
    code += "print(m.mips_topk(torch.ones(1, 8), torch.ones(3, 8), 2)[1].tolist())"
    [(out, _)] = processes.run([sys.executable, "-c", code])
    assert out.strip() == "[[0, 1]]"
