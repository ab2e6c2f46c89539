"""Results into a table: joined with their input rows, written, counted and judged.

Law: a block of results is written and forgotten before the next one is read. The table is put in place
only after it was judged; the rejects are put in place also where too many records failed, because
somebody will want to look at them then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from airflow_mlbatch.datasets.destinations import Destination, ScoredTable
from airflow_mlbatch.datasets.failures import FailureLog, FailurePolicy, RejectsWriter, open_rejects
from airflow_mlbatch.datasets.locations import StoragePath, remove
from airflow_mlbatch.datasets.rows import TableRows
from airflow_mlbatch.datasets.scored import (
    DataFrames,
    ScoredBatch,
    ScoredRows,
    check_console_column,
)
from airflow_mlbatch.datasets.tables import InputTable
from airflow_mlbatch.datasets.writers import TableWriter, WrittenTable, open_table
from airflow_mlbatch.errors import RecordsFailedError
from airflow_mlbatch.protocol.results import RecordBlock
from airflow_mlbatch.protocol.services import Service

__all__ = ["ResultsJob", "fill_table", "write_results"]

# Hands over the blocks of a batch, in order, to what it is given.
ReadResults: TypeAlias = Callable[[Callable[[RecordBlock], None]], None]


@dataclass(frozen=True)
class ResultsJob:
    """Writes the results of a batch beside the rows that they belong to.

    :param service: declares the inputs and the outputs
    :param source: the table that was scored; ``None`` where it is not known
    :param destination: where the results go
    :param policy: how many records may fail
    :param data_frames: how outputs of type data.frame are written
    :param console_column: the column for what each record has printed, ``None`` for none
    """

    service: Service
    source: InputTable | None
    destination: Destination
    policy: FailurePolicy
    data_frames: DataFrames = "auto"
    console_column: str | None = None

    def check(self) -> None:
        """What only the service and the table can tell.

        :raises DatasetError: a column is not there, or its name is taken
        """
        with self._open_source() as (_, kept):
            check_console_column(self.console_column, kept, self.service.outputs)

    def write(
        self, read: ReadResults, *, execution_ids: Sequence[str], what: str, attempt: str
    ) -> ScoredTable:
        """Write the table and its rejects.

        :param read: reads the results
        :param execution_ids: the batches that they come from
        :param what: the execution to name in an error
        :param attempt: names this piece of work, the same in each of its tries
        :raises RecordsFailedError, DatasetError: as :func:`write_results`
        """
        source, inputs = self.source, self.service.inputs
        log = FailureLog(None if source is None else source.input_columns(inputs))
        self.destination.begin()
        with self._open_source() as (rows, kept):
            written, rejects = write_results(
                read,
                self._scored_rows(rows, kept),
                self.destination.table,
                log,
                self.policy,
                format=self.destination.format,
                rejects=self.destination.rejects,
                manifest=self.destination.manifest,
                what=what,
                attempt=attempt,
            )
        return ScoredTable(written, rejects, log, list(execution_ids), self._first_index)

    @property
    def _first_index(self) -> int:
        return 0 if self.source is None else self.source.first_row

    def _open_source(self) -> AbstractContextManager[tuple[TableRows | None, list[str]]]:
        if self.source is None:
            return contextlib.nullcontext((None, []))
        return self.source.open_scored(
            self.service, has_rejects=self.destination.rejects is not None
        )

    def _scored_rows(self, rows: TableRows | None, kept: Sequence[str]) -> ScoredRows:
        source, kind = self.source, self.destination.format_name
        return ScoredRows(
            self.service.outputs,
            format=kind,
            rows=rows,
            kept=kept,
            first_index=self._first_index,
            data_frames=self.data_frames,
            console_column=self.console_column,
            types=None if source is None else source.types_of(kept, self.service.inputs, kind),
        )


def write_results(
    read: ReadResults,
    scored: ScoredRows,
    output: StoragePath,
    log: FailureLog,
    policy: FailurePolicy,
    *,
    format: str | None = None,
    rejects: StoragePath | None = None,
    manifest: StoragePath | None = None,
    what: str = "",
    attempt: str | None = None,
) -> tuple[WrittenTable, WrittenTable | None]:
    """Write the scored table of one batch, and the rows that failed.

    :param read: reads the results
    :param scored: joins them with their input rows
    :param output: the table; it appears whole or not at all
    :param log: counts the failures
    :param policy: judges them
    :param format: of the table, where its name does not tell
    :param rejects: a table for the rows that failed, ``None`` for none
    :param manifest: of an earlier table of this name, removed before the new one is in place
    :param what: the execution to name in an error
    :param attempt: names this piece of work, the same in each of its tries
    :return: the table and the rejects, both in place
    :raises RecordsFailedError: too many records failed; the rejects are in place, the table is not
    :raises DatasetError: results and rows do not match, or a value has no place in the format
    """
    too_many: RecordsFailedError | None = None
    with contextlib.ExitStack() as stack:
        rejected: RejectsWriter | None = None
        if rejects is not None:
            rejected = stack.enter_context(
                open_rejects(rejects, input_schema=scored.input_schema, attempt=attempt)
            )
        try:
            with open_table(output, format=format, attempt=attempt) as table:
                fill_table(table, read, scored, [log] if rejected is None else [log, rejected])
                policy.judge(log.failed, log.total, log.first, what=what)
                if manifest is not None:
                    # That of an earlier table must not be found beside this one.
                    remove(manifest)
        except RecordsFailedError as error:
            # Raised below, once the rejects are in place.
            too_many = error
    if too_many is not None:
        raise too_many
    assert table.written is not None
    return table.written, None if rejected is None else rejected.written


def fill_table(
    table: TableWriter,
    read: ReadResults,
    scored: ScoredRows,
    takers: Iterable[FailureLog | RejectsWriter],
) -> None:
    """Write the results of one batch.

    :param takers: are shown each piece that was written
    :raises DatasetError: results and rows do not match, or a value has no place in the format
    """

    def put(batches: Iterable[ScoredBatch]) -> None:
        for batch, rows in batches:
            table.write(batch)
            for taker in takers:
                taker.take(batch, rows)

    read(lambda block: put(scored.add(block)))
    put(scored.finish())
    if not table.has_begun:
        table.begin(scored.schema)
