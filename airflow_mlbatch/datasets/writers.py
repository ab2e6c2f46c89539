"""Tables out: Parquet, CSV, TSV and JSON Lines, batch by batch, in place when complete.

Law: memory depends on the batch; the file appears whole or not at all
(:mod:`airflow_mlbatch.datasets.staging`); a value that the format cannot hold is refused with the
name of its column, never bent.

What text formats cannot say is written so:

=================== ============================= =============================================
value               CSV and TSV                   JSON Lines
=================== ============================= =============================================
missing             an empty cell, unquoted       ``null``
empty text          ``""``                        ``""``
NaN                 ``nan``                       ``null`` (a missing value)
infinity            ``inf``                       refused: JSON has none
date, time, decimal text as Arrow prints it       the same text
list, struct        JSON text                     JSON
bytes, map          refused                       refused
=================== ============================= =============================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from airflow_mlbatch.datasets.collected import note_written
from airflow_mlbatch.datasets.formats import TableFormat, named_format, table_format
from airflow_mlbatch.datasets.jsonlines import is_inferred, is_json_text
from airflow_mlbatch.datasets.kinds.kind import Sink
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.nested import is_assumed
from airflow_mlbatch.datasets.staging import StagedFile, gzip_into
from airflow_mlbatch.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TableWriter", "WrittenTable", "check_writable", "open_table"]


@dataclass(frozen=True)
class WrittenTable:
    """A table that is in place.

    :param name: file name
    :param rows: number of rows
    :param bytes: size of the file
    :param sha256: checksum of the file, in hexadecimal digits
    :param columns: name and type of each column, as Arrow calls the type; ``json`` for JSON text
    :param assumed: columns that held no value to show their type
    :param inferred: columns whose type other rows of the same input may show otherwise
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    columns: tuple[tuple[str, str], ...]
    assumed: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()


class TableWriter:
    """Takes batches of one schema.

    After the ``with`` block of :func:`open_table`, ``written`` says what is in place.
    """

    def __init__(self, path: StoragePath, kind: TableFormat, file: BinaryIO) -> None:
        self._path, self._kind, self._file = path, kind, file
        self._sink: Sink | None = None
        self._schema: pa.Schema | None = None
        self.rows = 0
        self.written: WrittenTable | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the columns are fixed: a batch was written, be it without rows."""
        return self._sink is not None

    def begin(self, schema: pa.Schema) -> None:
        """Fix the columns; a table without rows needs it, for others the first batch does it.

        :raises DatasetError: names a column that this format cannot hold
        """
        check_writable(schema, self._kind.name, str(self._path.name))
        self._schema = schema
        self._sink = self._kind.kind.sink(self._file, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch.

        :raises DatasetError: its columns are not those of the batches before, or a value has no
            place in this format
        """
        import pyarrow as pa

        if self._sink is None or self._schema is None:
            self.begin(batch.schema)
        assert self._sink is not None
        assert self._schema is not None
        if batch.schema != self._schema:
            raise DatasetError(
                f"{self._path.name}, row {self.rows}: found columns {_described(batch.schema)}, "
                f"expected {_described(self._schema)} as before"
            )
        try:
            self._sink.write(batch, self.rows)
        except pa.ArrowException as error:
            raise DatasetError(f"{self._path.name}, near row {self.rows}: {error}") from None
        self.rows += batch.num_rows

    def finish(self) -> None:
        import pyarrow as pa

        if self._sink is None:
            raise DatasetError(
                f"{self._path}: found nothing to write, expected at least the columns"
            )
        try:
            self._sink.close()
        except pa.ArrowException as error:
            raise DatasetError(f"{self._path.name}, near row {self.rows}: {error}") from None

    def abandon(self) -> None:
        """Let go of a file that will not be put in place."""
        # Arrow's writers close themselves when they are collected, by then into a closed file.
        if self._sink is not None:
            with suppress(Exception):
                self._sink.close()

    def as_written(self, size: int, sha256: str) -> WrittenTable:
        """What was written."""
        schema = self._schema if self._schema is not None else ()
        assumed = tuple(field.name for field in schema if is_assumed(field))
        inferred = tuple(field.name for field in schema if is_inferred(field))
        name = str(self._path.name)
        return WrittenTable(name, self.rows, size, sha256, _columns(schema), assumed, inferred)


@contextmanager
def open_table(
    path: StoragePath,
    *,
    format: str | None = None,
    schema: pa.Schema | None = None,
    attempt: str | None = None,
) -> Iterator[TableWriter]:
    """Write a table; it is in place after the ``with`` block, and nothing is if that raises.

    :param format: where the suffix does not tell it
    :param schema: needed where there may be no batch at all
    :param attempt: names this piece of work, the same in each try (dag, task, run, map index), so
        that a retry removes what its predecessor left
    """
    kind = table_format(path, format)
    staged = StagedFile(path, attempt)
    with staged as file:
        if kind.is_gzip:
            with gzip_into(file) as packed:
                writer = TableWriter(path, kind, packed)
                yield from _fill(writer, schema)
        else:
            writer = TableWriter(path, kind, file)  # type: ignore[arg-type]
            yield from _fill(writer, schema)
    writer.written = writer.as_written(staged.size, staged.sha256)
    note_written(path)


def _fill(writer: TableWriter, schema: pa.Schema | None) -> Iterator[TableWriter]:
    if schema is not None:
        writer.begin(schema)
    try:
        yield writer
    except BaseException:
        writer.abandon()
        raise
    writer.finish()


def check_writable(schema: pa.Schema, format: str, where: str) -> None:
    """Whether a format can hold columns of these types.

    :raises DatasetError: names the columns that it cannot hold
    """
    kind = named_format(format).kind
    refused = [
        f"{field.name!r} of type {field.type}" for field in schema if not kind.can_hold(field)
    ]
    if refused:
        raise DatasetError(
            f"{where}: found {', '.join(refused)}, which {kind.title} cannot hold; "
            "leave it out with keep_columns or choose another format"
        )


# --- columns -------------------------------------------------------------------------------------


def _columns(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    return tuple(
        (field.name, "json" if is_json_text(field) else str(field.type)) for field in schema
    )


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{name!r} ({kind})" for name, kind in _columns(schema))
