"""How far something is, shown while it goes on: in a notebook, in a terminal, or as lines."""

from __future__ import annotations

import contextlib
import html
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, TypeAlias

__all__ = ["Update", "shown_progress"]

# Is called with what is done, and with how much there is.
Update: TypeAlias = Callable[[int, int], None]


@contextlib.contextmanager
def shown_progress(what: str, stream: TextIO | None = None) -> Iterator[Update]:
    """Show how far something is.

    :param what: a word or two
    :param stream: where to, outside of a notebook; the standard error unless given
    :return: is called with what is done, and with how much there is; the total may be 0 at first
    """
    stream = stream or sys.stderr
    if _is_notebook():
        yield _NotebookBar(what).update
    elif stream.isatty():
        with _terminal_bar(what, stream) as update:
            yield update
    else:
        yield _Lines(what, stream).update


def _is_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    # The kernel of a notebook, and not IPython in a terminal.
    return hasattr(get_ipython(), "kernel")


@contextlib.contextmanager
def _terminal_bar(what: str, stream: TextIO) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(file=stream)
    with Progress(*columns, console=console, speed_estimate_period=300) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


class _Lines:
    """A line for each percent."""

    def __init__(self, what: str, stream: TextIO) -> None:
        self._what, self._stream = what, stream
        self._told: int | None = None

    def update(self, done: int, total: int) -> None:
        percent = 100 * done // total if total else 0
        if percent != self._told:
            self._told = percent
            line = f"{self._what}: {done:,} of {total:,}, {percent} %"
            print(line, file=self._stream, flush=True)


class _NotebookBar:
    """A bar that the browser draws, and that is drawn anew in its place."""

    def __init__(self, what: str) -> None:
        self._what, self._begun = what, time.monotonic()
        self._handle: Any = None
        # What was done when this began: the time left depends on what came after.
        self._first: int | None = None

    def update(self, done: int, total: int) -> None:
        from IPython.display import HTML, display

        drawn: Any = HTML(self._drawn(done, total))
        if self._handle is None:
            self._handle = display(drawn, display_id=True)
        else:
            self._handle.update(drawn)

    def _drawn(self, done: int, total: int) -> str:
        if self._first is None:
            self._first = done
        known = f' value="{done}" max="{total}"' if total else ""
        return (
            f"<div>{html.escape(self._what)} <progress{known}></progress> "
            f"{done:,} of {total:,}{self._time_left(done, total)}</div>"
        )

    def _time_left(self, done: int, total: int) -> str:
        gone, since = time.monotonic() - self._begun, done - (self._first or 0)
        if done >= total or since <= 0:
            return ""
        seconds = round(gone * (total - done) / since)
        return f", about {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"
