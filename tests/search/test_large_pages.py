"""Memory in large pages is memory as any other."""

import copy
import gc
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min.search import large_pages
from realm_min.search.mips import BlockIndex, mips_topk

CPU = torch.device("cpu")


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    rows=st.sampled_from([1, 7, large_pages.PAGE // 64 - 1, large_pages.PAGE // 64, 3 * large_pages.PAGE // 64 + 5]),
    dtype=st.sampled_from([torch.int8, torch.bfloat16, torch.float32]),
)
def test_a_tensor_holds_what_is_written(rows, dtype):
    tensor = large_pages.empty((rows, 64), dtype, CPU)
    assert tensor.shape == (rows, 64) and tensor.dtype == dtype and tensor.is_contiguous()
    values = torch.arange(rows * 64).remainder(113).view(rows, 64).to(dtype)
    row = tensor.copy_(values)[rows // 2]
    for other in (tensor.clone(), copy.deepcopy(tensor), pickle.loads(pickle.dumps(tensor))):
        assert torch.equal(other, values)
    del tensor, other
    gc.collect()
    assert torch.equal(row, values[rows // 2])  # a view keeps the memory
    if large_pages.ADVICE and rows * 64 * dtype.itemsize >= large_pages.PAGE:
        assert large_pages.empty((rows, 64), dtype, CPU).data_ptr() % large_pages.PAGE == 0


@pytest.mark.parametrize("advice", [None, 10_000])
def test_a_system_without_them_has_ordinary_memory(advice, monkeypatch):
    monkeypatch.setattr(large_pages, "ADVICE", advice)  # 10,000 is no advice that a kernel knows
    blocks = torch.randn(20_000, 128, generator=torch.Generator().manual_seed(0))
    index = BlockIndex(blocks, "int8", scan="codes", arithmetic="torch")
    found, expected = index.search(blocks[:2], 3), mips_topk(blocks[:2], blocks, 3, arithmetic="torch")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
