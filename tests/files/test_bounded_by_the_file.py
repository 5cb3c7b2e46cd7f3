"""Memory and time are bounded by the size of what is read: a small file that asks for much is refused in one sentence.

What is asked for is never allocated, so each test ends at once or not at all; no test looks at a clock.
"""

import json
import re
import struct
import zlib

import numpy as np
import pytest
import safetensors.torch

from realm_min import (
    RealmConfig,
    RealmForOpenQA,
    RealmRetriever,
    RealmTokenizerFast,
)  # fmt: skip
from realm_min.app.indexing import load_unindexed
from realm_min.files import packed
from realm_min.files.checkpoint import read_state_dict
from realm_min.files.json_file import DEEPEST, read_json_object
from realm_min.files.npy_file import LONGEST_HEADER, map_npy, write_npy
from realm_min.jobs import warm_start
from realm_min.learn.masking import salient_spans
from realm_min.text.corpus import _SENTENCE_END, split_sentences

HUGE = 2**31 - 1
PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] alan ma ##thi ##son turing was a pioneer of computer science".split()
CONFIG = RealmConfig(
    vocab_size=len(PIECES), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=40, retriever_proj_size=4, span_hidden_size=6, num_block_records=3, reader_beam_size=2,
    searcher_beam_size=3, max_span_width=3,
)  # fmt: skip
BLOCKS = [b"alan turing was a pioneer", b"computer science", b"a"]
SIZES = """vocab_size hidden_size num_hidden_layers intermediate_size max_position_embeddings type_vocab_size
    retriever_proj_size span_hidden_size num_block_records""".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounded") / "model"
    folder.mkdir()
    vocab = folder.parent / "vocab.txt"
    vocab.write_text("".join(f"{piece}\n" for piece in PIECES))
    RealmForOpenQA(CONFIG, seed=5).save_pretrained(folder)
    RealmRetriever(BLOCKS, RealmTokenizerFast(vocab)).save_pretrained(folder)
    return folder


def foreign(target, tensors, **sizes):
    """A folder as others write it, without checksum or configuration in the weights' metadata."""
    target.mkdir(exist_ok=True)
    safetensors.torch.save_file({key: tensor.clone() for key, tensor in tensors.items()}, target / "model.safetensors")
    values = CONFIG.to_dict() | sizes
    if "hidden_size" in sizes:
        values["num_attention_heads"] = 1
    (target / "config.json").write_text(json.dumps(values))
    (target / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    return target


def part_of(tensors, reader):
    """What a reader of the folders below takes: the stages of training read an embedder, a reader or any BERT."""
    if reader in ("OpenQA", "index --model"):
        return tensors
    part = "reader." if reader == "finetune --model" else "embedder."
    taken = {key[len(part) :]: tensor for key, tensor in tensors.items() if key.startswith(part)}
    untied = ("cls.predictions.decoder",) if reader == "mlm --model" else ("no key",)  # another in the encoder
    return {key: tensor for key, tensor in taken.items() if not key.startswith(untied)}


READERS = {
    "OpenQA": RealmForOpenQA.from_pretrained,
    "index --model": load_unindexed,
    "ict --model": warm_start.embedder,
    "mlm --model": warm_start.knowledge_encoder,
    "finetune --model": warm_start.reader,
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("reader", READERS)
def test_sizes_that_the_weights_have_not(folder, tmp_path, reader, name):
    """The weights are compared with the configuration before anything of its sizes exists."""
    target = foreign(tmp_path / "model", part_of(read_state_dict(folder), reader), **{name: HUGE})
    unread = {
        "index --model": ("num_block_records",),
        "ict --model": ("num_block_records", "span_hidden_size"),
        "mlm --model": ("num_block_records", "span_hidden_size", "retriever_proj_size"),
        "finetune --model": ("num_block_records", "retriever_proj_size"),
    }
    if name in unread.get(reader, ()):
        READERS[reader](target)
        return
    with pytest.raises(ValueError, match=r"does not fit the model(;|: num_hidden_layers=2147483647)"):
        READERS[reader](target)


@pytest.mark.parametrize(
    ("reader", "absent", "name"),
    [
        ("OpenQA", "block_emb", "num_block_records"),
        ("OpenQA", "position_embeddings.weight", "max_position_embeddings"),
        ("index --model", "token_type_embeddings.weight", "type_vocab_size"),
        ("index --model", "cls.dense.weight", "retriever_proj_size"),
        ("ict --model", "cls.dense.weight", "retriever_proj_size"),
        ("finetune --model", "qa_outputs.dense_intermediate.weight", "span_hidden_size"),
    ],
)
def test_sizes_of_tensors_that_are_absent(folder, tmp_path, reader, absent, name):
    tensors = part_of(read_state_dict(folder), reader)
    left = (absent, absent.replace("weight", "bias"))
    tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(left)}
    target = foreign(tmp_path / "model", tensors, **{name: HUGE})
    with pytest.raises(ValueError, match="does not fit the model.*\n.*(missing|mis-shaped): ") as error:
        READERS[reader](target)
    assert str(HUGE) in str(error.value)


@pytest.mark.parametrize("name", ["max_span_width", "searcher_beam_size", "reader_beam_size", "num_candidates"])
def test_sizes_that_no_tensor_has(folder, tmp_path, name):
    """They are met when a question is asked, at the latest."""
    target = foreign(tmp_path / "model", read_state_dict(folder), **{name: HUGE})
    model = RealmForOpenQA.from_pretrained(target, retriever=RealmRetriever.from_pretrained(folder))
    questions = model.retriever.tokenizer(["alan turing"], return_tensors="pt").input_ids
    if name in ("max_span_width", "reader_beam_size"):
        with pytest.raises(ValueError, match=f"{name}=2147483647 is more than|2147483647 blocks were asked for"):
            model.answer(["alan turing"])
    if name == "searcher_beam_size":
        with pytest.raises(ValueError, match="2147483647 blocks were asked for, and there are 3"):
            model.train()(questions)
    if name == "reader_beam_size":  # no more than are found
        model.train()(questions, answer_ids=[[9]])


def test_a_trained_step_reads_no_wider_spans_than_there_are_positions(folder, tmp_path):
    from realm_min.jobs import runs
    from realm_min.jobs.settings import TrainingRun
    from realm_min.text.questions import TrainingQuestion

    target = foreign(tmp_path / "model", read_state_dict(folder), max_span_width=HUGE)
    model = RealmForOpenQA.from_pretrained(target, retriever=RealmRetriever.from_pretrained(folder))
    with pytest.raises(ValueError, match="max_span_width=2147483647 is more than the max_position_embeddings=40"):
        runs.finetune(TrainingRun(tmp_path / "run"), model, [TrainingQuestion("alan", ["turing"])])


# --- Packed models


def packed_file(path, header, streams=(b"", b"", b"")):
    path.write_bytes(packed.join(header, streams, packed.MAGIC, packed.sha256))
    return path


def test_a_header_that_inflates_to_gigabytes(tmp_path):
    text = zlib.compress(b'{"a": "' + b" " * 50_000_000 + b'"}', 9)
    payload = struct.pack("<I", len(text)) + text
    path = tmp_path / "bomb.realm"
    path.write_bytes(packed.MAGIC + packed.sha256(payload) + payload)
    with pytest.raises(
        ValueError, match="bomb.realm cannot be read .its header is cut short, or inflates to more than"
    ):
        packed.load_packed(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"manifest": {"weights": 10**12}}, "it says that it holds 1,000,000,000,000 weights, in 2 bytes"),
        ({"manifest": {"weights": -1}}, "it says that it holds -1 weights"),
        ({"manifest": {"weights": "many"}}, "not supported between"),
        ({"manifest": [[]] * 3}, "indices must be integers"),
        ({"manifest": json.loads("[" * 150 + "]" * 150)}, "nested deeper than 100"),
        ({"num_hidden_layers": HUGE}, "its configuration has 2,147,483,647 layers"),
        ({"vocab_size": HUGE}, "bytes of weights, and its configuration asks for"),
        ({"max_position_embeddings": HUGE}, "bytes of weights, and its configuration asks for"),
        ({"copies": {"embedder.cls.dense.weight": "block_emb"}}, "is to be a copy of block_emb"),
    ],
)
def test_packed_models_that_ask_for_more_than_they_hold(tmp_path, header, message):
    config = CONFIG.to_dict() | {name: header.pop(name) for name in SIZES if name in header}
    whole = {"config": config, "copies": {}, "manifest": {"weights": 0}} | header
    path = packed_file(tmp_path / "x.realm", whole, (b"\3\0", b"", bytes(8)))
    with pytest.raises(ValueError, match="x.realm cannot be read") as error:
        packed.load_packed(path)
    assert message in str(error.value)


# --- Arrays


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("<f4", (2**40, 128)),
        ("<f4", (2**62, 2**62)),
        ("<f4", (-1, 4)),
        ("<f4", ()),
        ("<i4", (2, 2)),
        (">f4", (2, 2)),
        ("<f16", (1, 1)),
        ("|O", (2,)),
        ("|S16", (1,)),
        ([("a", "<f4")], (4,)),
        (("<f4", (10**9,)), (1,)),
    ],
)
def test_arrays_that_are_not_there(tmp_path, descr, shape):
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    path = tmp_path / "index.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match="index.npy cannot be read"):
        map_npy(path)


def test_a_header_of_an_array_is_short(tmp_path):
    path = tmp_path / "index.npy"
    header = b"(" * (LONGEST_HEADER + 1)
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header)
    with pytest.raises(ValueError, match="a header of 10001 bytes"):
        map_npy(path)


def test_an_array_comes_back_and_is_checked(tmp_path):
    array, path = np.arange(12, dtype=np.float32).reshape(4, 3), tmp_path / "index.npy"
    write_npy(path, array)
    assert np.array_equal(map_npy(path), array) and np.array_equal(np.load(path), array)
    whole = path.read_bytes()
    for place in (9, 70, 128, 150, len(whole) - 16, len(whole) - 3):  # header, data, checksum
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="index.npy cannot be read"):
            map_npy(path)
    np.save(path, np.asfortranarray(array))  # of others
    assert np.array_equal(map_npy(path), array)


# --- Text


def test_json_that_is_deep(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a":' + "[" * (DEEPEST - 2) + "]" * (DEEPEST - 2) + "}")
    assert read_json_object(path, "x").keys() == {"a"}
    for depth in (DEEPEST, 3_000, 100_000):
        path.write_text('{"a":' + "[" * depth + "]" * depth + "}")
        with pytest.raises(ValueError, match=r"x.json is not valid JSON \(it is nested .*: mend it"):
            read_json_object(path, "mend it")


@pytest.mark.parametrize("piece", [".", "!?", "a.", "(2020) ", '."', "a: "])
def test_long_lines_are_cut_and_masked_in_linear_time(piece):
    """100 KB of each: minutes, were it n²."""
    for end in ("", "a", " A"):
        line = "word" + piece * (100_000 // len(piece)) + end
        assert " ".join(split_sentences(line)) == " ".join(line.split())
        salient_spans(line)


def test_sentences_end_where_they_did():
    """What a run of marks is preceded by changes no sentence: as without the look behind."""
    plain, rng = re.compile(_SENTENCE_END.pattern.removeprefix("(?<![.!?])")), np.random.default_rng(0)
    assert plain.pattern != _SENTENCE_END.pattern
    for length in rng.integers(1, 20, 3_000):
        text = "".join(rng.choice(list(".!?.\"') aA1("), length))
        assert [m.span() for m in _SENTENCE_END.finditer(text)] == [m.span() for m in plain.finditer(text)], text
