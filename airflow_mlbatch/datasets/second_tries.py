"""The failed records of a batch, and what further tries of them brought."""

from __future__ import annotations

from collections.abc import Iterable

from airflow_mlbatch.datasets.failures import splice
from airflow_mlbatch.protocol.results import RecordBlock, RecordResult

__all__ = ["SecondTries"]


class SecondTries:
    """Failed records by their index in the first batch, and the results of their last try.

    ``failed`` are the records that have failed up to now, ascending. ``execution_ids`` are the batches
    of the further tries.
    """

    def __init__(self) -> None:
        self.failed: list[int] = []
        self.execution_ids: list[str] = []
        self._results: dict[int, RecordResult] = {}

    def note(self, block: RecordBlock) -> None:
        """Look for failed records among results of the first batch."""
        first = block.first_index
        self.failed += [first + place for place, success in enumerate(block.success) if not success]

    def forget(self) -> None:
        """The first batch is read from its beginning again."""
        self.failed.clear()

    def take(self, records: Iterable[RecordResult]) -> None:
        """Take the results of a batch of all records that had failed, in their order."""
        for record in records:
            self._results[self.failed[record.index]] = record
        self.failed = [index for index in self.failed if not self._results[index].success]

    def splice(self, block: RecordBlock) -> RecordBlock:
        """Results of the first batch, with the newer ones in their places."""
        return splice(block, self._results)
