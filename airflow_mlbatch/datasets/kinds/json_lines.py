"""JSON Lines: a JSON object on each line, and every value shows its own type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from airflow_mlbatch.datasets import casting, jsonlines, sayable
from airflow_mlbatch.datasets.casting import objects
from airflow_mlbatch.datasets.kinds.kind import Columns, InputBlock, Kind, Sink, Source
from airflow_mlbatch.datasets.rows import RowRange, TableRows
from airflow_mlbatch.protocol.types import TYPES, TypeName

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JsonLinesKind"]


class JsonLinesKind(Kind):
    """A JSON object on each line."""

    has_value_types: ClassVar[bool] = True

    def count(self, source: Source) -> int:
        """As :class:`Kind` says; the file is read through, but its lines are not decoded."""
        source.file.seek(0)
        return sum(map(len, jsonlines.read_lines(source.file)))

    def open(self, source: Source, columns: Columns, wanted: RowRange) -> TableRows:
        """Open a table as :class:`Kind` says, in two passes.

        A column has the type of all its values, and the last one may differ from the first.
        """
        only = None if columns is None else list(dict.fromkeys(columns.values()))
        lines = jsonlines.read_lines(source.file, wanted.start, wanted.stop)
        schema = jsonlines.scan_schema(lines, source.where, wanted.start, only)
        return TableRows(schema, self._batches(source, schema, wanted))

    def _batches(
        self, source: Source, schema: pa.Schema, wanted: RowRange
    ) -> Iterator[pa.RecordBatch]:
        import msgspec
        import pyarrow as pa

        names = schema.names
        for row, lines in self._lines(source, wanted):
            found = jsonlines.columns_of(lines, names, source.where, row)
            arrays = [
                jsonlines.to_arrow(
                    [None if value is msgspec.UNSET else value for value in found[field.name]],
                    field,
                    source.where,
                )
                for field in schema
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def inputs(
        self, source: Source, columns: Mapping[str, str], wanted: RowRange
    ) -> Iterator[InputBlock]:
        """As :class:`Kind` says, in one pass: the service declares the types."""
        import msgspec

        names = list(dict.fromkeys(columns.values()))
        for row, lines in self._lines(source, wanted):
            found = jsonlines.columns_of(lines, names, source.where, row)
            for field, column in columns.items():
                if msgspec.UNSET in found[column]:
                    place = found[column].index(msgspec.UNSET)
                    raise jsonlines.missing_key(column, field, lines, place, source.where, row)
            of_lines = {
                name: jsonlines.JsonColumn(values, name, lines) for name, values in found.items()
            }
            yield InputBlock(of_lines, len(lines))

    def line_of(self, source: Source, row: int) -> int | None:
        """As :class:`Kind` says."""
        return jsonlines.line_of(source.file, row)

    def to_wire(self, kind: TypeName, column: Any) -> list[Any]:
        """As :class:`Kind` says."""
        values = column.exact() if TYPES[kind].is_whole else column
        return casting.json_to_wire(kind, values)

    def can_hold(self, field: pa.Field) -> bool:
        """As :class:`Kind` says."""
        return sayable.has_texts(field.type)

    def sink(self, file: BinaryIO, schema: pa.Schema) -> Sink:
        """As :class:`Kind` says."""
        return _JsonSink(file, schema)

    def _lines(self, source: Source, wanted: RowRange) -> Iterator[tuple[int, list[bytes]]]:
        """Blocks of lines, each with the row that it begins with."""
        source.file.seek(0)
        row = wanted.start
        for lines in jsonlines.read_lines(source.file, wanted.start, wanted.stop):
            yield row, lines
            row += len(lines)
        # Without a row the table may have ended anywhere before the range.
        is_unknown = row == wanted.start > 0
        wanted.check_end(source.where, self.count(source) if is_unknown else row)


class _JsonSink:
    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        import msgspec

        self._file, self._schema, self._names = file, schema, schema.names
        self._row = jsonlines.row_class_for(schema.names)
        self._encoder = msgspec.json.Encoder()

    def write(self, batch: pa.RecordBatch, first_row: int) -> None:
        columns = [
            _json_column(array, field, first_row)
            for array, field in zip(batch.columns, self._schema, strict=True)
        ]
        rows: Iterable[Any]
        if self._row is None:
            rows = (dict(zip(self._names, row, strict=True)) for row in zip(*columns, strict=True))
        else:
            # A list: fed from an iterator, msgspec 0.22 forgets to let go of the rows.
            rows = list(map(self._row, *columns))
        self._file.write(self._encoder.encode_lines(rows))

    def close(self) -> None:
        return None


def _json_column(array: pa.Array, field: pa.Field, first_row: int) -> list[Any]:
    import msgspec

    if jsonlines.is_json_text(field):
        return [None if text is None else msgspec.Raw(text.encode()) for text in objects(array)]
    with sayable.naming(field.name, first_row):
        return sayable.json_values(array)
