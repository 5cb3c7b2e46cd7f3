"""Every public name of transformers' five models works here or is left out, in one sentence that the docs list."""

import re
from pathlib import Path

import pytest
import torch
from side_by_side import MODELS, new, twins

import realm_min
from realm_min.compatible.left_out import OF_CONFIGURATIONS, OF_MODELS, OF_THE_PACKAGE
from realm_min.compatible.loading import take_loading_options

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"


@pytest.mark.parametrize("name", MODELS)
def test_every_public_name_is_here_or_left_out(name):
    theirs, ours = twins(name)
    public = {attribute for attribute in dir(theirs) if not attribute.startswith("_")}
    assert {attribute for attribute in public if not hasattr(ours, attribute)} <= OF_MODELS.keys()


def test_nothing_is_left_out_that_transformers_has_not():
    theirs = set().union(*(dir(twins(name)[0]) for name in MODELS))
    assert OF_MODELS.keys() - theirs == set()


@pytest.mark.parametrize("name", OF_MODELS)
def test_what_is_left_out_says_so(name):
    model = new("RealmScorer")
    for asked in (model, realm_min.RealmScorer):
        with pytest.raises(AttributeError) as caught:
            getattr(asked, name)
        assert str(caught.value) == f"RealmScorer.{name}: {OF_MODELS[name]}" and not hasattr(asked, name)


def test_a_sentence_is_one():
    for sentence in {*OF_MODELS.values(), *OF_CONFIGURATIONS.values(), *OF_THE_PACKAGE.values()}:
        assert not re.search(r"\. |\.$|\n", sentence) and re.search("[;,:] ", sentence), sentence


def test_the_page_lists_what_is_left_out():
    listed = {}
    section = PAGE.read_text(encoding="utf-8").partition("## Models, configuration, outputs")[2].partition("\n## ")[0]
    for names, sentence in re.findall(r"^\| (`.*`) \| (.*) \|$", section, re.M):
        listed |= dict.fromkeys(re.findall(r"`(\w+)`", names), sentence)
    public = {name: sentence for name, sentence in OF_MODELS.items() if not name.startswith("_")}
    assert public.items() <= listed.items()
    assert OF_CONFIGURATIONS.items() | OF_THE_PACKAGE.items() <= listed.items()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(device_map="auto"), "device_map='auto': a model is loaded on the CPU; .* model.to"),
        (dict(attn_implementation="sdpa"), "attn_implementation='sdpa': attention has one implementation"),
        (dict(load_in_8bit=True), "load_in_8bit=True: weights are not quantised"),
        (dict(from_tf=True), "from_tf=True: convert TensorFlow's files first"),
        (dict(variant="fp16"), "variant='fp16': files are read under their usual names"),
    ],
)
def test_ways_of_loading_that_are_left_out(option, message):
    with pytest.raises(ValueError, match=message):
        realm_min.RealmEmbedder.from_pretrained("folder", **option)


def test_ways_of_loading_that_ask_for_nothing(tmp_path):
    new("RealmEmbedder").save_pretrained(
        tmp_path, token="secret", save_function=torch.save, push_to_hub=False, variant=None, safe_serialization=False
    )
    given = dict(low_cpu_mem_usage=True, use_safetensors=False, attn_implementation="eager", device_map=None)
    realm_min.RealmEmbedder.from_pretrained(tmp_path, **given)
    take_loading_options(given)
    assert given == {}
    with pytest.raises(ValueError, match="push_to_hub=True: nothing is sent to the hub"):
        new("RealmEmbedder").save_pretrained(tmp_path, push_to_hub=True)
