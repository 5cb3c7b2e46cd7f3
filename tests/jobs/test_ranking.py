"""Runs, judgements and the measures of rankings, held to values computed by hand."""

import math

import pytest

from realm_min.jobs.ranking import distinct, measures, read_judgements, run_lines


def test_measures_by_hand():
    """Grades at the places 1 to 5: 0, 2, 0, 1, unjudged; one relevant document of grade 3 was not found."""
    judged = {"a": 0, "b": 2, "c": 0, "d": 1, "z": 3}
    found = measures(["a", "b", "c", "d", "new"], judged)
    assert found["recall@1"] == 0 and found["recall@5"] == found["recall@100"] == 2 / 3
    assert found["mrr"] == 1 / 2
    gained = 2 / math.log2(3) + 1 / math.log2(5)
    best = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg@10"] == pytest.approx(gained / best) == pytest.approx(0.355436, abs=1e-6)


def test_ndcg_looks_at_ten_places_and_recall_at_k():
    ranking = [str(i) for i in range(1, 31)]
    found = measures(ranking, dict.fromkeys(["10", "11", "30"], 1))
    assert [found[f"recall@{k}"] for k in (1, 5, 10, 20, 50, 100)] == [0, 0, 1 / 3, 2 / 3, 1, 1]
    assert found["mrr"] == 1 / 10
    assert found["ndcg@10"] == pytest.approx((1 / math.log2(11)) / (1 + 1 / math.log2(3) + 1 / 2))
    assert measures(ranking, {str(i): 1 for i in range(1, 12)})["ndcg@10"] == 1  # eleven are relevant, ten can be shown
    assert set(measures(["x"], {"y": 1}).values()) == {0.0}
    assert set(measures(["x"], {"x": 0}).values()) == set(measures(["x"], {}).values()) == {None}


def test_a_run_names_each_document_once_and_in_order():
    ranking = [("b", 2.5), ("a c", 1 / 3), ("b", 0.25), ("a%20c", 0.125), ("50%", 0.0625)]
    assert "".join(run_lines("q 1", ranking)) == (
        "q%201 Q0 b 1 2.5 realm-min\nq%201 Q0 a%20c 2 0.333333333 realm-min\nq%201 Q0 50% 3 0.0625 realm-min\n"
    )
    assert list(distinct([("a", 1.0), ("a", 1.0), ("c", 1.0), ("b", 1.0)])) == [("a", 1.0), ("c", 1.0), ("b", 1.0)]


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 d1 1\nq1 0 d2 0\n\nq 2 x\n".replace("q 2 x", "q2 Q0 d1 -1"),
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\r\nq2\td1\t-1\n",
        "\ufeffq1\t0\td1\t1\nq1\t0\td2\t0\nq1 0 d2 0\nq2\t0\td1\t-1",
    ],
)
def test_judgements_of_trec_and_beir(tmp_path, text):
    (tmp_path / "qrels").write_text(text, encoding="utf-8")
    assert read_judgements(tmp_path / "qrels") == {"q1": {"d1": 1, "d2": 0}, "q2": {"d1": -1}}


def test_ids_with_spaces_are_those_of_the_run(tmp_path):
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\tmy notes.txt\t1\n")
    assert read_judgements(tmp_path / "qrels.tsv") == {"q%201": {"my%20notes.txt": 1}}


@pytest.mark.parametrize(
    "line",
    ["q1 0 d1", "q1 0 d1 high", "q1 0 d1 1 more", "q1 0 d0 2", "q1", "q1 0 d1 1000001", f"q1 0 d1 -1{'0' * 400}"],
)
def test_a_malformed_judgement_is_named(tmp_path, line):
    (tmp_path / "qrels").write_text(f"q1 0 d0 1\n{line}\n")
    with pytest.raises(ValueError, match=rf"qrels line 2 is '{line[:80]}': each needs"):
        read_judgements(tmp_path / "qrels")


def test_a_file_without_judgements_is_refused(tmp_path):
    (tmp_path / "qrels").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(ValueError, match="qrels holds no judgement"):
        read_judgements(tmp_path / "qrels")
