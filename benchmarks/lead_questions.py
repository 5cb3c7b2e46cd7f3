"""Training questions made from Wikipedia leads' own sentences, by rules: nobody asked them.

A lead says "Aleksandr Pushkin was a Russian poet. He was born in Moscow in 1799." From its first sentence come "who was
aleksandr pushkin?" (Russian poet, poet); from any sentence, with its pronoun replaced by what it stands for, one phrase
is taken out and asked for: "when was aleksandr pushkin born in moscow?" (1799), "aleksandr pushkin was born in which
city?" (Moscow), "which russian poet was born in moscow in 1799?" (Aleksandr Pushkin). The answer stands in the lead it
was taken from, which is the question's evidence: distant supervision of the plainest kind (after Lewis et al. 2019,
*Unsupervised question answering by cloze translation*). Many are clumsy, and some have no one answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from realm_min.learn.masking import salient_spans
from realm_min.text.corpus import Document, split_sentences
from realm_min.text.questions import TrainingQuestion

COPULA = re.compile(r"^(?P<subject>.{1,160}?),? (?P<verb>is|was|are|were) (?P<rest>(?:an?|the|one of the|any) .*)$")
BRACKETED = re.compile(r"\s*\([^()]*\)")
CLAUSE = re.compile(r",|;| who | which | that | whose | where | in which | and (?=was |is |are |were |has |had )")
PHRASE_END = re.compile(
    r",|;|\.$| (?:who|which|that|whose|where|when|of|in|from|for|by|to|on|with|at|and is|and was|as|known|used|found"
    r"|born|located|between|since|during|consisting|comprising|formed|written|directed|created|produced|published|based)\b"
)
PRONOUN = re.compile(r"^(?:He|She|It|They|This|These|The (?P<noun>[a-z]+))\b(?= )")
POSSESSIVE = re.compile(r"^(?:His|Her|Its|Their)\b")
YEAR = re.compile(r"\b(?:1\d{3}|20\d\d)\b(?!s)")
NUMBER = re.compile(
    r"\b\d[\d,.]*(?: (?:million|billion|percent|km2|kilometres|miles|metres|years|people))?\b(?![\d,.]*\d)"
)
AUXILIARY = re.compile(r" (is|was|are|were|has|had|have|can|could|will|would|may|must|should) ")
PLACE = re.compile(
    r"\b(?:country|city|state|province|region|town|capital|island|continent|river|sea|ocean|peninsula|county|republic|"
    r"kingdom|municipality|village|district|archipelago|mountain|lake|desert|planet|emirate|empire)\b"
)
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# What a phrase of common nouns neither begins, ends nor holds.
FUNCTION = frozenset(
    "a an the of in on at by for from to with and or but nor as is was are were be been being has had have do "
    "does did that which who whom whose this these those it its he she his her they their them him we our you "
    "your i not no than then there where when while if so such also only very most more many much some any all "
    "both each other another one two into onto over under between among through during before after since "
    "until about against within without out up down off can could may might will would shall should must often "
    "usually generally sometimes typically commonly known called named used found made born died became become "
    "becomes located including include includes based considered however although because due first last "
    "several various different what how well per via upon like later early around near across along around s t".split()
)
IRREGULAR = dict(
    pair.split(":")
    for pair in "became:become began:begin won:win wrote:write led:lead made:make found:find took:take held:hold "
    "gave:give came:come went:go rose:rise saw:see fell:fall grew:grow built:build sold:sell "
    "left:leave had:have fought:fight brought:bring ran:run lost:lose met:meet taught:teach "
    "sang:sing spoke:speak drew:draw flew:fly kept:keep meant:mean knew:know thought:think "
    "spent:spend set:set broke:break chose:choose wore:wear bore:bear died:die lay:lie".split()
)


class Subject(NamedTuple):
    """What a lead is about, as its first sentence says."""

    name: str  # the title without what it has in brackets
    verb: str
    phrases: list[str]  # what it is: "Russian poet", "novelist"
    person: bool

    @property
    def noun(self) -> str:
        """The last word of the first phrase, "poet"."""
        return self.phrases[0].split()[-1] if self.phrases else ""


def subject_of(title: str, sentences: list[str]) -> Subject:
    """What a lead is about; without phrases where its first sentence does not say it plainly."""
    name = BRACKETED.sub("", title)
    person = any(re.match(r"(?:He|She|His|Her)\b", sentence) for sentence in sentences[1:])
    match = COPULA.match(BRACKETED.sub("", sentences[0])) if sentences else None
    if match is None:
        return Subject(name, "is", [], person)
    rest = re.sub(r"^(?:one of the|any|an?|the) ", "", match["rest"])
    phrases = [
        re.sub(r"^(?:an?|the|and|or) ", "", part).strip(' "')
        for part in re.split(r", (?:and )?| and ", re.split(PHRASE_END_OF_LIST, rest)[0])
    ]
    phrases = [PHRASE_END.split(phrase)[0].strip(' .,;"') for phrase in phrases[:4]]
    return Subject(name, match["verb"], [phrase for phrase in phrases if 0 < len(phrase.split()) <= 6], person)


PHRASE_END_OF_LIST = re.compile(r"; | (?:who|which|that|whose|where|when|from|for|by|to|known|located|in) ")


class Draft(NamedTuple):
    question: str
    answers: list[str]


def lead_questions(documents: Iterable[Document], seed: int, per_sentence: int = 3) -> list[TrainingQuestion]:
    """Questions about every lead, none of a lead twice, in an order drawn by `seed`; `evidence` is left open."""
    rng = random.Random(seed)
    documents = list(documents)
    subjects = {document.title: subject_of(document.title, split_sentences(document.text)) for document in documents}
    nouns = {subject.name: subject for subject in subjects.values()}
    questions = []
    for document in documents:
        drafts = {}
        for draft in _of_lead(document, subjects[document.title], nouns, rng, per_sentence):
            question = _spelled(draft.question, rng)
            if 3 <= len(question.split()) <= 40 and draft.answers[0].lower() not in question.lower():
                drafts[question] = draft.answers
        questions += [TrainingQuestion(question, answers, document.title) for question, answers in drafts.items()]
    rng.shuffle(questions)
    return questions


def _spelled(question: str, rng: random.Random) -> str:
    """As people type: in small letters most times, one question mark."""
    question = " ".join(question.replace(" ,", ",").split()).strip(" .,;:") + "?"
    question = question if rng.random() < 0.35 else question.lower()
    return question[:1].upper() + question[1:] if question[0].isupper() or rng.random() < 0.3 else question


def _of_lead(
    document: Document, subject: Subject, subjects: dict[str, Subject], rng: random.Random, per_sentence: int
) -> Iterator[Draft]:
    sentences = [BRACKETED.sub("", sentence) for sentence in split_sentences(document.text)]
    yield from _what_it_is(subject, rng)
    yield from _what_it_stands_for(document.text, rng)
    for number, sentence in enumerate(sentences):
        plain = resolved(sentence, subject)
        answers = list(candidates(plain, subject))
        for answer in rng.sample(answers, min(per_sentence, len(answers))):
            yield from _without(plain, answer, subject, subjects, rng)
        yield from _which_one(plain, sentence, number, subject, rng)


def _what_it_is(subject: Subject, rng: random.Random) -> Iterator[Draft]:
    if not subject.phrases:
        return
    name, verb = subject.name, subject.verb
    heads = [phrase.split()[-1] for phrase in subject.phrases]
    answers = [*dict.fromkeys([*subject.phrases, *heads])]
    if subject.person:
        forms = ("who {v} {n}", "who {v} {n}", "what {v} {n} famous for", "what is {n} known for", "what did {n} do",
                 "what {v} {n}'s profession", "what does {n} do for a living", "what {v} {n} known as")  # fmt: skip
    else:
        forms = (
            "what {v} {n}",
            "what {v} a {n}",
            "what kind of thing {v} {n}",
            "what type of {h} {v} {n}",
            "define {n}",
        )
    for form in rng.sample(forms, 2):
        yield Draft(form.format(v=verb, n=name, h=heads[0]), answers)


def _what_it_stands_for(text: str, rng: random.Random) -> Iterator[Draft]:
    """ "Food and Agriculture Organization (FAO)": what a short form stands for, and what the short form is."""
    for match in re.finditer(r"((?:[A-Z][\w-]+ (?:of |the |and |for )*){1,5}[A-Z][\w-]+) \(([A-Z]{2,6})\)", text):
        long, short = match[1].removeprefix("The "), match[2]
        yield Draft(rng.choice(("what does {} stand for", "{} is short for what", "what is {}")).format(short), [long])
        yield Draft(
            rng.choice(("what is the abbreviation of the {}", "how is the {} abbreviated")).format(long), [short]
        )


def resolved(sentence: str, subject: Subject) -> str:
    """The sentence with a pronoun that opens it, or "The river", replaced by the lead's subject."""
    if match := POSSESSIVE.match(sentence):
        return f"{subject.name}'s{sentence[match.end() :]}"
    match = PRONOUN.match(sentence)
    if match and (not match["noun"] or (subject.phrases and match["noun"] == subject.noun)):
        return f"{subject.name}{sentence[match.end() :]}"
    return sentence


def candidates(sentence: str, subject: Subject) -> Iterator[tuple[int, int]]:
    """Phrases that a question may ask for, (start, end): names, dates, numbers, and a few common nouns in a row."""
    taken = salient_spans(sentence)
    names = set(re.findall(r"\w+", subject.name.lower()))
    for match in NUMBER.finditer(sentence):
        if not any(start < match.end() and match.start() < end for start, end in taken):
            taken.append(match.span())
    yield from (span for span in taken if not set(re.findall(r"\w+", sentence[slice(*span)].lower())) <= names)
    words = [match.span() for match in WORD.finditer(sentence)]
    run: list[tuple[int, int]] = []
    for word in [*words, (len(sentence), len(sentence))]:
        text = sentence[slice(*word)]
        free = text and text.lower() not in FUNCTION and not any(s < word[1] and word[0] < e for s, e in taken)
        if run and (not free or sentence[run[-1][1] : word[0]] != " "):
            span = run[0][0], run[-1][1]
            if (
                len(run) <= 3
                and len(sentence[slice(*span)]) > 3
                and not sentence[slice(*span)].endswith(("ly", "ed", "ing"))
            ):
                yield span
            run = []
        if free:
            run.append(word)


def _asking(answer: str, before: str, subjects: dict[str, Subject], rng: random.Random) -> str:
    """The words that ask for an answer, such as stand in its place: "which city", "what year", "who"."""
    known = subjects.get(answer) or subjects.get(answer.removeprefix("the "))
    if YEAR.fullmatch(answer):
        return rng.choice(("what year", "which year", "what year"))
    if re.search(YEAR, answer) and len(answer.split()) <= 3:
        return rng.choice(("what date", "when", "which day"))
    if re.match(r"\d", answer):
        unit = re.search(r"[a-z]\w*$", answer)
        return rng.choice(("how many", "what number of")) if not unit else f"how many {unit[0]}"
    if known and known.person:
        return rng.choice(("who", "who", "which person", f"which {known.phrases[0]}" if known.phrases else "who"))
    if known and known.phrases:
        return rng.choice((f"which {known.noun}", f"what {known.noun}", "what"))
    if answer[:1].isupper():
        place = re.search(r" (?:in|of|from|near|to|at)(?: the)? $", before)
        return rng.choice(
            ("what place", "which country", "where", "what") if place else ("who", "what", "who", "which")
        )
    return rng.choice(("what", "what", f"what {answer.split()[-1]}" if len(answer.split()) > 1 else "what"))


def _without(
    sentence: str, span: tuple[int, int], subject: Subject, subjects: dict[str, Subject], rng: random.Random
) -> Iterator[Draft]:
    """A sentence asked for one of its phrases: where it stands, or with the asking words in front."""
    start, end = span
    answer, before, after = sentence[start:end], sentence[:start], sentence[end:]
    asking = _asking(answer, before, subjects, rng)
    before, after = _clause(before, after, subject, rng)
    answers = [answer]
    if (
        asking.split()[-1] == answer.split()[-1].lower() and len(answer.split()) > 1
    ):  # "what language": Romance language
        answers.append(" ".join(answer.split()[:-1]))
    before = re.sub(r"\b(an?|the) $", "", before)
    draw = rng.random()
    auxiliary = AUXILIARY.search(before)
    if draw < 0.35:  # "Pisa is a city in which region"
        yield Draft(f"{before}{asking}{after}", answers)
    elif auxiliary and draw < 0.9:  # "in which region is Pisa a city"
        front, rest = before[: auxiliary.start()], before[auxiliary.end() :]
        preposition = re.search(r" (in|on|of|from|by|to|at|for|with|near|as) $", f" {rest}")
        lead = f"{preposition[1]} " if preposition and rng.random() < 0.4 else ""
        rest = f" {rest}"[: preposition.start()] if preposition and (lead or rng.random() < 0.6) else rest
        if asking.startswith("what year") or asking == "what date":
            asking = rng.choice(("when", f"in {asking}"))
        yield Draft(f"{lead}{asking} {auxiliary[1]} {front} {rest}{after}", answers)
    elif (verb := re.search(r"\b([a-z]+ed|" + "|".join(IRREGULAR) + r")\b ", before)) and draw < 0.9:
        front, rest = before[: verb.start()], before[verb.end() :]
        rest = re.sub(r"\b(?:in|on|by|to|at|from|of) $", "", rest)
        asking = "when" if asking.endswith("year") and rng.random() < 0.6 else asking
        yield Draft(f"{asking} did {front} {_infinitive(verb[1])} {rest}{after}", answers)
    else:  # the words of the sentence, as one types them into a search box
        words = [word for word in f"{before} {after}".split() if word.lower() not in FUNCTION or rng.random() < 0.4]
        yield Draft(f"{asking} {' '.join(words)}", answers)


def _infinitive(past: str) -> str:
    if past in IRREGULAR:
        return IRREGULAR[past]
    stem = past[:-2]
    if stem.endswith("i"):
        return f"{stem[:-1]}y"
    if len(stem) > 2 and stem[-1] == stem[-2] and stem[-1] not in "lsz":
        return stem[:-1]
    return f"{stem}e" if re.search(r"(?:[aiou][bcdgksuvz]|[^aeiou]l|[rln]s|[rn]g|v|u|at|it|ir|ic)$", stem) else stem


def _clause(before: str, after: str, subject: Subject, rng: random.Random) -> tuple[str, str]:
    """Most times the clause alone that a phrase stands in, the subject before it where the clause has none."""
    if rng.random() < 0.75:
        after = CLAUSE.split(after)[0]
    cuts = [match.end() for match in CLAUSE.finditer(before)]
    if cuts and rng.random() < 0.6 and len(before) - cuts[-1] > 12:
        joint, before = before[: cuts[-1]], before[cuts[-1] :]
        if subject.name.lower() not in before.lower():
            verb = f" {subject.verb} " if joint.endswith(",") and not AUXILIARY.search(f" {before}") else " "
            before = f"{subject.name}{verb}{before.strip()} "
    return before, after


def _which_one(plain: str, sentence: str, number: int, subject: Subject, rng: random.Random) -> Iterator[Draft]:
    """A sentence asked for the lead's own subject: "which river flows through Cologne"."""
    if rng.random() > (0.9 if number == 0 else 0.6):
        return
    rest = None
    if number == 0 and (match := COPULA.match(sentence)):
        rest = f"{match['verb']} {match['rest']}"
    elif plain != sentence and plain.startswith(subject.name):
        rest = plain[len(subject.name) :].strip()
    if not rest:
        return
    if number and rng.random() < 0.5 and subject.phrases and not rest.startswith("'s"):
        asking = f"which {rng.choice((subject.phrases[0], subject.noun))}"
    else:
        asking = "whose" if rest.startswith("'s") else ("who" if subject.person else "what")
    rest = rest.removeprefix("'s").strip()
    if rng.random() < 0.6:
        parts = rest.split(", ")
        rest = ", ".join(parts[: rng.randint(1, len(parts))])
    yield Draft(f"{asking} {rest}", [subject.name])
