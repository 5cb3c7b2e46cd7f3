"""How often the rules for names and dates agree with a tagger of spaCy's, on Wikipedia leads.

    pip install "realm-min[demo,spacy]" && python -m spacy download en_core_web_sm
    python benchmarks/salient_spans.py

Every second lead is measured; the rules were made by looking at the others. A span of the rules is right if the tagger
has the very same one, in characters; a leading article and a final 's are no part of either's. The tagger is no truth:
it takes "Opera" for an organisation and "BC" out of "300 BC", and misses names such as Ufa and Dostoevsky where they
open a sentence. The figures say how near the rules come to what it would hide.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from realm_min.app.cli import status_of
from realm_min.files.atomic import write_atomically
from realm_min.jobs.statistics import wilson
from realm_min.text import spacy_tagger
from realm_min.text.leads import lead_documents
from realm_min.text.names_and_dates import Span, SpanFinder, salient_spans

KINDS = ("all", "with a figure", "without, in a sentence", "without, at its start")


def kind_of(text: str, span: Span) -> str:
    if any(map(str.isdigit, text[slice(*span)])):
        return KINDS[1]
    before = text[: span[0]].rstrip("\"'“‘([ ").removesuffix(" the").removesuffix("The").rstrip()
    return KINDS[3] if not before or before[-1] in ".!?" else KINDS[2]


def agreement(texts: Iterable[str], find: SpanFinder, reference: SpanFinder) -> dict[str, list[int]]:
    """Of each kind of span: how many `find` gives, how many `reference`, and how many both."""
    counts = {kind: [0, 0, 0] for kind in KINDS}
    for text in texts:
        found, expected = ({spacy_tagger.trimmed(text, *span) for span in of(text)} for of in (find, reference))
        for place, spans in enumerate((found, expected, found & expected)):
            for span in spans:
                for kind in (KINDS[0], kind_of(text, span)):
                    counts[kind][place] += 1
    return counts


def rows(counts: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Precision and recall of each kind with Wilson's 95 % intervals, per cent."""
    table = []
    for kind, (found, expected, both) in counts.items():
        row: dict[str, Any] = {"spans": kind, "rules": found, "tagger": expected, "both": both}
        for name, of in (("precision", found), ("recall", expected)):
            low, high = wilson(both / of, of) if of else (0.0, 1.0)
            row |= {name: f"{100 * both / max(1, of):.1f}", f"{name}_95": f"{100 * low:.1f} to {100 * high:.1f}"}
        table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--leads", type=Path, metavar="FILE", help="the data file (default: the installed package's)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "salient-spans.csv", metavar="FILE.csv")
    given = parser.parse_args()
    texts = [document.text for document in lead_documents(given.leads)][1::2]
    found = rows(agreement(texts, salient_spans, spacy_tagger.names_and_dates))
    meta = spacy_tagger.loaded(spacy_tagger.MODEL).meta
    reference = f"{meta['lang']}_{meta['name']} {meta['version']} with spaCy {import_module('spacy').__version__}"
    with write_atomically(given.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*found[0], "leads", "reference"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"leads": len(texts), "reference": reference} for row in found)
    for row in found:
        print(f"{row['spans']:<24} precision {row['precision']} ({row['precision_95']})  recall {row['recall']}"
              f" ({row['recall_95']})  of {row['rules']:,} and {row['tagger']:,}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(status_of(main))
