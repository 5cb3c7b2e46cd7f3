"""Files of questions as people have them: every form is read, and a line that cannot be costs itself alone."""

import gzip
import json
import os
import sys

import pytest

from realm_min.jobs.per_question import read_per_question
from realm_min.jobs.ranking import read_judgements
from realm_min.text.questions import (
    Question,
    Row,
    listed,
    read_questions,
    read_rows,
    read_training_questions,
    rows_to_ask,
)

NO_ANSWER = 'has no "answer"; each line needs one, a list of strings'
NO_QUESTION = 'has no "question"; each line needs one, a string that is not empty'


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.mark.parametrize(
    "name, data, expected",
    [
        ("nq.jsonl", '{"question": "who?", "answer": ["A", "b"]}\n', Question("who?", ["A", "b"])),
        ("bom.jsonl", b'\xef\xbb\xbf{"question": "who?", "answer": ["A"]}\r\n\r\n', Question("who?", ["A"])),
        ("utf16.jsonl", '{"question": "who?", "answer": ["A"]}\n'.encode("utf-16"), Question("who?", ["A"])),
        ("z.jsonl.gz", gzip.compress(b'{"question": "who?", "answer": ["A"]}', mtime=0), Question("who?", ["A"])),
        ("dpr.json", '[{"question": "who?", "answers": ["A"], "ctxs": []}]', Question("who?", ["A"])),
        ("lines.json", '{"question": "who?", "answers": ["A"]}\n', Question("who?", ["A"])),
        ("dpr.csv", "who?\t['A', \"b's\"]\r\n", Question("who?", ["A", "b's"])),
        ("quoted.csv", '"who, ""x""?"\t"[""Röntgen""]"\n', Question('who, "x"?', ["Röntgen"])),
        ("header.tsv", "question\tanswers\nwho?\t['A']\n", Question("who?", ["A"])),
        ("comma.csv", "who?,\"['A', 'b']\"\n", Question("who?", ["A", "b"])),
        ("open.tsv", "\"open who?\t['A\\d']\n", Question('"open who?', ["A\\d"])),
    ],
)
def test_every_form_is_read(tmp_path, name, data, expected):
    assert list(read_questions(written(tmp_path, name, data))) == [expected]


@pytest.mark.parametrize(
    "name, line, reason",
    [
        ("q.jsonl", '{"answer": ["a"]}', NO_QUESTION),
        ("q.jsonl", '{"question": "  ", "answer": ["a"]}', NO_QUESTION),
        ("q.jsonl", '{"question": "who?"}', NO_ANSWER),
        ("q.jsonl", '{"question": "who?", "answer": []}', NO_ANSWER),
        ("q.jsonl", '{"question": "who?", "answer": "a"}', NO_ANSWER),
        ("q.jsonl", '{"question": "who?", "answer": [1]}', NO_ANSWER),
        ("q.jsonl", "[1]", "is a list; each line must be a JSON object"),
        ("q.jsonl", '{"question": ', "is not valid JSON (Expecting value: line 2 column 1 (char 14))"),
        (
            "q.jsonl",
            '{"x": ' + "[" * 90_000 + "]" * 90_000 + "}",
            "is not valid JSON (maximum recursion depth exceeded",
        ),
        ("q.jsonl", b"\xff", "is not valid JSON ('utf-8' codec"),
        ("q.tsv", "who?", "has 1 columns; each line needs two, a question and a list of answers"),
        ("q.tsv", "who?\ta\tb", "has 3 columns"),
        ("q.tsv", "who?\t['a', 1]", NO_ANSWER),
        ("q.tsv", "who?\t" + "[" * 90_000, "has '[[["),
        (
            "q.tsv",
            "who?\t__import__('os').mkdir('ran')",
            "has \"__import__('os').mkdir('ran')\" for answers; give a list",
        ),
        ("q.tsv", b"who?\t\xff", "cannot be read ('utf-8' codec"),
    ],
)
def test_a_malformed_line_costs_itself_alone(tmp_path, monkeypatch, name, line, reason):
    monkeypatch.chdir(tmp_path)
    good = b'{"question": "who?", "answer": ["A"]}' if name == "q.jsonl" else b"who?\t['A']"
    data = line if isinstance(line, bytes) else line.encode()
    path = written(tmp_path, name, b"\n".join([good, b"", data, good]))
    first, bad, last = rows_to_ask(path)
    assert (first.line, first.question) == (1, Question("who?", ["A"]))
    assert (last.line, last.question) == (4, Question("who?", ["A"]))
    assert (bad.line, bad.question) == (3, None) and bad.reason.startswith(reason)
    assert not (tmp_path / "ran").exists()
    questions = read_questions(path)
    next(questions)
    with pytest.raises(ValueError) as caught:
        next(questions)
    assert str(caught.value).startswith(f"{path} line 3 {reason}")


def test_items_of_an_array_are_named_by_their_number(tmp_path):
    path = written(tmp_path, "q.json", json.dumps([{"question": "who?", "answers": ["A"]}, 3]))
    assert list(read_rows(path)) == [
        Row(1, Question("who?", ["A"])), Row(2, None, "", "is a int; each line must be a JSON object"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"q\.json is not valid JSON"):
        list(read_rows(written(tmp_path, "q.json", '[{"question": "who?"},')))
    with pytest.raises(ValueError, match=r"q\.jsonl\.gz is damaged or not gzipped"):
        list(read_rows(written(tmp_path, "q.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9])))


def test_ids_and_questions_without_answers(tmp_path):
    """Judgements of documents need no answers, and ids that tell questions apart."""
    lines = [{"_id": "a", "text": "who?"}, {"id": 7, "question": "why?"}, {"_id": "a", "text": "how?"}, {"text": "x?"}]
    path = written(tmp_path, "queries.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert list(rows_to_ask(path, judged=True)) == [
        Row(1, Question("who?", []), "a"),
        Row(2, Question("why?", []), "7"),
        Row(3, None, "a", "has the id 'a' of line 1"),
        Row(4, Question("x?", []), "4"),
    ]
    assert [row.reason for row in rows_to_ask(path)] == [NO_ANSWER] * 4
    same = '{"id": "a", "question": "who?", "answer": ["A"]}\n' * 2
    assert [row.reason for row in rows_to_ask(written(tmp_path, "q.jsonl", same))] == ["", ""]


def test_a_text_alone_is_a_list_of_one():
    assert listed("abc") == ["abc"] and listed(("a", "b")) == listed(iter("ab")) == ["a", "b"]
    for wrong in (b"abc", None, ["a", None], {"a": 1}):
        with pytest.raises(ValueError, match="not a text: give a str, or a list of them"):
            listed(wrong)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
@pytest.mark.parametrize("read", [read_rows, read_training_questions, read_judgements, read_per_question])
def test_no_pipe_and_no_device_is_read(tmp_path, read):
    """A pipe can be read once, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "q.jsonl")
    for path in (tmp_path / "q.jsonl", "/dev/zero"):
        with pytest.raises(FileNotFoundError, match="is a device or a pipe, where a file is to be read"):
            list(read(path))
