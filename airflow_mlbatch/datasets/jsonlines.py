"""JSON Lines: one JSON object on each line; blank lines are no rows.

Law: a value keeps its type. Numbers are never rounded, texts that look like dates stay texts, and a
column whose values have no one Arrow type is kept as JSON text and says so in its field's metadata.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from airflow_mlbatch.errors import DatasetError, RecordError
from airflow_mlbatch.protocol.documents import BYTE_ORDER_MARK
from airflow_mlbatch.protocol.values import exact_json

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "ASKED",
    "JSON_TEXT",
    "columns_of",
    "is_asked",
    "is_inferred",
    "is_json_text",
    "json_text",
    "read_lines",
    "scan_schema",
    "unify",
]

# Metadata of an Arrow field whose strings are JSON texts of values of any type.
JSON_TEXT: dict[bytes, bytes] = {b"mlbatch": b"json"}
# Of one whose JSON text is what the caller wants, rather than a way out.
ASKED: dict[bytes, bytes] = {b"mlbatch.asked": b"1"}
# Of one whose type is that of the rows that were read: other rows of the table may show another.
_INFERRED: dict[bytes, bytes] = {b"mlbatch.inferred": b"1"}

_CHUNK = 4 * 1024 * 1024
_DEEPEST_TYPE = 32
_MOST_FIELDS = 500
_ESCAPED = re.compile(r'[\x00-\x1f"\\]')


def read_lines(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[list[bytes]]:
    """Blocks of lines that are not blank: rows ``start`` to ``stop``, and not a line further."""
    rest, row, is_first = b"", 0, True
    while stop is None or row < stop:
        chunk = file.read(_CHUNK)
        if is_first:
            chunk, is_first = chunk.removeprefix(BYTE_ORDER_MARK), False
        whole, rest = _cut(rest + chunk, is_last=not chunk)
        lines = [line for line in whole.splitlines() if line and not line.isspace()]
        wanted = lines[max(0, start - row) : None if stop is None else stop - row]
        row += len(lines)
        if wanted:
            yield wanted
        if not chunk:
            return


def line_of(file: BinaryIO, row: int) -> int | None:
    """The line, from 1, on which a row stands; ``None`` if there are not so many rows."""
    text = io.TextIOWrapper(file, encoding="latin-1", newline=None)
    try:
        rows = (
            number for number, line in enumerate(text, 1) if not line.encode("latin-1").isspace()
        )
        return next(islice(rows, row, None), None)
    finally:
        text.detach()


def _cut(data: bytes, is_last: bool) -> tuple[bytes, bytes]:
    if is_last:
        return data, b""
    # A lone carriage return ends no line here: it may be the first half of CR LF.
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def columns_of(
    lines: Sequence[bytes], names: Sequence[str], where: str, first_row: int
) -> dict[str, list[Any]]:
    """The values of some keys, ``UNSET`` where a line has no such key.

    :raises DatasetError: a line that is no JSON object, with its row
    """
    row_class = row_class_for(names)
    if row_class is None:
        dicts = _decode(msgspec.json.Decoder(dict[str, Any]), lines, where, first_row)
        return {name: [row.get(name, msgspec.UNSET) for row in dicts] for name in names}
    rows = _decode(msgspec.json.Decoder(row_class), lines, where, first_row)
    return {name: [getattr(row, f"f{place}") for row in rows] for place, name in enumerate(names)}


class JsonColumn(list[Any]):
    """The values of a key, and the lines that they come from.

    :param name: the key
    """

    def __init__(self, values: Sequence[Any], name: str, lines: Sequence[bytes]) -> None:
        super().__init__(values)
        self._name, self._lines = name, lines

    def at(self, places: Sequence[int]) -> JsonColumn:
        """Some of the values."""
        return JsonColumn(
            [self[place] for place in places], self._name, [self._lines[place] for place in places]
        )

    def exact(self) -> list[Any]:
        """The values for ``integer``, which has to know of doubles that were rounded."""
        if float not in set(map(type, self)):
            return self
        return [
            exact_json(line)[self._name] if isinstance(value, float) else value
            for value, line in zip(self, self._lines, strict=True)
        ]


def row_class_for(names: Sequence[str]) -> type[msgspec.Struct] | None:
    """A class for rows with these keys, read and written several times as fast as dicts.

    :return: ``None`` for keys that msgspec would have to escape, which it refuses to, and for very
        many: it looks for a key among all that the class has
    """
    if len(names) > _MOST_FIELDS or any(_ESCAPED.search(name) for name in names):
        return None
    # Field names of a class must be identifiers, keys need not be: hence f0, f1, …
    fields = [(f"f{place}", Any, msgspec.UNSET) for place in range(len(names))]
    rename = {f"f{place}": name for place, name in enumerate(names)}
    return msgspec.defstruct("Row", fields, rename=rename, gc=False)


def missing_key(
    name: str, field: str, lines: Sequence[bytes], place: int, where: str, first_row: int
) -> RecordError:
    """The error for a line without a wanted key."""
    there = (
        ", ".join(repr(key) for key in list(msgspec.json.decode(lines[place]))[:30]) or "nothing"
    )
    found = f"no such column (there are: {there})"
    return RecordError(f"{where}, row {first_row + place}", field, found, f"a column {name!r}")


def _decode(
    decoder: msgspec.json.Decoder[Any], lines: Sequence[bytes], where: str, first_row: int
) -> list[Any]:
    rows = []
    for place, line in enumerate(lines):
        try:
            rows.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{where}, row {first_row + place}: found {line!r:.120}, "
                f"expected a JSON object ({error})"
            ) from None
        except RecursionError:
            raise DatasetError(
                f"{where}, row {first_row + place}: found {line!r:.120}, which is nested too deeply "
                "to be read"
            ) from None
    return rows


# --- types of whole columns ----------------------------------------------------------------------


class _Column:
    """What is known of a column's type; ``None`` once its values have no one type."""

    def __init__(self) -> None:
        import pyarrow as pa

        self.type: pa.DataType | None = pa.null()

    def take(self, values: list[Any]) -> None:
        if self.type is not None:
            found = _type_of(values)
            self.type = None if found is None else unify(self.type, found)


def scan_schema(
    blocks: Iterator[list[bytes]], where: str, first_row: int, only: Sequence[str] | None
) -> pa.Schema:
    """The columns of a whole file in the order in which they first appear, each with a type.

    :param only: look at these columns only
    """
    import pyarrow as pa

    columns: dict[str, _Column] = {name: _Column() for name in only or ()}
    decoder = msgspec.json.Decoder(dict[str, Any])
    for lines in blocks:
        rows = _decode(decoder, lines, where, first_row)
        first_row += len(lines)
        if only is None:
            for row in rows:
                for name in row:
                    if name not in columns:
                        columns[name] = _Column()
        for name, column in columns.items():
            column.take([row.get(name) for row in rows])
    return pa.schema(
        [
            pa.field(name, pa.string(), metadata={**JSON_TEXT, **_INFERRED})
            if column.type is None
            else pa.field(name, column.type, metadata=_INFERRED)
            for name, column in columns.items()
        ]
    )


def is_json_text(field: pa.Field) -> bool:
    """Whether a column holds JSON texts rather than texts."""
    return (field.metadata or {}).get(b"mlbatch") == b"json"


def is_asked(field: pa.Field) -> bool:
    """Whether a column of JSON texts is what the caller wants."""
    return b"mlbatch.asked" in (field.metadata or {})


def is_inferred(field: pa.Field) -> bool:
    """Whether other rows of the same table may show another type of this column, or not have it."""
    return b"mlbatch.inferred" in (field.metadata or {})


def json_text(value: Any) -> str | None:
    """A value as JSON text, ``None`` for null.

    :raises DatasetError: it is nested too deeply
    """
    if value is None:
        return None
    try:
        return msgspec.json.encode(value).decode()
    except OverflowError:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise DatasetError(
            "found a value that is nested too deeply to be written as JSON"
        ) from None


def to_arrow(values: list[Any], field: pa.Field, where: str) -> pa.Array:
    """Decoded values as an Arrow column of a scanned type.

    :raises DatasetError: names the column
    """
    import pyarrow as pa

    if is_json_text(field):
        try:
            return pa.array([json_text(value) for value in values], pa.string())
        except DatasetError as error:
            raise DatasetError(f"{where}, column {field.name!r}: {error}") from None
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
        raise DatasetError(
            f"{where}, column {field.name!r}: found values that no one type holds ({error}), "
            "expected values of one type; leave the column out"
        ) from None


def _type_of(values: Sequence[Any], depth: int = 0) -> pa.DataType | None:
    """The type that holds decoded values unchanged, ``None`` when there is none.

    Arrow's own inference will not do: it takes false for 0.0 and adds keys that objects lack.

    :param depth: how many lists and objects are around the values; there is no type for what is
        nested very deeply, because Arrow and Parquet go through a type level by level
    """
    import pyarrow as pa

    if depth > _DEEPEST_TYPE:
        return None

    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return pa.null()
    if kinds in ({bool}, {str}):
        return pa.bool_() if kinds == {bool} else pa.string()
    if kinds <= {int, float}:
        return _number_type(values, has_floats=float in kinds)
    present = [value for value in values if value is not None]
    if kinds == {list}:
        item = _type_of([item for value in present for item in value], depth + 1)
        return None if item is None else pa.list_(item)
    if kinds == {dict} and present[0] and len(set(map(tuple, present))) == 1:
        items = {key: _type_of([value[key] for value in present], depth + 1) for key in present[0]}
        return None if None in items.values() else pa.struct(items.items())
    return None


def _number_type(values: Sequence[Any], *, has_floats: bool) -> pa.DataType | None:
    import pyarrow as pa

    least, most = (-(2**53), 2**53) if has_floats else (-(2**63), 2**63 - 1)
    if any(type(value) is int and not least <= value <= most for value in values):
        return None
    return pa.float64() if has_floats else pa.int64()


def unify(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both unchanged, ``None`` when there is none."""
    import pyarrow as pa

    if first == second or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if {first, second} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(first) and pa.types.is_list(second):
        item = unify(first.value_type, second.value_type)
        return None if item is None else pa.list_(first.value_field.with_type(item))
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        pairs = [(first.field(place), second.field(place)) for place in range(first.num_fields)]
        if [one.name for one, _ in pairs] != [field.name for field in second]:
            return None
        items = [unify(one.type, other.type) for one, other in pairs]
        if any(item is None for item in items):
            return None
        return pa.struct(
            [pa.field(one.name, item) for (one, _), item in zip(pairs, items, strict=True)]
        )
    return None
