"""REALM (Guu et al. 2020) from scratch: the names of transformers 4.40.2, to be read.

A name is imported when it is first used: with it comes torch, which takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .app.default_model import load
    from .config import RealmConfig
    from .interface.base import RealmPreTrainedModel
    from .interface.embedder import RealmEmbedder
    from .interface.knowledge_encoder import RealmKnowledgeAugEncoder
    from .interface.open_qa import RealmForOpenQA
    from .interface.reader import RealmReader
    from .interface.scorer import RealmScorer
    from .text.auto_tokenizer import AutoTokenizer
    from .text.batch_encoding import BatchEncoding
    from .text.retriever import RealmRetriever
    from .text.tokenizer import RealmTokenizer, RealmTokenizerFast

__version__ = "0.1.0"

__all__ = [
    "AutoTokenizer",
    "BatchEncoding",
    "RealmConfig",
    "RealmEmbedder",
    "RealmForOpenQA",
    "RealmKnowledgeAugEncoder",
    "RealmPreTrainedModel",
    "RealmReader",
    "RealmRetriever",
    "RealmScorer",
    "RealmTokenizer",
    "RealmTokenizerFast",
    "load",
]

_MODULES = {
    "AutoTokenizer": "text.auto_tokenizer",
    "BatchEncoding": "text.batch_encoding",
    "RealmConfig": "config",
    "RealmEmbedder": "interface.embedder",
    "RealmForOpenQA": "interface.open_qa",
    "RealmKnowledgeAugEncoder": "interface.knowledge_encoder",
    "RealmPreTrainedModel": "interface.base",
    "RealmReader": "interface.reader",
    "RealmRetriever": "text.retriever",
    "RealmScorer": "interface.scorer",
    "RealmTokenizer": "text.tokenizer",
    "RealmTokenizerFast": "text.tokenizer",
    "load": "app.default_model",  # the default model: load().answer(["…"])
}


def __getattr__(name: str) -> object:  # PEP 562
    if name not in _MODULES:
        from .compatible.left_out import OF_THE_PACKAGE

        if name in OF_THE_PACKAGE:  # which `from realm_min import name` shows; it would hide an AttributeError
            raise ImportError(f"{__name__}.{name}: {OF_THE_PACKAGE[name]}", name=__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
