"""Folders of tokenizers, here and in transformers, and hub names: `from_pretrained` and `save_pretrained`.

The files of a folder, and what may stand in them, are told by `tokenizer_files.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realm_min import kinds
from realm_min.files.hub import resolve_folder, take_hub_options
from realm_min.files.unknown_names import warn_of_unknown
from realm_min.kinds import checked
from realm_min.text.calls import refuse_left_out
from realm_min.text.tokenizer_base import BaseTokenizer
from realm_min.text.tokenizer_files import (
    NAMED_TOKENS,
    added_token_fields,
    check_vocabularies,
    read_constructor_arguments,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from typing_extensions import Self  # of the standard library from Python 3.11 on

# What transformers' `save_pretrained` takes about publishing, which asks for nothing where nothing is published.
PUBLISHING = ("commit_message", "max_shard_size", "private", "repo_id", "safe_serialization", "token", "use_auth_token")


class TokenizerFolders(BaseTokenizer):
    """Reading a tokenizer from a folder, and writing one."""

    @classmethod
    @checked
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **overrides: Any) -> Self:
        """Read a folder that `save_pretrained`, here or in transformers, wrote, or a hub name; `vocab.txt` is enough.

        `overrides` are constructor arguments that replace the saved ones, and where to find the files (`revision`,
        `token`, `subfolder`, …). Raises FileNotFoundError for a missing folder or vocabulary, ValueError for broken
        files.
        """
        options = take_hub_options(overrides)
        if os.path.isfile(pretrained_model_name_or_path):
            file: dict[str, Any] = {"vocab_file": pretrained_model_name_or_path}
            return cls(**file | overrides)
        folder = resolve_folder(pretrained_model_name_or_path, "tokenizer", **options)
        saved, known = read_constructor_arguments(folder), cls.argument_names()
        take_hub_options(saved)  # other versions may have written them
        arguments: dict[str, Any] = {name: value for name, value in saved.items() if name in known} | overrides
        if "vocab_file" not in arguments:
            check_vocabularies(folder)
            arguments |= cls.vocabulary_file(folder)
        arguments.setdefault("name_or_path", str(pretrained_model_name_or_path))
        tokenizer = cls(**arguments)
        # Of those that have none only what the folder holds is written back: another may be a secret.
        tokenizer.without_effect = {name: overrides.get(name, saved[name]) for name in saved if name not in known}
        return tokenizer

    @classmethod
    def vocabulary_file(cls, folder: Path) -> dict[str, Path]:
        return {"vocab_file": folder / "vocab.txt"}

    @checked
    def save_vocabulary(self, save_directory: str | os.PathLike, filename_prefix: str | None = None) -> tuple[str]:
        """Write `vocab.txt` to a folder and return its path."""
        if not os.path.isdir(save_directory):
            raise FileNotFoundError(f"no folder at {str(save_directory)!r}: create it first")
        path = Path(save_directory) / f"{prefix(filename_prefix)}vocab.txt"
        kinds.check("filename_prefix", path, str | os.PathLike)
        write_text(path, "".join(piece + "\n" for piece in self.pieces))
        return (str(path),)

    @checked
    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        **options: Any,
    ) -> tuple[str, ...]:
        """Write a folder that `from_pretrained`, here and in transformers, reads; returns the paths of its files.

        Args:
            legacy_format: False leaves out vocab.txt and added_tokens.json, True tokenizer.json; None writes all that
                there is. `RealmTokenizer` has no tokenizer.json.
            filename_prefix: before the name of each file, with a hyphen; such a folder is not read back.
        """
        refuse_left_out("save_pretrained", options)
        warn_of_unknown(set(options) - set(PUBLISHING), ("legacy_format", "filename_prefix"), "save_pretrained")
        if legacy_format is False and not self.is_fast:
            raise ValueError("legacy_format=False is tokenizer.json alone, which RealmTokenizerFast has: leave it out")
        folder, start = Path(save_directory), prefix(filename_prefix)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{start}tokenizer_config.json", folder / f"{start}special_tokens_map.json"]
        write_json(paths[0], self._config())
        write_json(paths[1], self._special_tokens())
        if legacy_format is not False:
            new = {token: index for token, index in self.added_tokens_encoder.items() if index >= self.vocab_size}
            if new:
                paths.append(folder / f"{start}added_tokens.json")
                write_json(paths[-1], new)
            paths += map(Path, self.save_vocabulary(folder, filename_prefix))
        if legacy_format is not True and self.is_fast:
            paths.append(folder / f"{start}tokenizer.json")
            write_text(paths[-1], self.library_file())
        return tuple(map(str, paths))

    def library_file(self) -> str:
        """What tokenizer.json holds; of the fast tokenizer alone."""
        raise NotImplementedError

    def _config(self) -> dict[str, Any]:
        """What tokenizer_config.json holds."""
        added = {str(index): added_token_fields(token) for index, token in self.added_tokens_decoder.items()}
        own = {**self.constructor_arguments(), **self.special_tokens_map}
        return {
            **self.without_effect, **own, "added_tokens_decoder": added, "tokenizer_class": "RealmTokenizer",
        }  # fmt: skip

    def _special_tokens(self) -> dict[str, Any]:
        """What special_tokens_map.json holds: each token's text, or its fields where they are not the usual ones."""
        special_tokens: dict[str, Any] = dict(self.special_tokens_map)
        for name in NAMED_TOKENS:
            token = self.added_tokens_decoder.get(self.added_tokens_encoder.get(special_tokens.get(name, ""), -1))
            if token is not None and (token.lstrip or token.rstrip or token.single_word or token.normalized):
                special_tokens[name] = added_token_fields(token)
                special_tokens[name].pop("special")
        return special_tokens

    def constructor_arguments(self) -> dict[str, Any]:
        arguments = {
            "do_lower_case": self.do_lower_case,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
        }
        defaults = {
            "padding_side": "right",
            "truncation_side": "right",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        }
        changed = {name: getattr(self, name) for name, value in defaults.items() if getattr(self, name) != value}
        return {**arguments, **changed}


def prefix(name: str | None) -> str:
    return f"{name}-" if name else ""
