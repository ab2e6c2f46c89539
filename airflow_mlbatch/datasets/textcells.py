"""CSV and TSV as record batches of text: every cell exactly as it stands, never guessed at.

Law: an unquoted empty cell is null and ``""`` is the empty text, so that the two stay apart; no
column gets another type than text, so that ``007`` stays ``007``.

The dialect is RFC 4180: quotes are doubled inside quotes, a quoted cell may hold line ends, the
first line names the columns. Quotes in other places are refused
(:mod:`airflow_mlbatch.datasets.quoting`); with ``quoting="none"`` they are ordinary text, and each
line is a row. UTF-8, with or without byte order mark. Blank lines are skipped, except in a table of
one column, where a blank line is a row whose only cell is empty.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from airflow_mlbatch.datasets.columns import refuse_duplicates
from airflow_mlbatch.datasets.quoting import QuoteCheck, Quoting, WrongQuote, explain
from airflow_mlbatch.datasets.soundness import check_batch
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.documents import BYTE_ORDER_MARK

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_header", "read_text_cells"]

_MIB = 1024 * 1024
# Small blocks: with larger ones the allocator keeps hundreds of megabytes that nobody uses.
_BLOCK = _MIB
# A cell can hold a whole data.frame as JSON: a block grows up to this when a row does not fit in.
_LARGEST_BLOCK = 512 * _MIB
_HEAD = 8192


def read_header(
    file: BinaryIO, delimiter: str, where: str, quoting: Quoting = "double"
) -> tuple[list[str], bool]:
    """Names of the columns, and whether anything follows them.

    :param file: seekable, at its beginning
    :raises DatasetError: the file is empty, is not UTF-8, has a quote in the wrong place, or has two
        columns of one name
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        checked = _checked(text, QuoteCheck(delimiter)) if quoting == "double" else text
        lines = csv.reader(
            checked,
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if quoting == "double" else csv.QUOTE_NONE,
        )
        header = next((line for line in lines if line), None)
        has_rows = text.read(1) != ""
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{where}, header: found {error.object[:40]!r}, expected UTF-8"
        ) from None
    except WrongQuote:
        text.detach()
        file.seek(0)
        raise explain(file, delimiter, where, has_one_column=False) from None
    except csv.Error as error:
        raise DatasetError(f"{where}, header: found no line of column names ({error})") from None
    finally:
        with contextlib.suppress(ValueError):
            text.detach()
    if header is None:
        raise DatasetError(f"{where}: found an empty file, expected a line of column names")
    refuse_duplicates(header, f"{where}, header")
    return header, has_rows


def _checked(lines: Iterable[str], check: QuoteCheck) -> Iterator[str]:
    """Lines of the header, each after its quotes were checked."""
    for line in lines:
        check.take(line.encode())
        yield line
    check.finish()


def read_text_cells(
    file: BinaryIO,
    header: Sequence[str],
    columns: Sequence[str],
    *,
    delimiter: str,
    where: str,
    start: int = 0,
    quoting: Quoting = "double",
) -> Iterator[pa.RecordBatch]:
    """Batches of text columns from row ``start`` on, in table order.

    :param file: seekable, at its beginning
    :param header: from :func:`read_header`, not empty
    :param columns: those to read, at least one
    :param quoting: ``none`` for a table in which quotes are ordinary text
    :raises DatasetError: a row with too few or too many cells, a quote in the wrong place, or bytes
        that are not UTF-8, with the row's index
    """
    import pyarrow as pa

    block, row = _BLOCK, start
    # In a table of one column Arrow would take the first of them for the header.
    blank = _blank_lines_before_header(file) if len(header) == 1 else 0
    while True:
        reader, seen = _Rows(file, header, columns, delimiter, block, blank, quoting), 0
        try:
            for batch in reader:
                first, seen = seen, seen + batch.num_rows
                # Arrow could pass over rows itself, but it takes blank lines for some of them.
                if seen <= row:
                    continue
                batch = batch.slice(row - first)
                check_batch(batch, where, row)
                yield batch
                row = seen
        except WrongQuote:
            file.seek(0)
            raise explain(file, delimiter, where, has_one_column=len(header) == 1) from None
        except pa.ArrowInvalid as error:
            if not _TOO_LARGE.search(str(error)) or block >= _LARGEST_BLOCK:
                raise DatasetError(f"{where}, {_explained(row, error)}") from None
            block *= 8
            file.seek(0)
        else:
            return


def _blank_lines_before_header(file: BinaryIO) -> int:
    """How many lines :func:`read_header` has passed over; the file is at its beginning again."""
    head = b""
    while more := file.read(_HEAD):
        head = (head + more).removeprefix(BYTE_ORDER_MARK)
        if head.strip(b"\r\n"):
            break
    file.seek(0)
    return next((place for place, line in enumerate(head.splitlines()) if line), 0)


class _Rows:
    """One pass of Arrow's reader over the file."""

    def __init__(
        self,
        file: BinaryIO,
        header: Sequence[str],
        columns: Sequence[str],
        delimiter: str,
        block: int,
        blank: int,
        quoting: Quoting,
    ) -> None:
        self._blank, self._quoting = blank, quoting
        check = QuoteCheck(delimiter) if quoting == "double" else None
        self._file, self._columns = _Unclosed(file, check), list(columns)
        self._header = list(header)
        self._delimiter, self._block = delimiter, block

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import pyarrow.csv as arrow_csv

        reader = None
        try:
            reader = arrow_csv.open_csv(
                pa.PythonFile(self._file, "r"),
                # One thread: the file belongs to this one, and rows keep their numbers.
                read_options=arrow_csv.ReadOptions(
                    use_threads=False, block_size=self._block, skip_rows=self._blank
                ),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char='"' if self._quoting == "double" else False,
                    newlines_in_values=self._quoting == "double",
                    ignore_empty_lines=len(self._header) > 1,
                ),
                convert_options=arrow_csv.ConvertOptions(
                    include_columns=self._columns,
                    column_types=dict.fromkeys(self._columns, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    check_utf8=False,
                ),
            )
            while True:
                try:
                    yield reader.read_next_batch()
                except StopIteration:
                    return
        finally:
            if reader is not None:
                reader.close()
            self._file.take_back()


# What Arrow says of a row, or of a header, that does not fit into a block.
_TOO_LARGE = re.compile("straddling object|cannot infer number of columns")
# What Arrow says of a row with too many or too few cells. Its handler for such rows would give the
# parts, but it loses them where the row is not UTF-8.
_BAD_ROW = re.compile(r"(?:Row #(\d+): )?Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)


def _explained(row: int, error: Exception) -> str:
    bad = _BAD_ROW.search(str(error))
    if bad is None:
        return f"after row {row}: {error}"
    number, expected, found, text = bad.groups()
    # Arrow counts the header as row 1.
    index = "a row" if number is None else f"row {int(number) - 2}"
    return f"{index}: found {found} cells ({text!r:.120}), expected {expected}"


class _Unclosed(io.RawIOBase):
    """Lends a file to Arrow, which closes what it is given.

    Arrow reads ahead on a thread of its own, also with ``use_threads=False``, and closing its reader
    does not wait for that thread: taken back, the file is no longer read behind our back.

    Quotes are checked here, before Arrow sees them: Arrow takes the end of the file for the end of a
    cell that was never closed.
    """

    def __init__(self, file: BinaryIO, check: QuoteCheck | None) -> None:
        self._file, self._check = file, check
        self._last = b"\n"
        self._lock, self._is_lent = threading.Lock(), True

    def take_back(self) -> None:
        """From now on Arrow finds the end of the file here."""
        with self._lock:
            self._is_lent = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self._lock:
            return self._read(size) if self._is_lent else b""

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        if self._check is not None and data:
            self._check.take(data)
        elif self._check is not None:
            self._check.finish()
            self._check = None
        if not data and self._last not in b"\r\n":
            # Arrow takes an empty cell at the very end of the file for a quoted one.
            data = b"\n"
        self._last = data[-1:] or self._last
        return data
