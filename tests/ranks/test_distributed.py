"""Ranks that exchange values, and what happens when one of them goes."""

import os
import signal
import sys
import time

import forked
import pytest
import ranks
import torch

from realm_min.files.atomic import only_writer
from realm_min.ranks import distributed, watcher
from realm_min.ranks.distributed import World


def exchange():
    world = distributed.world()
    numbers = torch.arange(3.0) * (world.rank + 1)
    world.sum_(numbers)
    later = torch.arange(3.0) * (world.rank + 1)
    wait = world.start_sum(later)
    first = torch.full((2,), float(world.rank + 5))
    world.broadcast_(first)
    wait()
    assert later.tolist() == numbers.tolist()
    return (
        numbers.tolist(), first.tolist(), world.broadcast_object(f"of {world.rank}"), world.gather_objects(world.rank),
        world.all_gather(torch.tensor([world.rank, -world.rank])).tolist(), world.on_first(os.getpid),
        world.share(list(range(7))),
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3])
def test_exchanges_agree_with_their_definitions(size):
    found = ranks.run(exchange, size)
    everyone, total = list(range(size)), sum(range(1, size + 1))
    for rank, (numbers, first, word, gathered, tensors, pid, share) in enumerate(found):
        assert numbers == [0.0, total, 2.0 * total]
        assert first == [5.0, 5.0]
        assert word == "of 0"
        assert gathered == everyone
        assert tensors == [[r, -r] for r in everyone]
        assert pid == found[0][5]
        assert share == list(range(rank, 7, size))


def test_alone_every_exchange_returns_what_it_was_given():
    alone, numbers = World(), torch.arange(3.0)
    alone.sum_(numbers)
    alone.broadcast_(numbers)
    alone.barrier()
    assert numbers.tolist() == [0.0, 1.0, 2.0]
    assert (alone.broadcast_object("x"), alone.gather_objects("x"), alone.on_first(lambda: 3)) == ("x", ["x"], 3)
    assert alone.all_gather(numbers).tolist() == [[0.0, 1.0, 2.0]]


def exchange_rows():
    world = distributed.world()
    counts = [2, 0, 3][: world.size]
    rows = torch.arange(sum(counts))[:, None] * 10 + world.rank  # of what is for rank 0, rank 1, …
    return world.all_to_all(rows, counts).tolist(), world.gather_results(lambda: world.rank), world.slice_of(50)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_rank_gets_its_rows_of_all(size):
    counts = [2, 0, 3][:size]
    edges = {1: [0, 50], 2: [0, 32, 50], 3: [0, 16, 32, 50]}[size]  # 50 rows are four units of 16
    for rank, (received, results, part) in enumerate(ranks.run(exchange_rows, size)):
        first = sum(counts[:rank])
        assert received == [[[10 * i + r] for i in range(first, first + counts[rank])] for r in range(size)]
        assert results == list(range(size))
        assert part == slice(edges[rank], edges[rank + 1])


@pytest.mark.parametrize("total", [0, 1, 16, 17, 400])
def test_slices_are_all_rows_in_order(total):
    slices = [World(rank, 7).slice_of(total) for rank in range(7)]
    assert [row for part in slices for row in range(part.start, part.stop)] == list(range(total))
    assert all(part.start % 16 == 0 or part.start == total for part in slices)
    lengths = [len(range(part.start, part.stop)) for part in slices]
    assert max(lengths) - min(lengths) <= 16 + 15


def part_and_post():
    whole = distributed.world()
    with distributed.split(1) as part:
        assert distributed.world() is part
        gathered = part.gather_objects(whole.rank)
        if whole.rank == 0:
            for wait in [whole.post(number, whole.size - 1) for number in (7, 8)]:
                wait()
        received = [whole.receive(0), whole.receive(0)] if whole.rank == whole.size - 1 else []
    assert distributed.world() is whole
    return part.rank, gathered, received, whole.gather_objects(whole.rank)


def test_ranks_are_parted_and_send_numbers():
    assert ranks.run(part_and_post, 3) == [
        (0, [0, 1], [], [0, 1, 2]),
        (1, [0, 1], [], [0, 1, 2]),
        (0, [2], [7, 8], [0, 1, 2]),
    ]
    with distributed.split(0) as part:
        assert part.size == 1
    with pytest.raises(ValueError, match="1 of 1 ranks cannot be parted"), distributed.split(1):
        pass


def fail_beyond_first():
    def refuse():
        if distributed.world().rank:
            raise ValueError(f"slice {distributed.world().rank} is damaged")

    distributed.world().gather_results(refuse)


def test_what_one_rank_refuses_is_said_once():
    outcomes = ranks.finish(ranks.start(fail_beyond_first, 3))
    assert outcomes[0].error == "ValueError: slice 1 is damaged"
    assert [outcome.error for outcome in outcomes[1:]] == ["SystemExit: 2"] * 2


def fail_on_first():
    def refuse():
        raise FileExistsError("the folder is taken")

    distributed.world().on_first(refuse)


def test_what_rank_0_refuses_is_refused_on_every_rank():
    outcomes = ranks.finish(ranks.start(fail_on_first, 3))
    assert outcomes[0].error == "FileExistsError: the folder is taken"
    assert [outcome.error for outcome in outcomes[1:]] == ["SystemExit: 2"] * 2  # in silence: rank 0 has said it


def work_for_ever(exchanging):
    numbers = torch.ones(4)
    ranks.say()
    while True:
        if exchanging:
            distributed.world().sum_(numbers)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("exchanging", "how", "reasons"),
    [
        (True, signal.SIGKILL, [" died"]),
        (False, signal.SIGKILL, [" died"]),
        (True, signal.SIGTERM, [" failed: SystemExit: 143", " died"]),
    ],
)
def test_the_others_stop_and_name_the_rank_that_was_killed(exchanging, how, reasons):
    running = ranks.start(work_for_ever, 3, exchanging, patience=4.0)
    ranks.wait_for_words(running)
    os.kill(running[1].process.pid, how)
    outcomes = ranks.finish(running, seconds=15)
    assert outcomes[1] == ranks.Outcome(error=None if how == signal.SIGKILL else "SystemExit: 143")
    ranks.blame(running, 1, *reasons)


def work_until_rank_1_fails(how):
    watcher.GRACE = 1.0
    if distributed.world().rank == 1:
        raise ValueError("bad block 17")
    while how != "waits":
        if how == "sleeps":
            time.sleep(1)


@pytest.mark.parametrize("how", ["waits", "computes", "sleeps"])
def test_rank_0_says_how_another_failed(how):
    running = ranks.start(work_until_rank_1_fails, 2, how)
    outcomes = ranks.finish(running, seconds=30)
    assert outcomes[1].error == "ValueError: bad block 17"
    ranks.blame(running, 1, " failed: ValueError: bad block 17")


def refuse_at_last(delays):
    time.sleep(delays[distributed.world().rank])
    raise ValueError("the question has 92 wordpieces")


@pytest.mark.parametrize("delays", [(4, 0, 0), (0, 4, 2), (0, 0, 0)])
def test_bad_input_is_said_once_however_late_a_rank_meets_it(delays):
    running = ranks.start(refuse_at_last, 3, delays)
    outcomes = ranks.finish(running)
    assert outcomes[0].error == "ValueError: the question has 92 wordpieces"
    assert [outcome.error for outcome in outcomes[1:]] == ["SystemExit: 2"] * 2


def torchrun(words):
    from torch.distributed.run import main

    main(words)


def test_torchrun_connects_the_ranks(tmp_path):
    """The real launcher, its own store and its own environment."""
    script = """
import os
from realm_min.ranks.distributed import join
with join() as world:
    os.write(1, b"%d of %d\\n" % (sum(world.gather_objects(world.rank)), world.size))
"""
    words = ["--nproc-per-node=2", "--no-python", sys.executable, "-c", script]
    launcher = forked.start(torchrun, words, files={1: tmp_path / "out", 2: tmp_path / "errors"}, environment={})
    assert forked.finish(launcher) == 0, (tmp_path / "errors").read_text()
    assert (tmp_path / "out").read_text().splitlines() == ["1 of 2"] * 2


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "run"
    with only_writer(folder):
        with pytest.raises(FileExistsError, match=rf"run is being written by process {os.getpid()} on .*: wait for it"):
            with only_writer(folder):
                pass
    with only_writer(folder):
        pass
    assert list(tmp_path.iterdir()) == []


def hold(folder):
    with only_writer(folder):
        ranks.say()
        time.sleep(10_000)


def test_a_killed_writer_leaves_the_folder_free(tmp_path):
    [holder] = running = ranks.start(hold, 1, tmp_path / "run")
    ranks.wait_for_words(running)
    with pytest.raises(FileExistsError):
        with only_writer(tmp_path / "run"):
            pass
    holder.process.kill()
    assert ranks.finish(running) == [ranks.Outcome()]
    with only_writer(tmp_path / "run"):
        pass


def stop_then_work():
    if distributed.world().rank == 1:
        ranks.say()
        os.kill(os.getpid(), signal.SIGSTOP)
    work_for_ever(False)


def test_a_rank_that_is_silent_is_held_for_dead():
    running = ranks.start(stop_then_work, 2, patience=2.0)
    ranks.wait_for_words(running)
    [outcome] = ranks.finish(running[:1], seconds=30)
    assert "rank 1 (process" in outcome.error and "silent for" in outcome.error
    running[1].process.kill()
    assert ranks.finish(running[1:]) == [ranks.Outcome()]


def compute_and_count_no_more():
    if distributed.world().rank == 1:
        distributed.world().watcher._closing.set()  # as a long call that holds the interpreter keeps it from counting
        for _ in range(45):
            sum(range(500_000))
            time.sleep(0.1)


def test_a_rank_that_computes_is_alive():
    outcomes = ranks.finish(ranks.start(compute_and_count_no_more, 2, patience=2.0))
    assert outcomes == [ranks.Outcome()] * 2


def work_until_told(flag):
    ranks.say()
    distributed.world().barrier()
    while not flag.exists():
        time.sleep(0.05)
    return "told"


def test_nobody_is_blamed_for_what_held_up_all(tmp_path):
    """A machine that was suspended, or had no core for any rank: who wakes first gives the others their time."""
    running = ranks.start(work_until_told, 2, tmp_path / "flag", patience=3.0)
    ranks.wait_for_words(running)
    for how, seconds in ((signal.SIGSTOP, 4), (signal.SIGCONT, 2)):
        for rank in running:
            os.kill(rank.process.pid, how)
            time.sleep(0.2)
        time.sleep(seconds)
    (tmp_path / "flag").touch()
    assert ranks.finish(running) == [ranks.Outcome("told")] * 2


def test_an_address_that_is_none_is_named(monkeypatch):
    for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", "abc"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConnectionError, match="rank 0 of 2 cannot reach the others at localhost:abc"):
        distributed._connect(0, 2)
