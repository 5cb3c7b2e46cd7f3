"""`realm-min ask`: questions in, answers and the blocks that were read out, on a terminal or as JSON."""

from __future__ import annotations

import argparse
import io
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from typing import NamedTuple

from rich.padding import Padding

from ..interface.open_qa import Answer, RealmForOpenQA
from ..ranks import distributed
from ..ranks.devices import chosen_device
from ..ranks.watcher import RankFailedError
from . import plots
from .cli import load_model, one_line
from .console import Console, Text
from .printable import printable, read_line, remark, say_json


class Asked(NamedTuple):
    question: str
    where: str | None  # it stands, for an error; None at a prompt, where asking goes on


EXAMPLES = (
    "What is the capital of Uruguay?",
    "Which countries border Switzerland?",
    "What is the highest point of Kenya?",
    "Who is the president of France?",
    "What is the official language of Brazil?",
)


def run(options: argparse.Namespace) -> int:
    """Run `realm-min ask`; returns the exit status."""
    world, device = distributed.world(), chosen_device(options.device)
    asked: list[Iterator[Asked]] = []
    world.on_first(lambda: asked.extend([questions_of(options)]))  # before the model is loaded: there may be none
    model = load_model(options.model, texts=world.is_first).to(device)
    if not world.is_first:
        model.follow()
    return world.on_first(lambda: answer_all(options, model, asked[0]))


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
    if isinstance(sys.stdin, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):  # somebody has read of it
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        for number, line in enumerate(sys.stdin, start=1):
            if line.strip():
                yield Asked(line.strip(), f"line {number}: ")
    except UnicodeDecodeError as error:
        raise ValueError(f"the standard input is not UTF-8 text ({error}): convert it") from None


def prompted() -> Iterator[Asked]:
    remark("Ask in English; an empty line or Ctrl-D ends.")
    while question := read_line("? "):
        yield Asked(question, None)


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
    show, status = (print_json if options.json else print_answer), 0
    for question, where in asked:
        try:
            model.check_questions([question])
        except ValueError as error:
            remark(f"realm-min: {where or ''}{one_line(error)}")
            status = status if where is None else 2
            continue
        answer = model.answer([question], options.k)[0]
        show(answer)
        if options.plot:
            plots.plot_answer(model, answer, options.plot)
            remark(f"Drawn in {options.plot}")
    return status


def print_json(answer: Answer) -> None:
    values = asdict(answer)
    values = {"question": values.pop("question"), "answer": values.pop("text"), **values}
    say_json(values)


def print_answer(answer: Answer) -> None:
    """The answer, then each block that was read, the answer's whole and its span highlighted, of others the start."""
    console = Console()
    console.print(Text(printable(answer.question), style="bold"))
    console.print(Text.assemble((printable(answer.text), "bold green"), f"   p(y|x) {answer.probability:.3g}"))
    for rank, block in enumerate(answer.blocks):
        heading = f"{rank + 1}. block {block.id} of {printable(block.document)}   score {block.score:.3f}"
        heading += f"   p(z|x) {block.probability:.3g}"
        console.print(Text(heading, style="cyan"))
        if rank == answer.block_rank:
            text = highlighted(block.text, answer.start_char, answer.end_char, console)
        else:
            text = Text(textwrap.shorten(block.text, 150, placeholder=" …"), style="dim")
        console.print(Padding(text, (0, 0, 0, 3), expand=False))
    console.print()


def highlighted(text: str, start: int, end: int, console: Console) -> Text:
    opening, closing = ("", "") if console.color_system else ("[[", "]]")  # what no colour shows, brackets do
    return Text.assemble(text[:start], opening, (text[start:end], "bold black on green"), closing, text[end:])
