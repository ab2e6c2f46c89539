"""The scored table: which columns, which types, which rows, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from airflow_mlbatch.datasets import readers, scored
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block, read, score

ANSWER, VECTOR = Parameter("answer", "numeric"), Parameter("v", "vector")
FRAME, MATRIX = Parameter("f", "data.frame"), Parameter("m", "matrix")


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    """Five rows of text."""
    path = tmp_path / "cars.csv"
    path.write_text("hp,id,wt\n" + "".join(f"{n},00{n},{n / 2}\n" for n in range(5)))
    return path


def test_columns_in_order_and_rows_by_position(cars: Path, tmp_path: Path) -> None:
    blocks = [block(0, {"answer": [0.0, 1.0]}), block(2, {"answer": [2.0, 3.0, 4.0]}, {1: "boom"})]
    written, log = score(tmp_path / "o.parquet", [ANSWER], blocks, cars)
    assert written.columns == (
        ("hp", "string"),
        ("id", "string"),
        ("wt", "string"),
        ("answer", "double"),
        ("mlbatch_index", "int64"),
        ("mlbatch_success", "bool"),
        ("mlbatch_error", "string"),
    )
    rows = read(tmp_path / "o.parquet")
    assert [row["id"] for row in rows] == ["000", "001", "002", "003", "004"]
    assert [row["answer"] for row in rows] == [0.0, 1.0, 2.0, None, 4.0]
    assert [row["mlbatch_index"] for row in rows] == [0, 1, 2, 3, 4]
    assert [row["mlbatch_error"] for row in rows] == [None, None, None, "boom", None]
    assert (log.failed, log.total) == (1, 5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["hp", "id", "wt"]),
        ({"id_columns": ["id"]}, ["id", "hp", "wt"]),
        ({"keep_columns": None}, []),
        ({"keep_columns": None, "id_columns": ["wt", "id"]}, ["wt", "id"]),
        ({"keep_columns": ["wt", "hp", "wt"]}, ["wt", "hp"]),
        ({"keep_columns": ["wt", "id"], "id_columns": ["id"]}, ["id", "wt"]),
    ],
)
def test_kept_columns(options: dict[str, Any], expected: list[str]) -> None:
    assert scored.chosen_columns(["hp", "id", "wt"], [ANSWER], **options) == expected


@pytest.mark.parametrize(
    ("present", "outputs", "options", "words"),
    [
        (["a"], [ANSWER], {"keep_columns": ["b"]}, r"keep_columns: found 'b'.*\(there are: 'a'"),
        (["a"], [ANSWER], {"id_columns": ["b"]}, "id_columns: found 'b'"),
        (["a"], [ANSWER], {"keep_columns": "a"}, "keep_columns: found 'a', expected a list"),
        (
            ["answer"],
            [ANSWER],
            {},
            "keep_columns: found 'answer', which is also the name of an out",
        ),
        (["mlbatch_index"], [ANSWER], {}, "keep_columns: found 'mlbatch_index'"),
        (["a"], [Parameter("mlbatch_error", "numeric")], {}, "outputs: found 'mlbatch_error'"),
    ],
)
def test_clashes_are_found_before_anything_is_read(
    present: list[str], outputs: list[Parameter], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(DatasetError, match=words):
        scored.chosen_columns(present, outputs, **options)


def test_the_index_counts_from_the_slice(cars: Path, tmp_path: Path) -> None:
    rows = readers.open_rows(cars, row_range=(2, 4))
    table = scored.ScoredRows([ANSWER], format="csv", rows=rows, kept=["id"], first_index=2)
    [part] = table.add(block(0, {"answer": [1.0, 2.0]}))
    assert table.finish() == []
    assert part.scored.column("mlbatch_index").to_pylist() == [2, 3]
    assert part.scored.column("id").to_pylist() == ["002", "003"]
    assert part.rows is not None
    assert part.rows.schema.names == ["hp", "id", "wt"]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_blocks_and_row_groups_of_any_size_are_joined_by_position(
    tmp_path: Path, size: int
) -> None:
    source = tmp_path / "in.parquet"
    names = pa.array([f"n{n % 9}" for n in range(100)]).dictionary_encode()
    table = pa.table({"n": range(100), "name": names})
    parquet.write_table(table, source, row_group_size=5)
    numbers = [float(n) for n in range(100)]
    blocks = [block(n, {"answer": numbers[n : n + size]}) for n in range(0, 100, size)]
    score(tmp_path / "o.parquet", [ANSWER], blocks, source)
    for n, row in enumerate(read(tmp_path / "o.parquet")):
        assert (row["n"], row["name"], row["answer"]) == (n, f"n{n % 9}", n)


def test_fewer_results_than_rows(cars: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found 3 results for 5 rows of input"):
        score(tmp_path / "o.csv", [ANSWER], [block(0, {"answer": [1.0] * 3})], cars)
    assert not (tmp_path / "o.csv").exists()


def test_more_results_than_rows(cars: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="found at least 6 results for 5 rows of input"):
        score(tmp_path / "o.csv", [ANSWER], [block(0, {"answer": [1.0] * 6})], cars)
    assert list(tmp_path.iterdir()) == [cars]


# --- nested outputs ------------------------------------------------------------------------------


def test_frames_of_one_row_become_columns(tmp_path: Path) -> None:
    frames = [{"am_Pred": [0.5], "label": ["x"]}, None, {"am_Pred": [1], "label": [None]}]
    for name in ("o.parquet", "o.jsonl"):
        score(tmp_path / name, [FRAME], [block(0, {"f": frames})])
        found = read(tmp_path / name, columns=["f_am_Pred", "f_label"])
        assert [tuple(row.values()) for row in found] == [(0.5, "x"), (None, None), (1.0, None)]


@pytest.mark.parametrize("frames", [[{"a": [1, 2]}, {"a": [3]}], [{"a": [1]}, {"a": []}]])
def test_other_frames_stay_whole(tmp_path: Path, frames: list[Any]) -> None:
    score(tmp_path / "o.parquet", [FRAME], [block(0, {"f": frames})])
    assert [row["f"] for row in read(tmp_path / "o.parquet")] == frames
    score(tmp_path / "o.csv", [FRAME], [block(0, {"f": frames})])
    wire, _ = readers.read_inputs(tmp_path / "o.csv", [FRAME])
    assert wire["f"] == frames


def test_a_frame_that_grows_later_is_refused(tmp_path: Path) -> None:
    blocks = [block(0, {"f": [{"a": [1]}]}), block(1, {"f": [{"a": [1]}, {"a": [1, 2]}]})]
    with pytest.raises(DatasetError, match="record 2, output 'f': found a data.frame of 2 rows"):
        score(tmp_path / "o.jsonl", [FRAME], blocks)
    score(tmp_path / "o.parquet", [FRAME], blocks, data_frames="nested")
    assert [row["f"]["a"] for row in read(tmp_path / "o.parquet")] == [[1.0], [1.0], [1.0, 2.0]]


def test_frames_with_other_columns(tmp_path: Path) -> None:
    blocks = [block(0, {"f": [{"a": [1]}, {"b": [1]}]})]
    with pytest.raises(DatasetError, match="record 1, output 'f': found a data.frame with the col"):
        score(tmp_path / "o.parquet", [FRAME], blocks)
    score(tmp_path / "o.jsonl", [FRAME], blocks)
    assert b'{"f":{"b":[1]},' in (tmp_path / "o.jsonl").read_bytes()


def test_a_mixed_vector_fits_json_only(tmp_path: Path) -> None:
    blocks = [block(0, {"v": [[1, 2], ["a"]]})]
    with pytest.raises(DatasetError, match="record 1, output 'v': found a text.*format='jsonl'"):
        score(tmp_path / "o.parquet", [VECTOR], blocks)
    score(tmp_path / "o.jsonl", [VECTOR], blocks)
    assert readers.read_inputs(tmp_path / "o.jsonl", [VECTOR])[0] == {"v": [[1, 2], ["a"]]}


def test_types_are_learned_from_the_first_that_show_them(tmp_path: Path) -> None:
    """Failed records and empty vectors say nothing, so the table waits for those that do."""
    silent = [block(n, {"v": [[]], "m": [None]}, {0: "boom"} if n % 2 else {}) for n in range(50)]
    blocks = [*silent, block(50, {"v": [["a", None]], "m": [[[True]]]})]
    written, _ = score(tmp_path / "o.parquet", [VECTOR, MATRIX], blocks)
    assert dict(written.columns)["v"].endswith("string>")
    assert dict(written.columns)["m"] == "list<item: list<item: bool>>"
    assert (written.rows, written.assumed) == (51, ())
    assert [row["mlbatch_index"] for row in read(tmp_path / "o.parquet")] == list(range(51))


def test_no_more_is_held_back_than_agreed() -> None:
    table, most = scored.ScoredRows([VECTOR], format="parquet"), scored.HELD_RECORDS
    assert len(table.add(block(0, {"v": [[]] * (most - 2)}))) == 0
    later = [block(most - 2 + n, {"v": [[]]}) for n in range(4)]
    assert [len(table.add(each)) for each in later] == [0, 3, 1, 1]
    with pytest.raises(DatasetError, match=f"record {most + 2}, output 'v': found a text"):
        table.add(block(most + 2, {"v": [["a"]]}))


def test_outputs_that_never_showed_their_type_say_so(tmp_path: Path) -> None:
    blocks = [block(0, {"v": [[], None], "f": [None, None]})]
    written, _ = score(tmp_path / "o.parquet", [VECTOR, FRAME], blocks)
    assert written.assumed == ("v", "f")
    found = read(tmp_path / "o.parquet", columns=["v", "f"])
    assert found == [{"v": [], "f": None}, {"v": None, "f": None}]


def test_a_spread_column_that_meets_a_kept_one(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    parquet.write_table(pa.table({"f_a": [1]}), source)
    with pytest.raises(DatasetError, match="'f_a' more than once.*data_frames=\"nested\""):
        score(tmp_path / "o.parquet", [FRAME], [block(0, {"f": [{"a": [1]}]})], source)


def test_a_table_without_rows(tmp_path: Path) -> None:
    for name in ("o.parquet", "o.csv", "o.jsonl"):
        written, log = score(tmp_path / name, [ANSWER, VECTOR, FRAME], [])
        assert (written.rows, log.total) == (0, 0)
        assert readers.count_rows(tmp_path / name) == 0
    assert "answer" in readers.open_rows(tmp_path / "o.csv").schema.names
