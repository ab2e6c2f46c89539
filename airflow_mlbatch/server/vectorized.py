"""Records scored many at once, by a function that takes and returns columns.

Law: a record never fails for another one. A call that fails is made again for parts of its records,
until those that fail stand alone, each with its own message.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.protocol.intake import RecordReader
from airflow_mlbatch.protocol.results import ResultsWriter, write_record_result
from airflow_mlbatch.protocol.types import TypeName, column_to_wire
from airflow_mlbatch.protocol.values import Misfit
from airflow_mlbatch.server.blocks import Block, parts_of
from airflow_mlbatch.server.scoring import (
    MOST_RESULT_BYTES,
    OutputError,
    Outputs,
    Scorer,
    error_text,
    failure,
    too_large,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from airflow_mlbatch.protocol.services import Parameter, Service
    from airflow_mlbatch.server.outbox import Outbox
    from airflow_mlbatch.server.scoring import RecordFolder
    from airflow_mlbatch.server.wire import Task

__all__ = ["VectorizedScorer"]

log = logging.getLogger(__name__)

# So many results are sent as one piece.
_ROWS = 256


class _FullDisk(Exception):
    """The records of a call have to be run again on a disk with space."""


class VectorizedScorer(Scorer):
    """Scores chunks of records with one service.

    :param function: what it calls for each chunk
    """

    def __init__(
        self, service: Service, folder: RecordFolder, function: Callable[..., Any]
    ) -> None:
        super().__init__(service, folder, function)
        # Not with the first chunk: loading it takes longer than most of them.
        import pandas  # noqa: F401

        self._inputs = service.inputs
        self._columns = _OutputColumns(service)
        self._writer = ResultsWriter(service.outputs)
        self._has_warned = False
        # There are none, and a call is told so.
        self._files: dict[str, bytes] | None = None

    def run(self, task: Task, outbox: Outbox, is_enough: Callable[[int], bool]) -> bool:
        """As for records one by one; the worker leaves after a task and not within it."""
        outbox.begin(task.serial)
        self._files = {} if task.with_files else None
        records = task.records
        is_last = False
        for position, text, count in self._outcomes(records):
            if position + count == records.end:
                is_last = is_enough(records.length)
            if text:
                outbox.put(position, text, count, is_last=is_last)
            else:
                outbox.put_again(position, count, is_last=is_last)
        outbox.flush()
        return not is_last

    def _outcomes(self, records: Block) -> Iterator[tuple[int, bytes, int]]:
        """Position of the first record, outcomes, how many they are; no text where the disk is full."""
        try:
            columns, problems = self._scored(records)
        except _FullDisk:
            self._console.drain()
            yield records.first, b"", records.length
        except BaseException as error:
            console = self._console.drain()
            if records.length == 1:
                yield (
                    records.first,
                    failure(error_text(error), console=console, files=self._files),
                    1,
                )
                return
            self._warn(records, error)
            for part in parts_of(records):
                yield from self._outcomes(part)
        else:
            yield from self._written(records, columns, problems, self._console.drain())

    def _scored(self, records: Block) -> tuple[_Columns, dict[int, str]]:
        """The outputs as columns, and what is wrong with those of single rows."""
        stdout, sys.stdout = sys.stdout, self._console
        try:
            self._folder.enter()
            table = _table(self._inputs, self._reader, records)
            return self._columns.read_all(self._function(table), records.length)
        except BaseException as error:
            if self._folder.is_too_full(error):
                raise _FullDisk from None
            raise
        finally:
            sys.stdout = stdout
            self._folder.leave()

    def _warn(self, records: Block, error: BaseException) -> None:
        # Nobody would see why such a service is slow: most of its records succeed in the end.
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "service %r version %r: a call for %d records failed and is made again for parts of "
                "them (%s); later ones are not reported",
                *(self.service.name, self.service.version, records.length, error_text(error)),
            )

    def _written(
        self, records: Block, columns: _Columns, problems: Mapping[int, str], console: str
    ) -> Iterator[tuple[int, bytes, int]]:
        for begin in range(0, records.length, _ROWS):
            rows = range(begin, min(begin + _ROWS, records.length))
            is_plain = not problems and not (console and begin == 0) and self._files is None
            text = self._writer.write(columns, rows) if is_plain else b""
            if text and len(text) <= MOST_RESULT_BYTES:
                yield records.first + begin, text, len(rows)
                continue
            for row in rows:
                said = console if row == 0 else ""
                text = self._result(columns, row, problems.get(row, ""), said)
                yield records.first + row, text, 1

    def _result(self, columns: _Columns, row: int, problem: str, console: str) -> bytes:
        if problem:
            return failure(problem, console=console, files=self._files)
        text = write_record_result(
            success=True,
            outputs={name: column[row] for name, column in columns.items()},
            console_output=console,
            files=self._files,
        )
        return text if len(text) <= MOST_RESULT_BYTES else failure(too_large(len(text)))


_Columns = Mapping[str, Sequence[Any]]


def _table(inputs: Sequence[Parameter], reader: RecordReader, records: Block) -> pd.DataFrame:
    import pandas as pd

    columns = reader.columns(b"[%b]" % records.texts)
    arrays = {one.name: _array(one.type, columns[one.name]) for one in inputs}
    return pd.DataFrame(arrays, index=pd.RangeIndex(records.length))


def _array(kind: TypeName, values: list[Any]) -> np.ndarray[Any, Any]:
    """A column of a table. A double holds every integer of the contract, so gaps cost no digits."""
    import numpy as np

    has_gaps = None in values
    if kind == "numeric" or (kind == "integer" and has_gaps):
        return np.array(values, dtype=np.float64)
    if kind == "integer":
        return np.array(values, dtype=np.int64)
    if kind == "logical" and not has_gaps:
        return np.array(values, dtype=np.bool_)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


class _OutputColumns(Outputs):
    """Reads what the function returns: the rules and words of :class:`Outputs`, for columns."""

    def read_all(self, returned: Any, length: int) -> tuple[_Columns, dict[int, str]]:
        """The outputs as JSON values, and what is wrong with single rows.

        :param length: of each column
        :raises OutputError: names the output that is missing, undeclared, of another length or order
        """
        if not self._kinds:
            return {}, {}
        found = self._by_name(returned)
        self._check_declared(found)
        self._check_complete(found)
        columns: dict[str, Sequence[Any]] = {}
        problems: dict[int, str] = {}
        for name, kind in self._kinds.items():
            _check_column(name, found[name], length)
            try:
                columns[name] = column_to_wire(kind, found[name])
            except Misfit:
                columns[name] = self._one_by_one(name, found[name], problems)
        return columns, problems

    def _by_name(self, returned: Any) -> Mapping[Any, Any]:
        if isinstance(returned, Mapping):
            return returned
        if hasattr(returned, "columns") and hasattr(returned, "items"):
            names = list(returned.columns)
            for name in names:
                if names.count(name) > 1:
                    raise OutputError(f"output {name!r}: found two columns of this name")
            return dict(returned.items())
        if self._only is not None:
            return {self._only: returned}
        raise self._no_names(returned)

    def _one_by_one(self, name: str, column: Any, problems: dict[int, str]) -> list[Any]:
        values: list[Any] = []
        for row, value in enumerate(column):
            try:
                values.append(self._value(name, value))
            except OutputError as error:
                problems.setdefault(row, error_text(error))
                values.append(None)
        return values


def _check_column(name: str, column: Any, length: int) -> None:
    is_column = isinstance(column, list | tuple) or (
        hasattr(column, "__len__")
        and (getattr(column, "ndim", 0) > 0 or hasattr(column, "to_pylist"))
    )
    if not is_column:
        raise OutputError(
            f"output {name!r}: found {column!r:.80} ({type(column).__name__}), "
            f"expected a column of {length} values"
        )
    if len(column) != length:
        raise OutputError(
            f"output {name!r}: found {len(column)} values, expected {length}, one for each record"
        )
    if hasattr(column, "iloc") and _is_shuffled(column.index, length):
        raise OutputError(
            f"output {name!r}: found the rows in another order, expected that of the inputs"
        )


def _is_shuffled(labels: pd.Index[Any], length: int) -> bool:
    """Whether a column has the rows of the inputs in another order.

    Values go by their place: each would silently become another record's.
    """
    import pandas as pd

    return not labels.equals(pd.RangeIndex(length)) and set(labels) == set(range(length))
