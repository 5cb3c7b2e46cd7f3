"""What the two tokenizers share: the arguments of a call, special tokens, decoding, and folders on disk.

The files of a folder, and what may stand in them, are told by `tokenizer_files.py`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tokenizers import AddedToken

from realm_min.files.hub import resolve_folder, take_hub_options
from realm_min.text.batch_encoding import BatchEncoding
from realm_min.text.tokenizer_files import (
    SPECIAL_TOKEN_NAMES,
    added_token_fields,
    as_added_token,
    check_vocabularies,
    read_constructor_arguments,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from typing_extensions import Self  # of the standard library from Python 3.11 on

NO_LENGTH_LIMIT = int(1e30)  # model_max_length when none is known, the value transformers writes to its folders

PADDINGS = ("longest", "max_length", "do_not_pad")
TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


class BaseTokenizer:
    """Arguments of a call, special tokens, decoding and folders. The subclasses turn text into tokens.

    Attributes beside those below: `additional_special_tokens`, `all_special_tokens`, `all_special_ids`, `vocab`,
    `vocab_size` (without added tokens), `model_max_length` (tokens), `do_lower_case`, `strip_accents`,
    `tokenize_chinese_chars`, `clean_up_tokenization_spaces`, `padding_side`, `truncation_side`.
    """

    is_fast: bool
    unk_token: str
    unk_token_id: int
    sep_token: str
    sep_token_id: int
    pad_token: str
    pad_token_id: int
    pad_token_type_id = 0
    cls_token: str
    cls_token_id: int
    mask_token: str
    mask_token_id: int

    def __init__(
        self,
        vocab: dict[str, int],
        *,
        do_lower_case: bool,
        tokenize_chinese_chars: bool,
        strip_accents: bool | None,
        special_tokens: dict[str, str | AddedToken],
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        model_max_length: int | None = None,
        clean_up_tokenization_spaces: bool = True,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask"),
        **without_effect,
    ):
        for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
            if side not in ("right", "left"):
                raise ValueError(f"{name}={side!r} is unknown: use 'right' or 'left'")
        for name in ("bos_token", "eos_token", "split_special_tokens"):
            if without_effect.get(name):
                raise ValueError(f"{name}={without_effect[name]!r} is not supported: REALM has no use for it")
        self.vocab = vocab
        self.do_lower_case = do_lower_case
        self.tokenize_chinese_chars = tokenize_chinese_chars
        self.strip_accents = strip_accents
        self.model_max_length = NO_LENGTH_LIMIT if model_max_length is None else model_max_length
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.model_input_names = list(model_input_names)
        self.without_effect = without_effect  # arguments without effect here, written back by save_pretrained
        self._set_special_tokens(special_tokens, additional_special_tokens or (), added_tokens_decoder or {})

    def _set_special_tokens(self, named: dict, additional: Sequence, added: dict[int, AddedToken]) -> None:
        """Give every special token its id: the saved one, else the vocabulary's, else the next free one."""
        self.added_tokens_decoder = {int(i): as_added_token(token, special=False) for i, token in added.items()}
        self.added_tokens_encoder = {token.content: i for i, token in self.added_tokens_decoder.items()}
        known = self.get_vocab()
        for name, token in named.items():
            if token is None or as_added_token(token, special=True).content not in known:
                raise ValueError(f"the vocabulary lacks {name}={token!r}: add a line for it, or name one of its pieces")
        tokens = [as_added_token(token, special=True) for token in (*named.values(), *additional)]
        for token in tokens:
            if token.content not in self.added_tokens_encoder:
                index = self.vocab.get(token.content, len(self.get_vocab()))
                self.added_tokens_decoder[index] = token
                self.added_tokens_encoder[token.content] = index
        self.added_tokens_decoder = dict(sorted(self.added_tokens_decoder.items()))

        contents = [token.content for token in tokens]
        for name, content in zip(named, contents, strict=False):
            setattr(self, name, content)
            setattr(self, name + "_id", self.added_tokens_encoder[content])
        self.additional_special_tokens = contents[len(named) :]
        self.all_special_tokens = list(dict.fromkeys(contents))
        self.all_special_ids = [self.added_tokens_encoder[token] for token in self.all_special_tokens]
        self._ids_to_tokens = {index: token for token, index in self.get_vocab().items()}

    # Vocabulary

    @property
    def vocab_size(self) -> int:
        """Pieces in the vocabulary file, without added tokens."""
        return len(self.vocab)

    def __len__(self) -> int:
        """Pieces in the vocabulary file and added tokens."""
        return len(self._ids_to_tokens)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, do_lower_case={self.do_lower_case})"

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return {**self.vocab, **self.added_tokens_encoder}

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Name of each special token to its text."""
        names = (*SPECIAL_TOKEN_NAMES, "additional_special_tokens")
        return {name: getattr(self, name) for name in names if getattr(self, name)}

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """The id of a token, or of each in a list; the unknown token's for those the vocabulary lacks."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        if tokens in self.added_tokens_encoder:
            return self.added_tokens_encoder[tokens]
        return self.vocab.get(tokens, self.unk_token_id)

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """The token of an id, or of each in a list, array or tensor. Raises ValueError for an id out of range."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            if ids not in self._ids_to_tokens:
                raise ValueError(f"token id {ids} is out of range: the vocabulary has {len(self)} tokens")
            return self._ids_to_tokens[ids]
        return [self.convert_ids_to_tokens(i) for i in ids if not (skip_special_tokens and i in self.all_special_ids)]

    # Encoding

    def __call__(
        self,
        text: str | Sequence[str] | Sequence[tuple[str, str]],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str | None = None,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or a batch of either.

        Args:
            text, text_pair: one str each, or lists of equal length; `text` may also be a list of pairs.
            add_special_tokens: [CLS] text [SEP], and pair [SEP].
            padding: False; True or "longest" (of the batch); "max_length" (`max_length`, else `model_max_length`).
                None is False, but "longest" for a batch that is to become tensors.
            truncation: True or "longest_first" shortens the longer text of a pair; "only_first"; "only_second"; False.
                None is False, but "longest_first" if `max_length` is given without padding.
            max_length: tokens, special tokens included.
            return_tensors: "pt", "np", or None for lists.
            return_offsets_mapping: start and end of each token in its text, in characters; (0, 0) for special tokens.

        Returns `input_ids`, `token_type_ids` (0 first text, 1 pair), `attention_mask` (1 token, 0 padding) and on
        request `special_tokens_mask` (1 special token or padding) and `offset_mapping`: a list of ints for one text,
        a list of those for a batch, tensors `[batch, tokens]` int64 (offsets `[batch, tokens, 2]`) in either case.

        Raises ValueError for anything that is not text, an empty batch, batches of different lengths, unknown
        paddings or truncations, a `max_length` without room for the special tokens, tensors of ragged texts.
        """
        batched = not isinstance(text, str)
        if self.is_fast and not batched and text_pair == "":
            text_pair = None
        pairs = as_pairs(text, text_pair)
        batch_to_tensors = batched and return_tensors is not None
        padding, truncation, max_length = self._lengths(padding, truncation, max_length, batch_to_tensors)
        if truncation != "do_not_truncate":
            self._check_room(max_length, pairs, add_special_tokens)
        fields = self._fields(
            add_special_tokens,
            return_token_type_ids,
            return_attention_mask,
            return_special_tokens_mask,
            return_offsets_mapping,
        )
        rows, encodings = self._encode_batch(pairs, fields, add_special_tokens, padding, truncation, max_length)
        if not batched and return_tensors is None:
            rows = {name: row for name, (row,) in rows.items()}
        return BatchEncoding(rows, encodings, return_tensors)

    def _encode_batch(
        self,
        pairs: list[tuple[str, str | None]],
        fields: list[str],
        add_special_tokens: bool,
        padding: str,
        truncation: str,
        max_length: int,
    ) -> tuple[dict[str, list], list | None]:
        """Field name -> one list for each pair; and the library's encodings or None."""
        raise NotImplementedError

    def _lengths(
        self, padding: Any, truncation: Any, max_length: int | None, batch_to_tensors: bool
    ) -> tuple[str, str, int]:
        """The strategies by name, and the length they work towards: none does, where it is `NO_LENGTH_LIMIT`."""
        if truncation is None:
            truncation = max_length is not None and not padding
        if padding is None:
            padding = batch_to_tensors
        truncation = {True: "longest_first", False: "do_not_truncate"}.get(truncation, truncation)
        padding = {True: "longest", False: "do_not_pad"}.get(padding, padding)
        if padding not in PADDINGS:
            raise ValueError(f"padding={padding!r} is unknown: use True, False or one of {PADDINGS}")
        if truncation not in TRUNCATIONS:
            raise ValueError(f"truncation={truncation!r} is unknown: use True, False or one of {TRUNCATIONS}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length={max_length} must be at least 1")
        if max_length is None:
            max_length = self.model_max_length
        if max_length >= NO_LENGTH_LIMIT:
            if padding == "max_length":
                warnings.warn("padding='max_length' without max_length or model_max_length pads nothing", stacklevel=3)
                padding = "do_not_pad"
            truncation = "do_not_truncate"  # there is no limit to truncate to
        # Plain strings from here on: callers may pass members of string enumerations.
        return PADDINGS[PADDINGS.index(padding)], TRUNCATIONS[TRUNCATIONS.index(truncation)], max_length

    def _check_room(self, max_length: int, pairs: list[tuple[str, str | None]], add_special_tokens: bool) -> None:
        """ValueError if texts cut to `max_length` tokens cannot have their special tokens."""
        has_pair = any(second is not None for _, second in pairs)
        special = self.num_special_tokens_to_add(has_pair) if add_special_tokens else 0
        if max_length < special:
            raise ValueError(f"max_length={max_length} leaves no room for the {special} special tokens: raise it")

    def _fields(
        self,
        add_special_tokens: bool,
        return_token_type_ids: bool | None,
        return_attention_mask: bool | None,
        return_special_tokens_mask: bool,
        return_offsets_mapping: bool,
    ) -> list[str]:
        """The names of the fields that a call asks for; None asks for what the model reads."""
        if return_token_type_ids is None:
            return_token_type_ids = "token_type_ids" in self.model_input_names
        elif return_token_type_ids and not add_special_tokens and not self.is_fast:
            raise ValueError("return_token_type_ids=True needs add_special_tokens=True")
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        wanted = {
            "input_ids": True,
            "token_type_ids": return_token_type_ids,
            "attention_mask": return_attention_mask,
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def encode(self, text: str, text_pair: str | None = None, **options) -> list[int]:
        """The `input_ids` of one text or pair; options as for a call."""
        if not isinstance(text, str):
            raise ValueError(f"encode() takes one str, not a {type(text).__name__}: call the tokenizer for a batch")
        return self(text, text_pair, **options)["input_ids"]

    def batch_encode_candidates(
        self,
        text: Sequence[Sequence[str]],
        text_pair: Sequence[Sequence[str]] | None = None,
        *,
        return_tensors: str | None = None,
        **options,
    ) -> BatchEncoding:
        """Encode several candidates for each example, all padded to `max_length`, so that they stack.

        Args:
            text, text_pair: `[batch][candidates]` texts.
            options: as for a call; `padding` is always "max_length".

        Returns `input_ids`, `token_type_ids`, `attention_mask`, `[batch, candidates, max_length]` int64 as tensors.
        Raises ValueError if neither `max_length` nor `model_max_length` is known.
        """
        if options.get("max_length") is None and self.model_max_length >= NO_LENGTH_LIMIT:
            raise ValueError("batch_encode_candidates needs max_length, the length that all candidates are padded to")
        if isinstance(text, str) or any(isinstance(candidates, str) for candidates in text):
            raise ValueError("batch_encode_candidates takes a list of candidates for each example, not single texts")
        if text_pair is not None and len(text_pair) != len(text):
            raise ValueError(f"text holds {len(text)} examples and text_pair {len(text_pair)}")
        options["padding"] = "max_length"
        encoded = [
            self(candidates, None if text_pair is None else text_pair[i], **options)
            for i, candidates in enumerate(text)
        ]
        names = ("input_ids", "attention_mask", "token_type_ids")
        data = {name: [row[name] for row in encoded] for name in names if encoded and name in encoded[0]}
        return BatchEncoding(data, tensor_type=return_tensors)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """2 for one text, 3 for a pair."""
        return 3 if pair else 2

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]."""
        ids = [self.cls_token_id, *token_ids_0, self.sep_token_id]
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.sep_token_id]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for [CLS] first [SEP], 1 for second [SEP]."""
        first = [0] * (len(token_ids_0) + 2)
        return first if token_ids_1 is None else first + [1] * (len(token_ids_1) + 1)

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a special token, or where the given ids hold one."""
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("already_has_special_tokens=True takes one list of ids, the whole input")
            return [int(i in self.all_special_ids) for i in token_ids_0]
        first = [1, *[0] * len(token_ids_0), 1]
        return first if token_ids_1 is None else [*first, *[0] * len(token_ids_1), 1]

    # Decoding

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Token ids (an int, list, array or tensor `[tokens]`) back to text: pieces joined, words between spaces.

        `clean_up_tokenization_spaces` closes the space before punctuation and English contractions; None takes the
        tokenizer's own setting.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        text = self._decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return clean_up_spaces(text) if clean_up_tokenization_spaces else text

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        raise NotImplementedError

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    # Folders

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **overrides) -> Self:
        """Read a folder that `save_pretrained`, here or in transformers, wrote, or a hub name; `vocab.txt` is enough.

        `overrides` are constructor arguments that replace the saved ones. Raises FileNotFoundError for a missing
        folder or vocabulary, ValueError for broken files.
        """
        folder = resolve_folder(folder, "tokenizer", **take_hub_options(overrides))
        config = {**read_constructor_arguments(folder), **overrides}
        if "vocab_file" not in config:
            check_vocabularies(folder)
            config.update(cls._vocabulary_file(folder))
        return cls(**config)

    @classmethod
    def _vocabulary_file(cls, folder: Path) -> dict[str, Path]:
        return {"vocab_file": folder / "vocab.txt"}

    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str]:
        """Write `vocab.txt` to a folder and return its path."""
        if not os.path.isdir(save_directory):
            raise FileNotFoundError(f"no folder at {str(save_directory)!r}: create it first")
        path = Path(save_directory) / ((filename_prefix + "-" if filename_prefix else "") + "vocab.txt")
        write_text(path, "".join(piece + "\n" for piece in self.vocab))
        return (str(path),)

    def save_pretrained(self, save_directory: str | os.PathLike) -> tuple[str, ...]:
        """Write a folder that `from_pretrained`, here and in transformers, reads; returns the paths of its files."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        special_tokens: dict[str, Any] = dict(self.special_tokens_map)
        for name in SPECIAL_TOKEN_NAMES:
            if name in special_tokens:
                token = self.added_tokens_decoder[self.added_tokens_encoder[special_tokens[name]]]
                if token.lstrip or token.rstrip or token.single_word or token.normalized:
                    fields = added_token_fields(token)
                    fields.pop("special")
                    special_tokens[name] = fields
        added = {str(index): added_token_fields(token) for index, token in self.added_tokens_decoder.items()}
        config = {
            **self.without_effect,
            **self._constructor_arguments(),
            **self.special_tokens_map,
            "added_tokens_decoder": added,
            "tokenizer_class": "RealmTokenizer",
        }
        paths = [folder / "tokenizer_config.json", folder / "special_tokens_map.json"]
        write_json(paths[0], config)
        write_json(paths[1], special_tokens)
        new = {token: index for token, index in self.added_tokens_encoder.items() if index >= self.vocab_size}
        if new:
            paths.append(folder / "added_tokens.json")
            write_json(paths[-1], new)
        return (*map(str, paths), *self.save_vocabulary(folder))

    def _constructor_arguments(self) -> dict[str, Any]:
        arguments = {
            "do_lower_case": self.do_lower_case,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
        }
        defaults = {
            "padding_side": "right",
            "truncation_side": "right",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        }
        changed = {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}
        return {**arguments, **changed}


def as_pairs(text: Any, text_pair: Any) -> list[tuple[str, str | None]]:
    """The texts of a call as a list of pairs, the second None where there is none. Raises ValueError for non-text."""
    if isinstance(text, str):
        if text_pair is not None and not isinstance(text_pair, str):
            raise ValueError(f"text is one str and text_pair a {type(text_pair).__name__}: pass one str, or two lists")
        return [(text, text_pair)]
    if not isinstance(text, (list, tuple)):
        raise ValueError(f"text must be a str or a list of str, not a {type(text).__name__}: {text!r}")
    if len(text) == 0:
        raise ValueError("text is an empty list: pass at least one text")
    if text_pair is not None:
        if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
            size = f"{len(text_pair)} texts" if isinstance(text_pair, (list, tuple)) else type(text_pair).__name__
            raise ValueError(f"text holds {len(text)} texts and text_pair {size}: they must correspond")
        pairs: list[tuple[Any, Any]] = list(zip(text, text_pair, strict=True))
    else:
        pairs = [(t[0], t[1]) if isinstance(t, (list, tuple)) and len(t) == 2 else (t, None) for t in text]
    for i, (first, second) in enumerate(pairs):
        for value in (first,) if second is None else (first, second):
            if not isinstance(value, str):
                raise ValueError(f"text {i} of the batch must be a str, not a {type(value).__name__}: {value!r}")
    return pairs


def clean_up_spaces(text: str) -> str:
    """Close the spaces that tokenization opened before punctuation and in English contractions."""
    for mark in ".?!,":
        text = text.replace(" " + mark, mark)
    text = text.replace(" ' ", "'")
    for contraction in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(" " + contraction, contraction)
    return text
