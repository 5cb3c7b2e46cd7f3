"""`realm-min verify` at BERT-base size: a random checkpoint of each kind, its errors, its time and its memory.

    python benchmarks/verify_base.py [KIND …]

Each checkpoint is verified by a process of its own on two threads. The exit status is 1 if a stage is past its
tolerance, transformers' errors are not of the size of ours, or a run takes 90 s or 4 GB. Other work on the machine
counts against the seconds, not against those of the processors. A run of all kinds is written to verify.csv.
"""

from __future__ import annotations

import csv
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from bench_model import cpu_name

from realm_min import config
from realm_min.files.atomic import write_atomically
from realm_min.interface import open_qa
from realm_min.verify.stages import PARTS

SECONDS, GIGABYTES = 90, 4
BLOCKS = 100_000  # 13 million of them, as published, are 6.8 GB of block embeddings alone
# "The same size of error": how far the largest of all stages may be apart.
LARGEST_RATIO = 4
OUT = Path(__file__).parent / "verify.csv"


def save(kind: str, folder: str) -> None:
    """Write a random checkpoint."""
    import realm_min

    model_class = open_qa.RealmForOpenQA if kind == "RealmForOpenQA" else getattr(realm_min, kind)
    model = model_class(config.RealmConfig(num_block_records=BLOCKS), seed=1)
    if kind == "RealmScorer":
        model.query_embedder = realm_min.RealmEmbedder(model.config, seed=2)
    if kind == "RealmForOpenQA":
        model.block_emb.normal_(generator=torch.Generator().manual_seed(3))
    model.save_pretrained(folder)


def verify(folder: str) -> tuple[dict, float, float, float]:
    """The report of one run, its seconds, those of its processors, and the largest memory it held, in GB."""
    output = os.path.join(folder, "report.json")
    begin = time.perf_counter()
    with open(output, "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "realm_min", "verify", folder, "--json"], stdout=file,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if os.waitstatus_to_exitcode(status) not in (0, 1):
        raise SystemExit(f"verify ended with {os.waitstatus_to_exitcode(status)}")
    with open(output) as file:
        return json.load(file), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6  # reported in kB


def main(kinds: list[str]) -> int:
    good, rows = True, []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            writer = [sys.executable, "-c", f"import verify_base; verify_base.save({kind!r}, {folder!r})"]
            subprocess.run(writer, check=True, cwd=os.path.dirname(__file__))
            report, seconds, busy, gigabytes = verify(folder)
        errors = [stage["errors"] for stage in report["stages"] if stage["label"] != "retrieved ids"]
        largest = {path: max(found[path]["relative"] for found in errors if path in found) for path in report["paths"]}
        ratio = largest["transformers"] / largest["float32"]
        ok = report["passed"] and 1 / LARGEST_RATIO < ratio < LARGEST_RATIO
        ok = ok and seconds < SECONDS and gigabytes < GIGABYTES
        good = good and ok
        shown = ", ".join(f"{path} {error:.1e}" for path, error in largest.items())
        print(
            f"{kind}: {'ok' if ok else 'FAILED'}  {seconds:.0f} s ({busy:.0f} s of processors), {gigabytes:.2f} GB; "
            f"largest relative error: {shown}",
            flush=True,
        )
        rows += [
            {
                "model": kind, "path": path, "largest_relative_error": f"{error:.2e}", "stages": len(errors),
                "seconds": f"{seconds:.0f}", "gigabytes": f"{gigabytes:.2f}", "cpu": cpu_name(),
                "torch": torch.__version__, "transformers": version("transformers"),
                "date": datetime.date.today().isoformat(),
            }
            for path, error in largest.items()
        ]  # fmt: skip
    if {row["model"] for row in rows} == set(PARTS):
        with write_atomically(OUT) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(PARTS)))
