"""What a call of a tokenizer is given: its texts, as pairs, and its options, settled to a length and two strategies."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from realm_min import kinds
from realm_min.files.unknown_names import level_of_the_program, warn_of_unknown
from realm_min.text.left_out import LEFT_OUT_ARGUMENTS

NO_LENGTH_LIMIT = int(1e30)  # model_max_length when none is known, the value transformers writes to its folders
LONGEST_KNOWN = 10**20  # and what is above this is none either
LONGEST_PADDED = 2**20  # tokens that a text may be filled up to: a slip of the pen would fill the memory
LONGEST_TEXT = 2**31  # no text has as many tokens: a limit above it cuts nothing

PADDINGS = ("longest", "max_length", "do_not_pad")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")

# Two texts, the second None where there is none: each a str, a list of words, or, by hand alone, a list of ids.
Pair = tuple[Any, Any]
Coded = list[tuple[int, tuple[int, int]]]  # the id of each token of a text, and its offsets


@dataclass(frozen=True)
class CallOptions:
    """The options of a call in transformers' order; `BaseTokenizer.__call__` says what they mean."""

    add_special_tokens: bool = True
    padding: bool | str | None = None
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True


CALL = tuple(field.name for field in fields(CallOptions))  # their order by place, in a call
ENCODE = (*CALL[:5], "return_tensors")  # and in `encode`
FLAGS = {field.name: str(field.type) for field in fields(CallOptions) if str(field.type) in ("bool", "bool | None")}
PREPARE = (*CALL[:5], *CALL[6:])  # and in `prepare_for_model`
FIELDS = ("token_type_ids", "attention_mask", "special_tokens_mask", "offset_mapping", "length")


def read_options(where: str, by_place: Sequence[Any], by_name: dict[str, Any], order: Sequence[str]) -> CallOptions:
    """The options given to the method `where`, by place in `order` and by name.

    A UserWarning names each that there is not. Raises TypeError for one given twice and for too many, ValueError for
    one that is left out here (see `left_out.py`).
    """
    if len(by_place) > len(order):
        raise TypeError(f"{where} takes at most {len(order)} options by place, not {len(by_place)}: name them")
    given = dict(zip(order, by_place, strict=False))
    if twice := sorted(given.keys() & by_name.keys()):
        raise TypeError(f"{where} was given {twice[0]!r} twice, by place and by name")
    given |= by_name
    for name in FLAGS.keys() & given.keys():
        kinds.check(name, given[name], bool | None if "None" in FLAGS[name] else bool)
        given[name] = None if given[name] is None else bool(given[name])  # of NumPy's the library takes none
    for name in ("padding", "truncation"):
        kinds.check(name, given.get(name), bool | int | str | None)
    refuse_left_out(where, given)
    # The two names that transformers' versions before 3.0 had.
    older = given.pop("truncation_strategy", None)
    truncates = given.get("max_length") is not None and not given.get("padding")
    if given.get("truncation") is None and older is not None and not truncates:
        given["truncation"] = older
    if given.pop("pad_to_max_length", False) and given.get("padding") in (None, False):
        given["padding"] = "longest" if given.get("max_length") is None else "max_length"
    warn_of_unknown(given, CALL, where)
    return CallOptions(**{name: value for name, value in given.items() if name in CALL})


def refuse_left_out(where: str, given: dict[str, Any]) -> None:
    """ValueError for an argument that REALM has no use for, and that asks for something."""
    for name in LEFT_OUT_ARGUMENTS.keys() & given.keys():
        if given[name]:
            raise ValueError(f"{where} leaves {name} out: {LEFT_OUT_ARGUMENTS[name]}")
        if name not in CALL:
            del given[name]


def settle(options: CallOptions, model_max_length: int, batch_to_tensors: bool = False) -> CallOptions:
    """The strategies by name, and the length they work towards: none does, where it is `NO_LENGTH_LIMIT`."""
    padding, truncation = options.padding, options.truncation
    if truncation is None:
        truncation = options.max_length is not None and not padding
    if padding is None:
        padding = batch_to_tensors
    padding, truncation = padding_named(padding), truncation_named(truncation)
    max_length = model_max_length if options.max_length is None else whole("max_length", options.max_length)
    multiple = options.pad_to_multiple_of
    multiple = None if multiple is None else whole("pad_to_multiple_of", multiple)
    if max_length > LONGEST_KNOWN and options.max_length is None:
        if padding == "max_length":
            if options.verbose:
                message = "padding='max_length' without max_length or model_max_length pads nothing"
                warnings.warn(message, stacklevel=level_of_the_program())
            padding = "do_not_pad"
        truncation = "do_not_truncate"  # there is no limit to truncate to
        max_length = NO_LENGTH_LIMIT
    if padding != "do_not_pad":
        _check_padding(padding, max_length, multiple)
        if truncation != "do_not_truncate" and multiple and max_length % multiple:
            raise ValueError(
                f"max_length={max_length} is no multiple of pad_to_multiple_of={multiple}: give one that is"
            )
    if truncation != "do_not_truncate":
        max_length = min(max_length, LONGEST_TEXT)
    return replace(
        options, padding=padding, truncation=truncation, max_length=max_length, pad_to_multiple_of=multiple
    )  # fmt: skip


def padding_named(padding: Any) -> str:
    """The strategy that is meant, as a plain string. Raises ValueError for another."""
    return _named("padding", padding, PADDINGS, "do_not_pad")


def truncation_named(truncation: Any) -> str:
    """The strategy that is meant, as a plain string. Raises ValueError for another."""
    return _named("truncation", truncation, TRUNCATIONS, "do_not_truncate")


def _named(name: str, value: Any, known: Sequence[str], off: str) -> str:
    """The first for True, `off` for False, and else the one that equals: it may be of an enumeration of strings."""
    value = known[0] if value is True else off if value is False else value
    for strategy in known:
        if value == strategy:
            return strategy
    raise ValueError(f"{name}={value!r} is unknown: use True, False or one of {tuple(known)}")


def plain_ids(ids: Any) -> int | list[int]:
    """An id, or those of a list, array or tensor [tokens], as Python's numbers. Raises WrongKind for anything else."""
    ids = ids.tolist() if hasattr(ids, "tolist") and not getattr(ids, "is_meta", False) else ids
    ids = list(ids) if kinds.is_iterable(ids) else ids
    kinds.check("ids", ids, int | Sequence[int])
    return operator.index(ids) if isinstance(ids, int) else [operator.index(i) for i in ids]


def listed_ids(ids: Any) -> list[int]:
    """As `plain_ids`, of several ids."""
    found = plain_ids(ids)
    return [found] if isinstance(found, int) else found


def whole(name: str, value: Any) -> int:
    """A length, of at least 1. Raises ValueError for anything else."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if number < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    return number


def _check_padding(padding: str, max_length: int, multiple: int | None) -> None:
    """ValueError for lengths that a text is never filled up to."""
    asked = {"max_length": max_length if padding == "max_length" else 0, "pad_to_multiple_of": multiple or 0}
    for name, length in asked.items():
        if length > LONGEST_PADDED:
            raise ValueError(
                f"{name}={length} asks for more padding than memory may hold: give at most {LONGEST_PADDED}"
            )


def padded_length(options: CallOptions, longest: int) -> int:
    """Tokens that settled options pad a batch to, whose longest text has `longest`."""
    assert options.max_length is not None
    length = options.max_length if options.padding == "max_length" else longest
    multiple = options.pad_to_multiple_of or 1
    return -(-length // multiple) * multiple


def asked_fields(options: CallOptions, model_input_names: Sequence[str]) -> list[str]:
    """The names of the fields that a call asks for; None asks for what the model reads."""
    types, mask = options.return_token_type_ids, options.return_attention_mask
    wanted = (
        "token_type_ids" in model_input_names if types is None else types,
        "attention_mask" in model_input_names if mask is None else mask,
        options.return_special_tokens_mask,
        options.return_offsets_mapping,
        options.return_length,
    )
    return ["input_ids", *(name for name, is_wanted in zip(FIELDS, wanted, strict=True) if is_wanted)]


def is_batch(text: Any, words: bool) -> bool:
    """Whether a call's first text is several; of words, a list of them is one text."""
    if words:
        return isinstance(text, (list, tuple)) and bool(text) and isinstance(text[0], (list, tuple))
    return not isinstance(text, str)


def as_pairs(text: Any, text_pair: Any, words: bool = False) -> list[Pair]:
    """The texts of a call as a list of pairs, the second None where there is none. Raises ValueError for non-text."""
    kind, kinds = ("a list of words", "lists of words") if words else ("one str", "lists")
    if not is_batch(text, words):
        if text_pair is not None and (isinstance(text_pair, str) == words or is_batch(text_pair, words)):
            found = type(text_pair).__name__
            raise ValueError(f"text is {kind} and text_pair a {found}: pass {kind}, or two {kinds}")
        return [(_checked(text, words, "text"), text_pair if text_pair is None else _checked(text_pair, words, "text"))]
    if not isinstance(text, (list, tuple)):
        raise ValueError(f"text must be a str or a list of str, not a {type(text).__name__}: {text!r}")
    if len(text) == 0:
        raise ValueError("text is an empty list: pass at least one text")
    if text_pair is None:
        pairs = [split_pair(item, words) for item in text]
    elif isinstance(text_pair, (list, tuple)) and len(text_pair) == len(text):
        pairs = list(zip(text, text_pair, strict=True))
    else:
        size = f"{len(text_pair)} texts" if isinstance(text_pair, (list, tuple)) else type(text_pair).__name__
        raise ValueError(f"text holds {len(text)} texts and text_pair {size}: they must correspond")
    return [
        (_checked(first, words, f"text {i} of the batch"),
         second if second is None else _checked(second, words, f"text {i} of the batch"))
        for i, (first, second) in enumerate(pairs)
    ]  # fmt: skip


def split_pair(item: Any, words: bool) -> Pair:
    """One item of a batch as a pair: two texts side by side are one, and two lists of words."""
    is_pair = isinstance(item, (list, tuple)) and len(item) == 2 and not (words and isinstance(item[0], str))
    return (item[0], item[1]) if is_pair else (item, None)


def _checked(text: Any, words: bool, name: str) -> Any:
    if words:
        wrong = [text] if not isinstance(text, (list, tuple)) else [word for word in text if not isinstance(word, str)]
        if wrong:
            raise ValueError(
                f"{name} must be a list of words, since is_split_into_words=True, and holds a "
                f"{type(wrong[0]).__name__}: {wrong[0]!r}"
            )
        return list(text)
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a str, not a {type(text).__name__}: {text!r}")
    return text
