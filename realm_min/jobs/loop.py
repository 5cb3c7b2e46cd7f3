"""The loop that every training job runs in: updates, checkpoints, resumption, the log.

A job's folder holds

    run.json                   its settings; a resumed run must have the same
    checkpoint….safetensors    weights, the optimizer's state and the step they stand at: `run_checkpoints.py`
    log.csv metrics.csv        what each step and each evaluation reported

A step is a function of its number, the weights and what lies in the folder; whatever it draws at random comes from
`step_seed` or a `Draws`. So a run that was killed at any moment and goes on from its checkpoint ends, on a CPU, with
the bits of a run that never stopped.

On several ranks (`distributed`) each takes its share of every batch, and gradients are summed over them (`exchange`):
what is learnt is what one rank would learn, but for rounding. Rank 0 alone writes the folder, and gives the others its
weights as a run begins or goes on; so it may go on with another number of ranks.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.atomic import naming, only_writer, remove_temporaries, write_atomically
from ..files.output import check_room
from ..interface.base import RealmModel
from ..kinds import checked
from ..learn.optimizer import AdamW
from ..learn.steps import Sum
from ..ranks.distributed import world
from ..ranks.exchange import GradientExchange
from .run_checkpoints import CHECKPOINT_FILE, read_checkpoint, weights_checksum, write_checkpoint
from .settings import RUN_FILE, WEIGHTS, TrainingRun, check_new_run, check_same_run, differences, silent, write_run_file

LOG_FILE = "log.csv"
METRICS_FILE = "metrics.csv"

# step(number) -> sums to log the means of, "loss" among them, whose gradients are left in the models. All add up over
# the ranks.
Step = Callable[[int], dict[str, Sum]]


class DivergedError(ValueError):
    """The loss or a gradient is no longer a number."""


class Job(NamedTuple):
    """What is learnt in a run: all that its result depends on, beside the weights that the models have as it begins."""

    stage: str  # what reports call it
    # By name, in the order in which a step goes through them, and whose last backward passes come in reverse; a tensor
    # that two of them share is updated once.
    models: dict[str, RealmModel]
    optimizer: AdamW  # and how many steps there are
    step: Step
    settings: dict[str, Any]  # all that decides the result, as JSON values: what a resumed run is compared by
    seed: int  # of dropout, by way of `step_seed`
    frozen: Callable[[str], bool] = lambda name: False  # the names ("MODEL.KEY") of tensors to leave as they are
    beside: dict[str, RealmModel] = {}  # which the steps read, and do not train


def new_job(stage: str, models: dict[str, RealmModel], step: Step, settings: Any, identity: dict[str, Any]) -> Job:
    """A `Job` whose optimizer, seed and frozen tensors are those of its settings.

    Args:
        settings: a NamedTuple with steps, learning_rate, warmup, optimizer, freeze_word_embeddings and seed.
        identity: what else decides the result, as JSON values: the task, the corpus, the models' configurations.
    """
    warmup, bert = int(settings.warmup * settings.steps), settings.optimizer == "bert"
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=warmup, bert=bert)
    still = frozen(settings.freeze_word_embeddings)
    return Job(stage, models, optimizer, step, {**identity, **settings._asdict()}, settings.seed, still)


def train(run: TrainingRun, job: Job) -> None:
    """Run the steps of `job` from where the run stands, updating its models in place.

    Raises:
        FileExistsError: the folder holds a run that is not to be resumed.
        ValueError: it is a run of other settings, its checkpoint is damaged, or ranks were given different settings.
        RankFailedError: another rank died; the last checkpoint is kept.
        DivergedError: a loss or gradient is not finite; the message names step, seed and the last good checkpoint.
        KeyboardInterrupt: as it came; the step it came in is kept up to.
    """
    new = world().is_first and not (run.folder / RUN_FILE).exists()
    try:
        _train(run, job)
    except Exception as error:
        if new and not isinstance(error, ChildProcessError):  # which names a log in the folder
            _forget_unbegun(run.folder)
        raise


def _forget_unbegun(folder: Path) -> None:
    """Remove what stands of a run that was refused before its first step was done: the folder can be used anew."""
    logs = [folder / name for name in (LOG_FILE, METRICS_FILE)]
    if (folder / RUN_FILE).is_file() and not any(path.is_file() and path.stat().st_size for path in logs):
        for path in (*logs, folder / RUN_FILE):
            path.unlink(missing_ok=True)


def _train(run: TrainingRun, job: Job) -> None:
    """`train`; a run that is refused leaves its folder begun."""
    total = job.optimizer.total_steps
    report = run.report if world().is_first else silent
    saved = begun = _begin(run, job)
    exchange = GradientExchange(list(job.models.values())[::-1], _trainable(job.models, job.frozen)[1].values())
    with _log(run.folder / LOG_FILE, begun) as log, _log(run.folder / METRICS_FILE, begun) as log_metrics:
        report(job.stage, begun, total)
        for number in range(begun, total):
            started, done = time.perf_counter(), number + 1
            due = done == total or done % run.save_every == 0
            try:
                sums = _gradients(job, number, exchange)
            except KeyboardInterrupt:
                raise _interrupted(run, job, number, saved) from None
            except FloatingPointError as error:
                raise _diverged(run, job, number, saved, error) from None
            try:
                learnt = _update(job, sums)
                if due:
                    _check_weights(job)
            except FloatingPointError as error:
                raise _diverged(run, job, number, saved, error) from None
            log({"step": done, **learnt, "seconds": time.perf_counter() - started})
            # Evaluated before it is saved: a run killed in between does both once more.
            if run.evaluate and (done == total or (run.evaluate_every and done % run.evaluate_every == 0)):
                log_metrics({"step": done, **_evaluated(job.models, run.evaluate)})
            if due:
                _save(run.folder, job, done)
                saved = done
            report(job.stage, done, total, f"loss {learnt['loss']:.3f}")
    for model in job.models.values():
        model.zero_grads()


def _begin(run: TrainingRun, job: Job) -> int:
    """Open the run, with rank 0's weights and optimizer on every rank; returns how many steps are done."""
    _check_same(job.settings)

    def begin() -> int:
        check_new_run(run.folder, run.resume)
        settings = json.loads(json.dumps(job.settings | {WEIGHTS: weights_checksum(_tensors(job.beside | job.models))}))
        begun = (run.folder / RUN_FILE).is_file()
        if begun:
            check_same_run(run.folder, settings)
        found = read_checkpoint(run.folder, run.remark)
        size = _checkpoint_size(job)
        check_room(run.folder, size if found else 2 * size)  # of the two that are kept, one is replaced
        if not begun:
            write_run_file(run.folder, settings)
        if found is None:
            return 0
        done, tensors = found
        _restore(run.folder, job, tensors)
        return done

    done = world().on_first(begin)
    take_from_first(job.models)
    _take_state_from_first(job.optimizer, job.models)
    return done


def _gradients(job: Job, number: int, exchange: GradientExchange) -> dict[str, Sum]:
    """Leave the gradients of a step in the models, added up over the ranks; returns its sums, likewise."""
    for model in job.models.values():
        seed_model(model, step_seed(job.seed, number))
        model.zero_grads()
    sums = job.step(number)
    exchange.finish()
    return _summed(sums)


def _update(job: Job, sums: dict[str, Sum]) -> dict[str, float]:
    """Let the optimizer take its step with the models' gradients; returns what the log has of it.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; nothing was changed.
    """
    logged = {name: total / max(count, 1) for name, (total, count) in sums.items()}
    if not math.isfinite(logged["loss"]):
        raise FloatingPointError(f"the loss is {logged['loss']}")
    rate = job.optimizer.rate()
    norm = job.optimizer.update(*_trainable(job.models, job.frozen), max(sums["loss"].count, 1))
    return {**logged, "learning_rate": rate, "grad_norm": norm}


def _check_weights(job: Job) -> None:
    """FloatingPointError if a weight is not finite: every checkpoint is a good one."""
    for key, tensor in _tensors(job.models).items():
        if not all(end.isfinite() for end in torch.aminmax(tensor)):
            raise FloatingPointError(f"{key} holds {tensor[~tensor.isfinite()][0].item()} after it")


def _interrupted(run: TrainingRun, job: Job, number: int, saved: int) -> BaseException:
    """Keep the steps that are done as an interrupt comes, and return what says so."""
    try:
        _check_weights(job)
    except FloatingPointError as error:
        return _diverged(run, job, number - 1, saved, error)
    _save(run.folder, job, number)
    return KeyboardInterrupt(
        f"{number:,} of {job.optimizer.total_steps:,} steps are done and kept in {run.folder}. "
        "The same command with --resume goes on."
    )


def _diverged(run: TrainingRun, job: Job, number: int, saved: int, error: FloatingPointError) -> DivergedError:
    checkpoint = f"{run.folder / CHECKPOINT_FILE} (step {saved})" if saved else "none: it came before the first"
    return DivergedError(
        f"step {number + 1}, batch seed {step_seed(job.seed, number)}: {error}. The last good checkpoint is "
        f"{checkpoint}; lower the learning rate, or look at this batch"
    )


def train_one(run: TrainingRun, job: Job, tokenizer: Any) -> Path:
    """`train` a job that searches no index; its models are then written to FOLDER/NAME, the tokenizer to FOLDER.

    Raises:
        ValueError: ranks are to build indexes; and as `train`.
    """
    if run.refresh_ranks:
        raise ValueError(f"refresh_ranks={run.refresh_ranks} have nothing to build: leave it at 0, no index is used")
    for model in job.models.values():
        model.train()
    with only_job(run.folder):
        train(run, job)
        write_models(run.folder, job.models, tokenizer)
    return run.folder


@contextmanager
def only_job(folder: str | os.PathLike) -> Iterator[None]:
    """Be the one job, of all these ranks, that writes `folder`.

    Raises:
        FileExistsError: another job does.
    """
    with ExitStack() as held:
        world().on_first(lambda: _take(Path(folder), held))
        yield


def _take(folder: Path, held: ExitStack) -> None:
    held.enter_context(only_writer(folder))
    if folder.is_dir():
        remove_temporaries(folder)


def write_models(folder: Path, models: dict[str, RealmModel], tokenizer: Any) -> None:
    """Write each finished model to FOLDER/NAME, and the tokenizer to FOLDER: what the next stage begins with."""

    def write() -> None:
        for name, model in models.items():
            remove_temporaries(folder / name)
            model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder)

    for model in models.values():
        model.eval()
    world().on_first(write)


def check_batch(size: int, builders: int = 0) -> None:
    """Refuse a batch that leaves a rank without work; `builders` of the ranks have other work.

    Raises:
        ValueError: it has fewer examples than there are ranks that train.
    """
    ranks = world().size - builders
    if size < ranks:
        raise ValueError(f"batch_size={size} is less than the {ranks} ranks that train: give more, or start fewer")


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


@checked
def read_log(path: str | os.PathLike) -> dict[str, list[float]]:
    """Columns of a log.csv or metrics.csv, by name; an empty cell is nan. ValueError if the file is none."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is no log of a run ({error}): give its log.csv or metrics.csv") from None


def seed_model(model: RealmModel, seed: int) -> None:
    """Let the model and its parts draw their dropout from `seed`."""
    for part in (model, *model.parts.values()):
        part.seed_dropout(seed)


def _check_same(settings: dict[str, Any]) -> None:
    """ValueError if another rank was given other settings than rank 0, another corpus say."""
    first, *others = world().gather_objects(settings)
    for rank, given in enumerate(others, start=1):
        for key, value, other in differences(first, given):
            raise ValueError(
                f"rank {rank} has {key}={other!r}, rank 0 {value!r}: give all ranks the same command and the same files"
            )


def take_from_first(models: dict[str, RealmModel]) -> None:
    """Overwrite every rank's weights with rank 0's."""
    everyone = world()
    if everyone.size == 1:
        return
    for tensor in _tensors(models).values():
        held = tensor.contiguous()
        everyone.broadcast_(held)
        tensor.copy_(held)


def _take_state_from_first(optimizer: AdamW, models: dict[str, RealmModel]) -> None:
    everyone = world()
    if everyone.size == 1:
        return
    state = optimizer.state_dict()
    kinds = everyone.broadcast_object({key: (value.shape, value.dtype) for key, value in state.items()})
    found = {}
    for key, (shape, dtype) in kinds.items():
        found[key] = state[key].contiguous() if everyone.is_first else torch.empty(shape, dtype=dtype, device="cpu")
    found = _beside_parameters(found, models)
    for tensor in found.values():
        everyone.broadcast_(tensor)
    optimizer.load_state_dict(found)


def _beside_parameters(state: dict[str, Tensor], models: dict[str, RealmModel]) -> dict[str, Tensor]:
    """An optimizer's state, each average on the device of its parameter."""
    parameters = _named(models)
    found = dict(state)
    for key in state:
        parameter = parameters.get(key.partition(".")[2])  # of "mean.NAME"
        if parameter is not None:
            found[key] = state[key].to(parameter.device)
    return found


def _summed(sums: dict[str, Sum]) -> dict[str, Sum]:
    """What the ranks have counted, added up."""
    values = torch.tensor(list(sums.values()), dtype=torch.float64, device="cpu")  # [names, 2]
    world().sum_(values)
    return dict(zip(sums, itertools.starmap(Sum, values.tolist()), strict=True))


def _checkpoint_size(job: Job) -> int:
    """Of the weights and the optimizer's two averages of those that are trained, in bytes."""
    tensors = _tensors(job.models)
    return sum(tensor.nbytes * (1 if job.frozen(key) else 3) for key, tensor in tensors.items())


def _named(models: dict[str, RealmModel]) -> dict[str, Tensor]:
    """The models' tensors as "MODEL.KEY", one that is shared under each of its names."""
    return {f"{name}.{key}": tensor for name, model in models.items() for key, tensor in model.state_dict().items()}


def _tensors(models: dict[str, RealmModel]) -> dict[str, Tensor]:
    """Every tensor of the models once, as "MODEL.KEY"."""
    named = _named(models)
    first = {id(tensor): key for key, tensor in reversed(named.items())}
    return {key: tensor for key, tensor in named.items() if first[id(tensor)] == key}


def _trainable(
    models: dict[str, RealmModel], frozen: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and gradients of what is trained, as "MODEL.KEY"; a tensor frozen under one name is under all."""
    named = _named(models)
    grads = {f"{name}.{key}": grad for name, model in models.items() for key, grad in model.grads.items()}
    still = {id(tensor) for key, tensor in named.items() if frozen(key)}
    grads = {key: grad for key, grad in grads.items() if id(named[key]) not in still}
    return {key: named[key] for key in grads}, grads


def _save(folder: Path, job: Job, done: int) -> None:
    if not world().is_first:
        return
    tensors = {f"model.{key}": tensor.contiguous() for key, tensor in _tensors(job.models).items()}
    tensors |= {f"optimizer.{key}": tensor.contiguous() for key, tensor in job.optimizer.state_dict().items()}
    write_checkpoint(folder, tensors, done)


def _restore(folder: Path, job: Job, tensors: dict[str, Tensor]) -> None:
    """Put what a checkpoint holds into the models and the optimizer."""
    current = _tensors(job.models)
    saved = {key.removeprefix("model."): tensor for key, tensor in tensors.items() if key.startswith("model.")}
    if saved.keys() != current.keys() or any(saved[key].shape != current[key].shape for key in saved):
        raise ValueError(f"{folder / CHECKPOINT_FILE} is of other models: name another folder")
    for key, tensor in current.items():
        tensor.copy_(saved[key])
    state = {key.removeprefix("optimizer."): tensor for key, tensor in tensors.items() if key.startswith("optimizer.")}
    job.optimizer.load_state_dict(_beside_parameters(state, job.models))


def _evaluated(
    models: dict[str, RealmModel], evaluate: Callable[[], Mapping[str, float | None]]
) -> Mapping[str, float | None]:
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    try:
        return evaluate()
    finally:
        for name, model in models.items():
            model.train(modes[name])


@contextmanager
def _log(path: Path, done: int) -> Iterator[Callable[[Mapping[str, float | None]], None]]:
    """A function that appends a row, on rank 0; rows of steps that will run once more are dropped first."""
    if not world().is_first:
        yield lambda row: None
        return
    columns: list[str] = []
    if path.exists() and not path.is_file():  # to open a pipe is to wait for who reads it
        raise FileExistsError(f"{path} is no file: move it away, and the run goes on with a new one")
    if path.is_file():
        columns, rows = _rows_until(path, done)
        with write_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            _write_rows(file, columns, rows, header=True)
    with open(path, "a", encoding="utf-8", newline="") as file:

        def write(row: Mapping[str, float | None]) -> None:
            new = not columns
            columns.extend(row if new else ())
            if not row.keys() <= set(columns):
                raise ValueError(f"{path} has other columns than this run's: move it away, and go on with a new one")
            shown = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
            with naming(path):
                _write_rows(file, columns, [shown], header=new)
                file.flush()

        yield write


def _rows_until(path: Path, done: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns of a log, and its rows up to a step, without the half one that a killed run may have left."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row and None not in row.values() and int(row["step"]) <= done]
            return list(reader.fieldnames or []), rows
    except (ValueError, KeyError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): move it away, and the run goes on with a new one"
        ) from None


def _write_rows(file: Any, columns: list[str], rows: list[dict[str, Any]], header: bool) -> None:
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    if header and columns:
        writer.writeheader()
    writer.writerows(rows)


def frozen(word_embeddings: bool) -> Callable[[str], bool]:
    """For a job's `frozen`: nothing, or the tables of word embeddings and what is tied to them."""
    return freeze_word_embeddings if word_embeddings else lambda name: False


def freeze_word_embeddings(name: str) -> bool:
    """For a job's `frozen`: the tables of word embeddings and what is tied to them."""
    return "word_embeddings" in name
