"""The benchmark's clock, oracle, checks, floors and files, and what it does when something fails."""

import csv
import itertools
from types import SimpleNamespace

import pytest
import torch
from oracle import needs_oracle
from realm_min.kernels import (
    bench,
    bench_clock,
    bench_device,
    bench_peers,
    bench_report,
    bench_search,
    bench_spans,
    bench_tuning,
)

from realm_min.search.mips import mips_topk

CPU = torch.device("cpu")
MEASURED = {"bandwidth": 1e9, "read": 1e9, "float32": 1e12, "tf32": 2e12, "bfloat16": 4e12, "int8": 8e12}


def clock(repeats=3, limit=float("inf")):
    return bench_clock.Clock(CPU, repeats, 1e9, limit)  # however slow the machine is


@pytest.fixture(scope="module")
def searched():
    blocks, queries = bench_search.random_blocks(3000, CPU, 0), bench_search.random_blocks(4, CPU, 1)
    return bench_search.prepare(clock(), MEASURED, blocks, queries, ("torch", "torch bfloat16"), 1)


# ------------------------------------------------------------------------------------------------------- the oracle


def test_the_oracle_tells_exact_from_inexact():
    blocks, queries = bench_search.random_blocks(3000, CPU, 0), bench_search.random_blocks(4, CPU, 1)
    blocks[7] = blocks[2000]  # a tie: the smaller id first
    oracle = bench_search.Oracle(blocks, queries)
    scores, ids = mips_topk(queries, blocks, 40)
    assert oracle.check((scores, ids), 4, 40) == "exact"
    assert oracle.check((scores, ids.flip(1)), 4, 40) == "error 0e+00, 0 of 160 missed"
    assert oracle.check((scores[:3], ids[:3]), 4, 40) == "wrong: (3, 40) scores, (3, 40) ids"
    ids[3, 0] = next(i for i in range(3000) if i not in ids[3])
    assert oracle.check((scores + 0.5, ids), 4, 40) == "error 5e-01, 1 of 160 missed"
    assert oracle.share_of_ids((scores, ids), 4, 40) == "not exact: 99.38% of the ids"


def test_the_oracle_breaks_ties_by_id():
    blocks = torch.ones(10, bench_search.DIMENSIONS)
    [(scores, ids)] = bench_search.Oracle(blocks, blocks[:1]).top(1, 3)
    assert scores.tolist() == [bench_search.DIMENSIONS] * 3 and ids.tolist() == [0, 1, 2]


def test_of_many_queries_eight_are_checked_the_first_and_the_last_among_them():
    oracle = bench_search.Oracle(torch.ones(2, 2), torch.ones(64, 2))
    assert oracle.rows(1) == (0,) and oracle.rows(5) == (0, 1, 2, 3, 4)
    assert oracle.rows(64) == (0, 9, 18, 27, 36, 45, 54, 63)


def test_blocks_do_not_depend_on_their_number():
    assert torch.equal(bench_search.random_blocks(300_000, CPU, 3)[:1000], bench_search.random_blocks(1000, CPU, 3))


# -------------------------------------------------------------------------------------------------------- the clock


def test_ratio_is_the_median_of_the_repeats():
    assert bench_clock.ratio([2.0, 9.0, 4.0], [1.0, 1.0, 2.0]) == 2.0


def test_figures_are_percentiles_beside_the_median_of_ratios():
    seconds = [float(i) for i in range(1, 12)]
    row = bench_clock.figures(seconds, 3.0, [2 * value for value in seconds])
    assert [row[name] for name in ("seconds_p10", "seconds", "seconds_p90")] == [2.0, 6.0, 10.0]
    assert (row["repeats"], row["share_of_floor"], row["against_torch"]) == (11, 0.5, 2.0)
    assert bench_clock.figures(seconds, None, None)["share_of_floor"] is None


def test_contenders_take_turns_and_their_first_and_last_results_are_checked():
    calls, seen = [], []
    contenders = {
        name: lambda name=name: calls.append(name) or torch.ones(900, 900) @ torch.ones(900, 900) for name in "ab"
    }
    measured = clock(repeats=2).by_turns(contenders, lambda name, result: seen.append(name) or "right")
    assert {name: len(times) for name, times in measured.times.items()} == {"a": 2, "b": 2}
    assert measured.checks == {"a": "right", "b": "right"} and seen == ["a", "b", "a", "b"]
    turns = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert turns[-4:] == ["a", "b", "a", "b"]


def test_a_contender_that_fails_drops_out_and_says_why():
    def refuses():
        raise RuntimeError("k is above 2,048\nand more")

    later = iter([1, 1, 1])
    contenders = {"first": lambda: 1, "refuses": refuses, "breaks": lambda: next(later)}
    measured = clock(repeats=3).by_turns(contenders, lambda name, result: "right")
    assert measured.checks["refuses"] == "failed: RuntimeError: k is above 2,048"
    assert measured.checks["breaks"].startswith("failed: StopIteration") and measured.checks["first"] == "right"
    assert measured.times.keys() == {"first"} and len(measured.times["first"]) == 3


def test_a_result_that_changes_is_told():
    results = itertools.chain([True], itertools.repeat(False))
    measured = clock().by_turns({"one": lambda: next(results)}, lambda name, result: "exact" if result else "wrong")
    assert measured.checks == {"one": "exact, the last result wrong"}


def test_no_contender_begins_when_the_time_is_spent():
    assert clock(limit=0).by_turns({"one": lambda: 1}, lambda name, result: "") == ({}, {})
    assert clock(limit=5).until(100).left() < 6 and clock().until(-1).left() < 0


def test_on_a_gpu_each_call_has_two_events_after_the_cache_was_written(monkeypatch):
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("event")

        def elapsed_time(self, other):
            return 250.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("wait"))
    timing = clock()
    timing.cuda, timing.flushed = True, SimpleNamespace(zero_=lambda: told.append("flush"))
    assert timing.once(lambda: told.append("call") or 7) == (0.25, 7)
    assert told == ["wait", "flush", "event", "call", "event", "wait"]


def test_extra_memory_sees_what_a_call_takes():
    taken = bench_clock.extra_memory(lambda: torch.ones(50_000_000).sum(), CPU)
    assert taken is None or 190e6 < taken < 260e6


# -------------------------------------------------------------------------------------------------------- the floor


def test_floor_is_the_larger_of_bytes_and_operations():
    floor = bench_search.search_floor
    assert floor(MEASURED, 1000, 1, "float32", "float32") == (pytest.approx(1000 * 128 * 4 / 1e9), "memory")
    assert floor(MEASURED, 1000, 1, "int8", "int8") == (pytest.approx(1000 * 128 / 1e9), "memory")
    products = pytest.approx(2 * 10_000 * 1000 * 128 / 4e12)
    assert floor(MEASURED, 1000, 10_000, "bfloat16", "bfloat16") == (products, "bfloat16")
    assert floor({"bandwidth": 1e9}, 1000, 10_000, "int8", "int8")[1] == "memory"  # no such rate was measured


@pytest.mark.parametrize(
    "contender, read, queries, cuda, products",
    [
        ("torch", "float32", 64, True, "float32"),
        ("torch tf32", "float32", 64, True, "tf32"),
        ("torch bfloat16", "bfloat16", 64, True, "bfloat16"),
        ("mips_topk", "float32", 1, True, "float32"),
        ("mips_topk", "float32", 64, True, "tf32"),
        ("index bfloat16", "bfloat16", 64, True, "bfloat16"),
        ("index int8", "int8", 1, True, "int8"),
        ("index int8", "int8", 64, False, "float32"),
        ("index float32", "float32", 64, False, "float32"),
    ],
)
def test_a_floor_is_of_the_arithmetic_that_is_used(contender, read, queries, cuda, products):
    assert bench_search.arithmetic(contender, read, queries, cuda) == products


def test_an_index_that_scans_its_blocks_reads_float32():
    index = SimpleNamespace(compression="int8", scan="blocks")
    assert bench_search.what_is_read(index) == "float32"
    assert bench_search.what_is_read(SimpleNamespace(compression="int8", scan="codes")) == "int8"


# -------------------------------------------------------------------------------------------------------- the search


def test_every_search_is_timed_and_checked(searched):
    rows = {row["contender"]: row for row in bench_search.search_rows(searched, 4, 5)}
    ours = ["mips_topk", "index float32", "index bfloat16", "index int8"]
    assert list(rows) == ["torch", "torch bfloat16", *ours]
    assert all(rows[name]["check"] == "exact" and rows[name]["checked_queries"] == 4 for name in ours)
    assert rows["torch"]["against_torch"] == 1 and rows["torch"]["check"].endswith("0 of 20 missed")
    assert rows["torch bfloat16"]["check"].startswith("not exact: ")
    assert rows["index float32"]["rescored_groups"] >= 1 and rows["index float32"]["rescored_rows"] >= 5
    assert bench_report.wrong(list(rows.values())) == []


def test_growth_is_measured_at_each_number_of_blocks(searched):
    rows = list(bench_search.growth_rows(searched, searched.blocks, "blocks", [(500, 3), (900, 3)]))
    assert [(row["section"], row["contender"], row["blocks"]) for row in rows] == [
        ("time against blocks", contender, n)
        for n in (500, 900)
        for contender in ("torch", "index float32", "index int8")
    ]
    assert {row["check"] for row in rows if row["contender"] != "torch"} == {"exact"}


def test_a_peer_whose_index_is_not_built_fails_when_it_is_asked():
    def build():
        raise MemoryError("12 GB")

    with pytest.raises(RuntimeError, match=r"its index was not built, failed: MemoryError: 12 GB"):
        bench_peers.built(build)(torch.ones(1, 2), 1)


def test_tf32_is_allowed_for_one_peer_alone():
    seen = []
    with bench_device.float32_products("high"):
        seen.append(torch.get_float32_matmul_precision())
    assert [*seen, torch.get_float32_matmul_precision()] == ["high", "highest"]


# ------------------------------------------------------------------------------------------ the kernels from within


def test_phases_are_marked_by_name_and_put_back():
    class Module:
        PHASES = ("scan", "select", "not here")
        scan, select = (staticmethod(lambda *given, **named: (given, named)) for _ in range(2))

    own = Module.scan

    def search():
        Module.scan(1, q=2)
        Module.scan(3)
        return Module.select(4)

    with bench_tuning.phases_marked(Module, clock()) as marks:
        assert search() == ((4,), {})
    assert [name for name, _, _ in marks] == ["scan", "scan", "select"]
    assert all(end >= start for _, start, end in marks) and Module.scan is own
    times = bench_tuning.phase_times(clock(repeats=2), Module, search)
    assert list(times) == ["scan", "select", "not here", "other"] and {len(of) for of in times.values()} == {2}
    assert bench_tuning.phase_times(clock(), SimpleNamespace(), search) == {}


def test_a_configuration_is_given_to_the_scans_for_a_while():
    def scan_config(dtype, queries, d):
        return {"ROWS": 64, "BLOCK_Q": 1 if queries == 1 else 64, "BLOCK_D": 128, "num_warps": 4, "num_stages": 3}

    module = SimpleNamespace(scan_config=scan_config)
    with bench_tuning.configured(module, {"ROWS": 32, "BLOCK_Q": 16, "num_warps": 8, "num_stages": None, "new": 1}):
        many, one = (module.scan_config(torch.int8, queries, 128) for queries in (64, 1))
        assert many == {"ROWS": 32, "BLOCK_Q": 16, "BLOCK_D": 128, "num_warps": 8, "num_stages": 3}
        assert one == many | {"BLOCK_Q": 1}
    assert module.scan_config is scan_config
    with bench_tuning.configured(SimpleNamespace(), {"ROWS": 32}):
        pass


def test_a_sweep_proposes_the_fastest_right_configuration(searched):
    module = SimpleNamespace(scan_config=lambda dtype, queries, d: {"ROWS": 64, "num_warps": 4})
    index = searched.indexes["index int8"]

    class Index:
        compression, scan = "int8", "codes"

        def search(self, queries, k):
            config = module.scan_config(torch.int8, len(queries), 128)
            if config["ROWS"] == 256:
                raise ValueError("out of shared memory")
            scores, ids = index.search(queries, k)
            return scores + (config["ROWS"] == 32), ids

    part = searched._replace(indexes={"index int8": Index()})
    tried = [{"ROWS": rows, "num_warps": warps} for rows in (32, 128, 256) for warps in (8,)]
    rows = list(bench_tuning.sweep_rows(part, module, "index int8", 4, 5, tried))
    assert [row["config"] for row in rows] == [
        "as it is", "ROWS=32 num_warps=8", "ROWS=128 num_warps=8", "ROWS=256 num_warps=8",
    ]  # fmt: skip
    assert [row["check"][:7] for row in rows] == ["exact", "error 1", "exact", "failed:"]
    rows[2]["against_own"] = 1.25
    [proposed] = bench_report.proposals(rows)
    assert proposed.startswith("sweep, index int8, queries: 4: of 2 the fastest is ROWS=128 num_warps=8, 1.25x")
    assert bench_report.wrong(rows) == [bench_report.line(rows[1])]


def test_combinations_of_tiles_warps_and_stages():
    tried = bench_tuning.configurations([(64, 32), (128, None)], [4, 8], [3], 64)
    assert sorted(map(bench_tuning.shown, tried)) == [
        "ROWS=128 num_warps=4 num_stages=3",
        "ROWS=128 num_warps=8 num_stages=3",
        "ROWS=64 BLOCK_Q=32 num_warps=4 num_stages=3",
        "ROWS=64 BLOCK_Q=32 num_warps=8 num_stages=3",
    ]
    assert {c["BLOCK_Q"] for c in bench_tuning.configurations(None, None, None, 1)} == {None}


# ------------------------------------------------------------------------------------------------------------- spans


def spans_checked(name):
    rows = list(bench_spans.span_rows(clock(), MEASURED, (2, 12), 0))
    assert [row["contender"] for row in rows] == [name, "ours"] * (len(rows) // 2)
    assert {"spans, forward", "spans, backward", "spans, forward and backward"} <= {row["section"] for row in rows}
    assert all(float(row["check"].removeprefix("error ")) < 3e-6 and row["seconds"] > 0 for row in rows)
    assert bench_report.wrong(rows) == []


@needs_oracle
def test_spans_are_measured_and_checked_against_transformers():
    spans_checked("transformers")


def test_spans_are_measured_against_plain_torch_where_transformers_has_none(monkeypatch):
    monkeypatch.setattr(bench_spans.importlib.util, "find_spec", lambda name: None)
    spans_checked("eager")


@needs_oracle
def test_the_module_in_plain_torch_gives_the_logits_of_transformers():
    case = bench_spans.SpanCase(3, 15, 0, CPU)
    plain = bench_spans.EagerSpans(bench_spans.SPAN_HIDDEN)
    plain.load_state_dict(case.module.state_dict())
    torch.testing.assert_close(plain(case.projections, case.mask)[0], case.module(case.projections, case.mask)[0])


def test_a_span_that_is_far_off_is_wrong():
    row = {"section": "spans, forward", "contender": "ours", "blocks": 2, "tokens": 12}
    checks = ("error 2e-07", "error 2e-07, the last result error 3e-01", "error nan", "failed: RuntimeError: no")
    assert [bool(bench_report.wrong([row | {"check": check}])) for check in checks] == [False, True, True, True]


# -------------------------------------------------------------------------------------------------------- the files


def test_the_csv_holds_its_heading_and_every_row(tmp_path):
    rows = [{"section": "search", "contender": "torch", "seconds": 0.25, "k": 5}]
    bench_report.write_csv(rows, {"device": "a machine", "seed": 0}, tmp_path / "figures.csv")
    lines = (tmp_path / "figures.csv").read_text().splitlines()
    assert lines[:2] == ["# device: a machine", "# seed: 0"]
    [row] = csv.DictReader(lines[2:])
    assert list(row) == bench_report.COLUMNS and (row["seconds"], row["k"], row["queries"]) == ("0.25", "5", "")


def test_a_row_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    log = bench_report.RowLog(tmp_path / "rows.csv", {"seed": 0})
    for k in (5, 6):
        log.write({"section": "search", "contender": "torch", "k": k})
        written = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()[1:]))
        assert [row["k"] for row in written] == ["5", "6"][: k - 4]
    log.close()


TINY = ["--device", "cpu", "--blocks", "1500", "--queries", "1,2", "--k", "5", "--repeats", "2", "--seconds", "0.1"]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(bench, "measure_device", lambda clock: MEASURED)
    monkeypatch.setattr(bench, "SPAN_SIZES", ((2, 12),))
    monkeypatch.setattr(bench, "GROWTH_K", (1, 9, 2000))
    monkeypatch.setattr(bench_spans.importlib.util, "find_spec", lambda name: None)


def test_a_run_writes_figures_and_plots(tiny, tmp_path, capsys):
    bench.main(
        [*TINY, "--peers", "torch", "--sections", "search,spans,growth", "--sizes", "700", "--out", str(tmp_path)]
    )
    drawn = {
        f"kernels-cpu-{name}.png" for name in ("time-against-blocks", "time-against-k", "share-of-floor", "speed-up")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"kernels-cpu.csv", *drawn}
    lines = (tmp_path / "kernels-cpu.csv").read_text().splitlines()
    heading = dict(text[2:].split(": ", 1) for text in lines if text.startswith("#"))
    assert heading["copy bandwidth, GB/s read and written"] == "1.0" and heading["matrix rate, GFLOP/s int8"] == "8000"
    assert heading["commit"] and "torch" in heading["versions"] and "seconds in all" in heading
    rows = list(csv.DictReader(text for text in lines if not text.startswith("#")))
    sections = list(dict.fromkeys(row["section"].split(",")[0] for row in rows))
    assert sections == ["search", "spans", "time against blocks", "time against k"]
    assert "search, " not in capsys.readouterr().err


def test_a_run_that_is_interrupted_keeps_its_rows(tiny, tmp_path, monkeypatch, capsys):
    def rows(searched, count, k, compiles=False):
        yield {"section": "search", "contender": "torch", "blocks": 1500, "queries": count, "k": k}
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "search_rows", rows)
    with pytest.raises(KeyboardInterrupt):
        bench.main([*TINY, "--sections", "search", "--out", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["kernels-cpu.partial.csv"]
    assert (tmp_path / "kernels-cpu.partial.csv").read_text().splitlines()[-1].startswith("search,torch,1500,1,5,")
    assert "stopped: the rows measured so far are in" in capsys.readouterr().out


def test_a_step_that_fails_costs_one_row(tiny, tmp_path, monkeypatch, capsys):
    def rows(searched, count, k, compiles=False):
        if count == 1:
            raise MemoryError("too large")
        yield {"section": "search", "contender": "torch", "blocks": 1500, "queries": count, "k": k}

    monkeypatch.setattr(bench, "search_rows", rows)
    with pytest.raises(SystemExit) as ended:
        bench.main([*TINY, "--sections", "search", "--out", str(tmp_path)])
    assert str(ended.value).splitlines() == [
        "NOT EXACT, or failed:", "search (1, 5): , failed: MemoryError: too large",
    ]  # fmt: skip
    assert len((tmp_path / "kernels-cpu.csv").read_text().splitlines()) > 2
    assert "1,500 blocks, 2 queries, k=5: torch" in capsys.readouterr().out


def test_a_run_stops_when_its_time_is_spent(tiny, tmp_path, capsys):
    bench.main([*TINY, "--seconds-in-all", "0", "--out", str(tmp_path)])
    assert "spent: search (1, 5) and what follows it were not measured" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["kernels-cpu.csv"]


@pytest.mark.parametrize(
    "given, told",
    [
        (["--sections", "search,cooking"], "--sections: nothing is called ['cooking']"),
        (["--peers", "torch,annoy"], "--peers: nothing is called ['annoy']"),
        (["--k", "5,0"], "argument --k: 0 will not do: give whole numbers, 1 or more"),
        (["--warps", "4,8"], "take several numbers with --sweep alone"),
        (["--device", "gpu"], "--device gpu is unknown: give cpu, cuda or cuda:N"),
    ],
)
def test_unknown_options_are_refused(given, told, capsys):
    with pytest.raises(SystemExit):
        bench.parse(["--device", "cpu", *given])
    assert told in capsys.readouterr().err


def test_what_matters_most_is_measured_first():
    options = bench.parse(["--device", "cpu", "--sizes", "1000", "--blocks", "9000"])
    titles = [title for title, _ in bench.steps(options, clock(), MEASURED)]
    assert titles[:6] == [
        "search (1, 5)", "search (64, 5)", "spans (64, 320)", "spans (5, 320)", "search (1, 5000)", "search (64, 5000)",
    ]  # fmt: skip
    assert titles[-2:] == ["growth blocks", "growth k"] and len(titles) == 12
    assert bench.own_or_given(bench.parse(["--device", "cpu", "--tile", "128x64", "--stages", "2"])) == {
        "ROWS": 128, "BLOCK_Q": 64, "num_stages": 2,
    }  # fmt: skip
