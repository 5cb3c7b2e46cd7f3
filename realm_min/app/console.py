"""What a command says while it works: progress bars and remarks, on rank 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..jobs.embedding import Report
    from ..text.documents import Skip

NAMED = 20  # of what is skipped for one reason


@contextmanager
def progress_report() -> Iterator[Report]:
    """A progress bar for each stage of the work, on rank 0."""
    from ..ranks.distributed import world

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
            bar.update(tasks[stage], completed=done, description=f"{stage} {note}".rstrip())

        yield report


@contextmanager
def skipped_named() -> Iterator[Skip]:
    """A function to call as skip(why, which) for what is left out; at the end a line for each reason, on rank 0."""
    from ..ranks.distributed import world

    found: dict[str, list[str]] = {}
    try:
        yield lambda why, which: found.setdefault(why, []).append(which)
    finally:
        for why, names in found.items() if world().is_first else ():
            more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
            remark(f"Skipped {len(names):,}: {why}: {', '.join(names[:NAMED])}{more}")


def progress_bar() -> Progress:
    """A bar with counts and times on the standard error, on rank 0."""
    from rich import progress
    from rich.console import Console

    from ..ranks.distributed import world

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn(),
    )  # fmt: skip
    return progress.Progress(*columns, console=Console(stderr=True), disable=not world().is_first)


def remark(text: str) -> None:
    print(text, file=sys.stderr)
