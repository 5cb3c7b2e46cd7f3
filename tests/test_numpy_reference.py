"""The NumPy reference against transformers 4.40.2 in float64, and its own corners: ties, masks, wrong ids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import realm_modeling, transformers
from reference_cases import (
    ACTIVATIONS,
    assert_close,
    assert_same_answer,
    config_values,
    encoder_inputs,
    fill,
    reader_extras,
    to_numpy,
)

from realm_min import numpy_reference as reference

TOLERANCE = 1e-10
DRAWN = settings(deadline=None, derandomize=True, max_examples=60)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([0.02, 0.3, 1.0])
TINY = {
    "vocab_size": 9,
    "hidden_size": 6,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 5,
    "span_hidden_size": 4,
    "max_span_width": 2,
    "reader_beam_size": 2,
    "num_candidates": 2,
    "num_block_records": 3,
}


def oracle(model_class, values, seed, scale, **keywords):
    """A transformers model in float64 with drawn weights, its parameters for the reference, and its configuration."""
    config = transformers.RealmConfig(**values, output_hidden_states=True, output_attentions=True)
    model = model_class(config, **keywords).double().eval()
    fill(model.state_dict(), seed, scale)
    return model, to_numpy(model.state_dict()), config


def tensors(inputs):
    return {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}


def call(model, inputs, **keywords):
    with torch.no_grad():
        return model(**tensors(inputs), **keywords)


# ------------------------------------------------------------------------------------------------ elementary functions

EXTREMES = [0.0, -0.0, 1e-300, -1e-300, 1e-8, 5.0, -5.0, 30.0, -30.0, 800.0, -800.0, 1e100, -1e100]


@pytest.mark.parametrize("name", ACTIVATIONS)
@DRAWN
@given(data=st.data())
def test_activations_equal_transformers(name, data):
    x = np.array(data.draw(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=7)) + EXTREMES)
    expected = transformers.activations.ACT2FN[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(reference.ACTIVATIONS[name](x), expected, rtol=1e-12, atol=1e-14)


@DRAWN
@given(
    seed=SEEDS, shape=st.tuples(st.integers(1, 4), st.integers(1, 5)), scale=st.sampled_from([1e-3, 1.0, 700.0, 1e300])
)
def test_softmax_family_equals_torch(seed, shape, scale):
    x = scale * np.random.default_rng(seed).standard_normal(shape)
    x[0, 0] = reference.MASKED
    tensor = torch.from_numpy(x)
    for axis in (0, 1):
        assert_close(reference.softmax(x, axis), tensor.softmax(axis), 1e-12)
        assert_close(reference.log_softmax(x, axis), tensor.log_softmax(axis), 1e-12)
        assert_close(reference.logsumexp(x, axis), tensor.logsumexp(axis), 1e-12)


def test_logsumexp_of_nothing_but_minus_infinity_is_minus_infinity():
    assert reference.logsumexp(np.full((2, 3), -np.inf)).tolist() == [-np.inf, -np.inf]
    assert reference.logsumexp(np.array([np.inf, 0.0])) == np.inf


@DRAWN
@given(seed=SEEDS, rows=st.integers(1, 4), hidden=st.integers(1, 9), eps=st.sampled_from([1e-12, 1e-3]))
def test_layer_norm_equals_torch(seed, rows, hidden, eps):
    rng = np.random.default_rng(seed)
    x, weight, bias = rng.standard_normal((rows, hidden)), rng.standard_normal(hidden), rng.standard_normal(hidden)
    x[0] = 3.0  # no variance: eps alone keeps the quotient finite, and it is 0
    expected = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (hidden,), torch.from_numpy(weight), torch.from_numpy(bias), eps
    )
    assert_close(reference.layer_norm(x, weight, bias, eps), expected, TOLERANCE)
    np.testing.assert_allclose(reference.layer_norm(x, weight, bias, eps)[0], bias, atol=1e-14)


@pytest.mark.parametrize("wrong", [-1, 4, -4, 2**40])
def test_embedding_never_wraps_around(wrong):
    table = np.arange(8.0).reshape(4, 2)
    assert reference.embedding([[3, 0]], table).tolist() == [[[6.0, 7.0], [0.0, 1.0]]]
    with pytest.raises(ValueError, match=str(wrong)):
        reference.embedding([[0, wrong]], table)


def test_embedding_refuses_ids_that_are_not_integers():
    with pytest.raises(ValueError, match="float64"):
        reference.embedding([0.0], np.ones((2, 2)))


@pytest.mark.parametrize("wrong", [-1, 3, -101])
def test_labels_outside_the_vocabulary_raise(wrong):
    with pytest.raises(ValueError, match=str(wrong)):
        reference.target_log_probability(np.zeros((2, 3)), np.array([0, wrong]))


def test_central_difference_of_a_known_function():
    x = np.array([[0.5, -1.0], [2.0, 0.0]])
    gradient = reference.central_difference(lambda a: float(np.sum(a**3)), x)
    np.testing.assert_allclose(gradient, 3 * x**2, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------- BERT


@DRAWN
@given(
    data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, rows=st.integers(1, 3), tokens=st.integers(1, 9)
)
def test_encoder_equals_transformers(data, values, seed, scale, rows, tokens):
    model, parameters, config = oracle(realm_modeling.RealmBertModel, values, seed, scale)
    rng = np.random.default_rng(seed)
    inputs = encoder_inputs(data.draw, values, (rows, tokens), rng)
    if data.draw(st.booleans()):
        inputs["attention_mask"] = rng.integers(0, 2, (rows, tokens, tokens))  # a row of its own for each query
    expected = call(model, inputs)
    actual = reference.bert(parameters, config, prefix="", **inputs)
    for field in ("last_hidden_state", "pooler_output", "hidden_states", "attentions"):
        assert_close(actual[field], expected[field], TOLERANCE, field)


def test_a_row_with_every_key_masked_attends_to_all_of_them_equally():
    model, parameters, config = oracle(realm_modeling.RealmBertModel, TINY, 0, 1.0)
    inputs = {"input_ids": np.array([[1, 2, 3], [4, 5, 6]]), "attention_mask": np.array([[0, 0, 0], [1, 0, 1]])}
    attentions = reference.bert(parameters, config, prefix="", **inputs)["attentions"][0]
    assert (attentions[0] == 1 / 3).all()
    assert (attentions[1, :, :, 1] == 0).all()
    assert_close(attentions, call(model, inputs).attentions[0], TOLERANCE)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [[0, -1]]}, "-1"),
        ({"input_ids": [[0, 9]]}, "9"),
        ({"input_ids": [0, 1]}, "shape"),
        ({"input_ids": [[0, 1]], "token_type_ids": [[0, 2]]}, "2"),
        ({"input_ids": [[0, 1]], "position_ids": [[0, 512]]}, "512"),
        ({"input_ids": [[0, 1]], "attention_mask": [1, 1]}, "attention_mask"),
        ({"input_ids": [[0, 1]], "head_mask": [1, 1, 1]}, "head_mask"),
        ({"input_ids": [[0, 1]], "inputs_embeds": np.zeros((1, 2, 6))}, "exactly one"),
        ({}, "exactly one"),
        ({"inputs_embeds": np.zeros((2, 6))}, "shape"),
        ({"input_ids": np.zeros((1, 513), np.int64)}, "512"),
    ],
)
def test_encoder_refuses_impossible_input(inputs, message):
    _, parameters, config = oracle(realm_modeling.RealmBertModel, TINY, 0, 1.0)
    with pytest.raises(ValueError, match=message):
        reference.bert(parameters, config, prefix="", **inputs)


# ----------------------------------------------------------------------------------------------------------- retriever


@DRAWN
@given(
    data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, rows=st.integers(1, 3), tokens=st.integers(1, 9)
)
def test_embedder_equals_transformers(data, values, seed, scale, rows, tokens):
    model, parameters, config = oracle(transformers.RealmEmbedder, values, seed, scale)
    inputs = encoder_inputs(data.draw, values, (rows, tokens), np.random.default_rng(seed))
    expected = call(model, inputs)
    actual = reference.embedder(parameters, config, **inputs)
    assert set(actual) == set(expected)
    for field, value in expected.items():
        assert_close(actual[field], value, TOLERANCE, field)


@DRAWN
@given(
    data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, rows=st.integers(1, 3), tokens=st.integers(1, 7)
)
def test_scorer_equals_transformers(data, values, seed, scale, rows, tokens):
    rng = np.random.default_rng(seed)
    shape = (rows, values["num_candidates"], tokens)
    inputs = encoder_inputs(data.draw, values, (rows, tokens), rng)
    if len(inputs.get("position_ids", [0])) > 1:
        inputs["position_ids"] = inputs["position_ids"][:1]  # the candidates, of another number, share them
    candidates = encoder_inputs(data.draw, values, shape, rng)
    for name in ("position_ids", "head_mask"):
        candidates.pop(name, None)
    inputs |= {f"candidate_{name}": value for name, value in candidates.items()}

    separate = data.draw(st.booleans())
    query = transformers.RealmEmbedder(transformers.RealmConfig(**values)) if separate else None
    model, parameters, config = oracle(transformers.RealmScorer, values, seed, scale, query_embedder=query)
    expected = call(model, inputs)
    actual = reference.scorer(parameters, config, **inputs)
    assert set(actual) == set(expected)
    for field, value in expected.items():
        assert_close(actual[field], value, TOLERANCE, field)


def test_scorer_refuses_candidates_for_another_number_of_queries():
    _, parameters, config = oracle(transformers.RealmScorer, TINY, 0, 1.0)
    with pytest.raises(ValueError, match="1 queries but candidates for 2"):
        reference.scorer(parameters, config, input_ids=[[1, 2]], candidate_input_ids=np.ones((2, 2, 3), np.int64))


@DRAWN
@given(data=st.data(), seed=SEEDS, queries=st.integers(1, 3), blocks=st.integers(1, 9), size=st.integers(1, 4))
def test_mips_topk_by_hand(data, seed, queries, blocks, size):
    k = data.draw(st.integers(1, blocks))
    rng = np.random.default_rng(seed)
    # Small integers: scores are exact and ties are many.
    q, e = rng.integers(-2, 3, (queries, size)), rng.integers(-2, 3, (blocks, size))
    scores, ids = reference.mips_topk(q, e, k)
    assert scores.shape == ids.shape == (queries, k)
    assert (scores.dtype, ids.dtype) == (np.float64, np.int64)
    for row in range(queries):
        ranked = sorted(range(blocks), key=lambda block: (-int(q[row] @ e[block]), block))[:k]
        assert ids[row].tolist() == ranked
        assert scores[row].tolist() == [float(q[row] @ e[block]) for block in ranked]


@pytest.mark.parametrize("k", [0, -1, 4])
def test_mips_topk_refuses_k_outside_the_index(k):
    with pytest.raises(ValueError, match=f"k={k}"):
        reference.mips_topk(np.ones((1, 2)), np.ones((3, 2)), k)


def test_mips_topk_refuses_other_shapes():
    with pytest.raises(ValueError, match="must be"):
        reference.mips_topk(np.ones((1, 2)), np.ones((3, 4)), 1)
    with pytest.raises(ValueError, match="must be"):
        reference.mips_topk(np.ones(2), np.ones((3, 2)), 1)


# --------------------------------------------------------------------------------------------------- knowledge encoder


@DRAWN
@given(
    data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, rows=st.integers(1, 3), tokens=st.integers(1, 7)
)
def test_knowledge_encoder_equals_transformers(data, values, seed, scale, rows, tokens):
    rng = np.random.default_rng(seed)
    model, parameters, config = oracle(transformers.RealmKnowledgeAugEncoder, values, seed, scale)
    inputs = encoder_inputs(data.draw, values, (rows, values["num_candidates"], tokens), rng)
    if data.draw(st.booleans()):
        labels = rng.integers(0, values["vocab_size"], (rows, tokens))
        inputs["labels"] = np.where(
            rng.random(labels.shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0])), -100, labels
        )
        inputs["relevance_score"] = data.draw(st.sampled_from([1.0, 50.0])) * rng.standard_normal(
            (rows, values["num_candidates"])
        )
        if data.draw(st.booleans()):
            inputs["mlm_mask"] = (rng.random((rows, tokens)) < data.draw(st.sampled_from([0.0, 0.5]))).astype(np.int64)
    expected = call(model, inputs)
    actual = reference.knowledge_encoder(parameters, config, **inputs)
    assert set(actual) == {"loss", "logits", "hidden_states", "attentions"}
    for field in actual:
        assert_close(actual[field], expected[field] if field in expected else None, TOLERANCE, field)


def test_labels_need_relevance_scores():
    _, parameters, config = oracle(transformers.RealmKnowledgeAugEncoder, TINY | {"num_candidates": 1}, 0, 1.0)
    with pytest.raises(ValueError, match="relevance_score"):
        reference.knowledge_encoder(parameters, config, input_ids=[[[1]]], labels=[[1]])


@DRAWN
@given(seed=SEEDS, rows=st.integers(1, 3), candidates=st.integers(1, 4), tokens=st.integers(1, 5))
def test_whole_span_loss_multiplies_probabilities_before_it_sums_over_documents(seed, rows, candidates, tokens):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, candidates, tokens, 5))
    relevance = rng.standard_normal((rows, candidates))
    labels = rng.integers(0, 5, (rows, tokens))
    mask = rng.integers(0, 2, (rows, tokens))
    mask[0, 0] = 1

    log_likelihood_span = log_likelihood_token = 0.0
    for row in range(rows):
        p_z = [math.exp(f) / sum(map(math.exp, relevance[row])) for f in relevance[row]]
        p_token = [
            [math.exp(l[y]) / sum(map(math.exp, l)) for l, y in zip(z, labels[row], strict=True)] for z in logits[row]
        ]
        masked = [j for j in range(tokens) if mask[row, j]]
        log_likelihood_span += math.log(
            sum(p * math.prod(t[j] for j in masked) for p, t in zip(p_z, p_token, strict=True))
        )
        for j in masked:
            log_likelihood_token += math.log(sum(p * t[j] for p, t in zip(p_z, p_token, strict=True)))

    span = reference.marginal_masked_lm_loss(logits, relevance, labels, mask, whole_span=True)
    token = reference.marginal_masked_lm_loss(logits, relevance, labels, mask)
    assert span == pytest.approx(-log_likelihood_span / mask.sum(), rel=1e-12)
    assert token == pytest.approx(-log_likelihood_token / mask.sum(), rel=1e-12)
    if candidates == 1:
        assert span == pytest.approx(token, rel=1e-12)


@pytest.mark.parametrize("whole_span", [False, True])
def test_a_document_is_pushed_up_as_far_as_it_predicts_better_than_the_mixture(whole_span):
    """d log p(y|x) / d f(x,z) = [p(y|z,x) / p(y|x) - 1] p(z|x) (REALM, section 3.3), by finite differences."""
    rng = np.random.default_rng(5)
    logits, relevance, labels = rng.standard_normal((1, 3, 1, 7)), rng.standard_normal((1, 3)), np.array([[4]])
    loss = lambda f: reference.marginal_masked_lm_loss(logits, f, labels, whole_span=whole_span)  # noqa: E731
    p_y = reference.softmax(logits[0, :, 0])[:, 4]
    p_z = reference.softmax(relevance[0])
    expected = (p_y / (p_y @ p_z) - 1) * p_z
    np.testing.assert_allclose(-reference.central_difference(loss, relevance)[0], expected, atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- reader


@DRAWN
@given(data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, extra=st.integers(0, 2))
def test_reader_equals_transformers(data, values, seed, scale, extra):
    rng = np.random.default_rng(seed)
    model, parameters, config = oracle(transformers.RealmReader, values, seed, scale)
    rows = values["reader_beam_size"]
    tokens = data.draw(st.integers(values["max_span_width"], values["max_span_width"] + 4))
    inputs = encoder_inputs(data.draw, values, (rows, tokens), rng)
    inputs.setdefault("token_type_ids", np.zeros((rows, tokens), np.int64))  # transformers fails without them
    inputs |= reader_extras(data.draw, values, rows + extra, tokens, rng)
    expected = call(model, inputs)
    actual = reference.reader(parameters, config, **inputs)
    for field in (
        "loss",
        "retriever_loss",
        "reader_loss",
        "retriever_correct",
        "reader_correct",
        "hidden_states",
        "attentions",
    ):
        assert_close(actual[field], expected[field] if field in expected else None, TOLERANCE, field)
    assert_same_answer(expected, actual, TOLERANCE)
    assert_same_answer(actual, actual, TOLERANCE)


def test_reader_with_nothing_but_masked_spans_and_no_answer_has_no_loss():
    model, parameters, config = oracle(transformers.RealmReader, TINY, 0, 1.0)
    inputs = {
        "input_ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "token_type_ids": np.zeros((2, 3), np.int64),
        "relevance_score": np.array([0.5, 1.0]),
        "block_mask": np.zeros((2, 3), bool),
        "start_positions": np.array([[-1], [-1]]),
        "end_positions": np.array([[-1], [-1]]),
        "has_answers": np.array([False, False]),
    }
    expected, actual = call(model, inputs), reference.reader(parameters, config, **inputs)
    assert expected.reader_loss.isnan() and np.isnan(actual["reader_loss"])
    assert float(expected.retriever_loss) == actual["retriever_loss"] == 0.0
    assert (actual["reader_logits"] == reference.MASKED).all()  # score and relevance are lost in the rounding
    assert int(expected.block_idx) == actual["block_idx"] == 0
    assert int(expected.candidate) == actual["candidate"] == 0


def test_reader_picks_row_and_column_of_equal_logits_apart():
    """Two blocks reach the same best logit at different spans: the first block, and the first span of the other."""
    model, parameters, config = oracle(transformers.RealmReader, TINY | {"max_span_width": 1}, 0, 1.0)
    inputs = {
        "input_ids": np.ones((2, 3), np.int64),
        "token_type_ids": np.zeros((2, 3), np.int64),
        "relevance_score": np.zeros(2),
        "block_mask": np.array([[False, False, True], [True, False, False]]),
    }
    with torch.no_grad():
        model.qa_outputs.dense_intermediate.weight.zero_()  # every span has the same logit
    parameters = to_numpy(model.state_dict())
    expected, actual = call(model, inputs), reference.reader(parameters, config, **inputs)
    assert int(expected.block_idx) == actual["block_idx"] == 0
    assert int(expected.candidate) == actual["candidate"] == 0


@DRAWN
@given(seed=SEEDS, rows=st.integers(1, 3), tokens=st.integers(1, 6), hidden=st.integers(2, 5), width=st.integers(1, 8))
def test_span_logits_and_best_span_by_hand(seed, rows, tokens, hidden, width):
    rng = np.random.default_rng(seed)
    start, end = rng.standard_normal((2, rows, tokens, hidden))
    norm_weight, norm_bias, output_weight = rng.standard_normal((3, hidden))
    mask, relevance, eps = rng.random((rows, tokens)) < 0.7, rng.standard_normal(rows), 1e-3
    arguments = (start, end, norm_weight, norm_bias, output_weight, np.array([0.25]))
    keywords = {"max_span_width": width, "eps": eps, "block_mask": mask, "relevance_score": relevance}
    logits = reference.span_logits(*arguments, **keywords)

    spans = [(i, i + w) for w in range(min(width, tokens)) for i in range(tokens - w)]
    assert logits.shape == (rows, len(spans))
    best = (-math.inf, 0, 0, 0)
    for b in range(rows):
        for s, (i, j) in enumerate(spans):
            h = [max(0.0, x + y) for x, y in zip(start[b, i], end[b, j], strict=True)]
            mean = sum(h) / hidden
            deviation = math.sqrt(sum((x - mean) ** 2 for x in h) / hidden + eps)
            logit = 0.25 + sum(
                v * (g * (x - mean) / deviation + n)
                for v, g, x, n in zip(output_weight, norm_weight, h, norm_bias, strict=True)
            )
            expected = logit + relevance[b] if mask[b, i] and mask[b, j] else reference.MASKED
            assert logits[b, s] == pytest.approx(expected, rel=1e-12, abs=1e-12)
            if logits[b, s] > best[0]:
                best = (logits[b, s], b, i, j)
    assert reference.best_span(*arguments, **keywords) == best


def test_best_span_of_equals_takes_the_first_block_and_the_first_span_each_on_its_own():
    zeros = np.zeros((2, 3, 4))
    arguments = (zeros, zeros, np.ones(4), np.zeros(4), np.ones(4), 0.5)
    assert reference.best_span(*arguments, max_span_width=2, eps=1e-3) == (0.5, 0, 0, 0)
    mask = np.array([[False, False, False], [False, True, True]])
    assert reference.best_span(*arguments, max_span_width=2, eps=1e-3, block_mask=mask) == (0.5, 1, 1, 1)
    relevance = np.array([1.0, 1.0])
    assert reference.best_span(*arguments, max_span_width=2, eps=1e-3, relevance_score=relevance) == (1.5, 0, 0, 0)
    apart = np.array([[False, False, True], [True, False, False]])  # block 0 holds span 2..2, block 1 span 0..0
    assert reference.best_span(*arguments, max_span_width=2, eps=1e-3, block_mask=apart) == (0.5, 0, 0, 0)
    nothing = np.zeros((2, 3))
    assert reference.best_span(*arguments, max_span_width=2, eps=1e-3, block_mask=nothing) == (
        reference.MASKED,
        0,
        0,
        0,
    )


# ------------------------------------------------------------------------------------------------------------- open QA


class DrawnRetriever:
    """Stands where transformers' retriever does: reader inputs drawn beforehand, whatever was asked."""

    def __init__(self, concat, answers):
        self.concat, self.answers = transformers.BatchEncoding(tensors(concat)), answers

    def __call__(self, block_ids, question_ids, answer_ids, max_length):
        self.block_ids = block_ids.numpy()
        if answer_ids is None:
            return None, None, None, self.concat
        return *(value.tolist() for value in self.answers), self.concat


@DRAWN
@given(data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, tokens=st.integers(1, 7))
def test_open_qa_equals_transformers(data, values, seed, scale, tokens):
    rng = np.random.default_rng(seed)
    training = data.draw(st.booleans())  # decides how many blocks are retrieved: the searcher's beam or the reader's
    if training:
        values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        values["searcher_beam_size"] = max(values["searcher_beam_size"], values["reader_beam_size"])
    retrieved = values["searcher_beam_size"] if training else values["reader_beam_size"]
    length = values["max_span_width"] + data.draw(st.integers(0, 4))
    question = {"input_ids": rng.integers(0, values["vocab_size"], (1, tokens))}
    concat = {
        "input_ids": rng.integers(0, values["vocab_size"], (retrieved, length)),
        "attention_mask": rng.integers(0, 2, (retrieved, length)),
        "token_type_ids": rng.integers(0, 2, (retrieved, length)),
        "special_tokens_mask": rng.integers(0, 2, (retrieved, length)),
    }
    gold = rng.integers(-1, length, (retrieved, 2))
    answers = (gold.max(axis=1) >= 0, gold, gold)
    retriever = DrawnRetriever(concat, answers)
    model, parameters, config = oracle(transformers.RealmForOpenQA, values, seed, scale, retriever=retriever)
    model.train(training)
    asked = data.draw(st.booleans())
    expected = call(model, question, answer_ids=[[1]] if asked else None, return_dict=True)

    gold_inputs = dict(zip(("has_answers", "start_positions", "end_positions"), answers, strict=True)) if asked else {}
    actual = reference.open_qa(
        parameters,
        config,
        parameters["block_emb"],
        **{f"concat_{k}": v for k, v in concat.items()},
        **gold_inputs,
        **question,
    )
    np.testing.assert_array_equal(actual["retrieved_block_ids"], np.atleast_1d(retriever.block_ids))
    wanted, output = expected.reader_output, actual["reader_output"]
    for field in (
        "loss",
        "retriever_loss",
        "reader_loss",
        "retriever_correct",
        "reader_correct",
        "hidden_states",
        "attentions",
    ):
        assert_close(output[field], wanted[field] if field in wanted else None, TOLERANCE, field)
    assert_same_answer(wanted, output, TOLERANCE)
    if int(wanted.block_idx) == output["block_idx"] and int(wanted.candidate) == output["candidate"]:
        np.testing.assert_array_equal(actual["predicted_answer_ids"], expected.predicted_answer_ids)
    assert actual["document_probability"].sum() == pytest.approx(1.0)


def test_retrieve_takes_one_question():
    _, parameters, config = oracle(transformers.RealmForOpenQA, TINY, 0, 1.0)
    with pytest.raises(ValueError, match="2 questions"):
        reference.retrieve(parameters, config, parameters["block_emb"], 1, input_ids=[[1], [2]])
