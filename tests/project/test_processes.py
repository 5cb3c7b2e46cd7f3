"""Waiting for processes: what hangs is ended and what is kept waiting is not, whatever else the machine does."""

import subprocess
import sys

import processes
import psutil
import pytest
from processes import LOOK, had

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(10_000)"]
SPIN = [sys.executable, "-S", "-c", "while True: pass"]
PARENT = [sys.executable, "-S", "-c", f"import subprocess; subprocess.run({SLEEP})"]


def test_seconds_without_a_core_do_not_count():
    assert had(passed=LOOK, ran=0.0, ready=True) == 0
    assert had(passed=LOOK, ran=0.1, ready=True) == 0.1
    assert had(passed=LOOK, ran=3 * LOOK, ready=True) == LOOK  # on several cores
    assert had(passed=LOOK, ran=0.1, ready=False) == LOOK  # asleep most of the time
    assert had(passed=1000.0, ran=0.1, ready=False) == 2 * LOOK  # it was this process that was held up


@pytest.mark.parametrize("command", [SLEEP, SPIN, PARENT], ids=["sleep", "spin", "parent"])
def test_what_hangs_is_killed_with_its_descendants(command):
    process = processes.start(command)
    seen = []
    if command is PARENT:
        processes.until(lambda: psutil.Process(process.pid).children(), [process.pid], "it has a child")
        seen = psutil.Process(process.pid).children()
    with pytest.raises(TimeoutError, match=rf"processes \[{process.pid}\] have had [123] s, and still not: .* ends"):
        processes.finish(process, seconds=1.2)
    assert process.wait() < 0
    children = [child.pid for child in seen]
    processes.until(lambda: not any(map(processes.is_alive, children)), children, "its child ends")


def test_a_parent_is_killed_before_its_child(monkeypatch):
    kill = psutil.Process.kill
    killed = []
    monkeypatch.setattr(psutil.Process, "kill", lambda each: (kill(each), killed.append(each.pid)))
    started = [processes.start(PARENT) for _ in range(4)]
    pids = [process.pid for process in started]
    processes.until(lambda: all(psutil.Process(pid).children() for pid in pids), pids, "they have children")
    children = {pid: [child.pid for child in psutil.Process(pid).children()] for pid in pids}
    for pid in sum(children.values(), []):
        processes.watch(pid)
    processes.kill_all()
    for process in started:
        assert process.wait() < 0
        assert killed.index(process.pid) < min(killed.index(child) for child in children[process.pid])


def test_who_ends_too_early_is_named(monkeypatch):
    monkeypatch.setattr(processes, "LAST_POLLS", 10)
    process = processes.start([sys.executable, "-S", "-c", "pass"])
    with pytest.raises(
        ChildProcessError, match=rf"processes \[{process.pid}\] ended, and still not: a folder is there"
    ):
        processes.until(lambda: False, [process.pid], "a folder is there")
    assert process.wait() == 0


def test_commands_run_beside_each_other():
    code = "import sys; print(sys.argv[1]); print('no', file=sys.stderr); sys.exit(int(sys.argv[2]))"
    command = [sys.executable, "-S", "-c", code]
    assert processes.run([*command, "a", 0], [*command, "b", 0]) == [("a\n", "no\n"), ("b\n", "no\n")]
    with pytest.raises(AssertionError, match=r"ended with status 3: no"):
        processes.run([*command, "a", 3])


def test_nothing_is_left_after_a_test():
    process = subprocess.Popen(SLEEP)
    processes.watch(process.pid)
    assert processes.is_alive(process.pid)
    processes.kill_all()
    process.wait()
    assert not processes.is_alive(process.pid)
