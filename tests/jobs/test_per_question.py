"""Files of what each question gave: written and read, in both forms, and matched with each other."""

import csv
import json

import pytest

from realm_min.jobs.per_question import (
    measured_by_all,
    read_per_question,
    read_sides,
    rows_written,
    shared_measures,
    values,
)

ROWS = [
    {"line": 1, "id": "a", "question": 'Said "no, no"?\r\nWhy?', "prediction": "é,", "top_1_match": 1.0, "f1": None},
    {"line": 2, "id": "b", "question": "=half a pair \ud800", "prediction": "", "top_1_match": 0.0, "f1": None},
    {"line": 3, "id": "c", "question": "", "prediction": "", "skipped": "has no \"question\"; each line needs one"},
]  # fmt: skip


def written(path, rows):
    with rows_written(path) as held:
        held += rows
    return path


@pytest.mark.parametrize("name", ["x.csv", "X.CSV", "x.jsonl", "x"])
def test_what_is_written_is_read(tmp_path, name):
    path = written(tmp_path / name, ROWS)
    found = read_per_question(path)
    half = "=half a pair \\ud800" if name.lower().endswith(".csv") else ROWS[1]["question"]
    assert found.rows == {
        ("a", ROWS[0]["question"]): {"top_1_match": 1.0, "f1": None},
        ("b", half): {"top_1_match": 0.0, "f1": None},
        ("c", ""): None,
    }
    assert found.measures == ["top_1_match"]  # nobody has an F1


def test_a_table(tmp_path):
    lines = written(tmp_path / "x.csv", ROWS).read_bytes().decode().split("\n")
    assert lines[0] == "line,id,question,prediction,top_1_match,f1,skipped"
    assert lines[1:3] == ['1,a,"Said ""no, no""?\r', 'Why?","é,",1.0,,']
    assert lines[4] == '3,c,,,,,"has no ""question""; each line needs one"'


def test_nothing_is_written_where_the_work_fails(tmp_path):
    (tmp_path / "x.csv").write_text("old")
    with pytest.raises(KeyError), rows_written(tmp_path / "x.csv"):
        raise KeyError
    assert (tmp_path / "x.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with rows_written(None) as rows:
        rows.append({})


def test_tables_of_others(tmp_path):
    """Columns that are no numbers from 0 to 1 are no measures; an id is not needed."""
    path = tmp_path / "theirs.csv"
    path.write_bytes("\ufeffquestion;x,seed,right,source\nWho?,7,1,web\nWhy?,7,0.5,\n".replace(";x", "").encode())
    found = read_per_question(path)
    assert found.rows == {("", "Who?"): {"right": 1.0}, ("", "Why?"): {"right": 0.5}}


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_an_id_of_0_is_one(tmp_path, name):
    rows = [{"id": number, "question": "Who?", "right": number / 2} for number in (0, 1, 2)]
    found = read_per_question(written(tmp_path / name, [*rows, {"id": None, "question": "Who?", "right": 0.25}]))
    assert {key: row["right"] for key, row in found.rows.items()} == {
        ("0", "Who?"): 0, ("1", "Who?"): 0.5, ("2", "Who?"): 1, ("", "Who?"): 0.25
    }  # fmt: skip


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_long_text_is_read(tmp_path, name):
    """Python's reader of tables refuses more than 131,072 characters, but for all of a process or for none."""
    before, rows = csv.field_size_limit(), [{"question": "Who?", "prediction": "x" * 140_000, "right": 1.0}]
    assert read_per_question(written(tmp_path / name, rows)).rows == {("", "Who?"): {"right": 1.0}}
    assert csv.field_size_limit() == before


def test_a_number_that_no_float_holds_is_no_measure(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"question": "Who?", "a": 1, "b": 1%s}\n' % ("0" * 400))
    assert read_per_question(tmp_path / "x.jsonl").measures == ["a"]


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("x.csv", "", "x.csv holds no question"),
        ("x.csv", "question,a\n", "x.csv holds no question"),
        ("x.csv", "query,a\nWho?,1\n", 'x.csv has no "question" of each row'),
        ("x.csv", "question,a\nWho?,1\nWho?,0\n", r"x.csv has the question 'Who\?' twice, with no id to tell w"),
        ("x.csv", "question,a\nWho?,1,2\n", "x.csv line 2 has other columns than the first"),
        ("x.csv", "question,a\nWho?,1\nWhy?\n", "x.csv line 3 has other columns than the first"),
        ("x.jsonl", '{"question": 3}\n', 'x.jsonl has no "question" of each row'),
        ("x.jsonl", "question,a\n", "x.jsonl line 1 is not valid JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_per_question(tmp_path / name)


def table(path, **measures):
    """A file of the questions q0, q1, …; a value that is "skipped" is none."""
    rows = []
    for number, of_question in enumerate(zip(*measures.values(), strict=True)):
        row = {"line": number + 1, "id": str(number), "question": f"q{number}"}
        skipped = {"skipped": "too long"} if "skipped" in of_question else dict(zip(measures, of_question, strict=True))
        rows.append(row | skipped)
    return written(path, rows)


def test_sides_are_matched_by_question(tmp_path):
    a = table(tmp_path / "a.csv", em=[1, 0, 1, "skipped"], f1=[1, 0, 0.5, "skipped"])
    b = table(tmp_path / "b.jsonl", em=[0, 1, "skipped", 1], extra=[1, 1, "skipped", 1])
    lines = b.read_text().splitlines()
    b.write_text("\n".join(reversed(lines)))  # in another order
    left, right = read_sides([a, b], None)
    assert [file.path for file in (*left, *right)] == [str(a), str(b)]
    assert shared_measures(left, right) == ["em"]
    questions = measured_by_all("em", [*left, *right])
    assert questions == [("0", "q0"), ("1", "q1")]
    assert values(left, "em", questions) == [[1, 0]] and values(right, "em", questions) == [[0, 1]]
    left, right = read_sides([a, a], [b])
    assert len(left) == 2 and len(right) == 1


def test_files_of_other_questions_are_refused(tmp_path):
    a = table(tmp_path / "a.csv", em=[1, 0, 1])
    b = table(tmp_path / "b.csv", em=[1, 0])
    message = r"a.csv and \S*b.csv are not of the same questions: 1 of \S*{} are not in \S*{}, 'q2' the first: measure"
    with pytest.raises(ValueError, match=message.format("a.csv", "b.csv")):
        read_sides([a, b], None)
    with pytest.raises(ValueError, match=r"b.csv and \S*a.csv are not of the same questions: 1 of \S*a.csv are not in"):
        read_sides([b, a], None)
    (tmp_path / "c.csv").write_text("id,question,em\n0,q0,1\n1,q1,1\n2,q7,1\n")  # one text is another
    with pytest.raises(ValueError, match=r"1 of \S*a.csv are not in \S*c.csv, 'q2' the first"):
        read_sides([a], [a, tmp_path / "c.csv"])


def test_measures_that_are_not_in_all_are_refused(tmp_path):
    a, b = table(tmp_path / "a.csv", em=[1, 0]), table(tmp_path / "b.csv", f1=[1, None])
    with pytest.raises(ValueError, match=r"no measure is in every file: \S*a.csv has em; \S*b.csv has f1"):
        shared_measures(*read_sides([a, b], None))
    with pytest.raises(ValueError, match=r"b.csv has no measure 'em': it has f1"):
        shared_measures(*read_sides([a, b], None), ["em"])
    c = table(tmp_path / "c.csv", f1=[1, 1])
    with pytest.raises(ValueError, match=r"f1 of 'q1' is in \S*c.csv and not in \S*b.csv: measure both the same way"):
        measured_by_all("f1", [read_per_question(path) for path in (b, c)])
    d, e = table(tmp_path / "d.csv", em=[1, "skipped"]), table(tmp_path / "e.csv", em=["skipped", 1])
    with pytest.raises(ValueError, match="no question has a value of em in every file"):
        measured_by_all("em", [read_per_question(path) for path in (d, e)])


def test_json_of_others_may_have_true_and_false(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "right": bool(i), "n": 3}) + "\n" for i in range(2)))
    assert read_per_question(path).rows == {("", "q0"): {"right": 0.0}, ("", "q1"): {"right": 1.0}}
