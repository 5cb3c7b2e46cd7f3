"""Processes forked from one that has imported torch and the commands: they start in milliseconds, not in seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import processes

from realm_min.app import cli

# What test modules import too. It finds installed modules alone: those of this folder each process imports for itself.
CONTEXT = multiprocessing.get_context("forkserver")
COMMANDS = [f"realm_min.{command.run.rpartition('.')[0]}" for command in cli.COMMANDS.values()]
CONTEXT.set_forkserver_preload([*COMMANDS, "_pytest.config", "hypothesis.strategies", "psutil", "pytest"])


def start(
    function: Callable[..., Any], *arguments: Any, files: dict[int, int | str | Path], environment: dict[str, str]
) -> BaseProcess:
    """Call `function(*arguments)`, of a module's top level, in a new process; after the test, what is left is killed.

    Args:
        files: for file descriptors 0, 1 and 2 of the process, a descriptor of ours, or the file that it writes.
        environment: variables beyond those that the first process was started with.
    """
    given = {number: str(file) if isinstance(file, str | Path) else Passed(file) for number, file in files.items()}
    process = CONTEXT.Process(target=_call, args=(given, environment, function, arguments), daemon=True)
    process.start()
    processes.watch(process.pid)
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int:
    """Wait until it ends; returns its status."""
    processes.until(lambda: process.exitcode is not None, [process.pid], "it ends", seconds)
    return process.exitcode


def command(*words: Any) -> None:
    """`realm-min WORDS`, as a function to start."""
    sys.exit(cli.main([str(word) for word in words]))


class Passed:
    """A file descriptor, that is passed on when the process starts."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple:
        return _received, (DupFd(self.number),)


def _received(descriptor: Any) -> int:
    return descriptor.detach()


def _call(files: dict[int, int | str], environment: dict[str, str], function: Callable, arguments: tuple) -> None:
    os.environ |= environment
    for number, file in files.items():
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT) if isinstance(file, str) else file, number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    function(*arguments)
