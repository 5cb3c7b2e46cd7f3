"""Numerics of a checkpoint, stage by stage, against every reference there is: `realm-min verify CHECKPOINT`.

Read in this order: `stages.py` cuts a model into stages, `paths.py` tells of every way there is to compute them, each
in a file of its own, `measure.py` says how far apart they are, `report.py` shows it; `known.py` has the published
checkpoints' values.

Each stage is measured twice. Its accumulated error is that of a path that computed everything from the inputs on. Its
own error is that of the same path when the stage is given the reference's values to read: it shows a wrong stage among
right ones, and a right stage behind a wrong one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..app.console import doing
from ..app.printable import remark, say_json
from ..config import RealmConfig
from ..files import checkpoint as checkpoints
from ..files.hub import resolve_folder
from ..interface.open_qa import block_mask
from ..text.retriever import BLOCK_RECORDS_FILE, RealmRetriever
from ..text.sequences import pad_to
from ..text.tokenizer import RealmTokenizer
from ..textbook import span_candidates
from .known import compare_known, recognise_known
from .measure import Error, choice_error, choose, error_of, weight_differences, weight_problems
from .measured_path import MeasuredPath
from .paths import available_paths
from .reference_path import ReferencePath
from .report import Answer, Measured, Report, Row, plot, print_report
from .stages import Stage, StateDict, inputs_of, recognise, shapes, stages_of

__all__ = ["Report", "compare", "run", "verify"]

# Values of the stages by name; None where a number of them is not finite.
Values = dict[str, np.ndarray | None]


def verify(
    checkpoint: str | os.PathLike,
    *,
    text: str | None = None,
    against: str | os.PathLike | None = None,
    known: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda doing: None,
) -> Report:
    """Compare what every path computes from a checkpoint with the float64 reference.

    Args:
        checkpoint: folder or hub name of any of the five kinds of model.
        text: read as the first sequence of each batch, through the folder's tokenizer; the question, for a model that
            answers questions. Where such a folder holds its blocks, the reader then reads those retrieved.
        against: another checkpoint of the same model: its weights are compared, and its float32 path is measured.
        known: compare with the values of this published checkpoint; None goes by the checkpoint's name.
        seed: draws the inputs.
        progress: called with what is being done.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the files are damaged, are of another model, or do not fit their configuration; a text too long.
    """
    folder = resolve_folder(checkpoint)
    progress("reading the weights")
    kind, config, state_dict = read_checkpoint(folder)
    other = None if against is None else read_other(against, config, kind, checkpoint)
    paths, left_out = available_paths(kind, config, state_dict, other)
    text_ids = None if text is None else RealmTokenizer.from_pretrained(folder)(text)["input_ids"]
    report = compare(
        kind, config, state_dict, paths, inputs_of(kind, config, seed, text_ids),
        blocks=Blocks(folder, text_ids) if text_ids is not None and holds_blocks(folder, kind) else None,
        progress=progress,
    )  # fmt: skip
    report = replace(
        report, checkpoint=str(checkpoint), text=text, seed=seed, left_out=left_out,
        against=None if against is None else str(against), differences=weight_differences(state_dict, other or {}),
    )  # fmt: skip
    return with_published_values(report, folder, known, progress)


def read_checkpoint(folder: Path, config: RealmConfig | None = None) -> tuple[str, RealmConfig, StateDict]:
    """Kind, configuration (the folder's, or the one given) and weights, which fit each other; tied weights once."""
    state_dict = checkpoints.read_state_dict(folder)
    own_config = RealmConfig.from_pretrained(folder)
    config = config or own_config
    kind = recognise(getattr(own_config, "architectures", None), state_dict)
    if kind == "RealmScorer" and not any(key.startswith("query_embedder.") for key in state_dict):
        # One embedder for both: it is stored once.
        state_dict |= {f"query_{key}": tensor for key, tensor in state_dict.items() if key.startswith("embedder.")}
    expected = shapes(kind, config)
    aliases = {key: same for key, same in expected.items() if isinstance(same, str)}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in expected.items() if not isinstance(shape, str)}
    # Copies nothing: these have no memory. What is not finite is not refused but found, by the stages.
    checkpoints.assign(tensors, state_dict, aliases, source=str(folder), finite=False)
    once = {aliases.get(key, key): tensor for key, tensor in state_dict.items()}
    return kind, config, {key: once[key] for key in tensors}


def read_other(against: str | os.PathLike, config: RealmConfig, kind: str, checkpoint: str | os.PathLike) -> StateDict:
    """The weights of the checkpoint that `checkpoint`, of this kind and configuration, is verified against."""
    other_kind, _, other = read_checkpoint(resolve_folder(against), config)
    if other_kind != kind:
        raise ValueError(f"{against} is a {other_kind}, {checkpoint} a {kind}: give two of the same model")
    return other


def with_published_values(report: Report, folder: Path, known: str | None, progress: Callable[[str], None]) -> Report:
    """The report, with the values of the published checkpoint `known`, or of the one that this is called after."""
    name = known or recognise_known(report.checkpoint)
    if not name:
        return report
    if known is None and report.kind == "RealmForOpenQA" and not holds_blocks(folder, report.kind):
        name, why = None, f"{name}'s answer needs {BLOCK_RECORDS_FILE} in the folder"
    elif report.weights:
        why = "the weights are damaged"
    else:
        progress(f"published values of {name}")
        return replace(report, known=name, known_values=compare_known(name, folder))
    return replace(report, known=name, left_out=report.left_out | {"published values": why})


# --- Comparing --------------------------------------------------------------------------------------------------------


def compare(
    kind: str,
    config: RealmConfig,
    state_dict: StateDict,
    paths: list[MeasuredPath],
    inputs: dict[str, np.ndarray],
    *,
    blocks: Blocks | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> Report:
    """Measure `paths` against the float64 reference of `state_dict`, stage by stage.

    Args:
        inputs: what `inputs_of` gives.
        blocks: the evidence to read instead of seeded ids, for a model that answers questions.
    """
    problems = weight_problems(state_dict)
    progress("NumPy, float64")
    stages = stages_of(kind, config)
    yardstick = run_reference(ReferencePath(kind, config, state_dict), stages, inputs, blocks)
    answer = None
    if blocks and yardstick.values["reader:answer"] is not None:
        answer = blocks.answer(config, {name: value for name, value in yardstick.values.items() if value is not None})
    rows = [
        Row(stage, yardstick.scales[stage.name], {key: problems[key] for key in weights_of(stage, problems)})
        for stage in stages
    ]
    for path in paths:
        progress(path.name)
        with np.errstate(all="ignore"):
            measure_path(path, rows, yardstick)
    return Report(
        kind=kind,
        sizes=sizes_of(config, state_dict),
        inputs={name: list(value.shape) for name, value in yardstick.inputs.items() if name.endswith("ids")},
        rows=rows,
        tolerances={path.name: path.tolerance for path in paths},
        weights=problems,
        answer=answer,
    )


def sizes_of(config: RealmConfig, state_dict: StateDict) -> dict[str, int]:
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "vocabulary": config.vocab_size,
        "weights": sum(tensor.numel() for tensor in state_dict.values()),
    }


def read_by(stage: Stage, values: Values) -> list[np.ndarray] | None:
    """What a stage reads; None where some of it is not finite."""
    found = [value for name in stage.reads if (value := values[name]) is not None]
    return found if len(found) == len(stage.reads) else None


class Yardstick(NamedTuple):
    """What the reference computed.

    inputs: what it started from. values: these, and what each stage gave. scores: what each stage chose by, where it
    chooses. scales: what the errors of each stage are relative to.
    """

    inputs: dict[str, np.ndarray]
    values: Values
    scores: Values
    scales: dict[str, float]


def run_reference(
    reference: ReferencePath, stages: list[Stage], inputs: dict[str, np.ndarray], blocks: Blocks | None
) -> Yardstick:
    """Compute every stage; the reader reads the blocks that were retrieved, where there are `blocks`."""
    values: Values = dict(inputs)
    scores: Values = {}
    with np.errstate(all="ignore"):  # damaged weights overflow; that is reported as what it is
        for stage in stages:
            if blocks and stage.name == "reader:layer -1" and values["retrieved"] is not None:
                read = blocks.reader_inputs(reference.config, values["retrieved"][0])
                inputs, values = inputs | read, values | read
            compute_reference(reference, stage, values, scores)
    return Yardstick(inputs, values, scores, {stage.name: scale_of(reference, stage, values) for stage in stages})


def compute_reference(reference: ReferencePath, stage: Stage, values: Values, scores: Values) -> None:
    """Compute one stage into `values`, and where it chooses, into `scores` what it chose by."""
    if stage.repeats:
        values[stage.name], scores[stage.name] = values[stage.repeats], scores.get(stage.repeats)
        return
    reads = read_by(stage, values)
    found = None if reads is None else finite(reference.compute(stage, *reads))
    if stage.choices:
        scores[stage.name] = found
        found = None if found is None else choose(found, stage.choices)
    values[stage.name] = found


def scale_of(reference: ReferencePath, stage: Stage, values: Values) -> float:
    value, reads = values[stage.name], read_by(stage, values)
    if value is None or reads is None:
        return float("inf")
    return reference.scale(stage, value, *reads)


def measure_path(path: MeasuredPath, rows: list[Row], yardstick: Yardstick) -> None:
    """Add the errors of one path to every row."""
    reference = yardstick.values
    values: Values = dict(yardstick.inputs)
    for row in rows:
        stage = row.stage

        def compute(given: Values, stage: Stage = stage) -> np.ndarray | None:
            reads = read_by(stage, given)
            if reads is None:
                return None
            found = path.compute(stage, *reads)
            return NOT_COMPUTED if found is None else finite(found)

        def error(found: np.ndarray | None, row: Row = row) -> Error:
            if row.stage.choices:
                return choice_error(yardstick.scores[row.stage.name], found)
            return error_of(row.stage, reference[row.stage.name], found, row.scale)

        found = compute(values)
        if found is NOT_COMPUTED:
            values[stage.name] = reference[stage.name]  # what follows goes on from there
            continue
        values[stage.name] = found
        own = None
        if not stage.repeats and read_by(stage, reference) is not None:
            own = error(compute(reference))
        row.errors[path.name] = Measured(
            error(found), own, row.stage.tolerance if path.tolerance is None else path.tolerance
        )
    path.release()


NOT_COMPUTED = np.empty(0)


def finite(value: np.ndarray) -> np.ndarray | None:
    """`value`, or None if any of its numbers is not finite."""
    return value if np.isfinite(value).all() else None


def weights_of(stage: Stage, keys: Any) -> list[str]:
    return [key for key in keys if key.startswith(stage.weights)] if stage.weights else []


# --- Real blocks ------------------------------------------------------------------------------------------------------


def holds_blocks(folder: Path, kind: str) -> bool:
    return kind == "RealmForOpenQA" and (folder / BLOCK_RECORDS_FILE).is_file()


class Blocks:
    """The evidence of a folder, read for one question."""

    def __init__(self, folder: Path, question_ids: list[int]) -> None:
        self.retriever, self.question_ids = RealmRetriever.from_pretrained(folder), question_ids

    def reader_inputs(self, config: RealmConfig, block_ids: np.ndarray) -> dict[str, np.ndarray]:
        """The reader's inputs for the question and the blocks `block_ids` [beam]; one span of each counts as right."""
        length = min(config.reader_seq_len, config.max_position_embeddings)
        *_, encoded = self.retriever(block_ids, [self.question_ids], None, max_length=length)
        inside = pad_to(block_mask(encoded), config.max_span_width, 0)
        has_answers = inside.any(1)
        starts = torch.where(has_answers, inside.int().argmax(1), -1)[:, None]
        tensors = {
            "ids": pad_to(encoded.input_ids, config.max_span_width, config.pad_token_id),
            "mask": pad_to(encoded.attention_mask, config.max_span_width, 0),
            "types": pad_to(encoded.token_type_ids, config.max_span_width, 0),
            "block mask": inside,
            "starts": starts,
            "ends": starts,
            "has answers": has_answers,
        }
        return {f"reader:{name}": tensor.numpy() for name, tensor in tensors.items()}

    def answer(self, config: RealmConfig, values: Mapping[str, np.ndarray]) -> Answer:
        """The reference's answer, as text."""
        logits, ids = values["reader:span logits"], values["reader:ids"]
        block, candidate = divmod(int(values["reader:answer"][0, 0]), logits.shape[1])
        starts, ends = span_candidates(ids.shape[1], config.max_span_width)
        answer = ids[block, starts[candidate] : ends[candidate] + 1].tolist()
        return Answer(self.retriever.tokenizer.decode(answer), int(values["retrieved"][0, block]))


# --- Command line -----------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Run `realm-min verify`; returns 0 if every stage is within its tolerance, else 1."""
    with doing("verify") as progress:
        report = verify(
            options.checkpoint, text=options.text, against=options.against, known=options.known, seed=options.seed,
            progress=progress,
        )  # fmt: skip
    if options.json:
        say_json(report.to_dict(), indent=2)
    else:
        print_report(report)
    if options.plot:
        plot(report, options.plot)
        remark(f"The error by depth is drawn in {options.plot}")
    return 0 if report.passed else 1
