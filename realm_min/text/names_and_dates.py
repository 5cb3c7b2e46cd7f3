"""Names and dates of a text, by rule: what REALM hides, since to know it takes knowledge of the world (section 3.4).

The paper takes its names from a tagger trained on CoNLL-2003, and its dates from a regular expression. Rules need no
other model; docs/evaluation.md says how often they agree with one, and how another tagger takes their place.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple

Span = tuple[int, int]  # start and end, in characters of a text or in wordpieces
SpanFinder = Callable[[str], list[Span]]

_MONTH = (
    "(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    "(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\\.?)"
)
_YEAR = r"(?:1\d{3}|20\d{2})"
_ERA = r"(?:BCE?|CE|AD)\b"
_PART = "(?:(?i:early|mid|late)(?:-| ))?"  # of a century or decade
_ORDINAL = (
    r"(?:\d{1,2}(?:st|nd|rd|th)|(?i:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|"
    "thirteenth|fourteenth|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|twenty-first))"
)
_DATE = re.compile(
    (
        rf"\b\d{{1,2}}(?:st|nd|rd|th)? {_MONTH}(?: \(?{_YEAR}\b\)?|\b)"  # 25 August 1825, 25 August (1825), 25 August
        rf"|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:, {_YEAR}\b)?"  # August 25, 1825; August 25
        rf"|\b{_MONTH} {_YEAR}\b"  # August 1825
        rf"|\bAD \d{{1,4}}\b|\b\d{{1,4}} {_ERA}"  # AD 79, 44 BC
        # 19th century, late 19th-century, fifth century BC, 16th and 17th centuries, second millennium
        rf"|\b{_PART}{_ORDINAL}(?: (?:and|or|to|through) (?:the )?{_PART}{_ORDINAL})?(?:-| )"
        rf"(?:century|centuries|millennium|millennia)\b(?: {_ERA})?"
        rf"|\b{_PART}{_YEAR}s\b"  # 1820s, early 1820s
        rf"|\b{_YEAR}\b"  # 1825
    ).replace(" ", "[ \xa0\u2009\u202f]")  # spaces that no line is broken at, and thin ones
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
# What has a capital at the beginning of a sentence, and is no name by itself: common words, and what ends as nouns do
# that are made of others. "France", "Italy", "Beijing" and "Mohammed" are to stay.
_COMMON = re.compile(
    r"(?i:\w*(?:ism|ology|ics|tion|sion|ment|ness|ity|itis|graphy|ship|(?<![jq])ing)|\w*[^aeioux]sis|"
    "one|two|three|four|five|six|seven|eight|nine|ten|half|first|second|third|last|other|others|another|each|every|"
    "everyone|everything|someone|nothing|none|much|more|less|little|few|any|such|what|which|who|why|how|only|even|"
    "today|later|earlier|early|there|people|men|women|children|humans|water|air|music|art|life|death|language|science)"
)
# What follows a name that is the whole subject of a sentence: after an s, which may be a plural's, a verb of one alone.
_OF_ONE = "is|was|has|does|lies|borders"
_OF_ANY = (
    r"had|did|became|began|won|wrote|died|led|held|took|made|gave|grew|went|fought|lost|left|came|saw|built|\w{2,}ed"
)
_VERB, _VERB_OF_ONE = (
    re.compile(rf" (?:also |first |then |later |soon |now |once )?(?:{verbs})\b")
    for verbs in (f"{_OF_ONE}|{_OF_ANY}", _OF_ONE)
)
_OWNER = re.compile("['’]s$")
_INSIDE = re.compile(r"[^\W\d_A-Z][,;]? \Z")  # what a word inside a sentence has before it
_SENTENCE_START = re.compile(r"(?:\A|[.!?:][\"'”’)\]]* |\n)[\"'“‘(\[]*\Z")
# "Capital - name: ", from the beginning of a sentence to its first colon.
_HEADING = re.compile(r"(?:\A|(?<=[.!?] )|(?<=\n))[^.:;!?\n]{1,120}: ")


def salient_spans(text: str) -> list[Span]:
    """Names and dates of a text by rule, (start, end) in characters, in order, none overlapping.

    - A heading is what stands between the beginning of a sentence and a colon, as in "Capital - name: Montevideo."
      Nothing in it is salient.
    - A date: day and month, month and year, or all three, in either order; a year from 1000 to 2099, or of any age with
      AD, BC, CE or BCE; a decade; a century or millennium, two of them, "early", "mid" and "late" before them included.
      Not the year of a figure: "(2025 est.)", "(2023)".
    - A name: words in a row that begin with a capital, small words such as "of" and "de" between them included. Not a
      single letter; not a function word that opens a sentence ("In", "The"). Another word that opens one and stands
      alone has a capital that says nothing: `_is_name` tells.

    It takes English prose with capitals. For other text give a tagger of the same form (`jobs/tagging.py`).
    """
    headings = [match.span() for match in _HEADING.finditer(text)]
    figures = [match.span() for match in _YEAR_OF_FIGURE.finditer(text)]
    dates = []
    for match in _DATE.finditer(text):
        start, end = match.span()
        if not _covers(figures, (start, end)) and not _overlaps(headings, (start, end)):
            dates.append((start, end))
    names, met = [], _met(text)
    for start, end in _gaps(sorted(headings + figures + dates), len(text)):
        names += _names(text, start, end, met)
    return sorted(dates + names)


def _gaps(spans: list[Span], length: int) -> list[Span]:
    """What `spans`, in order, leave of 0..length."""
    gaps, at = [], 0
    for start, end in spans:
        if at < start:
            gaps.append((at, start))
        at = max(at, end)
    return [*gaps, (at, length)]


def _names(text: str, start: int, end: int, met: _Met) -> list[Span]:
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
            # What follows a heading is no sentence.
            elif first == last and not opening[0].startswith(":") and not _is_name(text, words[first], met):
                continue
        if first <= last and words[last][1] - words[first][0] > 1:
            names.append((words[first][0], words[last][1]))
    return names


class _Met(NamedTuple):
    """Words of a text: with a capital inside a sentence, and in small letters."""

    inside: set[str]
    small: set[str]


def _met(text: str) -> _Met:
    found = _Met(set(), set())
    for match in _WORD.finditer(text):
        word = _OWNER.sub("", match[0])
        if not word[0].isupper():
            found.small.update((word, word.removesuffix("s"), word.removesuffix("es")))
        elif _INSIDE.search(text, max(0, match.start() - 3), match.start()):
            found.inside.add(word)
    return found


def _is_name(text: str, word: Span, met: _Met) -> bool:
    """Whether a word that opens a sentence, and stands alone with its capital, is a name.

    It is if it has the capital inside a sentence, too. If not, it is one where it owns something, or is the subject of
    a verb, but for common words, and those that the text has in small letters elsewhere. "Venus is a planet" and "Glass
    is a solid" cannot be told apart so: both are taken for names.
    """
    spelled = text[slice(*word)]
    name = _OWNER.sub("", spelled)
    if name in met.inside:
        return True
    if _COMMON.fullmatch(name) or name.lower() in met.small:
        return False
    return name != spelled or bool((_VERB_OF_ONE if name.endswith("s") else _VERB).match(text, word[1]))


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
