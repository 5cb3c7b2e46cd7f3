"""The recipe of the default model, which knows ten thousand Wikipedia leads and the CIA World Factbook.

    stage       begins with     learns from
    teacher     MiniLM          nothing: what all-MiniLM-L6-v2 makes of every block and question, its last layer's mean
    retriever   MiniLM          questions, and the blocks that are their evidence among hard negatives and those of the
                                batch; and the teacher's opinion of all of these, 384 numbers distilled into 128
    reader      MiniLM          questions beside a block that is evidence and three that the retriever takes for it; in
                                one of eight there is no evidence, and the reader is to say so

The steps are the library's own: `embed`, `read`, their backward passes, `AdamW`. What is learnt from is one file that
`default_data.py` writes, so that a machine with a GPU needs nothing but torch and this repository:

    python benchmarks/train_default.py --data FILE.npz --minilm FOLDER --out FOLDER --device cuda --seconds 200

`--seconds` shortens the schedules until they fit; a stage that is done is kept in --out and not run again. Word
embeddings stay MiniLM's, so that embedder and reader share one table. With `--parts` what was learnt is also written in
files of 15 MB, half precision, for a machine that gives back no larger ones; `default_model_file.py` packs them.

The retriever's loss is -log of what the evidence has of the softmax over the batch's blocks, as the Inverse Cloze
Task's, mixed with the cross-entropy to the teacher's softmax (Hinton et al. 2015), and a squared distance to the
teacher's embedding, turned into 128 dimensions, that fades. The reader's is -log of what the answer's spans have of the
softmax over all spans of the blocks and a null span of score 0, which is right where there is no evidence (as the null
answer of Clark and Gardner 2018, *Simple and effective multi-paragraph reading comprehension*, section 3.2).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import default_data
import numpy as np
import torch
from default_data import Data
from safetensors.torch import load_file, save_file
from torch import Tensor

from realm_min.interface.embedder import RealmEmbedder
from realm_min.interface.reader import RealmReader
from realm_min.jobs import warm_start
from realm_min.jobs.evaluation import normalize_answer
from realm_min.learn.finetuning import occurrences
from realm_min.learn.optimizer import AdamW
from realm_min.model.bert import Batch, Run, bert
from realm_min.model.ops import logsumexp, softmax
from realm_min.model.realm import embed, embed_backward, read, read_backward
from realm_min.model.spans import span_candidate, span_candidates

CLS, SEP, PAD = 101, 102, 0
SCALE = 20.0  # f(x, z) of equal texts as the retriever begins: MiniLM's own temperature in its training
NULL_AT = -14.0  # added to the spans' scores as the reader begins, beside f(x, z): the null span's is 0
MOST_TOKENS = 288
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
REAL = ("lead", "web", "slice")  # questions that people asked; their evidence is any block that holds an answer
PART_BYTES = 15_000_000
KEEP_WORDS = "word_embeddings"


class Retriever(NamedTuple):
    """What decides the retriever's training, beside data and seed."""

    steps: int = 900
    batch_size: int = 128
    learning_rate: float = 2e-4
    teacher: float = 0.4  # of the teacher in the target, where there is evidence
    most_tokens: int = 200  # of a block
    mixture: tuple[tuple[str, float], ...] = (
        ("lead", 0.16), ("web", 0.16), ("slice", 0.04), ("field", 0.18), ("made", 0.32), ("sentence", 0.14),
    )  # fmt: skip


class Reader(NamedTuple):
    """What decides the reader's training, beside data and seed; the mixture moves from the first to the second."""

    steps: int = 1600
    batch_size: int = 32
    learning_rate: float = 1.5e-4
    beam: int = 4
    among: int = 10  # the best blocks, of which those without the answer are drawn
    unanswerable: float = 0.125
    most_tokens: int = 256
    mixture: tuple[tuple[str, float], ...] = (
        ("lead", 0.08), ("web", 0.08), ("slice", 0.03), ("field", 0.21), ("made", 0.6),
    )  # fmt: skip
    later: tuple[tuple[str, float], ...] = (
        ("lead", 0.3), ("web", 0.12), ("slice", 0.1), ("field", 0.23), ("made", 0.25),
    )  # fmt: skip


# ---- inputs


def batch_of(
    firsts: Sequence[np.ndarray], seconds: Sequence[np.ndarray] | None, most: int, device: torch.device
) -> tuple[Batch, Tensor]:
    """ "[CLS] first [SEP]" or "[CLS] first [SEP] second [SEP]" as a batch; and the tokens of the second [rows, tokens].

    Of a pair that is too long the second is cut.
    """
    rows = []
    for i, first in enumerate(firsts):
        second = None if seconds is None else seconds[i][: most - 3 - len(first)]
        rows.append([np.concatenate([[CLS], first[: most - 2], [SEP]]), *([] if second is None else [second, [SEP]])])
    lengths = np.array([sum(map(len, row)) for row in rows])
    begins = np.array([len(row[0]) for row in rows])
    tokens = max(int(lengths.max()), 12)
    ids = np.full((len(rows), tokens), PAD)
    for row, parts in zip(ids, rows, strict=True):
        whole = np.concatenate(parts)
        row[: len(whole)] = whole
    place = np.arange(tokens)
    mask = place < lengths[:, None]
    types = mask & (place >= begins[:, None])
    in_second = types & (place < lengths[:, None] - 1)
    on_device = [torch.from_numpy(array).to(device) for array in (ids, mask.astype(np.int64), types.astype(np.int64))]
    if device.type == "cuda" and not mask.all():  # padded rows are read too: one launch for all lengths
        on_device[1] = on_device[1][:, None].expand(-1, tokens, -1)
    positions = torch.arange(tokens, device=device).expand(len(rows), -1)
    return Batch(on_device[0], on_device[1], on_device[2], positions), torch.from_numpy(in_second).to(device)


def by_length(lengths: Sequence[int], size: int) -> Iterator[np.ndarray]:
    """Rows in portions of `size`, those of similar length together."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def question_rows(data: Data, numbers: Sequence[int]) -> tuple[list[np.ndarray], None]:
    return [data.questions[int(i)] for i in numbers], None


def block_rows(data: Data, numbers: Sequence[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [data.titles[int(i)] for i in numbers], [data.texts[int(i)] for i in numbers]


def record_of(data: Data, block: int) -> np.ndarray:
    """A block as the reader reads it, "title. text"."""
    return np.concatenate([data.titles[block], [DOT], data.texts[block]])


DOT = 1012


# ---- the teacher


def teach(data: Data, minilm: Path, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """MiniLM's sentence embeddings of all questions and all blocks, [questions, 384] and [blocks, 384], normalised."""
    model = warm_start.embedder(minilm, 0, **NO_DROPOUT).to(device).eval()

    def mean(batch: Batch) -> Tensor:
        hidden = bert(model.p, model.config, batch, "unpadded")[0].hidden  # [rows, tokens, hidden]
        mask = (batch.mask if batch.mask.dim() == 2 else batch.mask[:, 0]).to(hidden.dtype)[..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return pooled / pooled.norm(dim=1, keepdim=True)

    def of(rows: Callable[[np.ndarray], tuple], lengths: np.ndarray, size: int) -> Tensor:
        found = torch.empty(len(lengths), model.config.hidden_size, dtype=dtype, device=device)
        for numbers in by_length(lengths, size):
            batch, _ = batch_of(*rows(numbers), MOST_TOKENS, device)
            found[torch.from_numpy(numbers).to(device)] = mean(batch).to(dtype)
        return found

    def as_text(numbers: np.ndarray) -> tuple[list[np.ndarray], None]:
        return [record_of(data, int(i)) for i in numbers], None

    size = 1024 if device.type == "cuda" else 32
    return of(lambda n: question_rows(data, n), lengths_of(data.questions), size), of(
        as_text, lengths_of(data.texts), size // 4
    )


def lengths_of(ragged: default_data.Ragged) -> np.ndarray:
    return np.diff(ragged.ends, prepend=0)


def best(questions: Tensor, blocks: Tensor, k: int) -> Tensor:
    """The `k` blocks of largest inner product with each question [questions, k]."""
    return torch.cat([(some.float() @ blocks.float().t()).topk(k).indices for some in questions.split(2048)])


def turned(questions: Tensor, blocks: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Both in `size` dimensions that keep most of their inner products, of length √SCALE, their numbers of mean 0.

    The first size - 1 principal axes, in the space orthogonal to (1, …, 1), where a LayerNorm's output lies.
    """
    sample = torch.cat([questions[::8], blocks]).float()
    axes = torch.linalg.eigh(sample.t() @ sample)[1][:, -(size - 1) :]  # [384, size - 1]
    plane = torch.linalg.qr(torch.cat([torch.ones(size, 1), torch.eye(size)[:, : size - 1]], 1))[0][:, 1:]
    turn = axes @ plane.t().to(axes)

    def turn_one(x: Tensor) -> Tensor:
        y = x.float() @ turn
        return math.sqrt(SCALE) * y / y.norm(dim=1, keepdim=True)

    return turn_one(questions), turn_one(blocks)


# ---- one training loop


class Clock:
    """Shortens a schedule so that it ends within `seconds`."""

    def __init__(self, steps: int, seconds: float | None) -> None:
        self.steps, self.seconds, self.started, self.number = steps, seconds, time.perf_counter(), 0

    def running(self) -> bool:
        """Whether there is another step; the first ones say how long they take."""
        if self.number in (4, 30, 100, 300) and self.seconds is not None:
            if self.number == 4:  # they compile kernels
                self.begun = time.perf_counter()
            else:
                each = (time.perf_counter() - self.begun) / (self.number - 4)
                left = self.seconds - (time.perf_counter() - self.started)
                self.steps = min(self.steps, self.number + max(1, int(left / each)))
        self.number += 1
        return self.number <= self.steps

    @property
    def progress(self) -> float:
        return min(1.0, (self.number - 1) / self.steps)


def update(model: Any, optimizer: AdamW, clock: Clock, count: int) -> None:
    """AdamW's step on all but the word embeddings, at the clock's place in the schedule."""
    optimizer.total_steps = max(clock.steps, optimizer.warmup_steps + 1, optimizer.step + 1)
    grads = {key: grad for key, grad in model.own_grads.items() if KEEP_WORDS not in key}
    optimizer.update({key: model.p[key] for key in grads}, grads, count)
    model.zero_grads()


def drawn(rng: np.random.Generator, pools: dict[str, np.ndarray], mixture: dict[str, float], size: int) -> list[int]:
    """Questions of several kinds, each kind as often as the mixture has it."""
    names = [name for name in mixture if len(pools.get(name, ()))]
    shares = np.array([mixture[name] for name in names])
    counts = rng.multinomial(size, shares / shares.sum())
    return [int(i) for name, count in zip(names, counts, strict=True) for i in rng.choice(pools[name], count)]


# ---- the retriever


def embed_rows(
    model: RealmEmbedder, rows: tuple, most: int, device: torch.device, keep: bool, portions: int = 1
) -> tuple[Tensor, list[tuple[np.ndarray, Any]]]:
    """Embed texts [texts, proj], and what `embed_rows_backward` takes."""
    firsts, seconds = rows
    lengths = [len(first) + (0 if seconds is None else len(seconds[i])) for i, first in enumerate(firsts)]
    found, kept = None, []
    for some in by_length(lengths, -(-len(firsts) // portions)):
        batch, _ = batch_of(
            [firsts[i] for i in some], None if seconds is None else [seconds[i] for i in some], most, device
        )
        (y, _), kept_embed = embed(model.p, model.config, batch, Run(keep=keep))
        found = y.new_empty(len(firsts), y.shape[1]) if found is None else found
        found[torch.from_numpy(some).to(device)] = y
        kept.append((some, kept_embed))
    assert found is not None
    return found, kept


def embed_rows_backward(dy: Tensor, kept: list[tuple[np.ndarray, Any]], model: RealmEmbedder) -> None:
    for some, kept_embed in kept:
        embed_backward(dy[torch.from_numpy(some).to(dy.device)], kept_embed, model.own_grads)


class Taught(NamedTuple):
    """What the teacher says: its embeddings, the same in fewer dimensions, and its best blocks of each question."""

    questions: Tensor
    blocks: Tensor
    turned_questions: Tensor
    turned_blocks: Tensor
    ranked: np.ndarray  # [questions, ranks]


def evidence_of(data: Data, question: int, ranked: np.ndarray) -> np.ndarray:
    """Blocks that are taken for a question's evidence: of real questions those that a retriever finds as well."""
    known = data.evidence[question]
    if default_data.KINDS[data.kinds[question]] in REAL:
        return ranked[np.isin(ranked, known)]
    return known.astype(np.int64)


def train_retriever(
    data: Data, taught: Taught, model: RealmEmbedder, settings: Retriever, seed: int, seconds: float | None,
    device: torch.device, log: Callable[..., None],
) -> None:  # fmt: skip
    rng, clock = np.random.default_rng([seed, 1]), Clock(settings.steps, seconds)
    pools = {name: data.of_kind(name) for name, _ in settings.mixture}
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=min(40, settings.steps // 10))
    while clock.running():
        numbers = drawn(rng, pools, dict(settings.mixture), settings.batch_size)
        pool, right = pool_of(data, taught, numbers, rng)
        losses = retriever_step(model, data, taught, numbers, pool, right.to(device), settings, clock.progress, device)
        update(model, optimizer, clock, len(numbers))
        if clock.number % 50 == 1 or clock.number == clock.steps:
            log("retriever", clock.number, clock.steps, *(float(loss) / len(numbers) for loss in losses))


def pool_of(data: Data, taught: Taught, numbers: list[int], rng: np.random.Generator) -> tuple[np.ndarray, Tensor]:
    """The blocks of a batch, evidence and hard negatives, and which are evidence: bool [questions, blocks]."""
    taken = []
    for number in numbers:
        ranked, known = taught.ranked[number], evidence_of(data, number, taught.ranked[number][:20])
        if len(known):
            taken.append(known[0] if rng.random() < 0.5 else rng.choice(known))
        wrong = ranked[~np.isin(ranked, data.evidence[number])]
        if len(wrong):
            taken.append(wrong[min(len(wrong) - 1, int(rng.exponential(6)))])
    pool = np.unique(np.array(taken, np.int64))
    return pool, torch.from_numpy(np.stack([np.isin(pool, data.evidence[number]) for number in numbers]))


def retriever_step(
    model: RealmEmbedder, data: Data, taught: Taught, numbers: list[int], pool: np.ndarray, right: Tensor,
    settings: Retriever, progress: float, device: torch.device,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Adds the gradients of the batch's summed loss; returns the loss to the target and the squared distance."""
    rows, blocks = torch.tensor(numbers, device=device), torch.from_numpy(pool).to(device)
    x, kept_x = embed_rows(model, question_rows(data, numbers), 64, device, True)
    z, kept_z = embed_rows(model, block_rows(data, pool), settings.most_tokens, device, True, 3)
    scores = x @ z.t()  # [questions, blocks]
    opinion = softmax(SCALE * (taught.questions[rows].float() @ taught.blocks[blocks].float().t()))
    probability = softmax(scores)
    among_right = probability * right
    some = right.any(1, keepdim=True)
    share = torch.where(some, settings.teacher, 1.0)
    target = share * opinion + (1 - share) * among_right / among_right.sum(1, keepdim=True).clamp(min=1e-30)
    pull = max(0.05, 1 - 1.6 * progress)
    off_x, off_z = x - taught.turned_questions[rows], z - taught.turned_blocks[blocks]
    dscores = probability - target
    embed_rows_backward(dscores.t() @ x + pull * off_z, kept_z, model)
    embed_rows_backward(dscores @ z + pull * off_x, kept_x, model)
    loss = -(target * (probability.clamp(min=1e-30)).log()).sum()
    return loss, off_x.square().sum()


def embed_all(model: RealmEmbedder, data: Data, device: torch.device) -> tuple[Tensor, Tensor]:
    """Every question and every block, [questions, proj] and [blocks, proj]."""

    def of(rows: Callable, ragged: default_data.Ragged, size: int) -> Tensor:
        found = torch.empty(ragged.rows(), model.config.retriever_proj_size, device=device)
        for numbers in by_length(lengths_of(ragged), size):
            found[torch.from_numpy(numbers).to(device)] = embed_rows(
                model, rows(data, numbers), MOST_TOKENS, device, False
            )[0]
        return found

    size = 1024 if device.type == "cuda" else 32
    return of(question_rows, data.questions, size), of(block_rows, data.texts, size // 4)


# ---- the reader


class Reading(NamedTuple):
    """Blocks for questions to read: rows of pairs, `beam` for each question one after the other."""

    questions: list[int]
    blocks: np.ndarray  # [questions, beam]
    evidence: list[np.ndarray]  # of each question, the blocks whose spans count; none: the null span is right
    ignored: list[bool]  # of each question: elsewhere the answer's words count neither way


def readings(data: Data, ranked: np.ndarray, numbers: list[int], rng: np.random.Generator, settings: Reader) -> Reading:
    """What some questions read: a block that is evidence, others that the retriever ranks high."""
    blocks, evidence, ignored = [], [], []
    for number in numbers:
        known, row = evidence_of(data, number, ranked[number]), ranked[number][: settings.among]
        if len(known) == 0 or rng.random() < settings.unanswerable:
            wrong = ranked[number][~np.isin(ranked[number], data.evidence[number])]
            blocks.append(rng.permutation(wrong[: settings.among])[: settings.beam])
            evidence.append(known[:0])
        else:
            first = known[0] if rng.random() < 0.6 else rng.choice(known[:5])
            others = rng.permutation(row[row != first])[: settings.beam - 1]
            blocks.append(rng.permutation(np.array([first, *others])))
            evidence.append(known)
        short = settings.beam - len(blocks[-1])
        if short:  # of few blocks
            blocks[-1] = np.concatenate([blocks[-1], np.repeat(blocks[-1][:1], short)])
        ignored.append(default_data.KINDS[data.kinds[number]] not in REAL)
    return Reading(numbers, np.stack(blocks), evidence, ignored)


class Scored(NamedTuple):
    """The spans of some of the pairs."""

    pairs: np.ndarray  # rows of all pairs
    scores: Tensor  # [pairs, spans]
    tokens: Batch
    begins: np.ndarray  # first token of each block
    kept: Any


def score_pairs(
    model: RealmReader, data: Data, reading: Reading, relevance: Tensor, most: int, device: torch.device,
    keep: bool, portions: int,
) -> Iterator[Scored]:  # fmt: skip
    """relevance: f(x, z) [questions, beam]."""
    beam = reading.blocks.shape[1]
    firsts = [data.questions[number] for number in reading.questions for _ in range(beam)]
    seconds = [record_of(data, int(block)) for block in reading.blocks.reshape(-1)]
    lengths = [len(first) + len(second) for first, second in zip(firsts, seconds, strict=True)]
    for some in by_length(lengths, -(-len(firsts) // portions)):
        batch, in_block = batch_of([firsts[i] for i in some], [seconds[i] for i in some], most, device)
        of_rows = relevance.reshape(-1)[torch.from_numpy(some).to(device)]
        (scores, _), kept = read(model.p, model.config, batch, in_block, of_rows, Run(keep=keep))
        yield Scored(some, scores, batch, np.array([len(firsts[i]) + 2 for i in some]), kept)


def answer_spans(data: Data, reading: Reading, scored: Scored, most: int) -> tuple[Tensor, Tensor]:
    """Which spans are right, and which are to count neither way: bool [pairs, spans] each."""
    beam, tokens = reading.blocks.shape[1], scored.tokens.types.shape[1]
    places: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for row, pair in enumerate(scored.pairs):
        i, block = pair // beam, int(reading.blocks.reshape(-1)[pair])
        counts = bool(np.isin(block, reading.evidence[i]))
        if not counts and not (reading.ignored[i] and len(reading.evidence[i])):
            continue
        begin = int(scored.begins[row])
        text = record_of(data, block)[: most - 1 - begin]
        for answer in data.answers_of(reading.questions[i]):
            for start in occurrences(text, answer):
                first, last = begin + int(start), begin + int(start) + len(answer) - 1
                places[counts].append((row, int(span_candidate(first, last, tokens))))
    masks = []
    for counts in (True, False):
        mask = torch.zeros(scored.scores.shape, dtype=torch.bool)
        if places[counts]:
            rows, spans = zip(*places[counts], strict=True)
            mask[list(rows), list(spans)] = True
        masks.append(mask.to(scored.scores.device))
    return masks[0], masks[1] & ~masks[0]


def reader_step(
    model: RealmReader, data: Data, reading: Reading, relevance: Tensor, most: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of the batch's summed loss; returns it, and the share that the right spans have, summed."""
    shape, lowest = reading.blocks.shape, torch.finfo(relevance.dtype).min
    of_all, of_right = (relevance.new_full((shape[0] * shape[1],), lowest) for _ in range(2))
    parts = []
    for scored in score_pairs(model, data, reading, relevance, most, device, True, 2):
        right, neither = answer_spans(data, reading, scored, most)
        scores = scored.scores.masked_fill(neither, lowest)
        rows = torch.from_numpy(scored.pairs).to(device)
        of_all[rows] = logsumexp(scores, 1)
        of_right[rows] = logsumexp(scores.masked_fill(~right, lowest), 1).clamp(min=lowest)
        parts.append((scored, scores, right, rows))
    null = relevance.new_zeros(shape[0], 1)
    total = logsumexp(torch.cat([of_all.view(shape), null], 1), 1)  # [questions]
    answerable = torch.tensor([len(known) > 0 for known in reading.evidence], device=device)
    # Where what was known to be evidence holds no span after all, cut off maybe, nothing is learnt.
    held = logsumexp(of_right.view(shape), 1)
    found = answerable & (held > lowest / 2)
    wanted = torch.where(found, held, torch.zeros_like(held))
    weight = (found | ~answerable).to(total.dtype)
    for scored, scores, right, rows in parts:
        of_question = torch.div(rows, shape[1], rounding_mode="floor")
        dscores = (scores - total[of_question, None]).exp_()
        share = (scores - wanted[of_question, None]).exp_() * right
        dscores -= torch.where(found[of_question, None], share, torch.zeros_like(share))
        read_backward(dscores * weight[of_question, None], scored.kept, model.own_grads)
    return ((total - wanted) * weight).sum(), ((wanted - total).exp() * weight).sum()


def train_reader(
    data: Data, model: RealmReader, x: Tensor, z: Tensor, settings: Reader, seed: int, seconds: float | None,
    device: torch.device, log: Callable[..., None],
) -> None:  # fmt: skip
    """x, z: the retriever's embeddings of all questions and blocks."""
    rng = np.random.default_rng([seed, 2])
    ranked = best(x, z, min(30, len(z))).cpu().numpy()
    pools = {}
    for name, _ in settings.mixture:
        numbers = data.of_kind(name)
        pools[name] = np.array([i for i in numbers if len(evidence_of(data, i, ranked[i]))], np.int64)
        log("reader", 0, 0, name, len(pools[name]))
    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=min(60, settings.steps // 10))
    clock = Clock(settings.steps, seconds)
    while clock.running():
        moved = min(1.0, clock.progress / 0.8)
        later = dict(settings.later)
        mixture = {name: (1 - moved) * share + moved * later[name] for name, share in settings.mixture}
        reading = readings(data, ranked, drawn(rng, pools, mixture, settings.batch_size), rng, settings)
        rows, blocks = torch.tensor(reading.questions, device=device), torch.from_numpy(reading.blocks).to(device)
        relevance = (z[blocks] * x[rows, None]).sum(2)  # [questions, beam]
        losses = reader_step(model, data, reading, relevance, settings.most_tokens, device)
        update(model, optimizer, clock, settings.batch_size)
        if clock.number % 50 == 1 or clock.number == clock.steps:
            log("reader", clock.number, clock.steps, *(float(loss) / settings.batch_size for loss in losses))


# ---- measures


def evaluate(
    data: Data, reader: RealmReader, x: Tensor, z: Tensor, kind: str, blocks: slice, device: torch.device
) -> list[dict[str, Any]]:
    """How the development questions of a kind are answered from some of the blocks: a row each."""
    tokenizer, numbers = warm_start.tokenizer(None), [int(i) for i in data.of_kind(kind)]
    ranked = best(x[numbers], z[blocks], min(20, len(z[blocks]))).cpu().numpy() + (blocks.start or 0)
    rows = []
    for first in range(0, len(numbers), 16):
        some = numbers[first : first + 16]
        here = ranked[first : first + 16, :5]
        reading = Reading(some, here, [here[0][:0]] * len(some), [False] * len(some))
        relevance = (z[torch.from_numpy(here).to(device)] * x[some, None]).sum(2)
        spans = best_spans(data, reader, reading, relevance, device)
        for number, of_blocks, blocks_read, found in zip(some, relevance.tolist(), here, spans, strict=True):
            hits = np.isin(ranked[numbers.index(number)], data.evidence[number])
            texts = [normalize_answer(tokenizer.decode(ids)) for ids, *_ in found]
            golds = {normalize_answer(tokenizer.decode(answer)) for answer in data.answers_of(number)}
            top = max(range(len(found)), key=lambda i: found[i][1])
            holds = [i for i in range(len(found)) if hits[i]]
            rows.append({
                "kind": kind, "question": number, "r1": int(hits[:1].any()), "r5": int(hits[:5].any()),
                "r20": int(hits[:20].any()), "em": int(texts[top] in golds),
                "alone": int(texts[holds[0]] in golds) if holds else "", "block": int(blocks_read[top]),
                "answer": texts[top], "score": round(found[top][1], 4),
                "all": round(math.log(sum(math.exp(row[2] - found[top][1]) for row in found)) + found[top][1], 4),
                "relevance": round(of_blocks[0], 3), "asked": tokenizer.decode(data.questions[number]),
            })  # fmt: skip
    return rows


def best_spans(
    data: Data, model: RealmReader, reading: Reading, relevance: Tensor, device: torch.device
) -> list[list[tuple[list[int], float, float]]]:
    """Of each question and block the best span's wordpieces, its score, and the logsumexp of all spans."""
    beam = reading.blocks.shape[1]
    found: list[list[Any]] = [[None] * beam for _ in reading.questions]
    for scored in score_pairs(model, data, reading, relevance, 320, device, False, 2):
        tokens = scored.tokens.types.shape[1]
        starts, ends = span_candidates(tokens, model.config.max_span_width)
        top, place = scored.scores.max(1)
        ids = scored.tokens.words.cpu()
        for row, (pair, score, span, total) in enumerate(
            zip(scored.pairs, top.tolist(), place.tolist(), logsumexp(scored.scores, 1).tolist(), strict=True)
        ):
            found[pair // beam][pair % beam] = (
                ids[row, int(starts[span]) : int(ends[span]) + 1].tolist(), score, total,
            )  # fmt: skip
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    def mean(name: str) -> str:
        values = [row[name] for row in rows if row[name] != ""]
        return f"{name} {100 * sum(values) / max(len(values), 1):.1f} (n={len(values)})"

    return ", ".join(mean(name) for name in ("r1", "r5", "r20", "em", "alone"))


# ---- the whole chain


def write_weights(model: Any, path: Path) -> None:
    save_file(
        {key: model.p[key].detach().cpu().clone(memory_format=torch.contiguous_format) for key in own_keys(model)}, path
    )


def own_keys(model: Any) -> list[str]:
    """Names of the tensors that training changes."""
    return [
        key for key, shape in model.shapes(model.config).items()
        if not isinstance(shape, str) and KEEP_WORDS not in key and not key.startswith("cls.predictions.")
    ]  # fmt: skip


def read_weights(model: Any, path: Path) -> None:
    for key, tensor in load_file(path).items():
        model.p[key].copy_(tensor)


def new_models(minilm: Path, seed: int, device: torch.device) -> tuple[RealmEmbedder, RealmReader]:
    embedder = warm_start.embedder(minilm, seed, **NO_DROPOUT)
    embedder.p["cls.LayerNorm.weight"].fill_(math.sqrt(SCALE / embedder.config.retriever_proj_size))
    reader = warm_start.reader(minilm, seed, **NO_DROPOUT)
    reader.p["qa_outputs.dense_output.bias"].fill_(NULL_AT)
    return embedder.to(device).eval(), reader.to(device).eval()


def run(given: argparse.Namespace) -> None:
    device, out = torch.device(given.device), given.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_float32_matmul_precision("high")
    started, lines = time.perf_counter(), []

    def log(*values: Any) -> None:
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        lines.append(f"{time.perf_counter() - started:7.1f} " + " ".join(shown))
        print(lines[-1], flush=True)
        (out / "log.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def seconds(share: float) -> float | None:
        return None if given.seconds is None else share * given.seconds

    retriever, reading = Retriever(), Reader()
    if given.steps:
        retriever, reading = retriever._replace(steps=given.steps), reading._replace(steps=given.steps)
    if given.batch_size:
        retriever, reading = (settings._replace(batch_size=given.batch_size) for settings in (retriever, reading))
    data = default_data.load(given.data)
    embedder, reader = new_models(given.minilm, given.seed, device)
    for name, model in (("embedder", embedder), ("reader", reader)):
        if given.start and (given.start / f"{name}.safetensors").is_file():
            read_weights(model, given.start / f"{name}.safetensors")
            log("begins with", name, given.start)
    log("read", len(data.kinds), "questions")
    if not (out / "embedder.safetensors").is_file():
        if given.retriever:
            taught_questions, taught_blocks = teach(data, given.minilm, device, torch.float32)
            ranked = best(taught_questions, taught_blocks, min(30, len(taught_blocks))).cpu().numpy()
            taught = Taught(
                taught_questions, taught_blocks, *turned(taught_questions, taught_blocks, 128), ranked
            )  # fmt: skip
            log("taught")
            train_retriever(
                data, taught, embedder, retriever, given.seed, seconds(given.retriever), device, log
            )  # fmt: skip
        write_weights(embedder, out / "embedder.safetensors")
    else:
        read_weights(embedder, out / "embedder.safetensors")
    x, z = embed_all(embedder, data, device)
    log("embedded")
    parts = {"": slice(0, None), "leads": slice(0, data.num_leads), "factbook": slice(data.num_leads, None)}
    if not (out / "reader.safetensors").is_file():
        if given.reader:
            train_reader(data, reader, x, z, reading, given.seed, seconds(given.reader), device, log)
        write_weights(reader, out / "reader.safetensors")
    else:
        read_weights(reader, out / "reader.safetensors")
    rows = []
    for kind, name in (("dev", "leads"), ("dev", ""), ("fdev", "factbook"), ("fdev", "")):
        found = evaluate(data, reader, x, z, kind, parts[name], device)
        log(kind, name or "all", summary(found))
        rows += [{"blocks": name or "all", **row} for row in found]
    with open(out / "dev.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    settings = {"seed": given.seed, "retriever": retriever._asdict(), "reader": reading._asdict()}
    (out / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if given.parts:
        write_parts(out, given.parts)
    log("done")


def write_parts(out: Path, parts: Path) -> None:
    """What was learnt in half precision, end to end, in files of PART_BYTES; beside them the log and the rows."""
    parts.mkdir(parents=True, exist_ok=True)
    halves = b"".join(
        tensor.half().numpy().tobytes()
        for name in ("embedder", "reader")
        for _, tensor in sorted(load_file(out / f"{name}.safetensors").items())
    )
    for number, start in enumerate(range(0, len(halves), PART_BYTES)):
        (parts / f"weights.{number}").write_bytes(halves[start : start + PART_BYTES])
    for name in ("log.txt", "dev.csv", "settings.json"):
        (parts / name).write_bytes((out / name).read_bytes())


def join_parts(parts: Path, minilm: Path, out: Path) -> None:
    """The two .safetensors files again, from what `write_parts` wrote."""
    halves = b"".join(path.read_bytes() for path in sorted(parts.glob("weights.*")))
    numbers, place = np.frombuffer(halves, "<f2"), 0
    for name, model in zip(("embedder", "reader"), new_models(minilm, 0, torch.device("cpu")), strict=True):
        found = {}
        for key in sorted(own_keys(model)):
            shape = model.p[key].shape
            found[key] = torch.from_numpy(numbers[place : place + shape.numel()].astype(np.float32)).view(shape)
            place += shape.numel()
        save_file(found, out / f"{name}.safetensors")
    if place != len(numbers):
        raise ValueError(f"{parts} holds {len(numbers):,} numbers, {place:,} were expected")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="what default_data.py wrote")
    parser.add_argument("--minilm", type=Path, required=True, metavar="FOLDER", help="of all-MiniLM-L6-v2")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="whose weights to begin with, where it has some")
    parser.add_argument("--parts", type=Path, metavar="FOLDER", help="write the weights in small files, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, help="for the two schedules together")
    parser.add_argument("--retriever", type=float, default=0.45, help="the retriever's share of them; 0 skips it")
    parser.add_argument("--reader", type=float, default=0.55, help="the reader's")
    parser.add_argument("--steps", type=int, help="of each schedule, for a trial")
    parser.add_argument("--batch-size", type=int, help="of each, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
