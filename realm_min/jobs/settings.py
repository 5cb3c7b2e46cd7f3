"""The settings of the training jobs: each is declared once, with its default, its range and its meaning.

From a declaration follow the option of the command (`add_options`), the check of its value (`check`) and its place in a
run's run.json, which holds all of them. Where a run is kept and how it is carried out decides nothing of its result and
stands in no run.json: `TrainingRun`. No torch is needed to read this file, so that a command line that asks for help or
names a value out of range is answered at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

from .. import kinds
from ..files.atomic import write_atomically
from ..files.json_file import read_json_object
from ..files.output import check_folder, held_in
from ..text.corpus import MAX_WORDPIECES

RUN_FILE = "run.json"
# What a run.json says where it is older than a setting that changed nothing else. One that says nothing of another
# setting is of a run that was computed otherwise.
BEFORE = {"optimizer": "adamw"}
# The checksums of the weights, and of the blocks' embeddings, that a run began with; an old run.json has none, and may
# be of any.
WEIGHTS, BLOCK_EMBEDDINGS = "weights", "block_emb"

Settings = TypeVar("Settings", bound=NamedTuple)


class Range(NamedTuple):
    """The numbers that a value may be; `words` describes them as what to give."""

    kind: type[int] | type[float]
    allows: Callable[[float], bool]
    words: str

    def check(self, name: str, value: Any) -> None:
        """ValueError if `value`, called `name`, is not allowed; nan never is, nor what is no number of the kind."""
        kinds = (int, float) if self.kind is float else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.allows(value):
            raise ValueError(f"{name}={value!r} is out of range: give {self.words}")

    def read(self, text: str) -> float:
        """The number that is written as `text`: a `type` for argparse, which names the option if it is refused."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.allows(value):
            raise argparse.ArgumentTypeError(f"{text!r} will not do: give {self.words}")
        return value


LARGEST = 2**31 - 1  # of what is counted
LARGEST_RATE = 1e38  # float32 holds little more
LARGEST_BATCH = 2**20  # its examples are drawn, and held, at once

COUNT = Range(int, lambda value: 1 <= value <= LARGEST, "a whole number, 1 or more and below 2 ** 31")
NATURAL = Range(int, lambda value: 0 <= value <= LARGEST, "a whole number, 0 or more and below 2 ** 31")
SEVERAL = Range(int, lambda value: 2 <= value <= LARGEST, "a whole number, 2 or more and below 2 ** 31")
QUERY = Range(int, lambda value: 3 <= value <= LARGEST, "a whole number, 3 or more and below 2 ** 31")  # [CLS] x [SEP]
BATCH = Range(int, lambda value: 1 <= value <= LARGEST_BATCH, "a whole number, 1 or more and at most 2 ** 20")
SEED = Range(int, lambda value: 0 <= value < 2**63, "a whole number, 0 or more and below 2 ** 63")
RATE = Range(float, lambda value: 0 < value <= LARGEST_RATE, "a number above 0, and at most 1e38")
SHARE = Range(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
DROPOUT = Range(float, lambda value: 0 <= value < 1, "a number from 0 to below 1")


class Name(NamedTuple):
    """The texts that a value may be; `pattern` matches all of one, and `words` describes it as what to give."""

    pattern: str
    words: str

    def check(self, name: str, value: Any) -> None:
        """ValueError if `value`, called `name`, is not allowed."""
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise ValueError(f"{name}={value!r} names nothing: give {self.words}")

    def read(self, text: str) -> str:
        """The text itself: a `type` for argparse, which names the option if it is refused."""
        if not re.fullmatch(self.pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} will not do: give {self.words}")
        return text


FUNCTION = Name(r"\w+(\.\w+)*:\w+", "module:function")
RULES = "realm_min.text.names_and_dates:salient_spans"

Count = Annotated[int, COUNT]
Function = Annotated[str, FUNCTION]
Natural = Annotated[int, NATURAL]
Query = Annotated[int, QUERY]
Batch = Annotated[int, BATCH]
Seed = Annotated[int, SEED]
Several = Annotated[int, SEVERAL]
Rate = Annotated[float, RATE]
Share = Annotated[float, SHARE]
Marginal = Literal["token", "span"]
Masking = Literal["salient", "tokens", "spans"]
Optimizer = Annotated[
    Literal["adamw", "bert"],
    "AdamW as its paper has it, or as BERT's own code, without bias correction: up to six times the way at a rate",
]


# ---- the jobs


class Ict(NamedTuple):
    """What decides an Inverse Cloze run, beside corpus and model."""

    steps: Annotated[Count, "updates"] = 300
    batch_size: Annotated[Batch, "sentences an update"] = 32
    group: Annotated[Count, "neighbouring blocks that come together in a batch"] = 4
    removal_rate: Annotated[Share, "share of the sentences that are taken out of their block"] = 0.9
    title_rate: Annotated[Share, "share of the sentences that their block's title precedes"] = 0.5
    learning_rate: Annotated[Rate, "the highest, after the warm-up"] = 1e-4
    warmup: Annotated[Share, "share of the steps in which the learning rate rises"] = 0.1
    optimizer: Optimizer = "adamw"
    max_query: Annotated[Query, "wordpieces of a sentence that are read"] = 64
    max_evidence: Annotated[Count, "wordpieces of a block that are read"] = 288
    freeze_word_embeddings: Annotated[bool, "leave the word embeddings as they are"] = True
    seed: Annotated[Seed, "of weights, sentences, batches and dropout"] = 0

    def check(self) -> None:
        """ValueError if a setting is out of range, or two do not go together."""
        check_ranges(self)
        if self.batch_size < 2 or self.batch_size % self.group:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of group={self.group} and at least 2: the other "
                "blocks of a batch are the wrong answers"
            )


class Mlm(NamedTuple):
    """What decides a run of masked language modelling, beside corpus and model."""

    steps: Annotated[Count, "updates"] = 300
    batch_size: Annotated[Batch, "blocks an update"] = 16
    learning_rate: Annotated[Rate, "the highest, after the warm-up"] = 2e-4
    warmup: Annotated[Share, "share of the steps in which the learning rate rises"] = 0.1
    optimizer: Optimizer = "adamw"
    max_wordpieces: Annotated[Count, "of a text with masks in it, its title and special tokens included"] = 288
    evidence: Annotated[
        Natural,
        "wordpieces of the text around it that stand beside it, its title included, where what is masked can be looked "
        "up; the encoder learns to use a document so, after it has learnt to fill masks. 0: nothing does",
    ] = 0
    tagger: Annotated[Function, "what finds names and dates in a text, to be hidden"] = RULES
    freeze_word_embeddings: Annotated[bool, "leave the word embeddings as they are"] = True
    seed: Annotated[Seed, "of weights, masks, batches and dropout"] = 0

    def check(self) -> None:
        """ValueError if a setting is out of range, or two do not go together."""
        check_ranges(self)
        if self.evidence and self.evidence < self.max_wordpieces:
            raise ValueError(
                f"evidence={self.evidence} cannot hold a text of max_wordpieces={self.max_wordpieces}: give more "
                "evidence, 0 for none, or shorter texts"
            )


class Pretrain(NamedTuple):
    """What decides a pre-training run, beside corpus and models."""

    steps: Annotated[Count, "updates"] = 1000
    batch_size: Annotated[Batch, "texts an update"] = 4
    num_candidates: Annotated[Several, "documents a text, the null document among them"] = 8
    learning_rate: Annotated[Rate, "the highest, after the warm-up"] = 5e-5
    warmup: Annotated[Share, "share of the steps in which the learning rate rises"] = 0.1
    optimizer: Optimizer = "adamw"
    refresh_every: Annotated[Count, "steps between indexes"] = 200  # see `refresh`
    # A stage before the one that trains both, in which the encoder learns to use what is retrieved. Until it can, what
    # it says of documents is noise to the retriever.
    encoder_alone: Annotated[bool, "leave the retriever as it is: the encoder learns to use documents first"] = False
    # Only the question's side of f(x, z) learns.
    freeze_documents: Annotated[bool, "leave the blocks' embeddings as they begin, as fine-tuning does"] = False
    permute_evidence: Annotated[
        bool, "a control: tell the retriever what each document did for the masked words in a drawn order"
    ] = False
    null_document: Annotated[bool, "let an empty document be the first of the candidates, beside blocks"] = True
    marginal: Annotated[  # see `marginal_loss` of model/realm.py
        Marginal,
        "what is marginalised over the documents: each masked wordpiece, or, as in the paper, the whole masked span",
    ] = "token"
    masking: Annotated[Masking, "what is hidden: a name or date, random tokens, or random spans"] = "salient"
    tagger: Annotated[Function, "what finds names and dates in a text, to be hidden"] = RULES
    max_passage: Annotated[Count, "wordpieces of a text, its title and special tokens included"] = 96
    max_block: Annotated[Count, "wordpieces of a block that are read, likewise"] = MAX_WORDPIECES
    freeze_word_embeddings: Annotated[bool, "leave the word embeddings as they are"] = False
    seed: Annotated[Seed, "of weights, masks, batches and dropout"] = 0

    def check(self) -> None:
        """ValueError if a setting is out of range, or two do not go together."""
        check_ranges(self)
        if self.masking != "salient" and self.tagger != RULES:
            raise ValueError(
                f"tagger={self.tagger!r} finds nothing with masking={self.masking!r}: leave one of them out"
            )


class Finetune(NamedTuple):
    """What decides a fine-tuning run, beside questions, blocks and model."""

    steps: Annotated[Count, "updates"] = 1000
    batch_size: Annotated[Batch, "questions an update"] = 8
    learning_rate: Annotated[Rate, "the highest, after the warm-up"] = 5e-5
    warmup: Annotated[Share, "share of the steps in which the learning rate rises"] = 0.1
    optimizer: Optimizer = "adamw"
    # Without it a young retriever leaves the reader nothing to learn from.
    read_an_answer: Annotated[
        bool, "where the best blocks hold no answer, read the best one that does in place of the last"
    ] = True
    freeze_word_embeddings: Annotated[bool, "leave the word embeddings as they are"] = False
    refresh_blocks: Annotated[bool, "train the document side too, and embed all blocks anew as it learns"] = False
    refresh_every: Annotated[Count, "with --refresh-blocks, steps between indexes"] = 200
    seed: Annotated[Seed, "of weights, batches and dropout"] = 0

    def check(self, refresh_ranks: int = 0) -> None:
        """ValueError if a setting is out of range, or ranks are to build indexes of which there are none."""
        check_ranges(self)
        if refresh_ranks and not self.refresh_blocks:
            raise ValueError(
                f"refresh_ranks={refresh_ranks} have nothing to build: refresh the blocks, or leave it at 0"
            )


# ---- what follows from a declaration


class Declared(NamedTuple):
    """One setting: `range` of a number or a name, `choices` of a word, neither of a flag."""

    name: str
    default: bool | int | float | str
    range: Range | Name | None
    choices: tuple[str, ...]
    help: str


def declarations(defaults: NamedTuple) -> Iterator[Declared]:
    """The settings of a job, in their order; `defaults` are their values where nothing else is said."""
    for name, hint in get_type_hints(type(defaults), include_extras=True).items():
        kind, *ranges, text = get_args(hint)  # of Annotated[kind, range, text]
        yield Declared(name, getattr(defaults, name), ranges[0] if ranges else None, get_args(kind), text)


def check_ranges(settings: NamedTuple) -> None:
    """ValueError if a setting has a value that it cannot have."""
    for name, value, span, choices, _ in declarations(settings):
        if span:
            span.check(name, value)
        elif choices and not (isinstance(value, str) and value in choices):
            raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}")
        elif not choices and not isinstance(value, bool):
            raise ValueError(f"{name}={value!r} is no flag: give True or False")


def add_options(parser: argparse.ArgumentParser, defaults: NamedTuple) -> None:
    """An option for each setting of a job; a flag has its --no-."""
    for name, default, span, choices, text in declarations(defaults):
        option = f"--{name.replace('_', '-')}"
        if span:
            metavar = "NAME" if isinstance(span, Name) else "N" if span.kind is int else "RATE"
            parser.add_argument(option, type=span.read, metavar=metavar, help=f"{text} (default: {default})")
        elif choices:
            parser.add_argument(option, choices=choices, help=f"{text} (default: {default})")
        else:
            shown = f"{text} (default: {'yes' if default else 'no'})"
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=shown)
    parser.set_defaults(**defaults._asdict())


def settings_from(options: argparse.Namespace, defaults: Settings) -> Settings:
    """The settings that the options say."""
    return defaults._replace(**{name: getattr(options, name) for name in defaults._fields})


# ---- a run

SAVE_EVERY = 100


def unheard(text: str) -> None:
    """A remark that nobody hears."""


def silent(stage: str, done: int, total: int | None, note: str = "") -> None:
    """A report that says nothing."""


@dataclass(frozen=True)
class TrainingRun:
    """Where a run is kept and how it is carried out: all that may be another when it goes on.

    `folder` is made where it is absent; a new run's is to be empty. `resume`: go on from its checkpoint; without one,
    from the start. `evaluate` measures the models as they stand, every `evaluate_every` steps and at the end (0: at the
    end alone), on every rank; None where a measure has no meaning. `refresh_ranks`: so many ranks, the last, do nothing
    but build indexes; their models are not trained. `report` is called on rank 0 as report(stage, done, total, note),
    and `remark` with a sentence on what was found damaged.
    """

    folder: Path
    resume: bool = False
    save_every: int = SAVE_EVERY  # steps
    evaluate: Callable[[], Mapping[str, float | None]] | None = None
    evaluate_every: int = 0  # steps
    refresh_ranks: int = 0
    report: Callable[..., None] = silent
    remark: Callable[[str], None] = unheard

    def __post_init__(self) -> None:
        kinds.check("folder", self.folder, str | os.PathLike)
        kinds.check("resume", self.resume, bool)
        kinds.check("evaluate", self.evaluate, Callable | None)
        kinds.check("report", self.report, Callable)
        object.__setattr__(self, "folder", Path(self.folder))  # a string will do, too
        COUNT.check("save_every", self.save_every)
        NATURAL.check("evaluate_every", self.evaluate_every)
        NATURAL.check("refresh_ranks", self.refresh_ranks)


def check_new_run(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds a run which is not to be resumed, or something else, or that cannot be written.

    Raises:
        FileExistsError, OSError: as said, and as `check_folder`.
    """
    begun = (folder / RUN_FILE).is_file()
    if begun and not resume:
        raise FileExistsError(f"{folder} holds a run already: go on with --resume, or name another folder")
    if not begun and folder.is_dir() and (held := held_in(folder)):
        raise FileExistsError(f"{folder} holds {held[0]} and no {RUN_FILE}: name a folder that is absent or empty")
    check_folder(folder)


def check_same_run(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with a run of other settings, or of other weights, by what its run.json says.

    Raises:
        ValueError: as said, or it is damaged.
    """
    begun = read_json_object(folder / RUN_FILE, f"restore it, or remove {folder} and start the run anew")
    unsaid = BEFORE | {key: settings.get(key) for key in (WEIGHTS, BLOCK_EMBEDDINGS)}
    begun = {key: value for key, value in unsaid.items() if key in settings} | begun
    for key, old, new in differences(begun, settings):
        raise ValueError(
            f"{folder} was begun with {key}={old!r}, not {new!r}: resume with the same settings and the same model to "
            "start from, or name another folder"
        )


def differences(first: dict[str, Any], second: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two settings differ: the key, "config.hidden_size" say, and both values."""
    for key in sorted(first.keys() | second.keys()):
        old, new = first.get(key), second.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{within}{key}.")
        elif old != new:
            yield f"{within}{key}", old, new


def write_run_file(folder: Path, settings: dict[str, Any]) -> None:
    """Begin a run: its folder, and run.json in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
