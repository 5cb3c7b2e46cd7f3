"""Both ladders under the interpreter: every rung against the book, and what their driver counts and prints."""

import csv
import time
from types import SimpleNamespace

import book_models
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from realm_min.kernels.ladder import __main__ as driver
from realm_min.kernels.ladder import counts, measure, mips, picture, rows, spans
from sizes import cases
from torch.overrides import TorchFunctionMode

from realm_min import RealmConfig, textbook

pytestmark = pytest.mark.skipif(not mips.INTERPRETED, reason="needs TRITON_INTERPRET=1 before triton is imported")
CASES = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SEARCHES = pytest.mark.parametrize("rung", mips.RUNGS, ids=lambda rung: rung.name)
READERS = pytest.mark.parametrize("rung", spans.RUNGS, ids=lambda rung: rung.name)
SCAN, CERTIFIED = mips.RUNGS[4], mips.RUNGS[5]


@st.composite
def shapes(draw):
    """Odd sizes, one row, all of them wanted; more queries than one tile of 16 holds."""
    n = draw(st.one_of(st.integers(1, 3), st.integers(4, 300)))
    k = draw(st.one_of(st.integers(1, min(n, 4)), st.just(min(n, 140))))
    return (
        draw(st.sampled_from([1, 2, 2, 17] if n < 100 and k < 5 else [1, 2])),
        n,
        draw(st.sampled_from([1, 7, 33])),
        k,
    )


@SEARCHES
@settings(CASES, max_examples=cases(4))
@given(shape=shapes(), largest=st.sampled_from([0, 1, 100]), seed=st.integers(0, 999))
def test_whole_numbers_match_the_book_ties_included(rung, shape, largest, seed):
    """Up to 100 they are exact in TF32, and in int8 where the largest is there: no rung has an excuse."""
    q, n, d, k = shape
    generator = torch.Generator().manual_seed(seed)
    queries, blocks = (torch.randint(-largest, largest + 1, (r, d), generator=generator).float() for r in (q, n))
    if rung == SCAN:  # one in the codes is one
        queries, blocks = (torch.cat([x, torch.full((len(x), 1), 127.0)], 1) for x in (queries, blocks))
    scores, ids = mips.search(rung, queries, blocks, k)
    expected_scores, expected_ids = book_models.search(queries, blocks, k)
    assert scores.dtype == torch.float32 and ids.dtype == torch.int64
    np.testing.assert_array_equal(ids.numpy(), expected_ids)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


@SEARCHES
def test_dimensions_beyond_one_tile(rung):
    queries, blocks = torch.randint(-1, 2, (2, 260)).float(), torch.randint(-1, 2, (9, 260)).float()
    queries[:, 0] = blocks[:, 0] = 127
    _, ids = mips.search(rung, queries, blocks, 3)
    np.testing.assert_array_equal(ids.numpy(), book_models.search(queries, blocks, 3)[1])


@pytest.fixture(scope="module")
def close():
    """The case made to mislead, and its answer in float64."""
    queries, blocks = measure.close_case(2, 1000, 24, "cpu")
    return (queries, blocks), measure.true_ids(queries, blocks, 1)


@SEARCHES
def test_on_scores_that_lie_close_only_what_says_so_is_wrong(rung, close):
    wrong = measure.share_wrong(rung, *close, {})
    assert (wrong == 0) == rung.exact, wrong


def test_the_certificate_decides_in_float64(close):
    (queries, blocks), truth = close
    assert torch.equal(mips.search(CERTIFIED, queries, blocks, 1)[1], truth)
    huge = torch.tensor([[1.0, 2.0**-30], [1.0, 2.0**-29], [1.0, 0.0]])  # float32 sums are all 1
    assert mips.search(CERTIFIED, torch.ones(1, 2), huge, 3)[1].tolist() == [[1, 0, 2]]


def test_tf32_is_off_by_no_more_than_it_says_and_by_a_fair_part_of_it():
    queries, blocks = measure.random_case(3, 256, 16, "cpu")
    blocks[128:] = queries[0].abs() * 1.0009  # all products of one sign, all digits cut
    queries = queries.abs()
    exact = (queries.double() @ blocks.double().T).view(3, 2, 128).amax(2)
    norms = queries.norm(dim=1)[:, None] * blocks.norm(dim=1).view(2, 128).amax(1)
    share = (mips.tf32_maxima(queries, blocks) - exact).abs() / (mips.TF32 * norms)
    assert share.max() <= 1 and share[0, 1] > 0.2


@pytest.mark.parametrize(
    "query, hidden",
    [
        (
            [1.0, 0.0],
            [0.49, 127.0],
        ),  # the row's code is (0, 127): its score vanishes, |e - codes| is what is left of it
        ([127.0, 0.49], [0.0, 1.0]),  # the query's code is (127, 0)
    ],
)
def test_each_term_of_the_bound_is_needed(query, hidden):
    queries = torch.tensor([query])
    blocks = torch.zeros(256, 2)
    blocks[0] = torch.tensor(hidden)  # of score 0.49, seen as 0
    blocks[128:, 0] = 0.3 / queries[0, 0]
    codes = mips.compress(blocks)
    lower, upper = mips.intervals(queries, codes)
    assert lower[0, 0] <= 0.49 <= upper[0, 0] and upper[0, 0] < 0.5
    assert mips.search(CERTIFIED, queries, blocks, 1)[1].item() == 0
    assert mips.search(SCAN, queries, blocks, 1)[1].item() == 128


def test_the_bound_covers_its_own_rounding():
    """One row in two groups of other scales: the same score, by products that round otherwise."""
    blocks = torch.zeros(256, 2)
    blocks[0], blocks[128] = torch.tensor([6.0, 127.0]), torch.tensor([6.0, 381.0])
    queries = torch.tensor([[163.0, 0.0], [167.0, 0.0]]) / 7
    assert mips.coded_queries(queries)[1][:, 0].mul(127).equal(queries[:, 0].double()), "the codes are exact"
    assert mips.search(CERTIFIED, queries, blocks, 1)[1].flatten().tolist() == [0, 0]


@SEARCHES
def test_what_lies_behind_the_last_row_is_not_read(rung):
    queries, blocks = torch.ones(1, 8), torch.zeros(141, 8)
    blocks[0], blocks[140] = 1.0, 100.0
    codes = mips.compress(blocks[:140].clone())
    behind = torch.full((141, 8), 127, dtype=torch.int8)
    behind[:140] = codes.codes
    given_ = {"codes": codes._replace(codes=behind[:140])} if rung.takes_codes else {}
    assert rung.search(queries, blocks[:140], 1, **given_)[1].item() == 0


def test_intervals_hold_the_best_scores_of_groups():
    queries, blocks = measure.random_case(3, 300, 20, "cpu")
    lower, upper = mips.intervals(queries, mips.compress(blocks))
    scores = torch.nn.functional.pad(queries.double() @ blocks.double().T, (0, 84), value=float("-inf"))
    best = scores.view(3, 3, 128).amax(2)
    assert ((lower <= best) & (best <= upper)).all()
    assert (upper - lower).max() < 0.1 * scores[scores.isfinite()].std() * 6


@SEARCHES
@pytest.mark.parametrize("scale", [2.0**-140, 2.0**59])
def test_numbers_far_from_one(rung, scale):
    queries, blocks = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 3.0]]) * scale
    _, ids = mips.search(rung, queries, blocks, 3)
    assert ids.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize(
    "queries, blocks, k, message",
    [
        (torch.ones(1, 4), torch.ones(3, 4), 4, "k is 4: give 1 to 3, the number of blocks"),
        (torch.ones(1, 4), torch.ones(3, 4).double(), 1, "blocks are torch.float64 of shape .3, 4.: give float32"),
        (torch.ones(1, 4), torch.ones(0, 4), 1, "blocks are torch.float32 of shape .0, 4."),
        (torch.ones(1, 4), torch.full((3, 4), torch.nan), 1, "blocks hold NaN or infinity: remove or repair"),
        (torch.ones(1, 4), torch.ones(3, 5), 1, "queries have 4 on cpu and blocks 5 on cpu: dimensions and device"),
        (torch.ones(1, 8193), torch.ones(1, 8193), 1, "blocks have 8193 dimensions: the ladder takes up to 8192"),
        (torch.full((1, 4), 1e20), torch.full((1, 4), 1e20), 1, "scores may pass the largest float32"),
    ],
)
def test_what_a_search_refuses(queries, blocks, k, message):
    with pytest.raises(ValueError, match=message):
        mips.search(mips.RUNGS[0], queries, blocks, k)


def span_case(shape, seed, levels=None):
    blocks, tokens, hidden, widest = shape
    x = measure.span_case(blocks, tokens, hidden, widest, "cpu")
    generator = torch.Generator().manual_seed(seed)
    start, end = (torch.randn(x.start.shape, generator=generator) for _ in range(2))
    if levels:  # few values: equal spans at many places
        start, end = ((projection * levels).round()[..., :1].expand_as(x.start) for projection in (start, end))
    return x._replace(start=start, end=end)


def by_the_book(x):
    config = RealmConfig(max_span_width=x.widest, reader_layer_norm_eps=x.eps)
    p = {
        "qa_outputs.layer_normalization.weight": x.norm_weight,
        "qa_outputs.layer_normalization.bias": x.norm_bias,
        "qa_outputs.dense_output.weight": x.output_weight[None],
        "qa_outputs.dense_output.bias": torch.tensor([x.output_bias]),
    }
    y = torch.cat([x.start, x.end], 2).double().numpy()
    weights = {name: value.double().numpy() for name, value in p.items()}
    return textbook.span_logits(weights, config, y, np.ones(y.shape[:2], bool))[0]


@READERS
@settings(CASES, max_examples=cases(5))
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 5, 33]), st.integers(1, 10)),
    levels=st.sampled_from([None, None, 1]),
    seed=st.integers(0, 999),
)
def test_spans_match_the_book(rung, shape, levels, seed):
    x = span_case(shape, seed, levels)
    expected = by_the_book(x)
    found = spans.score_spans(rung, x)
    if isinstance(found, tuple):
        score, place = found
        logits = spans.score_spans(spans.RUNGS[2], x).flatten()
        assert int(place) == int(logits.argmax()) and score == logits.max()  # of equals the first
        np.testing.assert_allclose(expected.flat[int(place)], expected.max(), atol=2e-4)
    else:
        assert found.shape == expected.shape and found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_of_equal_spans_the_first_is_best():
    x = span_case((2, 5, 5, 3), 0)
    x = x._replace(start=torch.zeros_like(x.start), end=torch.zeros_like(x.end))
    assert int(spans.score_spans(spans.RUNGS[3], x)[1]) == 0


@READERS
def test_a_mean_far_above_the_deviation_costs_no_digits(rung):
    x = span_case((1, 6, 32, 2), 0)
    x = x._replace(start=x.start + 3000.0)
    assert measure.span_error(spans.score_spans(rung, x), x) < 0.02


def test_a_whole_row_in_registers():
    x = span_case((1, 2, 3000, 2), 0)
    for rung in spans.RUNGS:
        assert measure.span_error(spans.score_spans(rung, x), x) < 1e-3


def test_what_the_reader_refuses():
    x = span_case((1, 3, 4, 2), 0)
    wrong = [
        (x._replace(end=x.end[:, :2]), "end is torch.float32 .1, 2, 4. on cpu: give float32 .1, 3, 4."),
        (x._replace(start=x.start[:, :0]), "start has shape .1, 0, 4.: give .blocks, tokens, hidden."),
        (x._replace(widest=0), "widest is 0 and eps"),
        (x._replace(eps=0.0), "and eps 0.0: give 1 or more, and a normal float32 above 0"),
        (x._replace(end=x.end * torch.inf), "end holds NaN or a magnitude of 2..55 or more"),
        (span_case((1, 1, 8193, 1), 0), "the hidden size is 8193: the ladder takes up to 8192"),
    ]
    for given_, message in wrong:
        with pytest.raises(ValueError, match=message):
            spans.score_spans(spans.RUNGS[0], given_)


def test_the_counts_are_those_of_the_shapes():
    h100 = counts.CARDS["H100 SXM"]
    phases = {rung.name[0]: counts.search_phases(rung.name, 64, 1_280_000, 128, 5) for rung in mips.RUNGS}
    memory = {number: sum(phase.memory for phase in of) for number, of in phases.items()}
    blocks, scores = 4 * 1_280_000 * 128, 4 * 64 * 1_280_000
    assert memory["1"] == 64 * blocks + 2 * scores
    assert memory["2"] == 64 * blocks + 2 * scores / 64 + 64 * 5 * 64 * 512
    assert memory["3"] == blocks + 2 * scores / 64 + 64 * 5 * 64 * 512
    assert memory["4"] == blocks + 2 * scores / 128 + 64 * 5 * 128 * 512
    assert memory["5"] == blocks / 4 + 2 * scores / 128 + 64 * 5 * 128 * 512
    times = [counts.seconds(of, h100) for of in phases.values()]
    assert times[:5] == sorted(times[:5], reverse=True) and times[4] < times[5] < times[3]
    assert counts.seconds([counts.Phase("scan", 3.35e12, 0, 67e12 * 2)], h100) == 2
    spans_of = {rung.name[0]: counts.span_phases(rung.name, 2, 12, 32, 4) for rung in spans.RUNGS}
    assert spans.span_count(12, 4) == 42 and spans.span_count(3, 9) == 6
    assert sum(phase.memory for phase in spans_of["1"]) == 2 * 4 * (2 * 12 * 32 + 2 * 42 * 32) + 4 * 2 * 42
    assert sum(phase.memory for phase in spans_of["3"]) == 2 * 4 * 2 * 12 * 32 + 4 * 2 * 42


def test_the_driver_writes_a_row_for_each_rung(tmp_path, capsys):
    sizes = ["--blocks", "70", "--queries", "1", "--dimensions", "8", "--k", "1", "--tokens", "5", "--hidden", "8"]
    driver.main([*sizes, "--csv", str(tmp_path / "f.csv")])
    written = [line for line in (tmp_path / "f.csv").read_text().splitlines() if not line.startswith("#")]
    made = list(csv.DictReader(written))
    assert [row["rung"] for row in made] == [rung.name for rung in (*mips.RUNGS, *spans.RUNGS)]
    assert all(float(row["predicted_ms"]) > 0 and row["measured_ms"] == "" for row in made)
    assert [row["wrong_close"] for row in made if row["rung"] == CERTIFIED.name] == ["0.0"]
    shown = capsys.readouterr().out
    assert "wrong, close" in shown and "machine code: unset TRITON_INTERPRET" in shown


class HereForCuda(TorchFunctionMode):
    """What is asked for on a GPU is made here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class FakeEvent:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.time - self.time)


def test_on_a_gpu_all_is_measured(tmp_path, capsys, monkeypatch):
    """But for the GPU itself: what the driver would do on one."""
    generator = torch.Generator
    monkeypatch.setattr(driver, "where", lambda: "cuda")
    monkeypatch.setattr(measure, "MIB", 1 << 4)
    monkeypatch.setattr(measure, "PRODUCT", 32)
    monkeypatch.setattr(torch, "Generator", lambda device: generator("cpu"))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=64))
    sizes = ["--blocks", "130", "--queries", "1", "--dimensions", "8", "--k", "1", "--tokens", "3", "--hidden", "8"]
    precision = torch.get_float32_matmul_precision()
    with HereForCuda():
        driver.main([*sizes, "--repeats", "1", "--csv", str(tmp_path / "f.csv"), "--plot", str(tmp_path / "f.png")])
    assert torch.get_float32_matmul_precision() == precision
    heading, *_ = written = (tmp_path / "f.csv").read_text().splitlines()
    assert heading.startswith("# NVIDIA H100 80GB HBM3, torch")
    made = list(csv.DictReader(line for line in written if not line.startswith("#")))
    assert all(float(row["measured_ms"]) > 0 for row in made)
    assert all(float(row["scan_ms"]) > 0 for row in made)
    assert "whole, ms" in capsys.readouterr().out
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_the_letters_of_its_picture_are_large():
    from matplotlib.text import Text

    rows = [{"ladder": ladder, "rung": "1 one", "predicted_ms": 0.02, "scan_ms": 2.0} for ladder in ("search", "spans")]
    figure = picture.draw(rows)
    figure.canvas.draw()
    texts = [found for found in figure.findobj(Text) if found.get_text()]
    assert len(texts) > 10 and min(found.get_fontsize() for found in texts) >= 11
    assert not [found for found in texts if "^" in found.get_text()]  # an exponent is smaller than its text


def test_the_driver_says_what_it_cannot_take(capsys, tmp_path):
    for arguments, message in (
        (["--blocks", "3", "--k", "4"], "--k is 4: give 1 to 3"),
        (["--dimensions", "9000"], "--dimensions is 9000: give 1 to 8192"),
        (["--csv", str(tmp_path / "no" / "f.csv")], "there is no folder"),
    ):
        with pytest.raises(SystemExit):
            driver.main(arguments)
        assert message in capsys.readouterr().err


def test_without_a_device_nothing_runs():
    made = list(rows.search_rows(rows.FULL, counts.CARDS["L4"], None, 1))
    assert len(made) == 6 and all("wrong_close" not in row and "measured_ms" not in row for row in made)
