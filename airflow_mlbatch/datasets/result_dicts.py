"""Results as a list of dicts, for batches whose results are small enough for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_mlbatch.datasets.failures import Failure
from airflow_mlbatch.datasets.scored import check_console_column
from airflow_mlbatch.datasets.tables import InputTable
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.failures import SHOWN_FAILURES, FailureCount
from airflow_mlbatch.protocol.results import RecordBlock
from airflow_mlbatch.protocol.services import Parameter

__all__ = ["ResultDicts", "check_output_names"]

# What a dict has beside the outputs.
_OWN_KEYS = ("index", "success", "error")


def check_output_names(
    outputs: Sequence[Parameter], remedy: str, console_column: str | None = None
) -> None:
    """Whether the outputs leave room for the keys that are added.

    :param remedy: what to do where they do not; the end of the error's sentence
    :param console_column: the key for console output, ``None`` for none
    :raises InputError: an output has the name of one of them
    :raises DatasetError: so has ``console_column``, or it is no name
    """
    check_console_column(console_column, _OWN_KEYS, outputs)
    clashes = [each.name for each in outputs if each.name in _OWN_KEYS]
    if clashes:
        raise InputError(
            f"the output {clashes[0]!r} has the name of a key that the XCom adds; {remedy}"
        )


class ResultDicts:
    """Collects results: ``index``, the outputs, ``success`` and ``error`` of each record.

    :param console_column: the key for what each record has printed, ``None`` for none
    """

    def __init__(self, console_column: str | None = None) -> None:
        self._console_column = console_column
        self.rows: list[dict[str, Any]] = []

    def take(self, block: RecordBlock) -> None:
        """Take the next results."""
        for record in block:
            own: dict[str, Any] = {
                "index": record.index,
                "success": record.success,
                "error": record.error,
            }
            if self._console_column is not None:
                own[self._console_column] = record.console_output or None
            # Also before an output of such a name that the service did not declare.
            self.rows.append({"index": record.index, **record.outputs, **own})

    def forget(self) -> None:
        """The results are read from their beginning again."""
        self.rows.clear()

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The records that failed."""
        return [row for row in self.rows if not row["success"]]

    def counted(self) -> FailureCount:
        """How many records failed, and the first of them."""
        count = FailureCount(seen=len(self.rows))
        for row in self.failed:
            count.add(row["index"], row["error"])
        return count

    def first_failures(
        self, table: InputTable | None, inputs: Sequence[Parameter] | None
    ) -> list[Failure]:
        """The first failed records, with their inputs where these are known.

        :param table: the table that was scored
        :param inputs: those of the service; ``None`` leaves the table unread
        """
        shown = self.failed[:SHOWN_FAILURES]
        found: list[dict[str, Any]] = [{} for _ in shown]
        if table is not None and inputs is not None and shown:
            found = table.read_inputs(inputs, [row["index"] for row in shown])
        first_row = 0 if table is None else table.first_row
        return [
            Failure(first_row + row["index"], row["error"] or "", values)
            for row, values in zip(shown, found, strict=True)
        ]
