"""Which documents an index holds: those that are there, without those to remove, and those given.

Blocks stand in the order of their documents' ids, so that it does not matter which came first.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from ..jobs.embedding import Report
from ..ranks import distributed
from ..text.corpus import Block, Document, Source, cut_documents
from .ready_folder import Indexed

NO_TEXT = "the corpus has no text: give documents that hold some"
NAMED = 10  # documents that a remark names

Cut = list[tuple[Block, Source]]


class Changes(NamedTuple):
    """What `add` did: how many documents it added, replaced, left and removed; how many blocks it embedded."""

    added: int
    replaced: int
    left: int
    removed: int
    embedded: int


def cut_corpus(documents: Iterable[Document], tokenizer: Any, max_wordpieces: int, report: Report) -> Cut:
    """The blocks of documents, each with its source; cutting them is reported."""
    cut = []
    for pair in cut_documents(documents, tokenizer, max_wordpieces):
        cut.append(pair)
        report("Cutting documents into blocks", len(cut), None)
    return cut


def unique(documents: Iterable[Document], remark: Callable[[str], None]) -> Iterator[Document]:
    """The documents, each with an id of its own; one that comes again with the same text is left out, in a remark.

    Raises:
        ValueError: two documents have one id and different texts.
    """
    seen: dict[str, bytes] = {}
    again = []
    for number, document in enumerate(documents):
        document = document if document.id else document._replace(id=str(number))
        digest = hashlib.sha256(f"{len(document.title)} {document.title}{document.text}".encode()).digest()
        if document.id not in seen:
            seen[document.id] = digest
            yield document
        elif seen[document.id] == digest:
            again.append(document.id)
        else:
            raise ValueError(
                f"two documents have the id {document.id!r} and different texts: give one another id, or leave one out"
            )
    if again and distributed.world().is_first:
        remark(f"{len(again):,} documents came more than once, with the same text: {', '.join(again[:NAMED])}")


def merged(base: Indexed | None, given: Cut, remove: Sequence[str], name: str = "") -> tuple[Cut, Changes]:
    """The blocks of a base without the documents to remove, and those given, by their documents; and what changes.

    Raises:
        ValueError: a document to remove is not in the base, which is called `name`; ids given are numbers of blocks.
    """
    before: dict[str, Cut] = {}
    for pair in () if base is None else zip(base.blocks, base.sources, strict=True):
        before.setdefault(pair[1].document, []).append(pair)
    gone = set(remove)
    after = {document: pairs for document, pairs in before.items() if document not in gone}
    for document in remove:
        if document not in before:
            raise ValueError(f"{name} has no document {document!r}: {_near(document, before)}")
    new: dict[str, Cut] = {}
    for pair in given:
        new.setdefault(pair[1].document, []).append(pair)
    common = new.keys() & after.keys()
    if base is not None and not base.has_ids and common:
        raise ValueError(
            f"{name} knows no documents and calls its blocks by their numbers, and a document is called "
            f"{min(common)!r}: index all documents anew, or give it another id"
        )
    texts = lambda cut: [block for block, _ in cut]  # noqa: E731
    left = sum(texts(new[document]) == texts(after[document]) for document in common)
    known = set() if base is None else set(base.blocks)
    changes = Changes(
        len(new) - len(common), len(common) - left, left, len(before) - len(after),
        sum(block not in known for block, _ in given),
    )  # fmt: skip
    after |= new
    return [pair for document in sorted(after, key=order) for pair in after[document]], changes


def order(document: str) -> tuple:
    """Sorts ids by their letters, and numbers in them by their value."""
    parts = re.split(r"(\d+)", document)
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    return tuple(chain.from_iterable(zip(parts[::2], [*numbers, ()], strict=True))), document


def _near(document: str, known: dict[str, Any]) -> str:
    from .cli import suggestion

    examples = ", ".join(map(repr, list(known)[:3]))
    return suggestion(document, list(known)[:10_000], f"its documents are called {examples} …")
