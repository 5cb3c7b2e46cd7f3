"""A trained model in one small file: pruned vocabulary, quantised weights and block embeddings, no text.

Three steps make it small. Rare wordpieces that the corpus never uses go, and their embeddings with them. Matrices are
rounded to multiples of a step (`quantization.py`), at the precision that just fits the budget. Then the whole numbers
are Huffman-coded: a normal variable of deviation σ in steps of Δ has an entropy of log2(√(2πe) σ/Δ) bits, 4.2 at
Δ = σ/4.5. Vectors (biases, LayerNorms) are kept in float16.

The blocks' text is not stored. Its hash is, so that whoever cuts the corpus anew can tell that it is the same.

    magic, sha256 of the rest
    4 bytes: length of the header; the header: JSON, deflated
    codes        int8, Huffman-coded: every matrix, input by input, those with the smallest steps first
    steps        float16: of each matrix a factor for each output (row), and one for each input (column)
    vectors      float16
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import mmap
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..config import RealmConfig
from ..interface.inputs import Inputs, checked_batch
from ..interface.open_qa import RealmForOpenQA
from ..kinds import checked
from ..model.bert import Run, bert, dense_inputs
from ..text.corpus import MAX_WORDPIECES, Block, Document, corpus_hash, cut_blocks, record
from ..text.tokenizer import RealmTokenizerFast
from ..text.tokenizer_files import SPECIAL_TOKEN_NAMES
from .atomic import write_atomically
from .causes import causes_named, check_readable
from .json_file import json_object
from .quantization import dequantize, feedback_factor, quantize, stored_order

MAGIC = b"realm-min packed model, format 1\n"
LEVELS = [2 ** (i / 32) for i in range(161)]  # 1 to 32 steps a standard deviation, in the trunk
WORD_LEVELS = 0.5  # times those: a wordpiece's error is not added up over layers
EMBEDDER_LEVELS = 1.6  # times those: a question is held to every block there is, a span to those of a few blocks
FINE_LEVELS = 8  # of the block embeddings and the small heads: an error of 3.6 %
COMMON_PIECES = 14_000  # BERT's vocabulary stands in the order of frequency; what follows is rare
SAMPLE_BLOCKS, SAMPLE_QUESTIONS, SAMPLE_BATCH = 120, 768, 8  # texts to gather E[x xᵀ] from

Bytes = bytes | memoryview
Checksum = Callable[[Bytes], bytes]

# Weights that these two models hold, as the published checkpoints do, and never read.
UNREAD = re.compile(r"(embedder|reader)\.cls\.predictions\..*|reader\.realm\.pooler\..*")
_WORDS = "realm.embeddings.word_embeddings.weight"
_CONFIG_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_TOKENIZER_SETTINGS = (*SPECIAL_TOKEN_NAMES, "do_lower_case", "strip_accents", "tokenize_chinese_chars")


@checked
def pack(
    model: RealmForOpenQA,
    tokenizer: RealmTokenizerFast,
    documents: Iterable[Document],
    path: str | os.PathLike,
    *,
    corpus: str,
    budget: int = 16_000_000,
    extra_texts: Iterable[str] = (),
    common_pieces: int = COMMON_PIECES,
) -> dict[str, Any]:
    """Write `model` and `tokenizer` as one file of at most `budget` bytes; the same input gives the same bytes.

    Args:
        model: with `block_emb` of the blocks that `documents` are cut into.
        corpus: names the documents and their version, for the error of who has another one.
        extra_texts: training questions, say: the vocabulary keeps their wordpieces, and the rounding is fitted to a
            sample of them and of the blocks.
        common_pieces: the first so many of the vocabulary are kept too, but for unused ones: questions will come that
            use words the corpus does not.

    Returns:
        The manifest, as `load_packed` returns it.

    Raises:
        ValueError: another number of blocks than of embeddings; a tokenizer with added tokens; a weight that is not
            finite; a budget that is too small.
    """
    documents, extra_texts = list(documents), list(extra_texts)
    blocks = _indexed_blocks(model, tokenizer, documents)
    stay, header = _prune(model.config, tokenizer, documents, blocks, extra_texts, common_pieces)
    weights = _to_store(model, tokenizer, blocks, extra_texts, stay)
    manifest = _manifest(model.config, blocks, corpus, weights)
    data = _largest_within(budget, partial(_assemble, header, manifest, weights))
    with write_atomically(path) as temporary:
        temporary.write_bytes(data)
    return split(data, MAGIC, sha256)[0]["manifest"]


def _indexed_blocks(model: RealmForOpenQA, tokenizer: RealmTokenizerFast, documents: list[Document]) -> list[Block]:
    """The blocks whose embeddings the model holds; ValueError if the documents give another number of them."""
    blocks = list(cut_blocks(documents, tokenizer, _max_wordpieces(model.config)))
    if len(blocks) != model.block_emb.shape[0]:
        raise ValueError(
            f"the documents give {len(blocks)} blocks and the model has {model.block_emb.shape[0]} block embeddings: "
            "give the documents that it was indexed with"
        )
    return blocks


def _max_wordpieces(config: RealmConfig) -> int:
    """How long blocks are cut, in wordpieces."""
    return min(MAX_WORDPIECES, config.max_position_embeddings)


def _manifest(config: RealmConfig, blocks: list[Block], corpus: str, weights: _Weights) -> dict[str, Any]:
    return {
        "corpus": corpus_hash(blocks),
        "corpus_name": corpus,
        "blocks": len(blocks),
        "max_wordpieces": _max_wordpieces(config),
        "weights": sum(matrix.size for matrix in weights.matrices.values()),
    }


def _largest_within(budget: int, packed: Callable[[float, bool], bytes]) -> bytes:
    """The file with the finest steps that fits; `packed(levels, draft)` grows with the levels, a draft is quick."""
    fitting = bisect.bisect_right(LEVELS, budget, key=lambda levels: len(packed(levels, True)))
    for levels in reversed(LEVELS[:fitting]):
        data = packed(levels, False)  # a little larger than the draft: the weights carry earlier errors
        if len(data) <= budget:
            return data
    smallest = len(packed(LEVELS[0], False))
    raise ValueError(f"the smallest file has {smallest:,} bytes, the budget is {budget:,}: raise it")


@checked
def load_packed(path: str | os.PathLike) -> tuple[RealmForOpenQA, RealmTokenizerFast, dict[str, Any]]:
    """Read what `pack` wrote.

    Returns:
        The model, float32, in evaluation mode, without a retriever; weights that no output depends on are zeros. Its
        tokenizer. The manifest: `corpus` (`corpus_hash` of the blocks), `corpus_name`, `blocks`, `max_wordpieces` (how
        they were cut), `weights` (how many are quantised), `levels` (steps a standard deviation).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is damaged, cut short, or another file.
    """
    header, streams = read_packed(path)
    with damage_told(Path(path)):
        return *build(header, *streams), header["manifest"]


def read_packed(path: str | os.PathLike) -> tuple[dict[str, Any], tuple[Bytes, Bytes, Bytes]]:
    """The header of a packed file, and its codes as plain int8, steps and vectors; raises as `load_packed`."""
    path = Path(path)
    check_readable(path, f"{path} does not exist: give the file of a packed model")
    with damage_told(path):
        header, (codes, steps, vectors) = split(path.read_bytes(), MAGIC, sha256)
        weights = header["manifest"]["weights"]
        if not 0 <= weights <= 8 * len(codes):  # Huffman's codes have a bit each, at least
            raise ValueError(f"it says that it holds {weights:,} weights, in {len(codes):,} bytes")
        return header, (zlib.decompressobj(-15).decompress(codes, weights + 1), steps, vectors)


def digest_of(path: str | os.PathLike) -> str:
    """The sha256 (hexadecimal) that stands in a packed file; the file is not compared with it."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC) + hashlib.sha256().digest_size)[len(MAGIC) :].hex()


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file's bytes into one ValueError."""
    try:
        with causes_named(path):
            yield
    except (
        ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error, zlib.error,
    ) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read ({error}): it is damaged or no packed model; fetch it again") from None


def build(
    header: dict[str, Any], codes: Bytes, steps: Bytes, vectors: Bytes, **arguments: Any
) -> tuple[RealmForOpenQA, RealmTokenizerFast]:
    """The model and the tokenizer of what `read_packed` returns; `arguments` are RealmForOpenQA's own."""
    config = RealmConfig.from_dict(header["config"])
    _check_sizes(config, header["copies"], codes, steps, vectors)
    model = RealmForOpenQA(config, initialize=False, **arguments)
    tensors = model.state_dict()
    _fill({key: tensor for key, tensor in tensors.items() if key not in header["copies"]}, codes, steps, vectors)
    for key, source in header["copies"].items():
        part, _, name = key.partition(".")
        model.parts[part].p[name] = copy_on_write(tensors[source])
    return model.eval(), tokenizer_of(header)


# ---- vocabulary


def _prune(
    config: RealmConfig,
    tokenizer: RealmTokenizerFast,
    documents: list[Document],
    blocks: list[Block],
    extra_texts: list[str],
    common_pieces: int,
) -> tuple[list[int], dict[str, Any]]:
    """Ids of the wordpieces that stay, and what the header says of configuration and tokenizer with these alone.

    Raises:
        ValueError: the tokenizer has added tokens, or the documents are cut into other blocks with what is left.
    """
    texts = (text for block in blocks for text in block)
    common = [i for piece, i in tokenizer.vocab.items() if i < common_pieces and not piece.startswith("[unused")]
    tokens = _config_tokens(config)
    stay = pieces_that_stay(tokenizer, texts, extra_texts, [*common, *tokens.values()])
    vocabulary = tokenizer.convert_ids_to_tokens(stay)
    settings = {name: getattr(tokenizer, name) for name in _TOKENIZER_SETTINGS}
    if list(cut_blocks(documents, _tokenizer(vocabulary, settings), _max_wordpieces(config))) != blocks:
        raise ValueError("the pruned vocabulary cuts the documents into other blocks: give their words as extra_texts")
    pruned = config.to_dict() | {"vocab_size": len(stay)}
    pruned |= {name: stay.index(token) for name, token in tokens.items()}
    return stay, {"config": pruned, "tokenizer": settings, "vocabulary": vocabulary}


def pieces_that_stay(
    tokenizer: RealmTokenizerFast, texts: Iterable[str], extra_texts: Iterable[str], ids: Iterable[int]
) -> list[int]:
    """Ids that the pruned vocabulary keeps, ascending: those in the texts, `ids`, special tokens, single characters.

    Texts are then spelt with the same pieces as before: WordPiece takes the longest piece of the vocabulary each time,
    and that one is stay, while the longer ones that are gone did not fit before either. Other words are spelt with
    shorter pieces, of single characters at the worst.
    """
    special = {getattr(tokenizer, f"{name}_id") for name in SPECIAL_TOKEN_NAMES}
    if added := sorted(set(tokenizer.added_tokens_decoder) - special):
        raise ValueError(f"the tokenizer has added tokens, ids {added}: packed models have none")
    stay = special | set(ids)
    stay.update(index for piece, index in tokenizer.vocab.items() if len(piece.removeprefix("##")) == 1)
    for encoded in tokenizer([*texts, *extra_texts, ""], add_special_tokens=False)["input_ids"]:
        stay.update(encoded)
    return sorted(stay)


def _config_tokens(config: RealmConfig) -> dict[str, int]:
    found = {name: getattr(config, name) for name in _CONFIG_TOKENS}
    return {name: token for name, token in found.items() if token is not None}


def tokenizer_of(header: dict[str, Any]) -> RealmTokenizerFast:
    return _tokenizer(header["vocabulary"], header["tokenizer"])


def _tokenizer(vocabulary: list[str], settings: dict[str, Any]) -> RealmTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8", newline="\n")
        return RealmTokenizerFast(vocab_file=file, **settings)


# ---- weights


class _Weights(NamedTuple):
    """A model's weights before they are rounded.

    matrices, vectors: float32, by key. copies: keys that hold the same numbers as an earlier one, with that one.
    feedbacks: U of `feedback_factor`, by the keys of the matrices that have a sample of their inputs.
    """

    matrices: dict[str, np.ndarray]
    vectors: dict[str, np.ndarray]
    copies: dict[str, str]
    feedbacks: dict[str, np.ndarray]


def _to_store(
    model: RealmForOpenQA, tokenizer: RealmTokenizerFast, blocks: list[Block], extra_texts: list[str], stay: list[int]
) -> _Weights:
    """The weights of what the pruned model reads, and a sample of what its dense layers do."""
    matrices, vectors, copies = _sorted_by_form(model.state_dict(), stay)
    moments = input_moments(model, tokenizer, blocks, extra_texts)
    feedbacks = {key: feedback_factor(moments[key]) for key in matrices if key in moments}
    return _Weights(matrices, vectors, copies, feedbacks)


def _sorted_by_form(
    state_dict: dict[str, Tensor], stay: list[int]
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
        array = np.ascontiguousarray(array[stay] if key.endswith(_WORDS) else array)
        same = [other for other, matrix in matrices.items() if np.array_equal(matrix, array)]
        if same:
            copies[key] = same[0]
        else:
            (matrices if is_quantized(key, array.shape) else vectors)[key] = array
    return matrices, vectors, copies


def is_quantized(key: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "token_type" not in key and shape[0] > 1


def levels_of(key: str, levels: float) -> float:
    """Steps a standard deviation of one matrix, where the trunk has `levels`."""
    if key.endswith(_WORDS):
        return WORD_LEVELS * levels
    if ".realm.encoder." in key or ".position_embeddings." in key:
        return levels * (EMBEDDER_LEVELS if key.startswith("embedder.") else 1)
    return FINE_LEVELS


def input_moments(
    model: RealmForOpenQA, tokenizer: RealmTokenizerFast, blocks: list[Block], questions: list[str]
) -> dict[str, np.ndarray]:
    """E[x xᵀ] [inputs, inputs] float32 of what each dense layer of the two trunks reads, by the key of its weight.

    The sample: blocks and questions, evenly spaced, for the embedder; each of those blocks with a question (where
    there are none, its title) for the reader.
    """
    blocks = blocks[:: -(-len(blocks) // SAMPLE_BLOCKS)]
    questions = questions[:: -(-len(questions) // SAMPLE_QUESTIONS)] if questions else []
    asked = [questions[i % len(questions)] if questions else block.title for i, block in enumerate(blocks)]
    titles, texts = [block.title for block in blocks], [block.text for block in blocks]
    records = [record(block).decode() for block in blocks]
    sums: dict[str, Tensor] = {}
    for name, pairs in (("embedder", [(titles, texts), (questions, None)]), ("reader", [(asked, records)])):
        for first, second in pairs:
            for start in range(0, len(first), SAMPLE_BATCH):
                batch = slice(start, start + SAMPLE_BATCH)
                inputs = tokenizer(
                    first[batch],
                    None if second is None else second[batch],
                    truncation=True,
                    max_length=min(model.config.reader_seq_len, model.config.max_position_embeddings),
                    return_tensors="pt",
                )
                for key, x in _dense_inputs(model.parts[name], inputs):
                    key = f"{name}.{key}"
                    sums[key] = sums.get(key, 0) + x.t() @ x / len(x)
    return {key: moment.cpu().numpy() for key, moment in sums.items()}


def _dense_inputs(part: Any, inputs: Any) -> Iterator[tuple[str, Tensor]]:
    """The key of each dense weight of a part's trunk, and the rows [tokens of the batch, inputs] that it multiplies."""
    batch = checked_batch(part.config, Inputs(inputs.input_ids, inputs.attention_mask, inputs.token_type_ids))
    _, kept = bert(part.p, part.config, batch, "unpadded", Run(keep=True))
    return dense_inputs(kept)


# ---- the file


def _assemble(header: dict[str, Any], manifest: dict[str, Any], weights: _Weights, levels: float, draft: bool) -> bytes:
    """The file with the trunk's matrices rounded to `levels` steps a standard deviation."""
    coder, codes, steps = new_coder(), [], []
    for key, matrix in weights.matrices.items():
        rounded, rows, columns = quantize(matrix, levels_of(key, levels), weights.feedbacks.get(key), draft)
        # The coder adapts its table as it goes: like beside like.
        codes.append(coder.compress(rounded.T[stored_order(columns)].tobytes()))
        steps += [rows.astype("<f2").tobytes(), columns.astype("<f2").tobytes()]
    streams = [
        b"".join((*codes, coder.flush())),
        b"".join(steps),
        b"".join(vector.astype("<f2").tobytes() for vector in weights.vectors.values()),
    ]
    stated = {"copies": weights.copies, "manifest": manifest | {"levels": round(levels, 3)}}
    return join(header | stated, streams, MAGIC, sha256)


def new_coder() -> Any:
    return zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)  # the codes repeat nothing worth a match


def sha256(data: Bytes) -> bytes:
    return hashlib.sha256(data).digest()


def join(header: dict[str, Any], streams: Sequence[Bytes], magic: bytes, checksum: Checksum) -> bytes:
    """A file's bytes: the magic, a checksum of the rest, the header's length, the header, the streams."""
    text = zlib.compress(json.dumps(header | {"streams": [len(stream) for stream in streams]}).encode(), 9)
    payload = b"".join((struct.pack("<I", len(text)), text, *streams))
    return magic + checksum(payload) + payload


def split(data: bytes | mmap.mmap, magic: bytes, checksum: Checksum) -> tuple[dict[str, Any], list[memoryview]]:
    """The header and the streams of what `join` returned; ValueError if a single byte is not as it was."""
    view, start = memoryview(data), len(magic) + len(checksum(b""))
    if data[: len(magic)] != magic:
        raise ValueError("it does not begin as such files do")
    if checksum(view[start:]) != data[len(magic) : start]:
        raise ValueError("its checksum is wrong")
    (length,) = struct.unpack_from("<I", data, start)
    start += 4
    header = json_object(_inflated(view[start : start + length]))
    start += length
    streams = []
    for length in header["streams"]:
        streams.append(view[start : start + length])
        start += length
    return header, streams


def _inflated(data: Bytes) -> bytes:
    """A header's text; ValueError if it is longer than such text is, which deflated has a third of its length."""
    inflater, longest = zlib.decompressobj(), 4096 + 16 * len(data)
    text = inflater.decompress(data, longest)
    if not inflater.eof:
        raise ValueError(f"its header is cut short, or inflates to more than {longest:,} bytes")
    return text


def copy_on_write(tensor: Tensor) -> Tensor:
    """A copy that takes its memory when either side is first written to, which no answer does; a plain copy elsewhere.

    Tensors have had it since torch 2.2, under a name that it does not promise to keep.
    """
    try:
        return torch._lazy_clone(tensor)  # pyright: ignore[reportPrivateImportUsage]  # no stub names it
    except (AttributeError, RuntimeError):  # no such name; memory that is not torch's own
        return tensor.clone()


def _check_sizes(config: RealmConfig, copies: dict[str, str], codes: Bytes, steps: Bytes, vectors: Bytes) -> None:
    """ValueError if the streams are not of the lengths that the configuration asks for; nothing is allocated yet."""
    if config.num_hidden_layers > len(vectors):
        raise ValueError(f"its configuration has {config.num_hidden_layers:,} layers, it has {len(vectors):,} bytes")
    shapes = {key: shape for key, shape in RealmForOpenQA.all_shapes(config).items() if not isinstance(shape, str)}
    for key, source in copies.items():
        if shapes[key] != shapes[source] or source in copies:
            raise ValueError(f"{key} is to be a copy of {source}, and has another shape")
    stored = {key: shape for key, shape in shapes.items() if key not in copies and not UNREAD.fullmatch(key)}
    matrices = {key: shape for key, shape in stored.items() if is_quantized(key, shape)}
    for what, found, asked in (
        ("weights", len(codes), sum(map(math.prod, matrices.values()))),
        ("steps", len(steps), 2 * sum(map(sum, matrices.values()))),
        ("vectors", len(vectors), 2 * sum(math.prod(shape) for key, shape in stored.items() if key not in matrices)),
    ):
        if found != asked:
            raise ValueError(f"it holds {found:,} bytes of {what}, and its configuration asks for {asked:,}")


def _fill(tensors: dict[str, Tensor], codes: Bytes, steps: Bytes, vectors: Bytes) -> None:
    """Write the weights into a new model's tensors, in place; those that no output depends on are zeros already."""
    stored = {key: tensor for key, tensor in tensors.items() if not UNREAD.fullmatch(key)}
    matrices = {key for key, tensor in stored.items() if is_quantized(key, tuple(tensor.shape))}
    all_codes = np.frombuffer(codes, np.int8)
    all_steps, all_vectors = np.frombuffer(steps, "<f2"), np.frombuffer(vectors, "<f2")
    if not (np.isfinite(all_steps).all() and np.isfinite(all_vectors).all()):
        raise ValueError("it holds a step or a bias that is not finite")
    ordered = np.empty(max((stored[key].numel() for key in matrices), default=0), np.int8)
    next_codes, next_steps, next_vector = _taking(all_codes), _taking(all_steps), _taking(all_vectors)
    for key, tensor in stored.items():
        if key in matrices:
            rows, columns = next_steps(tensor.shape[0]), next_steps(tensor.shape[1])
            # [columns, rows], as a dense layer's weight lies in memory.
            by_column = ordered[: tensor.numel()].reshape(len(columns), len(rows))
            by_column[stored_order(columns)] = next_codes(tensor.numel()).reshape(by_column.shape)
            dequantize(
                np.ascontiguousarray(by_column.T) if tensor.is_contiguous() else by_column.T, rows, columns, tensor
            )
        else:
            array = next_vector(tensor.numel()).reshape(tensor.shape).astype(np.float32)
            tensor.copy_(torch.from_numpy(array))


def _taking(array: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function that hands out `array` piece by piece, from its start."""
    place = 0

    def take(count: int) -> np.ndarray:
        nonlocal place
        place += count
        return array[place - count : place]

    return take
