"""The Triton kernels under the interpreter, held to the book bit for bit, and to the CPU search."""

import math

import book_models
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from operations import counted
from realm_min.kernels import mips_topk as kernel
from sizes import cases

from realm_min.search import mips
from realm_min.search.mips import BlockIndex

CASES = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
pytestmark = [
    pytest.mark.skipif(not kernel.INTERPRETED, reason="needs TRITON_INTERPRET=1 before triton is imported"),
    pytest.mark.filterwarnings(
        "ignore:overflow encountered", "ignore:invalid value encountered", "ignore:All-NaN slice encountered"
    ),
]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter pays for each program, not for its size. What is few for a GPU is much for a test."""
    monkeypatch.setattr(kernel, "TILE_ELEMENTS", 1 << 17)
    monkeypatch.setattr(kernel, "FEW_SCORES", 0)


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
@given(path=paths, shape=shapes((7, 100, 136, 300, 1030)), largest=largest, dtype=dtypes, seed=st.integers(0, 999))
def test_wide_blocks_match_the_book(path, shape, largest, dtype, seed):
    assert_matches_the_book(path, shape, largest, dtype, seed)


@pytest.mark.parametrize("path", ["function", None, "bfloat16", "int8"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("finite", [0, 2])
def test_scores_beyond_float32_are_equal(path, sign, finite):
    """They round to infinity, all the same, so the first rows count, though the bounds tell them apart."""
    generator = torch.Generator().manual_seed(0)
    queries = sign * torch.randn(1, 8, generator=generator).abs() * 2.0**62
    blocks = torch.randn(300, 8, generator=generator).abs() * 2.0**124
    blocks[200 : 200 + finite] *= 2.0**-120
    scores, ids = search(path, queries, blocks, 4)
    if sign > 0:
        assert ids.tolist() == [[0, 1, 2, 3]] and scores.isposinf().all()
    else:
        assert set(ids[0, :finite].tolist()) == set(range(200, 200 + finite)) and scores[0, :finite].isfinite().all()
        assert ids[0, finite:].tolist() == list(range(4 - finite)) and scores[0, finite:].isneginf().all()


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


@settings(CASES, max_examples=cases(8))
@given(
    shape=shapes((8, 100)),
    largest=largest,
    dtype=dtypes,
    seed=st.integers(0, 999),
    tile=st.sampled_from([2048, 1 << 17]),
)
def test_few_rows_are_all_scored(shape, largest, dtype, seed, tile):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "FEW_SCORES", 1 << 20)
        patch.setattr(kernel, "TILE_ELEMENTS", tile)
        assert_matches_the_book("function", shape, largest, dtype, seed)
        index = BlockIndex(torch.ones(shape[1], 8), "int8")
        report = kernel.search(torch.ones(2, 8), index.blocks, index._codes, 1)[2]
    assert report.rescored_rows == [shape[1]] * 2 and report.rescored_groups == [report.groups] * 2


def test_many_query_tiles_and_query_chunks(monkeypatch):
    monkeypatch.setattr(kernel, "ENDS_BYTES", 4 * 7 * 20)
    monkeypatch.setattr(kernel, "KEYS_BYTES", 8 * 128 * 7)
    assert_matches_the_book(None, (33, 100, 16, 5), 3, torch.bfloat16, 0)


def test_small_rescoring_tiles(monkeypatch):
    monkeypatch.setattr(kernel, "TILE_ELEMENTS", 4096)
    assert_matches_the_book("function", (2, 200, 16, 9), 3, torch.float32, 1)


@pytest.mark.parametrize("context", ["gradients", "inference mode", "bfloat16", "float64"])
@pytest.mark.parametrize("count", [1, 2])
def test_what_torch_is_set_to_changes_nothing(context, count):
    generator = torch.Generator().manual_seed(3)
    queries, blocks = torch.randn(count, 24, generator=generator), torch.randn(60, 24, generator=generator)
    expected = mips.mips_topk(queries, blocks, 4)
    default = torch.get_default_dtype()
    try:
        if context == "gradients":
            queries.requires_grad_()
            blocks.requires_grad_()
        elif context != "inference mode":
            torch.set_default_dtype(getattr(torch, context))
        with torch.inference_mode(context == "inference mode"):
            scores, ids = kernel.mips_topk(queries.clone(), blocks.clone(), 4)
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(scores, expected[0]) and torch.equal(ids, expected[1])
    assert scores.dtype == torch.float32 and not scores.requires_grad


@pytest.mark.parametrize("few", [0, 1 << 20])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("count", [1, 2])
def test_numbers_that_are_not_finite_are_refused_by_row(monkeypatch, few, bad, count):
    monkeypatch.setattr(kernel, "FEW_SCORES", few)
    queries = torch.randn(count, 8)
    queries[count - 1, 5] = bad
    with pytest.raises(ValueError, match=f"query {count - 1} "):
        kernel.mips_topk(queries, torch.randn(200, 8), 3)
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


def test_k_above_n_is_refused():
    with pytest.raises(ValueError, match="k is 4"):
        kernel.mips_topk(torch.zeros(1, 8), torch.zeros(3, 8), 4)


def test_compile_variants_are_each_of_their_own():
    variants = list(kernel.compile_variants())
    assert len({name for name, *_ in variants}) == len({repr(variant[1:]) for variant in variants}) == len(variants)
    assert len(variants) >= 100


@pytest.mark.parametrize("count", [1, 2])
def test_launches_are_on_the_device_of_their_tensors(monkeypatch, count):
    """Triton takes the current device, which another GPU's tensors cannot be read from."""
    entered = []
    phases = {name: getattr(kernel, name) for name in kernel.PHASES}

    class Device:
        def __init__(self, tensor):
            assert tensor.shape == (20, 8)

        def __enter__(self):
            entered.append("in")

        def __exit__(self, *_):
            entered.append("out")

    for name, phase in phases.items():
        monkeypatch.setattr(kernel, name, lambda *a, phase=phase, name=name: (entered.append(name), phase(*a))[1])
    monkeypatch.setattr(torch.cuda, "device_of", Device)
    kernel.mips_topk(torch.ones(count, 8), torch.ones(20, 8), 3)
    assert entered == ["in", *kernel.PHASES, "out"]


# ------------------------------------------------------------------------------------------ what the host does of it


# Views, and memory that nothing is written to: no work for a GPU.
FREE = {"empty", "empty_like", "detach", "split", "slice", "view", "alias", "select", "new_empty", "lift_fresh"}


@pytest.mark.parametrize(("path", "count"), [(None, 1), (None, 5), ("bfloat16", 5), ("int8", 1), ("int8", 5)])
def test_a_search_is_few_operations_and_waits_for_the_device_once(monkeypatch, path, count):
    index = BlockIndex(torch.randn(700, 16), path)
    queries = torch.randn(count, 16)
    waited, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: (waited.append(tensor.shape), tolist(tensor))[1])
    with counted(monkeypatch, kernel) as names:
        kernel.search(queries, index.blocks, index._codes, 3)
    scan = "scan_one_kernel" if count == 1 and path != "int8" else "scan_many_kernel"
    assert [name for name in names if name not in FREE] == [
        *("zeros", "prepare_kernel", scan, "topk", "amin", "certify_kernel", "filter_kernel", "rescore_kernel"),
        *("topk", "unpack_kernel"),
    ]  # and none that stops the host
    assert waited == [(3 + 2 * count,)]


def test_int8_rescores_rows_not_groups(monkeypatch):
    n, k = 409_600, 153
    config = kernel.scan_config
    monkeypatch.setattr(kernel, "scan_config", lambda *a: config(*a) | dict(ROWS=8192))  # fewer programs
    monkeypatch.setattr(kernel, "CERTIFY_GROUPS", 1 << 15)
    generator = torch.Generator().manual_seed(0)
    blocks, queries = torch.randn(n, 128, generator=generator), torch.randn(1, 128, generator=generator)
    index = BlockIndex(blocks, "int8")
    scores, ids, report = kernel.search(queries, index.blocks, index._codes, k)
    assert report.group_size == 16
    assert max(report.rescored_rows) <= 4000
    expected_scores, expected_ids = mips.mips_topk(queries, blocks, k)
    assert torch.equal(ids, expected_ids) and torch.equal(scores, expected_scores)


@pytest.mark.parametrize(("path", "room"), [(None, (1, 0)), ("int8", (1, 30))])
def test_too_little_room_is_made_larger(monkeypatch, path, room):
    """All rows are equal, so that all are candidates."""
    monkeypatch.setattr(kernel, "ROOM", room)
    blocks = torch.ones(70, 8)
    index = BlockIndex(blocks, path)
    queries = torch.tensor([[1.0] * 8, [-1.0] * 8, [0.0] * 8])
    for budget in (kernel.KEYS_BYTES, 8 * 50):  # all queries at once, and in halves
        monkeypatch.setattr(kernel, "KEYS_BYTES", budget)
        scores, ids, report = kernel.search(queries, index.blocks, index._codes, 5)
        assert ids.tolist() == [[0, 1, 2, 3, 4]] * 3
        assert scores[:, 0].tolist() == [8.0, -8.0, 0.0]
        assert report.rescored_rows == [70] * 3


# ----------------------------------------------------------------------------------------- each term of the bound
# The interpreter's products are as coarse as a tensor core's may be, so that a bound that is too narrow fails here.


def assert_bound_holds(query, index):
    """The lower end of each group is no larger than its best score, and a threshold at that score lets it pass.

    query [D]; scores in float64. The query is scanned alone, and several times, each with another group's best score
    as its threshold.
    """
    codes = index._codes
    n = len(index)
    groups = -(-n // 16)
    exact = torch.full((groups * 16,), -float("inf"), dtype=torch.float64)
    exact[:n] = index.blocks.double() @ query.double()
    best = exact.view(groups, 16).amax(1)
    unit = unit_of(query, codes)
    for copies in (1, max(2, groups)):
        prepared = kernel.prepare(query.expand(copies, -1).contiguous(), codes)
        scanned = kernel.scan(prepared, codes, 16)
        assert (scanned.ends.double() * unit <= best).all()
    # Where the quotient is rounded up to a float32, the score does not reach it.
    thresholds = torch.nextafter((best / unit).float(), torch.tensor(-float("inf")))
    thresholds = torch.cat([thresholds, thresholds[:1].expand(copies - groups)])
    keys = kernel.rescore(prepared, scanned, thresholds, index.blocks, codes, copies * groups, n)
    for group in range(groups):
        found = mips.unpack_keys(keys[group])[1]  # ids; those of empty places are none of these
        assert int(exact[group * 16 :][:16].argmax()) + group * 16 in found.tolist()


def unit_of(query, codes):
    """One in the scan's arithmetic, in true scores: as `prepare_kernel` chooses it."""
    if codes.scale is not None:
        return float(query.double().abs().max()) / 127 * 2.0**codes.exponent
    return 2.0 ** (math.frexp(float(query.double().norm()))[1] + 6)


def signs(d, seed):
    return torch.randint(0, 2, (d,), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


dimensions = st.sampled_from([8, 24, 128, 300])
seeds = st.integers(0, 99)


@settings(CASES, max_examples=cases(8))
@given(d=dimensions, sign=st.sampled_from([1.0, -1.0]), seed=seeds)
def test_the_bound_allows_for_tensor_cores_that_cut_float32(d, sign, seed):
    """All 13 bits that are cut are set: each product is off by nearly 2**-9, all to the same side."""
    cut = torch.full((d,), 2.0 - 2.0**-23) * 1.0009765  # not one bit pattern for all
    cut = (cut.view(torch.int32) | 8191).view(torch.float32) * signs(d, seed)
    assert_bound_holds(cut, BlockIndex(torch.stack([cut, cut * 0.5, cut * 2]) * sign))


@settings(CASES, max_examples=cases(8))
@given(d=dimensions, path=st.sampled_from([None, "bfloat16"]), seed=seeds)
def test_the_bound_allows_for_the_rounding_of_sums(d, path, seed):
    """Large products cancel: what is left is the rounding of the sum. Queries and blocks are their own codes."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(60, d // 2, generator=generator).bfloat16().float()
    other = -(half.view(torch.int32) ^ 0x10000).view(torch.float32)  # but for the last bit of a bfloat16
    query = torch.randn(d // 2, generator=generator).bfloat16().float()
    assert_bound_holds(torch.cat([query, query]), BlockIndex(torch.cat([half, other], dim=1), path))


@settings(CASES, max_examples=cases(8))
@given(d=dimensions, path=st.sampled_from(["bfloat16", "int8"]), sign=st.sampled_from([1.0, -1.0]), seed=seeds)
def test_the_bound_allows_for_the_coding_of_the_query(d, path, sign, seed):
    """Blocks lie along what the query loses, and are their own codes: Cauchy-Schwarz is an equality."""
    query = signs(d, seed) * (1 + 2.0**-9 * 0.99 if path == "bfloat16" else 0.49 / 127 + 3 / 127)
    query[0] = 1.0
    lost = signs(d, seed) * (query != 1.0)
    assert_bound_holds(query, BlockIndex(torch.stack([lost, -lost, lost * 2]) * sign, path))


@settings(CASES, max_examples=cases(8))
@given(d=dimensions, path=st.sampled_from(["bfloat16", "int8"]), sign=st.sampled_from([1.0, -1.0]), seed=seeds)
def test_the_bound_allows_for_the_coding_of_the_blocks(d, path, sign, seed):
    """The query lies along what the blocks lose, and is its own code."""
    along = signs(d, seed)
    along[0] = 0.0 if d > 8 else along[0]
    lost = 1 + 2.0**-9 * 0.99 if path == "bfloat16" else (3 + 0.49) / 127
    block = along * lost * sign
    block[0] = 1.0
    assert_bound_holds(along, BlockIndex(torch.stack([block, block.clone()]), path))


@settings(CASES, max_examples=cases(6))
@given(d=dimensions, scale=st.sampled_from([2.0**-127, 2.0**-140, 2.0**-126]), seed=seeds)
def test_the_bound_allows_for_numbers_taken_for_zero(d, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(20, d, generator=generator).abs() * scale
    assert_bound_holds(torch.randn(d, generator=generator).abs(), BlockIndex(blocks))
    assert_bound_holds(torch.randn(d, generator=generator).abs(), BlockIndex(-blocks))


@pytest.mark.parametrize("path", ["function", None, "bfloat16", "int8"])
@pytest.mark.parametrize("count", [1, 2])
def test_scores_that_round_to_zero_are_ties(path, count):
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(count, 8, generator=generator) * 2.0**-70
    blocks = torch.randn(200, 8, generator=generator) * 2.0**-90
    scores, ids = search(path, queries, blocks, 3)
    assert ids.tolist() == [[0, 1, 2]] * count and not scores.any()


@pytest.mark.parametrize("count", [1, 2])
def test_tiny_norms_are_not_flushed(count):
    """Squares of these blocks lie below the smallest float32, and one row in a thousand decides."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        queries = torch.randn(2, 8, generator=generator)
        blocks = queries[:1] / queries[:1].norm() + 2e-4 * torch.randn(500, 8, generator=generator)
        blocks = blocks * 2.0**-64
        scores, ids = kernel.mips_topk(queries[:count], blocks, 1)
        expected_scores, expected_ids = book_models.search(queries[:count], blocks, 1)
        np.testing.assert_array_equal(ids.numpy(), expected_ids)
        np.testing.assert_array_equal(scores.numpy(), expected_scores.astype(np.float32))


@settings(CASES, max_examples=cases(6))
@given(count=st.sampled_from([1, 2]), d=dimensions, scale=st.sampled_from([-145, -100, -70, 0, 60, 124]), seed=seeds)
def test_norms_taken_on_the_way_are_those_of_float64(count, d, scale, seed):
    """Where squares of float32 would vanish, or overflow, too."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(40, d, generator=generator).clamp(-7, 7) * 2.0**scale
    codes = kernel.bounds.Codes(blocks, None, 0, None, None)
    found = kernel.scan(kernel.prepare(torch.ones(count, d), codes), codes, 16).norm
    expected = torch.nn.functional.pad(blocks.double().norm(dim=1), (0, 8)).view(3, 16).amax(1)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-12)
