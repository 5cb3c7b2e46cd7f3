"""The configuration: what the class declares, against transformers' `RealmConfig`."""

import inspect
import typing

import numpy as np
import pytest
from oracle import transformers

from realm_min import RealmConfig, RealmEmbedder

DECLARED = typing.get_type_hints(RealmConfig)
SIZES = dict(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
THEIRS = transformers.RealmConfig()


def test_every_parameter_of_transformers_is_declared():
    theirs = [*inspect.signature(transformers.RealmConfig.__init__).parameters][1:-1]  # without self and **kwargs
    assert set(theirs) < DECLARED.keys()
    assert DECLARED.keys() - set(theirs) == {
        # Of all their configurations, and one that their model takes as "absolute" where it is not there.
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "position_embedding_type",
    }


@pytest.mark.parametrize("name", DECLARED)
def test_a_declaration_has_the_default_of_transformers_and_its_own_type(name):
    default = getattr(RealmConfig, name)
    assert type(default) is DECLARED[name]
    if name != "position_embedding_type":
        assert default == getattr(THEIRS, name)


def test_an_instance_has_every_value_of_its_own():
    config = RealmConfig(hidden_size=24, num_labels=3)
    assert list(vars(config)) == [*DECLARED, "num_labels"]
    assert list(config.to_dict()) == ["model_type", *DECLARED, "num_labels"]
    assert config.hidden_size == 24 and RealmConfig.hidden_size == 768 == RealmConfig().hidden_size
    assert (
        RealmConfig().to_dict() == {"model_type": "realm"} | {name: getattr(RealmConfig, name) for name in DECLARED}
    )  # fmt: skip


@pytest.mark.parametrize("name", ["to_dict", "from_pretrained", "check", "__class__", "__annotations__"])
def test_names_of_the_class_are_no_values(name):
    with pytest.raises(ValueError, match=f"'{name}' names a part of RealmConfig itself"):
        RealmConfig(**{name: 1})


def test_numbers_of_numpy_become_pythons(tmp_path):
    """`num_block_records=lengths.sum()`, say; transformers takes them, and fails when it writes them."""
    config = RealmConfig(vocab_size=np.int64(9), hidden_dropout_prob=np.float32(0.5), return_dict=np.False_, **SIZES)
    config.num_block_records = np.array(7)
    RealmEmbedder(config, initialize=False).save_pretrained(tmp_path)
    read = RealmConfig.from_pretrained(tmp_path)
    assert (read.vocab_size, read.hidden_dropout_prob, read.return_dict, read.num_block_records) == (9, 0.5, False, 7)
    with pytest.raises(ValueError, match=r"vocab_size=9\.5 must be an integer"):
        RealmConfig(vocab_size=np.float64(9.5))


@pytest.mark.parametrize("names", [5, True, 1e999, "RealmForOpenQA", {"a": 1}, [5], [["RealmForOpenQA"]]])
def test_architectures_are_names(names):
    """They are read before a model is, to say what a folder holds."""
    with pytest.raises(ValueError, match="^architectures=.* must be a list of names of classes, or null"):
        RealmConfig.from_dict({"architectures": names})
    for names in (None, [], ["RealmForOpenQA"], ("RealmForOpenQA",)):
        RealmConfig(architectures=names)
