"""Ours beside transformers': small tokenizers of both, and what they return as plain data."""

import functools
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from oracle import transformers
from tokenizers import AddedToken

import realm_min

PAIRS = {
    "by hand": (realm_min.RealmTokenizer, transformers.RealmTokenizer),
    "fast": (realm_min.RealmTokenizerFast, transformers.RealmTokenizerFast),
}
PIECES = [
    *["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "capital", "of", "peru", "is"],
    *["lima", "where", "un", "##aff", "##able", "don", "東", "京", "zurich", "Peru", "new", "##word", "brand"],
    *"abcdefghijklmnopqrstuvwxyz0123456789.,?!'-$[]<>", *("##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"),
]  # fmt: skip


def write_vocabulary(folder: Path) -> Path:
    path = folder / "vocab.txt"
    path.write_text("".join(piece + "\n" for piece in dict.fromkeys(PIECES)), encoding="utf-8")
    return path


def plain(value):
    """Data that can be compared: a tensor as its kind, dtype and numbers, a mapping as a dict."""
    if isinstance(value, torch.Tensor):
        return ("pt", str(value.dtype), value.tolist())
    if isinstance(value, np.ndarray):
        return ("np", str(value.dtype), value.tolist())
    if isinstance(value, AddedToken):
        return tuple(getattr(value, name) for name in ("content", "lstrip", "rstrip", "normalized", "special"))
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    return value


@functools.cache
def kept(tokenizer_class, vocabulary):
    return tokenizer_class(vocabulary)


def side_by_side(kind, vocabulary, behaviour, new=True, **arguments):
    """What `behaviour` of a tokenizer returns, ours and transformers', as plain data; not `new`, it is one kept."""
    found = []
    for tokenizer_class in PAIRS[kind]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = (tokenizer_class if new else functools.partial(kept, tokenizer_class))(
                str(vocabulary), **arguments
            )
            found.append(plain(behaviour(tokenizer)))
    return found
