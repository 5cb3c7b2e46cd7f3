"""What a command shows on a terminal beside plain lines: text in colours, tables, progress bars.

They are rich's, but what rich is given is only text: it looks for no markup and no emoji in it, and control characters
are shown as escapes (`printable.py`). Other files take `Console`, `Text` and `Progress` from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import rich.console
import rich.text
from rich import progress
from rich.progress import Progress
from rich.segment import Segment

from ..ranks.distributed import world
from .printable import StandardError, printable, remark, standard_output

if TYPE_CHECKING:
    from ..jobs.embedding import Report
    from ..text.documents import Skip

NAMED = 20  # of what is skipped for one reason
LAYOUT = "\n\t"


class Text(rich.text.Text):
    """rich's text in colours, of characters that may be shown; lines and tabs stay."""

    def __init__(self, text: str = "", *rest: Any, **given: Any) -> None:
        super().__init__(printable(text, LAYOUT), *rest, **given)

    def append(self, text: Any, *rest: Any, **given: Any) -> Text:
        super().append(printable(text, LAYOUT) if isinstance(text, str) else text, *rest, **given)
        return self

    @classmethod
    def assemble(cls, *parts: Any, **given: Any) -> Text:
        whole = cls(**given)
        for part in parts:  # a text, or a text and its style
            whole.append(*part) if isinstance(part, tuple) else whole.append(part)
        return whole


class Console(rich.console.Console):
    """rich's console, for which a string is only text; the standard error may fail it."""

    def __init__(self, stderr: bool = False, **given: Any) -> None:
        given["file"] = given.get("file") or (StandardError() if stderr else standard_output())
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **given})
        if self.width < 1:  # COLUMNS=0, for which nothing at all is shown
            self.width = get_terminal_size().columns

    def render_str(self, text: str, **given: Any) -> rich.text.Text:
        return super().render_str(printable(text, LAYOUT), **given)

    def on_broken_pipe(self) -> None:
        """The reader of the output has seen enough: whoever runs the program ends it, rich would as a failure."""
        raise BrokenPipeError

    def render(self, *given: Any, **named: Any) -> Iterable[Segment]:
        for segment in super().render(*given, **named):
            # Whatever rich was given: its own sequences are of another kind, and none is in a text.
            yield segment if segment.control else segment._replace(text=printable(segment.text, LAYOUT))


@contextmanager
def progress_report() -> Iterator[Report]:
    """A progress bar for each stage of the work, on rank 0."""
    if not world().is_first:
        yield lambda stage, done, total, note="": None
        return
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int | None, note: str = "") -> None:
            if stage not in tasks:
                for task in bar.tasks:  # the stages before are complete
                    bar.update(task.id, total=task.completed)
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, description=printable(f"{stage} {note}".rstrip()))

        yield report


@contextmanager
def skipped_named() -> Iterator[Skip]:
    """A function to call as skip(why, which) for what is left out; at the end a line for each reason, on rank 0."""
    found: dict[str, list[str]] = {}
    try:
        yield lambda why, which: found.setdefault(why, []).append(which)
    finally:
        for why, names in found.items() if world().is_first else ():
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            remark(f"Skipped {len(names):,}: {why}: {', '.join(names[:NAMED])}{more}")


def progress_bar(console: Console | None = None, **given: Any) -> Progress:
    """A bar with counts and times, on rank 0; on the standard error, if no console is given."""
    columns = (
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
    )  # fmt: skip
    console = console or Console(stderr=True)
    return Progress(*columns, console=console, disable=not world().is_first, **given)


@contextmanager
def doing(name: str) -> Iterator[Callable[[str], None]]:
    """A function that says what `name` is doing, on the standard error, until the block ends."""
    with Console(stderr=True).status(Text(name)) as status:
        yield lambda what: status.update(Text(printable(f"{name}: {what}")))
