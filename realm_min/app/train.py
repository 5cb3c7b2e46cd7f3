"""`realm-min ict`, `mlm`, `pretrain` and `finetune`: from files and options to a run."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..config import RealmConfig
from ..interface.open_qa import RealmForOpenQA
from ..jobs import loop, runs, warm_start
from ..jobs.embedding import Report, embed_on_ranks
from ..jobs.preparation import question_pieces
from ..jobs.settings import Finetune, Ict, Mlm, Pretrain, TrainingRun, settings_from
from ..ranks.devices import chosen_device
from ..ranks.distributed import world
from ..text.corpus import MAX_WORDPIECES, Block, Source, record
from ..text.documents import read_documents
from ..text.questions import read_questions, training_rows
from ..text.retriever import RealmRetriever
from . import ready_folder
from .console import progress_report, skipped_named
from .merging import NO_TEXT, cut_corpus
from .plots import plot_training
from .printable import remark
from .training_arguments import is_indexed


def ict(given: argparse.Namespace) -> None:
    """Run `realm-min ict`."""
    embedder = warm_start.embedder(given.model, given.seed, **dropout(given))
    run_warm_up(given, runs.ict, embedder, Ict(), given.max_evidence)
    announce(f"Ready: realm-min pretrain {given.corpus} --model {given.out} --out FOLDER")


def mlm(given: argparse.Namespace) -> None:
    """Run `realm-min mlm`."""
    encoder = warm_start.knowledge_encoder(given.model, given.seed, **dropout(given))
    runs.check_mlm(settings_from(given, Mlm()), encoder)  # before a corpus is read
    run_warm_up(given, runs.mlm, encoder, Mlm(), max(given.max_wordpieces, given.evidence))
    announce(f"Ready: {given.out}")


def pretrain(given: argparse.Namespace) -> None:
    """Run `realm-min pretrain`."""
    device = chosen_device(given.device)
    embedder = warm_start.embedder(given.model, given.seed, **dropout(given)).to(device)
    knowledge_encoder = warm_start.knowledge_encoder(given.model, given.seed, **dropout(given)).to(device)
    tokenizer = warm_start.tokenizer(given.model)
    with progress_report() as report:
        limit = min(given.max_block, embedder.config.max_position_embeddings)
        blocks = read_blocks(given.corpus, tokenizer, limit, report)
        run = replace(run_from(given, report), refresh_ranks=given.refresh_ranks)
        runs.pretrain(run, blocks, embedder, knowledge_encoder, tokenizer, settings_from(given, Pretrain()))
    if importlib.util.find_spec("matplotlib"):
        drawn = world().on_first(lambda: plot_training(given.out))
        announce(f"The course of the training is drawn in {drawn}")
    else:
        announce('No plot: it needs matplotlib, pip install "realm-min[plot]"')
    announce(f"Ready: realm-min finetune QUESTIONS.jsonl {given.corpus} --model {given.out} --out FOLDER")


def finetune(given: argparse.Namespace) -> None:
    """Run `realm-min finetune`."""
    lines, questions = zip(*training_rows(given.questions), strict=True)
    device = chosen_device(given.device)
    dev = list(read_questions(given.dev)) if given.dev else []
    values = {**dropout(given), "searcher_beam_size": given.searcher_beam_size}
    values |= {"reader_beam_size": given.reader_beam_size}
    values = {name: value for name, value in values.items() if value is not None}
    ready, named = Path(given.corpus), [f"{given.questions} line {line}" for line in lines]
    with progress_report() as report:
        if is_indexed(given.corpus):
            blocks = ready_folder.read_blocks(ready)
            sources = ready_folder.read_sources_of(ready, len(blocks))
            retriever = RealmRetriever.from_pretrained(ready)
            question_pieces(questions, retriever.tokenizer, named)
            model = RealmForOpenQA.from_pretrained(ready, retriever=retriever, sharded=True, **values).to(device)
        else:
            tokenizer = warm_start.tokenizer(given.model)
            question_pieces(questions, tokenizer, named)  # before a corpus is embedded
            blocks, sources = read_cut(given.corpus, tokenizer, MAX_WORDPIECES, report)
            model = new_model(given.model, blocks, tokenizer, given.seed, report, device, **values)
        run = replace(run_from(given, report), evaluate_every=given.evaluate_every, refresh_ranks=given.refresh_ranks)
        runs.finetune(run, model, questions, settings_from(given, Finetune()), blocks=blocks, dev=dev)
    folder = given.out / "model"

    def write() -> None:
        of_model = model, model.retriever.tokenizer, MAX_WORDPIECES
        ready_folder.write_ready(folder, blocks, model.block_emb, *of_model, sources=sources)

    with loop.only_job(given.out):
        world().on_first(write)
    announce(f'Ready: realm-min ask --model "{folder}"')


def new_model(
    folder: str | os.PathLike | None,
    blocks: list[Block],
    tokenizer: Any,
    seed: int = 0,
    report: Callable[..., None] = lambda stage, done, total, note="": None,
    device: torch.device | str = "cpu",
    **values: Any,
) -> RealmForOpenQA:
    """A model to fine-tune: embedder and reader as `warm_start` takes them from `folder`, blocks embedded.

    Args:
        device: of the model, and where the blocks are embedded.
        values: configuration values to replace; beams are cut to the number of blocks.
    """
    embedder = warm_start.embedder(folder, seed, **values).to(device)
    reader = warm_start.reader(folder, seed, **values)
    sizes = {
        "num_block_records": len(blocks),
        "searcher_beam_size": min(reader.config.searcher_beam_size, len(blocks)),
        "reader_beam_size": min(reader.config.reader_beam_size, len(blocks)),
    }
    config = RealmConfig.from_dict(reader.config.to_dict() | sizes)
    retriever = RealmRetriever([record(block) for block in blocks], tokenizer)
    model = RealmForOpenQA(config, retriever=retriever, initialize=False)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        report("Embedding blocks", done, len(blocks))

    tensors = {f"embedder.{key}": tensor for key, tensor in embedder.state_dict().items()}
    tensors |= {f"reader.{key}": tensor for key, tensor in reader.state_dict().items()}
    embeddings = embed_on_ranks(embedder.eval(), tokenizer, blocks, advance)
    model.load_state_dict(tensors | {"block_emb": embeddings})
    return model.to(device)


def dropout(options: argparse.Namespace) -> dict[str, float]:
    """Configuration values of --dropout."""
    return {"hidden_dropout_prob": options.dropout, "attention_probs_dropout_prob": options.dropout}


def run_warm_up(
    given: argparse.Namespace, warm_up: Callable[..., Path], model: Any, defaults: NamedTuple, max_wordpieces: int
) -> None:
    """Run `warm_up`, of a job that trains one model on the blocks of a corpus, with the options given."""
    device, tokenizer = chosen_device(given.device), warm_start.tokenizer(given.model)
    with progress_report() as report:
        blocks = read_blocks(given.corpus, tokenizer, max_wordpieces, report)
        warm_up(run_from(given, report), blocks, model.to(device), tokenizer, settings_from(given, defaults))


def run_from(given: argparse.Namespace, report: Report) -> TrainingRun:
    """The run that the options of every command that trains say."""
    return TrainingRun(given.out, resume=given.resume, save_every=given.save_every, report=report, remark=remark)


def announce(text: str) -> None:
    """Say something on the standard error, on rank 0."""
    if world().is_first:
        remark(text)


def read_blocks(corpus: str, tokenizer: Any, max_wordpieces: int, report: Callable[..., None]) -> list[Block]:
    """The blocks of a corpus; reading and cutting are reported.

    Raises:
        ValueError: the corpus has no text, or cannot be read.
    """
    return read_cut(corpus, tokenizer, max_wordpieces, report)[0]


def read_cut(
    corpus: str, tokenizer: Any, max_wordpieces: int, report: Callable[..., None]
) -> tuple[list[Block], list[Source]]:
    """As `read_blocks`, and the blocks' sources."""
    with skipped_named() as skip:
        cut = cut_corpus(read_documents(corpus, skip), tokenizer, max_wordpieces, report)
    if not cut:
        raise ValueError(NO_TEXT)
    return [block for block, _ in cut], [source for _, source in cut]
