"""Help, usage and refusals are answered before torch is imported; names and settings are declared once."""

import inspect
import json
import os
import subprocess
import sys
from typing import get_args

import pytest

import realm_min
from realm_min.app import arguments, cli
from realm_min.jobs import runs, settings
from realm_min.jobs.settings import Finetune, Ict, Mlm, Pretrain
from realm_min.learn import masking
from realm_min.verify.known import KNOWN

JOBS = {"ict": Ict(), "mlm": Mlm(), "pretrain": Pretrain(), "finetune": Finetune()}

# Runs command lines one after the other and says of each how it ended, what it printed, and whether torch came with it.
DRIVER = """
import contextlib, io, json, sys
from realm_min.app.cli import main

for line in sys.stdin:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = main(json.loads(line))
        except SystemExit as stop:
            status = stop.code
    heavy = [name for name in ("torch", "numpy", "rich", "triton", "tokenizers", "matplotlib") if name in sys.modules]
    print(json.dumps([status, out.getvalue(), errors.getvalue(), heavy]))
"""


def answers(lines, folder):
    """What each command line is answered, all in one process whose current folder is `folder`."""
    given = "".join(json.dumps(line) + "\n" for line in lines)
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER], input=given, capture_output=True, text=True, cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "RANK"} | {"COLUMNS": "200"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture
def here(tmp_path):
    """A folder with a corpus, questions and what stands in a command's way."""
    (tmp_path / "c.jsonl").write_text('{"title": "Peru", "text": "Capital: Lima."}\n')
    (tmp_path / "q.jsonl").write_text('{"question": "capital?", "answer": ["Lima"]}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"question": "capital?", "answer": ["Lima"]}\n{"question": "why?"}\n')
    (tmp_path / "worse.jsonl").write_text('{"question": "why?"}\n')
    (tmp_path / "title.jsonl").write_text('{"question": "capital?", "answer": ["Lima"], "title": 3}\n')
    for folder in ("taken", "run", "embedder", "unindexed", "indexed", "nothing"):
        (tmp_path / folder).mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "embedder" / "config.json").write_text('{"model_type": "realm", "architectures": ["RealmEmbedder"]}')
    for name in ("unindexed", "indexed"):
        (tmp_path / name / "config.json").write_text('{"model_type": "realm"}')
    (tmp_path / "indexed" / "block_records.npy").write_bytes(b"")
    for name in ("one", "two"):
        (tmp_path / "nothing" / f"{name}.index").write_bytes(b"")
    return tmp_path


# ---- what is answered


def test_help_and_version(tmp_path):
    lines = [[], ["--help"], ["-h"], ["--version"], *([name, "--help"] for name in cli.COMMANDS)]
    plain, long, short, version, *commands = answers(lines, tmp_path)
    assert plain == long == short and plain[0] == 0 and plain[2] == ""
    assert all(f"\n    {name} " in plain[1] for name in cli.COMMANDS) and plain[1].startswith("usage: realm-min")
    assert version == [0, f"realm-min {realm_min.__version__}\n", "", []]
    for name, (status, out, errors, heavy) in zip(cli.COMMANDS, commands, strict=True):
        assert (status, errors, heavy) == (0, "", [])
        assert out.startswith(f"usage: realm-min {name} ") and cli.COMMANDS[name].summary in out


REFUSED = {
    # commands and options
    "boil": "there is no command 'boil': give one of index, ask, page, evaluate, retrieve, compare, ict, mlm, pretrain",
    "evalute q.jsonl": "there is no command 'evalute': did you mean evaluate?",
    "--versoin": "there is no option --versoin: did you mean --version?",
    "ask why? --modle x": "realm-min ask: error: there is no option --modle: did you mean --model?",
    "index c.jsonl --ot x": "realm-min index: error: there is no option --ot: did you mean --out?",
    "ask --frobnicate": "there is no option --frobnicate: see realm-min ask --help",
    "ask --mod=indexed": "there is no option --mod: did you mean --model?",
    "finetune q.jsonl c.jsonl --refresh 3": "did you mean --refresh-ranks or --refresh-blocks or --refresh-every?",
    "pretrain c.jsonl --encoder-alon": "there is no option --encoder-alon: did you mean --encoder-alone?",
    "ask why? -j": "there is no option -j: see realm-min ask --help",
    "retrieve q.jsonl --base bm25": "there is no option --base: did you mean --baseline?",
    "evaluate q.jsonl more": "there is nothing to do with more: see realm-min evaluate --help",
    # values
    "ask why? -k many": "argument -k: 'many' will not do: give a whole number, 1 or more",
    "ask why? -k 0": "argument -k: '0' will not do: give a whole number, 1 or more",
    "evaluate q.jsonl --predictions p.jsonl.gz": "--predictions p.jsonl.gz would be plain text under a name of gzip's",
    "retrieve q.jsonl --run R.GZ": "--run R.GZ would be plain text under a name of gzip's: leave out .gz",
    "evaluate q.jsonl --limit 0": "argument --limit: '0' will not do",
    "ict c.jsonl --out o --steps 0": "argument --steps: '0' will not do: give a whole number, 1 or more",
    "ict c.jsonl --out o --max-query 2": "argument --max-query: '2' will not do: give a whole number, 3 or more",
    "ict c.jsonl --out o --learning-rate 0": "argument --learning-rate: '0' will not do: give a number above 0",
    "ict c.jsonl --out o --learning-rate nan": "argument --learning-rate: 'nan' will not do",
    "mlm c.jsonl --out o --warmup 1.5": "argument --warmup: '1.5' will not do: give a number from 0 to 1",
    "mlm c.jsonl --out o --dropout 1": "argument --dropout: '1' will not do: give a number from 0 to below 1",
    "mlm c.jsonl --out o --save-every 0": "argument --save-every: '0' will not do",
    "pretrain c.jsonl --out o --seed -1": "argument --seed: '-1' will not do: give a whole number, 0 or more",
    "pretrain c.jsonl --out o --num-candidates 1": "argument --num-candidates: '1' will not do",
    "pretrain c.jsonl --out o --masking names": "argument --masking: invalid choice: 'names'",
    "pretrain c.jsonl --out o --tagger spacy": "argument --tagger: 'spacy' will not do: give module:function",
    "finetune q.jsonl c.jsonl --out o --reader-beam-size 0": "argument --reader-beam-size: '0' will not do",
    # settings that do not go together
    "ict c.jsonl --out o --batch-size 6": "batch_size=6 must be a multiple of group=4",
    "mlm c.jsonl --out o --evidence 40": "evidence=40 cannot hold a text of max_wordpieces=288",
    "pretrain c.jsonl --out o --masking spans --tagger a:b": "tagger='a:b' finds nothing with masking='spans'",
    "pretrain c.jsonl --out o --tagger none.at:all": "there is no module none for the tagger none.at:all: install it",
    "mlm c.jsonl --out o --tagger json:find": "json has no function 'find' for the tagger json:find: it has JSOND",
    "mlm c.jsonl --out o --tagger builtins:repr": "the tagger builtins:repr gave \"'Marie Curie",
    "finetune q.jsonl c.jsonl --out o --refresh-ranks 1": "refresh_ranks=1 have nothing to build",
    "ask a? b? --plot x.png": "2 were given",
    "finetune q.jsonl indexed --model run --out o": "indexed holds a model already: leave out --model run",
    "convert --out o": "nothing to convert",
    # names
    "ask why? --device gpu": "--device gpu is unknown: give cpu, cuda or cuda:N",
    "pretrain c.jsonl --out o --device cuda:x": "--device cuda:x is unknown",
    "index c.jsonl --out o --device gpu": "--device gpu is unknown",
    "evaluate q.jsonl --device gpu": "--device gpu is unknown",
    "ask ''": "the question is empty",
    "ask why? --plot x.jpg": "x.jpg should end in .png",
    "verify indexed --plot x.jpg": "x.jpg should end in .png",
    "verify indexed --known bert": "argument --known: invalid choice: 'bert'",
    "convert ckpt --out o --kind bert": "argument --kind: invalid choice: 'bert'",
    # blank, as a variable of the shell that is not set
    "evaluate ''": "argument QUESTIONS: '' will not do: give the name of a file",
    "finetune '' c.jsonl --out o": "argument QUESTIONS.jsonl: '' will not do: give the name of a file",
    "index c.jsonl --out ''": "realm-min index: error: --out is empty: give it a value, or leave it out",
    "index c.jsonl --out o --model ''": "--model is empty: give it a value, or leave it out",
    "ask why? --model=": "--model is empty",
    "evaluate q.jsonl --predictions ''": "--predictions is empty",
    # files and folders
    "ask why? --plot none/x.png": "--plot none/x.png: there is no folder none; make it",
    "verify indexed --plot none/x.png": "--plot none/x.png: there is no folder none",
    "evaluate q.jsonl --predictions none/p": "--predictions none/p: there is no folder none",
    "evaluate q.jsonl --predictions taken": "--predictions taken is a folder: name a file",
    "evaluate none.jsonl": "none.jsonl: No such file or directory",
    "evaluate taken": "taken is a folder: name a file",
    "evaluate empty.jsonl": "empty.jsonl holds no question",
    "evaluate worse.jsonl": 'worse.jsonl holds no question to ask: line 1 has no "answer"',
    "evaluate q.jsonl --qrels bad.jsonl": "bad.jsonl line 1 is",
    "evaluate q.jsonl --run none/r": "--run none/r: there is no folder none",
    "retrieve empty.jsonl": "empty.jsonl holds no question",
    "retrieve q.jsonl --model indexed --baseline none": "--baseline none is not bm25, and there is no folder 'none'",
    "compare q.jsonl": "1 file was given: give two, A and B; or the files of A, --against and those of B",
    "compare q.jsonl none.csv": "none.csv: No such file or directory",
    "compare q.jsonl bad.jsonl": "1 of bad.jsonl are not in q.jsonl, 'why?' the first: measure both on one file",
    "compare q.jsonl q.jsonl": "q.jsonl has none; q.jsonl has none: give what evaluate or retrieve wrote",
    "compare q.jsonl --against q.jsonl --measure f1": "q.jsonl has no measure 'f1': it has none",
    "compare q.jsonl empty.jsonl --resamples 0": "argument --resamples: '0' will not do",
    "finetune none.jsonl c.jsonl --out o": "none.jsonl: No such file or directory",
    "finetune title.jsonl c.jsonl --out o": '"title" is 3, not a string',
    "finetune q.jsonl c.jsonl --out o --dev bad.jsonl": 'bad.jsonl line 2 has no "answer"',
    "finetune empty.jsonl c.jsonl --out o": "empty.jsonl holds no question",
    "finetune q.jsonl c.jsonl --out o --dev empty.jsonl": "empty.jsonl holds no question",
    "finetune q.jsonl none --out o": "none does not exist: give",
    "index none.jsonl --out o": "none.jsonl does not exist: give",
    "index q.txt --out o": "q.txt does not exist: give",
    "ict none --out o": "none does not exist: give",
    "mlm none --out o": "none does not exist: give",
    "pretrain none --out o": "none does not exist: give",
    "index c.jsonl --out taken": "taken exists already: name another folder, or remove it if nothing in it is needed",
    "ict c.jsonl --out run": "run holds a run already: go on with --resume",
    "mlm c.jsonl --out c.jsonl": "c.jsonl is a file: name a folder",
    "pretrain c.jsonl --out run": "run holds a run already",
    "finetune q.jsonl c.jsonl --out run": "run holds a run already",
    "index c.jsonl --out o --model none": "there is no folder 'none'",
    "index c.jsonl": "one of the arguments --out --add-to is required",
    "index --out o": "there is nothing to index: name a CORPUS",
    "index '' --out o": "corpus='' is blank: give the name of a folder or a file",
    "index indexed --out o": "indexed holds a model, an index or a run, no documents",
    "index c.jsonl --add-to none": "there is no folder none: make it with --out",
    "index c.jsonl --add-to unindexed": "unindexed holds a model without blocks",
    "index c.jsonl --add-to indexed --model run": "indexed has a model already: leave out --model run",
    "index c.jsonl --out o --remove a": "--remove takes documents out of a folder: name it with --add-to",
    "ask --examples why?": "--examples asks five questions of its own: leave it out, or 'why?'",
    "index c.jsonl --out o --model embedder": "embedder holds a RealmEmbedder",
    "ask why? --model none": "there is no folder 'none'",
    "ask why? --model q.jsonl": "q.jsonl is a file: give the folder of a checkpoint",
    "ask --qestion why?": "there is no option --qestion: see realm-min ask --help",
    "ask --exmples": "there is no option --exmples: did you mean --examples?",
    "ask why? --model embedder": "embedder holds a RealmEmbedder: give the folder of a RealmForOpenQA",
    "ask why? --model unindexed": "give it some with realm-min index CORPUS --model unindexed --out FOLDER",
    "evaluate q.jsonl --model unindexed": "unindexed holds a model without blocks",
    "evaluate q.jsonl --model taken": "config.json does not exist",
    "ict c.jsonl --out o --model none": "there is no folder 'none'",
    "finetune q.jsonl c.jsonl --out o --model none": "there is no folder 'none'",
    "verify none": "there is no folder 'none'",
    "verify indexed --against none": "there is no folder 'none'",
    "convert none --out o": "none is no TensorFlow checkpoint",
    "convert nothing --out o": "nothing holds several checkpoints (one, two)",
    "convert nothing/one --vocab none --out o": "--vocab none does not exist",
    "convert nothing/one --blocks none --out o": "--blocks none does not exist",
    "convert nothing/one --config none --out o": "--config none does not exist",
}


def test_what_is_refused_is_refused_without_torch(here):
    lines = [["" if word == "''" else word for word in line.split()] for line in REFUSED]
    before = sorted(here.rglob("*"))
    for line, (status, out, errors, heavy) in zip(REFUSED, answers(lines, here), strict=True):
        assert (status, out, heavy) == (2, "", []), line
        assert REFUSED[line] in errors and errors.count("\nrealm-min") + errors.startswith("realm-min: ") == 1, errors
    assert sorted(here.rglob("*")) == before  # nothing was made on the way


def test_a_command_that_goes_on_imports_torch(here):
    """So that the tests above can fail: the driver sees it."""
    ((status, _, errors, heavy),) = answers([["verify", "indexed"]], here)
    assert status == 2 and "indexed holds no weights" in errors and "torch" in heavy


def test_a_question_may_look_like_an_option(here):
    """What argparse takes for a value is not taken for an option that is unknown."""
    lines = [["ask", "--model", "none", "--", "--why?"], ["ask", "--what is -5?", "--model", "none"]]
    for _, _, errors, _ in answers(lines, here):
        assert "there is no folder 'none'" in errors and "there is no option" not in errors


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["ask", "why?", "--model", "none"]])
def test_the_module_starts_without_torch(here, arguments):
    """As users start it: `python -m realm_min`, with every import logged."""
    command = [sys.executable, "-X", "importtime", "-m", "realm_min", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=here)
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    assert "realm_min.app.cli" in imported and not {"torch", "numpy", "rich"} & imported
    assert ran.returncode == (2 if "none" in arguments else 0)


# ---- the package


def test_the_package_names_are_imported_when_they_are_used():
    code = (
        "import sys, realm_min\n"
        "assert 'torch' not in sys.modules and set(realm_min.__all__) <= set(dir(realm_min))\n"
        "from realm_min import RealmConfig\n"
        "assert 'torch' not in sys.modules and RealmConfig().hidden_size == 768\n"
        "from realm_min import *\n"
        "assert 'torch' in sys.modules and RealmTokenizerFast.__name__ == 'RealmTokenizerFast'\n"
        "assert vars(realm_min)['RealmEmbedder'] is RealmEmbedder\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in set(realm_min.__all__) - {"RealmPreTrainedModel"}:  # another name of what interface/base.py has
        assert getattr(realm_min, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'realm_min' has no attribute 'RealmEncoder'"):
        _ = realm_min.RealmEncoder


# ---- settings


@pytest.mark.parametrize("command", JOBS)
def test_every_setting_is_an_option(command):
    """With the default, the type and the range that its declaration says, and a --no- where it is a flag."""
    defaults = JOBS[command]
    common = [command, *(["q.jsonl"] if command == "finetune" else []), "c.jsonl", "--out", "o"]
    read = lambda *words: settings.settings_from(cli.parser().parse_args([*common, *words]), defaults)  # noqa: E731
    assert read() == defaults
    changed = {}
    words = []
    for name, default, span, choices, text in settings.declarations(defaults):
        option = f"--{name.replace('_', '-')}"
        assert text and (span is None or not choices)
        if isinstance(span, settings.Name):
            changed[name] = "os.path:join"
            words += [option, changed[name]]
        elif span:
            changed[name] = default + 8 if span.kind is int else default / 2
            words += [option, str(changed[name])]
        elif choices:
            changed[name] = choices[-1]
            words += [option, choices[-1]]
        else:
            changed[name] = not default
            words.append(option if not default else f"--no-{option[2:]}")
    assert read(*words)._asdict() == changed
    assert all(type(value) is type(getattr(defaults, name)) for name, value in read(*words)._asdict().items())


def test_settings_are_those_of_their_jobs():
    for job, name in ((runs.ict, "ict"), (runs.mlm, "mlm"), (runs.pretrain, "pretrain"), (runs.finetune, "finetune")):
        default = inspect.signature(job).parameters["settings"].default
        assert default == type(default)() == JOBS[name]
        assert [declared.name for declared in settings.declarations(default)] == list(default._fields)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Ict(steps=0), "steps=0 is out of range: give a whole number, 1 or more"),
        (Ict(removal_rate=1.5), "removal_rate=1.5 is out of range: give a number from 0 to 1"),
        (Mlm(learning_rate=float("nan")), "learning_rate=nan is out of range: give a number above 0"),
        (Mlm(learning_rate=float("inf")), "learning_rate=inf is out of range"),
        (Mlm(seed=-1), "seed=-1 is out of range: give a whole number, 0 or more"),
        (Pretrain(masking="names"), "masking='names' is unknown: choose one of salient, tokens, spans"),
        (Finetune(warmup=-0.1), "warmup=-0.1 is out of range"),
        (Mlm(tagger="spacy"), "tagger='spacy' names nothing: give module:function"),
        (Pretrain(tagger="a:b", masking="tokens"), "tagger='a:b' finds nothing with masking='tokens'"),
    ],
)
def test_a_setting_out_of_range_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong.check()


def test_names_that_stand_in_two_places_agree():
    """Those of the options, which are read without torch, and those of the tables of functions and classes."""
    from realm_min.files.tensorflow_checkpoint import MODELS

    assert tuple(masking.MASKINGS) == get_args(settings.Masking)
    assert tuple(KNOWN) == arguments.KNOWN
    assert tuple(MODELS) == arguments.KINDS
    assert dict(zip(realm_min._MODULES, realm_min.__all__, strict=True)) == {name: name for name in realm_min.__all__}


def test_the_collector_does_not_look_at_what_a_command_imports():
    """Not as the process ends either, where it took a quarter of a question's time."""
    program = """
import gc
from realm_min.app.cli import imported
imported("realm_min.app.ask")
print(gc.isenabled(), gc.get_freeze_count())
gc.unfreeze()
imported("realm_min.app.evaluate")
print(gc.isenabled(), gc.get_freeze_count())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (enabled, frozen), beside = (line.split() for line in ran.stdout.splitlines())
    assert enabled == "True"
    assert int(frozen) > 100_000  # torch alone has more
    assert beside == ["True", "0"]  # a process that had torch before is its own master


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot hold a signal")
def test_ctrl_c_during_the_import_of_torch_ends_in_one_line(tmp_path):
    """It comes once torch is there: while its code in C is at work it would be swallowed, or end in a traceback."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    sum(range(1000))\n"
        "except KeyboardInterrupt:\n"
        "    raise SystemError('torch was half imported')\n"
    )
    program = """
import sys
from realm_min.app.cli import imported, status_of

def work():
    sys.path.insert(0, sys.argv[1])
    imported("torch")
    print("it went on")

sys.exit(status_of(work))
"""
    ran = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "\nInterrupted.\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder that is somebody's current one")
@pytest.mark.parametrize("command", [["ask", "why?"], ["evaluate", "q.jsonl"], ["index", "c", "--out", "o"]])
def test_a_current_folder_that_is_gone_is_named(tmp_path, monkeypatch, capsys, command):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "realm-min: the current folder is gone: cd to one that exists\n"
