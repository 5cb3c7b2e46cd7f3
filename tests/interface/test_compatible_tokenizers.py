"""What the documentation of transformers' tokenizers says of calls, padding and encodings: ours beside theirs.

Each case is one behaviour, in its name; it holds for both tokenizers where its name does not say otherwise.
`test_compatible_tokens.py` goes on with tokens, decoding and folders.
"""

import copy
import pickle

import numpy as np
import pytest
import tokenizers_side_by_side as sides
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import needs_oracle, transformers

import realm_min

pytestmark = needs_oracle
BOTH = ("by hand", "fast")
TEXT, OTHER = "Where is the capital of Peru?", "Lima, unaffable Zürich 東京."
BATCH, PAIRS = [TEXT, "Peru", OTHER], [(TEXT, OTHER), ("Peru", "is Lima"), (OTHER, "")]
WORDS = ["Where", "is", "Zürich?"]
RAGGED = {"input_ids": [[4, 7, 5], [4, 7, 8, 9, 5]], "token_type_ids": [[0, 0, 0], [0, 0, 0, 1, 1]]}


def strategy(name):
    return getattr(transformers.tokenization_utils_base.TruncationStrategy, name)


def padding(name):
    return getattr(transformers.utils.PaddingStrategy, name)


def tensor(name):
    return getattr(transformers.utils.TensorType, name)


def tensors(fields):
    return {name: torch.tensor(rows[1]) for name, rows in fields.items()}


CALLS = {
    "a text": lambda t: t(TEXT),
    "a pair": lambda t: t(TEXT, OTHER),
    "a batch": lambda t: t(BATCH),
    "a batch as a tuple": lambda t: t(tuple(BATCH)),
    "a batch of pairs in two lists": lambda t: t(BATCH, BATCH[::-1]),
    "a batch of pairs in one list": lambda t: t(PAIRS),
    "text by name": lambda t: t(text=TEXT, text_pair=OTHER),
    "text_target alone": lambda t: t(text_target=TEXT),
    "text_target as labels": lambda t: t(BATCH, text_target=BATCH[::-1], text_pair_target=BATCH),
    "options by place": lambda t: t(TEXT, OTHER, None, None, False, "max_length", "only_second", 20),
    "all options by place": lambda t: t(
        BATCH, None, None, None, True, True, True, 8, 0, False, 4, "np", True, False, False, True, False, True, False
    ),
    "max_length alone truncates": lambda t: t(TEXT, max_length=5),
    "max_length with padding=False truncates": lambda t: t(TEXT, padding=False, max_length=5),
    "max_length with truncation=False does not": lambda t: t(TEXT, truncation=False, max_length=5),
    "max_length with padding=True does not": lambda t: t(BATCH, padding=True, max_length=5),
    "padding=do_not_pad with max_length does not": lambda t: t(TEXT, padding="do_not_pad", max_length=5),
    "strategies as members of enumerations": lambda t: t(
        PAIRS, padding=padding("MAX_LENGTH"), truncation=strategy("ONLY_FIRST"), max_length=14
    ),
    "padding as a member, longest": lambda t: t(BATCH, padding=padding("LONGEST")),
    "truncation as a member, none": lambda t: t(BATCH, truncation=strategy("DO_NOT_TRUNCATE"), max_length=4),
    "tensors of PyTorch": lambda t: t(BATCH, padding=True, return_tensors="pt"),
    "tensors of PyTorch, as a member": lambda t: t(TEXT, return_tensors=tensor("PYTORCH")),
    "arrays of NumPy": lambda t: t(BATCH, padding=True, return_tensors="np"),
    "arrays of NumPy, as a member": lambda t: t(TEXT, return_tensors=tensor("NUMPY")),
    "a padded batch to a multiple": lambda t: t(BATCH, padding=True, pad_to_multiple_of=8),
    "max_length to a multiple": lambda t: t(TEXT, padding="max_length", max_length=13, pad_to_multiple_of=8),
    "a multiple without padding": lambda t: t(TEXT, pad_to_multiple_of=8),
    "a single text to a multiple": lambda t: t(TEXT, padding=True, pad_to_multiple_of=16),
    "words": lambda t: t(WORDS, is_split_into_words=True),
    "words in a pair": lambda t: t(WORDS, WORDS[:1], is_split_into_words=True),
    "words in a batch": lambda t: t([WORDS, ["don't", "[MASK]"]], is_split_into_words=True, padding=True),
    "words in a batch of pairs": lambda t: t([WORDS, ["a"]], [["b"], WORDS], is_split_into_words=True),
    "words truncated": lambda t: t(WORDS * 4, is_split_into_words=True, truncation=True, max_length=7),
    "the length of a text": lambda t: t(TEXT, return_length=True),
    "the length of a padded text": lambda t: t(TEXT, return_length=True, padding="max_length", max_length=16),
    "the lengths of a padded batch": lambda t: t(BATCH, return_length=True, padding=True),
    "the lengths as a tensor": lambda t: t(TEXT, return_length=True, return_tensors="pt"),
    "the special tokens' mask": lambda t: t(PAIRS, padding=True, return_special_tokens_mask=True),
    "no type ids, no mask": lambda t: t(TEXT, return_token_type_ids=False, return_attention_mask=False),
    "verbose=False": lambda t: t(TEXT, padding="max_length", verbose=False),
    "encode": lambda t: t.encode(TEXT, OTHER),
    "encode by place": lambda t: t.encode(TEXT, OTHER, True, "max_length", "longest_first", 9, 0, "pt"),
    "encode words": lambda t: t.encode(WORDS, is_split_into_words=True),
    "encode_plus": lambda t: t.encode_plus(TEXT, OTHER, True, "max_length", True, 24),
    "encode_plus with words": lambda t: t.encode_plus(WORDS, None, is_split_into_words=True, return_tensors="np"),
    "encode_plus with pad_to_max_length": lambda t: t.encode_plus(
        TEXT, max_length=12, truncation=True, pad_to_max_length=True, return_attention_mask=True, return_tensors="pt"
    ),
    "pad_to_max_length without max_length": lambda t: t.batch_encode_plus(BATCH, pad_to_max_length=True),
    "truncation_strategy with max_length alone": lambda t: t(
        TEXT, OTHER, truncation_strategy="only_first", max_length=9
    ),
    "truncation_strategy": lambda t: t.encode_plus(
        TEXT, OTHER, truncation_strategy="only_second", max_length=20, padding=True
    ),
    "batch_encode_plus": lambda t: t.batch_encode_plus(BATCH, True, True, None, None),
    "batch_encode_plus of pairs": lambda t: t.batch_encode_plus(PAIRS, truncation="only_first", max_length=14),
    "batch_encode_plus of words": lambda t: t.batch_encode_plus([WORDS, ["a"]], is_split_into_words=True),
    "batch_encode_plus of pairs of words": lambda t: t.batch_encode_plus(
        [(WORDS, ["a"]), (["b"], WORDS)], is_split_into_words=True
    ),
    "prepare_for_model": lambda t: t.prepare_for_model([7, 8, 9]),
    "prepare_for_model of a pair, by place": lambda t: t.prepare_for_model(
        [7, 8, 9], [10], True, "max_length", True, 12
    ),
    "prepare_for_model to tensors": lambda t: t.prepare_for_model(
        [7, 8], return_tensors="pt", prepend_batch_axis=True, return_length=True
    ),
    "prepare_for_model truncates": lambda t: t.prepare_for_model(
        list(range(7, 20)), list(range(7, 12)), truncation=True, max_length=9
    ),
    "truncate_sequences of one": lambda t: t.truncate_sequences([1, 2, 3, 4], num_tokens_to_remove=2),
    "truncate_sequences of a pair": lambda t: t.truncate_sequences([1, 2, 3, 4], [5, 6], 3),
    "truncate_sequences, only_second": lambda t: t.truncate_sequences([1, 2], [5, 6, 7], 2, "only_second"),
    "truncate_sequences from nothing": lambda t: t.truncate_sequences([1, 2], [5, 6, 7]),
    "candidates": lambda t: t.batch_encode_candidates(
        [BATCH, BATCH[::-1]], max_length=10, truncation=True, return_tensors="pt"
    ),
    "candidates in pairs": lambda t: t.batch_encode_candidates([BATCH], text_pair=[BATCH], max_length=16),
    "candidates in a flat list": lambda t: t.batch_encode_candidates(
        BATCH, max_length=10, truncation=True, return_tensors="np"
    ),
    "candidates in flat lists of pairs": lambda t: t.batch_encode_candidates(BATCH, text_pair=BATCH, max_length=12),
    "candidates of model_max_length": lambda t: (
        setattr(t, "model_max_length", 9) or t.batch_encode_candidates([BATCH], truncation=True)
    ),
    "model_max_length set later": lambda t: setattr(t, "model_max_length", 6) or t(TEXT, truncation=True),
    "padding_side set later": lambda t: setattr(t, "padding_side", "left") or t(PAIRS, padding=True),
    "truncation_side set later": lambda t: setattr(t, "truncation_side", "left") or t(TEXT, max_length=5),
    "model_input_names set later": lambda t: setattr(t, "model_input_names", ["input_ids"]) or t(TEXT),
}
BY_HAND = {
    "encode tokens": lambda t: t.encode(["peru", "##aff", "nowhere"]),
    "encode ids": lambda t: t.encode([7, 8, 9], [10]),
    "encode_plus of ids": lambda t: t.encode_plus([7, 8, 9], truncation=True, max_length=4),
    "batch_encode_plus of pairs of ids": lambda t: t.batch_encode_plus([([7, 8], [9]), ([10], [11, 12])], padding=True),
}
OF_LIBRARY = {
    "offsets": lambda t: t(TEXT, OTHER, return_offsets_mapping=True),
    "offsets of words": lambda t: t(WORDS, is_split_into_words=True, return_offsets_mapping=True),
    "tokenize a pair": lambda t: t.tokenize(TEXT, OTHER, add_special_tokens=True),
    "tokenize with options": lambda t: t.tokenize(TEXT, max_length=4, truncation=True),
    "tokens": lambda t: t(BATCH, padding=True).tokens(1),
    "sequence_ids": lambda t: t(TEXT, OTHER).sequence_ids(),
    "word_ids": lambda t: t(TEXT, OTHER).word_ids(0),
    "word_ids of words": lambda t: t(WORDS, is_split_into_words=True).word_ids(),
    "token_to_sequence": lambda t: [t(TEXT, OTHER).token_to_sequence(i) for i in range(12)],
    "token_to_word": lambda t: [t(BATCH).token_to_word(2, i) for i in range(8)],
    "token_to_chars": lambda t: [t(OTHER).token_to_chars(i) for i in range(8)],
    "word_to_tokens": lambda t: [t(OTHER).word_to_tokens(i) for i in range(5)],
    "word_to_tokens of the second text": lambda t: t(TEXT, OTHER).word_to_tokens(0, 2, sequence_index=1),
    "word_to_chars": lambda t: [t(OTHER).word_to_chars(i) for i in range(5)],
    "char_to_token": lambda t: [t(OTHER).char_to_token(i) for i in range(len(OTHER))],
    "char_to_token of the second text": lambda t: t(TEXT, OTHER).char_to_token(0, 3, sequence_index=1),
    "char_to_word": lambda t: [t(OTHER).char_to_word(i) for i in range(len(OTHER))],
    "an encoding by place": lambda t: t(BATCH)[1].ids,
    "encodings": lambda t: [encoding.tokens for encoding in t(BATCH).encodings],
    "n_sequences": lambda t: (t(TEXT).n_sequences, t(TEXT, OTHER).n_sequences),
}
PADDING = {
    "a batch": lambda t: t.pad(RAGGED),
    "a batch that was called for": lambda t: t.pad(t(BATCH)),
    "a list of encodings": lambda t: t.pad([t(text) for text in BATCH], return_tensors="pt"),
    "a list of dicts": lambda t: t.pad([{"input_ids": [4, 5]}, {"input_ids": [4, 7, 5]}]),
    "one encoding": lambda t: t.pad(t(TEXT), padding="max_length", max_length=12),
    "one encoding to the longest": lambda t: t.pad(t(TEXT)),
    "by place": lambda t: t.pad(RAGGED, "max_length", 6, 4, False, "np", False),
    "padding as a member": lambda t: t.pad(RAGGED, padding=padding("MAX_LENGTH"), max_length=7),
    "padding=False": lambda t: t.pad(RAGGED, padding=False),
    "do_not_pad to a multiple": lambda t: t.pad(RAGGED, padding="do_not_pad", pad_to_multiple_of=8),
    "to a multiple": lambda t: t.pad(RAGGED, pad_to_multiple_of=4),
    "max_length below the longest": lambda t: t.pad(RAGGED, padding="max_length", max_length=4),
    "max_length of none": lambda t: t.pad(RAGGED, padding="max_length"),
    "model_max_length": lambda t: setattr(t, "model_max_length", 7) or t.pad(RAGGED, padding="max_length"),
    "on the left": lambda t: setattr(t, "padding_side", "left") or t.pad(RAGGED),
    "without a mask": lambda t: t.pad(RAGGED, return_attention_mask=False),
    "a mask that is not asked for stays": lambda t: t.pad(
        {"input_ids": [4, 5], "attention_mask": [1, 0]}, "max_length", 4, return_attention_mask=False
    ),
    "a mask that is given": lambda t: t.pad({"input_ids": [4, 5], "attention_mask": [0, 1]}, "max_length", 4),
    "the special tokens' mask": lambda t: t.pad(t(BATCH, return_special_tokens_mask=True)),
    "other fields stay": lambda t: t.pad([{"input_ids": [4], "labels": 1}, {"input_ids": [4, 5], "labels": 0}]),
    "tensors stay tensors": lambda t: t.pad([tensors(RAGGED), {n: x[:3] for n, x in tensors(RAGGED).items()}]),
    "a tensor [batch, tokens]": lambda t: t.pad({"input_ids": torch.tensor([[4, 5], [4, 7]])}, "max_length", 3),
    "arrays stay arrays": lambda t: t.pad({"input_ids": np.array([[4, 5], [4, 7]])}, "max_length", 3),
    "floats beside ids": lambda t: t.pad(
        [{"input_ids": [4], "y": 0.5}, {"input_ids": [5], "y": 1.5}], return_tensors="pt"
    ),
    "no tokens": lambda t: t.pad({"input_ids": []}),
    "no tokens with a mask": lambda t: t.pad({"input_ids": []}, return_attention_mask=True),
    "one text without tokens among others": lambda t: t.pad({"input_ids": [[], [4, 5]]}),
    "a collator of transformers": lambda t: transformers.DataCollatorWithPadding(t, pad_to_multiple_of=8)(
        [t(text) for text in BATCH]
    ),
    "a collator that masks": lambda t: set(transformers.DataCollatorForLanguageModeling(t)([t(x) for x in BATCH])),
    "after another pad_token": lambda t: setattr(t, "pad_token", "[unused1]") or t.pad(RAGGED),
}
ENCODINGS = {
    "is a mapping with attributes": lambda t: (t(TEXT).input_ids, t(TEXT)["input_ids"], "labels" in t(TEXT)),
    "keys, values, items": lambda t: [sorted(t(TEXT).keys()), len(t(TEXT).values()), dict(t(TEXT).items())],
    "get and update": lambda t: (lambda e: (e.get("no"), e.update({"labels": [1]}), e.labels))(t(TEXT)),
    "data": lambda t: t(TEXT).data,
    "is_fast": lambda t: t(TEXT).is_fast,
    "hasattr of what is not there": lambda t: hasattr(t(TEXT), "labels"),
    "to a device": lambda t: t(TEXT, return_tensors="pt").to("meta").input_ids.device.type,
    "to a dtype, which changes nothing": lambda t: t(TEXT, return_tensors="pt").to(torch.float16),
    "convert_to_tensors": lambda t: t(BATCH, padding=True).convert_to_tensors("pt"),
    "convert_to_tensors with an axis": lambda t: t(TEXT).convert_to_tensors("np", prepend_batch_axis=True),
    "copies": lambda t: (copy.copy(t(TEXT)), copy.deepcopy(t(TEXT))),
    "pickled": lambda t: pickle.loads(pickle.dumps(t(BATCH))),
    "unpacked": lambda t: {**t(BATCH)},
}


def cases(**groups):
    return [
        pytest.param(kind, behaviour, id=f"{group.replace('_', ' ')}: {name} ({kind})")
        for group, (kinds, behaviours) in groups.items()
        for name, behaviour in behaviours.items()
        for kind in kinds
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return sides.write_vocabulary(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(
    ("kind", "behaviour"),
    cases(
        call=(BOTH, CALLS), call_by_hand=(["by hand"], BY_HAND), call_of_library=(["fast"], OF_LIBRARY),
        pad=(BOTH, PADDING), encoding=(BOTH, ENCODINGS),
    ),
)  # fmt: skip
def test_as_transformers_does(small, kind, behaviour):
    ours, theirs = sides.side_by_side(kind, small, behaviour)
    assert ours == theirs


def test_a_slice_of_an_encoding_by_hand(small):
    ours, theirs = sides.side_by_side("by hand", small, lambda t: t(BATCH)[:2])
    assert ours == theirs
    with pytest.raises(KeyError, match="RealmTokenizerFast gives more"):
        realm_min.RealmTokenizer(small)(BATCH)[0]


ROWS = st.lists(st.lists(st.integers(7, 60), max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", BOTH)
@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    rows=ROWS, single=st.booleans(), mask=st.sampled_from([None, True, False]), left=st.booleans(),
    how=st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]), length=st.none() | st.integers(1, 9),
    multiple=st.none() | st.integers(1, 5), as_list=st.booleans(),
)  # fmt: skip
def test_drawn_paddings(small, kind, rows, single, mask, left, how, length, multiple, as_list):
    whole = {"input_ids": rows, "token_type_ids": [[0] * len(row) for row in rows]}
    parts = [{name: values[i] for name, values in whole.items()} for i in range(len(rows))]
    given = parts[0] if single else parts if as_list else whole
    side = "left" if left else "right"
    ours, theirs = sides.side_by_side(
        kind,
        small,
        lambda t: setattr(t, "padding_side", side) or t.pad(copy.deepcopy(given), how, length, multiple, mask),
        new=False,
    )
    assert ours == theirs


WORD_LISTS = st.lists(
    st.lists(st.sampled_from(["Peru", "unaffable", "don't", "[MASK]", "é", "", "xyz東"]), min_size=1, max_size=4),
    min_size=1, max_size=3,
)  # fmt: skip


@pytest.mark.parametrize("kind", BOTH)
@settings(deadline=None, derandomize=True, max_examples=50)
@given(
    firsts=WORD_LISTS, paired=st.booleans(), single=st.booleans(), length=st.none() | st.integers(5, 12),
    special=st.booleans(), multiple=st.sampled_from([None, 4]), how=st.sampled_from([False, True]),
)  # fmt: skip
def test_drawn_words(small, kind, firsts, paired, single, length, special, multiple, how):
    texts = [firsts[0], firsts[-1]] if single else [firsts, firsts[::-1]]
    options = dict(
        is_split_into_words=True, padding=how, truncation=None if length is None else "longest_first",
        max_length=length, add_special_tokens=special, pad_to_multiple_of=None if length else multiple,
        return_special_tokens_mask=True,
    )  # fmt: skip
    ours, theirs = sides.side_by_side(kind, small, lambda t: t(*texts[: 1 + paired], **options), new=False)
    assert ours == theirs
