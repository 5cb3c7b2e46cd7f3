"""Names that nothing reads, in a call or in what a file is overridden with: said, never passed over."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])


def warn_of_unknown(names: Iterable[str], known: Collection[str], where: str) -> None:
    """A UserWarning for each name that is not known, at the line of the program that gave it.

    Args:
        names: as given, misspelt perhaps.
        known: all that are read or kept with good reason; the nearest of them is named.
        where: what they were given to, as the program calls it: "RealmConfig".
    """
    for name in names:
        if name not in known:
            message = f"{where} has no {name!r}, which has no effect{did_you_mean(name, known)}"
            warnings.warn(message, stacklevel=level_of_the_program())


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of a message about a name that is not known: the nearest that is, if one is near."""
    nearest = get_close_matches(name, known, 1)
    return f": did you mean {nearest[0]!r}?" if nearest else ""


def level_of_the_program() -> int:
    """The `stacklevel`, for a `warnings.warn` of this function's caller, of the nearest line outside the package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
