"""What the machine lacks is called by its name: no memory, no room, no permission is not a damaged file.

Libraries hide such failures in errors of their own: torch raises RuntimeError where memory is out, safetensors says "No
such file" of one that may not be read, NumPy counts the bytes that it could not write. Whoever would say of a library's
error that a file is damaged asks here first, since who reads that removes a good file.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from .lfs import refuse_pointer

_NAMES = (
    "ENOMEM", "EACCES", "EPERM", "ENOSPC", "EDQUOT", "EFBIG", "EMFILE", "ENFILE", "EISDIR", "ENOTDIR", "EROFS",
    "ENAMETOOLONG", "ELOOP", "EIO", "EBUSY", "EXDEV", "ETXTBSY", "ESTALE",
)  # fmt: skip
MACHINE = tuple(getattr(errno, name) for name in _NAMES if hasattr(errno, name))
_TEXTS = {os.strerror(number): number for number in MACHINE}
_TEXT = re.compile("|".join(map(re.escape, _TEXTS)))
# As NumPy, torch (on CPUs, on GPUs), C++, zlib and the loader of shared libraries say that memory is out.
_NO_MEMORY = re.compile(
    r"Unable to allocate|DefaultCPUAllocator|out of memory|bad_alloc|bad allocation|Error -4 while"
    r"|failed to map segment|cannot allocate memory"
)
_TOLD = "out of memory"  # as such an error begins that has been here already
# Errors of Python's own parsers speak of a file's content, and may quote it.
_OF_CONTENT = (ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError)


def machine_error(error: BaseException, path: str | os.PathLike | None = None) -> OSError | MemoryError | None:
    """The failure of the machine that `error` stands for, under its own name and with the file's; None for any other.

    Args:
        path: what was read or written, where it is known.
    """
    number = _number(error)
    if number is None:
        return None
    if isinstance(error, MemoryError) and str(error).startswith(_TOLD):
        return error
    if number == errno.ENOMEM:
        where = "" if path is None else f" at {path}"
        return MemoryError(f"{_TOLD}{where}: no file is at fault; free memory, or allow this process more of it")
    if isinstance(error, OSError) and error.errno and (error.filename or path is None):
        return error
    return OSError(number, os.strerror(number), None if path is None else str(path))


def raise_machine_error(error: BaseException, path: str | os.PathLike | None = None) -> None:
    """Raise the failure of the machine that `error` stands for; return if it stands for none.

    Raises:
        MemoryError: memory is out.
        OSError: permission, room, open files and such are; the message names it and the file.
    """
    found = machine_error(error, path)
    if found is not None:
        raise found from None


def check_readable(path: str | os.PathLike, missing: str | None = None) -> None:
    """Open a file for reading, and close it: libraries do not say why they cannot.

    Args:
        missing: what to say where there is none; None: as the system says it.

    Raises:
        FileNotFoundError: there is no such file, but maybe a folder or a device in its place.
        OSError: it cannot be opened; the error says why.
        ValueError: it is a pointer of Git LFS.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            refuse_pointer(path)
            return
    except (FileNotFoundError, NotADirectoryError):
        if missing is None:
            raise
        raise FileNotFoundError(missing) from None
    # Windows says of a folder that permission is denied, and to open a pipe is to wait.
    kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
    raise FileNotFoundError(f"{os.fspath(path)} is {kind}, where a file is to be read")


@contextmanager
def causes_named(path: str | os.PathLike) -> Iterator[None]:
    """Let the machine's failures in a block that reads a file have their own names, and the file's."""
    try:
        yield
    except Exception as error:
        raise_machine_error(error, path)
        raise


def _number(error: BaseException) -> int | None:
    """The errno that an error stands for, among those of `MACHINE`."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in MACHINE else None
    if isinstance(error, _OF_CONTENT):
        return None
    if found := _TEXT.search(str(error)):
        return _TEXTS[found[0]]
    return errno.ENOMEM if _NO_MEMORY.search(str(error)) else None
