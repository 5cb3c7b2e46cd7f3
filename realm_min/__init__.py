"""REALM (Guu et al. 2020) from scratch: the names of transformers 4.40.2, to be read."""

from .config import RealmConfig
from .embedder import RealmEmbedder
from .knowledge_encoder import RealmKnowledgeAugEncoder
from .open_qa import RealmForOpenQA
from .reader import RealmReader
from .retriever import RealmRetriever
from .scorer import RealmScorer
from .tokenizer import RealmTokenizer, RealmTokenizerFast

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
