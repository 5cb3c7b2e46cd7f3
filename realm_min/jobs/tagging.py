"""A tagger in the place of the rules that find names and dates: a function of the user's, "module:function".

It is called with a text and gives the (start, end) of each span that is worth hiding, in characters of the text.
docs/evaluation.md says how well the rules do, and shows a tagger of spaCy's (`text/spacy_tagger.py`).
"""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from operator import index
from pathlib import Path
from types import ModuleType
from typing import cast

from ..text.names_and_dates import Span, SpanFinder

PROBE = "Marie Curie was born in Warsaw in November 1867."


def tagger(name: str) -> SpanFinder:
    """The function that "module:function" names; the current folder is looked through, too, after all else.

    What it gives is checked at each call.

    Raises:
        ModuleNotFoundError: there is no such module, or it needs one that is not there.
        ValueError: it has no such function, or that gives no spans of a text.
    """
    module_name, _, function = name.partition(":")
    module = _imported(module_name, name)
    find = getattr(module, function, None)
    if not callable(find):
        has = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ValueError(f"{module_name} has no function {function!r} for the tagger {name}: it has {has or 'none'}")
    checked = partial(checked_spans, name, cast(SpanFinder, find))
    checked(PROBE)  # so that what it lacks, a model say, is known before a corpus is read
    return checked


def _imported(module: str, name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            raise ModuleNotFoundError(
                f"there is no module {missing} for the tagger {name}: install it, or run where its file is"
            ) from None
        raise
    finally:
        sys.path.remove(here)


def checked_spans(name: str, find: SpanFinder, text: str) -> list[Span]:
    """What a tagger gives for a text; ValueError if that is no list of spans in it."""
    given = find(text)
    try:
        spans = [(index(start), index(end)) for start, end in given]
    except (TypeError, ValueError):
        raise ValueError(f"the tagger {name} gave {str(given)[:80]!r}: give a list of (start, end)") from None
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"the tagger {name} gave ({start}, {end}) for {text[:40]!r}, a text of {len(text)} characters: "
                "give spans that begin and end in it, and hold a character"
            )
    return spans
