"""Pre-training: the marginal losses, one step against the book, and runs that are killed and go on."""

import json
import math
import sys
import time
from pathlib import Path

import book_models
import numpy as np
import pytest
import ranks
import torch
from drawn_cases import assert_close, config_values, fill, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pretraining import BLOCKS, SETTINGS, new_models, run, run_until_killed

import realm_min
from realm_min import textbook
from realm_min.app import plots
from realm_min.app.cli import main
from realm_min.jobs import loop, preparation, runs, warm_start
from realm_min.jobs.draws import Draws
from realm_min.jobs.settings import TrainingRun
from realm_min.learn import masking, pretraining
from realm_min.model.bert import PLAIN
from realm_min.model.realm import marginal_loss, marginal_loss_backward, relevance_score_backward
from realm_min.search.mips import BlockIndex
from realm_min.search.sharded_index import search_without
from realm_min.text.corpus import Block

DRAWN = settings(deadline=None, derandomize=True, max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)


def autograd_loss(log_likelihood, relevance, mask, whole_span):
    """Equation 1 as it stands, for autograd: probabilities in float64, no logarithm before the last."""
    prior = relevance.exp() / relevance.exp().sum(1, keepdim=True)
    likelihood = log_likelihood.exp()
    if whole_span:
        likelihood = torch.where(mask[:, None] > 0, likelihood, torch.ones_like(likelihood)).prod(2)
        total = (likelihood * prior).sum(1).log().sum()
    else:
        total = ((likelihood * prior[:, :, None]).sum(1).log() * mask).sum()
    return -total / mask.sum()


@DRAWN
@given(SEEDS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_marginal_losses_against_autograd(seed, rows, candidates, tokens, whole_span, share):
    random = torch.Generator().manual_seed(seed)
    f64 = dict(dtype=torch.float64, generator=random)
    log_likelihood = (-torch.rand(rows, candidates, tokens, **f64) * 5).requires_grad_()
    relevance = torch.randn(rows, candidates, **f64).requires_grad_()
    mask = (torch.rand(rows, tokens, **f64) < share).double()
    loss, kept = marginal_loss(log_likelihood.detach(), relevance.detach(), mask, whole_span)
    found = marginal_loss_backward(torch.tensor(1.7, dtype=torch.float64), kept)
    if not mask.any():
        assert loss == 0 and not any(gradient.any() for gradient in found)
        return
    expected = autograd_loss(log_likelihood, relevance, mask, whole_span)
    assert math.isclose(loss, expected.detach(), rel_tol=1e-12, abs_tol=1e-14)
    (1.7 * expected).backward()
    for gradient, tensor in zip(found, (log_likelihood, relevance), strict=True):
        assert torch.allclose(gradient, tensor.grad, rtol=1e-10, atol=1e-13)


@DRAWN
@given(config_values(), SEEDS, st.integers(1, 3), st.integers(2, 7), st.booleans(), st.sampled_from([0.0, 0.4, 1.0]))
def test_masked_words_alone_give_the_loss_and_gradients_of_all(values, seed, rows, tokens, whole_span, share):
    """Padded on the right, masks drawn: losses and gradients are the book's, and those of the whole forward."""
    values |= {"hidden_act": "gelu" if seed % 2 else "gelu_new"}
    rng = np.random.default_rng(seed)
    candidates = values["num_candidates"]
    model = realm_min.RealmKnowledgeAugEncoder(realm_min.RealmConfig(**values)).eval()
    fill(model.state_dict(), seed, 0.3)
    parameters = to_numpy(model.state_dict())
    model.to(torch.float64)
    ids = torch.from_numpy(rng.integers(0, values["vocab_size"], (rows, candidates, tokens)))
    types = torch.from_numpy(rng.integers(0, values["type_vocab_size"], ids.shape))
    lengths = torch.from_numpy(rng.integers(1, tokens + 1, (rows, candidates)))
    attention = (torch.arange(tokens) < lengths[:, :, None]).long()
    relevance = torch.from_numpy(rng.standard_normal((rows, candidates)))
    # Labels stand in the text, which all candidates of a row share.
    labels = torch.from_numpy(rng.integers(0, values["vocab_size"], (rows, tokens)))
    shared = torch.arange(tokens) < lengths.min(1).values[:, None]
    mask = shared & torch.from_numpy(rng.random((rows, tokens)) < share)
    labels = torch.where(mask, labels, -100)

    flat = [x.flatten(0, 1) for x in (ids, attention, types)]
    repeated = labels[:, None].expand(ids.shape).reshape(-1, tokens)
    log_likelihood, cache = model.masked_log_likelihood(*flat, repeated)
    log_likelihood = log_likelihood.view(ids.shape)
    loss, kept = marginal_loss(log_likelihood, relevance, mask, whole_span)
    batch = tuple(x.numpy() for x in flat)
    book = book_models.knowledge_encoder(parameters, model.config, batch, labels.numpy(), relevance.numpy(), whole_span)
    assert math.isclose(loss, book.losses[0], rel_tol=1e-10, abs_tol=1e-12)

    dlog_likelihood, drelevance = marginal_loss_backward(torch.ones((), dtype=torch.float64), kept)
    model.masked_log_likelihood_backward(dlog_likelihood.flatten(0, 1), cache)
    found = {key: gradient.clone() for key, gradient in model.grads.items()}
    assert_close(drelevance, book.drelevance, 1e-10)
    for key, gradient in found.items():
        if key not in model.aliases():
            assert_close(gradient, book.g[key], 1e-10, key)
    model.zero_grads()
    output = model(
        ids, attention, types, relevance_score=relevance, labels=labels, mlm_mask=mask, whole_span=whole_span
    )
    assert math.isclose(output.loss, loss, rel_tol=1e-12, abs_tol=1e-14)
    assert torch.allclose(model.backward()["relevance_score"], drelevance, rtol=1e-10, atol=1e-13)
    for key, gradient in model.grads.items():
        assert torch.allclose(found[key], gradient, rtol=1e-9, atol=1e-12), key


def test_the_two_losses_differ_only_where_a_span_is_long():
    log_likelihood = torch.tensor([[[-1.0, -2.0], [-3.0, -0.5]]])
    relevance = torch.tensor([[0.2, -0.1]])
    one = torch.tensor([[True, False]])
    of_words, of_spans = (marginal_loss(log_likelihood, relevance, one, whole)[0] for whole in (False, True))
    assert of_words == of_spans
    p, q = torch.softmax(relevance[0], 0).tolist()
    by_token = math.log(p * math.exp(-1) + q * math.exp(-3)) + math.log(p * math.exp(-2) + q * math.exp(-0.5))
    by_span = math.log(p * math.exp(-1 - 2) + q * math.exp(-3 - 0.5))
    assert marginal_loss(log_likelihood, relevance)[0] == pytest.approx(-by_token / 2, rel=1e-6)
    assert marginal_loss(log_likelihood, relevance, None, True)[0] == pytest.approx(-by_span / 2, rel=1e-6)


# ---- one step


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return realm_min.RealmTokenizerFast(str(vocabulary))


def step(models, tokenizer, index, examples, settings):
    draws = Draws(0, 0, list(range(len(examples))))
    blocks = preparation.encode_evidence(BLOCKS, tokenizer)
    batch = pretraining.gather_evidence(models, tokenizer, blocks, index, examples, draws, settings)
    return pretraining.pretrain_step(models, batch, settings)


@pytest.mark.parametrize("marginal", ["token", "span"])
@pytest.mark.parametrize("max_positions", [64, 30])
def test_a_step_is_the_books(tokenizer, marginal, max_positions):
    """The whole of it: queries, the null document, evidence, relevance, masked words, the marginal; float64."""
    ours = [model.to(torch.float64) for model in new_models(max_position_embeddings=max_positions)]
    for number, model in enumerate(ours):
        fill(model.state_dict(), number, 0.3)
    texts = preparation.cut_texts(BLOCKS, tokenizer, 24, masking.salient_span)[:7:3]
    examples = pretraining.hide(texts, tokenizer, masking.salient_span, [np.random.default_rng(0)] * 3)
    index = torch.randn(len(BLOCKS), 8)
    settings = SETTINGS._replace(marginal=marginal)
    sums = step(ours, tokenizer, BlockIndex(index), examples, settings)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    p = {name: to_numpy(model.state_dict()) for name, model in zip(("embedder", "encoder"), ours, strict=True)}
    c, longest = ours[0].config, min(40, max_positions)  # max_block is 40
    x = textbook.join([(example.ids,) for example in examples])
    queries = textbook.embed(p["embedder"], c, x)[0].astype(np.float32).astype(np.float64)
    barred = np.arange(len(BLOCKS)) == np.array([example.barred[0] for example in examples])[:, None]
    found = 1 + textbook.search(queries, index.double().numpy(), 3, barred)  # 0 is the null document
    candidates = np.concatenate([np.zeros((3, 1), int), found], 1)
    z = textbook.join([([], [])] + [
        (ids(title), ids(text)[: longest - len(ids(title)) - 3]) for title, text in BLOCKS
    ])  # fmt: skip
    evidence = [[]] + [ids(f"{title}. {text}")[:37] for title, text in BLOCKS]
    pairs = textbook.join(
        [
            (example.ids, evidence[candidate][: max_positions - len(example.ids) - 3])
            for example, row in zip(examples, candidates, strict=True)
            for candidate in row
        ]
    )
    labels = np.full((3, pairs[0].shape[1]), textbook.NO_LABEL)
    for row, example in zip(labels, examples, strict=True):
        row[1 : 1 + len(example.labels)] = example.labels
    loss, _, g = textbook.pretrain_step(p, c, (x, z, candidates, pairs, labels), marginal == "span")
    assert sums["loss"] == pytest.approx((loss, (labels != textbook.NO_LABEL).sum()), rel=1e-10)
    for name, model in zip(g, ours, strict=True):
        for key, gradient in model.grads.items():
            if key not in model.aliases():
                assert_close(gradient, g[name][key], 1e-10, key)


def test_a_step_is_read_in_five_files(tokenizer):
    """Those of learn/ and model/ that it enters, what finds its evidence included."""
    texts = preparation.cut_texts(BLOCKS, tokenizer, 24, masking.salient_span)[:3]
    examples = pretraining.hide(texts, tokenizer, masking.salient_span, [np.random.default_rng(0)] * 3)
    package, entered = Path(realm_min.__file__).parent, set()

    def enter(frame, event, argument):
        entered.add(Path(frame.f_code.co_filename))

    models = [model.train() for model in new_models(hidden_dropout_prob=0.1)]
    assert all(model.own_grads for model in models)  # allocated, as the loop has them before its first step
    sys.setprofile(enter)
    try:
        step(models, tokenizer, BlockIndex(torch.randn(len(BLOCKS), 8)), examples, SETTINGS)
    finally:
        sys.setprofile(None)
    found = {path.relative_to(package).as_posix() for path in entered if package in path.parents}
    assert {file for file in found if file.startswith(("learn/", "model/"))} == {
        "learn/pretraining.py", "model/realm.py", "model/bert.py", "model/fast.py", "model/ops.py",
    }  # fmt: skip


def test_candidates_are_found_without_dropout(tokenizer):
    examples = some_examples(tokenizer)
    index = BlockIndex(torch.randn(len(BLOCKS), 8, generator=torch.Generator().manual_seed(0)))
    found = []
    for rate, training in ((0.5, True), (0.5, False), (0.0, True)):
        models = [model.train(training) for model in new_models(hidden_dropout_prob=rate)]
        draws = Draws(0, 0, [0, 1, 2])
        blocks = preparation.encode_evidence(BLOCKS, tokenizer)
        found.append(pretraining.gather_evidence(models, tokenizer, blocks, index, examples, draws, SETTINGS))
    assert all(torch.equal(batch.candidates, found[0].candidates) for batch in found)


def test_a_permuted_retriever_is_told_of_other_documents(tokenizer, monkeypatch):
    """The encoder learns the same to the bit; what reaches f(x, z) is the book's, of the likelihoods as dealt."""
    examples, seen = some_examples(tokenizer), []

    def spy(drelevance, kept):
        seen.append(drelevance)
        return relevance_score_backward(drelevance, kept)

    monkeypatch.setattr(pretraining, "relevance_score_backward", spy)
    grads, index = [], BlockIndex(torch.randn(len(BLOCKS), 8, generator=torch.Generator().manual_seed(0)))
    for permuted in (False, True):
        models = [model.to(torch.float64) for model in new_models()]
        chosen = SETTINGS._replace(permute_evidence=permuted, marginal="span")
        blocks, draws = preparation.encode_evidence(BLOCKS, tokenizer), Draws(0, 0, [0, 1, 2])
        batch = pretraining.gather_evidence(models, tokenizer, blocks, index, examples, draws, chosen)
        pretraining.pretrain_step(models, batch, chosen)
        grads.append(models[1].grads)
    assert all(torch.equal(grad, grads[1][key]) for key, grad in grads[0].items())
    relevance, log_p, _ = pretraining.read_evidence(models, batch, (PLAIN,) * 3)
    assert batch.dealt.sort().values.tolist() == [[0, 1, 2, 3]] * 3 and batch.dealt.tolist() != [[0, 1, 2, 3]] * 3
    dealt = np.take_along_axis(log_p.sum(2).numpy(), batch.dealt.numpy(), 1)[:, :, None]
    _, kept = textbook.marginal_log_likelihood(dealt, relevance.numpy())
    assert_close(seen[1], textbook.marginal_log_likelihood_backward(-np.ones((3, 1)), kept)[1], 1e-10)
    assert not torch.equal(*seen)


def some_examples(tokenizer):
    texts = preparation.with_copies(preparation.cut_texts(BLOCKS, tokenizer, 24, masking.salient_span)[:7:3], BLOCKS, 9)
    return pretraining.hide(texts, tokenizer, masking.salient_span, [np.random.default_rng(0)] * 3)


def test_retrieval_utility_is_what_the_documents_add(tokenizer, monkeypatch):
    """An encoder told by the evidence alone: log p(y_j|x) - log p(y_j|∅,x) of a masked wordpiece."""
    embedder, knowledge_encoder = new_models()
    seen = {}

    def log_likelihood(p, config, batch, labels, run):
        with_evidence = (batch.types.sum(1) > 1).float()[:, None]  # the null document has its [SEP] alone
        seen["rows"] = with_evidence
        return torch.where(labels == -100, 0.0, -3.0 + with_evidence), None

    monkeypatch.setattr(pretraining, "masked_words", log_likelihood)
    monkeypatch.setattr(pretraining, "masked_words_backward", lambda dy, kept, grads: None)
    texts = preparation.cut_texts(BLOCKS, tokenizer, 24, masking.salient_span)
    (example,) = pretraining.hide(texts[:1], tokenizer, masking.salient_span, [np.random.default_rng(1)])
    pieces = sum(label != -100 for label in example.labels)
    index = BlockIndex(torch.randn(len(BLOCKS), 8))
    sums = step((embedder, knowledge_encoder), tokenizer, index, [example], SETTINGS)
    logged = {name: total / count for name, (total, count) in sums.items()}
    assert seen["rows"].flatten().tolist() == [0, 1, 1, 1]  # the null document stands first
    null = logged["null_probability"]
    assert logged["retrieval_utility"] == pytest.approx(math.log(null + (1 - null) * math.e), rel=1e-5)
    assert sums["retrieval_utility"].count == pieces
    assert logged["loss"] == pytest.approx(-math.log(null * math.exp(-3) + (1 - null) * math.exp(-2)), rel=1e-5)


@DRAWN
@given(SEEDS, st.integers(1, 5), st.integers(2, 9), st.integers(1, 4), st.data())
def test_retrieval_is_exact_without_the_barred_blocks(seed, rows, blocks, most, data):
    count = data.draw(st.integers(1, max(1, blocks - most)))
    most = min(most, blocks - count)
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(-2, 3, (blocks, 3)).astype(np.float32)  # many ties
    queries, barred = rng.integers(-2, 3, (rows, 3)).astype(np.float32), rng.integers(-1, blocks, (rows, most))
    found = search_without(
        BlockIndex(torch.from_numpy(embeddings)), torch.from_numpy(queries), torch.from_numpy(barred), count
    )
    held = (barred[:, :, None] == np.arange(blocks)).any(1)  # -1 is no block
    assert found.tolist() == textbook.search(queries, embeddings, count, held).tolist()


def test_a_text_is_barred_from_every_block_that_holds_it(tokenizer):
    """The same words under another number, title, case or white space, or with more around them."""
    said = "Oslo lies in Norway. It has a harbour."
    blocks = [
        Block("A", "Peru is far."), Block("B", said), Block("C", "oslo lies  in NORWAY. It has a harbour."),
        Block("D", "Once more: Bergen. Oslo lies in Norway. Peru is far. It has a harbour."),
        Block("E", "It has a harbour. Lima has one."), Block("B", "Oslo lies in Norway, near it. It has a harbour."),
    ]  # fmt: skip
    texts = [
        pretraining.Text(1, "B", said), pretraining.Text(1, "B", "It has a harbour."),
        pretraining.Text(pretraining.NO_BLOCK, "C", "Oslo lies in Norway."), pretraining.Text(0, "A", "Peru is far."),
    ]  # fmt: skip
    found = [text.copies for text in preparation.with_copies(texts, blocks, 6)]
    assert found == [(2, 3, -1, -1), (2, 3, 4, 5), (1, 2, 3, -1), (3, -1, -1, -1)]
    index = BlockIndex(torch.eye(6))
    barred = torch.tensor([(text.block, *copies) for text, copies in zip(texts, found, strict=True)])
    assert search_without(index, torch.ones(4, 6), barred, 1).flatten().tolist() == [0, 0, 0, 1]
    rng = [np.random.default_rng(0)] * 4
    hidden = pretraining.hide(preparation.with_copies(texts, blocks, 6), tokenizer, masking.random_tokens, rng)
    assert [list(example.barred) for example in hidden] == barred.tolist()


def test_texts_know_their_blocks(tokenizer):
    """Blocks without text, a word too long for any text, and sentences without a name between others."""
    blocks = [Block("A", ""), *BLOCKS, Block("B", " "), Block("Long", "in Oslo " + "x" * 70 + " ends."), Block("C", "")]
    texts = preparation.cut_texts(blocks, tokenizer, 24, masking.salient_span)
    assert {text.block for text in texts} == {*range(1, 16), 17}
    for text in texts:
        block = blocks[text.block]
        assert text.title == block.title and text.text in block.text
        assert len(tokenizer(f"{text.title}. {text.text}")["input_ids"]) <= 24
    assert not any("no name stands here" in text.text and "Ruritania" not in text.text for text in texts)
    kept = [text for block in blocks if block.text for text in block.text.split()]
    everything = preparation.cut_texts(blocks, tokenizer, 24, masking.random_tokens)
    assert "".join("".join(text.text.split()) for text in everything) == "".join(kept)
    with pytest.raises(ValueError, match="nothing|anything to mask"):
        preparation.cut_texts([Block("A", "all small.")], tokenizer, 24, masking.salient_span)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(marginal="both"), "marginal='both' is unknown: choose one of token, span"),
        (dict(masking="names"), "masking='names' is unknown"),
        (dict(masking=np.zeros(2)), r"masking=array.* is unknown: choose one of salient, tokens, spans"),
        (dict(optimizer=["adamw"]), r"optimizer=\['adamw'\] is unknown: choose one of adamw, bert"),
        (dict(num_candidates=1), "num_candidates=1 is out of range: give a whole number, 2 or more"),
        (dict(num_candidates=16), r"num_candidates=16 must lie in 2..15: the null document and some of the other 14"),
        (dict(num_candidates=15, null_document=False), r"num_candidates=15 must lie in 2..14: some of the other 14"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(max_passage=64), "max_passage=64 leaves no room for evidence: the models read 64 tokens"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, tokenizer, wrong, message):
    with pytest.raises(ValueError, match=message):
        runs.pretrain(TrainingRun(tmp_path / "run"), BLOCKS, *new_models(), tokenizer, SETTINGS._replace(**wrong))
    assert not (tmp_path / "run").exists()


def test_a_corpus_of_one_block_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="the corpus has 1 block, its own text's, which is barred: give a larger"):
        runs.pretrain(TrainingRun(tmp_path / "run"), BLOCKS[:1], *new_models(), tokenizer, SETTINGS)


# ---- whole runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory, vocabulary):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, run(folder, vocabulary)


def test_a_run_leaves_models_and_a_log(whole, tokenizer):
    folder, weights = whole
    read = [
        warm_start.embedder(folder).state_dict(),
        warm_start.knowledge_encoder(folder).state_dict(),
    ]
    for found, expected in zip([t for state in read for t in state.values()], weights, strict=True):
        assert torch.equal(found, expected)
    assert warm_start.tokenizer(folder)("Oslo") == tokenizer("Oslo")
    log = loop.read_log(folder / "log.csv")
    assert log["step"] == list(range(1, 13))
    assert log["staleness"] == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert all(0 < p < 1 for p in log["null_probability"]) and all(rate > 0 for rate in log["tokens_per_second"])
    assert np.mean(log["loss"][:3]) > 9.5 > np.mean(log["loss"][-3:])  # from the 10.3 of chance
    assert not (folder / "index").exists()


def test_both_sides_learn(whole):
    """The embedder moves through f(x, z) alone, the encoder through the words."""
    fresh = [model.state_dict() for model in new_models()]
    for state, weights in zip(fresh, (whole[1][: len(fresh[0])], whole[1][len(fresh[0]) :]), strict=True):
        moved = {key for (key, old), new in zip(state.items(), weights, strict=True) if not torch.equal(old, new)}
        assert {key for key in state if "encoder.layer.0.intermediate" in key} <= moved
    assert "cls.dense.weight" in fresh[0] and not torch.equal(
        fresh[0]["cls.dense.weight"], dict(zip(fresh[0], whole[1], strict=False))["cls.dense.weight"]
    )


def test_the_plot(whole):
    path = plots.plot_training(whole[0])
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 20_000


def test_a_run_killed_again_and_again_ends_with_the_same_bits(tmp_path, whole, vocabulary):
    """SIGKILL while the first index is built, in a step before the first checkpoint, and in a later one."""
    folder = tmp_path / "run"
    snapshot, log = folder / "index" / "snapshot-0.safetensors", folder / loop.LOG_FILE
    random = np.random.default_rng(7)
    for rows in (0, 2, 8):
        running = ranks.start(run_until_killed, 1, folder, vocabulary)
        begun = snapshot.exists if rows == 0 else lambda rows=rows: log.exists() and log.read_text().count("\n") > rows
        ranks.until(running, begun, f"{rows} steps are done")
        time.sleep(random.uniform(0, 0.03))
        running[0].process.kill()
        assert ranks.finish(running) == [ranks.Outcome()]
    for found, expected in zip(run(folder, vocabulary, resume=True), whole[1], strict=True):
        assert torch.equal(found, expected)
    for column in ("loss", "retrieval_utility", "staleness"):
        assert loop.read_log(folder / "log.csv")[column] == loop.read_log(whole[0] / "log.csv")[column], column


def test_the_command(tmp_path, tokenizer, capsys):
    for name, model in zip(("embedder", "knowledge_encoder"), new_models(), strict=True):
        model.save_pretrained(tmp_path / "model" / name)
    tokenizer.save_pretrained(tmp_path / "model")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"title": b.title, "text": b.text}) + "\n" for b in BLOCKS))
    out = tmp_path / "run"
    command = ["pretrain", str(corpus), "--out", str(out), "--steps", "2", "--batch-size", "2", "--num-candidates", "3"]
    command += ["--model", str(tmp_path / "model"), "--max-passage", "24", "--masking", "spans", "--marginal", "span"]
    assert main(command) == 0
    assert (out / "embedder" / "model.safetensors").is_file() and (out / "training.png").is_file()
    assert json.loads((out / "run.json").read_text())["marginal"] == "span"
    assert "Ready" in capsys.readouterr().err
    assert main(command) == 2
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "--seed", "1"]) == 2
    assert "was begun with seed=0, not 1" in capsys.readouterr().err
    # Older than a setting: one that changed nothing else, and one of a run that was computed otherwise.
    settings = json.loads((out / "run.json").read_text())
    for missing, status in (("optimizer", 0), ("tagger", 2)):
        (out / "run.json").write_text(json.dumps({key: settings[key] for key in settings.keys() - {missing}}))
        assert main([*command, "--resume"]) == status
    assert "was begun with tagger=None, not " in capsys.readouterr().err


def test_pre_training_that_diverges_says_so(tmp_path, tokenizer):
    """In a step's search, before its loss: the question that it makes is no number."""
    embedder, encoder = new_models()
    settings = SETTINGS._replace(steps=3, learning_rate=1e38, warmup=0.0)
    with pytest.raises(
        loop.DivergedError, match=r"^step 2, batch seed \d+: query \d holds NaN .* lower the learning rate"
    ):
        runs.pretrain(TrainingRun(tmp_path / "run"), BLOCKS, embedder, encoder, tokenizer, settings)


def test_blocks_that_give_no_text_take_no_others(tokenizer):
    """Blocks that give no text between them, as an index of others' may have."""
    blocks = [Block(BLOCKS[0].title, "\u200b"), BLOCKS[0], Block("", ""), BLOCKS[1], Block("", "\u200d")]
    texts = preparation.cut_texts(blocks, tokenizer, 24, masking.salient_span)
    assert {text.block for text in texts} == {1, 3}
    assert all(text.text in blocks[text.block].text for text in texts)


def test_texts_of_another_corpus_and_an_encoder_alone(tmp_path, tokenizer):
    """X may be any texts: none of them bars a block. With `encoder_alone` the embedder keeps its every bit."""
    embedder, encoder = new_models()
    before = [{key: tensor.clone() for key, tensor in model.state_dict().items()} for model in (embedder, encoder)]
    texts = [pretraining.Text(pretraining.NO_BLOCK, "what is the capital of norway", "Oslo")] * 4
    chosen = SETTINGS._replace(steps=2, encoder_alone=True, masking="salient")
    run = TrainingRun(tmp_path / "run")
    runs.pretrain(run, BLOCKS, embedder, encoder, tokenizer, chosen, texts=texts, find=lambda text: [(0, len(text))])
    assert all(torch.equal(tensor, before[0][key]) for key, tensor in embedder.state_dict().items())
    assert not torch.equal(
        encoder.state_dict()["cls.predictions.transform.dense.weight"],
        before[1]["cls.predictions.transform.dense.weight"],
    )
    with pytest.raises(ValueError, match="no text has anything to mask"):
        run = TrainingRun(tmp_path / "none")
        runs.pretrain(run, BLOCKS, embedder, encoder, tokenizer, chosen, texts=texts, find=lambda text: [])


def test_without_a_null_document_all_candidates_are_blocks(tmp_path, tokenizer):
    embedder, encoder = new_models()
    before = {key: tensor.clone() for key, tensor in embedder.state_dict().items()}
    chosen = SETTINGS._replace(steps=2, freeze_documents=True, null_document=False)
    runs.pretrain(TrainingRun(tmp_path / "run"), BLOCKS, embedder, encoder, tokenizer, chosen)
    log = loop.read_log(tmp_path / "run" / loop.LOG_FILE)
    assert "null_probability" not in log and log["staleness"] == [0, 1]
    assert not torch.equal(embedder.state_dict()["cls.dense.weight"], before["cls.dense.weight"])
    assert plots.plot_training(tmp_path / "run").stat().st_size > 1000
