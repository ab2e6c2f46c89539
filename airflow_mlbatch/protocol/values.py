"""The seven parameter types of a service, as JSON values and as Python values.

Law: a value either arrives as what it was or is refused; nothing changes silently. ``to_wire`` is
used for what a client sends and for what a service returns, ``from_wire`` for the other way.

========== ============================ =======================================================
type       Python value                 accepted for it
========== ============================ =======================================================
logical    ``bool``                     bool; 0 and 1
integer    ``int``                      int; a float or Decimal without a fraction; bool
numeric    ``float``                    float, int, bool; a Decimal that a float can hold
character  ``str``                      str
vector     ``list`` of scalars          list, tuple, one-dimensional array, Series
matrix     ``list`` of equal lists      list of lists, two-dimensional array, DataFrame
data.frame ``dict`` of equal lists      dict of columns, DataFrame
========== ============================ =======================================================

NumPy scalars and arrays and pandas objects are recognised by their attributes, so that neither
library is imported here. ``None``, NaN, NaT and NA are a missing value, ``null`` in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeAlias, cast, get_args

__all__ = [
    "TYPES",
    "Misfit",
    "TypeName",
    "column_to_wire",
    "from_text",
    "from_wire",
    "is_missing",
    "to_wire",
    "type_name",
]

TypeName: TypeAlias = Literal[
    "logical", "integer", "numeric", "character", "vector", "matrix", "data.frame"
]
TYPES: tuple[TypeName, ...] = get_args(TypeName)

# The largest integer that every JSON reader keeps: beyond it, neighbours become one double.
MAX_SAFE_INTEGER = 2**53
_SHOWN_CHARACTERS = 80


class Misfit(ValueError):
    """A value does not fit a type. ``position`` is its place in a column, where there is one."""

    def __init__(self, found: str, expected: str, position: int | None = None) -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.found, self.expected, self.position = found, expected, position


def type_name(word: object) -> TypeName:
    """Check the name of a type as a service description gives it.

    :raises Misfit: for a type that is not one of the seven
    """
    text = str(word)
    if text not in TYPES:
        raise Misfit(f"type {text!r}", f"one of {', '.join(TYPES)}")
    return text


def is_missing(value: Any) -> bool:
    """Whether a value is ``None``, NaN, or one of pandas' missing values."""
    if value is None:
        return True
    if isinstance(value, float):
        return value != value
    return type(value).__name__ in ("NAType", "NaTType") or _is_numpy_missing(value)


def to_wire(kind: TypeName, value: Any) -> Any:
    """Turn one Python value into what JSON can carry, by declared type.

    :raises Misfit: says what was found and what was expected
    """
    if is_missing(value):
        return None
    return _TO_WIRE[kind](value)


def from_wire(kind: TypeName, value: Any) -> Any:
    """Turn one decoded JSON value into a Python value, by declared type.

    A list of one stands for its scalar: some R serialisers box every value.

    :raises Misfit: says what was found and what was expected
    """
    if value is None:
        return None
    if kind in ("logical", "integer", "numeric", "character"):
        if isinstance(value, list) and len(value) == 1:
            return from_wire(kind, value[0])
        if kind == "numeric" and isinstance(value, int):
            return _double(value)
        return _TO_WIRE[kind](value)
    if kind == "vector" and not isinstance(value, list):
        raise _misfit(value, "a list")
    return _TO_WIRE[kind](value)


def from_text(kind: TypeName, text: str) -> Any:
    """Read a cell of a text table (CSV, TSV) by declared type.

    An empty cell is a missing value, but for ``character``, where it is the empty text: a reader
    that can tell the two apart passes on only the latter.

    :return: a value that ``to_wire`` accepts
    :raises Misfit: says what was found and what was expected
    """
    if kind == "character":
        return text
    word = text.strip()
    if word in _MISSING_WORDS:
        return None
    if kind == "logical":
        if word.casefold() in _TRUE_WORDS:
            return True
        if word.casefold() in _FALSE_WORDS:
            return False
        raise _misfit(text, "true or false")
    if kind in ("integer", "numeric"):
        return _number_from_text(kind, word)
    # Nested types stand in a text cell as JSON, which is how the writers of this package put them.
    import msgspec

    try:
        return to_wire(kind, msgspec.json.decode(word))
    except msgspec.DecodeError:
        raise _misfit(text, f"JSON text of a {kind}") from None


def column_to_wire(kind: TypeName, values: Iterable[Any]) -> list[Any]:
    """Turn a column into a list of what JSON can carry: :func:`to_wire` for each value, but fast.

    :param values: list, tuple, NumPy array, pandas Series or pyarrow array
    :raises Misfit: with the position of the first value that does not fit
    """
    array = _plain_array(values)
    if array is not None:
        fast = _array_to_wire(kind, array)
        if fast is not None:
            return fast
    values = values if isinstance(values, list | tuple) else _listed(values)
    convert = _TO_WIRE[kind]
    wire: list[Any] = []
    for position, value in enumerate(values):
        try:
            wire.append(None if is_missing(value) else convert(value))
        except Misfit as misfit:
            raise Misfit(misfit.found, misfit.expected, position) from None
    return wire


# --- scalars -------------------------------------------------------------------------------------

_MISSING_WORDS = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL"})
_TRUE_WORDS = frozenset({"true", "t", "1", "yes"})
_FALSE_WORDS = frozenset({"false", "f", "0", "no"})


def _misfit(value: Any, expected: str) -> Misfit:
    text = repr(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "…"
    return Misfit(f"{text} ({type(value).__name__})", expected)


def _unboxed(value: Any) -> Any:
    """A NumPy scalar as the Python scalar it holds; dates and durations stay what they are."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and getattr(value, "ndim", None) == 0 and dtype.kind in "biufUS":
        return value.item()
    return value


def _is_numpy_missing(value: Any) -> bool:
    # np.float32 is no Python float; NaT of datetime64 and timedelta64 differs from itself as NaN does.
    dtype = getattr(value, "dtype", None)
    if dtype is None or getattr(value, "ndim", None) != 0 or dtype.kind not in "fmM":
        return False
    return bool(value != value)


def _logical(value: Any) -> bool:
    value = _unboxed(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise _misfit(value, "true or false (logical)")


def _integer(value: Any) -> int:
    value = _unboxed(value)
    if isinstance(value, float | Decimal):
        if not math.isfinite(value) or value != int(value):
            raise _misfit(value, "a whole number (integer)")
    elif not isinstance(value, int):
        raise _misfit(value, "a whole number (integer)")
    if abs(value) > MAX_SAFE_INTEGER:
        raise _misfit(value, "a whole number between -2^53 and 2^53 (integer)")
    return int(value)


def _numeric(value: Any) -> float | int:
    value = _unboxed(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise _misfit(value, "a finite number (numeric): JSON has no infinity")
        return float.__float__(value)
    if isinstance(value, int):
        if abs(value) > MAX_SAFE_INTEGER and not _fits_double(value):
            raise _misfit(value, "a number that a double can hold (numeric)")
        return int.__int__(value)
    if isinstance(value, Decimal):
        if value.is_finite() and Decimal(repr(float(value))) == value:
            return float(value)
        raise _misfit(value, "a number that a double can hold (numeric)")
    raise _misfit(value, "a number (numeric)")


def _double(value: int) -> float:
    # A server's number is a double, also where its shortest digits have no point: 1e20 may come as
    # 100000000000000000000.
    try:
        return float(value)
    except OverflowError:
        raise _misfit(value, "a number (numeric)") from None


def _fits_double(value: int) -> bool:
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


def _character(value: Any) -> str:
    value = _unboxed(value)
    if not isinstance(value, str):
        raise _misfit(value, "text (character)")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _misfit(value, "valid Unicode text (character)") from None
    # An instance of a subclass of str cannot be sent.
    return str.__str__(value)


def _number_from_text(kind: TypeName, word: str) -> float | int:
    expected = "a whole number (integer)" if kind == "integer" else "a number (numeric)"
    # int() and float() also take "1_000", which no table means as a number.
    if "_" in word:
        raise _misfit(word, expected)
    try:
        number: float | int = int(word)
    except ValueError:
        try:
            number = float(word)
        except ValueError:
            raise _misfit(word, expected) from None
        # A fraction that a double has no place for does not make a whole number.
        if kind == "integer" and math.isfinite(number) and not _is_exactly(word, number):
            raise _misfit(word, expected) from None
    return cast("float | int", to_wire(kind, number))


def _is_exactly(word: str, number: float) -> bool:
    try:
        return Decimal(word) == Decimal(number)
    except InvalidOperation:
        return False  # an exponent of more digits than any number has use for


# --- nested --------------------------------------------------------------------------------------


def _listed(value: Any) -> list[Any]:
    """An array, a Series or any iterable as a list; Python's own scalars where the array has them."""
    for method in ("to_pylist", "tolist"):
        convert = getattr(value, method, None)
        if convert is not None and getattr(getattr(value, "dtype", None), "kind", "O") not in "mM":
            return cast("list[Any]", convert())
    return list(value)


def _any_scalar(value: Any) -> Any:
    """An element of a vector, a matrix or a data.frame: any of the four scalar types."""
    if is_missing(value):
        return None
    value = _unboxed(value)
    if isinstance(value, bool | str):
        return value if isinstance(value, bool) else _character(value)
    if isinstance(value, int | float | Decimal):
        return _numeric(value)
    raise _misfit(value, "a number, text, true, false or null")


def _is_listlike(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return True
    return getattr(value, "ndim", None) == 1 and hasattr(value, "__iter__")


def _vector(value: Any) -> list[Any]:
    if not _is_listlike(value):
        raise _misfit(value, "a list (vector)")
    return [_any_scalar(item) for item in _listed(value)]


def _matrix(value: Any) -> list[list[Any]]:
    expected = "a list of lists of one length (matrix)"
    if getattr(value, "ndim", None) == 2:
        value = (value.to_numpy() if hasattr(value, "to_numpy") else value).tolist()
    if not _is_listlike(value):
        raise _misfit(value, expected)
    rows = []
    for row in _listed(value):
        if not _is_listlike(row):
            raise _misfit(value, expected)
        rows.append(_vector(row))
    if len({len(row) for row in rows}) > 1:
        raise _misfit(value, expected)
    return rows


def _data_frame(value: Any) -> dict[str, list[Any]]:
    expected = "columns of one length (data.frame)"
    columns: dict[str, list[Any]] = {}
    if isinstance(value, Mapping):
        pairs: Iterable[tuple[Any, Any]] = value.items()
    elif hasattr(value, "columns") and hasattr(value, "items"):
        pairs = value.items()
    else:
        raise _misfit(value, expected)
    for name, column in pairs:
        if not isinstance(name, str) or not _is_listlike(column) or name in columns:
            raise _misfit(value, expected)
        columns[name] = _vector(column)
    if len({len(column) for column in columns.values()}) > 1:
        raise _misfit(value, expected)
    return columns


_TO_WIRE: dict[TypeName, Callable[[Any], Any]] = {
    "logical": _logical,
    "integer": _integer,
    "numeric": _numeric,
    "character": _character,
    "vector": _vector,
    "matrix": _matrix,
    "data.frame": _data_frame,
}


# --- whole arrays --------------------------------------------------------------------------------


def _plain_array(values: Any) -> Any:
    """The NumPy array behind a column whose dtype is one of NumPy's own; ``None`` for the rest."""
    dtype: Any = getattr(values, "dtype", None)
    if isinstance(values, Sequence) or getattr(dtype, "kind", "O") not in "biuf":
        return None
    # Python has no number for the doubles that are longer than eight bytes.
    if type(dtype).__module__.split(".")[0] != "numpy" or dtype.itemsize > 8:
        return None
    array = values.to_numpy() if hasattr(values, "to_numpy") else values
    return array if getattr(array, "ndim", None) == 1 else None


def _array_to_wire(kind: TypeName, array: Any) -> list[Any] | None:
    """Whole-array conversion where every value fits; ``None`` leaves it to the value-by-value path.

    That path then also words the error, so that a message is written in one place only.
    """
    import numpy as np

    code = array.dtype.kind
    if kind not in ("numeric", "integer", "logical"):
        return None
    if kind == "logical" and code != "b":
        return None
    if code == "b":
        return cast("list[Any]", (array if kind == "logical" else array.astype(int)).tolist())
    if code in "iu":
        if array.size and max(abs(int(array.min())), abs(int(array.max()))) > MAX_SAFE_INTEGER:
            return None
        return cast("list[Any]", array.tolist())
    gaps = np.isnan(array)
    if np.isinf(array).any():
        return None
    if kind == "integer":
        filled = np.where(gaps, 0, array)
        if (filled != np.floor(filled)).any() or (np.abs(filled) > MAX_SAFE_INTEGER).any():
            return None
        wire: list[Any] = filled.astype("int64").tolist()
    else:
        wire = array.tolist()
    for position in np.flatnonzero(gaps).tolist():
        wire[position] = None
    return wire
