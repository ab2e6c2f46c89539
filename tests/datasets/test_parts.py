"""Shards, parts, and the dataset that is published when every row is there exactly once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlbatch.datasets import parts, readers, scored, writers
from airflow_mlbatch.datasets.manifest import Counts, Origin
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block, read, score

ANSWER, VECTOR, FRAME = (
    Parameter("answer", "numeric"),
    Parameter("v", "vector"),
    Parameter("f", "data.frame"),
)
ABOUT = Origin("http://localhost:12800", "s", "v1", "2024-05-01T00:00:00Z")


@given(rows=st.integers(0, 10**9), size=st.integers(1, 10**9))
def test_shards_cover_each_row_once(rows: int, size: int) -> None:
    try:
        shards = parts.plan_shards(rows, size, 100)
    except DatasetError:
        assert -(-rows // size) > 100
        return
    assert [shard["shard"] for shard in shards] == list(range(len(shards)))
    assert [shard["start"] for shard in shards] == [0, *[s["stop"] for s in shards]][: len(shards)]
    assert (shards[-1]["stop"] if shards else 0) == rows
    assert all(0 < shard["stop"] - shard["start"] <= size for shard in shards)
    assert json.loads(json.dumps(shards)) == shards


def test_too_many_shards_says_what_would_do() -> None:
    with pytest.raises(
        DatasetError, match=r"1,000,000 rows into 10,000 shards.*max_map_length all"
    ):
        parts.plan_shards(1_000_000, 100)
    with pytest.raises(DatasetError, match="choose records_per_batch=977 or more"):
        parts.plan_shards(1_000_000, 100)
    assert len(parts.plan_shards(1_000_000, 977)) == 1024


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "10"])
def test_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(DatasetError, match="records_per_batch: found"):
        parts.plan_shards(10, size)


def make(
    folder: Path,
    rows: int,
    size: int,
    outputs: list[Parameter] | None = None,
    values: list[dict[str, list[Any]]] | None = None,
    format: str = "parquet",
) -> list[dict[str, Any]]:
    """Write the parts of a table; what the tasks of the shards would tell."""
    told = []
    for shard in parts.plan_shards(rows, size):
        count = shard["stop"] - shard["start"]
        columns = (
            {"answer": [float(n) for n in range(count)]}
            if values is None
            else values[shard["shard"]]
        )
        path = folder / parts.part_name(shard["shard"], format)
        results = [block(0, columns)]
        written, _ = score(path, outputs or [ANSWER], results, first_index=shard["start"])
        told.append(parts.part_object(shard, written, Counts(count, count, 0), execution_ids=["e"]))
    return told


def test_publishing_twice_gives_the_same(tmp_path: Path) -> None:
    told = make(tmp_path, 10, 4)
    first = parts.publish_dataset(tmp_path, told, 10, ABOUT)
    assert parts.publish_dataset(tmp_path, told, 10, ABOUT) == first
    assert (first["rows"], first["succeeded"], len(first["files"])) == (10, 10, 3)
    assert [file["first_index"] for file in first["files"]] == [0, 4, 8]
    assert (tmp_path / "_SUCCESS").read_bytes() == b""


def test_parts_of_other_runs_go(tmp_path: Path) -> None:
    make(tmp_path, 10, 1)
    make(tmp_path, 4, 2, format="csv")
    for name in (".part-00001.parquet.abc.def.part", "notes.txt", "part-1.parquet"):
        (tmp_path / name).write_bytes(b"x")
    told = make(tmp_path, 10, 4)
    parts.publish_dataset(tmp_path, told, 10, ABOUT)
    names = [f"part-0000{n}.parquet" for n in range(3)]
    expected = sorted([*names, "_SUCCESS", "manifest.json", "notes.txt", "part-1.parquet"])
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    assert parquet.read_table([tmp_path / name for name in names]).num_rows == 10


def test_beginning_takes_the_mark_back(tmp_path: Path) -> None:
    parts.publish_dataset(tmp_path, make(tmp_path, 4, 4), 4, ABOUT)
    parts.begin_dataset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["part-00000.parquet"]
    parts.begin_dataset(tmp_path / "not there")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told: told.pop(1), "found no part for the rows 4 to 7"),
        (lambda told: told.pop(2), "found parts up to row 7, expected 10 rows"),
        (lambda told: told.append(told[1]), "found the rows 4 to 7 in more than one part"),
        (lambda told: told.clear(), "found no parts, expected 10 rows"),
        (lambda told: told[0].update(rows=3), "found 3 rows .*expected 4 for the rows 0 to 3"),
        (lambda told: told[0].update(failed=1), "1 failed.*expected 4 for"),
        (lambda told: told[0].update(name="../x"), "found a part named '../x'"),
        (
            lambda told: told[1].update(name=told[0]["name"]),
            "bytes|expected 4|two parts of one name",
        ),
        (
            lambda told: told[2].update(bytes=5),
            "part-00002.parquet: found [0-9,]+ bytes, expected 5",
        ),
    ],
)
def test_rows_that_are_missing_or_there_twice(tmp_path: Path, change: Any, words: str) -> None:
    told = make(tmp_path, 10, 4)
    change(told)
    with pytest.raises(DatasetError, match=words):
        parts.publish_dataset(tmp_path, told, 10, ABOUT)
    assert not (tmp_path / "_SUCCESS").exists()


def test_a_part_that_is_gone_or_another(tmp_path: Path) -> None:
    told = make(tmp_path, 10, 4)
    first, second = (tmp_path / part["name"] for part in told[:2])
    data = first.read_bytes()
    first.unlink()
    with pytest.raises(DatasetError, match=r"found no such part; clear the task of shard 0"):
        parts.publish_dataset(tmp_path, told, 10, ABOUT)
    first.write_bytes(data)
    second.write_bytes(data)
    told[1].update(bytes=len(data))
    with pytest.raises(DatasetError, match="found mlbatch_index=0, expected 4"):
        parts.publish_dataset(tmp_path, told, 10, ABOUT)


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_parts_that_had_to_assume_a_type_follow_the_others(tmp_path: Path, format: str) -> None:
    values: list[dict[str, list[Any]]] = [
        {"v": [[], None], "f": [None, None]},
        {"v": [["a"], ["b", None]], "f": [{"x": [1.5], "y": ["t"]}, None]},
        {"v": [None, []], "f": [{"x": [2.5], "y": [None]}, None]},
    ]
    told = make(tmp_path, 6, 2, [VECTOR, FRAME], values, format)
    published = parts.publish_dataset(tmp_path, told, 6, ABOUT)
    again = parts.publish_dataset(tmp_path, told, 6, ABOUT)
    assert again == published
    rows = [row for file in published["files"] for row in read(tmp_path / file["name"])]
    assert len({tuple(row) for row in rows}) == 1
    assert [row["f_x"] and float(row["f_x"]) for row in rows] == [None, None, 1.5, None, 2.5, None]
    if format == "parquet":
        assert [row["v"] for row in rows] == [[], None, ["a"], ["b", None], None, []]
        schemas = {str(parquet.read_schema(tmp_path / file["name"])) for file in published["files"]}
        assert len(schemas) == 1
        assert parquet.read_table([tmp_path / f["name"] for f in published["files"]]).num_rows == 6


def test_each_part_may_know_what_another_had_to_assume(tmp_path: Path) -> None:
    values: list[dict[str, list[Any]]] = [
        {"v": [[]], "w": [["a"]]},
        {"v": [["b"]], "w": [None]},
        {"v": [[]], "w": [["c"]]},
    ]
    outputs = [VECTOR, Parameter("w", "vector")]
    published = parts.publish_dataset(tmp_path, make(tmp_path, 3, 1, outputs, values), 3, ABOUT)
    table = parquet.read_table([tmp_path / file["name"] for file in published["files"]])
    assert table.column("v").to_pylist() == [[], ["b"], []]
    assert table.column("w").to_pylist() == [["a"], None, ["c"]]
    types = {column["name"]: column["type"] for column in published["columns"]}
    assert (types["v"], types["w"]) == ("list<item: string>",) * 2


def make_from_lines(folder: Path, lines: list[str], format: str) -> list[dict[str, Any]]:
    """Score a JSON Lines table in shards of one row, and keep all of its columns."""
    source = folder / "in.jsonl"
    source.write_text("\n".join(lines))
    told = []
    for shard in parts.plan_shards(len(lines), 1):
        rows = readers.open_rows(source, None, (shard["start"], shard["stop"]))
        kept = rows.schema.names
        table_rows = scored.ScoredRows(
            [ANSWER], format=format, rows=rows, kept=kept, first_index=shard["start"]
        )
        path = folder / "out" / parts.part_name(shard["shard"], format)
        with writers.open_table(path) as table:
            for each in (*table_rows.add(block(0, {"answer": [0.5]})), *table_rows.finish()):
                table.write(each.scored)
        assert table.written is not None
        told.append(parts.part_object(shard, table.written, Counts(1, 1, 0)))
    return told


@pytest.mark.parametrize("format", ["parquet", "csv", "csv.gz", "jsonl"])
@pytest.mark.parametrize(
    ("lines", "kind", "expected"),
    [
        (['{"a":null}', '{"a":"x"}', '{"a":""}'], "string", [None, "x", ""]),
        (['{"a":1}', '{"a":1.5}', '{"a":null}'], "double", [1, 1.5, None]),
        (['{"b":1}', '{"b":2,"a":true}', '{"a":false,"b":3}'], "bool", [None, True, False]),
        (['{"a":[]}', '{"a":[1]}', '{"b":1}'], "list<item: int64>", [[], [1], None]),
    ],
)
def test_shards_of_json_lines_may_show_different_types(
    tmp_path: Path, format: str, lines: list[str], kind: str, expected: list[Any]
) -> None:
    told = make_from_lines(tmp_path, lines, format)
    folder = tmp_path / "out"
    published = parts.publish_dataset(folder, told, 3, ABOUT)
    assert parts.publish_dataset(folder, told, 3, ABOUT) == published
    files = [folder / file["name"] for file in published["files"]]
    rows = [row for path in files for row in read(path)]
    if "csv" in format:
        expected = [v if v is None or isinstance(v, str) else json.dumps(v) for v in expected]
    assert [row["a"] for row in rows] == expected
    assert len({tuple(row) for row in rows}) == 1
    if format == "parquet":
        assert len({str(parquet.read_schema(path)) for path in files}) == 1
    types = {column["name"]: column["type"] for column in published["columns"]}
    assert types["a"] in (kind, "json")
    for file in published["files"]:
        data = (folder / file["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])


def test_json_lines_of_any_types_stay_json_lines(tmp_path: Path) -> None:
    lines = ['{"a":1}', '{"a":"1"}', '{"a":{"x":[1]}}']
    told = make_from_lines(tmp_path, lines, "jsonl")
    published = parts.publish_dataset(tmp_path / "out", told, 3, ABOUT)
    texts = [(tmp_path / "out" / file["name"]).read_text() for file in published["files"]]
    assert [json.loads(text)["a"] for text in texts] == [1, "1", {"x": [1]}]
    assert published["columns"][0] == {"name": "a", "type": "json"}


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_json_lines_whose_types_no_column_holds(tmp_path: Path, format: str) -> None:
    told = make_from_lines(tmp_path, ['{"a":1}', '{"a":null}', '{"a":"1"}'], format)
    words = r"part-00002.*found columns that differ.*'a' \(string, elsewhere int64\).*keep_columns"
    with pytest.raises(DatasetError, match=words):
        parts.publish_dataset(tmp_path / "out", told, 3, ABOUT)


def test_a_number_that_no_double_holds(tmp_path: Path) -> None:
    told = make_from_lines(tmp_path, [f'{{"a":{2**53 + 1}}}', '{"a":0.5}'], "parquet")
    with pytest.raises(DatasetError, match="part-00000.parquet, column 'a': found values of type"):
        parts.publish_dataset(tmp_path / "out", told, 2, ABOUT)


def test_parts_whose_columns_contradict_each_other(tmp_path: Path) -> None:
    values: list[dict[str, list[Any]]] = [{"v": [[1.0], [2.0]]}, {"v": [["a"], ["b"]]}]
    told = make(tmp_path, 4, 2, [VECTOR], values)
    with pytest.raises(
        DatasetError, match=r"part-00001.parquet: found columns that differ.*'v' \("
    ):
        parts.publish_dataset(tmp_path, told, 4, ABOUT)


def test_an_empty_dataset_has_its_columns(tmp_path: Path) -> None:
    score(tmp_path / "model.parquet", [ANSWER], [])
    schema = parquet.read_schema(tmp_path / "model.parquet")
    published = parts.publish_dataset(tmp_path / "d", [], 0, ABOUT, schema=schema)
    assert published["rows"] == 0
    assert published["columns"][0] == {"name": "answer", "type": "double"}
    assert parquet.read_table(tmp_path / "d" / "part-00000.parquet").num_rows == 0
    assert parts.publish_dataset(tmp_path / "e", [], 0, ABOUT)["files"] == []
    assert (tmp_path / "e" / "_SUCCESS").exists()
