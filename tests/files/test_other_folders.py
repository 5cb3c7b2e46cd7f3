"""Folders as others wrote them: before torch 1.6, under older names, wrapped, in shards, or a pointer of Git LFS."""

import io
import json
import pickle
import re
import struct
import tarfile

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from side_by_side import MODELS, ONE, SIZES, new
from test_checkpoint import Calls

import realm_min
from realm_min.files.checkpoint import read_state_dict

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 438007537\n"


def save_old(content, path, **given):
    torch.save(content, path, _use_new_zipfile_serialization=False, **given)


def folder_of(model, folder, state_dict, write=save_old, name="pytorch_model.bin"):
    model.config.save_pretrained(folder)
    write(state_dict, folder / name)
    return folder


# ---- before torch 1.6


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_before_torch_1_6(tmp_path, name):
    model = new(name)
    folder_of(model, tmp_path, model.state_dict())
    found = getattr(realm_min, name).from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_old_files_of_any_protocol_and_dtype(tmp_path, protocol, dtype):
    base = torch.arange(12).to(dtype)
    tensors = {"a": base.view(3, 4), "tied": base.view(3, 4), "b": base[2:5], "c": torch.ones(2).to(dtype)}
    try:
        save_old(tensors, tmp_path / "pytorch_model.bin", pickle_protocol=protocol)
        found = read_state_dict(tmp_path)
    except ValueError as error:  # torch's reader of pickles has the instructions of protocol 2, which it writes
        assert protocol != 2 and str(error).startswith(str(tmp_path))
    else:
        assert all(torch.equal(found[key], tensor) and found[key].dtype == dtype for key, tensor in tensors.items())


@pytest.mark.parametrize("where", ["value", "key", "nested", "instead of the number", "after it", "at the end"])
def test_old_pickled_calls_are_refused_and_never_made(tmp_path, where):
    mark = tmp_path / "executed"
    evil = Calls(eval, f"open({str(mark)!r}, 'w')")
    path = tmp_path / "pytorch_model.bin"
    content = {"value": {"a": evil}, "key": {evil: torch.ones(2)}, "nested": {"a": [(evil,)]}}.get(where, {"a": evil})
    save_old(content, path)
    data, call = path.read_bytes(), pickle.dumps(evil, protocol=2)
    number = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    if where == "instead of the number":
        path.write_bytes(call + data)
    elif where == "after it":
        path.write_bytes(number + call + data)
    elif where == "at the end":
        save_old({"a": torch.ones(2)}, path)
        path.write_bytes(path.read_bytes()[: path.read_bytes().rindex(b"\x80\x02]")] + call)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} cannot be read") as caught:
        read_state_dict(tmp_path)
    if where in ("value", "key", "nested"):
        assert "eval', which tensors do not need: nothing was executed" in str(caught.value)
    assert not mark.exists()


def test_an_old_file_that_is_a_tar_too_is_refused(tmp_path):
    """Older still: a tar of pickles, which may begin with any bytes, since its first entry's name comes first."""
    mark, path = tmp_path / "executed", tmp_path / "pytorch_model.bin"
    call = pickle.dumps(Calls(eval, f"open({str(mark)!r}, 'w')"), protocol=2)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("l\udcfc\udc9cF\udcf9 j\udca8P\x19", "storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(call)
            archive.addfile(entry, io.BytesIO(call))
    with pytest.raises(ValueError, match="cannot be read"):
        read_state_dict(tmp_path)
    assert not mark.exists()


@pytest.fixture(scope="module")
def old_file():
    file = io.BytesIO()
    save_old({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, file)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's remark on some of the damage
@settings(deadline=None, derandomize=True, max_examples=100)
@given(data=st.data())
def test_a_damaged_old_file_ends_in_one_error_or_in_tensors(tmp_path_factory, old_file, data):
    """It has no checksum, so that a flipped bit of a number cannot be seen."""
    content = bytearray(old_file)
    for place, bit in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 7)), max_size=2)):
        content[place] ^= 1 << bit
    content = content[: data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))]
    folder = tmp_path_factory.getbasetemp() / "old"
    folder.mkdir(exist_ok=True)
    (folder / "pytorch_model.bin").write_bytes(content)
    try:
        found = read_state_dict(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder / "pytorch_model.bin")) and "\n" not in str(error)
    else:
        assert all(len(tensor.tolist()) == len(tensor) for tensor in found.values() if tensor.dim())


def test_sizes_that_the_file_has_not_are_refused(tmp_path, old_file):
    """Memory that a file only speaks of would come back as numbers that nobody wrote."""
    number = struct.pack("<B", 6)  # BININT1 of the six numbers of "a", in the pickle
    place = old_file.index(b"K" + number + b"N")
    (tmp_path / "pytorch_model.bin").write_bytes(
        old_file[:place] + b"J" + struct.pack("<i", 2**29) + old_file[place + 2 :]
    )
    with pytest.raises(ValueError, match="cannot be read"):
        read_state_dict(tmp_path)


# ---- names and wrappers


def older(state_dict):
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {re.sub(r"LayerNorm\.\w+$", lambda name: names[name[0]], key): x for key, x in state_dict.items()}


def wrapped(state_dict):
    return {f"module.{key}": x for key, x in state_dict.items()}


def to_safetensors(state_dict, path):
    first = {x.data_ptr(): key for key, x in reversed(state_dict.items())}
    kept = {key: x.contiguous() for key, x in state_dict.items() if first[x.data_ptr()] == key}
    safetensors.torch.save_file(kept, path.with_name("model.safetensors"))


@pytest.mark.parametrize("write", [save_old, torch.save, to_safetensors])
@pytest.mark.parametrize("change", [older, wrapped, lambda state_dict: wrapped(older(state_dict))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_names_and_dtypes_of_others(tmp_path, write, change, dtype):
    model = new("RealmKnowledgeAugEncoder").to(dtype)
    folder_of(model, tmp_path, change(model.state_dict()), write)
    loaded = realm_min.RealmKnowledgeAugEncoder.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert all(torch.equal(loaded.state_dict()[key], x.float()) for key, x in model.state_dict().items())
    assert realm_min.RealmKnowledgeAugEncoder.from_pretrained(tmp_path, state_dict=older(model.state_dict()))


def test_a_name_that_only_some_have_is_no_wrapper(tmp_path):
    model = new("RealmEmbedder")
    state_dict = model.state_dict()
    state_dict["module.cls.dense.bias"] = state_dict.pop("cls.dense.bias")
    with pytest.raises(ValueError, match=r"missing: cls\.dense\.bias \[7\]\n *unexpected: module\.cls\.dense\.bias"):
        realm_min.RealmEmbedder.from_pretrained(folder_of(model, tmp_path, state_dict))


@pytest.mark.parametrize("old", [True, False])
def test_pickled_shards(tmp_path, old):
    model = new("RealmEmbedder")
    state_dict = model.state_dict()
    names = [f"pytorch_model-{i:05d}-of-00003.bin" for i in (1, 2, 3)]
    weight_map = {key: names[number % 3] for number, key in enumerate(state_dict)}
    for name in names:
        shard = {key: state_dict[key] for key in state_dict if weight_map[key] == name}
        torch.save(shard, tmp_path / name, _use_new_zipfile_serialization=not old)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model.config.save_pretrained(tmp_path)
    found = realm_min.RealmEmbedder.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[key], x) for key, x in state_dict.items())


# ---- what does not fit


def test_what_does_not_fit_is_drawn_where_it_is_asked_for(tmp_path):
    model = new("RealmReader", seed=4)
    state_dict = {key: x for key, x in model.state_dict().items() if not key.startswith("qa_outputs.dense_output")}
    state_dict["other.weight"] = torch.ones(2)
    folder_of(model, tmp_path, state_dict)
    with pytest.raises(RuntimeError, match="does not fit the model"):
        realm_min.RealmReader.from_pretrained(tmp_path, span_hidden_size=6)
    with pytest.warns(UserWarning) as warned:
        found = realm_min.RealmReader.from_pretrained(tmp_path, span_hidden_size=6, ignore_mismatched_sizes=True)
    layer = "qa_outputs.dense_intermediate"
    assert f"{layer}.weight, {layer}.bias" in str(warned[0].message) and "drawn anew" in str(warned[0].message)
    assert str(warned[1].message) == f"{tmp_path}: other.weight are none of the model's, and left out"
    assert warned[0].filename == __file__
    assert found.state_dict()[f"{layer}.weight"].shape == (12, 12) and found.state_dict()[f"{layer}.weight"].any()
    trunk = "realm.embeddings.word_embeddings.weight"
    assert torch.equal(found.state_dict()[trunk], model.state_dict()[trunk])

    found, info = realm_min.RealmReader.from_pretrained(tmp_path, output_loading_info=True)
    assert info == {
        "missing_keys": ["qa_outputs.dense_output.weight", "qa_outputs.dense_output.bias"],
        "unexpected_keys": ["other.weight"],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    assert not found.training and found.state_dict()["qa_outputs.dense_output.weight"].any()


def test_a_configuration_from_elsewhere(tmp_path):
    model = new("RealmEmbedder")
    model.save_pretrained(tmp_path / "model")
    realm_min.RealmConfig(**SIZES | dict(num_candidates=5)).save_pretrained(tmp_path / "config")
    for place in (tmp_path / "config", str(tmp_path / "config"), tmp_path / "config" / "config.json"):
        loaded = realm_min.RealmEmbedder.from_pretrained(tmp_path / "model", config=place)
        assert loaded.config.num_candidates == 5
        assert torch.equal(loaded(**ONE).projected_score, model(**ONE).projected_score)
    with pytest.raises(TypeError, match="no argument or configuration value 'num_canditates': did you mean 'num_cand"):
        realm_min.RealmEmbedder.from_pretrained(tmp_path / "model", num_canditates=3)


# ---- Git LFS


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "config.json"]
)
def test_a_pointer_in_place_of_a_model(tmp_path, name):
    model = new("RealmEmbedder")
    model.save_pretrained(tmp_path)
    if name != "config.json":
        (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path / name))} is a pointer of Git LFS.*git lfs pull"):
        realm_min.RealmEmbedder.from_pretrained(tmp_path)


def test_a_pointer_in_place_of_a_shard(tmp_path):
    new("RealmEmbedder").save_pretrained(tmp_path, max_shard_size="2KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{re.escape(str(shard))} is a pointer of Git LFS"):
        realm_min.RealmEmbedder.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "block_records.npy"])
def test_a_pointer_in_place_of_a_vocabulary_or_of_blocks(tmp_path, vocabulary, name):
    tokenizer = realm_min.RealmTokenizerFast(str(vocabulary))
    realm_min.RealmRetriever([b"Oslo."], tokenizer).save_pretrained(tmp_path)
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{re.escape(name)}.*is a pointer of Git LFS.*git lfs pull"):
        realm_min.RealmRetriever.from_pretrained(tmp_path)
