"""A configuration as transformers' `PretrainedConfig` documents it, ours beside theirs."""

import copy
import json
import pickle
import warnings

import pytest
import torch
from oracle import transformers
from side_by_side import SIZES, result

import realm_min
from realm_min.compatible.configuration import INHERITED as OF_ALL
from realm_min.compatible.left_out import OF_CONFIGURATIONS
from realm_min.config import DEFAULTS

BOTH = (realm_min.RealmConfig, transformers.RealmConfig)


def values(config):
    """Those of REALM."""
    return {name: value for name, value in config.to_dict().items() if name in KNOWN}


KNOWN = {*DEFAULTS, "model_type"} - {"position_embedding_type"}


def saved(cls, folder, **given):
    cls(**SIZES | given).save_pretrained(folder)
    return folder


BY_PLACE = (9, 8, 7, 1, 2, 3, 4, "relu", 0, 0, 5, 2, 0.1, 1e-5, 6, 7, 1e-4, 2, 3, 4, 5, 6, 7, 8)
TOLD = ("output_attentions", "top_k", "top_p")
FOUR = [(x, y) for x in (True, False) for y in (True, False)]
TEXT = "hidden_size=24,hidden_act=relu,initializer_range=0.5,output_attentions=true"


def written(cls, folder):
    folder.mkdir()
    cls(**SIZES).to_json_file(folder / "x.json")
    return folder / "x.json"


def setting(name, value):
    return lambda config: setattr(config, name, value)


CASES = {
    "defaults": lambda cls, _: values(cls()),
    "keywords": lambda cls, _: values(cls(hidden_size=24, num_attention_heads=2)),
    "by place": lambda cls, _: values(cls(100, 24, 8, 2, 4, 3, 50, "gelu", 0.0, 0.2)),
    "all by place": lambda cls, _: values(cls(*BY_PLACE)),
    "one too many by place": lambda cls, _: cls(*range(1, 26)),
    "model_type": lambda cls, _: (cls.model_type, cls().model_type),
    "is_composition": lambda cls, _: cls().is_composition,
    "attribute_map": lambda cls, _: cls().attribute_map,
    "num_labels": lambda cls, _: (cls().num_labels, cls(num_labels=4).num_labels),
    "id2label": lambda cls, _: (cls().id2label, cls(num_labels=3).id2label, cls(num_labels=3).label2id),
    "id2label of texts": lambda cls, _: cls(id2label={"0": "a", "1": "b", "2": "c"}).id2label,
    "num_labels of id2label": lambda cls, _: cls(id2label={0: "a", 1: "b", 2: "c"}).num_labels,
    "setting num_labels": lambda cls, _: after(cls(), setting("num_labels", 5), "num_labels", "label2id"),
    "setting id2label": lambda cls, _: after(cls(), setting("id2label", {0: "x"}), "num_labels", "id2label"),
    "setting label2id": lambda cls, _: after(cls(), setting("label2id", {"x": 0}), "label2id"),
    "use_return_dict": lambda cls, _: [cls(return_dict=x, torchscript=y).use_return_dict for x, y in FOUR],
    "setting use_return_dict": lambda cls, _: setattr(cls(), "use_return_dict", True),
    "name_or_path": lambda cls, _: (cls().name_or_path, cls(name_or_path="here").name_or_path),
    "setting name_or_path": lambda cls, _: after(cls(), setting("name_or_path", 5), "name_or_path"),
    "torch_dtype": lambda cls, _: [cls(torch_dtype=x).torch_dtype for x in (None, "float16", torch.float64)],
    "torch_dtype in a dict": lambda cls, _: cls(torch_dtype=torch.bfloat16).to_dict()["torch_dtype"],
    "dict_torch_dtype_to_str": lambda cls, _: converted(cls()),
    "inherited values": lambda cls, _: [getattr(cls(), name) for name in INHERITED],
    "an inherited value that was set": lambda cls, _: (cls(top_k=7).top_k, cls(top_k=7).to_dict()["top_k"]),
    "a value of one's own": lambda cls, _: (cls(note="x").note, cls(note="x").to_dict()["note"]),
    "an unknown attribute": lambda cls, _: cls().num_canditates,
    "setting any attribute": lambda cls, _: after(cls(), setting("note", [1]), "note"),
    "to_dict is a copy": lambda cls, _: after(cls(note=[1]), lambda c: c.to_dict()["note"].append(2), "note"),
    "to_diff_dict": lambda cls, _: sorted(cls(**SIZES).to_diff_dict().keys() - UNLIKE),
    "to_diff_dict of what was set": lambda cls, _: (
        [cls(output_attentions=True, top_k=3).to_diff_dict().get(name) for name in TOLD]
    ),
    "to_diff_dict of what was set to its default": lambda cls, _: "top_k" in cls(top_k=50).to_diff_dict(),
    "to_json_string": lambda cls, _: sorted(json.loads(cls(**SIZES).to_json_string()).keys() - UNLIKE),
    "to_json_string of all": lambda cls, _: cls(**SIZES).to_json_string(use_diff=False).count("output_attentions"),
    "to_json_string is sorted": lambda cls, _: (lambda d: list(d) == sorted(d))(json.loads(cls().to_json_string())),
    "repr": lambda cls, _: [x in repr(cls(vocab_size=9)) for x in ("RealmConfig {\n", '"vocab_size": 9')],
    "to_json_file": lambda cls, folder: values(cls.from_json_file(written(cls, folder))),
    "from_json_file of nothing": lambda cls, folder: cls.from_json_file(folder / "nothing.json"),
    "from_dict": lambda cls, _: values(cls.from_dict(dict(SIZES))),
    "from_dict with overrides": lambda cls, _: values(cls.from_dict(dict(SIZES), hidden_size=24)),
    "from_dict, unused": lambda cls, _: (
        cls.from_dict(dict(SIZES), return_unused_kwargs=True, foo=1, hidden_size=24)[1]
    ),
    "from_pretrained": lambda cls, folder: values(cls.from_pretrained(saved(cls, folder))),
    "from_pretrained with overrides": lambda cls, folder: (
        values(cls.from_pretrained(saved(cls, folder), vocab_size=9))
    ),
    "from_pretrained, unused": lambda cls, folder: (
        cls.from_pretrained(saved(cls, folder), return_unused_kwargs=True, top_k=5, foo=False)[1]
    ),
    "from_pretrained of a file": lambda cls, folder: values(cls.from_pretrained(saved(cls, folder) / "config.json")),
    "from_pretrained of a str": lambda cls, folder: values(cls.from_pretrained(str(saved(cls, folder)))),
    "from_pretrained of nothing": lambda cls, folder: cls.from_pretrained(folder / "nothing"),
    "from_pretrained of labels": lambda cls, folder: (
        cls.from_pretrained(saved(cls, folder, id2label={0: "a"})).id2label
    ),
    "from_pretrained of a dtype": lambda cls, folder: (
        cls.from_pretrained(saved(cls, folder, torch_dtype="half")).torch_dtype
    ),
    "get_config_dict": lambda cls, folder: (
        (lambda d, unused: [d["hidden_size"], unused])(*cls.get_config_dict(saved(cls, folder), foo=3))
    ),
    "save_pretrained": lambda cls, folder: sorted(path.name for path in saved(cls, folder).iterdir()),
    "update": lambda cls, _: after(cls(), lambda c: c.update({"hidden_size": 24, "note": 3}), "hidden_size", "note"),
    "update_from_string": lambda cls, _: (
        after(cls(), lambda c: c.update_from_string(TEXT), *(part.split("=")[0] for part in TEXT.split(",")))
    ),
    "update_from_string, unknown": lambda cls, _: cls().update_from_string("hidden=24"),
    "update_from_string, no truth value": lambda cls, _: cls().update_from_string("output_attentions=maybe"),
    "update_from_string, a list": lambda cls, _: cls(note=[]).update_from_string("note=1"),
    "equal": lambda cls, _: [cls() == cls(), cls() == cls(vocab_size=9), cls() == 3, cls(**SIZES) == cls(**SIZES)],
    "a copy": lambda cls, _: [copy.copy(cls(**SIZES)) == cls(**SIZES), copy.deepcopy(cls(**SIZES)) == cls(**SIZES)],
    "a pickle": lambda cls, _: pickle.loads(pickle.dumps(cls(**SIZES))) == cls(**SIZES),
    "hash": lambda cls, _: hash(cls()),
    "model(config).config": lambda cls, _: same_configuration(cls),
}  # fmt: skip
INHERITED = sorted(OF_ALL.keys() - {"transformers_version"})
# Names that only one of the two writes.
UNLIKE = {"transformers_version", "position_embedding_type"}


def after(config, change, *names):
    change(config)
    return [getattr(config, name) for name in names]


def converted(config):
    given = {"torch_dtype": torch.float16, "inner": {"torch_dtype": torch.float32}, "x": 1}
    config.dict_torch_dtype_to_str(given)
    return given


def same_configuration(cls):
    config = cls(**SIZES)
    return (realm_min if cls is BOTH[0] else transformers).RealmEmbedder(config).config is config


@pytest.mark.parametrize("case", CASES)
def test_configurations(case, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unknown keywords: see below
        found, expected = (result(CASES[case], cls, tmp_path / cls.__module__) for cls in BOTH)
    assert found == expected


def test_every_public_name_is_here_or_left_out():
    ours, theirs = (cls() for cls in BOTH)
    missing = [name for name in dir(theirs) if not name.startswith("_") and not hasattr(ours, name)]
    assert sorted(missing) == sorted(OF_CONFIGURATIONS)


@pytest.mark.parametrize("name", OF_CONFIGURATIONS)
def test_what_is_left_out_says_so(name):
    for asked in (realm_min.RealmConfig, realm_min.RealmConfig()):
        with pytest.raises(AttributeError) as caught:
            getattr(asked, name)
        assert str(caught.value) == f"RealmConfig.{name}: {OF_CONFIGURATIONS[name]}"


@pytest.mark.parametrize(
    "give",
    [
        lambda **given: realm_min.RealmConfig(**given),
        lambda **given: realm_min.RealmConfig.from_dict({}, **given),
    ],
)
def test_a_misspelt_value_is_named(give):
    with pytest.warns(UserWarning) as warned:
        give(num_canditates=2)
    message = "RealmConfig has no 'num_canditates', which has no effect: did you mean 'num_candidates'?"
    assert [str(warning.message) for warning in warned] == [message] and warned[0].filename == __file__


def test_values_of_other_models_and_files_say_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "realm", "of_another_program": 3, "use_cache": true}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = realm_min.RealmConfig.from_pretrained(tmp_path, of_another_program=4, max_length=30)
        realm_min.RealmConfig(use_cache=True, gradient_checkpointing=False, name_or_path="x", top_p=0.5)
    assert config.of_another_program == 4 and config.max_length == 30


def test_labels_and_texts_are_checked(tmp_path):
    for values, message in (
        (dict(num_labels="x"), "num_labels='x' must be an integer of at least 0"),
        (dict(num_labels=-1), "num_labels=-1 must be"),
        (dict(id2label="x"), "id2label='x' must be a dict of numbers to labels"),
    ):
        with pytest.raises(ValueError, match=message):
            realm_min.RealmConfig(**values)
    with pytest.raises(ValueError, match="update_from_string: hidden_size='abc' is no int: give one"):
        realm_min.RealmConfig(**SIZES).update_from_string("hidden_size=abc")
    with pytest.raises(TypeError, match="subfolder=5 is no path: give the name of a folder in the"):
        realm_min.RealmConfig.from_pretrained(tmp_path, subfolder=5)
    assert realm_min.RealmConfig(num_labels=3).id2label[2] == "LABEL_2"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pruned_heads", {0: [1]}, "pruned_heads is not empty: .*pass head_mask"),
        ("_attn_implementation_internal", "sdpa", "attn_implementation: attention has one implementation"),
        ("hidden_size", 13, "not divisible by num_attention_heads"),
        ("num_candidates", 0, "num_candidates=0 must be an integer of at least 1"),
        ("hidden_dropout_prob", 1.5, "hidden_dropout_prob=1.5 must be a probability"),
        ("hidden_act", "gelu_neu", "hidden_act='gelu_neu' is unknown"),
        ("is_decoder", True, "is_decoder=True: REALM's encoder reads both ways"),
    ],
)
def test_what_is_set_later_is_checked_when_a_model_is_built(name, value, message):
    config = realm_min.RealmConfig(**SIZES)
    setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        realm_min.RealmEmbedder(config)


def test_where_a_model_was_read_from_is_written_nowhere(tmp_path):
    realm_min.RealmEmbedder(realm_min.RealmConfig(**SIZES)).save_pretrained(tmp_path / "a")
    model = realm_min.RealmEmbedder.from_pretrained(tmp_path / "a")
    assert model.name_or_path == model.config.name_or_path == str(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()
