"""`realm-min evaluate`: measure the answers to questions whose answers are known."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from ..files.atomic import write_atomically
from ..jobs.evaluation import compiled, evaluate, means
from ..ranks.devices import chosen_device
from ..ranks.distributed import world
from ..text.questions import read_questions
from .cli import load_model
from .console import progress_bar, remark


def run(options: argparse.Namespace) -> None:
    """Run `realm-min evaluate`."""
    ranks, device = world(), chosen_device(options.device)
    questions = list(islice(read_questions(options.questions), options.limit))
    for pattern in [pattern for question in questions for pattern in question.answers] if options.regex else ():
        if compiled(pattern) is None and ranks.is_first:
            remark(f"The pattern {pattern!r} does not compile and matches nothing.")
    model = load_model(options.model).to(device)
    measures = []
    with progress_bar() as bar, writing(options.predictions if ranks.is_first else None) as write:
        results = evaluate(model, questions, options.regex, world=ranks)
        for result in bar.track(results, len(questions), description="Answering questions"):
            measures.append(result.measures)
            write({"question": result.question.question, "prediction": result.prediction, **result.measures})
    summary = {"questions": len(questions), **means(measures)}
    if not ranks.is_first:
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
