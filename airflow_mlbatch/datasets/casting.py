"""Columns of a table as the JSON values that a service's inputs take.

Law: the meaning of a cell is what :mod:`airflow_mlbatch.protocol.values` says. What is faster here
(whole columns through Arrow's kernels) gives the same values or gives up, and then the value by
value road both converts and words the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.datasets.soundness import shown
from airflow_mlbatch.protocol.types import TYPES, TypeName, column_to_wire, from_text, to_wire
from airflow_mlbatch.protocol.values import (
    FALSE_WORDS,
    MAX_SAFE_INTEGER,
    MISSING_WORDS,
    TRUE_WORDS,
    Misfit,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["cells_of", "json_to_wire", "typed_to_wire", "words_to_wire"]


def words_to_wire(kind: TypeName, words: pa.Array) -> list[Any]:
    """Cells of a text table as JSON values.

    :param words: strings; null stands for an unquoted empty cell
    :raises Misfit: with the position of the first cell that does not fit
    """
    fast = _FAST.get(kind)
    found = None if fast is None else fast(words)
    if found is not None:
        return found
    wire = []
    for position, word in enumerate(objects(words)):
        try:
            value = None if word is None else from_text(kind, word)
            wire.append(to_wire(kind, value))
        except Misfit as misfit:
            raise Misfit(misfit.found, misfit.expected, position) from None
    return wire


def typed_to_wire(kind: TypeName, array: pa.Array) -> list[Any]:
    """A typed Arrow column (as Parquet holds it) as JSON values.

    :raises Misfit: with the position of the first value that does not fit
    """
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind_of = array.type
    if pa.types.is_null(kind_of):
        return [None] * len(array)
    if (
        pa.types.is_boolean(kind_of)
        or pa.types.is_integer(kind_of)
        or pa.types.is_floating(kind_of)
    ):
        return _plain_to_wire(kind, array)
    if _is_text(kind_of) or pa.types.is_decimal(kind_of):
        return column_to_wire(kind, objects(array))
    if TYPES[kind].is_nested and pa.types.is_nested(kind_of):
        return _nested_to_wire(kind, array)
    return _only_missing(kind, array)


def json_to_wire(kind: TypeName, values: list[Any]) -> list[Any]:
    """Decoded JSON values, cast to a declared type.

    :raises Misfit: with the position of the first value that does not fit
    """
    return column_to_wire(kind, values)


def objects(array: pa.Array) -> list[Any]:
    """An Arrow array as Python objects, ``None`` for null; nothing is rounded on the way."""
    import pyarrow as pa

    if _is_text(array.type) and not pa.types.is_string_view(array.type):
        # Twice as fast as to_pylist for a million strings.
        return list(array.to_numpy(zero_copy_only=False).tolist())
    return list(array.to_pylist())


# --- text ----------------------------------------------------------------------------------------


def cells_of(words: pa.Array) -> pa.Array:
    """Cells without the space around them; null where a word says that the value is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(words)
    is_missing = pc.is_in(trimmed, value_set=pa.array(MISSING_WORDS))
    return pc.if_else(is_missing, pa.scalar(None, words.type), trimmed)


def _integers(words: pa.Array) -> list[Any] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = cells_of(words)
    # Arrow reads 0x1F as a number, Python's int() and every spreadsheet do not.
    if pc.any(pc.match_substring(cells, "x", ignore_case=True)).as_py():
        return None
    try:
        return _plain_to_wire("integer", pc.cast(cells, pa.int64()))
    except pa.ArrowInvalid:
        return None


def _numbers(words: pa.Array) -> list[Any] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = pc.cast(cells_of(words), pa.float64())
    except pa.ArrowInvalid:
        return None
    # Arrow reads nAn and nan(1) as numbers, and inf. From 2^53 on neighbouring integers are one
    # double: only the exact road can tell them apart. NaN is not less than anything.
    if not pc.all(pc.less(pc.abs(numbers), float(MAX_SAFE_INTEGER))).as_py():
        return None
    return _plain_to_wire("numeric", numbers)


def _logicals(words: pa.Array) -> list[Any] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = cells_of(words)
    folded = pc.utf8_lower(cells)
    is_true = pc.is_in(folded, value_set=pa.array(TRUE_WORDS))
    is_known = pc.or_(is_true, pc.is_in(folded, value_set=pa.array(FALSE_WORDS)))
    if not pc.all(pc.or_(is_known, pc.is_null(cells))).as_py():
        return None
    return objects(pc.if_else(pc.is_null(cells), pa.scalar(None, pa.bool_()), is_true))


# Whole columns at once. A type that is not here goes cell by cell.
_FAST: dict[TypeName, Callable[[pa.Array], list[Any] | None]] = {
    "logical": _logicals,
    "integer": _integers,
    "numeric": _numbers,
    "character": objects,
}


# --- typed ---------------------------------------------------------------------------------------


def _is_text(kind_of: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_string(kind_of)
        or pa.types.is_large_string(kind_of)
        or pa.types.is_string_view(kind_of)
    )


def _plain_to_wire(kind: TypeName, array: pa.Array) -> list[Any]:
    import numpy as np
    import pyarrow.compute as pc

    if TYPES[kind].arrow not in ("bool", "int64", "double"):
        return column_to_wire(kind, objects(array))
    if not array.null_count:
        return column_to_wire(kind, array.to_numpy(zero_copy_only=False))
    # Arrow turns integers with nulls into floats, and the big ones into other numbers: so the gaps
    # are filled before and opened again after.
    gaps = np.flatnonzero(pc.is_null(array).to_numpy(zero_copy_only=False)).tolist()
    filled = array.fill_null(False if str(array.type) == "bool" else 0)
    wire = column_to_wire(kind, filled.to_numpy(zero_copy_only=False))
    for position in gaps:
        wire[position] = None
    return wire


def _nested_to_wire(kind: TypeName, array: pa.Array) -> list[Any]:

    try:
        values = array.to_pylist()
    except Exception:
        # A date in the year 300,000, an unknown time zone: no Python value, and each its own error.
        return _only_missing(kind, array)
    if TYPES[kind].shape == "frame":
        values = [_frame(value, array.type) for value in values]
    return column_to_wire(kind, values)


def _frame(value: Any, kind_of: pa.DataType) -> Any:
    """A data.frame as Parquet may hold it: a struct or a map of columns, or a list of rows."""
    import pyarrow as pa

    if value is None or pa.types.is_struct(kind_of):
        return value
    if pa.types.is_map(kind_of):
        columns = dict(value)
        return columns if len(columns) == len(value) else value
    if _is_list_of_rows(kind_of) and all(row is not None for row in value):
        names = [
            kind_of.value_type.field(place).name for place in range(kind_of.value_type.num_fields)
        ]
        return {name: [row[name] for row in value] for name in names}
    return value


def _is_list_of_rows(kind_of: pa.DataType) -> bool:
    value_type = getattr(kind_of, "value_type", None)
    return value_type is not None and str(value_type).startswith("struct")


def _only_missing(kind: TypeName, array: pa.Array) -> list[Any]:
    """A column of a type that has no place in JSON, such as dates: fine while it is empty."""
    import numpy as np
    import pyarrow.compute as pc

    present = np.flatnonzero(pc.is_valid(array).to_numpy(zero_copy_only=False))
    if not len(present):
        return [None] * len(array)
    position = int(present[0])
    try:
        to_wire(kind, object())
    except Misfit as misfit:
        found = f"{shown(array[position]):.80} ({array.type!s:.80})"
        raise Misfit(found, misfit.expected, position) from None
    raise AssertionError("no type takes a bare object")
