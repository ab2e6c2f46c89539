"""How many records of a batch failed, and the first of them, without reading their outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from airflow_mlbatch.protocol.results import NO_MESSAGE, BatchStatus, ResultsSink

__all__ = ["SHOWN_FAILURES", "FailureCount", "FailureCountSink", "FailureLimit", "cut_message"]

# How many failed records an error, a log or an XCom names.
SHOWN_FAILURES = 5
_SHOWN_MESSAGE = 300
# Partial results come as one document from their start, so each look costs as much as all before it.
# With this factor between two looks all of them together read at most three times the results.
_NEXT_LOOK = 1.5


def cut_message(text: str) -> str:
    """The beginning of a record's error, for a log or an XCom."""
    return text if len(text) <= _SHOWN_MESSAGE else text[:_SHOWN_MESSAGE] + "…"


@dataclass
class FailureCount:
    """What results tell about failures.

    :param seen: how many results were read
    :param failed: how many of them are failures
    :param explained: how many of the failures have a message
    :param first: the first failures, each its place among the results that were read, and its error
    :param first_explained: errors of the first failures that have a message
    :param status: that came with the results
    """

    seen: int = 0
    failed: int = 0
    explained: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)
    first_explained: list[str] = field(default_factory=list)
    status: BatchStatus | None = None

    def add(self, index: int, error: str | None) -> None:
        """Count a failure."""
        self.failed += 1
        self.explained += bool(error)
        if len(self.first) < SHOWN_FAILURES:
            self.first.append((index, cut_message(error or NO_MESSAGE)))
        if error and len(self.first_explained) < SHOWN_FAILURES:
            self.first_explained.append(cut_message(error))


class _Outcome(msgspec.Struct, gc=False, rename={"error": "errorMessage"}):
    success: bool
    error: str | None = None


_outcomes = msgspec.json.Decoder(list[_Outcome])


class FailureCountSink(ResultsSink):
    """Reads a batch document and counts failures; a million results take about a second.

    :param check: called after each block of results; what it raises ends the reading
    """

    def __init__(self, check: Callable[[ResultsSink], None] = lambda sink: None) -> None:
        super().__init__(None, lambda block: None)
        self._check = check
        self.found = FailureCount()

    def _take_items(self, items: bytes) -> None:
        try:
            rows = [(row.success, row.error) for row in _outcomes.decode(items)]
        except msgspec.ValidationError:
            # Another spelling: the reader of results knows them all.
            block = self._decoder.decode(items, self.count)
            errors = [None if error == NO_MESSAGE else error for error in block.errors]
            rows = list(zip(block.success, errors, strict=True))
        for place, (success, error) in enumerate(rows):
            if not success:
                self.found.add(self.count + place, error)
        self.count += len(rows)
        self.found.seen = self.count
        self._check(self)


class FailureLimit:
    """Decides when a watch looks at partial results, and when too many of them are failures.

    :param most_failed: how many records may fail
    """

    def __init__(self, most_failed: int) -> None:
        self.most_failed = most_failed
        self.found: FailureCount | None = None
        self._next_look = most_failed + 1

    def is_due(self, status: BatchStatus) -> bool:
        """Whether enough is completed since the last look for another one."""
        return not status.is_terminal and status.completed_item_count >= self._next_look

    def take(self, found: FailureCount, status: BatchStatus) -> None:
        """Take what a look has found."""
        self.found = found
        self._next_look = max(int(status.completed_item_count * _NEXT_LOOK), self._next_look + 1)

    @property
    def is_passed(self) -> bool:
        """Whether more records have failed than may.

        Without a message it could be a record that is not scored yet: no document says how a server
        shows those among partial results.
        """
        return self.found is not None and self.found.explained > self.most_failed

    def __str__(self) -> str:
        if self.found is None:
            return ""
        return f"{self.found.explained:,} failed of the {self.found.seen:,} looked at"
