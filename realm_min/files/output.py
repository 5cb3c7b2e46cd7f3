"""Where a command's results go: refused before the work begins, not after it.

A folder that is still to be made is worked for in FOLDER.partial, and then renamed. One that is there, empty, may be a
mount point, onto which nothing can be renamed: work goes on in FOLDER/.partial, and the files are moved one by one.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from .atomic import TEMPORARY, refuse_irreplaceable, remove_temporaries

PARTIAL = ".partial"
READY = "ready"  # within the folder of the work: what is complete, and about to be moved
MAY_HOLD = {PARTIAL, ".lock", ".owner", "lost+found"}  # what is empty all the same, such as a new file system's root


def check_folder(folder: str | os.PathLike) -> None:
    """Refuse a folder that cannot be made, or cannot be written: something is written there, and removed.

    Raises:
        FileExistsError: it is a file.
        FileNotFoundError: it is a link to nothing.
        OSError: it, or the folder that it is to be made in, cannot be written; the error names that, and says why.
    """
    folder = Path(folder)
    if folder.is_symlink() and not folder.exists():
        raise FileNotFoundError(
            f"{folder} is a link to {os.readlink(folder)}, which is not there: make that, or name another folder"
        )
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file: name a folder")
    _try_to_write(_nearest(folder))


def check_file(option: str, path: Path) -> None:
    """Refuse a file that has no folder to be written to, or is a folder or a device itself.

    Raises:
        FileNotFoundError, IsADirectoryError, FileExistsError: as said; the message names the option.
        OSError: nothing can be written there; the error says why.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}; make it, or name another file")
    refuse_irreplaceable(path, f"{option} ")
    _try_to_write(path.parent.absolute())


def check_apart(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse a file to be written that is an input or another output, by whichever names, or lies in an input's folder.

    Both are by what they are called; None is not there.

    Raises:
        ValueError: as said.
    """
    known = {name: path for name, path in inputs.items() if path}
    for name, path in outputs.items():
        if path is None:
            continue
        places = {os.path.realpath(path), os.path.join(os.path.realpath(path.parent), path.name)}  # a link is replaced
        for other, taken in known.items():
            real = os.path.realpath(taken)
            if real in places or (path.exists() and taken.exists() and path.samefile(taken)):
                raise ValueError(f"{name} {path} is {other} {taken} too: name another file")
            if any(Path(real) in Path(place).parents for place in places):
                raise ValueError(f"{name} {path} lies in {other} {taken}: name a file elsewhere")
        known[name] = path


def check_outside(folder: Path, inputs: Mapping[str, str | os.PathLike | None]) -> None:
    """Refuse an --out that is, holds or lies in a folder which is read; `inputs` are by what they are called.

    Raises:
        ValueError: as said.
    """
    out = Path(os.path.realpath(folder))
    for name, path in inputs.items():
        if path is None or not os.path.isdir(path):
            continue
        real = Path(os.path.realpath(path))
        if real == out or real in out.parents or out in real.parents:
            how = "is" if real == out else "lies in" if real in out.parents else "holds"
            raise ValueError(f"--out {folder} {how} {name} {path}, which is read: name another folder")


def check_room(folder: str | os.PathLike, size: int) -> None:
    """Refuse a disk that has no room for what is to be written to `folder`, `size` bytes at the least.

    Raises:
        OSError: ENOSPC, with the folder's name and both sizes.
    """
    free = shutil.disk_usage(_nearest(Path(folder))).free
    if free < size:
        why = f"{os.strerror(errno.ENOSPC)}: {size:,} bytes are to be written, and {free:,} are free"
        raise OSError(errno.ENOSPC, why, str(folder))


def refuse_existing(folder: str | os.PathLike) -> None:
    """FileExistsError if a folder to be filled holds something already, but what an unfinished job has left there."""
    folder = Path(folder)
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_dir():
        if not held_in(folder) or (folder / PARTIAL / READY).is_dir():  # it was moving them
            return
    raise FileExistsError(f"{folder} exists already: name another folder, or remove it if nothing in it is needed")


def held_in(folder: Path) -> list[str]:
    """The names of what a folder holds, in order, but for what is in an empty one all the same."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name not in MAY_HOLD and not TEMPORARY.fullmatch(name)]


def is_empty(folder: Path) -> bool:
    """Whether it is a folder that holds nothing but what a killed writer has left, which is removed."""
    if not folder.is_dir():
        return False
    remove_temporaries(folder)
    return not any(folder.iterdir())


def workplace(folder: Path) -> Path:
    """Where to work for `folder`: beside it, or within it if it is there."""
    return folder / PARTIAL if folder.is_dir() else partial_of(folder)


def partial_of(folder: str | os.PathLike) -> Path:
    """FOLDER.partial, beside the folder that is meant: by its own name, whatever link or dots it is called by.

    Raises:
        ValueError: it is the root, which nothing stands beside.
    """
    folder = Path(os.path.realpath(folder))
    if not folder.name:
        raise ValueError(f"{folder} is no folder to write, since nothing can stand beside it: name one in it")
    return folder.with_name(folder.name + PARTIAL)


def put_in_place(ready: Path, folder: Path, last: Sequence[str] = ()) -> None:
    """Make the folder `ready` be `folder`; where that is there, by moving each file, `last` as the last."""
    if not folder.is_dir():
        os.replace(ready, folder)
        return
    order = {name: place for place, name in enumerate(last)}
    for path in sorted(ready.iterdir(), key=lambda path: order.get(path.name, -1)):
        os.replace(path, folder / path.name)
    ready.rmdir()


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest around it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _try_to_write(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # of no name, where the system has such
            file.write(bytes(4096))  # a full disk takes empty files
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
