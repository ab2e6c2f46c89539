"""Parquet: typed columns, read group by group.

Law: a file whose counts disagree is refused. Each row group has the number of rows that it states,
and the groups add up to what the footer states, or nobody knows which rows are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from airflow_mlbatch.datasets.columns import INDEX_COLUMN, chosen_names, refuse_duplicates
from airflow_mlbatch.datasets.jsonlines import is_asked, is_json_text
from airflow_mlbatch.datasets.kinds.kind import Columns, Kind, Sink, Source
from airflow_mlbatch.datasets.rows import RowRange, TableRows
from airflow_mlbatch.datasets.sayable import leaves
from airflow_mlbatch.datasets.soundness import WatchedFile, check_batch
from airflow_mlbatch.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetKind"]

# Rows in one batch: some megabytes for a table of ordinary width.
_BATCH_ROWS = 65_536


class ParquetKind(Kind):
    """Typed columns in row groups; the file packs itself."""

    has_gzip: ClassVar[bool] = False
    has_column_types: ClassVar[bool] = True

    def count(self, source: Source) -> int:
        """As :class:`Kind` says; only the footer is read."""
        return _OpenFile(source).row_count

    def open(self, source: Source, columns: Columns, wanted: RowRange) -> TableRows:
        """As :class:`Kind` says; only the groups that hold the range are read."""
        file = _OpenFile(source)
        refuse_duplicates(file.names, source.where)
        names = chosen_names(columns, file.names, source.where)
        schema = file.schema_of(names)
        wanted.check_end(source.where, file.row_count)
        stop = file.row_count if wanted.stop is None else wanted.stop
        return TableRows(schema, file.batches(schema, wanted.start, stop))

    def can_hold(self, field: pa.Field) -> bool:
        """Parquet has no empty structs, unions or intervals; mixed values it could only hold as text."""
        import pyarrow as pa

        if is_json_text(field) and not is_asked(field):
            return False
        return not any(
            pa.types.is_struct(kind) or pa.types.is_union(kind) or pa.types.is_interval(kind)
            for kind in leaves(field.type)
        )

    def sink(self, file: BinaryIO, schema: pa.Schema) -> Sink:
        """As :class:`Kind` says."""
        return _ParquetSink(file, schema)


# --- reading -------------------------------------------------------------------------------------


class _OpenFile:
    """A file with its footer read.

    :raises DatasetError: it is no Parquet file, or its counts disagree
    """

    def __init__(self, source: Source) -> None:
        import pyarrow.parquet as parquet

        self._raw, self._where = WatchedFile(source.file), source.where
        with self._raw.refusing(f"{source.where}: found no Parquet file that can be read"):
            self._file: Any = parquet.ParquetFile(self._raw)
            self._schema: pa.Schema = self._file.schema_arrow
            # Names that are not UTF-8 are found here.
            self.names = list(self._schema.names)
            metadata = self._file.metadata
            self._groups = [
                int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)
            ]
            self.row_count = int(metadata.num_rows)
            self._check_sum()
            self._check_empty()

    def _check_empty(self) -> None:
        """A group that states no rows has none; nothing else would ever look into it."""
        for group, rows in enumerate(self._groups):
            if rows == 0 and self.names:
                first = self.names[:1]
                self._file.read_row_group(group, columns=first)
                self._check_values(group, first)

    def _check_values(self, group: int, names: Sequence[str]) -> None:
        """A column that is no list has a value, or a gap, for each row; Arrow stops at the stated rows.

        Only after these columns of the group were read: asked for a column whose metadata are damaged,
        Arrow ends the process.
        """
        leaves, known = self._file.schema, set(names)
        metadata, stated = self._file.metadata.row_group(group), self._groups[group]
        for place in range(len(leaves)):
            leaf = leaves.column(place)
            if not known.isdisjoint(accumulate(leaf.path.split("."), "{}.{}".format)):
                values = int(metadata.column(place).num_values)
                is_more = values > stated and leaf.max_repetition_level == 0
                if values < stated or is_more:
                    raise self._disagreement(group, values, leaf.path)

    def _disagreement(self, group: int, values: int, column: str) -> DatasetError:
        return DatasetError(
            f"{self._where}: found {self._groups[group]:,} rows stated by row group {group} and "
            f"{values:,} values in its column {column!r}, expected one for each row; the file is "
            "damaged"
        )

    def _check_sum(self) -> None:
        total = sum(self._groups)
        if self.row_count < 0 or min(self._groups, default=0) < 0 or total != self.row_count:
            raise DatasetError(
                f"{self._where}: found a footer that states {self.row_count:,} rows and row groups "
                f"that add up to {total:,}, expected the same number; the file is damaged"
            )

    def schema_of(self, names: Sequence[str]) -> pa.Schema:
        """Some columns."""
        import pyarrow as pa

        return pa.schema([self._schema.field(name) for name in names])

    def batches(self, schema: pa.Schema, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """The rows ``start`` to ``stop``; only the groups that hold them are read.

        :raises DatasetError: a page cannot be read, a text is not UTF-8, or a group has another
            number of rows than it states
        """
        import pyarrow as pa

        names, first = list(schema.names), 0
        for group, size in enumerate(self._groups):
            if first < stop and first + size > start:
                for row, batch in self._of_group(group, names, first):
                    low, high = max(start - row, 0), min(stop - row, batch.num_rows)
                    if low < high:
                        part = batch.slice(low, high - low)
                        yield pa.RecordBatch.from_arrays(part.columns, schema=schema)
            first += size

    def _of_group(
        self, group: int, names: list[str], first: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The batches of a group, each with the row that it begins with."""
        row, end = first, first + self._groups[group]
        with self._refusing(row):
            batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=names)
        while row <= end:
            with self._refusing(row):
                batch = next(batches, None)
                if batch is None:
                    break
                if row == first:
                    self._check_values(group, names)
                # By name: "s" also brings the column "s.x" along.
                batch = batch.select(names)
            check_batch(batch, self._where, row)
            yield row, batch
            row += batch.num_rows
        if row != end:
            raise DatasetError(
                f"{self._where}: found {'more' if row > end else f'only {row - first:,}'} rows in row "
                f"group {group}, expected the {end - first:,} that it states (from row {first} on); "
                "the file is damaged"
            )

    def _refusing(self, row: int) -> Any:
        return self._raw.refusing(
            f"{self._where}, near row {row}: found a page that cannot be read"
        )


# --- writing -------------------------------------------------------------------------------------


# A row group for each block of results would be too small: readers and packing want many rows.
_GROUP_ROWS, _GROUP_BYTES = 128 * 1024, 32 * 1024 * 1024


class _ParquetSink:
    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
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
