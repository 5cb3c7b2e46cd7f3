"""Search over slices, one a rank: the bits of one index, whatever the ranks, the queries and the ties."""

import contextlib
import io
import json
import os
import random
import re
import signal
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import ranks
import safetensors.torch
import torch
from sizes import LONG, at_length

from realm_min.app import cli, indexing
from realm_min.config import RealmConfig
from realm_min.interface.open_qa import RealmForOpenQA
from realm_min.jobs import warm_start
from realm_min.ranks import distributed
from realm_min.search import mips
from realm_min.search.arithmetic import Way
from realm_min.search.mips import BlockIndex
from realm_min.search.sharded_index import ShardedBlockIndex
from realm_min.text.corpus import Document
from realm_min.text.retriever import RealmRetriever

EACH = [1, 2, 3]  # ranks
NUMBERS = [9, 60, 350]  # of blocks, which ranks take sixteen at a time: some get none, or fewer than others
NUMBERS += range(1, 400, 19) if LONG else []
QUESTIONS = [f"Where is Town {i}?" for i in range(21)]


def same_bits(found, expected):
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(found, expected, strict=True)
    )


def integers(shape, largest, seed):
    return torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def drawn_case(n):
    """A search of n blocks by queries of several ranks."""
    rng = random.Random(n)
    return dict(
        d=rng.choice([8, 16, 24]),
        ks=[rng.randint(1, min(n, 5)), rng.randint(1, n), n],
        counts=[rng.randint(0, 4) for _ in range(3)],
        largest=rng.choice([0, 1, 2, 100]),  # few values: many ties
        dtype=rng.choice(mips.BLOCK_DTYPES),
    )


def search_cases():
    """Many cases in one set of processes -> how many, and those that differ."""
    world = distributed.world()
    mips.SMALL, mips.fastest = 0, lambda readable, *_: Way([*readable][0], "numpy")  # codes, faster here or not
    done, wrong = 0, []
    for n in NUMBERS:
        case = drawn_case(n)
        blocks = integers((n, case["d"]), case["largest"], n).to(case["dtype"])
        queries = integers((sum(case["counts"]), case["d"]), case["largest"], n + 1)
        first = sum(case["counts"][: world.rank])
        mine = slice(first, first + case["counts"][world.rank])
        for compression in mips.COMPRESSIONS:
            one, sharded = BlockIndex(blocks, compression), ShardedBlockIndex(blocks, compression)
            for k in case["ks"]:
                expected = one.search(queries, k)
                right = same_bits(sharded.search(queries[mine], k), [values[mine] for values in expected])
                right &= same_bits(sharded.search(queries, k, same=True), expected)
                done += 1
                if not right:
                    wrong.append((n, case, compression, k))
    return done, wrong


def test_results_are_those_of_one_index_to_the_bit():
    for size in EACH:
        for done, wrong in ranks.run(search_cases, size):
            assert done == 9 * len(NUMBERS) and wrong == []


def search_unevenly():
    """Each rank searches a number of batches of its own, then follows."""
    world = distributed.world()
    blocks, queries = integers((50, 8), 2, 0), integers((12, 8), 2, 1)
    index = ShardedBlockIndex(blocks, "int8")
    given_slice = ShardedBlockIndex(blocks[world.slice_of(50)], "int8", total=50)
    right = [repr(index) == repr(given_slice), len(index) == len(given_slice) == 50]
    for sharded in (index, given_slice):
        for batch in queries.split(2)[: 2 * world.rank + 1]:
            right.append(same_bits(sharded.search(batch, 4), BlockIndex(blocks).search(batch, 4)))
        sharded.follow()
    right.append(index.last_search.queries == 2)
    ids = torch.tensor([[49, 0], [17, 17]])
    right.append(torch.equal(index.rows(ids), blocks[ids]))
    part = world.slice_of(50)
    right.append(torch.equal(given_slice.rows(torch.arange(part.start, part.stop)), blocks[part]))
    if world.size > 1:
        with pytest.raises(
            ValueError, match=f"rank {world.rank} has {part.start} to {part.stop - 1}: give each rank a"
        ):
            given_slice.rows(ids)
    return right


@pytest.mark.parametrize("size", EACH)
def test_ranks_search_as_often_as_they_need(size):
    for right in ranks.run(search_unevenly, size):
        assert all(right), right


# ---- errors


def said(function):
    try:
        function()
    except (ValueError, FileNotFoundError) as error:
        return str(error)


def search_wrongly():
    world = distributed.world()
    blocks, queries = integers((40, 8), 2, 0), integers((2, 8), 2, 1)
    index = ShardedBlockIndex(blocks)
    bad = queries.clone()
    bad[1, 3] = torch.nan
    first = world.is_first
    found = [
        said(lambda: index.search(queries, 41)),
        said(lambda: index.search(queries, 5 if first else 6)),
        said(lambda: index.search(queries if first else queries[:, :7], 5)),
        said(lambda: index.search(queries if first else bad, 5)),
        said(lambda: index.search(queries, 5, same=first)),
        said(lambda: index.search(queries + world.rank, 5, same=True)),
        said(lambda: index.search(bad, 5)) if first else None,
        index.follow(),
        said(lambda: ShardedBlockIndex(blocks if first else blocks[:, :7])),
        said(lambda: ShardedBlockIndex(blocks if first else blocks[:39])),
        said(lambda: ShardedBlockIndex(blocks[:20], total=40)),
        said(lambda: ShardedBlockIndex(blocks[:0])),
    ]
    blocks[30, 2] = torch.inf  # in the other rank's slice
    found.append(said(lambda: ShardedBlockIndex(blocks)))
    return found, same_bits(index.search(queries, 5), index.search(queries, 5, same=True))  # it can go on


def test_what_cannot_be_searched_is_said_by_every_rank():
    (found, works), (others, others_work) = ranks.run(search_wrongly, 2)
    assert works and others_work
    expected = [
        "k is 41: it must lie in 1..40, the number of blocks",
        "rank 0 searches for k = 5 blocks, rank 1 for 6",
        "rank 1 cannot search: queries have 7 dimensions, the blocks 8: they must agree",
        "rank 1 cannot search: query 1 holds NaN or infinity: queries must be finite",
        "rank 0 and rank 1 do not search with the same queries",
        "rank 0 and rank 1 do not search with the same queries",
        "query 1 holds NaN or infinity: queries must be finite",
        None,
        "rank 0 has 40 x 8 torch.float32 blocks, rank 1 40 x 7 torch.float32: give all ranks slices of the same",
        "rank 0 has 40 x 8 torch.float32 blocks, rank 1 39 x 8",
        "rank 0 was given a slice of 20 blocks: of 40 it takes 16",
        "blocks have shape (0, 8): an empty index cannot be searched",
        "block 30 holds NaN or infinity: remove or repair it before searching",
    ]
    for message, beginning in zip(found, expected, strict=True):
        assert message == beginning or message.startswith(beginning)
    assert others == [*found[:6], None, *found[7:]]  # who follows is not to blame


@pytest.mark.parametrize("total", [-1, 2**63, 2**70])
def test_a_number_of_blocks_that_none_can_be_is_refused(total):
    with pytest.raises(ValueError, match=f"total={total} is no number of blocks"):
        ShardedBlockIndex(torch.ones(2, 8), total=total)


def search_for_ever():
    index = ShardedBlockIndex(integers((400, 8), 2, 0))
    index.search(integers((3, 8), 2, 1), 5)
    ranks.say()
    while True:
        index.search(integers((3, 8), 2, 1), 5)


def test_the_others_stop_when_a_rank_is_killed():
    running = ranks.start(search_for_ever, 3, patience=4.0)
    ranks.wait_for_words(running)
    os.kill(running[1].process.pid, signal.SIGKILL)
    ranks.finish(running, seconds=20)
    ranks.blame(running, 1, " died")


# ---- files


def load_and_search(path):
    index = ShardedBlockIndex.load(path)
    found = index.search(integers((3, index.dimensions), 2, 1), 7)
    return [tensor.tolist() for tensor in found], index.rows(torch.arange(len(index))[:: len(index) - 1]).tolist()


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A ready folder: a small model of 150 blocks."""
    documents = [
        Document(f"Land {i}", f"Capital - name: Town {i}. Its {i % 7} rivers flow to Sea {i % 5}.") for i in range(150)
    ]
    config = RealmConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, retriever_proj_size=16,
        span_hidden_size=16, num_block_records=1, initializer_range=0.3,
    )  # fmt: skip
    model = RealmForOpenQA(config).eval()
    return indexing.index(documents, tmp_path_factory.mktemp("models") / "lands", model, warm_start.tokenizer(None))


def test_files_are_searched_slice_by_slice(ready, tmp_path):
    model = RealmForOpenQA.from_pretrained(ready)
    blocks = model.block_emb
    assert blocks.shape == (150, 16)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    np.save(tmp_path / "blocks.npy", blocks.numpy())
    scores, ids = BlockIndex(blocks).search(integers((3, 16), 2, 1), 7)
    expected = [scores.tolist(), ids.tolist()], blocks[[0, 149]].tolist()
    paths = ready, ready / "model.safetensors", tmp_path / "blocks.npy", tmp_path / "shards", tmp_path / "pickled"
    for path in paths:
        for found in ranks.run(load_and_search, 2, path):
            assert found == expected


def answer_and_train(folder):
    """A script's use of the model: its own questions on each rank, and gradients through what was found."""
    world = distributed.world()
    retriever = RealmRetriever.from_pretrained(folder)
    model = RealmForOpenQA.from_pretrained(folder, retriever=retriever, sharded=True)
    answers = [model.answer([question])[0] for question in world.share(QUESTIONS[:5])]
    model.follow()
    inputs = retriever.tokenizer([QUESTIONS[world.rank]], return_tensors="pt")
    answer_ids = retriever.tokenizer(["land"], add_special_tokens=False).input_ids
    loss = model(**inputs, answer_ids=answer_ids).reader_output.loss
    model.backward()
    gradient = model.grads["embedder.cls.dense.weight"]
    kinds = type(model.index).__name__, model.to(torch.float64).block_emb.dtype
    return answers, float(loss), gradient.tolist(), kinds


def test_a_script_shares_a_model(ready):
    (alone,), both = ranks.run(answer_and_train, 1, ready), ranks.run(answer_and_train, 2, ready)
    assert alone[3] == ("BlockIndex", torch.float64) and both[0][3] == ("ShardedBlockIndex", torch.float64)
    assert both[0][0] + both[1][0] == [*alone[0][::2], *alone[0][1::2]]
    assert both[0][1:3] == alone[1:3] and both[1][1] != alone[1]
    assert any(value for row in alone[2] for value in row)


def touched_bytes(path):
    """Bytes of the file that this process has in its memory maps."""
    sizes, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            sizes += int(line.split()[1]) << 10
    return sizes


def load_and_count(path):
    index = ShardedBlockIndex.load(path)
    index.search(torch.ones(1, index.dimensions), 1)
    return touched_bytes(path)


def test_a_rank_touches_its_slice_alone(tmp_path):
    blocks = torch.ones(16_384, 256)  # 16 MiB
    np.save(tmp_path / "blocks.npy", blocks.numpy())
    safetensors.torch.save_file({"block_emb": blocks}, tmp_path / "model.safetensors")
    for name in ("blocks.npy", "model.safetensors"):
        for touched in ranks.run(load_and_count, 2, tmp_path / name):
            assert 8 << 20 <= touched < 12 << 20  # the kernel maps some pages around those that are read


def load_wrongly(paths):
    return [said(lambda path=path: ShardedBlockIndex.load(path)) for path in paths]


def test_damaged_files_are_named_once(ready, tmp_path):
    weights = bytearray((ready / "model.safetensors").read_bytes())
    blocks = RealmForOpenQA.from_pretrained(ready).block_emb
    place = weights.index(blocks[140].numpy().tobytes())  # in the second rank's slice
    damaged = tmp_path / "damaged" / "model.safetensors"
    damaged.parent.mkdir()
    damaged.write_bytes(weights[:place] + bytes([weights[place] ^ 1]) + weights[place + 1 :])
    (tmp_path / "cut.safetensors").write_bytes(weights[:-5])
    np.save(tmp_path / "cut.npy", blocks.numpy())
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-5])
    safetensors.torch.save_file({"other": blocks}, tmp_path / "other.safetensors")
    messages = {
        "damaged": "model.safetensors cannot be read (its checksum is ",
        "cut.safetensors": "cut.safetensors cannot be read (",
        "cut.npy": "cut.npy cannot be read (",
        "other.safetensors": "other.safetensors holds no 'block_emb'",
        "none.npy": "none.npy does not exist",
        "none": "none is not a folder",
    }
    found, others = ranks.run(load_wrongly, 2, [tmp_path / name for name in messages])
    assert others == found
    for text, message in zip(found, messages.values(), strict=True):
        assert text.startswith(str(tmp_path)) and message in text
    outcomes = ranks.finish(ranks.start(load_and_search, 2, tmp_path / "damaged"))
    assert (outcomes[0].error, outcomes[1].error) == (f"ValueError: {found[0]}", "SystemExit: 2")  # in silence


# ---- the commands


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_commands(commands, typed=None):
    """What each command prints on this rank."""
    printed = []
    for arguments in commands:
        out = io.StringIO() if typed is None else Terminal()
        sys.stdin = io.StringIO() if typed is None else Terminal(typed)
        with contextlib.redirect_stdout(out):
            cli.run(cli.parser().parse_args(arguments))
        printed.append(out.getvalue())
    return printed


def test_ask_and_evaluate_print_what_one_process_prints(ready, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": question, "answer": [f"land {i}", str(i)]} for i, question in enumerate(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    written = {}
    for size in EACH:
        commands = [
            ["ask", *QUESTIONS[:3], "--model", str(ready), "-k", "3", "--blocks"],
            ["ask", *QUESTIONS[:2], "--model", str(ready), "--json"],
            ["evaluate", str(path), "--model", str(ready), "--predictions", str(tmp_path / f"{size}.jsonl")],
            ["evaluate", str(path), "--model", str(ready), "--json", "--limit", "9"],
        ]
        printed, *others = ranks.run(run_commands, size, commands)
        assert all(text == "" for other in others for text in other)
        written[size] = [*printed, (tmp_path / f"{size}.jsonl").read_text(encoding="utf-8")]
    assert [text.count("p(z|x)") for text in written[1]] == [9, 0, 0, 0, 0]
    assert written[1][4].count("\n") == 21
    assert written[2] == written[1] and written[3] == written[1]


def test_ask_on_a_terminal_and_ask_with_a_plot(ready, tmp_path):
    typed = f"{QUESTIONS[4]}\n{'why ' * 600}\n{QUESTIONS[5]}\n\n"  # the second is refused, the third is answered
    alone, both = (ranks.run(run_commands, size, [["ask", "--model", str(ready)]], typed)[0] for size in (1, 2))
    assert both == alone and both[0].count("p(y|x)") == 2
    pictures = [tmp_path / f"{size}.png" for size in (1, 2)]
    for size, picture in enumerate(pictures, 1):
        ranks.run(run_commands, size, [["ask", QUESTIONS[0], "--model", str(ready), "--plot", str(picture)]])
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_bad_questions_are_named_once(ready, tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"question": "why " * 600, "answer": ["a"]}] * 9
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for command, message in {
        ("ask", "why?", "-k", "151"): "151 blocks were asked for, and there are 150",
        ("evaluate", str(path)): "could be answered: line 1 the question has 602 wordpieces",
    }.items():
        outcomes = ranks.finish(ranks.start(run_commands, 2, [[*command, "--model", str(ready)]]))
        assert message in outcomes[0].error
        assert outcomes[1].error == "SystemExit: 2"


@at_length
def test_torchrun_asks(ready):
    ask = ["-m", "realm_min", "ask", QUESTIONS[0], "--model", str(ready), "--json"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    commands = ([*command, *ask] for command in ([sys.executable], launcher))
    (alone, _), (both, _) = processes.run(*commands, env=environment)
    assert both == alone and json.loads(both)["question"] == QUESTIONS[0]
