"""Names of the Hugging Face hub, such as google/realm-orqa-nq-openqa, in place of a folder.

Wherever a folder is read, `resolve_folder` takes either. Downloading is the optional extra `hub`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from .causes import raise_machine_error

BLOCK_RECORDS_FILE = "block_records.npy"
BLOCK_TITLES_FILE, BLOCK_SOURCES_FILE = "block_titles.txt", "block_sources.jsonl"
MANIFEST_FILE = "manifest.json"  # of a ready folder

# What a part of the package reads of a repository. Weights are a preference: the first format that is there.
FILES = {
    "config": [["config.json"]],
    "weights": [
        ["model.safetensors", "model.safetensors.index.json", "model-?????-of-?????.safetensors"],
        ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-?????-of-?????.bin"],
    ],
    "tokenizer": [
        ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
    ],
    "blocks": [[BLOCK_RECORDS_FILE, BLOCK_TITLES_FILE, BLOCK_SOURCES_FILE, MANIFEST_FILE]],
}

# "owner/name". Of the oldest names, which have no owner, those of BERT alone, which has a vocabulary and weights to
# start from: another word is taken for a folder that is not there, which is said at once, without asking the hub.
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*|bert-[\w-]+")


# What transformers' `from_pretrained` takes about the hub, beside `subfolder`: these are passed on to it, and the
# others ask for nothing that is not so here.
_PASSED_ON = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies")
_WITHOUT_EFFECT = (
    "resume_download", "trust_remote_code", "mirror", "user_agent", "code_revision", "commit_hash", "_commit_hash",
    "_from_auto", "_from_pipeline",
)  # fmt: skip


def take_hub_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take from the arguments of a `from_pretrained` those that say where to find the files, for `resolve_folder`.

    They are part of no configuration, and none is ever written to disk: one may be a secret.
    """
    if (token := arguments.pop("use_auth_token", None)) is not None:
        arguments["token"] = token
    for name in _WITHOUT_EFFECT:
        arguments.pop(name, None)
    given = {name: arguments.pop(name, None) for name in (*_PASSED_ON, "subfolder")}
    if not isinstance(given["subfolder"], (str, os.PathLike, type(None))):
        raise TypeError(f"subfolder={given['subfolder']!r} is no path: give the name of a folder in the checkpoint's")
    return {name: value for name, value in given.items() if value is not None}


def resolve_folder(name_or_folder: str | os.PathLike, *parts: str, subfolder: str = "", **options: Any) -> Path:
    """The folder of a checkpoint: an existing one as it is, a hub name as the local copy of what is needed of it.

    Args:
        name_or_folder: a folder, or as a str a hub name, "owner/name" or "bert-…". A folder of that name comes first.
        parts: keys of `FILES` to fetch from the hub; none fetches all.
        subfolder: of the folder or repository, where the files stand.
        options: revision, token, cache_dir and what else `huggingface_hub.snapshot_download` takes.

    Raises:
        FileNotFoundError: no such folder, and it is no hub name, or huggingface_hub is missing, or the download failed.
    """
    folder = find_folder(name_or_folder)
    if folder is not None:
        if (folder / subfolder).is_dir():
            return folder / subfolder
        raise FileNotFoundError(f"there is no folder {subfolder!r} in {folder}: leave subfolder out, or give another")
    from huggingface_hub import snapshot_download

    _refuse_proxies(options)
    wanted = [FILES[part] for part in parts or FILES]

    def fetch(files: list[str]) -> Path:
        patterns = [f"{subfolder}/{file}" if subfolder else file for file in files]
        return Path(snapshot_download(str(name_or_folder), allow_patterns=patterns, **options)) / subfolder

    try:
        found = fetch([file for formats in wanted for file in formats[0]])
        for formats in wanted:
            for files in formats[1:]:
                if not _holds_any(found, formats[0]):
                    found = fetch(files)
    except (OSError, ValueError) as error:  # the library's errors are of these two, offline and unknown names too
        raise_machine_error(error)
        raise FileNotFoundError(
            f"there is no folder {name_or_folder!r}, and it could not be fetched from the hub "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}): "
            "check the name and the network, or give the folder of a checkpoint"
        ) from error
    return found


def located(name: str | os.PathLike | None, options: dict[str, Any], alone: bool) -> Path:
    """A folder of config.json beside model.safetensors or pytorch_model.bin, sharded or not.

    `alone`: nothing of it is read, a configuration and weights were given, and it may have no name.
    """
    if name is None and alone:
        return Path("the state dict")
    return resolve_folder("" if name is None else name, "config", "weights", **options)


def find_folder(name_or_folder: str | os.PathLike) -> Path | None:
    """The existing folder that is meant; None for a hub name, which can be fetched, or not.

    Raises:
        FileNotFoundError: it is neither, or huggingface_hub is missing.
    """
    folder = Path(name_or_folder)
    if folder.is_dir() and str(name_or_folder):  # Path("") is the current folder
        return folder
    if not isinstance(name_or_folder, str) or not _HUB_NAME.fullmatch(name_or_folder):
        what = f"{folder} is a file" if folder.is_file() else f"there is no folder {str(name_or_folder)!r}"
        raise FileNotFoundError(
            f"{what}: give the folder of a checkpoint, "
            'or a hub name such as "google/realm-orqa-nq-openqa" or "bert-base-uncased"'
        )
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise FileNotFoundError(
            f"there is no folder {name_or_folder!r}, and reading it as a hub name needs huggingface_hub: "
            "pip install 'realm-min[hub]', or give the folder of a checkpoint"
        ) from None
    return None


def _refuse_proxies(options: dict[str, Any]) -> None:
    """Newer versions of the hub's library have no such argument."""
    if options.pop("proxies", None):
        raise ValueError("proxies= is not passed on to the hub: set HTTPS_PROXY, which its library reads")


def _holds_any(folder: Path, patterns: list[str]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)
