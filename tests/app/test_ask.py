"""`realm-min ask`: questions from arguments, the standard input or a prompt; what an answer says of its document."""

import io
import json
import re
import sys
from pathlib import Path

import eight_capitals
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from realm_min import RealmConfig, RealmForOpenQA, RealmRetriever
from realm_min.app import answer_lines, ask, printable
from realm_min.app.cli import main, parser
from realm_min.interface.open_qa import Answer, RetrievedBlock
from realm_min.jobs.calibration import Calibration, write_calibration
from realm_min.text.corpus import split_sentences

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


# ---- what is shown


def test_what_is_below_the_threshold_is_not_found(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    given = [QUESTION, "--model", str(folder)]
    status, (row,), _ = asked(monkeypatch, capsys, None, *given)
    assert status == 0 and row["found"] is True  # without a threshold every answer is one
    share = row["probability"]
    for threshold, found in ((share * 0.99, True), (min(share * 1.01, 1), False)):
        _, (row,), _ = asked(monkeypatch, capsys, None, *given, "--threshold", str(threshold))
        assert row["found"] is found
        assert main(["ask", *given, "--threshold", str(threshold)]) == 0
        line = capsys.readouterr().out.splitlines()[1].strip()
        said = f"Not found. The best of what was read, {row['answer']}, has p(y|x) {share:.3g}, below {threshold:.3g}"
        assert line == (f"{row['answer']}   p(y|x) {share:.3g}" if found else said)
    shipped = tmp_path / "default.realm"
    monkeypatch.setattr(ask.default_model, "PACKED_FILE", shipped)
    write_calibration(Calibration(0.5, 0.1, -1.0, 0.7), tmp_path)
    read = lambda *words: ask.judge_of(parser().parse_args(["ask", *words])).threshold  # noqa: E731
    assert (read(), read("--model", str(folder)), read("--threshold", "0.2")) == (0.7, 0.0, 0.2)


def test_a_models_calibration_decides_what_is_found(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    calibration = Calibration(0.5, 0.1, -1.0, 0.9)
    monkeypatch.setattr(ask, "read_calibration", lambda path: calibration if Path(path) == folder else None)
    given = [QUESTION, "--model", str(folder)]
    _, (row,), _ = asked(monkeypatch, capsys, None, *given)
    confidence = calibration.confidence(row["probability"], row["score"])
    assert row["confidence"] == confidence < 0.9 and row["found"] is False
    assert main(["ask", *given]) == 0
    said = f"Not found. The best of what was read, {row['answer']}, has P(right) {confidence:.3g}, below 0.9"
    assert capsys.readouterr().out.splitlines()[1].strip() == said
    assert main(["ask", *given, "--threshold", "0"]) == 0
    assert capsys.readouterr().out.splitlines()[1].strip() == f"{row['answer']}   P(right) {confidence:.3g}"


def answer_of(text, start, end, **own):
    block = RetrievedBlock(7, text, 1.5, 1.0, "c.jsonl:3", "Land", 0, len(text))
    given = dict(document="c.jsonl:3", document_start=0, document_end=1, probability=0.5, block_rank=0)
    given |= dict(score=2.0, marginal_probability=0.4)
    return Answer("why?", text[start:end], start, end, **{**given, "blocks": [block], **own})


def printed(capsys, answer, **given):
    answer_lines.print_answer(answer, **given)
    return capsys.readouterr().out.splitlines()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["A b. ", "Cd  e f! ", "1912 was. ", "北京 g.\n", "U.S. H", " "]), min_size=1), st.data()
)
def test_a_sentence_holds_its_answer(parts, data):
    text = "".join(parts).strip() or "A"
    start = data.draw(st.integers(0, len(text) - 1).filter(lambda i: not text[i].isspace()))
    end = data.draw(st.integers(start + 1, len(text)).filter(lambda i: not text[i - 1].isspace()))
    before, answer, after = answer_lines.sentence(text, start, end)
    whole, single = " ".join(text.split()), " ".join(text[start:end].split())
    assert answer == single and before + answer + after in whole
    sentences = split_sentences(whole)
    assert any(before + answer + after == " ".join(sentences[i:j]) for i in range(len(sentences))
               for j in range(i + 1, len(sentences) + 1))  # fmt: skip
    if len(inside := split_sentences(before + answer + after)) > 1:  # no more of them than the answer is in
        assert len(before) < len(inside[0]) and len(after) < len(inside[-1])
    for room in (1, 2, 5, 9, 40):
        shown = answer_lines.in_a_line((before, answer, after), room)
        assert sum(map(cell_len, shown)) <= room


def test_a_long_sentence_is_cut_about_its_answer(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    text = "Short. " + "much before it " * 9 + "the answer" + " and much behind" * 9 + ". Short."
    start = text.index("the answer")
    _, _, sentence, source = printed(capsys, answer_of(text, start, start + 10))
    assert sentence == "  … before it [[the answer]] and much …"
    assert source == "  from Land (c.jsonl:3), the 1st o …"


def test_five_answers_and_five_blocks_fit_on_a_screen(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    text = "It is so. " * 150
    one = answer_of(text, 700, 702)
    assert len(ask.EXAMPLES) * len(printed(capsys, one)) <= 24 - 3  # the command, a remark, the next prompt
    five = answer_of(text, 700, 702, blocks=[one.blocks[0]] * 5, block_rank=3)
    lines = printed(capsys, five, blocks=True)
    assert len(lines) <= 24 - 2 and sum(line.startswith("  4. Land") for line in lines) == 1
    assert printed(capsys, one, asked=False) == printed(capsys, one)[1:]


def test_colours_can_be_turned_off(monkeypatch, capsys):
    """As https://no-color.org asks; what no colour shows, brackets do."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    one = answer_of("It is so.", 6, 8)
    assert any("\x1b[1;30;42m" in line for line in printed(capsys, one))
    monkeypatch.setenv("NO_COLOR", "1")
    lines = "\n".join(printed(capsys, one))
    assert "[[" in lines and not re.search(r"\x1b\[[0-9;]*[34]\d", lines)


def test_an_index_that_knows_no_documents_names_its_blocks(capsys):
    block = RetrievedBlock(7, "It is so.", 1.5, 1.0, "7", None, None, None)
    assert printed(capsys, answer_of("It is so.", 6, 8, blocks=[block] * 12, block_rank=11))[-1] == (
        "  from block 7, the 12th of 12 blocks read"
    )


def test_a_prompt_stays_out_of_the_results(monkeypatch, capsys):
    """`realm-min ask > answers.txt` at a terminal: the prompt is on the screen, not in the file."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(" where is oslo? \n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert printable.read_line("? ") == "where is oslo?" and printable.read_line("? ") == ""
    assert capsys.readouterr() == ("", "? ? ")


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
    class Unread(io.BytesIO):
        def __next__(self):
            raise AssertionError("it was read")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Unread(b"no\n")))
    assert main(["ask", QUESTION, "--json", "--model", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == QUESTION


def test_a_question_that_cannot_be_answered_costs_no_other(folder, monkeypatch, capsys):
    typed = b"where?\n" + b"why " * 140 + b"\nwhen?\n"
    status, rows, remarks = asked(monkeypatch, capsys, typed, "--model", str(folder))
    assert status == 2 and [row["question"] for row in rows] == ["where?", "when?"]
    assert remarks.startswith("realm-min: line 2: the question has 142 wordpieces, the limit is 128")
    status, rows, remarks = asked(monkeypatch, capsys, b"where?\n\xff\n", "--model", str(folder))
    assert status == 2 and [row["question"] for row in rows] == ["where?"]
    assert remarks.startswith("realm-min: line 2: this is not UTF-8 text (") and remarks.count("\n") == 1
    for typed in (b"\xff\xfe\nwhere?\nwh\xe9n?\nwhen?", b"\xef\xbb\xbfwhere?\n\xed\xa0\x80\nwhen?\n"):
        status, rows, remarks = asked(monkeypatch, capsys, typed, "--model", str(folder))
        assert status == 2 and [row["question"] for row in rows] == ["where?", "when?"]
        assert remarks.count("not UTF-8") == remarks.count("\n") == typed.count(b"\xff") + 1


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
