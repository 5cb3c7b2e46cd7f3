"""What each stage of REALM's training brings on the Factbook: `make ablation`, after `make train-demo`.

Retrievers: BM25 (bm25s) and all-MiniLM-L6-v2 as it comes (mean of its last layer, cosine), which see no training here;
then this project's after each stage. Its blocks are embedded after ICT and stay so. R@k is the share of questions with
an answer among the first k blocks, by ORQA's normalised words. EM, likewise normalised, is of one reader for all rows,
the fine-tuned one, over the first 5 blocks; its spans are ranked with f(x, z) where the retriever is ours, and without
a retrieval score for the two others.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import bm25s
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from realm_min import RealmForOpenQA, RealmRetriever, indexing
from realm_min import bert as trunk
from realm_min.cli import progress_report
from realm_min.corpus import Block
from realm_min.evaluation import Question, has_answer, official_exact_match, read_questions
from realm_min.files import write_atomically
from realm_min.mips import BlockIndex
from realm_min.packed import load_packed
from realm_min.training import demo, warm_start
from realm_min.training.factbook_questions import factbook_slice

KS = (1, 5, 20)
BATCH = 64

# Questions to the scores and numbers of their 20 best blocks, [questions, 20].
Retriever = Callable[[list[str]], tuple[Tensor, Tensor]]


def bm25(blocks: list[Block]) -> Retriever:
    index = bm25s.BM25()
    tokens = bm25s.tokenize([f"{title}. {text}" for title, text in blocks], stopwords="en", show_progress=False)
    index.index(tokens, show_progress=False)

    def retrieve(questions: list[str]) -> tuple[Tensor, Tensor]:
        asked = bm25s.tokenize(questions, stopwords="en", show_progress=False)
        ids, _ = index.retrieve(asked, k=max(KS), show_progress=False)
        return torch.zeros(ids.shape), torch.as_tensor(ids.astype("int64"))

    return retrieve


def zero_shot(blocks: list[Block]) -> Retriever:
    """MiniLM's own sentence embedding: the normalised mean of the last layer."""
    model, tokenizer = warm_start.embedder(demo.minilm()).eval(), warm_start.tokenizer(demo.minilm())

    def embed(texts: list[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.empty(len(texts), model.config.hidden_size)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            inputs = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
            checked = trunk.check_inputs(model.config, inputs.input_ids, inputs.attention_mask, None, None, None)
            hidden = trunk.bert(model.p, model.config, checked, read="unpadded").hidden  # [rows, tokens, hidden]
            mean = hidden.sum(1) / inputs.attention_mask.sum(1, keepdim=True)
            found[rows] = mean / mean.norm(dim=1, keepdim=True)
        return found

    index = BlockIndex(embed([f"{title}. {text}" for title, text in blocks]))

    def retrieve(questions: list[str]) -> tuple[Tensor, Tensor]:
        scores, ids = index.search(embed(questions), max(KS))
        return torch.zeros_like(scores), ids

    return retrieve


def stage(folder: Path, index: BlockIndex) -> Retriever:
    """The retriever that a stage of the training left."""
    model, tokenizer = warm_start.embedder(folder).eval(), warm_start.tokenizer(None)

    def retrieve(questions: list[str]) -> tuple[Tensor, Tensor]:
        inputs = tokenizer(questions, padding=True, return_tensors="pt")
        return index.search(model(**inputs, return_dict=True).projected_score, max(KS))

    return retrieve


def measure(retrieve: Retriever, reader: RealmForOpenQA, blocks: list[Block], questions: list[Question]) -> list[float]:
    """R@k for each of KS, and EM; per cent."""
    scores, ids = retrieve([question.question for question in questions])
    hits = torch.tensor(
        [
            [has_answer(f"{blocks[i].title}. {blocks[i].text}", question.answers) for i in row]
            for question, row in zip(questions, ids.tolist(), strict=True)
        ]
    )
    beam = reader.config.reader_beam_size
    right = [
        official_exact_match(reader.answer_from(question.question, s[:beam], z[:beam]).text, question.answers)
        for question, s, z in zip(questions, scores, ids, strict=True)
    ]
    return [100 * float(hits[:, :k].any(1).float().mean()) for k in KS] + [100 * sum(right) / len(right)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="what make train-demo wrote")
    parser.add_argument("--questions", type=Path, nargs="+", required=True, metavar="FILE.jsonl", help="WebQuestions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "ablation.csv", metavar="FILE.csv")
    given = parser.parse_args()

    with progress_report() as report:
        demo.train(given.work, until="pretrain", report=report)
    torch.set_float32_matmul_precision("highest")  # as everybody's answers are computed
    blocks = indexing.read_blocks(given.work / "model")
    final = RealmForOpenQA.from_pretrained(
        given.work / "model", retriever=RealmRetriever.from_pretrained(given.work / "model")
    )
    packed, tokenizer, _ = load_packed(indexing.DEFAULT_MODEL)
    packed.retriever = RealmRetriever(final.retriever.block_records, tokenizer)
    slices = {path.stem.split(".")[-1]: factbook_slice(read_questions(path), blocks) for path in given.questions}
    rows: list[tuple[str, Callable[[], Retriever], RealmForOpenQA]] = [
        ("BM25", lambda: bm25(blocks), final),
        ("MiniLM zero-shot", lambda: zero_shot(blocks), final),
        ("ICT", lambda: stage(given.work / "ict", final.index), final),
        ("ICT + REALM", lambda: stage(given.work / "pretrain", final.index), final),
        ("ICT + fine-tuning", lambda: lambda questions: final.retrieve(questions, max(KS)), final),
        ("the same, packed to ship", lambda: lambda questions: packed.retrieve(questions, max(KS)), packed),
    ]
    names = [*(f"R@{k}" for k in KS), "EM"]
    table = Table("retriever", "split", "n", *names, title="WebQuestions, Factbook slice (%)")
    with write_atomically(given.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["retriever", "split", "questions", *names])
        for name, make, reader in rows:
            retrieve = make()
            for split, questions in slices.items():
                found = [f"{value:.1f}" for value in measure(retrieve, reader, blocks, questions)]
                writer.writerow([name, split, len(questions), *found])
                table.add_row(name, split, str(len(questions)), *found)
    Console().print(table)


if __name__ == "__main__":
    main()
