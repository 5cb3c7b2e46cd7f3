"""What every plot needs: the text of others drawn as it is, and a file that is complete or absent."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from ..files.atomic import write_atomically
from .printable import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawable(text: str) -> str:
    """`text` in one line, its control characters as escapes, and its dollars no signs of mathematics."""
    return printable(text).replace("$", r"\$")


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int) -> None:
    """Write a figure as a PNG."""
    with write_atomically(path) as temporary, warnings.catch_warnings():
        # A character that matplotlib's own font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(temporary, format="png", dpi=dpi)
