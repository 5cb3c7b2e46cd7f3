"""Outputs as transformers' `ModelOutput` documents them: a dataclass, a dict and, by place, a tuple."""

import copy
import dataclasses
import pickle
from collections import OrderedDict

import pytest
import torch
from oracle import realm_modeling, transformers
from side_by_side import INPUTS, result, twins

from realm_min.interface import outputs
from realm_min.interface.unrecorded import unrecorded

LOGITS, STATES = torch.arange(6.0).view(1, 2, 3), (torch.ones(1), torch.zeros(1))
CLASSES = {
    name: (
        getattr(realm_modeling, name, None) or getattr(transformers.modeling_outputs, name),
        getattr(outputs, name),
    )
    for name in (
        "RealmEmbedderOutput", "RealmScorerOutput", "RealmReaderOutput", "RealmForOpenQAOutput", "MaskedLMOutput",
        "BaseModelOutputWithPoolingAndCrossAttentions",
    )
}  # fmt: skip


def refused(change):
    def behaviour(output):
        with pytest.raises(Exception):  # noqa: B017 (transformers' is no other)
            change(output)
        return list(output.items())

    return behaviour


def changed(change):
    def behaviour(output):
        returned = change(output)
        return returned, list(output.items()), [getattr(output, name) for name in ("loss", "logits", "hidden_states")]

    return behaviour


CASES = {
    "keys": lambda o: list(o.keys()),
    "values": lambda o: list(o.values()),
    "items": lambda o: list(o.items()),
    "length": len,
    "iteration": list,
    "unpacking of the tuple": lambda o: [x for x in o.to_tuple()],
    "unpacking of two": lambda o: (lambda a, b: (a, b))(*o.to_tuple()),
    "to_tuple": lambda o: o.to_tuple(),
    "by place": lambda o: o[0],
    "by place from the end": lambda o: o[-1],
    "by a place too many": lambda o: o[2],
    "a slice": lambda o: o[:1],
    "a slice of all": lambda o: o[:],
    "by name": lambda o: o["logits"],
    "by the name of what is None": lambda o: o["loss"],
    "by an unknown name": lambda o: o["scores"],
    "attribute": lambda o: o.logits,
    "attribute that is None": lambda o: o.loss,
    "unknown attribute": lambda o: o.scores,
    "in": lambda o: ["logits" in o, "loss" in o, 0 in o],
    "get": lambda o: [o.get("logits"), o.get("loss"), o.get("loss", 7)],
    "truth": bool,
    "truth of nothing": lambda o: bool(type(o)()),
    "is a dict": lambda o: isinstance(o, dict) and isinstance(o, OrderedDict),
    "is a dataclass": lambda o: dataclasses.is_dataclass(o),
    "dict": dict,
    "double star": lambda o: {**o},
    "a function's keywords": lambda o: (lambda **given: sorted(given))(**o),
    "repr": lambda o: repr(o).startswith("MaskedLMOutput(loss=None, logits=tensor("),
    "reversed": lambda o: list(reversed(o)),
    "equal to itself": lambda o: o == o,
    "equal to the same": lambda o: o == copy.copy(o),
    "equal to a dict": lambda o: o == {"logits": 3},
    "copy.copy": lambda o: [type(copy.copy(o)).__name__, copy.copy(o).logits is o.logits],
    "copy.deepcopy": lambda o: [dict(copy.deepcopy(o)), copy.deepcopy(o).logits is o.logits],
    "a pickle": lambda o: [dict(pickle.loads(pickle.dumps(o))), pickle.loads(pickle.dumps(o)).loss],
    "pop": refused(lambda o: o.pop("logits")),
    "setdefault": refused(lambda o: o.setdefault("loss", 3)),
    "update": refused(lambda o: o.update(loss=3)),
    "del": refused(lambda o: o.__delitem__("logits")),
    "setting an attribute": changed(lambda o: setattr(o, "logits", 5)),
    "setting an attribute that was None": changed(lambda o: setattr(o, "loss", 5)),
    "setting an item": changed(lambda o: o.__setitem__("logits", 5)),
    "setting an item that was None": changed(lambda o: o.__setitem__("loss", 5)),
    "setting an attribute to None": changed(lambda o: setattr(o, "logits", None)),
    "move_to_end": changed(lambda o: o.move_to_end("logits")),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs(case):
    found, expected = (
        result(CASES[case], cls(logits=LOGITS, hidden_states=STATES)) for cls in reversed(CLASSES["MaskedLMOutput"])
    )
    assert found == expected


@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_their_order(name):
    theirs, ours = CLASSES[name]
    expected = [field.name for field in dataclasses.fields(theirs)]
    assert [field.name for field in dataclasses.fields(ours) if field.init] == expected
    values = list(range(1, len(expected) + 1))
    assert list(ours(*values).items()) == list(theirs(*values).items())
    assert [name for name in dir(theirs(1)) if not name.startswith("_") and not hasattr(ours(1), name)] == []


def test_what_is_changed_says_so():
    with pytest.raises(TypeError, match=r"MaskedLMOutput has the fields that its call returned: .*dict\(output\)"):
        outputs.MaskedLMOutput(logits=LOGITS).pop("logits")
    with pytest.raises(KeyError, match="MaskedLMOutput has no 'loss': this call returned logits"):
        outputs.MaskedLMOutput(logits=LOGITS)["loss"]


@pytest.mark.parametrize("name", INPUTS)
def test_a_copy_of_an_output_has_no_call(name):
    _, model = twins(name)
    output = model(**INPUTS[name])
    assert output.call is not None and "call" not in output and "call" not in repr(output)
    for copied in (copy.copy(output), copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert copied.call is None and list(copied) == list(output)
        assert all(torch.equal(copied[key], output[key]) for key in output)


def test_a_loss_is_printed_as_a_number():
    loss = unrecorded(torch.tensor(0.25))
    assert f"{loss:.4f} {loss * 2:.1f} {loss}" == "0.2500 0.5 0.25"
    assert repr(loss) == "tensor(0.2500)" and str(unrecorded(torch.ones(2))) == "tensor([1., 1.])"
