"""What a format has to offer, so that everything else in this room need not know which one it is.

Law: only the modules of this folder know a format. To add one, write a module with a :class:`Kind` and
add a row to the table in :mod:`airflow_mlbatch.datasets.kinds`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, NamedTuple, Protocol

from airflow_mlbatch.datasets import casting
from airflow_mlbatch.datasets.quoting import Quoting
from airflow_mlbatch.datasets.rows import RowRange, TableRows
from airflow_mlbatch.protocol.types import TypeName

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Columns", "InputBlock", "Kind", "Sink", "Source"]

# Which columns to read, by what each is wanted for (an input, or its own name); None for all.
Columns = Mapping[str, str] | None


@dataclass(frozen=True)
class Source:
    """A table to read.

    :param file: unpacked, can be set to its beginning
    :param where: what errors call it
    :param quoting: how quotes are read, where the format has cells that may be quoted
    """

    file: BinaryIO
    where: str
    quoting: Quoting = "double"


class InputBlock(NamedTuple):
    """Consecutive rows of the columns that a service's inputs come from.

    :param columns: by name, each something that :meth:`Kind.to_wire` takes
    """

    columns: Mapping[str, Sequence[Any]]
    rows: int


class Sink(Protocol):
    """A table that is being written."""

    def write(self, batch: pa.RecordBatch, first_row: int) -> None:
        """Append a batch.

        :raises DatasetError: a value has no place in this format; names row and column
        """

    def close(self) -> None:
        """Write what is left; the file itself stays open."""


class Kind(ABC):
    """A format.

    :param name: what an author calls it, and the suffix of files that this package writes
    :param title: what messages call it
    :param other_suffixes: further ones that files of this format have
    """

    # Whether a file may be packed with gzip as a whole.
    has_gzip: ClassVar[bool] = True
    # Whether a column has one type from its first row to its last, which the file states.
    has_column_types: ClassVar[bool] = False
    # Whether each value shows by itself what it is: a text, a number, a list.
    has_value_types: ClassVar[bool] = False

    def __init__(self, name: str, title: str, *other_suffixes: str) -> None:
        self.name, self.title = name, title
        self.suffixes = (name, *other_suffixes)

    # --- reading ---------------------------------------------------------------------------------

    @abstractmethod
    def count(self, source: Source) -> int:
        """The number of rows.

        :raises DatasetError: the file is not of this format, or it is damaged
        """

    @abstractmethod
    def open(self, source: Source, columns: Columns, wanted: RowRange) -> TableRows:
        """Columns of some rows, in batches.

        :raises RecordError: a column is not there
        :raises DatasetError: the file cannot be read as asked
        """

    def inputs(
        self, source: Source, columns: Mapping[str, str], wanted: RowRange
    ) -> Iterator[InputBlock]:
        """The columns of a service's inputs, block by block.

        :param columns: the column of each input
        """
        for batch in self.open(source, columns, wanted):
            yield InputBlock(dict(zip(batch.schema.names, batch.columns, strict=True)), len(batch))

    def line_of(self, source: Source, row: int) -> int | None:
        """The line of the file, from 1, on which a row begins; ``None`` for a file without lines.

        :param source: a fresh one, which is read up to that line
        """
        return None

    def to_wire(self, kind: TypeName, column: Any) -> list[Any]:
        """A column of an :class:`InputBlock` as JSON values.

        :raises Misfit: with the position of the first value that does not fit
        """
        return casting.typed_to_wire(kind, column)

    # --- writing ---------------------------------------------------------------------------------

    @abstractmethod
    def can_hold(self, field: pa.Field) -> bool:
        """Whether there is a place for every value of a column."""

    @abstractmethod
    def sink(self, file: BinaryIO, schema: pa.Schema) -> Sink:
        """Begin to write a table."""
