"""The optimizer against torch's AdamW, its schedule, clipping and state; the memory that steps use again."""

import sys

import processes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_min import RealmConfig, RealmEmbedder, RealmReader, textbook
from realm_min.learn.optimizer import AdamW, fetched, global_norm, norms_of


def parameters(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"dense.weight": (3, 5), "dense.bias": (3,), "LayerNorm.weight": (5,), "word_embeddings.weight": (7, 2)}
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    seed=st.integers(0, 99),
    rate=st.floats(1e-5, 0.1),
    decay=st.floats(0, 0.3),
    warmup=st.integers(0, 4),
    max_norm=st.floats(0.01, 100),
)
def test_equals_torch_with_schedule_and_clipping(seed, rate, decay, warmup, max_norm):
    steps, ours = 7, parameters(seed)
    theirs = {name: tensor.clone().requires_grad_() for name, tensor in ours.items()}
    decayed = [tensor for name, tensor in theirs.items() if name in ("dense.weight", "word_embeddings.weight")]
    rest = [tensor for name, tensor in theirs.items() if name not in ("dense.weight", "word_embeddings.weight")]
    peer = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=decay), dict(params=rest, weight_decay=0.0)], lr=rate, eps=1e-6
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        peer, lambda i: (i + 1) / warmup if i < warmup else (steps - i) / (steps - warmup)
    )
    optimizer = AdamW(rate, steps, warmup, decay, max_grad_norm=max_norm)
    for step in range(steps):
        grads = parameters(1000 * seed + step)
        for name, tensor in theirs.items():
            tensor.grad = grads[name].clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm).item()
        peer.step(), schedule.step()
        assert abs(optimizer.update(ours, grads) / norm - 1) < 1e-12
        for name, tensor in theirs.items():
            # torch adds 1e-6 to the norm that it divides by
            assert torch.allclose(ours[name], tensor, rtol=1e-4, atol=1e-8 + 1e-5 * rate), (step, name)


@pytest.mark.parametrize("warmup", [0, 3])
def test_as_berts_own_code_has_it_is_the_books(warmup):
    """No correction of the averages; step 0 of a warm-up has a rate of 0, and the decay counts from step 0."""
    steps, rate = 7, 0.1
    rates = [rate * (i / warmup if i < warmup else 1 - i / steps) for i in range(steps)]
    assert rates[warmup] == rate * (1 - warmup / steps)
    ours, moments = parameters(1), {}
    theirs = {name: tensor.numpy().copy() for name, tensor in ours.items()}
    optimizer = AdamW(rate, steps, warmup, bert=True)
    for step in range(steps):
        assert optimizer.rate() == pytest.approx(rates[step], rel=1e-12)
        grads = parameters(50 + step)
        optimizer.update(ours, grads)
        textbook.adamw(theirs, {name: grad.numpy() for name, grad in grads.items()}, moments, rates[step])
        for name, value in theirs.items():
            assert torch.allclose(ours[name], torch.from_numpy(value), rtol=1e-10, atol=1e-12), (step, name)


def test_tied_weights_move_once():
    tied = torch.ones(2, 2)
    grad = torch.ones(2, 2)
    both, one = {"a.weight": tied, "b.weight": tied}, {"a.weight": torch.ones(2, 2)}
    AdamW(0.1, 10).update(both, {"a.weight": grad, "b.weight": grad})
    AdamW(0.1, 10).update(one, {"a.weight": torch.ones(2, 2)})
    assert torch.equal(tied, one["a.weight"])


@settings(deadline=None, derandomize=True, max_examples=50)
@given(seed=st.integers(0, 99), rows=st.integers(1, 40), words=st.integers(1, 6), restart=st.booleans())
def test_a_table_of_embeddings_moves_as_any_matrix(seed, rows, words, restart):
    """Where gradients reach few of its rows, only those are computed; not a bit may differ."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(rows, 3, generator=generator)
    weights = {"embeddings.weight": start.clone(), "dense.weight": start.clone()}
    options = dict(learning_rate=0.01, total_steps=20, max_grad_norm=1e9)  # the norm, added up in another order
    optimizers = [AdamW(**options) for _ in weights]
    for _ in range(12):
        grad = torch.zeros(rows, 3)
        reached = torch.randint(rows, (words,), generator=generator)
        grad[reached] = torch.randn(words, 3, generator=generator)
        for optimizer, (name, weight) in zip(optimizers, weights.items(), strict=True):
            optimizer.update({name: weight}, {name: grad})
        assert torch.equal(*weights.values())
        if restart:
            states = [optimizer.state_dict() for optimizer in optimizers]
            optimizers = [AdamW(**options) for _ in weights]
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)


def test_what_nothing_reads_is_left_alone():
    sizes = dict(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = RealmReader(RealmConfig(**sizes, max_position_embeddings=12, span_hidden_size=4))
    grads = model.grads
    assert grads.keys() == model.state_dict().keys()
    unread = [name for name in grads if name.startswith(RealmReader.unread)]
    assert "cls.predictions.decoder.weight" in unread and "realm.pooler.dense.weight" in unread
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, grad in grads.items():
        if name in unread:
            assert not grad.any() and grad.untyped_storage().nbytes() == 4, name
        else:
            grad.fill_(1e-3)
    AdamW(0.01, 10).update(model.state_dict(), grads)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in unread), name
    model.zero_grads()
    assert not any(grad.any() for grad in model.grads.values())


def test_state_goes_on_where_it_stopped():
    straight, resumed, optimizer = parameters(0), parameters(0), AdamW(0.01, 20, 3)
    for step in range(10):
        optimizer.update(straight, parameters(step + 1))
    first = AdamW(0.01, 20, 3)
    for step in range(4):
        first.update(resumed, parameters(step + 1))
    second = AdamW(0.01, 20, 3)
    second.load_state_dict({key: tensor.clone() for key, tensor in first.state_dict().items()})
    for step in range(4, 10):
        second.update(resumed, parameters(step + 1))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    with pytest.raises(ValueError, match="missing step"):
        second.load_state_dict({})
    with pytest.raises(ValueError, match=r"missing \['x'\]"):
        second.load_state_dict({"step": torch.tensor(1), "mean.x": torch.ones(1)})


def test_a_model_learns():
    """Ten steps on one batch bring an embedding nearer to its target."""
    config = RealmConfig(
        hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=40, vocab_size=60,
        retriever_proj_size=6,
    )  # fmt: skip
    model, ids, target = RealmEmbedder(config), torch.arange(20).view(4, 5), torch.randn(4, 6)
    optimizer, losses = AdamW(0.01, 30), []
    for _ in range(10):
        difference = model(ids).projected_score - target
        losses.append((difference**2).sum().item() / 2)
        model.zero_grads()
        model.backward(projected_score=difference)
        optimizer.update(model.state_dict(), model.grads)
    assert losses[-1] < 0.8 * losses[0]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=3 of total_steps=2"):
        AdamW(0.1, 2, 3)
    with pytest.raises(ValueError, match="learning_rate=0 must be above 0"):
        AdamW(0, 2)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        AdamW(0.1, 2, weight_decay=-1)
    weights, optimizer = parameters(0), AdamW(0.1, 2)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with pytest.raises(FloatingPointError, match="global norm is nan"):
        optimizer.update(weights, {name: tensor * float("nan") for name, tensor in weights.items()})
    assert all(torch.equal(weights[name], before[name]) for name in weights) and optimizer.step == 0


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 700)), min_size=1, max_size=4), st.booleans())
def test_global_norm(shapes, transposed):
    grads = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    grads = [grad.t() for grad in grads] if transposed else grads
    expected = torch.cat([grad.flatten() for grad in grads]).norm().item()
    assert abs(global_norm(norm for grad in grads for norm in fetched(norms_of(grad))) / expected - 1) < 1e-12


def test_what_no_loss_reaches_stays_as_it_is():
    """As torch's AdamW leaves out a parameter without a gradient; one that had a gradient once decays on."""
    weights, optimizer = parameters(0), AdamW(0.1, 10)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    grads = parameters(1)
    grads["dense.weight"].zero_()
    optimizer.update(weights, grads)
    assert torch.equal(weights["dense.weight"], before["dense.weight"]) and "dense.weight" not in optimizer.mean
    assert not torch.equal(weights["word_embeddings.weight"], before["word_embeddings.weight"])
    once = weights["word_embeddings.weight"].clone()
    optimizer.update(weights, {name: torch.zeros_like(grad) for name, grad in grads.items()})
    assert not torch.equal(weights["word_embeddings.weight"], once)


def test_pieces_and_layouts_change_nothing():
    """A tensor larger than a piece, transposed or a slice of another as the models store theirs, equals plain ones."""
    stored = torch.randn(700, 900)
    weight, grad = stored[:, 300:].t(), torch.randn(700, 600).t()  # [600, 700]
    plain = {"a.weight": weight.clone(memory_format=torch.contiguous_format)}
    optimizer, other = AdamW(0.1, 10), AdamW(0.1, 10)
    for _ in range(2):
        optimizer.update({"a.weight": weight}, {"a.weight": grad})
        other.update(plain, {"a.weight": grad.contiguous()})
    assert (weight - plain["a.weight"]).abs().max() < 1e-6


def test_freed_memory_is_used_again():
    """Under glibc a large block comes to cost no page faults, once the heap has room; elsewhere nothing was changed."""
    program = """
import resource, torch
from realm_min.jobs.memory import keep_freed_memory
kept = keep_freed_memory()
torch.zeros(1 << 24).add_(1)
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(10):  # something small may come to lie in the room that a block leaves
    torch.zeros(1 << 24).add_(1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(int(kept), min(after - before for before, after in zip(faults, faults[1:])))
"""
    [(out, _)] = processes.run([sys.executable, "-c", program])
    kept, faults = map(int, out.split())
    assert not kept or faults < 500, faults  # 64 MB are 16,384 pages
