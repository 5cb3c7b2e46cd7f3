"""A trained model in one small file: pruned vocabulary, quantised weights and block embeddings, no text.

Three steps make it small. Wordpieces that the corpus never uses go, and their embeddings with them. Each row of a
matrix is rounded to multiples of its own step, σ_row / levels, at the precision that just fits the budget. Then the
whole numbers are Huffman-coded: a normal variable of deviation σ in steps of Δ has an entropy of log2(√(2πe) σ/Δ) bits,
about 4.2 at Δ = σ/4.5. Vectors (biases, LayerNorms) are kept in float16.

The blocks' text is not stored. Its hash is, so that whoever cuts the corpus anew can tell that it is the same.

    magic, sha256 of the rest
    4 bytes: length of the header; the header: JSON, deflated
    codes        int8, Huffman-coded: every matrix, row by row, in the order of the header
    steps        float16, one a row
    vectors      float16
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import RealmConfig
from .corpus import MAX_WORDPIECES, Document, corpus_hash, cut_blocks
from .files import write_atomically
from .open_qa import RealmForOpenQA
from .tokenizer import RealmTokenizerFast
from .tokenizer_base import SPECIAL_TOKEN_NAMES

MAGIC = b"realm-min packed model, format 1\n"
BLOCK_LEVELS = 16  # a step of σ/16 moves a block's embedding by 1.8 % of its length
LEVELS = [2 ** (i / 16) for i in range(0, 81)]  # 1 to 32 steps a standard deviation

# Weights that these two models hold, as the published checkpoints do, and never read.
UNREAD = re.compile(r"(embedder|reader)\.cls\.predictions\..*|reader\.realm\.pooler\..*")
_WORDS = "realm.embeddings.word_embeddings.weight"
_CONFIG_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_TOKENIZER_SETTINGS = (*SPECIAL_TOKEN_NAMES, "do_lower_case", "strip_accents", "tokenize_chinese_chars")


def pack(
    model: RealmForOpenQA,
    tokenizer: RealmTokenizerFast,
    documents: Iterable[Document],
    path: str | os.PathLike,
    *,
    corpus: str,
    budget: int = 16_000_000,
    extra_texts: Iterable[str] = (),
) -> dict[str, Any]:
    """Write `model` and `tokenizer` as one file of at most `budget` bytes; the same input gives the same bytes.

    Args:
        model: with `block_emb` of the blocks that `documents` are cut into.
        corpus: names the documents and their version, for the error of who has another one.
        extra_texts: the vocabulary keeps the wordpieces of these too, say the training questions.

    Returns:
        The manifest, as `load_packed` returns it.

    Raises:
        ValueError: another number of blocks than of embeddings; a tokenizer with added tokens; a weight that is not
            finite; a budget that is too small.
    """
    limit = min(MAX_WORDPIECES, model.config.max_position_embeddings)
    documents = list(documents)
    blocks = list(cut_blocks(documents, tokenizer, limit))
    if len(blocks) != model.block_emb.shape[0]:
        raise ValueError(
            f"the documents give {len(blocks)} blocks and the model has {model.block_emb.shape[0]} block embeddings: "
            "give the documents that it was indexed with"
        )
    texts = (text for block in blocks for text in block)
    kept = kept_pieces(tokenizer, texts, extra_texts, _config_tokens(model.config).values())
    vocabulary = tokenizer.convert_ids_to_tokens(kept)
    settings = {name: getattr(tokenizer, name) for name in _TOKENIZER_SETTINGS}
    if list(cut_blocks(documents, _tokenizer(vocabulary, settings), limit)) != blocks:
        raise ValueError("the pruned vocabulary cuts the documents into other blocks: give their words as extra_texts")

    config = model.config.to_dict() | {"vocab_size": len(kept)}
    config |= {name: kept.index(token) for name, token in _config_tokens(model.config).items()}
    matrices, vectors, copies = _to_store(model.state_dict(), kept)
    manifest = {
        "corpus": corpus_hash(blocks),
        "corpus_name": corpus,
        "blocks": len(blocks),
        "max_wordpieces": limit,
    }
    header = {"config": config, "tokenizer": settings, "vocabulary": vocabulary, "copies": copies}

    def packed(levels: float) -> bytes:
        found = manifest | {"levels": round(levels, 3), "weights": sum(matrix.size for matrix in matrices.values())}
        return _assemble(header | {"manifest": found}, matrices, vectors, levels)

    data = _largest_within(budget, packed)
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)
    return _split(data)[0]["manifest"]


def _largest_within(budget: int, packed: Callable[[float], bytes]) -> bytes:
    """The file with the finest steps that fits; its size grows with the levels."""
    best = packed(LEVELS[0])
    if len(best) > budget:
        raise ValueError(f"the smallest file has {len(best):,} bytes, the budget is {budget:,}: raise it")
    low, high = 0, len(LEVELS)  # LEVELS[low] fits, LEVELS[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        data = packed(LEVELS[middle])
        if len(data) <= budget:
            low, best = middle, data
        else:
            high = middle
    return best


def load_packed(path: str | os.PathLike) -> tuple[RealmForOpenQA, RealmTokenizerFast, dict[str, Any]]:
    """Read what `pack` wrote.

    Returns:
        The model, float32, in evaluation mode, without a retriever; weights that it never reads are zeros, the
        decoder the word embeddings. Its tokenizer. The manifest: `corpus` (`corpus_hash` of the blocks), `corpus_name`,
        `blocks`, `max_wordpieces` (how they were cut), `levels` (steps a standard deviation), `weights` (how many are
        quantised).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, cut short, or another file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the file of a packed model")
    try:
        header, streams = _split(path.read_bytes())
        config = RealmConfig.from_dict(header["config"])
        model = RealmForOpenQA(config, initialize=False)
        _fill(model.state_dict(), header["copies"], *streams)
        tokenizer = _tokenizer(header["vocabulary"], header["tokenizer"])
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): it is damaged or no packed model; fetch it again") from None
    return model.eval(), tokenizer, header["manifest"]


# ---- vocabulary


def kept_pieces(
    tokenizer: RealmTokenizerFast, texts: Iterable[str], extra_texts: Iterable[str], ids: Iterable[int]
) -> list[int]:
    """Ids that the pruned vocabulary keeps, ascending: those in the texts, `ids`, special tokens, single characters.

    Texts are then spelt with the same pieces as before: WordPiece takes the longest piece of the vocabulary each time,
    and that one is kept, while the longer ones that are gone did not fit before either. Other words are spelt with
    shorter pieces, of single characters at the worst.
    """
    special = {getattr(tokenizer, f"{name}_id") for name in SPECIAL_TOKEN_NAMES}
    if added := sorted(set(tokenizer.added_tokens_decoder) - special):
        raise ValueError(f"the tokenizer has added tokens, ids {added}: packed models have none")
    kept = special | set(ids)
    kept.update(index for piece, index in tokenizer.vocab.items() if len(piece.removeprefix("##")) == 1)
    for encoded in tokenizer([*texts, *extra_texts, ""], add_special_tokens=False)["input_ids"]:
        kept.update(encoded)
    return sorted(kept)


def _config_tokens(config: RealmConfig) -> dict[str, int]:
    found = {name: getattr(config, name) for name in _CONFIG_TOKENS}
    return {name: token for name, token in found.items() if token is not None}


def _tokenizer(vocabulary: list[str], settings: dict[str, Any]) -> RealmTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8", newline="\n")
        return RealmTokenizerFast(vocab_file=file, **settings)


# ---- weights


def _to_store(
    state_dict: dict[str, Tensor], kept: list[int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
    """Matrices and vectors by key, float32, and keys that hold the same numbers as an earlier one, with that one."""
    matrices: dict[str, np.ndarray] = {}
    vectors: dict[str, np.ndarray] = {}
    copies: dict[str, str] = {}
    for key, tensor in state_dict.items():
        if UNREAD.fullmatch(key):
            continue
        array = tensor.detach().float().cpu().numpy()
        if not np.isfinite(array).all():
            raise ValueError(f"{key} holds values that are not finite: nothing was packed")
        array = np.ascontiguousarray(array[kept] if key.endswith(_WORDS) else array)
        same = [other for other, matrix in matrices.items() if np.array_equal(matrix, array)]
        if same:
            copies[key] = same[0]
        else:
            (matrices if is_quantized(key, array.shape) else vectors)[key] = array
    return matrices, vectors, copies


def is_quantized(key: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "token_type" not in key and shape[0] > 1


def quantize(matrix: np.ndarray, levels: float) -> tuple[np.ndarray, np.ndarray]:
    """Round each row of `matrix` [rows, columns] to multiples of a step.

    Returns:
        Codes [rows, columns] int8 and steps [rows] float16, σ_row / levels, or as large as the row's largest entry
        needs; their products are the rounded matrix.
    """
    largest = np.abs(matrix).max(1)
    steps = np.maximum(matrix.std(1) / levels, largest / 127).astype(np.float16)
    codes = np.rint(matrix / np.where(steps > 0, steps, 1).astype(np.float32)[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), steps


def dequantize(codes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Codes [rows, columns] int8 times steps [rows] float16 -> float32."""
    return codes * steps.astype(np.float32)[:, None]


# ---- the file


def _assemble(
    header: dict[str, Any], matrices: dict[str, np.ndarray], vectors: dict[str, np.ndarray], levels: float
) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)  # the codes repeat nothing worth a match
    codes, steps = [], []
    for key, matrix in matrices.items():
        rounded, row_steps = quantize(matrix, BLOCK_LEVELS if key == "block_emb" else levels)
        codes.append(coder.compress(rounded.tobytes()))
        steps.append(row_steps.tobytes())
    streams = [
        b"".join((*codes, coder.flush())),
        b"".join(steps),
        b"".join(vector.astype("<f2").tobytes() for vector in vectors.values()),
    ]
    text = zlib.compress(json.dumps(header | {"streams": [len(stream) for stream in streams]}).encode(), 9)
    payload = b"".join((struct.pack("<I", len(text)), text, *streams))
    return MAGIC + hashlib.sha256(payload).digest() + payload


def _split(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the streams of a file's bytes; ValueError if a single one is not as it was written."""
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not data.startswith(MAGIC):
        raise ValueError("it does not begin as packed models do")
    if hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
        raise ValueError("its checksum is wrong")
    (length,) = struct.unpack_from("<I", data, start)
    start += 4
    header = json.loads(zlib.decompress(data[start : start + length]))
    start += length
    streams = []
    for length in header["streams"]:
        streams.append(data[start : start + length])
        start += length
    return header, streams


def _fill(tensors: dict[str, Tensor], copies: dict[str, str], codes: bytes, steps: bytes, vectors: bytes) -> None:
    """Write the weights into a model's tensors, in place."""
    stored = {key: tensor for key, tensor in tensors.items() if not UNREAD.fullmatch(key) and key not in copies}
    matrices = {key: tuple(tensor.shape) for key, tensor in stored.items() if is_quantized(key, tuple(tensor.shape))}
    total = sum(math.prod(shape) for shape in matrices.values())
    all_codes = np.frombuffer(zlib.decompressobj(-15).decompress(codes, total + 1), np.int8)
    all_steps, all_vectors = np.frombuffer(steps, "<f2"), np.frombuffer(vectors, "<f2")
    if len(all_codes) != total:
        raise ValueError(f"it holds {len(all_codes):,} weights, and its configuration asks for {total:,}")
    code_rows, step_rows, rest = _taking(all_codes), _taking(all_steps), _taking(all_vectors)
    for key, tensor in stored.items():
        if key in matrices:
            rows, columns = matrices[key]
            array = dequantize(code_rows(rows * columns).reshape(rows, columns), step_rows(rows))
        else:
            array = rest(tensor.numel()).reshape(tensor.shape).astype(np.float32)
        tensor.copy_(torch.from_numpy(array))
    for key, source in copies.items():
        tensors[key].copy_(tensors[source])
    for key, tensor in tensors.items():
        if key.endswith("cls.predictions.decoder.weight"):
            tensor.copy_(tensors[f"{key.split('.')[0]}.{_WORDS}"])
        elif UNREAD.fullmatch(key):
            tensor.zero_()


def _taking(array: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function that hands out `array` piece by piece, from its start."""
    place = 0

    def take(count: int) -> np.ndarray:
        nonlocal place
        place += count
        return array[place - count : place]

    return take
