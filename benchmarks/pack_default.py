"""The file of the default model from what `train_default.py` learnt: embed every block, pack, answer dev, calibrate.

    python benchmarks/pack_default.py --data FILE.npz --minilm FOLDER --weights FOLDER --out FOLDER

FOLDER of the weights holds the parts that `train_default.py --parts` wrote. Blocks are embedded some hundred at a time
and kept, so that a run that was stopped goes on; on two cores that takes a quarter of an hour. What comes out:

    world.realm           the packed model: `files/packed.py`
    dev.csv               every development question, answered by the packed model from all blocks; and the questions of
                          unanswerable.jsonl, which no block answers
    calibration.json      fitted to those of dev: `jobs/calibration.py`
    reliability.csv .png  its bins, of five fits that each left a fifth of the questions out
    figures.json          the figures, with their intervals
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import default_data
import numpy as np
import torch
from default_data import Data
from factbook_questions import factbook_questions, factbook_slice
from leads import PACKAGE, VERSION, lead_documents
from rich.console import Console
from train_default import block_rows, embed_rows, join_parts, lengths_of, new_models, portioned, read_weights

from realm_min.app import default_model
from realm_min.app.console import progress_report
from realm_min.app.plots import plot_reliability
from realm_min.config import RealmConfig
from realm_min.files.atomic import write_atomically
from realm_min.files.packed import load_packed, pack
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import calibration, warm_start
from realm_min.jobs.evaluation import has_answer_words, official_exact_match
from realm_min.jobs.statistics import wilson
from realm_min.text.corpus import MAX_WORDPIECES, Document, cut_blocks, factbook_documents, record
from realm_min.text.questions import Question, read_questions
from realm_min.text.retriever import RealmRetriever

AT_ONCE = 64  # blocks
READ, DEPTH = 5, 20  # blocks read, and searched for
FOLDS = 5


def documents() -> list[Document]:
    """The leads, then the Factbook: the order of `default_data.py`'s blocks."""
    return [*lead_documents(), *factbook_documents()]


def corpus_name() -> str:
    return f"{PACKAGE.replace('_', '-')}=={VERSION} {default_model.factbook_name()}"


def embed_blocks(data: Data, minilm: Path, out: Path, report: Any) -> torch.Tensor:
    """Embed_doc of every block [blocks, proj], kept in OUT/blocks.npy as it grows."""
    path = out / "blocks.npy"
    lengths = lengths_of(data.texts)
    count = len(lengths)
    found = np.load(path) if path.is_file() else np.full((count, 128), np.nan, np.float32)
    embedder, _ = new_models(minilm, 0, torch.device("cpu"))
    read_weights(embedder, out / "embedder.safetensors")
    order = np.lexsort((lengths, np.arange(count) >= data.num_leads))  # the leads first
    left = order[np.isnan(found[order, 0])]
    for start in range(0, len(left), AT_ONCE):
        some = left[start : start + AT_ONCE]
        rows = portioned(*block_rows(data, some), MAX_WORDPIECES)
        found[some] = embed_rows(embedder, rows, torch.device("cpu"), False)[0].numpy()
        report("Embedding blocks", count - len(left) + start + len(some), count)
        if start // AT_ONCE % 4 == 3 or start + AT_ONCE >= len(left):
            with write_atomically(path) as temporary, open(temporary, "wb") as file:
                np.save(file, found)
    return torch.from_numpy(found.astype(np.float32))


def assembled(minilm: Path, out: Path, blocks: torch.Tensor) -> RealmForOpenQA:
    """The model that answers from all blocks, without its retriever."""
    embedder, reader = new_models(minilm, 0, torch.device("cpu"))
    read_weights(embedder, out / "embedder.safetensors")
    read_weights(reader, out / "reader.safetensors")
    values = embedder.config.to_dict() | {
        "num_block_records": len(blocks), "reader_beam_size": READ, "searcher_beam_size": 100,
    }  # fmt: skip
    model = RealmForOpenQA(RealmConfig.from_dict(values), seed=0)
    for name, part in (("embedder", embedder), ("reader", reader)):
        for key, tensor in part.p.items():
            model.parts[name].p[key].copy_(tensor)
    model.block_emb = blocks
    return model.eval()


def asked(questions: Path, webquestions: Path) -> dict[str, list[Question]]:
    """The development questions of the leads, those that the Factbook can answer, and those that nothing answers."""
    blocks = list(cut_blocks(factbook_documents(), warm_start.tokenizer(None)))
    lines = (Path(__file__).parent / "unanswerable.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "leads": list(read_questions(questions / "dev.jsonl")),
        "factbook": factbook_slice(read_questions(webquestions / "webquestions.dev.jsonl"), blocks),
        "unanswerable": [Question(json.loads(line)["question"], []) for line in lines],
    }


def answer_all(model: RealmForOpenQA, questions: dict[str, list[Question]], report: Any) -> Iterator[dict[str, Any]]:
    """A row for each question: hits among the first blocks, the answer, whether it is right, what calibrates it."""
    total, done = sum(map(len, questions.values())), 0
    for kind, some in questions.items():
        for question in some:
            (scores,), (ids,) = model.retrieve([question.question], DEPTH)
            hits = [has_answer_words(model.retriever.text(i), question.answers) for i in ids.tolist()]
            found = model.answer_from(question.question, scores[:READ], ids[:READ])
            right = bool(question.answers) and official_exact_match(found.text, question.answers)
            alone = None
            if any(hits):
                first = hits.index(True)
                given = model.answer_from(question.question, scores[first : first + 1], ids[first : first + 1])
                alone = official_exact_match(given.text, question.answers)
            done += 1
            report("Answering", done, total)
            yield {
                "kind": kind, "question": question.question, "answer": found.text, "title": found.blocks[
                    found.block_rank].title, **{f"r{k}": int(any(hits[:k])) for k in (1, 5, 20)}, "right": int(right),
                "alone": "" if alone is None else int(alone), "probability": found.probability,
                "marginal_probability": found.marginal_probability, "score": found.score,
            }  # fmt: skip


def calibrated(rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """Fit to all dev questions and write; what is reported is of fits that left the question out."""
    dev = [row for row in rows if row["kind"] != "unanswerable"]

    def fitted(some: list[dict[str, Any]]) -> calibration.Calibration:
        return calibration.fit(*([row[name] for row in some] for name in ("probability", "score", "right")))

    final = fitted(dev)
    calibration.write_calibration(final, out)
    names = sorted({row["question"] for row in dev})  # a question that is of both kinds is left out of both
    order = np.random.default_rng(0).permutation(len(names))
    fold = {names[i]: place % FOLDS for place, i in enumerate(order)}
    confidences, kept = [], []
    by_fold = [fitted([row for row in dev if fold[row["question"]] != left]) for left in range(FOLDS)]
    for row in dev:
        of_fold = by_fold[fold[row["question"]]]
        confidences.append(of_fold.confidence(row["probability"], row["score"]))
        kept.append(of_fold.found(row["probability"], row["score"]))
    right = np.array([row["right"] for row in dev], bool)
    found = calibration.bins(confidences, right)
    plot_reliability(found, out / "reliability.png")
    with write_atomically(out / "reliability.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["confidence", "right", "answers"])
        writer.writerows([round(one.confidence, 4), round(one.right, 4), one.count]
                         for one in found)  # fmt: skip
    sure = np.array(confidences) >= 0.9
    nothing = [row for row in rows if row["kind"] == "unanswerable"]
    refused = [not final.found(row["probability"], row["score"]) for row in nothing]
    return {
        "calibration": final._asdict(),
        "calibration_error": calibration.calibration_error(confidences, right),
        "calibration_error_of_probability": calibration.calibration_error([row["probability"] for row in dev], right),
        "at_least_0.9": int(sure.sum()), "right_at_least_0.9": float(right[sure].mean()) if sure.any() else None,
        "right_lost": float((right & ~np.array(kept)).sum() / right.sum()),
        "unanswerable_refused": float(np.mean(refused)), "unanswerable": len(refused),
    }  # fmt: skip


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with Wilson's intervals, per kind of question."""
    found: dict[str, Any] = {}
    for kind in ("leads", "factbook"):
        for name in ("r1", "r5", "r20", "right", "alone"):
            values = [row[name] for row in rows if row["kind"] == kind and row[name] != ""]
            mean = float(np.mean(values))
            low, high = wilson(mean, len(values))
            found[f"{kind} {name}"] = f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] n={len(values)}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="what default_data.py wrote")
    parser.add_argument("--minilm", type=Path, required=True, metavar="FOLDER", help="of all-MiniLM-L6-v2")
    parser.add_argument("--weights", type=Path, required=True, metavar="FOLDER", help="the parts of train_default.py")
    parser.add_argument("--questions", type=Path, required=True, metavar="FOLDER", help="dev.jsonl of the leads")
    parser.add_argument("--webquestions", type=Path, required=True, metavar="FOLDER", help="webquestions.dev.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "reader.safetensors").is_file():
        join_parts(given.weights, given.minilm, out)
    with progress_report() as report:
        blocks = embed_blocks(default_data.load(given.data), given.minilm, out, report)
        path = out / "world.realm"
        if not path.is_file():
            extra = [question.question for question in factbook_questions(0)[:4000]]
            extra += [question.question for question in read_questions(given.questions / "train.jsonl")]
            pack(
                assembled(given.minilm, out, blocks), warm_start.tokenizer(None), documents(), path,
                corpus=corpus_name(), extra_texts=extra,
            )  # fmt: skip
        model, tokenizer, _ = load_packed(path)
        records = [record(block) for block in cut_blocks(documents(), tokenizer)]
        array = np.empty(len(records), dtype=object)
        array[:] = records
        model.retriever = RealmRetriever(array, tokenizer)
        rows = list(answer_all(model, asked(given.questions, given.webquestions), report))
    with write_atomically(out / "dev.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    found = figures(rows) | calibrated(rows, out)
    (out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    Console().print_json(data=found)


if __name__ == "__main__":
    main()
