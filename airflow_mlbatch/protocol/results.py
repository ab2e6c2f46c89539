"""Batch results: the status of an execution and the outcome of each record, read and written.

A finished batch of a million records answers with some 120 MB in one document, so nothing here
needs the whole of it: a :class:`StatusSink` stops as soon as the state and the counts are known, a
:class:`ResultsSink` hands on blocks of records while the bytes arrive.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec

from airflow_mlbatch.errors import ContractError
from airflow_mlbatch.protocol.documents import document, lower_keys
from airflow_mlbatch.protocol.messages import KIB
from airflow_mlbatch.protocol.scan import BLOCK, BatchScanner
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.protocol.types import TYPES, from_wire, json_decoder
from airflow_mlbatch.protocol.values import Misfit

__all__ = [
    "NO_MESSAGE",
    "BatchResults",
    "BatchStatus",
    "BeginningSink",
    "FailureSink",
    "RecordBlock",
    "RecordResult",
    "ResultsSink",
    "ResultsWriter",
    "StatusSink",
    "batch_document",
    "read_record_result",
    "write_record_result",
]


@dataclass(frozen=True)
class BatchStatus:
    """How far an execution is.

    :param state: see :class:`BatchState`
    :param completed_item_count: records scored so far, failed ones included
    :param total_item_count: records in the batch
    :param message: what the server says about a batch that failed, where it says anything
    """

    state: BatchState
    completed_item_count: int = 0
    total_item_count: int = 0
    message: str = ""

    @property
    def is_terminal(self) -> bool:
        """Whether it will never change again."""
        return self.state.is_terminal

    def __str__(self) -> str:
        done, total = self.completed_item_count, self.total_item_count
        share = f", {100 * done // total} %" if total else ""
        return f"{done:,} of {total:,} records{share}"


@dataclass(frozen=True)
class RecordResult:
    """The outcome of one record.

    :param index: zero-based place of the record in the batch
    :param success: whether the service scored it
    :param outputs: output parameters by name, as Python values of their declared types
    :param error: the server's message when it failed, otherwise ``None``
    :param console_output: what the service printed
    :param artifacts: names of the files it left, to be fetched from the server
    :param files: contents of files that came inside the result, by name
    """

    index: int
    success: bool
    outputs: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    console_output: str = ""
    artifacts: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class RecordBlock:
    """Some consecutive records in columns; every list has one element for each record.

    :param first_index: zero-based place of the first record in the batch
    :param outputs: declared outputs by name, ``None`` where a record has none
    :param extra_outputs: for each record what the service returned beyond its declaration
    """

    first_index: int
    success: list[bool]
    errors: list[str | None]
    outputs: dict[str, list[Any]]
    extra_outputs: list[Mapping[str, Any]]
    console_output: list[str]
    artifacts: list[tuple[str, ...]]
    files: list[Mapping[str, bytes]]

    def __len__(self) -> int:
        return len(self.success)

    def __iter__(self) -> Iterator[RecordResult]:
        for place, success in enumerate(self.success):
            outputs = {name: column[place] for name, column in self.outputs.items()}
            yield RecordResult(
                index=self.first_index + place,
                success=success,
                outputs={**outputs, **self.extra_outputs[place]},
                error=self.errors[place],
                console_output=self.console_output[place],
                artifacts=self.artifacts[place],
                files=self.files[place],
            )


@dataclass(frozen=True)
class BatchResults:
    """State, counts and records of an execution; iterates over its records in input order.

    Partial results of a running batch are what the server had, in its order.
    """

    status: BatchStatus
    records: tuple[RecordResult, ...]

    @property
    def state(self) -> BatchState:
        """See :class:`BatchState`."""
        return self.status.state

    @property
    def completed_item_count(self) -> int:
        """Records scored so far, failed ones included."""
        return self.status.completed_item_count

    @property
    def total_item_count(self) -> int:
        """Records in the batch."""
        return self.status.total_item_count

    def __iter__(self) -> Iterator[RecordResult]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RecordResult:
        return self.records[index]


# --- reading a status ----------------------------------------------------------------------------

_STATUS_KEYS = ("state", "completedItemCount", "totalItemCount")


def _read_status(found: Mapping[str, Any], result_count: int = 0) -> BatchStatus:
    if "state" not in found:
        raise ContractError("batch status: found no state")
    state = BatchState.parse(found["state"])
    counts = []
    for key in _STATUS_KEYS[1:]:
        value = found.get(key)
        if value is None:
            value = result_count
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ContractError(f"batch status, {key}: found {value!r:.80}, expected a count")
        counts.append(value)
    completed, total = counts
    return BatchStatus(state, completed, total)


class StatusSink:
    """Reads a batch document no further than its state and counts."""

    def __init__(self) -> None:
        self._scanner = BatchScanner(take_items=None)
        self.bytes_read = 0

    def feed(self, data: bytes) -> bool:
        self.bytes_read += len(data)
        self._scanner.feed(data)
        return all(key in self._scanner.fields for key in _STATUS_KEYS)

    def close(self) -> None:
        self._scanner.close()

    @property
    def status(self) -> BatchStatus:
        """:raises ContractError: there is no state, or a count is none"""
        return _read_status(self._scanner.fields)


class FailureSink:
    """Reads the document of a failed batch no further than the first words about why.

    The contract has no place for them: a server may put them beside the state, or at each record.
    """

    def __init__(self) -> None:
        self._scanner = BatchScanner(take_items=self._take_items)
        self._of_record = ""

    def feed(self, data: bytes) -> bool:
        self._scanner.feed(data)
        return bool(self.message)

    def close(self) -> None:
        self._scanner.close()

    @property
    def message(self) -> str:
        """Those words, empty where there are none."""
        return _words(self._scanner.fields) or self._of_record

    def _take_items(self, items: bytes) -> None:
        records = msgspec.json.decode(items, type=list[dict[str, Any]])
        words = (_words(lower_keys(record)) for record in records)
        self._of_record = self._of_record or next(filter(None, words), "")


def _words(item: Mapping[str, Any]) -> str:
    found = item.get("errorMessage") or item.get("message")
    return found if isinstance(found, str) else ""


# --- reading results -----------------------------------------------------------------------------


class ResultsSink:
    """Reads a batch document and hands on its records in blocks, in input order.

    :param outputs: the declared outputs; ``None`` takes every value as it came
    :param take: called with each block
    :param block: bytes of results that are decoded at once, at least
    """

    def __init__(
        self,
        outputs: Sequence[Parameter] | None,
        take: Callable[[RecordBlock], None],
        *,
        block: int = BLOCK,
    ) -> None:
        self._decoder = _BlockDecoder(outputs)
        self._take = take
        self._scanner = BatchScanner(take_items=self._take_items, block=block)
        self.count = 0

    def feed(self, data: bytes) -> bool:
        self._scanner.feed(data)
        return False

    def close(self) -> None:
        self._scanner.close()

    @property
    def status(self) -> BatchStatus:
        """Known once the document is complete; counts that the server left out are those found."""
        return _read_status(self._scanner.fields, self.count)

    @property
    def promised(self) -> int | None:
        """How many results a complete batch has, where the document has said so by now."""
        state, total = (self._scanner.fields.get(key) for key in ("state", "totalItemCount"))
        is_known = isinstance(total, int) and str(state).casefold() == BatchState.COMPLETE
        return total if is_known else None

    def _take_items(self, items: bytes) -> None:
        block = self._decoder.decode(items, self.count)
        self.count += len(block)
        self._take(block)


class BeginningSink:
    """Reads the first records of a batch document and hangs up.

    :param outputs: the declared outputs; ``None`` takes every value as it came
    :param max_bytes: where reading stops; the piece that passes it is the last one
    """

    def __init__(self, outputs: Sequence[Parameter] | None, max_bytes: int) -> None:
        self._decoder = _BlockDecoder(outputs)
        self._scanner = BatchScanner(take_items=self._take_items, block=_FIRST_BLOCK)
        self._max_bytes = max_bytes
        self.blocks: list[RecordBlock] = []
        self.count = 0
        self.bytes_read = 0
        self.is_whole = False

    def feed(self, data: bytes) -> bool:
        self.bytes_read += len(data)
        self._scanner.feed(data)
        return self.bytes_read >= self._max_bytes

    def close(self) -> None:
        """The document ended before the limit.

        :raises ContractError: it is not whole
        """
        self._scanner.close()
        self.is_whole = True

    def _take_items(self, items: bytes) -> None:
        block = self._decoder.decode(items, self.count)
        self.count += len(block)
        self.blocks.append(block)


# Small, so that few of the records that were read are left in an unfinished block.
_FIRST_BLOCK = 32 * KIB


class _BlockDecoder:
    """Turns the text of consecutive records into a :class:`RecordBlock`.

    The straight road decodes into classes made for the declared outputs, which checks names and
    types on the way; whatever does not fit there (another spelling, boxed scalars, undeclared
    outputs, an error that wants its record named) goes record by record.
    """

    def __init__(self, outputs: Sequence[Parameter] | None) -> None:
        self._outputs = outputs
        self._fast = _typed_decoder(outputs) if outputs is not None else None
        self._decode = json_decoder(output.type for output in outputs or ())
        self._getters = [attrgetter(f"outputs.f{place}") for place in range(len(outputs or ()))]

    def decode(self, items: bytes, first_index: int) -> RecordBlock:
        """:raises NOT_JSON: the text is not whole records (the caller cut it wrongly)"""
        if self._fast is not None:
            try:
                return self._from_typed(self._fast.decode(items), first_index)
            except msgspec.ValidationError:
                pass
        found = self._decode(items)
        records = [
            _read_record(item, self._outputs, first_index + place)
            for place, item in enumerate(found)
        ]
        return self._from_records(records, first_index)

    def _from_typed(self, rows: list[Any], first_index: int) -> RecordBlock:
        # Whole columns at once, by functions that loop in C: a million records have no time for more.
        none: Mapping[str, Any] = {}
        success = list(map(_SUCCESS, rows))
        errors: list[str | None] = [None] * len(rows)
        if not all(success):
            errors = [None if row.success else row.error or NO_MESSAGE for row in rows]
        return RecordBlock(
            first_index=first_index,
            success=success,
            errors=errors,
            outputs={
                parameter.name: self._column(place, parameter, rows, first_index)
                for place, parameter in enumerate(self._outputs or ())
            },
            extra_outputs=[none] * len(rows),
            console_output=[text or "" for text in map(_CONSOLE, rows)],
            artifacts=[names or () for names in map(_CHANGED, rows)],
            files=[none] * len(rows),
        )

    def _column(
        self, place: int, parameter: Parameter, rows: list[Any], first_index: int
    ) -> list[Any]:
        try:
            column = list(map(self._getters[place], rows))
        except AttributeError:
            # A record that failed may have no outputs at all.
            column = [getattr(row.outputs, f"f{place}", None) for row in rows]
        if TYPES[parameter.type].is_nested:
            return _checked_column(parameter, column, first_index)
        return column

    def _from_records(self, records: list[RecordResult], first_index: int) -> RecordBlock:
        names = [parameter.name for parameter in self._outputs or ()]
        return RecordBlock(
            first_index=first_index,
            success=[record.success for record in records],
            errors=[record.error for record in records],
            outputs={name: [record.outputs.get(name) for record in records] for name in names},
            extra_outputs=[
                {key: value for key, value in record.outputs.items() if key not in names}
                for record in records
            ],
            console_output=[record.console_output for record in records],
            artifacts=[record.artifacts for record in records],
            files=[record.files for record in records],
        )


NO_MESSAGE = "the server gave no message"
_SUCCESS, _CONSOLE, _CHANGED = map(attrgetter, ("success", "console", "changed"))


def _typed_decoder(outputs: Sequence[Parameter]) -> msgspec.json.Decoder[Any] | None:
    fields = [(f"f{place}", TYPES[out.type].wire | None, None) for place, out in enumerate(outputs)]
    try:
        outputs_class = msgspec.defstruct(
            "Outputs",
            fields,
            rename={f"f{place}": out.name for place, out in enumerate(outputs)},
            forbid_unknown_fields=True,
            gc=False,
        )
    except ValueError:
        # A name with a quote, a backslash or a control character, which the library refuses.
        return None
    record_class = msgspec.defstruct(
        "Record",
        [
            ("success", bool),
            ("error", str | None, None),
            ("console", str | None, None),
            # A tuple: there is but one empty one, while a million empty lists keep the collector busy.
            ("changed", tuple[str, ...] | None, None),
            ("outputs", outputs_class | None, None),
            # Declared so narrowly that a record with files is read by the slower way below.
            ("files", dict[str, None] | None, None),
        ],
        rename={
            "error": "errorMessage",
            "console": "consoleOutput",
            "changed": "changedFiles",
            "outputs": "outputParameters",
            "files": "outputFiles",
        },
        # "Success" or "ErrorMessage" would be skipped in silence: such records go the slow road.
        forbid_unknown_fields=True,
        gc=False,
    )
    return msgspec.json.Decoder(list[record_class])  # type: ignore[valid-type]


def _checked_column(parameter: Parameter, column: list[Any], first_index: int) -> list[Any]:
    for place, value in enumerate(column):
        try:
            from_wire(parameter.type, value)
        except Misfit as misfit:
            raise _wrong_output(first_index + place, parameter.name, misfit) from None
    return column


def _wrong_output(index: int, name: str, misfit: Misfit) -> ContractError:
    return ContractError(f"result of record {index}, output {name!r}: {misfit}")


def _read_record(item: Any, outputs: Sequence[Parameter] | None, index: int) -> RecordResult:
    if not isinstance(item, Mapping):
        raise ContractError(f"result of record {index}: found {item!r:.80}, expected an object")
    found = lower_keys(item)
    given = found.get("outputParameters") or {}
    if not isinstance(given, Mapping):
        raise ContractError(
            f"result of record {index}, outputParameters: found {given!r:.80}, expected an object"
        )
    values = dict(given)
    for parameter in outputs or ():
        try:
            values[parameter.name] = from_wire(parameter.type, values.get(parameter.name))
        except Misfit as misfit:
            raise _wrong_output(index, parameter.name, misfit) from None
    message = str(found.get("errorMessage") or "")
    success = found.get("success")
    if not isinstance(success, bool):
        success = not message
    files = _read_files(found.get("outputFiles"), index)
    names = found.get("changedFiles") or []
    if not isinstance(names, list):
        raise ContractError(
            f"result of record {index}, changedFiles: found {names!r:.80}, expected a list of names"
        )
    return RecordResult(
        index=index,
        success=success,
        outputs=values,
        error=None if success else message or NO_MESSAGE,
        console_output=str(found.get("consoleOutput") or ""),
        artifacts=tuple(dict.fromkeys([*map(str, names), *files])),
        files=files,
    )


def _read_files(found: Any, index: int) -> dict[str, bytes]:
    if not found:
        return {}
    if not isinstance(found, Mapping):
        raise ContractError(f"result of record {index}, outputFiles: expected an object")
    try:
        return {
            str(name): base64.b64decode(text or "", validate=True) for name, text in found.items()
        }
    except (binascii.Error, ValueError, TypeError):
        raise ContractError(f"result of record {index}, outputFiles: expected base64") from None


def read_record_result(
    body: bytes, outputs: Sequence[Parameter] | None = None, index: int = 0
) -> RecordResult:
    """Read the reply to a request/response call.

    :raises ContractError: it is no such reply
    """
    decode = json_decoder(output.type for output in outputs or ())
    return _read_record(document(body, "result", decode), outputs, index)


# --- writing -------------------------------------------------------------------------------------


def write_record_result(
    *,
    success: bool,
    outputs: Mapping[str, Any],
    error: str = "",
    console_output: str = "",
    changed_files: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
) -> bytes:
    """The outcome of one record as a server sends it; ``outputs`` are JSON values already.

    :param files: contents to send inside the result, for a call that leaves nothing to fetch later
    """
    item = {
        "success": success,
        "errorMessage": error,
        "consoleOutput": console_output,
        "changedFiles": list(changed_files),
        "outputParameters": outputs,
    }
    if files is not None:
        item["outputFiles"] = dict(files)
    # msgspec writes bytes as base64.
    return msgspec.json.encode(item)


class ResultsWriter:
    """Writes the results of many records that succeeded: what :func:`write_record_result` writes.

    :param outputs: the declared outputs, in order
    """

    def __init__(self, outputs: Sequence[Parameter]) -> None:
        names = [output.name for output in outputs]
        self._names = names
        fields = [f"f{place}" for place in range(len(names))]
        self._outputs = msgspec.defstruct(
            "Outputs", fields, rename=dict(zip(fields, names, strict=True)), gc=False
        )

    def write(self, columns: Mapping[str, Sequence[Any]], rows: range) -> bytes:
        """The results of some rows, with commas between them.

        :param columns: outputs by name, as JSON values
        """
        parts = [columns[name][rows.start : rows.stop] for name in self._names]
        outputs = list(map(self._outputs, *parts)) if parts else [self._outputs()] * len(rows)
        return msgspec.json.encode(list(map(_Succeeded, outputs)))[1:-1]


class _Succeeded(msgspec.Struct, gc=False):
    outputs: Any = msgspec.field(name="outputParameters")
    success: bool = True
    errorMessage: str = ""  # noqa: N815
    consoleOutput: str = ""  # noqa: N815
    changedFiles: tuple[()] = ()  # noqa: N815


def batch_document(
    status: BatchStatus, results: Iterable[bytes], *, is_capitalized: bool = False
) -> Iterator[bytes]:
    """A batch document piece by piece: state and counts first, so that a poll can stop early.

    :param results: outcomes of consecutive records, each from :func:`write_record_result`
    :param is_capitalized: whether the state is ``Complete``, for the vendor's own clients, and not
        ``complete``, as the Swagger document has it
    """
    head = msgspec.json.encode(
        {
            "state": status.state.capitalized if is_capitalized else status.state.value,
            "completedItemCount": status.completed_item_count,
            "totalItemCount": status.total_item_count,
        }
    )
    yield head[:-1] + b',"batchExecutionResults":['
    separator = b""
    for result in results:
        yield separator + result
        separator = b","
    yield b"]}"
