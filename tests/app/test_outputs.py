"""Where commands write: what will not do is said before the work, an empty folder is filled, a kill costs nothing."""

import errno
import json
import os
import shutil
from collections import namedtuple

import eight_capitals
import pytest
from eight_capitals import BLOCKS, CONFIG, QUESTIONS

from realm_min import RealmConfig, RealmForOpenQA
from realm_min.app import indexing
from realm_min.app.cli import main
from realm_min.files import output
from realm_min.files.atomic import only_writer
from realm_min.jobs import embedding, loop
from realm_min.text.corpus import Document

DOCUMENTS = [Document(*block) for block in BLOCKS]


@pytest.fixture(scope="module")
def model():
    return RealmForOpenQA(RealmConfig(**CONFIG, num_block_records=1), seed=1).eval(), eight_capitals.tokenizer()


@pytest.fixture(scope="module")
def ready(model, tmp_path_factory):
    return indexing.index(DOCUMENTS, tmp_path_factory.mktemp("outputs") / "ready", *model)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(embedding, "SHARD_SIZE", 2)


@pytest.fixture
def here(tmp_path, ready, monkeypatch):
    """A corpus, questions and what stands in the way of results."""
    rows = {
        "c": [d._asdict() for d in DOCUMENTS],
        "q": [{"question": q.question, "answer": q.answers} for q in QUESTIONS],
    }
    for name, values in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to("nothing")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_at(count):
    def report(stage, done, total):
        if total is not None and done >= count:
            raise KeyboardInterrupt

    return report


# ---- an empty folder that is there


def test_an_empty_folder_is_filled_and_never_replaced(tmp_path, model, ready, small_shards, monkeypatch):
    """As a mount point must be: it stays the same folder; a job that was stopped goes on in it."""
    whole = files_of(indexing.index(DOCUMENTS, tmp_path / "whole", *model))
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "link").symlink_to(out)
    before = out.stat().st_ino
    with pytest.raises(KeyboardInterrupt, match=r"^2 of 8 blocks are embedded and kept in .*link/\.partial\."):
        indexing.index(DOCUMENTS, tmp_path / "link", *model, report=stop_at(4))
    assert os.listdir(out) == [".partial"]
    with pytest.raises(FileNotFoundError):
        RealmForOpenQA.from_pretrained(out)
    seen = []
    report = lambda stage, done, total: seen.append((stage, done))  # noqa: E731

    def stop(source, target):
        if os.path.basename(target) == "config.json" and target.parent == tmp_path / "link":
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            indexing.index(DOCUMENTS, tmp_path / "link", *model, report=report)
    assert (
        ("Embedding blocks", 2) in seen and ("Embedding blocks", 0) not in seen and "manifest.json" in os.listdir(out)
    )
    with pytest.raises(FileNotFoundError):
        RealmForOpenQA.from_pretrained(out)
    assert files_of(indexing.index(DOCUMENTS, out, *model)) == whole
    assert out.stat().st_ino == before and sorted(os.listdir(tmp_path)) == ["link", "out", "whole"]
    with pytest.raises(FileExistsError, match="out exists already"):
        indexing.index(DOCUMENTS, out, *model)


def test_the_current_folder(tmp_path, model, ready, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["index", str(here_corpus(tmp_path.parent)), "--out", ".", "--model", str(ready)]) == 0
    assert (tmp_path / "config.json").is_file()


def here_corpus(folder):
    path = folder / "current-folder.jsonl"
    path.write_text(json.dumps({"title": "Norway", "text": "Capital: Oslo."}) + "\n")
    return path


def test_a_kill_before_the_first_file_does_not_block(tmp_path, model):
    """What a killed writer has left under a temporary name is nobody's work."""
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / f".manifest.json.{'0' * 16}.tmp").write_text("{")
    indexing.index(DOCUMENTS, tmp_path / "out", *model)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 99_999, "\xff", '{"format": 9}'])
def test_a_damaged_manifest_of_an_unfinished_job_is_named(tmp_path, model, text):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"out\.partial.* (is not valid JSON|holds a|was begun with).*--restart, or name"
    ):
        indexing.index(DOCUMENTS, tmp_path / "out", *model)
    indexing.index(DOCUMENTS, tmp_path / "out", *model, restart=True)
    assert os.listdir(tmp_path) == ["out"]


# ---- refused before the work


def commands(out):
    """Every command that fills a folder."""
    yield ["index", "c.jsonl", "--out", out]
    for stage in ("ict", "mlm", "pretrain"):
        yield [stage, "c.jsonl", "--out", out]
    yield ["finetune", "q.jsonl", "c.jsonl", "--out", out]
    yield ["convert", "none", "--out", out]


def nobody_works(monkeypatch):
    def fail(*given, **options):
        raise AssertionError("work has begun")

    monkeypatch.setattr("realm_min.app.cli.imported", fail)


@pytest.mark.parametrize(
    "out, message",
    [
        ("file", "file is a file: name a folder"),
        ("dangling", "dangling is a link to nothing, which is not there: make that, or name another folder"),
        ("file/within", "file: Not a directory"),
        ("n" * 300, "n: File name too long"),
    ],
)
def test_folders_are_refused_first(here, monkeypatch, capsys, out, message):
    nobody_works(monkeypatch)
    monkeypatch.setattr("realm_min.app.arguments.find_checkpoint", lambda path: path)
    before = sorted(os.listdir(here))
    for command in commands(out):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert message in err and err.startswith("realm-min: ") and err.count("\n") == 1, (command, err)
    assert sorted(os.listdir(here)) == before


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_disks_are_refused_first(here, monkeypatch, capsys, number):
    nobody_works(monkeypatch)
    monkeypatch.setattr("realm_min.app.arguments.find_checkpoint", lambda path: path)

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(output.os, "fsync", fail)
    lines = [*commands("new"), ["evaluate", "q.jsonl", "--predictions", "p"], ["ask", "why?", "--plot", "p.png"]]
    for command in [*lines, ["verify", "embedder", "--plot", "p.png"]]:
        monkeypatch.setattr("realm_min.app.arguments.find_folder", lambda name: None)
        assert main(command) == 2
        assert capsys.readouterr().err == f"realm-min: {here}: {os.strerror(number)}\n", command


def test_a_disk_without_room_is_refused_before_the_first_block(here, model, ready, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 9999, 9999))
    monkeypatch.setattr(embedding, "embed_blocks", None)
    monkeypatch.setattr(indexing, "embed_blocks", None)
    for command in (["index", "c.jsonl", "--model", str(ready)], ["finetune", "q.jsonl", str(ready), "--steps", "1"]):
        assert main([*command, "--out", "new"]) == 2
        err = capsys.readouterr().err.strip().split("\n")[-1]
        assert err.startswith("realm-min: new: No space left on device: ") and err.endswith(" and 9,999 are free")


@pytest.mark.parametrize(
    "given, message",
    [
        (["q.jsonl", "--predictions", "q.jsonl"], "--predictions q.jsonl is QUESTIONS q.jsonl too"),
        (["q.jsonl", "--run", "linked"], "--run linked is QUESTIONS q.jsonl too"),
        (["q.jsonl", "--run", "hard"], "--run hard is QUESTIONS q.jsonl too"),
        (["q.jsonl", "--qrels", "qrels", "--run", "./qrels"], "--run qrels is --qrels qrels too"),
        (["q.jsonl", "--predictions", "../{here}/o", "--run", "o"], "--run o is --predictions ../{here}/o too"),
        (["q.jsonl", "--predictions", "o", "--run", "o.partial"], "the unfinished o.partial is --run o.partial too"),
        (["q.partial", "--predictions", "q"], "the unfinished q.partial is QUESTIONS q.partial too"),
        (["q.jsonl", "--predictions", "m/config.json"], "--predictions m/config.json lies in --model m"),
        (["q.jsonl", "--run", "m/new"], "--run m/new lies in --model m"),
    ],
)
def test_no_output_is_an_input_or_another_output(here, ready, monkeypatch, capsys, given, message):
    """By whichever names: a relative one, a link, a second name of the same file."""
    nobody_works(monkeypatch)
    shutil.copytree(ready, here / "m")
    shutil.copy("q.jsonl", "q.partial")
    (here / "qrels").write_text("1 0 capitals 1\n")
    (here / "linked").symlink_to("q.jsonl")
    os.link("q.jsonl", "hard")
    before = [files_of(here / "m"), *((here / name).read_bytes() for name in ("q.jsonl", "q.partial", "qrels"))]
    for command in ("evaluate", "retrieve"):
        assert main([command, *(text.format(here=here.name) for text in given), "--model", "m"]) == 2
        assert capsys.readouterr().err.startswith(f"realm-min: {message.format(here=here.name)}: name a")
    after = [files_of(here / "m"), *((here / name).read_bytes() for name in ("q.jsonl", "q.partial", "qrels"))]
    assert after == before


@pytest.mark.parametrize(
    "command",
    [
        ["ask", "why?", "--plot", "m/config.png", "--model", "m"],
        ["page", "why?", "--save", "m/page.html", "--model", "m"],
        ["verify", "m", "--plot", "m/p.png"],
        ["verify", "q", "--against", "m", "--plot", "m/p.png"],
        ["retrieve", "q.jsonl", "--run", "m/r", "--baseline", "m"],
    ],
)
def test_nothing_is_drawn_into_a_models_folder(here, ready, monkeypatch, capsys, command):
    nobody_works(monkeypatch)
    monkeypatch.setattr("realm_min.app.arguments.find_spec", lambda name: name)
    (here / "q").mkdir()
    shutil.copytree(ready, here / "m")
    assert main(command) == 2
    assert capsys.readouterr().err.endswith(" m: name a file elsewhere\n")


@pytest.mark.parametrize("stage", ["ict", "mlm", "pretrain", "finetune"])
def test_a_run_deletes_nothing_that_is_in_its_folder(here, ready, monkeypatch, capsys, stage):
    nobody_works(monkeypatch)
    questions = ["q.jsonl"] if stage == "finetune" else []
    for name in ("embedder", "model"):
        (here / "y" / name).mkdir(parents=True)
        (here / "y" / name / "notes.txt").write_text("precious")
    for resume in ([], ["--resume"]):
        assert main([stage, *questions, "c.jsonl", "--out", "y", *resume]) == 2
        err = capsys.readouterr().err
        assert err == "realm-min: y holds embedder and no run.json: name a folder that is absent or empty\n"
    assert (here / "y" / "embedder" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "command, message",
    [
        ("pretrain c.jsonl --model z --out z", "--out z is --model z"),
        ("pretrain c.jsonl --model z --out z/embedder", "--out z/embedder lies in --model z"),
        ("ict c.jsonl --model link --out z/new --resume", "--out z/new lies in --model link"),
        ("mlm c.jsonl --model z/embedder --out z", "--out z holds --model z/embedder"),
        ("finetune q.jsonl x/model --out x", "--out x holds the corpus x/model"),
        ("finetune q.jsonl x/model --out x/model", "--out x/model is the corpus x/model"),
        ("ict texts --out texts/run", "--out texts/run lies in the corpus texts"),
    ],
)
def test_a_run_is_not_kept_in_what_it_reads(here, ready, monkeypatch, capsys, command, message):
    nobody_works(monkeypatch)
    for name in ("z/embedder", "x/model"):
        shutil.copytree(ready, here / name)
    (here / "texts").mkdir()
    (here / "link").symlink_to("z")
    assert main(command.split()) == 2
    assert capsys.readouterr().err == f"realm-min: {message}, which is read: name another folder\n"
    assert files_of(here / "x" / "model") == files_of(here / "z" / "embedder") == files_of(ready)


def test_a_resumed_run_keeps_what_stands_beside_its_files(here, ready):
    command = ["finetune", "q.jsonl", str(ready), "--out", "run", "--steps", "1"]
    assert main(command) == 0
    (here / "run" / "model" / "notes.txt").write_text("precious")
    before = files_of(here / "run" / "model")
    assert main([*command, "--resume"]) == 0
    assert files_of(here / "run" / "model") == before


def test_an_overlong_question_is_refused_before_the_corpus_is_read(here, ready, monkeypatch, capsys):
    monkeypatch.setattr("realm_min.app.train.read_cut", None)
    monkeypatch.setattr(RealmForOpenQA, "from_pretrained", None)
    rows = [{"question": text, "answer": ["a"]} for text in ("why?", "what " * 70)]
    (here / "long.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    for corpus in ("c.jsonl", str(ready)):
        assert main(["finetune", "long.jsonl", corpus, "--out", "run"]) == 2
        last = capsys.readouterr().err.strip().split("\n")[-1]
        assert last.startswith(f"realm-min: long.jsonl line 3: the question '{'what ' * 12}' has "), last
        assert last.endswith(" wordpieces: give one of 3 to 64")


# ---- one writer


def test_a_second_command_is_refused_in_one_line(here, ready, capsys, monkeypatch):
    monkeypatch.setattr("realm_min.app.convert.read_tensorflow", lambda *given: None)
    for name, command in {
        "i": ["index", "c.jsonl", "--model", str(ready)],
        "f": ["finetune", "q.jsonl", str(ready), "--steps", "1"],
    }.items():
        with only_writer(name):
            assert main([*command, "--out", name]) == 2
        last = capsys.readouterr().err.strip().split("\n")[-1]
        assert last.startswith(f"realm-min: {name} is being written by process {os.getpid()} on "), last
        assert not os.path.exists(name) or not os.listdir(name)


def test_a_runs_temporaries_are_removed_by_the_next(tmp_path, monkeypatch):
    """Each killed save leaves one, of another name."""
    run = tmp_path / "run"
    run.mkdir()
    for name in (f".checkpoint.safetensors.{'a' * 16}.tmp", ".checkpoint.safetensors.17.tmp", "log.csv", ".notes"):
        (run / name).write_text("x")
    with loop.only_job(run):
        assert sorted(os.listdir(run)) == [".notes", "log.csv"]


def test_a_full_disk_while_training_is_named(here, ready, monkeypatch, capsys):
    """The log is not written through a temporary file."""
    written = loop._write_rows

    def full(file, columns, rows, header):
        if columns and "loss" in columns:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written(file, columns, rows, header)

    monkeypatch.setattr(loop, "_write_rows", full)
    assert main(["finetune", "q.jsonl", str(ready), "--out", "run", "--steps", "1"]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last == f"realm-min: run{os.sep}log.csv: No space left on device"
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(["finetune", "q.jsonl", str(ready), "--out", "run", "--steps", "1", "--resume"]) == 0


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_without_a_name_is_no_checkpoint(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert main(["convert", name, "--out", "o"]) == 2
    assert capsys.readouterr().err.startswith(f"realm-min: {name} is no TensorFlow checkpoint: give")


def test_no_name_is_no_checkpoint(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "", "--out", "o"])
    assert "'' will not do: give the name of a file" in capsys.readouterr().err
