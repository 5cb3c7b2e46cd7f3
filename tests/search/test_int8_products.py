"""Products of int8 on processors that cut off what does not fit in 16 bits: searches stay exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.search import int8_products
from realm_min.search.mips import BlockIndex, mips_topk


def saturating(left, right):
    """As those processors do: the left factor without a sign, and two products in 16 bits."""
    shifted, right = left.long() + 128, right.long()
    if shifted.shape[1] % 2:
        shifted, right = (torch.nn.functional.pad(m, p) for m, p in ((shifted, (0, 1)), (right, (0, 0, 0, 1))))
    pairs = shifted[:, ::2, None] * right[::2] + shifted[:, 1::2, None] * right[1::2]
    return (pairs.clamp(-(2**15), 2**15 - 1).sum(1) - 128 * right.sum(0)).int()


def swapped(left, right):
    """The right factor without a sign."""
    return saturating(right.t(), left.t()).t()


PROCESSORS = {
    "all bits are kept": lambda a, b: (a.double() @ b.double()).int(),
    "the left one without a sign": saturating,
    "the right one without a sign": swapped,
    "of single columns the right one": lambda a, b: (swapped if b.shape[1] == 1 else saturating)(a, b),
}
LIMITS = dict(zip(PROCESSORS, (127, 64, 0, 64), strict=True))


@pytest.fixture(params=PROCESSORS)
def processor(request, monkeypatch):
    product = PROCESSORS[request.param]
    monkeypatch.setattr(int8_products, "TRIED", ((5, 128, 7), (3, 40, 2)))

    def fake(left, right, out=None):
        found = product(left, right)
        return found if out is None else out.copy_(found)

    monkeypatch.setattr(torch, "_int_mm", fake)
    for cached in (int8_products.limit, int8_products.is_exact):
        cached.cache_clear()
    yield request.param
    for cached in (int8_products.limit, int8_products.is_exact):
        cached.cache_clear()


def test_what_a_processor_multiplies_right_is_found_out(processor):
    assert int8_products.limit() == LIMITS[processor]
    assert int8_products.is_exact(4, 30, 1, 64, 1) == (
        processor in ("all bits are kept", "the left one without a sign")
    )


def test_every_product_is_right(processor):
    generator = torch.Generator().manual_seed(0)
    most = int8_products.limit()
    for rows, inner, columns in ((1, 1, 1), (9, 33, 1), (17, 128, 5), (2, 300, 16)):
        for signs in (1, -1, 0):
            left = torch.randint(-127, 128, (rows, inner), generator=generator).to(torch.int8)
            right = torch.randint(-most, most + 1, (inner, columns), generator=generator).to(torch.int8)
            if signs:
                left, right = torch.full_like(left, 127), torch.full_like(right, signs * most)
            out = torch.empty(rows, columns, dtype=torch.int32)
            int8_products.multiply(left, right.t().contiguous().t(), most, out)
            assert torch.equal(out.double(), left.double() @ right.double())


@pytest.mark.parametrize("shape", [(1, 200, 16), (3, 333, 40), (20, 97, 8), (1, 50, 2048), (2, 18, 33)])
@pytest.mark.parametrize("ones", [False, True])
def test_searches_are_exact(processor, shape, ones):
    q, n, d = shape
    generator = torch.Generator().manual_seed(1)
    queries, blocks = torch.randn(q, d, generator=generator), torch.randn(n, d, generator=generator)
    if ones:  # all products of one sign, and large: rows differ by little
        queries, blocks = 1 + 0.1 * queries.abs(), 1 + 0.001 * blocks.abs()
    index = BlockIndex(blocks, "int8", scan="codes", arithmetic="native")
    expected = mips_topk(queries, blocks, 7, arithmetic="torch")
    assert all(map(torch.equal, index.search(queries, 7), expected))


def test_a_limit_too_high_is_found_out(monkeypatch):
    """What is emulated here would be wrong without the limit."""
    left, right = torch.full((4, 64), 127, dtype=torch.int8), torch.full((64, 2), 65, dtype=torch.int8)
    assert not torch.equal(saturating(left, right), (left.double() @ right.double()).int())
    assert torch.equal(saturating(left, right - 1), (left.double() @ (right - 1).double()).int())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 20), st.integers(0, 100))
def test_products_here_are_right(rows, inner, columns, seed):
    """On the processor that the tests run on."""
    most = int8_products.limit()
    if most:
        generator = torch.Generator().manual_seed(seed)
        left = 127 * torch.randint(0, 2, (rows, inner), generator=generator).mul(2).sub(1).to(torch.int8)
        right = most * torch.randint(0, 2, (inner, columns), generator=generator).mul(2).sub(1).to(torch.int8)
        out = torch.empty(rows, columns, dtype=torch.int32)
        int8_products.multiply(left, right, most, out)
        assert torch.equal(out.double(), left.double() @ right.double())
