"""The files of a tokenizer's folder: vocabularies, special and added tokens, JSON.

The folders are those of transformers 4.40.2: `vocab.txt` (one piece a line), `tokenizer_config.json` (constructor
arguments and added tokens), `special_tokens_map.json`, `added_tokens.json`, and `tokenizer.json` from the fast
tokenizer. What makes a tokenizer of them, and writes one to them, is `BaseTokenizer`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from realm_min import kinds
from realm_min.files.atomic import write_atomically
from realm_min.files.causes import check_readable

SURROGATE = re.compile("[\ud800-\udfff]")
SPECIAL_TOKEN_NAMES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
NAMED_TOKENS = ("bos_token", "eos_token", *SPECIAL_TOKEN_NAMES)


def read_constructor_arguments(folder: Path) -> dict[str, Any]:
    """The arguments that a folder holds for its tokenizer's constructor, without the paths of vocabularies.

    Raises:
        ValueError: a file is damaged.
    """
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    for name in ("tokenizer_class", "name_or_path", "init_inputs", "special_tokens_map_file", "auto_map"):
        config.pop(name, None)
    config.pop("tokenizer_file", None)
    config.pop("vocab_file", None)
    if "added_tokens_decoder" not in config:
        config.update(read_older_special_tokens(folder))
    return config


def read_older_special_tokens(folder: Path) -> dict[str, Any]:
    """Special and added tokens of folders whose tokenizer_config.json does not list them, as google/realm-* do."""
    arguments: dict[str, Any] = {}
    special_tokens_file, added_tokens_file = folder / "special_tokens_map.json", folder / "added_tokens.json"
    if special_tokens_file.is_file():
        arguments.update(read_json(special_tokens_file))
    added: dict[int, AddedToken] = {}
    if added_tokens_file.is_file():
        named = [arguments[name] for name in NAMED_TOKENS if arguments.get(name)]
        named += special_tokens_of(arguments.get("additional_special_tokens"))
        special = {as_added_token(token, True).content for token in named}
        for content, index in read_json(added_tokens_file).items():
            added[added_id(index, content)] = as_added_token(content, special=content in special)
    if (folder / "tokenizer.json").is_file():
        added.update(read_tokenizer_json(folder / "tokenizer.json")[1])
    return {**arguments, "added_tokens_decoder": added}


def read_tokenizer_json(path: str | os.PathLike) -> tuple[dict[str, int], dict[int, AddedToken]]:
    """The vocabulary and the added tokens of the library's file. Raises ValueError if it holds no WordPiece model."""
    check_readable(path, f"no tokenizer file at {str(path)!r}")
    content = read_json(Path(path))
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        found = model.get("type") if isinstance(model, dict) else model
        raise ValueError(f"{str(path)!r} holds a {found!r} model: REALM's tokenizer needs WordPiece")
    vocab = model.get("vocab")
    if (
        not isinstance(vocab, dict)
        or any(type(i) is not int for i in vocab.values())
        or set(vocab.values()) != set(range(len(vocab)))
    ):
        raise ValueError(f"the pieces in {str(path)!r} have not the ids 0, 1, 2, …: fetch or write the file again")
    if damaged := next(filter(SURROGATE.search, vocab), None):
        raise ValueError(f"the piece {damaged!r} in {str(path)!r} holds half a surrogate pair: fetch the file again")
    try:
        added = {token.pop("id"): as_added_token(token, special=False) for token in content.get("added_tokens", [])}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"the added tokens in {str(path)!r} are damaged ({error!r}): fetch the file again") from None
    return vocab, added


def check_vocabularies(folder: Path) -> None:
    """ValueError if a folder has both vocab.txt and tokenizer.json, and they hold different vocabularies."""
    text, library = folder / "vocab.txt", folder / "tokenizer.json"
    if text.is_file() and library.is_file() and load_vocab(text) != read_tokenizer_json(library)[0]:
        raise ValueError(
            f"{str(text)!r} and the tokenizer.json beside it hold different vocabularies: one is damaged or of another "
            "model; fetch both again, or remove the wrong one"
        )


def load_vocab(path: str | os.PathLike) -> dict[str, int]:
    """Read `vocab.txt`, one piece a line, into piece -> line number, from 0.

    Raises FileNotFoundError, or ValueError for an empty file, one that is not UTF-8 or a piece that stands twice.
    """
    check_readable(path, f"no vocabulary file at {str(path)!r}: pass the path of a vocab.txt, one piece a line")
    vocab: dict[str, int] = {}
    try:
        with open(path, encoding="utf-8-sig") as lines:  # some editors write a byte order mark
            for line_number, line in enumerate(lines):
                piece = line.rstrip("\n")
                if piece in vocab:
                    raise ValueError(
                        f"the vocabulary {str(path)!r} holds {piece!r} twice, in lines {vocab[piece] + 1} and "
                        f"{line_number + 1}: remove one"
                    )
                vocab[piece] = line_number
    except UnicodeDecodeError as error:
        raise ValueError(f"the vocabulary {str(path)!r} is not UTF-8 text: {error}") from error
    if not vocab:
        raise ValueError(f"the vocabulary {str(path)!r} is empty: it needs one piece a line")
    return vocab


def read_json(path: Path) -> dict:
    check_readable(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} should hold a JSON object, and holds a {type(content).__name__}")
    return content


def write_text(path: Path, text: str) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


ADDED_TOKEN_FLAGS = {"lstrip", "normalized", "rstrip", "single_word", "special"}


def as_added_token(token: str | dict | AddedToken, special: bool) -> AddedToken:
    """An AddedToken from what configuration files and callers write for one; ValueError if it is none."""
    if isinstance(token, str) and SURROGATE.search(token):
        raise ValueError(f"{token!r} is no added token: half a surrogate pair is no text")
    if isinstance(token, str) and token:
        return AddedToken(token, special=special, normalized=not special)
    fields = added_token_fields(token) if isinstance(token, AddedToken) else token
    fields = dict(fields) if isinstance(fields, dict) else {}
    fields.pop("__type", None)
    content = fields.get("content")
    if isinstance(content, str) and SURROGATE.search(content):
        raise ValueError(f"{content!r} is no added token: half a surrogate pair is no text")
    flags = {name: value for name, value in fields.items() if name != "content"}
    if not (isinstance(content, str) and content and ADDED_TOKEN_FLAGS >= flags.keys()) or any(
        not isinstance(value, bool) for value in flags.values()
    ):
        raise ValueError(
            f"{token!r} is no added token: it needs a content, and true or false for any of "
            + ", ".join(sorted(ADDED_TOKEN_FLAGS))
        )
    return AddedToken(**{**fields, "special": special or fields.get("special", False)})


def added_tokens_of(saved: Any) -> dict[int, AddedToken]:
    """Added tokens by their ids, which a file writes as text. ValueError if they are none."""
    kinds.check("added_tokens_decoder", saved, Mapping)
    return {added_id(index, token): as_added_token(token, special=False) for index, token in saved.items()}


def added_id(index: Any, token: Any) -> int:
    """The id of an added token; ValueError if it is none."""
    number: Any = int(index) if isinstance(index, str) and re.fullmatch("[0-9]{1,10}", index) else index
    if not kinds.is_a(number, int) or not 0 <= number < 2**31:
        raise ValueError(
            f"the added token {kinds.shown(token)} has the id {index!r}: give a number from 0 to 2 ** 31 - 1"
        )
    return int(number)


def special_token(token: str | dict | AddedToken) -> str | AddedToken:
    """A special token as it was given, but of a file's fields an AddedToken. ValueError if it is none."""
    return token if isinstance(token, str) else as_added_token(token, special=True)


def special_tokens_of(tokens: Sequence | None) -> list[str | AddedToken]:
    """Each of several as `special_token`; None is none of them. Raises ValueError for what is no list."""
    kinds.check("additional_special_tokens", tokens, Sequence | None)
    return [] if tokens is None else [special_token(token) for token in tokens]


def added_token_fields(token: AddedToken) -> dict[str, Any]:
    return {name: getattr(token, name) for name in ("content", *sorted(ADDED_TOKEN_FLAGS))}
