"""Tokenizer folders exchanged with transformers, encodings, and the errors of bad input."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import transformers
from tokenizers import AddedToken

import realm_min
from realm_min.text.batch_encoding import BatchEncoding
from realm_min.text.tokenizer import RealmTokenizer, RealmTokenizerFast

VOCAB = str(Path(realm_min.__file__).parent / "assets" / "vocab.txt")
PAIRS = {
    "by hand": (RealmTokenizer, transformers.RealmTokenizer),
    "fast": (RealmTokenizerFast, transformers.RealmTokenizerFast),
}
KINDS = sorted(PAIRS)
CONFIGS = [
    {},
    {"do_lower_case": False, "model_max_length": 128},
    {"strip_accents": False, "tokenize_chinese_chars": False, "padding_side": "left", "truncation_side": "left"},
    {"cls_token": "a", "additional_special_tokens": ["<ent>"], "mask_token": AddedToken("[MASK]", lstrip=True)},
    {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]},
]
TEXTS = ["Zürich's [MASK] <ent>, naïve 東京.", "Plain Text", "", "newword brandnew NEWWORD <ent>newwords [CLS]"]
OPTIONS = {"padding": "max_length", "truncation": True, "max_length": 10}


def assert_same_tokenizer(ours, theirs):
    assert dict(ours(TEXTS, TEXTS[::-1], **OPTIONS)) == dict(theirs(TEXTS, TEXTS[::-1], **OPTIONS))
    ids = theirs(TEXTS)["input_ids"]
    assert ours(TEXTS).input_ids == ids
    for text in TEXTS:
        assert ours.tokenize(text) == theirs.tokenize(text)
    for skip in (False, True):
        assert ours.batch_decode(ids, skip) == theirs.batch_decode(ids, skip)
    assert len(ours) == len(theirs) and ours.vocab_size == theirs.vocab_size and ours.get_vocab() == theirs.get_vocab()
    assert ours.all_special_tokens == theirs.all_special_tokens and ours.all_special_ids == theirs.all_special_ids
    assert ours.model_max_length == theirs.model_max_length


# ---- Folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_folders_go_both_ways(kind, config, tmp_path):
    ours, theirs = [tokenizer_class(VOCAB, **copy.deepcopy(config)) for tokenizer_class in PAIRS[kind]]
    written = ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert all(Path(path).is_file() for path in written)
    assert {Path(path).name for path in written} == {path.name for path in (tmp_path / "ours").iterdir()}
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "theirs").iterdir()}
    for our_class, their_class in PAIRS.values():  # either folder serves the by-hand and the fast tokenizer
        for folder in ("ours", "theirs"):
            reread = our_class.from_pretrained(tmp_path / folder), their_class.from_pretrained(tmp_path / folder)
            assert_same_tokenizer(*reread)
    assert_same_tokenizer(PAIRS[kind][0].from_pretrained(tmp_path / "ours"), theirs)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_files_are_transformers_own(config, tmp_path):
    for kind in KINDS:
        for side, tokenizer_class in zip(("ours", "theirs"), PAIRS[kind], strict=True):
            tokenizer_class(VOCAB, **copy.deepcopy(config)).save_pretrained(tmp_path / kind / side)
        names = ["vocab.txt", "special_tokens_map.json", *(["tokenizer.json"] if kind == "fast" else [])]
        for name in names:
            ours, theirs = [(tmp_path / kind / side / name).read_text(encoding="utf-8") for side in ("ours", "theirs")]
            assert ours == theirs if name == "vocab.txt" else json.loads(ours) == json.loads(theirs), name
    ours, theirs = [
        json.loads((tmp_path / "by hand" / side / "tokenizer_config.json").read_text()) for side in ("ours", "theirs")
    ]
    assert ours == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_of_transformers_folders(kind, tmp_path):
    theirs = PAIRS[kind][1](VOCAB)
    theirs.add_tokens(["newword", AddedToken("brandnew", normalized=False, lstrip=True)])
    theirs.add_special_tokens({"additional_special_tokens": ["<ent>"]})
    theirs.save_pretrained(tmp_path / "theirs")
    ours = PAIRS[kind][0].from_pretrained(tmp_path / "theirs")
    theirs = PAIRS[kind][1].from_pretrained(tmp_path / "theirs")
    assert ours.convert_tokens_to_ids(["newword", "brandnew", "<ent>"]) == [30522, 30523, 30524]
    assert_same_tokenizer(ours, theirs)
    ours.save_pretrained(tmp_path / "ours")
    assert_same_tokenizer(ours, PAIRS[kind][1].from_pretrained(tmp_path / "ours"))


@pytest.mark.parametrize("kind", KINDS)
def test_older_folders(kind, tmp_path):
    """Folders as google/realm-* hold them: no added_tokens_decoder, paths of another machine."""
    (tmp_path / "vocab.txt").write_text(Path(VOCAB).read_text(encoding="utf-8"), encoding="utf-8")
    config = {
        "do_lower_case": True,
        "cls_token": "[CLS]",
        "tokenizer_class": "RealmTokenizer",
        "name_or_path": "elsewhere",
        "special_tokens_map_file": None,
        "tokenizer_file": None,
        "model_max_length": 512,
        "do_basic_tokenize": True,
        "never_split": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    special = {"cls_token": "[CLS]", "mask_token": {"content": "[MASK]", "lstrip": True, "rstrip": False}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    ours, theirs = [tokenizer_class.from_pretrained(tmp_path) for tokenizer_class in PAIRS[kind]]
    assert_same_tokenizer(ours, theirs)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"newword": 30522}))
    ours = PAIRS[kind][0].from_pretrained(tmp_path)
    assert ours.tokenize("newword") == ["newword"] and ours.convert_tokens_to_ids("newword") == 30522


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_alone_is_enough(kind, tmp_path):
    ours = PAIRS[kind][0](VOCAB)
    (path,) = ours.save_vocabulary(tmp_path)
    assert Path(path).read_bytes() == Path(VOCAB).read_bytes()
    assert_same_tokenizer(*[tokenizer_class.from_pretrained(tmp_path) for tokenizer_class in PAIRS[kind]])
    cased = PAIRS[kind][0].from_pretrained(str(tmp_path), do_lower_case=False, model_max_length=7)
    assert cased.tokenize("The") == ["[UNK]"] and cased.model_max_length == 7
    assert ours.save_vocabulary(tmp_path, "prefix") == (str(tmp_path / "prefix-vocab.txt"),)


def test_tokenizer_json_alone_is_enough_for_the_fast_one(tmp_path):
    transformers.RealmTokenizerFast(VOCAB, do_lower_case=False).save_pretrained(tmp_path, legacy_format=False)
    assert not (tmp_path / "vocab.txt").exists()
    ours, theirs = [tokenizer_class.from_pretrained(tmp_path) for tokenizer_class in PAIRS["fast"]]
    assert_same_tokenizer(ours, theirs)
    direct = RealmTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json", do_lower_case=False)
    assert_same_tokenizer(direct, theirs)
    with pytest.raises(FileNotFoundError, match="vocab.txt"):
        RealmTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_overrides_and_unknown_keys(kind, tmp_path):
    with pytest.warns(UserWarning, match="has no 'note', which has no effect"):
        ours = PAIRS[kind][0](VOCAB, note="kept")
    ours.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["note"] == "kept"
    for overrides in ({"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}):
        reread = [tokenizer_class.from_pretrained(tmp_path, **overrides) for tokenizer_class in PAIRS[kind]]
        assert_same_tokenizer(*reread)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_leaves_no_temporary_files_and_survives_a_failure(kind, tmp_path, monkeypatch):
    ours = PAIRS[kind][0](VOCAB)
    ours.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        PAIRS[kind][0](VOCAB, do_lower_case=False).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_and_copy(kind):
    ours = PAIRS[kind][0](VOCAB)
    for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert other(TEXTS).input_ids == ours(TEXTS).input_ids
    assert repr(ours) == f"{type(ours).__name__}(vocab_size=30522, do_lower_case=True)"


# ---- Encodings ------------------------------------------------------------------------------------------------------


def test_batch_encoding_is_a_dict_with_attributes():
    encoding = RealmTokenizerFast(VOCAB)("hello world", "a pair", return_offsets_mapping=True)
    assert isinstance(encoding, dict) and encoding.input_ids is encoding["input_ids"] and {**encoding} == encoding
    assert encoding.is_fast and encoding.tokens() == ["[CLS]", "hello", "world", "[SEP]", "a", "pair", "[SEP]"]
    assert encoding.sequence_ids(0) == [None, 0, 0, None, 1, 1, None]
    assert encoding.offset_mapping[2] == (6, 11)
    with pytest.raises(AttributeError, match="no field 'labels'"):
        _ = encoding.labels
    assert not hasattr(encoding, "labels")
    assert copy.copy(encoding) == encoding
    by_hand = RealmTokenizer(VOCAB)("hello")
    assert not by_hand.is_fast
    with pytest.raises(ValueError, match="RealmTokenizerFast"):
        by_hand.tokens()


@pytest.mark.parametrize("kind", KINDS)
def test_convert_to_tensors_in_place(kind):
    ours = PAIRS[kind][0](VOCAB)
    encoding = ours(["a b", "c"], padding=True)
    with pytest.raises(ValueError, match="not a tensor"):
        encoding.to("cpu")
    assert encoding.convert_to_tensors(None) is encoding and isinstance(encoding.input_ids, list)
    assert encoding.convert_to_tensors("np") is encoding and isinstance(encoding.input_ids, np.ndarray)
    assert encoding.convert_to_tensors("pt") is encoding and encoding.input_ids.dtype == torch.int64
    assert encoding.to("cpu") is encoding
    assert encoding.to(torch.device("meta")).input_ids.device.type == "meta"
    assert ours("a", return_tensors="pt", add_special_tokens=False).input_ids.tolist() == [[1037]]
    empty = ours("", return_tensors="pt", add_special_tokens=False).input_ids
    assert empty.shape == (1, 0) and empty.dtype == torch.int64
    row = BatchEncoding({"input_ids": [1, 2]}, tensor_type="pt", prepend_batch_axis=True)
    assert row.input_ids.tolist() == [[1, 2]]


# ---- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((5,), {}, "not a int: 5"),
        ((None,), {}, "not a NoneType"),
        ((b"bytes",), {}, "not a bytes"),
        (([],), {}, "empty list"),
        ((["a", None],), {}, "text 1 of the batch must be a str, not a NoneType"),
        ((["a", 3.5],), {}, "text 1 of the batch must be a str, not a float: 3.5"),
        ((["a"], [7]), {}, "text 0 of the batch must be a str, not a int: 7"),
        (("a", 7), {}, "text_pair a int"),
        (("a", ["b"]), {}, "text_pair a list"),
        ((["a", "b"], "c"), {}, "text holds 2 texts and text_pair str"),
        ((["a", "b"], ["c"]), {}, "text holds 2 texts and text_pair 1 texts"),
        (("a",), {"padding": "longer"}, "padding='longer' is unknown"),
        (("a",), {"padding": 3}, "padding=3 is unknown"),
        (("a",), {"truncation": "left"}, "truncation='left' is unknown"),
        (("a",), {"return_tensors": "tf"}, "return_tensors='tf' is not made here: use 'pt', 'np' or None"),
        (("a",), {"return_tensors": "torch"}, "return_tensors='torch' is unknown"),
        (("a",), {"max_length": 0}, "max_length=0 must be at least 1"),
        (("a",), {"max_length": -3, "padding": "max_length"}, "max_length=-3 must be at least 1"),
        (("a",), {"max_length": 12.0}, "max_length=12.0 must be an integer of at least 1"),
        (("a",), {"max_length": True}, "max_length=True must be an integer"),
        (("a",), {"max_length": 2**31, "padding": "max_length"}, "max_length=2147483648 asks for more padding than"),
        (("a",), {"max_length": 10**40, "padding": "max_length", "truncation": True}, "asks for more padding than"),
        (("a",), {"pad_to_multiple_of": 2**31, "padding": True}, "pad_to_multiple_of=2147483648 asks for more padding"),
        (("a",), {"pad_to_multiple_of": 0, "padding": True}, "pad_to_multiple_of=0 must be at least 1"),
        (("a",), {"pad_to_multiple_of": 8, "padding": True, "truncation": True, "max_length": 12}, "no multiple of"),
        (("a",), {"max_length": 1, "truncation": True}, "max_length=1 leaves no room for the 2 special tokens"),
        (("a", "b"), {"max_length": 2, "truncation": True}, "max_length=2 leaves no room for the 3 special tokens"),
        ((["a", "a b"],), {"padding": False, "return_tensors": "pt"}, r"lengths \[3, 4\].*pass padding=True"),
        ((["a", "a b"],), {"padding": False, "return_tensors": "np"}, r"lengths \[3, 4\].*pass padding=True"),
    ],
)
def test_bad_calls(kind, args, options, message):
    with pytest.raises(ValueError, match=message):
        PAIRS[kind][0](VOCAB)(*args, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_other_bad_input(kind):
    ours = PAIRS[kind][0](VOCAB)
    with pytest.raises(ValueError, match="tokenize.. takes one str, not a list"):
        ours.tokenize(["a"])
    with pytest.raises(ValueError, match="encode.. takes one str.*, not a list: call the tokenizer for a batch"):
        ours.encode([["a"]])
    with pytest.raises(ValueError, match="needs max_length"):
        ours.batch_encode_candidates([["a"]])
    with pytest.raises(ValueError, match="list of candidates"):
        ours.batch_encode_candidates("a b", max_length=5)
    with pytest.raises(ValueError, match="holds 1 examples and text_pair 2"):
        ours.batch_encode_candidates([["a"]], [["a"], ["b"]], max_length=5)
    for bad in (30522, -1):
        with pytest.raises(ValueError, match=f"token id {bad} is out of range"):
            ours.convert_ids_to_tokens(bad)
        with pytest.raises(ValueError, match=f"token id {bad} is out of range"):
            ours.decode([101, bad])
    with pytest.raises(ValueError, match="one list of ids"):
        ours.get_special_tokens_mask([1], [2], already_has_special_tokens=True)
    with pytest.raises(FileNotFoundError, match="create it first"):
        ours.save_vocabulary("no/such/folder")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_vocabularies(kind, tmp_path):
    tokenizer_class = PAIRS[kind][0]
    special = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
    cases = {
        "": "is empty",
        "[UNK]\nthe\n": "lacks sep_token='\\[SEP\\]'",
        special.replace("[CLS]\n", ""): "lacks cls_token='\\[CLS\\]'",
        special.replace("[UNK]\n", ""): "lacks unk_token='\\[UNK\\]'",
        special + "the\nthe\n": "holds 'the' twice, in lines 6 and 7",
    }
    path = tmp_path / "vocab.txt"
    for content, message in cases.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            tokenizer_class(path)
    path.write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        tokenizer_class(path)
    with pytest.raises(FileNotFoundError, match="no vocabulary file"):
        tokenizer_class(tmp_path / "none.txt")
    path.write_text(special + "a\n##b\n")
    assert tokenizer_class(path).tokenize("ab abb c") == ["a", "##b", "a", "##b", "##b", "[UNK]"]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_folders_and_arguments(kind, tmp_path):
    tokenizer_class = PAIRS[kind][0]
    with pytest.raises(FileNotFoundError, match="no folder"):
        tokenizer_class.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="vocab.txt"):
        tokenizer_class.from_pretrained(tmp_path)
    tokenizer_class(VOCAB).save_vocabulary(tmp_path)
    for content, message in (("{", "is not JSON"), ("[1]", "should hold a JSON object, and holds a list")):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            tokenizer_class.from_pretrained(tmp_path)
    for arguments in ({"padding_side": "up"}, {"truncation_side": "up"}):
        with pytest.raises(ValueError, match="='up' is unknown"):
            tokenizer_class(VOCAB, **arguments)
    with pytest.raises(ValueError, match="lacks mask_token=None"):
        tokenizer_class(VOCAB, mask_token=None)
    with pytest.raises(ValueError, match="leaves split_special_tokens out: a special token in a text is that token"):
        tokenizer_class(VOCAB, split_special_tokens=True)


# What stands in a file, and is no list of names, no added token or no id.
DAMAGED = {
    "tokenizer_config.json": [
        *(f'{{"model_input_names": {value}}}' for value in ("5", "null", '"x"', "[5]", "{}")),
        *(f'{{"added_tokens_decoder": {value}}}' for value in ("5", '"x"', "[5]", '{"3": 5}')),
        *(f'{{"added_tokens_decoder": {{"{value}": "a"}}}}' for value in ("x", "-1", "2147483648", "1.5", "\u0663")),
        '{"added_tokens_decoder": {"3": {"content": "\\ud800"}}}',
    ],
    "added_tokens.json": [
        *(f'{{"new": {value}}}' for value in ("-1", "2147483648", "null", "true", "[]", "{}", "1.5", "1e999", '"y"')),
        '{"\\ud800": 30522}',
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_files_say_of_added_tokens_is_looked_at(kind, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    for name, texts in DAMAGED.items():
        for text in texts:
            (tmp_path / name).write_text(text, encoding="utf-8")
            with pytest.raises(ValueError, match="model_input_names=|added_tokens_decoder=|no added token|has the id"):
                PAIRS[kind][0].from_pretrained(tmp_path)
        (tmp_path / name).unlink()


def test_a_piece_that_is_no_text(tmp_path):
    RealmTokenizerFast(VOCAB).save_pretrained(tmp_path, legacy_format=False)
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"[unused9]"', '"\\ud800"'), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"the piece '\\ud800' in .* holds half a surrogate pair: fetch the file again"
    ):
        RealmTokenizerFast.from_pretrained(tmp_path)


def test_errors_of_one_kind(tmp_path):
    with pytest.raises(ValueError, match="single_word=True need RealmTokenizerFast"):
        RealmTokenizer(VOCAB, mask_token=AddedToken("[MASK]", single_word=True))
    with pytest.raises(ValueError, match="return_token_type_ids=True needs add_special_tokens=True"):
        RealmTokenizer(VOCAB)("a", add_special_tokens=False, return_token_type_ids=True)
    with pytest.raises(ValueError, match="vocab_file or a tokenizer_file"):
        RealmTokenizerFast()
    with pytest.raises(FileNotFoundError, match="no tokenizer file"):
        RealmTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(ValueError, match="holds a 'BPE' model"):
        RealmTokenizerFast(tokenizer_file=tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="cannot have id 30600"):
        RealmTokenizerFast(VOCAB, added_tokens_decoder={30600: AddedToken("newword")})


def test_a_batch_that_becomes_tensors_is_padded(vocabulary):
    """transformers' own example of `RealmScorer` asks for tensors of two texts of different lengths."""
    for kind in (RealmTokenizer, RealmTokenizerFast):
        tokenizer = kind(vocabulary)
        padded = tokenizer(["a", "a b"], padding=True, return_tensors="np")
        found = tokenizer(["a", "a b"], return_tensors="np")
        assert {name: found[name].tolist() for name in found} == {name: padded[name].tolist() for name in padded}
        assert [len(row) for row in tokenizer(["a", "a b"]).input_ids] == [3, 4]


def test_a_vocabulary_with_a_byte_order_mark(tmp_path):
    from realm_min.text.tokenizer_files import load_vocab

    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nword\n", encoding="utf-8-sig")
    assert load_vocab(tmp_path / "vocab.txt") == {"[PAD]": 0, "[UNK]": 1, "word": 2}
