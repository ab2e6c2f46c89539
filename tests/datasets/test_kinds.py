"""A format is one class and one row of a table: nothing else has to know it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from airflow_mlbatch.datasets import formats, readers
from airflow_mlbatch.datasets.columns import chosen_names
from airflow_mlbatch.datasets.kinds import KINDS
from airflow_mlbatch.datasets.kinds.kind import Columns, Kind, Sink, Source
from airflow_mlbatch.datasets.rows import RowRange, TableRows
from airflow_mlbatch.errors import DatasetError, RecordError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block, read, score


class ArrowKind(Kind):
    """Arrow's own streams, as somebody may add them."""

    has_column_types = True

    def count(self, source: Source) -> int:
        return sum(batch.num_rows for batch in self.open(source, None, RowRange()))

    def open(self, source: Source, columns: Columns, wanted: RowRange) -> TableRows:
        table = pa.ipc.open_stream(source.file).read_all()
        names = chosen_names(columns, table.schema.names, source.where)
        wanted.check_end(source.where, len(table))
        stop = len(table) if wanted.stop is None else wanted.stop
        part = table.select(names).slice(wanted.start, stop - wanted.start)
        return TableRows(part.schema, iter(part.to_batches()))

    def can_hold(self, field: pa.Field) -> bool:
        return not pa.types.is_union(field.type)

    def sink(self, file: BinaryIO, schema: pa.Schema) -> Sink:
        return ArrowSink(file, schema)


class ArrowSink:
    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._writer = pa.ipc.new_stream(pa.PythonFile(file, "w"), schema)

    def write(self, batch: pa.RecordBatch, first_row: int) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
def arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row that a new format is."""
    kind = ArrowKind("arrows", "Arrow stream", "ipc")
    for suffix in kind.suffixes:
        monkeypatch.setitem(formats._KINDS, suffix, kind)


@pytest.mark.usefixtures("arrow")
@pytest.mark.parametrize("name", ["t.arrows", "t.ipc", "t.arrows.gz"])
def test_a_format_that_is_added(tmp_path: Path, name: str) -> None:
    outputs = [Parameter("y", "numeric"), Parameter("v", "vector")]
    path = tmp_path / name
    score(path, outputs, [block(0, {"y": [0.5, 1.5, 2.5], "v": [[1.0], None, [2.0, 3.0]]})])
    assert readers.count_rows(path) == 3
    assert readers.read_inputs(path, outputs, row_range=(1, 3), indexes=[2]) == (
        {"y": [2.5], "v": [[2.0, 3.0]]},
        1,
    )
    with pytest.raises(
        RecordError, match=r"row 1, column 'y', field 'x': found 1\.5.*whole number"
    ):
        readers.read_inputs(path, [Parameter("x", "integer")], columns={"x": "y"}, row_range=(1, 2))
    kept = readers.open_rows(path, ["v", "y"])
    with pytest.raises(DatasetError, match="has only 3 rows"):
        readers.open_rows(path, row_range=(2, 4))
    assert kept.schema.names == ["v", "y"]
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.usefixtures("arrow")
def test_it_is_written_beside_the_inputs_and_named_in_messages(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,x\n007,1\n008,2\n")
    score(
        tmp_path / "o.arrows",
        [Parameter("y", "numeric")],
        [block(0, {"y": [1.0, 2.0]})],
        tmp_path / "in.csv",
    )
    assert [row["id"] for row in read(tmp_path / "o.arrows")] == ["007", "008"]
    with pytest.raises(DatasetError, match="parquet, pq, jsonl, ndjson, arrows, ipc"):
        formats.named_format("excel")


def test_each_suffix_belongs_to_one_format() -> None:
    suffixes = [suffix for kind in KINDS for suffix in kind.suffixes]
    assert sorted(suffixes) == sorted(set(suffixes))
    assert all(suffix == suffix.casefold() for suffix in suffixes)


def test_a_packed_file_is_read_more_than_once(tmp_path: Path) -> None:
    """The header, the rows, and the rows again where a range begins after the end."""
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"x\n1\n2\n"))
    with pytest.raises(DatasetError, match=r"found \(5, None\), but t\.csv\.gz has only 2 rows"):
        list(readers.open_rows(path, row_range=(5, None)))
    found: Any = readers.read_inputs(path, [Parameter("x", "integer")], row_range=(1, None))
    assert found == ({"x": [2]}, 1)
