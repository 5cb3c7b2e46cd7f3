"""The arguments of the commands that train, and what they refuse at once.

torch is imported when a run begins, not before: arguments are read, and refused, without it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files.hub import BLOCK_RECORDS_FILE, find_folder
from ..files.output import check_outside
from ..jobs.settings import (
    COUNT,
    DROPOUT,
    NATURAL,
    SAVE_EVERY,
    Finetune,
    Ict,
    Mlm,
    Pretrain,
    add_options,
    check_new_run,
    settings_from,
)
from ..jobs.tagging import tagger
from ..ranks.devices import add_device, check_device
from ..text.corpus import FACTBOOK
from ..text.documents import read_documents
from ..text.leads import LEADS
from ..text.questions import read_questions, read_training_questions

CORPUS_HELP = f'"{FACTBOOK}", "{LEADS}", or a folder or file of texts or records (docs/corpora.md lists their kinds)'


# ---- arguments


def file_name(text: str) -> Path:
    """A `type` for argparse: no name at all would be the current folder's."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} will not do: give the name of a file")
    return Path(text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """--out, --device, --dropout, --save-every and --resume, which every run has."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the folder of the run and its models"
    )
    add_device(parser)
    parser.add_argument(
        "--dropout", type=DROPOUT.read, metavar="RATE", default=0.1, help="of activations and attention (default: 0.1)"
    )
    parser.add_argument(
        "--save-every", type=COUNT.read, metavar="N", default=SAVE_EVERY,
        help=f"steps between checkpoints (default: {SAVE_EVERY})",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on from FOLDER's last checkpoint")


def add_refresh_ranks(parser: argparse.ArgumentParser) -> None:
    """--refresh-ranks, of the runs that build indexes as they go on."""
    parser.add_argument(
        "--refresh-ranks", type=NATURAL.read, metavar="N", default=0,
        help="under torchrun: ranks that do nothing but build the index, so that training need not wait (default: 0)",
    )  # fmt: skip


def add_ict(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min ict`."""
    parser.add_argument("corpus", metavar="CORPUS", help=CORPUS_HELP)
    parser.add_argument(
        "--model", metavar="FOLDER", help="any BERT's to start from (default: a small model with random weights)"
    )
    add_run(parser)
    add_options(parser, Ict())


def add_mlm(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min mlm`."""
    parser.add_argument("corpus", metavar="CORPUS", help=CORPUS_HELP)
    parser.add_argument(
        "--model", metavar="FOLDER", help="any BERT's to start from (default: a small model with random weights)"
    )
    add_run(parser)
    add_options(parser, Mlm())


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min pretrain`."""
    parser.add_argument("corpus", metavar="CORPUS", help=CORPUS_HELP)
    parser.add_argument(
        "--model", metavar="FOLDER",
        help="what to start from: an earlier run's folder, or any BERT's (default: a small model with random weights)",
    )  # fmt: skip
    add_run(parser)
    add_refresh_ranks(parser)
    add_options(parser, Pretrain())


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """The arguments of `realm-min finetune`."""
    parser.add_argument(
        "questions", type=file_name, metavar="QUESTIONS.jsonl",
        help='each line {"question": "…", "answer": ["…", …]}, with "title" and "evidence" where it is known which '
        "document holds the evidence, and words that stand in it",
    )  # fmt: skip
    parser.add_argument(
        "corpus", metavar="CORPUS_OR_MODEL", help=f"{CORPUS_HELP}; or a folder that realm-min index wrote"
    )
    parser.add_argument(
        "--model", metavar="FOLDER",
        help="for a corpus, what to start from: a pre-training run's folder, or any BERT's (default: a small model "
        "with random weights)",
    )  # fmt: skip
    parser.add_argument("--dev", type=Path, metavar="FILE.jsonl", help="questions to measure the model by")
    parser.add_argument(
        "--evaluate-every", type=NATURAL.read, metavar="N", default=200,
        help="steps between measurements; 0: at the end alone (default: 200)",
    )  # fmt: skip
    add_run(parser)
    add_refresh_ranks(parser)
    add_options(parser, Finetune())
    parser.add_argument(
        "--searcher-beam-size", type=COUNT.read, metavar="N",
        help="blocks of the retriever's loss (default: the model's)",
    )  # fmt: skip
    parser.add_argument(
        "--reader-beam-size", type=COUNT.read, metavar="N", help="blocks that are read (default: the model's)"
    )


# ---- what is refused before any work


def check_ict(options: argparse.Namespace) -> None:
    """Refuse what `realm-min ict` cannot do.

    Raises:
        ValueError, FileNotFoundError, FileExistsError: an argument is at fault; the message names it.
    """
    settings_from(options, Ict()).check()
    _check_run(options)
    read_documents(options.corpus)


def check_mlm(options: argparse.Namespace) -> None:
    """As `check_ict`, of `realm-min mlm`."""
    settings_from(options, Mlm()).check()
    tagger(options.tagger)
    _check_run(options)
    read_documents(options.corpus)


def check_pretrain(options: argparse.Namespace) -> None:
    """As `check_ict`, of `realm-min pretrain`."""
    settings_from(options, Pretrain()).check()
    tagger(options.tagger)
    _check_run(options)
    read_documents(options.corpus)


def check_finetune(options: argparse.Namespace) -> None:
    """As `check_ict`, of `realm-min finetune`."""
    settings_from(options, Finetune()).check(options.refresh_ranks)
    _check_run(options)
    if not is_indexed(options.corpus):
        read_documents(options.corpus)
    elif options.model:
        raise ValueError(f"{options.corpus} holds a model already: leave out --model {options.model}")
    for path, read in ((options.questions, read_training_questions), (options.dev, read_questions)):
        if path and not list(read(path)):
            raise ValueError(f"{path} holds no question")


def _check_run(options: argparse.Namespace) -> None:
    check_device(options.device)
    corpus = None if options.corpus in (FACTBOOK, LEADS) else options.corpus
    check_outside(options.out, {"--model": options.model, "the corpus": corpus})
    check_new_run(options.out, options.resume)
    if options.model is not None:
        find_folder(options.model)


def is_indexed(corpus: str) -> bool:
    """Whether a CORPUS_OR_MODEL is a folder that realm-min index wrote."""
    return (Path(corpus) / BLOCK_RECORDS_FILE).is_file()
