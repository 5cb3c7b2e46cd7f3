"""`AutoTokenizer`, transformers' name for the tokenizer of a folder."""

from __future__ import annotations

import os
from typing import Any

from ..kinds import checked
from .tokenizer import RealmTokenizer, RealmTokenizerFast


class AutoTokenizer:
    """Chooses between the two tokenizers: programs that name neither have one line to change, the import."""

    def __init__(self) -> None:
        raise TypeError("AutoTokenizer is no tokenizer itself: call AutoTokenizer.from_pretrained(folder)")

    @classmethod
    def register(cls, *_: Any, **__: Any) -> None:
        raise NotImplementedError("AutoTokenizer knows the two tokenizers already: name yours by its own class")

    @classmethod
    @checked
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, *, use_fast: bool = True, **options: Any
    ) -> RealmTokenizer | RealmTokenizerFast:
        """The `RealmTokenizerFast` of a folder or hub name, or with `use_fast=False` its `RealmTokenizer`."""
        return (RealmTokenizerFast if use_fast else RealmTokenizer).from_pretrained(
            pretrained_model_name_or_path, **options
        )
