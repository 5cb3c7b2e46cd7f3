"""The cost model of several ranks: its arithmetic, its recorded constants, and the tables that stand in documents."""

import math
from pathlib import Path

import bench_scale
import pytest
import ranks
import scale_model
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.progress import Progress

from realm_min import RealmConfig, RealmEmbedder
from realm_min.ranks import distributed
from realm_min.ranks.distributed import World
from realm_min.search.mips import BlockIndex

DOCUMENTS = [Path(__file__).parents[2] / name for name in ("docs/scaling.md", "docs/processes.md")]
SMALL = ("block", "pair", "query", "candidate")  # constants that a fit may leave at 0
CONSTANTS = {
    "cores": 2.0, "process": 3e8, "scan alone": 7e9, "scan together": 1e10, "product alone": 1e11,
    "product together": 1.9e11, "gather latency": 5e-4, "gather bandwidth": 1e9, "reduce latency": 6e-4,
    "reduce bandwidth": 2e9, "embed rate": 8e10, "embed rate base": 9e10, "tokens": 220.0, "train rate": 7e10,
    "update": 2e-9,
    **{f"{codes} {name}": value for codes, scale in (("float32", 1), ("int8", 0.4))
       for name, value in (("block", scale * 7e-8), ("pair", scale * 3e-9), ("query", 6e-4), ("candidate", 2e-7))},
}  # fmt: skip
IDEAL = {  # with which two cores are twice one
    **CONSTANTS, "scan together": 2 * CONSTANTS["scan alone"], "product together": 2 * CONSTANTS["product alone"],
}  # fmt: skip
block_counts, rank_counts = st.integers(1, 10**10), st.integers(1, 4096)
codes = st.sampled_from(["float32", "int8"])


@given(block_counts, rank_counts, codes)
def test_a_slice_takes_its_share_of_the_memory(n, r, c):
    whole, part = scale_model.index_bytes(n, 1, c), scale_model.index_bytes(n, r, c)
    one_row = 4 * 128 + (128 if c == "int8" else 0) + scale_model.BOUND_BYTES[c]
    assert whole / r <= part <= whole / r + one_row


@pytest.mark.parametrize("compression", [None, "bfloat16", "int8"])
@pytest.mark.parametrize("n", [1, 16, 1000])
def test_the_index_takes_the_bytes_that_the_model_says(n, compression):
    index = BlockIndex(torch.randn(n, 128), compression)
    assert index.nbytes == scale_model.index_bytes(n, 1, compression or "float32")


@given(block_counts, st.sampled_from([8, 16, 64, 256]), codes)
def test_the_machines_needed_are_the_fewest(n, gib, c):
    machines = scale_model.machines_needed(CONSTANTS, n, gib * 2**30, c)

    def fits(count):
        return scale_model.index_bytes(n, 2 * count, c) + CONSTANTS["process"] <= gib * 2**30 / 2

    assert fits(machines) and (machines == 1 or not fits(machines - 1))


def test_a_machine_without_room_for_a_model_is_refused():
    with pytest.raises(ValueError, match=r"1 GiB leave -0\.52 GiB for a slice on each of 2 ranks"):
        scale_model.machines_needed(CONSTANTS, 10**6, 2**30, "int8", parameters=50_000_000)


@given(st.integers(10**6, 10**9), st.sampled_from([1, 2]), codes)
def test_cores_of_their_own_halve_the_search(n, r, c):
    """But for the exchange, and for what a query costs whatever the slice."""
    one = scale_model.search_seconds(IDEAL, n, r, 1, 5, c)
    two = scale_model.search_seconds(IDEAL, n, 2 * r, 1, 5, c, machines=r)
    fixed = scale_model.slice_seconds(IDEAL, 1, 1, 5, c) + 128 * 5 * IDEAL[f"{c} candidate"]
    assert one / 2 <= two * (1 + 1e-9)
    exchanges = sum(scale_model.gather_seconds(IDEAL, 2 * r, b, r) for b in scale_model.exchanged_bytes(2 * r, 1, 5))
    assert two <= one / 2 + fixed + exchanges + 1e-6


@given(st.floats(1, 64))
def test_ranks_without_cores_of_their_own_bring_nothing(r):
    assume(r >= 2)
    assert scale_model.stretch(IDEAL, "product", r) == pytest.approx(r / 2)
    assert scale_model.embed_seconds(IDEAL, int(r), 1e12) >= scale_model.embed_seconds(IDEAL, 2, 1e12) * (1 - 1e-9)


def test_shared_bandwidth_makes_a_rank_slower():
    assert scale_model.stretch(CONSTANTS, "scan", 1) == 1
    assert scale_model.stretch(CONSTANTS, "scan", 2) == pytest.approx(7e9 / 5e9)
    assert scale_model.stretch(CONSTANTS, "scan", 4) == pytest.approx(7e9 / 2.5e9)


@given(rank_counts, st.integers(0, 10**9))
def test_a_ring_moves_the_message_once_and_its_sum_twice(r, count):
    machines = max(1, r // 2)
    free = {**CONSTANTS, "gather latency": 0.0, "reduce latency": 0.0, "reduce bandwidth": 1e9, "cores": 4096.0}
    gather = scale_model.gather_seconds(free, r, count, machines)
    reduce = scale_model.reduce_seconds(free, r, count)
    assert gather == pytest.approx((r - 1) * count / 1e9)
    assert reduce == pytest.approx(2 * (r - 1) / r * count / 1e9) and reduce < 2 * count / 1e9 + 1e-12
    assert scale_model.reduce_seconds(CONSTANTS, 1, count) == scale_model.gather_seconds(CONSTANTS, 1, count) == 0


@given(st.integers(1, 256), st.integers(1, 64), st.integers(1, 100))
def test_every_query_is_sent_and_its_candidates_come_back(r, queries, k):
    head, sent, back = scale_model.exchanged_bytes(r, queries, k)
    share = math.ceil(queries / r)
    assert (head, sent, back) == (32, share * 512, share * 8 * k)


def test_queries_go_in_chunks_that_fit():
    assert scale_model.passes(1_000_000, 64, 5) == 1
    assert scale_model.passes(1_000_000, 65, 5) == 2
    assert scale_model.passes(13_353_718, 64, 5) == 2  # 104,326 groups: 40 queries at once
    assert scale_model.passes(1_000_000_000, 64, 5) == 64


@given(st.lists(st.floats(1e-10, 1e-2), min_size=4, max_size=4))
def test_the_fit_finds_the_constants_it_was_given(wanted):
    rows = [
        {"blocks": n, "queries": q, "k": k,
         "value": sum(c * t for c, t in zip(wanted, scale_model.search_terms(n, q, k), strict=True))}
        for n in (10**6, 2 * 10**6) for q in (1, 8, 64) for k in (5, 100)
    ]  # fmt: skip
    found = scale_model.fit_search(rows)
    for row in rows:
        terms = scale_model.search_terms(row["blocks"], row["queries"], row["k"])
        assert sum(c * t for c, t in zip(found, terms, strict=True)) == pytest.approx(row["value"], rel=1e-6)


def test_no_fitted_constant_is_negative():
    rows = [{"blocks": n, "queries": q, "k": 5, "value": 1e-7 * n / q} for n in (10**6, 2 * 10**6) for q in (1, 8, 64)]
    assert min(scale_model.fit_search(rows)) >= 0


def test_parameters_and_operations_are_those_of_the_encoder():
    config = RealmConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=100, vocab_size=70
    )
    trunk = [
        tensor for key, tensor in RealmEmbedder(config).state_dict().items()
        if key.startswith("realm.") and "pooler" not in key
    ]  # fmt: skip
    assert scale_model.encoder_parameters(config) == sum(tensor.numel() for tensor in trunk)
    dense = sum(
        tensor.numel() for key, tensor in RealmEmbedder(config).state_dict().items()
        if ".layer." in key and key.endswith("weight") and tensor.dim() == 2
    )  # fmt: skip
    assert scale_model.encoder_flops(config, [7, 9]) == 2 * dense * 16 + 3 * 4 * 48 * (7**2 + 9**2)
    bert = scale_model.encoder_parameters(RealmConfig())
    assert bert == 108_891_648  # BERT-base without its pooler of 590,592


@given(st.integers(1, 2), st.floats(1e9, 1e15), st.integers(1, 10**9))
def test_a_step_is_its_parts(r, flops, parameters):
    step = scale_model.train_seconds(IDEAL, r, flops, parameters, search=0.25)
    assert step == pytest.approx(
        0.25 + 3 * flops / r / 7e10 + scale_model.gradients_seconds(IDEAL, r, parameters) + 2e-9 * parameters
    )


def test_tables_are_filled_in_by_name():
    text = "before\n<!-- table: one -->\nold\nolder\n<!-- end of table -->\nafter\n"
    filled = scale_model.fill(text, {"one": "| a |"})
    assert filled == "before\n<!-- table: one -->\n| a |\n<!-- end of table -->\nafter\n"
    assert scale_model.fill(filled, {"one": "| a |"}) == filled
    with pytest.raises(ValueError, match="no table is called 'one': choose one of two"):
        scale_model.fill(text, {"two": ""})


def tiny_searches(path):
    """The rows of the benchmark's search on two ranks, from rank 0."""
    bench_scale.QUERIES = {1: 2, 4: 1}
    worlds = {1: World(), 2: distributed.world()}
    bench = bench_scale.Bench(distributed.world(), worlds, Progress(disable=True), process=0, repeats=1, seed=0)
    return bench_scale.search(bench, path)


def test_the_benchmark_searches_on_ranks_and_alone(tmp_path):
    """It ends the run where ranks find other blocks than one BlockIndex."""
    bench_scale.write_blocks(tmp_path / "blocks.npy", 801, seed=0)
    rows, other = ranks.run(tiny_searches, 2, tmp_path / "blocks.npy")
    assert rows == other and len(rows) == 2 * 2 * 2 * 4
    assert {(row["name"], row["ranks"]) for row in rows} == {
        ("BlockIndex", 1), ("threads", 1), ("ranks", 1), ("ranks", 2)
    }  # fmt: skip
    assert {(row["blocks"], row["queries"], row["codes"]) for row in rows} == {
        (n, q, c) for n in (801, 300) for q in (1, 4) for c in ("float32", "int8")
    }
    for row in rows:
        assert 0 < row["lowest"] <= row["value"] <= row["highest"]
        assert ("share" in row) == (row["ranks"] == 2) and 0 <= row.get("share", 0) < 1


# ---- what was recorded


@pytest.fixture(scope="module")
def recorded():
    return scale_model.read()[1]


def test_every_constant_was_recorded(recorded):
    constants = scale_model.constants_of(recorded)
    assert constants.keys() == scale_model.CONSTANTS.keys()
    assert min(value for name, value in constants.items() if name.split()[-1] not in SMALL) > 0
    for work in ("scan", "product"):
        assert constants[f"{work} together"] <= 1.2 * constants["cores"] * constants[f"{work} alone"]


def test_every_prediction_is_within_a_quarter_of_the_measurement(recorded):
    constants = scale_model.constants_of(recorded)
    compared = [row for row in recorded if row["section"] in scale_model.SECTIONS and row["name"] != "threads"]
    assert {(row["section"], row["ranks"]) for row in compared} == {
        (section, ranks) for section in scale_model.SECTIONS for ranks in (1, 2, 4)
    }
    for row in compared:
        assert scale_model.predicted(constants, row) == pytest.approx(row["value"], rel=0.25), row


def test_two_ranks_bring_what_the_readme_says(recorded):
    two = [row for row in recorded if row["name"] == "ranks" and row["ranks"] == 2]
    largest = [row for row in two if row["section"] == "search" and row["blocks"] == 4_000_000]
    assert {(row["codes"], row["queries"]) for row in largest} == {
        (codes, queries) for codes in ("float32", "int8") for queries in (1, 64)
    }
    assert all(row["share"] < 0.05 for row in largest)
    assert all(row["ratio"] >= 1.7 for row in largest if row["codes"] == "float32")
    assert all(row["ratio"] >= 1.8 for row in two if row["section"] == "embedding")


def test_a_slice_took_the_memory_that_the_model_says(recorded):
    held = [row for row in recorded if "bytes" in row and row["blocks"] == 4_000_000]
    assert len(held) >= 6
    for row in held:
        said = scale_model.index_bytes(int(row["blocks"]), int(row["ranks"]), row["codes"])
        assert said == pytest.approx(row["bytes"], rel=0.25), row


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_hold_the_tables_of_what_was_recorded(document, recorded):
    text = document.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert scale_model.fill(text, scale_model.tables(recorded)) == text


def test_a_plan_takes_another_network(recorded):
    constants = scale_model.constants_of(scale_model.over_network(recorded, 1.0, None))
    assert constants["gather latency"] == constants["reduce latency"] == 1
    assert constants["gather bandwidth"] == scale_model.constants_of(recorded)["gather bandwidth"]
    plan = scale_model.Plan(memory=(64,))
    assert scale_model.plan_tables(constants, [10**9], plan)["plan search"].count("\n") == 2
    assert scale_model.search_seconds(constants, 10**9, 20, 1, 5, "int8", 10) > 3 * 19
