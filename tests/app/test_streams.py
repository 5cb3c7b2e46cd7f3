"""The three standard streams as they may be: full, closed, left by their reader, of another encoding."""

import io
import json
import os
import sys

import eight_capitals
import pytest
from eight_capitals import BLOCKS, CONFIG

from realm_min import RealmConfig, RealmForOpenQA
from realm_min.app import indexing
from realm_min.app.cli import main, status_of
from realm_min.app.console import Console, progress_report
from realm_min.app.printable import say, say_json
from realm_min.text.corpus import Document

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other streams")
LONG = "why " * 140


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = RealmForOpenQA(RealmConfig(**CONFIG, num_block_records=1), seed=1).eval()
    documents = [Document(*block) for block in BLOCKS]
    return indexing.index(documents, tmp_path_factory.mktemp("streams") / "m", model, eight_capitals.tokenizer())


def unread():
    """A pipe whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


def full():
    return open("/dev/full", "w", encoding="utf-8")


# ---- the standard error


@pytest.mark.parametrize("stream", [unread, full])
def test_a_remark_that_cannot_be_written_costs_no_answer(folder, monkeypatch, capsys, stream):
    with stream() as errors:
        monkeypatch.setattr(sys, "stderr", errors)
        assert main(["ask", "who?", LONG, "where?", "--json", "--model", str(folder)]) == 2
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize("stream", [unread, full])
def test_a_bar_that_cannot_be_drawn_costs_no_result(monkeypatch, stream):
    def work():
        with progress_report() as report:
            report("work", 1, 2)
        done.append(True)

    done = []
    with stream() as errors:
        monkeypatch.setattr(sys, "stderr", errors)
        assert status_of(work) == 0
    assert done


def test_another_pipe_than_the_outputs_is_a_failure(capsys):
    def work():
        raise BrokenPipeError(32, "Broken pipe")

    assert status_of(work) == 2
    assert capsys.readouterr().err == "realm-min: Broken pipe\n"


def test_a_closed_standard_error_sends_no_remark_elsewhere(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["ask", "who?", LONG, "--json", "--model", str(folder)]) == 2
    assert status_of(lambda: progress_report().__enter__()("work", 1, 2)) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "who?"


# ---- the standard output


@pytest.mark.parametrize("command", [["ask", "who?", "--json"], ["ask", "who?"], ["evaluate", "q.jsonl"]])
def test_a_closed_standard_output_is_refused(folder, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "stdout", None)
    assert main([*command, "--model", str(folder)]) == 2
    assert "the standard output is closed, and results go there: lead it to a file" in capsys.readouterr().err
    for result in (lambda: say("x"), lambda: say_json(1), lambda: Console().print("x")):
        assert status_of(result) == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_standard_output_of_any_encoding_gets_the_answer(folder, monkeypatch, encoding):
    question = "où est 北京 \U0001f600?"

    def output(*words):
        written = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
            assert main(["ask", question, *words, "--model", str(folder)]) == 0
            sys.stdout.flush()
            return written.getvalue().decode(encoding)

    assert json.loads(output("--json"))["question"] == question
    assert question.encode(encoding, "backslashreplace").decode(encoding) in output()


def test_help_in_any_encoding(monkeypatch):
    with io.TextIOWrapper(io.BytesIO(), "ascii") as ascii_only:
        monkeypatch.setattr(sys, "stdout", ascii_only)
        with pytest.raises(SystemExit, match="0"):
            main(["finetune", "--help"])


def test_a_width_of_nothing_counts_as_not_given(folder, monkeypatch, capsys):
    shown = []
    for columns in ("0", "80"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["ask", "who?", "--model", str(folder)]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""
