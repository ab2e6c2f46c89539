"""What failed records have printed, in the log of the task that reads their results.

Law: bounded, whatever a service prints; and each line stands behind a mark, so that no text of a service
looks like a line of the log, or like one of the marks that fold it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.protocol.failures import SHOWN_FAILURES

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.results import RecordBlock

__all__ = ["ConsoleLog"]

_MOST_CHARACTERS, _MOST_LINES = 2000, 40


class ConsoleLog:
    """Logs the console output of the first failed records that have printed something.

    :param log: of the task
    :param first_row: row of the input that the first record is
    """

    def __init__(self, log: Any, first_row: int = 0) -> None:
        self._log, self._first_row = log, first_row
        self._shown: set[int] = set()
        self._is_full = False

    def beside(self, take: Callable[[RecordBlock], None]) -> Callable[[RecordBlock], None]:
        """A function that looks at each block before it is taken."""

        def look_and_take(block: RecordBlock) -> None:
            self.look(block)
            take(block)

        return look_and_take

    def look(self, block: RecordBlock) -> None:
        """Look at the next results. They may also be read from their beginning again."""
        if self._is_full or all(block.success):
            return
        for place, is_success in enumerate(block.success):
            text = block.console_output[place]
            index = block.first_index + place
            if not is_success and text.strip() and index not in self._shown:
                if len(self._shown) == SHOWN_FAILURES:
                    self._is_full = True
                    self._log.info(
                        "more failed records have printed something; console_column writes the console "
                        "output of all records into the results"
                    )
                    return
                self._shown.add(index)
                shown = _marked(text)
                self._log.warning(
                    "record %s failed and has printed:\n%s", self._first_row + index, shown
                )


def _marked(text: str) -> str:
    lines = text[:_MOST_CHARACTERS].rstrip().splitlines()
    shown = ["".join(map(_visible, line)) for line in lines[:_MOST_LINES]]
    if len(text) > _MOST_CHARACTERS or len(lines) > _MOST_LINES:
        shown.append(f"… ({len(text):,} characters)")
    return "\n".join(f"  | {line}" for line in shown)


def _visible(letter: str) -> str:
    return letter if letter.isprintable() or letter == "\t" else "�"
