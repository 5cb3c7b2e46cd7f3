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

Where they are stricter than transformers, and what they leave out, is listed in docs/differences.md.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from realm_min.files.unknown_names import warn_of_unknown
from realm_min.kinds import checked
from realm_min.text.calls import CALL, CallOptions, Coded, Pair, refuse_left_out
from realm_min.text.special_tokens import Token
from realm_min.text.tokenizer_files import (
    SURROGATE,
    added_token_fields,
    as_added_token,
    load_vocab,
    read_tokenizer_json,
)
from realm_min.text.tokenizer_surface import TokenizerSurface
from realm_min.text.wordpiece import (
    MAX_WORD_CHARACTERS,
    Sought,
    find_tokens,
    lower_characters,
    sought,
    split_punctuation,
    split_words,
    strip_accents,
    wordpiece,
)

# Held around each call of the library: it keeps settings from one call to the next, and refuses to change them while
# another thread reads them. By hand it is held while tokens are added, and while they are gathered for a text.
ENCODING = threading.RLock()
MOST_ADDED = 5000  # tokens that the library takes in within a second


Named = str | dict | AddedToken | None  # a special token, as callers and folders give it


class Piece(NamedTuple):
    """A token and its place in the text, in characters."""

    token: str
    start: int
    end: int


class RealmTokenizer(TokenizerSurface):
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

    @checked
    def __init__(
        self,
        vocab_file: str | os.PathLike,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: Named = "[UNK]",
        sep_token: Named = "[SEP]",
        pad_token: Named = "[PAD]",
        cls_token: Named = "[CLS]",
        mask_token: Named = "[MASK]",
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
        self._longest_piece = max(map(len, self.pieces))
        self._unknown = self.unk_token  # of words, whatever unk_token is set to
        check_words(self.added_tokens_decoder.values())

    def special_tokens_changed(self) -> None:
        """The tokens to find in a text are gathered anew before the next one."""
        with ENCODING:  # after one that gathered what was before
            self._sought: tuple[Sought, Sought, set[str]] | None = None

    def _gathered(self) -> tuple[Sought, Sought, set[str]]:
        """What is not lower-cased in a text, the added tokens, and the words that are not split."""
        if (found := self._sought) is not None:
            return found
        with ENCODING:
            special, added = self.all_special_tokens, self.added_tokens_decoder.values()
            as_written = [*special, *(token.content for token in added if not token.special and token.normalized)]
            by_length = sorted(self.added_tokens_encoder, key=len, reverse=True)  # the longest that matches wins
            self._sought = found = sought(as_written), sought(by_length), self.never_split.union(special)
            return found

    def add(self, tokens: list[Token], special: bool) -> int:
        special_ones, new = set(self.all_special_tokens), {}
        for given in tokens:
            is_known = isinstance(given, str) and given in special_ones
            token = as_added_token(given, special=special or is_known)
            if isinstance(given, str) and given in self.added_tokens_encoder:
                continue
            if self.do_lower_case and token.normalized and not token.special:
                token = as_added_token({**added_token_fields(token), "content": token.content.lower()}, special=False)
            new[token.content] = token
        check_words(new.values())
        unnamed = [token for token in new.values() if token.special and token.content not in special_ones]
        with ENCODING:
            before = len(self)
            for token in new.values():
                self.keep_added({self.id_of(token.content, len(self)): token})
            self.rename({}, [*self.special_tokens_map_extended.get("additional_special_tokens", ()), *unnamed])
            return len(self) - before

    def tokenize(self, text: str, **options: Any) -> list[str]:
        """The tokens of a text, without special tokens around them. Raises ValueError if it is not a str."""
        if not isinstance(text, str):
            raise ValueError(f"tokenize() takes one str, not a {type(text).__name__}: {text!r}")
        refuse_left_out("tokenize", options)
        warn_of_unknown(options, CALL, "tokenize")
        return [piece.token for piece in self._pieces(text)]

    def _pieces(self, text: str) -> list[Piece]:
        as_written, added, whole_words = self._gathered()
        places: Sequence[int] = range(len(text))
        if self.do_lower_case and self.do_basic_tokenize:
            text, places = lower_characters(text, as_written)
        pieces = []
        for start, end, is_added in self._split_added_tokens(text, added):
            if is_added:
                pieces.append(Piece(text[start:end], places[start], places[end - 1] + 1))
                continue
            for word, word_places in self._words(text[start:end], places[start:end], whole_words):
                whole = [(word, 0, len(word))] if word in self.never_split and self.do_basic_tokenize else None
                spelled = whole or wordpiece(word, self.pieces, self._longest_piece)
                for token, first, last in spelled or [(self._unknown, 0, len(word))]:
                    pieces.append(Piece(token, word_places[first], word_places[last - 1] + 1))
        return pieces

    def _split_added_tokens(self, text: str, added: Sought) -> Iterator[tuple[int, int, bool]]:
        """Start and end of the added tokens (True) in a text, and of what stands between them (False)."""
        start = 0
        for first, after in find_tokens(text, added):
            token = self.added_tokens_decoder[self.added_tokens_encoder[text[first:after]]]
            between = text[start:first]
            yield start, start + len(between.rstrip() if token.lstrip else between), False
            yield first, after, True
            start = after
            if token.rstrip:
                start = len(text) - len(text[start:].lstrip())
        yield start, len(text), False

    def _words(self, text: str, places: Sequence[int], whole: set[str]) -> Iterator[tuple[str, Sequence[int]]]:
        """The words of a text with their characters' places; those in `whole` are neither stripped nor split."""
        if not self.do_basic_tokenize:
            for match in re.finditer(r"\S+", text):
                yield match.group(), places[match.start() : match.end()]
            return
        strip = self.do_lower_case if self.strip_accents is None else self.strip_accents
        for word, word_places in split_words(text, places, self.tokenize_chinese_chars):
            # A special token may come to light only now, by the cleaning: "[MA\0SK]".
            if strip and word not in whole:
                word, word_places = strip_accents(word, word_places)
            if word in whole:
                yield word, word_places
            else:
                yield from split_punctuation(word, word_places)

    def encode_batch(
        self, pairs: list[Pair], names: list[str], options: CallOptions, batched: bool
    ) -> tuple[dict[str, list], list | None]:
        coded = [(self._coded(first), None if second is None else self._coded(second)) for first, second in pairs]
        rows = self.padded([self.fields(first, second, options) for first, second in coded], options, batched)
        return {name: [row[name] for row in rows] for name in names}, None

    def _coded(self, text: Any) -> Coded:
        """Ids and offsets of a text, of a list of words, or of a list of ids, which has no offsets."""
        if not isinstance(text, str) and text and isinstance(text[0], int):
            return [(index, (0, 0)) for index in text]
        pieces = [piece for part in ([text] if isinstance(text, str) else text) for piece in self._pieces(part)]
        ids = self.convert_tokens_to_ids([piece.token for piece in pieces])
        return [(index, (piece.start, piece.end)) for index, piece in zip(ids, pieces, strict=True)]

    @checked
    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join pieces to words, and words with spaces."""
        return " ".join(tokens).replace(" ##", "").strip()

    def decode_ids(self, ids: list[int], skip_special_tokens: bool, spaces: bool) -> str:
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        # Added tokens stand apart, so that a piece that follows one is not glued to it.
        apart = self.added_tokens_encoder.keys() - set(self.all_special_tokens)
        apart |= {token for token in self.additional_special_tokens if token not in self.pieces}
        parts = []
        for is_apart, group in groupby(tokens, key=lambda token: token in apart):
            words = list(group)
            parts += words if is_apart else [self.convert_tokens_to_string(words)]
        return (" " if spaces else "").join(parts)

    def constructor_arguments(self) -> dict[str, Any]:
        never_split = sorted(self.never_split) if self.never_split else None
        own = {"do_basic_tokenize": self.do_basic_tokenize, "never_split": never_split}
        return {**super().constructor_arguments(), **own}


class RealmTokenizerFast(TokenizerSurface):
    """The same tokenizer on the Rust library `tokenizers`. Several threads can use one: they encode one after another.

    Args:
        vocab_file: text file with one piece a line; or else
        tokenizer_file: the library's own `tokenizer.json`, of which the vocabulary and added tokens are read.
        others: as for `RealmTokenizer`; `never_split` and `do_basic_tokenize` have no effect here.

    Raises FileNotFoundError without a file, ValueError for an empty vocabulary, one without the special tokens, and
    more than `MOST_ADDED` added tokens.
    """

    is_fast = True
    vocab_files_names = {"vocab_file": "vocab.txt", "tokenizer_file": "tokenizer.json"}

    @checked
    def __init__(
        self,
        vocab_file: str | os.PathLike | None = None,
        tokenizer_file: str | os.PathLike | None = None,
        do_lower_case: bool = True,
        unk_token: Named = "[UNK]",
        sep_token: Named = "[SEP]",
        pad_token: Named = "[PAD]",
        cls_token: Named = "[CLS]",
        mask_token: Named = "[MASK]",
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        **others,
    ):
        if vocab_file is not None:
            pieces = load_vocab(vocab_file)
        elif tokenizer_file is not None:
            pieces, added = read_tokenizer_json(tokenizer_file)
            others = {"added_tokens_decoder": added, **others}
        else:
            raise ValueError("RealmTokenizerFast needs a vocab_file or a tokenizer_file")
        super().__init__(
            pieces,
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
        check_number_of_added(len(self.added_tokens_decoder))
        self.backend_tokenizer = with_added_tokens(self._build(), self.added_tokens_decoder)

    @property
    def vocab(self) -> dict[str, int]:
        """As `get_vocab`."""
        return self.get_vocab()

    @property
    def decoder(self) -> Any:
        """The library's decoder, which joins pieces."""
        return self.backend_tokenizer.decoder

    def _build(self) -> Tokenizer:
        tokenizer = Tokenizer(
            models.WordPiece(self.pieces, unk_token=self.unk_token, max_input_chars_per_word=MAX_WORD_CHARACTERS)
        )
        # The library's stubs leave out the setters of these four.
        tokenizer.normalizer = normalizers.BertNormalizer(  # pyright: ignore[reportAttributeAccessIssue]
            clean_text=True,
            handle_chinese_chars=bool(self.tokenize_chinese_chars),
            strip_accents=None if self.strip_accents is None else bool(self.strip_accents),
            lowercase=bool(self.do_lower_case),
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore[reportAttributeAccessIssue]
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{self.cls_token}:0 $A:0 {self.sep_token}:0",
            pair=f"{self.cls_token}:0 $A:0 {self.sep_token}:0 $B:1 {self.sep_token}:1",
            special_tokens=[(self.cls_token, self.cls_token_id), (self.sep_token, self.sep_token_id)],
        )
        tokenizer.decoder = decoders.WordPiece(prefix="##")  # pyright: ignore[reportAttributeAccessIssue]
        return tokenizer

    def add(self, tokens: list[Token], special: bool) -> int:
        check_number_of_added(len(self.added_tokens_decoder) + len(tokens))
        library, checked = self.backend_tokenizer, [as_added_token(token, special) for token in tokens]
        with ENCODING:
            number = (library.add_special_tokens if special else library.add_tokens)(checked)
            self.keep_added(library.get_added_tokens_decoder())
        return number

    def tokenize(self, text: Any, pair: Any = None, add_special_tokens: bool = False, **options: Any) -> list[str]:
        """The tokens of a text or pair; options as for a call. Raises ValueError if it is not a str."""
        if not isinstance(text, str) and not options.get("is_split_into_words"):
            raise ValueError(f"tokenize() takes one str, not a {type(text).__name__}: {text!r}")
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    def encode_batch(
        self, pairs: list[Pair], names: list[str], options: CallOptions, batched: bool
    ) -> tuple[dict[str, list], list | None]:
        texts = [clean(first) if second is None else (clean(first), clean(second)) for first, second in pairs]
        try:
            with ENCODING:
                self._set_lengths(options)
                encodings = self.backend_tokenizer.encode_batch(
                    texts, is_pretokenized=options.is_split_into_words, add_special_tokens=options.add_special_tokens
                )
        except Exception as error:  # the library raises no narrower class
            if "Truncation error" not in str(error):
                raise
            raise ValueError(
                f"truncation={options.truncation!r} cannot shorten the texts to max_length={options.max_length}: "
                "raise max_length or use another strategy"
            ) from error
        attributes = {"input_ids": "ids", "token_type_ids": "type_ids", "offset_mapping": "offsets"}
        rows = {name: [getattr(e, attributes.get(name, name)) for e in encodings] for name in names if name != "length"}
        if "length" in names:
            rows["length"] = [len(encoding.ids) for encoding in encodings]
        return rows, encodings

    def _set_lengths(self, options: CallOptions) -> None:
        """Within `ENCODING`, until it has encoded."""
        tokenizer, max_length = self.backend_tokenizer, options.max_length
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if options.truncation != "do_not_truncate":
            tokenizer.enable_truncation(max_length, strategy=str(options.truncation), direction=self.truncation_side)
        if options.padding != "do_not_pad":
            tokenizer.enable_padding(
                length=max_length if options.padding == "max_length" else None,
                direction=self.padding_side,
                pad_id=self.pad_token_id,
                pad_token=self.pad_token,
                pad_type_id=self.pad_token_type_id,
                pad_to_multiple_of=options.pad_to_multiple_of,
            )

    @checked
    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """Join pieces to words, and words with spaces."""
        with ENCODING:
            return self.backend_tokenizer.decoder.decode(clean(list(tokens)))

    def decode_ids(self, ids: list[int], skip_special_tokens: bool, spaces: bool) -> str:
        self.convert_ids_to_tokens(ids)  # the library would pass over ids out of range
        with ENCODING:
            return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    @classmethod
    def vocabulary_file(cls, folder: Path) -> dict[str, Path]:
        if not (folder / "vocab.txt").is_file() and (folder / "tokenizer.json").is_file():
            return {"tokenizer_file": folder / "tokenizer.json"}
        return super().vocabulary_file(folder)

    def library_file(self) -> str:
        with ENCODING:
            self.backend_tokenizer.no_truncation()
            self.backend_tokenizer.no_padding()
            return self.backend_tokenizer.to_str(pretty=True)


def check_words(added: Iterable[AddedToken]) -> None:
    """ValueError for a token that is one among whole words alone, which is not done by hand."""
    if any(token.single_word for token in added):
        raise ValueError("added tokens with single_word=True need RealmTokenizerFast")


def clean(text: str | list[str]) -> Any:
    """The library counts a lone surrogate as three characters to drop: U+FFFD is one, and dropped as well."""
    return SURROGATE.sub("\ufffd", text) if isinstance(text, str) else [SURROGATE.sub("\ufffd", word) for word in text]


def check_number_of_added(number: int) -> None:
    """ValueError for so many added tokens that the library would take minutes to take them in."""
    if number > MOST_ADDED:
        raise ValueError(
            f"{number} added tokens: RealmTokenizerFast takes at most {MOST_ADDED}, since its library's time grows "
            "with the square of their number. Use RealmTokenizer, or write them as lines of vocab.txt"
        )


def with_added_tokens(tokenizer: Tokenizer, added: dict[int, AddedToken]) -> Tokenizer:
    """The library's tokenizer with these added, by rising id: it numbers new ones in order."""
    kinds = [token.special for token in added.values()]
    if len(set(kinds)) == 1:
        (tokenizer.add_special_tokens if kinds[0] else tokenizer.add_tokens)(list(added.values()))
    else:  # as one file: one call for each kind in turn would make its tables anew each time
        fields = [{"id": index, **added_token_fields(token)} for index, token in added.items()]
        content = tokenizer.to_str().replace('"added_tokens":[]', f'"added_tokens":{json.dumps(fields)}', 1)
        tokenizer = Tokenizer.from_str(content)
    for index, token in added.items():
        if tokenizer.token_to_id(token.content) != index:
            raise ValueError(f"added token {token.content!r} cannot have id {index}: ids must leave no gap")
    return tokenizer
