"""Arguments of another kind than their annotation says: refused in one sentence, by name."""

import os
import warnings
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import eight_capitals
import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from realm_min import RealmConfig, kinds
from realm_min.jobs.evaluation import Question, has_answer, means
from realm_min.jobs.statistics import top_k_match
from realm_min.kinds import WrongKind, checked, is_a
from realm_min.search.mips import BlockIndex

META = torch.zeros(2, device="meta")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's, that they are new
    NESTED = torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)])


class Subclass(torch.Tensor):
    """A tensor of somebody's own."""


class Column:
    """Several values as a table's column holds them: of no class that Python knows."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator:
        return iter(self.values)

    def __getitem__(self, place: int) -> Any:
        return self.values[place]


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            int,
            [0, np.int64(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)],
            [True, np.True_, 1.0, "1", None, torch.tensor(1.0), torch.tensor(True), torch.tensor([1]), META[0]],
        ),
        (float, [0, 1.5, np.float32(1), np.int64(3)], [True, "1", None]),
        (bool, [True, False, np.True_, 0, 1, np.int64(1)], [2, -1, 1.0, "", None]),
        (str, ["", "a"], [b"a", None]),
        (
            Tensor,
            [torch.zeros(2), torch.nn.Parameter(torch.zeros(2)), torch.zeros(2).as_subclass(Subclass)],
            [META, torch.nn.Parameter(META), torch.zeros(2).to_sparse(), NESTED, [0.0], np.zeros(2)],
        ),
        (int | None, [1, None], [1.5]),
        (str | os.PathLike, ["a", " a ", ".", Path("a")], [b"a", "a\0b", "\ud800", "", " \n", Path(" "), 1, None]),
        (
            list[int],
            [
                [],
                [1, 2],
                (1, 2),
                deque([1]),
                range(2),
                np.arange(2),
                torch.arange(2),
                [np.int64(1)],
                list(torch.arange(2)),
            ],
            [
                [1, "a"],
                "ab",
                {1: 2},
                np.zeros(2),
                np.zeros((1, 2), int),
                torch.zeros(2),
                torch.tensor(1),
                {1, 2},
                iter([1]),
            ],
        ),
        (
            Sequence[Sequence[int]],
            [[[1]], np.ones((2, 2), int), [np.arange(2)], torch.ones(2, 2).int()],
            [[1], [[1.5]]],
        ),
        (Sequence[str], [["a"], ("a",), np.array(["a"]), Column("a")], ["a", [1], iter(["a"])]),
        (Iterable[str], [["a"], {"a"}, {"a": 1}.keys(), iter([1]), Column("a")], ["a", {"a": 1}, [1], {1}, 3]),
        (Mapping[str, int], [{}, {"a": 1}, UserDict(a=1)], [{1: 1}, {"a": "b"}, [("a", 1)]]),
        (dict[str, int], [{}, OrderedDict(a=1), MappingProxyType({"a": 1}), UserDict(a=1)], [{1: 1}, [("a", 1)]]),
        (Callable, [len, lambda: 1], ["len", None]),
        (Any, [None, 1, META], []),
    ],
)
def test_what_is_of_a_kind(kind, good, bad):
    assert [value for value in good if not is_a(value, kind)] == []
    assert [value for value in bad if is_a(value, kind)] == []


class Later(NamedTuple):
    """A class that an annotation names before it is there."""

    texts: list[str]
    size: float = 1.0


@checked
def called(texts: "list[str] | None", size: float = 1.0, *, made: "Later | None" = None, **others: int) -> str:
    """What it says."""
    return f"{texts} {size}"


def test_a_call_is_held_to_its_annotations():
    assert called(["a"], 2, other=3) == "['a'] 2" and called(texts=None) == "None 1.0"
    assert (called.__name__, called.__doc__) == ("called", "What it says.")
    for arguments, message in (
        ((["a"], "2"), "size='2' is a str: give a float"),
        (("a",), "texts='a' is a str: give a list of str or None"),
        (([1],), r"texts=\[1\] is a list: give a list of str or None"),
    ):
        with pytest.raises(WrongKind, match=message):
            called(*arguments)
    with pytest.raises(WrongKind, match="other='x' is a str: give an int"):
        called(None, other="x")
    with pytest.raises(WrongKind, match="made=1 is an int: give a Later or None"):
        called(None, made=1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'texts'"):
        called()


@checked
def given_numbers(
    whole: int = 0, share: "float | None" = None, switch: bool = False, *, either: int | Tensor = 0
) -> list:
    return [whole, share, switch, either]


def test_numbers_arrive_as_pythons_own():
    """JSON takes no others, nor does a dict find a tensor again."""
    for one in (np.int64(1), np.uint8(1), torch.tensor(1), torch.tensor(1, dtype=torch.int32)):
        for found in (given_numbers(one, one, one), given_numbers(share=one, switch=one, whole=one)):
            assert found == [1, 1.0, True, 0] and [type(x) for x in found] == [int, float, bool, int]
    assert type(given_numbers(share=np.float32(0.5))[1]) is float and given_numbers(share=np.float32(0.5))[1] == 0.5
    assert given_numbers(switch=np.bool_(True))[2] is True and type(given_numbers(either=np.int8(2))[3]) is int
    tensor, large = torch.tensor(3), 2**70
    assert given_numbers(either=tensor)[3] is tensor and given_numbers(large)[0] is large
    assert given_numbers(True + 1, None, True) == [2, None, True, 0]


@checked
def given_texts(
    texts: "list[str] | str | None" = None, numbers: Sequence[int] = (), questions: "list[Question]" = ()
) -> list:
    return [texts, numbers, questions]


class Column:
    """As of a table: of several nobody can say whether it is true."""

    def __init__(self, *values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, place):
        return self.values[place]

    def __bool__(self):
        raise ValueError("ambiguous")


def test_texts_and_records_arrive_as_a_list():
    asked = Question("why?", ["so"])
    records = np.empty(1, dtype=object)
    records[0] = asked
    for texts in (np.array(["a", "b"]), np.array(["a", "b"], dtype=object), Column("a", "b")):
        assert given_texts(texts)[0] == ["a", "b"] and type(given_texts(texts)[0]) is list
    for questions in (records, Column(asked)):
        assert given_texts(questions=questions)[2] == [asked]
    for kept in (["a"], ("a",), deque("ab"), "a", None):
        assert given_texts(kept)[0] is kept
    for numbers in (np.arange(3), torch.arange(3), range(3)):  # which may be many
        assert given_texts(numbers=numbers)[1] is numbers
    with pytest.raises(WrongKind, match="texts=.* is a ndarray: give a list of str or a str or None"):
        given_texts(np.zeros(2))


@checked
def given_many(
    *, whole: Iterable[int] = (), questions: "Iterator[Question] | None" = None, anything: Iterable = ()
) -> Any:
    return [list(values) for values in (whole, questions or (), anything)]


def test_what_an_iterator_yields_is_held_to_its_kind():
    asked, drawn = Question("why?", ["so"]), []
    assert given_many(whole=(i for i in range(3)), questions=iter([asked]), anything=iter("a1")) == [
        [0, 1, 2], [asked], ["a", "1"],
    ]  # fmt: skip
    with pytest.raises(WrongKind, match=r"^questions\[1\]=3 is an int: give a Question$"):
        given_many(questions=(drawn.append(x) or x for x in (asked, 3, asked)))
    assert drawn == [asked, 3]  # and no further
    with pytest.raises(WrongKind, match=r"^whole\[0\]='1' is a str: give an int$"):
        given_many(whole=iter("12"))
    kept = {1: 2}.keys()
    assert given_many(whole=kept)[0] == [1]


@checked
def given_several(first: int, *rest: Any) -> tuple:
    return first, rest


def test_arguments_that_have_no_name_arrive():
    assert given_several(np.int64(1), 2, "3") == (1, (2, "3"))


def test_a_long_list_is_walked_through_once_and_an_array_not_at_all():
    class Counted(list):
        walks = 0

        def __iter__(self) -> Iterator:
            self.walks += 1
            return super().__iter__()

    class Array(np.ndarray):
        def __iter__(self) -> Iterator:
            raise AssertionError

    class Tensor(Subclass):
        def __iter__(self) -> Iterator:
            raise AssertionError

    values = Counted([1] * 1000)
    assert is_a(values, list[int]) and values.walks <= 2  # one asks whether it can be
    assert is_a(np.arange(1000).view(Array), list[int])
    assert is_a(torch.arange(1000).as_subclass(Tensor), list[int])


def test_what_was_right_before_it_was_checked_is_right():
    """Calls as programs for transformers make them: with arrays, tensors, generators, sets and NumPy's flags."""
    fast = eight_capitals.tokenizer()
    ids = [5, 6, 7]
    pieces = fast.convert_ids_to_tokens(ids)
    for given in (
        ids,
        tuple(ids),
        np.array(ids),
        torch.tensor(ids),
        list(torch.tensor(ids)),
        deque(ids),
        Column(*ids),
    ):
        assert fast.convert_ids_to_tokens(given) == pieces and fast.convert_ids_to_tokens(iter(given)) == pieces
        assert fast.build_inputs_with_special_tokens(given, iter(given)) == [2, 5, 6, 7, 3, 5, 6, 7, 3]
        assert fast.create_token_type_ids_from_sequences(given, given) == [0] * 5 + [1] * 4
        assert fast.get_special_tokens_mask(given, already_has_special_tokens=True) == [0] * 3
    for given in (np.array(pieces), iter(pieces), Column(*pieces), dict.fromkeys(pieces).keys()):
        assert fast.convert_tokens_to_ids(given) == ids
    for flag in (np.True_, 1, True):
        assert fast.decode([2, 5], skip_special_tokens=flag) == "norway"
        assert fast("oslo", add_special_tokens=flag).input_ids == fast("oslo").input_ids
    assert has_answer("Oslo", {"Oslo"}) and has_answer("Oslo", np.array(["Oslo"]))
    assert top_k_match(np.array([False, True]), np.array([1, 2])) == {"top_1_match": 0.0, "top_2_match": 1.0}
    assert means([{"a": True}, MappingProxyType({"a": np.False_})]) == {"a": 0.5}
    model = eight_capitals.open_qa()
    question = fast(["what is the capital of peru?"], return_tensors="pt").input_ids
    answer = fast.convert_tokens_to_ids(["lima"])
    losses = {
        model(question, answer_ids=each).reader_output.loss.item()
        for each in (
            [answer],
            (answer,),
            np.array([answer]),
            torch.tensor([answer]),
            [np.array(answer)],
            [torch.tensor(answer)],
        )
    }
    assert len(losses) == 1
    number = torch.tensor(3)
    assert model.retriever.text(number) == model.retriever.text(3) == model.retriever.text(np.int64(3))
    assert type(model.embedder(question, return_dict=np.False_)) is tuple


def test_a_wrong_kind_is_a_type_error_and_bad_input():
    assert issubclass(WrongKind, TypeError) and issubclass(WrongKind, ValueError)
    with pytest.raises(WrongKind, match="x is on meta: give a tensor that holds its numbers"):
        kinds.check("x", META, Tensor)
    with pytest.raises(WrongKind, match="size='b' is a str: give a float"):
        kinds.check_fields(Later(["a"], "b"))


@hypothesis.settings(deadline=None, derandomize=True, max_examples=5)
@hypothesis.given(st.text(" \t\n\u00a0", max_size=2))
def test_a_blank_name_is_no_path(tmp_path_factory, blank):
    """Path("") is the current folder, where a model's other weights would be removed."""
    folder = tmp_path_factory.mktemp("current")
    (folder / "pytorch_model.bin").write_text("dear")
    model = eight_capitals.open_qa()
    calls = (
        model.save_pretrained, model.config.save_pretrained, model.config.to_json_file, model.retriever.save_pretrained,
        model.retriever.tokenizer.save_pretrained, model.retriever.tokenizer.save_vocabulary,
        BlockIndex(torch.ones(2, 4)).save, BlockIndex.load, RealmConfig.from_json_file, RealmConfig.from_pretrained,
        type(model).from_pretrained,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for call in calls:
            with pytest.raises(WrongKind, match='is blank: give the name of a folder or a file; "." is the current'):
                call(blank)
    assert [path.name for path in folder.iterdir()] == ["pytorch_model.bin"]


@pytest.mark.parametrize("device", ["", "cud", "cuda:99", "meta:x", 2**63])
def test_what_is_no_device_is_named(device):
    with pytest.raises(ValueError, match="is no device of this machine .*: give"):
        kinds.device_of(device)
    assert kinds.device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize("kind", [list, list | np.ndarray | Tensor, Sequence[int], Iterable[int], list[int] | None])
def test_a_tensor_without_numbers_is_no_list_of_them(kind):
    whole = torch.ones(2, dtype=torch.int64)
    assert is_a(whole, kind) and is_a(whole.numpy(), kind)
    assert not is_a(whole.to("meta"), kind) and not is_a(whole.to_sparse(), kind)
