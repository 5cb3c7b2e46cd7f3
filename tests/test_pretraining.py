"""Pre-training: the marginal losses, one step against autograd, and runs that are killed and go on."""

import json
import math
import time

import numpy as np
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import transformers
from reference_cases import config_values, fill, to_numpy
from tiny_pretraining import BLOCKS, CONFIG, SETTINGS, new_models, run, run_until_killed

import realm_min
from realm_min import numpy_reference as reference
from realm_min.app import plots
from realm_min.app.cli import main
from realm_min.jobs import loop, runs, warm_start
from realm_min.learn import masking, pretraining
from realm_min.model.knowledge_encoder import marginal_loss, marginal_loss_backward
from realm_min.numpy_reference import central_difference
from realm_min.ranks.share import share_of
from realm_min.search.mips import BlockIndex
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
    loss = marginal_loss(log_likelihood.detach(), relevance.detach(), mask, whole_span)
    found = marginal_loss_backward(
        torch.tensor(1.7, dtype=torch.float64), log_likelihood.detach(), relevance.detach(), mask, whole_span
    )
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
    """Padded on the right, masks drawn: loss against the float64 twin, gradients against the whole forward's."""
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
    loss = marginal_loss(log_likelihood, relevance, mask, whole_span)
    expected = reference.knowledge_encoder(
        parameters, model.config, ids.numpy(), attention.numpy(), types.numpy(), relevance_score=relevance.numpy(),
        labels=labels.numpy(), mlm_mask=mask.numpy(), whole_span=whole_span,
    )["loss"]  # fmt: skip
    assert math.isclose(loss, expected, rel_tol=1e-10, abs_tol=1e-12)

    dlog_likelihood, drelevance = marginal_loss_backward(
        torch.ones((), dtype=torch.float64), log_likelihood, relevance, mask, whole_span
    )
    model.masked_log_likelihood_backward(dlog_likelihood.flatten(0, 1), cache)
    found = {key: gradient.clone() for key, gradient in model.grads.items()}
    model.zero_grads()
    output = model(
        ids, attention, types, relevance_score=relevance, labels=labels, mlm_mask=mask, whole_span=whole_span
    )
    assert math.isclose(output.loss, loss, rel_tol=1e-12, abs_tol=1e-14)
    assert torch.allclose(model.backward()["relevance_score"], drelevance, rtol=1e-10, atol=1e-13)
    for key, gradient in model.grads.items():
        assert torch.allclose(found[key], gradient, rtol=1e-9, atol=1e-12), key


def test_a_whole_span_reaches_the_weights():
    """∂loss/∂weight of the float64 twin by central differences, where y is the whole span."""
    config = realm_min.RealmConfig(
        vocab_size=11, hidden_size=6, num_attention_heads=2, num_hidden_layers=1, intermediate_size=7, num_candidates=2
    )
    model = realm_min.RealmKnowledgeAugEncoder(config).to(torch.float64)
    fill(model.state_dict(), 4, 0.5)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    ids, labels = torch.arange(16).view(1, 2, 8) % 11, torch.tensor([[3, -100, 5, 7, -100, -100, -100, -100]])
    relevance = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    model(ids, relevance_score=relevance, labels=labels, mlm_mask=labels != -100, whole_span=True)
    model.backward()
    parameters = to_numpy(model.state_dict())

    def loss(weight, key):
        return reference.knowledge_encoder(
            {**parameters, key: weight}, config, ids.numpy(), relevance_score=relevance.numpy(), labels=labels.numpy(),
            mlm_mask=(labels != -100).numpy(), whole_span=True,
        )["loss"]  # fmt: skip

    for key in ("realm.encoder.layer.0.attention.self.query.weight", "cls.predictions.transform.dense.weight"):
        expected = central_difference(lambda weight, key=key: loss(weight, key), parameters[key])
        np.testing.assert_allclose(model.grads[key].numpy(), expected, rtol=1e-6, atol=1e-9)


def test_the_two_losses_differ_only_where_a_span_is_long():
    log_likelihood = torch.tensor([[[-1.0, -2.0], [-3.0, -0.5]]])
    relevance = torch.tensor([[0.2, -0.1]])
    one = torch.tensor([[True, False]])
    assert marginal_loss(log_likelihood, relevance, one) == marginal_loss(log_likelihood, relevance, one, True)
    p, q = torch.softmax(relevance[0], 0).tolist()
    by_token = math.log(p * math.exp(-1) + q * math.exp(-3)) + math.log(p * math.exp(-2) + q * math.exp(-0.5))
    by_span = math.log(p * math.exp(-1 - 2) + q * math.exp(-3 - 0.5))
    assert marginal_loss(log_likelihood, relevance, None) == pytest.approx(-by_token / 2, rel=1e-6)
    assert marginal_loss(log_likelihood, relevance, None, True) == pytest.approx(-by_span / 2, rel=1e-6)


# ---- one step


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return realm_min.RealmTokenizerFast(str(vocabulary))


@pytest.mark.parametrize("marginal", ["token", "span"])
@pytest.mark.parametrize("max_positions", [64, 30])
def test_a_step_against_autograd_through_transformers_modules(tokenizer, marginal, max_positions):
    """The whole of it: queries, the null document, evidence, relevance, masked words, the marginal; float64."""
    config = transformers.RealmConfig(**CONFIG | dict(max_position_embeddings=max_positions))
    classes = "RealmEmbedder", "RealmKnowledgeAugEncoder"
    theirs = [getattr(transformers, name)(config).eval().double() for name in classes]
    for number, model in enumerate(theirs):
        fill(model.state_dict(), number, 0.3)
    ours = [model.to(torch.float64) for model in new_models(max_position_embeddings=max_positions)]
    for mine, other in zip(ours, theirs, strict=True):
        mine.load_state_dict(other.state_dict())
    settings = SETTINGS._replace(marginal=marginal)
    texts = pretraining.cut_texts(BLOCKS, tokenizer, 24, masking.salient_span)[:7:3]
    examples = pretraining.hide(texts, tokenizer, masking.salient_span, [np.random.default_rng(0)] * 3)
    index = torch.randn(len(BLOCKS), 8)
    logged = pretraining.pretrain_step(
        *ours, tokenizer, BLOCKS, BlockIndex(index), examples, settings, share_of(0, 0, examples)[0]
    )

    def encode(*texts, limit=max_positions):
        rows = [tokenizer(*text, truncation="longest_first" if len(text) == 1 else "only_second", max_length=limit)
                for text in texts]  # fmt: skip
        return [
            torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]

    masked = [tokenizer.decode(example.ids).replace("[ MASK ]", "[MASK]") for example in examples]
    queries = theirs[0](*encode(*((text,) for text in masked))).projected_score
    found = []
    for query, example in zip(queries.detach().numpy(), examples, strict=True):
        order = np.argsort(-(index.double().numpy() @ query.astype(np.float32).astype(np.float64)))
        found.append([block for block in order if block != example.block][:3])
    relevance, joint = [], []
    for row, query, text in zip(found, queries, masked, strict=True):
        null = [torch.tensor([ids]) for ids in ([101, 102, 102], [1, 1, 1], [0, 0, 1])]
        documents = [theirs[0](*null).projected_score[0]]
        documents += [
            theirs[0](*encode(BLOCKS[block], limit=min(40, max_positions))).projected_score[0] for block in row
        ]
        relevance.append(torch.stack(documents) @ query)
        joint.append((text, None))
        joint += [(text, f"{BLOCKS[block].title}. {BLOCKS[block].text}") for block in row]
    relevance = torch.stack(relevance)
    rows = []
    for text, evidence in joint:
        x = tokenizer(text)["input_ids"]
        z = [] if evidence is None else tokenizer(evidence, add_special_tokens=False)["input_ids"][:37]
        rows.append((x, [*z[: max_positions - len(x) - 1], 102]))
    length = max(len(x) + len(z) for x, z in rows)
    ids, mask, types = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    for i, (x, z) in enumerate(rows):
        ids[i, : len(x) + len(z)] = torch.tensor(x + z)
        mask[i, : len(x) + len(z)] = 1
        types[i, len(x) : len(x) + len(z)] = 1
    logits = theirs[1](ids, mask, types).logits.view(3, 4, length, -1)
    losses, masks = [], 0
    for example, scores, row in zip(examples, relevance, logits, strict=True):
        places = [i for i, label in enumerate(example.labels) if label != -100]
        assert [example.ids[i] for i in places] == [tokenizer.mask_token_id] * len(places)
        targets = torch.tensor([example.labels[i] for i in places])
        at = torch.tensor(places) + 1  # after [CLS]
        p_token = row[:, at].softmax(-1).gather(2, targets.expand(4, -1)[:, :, None])[:, :, 0]  # [candidates, masked]
        p_z = scores.softmax(0)
        if marginal == "span":
            losses.append((p_z @ p_token.prod(1)).log())
        else:
            losses.append((p_z @ p_token).log().sum())
        masks += len(places)
    loss = -torch.stack(losses).sum() / masks
    loss.backward()
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert logged["null_probability"] == pytest.approx(relevance.softmax(1)[:, 0].mean().item(), rel=1e-10)
    for mine, other in zip(ours, theirs, strict=True):
        for key, parameter in other.named_parameters(remove_duplicate=False):
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            # The word embeddings' row of padding gets none, here as there.
            scale = expected.abs().max().clamp(min=1e-3)
            assert (mine.grads[key] - expected).abs().max() <= 1e-10 * scale, key


def test_retrieval_utility_is_what_the_documents_add(tokenizer, monkeypatch):
    """An encoder told by the evidence alone: log p(y|z,x) - log p(y|∅,x), weighed by p(z|x)."""
    embedder, knowledge_encoder = new_models()
    seen = {}

    def log_likelihood(p, config, batch, labels, run):
        with_evidence = (batch.types.sum(1) > 1).float()[:, None]  # the null document has its [SEP] alone
        seen["rows"] = with_evidence
        return torch.where(labels == -100, 0.0, -3.0 + with_evidence), None

    monkeypatch.setattr(pretraining, "masked_words", log_likelihood)
    monkeypatch.setattr(pretraining, "masked_words_backward", lambda dy, kept, grads: None)
    texts = pretraining.cut_texts(BLOCKS, tokenizer, 24, masking.salient_span)
    (example,) = pretraining.hide(texts[:1], tokenizer, masking.salient_span, [np.random.default_rng(1)])
    pieces = sum(label != -100 for label in example.labels)
    index = BlockIndex(torch.randn(len(BLOCKS), 8))
    share, _ = share_of(0, 0, [example])
    logged = pretraining.pretrain_step(
        embedder, knowledge_encoder, tokenizer, BLOCKS, index, [example], SETTINGS, share
    )
    assert seen["rows"].flatten().tolist() == [0, 1, 1, 1]  # the null document stands first
    assert logged["retrieval_utility"] == pytest.approx(pieces * (1 - logged["null_probability"]), rel=1e-6)
    assert logged["loss"] == pytest.approx(
        -math.log(logged["null_probability"] * math.exp(-3) + (1 - logged["null_probability"]) * math.exp(-2)), rel=1e-5
    )


@DRAWN
@given(SEEDS, st.integers(1, 5), st.integers(2, 9), st.data())
def test_retrieval_is_exact_without_the_barred_block(seed, rows, blocks, data):
    count = data.draw(st.integers(1, blocks - 1))
    rng = np.random.default_rng(seed)
    embeddings = rng.integers(-2, 3, (blocks, 3)).astype(np.float32)  # many ties
    queries, barred = rng.integers(-2, 3, (rows, 3)).astype(np.float32), rng.integers(0, blocks, rows)
    found = pretraining.retrieve(
        BlockIndex(torch.from_numpy(embeddings)), torch.from_numpy(queries), torch.from_numpy(barred), count
    )
    _, ids = reference.mips_topk(queries, embeddings, blocks)
    expected = [[block for block in row if block != own][:count] for row, own in zip(ids, barred, strict=True)]
    assert found.tolist() == expected


def test_texts_know_their_blocks(tokenizer):
    """Blocks without text, a word too long for any text, and sentences without a name between others."""
    blocks = [Block("A", ""), *BLOCKS, Block("B", " "), Block("Long", "in Oslo " + "x" * 70 + " ends."), Block("C", "")]
    texts = pretraining.cut_texts(blocks, tokenizer, 24, masking.salient_span)
    assert {text.block for text in texts} == {*range(1, 16), 17}
    for text in texts:
        block = blocks[text.block]
        assert text.title == block.title and text.text in block.text
        assert len(tokenizer(f"{text.title}. {text.text}")["input_ids"]) <= 24
    assert not any("no name stands here" in text.text and "Ruritania" not in text.text for text in texts)
    kept = [text for block in blocks if block.text for text in block.text.split()]
    everything = pretraining.cut_texts(blocks, tokenizer, 24, masking.random_tokens)
    assert "".join("".join(text.text.split()) for text in everything) == "".join(kept)
    with pytest.raises(ValueError, match="nothing|anything to mask"):
        pretraining.cut_texts([Block("A", "all small.")], tokenizer, 24, masking.salient_span)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(marginal="both"), "marginal='both' is unknown: choose one of token, span"),
        (dict(masking="names"), "masking='names' is unknown"),
        (dict(num_candidates=1), "num_candidates=1 is out of range: give a whole number, 2 or more"),
        (dict(num_candidates=16), r"num_candidates=16 must lie in 2..15"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(max_passage=64), "max_passage=64 leaves no room for evidence: the models read 64 tokens"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, tokenizer, wrong, message):
    with pytest.raises(ValueError, match=message):
        runs.pretrain(tmp_path / "run", BLOCKS, *new_models(), tokenizer, SETTINGS._replace(**wrong))
    assert not (tmp_path / "run").exists()


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


def test_texts_of_another_corpus_and_an_encoder_alone(tmp_path, tokenizer):
    """X may be any texts: none of them bars a block. With `encoder_alone` the embedder keeps its every bit."""
    embedder, encoder = new_models()
    before = [{key: tensor.clone() for key, tensor in model.state_dict().items()} for model in (embedder, encoder)]
    texts = [pretraining.Text(pretraining.NO_BLOCK, "what is the capital of norway", "Oslo")] * 4
    chosen = SETTINGS._replace(steps=2, encoder_alone=True, masking="salient")
    runs.pretrain(
        tmp_path / "run", BLOCKS, embedder, encoder, tokenizer, chosen, texts=texts, find=lambda text: [(0, len(text))]
    )
    assert all(torch.equal(tensor, before[0][key]) for key, tensor in embedder.state_dict().items())
    assert not torch.equal(
        encoder.state_dict()["cls.predictions.transform.dense.weight"],
        before[1]["cls.predictions.transform.dense.weight"],
    )
    with pytest.raises(ValueError, match="no text has anything to mask"):
        runs.pretrain(
            tmp_path / "none", BLOCKS, embedder, encoder, tokenizer, chosen, texts=texts, find=lambda text: []
        )


def test_without_a_null_document_all_candidates_are_blocks(tmp_path, tokenizer):
    embedder, encoder = new_models()
    before = {key: tensor.clone() for key, tensor in embedder.state_dict().items()}
    chosen = SETTINGS._replace(steps=2, freeze_documents=True, null_document=False)
    runs.pretrain(tmp_path / "run", BLOCKS, embedder, encoder, tokenizer, chosen)
    log = loop.read_log(tmp_path / "run" / loop.LOG_FILE)
    assert "null_probability" not in log and log["staleness"] == [0, 1]
    assert not torch.equal(embedder.state_dict()["cls.dense.weight"], before["cls.dense.weight"])
    assert plots.plot_training(tmp_path / "run").stat().st_size > 1000
