"""Gradients by hand against autograd on transformers' modules, and against central differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import transformers
from twins import CONFIGS, fill, ids_and_mask, twins

import realm_min
from realm_min.model import fast, ops, parameters, realm

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

    def test_knowledge_encoder_with_a_cotangent_of_its_logits(self, name):
        theirs, ours = models(name, "RealmKnowledgeAugEncoder")
        config = ours.config
        ids, mask, types = ids_and_mask(config, config.num_candidates, 9)
        inputs = dict(
            input_ids=ids, attention_mask=mask, token_type_ids=types, labels=torch.arange(9)[None],
            relevance_score=torch.randn(1, config.num_candidates),
        )  # fmt: skip
        output = theirs(**inputs)
        cotangent = torch.randn(output.logits.shape) / 100
        (3 * output.loss + (output.logits * cotangent).sum()).backward()
        ours(**inputs)
        ours.backward(loss=torch.tensor(3.0), logits=cotangent)
        assert_same_gradients(theirs, ours)

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


def test_a_batch_of_questions_adds_the_gradients_of_each(vocabulary):
    model = realm_min.RealmForOpenQA(realm_min.RealmConfig(**CONFIGS["one-layer"] | dict(vocab_size=30522)))
    fill(model)
    model = model.to(torch.float64).eval()
    records = np.array([f"The capital of country {i} is city {i * 7}.".encode() for i in range(9)], dtype=object)
    model.retriever = realm_min.RealmRetriever(records, realm_min.RealmTokenizerFast(str(vocabulary)))
    questions, answers = torch.tensor([[101, 2054, 102], [101, 2040, 102]]), [[[2103]], [[3007], [2406]]]
    weights = torch.tensor([1.0, 1.0], dtype=torch.float64)
    for given_weights in (False, True):
        losses, scores = [], []
        model.zero_grads()
        for i in range(2):
            losses.append(model(questions[i : i + 1], answer_ids=answers[i]).reader_output.loss)
            scores.append(model.backward(loss=weights[i])["relevance_score"])
        expected = {key: grad.clone() for key, grad in model.grads.items()}
        model.zero_grads()
        output = model(questions, answer_ids=answers).reader_output
        found = model.backward(loss=weights) if given_weights else model.backward()
        assert torch.allclose(torch.stack([o.loss for o in output]), torch.stack(losses), rtol=1e-12)
        assert torch.allclose(found["relevance_score"], torch.stack(scores), rtol=1e-10, atol=1e-14)
        for key, grad in expected.items():
            assert torch.allclose(model.grads[key], grad, rtol=1e-10, atol=1e-14), key
        weights = torch.tensor([0.25, 3.0], dtype=torch.float64)


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
        model.seed_dropout(5)
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


def model_inputs(name, config, seed=0):
    """A model with random weights in training mode and the inputs of a call that gives it a gradient."""
    model = getattr(realm_min, name)(config, seed=seed)
    fill(model, seed)
    generator = torch.Generator().manual_seed(seed)
    beam, candidates, tokens = config.reader_beam_size, config.num_candidates, 10
    ids, mask, types = ids_and_mask(config, beam, tokens, seed)
    inputs = dict(input_ids=ids, attention_mask=mask, token_type_ids=types)
    if name == "RealmScorer":
        cand, cand_mask, _ = (x.view(beam, candidates, 8) for x in ids_and_mask(config, beam * candidates, 8, seed))
        inputs |= dict(candidate_input_ids=cand, candidate_attention_mask=cand_mask)
    if name == "RealmKnowledgeAugEncoder":
        ids, mask, types = ids_and_mask(config, 2 * candidates, tokens, seed)
        labels = torch.randint(0, config.vocab_size, (2, tokens), generator=generator)
        inputs = dict(
            input_ids=ids, attention_mask=mask, token_type_ids=types, labels=labels.masked_fill(labels % 5 == 0, -100),
            relevance_score=torch.randn(2, candidates, generator=generator), mlm_mask=(labels % 2).float(),
        )  # fmt: skip
    if name == "RealmReader":
        starts = torch.full((config.searcher_beam_size, 2), -1)
        starts[:beam, 0] = 4
        inputs |= dict(
            relevance_score=torch.randn(config.searcher_beam_size, generator=generator),
            block_mask=torch.ones(config.searcher_beam_size, tokens, dtype=torch.bool),
            start_positions=starts, end_positions=starts + 1, has_answers=starts[:, 0] > 0,
        )  # fmt: skip
    return model, inputs


COTANGENTS = {"RealmEmbedder": "projected_score", "RealmScorer": "relevance_score"}


def backward(model, output):
    """Of the loss, or with a cotangent of sines for a model that has none."""
    name = COTANGENTS.get(type(model).__name__)
    if name is None:
        return model.backward()
    return model.backward(**{name: torch.arange(output[name].numel(), dtype=model.dtype).sin().view_as(output[name])})


@pytest.mark.parametrize("name", ["RealmEmbedder", "RealmScorer", "RealmKnowledgeAugEncoder", "RealmReader"])
@pytest.mark.parametrize("training", [True, False])
def test_layers_computed_again_give_the_same_bits(name, training):
    gradients = []
    for checkpoint in (False, True):
        values = CONFIGS["three-layers"] | dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
        model, inputs = model_inputs(name, realm_min.RealmConfig(**values))
        model.train(training).checkpoint_layers = checkpoint
        assert all(part.checkpoint_layers == checkpoint for part in model.parts.values())
        found = []
        for _ in range(2):  # the second step's dropout goes on from the same state
            dinputs = backward(model, model(**inputs))
            found.append({**dinputs, **{key: grad.clone() for key, grad in model.grads.items()}})
        gradients.append(found)
    for plain, again in zip(*gradients, strict=True):
        assert all(torch.equal(plain[key], again[key]) for key in plain)


def storages(found, value):
    """The storages of all tensors in nested data, address -> bytes."""
    if isinstance(value, torch.Tensor):
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    elif isinstance(value, dict):
        for part in value.values():
            storages(found, part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            storages(found, part)
    return found


@pytest.mark.parametrize("dropout", [0.1, 0.0])
@pytest.mark.parametrize("act", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("batch,tokens", [(4, 24), (2, 96), (6, 50)])
@pytest.mark.parametrize("name", ["RealmKnowledgeAugEncoder", "RealmReader"])
def test_a_training_step_keeps_no_more_than_autograd(name, batch, tokens, act, dropout):
    values = CONFIGS["three-layers"] | dict(
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, hidden_act=act, num_candidates=batch,
        reader_beam_size=batch, searcher_beam_size=batch, vocab_size=500,
    )  # fmt: skip
    theirs, ours = twins("three-layers", name, **values)
    theirs.train(), ours.train()
    ids = torch.randint(0, 500, (batch, tokens))
    if name == "RealmReader":
        starts = torch.full((batch, 1), 5)
        inputs = dict(
            relevance_score=torch.randn(batch), block_mask=torch.ones(batch, tokens, dtype=torch.bool),
            start_positions=starts, end_positions=starts, has_answers=starts[:, 0] > 0,
        )  # fmt: skip
    else:
        labels = torch.full((1, tokens), -100)
        labels[0, 3:7] = 9
        inputs = dict(relevance_score=torch.randn(1, batch), labels=labels, mlm_mask=(labels > 0).float())
    inputs |= dict(attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: storages(saved, tensor) and tensor, lambda x: x):
        loss = theirs(ids, **inputs).loss
    ours(ids, **inputs)
    weights = storages(storages({}, list(theirs.parameters())), dict(ours.state_dict()))
    theirs_bytes, ours_bytes = (
        sum(size for address, size in kept.items() if address not in weights)
        for kept in (saved, storages({}, ours._last.kept))
    )
    assert 0 < ours_bytes <= theirs_bytes, ours_bytes / theirs_bytes
    ours.checkpoint_layers = True
    ours(ids, **inputs)
    again_bytes = sum(size for address, size in storages({}, ours._last.kept).items() if address not in weights)
    assert again_bytes < 0.6 * ours_bytes and loss.requires_grad


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
@given(shapes, st.integers(0, 99))
def test_losses_against_central_differences(shape, seed):
    torch.manual_seed(seed)
    rows, size = shape
    x, dy = torch.randn(rows, size, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
    targets = torch.randint(0, size, (rows,))
    found = ops.cross_entropy_backward(dy, x, targets)
    expected = central_difference(lambda x: ops.cross_entropy(x, targets), x, dy)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8)

    correct = torch.rand(rows, size) < 0.3  # in some rows none is
    _, found = realm.loss_of_correct(x, correct)
    expected = central_difference(lambda x: realm.loss_of_correct(x, correct)[0], x, torch.ones(()))
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8)


@settings(deadline=None, derandomize=True, max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4), heads=st.integers(1, 3), seed=st.integers(0, 99),
    rate=st.sampled_from([0.0, 0.4]), masked=st.booleans(), first=st.booleans(), at_once=st.sampled_from([1, 20, 1000]),
)  # fmt: skip
def test_attention_against_central_differences(lengths, heads, seed, rate, masked, first, at_once):
    """Sequences of drawn lengths, dropout, head masks, first positions alone; heads and sequences in any portions."""
    config = realm_min.RealmConfig(
        hidden_size=2 * heads, num_attention_heads=heads, num_hidden_layers=1, intermediate_size=1, vocab_size=1,
        max_position_embeddings=1, attention_probs_dropout_prob=rate, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    name, size, before = "realm.encoder.layer.0.attention.self", 2 * heads, fast.SCORES_AT_ONCE
    only = {key: shape for key, shape in realm_min.RealmEmbedder.shapes(config).items() if key.startswith(name)}
    p = parameters.allocate(only, torch.float64, "cpu")
    grads = parameters.allocate_gradients(only, torch.float64, "cpu")
    for tensor in p.values():
        tensor.normal_()
    x = torch.randn(sum(lengths), size, dtype=torch.float64)
    head_mask = torch.rand(heads, dtype=torch.float64) if masked else None
    queries = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths) if first else None
    dy = torch.randn(len(lengths) if first else len(x), size, dtype=torch.float64)

    def attend_keeping(x):
        streams = fast.dropout_streams(config, [seed + i for i in range(len(lengths))] if rate else None, 1, x.device)
        how = fast.LayerRun(streams, head_mask, queries, keep=True, output_attentions=False)
        context, _, kept = fast.attend(p, config, name, x, fast.Rows(lengths, None, None), how)
        return context, kept

    def attend(x):
        return attend_keeping(x)[0]

    try:
        fast.SCORES_AT_ONCE = at_once
        dx = fast.attend_backward(dy, attend_keeping(x)[1], grads)
        assert torch.allclose(dx, central_difference(attend, x, dy), rtol=1e-6, atol=1e-7)
        for key, tensor in p.items():

            def with_weight(value, tensor=tensor):
                kept = tensor.clone()
                tensor.copy_(value)
                y = attend(x)
                tensor.copy_(kept)
                return y

            expected = central_difference(with_weight, tensor.clone(memory_format=torch.contiguous_format), dy)
            assert torch.allclose(grads[key], expected, rtol=1e-6, atol=1e-7), key
    finally:
        fast.SCORES_AT_ONCE = before
