"""The default model learns on, freely or within the numbers that its file rounds to: two stages, on two cores.

    python benchmarks/tune_default.py --data FILE.npz --minilm FOLDER --out FOLDER [--free] [--updates N N]

It begins with a packed file (--packed), or else the one that ships, to go on with it. What it learns from is what
`train_default.py` learns from, and the questions of `written/` above all.

    --free      the weights go where they like; `pack_default.py --out OUT/free` embeds the blocks in float32 and packs
                them
    without it  every matrix stays whole multiples of its steps: a float32 copy of the weights moves, the model computes
                with that copy rounded, and the gradient of the rounded weights is taken for the copy's (the
                straight-through estimator of Bengio et al. 2013, as Jacob et al. 2018 train networks of whole
                numbers). So nothing is lost when it is packed again, and what rounding has cost can be learnt back.
                OUT/tuned.realm is the new file: the same blocks, vocabulary and word embeddings as before.

    retriever   a question learns from all blocks at once, as they were last embedded. Of every step the blocks that the
                loss would move most are moved, since Embed_doc is the same BERT, and some others held to where they
                are; both are then embedded anew. With --free all are in the end.
    reader      as in `train_default.py`

Both compute in bfloat16, which is the quicker where the processor has its products. A stage that is done is kept in
--out, and one that was stopped goes on from its last checkpoint; so does one that is done, where --updates asks for
more.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import default_data
import numpy as np
import torch
from default_data import Data
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_default import (
    NO_DROPOUT,
    SCALE,
    Reader,
    Retriever,
    best,
    block_rows,
    by_length,
    drawn,
    embed_rows,
    embed_rows_backward,
    evaluate,
    evidence_of,
    lengths_of,
    new_models,
    own_keys,
    pairs_of,
    portioned,
    question_rows,
    reader_step,
    readings,
    record_rows,
    sentence_embeddings,
    summary,
    target_of,
)

from realm_min.app import default_model
from realm_min.files import packed
from realm_min.files.atomic import write_atomically
from realm_min.files.quantization import quantize, stored_order
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import warm_start
from realm_min.learn.optimizer import AdamW
from realm_min.model.ops import softmax
from realm_min.text.corpus import MAX_WORDPIECES

CPU = torch.device("cpu")
WORDS, BLOCKS = "realm.embeddings.word_embeddings.weight", "block_emb"
MOVED_BLOCKS = 40  # of a step, those that its loss would move most
HELD_BLOCKS = 24  # of a step, others, whose embeddings are to stay
KEEP_EVERY = 240  # seconds
WATCH_EVERY = 100  # steps: the development questions

RETRIEVER = Retriever(
    steps=600, learning_rate=1e-4,
    mixture=(
        ("lead", 0.14), ("web", 0.1), ("slice", 0.04), ("field", 0.12), ("made", 0.08), ("written", 0.46),
        ("sentence", 0.06),
    ),
)  # fmt: skip
READER = Reader(
    steps=900, learning_rate=2e-4, beam=3,
    mixture=(("lead", 0.16), ("web", 0.1), ("slice", 0.05), ("field", 0.15), ("made", 0.06), ("written", 0.48)),
)  # fmt: skip


# ---- the packed weights


class Steps(NamedTuple):
    """What a matrix [rows, columns] is whole multiples of: a row's factor times a column's, float16."""

    rows: np.ndarray
    columns: np.ndarray

    def of_all(self) -> Tensor:
        return torch.from_numpy(np.outer(self.rows.astype(np.float32), self.columns.astype(np.float32)))


class File(NamedTuple):
    """A packed model: its header, its weights by key as they are stored, and their steps."""

    header: dict[str, Any]
    weights: dict[str, Tensor]
    steps: dict[str, Steps]
    model: RealmForOpenQA
    tokenizer: Any


def read_file(path: Path) -> File:
    header, streams = packed.read_packed(path)
    model, tokenizer = packed.build(header, *streams)
    stored = {
        key: tensor for key, tensor in model.state_dict().items()
        if key not in header["copies"] and not packed.UNREAD.fullmatch(key)
    }  # fmt: skip
    numbers, place, steps = np.frombuffer(streams[1], "<f2"), 0, {}
    for key, tensor in stored.items():
        if packed.is_quantized(key, tuple(tensor.shape)):
            middle, end = place + tensor.shape[0], place + sum(tensor.shape)
            steps[key], place = Steps(numbers[place:middle], numbers[middle:end]), end
    return File(header, stored, steps, model, tokenizer)


def codes_of(tensor: Tensor, steps: Steps) -> Tensor:
    """The multiples nearest to a matrix, float32 [rows, columns]; where a row has no step they are 0."""
    return (tensor / steps.of_all()).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(-127, 127)


def write_file(path: Path, file: File, changed: dict[str, Tensor], z: Tensor) -> None:
    """The file with other weights, which are rounded to the steps that it has, and other embeddings of its blocks."""
    coder = packed.new_coder()
    codes, steps, vectors = [], [], []
    for key, stored in file.weights.items():
        tensor = changed.get(key, stored)
        if key in file.steps:
            if key == BLOCKS:
                whole, rows, columns = quantize(z.numpy(), packed.levels_of(key, 1))
            else:
                rows, columns = file.steps[key]
                whole = codes_of(tensor, file.steps[key]).numpy().astype(np.int8)
            codes.append(coder.compress(whole.T[stored_order(columns)].tobytes()))
            steps += [rows.tobytes(), columns.tobytes()]
        else:
            vectors.append(tensor.numpy().astype("<f2").tobytes())
    streams = [b"".join((*codes, coder.flush())), b"".join(steps), b"".join(vectors)]
    header = {key: value for key, value in file.header.items() if key != "streams"}
    with write_atomically(path) as temporary:
        temporary.write_bytes(packed.join(header, streams, packed.MAGIC, packed.sha256))


# ---- what learns


class Learner:
    """A part of the model in bfloat16, and the float32 copy of what it learns, whose rounding it computes with.

    Args:
        rounded: False computes with the copy as it is.
    """

    def __init__(self, model: Any, file: File, part: str, rounded: bool = True) -> None:
        self.model, self.part = model.to(torch.bfloat16), part
        stored = {key: f"{part}.{key}" for key in own_keys(model) if f"{part}.{key}" in file.weights}
        self.free = {key: file.weights[name].clone() for key, name in stored.items()}
        self.steps = {key: file.steps[name] for key, name in stored.items() if rounded and name in file.steps}
        spelt, kept = warm_start.tokenizer(None).vocab, file.tokenizer.vocab  # the data has the whole vocabulary's ids
        rows = [kept.get(piece, kept["[UNK]"]) for piece in sorted(spelt, key=spelt.__getitem__)]
        self.words = file.model.parts[part].p[WORDS][rows]
        self.write(self.model)

    def write(self, model: Any) -> None:
        """The rounded weights, in the model's own dtype."""
        model.p[WORDS].copy_(self.words)
        for key, tensor in self.free.items():
            steps = self.steps.get(key)
            model.p[key].copy_(tensor if steps is None else codes_of(tensor, steps).mul_(steps.of_all()))

    def update(self, optimizer: AdamW, count: int) -> None:
        grads = {key: self.model.own_grads[key].float() for key in self.free}
        optimizer.update(self.free, grads, count)
        self.model.zero_grads()
        self.write(self.model)

    def stored(self) -> dict[str, Tensor]:
        return {f"{self.part}.{key}": tensor for key, tensor in self.free.items()}

    def write_free(self, folder: Path) -> None:
        """The copy as it is, as `train_default.py` leaves a part."""
        save_file({key: tensor.contiguous() for key, tensor in self.free.items()}, folder / f"{self.part}.safetensors")


def learn(
    learner: Learner, out: Path, settings: Retriever | Reader, step: Callable[[int], tuple[Tensor, Tensor, int]],
    watch: Callable[[], None], log: Callable[..., None], beside: dict[str, Tensor] | None = None,
) -> bool:  # fmt: skip
    """A stage, from its last checkpoint on; `step(number)` adds gradients and returns two losses' sums and a count.

    Args:
        beside: what the steps change besides the weights.

    Returns:
        Whether there were steps left.
    """
    done, path = (out / f"{learner.part}.{ending}" for ending in ("safetensors", "partial"))
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=settings.steps // 20)
    kinds = {"free": learner.free, "mean": optimizer.mean, "square": optimizer.square, "beside": beside or {}}
    if done.is_file() or path.is_file():
        found = load_file(path if path.is_file() else done)
        optimizer.step = int(found.pop("step"))
        for name, tensor in found.items():
            kind, _, key = name.partition("/")
            if kind == "beside":
                kinds[kind][key].copy_(tensor)
            else:
                kinds[kind][key] = tensor
        learner.write(learner.model)
        log(learner.part, "goes on after step", optimizer.step)
    kept_at = time.perf_counter()

    def keep(to: Path) -> None:
        tensors = {f"{kind}/{key}": tensor.contiguous() for kind, some in kinds.items() for key, tensor in some.items()}
        with write_atomically(to) as temporary:
            save_file(tensors | {"step": torch.tensor(optimizer.step)}, temporary)

    first_step = optimizer.step
    for number in range(first_step, settings.steps):
        first, second, count = step(number)
        learner.update(optimizer, count)
        if number % 20 == 0:
            log(learner.part, number, settings.steps, f"{float(first) / count:.4f} {float(second) / count:.4f}")
        if (number + 1) % WATCH_EVERY == 0:
            watch()
        if time.perf_counter() - kept_at > KEEP_EVERY:
            keep(path)
            kept_at = time.perf_counter()
    if optimizer.step > first_step or not done.is_file():
        keep(done)
        path.unlink(missing_ok=True)
    return optimizer.step > first_step


# ---- the stages


def embedded(model: Any, data: Data, numbers: list[int], keep: bool) -> tuple[Tensor, Any]:
    """The questions' embeddings [questions, proj] float32, and what the backward pass takes."""
    found, kept = embed_rows(model, portioned(*question_rows(data, numbers), 64, 3), CPU, keep)
    return found.float(), kept


def tune_retriever(
    learner: Learner, data: Data, z: Tensor, minilm: Path, settings: Retriever, seed: int, out: Path,
    log: Callable[..., None],
) -> bool:  # fmt: skip
    model = learner.model
    teacher = warm_start.embedder(minilm, 0, **NO_DROPOUT).to(torch.bfloat16).eval()
    path = out / "teacher.npy"  # of the blocks
    if not path.is_file():
        rows = sentence_embeddings(teacher, lambda n: record_rows(data, n), lengths_of(data.texts), 16, torch.float32)
        np.save(path, rows.numpy())
        log("taught")
    taught = torch.from_numpy(np.load(path))
    pools = {name: data.of_kind(name) for name, _ in settings.mixture}

    def step(number: int) -> tuple[Tensor, Tensor, int]:
        rng = np.random.default_rng([seed, 3, number])
        numbers = drawn(rng, pools, dict(settings.mixture), settings.batch_size)
        asked = np.array(numbers)
        x, kept_x = embedded(model, data, numbers, True)
        opinions = sentence_embeddings(
            teacher, lambda n: question_rows(data, asked[n]), lengths_of(data.questions)[asked], 64, torch.float32
        )
        opinion = softmax(SCALE * (opinions @ taught.t()))  # [questions, blocks]
        probability = softmax(x @ z.t())
        right = torch.zeros_like(probability, dtype=torch.bool)
        for i, question in enumerate(numbers):
            right[i, torch.from_numpy(data.evidence[question].astype(np.int64))] = True
        target = target_of(probability, opinion, right, settings.teacher)
        dscores, dtype = probability - target, model.p[WORDS].dtype
        embed_rows_backward((dscores @ z).to(dtype), kept_x, model)
        moved = dscores.abs().sum(0).topk(min(MOVED_BLOCKS, len(z))).indices
        some = torch.from_numpy(np.union1d(moved.numpy(), rng.choice(len(z), min(HELD_BLOCKS, len(z)), replace=False)))
        y, kept_y = embed_rows(model, portioned(*block_rows(data, some.numpy()), MAX_WORDPIECES, 3), CPU, True)
        off = y.float() - z[some]
        embed_rows_backward((off + dscores[:, some].t() @ x).to(dtype), kept_y, model)
        z[some] = y.float()
        loss = -(target * probability.clamp(min=1e-30).log()).sum()
        return loss, off.square().sum() * settings.batch_size / len(some), settings.batch_size

    return learn(learner, out, settings, step, lambda: log("dev", blocks_found(model, data, z)), log, {"z": z})


def embed_blocks(model: Any, data: Data, path: Path) -> Tensor:
    """Embed_doc of every block [blocks, proj] float32, kept at `path`."""
    if not path.is_file():
        z = np.empty((data.texts.rows(), model.config.retriever_proj_size), np.float32)
        for numbers in by_length(lengths_of(data.texts), 32):
            rows = portioned(*block_rows(data, numbers), MAX_WORDPIECES)
            z[numbers] = embed_rows(model, rows, CPU, False)[0].float().numpy()
        with write_atomically(path) as temporary, open(temporary, "wb") as file:
            np.save(file, z)
    return torch.from_numpy(np.load(path))


def blocks_found(model: Any, data: Data, z: Tensor) -> str:
    """How many of the development questions find an answer among the first 1, 5 and 20 blocks."""
    said = []
    for kind in ("dev", "fdev"):
        numbers = [int(i) for i in data.of_kind(kind)]
        ranked = best(embedded(model, data, numbers, False)[0], z, 20).numpy()
        hits = np.stack([np.isin(row, data.evidence[i]) for row, i in zip(ranked, numbers, strict=True)])
        said.append(f"{kind} {[int(hits[:, :k].any(1).sum()) for k in (1, 5, 20)]} of {len(numbers)}")
    return ", ".join(said)


def tune_reader(
    learner: Learner, embedder: Any, data: Data, z: Tensor, settings: Reader, seed: int, out: Path,
    log: Callable[..., None],
) -> None:  # fmt: skip
    mixture = dict(settings.mixture)
    pools = {name: data.of_kind(name) for name in mixture}

    def step(number: int) -> tuple[Tensor, Tensor, int]:
        rng = np.random.default_rng([seed, 4, number])
        numbers = drawn(rng, pools, mixture, settings.batch_size)
        x = dict(zip(numbers, embedded(embedder, data, numbers, False)[0], strict=True))
        ranked = dict(zip(x, best(torch.stack([*x.values()]), z, 30).numpy(), strict=True))
        numbers = [i for i in x if len(evidence_of(data, i, ranked[i]))]
        reading = readings(data, ranked, numbers, rng, settings)  # pyright: ignore[reportArgumentType]  # rows by question
        relevance = (z[torch.from_numpy(reading.blocks)] * torch.stack([x[i] for i in numbers])[:, None]).sum(2)
        portions = pairs_of(data, reading, settings.most_tokens, 6)
        return *reader_step(learner.model, reading, portions, relevance, CPU), len(numbers)

    learn(learner, out, settings, step, lambda: log("dev", answered(learner, embedder, data, z, out)), log)


def answered(learner: Learner, embedder: Any, data: Data, z: Tensor, out: Path) -> str:
    """How the development questions are answered from both corpora; a row each in OUT/dev.csv."""
    x, rows = torch.zeros(len(data.kinds), z.shape[1]), []
    for kind in ("dev", "fdev"):
        numbers = [int(i) for i in data.of_kind(kind)]
        x[numbers] = embedded(embedder, data, numbers, False)[0]
        rows += evaluate(data, learner.model, x, z, kind, slice(0, None), CPU)
    with open(out / "dev.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return "; ".join(f"{kind} {summary([row for row in rows if row['kind'] == kind])}" for kind in ("dev", "fdev"))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="what default_data.py wrote")
    parser.add_argument("--minilm", type=Path, required=True, metavar="FOLDER", help="of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--packed", type=Path, default=default_model.PACKED_FILE, metavar="FILE.realm")
    parser.add_argument("--free", action="store_true", help="the weights need not stay what a file can hold")
    parser.add_argument(
        "--updates", type=int, nargs=2, default=(RETRIEVER.steps, READER.steps), metavar="N",
        help="of the retriever and of the reader; 0 leaves one as it is",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    def log(*values: Any) -> None:
        line = f"{time.perf_counter() - started:7.1f} " + " ".join(map(str, values))
        print(line, flush=True)
        with open(out / "log.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    data, file = default_data.load(given.data), read_file(given.packed)
    embedder, reader = (
        Learner(model, file, part, rounded=not given.free)
        for model, part in zip(new_models(given.minilm, given.seed, CPU), ("embedder", "reader"), strict=True)
    )
    retriever_settings, reader_settings = (
        settings._replace(steps=steps) for settings, steps in zip((RETRIEVER, READER), given.updates, strict=True)
    )
    z = file.model.block_emb.clone()
    log("as it is, dev", blocks_found(embedder.model, data, z))
    moved = False
    if retriever_settings.steps:
        moved = tune_retriever(embedder, data, z, given.minilm, retriever_settings, given.seed, out, log)
    if given.free:
        if moved:
            (out / "blocks.npy").unlink(missing_ok=True)
        z = embed_blocks(embedder.model, data, out / "blocks.npy")
        log("blocks embedded anew, dev", blocks_found(embedder.model, data, z))
    log("dev", answered(reader, embedder.model, data, z, out))
    if reader_settings.steps:
        tune_reader(reader, embedder.model, data, z, reader_settings, given.seed, out, log)
        log("dev", answered(reader, embedder.model, data, z, out))
    if given.free:
        folder = out / "free"
        folder.mkdir(exist_ok=True)
        embedder.write_free(folder)
        reader.write_free(folder)
    else:
        write_file(out / "tuned.realm", file, embedder.stored() | reader.stored(), z)
        log("written", f"{(out / 'tuned.realm').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
