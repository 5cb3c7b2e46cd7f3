"""The retriever against transformers' and a brute-force search, and its file against damage and malice."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracle import TheirRetriever, transformers

from realm_min import RealmRetriever, RealmTokenizer, RealmTokenizerFast
from realm_min.files.block_records import read_block_records, write_block_records
from realm_min.files.block_sources import Sources, Titles, source_lines, title_lines
from realm_min.files.pickled_bytes import unpickle_byte_strings
from realm_min.text.corpus import Source

SEP = 3
RETRIEVER = RealmRetriever([], SimpleNamespace(sep_token_id=SEP))

BLOCKS = [
    b"Alan Mathison Turing was an English mathematician.",
    "Café Zürich — naïve résumé; ß".encode(),
    b"",
    b"turing " * 400,
    b"Born in Maida Vale, Turing was 41; turing machines are named after Alan Turing.",
    b"A [SEP] in the text",
]

quick = settings(deadline=None, derandomize=True, max_examples=100)


def object_array(records):
    array = np.empty(len(records), object)
    array[:] = records
    return array


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return RealmTokenizerFast(vocabulary)


@pytest.fixture(scope="module")
def their_tokenizer(vocabulary):
    return transformers.RealmTokenizerFast(str(vocabulary))


# --- Answers in blocks ------------------------------------------------------------------------------------------------


def spans_by_brute_force(row, answers):
    first, second = [i for i, token in enumerate(row) if token == SEP][:2]
    return [
        (start, start + len(answer) - 1)
        for answer in answers
        for start in range(first + 1, second)
        if row[start : start + len(answer)] == answer
    ]


@st.composite
def rows_and_answers(draw):
    length = draw(st.integers(2, 14))
    tokens = st.integers(1, 4)  # a small vocabulary, [SEP] in it: many matches, overlapping ones, ties
    rows = draw(st.lists(st.lists(tokens, min_size=length, max_size=length), min_size=1, max_size=5))
    for row in rows:
        for place in draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2, unique=True)):
            row[place] = SEP
    answers = draw(st.lists(st.lists(tokens, min_size=1, max_size=length + 2), max_size=4))
    return rows, answers


@quick
@given(rows_and_answers())
def test_block_has_answer_equals_brute_force_and_transformers(drawn):
    rows, answers = drawn
    has_answers, start_pos, end_pos = found = RETRIEVER.block_has_answer(SimpleNamespace(input_ids=rows), answers)
    expected = [spans_by_brute_force(row, answers) for row in rows]
    width = max(len(spans) for spans in expected)
    padding = [[-1] * (width - len(spans)) for spans in expected]
    assert has_answers == [bool(spans) for spans in expected]
    assert start_pos == [[s for s, _ in spans] + pad for spans, pad in zip(expected, padding, strict=True)]
    assert end_pos == [[e for _, e in spans] + pad for spans, pad in zip(expected, padding, strict=True)]
    theirs = TheirRetriever([], SimpleNamespace(sep_token_id=SEP))
    assert found == theirs.block_has_answer(SimpleNamespace(input_ids=torch.tensor(rows)), answers)
    assert found == RETRIEVER.block_has_answer(SimpleNamespace(input_ids=torch.tensor(rows)), answers)


def test_a_known_answer_stands_where_it_should():
    inputs = SimpleNamespace(input_ids=[[2, 9, 3, 7, 8, 7, 8, 3, 7, 8], [2, 9, 3, 8, 8, 8, 8, 8, 3, 0]])
    assert RETRIEVER.block_has_answer(inputs, [[7, 8], [8]]) == (
        [True, True],
        [[3, 5, 4, 6, -1], [3, 4, 5, 6, 7]],
        [[4, 6, 4, 6, -1], [3, 4, 5, 6, 7]],
    )
    assert RETRIEVER.block_has_answer(inputs, []) == ([False, False], [[], []], [[], []])


@pytest.mark.parametrize(
    "input_ids, answers, complaint",
    [
        ([[2, 3, 5, 3]], [[5], []], r"answer_ids\[1\] is \[\]"),
        ([[2, 3, 5, 3]], [5], r"answer_ids=\[5\] is a list: give a list of lists of int"),
        ([[2, 3, 5, 3], [2, 3, 5, 5]], [[5]], "input 1 lacks the two"),
        ([[], []], [[5]], "input 0 lacks the two"),
        ([2, 3, 5, 3], [[5]], "padding=True"),
        ([[2, 3, 3], [2, 3, 5, 3]], [[5]], "padding=True"),
    ],
)
def test_bad_answers_and_inputs_are_named(input_ids, answers, complaint):
    with pytest.raises(ValueError, match=complaint):
        RETRIEVER.block_has_answer(SimpleNamespace(input_ids=input_ids), answers)


# --- Reader inputs ----------------------------------------------------------------------------------------------------


@settings(quick, max_examples=40)
@given(
    blocks=st.lists(st.integers(0, len(BLOCKS) - 1), min_size=1, max_size=6),
    question=st.sampled_from(["Who was Alan Turing?", "turing's naïve résumé isn't one , is it?", "x"]),
    answers=st.lists(st.sampled_from(["Turing", "Alan Turing", "café", "41", "nowhere"]), max_size=3) | st.none(),
    max_length=st.integers(30, 64) | st.none(),
)
def test_reader_inputs_equal_transformers(tokenizer, their_tokenizer, blocks, question, answers, max_length):
    ours, theirs = (
        retriever(object_array(BLOCKS), tok)(
            torch.tensor(blocks),
            tok([question], return_tensors="pt").input_ids,
            None if answers is None else [tok(answer, add_special_tokens=False).input_ids for answer in answers],
            max_length=max_length,
        )
        for retriever, tok in ((RealmRetriever, tokenizer), (TheirRetriever, their_tokenizer))
    )
    assert ours[:3] == theirs[:3]
    assert set(ours[3]) == set(theirs[3])
    for name in theirs[3]:
        assert ours[3][name].dtype == torch.int64
        assert torch.equal(ours[3][name], theirs[3][name]), name


@pytest.mark.parametrize("return_tensors, kind", [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_the_slow_tokenizer_and_every_tensor_type_give_the_same(vocabulary, tokenizer, return_tensors, kind):
    fast, slow = (
        RealmRetriever(BLOCKS, tok)(
            np.array([4, 0]),
            tok(["Who is Turing?"]).input_ids,
            [tok("alan turing", add_special_tokens=False).input_ids],
            max_length=20,
            return_tensors=return_tensors,
        )
        for tok in (tokenizer, RealmTokenizer(vocabulary))
    )
    assert fast[:3] == slow[:3]
    assert isinstance(fast[3].input_ids, kind)
    assert np.asarray(fast[3].input_ids).shape == (2, 20)
    assert np.array_equal(fast[3].input_ids, slow[3].input_ids)


@pytest.mark.parametrize(
    "block_ids, question_ids, complaint",
    [
        ([6], [[2, 3]], "block 6 does not exist: the retriever holds blocks 0 to 5"),
        ([0, -1], [[2, 3]], "block -1 does not exist"),
        ([], [[2, 3]], "one at least"),
        ([[0]], [[2, 3]], r"shape \[1, 1\]"),
        ([0], [2, 3], r"shape \[2\]: give one question"),
        ([0], [[2], [3]], r"shape \[2, 1\]: give one question"),
    ],
)
def test_bad_calls_are_named(tokenizer, block_ids, question_ids, complaint):
    with pytest.raises(ValueError, match=complaint):
        RealmRetriever(BLOCKS, tokenizer)(torch.tensor(block_ids), torch.tensor(question_ids), None)


def test_no_place_ends_before_it_starts(tokenizer):
    titles, sources = Titles(title_lines([""])), Sources(source_lines([Source("a", 3, 15)]))
    retriever = RealmRetriever([b"twelve chars"], tokenizer, titles, sources)
    assert retriever.place(0, 5, 10) == (8, 13)
    for last in (5, 10):
        with pytest.raises(ValueError, match=rf"place\(0, 10, {last}\): give a last character above the first"):
            retriever.place(0, 10, last)


def test_blocks_that_are_no_utf8_bytes_are_named(tokenizer):
    for record, complaint in (("text", "block 1 is a str"), (b"\xff", "block 1 is not UTF-8")):
        with pytest.raises(ValueError, match=complaint):
            RealmRetriever([b"good", record], tokenizer)([1], [[101, 102]], None)


# --- Folders ----------------------------------------------------------------------------------------------------------


def test_transformers_reads_what_we_save(tokenizer, tmp_path):
    RealmRetriever(BLOCKS, tokenizer).save_pretrained(tmp_path)
    theirs = TheirRetriever.from_pretrained(str(tmp_path))
    ours = RealmRetriever.from_pretrained(tmp_path)
    assert theirs.block_records.tolist() == ours.block_records.tolist() == BLOCKS
    question = tokenizer(["Who is Turing?"], return_tensors="pt").input_ids
    answer = [tokenizer("turing", add_special_tokens=False).input_ids]
    got, wanted = ours([4, 1], question, answer), theirs([4, 1], question, answer)
    assert got[:3] == wanted[:3]
    assert torch.equal(got[3].input_ids, wanted[3].input_ids)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_we_read_what_transformers_saves(their_tokenizer, tmp_path):
    TheirRetriever(object_array(BLOCKS), their_tokenizer).save_pretrained(str(tmp_path))
    ours = RealmRetriever.from_pretrained(tmp_path)
    assert ours.block_records.dtype == object
    assert ours.block_records.tolist() == BLOCKS
    assert ours.tokenizer("A naïve test").input_ids == their_tokenizer("A naïve test").input_ids


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        RealmRetriever.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"block_records\.npy does not exist"):
        RealmRetriever.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"b\.npy"):
        read_block_records(tmp_path / "b.npy")


# --- block_records.npy ------------------------------------------------------------------------------------------------


def npy(payload, count, dtype="|O"):
    """An .npy file whose header announces `count` records, with any bytes behind it."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({count},), }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + payload


@quick
@given(st.lists(st.binary(max_size=20) | st.integers(250, 260).map(bytes) | st.just(b"\xe9\n'" * 25000), max_size=9))
def test_every_list_of_byte_strings_survives(tmp_path_factory, records):
    records = records * 2  # the same object twice: pickled once, then looked up
    path = tmp_path_factory.getbasetemp() / "records.npy"
    write_block_records(path, records)
    assert read_block_records(path).tolist() == records
    assert np.load(path, allow_pickle=True).tolist() == records
    for protocol in (2, 3, 4, 5):
        path.write_bytes(npy(pickle.dumps(object_array(records), protocol), len(records)))
        assert read_block_records(path).tolist() == records


def test_pickles_of_numpy_1_and_of_many_records_are_read():
    records = [b"%d" % i for i in range(70000)]  # above 65535: every width of memo index
    for protocol in (2, 3, 4):
        pickled = pickle.dumps(object_array(records), protocol)
        if protocol < 4:
            pickled = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert unpickle_byte_strings(pickled) == records


def test_fixed_width_strings_are_read(tmp_path):
    np.save(tmp_path / "s.npy", np.array([b"one", b"", b"three"]))
    records = read_block_records(tmp_path / "s.npy")
    assert records.dtype == object
    assert [type(record) for record in records] == [bytes] * 3
    assert records.tolist() == [b"one", b"", b"three"]
    (tmp_path / "s.npy").write_bytes((tmp_path / "s.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"s\.npy cannot be read: its size"):
        read_block_records(tmp_path / "s.npy")


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {
    "system": (lambda mark: Calls(os.system, f"touch {mark}"), "system"),
    "eval": (lambda mark: Calls(eval, f"open({mark!r}, 'w')"), "eval"),
    "exec": (lambda mark: Calls(exec, f"open({mark!r}, 'w')"), "exec"),
    "open": (lambda mark: Calls(open, mark, "w"), "open"),
    "nested": (lambda mark: Calls(getattr, Calls(__import__, "os"), "system"), "getattr"),
    "inner array": (lambda mark: object_array([Calls(os.system, f"touch {mark}")]), "system"),
    "large bytes": (lambda mark: Calls(bytes, 10**15), "calls builtins.bytes|calls __builtin__.bytes|instruction"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("attack", ATTACKS)
def test_pickled_calls_are_refused_and_never_made(tmp_path, attack, protocol):
    make, complaint = ATTACKS[attack]
    mark = tmp_path / "executed"
    path = tmp_path / "block_records.npy"
    evil = make(str(mark))
    for payload in (object_array([b"good", evil, b"good"]), evil, [evil], {b"key": evil}):
        path.write_bytes(npy(pickle.dumps(payload, protocol), 3))
        with pytest.raises(ValueError, match=complaint if not isinstance(payload, dict) else "instruction") as caught:
            read_block_records(path)
        assert str(path) in str(caught.value)
        assert not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch executed'\ntR.",
        b"(S'touch executed'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch executed'\no.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x14core.multiarray.load\x93.",
        b"\x80\x02Pnumpy\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",
        b"\x80\x02cnumpy\nndarray\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x03]r\xff\xff\xff\xff.",  # a memo of four thousand million places
        b"\x80\x03B\xff\xff\xff\xffabc.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x03" + b"(" * 5000 + b"t" * 5000 + b".",
        b"\x80\x04]\x94h\x00a.",  # a list that holds itself
        b"\x80\x04)" + b"\x85" * 10**5 + b"\x8c\x01a\x93.",  # a name that is a tuple in a tuple in a tuple …
        # A name that is 2 ** 34 letters, as a tuple of two tuples of two tuples …
        b"\x80\x04\x8c\xc8"
        + b"a" * 200
        + b"\x94"
        + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(34))
        + b"\x8c\x01x\x93.",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R)b.",  # an array without a state
        b"\x80\x03C\x01a.",
        b"\x80\x03.",
        b"",
    ],
)
def test_hand_written_programs_are_refused(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.npy").write_bytes(npy(program, 1))
    with pytest.raises(ValueError, match=r"b\.npy cannot be read"):
        read_block_records("b.npy")
    assert os.listdir(tmp_path) == ["b.npy"]


def test_one_text_encoded_again_and_again_is_stopped():
    text = b"X" + (10**5).to_bytes(4, "little") + b"a" * 10**5
    program = b"\x80\x02(" + b"c_codecs\nencode\nq\x00" + text + b"q\x01" + b"X\x06\x00\x00\x00latin1\x86R"
    program += b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R" * 1000 + b"t."
    with pytest.raises(ValueError, match="longer than the file"):
        unpickle_byte_strings(program)


@pytest.mark.parametrize(
    "array, complaint",
    [
        (np.arange(3), "dtype int64"),
        (np.array(["text"]), "dtype <U4"),
        (object_array(["text"]), "record 0 is a str"),
        (object_array([b"good", 7]), "record 1 is a int"),
        (object_array([b"good", None]), "record 1 is a NoneType"),
        (np.array([[b"a", b"b"]], dtype=object), r"shape \[1, 2\]"),
        (np.array(b"a", dtype=object), r"shape \[\]"),
    ],
)
def test_arrays_of_anything_else_are_refused(tmp_path, array, complaint):
    np.save(tmp_path / "b.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=complaint):
        read_block_records(tmp_path / "b.npy")


def test_records_that_are_no_bytes_are_not_written(tmp_path):
    write_block_records(tmp_path / "b.npy", [b"old"])
    with pytest.raises(ValueError, match="block 1 is a str"):
        write_block_records(tmp_path / "b.npy", [b"a", "b"])
    assert os.listdir(tmp_path) == ["b.npy"]
    assert read_block_records(tmp_path / "b.npy").tolist() == [b"old"]


@settings(quick, max_examples=300)
@given(
    protocol=st.sampled_from([2, 3, 4]),
    cut=st.integers(0, 10**4) | st.none(),
    flips=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 7)), max_size=3),
)
def test_damaged_files_end_in_one_error_or_in_byte_strings(tmp_path_factory, protocol, cut, flips):
    """A flipped bit inside a text cannot be seen; anywhere else it is named, and nothing hangs or fills the memory."""
    records = [b"turing", b"", b"machine " * 40, b"\xe9t\xe9", b"turing"]
    whole = npy(pickle.dumps(object_array(records), protocol), len(records))
    data = bytearray(whole)
    for place, bit in flips:
        data[place % len(data)] ^= 1 << bit
    if cut is not None:
        data = data[: cut % len(data)]
    assume(data != whole)
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(data)
    try:
        found = read_block_records(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} cannot be read: ")
        assert "\n" not in str(error)
    else:
        assert cut is None
        assert found.shape == (len(records),)
        assert {type(record) for record in found} == {bytes}
