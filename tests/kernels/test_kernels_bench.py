"""The benchmark's own arithmetic: its oracle, its ratios, its checks and its table of figures."""

import csv

import pytest
import torch
from oracle import needs_oracle
from realm_min.kernels import bench, bench_clock, bench_report, bench_search, bench_spans
from rich.progress import Progress

from realm_min.search.mips import mips_topk

CPU = torch.device("cpu")


def test_the_oracle_tells_exact_from_inexact():
    blocks, queries = bench_search.random_blocks(3000, CPU, 0), bench_search.random_blocks(4, CPU, 1)
    blocks[7] = blocks[2000]  # a tie: the smaller id first
    oracle = bench_search.Oracle(blocks, queries)
    scores, ids = mips_topk(queries, blocks, 40)
    assert oracle.check((scores, ids), 4, 40) == "exact"
    assert oracle.check((scores, ids.flip(1)), 4, 40) == "error 0e+00, 0 of 120 missed"
    ids[3, 0] = next(i for i in range(3000) if i not in ids[3])
    assert oracle.check((scores + 0.5, ids), 4, 40) == "error 5e-01, 1 of 120 missed"


def test_the_oracle_breaks_ties_by_id():
    blocks = torch.ones(10, bench_search.DIMENSIONS)
    scores, ids = bench_search.Oracle(blocks, blocks[:1]).top(0, 3)
    assert scores.tolist() == [bench_search.DIMENSIONS] * 3 and ids.tolist() == [0, 1, 2]


def test_blocks_do_not_depend_on_their_number():
    assert torch.equal(bench_search.random_blocks(300_000, CPU, 3)[:1000], bench_search.random_blocks(1000, CPU, 3))


def test_ratio_is_the_median_of_the_repeats():
    assert bench_clock.ratio([2.0, 9.0, 4.0], [1.0, 1.0, 2.0]) == 2.0


def test_floor_is_the_larger_of_bytes_and_operations():
    measured = {"bandwidth": 1e9, "torch.float32": 1e12, "torch.bfloat16": 4e12}
    assert bench_search.search_floor(measured, 1000, 1, None, False) == pytest.approx(1000 * 128 * 4 / 1e9)
    assert bench_search.search_floor(measured, 1000, 1, "int8", False) == pytest.approx(1000 * 128 / 1e9)
    assert bench_search.search_floor(measured, 1000, 10_000, "bfloat16", True) == pytest.approx(
        2 * 10_000 * 1000 * 128 / 4e12
    )


@needs_oracle
def test_spans_are_measured_and_checked_against_transformers():
    clock = bench_clock.Clock(CPU, 3, 1.0)
    measured = {"bandwidth": 1e9, "torch.float32": 1e12}
    with Progress(disable=True) as progress:
        rows = bench_spans.bench_spans(clock, measured, [(2, 12)], 0, progress)
    assert [row["contender"] for row in rows] == ["transformers", "ours"] * 4
    assert all(float(row["check"].removeprefix("error ")) < 3e-6 and row["seconds"] > 0 for row in rows)


def test_the_csv_holds_its_heading_and_every_row(tmp_path):
    rows = [{"section": "search", "contender": "torch", "seconds": 0.25, "k": 5}]
    bench_report.write_csv(rows, {"device": "a machine", "seed": 0}, tmp_path / "figures.csv")
    lines = (tmp_path / "figures.csv").read_text().splitlines()
    assert lines[:2] == ["# device: a machine", "# seed: 0"]
    [row] = csv.DictReader(lines[2:])
    assert list(row) == bench_report.COLUMNS and (row["seconds"], row["k"], row["queries"]) == ("0.25", "5", "")


def test_extra_memory_sees_what_a_call_takes():
    taken = bench_clock.extra_memory(lambda: torch.ones(50_000_000).sum(), CPU)
    assert taken is None or 190e6 < taken < 260e6


def test_unknown_sections_are_refused(capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--sections", "search,cooking"])
    assert "no section ['cooking']" in capsys.readouterr().err
