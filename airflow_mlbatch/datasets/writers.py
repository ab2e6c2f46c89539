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

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from airflow_mlbatch.datasets.casting import objects
from airflow_mlbatch.datasets.formats import TableFormat, table_format
from airflow_mlbatch.datasets.jsonlines import is_inferred, is_json_text, json_text, row_class_for
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.nested import is_assumed
from airflow_mlbatch.datasets.scored import INDEX_COLUMN
from airflow_mlbatch.datasets.staging import StagedFile, gzip_into
from airflow_mlbatch.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ASKED", "TableWriter", "WrittenTable", "check_writable", "open_table"]


# Metadata of a field whose JSON text is what the caller wants, rather than a way out.
ASKED: dict[bytes, bytes] = {b"mlbatch.asked": b"1"}


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
    """Takes batches of one schema. After the ``with`` block of :func:`open_table` ``written`` tells
    what is in place."""

    def __init__(self, path: StoragePath, kind: TableFormat, file: BinaryIO) -> None:
        self._path, self._kind, self._file = path, kind, file
        self._sink: _Sink | None = None
        self._schema: pa.Schema | None = None
        self.rows = 0
        self.written: WrittenTable | None = None

    def begin(self, schema: pa.Schema) -> None:
        """Fix the columns; a table without rows needs it, for others the first batch does it.

        :raises DatasetError: names a column that this format cannot hold
        """
        check_writable(schema, self._kind.name, str(self._path.name))
        self._schema = schema
        self._sink = _SINKS[self._kind.name](self._file, schema, self._kind)

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
                f"{self._path.name}, row {self.rows}: found columns {_told(batch.schema)}, "
                f"expected {_told(self._schema)} as before"
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

    def told(self, size: int, sha256: str) -> WrittenTable:
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
    writer.written = writer.told(staged.size, staged.sha256)


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
    can_hold = _CAN_HOLD[format]
    refused = [f"{field.name!r} of type {field.type}" for field in schema if not can_hold(field)]
    if refused:
        raise DatasetError(
            f"{where}: found {', '.join(refused)}, which {_FORMAT_TITLES[format]} cannot hold; "
            "leave it out with keep_columns or choose another format"
        )


_FORMAT_TITLES = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON Lines", "parquet": "Parquet"}


# --- formats -------------------------------------------------------------------------------------


class _Sink(Protocol):
    def write(self, batch: pa.RecordBatch, first_row: int) -> None: ...

    def close(self) -> None: ...


# A row group for each block of results would be too small: readers and packing want many rows.
_GROUP_ROWS, _GROUP_BYTES = 128 * 1024, 32 * 1024 * 1024


class _ParquetSink:
    def __init__(self, file: BinaryIO, schema: pa.Schema, kind: TableFormat) -> None:
        import pyarrow as pa
        import pyarrow.parquet as parquet

        self._writer = parquet.ParquetWriter(
            pa.PythonFile(file, "w"), schema, use_dictionary=_with_dictionary(schema)
        )
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: pa.RecordBatch, first_row: int) -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        if self._waiting:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        import pyarrow as pa

        waiting, self._waiting = self._waiting, []
        self._rows = self._bytes = 0
        table = pa.Table.from_batches(waiting)
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))


def _with_dictionary(schema: pa.Schema) -> list[str]:
    """Paths of the leaves whose values may well repeat.

    Scores and row numbers do not: trying to make a dictionary of them takes most of the time of
    writing, and leaves a larger file.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    empty = pa.BufferOutputStream()
    parquet.write_table(schema.empty_table(), empty)
    # Parquet names the leaves of nested columns in its own way: it is asked.
    leaves = parquet.ParquetFile(pa.BufferReader(empty.getvalue())).schema
    return [
        leaf.path
        for leaf in (leaves.column(place) for place in range(len(leaves)))
        if leaf.physical_type not in ("FLOAT", "DOUBLE") and leaf.path != INDEX_COLUMN
    ]


class _TextSink:
    def __init__(self, file: BinaryIO, schema: pa.Schema, kind: TableFormat) -> None:
        import pyarrow as pa
        import pyarrow.csv as arrow_csv

        self._schema = pa.schema([pa.field(field.name, _text_type(field.type)) for field in schema])
        options = arrow_csv.WriteOptions(delimiter=kind.delimiter)
        self._writer = arrow_csv.CSVWriter(
            pa.PythonFile(file, "w"), self._schema, write_options=options
        )

    def write(self, batch: pa.RecordBatch, first_row: int) -> None:
        import pyarrow as pa

        arrays = [
            _text_column(array, field, first_row)
            for array, field in zip(batch.columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _JsonSink:
    def __init__(self, file: BinaryIO, schema: pa.Schema, kind: TableFormat) -> None:
        import msgspec

        self._file, self._schema = file, schema
        self._row = row_class_for(schema.names)
        self._encoder = msgspec.json.Encoder()

    def write(self, batch: pa.RecordBatch, first_row: int) -> None:
        columns = [
            _json_column(array, field, first_row)
            for array, field in zip(batch.columns, self._schema, strict=True)
        ]
        names = batch.schema.names
        rows: Iterable[Any]
        if self._row is None:
            rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
        else:
            # A list: fed from an iterator, msgspec 0.22 forgets to let go of the rows.
            rows = list(map(self._row, *columns))
        self._file.write(self._encoder.encode_lines(rows))

    def close(self) -> None:
        return None


_SINKS: dict[str, Callable[[BinaryIO, Any, TableFormat], _Sink]] = {
    "parquet": _ParquetSink,
    "csv": _TextSink,
    "tsv": _TextSink,
    "jsonl": _JsonSink,
}


# --- columns -------------------------------------------------------------------------------------


def _columns(schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    return tuple(
        (field.name, "json" if is_json_text(field) else str(field.type)) for field in schema
    )


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{name!r} ({kind})" for name, kind in _columns(schema))


def _leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The types at the ends of a nested type; a map and an empty struct are ends themselves."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        yield from _leaves(kind.value_type)
    elif kind.num_fields and not pa.types.is_map(kind):
        for place in range(kind.num_fields):
            yield from _leaves(kind.field(place).type)
    else:
        yield kind


def _is_sayable(field: pa.Field) -> bool:
    """Whether every value has a text: no bytes, maps, intervals or extension types."""
    return all(map(_has_text, _leaves(field.type)))


def _has_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(
        (types.is_primitive(kind) and not types.is_interval(kind))
        or types.is_null(kind)
        or types.is_decimal(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    )


def _fits_parquet(field: pa.Field) -> bool:
    """Parquet has no empty structs, unions or intervals; mixed values it could only hold as text."""
    import pyarrow as pa

    if is_json_text(field) and ASKED.items().isdisjoint((field.metadata or {}).items()):
        return False
    return not any(
        pa.types.is_struct(kind) or pa.types.is_union(kind) or pa.types.is_interval(kind)
        for kind in _leaves(field.type)
    )


_CAN_HOLD: dict[str, Callable[[Any], bool]] = {
    "parquet": _fits_parquet,
    "csv": _is_sayable,
    "tsv": _is_sayable,
    "jsonl": _is_sayable,
}


def _text_type(kind: pa.DataType) -> pa.DataType:
    """The type that Arrow's CSV writer is given: its own where it can write it, else text."""
    import pyarrow as pa

    is_own = pa.types.is_primitive(kind) and not pa.types.is_duration(kind)
    return kind if is_own and not pa.types.is_float16(kind) else pa.string()


def _text_column(array: pa.Array, field: pa.Field, first_row: int) -> pa.Array:
    """A column for Arrow's CSV writer: a type that it writes, and no value that it cannot say."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    with _naming(field.name, first_row):
        if pa.types.is_nested(array.type):
            texts = [json_text(value) for value in _json_values(array)]
            return pa.array(texts, pa.string())
        if pa.types.is_temporal(array.type):
            _check_sayable(array)
        return array if array.type == field.type else array.cast(field.type)


def _json_column(array: pa.Array, field: pa.Field, first_row: int) -> list[Any]:
    import msgspec

    if is_json_text(field):
        return [None if text is None else msgspec.Raw(text.encode()) for text in objects(array)]
    with _naming(field.name, first_row):
        return _json_values(array)


class _UnsayableError(ValueError):
    """A value for which the format has no word.

    :param place: of the value in its column, or of the row's value that holds it
    """

    def __init__(self, place: int, found: str) -> None:
        super().__init__(place, found)
        self.place, self.found = place, found


@contextmanager
def _naming(column: str, first_row: int) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except _UnsayableError as error:
        raise DatasetError(
            f"row {first_row + error.place}, column {column!r}: found {error.found}; leave the column "
            "out with keep_columns, or write Parquet"
        ) from None
    except pa.ArrowException as error:
        raise DatasetError(
            f"column {column!r}, from row {first_row} on: found values that cannot be written as text "
            f"({error}); leave the column out with keep_columns, or write Parquet"
        ) from None


def _json_values(array: pa.Array) -> list[Any]:
    """Values that JSON can carry; dates and decimals as their text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        return _json_values(array.dictionary_decode())
    if pa.types.is_floating(kind):
        endless = pc.is_inf(array.cast(pa.float64())).fill_null(False)
        if pc.any(endless).as_py():
            raise _UnsayableError(
                objects(endless).index(True), "an infinity, which JSON does not have"
            )
        return objects(array)
    if pa.types.is_struct(kind):
        return _json_structs(array)
    if pa.types.is_nested(kind):
        return _json_lists(array)
    if pa.types.is_temporal(kind):
        _check_sayable(array)
        return objects(array.cast(pa.string()))
    return objects(array.cast(pa.string()) if pa.types.is_decimal(kind) else array)


def _json_structs(array: pa.Array) -> list[Any]:
    kind = array.type
    names = [kind.field(place).name for place in range(kind.num_fields)]
    columns = [_json_values(item) for item in array.flatten()]
    rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
    return [
        dict(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, objects(array.is_valid()), strict=True)
    ]


def _json_lists(array: pa.Array) -> list[Any]:
    lengths = [len(item) if item.is_valid else 0 for item in array]
    try:
        values = iter(_json_values(array.flatten()))
    except _UnsayableError as error:
        ends = list(accumulate(lengths))
        raise _UnsayableError(bisect_right(ends, error.place), error.found) from None
    return [
        [next(values) for _ in range(length)] if valid else None
        for length, valid in zip(lengths, objects(array.is_valid()), strict=True)
    ]


# --- dates and times -----------------------------------------------------------------------------

_DAY = 24 * 60 * 60
# Days of 0001-01-01 and of 9999-12-31, counted from 1970-01-01.
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
_DATE_TEXT, _TIME_TEXT = re.compile(r"(?!0000)\d{4}-"), re.compile(r"\d")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def _check_sayable(array: pa.Array) -> None:
    """Refuse dates outside of the years 1 to 9999 and times outside of a day.

    Arrow writes "<value out of range: …>" or a year of another number of digits for them, and no
    reader takes that for a date.

    :raises _UnsayableError: with the first of them
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    bounds = _bounds(array.type)
    if bounds is None:
        return
    numbers = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64()).cast(pa.int64())
    ends = pc.min_max(numbers).as_py()
    if ends["min"] is None or (bounds[0] <= ends["min"] and ends["max"] < bounds[1]):
        # A zone that Arrow does not know is found here, while the column is known.
        array.slice(0, 1).cast(pa.string())
        return
    # Near the ends the time zone decides, so the texts are looked at.
    is_time = pa.types.is_time(array.type)
    fits = _TIME_TEXT if is_time else _DATE_TEXT
    for place, text in enumerate(objects(array.cast(pa.string()))):
        if text is not None and not fits.match(text):
            raise _UnsayableError(
                place,
                f"{numbers[place]} for a value of type {array.type}, which is outside of "
                f"{'a day' if is_time else 'the years 1 to 9999'}",
            )


def _bounds(kind: pa.DataType) -> tuple[int, int] | None:
    """The least value that has a text for certain, and the first one above that may have none."""
    import pyarrow as pa

    if pa.types.is_date32(kind):
        return _FIRST_DAY, _LAST_DAY + 1
    if pa.types.is_date64(kind):
        return _FIRST_DAY * _DAY * 1_000, (_LAST_DAY + 1) * _DAY * 1_000
    if pa.types.is_time(kind):
        return 0, _DAY * _PER_SECOND[kind.unit]
    if pa.types.is_timestamp(kind):
        second, tolerance = _PER_SECOND[kind.unit], 0 if kind.tz is None else _largest_offset(kind)
        return _FIRST_DAY * _DAY * second + tolerance, (_LAST_DAY + 1) * _DAY * second - tolerance
    return None


def _largest_offset(kind: pa.TimestampType) -> int:
    """How far a zone may move a timestamp, in units of the type; UTC moves none."""
    return 0 if kind.tz in ("UTC", "Z", "+00:00") else _DAY * _PER_SECOND[kind.unit]
