"""A function of the user's in the place of the rules: found, checked, and used by the jobs that hide names."""

import importlib
import json
import sys
from types import SimpleNamespace

import eight_capitals
import numpy as np
import pytest

from realm_min.jobs import preparation, runs, settings
from realm_min.jobs.settings import Mlm, Pretrain, TrainingRun
from realm_min.jobs.tagging import tagger
from realm_min.learn import masking, mlm
from realm_min.text import spacy_tagger
from realm_min.text.names_and_dates import salient_spans


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the module `my_tagger`."""
    (tmp_path / "my_tagger.py").write_text(
        "CALLS = []\n"
        "def music(text):\n"
        "    CALLS.append(text)\n"
        "    return ((text.index(word), text.index(word) + 5) for word in ['music'] if word in text)\n"
        "def beyond(text): return [(0, len(text) + 1)]\n"
        "def nothing(text): return [(3, 3)]\n"
        "def letters(text): return text\n"
        "number = 3\n"
        "def fails(text): return text.no_such_thing\n"
        "def fails_late(text): yield {}[text]\n"
    )
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "needs.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_the_rules_are_the_default():
    assert Pretrain().tagger == Mlm().tagger == settings.RULES
    text = "It fell to Rome in 1066."
    assert tagger(settings.RULES)(text) == salient_spans(text) == [(11, 15), (19, 23)]


def test_a_module_of_the_current_folder(here):
    path = list(sys.path)
    find = tagger("my_tagger:music")
    assert find("People like music.") == [(12, 17)] and find("no") == []
    assert sys.path == path
    (here / "json.py").write_text("1 / 0")  # it hides nothing that is installed
    with pytest.raises(ValueError, match="json has no function 'find'"):
        tagger("json:find")


@pytest.mark.parametrize(
    "name, error, message",
    [
        (
            "my_tager:music",
            ModuleNotFoundError,
            r"there is no module my_tager for the tagger my_tager:music: install it, o",
        ),
        ("needs:music", ModuleNotFoundError, "No module named 'not_there_at_all'"),
        (
            "my_tagger:musik",
            ValueError,
            "my_tagger has no function 'musik' for the tagger my_tagger:musik: it has music, b",
        ),
        ("my_tagger:number", ValueError, "my_tagger has no function 'number'"),
        ("my_tagger:letters", ValueError, r"letters gave 'Marie Curie .*: give a list of \(start, end\)"),
        (
            "my_tagger:beyond",
            ValueError,
            r"beyond gave \(0, 49\) for 'Marie Curie .*', a text of 48 characters: give spans",
        ),
        (
            "my_tagger:fails",
            ValueError,
            "the tagger my_tagger:fails raised AttributeError: .*no_such_thing.*: mend it, or",
        ),
        ("my_tagger:fails_late", ValueError, "the tagger my_tagger:fails_late raised KeyError"),
        ("wrong:f", ValueError, "the tagger wrong:f raised SyntaxError: .*wrong.py"),
        ("leaves:f", ValueError, "the tagger leaves:f raised SystemExit: 0"),
        ("sys:exit", ValueError, "the tagger sys:exit raised SystemExit: Marie"),
        ("os:getcwd", ValueError, "the tagger os:getcwd raised TypeError"),
        ("my_tagger:nothing", ValueError, r"nothing gave \(3, 3\) for 'Marie Curie"),
    ],
)
def test_what_is_no_tagger(here, name, error, message):
    with pytest.raises(error, match=message):
        tagger(name)


def test_jobs_hide_what_the_tagger_finds(here, monkeypatch):
    """Pre-training "music" alone, the MLM job that and others; run.json names the tagger."""
    blocks, tokenizer, model = eight_capitals.BLOCKS, eight_capitals.tokenizer(), eight_capitals.open_qa()
    encoder, run = runs.RealmKnowledgeAugEncoder(model.config), TrainingRun(here / "run")
    sizes = dict(steps=1, batch_size=4, tagger="my_tagger:music")

    def stop(*given):
        raise StopIteration(preparation.pretraining_corpus(*given))

    monkeypatch.setattr(runs, "pretraining_corpus", stop)
    with pytest.raises(StopIteration) as stopped:
        runs.pretrain(run, blocks, model.embedder, encoder, tokenizer, Pretrain(**sizes, max_passage=40, max_block=60))
    corpus = stopped.value.value
    for passage in masking.passages([(text.title, text.text) for text in corpus.texts], tokenizer):
        positions = corpus.choose(passage, np.random.default_rng(0))
        assert tokenizer.decode([passage.ids[i] for i in positions]) == "music"

    finders = []
    monkeypatch.setattr(runs, "masked_blocks", lambda *given: finders.append(given[-1]) or mlm.masked_blocks(*given))
    small = Mlm(**sizes, max_wordpieces=60)
    runs.mlm(run, blocks, encoder, tokenizer, small)
    assert json.loads((here / "run" / "run.json").read_text())["tagger"] == "my_tagger:music"
    music = tokenizer.convert_tokens_to_ids("music")
    for seed in range(3):
        _, labels = mlm.masked_blocks(blocks[:1], tokenizer, [np.random.default_rng(seed)], encoder, small, *finders)
        assert music in labels.tolist()[0]


def test_the_spans_of_spacy(monkeypatch):
    """Names, and dates with a figure; articles and a final 's aside. What stands for spaCy is what it gives."""
    text = "The United States' president met the Beatles' John Lennon's son in the 1970s, last week, for two dollars."
    labels = [
        ("The United States'", "GPE"), ("the Beatles'", "ORG"), ("John Lennon's", "PERSON"), ("the 1970s", "DATE"),
        ("last week", "DATE"), ("two dollars", "MONEY"),
    ]  # fmt: skip
    ents = [
        SimpleNamespace(text=words, label_=label, start_char=text.index(words), end_char=text.index(words) + len(words))
        for words, label in labels
    ]
    loaded = []

    def load(name, disable):
        loaded.append(name)
        return lambda given: SimpleNamespace(ents=ents if given == text else [])

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    spacy_tagger.loaded.cache_clear()
    try:
        find = tagger("realm_min.text.spacy_tagger:names_and_dates")
        assert [text[start:end] for start, end in find(text)] == ["United States", "Beatles", "John Lennon", "1970s"]
        assert loaded == ["en_core_web_sm"]
        spacy_tagger.loaded.cache_clear()
        monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda *given, **named: open("/none/x")))
        with pytest.raises(FileNotFoundError, match="no model en_core_web_sm: python -m spacy download en_core_web_sm"):
            spacy_tagger.names_and_dates(text)
        monkeypatch.setitem(sys.modules, "spacy", None)
        with pytest.raises(ModuleNotFoundError, match=r"this tagger needs spaCy: pip install 'realm-min\[spacy\]'"):
            spacy_tagger.names_and_dates(text)
    finally:
        spacy_tagger.loaded.cache_clear()
        importlib.invalidate_caches()


@pytest.mark.parametrize("name", [".:c", "a.:c", ".a:c", "a..b:c", "a:b.c", ":c", "a:"])
def test_names_of_no_function(name):
    with pytest.raises(ValueError, match="names nothing: give module:function"):
        Mlm(tagger=name).check()
