"""What the documents tell readers to type works: Python runs, commands are understood, what is shown is what comes.

One process, one model. Where a page names FOLDER, CORPUS and QUESTIONS.jsonl, a tiny model, a tiny corpus and questions
about it stand there; training commands take one step.
"""

import re
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import eight_capitals
import pytest

import realm_min
from realm_min.app import ask, cli, default_model, indexing
from realm_min.app.cli import main
from realm_min.config import RealmConfig
from realm_min.interface.knowledge_encoder import RealmKnowledgeAugEncoder
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import refresh
from realm_min.text.corpus import Document
from realm_min.text.questions import listed

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"(<!-- transcript[^\n]*-->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+\.\d+")
SHORT = {"steps": 1, "batch_size": 4}  # training takes one step


def fences(path, *languages):
    return [text for _, language, text in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


@pytest.fixture(scope="module")
def shipped(default_cache):
    """The model that ships, once for all pages, which answers each question once: several pages ask the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(default_cache))
        model = default_model.load()
    once = cache(lambda question, k: model.answer_from(question, *(row[0] for row in model.retrieve(question, k))))
    read = model.config.reader_beam_size
    model.answer = lambda questions, k=None: [once(question, k or read) for question in listed(questions)]
    return model


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder in which what the pages name is there."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "CORPUS").mkdir()
    for title, text in eight_capitals.BLOCKS:
        (folder / "CORPUS" / f"{title}.txt").write_text(text, encoding="utf-8")
    (folder / "QUESTIONS.jsonl").write_text('{"question": "what is the capital of norway?", "answer": ["Oslo"]}\n' * 4)
    model = RealmForOpenQA(RealmConfig(**eight_capitals.CONFIG, num_block_records=1, reader_beam_size=2), seed=1)
    documents = [Document(*block) for block in eight_capitals.BLOCKS]
    indexing.index(documents, folder / "FOLDER", model.eval(), eight_capitals.tokenizer())
    RealmKnowledgeAugEncoder(RealmConfig(**eight_capitals.CONFIG), seed=1).save_pretrained(folder / "BERT")
    eight_capitals.tokenizer().save_pretrained(folder / "BERT")
    return folder


@pytest.mark.parametrize("path", [page for page in PAGES if fences(page, "python")], ids=lambda path: path.name)
def test_python_runs(path, shipped, here, monkeypatch):
    """Each page from top to bottom, as a reader would type it; what needs a package that is not here is read alone."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(realm_min, "load", lambda: shipped)
    names = {}
    for text in fences(path, "python"):
        code = compile(text, path.name, "exec")
        if all(map(find_spec, re.findall(r"^(?:import|from) (\w+)", text, flags=re.MULTILINE))):
            exec(code, names)


def transcripts():
    found = []
    for page in PAGES:
        for mark, language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            assert bool(mark) == (language == "console"), f"{page.name}: a transcript is marked, and is console"
            found += [(page.name, *part.split("\n", 1)) for part in re.split(r"^\$ ", text, flags=re.M)[1:] if mark]
    return found


def test_transcripts_are_what_comes(shipped, monkeypatch, capsys):
    """Figures of the model may differ in their last digits between processors; all else is the same."""
    monkeypatch.setattr(ask, "load_model", lambda name, corpus, texts: shipped)
    monkeypatch.setenv("COLUMNS", "100")
    assert len(transcripts()) >= 2
    for page, line, expected in transcripts():
        program, *words = shlex.split(line)
        assert program == "realm-min" and main(words) == 0
        out = capsys.readouterr().out
        assert NUMBER.sub("#", out) == NUMBER.sub("#", expected), page
        figures = [[float(number) for number in NUMBER.findall(text)] for text in (out, expected)]
        assert figures[0] == pytest.approx(figures[1], abs=0.02), page


def commands(path):
    """The command lines of a page's plain fences as words, without comments and torchrun's own words."""
    for text in fences(path, ""):
        for line in text.split("\n"):
            words = shlex.split(line, comments=True)
            if "--no-python" in words:
                words = words[words.index("--no-python") + 1 :]
            if "|" in words:
                words = words[words.index("|") + 1 :]
            if words and words[0] == "realm-min":
                yield words[1:]


@pytest.mark.parametrize("path", [page for page in PAGES if list(commands(page))], ids=lambda path: path.name)
def test_commands_are_understood(path):
    for words in commands(path):
        cli.parser().parse_args(words)  # or it exits


@pytest.mark.parametrize("name", ["ask.md", "training.md"])
def test_commands_run(name, here, tmp_path, monkeypatch, capsys):
    """Those of a page one after the other, as a reader would type them, beginning with a tiny model."""
    monkeypatch.setattr(refresh, "BuilderProcess", eight_capitals.BuilderHere)
    monkeypatch.chdir(tmp_path)
    for named in ("CORPUS", "QUESTIONS.jsonl"):
        (tmp_path / named).symlink_to(here / named)
    ran = []
    for words in commands(ROOT / "docs" / name):
        options = cli.parser().parse_args(words)
        words = ["CORPUS" if word == "factbook" else word for word in words]
        words += [word for key, value in SHORT.items() if hasattr(options, key)
                  for word in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
        begin = "FOLDER" if words[0] == "index" else "BERT"
        words += [] if options.model else ["--model", str(here / begin)]
        if not getattr(options, "refresh_ranks", 0):  # which needs several ranks
            assert main(words) == 0, (words, capsys.readouterr().err)
            ran.append(words[0])
    assert ran == {"ask.md": ["index", "ask", "evaluate"],
                   "training.md": ["ict", "pretrain", "finetune", "ask", "mlm"]}[name]  # fmt: skip
