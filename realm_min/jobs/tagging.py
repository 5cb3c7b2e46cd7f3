"""A tagger in the place of the rules that find names and dates: a function of the user's, "module:function".

It is called with a text and gives the (start, end) of each span that is worth hiding, in characters of the text.
docs/evaluation.md says how well the rules do, and shows a tagger of spaCy's (`text/spacy_tagger.py`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from operator import index
from pathlib import Path
from types import ModuleType
from typing import cast

from ..files.causes import raise_machine_error
from ..text.names_and_dates import Span, SpanFinder

PROBE = "Marie Curie was born in Warsaw in November 1867."


def tagger(name: str) -> SpanFinder:
    """The function that "module:function" names; the current folder is looked through, too, after all else.

    What it gives is checked at each call.

    Raises:
        ModuleNotFoundError: there is no such module, or it needs one that is not there.
        ValueError: it has no such function, or that gives no spans of a text; or either raises an error.
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
        with failures_named(name):
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


@contextmanager
def failures_named(name: str) -> Iterator[None]:
    """Let what the user's code raises be a ValueError; what is not installed, and the machine's failures, as they are.

    Code that would end the program, as sys.exit does, fails as well.
    """
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        raise_machine_error(error)
        raise ValueError(
            f"the tagger {name} raised {type(error).__name__}: {error}: mend it, or name another"
        ) from error


def checked_spans(name: str, find: SpanFinder, text: str) -> list[Span]:
    """What a tagger gives for a text; ValueError if that is no list of spans in it, or the tagger fails."""
    with failures_named(name):
        given = find(text)
        given = list(given) if isinstance(given, Iterator) else given
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
