"""Names and dates of a text, by rule: what REALM hides, since to know it takes knowledge of the world (section 3.4).

The paper takes its names from a tagger trained on CoNLL-2003, and its dates from a regular expression. Rules need no
other model; docs/evaluation.md says how often they agree with one, and how another tagger takes their place.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable

Span = tuple[int, int]  # start and end, in characters of a text or in wordpieces
SpanFinder = Callable[[str], list[Span]]

_MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    "(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\\.?)"
)
_YEAR = r"(?:1\d{3}|20\d{2})"
_DATE = re.compile(
    rf"\b\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}(?: \(?{_YEAR}\b\)?|\b)"  # 25 August 1825, 25 August (1825), 25 August
    rf"|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:, {_YEAR}\b)?"  # August 25, 1825; August 25
    rf"|\b{_MONTH} {_YEAR}\b"  # August 1825
    rf"|\b{_YEAR}s?\b"  # 1825, 1820s
)
# The year of a figure, "23.9% (2025 est.)" or "57% (2023)", tells nothing of the world.
_YEAR_OF_FIGURE = re.compile(rf"\({_YEAR}(?:[-/]\d{{2,4}})?(?: est\.?)?\)|\b{_YEAR}(?:[-/]\d{{2,4}})? est\b")

# U.S.; Côte, d'Ivoire, Guinea-Bissau; not CO of CO2. Without a limit n initials would take n² steps.
_WORD = re.compile(r"(?<!\w)(?:(?:[^\W\d_]\.){2,20}|[^\W\d_]+(?:[-'’][^\W\d_]+)*)(?!\w)")
# Written small inside a name: "Bay of Bengal", "Rio de Janeiro".
_JOINING = frozenset("of the de del della do dos da di du des la le las los el al bin ibn van von der den".split())
# A full stop after these ends no sentence: the name goes on.
_SHORTENED = frozenset("St Mt Ft Dr Mr Mrs Ms Gen Col Sgt Capt Maj Adm Rev Sen Gov".split())
# Capitalised where a sentence begins, and no part of the name that follows.
_OPENING = frozenset(
    "a an the this that these those his her its their our my in on at by from to for with of after before during since "
    "until under over between among when while where although though because if as and or but nor so yet it he she "
    "they we i you there here both all most many some several no not also however then thus".split()
)
_SENTENCE_START = re.compile(r"(?:\A|[.!?:][\"'”’)\]]* |\n)[\"'“‘(\[]*\Z")
# "Capital - name: ", from the beginning of a sentence to its first colon.
_HEADING = re.compile(r"(?:\A|(?<=[.!?] )|(?<=\n))[^.:;!?\n]{1,120}: ")


def salient_spans(text: str) -> list[Span]:
    """Names and dates of a text by rule, (start, end) in characters, in order, none overlapping.

    - A heading is what stands between the beginning of a sentence and a colon, as in "Capital - name: Montevideo."
      Nothing in it is salient.
    - A date: day and month, month and year, or all three, in either order; a year from 1000 to 2099; a decade. Not the
      year of a figure: "(2025 est.)", "(2023)".
    - A name: words in a row that begin with a capital, small words such as "of" and "de" between them included. Not a
      single letter; not a function word that opens a sentence ("In", "The"), nor any other word that opens one and
      stands alone, since its capital says nothing.

    It takes English prose with capitals. For other text pass a tagger of the same form to `salient_span`.
    """
    headings = [match.span() for match in _HEADING.finditer(text)]
    figures = [match.span() for match in _YEAR_OF_FIGURE.finditer(text)]
    dates = []
    for match in _DATE.finditer(text):
        start, end = match.span()
        if not _covers(figures, (start, end)) and not _overlaps(headings, (start, end)):
            dates.append((start, end))
    names = []
    for start, end in _gaps(sorted(headings + figures + dates), len(text)):
        names += _names(text, start, end)
    return sorted(dates + names)


def _gaps(spans: list[Span], length: int) -> list[Span]:
    """What `spans`, in order, leave of 0..length."""
    gaps, at = [], 0
    for start, end in spans:
        if at < start:
            gaps.append((at, start))
        at = max(at, end)
    return [*gaps, (at, length)]


def _names(text: str, start: int, end: int) -> list[Span]:
    """Capitalised runs in text[start:end]."""
    words = [match.span() for match in _WORD.finditer(text, start, end)]
    names: list[Span] = []
    i = 0
    while i < len(words):
        if not text[words[i][0]].isupper():
            i += 1
            continue
        first = last = i  # of the run's capitalised words
        while i + 1 < len(words) and _joined(text, words[i], words[i + 1]):
            i += 1
            if text[words[i][0]].isupper():
                last = i
            elif text[slice(*words[i])] not in _JOINING:
                break
        i = last + 1
        if opening := _SENTENCE_START.search(text, max(0, words[first][0] - 6), words[first][0]):
            if text[slice(*words[first])].lower() in _OPENING:
                first = next((j for j in range(first + 1, last + 1) if text[words[j][0]].isupper()), last + 1)
            elif first == last and not opening[0].startswith(":"):  # what follows a heading is no sentence
                continue
        if first <= last and words[last][1] - words[first][0] > 1:
            names.append((words[first][0], words[last][1]))
    return names


def _joined(text: str, word: Span, following: Span) -> bool:
    """Whether two neighbouring words may belong to one name: "John Smith", "J. Smith", "St. Kitts"."""
    between, first = text[word[1] : following[0]], text[slice(*word)]
    return between == " " or (between == ". " and (len(first) == 1 or first in _SHORTENED))


def _covers(spans: list[Span], span: Span) -> bool:
    """Whether one of `spans`, in order and none overlapping, holds all of `span`."""
    place = bisect_right(spans, span[0], key=lambda other: other[0]) - 1
    return place >= 0 and span[1] <= spans[place][1]


def _overlaps(spans: list[Span], span: Span) -> bool:
    """Whether one of `spans`, in order and none overlapping, holds some of `span`."""
    place = bisect_left(spans, span[1], key=lambda other: other[0]) - 1
    return place >= 0 and span[0] < spans[place][1]
