"""Records that fail: how many are too many, where they go, and how a second try replaces them.

Law: one policy wherever results are read, and the error that fails a task names the first failures,
not just how many there were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.datasets.columns import ERROR_COLUMN, INDEX_COLUMN, SUCCESS_COLUMN
from airflow_mlbatch.datasets.jsonlines import ASKED, is_json_text
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.soundness import shown
from airflow_mlbatch.datasets.writers import WrittenTable, open_table
from airflow_mlbatch.errors import DatasetError, InputError, RecordsFailedError
from airflow_mlbatch.protocol.failures import SHOWN_FAILURES, cut_message
from airflow_mlbatch.protocol.results import RecordBlock, RecordResult

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import pyarrow as pa

    from airflow_mlbatch.datasets.writers import TableWriter

__all__ = [
    "Failure",
    "FailureLog",
    "FailurePolicy",
    "RejectsWriter",
    "open_rejects",
    "rejects_schema",
    "splice",
]

_SHOWN_VALUE = 60


@dataclass(frozen=True)
class Failure:
    """A record that failed.

    :param index: zero-based row of the input table
    :param inputs: its inputs by column name, empty when they are not known
    """

    index: int
    error: str
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        inputs = ", ".join(
            f"{name}={_cut(repr(value), _SHOWN_VALUE)}" for name, value in self.inputs.items()
        )
        message = cut_message(" ".join(self.error.split()))
        return (
            f"record {self.index} ({inputs}): {message}"
            if inputs
            else f"record {self.index}: {message}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For an XCom or a manifest; long texts are cut."""
        inputs = {name: _shown(value) for name, value in self.inputs.items()}
        return {"index": self.index, "inputs": inputs, "error": cut_message(self.error)}


@dataclass(frozen=True)
class FailurePolicy:
    """How many records may fail.

    :param max_failed_records: a count (a whole number from 0 on), or a fraction of all records
        (between 0 and 1, both excluded); text of either, because templates render to text
    :raises InputError: it is neither
    """

    max_failed_records: int | float = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_failed_records", _limit(self.max_failed_records))

    def most_failed(self, total: int) -> int:
        """How many of ``total`` records may fail."""
        limit = self.max_failed_records
        # In digits as they were given: 0.29 * 100 in doubles is less than 29.
        return int(Decimal(str(limit)) * total) if isinstance(limit, float) else limit

    def allows(self, failed: int, total: int) -> bool:
        """Whether ``failed`` of ``total`` records are not too many."""
        return failed <= self.most_failed(total)

    def judge(
        self, failed: int, total: int, first_failures: Iterable[Failure] = (), *, what: str = ""
    ) -> None:
        """Fail when too many records failed.

        :param first_failures: the first of them; at most five are shown, long values cut
        :param what: the service or execution to name in the error
        :raises RecordsFailedError: names counts, policy and the first failures
        """
        if self.allows(failed, total):
            return
        shown = list(first_failures)[:SHOWN_FAILURES]
        limit = self.max_failed_records
        allowed = f"{limit:g} of all" if isinstance(limit, float) else f"{limit:,}"
        message = (
            f"{what + ': ' if what else ''}{failed:,} of {total:,} records failed, "
            f"max_failed_records={limit!r} allows {allowed}"
        )
        if shown:
            head = "they are" if len(shown) == failed else f"the first {len(shown)} are"
            message += f"; {head}: " + "; ".join(map(str, shown))
        raise RecordsFailedError(
            message,
            [failure.as_dict() for failure in shown],
            failed=failed,
            completed=total,
            total=total,
        )


def _limit(found: Any) -> int | float:
    expected = "expected a count (0, 1, 2, …) or a fraction between 0 and 1"
    value = found
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            try:
                value = float(value)
            except ValueError:
                raise InputError(f"max_failed_records: found {found!r:.80}, {expected}") from None
    if isinstance(value, float) and value == 0:
        value = 0
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    is_fraction = isinstance(value, float) and 0 < value < 1
    if not is_count and not is_fraction:
        raise InputError(f"max_failed_records: found {found!r:.80}, {expected}")
    return value  # type: ignore[no-any-return]


class FailureLog:
    """Counts failures block by block and remembers the first few with their inputs.

    :param inputs: columns of the input to show, in order; ``None`` shows those of the input table
    """

    def __init__(self, inputs: Sequence[str] | None = None) -> None:
        self._inputs = inputs
        self.failed = self.total = 0
        self.first: list[Failure] = []

    def take(self, scored: pa.RecordBatch, rows: pa.RecordBatch | None) -> None:
        """Take what :meth:`ScoredRows.add` gave."""
        success = scored.column(SUCCESS_COLUMN)
        failed = int(scored.num_rows - (success.true_count))
        self.total += scored.num_rows
        self.failed += failed
        if failed and len(self.first) < SHOWN_FAILURES:
            for place in _failed_places(scored)[: SHOWN_FAILURES - len(self.first)]:
                self.first.append(self._failure(scored, rows, place))

    def _failure(self, scored: pa.RecordBatch, rows: pa.RecordBatch | None, place: int) -> Failure:
        inputs = {}
        if rows is not None:
            names = rows.schema.names if self._inputs is None else self._inputs
            inputs = {name: _value(rows.column(name)[place]) for name in names}
        return Failure(
            index=scored.column(INDEX_COLUMN)[place].as_py(),
            error=scored.column(ERROR_COLUMN)[place].as_py() or "",
            inputs=inputs,
        )


def _failed_places(scored: pa.RecordBatch) -> list[int]:
    import numpy as np

    success = scored.column(SUCCESS_COLUMN).to_numpy(zero_copy_only=False)
    return [int(place) for place in np.flatnonzero(~success.astype(bool))]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception:
        # Python has no object for it: a date in the year 300,000, a time in an unknown zone.
        return shown(scalar)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + "…"


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(value if isinstance(value, str) else repr(value), _SHOWN_VALUE)


# --- rejects -------------------------------------------------------------------------------------


class RejectsWriter:
    """Writes the failed rows: their input columns, ``mlbatch_index``, ``mlbatch_error``.

    The table is written also when nothing failed, without rows, so that the rejects of an earlier
    run never pass for those of this one.
    """

    def __init__(self, table: TableWriter, columns: Sequence[str], schema: pa.Schema) -> None:
        self._table, self._columns, self._schema = table, list(columns), schema

    def take(self, scored: pa.RecordBatch, rows: pa.RecordBatch | None) -> None:
        """Take what :meth:`ScoredRows.add` gave."""
        import pyarrow as pa

        places = _failed_places(scored)
        if not places:
            return
        chosen = pa.array(places, pa.int64())
        failed = scored.take(chosen)
        arrays = []
        if rows is not None:
            inputs = rows.take(chosen)
            arrays = [inputs.column(name) for name in self._columns]
        arrays += [failed.column(INDEX_COLUMN), failed.column(ERROR_COLUMN)]
        self._table.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    @property
    def written(self) -> WrittenTable | None:
        """What is in place, after the ``with`` block."""
        return self._table.written


def open_rejects(
    path: StoragePath,
    *,
    input_schema: pa.Schema | None = None,
    attempt: str | None = None,
) -> AbstractContextManager[RejectsWriter]:
    """Write failed rows to ``path``, in the format of its name; in place after the ``with`` block.

    :param input_schema: of the input rows, ``None`` when there is no input table
    :raises DatasetError: an input column has the name of one of the two added ones
    """
    import contextlib

    names = [] if input_schema is None else input_schema.names
    schema = rejects_schema(input_schema)

    @contextlib.contextmanager
    def opened() -> Iterator[RejectsWriter]:
        with open_table(path, schema=schema, attempt=attempt) as table:
            yield RejectsWriter(table, names, schema)

    return opened()


def rejects_schema(input_schema: pa.Schema | None) -> pa.Schema:
    """The columns of the rejects: those of the input, ``mlbatch_index``, ``mlbatch_error``.

    :raises DatasetError: an input column has the name of one of the two added ones
    """
    import pyarrow as pa

    inputs = list(input_schema or ())
    clashes = [field.name for field in inputs if field.name in (INDEX_COLUMN, ERROR_COLUMN)]
    if clashes:
        raise DatasetError(
            f"rejects_path: found {', '.join(map(repr, clashes))} among the input columns, "
            "which the rejects add; rename them in the input"
        )
    fields = [_as_asked(field) for field in inputs]
    return pa.schema(
        [*fields, pa.field(INDEX_COLUMN, pa.int64()), pa.field(ERROR_COLUMN, pa.string())]
    )


def _as_asked(field: pa.Field) -> pa.Field:
    # Rejects are there to be looked at: values of mixed types may stand in them as JSON text.
    return (
        field.with_metadata({**(field.metadata or {}), **ASKED}) if is_json_text(field) else field
    )


# --- a second try --------------------------------------------------------------------------------


def splice(block: RecordBlock, replacements: Mapping[int, RecordResult]) -> RecordBlock:
    """The block with some of its records replaced by those of a later try.

    :param replacements: by index in the first batch; an index outside of the block is left alone
    """
    here = [
        index
        for index in range(block.first_index, block.first_index + len(block))
        if index in replacements
    ]
    if not here:
        return block
    spliced = RecordBlock(
        first_index=block.first_index,
        success=list(block.success),
        errors=list(block.errors),
        outputs={name: list(column) for name, column in block.outputs.items()},
        extra_outputs=list(block.extra_outputs),
        console_output=list(block.console_output),
        artifacts=list(block.artifacts),
        files=list(block.files),
    )
    for index in here:
        _replace(spliced, index - block.first_index, replacements[index])
    return spliced


def _replace(block: RecordBlock, place: int, result: RecordResult) -> None:
    block.success[place], block.errors[place] = result.success, result.error
    for name, column in block.outputs.items():
        column[place] = result.outputs.get(name)
    block.extra_outputs[place] = {
        name: value for name, value in result.outputs.items() if name not in block.outputs
    }
    block.console_output[place] = result.console_output
    block.artifacts[place] = result.artifacts
    block.files[place] = result.files
