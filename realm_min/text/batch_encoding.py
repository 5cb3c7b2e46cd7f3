"""What a tokenizer call returns: a dict of token ids and masks whose keys are also attributes.

`BatchEncoding` holds `input_ids`, `token_type_ids`, `attention_mask` and, when asked for, `special_tokens_mask`,
`offset_mapping` and `length`: Python lists at first, tensors `[batch, tokens]` int64 after `convert_to_tensors`.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

from realm_min.files.unknown_names import level_of_the_program
from realm_min.kinds import as_lists, check, checked, device_of, is_iterable


class CharSpan(NamedTuple):
    """Characters of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens of an encoding."""

    start: int
    end: int


class BatchEncoding(dict):
    """A dict with attribute access (`encoding.input_ids`), whose values are lists, arrays or tensors.

    An encoding of the fast tokenizer tells for each token which word and characters it comes from, and gives the
    library's own by place: `encoding[0]`. A slice of one made by hand is a dict of its fields' slices.

    Args:
        data: field name to a list of ids, or to a list of such lists, one for each text.
        encoding: the `tokenizers.Encoding` of each text; only the fast tokenizer has them.
        tensor_type: "pt", "np" or None, see `convert_to_tensors`.
        n_sequences: 1 for texts, 2 for pairs; None takes what the encodings say.
    """

    @checked
    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encoding: Any = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
        n_sequences: int | None = None,
    ):
        super().__init__(data or {})
        self.encodings: list | None = encoding if encoding is None or isinstance(encoding, list) else [encoding]
        self.n_sequences = self.encodings[0].n_sequences if n_sequences is None and self.encodings else n_sequences
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"this encoding has no field {name!r}, only {list(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        if self.encodings is not None:
            return self.encodings[key]
        if isinstance(key, slice):
            return {name: value[key] for name, value in self.items()}
        raise KeyError(
            f"{key!r}: an encoding made by hand has fields {list(self)} and slices; RealmTokenizerFast gives more"
        )

    @property
    def data(self) -> dict[str, Any]:
        """The fields."""
        return self

    @property
    def is_fast(self) -> bool:
        """Whether the fast tokenizer made this encoding."""
        return self.encodings is not None

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Turn every field into a tensor ("pt") or array ("np"), int64 if it holds integers; None changes nothing.

        It is done in place. Raises ValueError for another type, and for texts of different lengths.
        """
        if tensor_type is None:
            return self
        if tensor_type in ("tf", "jax", "mlx"):
            raise ValueError(f"return_tensors={str.__str__(tensor_type)!r} is not made here: use 'pt', 'np' or None")
        if tensor_type not in ("pt", "np"):
            raise ValueError(f"return_tensors={tensor_type!r} is unknown: use 'pt', 'np' or None")
        made = {name: _as_array(name, [value] if prepend_batch_axis else value) for name, value in self.items()}
        self.update({name: _as_tensor(value) for name, value in made.items()} if tensor_type == "pt" else made)
        return self

    def to(self, device: str | int | torch.device) -> BatchEncoding:
        """Move every tensor to `device`, in place; a dtype changes nothing, ids stay integers.

        Raises ValueError while the fields are still lists.
        """
        if not isinstance(device, (str, int, torch.device)):
            message = f"an encoding is moved to devices alone, and {device!r} is none: it stays as it is"
            warnings.warn(message, stacklevel=level_of_the_program())
            return self
        for name, value in self.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(
                    f"{name!r} is a {type(value).__name__}, not a tensor: "
                    "pass return_tensors='pt' or call convert_to_tensors('pt') before to()"
                )
        device = device_of(device)
        self.update({name: value.to(device) for name, value in self.items()})
        return self

    # What the library's encodings know. An index of a text comes first, and is left out of a single one.

    @checked
    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of one text, special tokens and padding included."""
        return self._library("tokens", batch_index).tokens

    @checked
    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 or 1, the sequence it comes from, or None for a special token."""
        return self._library("sequence_ids", batch_index).sequence_ids

    @checked
    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the word that it comes from, or None for a special token."""
        return self._library("word_ids", batch_index).word_ids

    words = word_ids

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """0 or 1, the sequence that a token comes from."""
        text, token = _places(batch_or_token_index, token_index)
        return self._library("token_to_sequence", text).token_to_sequence(token)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The word that a token comes from."""
        text, token = _places(batch_or_token_index, token_index)
        return self._library("token_to_word", text).token_to_word(token)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters that a token comes from."""
        text, token = _places(batch_or_token_index, token_index)
        span = self._library("token_to_chars", text).token_to_chars(token)
        # Of a pair the library gives the sequence too in some versions.
        return None if span is None else CharSpan(*span)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word."""
        text, word = _places(batch_or_word_index, word_index)
        span = self._library("word_to_tokens", text).word_to_tokens(word, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan:
        """The characters of a word."""
        text, word = _places(batch_or_word_index, word_index)
        return CharSpan(*self._library("word_to_chars", text).word_to_chars(word, sequence_index))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that a character is in; None for white space and what was cut off."""
        text, char = _places(batch_or_char_index, char_index)
        return self._library("char_to_token", text).char_to_token(char, sequence_index)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The word that a character is in."""
        text, char = _places(batch_or_char_index, char_index)
        return self._library("char_to_word", text).char_to_word(char, sequence_index)

    def _library(self, name: str, batch_index: int) -> Any:
        if self.encodings is None:
            raise ValueError(f"{name}() needs an encoding made by RealmTokenizerFast")
        if not -len(self.encodings) <= batch_index < len(self.encodings):
            raise ValueError(f"there is no text {batch_index} in this encoding: it has {len(self.encodings)}")
        return self.encodings[batch_index]


def _places(first: int, second: int | None) -> tuple[int, int]:
    """(text, place in it) of one or two given."""
    return (0, first) if second is None else (first, second)


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def _as_array(name: str, value: Any) -> np.ndarray:
    """Integers as int64, as empty lists are. Raises ValueError for ragged lists."""
    if isinstance(value, torch.Tensor):
        check(name, value, torch.Tensor)
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
        return np.asarray(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        as_lists(name, value)  # names a tensor in it that has no numbers
        array = None
    if array is None or array.dtype.kind not in "biuf":
        rows = (row for row in (value if is_iterable(value) else ()) if is_iterable(row))
        lengths = sorted({len(row) for row in rows if hasattr(row, "__len__")})
        raise ValueError(
            f"{name!r} holds texts of different lengths {lengths}, which make no tensor: "
            "pass padding=True (and truncation=True with max_length to bound the length)"
        )
    return array.astype(np.int64) if array.size == 0 or array.dtype.kind in "iu" else array
