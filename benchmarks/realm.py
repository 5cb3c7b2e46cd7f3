"""Does a retriever learn from masked words? REALM against its controls on ten thousand Wikipedia leads: `make realm`.

All runs begin with all-MiniLM-L6-v2. For each seed, one retriever is warmed up by the Inverse Cloze Task (`ict`); one
encoder for all seeds learns to fill masks (`mlm`), to look masked words up beside them (`copy`), and to do so in what
seed 0's retriever finds (`ground`). From there each arm goes on for as many updates:

    ict-again        ICT as before, batches of its own
    ict-same         ICT on the very sentences that the arms below mask
    realm-still      REALM, but ∂loss/∂f(x, z) is thrown away: the retriever stays that of ICT
    realm-permuted   REALM, but p(y|z,x) reaches the retriever in a drawn order of the documents
    realm            REALM as the paper has it

The last three see the same sentences with the same masks in the same batches. A sentence comes from a lead that is
barred as its evidence; what is masked is a name or date that stands in some other lead. Nothing of the questions is
seen before fine-tuning (`ict-tuned`, `realm-tuned`), which learns from the training questions alone.

`make table-2` is the paper's ablation (its table 2) by the same runs, and these:

    realm-tokens     random wordpieces are masked in place of a name or date
    realm-spans      random spans are
    realm-stale      the index is never refreshed, though the documents' side learns

each fine-tuned (`…-tuned`), and two halves of `realm` with the other half as before: `retriever-tuned` has REALM's
retriever, `encoder-tuned` its encoder. `ict-tuned` is the paper's baseline.

Settings are those of realm-settings.json, chosen on the development questions before the arms were compared. A finished
run is a CSV in the folder --out and is not run again; one that was stopped goes on from its checkpoint in --work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from realm_report import ARMS, BEFORE, HALVES, TABLE_2, TUNED, VARIANTS, report
from train_demo import NO_DROPOUT, minilm

from realm_min.app.train import new_model
from realm_min.files.atomic import write_atomically
from realm_min.files.causes import check_readable
from realm_min.interface.embedder import RealmEmbedder
from realm_min.interface.inputs import Inputs, checked_batch
from realm_min.jobs import loop, preparation, runs, warm_start
from realm_min.jobs.draws import Draws
from realm_min.jobs.evaluation import has_answer_words
from realm_min.jobs.settings import Finetune, Ict, Mlm, Pretrain, TrainingRun
from realm_min.learn import ict, pretraining
from realm_min.learn.masking import salient_span
from realm_min.learn.steps import Sum
from realm_min.model.bert import PLAIN
from realm_min.model.realm import NO_LABEL, embed, marginal_loss
from realm_min.ranks.devices import add_device, chosen_device
from realm_min.search.mips import BlockIndex
from realm_min.text.corpus import Block, split_sentences
from realm_min.text.leads import lead_blocks
from realm_min.text.names_and_dates import salient_spans
from realm_min.text.questions import TrainingQuestion, read_questions
from realm_min.text.sequences import EncodedBlock, document_sequences, pad

HERE = Path(__file__).parent
KS = (1, 5, 20)
HELD_OUT = 20  # of so many leads, the sentences of one are never trained on: retrieval utility is of them
PAIRS_AT_ONCE, BLOCKS_AT_ONCE = 512, 256
RANKS = "ranks"
SAVE_EVERY = 20  # updates, some minutes on two cores


class Given(NamedTuple):
    """What every run is told: where things are, where to compute, and until when."""

    questions: Path
    leads: Path | None
    work: Path
    out: Path
    settings: Path
    device: str
    until: float  # by time.time()


class Sentence(NamedTuple):
    """A sentence of a lead, and its names and dates that stand in some other lead, as characters of it."""

    block: int
    text: str
    spans: list[tuple[int, int]]


class OutOfTimeError(Exception):
    """The time of --seconds is up."""


# ---- what is masked: sentences whose names can be looked up elsewhere


def find_sentences(blocks: list[Block]) -> list[Sentence]:
    """The sentences that have something to look up, in the order of the corpus.

    In a corpus of millions of blocks most names stand more than once. Among ten thousand leads, 27 % of the names
    stand in no other lead: no document can help to fill them in, and they are not masked.
    """
    lowered = [f"{block.title}. {block.text}".lower() for block in blocks]
    holding: dict[str, set[int]] = defaultdict(set)
    for number, text in enumerate(lowered):
        for word in re.findall(r"\w+", text):
            holding[word].add(number)

    @cache
    def holders(name: str) -> set[int]:
        words = re.findall(r"\w+", name)
        whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
        return {i for i in set.intersection(*(holding[word] for word in words)) if whole.search(lowered[i])}

    found = []
    for number, block in enumerate(blocks):
        for text in split_sentences(block.text):
            spans = [span for span in salient_spans(text) if holders(text[slice(*span)].lower()) - {number}]
            if spans:
                found.append(Sentence(number, text, spans))
    return found


def sentences(given: Given, blocks: list[Block]) -> tuple[list[Sentence], list[Sentence]]:
    """Those to train on and those held out, from the work folder where they were found before."""
    path = given.work / "sentences.json"
    if not path.is_file():
        given.work.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(find_sentences(blocks)), encoding="utf-8")
    found = [Sentence(*row) for row in json.loads(path.read_text(encoding="utf-8"))]
    held_out = [sentence for sentence in found if sentence.block % HELD_OUT == 0]
    return [sentence for sentence in found if sentence.block % HELD_OUT], held_out


# ---- one run, in a process of its own


class Lab:
    """What a run has at hand."""

    def __init__(self, given: Given) -> None:
        self.given, self.device = given, chosen_device(given.device)
        self.settings = json.loads(given.settings.read_text(encoding="utf-8"))
        self.tokenizer, self.blocks = warm_start.tokenizer(None), lead_blocks(given.leads)
        self.questions = {split: list(read_questions(given.questions / f"{split}.jsonl")) for split in ("train", "dev")}
        self.train, self.held_out = sentences(given, self.blocks)
        spans = {sentence.text: sentence.spans for sentence in (*self.train, *self.held_out)}
        self.known: dict[tuple[int, int], bool] = {}  # by question and lead, see `hit`
        self.choose = partial(salient_span, find=lambda text: [tuple(span) for span in spans.get(text, [])])

    @cached_property
    def pieces(self) -> list[EncodedBlock]:
        """The leads as wordpieces."""
        return preparation.encode_evidence(self.blocks, self.tokenizer)

    def run(self, folder: Path, **given: Any) -> TrainingRun:
        def watch(stage: str, done: int, total: int | None, note: str = "") -> None:
            if time.time() > self.given.until:
                raise OutOfTimeError

        return TrainingRun(folder, resume=True, save_every=SAVE_EVERY, report=watch, **given)

    def embedder(self, folder: Path, seed: int) -> RealmEmbedder:
        return warm_start.embedder(folder, seed, **NO_DROPOUT).to(self.device)

    def encoder(self, folder: Path, seed: int) -> Any:
        return warm_start.knowledge_encoder(folder, seed, **NO_DROPOUT).to(self.device)

    def texts(self, settings: Pretrain) -> list[pretraining.Text]:
        """As many sentences as an arm of this seed masks, each once, none longer than it reads."""
        count = settings.steps * settings.batch_size
        order = np.random.default_rng([settings.seed, 5]).permutation(len(self.train))[: 2 * count]
        picked = [self.train[i] for i in order]
        texts = [pretraining.Text(s.block, self.blocks[s.block].title, s.text) for s in picked]
        lengths = map(len, self.tokenizer([f"{text.title}. {text.text}" for text in texts])["input_ids"])
        fitting = [text for text, n in zip(texts, lengths, strict=True) if n <= settings.max_passage]
        return fitting[:count]

    # What a retriever is worth

    def index(self, embedder: RealmEmbedder) -> BlockIndex:
        """The leads, searched by an embedder. Arms of a seed begin alike: what was embedded for one is kept for all."""
        digest = hashlib.sha256()
        for _, tensor in sorted(embedder.p.items()):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        path = self.given.work / "embedded" / f"{digest.hexdigest()[:32]}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as temporary, open(temporary, "wb") as file:
                np.save(file, self.embedded(embedder).cpu().numpy())
        return BlockIndex(torch.from_numpy(np.load(path)).to(self.device))

    def embedded(self, embedder: RealmEmbedder) -> torch.Tensor:
        """Embed_doc of every lead [leads, proj]."""
        sequences = document_sequences(self.tokenizer, self.pieces, self.settings["ict"]["max_evidence"])[1:]
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        found = torch.empty(len(sequences), embedder.config.retriever_proj_size, device=self.device)
        for start in range(0, len(order), BLOCKS_AT_ONCE):
            some = order[start : start + BLOCKS_AT_ONCE]
            batch = checked_batch(embedder.config, Inputs(**pad([sequences[i] for i in some], embedder)))
            found[some] = embed(embedder.p, embedder.config, batch, PLAIN)[0][0]
        return found

    def recall(self, embedder: RealmEmbedder, index: BlockIndex, folder: Path) -> dict[str, float]:
        """R@k of the development questions and of all, by whole words of the normalised lead, its title included.

        Where each question's first right lead stands is written to the folder of the run.
        """
        asked, hits = [*self.questions["train"], *self.questions["dev"]], []
        for start in range(0, len(asked), 64):
            some = asked[start : start + 64]
            read = self.tokenizer([q.question for q in some], padding=True, return_tensors="pt").to(self.device)
            (x, _), _ = embed(embedder.p, embedder.config, checked_batch(embedder.config, Inputs(**read)), PLAIN)
            _, ids = index.search(x.float(), max(KS))
            hits += [[self.hit(start + i, z) for z in row] for i, row in enumerate(ids.tolist())]
        found = np.array(hits)
        ranks = np.where(found.any(1), 1 + found.argmax(1), 0)  # of the first lead with an answer, 0: none
        folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(folder / RANKS) as temporary:
            temporary.write_text(" ".join(map(str, ranks)) + "\n", encoding="utf-8")
        rows = {"dev": found[len(self.questions["train"]) :], "all": found}
        return {f"{name} R@{k}": 100 * float(rows[name][:, :k].any(1).mean()) for name in rows for k in KS}

    def hit(self, question: int, block: int) -> bool:
        """Whether a lead holds an answer to a question, by their numbers."""
        if (question, block) not in self.known:
            asked = [*self.questions["train"], *self.questions["dev"]][question]
            title, text = self.blocks[block]
            self.known[question, block] = has_answer_words(f"{title}. {text}", asked.answers)
        return self.known[question, block]

    def utility(self, models: tuple, index: BlockIndex, settings: Pretrain) -> dict[str, float]:
        """Figure 4's retrieval utility and the loss, of held-out sentences: a masked wordpiece, in nats."""
        order = np.random.default_rng(0).permutation(len(self.held_out))[: self.settings["held_out"]]
        picked = [self.held_out[i] for i in order]
        texts = [pretraining.Text(s.block, self.blocks[s.block].title, s.text) for s in picked]
        texts, sums = preparation.with_copies(texts, self.blocks, len(self.blocks)), defaultdict(float)
        draws = Draws(0, 0, list(range(len(texts))))
        examples = pretraining.hide(texts, self.tokenizer, self.choose, draws.generators())
        at_once = max(1, PAIRS_AT_ONCE // settings.num_candidates)
        settings = settings._replace(encoder_alone=True, permute_evidence=False)  # the index is the embedder's own
        for start in range(0, len(examples), at_once):
            some = examples[start : start + at_once]
            places = draws._replace(places=draws.places[start : start + at_once])
            batch = pretraining.gather_evidence(models, self.tokenizer, self.pieces, index, some, places, settings)
            relevance, log_p, _ = pretraining.read_evidence(models, batch, (PLAIN, PLAIN, PLAIN))
            masked = batch.labels != NO_LABEL
            loss = marginal_loss(log_p, relevance, masked)[0]
            found = pretraining.use_of_retrieval(relevance, log_p, masked)
            found["held-out loss"] = Sum(float(loss) * float(masked.sum()), float(masked.sum()))
            for name, (total, count) in found.items():
                sums[name] += total
                sums[f"{name} count"] += count
        names = ("retrieval_utility", "held-out loss", "null_probability")
        return {name.replace("_", " "): sums[name] / sums[f"{name} count"] for name in names}

    def measured(
        self, folder: Path, embedder: RealmEmbedder, encoder: Any = None, settings: Any = None
    ) -> Callable[[], dict]:
        """For a run's `evaluate`: what the models are worth as they stand."""

        def evaluate() -> dict[str, float]:
            index = self.index(embedder)
            found = self.recall(embedder, index, folder)
            return found | (self.utility((embedder, encoder), index, settings) if encoder else {})

        return evaluate


def warm_up(lab: Lab, stage: str, seed: int) -> None:
    """ict of a seed, or one of mlm, copy, ground; its folder is complete when its models are written."""
    work, chosen = lab.given.work, lab.settings[stage]
    if stage == "ict":
        embedder = lab.embedder(minilm(), seed)
        folder = work / f"ict-{seed}"
        run = lab.run(folder, evaluate=lab.measured(folder, embedder))
        runs.ict(run, lab.blocks, embedder, lab.tokenizer, Ict(**chosen, seed=seed))
    elif stage in ("mlm", "copy"):
        encoder = lab.encoder(minilm() if stage == "mlm" else work / "mlm", seed)
        runs.mlm(lab.run(work / stage), lab.blocks, encoder, lab.tokenizer, Mlm(**chosen, seed=seed))
    else:
        settings = Pretrain(**chosen, encoder_alone=True, seed=1000 + seed)
        models = lab.embedder(work / f"ict-{seed}", seed), lab.encoder(work / "copy", seed)
        pretrain(lab, work / stage, models, settings, evaluate=None)


def pretrain(lab: Lab, folder: Path, models: tuple, settings: Pretrain, **given: Any) -> None:
    find = lab.choose.keywords["find"]
    texts = lab.texts(settings)
    runs.pretrain(lab.run(folder, **given), lab.blocks, *models, lab.tokenizer, settings, texts=texts, find=find)


def arm(lab: Lab, name: str, seed: int) -> None:
    """Run an arm of a seed."""
    work, every = lab.given.work, lab.settings["evaluate_every"]
    folder = work / lab.given.out.name / f"{name}-{seed}"
    settings = Pretrain(**lab.settings["realm"], seed=seed)
    embedder = lab.embedder(work / f"ict-{seed}", seed)
    if name.startswith("ict"):
        run = lab.run(folder, evaluate=lab.measured(folder, embedder), evaluate_every=every)
        chosen = Ict(**lab.settings["ict-again"], seed=1000 + seed)._replace(steps=settings.steps)
        if name == "ict-again":
            runs.ict(run, lab.blocks, embedder, lab.tokenizer, chosen)
        else:
            same_sentences(lab, run, embedder, chosen._replace(batch_size=settings.batch_size, seed=seed), settings)
        return
    soften_(embedder, lab.settings["soften"])
    encoder = lab.encoder(work / "ground", seed)
    still, permuted = name == "realm-still", name == "realm-permuted"
    settings = settings._replace(encoder_alone=still, permute_evidence=permuted)
    settings = settings._replace(**VARIANTS.get(name, {}))
    if name == "realm-stale":
        settings = settings._replace(refresh_every=settings.steps)
    evaluate = lab.measured(folder, embedder, encoder, settings)
    before = before_of(folder)
    if still and not before.is_file():  # of all arms, before their first update
        found = lab.measured(before.parent, embedder, encoder, settings)()
        with write_atomically(before) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")
    pretrain(lab, folder, (embedder, encoder), settings, evaluate=evaluate, evaluate_every=every)


def before_of(folder: Path) -> Path:
    """What an arm is worth before its first update, beside its folder: that of a new run is to be empty."""
    return folder.with_name(f"{folder.name}-before") / "before.json"


def soften_(embedder: RealmEmbedder, factor: float) -> None:
    """Multiply every f(x, z) by `factor`: the order of documents stays, and p(z|x) is less or more sure of it."""
    for part in ("weight", "bias"):
        embedder.p[f"cls.LayerNorm.{part}"].mul_(factor**0.5)


def same_sentences(lab: Lab, run: TrainingRun, embedder: RealmEmbedder, chosen: Ict, settings: Pretrain) -> None:
    """ICT on the sentences that REALM masks, batch for batch; each is taken out of its lead as `runs.ict` does."""
    texts = preparation.with_something_to_mask(lab.texts(settings), lab.tokenizer, lab.choose)

    def step(number: int) -> dict[str, Sum]:
        picked = [texts[i] for i in loop.batch(number, settings.batch_size, len(texts), settings.seed)]
        draws = Draws(chosen.seed, number, list(range(len(picked))))
        examples = []
        for text, random in zip(picked, draws.generators(), strict=True):
            removed, titled = random.random() < chosen.removal_rate, random.random() < chosen.title_rate
            kept = [s for s in split_sentences(lab.blocks[text.block].text) if not (removed and s == text.text)]
            query = f"{text.title}. {text.text}" if titled else text.text
            examples.append(ict.Example(query, text.title, " ".join(kept)))
        read = ict.sentences_and_blocks(examples, lab.tokenizer, embedder, chosen)
        return ict.ict_step(embedder, *read, (draws.dropout_seeds(0), draws.dropout_seeds(1)))

    identity = {"task": "ict of the same sentences", "realm": settings._asdict()}
    job = loop.new_job("Inverse Cloze Task", {warm_start.EMBEDDER: embedder}, step, chosen, identity)
    loop.train_one(run, job, lab.tokenizer)


def tune(lab: Lab, name: str, seed: int) -> None:
    """Fine-tune a retriever, and the reader that begins as its encoder, on the training questions."""
    work, chosen = lab.given.work, dict(lab.settings["finetune"])
    runs_of_arms = work / lab.given.out.name
    folder, start = runs_of_arms / f"{name}-{seed}", runs_of_arms / f"{name.removesuffix('-tuned')}-{seed}"
    if name in HALVES:
        start = work / f"{name}-{seed}-begins"
        before = work / f"ict-{seed}", work / "ground"
        for part, own, old in zip(
            (warm_start.EMBEDDER, warm_start.KNOWLEDGE_ENCODER), HALVES[name], before, strict=True
        ):
            stage = runs_of_arms / f"realm-{seed}" if own else old
            shutil.copytree(stage / part, start / part, dirs_exist_ok=True)
    beams = {name: chosen.pop(name) for name in ("searcher_beam_size", "reader_beam_size")}
    model = new_model(start, lab.blocks, lab.tokenizer, seed, device=lab.device, **NO_DROPOUT, **beams)
    questions = [TrainingQuestion(*question) for question in lab.questions["train"]]
    run = lab.run(folder)
    runs.finetune(run, model, questions, Finetune(**chosen, seed=seed), blocks=lab.blocks, dev=lab.questions["dev"])


def perform(given: Given, task: str) -> str:
    """Run one task; what it measured is written to the folder --out when it is done."""
    torch.set_float32_matmul_precision("high")  # TF32 where the device has it
    name, _, seed = task.rpartition("-")
    lab = Lab(given)
    if task in ("mlm", "copy", "ground"):
        warm_up(lab, task, 0)
    elif name == "ict":
        warm_up(lab, name, int(seed))
    elif name.endswith("-tuned"):
        tune(lab, name, int(seed))
    else:
        arm(lab, name, int(seed))
    folder = given.work / task
    if name in (*ARMS, *TABLE_2):
        folder = given.work / given.out.name / task
    if name in (BEFORE, *ARMS, *TABLE_2):
        with write_atomically(given.out / f"{task}.csv") as temporary:
            temporary.write_bytes(with_first_row(folder))
        if name in (*ARMS, *VARIANTS):
            with write_atomically(given.out / f"{task}.ranks") as temporary:
                temporary.write_bytes((folder / RANKS).read_bytes())
    (folder / "done").touch()
    return task


def with_first_row(folder: Path) -> bytes:
    """An arm's metrics.csv, the row of step 0 before it where that was measured."""
    data, before = (folder / loop.METRICS_FILE).read_bytes(), before_of(folder)
    if not before.is_file():
        return data
    header, _, rows = data.partition(b"\n")
    found = json.loads(before.read_text(encoding="utf-8"))
    values = [f"{found[name]:.6g}" if name in found else "0" for name in header.decode().split(",")]
    return header + b"\n" + ",".join(values).encode() + b"\n" + rows


# ---- all runs


def needs(task: str) -> list[str]:
    """The tasks whose models a task begins with."""
    name, _, seed = task.rpartition("-")
    if name in HALVES:
        return [f"ict-{seed}", "ground", *([f"realm-{seed}"] if any(HALVES[name]) else [])]
    if name.endswith("-tuned"):
        return [f"{name.removesuffix('-tuned')}-{seed}"]
    of_encoder = {"mlm": [], "copy": ["mlm"], "ground": ["copy", "ict-0"]}
    if task in of_encoder or name == "ict":
        return of_encoder.get(task, [])
    return [f"ict-{seed}"] if name in ("ict-again", "ict-same") else [f"ict-{seed}", "ground"]


def is_done(given: Given, task: str) -> bool:
    """Whether a task's CSV, or the models of a stage, are there."""
    recorded = task.rpartition("-")[0] in (*ARMS, *TABLE_2)
    return (given.out / f"{task}.csv").is_file() if recorded else (given.work / task / "done").is_file()


def has_models(given: Given, task: str) -> bool:
    """Whether what a task leaves for others is here: a run that is recorded may have been run elsewhere."""
    of_arm = task.rpartition("-")[0] in (*ARMS, *VARIANTS)
    folder = given.work / given.out.name / task if of_arm else given.work / task
    return (folder / "done").is_file()


def plan(given: Given, tasks: list[str]) -> list[str]:
    """The tasks that are not done, each after those it needs."""
    order: list[str] = []

    def add(task: str) -> None:
        if task not in order:
            for other in needs(task):
                if not has_models(given, other):
                    add(other)
            order.append(task)

    for task in tasks:
        if not is_done(given, task):
            add(task)
    return order


def run_all(given: Given, tasks: list[str], processes: int) -> bool:
    """Run tasks side by side as what they need is there; returns whether all of them are done."""
    waiting, running, failed = plan(given, tasks), {}, False
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        while waiting or running:
            if time.time() > given.until:
                waiting, failed = [], failed or bool(waiting)
            ready = [task for task in waiting if not set(needs(task)) & {*waiting, *running.values()}]
            for task in ready[: processes - len(running)]:
                waiting.remove(task)
                running[pool.submit(perform, given, task)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED) if running else ((), ())
            for future in done:
                task = running.pop(future)
                failed |= not finished(task, future)
                if future.exception():
                    waiting = [other for other in waiting if not leads_to(task, other)]
    return not failed


def finished(task: str, future: Future) -> bool:
    error = future.exception()
    said = "out of time" if isinstance(error, OutOfTimeError) else f"{type(error).__name__}: {error}"
    print(f"{time.strftime('%X')} {task}: {'done' if error is None else said}", flush=True)
    return error is None


def leads_to(task: str, other: str) -> bool:
    """Whether `other` needs `task`, itself or by another."""
    return any(needed == task or leads_to(task, needed) for needed in needs(other))


def read_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, Given]:
    """The options, and what each run is told of them; what all runs read is made ready."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=Path, required=True, metavar="FOLDER", help="of train.jsonl and dev.jsonl")
    parser.add_argument("--leads", type=Path, metavar="FILE", help="the leads' data file, where not the package's")
    parser.add_argument("--work", type=Path, default=HERE.parent / "out" / "realm", metavar="FOLDER", help="for models")
    parser.add_argument("--out", type=Path, default=HERE / "realm", metavar="FOLDER", help="for a CSV of each run")
    parser.add_argument("--settings", type=Path, default=HERE / "realm-settings.json", metavar="FILE.json")
    parser.add_argument(
        "--arms", nargs="+", default=[*ARMS, *TUNED], choices=[*ARMS, *TABLE_2], help="(default: those of make realm)"
    )
    parser.add_argument(
        "--table-2", dest="arms", action="store_const", const=TABLE_2, help="the runs of the paper's table 2"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="(default: those of the settings)")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side (default: 1)")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so many; the same command goes on")
    add_device(parser)
    options = parser.parse_args(arguments)
    for split in ("train", "dev"):
        path = options.questions / f"{split}.jsonl"
        check_readable(path, f"{path} is missing: --questions is the folder of train.jsonl and dev.jsonl")
    given = Given(
        options.questions, options.leads, options.work, options.out, options.settings, options.device,
        time.time() + options.seconds,
    )  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    sentences(given, lead_blocks(given.leads))  # once, before the processes
    return options, given


def main() -> None:
    options, given = read_arguments()
    seeds = options.seeds or json.loads(given.settings.read_text(encoding="utf-8"))["seeds"]
    done = run_all(given, [f"{name}-{seed}" for seed in seeds for name in options.arms], options.processes)
    report(given.out)
    if not done:
        raise TimeoutError("some runs are not done: the same command goes on with them")


if __name__ == "__main__":
    from realm_min.app.cli import status_of

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(status_of(main))
