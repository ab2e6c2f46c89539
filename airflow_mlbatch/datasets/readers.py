"""Tables in: how many rows, the inputs of a service, or the original columns.

Law: a slice is read, never the table. A Parquet file is opened at the row groups that hold the
slice; a text file is read up to the slice's end, and what stands before it is not kept. A value is
what it was or is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from airflow_mlbatch.datasets import casting, jsonlines, textcells
from airflow_mlbatch.datasets.columns import chosen_names, listed, refuse_duplicates
from airflow_mlbatch.datasets.formats import TableFormat, table_format
from airflow_mlbatch.datasets.kinds.parquet import ParquetTable
from airflow_mlbatch.datasets.locations import StoragePath, open_input
from airflow_mlbatch.datasets.quoting import Quoting
from airflow_mlbatch.errors import DatasetError, RecordError
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.values import Misfit, TypeName

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "RowRange",
    "TableRows",
    "count_rows",
    "open_rows",
    "read_inputs",
    "row_range_of",
]


@dataclass(frozen=True)
class RowRange:
    """A half-open range of zero-based rows; ``stop=None`` goes to the end of the table."""

    start: int = 0
    stop: int | None = None

    def check_end(self, where: str, end: int) -> None:
        """:raises DatasetError: the table ended at row ``end``, before the range does"""
        if end < (self.start if self.stop is None else self.stop):
            raise DatasetError(
                f"row_range: found ({self.start}, {self.stop}), but {where} has only {end:,} rows; "
                "expected a range within it"
            )


def row_range_of(found: Any) -> RowRange:
    """Check a range as a Dag author gives it: ``(start, stop)``, half-open and zero-based.

    :param found: a pair of whole numbers (the second may be ``None``), a :class:`RowRange`, or
        ``None`` for the whole table
    :raises DatasetError: it is something else
    """
    if found is None:
        return RowRange()
    if isinstance(found, RowRange):
        return found
    expected = "expected (start, stop) with whole numbers and 0 <= start <= stop"
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise DatasetError(f"row_range: found {found!r:.80}, {expected}")
    start, stop = found
    numbers = (start,) if stop is None else (start, stop)
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise DatasetError(f"row_range: found {found!r:.80}, {expected}")
    if start < 0 or (stop is not None and stop < start):
        raise DatasetError(f"row_range: found {found!r:.80}, {expected}")
    return RowRange(start, stop)


@dataclass(frozen=True)
class TableRows:
    """Original columns of a table, or of a slice of it.

    :param schema: the chosen columns, in the order asked for. Columns of CSV and TSV are text as it
        stands; columns of Parquet have their own types; columns of JSON Lines have a type that
        holds all their values, and where there is none they are JSON text
        (:data:`airflow_mlbatch.datasets.jsonlines.JSON_TEXT` in the field's metadata)
    :param batches: record batches of that schema, read as they are taken
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self.batches


def count_rows(path: StoragePath, format: str | None = None, quoting: Quoting = "double") -> int:
    """The number of rows of a table. Parquet says it in its footer; a text table is read through.

    :param quoting: ``none`` for CSV and TSV in which quotes are ordinary text
    :raises DatasetError: there is no such file, or it is not of this format
    """
    kind = table_format(path, format, quoting)
    where = str(path.name)
    with open_input(path) as raw:
        if kind.name == "parquet":
            return ParquetTable(raw, where).row_count
        if kind.name == "jsonl":
            return sum(map(len, jsonlines.read_lines(_unpacked(raw, kind, where))))
        header, has_rows = _header(raw, kind, where)
        if not has_rows:
            return 0
        batches = _text_batches(raw, kind, where, header, header[:1], 0)
        return sum(batch.num_rows for batch in batches)


def read_inputs(
    path: StoragePath,
    inputs: Sequence[Parameter],
    *,
    columns: Mapping[str, str] | None = None,
    row_range: Any = None,
    format: str | None = None,
    indexes: Sequence[int] | None = None,
    quoting: Quoting = "double",
) -> tuple[dict[str, list[Any]], int]:
    """The inputs of a service from a table, ready for ``encode_columns``.

    :param inputs: the declared inputs
    :param columns: ``{input: column}`` for inputs whose column has another name
    :param row_range: ``(start, stop)``, half-open, zero-based
    :param format: where the suffix does not tell it
    :param indexes: take only these rows (absolute, ascending, within the range)
    :param quoting: ``none`` for CSV and TSV in which quotes are ordinary text
    :return: one list of JSON values for each input, and the number of rows
    :raises RecordError: a value or a missing column; names the absolute row, the input, the column
        where it is called otherwise, what was found and the type wanted
    :raises DatasetError: the table cannot be read as asked
    """
    chosen = _column_for_input(inputs, columns)
    wanted = row_range_of(row_range)
    kind = table_format(path, format, quoting)
    where = str(path.name)
    cast_block = _InputCaster(inputs, chosen, where, indexes)
    with open_input(path) as raw:
        if kind.name == "jsonl":
            names = list(dict.fromkeys(chosen.values()))
            row = wanted.start
            for lines in jsonlines.read_lines(
                _unpacked(raw, kind, where), wanted.start, wanted.stop
            ):
                found = jsonlines.columns_of(lines, names, where, row)
                cast_block.take_json(found, lines, row)
                row += len(lines)
            _check_lines_end(raw, kind, where, wanted, row)
        else:
            rows = _open(raw, kind, where, chosen, wanted)
            row = wanted.start
            for batch in rows:
                cast_block.take(batch, row, is_text=kind.name != "parquet")
                row += batch.num_rows
    return cast_block.wire, cast_block.count


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
    wanted = row_range_of(row_range)
    kind = table_format(path, format, quoting)
    where = str(path.name)
    batches = _open_and_close(path, kind, where, columns, wanted)
    schema = cast("pa.Schema", next(batches))
    return TableRows(schema, batches)


# --- opening -------------------------------------------------------------------------------------


def _open_and_close(
    path: StoragePath,
    kind: TableFormat,
    where: str,
    columns: Sequence[str] | None,
    wanted: RowRange,
) -> Iterator[pa.Schema | pa.RecordBatch]:
    """The schema, then the batches; the file is closed when they are through or given up."""
    with open_input(path) as raw:
        by_name = None if columns is None else {name: name for name in columns}
        rows = _open(raw, kind, where, by_name, wanted)
        yield rows.schema
        yield from rows.batches


def _open(
    raw: BinaryIO,
    kind: TableFormat,
    where: str,
    columns: Mapping[str, str] | None,
    wanted: RowRange,
) -> TableRows:
    """:param columns: ``{what it is wanted for: column}``, ``None`` for all"""
    if kind.name == "parquet":
        return _open_parquet(raw, where, columns, wanted)
    if kind.name == "jsonl":
        return _open_jsonl(raw, kind, where, columns, wanted)
    return _open_text(raw, kind, where, columns, wanted)


def _open_text(
    raw: BinaryIO,
    kind: TableFormat,
    where: str,
    columns: Mapping[str, str] | None,
    wanted: RowRange,
) -> TableRows:
    import pyarrow as pa

    header, has_rows = _header(raw, kind, where)
    names = chosen_names(columns, header, where)
    schema = pa.schema([pa.field(name, pa.string()) for name in names])
    batches: Iterator[pa.RecordBatch] = iter(())
    if has_rows:
        batches = _text_batches(raw, kind, where, header, names or header[:1], wanted.start)

    def count() -> int:
        again = _text_batches(raw, kind, where, header, header[:1], 0) if has_rows else ()
        return sum(batch.num_rows for batch in again)

    return TableRows(schema, _sliced(batches, schema, wanted, where, count))


def _open_jsonl(
    raw: BinaryIO,
    kind: TableFormat,
    where: str,
    columns: Mapping[str, str] | None,
    wanted: RowRange,
) -> TableRows:
    # Two passes: a column's type is that of all its values, and the last may differ from the first.
    file = _unpacked(raw, kind, where)
    only = None if columns is None else list(dict.fromkeys(columns.values()))
    lines = jsonlines.read_lines(file, wanted.start, wanted.stop)
    schema = jsonlines.scan_schema(lines, where, wanted.start, only)

    def batches() -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        file.seek(0)
        row = wanted.start
        for block in jsonlines.read_lines(file, wanted.start, wanted.stop):
            found = jsonlines.columns_of(block, schema.names, where, row)
            arrays = [
                jsonlines.to_arrow(_none_for_unset(found[field.name]), field, where)
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            row += len(block)
        _check_lines_end(raw, kind, where, wanted, row)

    return TableRows(schema, batches())


def _check_lines_end(
    raw: BinaryIO, kind: TableFormat, where: str, wanted: RowRange, row: int
) -> None:
    if row == wanted.start > 0:
        raw.seek(0)
        row = sum(map(len, jsonlines.read_lines(_unpacked(raw, kind, where))))
    wanted.check_end(where, row)


def _open_parquet(
    raw: BinaryIO, where: str, columns: Mapping[str, str] | None, wanted: RowRange
) -> TableRows:
    import pyarrow as pa

    table = ParquetTable(raw, where)
    refuse_duplicates(table.names, where)
    names = chosen_names(columns, table.names, where)
    schema = pa.schema([table.schema.field(name) for name in names])
    wanted.check_end(where, table.row_count)
    stop = table.row_count if wanted.stop is None else wanted.stop
    return TableRows(schema, table.batches(names, wanted.start, stop))


def _sliced(
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    wanted: RowRange,
    where: str,
    count: Callable[[], int],
) -> Iterator[pa.RecordBatch]:
    """Cut at the range's end; the batches begin at its start.

    :param count: counts all rows, which is needed only when the range seems to begin at the end
    """
    row = wanted.start
    for batch in () if wanted.start == wanted.stop else batches:
        if wanted.stop is not None and row + batch.num_rows > wanted.stop:
            batch = batch.slice(0, wanted.stop - row)
        row += batch.num_rows
        if batch.num_rows:
            yield batch.select(schema.names)
        if row == wanted.stop:
            return
    wanted.check_end(where, count() if row == wanted.start > 0 else row)


def _unpacked(raw: BinaryIO, kind: TableFormat, where: str) -> BinaryIO:
    if not kind.is_gzip:
        return raw
    return cast("BinaryIO", _Unpacked(raw, where))


class _Unpacked:
    """Reads gzip; says so clearly when the file is none, or is cut short."""

    def __init__(self, raw: BinaryIO, where: str) -> None:
        import gzip

        self._where = where
        # Python's reader takes a file of no bytes for the gzip of nothing.
        raw.seek(0)
        if not raw.read(1):
            raise DatasetError(f"{where}: found an empty file, expected gzip")
        raw.seek(0)
        self._file = gzip.GzipFile(fileobj=raw, mode="rb")

    def read(self, size: int = -1) -> bytes:
        import gzip
        import zlib

        try:
            return self._file.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DatasetError(
                f"{self._where}: found a file that gzip cannot unpack ({error})"
            ) from None

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return False

    def flush(self) -> None:
        return None


def _header(raw: BinaryIO, kind: TableFormat, where: str) -> tuple[list[str], bool]:
    file = _unpacked(raw, kind, where)
    return textcells.read_header(file, kind.delimiter, where, kind.quoting)


def _text_batches(
    raw: BinaryIO,
    kind: TableFormat,
    where: str,
    header: list[str],
    names: Sequence[str],
    start: int,
) -> Iterator[pa.RecordBatch]:
    raw.seek(0)
    return textcells.read_text_cells(
        _unpacked(raw, kind, where),
        header,
        names,
        delimiter=kind.delimiter,
        where=where,
        start=start,
        quoting=kind.quoting,
    )


# --- choosing columns ----------------------------------------------------------------------------


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


def _none_for_unset(values: list[Any]) -> list[Any]:
    import msgspec

    unset = msgspec.UNSET
    return [None if value is unset else value for value in values]


# --- casting block by block ----------------------------------------------------------------------


class _InputCaster:
    """Collects the inputs of consecutive blocks."""

    def __init__(
        self,
        inputs: Sequence[Parameter],
        chosen: Mapping[str, str],
        where: str,
        indexes: Sequence[int] | None,
    ) -> None:
        self._inputs, self._chosen, self._where = inputs, chosen, where
        self._indexes = None if indexes is None else list(indexes)
        self.wire: dict[str, list[Any]] = {parameter.name: [] for parameter in inputs}
        self.count = 0

    def take(self, batch: pa.RecordBatch, first_row: int, *, is_text: bool) -> None:
        import pyarrow as pa

        rows = self._picked(first_row, batch.num_rows)
        if rows is not None:
            batch = batch.take(pa.array([row - first_row for row in rows], pa.int64()))
        convert = casting.words_to_wire if is_text else casting.typed_to_wire
        for parameter in self._inputs:
            column = batch.column(self._chosen[parameter.name])
            self._extend(parameter, convert, column, first_row, rows)
        self.count += batch.num_rows

    def take_json(
        self, found: Mapping[str, list[Any]], lines: Sequence[bytes], first_row: int
    ) -> None:
        import msgspec

        rows = self._picked(first_row, len(lines))
        for parameter in self._inputs:
            column = self._chosen[parameter.name]
            values = found[column]
            if msgspec.UNSET in values:
                place = values.index(msgspec.UNSET)
                raise jsonlines.missing_key(
                    column, parameter.name, lines, place, self._where, first_row
                )
            if rows is not None:
                values = [values[row - first_row] for row in rows]
            self._extend(parameter, casting.json_to_wire, values, first_row, rows)
        self.count += len(lines) if rows is None else len(rows)

    def _picked(self, first_row: int, size: int) -> list[int] | None:
        if self._indexes is None:
            return None
        return [row for row in self._indexes if first_row <= row < first_row + size]

    def _extend(
        self,
        parameter: Parameter,
        convert: Any,
        column: Any,
        first_row: int,
        rows: list[int] | None,
    ) -> None:
        kind: TypeName = parameter.type
        try:
            self.wire[parameter.name] += convert(kind, column)
        except Misfit as misfit:
            place = misfit.position or 0
            row = first_row + place if rows is None else rows[place]
            name = self._chosen[parameter.name]
            called = "" if name == parameter.name else f", column {name!r}"
            where = f"{self._where}, row {row}{called}"
            raise RecordError(where, parameter.name, misfit.found, misfit.expected) from None
        except RecursionError:
            place = _first_too_deep(convert, kind, column)
            row = first_row + place if rows is None else rows[place]
            raise RecordError(
                f"{self._where}, row {row}",
                parameter.name,
                "a value that is nested too deeply to be read",
                f"a value of type {kind}",
            ) from None


def _first_too_deep(convert: Any, kind: TypeName, column: Any) -> int:
    for place in range(len(column)):
        try:
            convert(kind, column[place : place + 1])
        except RecursionError:
            return place
    return 0
