"""What the first and every later `realm-min ask` cost, beside `import torch` alone: `python benchmarks/first_use.py`.

CPU seconds (user and system), not the clock, since they hardly depend on what else the machine does. `import torch` and
the questions alternate; the table gives medians. The thread settings are those of torch's OpenMP: with passive waiting
a thread that has nothing to do sleeps, where otherwise it spins. At last three processes ask an empty cache at once,
again and again: all must answer, and leave one file. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

QUESTION = "What is the capital of Uruguay?"
ASK = ["-m", "realm_min", "ask", "--json", QUESTION]
SETTINGS = {
    "as they are": {},
    "passive waiting": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
OUT = Path(__file__).parent / "first-use.csv"
MIB = 2**20


class Cost(NamedTuple):
    cpu_s: float
    wall_s: float
    peak_mib: float
    answer: str


def run(arguments: list[str], environment: dict[str, str]) -> Cost:
    """Run Python once; this process is small, so that the child's peak is its own."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    answer = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}")
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(used.ru_utime + used.ru_stime, wall, peak / MIB, answer)


def medians(costs: list[Cost]) -> dict[str, float]:
    return {
        name: round(statistics.median(getattr(cost, name) for cost in costs), 2)
        for name in ("cpu_s", "wall_s", "peak_mib")
    }


def measure(rounds: int) -> list[dict[str, str | float]]:
    """The rows of the table: the first use, and for each setting `import torch` and the later uses."""
    with tempfile.TemporaryDirectory() as cache:
        here = {"XDG_CACHE_HOME": cache}
        first = run(ASK, here)
        rows = [{"what": "first ask", "threads": "as they are", "runs": 1, **medians([first])}]
        (file,) = (Path(cache) / "realm-min").iterdir()
        print(f"The file in the cache: {file.stat().st_size / 1e6:.1f} MB")
        for setting, environment in SETTINGS.items():
            torches, asks = [], []
            for _ in range(rounds):
                torches.append(run(["-c", "import torch"], here | environment))
                asks.append(run(ASK, here | environment))
            if len({ask.answer for ask in asks}) != 1:
                raise RuntimeError(f"the answers differ from run to run ({setting})")
            for what, costs in (("import torch", torches), ("ask", asks)):
                rows.append({"what": what, "threads": setting, "runs": rounds, **medians(costs)})
            beyond = statistics.median(ask.cpu_s - alone.cpu_s for ask, alone in zip(asks, torches, strict=True))
            rows.append({"what": "ask beyond torch", "threads": setting, "runs": rounds, "cpu_s": round(beyond, 2)})
    return rows


def ask_at_once(processes: int) -> None:
    """Start so many in an empty cache; RuntimeError if one does not answer, or if more than one file is left."""
    with tempfile.TemporaryDirectory() as cache:
        started = [
            subprocess.Popen(
                [sys.executable, *ASK],
                env={**os.environ, "XDG_CACHE_HOME": cache},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for _ in range(processes)
        ]
        done = [process.communicate() for process in started]
        left = [path.name for path in (Path(cache) / "realm-min").iterdir()]
        waited = sum(b"Waiting for process" in said for _, said in done)
        unpacked = sum(b"Unpacking" in said for _, said in done)
        print(f"{processes} at once: {unpacked} unpacked, {waited} waited, left: {', '.join(left)}", flush=True)
        if any(process.returncode for process in started) or len({answer for answer, _ in done}) != 1 or len(left) != 1:
            raise RuntimeError(f"not all answered the same: {done}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="runs of each (default: 7)")
    parser.add_argument(
        "--at-once", type=int, default=10, metavar="N", help="times that three ask at once (default: 10)"
    )
    options = parser.parse_args()
    rows = measure(options.rounds)
    columns = ("what", "threads", "runs", "cpu_s", "wall_s", "peak_mib")
    print(f"{'':<18}{'threads':<18}{'runs':>5}{'CPU s':>8}{'wall s':>8}{'peak MiB':>10}")
    for row in rows:
        numbers = (f"{row.get(name, ''):>{width}}" for name, width in zip(columns[2:], (5, 8, 8, 10), strict=True))
        print(f"{row['what']:<18}{row['threads']:<18}{''.join(numbers)}")
    with open(OUT, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    for _ in range(options.at_once):
        ask_at_once(3)


if __name__ == "__main__":
    main()
