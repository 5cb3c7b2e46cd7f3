r"""What a terminal is sent: the text of others is only text there, its control characters are shown as escapes.

Documents, titles, questions, paths, names of tensors come from anybody. Sent to a terminal as they are, an escape
sequence rewrites the screen or the window's title, a bidirectional override lets a line read as another, and a tag is
seen by nobody. Here ESC is shown as \x1b. What is written to files stays as it is.

Nothing else in this package prints: every line goes through `say`, `remark`, `say_json` and `read_line`, or through
`console.py`, which has the same for tables and progress bars.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

# Tags and variation selectors: nothing of them is seen, whatever their category.
_UNSEEN = re.compile("[\U000e0000-\U000e0fff]")


def printable(text: str, keep: str = "") -> str:
    r"""`text` with each character that is not shown as what it is in the place of an escape, "\x1b" say.

    These are Unicode's "other" ones (control, format, surrogate, private, unassigned: Cc, Cf, Cs, Co, Cn), the
    separators of lines and paragraphs, and the tags. All spaces stay.

    Args:
        keep: characters to leave as they are: line ends, where the layout has several lines.
    """
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(c if c in keep or _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(character: str) -> bool:
    if _UNSEEN.match(character):
        return False
    return character.isprintable() or unicodedata.category(character) == "Zs"


def say(text: str = "") -> None:
    """A line on the standard output."""
    print(printable(text), file=standard_output(), flush=True)


def standard_output() -> TextIO:
    """Where results are said; ValueError if it is closed."""
    if sys.stdout is None:
        raise ValueError("the standard output is closed, and results go there: lead it to a file, or to /dev/null")
    return sys.stdout


def remark(text: str = "") -> None:
    """A line on the standard error."""
    print(printable(text), file=StandardError(), flush=True)


def escape_what_is_lacked() -> None:
    """Let characters that the output's encoding lacks be shown as escapes, as they are on the standard error."""
    # UTF-8 lacks none; and an output that was exchanged beneath a running Python cannot be changed any more.
    if isinstance(sys.stdout, io.TextIOWrapper) and codecs.lookup(sys.stdout.encoding).name != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")


class StandardError:
    """The standard error as a file for remarks: what cannot be written there is lost, and costs no result."""

    def __init__(self) -> None:
        self._file = sys.stderr or io.StringIO()  # it may be closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._file.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._file.flush()


def say_json(value: Any, indent: int | None = None) -> None:
    """A value as JSON on the standard output, in one line or indented; what `printable` escapes, JSON's escapes say.

    A number that is none is null: JSON has no NaN and no Infinity. Where the output's encoding lacks a character, they
    are all said in ASCII.
    """
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8", "surrogatepass")
    except UnicodeEncodeError:
        text = json.dumps(_finite(value), allow_nan=False, indent=indent)
    print(
        "".join(c if c == "\n" or _is_shown(c) else json.dumps(c)[1:-1] for c in text),
        file=standard_output(),
        flush=True,
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_line(prompt: str) -> str:
    """A line that is typed, without the spaces around it; "" at the end of the input. Ctrl-C begins it anew.

    On a terminal it can be edited and earlier lines come back, where Python has readline. The prompt is no result: if
    those go to a file, it is shown on the standard error.
    """
    on_a_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if on_a_terminal:
        with suppress(ImportError):  # on Windows
            import readline  # noqa: F401  which input() then uses
    while True:
        try:
            if on_a_terminal:
                return input(printable(prompt)).strip()
            print(printable(prompt), end="", file=StandardError(), flush=True)
            return sys.stdin.readline().strip()
        except EOFError:
            say()
            return ""
        except KeyboardInterrupt:
            remark()


@contextmanager
def warnings_remarked() -> Iterator[None]:
    """Let Python's warnings be `remark`s until the block ends."""

    def show(message: Any, category: Any, filename: Any, lineno: Any, file: Any = None, line: Any = None) -> None:
        for shown in warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n").split("\n"):
            remark(shown)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
