"""`realm-min ask`: questions in, answers and the blocks that were read out, on a terminal or as JSON."""

from __future__ import annotations

import argparse
import sys
import textwrap
from dataclasses import asdict

from rich.padding import Padding

from ..interface.open_qa import Answer, RealmForOpenQA
from ..ranks import distributed
from ..ranks.devices import chosen_device
from ..ranks.watcher import RankFailedError
from . import plots
from .cli import load_model, one_line
from .console import Console, Text
from .printable import printable, read_line, remark, say_json

EXAMPLES = (
    "What is the capital of Uruguay?",
    "Which countries border Switzerland?",
    "What is the highest point of Kenya?",
    "Who is the president of France?",
    "What is the official language of Brazil?",
)


def run(options: argparse.Namespace) -> None:
    """Run `realm-min ask`."""
    world, device = distributed.world(), chosen_device(options.device)
    model = load_model(options.model, texts=world.is_first).to(device)
    if not world.is_first:
        model.follow()
    world.on_first(lambda: answer_all(options, model))


def answer_all(options: argparse.Namespace, model: RealmForOpenQA) -> None:
    """Answer what is asked, on rank 0; then, or where that fails, let the ranks go that search with it."""
    try:
        answer_questions(options, model)
    except RankFailedError:
        raise  # nobody is left
    except Exception:
        model.follow()
        raise
    model.follow()


def answer_questions(options: argparse.Namespace, model: RealmForOpenQA) -> None:
    show = print_json if options.json else print_answer
    if options.questions or not (sys.stdin.isatty() and sys.stdout.isatty()):
        for question in options.questions or EXAMPLES:
            answer = model.answer([question], options.k)[0]
            show(answer)
            if options.plot:
                plots.plot_answer(model, answer, options.plot)
                remark(f"Drawn in {options.plot}")
        return
    remark("Ask in English; an empty line or Ctrl-D ends.")
    while question := read_line("? "):
        try:
            show(model.answer([question], options.k)[0])
        except ValueError as error:  # too long a question, say: the next one may do
            remark(f"realm-min: {one_line(error)}")


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
        heading = f"{rank + 1}. block {block.id}   score {block.score:.3f}   p(z|x) {block.probability:.3g}"
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
