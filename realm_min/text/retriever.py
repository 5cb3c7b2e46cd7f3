"""The evidence: blocks of text by their number, and the reader's inputs made of a question and its retrieved blocks.

The model's search (`mips.py`) yields block numbers. The retriever looks the blocks up, writes
`[CLS] question [SEP] block [SEP]` for each, and in training marks where the answers stand (Lee et al. 2019, section 6).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import kinds
from ..files.block_records import read_block_records, write_block_records
from ..files.block_sources import Sources, Titles, read_sources, write_sources
from ..files.causes import check_readable
from ..files.hub import BLOCK_RECORDS_FILE, resolve_folder, take_hub_options
from ..kinds import checked
from .batch_encoding import BatchEncoding
from .corpus import text_start
from .sequences import MODEL_INPUTS
from .tokenizer import RealmTokenizerFast

Spans = tuple[list[bool], list[list[int]], list[list[int]]]


class RealmRetriever:
    """Turns retrieved block numbers into reader inputs.

    Args:
        block_records: the blocks' UTF-8 text, a sequence or object array of `bytes`; a block's place is its number.
        tokenizer: a `RealmTokenizer` or `RealmTokenizerFast`.
        titles, sources: of the blocks, where they are known: `title`, `document` and `place` then tell whose they are.
    """

    def __init__(
        self,
        block_records: Sequence[bytes] | np.ndarray,
        tokenizer: Any,
        titles: Titles | None = None,
        sources: Sources | None = None,
    ) -> None:
        if not kinds.is_a(block_records, Sequence):
            kind = type(block_records).__name__
            raise TypeError(f"block_records is a {kind}: give a list, or an object array, of bytes")
        if not hasattr(tokenizer, "sep_token_id"):
            raise TypeError(f"tokenizer is a {type(tokenizer).__name__}: give a RealmTokenizer or RealmTokenizerFast")
        self.block_records = block_records
        self.tokenizer = tokenizer
        self.titles, self.sources = titles, sources

    @checked
    def __call__(
        self,
        retrieved_block_ids: torch.Tensor | np.ndarray | Sequence[int],
        question_input_ids: torch.Tensor | np.ndarray | Sequence[Sequence[int]],
        answer_ids: Sequence[Sequence[int]] | None,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> tuple[list[bool] | None, list[list[int]] | None, list[list[int]] | None, BatchEncoding]:
        """Write one reader input for each retrieved block, in their order.

        Args:
            retrieved_block_ids: [blocks] int, numbers of blocks.
            question_input_ids: [1, tokens] int, one question as the tokenizer encoded it.
            answer_ids: token ids of each accepted answer, without special tokens; None when there is none to find.
            max_length: of an input in tokens; the longer of question and block is cut. None: the tokenizer's own.
            return_tensors: "pt", "np" or None for lists.

        Returns:
            `has_answers`, `start_pos`, `end_pos` as `block_has_answer` (None each without `answer_ids`), and the
            encoding: `input_ids`, `attention_mask`, `token_type_ids`, `special_tokens_mask`, each [blocks, tokens].

        Raises:
            ValueError: wrong ranks, a block number out of range, a block that is not UTF-8 text.
        """
        numbers = self._numbers(retrieved_block_ids)
        question = self._question(question_input_ids)
        blocks = [self.text(number) for number in numbers]
        concat_inputs = self.tokenizer(
            [question] * len(blocks),
            blocks,
            padding=True,
            truncation=True,
            max_length=max_length,
            return_special_tokens_mask=True,
            return_tensors=return_tensors,
            **MODEL_INPUTS,
        )
        if answer_ids is None:
            return None, None, None, concat_inputs
        return *self.block_has_answer(concat_inputs, answer_ids), concat_inputs

    def _numbers(self, retrieved_block_ids: Any) -> list[int]:
        block_ids = _array(retrieved_block_ids)
        if block_ids.ndim != 1 or block_ids.size == 0:
            raise ValueError(f"retrieved_block_ids has shape {list(block_ids.shape)}: give [blocks], one at least")
        total = len(self.block_records)
        if block_ids.dtype.kind not in "iu":
            raise ValueError(f"retrieved_block_ids has dtype {block_ids.dtype}: give whole numbers")
        if block_ids.min() < 0 or block_ids.max() >= total:
            wrong = block_ids[(block_ids < 0) | (block_ids >= total)][0]
            raise ValueError(f"block {wrong} does not exist: the retriever holds blocks 0 to {total - 1}")
        return block_ids.tolist()

    def _question(self, question_input_ids: Any) -> str:
        question_ids = _array(question_input_ids)
        if question_ids.ndim != 2 or len(question_ids) != 1:
            raise ValueError(f"question_input_ids has shape {list(question_ids.shape)}: give one question, [1, tokens]")
        if question_ids.dtype.kind not in "iu":
            raise ValueError(f"question_input_ids has dtype {question_ids.dtype}: give token ids")
        return self.tokenizer.decode(question_ids[0].tolist(), skip_special_tokens=True)

    @checked
    def text(self, number: int) -> str:
        """The text of a block. Raises ValueError where it is not UTF-8."""
        self._check_number(number)
        record: Any = self.block_records[number]
        if not isinstance(record, bytes):
            kind = type(record).__name__
            raise ValueError(f"block {number} is a {kind}: blocks are bytes, text is made so by .encode()")
        try:
            return record.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"block {number} is not UTF-8 text ({error}): encode the blocks as UTF-8") from None

    def _check_number(self, number: int) -> None:
        if not 0 <= number < len(self.block_records):
            raise ValueError(f"block {number} does not exist: the retriever holds {len(self.block_records)}")

    @checked
    def title(self, number: int) -> str | None:
        """The title of a block's document; None where it is not known. ValueError where the block begins otherwise."""
        self._check_number(number)
        if self.titles is None:
            return None
        text, title = self.text(number), self.titles[number]
        if not text.startswith(text_start(title)):
            raise ValueError(
                f"block {number} begins with {kinds.shown(text)}, its title is {title!r}: index the corpus anew"
            )
        return title

    @checked
    def document(self, number: int) -> str:
        """The id of the document that a block is of; where it is not known, the block's number."""
        self._check_number(number)
        return str(number) if self.sources is None else self.sources[number].document

    def place(self, number: int, first: int = 0, last: int | None = None) -> tuple[int | None, int | None]:
        """Where characters `first` up to `last` of a block's text stand in its document's text, by default all of them.

        Returns:
            The first and the one after the last; None and None for what begins in the title, and where the block's
            source is not known.
        """
        title, source = self.title(number), None if self.sources is None else self.sources[number]
        if title is None or source is None:
            return None, None
        if last is None:
            return source.start, source.end
        if not first < last:
            raise ValueError(f"place({number}, {first}, {last}): give a last character above the first")
        before = len(text_start(title))
        if first < before:
            return None, None
        return source.place(first - before), source.place(last - 1 - before) + 1

    @checked
    def block_has_answer(self, concat_inputs: Any, answer_ids: Sequence[Sequence[int]]) -> Spans:
        """Find every occurrence of every answer in the blocks, that is between the first and the second [SEP].

        Args:
            concat_inputs: an encoding whose `input_ids` is [blocks, tokens].
            answer_ids: token ids of each answer; none at all is allowed, an answer without tokens is not.

        Returns:
            has_answers: for each block, whether it holds an answer.
            start_pos, end_pos: for each block, the answers' first and last token as places in its input, ordered by
                answer and then by place, padded with -1 to the largest number in any block.

        Raises:
            ValueError: rows of different lengths or without two [SEP], an answer without tokens.
        """
        ids = _input_rows(concat_inputs)
        inside = self._inside_block(ids)
        found = []  # of each answer: blocks, first and last tokens
        for i, answer in enumerate(answer_ids):
            answer = _array(answer)
            if answer.ndim != 1 or answer.size == 0 or answer.dtype.kind not in "iu":
                raise ValueError(
                    f"answer_ids[{i}] is {answer.tolist()!r}: give a list of token ids for each answer, one id at least"
                )
            rows, starts = _occurrences(ids, inside, answer)
            found.append((rows, starts, starts + len(answer) - 1))
        if not found:
            return [False] * len(ids), [[] for _ in ids], [[] for _ in ids]
        rows, starts, ends = (np.concatenate(of_answers) for of_answers in zip(*found, strict=True))
        return _by_block(len(ids), rows, starts, ends)

    def _inside_block(self, ids: np.ndarray) -> np.ndarray:
        """Which tokens stand between the first and the second [SEP], [blocks, tokens] bool.

        Raises:
            ValueError: a row without two [SEP].
        """
        is_separator = ids == self.tokenizer.sep_token_id
        separators = np.cumsum(is_separator, axis=1)  # [blocks, tokens], how many up to here
        blocks, length = ids.shape
        if blocks and (length == 0 or separators[:, -1].min() < 2):
            row = int(np.argmin(separators[:, -1])) if length else 0
            raise ValueError(f"input {row} lacks the two [SEP] around a block: encode question and block as a pair")
        return (separators == 1) & ~is_separator

    @classmethod
    @checked
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **tokenizer_options: Any
    ) -> RealmRetriever:
        """Read block_records.npy, the titles and sources beside it, and the tokenizer of a folder or hub name.

        `tokenizer_options` go to the tokenizer.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged or foreign.
        """
        options = take_hub_options(tokenizer_options)
        folder = resolve_folder(pretrained_model_name_or_path, "blocks", "tokenizer", **options)
        path = folder / BLOCK_RECORDS_FILE
        check_readable(path, f"{path} does not exist: give a folder that holds {BLOCK_RECORDS_FILE}")
        tokenizer = RealmTokenizerFast.from_pretrained(folder, **tokenizer_options)
        records = read_block_records(path)
        return cls(records, tokenizer, *read_sources(folder, len(records)))

    @checked
    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write block_records.npy, titles, sources and the tokenizer's files; transformers' class reads them back."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_block_records(folder / BLOCK_RECORDS_FILE, self.block_records)
        write_sources(folder, self.titles, self.sources)
        self.tokenizer.save_pretrained(folder)


def _input_rows(concat_inputs: Any) -> np.ndarray:
    """The `input_ids` of an encoding, [blocks, tokens]. Raises ValueError where they are none."""
    found = getattr(concat_inputs, "input_ids", None)
    ids = None if found is None else _array(found)
    if ids is None or ids.ndim != 2:
        raise ValueError("concat_inputs.input_ids is not [blocks, tokens]: encode the blocks with padding=True")
    return ids


def _occurrences(ids: np.ndarray, inside: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an answer occurs whose first token is `inside`: row and first token, by row and then by place."""
    rows, starts = np.nonzero(inside & (ids == answer[0]))
    fits = starts + len(answer) <= ids.shape[1]
    rows, starts = rows[fits], starts[fits]
    same = (ids[rows[:, None], starts[:, None] + np.arange(len(answer))] == answer).all(axis=1)
    return rows[same], starts[same]


def _by_block(blocks: int, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Spans:
    """Spans in the order of the answers, [spans] each, as `block_has_answer` returns them: a list for each block."""
    order = np.argsort(rows, kind="stable")  # by block, and in it by answer and place
    rows = rows[order]
    counts = np.bincount(rows, minlength=blocks)
    places = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]  # of each span in its block's list
    start_pos, end_pos = np.full((2, blocks, counts.max(initial=0)), -1)
    start_pos[rows, places] = starts[order]
    end_pos[rows, places] = ends[order]
    return (counts > 0).tolist(), start_pos.tolist(), end_pos.tolist()


def _array(values: Any) -> np.ndarray:
    """Token ids or block numbers as an array, from whichever device they lie on."""
    if isinstance(values, torch.Tensor):
        return (values.double() if values.is_floating_point() else values).detach().cpu().numpy()
    try:
        return np.asarray(values)
    except (ValueError, OverflowError):  # rows of different lengths
        return np.array(values, dtype=object)
