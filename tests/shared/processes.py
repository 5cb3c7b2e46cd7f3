"""Processes that tests start and wait for, on a machine that may be busy with other work.

A deadline by the clock on the wall fails where other programs hold the cores. The deadlines here are in seconds that
the processes have had: seconds in which they ran, or slept while nothing kept them from running. What they spend
waiting for a core does not count, so a deadline is the same on a busy machine as on a quiet one.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import psutil

POLL = 0.02  # seconds between two looks at a condition
LAST_POLLS = 250  # looks at a condition after the processes have ended
LOOK = 0.5  # seconds between two looks at the processes: each costs milliseconds

# What has been started or watched since `kill_all`, with the descendants that were seen.
_known: set[psutil.Process] = set()


class Clock:
    """The seconds that processes and their descendants have had since this was made."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.seconds = 0.0
        self._roots = [process for pid in pids if (process := _process(pid))]
        self._looked, self._used = time.monotonic(), {process: _cpu_seconds(process) for process in self._roots}
        _known.update(self._roots)

    def look(self) -> float:
        """Count what has passed since the last look; returns `seconds`."""
        now = time.monotonic()
        if now - self._looked >= LOOK:
            tree = set(self._roots)
            for root in self._roots:
                with suppress(psutil.NoSuchProcess):
                    tree.update(root.children(recursive=True))
            _known.update(tree)
            used = {process: _cpu_seconds(process) for process in tree}
            ran = sum(max(0.0, seconds - self._used.get(process, 0.0)) for process, seconds in used.items())
            self.seconds += had(now - self._looked, ran, any(_is_ready(process) for process in tree))
            self._looked, self._used = now, self._used | used
        return self.seconds


def had(passed: float, ran: float, ready: bool) -> float:
    """Seconds that processes had of the `passed` ones, in which they used `ran` seconds of the cores.

    Those that are asleep (not `ready`) had them all. So it is with few of them where we were held up ourselves.
    """
    return min(passed, ran) if ready else min(passed, 2 * LOOK)


def is_alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(condition: Callable[[], Any], pids: Iterable[int], what: str, seconds: float = 120) -> None:
    """Wait until `condition()`, as processes go on; if it does not come, they are killed.

    Raises:
        TimeoutError: the processes have had that many seconds.
        ChildProcessError: none of them is left.
    """
    pids = list(pids)
    clock, ended = Clock(pids), 0
    while not condition():
        # A process looks ended before the last of its threads has closed what the condition may be about.
        ended = 0 if any(map(is_alive, pids)) else ended + 1
        if ended > LAST_POLLS:
            raise ChildProcessError(f"processes {pids} ended, and still not: {what}")
        if clock.look() > seconds:
            kill_all()
            raise TimeoutError(f"processes {pids} have had {clock.seconds:.0f} s, and still not: {what}")
        time.sleep(POLL)


def watch(pid: int) -> None:
    """What is left of this process after the test is killed, whoever started it."""
    Clock([pid])


def start(command: list[Any], **options: Any) -> subprocess.Popen:
    """As `subprocess.Popen`; what is left of it after the test is killed."""
    process = subprocess.Popen([str(word) for word in command], **options)
    watch(process.pid)
    return process


def finish(process: subprocess.Popen, seconds: float = 120) -> int:
    """Wait until it ends; returns its status."""
    until(lambda: process.poll() is not None, [process.pid], f"{process.args} ends", seconds)
    return process.returncode


def run(*commands: list[Any], seconds: float = 120, **options: Any) -> list[tuple[str, str]]:
    """Run commands beside each other, which must succeed; returns what each wrote to standard output and error."""
    with ExitStack() as stack:
        files = [[stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)] for _ in commands]
        running = [
            start(command, stdin=subprocess.DEVNULL, stdout=out, stderr=error, **options)
            for command, (out, error) in zip(commands, files, strict=True)
        ]
        written = []
        for process, (out, error) in zip(running, files, strict=True):
            status, said = finish(process, seconds), _read(error)
            assert status == 0, f"{process.args} ended with status {status}: {said[-4000:]}"
            written.append((_read(out), said))
    return written


def kill_all() -> None:
    """Kill what is left of all processes that were started or watched, descendants too."""
    left = set(_known)
    for process in _known:
        with suppress(psutil.NoSuchProcess):
            left.update(process.children(recursive=True))
    # The oldest first: one that waits for a child would else see it die, and end by itself before it is killed.
    for process in sorted(left, key=lambda process: (process.create_time(), process.pid)):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _known.clear()


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8")


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _is_ready(process: psutil.Process) -> bool:
    """Whether a thread of it runs, or would run if it were given a core, or waits for the disk."""
    tasks = Path(f"/proc/{process.pid}/task")
    try:
        if not tasks.is_dir():
            return process.status() == psutil.STATUS_RUNNING
        return any(stat.read_text().rpartition(")")[2].split()[0] in "RD" for stat in tasks.glob("*/stat"))
    except (psutil.NoSuchProcess, OSError):
        return False
