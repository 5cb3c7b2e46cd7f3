"""Arguments of a wrong kind are refused where they enter, in one sentence.

A public function says in its annotations what it takes. `checked` holds a call to them: a str where a list of them is
asked for, a number for a tensor, a bool for a number and a tensor without numbers (on torch's "meta" device) would else
be found out far inside, by an error that names neither the argument nor the remedy. What another library's class
holds, a number of NumPy's say, arrives as Python's own. Which values an argument may have is the function's own affair.
"""

from __future__ import annotations

import builtins
import collections.abc
import functools
import inspect
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

_SEQUENCES = (list, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_ITERABLES = (collections.abc.Iterable, collections.abc.Iterator)
_UNIONS = (typing.Union, types.UnionType)


class WrongKind(TypeError, ValueError):
    """An argument is of another kind than its annotation says: a TypeError, and bad input as any other."""


def checked(function: Function) -> Function:
    """Let a function, or a method, raise WrongKind for an argument of another kind than its annotation.

    What it is called with is what `as_asked` makes of the arguments.
    """
    parameters = inspect.signature(function).parameters.values()
    positional = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    others = next((each.name for each in parameters if each.kind == each.VAR_KEYWORD), None)  # of `**others`
    named = {each.name for each in parameters} - {others}
    kinds: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        if not kinds:  # at the first call: what annotations name may be defined below
            kinds.update(_annotations(function))

        def taken(name: str, value: Any) -> Any:
            kind = kinds.get(name if name in named else others or "", Any)
            check(name, value, kind)
            return as_asked(name, value, kind)

        by_place = [taken(name, value) for name, value in zip(positional, args, strict=False)]
        by_name = {name: taken(name, value) for name, value in given.items()}
        return function(*by_place, *args[len(by_place) :], **by_name)

    return typing.cast(Function, call)


def check_fields(values: Any) -> None:
    """As `check`, of every field of a NamedTuple."""
    for name, kind in _fields(type(values)).items():
        check(name, getattr(values, name), kind)


def check(name: str, value: Any, kind: Any) -> None:
    """WrongKind if `value`, called `name`, is not of the kind that an annotation says."""
    if not is_a(value, kind):
        if _is_tensor(value) and _without_numbers(value):
            where = f"on {value.device}" if value.device.type == "meta" else f"of layout {value.layout}"
            where = "nested" if value.is_nested else f"quantized, {value.dtype}" if value.is_quantized else where
            raise WrongKind(f"{name} is {where}: give a tensor that holds its numbers, one after another")
        remedy = _words(kind)
        if os.PathLike in typing.get_args(kind) and _is_blank(value):
            remedy = 'the name of a folder or a file; "." is the current folder'
        raise WrongKind(f"{name}={shown(value)} is {described(value, kind)}: give {remedy}")


def as_asked(name: str, value: Any, kind: Any) -> Any:
    """An argument of the right kind, in Python's own classes where the annotation names those.

    A number of NumPy's or a tensor's becomes Python's: JSON takes no other. Texts and records in an array or a column
    of a table become a list: of an array nobody can ask whether it is empty. An iterator's items are checked as they
    come.
    """
    if kind is Any or value is None or isinstance(value, (bool, int, float, str, list, tuple)):
        return value
    asked = typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)
    if any(isinstance(each, type) and each is not object and isinstance(value, each) for each in asked):
        return value  # a tensor where one may be given
    if any(_lists_records(each) for each in asked) and _is_sequence(value):
        return value if isinstance(value, collections.abc.Sequence) else list(value)
    if not hasattr(value, "__len__"):
        for each in asked:
            if typing.get_origin(each) in _ITERABLES and typing.get_args(each)[0] is not Any:
                return _checked_items(name, value, *typing.get_args(each))
    return next((each(value) for each in (int, float, bool) if each in asked and _is_instance(value, each)), value)


def _checked_items(name: str, values: collections.abc.Iterable, kind: Any) -> collections.abc.Iterator:
    """The values, one by one. WrongKind where one is of another kind."""
    for place, value in enumerate(values):
        check(f"{name}[{place}]", value, kind)
        yield value


def _lists_records(kind: Any) -> bool:
    """Whether a kind is several values that are no numbers, and no lists of such."""
    inner = (*typing.get_args(kind), Any)[0]
    return typing.get_origin(kind) in _SEQUENCES and isinstance(inner, type) and inner not in (int, float, bool)


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that an annotation says; what it says that is not known here is believed."""
    if kind is Any:
        return True
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in _UNIONS:
        if os.PathLike in inner and isinstance(value, (str, os.PathLike)):
            return _is_path(value)
        return any(is_a(value, each) for each in inner)
    if origin in _MAPPINGS:
        of_keys, of_values = inner or (Any, Any)
        return isinstance(value, collections.abc.Mapping) and all(
            is_a(k, of_keys) and is_a(v, of_values) for k, v in value.items()
        )
    if origin in (*_SEQUENCES, *_ITERABLES):
        each_is = inner[0] if inner else Any
        if not (is_iterable(value) if origin in _ITERABLES else _is_sequence(value)):
            return False
        if _is_tensor(value) and _without_numbers(value):
            return False
        # What is only walked through once, as a generator is, is not walked through here.
        return each_is is Any or not isinstance(value, collections.abc.Sized) or _are(value, each_is)
    if origin in (collections.abc.Callable, Callable):
        return callable(value)
    if kind is None or not isinstance(origin, type):
        return value is None if kind is None else True
    return _is_instance(value, origin)


def _is_instance(value: Any, kind: type) -> bool:
    if kind is int:
        return _is_integer(value)
    if kind is float:
        return _is_integer(value) or isinstance(value, float) or _of_numpy(value, "floating")
    if kind is bool:
        return isinstance(value, bool) or _of_numpy(value, "bool_") or (_is_integer(value) and value in (0, 1))
    if kind.__name__ == "Tensor":
        return isinstance(value, kind) and not _without_numbers(value)
    return isinstance(value, kind)


def _is_integer(value: Any) -> bool:
    """Whether it is a whole number: Python's, NumPy's or a tensor's, which index as those do."""
    if isinstance(value, bool) or _of_numpy(value, "bool_"):
        return False
    if isinstance(value, int) or _of_numpy(value, "integer"):
        return True
    return _is_tensor(value) and not value.dim() and not _without_numbers(value) and _holds_integers(value)


def _of_numpy(value: Any, kind: str) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, kind))


def _are(values: Any, kind: Any) -> bool:
    """Whether each of several values is of a kind; of an array of one axis its dtype says so."""
    if kind is int and (_is_tensor(values) or _of_numpy(values, "ndarray")) and values.ndim == 1:
        return _holds_integers(values) or all(is_a(each, kind) for each in values)
    return all(is_a(each, kind) for each in values)


def _holds_integers(array: Any) -> bool:
    return str(array.dtype).removeprefix("torch.").startswith(("int", "uint"))


def _is_sequence(value: Any) -> bool:
    """Whether it is several values one after another, of whichever class: a list, an array, a column of a table."""
    return is_iterable(value) and hasattr(value, "__getitem__") and hasattr(value, "__len__")


def is_iterable(value: Any) -> bool:
    """Whether it is several values; a text and a dict are one."""
    if _is_tensor(value) or _of_numpy(value, "ndarray"):  # to walk through a tensor, torch makes one of each number
        return value.ndim > 0
    try:
        iter(value)
    except TypeError:
        return False
    return not isinstance(value, (str, bytes, collections.abc.Mapping))


def _is_path(value: str | os.PathLike) -> bool:
    """Whether it can name something; a blank text names nothing, and a Path makes the current folder of one."""
    try:
        return b"\0" not in os.fsencode(value) and not _is_blank(value)
    except UnicodeEncodeError:
        return False


def _is_blank(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and not os.fspath(value).strip()


def _without_numbers(tensor: Any) -> bool:
    return (
        tensor.device.type == "meta" or str(tensor.layout) != "torch.strided" or tensor.is_nested or tensor.is_quantized
    )


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def device_of(target: Any) -> Any:
    """The torch.device of that name. ValueError if this machine has none."""
    import torch  # here, since a command line is answered without it

    try:
        device = torch.device(target)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f'{shown(target)} is no device of this machine ({why}): give "cpu" or "cuda:0", say') from None
    return device


def usual_numbers(name: str, tensor: Any) -> Any:
    """Unsigned integers as int64 and floats of one byte as float32, since torch compares and adds few of them.

    Raises:
        ValueError: a number of 2 ** 63 or more.
    """
    import torch  # as above

    if tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        found = tensor.long()
        if found.numel() and found.min() < 0:
            raise ValueError(f"{name} holds {int(found.min()) + 2**64}, which is out of range: give numbers of int64")
        return found
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def tensor_of(name: str, values: Any, device: Any) -> Any:
    """A tensor as it is; numbers, lists of them and lists of tensors as one, on `device`.

    Raises:
        WrongKind: lists that are not equally long, or that hold what is no number.
    """
    import torch  # as above

    try:
        if isinstance(values, (list, tuple)) and any(isinstance(value, torch.Tensor) for value in values):
            values = torch.stack([torch.as_tensor(value, device=device) for value in values])
        found = torch.as_tensor(values, device=device)
    except (RuntimeError, TypeError, ValueError):
        raise WrongKind(
            f"{name}={shown(values)} is no tensor: give one, or numbers in lists that are equally long"
        ) from None
    check(name, found, torch.Tensor)
    return found


def as_lists(name: str, values: Any) -> Any:
    """Lists for tensors and arrays, and for those within lists. WrongKind for a tensor without numbers."""
    import torch  # as above

    if isinstance(values, torch.Tensor):
        check(name, values, torch.Tensor)
    values = values.tolist() if _is_tensor(values) or _of_numpy(values, "ndarray") else values
    return [as_lists(name, each) for each in values] if isinstance(values, (list, tuple)) else values


def shown(value: object) -> str:
    """A value in a few characters."""
    return reprlib.repr(value)


def described(value: Any, kind: Any = None) -> str:
    """What a value is: its type, and where that alone does not say what is wrong with it, more."""
    if os.PathLike in typing.get_args(kind) and isinstance(value, (str, os.PathLike)):
        return "blank" if _is_blank(value) else "no path"
    name = type(value).__name__
    article = "an" if name[0].lower() in "aeiou" else "a"
    return f"{article} {name}"


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The kinds of a function's parameters; those that cannot be known as it runs are left out."""
    names = {**vars(builtins), **function.__globals__}
    found = {}
    for name, annotation in function.__annotations__.items():
        if name == "return":
            continue
        try:
            found[name] = eval(annotation, names) if isinstance(annotation, str) else annotation
        except NameError:  # for the type checker alone
            continue
    return found


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _words(kind: Any, several: bool = False) -> str:
    """How an annotation reads: "a list of str or None"."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in _UNIONS:
        return " or ".join(_words(each, several) for each in inner)
    if origin in (*_SEQUENCES, *_ITERABLES):
        return f"{'lists' if several else 'a list'} of {_words(inner[0], several=True)}"
    if origin in _MAPPINGS:
        return f"{'dicts' if several else 'a dict'} of {_words(inner[0], True)} to {_words(inner[1], True)}"
    if kind in (None, type(None)):
        return "None"
    if kind is Any:
        return "anything"
    name = kind.__name__ if isinstance(kind, type) else str(kind).rpartition(".")[2]
    return name if several else f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
