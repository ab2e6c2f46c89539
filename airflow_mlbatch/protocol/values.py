"""Values as the seven types of the contract take them, one function for each direction.

Law: a value either arrives as what it was or is refused; nothing changes silently. Which function
belongs to which type stands in :mod:`airflow_mlbatch.protocol.types`.

``None``, NaN, NaT and NA are a missing value, ``null`` in JSON. In a text table a missing value is an
empty cell or one of ``MISSING_WORDS``. Where a format has a value of its own for it (JSON, Parquet,
Python), the words are ordinary text.

A number in a text table is written with the digits 0 to 9, at most one sign, one point and one
exponent. Nothing else is a number, on any path: not ``1_000``, ``0x1F`` or ``nan(1)``, and no digits
of other scripts.

From 2^53 on, neighbouring whole numbers are one double. So for ``integer`` a number with a point or an
exponent has to be smaller than that, whether it comes as a double or as text.

NumPy scalars and arrays and pandas objects are recognised by their attributes, so that neither
library is imported here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, cast

import msgspec

__all__ = ["MAX_SAFE_INTEGER", "MISSING_WORDS", "Misfit", "exact_json", "is_missing"]

# The largest integer that every JSON reader keeps: beyond it, neighbours become one double.
MAX_SAFE_INTEGER = 2**53
# What stands for a missing value in a text table, where the type is not character.
MISSING_WORDS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
# What stands for a logical value there, in any case.
TRUE_WORDS, FALSE_WORDS = ("true", "t", "1", "yes"), ("false", "f", "0", "no")

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INFINITY = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_SHOWN_CHARACTERS = 80


class Misfit(ValueError):
    """A value does not fit a type. ``position`` is its place in a column, where there is one."""

    def __init__(self, found: str, expected: str, position: int | None = None) -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.found, self.expected, self.position = found, expected, position


def is_missing(value: Any) -> bool:
    """Whether a value is ``None``, NaN, or one of pandas' missing values."""
    if value is None:
        return True
    if isinstance(value, float):
        return value != value
    return type(value).__name__ in ("NAType", "NaTType") or _is_numpy_missing(value)


class Rounded(float):
    """A whole double that stands for another number: 4503599627370497.1 has no double of its own.

    It is shown as it was written.
    """

    literal = ""

    def __repr__(self) -> str:
        return self.literal


def exact_json(text: bytes | str | msgspec.Raw) -> Any:
    """Decode JSON as usual, but mark the whole doubles whose text says another number.

    Slower than the usual way; only ``integer`` needs to know.

    :raises msgspec.DecodeError: the text is not JSON
    """
    return _EXACT.decode(text)


def _marked(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError("Number out of range")
    if number.is_integer() and not _is_exactly(literal, number):
        rounded = Rounded(number)
        rounded.literal = literal
        return rounded
    return number


_EXACT = msgspec.json.Decoder(float_hook=_marked)


# --- scalars -------------------------------------------------------------------------------------


def _misfit(value: Any, expected: str) -> Misfit:
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"  # which Python refuses to write
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "…"
    name = "float" if isinstance(value, Rounded) else type(value).__name__
    return Misfit(f"{text} ({name})", expected)


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


def unboxed(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Read a scalar that may come as a list of one, as some R serialisers write it."""

    def read_one(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 1:
            return None if value[0] is None else read_one(value[0])
        return read(value)

    return read_one


def logical(value: Any) -> bool:
    """True or false, also as 1 or 0."""
    value = _unboxed(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise _misfit(value, "true or false (logical)")


def integer(value: Any) -> int:
    """A whole number that JSON carries to every reader."""
    value = _unboxed(value)
    if not isinstance(value, int | float | Decimal):
        raise _misfit(value, "a whole number (integer)")
    # The size comes first: to make an int of Decimal("1e999999999") would never end.
    is_finite = isinstance(value, int) or math.isfinite(value)
    if not (is_finite and -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER):
        raise _misfit(value, "a whole number between -2^53 and 2^53 (integer)")
    if value != int(value) or isinstance(value, Rounded):
        raise _misfit(value, "a whole number (integer)")
    if isinstance(value, float) and abs(value) == MAX_SAFE_INTEGER:
        raise _misfit(value, "a whole number below 2^53, from where on doubles skip some (integer)")
    return int(value)


def numeric(value: Any) -> float | int:
    """A finite number that a double can hold."""
    value = _unboxed(value)
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise _misfit(value, "a finite number (numeric): JSON has no infinity")
        # A plain one: a subclass cannot be sent.
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


def numeric_from_wire(value: Any) -> float:
    """Read a server's number as a double, also where its digits have no point.

    1e20 may come as 100000000000000000000.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise _misfit(value, "a number (numeric)") from None
    return float(numeric(value))


def _fits_double(value: int) -> bool:
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


def character(value: Any) -> str:
    """Text of valid Unicode."""
    value = _unboxed(value)
    if not isinstance(value, str):
        raise _misfit(value, "text (character)")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _misfit(value, "valid Unicode text (character)") from None
    # An instance of a subclass of str cannot be sent.
    return str.__str__(value)


# --- cells of text tables ------------------------------------------------------------------------


def logical_from_text(text: str) -> bool | None:
    """One of the words for true, false and missing."""
    word = text.strip()
    if word in MISSING_WORDS:
        return None
    if word.lower() in TRUE_WORDS:
        return True
    if word.lower() in FALSE_WORDS:
        return False
    raise _misfit(text, "true or false (logical)")


def integer_from_text(text: str) -> int | None:
    """A whole number, also with a point or an exponent."""
    word = _number_word(text, "a whole number (integer)")
    if word is None:
        return None
    number = _parsed(word)
    if isinstance(number, float) and math.isfinite(number) and not _is_exactly(word, number):
        # A fraction that a double has no place for does not make a whole number.
        raise _misfit(word, "a whole number (integer)")
    return integer(number)


def numeric_from_text(text: str) -> float | int | None:
    """A finite number."""
    word = _number_word(text, "a number (numeric)")
    return None if word is None else numeric(_parsed(word))


def nested_from_text(convert: Callable[[Any], Any], name: str) -> Callable[[str], Any]:
    """Nested types stand in a text cell as JSON, which is how this package writes them."""

    def read(text: str) -> Any:
        word = text.strip()
        if word in MISSING_WORDS:
            return None
        try:
            found = msgspec.json.decode(word)
        except (msgspec.DecodeError, UnicodeError):
            raise _misfit(text, f"JSON text of a {name}") from None
        return None if found is None else convert(found)

    return read


def _number_word(text: str, expected: str) -> str | None:
    """The digits of a number, ``None`` for a missing value."""
    word = text.strip()
    if word in MISSING_WORDS:
        return None
    if _NUMBER.fullmatch(word) is None:
        if _INFINITY.fullmatch(word):
            expected = f"{expected}; JSON has no infinity"
        raise _misfit(word, expected)
    return word


def _parsed(word: str) -> float | int:
    # Python refuses to read integers of thousands of digits.
    if word.lstrip("+-").isdigit() and len(word) < 400:
        return int(word)
    return float(word)


def _is_exactly(word: str, number: float) -> bool:
    try:
        return Decimal(word) == Decimal(number)
    except InvalidOperation:
        return False  # an exponent of more digits than any number has use for


# --- nested --------------------------------------------------------------------------------------


def listed(value: Any) -> list[Any]:
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
        return value if isinstance(value, bool) else character(value)
    if isinstance(value, int | float | Decimal):
        return numeric(value)
    raise _misfit(value, "a number, text, true, false or null")


def _is_listlike(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return True
    return getattr(value, "ndim", None) == 1 and hasattr(value, "__iter__")


def vector(value: Any) -> list[Any]:
    """A list of scalars."""
    if not _is_listlike(value):
        raise _misfit(value, "a list (vector)")
    return [_any_scalar(item) for item in listed(value)]


def vector_from_wire(value: Any) -> list[Any]:
    """A list of scalars, as JSON has it."""
    if not isinstance(value, list):
        raise _misfit(value, "a list")
    return vector(value)


def matrix(value: Any) -> list[list[Any]]:
    """Rows of one length."""
    expected = "a list of lists of one length (matrix)"
    if getattr(value, "ndim", None) == 2:
        value = (value.to_numpy() if hasattr(value, "to_numpy") else value).tolist()
    if not _is_listlike(value):
        raise _misfit(value, expected)
    rows = []
    for row in listed(value):
        if not _is_listlike(row):
            raise _misfit(value, expected)
        rows.append(vector(row))
    if len({len(row) for row in rows}) > 1:
        raise _misfit(value, expected)
    return rows


def data_frame(value: Any) -> dict[str, list[Any]]:
    """Columns of one length, by name."""
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
        columns[name] = vector(column)
    if len({len(column) for column in columns.values()}) > 1:
        raise _misfit(value, expected)
    return columns


# --- whole arrays --------------------------------------------------------------------------------


def plain_array(values: Any) -> Any:
    """The NumPy array behind a column whose dtype is one of NumPy's own; ``None`` for the rest."""
    dtype: Any = getattr(values, "dtype", None)
    if isinstance(values, Sequence) or getattr(dtype, "kind", "O") not in "biuf":
        return None
    # Python has no number for the doubles that are longer than eight bytes.
    if type(dtype).__module__.split(".")[0] != "numpy" or dtype.itemsize > 8:
        return None
    array = values.to_numpy() if hasattr(values, "to_numpy") else values
    return array if getattr(array, "ndim", None) == 1 else None


def array_to_wire(kind: str, array: Any) -> list[Any] | None:
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
        if (filled != np.floor(filled)).any() or (np.abs(filled) >= MAX_SAFE_INTEGER).any():
            return None
        wire: list[Any] = filled.astype("int64").tolist()
    else:
        wire = array.tolist()
    for position in np.flatnonzero(gaps).tolist():
        wire[position] = None
    return wire
