"""Search over slices, one a rank: the bits of one index, whatever the ranks, the queries and the ties."""

import ranks
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from realm_min import distributed, mips
from realm_min.mips import BlockIndex
from realm_min.sharded_index import ShardedBlockIndex

EACH = [1, 2, 3]  # ranks


def same_bits(found, expected):
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def integers(shape, largest, seed):
    return torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@st.composite
def cases(draw):
    n = draw(st.one_of(st.integers(1, 20), st.integers(1, 400)))
    return dict(
        n=n,
        d=draw(st.sampled_from([8, 16, 24])),
        ks=[draw(st.integers(1, min(n, 5))), draw(st.integers(1, n)), n],
        counts=draw(st.lists(st.integers(0, 4), min_size=3, max_size=3)),
        largest=draw(st.sampled_from([0, 1, 2, 100])),  # few values: many ties
        dtype=draw(st.sampled_from(mips.BLOCK_DTYPES)),
        seed=draw(st.integers(0, 999)),
    )


def search_cases():
    """Many cases in one set of processes; all draw the same ones. -> how many, and those that differ."""
    world = distributed.world()
    done, wrong = 0, []

    # The database and shrinking would have the ranks draw differently.
    @settings(deadline=None, derandomize=True, database=None, max_examples=60, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(cases())
    def run(case):
        nonlocal done
        blocks = integers((case["n"], case["d"]), case["largest"], case["seed"]).to(case["dtype"])
        queries = integers((sum(case["counts"]), case["d"]), case["largest"], case["seed"] + 1)
        first = sum(case["counts"][: world.rank])
        mine = queries[first : first + case["counts"][world.rank]]
        for compression in mips.COMPRESSIONS:
            one, sharded = BlockIndex(blocks, compression), ShardedBlockIndex(blocks, compression)
            for k in case["ks"]:
                right = same_bits(sharded.search(mine, k), one.search(mine, k))
                right &= same_bits(sharded.search(queries, k, same=True), one.search(queries, k))
                done += 1
                if not right:
                    wrong.append((case, compression, k))

    run()
    return done, wrong


def test_results_are_those_of_one_index_to_the_bit():
    for size in EACH:
        for done, wrong in ranks.run(search_cases, size):
            assert done >= 300 and wrong == []
