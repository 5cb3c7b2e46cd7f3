"""A small piece of the soak: kills, each at a write that is the same every time, flipped bits, and three ranks."""

import signal

import pytest
import soak
from soak import Fault


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("soak")
    soak.begin(folder)
    (folder / "disk").mkdir()
    return folder


@pytest.mark.parametrize(("kind", "at"), [("index", 5), ("ict", 6), ("mlm", 3)])
def test_a_run_that_is_killed_at_a_write_ends_as_one_that_is_not(work, kind, at):
    whole, _ = soak.undisturbed(kind, work / "disk")
    outcome = soak.one_run(1, kind, work / "disk", False, [Fault(at_write=at, slow=0.01)], whole)
    assert (outcome.kills, outcome.resumed, outcome.unclear, outcome.lost) == (1, 1, 0, 0), outcome.why
    assert len(whole) > 3


@pytest.mark.parametrize(("kind", "at"), [("index", 14), ("mlm", 20)])
def test_a_run_that_loses_a_bit_of_what_it_kept_ends_as_one_that_does_not(work, kind, at):
    whole, _ = soak.undisturbed(kind, work / "disk")
    outcome = soak.one_run(5, kind, work / "disk", False, [Fault(at_write=at), Fault(at_write=6, flip=True)], whole)
    assert (outcome.kills, outcome.unclear, outcome.lost) == (2, 0, 0) and outcome.flips, outcome.why


def test_a_run_without_room_is_told_so_and_goes_on(work):
    whole, _ = soak.undisturbed("ict", work / "disk")
    outcome = soak.one_run(2, "ict", work / "disk", False, [Fault(room=5000)], whole)
    assert (outcome.full_disk, outcome.resumed, outcome.unclear, outcome.lost) == (1, 1, 0, 0), outcome.why


def test_ranks_that_lose_one_go_on(work):
    whole, seconds = soak.undisturbed("three ranks", work / "disk")
    outcome = soak.one_run(3, "three ranks", work / "disk", False, [Fault(signal.SIGKILL, seconds / 2)], whole)
    assert (outcome.unclear, outcome.lost) == (0, 0) and outcome.kills == outcome.resumed, outcome.why


def test_what_differs_is_lost(work):
    whole, _ = soak.undisturbed("index", work / "disk")
    outcome = soak.one_run(4, "index", work / "disk", False, [], whole | {"vocab.txt": "another"})
    assert outcome.lost == 1 and "vocab.txt" in outcome.why[0]
