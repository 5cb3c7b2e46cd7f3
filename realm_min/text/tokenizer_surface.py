"""What programs written for transformers ask of a tokenizer beyond calling it: the same names, a few lines each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken

from realm_min import kinds
from realm_min.text.batch_encoding import BatchEncoding
from realm_min.text.calls import (
    CALL,
    PREPARE,
    CallOptions,
    asked_fields,
    padded_length,
    read_options,
    refuse_left_out,
    settle,
    split_pair,
    truncation_named,
)
from realm_min.text.fitting import cut, pad_row, to_remove
from realm_min.text.special_tokens import Token, content
from realm_min.text.tokenizer_base import clean_up_spaces
from realm_min.text.tokenizer_files import as_added_token
from realm_min.text.tokenizer_folders import TokenizerFolders


class TokenizerSurface(TokenizerFolders):
    """Other names of transformers' tokenizers. Those left out are told by `left_out.py`."""

    vocab_files_names = {"vocab_file": "vocab.txt"}
    can_save_slow_tokenizer = True

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        return clean_up_spaces(out_string)

    # Calls

    def encode_plus(self, text: Any, text_pair: Any = None, *by_place: Any, **options: Any) -> BatchEncoding:
        """Encode one text or pair; options as for a call. By hand it may be a list of tokens or of ids."""
        return self.encode_one("encode_plus", text, text_pair, read_options("encode_plus", by_place, options, CALL))

    def batch_encode_plus(
        self, batch_text_or_text_pairs: Sequence[Any], *by_place: Any, **options: Any
    ) -> BatchEncoding:
        """Encode a list of texts or of pairs, by hand of pairs of lists of ids too; options as for a call."""
        read = read_options("batch_encode_plus", by_place, options, CALL)
        if not isinstance(batch_text_or_text_pairs, (list, tuple)) or not batch_text_or_text_pairs:
            raise ValueError(f"batch_encode_plus takes a list of texts or of pairs, not {batch_text_or_text_pairs!r}")
        pairs = [split_pair(item, read.is_split_into_words) for item in batch_text_or_text_pairs]
        checked = [self.checked_pair("batch_encode_plus", *pair, read) for pair in pairs]
        return self.encode_pairs(checked, True, read)

    def prepare_for_model(
        self,
        ids: Sequence[int],
        pair_ids: Sequence[int] | None = None,
        *by_place: Any,
        prepend_batch_axis: bool = False,
        **options: Any,
    ) -> BatchEncoding:
        """As a call, from the ids of one text or pair without special tokens; options by place as `calls.PREPARE`."""
        read = settle(read_options("prepare_for_model", by_place, options, PREPARE), self.model_max_length)
        sides = [None if side is None else [(int(index), (0, 0)) for index in side] for side in (ids, pair_ids)]
        self.check(read, [(ids, pair_ids)])
        (row,) = self.padded([self.fields(sides[0] or [], sides[1], read)], read, batched=False)
        names = [name for name in asked_fields(read, self.model_input_names) if name != "offset_mapping"]
        return BatchEncoding({name: row[name] for name in names}, None, read.return_tensors, prepend_batch_axis)

    def truncate_sequences(
        self,
        ids: list[int],
        pair_ids: list[int] | None = None,
        num_tokens_to_remove: int = 0,
        truncation_strategy: bool | str = "longest_first",
        stride: int = 0,
    ) -> tuple[list[int], list[int] | None, list[int]]:
        """Both lists of ids, cut by so many tokens; and those cut off, if they are of one list by the strategy."""
        refuse_left_out("truncate_sequences", {"stride": stride})
        strategy = truncation_named(truncation_strategy)
        second = None if pair_ids is None else len(pair_ids)
        from_ids, from_pair = to_remove(len(ids), second, max(num_tokens_to_remove, 0), strategy)
        side, cut_off = self.truncation_side, []
        if pair_ids is None or strategy != "longest_first":
            whole, count = (ids, from_ids) if from_ids else (pair_ids or [], from_pair)
            cut_off = whole[:count] if side == "left" else whole[len(whole) - count :]
        return cut(ids, from_ids, side), None if pair_ids is None else cut(pair_ids, from_pair, side), cut_off

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad what calls returned: one encoding, a batch of one, or a list of encodings, as a collating function does.

        Args:
            encoded_inputs: a mapping of fields or a list of such, `input_ids` among them: lists, arrays or tensors.
            return_tensors: left out, tensors and arrays stay what they are.
            padding, max_length, pad_to_multiple_of, return_attention_mask, verbose: as for a call.

        `input_ids`, `token_type_ids`, `attention_mask` and `special_tokens_mask` are padded, other fields stay.
        """
        given = _one_mapping(encoded_inputs)
        if (ids := given.get("input_ids")) is None:
            raise ValueError(f"pad() needs the field 'input_ids', and was given {sorted(given)}")
        if len(ids) == 0:
            return BatchEncoding(given | ({"attention_mask": []} if return_attention_mask else {}))
        return_tensors = _kind(ids) if return_tensors is None else return_tensors
        given = {name: _as_lists(values) for name, values in given.items()}
        options = settle(
            CallOptions(
                padding=padding, truncation=False, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of,
                return_attention_mask=return_attention_mask, verbose=verbose,
            ),
            self.model_max_length,
        )  # fmt: skip
        single = not isinstance(given["input_ids"][0], list)
        padded = self._padded_rows([given] if single else _rows(given), options)
        fields = padded[0] if single else {name: [row[name] for row in padded] for name in padded[0]}
        return BatchEncoding(fields, None, return_tensors)

    def _padded_rows(self, rows: list[dict[str, Any]], options: CallOptions) -> list[dict[str, Any]]:
        fillers = self.fillers()
        del fillers["offset_mapping"]
        if "attention_mask" in asked_fields(options, self.model_input_names):
            rows = [{**row, "attention_mask": row.get("attention_mask", [1] * len(row["input_ids"]))} for row in rows]
        else:
            del fillers["attention_mask"]
        if options.padding == "do_not_pad":
            return rows
        self.check(options, [])
        length = padded_length(options, max(len(row["input_ids"]) for row in rows))
        return [pad_row(row, length, fillers, self.padding_side) for row in rows]

    # Vocabulary

    @property
    def vocab(self) -> dict[str, int]:
        """Pieces of the vocabulary and their ids, without added tokens by hand, with them in the fast tokenizer."""
        return self.pieces

    @property
    def ids_to_tokens(self) -> dict[int, str]:
        """Ids of the vocabulary's pieces."""
        return {index: piece for piece, index in self.pieces.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Added tokens, the special ones among them, and their ids."""
        return dict(self.added_tokens_encoder)

    def add_tokens(self, new_tokens: Token | Sequence[Token], special_tokens: bool = False) -> int:
        """Add tokens, in which no text is cut; returns how many are new. A model needs an embedding for each.

        Raises ValueError for what is no token.
        """
        given = [] if new_tokens is None else new_tokens
        given = [given] if isinstance(given, (str, AddedToken)) else given
        if not kinds.is_iterable(given):
            raise ValueError(f"new_tokens is {kinds.shown(given)}: give a token, or a list of them")
        added = self.add([token for token in given if token != ""], special_tokens)
        self.special_tokens_changed()
        return added

    def add(self, tokens: list[Token], special: bool) -> int:
        """Add these, and return how many were new."""
        raise NotImplementedError

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Let names stand for tokens, adding those that are new; returns how many were.

        Args:
            special_tokens_dict: name of a special token to its token, "additional_special_tokens" to a list of them.
            replace_additional_special_tokens: False leaves those that there are beside the new ones.

        Raises ValueError for another name, and for what is no token.
        """
        if unknown := sorted(special_tokens_dict.keys() - set(self.SPECIAL_TOKENS_ATTRIBUTES)):
            names = ", ".join(self.SPECIAL_TOKENS_ATTRIBUTES)
            raise ValueError(f"{unknown[0]!r} is no name of a special token: use one of {names}")
        before = [] if replace_additional_special_tokens else self.additional_special_tokens
        read: dict[str, list[AddedToken]] = {}  # in the order given, in which new ones are numbered
        for name, value in special_tokens_dict.items():
            tokens = [value] if name != "additional_special_tokens" else [t for t in value if content(t) not in before]
            read[name] = [as_added_token(token, special=True) for token in tokens]
        additional = read.get("additional_special_tokens")
        named = {name: tokens[0] for name, tokens in read.items() if name != "additional_special_tokens"}
        self.rename(named, [*before, *additional] if additional else None)
        return self.add_tokens([token for tokens in read.values() for token in tokens], special_tokens=True)

    # Lengths

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens that one text may have, of `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens that a pair may have together, of `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)


def _one_mapping(given: Any) -> dict[str, Any]:
    """A list of encodings as one of lists. Raises ValueError for another form."""
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(one, Mapping) for one in given):
        raise ValueError(f"pad() takes an encoding or a list of encodings, mappings of fields, not {given!r}")
    if any(one.keys() != given[0].keys() for one in given):
        raise ValueError(f"pad() was given encodings of different fields: {[sorted(one) for one in given]}")
    return {name: [one[name] for one in given] for name in given[0]}


def _rows(given: dict[str, list]) -> list[dict[str, Any]]:
    """Fields of a batch as the fields of each text. Raises ValueError where they are of different numbers."""
    sizes = {name: len(values) for name, values in given.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"pad() was given fields of different numbers of texts: {sizes}")
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def _kind(ids: Any) -> str | None:
    """ "pt" for tensors or a list of them, "np" for arrays or numbers of NumPy, None for lists."""
    first = next((part for part in ids if not isinstance(part, (list, tuple)) or part), None)
    if isinstance(first, (list, tuple)):
        return _kind(first)
    return "pt" if isinstance(first, torch.Tensor) else "np" if isinstance(first, (np.ndarray, np.generic)) else None


def _as_lists(values: Any) -> Any:
    if isinstance(values, (list, tuple)):
        return [_as_lists(value) for value in values]
    return values.tolist() if hasattr(values, "tolist") else values
