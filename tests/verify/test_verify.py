"""`realm-min verify`: right checkpoints pass, and each kind of damage is pointed to where it is."""

import io
import json
import os
import sys

import numpy as np
import processes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import needs_oracle, transformers
from rich.console import Console

from realm_min import (
    RealmConfig,
    RealmEmbedder,
    RealmKnowledgeAugEncoder,
    RealmReader,
    RealmRetriever,
    RealmScorer,
    RealmTokenizer,
)
from realm_min.app import cli
from realm_min.app.cli import main
from realm_min.files.checkpoint import read_state_dict, write_folder
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.verify import compare, read_checkpoint, run, verify
from realm_min.verify.known import KNOWN, compare_known, recognise_known
from realm_min.verify.measure import Error, choice_error, choose, error_of, weight_problem
from realm_min.verify.reference_path import ReferencePath
from realm_min.verify.report import print_report
from realm_min.verify.stages import PARTS, Stage, inputs_of, recognise, stages_of
from realm_min.verify.torch_path import TorchPath

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"who is the pioneer in modern computer science ? alan mathison turing was a of".split()]
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "initializer_range": 0.2,  # such that every weight matters to the result
    "max_position_embeddings": 50,
    "retriever_proj_size": 16,
    "num_candidates": 3,
    "num_block_records": 30,
    "searcher_beam_size": 5,
    "reader_beam_size": 3,
    "reader_seq_len": 40,
    "span_hidden_size": 13,
    "max_span_width": 4,
    "pad_token_id": 0,
}
CLASSES = {c.__name__: c for c in (RealmEmbedder, RealmScorer, RealmKnowledgeAugEncoder, RealmReader, RealmForOpenQA)}


def make(kind, **sizes):
    """A model with random weights, biases and LayerNorms included."""
    model = CLASSES[kind](RealmConfig(**(SIZES | sizes)), seed=1)
    if kind == "RealmScorer":
        model.query_embedder = RealmEmbedder(model.config, seed=2)
    generator = torch.Generator().manual_seed(3)
    for key, tensor in model.state_dict().items():
        if tensor.dim() == 1 or key == "block_emb":
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.2)
    return model


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small are slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind; the one that answers questions holds a tokenizer and blocks too."""
    found = {}
    for kind in PARTS:
        found[kind] = tmp_path_factory.mktemp(kind)
        make(kind).save_pretrained(found[kind])
        (found[kind] / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    blocks = [f"alan mathison turing was a pioneer of computer science {WORDS[5 + i % 9]}".encode() for i in range(30)]
    tokenizer = RealmTokenizer.from_pretrained(found["RealmForOpenQA"])
    RealmRetriever(blocks, tokenizer).save_pretrained(found["RealmForOpenQA"])
    return found


def damaged(folder, tmp_path, key, damage):
    """A copy of a checkpoint in which `damage` was done to the tensor under `key`."""
    tensors = {name: tensor.clone() for name, tensor in read_state_dict(folder).items()}
    damage(tensors[key])
    config = RealmConfig.from_pretrained(folder)
    write_folder(tmp_path / "damaged", config, tensors)
    return tmp_path / "damaged"


def options(*arguments):
    return cli.parser().parse_args(["verify", *map(str, arguments)])


# --- Right checkpoints ------------------------------------------------------------------------------------------------


@needs_oracle
@pytest.mark.parametrize("kind", PARTS)
def test_every_stage_of_a_right_checkpoint_agrees_with_float64(folders, kind):
    report = verify(folders[kind])
    assert report.kind == kind and report.passed and report.first is None
    assert report.paths[:2] == ["float32", "float64"] and "transformers" in report.paths
    numbers = [row for row in report.rows if not row.stage.choices]
    for row in numbers:
        tolerance = 1e-5 if "loss" in row.stage.label else 2e-6
        for path in ("float32", "transformers"):
            assert row.errors[path].accumulated.relative <= tolerance, (row.stage.name, path)
        assert row.errors["float64"].accumulated.relative <= 1e-11, row.stage.name
    largest = {
        path: max(row.errors[path].accumulated.relative for row in numbers) for path in ("float32", "transformers")
    }
    # Both round: an error of 0 would mean that nothing was compared.
    assert 1e-8 < largest["transformers"] / 10 < largest["float32"] < 10 * largest["transformers"]


@pytest.mark.parametrize("kind", PARTS)
def test_every_layer_and_head_is_a_stage_and_every_weight_that_is_read_belongs_to_one(folders, kind):
    _, config, state_dict = read_checkpoint(folders[kind])
    stages = stages_of(kind, config)
    labels = [stage.label for stage in stages]
    for part in PARTS[kind]:
        of_part = [stage.label for stage in stages if stage.part == part]
        assert of_part[:3] == ["embeddings", "layer 0 attention", "layer 0 MLP"] and "layer 2 MLP" in of_part
    heads = {
        "RealmEmbedder": ["pooler", "projection"],
        "RealmScorer": ["pooler", "projection", "relevance f(x, z)"],
        "RealmKnowledgeAugEncoder": ["MLM logits", "marginal MLM loss"],
        "RealmReader": ["span logits", "retriever, reader loss", "answer"],
        "RealmForOpenQA": ["pooler", "projection", "retrieved ids", "span logits", "retriever, reader loss", "answer"],
    }
    assert set(heads[kind]) <= set(labels)
    claims = {
        key: [stage.name for stage in stages if stage.weights and key.startswith(stage.weights)] for key in state_dict
    }
    assert all(len(names) <= 1 for names in claims.values())
    # Stored, but read by no forward: the MLM head of embedder and reader, the pooler of what reads tokens.
    unread = ("cls.predictions", "pooler")
    assert all(names or any(word in key for word in unread) for key, names in claims.items())


def test_the_text_is_read_and_the_answer_is_that_of_the_model(folders):
    folder = folders["RealmForOpenQA"]
    question = "who is the pioneer in modern computer science ?"
    report = verify(folder, text=question)
    assert report.passed
    model = RealmForOpenQA.from_pretrained(folder, retriever=RealmRetriever.from_pretrained(folder))
    answer = model.answer([question])[0]
    assert (report.answer.text, report.answer.block) == (answer.text, answer.blocks[answer.block_rank].id)
    ids = RealmTokenizer.from_pretrained(folder)(question)["input_ids"]
    inputs = inputs_of("RealmEmbedder", model.config, 0, ids)
    assert inputs[":ids"][0, : len(ids)].tolist() == ids and inputs[":mask"][0].sum() == len(ids)


def test_an_embedder_stored_once_serves_queries_too(tmp_path):
    CLASSES["RealmScorer"](RealmConfig(**SIZES)).save_pretrained(tmp_path)
    assert not any(key.startswith("query_embedder.") for key in read_state_dict(tmp_path))
    assert verify(tmp_path).passed


@pytest.mark.parametrize("safe", [True, False])
def test_folders_of_transformers_are_verified(tmp_path, safe):
    torch.manual_seed(0)
    model = transformers.RealmKnowledgeAugEncoder(transformers.RealmConfig(**SIZES))
    model.save_pretrained(tmp_path, safe_serialization=safe)
    assert verify(tmp_path).passed


def test_tied_weights_stored_under_their_other_name_are_found(folders, tmp_path):
    tensors = dict(read_state_dict(folders["RealmKnowledgeAugEncoder"]))
    tensors["cls.predictions.decoder.weight"] = tensors.pop("realm.embeddings.word_embeddings.weight")
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    write_folder(tmp_path, RealmConfig.from_pretrained(folders["RealmKnowledgeAugEncoder"]), tensors)
    assert verify(tmp_path).passed


def test_half_precision_weights_are_verified_as_they_are(tmp_path, folders):
    """Beside a configuration that says of other models what transformers cannot read, or takes gigabytes to."""
    others = {"num_labels": 2**31, "torch_dtype": "os.system", "label2id": 5}
    tensors = {key: tensor.bfloat16() for key, tensor in read_state_dict(folders["RealmReader"]).items()}
    values = RealmConfig.from_pretrained(folders["RealmReader"]).to_dict()
    write_folder(tmp_path, RealmConfig.from_dict(values | others), tensors)
    assert verify(tmp_path).passed


@pytest.mark.parametrize("kind", PARTS)
def test_the_kind_is_recognised_by_the_configuration_or_by_the_keys(folders, kind):
    keys = read_state_dict(folders[kind]).keys()
    assert recognise([kind], []) == kind == recognise(None, keys) == recognise(["SomethingElse"], keys)


def test_keys_of_no_realm_model_are_refused():
    with pytest.raises(ValueError, match="no REALM model has the keys"):
        recognise(None, ["model.layers.0.weight"])


def test_a_weight_that_is_missing_or_mis_shaped_is_named(folders, tmp_path):
    tensors = dict(read_state_dict(folders["RealmEmbedder"]))
    config = RealmConfig.from_pretrained(folders["RealmEmbedder"])
    key = "realm.encoder.layer.1.output.dense.weight"
    write_folder(tmp_path / "missing", config, {k: v for k, v in tensors.items() if k != key})
    with pytest.raises(ValueError, match=f"missing: {key}"):
        verify(tmp_path / "missing")
    write_folder(tmp_path / "shape", config, tensors | {key: torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=f"mis-shaped: {key}"):
        verify(tmp_path / "shape")


def test_a_text_longer_than_the_positions_is_refused(folders):
    with pytest.raises(ValueError, match=r"102 tokens, the model reads 50"):
        verify(folders["RealmEmbedder"], text="who " * 100)


# --- Damage -----------------------------------------------------------------------------------------------------------


def weights_that_matter(state_dict, stage):
    """Keys of a stage's weights. A constant added to all keys of an attention leaves its softmax as it is."""
    return [key for key in state_dict if key.startswith(stage.weights) and not key.endswith("self.key.bias")]


@pytest.mark.parametrize("kind", ["RealmKnowledgeAugEncoder", "RealmScorer", "RealmForOpenQA"])
@settings(deadline=None, derandomize=True, max_examples=25)
@given(data=st.data())
def test_a_weight_damaged_in_one_path_is_pointed_to_at_its_own_stage(folders, kind, data):
    _, config, state_dict = read_checkpoint(folders[kind])
    inputs = inputs_of(kind, config, seed=data.draw(st.integers(0, 9)))
    stage = data.draw(st.sampled_from([stage for stage in stages_of(kind, config) if stage.weights]))
    key = data.draw(st.sampled_from(weights_that_matter(state_dict, stage)))
    copy = {name: tensor.clone() for name, tensor in state_dict.items()}
    rows = copy[key].view(copy[key].shape[0], -1)
    if "embeddings.weight" in key or key == "block_emb":  # which rows are read depends on the inputs
        rows[:, 0] += 30 if key == "block_emb" else 1
        if key == "block_emb":
            rows[::2, 0] -= 60
    else:
        row, column = (data.draw(st.integers(0, size - 1)) for size in rows.shape)
        rows[row, column] += 1
    report = compare(kind, config, state_dict, [TorchPath(kind, config, copy)], inputs)
    assert report.first.stage.name == stage.name
    # Block embeddings are read again for the scores of what was retrieved, tied word embeddings for the logits.
    reads_it_too = {"retrieved": {"reader:relevance"}}.get(stage.name, set())
    if kind == "RealmKnowledgeAugEncoder" and "word_embeddings" in key:
        reads_it_too = {":mlm logits"}
    assert {row.stage.name for row in report.rows if row.at_fault} == {stage.name} | reads_it_too


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e37])
@settings(deadline=None, derandomize=True, max_examples=12)
@given(data=st.data())
def test_a_damaged_value_in_the_file_is_found_at_its_stage(folders, value, data):
    kind = data.draw(st.sampled_from(["RealmReader", "RealmForOpenQA"]))
    _, config, state_dict = read_checkpoint(folders[kind])
    stage = data.draw(st.sampled_from([stage for stage in stages_of(kind, config) if stage.weights]))
    key = data.draw(st.sampled_from([key for key in state_dict if key.startswith(stage.weights)]))
    copy = {name: tensor.clone() for name, tensor in state_dict.items()}
    copy[key].view(-1)[data.draw(st.integers(0, copy[key].numel() - 1))] = value
    report = compare(kind, config, copy, [TorchPath(kind, config, copy)], inputs_of(kind, config, 0))
    assert not report.passed
    assert list(report.weights) == [key]
    assert report.first.stage.name == stage.name and report.first.at_fault and list(report.first.weights) == [key]
    others = [row for row in report.rows if row.at_fault and row is not report.first]
    # A huge value overflows in float32 wherever it goes; one that is not finite is given to nobody.
    assert not others or value == 3e37


def test_damage_in_weights_that_nothing_reads_is_found_too(folders, tmp_path):
    key = "cls.predictions.decoder.weight"

    def damage(tensor):
        tensor[5, 7] = float("nan")

    report = verify(damaged(folders["RealmReader"], tmp_path, key, damage))
    assert not report.passed and all(row.passed for row in report.rows)
    assert report.weights == {key: "1 of 1464 values not finite, first at [5, 7]"}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 300), st.sampled_from([0.02, 0.2, 1.0]))
def test_a_flipped_top_bit_of_the_exponent_is_an_absurd_weight(seed, size, scale):
    rng = np.random.default_rng(seed)
    values = (scale * rng.standard_normal(size)).astype(np.float32)
    assert weight_problem("x.weight", torch.from_numpy(values.copy())) is None
    at = int(rng.integers(size))
    bits = values.view(np.uint32)
    bits[at] ^= np.uint32(1 << 30)
    if abs(values[at]) < 50 * np.sort(np.abs(values))[-2] and abs(values[at]) <= 1e3 and np.isfinite(values[at]):
        return  # the bit was set: what was above 2 became nearly 0, or little changed
    assert f"at [{at}]" in weight_problem("x.weight", torch.from_numpy(values))


def test_lone_outliers_and_empty_matrices_are_named_and_trained_looking_weights_are_not():
    weight = torch.full((4, 5), 0.02)
    weight[2, 3] = -1.5
    assert weight_problem("a.weight", weight) == "one value of 1.5 at [2, 3], all others below 0.02"
    assert weight_problem("a.dense.weight", torch.zeros(4, 5)) == "all zero"
    assert weight_problem("a.bias", torch.zeros(4)) is None
    norm = torch.ones(8)
    norm[3] = 12.0  # BERT's LayerNorms have such dimensions
    assert weight_problem("a.LayerNorm.weight", norm) is None
    assert weight_problem("ids", torch.arange(5)) is None


@pytest.mark.parametrize("kind", ["RealmEmbedder", "RealmForOpenQA"])
def test_against_another_copy_the_differing_tensor_and_its_stage_are_named(folders, tmp_path, kind):
    assert verify(folders[kind], against=folders[kind]).passed
    prefix = "reader." if kind == "RealmForOpenQA" else ""
    key = f"{prefix}realm.encoder.layer.1.intermediate.dense.weight"

    def damage(tensor):
        tensor[3, 4] += 0.25

    report = verify(folders[kind], against=damaged(folders[kind], tmp_path, key, damage))
    assert not report.passed and list(report.differences) == [key]
    assert report.differences[key] == "1 of 960 values differ, by up to 0.25, first at [3, 4]"
    assert report.first is report.first_of("against")
    assert report.first.stage.name == f"{prefix[:-1]}:layer 1" and report.first_of("float32") is None
    assert [row.stage.name for row in report.rows if row.at_fault] == [report.first.stage.name]


def test_against_another_kind_of_model_is_refused(folders):
    with pytest.raises(ValueError, match=r"mis|unexpected|missing|same model"):
        verify(folders["RealmEmbedder"], against=folders["RealmReader"])


# --- Measures ---------------------------------------------------------------------------------------------------------

NUMBERS = Stage("x", "x", "x", "", ())


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(1, 7))
def test_errors_are_the_largest_difference_and_its_share_of_the_largest_number(seed, rows, columns):
    rng = np.random.default_rng(seed)
    expected = rng.standard_normal((rows, columns))
    actual = expected + 1e-6 * rng.standard_normal((rows, columns))
    error = error_of(NUMBERS, expected, actual, scale=np.abs(expected).max())
    assert error.absolute == max(abs(a - e) for a, e in zip(actual.flat, expected.flat, strict=True))
    assert error.relative == error.absolute / max(abs(e) for e in expected.flat)
    assert error.roundings == error.relative * 2**24


def test_what_is_not_finite_is_infinitely_wrong_and_masked_spans_do_not_count():
    expected = np.array([[1.0, -2.0]])
    assert error_of(NUMBERS, expected, np.array([[1.0, np.nan]]), 2.0) == Error(np.inf, np.inf)
    assert error_of(NUMBERS, np.array([[1.0, np.nan]]), expected, 2.0) == Error(np.inf, np.inf)
    assert error_of(NUMBERS, expected, None, 2.0) == Error(np.inf, np.inf)
    assert error_of(NUMBERS, np.zeros((1, 2)), np.zeros((1, 2)), 0.0) == Error(0.0, 0.0)
    masked = NUMBERS._replace(masked=True)
    assert error_of(masked, np.array([[1.0, -1e308]]), np.array([[1.5, -3e38]]), 1.0) == Error(0.5, 0.5)
    assert error_of(masked, np.array([[1.0, -1e308]]), np.array([[1.0, 0.0]]), 1.0) == Error(np.inf, np.inf)
    with pytest.raises(ValueError, match="shape"):
        error_of(NUMBERS, expected, np.zeros(2), 2.0)


def test_errors_are_relative_to_the_largest_number_and_of_inner_products_to_the_sum_of_their_terms(folders):
    rows = {}
    for kind in ("RealmScorer", "RealmForOpenQA"):
        _, config, state_dict = read_checkpoint(folders[kind])
        inputs = inputs_of(kind, config, 0)
        path = ReferencePath(kind, config, state_dict)
        values = dict(inputs)
        for stage in stages_of(kind, config):
            if not stage.repeats:
                values[stage.name] = path.compute(stage, *(values[name] for name in stage.reads))
                if stage.choices:
                    values[stage.name] = choose(values[stage.name], stage.choices)
        report = compare(kind, config, state_dict, [], inputs)
        rows[kind] = {row.stage.name: row.scale for row in report.rows}, values, state_dict
    scales, values, _ = rows["RealmScorer"]
    query, candidates = values["query_embedder:projection"], values["embedder:projection"]
    terms = [[np.abs(q * z).sum() for z in candidates[3 * i : 3 * i + 3]] for i, q in enumerate(query)]
    assert scales["relevance"] == pytest.approx(np.max(terms))
    assert scales["embedder:pooler"] == np.abs(values["embedder:pooler"]).max()
    scales, values, state_dict = rows["RealmForOpenQA"]
    question, found = values["embedder:projection"][0], state_dict["block_emb"][values["retrieved"][0].tolist()]
    assert scales["reader:relevance"] == pytest.approx(np.abs(question * found.double().numpy()).sum(1).max())


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 9), st.data())
def test_a_choice_is_wrong_by_the_score_it_gives_away(seed, rows, items, data):
    k = data.draw(st.integers(1, items))
    scores = np.random.default_rng(seed).integers(0, 4, (rows, items)).astype(np.float64)
    best = choose(scores, k)
    by_hand = [sorted(range(items), key=lambda i: (-row[i], i))[:k] for row in scores]
    assert best.tolist() == by_hand
    assert choice_error(scores, best) == Error(0.0, 0.0, 0)
    other = np.argsort(scores, axis=1)[:, :k]
    expected = np.abs(np.take_along_axis(scores, best, 1) - np.take_along_axis(scores, other, 1)).max()
    assert choice_error(scores, other).absolute == expected
    assert choice_error(scores, other).differing == (other != best).sum()


# --- Published checkpoints --------------------------------------------------------------------------------------------

KINDS_OF_KNOWN = ["RealmEmbedder", "RealmKnowledgeAugEncoder", "RealmScorer", "RealmReader", "RealmForOpenQA"]
KIND_OF = dict(zip(KNOWN, KINDS_OF_KNOWN, strict=True))


def test_the_published_values_are_those_of_transformers_own_tests():
    expected = {name: known.expected for name, known in KNOWN.items()}
    assert expected == {
        "realm-cc-news-pretrained-embedder": [-0.0714, -0.0837, -0.1314],
        "realm-cc-news-pretrained-encoder": [-11.0888, -11.2544, -10.2170, -10.3874],
        "realm-cc-news-pretrained-scorer": [0.7410, 0.7170],
        "realm-orqa-nq-reader": [1.0, 3.0, 3.0],
        "realm-orqa-nq-openqa": ["alan mathison turing"],
    }
    assert recognise_known("google/realm-orqa-nq-openqa") == "realm-orqa-nq-openqa"
    assert recognise_known("/somewhere/realm-cc-news-pretrained-scorer/snapshot") == "realm-cc-news-pretrained-scorer"
    assert recognise_known("my-own-model") is None


def values_of_transformers(kind, folder):
    """The integration tests of transformers, on a folder."""
    ids, both = torch.arange(6)[None], torch.arange(12).view(2, 6)
    with torch.no_grad():
        if kind == "RealmEmbedder":
            return transformers.RealmEmbedder.from_pretrained(folder)(ids)[0][0, :3]
        if kind == "RealmKnowledgeAugEncoder":
            model = transformers.RealmKnowledgeAugEncoder.from_pretrained(folder, num_candidates=2)
            return model(both, relevance_score=torch.tensor([[0.3, 0.7]]))[0][1, :2, :2].flatten()
        if kind == "RealmScorer":
            model = transformers.RealmScorer.from_pretrained(folder, num_candidates=2)
            return model(ids, candidate_input_ids=both)[0][0]
        model = transformers.RealmReader.from_pretrained(folder, reader_beam_size=2, max_span_width=3)
        output = model(
            torch.arange(10).view(2, 5),
            token_type_ids=torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]),
            relevance_score=torch.tensor([0.3, 0.7]),
            block_mask=torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 0]]),
            return_dict=True,
        )
        return torch.tensor([output.block_idx, output.start_pos, output.end_pos]).float()


@pytest.mark.parametrize("name", list(KNOWN)[:4])
def test_values_of_a_published_checkpoint_are_compared_to_1e_4(folders, tmp_path, name):
    folder = folders[KIND_OF[name]]
    if KIND_OF[name] == "RealmScorer":  # transformers has one embedder for both, whatever is stored
        folder = tmp_path
        CLASSES["RealmScorer"](RealmConfig(**SIZES)).save_pretrained(folder)
    values = values_of_transformers(KIND_OF[name], folder).tolist()
    for i in range(len(values)):
        for shift, passes in ((0.0, True), (0.7e-4, True), (-1.3e-4, False), (0.3, False)):
            expected = [*values[:i], values[i] + shift, *values[i + 1 :]]
            found = compare_known(name, folder, {name: KNOWN[name]._replace(expected=expected)})
            assert [value.passed for value in found] == [passes if j == i else True for j in range(len(values))]


def test_the_answer_of_a_published_checkpoint_is_compared_as_text(folders):
    name, folder = "realm-orqa-nq-openqa", folders["RealmForOpenQA"]
    found = KNOWN[name].compute(folder)
    assert compare_known(name, folder, {name: KNOWN[name]._replace(expected=found)})[0].passed
    assert not compare_known(name, folder)[0].passed or found == ["alan mathison turing"]
    assert not compare_known(name, folder, {name: KNOWN[name]._replace(expected=["another answer"])})[0].passed
    with pytest.raises(ValueError, match="no values are known of 'realm'"):
        compare_known("realm", folder)


def test_a_folder_called_after_a_published_checkpoint_is_held_to_its_values(folders, tmp_path, capsys):
    folder = tmp_path / "realm-cc-news-pretrained-embedder"
    folder.symlink_to(folders["RealmEmbedder"])
    assert run(options(folder)) == 1
    shown = capsys.readouterr().out
    assert "Published values of realm-cc-news-pretrained-embedder" in shown and "-0.0714" in shown
    assert run(options(folders["RealmEmbedder"], "--known", "realm-cc-news-pretrained-embedder")) == 1
    assert run(options(folders["RealmEmbedder"])) == 0


def test_published_answers_are_left_out_where_the_folder_has_no_blocks(tmp_path):
    folder = tmp_path / "realm-orqa-nq-openqa"
    make("RealmForOpenQA").save_pretrained(folder)
    report = verify(folder)
    assert report.passed and report.known is None and "block_records.npy" in report.left_out["published values"]
    key = "embedder.cls.dense.weight"
    damaged(folder, tmp_path, key, lambda tensor: tensor.fill_(float("nan")))
    (tmp_path / "damaged").rename(tmp_path / "realm-orqa-nq-openqa with damage")
    report = verify(tmp_path / "realm-orqa-nq-openqa with damage", known="realm-orqa-nq-openqa")
    assert report.left_out["published values"] == "the weights are damaged" and list(report.weights) == [key]
    with pytest.raises(FileNotFoundError, match=r"block_records\.npy"):
        verify(folder, known="realm-orqa-nq-openqa")


# --- Command line -----------------------------------------------------------------------------------------------------


def test_the_table_says_passed_or_where_it_went_wrong(folders, tmp_path, capsys):
    assert run(options(folders["RealmReader"])) == 0
    shown = capsys.readouterr().out
    assert "PASSED: 13 stages in" in shown and "span logits" in shown and "✗" not in shown

    def damage(tensor):
        tensor[2] = float("inf")

    key = "realm.encoder.layer.1.attention.output.dense.bias"
    assert main(["verify", str(damaged(folders["RealmReader"], tmp_path, key, damage))]) == 1
    shown = capsys.readouterr().out
    first = next(line for line in shown.splitlines() if "◄ first" in line)
    assert first.startswith("layer 1 attention") and "wrong here" in first
    assert (
        f"weights of layer 1 attention: {key}" in shown and "float32: first at layer 1 attention, not finite" in shown
    )


def test_a_narrow_terminal_shows_units_of_rounding_alone(folders):
    report = verify(folders["RealmEmbedder"])
    console = Console(width=79, file=io.StringIO(), force_terminal=True, color_system=None)
    print_report(report, console)
    table = console.file.getvalue().split("\n\n")[1]
    assert "own" in table and "abs" not in table
    assert max(len(line) for line in table.splitlines()) <= 79


def test_json_holds_every_figure(folders, tmp_path, capsys):
    assert run(options(folders["RealmEmbedder"], "--json", "--seed", 5)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["kind"] == "RealmEmbedder" and found["seed"] == 5
    names = [stage["name"] for stage in found["stages"]]
    assert names[:3] == [":layer -1", ":attention 0", ":layer 0"]
    error = found["stages"][1]["errors"]["float32"]
    assert error["float32_roundings"] == error["relative"] * 2**24 and error["own"]["relative"] > 0

    def damage(tensor):
        tensor[0] = float("nan")

    folder = damaged(folders["RealmEmbedder"], tmp_path, "cls.dense.bias", damage)
    assert run(options(folder, "--json")) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"] and found["first_failure"] == ":projection"
    assert found["stages"][-1]["errors"]["float32"]["relative"] is None  # not finite


def test_the_plot_is_a_png(folders, tmp_path):
    from matplotlib.image import imread

    assert run(options(folders["RealmForOpenQA"], "--plot", tmp_path / "error.png")) == 0
    image = imread(tmp_path / "error.png")  # [height, width, channels]
    assert image.shape[0] > 500 and image.shape[1] > 800 and image.std() > 0.05
    assert os.listdir(tmp_path) == ["error.png"]


def test_interpreted_triton_kernels_are_a_path(folders):
    command = [sys.executable, "-m", "realm_min", "verify", str(folders["RealmForOpenQA"]), "--json"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    [(out, _)] = processes.run(command, env=environment)
    report = json.loads(out)
    stages = {stage["name"]: stage["errors"]["triton"] for stage in report["stages"] if "triton" in stage["errors"]}
    assert len(stages) == len(report["stages"])
    assert 0 < stages["reader:span logits"]["own"]["relative"] < 2e-6
    # Another order of additions than the torch path's: it was not the torch path that ran.
    torch_path = next(s for s in report["stages"] if s["name"] == "reader:span logits")["errors"]["float32"]
    assert torch_path["own"] != stages["reader:span logits"]["own"]
    assert stages["retrieved"]["differing_choices"] == 0
