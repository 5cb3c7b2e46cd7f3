"""The span logits' torch path and Triton kernels against the book, autograd and each other.

Each drawn case goes through both paths.
"""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from operations import counted
from realm_min.kernels import span_logits as kernels
from sizes import cases

from realm_min import RealmConfig, textbook
from realm_min.model import spans
from realm_min.model.spans import SpanInputs

PATHS = [pytest.param(spans, id="torch"), pytest.param(kernels, id="triton")]
MIN = float(torch.finfo(torch.float32).min)
some = settings(max_examples=cases(24), deadline=None, derandomize=True, database=None)

TILE_TOKENS, TILE_HIDDEN = kernels.SCORES_TILE["BLOCK_T"], 256
MOST_TILES = 4  # of a drawn case: the interpreter takes about 10 ms for each, and 40 ms for its gradients


@pytest.fixture(autouse=True)
def wide_parts(monkeypatch):
    """The interpreter pays for each operation, not for its size: a row in one part."""
    monkeypatch.setattr(kernels, "LANE_BYTES", 2048)


@st.composite
def shapes(draw):
    """Sizes around the tiles, each of which meets each other one, but not all of the largest at once."""
    blocks, tokens = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 1, 2, 3, 3, 5, 9]))
    room = MOST_TILES // -(-blocks * tokens // TILE_TOKENS)
    hidden = draw(
        st.sampled_from([h for h in (1, 2, 3, 7, 8, 16, 24, 256, 257, 384, 600) if -(-h // TILE_HIDDEN) <= room])
    )
    room //= -(-hidden // TILE_HIDDEN)
    width = draw(st.sampled_from([w for w in (1, 2, 2, 3, 4, 12) if min(w, tokens) <= room]))
    return blocks, tokens, hidden, width


def make_case(shape, seed, dtype, kind):
    """Arguments of one call: kind "normal", "offset" (little variance about a large mean), "integer" or "tiny"."""
    blocks, tokens, hidden, width = shape
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    start, end = tensor(blocks, tokens, hidden), tensor(blocks, tokens, hidden)
    if kind == "offset":
        start += 1000.0
    elif kind == "tiny":
        start, end = start * 1e-18, end * 1e-18
    elif kind == "integer":
        start, end = start.mul(2).round(), end.mul(2).round()
    if kind != "offset":
        start[torch.from_numpy(rng.random(start.shape) < 0.05)] = -torch.inf
    weights = (tensor(hidden) + 1, tensor(hidden), tensor(hidden), tensor(1))
    options = dict(
        max_span_width=width,
        eps=float(rng.choice([1e-3, 1e-12])) if kind != "offset" else 1e-3,
        block_mask=[None, torch.from_numpy(rng.random((blocks, tokens)) < 0.7)][int(rng.integers(2))],
        relevance_score=[None, tensor(blocks) * 10][int(rng.integers(2))],
    )
    if options["block_mask"] is not None and rng.random() < 0.3:
        options["block_mask"][int(rng.integers(blocks))] = False
    if options["relevance_score"] is not None and rng.random() < 0.2:
        options["relevance_score"][int(rng.integers(blocks))] = -torch.inf
    return (start.to(dtype), end.to(dtype), *weights), options


drawn = st.builds(
    make_case,
    shapes(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([torch.float32, torch.float32, torch.bfloat16]),
    st.sampled_from(["normal", "normal", "offset", "integer", "tiny"]),
)


def of_the_book(arguments, options):
    """Parameters, configuration, projections [blocks, tokens, 2 * hidden] and mask as `textbook.span_logits` takes."""
    start, end, gamma, beta, v, c = (argument.double().numpy() for argument in arguments)
    names = ("layer_normalization.weight", "layer_normalization.bias", "dense_output.weight", "dense_output.bias")
    p = {f"qa_outputs.{name}": array for name, array in zip(names, (gamma, beta, v[None], c), strict=True)}
    config = RealmConfig(max_span_width=options["max_span_width"], reader_layer_norm_eps=options["eps"])
    mask = options["block_mask"]
    in_block = np.ones(start.shape[:2], bool) if mask is None else mask.numpy()
    return p, config, np.concatenate([start, end], 2), in_block


def tolerance(arguments, options):
    """What float32 may lose of Σ u (h - mean) r, from the magnitudes that are added: [blocks, spans]."""
    start, end, gamma, beta, v, c = (argument.double() for argument in arguments)
    first, last = spans.span_candidates(start.shape[1], options["max_span_width"])
    h = (start[:, first] + end[:, last]).clamp(min=0)
    r = (h.var(-1, correction=0) + options["eps"]).rsqrt()
    u = (v * gamma).abs()
    x = (h - h.mean(-1, keepdim=True)).abs() * r[..., None]
    # The mean is known to about 2**-24 of its size: an error of h - mean that is the same for all elements of h.
    known = h.abs().mean(-1) * r * u.sum() * (h.var(-1, correction=0) > 0)
    return 2e-6 * ((x * u).sum(-1) + known + (v * beta).abs().sum() + c.abs() + 1e-30).numpy()


def expected_logits(arguments, options):
    logits, _ = textbook.span_logits(*of_the_book(arguments, options))
    logits = np.where(logits <= MIN, MIN, logits)  # infinite projections may make a span outside the block so, too
    relevance = options["relevance_score"]
    if relevance is not None:
        relevance = relevance.double().numpy()[:, None]
        logits = np.where(logits == MIN, MIN + np.where(np.isinf(relevance), -np.inf, 0), logits + relevance)
    return logits


@some
@example(make_case((3, 9, 600, 12), 1, torch.float32, "normal"))
@given(drawn)
def test_logits_are_the_books_and_the_best_span_is_theirs(case):
    arguments, options = case
    expected = expected_logits(arguments, options)
    allowed = tolerance(arguments, options) + 1e-6 * (0 if options["relevance_score"] is None else 50)
    tokens = arguments[0].shape[1]
    starts, ends = spans.span_candidates(tokens, options["max_span_width"])
    for path in (spans, kernels):
        logits = path.span_logits(SpanInputs(*arguments, **options))
        assert logits.dtype == torch.float32 and logits.shape == expected.shape
        ours = logits.double().numpy()
        exact = (expected == MIN) | np.isinf(expected)
        assert np.array_equal(ours[exact], expected[exact])
        assert (np.abs(ours[~exact] - expected[~exact]) <= allowed[~exact]).all()

        score, block, start, end = path.best_span(SpanInputs(*arguments, **options))
        candidate = logits.amax(0).argmax()  # as transformers chooses, block and candidate each on its own
        assert (score, block, start, end) == (logits.max(), logits.amax(1).argmax(), starts[candidate], ends[candidate])
        assert spans.span_candidate(start, end, tokens) == candidate
        assert [value.dtype for value in (score, block, start, end)] == [torch.float32] + [torch.int64] * 3


@some
@example(make_case((3, 9, 600, 12), 1, torch.float32, "normal"), 1)
@given(drawn, st.integers(0, 2**32 - 1))
def test_gradients_equal_autograd_in_float64(case, seed):
    arguments, options = case
    blocks, tokens, _ = arguments[0].shape
    spans_ = spans.span_count(tokens, options["max_span_width"])
    grad = torch.from_numpy(np.random.default_rng(seed).standard_normal((blocks, spans_)).astype(np.float32))
    expected, magnitude = autograd_gradients(grad, arguments, options)
    for path in (spans, kernels):
        grads = path.span_logits_backward(grad, SpanInputs(*arguments, **options))
        assert grads.keys() == expected.keys()
        for name, gradient in grads.items():
            argument = dict(zip(ARGUMENTS, arguments, strict=True)).get(name, options.get(name))
            assert gradient.dtype == argument.dtype and gradient.shape == argument.shape
            relative = 8e-3 if gradient.dtype == torch.bfloat16 else 2e-5
            error = (gradient.double() - expected[name]).abs()
            assert (error <= relative * expected[name].abs() + 2e-5 * magnitude[name]).all(), (name, error.max())


ARGUMENTS = ("start_projection", "end_projection", "norm_weight", "norm_bias", "output_weight", "output_bias")


def autograd_gradients(grad, arguments, options):
    """Gradients by autograd in float64, and the size of the terms that they are sums of."""
    values = [argument.double().requires_grad_() for argument in arguments]
    start, end, gamma, beta, v, c = values
    tokens, hidden = start.shape[1:]
    first, last = spans.span_candidates(tokens, options["max_span_width"])
    h = torch.relu(start[:, first] + end[:, last])
    h.retain_grad()
    logits = torch.nn.functional.layer_norm(h, (hidden,), gamma, beta, options["eps"]) @ v + c
    (logits * grad.double()).sum().backward()
    expected = {name: value.grad for name, value in zip(ARGUMENTS, values, strict=True)}
    g = grad.double().abs()[..., None]
    h = h.detach()
    r = (h.var(-1, correction=0, keepdim=True) + options["eps"]).rsqrt()
    x = (h - h.mean(-1, keepdim=True)) * r
    known = x.abs() + 0.01 * h.mean(-1, keepdim=True) * r  # the mean is known to 2e-7 of its size
    u = (v * gamma).detach().abs()
    dh = g * r * (u + u.mean() + known * (known * u).mean(-1, keepdim=True))
    total, normed = g.sum(), (g * known).sum((0, 1))
    v, gamma, beta = (weight.detach().abs() for weight in (v, gamma, beta))
    sums = [torch.zeros_like(start).index_add_(1, at, dh) for at in (first, last)]
    sizes = [sums[0], sums[1], v * normed, v * total, gamma * normed + beta * total, total.reshape(1)]
    magnitude = dict(zip(ARGUMENTS, sizes, strict=True))
    if options["relevance_score"] is not None:
        expected["relevance_score"] = grad.double().sum(1)
        magnitude["relevance_score"] = grad.double().abs().sum(1)
    return expected, magnitude


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(2, 4, 7, 3), (1, 1, 5, 2), (3, 9, 300, 4)])
def test_gradients_are_the_books(path, shape):
    arguments, options = make_case(shape, 5, torch.float32, "normal")
    arguments = [torch.where(argument.isinf(), -5.0, argument) for argument in arguments]
    options |= dict(eps=1e-3, relevance_score=None, block_mask=None)
    p, config, projections, in_block = of_the_book(arguments, options)
    logits, kept = textbook.span_logits(p, config, projections, in_block)
    dlogits = np.random.default_rng(3).standard_normal(logits.shape).astype(np.float32)
    g = {name: np.zeros_like(array) for name, array in p.items()}
    expected = np.split(textbook.span_logits_backward(dlogits.astype(np.float64), kept, g), 2, axis=2)
    found = path.span_logits_backward(torch.from_numpy(dlogits), SpanInputs(*arguments, **options))
    for name, gradient in zip(ARGUMENTS, (*expected, *g.values()), strict=True):
        gradient = gradient.reshape(found[name].shape)
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize("path", PATHS)
def test_equal_spans_get_equal_bits_and_ties_fall_as_in_transformers(path):
    # Blocks 1 and 2 are equal, and within each tokens repeat with period 4: equal spans at many places.
    torch.manual_seed(0)
    start, end = torch.randn(1, 4, 300).repeat(3, 5, 1), torch.randn(1, 4, 300).repeat(3, 5, 1)
    start[0] -= 1.0
    weights = (torch.randn(300), torch.randn(300), torch.randn(300), torch.zeros(1))
    options = dict(max_span_width=3, eps=1e-3)
    logits = path.span_logits(SpanInputs(start, end, *weights, **options))
    assert torch.equal(logits[1], logits[2])
    for width in range(3):
        first = spans.span_count(20, width) if width else 0
        of_width = logits[1, first : first + 20 - width]
        assert torch.equal(of_width[4:], of_width[:-4])
    score, block, first, last = path.best_span(SpanInputs(start, end, *weights, **options))
    candidate = logits.amax(0).argmax()
    assert score == logits.max() and block == logits.amax(1).argmax()
    assert spans.span_candidate(first, last, 20) == candidate


@pytest.mark.parametrize("path", PATHS)
def test_block_and_span_are_chosen_each_on_its_own(path):
    # Both blocks reach the best score: block 0 at its last token, block 1 at its first. As transformers: (0, token 0).
    start = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    arguments = (start, torch.zeros(2, 3, 2), torch.ones(2), torch.zeros(2), torch.tensor([1.0, -1.0]), 0.0)
    score, block, first, last = path.best_span(SpanInputs(*arguments, max_span_width=1, eps=1e-3))
    assert (int(block), int(first), int(last)) == (0, 0, 0)
    assert float(score) == pytest.approx(2 / (1 + 1e-3) ** 0.5, abs=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("relevance", [0.0, -torch.inf])
def test_all_masked_blocks_give_the_minimum_and_the_first_span(path, relevance):
    arguments, _ = make_case((2, 5, 7, 3), 1, torch.float32, "normal")
    options = dict(
        max_span_width=3,
        eps=1e-3,
        block_mask=torch.zeros(2, 5, dtype=torch.bool),
        relevance_score=torch.full((2,), relevance),
    )
    assert (path.span_logits(SpanInputs(*arguments, **options)) == MIN + relevance).all()
    assert [float(value) for value in path.best_span(SpanInputs(*arguments, **options))] == [MIN + relevance, 0, 0, 0]


@pytest.mark.parametrize("path", PATHS)
def test_constant_and_offset_rows_do_not_cancel(path):
    # Σ h² - H mean² would lose every digit of these variances: 1e-4 relative, about a mean of 4,096.
    hidden = 600
    wave = torch.where(torch.arange(hidden) % 2 == 0, 0.5, -0.5)
    start = (4096 + torch.stack([wave, torch.zeros(hidden)]))[None]
    arguments = (start, torch.zeros(1, 2, hidden), torch.ones(hidden), torch.zeros(hidden), wave, 0.25)
    logits = path.span_logits(SpanInputs(*arguments, max_span_width=1, eps=1e-6))
    # The first row: Σ wave² / sqrt(0.25 + eps). The second has no variance: the output bias alone, exactly.
    assert float(logits[0, 0]) == pytest.approx(hidden * 0.25 / (0.25 + 1e-6) ** 0.5 + 0.25, rel=1e-6)
    assert float(logits[0, 1]) == 0.25


@pytest.mark.parametrize("path", PATHS)
def test_halves_of_one_projection_are_read_where_they_are(path):
    arguments, options = make_case((2, 6, 24, 3), 7, torch.float32, "normal")
    whole = torch.cat(arguments[:2], dim=-1)  # [blocks, tokens, 2 * hidden]
    halves = whole.chunk(2, dim=-1)
    turned = [half.transpose(0, 1).contiguous().transpose(0, 1) for half in halves]
    for start, end in (halves, turned):
        assert torch.equal(
            path.span_logits(SpanInputs(start, end, *arguments[2:], **options)),
            path.span_logits(SpanInputs(*arguments, **options)),
        )


@pytest.mark.parametrize("hidden, dtype", [(300, torch.float32), (256, torch.bfloat16)])
def test_the_parts_of_a_row_join(monkeypatch, hidden, dtype):
    arguments, options = make_case((1, 3, hidden, 2), 7, dtype, "normal")
    grad = torch.randn(1, 5, generator=torch.Generator().manual_seed(0))
    inputs = SpanInputs(*arguments, **options)
    whole, whole_grads = kernels.span_logits(inputs), kernels.span_logits_backward(grad, inputs)
    monkeypatch.setattr(kernels, "LANE_BYTES", 128)  # as on a GPU
    torch.testing.assert_close(kernels.span_logits(inputs), whole, rtol=1e-5, atol=1e-5)
    assert kernels.best_span(inputs)[1:] == spans.best_span(inputs)[1:]
    for name, gradient in kernels.span_logits_backward(grad, inputs).items():
        torch.testing.assert_close(
            gradient, whole_grads[name], rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4
        )


def test_each_launch_is_on_the_device_of_its_tensors(monkeypatch):
    """Triton takes the current device, which another GPU's tensors cannot be read from."""
    arguments, options = make_case((1, 3, 8, 2), 7, torch.float32, "normal")
    named = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext(named.append(tensor.shape)))
    logits = kernels.span_logits(SpanInputs(*arguments, **options))
    kernels.best_span(SpanInputs(*arguments, **options))
    kernels.span_logits_backward(torch.ones_like(logits), SpanInputs(*arguments, **options))
    assert named == [(1, 3, 8)] * 5


def test_the_kernels_cost_the_host_few_launches_and_operations(monkeypatch):
    """At a few blocks the launches are most of the time. Memory that nobody writes and views are no launch."""
    arguments, options = make_case((2, 6, 24, 3), 7, torch.float32, "normal")
    whole = torch.cat(arguments[:2], dim=-1)  # as the reader hands over its projections
    inputs = SpanInputs(*whole.chunk(2, dim=-1), *arguments[2:], **options | dict(relevance_score=torch.ones(2)))
    with counted(monkeypatch, kernels) as names:
        logits = kernels.span_logits(inputs)
        assert names == ["empty", "_scores_kernel"]
        names.clear()
        kernels.best_span(inputs)
        assert names == ["empty", "_scores_kernel", "empty", "empty", "_choose_kernel", "unbind"]
        names.clear()
        kernels.span_logits_backward(logits, inputs)
        launched = [name for name in names if "empty" not in name]
        assert launched == ["_scores_kernel", "sum", "_gradients_kernel", "_totals_kernel"]
        assert len(names) - len(launched) == 9


@pytest.mark.parametrize("path", PATHS)
def test_the_same_inputs_give_the_same_bits(path):
    arguments, options = make_case((3, 9, 40, 4), 11, torch.float32, "normal")
    grad = torch.randn(3, spans.span_count(9, 4), generator=torch.Generator().manual_seed(0))
    once, again = (path.span_logits_backward(grad, SpanInputs(*arguments, **options)) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_float64_keeps_its_precision_on_the_torch_path():
    arguments, options = make_case((2, 7, 33, 4), 2, torch.float64, "normal")
    arguments = tuple(argument.double() for argument in arguments)
    logits = spans.span_logits(SpanInputs(*arguments, max_span_width=4, eps=1e-3))
    assert logits.dtype == torch.float64
    book = of_the_book(arguments, dict(max_span_width=4, eps=1e-3, block_mask=None))
    expected, _ = textbook.span_logits(*book)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(TypeError, match="float32"):
        kernels.span_logits(SpanInputs(*arguments, **options))


def test_pieces_of_blocks_join(monkeypatch):
    arguments, options = make_case((3, 9, 24, 4), 13, torch.float32, "normal")
    grad = torch.randn(3, spans.span_count(9, 4), generator=torch.Generator().manual_seed(0))
    whole = spans.span_logits(SpanInputs(*arguments, **options))
    whole_best = spans.best_span(SpanInputs(*arguments, **options))
    whole_grads = spans.span_logits_backward(grad, SpanInputs(*arguments, **options))
    monkeypatch.setattr(spans, "PIECE_ELEMENTS", 2 * 9 * 24)
    assert torch.equal(spans.span_logits(SpanInputs(*arguments, **options)), whole)
    assert spans.best_span(SpanInputs(*arguments, **options)) == whole_best
    for name, gradient in spans.span_logits_backward(grad, SpanInputs(*arguments, **options)).items():
        torch.testing.assert_close(gradient, whole_grads[name], rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@example(1, 9)
@given(st.integers(1, 12), st.integers(1, 15))
def test_candidates_stand_in_the_order_of_widths(tokens, width):
    starts, ends = spans.span_candidates(tokens, width)
    expected = textbook.span_candidates(tokens, width)
    assert np.array_equal(starts.numpy(), expected[0]) and np.array_equal(ends.numpy(), expected[1])
    assert len(starts) == spans.span_count(tokens, width)
    assert torch.equal(spans.span_candidate(starts, ends, tokens), torch.arange(len(starts)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "change, error, words",
    [
        (dict(max_span_width=0), ValueError, "max_span_width must be at least 1: got 0"),
        (dict(eps=0.0), ValueError, "eps must be above 0"),
        (dict(block_mask=torch.ones(2, 3)), TypeError, "block_mask must be bool"),
        (dict(block_mask=torch.ones(2, 4, dtype=torch.bool)), ValueError, r"block_mask must have shape \[2, 3\]"),
        (dict(relevance_score=torch.zeros(3)), ValueError, r"relevance_score must have shape \[2\]: got \[3\]"),
    ],
)
def test_bad_options_are_named(path, change, error, words):
    arguments, _ = make_case((2, 3, 4, 2), 0, torch.float32, "normal")
    for function in (path.span_logits, path.best_span):
        with pytest.raises(error, match=words):
            function(SpanInputs(*arguments, **(dict(max_span_width=2, eps=1e-3) | change)))


@pytest.mark.parametrize("path", PATHS)
def test_bad_tensors_are_named(path):
    (start, end, *weights), _ = make_case((2, 3, 4, 2), 0, torch.float32, "normal")
    options = dict(max_span_width=2, eps=1e-3)
    with pytest.raises(ValueError, match=r"end_projection must have shape \[2, 3, 4\]: got \[2, 2, 4\]"):
        path.span_logits(SpanInputs(start, end[:, :2], *weights, **options))
    with pytest.raises(TypeError, match="dtypes differ"):
        path.span_logits(SpanInputs(start, end.double(), *weights, **options))
    with pytest.raises(ValueError, match="none of them 0"):
        path.best_span(SpanInputs(start[:0], end[:0], *weights, **options))
    with pytest.raises(TypeError, match="floating point"):
        path.span_logits(SpanInputs(start.nan_to_num(0, 0, 0).int(), end.int(), *weights, **options))
    with pytest.raises(ValueError, match=r"grad_logits must have shape \[2, 5\]"):
        path.span_logits_backward(torch.zeros(2, 6), SpanInputs(start, end, *weights, **options))
    with pytest.raises(ValueError, match="output_bias must hold one number"):
        path.span_logits(SpanInputs(start, end, *weights[:3], torch.zeros(2), **options))
    with pytest.raises(ValueError, match="output_weight is on meta"):
        path.span_logits(SpanInputs(start, end, *weights[:2], weights[2].to("meta"), weights[3], **options))


def test_the_kernels_refuse_cpu_tensors_when_not_interpreted(monkeypatch):
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    arguments, options = make_case((1, 3, 4, 2), 0, torch.float32, "normal")
    with pytest.raises(ValueError, match="CUDA"):
        kernels.span_logits(SpanInputs(*arguments, **options))
