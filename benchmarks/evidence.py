"""What the recorded files say of learning, as tables of README.md, MODEL_CARD.md and docs/evidence.md: `make tables`.

Shares are in per cent. [low, high] is Wilson's 95 % interval of a share of n questions; of several seeds it is
Student's of their mean. Nothing is measured here; `tests/project/test_evidence.py` holds the tables to the files.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path

from scale_model import fill

from realm_min.files.atomic import write_atomically
from realm_min.jobs.statistics import mcnemar, wilson

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
DOCUMENTS = [ROOT / "README.md", ROOT / "MODEL_CARD.md", ROOT / "docs" / "evidence.md"]
MEASURES = ("R@1", "R@5", "R@20", "EM")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % points of t, by the number of seeds
TEXTS = {"trained": "270 texts of 90 facts", "held_out": "90 texts of 30 facts"}  # app/learn.py: 3 texts a fact
SEARCH = "index int8"
BESIDE = {
    "the model that ships, 128 numbers a block": "shipped-leads",
    "MiniLM as it comes, 384 numbers": "shipped-leads-minilm",
    "BM25": "shipped-leads-bm25",
}
SHIPPED = [  # kinds and splits of shipped.csv
    ("leads", "dev", "dev questions over Wikipedia leads"),
    ("factbook", "dev", "WebQuestions' dev questions over the Factbook"),
    ("factbook", "devtest", "WebQuestions' devtest questions over the Factbook"),
]
OWN = {"leads": "leads", "factbook": "Factbook"}
ENCODERS = {
    "mlm": "words hidden in blocks",
    "read": "then 80 updates on facts and retrieved blocks, what fine-tuning begins with",
    "copy": "after `mlm`, words to be looked up in a stretch of the block",
    "ground": "then 150 updates on facts and retrieved blocks",
    "pretrain": "then the retriever learns too",
}


def read(name: str) -> list[dict[str, str]]:
    """A recorded table's rows; its head of lines that begin with # is left out."""
    with open(FOLDER / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def share(hits: float, n: float) -> str:
    """ "63.5 [49.9, 75.2]", of 33 of 52."""
    low, high = wilson(hits / n, n)
    return f"{100 * hits / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def over_seeds(values: list[float]) -> str:
    """The mean of shares, one a seed, and its interval as far as it lies within 0 and 100."""
    count, mean = len(values), sum(values) / len(values)
    half = STUDENT[count] * math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return f"{100 * mean:.1f} [{100 * max(mean - half, 0):.1f}, {100 * min(mean + half, 1):.1f}]"


def at_best(hits: int) -> str:
    """The smallest p that McNemar's exact test can give where one system has so many questions more than the other."""
    return f"{min(1.0, 2 * 0.5 ** abs(hits)):.2g}"


def table(*rows: list[str]) -> str:
    """Rows as Markdown, the head first; a column of numbers alone stands on the right."""
    head, *others = rows
    numbers = [all(re.fullmatch(r"[\d., \[\]]*", cell) for cell in column) for column in zip(*others, strict=True)]
    lines = [head, ["---:" if right else "---" for right in numbers], *others]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---- the tables


def learnt(group: str, gradient: bool, last: bool = True) -> str:
    """R@1 of `make learn` at its last record, or its first."""
    rows = [row for row in read("learn.csv") if row["gradient"] == str(int(gradient))]
    step = (max if last else min)(int(row["step"]) for row in rows)
    return over_seeds([float(row[f"{group}_r1"]) for row in rows if int(row["step"]) == step])


def hits_of(retriever: str, split: str) -> tuple[dict[str, int], int]:
    """How many questions of the ablation have each measure that was taken, and of how many."""
    (row,) = [row for row in read("ablation.csv") if (row["retriever"], row["split"]) == (retriever, split)]
    n = int(row["questions"])
    return {name: round(float(row[name]) * n / 100) for name in MEASURES if row[name]}, n


def stages(split: str) -> str:
    rows = [["retriever", *MEASURES]]
    for row in read("ablation.csv"):
        if row["split"] == split:
            hits, n = hits_of(row["retriever"], split)
            rows.append([row["retriever"], *(share(hits[name], n) if name in hits else "" for name in MEASURES)])
    return table(*rows)


def share_of(rows: list[dict[str, str]], measure: str) -> str:
    """The share of the questions that a measure is 1 of."""
    return share(sum(int(row[measure]) for row in rows), len(rows))


def of_kind(kind: str, **values: str) -> list[dict[str, str]]:
    """The rows of the model that ships that are of a kind of question, and have these values."""
    rows = [row for row in read("shipped.csv") if row["kind"] == kind]
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def shipped() -> str:
    """The model that ships, by where the answers stand."""
    rows = [["questions", "blocks searched", "n", *MEASURES, "EM, given the right block", "n of it"]]
    for kind, split, name in SHIPPED:
        some = of_kind(kind, split=split)
        held = [row for row in some if row["EM alone"]]
        found = [share_of(some, name) for name in MEASURES]
        rows.append([name, "both corpora", str(len(some)), *found, share_of(held, "EM alone"), str(len(held))])
        own = [share_of(some, f"own {name}") for name in MEASURES[:3]]
        rows.append([name, f"the {OWN[kind]} alone", str(len(some)), *own, "", "", ""])
    return table(*rows)


def beside() -> str:
    """The shipped model's retriever and two others, over the leads alone."""
    ks, rows = (1, 5, 20), [["retriever, of blocks of the leads", "R@1", "R@5", "R@20", "p at 1, 5, 20"]]
    hits = {name: [[int(row[f"top_{k}_word_match"]) for row in read(f"{file}.csv")] for k in ks]
            for name, file in BESIDE.items()}  # fmt: skip
    ours, *_ = hits.values()
    for name, found in hits.items():
        ps = "" if found is ours else ", ".join(f"{mcnemar(*pair).p:.1g}" for pair in zip(ours, found, strict=True))
        rows.append([name, *(share(sum(each), len(each)) for each in found), ps])
    return table(*rows)


def kinds() -> str:
    rows = [["questions", "n", *MEASURES]]
    for kind, of in (("factbook", "country"), ("leads", "article")):
        for seen, words in (("1", f"{of} and answer were asked for in training"), ("0", "they were not")):
            some = of_kind(kind, seen=seen)
            found = [share_of(some, measure) for measure in MEASURES]
            rows.append([f"over the {OWN[kind]}: {words}", str(len(some)), *found])
    return table(*rows)


def doubt() -> str:
    """What P(right) of the model that ships is worth."""
    (row,) = read("shipped-calibration.csv")
    n = {name: float(row[name]) for name in row}
    error, by_chance, of_p = (f"{n[f'calibration error{of}']:.3f}" for of in ("", " by chance", " of p"))
    sure, right, answers = n["P(right) at least 0.9"], n["right"], row["answers"]
    refused, unanswerable = n["of them not found"], n["unanswerable"]
    return table(
        ["of the model that ships", "figure", "n"],
        ["expected calibration error of P(right), 0 to 1", error, answers],
        ["the same if answers were right exactly as often as is said", by_chance, answers],
        ["expected calibration error of p(y\\|x)", of_p, answers],
        ["right where P(right) is 0.9 or more", share(n["of them right"], sure) if sure else "", f"{sure:.0f}"],
        ["right answers called \"not found\"", share(n["right, not found"], right), row["right"]],
        ["questions without an answer called \"not found\"", share(refused, unanswerable), row["unanswerable"]],
    )  # fmt: skip


def encoders() -> str:
    rows = [["encoder after", "finds the fact's block"]]
    for row in read("ablation-encoders.csv"):
        found = share(int(row["finds its block"]), int(row["facts"]))
        rows.append([f"`{row['encoder']}`: {ENCODERS[row['encoder']]}", found])
    return table(*rows)


def learning() -> str:
    rows = [["R@1", "n", "before", "with the gradient", "without"]]
    for group, name in (("trained", "facts that training asks for"), ("held_out", "facts never asked for")):
        figures = [learnt(group, True, last=False), learnt(group, True), learnt(group, False)]
        rows.append([name, f"{TEXTS[group]}, 3 seeds", *figures])
    return table(*rows)


def front() -> str:
    (ict, n), (realm, _) = (hits_of(name, "dev") for name in ("ICT", "ICT + REALM"))
    learn, ablation, asked = (f"`make {name}`, `{name}.csv`" for name in ("learn", "ablation", "shipped"))
    head = ["what", "figure", "n", "command, file in `benchmarks/`"]
    rows = [[f"a small retriever learns from masked words alone: R@1, {name}",
             f"{learnt(group, True)}; without its gradient {learnt(group, False)}", f"{TEXTS[group]}, 3 seeds", learn]
            for group, name in (("trained", "facts asked for"), ("held_out", "facts never asked for"))]  # fmt: skip
    for kind, split, which in SHIPPED[:2]:
        some = of_kind(kind, split=split)
        for name, words in (("R@5", "an answer is in the 5 blocks read"), ("EM", "exact match")):
            rows.append([f"the model that ships, {which}: {words}", share_of(some, name), str(len(some)), asked])
    for seen, words in (("1", "asked for in training"), ("0", "not asked for")):
        some = of_kind("factbook", seen=seen)
        rows.append(
            [
                f"its exact match there and on devtest, country and answer {words}",
                share_of(some, "EM"),
                str(len(some)),
                asked,
            ]
        )
    gain = realm["R@5"] - ict["R@5"]
    figure = f"{share(ict['R@5'], n)} → {share(realm['R@5'], n)}; p ≥ {at_best(gain)}"
    rows.append(["R@5 after ICT → with 100 updates by REALM's gradient, on made questions", figure, str(n), ablation])
    found = {(row["arm"], row["measure"], row["against"]): row for row in read("realm/summary.csv")}
    for k, other, words in ((1, "ict", "before it"), (5, "ict-again", "after ICT that went on")):
        paired = found["realm", f"all R@{k}", other]
        mean, low, high = (f"{float(paired[part]):+.1f}".replace("-", "−") for part in ("mean", "low", "high"))
        what = f"R@{k} after REALM − {words}, from Wikipedia leads"
        rows.append([what, f"{mean} [{low}, {high}]", "1,009, 3 seeds", "`make realm`, `realm/summary.csv`"])
    return table(head, *rows)


def both(values: Iterable[float]) -> str:
    """ "6.2 and 5.3", of what was measured twice."""
    return " and ".join(f"{value:.3g}" for value in values)


def speed() -> str:
    """How many times as fast as what transformers does: medians of the repeats' ratios, of each section."""
    rows = [["how many times as fast", "figure", "repeats", "command, file in `benchmarks/`"]]
    asked, machines = "embed 1 question of 14 tokens", (("model", "an Intel Xeon"), ("model-epyc", "an AMD EPYC"))
    for name, machine in machines:
        (row,) = [row for row in read(f"{name}.csv") if row["work"] == asked]
        what = f"a question is embedded, against transformers 4.40.2, two cores of {machine}"
        rows.append([what, f"{float(row['ratio']):.2f}", row["repeats"], f"`make bench-model`, `{name}.csv`"])
    for name, machine in (("kernels-cpu", "two cores of an AMD EPYC"), ("kernels-nvidia-h200", "one NVIDIA H200")):
        asked = {"contender": SEARCH, "queries": "1", "k": "5"}
        some = [row for row in read(f"{name}.csv") if asked.items() <= row.items()]
        (blocks,) = {row["blocks"] for row in some if row["section"] == "search"}
        some = [row for row in some if row["blocks"] == blocks and row["against_torch"]]
        what = f"exact search in int8 over {int(blocks):,} blocks, against transformers' way in torch, {machine}"
        ratios, times = (both(float(row[name]) * unit for row in some) for name, unit in
                         (("against_torch", 1), ("seconds", 1000)))  # fmt: skip
        repeats = both(int(row["repeats"]) for row in some)
        rows.append([what, f"{ratios}, in {times} ms", repeats, f"`make bench`, `{name}.csv`"])
    return table(*rows)


def tables() -> dict[str, str]:
    return {
        "front": front(), "speed": speed(), "learning": learning(), "shipped": shipped(), "beside": beside(),
        "kinds": kinds(), "doubt": doubt(), "encoders": encoders(),
        **{f"stages {split}": stages(split) for split in ("dev", "devtest", "train")},
    }  # fmt: skip


def main() -> None:
    made = tables()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        with write_atomically(document) as temporary:
            temporary.write_text(fill(text, made), encoding="utf-8")


if __name__ == "__main__":
    main()
