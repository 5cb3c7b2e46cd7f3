"""Where words begin and end: wordpieces cut words, answers do not.

A word is what the tokenizer makes wordpieces of: letters, digits, marks and symbols side by side, and what it drops
between them; a punctuation character is one by itself. Where spaces do not part words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese), and in Korean, which writes particles to its words, one letter is a word: an answer is then as wide as
its span. A letter is never cut: it is a grapheme cluster, with its marks, joiners and modifiers (Unicode annex 29).
"""

from __future__ import annotations

import functools

from tokenizers import Regex, pre_tokenizers

from .wordpiece import character_kind

LINKERS = "\u1039\u17d2\u1a60"  # signs that bind the next letter of Burmese, Khmer and Tai Tham below theirs
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),  # Burmese
    (0x1780, 0x17FF), (0x19E0, 0x19FF),  # Khmer
    (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0xAA80, 0xAADF),  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    (0x1100, 0x11FF), (0x3130, 0x318F), (0xA960, 0xA97F), (0xAC00, 0xD7FF), (0xFFA0, 0xFFDC),  # Hangul
    (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x312F), (0x31A0, 0x31FF), (0xFF66, 0xFF9F),  # kana and its kin
    (0x20000, 0x3FFFF),  # ideographs, of which BERT knows only the first extensions
)  # fmt: skip

_CLUSTERS = pre_tokenizers.Split(Regex(r"\X"), "isolated")


def whole_words(text: str, first: int, last: int) -> tuple[int, int]:
    """Widen text[first:last] to the words that it begins and ends in."""
    touched = [(start, end) for start, end in words(text) if start < last and end > first]
    # Letters newer than this Python's tables are in no word, and the library makes wordpieces of them all the same.
    return min([first, *(start for start, _ in touched)]), max([last, *(end for _, end in touched)])


def words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word, in characters."""
    found: list[tuple[int, int]] = []
    previous = "space"
    for _, (start, end) in _CLUSTERS.pre_tokenize_str(text):
        kind = _cluster_kind(text[start:end])
        if kind == "control":  # the tokenizer drops it, and what stands around it is one word
            continue
        if kind == previous and (kind == "letter" or (kind == "unspaced" and text[found[-1][1] - 1] in LINKERS)):
            found[-1] = (found[-1][0], end)
        elif kind != "space":
            found.append((start, end))
        previous = kind
    return found


@functools.lru_cache(maxsize=4096)  # a text has few different ones
def _cluster_kind(cluster: str) -> str:
    """BERT's class of a grapheme cluster's base, but "unspaced" for letters that are words by themselves."""
    base = next((char for char in cluster if character_kind(char) != "control"), cluster[0])
    kind = character_kind(base)
    is_alone = kind == "cjk" or (kind == "letter" and any(low <= ord(base) <= high for low, high in UNSPACED))
    return "unspaced" if is_alone else kind
