"""Values as the text formats write them: what has a text, and what is refused.

Law: what is written reads back. A value without a text is refused with its row and column, never bent.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.datasets.casting import objects
from airflow_mlbatch.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["check_dates", "has_texts", "json_values", "leaves", "naming"]


def leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """The types at the ends of a nested type; a map and an empty struct are ends themselves."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        yield from leaves(kind.value_type)
    elif kind.num_fields and not pa.types.is_map(kind):
        for place in range(kind.num_fields):
            yield from leaves(kind.field(place).type)
    else:
        yield kind


def has_texts(kind: pa.DataType) -> bool:
    """Whether every value of a type has a text: no bytes, maps, intervals or extension types."""
    return all(map(_has_text, leaves(kind)))


def _has_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    return bool(
        (types.is_primitive(kind) and not types.is_interval(kind))
        or types.is_null(kind)
        or types.is_decimal(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    )


class _UnsayableError(ValueError):
    """A value for which the format has no word.

    :param place: of the value in its column, or of the row's value that holds it
    """

    def __init__(self, place: int, found: str) -> None:
        super().__init__(place, found)
        self.place, self.found = place, found


@contextmanager
def naming(column: str, first_row: int) -> Iterator[None]:
    """Name the column, and the row where it is known, of a value that has no text.

    :param first_row: the row that the column's first value belongs to
    :raises DatasetError: there is such a value
    """
    import pyarrow as pa

    try:
        yield
    except _UnsayableError as error:
        raise DatasetError(
            f"row {first_row + error.place}, column {column!r}: found {error.found}; leave the column "
            "out with keep_columns, or write Parquet"
        ) from None
    except pa.ArrowException as error:
        raise DatasetError(
            f"column {column!r}, from row {first_row} on: found values that cannot be written as text "
            f"({error}); leave the column out with keep_columns, or write Parquet"
        ) from None


def json_values(array: pa.Array) -> list[Any]:
    """Values that JSON can carry; dates and decimals as their text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if pa.types.is_dictionary(kind):
        return json_values(array.dictionary_decode())
    if pa.types.is_floating(kind):
        endless = pc.is_inf(array.cast(pa.float64())).fill_null(False)
        if pc.any(endless).as_py():
            raise _UnsayableError(
                objects(endless).index(True), "an infinity, which JSON does not have"
            )
        return objects(array)
    if pa.types.is_struct(kind):
        return _json_structs(array)
    if pa.types.is_nested(kind):
        return _json_lists(array)
    if pa.types.is_temporal(kind):
        check_dates(array)
        return objects(array.cast(pa.string()))
    return objects(array.cast(pa.string()) if pa.types.is_decimal(kind) else array)


def _json_structs(array: pa.Array) -> list[Any]:
    kind = array.type
    names = [kind.field(place).name for place in range(kind.num_fields)]
    columns = [json_values(item) for item in array.flatten()]
    rows = zip(*columns, strict=True) if columns else iter([()] * len(array))
    return [
        dict(zip(names, row, strict=True)) if valid else None
        for row, valid in zip(rows, objects(array.is_valid()), strict=True)
    ]


def _json_lists(array: pa.Array) -> list[Any]:
    lengths = [len(item) if item.is_valid else 0 for item in array]
    try:
        values = iter(json_values(array.flatten()))
    except _UnsayableError as error:
        ends = list(accumulate(lengths))
        raise _UnsayableError(bisect_right(ends, error.place), error.found) from None
    return [
        [next(values) for _ in range(length)] if valid else None
        for length, valid in zip(lengths, objects(array.is_valid()), strict=True)
    ]


# --- dates and times -----------------------------------------------------------------------------

_DAY = 24 * 60 * 60
# Days of 0001-01-01 and of 9999-12-31, counted from 1970-01-01.
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
_DATE_TEXT, _TIME_TEXT = re.compile(r"(?!0000)\d{4}-"), re.compile(r"\d")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def check_dates(array: pa.Array) -> None:
    """Refuse dates outside of the years 1 to 9999 and times outside of a day.

    Arrow writes "<value out of range: …>" or a year of another number of digits for them, and no
    reader takes that for a date.

    :raises _UnsayableError: with the first of them
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    bounds = _bounds(array.type)
    if bounds is None:
        return
    numbers = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64()).cast(pa.int64())
    ends = pc.min_max(numbers).as_py()
    if ends["min"] is None or (bounds[0] <= ends["min"] and ends["max"] < bounds[1]):
        # A zone that Arrow does not know is found here, while the column is known.
        array.slice(0, 1).cast(pa.string())
        return
    # Near the ends the time zone decides, so the texts are looked at.
    is_time = pa.types.is_time(array.type)
    fits = _TIME_TEXT if is_time else _DATE_TEXT
    for place, text in enumerate(objects(array.cast(pa.string()))):
        if text is not None and not fits.match(text):
            raise _UnsayableError(
                place,
                f"{numbers[place]} for a value of type {array.type}, which is outside of "
                f"{'a day' if is_time else 'the years 1 to 9999'}",
            )


def _bounds(kind: pa.DataType) -> tuple[int, int] | None:
    """The least value that has a text for certain, and the first one above that may have none."""
    import pyarrow as pa

    if pa.types.is_date32(kind):
        return _FIRST_DAY, _LAST_DAY + 1
    if pa.types.is_date64(kind):
        return _FIRST_DAY * _DAY * 1_000, (_LAST_DAY + 1) * _DAY * 1_000
    if pa.types.is_time(kind):
        return 0, _DAY * _PER_SECOND[kind.unit]
    if pa.types.is_timestamp(kind):
        second, tolerance = _PER_SECOND[kind.unit], 0 if kind.tz is None else _largest_offset(kind)
        return _FIRST_DAY * _DAY * second + tolerance, (_LAST_DAY + 1) * _DAY * second - tolerance
    return None


def _largest_offset(kind: pa.TimestampType) -> int:
    """How far a zone may move a timestamp, in units of the type; UTC moves none."""
    return 0 if kind.tz in ("UTC", "Z", "+00:00") else _DAY * _PER_SECOND[kind.unit]
