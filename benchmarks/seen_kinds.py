"""How the default model answers what it was asked in training, and what it was not: `make seen-kinds`.

A question of WebQuestions counts as *seen* where a question that the model was fine-tuned on names the same country and
has an accepted answer in common with it, however it is worded: what was learnt may then be the answer and not the way
to it. All others are *unseen*. A row of the CSV is a question; R@k is 1 where an answer stands among the first k
blocks, EM where the model's answer is one, both by ORQA's normalised words.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import train_demo as demo
from factbook_questions import factbook_pages, factbook_questions, factbook_slice, named, slice_names

from realm_min.app import default_model
from realm_min.app.cli import status_of
from realm_min.files.atomic import write_atomically
from realm_min.jobs.evaluation import Question, has_answer_words, normalize_answer, official_exact_match
from realm_min.jobs.statistics import wilson
from realm_min.text.corpus import Block, cut_blocks, factbook_documents
from realm_min.text.questions import read_questions, rows_to_ask

KS = (1, 5, 20)
Pair = tuple[str, str]  # country and normalised answer


def pairs_of(questions: Iterable[Question]) -> list[set[Pair]]:
    """The countries that each question names, with each of its answers."""
    names = {title: slice_names(title, page) for title, page in factbook_pages().items()}
    return [
        {(title, normalize_answer(answer)) for title in named(question.question, names) for answer in question.answers}
        for question in questions
    ]


def seen_pairs(asked: list[Question], blocks: list[Block]) -> set[Pair]:
    """What fine-tuning asked for: the Factbook's fields, and WebQuestions' training questions that it can answer."""
    fields = factbook_questions(demo.SEED)[: demo.FIELD_QUESTIONS]
    of_fields = {(question.title, normalize_answer(answer)) for question in fields for answer in question.answers}
    return of_fields.union(*pairs_of(factbook_slice(asked, blocks)))


def measure(splits: dict[str, list[Question]], ids_of: dict[str, str], seen: set[Pair]) -> list[dict[str, object]]:
    """A row a question, by the id that its file gives it."""
    model, rows = default_model.load(), []
    for split, questions in splits.items():
        for question, pairs in zip(questions, pairs_of(questions), strict=True):
            scores, ids = model.retrieve(question.question, max(KS))
            held = [has_answer_words(model.evidence.text(i), question.answers) for i in ids[0].tolist()]
            beam = model.config.reader_beam_size
            answer = model.answer_from(question.question, scores[0, :beam], ids[0, :beam])
            rows.append(
                {"split": split, "id": ids_of[question.question], "seen": int(bool(pairs & seen))}
                | {f"R@{k}": int(any(held[:k])) for k in KS}
                | {"EM": int(official_exact_match(answer.text, question.answers)), "p": f"{answer.probability:.4f}"}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--webquestions", type=Path, required=True, metavar="FOLDER", help="its three .jsonl files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "seen-kinds.csv", metavar="FILE.csv")
    given = parser.parse_args()
    files = {split: given.webquestions / f"webquestions.{split}.jsonl" for split in ("train", "dev", "devtest")}
    asked = {split: list(read_questions(file)) for split, file in files.items()}
    blocks = list(cut_blocks(factbook_documents(), default_model.load().retriever.tokenizer))
    seen = seen_pairs(asked.pop("train"), blocks)
    ids_of = {row.question.question: row.id for split in asked for row in rows_to_ask(files[split]) if row.question}
    rows = measure({split: factbook_slice(questions, blocks) for split, questions in asked.items()}, ids_of, seen)
    with write_atomically(given.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for kind in (1, 0):
        some = [row for row in rows if row["seen"] == kind]
        for name in (*(f"R@{k}" for k in KS), "EM"):
            mean = sum(int(str(row[name])) for row in some) / len(some)
            low, high = wilson(mean, len(some))
            print(f"{'seen' if kind else 'unseen':7} n {len(some):3} {name:5} {100 * mean:5.1f} "
                  f"[{100 * low:.1f}, {100 * high:.1f}]")  # fmt: skip


if __name__ == "__main__":
    sys.exit(status_of(main))
