"""What the two tokenizers share: the vocabulary, calls and decoding.

What a call is given is read by `calls.py`, and special tokens are named in `special_tokens.py`. Reading and writing
folders is added by `tokenizer_folders.py`, and what else transformers' programs ask of one by `tokenizer_surface.py`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, overload

from tokenizers import AddedToken

from realm_min import kinds
from realm_min.files.hub import take_hub_options
from realm_min.files.unknown_names import level_of_the_program, warn_of_unknown
from realm_min.kinds import checked
from realm_min.text.batch_encoding import BatchEncoding
from realm_min.text.calls import (
    CALL,
    ENCODE,
    LONGEST_KNOWN,
    NO_LENGTH_LIMIT,
    CallOptions,
    Coded,
    Pair,
    as_pairs,
    asked_fields,
    is_batch,
    listed_ids,
    padded_length,
    plain_ids,
    read_options,
    refuse_left_out,
    settle,
)
from realm_min.text.fitting import cut, pad_row, to_remove
from realm_min.text.special_tokens import SpecialTokens
from realm_min.text.tokenizer_files import (
    SPECIAL_TOKEN_NAMES,
    added_tokens_of,
    as_added_token,
    special_token,
    special_tokens_of,
)  # fmt: skip

# Arguments of transformers' constructors that ask for nothing here, and names that its folders hold.
WITHOUT_EFFECT = """
auto_map config do_basic_tokenize init_inputs max_len name_or_path never_split processor_class special_tokens_map_file
tokenizer_class tokenizer_file tokenizer_type use_fast verbose
""".split()
DECODING = ("spaces_between_special_tokens", "use_source_tokenizer")


class BaseTokenizer(SpecialTokens):
    """Vocabulary, calls and decoding. The subclasses turn text into tokens.

    Attributes beside those of `SpecialTokens`: `pieces` (of the vocabulary, without added tokens), `vocab_size` (how
    many), `added_tokens_decoder`, `added_tokens_encoder`, `model_max_length` (tokens), `do_lower_case`,
    `strip_accents`, `tokenize_chinese_chars`, `clean_up_tokenization_spaces`, `padding_side`, `truncation_side`,
    `model_input_names`, `name_or_path`.
    """

    is_fast: bool

    def __init__(
        self,
        pieces: dict[str, int],
        *,
        do_lower_case: bool,
        tokenize_chinese_chars: bool,
        strip_accents: bool | None,
        special_tokens: dict[str, Any],  # each a str, a dict or an AddedToken
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        added_tokens_decoder: dict[int, AddedToken] | None = None,
        model_max_length: int | None = None,
        clean_up_tokenization_spaces: bool = True,
        padding_side: str = "right",
        truncation_side: str = "right",
        model_input_names: Sequence[str] = ("input_ids", "token_type_ids", "attention_mask"),
        **others,
    ):
        check_sides(padding_side, truncation_side)
        kinds.check("model_input_names", model_input_names, Sequence[str])
        where = type(self).__name__
        take_hub_options(others)  # where files are found is said to from_pretrained; one may be a secret
        refuse_left_out(where, others)
        named = {name: others.pop(name, None) for name in ("bos_token", "eos_token")} | special_tokens
        model_max_length = others.pop("max_len", None) if model_max_length is None else model_max_length
        warn_of_unknown(set(others) - set(WITHOUT_EFFECT), type(self).argument_names(), where)
        self.pieces = pieces
        self.do_lower_case = do_lower_case
        self.tokenize_chinese_chars, self.strip_accents = tokenize_chinese_chars, strip_accents
        self.model_max_length = limit_of(model_max_length)
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.model_input_names = list(model_input_names)
        self.name_or_path = str(others.pop("name_or_path", ""))
        self.without_effect = others  # arguments without effect here, written back by save_pretrained
        named = {name: token if token is None else special_token(token) for name, token in named.items()}
        super().__init__(named, special_tokens_of(additional_special_tokens))
        self._add_special_tokens(named, {} if added_tokens_decoder is None else added_tokens_decoder)

    def _add_special_tokens(self, named: dict[str, Any], saved: dict[int, AddedToken]) -> None:
        """Give every special token its id: the saved one, else the vocabulary's, else the next free one."""
        self.added_tokens_decoder: dict[int, AddedToken] = {}
        self.added_tokens_encoder: dict[str, int] = {}
        self._ids_to_tokens = {index: piece for piece, index in self.pieces.items()}
        self.keep_added(added_tokens_of(saved))
        for name, token in named.items():
            required = name in SPECIAL_TOKEN_NAMES or token is not None
            if required and (token is None or self.id_of(as_added_token(token, special=True).content, None) is None):
                raise ValueError(f"the vocabulary lacks {name}={token!r}: add a line for it, or name one of its pieces")
        for token in [as_added_token(token, special=True) for token in self.all_special_tokens_extended]:
            if token.content not in self.added_tokens_encoder:
                self.keep_added({self.pieces.get(token.content, len(self)): token})
        self.added_tokens_decoder = dict(sorted(self.added_tokens_decoder.items()))
        self.added_tokens_encoder = dict(sorted(self.added_tokens_encoder.items(), key=lambda pair: pair[1]))

    def keep_added(self, tokens: dict[int, AddedToken]) -> None:
        """Keep added tokens under their ids, beside those that there are."""
        for index, token in tokens.items():
            self.added_tokens_decoder[index] = token
            self.added_tokens_encoder[token.content] = index
            self._ids_to_tokens[index] = token.content

    @classmethod
    def argument_names(cls) -> set[str]:
        """Every argument of the constructor."""
        both = (inspect.signature(cls.__init__), inspect.signature(BaseTokenizer.__init__))
        own = {name for signature in both for name in signature.parameters} - {"self", "pieces", "special_tokens"}
        return own - {"others"} | {"bos_token", "eos_token", "max_len", "split_special_tokens"}

    # Vocabulary

    @property
    def vocab_size(self) -> int:
        """Pieces in the vocabulary file, without added tokens."""
        return len(self.pieces)

    def __len__(self) -> int:
        """Pieces in the vocabulary file and added tokens."""
        return len(self._ids_to_tokens)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, do_lower_case={self.do_lower_case})"

    def get_vocab(self) -> dict[str, int]:
        """Token to id, added tokens included."""
        return {**self.pieces, **self.added_tokens_encoder}

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...
    @overload
    def convert_tokens_to_ids(self, tokens: None) -> None: ...
    @checked
    def convert_tokens_to_ids(self, tokens: str | Iterable[str] | None) -> int | list[int] | None:
        """The id of a token, or of each in a list; the unknown token's for those the vocabulary lacks."""
        if tokens is None:
            return None
        if not isinstance(tokens, str):
            unknown = self.id_of(self.unk_token, None)
            return [self.id_of(token, unknown) for token in tokens]
        return self.id_of(tokens, self.id_of(self.unk_token, None))

    def id_of(self, token: Any, otherwise: Any) -> Any:
        return self.added_tokens_encoder.get(token, self.pieces.get(token, otherwise))

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str: ...
    @overload
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> list[str]: ...
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """The token of an id, or of each in a list, array or tensor. Raises ValueError for an id out of range."""
        ids = plain_ids(ids)
        if isinstance(ids, int):
            return self._token_of(ids)
        kinds.check("skip_special_tokens", skip_special_tokens, bool)
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        return [self._token_of(i) for i in ids if i not in skipped]

    def _token_of(self, index: int) -> str:
        if index not in self._ids_to_tokens:
            raise ValueError(f"token id {index} is out of range: the vocabulary has {len(self)} tokens")
        return self._ids_to_tokens[index]

    # Encoding

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        *by_place: Any,
        **options: Any,
    ) -> BatchEncoding:
        """Encode a text, a pair of texts, or a batch of either.

        Args:
            text, text_pair: one str each, or lists of equal length; `text` may also be a list of pairs.
            text_target, text_pair_target: encoded as `text` is; their `input_ids` are the `labels`.
            add_special_tokens: [CLS] text [SEP], and pair [SEP].
            padding: False; True or "longest" (of the batch); "max_length" (`max_length`, else `model_max_length`).
                Left out it is False, but "longest" for a batch that is to become tensors.
            truncation: True or "longest_first" shortens the longer text of a pair; "only_first"; "only_second"; False.
                Left out it is False, but "longest_first" if `max_length` is given without padding.
            max_length: tokens, special tokens included.
            is_split_into_words: a text is a list of words, and offsets count within a word.
            pad_to_multiple_of: tokens; padding goes on to the next multiple.
            return_tensors: "pt", "np", or None for lists.
            return_token_type_ids, return_attention_mask: left out, as `model_input_names` says.
            return_special_tokens_mask, return_length: further fields, as transformers has them.
            return_offsets_mapping: start and end of each token in its text, in characters; (0, 0) for special tokens.
            verbose: False warns of no length without effect.

        Options can be given by place too, in transformers' order (`calls.CALL`).

        Returns `input_ids`, `token_type_ids` (0 first text, 1 pair), `attention_mask` (1 token, 0 padding) and on
        request `special_tokens_mask` (1 special token or padding) and `offset_mapping`: a list of ints for one text,
        a list of those for a batch, tensors `[batch, tokens]` int64 (offsets `[batch, tokens, 2]`) in either case.

        Raises ValueError for anything that is not text, an empty batch, batches of different lengths, unknown
        paddings or truncations, a `max_length` without room for the special tokens, tensors of ragged texts.
        """
        read = read_options(type(self).__name__, by_place, options, CALL)
        if text is None and text_target is not None:
            return self._encode_texts(text_target, text_pair_target, read)
        encoded = self._encode_texts(text, text_pair, read)
        if text_target is not None:
            encoded["labels"] = self._encode_texts(text_target, text_pair_target, read)["input_ids"]
        return encoded

    def _encode_texts(self, text: Any, text_pair: Any, options: CallOptions) -> BatchEncoding:
        words = options.is_split_into_words
        batched = is_batch(text, words)
        if self.is_fast and not batched and isinstance(text_pair, (str, list)) and not text_pair:
            text_pair = None
        return self.encode_pairs(as_pairs(text, text_pair, words), batched, options)

    def encode_pairs(self, pairs: list[Pair], batched: bool, options: CallOptions) -> BatchEncoding:
        """Encode texts that were checked, each with its second or None; not `batched`, it is one text."""
        options = settle(options, self.model_max_length, batched and options.return_tensors is not None)
        self.check(options, pairs)
        names = asked_fields(options, self.model_input_names)
        rows, encodings = self.encode_batch(pairs, names, options, batched)
        if not batched and options.return_tensors is None:
            # The library's twin leaves the length in its list, as transformers' does.
            rows = {name: row if name == "length" and self.is_fast else row[0] for name, row in rows.items()}
        return BatchEncoding(rows, encodings, options.return_tensors)

    def encode_batch(
        self, pairs: list[Pair], names: list[str], options: CallOptions, batched: bool
    ) -> tuple[dict[str, list], list | None]:
        """Field name -> one list for each pair; and the library's encodings or None. The options are settled."""
        raise NotImplementedError

    def fields(self, a: Coded, b: Coded | None, options: CallOptions) -> dict[str, Any]:
        """Every field of one text or pair, cut and with its special tokens, but not padded. The options are settled."""
        if options.truncation != "do_not_truncate":
            a, b = self._cut(a, b, options)
        ids_a, ids_b = [index for index, _ in a], None if b is None else [index for index, _ in b]
        offsets_a, offsets_b = [place for _, place in a], [place for _, place in b or ()]
        if options.add_special_tokens:
            ids = self.build_inputs_with_special_tokens(ids_a, ids_b)
            type_ids = self.create_token_type_ids_from_sequences(ids_a, ids_b)
            special_mask = self.get_special_tokens_mask(ids_a, ids_b)
            offsets = [(0, 0), *offsets_a, (0, 0)] + ([] if b is None else [*offsets_b, (0, 0)])
        else:
            ids = ids_a + (ids_b or [])
            type_ids = [0] * len(ids)
            special_mask = [0] * len(ids)
            offsets = offsets_a + offsets_b
        return {
            "input_ids": ids,
            "token_type_ids": type_ids,
            "attention_mask": [1] * len(ids),
            "special_tokens_mask": special_mask,
            "offset_mapping": offsets,
            "length": len(ids),
        }

    def _cut(self, a: Coded, b: Coded | None, options: CallOptions) -> tuple[Coded, Coded | None]:
        """Both cut to `max_length` together with their special tokens, with a warning where that cannot be."""
        special = self.num_special_tokens_to_add(b is not None) if options.add_special_tokens else 0
        excess = len(a) + len(b or ()) + special - (options.max_length or 0)
        if excess <= 0:
            return a, b
        from_a, from_b = to_remove(len(a), None if b is None else len(b), excess, str(options.truncation))
        if from_a + from_b < excess and options.verbose:
            warnings.warn(
                f"truncation={options.truncation!r} cannot remove {excess} tokens from texts of {len(a)} and "
                f"{len(b or ())}: they stay longer than max_length. Raise max_length or use another strategy",
                stacklevel=level_of_the_program(),
            )
        return cut(a, from_a, self.truncation_side), None if b is None else cut(b, from_b, self.truncation_side)

    def padded(self, rows: list[dict[str, Any]], options: CallOptions, batched: bool) -> list[dict[str, Any]]:
        """What `fields` gave for each text, padded. `length` counts the padding of a single text, not of a batch."""
        if options.padding != "do_not_pad":
            length = padded_length(options, max(len(row["input_ids"]) for row in rows))
            fillers = self.fillers()
            rows = [pad_row(row, length, fillers, self.padding_side) for row in rows]
        return rows if batched else [{**row, "length": len(row["input_ids"])} for row in rows]

    def fillers(self) -> dict[str, Any]:
        """What pads each field."""
        return {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }

    def check(self, options: CallOptions, pairs: list[Pair]) -> None:
        """ValueError for settled options that ask for what cannot be: room for special tokens, say, in none."""
        check_sides(self.padding_side, self.truncation_side)
        if options.padding != "do_not_pad" and self.pad_token is None:
            raise ValueError('padding needs a pad_token, and it is None: set tokenizer.pad_token = "[PAD]"')
        if options.return_token_type_ids and not options.add_special_tokens and not self.is_fast:
            raise ValueError("return_token_type_ids=True needs add_special_tokens=True")
        has_pair = any(second is not None for _, second in pairs)
        special = self.num_special_tokens_to_add(has_pair) if options.add_special_tokens else 0
        if options.truncation != "do_not_truncate" and (options.max_length or 0) < special:
            raise ValueError(
                f"max_length={options.max_length} leaves no room for the {special} special tokens: raise it"
            )

    def encode(self, text: Any, text_pair: Any = None, *by_place: Any, **options: Any) -> list[int]:
        """The `input_ids` of one text or pair; options as for a call, by place in the order `calls.ENCODE`."""
        return self.encode_one("encode", text, text_pair, read_options("encode", by_place, options, ENCODE))[
            "input_ids"
        ]

    def encode_one(self, where: str, text: Any, text_pair: Any, options: CallOptions) -> BatchEncoding:
        """One text or pair; by hand either may be a list of tokens or of ids too. Raises ValueError for a batch."""
        if self.is_fast and isinstance(text_pair, (str, list)) and not text_pair:
            text_pair = None
        return self.encode_pairs([self.checked_pair(where, text, text_pair, options)], False, options)

    def checked_pair(self, where: str, text: Any, text_pair: Any, options: CallOptions) -> Pair:
        """Both as `encode_batch` takes them. Raises ValueError for another form."""
        second = None if text_pair is None else self._one_text(where, text_pair, options)
        return self._one_text(where, text, options), second

    def _one_text(self, where: str, text: Any, options: CallOptions) -> Any:
        """A str, a list of words where they are split, or by hand the ids of a list of tokens or ids."""
        if isinstance(text, str) and not options.is_split_into_words:
            return text
        is_list = isinstance(text, (list, tuple)) and (len(text) > 0 or self.is_fast)
        if is_list and all(isinstance(part, str) for part in text):
            if options.is_split_into_words:
                return list(text)
            if not self.is_fast:
                return self.convert_tokens_to_ids(text)
        if is_list and not self.is_fast and not options.is_split_into_words:
            if all(isinstance(part, int) for part in text):
                return list(text)
        form = "a list of words" if options.is_split_into_words else "one str"
        more = "" if self.is_fast or options.is_split_into_words else ", a list of tokens or of ids"
        raise ValueError(f"{where}() takes {form}{more}, not a {type(text).__name__}: call the tokenizer for a batch")

    def batch_encode_candidates(
        self, text: Sequence[Any], text_pair: Sequence[Any] | None = None, **options: Any
    ) -> BatchEncoding:
        """Encode several candidates for each example, all padded to `max_length`, so that they stack.

        Args:
            text, text_pair: `[batch][candidates]` texts; or `[batch]` texts, one candidate each.
            options: as for a call; `padding` is always "max_length".

        Returns `input_ids`, `token_type_ids`, `attention_mask`, `[batch, candidates, max_length]` int64 as tensors,
        `[batch, max_length]` for one candidate each.

        Raises ValueError if neither `max_length` nor `model_max_length` is known.
        """
        if options.get("max_length") is None and self.model_max_length > LONGEST_KNOWN:
            raise ValueError("batch_encode_candidates needs max_length, the length that all candidates are padded to")
        if isinstance(text, str) or isinstance(text_pair, str):
            raise ValueError("batch_encode_candidates takes a list of candidates for each example, not a single text")
        kinds.check("text", text, Sequence)
        kinds.check("text_pair", text_pair, Sequence | None)
        if text_pair is not None and len(text_pair) != len(text):
            raise ValueError(f"text holds {len(text)} examples and text_pair {len(text_pair)}")
        return_tensors = options.pop("return_tensors", None)
        options["padding"] = "max_length"
        encoded = [
            self(candidates, None if text_pair is None else text_pair[i], **options)
            for i, candidates in enumerate(text)
        ]
        names = ("input_ids", "attention_mask", "token_type_ids")
        data = {name: [row[name] for row in encoded] for name in names if encoded and name in encoded[0]}
        return BatchEncoding(data, tensor_type=return_tensors)

    @checked
    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """2 for one text, 3 for a pair."""
        return 3 if pair else 2

    @checked
    def build_inputs_with_special_tokens(
        self, token_ids_0: Iterable[int], token_ids_1: Iterable[int] | None = None
    ) -> list[int]:
        """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]."""
        ids = [self.cls_token_id, *listed_ids(token_ids_0), self.sep_token_id]
        return ids if token_ids_1 is None else [*ids, *listed_ids(token_ids_1), self.sep_token_id]

    @checked
    def create_token_type_ids_from_sequences(
        self, token_ids_0: Iterable[int], token_ids_1: Iterable[int] | None = None
    ) -> list[int]:
        """0 for [CLS] first [SEP], 1 for second [SEP]."""
        first = [0] * (len(listed_ids(token_ids_0)) + 2)
        return first if token_ids_1 is None else first + [1] * (len(listed_ids(token_ids_1)) + 1)

    @checked
    def get_special_tokens_mask(
        self,
        token_ids_0: Iterable[int],
        token_ids_1: Iterable[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a special token, or where the given ids hold one."""
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("already_has_special_tokens=True takes one list of ids, the whole input")
            return [int(i in self.all_special_ids) for i in listed_ids(token_ids_0)]
        first = [1, *[0] * len(listed_ids(token_ids_0)), 1]
        return first if token_ids_1 is None else [*first, *[0] * len(listed_ids(token_ids_1)), 1]

    # Decoding

    @checked
    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> str:
        """Token ids (an int, list, array or tensor `[tokens]`) back to text: pieces joined, words between spaces.

        Args:
            clean_up_tokenization_spaces: close the space before punctuation and English contractions; None takes the
                tokenizer's own setting.
            spaces_between_special_tokens: False leaves them out around added tokens; by hand alone.
        """
        warn_of_unknown(options, DECODING, "decode")
        ids = plain_ids(token_ids)
        spaces = options.get("spaces_between_special_tokens", True)
        text = self.decode_ids([ids] if isinstance(ids, int) else ids, bool(skip_special_tokens), spaces)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return clean_up_spaces(text) if clean_up_tokenization_spaces else text

    def decode_ids(self, ids: list[int], skip_special_tokens: bool, spaces: bool) -> str:
        raise NotImplementedError

    @checked
    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """`decode` of each row."""
        kinds.check("sequences", sequences, Iterable)
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **options) for row in sequences]


def check_sides(padding_side: str, truncation_side: str) -> None:
    for name, side in (("padding_side", padding_side), ("truncation_side", truncation_side)):
        if not isinstance(side, str) or side not in ("right", "left"):
            raise ValueError(f"{name}={side!r} is unknown: use 'right' or 'left'")


def limit_of(model_max_length: float | None) -> int:
    """The longest text that is known of, in tokens. Raises ValueError for what is no number."""
    kinds.check("model_max_length", model_max_length, int | float | None)
    if model_max_length is None:
        return NO_LENGTH_LIMIT
    if not float(model_max_length).is_integer():
        raise ValueError(f"model_max_length={model_max_length} is no number of tokens: give an integer")
    return int(model_max_length)


def clean_up_spaces(text: str) -> str:
    """Close the spaces that tokenization opened before punctuation and in English contractions."""
    for mark in ".?!,":
        text = text.replace(" " + mark, mark)
    text = text.replace(" ' ", "'")
    for contraction in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(" " + contraction, contraction)
    return text
