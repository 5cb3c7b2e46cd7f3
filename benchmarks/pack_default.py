"""The file of the default model from what `train_default.py` learnt: embed every block, and pack.

    python benchmarks/pack_default.py --data FILE.npz --minilm FOLDER --questions FOLDER --out FOLDER [--weights FOLDER]

FOLDER of the weights holds the parts that `train_default.py --parts` wrote; OUT that `tune_default.py --free` made has
its weights already. Blocks are embedded some hundred at a time and kept, so that a run that was stopped goes on; on two
idle cores that takes a quarter of an hour. OUT/world.realm is the packed model (`files/packed.py`), which `shipped.py`
asks and calibrates. The rounding is fitted to the questions of training, written ones above all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import default_data
import numpy as np
import torch
from default_data import Data
from factbook_questions import factbook_questions
from train_default import block_rows, embed_rows, join_parts, lengths_of, new_models, portioned, read_weights

from realm_min.app import default_model
from realm_min.app.console import progress_report
from realm_min.config import RealmConfig
from realm_min.files.atomic import write_atomically
from realm_min.files.packed import pack
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import warm_start
from realm_min.text.corpus import MAX_WORDPIECES, Document, factbook_documents
from realm_min.text.leads import lead_documents
from realm_min.text.questions import read_questions

AT_ONCE = 64  # blocks
READ = 5  # blocks
COMMON_PIECES = 8_000  # of those that the corpora use hardly one is missing


def documents() -> list[Document]:
    """The leads, then the Factbook: the order of `default_data.py`'s blocks."""
    return [*lead_documents(), *factbook_documents()]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="what default_data.py wrote")
    parser.add_argument("--minilm", type=Path, required=True, metavar="FOLDER", help="of all-MiniLM-L6-v2")
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="the parts of train_default.py")
    parser.add_argument("--questions", type=Path, required=True, metavar="FOLDER", help="train.jsonl of the leads")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "reader.safetensors").is_file():
        if given.weights is None:
            parser.error(f"{out} has no reader.safetensors: give --weights, the parts that train_default.py wrote")
        join_parts(given.weights, given.minilm, out)
    with progress_report() as report:
        blocks = embed_blocks(default_data.load(given.data), given.minilm, out, report)
        path = out / "world.realm"
        if not path.is_file():
            extra = [question.question for question in factbook_questions(0)[:4000]]
            extra += [question.question for question in read_questions(given.questions / "train.jsonl")]
            extra += [question.question for _, question in default_data.written_questions()]
            pack(
                assembled(given.minilm, out, blocks), warm_start.tokenizer(None), documents(), path,
                corpus=" ".join(name() for name in default_model.CORPORA.values()), extra_texts=extra,
                common_pieces=COMMON_PIECES,
            )  # fmt: skip


if __name__ == "__main__":
    main()
