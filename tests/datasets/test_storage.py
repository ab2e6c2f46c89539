"""Read, write, move into place, list: on this machine, on S3 and on Azure Blob."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from airflow_mlbatch.datasets import locations, manifest, parts, readers, writers
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block, read, score

BATCH = pa.RecordBatch.from_pydict({"id": ["007", "", None], "x": [1.5, None, 2.0]})
OTHER = pa.RecordBatch.from_pydict({"id": ["new"], "x": [0.0]})
NAMES = ["t.csv", "t.csv.gz", "t.tsv", "t.tsv.gz", "t.parquet", "t.jsonl", "t.jsonl.gz", "t.ndjson"]


def write(path: Any, *batches: pa.RecordBatch) -> writers.WrittenTable:
    with writers.open_table(path) as table:
        for batch in batches:
            table.write(batch)
    assert table.written is not None
    return table.written


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read(folder: Any, name: str) -> None:
    written = write(folder / name, BATCH, BATCH)
    assert written.rows == 6
    assert readers.count_rows(folder / name) == 6
    inputs = [Parameter("id", "character"), Parameter("x", "numeric")]
    wire, count = readers.read_inputs(folder / name, inputs, row_range=(1, 5))
    assert count == 4
    assert wire == {"id": ["", None, "007", ""], "x": [None, 2.0, 1.5, None]}


def test_a_table_replaces_the_one_before(folder: Any) -> None:
    path = folder / "t.parquet"
    write(path, BATCH)
    written = write(path, OTHER)
    assert read(path) == [{"id": "new", "x": 0.0}]
    assert locations.file_size(path) == written.bytes
    assert locations.file_names(folder) == ["t.parquet"]


def test_an_error_leaves_the_table_before_and_no_rubbish(folder: Any) -> None:
    path = folder / "t.csv"
    write(path, BATCH)

    def fail() -> None:
        with writers.open_table(path, attempt="task") as table:
            table.write(OTHER)
            raise RuntimeError("the line is lost")

    with pytest.raises(RuntimeError, match="the line is lost"):
        fail()
    assert len(read(path)) == 3
    assert locations.file_names(folder) == ["t.csv"]


def test_a_new_table_is_not_there_before_it_is_whole(folder: Any) -> None:
    path = folder / "t.jsonl"
    with writers.open_table(path) as table:
        for _ in range(50):
            table.write(BATCH)
            assert not locations.exists(path)
    assert readers.count_rows(path) == 150


def test_checksum_and_size_are_those_of_the_file(folder: Any) -> None:
    import hashlib

    for name in NAMES:
        written = write(folder / name, BATCH)
        data = locations.read_bytes(folder / name)
        assert written.sha256 == hashlib.sha256(data).hexdigest()
        assert written.bytes == len(data)


def test_a_missing_file_is_named(folder: Any) -> None:
    with pytest.raises(DatasetError, match=r"absent\.csv.*found no such file"):
        readers.count_rows(folder / "absent.csv")
    assert not locations.exists(folder / "absent.csv")
    assert locations.file_size(folder / "absent.csv") is None
    locations.remove(folder / "absent.csv")
    assert locations.file_names(folder) == []


def test_a_manifest_comes_back(folder: Any) -> None:
    written = write(folder / "t.parquet", BATCH)
    made = manifest.table_manifest(
        written,
        manifest.Counts(3, 2, 1),
        manifest.Origin("http://localhost:12800", "my service/β", "v1", "2024-05-01T00:00:00Z"),
        execution_ids=["e1"],
    )
    place = manifest.manifest_path(folder / "t.parquet")
    manifest.write_manifest(place, made)
    assert str(place.name) == "t.parquet.manifest.json"
    assert json.loads(place.read_bytes()) == made


def test_a_dataset_is_published(folder: Any) -> None:
    outputs = [Parameter("answer", "numeric")]
    shards = parts.plan_shards(5, 2)
    told = []
    for shard in shards:
        size = shard["stop"] - shard["start"]
        name = parts.part_name(shard["shard"])
        written, _ = score(
            folder / name,
            outputs,
            [block(0, {"answer": [1.0] * size})],
            first_index=shard["start"],
        )
        counts = manifest.Counts(size, size, 0)
        told.append(parts.part_object(shard, written, counts, execution_ids=[f"e{shard['shard']}"]))
    about = manifest.Origin("u", "s", "v", "now")
    published = parts.publish_dataset(folder, told[::-1], 5, about)
    names = [parts.part_name(number) for number in range(3)]
    assert locations.file_names(folder) == ["_SUCCESS", "manifest.json", *names]
    assert json.loads((folder / "manifest.json").read_bytes()) == published
    assert published["execution_ids"] == ["e0", "e1", "e2"]
    indexes = [row["mlbatch_index"] for name in names for row in read(folder / name)]
    assert indexes == [0, 1, 2, 3, 4]
