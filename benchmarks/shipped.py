"""How the model that ships answers what its corpora hold and what they do not: `make shipped`.

A row of shipped.csv is a question, each asked of both corpora together:

    leads         development questions whose answer stands in a Wikipedia lead; *seen* (1) where a written question, or
                  one of the leads' training file, is of the same article and has an accepted answer in common with it,
                  however it is worded: what was learnt may then be the answer and not the way to it
    factbook      those of WebQuestions' dev and devtest that the Factbook can answer; *seen* (1) where a question that
                  the model was trained on is of, or names, the same country and has an accepted answer in common
    unanswerable  those of unanswerable.jsonl: real names, and facts that neither corpus states

R@k is 1 where an answer stands among the first k blocks, "own R@k" where only the blocks of the question's own corpus
are searched; EM where the model's answer is one, "EM alone" where it is given the best block that holds an answer and
no other; all by ORQA's normalised words. `--calibrate` fits P(right) to the dev questions of both corpora and writes
the calibration that ships.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from default_data import written_questions
from factbook_questions import factbook_pages, factbook_questions, factbook_slice, named, slice_names
from torch import Tensor

from realm_min.app import default_model
from realm_min.app.cli import status_of
from realm_min.app.console import progress_report
from realm_min.app.plots import plot_reliability
from realm_min.files.atomic import write_atomically
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import calibration
from realm_min.jobs.evaluation import has_answer_words, normalize_answer, official_exact_match
from realm_min.text.corpus import Block, cut_blocks, factbook_documents
from realm_min.text.questions import Question, read_questions, read_training_questions, rows_to_ask

HERE = Path(__file__).parent
KS = (1, 5, 20)
FOLDS = 5
DIVISIONS = 100  # into folds: the calibration error of one differs from that of another by 0.01
LOSE = 0.07  # of the right answers that a threshold is fitted to; of others a little more falls below it
SEED = 0  # of the folds, and that of default_data.py's questions
COLUMNS = [
    "kind", "split", "id", "seen", *(f"R@{k}" for k in KS), *(f"own R@{k}" for k in KS), "EM", "EM alone",
    "p", "marginal p", "score",
]  # fmt: skip
Pair = tuple[str, str]  # country and normalised answer
Row = dict[str, str]


class Asked(NamedTuple):
    kind: str
    split: str
    id: str
    question: Question
    seen: str = ""


# ---- the questions


def pairs_of(questions: Iterable[Question]) -> list[set[Pair]]:
    """The countries that each question names, with each of its answers."""
    names = {title: slice_names(title, page) for title, page in factbook_pages().items()}
    return [
        {(title, normalize_answer(answer)) for title in named(question.question, names) for answer in question.answers}
        for question in questions
    ]


def seen_pairs(asked: list[Question], blocks: list[Block]) -> set[Pair]:
    """What training asked for: the Factbook's fields, WebQuestions' training questions that it can answer, written."""
    written = [question for _, question in written_questions()]
    known = [*factbook_questions(SEED), *(question for question in written if question.title in factbook_pages())]
    of_titles = {(str(question.title), normalize_answer(answer)) for question in known for answer in question.answers}
    named_there = [Question(question.question, question.answers) for question in written]
    return of_titles.union(*pairs_of([*factbook_slice(asked, blocks), *named_there]))


def seen_in_leads(questions: Path) -> Iterator[str]:
    """For each line of dev.jsonl "1" where training asked for the same article and an answer of it, "0" elsewhere."""
    written = [question for corpus, question in written_questions() if not corpus]
    asked = [*written, *read_training_questions(questions / "train.jsonl")]
    known = {(question.title, normalize_answer(answer)) for question in asked for answer in question.answers}
    for question in read_training_questions(questions / "dev.jsonl"):
        yield str(int(any((question.title, normalize_answer(answer)) in known for answer in question.answers)))


def all_questions(questions: Path, webquestions: Path, blocks: list[Block]) -> Iterator[Asked]:
    """Of the folders with dev.jsonl and webquestions.*.jsonl; `blocks` of the Factbook."""
    for row, seen in zip(rows_to_ask(questions / "dev.jsonl"), seen_in_leads(questions), strict=True):
        if row.question:
            yield Asked("leads", "dev", row.id, row.question, seen)
    pairs_seen = seen_pairs(list(read_questions(webquestions / "webquestions.train.jsonl")), blocks)
    for split in ("dev", "devtest"):
        path = webquestions / f"webquestions.{split}.jsonl"
        ids = {row.question.question: row.id for row in rows_to_ask(path) if row.question}
        found = factbook_slice(read_questions(path), blocks)
        for question, pairs in zip(found, pairs_of(found), strict=True):
            yield Asked("factbook", split, ids[question.question], question, str(int(bool(pairs & pairs_seen))))
    lines = (HERE / "unanswerable.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        yield Asked("unanswerable", "", str(number), Question(json.loads(line)["question"], []))


# ---- the answers


def measured(models: dict[str, RealmForOpenQA], asked: Asked) -> Row:
    """A question's row. models: by corpus, and of all."""
    model, (text, answers) = models[default_model.ALL], asked.question
    read = model.config.reader_beam_size
    scores, ids, held = found_by(model, asked.question)
    answer = model.answer_from(text, scores[:read], ids[:read])
    row = dict.fromkeys(COLUMNS, "") | {
        "kind": asked.kind, "split": asked.split, "id": asked.id, "seen": asked.seen, "p": f"{answer.probability:.6f}",
        "marginal p": f"{answer.marginal_probability:.6f}", "score": f"{answer.score:.5f}",
    }  # fmt: skip
    if not answers:
        return row
    row |= {f"R@{k}": str(int(any(held[:k]))) for k in KS}
    of_own = found_by(models[asked.kind], asked.question)[2]
    row |= {f"own R@{k}": str(int(any(of_own[:k]))) for k in KS}
    row["EM"] = str(int(official_exact_match(answer.text, answers)))
    if any(held):
        best = held.index(True)
        alone = model.answer_from(text, scores[best : best + 1], ids[best : best + 1])
        row["EM alone"] = str(int(official_exact_match(alone.text, answers)))
    return row


def found_by(model: RealmForOpenQA, question: Question) -> tuple[Tensor, Tensor, list[bool]]:
    """f(x, z) and the numbers of the best blocks, and which of them hold an answer."""
    (scores,), (ids,) = model.retrieve(question.question, min(max(KS), len(model.block_emb)))
    return scores, ids, [has_answer_words(model.evidence.text(i), question.answers) for i in ids.tolist()]


def measure(asked: list[Asked], out: Path) -> list[Row]:
    """The row of every question, kept as they come beside `out`; what was asked before is not asked again."""
    models = {corpus: default_model.load(corpus) for corpus in (default_model.ALL, *default_model.CORPORA)}
    partial = out.with_name(out.name + ".partial")
    done = read_rows(partial) if partial.is_file() else []
    with open(partial, "a", encoding="utf-8", newline="") as file, progress_report() as report:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for number, each in enumerate(asked):
            if number >= len(done):
                writer.writerow(measured(models, each))
                file.flush()
            report("Answering", number + 1, len(asked))
    partial.replace(out)
    return read_rows(out)


def read_rows(path: Path) -> list[Row]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ---- how well P(right) says it


def fitted(rows: list[Row]) -> calibration.Calibration:
    numbers = ([float(row[name]) for row in rows] for name in ("p", "score"))
    return calibration.fit(*numbers, [row["EM"] == "1" for row in rows], LOSE)


def held_out_confidences(rows: list[Row], seed: int = SEED) -> tuple[list[float], list[bool]]:
    """P(right) of each answer and whether it is found, by a fit to the four fifths of the questions without it.

    Args:
        seed: of the division into fifths.
    """
    # A question that is of both kinds has an id in each, but the same answer: it is left out of both.
    answers = [(row["p"], row["score"]) for row in rows]
    some = sorted(set(answers))
    fold = {some[i]: place % FOLDS for place, i in enumerate(np.random.default_rng(seed).permutation(len(some)))}
    pairs = list(zip(rows, answers, strict=True))
    fits = [fitted([row for row, answer in pairs if fold[answer] != left]) for left in range(FOLDS)]
    asked = [(fits[fold[answer]], float(row["p"]), float(row["score"])) for row, answer in pairs]
    return [fit.confidence(p, score) for fit, p, score in asked], [fit.found(p, score) for fit, p, score in asked]


def distinct(rows: list[Row]) -> list[int]:
    """Places of the rows, one of each answer: a question that is of both kinds has two."""
    return sorted({(row["p"], row["score"]): i for i, row in reversed([*enumerate(rows)])}.values())


class HeldOut(NamedTuple):
    """What one division says of distinct answers."""

    error: float  # of P(right)
    by_chance: float  # what it would be of a P(right) without any: so many answers in ten bins are off by chance
    sure: float  # P(right) at least 0.9
    sure_and_right: float
    lost: float  # right, and called "not found"


def held_out(rows: list[Row], seed: int) -> HeldOut:
    """Of one division."""
    places = distinct(rows)
    right = np.array([rows[i]["EM"] == "1" for i in places])
    confidences, found = (np.array(values)[places] for values in held_out_confidences(rows, seed))
    drawn, sure = np.random.default_rng(seed).random(len(places)) < confidences, confidences >= 0.9
    errors = (calibration.calibration_error(confidences, happened) for happened in (right, drawn))
    return HeldOut(*errors, int(sure.sum()), int((right & sure).sum()), int((right & ~found).sum()))


def judge(rows: list[Row], out: Path) -> dict[str, str]:
    """What shipped-calibration.csv says, and its picture: means over the divisions, but for what no fit is needed."""
    dev, nothing = ([row for row in rows if row["split"] == split] for split in ("dev", ""))
    places = distinct(dev)
    right, ps = [dev[i]["EM"] == "1" for i in places], [float(dev[i]["p"]) for i in places]
    confidences = np.array(held_out_confidences(dev)[0])[places]
    plot_reliability(calibration.bins(confidences, right), out.with_name("shipped-reliability.png"))
    found, final = HeldOut(*np.mean([held_out(dev, seed) for seed in range(DIVISIONS)], axis=0)), fitted(dev)
    refused = [not final.found(float(row["p"]), float(row["score"])) for row in nothing]
    values = {
        "answers": len(places), "right": sum(right),
        "calibration error": f"{found.error:.4f}", "calibration error by chance": f"{found.by_chance:.4f}",
        "calibration error of p": f"{calibration.calibration_error(ps, right):.4f}",
        "P(right) at least 0.9": f"{found.sure:.2f}", "of them right": f"{found.sure_and_right:.2f}",
        "right, not found": f"{found.lost:.2f}", "unanswerable": len(nothing), "of them not found": sum(refused),
    }  # fmt: skip
    return {name: str(value) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, metavar="FOLDER", help="dev.jsonl of the leads")
    parser.add_argument("--webquestions", type=Path, required=True, metavar="FOLDER", help="its three .jsonl files")
    parser.add_argument("--out", type=Path, default=HERE / "shipped.csv", metavar="FILE.csv")
    parser.add_argument("--calibrate", action="store_true", help="write the calibration that ships")
    given = parser.parse_args()
    blocks = list(cut_blocks(factbook_documents(), default_model.load().evidence.tokenizer))
    rows = measure(list(all_questions(given.questions, given.webquestions, blocks)), given.out)
    if given.calibrate:
        calibration.write_calibration(fitted([row for row in rows if row["split"] == "dev"]), default_model.ASSETS)
    figures = judge(rows, given.out)
    with (
        write_atomically(given.out.with_name("shipped-calibration.csv")) as temporary,
        open(temporary, "w", newline="") as file,
    ):
        writer = csv.DictWriter(file, figures.keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerow(figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    sys.exit(status_of(main))
