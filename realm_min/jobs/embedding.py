"""Embed_doc of every block (REALM section 3.2), a shard at a time: the same bits for any number of ranks and threads.

On a CPU a block is embedded alone, so that its bits do not depend on what else is embedded: how a library adds up a
product depends on the number of rows, and a sum over tokens on theirs. That costs nothing, since a full block fills a
core; short ones would be faster together. A GPU needs batches, whose rows differ from those of others by roundings. No
batch crosses a shard, so that the number of ranks does not matter there either.

One thread computes a batch from end to end. (Several threads that share a product may add it up in another order; MKL's
do, where it has few rows.) A process with several threads computes as many batches at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import kinds
from ..interface.base import RealmModel
from ..interface.inputs import Inputs, checked_batch
from ..model.bert import PLAIN
from ..model.realm import embed as embed_batch
from ..ranks import distributed
from ..ranks.devices import plain_arithmetic
from ..text.corpus import Block
from ..text.sequences import pad

SHARD_SIZE = 64  # blocks: what a stop can cost a rank
GPU_BATCH_SIZE = 64


Item = TypeVar("Item")

# Called as report(stage, done, total) as work goes on, with a note on how it goes where there is one; total is None
# while nobody knows it.
Report = Callable[..., None]


# ---- shards
def shards_of(blocks: list[Item]) -> list[list[Item]]:
    """The blocks, `SHARD_SIZE` at a time."""
    return [blocks[start : start + SHARD_SIZE] for start in range(0, len(blocks), SHARD_SIZE)]


def parts_of(shards: dict[int, list[Block]], tokenizer: Any) -> list[list[int]]:
    """Which of the numbered shards each rank embeds, ascending: about as many tokens as any other rank.

    The longest first, each goes to the rank that has the fewest tokens so far (Graham 1969, "Bounds on multiprocessing
    timing anomalies"); the ranks count the tokens together.
    """
    world = distributed.world()
    if world.size == 1:
        return [list(shards)]
    counted = {number: sum(_lengths(shards[number], tokenizer)) for number in world.share(list(shards))}
    tokens = {number: count for part in world.gather_objects(counted) for number, count in part.items()}
    totals, parts = [0] * world.size, [[] for _ in range(world.size)]
    for number in sorted(tokens, key=lambda number: (-tokens[number], number)):
        rank = totals.index(min(totals))
        totals[rank] += tokens[number]
        parts[rank].append(number)
    return [sorted(part) for part in parts]


# ---- embeddings
def embed_on_ranks(
    embedder: Any, tokenizer: Any, blocks: list[Block], advance: Callable[[int], None] = lambda count: None
) -> Tensor:
    """What `embed_blocks` returns, bit for bit, on every rank of `distributed.world()`; each computes its part.

    All ranks call it, with the same blocks and weights. `advance(count)` is called batch by batch, as if the other
    ranks had come as far with their parts.
    """
    world = distributed.world()
    if world.size == 1:
        return embed_blocks(embedder, tokenizer, blocks, advance)
    shards = shards_of(blocks)
    parts = parts_of(dict(enumerate(shards)), tokenizer)
    # A short shard is the last of all, so also of its part: `embed_blocks` makes the same shards of it again.
    part = [block for number in parts[world.rank] for block in shards[number]]
    done = told = 0

    def advance_all(count: int) -> None:
        nonlocal done, told
        done += count
        advance(len(blocks) * done // len(part) - told)
        told = len(blocks) * done // len(part)

    own = embed_blocks(embedder, tokenizer, part, advance_all)
    padded = own.new_zeros(max(sum(len(shards[number]) for number in numbers) for numbers in parts), own.shape[1])
    padded[: len(own)] = own
    embeddings = own.new_empty(len(blocks), own.shape[1])
    rows = embeddings.split(SHARD_SIZE)
    for numbers, gathered in zip(parts, world.all_gather(padded), strict=True):
        start = 0
        for number in numbers:
            rows[number].copy_(gathered[start : start + len(rows[number])])
            start += len(rows[number])
    return embeddings


def embed_blocks(
    embedder: RealmModel, tokenizer: Callable, blocks: list[Block], advance: Callable[[int], None] = lambda count: None
) -> Tensor:
    """Embed_doc of each block, [blocks, proj] float32 on the CPU; `advance(count)` is called batch by batch.

    Within a shard, batches are of similar lengths, so that few of their tokens are padding.
    """
    kinds.check("embedder", embedder, RealmModel)
    kinds.check("tokenizer", tokenizer, Callable)
    kinds.check("blocks", blocks, str | Sequence)  # of text it is told below what is wanted
    batch_size = 1 if embedder.device.type == "cpu" else GPU_BATCH_SIZE
    embeddings = torch.empty(len(blocks), embedder.config.retriever_proj_size, dtype=torch.float32, device="cpu")

    def embed(inputs: Any) -> Tensor:
        batch = checked_batch(embedder.config, Inputs(**inputs))
        with plain_arithmetic(embedder.device.type):
            return embed_batch(embedder.p, embedder.config, batch, PLAIN)[0][0]  # [batch, proj]

    with _side_by_side(embedder.device) as apply:
        for number, shard in enumerate(shards_of(blocks)):
            rows = embeddings[number * SHARD_SIZE :]
            encoded = tokenizer(*_pairs(shard))
            pieces = [np.stack(row, 1) for row in zip(encoded["input_ids"], encoded["token_type_ids"], strict=True)]
            order = sorted(range(len(shard)), key=lambda i: -len(pieces[i]))  # the last to end are short
            batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
            inputs = (pad([pieces[i] for i in batch], embedder) for batch in batches)
            for batch, projected in zip(batches, apply(embed, inputs), strict=True):
                rows[batch] = projected.float().cpu()
                _check_finite([shard[i].title for i in batch], rows[batch])
                advance(len(batch))
    return embeddings


def _check_finite(titles: list[str], embeddings: Tensor) -> None:
    """ValueError if an embedding [blocks, proj], of blocks of these titles, is not finite: no search takes it."""
    for title, row in zip(titles, embeddings, strict=True):
        if not row.isfinite().all():
            raise ValueError(f"the embedding of a block of {title!r} is not finite: the model's weights are damaged")


@contextmanager
def _side_by_side(device: torch.device) -> Iterator[Callable[..., Iterator[Tensor]]]:
    """A `map` with as many calls at a time as torch has threads, each on one of them; on a GPU, one call at a time."""
    threads = torch.get_num_threads()
    if threads == 1 or device.type != "cpu":
        yield map
        return
    pool = ThreadPoolExecutor(threads)
    torch.set_num_threads(1)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _lengths(blocks: list[Block], tokenizer: Any) -> list[int]:
    """Tokens of each block, as they are embedded."""
    return [len(ids) for ids in tokenizer(*_pairs(blocks), return_token_type_ids=False)["input_ids"]]


def _pairs(blocks: list[Block]) -> tuple[list[str], list[str]]:
    if not all(isinstance(getattr(block, "title", None), str) for block in blocks):  # the title of a str is a method
        raise ValueError("blocks are a title and a text each: give a list of Block(title, text), not text")
    return [block.title for block in blocks], [block.text for block in blocks]
