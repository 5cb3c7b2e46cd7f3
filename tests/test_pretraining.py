"""Pre-training: the marginal losses, one step against autograd, and runs that are killed and go on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_cases import config_values, fill, to_numpy

import realm_min
from realm_min import numpy_reference as reference
from realm_min.knowledge_encoder import marginal_loss, marginal_loss_backward
from realm_min.numpy_reference import central_difference

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
