"""Special tokens by name and by id, settable at any time, as transformers has them: `tokenizer.pad_token = "[UNK]"`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from realm_min.files.unknown_names import level_of_the_program
from realm_min.kinds import is_iterable
from realm_min.text.left_out import LeftOut
from realm_min.text.tokenizer_files import NAMED_TOKENS

Token = str | AddedToken


def content(token: Token) -> str:
    return token if isinstance(token, str) else token.content


def _token(name: str) -> Any:
    def get(tokenizer: SpecialTokens) -> str | None:
        token = tokenizer.special_tokens_map_extended.get(name)
        return None if token is None else content(token)

    def change(tokenizer: SpecialTokens, token: Token | None) -> None:
        tokenizer.name_token(name, token)

    return property(get, change, doc=f"The text of {name}; None where there is none.")


def _token_id(name: str) -> Any:
    def get(tokenizer: SpecialTokens) -> int | None:
        return tokenizer.convert_tokens_to_ids(getattr(tokenizer, name))

    def change(tokenizer: SpecialTokens, index: int | None) -> None:
        tokenizer.name_token(name, None if index is None else tokenizer.convert_ids_to_tokens(index))

    return property(get, change, doc=f"The id of {name}, of `unk_token` where the vocabulary lacks it.")


class SpecialTokens(LeftOut):
    """The names of special tokens: which text each stands for, and its id.

    A name can be set to a token, to None, and its id to that of a token. What a name stood for before stays a token of
    the vocabulary, that no text is cut in. Both tokenizers pad with `pad_token`; around a text `RealmTokenizer` puts
    `cls_token` and `sep_token` as they are now, `RealmTokenizerFast` as they were when it was made.
    """

    SPECIAL_TOKENS_ATTRIBUTES = (*NAMED_TOKENS, "additional_special_tokens")
    pad_token_type_id = 0

    bos_token, bos_token_id = _token("bos_token"), _token_id("bos_token")
    eos_token, eos_token_id = _token("eos_token"), _token_id("eos_token")
    unk_token, unk_token_id = _token("unk_token"), _token_id("unk_token")
    sep_token, sep_token_id = _token("sep_token"), _token_id("sep_token")
    pad_token, pad_token_id = _token("pad_token"), _token_id("pad_token")
    cls_token, cls_token_id = _token("cls_token"), _token_id("cls_token")
    mask_token, mask_token_id = _token("mask_token"), _token_id("mask_token")

    def __init__(self, named: Mapping[str, Token | None], additional: Sequence[Token]) -> None:
        self._named: dict[str, Token] = {}
        self._additional: list[Token] = []
        self.rename(named, additional)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        raise NotImplementedError

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        raise NotImplementedError

    def special_tokens_changed(self) -> None:
        """Told after each change of a name or of the added tokens."""

    def name_token(self, name: str, token: Token | None) -> None:
        """Let `name` stand for `token`. Raises ValueError if that is neither a token nor None."""
        if token is not None and not (isinstance(token, (str, AddedToken)) and content(token)):
            raise ValueError(f"{name} must be a token or None, not a {type(token).__name__}: {token!r}")
        if token is not None and content(token) not in self.get_vocab():
            warnings.warn(
                f"the vocabulary lacks {name}={content(token)!r}, which has the id of unk_token until "
                f"add_special_tokens({{{name!r}: …}}) gives it its own",
                stacklevel=level_of_the_program(),
            )
        self.rename({name: token})

    def rename(self, named: Mapping[str, Token | None], additional: Sequence[Token] | None = None) -> None:
        """Let names stand for tokens, or for none; `additional` takes the place of those without a name."""
        self._named = {name: token for name, token in {**self._named, **named}.items() if token is not None}
        if additional is not None:
            self._additional = list(additional)
        self.special_tokens_changed()

    @property
    def additional_special_tokens(self) -> list[str]:
        """Special tokens that have no name. Can be set to a list of tokens."""
        return [content(token) for token in self._additional]

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Sequence[Token] | None) -> None:
        tokens = () if tokens is None else tokens
        if not is_iterable(tokens) or not all(isinstance(token, (str, AddedToken)) for token in tokens):
            raise ValueError(f"additional_special_tokens must be a list of tokens, not {tokens!r}")
        self.rename({}, tokens)

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Their ids. Can be set to a list of ids."""
        return self.convert_tokens_to_ids(self.additional_special_tokens)

    @additional_special_tokens_ids.setter
    def additional_special_tokens_ids(self, ids: Sequence[int]) -> None:
        self.additional_special_tokens = self.convert_ids_to_tokens(ids)

    @property
    def special_tokens_map_extended(self) -> dict[str, Any]:
        """Name of each special token to the token as it was given."""
        named = {name: self._named[name] for name in NAMED_TOKENS if name in self._named}
        return named | ({"additional_special_tokens": list(self._additional)} if self._additional else {})

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """Name of each special token to its text."""
        return {
            name: [content(token) for token in value] if isinstance(value, list) else content(value)
            for name, value in self.special_tokens_map_extended.items()
        }

    @property
    def all_special_tokens_extended(self) -> list[Token]:
        """Every special token once, as it was given."""
        first: dict[str, Token] = {}
        for token in [*(self._named[name] for name in NAMED_TOKENS if name in self._named), *self._additional]:
            first.setdefault(content(token), token)
        return list(first.values())

    @property
    def all_special_tokens(self) -> list[str]:
        """The text of every special token, once each."""
        return [content(token) for token in self.all_special_tokens_extended]

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return self.convert_tokens_to_ids(self.all_special_tokens)
