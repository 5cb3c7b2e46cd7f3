"""Checkpoint folders: round trips with transformers, and files that are damaged, foreign or malicious."""

import copy
import io
import json
import os
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import transformers

import realm_min
from realm_min import RealmConfig
from realm_min.files.checkpoint import assign, read_state_dict, write_folder
from realm_min.files.checksum import combine_crc32

MODELS = ["RealmEmbedder", "RealmScorer", "RealmKnowledgeAugEncoder", "RealmReader", "RealmForOpenQA"]
TINY = {
    "vocab_size": 61,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 17,
    "retriever_proj_size": 7,
    "span_hidden_size": 5,
    "num_block_records": 9,
    "searcher_beam_size": 3,
    "reader_beam_size": 2,
}
CONFIG = RealmConfig(**TINY)

quick = settings(deadline=None, derandomize=True, max_examples=100)


def equal(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def theirs():
    """transformers' models with random weights, LayerNorms and biases included."""
    models = {}
    for name in MODELS:
        torch.manual_seed(MODELS.index(name))
        model = getattr(transformers, name)(transformers.RealmConfig(**TINY))
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.normal_()
        models[name] = model.eval()
    return models


def read_by_transformers(name, folder):
    model, notes = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(notes.values()), notes
    return model.state_dict()


# --- Round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB"])
@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_what_we_write(theirs, tmp_path, name, safe_serialization, max_shard_size):
    state_dict = theirs[name].state_dict()
    model = getattr(realm_min, name)(CONFIG)
    model.load_state_dict(state_dict)
    assert equal(model.state_dict(), state_dict)

    model.save_pretrained(tmp_path, safe_serialization=safe_serialization, max_shard_size=max_shard_size)
    assert equal(read_by_transformers(name, tmp_path), state_dict)
    assert equal(getattr(realm_min, name).from_pretrained(tmp_path).state_dict(), state_dict)

    files = os.listdir(tmp_path)
    suffix = ".safetensors" if safe_serialization else ".bin"
    assert sum(file.endswith(suffix) for file in files) == len(files) - (1 if max_shard_size == "5GB" else 2)
    assert (len(files) == 2) == (max_shard_size == "5GB")
    for index in tmp_path.glob("*.index.json"):
        sizes = {}
        for key, shard in json.loads(index.read_text())["weight_map"].items():
            sizes.setdefault(shard, []).append(state_dict[key].nbytes)
        assert set(sizes) == {file for file in files if file.endswith(suffix)}
        assert all(sum(shard) <= 4000 or len(shard) == 1 for shard in sizes.values())


@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("max_shard_size", ["5GB", "4KB"])
@pytest.mark.parametrize("name", MODELS)
def test_we_read_what_transformers_writes(theirs, tmp_path, name, safe_serialization, max_shard_size):
    state_dict = theirs[name].state_dict()
    if safe_serialization and name in ("RealmScorer", "RealmReader", "RealmForOpenQA"):
        with pytest.raises(RuntimeError, match="shared tensors"):  # what write_folder makes up for
            theirs[name].save_pretrained(tmp_path, safe_serialization=True)
        return
    theirs[name].save_pretrained(tmp_path, safe_serialization=safe_serialization, max_shard_size=max_shard_size)
    assert (len(os.listdir(tmp_path)) > 3) == (max_shard_size == "4KB")
    found = read_state_dict(tmp_path)
    assert all(torch.equal(tensor, state_dict[key]) for key, tensor in found.items())
    assert equal(getattr(realm_min, name).from_pretrained(tmp_path).state_dict(), state_dict)


@pytest.mark.parametrize("safe_serialization", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept_in_the_file_and_cast_in_the_model(tmp_path, dtype, safe_serialization):
    stored = {
        "a": torch.randn(3, 5).to(dtype),
        "b": torch.randn(()).to(dtype),
        "c": torch.arange(3),
        "d": torch.ones(0, 4),
    }
    write_folder(tmp_path, CONFIG, stored, safe_serialization)
    assert equal(read_state_dict(tmp_path), stored)
    expected = {
        "a": torch.empty(3, 5),
        "b": torch.empty(()),
        "c": torch.empty(3, dtype=torch.int64),
        "d": torch.ones(0, 4),
    }
    assign(expected, read_state_dict(tmp_path), {})
    assert torch.equal(expected["a"], stored["a"].float())
    assert torch.equal(expected["c"], torch.arange(3))


@settings(quick, max_examples=40)
@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=8), st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6
    ),
    dtypes=st.lists(
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool]), min_size=6, max_size=6
    ),
    max_shard_size=st.integers(1, 200),
    safe_serialization=st.booleans(),
)
def test_any_tensors_survive(tmp_path_factory, shapes, dtypes, max_shard_size, safe_serialization):
    shapes.pop("__metadata__", None)
    tensors = {
        key: torch.full(shape, i + 1).to(dtype).transpose(0, -1) if shape else torch.tensor(i + 1).to(dtype)
        for i, ((key, shape), dtype) in enumerate(zip(shapes.items(), dtypes, strict=False))
    }
    folder = tmp_path_factory.getbasetemp() / "any"
    write_folder(folder, CONFIG, tensors, safe_serialization, max_shard_size)
    assert equal(read_state_dict(folder), tensors)
    if safe_serialization and (folder / "model.safetensors").exists():
        assert equal(safetensors.torch.load_file(folder / "model.safetensors"), tensors)


@settings(quick)
@given(pieces=st.lists(st.binary(max_size=300), max_size=5), zeros=st.sampled_from([0, 1, 1000, 1 << 20]))
def test_checksums_of_pieces_make_that_of_the_whole(pieces, zeros):
    pieces.append(bytes(zeros) + b"x")
    crc = 0
    for piece in pieces:
        crc = combine_crc32(crc, zlib.crc32(piece), len(piece))
    assert crc == zlib.crc32(b"".join(pieces))


def test_tied_weights_are_written_once_and_views_alone(tmp_path):
    base = torch.randn(1000, 7)
    tensors = {"first": base[:3].t(), "tied": base[:3].t(), "other": base[:3], "copy": base[:3].t().clone()}
    for safe_serialization in (True, False):
        write_folder(tmp_path, CONFIG, tensors, safe_serialization)
        found = read_state_dict(tmp_path)
        assert list(sorted(found)) == ["copy", "first", "other"]
        assert all(torch.equal(found[key], tensors[key]) for key in found)
        weights = next(tmp_path.glob("*model.*"))
        assert weights.stat().st_size < 5000  # the 28 kB behind the views stay out


def test_a_later_save_leaves_no_earlier_weights(tmp_path):
    (tmp_path / "notes.bin").write_text("mine")
    for i, (safe, size) in enumerate(
        [(True, 50), (False, "1GB"), (True, "1GB"), (False, 50), (False, 100), (True, 50)]
    ):
        tensors = {f"{key}{i}": torch.full((3, 4), float(i)) for key in "abcd"}
        write_folder(tmp_path, CONFIG, tensors, safe, size)
        assert equal(read_state_dict(tmp_path), tensors)
        files = {path.name for path in tmp_path.iterdir()}
        assert {"config.json", "notes.bin"} < files
        assert len(files) == 2 + (1 if size == "1GB" else 5 if size == 50 else 3), files


def test_a_failed_save_changes_nothing(tmp_path):
    write_folder(tmp_path, CONFIG, {"a": torch.ones(3)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="b is torch.complex64"):
        write_folder(
            tmp_path, RealmConfig(), {"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.complex64)}, True, 4
        )
    with pytest.raises(ValueError, match="max_shard_size='5 parsecs' is no size"):
        write_folder(tmp_path, RealmConfig(), {"a": torch.zeros(3)}, True, "5 parsecs")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_reading_a_folder_that_is_overwritten_with_itself(tmp_path):
    tensors = {"a": torch.randn(100, 3), "b": torch.randn(7)}
    write_folder(tmp_path, CONFIG, tensors)
    write_folder(tmp_path, CONFIG, read_state_dict(tmp_path))  # the memory-mapped file is replaced, not written into
    found = read_state_dict(tmp_path)
    found["a"].zero_()  # the file does not change
    assert equal(read_state_dict(tmp_path), tensors)


# --- Into a model -----------------------------------------------------------------------------------------------------


def test_every_misfit_is_named_and_nothing_is_copied():
    expected = {key: torch.zeros(2, 3) for key in ("good", "absent", "turned", "whole")}
    found = {
        "good": torch.ones(2, 3),
        "turned": torch.ones(3, 2),
        "whole": torch.ones(2, 3, dtype=torch.int64),
        "foreign": torch.ones(4),
    }
    with pytest.raises(ValueError) as caught:
        assign(expected, found, {}, source="the folder x")
    assert str(caught.value).splitlines() == [
        "the folder x does not fit the model; take the class and the config.json that it was saved with:",
        "  mis-shaped: turned [3, 2], the model has [2, 3]",
        "  mis-typed: whole torch.int64, the model has torch.float32",
        "  missing: absent [2, 3]",
        "  unexpected: foreign [4]",
    ]
    assert not any(tensor.any() for tensor in expected.values())


def test_aliases_stand_for_each_other():
    aliases = {"tied": "weight"}
    for keys in (["weight"], ["tied"], ["weight", "tied"], ["tied", "weight"]):
        weight = torch.zeros(3)
        assign({"weight": weight, "tied": weight}, {key: torch.arange(3.0) for key in keys}, aliases)
        assert weight.tolist() == [0, 1, 2]
    for other in (torch.ones(3), torch.ones(1)):
        with pytest.raises(ValueError, match="differing copies of one weight: tied and weight"):
            assign({"weight": torch.zeros(3)}, {"weight": torch.zeros(3), "tied": other}, aliases)
    with pytest.raises(ValueError, match=r"missing: weight \[3\]"):
        assign({"weight": torch.zeros(3), "tied": torch.zeros(3)}, {}, aliases)


@pytest.mark.parametrize("name", MODELS)
def test_old_buffers_and_missing_aliases_are_accepted(theirs, name):
    state_dict = theirs[name].state_dict()
    old = {key: tensor for key, tensor in state_dict.items() if not key.endswith("decoder.bias")}
    prefix = next(key for key in old if key.endswith("embeddings.LayerNorm.bias")).removesuffix("LayerNorm.bias")
    old[prefix + "position_ids"] = torch.arange(17)[None]
    old[prefix + "token_type_ids"] = torch.zeros(1, 17, dtype=torch.int64)
    model = getattr(realm_min, name)(CONFIG)
    model.load_state_dict(old)
    assert equal(model.state_dict(), state_dict)
    with pytest.raises(ValueError, match=r"unexpected: more_position_ids \[1\]"):
        model.load_state_dict({**old, "more_position_ids": torch.ones(1)})


# --- Files that are missing, damaged, foreign or malicious ------------------------------------------------------------


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        read_state_dict(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no weights: model.safetensors, pytorch_model.bin"):
        read_state_dict(tmp_path)
    write_folder(tmp_path, CONFIG, {"a": torch.ones(3), "b": torch.ones(4)}, max_shard_size=10)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"index.json lists model-00002-of-00002.safetensors, which is not"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "index, complaint",
    [
        ("", "index.json cannot be read"),
        ("[" * 100000, "index.json cannot be read"),
        ("[]", "index.json cannot be read"),
        ('{"weight_map": 3}', "index.json cannot be read"),
        ('{"weight_map": {"a": ["b"]}}', "index.json cannot be read"),
        ('{"weight_map": {"a": 3}}', "names the shard 3"),
        ('{"weight_map": {"a": "../outside.safetensors"}}', r"names the shard '\.\./outside.safetensors'"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names the shard '/etc/passwd'"),
        ('{"weight_map": {"a": "..\\\\outside.safetensors"}}', "names the shard"),
        ('{"weight_map": {"a": ".."}}', "names the shard"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}',
         "says model-00002-of-00002.safetensors holds c, but it does not"),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "copy.safetensors"}}', "both hold a"),
    ],
)  # fmt: skip
def test_bad_indexes_are_refused(tmp_path, index, complaint):
    write_folder(tmp_path / "x", CONFIG, {"a": torch.ones(3), "b": torch.ones(4)}, max_shard_size=10)
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "outside.safetensors")
    safetensors.torch.save_file({"a": torch.ones(3), "b": torch.ones(4)}, tmp_path / "x" / "copy.safetensors")
    (tmp_path / "x" / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=complaint):
        read_state_dict(tmp_path / "x")


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["alone", "value", "key", "nested", "after tensors"])
@pytest.mark.parametrize("function", [os.system, eval, exec])
def test_pickled_calls_are_refused_and_never_made(tmp_path, function, where, zipped):
    mark = tmp_path / "executed"
    evil = Calls(function, f"touch {mark}" if function is os.system else f"open({str(mark)!r}, 'w')")
    content = {
        "alone": evil,
        "value": {"a": evil},
        "key": {evil: torch.ones(2)},
        "nested": {"a": [OrderedDict(b=(evil,))]},
        "after tensors": {"a": torch.ones(2), "b": evil},
    }[where]
    path = tmp_path / "pytorch_model.bin"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} cannot be read") as caught:
        read_state_dict(tmp_path)
    if zipped:
        assert function.__name__ in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content, complaint",
    [
        ([torch.ones(2)], "holds a list"),
        ({"model": {"a": torch.ones(2)}}, "under 'model' it holds a dict"),
        ({"a": torch.ones(2), "step": 3}, "under 'step' it holds a int"),
        ({3: torch.ones(2)}, "its key 3 is no string"),
        ({"a": torch.eye(3).to_sparse()}, "_rebuild_sparse_tensor', which tensors do not need"),
        ({"a": torch.empty(3, device="meta")}, "_rebuild_meta_tensor_no_storage', which tensors do not need"),
        ({"a": torch.ones(2).expand(2**40, 2)}, "a tensor of shape .* is larger than its storage"),
        ({"a": 1.5, "b": 10**12, "c": None}, "under 'a' it holds a float"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, complaint):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=complaint):
        read_state_dict(tmp_path)


def test_foreign_files_are_refused(tmp_path):
    compressed = io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    for content, complaint in (
        (b"", "is neither the zip"),
        (b"text", "is neither the zip"),
        (pickle.dumps({"a": 1}), "is neither the zip"),
        (compressed.getvalue(), "compresses nothing"),
        (stored.getvalue(), "version"),
    ):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=rf"pytorch_model\.bin cannot be read.*{complaint}"):
            read_state_dict(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(stored.getvalue())
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        read_state_dict(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a small model in every layout, and its tensors."""
    tensors = {f"layer.{i}.weight": torch.randn(5, 3 + i) for i in range(4)}
    layouts = {}
    for safe in (True, False):
        for size in ("1GB", 150):
            folder = tmp_path_factory.mktemp("whole")
            write_folder(folder, CONFIG, tensors, safe, size)
            layouts[safe, size] = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "config.json"}
    return tensors, layouts


@settings(quick, max_examples=400)
@given(data=st.data())
def test_damaged_files_end_in_one_error_or_change_nothing(tmp_path_factory, whole, data):
    """Flip bits, cut, lengthen or rename: never a crash or a hang, and never other weights without an error."""
    tensors, layouts = whole
    files = copy.copy(data.draw(st.sampled_from(sorted(layouts.items(), key=str)))[1])
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    damage = data.draw(st.sampled_from(["flip", "cut", "lengthen", "overwrite", "rename", "swap"]))
    if damage == "flip":
        places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 7))
        for place, bit in data.draw(st.lists(places, min_size=1, max_size=3)):
            content[place] ^= 1 << bit
    elif damage == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif damage == "lengthen":
        content += data.draw(st.binary(min_size=1, max_size=30))
    elif damage == "overwrite":
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + 8] = data.draw(st.binary(min_size=8, max_size=8))
    files[name] = bytes(content)
    if damage == "rename":
        files[data.draw(st.sampled_from(["model.safetensors", "pytorch_model.bin", "x.bin"]))] = files.pop(name)
    elif damage == "swap":
        other = data.draw(st.sampled_from(sorted(files)))
        files[name], files[other] = files[other], files[name]

    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for file, bytes_ in files.items():
        (folder / file).write_bytes(bytes_)
    expected = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    try:
        assign(expected, read_state_dict(folder), {})
    except (ValueError, FileNotFoundError):
        assert not any(tensor.any() for tensor in expected.values())
    else:
        assert equal(expected, tensors)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's remark on some of the damage
@settings(quick, max_examples=100)
@given(flips=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 7)), min_size=1, max_size=2))
def test_damaged_pickles_with_matching_checksums_end_in_one_error(tmp_path_factory, flips):
    """As an attacker would make them: the zip is sound, the pickle inside is not."""
    folder = tmp_path_factory.getbasetemp() / "attacked"
    folder.mkdir(exist_ok=True)
    torch.save({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}, whole := io.BytesIO())
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(folder / "pytorch_model.bin", "w") as target:
        for member in source.infolist():
            content = bytearray(source.read(member))
            if member.filename.endswith("data.pkl"):
                for place, bit in flips:
                    content[place % len(content)] ^= 1 << bit
            target.writestr(member.filename, bytes(content))
    try:
        found = read_state_dict(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder / "pytorch_model.bin"))
        assert "\n" not in str(error)
    else:
        assert all(isinstance(key, str) and tensor.layout == torch.strided for key, tensor in found.items())
        assert all(len(tensor.tolist()) == len(tensor) for tensor in found.values() if tensor.dim())  # readable


def test_a_flipped_weight_in_a_foreign_file_without_checksum_is_still_a_readable_tensor(tmp_path):
    """Other writers store no checksum in safetensors: their headers are checked, their numbers cannot be."""
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    assert read_state_dict(tmp_path)["a"].tolist() == [1, 1, 1]
    write_folder(tmp_path, CONFIG, {"a": torch.ones(3)})
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"its checksum is [0-9a-f]{8}, not the stored [0-9a-f]{8}"):
        read_state_dict(tmp_path)


def test_the_index_is_json_that_others_read(tmp_path):
    write_folder(tmp_path, CONFIG, {"a": torch.ones(3), "b": torch.ones(4), "c": torch.ones(1)}, max_shard_size=20)
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 32},
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    }
