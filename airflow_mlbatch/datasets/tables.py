"""A table to read, as one value: where it is, how it is written, and which of it is wanted.

Law: the value holds no open file and reads nothing by itself. What it reads, it reads through
:mod:`airflow_mlbatch.datasets.readers`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from airflow_mlbatch.datasets import readers
from airflow_mlbatch.datasets.column_types import ColumnTypes, types_of_columns
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.quoting import Quoting
from airflow_mlbatch.datasets.rows import RowRange, TableRows
from airflow_mlbatch.datasets.scored import chosen_columns
from airflow_mlbatch.protocol.services import Parameter, Service
from airflow_mlbatch.protocol.types import TypeName

__all__ = ["InputTable"]


@dataclass(frozen=True)
class InputTable:
    """A table that is scored, or a range of its rows.

    :param path: made with the connection of its storage
    :param format: where the name does not tell it
    :param quoting: ``none`` for CSV and TSV in which quotes are ordinary text
    :param columns: ``{input: column}`` for inputs whose column has another name
    :param rows: the rows that are wanted; ``None`` for all of them
    :param keep_columns: ``"all"`` columns for the scored table, a list of them, or ``None``
    :param id_columns: columns that are kept, too, and come first
    :param column_types: types of kept columns of CSV and TSV
    """

    path: StoragePath
    format: str | None = None
    quoting: Quoting = "double"
    columns: Mapping[str, str] | None = None
    rows: RowRange | None = None
    keep_columns: Literal["all"] | Sequence[str] | None = "all"
    id_columns: Sequence[str] = ()
    column_types: ColumnTypes = "text"

    @property
    def first_row(self) -> int:
        """The zero-based row of the table that the first record comes from."""
        return 0 if self.rows is None else self.rows.start

    # --- rows ------------------------------------------------------------------------------------

    def count_rows(self) -> int:
        """The rows of the whole table.

        :raises DatasetError: there is no such table, or it cannot be read
        """
        return readers.count_rows(self.path, self.format, self.quoting)

    def has_rows(self) -> bool:
        """Whether there is a row in the range.

        :raises DatasetError: the table cannot be read
        """
        with self.open() as rows:
            return any(batch.num_rows for batch in rows)

    @contextlib.contextmanager
    def open(self, columns: Sequence[str] | None = None) -> Iterator[TableRows]:
        """The rows of the range, block by block; the file is closed after the ``with`` block.

        :param columns: names of columns, ``None`` for all of them
        :raises DatasetError: a column is not there, or the table cannot be read
        """
        rows = readers.open_rows(self.path, columns, self.rows, self.format, self.quoting)
        with contextlib.closing(rows.batches):  # type: ignore[type-var]
            yield rows

    # --- inputs of the service -------------------------------------------------------------------

    def encode(
        self, inputs: Sequence[Parameter], indexes: Sequence[int] | None = None
    ) -> tuple[bytes, int]:
        """The body that starts a batch, and the number of records in it.

        :param indexes: only these records of the range, ascending
        :raises RecordError, DatasetError: as :func:`airflow_mlbatch.datasets.readers.input_blocks`
        """
        return readers.encode_inputs(self.path, inputs, **self._options(indexes))

    def read_inputs(
        self, inputs: Sequence[Parameter], indexes: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """A few records as the service gets them, under the names of the table's columns.

        :param indexes: only these records of the range, ascending
        :raises RecordError, DatasetError: as :func:`airflow_mlbatch.datasets.readers.input_blocks`
        """
        columns, count = readers.read_inputs(self.path, inputs, **self._options(indexes))
        names = dict(zip(columns, self.input_columns(inputs), strict=True))
        return [
            {names[name]: values[place] for name, values in columns.items()}
            for place in range(count)
        ]

    def input_columns(self, inputs: Sequence[Parameter]) -> list[str]:
        """The columns that the inputs come from, in the order of the inputs."""
        named = self.columns or {}
        return [named.get(each.name, each.name) for each in inputs]

    def _options(self, indexes: Sequence[int] | None) -> dict[str, Any]:
        return {
            "columns": self.columns,
            "row_range": self.rows,
            "format": self.format,
            "quoting": self.quoting,
            "indexes": None if indexes is None else [self.first_row + each for each in indexes],
        }

    def check_inputs(self, inputs: Sequence[Parameter], row_count: int) -> None:
        """Whether the table has a column for each input, and the first row fits.

        :param row_count: rows of the table, from :meth:`count_rows`
        :raises RecordError, DatasetError: as :func:`airflow_mlbatch.datasets.readers.input_blocks`
        """
        first = replace(self, rows=RowRange(0, min(1, row_count)))
        first.read_inputs(inputs)

    # --- columns of the scored table -------------------------------------------------------------

    def kept_columns(self, outputs: Sequence[Parameter], present: Sequence[str]) -> list[str]:
        """The columns that go into the scored table, in order.

        :param present: the columns that the range of rows has shown
        :raises DatasetError: a column is not there, or its name is taken
        """
        return chosen_columns(
            self._with_hidden(present),
            outputs,
            keep_columns=self.keep_columns,
            id_columns=self.id_columns,
        )

    def _with_hidden(self, present: Sequence[str]) -> Sequence[str]:
        """The columns, and those of other rows that were asked for by name."""
        kept = self.keep_columns
        asked = {*self.id_columns, *(kept if kept is not None and kept != "all" else ())}
        if self.rows is None or asked <= set(present):
            return present
        # A key that no row of the range has is no less a column of JSON Lines.
        with replace(self, rows=None).open() as rows:
            names = rows.schema.names
        return [*present, *(name for name in names if name in asked and name not in present)]

    @contextlib.contextmanager
    def open_scored(
        self, service: Service, *, has_rejects: bool
    ) -> Iterator[tuple[TableRows, list[str]]]:
        """The rows that were scored, and which of their columns are kept.

        Only columns that are kept, that are shown in an error or that go into the rejects are read.

        :param has_rejects: whether the failed rows are written with all of their columns
        :raises DatasetError: a column is not there, or its name is taken
        """
        with self.open() as rows:
            present = rows.schema.names
            kept = self.kept_columns(service.outputs, present)
            wanted = list(dict.fromkeys([*kept, *self.input_columns(service.inputs)]))
            if has_rejects:
                wanted = list(dict.fromkeys([*present, *wanted]))
            if set(wanted) == set(present):
                yield rows, kept
                return
        with self.open(wanted) as rows:
            yield rows, kept

    def types_of(
        self, kept: Sequence[str], inputs: Sequence[Parameter], output_format: str
    ) -> dict[str, TypeName]:
        """The types of kept columns, by a look at the whole table also where only a range is scored.

        :param output_format: of the scored table
        :raises DatasetError: types were asked for that the table does not need
        """
        return types_of_columns(
            self.column_types,
            self.path,
            kept,
            inputs,
            columns=self.columns,
            format=self.format,
            output_format=output_format,
            quoting=self.quoting,
        )
