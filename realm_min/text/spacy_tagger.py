"""spaCy's names and dates, as a tagger: `--tagger realm_min.text.spacy_tagger:names_and_dates`.

It needs the extra `spacy` and a model, `python -m spacy download en_core_web_sm`. Another model, or other labels, are a
function of your own that is as short as this one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import Any

from .names_and_dates import Span

MODEL = "en_core_web_sm"
NAMES = frozenset("PERSON NORP FAC ORG GPE LOC PRODUCT EVENT WORK_OF_ART LAW LANGUAGE".split())
_ARTICLE, _OWNER = re.compile("(?:the|an?) ", re.IGNORECASE), re.compile("['’]s?$")


def names_and_dates(text: str) -> list[Span]:
    """The names, and the dates with a figure in them, that the model finds, without a leading article and a final 's.

    Raises:
        ModuleNotFoundError: spaCy is not installed.
        OSError: the model is not.
    """
    found = []
    for entity in loaded(MODEL)(text).ents:
        if entity.label_ in NAMES or (entity.label_ == "DATE" and any(map(str.isdigit, entity.text))):
            span = trimmed(text, entity.start_char, entity.end_char)
            if span[0] < span[1]:
                found.append(span)
    return found


def trimmed(text: str, start: int, end: int) -> Span:
    """A span without the article that it begins with and the 's that it ends with."""
    if article := _ARTICLE.match(text, start, end):
        start = article.end()
    if owner := _OWNER.search(text[start:end]):
        end = start + owner.start()
    return start, end


@lru_cache(maxsize=1)
def loaded(name: str) -> Any:
    """A pipeline of spaCy's, with what finds names alone."""
    try:
        spacy = import_module("spacy")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("this tagger needs spaCy: pip install 'realm-min[spacy]'") from None
    try:
        return spacy.load(name, disable=["parser", "lemmatizer", "attribute_ruler"])
    except OSError:
        raise FileNotFoundError(f"spaCy has no model {name}: python -m spacy download {name}") from None
