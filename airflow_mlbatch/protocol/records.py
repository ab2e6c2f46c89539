"""Records: what a batch scores.

A client turns a list of dicts, a dict of columns or a DataFrame into the body of a request; a
server reads such a body. Law: only declared inputs go out, in declared order, cast to their
declared type, and a value that does not fit is named before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from airflow_mlbatch.errors import InputError, RecordError
from airflow_mlbatch.protocol.types import column_to_wire, to_wire
from airflow_mlbatch.protocol.values import Misfit

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.services import Parameter

__all__ = ["RecordWriter", "encode_record", "encode_records"]


# Records that are cast and written together: few enough to stay in the processor's cache, which is
# worth a quarter of the time, and so that a large table is never held as Python objects.
_ROWS_AT_ONCE = 4096


def encode_records(inputs: Sequence[Parameter], records: Any) -> tuple[bytes, int]:
    """Turn records into the body that starts a batch.

    :param inputs: the declared inputs, in order
    :param records: a list of dicts, a dict of equally long columns, or a pandas DataFrame
    :return: the body (a JSON list of objects) and the number of records in it
    :raises RecordError: names the record, its field, the value and the type wanted
    :raises InputError: for records of another shape
    """
    columns = _declared_columns(inputs, records)
    count = _common_length(columns)
    writer = RecordWriter(inputs)
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = {name: column[start : start + _ROWS_AT_ONCE] for name, column in columns.items()}
        writer.add(_cast_columns(inputs, rows, start))
    return writer.body(), count


def encode_record(inputs: Sequence[Parameter], record: Mapping[str, Any]) -> bytes:
    """Turn one record into the body of a request/response call.

    :raises RecordError: names the field, the value and the type wanted
    """
    if not isinstance(record, Mapping):
        raise InputError(f"inputs: found {type(record).__name__}, expected a dict")
    wire = {}
    for parameter in inputs:
        if parameter.name not in record:
            raise _missing("inputs", parameter.name, record)
        try:
            wire[parameter.name] = to_wire(parameter.type, record[parameter.name])
        except Misfit as misfit:
            raise RecordError("inputs", parameter.name, misfit.found, misfit.expected) from None
    return msgspec.json.encode(wire)


class RecordWriter:
    """Writes the body that starts a batch, block by block: a JSON list of objects.

    What was added is kept as bytes only, so that a large table is never held as Python objects.

    Objects of a class made for the purpose: building and writing a million of them takes a
    fraction of the time that dicts do.

    :param inputs: the declared inputs, in order
    """

    def __init__(self, inputs: Sequence[Parameter]) -> None:
        self._names = [parameter.name for parameter in inputs]
        # Field names of a class must be identifiers, names of inputs need not be: hence f0, f1, …
        fields = [f"f{position}" for position in range(len(inputs))]
        try:
            record = msgspec.defstruct(
                "Record",
                [(field, Any) for field in fields],
                rename=dict(zip(fields, self._names, strict=True)),
                gc=False,
            )
        except ValueError:
            # A name with a quote, a backslash or a control character, which the library refuses.
            self._record: Callable[..., Any] = self._as_dict
        else:
            self._record = record
        self._encoder = msgspec.json.Encoder()
        self._block = bytearray()
        self._pieces: list[bytes] = []
        self.count = 0

    def add(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append records: equally long columns of JSON values by name."""
        chosen = [columns[name] for name in self._names]
        for start in range(0, len(chosen[0]), _ROWS_AT_ONCE):
            self._add([column[start : start + _ROWS_AT_ONCE] for column in chosen])

    def _add(self, columns: Sequence[Sequence[Any]]) -> None:
        rows = list(map(self._record, *columns))
        self.count += len(rows)
        self._encoder.encode_into(rows, self._block)
        # A list of its own, whose brackets give way to the commas between the blocks.
        self._block[0] = ord(",")
        del self._block[-1:]
        self._pieces.append(bytes(self._block))

    def body(self) -> bytes:
        """The whole list."""
        first = self._pieces[0][1:] if self._pieces else b""
        return b"".join([b"[", first, *self._pieces[1:], b"]"])

    def _as_dict(self, *values: Any) -> dict[str, Any]:
        return dict(zip(self._names, values, strict=True))


def _declared_columns(inputs: Sequence[Parameter], records: Any) -> dict[str, Any]:
    """The columns of the declared inputs, as they were given, in a form that can be sliced."""
    if not inputs:
        raise InputError("records: the service declares no inputs, so a batch has nothing to score")
    if isinstance(records, Mapping):
        return _chosen(inputs, {str(name): column for name, column in records.items()})
    if hasattr(records, "columns") and hasattr(records, "iloc"):
        if not records.columns.is_unique:
            raise InputError("records: found a DataFrame with two columns of one name")
        return _chosen(inputs, {name: records[name] for name in records.columns})
    if isinstance(records, str | bytes) or not isinstance(records, Iterable):
        raise InputError(
            f"records: found {type(records).__name__}, "
            "expected a list of dicts, a dict of columns, or a pandas DataFrame"
        )
    rows = list(records)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"record {index}: found {type(row).__name__}, expected a dict")
    return {parameter.name: _pick(parameter.name, rows) for parameter in inputs}


def _pick(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    try:
        return [row[name] for row in rows]
    except KeyError:
        index = next(position for position, row in enumerate(rows) if name not in row)
        raise _missing(f"record {index}", name, rows[index]) from None


def _chosen(inputs: Sequence[Parameter], columns: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {}
    for parameter in inputs:
        if parameter.name not in columns:
            raise _missing("records", parameter.name, columns)
        column = columns[parameter.name]
        if isinstance(column, str | bytes) or not isinstance(column, Iterable):
            raise RecordError(
                "records", parameter.name, f"{column!r:.80}", "a column (list, array or Series)"
            )
        chosen[parameter.name] = _sliceable(column)
    return chosen


def _sliceable(column: Any) -> Any:
    """The column itself where slices of it are cheap and go by position, otherwise a list."""
    if hasattr(column, "iloc"):
        is_number = column.dtype.kind in "biuf"
        is_numpy = type(column.dtype).__module__.split(".")[0] == "numpy"
        if is_number and (is_numpy or not column.hasnans):
            return column.to_numpy()
        # A slice of a Series may go by label; its array goes by position and keeps the dtype, which
        # matters for integers with gaps: as NumPy's they would be doubles.
        return column.array
    is_array = hasattr(column, "dtype") and getattr(column, "ndim", 1) == 1
    if isinstance(column, list | tuple) or is_array or hasattr(column, "to_pylist"):
        return column
    return list(column)


def _common_length(columns: Mapping[str, Sequence[Any]]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise InputError(
            f"records: found columns of different lengths ({found}), expected one length"
        )
    return next(iter(lengths.values()), 0)


def _cast_columns(
    inputs: Sequence[Parameter], columns: Mapping[str, Any], first_index: int
) -> dict[str, list[Any]]:
    wire: dict[str, list[Any]] = {}
    for parameter in inputs:
        try:
            wire[parameter.name] = column_to_wire(parameter.type, columns[parameter.name])
        except Misfit as misfit:
            where = f"record {first_index + (misfit.position or 0)}"
            raise RecordError(where, parameter.name, misfit.found, misfit.expected) from None
    return wire


def _missing(where: str, name: str, present: Iterable[Any]) -> RecordError:
    there = ", ".join(repr(str(key)) for key in list(present)[:30]) or "nothing"
    return RecordError(
        where, name, f"no such column (there are: {there})", "a value for this input"
    )
