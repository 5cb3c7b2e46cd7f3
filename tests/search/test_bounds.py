"""The error bound, term by term: on data that come near to each of its terms, a smaller one would be broken."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.search import bounds, cpu_search, mips, scan
from realm_min.search.bounds import Codes, Rounding, pair_ends, rounding, scan_queries

NOTHING = Rounding(0.0, 0.0, 0.0)
D = 64


def codes_of(rows, compression=None):
    """Codes of which each of `rows` [n, D] is a base group."""
    return bounds.compress(rows.repeat_interleave(16, 0), compression)


def share_of_bound(values, queries, codes, rows, errors):
    """How far off products [n, Q] are, as the share of their bound: the largest, which may not be above 1."""
    n, q = values.shape
    pairs = np.arange(n).repeat(q), np.tile(np.arange(q), n), values.double().flatten().numpy()
    lower, upper = pair_ends(pairs, codes, queries, errors)
    true = (rows.double() @ queries.exact.t()).flatten().numpy()
    return float((np.abs(true - (lower + upper) / 2) / ((upper - lower) / 2)).max())


def exact_products(codes, queries):
    """What an arithmetic without rounding makes of the codes and queries: [base groups, Q] float64."""
    return codes.codes[::16].double() @ queries.codes.double().t()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("compression", mips.COMPRESSIONS)
@pytest.mark.parametrize("dtype", mips.BLOCK_DTYPES)
def test_the_bounds_hold_row_by_row(compression, dtype):
    generator = torch.Generator().manual_seed(1)
    blocks = (torch.randn(333, 40, generator=generator) * torch.randn(333, 1, generator=generator).exp()).to(dtype)
    codes = bounds.compress(blocks, compression)
    coded = codes.codes.double()
    if codes.scale is not None:
        coded = coded * codes.scale.double().repeat_interleave(16)[:333, None] * 2.0**codes.exponent
    norm = codes.norm.repeat_interleave(16)[:333]
    assert (coded.norm(dim=1) <= norm).all() and (norm < 100 * blocks.double().norm(dim=1).max()).all()
    if codes.residual is None:
        assert torch.equal(coded, blocks.double())
    else:
        error = (coded - blocks.double()).norm(dim=1)
        assert (error <= codes.residual.repeat_interleave(16)[:333]).all()
        assert codes.residual.max() < 0.05 * norm.max()


@pytest.mark.parametrize("compression", ["bfloat16", "int8"])
def test_the_residual_is_reached_by_a_query_along_it(compression):
    rows = normal(20, D)
    codes = codes_of(rows, compression)
    scale = 1.0 if codes.scale is None else codes.scale[:, None].double() * 2.0**codes.exponent
    along = (rows.double() - codes.codes[::16].double() * scale).float()  # e - ê
    queries = scan_queries(along, codes, torch.float32)
    share = share_of_bound(exact_products(codes, queries), queries, codes, rows, NOTHING)
    assert 0.99 < share <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_rounding_of_the_query_is_reached_by_a_row_along_it(dtype):
    asked = normal(1, D)
    nothing = codes_of(torch.ones(1, D), "int8" if dtype == torch.int8 else "bfloat16")
    coded = scan_queries(asked, nothing, dtype)
    along = coded.exact - coded.codes.double() * coded.unit[:, None] / 2.0**nothing.exponent  # q - q̂
    rows = (along / along.abs().max() * 127).round().float()  # codes hold them as they are
    codes = codes_of(rows, "int8" if dtype == torch.int8 else "bfloat16")
    queries = scan_queries(asked, codes, dtype)
    share = share_of_bound(exact_products(codes, queries), queries, codes, rows, NOTHING)
    assert 0.99 < share <= 1


def cut(values, bits):
    """float64 values with all but the first `bits` of their mantissa dropped, as coarse hardware does."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.trunc(mantissa * 2.0**bits), exponent - bits)


def cut_product(row, query):
    """An inner product whose products and partial sums are cut to float32, not rounded."""
    total = 0.0
    for a, b in zip(row.tolist(), query.tolist(), strict=True):
        total = float(cut(total + float(cut(a * b, 24)), 24))
    return total


@pytest.mark.parametrize("d", [8, 128, 1024])
def test_gamma_covers_sums_that_are_cut_at_every_step(d):
    """One large product, and d - 1 that are each just too small to change the sum: all of them are lost."""
    small = math.sqrt(0.99 * 2.0**-23)
    rows = torch.full((1, d), small)
    rows[:, 0] = 1.0
    codes = codes_of(rows)
    queries = scan_queries(rows, codes, torch.float32)
    value = cut_product(codes.codes[0].double(), queries.codes[0].double())
    errors = rounding(d, stored=0.0)
    share = share_of_bound(torch.tensor([[value]]), queries, codes, rows, errors)
    assert 0.97 * 2 * (d - 1) / (4 * d + 16) < share <= 1  # at most a half: there is room to spare


@pytest.mark.parametrize(
    ("stored", "lost", "store"),
    [
        (2.0**-8, 0.99 * 2.0**-8, lambda value: value.bfloat16().double()),  # rounded
        (2.0**-22, 0.99 * 2.0**-23, lambda value: torch.from_numpy(cut(value.numpy(), 24))),  # cut
    ],
)
def test_rho_covers_results_that_are_stored(stored, lost, store):
    rows = torch.tensor([[1.0, lost] + [0.0] * (D - 2)])
    codes = codes_of(rows)
    queries = scan_queries(torch.ones(1, D), codes, torch.float32)
    value = store(exact_products(codes, queries))
    share = share_of_bound(value, queries, codes, rows, Rounding(0.0, stored, 0.0))
    assert 0.98 * lost / stored < share <= 1


def test_native_products_of_bfloat16_are_given_the_room_they_need():
    blocks = normal(400, D).bfloat16()
    codes = bounds.compress(blocks, None)
    asked = normal(30, D, seed=1).bfloat16().float()  # no rounding of its own
    queries = scan.coded_queries(asked, codes, "native")
    values = scan.all_products(codes, queries, "native")  # stored as bfloat16
    codes.norm = blocks.double().norm(dim=1)
    errors = scan.scan_errors(codes, "native")
    assert share_of_bound(values, queries, codes, blocks, errors) <= 1
    too_small = errors._replace(rho=2.0**-22)
    assert share_of_bound(values, queries, codes, blocks, too_small) > 1


def test_eta_covers_products_that_vanish():
    """Each just under the smallest normal number, and taken for zero."""
    rows = torch.full((1, D), 0.99 * 2.0**-116)
    codes = codes_of(rows)
    queries = scan_queries(torch.ones(1, D), codes, torch.float32)
    assert float(queries.codes[0, 0].double() * rows[0, 0].double()) == pytest.approx(0.99 * 2.0**-126)
    share = share_of_bound(torch.zeros(1, 1), queries, codes, rows, rounding(D, 2.0**-22)._replace(gamma=0.0))
    assert 0.24 < share <= 1


@given(st.floats(-3e38, 3e38), st.floats(-1, 1))
@settings(derandomize=True, max_examples=200)
def test_just_below_is_under_all_that_rounds_to_the_same(score, place):
    stored = np.float32(score)
    near = float(stored) + place * 0.499 * float(np.spacing(np.abs(stored)))
    if np.float32(near) == stored:
        assert float(bounds.just_below(np.array(float(stored)))) < near
        below = float(bounds.just_below(np.array(near)))
        assert below == float(np.nextafter(stored, np.float32(-np.inf)))


@given(
    w=st.sampled_from([-1.0, 1.0]),
    norm=st.sampled_from([0.0, 1e-3, 1.0]),
    residual=st.sampled_from([0.0, 0.5]),
    arithmetic=st.sampled_from(mips.ARITHMETICS),
    seed=st.integers(0, 99),
)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_whatever_reaches_a_threshold_reaches_its_limit(w, norm, residual, arithmetic, seed):
    """The threshold is the upper end itself, of a number that the scan could have found."""
    value = w * float((1 + normal(1, seed=seed).abs()).bfloat16())
    codes = Codes(
        torch.ones(16, D, dtype=torch.bfloat16),
        None,
        0,
        torch.tensor([residual], dtype=torch.float64),
        torch.tensor([norm], dtype=torch.float64),
    )
    queries = scan.coded_queries(normal(1, D, seed=seed), codes, arithmetic)
    errors = scan.scan_errors(codes, arithmetic)
    _, upper = pair_ends((np.array([0]), np.array([0]), np.array([value])), codes, queries, errors)
    ((limit,),) = bounds.limit_terms(codes, slice(0, 1)) @ queries.limit_weights(upper, errors)
    assert np.float32(limit) <= value
    assert limit > value - 4 * (float(upper[0]) / float(queries.unit) - value) - 0.1 * abs(value)  # nor far below


@pytest.mark.parametrize("scale", [-140, -70, -20, 0, 60, 120])
@pytest.mark.parametrize("arithmetic", ["torch", "numpy"])
def test_norms_taken_while_scanning_bound_those_of_the_rows(scale, arithmetic):
    """At every size, where squares vanish or overflow too; and they are not far above."""
    blocks = normal(100, D) * 2.0**scale
    norm = torch.full((7,), math.nan, dtype=torch.float64)
    codes = Codes(blocks, None, 0, None, norm)
    queries = scan_queries(normal(1, D), codes, torch.float32)
    weights = queries.limit_weights(np.zeros(1), rounding(D, 2.0**-22))
    scan.pairs_reaching(codes, queries, weights, range(100), arithmetic, fill_norms=True)
    largest = bounds.group_max(blocks.double().norm(dim=1, keepdim=True), 16)[:, 0]
    assert (largest <= norm).all()
    if -60 < scale < 60:
        assert (norm < 4.1 * largest).all()


def test_the_norm_of_a_base_group_is_that_of_its_only_row():
    blocks = torch.zeros(64, D)
    blocks[3::16] = normal(4, D)
    norms = blocks.view(4, -1).norm(dim=1)
    norm, true = bounds.base_norms(norms, blocks, 0), blocks[3::16].double().norm(dim=1)
    assert (true <= norm).all() and (norm < 1.001 * true).all()


@pytest.mark.parametrize("arithmetic", mips.ARITHMETICS)
def test_ends_of_what_a_scan_finds_hold_the_true_score(arithmetic):
    """The whole chain, on rows of very different sizes."""
    blocks = normal(333, 40) * (4 * normal(333, 1, seed=1)).exp()
    for compression in mips.COMPRESSIONS:
        codes = bounds.compress(blocks, compression)
        queries = scan.coded_queries(normal(5, 40, seed=2), codes, arithmetic)
        errors = scan.scan_errors(codes, arithmetic)
        weights = queries.limit_weights(np.full(5, -math.inf), errors)
        pairs = scan.pairs_reaching(codes, queries, weights, range(333), arithmetic)
        assert len(pairs.rows) == 5 * 333
        rows, query, values = cpu_search._by_query(pairs, 5)
        assert np.array_equal(query, np.arange(5).repeat(333))
        assert np.array_equal(rows, np.tile(np.arange(333), 5))
        lower, upper = pair_ends((rows // 16, query, values), codes, queries, errors)
        true = (blocks[rows].double() * queries.exact[query]).sum(1).numpy()
        assert (lower <= true).all() and (true <= upper).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.sampled_from([-2.0, -0.0, 0.0, 1e-40, 3.0]))
def test_products_that_reach_their_limits_are_found_on_either_side_of_zero(dtype, seed, bases, q, least):
    random = np.random.default_rng(seed)
    values = random.choice([-5.0, -2.0, -0.0, 0.0, 1.0, 3.0, 4.0, 7.0], (bases * 16, q))
    found = torch.from_numpy(values).to(dtype)
    found[random.integers(16 * bases) :] = scan.LOWEST[dtype]
    limits = (least + random.choice([0.0, 1.0, 4.0], (bases, q))).astype(
        np.int32 if dtype == torch.int32 else np.float32
    )
    rows, queries, reached = scan._TorchProducts.reaching(None, found, limits)
    expected = np.argwhere(found.double().numpy() >= np.repeat(limits, 16, axis=0))
    order = np.lexsort((queries, rows))
    assert np.array_equal(np.stack([rows, queries], 1)[order], expected)
    assert np.array_equal(reached, found.double().numpy()[rows, queries])
