"""Gradients by hand against autograd on transformers' modules, and against central differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import CONFIGS, ids_and_mask, twins

import realm_min
from realm_min import ops

TOLERANCE = 2e-4  # of a gradient's largest value, float32
pytestmark = pytest.mark.filterwarnings("ignore")

GRADIENT_CONFIGS = {
    "one-layer": {},
    "three-layers": {},
    "gelu_new": dict(hidden_size=48, num_attention_heads=6, num_hidden_layers=2, hidden_act="gelu_new"),
    "silu": dict(hidden_size=24, num_attention_heads=2, num_hidden_layers=2, hidden_act="silu", layer_norm_eps=1e-5),
}


def models(name, class_name):
    values = GRADIENT_CONFIGS[name]
    return twins(name if name in CONFIGS else "three-layers", class_name, **values)


def assert_same_gradients(theirs, ours, tolerance=TOLERANCE):
    """Every parameter's gradient, within `tolerance` of its largest value; autograd's None is our zero."""
    expected = dict(theirs.named_parameters(remove_duplicate=False))
    found = ours.grads
    assert set(found) == set(expected)
    for key, parameter in expected.items():
        if key.endswith(("key.bias", "dense_output.bias", "layer_normalization.bias")) and parameter.grad is not None:
            # These shift all that a softmax compares, which it does not see: the gradient is 0 but for rounding, and
            # that is measured against the gradient of the weight beside it.
            assert found[key].abs().max() <= tolerance * expected[key[:-4] + "weight"].grad.abs().max(), key
            continue
        assert_gradient(parameter.grad, found[key], key, tolerance)


def assert_gradient(expected, found, key, tolerance=TOLERANCE):
    if expected is None:
        assert not found.any(), key
        return
    assert found.shape == expected.shape, key
    scale = expected.abs().max().clamp(min=1e-6)
    assert (found - expected).abs().max() <= tolerance * scale, f"{key}: {(found - expected).abs().max() / scale}"


@pytest.mark.parametrize("name", GRADIENT_CONFIGS)
class TestAutograd:
    @pytest.mark.parametrize("way", ["padded", "left", "states", "embeds", "heads"])
    def test_embedder(self, name, way):
        theirs, ours = models(name, "RealmEmbedder")
        ids, mask, types = ids_and_mask(ours.config, 3, 11)
        inputs = dict(input_ids=ids, attention_mask=mask, token_type_ids=types)
        embeds = None
        if way == "left":
            inputs |= dict(attention_mask=mask.flip(1))
        if way == "states":
            inputs |= dict(output_hidden_states=True, output_attentions=True)
        if way == "heads":
            inputs |= dict(head_mask=torch.rand(ours.config.num_hidden_layers, ours.config.num_attention_heads))
        if way == "embeds":
            embeds = torch.randn(3, 11, ours.config.hidden_size, requires_grad=True)
            inputs = dict(inputs_embeds=embeds, attention_mask=mask, token_type_ids=types)
        cotangent = torch.randn(3, ours.config.retriever_proj_size)
        theirs(**inputs).projected_score.backward(cotangent)
        ours(**inputs)
        dinputs = ours.backward(projected_score=cotangent)
        assert_same_gradients(theirs, ours)
        if way == "embeds":
            assert_gradient(embeds.grad, dinputs["inputs_embeds"], "inputs_embeds")

    @pytest.mark.parametrize("separate", [False, True])
    def test_scorer(self, name, separate):
        theirs, ours = models(name, "RealmScorer")
        if separate:
            other = twins(name if name in CONFIGS else "three-layers", "RealmEmbedder", **GRADIENT_CONFIGS[name])[0]
            theirs = type(theirs)(theirs.config, other).eval()
            ours.load_state_dict(theirs.state_dict())
        candidates = ours.config.num_candidates
        ids, mask, _ = ids_and_mask(ours.config, 2, 10)
        cand, cand_mask, _ = (x.view(2, candidates, 8) for x in ids_and_mask(ours.config, 2 * candidates, 8, seed=2))
        inputs = dict(input_ids=ids, attention_mask=mask, candidate_input_ids=cand, candidate_attention_mask=cand_mask)
        cotangent = torch.randn(2, candidates)
        theirs(**inputs).relevance_score.backward(cotangent)
        ours(**inputs)
        ours.backward(relevance_score=cotangent)
        assert_same_gradients(theirs, ours)

    def test_knowledge_encoder(self, name):
        theirs, ours = models(name, "RealmKnowledgeAugEncoder")
        config = ours.config
        ids, mask, types = ids_and_mask(config, 2 * config.num_candidates, 12)
        labels = torch.randint(0, config.vocab_size, (2, 12))
        labels[0, 2:4] = -100
        scores = torch.randn(2, config.num_candidates, requires_grad=True)
        inputs = dict(
            input_ids=ids, attention_mask=mask, token_type_ids=types, relevance_score=scores, labels=labels,
            mlm_mask=(torch.rand(2, 12) < 0.5).float(),
        )  # fmt: skip
        theirs(**inputs).loss.backward()
        ours(**inputs | dict(relevance_score=scores.detach()))
        dinputs = ours.backward()
        assert_same_gradients(theirs, ours)
        assert_gradient(scores.grad, dinputs["relevance_score"], "relevance_score")

    @pytest.mark.parametrize("answered", [True, False])
    def test_reader(self, name, answered):
        theirs, ours = models(name, "RealmReader")
        config, tokens = ours.config, 14
        beam, searched = config.reader_beam_size, config.searcher_beam_size
        ids, mask, _ = ids_and_mask(config, beam, tokens)
        types = (torch.arange(tokens) >= 3).long().expand(beam, -1)
        block_mask = torch.zeros(searched, tokens, dtype=torch.bool)
        block_mask[:beam] = types.bool() & mask.bool()
        starts = torch.full((searched, 2), -1)
        if answered:
            starts[:, 0] = torch.arange(searched) % 4 + 4
        scores = torch.randn(searched, requires_grad=True)
        inputs = dict(
            input_ids=ids, attention_mask=mask, token_type_ids=types, relevance_score=scores, block_mask=block_mask,
            start_positions=starts, end_positions=starts, has_answers=starts[:, 0] > 4,
        )  # fmt: skip
        theirs(**inputs).loss.backward()
        ours(**inputs | dict(relevance_score=scores.detach()))
        dinputs = ours.backward()
        assert_same_gradients(theirs, ours)
        assert_gradient(scores.grad, dinputs["relevance_score"], "relevance_score")


def test_open_qa_reaches_the_question(vocabulary):
    """The loss of an answer, through the reader and the retriever, into both models' weights."""
    import numpy as np
    import transformers

    values = dict(vocab_size=30522, reader_seq_len=40)
    theirs, ours = (model.to(torch.float64) for model in twins("one-layer", "RealmForOpenQA", **values))
    records = np.array([f"The capital of country {i} is city {i * 7}.".encode() for i in range(9)], dtype=object)
    tokenizer = realm_min.RealmTokenizerFast(str(vocabulary))
    theirs.retriever = transformers.RealmRetriever(records, transformers.RealmTokenizerFast(str(vocabulary)))
    ours.retriever = realm_min.RealmRetriever(records, tokenizer)
    question = tokenizer(["What is the capital?"], return_tensors="pt")
    answer_ids = tokenizer(["city"], add_special_tokens=False).input_ids
    loss = theirs(**question, answer_ids=answer_ids).reader_output.loss
    loss.backward()
    output = ours(**question, answer_ids=answer_ids)
    assert abs(output.reader_output.loss.item() - loss.item()) < 1e-10
    ours.backward()
    assert_same_gradients(theirs, ours, tolerance=1e-10)


def test_a_batch_of_questions_has_no_loss_of_its_own(vocabulary):
    import numpy as np

    model = realm_min.RealmForOpenQA(realm_min.RealmConfig(**CONFIGS["one-layer"] | dict(vocab_size=30522)))
    model.block_emb.normal_()
    records = np.array([b"The capital of a country is a city."] * 9, dtype=object)
    model.retriever = realm_min.RealmRetriever(records, realm_min.RealmTokenizerFast(str(vocabulary)))
    model(torch.tensor([[101, 2054, 102], [101, 2040, 102]]), answer_ids=[[[2103]], [[2103]]])
    with pytest.raises(ValueError, match="returned no loss"):
        model.backward()


def test_gradients_add_up_until_zeroed():
    _, ours = twins("one-layer", "RealmEmbedder")
    cotangent = torch.randn(2, 8)
    ours(torch.arange(10).view(2, 5))
    ours.backward(projected_score=cotangent)
    once = {key: tensor.clone() for key, tensor in ours.grads.items()}
    ours.backward(projected_score=cotangent)
    for key, tensor in once.items():  # summed inside the products, so not to the last bit
        assert torch.allclose(ours.grads[key], 2 * tensor, rtol=1e-4, atol=1e-5), key
    ours.zero_grads()
    assert not any(tensor.any() for tensor in ours.grads.values())


def test_misuse_of_backward_is_named():
    model = realm_min.RealmEmbedder(realm_min.RealmConfig(**CONFIGS["one-layer"]))
    with pytest.raises(RuntimeError, match="call the model first"):
        model.backward()
    model(torch.arange(5)[None])
    with pytest.raises(ValueError, match="returned no loss"):
        model.backward()
    with pytest.raises(ValueError, match="no 'logits' to differentiate"):
        model.backward(logits=torch.zeros(1))
    with pytest.raises(ValueError, match=r"shape \(1, 7\): expected \(1, 8\)"):
        model.backward(projected_score=torch.zeros(1, 7))


def test_dropout_backward_uses_the_masks_of_the_forward():
    """With dropout drawn from a seed, the gradient is that of the very function the forward computed."""
    values = CONFIGS["three-layers"] | dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    model = realm_min.RealmEmbedder(realm_min.RealmConfig(**values)).to(torch.float64)
    ids, cotangent = torch.arange(14).view(2, 7), torch.randn(2, 16, dtype=torch.float64)

    def value():
        model.generator.manual_seed(5)
        return (model(ids).projected_score * cotangent).sum().item()

    value()
    model.backward(projected_score=cotangent)
    for key in (
        "realm.embeddings.position_embeddings.weight",
        "realm.encoder.layer.0.attention.self.key.weight",
        "realm.encoder.layer.1.attention.self.value.bias",
        "realm.encoder.layer.2.intermediate.dense.weight",
    ):
        weight, grad = model.state_dict()[key], model.grads[key]
        index = tuple(int(i) for i in (grad.abs() == grad.abs().max()).nonzero()[0])
        before, eps = weight[index].item(), 1e-5
        weight[index] = before + eps
        above = value()
        weight[index] = before - eps
        below = value()
        weight[index] = before
        assert abs((above - below) / (2 * eps) / grad[index].item() - 1) < 1e-6, key


def central_difference(function, x, cotangent, eps=1e-6):
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        above, below = x.clone(), x.clone()
        above.view(-1)[i] += eps
        below.view(-1)[i] -= eps
        gradient.view(-1)[i] = ((function(above) - function(below)) * cotangent).sum() / (2 * eps)
    return gradient


shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(shapes, st.integers(0, 99), st.sampled_from(sorted(ops.ACTIVATIONS)))
def test_activation_slopes(shape, seed, name):
    torch.manual_seed(seed)
    x, dy = 2 * torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    x = x + 0.01 * x.sign()  # away from the kinks at 0
    expected = central_difference(lambda x: ops.ACTIVATIONS[name](x.clone()), x, dy)
    y, slope = ops.activation_and_slope(name, x)
    assert torch.allclose(dy * slope, expected, rtol=1e-6, atol=1e-8)
    assert torch.allclose(y, ops.ACTIVATIONS[name](x.clone()), rtol=1e-13, atol=1e-15)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(shapes, st.integers(0, 99))
def test_operations_against_central_differences(shape, seed):
    torch.manual_seed(seed)
    rows, size = shape
    x, dy = torch.randn(rows, size, dtype=torch.float64), torch.randn(rows, size, dtype=torch.float64)
    close = dict(rtol=1e-6, atol=1e-8)

    assert torch.allclose(ops.softmax_backward(dy, ops.softmax(x)), central_difference(ops.softmax, x, dy), **close)

    w, b = torch.randn(size, dtype=torch.float64), torch.randn(size, dtype=torch.float64)
    dw, db = torch.zeros_like(w), torch.zeros_like(b)
    dx = ops.layer_norm_backward(dy, *ops.standardize_(x.clone(), 0.1), w, dw, db)
    assert torch.allclose(dx, central_difference(lambda x: ops.layer_norm(x, w, b, 0.1), x, dy), **close)
    assert torch.allclose(dw, central_difference(lambda w: ops.layer_norm(x, w, b, 0.1), w, dy), **close)
    assert torch.allclose(db, central_difference(lambda b: ops.layer_norm(x, w, b, 0.1), b, dy), **close)

    weight = torch.randn(3, size, dtype=torch.float64)
    bias, dy3 = torch.randn(3, dtype=torch.float64), torch.randn(rows, 3, dtype=torch.float64)
    dweight, dbias = torch.zeros(size, 3, dtype=torch.float64).t(), torch.zeros_like(bias)
    dx = ops.linear_backward(dy3, x, weight, dweight, dbias)
    assert torch.allclose(dx, central_difference(lambda x: ops.linear(x, weight, bias), x, dy3), **close)
    assert torch.allclose(dweight, central_difference(lambda w: ops.linear(x, w, bias), weight, dy3), **close)
    assert torch.allclose(dbias, central_difference(lambda b: ops.linear(x, weight, b), bias, dy3), **close)

    ids = torch.randint(0, 5, (rows,))
    table, dtable = torch.randn(5, size, dtype=torch.float64), torch.zeros(5, size, dtype=torch.float64)
    ops.embedding_backward(dy, ids, dtable)
    assert torch.allclose(dtable, central_difference(lambda table: ops.embedding(ids, table), table, dy), **close)
    padded = torch.zeros_like(dtable)
    ops.embedding_backward(dy, ids, padded, padding_id=1)
    assert not padded[1].any() and torch.equal(padded[[0, 2, 3, 4]], dtable[[0, 2, 3, 4]])
