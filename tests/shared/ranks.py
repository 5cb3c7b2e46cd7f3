"""Real processes, connected over gloo as torchrun connects them, for the tests of several ranks."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import processes
import torch
from forked import CONTEXT

from realm_min.ranks import distributed

_sender: Any = None  # in a rank: where its word and its outcome go


class Rank(NamedTuple):
    """A process that runs, where its outcome will come from, and what it writes to standard error."""

    process: Any
    outcome: Any
    stderr: Path


class Outcome(NamedTuple):
    """What a rank returned, or the error it ended with (as "Type: message"); neither if it was
    killed, or left at once."""

    value: Any = None
    error: str | None = None


def start(function: Callable[..., Any], size: int, *arguments: Any, patience: float = 60.0) -> list[Rank]:
    """Call `function(*arguments)`, of a module's top level, in `size` new processes inside `distributed.join`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        stderr = Path(_files().name) / f"{port}-{rank}"
        stderr.touch()  # a rank may die before it writes
        process = CONTEXT.Process(
            target=_work, args=(sender, str(stderr), rank, size, port, patience, function, arguments), daemon=True
        )
        process.start()
        processes.watch(process.pid)
        sender.close()
        ranks.append(Rank(process, receiver, stderr))
    return ranks


@cache
def _files() -> tempfile.TemporaryDirectory:
    """Where ranks write what they say; gone when the tests end."""
    return tempfile.TemporaryDirectory()


def wait_for_words(ranks: list[Rank]) -> list[Any]:
    """Wait until every rank has called `say`; returns what each said."""
    until(ranks, lambda: all(rank.outcome.poll() for rank in ranks), "every rank says that it has begun")
    words = [rank.outcome.recv() for rank in ranks]
    assert not any(isinstance(word, Outcome) for word in words), f"ranks ended at once: {words}"
    return words


def say(word: Any = None) -> None:
    """In a rank: tell the test, which waits for it, that this one has come to what it is watched at."""
    _sender.send(word)


def finish(ranks: list[Rank], seconds: float = 120) -> list[Outcome]:
    """Wait for the processes; when they have had `seconds` (see processes.py) they are killed, and the test fails."""
    until(ranks, lambda: all(rank.outcome.poll() for rank in ranks), "every rank has an outcome", seconds)
    outcomes = []
    for rank in ranks:
        try:
            outcomes.append(rank.outcome.recv())
        except EOFError:  # killed
            outcomes.append(Outcome())
    until(ranks, lambda: not any(processes.is_alive(rank.process.pid) for rank in ranks), "every rank ends")
    for rank in ranks:
        rank.process.join()
        sys.stderr.write(rank.stderr.read_text(encoding="utf-8"))  # pytest shows it if the test fails
    return outcomes


def blame(ranks: list[Rank], victim: int, *reasons: str) -> None:
    """Assert that all other ranks have ended with status 2 or an error, and named `victim` as what went wrong.

    One that is stuck in a collective leaves without an outcome, but not without a word.
    """
    name = f"rank {victim} (process {ranks[victim].process.pid} on {socket.gethostname()})"
    for number, rank in enumerate(ranks):
        if number != victim:
            said = rank.stderr.read_text(encoding="utf-8")
            words = [f"{name}{reason}. Rank {number} stops too; what is complete is kept" for reason in reasons]
            assert any(text in said for text in words), (number, said)
            assert rank.process.exitcode == 2 or "RankFailedError: " in said, (number, rank.process.exitcode)


def until(ranks: list[Rank], condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    """As `processes.until`, while the ranks go on."""
    processes.until(condition, [rank.process.pid for rank in ranks], what, seconds)


def run(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """What each of `size` ranks returns from `function(*arguments)`; the first error of a rank is raised."""
    outcomes = finish(start(function, size, *arguments))
    for number, outcome in enumerate(outcomes):
        assert outcome.error is None, f"rank {number}: {outcome.error}"
    return [outcome.value for outcome in outcomes]


def _work(
    sender: Any, stderr: str, rank: int, size: int, port: int, patience: float, function: Callable, arguments: tuple
) -> None:
    global _sender
    _sender = sender
    with open(stderr, "wb") as file:
        os.dup2(file.fileno(), 2)
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with distributed.join(patience):
            value = function(*arguments)
        sender.send(Outcome(value))
    except BaseException as error:
        traceback.print_exc()
        sender.send(Outcome(error=f"{type(error).__name__}: {error}"))
