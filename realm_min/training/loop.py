"""The loop that every training job runs in: updates, checkpoints, resumption, the log.

A job's folder holds

    run.json                 its settings; a resumed run must have the same
    checkpoint.safetensors   weights, the optimizer's state and the step they stand at, replaced atomically
    log.csv metrics.csv      what each step and each evaluation reported

A step is a function of its number, the weights and what lies in the folder; whatever it draws at random comes from
`step_seed`. So a run that was killed at any moment and goes on from its checkpoint ends, on a CPU, with the bits of a
run that never stopped.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import write_atomically
from ..model import RealmModel
from .optimizer import AdamW

RUN_FILE = "run.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
LOG_FILE = "log.csv"
METRICS_FILE = "metrics.csv"

# step(number) -> what to log, "loss" among it; the gradients are left in the models.
Step = Callable[[int], dict[str, float]]


class DivergedError(ValueError):
    """The loss or a gradient is no longer a number."""


def train(
    folder: str | os.PathLike,
    models: dict[str, RealmModel],
    optimizer: AdamW,
    step: Step,
    *,
    settings: dict[str, Any],
    seed: int,
    resume: bool = False,
    frozen: Callable[[str], bool] = lambda name: False,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    save_every: int = 200,
    stage: str = "Training",
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> None:
    """Run `optimizer.total_steps` updates of `models`, in place.

    Args:
        folder: the run's; made where it is absent.
        models: by name; a tensor that two of them share is updated once.
        settings: all that decides the result, as JSON values: what a resumed run is compared by.
        seed: of dropout, by way of `step_seed`.
        resume: go on from the folder's checkpoint; without one, from the start.
        frozen: the names ("MODEL.KEY") of tensors to leave as they are.
        evaluate: measures of the models as they stand, every `evaluate_every` steps and at the end.
        report: called as report(stage, done, total, note).

    Raises:
        FileExistsError: the folder holds a run and `resume` is false.
        ValueError: it is a run of other settings, or its checkpoint is damaged.
        DivergedError: a loss or gradient is not finite; the message names step, seed and the last good checkpoint.
        KeyboardInterrupt: as it came; the step it came in is kept up to.
    """
    folder = Path(folder)
    total = optimizer.total_steps
    done = _open_run(folder, settings, resume)
    if done:
        _restore(folder, models, optimizer)
    saved = done
    with _log(folder / LOG_FILE, done) as log, _log(folder / METRICS_FILE, done) as log_metrics:
        report(stage, done, total)
        for number in range(done, total):
            started = time.perf_counter()
            for model in models.values():
                seed_model(model, step_seed(seed, number))
                model.zero_grads()
            try:
                logged = step(number)
            except KeyboardInterrupt:
                _save(folder, models, optimizer, number)
                raise KeyboardInterrupt(
                    f"{number:,} of {total:,} steps are done and kept in {folder}. "
                    "The same command with --resume goes on."
                ) from None
            parameters, grads = _trainable(models, frozen)
            try:
                if not math.isfinite(logged["loss"]):
                    raise FloatingPointError(f"the loss is {logged['loss']}")
                rate, norm = optimizer.rate(), optimizer.update(parameters, grads)
            except FloatingPointError as error:
                checkpoint = f"{folder / CHECKPOINT_FILE} (step {saved})" if saved else "none: it came before the first"
                raise DivergedError(
                    f"step {number + 1}, batch seed {step_seed(seed, number)}: {error}. The last good checkpoint is "
                    f"{checkpoint}; lower the learning rate, or look at this batch"
                ) from None
            seconds = time.perf_counter() - started
            log({"step": number + 1, **logged, "learning_rate": rate, "grad_norm": norm, "seconds": seconds})
            # Evaluated before it is saved: a run killed in between does both once more.
            if evaluate and ((evaluate_every and (number + 1) % evaluate_every == 0) or number + 1 == total):
                log_metrics({"step": number + 1, **_evaluated(models, evaluate)})
            if (number + 1) % save_every == 0 or number + 1 == total:
                _save(folder, models, optimizer, number + 1)
                saved = number + 1
            report(stage, number + 1, total, f"loss {logged['loss']:.3f}")
    for model in models.values():
        model.zero_grads()


def step_seed(seed: int, number: int) -> int:
    """The seed of all that step `number` draws."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def batch(number: int, size: int, count: int, seed: int) -> list[int]:
    """Which `size` of `count` examples step `number` takes: every epoch is a new permutation of all.

    The last examples of an epoch and the first of the next may share a batch.
    """
    if count < 1:
        raise ValueError("there is no example to train on: give a corpus or questions that hold some")
    places = range(number * size, (number + 1) * size)
    epochs = {place // count for place in places}
    order = {epoch: np.random.default_rng([seed, epoch]).permutation(count) for epoch in epochs}
    return [int(order[place // count][place % count]) for place in places]


def checkpoint_step(folder: str | os.PathLike) -> int | None:
    """The step that the run's checkpoint stands at, None without one.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    path = Path(folder) / CHECKPOINT_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return int(file.metadata()["done"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged: remove {folder} and start the run anew") from None


def read_log(path: str | os.PathLike) -> dict[str, list[float]]:
    """Columns of a log.csv or metrics.csv, by name; an empty cell is nan."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}


def seed_model(model: RealmModel, seed: int) -> None:
    """Let the model and its parts draw their dropout from `seed`."""
    for part in (model, *model.parts.values()):
        part.generator.manual_seed(seed)


def _open_run(folder: Path, settings: dict[str, Any], resume: bool) -> int:
    """Compare or write the settings; returns how many steps are done."""
    settings = json.loads(json.dumps(settings))
    path = folder / RUN_FILE
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if not resume:
            raise FileExistsError(f"{folder} holds a run already: go on with --resume, or name another folder")
        for key in sorted(found.keys() | settings.keys()):
            if found.get(key) != settings.get(key):
                raise ValueError(
                    f"{folder} was begun with {key}={found.get(key)!r}, not {settings.get(key)!r}: resume with the "
                    "same settings, or name another folder"
                )
        return checkpoint_step(folder) or 0
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def _tensors(models: dict[str, RealmModel]) -> dict[str, Tensor]:
    """Every tensor of the models once, as "MODEL.KEY"."""
    named = {f"{name}.{key}": tensor for name, model in models.items() for key, tensor in model.state_dict().items()}
    first = {id(tensor): key for key, tensor in reversed(named.items())}
    return {key: tensor for key, tensor in named.items() if first[id(tensor)] == key}


def _trainable(
    models: dict[str, RealmModel], frozen: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and gradients of what is trained, as "MODEL.KEY"; a tensor frozen under one name is under all."""
    named = {f"{name}.{key}": tensor for name, model in models.items() for key, tensor in model.state_dict().items()}
    grads = {f"{name}.{key}": grad for name, model in models.items() for key, grad in model.grads.items()}
    still = {id(tensor) for key, tensor in named.items() if frozen(key)}
    grads = {key: grad for key, grad in grads.items() if id(named[key]) not in still}
    return {key: named[key] for key in grads}, grads


def _save(folder: Path, models: dict[str, RealmModel], optimizer: AdamW, done: int) -> None:
    tensors = {f"model.{key}": tensor.contiguous() for key, tensor in _tensors(models).items()}
    tensors |= {f"optimizer.{key}": tensor.contiguous() for key, tensor in optimizer.state_dict().items()}
    with write_atomically(folder / CHECKPOINT_FILE) as temporary:
        save_file(tensors, temporary, metadata={"done": str(done)})


def _restore(folder: Path, models: dict[str, RealmModel], optimizer: AdamW) -> None:
    tensors = load_file(folder / CHECKPOINT_FILE)
    current = _tensors(models)
    saved = {key.removeprefix("model."): tensor for key, tensor in tensors.items() if key.startswith("model.")}
    if saved.keys() != current.keys() or any(saved[key].shape != current[key].shape for key in saved):
        raise ValueError(f"{folder / CHECKPOINT_FILE} is of other models: name another folder")
    for key, tensor in current.items():
        tensor.copy_(saved[key])
    optimizer.load_state_dict(
        {key.removeprefix("optimizer."): tensor for key, tensor in tensors.items() if key.startswith("optimizer.")}
    )


def _evaluated(models: dict[str, RealmModel], evaluate: Callable[[], dict[str, float]]) -> dict[str, float]:
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    try:
        return evaluate()
    finally:
        for name, model in models.items():
            model.train(modes[name])


@contextmanager
def _log(path: Path, done: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that appends a row; rows of steps that will run once more are dropped first."""
    columns: list[str] = []
    if path.is_file():
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            # A killed run may have left half a row.
            kept = [row for row in reader if None not in row.values() and int(row["step"]) <= done]
        with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            _write_rows(file, columns, kept, header=True)
    with open(path, "a", encoding="utf-8", newline="") as file:

        def write(row: dict[str, float]) -> None:
            new = not columns
            columns.extend(row if new else ())
            shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            _write_rows(file, columns, [shown], header=new)
            file.flush()

        yield write


def _write_rows(file: Any, columns: list[str], rows: list[dict[str, Any]], header: bool) -> None:
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    if header and columns:
        writer.writeheader()
    writer.writerows(rows)


def freeze_word_embeddings(name: str) -> bool:
    """For `frozen`: the tables of word embeddings and what is tied to them."""
    return "word_embeddings" in name
