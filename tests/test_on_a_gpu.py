"""What runs on a CPU runs on a GPU, with the same results: on a pretended one, see `pretend_cuda`."""

import json

import pytest
import torch
from eight_capitals import BLOCKS, CONFIG, QUESTIONS, BuilderHere, open_qa, tokenizer
from pretend_cuda import Pretended, pretend

import realm_min
from realm_min.app import indexing, plots
from realm_min.app.cli import main
from realm_min.jobs import embedding, refresh, runs, warm_start
from realm_min.jobs.evaluation import Question, evaluate
from realm_min.jobs.settings import Finetune, Ict, Mlm, Pretrain, TrainingRun
from realm_min.ranks.devices import chosen_device
from realm_min.search.mips import COMPRESSIONS, BlockIndex
from realm_min.text.corpus import Document
from realm_min.verify import verify
from realm_min.verify.stages import PARTS

NARROW = dict(max_span_width=3)  # interpreted, the kernel of the span logits takes as long as a model of many layers
DROPOUT = dict(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
CPU = torch.device("cpu")


def test_the_pretended_device_refuses_what_a_real_one_does():
    with pretend() as device:
        here, there = torch.ones(2, 3), torch.ones(2, 3, device=device)
        assert isinstance(there, Pretended) and there.is_cuda and there.device == device
        assert (there + there[0]).cpu().tolist() == [[2.0] * 3] * 2
        assert there.to("cpu").device.type == "cpu" and here.to(there).is_cuda and here.to("cuda:0").is_cuda
        assert there[torch.tensor([0])].is_cuda and torch.tensor([1.0], device=device).is_cuda
        assert float(there.sum() * torch.tensor(2.0)) == 12  # a number may come from the CPU
        first = torch.tensor([0])
        for mix in (
            lambda: here + there, lambda: here.mul_(there), lambda: there.index_select(0, first),
            lambda: here[there.long()], lambda: there.__setitem__(first, here[:1]),
            lambda: torch.cat([here, there]), lambda: here @ there.t(),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="expected all tensors on one device"):
                mix()
        there[first] = there[1:] + 1
        assert there.cpu().tolist() == [[2.0] * 3, [1.0] * 3]
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_search(compression):
    blocks, queries = torch.randn(300, 8), torch.randn(3, 8)
    scores, ids = BlockIndex(blocks, compression).search(queries, 7)
    with pretend() as device:
        index = BlockIndex(blocks, compression).to(device)
        found = index.search(queries.to(device), 7)
        again = BlockIndex(blocks.to(device), compression).search(queries[:1].to(device), 7)
        assert found[0].is_cuda and index.rows(torch.tensor([3])).is_cuda
        found, again = ([value.cpu() for value in values] for values in (found, again))
    assert torch.equal(found[0], scores) and torch.equal(found[1], ids)
    assert torch.equal(again[0], scores[:1]) and torch.equal(again[1], ids[:1])


# ---- models


def ids_and_mask(*shape):
    """Padding at the right, the first row full."""
    lengths = torch.randint(4, shape[-1] + 1, shape[:-1]).unsqueeze(-1)
    lengths.view(-1)[0] = shape[-1]
    return torch.randint(5, 99, shape), (torch.arange(shape[-1]) < lengths).long()


def embedder_case():
    ids, mask = ids_and_mask(3, 9)
    return realm_min.RealmEmbedder, dict(input_ids=ids, attention_mask=mask), "projected_score"


def scorer_case():
    (ids, mask), (candidates, candidate_mask) = ids_and_mask(2, 7), ids_and_mask(2, 3, 9)
    inputs = dict(input_ids=ids, attention_mask=mask, candidate_input_ids=candidates)
    return realm_min.RealmScorer, inputs | dict(candidate_attention_mask=candidate_mask), "relevance_score"


def encoder_case():
    ids, mask = ids_and_mask(2, 3, 9)
    labels, mlm_mask = torch.randint(5, 99, (2, 9)), torch.zeros(2, 9)
    mlm_mask[:, 2:4] = 1
    inputs = dict(input_ids=ids, attention_mask=mask, labels=labels, mlm_mask=mlm_mask)
    return realm_min.RealmKnowledgeAugEncoder, inputs | dict(relevance_score=torch.randn(2, 3)), "loss"


def reader_case():
    ids, mask = ids_and_mask(3, 15)
    starts = torch.tensor([[3], [-1], [4]])
    inputs = dict(input_ids=ids, attention_mask=mask, relevance_score=torch.randn(3), block_mask=mask.bool())
    inputs |= dict(start_positions=starts, end_positions=starts + (starts > 0).long())
    return realm_min.RealmReader, inputs | dict(has_answers=torch.tensor([True, False, True])), "loss"


CASES = {"embedder": embedder_case, "scorer": scorer_case, "encoder": encoder_case, "reader": reader_case}


def outputs_and_gradients(cls, inputs, name, device, **given):
    """What a model gives in training, and all its gradients, brought to the CPU."""
    config = realm_min.RealmConfig(**CONFIG | NARROW | dict(vocab_size=99, num_candidates=3) | given)
    model = cls(config, seed=1).to(device).train()
    output = model(**{key: value.to(device) for key, value in inputs.items()}, return_dict=True)
    found = {key: value for key, value in output.items() if isinstance(value, torch.Tensor)}
    cotangent = {} if name == "loss" else {name: torch.ones(output[name].shape, device=device)}
    found |= {f"d{key}": value for key, value in (model.backward(**cotangent) or {}).items()} | model.grads
    assert all(value.device == device for value in found.values())
    return {key: value.to(CPU) for key, value in found.items()}


@pytest.mark.parametrize("name", list(CASES))
def test_a_model_and_its_gradients(name):
    case = CASES[name]()
    expected = outputs_and_gradients(*case, CPU)
    with pretend() as device:
        found = outputs_and_gradients(*case, device)
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for key, value in expected.items() if value.is_floating_point())
    for key, value in expected.items():
        torch.testing.assert_close(
            found[key], value, rtol=1e-5, atol=1e-6 * largest, msg=lambda text, key=key: key + text
        )


@pytest.mark.parametrize("name", list(CASES))
def test_a_model_with_dropout(name):
    with pretend() as device:
        found = outputs_and_gradients(*CASES[name](), device, **DROPOUT)
        again = outputs_and_gradients(*CASES[name](), device, **DROPOUT)
    assert found.keys() == again.keys() and all(value.isfinite().all() for value in found.values())


def test_a_model_moves_and_is_saved(tmp_path):
    model = realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIG), seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pretend() as device:
        model.to(device).save_pretrained(tmp_path)
        again = realm_min.RealmEmbedder.from_pretrained(tmp_path).to(device).to("cpu")
        assert model.device == device and again.device == CPU
    assert all(torch.equal(value, before[key]) for key, value in again.state_dict().items())


# ---- questions


def test_questions_are_answered():
    asked = [question.question for question in QUESTIONS[:2]]
    expected = open_qa(**NARROW).answer(asked)
    with pretend() as device:
        for kept_here in (False, True):
            model = open_qa(**NARROW).to(device)
            if kept_here:
                model.block_embedding_to("cpu")
            for answer, wanted in zip(model.answer(asked), expected, strict=True):
                assert answer.text == wanted.text and answer.probability == pytest.approx(wanted.probability, rel=1e-4)
                assert [block.id for block in answer.blocks] == [block.id for block in wanted.blocks]


def test_a_question_and_its_gradient():
    inputs = tokenizer()([QUESTIONS[1].question], return_tensors="pt")
    answers = tokenizer()(QUESTIONS[1].answers, add_special_tokens=False)["input_ids"]

    def learn(device):
        model = open_qa(**NARROW).to(device).train()
        output = model(**inputs.to(device), answer_ids=answers, return_dict=True)
        model.backward()
        return float(output.reader_output.loss), {key: value.to(CPU) for key, value in model.grads.items()}

    loss, grads = learn(CPU)
    with pretend() as device:
        found, found_grads = learn(device)
    assert found == pytest.approx(loss, rel=1e-5)
    largest = max(float(value.abs().max()) for value in grads.values())
    assert all((found_grads[key] - value).abs().max() <= 1e-5 * largest for key, value in grads.items())


# ---- training


def run_ict(folder, device, evaluate=None, resume=False, **given):
    embedder = realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIG | given), seed=2).to(device)
    chosen = Ict(steps=3, batch_size=8, freeze_word_embeddings=False)
    run = TrainingRun(folder, save_every=2, resume=resume, evaluate=evaluate)
    runs.ict(run, BLOCKS, embedder, tokenizer(), chosen)
    return embedder


def run_mlm(folder, device, **given):
    encoder = realm_min.RealmKnowledgeAugEncoder(realm_min.RealmConfig(**CONFIG | given), seed=2).to(device)
    runs.mlm(TrainingRun(folder, save_every=2), BLOCKS, encoder, tokenizer(), Mlm(steps=3, batch_size=4))
    return encoder


def run_pretrain(folder, device, **given):
    config = realm_min.RealmConfig(**CONFIG | given)
    embedder = realm_min.RealmEmbedder(config, seed=2).to(device)
    encoder = realm_min.RealmKnowledgeAugEncoder(config, seed=3).to(device)
    chosen = Pretrain(
        steps=2, batch_size=2, num_candidates=3, refresh_every=1, max_passage=24, max_block=40, masking="tokens"
    )
    runs.pretrain(TrainingRun(folder, save_every=2), BLOCKS, embedder, encoder, tokenizer(), chosen)
    return embedder


def run_finetune(folder, device, refresh_blocks=False, **given):
    model = open_qa(**NARROW | given).to(device)
    chosen = Finetune(steps=2, batch_size=1, refresh_blocks=refresh_blocks, refresh_every=1)
    runs.finetune(TrainingRun(folder, save_every=2), model, QUESTIONS, chosen, blocks=BLOCKS, dev=[])
    return model.reader


def run_refreshed(folder, device, **given):
    return run_finetune(folder, device, refresh_blocks=True, **given)


JOBS = [run_ict, run_mlm, run_pretrain, run_finetune, run_refreshed]
RUNS = [(job, {}) for job in JOBS if job is not run_refreshed]
RUNS += [(job, DROPOUT) for job in (run_ict, run_mlm, run_refreshed)]  # each kind of model has it once


@pytest.mark.parametrize("job,dropout", RUNS, ids=lambda value: value.__name__ if callable(value) else str(len(value)))
def test_a_training_run(tmp_path, monkeypatch, job, dropout):
    monkeypatch.setattr(refresh, "BuilderProcess", BuilderHere)
    expected = job(tmp_path / "cpu", CPU, **dropout).state_dict()
    with pretend() as device:
        model = job(tmp_path / "gpu", device, **dropout)
        assert model.device == device
        found = {key: value.to(CPU) for key, value in model.state_dict().items()}
    if not dropout:  # its masks are a device's own
        for key, value in expected.items():
            assert (found[key] - value).abs().max() < 1e-5, key


def test_a_run_goes_on(tmp_path):
    def stop():
        raise RuntimeError("after the last step, before it is saved")

    expected = run_ict(tmp_path / "cpu", CPU).state_dict()
    with pretend() as device:
        with pytest.raises(RuntimeError, match="before it is saved"):
            run_ict(tmp_path / "gpu", device, evaluate=stop)
        resumed = run_ict(tmp_path / "gpu", device, resume=True).state_dict()
        found = {key: value.to(CPU) for key, value in resumed.items()}
    assert all((found[key] - value).abs().max() < 1e-5 for key, value in expected.items())


def test_blocks_are_embedded():
    embedder = realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIG), seed=2).eval()
    expected = embedding.embed_blocks(embedder, tokenizer(), BLOCKS)
    with pretend() as device:
        found = embedding.embed_blocks(embedder.to(device), tokenizer(), BLOCKS).to(CPU)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_index_is_written_and_asked(tmp_path):
    with pretend() as device:
        indexing.index(
            (Document(*block) for block in BLOCKS), tmp_path / "ready", open_qa(**NARROW).to(device), tokenizer()
        )
        retriever = realm_min.RealmRetriever.from_pretrained(tmp_path / "ready")
        model = realm_min.RealmForOpenQA.from_pretrained(tmp_path / "ready", retriever=retriever).to(device)
        asked = [Question(question.question, question.answers) for question in QUESTIONS[:2]]
        results = list(evaluate(model, asked))
        plots.plot_answer(model, model.answer([asked[0].question])[0], tmp_path / "answer.png")
    assert [result.question for result in results] == asked and (tmp_path / "answer.png").is_file()


@pytest.mark.parametrize("kind", list(PARTS))
def test_a_checkpoint_is_verified(tmp_path, monkeypatch, kind):
    model_class = getattr(realm_min, kind)
    sizes = dict(vocab_size=99, num_candidates=3, num_block_records=30, searcher_beam_size=5, reader_beam_size=2)
    model_class(realm_min.RealmConfig(**CONFIG | NARROW | sizes), seed=1).save_pretrained(tmp_path)
    with pretend():
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        report = verify(tmp_path)
    assert report.passed and "triton" in report.paths


# ---- the commands' --device


@pytest.fixture
def one_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


def test_a_device_is_named(one_gpu):
    assert chosen_device("cpu") == CPU and chosen_device("cuda") == chosen_device("cuda:0") == torch.device("cuda", 0)
    for name, complaint in (
        ("cuda:1", "this machine has cuda:0 to cuda:0"), ("gpu", "give cpu, cuda or cuda:N"), ("cuda:x", "unknown"),
        ("cuda:-1", "unknown"), ("", "unknown"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=complaint):
            chosen_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here_is_refused(capsys):
    assert main(["ask", "where?", "--device", "cuda"]) == 2
    assert "sees no GPU here" in capsys.readouterr().err


def test_the_commands_run_on_a_gpu(tmp_path, monkeypatch, capsys, one_gpu):
    """From documents to an answer; the folder of each job is the start of the next."""
    monkeypatch.setattr(refresh, "BuilderProcess", BuilderHere)
    small = lambda **given: realm_min.RealmConfig(**CONFIG | NARROW | given)  # noqa: E731
    monkeypatch.setattr(warm_start, "small_config", small)
    of_folder = warm_start.tokenizer
    monkeypatch.setattr(warm_start, "tokenizer", lambda folder: of_folder(folder) if folder else tokenizer())
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    corpus.write_text("".join(json.dumps(block._asdict()) + "\n" for block in BLOCKS))
    questions.write_text("".join(json.dumps({"question": q.question, "answer": q.answers}) + "\n" for q in QUESTIONS))
    steps = ["--steps", "2", "--device", "cuda"]
    asked = "what is the capital of peru?"
    beams = ["--searcher-beam-size", "6", "--reader-beam-size", "2", "--refresh-blocks", "--batch-size", "2"]
    runs = (
        ["ict", str(corpus), "--out", f"{tmp_path}/ict", "--batch-size", "8"],
        ["mlm", str(corpus), "--out", f"{tmp_path}/mlm", "--batch-size", "2"],
        [
            "pretrain",
            str(corpus),
            "--model",
            f"{tmp_path}/ict",
            "--out",
            f"{tmp_path}/pretrain",
            "--num-candidates",
            "3",
        ],
        ["finetune", str(questions), str(corpus), "--model", f"{tmp_path}/pretrain", "--out", f"{tmp_path}/qa", *beams],
    )
    with pretend():
        for run in runs:
            assert main([*run, *steps]) == 0, capsys.readouterr().err
        ready = ["--model", f"{tmp_path}/qa/model", "--device", "cuda"]
        assert main(["index", str(corpus), "--out", f"{tmp_path}/index", *ready]) == 0
        assert main(["evaluate", str(questions), "--limit", "2", "--json", *ready]) == 0
        capsys.readouterr()
        assert main(["ask", asked, "--json", *ready]) == 0
        on_gpu = json.loads(capsys.readouterr().out)
    assert main(["ask", asked, "--json", *ready[:2]]) == 0
    on_cpu = json.loads(capsys.readouterr().out)
    assert on_gpu["answer"] == on_cpu["answer"]
    assert on_gpu["probability"] == pytest.approx(on_cpu["probability"], rel=1e-3)
    assert [block["id"] for block in on_gpu["blocks"]] == [block["id"] for block in on_cpu["blocks"]]
