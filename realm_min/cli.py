"""The command line, `realm-min` or `python -m realm_min`: index documents, ask questions, evaluate answers, train.

Results go to the standard output, all else (progress, remarks, errors) to the standard error. Exit status: 0 when
done, 1 if `verify` found an error, 2 for bad input, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from . import distributed, indexing, plots, tensorflow_checkpoint, verify
from .corpus import FACTBOOK, read_documents
from .devices import add_device, chosen_device
from .evaluation import compiled, evaluate, means, read_questions
from .files import write_atomically
from .hub import resolve_folder
from .open_qa import Answer, RealmForOpenQA
from .packed import load_packed
from .retriever import BLOCK_RECORDS_FILE, RealmRetriever
from .training import finetuning, ict, mlm, pretraining

EXAMPLES = (
    "What is the capital of Uruguay?",
    "Which countries border Switzerland?",
    "What is the highest point of Kenya?",
    "Who is the president of France?",
    "What is the official language of Brazil?",
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = parser().parse_args(arguments)

    def run() -> int | None:
        with distributed.join():
            return options.run(options)

    return status_of(run)


def status_of(run: Callable[[], int | None]) -> int:
    """Run a program; returns its exit status. Bad input and Ctrl-C end it in one line, not in a traceback."""
    try:
        return run() or 0
    except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ModuleNotFoundError) as error:
        remark(f"realm-min: {one_line(error)}")
        return 2
    except KeyboardInterrupt as interrupt:
        if os.environ.get("RANK", "0") == "0":  # torchrun interrupts all ranks
            remark(f"\nInterrupted. {interrupt}".rstrip())
        return 130
    return 0


def one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(lines) if len(lines) <= 3 else f"{' '.join(lines[:3])} … and {len(lines) - 3} more"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="realm-min", description="Answer questions from documents with REALM.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int | None], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        return sub

    def model_option(sub: argparse.ArgumentParser, default: str) -> None:
        sub.add_argument("--model", metavar="FOLDER", help=f"a model's folder or hub name (default: {default})")

    sub = command("index", run_index, "Cut documents into blocks, embed them and write a folder ready to be asked.")
    sub.add_argument(
        "corpus", metavar="CORPUS", help=f'"{FACTBOOK}", a .jsonl of {{"title", "text"}}, or a folder of .txt files'
    )
    sub.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to write")
    model_option(sub, "the one that ships")
    add_device(sub)
    sub.add_argument("--restart", action="store_true", help="forget what an interrupted run left in FOLDER.partial")

    sub = command("ask", run_ask, "Answer questions and show the blocks that were read.")
    sub.add_argument(
        "questions", nargs="*", metavar="QUESTION", help="none: a prompt on a terminal, else five examples"
    )
    model_option(sub, "the one that ships, over the CIA World Factbook")
    add_device(sub)
    sub.add_argument("-k", type=int, metavar="N", help="blocks to read for a question (default: the model's)")
    sub.add_argument("--json", action="store_true", help="print one JSON object a question")
    sub.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw what was retrieved, scored and attended to for one question (needs matplotlib)",
    )

    sub = command("evaluate", run_evaluate, "Measure the answers to questions whose answers are known.")
    sub.add_argument(
        "questions", type=Path, metavar="QUESTIONS.jsonl", help='each line {"question": "…", "answer": ["…", …]}'
    )
    model_option(sub, "the one that ships, over the CIA World Factbook")
    add_device(sub)
    sub.add_argument("--predictions", type=Path, metavar="FILE", help="write a JSON line for each question")
    sub.add_argument("--regex", action="store_true", help="answers are regular expressions, as CuratedTrec's are")
    sub.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    sub.add_argument("--json", action="store_true", help="print the measures as one JSON object")

    for name, job, summary in (
        ("ict", ict, "Warm a retriever up with the Inverse Cloze Task."),
        ("mlm", mlm, "Warm a knowledge encoder up with masked language modelling."),
        ("pretrain", pretraining, "Teach a retriever by masked words, as REALM does."),
        ("finetune", finetuning, "Teach retriever and reader by questions and answers."),
    ):
        job.add_arguments(command(name, job.run, summary))

    sub = command(
        "verify", verify.run, "Compare a checkpoint's numbers, stage by stage, with every reference there is."
    )
    verify.add_arguments(sub)

    sub = command(
        "convert",
        tensorflow_checkpoint.run,
        "Make a folder for --model from the TensorFlow files that Google released.",
    )
    tensorflow_checkpoint.add_arguments(sub)
    return top


# ---- index


def run_index(options: argparse.Namespace) -> None:
    documents, device = read_documents(options.corpus), chosen_device(options.device)
    if options.model:
        model, tokenizer = indexing.load_unindexed(options.model)
    else:
        model, tokenizer, _ = load_packed(indexing.DEFAULT_MODEL)
    model.embedder.to(device)
    with progress_report() as report:
        indexing.index(documents, options.out, model, tokenizer, restart=options.restart, report=report, remark=remark)
    if distributed.world().is_first:
        remark(f'Ready: realm-min ask --model "{options.out}"')


@contextmanager
def progress_report() -> Iterator[indexing.Report]:
    """A progress bar for each stage of the work, on rank 0."""
    if not distributed.world().is_first:
        yield lambda stage, done, total, note="": None
        return
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage not in tasks:
                for task in bar.tasks:  # the stages before are complete
                    bar.update(task.id, total=task.completed)
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, description=f"{stage} {note}".rstrip())

        yield report


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    columns = *columns, TextColumn("left"), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), disable=not distributed.world().is_first)


def remark(text: str) -> None:
    print(text, file=sys.stderr)


# ---- models


def load_model(name: str | None, texts: bool = True) -> RealmForOpenQA:
    """The model of a folder or hub name with its retriever; of None, the default one, indexed on first use.

    Ranks that torchrun started search it together. `texts`: whether this rank needs the retriever, to read blocks.
    """
    world = distributed.world()
    folder = world.on_first(lambda: default_model_folder() if name is None else resolve_folder(name))
    indexing.check_open_qa(folder)
    if not (folder / BLOCK_RECORDS_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds a model without blocks: give it some with realm-min index --model")
    retriever = None

    def read_texts() -> None:
        nonlocal retriever
        retriever = RealmRetriever.from_pretrained(folder) if texts else None

    def check() -> None:
        held = model.config.num_block_records if retriever is None else len(retriever.block_records)
        if held != model.config.num_block_records:
            raise ValueError(
                f"{folder} has {held} blocks and {model.config.num_block_records} embeddings: index it anew"
            )

    world.gather_results(read_texts)
    model = RealmForOpenQA.from_pretrained(folder, retriever=retriever, sharded=True)
    world.gather_results(check)
    return model


def default_model_folder() -> Path:
    """The ready folder of the model that ships, over the Factbook; made on first use, kept in the cache."""
    packed = indexing.DEFAULT_MODEL
    folder = indexing.default_folder(hashlib.sha256(packed.read_bytes()).hexdigest())
    if not folder.is_dir():
        remark(f"Unpacking the default model, this once, into {folder}")
        with progress_report() as report:
            indexing.unpack(
                packed, read_documents(FACTBOOK), folder, corpus_name=indexing.factbook_name(), report=report
            )
    return folder


# ---- ask


def run_ask(options: argparse.Namespace) -> None:
    for question in options.questions:
        if not question.strip():
            raise ValueError("the question is empty: ask something")
    world, device = distributed.world(), chosen_device(options.device)
    if options.plot:
        if len(options.questions) != 1:
            raise ValueError(f"--plot draws one question, and {len(options.questions)} were given: give one")
        world.on_first(lambda: plots.check(options.plot))
    model = load_model(options.model, texts=world.is_first).to(device)
    if not world.is_first:
        model.follow()
    world.on_first(lambda: answer_all(options, model))


def answer_all(options: argparse.Namespace, model: RealmForOpenQA) -> None:
    """Answer what is asked, on rank 0; then, or where that fails, let the ranks go that search with it."""
    try:
        answer_questions(options, model)
    except distributed.RankFailedError:
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


def read_line(prompt: str) -> str:
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


def print_json(answer: Answer) -> None:
    values = asdict(answer)
    values = {"question": values.pop("question"), "answer": values.pop("text"), **values}
    print(json.dumps(values, ensure_ascii=False), flush=True)


def print_answer(answer: Answer) -> None:
    """The answer, then each block that was read, the answer's whole and its span highlighted, of others the start."""
    console = Console(highlight=False)
    console.print(Text(answer.question, style="bold"))
    console.print(Text.assemble((answer.text, "bold green"), f"   p(y|x) {answer.probability:.3g}"))
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


# ---- evaluate


def run_evaluate(options: argparse.Namespace) -> None:
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit {options.limit} leaves no question: give 1 or more")
    world, device = distributed.world(), chosen_device(options.device)
    # Read once before the work starts: a malformed last line should not cost the answers to all the others.
    total = 0
    for question in islice(read_questions(options.questions), options.limit):
        total += 1
        for pattern in question.answers if options.regex else ():
            if compiled(pattern) is None and world.is_first:
                remark(f"The pattern {pattern!r} does not compile and matches nothing.")
    if not total:
        raise ValueError(f"{options.questions} holds no question")
    model = load_model(options.model).to(device)
    questions = islice(read_questions(options.questions), options.limit)
    measures = []
    with progress_bar() as bar, writing(options.predictions if world.is_first else None) as write:
        results = evaluate(model, questions, options.regex, world=world)
        for result in bar.track(results, total, description="Answering questions"):
            measures.append(result.measures)
            write({"question": result.question.question, "prediction": result.prediction, **result.measures})
    summary = {"questions": total, **means(measures)}
    if not world.is_first:
        return
    if options.json:
        print(json.dumps(summary))
    else:
        print_measures(summary)


@contextmanager
def writing(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes an object as a line of `path`, which appears when all are written; None writes nothing."""
    with write_atomically(path) if path else nullcontext(os.devnull) as temporary:
        with open(temporary, "w", encoding="utf-8") as file:
            yield lambda value: print(json.dumps(value, ensure_ascii=False), file=file)


def print_measures(summary: dict[str, float | None]) -> None:
    for name, value in summary.items():
        shown = "–" if value is None else f"{value:,}" if name == "questions" else f"{100 * value:.1f} %"
        print(f"{name:<20} {shown:>8}")
