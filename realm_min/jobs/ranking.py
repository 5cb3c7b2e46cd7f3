"""Judged documents: TREC's files of runs and judgements, and the measures of a ranking.

A run says for each question which documents were found, best first: a line "QUESTION Q0 DOCUMENT RANK SCORE TAG" each.
Judgements (qrels) say how relevant documents are: "QUESTION 0 DOCUMENT GRADE" a line, as TREC has it, or BEIR's table
with a header, question<tab>document<tab>grade. A grade above 0 is relevant; what is not judged is not.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from ..text.lines import text_lines

RECALL_AT = (1, 5, 10, 20, 50, 100)
NDCG_AT = 10
TAG = "realm-min"
LARGEST_GRADE = 10**6  # far above any that is given, and far below what a float holds

Judgements = dict[str, dict[str, int]]  # question -> document -> grade


def run_lines(question: str, ranking: Iterable[tuple[str, float]]) -> Iterator[str]:
    """The lines of a run for one question's (document, score), best first; a document stands once, where it is best.

    White space in ids becomes %20 and the like, since it parts the columns.
    """
    for rank, (document, score) in enumerate(distinct(ranking), start=1):
        yield f"{one_word(question)} Q0 {document} {rank} {score:.9g} {TAG}\n"


def distinct(ranking: Iterable[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """A ranking's documents as a run names them, each once, with the score of its best block."""
    seen = set()
    for document, score in ranking:
        name = one_word(document)
        if name not in seen:
            seen.add(name)
            yield name, score


def one_word(name: str) -> str:
    """An id without white space; one that has some is percent-encoded, so far as needed."""
    return re.sub(r"[\s%]", lambda match: quote(match[0]), name) if re.search(r"\s", name) else name


def read_judgements(path: str | os.PathLike) -> Judgements:
    """The judgements of a file, TREC's or BEIR's, ids as `one_word` gives them.

    Raises:
        OSError: there is no such file.
        ValueError: it holds none, or a line is malformed; it is named by its number.
    """
    found: Judgements = {}
    for number, line in enumerate(text_lines(path), start=1):
        text = line.decode(errors="replace").strip()
        cells = text.split("\t") if text.count("\t") == 2 else text.split()
        if not text or (number == 1 and cells[0].lower() in ("query-id", "query_id", "qid")):
            continue
        try:
            question, document, grade = cells if len(cells) == 3 else (cells[0], *cells[2:])
            judged, document = found.setdefault(one_word(question.strip()), {}), one_word(document.strip())
            if judged.setdefault(document, int(grade)) != int(grade) or abs(int(grade)) > LARGEST_GRADE:
                raise ValueError
        except ValueError:
            raise ValueError(
                f'{os.fspath(path)} line {number} is {text[:80]!r}: each needs "QUESTION 0 DOCUMENT GRADE", the grade '
                f"a whole number up to {LARGEST_GRADE:,} and the same wherever a document is judged again"
            ) from None
    if not found:
        raise ValueError(f"{os.fspath(path)} holds no judgement: give a file of TREC's qrels, or BEIR's")
    return found


def measures(ranking: Sequence[str], judged: dict[str, int]) -> dict[str, float | None]:
    """recall@k, reciprocal rank ("mrr") and ndcg@10 of one question's documents, best first; None if none is relevant.

    recall@k: the share of the relevant documents that are among the first k. Reciprocal rank: 1 over the place of the
    first relevant one, 0 if there is none. nDCG@10 (Järvelin and Kekäläinen 2002): Σ grade / log2(place + 1) over the
    first 10, over what the best order of all judged documents would have.
    """
    names = [*(f"recall@{k}" for k in RECALL_AT), "mrr", f"ndcg@{NDCG_AT}"]
    ideal = sorted((grade for grade in judged.values() if grade > 0), reverse=True)
    if not ideal:
        return dict.fromkeys(names)
    grades = [max(judged.get(document, 0), 0) for document in ranking]
    recalls = [sum(grade > 0 for grade in grades[:k]) / len(ideal) for k in RECALL_AT]
    reciprocal = next((1 / place for place, grade in enumerate(grades, start=1) if grade > 0), 0.0)
    return dict(zip(names, [*recalls, reciprocal, gain(grades) / gain(ideal)], strict=True))


def gain(grades: Sequence[int]) -> float:
    """The discounted cumulative gain of the first ten."""
    return sum(grade / math.log2(place + 1) for place, grade in enumerate(grades[:NDCG_AT], start=1))
