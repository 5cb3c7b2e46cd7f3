"""Exact search over blocks that no rank holds whole: each rank searches its slice, one exchange merges what they found.

The ranks' slices are consecutive rows of the block embeddings, [blocks, proj]. The score of a block does not depend on
what else is searched (`mips.exact_scores`), and among equal scores the smaller number wins; so the k best of all blocks
are the k best of every slice's k best, and the answer has the bits of one `BlockIndex`, whatever the number of ranks.

A search is a collective: every rank calls it, with queries of its own. Three exchanges make it up, of a few numbers a
rank (how many queries, what k), of the queries, and of k candidates a query and rank, each one int64 that ranks as
(score, number) does:

    rank 0   its queries --+            +-- all queries over slice 0 --+            +-- k best of its queries
    rank 1   its queries --+-> gather --+-- all queries over slice 1 --+-> scatter -+-- k best of its queries
    rank 2   none        --+            +-- all queries over slice 2 --+            +-- none
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import kinds
from ..files.checkpoint import read_state_dict
from ..files.npy_file import map_npy
from ..files.safetensors_file import read_safetensors
from ..kinds import checked, device_of
from ..ranks.distributed import World, world
from . import mips
from .bounds import BASE_GROUP
from .checks import checked_rows, plain_count
from .mips import BlockIndex, SearchReport

KEY = "block_emb"  # of the block embeddings in a checkpoint
NO_CANDIDATE = torch.iinfo(torch.int64).min  # ranks below every key
FOLLOWS, REFUSES = -1, -2  # in place of a rank's number of queries


@dataclass
class ShardedSearchReport:
    """What one search did, on one rank."""

    queries: int  # of all ranks
    seconds_searching: float  # this rank's slice
    seconds_exchanging: float  # in collectives, where it also waits for slower ranks
    slice: SearchReport | None  # of all queries over this rank's slice; None if that is empty


class ShardedBlockIndex:
    """Block embeddings [N, D], to be searched exactly by all ranks together, each on its slice.

    To build one is a collective too, and so is a search; `rows` is not.

        with distributed.join():                      # torchrun --nproc-per-node 2 script.py
            index = ShardedBlockIndex.load("folder")  # or of a tensor: ShardedBlockIndex(blocks)
            scores, ids = index.search(queries, k=5)  # of this rank's queries

    Args:
        blocks: all of them, [N, D], of which the rank's slice alone is read (a memory map of them is enough); or, with
            `total`, that slice: the rows `world.slice_of(total)`, none of them where there are fewer than ranks.
        compression: as BlockIndex.
        total: N, where `blocks` are a slice.
        device: where the slice is searched, and queries and results are; None: where `blocks` are.
        world: the ranks; None: all that have joined.

    Raises:
        ValueError: as BlockIndex, the same on every rank; blocks that differ in number, dimensions or dtype between the
            ranks.
    """

    @checked
    def __init__(
        self,
        blocks: Tensor,
        compression: str | None = None,
        *,
        total: int | None = None,
        device: str | torch.device | None = None,
        world: World | None = None,
    ) -> None:
        self.world = world = _joined(world)
        self.compression = compression
        self.last_search: ShardedSearchReport | None = None
        self._blocks = blocks
        self._slice: BlockIndex | None = None  # None: this rank has no block
        self._first_row = 0  # of `blocks`
        self._range: range  # of the slice's rows
        self._sample: Tensor  # [0, D], of the slice's dtype and on its device
        kinds = world.gather_results(lambda: self._take_slice(blocks, total, device))
        _check_same_kind(kinds)
        self._total = kinds[0][0]

    def _take_slice(
        self, blocks: Tensor, total: int | None, device: str | torch.device | None
    ) -> tuple[int, int, torch.dtype]:
        """Index this rank's rows. -> N, D and dtype of all blocks, as this rank sees them"""
        if not blocks.dim():
            raise ValueError("blocks have shape (): give [blocks, dimensions]")
        mips.check_blocks(blocks if total is None or len(blocks) else blocks.new_zeros(1, *blocks.shape[1:]))
        number = len(blocks) if total is None else total
        if not 0 <= number < 2**63:
            raise ValueError(f"total={number} is no number of blocks: give how many there are on all ranks")
        rows = self.world.slice_of(number, BASE_GROUP)
        self._range = range(rows.start, rows.stop)
        if total is not None:
            self._first_row = rows.start
            if len(blocks) != len(self._range):
                raise ValueError(
                    f"rank {self.world.rank} was given a slice of {len(blocks)} blocks: of {total} it takes "
                    f"{len(self._range)}, those of world.slice_of({total})"
                )
        mine = blocks[rows.start - self._first_row : rows.stop - self._first_row].to(
            device_of(device) if device else blocks.device
        )
        self._sample = mine[:0]
        if len(mine):
            self._slice = BlockIndex(mine, self.compression, first=rows.start)
        return number, blocks.shape[1], blocks.dtype

    @classmethod
    @checked
    def load(
        cls,
        path: str | os.PathLike,
        compression: str | None = None,
        *,
        device: str | torch.device | None = None,
        world: World | None = None,
    ) -> ShardedBlockIndex:
        """The index of a file, memory-mapped: each rank touches its slice, and what it asks `rows` for.

        Args:
            path: the same file on every rank: a checkpoint's folder or .safetensors file that holds `block_emb`, or
                a .npy file, [blocks, proj].

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is truncated or damaged, or holds no blocks to search. Checksums are checked, each rank's
                slice by that rank.
        """
        world = _joined(world)
        return cls(read_blocks(path, world), compression, device=device, world=world)

    def __len__(self) -> int:
        return self._total

    def __repr__(self) -> str:
        held = f"{len(self)} x {self.dimensions} {self._sample.dtype}, compression={self.compression!r}, {self.device}"
        here = f"rank {self.world.rank} of {self.world.size} has {len(self._range)} from {self._range.start} on"
        return f"ShardedBlockIndex({held}, {here})"

    @property
    def dimensions(self) -> int:
        return self._sample.shape[1]

    @property
    def device(self) -> torch.device:
        return self._sample.device

    @checked
    def rows(self, ids: Tensor) -> Tensor:
        """The vectors of blocks ids [...] int64 -> [..., D], on the index's device; no other rank is asked.

        Raises:
            ValueError: the index was built of slices, and a block is of another one.
        """
        ids = checked_rows(ids, len(self))
        places = ids.to(self._blocks.device) - self._first_row
        if places.numel() and not 0 <= int(places.min()) <= int(places.max()) < len(self._blocks):
            raise ValueError(
                f"blocks {int(ids.min())} to {int(ids.max())} were asked for, and rank {self.world.rank} has "
                f"{self._first_row} to {self._first_row + len(self._blocks) - 1}: give each rank a memory map of all"
            )
        return self._blocks[places].to(self.device)

    def search(self, queries: Tensor, k: int, *, same: bool = False) -> tuple[Tensor, Tensor]:
        """`mips_topk` of this rank's queries [Q, D] over all blocks; Q may differ between the ranks, and may be 0.

        Args:
            k: the same on every rank.
            same: every rank has the same queries, and wants all their results: they are searched once.

        Returns:
            scores [Q, k] float32 and ids [Q, k] int64, those of one BlockIndex to the bit.

        Raises:
            ValueError: as `mips_topk`, on every rank, where one rank's queries or k cannot be searched; k or `same`
                differ between the ranks, or the queries do that should be the same.
        """
        started, k, refusal = time.perf_counter(), plain_count(k), None
        try:
            kinds.check("same", same, bool)
            mips.check_search(queries, self._sample, k, total=len(self))
            head = [queries.shape[0], k, _digest(queries) if same else 0, int(same)]
        except ValueError as error:
            refusal, head = error, [REFUSES, 0, 0, 0]
        heads = self._exchange_heads(head)
        if any(count == REFUSES for count, *_ in heads):
            self._raise_refusal(refusal, heads)
        return self._search(queries, heads, started)

    def follow(self) -> None:
        """Take part in the other ranks' searches, until no rank searches any more: all follow.

        So one rank may work alone, or each on as many batches as it has, while all search:

            for batch in mine:
                scores, ids = index.search(embed(batch), k)
            index.follow()
        """
        while True:
            started = time.perf_counter()
            heads = self._exchange_heads([FOLLOWS, 0, 0, 0])
            if all(count == FOLLOWS for count, *_ in heads):
                return
            if any(count == REFUSES for count, *_ in heads):
                self.world.gather_objects(None)  # the error is for those who search
            else:
                try:
                    self._search(self._sample, heads, started)
                except _Disagreement:
                    pass

    def _exchange_heads(self, head: list[int]) -> list[list[int]]:
        """What each rank has to search: its number of queries, k, a digest of the queries, whether all have the same"""
        return self.world.all_gather(torch.tensor(head, device=self.device)).tolist()

    def _raise_refusal(self, refusal: ValueError | None, heads: list[list[int]]) -> None:
        said = self.world.gather_objects(None if refusal is None else str(refusal))
        first = next(rank for rank, text in enumerate(said) if text is not None)
        by_all = all(text == said[first] for text, (count, *_) in zip(said, heads, strict=True) if count != FOLLOWS)
        raise ValueError(said[first] if by_all else f"rank {first} cannot search: {said[first]}")

    def _search(self, queries: Tensor, heads: list[list[int]], started: float) -> tuple[Tensor, Tensor]:
        k, same = self._agreed(heads)
        counts = [max(count, 0) for count, *_ in heads]
        if not any(counts):
            none = torch.empty(0, k, dtype=torch.float32, device=self.device)
            return none, none.long()
        if same:
            everything = queries
        else:
            # Of one length for the exchange; float32 holds what is float16 or bfloat16.
            padded = torch.zeros(max(counts), queries.shape[1], dtype=torch.float32, device=self.device)
            padded[: len(queries)] = queries
            gathered = self.world.all_gather(padded)
            everything = torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

        exchanged = time.perf_counter()
        keys = self._candidates(everything, k)  # [all queries, k]
        searched = time.perf_counter()

        found = self.world.all_gather(keys) if same else self.world.all_to_all(keys, counts)  # [ranks, queries, k]
        best = found.transpose(0, 1).flatten(1).topk(k).values
        ended = time.perf_counter()
        self.last_search = ShardedSearchReport(
            queries=len(everything),
            seconds_searching=searched - exchanged,
            seconds_exchanging=exchanged - started + ended - searched,
            slice=self._slice.last_search if self._slice else None,
        )
        return mips.unpack_keys(best)

    def _agreed(self, heads: list[list[int]]) -> tuple[int, bool]:
        """k, and whether all ranks have the same queries; the error is the same on every rank."""
        searching = [(rank, head) for rank, head in enumerate(heads) if head[0] != FOLLOWS]
        first, head = searching[0]
        for rank, other in searching:
            if other[1] != head[1]:
                raise _Disagreement(f"rank {first} searches for k = {head[1]} blocks, rank {rank} for {other[1]}")
            if other[3] != head[3] or (head[3] and (other != head or len(searching) < len(heads))):
                raise _Disagreement(
                    f"rank {first} and rank {rank} do not search with the same queries, and one was told that all do"
                )
        return head[1], bool(head[3])

    def _candidates(self, queries: Tensor, k: int) -> Tensor:
        """The keys of the k best blocks of this slice, best first, [Q, k] int64; filled up where it has fewer."""
        keys = torch.full((len(queries), k), NO_CANDIDATE, dtype=torch.int64, device=self.device)
        if self._slice is not None:
            count = min(k, len(self._slice))
            scores, ids = self._slice.search(queries, count)
            keys[:, :count] = mips.pack_keys(scores, ids + self._range.start)
        return keys


def _check_same_kind(kinds: list[tuple[int, int, torch.dtype]]) -> None:
    """Raise ValueError naming the first rank whose blocks are of another number, width or dtype than rank 0's."""
    for rank, other in enumerate(kinds):
        if other != kinds[0]:
            described = ["{} x {} {}".format(*one) for one in (kinds[0], other)]
            raise ValueError(
                f"rank 0 has {described[0]} blocks, rank {rank} {described[1]}: give all ranks slices of the same"
            )


class _Disagreement(ValueError):
    """Ranks that search differently; every rank notices, those that follow too."""


def read_blocks(path: str | os.PathLike, world: World | None = None) -> Tensor:
    """The block embeddings of a file [N, D], memory-mapped: what is not read costs no memory. See `load`."""
    path, world = Path(path), _joined(world)
    if path.suffix == ".npy":
        return torch.from_numpy(map_npy(path, world))
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path, KEY, world)
    else:
        tensors = read_state_dict(path, KEY, world)
    if KEY not in tensors:
        raise ValueError(f"{path} holds no {KEY!r}: give a model with blocks, made by realm-min index")
    return tensors[KEY]


def _joined(given: World | None) -> World:
    return world() if given is None else given


def _digest(queries: Tensor) -> int:
    """Of the queries' bytes: equal for equal queries, and for others hardly ever."""
    bits = queries.float().contiguous().view(torch.int32).long().view(-1)
    return int((bits * (2 * torch.arange(len(bits), device=bits.device) + 1)).sum())


def search_without(index: BlockIndex | ShardedBlockIndex, queries: Tensor, barred: Tensor, count: int) -> Tensor:
    """The `count` blocks of largest inner product with each query, without its barred ones.

    queries [batch, proj], barred [batch, most] int64 -> [batch, count] int64, best first. As many more are searched for
    as may be barred, so that the answer is exact. A number that no block has, -1 say, bars nothing. Each query has to
    have `count` blocks left.
    """
    _, ids = index.search(queries, min(count + barred.shape[1], len(index)))
    kept = (ids[:, :, None] != barred[:, None]).all(2)
    kept &= kept.cumsum(1) <= count  # where fewer were found that are barred, the last are too many
    return ids[kept].view(len(queries), count)
