"""Which way to scan is chosen, that it is shown, and that threads, forks and contexts change no search."""

import functools
import itertools
import os
import re
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from realm_min.search import arithmetic, bounds, cpu_search, mips
from realm_min.search.arithmetic import SCANS, Way
from realm_min.search.mips import BlockIndex, mips_topk
from realm_min.search.scan import ARITHMETICS, pairs_reaching
from realm_min.search.sharded_index import ShardedBlockIndex

BLOCKS, QUERIES = torch.randn(2_000, 16, generator=torch.Generator().manual_seed(0)), torch.randn(3, 16)


def same(found, expected):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_fastest_is_chosen_of_equals_the_first_and_the_hopeless_is_timed_once():
    calls = []

    def work(name, seconds):
        calls.append(name)
        time.sleep(0.2 if name == "compiled" and calls.count(name) == 1 else seconds)

    times = {"slow": 0.01, "fast": 0.002, "hopeless": 0.05, "compiled": 0.0001}
    ways = {name: Way("codes", name) for name in times}
    works = {ways[name]: functools.partial(work, name, s) for name, s in times.items()}
    assert arithmetic.quickest(works) == ways["compiled"]  # though its first time takes long
    assert calls.count("hopeless") == 2 and calls.count("fast") == 5
    assert arithmetic.quickest({way: lambda: None for way in [*ways.values()][:1]}) == ways["slow"]


def test_numpy_is_chosen_only_where_it_saves_what_changing_to_it_costs():
    """Of a search that is ten times as long, a tenth of that."""
    ways = {name: Way("codes", name) for name in ("torch", "numpy")}
    works = {ways["torch"]: functools.partial(time.sleep, 0.02), ways["numpy"]: functools.partial(time.sleep, 0.002)}
    assert arithmetic.AFTER_TORCH == 0.02
    assert arithmetic.quickest(works) == ways["torch"]
    assert arithmetic.quickest(works, share=0.1) == ways["numpy"]


def readable(rows=2_000):
    codes = bounds.compress(BLOCKS[:rows], "int8")
    return {"codes": codes, "blocks": bounds.compress(BLOCKS[:rows], None)}


def test_what_is_measured():
    names = ("torch", "numpy", "native")
    every = [str(way) for way in arithmetic.ways(readable(), names, 10**6)]
    torchs, numpys = ([f"{scan} by {name}" for scan in ("codes", "blocks")] for name in names[:2])
    assert every == [*torchs, "codes by native", *numpys]
    assert not any("numpy" in str(way) for way in arithmetic.ways(readable(), names, 0))  # fewer threads than cores
    assert [str(way) for way in arithmetic.ways(readable(), ("numpy",), 0)] == ["codes by numpy", "blocks by numpy"]
    assert [arithmetic.measured_queries(q) for q in (1, 2, 15, 16, 500)] == [1, 8, 8, 64, 64]


def test_the_machine_is_measured_once_for_what_is_alike(monkeypatch):
    monkeypatch.setattr(arithmetic, "_FASTEST", {})
    measured = []
    monkeypatch.setattr(arithmetic, "quickest", lambda works, share: (measured.append(works), next(reversed(works)))[1])
    for rows, queries in ((2_000, 1), (1_990, 1), (2_000, 8), (900, 1)):
        way = arithmetic.fastest(readable(rows), ("torch", "numpy"), queries, 10**6, False)
        assert way == Way("blocks", "numpy")
    assert len(measured) == 3  # 1,990 rows are like 2,000


@pytest.mark.parametrize("fill_norms", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 999, 2_000])
def test_the_next_rows_are_measured(rows, fill_norms, monkeypatch):
    """Whole base groups of them, from the first again after the last, and none of them reaches its threshold."""
    monkeypatch.setattr(arithmetic, "SAMPLE_ROWS", {1: 600, 8: 600})
    scanned = []

    def scan(codes, queries, weights, part, name, norms):
        scanned.append(part)
        pairs = pairs_reaching(codes, queries, weights, part, name, norms)
        assert len(pairs.rows) == 0 and norms == fill_norms
        return pairs

    monkeypatch.setattr(arithmetic, "pairs_reaching", scan)
    codes = readable(rows)["blocks"]
    norm = codes.norm.clone()
    measure = arithmetic.sample_scan(Way("blocks", "torch"), codes, 8, fill_norms)
    for _ in range(4):
        measure()
    starts = [0, 608, 1216, 0] if rows == 2_000 else [0] * 4
    assert [(part.start, len(part)) for part in scanned] == [(start, min(rows, 600)) for start in starts]
    assert torch.equal(codes.norm, norm)  # those of an index stay


@pytest.mark.parametrize("compression", mips.COMPRESSIONS)
def test_the_choice_is_made_once_for_so_many_queries_and_shown(compression, monkeypatch):
    asked = []

    def fastest(readable, arithmetics, queries, threads, fill_norms):
        asked.append(queries)
        return Way([*readable][-1], arithmetics[queries > 1])

    monkeypatch.setattr(mips, "fastest", fastest)
    monkeypatch.setattr(mips, "SMALL", 0)
    index = BlockIndex(BLOCKS, compression)
    head = f"BlockIndex(2000 x 16 torch.float32, compression={compression!r}"
    assert repr(index) == head + ", cpu)"
    expected = mips_topk(QUERIES, BLOCKS, 5, arithmetic="torch")
    assert same(index.search(QUERIES, 5), expected) and same(index.search(QUERIES[:1], 5), [x[:1] for x in expected])
    scan = "codes" if compression is None else "blocks"
    assert repr(index) == head + f", 1 at once: {scan} by torch, 8 at once: {scan} by numpy, cpu)"
    assert asked == [8, 1]
    given = BlockIndex(BLOCKS, compression, scan="codes", arithmetic="native")
    given.search(QUERIES, 2)
    assert "scan='codes', arithmetic='native', 8 at once: codes by native" in repr(given) and len(asked) == 2
    asked.clear()
    assert same(mips_topk(QUERIES, BLOCKS, 5), expected) and asked == [8]


def test_for_many_answers_int8_is_not_read(monkeypatch):
    """Bounds of int8 leave several rows an answer to rescore."""
    asked = []
    monkeypatch.setattr(
        mips, "fastest", lambda readable, *_: (asked.append([*readable]), Way([*readable][0], "torch"))[1]
    )
    monkeypatch.setattr(mips, "SMALL", 0)
    k = 1 + len(BLOCKS) // (mips.MANY * len(QUERIES))
    both = ["codes", "blocks"]
    for compression, read in (("int8", [both, ["blocks"]]), ("bfloat16", [both])):
        index = BlockIndex(BLOCKS, compression)
        for answers in (k - 1, k):
            assert same(index.search(QUERIES, answers), mips_topk(QUERIES, BLOCKS, answers, arithmetic="torch"))
        assert asked == read
        asked.clear()
        assert repr(index).endswith("8 at once: codes by torch, cpu)")
    index = BlockIndex(BLOCKS, "int8", scan="codes")
    index.search(QUERIES, k)
    assert asked == [["codes"]]


@pytest.mark.parametrize("compression", ["bfloat16", "int8"])
def test_norms_of_the_blocks_are_bounded_where_they_are_read(compression):
    """By those of their codes and what separates the two; those of the codes alone are smaller, of some."""
    index = BlockIndex(BLOCKS, compression)
    codes, blocks = index._readable().values()
    assert blocks.codes is index.blocks and blocks.residual is None and blocks.scale is None
    true = bounds.group_max(BLOCKS.double().norm(dim=1, keepdim=True), bounds.BASE_GROUP)[:, 0]
    assert (true <= blocks.norm).all() and (blocks.norm < 1.02 * true).all()
    assert (true > codes.norm).any()


def test_what_is_given_after_a_search_counts_for_the_next(monkeypatch):
    monkeypatch.setattr(mips, "SMALL", 0)
    expected = mips_topk(QUERIES, BLOCKS, 5, arithmetic="torch")
    index = BlockIndex(BLOCKS, "int8")
    for scan, name in itertools.product((None, "codes", "blocks"), (None, "numpy", "torch")):
        index.scan, index.arithmetic = scan, name
        assert same(index.search(QUERIES, 5), expected)
        way = index.chosen[8]
        assert way.scan == (scan or way.scan) and way.arithmetic == (name or way.arithmetic)
        assert f"8 at once: {way}" in repr(index)
    for name, choices in (("scan", SCANS), ("arithmetic", ARITHMETICS)):
        setattr(index, name, "other")
        with pytest.raises(ValueError, match=f"{name} is 'other': choose one of {re.escape(str(choices))}"):
            index.search(QUERIES, 5)
        setattr(index, name, None)


def test_other_choices_are_named():
    with pytest.raises(ValueError, match=r"scan is 'both': choose one of \('codes', 'blocks'\)"):
        BlockIndex(BLOCKS, scan="both")
    for make in (BlockIndex, lambda blocks, arithmetic: mips_topk(QUERIES, blocks, 1, arithmetic=arithmetic)):
        with pytest.raises(ValueError, match=r"arithmetic is 'avx': choose one of \('torch', 'numpy', 'native'\)"):
            make(BLOCKS, arithmetic="avx")


# What uses Python threads of its own, and the other ways.
INDEXES = [("int8", "numpy"), ("bfloat16", "numpy"), (None, "torch"), ("int8", "native")]


def test_many_searches_at_once_are_right():
    expected = mips_topk(QUERIES, BLOCKS, 7)
    indexes = [BlockIndex(BLOCKS, c, scan="codes", arithmetic=a) for c, a in INDEXES]
    with ThreadPoolExecutor(8) as pool:
        found = [pool.submit(indexes[i % 4].search, QUERIES, 7) for i in range(40)]
        found += [pool.submit(mips_topk, QUERIES, BLOCKS, 7, arithmetic="numpy") for _ in range(8)]
        assert all(same(f.result(), expected) for f in found)


def test_what_is_kept_for_searches_is_seen_whole(monkeypatch):
    """What an index keeps for its searches is whole when another thread sees it."""
    kept = []
    sample = cpu_search.sample_codes
    monkeypatch.setattr(cpu_search, "sample_codes", lambda *given: (kept.append(dict(index._kept)), sample(*given))[1])
    index = BlockIndex(BLOCKS, "int8")
    index.search(QUERIES, 7)
    assert kept == [{}, {}] and set(index._kept) == {"codes", "blocks"}


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_is_the_callers(threads, monkeypatch):
    before = torch.get_num_threads()
    started = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread))[1])
    try:
        torch.set_num_threads(threads)
        for compression, name in INDEXES:
            index = BlockIndex(BLOCKS, compression, scan="codes", arithmetic=name)
            assert same(index.search(QUERIES, 3), mips_topk(QUERIES, BLOCKS, 3, arithmetic="torch"))
        with pytest.raises(ValueError, match="block 1999 holds NaN"):
            mips_topk(QUERIES, torch.cat([BLOCKS[:-1], BLOCKS[:1] * torch.nan]), 3, arithmetic="numpy")
        assert torch.get_num_threads() == threads
        assert not any(thread.is_alive() for thread in started)
        assert len(started) <= threads * 3 and (len(started) > 0) == (threads > 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_searches():
    index = BlockIndex(BLOCKS, "int8", scan="codes", arithmetic="numpy")
    expected = index.search(QUERIES, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        os._exit(0 if same(index.search(QUERIES, 3), expected) else 1)
    end = time.monotonic() + 60
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.01)
    if status[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert status == (child, 0)


CONTEXTS = {
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float16 by default": lambda: default_dtype(torch.float16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


class default_dtype:
    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_):
        torch.set_default_dtype(self.before)


def everything(folder, blocks, queries):
    """What every public way into the search returns."""
    for name in ("torch", "numpy"):
        yield mips_topk(queries, blocks, 4, arithmetic=name)
    for compression in mips.COMPRESSIONS:
        for name in mips.ARITHMETICS:
            index = BlockIndex(blocks, compression, scan="codes", arithmetic=name)
            yield index.search(queries, 4)
        index.save(folder / "index")
        again = BlockIndex.load(folder / "index").to("cpu")
        yield again.search(queries, 4)
        yield again.rows(torch.tensor([3, 1])), index.rows(torch.tensor([[0]]))
        sharded = ShardedBlockIndex(blocks, compression)
        yield sharded.search(queries, 4)
        yield sharded.search(queries[:0], 4)
        yield (sharded.rows(torch.tensor([3])),)


@pytest.mark.parametrize("dtype", mips.BLOCK_DTYPES)
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_changes_nothing(context, dtype, tmp_path):
    blocks = BLOCKS[:90].to(dtype)
    expected = list(everything(tmp_path, blocks, QUERIES))
    with CONTEXTS[context]():
        inside = [blocks.clone(), QUERIES.clone()]  # tensors of inference mode, there
        found = list(everything(tmp_path, *inside))
        index = BlockIndex(inside[0], "int8", arithmetic="numpy")
    assert len(found) == len(expected) and all(map(same, found, expected))
    # Made inside and used outside.
    assert all(map(same, everything(tmp_path, *inside), expected))
    assert same(index.search(inside[1], 4), expected[0])
    for result in found[0]:
        result += 1  # an ordinary tensor


def test_tensors_that_require_a_gradient_are_searched(tmp_path):
    expected = list(everything(tmp_path, BLOCKS[:90], QUERIES))
    asking = [BLOCKS[:90].clone().requires_grad_(), QUERIES.clone().requires_grad_()]
    found = list(everything(tmp_path, *asking))
    assert all(map(same, found, expected))
    assert not any(tensor.requires_grad for tensors in found[:5] for tensor in tensors)
