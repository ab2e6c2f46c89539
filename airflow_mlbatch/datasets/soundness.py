"""Whether what a library has read can be what the file holds.

Law: a damaged file is one clear error that names the file and the row. It is neither a library's own
exception nor a table that looks sound. A storage that fails while it is read is not a damaged file:
its own error passes through, so that the task is tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_mlbatch.errors import DatasetError, MLBatchError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["UnpackedFile", "WatchedFile", "check_batch", "shown"]


class UnpackedFile:
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


class WatchedFile:
    """A file for a library to read; it can tell the storage's errors from those of the library.

    Both may be an ``OSError``: Arrow raises one for a page that it cannot decode.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """As the file does it."""
        with self._watching():
            return self._file.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        """As the file does it."""
        with self._watching():
            return self._file.seek(position, whence)

    def tell(self) -> int:
        """As the file does it."""
        return self._file.tell()

    def close(self) -> None:
        """Leave the file open: it belongs to the caller."""

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Never."""
        return False

    def seekable(self) -> bool:
        """Always."""
        return True

    @contextmanager
    def refusing(self, found: str) -> Iterator[None]:
        """Turn whatever a library raises about the file's content into a :class:`DatasetError`.

        :param found: the beginning of the message: which file, and where in it
        """
        try:
            yield
        except MLBatchError:
            raise
        except Exception as error:
            if self._failure is not None:
                raise
            raise DatasetError(f"{found} ({error})") from error

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._failure = error
            raise


def check_batch(batch: pa.RecordBatch, where: str, first_row: int) -> None:
    """Check that texts are UTF-8 and that no value points outside of its column.

    :param first_row: the row of the table that the batch begins with
    :raises DatasetError: names the column, and the row of a text
    """
    import pyarrow as pa

    for field, column in zip(batch.schema, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            place = _first_bad(column)
            last = first_row + len(column) - 1
            where += (
                f", rows {first_row} to {last}" if place is None else f", row {first_row + place}"
            )
            found = f"found values that make no sense ({error}); the file is damaged"
            if place is not None and _is_text(column):
                found = f"found {_as_bytes(column[place])!r:.80}, expected UTF-8"
            raise DatasetError(f"{where}, column {field.name!r}: {found}") from error


def _first_bad(column: pa.Array) -> int | None:
    """The place of the first value that is not valid, ``None`` where Arrow only knows of a whole."""
    import pyarrow as pa

    if pa.types.is_nested(column.type) or pa.types.is_dictionary(column.type):
        return None
    for place in range(len(column)):
        try:
            column.slice(place, 1).validate(full=True)
        except pa.ArrowInvalid:
            return place
    return None


def _is_text(column: pa.Array) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _as_bytes(cell: pa.Scalar) -> bytes:
    return b"" if not cell.is_valid else bytes(cell.as_buffer())


def shown(scalar: pa.Scalar) -> str:
    """A value for a message, also one that Python has no object for.

    A date in the year 300,000, a time zone that nobody knows: each makes Arrow raise something else.
    """
    try:
        return str(scalar)
    except Exception:
        raw: Any = getattr(scalar, "value", None)
        return f"a value of type {scalar.type}" if raw is None else f"{raw} ({scalar.type})"
