"""The command line, `realm-min` or `python -m realm_min`: index documents, ask questions, evaluate answers, train.

Results go to the standard output, all else (progress, remarks, errors) to the standard error. Exit status: 0 when
done, 1 if `verify` found an error, 2 for bad input and for what the machine lacks, 130 after Ctrl-C.

torch takes seconds to import, so nothing here does: help, usage and what is refused are answered without it, and a
command's module is imported when the command runs.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from itertools import takewhile
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TextIO

from .. import __version__
from ..config import check_indexed
from ..files.causes import machine_error
from ..files.hub import resolve_folder
from . import arguments
from . import training_arguments as training
from .printable import escape_what_is_lacked, printable, remark, standard_output, warnings_remarked

if TYPE_CHECKING:
    from ..interface.open_qa import RealmForOpenQA


class Command(NamedTuple):
    run: str  # the function of this package that takes the options; its module is imported when the command runs
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    check: Callable[[argparse.Namespace], None]  # refuses what no model is needed to refuse


COMMANDS = {
    "index": Command(
        "app.indexing.run", "Cut documents into blocks, embed them and write a folder ready to be asked.",
        arguments.add_index, arguments.check_index,
    ),
    "ask": Command(
        "app.ask.run", "Answer questions and show the blocks that were read.",
        arguments.add_ask, arguments.check_ask,
    ),
    "page": Command(
        "page.command.run", "Ask in the browser, on a page that shows what the model computes.",
        arguments.add_page, arguments.check_page,
    ),
    "evaluate": Command(
        "app.evaluate.run", "Measure the answers to questions whose answers are known.",
        arguments.add_evaluate, arguments.check_evaluate,
    ),
    "retrieve": Command(
        "app.evaluate.retrieve", "Measure the blocks found for questions, without a reader; or those that BM25 finds.",
        arguments.add_retrieve, arguments.check_retrieve,
    ),
    "compare": Command(
        "app.compare.run", "Hold two systems against each other, question by question: is the difference sure?",
        arguments.add_compare, arguments.check_compare,
    ),
    "ict": Command(
        "app.train.ict", "Warm a retriever up with the Inverse Cloze Task.",
        training.add_ict, training.check_ict,
    ),
    "mlm": Command(
        "app.train.mlm", "Warm a knowledge encoder up with masked language modelling.",
        training.add_mlm, training.check_mlm,
    ),
    "pretrain": Command(
        "app.train.pretrain", "Teach a retriever by masked words, as REALM does.",
        training.add_pretrain, training.check_pretrain,
    ),
    "finetune": Command(
        "app.train.finetune", "Teach retriever and reader by questions and answers.",
        training.add_finetune, training.check_finetune,
    ),
    "verify": Command(
        "verify.run", "Compare a checkpoint's numbers, stage by stage, with every reference there is.",
        arguments.add_verify, arguments.check_verify,
    ),
    "convert": Command(
        "app.convert.run", "Make a folder for --model from the TensorFlow files that Google released.",
        arguments.add_convert, arguments.check_convert,
    ),
}  # fmt: skip
SPEAKING = ("ask", "evaluate", "retrieve", "compare", "verify")  # whose results are what they say


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    return status_of(lambda: _run_words(arguments))


def _run_words(arguments: list[str] | None) -> int | None:
    top = parser()
    options = top.parse_args(arguments)
    if options.command is None:
        return top.print_help()
    return run(options)


def run(options: argparse.Namespace) -> int | None:
    """Run the command that the options name; returns its exit status, None for 0.

    Raises:
        ValueError, OSError, ModuleNotFoundError: bad input; what needs no model is refused before torch is imported.
    """
    command = COMMANDS[options.command]
    check_current_folder()
    if options.command in SPEAKING:
        standard_output()
    if options.command in ("ask", "page"):
        # Threads that spin between one question's products burn seconds where others want the cores, too
        # (benchmarks/first-use.csv). torch's OpenMP reads this as it is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with ranks():
        command.check(options)
        module, _, function = command.run.rpartition(".")
        return getattr(imported(f"realm_min.{module}"), function)(options)


def check_current_folder() -> None:
    """FileNotFoundError if it was removed: no relative path leads anywhere, and libraries abort."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise FileNotFoundError("the current folder is gone: cd to one that exists") from None


def imported(name: str) -> ModuleType:
    """Import a command's module, with torch.

    Nothing that is imported becomes garbage, so the collector need not look at it: not now, and not once more as the
    process ends, where it would take 0.4 s.
    """
    if "torch" in sys.modules:  # this is somebody else's process
        return import_module(name)
    with interrupts_held():
        gc.disable()
        try:
            return import_module(name)
        finally:
            gc.freeze()
            gc.enable()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let Ctrl-C come at the block's end: torch's code in C swallows it, or dies of it, as it is imported."""
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ranks() -> AbstractContextManager[object]:
    """Around a command: join the ranks that torchrun started, so that they speak with one voice."""
    if "RANK" not in os.environ:
        return nullcontext()
    from ..ranks.distributed import join

    return join(say=remark)


def status_of(run: Callable[[], int | None]) -> int:
    """Run a program; returns its exit status. Bad input, want of memory and Ctrl-C end it in one line.

    What it raises beside these is a mistake of ours: the traceback is shown, as Python would.
    """
    escape_what_is_lacked()
    try:
        with warnings_remarked():
            return run() or 0
    except KeyboardInterrupt as interrupt:
        if os.environ.get("RANK", "0") == "0":  # torchrun interrupts all ranks
            remark()
            remark(f"Interrupted. {interrupt}".rstrip())
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not can_be_written(sys.stdout):
            return 0  # the reader of our output, `head` say, has seen enough
        if machine_error(error) is None and not isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
            for line in "".join(traceback.format_exception(error)).rstrip("\n").split("\n"):
                remark(line)
            return 1
        remark(f"realm-min: {one_line(error)}")
        return 2
    finally:
        can_be_written(sys.stderr)


def can_be_written(stream: TextIO | None) -> bool:
    """Whether a stream takes what it holds; one that does not is led to nowhere, or Python's end would fail on it."""
    if stream is None:  # it is closed
        return False
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True


def one_line(error: Exception) -> str:
    error = machine_error(error) or error
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = [line.strip() for line in str(error).strip().split("\n")]
    return " ".join(lines) if len(lines) <= 3 else f"{' '.join(lines[:3])} … and {len(lines) - 3} more"


# ---- arguments


def parser() -> Parser:
    top = Parser(prog="realm-min", description="Answer questions from documents with REALM.")
    top.add_argument("--version", action="version", version=f"realm-min {__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.summary, description=command.summary))
    top.commands = tuple(COMMANDS)
    return top


class Parser(argparse.ArgumentParser):
    """Takes no abbreviation for an option, and says of what it does not know which command or option may be meant."""

    commands: tuple[str, ...] = ()  # whose arguments other parsers read

    def __init__(self, **given: Any) -> None:
        super().__init__(**given, allow_abbrev=False)

    def parse_known_args(self, args: Iterable[str] | None = None, *rest: Any, **given: Any) -> tuple[Any, list[str]]:
        """As argparse's; but what is not known is an error, and the first to be reported."""
        words = sys.argv[1:] if args is None else list(args)
        for word in takewhile(lambda word: word != "--", words):
            if self.commands and not word.startswith("-"):
                if word not in self.commands:
                    known = f"give one of {', '.join(self.commands)}"
                    self.error(f"there is no command {word!r}: {suggestion(word, self.commands, known)}")
                break  # the rest is for that command's parser
            if word.startswith("--") and " " not in word:
                self._check_option(word.partition("=")[0])
        self._check_values(list(takewhile(lambda word: word != "--", words)))
        options, unknown = super().parse_known_args(words, *rest, **given)
        for word in unknown:
            if word.startswith("-"):
                self._check_option(word)
        if unknown:
            self.error(f"there is nothing to do with {' '.join(unknown)}: see {self.prog} --help")
        return options, unknown

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _check_values(self, words: list[str]) -> None:
        """An error for an option whose value is blank, as that of a shell's variable that is not set."""
        taking = {option for action in self._actions if action.nargs != 0 for option in action.option_strings}
        for word, after in zip(words, [*words[1:], "-"], strict=False):
            option, own, value = word.partition("=")
            if option in taking and not (value if own else after).strip():
                self.error(f"{option} is empty: give it a value, or leave it out")

    def _check_option(self, word: str) -> None:
        known = [option for action in self._actions for option in action.option_strings]
        if word not in known:
            self.error(f"there is no option {word}: {suggestion(word, known, f'see {self.prog} --help')}")


def suggestion(word: str, known: Iterable[str], otherwise: str) -> str:
    """The known words that `word` begins, or else the one it is most like; without any, `otherwise`."""
    bare = {name.lstrip("-"): name for name in known}  # dashes make no two options alike
    near = [name for name in bare.values() if name.startswith(word)]
    near = near or [bare[like] for like in difflib.get_close_matches(word.lstrip("-"), bare, n=1)]
    return f"did you mean {' or '.join(near)}?" if near else otherwise


# ---- models


def load_model(name: str | None, corpus: str | None = None, texts: bool = True) -> RealmForOpenQA:
    """The model of a folder or hub name with its retriever; of None, the default one, unpacked on first use.

    Ranks that torchrun started search it together. `corpus`: of the default model, None is all of it. `texts`: whether
    this rank needs the retriever, to read blocks.
    """
    if name is None:
        from . import default_model
        from .console import progress_report

        corpus = corpus or default_model.ALL
        return default_model.load(corpus, texts=texts, sharded=True, remark=remark, progress=progress_report)
    from ..interface.open_qa import RealmForOpenQA
    from ..ranks import distributed
    from ..text.retriever import RealmRetriever

    world = distributed.world()
    folder = world.on_first(lambda: resolve_folder(name))
    check_indexed(folder)
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
