"""Does a stopped job end as one that was never stopped? Jobs are stopped at random, and go on, for as long as you like.

    make soak                                        20 minutes
    .venv/bin/python benchmarks/soak.py --minutes 3

A run is a command (`index`, `ict`, `mlm`, `pretrain`, `finetune`, or `mlm` on three ranks) on a tiny corpus. It is
stopped several times: by SIGKILL, SIGTERM or SIGINT at a random moment, by SIGKILL at one of its writes to disk, or by
a full disk; on a slow disk, too, where each write may take a while. After a stop a bit may flip in the data of a file
that it left. Then the same command goes on. In the end every weight and every row of a log must have the bits of a run
that nothing stopped. How many were stopped, went on and were lost is written to soak.csv.

Starting Python with torch takes seconds, a tiny run less than one. So this process imports everything, without starting
a thread, and each command is a fork of it. What was done is kept in WORK/soak.jsonl: started again, the soak goes on.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch

from realm_min import RealmConfig, RealmForOpenQA, RealmTokenizerFast
from realm_min.app import cli, train
from realm_min.jobs import embedding, refresh

HERE = Path(__file__).parent
RANKS = 3
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DISK = 32 << 20  # bytes of the small disk
PATIENCE = 120  # seconds that a command may take, on a busy machine
UNCLEAR = 70  # the status of a command that ended in a traceback

SIZES = dict(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, retriever_proj_size=8,
    max_position_embeddings=64, span_hidden_size=8, reader_seq_len=64, reader_beam_size=2, searcher_beam_size=4,
    num_block_records=1, initializer_range=0.2,
)  # fmt: skip
CAPITALS = {"Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo", "Cuba": "Havana", "Iran": "Tehran"}
TRAINING = ["--save-every", "3", "--learning-rate", "0.01"]
# The command of each kind of run, after its corpus, and how many processes it is.
KINDS: dict[str, tuple[list[str], int]] = {
    "index": (["index", "CORPUS", "--model", "OPENQA"], 1),
    "ict": (["ict", "CORPUS", "--model", "OPENQA", "--steps", "12", "--batch-size", "4", "--group", "2", *TRAINING], 1),
    "mlm": (["mlm", "CORPUS", "--model", "OPENQA", "--steps", "12", "--batch-size", "4", *TRAINING], 1),
    "pretrain": (
        ["pretrain", "CORPUS", "--model", "OPENQA", "--steps", "12", "--batch-size", "3", "--num-candidates", "3",
         "--refresh-every", "4", "--max-passage", "24", "--max-block", "40", "--masking", "tokens", *TRAINING], 1,
    ),
    "finetune": (
        ["finetune", "QUESTIONS", "CORPUS", "--model", "OPENQA", "--steps", "9", "--batch-size", "3",
         "--refresh-blocks", "--refresh-every", "3", "--evaluate-every", "4", "--dev", "QUESTIONS", *TRAINING], 1,
    ),
    "three ranks": (["mlm", "CORPUS", "--model", "OPENQA", "--steps", "12", "--batch-size", "6", *TRAINING], RANKS),
}  # fmt: skip
TIMES = {"seconds", "seconds_waited", "tokens_per_second"}  # columns of a log that no two runs share


class Fault(NamedTuple):
    """What happens to a command: a signal after some seconds, one at a write, a disk of so many bytes, delays."""

    signal: int = 0
    after: float = 0.0  # seconds
    at_write: int = 0  # the command kills itself at its n-th write; 0: never
    room: int = -1  # bytes left on the disk; -1: enough
    slow: float = 0.0  # seconds that each write may take, at most
    flip: bool = False  # a bit of what the run has kept flips before the command


@dataclass
class Outcome:
    """What became of one run, and of the stops in it."""

    number: int
    kind: str
    kills: int = 0  # by SIGKILL, SIGTERM or SIGINT
    full_disk: int = 0
    slow_disk: int = 0
    flips: int = 0
    resumed: int = 0
    unclear: int = 0  # ended in a traceback
    lost: int = 0
    why: list[str] = field(default_factory=list)


# ---- the corpus and the model that the commands begin with


def prepare(work: Path) -> None:
    """Write the corpus, questions and a model with a vocabulary of their words."""
    texts = {
        country: f"The capital of {country} is {city}. Its people like music. On 4 March 19{len(country)}2 the port of "
        f"{city} opened. The hills of {country} are green, and its rivers are long."
        for country, city in CAPITALS.items()
    }  # fmt: skip
    lines = [json.dumps({"title": country, "text": text}) for country, text in texts.items()]
    (work / "corpus.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    asked = [{"question": f"what is the capital of {c.lower()}?", "answer": [city]} for c, city in CAPITALS.items()]
    (work / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked), encoding="utf-8")
    words = sorted(
        {
            word
            for text in (*texts.values(), *texts)
            for word in text.lower().replace(".", " ").replace(",", " ").split()
        }
    )
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", *letters, *words, "what"])
    (work / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    tokenizer = RealmTokenizerFast(work / "vocab.txt")
    model = RealmForOpenQA(RealmConfig(**SIZES, vocab_size=len(pieces), pad_token_id=0), seed=1)
    for folder, part in ((work / "openqa", model), (work / "openqa" / "embedder", model.embedder)):
        part.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def command(kind: str, work: Path, out: Path) -> list[str]:
    places = {"CORPUS": work / "corpus.jsonl", "QUESTIONS": work / "questions.jsonl", "OPENQA": work / "openqa"}
    words = [str(places.get(word, word)) for word in KINDS[kind][0]]
    return [*words, "--out", str(out)] + ([] if kind == "index" else ["--resume"])


# ---- a command, in a fork


def fork(work: Callable[[], int | None], log: Path) -> int:
    """Call a function in a fork, whose outputs go to `log`; returns its process id."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = UNCLEAR
    try:
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        status = work() or 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else UNCLEAR
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def run_command(words: list[str], fault: Fault, seed: int, rank: dict[str, str]) -> int:
    """In a fork: the command, with what is to happen to it."""
    os.environ |= rank
    torch.set_num_threads(1)
    embedding.SHARD_SIZE = 2  # blocks: several shards of a tiny corpus
    refresh.BuilderProcess = ForkedBuilder
    train.plot_training = lambda folder: folder  # a figure takes seconds
    meddle_with_writes(fault, random.Random(seed))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it when it has begun
    return cli.main(words)


def meddle_with_writes(fault: Fault, rng: random.Random) -> None:
    """Let this process's writes to disk take a while, and kill it at one of them."""
    count = 0

    def meddled(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            nonlocal count
            count += 1
            if fault.at_write and count >= fault.at_write:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(rng.random() * fault.slow)
            found = write(*args, **given)
            time.sleep(rng.random() * fault.slow)
            return found

        return call

    os.fsync, os.replace = meddled(os.fsync), meddled(os.replace)


class Forked:
    """What `refresh.BuilderProcess` uses of a subprocess."""

    def __init__(self, pid: int) -> None:
        self.pid, self.status = pid, None

    def poll(self) -> int | None:
        if self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if done else None
        return self.status

    def wait(self) -> int:
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def kill(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)


class ForkedBuilder(refresh.BuilderProcess):
    """Builds indexes in a fork: the real one would take seconds to import torch."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        reader, writer = os.pipe()

        def build() -> None:
            os.close(writer)
            os.dup2(reader, 0)
            refresh.build(folder, 1, str(device))

        (folder / "builder.log").write_bytes(b"")
        pid = fork(build, folder / "builder.log")
        os.close(reader)
        self.process: Any = Forked(pid)
        self.requests = os.fdopen(writer, "wb")


def carried_out(kind: str, work: Path, out: Path, fault: Fault, seed: int) -> list[int]:
    """Run a command, on as many ranks as it has, until all of them have ended; returns their statuses."""
    words, (_, size) = command(kind, work, out), KINDS[kind]
    rng, log = random.Random(seed), work / "command.log"
    log.write_bytes(b"")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    victim = rng.randrange(size)
    pids = []
    for rank in range(size):
        of_ranks = {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        own = fault if rank == victim else fault._replace(at_write=0)
        pids.append(fork(lambda own=own, e=of_ranks: run_command(words, own, seed, e if size > 1 else {}), log))
    struck = fault.signal == 0
    statuses: dict[int, int] = {}
    begun = time.monotonic()
    while len(statuses) < size:
        for pid in set(pids) - statuses.keys():
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - begun
        if not struck and passed >= fault.after:
            struck = True
            # torchrun interrupts all ranks, the machine kills one.
            for pid in pids if fault.signal == signal.SIGINT else [pids[victim]]:
                if pid not in statuses:
                    os.kill(pid, fault.signal)
        if passed > PATIENCE:
            for pid in set(pids) - statuses.keys():
                os.kill(pid, signal.SIGKILL)
            struck = True
        time.sleep(0.002)
    return [statuses[pid] for pid in pids]


# ---- the disk


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of its own for `folder`, where this machine lets us mount one; else none, and a limit stands for it."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "soak", str(folder)]
    mounted = sys.platform == "linux" and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def room_of(disk: Path, mounted: bool, room: int) -> Iterator[None]:
    """Leave so many bytes on the disk; where it is not mounted, let no file become larger."""
    if room < 0:
        yield
    elif mounted:
        ballast, left = disk / "ballast", shutil.disk_usage(disk).free
        ballast.write_bytes(b"\0" * max(left - room, 0))
        try:
            yield
        finally:
            ballast.unlink()
    else:
        import resource

        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 1 << 12), limits[1]))  # which the forks inherit
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---- a run, and what it ends in


def digest(out: Path) -> dict[str, str]:
    """What a run leaves: each file's sha256, of logs without times, and nothing that is kept to go on alone."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or name.startswith(("checkpoint", "index/")):
            continue
        data = path.read_bytes()
        if path.suffix == ".csv":
            with open(path, encoding="utf-8", newline="") as file:
                rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
            data = json.dumps(rows).encode()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def flip_a_bit(out: Path, rng: random.Random) -> int:
    """Damage one file of those that a stopped run can do without, if it has left any; returns how many."""
    newest = [out / "checkpoint.safetensors"] if (out / "checkpoint-previous.safetensors").is_file() else []
    shards = out.with_name(f"{out.name}.partial").glob("embeddings-*.npy")
    found = [path for path in (*newest, *sorted(out.glob("index/index-*.npy")), *sorted(shards)) if path.is_file()]
    if not found:
        return 0
    path = rng.choice(found)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return 1


def drawn_fault(rng: random.Random, seconds: float, slow: bool) -> Fault:
    """A stop, at a moment of the seconds that the whole run takes, rather an early one: most of it may be done."""
    given = {"slow": 0.03 if slow else 0.0, "flip": rng.random() < 0.5}
    what = rng.random()
    if what < 0.15:
        return Fault(room=rng.choice([0, 0, rng.randrange(1 << 12), rng.randrange(1 << 17)]), **given)
    if what < 0.6:
        return Fault(at_write=rng.randint(1, 25), **given)
    return Fault(rng.choice(SIGNALS), rng.random() ** 2 * seconds, **given)


def one_run(number: int, kind: str, disk: Path, mounted: bool, faults: list[Fault], whole: dict[str, str]) -> Outcome:
    """A run with those stops, and then to its end, which is compared with that of a `whole` one."""
    found, out = Outcome(number, kind), disk / "out"
    work = disk.parent
    for left in (out, out.with_name("out.partial")):
        shutil.rmtree(left, ignore_errors=True)
    found.slow_disk = int(any(fault.slow for fault in faults))
    stopped = False
    last = Fault(flip=any(fault.flip for fault in faults))
    for place, fault in enumerate([*faults, last]):
        found.resumed += stopped
        if fault.flip:
            found.flips += flip_a_bit(out, random.Random(number * 100 + place))
        with room_of(disk, mounted, fault.room):
            statuses = carried_out(kind, work, out, fault, seed=number * 100 + place)
        if UNCLEAR in statuses or any(status not in (0, 2, 130, 143, -2, -9, -15) for status in statuses):
            found.unclear += 1
            found.why.append(f"{fault}: {statuses} {(work / 'command.log').read_text(errors='replace')[-1500:]}")
        stopped = any(statuses)
        if stopped and fault.room >= 0:
            found.full_disk += 1
        elif stopped and place < len(faults):
            found.kills += 1
        if not any(statuses):
            break
    ended = digest(out)
    if ended != whole:
        found.lost = 1
        differ = sorted(name for name in ended.keys() | whole.keys() if ended.get(name) != whole.get(name))
        found.why.append(f"{faults}: {differ} {(work / 'command.log').read_text(errors='replace')[-1500:]}")
    return found


def undisturbed(kind: str, disk: Path) -> tuple[dict[str, str], float]:
    """What a run ends in that nothing stops, and the seconds it takes."""
    out = disk / "out"
    shutil.rmtree(out, ignore_errors=True)
    begun = time.monotonic()
    statuses = carried_out(kind, disk.parent, out, Fault(), seed=0)
    if any(statuses):
        raise RuntimeError(f"{kind} ends with {statuses}: {(disk.parent / 'command.log').read_text()[-3000:]}")
    return digest(out), time.monotonic() - begun


def begin(work: Path) -> None:
    """Make what the commands read, in a fork: this process starts no thread."""
    work.mkdir(parents=True, exist_ok=True)
    pid = fork(lambda: prepare(work), work / "prepare.log")
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError((work / "prepare.log").read_text(encoding="utf-8"))


# ---- all of it


def soak(work: Path, minutes: float, seed: int) -> list[Outcome]:
    """Runs until the minutes are over, those of an earlier soak with them; each is a line of WORK/soak.jsonl."""
    begin(work)
    done_file = work / "soak.jsonl"
    lines = [json.loads(line) for line in done_file.read_text().splitlines()] if done_file.is_file() else []
    outcomes, spent = [Outcome(**line["run"]) for line in lines], sum(line["seconds"] for line in lines)
    with small_disk(work / "disk") as mounted, open(done_file, "a", encoding="utf-8") as file:
        whole = {kind: undisturbed(kind, work / "disk") for kind in KINDS}
        while spent < 60 * minutes:
            number = len(outcomes)
            rng = random.Random(f"{seed} {number}")
            kind = list(KINDS)[number % len(KINDS)]
            slow = rng.random() < 0.25
            faults = [drawn_fault(rng, whole[kind][1], slow) for _ in range(rng.randint(2, 8))]
            begun = time.monotonic()
            outcome = one_run(number, kind, work / "disk", mounted, faults, whole[kind][0])
            seconds = time.monotonic() - begun
            outcomes.append(outcome)
            spent += seconds
            print(json.dumps({"seconds": seconds, "run": asdict(outcome)}), file=file, flush=True)
            print(
                f"{spent / 60:5.1f} min  {outcome.kind:<12} {outcome.kills} kills, lost {outcome.lost}", file=sys.stderr
            )
            for why in outcome.why:
                print(why, file=sys.stderr)
    return outcomes


def write_counts(path: Path, outcomes: list[Outcome], seed: int, minutes: float) -> None:
    """A row a kind, and one of all."""
    names = ("kills", "full_disk", "slow_disk", "flips", "resumed", "unclear", "lost")
    with open(path, "w", encoding="utf-8", newline="") as file:
        for key, value in {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__,
                           "seed": seed, "minutes": minutes, "date": time.strftime("%Y-%m-%d")}.items():  # fmt: skip
            file.write(f"# {key}: {value}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", "runs", *names])
        for kind in (*KINDS, "all"):
            of_kind = [outcome for outcome in outcomes if kind in (outcome.kind, "all")]
            writer.writerow([kind, len(of_kind), *(sum(getattr(each, name) for each in of_kind) for name in names)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="of all soaks in WORK together (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of what happens when (default: 0)")
    parser.add_argument(
        "--work", type=Path, default=HERE.parent / "out" / "soak", help="where runs are (default: out/soak)"
    )
    parser.add_argument("--csv", type=Path, default=HERE / "soak.csv", help="where the counts go")
    given = parser.parse_args()
    outcomes = soak(given.work.resolve(), given.minutes, given.seed)
    write_counts(given.csv, outcomes, given.seed, given.minutes)
    print(given.csv.read_text(encoding="utf-8"))
    return int(any(outcome.lost or outcome.unclear for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
