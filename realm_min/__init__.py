"""REALM (Guu et al. 2020) from scratch: the names of transformers 4.40.2, to be read.

A name is imported when it is first used: with it comes torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import RealmConfig
    from .embedder import RealmEmbedder
    from .knowledge_encoder import RealmKnowledgeAugEncoder
    from .open_qa import RealmForOpenQA
    from .reader import RealmReader
    from .retriever import RealmRetriever
    from .scorer import RealmScorer
    from .tokenizer import RealmTokenizer, RealmTokenizerFast

__version__ = "0.1.0"

__all__ = [
    "RealmConfig",
    "RealmEmbedder",
    "RealmForOpenQA",
    "RealmKnowledgeAugEncoder",
    "RealmReader",
    "RealmRetriever",
    "RealmScorer",
    "RealmTokenizer",
    "RealmTokenizerFast",
]

_MODULES = {
    "RealmConfig": "config",
    "RealmEmbedder": "embedder",
    "RealmForOpenQA": "open_qa",
    "RealmKnowledgeAugEncoder": "knowledge_encoder",
    "RealmReader": "reader",
    "RealmRetriever": "retriever",
    "RealmScorer": "scorer",
    "RealmTokenizer": "tokenizer",
    "RealmTokenizerFast": "tokenizer",
}


def __getattr__(name: str) -> object:  # PEP 562
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
