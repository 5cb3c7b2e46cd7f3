"""Nothing that others wrote reaches a terminal as anything but text: every command, both streams, plots too."""

import io
import json
import os
import re
import sys
import unicodedata
import warnings
from pathlib import Path

import eight_capitals
import pytest
from eight_capitals import CONFIG
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.table import Table
from safetensors.torch import load_file, save_file

from realm_min import RealmConfig, RealmForOpenQA, RealmKnowledgeAugEncoder
from realm_min.app import ask, cli, figures, indexing, printable
from realm_min.app.cli import main
from realm_min.app.console import Console, Text, doing, progress_report
from realm_min.text.corpus import Document
from realm_min.verify.known import KnownValue
from realm_min.verify.measure import Error
from realm_min.verify.report import Answer, Measured, Report, Row
from realm_min.verify.stages import Stage

ROOT = Path(__file__).parents[2]
CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")
# A window's title, a cleared screen, a colour by one C1 character; an override, an isolate, a tag, line separators.
HOSTILE = "\x1b]0;X\x07\x1b[2J\x9b31m\u202e\u2066\U000e0041\u2028\u2029\x7f\u200b\r\x08"
NAME = "[red]n\x1b]0;X\x07\x9b1m\u202e\u2028\x7f"  # of files
SHOWN = r"\x1b]0;X\x07"


def forbidden(text):
    return {c for c in text if unicodedata.category(c) in CATEGORIES or "\U000e0000" <= c < "\U000e1000"} - {"\n"}


def said(capsys):
    """Both streams of what ran since the last call, with nothing on them that a terminal obeys."""
    captured = capsys.readouterr()
    assert not forbidden(captured.out) and not forbidden(captured.err), ascii(captured)
    return captured


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose folder, titles and texts are hostile."""
    model = RealmForOpenQA(RealmConfig(**CONFIG, num_block_records=1, reader_beam_size=3), seed=1).eval()
    documents = [Document(f"[red]Norway {HOSTILE}", f"The capital :smile: is Oslo{HOSTILE}. {i}.") for i in range(3)]
    path = tmp_path_factory.mktemp("hostile") / NAME
    return indexing.index(documents, path, model, eight_capitals.tokenizer())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus, and questions about it, in files of hostile names."""
    path = tmp_path_factory.mktemp("corpus")
    texts = [{"title": f"{i} {HOSTILE}", "text": f"Capital: Oslo. Its people like food{HOSTILE}."} for i in range(8)]
    asked = [{"question": f"what is the capital {HOSTILE}?", "answer": [f"({HOSTILE}", "Oslo"]}] * 3
    for name, rows in (("c", texts), ("q", asked)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path / f"{name}{NAME}.jsonl").write_text(lines, encoding="utf-8")
    return [path / f"{name}{NAME}.jsonl" for name in "cq"]


# ---- one place


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters(categories=(*CATEGORIES, "Co", "Cn", "Lu", "Zs", "Mn")), max_size=20))
def test_what_is_printed_is_printable(text):
    shown = printable.printable(text)
    assert not forbidden(shown)
    assert all(c in shown for c in text if unicodedata.category(c) in ("Lu", "Zs"))
    value = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", value)
        printable.say_json({"text": text, text: 1})
    assert json.loads(value.getvalue()) == {"text": text, text: 1}
    assert not forbidden(value.getvalue()) and value.getvalue().count("\n") == 1


def test_every_control_character_has_an_escape():
    every = [chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in CATEGORIES]
    assert len(every) > 2000 and not forbidden("".join(map(printable.printable, every)))
    assert printable.printable("\x1b\x9b\u202e\U000e0001\ud800\n\t") == r"\x1b\x9b\u202e\U000e0001\ud800\n\t"
    for plain in ("Bogotá 北京 \u3000 naïve — “x” C:\\new", "Bogota\u0301"):
        assert printable.printable(plain) == plain


@pytest.mark.parametrize(
    "shown", [str, Text, lambda text: Text.assemble("a", (text, "bold")), lambda text: table(text)]
)
def test_a_console_sends_only_its_own_sequences(shown):
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200)
    console.print(shown(f"[red]x[/red] :smile: {HOSTILE}"))
    out = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    assert not forbidden(out) and "[red]x[/red] :smile:" in out and printable.printable(HOSTILE) in out


def table(text):
    found = Table("a", title="t")
    found.add_row(text)
    return found


def test_what_rich_itself_makes_of_a_text_is_looked_at_too():
    """Text of rich's own class, which was not made printable."""
    import rich.text

    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=200)
    console.print(table(rich.text.Text(HOSTILE)))
    console.print(rich.text.Text(HOSTILE, style="bold"))
    assert not forbidden(re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue()))


def test_bars_and_what_is_being_done(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress_report() as report:
        report(f"[red]stage {HOSTILE}", 1, 2, f"note {HOSTILE}")
    with doing(f"[red]verify {HOSTILE}") as progress:
        progress(f"[red]{HOSTILE}")
    err = capsys.readouterr().err
    assert "[red]stage" in err and SHOWN in err
    assert not forbidden(re.sub(r"\x1b\[\??[0-9;]*[A-Za-z]|\r", "", err))


def test_nobody_else_prints():
    """No other file prints, reads a line or makes a console of rich's; the book's example prints its own numbers."""
    wrong = []
    for path in [*(ROOT / "realm_min").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        if path.name not in ("printable.py", "console.py", "textbook_example.py"):
            text = path.read_text(encoding="utf-8")
            found = re.findall(r"(?<![\w.])(?:print|input)\(|(?:std\w+|__std\w+__)\.write\(|import rich\b", text)
            found += re.findall(r"from rich(?:\.(?:console|text|progress|live|status|prompt))? import (?!box)\w+", text)
            wrong += [(path.name, what) for what in found]
    assert wrong == []


# ---- every command


def test_ask(folder, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "500")
    question = f"where is $Oslo$ [blue]{HOSTILE}?"
    assert main(["ask", question, "--model", str(folder)]) == 0
    out = said(capsys).out
    assert SHOWN in out.split("\n")[0] and "[blue]" in out and "[red]Norway" in out.replace("[[", "").replace("]]", "")
    assert main(["ask", question, "--model", str(folder), "--json"]) == 0
    row = json.loads(said(capsys).out)
    assert row["question"] == question and "\x1b]0;X\x07" in row["blocks"][0]["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{question}\n{HOSTILE}\n\n"))
    monkeypatch.setattr(ask.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["ask", "--model", str(folder)]) == 0
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert out.count("p(y|x)") == 2 and not forbidden(out)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
@pytest.mark.parametrize("options", [[], ["--json"], ["--blocks"]])
def test_a_reader_that_has_seen_enough_is_no_failure(folder, monkeypatch, options):
    """`realm-min ask … | head -1`, whichever way the lines are written."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert cli.main(["ask", "capital?", "--model", str(folder), *options]) == 0


def test_ask_in_colours(folder, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["ask", f"where is Oslo{HOSTILE}?", "--model", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b[1m" in out and not forbidden(re.sub(r"\x1b\[[0-9;]*m", "", out))


def test_evaluate(folder, corpus, tmp_path, capsys):
    predictions = tmp_path / NAME
    command = ["evaluate", str(corpus[1]), "--model", str(folder), "--regex", "--predictions", str(predictions)]
    assert main(command) == 0
    assert "does not compile" in said(capsys).err
    written = [json.loads(line) for line in predictions.read_text(encoding="utf-8").split("\n")[:-1]]
    assert HOSTILE in written[0]["question"]
    assert "\u202e" in predictions.read_text(encoding="utf-8")  # files keep the text as it is
    assert main([*command, "--json"]) == 0
    assert json.loads(said(capsys).out)["questions"] == 3


def test_index_and_training(folder, corpus, tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.pdf"):
        (tmp_path / "texts" / f"{NAME}{name}").write_text(f"Capital: Oslo{HOSTILE}.", encoding="utf-8")
    bert = tmp_path / f"bert{NAME}"
    RealmKnowledgeAugEncoder(RealmConfig(**CONFIG)).save_pretrained(bert)
    eight_capitals.tokenizer().save_pretrained(bert)
    run = ["--out", str(tmp_path / NAME), "--model", str(folder)]
    assert main(["index", str(tmp_path / "texts"), *run]) == 0
    assert SHOWN in said(capsys).err
    given = ["--steps", "1", "--batch-size", "4", "--save-every", "1"]
    for command in (["ict", str(corpus[0])], ["mlm", str(corpus[0])], ["finetune", str(corpus[1]), str(folder)]):
        out = ["--out", str(tmp_path / f"{command[0]}{NAME}"), *given]
        own = ["--reader-beam-size", "2"] if command[0] == "finetune" else ["--model", str(bert)]
        assert main([*command, *out, *own]) == 0, said(capsys)
        assert SHOWN in said(capsys).err
        assert main([*command, *out, *own]) == 2
        assert "holds a run already" in said(capsys).err
    for command in (["pretrain", str(corpus[0])], ["finetune", str(corpus[0]), str(folder)]):
        assert main([*command, "--out", str(tmp_path / f"ict{NAME}"), "--resume"]) == 2
        assert "realm-min: " in said(capsys).err


@pytest.fixture
def report(monkeypatch):
    """What `verify` is made to find: every name in it is hostile."""
    stages = [Stage(f"{part} {i}", f"stage {i}", "layer", part, ()) for part in ("embedder", "reader") for i in (0, 1)]
    key = f"[red]embedder.{HOSTILE}\n.weight"
    error = Error(1.0, 1.0)
    rows = [Row(stage, 1.0, {key: f"nan {HOSTILE}"}, {"float32": Measured(error, error, 1e-6)}) for stage in stages]
    found = Report(
        kind="RealmForOpenQA", sizes={"layers": 1, "hidden": 2, "heads": 1, "vocabulary": 3, "weights": 4}, inputs={},
        rows=rows, tolerances={"float32": None}, weights={key: HOSTILE, HOSTILE: "inf"}, answer=Answer(HOSTILE, 0),
        checkpoint=f"[red]/$a$/{HOSTILE}", text=HOSTILE, left_out={"triton": f"no {HOSTILE}"}, against=HOSTILE,
        differences={key: HOSTILE}, known=HOSTILE, known_values=[KnownValue(HOSTILE, HOSTILE, HOSTILE, False)],
    )  # fmt: skip
    monkeypatch.setattr("realm_min.verify.verify", lambda *given, **options: found)
    return found


def test_verify(report, folder, capsys):
    assert main(["verify", str(folder)]) == 1
    out = said(capsys).out
    assert out.count(SHOWN) > 10 and "[red]embedder." in out and "FAILED" in out
    assert main(["verify", str(folder), "--json"]) == 1
    assert json.loads(said(capsys).out)["against"] == HOSTILE


def test_verify_names_tensors(folder, tmp_path, capsys):
    other = tmp_path / NAME
    other.mkdir()
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, f"embedder{HOSTILE}": tensors["block_emb"].clone()}, other / "model.safetensors")
    assert main(["verify", str(other)]) == 2
    assert "unexpected: embedder\\x1b]0;" in said(capsys).err


def refusals(folder, corpus, tmp_path):
    """Command lines that are refused, by what each has of others' text."""
    (tmp_path / f"file{NAME}").write_text("x")
    damaged = tmp_path / f"damaged{NAME}"
    damaged.mkdir()
    (damaged / "config.json").write_text(json.dumps({"model_type": "realm", "hidden_act": HOSTILE}), encoding="utf-8")
    (tmp_path / f"bad{NAME}.jsonl").write_text('{"question": "a", "answer": 1}\n', encoding="utf-8")
    yield ["ask", "why?", "--model", f"no {HOSTILE}"]
    yield ["ask", "why?", "--model", str(damaged)]
    yield ["evaluate", str(tmp_path / f"bad{NAME}.jsonl"), "--model", str(folder)]
    yield ["evaluate", f"none{HOSTILE}", "--model", str(folder)]
    yield ["evaluate", str(corpus[1]), "--model", str(folder), "--predictions", f"none{HOSTILE}/x"]
    yield ["index", f"none{HOSTILE}", "--out", "o"]
    yield ["index", str(corpus[0]), "--out", str(folder)]
    yield ["ict", str(corpus[0]), "--out", str(tmp_path / f"file{NAME}")]
    yield ["verify", f"none{HOSTILE}"]
    yield ["convert", f"none{HOSTILE}", "--out", "o"]


def test_refusals(folder, corpus, tmp_path, capsys):
    for command in refusals(folder, corpus, tmp_path):
        assert main(command) == 2, command
        captured = said(capsys)
        assert captured.err.startswith("realm-min: ") and captured.err.count("\n") == 1, captured
    for command in ([f"boil{HOSTILE}"], ["ask", f"--model{HOSTILE}", "x"], ["evaluate", "q", f"more{HOSTILE}"],
                    ["ict", "c", "--out", "o", "--steps", HOSTILE]):  # fmt: skip
        with pytest.raises(SystemExit):
            main(command)
        assert SHOWN in said(capsys).err


def test_mistakes_of_our_own_and_warnings(capsys):
    def warn_and_fail():
        warnings.warn(f"beware {HOSTILE}", stacklevel=1)
        raise RuntimeError(f"a mistake {HOSTILE}")

    assert cli.status_of(warn_and_fail) == 1
    err = said(capsys).err
    assert "Traceback" in err and err.count(SHOWN) >= 2 and "UserWarning: beware" in err

    def interrupt():
        raise KeyboardInterrupt(f"kept in {HOSTILE}\nand more")

    assert cli.status_of(interrupt) == 130
    assert said(capsys).err == f"\nInterrupted. kept in {printable.printable(HOSTILE)}\\nand more\n"


# ---- plots


def test_plots_draw_text_as_it_is(report, folder, tmp_path, monkeypatch, capsys):
    """No mathematics between dollars, no control characters, in any text of any figure."""
    texts = []

    def look(figure, path, **options):
        texts.extend(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
        path.touch()

    monkeypatch.setattr(Figure, "savefig", look)
    assert main(["ask", f"$a$ {HOSTILE}", "--model", str(folder), "--plot", str(tmp_path / f"{NAME}.png")]) == 0
    assert "[red]n\\x1b" in said(capsys).err
    assert main(["verify", str(folder), "--plot", str(tmp_path / "v.png")]) == 1
    said(capsys)
    assert sum(r"\$a\$" in text for text in texts) == 2 and any(text.startswith("[red]/") for text in texts)
    assert len(texts) > 50 and not any(map(forbidden, texts))
    assert figures.drawable("$5 and \\$6\n") == r"\$5 and \\$6\n"
