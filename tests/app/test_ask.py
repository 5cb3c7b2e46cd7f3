"""`realm-min ask`: questions from arguments, the standard input or a prompt; what an answer says of its document."""

import io
import json
import sys

import eight_capitals
import pytest

from realm_min import RealmConfig, RealmForOpenQA, RealmRetriever
from realm_min.app import ask
from realm_min.app.cli import main

QUESTION = "what is the capital of norway?"
TEXTS = {
    "north/norway.txt": " Capital:  Oslo.\r\n\r\nThe climate of Norway is cold.  Its people like music and food. ",
    "peru.md": "Capital: Lima.\nThe climate of Peru is dry in summer.",
    "more.jsonl:2": "Capital: Nairobi.",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    texts = tmp_path_factory.mktemp("texts")
    (texts / "north").mkdir()
    for name in ("north/norway.txt", "peru.md"):
        (texts / name).write_bytes(TEXTS[name].encode())
    (texts / "more.jsonl").write_text('\n{"title": "Kenya", "text": "Capital: Nairobi."}\n')
    config = RealmConfig(**eight_capitals.CONFIG, num_block_records=1, reader_beam_size=3)
    model = RealmForOpenQA(config, seed=1)
    model.block_emb.zero_()
    model.save_pretrained(texts.parent / "model")
    eight_capitals.tokenizer().save_pretrained(texts.parent / "model")
    assert main(["index", str(texts), "--model", str(texts.parent / "model"), "--out", str(texts.parent / "ix")]) == 0
    return texts.parent / "ix"


def asked(monkeypatch, capsys, typed, *words):
    """Status, JSON objects and remarks of a command whose standard input is `typed`; None: it is closed."""
    stream = typed if typed is None else io.TextIOWrapper(io.BytesIO(typed), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stream)
    status = main(["ask", "--json", *words])
    out, remarks = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], remarks


def test_what_an_answer_says_of_its_document(folder, monkeypatch, capsys):
    _, rows, _ = asked(
        monkeypatch, capsys, None, QUESTION, "where is lima?", "music?", "--model", str(folder), "-k", "3"
    )
    in_text = 0
    for row in rows:
        assert {block["document"] for block in row["blocks"]} == set(TEXTS)
        for block in row["blocks"]:
            text = TEXTS[block["document"]][block["document_start"] : block["document_end"]]
            assert block["text"] == f"{block['title']}. {' '.join(text.split())}" and text == text.strip()
        block = row["blocks"][row["block_rank"]]
        assert row["document"] == block["document"]
        if row["start_char"] >= len(block["title"]) + 2:
            in_text += 1
            text = TEXTS[row["document"]][row["document_start"] : row["document_end"]]
            assert " ".join(text.split()) == row["answer"]
        else:
            assert row["document_start"] is row["document_end"] is None
    assert in_text


def test_every_span_of_a_block_is_found_in_its_document(folder):
    retriever = RealmRetriever.from_pretrained(folder)
    for number in range(3):
        record, title = retriever.text(number), retriever.title(number)
        text = TEXTS[retriever.document(number)]
        for first in range(len(record) - 1):
            start, end = retriever.place(number, first, first + 2)
            if first < len(title) + 2:
                assert start is end is None
            elif not record[first : first + 2].strip() != record[first : first + 2]:
                assert " ".join(text[start:end].split()) == record[first : first + 2]


# ---- the standard input


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_questions_of_the_standard_input(folder, monkeypatch, capsys, encoding):
    typed = f"{QUESTION}\n\n  Où est Lima? \r\nwhere is oslo?".encode(encoding)
    status, rows, remarks = asked(monkeypatch, capsys, typed, "--model", str(folder))
    assert status == 0 and remarks == ""
    assert [row["question"] for row in rows] == [QUESTION, "Où est Lima?", "where is oslo?"]
    status, given, _ = asked(monkeypatch, capsys, None, *(row["question"] for row in rows), "--model", str(folder))
    assert status == 0 and given == rows
    status, rows, _ = asked(monkeypatch, capsys, b"where is oslo?\n", "-", "--model", str(folder))
    assert status == 0 and [row["question"] for row in rows] == ["where is oslo?"]


@pytest.mark.parametrize("typed", [None, b"", b"\n \n"])
def test_an_empty_standard_input_says_so(folder, monkeypatch, capsys, typed):
    status, rows, remarks = asked(monkeypatch, capsys, typed, "--model", str(folder))
    assert (status, rows, remarks.count("\n")) == (2, [], 1)
    assert "there is no question, and the standard input holds none: give questions" in remarks
    status, rows, remarks = asked(monkeypatch, capsys, typed, QUESTION, "--model", str(folder))
    assert (status, len(rows), remarks) == (0, 1, "")
    status, rows, remarks = asked(monkeypatch, capsys, typed, "--examples", "--model", str(folder))
    assert (status, [row["question"] for row in rows], remarks) == (0, list(ask.EXAMPLES), "")


def test_the_standard_input_is_left_alone_where_a_question_is_given(folder, monkeypatch, capsys):
    class Unread(io.TextIOWrapper):
        def __next__(self):
            raise AssertionError("it was read")

    monkeypatch.setattr(sys, "stdin", Unread(io.BytesIO(b"no\n")))
    assert main(["ask", QUESTION, "--json", "--model", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == QUESTION


def test_a_question_that_cannot_be_answered_costs_no_other(folder, monkeypatch, capsys):
    typed = b"where?\n" + b"why " * 140 + b"\nwhen?\n"
    status, rows, remarks = asked(monkeypatch, capsys, typed, "--model", str(folder))
    assert status == 2 and [row["question"] for row in rows] == ["where?", "when?"]
    assert remarks.startswith("realm-min: line 2: the question has 142 wordpieces, the limit is 128")
    status, rows, remarks = asked(monkeypatch, capsys, b"where?\n\xff\n", "--model", str(folder))
    assert status == 2 and "the standard input is not UTF-8 text" in remarks


def test_answers_come_as_questions_do(folder, monkeypatch, capsys):
    """A program that asks on, depending on the answer, gets it before the next question."""
    seen = []

    def questions():
        for question in ("where?", "when?"):
            yield f"{question}\n"
            seen.append(capsys.readouterr().out)

    monkeypatch.setattr(
        sys, "stdin", type("Pipe", (), {"isatty": lambda self: False, "__iter__": lambda self: questions()})()
    )
    assert main(["ask", "--json", "--model", str(folder)]) == 0
    assert [json.loads(out)["question"] for out in seen] == ["where?", "when?"]


def test_examples_and_questions_do_not_go_together(capsys):
    assert main(["ask", "--examples", "why?"]) == 2
    assert "--examples asks five questions of its own: leave it out, or 'why?'" in capsys.readouterr().err


def test_a_run_of_the_indexer_in_the_corpus_reads_nothing_of_it(tmp_path, folder, capsys):
    """An index within the folder that it is of: made again, it has the same blocks."""
    corpus = tmp_path / "c"
    corpus.mkdir()
    (corpus / "a.txt").write_bytes(b"\xef\xbb\xbfCapital: Oslo.")
    for name, skipped in (("ix", False), ("d", True)):
        capsys.readouterr()
        assert main(["index", str(corpus), "--model", str(folder), "--out", str(corpus / name)]) == 0
        said = capsys.readouterr().err.splitlines()
        assert ("Skipped 1: holds a model, an index or a run: ix/" in said) is skipped
        assert sum(line.startswith("Skipped") for line in said) == skipped
        retriever = RealmRetriever.from_pretrained(corpus / name)
        assert list(retriever.block_records) == [b"a. Capital: Oslo."]
