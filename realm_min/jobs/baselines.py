"""What a retriever is compared with, over the same blocks: BM25, and a sentence encoder as it comes.

Both read "title. text" of each block, as the retriever's records have it, and neither is trained here.
"""

from __future__ import annotations

import hashlib
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files.hub import resolve_folder
from ..files.json_file import read_json_object
from ..interface.inputs import Inputs, checked_batch
from ..model.bert import bert
from ..search.mips import BlockIndex
from . import warm_start
from .embedding import Report
from .evaluation import Search
from .settings import silent

BM25 = "bm25"  # the name of a baseline that is no folder
AT_ONCE = 64  # texts embedded in one call
POOLING_FILE = "1_Pooling/config.json"  # of sentence-transformers


class Baseline(NamedTuple):
    search: Search
    identity: str  # two that rank alike have the same


def baseline(name: str, texts: list[str], device: torch.device, report: Report = silent) -> Baseline:
    """`bm25`, or the `sentence_encoder` of a folder or hub name."""
    return bm25(texts) if name == BM25 else sentence_encoder(name, texts, device, report)


def bm25(texts: list[str]) -> Baseline:
    """Lucene's BM25 (Robertson and Zaragoza 2009; k₁ = 1.5, b = 0.75) of lower-cased words of two letters and more.

    English stop words are left out, and words are not stemmed. Blocks of equal score stand by their number.

    Raises:
        ModuleNotFoundError: bm25s is not installed.
        ValueError: no block holds a word.
    """
    bm25s = import_module("bm25s")
    index = bm25s.BM25()

    def words(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)

    held = words(texts)
    if not any(held):
        raise ValueError(f"none of the {len(texts):,} blocks holds a word that {BM25} reads: index documents with text")
    index.index(held, show_progress=False)

    def search(questions: list[str], k: int) -> tuple[Tensor, Tensor]:
        found = [index.get_scores_from_ids(index.get_tokens_ids(asked)) for asked in words(questions)]
        scores = torch.from_numpy(np.array(found, dtype=np.float32).reshape(-1, len(texts)))  # [questions, blocks]
        best = scores.sort(dim=1, descending=True, stable=True)
        return best.values[:, :k], best.indices[:, :k]

    return Baseline(search, f"bm25s {version('bm25s')}")


def sentence_encoder(name: str, texts: list[str], device: torch.device, report: Report = silent) -> Baseline:
    """The cosine of the means of a BERT's last layer over all tokens (Reimers and Gurevych 2019, section 3).

    Args:
        name: any BERT's folder or hub name, as sentence-transformers/all-MiniLM-L6-v2.
        report: told how many texts are embedded.

    Raises:
        FileNotFoundError: the folder or a file in it is missing.
        ValueError: it holds no BERT, or one whose sentences are not means.
    """
    folder = resolve_folder(name, "config", "weights", "tokenizer")
    check_pooled_by_the_mean(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* has no pooler")  # which nothing here reads
        model = warm_start.embedder(folder).eval().to(device)
    tokenizer = warm_start.tokenizer(folder)

    def embed(texts: list[str], report: Report = silent) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # so that little is padded
        found = torch.empty(len(texts), model.config.hidden_size, device=device)
        for start in range(0, len(order), AT_ONCE):
            rows = order[start : start + AT_ONCE]
            found[rows] = sentence_means(model, tokenizer, [texts[i] for i in rows])
            report("Embedding blocks for the baseline", start + len(rows), len(order))
        return found

    index = BlockIndex(embed(texts, report))
    digest = hashlib.sha256(index.blocks.cpu().numpy().data).hexdigest()
    return Baseline(lambda questions, k: index.search(embed(questions), k), digest)


def sentence_means(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """The mean of the last layer over each text's tokens, of length 1: [texts, hidden]."""
    limit = model.config.max_position_embeddings
    read = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    inputs = Inputs(read["input_ids"], read["attention_mask"]).to(model.device)
    hidden = bert(model.p, model.config, checked_batch(model.config, inputs), "unpadded")[0].hidden
    total = hidden.sum(1)  # over the tokens of each text: padding is zero; its length makes no difference to a cosine
    return total / total.square().sum(1, keepdim=True).sqrt()


def check_pooled_by_the_mean(folder: Path) -> None:
    """Refuse what is no sentence encoder, or one that reads its sentences otherwise.

    Raises:
        ValueError: as said.
    """
    if not warm_start.is_bert(folder):
        raise ValueError(
            f"{folder} holds a REALM model, or no model: give the folder of a sentence encoder for --baseline; a REALM "
            "model is indexed with realm-min index, and named as --model"
        )
    path = folder / POOLING_FILE
    if path.is_file():
        found = read_json_object(path, "fetch it again").items()
        modes = {key: value for key, value in found if key.startswith("pooling_mode") and value}
        if modes not in ({"pooling_mode_mean_tokens": True}, {"pooling_mode": "mean"}):
            raise ValueError(f"{path} has {modes}: give an encoder that takes the mean of all tokens")
