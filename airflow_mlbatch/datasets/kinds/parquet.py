"""Parquet: typed columns, read group by group.

Law: a file whose counts disagree is refused. Each row group has the number of rows that it states,
and the groups add up to what the footer states, or nobody knows which rows are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_mlbatch.datasets.soundness import WatchedFile, check_batch
from airflow_mlbatch.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetTable"]

# Rows in one batch: some megabytes for a table of ordinary width.
_BATCH_ROWS = 65_536


class ParquetTable:
    """An open Parquet file.

    :param raw: seekable
    :param where: what an error calls the file
    :raises DatasetError: it is no Parquet file, or its counts disagree
    """

    def __init__(self, raw: BinaryIO, where: str) -> None:
        import pyarrow.parquet as parquet

        self._raw, self._where = WatchedFile(raw), where
        with self._raw.refusing(f"{where}: found no Parquet file that can be read"):
            self._file: Any = parquet.ParquetFile(self._raw)
            self.schema: pa.Schema = self._file.schema_arrow
            # Names that are not UTF-8 are found here.
            self.names = list(self.schema.names)
            metadata = self._file.metadata
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            self._groups = [int(group.num_rows) for group in groups]
            self.row_count = int(metadata.num_rows)
            self._check_sum()
            for number, group in enumerate(groups):
                self._check_values(number, group)

    def _check_values(self, number: int, group: Any) -> None:
        """A column that is no list has a value, or a gap, for each row; Arrow reads on without."""
        leaves = self._file.schema
        for place in range(len(leaves)):
            values, leaf = int(group.column(place).num_values), leaves.column(place)
            is_short = values < group.num_rows
            if is_short or (values > group.num_rows and leaf.max_repetition_level == 0):
                raise DatasetError(
                    f"{self._where}: found {group.num_rows:,} rows stated by row group {number} and "
                    f"{values:,} values in its column {leaf.path!r}, expected one for each row; the "
                    "file is damaged"
                )

    def _check_sum(self) -> None:
        total = sum(self._groups)
        if self.row_count < 0 or min(self._groups, default=0) < 0 or total != self.row_count:
            raise DatasetError(
                f"{self._where}: found a footer that states {self.row_count:,} rows and row groups "
                f"that add up to {total:,}, expected the same number; the file is damaged"
            )

    def batches(self, names: Sequence[str], start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Some columns of the rows ``start`` to ``stop``; only the groups that hold them are read.

        :raises DatasetError: a page cannot be read, a text is not UTF-8, or a group has another
            number of rows than it states
        """
        import pyarrow as pa

        schema = pa.schema([self.schema.field(name) for name in names])
        first = 0
        for group, size in enumerate(self._groups):
            if first < stop and first + size > start:
                for row, batch in self._of_group(group, names, first):
                    low, high = max(start - row, 0), min(stop - row, batch.num_rows)
                    if low < high:
                        part = batch.slice(low, high - low)
                        yield pa.RecordBatch.from_arrays(part.columns, schema=schema)
            first += size

    def _of_group(
        self, group: int, names: Sequence[str], first: int
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The batches of a group, each with the row that it begins with."""
        row, end = first, first + self._groups[group]
        with self._refusing(row):
            batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(names))
        while row <= end:
            with self._refusing(row):
                batch = next(batches, None)
                if batch is None:
                    break
                # By name: "s" also brings the column "s.x" along.
                batch = batch.select(list(names))
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
