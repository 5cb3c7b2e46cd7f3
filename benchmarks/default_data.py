"""What the default model learns from, as one file of whole numbers that a machine without any package can train on.

    .venv/bin/python benchmarks/default_data.py --questions FOLDER --webquestions FOLDER --out FILE.npz

Blocks: the Wikipedia leads, then the CIA World Factbook's, cut as `text/corpus.py` cuts them. Questions, each with the
wordpieces of its answers and the blocks that are its evidence:

    lead        real questions whose answer stands in a lead (the training file of the leads)
    web         WebQuestions' other training questions; a block with an answer counts as evidence
    slice       those of them that the Factbook can answer
    field       made from the Factbook's fields (`factbook_questions.py`)
    made        made from the leads' sentences (`lead_questions.py`)
    written     written for this model from both corpora, one by one (`written/`, docs/written-questions.md)
    sentence    sentences of the leads, each the question of its own lead, as the Inverse Cloze Task has it
    dev, fdev   development questions of the leads, and those of WebQuestions that the Factbook can answer

No development question is among the others.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from factbook_questions import factbook_questions, factbook_slice
from lead_questions import lead_questions

from realm_min.files.atomic import write_atomically
from realm_min.jobs import warm_start
from realm_min.jobs.evaluation import normalize_answer
from realm_min.text.corpus import Block, cut_blocks, factbook_documents, record, split_sentences
from realm_min.text.leads import lead_documents
from realm_min.text.questions import TrainingQuestion, read_questions, read_training_questions

SEED = 0
KINDS = ("lead", "web", "slice", "field", "made", "written", "sentence", "dev", "fdev")
WRITTEN = Path(__file__).parent / "written"  # files of training questions, named for their corpus
WIDEST = 10  # wordpieces of an answer
LONGEST_QUESTION = 62  # wordpieces
MOST_EVIDENCE = (
    1500  # blocks of a question of WebQuestions; an answer in more of them says nothing of where it was found
)
FEW_BLOCKS = 20  # an answer that no more of them hold is evidence wherever it stands, of a written question
SENTENCES = 20_000


class Ragged(NamedTuple):
    """Rows of different lengths, end to end."""

    flat: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]], dtype: str) -> Ragged:
        rows = list(rows)
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        flat = np.fromiter((value for row in rows for value in row), dtype, int(ends[-1]) if len(rows) else 0)
        return cls(flat, ends)

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        return self.flat[self.ends[row - 1] if row else 0 : self.ends[row]]

    def rows(self) -> int:
        return len(self.ends)


class Data(NamedTuple):
    """See the module's head. `answers` are rows of wordpieces, of question i those up to `last_answer[i]`."""

    num_leads: int  # blocks before the Factbook's
    titles: Ragged
    texts: Ragged
    kinds: np.ndarray  # [questions] numbers of KINDS
    questions: Ragged
    answers: Ragged
    last_answer: np.ndarray
    evidence: Ragged  # blocks; of a development question those that hold an answer as whole words

    def of_kind(self, *names: str) -> np.ndarray:
        """Numbers of the questions of some kinds."""
        return np.flatnonzero(np.isin(self.kinds, [KINDS.index(name) for name in names]))

    def answers_of(self, question: int) -> list[np.ndarray]:
        first = self.last_answer[question - 1] if question else 0
        return [self.answers[i] for i in range(first, self.last_answer[question])]


def save(data: Data, path: Path) -> None:
    arrays = {}
    for name, value in data._asdict().items():
        if isinstance(value, Ragged):
            arrays |= {f"{name}.flat": value.flat, f"{name}.ends": value.ends}
        else:
            arrays[name] = np.asarray(value)
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> Data:
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in Data._fields:
            if f"{name}.flat" in arrays:
                found[name] = Ragged(arrays[f"{name}.flat"], arrays[f"{name}.ends"])
            else:
                found[name] = arrays[name]
    return Data(**found)._replace(num_leads=int(found["num_leads"]))


def part_of(data: Data, leads: int, factbook: int) -> Data:
    """The first so many blocks of each corpus, and the questions that have evidence among them: for a trial."""
    kept = [*range(leads), *range(data.num_leads, data.num_leads + factbook)]
    number = {block: i for i, block in enumerate(kept)}
    evidence = [[number[b] for b in data.evidence[i].tolist() if b in number] for i in range(len(data.kinds))]
    some = [i for i, blocks in enumerate(evidence) if blocks]
    answers = [data.answers_of(i) for i in some]
    return Data(
        leads, Ragged.of([data.titles[b] for b in kept], "uint16"), Ragged.of([data.texts[b] for b in kept], "uint16"),
        data.kinds[some], Ragged.of([data.questions[i] for i in some], "uint16"),
        Ragged.of([row for rows in answers for row in rows], "uint16"), np.cumsum([len(rows) for rows in answers]),
        Ragged.of([evidence[i] for i in some], "uint16"),
    )  # fmt: skip


# ---- evidence


class Places:
    """Where texts, of ids or of words, occur in blocks."""

    def __init__(self, blocks: Sequence[str]) -> None:
        self.blocks = blocks
        self.text = "\n".join(blocks)
        self.starts = np.cumsum([0, *(len(block) + 1 for block in blocks)])

    def blocks_with(self, text: str) -> Iterator[int]:
        """Numbers of the blocks that hold `text`, ascending."""
        place, last = self.text.find(text), -1
        while place >= 0:
            block = int(np.searchsorted(self.starts, place, side="right")) - 1
            if block != last:
                yield block
            last = block
            place = self.text.find(text, place + 1)


def as_letters(ids: Iterable[int]) -> str:
    """Wordpieces as a text, a letter each, in which find() finds."""
    return "".join(chr(0x100 + i if i < 0xD000 else 0x10000 + i) for i in ids)


class Draft(NamedTuple):
    kind: str
    question: str
    answers: Sequence[str]
    evidence: list[int] | None = None  # where it is known; None: every block with an answer


def drafts(
    leads: list[Block], factbook: list[Block], questions: Path, webquestions: Path, limit: int | None
) -> Iterator[Draft]:
    """Every question, in the order of KINDS but for "dev" and "fdev", which come first to be left out elsewhere."""
    web = list(read_questions(webquestions / "webquestions.train.jsonl"))
    slice_ = factbook_slice(web, factbook)
    in_slice = {question.question for question in slice_}
    fdev = factbook_slice(read_questions(webquestions / "webquestions.dev.jsonl"), factbook)
    yield from (Draft("dev", *question) for question in read_questions(questions / "dev.jsonl"))
    yield from (Draft("fdev", *question) for question in fdev)
    yield from (Draft("lead", *question) for question in read_questions(questions / "train.jsonl"))
    yield from (Draft("slice", *question) for question in slice_)
    yield from (Draft("web", *question) for question in web if question.question not in in_slice)
    places: dict[str, list[int]] = {}
    for number, block in enumerate([*leads, *factbook]):
        places.setdefault(("" if number < len(leads) else "factbook ") + block.title, []).append(number)
    for question in factbook_questions(SEED)[:limit]:
        known = [
            number for number in places[f"factbook {question.title}"]
            if f"{question.field}:" in factbook[number - len(leads)].text
        ]  # fmt: skip
        yield Draft("field", question.question, question.answers, known)
    for question in lead_questions(lead_documents(), SEED)[:limit]:
        yield Draft("made", question.question, question.answers, places[str(question.title)])
    for corpus, question in written_questions(limit):
        yield Draft("written", question.question, question.answers, places[f"{corpus}{question.title}"])
    rng = random.Random(SEED)
    for number in rng.choices(range(len(leads)), k=SENTENCES if limit is None else limit):
        sentence = rng.choice(split_sentences(leads[number].text))
        titled = rng.random() < 0.5
        yield Draft("sentence", f"{leads[number].title}. {sentence}" if titled else sentence, (), [number])


def written_questions(limit: int | None = None) -> Iterator[tuple[str, TrainingQuestion]]:
    """Each with what its title has before it among the places: the Factbook's titles are some leads' as well."""
    for path in sorted(WRITTEN.glob("*.jsonl")):
        corpus = "factbook " if path.name.startswith("factbook") else ""
        yield from ((corpus, question) for question in read_training_questions(path)[:limit])


def evidence_in(
    kind: str, told: list[int] | None, answers: list[str], places: Places, known: dict[str, list[int]]
) -> list[int]:
    """The blocks that a training question's evidence is: those that hold an answer of those that it was made from.

    Args:
        told: what it was made from; None where nobody knows, and any block with an answer is taken.
        answers: as `places` has wordpieces.
        known: where answers stand, to look each up once.
    """
    if kind == "sentence":
        return told or []
    holds = [block for block in told or [] if any(text in places.blocks[block] for text in answers)]
    if told is not None and not (kind == "written" and holds):
        return holds
    for text in answers:
        if text not in known:
            known[text] = list(places.blocks_with(text))
    anywhere = sorted({block for text in answers for block in known[text]})
    if told is not None:
        return anywhere if len(anywhere) <= FEW_BLOCKS else holds
    return [] if kind == "web" and len(anywhere) > MOST_EVIDENCE else anywhere


def prepare(questions: Path, webquestions: Path, limit: int | None = None) -> Data:
    """Read, cut and tokenize all of it; `limit` takes that many made questions and sentences, for a trial."""
    tokenizer = warm_start.tokenizer(None)

    def ids_of(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    leads, factbook = (list(cut_blocks(documents, tokenizer)) for documents in (lead_documents(), factbook_documents()))
    blocks = [*leads, *factbook]
    pieces = ids_of([record(block).decode() for block in blocks])
    by_ids = Places([as_letters(row) for row in pieces])
    by_words = Places([f" {normalize_answer(record(block).decode())} " for block in blocks])
    found, seen = [], set()
    for draft in drafts(leads, factbook, questions, webquestions, limit):
        if draft.kind in ("dev", "fdev"):  # some are both
            seen.add(draft.question.lower())
        elif draft.question.lower() in seen:
            continue
        found.append(draft)
    question_ids = ids_of([draft.question for draft in found])
    answer_ids = iter(ids_of([answer for draft in found for answer in draft.answers]))
    rows: dict[str, list] = {name: [] for name in ("kinds", "questions", "answers", "last_answer", "evidence")}
    known: dict[str, list[int]] = {}
    for draft, ids in zip(found, question_ids, strict=True):
        spans = [next(answer_ids) for _ in draft.answers]
        spans = [span for span in spans if 0 < len(span) <= WIDEST]
        evidence = draft.evidence
        if evidence is None and draft.kind in ("dev", "fdev"):
            words = filter(None, map(normalize_answer, draft.answers))
            evidence = sorted({block for text in words for block in by_words.blocks_with(f" {text} ")})
        else:
            evidence = evidence_in(draft.kind, evidence, [as_letters(span) for span in spans], by_ids, known)
        if not evidence and draft.kind in ("made", "field", "sentence"):
            continue
        rows["kinds"].append(KINDS.index(draft.kind))
        rows["questions"].append(ids[:LONGEST_QUESTION])
        rows["answers"] += spans
        rows["last_answer"].append(len(rows["answers"]))
        rows["evidence"].append(evidence)
    titles, texts = ([*column] for column in zip(*blocks, strict=True))
    return Data(
        len(leads), Ragged.of(ids_of(titles), "uint16"), Ragged.of(ids_of(texts), "uint16"),
        np.array(rows["kinds"], np.uint8), Ragged.of(rows["questions"], "uint16"), Ragged.of(rows["answers"], "uint16"),
        np.array(rows["last_answer"], np.int64), Ragged.of(rows["evidence"], "uint16"),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, metavar="FOLDER", help="train.jsonl and dev.jsonl")
    parser.add_argument("--webquestions", type=Path, required=True, metavar="FOLDER", help="webquestions.*.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--limit", type=int, metavar="N", help="made questions of each kind, for a trial")
    given = parser.parse_args()
    data = prepare(given.questions, given.webquestions, given.limit)
    save(data, given.out)
    for number, kind in enumerate(KINDS):
        print(f"{kind:<9} {int((data.kinds == number).sum()):>8,} questions")
    print(f"{data.titles.rows():,} blocks, {data.num_leads:,} of them leads")


if __name__ == "__main__":
    main()
