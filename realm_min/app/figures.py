"""What every plot needs: the text of others drawn as it is, letters that a whole room can read, and a file that is
complete or absent; in a notebook, words for who cannot see the picture.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..files.atomic import write_atomically
from .printable import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI, POINTS = 144, 11  # of every figure: dots an inch, and the size of the smallest letters


def drawable(text: str) -> str:
    """`text` in one line, its control characters as escapes, and its dollars no signs of mathematics."""
    return printable(text).replace("$", r"\$")


@contextmanager
def large_letters() -> Iterator[None]:
    """Figures that are made within have letters of `POINTS` at least.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    with matplotlib.rc_context(letters()):
        yield


def letters() -> Any:
    """Matplotlib's settings of the sizes of letters."""
    parts = ("font.", "axes.title", "axes.label", "legend.font", "xtick.label", "ytick.label")
    return {f"{part}size": POINTS for part in parts}


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as a PNG."""
    with write_atomically(path) as temporary, warnings.catch_warnings():
        # A character that matplotlib's own font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="png", dpi=DPI)


def for_a_room() -> None:
    """Have Matplotlib draw a notebook's figures large enough for a classroom's wall."""
    import matplotlib

    settings: Any = {"figure.dpi": DPI, "figure.constrained_layout.use": True, "legend.frameon": False}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, **letters()}
    matplotlib.rcParams.update(settings)


def show(figure: Figure, alternative: str) -> None:
    """Display a figure in a notebook, with a text that says what it shows to those who cannot see it."""
    from IPython.display import display
    from matplotlib import pyplot

    display(figure, metadata={"image/png": {"alt": alternative}})
    pyplot.close(figure)
