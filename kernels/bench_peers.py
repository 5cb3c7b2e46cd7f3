"""What users would pick instead of our search: searches (queries, k) -> (scores, ids) of the k best of some blocks.

transformers' way is a matrix product with all blocks, then `topk`; FAISS's flat index and cuVS's brute force are timed
where they are installed.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from .bench_clock import failure
from .bench_device import float32_products

Search = Callable[[Tensor, int], tuple[Tensor, Tensor]]

COMPILED = "torch.compile"
PEERS = ("torch", "torch tf32", "torch bfloat16", COMPILED, "faiss", "cuvs")
CPU_PEERS = ("torch", "faiss")  # the others, if they are asked for
NOT_EXACT = ("torch tf32", "torch bfloat16")
SCORES_SHARE = 4  # a GPU's memory over that of the scores held at once
MOST_SCORES = 2**31 - 1  # held at once: not every operation counts further


def search_peers(blocks: Tensor, wanted: tuple[str, ...], threads: int) -> dict[str, Search]:
    """The wanted peers over blocks [N, D] float32, by name, but those that are not installed."""
    builders: dict[str, Callable[[], Search]] = {
        "torch": lambda: functools.partial(scores_then_topk, blocks),
        "torch tf32": lambda: functools.partial(with_tf32, blocks),
        "torch bfloat16": lambda: functools.partial(in_bfloat16, blocks.bfloat16()),
        COMPILED: lambda: compiled(blocks),
        "faiss": lambda: faiss_search(blocks, threads),
        "cuvs": lambda: cuvs_search(blocks),
    }
    missing = missing_peers(wanted)
    return {name: built(builders[name]) for name in PEERS if name in wanted and name not in missing}


def missing_peers(wanted: tuple[str, ...]) -> list[str]:
    """The wanted peers that are not installed."""
    return [name for name in ("faiss", "cuvs") if name in wanted and importlib.util.find_spec(name) is None]


def built(build: Callable[[], Search]) -> Search:
    """What `build` gives; where it fails, a search that fails so, and thereby has a row that says it."""
    try:
        return build()
    except Exception as error:  # whatever a peer raises
        why = failure(error)

        def failed(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
            raise RuntimeError(f"its index was not built, {why}")

        return failed


def scores_then_topk(blocks: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """transformers' way: all the scores, then `topk`; on a GPU in as many pieces of queries as its memory demands."""
    step = len(queries)
    if blocks.is_cuda:
        memory = torch.cuda.get_device_properties(blocks.device).total_memory // SCORES_SHARE
        held = min(memory // blocks.element_size(), MOST_SCORES)
        step = max(1, min(step, held // len(blocks)))
    if step == len(queries):
        return in_one_piece(blocks, queries, k)
    scores, ids = zip(*(in_one_piece(blocks, piece, k) for piece in queries.split(step)), strict=True)
    return torch.cat(scores), torch.cat(ids)


def in_one_piece(blocks: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = torch.einsum("bd,qd->qb", blocks, queries).topk(k)
    return best.values, best.indices


def with_tf32(blocks: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same, with products of TF32."""
    with float32_products("high"):
        return scores_then_topk(blocks, queries, k)


def in_bfloat16(blocks: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same over blocks that are bfloat16, scores too."""
    return scores_then_topk(blocks, queries.bfloat16(), k)


def compiled(blocks: Tensor) -> Search:
    """The same through torch.compile, for shapes that do not change."""
    return functools.partial(torch.compile(in_one_piece, dynamic=False), blocks)


def faiss_search(blocks: Tensor, threads: int) -> Search:
    """FAISS's flat inner-product index. A GPU's takes and gives tensors of that GPU."""
    import faiss  # pyright: ignore[reportMissingImports] (of the extra `bench`)

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(blocks.shape[1])
    if blocks.is_cuda:
        if not hasattr(faiss, "StandardGpuResources"):
            raise NotImplementedError("this FAISS has no GPU part")
        import faiss.contrib.torch_utils  # pyright: ignore[reportMissingImports] (its indexes take tensors from here)

        resources = faiss.StandardGpuResources()
        resources.setDefaultNullStreamAllDevices()  # torch's, so that events see its work
        index = faiss.index_cpu_to_gpu(resources, blocks.device.index or 0, index)
        for rows in blocks.split(1 << 20):
            index.add(rows)
        return lambda queries, k, keep=resources: index.search(queries, k)
    for rows in blocks.split(1 << 20):
        index.add(rows.numpy())

    def search(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, ids = index.search(queries.numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(ids)

    return search


def cuvs_search(blocks: Tensor) -> Search:
    """cuVS's brute force, on a GPU."""
    from cuvs.neighbors import brute_force  # pyright: ignore[reportMissingImports]

    index = brute_force.build(blocks, metric="inner_product")

    def search(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, ids = brute_force.search(index, queries, k)  # waits for the GPU: it has a stream of its own
        return torch.as_tensor(scores, device=blocks.device), torch.as_tensor(ids, device=blocks.device)

    return search
