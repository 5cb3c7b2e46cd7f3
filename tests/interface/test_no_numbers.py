"""Numbers that are none, NaN and infinity, and ids that are none are refused where they enter."""

import json

import eight_capitals
import pytest
import torch
from side_by_side import INPUTS, ONE, new

from realm_min import RealmConfig, RealmKnowledgeAugEncoder
from realm_min.app.printable import say_json
from realm_min.jobs.embedding import embed_blocks
from realm_min.search.mips import BlockIndex

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", ["RealmEmbedder", "RealmScorer", "RealmForOpenQA"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_are_refused_and_the_model_stays_as_it_was(name, dtype, value):
    model = new(name).to(dtype)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    key = list(before)[-1]  # the last to be copied
    state = {name: tensor + 1 for name, tensor in before.items()}
    state[key].view(-1)[-1] = value
    with pytest.raises(ValueError, match=rf"the state dict cannot be taken: {key} holds {value}, which is not finite"):
        model.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_overflow_as_they_are_cast_are_refused():
    model = new("RealmEmbedder").half()
    state = {key: tensor.float() for key, tensor in model.state_dict().items()}
    state["cls.dense.bias"][0] = 70_000.0
    with pytest.raises(ValueError, match=r"cls\.dense\.bias holds 70000, which is not finite as torch\.float16"):
        model.load_state_dict(state)


def test_a_folder_of_such_weights_is_refused(tmp_path):
    model = new("RealmEmbedder")
    model.p["cls.dense.bias"][0] = NAN
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path.name}.* cannot be taken: cls\.dense\.bias holds nan"):
        type(model).from_pretrained(tmp_path)


READER, ENCODER = INPUTS["RealmReader"], INPUTS["RealmKnowledgeAugEncoder"]


def changed(inputs, name, value, place=0):
    """The inputs with one number changed in one of them, which becomes float where it has to."""
    tensor = torch.as_tensor(inputs[name])
    tensor = tensor.clone() if isinstance(value, int) else tensor.float().clone()
    tensor.view(-1)[place] = value
    return {**inputs, name: tensor}


@pytest.mark.parametrize(
    ("model", "inputs", "name", "value", "why"),
    [
        ("RealmEmbedder", ONE, "input_ids", 2.0, "input_ids has dtype torch.float32: expected integers"),
        ("RealmEmbedder", ONE, "input_ids", 10**6, "input_ids holds 1000000, which is out of range"),
        ("RealmEmbedder", ONE, "input_ids", -1, "input_ids holds -1, which is out of range"),
        ("RealmEmbedder", ONE, "attention_mask", NAN, "attention_mask holds nan: expected finite numbers"),
        ("RealmReader", READER, "relevance_score", NAN, "relevance_score holds nan"),
        ("RealmReader", READER, "relevance_score", INF, "relevance_score holds inf"),
        ("RealmReader", READER, "has_answers", 2, "has_answers holds 2: expected true or false"),
        ("RealmReader", READER, "start_positions", 1.0, "start_positions has dtype torch.float32: expected integers"),
        ("RealmReader", READER, "end_positions", NAN, "end_positions has dtype torch.float32: expected integers"),
        ("RealmKnowledgeAugEncoder", ENCODER, "labels", 1.0, "labels has dtype torch.float32: expected integers"),
        ("RealmKnowledgeAugEncoder", ENCODER, "labels", 10**6, "1000000"),
        ("RealmKnowledgeAugEncoder", ENCODER, "labels", -2, "-2"),
        ("RealmKnowledgeAugEncoder", ENCODER, "relevance_score", NAN, "relevance_score holds nan"),
    ],
)
def test_inputs_are_refused(model, inputs, name, value, why):
    inputs = {"attention_mask": torch.ones_like(ONE["input_ids"]), **inputs} if inputs is ONE else inputs
    if name == "has_answers":
        inputs = {**inputs, name: torch.as_tensor(inputs[name]).long()}
    with pytest.raises(ValueError, match=why):
        new(model)(**changed(inputs, name, value))


def test_what_is_made_of_ids_too_large_for_a_byte_is_not_wrapped():
    """uint8 has no -100 and no -1, int32 is no dtype that torch gathers by: each is taken as the number it is."""
    expected = new("RealmKnowledgeAugEncoder")(**ENCODER).loss
    inputs = {**ENCODER, "labels": ENCODER["labels"].to(torch.int16)}
    assert torch.equal(new("RealmKnowledgeAugEncoder")(**inputs).loss, expected)


@pytest.mark.parametrize("masked", [0, 1])
def test_a_label_that_a_byte_wraps_to_is_a_label(masked):
    """As uint8, -100 is 156, which is no word of a small vocabulary, and one of a large."""
    labels = ENCODER["labels"].to(torch.uint8).fill_(156)
    given = {**ENCODER, "labels": labels, "mlm_mask": torch.full_like(labels, masked)}
    with pytest.raises(ValueError, match="label 156 is out of range"):
        new("RealmKnowledgeAugEncoder")(**given)
    large = RealmKnowledgeAugEncoder(RealmConfig(**eight_capitals.CONFIG | {"vocab_size": 200}), seed=1)
    pair = [ENCODER["input_ids"].flatten(0, -2)[:1], *(2 * [torch.ones_like(ENCODER["input_ids"].flatten(0, -2)[:1])])]
    found = [large.masked_log_likelihood(*pair, labels[:1].to(dtype))[0] for dtype in (torch.uint8, torch.int64)]
    assert torch.equal(*found) and (found[0] < 0).all()


def test_embeddings_are_refused(tmp_path):
    model = eight_capitals.open_qa()
    model.embedder.p["cls.LayerNorm.bias"][0] = INF
    with pytest.raises(ValueError, match=r"the embedding of a block of '\w+' is not finite"):
        embed_blocks(model.embedder, eight_capitals.tokenizer(), eight_capitals.BLOCKS[:2])
    index = BlockIndex(torch.ones(4, 3))
    index.save(tmp_path / "whole")
    index.blocks[1, 1] = NAN
    index.save(tmp_path / "index")
    with pytest.raises(ValueError, match="its blocks hold NaN or infinity"):
        BlockIndex.load(tmp_path / "index")


def test_json_has_null_in_place_of_them(capsys):
    say_json({"a": NAN, "b": [1.5, -INF, {"c": INF}], "d": (NAN, "NaN"), "e": 1})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None, {"c": None}], "d": [None, "NaN"], "e": 1}
