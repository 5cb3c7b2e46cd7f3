"""What did the retriever learn? Retrievers of several arms before the same encoders, after `make realm`.

An arm's retrieval utility is of its own retriever and its own encoder, both of which learned. Here the encoder stays,
and only the retriever changes: that of ICT, with which the arms began, and that of each REALM arm. What is measured is
`Lab.utility`, on more of the held-out sentences. A row of swap.csv is a seed, an encoder and a retriever.
"""

from __future__ import annotations

import csv
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

import realm
from realm_report import SWAP, report

from realm_min.files.atomic import write_atomically
from realm_min.jobs.settings import Pretrain

HELD_OUT = 256  # sentences
ENCODERS = ("realm-still", "realm")  # one that learned from what ICT's retriever found, and one from what REALM's did
RETRIEVERS = ("ict", "realm-permuted", "realm")  # realm-still has that of ICT


def rows(lab: realm.Lab, seed: int) -> Iterator[dict[str, Any]]:
    """The measures of each retriever before each encoder, of the arms that were run."""
    arms = lab.given.work / lab.given.out.name
    settings = Pretrain(**lab.settings["realm"], seed=seed)
    for encoder_of, name in itertools.product(ENCODERS, RETRIEVERS):
        folder = (lab.given.work if name == "ict" else arms) / f"{name}-{seed}"
        if not all((run / "done").is_file() for run in (folder, arms / f"{encoder_of}-{seed}")):
            continue
        embedder, encoder = lab.embedder(folder, seed), lab.encoder(arms / f"{encoder_of}-{seed}", seed)
        if name == "ict":
            realm.soften_(embedder, lab.settings["soften"])
        found = lab.utility((embedder, encoder), lab.index(embedder), settings)
        yield {"seed": seed, "encoder": encoder_of, "retriever": name, **{k: f"{x:.6g}" for k, x in found.items()}}


def main() -> None:
    options, given = realm.read_arguments()
    lab = realm.Lab(given)
    lab.settings["held_out"] = HELD_OUT
    found = [row for seed in options.seeds or lab.settings["seeds"] for row in rows(lab, seed)]
    if not found:
        raise FileNotFoundError(
            f"{given.work} has no finished arm: run make realm first, with the same --work and --out"
        )
    with write_atomically(given.out / SWAP) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    report(given.out)


if __name__ == "__main__":
    from realm_min.app.cli import status_of

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(status_of(main))
