"""The kernels compiled ahead of time for GPU architectures, without a GPU, and held to benchmarks/machine-code.csv.

The suite compiles for Hopper what is launched most, the table's rows. `make test-kernels` compiles every variant that a
launch can choose for all of the table's architectures: each takes a second.

Compilation runs in processes of its own: in this one Triton may be interpreting.
"""

import csv
import os
import sys
from pathlib import Path

import processes
import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/machine_code.py"
WHOLE = "ARCHITECTURES" in os.environ
ARCHITECTURES = os.environ.get("ARCHITECTURES", "90").split()
MODULES = ("mips_topk", "span_logits")
SHARED_LIMIT = 99 * 1024  # bytes a program may use on sm_86, sm_89 and sm_120, the least of those that run the kernels


def rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [{name: int(value) if value.isdigit() else value for name, value in row.items()} for row in found]


TABLE = [row for row in rows(PROGRAM.with_name("machine-code.csv")) if row["architecture"][3:] in ARCHITECTURES]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    shards = 2 if WHOLE else 1
    outs = [folder / f"{shard}.csv" for shard in range(shards)]
    options = ["--architectures", *ARCHITECTURES, *(["--all"] if WHOLE else [])]
    commands = [
        [sys.executable, PROGRAM, *options, "--shard", shard, shards, "--out", out] for shard, out in enumerate(outs)
    ]
    processes.run(*commands, env=environment, seconds=1200 if WHOLE else 300)
    return [row for out in outs for row in rows(out)]


def test_every_variant_compiles(compiled):
    names = [(row["module"], row["variant"], row["architecture"]) for row in compiled]
    assert len(names) == len(set(names)), "two share a name"
    main = {(row["module"], row["variant"], row["architecture"]) for row in TABLE}
    assert main <= set(names) if WHOLE else main == set(names), "make machine-code"
    assert {module for module, *_ in main} == set(MODULES)


def test_nothing_spills_to_local_memory(compiled):
    spilled = [row for row in compiled if row["spilled bytes"]]
    assert not spilled, spilled
    assert all(0 < row["registers"] <= 255 for row in compiled)


def test_shared_memory_fits_every_gpu(compiled):
    too_large = [row for row in compiled if row["shared bytes"] > SHARED_LIMIT]
    assert not too_large, too_large


def test_rounding_is_what_the_bounds_assume(compiled):
    """A product and sum in one rounding are asked for by name; roots and quotients of the search are rounded right.

    No bound rests on the logits of spans: their quotient and root may be two units in the last place wrong.
    """
    assert {row["fp fusion"] for row in compiled} == {"True"}
    approximate = {module: {row["approximations"] for row in compiled if row["module"] == module} for module in MODULES}
    assert approximate["mips_topk"] == {""}
    assert approximate["span_logits"] <= {"", "div.full.f32 rsqrt.approx.ftz.f32"}


def test_machine_code_is_no_worse_than_the_table_says(compiled):
    """A fifth is left to versions of Triton. What is better, or meant, goes into the table by `make machine-code`."""
    found = {(row["variant"], row["architecture"]): row for row in compiled}
    worse = []
    for row in TABLE:
        now = found[row["variant"], row["architecture"]]
        names = [x for x in ("registers", "instructions", "loop instructions") if now[x] > 1.2 * row[x]]
        names += [x for x in ("shared bytes", "loop shuffles", "loop barriers") if now[x] > row[x]]
        names += [x for x in ("loop tensor core",) if now[x] != row[x]]
        names += [x for x in ("loop loads",) if str(now[x]).split()[:1] != str(row[x]).split()[:1]]  # the widest
        worse += [(row["variant"], row["architecture"], x, row[x], now[x]) for x in names]
    assert not worse, worse


def test_a_thread_sums_most_of_a_row_of_spans():
    """Eight lanes hold a row of 256 columns: three sums of three shuffles, and 67 to 85 instructions a row."""
    for row in TABLE:
        if row["variant"].startswith("span logits"):
            assert row["loop shuffles"] == 9 and row["loop instructions"] <= 4 * 85, row
            assert row["loop loads"].startswith("128:8" if "fp32" in row["variant"] else "128:4"), row
