"""Results into a table: joined with their input rows, written, counted and judged.

Law: a block of results is written and forgotten before the next one is read. The table is put in place
only after it was judged; the rejects are put in place also where too many records failed, because
somebody will want to look at them then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TypeAlias

from airflow_mlbatch.datasets.failures import FailureLog, FailurePolicy, RejectsWriter, open_rejects
from airflow_mlbatch.datasets.locations import StoragePath, remove
from airflow_mlbatch.datasets.scored import ScoredBatch, ScoredRows
from airflow_mlbatch.datasets.writers import TableWriter, WrittenTable, open_table
from airflow_mlbatch.errors import RecordsFailedError
from airflow_mlbatch.protocol.results import RecordBlock

__all__ = ["fill_table", "write_results"]

# Hands over the blocks of a batch, in order, to what it is given.
ReadResults: TypeAlias = Callable[[Callable[[RecordBlock], None]], None]


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
