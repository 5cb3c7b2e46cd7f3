"""Arguments of another kind than their annotation says: refused in one sentence, by name."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from realm_min import kinds
from realm_min.kinds import WrongKind, checked, is_a

META = torch.zeros(2, device="meta")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, np.int64(3)], [True, 1.0, "1", None]),
        (float, [0, 1.5, np.float32(1), np.int64(3)], [True, "1", None]),
        (bool, [True, False, np.True_], [1, None]),
        (str, ["", "a"], [b"a", None]),
        (Tensor, [torch.zeros(2)], [META, torch.zeros(2).to_sparse(), [0.0], np.zeros(2)]),
        (int | None, [1, None], [1.5]),
        (str | os.PathLike, ["a", Path("a")], [b"a", "a\0b", "\ud800", 1, None]),
        (list[int], [[], [1, 2], (1, 2)], [[1, "a"], "ab", {1: 2}, np.zeros(2)]),
        (Sequence[str], [["a"], ("a",)], ["a", [1], iter(["a"])]),
        (Iterable[str], [["a"], iter([1])], ["a", {"a": 1}, [1], 3]),
        (Mapping[str, int], [{}, {"a": 1}], [{1: 1}, {"a": "b"}, [("a", 1)]]),
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


def test_a_wrong_kind_is_a_type_error_and_bad_input():
    assert issubclass(WrongKind, TypeError) and issubclass(WrongKind, ValueError)
    with pytest.raises(WrongKind, match="x is on meta: give a tensor that holds its numbers"):
        kinds.check("x", META, Tensor)
    with pytest.raises(WrongKind, match="size='b' is a str: give a float"):
        kinds.check_fields(Later(["a"], "b"))


@pytest.mark.parametrize("device", ["", "cud", "cuda:99", "meta:x", 2**63])
def test_what_is_no_device_is_named(device):
    with pytest.raises(ValueError, match="is no device of this machine .*: give"):
        kinds.device_of(device)
    assert kinds.device_of("cpu") == torch.device("cpu")
