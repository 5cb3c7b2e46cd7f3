"""Wordpieces to what the models read as they learn: "[CLS] x [SEP]" and "[CLS] x [SEP] z [SEP]", side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Pieces = np.ndarray  # id and type of each token, [tokens, 2] int64


class EncodedBlock(NamedTuple):
    """The wordpieces of a block, without special tokens."""

    title: np.ndarray
    text: np.ndarray


# What a tokenizer is asked for beside ids, whatever its `model_input_names` are.
MODEL_INPUTS = {"return_token_type_ids": True, "return_attention_mask": True}


def join(tokenizer: Any, first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray | None = None) -> Pieces:
    """join_BERT (REALM, section 3.2): "[CLS] first [SEP]" or "[CLS] first [SEP] second [SEP]"."""
    begins = 2 + len(first)  # of what has type 1
    pieces = np.zeros((begins if second is None else begins + len(second) + 1, 2), np.int64)
    pieces[0, 0], pieces[1 : begins - 1, 0], pieces[begins - 1, 0] = (
        tokenizer.cls_token_id,
        first,
        tokenizer.sep_token_id,
    )
    if second is not None:
        pieces[begins:-1, 0], pieces[-1, 0], pieces[begins:, 1] = second, tokenizer.sep_token_id, 1
    return pieces


def pad(sequences: Sequence[Pieces], model: Any) -> dict[str, Tensor]:
    """`input_ids`, `token_type_ids` and `attention_mask` [sequences, tokens] for `model`."""
    padded = np.zeros((len(sequences), max(map(len, sequences)), 3), np.int64)
    padded[:, :, 0] = model.config.pad_token_id
    for row, pieces in zip(padded, sequences, strict=True):
        row[: len(pieces), :2], row[: len(pieces), 2] = pieces, 1
    ids, types, attention = torch.from_numpy(padded).to(model.device).unbind(2)
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": attention}


def document_sequences(tokenizer: Any, evidence: Sequence[EncodedBlock], max_wordpieces: int) -> list[Pieces]:
    """What Embed_doc reads, "[CLS] title [SEP] text [SEP]", of the null document "[CLS] [SEP] [SEP]" and each block."""
    null = EncodedBlock(np.zeros(0, int), np.zeros(0, int))
    return [join(tokenizer, title, text[: max_wordpieces - len(title) - 3]) for title, text in (null, *evidence)]


def joint_sequences(
    tokenizer: Any,
    texts: list[list[int]],
    candidates: list[list[int]],
    evidence: Sequence[EncodedBlock],
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
    stop = tokenizer.encode(".", add_special_tokens=False)
    whole = [np.concatenate([title, stop, text])[: max_block - 3] for title, text in evidence]
    documents = [np.zeros(0, int), *whole]
    return [
        join(tokenizer, text, documents[candidate][: positions - len(text) - 3])
        for text, row in zip(texts, candidates, strict=True)
        for candidate in row
    ]


def padded(rows: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids side by side: ids and mask, [rows, tokens] int64."""
    tokens = max(map(len, rows))
    ids = torch.full((len(rows), tokens), pad_id, device="cpu")
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
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
