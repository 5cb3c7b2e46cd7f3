"""The evidence: blocks of text by their number, and the reader's inputs made of a question and its retrieved blocks.

The model's search (`mips.py`) yields block numbers. The retriever looks the blocks up, writes
`[CLS] question [SEP] block [SEP]` for each, and in training marks where the answers stand (Lee et al. 2019, section 6).

`block_records.npy` holds the blocks as pickled byte strings. The pickle is never executed: `read_block_records` knows
the few instructions that lead to byte strings, and follows no other.
"""

from __future__ import annotations

import mmap
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..files.atomic import write_atomically
from ..files.hub import BLOCK_RECORDS_FILE, resolve_folder
from .batch_encoding import BatchEncoding
from .tokenizer import RealmTokenizerFast

Spans = tuple[list[bool], list[list[int]], list[list[int]]]


class RealmRetriever:
    """Turns retrieved block numbers into reader inputs.

    Args:
        block_records: the blocks' UTF-8 text, a sequence or object array of `bytes`; a block's place is its number.
        tokenizer: a `RealmTokenizer` or `RealmTokenizerFast`.
    """

    def __init__(self, block_records: Sequence[bytes] | np.ndarray, tokenizer: Any) -> None:
        self.block_records = block_records
        self.tokenizer = tokenizer

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
        block_ids = _array(retrieved_block_ids)
        if block_ids.ndim != 1 or block_ids.size == 0:
            raise ValueError(f"retrieved_block_ids has shape {list(block_ids.shape)}: give [blocks], one at least")
        total = len(self.block_records)
        if block_ids.min() < 0 or block_ids.max() >= total:
            wrong = block_ids[(block_ids < 0) | (block_ids >= total)][0]
            raise ValueError(f"block {wrong} does not exist: the retriever holds blocks 0 to {total - 1}")
        question_ids = _array(question_input_ids)
        if question_ids.ndim != 2 or len(question_ids) != 1:
            raise ValueError(f"question_input_ids has shape {list(question_ids.shape)}: give one question, [1, tokens]")

        question = self.tokenizer.decode(question_ids[0].tolist(), skip_special_tokens=True)
        blocks = [self.text(i) for i in block_ids.tolist()]
        concat_inputs = self.tokenizer(
            [question] * len(blocks),
            blocks,
            padding=True,
            truncation=True,
            max_length=max_length,
            return_special_tokens_mask=True,
            return_tensors=return_tensors,
        )
        if answer_ids is None:
            return None, None, None, concat_inputs
        return *self.block_has_answer(concat_inputs, answer_ids), concat_inputs

    def text(self, number: int) -> str:
        """The text of a block. Raises ValueError where it is not UTF-8."""
        record: Any = self.block_records[number]
        if not isinstance(record, bytes):
            kind = type(record).__name__
            raise ValueError(f"block {number} is a {kind}: blocks are bytes, text is made so by .encode()")
        try:
            return record.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"block {number} is not UTF-8 text ({error}): encode the blocks as UTF-8") from None

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
        try:
            ids = _array(concat_inputs.input_ids)
        except ValueError:  # rows of different lengths
            ids = None
        if ids is None or ids.ndim != 2:
            raise ValueError("concat_inputs.input_ids is not [blocks, tokens]: encode the blocks with padding=True")
        blocks, length = ids.shape
        separators = np.cumsum(ids == self.tokenizer.sep_token_id, axis=1)  # [blocks, tokens], how many up to here
        if blocks and (length == 0 or separators[:, -1].min() < 2):
            row = int(np.argmin(separators[:, -1])) if length else 0
            raise ValueError(f"input {row} lacks the two [SEP] around a block: encode question and block as a pair")

        inside = separators == 1  # from the first [SEP], where no answer begins, to before the second
        inside &= ids != self.tokenizer.sep_token_id
        found_rows, found_starts, found_ends = [], [], []
        for i, answer in enumerate(answer_ids):
            answer = np.asarray(answer)
            if answer.ndim != 1 or answer.size == 0:
                raise ValueError(
                    f"answer_ids[{i}] is {answer.tolist()!r}: give a list of token ids for each answer, one id at least"
                )
            rows, starts = np.nonzero(inside & (ids == answer[0]))
            fits = starts + len(answer) <= length
            rows, starts = rows[fits], starts[fits]
            same = (ids[rows[:, None], starts[:, None] + np.arange(len(answer))] == answer).all(axis=1)
            found_rows.append(rows[same])
            found_starts.append(starts[same])
            found_ends.append(starts[same] + len(answer) - 1)

        if not found_rows:
            return [False] * blocks, [[] for _ in range(blocks)], [[] for _ in range(blocks)]
        rows = np.concatenate(found_rows)
        order = np.argsort(rows, kind="stable")  # by block, and in it by answer and place
        rows = rows[order]
        counts = np.bincount(rows, minlength=blocks)
        places = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]  # of each occurrence in its block's list
        start_pos, end_pos = np.full((2, blocks, counts.max(initial=0)), -1)
        start_pos[rows, places] = np.concatenate(found_starts)[order]
        end_pos[rows, places] = np.concatenate(found_ends)[order]
        return (counts > 0).tolist(), start_pos.tolist(), end_pos.tolist()

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **tokenizer_options: Any) -> RealmRetriever:
        """Read block_records.npy and the tokenizer of a folder or hub name; `tokenizer_options` go to the tokenizer.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file is damaged or foreign.
        """
        folder = resolve_folder(folder, "blocks", "tokenizer")
        path = folder / BLOCK_RECORDS_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: give a folder that holds {BLOCK_RECORDS_FILE}")
        tokenizer = RealmTokenizerFast.from_pretrained(folder, **tokenizer_options)
        return cls(read_block_records(path), tokenizer)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write block_records.npy and the tokenizer's files; transformers' `RealmRetriever` reads them back."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_block_records(Path(folder) / BLOCK_RECORDS_FILE, self.block_records)
        self.tokenizer.save_pretrained(folder)


def _array(values: Any) -> np.ndarray:
    """Token ids or block numbers as an array, from whichever device they lie on."""
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)


# --- block_records.npy ------------------------------------------------------------------------------------------------


def write_block_records(path: str | os.PathLike, records: Sequence[bytes] | np.ndarray) -> None:
    """Write blocks as `numpy.save` writes an object array of `bytes`, [blocks], and after it the file's CRC-32.

    NumPy and transformers read the file, and pass over the checksum; `read_block_records` checks it.

    Raises:
        ValueError: a record is not `bytes`.
    """
    array = np.empty(len(records), dtype=object)
    for i, record in enumerate(records):
        if not isinstance(record, bytes):
            raise ValueError(f"block {i} is a {type(record).__name__}: blocks are bytes, text is made so by .encode()")
        array[i] = bytes(record)
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        checked = _Checked(file)
        np.save(checked, array)
        file.write(b"\ncrc32 %08x\n" % checked.crc)


class _Checked:
    """A file to write to, with the CRC-32 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.crc = file, 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.file.write(data)


_CRC = re.compile(rb"\ncrc32 ([0-9a-f]{8})\n")
_CRC_LENGTH = 16


def read_block_records(path: str | os.PathLike) -> np.ndarray:
    """Blocks as an object array of `bytes`, [blocks], from `numpy.save`d byte strings; nothing pickled is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or damaged, or holds anything but a row of byte strings.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the path of a {BLOCK_RECORDS_FILE}")
    try:
        with open(path, "rb") as file:
            shape, dtype = _read_npy_header(file)
            if len(shape) != 1 or dtype.kind not in "OS":
                raise ValueError(f"it is an array of shape {list(shape)} and dtype {dtype}, not a row of byte strings")
            if dtype.kind == "S":
                if dtype.itemsize == 0 or os.path.getsize(path) - file.tell() != shape[0] * dtype.itemsize:
                    raise ValueError("its size is not what its header says")
                return np.fromfile(file, dtype, shape[0]).astype(object)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                stored = _CRC.fullmatch(data[-_CRC_LENGTH:])
                end = len(data) - _CRC_LENGTH if stored else len(data)
                with memoryview(data) as view, view[:end] as contents:
                    if stored and b"%08x" % zlib.crc32(contents) != stored[1]:
                        raise ValueError("its checksum is not the stored one")
                records = unpickle_byte_strings(data, file.tell(), end)
            if len(records) != shape[0]:
                raise ValueError(f"its header says {shape[0]} blocks, it holds {len(records)}")
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read: {error}; {BLOCK_RECORDS_FILE} is what numpy.save writes of an object array of "
            "bytes: fetch or write it again"
        ) from None
    array = np.empty(len(records), dtype=object)
    array[:] = records
    return array


def _read_npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except Exception as error:  # whatever NumPy's parser says of untrusted bytes, the header is at fault
        raise ValueError(f"no valid .npy header ({str(error).splitlines()[0] if str(error) else error!r})") from None
    return shape, dtype


class _Name(str):
    """The name of a Python object that a pickle asks for; it is compared, never looked up."""


# What NumPy's pickle of an object array names, in NumPy 1 and 2. Protocol 2 has no byte strings: they are text there,
# to be encoded, and an empty one is the type called without arguments.
_RECONSTRUCT = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
_NDARRAY, _DTYPE, _ENCODE = "numpy.ndarray", "numpy.dtype", "_codecs.encode"
_BYTES = ("__builtin__.bytes", "builtins.bytes")
_NAMES = {*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE, *_BYTES}


def unpickle_byte_strings(data: bytes | mmap.mmap, start: int = 0, end: int | None = None) -> list[bytes]:
    """The byte strings of a pickled one-dimensional NumPy object array, without executing the pickle.

    A pickle is a program for a stack machine. This machine has the instructions by which such an array is written
    (protocols 2 to 5; named as in Python's `pickletools`). Asked to call something, it compares the name with those
    above and builds the one thing that is meant; it imports nothing and calls nothing.

    Raises:
        ValueError: truncated or damaged data, or anything but byte strings; names what was asked for.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []
    array, dtype, filled = object(), object(), object()  # what stands on the stack for NumPy's objects
    shape, records = (), []
    encoded = 0  # bytes made of text
    at = start

    def integer(size: int) -> int:
        nonlocal at
        at += size
        if at > len(data):
            raise IndexError
        return int.from_bytes(data[at - size : at], "little")

    def text(length: int) -> str:
        nonlocal at
        at += length
        return data[at - length : at].decode("utf-8", "surrogatepass")

    def line() -> str:
        nonlocal at
        begin, at = at, data.find(b"\n", at, at + 200) + 1
        if at == 0:
            raise IndexError
        return data[begin : at - 1].decode()

    def name(full_name: str) -> _Name:
        if full_name not in _NAMES:
            raise ValueError(f"it asks for {full_name[:200]!r}, which byte strings do not need: nothing was executed")
        return _Name(full_name)

    def since_mark() -> list[Any]:
        items = stack[marks[-1] :]
        del stack[marks.pop() :]
        return items

    try:
        while True:
            code = data[at]
            at += 1
            # The four that make up nearly all of a large file come first.
            if code == 0x42 or code == 0x43:  # BINBYTES, SHORT_BINBYTES
                width = 4 if code == 0x42 else 1
                begin = at + width
                at = begin + int.from_bytes(data[at:begin], "little")
                stack.append(data[begin:at])
            elif code == 0x94:  # MEMOIZE
                memo.append(stack[-1])
            elif code == 0x71 or code == 0x72:  # BINPUT, LONG_BINPUT
                place = integer(1 if code == 0x71 else 4)
                if place != len(memo):
                    raise ValueError(f"its memo jumps to {place} at byte {at}")
                memo.append(stack[-1])
            elif code == 0x68 or code == 0x6A:  # BINGET, LONG_BINGET
                stack.append(memo[integer(1 if code == 0x68 else 4)])
            elif code == 0x8E:  # BINBYTES8
                length = integer(8)
                stack.append(data[at : at + length])
                at += length
            elif code == 0x28:  # MARK
                marks.append(len(stack))
            elif code == 0x65:  # APPENDS
                items = since_mark()
                stack[-1].extend(items)
            elif code == 0x61:  # APPEND
                item = stack.pop()
                stack[-1].append(item)
            elif code == 0x5D:  # EMPTY_LIST
                stack.append([])
            elif code == 0x58:  # BINUNICODE
                stack.append(text(integer(4)))
            elif code == 0x8C:  # SHORT_BINUNICODE
                stack.append(text(integer(1)))
            elif code == 0x4B:  # BININT1
                stack.append(integer(1))
            elif code == 0x4D:  # BININT2
                stack.append(integer(2))
            elif code == 0x4A:  # BININT, signed
                stack.append((integer(4) ^ 0x8000_0000) - 0x8000_0000)
            elif code == 0x4E:  # NONE
                stack.append(None)
            elif code == 0x88 or code == 0x89:  # NEWTRUE, NEWFALSE
                stack.append(code == 0x88)
            elif code == 0x74:  # TUPLE
                stack.append(tuple(since_mark()))
            elif code == 0x29:  # EMPTY_TUPLE
                stack.append(())
            elif 0x85 <= code <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
                stack[-(code - 0x84) :] = [tuple(stack[-(code - 0x84) :])]
            elif code == 0x63:  # GLOBAL
                stack.append(name(f"{line()}.{line()}"))
            elif code == 0x93:  # STACK_GLOBAL
                attribute = stack.pop()
                stack.append(name(f"{stack.pop()}.{attribute}"))
            elif code == 0x52:  # REDUCE: call
                arguments = stack.pop()
                called = stack.pop()
                if not isinstance(called, _Name):
                    raise TypeError
                if called in _RECONSTRUCT:
                    stack.append(array)
                elif called == _DTYPE and arguments[0] in ("O", "O4", "O8"):
                    stack.append(dtype)
                elif called == _ENCODE and arguments[1:] == ("latin1",):
                    stack.append(arguments[0].encode("latin1"))
                    encoded += len(stack[-1])
                    if encoded > len(data):  # one long text, encoded again and again to fill the memory
                        raise ValueError("its byte strings are longer than the file")
                elif called in _BYTES and arguments == ():
                    stack.append(b"")
                else:
                    raise ValueError(f"it calls {called} in a way that byte strings do not need")
            elif code == 0x62:  # BUILD: set the state of
                state, built = stack.pop(), stack.pop()
                if built is array:
                    _, shape, held, _, records = state
                    if held is not dtype:
                        raise TypeError
                    built = filled
                elif built is not dtype:
                    raise TypeError
                stack.append(built)
            elif code == 0x80:  # PROTO
                integer(1)
            elif code == 0x95:  # FRAME
                integer(8)
            elif code == 0x2E:  # STOP
                break
            else:
                raise ValueError(f"its instruction {bytes([code])!r} at byte {at - 1} is none that byte strings need")
    except UnicodeError:
        raise ValueError(f"a text in it is damaged, before byte {at}") from None
    except (IndexError, AttributeError, TypeError, MemoryError):
        raise ValueError(f"it is truncated or damaged, near byte {min(at, len(data))}") from None
    if at != (len(data) if end is None else end):
        raise ValueError(f"it goes on after its end at byte {at}")
    if stack != [filled] or not isinstance(records, list) or shape != (len(records),):
        raise ValueError("it is no array of one dimension")
    for i, record in enumerate(records):
        if type(record) is not bytes:
            raise ValueError(f"record {i} is a {type(record).__name__}, not bytes")
    return records
