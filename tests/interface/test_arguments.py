"""What programs hand to a model, its `backward` and `load_state_dict`: as there, or refused in a sentence."""

import inspect

import eight_capitals
import numpy as np
import pytest
import side_by_side
import torch
from oracle import needs_oracle, transformers
from side_by_side import IDS, INPUTS, MODELS, ONE, new, twins

import realm_min
from realm_min.compatible.left_out import OF_THE_PACKAGE

ENCODER, SCORER = INPUTS["RealmKnowledgeAugEncoder"], INPUTS["RealmScorer"]
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


# ---- names


def pairs(folder):
    """Objects of each class, theirs and ours."""
    eight_capitals.tokenizer().save_pretrained(folder)
    yield from map(twins, MODELS)
    yield transformers.RealmConfig(), realm_min.RealmConfig()
    for name in ("RealmTokenizer", "RealmTokenizerFast"):
        theirs, ours = (getattr(library, name).from_pretrained(folder) for library in (transformers, realm_min))
        yield theirs, ours
        yield theirs(["a"]), ours(["a"])
        yield transformers.RealmRetriever([b"a"], theirs), realm_min.RealmRetriever([b"a"], ours)
    yield tuple(model(**ONE) for model in twins("RealmEmbedder"))


def parameters(function):
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a dict
        return ()


@needs_oracle
def test_arguments_have_transformers_names_and_places(tmp_path):
    wrong, compared = [], 0
    for theirs, ours in pairs(tmp_path):
        public = {name for name in dir(theirs) if not name.startswith("_")} | {"__init__", "__call__"}
        for name in sorted(name for name in public if hasattr(theirs, name) and hasattr(ours, name)):
            wanted, taken = (parameters(getattr(each, name)) for each in (theirs, ours))
            any_name, any_place = (any(x.kind == kind for x in taken) for kind in VARIABLE[::-1])
            names = {x.name for x in taken}
            missing = [x.name for x in wanted if x.kind not in VARIABLE and x.name not in names and not any_name]
            theirs_by_place, by_place = ([x.name for x in each if x.kind <= x.POSITIONAL_OR_KEYWORD]
                                         for each in (wanted, taken))  # fmt: skip
            shared = min(len(theirs_by_place), len(by_place))
            displaced = not any_place and theirs_by_place[:shared] != by_place[:shared]
            compared += bool(wanted) and bool(taken)
            if wanted and taken and (missing or displaced):
                wrong.append((type(ours).__name__, name, theirs_by_place, by_place))
    assert wrong == [] and compared > 200


def test_folders_by_transformers_names(tmp_path):
    model = eight_capitals.open_qa()
    model.save_pretrained(save_directory=tmp_path)
    model.retriever.save_pretrained(save_directory=tmp_path)
    model.config.save_pretrained(save_directory=tmp_path / "config", token="hf_SECRET")
    assert "SECRET" not in (tmp_path / "config" / "config.json").read_text()
    with pytest.raises(ValueError, match="push_to_hub=True: nothing is sent to the hub"):
        model.config.save_pretrained(tmp_path / "config", push_to_hub=True)
    for name in ("RealmForOpenQA", "RealmConfig", "RealmRetriever", "RealmTokenizer", "AutoTokenizer"):
        getattr(realm_min, name).from_pretrained(pretrained_model_name_or_path=str(tmp_path))
    with pytest.raises(TypeError, match="takes 2 positional arguments"):
        realm_min.RealmConfig.from_pretrained(tmp_path, "a folder of the cache")


@needs_oracle
def test_a_model_of_a_state_dict_alone():
    for library, state in zip((transformers, realm_min), twins("RealmEmbedder"), strict=True):
        config = library.RealmConfig(**side_by_side.SIZES)
        model = library.RealmEmbedder.from_pretrained(None, config=config, state_dict=state.state_dict())
        assert torch.equal(model(**ONE).projected_score, state(**ONE).projected_score)
    with pytest.raises(FileNotFoundError, match="there is no folder ''"):
        realm_min.RealmEmbedder.from_pretrained(None)


@pytest.mark.parametrize("name", OF_THE_PACKAGE)
def test_a_name_of_the_package_that_is_left_out_says_so(name):
    with pytest.raises(ImportError) as caught:
        exec(f"from realm_min import {name}")
    assert str(caught.value) == f"realm_min.{name}: {OF_THE_PACKAGE[name]}"


@needs_oracle
def test_every_public_name_of_the_package():
    theirs = {name for name in dir(transformers) if "realm" in name.lower() and "." not in name}
    assert theirs - set(realm_min.__all__) <= OF_THE_PACKAGE.keys()
    assert issubclass(realm_min.RealmReader, realm_min.RealmPreTrainedModel)
    with pytest.raises(ImportError, match="cannot import name 'RealmModel'"):
        exec("from realm_min import RealmModel")


# ---- calls


@pytest.mark.parametrize("change", [torch.Tensor.tolist, torch.Tensor.numpy, str], ids=["list", "array", "text"])
def test_what_is_no_tensor_is_named(change):
    for name, inputs in INPUTS.items():
        for argument in inputs.keys() - {"start_positions", "end_positions", "has_answers"}:
            with pytest.raises(TypeError, match=rf"^{argument} is a (list|ndarray|str): give a tensor, as tokenizer"):
                new(name)(**inputs | {argument: change(inputs[argument])})


def test_an_encoding_by_place_is_named():
    with pytest.raises(TypeError, match=r"input_ids is a BatchEncoding: .* each under its name \(model\(\*\*encoding"):
        new("RealmEmbedder")(eight_capitals.tokenizer()(["a"], return_tensors="pt"))


@pytest.mark.parametrize("config", [None, {"hidden_size": 8}, "folder", realm_min.RealmConfig, new])
def test_a_model_is_made_of_a_configuration(config):
    with pytest.raises(ValueError, match=r"^RealmScorer\(.*\): give a realm_min.RealmConfig, or call RealmScorer"):
        realm_min.RealmScorer(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pad_token_id", 61, "pad_token_id=61 is no id of vocab_size=61 words"),
        ("pad_token_id", "[PAD]", "is no id of vocab_size=61 words: give one of them, or None"),
        ("layer_norm_eps", float("inf"), "layer_norm_eps=inf must be a number above 0"),
    ],
)
def test_a_value_that_was_set_later_is_checked(name, value, message):
    config = realm_min.RealmConfig(**side_by_side.SIZES)
    setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        realm_min.RealmEmbedder(config)


@pytest.mark.parametrize("name", ["RealmEmbedder", "RealmScorer", "RealmKnowledgeAugEncoder"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (dict(hidden_act="zzz"), "hidden_act='zzz' is unknown"),
        (dict(hidden_dropout_prob="x"), "hidden_dropout_prob='x' must be a probability"),
        (dict(num_attention_heads=5), "is not divisible by num_attention_heads=5"),
        (dict(vocab_size="x"), "vocab_size='x' must be an integer"),
        (dict(num_hidden_layers=9), r"says realm.encoder.layer.\d.* \[.*\], its weights have none: set the value back"),
        (dict(vocab_size=10**6), r"word_embeddings.weight \[1000000, .*\], its weights have \[61, "),
        (dict(max_position_embeddings=10**6), r"position_embeddings.weight \[1000000, .*\], its weights have \["),
    ],
)
def test_a_value_that_was_set_between_calls_is_checked(name, value, message):
    model, inputs = new(name).eval(), {**INPUTS[name]}
    model(**inputs)
    before = dict(vars(model.config))
    model.config.update(value)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
    model.config.update(before)
    model(**inputs)
    model.config.hidden_act = "relu"  # of any model
    model(**inputs)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_cotangent_is_refused(dtype):
    model = new("RealmEmbedder")
    shape = model(**INPUTS["RealmEmbedder"]).projected_score.shape
    with pytest.raises(ValueError, match=f"cotangent of projected_score has dtype {dtype}: give real numbers"):
        model.backward(projected_score=torch.ones(shape, dtype=dtype))


def test_an_unknown_option_of_saving_is_named(tmp_path):
    with pytest.raises(TypeError, match="RealmEmbedder.save_pretrained has no argument 'nope': leave it out"):
        new("RealmEmbedder").save_pretrained(tmp_path, nope=1)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_eight_bits_are_refused():
    with pytest.raises(TypeError, match="float8_e4m3fn.*: give a floating dtype of 16 bits or more"):
        new("RealmEmbedder").to(torch.float8_e4m3fn)


# ---- gradients: of the call that was made, or refused


@pytest.mark.parametrize("training", [True, False])
def test_what_is_written_into_inputs_later_changes_no_gradient(training):
    def gradients(write):
        model, inputs = new("RealmKnowledgeAugEncoder").train(training), {k: x.clone() for k, x in ENCODER.items()}
        model.seed_dropout(3)
        output = model(**inputs)
        if write:
            for tensor in inputs.values():
                tensor.copy_(tensor.flip(0))
        return model.backward(output) | model.grads

    for (name, found), expected in zip(gradients(True).items(), gradients(False).values(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda model: model.train(), r"mode \(train or eval\)"),
        (lambda model: model.load_state_dict(new("RealmScorer", seed=1).state_dict()), "weights"),
        (lambda model: model.half(), "weights"),
        (lambda model: setattr(model.config, "hidden_act", "relu"), "configuration"),
    ],
)
def test_a_model_that_changed_after_the_call_says_so(change, what):
    model = new("RealmScorer")
    output = model(**SCORER)
    change(model)
    with pytest.raises(RuntimeError, match=f"^the model's {what} changed after the call: call it again"):
        model.backward(output, relevance_score=torch.ones(2, 2))


@pytest.mark.parametrize("take", [lambda output: output.loss, lambda output: output.to_tuple(), lambda output: 3])
def test_a_part_of_an_output_is_not_differentiated(take):
    model = new("RealmKnowledgeAugEncoder")
    output = model(**ENCODER)
    with pytest.raises(TypeError, match=r"backward\(\) was given a (Unrecorded|tuple|int): give the whole output"):
        model.backward(take(output))
    model.backward(output)


@pytest.mark.parametrize("given", [torch.ones(2, 2).double(), torch.ones(2, 2).int(), np.ones((2, 2)), [[1.0, 1]] * 2])
def test_cotangents_of_any_form(given):
    model = new("RealmScorer")
    output = model(**SCORER)
    expected = model.backward(output, relevance_score=torch.ones(2, 2))
    for name, found in model.backward(output, relevance_score=given).items():
        assert torch.equal(found, expected[name]) and found.dtype == torch.float32


# ---- state dicts


def replaced(change, key="cls.dense.weight"):
    return lambda state: state | {key: change(state[key])}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda state: list(state), TypeError, "the state dict is a list: give a dict of tensors"),
        (lambda state: None, TypeError, "the state dict is a NoneType"),
        (lambda state: "model.bin", TypeError, "the state dict is a str"),
        (lambda state: {"state_dict": state}, RuntimeError, "no tensor of numbers: state_dict is a dict"),
        (replaced(torch.Tensor.numpy), RuntimeError, "no tensor of numbers: cls.dense.weight is a ndarray"),
        (replaced(lambda x: x.to("meta")), ValueError, "cls.dense.weight is a tensor of the meta device"),
        (replaced(torch.Tensor.to_sparse), ValueError, "cls.dense.weight is a sparse tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused_whole(change, kind, message):
    for name in ("RealmEmbedder", "RealmForOpenQA", "RealmScorer"):
        model = new(name)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        state = {key: tensor + 1 for key, tensor in before.items()}
        state["cls.dense.weight"] = state.get("cls.dense.weight", torch.ones(7, 12))
        with pytest.raises(kind, match=message):
            model.load_state_dict(change(state))
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("strict", [True, False])
def test_embedders_that_part_are_whole(strict):
    """A state dict with two embedders, and of one of them a part alone: refused, or the rest stays as it was."""
    model, key = new("RealmScorer"), "query_embedder.cls.dense.weight"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {name: x for name, x in before.items() if not name.startswith("query_")} | {key: torch.ones(7, 12)}
    if strict:
        with pytest.raises(ValueError, match=r"missing: query_embedder\.realm"):
            model.load_state_dict(state)
        assert model.query_embedder is model.embedder
    else:
        model.load_state_dict(state, strict=False)
        before[key] = state[key]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- contexts


def test_a_model_made_in_inference_mode_is_used_outside():
    with torch.inference_mode():
        model = new("RealmEmbedder").double().float()
    model.load_state_dict(new("RealmEmbedder", seed=1).state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.backward(model(**ONE), projected_score=torch.ones(2, 7))
    optimizer.step()
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


def test_the_default_device_is_where_nothing_is_made():
    """Models, and what they compute, stay on the CPU, or where `to` has brought them."""
    expected = new("RealmScorer")(**SCORER).relevance_score
    torch.set_default_device("meta")
    try:
        model = new("RealmScorer")
        assert torch.equal(model(**SCORER).relevance_score, expected)
        torch.manual_seed(0)
        assert realm_min.RealmEmbedder(model.config).device.type == "cpu"
    finally:
        torch.set_default_device(None)
    assert IDS.device.type == "cpu"
