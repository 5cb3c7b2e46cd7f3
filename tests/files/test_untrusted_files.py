"""Every file of a checkpoint folder, damaged: one clear error, or the same numbers as before. Nothing else.

500 damaged folders in all: truncated, bit-flipped, cut, doubled, overwritten, mis-shaped, mis-named and hostile files.
Bits may flip unseen only where nobody stored what was meant: in folders of others, in those values of config.json that
are its user's options, such as how many blocks to read, and in a config.json beside pickled weights.
"""

import json
import os
import pickle
import shutil
import struct
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from realm_min import RealmConfig, RealmForOpenQA, RealmRetriever, RealmTokenizer, RealmTokenizerFast
from realm_min.files.checkpoint import TRAINED_WITH, Misfit, read_state_dict
from realm_min.interface.inputs import Inputs, checked_batch
from realm_min.model.bert import bert

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] alan ma ##thi ##son turing was a pioneer of computer science . , the who".split()
)
CONFIG = RealmConfig(
    vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=40, retriever_proj_size=4, span_hidden_size=6, num_block_records=3, reader_beam_size=2,
    searcher_beam_size=3, max_span_width=3, hidden_act="gelu_new",
)  # fmt: skip
BLOCKS = [b"alan turing was a pioneer", b"computer science . ", "thé who".encode()]
WEIGHTS = {
    "whole": ({}, ["model.safetensors"]),
    "sharded": ({"max_shard_size": 4000}, ["model.safetensors.index.json", "model-00002-of-00005.safetensors"]),
    "pickled": ({"safe_serialization": False}, ["pytorch_model.bin"]),
    "pickled sharded": (
        {"safe_serialization": False, "max_shard_size": 4000},
        ["pytorch_model.bin.index.json", "pytorch_model-00002-of-00005.bin"],
    ),
}
OTHER_FILES = ["config.json", "block_records.npy", "vocab.txt", "tokenizer.json"]

budget = partial(
    settings,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def numbers(folder) -> list:
    """All that a folder holds, as the models see it: weights, embeddings of a text, blocks, token ids."""
    retriever = RealmRetriever.from_pretrained(folder)
    model = RealmForOpenQA.from_pretrained(folder, retriever=retriever)
    ids = torch.tensor([[2, 5, 9, 16, 3]])
    without = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
    embedded = model.embedder(ids, **without).projected_score
    reader = bert(model.reader.p, model.config, checked_batch(model.config, Inputs(ids)), "tokens")[0].hidden
    text = "Who was Alan Mathison Turing , the pioneer of computer science?"
    return [
        {key: tensor.clone() for key, tensor in model.state_dict().items()},
        {"embedded": embedded, "read": reader},
        list(retriever.block_records),
        retriever.tokenizer(text)["input_ids"],
        RealmTokenizer.from_pretrained(folder)(text)["input_ids"],
    ]


def same(found: list, expected: list) -> bool:
    for a, b in zip(found[:2], expected[:2], strict=True):
        if a.keys() != b.keys() or any(not torch.equal(a[key], b[key]) for key in b):
            return False
    return found[2:] == expected[2:]


class Folders(dict):
    def __repr__(self):  # of a failing example: without all the tensors
        return "intact"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder for each way of storing weights, and what it holds."""
    found = Folders()
    for name, (options, names) in WEIGHTS.items():
        folder = tmp_path_factory.mktemp("intact") / "model"
        vocab = folder.parent / "vocab.txt"
        vocab.write_text("".join(f"{piece}\n" for piece in PIECES))
        RealmForOpenQA(CONFIG, seed=5).save_pretrained(folder, **options)
        RealmRetriever(BLOCKS, RealmTokenizerFast(vocab)).save_pretrained(folder)
        assert all((folder / file).is_file() for file in [*names, *OTHER_FILES])
        found[name] = folder, numbers(folder)
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy a folder to a scratch place, always the same one."""
    scratch = tmp_path_factory.mktemp("damaged") / "model"

    def fresh(folder):
        shutil.rmtree(scratch, ignore_errors=True)
        return shutil.copytree(folder, scratch)

    return fresh


def check(folder, expected, may_differ=False) -> bool:
    """Whether the folder was refused, with one clear error; else it must hold what it held before."""
    try:
        found = numbers(folder)
    except (ValueError, FileNotFoundError) as error:
        assert type(error) in (ValueError, FileNotFoundError, Misfit), repr(error)
        assert len(str(error)) > 20 and max(map(len, str(error).splitlines())) < 1000  # keys stand one a line
        return True
    assert may_differ or same(found, expected), "a damaged folder was read as another model"
    return False


# --- Damage to bytes --------------------------------------------------------------------------------------------------


@st.composite
def damages(draw):
    """A function from a file's bytes to damaged bytes."""
    kind = draw(st.sampled_from(["truncate", "flip", "flip", "delete", "double", "overwrite", "zero", "empty"]))
    places = draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3))
    length = draw(st.integers(1, 64))
    bits = draw(st.lists(st.integers(0, 7), min_size=3, max_size=3))
    noise = draw(st.binary(min_size=1, max_size=16))

    def damage(whole: bytes) -> bytes:
        data = bytearray(whole)
        at = int(places[0] * len(data))
        if kind == "truncate":
            del data[at:]
        elif kind == "flip":
            for place, bit in zip(places, bits, strict=False):
                data[int(place * len(data))] ^= 1 << bit
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "double":
            data[at:at] = data[at : at + length]
        elif kind == "overwrite":
            data[at : at + len(noise)] = noise
        elif kind == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
        else:
            data = b""
        return bytes(data)

    damage.__name__ = f"{kind} at {places} {length} {bits} {noise}"
    return damage


@pytest.mark.filterwarnings("ignore")  # torch's and tokenizers' remarks on some of the damage
@budget(max_examples=330)
@given(st.sampled_from(list(WEIGHTS)), st.floats(0, 1, exclude_max=True), damages())
def test_damaged_bytes(intact, copy, stored, which, damage):
    original, expected = intact[stored]
    names = WEIGHTS[stored][1] * 2 + OTHER_FILES
    name = names[int(which * len(names))]
    whole = (original / name).read_bytes()
    damaged = damage(whole)
    folder = copy(original)
    (folder / name).write_bytes(damaged)
    refused = check(folder, expected, may_differ=name == "config.json" and "pickled" in stored)
    if not damaged:
        assert refused


def test_every_single_bit_of_weights_blocks_and_vocabulary_counts(intact, copy):
    """A flipped bit is refused or, in padding that nobody reads, changes nothing; most are refused."""
    original, expected = intact["whole"]
    folder = copy(original)
    rng = np.random.default_rng(0)
    for name in ("model.safetensors", "block_records.npy", "vocab.txt"):
        whole = (original / name).read_bytes()
        refused = 0
        for place in rng.integers(0, len(whole), 25):
            data = bytearray(whole)
            data[place] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(data)
            refused += check(folder, expected)
        (folder / name).write_bytes(whole)
        assert refused >= 20, name


# --- Damage to values -------------------------------------------------------------------------------------------------

VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 2, 3, 7, 10**6, 10**12, 2**63, 10**400, 0.5, 1e-5, 1e300, float("nan"), float("inf")])
    | st.sampled_from(["", "gelu", "relu", "realm", "bert", "relative_key", "2", "\ud800", "x" * 300])
    | st.sampled_from([[], [1], {}, {"a": 1}, [[]] * 3])
)
KEYS = st.sampled_from(sorted(CONFIG.to_dict())) | st.sampled_from(
    ["self", "_check", "to_dict", "__class__", "__dict__", "use_return_dict", "architectures", "torch_dtype", "x", ""]
)


@budget(max_examples=90)
@given(KEYS, VALUES)
@example("num_hidden_layers", 10**12)
@example("vocab_size", 10**13)
@example("num_block_records", 10**15)
@example("num_attention_heads", 4)
@example("layer_norm_eps", 1e-3)
@example("hidden_act", "relu")
@example("to_dict", 1)
def test_other_values_in_the_configuration(intact, copy, key, value):
    original, expected = intact["whole"]
    folder = copy(original)
    values = json.loads((folder / "config.json").read_text())
    differs = values.get(key) != value
    (folder / "config.json").write_text(json.dumps({**values, key: value}))
    refused = check(folder, expected)
    if key in TRAINED_WITH and differs:
        assert refused


# --- Wrong names, wrong shapes ----------------------------------------------------------------------------------------

FILES = sorted({name for _, names in WEIGHTS.values() for name in names} | {*OTHER_FILES, "tokenizer_config.json"})


@pytest.mark.filterwarnings("ignore")
@budget(max_examples=40)
@given(st.sampled_from(list(WEIGHTS)), st.sampled_from(FILES), st.sampled_from([*FILES, "", "folder"]))
def test_misnamed_and_missing_files(intact, copy, stored, name, instead):
    """A file under another file's name, or gone, or a folder in its place."""
    original, expected = intact[stored]
    folder = copy(original)
    if not (folder / name).exists():
        return
    if instead == "":
        (folder / name).unlink()
    elif instead == "folder":
        (folder / name).unlink()
        (folder / name).mkdir()
    else:
        os.replace(folder / name, folder / instead)
    check(folder, expected)


@budget(max_examples=40)
@given(
    stored=st.sampled_from(["whole", "pickled"]),
    change=st.sampled_from(["shape", "transpose", "drop", "rename", "extra", "integers", "scalar"]),
    which=st.floats(0, 1, exclude_max=True),
)
def test_misshaped_tensors_are_refused_by_name(intact, copy, stored, change, which):
    """Files that are whole in themselves, of tensors that are no such model's."""
    original, expected = intact[stored]
    folder = copy(original)
    path = folder / WEIGHTS[stored][1][0]
    tensors = {key: tensor.clone() for key, tensor in read_state_dict(folder).items()}
    key = sorted(tensors)[int(which * len(tensors))]
    tensor = tensors[key]
    if change == "shape":
        tensors[key] = tensor.reshape(-1)[:-1].clone()
    elif change == "transpose":
        tensors[key] = tensor.t().contiguous() if tensor.dim() == 2 else tensor
    elif change == "drop":
        del tensors[key]
    elif change == "rename":
        tensors[key + "s"] = tensors.pop(key)
    elif change == "extra":
        tensors["extra.weight"] = tensor.clone()
    elif change == "integers":
        tensors[key] = tensor.to(torch.int64)
    else:
        tensors[key] = tensor.sum()
    if stored == "whole":
        import safetensors.torch

        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    same_shape = change == "transpose" and tensor.dim() < 2
    if same_shape:
        assert not check(folder, expected)
        return
    square = change == "transpose" and tensor.shape[0] == tensor.shape[1]
    if square:  # a well-formed file of other numbers
        return
    with pytest.raises(ValueError) as error:
        numbers(folder)
    assert ("extra.weight" if change == "extra" else key) in str(error.value)


# --- Hostile files ----------------------------------------------------------------------------------------------------


class Call:
    """Pickled, it asks the reader to call a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


CALLS = {
    "os.system": (os.system, "touch {0}"),
    "builtins.eval": (eval, "open({0!r}, 'w')"),
    "builtins.exec": (exec, "open({0!r}, 'w')"),
    "builtins.open": (open, "{0}", "w"),
    "shutil.rmtree": (shutil.rmtree, "{0}"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "block_records.npy"])
def test_pickles_that_ask_for_more_are_refused_by_name(intact, copy, tmp_path, name, call, protocol):
    original, _ = intact["pickled"]
    folder = copy(original)
    target = tmp_path / "touched"
    if call == "shutil.rmtree":
        target.mkdir()
    function, *arguments = CALLS[call]
    payload = Call(function, *(argument.format(str(target)) for argument in arguments))
    if name == "pytorch_model.bin":
        torch.save({"weight": torch.zeros(2), "payload": payload}, folder / name, pickle_protocol=protocol)
    else:
        array = np.empty(2, dtype=object)
        array[:] = [b"block", payload]
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps(array, protocol)
        (folder / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        numbers(folder)
    module = {"os": "posix"}.get(call.split(".")[0], call.split(".")[0])
    asked = {
        f"{module}.{call.split('.')[1]}",
        call.replace("builtins", "__builtin__"),
        call.replace("builtins.", " "),
        "io.open",
        "_io.open",
    }
    assert any(one in str(error.value) for one in asked), error.value
    assert name in str(error.value)
    assert target.exists() == (call == "shutil.rmtree")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "\ufeff{}", "nul"])
def test_hostile_json(intact, copy, name, content):
    original, expected = intact["sharded"]
    folder = copy(original)
    (folder / name).write_text(content, encoding="utf-8")
    assert check(folder, expected)
