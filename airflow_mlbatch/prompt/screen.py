"""What a command writes: tables for people, JSON for programs, messages beside both.

Law: one place prints. A name, an error or an output from a server may hold anything, so every text
loses its control characters here.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.prompt.exits import Exit, exit_of

if TYPE_CHECKING:
    import argparse

__all__ = ["Screen", "carry_out", "printable"]

# So wide that a table in a pipe is never folded.
_PIPE_WIDTH = 100_000


def carry_out(options: argparse.Namespace, work: Callable[[Screen], int]) -> int:
    """Run the work of a command, and say in one line what went wrong.

    :param options: those of the command; ``command`` is its name
    :param work: returns the exit code
    """
    out = sys.stdout
    try:
        # Airflow, and what it loads, may log to the standard output.
        with contextlib.redirect_stdout(sys.stderr):
            code = work(Screen(out, sys.stderr, getattr(options, "json", False)))
            out.flush()
            return code
    except KeyboardInterrupt:
        _complain(options, "interrupted")
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Who reads has seen enough. What is left in the buffer would fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return Exit.BROKEN_PIPE
    except MLBatchError as error:
        _complain(options, str(error))
        return exit_of(error)
    except OSError as error:
        # A file that cannot be written.
        _complain(options, f"{type(error).__name__}: {error}")
        return Exit.ERROR


def _complain(options: argparse.Namespace, message: str) -> None:
    print(f"mlbatch {options.command}: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """A text on one line that moves no cursor and changes no colour."""
    text = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "�" for letter in text)


class Screen:
    """The two streams of a command.

    :param out: for data
    :param err: for messages
    :param is_json: whether data is for programs
    """

    def __init__(self, out: TextIO, err: TextIO, is_json: bool) -> None:
        self.out, self.err, self.is_json = out, err, is_json
        if hasattr(out, "reconfigure"):
            # A letter that this terminal does not have ends no command.
            out.reconfigure(errors="backslashreplace")

    def tell(self, message: str) -> None:
        """Say something that is not data."""
        print(printable(message), file=self.err, flush=True)

    def write(self, line: str) -> None:
        """A line of data."""
        print(printable(line), file=self.out)

    def show_json(self, document: Any) -> None:
        """One JSON document on one line."""
        # In ASCII, so that it is right in every encoding.
        print(json.dumps(document), file=self.out)

    def show(self, rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> None:
        """Some rows: all that they hold as JSON, or a table.

        :param titles: the heading for each key that the table shows
        """
        if self.is_json:
            self.show_json(list(rows))
            return
        cells = [[_cell(row.get(key)) for key in titles] for row in rows]
        are_numbers = [
            any(isinstance(row.get(key), int | float) for row in rows) and key != "success"
            for key in titles
        ]
        if self.out.isatty():
            self._draw(cells, list(titles.values()), are_numbers)
        else:
            self._print_columns(cells, list(titles.values()), are_numbers)

    def _draw(
        self, cells: Sequence[Sequence[str]], titles: Sequence[str], are_numbers: Sequence[bool]
    ) -> None:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for title, is_number in zip(titles, are_numbers, strict=True):
            table.add_column(Text(title), justify="right" if is_number else "left", overflow="fold")
        for row in cells:
            # As texts: a name with brackets is no markup.
            table.add_row(*map(Text, row))
        Console(file=self.out, highlight=False).print(table)

    def _print_columns(
        self, cells: Sequence[Sequence[str]], titles: Sequence[str], are_numbers: Sequence[bool]
    ) -> None:
        lines = [[title.upper() for title in titles], *cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            padded = [
                text.rjust(width) if is_number else text.ljust(width)
                for text, width, is_number in zip(line, widths, are_numbers, strict=True)
            ]
            print("  ".join(padded).rstrip(), file=self.out)

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show how far something is, on the standard error.

        :return: is called with what is done, and with how much there is
        """
        from airflow_mlbatch.hooks.progress import shown_progress

        with shown_progress(what, self.err) as update:
            yield update


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, str):
        return printable(value)
    return printable(json.dumps(value, ensure_ascii=False))
