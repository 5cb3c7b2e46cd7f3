"""What the commands that train have in common: settings as options, a corpus as blocks, dropout."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..corpus import FACTBOOK, Block, cut_blocks, read_documents
from ..devices import add_device, chosen_device
from ..distributed import world
from . import warm_start

CORPUS_HELP = f'"{FACTBOOK}", a .jsonl of {{"title", "text"}}, or a folder of .txt files'


def add_settings(parser: argparse.ArgumentParser, defaults: NamedTuple, helps: dict[str, str]) -> None:
    """An option for each of the settings named in `helps`, of its default's type; a bool is a flag, with its --no-."""
    for name, text in helps.items():
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            metavar = "RATE" if isinstance(default, float) else "N"
            text = f"{text} (default: {default})"
            parser.add_argument(flag, type=type(default), metavar=metavar, default=default, help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """--out, --device, --dropout, --save-every and --resume, which every run has."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the folder of the run and its models"
    )
    add_device(parser)
    parser.add_argument(
        "--dropout", type=float, metavar="RATE", default=0.1, help="of activations and attention (default: 0.1)"
    )
    parser.add_argument(
        "--save-every", type=int, metavar="N", default=100, help="steps between checkpoints (default: 100)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from FOLDER's last checkpoint")


def add_refresh_ranks(parser: argparse.ArgumentParser) -> None:
    """--refresh-ranks, of the runs that build indexes as they go on."""
    parser.add_argument(
        "--refresh-ranks", type=int, metavar="N", default=0,
        help="under torchrun: ranks that do nothing but build the index, so that training need not wait (default: 0)",
    )  # fmt: skip


def settings_from(options: argparse.Namespace, defaults: Any) -> Any:
    """The settings that the options say."""
    return defaults._replace(**{name: value for name, value in vars(options).items() if name in defaults._fields})


def dropout(options: argparse.Namespace) -> dict[str, float]:
    """Configuration values of --dropout."""
    return {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}


def run_warm_up(
    given: argparse.Namespace, warm_up: Callable[..., Path], model: Any, defaults: Any, max_wordpieces: int
) -> None:
    """Run `warm_up`, of a job that trains one model on the blocks of a corpus, with the options given."""
    from ..cli import progress_report

    device, tokenizer = chosen_device(given.device), warm_start.tokenizer(given.model)
    with progress_report() as report:
        blocks = read_blocks(given.corpus, tokenizer, max_wordpieces, report)
        warm_up(
            given.out, blocks, model.to(device), tokenizer, settings_from(given, defaults), resume=given.resume,
            save_every=given.save_every, report=report,
        )  # fmt: skip


def remark(text: str) -> None:
    """Say something on the standard error, on rank 0."""
    from ..cli import remark

    if world().is_first:
        remark(text)


def read_blocks(corpus: str, tokenizer: Any, max_wordpieces: int, report: Callable[..., None]) -> list[Block]:
    """The blocks of a corpus; reading and cutting are reported.

    Raises:
        ValueError: the corpus has no text, or cannot be read.
    """
    blocks = []
    for block in cut_blocks(read_documents(corpus), tokenizer, max_wordpieces):
        blocks.append(block)
        report("Cutting documents into blocks", len(blocks), None)
    if not blocks:
        raise ValueError("the corpus has no text: give documents that hold some")
    return blocks
