"""Wordpieces to what the models read as they learn: "[CLS] x [SEP]" and "[CLS] x [SEP] z [SEP]", side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .corpus import Block

Pieces = list[tuple[int, int]]  # (id, type) of each token


def join(tokenizer: Any, first: Iterable[int], second: Iterable[int] | None = None) -> Pieces:
    """join_BERT (REALM, section 3.2): (id, type) of "[CLS] first [SEP]" or "[CLS] first [SEP] second [SEP]"."""
    of_first = [(token, 0) for token in (tokenizer.cls_token_id, *first, tokenizer.sep_token_id)]
    return of_first if second is None else [*of_first, *((token, 1) for token in (*second, tokenizer.sep_token_id))]


def pad(sequences: list[Pieces], model: Any) -> dict[str, Tensor]:
    """`input_ids`, `token_type_ids` and `attention_mask` [sequences, tokens] for `model`."""
    tokens = max(map(len, sequences))
    padded = torch.full((len(sequences), tokens, 3), 0)
    padded[:, :, 0] = model.config.pad_token_id
    for row, values in zip(padded, sequences, strict=True):
        row[: len(values)] = torch.tensor([(token, kind, 1) for token, kind in values])
    ids, types, attention = padded.to(model.device).unbind(2)
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": attention}


def document_sequences(tokenizer: Any, evidence: list[Block], max_wordpieces: int) -> list[Pieces]:
    """What Embed_doc reads, "[CLS] title [SEP] text [SEP]", of the null document "[CLS] [SEP] [SEP]" and each block."""
    null = join(tokenizer, (), ())
    if not evidence:
        return [null]
    encoded = tokenizer(
        [block.title for block in evidence], [block.text for block in evidence], truncation="only_second",
        max_length=max_wordpieces,
    )  # fmt: skip
    pairs = zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)
    return [null, *(list(zip(ids, types, strict=True)) for ids, types in pairs)]


def joint_sequences(
    tokenizer: Any,
    texts: list[list[int]],
    candidates: list[list[int]],
    evidence: list[Block],
    max_block: int,
    positions: int,
) -> list[Pieces]:
    """What the knowledge-augmented encoder reads, "[CLS] x [SEP] title. text [SEP]" for each candidate of each text.

    Args:
        texts: ids without special tokens.
        candidates: [batch, candidates], 0 for the null document, i for evidence[i - 1].
        max_block: tokens that evidence has at most, with its special ones.
        positions: tokens that a sequence has at most; the evidence is cut.
    """
    encoded = tokenizer([f"{block.title}. {block.text}" for block in evidence], add_special_tokens=False)
    documents = [[], *(ids[: max_block - 3] for ids in encoded["input_ids"])]
    sequences = [
        join(tokenizer, text, documents[candidate])[: positions - 1]
        for text, row in zip(texts, candidates, strict=True)
        for candidate in row
    ]
    for values in sequences:
        if values[-1][0] != tokenizer.sep_token_id:  # cut short
            values.append((tokenizer.sep_token_id, 1))
    return sequences


def padded(rows: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids side by side: ids and mask, [rows, tokens] int64."""
    tokens = max(map(len, rows))
    ids = torch.full((len(rows), tokens), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.as_tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def reader_inputs(
    question: np.ndarray, texts: list[np.ndarray], pad_id: int, shortest: int
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """[CLS] question [SEP] block [SEP]: ids, mask and types, and which tokens are the block's, [blocks, tokens] each.

    Args:
        question: with its special tokens; the blocks without any.
        shortest: tokens that a sequence has at least.
    """
    ids, mask = padded([np.concatenate([question, text, question[-1:]]) for text in texts], pad_id)
    ids, mask = pad_to(ids, shortest, pad_id), pad_to(mask, shortest, 0)
    types, in_block = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, text in enumerate(texts):
        types[i, len(question) : len(question) + len(text) + 1] = 1
        in_block[i, len(question) : len(question) + len(text)] = True
    return (ids, mask, types), in_block


def pad_to(x: Tensor, tokens: int, value: int) -> Tensor:
    """Pad [blocks, tokens] on the right, so that a short block still has room for the widest span."""
    missing = tokens - x.shape[1]
    return x if missing <= 0 else torch.cat([x, x.new_full((x.shape[0], missing), value)], 1)
