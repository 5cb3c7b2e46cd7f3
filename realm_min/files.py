"""Files are complete or absent: each is written under a temporary name and then renamed. A folder has one writer."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    A reader therefore sees the old file or the whole new one, also when the writer is killed half-way.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def only_writer(folder: str | os.PathLike) -> Iterator[None]:
    """Be the one job that writes `folder`, which need not exist yet, until the block ends or this process dies.

    The lock is the kernel's, on FOLDER.lock beside it, so that a killed job leaves none behind.

    Raises:
        FileExistsError: another job writes it; the message names its process.
    """
    folder = Path(folder)
    path = folder.with_name(folder.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another job"
            file.close()
            raise FileExistsError(
                f"{folder} is being written by {owner}: wait for it, or name another folder"
            ) from None
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()  # its owner has just removed it: take a new one
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def refuse_existing(folder: Path) -> None:
    """FileExistsError if a folder that is to be made is there already, unless it is empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: remove it or name another folder")
