"""The Arrow types of outputs whose declaration does not say them: vectors, matrices, data.frames.

Law: one column has one type from its first row to its last. The type is learned from the first
records that show it; a later record that does not fit is an error that names it, because a table
that changes its type half way cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from airflow_mlbatch.protocol.types import TYPES, TypeName

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ASSUMED", "Element", "FrameShape", "Misshape", "element_type", "is_assumed"]

# What the elements of a vector, a matrix or a column of a data.frame are.
Element: TypeAlias = Literal["nothing", "logical", "number", "text"]


class Misshape(ValueError):
    """A value does not continue what the ones before began. ``position`` is its place."""

    def __init__(self, position: int, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.position, self.found, self.expected = position, found, expected


class Elements:
    """Learns what the elements of a column of lists are."""

    def __init__(self) -> None:
        self.element: Element = "nothing"

    @property
    def is_known(self) -> bool:
        return self.element != "nothing"

    def learn(self, values: Sequence[Any]) -> None:
        """:raises Misshape: numbers, texts and logicals are mixed"""
        for position, value in enumerate(values):
            if value is not None:
                self._learn_one(value, position)

    def _learn_one(self, value: Any, position: int) -> None:
        if isinstance(value, list):
            for item in value:
                self._learn_one(item, position)
        elif value is not None:
            found = _element_of(value)
            if self.element == "nothing":
                self.element = found
            elif found != self.element:
                raise Misshape(position, f"a {found}", f"each element a {self.element} as before")


def _element_of(value: Any) -> Element:
    if isinstance(value, bool):
        return "logical"
    return "text" if isinstance(value, str) else "number"


def element_type(element: Element) -> pa.DataType:
    """The Arrow type of elements; of those that never showed a value, that of numbers."""
    import pyarrow as pa

    return {"logical": pa.bool_(), "text": pa.string()}.get(element, pa.float64())


class FrameShape:
    """Learns the shape of an output of type data.frame.

    :param spread: ``True`` writes a one-row frame as columns, ``False`` keeps frames whole, ``None``
        spreads as long as all frames seen while learning have one row
    :param is_free: frames that stay whole need no common shape (in text formats)
    """

    def __init__(self, spread: bool | None, *, is_free: bool = False) -> None:
        self._asked, self._all_one_row, self._is_free = spread, True, is_free
        self.columns: dict[str, Elements] = {}
        self.is_seen = False

    @property
    def is_known(self) -> bool:
        if self._is_free and not self.is_spread:
            return self.is_seen
        return self.is_seen and all(elements.is_known for elements in self.columns.values())

    @property
    def is_spread(self) -> bool:
        return self._all_one_row and self.is_seen if self._asked is None else self._asked

    def learn(self, values: Sequence[Mapping[str, list[Any]] | None], *, is_settled: bool) -> None:
        """:raises Misshape: a frame has other columns than those before, or not one row"""
        for position, frame in enumerate(values):
            if self._is_free and self.is_seen and not self.is_spread:
                return
            if frame is None:
                continue
            try:
                self._learn_one(frame, position, is_settled)
            except Misshape:
                if is_settled or self._asked or not self._is_free:
                    raise
                self._all_one_row = False

    def _learn_one(self, frame: Mapping[str, list[Any]], position: int, is_settled: bool) -> None:
        if not self.is_seen and not is_settled:
            self.is_seen, self.columns = True, {name: Elements() for name in frame}
        if list(frame) != list(self.columns):
            raise Misshape(
                position,
                f"a data.frame with the columns {_listed(frame)}",
                f"{_listed(self.columns)} as before",
            )
        rows = len(next(iter(frame.values()), ()))
        if rows != 1:
            if (is_settled or self._asked) and self.is_spread:
                raise Misshape(
                    position,
                    f"a data.frame of {rows} rows",
                    "one row as before, because each becomes columns "
                    '(data_frames="nested" keeps frames whole)',
                )
            self._all_one_row = False
        for name, column in frame.items():
            try:
                self.columns[name].learn(column)
            except Misshape as error:
                raise Misshape(
                    position, f"{error.found} in column {name!r}", error.expected
                ) from None


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"


# Metadata of an Arrow field whose type was taken for granted, because no value showed it.
ASSUMED: dict[bytes, bytes] = {b"mlbatch.assumed": b"1"}


def is_assumed(field: pa.Field) -> bool:
    """Whether a column holds no value that would show its type."""
    return b"mlbatch.assumed" in (field.metadata or {})


def nested_type(kind: TypeName, elements: Elements) -> pa.DataType:
    """The Arrow type of a vector or a matrix."""
    import pyarrow as pa

    row = pa.list_(element_type(elements.element))
    return pa.list_(row) if TYPES[kind].shape == "rows" else row


def frame_type(shape: FrameShape) -> pa.DataType:
    """The Arrow type of whole data.frames: a struct of columns, as the wire has them."""
    import pyarrow as pa

    return pa.struct(
        [
            pa.field(name, pa.list_(element_type(elements.element)))
            for name, elements in shape.columns.items()
        ]
    )
