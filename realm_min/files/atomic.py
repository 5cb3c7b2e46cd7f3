"""Files are complete or absent: each is written under a temporary name and then renamed. A folder has one writer."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    A reader therefore sees the old file or the whole new one, also when the writer is killed half-way; what it then
    leaves, `remove_temporaries` removes.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:  # Windows syncs only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(path: str | os.PathLike) -> None:
    """Remove what killed writers of `path` have left; nobody may be writing it."""
    path = Path(path)
    for left in path.parent.iterdir():
        if left.name.startswith(f".{path.name}.") and left.name.endswith(".tmp"):
            left.unlink(missing_ok=True)


@contextmanager
def only_writer(path: str | os.PathLike, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Be the one job that writes `path`, which need not exist yet, until the block ends or this process dies.

    The lock is the kernel's, on PATH.lock beside it, so that a killed job leaves none behind. PATH.owner says who has
    it, since Windows lets nobody read a locked file.

    Args:
        waiting: where another job writes it, wait for that job, after a call with its name; None raises.

    Raises:
        FileExistsError: another job writes it; the message names its process.
        OSError: the folder around it cannot be written.
    """
    from filelock import FileLock, Timeout  # here: it costs a hundredth of a second, and most commands lock nothing

    path = Path(path)
    lock_file, owner_file = (path.with_name(path.name + ending) for ending in (".lock", ".owner"))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            owner = owner_file.read_text(encoding="utf-8").strip()
        except OSError:  # it has not said yet, or has just finished
            owner = ""
        owner = owner or "another job"
        if waiting is None:
            raise FileExistsError(f"{path} is being written by {owner}: wait for it, or name another folder") from None
        waiting(owner)
        lock.acquire()
    try:
        owner_file.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        with suppress(OSError):  # Windows removes no file that is open: filelock does so afterwards
            lock_file.unlink()
        lock.release()


def refuse_existing(folder: Path) -> None:
    """FileExistsError if a folder that is to be made is there already, unless it is empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: remove it or name another folder")
