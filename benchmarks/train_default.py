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
files of 15 MB, half precision, for a machine that gives back no larger ones; `pack_default.py` packs them.

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
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import default_data
import numpy as np
import torch
from default_data import Data
from safetensors.torch import load_file, save_file
from torch import Tensor

from realm_min.files.atomic import write_atomically
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
KEEP_EVERY = 75  # seconds
KEEP_WORDS = "word_embeddings"


class Retriever(NamedTuple):
    """What decides the retriever's training, beside data and seed."""

    steps: int = 2000
    batch_size: int = 192
    learning_rate: float = 2e-4
    workers: int = 0  # processes that make what is learnt from
    teacher: float = 0.4  # of the teacher in the target, where there is evidence
    most_tokens: int = 256  # of a block
    mixture: tuple[tuple[str, float], ...] = (
        ("lead", 0.16), ("web", 0.16), ("slice", 0.04), ("field", 0.18), ("made", 0.32), ("sentence", 0.14),
    )  # fmt: skip


class Reader(NamedTuple):
    """What decides the reader's training, beside data and seed; the mixture moves from the first to the second."""

    steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 2e-4
    workers: int = 0  # processes that make what is learnt from
    beam: int = 4
    among: int = 10  # the best blocks, of which those without the answer are drawn
    unanswerable: float = 0.125
    most_tokens: int = 300
    mixture: tuple[tuple[str, float], ...] = (
        ("lead", 0.08), ("web", 0.08), ("slice", 0.03), ("field", 0.21), ("made", 0.6),
    )  # fmt: skip
    later: tuple[tuple[str, float], ...] = (
        ("lead", 0.2), ("web", 0.12), ("slice", 0.05), ("field", 0.24), ("made", 0.39),
    )  # fmt: skip


# ---- inputs


class Rows(NamedTuple):
    """ "[CLS] first [SEP]" or "[CLS] first [SEP] second [SEP]" of some texts, side by side."""

    places: np.ndarray  # which of all texts these are [rows]
    ids: np.ndarray  # [rows, tokens] uint16
    begins: np.ndarray  # where the second begins, or would [rows]
    lengths: np.ndarray  # tokens of each row [rows]


def side_by_side(
    firsts: Sequence[np.ndarray], seconds: Sequence[np.ndarray] | None, most: int, places: np.ndarray
) -> Rows:
    """The texts at some places; of a pair of more than `most` tokens the second is cut."""
    firsts = [firsts[i][: most - 2] for i in places]
    begins = np.array([len(first) + 2 for first in firsts])
    pairs = None
    if seconds is not None:
        pairs = [seconds[i][: max(0, most - 1 - begin)] for i, begin in zip(places, begins, strict=True)]
    lengths = begins if pairs is None else begins + [len(second) + 1 for second in pairs]
    ids = np.full((len(firsts), max(int(lengths.max()), 12)), PAD, np.uint16)
    for i, first in enumerate(firsts):
        ids[i, 0], ids[i, begins[i] - 1], ids[i, lengths[i] - 1] = CLS, SEP, SEP
        ids[i, 1 : begins[i] - 1] = first
        if pairs is not None:
            ids[i, begins[i] : lengths[i] - 1] = pairs[i]
    return Rows(places, ids, begins, lengths)


def portioned(
    firsts: Sequence[np.ndarray], seconds: Sequence[np.ndarray] | None, most: int, portions: int = 1
) -> list[Rows]:
    """All texts, those of similar length side by side."""
    lengths = [len(first) + (0 if seconds is None else len(seconds[i])) for i, first in enumerate(firsts)]
    some = by_length(lengths, -(-len(firsts) // portions))
    return [side_by_side(firsts, seconds, most, places) for places in some]


def on_device(rows: Rows, device: torch.device) -> tuple[Batch, Tensor]:
    """The rows as a batch; and which tokens are the second text's [rows, tokens]."""
    ids = torch.from_numpy(rows.ids.astype(np.int32)).to(device).long()
    begins, lengths = (torch.from_numpy(each).to(device)[:, None] for each in (rows.begins, rows.lengths))
    positions = torch.arange(ids.shape[1], device=device).expand(len(ids), -1)
    mask = positions < lengths
    types = mask & (positions >= begins)
    in_second = types & (positions < lengths - 1)
    read = mask.long()
    if device.type == "cuda" and rows.lengths.min() < ids.shape[1]:  # padded rows are read too: one launch for all
        read = read[:, None].expand(-1, ids.shape[1], -1)
    return Batch(ids, read, types.long(), positions), in_second


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
    model, size = warm_start.embedder(minilm, 0, **NO_DROPOUT).to(device).eval(), 1024 if device.type == "cuda" else 32
    return (
        sentence_embeddings(model, lambda n: question_rows(data, n), lengths_of(data.questions), size, dtype),
        sentence_embeddings(model, lambda n: record_rows(data, n), lengths_of(data.texts), size // 4, dtype),
    )


def sentence_embeddings(
    model: RealmEmbedder, rows: Callable[[np.ndarray], tuple], lengths: np.ndarray, size: int, dtype: torch.dtype
) -> Tensor:
    """The mean of the trunk's last layer over the tokens of each text, of length 1: [texts, hidden].

    Args:
        rows: gives the texts of some numbers, for `side_by_side`.
        lengths: of all texts; those of similar length are read together, `size` of them.
    """
    found = torch.empty(len(lengths), model.config.hidden_size, dtype=dtype, device=model.device)
    for numbers in by_length(lengths, size):
        (some,) = portioned(*rows(numbers), MOST_TOKENS)
        batch, _ = on_device(some, model.device)
        hidden = bert(model.p, model.config, batch, "unpadded")[0].hidden  # [rows, tokens, hidden]
        mask = (batch.mask if batch.mask.dim() == 2 else batch.mask[:, 0]).to(hidden.dtype)[..., None]
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        places = torch.from_numpy(numbers[some.places]).to(model.device)
        found[places] = (pooled / pooled.norm(dim=1, keepdim=True)).to(dtype)
    return found


def record_rows(data: Data, numbers: Sequence[int]) -> tuple[list[np.ndarray], None]:
    return [record_of(data, int(i)) for i in numbers], None


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
    """Fits a schedule of at most `most` steps into `seconds`, by how long the steps so far took."""

    def __init__(self, most: int, seconds: float | None) -> None:
        self.most = self.steps = most
        self.seconds, self.started, self.number, self.begun = seconds, time.perf_counter(), 0, 0.0

    def running(self) -> bool:
        """Whether there is another step."""
        if self.number == 4:  # those before compile kernels
            self.begun = time.perf_counter()
        elif self.seconds is not None and (self.number in (12, 40) or (self.number and self.number % 100 == 0)):
            each = (time.perf_counter() - self.begun) / (self.number - 4)
            left = self.seconds - (time.perf_counter() - self.started)
            self.steps = min(self.most, self.number + max(1, int(left / each)))
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


class Ahead:
    """What a loop's steps learn from, made some steps before they come, in other processes where there are any.

    `make(number, progress)` is a step's, and draws from its number alone.
    """

    DEPTH = 12  # steps

    def __init__(self, make: Callable[[int, float], Any], workers: int) -> None:
        self.make, self.made, self.pool = make, {}, None
        if workers:
            self.pool = multiprocessing.get_context("fork").Pool(workers, _remember, (make,))

    def take(self, number: int, progress: float) -> Any:
        if self.pool is None:
            return self.make(number, progress)
        for later in range(number, number + self.DEPTH):
            if later not in self.made:
                self.made[later] = self.pool.apply_async(_remembered, (later, progress))
        try:
            return self.made.pop(number).get(30)
        except multiprocessing.TimeoutError:  # a process that hangs: go on without them
            self.pool.terminate()
            self.pool = None
            return self.make(number, progress)

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.terminate()
            self.pool.join()


_MAKERS: list[Callable[[int, float], Any]] = []  # of the one pool that a worker is of


def _remember(make: Callable[[int, float], Any]) -> None:
    torch.set_num_threads(1)
    _MAKERS.append(make)


def _remembered(number: int, progress: float) -> Any:
    return _MAKERS[-1](number, progress)


# ---- the retriever


def embed_rows(
    model: RealmEmbedder, portions: list[Rows], device: torch.device, keep: bool
) -> tuple[Tensor, list[tuple[Tensor, Any]]]:
    """Embed texts [texts, proj], and what `embed_rows_backward` takes."""
    count = sum(len(rows.places) for rows in portions)
    found, kept = torch.empty(count, model.config.retriever_proj_size, dtype=model.dtype, device=device), []
    for rows in portions:
        places = torch.from_numpy(rows.places).to(device)
        (found[places], _), kept_embed = embed(model.p, model.config, on_device(rows, device)[0], Run(keep=keep))
        kept.append((places, kept_embed))
    return found, kept


def embed_rows_backward(dy: Tensor, kept: list[tuple[Tensor, Any]], model: RealmEmbedder) -> None:
    for places, kept_embed in kept:
        embed_backward(dy[places], kept_embed, model.own_grads)


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


class Asked(NamedTuple):
    """What a step of the retriever learns from."""

    numbers: list[int]  # of questions
    pool: np.ndarray  # numbers of blocks
    right: np.ndarray  # which of them are evidence, bool [questions, blocks]
    questions: list[Rows]
    blocks: list[Rows]


def asked(data: Data, ranked: np.ndarray, numbers: list[int], rng: np.random.Generator, most: int) -> Asked:
    pool, right = pool_of(data, ranked, numbers, rng)
    return Asked(
        numbers, pool, right, portioned(*question_rows(data, numbers), 64), portioned(*block_rows(data, pool), most, 3)
    )  # fmt: skip


def train_retriever(
    data: Data, taught: Taught, model: RealmEmbedder, settings: Retriever, seed: int, seconds: float | None,
    device: torch.device, log: Callable[..., None],
) -> None:  # fmt: skip
    pools = {name: data.of_kind(name) for name, _ in settings.mixture}

    def make(number: int, progress: float) -> Asked:
        rng = np.random.default_rng([seed, 1, number])
        numbers = drawn(rng, pools, dict(settings.mixture), settings.batch_size)
        return asked(data, taught.ranked, numbers, rng, settings.most_tokens)

    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=min(40, settings.steps // 10))
    with Ahead(make, settings.workers) as ahead:
        clock = Clock(settings.steps, seconds)
        while clock.running():
            batch = ahead.take(clock.number, clock.progress)
            losses = retriever_step(model, taught, batch, settings, clock.progress, device)
            update(model, optimizer, clock, len(batch.numbers))
            if clock.number % 50 == 1 or clock.number == clock.steps:
                log("retriever", clock.number, clock.steps, *(float(loss) / len(batch.numbers) for loss in losses))


def pool_of(
    data: Data, ranked: np.ndarray, numbers: list[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The blocks of a batch, evidence and hard negatives, and which are evidence: bool [questions, blocks]."""
    taken = []
    for number in numbers:
        known = evidence_of(data, number, ranked[number][:20])
        if len(known):
            taken.append(known[0] if rng.random() < 0.5 else rng.choice(known))
        wrong = ranked[number][~np.isin(ranked[number], data.evidence[number])]
        if len(wrong):
            taken.append(wrong[min(len(wrong) - 1, int(rng.exponential(6)))])
    pool = np.unique(np.array(taken, np.int64))
    return pool, np.stack([np.isin(pool, data.evidence[number]) for number in numbers])


def target_of(probability: Tensor, opinion: Tensor, right: Tensor, teacher: float) -> Tensor:
    """What the retriever's softmax is to be [questions, blocks]: the evidence, as p has it there, and the teacher's.

    Args:
        probability, opinion: the softmax of the retriever, and of the teacher [questions, blocks].
        right: which blocks are evidence, bool [questions, blocks]; where none is, all of the target is the teacher's.
        teacher: its share elsewhere.
    """
    among_right = probability * right
    share = torch.where(right.any(1, keepdim=True), teacher, 1.0)
    return share * opinion + (1 - share) * among_right / among_right.sum(1, keepdim=True).clamp(min=1e-30)


def retriever_step(
    model: RealmEmbedder, taught: Taught, batch: Asked, settings: Retriever, progress: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of the batch's summed loss; returns the loss to the target and the squared distance."""
    rows, blocks = torch.tensor(batch.numbers, device=device), torch.from_numpy(batch.pool).to(device)
    right = torch.from_numpy(batch.right).to(device)
    x, kept_x = embed_rows(model, batch.questions, device, True)
    z, kept_z = embed_rows(model, batch.blocks, device, True)
    scores = x @ z.t()  # [questions, blocks]
    opinion = softmax(SCALE * (taught.questions[rows].float() @ taught.blocks[blocks].float().t()))
    probability = softmax(scores)
    target = target_of(probability, opinion, right, settings.teacher)
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
                model, portioned(*rows(data, numbers), MOST_TOKENS), device, False
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


class Pairs(NamedTuple):
    """Some of the pairs of question and block, side by side; and pairs of row and span, [2, spans] each."""

    rows: Rows
    right: np.ndarray  # the answers
    neither: np.ndarray  # what counts neither way


def readings(data: Data, ranked: np.ndarray, numbers: list[int], rng: np.random.Generator, settings: Reader) -> Reading:
    """What some questions read: a block that is evidence, others that the retriever ranks high."""
    blocks, evidence, ignored = [], [], []
    for number in numbers:
        known, row = evidence_of(data, number, ranked[number]), ranked[number][: settings.among]
        wrong = ranked[number][~np.isin(ranked[number], data.evidence[number])]
        if len(wrong) and (len(known) == 0 or rng.random() < settings.unanswerable):
            blocks.append(rng.permutation(wrong[: settings.among])[: settings.beam])
            evidence.append(known[:0])
        else:
            known = known if len(known) else data.evidence[number].astype(np.int64)
            first = known[0] if rng.random() < 0.6 else rng.choice(known[:5])
            others = rng.permutation(row[row != first])[: settings.beam - 1]
            blocks.append(rng.permutation(np.array([first, *others])))
            evidence.append(known)
        short = settings.beam - len(blocks[-1])
        if short:  # of few blocks
            blocks[-1] = np.concatenate([blocks[-1], np.repeat(blocks[-1][:1], short)])
        ignored.append(default_data.KINDS[data.kinds[number]] not in REAL)
    return Reading(numbers, np.stack(blocks), evidence, ignored)


def pairs_of(data: Data, reading: Reading, most: int, portions: int) -> list[Pairs]:
    """What the reader reads, and where the answers stand in it."""
    beam = reading.blocks.shape[1]
    firsts = [data.questions[number] for number in reading.questions for _ in range(beam)]
    seconds = [record_of(data, int(block)) for block in reading.blocks.reshape(-1)]
    return [
        Pairs(rows, *answer_spans(data, reading, rows)) for rows in portioned(firsts, seconds, most, portions)
    ]  # fmt: skip


def answer_spans(data: Data, reading: Reading, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Row and span of what is right, and of what is to count neither way: [2, spans] each."""
    beam, tokens = reading.blocks.shape[1], rows.ids.shape[1]
    found: tuple[set, set] = (set(), set())
    for row, pair in enumerate(rows.places):
        i, block = pair // beam, int(reading.blocks.reshape(-1)[pair])
        counts = block in reading.evidence[i].tolist()
        if not counts and not (reading.ignored[i] and len(reading.evidence[i])):
            continue
        begin = int(rows.begins[row])
        text = rows.ids[row, begin : rows.lengths[row] - 1]
        for answer in data.answers_of(reading.questions[i]):
            for start in occurrences(text, answer):
                first, last = begin + int(start), begin + int(start) + len(answer) - 1
                found[not counts].add((row, int(span_candidate(first, last, tokens))))
    right, neither = (np.array(sorted(spans), np.int64).reshape(-1, 2).T for spans in found)
    return right, neither


class Scored(NamedTuple):
    """The spans of some of the pairs."""

    pairs: Pairs
    places: Tensor  # which of all pairs
    scores: Tensor  # [pairs, spans]
    tokens: Batch
    kept: Any

    def mask(self, spans: np.ndarray) -> Tensor:
        """bool [pairs, spans], true at pairs of row and span."""
        found = torch.zeros(self.scores.shape, dtype=torch.bool, device=self.scores.device)
        rows, places = torch.from_numpy(spans).to(found.device)
        found[rows, places] = True
        return found


def score_pairs(
    model: RealmReader, portions: list[Pairs], relevance: Tensor, device: torch.device, keep: bool
) -> Iterator[Scored]:
    """relevance: f(x, z) [questions, beam]."""
    for pairs in portions:
        batch, in_block = on_device(pairs.rows, device)
        places = torch.from_numpy(pairs.rows.places).to(device)
        of_rows = relevance.reshape(-1)[places]
        (scores, _), kept = read(model.p, model.config, batch, in_block, of_rows, Run(keep=keep))
        yield Scored(pairs, places, scores, batch, kept)


def reader_step(
    model: RealmReader, reading: Reading, portions: list[Pairs], relevance: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of the batch's summed loss; returns it, and the share that the right spans have, summed."""
    shape, lowest = reading.blocks.shape, torch.finfo(relevance.dtype).min
    of_all, of_right = (relevance.new_full((shape[0] * shape[1],), lowest) for _ in range(2))
    parts = []
    for scored in score_pairs(model, portions, relevance, device, True):
        right = scored.mask(scored.pairs.right)
        scores = scored.scores.masked_fill(scored.mask(scored.pairs.neither) & ~right, lowest)
        of_all[scored.places] = logsumexp(scores, 1)
        of_right[scored.places] = logsumexp(scores.masked_fill(~right, lowest), 1).clamp(min=lowest)
        parts.append((scored, scores, right))
    null = relevance.new_zeros(shape[0], 1)
    total = logsumexp(torch.cat([of_all.view(shape), null], 1), 1)  # [questions]
    answerable = torch.tensor([len(known) > 0 for known in reading.evidence], device=device)
    # Where what was known to be evidence holds no span after all, cut off maybe, nothing is learnt.
    held = logsumexp(of_right.view(shape), 1)
    found = answerable & (held > lowest / 2)
    wanted = torch.where(found, held, torch.zeros_like(held))
    weight = (found | ~answerable).to(total.dtype)
    for scored, scores, right in parts:
        of_question = torch.div(scored.places, shape[1], rounding_mode="floor")
        dscores = (scores - total[of_question, None]).exp_()
        share = (scores - wanted[of_question, None]).exp_() * right
        dscores -= torch.where(found[of_question, None], share, torch.zeros_like(share))
        read_backward(dscores * weight[of_question, None], scored.kept, model.own_grads)
    return ((total - wanted) * weight).sum(), ((wanted - total).exp() * weight).sum()


def train_reader(
    data: Data, model: RealmReader, x: Tensor, z: Tensor, settings: Reader, seed: int, seconds: float | None,
    device: torch.device, log: Callable[..., None], keep: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """x, z: the retriever's embeddings of all questions and blocks; `keep` is called now and then."""
    ranked = best(x, z, min(30, len(z))).cpu().numpy()
    pools = {}
    for name, _ in settings.mixture:
        numbers = data.of_kind(name)
        pools[name] = np.array([i for i in numbers if len(evidence_of(data, i, ranked[i]))], np.int64)
        log("reader", 0, 0, name, len(pools[name]))
    first, later = dict(settings.mixture), dict(settings.later)

    def make(number: int, progress: float) -> tuple[Reading, list[Pairs]]:
        rng, moved = np.random.default_rng([seed, 2, number]), min(1.0, progress / 0.8)
        mixture = {name: (1 - moved) * share + moved * later[name] for name, share in first.items()}
        reading = readings(data, ranked, drawn(rng, pools, mixture, settings.batch_size), rng, settings)
        return reading, pairs_of(data, reading, settings.most_tokens, 3)

    optimizer = AdamW(settings.learning_rate, settings.steps, warmup_steps=min(60, settings.steps // 10))
    kept_at = time.perf_counter()
    with Ahead(make, settings.workers) as ahead:
        clock = Clock(settings.steps, seconds)
        while clock.running():
            if time.perf_counter() - kept_at > KEEP_EVERY:
                keep()
                kept_at = time.perf_counter()
            reading, portions = ahead.take(clock.number, clock.progress)
            rows, blocks = torch.tensor(reading.questions, device=device), torch.from_numpy(reading.blocks).to(device)
            relevance = (z[blocks] * x[rows, None]).sum(2)  # [questions, beam]
            losses = reader_step(model, reading, portions, relevance, device)
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
    for scored in score_pairs(model, pairs_of(data, reading, 320, 2), relevance, device, False):
        tokens = scored.tokens.types.shape[1]
        starts, ends = span_candidates(tokens, model.config.max_span_width)
        top, place = scored.scores.max(1)
        ids, totals = scored.pairs.rows.ids, logsumexp(scored.scores, 1).tolist()
        for row, (pair, score, span, total) in enumerate(
            zip(scored.places.tolist(), top.tolist(), place.tolist(), totals, strict=True)
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


class Chain:
    """The stages in a folder, and what is known of them as they go on."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out, self.device = given, given.out, torch.device(given.device)
        self.started, self.lines = time.perf_counter(), []
        self.settings = tuple(
            settings._replace(
                steps=given.steps or settings.steps, batch_size=given.batch_size or settings.batch_size,
                workers=given.workers,
            )
            for settings in (Retriever(), Reader())
        )  # fmt: skip
        self.out.mkdir(parents=True, exist_ok=True)
        self.data = default_data.load(given.data)
        self.embedder, self.reader = new_models(given.minilm, given.seed, self.device)
        self.log("read", len(self.data.kinds), "questions")

    def log(self, *values: Any) -> None:
        shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        self.lines.append(f"{time.perf_counter() - self.started:7.1f} " + " ".join(shown))
        print(self.lines[-1], flush=True)
        for folder in filter(None, (self.out, self.given.parts)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "log.txt").write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def seconds(self, share: float) -> float | None:
        return None if self.given.seconds is None else share * self.given.seconds

    def stage(self, name: str, model: Any, learn: Callable[[], None]) -> None:
        """Run a stage, or read what it left; where it fails, its model is kept as it then is."""
        path = self.out / f"{name}.safetensors"
        start = self.given.start and self.given.start / path.name
        if path.is_file() or (start and start.is_file()):
            read_weights(model, path if path.is_file() else start)
            self.log(name, "is read")
        if not path.is_file():
            try:
                learn()
            except Exception:  # what was learnt until then is worth keeping
                self.log(traceback.format_exc())
            write_weights(model, path)

    def retriever(self) -> None:
        data, given = self.data, self.given
        if not given.retriever:
            return
        questions, blocks = teach(data, given.minilm, self.device, torch.float32)
        ranked = best(questions, blocks, min(30, len(blocks))).cpu().numpy()
        taught = Taught(questions, blocks, *turned(questions, blocks, self.embedder.config.retriever_proj_size), ranked)
        self.log("taught")
        seconds = self.seconds(given.retriever)
        train_retriever(data, taught, self.embedder, self.settings[0], given.seed, seconds, self.device, self.log)

    def read(self, x: Tensor, z: Tensor) -> None:
        if self.given.reader:
            seconds, data = self.seconds(self.given.reader), self.data
            train_reader(
                data, self.reader, x, z, self.settings[1], self.given.seed, seconds, self.device, self.log,
                lambda: self.measure(x, z),
            )  # fmt: skip

    def measure(self, x: Tensor, z: Tensor) -> None:
        """Answer the development questions with the models as they are; write the answers and the weights."""
        rows, leads = [], self.data.num_leads
        for kind, name, blocks in (
            ("dev", "leads", slice(0, leads)), ("dev", "all", slice(0, None)),
            ("fdev", "factbook", slice(leads, None)), ("fdev", "all", slice(0, None)),
        ):  # fmt: skip
            found = evaluate(self.data, self.reader, x, z, kind, blocks, self.device)
            self.log(kind, name, summary(found))
            rows += [{"blocks": name, **row} for row in found]
        with open(self.out / "dev.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        if self.given.parts:
            write_parts(self.out, {"embedder": self.embedder, "reader": self.reader}, self.given.parts)
            np.save(self.given.parts / "blocks.npy", z.cpu().half().numpy())

    def run(self) -> None:
        self.stage("embedder", self.embedder, self.retriever)
        x, z = embed_all(self.embedder, self.data, self.device)
        self.log("embedded")
        self.measure(x, z)
        self.stage("reader", self.reader, lambda: self.read(x, z))
        self.measure(x, z)
        stated = {"seed": self.given.seed, "settings": [settings._asdict() for settings in self.settings]}
        (self.out / "settings.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
        self.log("done")


def write_parts(out: Path, models: dict[str, Any], parts: Path) -> None:
    """The weights in half precision, end to end, in files of PART_BYTES; beside them the answers on dev."""
    parts.mkdir(parents=True, exist_ok=True)
    halves = b"".join(
        models[name].p[key].detach().cpu().contiguous().half().numpy().tobytes()
        for name in ("embedder", "reader")
        for key in sorted(own_keys(models[name]))
    )
    for number, start in enumerate(range(0, len(halves), PART_BYTES)):
        with write_atomically(parts / f"weights.{number}") as temporary:
            temporary.write_bytes(halves[start : start + PART_BYTES])
    (parts / "dev.csv").write_bytes((out / "dev.csv").read_bytes())


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
    parser.add_argument("--workers", type=int, default=0, help="processes that make what is learnt from")
    parser.add_argument("--seed", type=int, default=0)
    Chain(parser.parse_args(arguments)).run()


if __name__ == "__main__":
    main()
