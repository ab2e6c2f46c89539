"""The seven parameter types of a service, as one table.

Law: whatever depends on a type is asked of its row here, on the client and on the server. A new type
is a row in this table and a function in :mod:`airflow_mlbatch.protocol.values` that turns a value
into it.

========== ============================ =======================================================
type       Python value                 accepted for it
========== ============================ =======================================================
logical    ``bool``                     bool; 0 and 1
integer    ``int``                      int; a float below 2^53 or a Decimal, without a fraction
numeric    ``float``                    float, int, bool; a Decimal that a float can hold
character  ``str``                      str
vector     ``list`` of scalars          list, tuple, one-dimensional array, Series
matrix     ``list`` of equal lists      list of lists, two-dimensional array, DataFrame
data.frame ``dict`` of equal lists      dict of columns, DataFrame
========== ============================ =======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, cast

import msgspec

from airflow_mlbatch.protocol import values
from airflow_mlbatch.protocol.values import MAX_SAFE_INTEGER, Misfit, exact_json, is_missing

__all__ = [
    "TYPES",
    "ContractType",
    "TypeName",
    "column_to_wire",
    "from_text",
    "from_wire",
    "json_decoder",
    "to_wire",
    "type_for_class",
    "type_name",
]

TypeName: TypeAlias = Literal[
    "logical", "integer", "numeric", "character", "vector", "matrix", "data.frame"
]
# One value, a list, a list of rows, or columns by name.
Shape: TypeAlias = Literal["scalar", "list", "rows", "frame"]


@dataclass(frozen=True)
class ContractType:
    """What there is to know about a type.

    :param wire: the JSON that carries a value, as msgspec checks it; ``None`` is always allowed too
    :param python: what a function behind a service is handed
    :param declared_as: classes that stand for the type in a service's declaration, by the name of
        their library and their own
    :param swagger: its schema in a Swagger 2.0 document
    :param shape: one value, a list, rows or columns
    :param arrow: the name of the Arrow type of a column; empty where the values decide
    :param to_wire: turns a value that is not missing into what JSON can carry
    :param from_wire: turns decoded JSON that is not ``null`` into a Python value
    :param from_text: turns a cell of a text table into a value that ``to_wire`` accepts, or ``None``
    :param is_whole: whether values are whole numbers, so that JSON has to be read by ``exact_json``
    """

    wire: Any
    python: type
    declared_as: tuple[str, ...]
    swagger: Mapping[str, Any]
    shape: Shape
    arrow: str
    to_wire: Callable[[Any], Any]
    from_wire: Callable[[Any], Any]
    from_text: Callable[[str], Any]
    is_whole: bool = False

    @property
    def is_nested(self) -> bool:
        """Whether a value holds other values."""
        return self.shape != "scalar"


_SAFE_INTEGER = Annotated[int, msgspec.Meta(ge=-MAX_SAFE_INTEGER, le=MAX_SAFE_INTEGER)]
# Swagger has no word for "any scalar", and generators make a list of dicts of "items": {}.
_LIST_SCHEMA: Mapping[str, Any] = {"type": "array", "items": {"type": "number"}}

TYPES: Mapping[TypeName, ContractType] = {
    "logical": ContractType(
        wire=bool,
        python=bool,
        declared_as=("builtins.bool", "numpy.bool", "numpy.bool_"),
        swagger={"type": "boolean"},
        shape="scalar",
        arrow="bool",
        to_wire=values.logical,
        from_wire=values.unboxed(values.logical),
        from_text=values.logical_from_text,
    ),
    "integer": ContractType(
        wire=_SAFE_INTEGER,
        python=int,
        declared_as=("builtins.int", "numpy.integer"),
        swagger={"type": "integer"},
        shape="scalar",
        arrow="int64",
        to_wire=values.integer,
        from_wire=values.unboxed(values.integer),
        from_text=values.integer_from_text,
        is_whole=True,
    ),
    "numeric": ContractType(
        wire=float,
        python=float,
        declared_as=("builtins.float", "numpy.floating"),
        swagger={"type": "number"},
        shape="scalar",
        arrow="double",
        to_wire=values.numeric,
        from_wire=values.unboxed(values.numeric_from_wire),
        from_text=values.numeric_from_text,
    ),
    "character": ContractType(
        wire=str,
        python=str,
        declared_as=("builtins.str", "numpy.str_"),
        swagger={"type": "string"},
        shape="scalar",
        arrow="string",
        to_wire=values.character,
        from_wire=values.unboxed(values.character),
        from_text=str,
    ),
    "vector": ContractType(
        wire=list[Any],
        python=list,
        declared_as=("builtins.list", "builtins.tuple", "pandas.Series"),
        swagger=_LIST_SCHEMA,
        shape="list",
        arrow="",
        to_wire=values.vector,
        from_wire=values.vector_from_wire,
        from_text=values.nested_from_text(values.vector, "vector"),
    ),
    "matrix": ContractType(
        wire=list[list[Any]],
        python=list,
        declared_as=("numpy.ndarray",),
        swagger={"type": "array", "items": _LIST_SCHEMA},
        shape="rows",
        arrow="",
        to_wire=values.matrix,
        from_wire=values.matrix,
        from_text=values.nested_from_text(values.matrix, "matrix"),
    ),
    "data.frame": ContractType(
        wire=dict[str, list[Any]],
        python=dict,
        declared_as=("builtins.dict", "pandas.DataFrame"),
        swagger={"type": "object"},
        shape="frame",
        arrow="",
        to_wire=values.data_frame,
        from_wire=values.data_frame,
        from_text=values.nested_from_text(values.data_frame, "data.frame"),
    ),
}

_BY_CLASS: dict[str, TypeName] = {
    declared: name for name, row in TYPES.items() for declared in row.declared_as
}


def type_name(word: object) -> TypeName:
    """Check the name of a type as a service description gives it.

    :raises Misfit: for a type that is not one of the seven
    """
    text = str(word)
    if text not in TYPES:
        raise Misfit(f"type {text!r}", f"one of {', '.join(TYPES)}")
    return cast("TypeName", text)


def json_decoder(kinds: Iterable[TypeName]) -> Callable[[Any], Any]:
    """What decodes JSON for values of some types; the quick way unless one of them needs more."""
    if any(TYPES[kind].is_whole for kind in kinds):
        return exact_json
    return msgspec.json.decode


def type_for_class(declared: type) -> TypeName | None:
    """The type that a class stands for in a service's declaration; ``None`` for other classes.

    Subclasses of NumPy's and pandas' classes count, so that each of NumPy's floats is ``numeric``.
    Those of Python's own do not: an ``IntEnum`` is not meant as a number.
    """
    if declared.__module__ == "builtins":
        return _BY_CLASS.get(f"builtins.{declared.__name__}")
    for base in declared.__mro__:
        library = base.__module__.partition(".")[0]
        found = _BY_CLASS.get(f"{library}.{base.__name__}")
        if found is not None and library != "builtins":
            return found
    return None


def to_wire(kind: TypeName, value: Any) -> Any:
    """Turn one Python value into what JSON can carry, by declared type.

    :raises Misfit: says what was found and what was expected
    """
    return None if is_missing(value) else TYPES[kind].to_wire(value)


def from_wire(kind: TypeName, value: Any) -> Any:
    """Turn one decoded JSON value into a Python value, by declared type.

    A list of one stands for its scalar: some R serialisers box every value.

    :raises Misfit: says what was found and what was expected
    """
    return None if value is None else TYPES[kind].from_wire(value)


def from_text(kind: TypeName, text: str) -> Any:
    """Read a cell of a text table (CSV, TSV) by declared type.

    An empty cell is a missing value, except for ``character``, where it is the empty text: a reader
    that can tell the two apart passes on only the latter.

    :return: a value that :func:`to_wire` accepts
    :raises Misfit: says what was found and what was expected
    """
    return TYPES[kind].from_text(text)


def column_to_wire(kind: TypeName, column: Iterable[Any]) -> list[Any]:
    """Turn a column into a list of what JSON can carry: :func:`to_wire` for each value, but fast.

    :param column: list, tuple, NumPy array, pandas Series or pyarrow array
    :raises Misfit: with the position of the first value that does not fit
    """
    array = values.plain_array(column)
    if array is not None:
        fast = values.array_to_wire(kind, array)
        if fast is not None:
            return fast
    listed = column if isinstance(column, list | tuple) else values.listed(column)
    convert = TYPES[kind].to_wire
    wire: list[Any] = []
    for position, value in enumerate(listed):
        try:
            wire.append(None if is_missing(value) else convert(value))
        except Misfit as misfit:
            raise Misfit(misfit.found, misfit.expected, position) from None
    return wire
