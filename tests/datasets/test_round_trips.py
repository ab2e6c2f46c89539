"""Property: a table comes back equal, or is refused with the name of its column. Nothing changes
silently, in any format and of any type."""

from __future__ import annotations

import datetime
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlbatch.datasets import casting, readers, writers
from airflow_mlbatch.errors import DatasetError, RecordError
from airflow_mlbatch.protocol.records import RecordWriter
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import TYPES, column_to_wire, from_text, to_wire
from airflow_mlbatch.protocol.values import Misfit
from tests.datasets.blocks import block, read, score

EARLY = datetime.datetime.fromisoformat("1700-01-01")
LATE = datetime.datetime.fromisoformat("2200-01-01")
some = settings(max_examples=80, deadline=None)
few = settings(max_examples=40, deadline=None)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# Python 3.10 reads no header with NUL in it, and says so.
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
names = st.text(letters, min_size=1, max_size=8)
safe_integers = st.integers(-(2**53), 2**53)
any_integers = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
element_kinds = [st.booleans(), finite, text]


def nullable(strategy: Any) -> Any:
    return st.none() | strategy


def lists(elements: Any, size: Any = None) -> Any:
    return st.lists(nullable(elements), max_size=3, **({} if size is None else size))


@st.composite
def matrices(draw: Any, elements: Any) -> list[list[Any]]:
    width = draw(st.integers(0, 3))
    row = st.lists(nullable(elements), min_size=width, max_size=width)
    return draw(st.lists(row, max_size=3))


@st.composite
def frames(draw: Any, columns: dict[str, Any]) -> dict[str, list[Any]]:
    height = draw(st.integers(0, 3))
    return {
        name: draw(st.lists(nullable(elements), min_size=height, max_size=height))
        for name, elements in columns.items()
    }


@st.composite
def wire_columns(draw: Any, kind: str, size: int) -> list[Any]:
    """Values of one declared type, as the wire carries them."""
    elements = draw(st.sampled_from(element_kinds))
    columns = draw(st.dictionaries(names, st.sampled_from(element_kinds), min_size=1, max_size=3))
    values = {
        "logical": st.booleans(),
        "integer": safe_integers,
        "numeric": finite,
        "character": text,
        "vector": lists(elements),
        "matrix": matrices(elements),
        "data.frame": frames(columns),
    }[kind]
    return draw(st.lists(nullable(values), min_size=size, max_size=size))


@st.composite
def typed_tables(draw: Any) -> tuple[list[Parameter], dict[str, list[Any]]]:
    """Any mix of the seven types, from no row to several."""
    size = draw(st.integers(0, 6))
    kinds = draw(st.dictionaries(names, st.sampled_from(list(TYPES)), min_size=1, max_size=5))
    inputs = [Parameter(name, kind) for name, kind in kinds.items()]
    return inputs, {name: draw(wire_columns(kind, size)) for name, kind in kinds.items()}


@contextmanager
def folder() -> Iterator[Path]:
    # Hypothesis runs many examples in one test, which share its tmp_path.
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def refused(write: Callable[[], Any]) -> str | None:
    """The words of a refusal, ``None`` when there is none."""
    try:
        write()
    except DatasetError as error:
        return str(error)
    return None


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same kind: true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.tsv.gz", "t.parquet", "t.jsonl"])
@given(table=typed_tables())
@some
def test_outputs_written_and_read_as_inputs(name: str, table: Any) -> None:
    """What one service returned is what the next one is sent."""
    parameters, columns = table
    with folder() as place:
        refusal = refused(
            lambda: score(place / name, parameters, [block(0, columns)], data_frames="nested")
        )
        if refusal is not None:
            assert any(repr(parameter.name) in refusal for parameter in parameters)
            return
        wire, count = readers.read_inputs(place / name, parameters)
        assert count == len(next(iter(columns.values())))
        for parameter in parameters:
            assert same(wire[parameter.name], columns[parameter.name]), parameter
        RecordWriter(parameters).add(wire)


@given(table=typed_tables(), start=st.integers(0, 6), stop=st.integers(0, 6))
@few
def test_json_lines_as_inputs_are_the_records_themselves(table: Any, start: int, stop: int) -> None:
    parameters, columns = table
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    with folder() as place:
        path = place / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        expected = {
            parameter.name: column_to_wire(parameter.type, columns[parameter.name])
            for parameter in parameters
        }
        assert same(readers.read_inputs(path, parameters)[0], expected)
        if start <= stop <= len(rows):
            part, count = readers.read_inputs(path, parameters, row_range=(start, stop))
            assert count == stop - start
            assert same(part, {name: column[start:stop] for name, column in expected.items()})


cells = st.one_of(
    text,
    st.text("0123456789.eE+-xnaifINF _", max_size=8),
    st.integers(-(10**25), 10**25).map(str),
    st.integers(2**53 - 3, 2**53 + 3).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["", "NA", "NaN", " true", "T", "no", "[1]", "{}", "1e400", "0x1F", "+5", "١٢"]
    ),
)


@pytest.mark.parametrize("kind", TYPES)
@given(words=st.lists(st.none() | cells, max_size=6))
@some
def test_fast_and_slow_road_agree_on_text(kind: Any, words: list[str | None]) -> None:
    def slow(word: str | None) -> Any:
        return to_wire(kind, None if word is None else from_text(kind, word))

    array = pa.array(words, pa.string())
    try:
        expected = [slow(word) for word in words]
    except Misfit as misfit:
        with pytest.raises(Misfit) as fast:
            casting.words_to_wire(kind, array)
        assert (fast.value.found, fast.value.expected) == (misfit.found, misfit.expected)  # noqa: PT017
        with pytest.raises(Misfit):
            slow(words[fast.value.position or 0])
        return
    assert same(casting.words_to_wire(kind, array), expected)


arrow_columns = st.one_of(
    st.tuples(
        st.sampled_from(
            [pa.int8(), pa.uint8(), pa.int64(), pa.uint64(), pa.float32(), pa.float64()]
        ),
        st.lists(nullable(st.integers(0, 100) | st.just(2**53 - 1)), max_size=5),
    ),
    st.tuples(st.just(pa.int64()), st.lists(nullable(any_integers), max_size=5)),
    st.tuples(st.just(pa.float64()), st.lists(nullable(st.floats()), max_size=5)),
    st.tuples(st.just(pa.bool_()), st.lists(nullable(st.booleans()), max_size=5)),
    st.tuples(
        st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]),
        st.lists(nullable(text), max_size=5),
    ),
    st.tuples(
        st.just(pa.decimal128(38, 6)),
        st.lists(nullable(st.decimals(-(10**20), 10**20, places=6, allow_nan=False)), max_size=5),
    ),
    st.tuples(st.just(pa.date32()), st.lists(nullable(st.dates()), max_size=5)),
    st.tuples(
        st.sampled_from([pa.timestamp("us"), pa.timestamp("us", "UTC")]),
        st.lists(
            nullable(st.datetimes(EARLY, LATE)),
            max_size=5,
        ),
    ),
    st.tuples(st.just(pa.binary()), st.lists(nullable(st.binary(max_size=4)), max_size=5)),
    st.tuples(
        st.just(pa.list_(pa.float64())), st.lists(nullable(lists(st.floats(width=32))), max_size=5)
    ),
    st.tuples(st.just(pa.list_(pa.int64())), st.lists(nullable(lists(any_integers)), max_size=5)),
)


@pytest.mark.parametrize("kind", TYPES)
@given(column=arrow_columns)
@some
def test_parquet_inputs_are_those_of_the_same_python_values(kind: Any, column: Any) -> None:
    """A table in Parquet is cast like records in Python, or refused where those are refused."""
    arrow_type, values = column
    try:
        array = pa.array(values, arrow_type)
    except (pa.ArrowException, OverflowError):
        return  # not a value of this type
    with folder() as place:
        path = place / "t.parquet"
        parquet.write_table(pa.table({"x": array}), path)
        try:
            expected = column_to_wire(kind, array.to_pylist())
        except Misfit as misfit:
            with pytest.raises(RecordError) as raised:
                readers.read_inputs(path, [Parameter("x", kind)])
            assert raised.value.field == "x"
            assert raised.value.where == f"t.parquet, row {misfit.position}"  # noqa: PT017
            return
        assert same(readers.read_inputs(path, [Parameter("x", kind)])[0]["x"], expected)


# --- kept columns --------------------------------------------------------------------------------


@given(
    header=st.lists(st.text(letters, max_size=8), min_size=1, max_size=4, unique=True),
    data=st.data(),
)
@few
def test_kept_columns_of_text_stay_as_they_stand(header: list[str], data: Any) -> None:
    """Text in, text out, and once more: ids such as 007 survive, and so do empty texts and gaps."""
    if header == [""] or any(name.startswith("mlbatch_") for name in header):
        return
    rows = data.draw(st.lists(st.tuples(*[nullable(cells)] * len(header)), max_size=5))
    arrays = [pa.array([row[place] for row in rows], pa.string()) for place in range(len(header))]
    batch = pa.RecordBatch.from_arrays(arrays, names=header)
    with folder() as place:
        for name in ("t.csv", "t.tsv"):
            with writers.open_table(place / name, schema=batch.schema) as table:
                table.write(batch)
            assert read(place / name) == batch.to_pylist()
        for name in ("o.csv", "o.parquet", "o.jsonl"):
            results = [block(0, {"mlbatch answer": [1.0] * len(rows)})]
            outputs = [Parameter("mlbatch answer", "numeric")]
            if "mlbatch answer" not in header:
                score(place / name, outputs, results, place / "t.csv")
                found = read(place / name, columns=header)
                assert found == batch.to_pylist()


@given(columns=st.lists(arrow_columns, min_size=1, max_size=3))
@some
def test_kept_columns_of_parquet_come_back_equal_or_are_refused(columns: Any) -> None:
    size = min(len(values) for _, values in columns)
    try:
        arrays = [pa.array(values[:size], kind) for kind, values in columns]
    except (pa.ArrowException, OverflowError):
        return
    batch = pa.RecordBatch.from_arrays(arrays, names=[f"c{place}" for place in range(len(arrays))])
    with folder() as place:
        with writers.open_table(place / "t.parquet") as table:
            table.write(batch)
        assert same(read(place / "t.parquet"), batch.to_pylist())
        outputs, results = [Parameter("y", "numeric")], [block(0, {"y": [0.5] * size})]
        score(place / "o.parquet", outputs, results, place / "t.parquet")
        assert same(read(place / "o.parquet", columns=batch.schema.names), batch.to_pylist())
        for name in ("o.jsonl", "o.csv"):
            path, source = place / name, place / "t.parquet"
            refusal = refused(lambda: score(path, outputs, results, source))  # noqa: B023
            if refusal is not None:
                assert any(repr(column) in refusal for column in batch.schema.names)
                assert not path.exists()
                continue
            found = read(place / name)
            for row, origin in zip(found, batch.to_pylist(), strict=True):
                for column, value in origin.items():
                    assert is_faithful(row[column], value, is_csv=name == "o.csv"), (column, value)


def is_faithful(found: Any, value: Any, *, is_csv: bool) -> bool:
    """Whether a text format says the same: numbers as numbers, the rest as a text of it."""
    if value is None or found is None:
        return found is None and (value is None or value != value)
    if isinstance(value, str):
        return found == value
    if isinstance(value, list):
        items = json.loads(found) if is_csv else found
        return all(is_faithful(*pair, is_csv=False) for pair in zip(items, value, strict=True))
    if isinstance(value, bool):
        return found == ("true" if value else "false") if is_csv else found is value
    if isinstance(value, float):
        return same(float(found), value)
    if isinstance(value, int):
        return int(found) == value
    if isinstance(value, Decimal):
        return Decimal(found) == value
    if isinstance(value, datetime.datetime):
        read_back = datetime.datetime.fromisoformat(found.replace("Z", "+00:00"))
        return read_back == value
    return isinstance(value, datetime.date) and datetime.date.fromisoformat(found) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=2),
    max_leaves=6,
)


@given(rows=st.lists(st.fixed_dictionaries({"a": json_values, "b": json_values}), max_size=5))
@some
def test_kept_columns_of_json_lines(rows: list[dict[str, Any]]) -> None:
    """JSON in, JSON out: the same values, whatever they are. Parquet refuses what has no one type."""
    with folder() as place:
        path = place / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        outputs, results = [Parameter("y", "numeric")], [block(0, {"y": [0.5] * len(rows)})]
        refusal = refused(lambda: score(place / "o.jsonl", outputs, results, path))
        if refusal is not None:
            assert any(f"column {name!r}" in refusal for name in ("a", "b"))
        else:
            lines = (place / "o.jsonl").read_bytes().splitlines()
            for line, row in zip(lines, rows, strict=True):
                found = json.loads(line)
                assert same({name: found[name] for name in row}, row)
        refusal = refused(lambda: score(place / "o.parquet", outputs, results, path))
        if refusal is not None:
            assert any(repr(name) in refusal for name in ("a", "b"))
        elif rows:
            found_rows = read(place / "o.parquet", columns=["a", "b"])
            assert same(found_rows, [{"a": row["a"], "b": row["b"]} for row in rows])


@pytest.mark.parametrize("name", ["o.csv", "o.tsv", "o.jsonl"])
@pytest.mark.parametrize(
    "values",
    [
        [[1.0, 2.0], None, [], [3.0, math.inf]],
        [{"a": [1.0]}, None, {"a": None}, {"a": [0.0, -math.inf]}],
        [[[0.5], None], [], [None, [0.5, 0.5]], [[], [math.inf]]],
    ],
)
def test_an_infinity_inside_a_nested_value_is_named(
    tmp_path: Path, name: str, values: list[Any]
) -> None:
    parquet.write_table(pa.table({"id": range(4), "deep": values}), tmp_path / "in.parquet")
    results = [block(0, {"answer": [1.0] * 4})]
    with pytest.raises(DatasetError, match="row 3, column 'deep': found an infinity"):
        score(tmp_path / name, [Parameter("answer", "numeric")], results, tmp_path / "in.parquet")
    assert not (tmp_path / name).exists()
