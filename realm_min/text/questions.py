"""Files of questions and their answers: to measure a model by, and to learn from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from .lines import json_lines


class Question(NamedTuple):
    question: str
    answers: list[str]  # references, any of which is right; at least one


class TrainingQuestion(NamedTuple):
    """A question, its accepted answers and what is known of the evidence: its document's title, words that it holds."""

    question: str
    answers: list[str]
    title: str | None = None
    evidence: str | None = None


def read_questions(path: str | os.PathLike) -> Iterator[Question]:
    """Questions of a .jsonl file, each line {"question": "...", "answer": ["...", …]}, read as they are asked for.

    Raises:
        ValueError: a line is malformed; it is named by its number.
    """
    for number, value in json_lines(path):
        yield checked_question(path, number, value)


def read_training_questions(path: str | os.PathLike) -> list[TrainingQuestion]:
    """Questions of a .jsonl file, each line {"question": "...", "answer": ["...", …]}, "title", "evidence" where known.

    Raises:
        ValueError: a line is malformed; it is named by its number.
    """
    found = []
    for number, value in json_lines(path):
        question, answers = checked_question(path, number, value)
        known = {key: value[key] for key in ("title", "evidence") if value.get(key) is not None}
        for key, given in known.items():
            if not isinstance(given, str):
                raise ValueError(f'{path} line {number}: "{key}" is {given!r}, not a string')
        found.append(TrainingQuestion(question, answers, **known))
    return found


def checked_question(path: str | os.PathLike, number: int, value: dict[str, Any]) -> Question:
    """The question of line `number`; ValueError if it has none, or no answers."""
    question, answers = value.get("question"), value.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f'{path} line {number} has no "question"; each line needs one, a string that is not empty')
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f'{path} line {number} has no "answer"; each line needs one, a list of strings')
    return Question(question, answers)
