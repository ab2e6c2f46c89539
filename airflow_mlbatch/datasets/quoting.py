"""Quotes in CSV and TSV: which are allowed, and where the first wrong one stands.

Law: a quote opens or closes a whole cell, or it is one of a pair inside a quoted cell (RFC 4180).
Anything else is refused. Lenient readers guess instead, and a single inch mark can make them take the
rest of a file for one cell.

The check runs over the bytes of a file before they are split into cells, so it has to be fast:
:class:`QuoteCheck` only says whether there is a wrong quote. :func:`explain` then reads the file once
more, line by line, and finds its place.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias, get_args

from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.documents import BYTE_ORDER_MARK

__all__ = [
    "QUOTINGS",
    "QuoteCheck",
    "Quoting",
    "WrongQuote",
    "check_quoting",
    "explain",
    "rows_and_lines",
]

Quoting: TypeAlias = Literal["double", "none"]
QUOTINGS: tuple[Quoting, ...] = get_args(Quoting)
_EXPECTED = (
    "expected quotes only around a whole cell, and doubled inside it; "
    'input_quoting="none" reads quotes as ordinary text'
)
_SHOWN = 30
_QUOTE = ord('"')


def check_quoting(found: object) -> Quoting:
    """Check the name of a way to read quotes.

    :raises DatasetError: it is neither ``double`` nor ``none``
    """
    if found not in QUOTINGS:
        raise DatasetError(
            f"input_quoting: found {found!r:.80}, expected one of {', '.join(QUOTINGS)}"
        )
    return found


class WrongQuote(Exception):
    """A file has a quote that is not allowed where it stands."""


class QuoteCheck:
    """Checks the quotes of one file, piece by piece.

    :param delimiter: what stands between two cells
    """

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter.encode()
        # The last byte, before it the one that a quote at the end is judged by.
        self._tail = b"\n"
        self._is_first, self._is_open = True, False
        self._bits: _Bits | None = None

    def take(self, data: bytes) -> None:
        """Check the next piece.

        :raises WrongQuote: it has one
        """
        if self._is_first:
            self._is_first, data = False, data.removeprefix(BYTE_ORDER_MARK)
        if not data:
            return
        if self._tail[-1] == _QUOTE or b'"' in data:
            self._bits = self._bits or _Bits(self._delimiter)
            self._is_open = self._bits.judge(self._tail, data, self._is_open)
        last_two = self._tail[-1:] + data[-2:]
        self._tail = last_two[-2:] if data[-1] == _QUOTE else data[-1:]

    def finish(self) -> None:
        """Check the last quote, and that no cell is left open.

        :raises WrongQuote: one is
        """
        self.take(b"\n")
        if self._is_open:
            raise WrongQuote


# Bytes that are judged together: their bits stay in the processor's cache.
_AT_ONCE = 128 * 1024


class _Bits:
    """Judges many quotes at a time, one bit for each byte.

    A quote that opens a cell needs the end of another cell before it, a quote that closes one needs
    an end after it. The second quote of a pair inside a cell may be seen as one that closes the cell
    and the next as one that opens it again: then a neighbour that is itself a quote is as good as an
    end. So up to the first wrong quote, opening and closing ones alternate, and which is which
    follows from how many quotes stand before it: the parity of that number, for all bits of a word, is
    six shifts with exclusive-or, and then the parities of the words before it are added.

    To list the places of the quotes and look at each costs twice as much in a file full of them.
    """

    def __init__(self, delimiter: bytes) -> None:
        import numpy as np

        self._delimiter = delimiter
        self._is_quote, self._is_end, self._is_one = (np.zeros(_AT_ONCE, bool) for _ in range(3))
        self._before, self._after, self._shifted = (
            np.zeros(_AT_ONCE // 64, np.uint64) for _ in range(3)
        )

    def judge(self, tail: bytes, data: bytes, is_open: bool) -> bool:
        """Judge the quotes of a block.

        The first byte was judged before. The last one is left out, because its neighbour is not
        known yet.

        :param tail: one or two bytes that stand before ``data``
        :param is_open: whether it begins inside a quoted cell
        :return: whether it ends inside one
        :raises WrongQuote: there is one
        """
        import numpy as np

        # Windows files are rare enough to pay for the second kind of line end only there.
        ends = [*self._delimiter, *(b"\r\n" if b"\r" in data or b"\r" in tail else b"\n")]
        # Parts overlap by two bytes, which are judged with their neighbours once.
        place = _AT_ONCE - len(tail)
        part = np.frombuffer(tail + data[:place], np.uint8)
        cells = np.frombuffer(data, np.uint8)
        while len(part) > 2:
            is_open = self._judge(part, ends, is_open)
            part = cells[place - 2 : place - 2 + _AT_ONCE]
            place += _AT_ONCE - 2
        return is_open

    def _judge(self, cells: Any, end_bytes: list[int], is_open: bool) -> bool:
        quotes, ends = self._mark(cells, end_bytes)
        is_opening, is_open = self._opening(quotes, is_open)
        one, last = quotes.dtype.type(1), quotes.dtype.type(63)
        before, after = self._before, self._after
        # An end one byte earlier and one byte later, across the edges of the words.
        before[:] = ends << one
        before[1:] |= ends[:-1] >> last
        after[:] = ends >> one
        after[:-1] |= ends[1:] << last
        before &= is_opening
        after &= ~is_opening
        if (quotes & ~(before | after)).any():
            raise WrongQuote
        return is_open

    def _mark(self, cells: Any, ends: list[int]) -> tuple[Any, Any]:
        """Bits for the quotes to judge, and for the bytes that are good neighbours."""
        import numpy as np

        size = len(cells)
        is_quote, is_end, is_one = self._is_quote[:size], self._is_end[:size], self._is_one[:size]
        np.equal(cells, _QUOTE, out=is_quote)
        is_end[:] = is_quote
        for end in ends:
            np.logical_or(is_end, np.equal(cells, end, out=is_one), out=is_end)
        is_quote[0] = is_quote[-1] = False
        self._is_quote[size:] = False
        quote_bits, end_bits = (
            np.packbits(bits, bitorder="little").view("<u8")
            for bits in (self._is_quote, self._is_end)
        )
        return quote_bits, end_bits

    def _opening(self, quotes: Any, is_open: bool) -> tuple[Any, bool]:
        """Bits for the bytes with an even number of quotes before them, and the state at the end."""
        import numpy as np

        odd, shifted = quotes.copy(), self._shifted
        # Afterwards each bit is the parity of all bits of its word up to and with itself.
        for width in (1, 2, 4, 8, 16, 32):
            np.left_shift(odd, np.uint64(width), out=shifted)
            odd ^= shifted
        words = odd >> np.uint64(63)
        parities = np.bitwise_xor.accumulate(words)
        ends_open = bool(parities[-1]) ^ is_open
        # The parity of everything before each word, as no bit or all bits of it.
        parities ^= words
        if is_open:
            parities ^= np.uint64(1)
        odd ^= np.negative(parities)
        return odd, ends_open


# --- where it stands -----------------------------------------------------------------------------


def explain(file: BinaryIO, delimiter: str, where: str, *, has_one_column: bool) -> DatasetError:
    """The error for a file that has a wrong quote.

    :param file: at its beginning
    """
    opened: tuple[Line, int] | None = None
    for line in rows_and_lines(file, "double", has_one_column=has_one_column):
        place = -1
        while (place := line.text.find('"', place + 1)) >= 0:
            if opened is None:
                before = line.text[place - 1 : place] or delimiter
                if before not in ('"', delimiter):
                    return _error(where, line.number, line, place, "a quote inside a cell")
                opened = line, place
            else:
                after = line.text[place + 1 : place + 2] or "\n"
                if after not in ('"', delimiter, "\n"):
                    also = "" if line is opened[0] else f" in line {line.number}"
                    found = f"more text after the closing quote of a cell{also}"
                    return _error(where, line.first, line, place, found)
                opened = None
    if opened is None:
        # The file has changed since it was checked.
        return DatasetError(f"{where}: found a quote in the wrong place, {_EXPECTED}")
    line, place = opened
    return _error(where, line.first, line, place, "a quoted cell that is never closed")


def _error(where: str, number: int, line: Line, place: int, found: str) -> DatasetError:
    row = "header" if line.row < 0 else f"row {line.row}"
    near = line.text[max(0, place - _SHOWN) : place + _SHOWN].rstrip("\n")
    return DatasetError(f"{where}, {row} (line {number}): found {found} ({near!r}), {_EXPECTED}")


class Line(NamedTuple):
    """A line of a text table.

    :param number: from 1
    :param row: the row that it belongs to, from 0; the header is -1
    :param first: the line on which that row begins
    """

    number: int
    row: int
    first: int
    text: str


def rows_and_lines(file: BinaryIO, quoting: Quoting, *, has_one_column: bool) -> Iterator[Line]:
    """The lines of a text table that belong to a row, to find the place of something in it.

    Blank lines are no rows, except below the header of a table of one column.

    :param file: at its beginning
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline=None)
    row, first, is_open = -2, 0, False
    try:
        for number, line in enumerate(text, 1):
            if not is_open:
                if line == "\n" and not (has_one_column and row >= -1):
                    continue
                row, first = row + 1, number
            if quoting == "double":
                is_open ^= bool(line.count('"') % 2)
            yield Line(number, row, first, line)
    finally:
        text.detach()
