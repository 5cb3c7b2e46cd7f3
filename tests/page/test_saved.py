"""`realm-min page --save`: one file with all it needs, that says what the library says; and what is refused of it."""

import json
import re
from html.parser import HTMLParser
from importlib.util import find_spec

import eight_capitals
import pytest

from realm_min.app.cli import main
from realm_min.page import asked, saved

QUESTION = "what is the capital of Norway?"


class Page(HTMLParser):
    """The elements of a page, and the text of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.inside, self.open = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = tag

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open in ("script", "style"):
            self.inside.append((self.open, self.tags[-1][1], data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "capitals"
    model = eight_capitals.open_qa()
    model.save_pretrained(folder)
    model.retriever.save_pretrained(folder)
    return folder


def test_a_saved_answer_is_one_file(folder, tmp_path, capsys):
    path = tmp_path / "answer.html"
    assert main(["page", QUESTION, "--save", str(path), "--model", str(folder), "-k", "3"]) == 0
    out, remarks = capsys.readouterr()
    assert out == "" and remarks.endswith(f"Saved in {path}\n")
    assert [name.name for name in tmp_path.iterdir()] == ["answer.html"]
    page = Page(path.read_text(encoding="utf-8"))
    assert not [
        tag
        for tag in page.tags
        if {"src", "href"} & tag[1].keys() and not tag[1].get("href", "").startswith(("data:", "#"))
    ]
    (data,) = (json.loads(text) for tag, attributes, text in page.inside if attributes.get("id") == "saved")
    model = eight_capitals.open_qa()
    assert data["ask"] == json.loads(json.dumps(asked.ask(model, QUESTION, 3)))
    assert data["about"]["model"] == str(folder) and len(data["attention"]) == 3
    assert {name: found["bytes"] for name, found in data["search"].items()} == {"None": 4, "bfloat16": 2, "int8": 1}


def test_its_policy_names_its_scripts_and_style():
    page = Page(saved.with_data({"ask": "</script><b>"}))
    policy = next(tag[1]["content"] for tag in page.tags if tag[1].get("http-equiv") == "Content-Security-Policy")
    code = [(tag, text) for tag, attributes, text in page.inside if "type" not in attributes]
    assert len(code) == 7 and policy.startswith("default-src 'none'; script-src 'sha256-")
    assert set(re.findall("'(sha256-[^']+)'", policy)) == {saved.digest(text) for _, text in code}
    assert page.inside[[attributes.get("id") for _, attributes, _ in page.inside].index("saved")][2] == (
        r'{"ask": "\u003c/script>\u003cb>"}'
    )
    assert ("b", {}) not in page.tags


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--save", "a.html"], "--save writes the answer to a question: give one"),
        ([" "], "the question is empty: ask something"),
        ([QUESTION, "--save", "a.png"], "--save writes HTML: a.png should end in .html"),
        ([QUESTION, "--save", "no/a.html"], "there is no folder no"),
        ([QUESTION, "--port", "70000"], "--port 70000 is no port: give a number up to 65535, or leave it out"),
    ],
)
def test_what_is_refused_before_the_model_is_loaded(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["page", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_question_that_cannot_be_answered_writes_nothing(folder, tmp_path, capsys):
    assert main(["page", "why " * 140, "--save", str(tmp_path / "a.html"), "--model", str(folder)]) == 2
    assert "the question has 142 wordpieces, the limit is 128" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_a_server_the_page_says_what_to_install(folder, monkeypatch, capsys):
    from realm_min.app import arguments

    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "uvicorn" else find_spec(name))
    assert main(["page", "--model", str(folder)]) == 2
    assert "the page needs starlette and uvicorn: pip install 'realm-min[page]'" in capsys.readouterr().err
