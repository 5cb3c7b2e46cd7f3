"""The default model's last stages: what is learnt stays on the grid of the file, and a stopped stage goes on."""

import numpy as np
import pytest
import torch
import tune_default as recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from train_default import Reader, own_keys, read_weights

from realm_min.config import RealmConfig
from realm_min.files.packed import load_packed, pack
from realm_min.interface.embedder import RealmEmbedder
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.text.corpus import Document, cut_blocks
from realm_min.text.tokenizer import RealmTokenizerFast

DOCUMENTS = [Document("Uruguay", "Capital: Montevideo."), Document("Kenya", "Highest point: Mount Kenya 5,199 m.")]
SIZES = dict(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, retriever_proj_size=8,
    span_hidden_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def path(vocabulary, tmp_path_factory):
    tokenizer = RealmTokenizerFast(vocab_file=vocabulary)
    count = len(list(cut_blocks(DOCUMENTS, tokenizer)))
    config = RealmConfig(**SIZES, num_block_records=count, searcher_beam_size=2, reader_beam_size=2)
    model = RealmForOpenQA(config, seed=3).eval()
    words = model.parts["embedder"].p[recipe.WORDS]
    model.parts["reader"].p[recipe.WORDS].copy_(words)
    model.block_emb.normal_(generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("packed") / "model.realm"
    pack(model, tokenizer, DOCUMENTS, path, corpus="two countries", budget=60_000, common_pieces=0)
    return path


def embedder(path, rounded=True):
    """A learner of the file's embedder, in a model of the whole vocabulary."""
    whole = RealmEmbedder(RealmConfig(**SIZES), seed=0).eval()
    return recipe.Learner(whole, recipe.read_file(path), "embedder", rounded)


def test_a_file_comes_back_as_it_was(path, tmp_path):
    file = recipe.read_file(path)
    recipe.write_file(tmp_path / "same.realm", file, {}, file.model.block_emb)
    before, after = (load_packed(each)[0].state_dict() for each in (path, tmp_path / "same.realm"))
    for key, tensor in before.items():
        if key != recipe.BLOCKS:
            torch.testing.assert_close(after[key], tensor, rtol=0, atol=0, msg=key)
    torch.testing.assert_close(after[recipe.BLOCKS], before[recipe.BLOCKS], rtol=0, atol=0.2)


def test_what_changed_is_written_and_nothing_else(path, tmp_path):
    file, learner = recipe.read_file(path), embedder(path)
    for tensor in learner.free.values():
        tensor.mul_(0.7)
    z = torch.randn(file.model.block_emb.shape, generator=torch.Generator().manual_seed(1))
    recipe.write_file(tmp_path / "new.realm", file, learner.stored(), z)
    before, after = (load_packed(each)[0].state_dict() for each in (path, tmp_path / "new.realm"))
    exact = RealmEmbedder(RealmConfig(**SIZES), seed=1).eval()
    learner.write(exact)
    for key, tensor in after.items():
        name = key.removeprefix("embedder.")
        if key != name and name in learner.free:
            half = 0 if name in learner.steps else 1e-3  # what has no steps is kept in half precision
            torch.testing.assert_close(tensor, exact.p[name], rtol=half, atol=1e-7 if half else 0, msg=key)
        elif key == recipe.BLOCKS:
            assert ((tensor - z).abs().amax(1) <= 0.51 * z.std(1, correction=0) / 8).all()
        else:
            torch.testing.assert_close(tensor, before[key], rtol=0, atol=0, msg=key)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_a_weight_changes_where_its_copy_is_half_a_step_away(path, seed, moved):
    learner = embedder(path)
    key = "realm.encoder.layer.1.attention.output.dense.weight"
    steps, before = learner.steps[key].of_all(), learner.free[key].clone()
    codes = recipe.codes_of(before, learner.steps[key])
    where = torch.rand(before.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    learner.free[key].add_(moved * steps * where)
    learner.write(learner.model)
    expected = (torch.where(where, (codes + moved).round(), codes).clamp(-127, 127) * steps).to(torch.bfloat16)
    away = abs(moved % 1 - 0.5) > 1e-3  # from where float32 decides
    if away:
        torch.testing.assert_close(learner.model.p[key], expected, rtol=0, atol=0)
        assert where.any() and (abs(moved) < 0.5) == torch.equal(learner.model.p[key], (codes * steps).bfloat16())


@pytest.mark.parametrize("rounded", [True, False])
def test_a_free_weight_moves_by_less_than_a_step(path, tmp_path, rounded):
    learner = embedder(path, rounded)
    key = "realm.encoder.layer.0.attention.self.query.weight"
    before, steps = learner.free[key].clone(), recipe.read_file(path).steps[f"embedder.{key}"].of_all()
    learner.free[key].add_(0.3 * steps)
    learner.write(learner.model)
    expected = before if rounded else before + 0.3 * steps
    torch.testing.assert_close(learner.model.p[key], expected.bfloat16(), rtol=0, atol=0)
    learner.write_free(tmp_path)
    other = RealmEmbedder(RealmConfig(**SIZES), seed=5).eval()
    read_weights(other, tmp_path / "embedder.safetensors")
    torch.testing.assert_close(other.p[key], before + 0.3 * steps, rtol=0, atol=0)
    for name in own_keys(other):
        torch.testing.assert_close(other.p[name], learner.free[name], rtol=0, atol=0, msg=name)


def test_a_row_without_a_step_stays_zero():
    steps = recipe.Steps(np.array([0.0, 0.5], "<f2"), np.ones(2, "<f2"))
    codes = recipe.codes_of(torch.tensor([[0.0, 0.3], [0.8, -80.0]]), steps)
    assert codes.tolist() == [[0, 0], [2, -127]]


class Interrupted(Exception):
    pass


def test_a_stage_that_was_stopped_ends_as_if_it_had_not_been(path, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "KEEP_EVERY", 0)
    few = Reader(steps=6, learning_rate=0.05)
    key = "realm.encoder.layer.0.intermediate.dense.weight"

    def run(out, stop=None, steps=6):
        out.mkdir(exist_ok=True)
        learner, lines, z = embedder(path), [], torch.zeros(3, 8)

        def step(number):
            if number == stop:
                raise Interrupted
            z[number % 3] += number
            generator = torch.Generator().manual_seed(number)
            for name in learner.free:
                grad = learner.model.own_grads[name]
                grad.add_(torch.randn(grad.shape, generator=generator).to(grad))
            return torch.tensor(1.0), torch.tensor(2.0), 4

        settings = few._replace(steps=steps)
        ran = recipe.learn(learner, out, settings, step, lambda: None, lambda *line: lines.append(line), {"z": z})
        lines.append(ran)
        return learner, lines, z

    start, (whole, _, z) = embedder(path).free[key], run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop=4)
    resumed, lines, z_resumed = run(tmp_path / "parts")
    assert z[:, 0].tolist() == z_resumed[:, 0].tolist() == [3, 5, 7]
    assert ("embedder", "goes on after step", 4) in lines
    for name, tensor in whole.free.items():
        torch.testing.assert_close(resumed.free[name], tensor, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(resumed.model.p[name], whole.model.p[name], rtol=0, atol=0, msg=name)
    assert (whole.free[key] - start).abs().max() > 0.01
    again, lines, z_again = run(tmp_path / "parts", stop=0)  # done: nothing is run
    assert torch.equal(again.free[key], whole.free[key]) and lines == [("embedder", "goes on after step", 6), False]
    assert torch.equal(z_again, z)

    with pytest.raises(Interrupted):  # asked for more: from where it ended, which is kept until the end of the new one
        run(tmp_path / "parts", stop=8, steps=9)
    longer, lines, z_longer = run(tmp_path / "parts", steps=9)
    assert lines[0] == ("embedder", "goes on after step", 8) and lines[-1] is True
    assert z_longer[:, 0].tolist() == [9, 12, 15]
    in_one, _, _ = run(tmp_path / "whole", steps=9)
    assert torch.equal(longer.free[key], in_one.free[key]) and not torch.equal(longer.free[key], whole.free[key])
    assert run(tmp_path / "parts", stop=0, steps=9)[1][-1] is False
