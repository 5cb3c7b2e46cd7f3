"""BERT's basic tokenization and WordPiece by hand: pure functions from characters to vocabulary pieces.

Each function passes the characters' places along: `places[i]` is the index in the caller's text of the character that
character i comes from. Lower-casing and decomposition may make several characters of one, so a token's offsets are
(places[first], places[last] + 1).
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

MAX_WORD_CHARACTERS = 100  # longer words become [UNK]


@functools.lru_cache(maxsize=1 << 16)
def character_kind(char: str) -> str:
    """BERT's classes: "control" (to be dropped), "space", "cjk", "punctuation", and "letter" for all the rest."""
    code = ord(char)
    category = unicodedata.category(char)
    if char in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return "space"
    if code == 0xFFFD or category.startswith("C"):
        return "control"
    if (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    ):
        return "cjk"
    # BERT counts all ASCII that is neither letter, digit nor space as punctuation, symbols like $ and ^ too.
    if category.startswith("P") or (code < 128 and not char.isalnum()):
        return "punctuation"
    return "letter"


class Sought(NamedTuple):
    """Tokens to find in texts: each with its place in their order, and their lengths by first character."""

    rank: dict[str, int]
    lengths: dict[str, set[int]]


def sought(tokens: Iterable[str]) -> Sought:
    """For `find_tokens`; of the tokens that begin at one place of a text, it finds the first of these."""
    rank = {token: place for place, token in reversed(list(enumerate(tokens)))}
    lengths: dict[str, set[int]] = {}
    for token in rank:
        lengths.setdefault(token[0], set()).add(len(token))
    return Sought(rank, lengths)


def find_tokens(text: str, tokens: Sought) -> Iterator[tuple[int, int]]:
    """Start and end of each token in a text, from the left; the time does not grow with how many are sought."""
    end = 0
    for start in [place for place, char in enumerate(text) if char in tokens.lengths]:
        if start < end:
            continue
        here = {text[start : start + length] for length in tokens.lengths[text[start]]} & tokens.rank.keys()
        if here:
            end = start + len(min(here, key=tokens.rank.__getitem__))
            yield start, end


def lower_characters(text: str, keep: Sought | None) -> tuple[str, Sequence[int]]:
    """Lower-case character by character (so that sigma never takes its final form), except the tokens of `keep`."""
    parts: list[str] = []
    end = 0
    for start, after in find_tokens(text, keep) if keep else ():
        parts += [char.lower() for char in text[end:start]]
        parts += text[start:after]
        end = after
    parts += [char.lower() for char in text[end:]]
    lowered = "".join(parts)
    if len(lowered) == len(text):  # nearly always; İ is one that becomes two characters
        return lowered, range(len(text))
    return lowered, [place for place, part in enumerate(parts) for _ in part]


def split_words(text: str, places: Sequence[int], split_cjk: bool) -> Iterator[tuple[str, list[int]]]:
    """Drop control characters and cut at white space; with `split_cjk`, each CJK character is a word by itself."""
    word: list[str] = []
    word_places: list[int] = []
    for char, place in zip(text, places, strict=True):
        kind = character_kind(char)
        if kind == "control":
            continue
        alone = kind == "cjk" and split_cjk
        if word and (alone or kind == "space"):
            yield "".join(word), word_places
            word, word_places = [], []
        if alone:
            yield char, [place]
        elif kind != "space":
            word.append(char)
            word_places.append(place)
    if word:
        yield "".join(word), word_places


def strip_accents(word: str, places: list[int]) -> tuple[str, list[int]]:
    """Decompose canonically (NFD) and drop the non-spacing marks."""
    if word.isascii():
        return word, places
    parts: list[tuple[str, bool]] = []  # (character, whether it is the first that comes from its place)
    previous = None
    for char, place in zip(word, places, strict=True):
        for part in unicodedata.normalize("NFD", char):
            parts.append((part, place != previous))
            previous = place
    # Canonical order: each run of combining characters by combining class; the sort is stable. As in the library, the
    # places do not move with the characters.
    ordered: list[tuple[str, bool]] = []
    for is_run, run in itertools.groupby(parts, key=lambda part: unicodedata.combining(part[0]) > 0):
        ordered += sorted(run, key=lambda part: unicodedata.combining(part[0])) if is_run else list(run)  # noqa: B031
    distinct = list(dict.fromkeys(places))
    current = itertools.accumulate(is_first for _, is_first in ordered)
    letters = [
        (part, distinct[max(count, 1) - 1])
        for (part, _), count in zip(ordered, current, strict=True)
        if unicodedata.category(part) != "Mn"
    ]
    return "".join(part for part, _ in letters), [place for _, place in letters]


def split_punctuation(word: str, places: list[int]) -> Iterator[tuple[str, list[int]]]:
    """Each punctuation character is a word by itself."""
    start = 0
    for i, char in enumerate(word):
        if character_kind(char) == "punctuation":
            if start < i:
                yield word[start:i], places[start:i]
            yield char, places[i : i + 1]
            start = i + 1
    if start < len(word):
        yield word[start:], places[start:]


def wordpiece(word: str, vocab: dict[str, int], longest: int) -> list[tuple[str, int, int]] | None:
    """Spell a word greedily with the longest pieces of the vocabulary, from the left; later pieces start with ##.

    Args:
        longest: length of the vocabulary's longest piece, which bounds the search.

    Returns the pieces with their start and end in the word, or None where the vocabulary cannot spell the word or the
    word is longer than 100 characters: the caller's [UNK].
    """
    if len(word) > MAX_WORD_CHARACTERS:
        return None
    pieces = []
    start = 0
    while start < len(word):
        prefix = "##" if start else ""
        for end in range(min(len(word), start + longest), start, -1):
            if prefix + word[start:end] in vocab:
                break
        else:
            return None
        pieces.append((prefix + word[start:end], start, end))
        start = end
    return pieces
