"""The five models in float64 against transformers 4.40.2, over drawn configurations, masks and inputs."""

from __future__ import annotations

import numpy as np
import torch
from drawn_cases import assert_close, assert_same_answer, config_values, encoder_inputs, fill, reader_extras
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import transformers
from sizes import cases

import realm_min.interface.open_qa
import realm_min.interface.reader
import realm_min.model.realm
import realm_min.text.batch_encoding
from realm_min.interface.inputs import Inputs, checked_head_mask
from realm_min.model.bert import Run
from realm_min.textbook import span_candidates

TOLERANCE = 1e-10
DRAWN = settings(deadline=None, derandomize=True, max_examples=cases(32))
SEEDS = st.integers(0, 2**32 - 1)
# Standard deviations of the weights: new ones, trained ones, and so large that attention is nearly all or nothing.
SCALES = st.sampled_from([0.02, 0.3, 1.0, 3.0])
ASKED = {"output_attentions": True, "output_hidden_states": True}
READER_FIELDS = ("loss", "retriever_loss", "reader_loss", "retriever_correct", "reader_correct")


def twins(name, values, seed, scale, **keywords):
    """A model of ours in float64 with drawn weights, and transformers' with the same."""
    model = getattr(realm_min, name)(realm_min.RealmConfig(**values), **keywords).to(torch.float64).eval()
    fill(model.state_dict(), seed, scale)
    if keywords.get("query_embedder"):
        keywords["query_embedder"] = transformers.RealmEmbedder(transformers.RealmConfig(**values))
    theirs = getattr(transformers, name)(transformers.RealmConfig(**values), **keywords).double().eval()
    theirs.load_state_dict(model.state_dict())
    return model, theirs


def call(model, inputs, **keywords):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}, **keywords)


def assert_fields(actual, expected, fields, tolerance=TOLERANCE):
    for field in fields:
        assert_close(getattr(actual, field), getattr(expected, field), tolerance, field)


def asked(draw):
    """Either everything is asked for, or nothing: without, padding is left out and less of the last layer computed."""
    return ASKED if draw(st.booleans()) else {}


@DRAWN
@given(
    data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, rows=st.integers(1, 4), tokens=st.integers(1, 9)
)
def test_embedder(data, values, seed, scale, rows, tokens):
    model, theirs = twins("RealmEmbedder", values, seed, scale)
    rng = np.random.default_rng(seed)
    inputs = encoder_inputs(data.draw, values, (rows, tokens), rng)
    if data.draw(st.integers(0, 4)) == 0:
        inputs["attention_mask"] = rng.integers(0, 2, (rows, tokens, tokens))  # a row of its own for each query
    options = asked(data.draw)
    actual, expected = call(model, inputs, **options), call(theirs, inputs, **options)
    assert actual.projected_score.dtype == torch.float64
    assert_fields(actual, expected, ["projected_score", *(["hidden_states", "attentions"] if options else [])])


@DRAWN
@given(
    data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, rows=st.integers(1, 3), tokens=st.integers(1, 7)
)
def test_scorer(data, values, seed, scale, rows, tokens):
    rng = np.random.default_rng(seed)
    inputs = encoder_inputs(data.draw, values, (rows, tokens), rng)
    if len(inputs.get("position_ids", [0])) > 1:
        inputs["position_ids"] = inputs["position_ids"][:1]  # the candidates, of another number, share them
    candidates = encoder_inputs(data.draw, values, (rows, values["num_candidates"], tokens), rng)
    for name in ("position_ids", "head_mask"):
        candidates.pop(name, None)
    inputs |= {f"candidate_{name}": value for name, value in candidates.items()}

    separate = data.draw(st.booleans())
    query = realm_min.RealmEmbedder(realm_min.RealmConfig(**values)) if separate else None
    model, theirs = twins("RealmScorer", values, seed, scale, query_embedder=query)
    actual, expected = call(model, inputs), call(theirs, inputs)
    assert_fields(actual, expected, ["relevance_score", "query_score", "candidate_score"])


@DRAWN
@given(
    data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, rows=st.integers(1, 3), tokens=st.integers(1, 7)
)
def test_knowledge_encoder(data, values, seed, scale, rows, tokens):
    rng = np.random.default_rng(seed)
    candidates = values["num_candidates"]
    model, theirs = twins("RealmKnowledgeAugEncoder", values, seed, scale)
    inputs = encoder_inputs(data.draw, values, (rows, candidates, tokens), rng)
    if data.draw(st.booleans()):
        labels = rng.integers(0, values["vocab_size"], (rows, tokens))
        ignored = rng.random(labels.shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
        inputs["labels"] = np.where(ignored, -100, labels)
        inputs["relevance_score"] = data.draw(st.sampled_from([1.0, 500.0])) * rng.standard_normal((rows, candidates))
        if data.draw(st.booleans()):
            counted = data.draw(st.sampled_from([0.0, 0.5]))  # 0: nothing counts, and the loss is 0
            inputs["mlm_mask"] = (rng.random((rows, tokens)) < counted).astype(np.int64)
    options = asked(data.draw)
    actual, expected = call(model, inputs, **options), call(theirs, inputs, **options)
    assert_fields(actual, expected, ["loss", "logits", *(["hidden_states", "attentions"] if options else [])])


def call_reader(model, inputs, **keywords):
    """What transformers' reader returns, and all its logits, of which it returns the best alone."""
    kept = []
    qa_outputs = (getattr(model, "reader", None) or model).qa_outputs
    handle = qa_outputs.register_forward_hook(lambda module, given, output: kept.append(output[0]))
    try:
        return call(model, inputs, **keywords), kept[0].numpy()  # the relevance has been added in place
    finally:
        handle.remove()


@DRAWN
@given(data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, extra=st.integers(0, 2))
def test_reader(data, values, seed, scale, extra):
    rng = np.random.default_rng(seed)
    model, theirs = twins("RealmReader", values, seed, scale)
    rows = values["reader_beam_size"]
    tokens = data.draw(st.integers(values["max_span_width"], values["max_span_width"] + 4))
    inputs = encoder_inputs(data.draw, values, (rows, tokens), rng)
    inputs.setdefault("token_type_ids", np.zeros((rows, tokens), np.int64))  # transformers fails without them
    inputs |= reader_extras(data.draw, values, rows + extra, tokens, rng)
    options = asked(data.draw)
    actual = call(model, inputs, **options)
    expected, logits = call_reader(theirs, inputs, **options)
    assert_fields(actual, expected, [*READER_FIELDS, *(["hidden_states", "attentions"] if options else [])])
    assert_same_answer(actual, expected, logits, span_candidates(tokens, values["max_span_width"]), TOLERANCE)


@DRAWN
@given(data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, extra=st.integers(0, 2))
def test_reader_span_logits(data, values, seed, scale, extra):
    """All logits of the reader, where its outputs hold the best alone."""
    rng = np.random.default_rng(seed)
    model, theirs = twins("RealmReader", values, seed, scale)
    rows, tokens = values["reader_beam_size"], values["max_span_width"] + extra
    inputs = encoder_inputs(data.draw, values, (rows, tokens), rng)
    inputs.setdefault("token_type_ids", np.zeros((rows, tokens), np.int64))
    inputs |= reader_extras(data.draw, values, rows, tokens, rng)
    for name in ("start_positions", "end_positions", "has_answers"):
        inputs.pop(name, None)
    given_tensors = {k: torch.from_numpy(v) for k, v in inputs.items()}
    relevance_score, block_mask = (given_tensors.pop(name) for name in ("relevance_score", "block_mask"))
    head_mask = given_tensors.pop("head_mask", None)
    run = Run(head_mask=checked_head_mask(head_mask, model.config))
    logits, _ = model.span_logits(Inputs(**given_tensors), relevance_score, block_mask, run)
    assert_close(logits, call_reader(theirs, inputs)[1], TOLERANCE)


def tiny_readers():
    sizes = {"vocab_size": 9, "hidden_size": 6, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 5, "span_hidden_size": 4, "max_span_width": 2, "reader_beam_size": 2}
    return twins("RealmReader", sizes, 0, 1.0)


def test_reader_of_nothing_but_equal_spans_takes_the_first():
    model, theirs = tiny_readers()
    # The projections' biases stay, and are one number for all tokens: all spans are equal.
    for reader in (model, theirs):
        reader.state_dict()["qa_outputs.dense_intermediate.weight"].zero_()
    inputs = {
        "input_ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "token_type_ids": np.zeros((2, 3), np.int64),
        "relevance_score": np.array([0.25, 0.25]),
        "block_mask": np.array([[False, False, True], [False, True, True]]),
    }
    # Block and candidate are chosen each on its own, as transformers does: block 0 has the best logit, at token 2, and
    # the first candidate that has it in any block is token 1.
    for output in (call(model, inputs), call(theirs, inputs)):
        assert output.block_idx == 0
        assert output.candidate == output.start_pos == output.end_pos == 1


def test_reader_without_answers_stores_no_logits(monkeypatch):
    model, theirs = tiny_readers()
    for module in (realm_min.model.realm, realm_min.interface.reader):
        monkeypatch.delattr(module, "span_logits")
    inputs = {
        "input_ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "token_type_ids": np.zeros((2, 3), np.int64),
        "relevance_score": np.array([0.25, 0.5]),
        "block_mask": np.array([[False, True, True], [True, True, True]]),
    }
    assert_fields(call(model, inputs), call(theirs, inputs), ["block_idx", "candidate", "start_pos", "end_pos"], 0)


def test_reader_with_nothing_but_masked_spans_and_no_answer():
    model, theirs = tiny_readers()
    inputs = {
        "input_ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "token_type_ids": np.zeros((2, 3), np.int64),
        "relevance_score": np.array([0.5, 1.0]),
        "block_mask": np.zeros((2, 3), bool),
        "start_positions": np.array([[-1], [-1]]),
        "end_positions": np.array([[-1], [-1]]),
        "has_answers": np.array([False, False]),
    }
    for output in (call(model, inputs), call(theirs, inputs)):
        assert output.reader_loss.isnan()  # infinity times 0
        assert output.retriever_loss == 0
        assert output.block_idx == output.candidate == 0


def test_a_row_with_every_key_masked_attends_to_all_of_them_equally():
    values = {"vocab_size": 9, "hidden_size": 6, "num_attention_heads": 2, "num_hidden_layers": 2}
    model, theirs = twins("RealmEmbedder", values | {"intermediate_size": 5}, 0, 1.0)
    inputs = {"input_ids": np.array([[1, 2, 3], [4, 5, 6]]), "attention_mask": np.array([[0, 0, 0], [1, 1, 0]])}
    actual, expected = call(model, inputs, **ASKED), call(theirs, inputs, **ASKED)
    assert (actual.attentions[0][0] == 1 / 3).all()
    assert (actual.attentions[0][1, :, :, 2] == 0).all()
    assert_fields(actual, expected, ["projected_score", "hidden_states", "attentions"])
    assert_fields(call(model, inputs), expected, ["projected_score"])


class DrawnRetriever:
    """Stands where the retriever does: reader inputs drawn beforehand, whatever was asked."""

    def __init__(self, concat, answers):
        self.concat = realm_min.text.batch_encoding.BatchEncoding({k: torch.from_numpy(v) for k, v in concat.items()})
        self.answers = answers

    def __call__(self, block_ids, question_ids, answer_ids, max_length):
        self.block_ids = block_ids.numpy()
        if answer_ids is None:
            return None, None, None, self.concat
        return *(value.tolist() for value in self.answers), self.concat


@DRAWN
@given(data=st.data(), values=config_values(), seed=SEEDS, scale=SCALES, tokens=st.integers(1, 7))
def test_open_qa(data, values, seed, scale, tokens):
    rng = np.random.default_rng(seed)
    training = data.draw(st.booleans())  # decides how many blocks are retrieved: the searcher's beam or the reader's
    if training:
        values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        values["searcher_beam_size"] = max(values["searcher_beam_size"], values["reader_beam_size"])
    retrieved = values["searcher_beam_size"] if training else values["reader_beam_size"]
    length = values["max_span_width"] + data.draw(st.integers(0, 4))
    lengths = rng.integers(1, length + 1, (retrieved, 1))
    concat = {
        "input_ids": rng.integers(0, values["vocab_size"], (retrieved, length)),
        "attention_mask": (np.arange(length) < lengths).astype(np.int64),
        "token_type_ids": (np.arange(length) < lengths) * rng.integers(0, 2, (retrieved, length)),
        "special_tokens_mask": rng.integers(0, 2, (retrieved, length)),
    }
    question = {"input_ids": rng.integers(0, values["vocab_size"], (1, tokens))}
    if data.draw(st.booleans()):
        question["attention_mask"] = rng.integers(0, 2, (1, tokens))
    gold = rng.integers(-1, length, (retrieved, 2))
    answers = (gold.max(axis=1) >= 0, gold, gold)
    retrievers = [DrawnRetriever(concat, answers) for _ in range(2)]
    model, theirs = twins("RealmForOpenQA", values, seed, scale)
    for each, retriever in zip((model, theirs), retrievers, strict=True):
        each.train(training).retriever = retriever
    answer_ids = [[1]] if data.draw(st.booleans()) else None
    actual, (expected, logits) = (
        call(model, question, answer_ids=answer_ids),
        call_reader(theirs, question, answer_ids=answer_ids),
    )

    np.testing.assert_array_equal(retrievers[0].block_ids, retrievers[1].block_ids)
    output = actual.reader_output
    assert_fields(output, expected.reader_output, READER_FIELDS)
    assert_same_answer(
        output, expected.reader_output, logits, span_candidates(length, values["max_span_width"]), TOLERANCE
    )
    chosen = slice(output.start_pos.item(), output.end_pos.item() + 1)
    np.testing.assert_array_equal(actual.predicted_answer_ids, concat["input_ids"][int(output.block_idx)][chosen])
