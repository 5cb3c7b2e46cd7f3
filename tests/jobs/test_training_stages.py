"""The Inverse Cloze Task, masked language modelling, fine-tuning, and the folders they hand on."""

import json
from dataclasses import replace

import eight_capitals
import numpy as np
import pytest
import torch
from drawn_cases import assert_close, to_numpy
from eight_capitals import BLOCKS, CONFIG, QUESTIONS, open_qa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from realm_min import RealmConfig, RealmEmbedder, RealmKnowledgeAugEncoder, RealmReader, textbook
from realm_min.app.cli import main
from realm_min.jobs import loop, preparation, refresh, runs, warm_start
from realm_min.jobs.draws import Draws
from realm_min.jobs.evaluation import Question, evaluate, means
from realm_min.jobs.settings import Finetune, Ict, Mlm, Pretrain, TrainingRun
from realm_min.learn import finetuning, ict, mlm
from realm_min.text.corpus import Block, record, split_sentences
from realm_min.text.questions import TrainingQuestion, read_training_questions


@pytest.fixture(scope="module")
def tokenizer():
    return eight_capitals.tokenizer()


@pytest.fixture(scope="module")
def encoder():
    return RealmKnowledgeAugEncoder(RealmConfig(**CONFIG))


# ---- Inverse Cloze Task


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 7), st.integers(0, 2**32), st.booleans(), st.booleans())
def test_a_cloze_is_a_sentence_and_the_rest(number, seed, removed, titled):
    block = BLOCKS[number]
    example = ict.cloze(block, np.random.default_rng(seed), Ict(removal_rate=float(removed), title_rate=float(titled)))
    sentence = example.query.removeprefix(f"{block.title}. ") if titled else example.query
    assert sentence in split_sentences(block.text)
    assert (sentence in example.text) is not removed
    assert example.query.startswith(block.title) or not titled
    rest = [other for other in split_sentences(block.text) if other != sentence or not removed]
    assert example.text == " ".join(rest) and example.title == block.title


def test_nine_of_ten_sentences_are_removed():
    drawn = [ict.cloze(BLOCKS[0], np.random.default_rng(seed), Ict()) for seed in range(2000)]
    removed = np.mean([example.query.removeprefix("Norway. ") not in example.text for example in drawn])
    assert abs(removed - 0.9) < 0.03


def test_a_step_of_ict_is_the_books(tokenizer):
    embedder = RealmEmbedder(RealmConfig(**CONFIG), seed=2).to(torch.float64).train()
    examples = [ict.cloze(block, np.random.default_rng(5), Ict()) for block in BLOCKS[:4]]
    embedder.zero_grads()
    draws = Draws(0, 0, [0, 1, 2, 3])
    seeds = draws.dropout_seeds(0), draws.dropout_seeds(1)
    sums = ict.ict_step(embedder, *ict.sentences_and_blocks(examples, tokenizer, embedder, Ict()), seeds)

    def batch(*texts):
        encoded = tokenizer(*texts, padding=True, return_tensors="np")
        return encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"]

    p = to_numpy(embedder.state_dict())
    queries, titles, texts = map(list, zip(*examples, strict=True))
    x, z = batch(queries), batch(titles, texts)
    expected, count, g = textbook.ict_step(p, embedder.config, x, z)
    assert sums["loss"] == pytest.approx((expected, count), rel=1e-12)
    for key, gradient in embedder.grads.items():
        assert_close(gradient, g[key], 1e-10, key)
    x, z = (textbook.embed(p, embedder.config, batch)[0] for batch in (x, z))
    assert sums["accuracy"] == (np.sum((x @ z.T).argmax(1) == np.arange(4)), 4)


def test_ict_teaches_the_retriever(tmp_path, tokenizer):
    embedder = RealmEmbedder(RealmConfig(**CONFIG), seed=2)
    runs.ict(
        TrainingRun(tmp_path), BLOCKS, embedder, tokenizer,
        Ict(steps=40, batch_size=8, learning_rate=1e-2, title_rate=1.0, freeze_word_embeddings=False),
    )  # fmt: skip
    log = loop.read_log(tmp_path / loop.LOG_FILE)
    assert np.mean(log["accuracy"][:5]) < 0.7 and np.mean(log["accuracy"][-5:]) > 0.9
    again = warm_start.embedder(tmp_path)
    assert all(torch.equal(tensor, embedder.state_dict()[key]) for key, tensor in again.state_dict().items())
    encoder = warm_start.knowledge_encoder(tmp_path).state_dict()  # the embedder's trunk, and a head of its own
    assert all(torch.equal(encoder[key], again.state_dict()[key]) for key in encoder if key.startswith("realm."))
    words = encoder["realm.embeddings.word_embeddings.weight"]
    assert torch.equal(encoder["cls.predictions.decoder.weight"], words)


def test_a_corpus_without_clozes_is_refused(tmp_path, tokenizer):
    embedder = RealmEmbedder(RealmConfig(**CONFIG))
    with pytest.raises(ValueError, match="two sentences or more"):
        runs.ict(TrainingRun(tmp_path), [Block("a", "One sentence.")] * 4, embedder, tokenizer)
    with pytest.raises(ValueError, match="multiple of group=4"):
        runs.ict(TrainingRun(tmp_path), BLOCKS, embedder, tokenizer, Ict(batch_size=6))


def test_ranks_that_would_have_no_index_to_build_are_refused(tmp_path, tokenizer):
    run, chosen = TrainingRun(tmp_path / "run", refresh_ranks=1), Ict(batch_size=8)
    with pytest.raises(ValueError, match="refresh_ranks=1 have nothing to build: leave it at 0"):
        runs.ict(run, BLOCKS, RealmEmbedder(RealmConfig(**CONFIG)), tokenizer, chosen)
    assert not run.folder.exists()


# ---- masked language modelling


def test_mlm_learns_hidden_words(tmp_path, tokenizer):
    encoder = RealmKnowledgeAugEncoder(RealmConfig(**CONFIG), seed=2)
    runs.mlm(
        TrainingRun(tmp_path),
        BLOCKS,
        encoder,
        tokenizer,
        Mlm(steps=40, batch_size=8, learning_rate=3e-2, freeze_word_embeddings=False),
    )
    loss = loop.read_log(tmp_path / loop.LOG_FILE)["loss"]
    assert loss[0] == pytest.approx(np.log(CONFIG["vocab_size"]), rel=0.1)
    assert np.mean(loss[-5:]) < loss[0] / 2
    assert warm_start.knowledge_encoder(tmp_path).config.hidden_size == 16


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    number=st.integers(0, 7), seed=st.integers(0, 2**32), max_wordpieces=st.integers(3, 60), more=st.integers(0, 60),
    empty=st.booleans(),
)  # fmt: skip
@example(number=0, seed=0, max_wordpieces=3, more=0, empty=False)  # a title that leaves no room for a word
@example(number=0, seed=0, max_wordpieces=40, more=0, empty=True)  # a block without text
def test_evidence_holds_all_that_is_masked(tokenizer, encoder, number, seed, max_wordpieces, more, empty):
    block = Block(BLOCKS[number].title, "" if empty else BLOCKS[number].text)
    chosen = Mlm(max_wordpieces=max_wordpieces, evidence=max_wordpieces + more)
    batch, labels = mlm.masked_blocks([block], tokenizer, [np.random.default_rng(seed)], encoder, chosen)
    ids, types = batch.words[0], batch.types[0]
    assert labels.shape == (1, len(ids)) and bool(batch.mask.all())
    restored = torch.where(labels[0] == -100, ids, labels[0])
    assert torch.equal(ids == tokenizer.mask_token_id, labels[0] != -100)
    first, second = (restored[types == kind].tolist() for kind in (0, 1))
    assert (first[0], first[-1], second[-1]) == (tokenizer.cls_token_id, *2 * (tokenizer.sep_token_id,))
    assert len(first) <= max_wordpieces and len(second) <= chosen.evidence + 1
    title, text = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (f"{block.title}. ", block.text))
    first, second, room = first[1:-1], second[:-1], max(0, max_wordpieces - 2)
    assert first[: len(title)] == title[:room] and second[: len(title)] == title[: chosen.evidence]
    first, second = first[len(title) :], second[len(title) :]
    assert is_part(first, second) and is_part(second, text)
    assert bool((labels[0] != -100).any()) or not first


def is_part(some: list[int], whole: list[int]) -> bool:
    return any(whole[i : i + len(some)] == some for i in range(len(whole) - len(some) + 1))


def test_mlm_learns_with_evidence_and_goes_on(tmp_path, tokenizer):
    """Stopped after half of its steps, a run ends with the weights of one that was not."""
    chosen = Mlm(20, 8, 3e-2, max_wordpieces=24, evidence=40, freeze_word_embeddings=False)
    encoders = [RealmKnowledgeAugEncoder(RealmConfig(**CONFIG), seed=2) for _ in range(3)]
    runs.mlm(TrainingRun(tmp_path / "whole"), BLOCKS, encoders[0], tokenizer, chosen)

    def stop(stage, done, total, note=""):
        if done == 10:
            raise KeyboardInterrupt

    parts = TrainingRun(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        runs.mlm(replace(parts, save_every=5, report=stop), BLOCKS, encoders[1], tokenizer, chosen)
    runs.mlm(replace(parts, resume=True), BLOCKS, encoders[2], tokenizer, chosen)
    whole, resumed = encoders[0].state_dict(), encoders[2].state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    loss = loop.read_log(tmp_path / "whole" / loop.LOG_FILE)["loss"]
    assert np.mean(loss[-3:]) < 0.7 * loss[0]


def test_a_run_killed_as_it_wrote_its_model_leaves_nothing_of_that(tmp_path, tokenizer):
    left = tmp_path / "run" / "knowledge_encoder" / f".config.json.{'0' * 16}.tmp"
    for resume in (False, True):
        encoder = RealmKnowledgeAugEncoder(RealmConfig(**CONFIG), seed=2)
        runs.mlm(TrainingRun(tmp_path / "run", resume=resume), BLOCKS, encoder, tokenizer, Mlm(2, 8))
        assert {path.name for path in left.parent.iterdir()} == {"config.json", "model.safetensors"}
        left.write_text("{")


def test_evidence_that_cannot_stand_beside_the_text_is_refused(tmp_path, tokenizer):
    encoder = RealmKnowledgeAugEncoder(RealmConfig(**CONFIG))
    with pytest.raises(ValueError, match="evidence=20 cannot hold a text of max_wordpieces=40"):
        runs.mlm(TrainingRun(tmp_path), BLOCKS, encoder, tokenizer, Mlm(max_wordpieces=40, evidence=20))
    with pytest.raises(ValueError, match="are 129 tokens .* the encoder reads 128: give fewer"):
        runs.mlm(TrainingRun(tmp_path), BLOCKS, encoder, tokenizer, Mlm(max_wordpieces=40, evidence=88))


# ---- fine-tuning


def test_a_step_is_the_models_own_loss_and_gradient(tokenizer):
    """What fine-tuning computes from blocks tokenised once is what the model gives, forward and backward."""
    model = open_qa().to(torch.float64).train()
    question = preparation.encode_questions([QUESTIONS[1]], tokenizer, 10)
    evidence = finetuning.Evidence(preparation.encode_blocks(model.retriever.block_records, tokenizer))
    model.zero_grads()
    settings_ = Finetune(read_an_answer=False)
    asked = [question[0]._replace(title=None)]
    found = finetuning.finetune_step(model, asked, evidence, settings_, Draws(0, 0, [0]))
    grads = {key: grad.clone() for key, grad in model.grads.items()}
    model.zero_grads()
    inputs = tokenizer([QUESTIONS[1].question], return_tensors="pt")
    answers = tokenizer(QUESTIONS[1].answers, add_special_tokens=False)["input_ids"]
    output = model(**inputs, answer_ids=answers, return_dict=True).reader_output
    assert found["loss"] == pytest.approx((float(output.loss), 1), abs=1e-10)
    if output.retriever_correct.any():
        model.backward()
        largest = max(float(grad.abs().max()) for grad in grads.values())
        for key, grad in model.grads.items():
            assert (grad - grads[key]).abs().max() <= 1e-9 * largest, key


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_occurrences_are_all_places(block, answer):
    found = finetuning.occurrences(np.array(block, dtype=int), np.array(answer))
    assert found.tolist() == [i for i in range(len(block)) if block[i : i + len(answer)] == answer]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8), st.booleans())
def test_an_answer_is_read_where_there_is_one(right, beam, wanted):
    beam = min(beam, len(right))
    ids = torch.arange(len(right)) + 10
    order, now_right = finetuning.reading_order(ids, torch.tensor(right), beam, wanted)
    assert sorted(order.tolist()) == ids.tolist()
    assert now_right.tolist() == [right[i - 10] for i in order.tolist()]
    if any(right[:beam]) or not wanted or not any(right):
        assert order.tolist() == ids.tolist()
    else:
        assert now_right[:beam].any() and order[: beam - 1].tolist() == ids[: beam - 1].tolist()


def test_evidence_is_of_the_title_and_the_words_that_are_known(tokenizer):
    evidence = finetuning.Evidence(preparation.encode_blocks([record(block) for block in BLOCKS], tokenizer), BLOCKS)
    asked = TrainingQuestion("which city?", ["lima", "paris"])
    for known, expected in (
        ({}, [1, 4]), ({"title": "Chad"}, [4]), ({"evidence": "Peru"}, [1]), ({"title": "Cuba"}, []),
        ({"title": "Peru", "evidence": "hot"}, []),
    ):  # fmt: skip
        question = preparation.encode_questions([asked._replace(**known)], tokenizer, 10)[0]
        assert [i for i in range(8) if finetuning.is_evidence(question, i, evidence)] == expected


@pytest.mark.parametrize("refresh", [False, True])
def test_fine_tuning_learns_to_retrieve_and_to_read(tmp_path, tokenizer, refresh):
    model = open_qa()
    before = model.block_emb.clone()
    dev = [Question(question.question, question.answers) for question in QUESTIONS]
    chosen = Finetune(steps=40, batch_size=8, learning_rate=1e-2, refresh_blocks=refresh, refresh_every=15)
    runs.finetune(TrainingRun(tmp_path, evaluate_every=20), model, QUESTIONS, chosen, blocks=BLOCKS, dev=dev)
    measures = loop.read_log(tmp_path / loop.METRICS_FILE)
    assert measures["step"] == [20, 40]
    assert torch.equal(model.block_emb, before) is not refresh
    log = loop.read_log(tmp_path / loop.LOG_FILE)
    assert np.mean(log["loss"][-5:]) < 0.6 * log["loss"][0]
    if refresh:
        assert log["staleness"][:31:15] == [0, 15, 15]
    found = means(result.measures for result in evaluate(model, dev))
    assert found["official_exact_match"] >= 0.5  # 1 in 8 by chance


def test_questions_that_cannot_be_learned_are_refused(tmp_path, tokenizer):
    model = open_qa()
    with pytest.raises(ValueError, match="no question has an answer of 1 to 10 wordpieces"):
        runs.finetune(TrainingRun(tmp_path), model, [TrainingQuestion("who?", ["a b c d e f g h i j k"])])
    with pytest.raises(ValueError, match="has 2 wordpieces"):
        runs.finetune(TrainingRun(tmp_path), model, [TrainingQuestion("  ", ["a"])])
    with pytest.raises(ValueError, match="there is no question to train on: give some"):
        runs.finetune(TrainingRun(tmp_path), model, [])
    with pytest.raises(ValueError, match=r"^the question '(why ){15}' has 102 wordpieces: give one of 3 to 64$"):
        runs.finetune(TrainingRun(tmp_path), model, [TrainingQuestion("why " * 100, ["a"])])
    with pytest.raises(ValueError, match="not those of the model's retriever"):
        runs.finetune(TrainingRun(tmp_path), model, QUESTIONS, blocks=BLOCKS[1:])
    with pytest.raises(ValueError, match="refresh_blocks embeds the blocks anew"):
        runs.finetune(TrainingRun(tmp_path), model, QUESTIONS, Finetune(refresh_blocks=True))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"answer": ["a"]}, 'line 1 has no "question"'),
        ({"question": " ", "answer": ["a"]}, 'line 1 has no "question"'),
        ({"question": "a?", "answer": "a"}, 'line 1 has no "answer"'),
        ({"question": "a?", "answer": ["a"], "title": 3}, '"title" is 3, not a string'),
    ],
)
def test_a_malformed_question_is_named(tmp_path, line, complaint):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(ValueError, match=complaint):
        read_training_questions(path)


# ---- folders


@pytest.fixture
def bert_folder(tmp_path):
    """A BERT's folder, as it is published: other names, no projection."""
    embedder = RealmEmbedder(RealmConfig(**CONFIG), seed=9)
    prefix = "realm."
    tensors = {
        key.removeprefix(prefix): tensor.contiguous()
        for key, tensor in embedder.state_dict().items()
        if key.startswith(prefix)
    }
    config = {name: CONFIG[name] for name in CONFIG if name not in ("retriever_proj_size", "span_hidden_size")}
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    return tmp_path / "bert", tensors


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("make", [warm_start.embedder, warm_start.knowledge_encoder, warm_start.reader])
def test_any_bert_is_a_start(bert_folder, prefix, make):
    folder, tensors = bert_folder
    save_file({f"{prefix}{key}": tensor for key, tensor in tensors.items()}, folder / "model.safetensors")
    model = make(folder, 4)
    found = model.state_dict()
    assert all(torch.equal(found[f"realm.{key}"], tensor) for key, tensor in tensors.items())
    if isinstance(model, RealmKnowledgeAugEncoder):
        assert found["cls.predictions.decoder.weight"] is found["realm.embeddings.word_embeddings.weight"]
    if isinstance(model, RealmReader):
        assert float(found["qa_outputs.dense_intermediate.weight"].abs().max()) > 0


def test_a_folder_without_a_trunk_is_refused(bert_folder):
    folder, tensors = bert_folder
    tensors.pop("encoder.layer.0.attention.self.query.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="holds no whole BERT trunk"):
        warm_start.embedder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config"):
        warm_start.embedder(folder)


def test_the_commands_hand_their_folders_on(tmp_path, capsys):
    """ict, mlm, finetune and ask, from a corpus on disk to an answer."""
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    corpus.write_text("".join(json.dumps(block._asdict()) + "\n" for block in BLOCKS))
    questions.write_text("".join(json.dumps({"question": q.question, "answer": q.answers}) + "\n" for q in QUESTIONS))
    common = ["--steps", "2", "--seed", "1"]
    assert main(["ict", str(corpus), "--out", str(tmp_path / "ict"), "--batch-size", "4", *common]) == 0
    assert main(["mlm", str(corpus), "--out", str(tmp_path / "mlm"), "--batch-size", "2", *common]) == 0
    tuned = ["finetune", str(questions), str(corpus), "--model", str(tmp_path / "ict"), "--out", str(tmp_path / "qa")]
    tuned += ["--searcher-beam-size", "4", "--reader-beam-size", "2", "--batch-size", "2", *common]
    assert main(tuned) == 0
    assert main(tuned) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*tuned, "--resume"]) == 0
    assert main(["ask", "--model", str(tmp_path / "qa" / "model"), "--json", "What is the capital of Peru?"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["blocks"]) == 2 and answer["answer"]
    missing = str(tmp_path / "none.jsonl")
    assert main(["finetune", missing, str(corpus), "--out", str(tmp_path / "x")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


# ---- contexts


def test_another_default_dtype_and_device_change_no_bit(tmp_path, tokenizer, monkeypatch):
    """On "meta" nothing has numbers: what is made there by mistake is found out at once."""
    monkeypatch.setattr(refresh, "BuilderProcess", eight_capitals.BuilderHere)

    def trained(folder):
        model = open_qa(hidden_dropout_prob=0.1)
        runs.finetune(TrainingRun(folder / "finetune"), model, QUESTIONS, Finetune(steps=2, batch_size=2))
        runs.ict(TrainingRun(folder / "ict"), BLOCKS, model.embedder, tokenizer, Ict(steps=2, batch_size=4))
        encoder = RealmKnowledgeAugEncoder(model.config, seed=1)
        runs.mlm(TrainingRun(folder / "mlm"), BLOCKS, encoder, tokenizer, Mlm(steps=2, batch_size=2))
        settings = Pretrain(steps=2, batch_size=2, num_candidates=3)
        runs.pretrain(TrainingRun(folder / "pretrain"), BLOCKS, model.embedder, encoder, tokenizer, settings)
        return {**model.state_dict(), **encoder.state_dict()}

    expected, before = trained(tmp_path / "plain"), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        by_dtype = trained(tmp_path / "dtype")
        torch.set_default_dtype(before)
        torch.set_default_device("meta")
        by_device = trained(tmp_path / "device")
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
    for found in (by_dtype, by_device):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("refresh", [False, True])
def test_fine_tuning_goes_on_with_the_embeddings_that_it_began_with(tmp_path, tokenizer, refresh):
    """Without a refresh they stand in no checkpoint, so others would be searched from there on."""
    chosen, seen = Finetune(steps=2, batch_size=2, refresh_blocks=refresh), []
    for factor in (1, 2):
        model = open_qa()
        model.block_emb = factor * model.block_emb
        run = TrainingRun(tmp_path / "run", resume=factor == 2)
        if factor == 1 or refresh:
            runs.finetune(run, model, QUESTIONS, chosen, blocks=BLOCKS)
            seen.append(model.block_emb)
            continue
        with pytest.raises(ValueError, match="was begun with block_emb='[0-9a-f]{8}', not '[0-9a-f]{8}'"):
            runs.finetune(run, model, QUESTIONS, chosen, blocks=BLOCKS)
        run_file = tmp_path / "run" / "run.json"  # of a version that did not say
        run_file.write_text(json.dumps({k: v for k, v in json.loads(run_file.read_text()).items() if k != "block_emb"}))
        runs.finetune(run, model, QUESTIONS, chosen, blocks=BLOCKS)
    assert not refresh or torch.equal(*seen)


def test_pre_training_goes_on_with_the_retriever_that_it_does_not_train(tmp_path, tokenizer):
    """It stands in no checkpoint, so another one's documents would be read from there on."""
    config, chosen = RealmConfig(**CONFIG), Pretrain(steps=2, batch_size=2, num_candidates=2, encoder_alone=True)
    chosen = chosen._replace(masking="tokens", max_passage=16)
    for seed in (1, 2):
        models = RealmEmbedder(config, seed=seed), RealmKnowledgeAugEncoder(config, seed=1)
        run = TrainingRun(tmp_path / "run", resume=seed == 2)
        if seed == 1:
            runs.pretrain(run, BLOCKS, *models, tokenizer, chosen)
            continue
        with pytest.raises(ValueError, match="was begun with weights='[0-9a-f]{8}', not '[0-9a-f]{8}'"):
            runs.pretrain(run, BLOCKS, *models, tokenizer, chosen)


def test_a_refused_pre_training_leaves_no_index(tmp_path, tokenizer, monkeypatch):
    def refuse(*given):
        raise ValueError("not this batch")

    models = RealmEmbedder(RealmConfig(**CONFIG)), RealmKnowledgeAugEncoder(RealmConfig(**CONFIG))
    monkeypatch.setattr(runs, "pretrain_step", refuse)
    chosen = Pretrain(steps=2, batch_size=2, num_candidates=2, masking="tokens", max_passage=16)
    with pytest.raises(ValueError, match="not this batch"):
        runs.pretrain(TrainingRun(tmp_path / "run"), BLOCKS, *models, tokenizer, chosen)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_builder_that_died_leaves_its_log(tmp_path, tokenizer, monkeypatch):
    models = RealmEmbedder(RealmConfig(**CONFIG)), RealmKnowledgeAugEncoder(RealmConfig(**CONFIG))
    monkeypatch.setattr(refresh.sys, "executable", "false")
    chosen = Pretrain(steps=2, batch_size=2, num_candidates=2, masking="tokens", max_passage=16)
    with pytest.raises(ChildProcessError, match="builder.log"):
        runs.pretrain(TrainingRun(tmp_path / "run"), BLOCKS, *models, tokenizer, chosen)
    assert (tmp_path / "run" / "index" / "builder.log").is_file() and (tmp_path / "run" / "run.json").is_file()


def test_the_shortest_sentence_of_the_inverse_cloze_task(tokenizer):
    assert Ict(max_query=3).check() is None
    with pytest.raises(ValueError, match="max_query=2 is out of range: give a whole number, 3 or more"):
        Ict(max_query=2).check()
