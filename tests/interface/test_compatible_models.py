"""What programs do with a model of transformers or a module of torch: ours gives what transformers' gives.

The cases are written from the documentation of transformers' REALM classes, `PreTrainedModel` and `torch.nn.Module`.
"""

import copy
import io
import pickle

import numpy as np
import pytest
import side_by_side
import torch
from side_by_side import IDS, INPUTS, MASK, MODELS, ONE, TYPES, new, plain, result

import realm_min

CALLED = tuple(INPUTS)  # the models that need no retriever
WORDS = "realm.embeddings.word_embeddings.weight"


def held(model):
    """The names of the parts that hold tensors: transformers' modules have activations and dropouts among them."""
    names = [name for name, module in model.named_modules() if any(True for _ in module.parameters())]
    return sorted(names)


def first_part(model):
    return next(name for name, _ in model.named_children())


# What a model is asked, and left as it is.
ASKED = {
    "state dict": lambda m: {key: (x.shape, x.dtype) for key, x in m.state_dict().items()},
    "state dict with a prefix": lambda m: list(m.state_dict(prefix="x.")),
    "state dict into a dict": lambda m: sorted(m.state_dict(destination={})),
    "state dict is the model's own": lambda m: all(
        x.data_ptr() == m.state_dict()[key].data_ptr() for key, x in m.state_dict().items()
    ),
    "named_parameters": lambda m: [(name, x) for name, x in m.named_parameters()],
    "named_parameters with a prefix": lambda m: [name for name, _ in m.named_parameters(prefix="net")],
    "named_parameters of the model alone": lambda m: list(m.named_parameters(recurse=False)),
    "named_parameters with repetitions": lambda m: [name for name, _ in m.named_parameters(remove_duplicate=False)],
    "parameters": lambda m: [x.shape for x in m.parameters()],
    "sum of numel": lambda m: sum(x.numel() for x in m.parameters()),
    "buffers in the state dict": lambda m: [name for name, _ in m.named_buffers() if name in m.state_dict()],
    "named_children": lambda m: [name for name, _ in m.named_children()],
    "children": lambda m: len(list(m.children())),
    "named_modules that hold tensors": held,
    "modules begin with the model": lambda m: next(m.modules()) is m,
    "get_submodule": lambda m: held(m.get_submodule(first_part(m))),
    "get_submodule of nothing": lambda m: m.get_submodule("") is m,
    "get_submodule of a wrong name": lambda m: m.get_submodule("realm.decoder"),
    "get_parameter": lambda m: m.get_parameter(next(name for name, _ in m.named_parameters())),
    "get_parameter of a wrong name": lambda m: m.get_parameter("realm.weight"),
    "get_buffer of a wrong name": lambda m: m.get_buffer("running_mean"),
    "num_parameters": lambda m: m.num_parameters(),
    "num_parameters that are trainable": lambda m: m.num_parameters(only_trainable=True),
    "num_parameters without embeddings": lambda m: m.num_parameters(exclude_embeddings=True),
    "get_memory_footprint of parameters": lambda m: m.get_memory_footprint(return_buffers=False),
    "dtype": lambda m: m.dtype,
    "device": lambda m: m.device,
    "training": lambda m: m.training,
    "training of the parts": lambda m: [part.training for part in (m, m.eval())],
    "main_input_name": lambda m: m.main_input_name,
    "framework": lambda m: m.framework,
    "base_model_prefix": lambda m: m.base_model_prefix,
    "base_model is the model": lambda m: m.base_model is m,
    "is_parallelizable": lambda m: m.is_parallelizable,
    "is_gradient_checkpointing": lambda m: m.is_gradient_checkpointing,
    "can_generate": lambda m: m.can_generate(),
    "config_class": lambda m: m.config_class.__name__,
    "config": lambda m: m.config.hidden_size,
    "name_or_path": lambda m: m.name_or_path,
    "has realm": lambda m: hasattr(m, "realm"),
    "has embedder": lambda m: hasattr(m, "embedder"),
    "realm": lambda m: held(m.realm),
    "a layer": lambda m: m.realm.encoder.layer[1].attention.output.dense.weight,
    "the last layer": lambda m: m.realm.encoder.layer[-1].output.LayerNorm.bias,
    "a layer too many": lambda m: m.realm.encoder.layer[2],
    "number of layers": lambda m: len(m.realm.encoder.layer),
    "all layers": lambda m: [layer.intermediate.dense.bias for layer in m.realm.encoder.layer],
    "fused weights": lambda m: m.realm.encoder.layer[0].attention.self.value.weight,
    "cls": lambda m: held(m.cls),
    "get_input_embeddings": lambda m: m.get_input_embeddings().weight,
    "sizes of embeddings": lambda m: (m.get_input_embeddings().num_embeddings, m.get_input_embeddings().embedding_dim),
    "sizes of a dense layer": lambda m: (m.cls.dense.in_features, m.cls.dense.out_features),
    "embedding ids": lambda m: m.get_input_embeddings()(IDS),
    "get_output_embeddings": lambda m: m.get_output_embeddings() and m.get_output_embeddings().weight,
    "tie_weights": lambda m: m.tie_weights(),
    "eval returns the model": lambda m: m.eval() is m,
    "searcher_beam_size": lambda m: getattr(m, "searcher_beam_size", None),
    "block_emb": lambda m: tuple(getattr(m, "block_emb", torch.empty(0)).shape),
    "retriever": lambda m: getattr(m, "retriever", "none"),
    "num_labels": lambda m: getattr(m, "num_labels", None),
    "BERT alone": lambda m: dict(m.realm(**ONE)),
    "BERT alone, as a tuple": lambda m: [x for x in m.realm(IDS, MASK, TYPES, return_dict=False)],
    "BERT alone, all states": lambda m: m.realm(**ONE, output_hidden_states=True, output_attentions=True).attentions,
}


@pytest.mark.parametrize("case", ASKED)
def test_asked(case):
    for name in MODELS:
        theirs, ours = side_by_side.twins(name)
        assert result(ASKED[case], ours) == result(ASKED[case], theirs), name


def each(change, inputs):
    """The inputs, with those that are floats changed."""
    return {name: change(x) if x.is_floating_point() else x for name, x in inputs.items()}


# What a model is called with.
def called(**more):
    return lambda m, inputs: m(**inputs | more)


CALLS = {
    "as documented": called(),
    "return_dict=True": called(return_dict=True),
    "return_dict=False": called(return_dict=False),
    "return_dict=None": called(return_dict=None),
    "return_dict=1": called(return_dict=1),
    "return_dict=0": called(return_dict=0),
    "flags of NumPy": called(output_attentions=np.True_, output_hidden_states=np.False_),
    "dtypes in half precision": lambda m, inputs: {
        name: str(x.dtype) for name, x in copy.deepcopy(m).bfloat16()(**each(lambda x: x.bfloat16(), inputs)).items()
    },
    "dtypes in half precision with float32 beside": lambda m, inputs: {
        name: str(x.dtype) for name, x in copy.deepcopy(m).bfloat16()(**inputs).items()
    },
    "in double precision": lambda m, inputs: dict(copy.deepcopy(m).double()(**each(lambda x: x.double(), inputs))),
    "by forward": lambda m, inputs: m.forward(**inputs),
    "by place": lambda m, inputs: m(*(inputs.get(name) for name in names_of(m))),
    "inside no_grad": lambda m, inputs: torch.no_grad()(m)(**inputs),
    "inside inference_mode": lambda m, inputs: torch.inference_mode()(m)(**inputs),
    "attentions": called(output_attentions=True),
    "hidden states": called(output_hidden_states=True),
    "attentions and hidden states in a tuple": called(
        output_attentions=True, output_hidden_states=True, return_dict=False
    ),
    "head_mask of all layers": called(head_mask=torch.tensor([1.0, 0.0, 0.5])),
    "head_mask of each layer": called(head_mask=torch.tensor([[1, 0, 1], [0, 1, 1]])),
    "head_mask of truth values": called(head_mask=torch.tensor([True, False, True])),
    "position_ids": called(position_ids=torch.arange(3, 9)[None]),
    "position_ids of one row": called(position_ids=torch.arange(3, 9)),
    "position_ids int32": called(position_ids=torch.arange(3, 9, dtype=torch.int32)[None]),
    "token_type_ids for all": called(token_type_ids=TYPES[:1]),
    "token_type_ids int32": called(token_type_ids=TYPES.int()),
    "attention_mask for all": called(attention_mask=MASK[:1]),
    "attention_mask of truth values": called(attention_mask=MASK.bool()),
    "attention_mask float32": called(attention_mask=MASK.float()),
    "attention_mask float64": called(attention_mask=MASK.double()),
    "attention_mask int8": called(attention_mask=MASK.to(torch.int8)),
    "attention_mask in parts": called(attention_mask=MASK * 0.25 + 0.25),
    "a misspelt argument": called(atention_mask=MASK),
    "no ids at all": called(input_ids=None),
    "ids and embeddings": called(inputs_embeds=torch.zeros(2, 6, 12)),
    "ids out of range": called(input_ids=IDS + 100),
}
# transformers' reader wants token types of every row; a candidate's mask has its candidates' shape.
NOT_CALLED = {
    "RealmReader": {"token_type_ids for all"},
    "RealmKnowledgeAugEncoder": {name for name in CALLS if "attention_mask" in name or "token_type_ids" in name}
    | {"ids out of range", "ids and embeddings"},
    "RealmScorer": {"ids and embeddings"},
    "RealmEmbedder": {"ids and embeddings"},
}


def names_of(model):
    code = type(model).forward.__wrapped__.__code__ if hasattr(type(model).forward, "__wrapped__") else None
    code = code or type(model).forward.__code__
    return code.co_varnames[1 : code.co_argcount]


@pytest.mark.parametrize("case", CALLS)
def test_called(case):
    for name in CALLED:
        if case in NOT_CALLED.get(name, ()):
            continue
        theirs, ours = side_by_side.twins(name)
        found, expected = result(CALLS[case], ours, INPUTS[name]), result(CALLS[case], theirs, INPUTS[name])
        if raises(expected):
            assert found == expected or (raises(found) and found[1] == "ValueError"), name  # ours says what is wrong
        else:
            assert_near(found, expected, name)


def raises(found):
    return isinstance(found, tuple)


def assert_near(found, expected, name):
    """As `plain` has them, with the last digit of a float32 to spare."""
    assert type(found) is type(expected), name
    if isinstance(found, dict):
        assert list(found) == list(expected), name
        found, expected = list(found.values()), list(expected.values())
    if isinstance(found, (list, tuple)):
        assert len(found) == len(expected), name
        for pair in zip(found, expected, strict=True):
            assert_near(*pair, name)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, abs=2e-4), name
    else:
        assert found == expected, name


# The other arguments of each model, in every dtype that transformers takes.
ARGUMENTS = {
    "RealmScorer": {
        "candidate_input_ids": [lambda x: x.int(), lambda x: x.flatten(0, 1)],
        "candidate_attention_mask": [lambda x: x.float(), lambda x: x.bool(), lambda x: None],
        "candidate_token_type_ids": [lambda x: x.int(), lambda x: None],
    },
    "RealmKnowledgeAugEncoder": {
        "input_ids": [lambda x: x.int(), lambda x: x.flatten(0, 1)],
        "attention_mask": [lambda x: x.float(), lambda x: x.bool(), lambda x: None],
        "relevance_score": [lambda x: x.double(), lambda x: x.half(), lambda x: x.log_softmax(-1)],
        "labels": [lambda x: None, lambda x: x.clamp(min=0)],
        "mlm_mask": [lambda x: x.float(), lambda x: x.double(), lambda x: x.bool(), lambda x: x.int(), lambda x: None],
    },
    "RealmReader": {
        "relevance_score": [lambda x: x.double(), lambda x: x.half()],
        "block_mask": [lambda x: x.long(), lambda x: x.float()],
        "start_positions": [lambda x: x.int(), lambda x: x + 40, lambda x: None],
        "end_positions": [lambda x: x.int(), lambda x: None],
        "has_answers": [lambda x: x.long(), lambda x: x.int(), lambda x: None],
    },
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_other_dtypes(name):
    theirs, ours = side_by_side.twins(name)
    for argument, changes in ARGUMENTS[name].items():
        for number, change in enumerate(changes):
            inputs = INPUTS[name] | {argument: change(INPUTS[name][argument])}
            expected = result(lambda m, x: dict(m(**x)), theirs, inputs)
            assert not raises(expected), (argument, number, expected)
            assert_near(result(lambda m, x: dict(m(**x)), ours, inputs), expected, (argument, number))


# What changes a model: each on a copy of its own.
def dtypes(model):
    return sorted({str(x.dtype) for x in model.parameters()})


def after(change):
    def behaviour(model):
        returned = change(model)
        return [returned is model, dtypes(model), str(model.dtype), [name for name, _ in model.named_parameters()]]

    return behaviour


def frozen(model):
    returned = model.requires_grad_(False)
    return returned is model, [x.requires_grad for x in model.parameters()]


def doubled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.state_dict()


def swapped(model):
    if hasattr(model, "embedder"):
        other = copy.deepcopy(model.embedder)
        doubled(other)
        model.embedder = other
        return model.embedder is other, model.state_dict()


def loaded(change, **options):
    def behaviour(model):
        state = change({key: torch.full_like(x, 0.5) for key, x in model.state_dict().items()})
        found = model.load_state_dict(state, **options)
        return list(found.missing_keys), list(found.unexpected_keys), model.state_dict()

    return behaviour


def without_first(state):
    return {key: x for key, x in state.items() if key not in ("realm.embeddings.LayerNorm.bias", "block_emb")}


def without_norms(state):
    return {key: x for key, x in state.items() if not key.endswith("embeddings.LayerNorm.bias")}


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CHANGED = {
    "half": after(lambda m: m.half()),
    "bfloat16": after(lambda m: m.bfloat16()),
    "double": after(lambda m: m.double()),
    "float": after(lambda m: m.double().float()),
    "type": after(lambda m: m.type(torch.float16)),
    "cpu": after(lambda m: m.cpu()),
    "to a device": after(lambda m: m.to("cpu")),
    "to a torch.device": after(lambda m: m.to(torch.device("cpu"))),
    "to a dtype": after(lambda m: m.to(torch.float16)),
    "to a device and a dtype": after(lambda m: m.to("cpu", torch.float64)),
    "to by names": after(lambda m: m.to(device="cpu", dtype=torch.float16)),
    "to, not blocking": after(lambda m: m.to("cpu", non_blocking=True)),
    "to be like a tensor": after(lambda m: m.to(torch.zeros(1, dtype=torch.float64))),
    "to nothing": after(lambda m: m.to(torch.int64)),
    "to itself": after(lambda m: m.to(torch.float32)),
    "train": lambda m: [part.training for part in (m.train(), *m.children()) if hasattr(part, "config")][:1],
    "train(False)": lambda m: m.train().train(False).training,
    "train and eval reach the parts": lambda m: [
        getattr(m.train(), name).training for name in ("embedder", "reader") if hasattr(m, name)
    ],
    "searcher_beam_size in training": lambda m: getattr(m.train(), "searcher_beam_size", None),
    "requires_grad_(False)": frozen,
    "writing into parameters": doubled,
    "another embedder": swapped,
    "zero_grad": lambda m: m.zero_grad(),
    "load_state_dict": loaded(dict),
    "load_state_dict of half precision": loaded(lambda state: {key: x.half() for key, x in state.items()}),
    "load_state_dict is printed": lambda m: str(m.load_state_dict(m.state_dict())),
    "load_state_dict by position": lambda m: m.load_state_dict(m.state_dict(), True) is not None,
    "load_state_dict, keys missing": loaded(without_first, strict=False),
    "load_state_dict, keys unexpected": loaded(lambda state: state | {"other.weight": torch.ones(2)}, strict=False),
    "load_state_dict, strict, keys missing": loaded(without_norms),
    "load_state_dict, strict, keys unexpected": loaded(lambda state: state | {"other.weight": torch.ones(2)}),
    "load_state_dict of another shape": loaded(lambda state: {key: x[:1] for key, x in state.items()}, strict=False),
    "a state dict in a file": through_a_file,
    "a deep copy is another model": lambda m: [doubled(copy.deepcopy(m)) is None, m.state_dict()],
    "a deep copy": lambda m: copy.deepcopy(m).state_dict(),
    "a pickle": lambda m: pickle.loads(pickle.dumps(m)).state_dict(),
}


@pytest.mark.parametrize("case", CHANGED)
def test_changed(case):
    for name in MODELS:
        theirs, ours = side_by_side.twins(name)
        expected, found = (result(CHANGED[case], copy.deepcopy(model)) for model in (theirs, ours))
        assert found == expected, name


@pytest.mark.parametrize("name", CALLED)
def test_a_configuration_decides_what_a_call_returns(name):
    theirs, ours = (copy.deepcopy(model) for model in side_by_side.twins(name))
    for values in (
        dict(output_attentions=True), dict(output_hidden_states=True), dict(return_dict=False), dict(torchscript=True),
    ):  # fmt: skip
        for model in (theirs, ours):
            model.config.update(values)
            for part in (getattr(model, part, None) for part in ("embedder", "query_embedder", "realm")):
                if hasattr(part, "config"):
                    part.config.update(values)
        found, expected = (model(**INPUTS[name]) for model in (ours, theirs))
        assert type(found).__name__ == type(expected).__name__ and len(found) == len(expected), values
        assert_near(plain(found), plain(expected), values)


def test_has_answers_and_positions_as_lists():
    """As a retriever returns them; one answer a block may stand alone."""
    _, ours = side_by_side.twins("RealmReader")
    inputs = INPUTS["RealmReader"]
    expected = plain(ours(**inputs))
    names = ("start_positions", "end_positions", "has_answers")
    for change in (
        lambda x: x.tolist(),
        lambda x: list(x),
        lambda x: [[y for y in row] if x.dim() == 2 else row for row in x],
        lambda x: x.numpy(),
    ):
        assert plain(ours(**inputs | {name: change(inputs[name]) for name in names})) == expected
    first = {name: inputs[name][:, 0] for name in names[:2]}
    columns = {name: inputs[name][:, :1] for name in names[:2]}
    assert plain(ours(**inputs | first)) == plain(ours(**inputs | columns))


# What torch's own optimizers and losses find


def test_an_optimizer_of_torch_trains_a_model():
    """The .grad of each parameter is what model.backward() gathers, as autograd gives it to transformers' model."""
    theirs, ours = (copy.deepcopy(model) for model in side_by_side.twins("RealmKnowledgeAugEncoder"))
    inputs, optimizers = INPUTS["RealmKnowledgeAugEncoder"], []
    for model in (theirs, ours):
        optimizers.append(torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5))
    for step in range(3):
        losses = [model(**inputs).loss for model in (theirs, ours)]
        losses[0].backward()
        ours.backward()
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_([x for x in model.parameters() if x.grad is not None], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=step != 1)
        assert losses[1].item() == pytest.approx(losses[0].item(), abs=1e-4)
    for key, tensor in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[key], tensor, atol=1e-4), key


def test_gradients_add_up_until_they_are_zeroed():
    model, inputs = new("RealmKnowledgeAugEncoder"), INPUTS["RealmKnowledgeAugEncoder"]
    output = model(**inputs)
    model.backward(output), model.backward(output)
    twice = model.get_parameter(WORDS).grad.clone()
    for zero in (model.zero_grad, torch.optim.SGD(model.parameters()).zero_grad):
        zero()
        model.backward(output)
        assert torch.allclose(model.get_parameter(WORDS).grad * 2, twice, atol=1e-6)
        assert model.get_parameter(WORDS).grad is model.grads[WORDS]


def test_what_no_output_depends_on_has_no_grad():
    model = new("RealmEmbedder")
    model.backward(model(**ONE), projected_score=torch.ones(2, 7))
    assert {name for name, x in model.named_parameters() if x.grad is None} == {
        name for name in model.state_dict() if name.startswith("cls.predictions.") and "decoder.bias" not in name
    }


@pytest.mark.parametrize("name", CALLED)
def test_backward_of_a_tensor_says_what_to_call(name):
    output = new(name)(**INPUTS[name])
    loss = output.loss if "loss" in output else output[0]
    for tensor in (loss, loss.mean() / 4, loss.log_softmax(-1).sum()):
        with pytest.raises(RuntimeError, match=r"no graph was recorded.*: call model\.backward\(\) for the loss"):
            tensor.backward()
    for copied in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert type(copied) is torch.Tensor and torch.equal(copied, loss)
    assert repr(loss).startswith("tensor(") and not loss.requires_grad


def test_requires_grad_is_refused():
    with pytest.raises(NotImplementedError, match=r"RealmEmbedder\.requires_grad_\(\): autograd records nothing here"):
        new("RealmEmbedder").requires_grad_()


def test_parts_that_hold_weights_alone_say_so():
    realm = new("RealmEmbedder").realm
    with pytest.raises(TypeError, match=r"RealmEmbedder\.realm\.encoder\.layer\.0 holds weights.*: call the model"):
        realm.encoder.layer[0](torch.zeros(1, 2, 12))
    with pytest.raises(AttributeError, match=r"pooler\.dense\.weight stays where it is: write into the tensors"):
        realm.pooler.dense.weight = torch.zeros(12, 12)
    with pytest.raises(AttributeError, match="RealmEmbedder has nothing under 'realm.decoder'"):
        _ = realm.decoder
    with pytest.raises(AttributeError, match=r"RealmEmbedder\.realm\.register_forward_hook: layers are functions"):
        realm.register_forward_hook(print)


def test_the_nearest_argument_is_named():
    with pytest.raises(TypeError, match="no argument 'atention_mask': did you mean 'attention_mask'?"):
        new("RealmEmbedder")(IDS, atention_mask=MASK)
    with pytest.raises(TypeError, match="RealmScorer has no argument 'candidates'"):
        new("RealmScorer")(IDS, candidates=IDS)


def test_the_seed_of_torch():
    """torch.manual_seed decides weights and dropout, as in transformers; a seed of one's own decides them alone."""

    def drawn(number, **given):
        torch.manual_seed(number)
        model = realm_min.RealmEmbedder(realm_min.RealmConfig(**side_by_side.SIZES), **given)
        return model.state_dict()["cls.dense.weight"], model(**ONE).projected_score

    for a, b in zip(drawn(1), drawn(1), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(drawn(1), drawn(2), strict=True):
        assert not torch.equal(a, b)
    for a, b in zip(drawn(1, seed=5), drawn(2, seed=5), strict=True):
        assert torch.equal(a, b)
    first, second = (
        realm_min.RealmEmbedder(realm_min.RealmConfig(**side_by_side.SIZES)).state_dict() for _ in range(2)
    )
    assert not torch.equal(first["cls.dense.weight"], second["cls.dense.weight"])
