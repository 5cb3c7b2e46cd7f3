"""Files are complete or absent: each is written under a temporary name and then renamed. A folder has one writer."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .causes import machine_error

# .NAME.RANDOM.tmp; earlier versions had the number of a process in place of what is random.
TEMPORARY = re.compile(r"\..*\.([0-9a-f]{16}|\d+)\.tmp")
_WRITING = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS") if hasattr(errno, name))
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
ROOM = 1 << 16  # bytes: a disk with less is full


@contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    A reader therefore sees the old file or the whole new one, also when the writer is killed half-way; what it then
    leaves, `remove_temporaries` removes. The temporary file is new, no link, and its name random: several threads may
    write one file, and the last one's stays. Permissions are those of the umask, also where a library makes the file
    anew. A link in the place of `path` is replaced, not followed.

    Raises:
        IsADirectoryError, FileExistsError: `path` is a folder, a device or a pipe, or a link to one.
        OSError: the file cannot be written, the disk is full say; it has the name of `path`.
    """
    path = Path(path)
    refuse_irreplaceable(path)
    temporary = path.with_name(f".{_short(path.name)}.{secrets.token_hex(8)}.tmp")
    with naming(path, temporary):
        permissions = _make(temporary)
        try:
            yield temporary
            with open(temporary, "rb+") as file:  # Windows syncs only what is open for writing
                os.fsync(file.fileno())
            os.chmod(temporary, permissions)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def refuse_irreplaceable(path: Path, said: str = "") -> None:
    """Refuse to write a file in the place of a folder, a device or a pipe; `said` comes before its name.

    Raises:
        IsADirectoryError, FileExistsError: as said.
    """
    if not path.name or os.path.isdir(path):
        raise IsADirectoryError(f"{said}{path} is a folder: name a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise FileExistsError(f"{said}{path} is a device or a pipe, which would be replaced: name a file")


@contextmanager
def naming(path: str | os.PathLike, temporary: Path | None = None) -> Iterator[None]:
    """Give the errors of a block that writes the file `path`, so far as `temporary`, its name; as `write_atomically`.

    They may be of something else that the block does: only what keeps a file from being written is given a name.
    """
    try:
        yield
    except Exception as error:
        told = _of_writing(error, Path(path), temporary)
        if told is error:
            raise
        raise told from None


def _short(name: str) -> str:
    """The start of a file's name; names have 255 bytes at most, and this is to be a part of one."""
    return name if len(os.fsencode(name)) <= 200 else os.fsencode(name)[:200].decode("utf-8", "ignore")


def _make(path: Path) -> int:
    """Make an empty file, which nobody else has and no link is; returns its permissions, as the umask has them."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)


def _of_writing(error: Exception, path: Path, temporary: Path | None) -> Exception:
    """`error` with the name of the file that is written, if it says that it cannot be; else as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        if error.filename is None and error.errno in _WRITING:
            error.filename = str(path)
        elif temporary is not None and str(error.filename) == str(temporary):
            return OSError(error.errno, error.strerror, str(path))
        return error
    if isinstance(error, (ValueError, MemoryError)):
        return error
    found = machine_error(error, path)
    if isinstance(found, OSError) and found.errno in _WRITING:
        return found
    # NumPy counts bytes, torch names a line of its own: neither tells why.
    with suppress(OSError):
        if isinstance(error, (OSError, RuntimeError)) and shutil.disk_usage(path.parent).free < ROOM:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return error


def remove_temporaries(path: str | os.PathLike) -> None:
    """Remove what killed writers of the file `path`, or of files in the folder `path`, have left.

    Nobody may be writing it, and the folder that it is in is there.
    """
    path = Path(path)
    folder, start = (path, ".") if path.is_dir() else (path.parent, f".{_short(path.name)}.")
    for left in folder.iterdir():
        if left.name.startswith(start) and TEMPORARY.fullmatch(left.name):
            left.unlink(missing_ok=True)


@contextmanager
def only_writer(path: str | os.PathLike, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Be the one job that writes `path`, which need not exist yet, until the block ends or this process dies.

    The lock is the kernel's, on PATH.lock beside it, so that a killed job leaves none behind. PATH.owner says who has
    it, since Windows lets nobody read a locked file. Where nothing can be written around a folder, as around a mount
    point, the two are in it. By whichever links it is named, it is one path.

    Where the file system has no locks, a warning says so, and the block is entered all the same.

    Args:
        waiting: where another job writes it, wait for that job, after a call with its name; None raises.

    Raises:
        FileExistsError: another job writes it; the message names its process.
        OSError: neither the folder around it can be written nor, if it is a folder, itself.
    """
    shown, path = Path(path), os.path.realpath(path)
    with ExitStack() as held:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            held.enter_context(_locked(path, shown, waiting))
        except OSError as error:
            if isinstance(error, FileExistsError) or not os.path.isdir(path):
                raise
            held.enter_context(_locked(os.path.join(path, ""), shown, waiting))
        yield


@contextmanager
def _locked(start: str, shown: Path, waiting: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock START.lock; the block is not entered before."""
    from filelock import FileLock, Timeout  # here: it costs a hundredth of a second, and most commands lock nothing

    lock_file, owner_file = Path(f"{start}.lock"), Path(f"{start}.owner")
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
            raise FileExistsError(f"{shown} is being written by {owner}: wait for it, or name another folder") from None
        waiting(owner)
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(f"{lock_file} cannot be locked ({error}): see that no other job writes {shown}", stacklevel=4)
        yield
        return
    try:
        # By a rename, which follows no link that somebody laid. On a full disk the lock alone must do.
        with suppress(OSError), write_atomically(owner_file) as temporary:
            temporary.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        with suppress(OSError):  # Windows removes no file that is open: filelock does so afterwards
            lock_file.unlink()
        lock.release()
