"""What each stage of REALM's training brings on the Factbook: `make ablation`, after `make train-demo`.

Retrievers: BM25 (bm25s) and all-MiniLM-L6-v2 as it comes (mean of its last layer, cosine), which see no training here;
then this project's after each stage. Its blocks are embedded after ICT and stay so. R@k is the share of questions with
an answer among the first k blocks, by ORQA's normalised words. EM, likewise normalised, is of one reader for all rows,
the fine-tuned one, over the first 5 blocks; its spans are ranked with f(x, z) where the retriever is ours, and without
a retrieval score for the two others. The questions that fine-tuning learns from are many more: on them the retrievers
before it are compared too, without EM, since the reader has seen their answers.

The row "ICT + REALM" learns by REALM's gradient from questions made by templates, with no null document, nothing barred
and the blocks' embeddings as they are: not the paper's pre-training on natural text (docs/evidence.md).

REALM's retriever learns from an encoder which blocks hold a fact. How well that can tell them apart is in a second
table, in CSV beside the first: how often, of 5 blocks that the retriever after ICT finds, p(y|z,x) is highest for the
one that holds the hidden fact.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import train_demo as demo
from factbook_questions import factbook_questions, factbook_slice
from rich.console import Console
from rich.table import Table
from torch import Tensor

from realm_min import RealmForOpenQA, RealmRetriever
from realm_min.app import default_model, ready_folder
from realm_min.app.cli import status_of
from realm_min.app.console import progress_report
from realm_min.files.atomic import write_atomically
from realm_min.files.packed import load_packed
from realm_min.jobs import loop, preparation, warm_start
from realm_min.jobs.baselines import BM25, baseline
from realm_min.jobs.evaluation import Question, has_answer_words, official_exact_match
from realm_min.learn import pretraining
from realm_min.learn.masking import salient_span
from realm_min.learn.pretraining import Example
from realm_min.search.mips import BlockIndex
from realm_min.text.corpus import Block
from realm_min.text.questions import read_questions
from realm_min.text.sequences import join, joint_sequences, pad

KS = (1, 5, 20)
FACTS, CHOICES = 100, 5

# Questions to the scores and numbers of their 20 best blocks, [questions, 20].
Retriever = Callable[[list[str]], tuple[Tensor, Tensor]]


def untaught(name: str, blocks: list[Block]) -> Retriever:
    """BM25, or MiniLM's own sentence embedding. What it gives for a score is none of the reader's."""
    texts = [f"{title}. {text}" for title, text in blocks]
    search = baseline(name, texts, torch.device("cpu")).search

    def retrieve(questions: list[str]) -> tuple[Tensor, Tensor]:
        scores, ids = search(questions, max(KS))
        return torch.zeros_like(scores), ids

    return retrieve


def stage(folder: Path, index: BlockIndex) -> Retriever:
    """The retriever that a stage of the training left."""
    model, tokenizer = warm_start.embedder(folder).eval(), warm_start.tokenizer(None)

    def retrieve(questions: list[str]) -> tuple[Tensor, Tensor]:
        inputs = tokenizer(questions, padding=True, return_tensors="pt")
        return index.search(model(**inputs, return_dict=True).projected_score, max(KS))

    return retrieve


def hidden_facts(count: int, index: BlockIndex, blocks: list[Block], ict: Path) -> list[tuple[Example, list[int]]]:
    """Facts that no stage learns from, each with the numbers of 5 blocks: the best that holds it, then others.

    They are among the first 20 of `ict`'s retriever; the block that holds a fact is of its country's page and has the
    answer in it. Facts of which it finds none are left out.
    """
    tokenizer, embedder = warm_start.tokenizer(None), warm_start.embedder(ict).eval()
    choose = partial(salient_span, find=demo.whole)
    texts = preparation.with_something_to_mask(demo.hidden_facts(), tokenizer, choose)
    pages = {question.question.rstrip("?"): question.title for question in factbook_questions(demo.SEED)}
    learnt = set()
    for settings in (demo.READ, demo.GROUND, demo.PRETRAIN):
        learnt |= {*loop.batch(0, settings.steps * settings.batch_size, len(texts), settings.seed)}
    rng, found = np.random.default_rng(demo.SEED), []
    for i in rng.permutation([i for i in range(len(texts)) if i not in learnt]):
        examples = pretraining.hide([texts[i]], tokenizer, choose, [rng])
        inputs = pad([join(tokenizer, examples[0].ids)], embedder)
        _, (ids,) = index.search(embedder(**inputs, return_dict=True).projected_score, max(KS))
        holds = [
            blocks[z].title == pages[texts[i].title] and has_answer_words(blocks[z].text, [texts[i].text])
            for z in ids.tolist()
        ]
        held, others = (ids[torch.tensor(holds) == wanted].tolist() for wanted in (True, False))
        if held and len(others) >= CHOICES - 1:
            found.append((examples[0], [held[0], *others[: CHOICES - 1]]))
        if len(found) == count:
            break
    return found


def told_apart(folder: Path, facts: list[tuple[Example, list[int]]], blocks: list[Block]) -> float:
    """How often a stage's encoder gives the first of a fact's blocks the highest p(y|z,x), per cent."""
    tokenizer, encoder = warm_start.tokenizer(None), warm_start.knowledge_encoder(folder).eval()
    right = []
    for example, ids in facts:
        candidates = [list(range(1, 1 + len(ids)))]
        evidence = preparation.encode_evidence([blocks[z] for z in ids], tokenizer)
        positions = encoder.config.max_position_embeddings
        pairs = joint_sequences(tokenizer, [example.ids], candidates, evidence, demo.PRETRAIN.max_block, positions)
        joint = pad(pairs, encoder)
        labels = pretraining.labels_of([example], joint["input_ids"].shape[1])
        log_likelihood, _ = encoder.masked_log_likelihood(**joint, labels=labels.repeat_interleave(len(ids), 0))
        right.append(int(log_likelihood.sum(1).argmax()) == 0)
    return 100 * sum(right) / len(right)


def unpack(file: Path, block_records: Any) -> RealmForOpenQA:
    model, tokenizer, _ = load_packed(file)
    model.retriever = RealmRetriever(block_records, tokenizer)
    return model


def measure(
    retrieve: Retriever, reader: RealmForOpenQA | None, blocks: list[Block], questions: list[Question]
) -> list[float]:
    """R@k for each of KS, and EM if there is a reader; per cent."""
    scores, ids = retrieve([question.question for question in questions])
    hits = torch.tensor(
        [
            [has_answer_words(f"{blocks[i].title}. {blocks[i].text}", question.answers) for i in row]
            for question, row in zip(questions, ids.tolist(), strict=True)
        ]
    )
    recall = [100 * float(hits[:, :k].any(1).float().mean()) for k in KS]
    if reader is None:
        return recall
    beam = reader.config.reader_beam_size
    right = [
        official_exact_match(reader.answer_from(question.question, s[:beam], z[:beam]).text, question.answers)
        for question, s, z in zip(questions, scores, ids, strict=True)
    ]
    return [*recall, 100 * sum(right) / len(right)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="what make train-demo wrote")
    parser.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE.jsonl", help="WebQuestions")
    parser.add_argument(
        "--training", type=Path, required=True, metavar="FILE.jsonl", help="what fine-tuning learnt from"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "ablation.csv", metavar="FILE.csv")
    given = parser.parse_args()

    if not (given.work / "pack.done").is_file():
        raise FileNotFoundError(f"{given.work} holds no training that is done: run make train-demo first")
    asked = {path.stem.split(".")[-1]: list(read_questions(path)) for path in given.questions}
    learnt = list(read_questions(given.training))
    with progress_report() as report:
        demo.train(given.work, until="pretrain", report=report)
    torch.set_float32_matmul_precision("highest")  # as everybody's answers are computed
    blocks = ready_folder.read_blocks(given.work / "model")
    final = RealmForOpenQA.from_pretrained(
        given.work / "model", retriever=RealmRetriever.from_pretrained(given.work / "model")
    )
    packed = unpack(given.work / default_model.PACKED_FILE.name, final.retriever.block_records)
    slices = {split: factbook_slice(questions, blocks) for split, questions in asked.items()}
    training = {"train": factbook_slice(learnt, blocks)}
    untuned: list[tuple[str, Callable[[], Retriever]]] = [
        ("BM25", lambda: untaught(BM25, blocks)),
        ("MiniLM zero-shot", lambda: untaught(str(demo.minilm()), blocks)),
        ("ICT", lambda: stage(given.work / "ict", final.index)),
        ("ICT + REALM", lambda: stage(given.work / "pretrain", final.index)),
    ]
    tuned = [("ICT + fine-tuning", final), ("the same, packed", packed)]
    names = [*(f"R@{k}" for k in KS), "EM"]
    table = Table("retriever", "split", "n", *names, title="WebQuestions, Factbook slice (%)")
    with write_atomically(given.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["retriever", "split", "questions", *names])

        def add(
            name: str, retrieve: Retriever, reader: RealmForOpenQA | None, slices: dict[str, list[Question]]
        ) -> None:
            for split, questions in slices.items():
                found = [f"{value:.1f}" for value in measure(retrieve, reader, blocks, questions)]
                found += [""] * (len(names) - len(found))
                writer.writerow([name, split, len(questions), *found])
                table.add_row(name, split, str(len(questions)), *found)

        for name, make in untuned:
            retrieve = make()
            add(name, retrieve, final, slices)
            add(name, retrieve, None, training)
        for name, model in tuned:
            add(name, lambda questions, model=model: model.retrieve(questions, max(KS)), model, slices)
    Console().print(table)

    table = Table("encoder after", "facts", "finds its block (%)", title="Hidden facts, one of 5 blocks holds each")
    facts = hidden_facts(FACTS, final.index, blocks, given.work / "ict")
    out = given.out.with_stem(f"{given.out.stem}-encoders")
    with write_atomically(out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["encoder", "facts", "finds its block"])
        for encoder in ("mlm", "read", "copy", "ground", "pretrain"):
            row = [encoder, str(len(facts)), f"{told_apart(given.work / encoder, facts, blocks):.0f}"]
            writer.writerow(row)
            table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    sys.exit(status_of(main))
