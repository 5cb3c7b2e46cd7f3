"""Training questions made from the CIA World Factbook's own fields, phrased as people type them into a search box.

The Factbook says "Government type: parliamentary republic."; WebQuestions (Berant et al. 2013) asks "what kind of
government does italy have?". A `Kind` joins the two: a field, the spans of its value that answer, and phrasings in
which `(a|b)` is a choice, {c} the country as people name it and {adj} its adjective. Each kind's weight is its mean
number of questions a country: kinds that WebQuestions asks for often come often, and the long tail stays. An answer is
kept only if it is a span of at most 10 wordpieces of some block of the country's page, since a reader can learn no
other (ORQA's weak supervision, Lee et al. 2019, section 6).

`factbook_slice` selects the questions of a file that such pages can answer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.resources import files as package_files
from typing import Any, NamedTuple

from realm_min.files.atomic import write_atomically
from realm_min.jobs.evaluation import Question, normalize_answer
from realm_min.text.corpus import Block, cut_blocks, factbook_documents, record
from realm_min.text.tokenizer import RealmTokenizerFast

MAX_ANSWER_WORDPIECES = 10  # max_span_width: the reader scores no wider span

Page = dict[str, str]  # field as it stands in the text ("Capital - name") to its value


class TrainingQuestion(NamedTuple):
    question: str
    answers: list[str]  # each right, the first the best known
    title: str  # of the country's page
    field: str  # as its line in the page begins: a block that holds f"{field}:" holds the answer in its context


class Kind(NamedTuple):
    field: str
    weight: float  # mean number of questions a country
    answers: Callable[..., list]  # value of the field to spans of it; of an item kind, value and title to (item, spans)
    phrasings: str  # parted by " / "


# ---- values to answers


def _plain(text: str) -> str:
    """Text without what stands in brackets, nested ones included."""
    while text != (text := re.sub(r"\s*\([^()]*\)|\s*\[[^\[\]]*\]", "", text)):
        pass
    return text.split("(")[0].strip()


_SHARE = re.compile(
    r"(?:,| -)? ?(?:more than |less than |approximately |about |nearly |over |almost |estimated |~|<|>)*"
    r"\d[\d.,-]*(?: ?%| km\b).*"
)
_VAGUE = re.compile(
    r"(?:other|none|unspecified|unknown|no |note|na\b|n/a|various|some|many|small|mostly|mainly|and other"
    r"|overwhelmingly|undeclared|unaffiliated|refused|not |data|each|foreign|includ|the rest|also)",
    re.IGNORECASE,
)


def _items(value: str) -> list[str]:
    """["Ukrainian", "Russian"] of "Ukrainian (official) 67.5%, Russian (regional language) 29.6%, other 2.9%"."""
    items = []
    for item in re.split(r"[;,] |: |\.$", _plain(value.split("; note")[0])):
        item = _SHARE.sub("", item).strip(" .*")
        item = re.sub(r"^(?:and|or|especially|notably|particularly|predominantly|largely) ", "", item)
        if item and not _VAGUE.match(item) and item not in items and re.search(r"[^\W\d]", item):
            items.append(item)
    return items


def _first(value: str) -> list[str]:
    return _items(value)[:1]


def _capitals(value: str) -> list[str]:
    """["Pretoria", "Cape Town"] of "Pretoria (administrative capital); Cape Town (legislative capital)"."""
    names = [_plain(part).strip() for part in value.split("; ")]
    return [name for name in names if name[:1].isupper() and len(name) < 40]


def _clause(value: str) -> list[str]:
    """["desert"] of "desert; hot, dry summers"."""
    clause = re.split(r"[;:]|\. ", _plain(value))[0].strip(" .")
    return [clause] if clause and not _VAGUE.match(clause) else []


def _number(value: str) -> list[str]:
    """["603,550 sq km"] of "603,550 sq km (2024 est.)"."""
    number = re.split(r"[;(]|, | - ", value)[0].strip(" .")
    return [number] if re.search(r"\d", number) and len(number) < 60 else []


def _bare(value: str) -> list[str]:
    """["152"] of "152 (2025)"."""
    return re.findall(r"^\$?-?\d[\d.,]*\d|^\d", value)[:1]


def _percent(value: str) -> list[str]:
    return re.findall(r"\d[\d.]*%", value)[:1]


def _money(value: str) -> list[str]:
    return re.findall(r"\$\d[\d.,]*(?: (?:million|billion|trillion))?", value)[:1]


def _year(value: str) -> list[str]:
    return re.findall(r"\b1\d{3}\b|\b20\d\d\b", value.split(";")[0])[:1]


def _date(value: str) -> list[str]:
    return re.findall(r"\b\d{1,2} [A-Z][a-z]+ \d{4}", value)[:1] or _year(value)


def _latest_date(value: str) -> list[str]:
    return _date(value.partition("latest")[2])


def _day(value: str) -> list[str]:
    return re.findall(
        r"\b\d{1,2} (?:January|February|March|April|May|June|July|August|September|October|November|December)", value
    )[:1]


def _quoted(value: str) -> list[str]:
    return [title.strip(' ,."') for title in re.findall(r'["“]([^"”]+)["”]', value)][:4]


def _currency(value: str) -> list[str]:
    """["euro", "euros"] of "euros (EUR) per US dollar -": pages speak of both, WebQuestions of one."""
    names = [name.removesuffix(" per US dollar") for name in re.split(r" or |; ", _plain(value.split(" per US")[0]))]
    names = [name.strip(" .-").removesuffix(" yuan") for name in names if re.search(r"[^\W\d]", name)]
    singular = [re.sub(r"(?<=[^s])s$", "", name) for name in names]
    return [*dict.fromkeys(singular + names)]


def _government(value: str) -> list[str]:
    """The form as WebQuestions names it: "constitutional monarchy" of "parliamentary constitutional monarchy"."""
    value = value.lower()
    if "monarchy" in value:
        return [form for form in ("constitutional monarchy", "absolute monarchy") if form in value] or _clause(value)
    if "theocratic" in value:  # its long name has the words: Islamic Republic of Iran
        return ["islamic republic"]
    forms = ["federal republic"] if "federal" in value else []
    forms += [form for form in ("parliamentary republic", "communist state", "dictatorship") if form in value]
    return forms or [form for form in ("republic", "democracy") if form in value][:1] or _clause(value)


def _languages(value: str) -> list[str]:
    """["Persian Farsi", "Persian", "Farsi", "Kurdish"] of "Persian Farsi (official), Kurdish"."""
    items = [re.sub(r"^.*(?:include|including|are|also) ", "", item) for item in _items(value)]
    items = [item for item in items if not re.search(r"\d|\bis\b|dialects|languages", item)]
    parts = [part for item in items for part in (item, *re.split(r" or |/| and ", item))]
    return [*dict.fromkeys(parts), *(["Persian"] if "Persian Farsi" in parts else [])]


_FAITHS = {
    "muslim": "Islam",
    "christian": "Christianity",
    "jewish": "Judaism",
    "buddhist": "Buddhism",
    "hindu": "Hinduism",
}


def _religions(value: str) -> list[str]:
    """["Muslim", "Islam"] of "Muslim (predominantly Sunni) 90%": WebQuestions names the faith, a page sometimes."""
    return [name for item in _items(value) for name in (item, _FAITHS.get(item.lower())) if name]


def _main_religion(value: str) -> list[str]:
    return _religions(", ".join(_first(value)))


def _sample_language(value: str) -> list[str]:
    return re.findall(r"\(([A-Z][a-z]+ [A-Z][a-z]+)\)", value)


def _official(value: str) -> list[str]:
    languages = re.split(r"[;,] (?![^()]*\))", value)
    return [item for language in languages if "official" in language for item in _languages(language)[:2]]


_TITLE_WORD = re.compile(
    r"(?:President|Prime|Minister|King|Queen|Emir|Amir|Sultan|Grand|Duke|Prince|Princess|Premier|Chancellor|Governor"
    r"|General|Chairman|Chairperson|Interim|Acting|Transitional|Vice|Chief|Executive|Federal|Council|State|Affairs"
    r"|Lieutenant|Captain|Administrator|Commissioner|Taoiseach|Pope|High|Supreme|Leader|Head|First|Councilor|Territorial"
    r"|Mr|Dr|Emperor|Ambassador|Consul|Charge|Former|GNU|GNS|Sheikh|Shaykh|Crown|Paramount|Ruler|Ulu|o|le|Ao|Tui|Assembly|Government|Secretary|Cardinal|Archbishop"
    r"|Speaker|Mayor|Presidency|Sovereign|Self-declared|Representative|Co-prince|Superior|Regional|Lord|Bailiff|[a-z]+)[.,]?"
)


def _person(value: str) -> list[str]:
    """["Xi JINPING"] of "President Xi JINPING (since 14 March 2013)"."""
    words = re.split(r"[;,:]", _plain(value))[0].split()
    while words and _TITLE_WORD.fullmatch(words[0]):
        words.pop(0)
    name = " ".join(words).strip(" .")
    return [name] if re.search(r"[A-Z]{2}", name) and len(words) < 8 else []


def _holder(office: str) -> Callable[[str], list[str]]:
    def answers(value: str) -> list[str]:
        return _person(value) if re.match(rf"(?:Interim |Acting |Transitional |Federal )*(?:{office})\b", value) else []

    return answers


_PARTS_OF_THE_WORLD = re.compile(
    r"South America|North America|Central America|Middle East|Africa|Europe|Asia|Oceania|Antarctica|Arctic|Caribbean"
    r"|(?:Atlantic|Pacific|Indian|Southern) Ocean"
)


def _part_of_the_world(value: str) -> list[str]:
    """["Africa"] of "Southern Africa, island in the Indian Ocean, east of Mozambique"."""
    return _PARTS_OF_THE_WORLD.findall(value)[:1]


def _region(value: str) -> list[str]:
    return [region.strip(" .") for region in re.split(r"[,;]", _plain(value))[:1] if len(region) < 40]


def _map_regions(value: str) -> list[str]:
    """["Central America and the Caribbean", "Central America", "Caribbean"]."""
    return [] if "Political Map" in value else [value, *value.split(" and the ")]


def _waters(value: str) -> list[str]:
    names = (
        r"(?:[A-Z][\w-]+ )+(?:Sea|Ocean|Gulf|Channel|Bay)|Gulf of [A-Z]\w+|Bay of [A-Z]\w+|Caribbean Sea|Persian Gulf"
    )
    return [*dict.fromkeys(re.findall(names, value))]


def _neighbours(value: str) -> list[str]:
    """Countries named after "between", "north of" and the like."""
    part = re.search(
        r"(?:between|north|south|east|west|northeast|northwest|southeast|southwest)(?: of)? ([A-Z].*)", value
    )
    return re.findall(r"(?:[A-Z][\w-]+)(?: (?:[A-Z][\w-]+|and the [A-Z]\w+))*", part[1])[:5] if part else []


def _mountains(value: str) -> list[str]:
    names = r"(?:[A-Z][\w-]+ )+(?:Mountains|Mts|Range|Highlands|Plateau|Alps|Hills)"
    names += "|Andes|Alps|Himalayas|Carpathians|Pyrenees|Caucasus|Pamirs"
    return [*dict.fromkeys(re.findall(names, value))]


def _cities(value: str) -> list[str]:
    """["KYIV", "Kharkiv"] of "3.017 million KYIV (capital), 1.421 million Kharkiv (2023)"."""
    return [re.sub(r"^[\d.,]+(?: million)? ", "", item) for item in re.split(r"[,;] (?=\d)", _plain(value)) if item]


def _largest_city(value: str) -> list[str]:
    return _cities(value)[:1]


def _city_sizes(value: str) -> list[str]:
    return re.findall(r"^\d[\d.,]*(?: million)?", value)


def _peak(value: str) -> list[str]:
    name = re.split(r" -?\d[\d.,]* m\b| \d|[;,]", _plain(value))[0].strip(" .")
    return [name] if name and name.lower() != "unnamed" and not _VAGUE.match(name) else []


def _height(value: str) -> list[str]:
    return re.findall(r"-?\d[\d.,]* m\b", value)[:1]


def _rivers(value: str) -> list[str]:
    """["Dunay", "Danube"] of "Dunay (Danube) (shared with Germany [s], …) - 2,888 km"; lakes have the same form."""
    names = []
    for item in re.split(r"; ", value):
        match = re.match(
            r"([^\d(;-]+?)(?: river)?(?: source)?(?: and)?(?: mouth)?(?: \(([A-Z][^()]*)\))?(?: river| \(| - |,|$)",
            item,
        )
        names += [name.strip(" .") for name in match.groups() if name] if match else []
    return [name for name in dict.fromkeys(names) if not _VAGUE.match(name)]


def _divisions(value: str) -> list[str]:
    """Names of states, provinces, …: what follows their count."""
    return _parts(value) or _items(_plain(value).partition(";")[2])


def _parts(value: str) -> list[str]:
    """["England", "Scotland"] of "England: 24 two-tier counties, …; Scotland: 32 council areas, …"."""
    names = re.findall(r"(?:^|; )([A-Z][\w ]+): \d", value)
    return names if len(names) > 1 else []


def _from_whom(value: str) -> list[str]:
    match = re.search(
        r"\((?:[\w ,]*?)from (?:the )?([A-Z][\w ]*?)(?:[,;)]| under| as | administ| protect| union| by )", value
    )
    return [match[1]] if match else []


def _owner(value: str) -> list[str]:
    match = re.search(r"(?:of|with) (?:the )?((?:[A-Z][\w-]+ ?)+)|\b(British)\b", value)
    return [next(filter(None, match.groups())).strip()] if match else []


def _branches(value: str) -> list[str]:
    return _items(re.sub(r"^[^:(]*(?:\([^()]*\))?: ", "", value))


def _leaders(value: str) -> list[str]:
    """Those whom a history names: first names, then the surname in capitals."""
    names = re.findall(r"(?:[A-Z][\w'.-]+ )+[A-Z][A-Z'-]{2,}(?: [A-Z][A-Z'-]{2,})*(?: I{1,3}\b)?(?: [A-Z]\w+)?", value)
    people = [name for found in names for name in _person(found) if " " in name]
    return [*dict.fromkeys(name.rstrip("'") for name in people if not re.search(r"\b(?:NATO|NWR|WWI|WWII)\b", name))]


def _presidents(value: str) -> list[str]:
    return _leaders("; ".join(re.findall(r"[Pp]resident ((?:[A-Z][\w'.-]+ ?)+)", value)))


def _prime_ministers(value: str) -> list[str]:
    return _leaders("; ".join(re.findall(r"[Pp]rime [Mm]inister ((?:[A-Z][\w'.-]+ ?)+)", value)))


def _winner(value: str) -> list[str]:
    found = re.search(
        r"(?:^|: |; )((?:[A-Z][\w.'’-]+ )+)(?:\([^)]*\) )?(?:re)?elected (?:president|prime minister)", value
    )
    return [found[1].strip()] if found and re.search("[A-Z]{3}", found[1]) else []


def _on_a_flag(value: str) -> list[str]:
    things = r"\b(?:red|white|blue|green|yellow|black|orange|gold|stars?|cross|crescent|sun|eagle|lion|dragon|tree)\b"
    return [*dict.fromkeys(re.findall(things, value))]


def _singular_noun(value: str) -> list[str]:
    return [re.split(r"[(,;]| or ", value)[0].strip(" .")]


def _time_zone(value: str) -> list[str]:
    return re.findall(r"UTC ?[+-]?\d*(?::\d+|\.\d+)?", value)[:1]


def _code(value: str) -> list[str]:
    return re.findall(r"\.(\w\w)\b", value)[:1]


def _lyricist(value: str) -> list[str]:
    return _items(value.partition("/")[0])[:3]


def _composer(value: str) -> list[str]:
    return _items(value.partition("/")[2] or value)[:3]


def _age(value: str) -> list[str]:
    return [part for match in re.findall(r"((\d\d)(?:-\d\d)? years(?: of age)?)", value)[:1] for part in match]


def _count(value: str) -> list[str]:
    return re.findall(r"^\d+", value)


def _agency(value: str) -> list[str]:
    return [item for item in (_plain(part).strip(" .") for part in value.split(";")) if item and item[0].isupper()][:2]


def _parties(value: str) -> list[str]:
    return [part for item in _items(value) for part in (item, re.split(r" or ", item)[0])]


def _title_words(value: str) -> list[str]:
    return [part.strip() for part in re.split(r"/ ?|;", _plain(value)) if part.strip(" .") and not _VAGUE.match(part)]


def _heritage(value: str) -> list[str]:
    return [_plain(item).strip(" .") for item in value.split(";")]


def _with_title(names: Callable[[str], list[str]], most: int) -> Callable[[str, str], list[tuple[str, list[str]]]]:
    """Questions about a thing in a country: each of the first `most` names, answered by the country."""

    def items(value: str, title: str) -> list[tuple[str, list[str]]]:
        return [(name, [title]) for name in names(value)[:most]]

    return items


def _rivers_shared(value: str, title: str) -> list[tuple[str, list[str]]]:
    """("Niger", ["Guinea", "Mali"]) of "Niger (shared with Guinea [s] and Mali) - 4,200 km"."""
    found = []
    for item in value.split("; "):
        shared = re.search(r"shared with ([^()]*)\)", item)
        if shared:
            countries = re.split(r",? and |, ", re.sub(r" \[[^\]]*\]", "", shared[1]))
            found += [(name, [*countries, title]) for name in _rivers(item)]
    return found


# ---- kinds of question

# fmt: off
KINDS: tuple[Kind, ...] = (
    # What WebQuestions asks of countries most.
    Kind("Government type", 9, _government,
         "what (kind|type|form|sort|system) of government does {c} have / what (kind|type|form) of government does "
         "{c} / what (type|form|kind) of government does {c} (use|have today|currently have|have 2010|have 2012) / "
         "what is the (political system|government|form of government|government type|type of government) (in|of) "
         "{c} / what is the (current|present) (form|system|type) of government in {c} / what government does {c} "
         "have / what (type|kind) of political system does {c} have / what government system does {c} have / what "
         "type of government is {c} / what (system|type) of government is used in {c} / what kind of government {c} "
         "have / what is {c}'s (government|form of government|political system) / what government type is {c} / what "
         "(type|form) of government is the {adj} government / how is {c} governed"),
    Kind("Location", 5, _part_of_the_world,
         "where is {c} / where is {c} located / where is {c} (on|in) (a|the) (world |)map / where is {c} at / where "
         "is {c} located (on a map|on the map|in the world|what continent) / where is the (country|nation) of {c} "
         "(located|) / where (exactly is {c}|is {c} exactly located) / what part of the world is {c} (in|located "
         "in) / where does {c} lie / where did {c} originate / where {c} on the world map / where is {c} the "
         "country / where can you find {c}"),
    Kind("Location", 3, _part_of_the_world,
         "what continent is {c} (in|on|located|located in|part of|apart of) / which continent is {c} (located|in) / "
         "on what continent is {c} (found|located) / what continent does {c} belong to / in which continent is {c} / "
         "{c} is on what continent / what continent do the {adj} people live on"),
    Kind("Location", 1.5, _region,
         "what region is {c} (located in|in) / what region of the world is {c} in / in what region is {c} located / "
         "what area of the world is {c} in / which region does {c} belong to"),
    Kind("Map references", 1.2, _map_regions,
         "what region is {c} located in / what (region|part) of the world (map |)is {c} (in|on) / which map shows "
         "{c}"),
    Kind("Location", 0.8, _waters,
         "what (ocean|sea|body of water) is {c} (on|in|near|next to) / what (seas|oceans|bodies of water) "
         "(border|surround|touch) {c} / which (sea|ocean) does {c} (border|lie on)"),
    Kind("Location", 0.5, _neighbours,
         "what country is {c} (next to|close to|near) / what is {c} between / what countries are near {c}"),
    Kind("Land boundaries - border countries", 6, _items,
         "what (countries|other countries|nations) (border|share a border with|share borders with|surround|are "
         "around) {c} / which (countries|country) (border|share borders with|share land border with|are next to) "
         "{c} / what countries (does|do) {c} (border|share borders with|share a border with) / what country is {c} "
         "(next to|close to) / what (3|4|5|two|three|five) countries border {c} / what are (the|five|some) countries "
         "that border {c} / what does {c} border / which countries does {c} border / with which country does {c} "
         "border / what country (borders|surrounds|is near|is to the north of|is south of) {c} / who borders {c} / "
         "who are {c}'s neighbors / what countries are neighbors of {c} / which country shares the longest border "
         "with {c}"),
    Kind("Languages", 6, _languages,
         "what (language|languages) do they speak in {c} / what (language|languages) (do|does) people (in {c} "
         "speak|speak in {c}) / what do (people in {c}|{c} people|they) speak (in {c}|) / what (is|are) the "
         "(main|major|primary|most common) (language|languages) (spoken |)in {c} / what (language|languages) is "
         "spoken in {c} / what language does {c} (speak|use|have) / what language is {c} using / what (type|kind) of "
         "language does {c} speak / what is the language (spoken |used |)in {c} / what does {c} people speak / what "
         "language do {adj} people speak / what language do you speak in {c} / what language does {c} / {c} language "
         "spoken"),
    Kind("Languages - major-language sample(s)", 1, _sample_language,
         "what language do they speak in {c} / what is the language spoken in {c} / what language do they speak {c}"),
    Kind("Languages", 3, _official,
         "what (is|are) the official (language|languages) (of|in|spoken in) {c} / what is {c}'s official language / "
         "what (is|was) the (national|official) language of {c} / official language of {c} / what are the (2|3|two) "
         "official languages of {c} / what language is official in {c}"),
    Kind("Exchange rates - Currency", 6, _currency,
         "what (currency|money|kind of money|type of currency) (does|do) (they use in {c}|{c} use) / what is the "
         "(currency|money) (in|of|used in) {c} / what (currency|kind of money|money) (should i|to|do i) (take|bring) "
         "to {c} / what is the (currency|money) (of|in) {c} called / what is the (currency name|name of the "
         "currency|name of money|money currency|local currency) (of|in) {c} / what (currency|money) (does {c} "
         "accept|can you use in {c}|is used in {c}) / what kind of (currency|money) does {c} (have|use|) / what "
         "currency do i need in {c} / what is {c}'s currency / what is the {adj} (money|currency) called / what "
         "money system does {c} use / what currency is used in {c} (2012|now|today) / what is {c} money called / "
         "what is the best currency to take to {c}"),
    Kind("Capital - name", 4, _capitals,
         "what is the capital (city |)of {c} / what is {c}'s capital (city|) / what is the name of the capital (city "
         "|)of {c} / what city is the capital of {c} / where is the capital of {c} (on the map|located|) / what is "
         "the capital of {c} (in 2010|now|today|called) / what is the {adj} capital / where is the "
         "(government|parliament) of {c} / name the capital of {c} / which city is {c}'s capital / what is d capital "
         "city of {c} / what capital city of {c}"),
    Kind("Executive branch - chief of state", 3, _holder("President"),
         "who is (the |)president of {c} (now|today|right now|) / who is the (current|present|new) president of "
         "{c} / what is the (name of the president of {c}|president of {c}'s name) / who is {c}'s president (right "
         "now|) / who is the {adj} president / who was elected president of {c} / who is president of {c} / who "
         "became president of {c}"),
    Kind("Executive branch - head of government", 3, _holder("Prime Minister"),
         "who is the (current |new |)prime minister of {c} (now|today|2011|) / who is prime minister of {c} / who is "
         "{c}'s prime minister / what is the name of the prime minister of {c} / who is the {adj} prime minister / "
         "who was the prime minister of {c}"),
    Kind("Executive branch - chief of state", 2, _person,
         "who is the (leader|head of state|ruler|chief of state) of {c} (now|today|) / who "
         "(runs|rules|controls|leads|is ruling) {c} (now|today|2011|) / who is the (current|political) leader of "
         "{c} / who is the current leader of {c} and what is their title / who is in charge of {c} / what is the "
         "current leader of {c} / who leads the {adj} government"),
    Kind("Executive branch - head of government", 1.2, _person,
         "who is the head of government (of|in) {c} / who heads the government of {c} / who is the {adj} leader / "
         "who governs {c}"),
    Kind("Executive branch - chief of state", 1, _holder("King|Queen|Emir|Amir|Sultan|Grand Duke|Prince"),
         "who is the (king|monarch|queen) of {c} / what is the (king|queen|monarch) of {c}'s name / who is the "
         "current (king|queen|monarch) of {c}"),
    Kind("Background", 2, _presidents,
         "who was (the |)(first |former |last |)president of {c} / who were the presidents of {c} / who (was|is) "
         "(the |)president of {c} (in 2009|in 2010|2011|2012|in 2000) / who was elected president of {c} in "
         "(2010|2008) / who was the {adj} president in (1998|2005) / who is the current president of {c} 2010"),
    Kind("Background", 1, _prime_ministers,
         "who was (the |)prime minister of {c} (in 2009|in 2000|) / who was the (2nd|first|last) prime minister of "
         "{c} / who is prime minister of {c} (2011|2012)"),
    Kind("Background", 1.5, _leaders,
         "who (ruled|led|governed) {c} / who was the leader of {c} / who seized power in {c} (in 1960|) / who was a "
         "famous (leader|person) (of|in) {c} / who was the (dictator|ruler) of {c} / who is the leader of {c} "
         "(2011|2012)"),
    Kind("Executive branch - election results", 1, _winner,
         "who won the (presidential |last |2012 |)(election|race) in {c} / who was elected (president |)in {c}"),
    Kind("Religions", 2.5, _religions,
         "what (religion|religions) (are|is) (practiced|found|there) in {c} / what are the (major|main|most common) "
         "religions (practiced |)in {c} / what religion in {c} / what religions are in {c} / what "
         "(religion|religions) do (they|people) (practice|have|follow|believe in) in {c}"),
    Kind("Religions", 2, _main_religion,
         "what is the (main|major|most practiced|most common|state|biggest) religion (in|of) {c} / what religion "
         "(is|are) (most |)people in {c} / what is the religion of {c} (people|) / what religion is {c} / what is "
         "the {adj} religion"),
    Kind("Major urban areas - population", 2, _cities,
         "what are the (major|main|biggest|big|largest|important) cities (in|of) {c} / what is a city in {c} / what "
         "cities are in {c} / name some cities in {c} / what are some cities in {c} / where to go in {c} (for "
         "vacation|) / what to see in {c}"),
    Kind("Major urban areas - population", 1.5, _largest_city,
         "what is the (largest|biggest|most populated) city (in|of) {c} / what city (has the largest population|is "
         "the biggest) in {c} / where do most (of the |)people (live in {c}|in {c} live) / which city in {c} has the "
         "most people"),
    Kind("Capital - time difference", 1.5, _time_zone,
         "what (time zone|timezone) is {c} (in|) / what is {c} time zone / what is the time zone (in|of|for) {c} / "
         "what time zones are there in {c} / what timezone (are|does) {c} (have|in|) / what is 2pm est in {c} / what "
         "time is it in {c}"),
    Kind("Exports - partners", 2, _items,
         "who does {c} (export|sell) (to|the most to) / what countries (does|do) {c} export to / who are {c}'s "
         "(major |)trading partners / what (countries|other countries) does {c} trade with / which countries does "
         "{c} export to / who does {c} trade with (the most|) / with which countries does {c} trade / what country "
         "does {c} trade with"),
    Kind("Imports - partners", 1, _items,
         "what countries does {c} import from / who does {c} import from / where does {c} get its imports / who does "
         "{c} buy from / who were the major trade partners of {c}"),
    Kind("Exports - commodities", 1.8, _items,
         "what does {c} export / what are the (main|major|top) exports (of|from) {c} / what does {c} (sell|produce "
         "and export|export the most) / what do {c} export / what are {c}'s main exports / what products does {c} "
         "export"),
    Kind("Imports - commodities", 1, _items,
         "what does {c} import / what are the (main|major|top) imports of {c} / what products does {c} import / what "
         "goods does {c} buy"),
    Kind("Ethnic groups", 1.8, _items,
         "what (ethnicity|race) are (people from|the people of) {c} / what (ethnic groups|ethnicities|races) (live "
         "in|are in) {c} / what people live in {c} / what are the ethnic groups of {c} / who lives in {c} / what is "
         "the largest ethnic group in {c}"),
    Kind("Administrative divisions", 8, _parts,
         "what are the (5 |4 |)countries in {c} / what (four|4|3|) (regions|countries|parts) make up {c} / what "
         "(4|four|) countries are part of {c} / what countries are in {c} / what are the parts of {c} / which "
         "countries belong to {c} / what nations form {c} / what 4 countries are in {c}"),
    Kind("Administrative divisions", 1.5, _divisions,
         "what are the (states|provinces|regions|districts|divisions) (of|in) {c} / name the "
         "(provinces|states|regions) of {c} / what (regions|parts|countries) make up {c} / what is a "
         "(province|state|region) (in|of) {c} / which (state|province|region) is in {c}"),
    Kind("Administrative divisions", 0.6, _count,
         "how many (states|provinces|regions|districts|divisions) (are in {c}|does {c} have)"),
    Kind("Independence", 0.8, _from_whom,
         "who did {c} gain independence from / what country did {c} (become|get) independen(t|ce) from / who "
         "colonized {c} / who (ruled|owned) {c} before independence / what country (controlled|colonized) {c}"),
    Kind("Independence", 0.9, _date,
         "when did {c} (become independent|get independence|gain independence) / when was {c} "
         "(founded|created|formed) / what date did {c} become independent"),
    Kind("Independence", 0.6, _year,
         "what year did {c} (become independent|gain its independence|become a country) / in what year was {c} "
         "founded"),
    Kind("Internet country code", 1.2, _code,
         "what is {c}(|s|'s) (country|internet) code / what's {c} country code / what is the (domain|internet code) "
         "(of|for) {c}"),
    Kind("Dependency status", 3, _owner,
         "what country (does {c} belong to|owns {c}|is {c} part of) / who (owns|does) {c} (belong to|) / what "
         "country is {c} in / {c} is a territory of what country"),
    Kind("Executive branch - most recent election date", 0.5, _date,
         "when was the last election in {c} / when did {c} last vote"),
    Kind("Executive branch - expected date of next election", 0.5, _clause,
         "when is the next (presidential |)election in {c} / when will {c} vote"),
    Kind("Legislative branch - legislature name", 0.9, _clause,
         "what is the (parliament|legislature|congress) of {c} called / what is {c}'s parliament called / who makes "
         "the laws in {c} / what is the {adj} parliament called"),
    Kind("Legislative branch - lower chamber - chamber name", 0.5, _clause,
         "what is the lower house of {c} called / what is the lower chamber in {c}"),
    Kind("Legislative branch - upper chamber - chamber name", 0.5, _clause,
         "what is the upper house of {c} called / what is the upper chamber in {c}"),
    Kind("Legislative branch - legislative structure", 0.4, _clause,
         "is the parliament of {c} bicameral or unicameral / what (kind|structure) of legislature does {c} have"),
    Kind("Legislative branch - electoral system", 0.5, _clause,
         "what kind of (voting|electoral) system does {c} have / how does {c} elect its parliament"),
    Kind("Legislative branch - number of seats", 0.4, _bare,
         "how many seats are in the parliament of {c} / how many members does {c}'s parliament have"),
    Kind("Legislative branch - parties elected and seats per party", 0.6, _parties,
         "what party (won|rules|is in power) in {c} / which parties sit in the parliament of {c}"),
    Kind("Political parties", 0.8, _parties,
         "what are the (main |)(political |)parties in {c} / what political parties are there in {c} / what is a "
         "party in {c}"),
    Kind("Judicial branch - highest court(s)", 0.6, _first,
         "what is the (highest|supreme) court (in|of) {c} / what is {c}'s highest court"),
    Kind("Legal system", 0.5, _clause,
         "what (legal system|kind of law) does {c} have / what is the legal system of {c}"),
    Kind("Constitution - history", 0.6, _latest_date,
         "when was the constitution of {c} (adopted|written) / when did {c} get its constitution"),
    Kind("Suffrage", 0.6, _age, "how old do you have to be to vote in {c} / what is the voting age in {c}"),
    Kind("Citizenship - residency requirement for naturalization", 0.4, _number,
         "how long must you live in {c} to become a citizen / how many years to get {adj} citizenship"),
    # Names and symbols.
    Kind("Country name - conventional long form", 0.8, _clause,
         "what is the (official|full|formal) name of {c} / what is {c}'s official name"),
    Kind("Country name - local short form", 0.7, _title_words,
         "what do (they|the people of {c}) call (their country|{c}) (in {c}|) / what is {c} called in its own "
         "language"),
    Kind("Country name - former", 0.8, _items,
         "what (was|is) {c} (formerly|called before|previously) (called|known as|) / what was the (old|former) name "
         "of {c} / what did {c} use to be called"),
    Kind("Nationality - noun", 0.7, _singular_noun,
         "what are people from {c} called / what do you call (someone|a person) from {c} / what is the nationality "
         "of people from {c}"),
    Kind("Nationality - adjective", 0.5, _singular_noun,
         "what nationality are people from {c} / what is the adjective for {c}"),
    Kind("National anthem(s) - title", 0.8, _quoted,
         "what is the national anthem of {c} (called|) / what is {c}'s national (anthem|song) / what is the {adj} "
         "national anthem"),
    Kind("National anthem(s) - lyrics/music", 0.5, _lyricist,
         "who wrote the (national anthem|anthem|words of the anthem) of {c} / who wrote the {adj} anthem"),
    Kind("National anthem(s) - lyrics/music", 0.5, _composer,
         "who composed the (national anthem|anthem|music of the anthem) of {c}"),
    Kind("National symbol(s)", 0.9, _items,
         "what is the national (symbol|animal|bird|flower) of {c} / what (symbol|animal) represents {c} / what is "
         "{c}'s national (animal|symbol)"),
    Kind("National color(s)", 0.8, _items,
         "what are the (national |)colors of {c} / what colors are (on|in) the flag of {c} / what do {c} colors"),
    Kind("Flag", 0.5, _on_a_flag,
         "what is on the flag of {c} / what does the {c} flag look like / what does {c}'s flag have on it"),
    Kind("National holiday", 0.6, _first,
         "what is the national holiday (of|in) {c} / what (holiday|holidays) do they celebrate in {c} / what is "
         "{c}'s national day called"),
    Kind("National holiday", 0.5, _day, "when is the national (day|holiday) of {c} / what day is {c}'s national day"),
    Kind("National heritage - selected World Heritage Site locales", 1.3, _heritage,
         "what (to see|to see and do|to do) in {c} / what are (some |the |)(tourist attractions|places to "
         "visit|world heritage sites|famous places) in {c} / where is the best place to visit in {c} / what should i "
         "visit in {c}"),
    Kind("National heritage - total World Heritage Sites", 0.3, _count,
         "how many world heritage sites (are in|does) {c} (have|)"),
    # Land and water.
    Kind("Elevation - highest point", 1, _peak,
         "what is the (highest|tallest) (mountain|point|peak) in {c} / what is {c}'s highest mountain / what "
         "mountain is in {c}"),
    Kind("Elevation - highest point", 0.4, _height, "how high is the (highest|tallest) (point|mountain) in {c}"),
    Kind("Elevation - lowest point", 0.5, _peak, "what is the lowest (point|place) in {c}"),
    Kind("Elevation - mean elevation", 0.3, _number, "what is the (mean|average) elevation of {c}"),
    Kind("Terrain", 1, _mountains,
         "what (mountains|mountain range) (are|is) in {c} / what are the mountains in {c} called / what is the large "
         "mountain range in {c}"),
    Kind("Terrain", 0.6, _clause,
         "what is the (terrain|land|landscape) (of|in|like in) {c} / what (landforms|land) (are|is) (found |)in {c}"),
    Kind("Major rivers (by length in km)", 1.5, _rivers,
         "what (rivers|river) (are|is|flow|runs) (in|through) {c} / what are the major rivers (in|of) {c} / what is "
         "the longest river in {c}"),
    Kind("Major lakes (area sq km) - fresh water lake(s)", 1, _rivers,
         "what (lakes|lake) (are|is) in {c} / what is the (largest|biggest) lake in {c}"),
    Kind("Major lakes (area sq km) - salt water lake(s)", 0.6, _rivers, "what salt (lake|lakes) (is|are) in {c}"),
    Kind("Climate", 0.9, _clause,
         "what is the (climate|weather) (in|of|like in) {c} / what kind of (climate|weather) does {c} have"),
    Kind("Natural resources", 1.2, _items,
         "what (natural |)resources (does {c} have|are found in {c}) / what are the natural resources (of|in) {c} / "
         "what is {c} rich in"),
    Kind("Natural hazards", 0.6, _items,
         "what natural (disasters|hazards) (happen|occur) in {c} / what are the natural hazards of {c}"),
    Kind("Environmental issues", 0.5, _items,
         "what environmental (problems|issues) does {c} have / what are the environmental issues in {c}"),
    Kind("Area - total", 0.6, _number, "how (big|large) is {c} / what is the (area|size|total area) of {c}"),
    Kind("Area - comparative", 0.3, _clause,
         "how big is {c} compared to (the us|other places) / what is {c} about the size of"),
    Kind("Coastline", 0.4, _number, "how long is the (coast|coastline) of {c} / how much coastline does {c} have"),
    Kind("Land boundaries - total", 0.3, _number, "how long are the borders of {c} / how long is {c}'s border"),
    Kind("Geographic coordinates", 0.3, _clause,
         "what are the coordinates of {c} / what latitude (and longitude |)is {c}"),
    Kind("Land use - forest", 0.3, _percent, "how much of {c} is (forest|covered by forest)"),
    # People.
    Kind("Population - total", 0.9, _bare,
         "what is the population of {c} (2010|now|) / how many people (live in|are in) {c} / how many people does "
         "{c} have"),
    Kind("Population growth rate", 0.3, _percent,
         "how fast is the population of {c} growing / what is the population growth rate (of|in) {c}"),
    Kind("Major urban areas - population", 0.3, _city_sizes,
         "how many people live in the (largest|biggest) city of {c}"),
    Kind("Life expectancy at birth - total population", 0.5, _number,
         "what is the life expectancy in {c} / how long do people live in {c}"),
    Kind("Literacy - total population", 0.5, _percent,
         "what is the literacy rate (in|of) {c} / how many people can read in {c}"),
    Kind("Median age - total", 0.4, _number, "what is the (median|average) age in {c}"),
    Kind("Birth rate", 0.3, _bare, "what is the birth rate (in|of) {c}"),
    Kind("Death rate", 0.3, _bare, "what is the death rate (in|of) {c}"),
    Kind("Total fertility rate", 0.3, _bare,
         "how many children do women in {c} have / what is the fertility rate (in|of) {c}"),
    Kind("Infant mortality rate - total", 0.3, _bare, "what is the infant mortality rate (in|of) {c}"),
    Kind("Urbanization - urban population", 0.3, _percent, "how (much of|many people in) {c} live in cities"),
    Kind("Obesity - adult prevalence rate", 0.3, _percent, "how many people are (obese|overweight) in {c}"),
    Kind("School life expectancy (primary to tertiary education) - total", 0.3, _number,
         "how many years do children go to school in {c}"),
    Kind("Population distribution", 0.4, _clause,
         "where do people live in {c} / where is the population of {c} concentrated"),
    # Economy.
    Kind("Agricultural products", 1.1, _items,
         "what (crops|food) (do they grow|is grown|grows) in {c} / what (food|crops) does {c} (grow|produce) / what "
         "are the agricultural products of {c}"),
    Kind("Industries", 1.1, _items,
         "what (industries|industry) (are|is) in {c} / what are the (main|major) industries (of|in) {c} / what does "
         "{c} (produce|make|manufacture) / what is {c} known for making"),
    Kind("Real GDP per capita", 0.4, _money, "what is the gdp per (capita|person) (of|in) {c} / how rich is {c}"),
    Kind("GDP (official exchange rate)", 0.4, _money, "what is the gdp of {c} / how big is the economy of {c}"),
    Kind("Unemployment rate", 0.3, _percent, "what is the unemployment rate (in|of) {c}"),
    Kind("Inflation rate (consumer prices)", 0.3, _percent, "what is the inflation rate (in|of) {c}"),
    Kind("Population below poverty line", 0.3, _percent,
         "how many people live in poverty in {c} / what is the poverty rate (in|of) {c}"),
    Kind("Exports", 0.3, _money, "how much does {c} export"),
    Kind("Imports", 0.3, _money, "how much does {c} import"),
    Kind("Budget - revenues", 0.2, _money, "what is the budget of {c} / how much does {c} collect in revenues"),
    Kind("Petroleum - total petroleum production", 0.3, _number, "how much oil does {c} produce"),
    Kind("Nuclear energy - Number of operational nuclear reactors", 0.6, _bare,
         "how many nuclear (reactors|power plants) does {c} have"),
    Kind("Electricity access - electrification - total population", 0.3, _percent,
         "how many people have electricity in {c}"),
    # Ways and forces.
    Kind("Airports", 0.5, _bare, "how many airports (are in {c}|does {c} have)"),
    Kind("Railways - total", 0.3, _number, "how (long|many km) are the railways (of|in) {c}"),
    Kind("Ports - key ports", 0.9, _items,
         "what are the (main |major |key |)ports (of|in) {c} / what port is in {c} / which (harbors|ports) does {c} "
         "have"),
    Kind("Civil aircraft registration country code prefix", 0.3, _clause,
         "what is the aircraft (registration |)(prefix|code) (of|for) {c}"),
    Kind("Internet users - percent of population", 0.3, _percent, "how many people use the internet in {c}"),
    Kind("Military and security forces", 0.8, _branches,
         "what are the branches of (the |){c} military / what (armed forces|military) does {c} have / what is {c}'s "
         "army called"),
    Kind("Military service age and obligation", 0.5, _age,
         "how old do you have to be to join the army in {c} / what is the military age in {c}"),
    Kind("Military Expenditures", 0.3, _percent, "how much does {c} spend on its military"),
    Kind("Space agency/agencies", 0.8, _agency,
         "what is {c}'s space agency (called|) / what is the space agency of {c}"),
    Kind("Terrorist group(s)", 0.6, _items,
         "what terrorist groups are (in|active in) {c} / what terrorists operate in {c}"),
    Kind("International organization participation", 0.5, _items,
         "what organizations (is {c} a member of|does {c} belong to)"),
    Kind("Diplomatic representation in the US - chief of mission", 0.4, _person,
         "who is {c}'s ambassador (to|in) the us / who is the {adj} ambassador"),
    Kind("Diplomatic representation from the US - chief of mission", 0.4, _person,
         "who is the us ambassador (to|in) {c}"),
    Kind("Refugees and internally displaced persons - refugees", 0.3, _bare, "how many refugees (are|live) in {c}"),
)


# Questions that name a thing, {item}, and are answered by the country: what one asks before one knows where to look.
ITEM_KINDS: tuple[Kind, ...] = (
    Kind("Capital - name", 1, _with_title(_capitals, 1),
         "what country is {item} the capital of / {item} is the capital of what country / what country is {item} in"),
    Kind("Major urban areas - population", 1.2, _with_title(_cities, 4),
         "what country is {item} in / where is {item} / where is {item} located / which country is {item} in"),
    Kind("Elevation - highest point", 0.8, _with_title(_peak, 1),
         "where is {item} / where is {item} located / what country is {item} in / in which country is {item}"),
    Kind("National heritage - selected World Heritage Site locales", 1, _with_title(_heritage, 5),
         "where is {item} / where is {item} located / what country is {item} in"),
    Kind("National anthem(s) - title", 0.4, _with_title(_quoted, 1),
         "what country's anthem is {item} / which country sings {item}"),
    Kind("Executive branch - chief of state", 0.7, _with_title(_holder("President"), 1),
         "what country is {item} president of / {item} is president of what country / where is {item} president"),
    Kind("Major rivers (by length in km)", 1.5, _rivers_shared,
         "what countries does the {item} river flow through / where is the {item} river / what countries does the "
         "{item} (run|flow) through / where does the {item} river flow / which countries share the {item} river"),
)


# fmt: on


# ---- countries

# As people write them, beside the Factbook's own names.
ALIASES: dict[str, tuple[str, ...]] = {
    "United States": ("the united states", "the us", "us", "usa", "america", "the united states of america"),
    "United Kingdom": ("the united kingdom", "the uk", "uk", "england", "britain", "great britain"),
    "Netherlands": ("the netherlands", "holland"),
    "Czechia": ("czech republic", "the czech republic"),
    "Burma": ("myanmar",),
    "Eswatini": ("swaziland",),
    "North Macedonia": ("macedonia",),
    "Cabo Verde": ("cape verde",),
    "Timor-Leste": ("east timor",),
    "Côte d'Ivoire": ("ivory coast",),
    "Turkey (Turkiye)": ("turkey",),
    "United Arab Emirates": ("the united arab emirates", "uae", "the uae"),
    "Philippines": ("the philippines",),
    "Dominican Republic": ("the dominican republic",),
    "Democratic Republic of the Congo": ("the democratic republic of congo", "drc", "congo"),
    "Republic of the Congo": ("congo brazzaville", "the congo"),
    "Vatican City": ("the vatican", "the vatican city"),
    "Central African Republic": ("the central african republic",),
    "Bosnia and Herzegovina": ("bosnia",),
    "Trinidad and Tobago": ("trinidad",),
    "Antigua and Barbuda": ("antigua",),
    "Federated States of Micronesia": ("micronesia",),
    "Cayman Islands": ("the cayman islands",),
    "Falkland Islands": ("the falkland islands", "falklands"),
    "Solomon Islands": ("the solomon islands",),
    "Marshall Islands": ("the marshall islands",),
    "Maldives": ("the maldives",),
    "Seychelles": ("the seychelles",),
    "Ukraine": ("the ukraine",),
    "Sudan": ("the sudan",),
    "European Union": ("the european union", "the eu"),
}


def _short_names(title: str) -> list[str]:
    """Lower-case names of a country in a question, the plain one first: "bahamas" and "the bahamas"."""
    plain = title.lower()
    names = [plain.removeprefix("the "), plain] if plain.startswith("the ") else [plain]
    return [*dict.fromkeys([*names, *ALIASES.get(title, ())])]


_NO_COUNTRY = ("World", "US Pacific Island Wildlife Refuges")


@cache
def factbook_pages() -> dict[str, Page]:
    """{title: {field: value}} of all entries, each value's later paragraphs joined to it by "; "."""
    lines = [(document.title, line) for document in factbook_documents() for line in document.text.splitlines()]
    # A line opens a field if many pages have a line that begins so; others go on with the field before.
    common = Counter(field for _, line in lines if (field := line.partition(": ")[0]) != line)
    pages: dict[str, Page] = {}
    title, field = "", ""
    for line_title, line in lines:
        page = pages.setdefault(line_title, {})
        label, _, value = line.partition(": ")
        if value and common[label] >= 5:
            title, field = line_title, re.sub(r" (?:19|20)\d\d$", "", label)
            page.setdefault(field, value.removesuffix(".") if not value.endswith("D.C.") else value)
        elif title == line_title and field:
            page[field] += "; " + line.removesuffix(".")
    return pages


# ---- questions


def factbook_questions(seed: int) -> list[TrainingQuestion]:
    """Questions about every country and field, no question of a country twice, in an order drawn by `seed`.

    Each answer is a span of at most 10 wordpieces of a block of the page; questions that have none are left out.
    Territories are asked about half as often as countries.
    """
    rng = random.Random(seed)
    drafts = []
    for title, page in factbook_pages().items():
        if title in _NO_COUNTRY:
            continue
        names = _short_names(title)
        adjective = _singular_noun(page.get("Nationality - adjective", ""))[0].lower()
        adjective = adjective if re.fullmatch(r"[a-z -]+", adjective) else ""
        share = 0.5 if "Dependency status" in page or "Capital - name" not in page else 1.0
        for kind in KINDS:
            value = page.get(kind.field)
            answers = kind.answers(value) if value else []
            weight = kind.weight * (1.0 if kind.field == "Dependency status" else share)
            for phrasing in _draw(rng, kind.phrasings, weight, bool(adjective)) if answers else ():
                name = names[0] if rng.random() < 0.6 else rng.choice(names)
                question = _phrase(rng, phrasing, c=name, adj=adjective)
                drafts.append(TrainingQuestion(question, [*dict.fromkeys(answers)], title, kind.field))
        for kind in ITEM_KINDS:
            for item, answers in kind.answers(page[kind.field], title) if kind.field in page else ():
                for phrasing in _draw(rng, kind.phrasings, kind.weight * share, False):
                    question = _phrase(rng, phrasing, item=item.lower())
                    drafts.append(TrainingQuestion(question, answers, title, kind.field))
    questions = [*{(question.question, question.title): question for question in reversed(_learnable(drafts))}.values()]
    rng.shuffle(questions)
    return questions


def _draw(rng: random.Random, phrasings: str, mean: float, has_adjective: bool) -> list[str]:
    """`mean` of the phrasings on average, all of them before any comes twice."""
    usable = [phrasing for phrasing in phrasings.split(" / ") if has_adjective or "{adj}" not in phrasing]
    number = int(mean) + (rng.random() < mean % 1)
    rounds, rest = divmod(number, len(usable)) if usable else (0, 0)
    return usable * rounds + rng.sample(usable, rest)


def _phrase(rng: random.Random, phrasing: str, **names: str) -> str:
    """The question that a phrasing makes once each of its choices `(a|b)` is drawn."""
    text = re.sub(r"\(([^()]*\|[^()]*)\)", lambda match: rng.choice(match[1].split("|")), phrasing)
    return " ".join(text.format(**names).split()).replace("the the ", "the ") + "?"


def _learnable(drafts: Sequence[TrainingQuestion]) -> list[TrainingQuestion]:
    """The questions with those of their answers that are spans of their pages; without those that keep none."""
    pages = _page_wordpieces()
    answers = [*dict.fromkeys(answer for draft in drafts for answer in draft.answers)]
    spans = {
        answer: f" {' '.join(map(str, ids))} "
        for answer, ids in zip(answers, _encode(answers), strict=True)
        if 0 < len(ids) <= MAX_ANSWER_WORDPIECES
    }

    @cache
    def occurs(answer: str, title: str) -> bool:
        return answer in spans and spans[answer] in pages[title]

    kept = [draft._replace(answers=[a for a in draft.answers if occurs(a, draft.title)]) for draft in drafts]
    return [question for question in kept if question.answers]


@cache
def _page_wordpieces() -> dict[str, str]:
    """{title: wordpiece ids of its blocks' records, parted by spaces, a bar between blocks}."""
    pages: dict[str, str] = {}
    for block, ids in zip(_blocks(), _encode([record(block).decode() for block in _blocks()]), strict=True):
        pages[block.title] = pages.get(block.title, "| ") + " ".join(map(str, ids)) + " | "
    return pages


@cache
@cache  # the Factbook does not change, and cutting it takes seconds
def _blocks() -> list[Block]:
    return list(cut_blocks(factbook_documents(), _tokenizer()))


def _encode(texts: list[str]) -> list[list[int]]:
    encoded = _tokenizer()(texts, add_special_tokens=False, return_token_type_ids=False, return_attention_mask=False)
    return encoded["input_ids"]


@cache
def _tokenizer() -> RealmTokenizerFast:
    return RealmTokenizerFast(str(package_files("realm_min") / "assets" / "vocab.txt"))


# ---- the Factbook slice of a file of questions


def factbook_slice(questions: Iterable[Question], blocks: Iterable[Block]) -> list[Question]:
    """Questions that name a country of the Factbook and whose answer is whole words of that country's blocks.

    Words are compared in ORQA's normal form. A country goes by its title, by its conventional long form ("czech
    republic") and, as the Factbook itself writes it, by "us".

    Args:
        questions: of WebQuestions, or any.
        blocks: of `cut_blocks(factbook_documents(), …)`.
    """
    pages: dict[str, str] = {}
    for block in blocks:
        pages[block.title] = pages.get(block.title, " | ") + f"{normalize_answer(' '.join(block))} | "
    names = {title: slice_names(title, page) for title, page in factbook_pages().items() if title in pages}
    return [
        question
        for question in questions
        if any(
            f" {answer} " in pages[title]
            for title in named(question.question, names)
            for answer in map(normalize_answer, question.answers)
            if answer
        )
    ]


def slice_names(title: str, page: Page) -> re.Pattern:
    long_form = _plain(page.get("Country name - conventional long form", "none")).split(";")[0]
    names = {title.lower().removeprefix("the ")} | ({long_form.lower()} - {"none", ""})
    names |= {"us"} if title == "United States" else set()
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(names)))})(?!\w)")


def named(question: str, names: dict[str, re.Pattern]) -> list[str]:
    """Titles of the countries that a question names."""
    return [title for title, pattern in names.items() if pattern.search(question.lower())]


# ---- to a file


def write_questions(path: str, questions: Iterable[TrainingQuestion]) -> None:
    """One JSON object a line: "question", "answer" (a list), "title", "field"."""
    lines = [
        json.dumps(
            {"question": q.question, "answer": q.answers, "title": q.title, "field": q.field}, ensure_ascii=False
        )
        for q in questions
    ]
    with write_atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/factbook_questions.py", description=__doc__)
    parser.add_argument("--out", required=True, help="the .jsonl file to write")
    parser.add_argument("--seed", type=int, default=0)
    options: Any = parser.parse_args(arguments)
    questions = factbook_questions(options.seed)
    write_questions(options.out, questions)
    print(f"{len(questions)} questions from {len({q.field for q in questions})} fields to {options.out}")


if __name__ == "__main__":
    main()
