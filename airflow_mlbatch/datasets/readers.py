"""Tables in: how many rows, the inputs of a service, or the original columns.

Law: a slice is read, never the table. How depends on the format and is the business of
:mod:`airflow_mlbatch.datasets.kinds`. A value is what it was or is refused by name.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from airflow_mlbatch.datasets.collected import note_read
from airflow_mlbatch.datasets.columns import listed
from airflow_mlbatch.datasets.formats import TableFormat, table_format
from airflow_mlbatch.datasets.jsonlines import JsonColumn
from airflow_mlbatch.datasets.kinds.kind import InputBlock, Kind, Source
from airflow_mlbatch.datasets.locations import StoragePath, open_input
from airflow_mlbatch.datasets.quoting import Quoting
from airflow_mlbatch.datasets.rows import RowRange, TableRows, row_range_of
from airflow_mlbatch.datasets.soundness import UnpackedFile
from airflow_mlbatch.errors import DatasetError, RecordError
from airflow_mlbatch.protocol.records import RecordWriter
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.values import Misfit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["count_rows", "encode_inputs", "input_blocks", "open_rows", "read_inputs"]


def count_rows(path: StoragePath, format: str | None = None, quoting: Quoting = "double") -> int:
    """The number of rows of a table. Parquet states it in its footer; other tables are read through.

    :param quoting: ``none`` for CSV and TSV in which quotes are ordinary text
    :raises DatasetError: there is no such file, or it is not of this format
    """
    with _opened(path, format, quoting) as (kind, source):
        return kind.count(source)


def encode_inputs(
    path: StoragePath, inputs: Sequence[Parameter], **options: Any
) -> tuple[bytes, int]:
    """The body that starts a batch, from a table. Only the body grows with the table.

    :param options: as :func:`input_blocks` takes them
    :return: the body and the number of records in it
    :raises RecordError, DatasetError: as :func:`input_blocks`
    """
    writer = RecordWriter(inputs)
    for block in input_blocks(path, inputs, **options):
        writer.add(block)
        # Not held while the next one is read.
        del block
    return writer.body(), writer.count


def read_inputs(
    path: StoragePath, inputs: Sequence[Parameter], **options: Any
) -> tuple[dict[str, list[Any]], int]:
    """The inputs of a service from a few rows of a table, all in memory.

    :param options: as :func:`input_blocks` takes them
    :return: one list of JSON values for each input, and the number of rows
    :raises RecordError, DatasetError: as :func:`input_blocks`
    """
    wire: dict[str, list[Any]] = {parameter.name: [] for parameter in inputs}
    for block in input_blocks(path, inputs, **options):
        for name, column in block.items():
            wire[name] += column
    return wire, len(next(iter(wire.values())))


def input_blocks(
    path: StoragePath,
    inputs: Sequence[Parameter],
    *,
    columns: Mapping[str, str] | None = None,
    row_range: Any = None,
    format: str | None = None,
    indexes: Sequence[int] | None = None,
    quoting: Quoting = "double",
) -> Iterator[dict[str, list[Any]]]:
    """The inputs of a service from a table, block by block: a list of JSON values for each input.

    :param inputs: the declared inputs
    :param columns: ``{input: column}`` for inputs whose column has another name
    :param row_range: ``(start, stop)``, half-open, zero-based
    :param format: where the suffix does not tell it
    :param indexes: take only these rows (absolute, ascending, within the range)
    :param quoting: ``none`` for CSV and TSV in which quotes are ordinary text
    :raises RecordError: a value or a missing column; names the absolute row, the input, the column
        where it is called otherwise, what was found and the type wanted
    :raises DatasetError: the table cannot be read as asked
    """
    chosen = _column_for_input(inputs, columns)
    wanted = row_range_of(row_range)
    with _opened(path, format, quoting) as (kind, source):
        cast_block = _InputCaster(inputs, chosen, kind, source.where, indexes)
        row = wanted.start
        for block in kind.inputs(source, chosen, wanted):
            size = block.rows
            wire = cast_block(block, row)
            # Neither is held while the next block is read.
            del block
            yield wire
            del wire
            row += size


def open_rows(
    path: StoragePath,
    columns: Sequence[str] | None = None,
    row_range: Any = None,
    format: str | None = None,
    quoting: Quoting = "double",
) -> TableRows:
    """Original columns of a table, in batches.

    :param columns: names of columns, ``None`` for all of them
    :param quoting: ``none`` for CSV and TSV in which quotes are ordinary text
    :raises DatasetError: a column is not there, or the table cannot be read
    """
    batches = _open_and_close(path, format, quoting, columns, row_range_of(row_range))
    schema = cast("pa.Schema", next(batches))
    return TableRows(schema, batches)


def _open_and_close(
    path: StoragePath,
    format: str | None,
    quoting: Quoting,
    columns: Sequence[str] | None,
    wanted: RowRange,
) -> Iterator[pa.Schema | pa.RecordBatch]:
    """The schema, then the batches; the file is closed when they are through or given up."""
    by_name = None if columns is None else {name: name for name in columns}
    with _opened(path, format, quoting) as (kind, source):
        rows = kind.open(source, by_name, wanted)
        yield rows.schema
        yield from rows.batches


@contextmanager
def _opened(
    path: StoragePath, format: str | None, quoting: Quoting
) -> Iterator[tuple[Kind, Source]]:
    found = table_format(path, format, quoting)
    try:
        with _source(path, found) as source:
            yield found.kind, source
    except (DatasetError, RecordError) as error:
        # Rows count from 0 and leave out the header and blank lines: an editor shows lines.
        numbered = _with_line(error, path, found)
        if numbered is None:
            raise
        raise numbered from None


@contextmanager
def _source(path: StoragePath, found: TableFormat) -> Iterator[Source]:
    where = str(path.name)
    with open_input(path) as raw:
        note_read(path)
        file = cast("BinaryIO", UnpackedFile(raw, where)) if found.is_gzip else raw
        yield Source(file, where, found.quoting)


def _with_line(
    error: DatasetError | RecordError, path: StoragePath, found: TableFormat
) -> DatasetError | RecordError | None:
    """The same error with the line of its row, where it names a row of a file that has lines."""
    where = str(path.name)
    named = re.match(rf"({re.escape(where)}, row (\d+))(?! \(line|\d)", str(error))
    if named is None:
        return None
    # Opened anew: Arrow may still read the other one ahead.
    with _source(path, found) as source:
        line = found.kind.line_of(source, int(named[2]))
    if line is None:
        return None
    place = f"{named[1]} (line {line})"
    if isinstance(error, RecordError):
        rest = error.where.removeprefix(named[1])
        return RecordError(place + rest, error.field, error.found, error.expected)
    return DatasetError(place + str(error).removeprefix(named[1]))


def _column_for_input(
    inputs: Sequence[Parameter], columns: Mapping[str, str] | None
) -> dict[str, str]:
    if not inputs:
        raise DatasetError("inputs: the service declares none, so a table has nothing to score")
    declared = [parameter.name for parameter in inputs]
    strangers = [name for name in columns or () if name not in declared]
    if strangers:
        raise DatasetError(
            f"columns: found {', '.join(map(repr, strangers))}, which the service does not declare; "
            f"expected names of its inputs ({listed(declared)})"
        )
    return {
        parameter.name: (columns or {}).get(parameter.name, parameter.name) for parameter in inputs
    }


# --- casting block by block ----------------------------------------------------------------------


class _InputCaster:
    """Casts blocks to the declared types, and names the row of a value that does not fit."""

    def __init__(
        self,
        inputs: Sequence[Parameter],
        chosen: Mapping[str, str],
        kind: Kind,
        where: str,
        indexes: Sequence[int] | None,
    ) -> None:
        self._inputs, self._chosen = inputs, chosen
        self._kind, self._where = kind, where
        self._indexes = indexes

    def __call__(self, block: InputBlock, first_row: int) -> dict[str, list[Any]]:
        """:raises RecordError: a value does not fit"""
        rows = self._picked(first_row, block.rows)
        columns = block.columns
        if len(rows) < block.rows:
            places = [row - first_row for row in rows]
            columns = {name: _at_places(column, places) for name, column in columns.items()}
        return {
            parameter.name: self._cast(parameter, columns[self._chosen[parameter.name]], rows)
            for parameter in self._inputs
        }

    def _picked(self, first_row: int, size: int) -> Sequence[int]:
        """The wanted rows of those from ``first_row`` on."""
        if self._indexes is None:
            return range(first_row, first_row + size)
        low = bisect_left(self._indexes, first_row)
        return self._indexes[low : bisect_left(self._indexes, first_row + size)]

    def _cast(self, parameter: Parameter, column: Any, rows: Sequence[int]) -> list[Any]:
        try:
            return self._kind.to_wire(parameter.type, column)
        except Misfit as misfit:
            name = self._chosen[parameter.name]
            called = "" if name == parameter.name else f", column {name!r}"
            where = f"{self._where}, row {rows[misfit.position or 0]}{called}"
            raise RecordError(where, parameter.name, misfit.found, misfit.expected) from None
        except RecursionError:
            place = _first_too_deep(self._kind, parameter, column)
            raise RecordError(
                f"{self._where}, row {rows[place]}",
                parameter.name,
                "a value that is nested too deeply to be read",
                f"a value of type {parameter.type}",
            ) from None


def _at_places(column: Any, places: list[int]) -> Any:
    """Some values of an Arrow column or of JSON Lines."""
    if isinstance(column, JsonColumn):
        return column.at(places)
    import pyarrow as pa

    return column.take(pa.array(places, pa.int64()))


def _first_too_deep(kind: Kind, parameter: Parameter, column: Any) -> int:
    for place in range(len(column)):
        try:
            kind.to_wire(parameter.type, _at_places(column, [place]))
        except RecursionError:
            return place
    return 0
