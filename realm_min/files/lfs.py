"""Git LFS: what a clone holds in place of large files until `git lfs pull` fetches them."""

from __future__ import annotations

import os

_BEGINNING = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: str | os.PathLike) -> None:
    """ValueError if a file is the pointer to another, which is small text and would be taken for a damaged one."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_BEGINNING))
    except OSError as error:  # one that comes as a file is read has no name of its own
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    if start == _BEGINNING:
        raise ValueError(
            f"{path} is a pointer of Git LFS, not the file itself: run git lfs pull in the clone that it stands in"
        )
