"""Each operation of `ops.py` against the book, in float64 and float32: values, and gradients where it has a pair."""

from __future__ import annotations

import functools

import book_models
import numpy as np
import pytest
import torch
from drawn_cases import ACTIVATIONS, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min import config, textbook
from realm_min.model import bert, ops

DRAWN = settings(deadline=None, derandomize=True, max_examples=100)
SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 9)
# Relative to the largest number of the result; float32 has 24 bits, and sums here are short.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6}
DTYPES = st.sampled_from(list(TOLERANCES))


def drawn(rng, shape, dtype, scale=1.0):
    """Normal numbers as a tensor of `dtype`, and the same numbers, as rounded, for the book."""
    tensor = torch.from_numpy(np.asarray(scale * rng.standard_normal(shape))).to(dtype)
    return tensor, tensor.double().numpy()


def integers(rng, shape, dtype, low=-3, high=4):
    array = rng.integers(low, high, shape)
    return torch.from_numpy(array).to(dtype), array.astype(np.float64)


def check(actual, expected, dtype, factor=1.0):
    assert actual.dtype == dtype
    assert_close(actual, expected, factor * TOLERANCES[dtype])


@DRAWN
@given(seed=SEEDS, dtype=DTYPES, rows=SIZES, inputs=SIZES, outputs=SIZES, with_bias=st.booleans())
def test_linear(seed, dtype, rows, inputs, outputs, with_bias):
    rng = np.random.default_rng(seed)
    (x, x_), (w, w_), (b, b_) = (drawn(rng, s, dtype) for s in ((rows, inputs), (outputs, inputs), (outputs,)))
    p = {"l.weight": w_, "l.bias": b_ if with_bias else np.zeros(outputs)}
    expected, kept = textbook.linear(p, "l", x_)
    check(ops.linear(x, w, b if with_bias else None), expected, dtype, factor=4)

    (dy, dy_), g = drawn(rng, (rows, outputs), dtype), book_models.zeros(p)
    dw, db = torch.zeros(inputs, outputs, dtype=dtype).t(), torch.zeros(outputs, dtype=dtype)  # as they are laid out
    check(ops.linear_backward(dy, x, w, dw, db), textbook.linear_backward(dy_, kept, g), dtype, factor=4)
    check(dw, g["l.weight"], dtype, factor=4)
    check(db, g["l.bias"], dtype, factor=4)


@DRAWN
@given(seed=SEEDS, rows=SIZES, inputs=SIZES, outputs=SIZES)
def test_linear_is_exact_on_integers(seed, rows, inputs, outputs):
    rng = np.random.default_rng(seed)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    (x, x_), (w, w_), (b, b_) = (integers(rng, shape, torch.float32) for shape in shapes)
    expected, _ = textbook.linear({"l.weight": w_, "l.bias": b_}, "l", x_)
    np.testing.assert_array_equal(ops.linear(x, w, b), expected)


@DRAWN
@given(seed=SEEDS, dtype=DTYPES, vocabulary=SIZES, hidden=SIZES, shape=st.lists(st.integers(1, 4), max_size=3))
def test_embedding(seed, dtype, vocabulary, hidden, shape):
    rng = np.random.default_rng(seed)
    table, table_ = drawn(rng, (vocabulary, hidden), dtype)
    ids = rng.integers(0, vocabulary, shape)
    actual = ops.embedding(torch.tensor(ids), table)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, table_[ids])

    (dy, dy_), dtable = drawn(rng, (*shape, hidden), dtype), torch.zeros_like(table)
    expected = np.zeros_like(table_)
    np.add.at(expected, ids, dy_)  # as the book's BERT does
    expected[1:2] = 0
    ops.embedding_backward(dy, torch.tensor(ids), dtable, padding_id=1)
    check(dtable, expected, dtype)


@pytest.mark.parametrize("wrong", [-1, 3, -3])
def test_embedding_never_wraps_around(wrong):
    with pytest.raises((IndexError, RuntimeError)):
        ops.embedding(torch.tensor([0, wrong]), torch.ones(3, 2))


@DRAWN
@given(
    seed=SEEDS,
    dtype=DTYPES,
    rows=SIZES,
    hidden=st.integers(2, 17),
    eps=st.sampled_from([1e-12, 1e-5, 1e-3]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    offset=st.sampled_from([0.0, 10.0]),
)
def test_layer_norm(seed, dtype, rows, hidden, eps, scale, offset):
    rng = np.random.default_rng(seed)
    x = (scale * (torch.from_numpy(rng.standard_normal((rows, hidden))) + offset)).to(dtype)
    (w, w_), (b, b_) = drawn(rng, hidden, dtype), drawn(rng, hidden, dtype)
    actual, _ = bert.layer_norm({"n.weight": w, "n.bias": b}, "n", x.clone(), eps)
    # Taking the mean out loses as many bits as the mean is larger than the spread.
    x_ = x.double().numpy()
    lost = max(1.0, float(np.max(np.abs(x_).max(-1) / np.sqrt(x_.var(-1) + eps))))
    p = {"n.weight": w_, "n.bias": b_}
    expected, kept = textbook.layer_norm(p, "n", x_, eps)
    check(actual, expected, dtype, factor=2 * lost)

    (dy, dy_), g = drawn(rng, (rows, hidden), dtype), book_models.zeros(p)
    dw, db = torch.zeros_like(w), torch.zeros_like(b)
    dx = ops.layer_norm_backward(dy, *ops.standardize_(x.clone(), eps), w, dw, db)
    expected = textbook.layer_norm_backward(dy_, kept, g)
    # dx is what is left of dy γ r when its part along x is taken out.
    terms = np.abs(dy_ * w_).max() / np.sqrt(x_.var(-1).min() + eps)
    np.testing.assert_allclose(dx, expected, rtol=0, atol=20 * lost * TOLERANCES[dtype] * terms)
    check(dw, g["n.weight"], dtype, factor=20 * lost)
    check(db, g["n.bias"], dtype, factor=4)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_layer_norm_of_a_row_without_variance_is_its_bias(dtype):
    p = {"n.weight": torch.full((4,), 5.0, dtype=dtype), "n.bias": torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=dtype)}
    bias = p["n.bias"]
    for eps in (1e-12, 1e-3):
        x = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]], dtype=dtype)
        actual, _ = bert.layer_norm(p, "n", x, eps)
        assert torch.equal(actual, bias.expand(2, 4))


SCORE_SCALES = st.sampled_from([0.0, 1e-3, 1.0, 80.0, 1e4])


@DRAWN
@given(seed=SEEDS, dtype=DTYPES, shape=st.tuples(SIZES, SIZES), scale=SCORE_SCALES, masked=st.booleans())
def test_softmax(seed, dtype, shape, scale, masked):
    rng = np.random.default_rng(seed)
    x, x_ = drawn(rng, shape, dtype, scale)
    if masked:  # whole rows sometimes
        mask = torch.from_numpy(rng.integers(0, 2, shape))
        x = x + ops.additive_mask(mask, dtype)
        x_ = x.double().numpy()
    before = x.clone()
    actual, expected = ops.softmax(x), textbook.softmax(x_)
    check(actual, expected, dtype, factor=4)
    check(actual.sum(-1), np.ones(shape[0]), dtype, factor=4)
    assert torch.equal(x, before)
    in_place = ops.softmax_(x)
    assert in_place is x
    assert torch.equal(x, actual)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_softmax_of_a_row_with_every_key_masked_is_uniform(dtype):
    scores = torch.tensor([[5.0, -7.0, 100.0], [1.0, 2.0, 3.0]], dtype=dtype)
    mask = torch.tensor([[0, 0, 0], [1, 0, 1]])
    actual = ops.softmax(scores + ops.additive_mask(mask, dtype))
    assert torch.equal(actual[0], torch.full((3,), 1.0, dtype=dtype) / 3)
    assert actual[1, 1] == 0
    check(actual, textbook.softmax(scores.double().numpy() + (1 - mask.numpy()) * textbook.LOWEST), dtype)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_additive_mask(dtype):
    expected = [[0.0, torch.finfo(dtype).min], [torch.finfo(dtype).min, 0.0]]
    for kind in (torch.bool, torch.int64, torch.float32):
        actual = ops.additive_mask(torch.tensor([[1, 0], [0, 1]], dtype=kind), dtype)
        assert actual.dtype == dtype
        assert actual.tolist() == expected


@DRAWN
@given(seed=SEEDS, dtype=DTYPES, shape=st.tuples(SIZES, SIZES), dim=st.sampled_from([0, 1, -1]), scale=SCORE_SCALES)
def test_logsumexp(seed, dtype, shape, dim, scale):
    x, x_ = drawn(np.random.default_rng(seed), shape, dtype, scale)
    before = x.clone()
    check(ops.logsumexp(x, dim), textbook.logsumexp(x_, dim).squeeze(dim), dtype, factor=4)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_logsumexp_of_extremes(dtype):
    infinity, smallest = torch.inf, torch.finfo(dtype).min
    rows = [[-infinity, -infinity], [infinity, 0.0], [-infinity, 2.0], [smallest, smallest], [infinity, -infinity]]
    actual = ops.logsumexp(torch.tensor(rows, dtype=dtype), 1)
    assert actual.tolist() == [-infinity, infinity, 2.0, smallest, infinity]


@DRAWN
@given(
    seed=SEEDS,
    dtype=DTYPES,
    shape=st.tuples(SIZES, SIZES),
    dim=st.sampled_from([0, 1, -1]),
    scale=SCORE_SCALES,
    offset=st.sampled_from([0.0, 1e4]),
)
def test_log_softmax(seed, dtype, shape, dim, scale, offset):
    """An offset common to all scores changes nothing, however large: it must not cost precision either."""
    x = (scale * torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)) + offset).to(dtype)
    x_ = x.double().numpy()
    check(ops.log_softmax(x, dim), textbook.log_softmax(x_ - x_.max(dim, keepdims=True), dim), dtype, factor=4)


@DRAWN
@given(seed=SEEDS, shape=st.tuples(SIZES, SIZES), scale=SCORE_SCALES)
def test_softmax_gradients(seed, shape, scale):
    """Where a softmax is nearly 1, its gradient is a small difference of large numbers: they set the error."""
    x, dy = np.random.default_rng(seed).standard_normal((2, *shape)) * scale
    y, log_y = textbook.softmax(x), textbook.log_softmax(x)
    product, sums = torch.from_numpy(y * dy), torch.from_numpy((y * dy).sum(-1, keepdims=True))
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-14 * shape[1] * np.abs(dy).max())
    close(ops.softmax_backward_(product, torch.from_numpy(y), sums), textbook.softmax_backward(dy, y))
    actual = ops.log_softmax_backward(torch.from_numpy(dy), torch.from_numpy(log_y))
    close(actual, textbook.log_softmax_backward(dy, log_y))


@DRAWN
@given(
    seed=SEEDS,
    dtype=DTYPES,
    rows=SIZES,
    classes=SIZES,
    scale=SCORE_SCALES,
    offset=st.sampled_from([0.0, 1e4]),
)
def test_cross_entropy(seed, dtype, rows, classes, scale, offset):
    rng = np.random.default_rng(seed)
    x = (scale * torch.from_numpy(rng.standard_normal((rows, classes))) + offset).to(dtype)
    targets = rng.integers(0, classes, rows)
    before = x.clone()
    actual = ops.cross_entropy(x, torch.from_numpy(targets))
    spread = float(x.max() - x.min()) + 1.0  # a loss near 0 is what remains of scores this far apart
    x_ = x.double().numpy()
    log_p = textbook.log_softmax(x_ - x_.max(1, keepdims=True))  # the book loses digits to what all have in common
    expected = -log_p[np.arange(rows), targets]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * TOLERANCES[dtype] * spread)
    assert actual.dtype == dtype
    assert torch.equal(x, before)

    dy, dy_ = drawn(rng, rows, dtype)
    dlog_p = np.zeros_like(log_p)
    dlog_p[np.arange(rows), targets] = -dy_
    found = ops.cross_entropy_backward(dy, x, torch.from_numpy(targets))
    expected = textbook.log_softmax_backward(dlog_p, log_p)
    assert found.dtype == dtype and torch.equal(x, before)
    np.testing.assert_allclose(found, expected, rtol=0, atol=20 * TOLERANCES[dtype] * spread * np.abs(dy_).max())


@pytest.mark.parametrize("wrong", [-1, 3, -100])
def test_cross_entropy_refuses_labels_that_are_no_class(wrong):
    with pytest.raises(ValueError, match=f"label {wrong} is out of range"):
        ops.cross_entropy(torch.zeros(2, 3), torch.tensor([0, wrong]))


EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 6.0, -6.0, 40.0, -40.0, 1e4, -1e4, 1e12, -1e12]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@DRAWN
@given(numbers=st.lists(st.floats(-30, 30), min_size=1, max_size=9))
def test_activations(name, dtype, numbers):
    x = torch.tensor(numbers + EXTREMES, dtype=dtype)
    x_ = x.double().numpy()
    if name in ("gelu", "gelu_new", "relu"):
        expected, slope = textbook.gelu(x_, name)
    else:  # the book has no others
        of = torch.from_numpy(x_).requires_grad_()
        theirs = getattr(torch.nn.functional, name)(of)
        theirs.sum().backward()
        expected, slope = theirs.detach().numpy(), of.grad.numpy()
    size = np.maximum(1.0, np.abs(x.double().numpy()))
    y, found = ops.activation_and_slope(name, x)
    np.testing.assert_array_less(np.abs(y.double().numpy() - expected), TOLERANCES[dtype] * size)
    np.testing.assert_allclose(found, slope, rtol=0, atol=20 * TOLERANCES[dtype])
    actual = ops.ACTIVATIONS[name](x)
    assert actual is x and x.dtype == dtype  # overwritten, as the underscore says
    np.testing.assert_array_less(np.abs(x.double().numpy() - expected), TOLERANCES[dtype] * size)


def test_every_activation_of_the_configuration_is_there():
    assert set(ops.ACTIVATIONS) == set(config.ACTIVATIONS) == set(ACTIVATIONS)


def dropout(x, probability, seed):
    streams = ops.DropoutStreams([seed + row for row in range(len(x))], 3, probability, x.device)
    kept = streams.mask([x[0].numel()] * len(x)).view(x.shape)
    return ops.drop(x, kept, probability)


@DRAWN
@given(seed=st.integers(0, 2**31), dtype=DTYPES, shape=st.tuples(SIZES, SIZES), p=st.sampled_from([0.1, 0.5, 0.9]))
def test_dropout_keeps_a_number_scaled_or_zeroes_it(seed, dtype, shape, p):
    x, x_ = drawn(np.random.default_rng(seed), shape, dtype)
    actual, again = dropout(x, p, seed), dropout(x, p, seed)
    assert torch.equal(actual, again)
    kept = actual.numpy() != 0
    check(actual, np.where(kept, x_ / (1 - p), 0.0), dtype)
    assert ops.drop(x, None, p) is x


@DRAWN
@given(
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), part=st.integers(0, 9),
    portions=st.integers(1, 4), count=st.integers(1, 9), split=st.integers(0, 4),
)  # fmt: skip
def test_a_sequence_has_its_masks_whatever_stands_beside_it(seeds, portions, part, count, split):
    """All sequences and portions at once, or some after others: the same bits."""

    def streams(seeds):
        return ops.DropoutStreams(seeds, part, 0.5, torch.device("cpu"))

    together = streams(seeds).mask([count] * len(seeds), portions=portions).view(len(seeds), portions, count)
    for row, seed in enumerate(seeds):
        assert torch.equal(streams([seed]).mask([count], portions=portions).view(portions, count), together[row])
    pieces, first = streams(seeds), min(split, portions)
    drawn = [
        pieces.mask([count] * len(seeds), portions=some).view(len(seeds), some, count)
        for some in (first, portions - first)
    ]
    assert torch.equal(torch.cat(drawn, 1), together)
    some = streams(seeds).mask([count], slice(len(seeds) - 1, len(seeds)), portions)
    assert torch.equal(some.view(portions, count), together[-1])


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_zeroes_its_share(p):
    actual = dropout(torch.ones(4, 25_000), p, 0)
    assert abs((actual == 0).double().mean().item() - p) < 0.005  # three standard deviations are at most 0.0048
    assert abs(actual.double().mean().item() - 1) < 0.01
