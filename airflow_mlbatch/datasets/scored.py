"""Rows out: kept input columns, the outputs, and what became of each record.

Law: results and inputs are joined by position and by nothing else; counts that differ are an error.
Memory depends on the block.

The columns, in this order: ``id_columns``, the other kept columns, the declared outputs,
``mlbatch_index`` (int64, zero-based row of the input table), ``mlbatch_success`` (bool),
``mlbatch_error`` (the service's message, null where there is none), and the column for console output,
where one was asked for (null where nothing was printed).

========== =====================================================================================
output     written as
========== =====================================================================================
logical    bool
integer    int64
numeric    double
character  string
vector     list of double, string or bool; JSON text in CSV
matrix     list of such lists; JSON text in CSV
data.frame columns ``{output}_{column}`` when every frame has one row; otherwise a struct of lists
           (the shape it has on the wire); JSON text in CSV
========== =====================================================================================

What nested outputs hold is learned from the first records that show it. Blocks that show nothing
(records that failed, empty vectors) are held back until others do, up to ``HELD_RECORDS``; then
numbers are taken for granted. What the service returned beyond its declaration is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from airflow_mlbatch.datasets.casting import words_to_wire
from airflow_mlbatch.datasets.columns import (
    ERROR_COLUMN,
    INDEX_COLUMN,
    OWN_COLUMNS,
    SUCCESS_COLUMN,
    listed,
    repeated,
)
from airflow_mlbatch.datasets.formats import named_format
from airflow_mlbatch.datasets.jsonlines import JSON_TEXT, json_text
from airflow_mlbatch.datasets.nested import (
    ASSUMED,
    Elements,
    FrameShape,
    Misshape,
    element_type,
    frame_type,
    nested_type,
)
from airflow_mlbatch.datasets.rows import TableRows
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.results import RecordBlock
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import TYPES, TypeName
from airflow_mlbatch.protocol.values import Misfit

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "DataFrames",
    "ScoredBatch",
    "ScoredRows",
    "check_console_column",
    "chosen_columns",
    "is_spread",
]

# Records without outputs cost little; a million of them would still be too many to hold.
HELD_RECORDS = 100_000

DataFrames: TypeAlias = Literal["auto", "columns", "nested"]


def chosen_columns(
    present: Sequence[str],
    outputs: Sequence[Parameter],
    *,
    keep_columns: Literal["all"] | Sequence[str] | None = "all",
    id_columns: Sequence[str] = (),
) -> list[str]:
    """Which columns of the input go into the scored table, in order.

    :param present: the columns that the input has
    :param keep_columns: ``"all"``, names, or ``None`` for none but the id columns
    :param id_columns: always kept, and first
    :raises DatasetError: a column is not there, or its name is that of an output or of one of this
        package's own columns
    """
    ids, known = _names("id_columns", id_columns), set(present)
    if keep_columns == "all":
        kept = list(present)
    else:
        kept = [] if keep_columns is None else _names("keep_columns", keep_columns)
    for parameter, names in (("id_columns", ids), ("keep_columns", kept)):
        missing = [name for name in names if name not in known]
        if missing:
            raise DatasetError(
                f"{parameter}: found {listed(missing)}, "
                f"expected columns of the input (there are: {listed(present):.2000})"
            )
    chosen = list(dict.fromkeys([*ids, *kept]))
    _refuse_clashes(chosen, [output.name for output in outputs])
    return chosen


def _names(parameter: str, found: Any) -> list[str]:
    if isinstance(found, str) or not all(isinstance(name, str) for name in found):
        raise DatasetError(f"{parameter}: found {found!r:.80}, expected a list of column names")
    return list(found)


def _refuse_clashes(kept: Sequence[str], outputs: Sequence[str]) -> None:
    twice = set(repeated(outputs))
    clashes = [name for name in outputs if name in OWN_COLUMNS or name in twice]
    if clashes:
        raise DatasetError(
            f"outputs: found {listed(clashes)}, "
            f"expected names other than {', '.join(OWN_COLUMNS)}, and each once"
        )
    taken = {*OWN_COLUMNS, *outputs}
    clashes = [name for name in kept if name in taken]
    if clashes:
        raise DatasetError(
            f"keep_columns: found {listed(clashes)}, which is also the name of an "
            "output or of a column that the scored table adds; leave it out of keep_columns and "
            "id_columns, or rename it in the input"
        )


def check_console_column(
    console_column: str | None, kept: Sequence[str], outputs: Sequence[Parameter]
) -> None:
    """Whether console output can have a column of this name.

    :param kept: columns of the input in the scored table
    :raises DatasetError: it is no name, or that of another column
    """
    if console_column is None:
        return
    if not isinstance(console_column, str) or not console_column.strip():
        raise DatasetError(
            f"console_column: found {console_column!r:.80}, expected the name of a column"
        )
    if console_column in {*kept, *OWN_COLUMNS, *(output.name for output in outputs)}:
        raise DatasetError(
            f"console_column: found {console_column!r}, which is also the name of a kept column, of an "
            "output, or of a column that the scored table adds; choose another one"
        )


def is_spread(data_frames: DataFrames) -> bool | None:
    """Whether frames become columns; ``None`` where the first of them decide.

    :raises DatasetError: it is none of the three choices
    """
    choices = {"auto": None, "columns": True, "nested": False}
    if data_frames not in choices:
        raise DatasetError(
            f"data_frames: found {data_frames!r:.80}, expected 'auto', 'columns' or 'nested'"
        )
    return choices[data_frames]


class ScoredBatch(NamedTuple):
    """Rows of the scored table, and the same rows of the input with all columns that were opened.

    :param rows: ``None`` when there is no input
    """

    scored: pa.RecordBatch
    rows: pa.RecordBatch | None


class ScoredRows:
    """Turns blocks of results into record batches of the scored table.

    :param outputs: the declared outputs
    :param format: of the table to be written (``parquet``, ``csv``, ``tsv``, ``jsonl``)
    :param rows: the input, from :func:`airflow_mlbatch.datasets.readers.open_rows`; ``None`` when
        there is no input to keep or to show
    :param kept: columns of ``rows`` for the scored table, from :func:`chosen_columns`
    :param first_index: row of the input table that the first record is
    :param data_frames: ``"columns"`` spreads one-row frames, ``"nested"`` keeps frames whole,
        ``"auto"`` spreads when all frames of the first records have one row
    :param types: of kept columns whose cells are text, from
        :func:`airflow_mlbatch.datasets.column_types.types_of_columns`; the others stay as they are
    :param console_column: the column for what each record has printed, ``None`` for none
    :raises DatasetError: before anything is read, when names clash
    """

    def __init__(
        self,
        outputs: Sequence[Parameter],
        *,
        format: str,
        rows: TableRows | None = None,
        kept: Sequence[str] = (),
        first_index: int = 0,
        data_frames: DataFrames = "auto",
        types: Mapping[str, TypeName] | None = None,
        console_column: str | None = None,
    ) -> None:
        _refuse_clashes(kept, [output.name for output in outputs])
        check_console_column(console_column, kept, outputs)
        self._console_column = console_column
        spread = is_spread(data_frames)
        self._columns = [_column_for(output, format, spread) for output in outputs]
        self._inputs = None if rows is None else _Feed(rows)
        self._kept, self._first_index = list(kept), first_index
        self._types = {name: kind for name, kind in (types or {}).items() if kind != "character"}
        self._held: list[RecordBlock] = []
        self._held_records = 0
        self._schema: pa.Schema | None = None
        self.count = 0

    @property
    def schema(self) -> pa.Schema:
        """The columns of the scored table; settled by the first call."""
        return self._schema or self._settle()

    @property
    def input_schema(self) -> pa.Schema | None:
        """The columns of the input that were opened, ``None`` when there is no input."""
        return None if self._inputs is None else self._inputs.schema

    def add(self, block: RecordBlock) -> list[ScoredBatch]:
        """Take the next results, in input order.

        :return: what is ready to be written; nothing while the types of nested outputs are learned
        :raises DatasetError: there are more results than rows, or an output does not continue what
            the ones before began
        """
        for column in self._columns:
            column.learn(block, self._first_index + self.count + self._held_records)
        if self._schema is None:
            self._held.append(block)
            self._held_records += len(block)
            is_known = all(column.is_known for column in self._columns)
            if not is_known and self._held_records < HELD_RECORDS:
                return []
            self._settle()
            return self._release()
        return [self._batch(block)]

    def finish(self) -> list[ScoredBatch]:
        """What was held back; then check that the input is used up.

        :raises DatasetError: the input has more rows than there were results; names both counts
        """
        if self._schema is None:
            self._settle()
        last = self._release()
        if self._inputs is not None:
            left = self._inputs.count_left()
            if left:
                raise DatasetError(
                    f"found {self.count:,} results for {self.count + left:,} rows of input, "
                    "expected as many results as rows"
                )
        return last

    def _settle(self) -> pa.Schema:
        import pyarrow as pa

        kept = [] if self._inputs is None else [self._kept_field(name) for name in self._kept]
        fields = [field for column in self._columns for field in column.settle()]
        own = [
            pa.field(INDEX_COLUMN, pa.int64()),
            pa.field(SUCCESS_COLUMN, pa.bool_()),
            pa.field(ERROR_COLUMN, pa.string()),
        ]
        if self._console_column is not None:
            own.append(pa.field(self._console_column, pa.string()))
        schema = pa.schema([*kept, *fields, *own])
        twice = repeated(schema.names)
        if twice:
            raise DatasetError(
                f"scored table: found {listed(twice)} more than once (a column of a "
                "data.frame output is named {output}_{column}); leave it out of keep_columns, "
                'call console_column otherwise, or choose data_frames="nested"'
            )
        self._schema = schema
        return schema

    def _kept_field(self, name: str) -> pa.Field:
        import pyarrow as pa

        assert self._inputs is not None
        kind = self._types.get(name)
        if kind is None:
            return self._inputs.schema.field(name)
        return pa.field(name, pa.type_for_alias(TYPES[kind].arrow))

    def _kept_column(self, rows: pa.RecordBatch, name: str) -> pa.Array:
        import pyarrow as pa

        kind = self._types.get(name)
        if kind is None:
            return rows.column(name)
        try:
            values = words_to_wire(kind, rows.column(name))
        except Misfit as misfit:
            row = self._first_index + self.count + (misfit.position or 0)
            raise DatasetError(f"row {row}, column {name!r}: {misfit}") from None
        return _array(values, pa.type_for_alias(TYPES[kind].arrow))

    def _release(self) -> list[ScoredBatch]:
        held, self._held, self._held_records = self._held, [], 0
        return [self._batch(block) for block in held]

    def _batch(self, block: RecordBlock) -> ScoredBatch:
        import numpy as np
        import pyarrow as pa

        first = self._first_index + self.count
        rows = None
        if self._inputs is not None:
            rows = self._inputs.take(len(block))
            if rows.num_rows < len(block):
                raise DatasetError(
                    f"found at least {self.count + len(block):,} results for "
                    f"{self.count + rows.num_rows:,} rows of input, expected as many results as rows"
                )
        arrays = [] if rows is None else [self._kept_column(rows, name) for name in self._kept]
        for column in self._columns:
            arrays += column.arrays(block)
        arrays += [
            pa.array(np.arange(first, first + len(block), dtype=np.int64)),
            pa.array(block.success, pa.bool_()),
            pa.array(block.errors, pa.string()),
        ]
        if self._console_column is not None:
            arrays.append(pa.array([text or None for text in block.console_output], pa.string()))
        self.count += len(block)
        return ScoredBatch(pa.RecordBatch.from_arrays(arrays, schema=self.schema), rows)


class _Feed:
    """Hands out exactly as many rows as are asked for."""

    def __init__(self, rows: TableRows) -> None:
        self.schema, self._batches = rows.schema, rows.batches
        self._rest: pa.RecordBatch | None = None

    def take(self, count: int) -> pa.RecordBatch:
        """``count`` rows, or fewer at the end of the table."""
        import pyarrow as pa

        parts, missing = [], count
        while missing:
            batch = self._next()
            if batch is None:
                break
            parts.append(batch.slice(0, missing))
            self._rest = batch.slice(missing) if batch.num_rows > missing else None
            missing -= parts[-1].num_rows
        if not parts:
            return pa.RecordBatch.from_pylist([], schema=self.schema)
        if len(parts) == 1:
            return parts[0]
        return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]

    def count_left(self) -> int:
        count = 0
        while (batch := self._next()) is not None:
            count += batch.num_rows
        return count

    def _next(self) -> pa.RecordBatch | None:
        rest, self._rest = self._rest, None
        return rest if rest is not None else next(self._batches, None)


# --- outputs as columns --------------------------------------------------------------------------


class _Scalar:
    """A logical, integer, numeric or character output."""

    is_known = True

    def __init__(self, output: Parameter) -> None:
        import pyarrow as pa

        self._name = output.name
        self._type = pa.type_for_alias(TYPES[output.type].arrow)

    def learn(self, block: RecordBlock, first: int) -> None:
        return None

    def settle(self) -> list[pa.Field]:
        import pyarrow as pa

        return [pa.field(self._name, self._type)]

    def arrays(self, block: RecordBlock) -> list[pa.Array]:
        import pyarrow as pa

        return [pa.array(block.outputs[self._name], self._type)]


class _JsonText:
    """A nested output in a text format, where its values need no common type."""

    is_known = True

    def __init__(self, output: Parameter) -> None:
        self._name = output.name

    def learn(self, block: RecordBlock, first: int) -> None:
        return None

    def settle(self) -> list[pa.Field]:
        import pyarrow as pa

        return [pa.field(self._name, pa.string(), metadata=JSON_TEXT)]

    def arrays(self, block: RecordBlock) -> list[pa.Array]:
        import pyarrow as pa

        return [pa.array([json_text(v) for v in block.outputs[self._name]], pa.string())]


class _Nested:
    """A vector or a matrix as lists."""

    def __init__(self, output: Parameter) -> None:
        self._output, self._elements = output, Elements()

    @property
    def is_known(self) -> bool:
        return self._elements.is_known

    def learn(self, block: RecordBlock, first: int) -> None:
        try:
            self._elements.learn(block.outputs[self._output.name])
        except Misshape as error:
            raise _misshapen(self._output, first, error) from None

    def settle(self) -> list[pa.Field]:
        import pyarrow as pa

        metadata = _settled(self._elements)
        self._type = nested_type(self._output.type, self._elements)
        return [pa.field(self._output.name, self._type, metadata=metadata)]

    def arrays(self, block: RecordBlock) -> list[pa.Array]:

        return [_array(block.outputs[self._output.name], self._type)]


class _Frame:
    """A data.frame: spread over columns, or whole."""

    def __init__(self, output: Parameter, spread: bool | None, whole_as_text: bool) -> None:
        self._output, self._shape = output, FrameShape(spread, is_free=whole_as_text)
        self._whole_as_text = whole_as_text
        self._is_settled = False

    @property
    def is_known(self) -> bool:
        return self._shape.is_known

    def learn(self, block: RecordBlock, first: int) -> None:
        try:
            self._shape.learn(block.outputs[self._output.name], is_settled=self._is_settled)
        except Misshape as error:
            raise _misshapen(self._output, first, error) from None

    def settle(self) -> list[pa.Field]:
        import pyarrow as pa

        self._is_settled = True
        name, columns = self._output.name, self._shape.columns
        assumed = {column: _settled(elements) for column, elements in columns.items()}
        if self._shape.is_spread and self._shape.is_seen:
            return [
                pa.field(
                    f"{name}_{column}", element_type(elements.element), metadata=assumed[column]
                )
                for column, elements in columns.items()
            ]
        # Without a single frame there is no type to learn, and nothing but nulls to write.
        if not self._shape.is_seen:
            return [pa.field(name, pa.null(), metadata=ASSUMED)]
        if self._whole_as_text:
            return [pa.field(name, pa.string(), metadata=JSON_TEXT)]
        is_assumed = any(assumed.values())
        return [pa.field(name, frame_type(self._shape), metadata=ASSUMED if is_assumed else None)]

    def arrays(self, block: RecordBlock) -> list[pa.Array]:
        import pyarrow as pa

        frames = block.outputs[self._output.name]
        if not self._shape.is_seen:
            return [pa.nulls(len(frames))]
        if self._shape.is_spread:
            return [
                _array(
                    [None if frame is None else frame[column][0] for frame in frames],
                    element_type(elements.element),
                )
                for column, elements in self._shape.columns.items()
            ]
        if self._whole_as_text:
            return [pa.array([json_text(frame) for frame in frames], pa.string())]
        return [_array(frames, frame_type(self._shape))]


def _settled(elements: Elements) -> dict[bytes, bytes] | None:
    """Take numbers for granted where no value came; the field's metadata says that it was so."""
    if elements.is_known:
        return None
    elements.element = "number"
    return ASSUMED


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    try:
        return pa.array(values, kind)
    except pa.ArrowInvalid:
        # Arrow takes an integer beyond 2^53 for no double, also where it is one exactly.
        return pa.array(_with_floats(values), kind)


def _with_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_number else value


def _column_for(
    output: Parameter, format: str, spread: bool | None
) -> _Scalar | _JsonText | _Nested | _Frame:
    is_typed = named_format(format).kind.has_column_types
    shape = TYPES[output.type].shape
    if shape == "frame":
        if spread is False and not is_typed:
            return _JsonText(output)
        return _Frame(output, spread, whole_as_text=not is_typed)
    if shape in ("list", "rows"):
        return _Nested(output) if is_typed else _JsonText(output)
    return _Scalar(output)


def _misshapen(output: Parameter, first: int, error: Misshape) -> DatasetError:
    return DatasetError(
        f"record {first + error.position}, output {output.name!r}: {error}. A column of Parquet has "
        "one type; JSON Lines (format='jsonl') takes values of any"
    )
