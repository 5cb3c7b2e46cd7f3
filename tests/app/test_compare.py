"""`realm-min retrieve` and `compare`: what each question gave, with and without a reader, and two of these compared."""

import csv
import json

import eight_capitals
import pytest

from realm_min.app import evaluate, ready_folder
from realm_min.app.cli import main
from realm_min.jobs.per_question import DESCRIBING, read_per_question
from realm_min.jobs.statistics import wilson
from realm_min.text.corpus import Source


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ready folder, a sentence encoder and questions, the last of which cannot be asked."""
    base = tmp_path_factory.mktemp("made")
    model, tokenizer, blocks = eight_capitals.open_qa(), eight_capitals.tokenizer(), eight_capitals.BLOCKS
    sources = [Source(block.title, 0, len(block.text)) for block in blocks]
    ready_folder.write_ready(base / "ready", blocks, model.block_emb, model, tokenizer, 128, sources)
    eight_capitals.bert_folder(base / "encoder")
    rows = [{"question": question.question, "answer": question.answers} for question in eight_capitals.QUESTIONS]
    lines = [*map(json.dumps, rows), "{half"]
    (base / "q.jsonl").write_text("\n".join(lines))
    return base


def ran(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr()


def fails(capsys, *words):
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_retrieve(made, tmp_path, capsys):
    """R@k of the model as evaluate has it, without its reader; the same rows as a table and as JSON."""
    common = made / "q.jsonl", "--model", made / "ready"
    evaluated = json.loads(ran(capsys, "evaluate", *common, "--json", "--predictions", tmp_path / "e.csv").out)
    out = ran(capsys, "retrieve", *common, "--json", "--predictions", tmp_path / "r.csv", "--run", tmp_path / "run")
    found = json.loads(out.out)
    assert (found["questions"], found["measured"], found["skipped"]) == (9, 8, 1) and "Skipped 1" in out.err
    senses = [name for name in evaluated if name.startswith("top_")]
    assert [name for name in found if name not in ("questions", "measured", "skipped", "n", "interval_95")] == senses
    assert all(found[name] == evaluated[name] for name in senses) and 0 < found["top_1_match"] < 1
    assert found["interval_95"]["top_1_match"] == pytest.approx(wilson(found["top_1_match"], 8))
    ran(capsys, "retrieve", *common, "--predictions", tmp_path / "r.jsonl")
    table = list(csv.DictReader(open(tmp_path / "r.csv", newline="")))
    lines = [json.loads(line) for line in open(tmp_path / "r.jsonl")]
    assert [name for name in lines[0] if name not in senses] == ["line", "id", "question"]
    assert [row["top_5_match"] for row in table[:8]] == [str(row["top_5_match"]) for row in lines[:8]]
    assert lines[8]["skipped"] and table[8]["skipped"] == lines[8]["skipped"] and "prediction" not in lines[8]
    assert len(open(tmp_path / "run").readlines()) == 64  # eight documents a question
    read = read_per_question(tmp_path / "e.csv")
    assert {"exact_match", "f1", *senses} == {*read.measures} - {"official_exact_match", "reader_oracle"}
    assert {*next(csv.reader(open(tmp_path / "e.csv")))} == {*DESCRIBING, *read.measures}
    shown = ran(capsys, "retrieve", *common, "--limit", 8).out.splitlines()
    low, high = wilson(found["top_1_match"], 8)
    assert shown[:3] == [
        "questions                    8",
        "measured                     8",
        "skipped                      0",
    ]
    first = f"top_1_match           {100 * found['top_1_match']:>6.1f} %   {100 * low:5.1f} to {100 * high:5.1f} %   8"
    assert shown[4] == first


def test_retrieve_with_a_baseline(made, tmp_path, capsys, monkeypatch):
    """Over the model's blocks; and a job of one retriever does not go on with another's."""
    common = "retrieve", made / "q.jsonl", "--model", made / "ready"
    ran(capsys, *common, "--predictions", tmp_path / "a.csv", "--run", tmp_path / "a.run")
    encoder = *common, "--baseline", made / "encoder"
    ran(capsys, *encoder, "--predictions", tmp_path / "b.csv", "--run", tmp_path / "b.run")
    a, b = (tmp_path / "a.run").read_text().splitlines(), (tmp_path / "b.run").read_text().splitlines()
    assert len(a) == len(b) and a != b and all(-1.001 < float(line.split()[4]) < 1.001 for line in b)
    assert read_per_question(tmp_path / "a.csv").rows.keys() == read_per_question(tmp_path / "b.csv").rows.keys()
    real = evaluate.ranking.distinct
    asked = []

    def stop(ranking):
        asked.append(1)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return real(ranking)

    monkeypatch.setattr(evaluate.ranking, "distinct", stop)
    monkeypatch.setattr(evaluate, "BATCH", 1)
    assert main([str(word) for word in (*common, "--run", tmp_path / "c.run")]) == 130
    assert "2 of 9 questions are measured and kept in" in capsys.readouterr().err
    monkeypatch.setattr(evaluate.ranking, "distinct", real)
    assert "was begun with another retriever" in fails(capsys, *encoder, "--run", tmp_path / "c.run")
    assert "was begun with another command" in fails(capsys, "evaluate", *common[1:], "--run", tmp_path / "c.run")
    ran(capsys, *common, "--run", tmp_path / "c.run")
    c = (tmp_path / "c.run").read_text().splitlines()
    assert [line.split()[:4] for line in c] == [line.split()[:4] for line in a]  # roundings depend on the batch
    assert "ready holds a REALM model, or no model" in fails(capsys, *common, "--baseline", made / "ready")
    monkeypatch.setattr("realm_min.app.arguments.find_spec", lambda name: None)
    assert "--baseline bm25 needs bm25s: pip install 'realm-min[baselines]'" in fails(
        capsys, *common, "--baseline", "bm25"
    )


def file_of(path, rights, measure="em"):
    path.write_text(f"id,question,{measure}\n" + "".join(f"{i},q{i},{right}\n" for i, right in enumerate(rights)))
    return path


def test_compare_two_files(tmp_path, capsys):
    """41 and 44 of 52: that only B has three is no proof (p = 2 / 2³)."""
    a = file_of(tmp_path / "a.csv", [1] * 41 + [0] * 11)
    b = file_of(tmp_path / "b.csv", [1] * 44 + [0] * 8)
    assert ran(capsys, "compare", a, b).out.splitlines() == [
        f"A      {a}",
        f"B      {b}",
        "",
        "em, n = 52",
        "A        78.8 %     66.0 to   87.8 %",
        "B        84.6 %     72.5 to   92.0 %",
        "B - A    +5.8 %     +0.0 to  +13.5 %",
        "       only A 0, only B 3: exact McNemar p = 0.25",
    ]
    found = json.loads(ran(capsys, "compare", b, a, "--json", "--seed", 3, "--resamples", 500).out)
    figures = found["measures"]["em"]
    assert (found["seed"], found["resamples"], found["left_out"], figures["n"]) == (3, 500, 0, 52)
    assert figures["difference"] == pytest.approx(-3 / 52) and figures["a_interval_95"] == list(wilson(44 / 52, 52))
    assert figures["mcnemar"] == [{"only_a": 3, "only_b": 0, "p": 0.25}]


def test_compare_several_seeds(tmp_path, capsys):
    a = [file_of(tmp_path / f"a{i}.csv", [1] * (10 + i) + [0] * (30 - i)) for i in range(3)]
    b = [file_of(tmp_path / f"b{i}.csv", [1] * (20 + i) + [0] * (20 - i)) for i in range(3)]
    out = ran(capsys, "compare", *a, "--against", *b).out
    assert "A        27.5 %" in out and "by seed 25.0, 27.5, 30.0" in out and "B - A   +25.0 %" in out
    assert out.count("only A 0, only B 10: exact McNemar p = 0.002") == 3
    paired = json.loads(ran(capsys, "compare", *a, "--against", *b, "--json").out)["measures"]["em"]
    low, high = paired["difference_interval_95"]
    assert 0.1 < low < 0.25 < high < 0.4  # of the questions alone: every seed has the same difference
    assert paired["a_interval_95"][0] < wilson(11 / 40, 40)[0] + 0.02
    uneven = json.loads(ran(capsys, "compare", *a, "--against", *b[:2], "--json").out)["measures"]["em"]
    assert uneven["mcnemar"] is None and uneven["difference"] == pytest.approx(20.5 / 40 - 11 / 40)


def test_compare_what_is_no_yes_or_no(tmp_path, capsys):
    a, b = file_of(tmp_path / "a.csv", [0.5, 0.25], "f1"), file_of(tmp_path / "b.csv", [1, 0], "f1")
    assert json.loads(ran(capsys, "compare", a, b, "--json").out)["measures"]["f1"]["mcnemar"] is None
    assert "McNemar" not in ran(capsys, "compare", a, b).out


def test_compare_leaves_out_what_was_skipped(tmp_path, capsys):
    a = tmp_path / "a.jsonl"
    rows = [{"question": "q0", "em": 1}, {"question": "q1", "em": 0}, {"question": "q2", "skipped": "too long"}]
    a.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = ran(capsys, "compare", a, a, "--measure", "em")
    assert "Left out 1 of 3 questions, which a file says were skipped." in out.err and "em, n = 2" in out.out


def test_compare_says_what_does_not_fit(tmp_path, capsys):
    a, b = file_of(tmp_path / "a.csv", [1, 0]), file_of(tmp_path / "b.csv", [1, 0, 1])
    assert "are not of the same questions: 1 of" in fails(capsys, "compare", a, b)
    assert "1 file was given: give two, A and B; or the files of A, --against and those of B" in fails(
        capsys, "compare", a
    )
    assert "3 files were given" in fails(capsys, "compare", a, a, a)
    assert "has no measure 'f1': it has em" in fails(capsys, "compare", a, a, "--measure", "f1")
    assert "none.csv: No such file" in fails(capsys, "compare", a, tmp_path / "none.csv")
