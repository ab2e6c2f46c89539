"""From a table to the body of a request: only the body grows with the table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from airflow_mlbatch.datasets import formats, readers
from airflow_mlbatch.datasets.kinds.kind import Columns, InputBlock, Kind, Sink, Source
from airflow_mlbatch.datasets.rows import RowRange, TableRows
from airflow_mlbatch.errors import RecordError
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import TypeName

BLOCKS, ROWS = 40, 500
X, Y = Parameter("x", "numeric"), Parameter("y", "character")


class Value(msgspec.Struct):
    """A value that is counted while anybody holds it."""

    number: int
    alive: ClassVar[int] = 0

    def __post_init__(self) -> None:
        Value.alive += 1

    def __del__(self) -> None:
        Value.alive -= 1


class CountedKind(Kind):
    """A table of :class:`Value`; notes how many there are when it is asked for its next block."""

    def __init__(self) -> None:
        super().__init__("counted", "Counted")
        self.most = 0

    def inputs(
        self, source: Source, columns: Mapping[str, str], wanted: RowRange
    ) -> Iterator[InputBlock]:
        for block in range(BLOCKS):
            yield InputBlock({"x": [block * ROWS + row for row in range(ROWS)]}, ROWS)
            self.most = max(self.most, Value.alive)

    def to_wire(self, kind: TypeName, column: Any) -> list[Any]:
        return [Value(number) for number in column]

    def count(self, source: Source) -> int:
        raise NotImplementedError

    def open(self, source: Source, columns: Columns, wanted: RowRange) -> TableRows:
        raise NotImplementedError

    def can_hold(self, field: pa.Field) -> bool:
        raise NotImplementedError

    def sink(self, file: BinaryIO, schema: pa.Schema) -> Sink:
        raise NotImplementedError


def test_values_live_no_longer_than_their_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = CountedKind()
    monkeypatch.setitem(formats._KINDS, "counted", kind)
    path = tmp_path / "t.counted"
    path.write_bytes(b"")
    body, count = readers.encode_inputs(path, [X])
    assert count == BLOCKS * ROWS
    assert json.loads(body) == [{"x": {"number": number}} for number in range(count)]
    assert kind.most <= 2 * ROWS
    assert Value.alive == 0


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """150,000 rows: several blocks in each format."""
    path = tmp_path / f"t.{request.param}"
    rows = range(150_000)
    names = [f"row number {row}" for row in rows]
    if request.param == "parquet":
        parquet.write_table(pa.table({"x": pa.array(rows, pa.float64()), "y": names}), path)
    elif request.param == "csv":
        path.write_text("x,y\n" + "".join(f"{row}.0,{names[row]}\n" for row in rows))
    else:
        path.write_text("".join(f'{{"x": {row}.0, "y": "{names[row]}"}}\n' for row in rows))
    return path


def test_blocks_make_one_list(large: Path) -> None:
    sizes = [len(block["x"]) for block in readers.input_blocks(large, [X, Y])]
    assert len(sizes) > 1
    assert sum(sizes) == 150_000
    body, count = readers.encode_inputs(large, [X, Y], row_range=(70_000, 150_000))
    assert count == 80_000
    expected = [{"x": float(row), "y": f"row number {row}"} for row in range(70_000, 150_000)]
    assert json.loads(body) == expected
    picked = [69_999, 70_000, 70_001, 131_071, 131_072, 149_999]
    body, count = readers.encode_inputs(large, [X], indexes=picked)
    assert [record["x"] for record in json.loads(body)] == picked


def test_an_error_names_the_row_of_the_table(large: Path) -> None:
    wrong = Parameter("y", "integer")
    for options, row in (
        ({}, 0),
        ({"row_range": (140_000, 150_000)}, 140_000),
        ({"indexes": [140_001, 140_003]}, 140_001),
    ):
        found: Any = options
        wanted = rf"row {row}( \(line \d+\))?, field 'y': found 'row number {row}'"
        with pytest.raises(RecordError, match=wanted):
            readers.encode_inputs(large, [X, wrong], **found)


def test_a_table_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n\n")
    assert readers.encode_inputs(path, [X]) == (b"[]", 0)
