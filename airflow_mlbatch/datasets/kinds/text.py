"""CSV and TSV: every column is text, every cell as it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_mlbatch.datasets import casting, sayable, textcells
from airflow_mlbatch.datasets.columns import chosen_names
from airflow_mlbatch.datasets.jsonlines import json_text
from airflow_mlbatch.datasets.kinds.kind import Columns, Kind, Sink, Source
from airflow_mlbatch.datasets.quoting import rows_and_lines
from airflow_mlbatch.datasets.rows import RowRange, TableRows
from airflow_mlbatch.protocol.types import TypeName

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TextKind"]


class TextKind(Kind):
    """Cells between delimiters.

    :param delimiter: what stands between two cells
    """

    def __init__(self, name: str, title: str, *other_suffixes: str, delimiter: str) -> None:
        super().__init__(name, title, *other_suffixes)
        self._delimiter = delimiter

    def count(self, source: Source) -> int:
        """As :class:`Kind` says; the file is read through."""
        header, has_rows = self._header(source)
        return self._count(source, header) if has_rows else 0

    def open(self, source: Source, columns: Columns, wanted: RowRange) -> TableRows:
        """As :class:`Kind` says; the file is read up to the end of the range."""
        import pyarrow as pa

        header, has_rows = self._header(source)
        names = chosen_names(columns, header, source.where)
        schema = pa.schema([pa.field(name, pa.string()) for name in names])
        if not has_rows:
            wanted.check_end(source.where, 0)
            return TableRows(schema, iter(()))
        return TableRows(schema, self._rows(source, header, names, wanted))

    def line_of(self, source: Source, row: int) -> int | None:
        """As :class:`Kind` says."""
        header, _ = self._header(source)
        source.file.seek(0)
        lines = rows_and_lines(source.file, source.quoting, has_one_column=len(header) == 1)
        return next((line.number for line in lines if line.row == row), None)

    def to_wire(self, kind: TypeName, column: Any) -> list[Any]:
        """As :class:`Kind` says."""
        return casting.words_to_wire(kind, column)

    def can_hold(self, field: pa.Field) -> bool:
        """As :class:`Kind` says."""
        return sayable.has_texts(field.type)

    def sink(self, file: BinaryIO, schema: pa.Schema) -> Sink:
        """As :class:`Kind` says."""
        return _TextSink(file, schema, self._delimiter)

    def _header(self, source: Source) -> tuple[list[str], bool]:
        return textcells.read_header(source.file, self._delimiter, source.where, source.quoting)

    def _cells(
        self, source: Source, header: Sequence[str], names: Sequence[str], start: int
    ) -> Iterator[pa.RecordBatch]:
        source.file.seek(0)
        return textcells.read_text_cells(
            source.file,
            header,
            # Rows are counted by the cells of a column, also where none is asked for.
            names or header[:1],
            delimiter=self._delimiter,
            where=source.where,
            start=start,
            quoting=source.quoting,
        )

    def _count(self, source: Source, header: Sequence[str]) -> int:
        return sum(batch.num_rows for batch in self._cells(source, header, (), 0))

    def _rows(
        self, source: Source, header: Sequence[str], names: Sequence[str], wanted: RowRange
    ) -> Iterator[pa.RecordBatch]:
        row = wanted.start
        batches = self._cells(source, header, names, row) if row != wanted.stop else iter(())
        for batch in batches:
            if wanted.stop is not None and row + batch.num_rows > wanted.stop:
                batch = batch.slice(0, wanted.stop - row)
            row += batch.num_rows
            if batch.num_rows:
                yield batch.select(list(names))
            if row == wanted.stop:
                return
        # Without a row the table may have ended anywhere before the range.
        is_unknown = row == wanted.start > 0
        wanted.check_end(source.where, self._count(source, header) if is_unknown else row)


class _TextSink:
    def __init__(self, file: BinaryIO, schema: pa.Schema, delimiter: str) -> None:
        import pyarrow as pa
        import pyarrow.csv as arrow_csv

        self._schema = pa.schema([pa.field(field.name, _own_type(field.type)) for field in schema])
        options = arrow_csv.WriteOptions(delimiter=delimiter)
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


def _own_type(kind: pa.DataType) -> pa.DataType:
    """The type that Arrow's CSV writer is given: its own where it can write it, else text."""
    import pyarrow as pa

    is_own = pa.types.is_primitive(kind) and not pa.types.is_duration(kind)
    return kind if is_own and not pa.types.is_float16(kind) else pa.string()


def _text_column(array: pa.Array, field: pa.Field, first_row: int) -> pa.Array:
    """A column for Arrow's CSV writer: a type that it writes, and no value that it cannot say."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    with sayable.naming(field.name, first_row):
        if pa.types.is_nested(array.type):
            texts = [json_text(value) for value in sayable.json_values(array)]
            return pa.array(texts, pa.string())
        sayable.check_dates(array)
        return array if array.type == field.type else array.cast(field.type)
