"""The models, their losses, gradients and optimizer in float64 against the book, over drawn shapes, masks and weights.

Options that only transformers' interface has (head masks, 3-D masks, `inputs_embeds`, positions) are held to
transformers, in test_models_drawn.py; operations, search and span logits to the book, in files of their own.
"""

import book_models
import numpy as np
import pytest
import torch
from drawn_cases import assert_close, attention_masks, config_values, fill, reader_extras, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import realm_min
from realm_min import textbook
from realm_min.learn.optimizer import AdamW
from realm_min.model import bert, fast

TOLERANCE = 1e-10
DRAWN = settings(deadline=None, derandomize=True, max_examples=60)
SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.sampled_from([0.02, 0.3, 1.0])


@st.composite
def cases(draw):
    """Values of a configuration with an activation of the book, the scale of weights, a generator, `draw` itself."""
    values = draw(config_values()) | {"hidden_act": draw(st.sampled_from(["gelu", "gelu_new", "relu"]))}
    seed = draw(SEEDS)
    return values, draw(SCALES), seed, np.random.default_rng(seed), draw


def twin(name, case):
    """A model of ours, its weights for the book, and the configuration of both."""
    values, scale, seed, *_ = case
    model = getattr(realm_min, name)(realm_min.RealmConfig(**values)).to(torch.float64).eval()
    fill(model.state_dict(), seed, scale)
    return model, to_numpy(model.state_dict()), model.config


def draw_batch(case, rows, tokens):
    values, _, _, rng, draw = case
    ids, types = (rng.integers(0, values[size], (rows, tokens)) for size in ("vocab_size", "type_vocab_size"))
    return ids, attention_masks(draw, rng, (rows, tokens)), types


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def assert_gradients(model, g):
    for key, gradient in model.grads.items():
        if key not in model.aliases():  # the book has tied weights once
            # A bias that a softmax does not see has the gradient 0, but for the rounding of terms as the weights have.
            beside = g.get(key.removesuffix("bias") + "weight", g[key])
            largest = max(np.abs(g[key]).max(), np.abs(beside).max(), 1e-4)
            np.testing.assert_allclose(gradient, g[key], rtol=0, atol=TOLERANCE * largest, err_msg=key)


def test_dropout_of_the_projection():
    """Each sequence has a mask of its own in training, which its gradient meets again; there is none in evaluation."""
    values = dict(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                  retriever_proj_size=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
    model = realm_min.RealmEmbedder(realm_min.RealmConfig(**values, projection_dropout_prob=0.25), seed=1)
    ids = torch.tensor([[5, 6, 7], [5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    plain = model.eval()(ids, mask).projected_score
    model.train()
    dropped = model(ids, mask).projected_score
    factors = dropped / plain
    kept = factors != 0
    torch.testing.assert_close(factors, kept / 0.75, rtol=1e-4, atol=0)
    assert (kept[0] != kept[1]).any()
    assert 0.1 < float((factors == 0).float().mean()) < 0.4
    model.zero_grads()
    model.backward(projected_score=torch.ones_like(plain))
    found = {key: grad.clone() for key, grad in model.grads.items()}
    model.eval()(ids, mask)
    model.zero_grads()
    model.backward(projected_score=factors)
    for key, grad in model.grads.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-5, msg=key)
    assert "projection_dropout_prob" not in realm_min.RealmConfig().to_dict()
    assert model.config.to_dict()["projection_dropout_prob"] == 0.25
    with pytest.raises(ValueError, match="projection_dropout_prob=1 must be a probability"):
        realm_min.RealmConfig(projection_dropout_prob=1)


@pytest.mark.parametrize("read", ["unpadded", "first"])
def test_padding_computed_along_changes_nothing(monkeypatch, read):
    """As a GPU computes it: the same states, zeros at padding, and the same gradients whatever padding is given."""
    model = realm_min.RealmEmbedder(
        realm_min.RealmConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                              intermediate_size=8, hidden_act="gelu"), seed=1
    ).to(torch.float64)  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
    ids = torch.arange(2, 14).view(3, 4)
    batch = bert.Batch(ids, mask, torch.zeros_like(ids), torch.arange(4).expand(3, 4))
    found = []
    for together in (False, True):
        monkeypatch.setattr(fast, "computes_padding", lambda *given, together=together: together)
        (hidden, *_), kept = bert.bert(model.p, model.config, batch, read, bert.Run(keep=True))
        model.zero_grads()
        dhidden = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view(hidden.shape)
        bert.bert_backward(dhidden, kept, model.own_grads)
        found.append({"hidden": hidden, **{key: grad.clone() for key, grad in model.own_grads.items()}})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-10, atol=1e-12, msg=key)
    assert read == "first" or not found[1]["hidden"][mask == 0].any()


@DRAWN
@given(cases(), st.integers(1, 4), st.integers(1, 9))
def test_embedder(case, rows, tokens):
    model, p, c = twin("RealmEmbedder", case)
    batch = draw_batch(case, rows, tokens)
    output = model(*tensors(*batch))
    dy = case[3].standard_normal(output.projected_score.shape)
    expected, g = book_models.embedder(p, c, batch, dy)
    assert_close(output.projected_score, expected, TOLERANCE)
    model.backward(projected_score=torch.from_numpy(dy))
    assert_gradients(model, g)


@DRAWN
@given(cases(), st.integers(1, 3), st.integers(1, 7), st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
def test_knowledge_encoder(case, rows, tokens, whole_span, share):
    model, p, c = twin("RealmKnowledgeAugEncoder", case)
    rng, candidates = case[3], c.num_candidates
    batch = draw_batch(case, rows * candidates, tokens)
    labels = np.where(rng.random((rows, tokens)) < share, rng.integers(0, c.vocab_size, (rows, tokens)), -100)
    relevance = 3 * rng.standard_normal((rows, candidates))
    output = model(
        *tensors(*batch), relevance_score=torch.from_numpy(relevance), labels=torch.from_numpy(labels),
        mlm_mask=torch.from_numpy(labels != -100), whole_span=whole_span,
    )  # fmt: skip
    expected = book_models.knowledge_encoder(p, c, batch, labels, relevance, whole_span)
    assert_close(output.loss, expected.losses[0], TOLERANCE)
    assert_close(model.backward()["relevance_score"], expected.drelevance, TOLERANCE)
    assert_gradients(model, expected.g)


@DRAWN
@given(cases(), st.integers(0, 4), st.integers(0, 2))
def test_reader(case, longer, more):
    model, p, c = twin("RealmReader", case)
    rng, read, tokens = case[3], c.reader_beam_size, c.max_span_width + longer
    batch = draw_batch(case, read, tokens)
    extras = reader_extras(case[4], case[0], read + more, tokens, rng)
    starts = extras.get("start_positions", np.full((read + more, 1), -1))
    ends, has_answers = extras.get("end_positions", starts), extras.get("has_answers", starts[:, 0] >= 0)
    in_block = extras["block_mask"]
    in_block[0, 0] = True  # of nothing but masked spans the book has no NaN
    for row, places in enumerate(np.concatenate([starts, ends], 1)):  # answers stand in their blocks
        in_block[row, places[(places >= 0) & (places < tokens)]] = True
    relevance = extras["relevance_score"]
    names = ("relevance_score", "block_mask", "start_positions", "end_positions", "has_answers")
    given_tensors = tensors(relevance, in_block, starts, ends, has_answers)
    output = model(*tensors(*batch), **dict(zip(names, given_tensors, strict=True)))
    expected = book_models.reader(p, c, batch, in_block, relevance, (has_answers, starts, ends))
    assert_close(output.retriever_loss, expected.losses[0], TOLERANCE)
    assert_close(output.reader_loss, expected.losses[1], TOLERANCE)
    assert_close(output.loss, sum(expected.losses), TOLERANCE)
    assert_close(model.backward()["relevance_score"], expected.drelevance, TOLERANCE)
    assert_gradients(model, expected.g)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(SEEDS, st.floats(1e-5, 0.1), st.floats(0, 0.3), st.sampled_from([1e-3, 1.0, 1e3]))
def test_optimizer(seed, rate, decay, size):
    """Ours has Adam's corrections of the averages besides; with what they multiply by in the rate, it is the book's."""
    rng = np.random.default_rng(seed)
    shapes = {"dense.weight": (3, 5), "dense.bias": (3,), "LayerNorm.weight": (5,), "word_embeddings.weight": (7, 2)}
    weights = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    ours = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    optimizer, moments = AdamW(rate, 10**9, weight_decay=decay), {}
    for step in range(1, 6):
        g = {name: size * rng.standard_normal(shape) for name, shape in shapes.items()}
        before = {name: value.copy() for name, value in weights.items()}
        optimizer.update(ours, {name: torch.from_numpy(value) for name, value in g.items()})
        textbook.adamw(weights, g, moments, rate, decay)
        for name, (m, v) in moments.items():
            corrected = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6)
            moved = rate * (corrected + decay * before[name] * (name.endswith("s.weight") or name == "dense.weight"))
            np.testing.assert_allclose(ours[name].numpy(), before[name] - moved, rtol=1e-7, atol=1e-9)
            weights[name][...] = ours[name].numpy()  # go on from one place
