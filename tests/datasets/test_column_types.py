"""Types of kept columns of CSV and TSV: what a look at the whole table takes for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlbatch.datasets.column_types import infer_types, types_of_columns
from airflow_mlbatch.datasets.readers import open_rows
from airflow_mlbatch.datasets.scored import ScoredRows
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block
from tests.datasets.test_round_trips import folder


def csv(place: Path, cells: list[str]) -> Path:
    path = place / "t.csv"
    path.write_text("id,x\n" + "".join(f'0,"{cell}"\n' for cell in cells))
    return path


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-20", "0", "", "NA"], "integer"),
        (["999999999999999"], "integer"),
        (["1", "2.5"], "numeric"),
        (["1e5", "-0.5", "nan"], "numeric"),
        (["true", "FALSE", "null"], "logical"),
        # What would not come back as it was stays text.
        (["007"], "character"),
        (["-0"], "numeric"),
        (["+5"], "character"),
        (["1234567890123456"], "character"),
        (["0.1234567890123456"], "character"),
        (["1e999"], "character"),
        (["1_000"], "character"),
        (["\u0661"], "character"),
        (["inf"], "character"),
        (["0", "true"], "character"),
        (["yes"], "character"),
        (["2026-11-24"], "character"),
        (["", "NA"], "character"),
        ([], "character"),
        ([*["1"] * 300_000, "x"], "character"),
    ],
)
def test_a_look_at_the_whole_table(tmp_path: Path, cells: list[str], expected: str) -> None:
    assert infer_types(csv(tmp_path, cells), ["x"]) == {"x": expected}


def test_declared_inputs_keep_their_types(tmp_path: Path) -> None:
    path = csv(tmp_path, ["1"])

    def types(*inputs: Parameter, **options: Any) -> dict[str, Any]:
        return types_of_columns("text", path, ["id", "x"], inputs, **options)

    age = Parameter("age", "integer")
    assert types(age, columns={"age": "x"}) == {"x": "integer"}
    assert types(Parameter("x", "vector")) == {"x": "character"}
    # Two inputs from one column that want different types leave it as it stands.
    assert types(age, Parameter("x", "numeric"), columns={"age": "x"}) == {"x": "character"}
    assert types(age, columns={"age": "x"}, output_format="tsv") == {}
    assert types(age, columns={"age": "x"}, output_format="jsonl") == {"x": "integer"}


def test_a_table_with_types_of_its_own_needs_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"x": ["1"]}), path)
    assert types_of_columns("infer", path, ["x"], [Parameter("x", "integer")]) == {}
    with pytest.raises(
        DatasetError, match=r"found types for 'x', expected none, because t\.parquet"
    ):
        types_of_columns({"x": "integer"}, path, ["x"], [])


@given(cells=st.lists(st.text(st.sampled_from("0123456789.-+eEnatrufls \u0661,\n"), max_size=8)))
@settings(max_examples=200, deadline=None)
def test_whatever_is_inferred_can_be_written(cells: list[str]) -> None:
    with folder() as place:
        path = csv(place, cells)
        types = infer_types(path, ["x"])
        rows = open_rows(path)
        scored = ScoredRows([], format="parquet", rows=rows, kept=["x"], types=types)
        records = block(0, {"y": [None] * len(cells)})
        found = [*scored.add(records), *scored.finish()]
        column = [value for part in found for value in part.scored.column("x").to_pylist()]
        assert len(column) == len(cells)
        if types["x"] == "character":
            assert column == cells
