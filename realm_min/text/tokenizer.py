"""Text to token ids: the first step of every REALM model.

`RealmTokenizer` is BERT's tokenizer, by hand, in five steps: cut out special tokens such as `[MASK]`, clean and cut
into words, strip accents, split off punctuation, spell each word with the longest pieces of the vocabulary
(WordPiece). `RealmTokenizerFast` is its twin on the Rust library `tokenizers`. Both have the interface and the results
of the classes of the same names in transformers 4.40.2.

Where the two disagree, as transformers' own two do:
- Characters. By hand, this Python's Unicode tables (`unicodedata`) decide, and code points that they do not assign are
  dropped; the library carries older tables and keeps such code points. The CJK extension E begins at U+2B820 by hand
  and at U+2B920 in the library.
- The library ignores `never_split` and `do_basic_tokenize`, and takes an empty second text of a single pair for none.
- Without special tokens, a pair's type ids are all 0 by hand, 0 and 1 from the library.
- "longest_first" takes an odd token from different sides of a pair.
- Where a strategy cannot reach `max_length`, or only by removing a whole text, the by-hand tokenizer warns and leaves
  the text too long; the library removes the whole text if that is enough, and a ValueError tells if it is not.

Where they are stricter than transformers: see the errors of each method. And by hand, `padding="max_length"` pads a
single empty text without special tokens too.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from realm_min.text.tokenizer_base import BaseTokenizer
from realm_min.text.tokenizer_files import load_vocab, read_tokenizer_json, write_text
from realm_min.text.wordpiece import (
    MAX_WORD_CHARACTERS,
    lower_characters,
    split_punctuation,
    split_words,
    strip_accents,
    wordpiece,
)

SURROGATE = re.compile("[\ud800-\udfff]")
# Held around each call of the library: it keeps settings from one call to the next, and refuses to change them while
# another thread reads them.
ENCODING = threading.Lock()


class Piece(NamedTuple):
    """A token and its place in the text, in characters."""

    token: str
    start: int
    end: int


class RealmTokenizer(BaseTokenizer):
    """BERT's basic tokenization and WordPiece, in Python.

    Args:
        vocab_file: text file with one piece a line.
        do_lower_case: lower-case everything but special tokens.
        do_basic_tokenize: False leaves out all but WordPiece: words are what white space separates.
        never_split: words that stay whole.
        unk_token, sep_token, pad_token, cls_token, mask_token: must be pieces of the vocabulary. A
            `tokenizers.AddedToken` says more: `lstrip`, `rstrip` take in the white space beside the token.
        tokenize_chinese_chars: each CJK character is a word.
        strip_accents: None follows `do_lower_case`.
        others: `model_max_length`, `additional_special_tokens`, `added_tokens_decoder`, `padding_side`,
            `truncation_side`, `clean_up_tokenization_spaces`, `model_input_names`; the rest is kept for saving.

    Raises FileNotFoundError without the file, ValueError for an empty vocabulary or one without the special tokens.
    """

    is_fast = False

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        **others,
    ):
        super().__init__(
            load_vocab(vocab_file),
            do_lower_case=do_lower_case,
            tokenize_chinese_chars=tokenize_chinese_chars,
            strip_accents=strip_accents,
            special_tokens={
                "unk_token": unk_token,
                "sep_token": sep_token,
                "pad_token": pad_token,
                "cls_token": cls_token,
                "mask_token": mask_token,
            },
            **others,
        )
        self.do_basic_tokenize = do_basic_tokenize
        self.never_split = set(never_split or ())
        self._longest_piece = max(map(len, self.vocab))
        added = self.added_tokens_decoder.values()
        if any(token.single_word for token in added):
            raise ValueError("added tokens with single_word=True need RealmTokenizerFast")
        protected = self.all_special_tokens + [t.content for t in added if not t.special and t.normalized]
        self._protected_pattern = re.compile("|".join(map(re.escape, protected)))
        by_length = sorted(self.added_tokens_encoder, key=len, reverse=True)  # the longest that matches wins
        self._added_pattern = re.compile("|".join(map(re.escape, by_length)))

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without special tokens around them. Raises ValueError if it is not a str."""
        if not isinstance(text, str):
            raise ValueError(f"tokenize() takes one str, not a {type(text).__name__}: {text!r}")
        return [piece.token for piece in self._pieces(text)]

    def _pieces(self, text: str) -> list[Piece]:
        places: Sequence[int] = range(len(text))
        if self.do_lower_case and self.do_basic_tokenize:
            text, places = lower_characters(text, self._protected_pattern)
        pieces = []
        for start, end, is_added in self._split_added_tokens(text):
            if is_added:
                pieces.append(Piece(text[start:end], places[start], places[end - 1] + 1))
                continue
            for word, word_places in self._words(text[start:end], places[start:end]):
                whole = [(word, 0, len(word))] if word in self.never_split and self.do_basic_tokenize else None
                spelled = whole or wordpiece(word, self.vocab, self._longest_piece)
                for token, first, last in spelled or [(self.unk_token, 0, len(word))]:
                    pieces.append(Piece(token, word_places[first], word_places[last - 1] + 1))
        return pieces

    def _split_added_tokens(self, text: str) -> Iterator[tuple[int, int, bool]]:
        """Start and end of the added tokens (True) in a text, and of what stands between them (False)."""
        start = 0
        for match in self._added_pattern.finditer(text):
            token = self.added_tokens_decoder[self.added_tokens_encoder[match.group()]]
            between = text[start : match.start()]
            yield start, start + len(between.rstrip() if token.lstrip else between), False
            yield *match.span(), True
            start = match.end()
            if token.rstrip:
                start = len(text) - len(text[start:].lstrip())
        yield start, len(text), False

    def _words(self, text: str, places: Sequence[int]) -> Iterator[tuple[str, Sequence[int]]]:
        if not self.do_basic_tokenize:
            for match in re.finditer(r"\S+", text):
                yield match.group(), places[match.start() : match.end()]
            return
        # A special token may come to light only now, by the cleaning: "[MA\0SK]".
        whole = self.never_split.union(self.all_special_tokens)
        strip = self.do_lower_case if self.strip_accents is None else self.strip_accents
        for word, word_places in split_words(text, places, self.tokenize_chinese_chars):
            if strip and word not in whole:
                word, word_places = strip_accents(word, word_places)
            if word in whole:
                yield word, word_places
            else:
                yield from split_punctuation(word, word_places)

    def _encode_batch(
        self,
        pairs: list[tuple[str, str | None]],
        fields: list[str],
        add_special_tokens: bool,
        padding: str,
        truncation: str,
        max_length: int,
    ) -> tuple[dict[str, list], list | None]:
        rows = [self._encode_pair(*pair, add_special_tokens, truncation, max_length) for pair in pairs]
        if padding != "do_not_pad":
            length = max_length if padding == "max_length" else max(len(row["input_ids"]) for row in rows)
            rows = [self._pad(row, length - len(row["input_ids"])) for row in rows]
        return {name: [row[name] for row in rows] for name in fields}, None

    def _encode_pair(
        self, first: str, second: str | None, add_special_tokens: bool, truncation: str, max_length: int
    ) -> dict[str, list]:
        a = self._pieces(first)
        b = None if second is None else self._pieces(second)
        if truncation != "do_not_truncate":
            special = self.num_special_tokens_to_add(b is not None) if add_special_tokens else 0
            excess = len(a) + len(b or ()) + special - max_length
            if excess > 0:
                a, b = self._truncate(a, b, excess, truncation)
        ids_a = self.convert_tokens_to_ids([piece.token for piece in a])
        ids_b = None if b is None else self.convert_tokens_to_ids([piece.token for piece in b])
        offsets_a, offsets_b = [[(piece.start, piece.end) for piece in side or ()] for side in (a, b)]
        if add_special_tokens:
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
        }

    def _truncate(
        self, a: list[Piece], b: list[Piece] | None, excess: int, strategy: str
    ) -> tuple[list[Piece], list[Piece] | None]:
        """Take `excess` pieces from the end of the texts (from the start if `truncation_side` is "left")."""
        from_a = from_b = 0
        if strategy == "longest_first" and b is not None:
            # First from the longer one until both are equally long, then from both in turn.
            from_longer = min(abs(len(a) - len(b)), excess)
            rest = excess - from_longer
            from_a, from_b = rest // 2, rest - rest // 2
            if len(a) > len(b):
                from_a += from_longer
            else:
                from_b += from_longer
        elif strategy in ("longest_first", "only_first"):
            from_a = excess if excess < len(a) else 0
        elif b is not None:
            from_b = excess if excess < len(b) else 0
        if from_a + from_b < excess:
            warnings.warn(
                f"truncation={strategy!r} cannot remove {excess} tokens from texts of {len(a)} and {len(b or ())}: "
                "they stay longer than max_length. Raise max_length or use another strategy",
                stacklevel=6,
            )

        def cut(pieces: list[Piece], count: int) -> list[Piece]:
            return pieces[count:] if self.truncation_side == "left" else pieces[: max(len(pieces) - count, 0)]

        return cut(a, from_a), None if b is None else cut(b, from_b)

    def _pad(self, row: dict[str, list], count: int) -> dict[str, list]:
        fillers = {
            "input_ids": self.pad_token_id,
            "token_type_ids": self.pad_token_type_id,
            "attention_mask": 0,
            "special_tokens_mask": 1,
            "offset_mapping": (0, 0),
        }
        if self.padding_side == "left":
            return {name: [fillers[name]] * count + values for name, values in row.items()}
        return {name: values + [fillers[name]] * count for name, values in row.items()}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to words, and words with spaces."""
        return " ".join(tokens).replace(" ##", "").strip()

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        # Added tokens stand apart, so that a piece that follows one is not glued to it.
        apart = self.added_tokens_encoder.keys() - set(self.all_special_tokens)
        apart |= {token for token in self.additional_special_tokens if token not in self.vocab}
        parts = []
        for is_apart, group in groupby(tokens, key=lambda token: token in apart):
            words = list(group)
            parts += words if is_apart else [self.convert_tokens_to_string(words)]
        return " ".join(parts)

    def _constructor_arguments(self) -> dict[str, Any]:
        never_split = sorted(self.never_split) if self.never_split else None
        own = {"do_basic_tokenize": self.do_basic_tokenize, "never_split": never_split}
        return {**super()._constructor_arguments(), **own}


class RealmTokenizerFast(BaseTokenizer):
    """The same tokenizer on the Rust library `tokenizers`. Several threads can use one: they encode one after another.

    Args:
        vocab_file: text file with one piece a line; or else
        tokenizer_file: the library's own `tokenizer.json`, of which the vocabulary and added tokens are read.
        others: as for `RealmTokenizer`; `never_split` and `do_basic_tokenize` have no effect here.

    Raises FileNotFoundError without a file, ValueError for an empty vocabulary or one without the special tokens.
    """

    is_fast = True

    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        tokenizer_file: str | os.PathLike | None = None,
        do_lower_case: bool = True,
        unk_token: str | AddedToken = "[UNK]",
        sep_token: str | AddedToken = "[SEP]",
        pad_token: str | AddedToken = "[PAD]",
        cls_token: str | AddedToken = "[CLS]",
        mask_token: str | AddedToken = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        **others,
    ):
        if vocab_file is not None:
            vocab = load_vocab(vocab_file)
        elif tokenizer_file is not None:
            vocab, added = read_tokenizer_json(tokenizer_file)
            others = {"added_tokens_decoder": added, **others}
        else:
            raise ValueError("RealmTokenizerFast needs a vocab_file or a tokenizer_file")
        super().__init__(
            vocab,
            do_lower_case=do_lower_case,
            tokenize_chinese_chars=tokenize_chinese_chars,
            strip_accents=strip_accents,
            special_tokens={
                "unk_token": unk_token,
                "sep_token": sep_token,
                "pad_token": pad_token,
                "cls_token": cls_token,
                "mask_token": mask_token,
            },
            **others,
        )
        self.backend_tokenizer = self._build()

    def _build(self) -> Tokenizer:
        tokenizer = Tokenizer(
            models.WordPiece(self.vocab, unk_token=self.unk_token, max_input_chars_per_word=MAX_WORD_CHARACTERS)
        )
        # The library's stubs leave out the setters of these four.
        tokenizer.normalizer = normalizers.BertNormalizer(  # pyright: ignore[reportAttributeAccessIssue]
            clean_text=True,
            handle_chinese_chars=self.tokenize_chinese_chars,
            strip_accents=self.strip_accents,
            lowercase=self.do_lower_case,
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{self.cls_token}:0 $A:0 {self.sep_token}:0",
            pair=f"{self.cls_token}:0 $A:0 {self.sep_token}:0 $B:1 {self.sep_token}:1",
            special_tokens=[(self.cls_token, self.cls_token_id), (self.sep_token, self.sep_token_id)],
        )
        tokenizer.decoder = decoders.WordPiece(prefix="##")  # pyright: ignore[reportAttributeAccessIssue]
        for index, token in self.added_tokens_decoder.items():  # by rising id: the library numbers new ones in order
            (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
            if tokenizer.token_to_id(token.content) != index:
                raise ValueError(f"added token {token.content!r} cannot have id {index}: ids must leave no gap")
        return tokenizer

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text or pair. Raises ValueError if it is not a str."""
        if not isinstance(text, str):
            raise ValueError(f"tokenize() takes one str, not a {type(text).__name__}: {text!r}")
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def _encode_batch(
        self,
        pairs: list[tuple[str, str | None]],
        fields: list[str],
        add_special_tokens: bool,
        padding: str,
        truncation: str,
        max_length: int,
    ) -> tuple[dict[str, list], list | None]:
        # The library counts a lone surrogate as three characters to drop: U+FFFD is one, and dropped as well.
        texts = [
            SURROGATE.sub("\ufffd", first)
            if second is None
            else (SURROGATE.sub("\ufffd", first), SURROGATE.sub("\ufffd", second))
            for first, second in pairs
        ]
        try:
            with ENCODING:
                self._set_lengths(padding, truncation, max_length)
                encodings = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        except Exception as error:  # the library raises no narrower class
            if "Truncation error" not in str(error):
                raise
            raise ValueError(
                f"truncation={truncation!r} cannot shorten the texts to max_length={max_length}: "
                "raise max_length or use another strategy"
            ) from error
        attributes = {"input_ids": "ids", "token_type_ids": "type_ids", "offset_mapping": "offsets"}
        rows = {name: [getattr(e, attributes.get(name, name)) for e in encodings] for name in fields}
        return rows, encodings

    def _set_lengths(self, padding: str, truncation: str, max_length: int) -> None:
        """Within `ENCODING`, until it has encoded."""
        tokenizer = self.backend_tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if truncation != "do_not_truncate":
            tokenizer.enable_truncation(max_length, strategy=truncation, direction=self.truncation_side)
        if padding != "do_not_pad":
            tokenizer.enable_padding(
                length=max_length if padding == "max_length" else None,
                direction=self.padding_side,
                pad_id=self.pad_token_id,
                pad_token=self.pad_token,
                pad_type_id=self.pad_token_type_id,
            )

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to words, and words with spaces."""
        with ENCODING:
            return self.backend_tokenizer.decoder.decode(tokens)

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        self.convert_ids_to_tokens(ids)  # the library would pass over ids out of range
        with ENCODING:
            return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    @classmethod
    def _vocabulary_file(cls, folder: Path) -> dict[str, Path]:
        if not (folder / "vocab.txt").is_file() and (folder / "tokenizer.json").is_file():
            return {"tokenizer_file": folder / "tokenizer.json"}
        return super()._vocabulary_file(folder)

    def save_pretrained(self, save_directory: str | os.PathLike) -> tuple[str, ...]:
        """Write a folder that `from_pretrained`, here and in transformers, reads; returns the paths of its files."""
        paths = super().save_pretrained(save_directory)
        path = Path(save_directory) / "tokenizer.json"
        with ENCODING:
            self.backend_tokenizer.no_truncation()
            self.backend_tokenizer.no_padding()
            content = self.backend_tokenizer.to_str(pretty=True)
        write_text(path, content)
        return (*paths, str(path))
