"""Drawn misuse: good arguments of a call made wrong, and what the call may then do.

A call with a wrong argument ends in the value of the plain call, or in an error of ours: one that a `raise` statement
of the package raises, with a message. What torch, NumPy, tokenizers or Python itself raise inside, from an attribute
that is not there, say, is a fault, for it tells nobody which argument to mend.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import math
import traceback
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import realm_min.kernels
import torch

import realm_min

PACKAGE = tuple(str(Path(module.__file__).resolve().parent) for module in (realm_min, realm_min.kernels))


class Case(NamedTuple):
    """A function or a method of the package, and arguments that it takes."""

    name: str
    call: Callable[..., Any]
    arguments: Callable[[], dict[str, Any]]  # made anew for each call
    right: Callable[[Any, dict[str, Any]], bool] = lambda value, arguments: True  # of what a call returned
    state: Callable[[], Any] = lambda: None  # what no call may change, a refused one least of all
    share: int = 1  # of the calls, where a case has many arguments


# ---- wrong values

NOTHING = object()


def values_of_any_kind(rng: np.random.Generator) -> Any:
    """A value that suits no argument, or hardly any."""
    choices = [
        None, True, False, 0, -1, 1, 3, 1.5, -0.0, math.nan, math.inf, -math.inf, 2**31, 2**63, 2**64, -(2**63), 10**30,
        "", "x", "1", "\ud800", "\0", "word " * 200, b"bytes", [], (), {}, [None], ["x"], [1], [[1]], [[]], {"x": 1},
        object(), 1j, Decimal(1), np.int64(3), np.float32("nan"), np.zeros(3), np.array(["a", None], dtype=object),
        torch.tensor(1), torch.zeros(0), torch.zeros(2, 2, device="meta"), torch.tensor(math.nan), range(3), {1, 2},
        Path("nowhere"), Ellipsis, slice(3), iter([1, 2]),
    ]  # fmt: skip
    return choices[rng.integers(len(choices))]


HUGE = (-1, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63), -100, 10**6)


def wrong_tensor(rng: np.random.Generator, x: torch.Tensor) -> Any:
    """The tensor with other values, of another dtype, rank, size, layout or device; or something that it is not."""
    changes: list[Callable[[], Any]] = [
        *(functools.partial(x.to, dtype) for dtype in DTYPES),
        lambda: x.to("meta"),
        lambda: x[None],
        lambda: x[0] if x.dim() else x,
        lambda: x.flatten(),
        lambda: x.transpose(0, -1) if x.dim() else x,
        lambda: x[:0] if x.dim() else x[None],
        lambda: x[..., :0] if x.dim() else x,
        lambda: x[:1] if x.dim() else x,
        lambda: x[..., :-1] if x.dim() else x,
        lambda: torch.cat([x, x]) if x.dim() else x,
        lambda: torch.cat([x, x], -1) if x.dim() else x,
        lambda: torch.stack([x, x], -1)[..., 0],  # not contiguous
        lambda: x.expand(2, *x.shape),
        lambda: x.to_sparse() if x.dim() else x,
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: x.detach().clone().float().requires_grad_(),
        lambda: x.clone().requires_grad_() if x.is_floating_point() else x,
        lambda: list(x) if x.dim() else [x],
        lambda: torch.empty(0),
        lambda: x * 0 + 1e18 if x.is_floating_point() else x,
        *([lambda: _with(rng, x, HUGE[rng.integers(len(HUGE))])] * 4 if not x.is_floating_point() else []),
        *([lambda: _with(rng, x, (math.nan, math.inf, -math.inf)[rng.integers(3)])] * 3),
    ]
    return changes[rng.integers(len(changes))]()


DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64,
)  # fmt: skip


def _with(rng: np.random.Generator, x: torch.Tensor, value: float) -> torch.Tensor:
    """The tensor with another value somewhere, cast to hold it where it is none of the dtype."""
    kept = isinstance(value, int) and x.dtype == torch.int64
    x = x.to(x.dtype if kept else torch.float32).clone(memory_format=torch.contiguous_format)
    if x.numel():
        x.view(-1)[rng.integers(x.numel())] = value
    return x


def wrong_list(rng: np.random.Generator, values: Any) -> Any:
    """A list of another length, kind or content."""
    values = list(values)
    at = rng.integers(len(values)) if values else 0
    changes: list[Callable[[], Any]] = [
        lambda: [],
        lambda: tuple(values),
        lambda: values[:at],
        lambda: values + values,
        lambda: [values],
        lambda: values[at] if values else None,
        lambda: iter(values),
        lambda: set(map(str, values)),
        lambda: dict.fromkeys(map(str, values)),
        lambda: _object_array(values),
        lambda: [*values[:at], wrong(rng, values[at]) if values else None, *values[at + 1 :]],
        lambda: [*values[:at], wrong(rng, values[at]) if values else None, *values[at + 1 :]],
        lambda: [*values[:at], values_of_any_kind(rng), *values[at + 1 :]],
    ]
    return changes[rng.integers(len(changes))]()


def _object_array(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def wrong_dict(rng: np.random.Generator, values: dict[Any, Any]) -> Any:
    """A dict without a key, with one more, or with a wrong value."""
    keys = list(values)
    key = keys[rng.integers(len(keys))] if keys else "x"
    changes: list[Callable[[], Any]] = [
        lambda: {},
        lambda: list(values.items()),
        lambda: {k: v for k, v in values.items() if k != key},
        lambda: values | {"another": values.get(key)},
        lambda: values | {5: values.get(key)},
        lambda: values | {key: wrong(rng, values.get(key))},
        lambda: values | {key: wrong(rng, values.get(key))},
        lambda: values | {key: values_of_any_kind(rng)},
    ]
    return changes[rng.integers(len(changes))]()


def wrong_text(rng: np.random.Generator, text: str) -> Any:
    changes = [
        "", " ", text.encode(), [text], text * 50, text + "\0", text[::-1], "\ud800" + text, text.upper(),
        "\u202e" + text,
        "𝕏́" * 7, "." * 3000, Path(text), None, 7,
    ]  # fmt: skip
    return changes[rng.integers(len(changes))]


def wrong(rng: np.random.Generator, value: Any) -> Any:
    """Another value in place of a good one, near it or of any kind."""
    if rng.random() < 0.25:
        return values_of_any_kind(rng)
    if isinstance(value, torch.Tensor):
        return wrong_tensor(rng, value)
    if isinstance(value, str):
        return wrong_text(rng, value)
    if isinstance(value, bool):
        return (None, 0, 1, 2, "no", "True", 1.0, not value, torch.tensor(True), np.bool_(True))[rng.integers(10)]
    if isinstance(value, (int, float)):
        near = (value + 1, -value, value * 1000, float(value), str(value), np.int64(0), torch.tensor(value), *HUGE)
        return near[rng.integers(len(near))]
    if isinstance(value, dict) and type(value) is dict:
        return wrong_dict(rng, value)
    if isinstance(value, (list, tuple)):
        return wrong_list(rng, value)
    return values_of_any_kind(rng)


def misused(rng: np.random.Generator, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of which one to three are wrong, or one is left out."""
    found = dict(arguments)
    names = list(found)
    for name in rng.permutation(names)[: rng.choice([1, 1, 1, 2, 3])]:
        found[name] = wrong(rng, found[name])
    if rng.random() < 0.05:
        found.pop(names[rng.integers(len(names))])
    return found


# ---- what a call may do


def fault_of(case: Case, arguments: dict[str, Any]) -> str | None:
    """Make a call; None if it ended as a call may, else what is wrong with that."""
    before = case.state()
    try:
        value = case.call(**arguments)
    except BaseException as error:  # a panic of the tokenizers library is no Exception
        fault = not_ours(error)
        if isinstance(error, KeyboardInterrupt):
            raise
    else:
        fault = None if case.right(value, arguments) else f"returned a {type(value).__name__} that is not right"
    if fault is None and not same(before, case.state()):
        return "changed what it should not"
    return fault


def not_ours(error: BaseException) -> str | None:
    """What is wrong with an error, None for one that a `raise` of the package raised, with a message.

    Python's own error for an argument that is missing, or that no parameter is called, is as good as ours.
    """
    frames = traceback.extract_tb(error.__traceback__)
    said = f"{type(error).__name__}: {str(error)[:300]}"
    last = frames[-1]
    path = str(Path(last.filename).resolve())
    if isinstance(error, TypeError) and ("argument" in str(error) and "()" in str(error)) and len(frames) <= 3:
        return None
    if isinstance(error, OSError) and error.filename is not None:
        return None  # the system's own error, of a file that it names
    if not isinstance(error, Exception) or not path.startswith(PACKAGE):
        return f"{said}, from {path}:{last.lineno}"
    if last.lineno not in raising_lines(path):
        return f"{said}, inside {Path(path).name}:{last.lineno} {last.line}"
    return None if len(str(error)) > 10 else f"no message: {said}"


@functools.cache
def raising_lines(path: str) -> frozenset[int]:
    """The lines of the `raise` statements of a file."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    raises = [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return frozenset(line for node in raises for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))


# ---- what is equal


def numbers_of(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in what a call returned."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield torch.from_numpy(np.array(value))
    elif isinstance(value, dict):
        for each in value.values():
            yield from numbers_of(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from numbers_of(each)
    elif isinstance(value, float):
        yield torch.tensor(value)
    elif hasattr(value, "to_tuple"):
        yield from numbers_of(value.to_tuple())
    elif hasattr(value, "__dataclass_fields__"):
        yield from numbers_of([getattr(value, name) for name in value.__dataclass_fields__])


def all_finite(value: Any, arguments: dict[str, Any] | None = None) -> bool:
    """Whether every number in it is one, and none is a tensor without numbers."""
    return all(not x.is_meta and (not x.is_floating_point() or bool(x.isfinite().all())) for x in numbers_of(value))


def same(a: Any, b: Any, tolerance: float = 0.0) -> bool:
    """Equal values, tensors to a tolerance relative to the largest."""
    if a is b:
        return True
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)) or a.shape != b.shape:
            return False
        a, b = a.detach().double(), b.detach().double()
        return bool(((a - b).abs() <= tolerance * b.abs().max().clamp(min=1e-3)).all()) if a.numel() else True
    if hasattr(a, "to_tuple"):
        return same(a.to_tuple(), b.to_tuple(), tolerance)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return a == b


def plainly(value: Any) -> Any:
    """An argument as the documentation has it: contiguous, without a gradient, ids of int64, numbers of float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().clone().contiguous()
        return value.float() if value.is_floating_point() else value.long()
    return value


def as_plain_call(call: Callable[..., Any], tolerance: float = 1e-2) -> Callable[[Any, dict[str, Any]], bool]:
    """For `Case.right`: finite, and what the plain call returns."""

    def right(value: Any, arguments: dict[str, Any]) -> bool:
        plain = {name: plainly(argument) for name, argument in arguments.items()}
        with contextlib.suppress(Exception):
            return all_finite(value) and same(value, call(**plain), tolerance)
        return False

    return right
