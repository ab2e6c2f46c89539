"""Rows of a table: which of them, and the batches that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RowRange", "TableRows", "row_range_of"]


@dataclass(frozen=True)
class RowRange:
    """A half-open range of zero-based rows; ``stop=None`` goes to the end of the table.

    :raises DatasetError: start or stop are no whole numbers, or not in this order
    """

    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        numbers = [self.start] if self.stop is None else [self.start, self.stop]
        are_whole = all(type(number) is int for number in numbers)
        if not are_whole or not 0 <= numbers[0] <= numbers[-1]:
            raise _no_range((self.start, self.stop))

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
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise _no_range(found)
    return RowRange(*found)


def _no_range(found: Any) -> DatasetError:
    return DatasetError(
        f"row_range: found {found!r:.80}, expected (start, stop) with whole numbers and "
        "0 <= start <= stop"
    )


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
