"""Exact maximum inner product search (MIPS) over the block embeddings: the retriever's p(z|x) needs its top-k blocks
(REALM, section 3.3). No approximation and no score matrix.

On a CPU four steps find the answer:

1. Guess. Some rows, evenly spaced, are scored. Of the share of them that is k of N, and some more, the lowest score is
   taken for a threshold t: more than k of all rows should score as high.
2. Scan (`scan.py`). Scores of all rows are computed in the fastest arithmetic at hand. It is off by at most a bound b
   known for each row, so the true score lies in [score - b, score + b]. Rows whose upper end reaches t are kept.
3. Certify. The k-th largest lower end of the rows kept is a threshold no answer is under; rows whose upper end is below
   it are dropped.
4. Rescore (`rescore.py`). The rows left get their final score, and the k best of them are the answer, if the k-th
   reaches t: whatever was not kept scores less. If it does not, the guess was too high, and a lower one is tried.

So the guess decides how long a search takes, and never what it finds. A GPU (`kernels/mips_topk.py`) reduces the scores
of a group of G rows to their maximum, and certifies groups; notebook 3 does so step by step with `certify` of
`bounds.py`. The k best lie in the k groups of largest maximum, for a block in the top k has a score no smaller than the
k-th best, so has its group's maximum, and at most k groups can hold one. Ties go to the smaller id.

The bound b is proved, and computed, in `bounds.py`. The answer does not depend on the path, the tile or the batch.

Symbols: Q queries, N blocks, D dimensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ..kinds import checked, device_of
from ..ranks.devices import plain_arithmetic
from . import cpu_search
from .arithmetic import SCANS, Way, fastest, measured_queries
from .bounds import COMPRESSIONS, Codes, compress, finite_norm, limit_terms
from .checks import (
    BLOCK_DTYPES,
    check_blocks,
    check_search,
    check_search_shapes,
    checked_rows,
    plain_count,
    refuse_queries,
)
from .cpu_search import SearchReport
from .index_file import read_index, write_index
from .rescore import exact_scores, pack_keys, unpack_keys
from .scan import ARITHMETICS

__all__ = [
    "ARITHMETICS", "BLOCK_DTYPES", "COMPRESSIONS", "SCANS", "BlockIndex", "SearchReport", "check_blocks",
    "check_search", "check_search_shapes", "exact_scores", "finite_norm", "mips_topk", "pack_keys", "refuse_queries",
    "unpack_keys",
]  # fmt: skip

MANY = 8  # answers in all, times this, above the number of blocks: rescoring what int8 leaves costs what it saves
SMALL = 1 << 14  # blocks, among which no way to scan is worth being looked for


def mips_topk(queries: Tensor, blocks: Tensor, k: int, *, arithmetic: str | None = None) -> tuple[Tensor, Tensor]:
    """The k blocks of largest inner product with each query, exact, best first.

    queries [Q, D] and blocks [N, D]: float32, float16 or bfloat16, finite, on one device. Returns (scores [Q, k]
    float32 descending, ids [Q, k] int64); equal scores go to the smaller id. Search the same blocks again and again
    with a `BlockIndex`, which keeps the bounds and can scan a compressed copy.

    arithmetic: of a CPU's scan, as BlockIndex.

    Raises ValueError for k < 1 or k > N, shapes that do not match, other dtypes, queries that are not finite.
    """
    check_blocks(blocks)
    _check_choice("arithmetic", arithmetic, ARITHMETICS)
    k = plain_count(k)
    with _plain():
        blocks = blocks.detach().contiguous()
        if blocks.is_cuda:
            from realm_min.kernels import mips_topk as kernels

            return kernels.mips_topk(queries, blocks, k)
        check_search(queries, blocks, k)
        codes = Codes(blocks, None, 0, None, None)
        if arithmetic is None:
            arithmetic = _way({"blocks": codes}, len(queries), fill_norms=True).arithmetic
        return cpu_search.search(queries.detach(), blocks, codes, k, arithmetic)[:2]


class BlockIndex:
    """Block embeddings [N, D], ready to be searched exactly on their device.

    compression: what the scan reads. None: the blocks; "bfloat16": half the bytes of float32; "int8": a quarter. The
    answer is the same, whatever the compression; the copy costs memory and data it represents badly costs time.
    first: the number of the first block, for errors, where the blocks are a slice of more.
    scan: "codes" has a CPU read the compressed copy, "blocks" the blocks themselves.
    arithmetic: in which a CPU multiplies them, "torch", "numpy" or "native" (see `scan.py`).

    Both may be set later, too, of an index that was loaded, say. What of the two is None is chosen at the first search
    of so many queries, by what is the fastest on this machine: it is measured once a process, some milliseconds, and
    shown by `repr`. The answer is the same.

    Raises ValueError for blocks that are empty, not [N, D] float32/float16/bfloat16, or not finite (naming the row).
    """

    @checked
    def __init__(
        self,
        blocks: Tensor,
        compression: str | None = None,
        *,
        first: int = 0,
        scan: str | None = None,
        arithmetic: str | None = None,
    ) -> None:
        check_blocks(blocks)
        _check_choice("compression", compression, COMPRESSIONS)
        _check_choice("scan", scan, SCANS)
        _check_choice("arithmetic", arithmetic, ARITHMETICS)
        with _plain():
            self.blocks = blocks.detach().contiguous()
            self._codes = compress(self.blocks, compression, first)
        self.compression, self.scan, self.arithmetic = compression, scan, arithmetic
        self.chosen: dict[int, Way] = {}  # by the number of queries it was measured with
        self._ways: dict[tuple[int, str | None, str | None, int], Way] = {}  # and what was given, and the threads
        self._kept: dict[str, tuple[Codes, Codes]] = {}  # what each scan reads, and a sample of it
        self.last_search: SearchReport | None = None

    def __len__(self) -> int:
        return self.blocks.shape[0]

    def __repr__(self) -> str:
        n, d = self.blocks.shape
        how = f"compression={self.compression!r}"
        how += "".join(
            f", {name}={value!r}" for name, value in (("scan", self.scan), ("arithmetic", self.arithmetic)) if value
        )
        how += "".join(f", {count} at once: {way}" for count, way in sorted(self.chosen.items()))
        return f"BlockIndex({n} x {d} {self.blocks.dtype}, {how}, {self.blocks.device})"

    @property
    def device(self) -> torch.device:
        return self.blocks.device

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks, their compressed copy and the bounds."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    @checked
    def rows(self, ids: Tensor) -> Tensor:
        """The vectors of blocks ids [...] int64 -> [..., D]. Raises ValueError for ids of no block."""
        return self.blocks[checked_rows(ids, len(self)).to(self.device)]

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """`mips_topk` of queries [Q, D] over the index; `last_search` then tells how much was rescored."""
        k = plain_count(k)
        with _plain():
            if self.blocks.is_cuda:
                from realm_min.kernels import mips_topk as kernels

                scores, ids, self.last_search = kernels.search(queries, self.blocks, self._codes, k)
            else:
                check_search(queries, self.blocks, k)
                codes, way = self._scanned(len(queries), k)
                sample = self._kept[way.scan][1]
                found = cpu_search.search(queries.detach(), self.blocks, codes, k, way.arithmetic, sample)
                scores, ids, self.last_search = found
        return scores, ids

    def _scanned(self, queries: int, k: int) -> tuple[Codes, Way]:
        """What a search for the k best of so many queries reads on this CPU, and how."""
        if not self._kept:
            kept = {}  # whole before it is seen: another thread may search, too
            for name, codes in self._readable().items():
                codes = replace(codes, terms=limit_terms(codes, slice(None)))
                kept[name] = codes, cpu_search.sample_codes(codes, cpu_search.SAMPLE_ROWS[1])
            self._kept = kept
        measured = measured_queries(queries)
        many = self.scan is None and self._codes.scale is not None and k * queries * MANY > len(self)
        scan = "blocks" if many else self.scan
        alike = measured, scan, self.arithmetic, torch.get_num_threads()
        if alike not in self._ways:
            _check_choice("scan", self.scan, SCANS)
            _check_choice("arithmetic", self.arithmetic, ARITHMETICS)
            readable = {name: codes for name, (codes, _) in self._kept.items()}
            if scan in readable:
                readable = {scan: readable[scan]}
            self._ways[alike] = _way(readable, queries, self.arithmetic)
        way = self._ways[alike]
        if not many:
            self.chosen[measured] = way
        return self._kept[way.scan][0], way

    def _readable(self) -> dict[str, Codes]:
        """What can be scanned, by its name: uncompressed, the codes are the blocks."""
        codes = self._codes
        if codes.residual is None or codes.norm is None:
            return {"codes": codes}
        blocks = Codes(self.blocks, None, 0, None, codes.norm + codes.residual)  # ||e|| <= ||ê|| + r
        return {"codes": codes, "blocks": blocks}

    @checked
    def to(self, device: str | torch.device) -> BlockIndex:
        """This index on `device` (itself, when it is there already)."""
        if device_of(device) == self.device:
            return self
        return self._restore({name: tensor.to(device) for name, tensor in self._tensors().items()}, self._header())

    @checked
    def save(self, path: str | os.PathLike) -> None:
        """Write the index as one safetensors file with a checksum, complete or not at all."""
        write_index(path, self._header(), self._tensors())

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike, device: str | torch.device = "cpu") -> BlockIndex:
        """The index written by `save`. Raises FileNotFoundError, and ValueError for a file that is not whole."""
        device = device_of(device)
        header, tensors = read_index(path)
        return cls._restore({name: tensor.to(device) for name, tensor in tensors.items()}, header)

    def _header(self) -> dict:
        return {"compression": self.compression, "exponent": self._codes.exponent}

    def _tensors(self) -> dict[str, Tensor]:
        codes = self._codes
        tensors = {"blocks": self.blocks, "norm": codes.norm}
        if codes.residual is not None:
            tensors |= {"codes": codes.codes, "residual": codes.residual}
        if codes.scale is not None:
            tensors["scale"] = codes.scale
        return tensors

    @classmethod
    def _restore(cls, tensors: dict[str, Tensor], header: dict) -> BlockIndex:
        index = cls.__new__(cls)
        index.blocks, index.compression, index.last_search = tensors["blocks"], header["compression"], None
        index.scan = index.arithmetic = None  # the machine may be another
        index.chosen, index._ways, index._kept = {}, {}, {}
        index._codes = Codes(
            codes=tensors.get("codes", tensors["blocks"]),
            scale=tensors.get("scale"),
            exponent=header["exponent"],
            residual=tensors.get("residual"),
            norm=tensors["norm"],
        )
        return index


def _check_choice(name: str, value: object, choices: tuple) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name} is {value!r}: choose one of {choices}")


@contextmanager
def _plain() -> Iterator[None]:
    """Compute without gradients, casts and inference mode, whatever a caller is in: results are ordinary tensors."""
    ordinary = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with ordinary, plain_arithmetic("cpu"):
        yield


def _way(readable: dict[str, Codes], queries: int, arithmetic: str | None = None, fill_norms: bool = False) -> Way:
    """How to scan one of what can be read, by the name of each scan."""
    arithmetics = ARITHMETICS if arithmetic is None else (arithmetic,)
    *_, (scan, codes) = readable.items()
    if len(codes.codes) < SMALL or (len(readable) == len(arithmetics) == 1):
        return Way(scan, arithmetics[0])
    return fastest(readable, arithmetics, measured_queries(queries), torch.get_num_threads(), fill_norms)
