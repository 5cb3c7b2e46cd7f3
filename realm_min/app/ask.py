"""`realm-min ask`: questions in, answers out, each with its sentence and its source, on a terminal or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import NamedTuple

from ..files.hub import resolve_folder
from ..interface.open_qa import Answer, RealmForOpenQA
from ..jobs.calibration import Judge, read_calibration
from ..ranks import distributed
from ..ranks.devices import chosen_device
from ..ranks.watcher import RankFailedError
from . import default_model, plots
from .answer_lines import print_answer
from .cli import load_model, one_line
from .printable import read_line, remark, say_json


class Asked(NamedTuple):
    question: str
    where: str | None  # it stands, for an error; None at a prompt, where asking goes on
    fault: str = ""  # why it cannot be read


# Asked as people ask, not in the words of the corpora; each has one answer.
EXAMPLES = (
    "What is the capital of Kazakhstan?",
    "Who wrote War and Peace?",
    "When did Ghana gain independence?",
    "Who painted the Mona Lisa?",
    "Which river flows through Paris?",
)


def run(options: argparse.Namespace) -> int:
    """Run `realm-min ask`; returns the exit status."""
    world, device = distributed.world(), chosen_device(options.device)
    asked: list[Iterator[Asked]] = []
    world.on_first(lambda: asked.extend([questions_of(options)]))  # before the model is loaded: there may be none
    model = load_model(options.model, options.corpus, texts=world.is_first).to(device)
    if not world.is_first:
        model.follow()
    return world.on_first(lambda: answer_all(options, model, asked[0]))


def judge_of(options: argparse.Namespace) -> Judge:
    """What decides which answers are found: the model's calibration, where it has one, else p(y|x); and --threshold.

    Raises:
        ValueError: the calibration is damaged.
    """
    folder = resolve_folder(options.model) if options.model else default_model.PACKED_FILE.parent
    calibration = read_calibration(folder)
    if options.threshold is not None:
        return Judge(options.threshold, calibration)
    return Judge(calibration.threshold if calibration else 0.0, calibration)


def questions_of(options: argparse.Namespace) -> Iterator[Asked]:
    """What is asked: by the arguments; without any by the standard input, a line each, or at a prompt on a terminal.

    Raises:
        ValueError: the standard input is closed, or ends before any question.
    """
    if options.questions not in ([], ["-"]) or options.examples:
        return (Asked(question, "") for question in options.questions or EXAMPLES)
    if sys.stdin is not None and sys.stdin.isatty():
        return prompted()
    lines = lines_asked()
    first = next(lines, None)
    if first is None:
        raise ValueError(
            "there is no question, and the standard input holds none: give questions as arguments, or a line each on "
            "the standard input; --examples asks five"
        )
    return chain([first], lines)


def lines_asked() -> Iterator[Asked]:
    """The questions of the standard input, as they come: every line that is not blank."""
    if sys.stdin is None:  # it is closed
        return
    for number, line in enumerate(getattr(sys.stdin, "buffer", sys.stdin), start=1):
        fault = ""
        if isinstance(line, bytes):
            try:
                line = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                line, fault = repr(line), f"this is not UTF-8 text ({error}): convert the standard input"
        if line.strip():
            yield Asked(line.strip(), f"line {number}: ", fault)


def prompted() -> Iterator[Asked]:
    remark("Ask in English. Ctrl-C clears the line; an empty line or Ctrl-D ends.")

    def lines() -> Iterator[Asked]:
        while question := read_line("? "):
            yield Asked(question, None)

    return lines()


def answer_all(options: argparse.Namespace, model: RealmForOpenQA, asked: Iterator[Asked]) -> int:
    """Answer what is asked, on rank 0; then, or where that fails, let the ranks go that search with it."""
    try:
        status = answer_questions(options, model, asked)
    except RankFailedError:
        raise  # nobody is left
    except Exception:
        model.follow()
        raise
    model.follow()
    return status


def answer_questions(options: argparse.Namespace, model: RealmForOpenQA, asked: Iterator[Asked]) -> int:
    """Answer each question as it comes; one that cannot be answered is named, and costs no other its answer."""
    status, judge = 0, judge_of(options)
    if options.k:
        model.check_searchable(options.k)
    for question, where, fault in asked:
        try:
            if fault:
                raise ValueError(fault)
            model.check_questions([question])
        except ValueError as error:
            remark(f"realm-min: {where or ''}{one_line(error)}")
            status = status if where is None else 2
            continue
        answer = model.answer([question], options.k)[0]
        if options.json:
            print_json(answer, judge)
        else:
            print_answer(answer, judge, asked=where is not None, blocks=options.blocks)
        if options.plot:
            plots.plot_answer(model, answer, options.plot)
            remark(f"Drawn in {options.plot}")
    return status


def print_json(answer: Answer, judge: Judge) -> None:
    """One JSON object in a line: `found` says whether the threshold is reached, `confidence` is P(right) or null."""
    values, found = asdict(answer), {"found": judge.found(answer), "confidence": judge.confidence(answer)}
    say_json({"question": values.pop("question"), "answer": values.pop("text"), **found, **values})
