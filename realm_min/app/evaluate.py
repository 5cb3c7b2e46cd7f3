"""`realm-min evaluate` and `retrieve`: measure answers, or blocks found, for questions of which they are known.

A question that cannot be asked or answered costs itself alone: it is named by its line and counted. What is measured is
kept in FILE.partial beside the first file to be written, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files.atomic import naming, only_writer, write_atomically
from ..jobs import ranking
from ..jobs.baselines import baseline
from ..jobs.evaluation import Result, compiled, evaluate, evaluate_retrieval, summary
from ..jobs.journal import journal_line, journal_rows, open_journal
from ..jobs.per_question import PLACE, rows_written
from ..ranks.devices import chosen_device
from ..ranks.distributed import world
from ..text.questions import Row, rows_to_ask
from .cli import load_model
from .console import progress_bar, progress_report, skipped_named
from .printable import remark, say, say_json

BATCH = 8  # questions at once
RUN_DEPTH = 1000  # blocks that a ranking of documents is made of

Judged = ranking.Judgements | None


class Measuring(NamedTuple):
    """What a command measures of each question."""

    measure: Callable[..., Iterator[Result]]  # called as `jobs.evaluation.evaluate`
    reads: bool  # and answers
    retriever: str = "the model"  # another one has another name

    @property
    def done(self) -> str:
        """What is said of a question that is measured."""
        return "answered" if self.reads else "measured"


def run(options: argparse.Namespace) -> None:
    """Run `realm-min evaluate`."""
    measure_all(options, lambda model: Measuring(evaluate, reads=True))


def retrieve(options: argparse.Namespace) -> None:
    """Run `realm-min retrieve`."""

    def measuring(model: Any) -> Measuring:
        if not options.baseline:
            return Measuring(evaluate_retrieval, reads=False)
        texts = [model.retriever.text(number) for number in range(len(model.retriever.block_records))]
        with progress_report() as report:
            search, identity = baseline(options.baseline, texts, model.device, report)
        return Measuring(partial(evaluate_retrieval, search=search), False, identity)

    measure_all(options, measuring)


def measure_all(options: argparse.Namespace, measuring: Callable[[Any], Measuring]) -> None:
    """Measure all questions as the options say; `measuring` of the model says what."""
    ranks, device = world(), chosen_device(options.device)
    judged = ranking.read_judgements(options.qrels) if options.qrels else None
    rows = list(islice(rows_to_ask(options.questions, bool(options.run or options.qrels)), options.limit))
    if options.regex and ranks.is_first:
        name_bad_patterns(rows)
    model = load_model(options.model, options.corpus).to(device)
    way = measuring(model)
    first = options.predictions or options.run
    journal = first and first.with_name(first.name + ".partial")
    with ExitStack() as held:
        done = ranks.on_first(lambda: begin(journal, held, identity_of(model, way, rows, options)))
        values = answer_all(model, way, rows, done, journal, options)
        found = ranks.on_first(lambda: finish(options, way.done, journal, values, judged))
    if ranks.is_first:
        if options.json:
            say_json(found)
        else:
            print_measures(found)


def identity_of(model: Any, way: Measuring, rows: list[Row], options: argparse.Namespace) -> dict[str, Any]:
    """What decides the result, so that another command does not go on with it."""
    return {
        "command": options.command,
        "questions": hashlib.sha256(repr(rows).encode(errors="surrogatepass")).hexdigest(),
        "model": model_digest(model),
        "retriever": way.retriever,
        "regex": options.regex,
        "documents": bool(options.run or options.qrels),
    }


def begin(journal: Path | None, held: ExitStack, identity: dict[str, Any]) -> int:
    """Open the journal, as its only writer while `held` is open; returns how many rows it holds."""
    if journal is None:
        return 0
    held.enter_context(only_writer(journal.with_suffix("")))
    return open_journal(journal, identity, BATCH)


def answer_all(
    model: Any, way: Measuring, rows: list[Row], done: int, journal: Path | None, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure the rows from `done` on, into the journal on rank 0; without one, what is found is returned."""
    ranks, values = world(), []
    depth = RUN_DEPTH if options.run or options.qrels else 0
    results = way.measure(model, rows[done:], regex=options.regex, batch_size=BATCH, world=ranks, depth=depth)
    with progress_bar() as bar, open(journal, "ab") if journal and ranks.is_first else nullcontext() as file:
        try:
            for result in bar.track(
                results, len(rows) - done, description="Answering questions" if way.reads else "Searching"
            ):
                value = value_of(model, result, way.reads, depth > 0)
                done += 1
                if file is not None:
                    with naming(file.name):
                        file.write(journal_line(value))
                        file.flush()
                elif ranks.is_first:
                    values.append(value)
        except KeyboardInterrupt:
            kept = f"are {way.done} and kept in {journal}. The same command goes on from there"
            lost = f"were {way.done}; with --predictions FILE they are kept"
            raise KeyboardInterrupt(f"{done:,} of {len(rows):,} questions {kept if journal else lost}.") from None
    return values


def value_of(model: Any, result: Result, reads: bool, ranked: bool) -> dict[str, Any]:
    """What is kept of a result."""
    row, answer = result.row, result.answer
    value: dict[str, Any] = {"line": row.line, "id": row.id, "question": row.question.question if row.question else ""}
    if reads:
        value["prediction"] = result.prediction
    if result.reason:
        return value | {"skipped": result.reason}
    if answer is not None:
        block = answer.blocks[answer.block_rank]
        value |= {"probability": answer.probability, "document": answer.document}
        value |= {"title": block.title, "block": block.id}
        value |= {name: getattr(answer, name) for name in PLACE}
    value["measures"] = result.measures
    if ranked:
        named = ((model.retriever.document(number), score) for number, score in result.retrieved)
        value["ranking"] = list(ranking.distinct(named))
    return value


def finish(
    options: argparse.Namespace, done: str, journal: Path | None, values: Iterable[dict[str, Any]], judged: Judged
) -> dict[str, Any]:
    """Write what was asked for, forget the journal, name what was skipped, and return the summary.

    Raises:
        ValueError: no question was answered.
    """
    measures, skipped = [], []
    with skipped_named() as skip, ExitStack() as held:
        rows = held.enter_context(rows_written(options.predictions))
        run_file = options.run and held.enter_context(open(held.enter_context(write_atomically(options.run)), "wb"))
        for value in journal_rows(journal) if journal else values:
            documents = value.pop("ranking", [])
            if "skipped" in value:
                skipped.append(f"line {value['line']} {value['skipped']}")
                skip(value["skipped"], f"line {value['line']}")
            else:
                found = value.pop("measures")
                if judged is not None:
                    names = [name for name, _ in documents]
                    found |= ranking.measures(names, judged.get(ranking.one_word(value["id"]), {}))
                measures.append(found)
                value |= found
            rows.append(value)
            if run_file:
                lines = ranking.run_lines(value["id"], documents)
                run_file.writelines(line.encode(errors="backslashreplace") for line in lines)
        if not measures:
            forget(journal)
            raise ValueError(f"no question of {options.questions} could be {done}: {skipped[0]}")
    forget(journal)
    return {"questions": len(measures) + len(skipped), done: len(measures), "skipped": len(skipped)} | summary(measures)


def forget(journal: Path | None) -> None:
    if journal:
        journal.unlink()


def print_measures(found: dict[str, Any]) -> None:
    """The counts, and of each measure the mean, its 95 % interval and how many questions it is of."""
    counts, intervals = found["n"], found["interval_95"]
    for name in list(found)[: list(found).index("skipped") + 1]:
        say(f"{name:<21} {found[name]:>8,}")
    say(f"{'':<21} {'mean':>8}   {'95 % interval':<18} n")
    for name in counts:
        if found[name] is None:
            say(f"{name:<21} {'–':>8}")
            continue
        low, high = intervals[name]
        say(f"{name:<21} {100 * found[name]:>6.1f} %   {100 * low:5.1f} to {100 * high:5.1f} %   {counts[name]:,}")


def name_bad_patterns(rows: list[Row]) -> None:
    for row in rows:
        for pattern in row.question.answers if row.question else ():
            if compiled(pattern) is None:
                remark(f"The pattern {pattern!r} does not compile and matches nothing.")


def model_digest(model: Any) -> str:
    """sha256 (hexadecimal) of what answers: configuration, vocabulary, weights, and of the blocks a thousand."""
    retriever, digest = model.retriever, hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    digest.update(json.dumps(retriever.tokenizer.get_vocab(), sort_keys=True).encode())
    every = len(retriever.block_records) // 1000 + 1
    tensors = [tensor for part in model.parts.values() for _, tensor in sorted(part.state_dict().items())]
    for tensor in (*tensors, model.block_emb[::every]):
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for record in retriever.block_records[::every]:
        digest.update(bytes(record))
    return digest.hexdigest()
