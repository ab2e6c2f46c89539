"""BatchResultsOperator against a live server: rows in order, judged, whole or not there."""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet
import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    Asset,
    AssetAlias,
)
from airflow.sdk import DAG, ObjectStoragePath

from airflow_mlbatch.errors import (
    BatchError,
    ExecutionNotFoundError,
    NoBatchError,
    RecordsFailedError,
    SubmissionStoppedError,
)
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.operators import BatchResultsOperator
from airflow_mlbatch.operators.rescoring import STORE_KEY
from airflow_mlbatch.operators.shards import ShardResultsOperator
from airflow_mlbatch.protocol.flows import Policy
from tests.provider.airflow_side import FakeStateStore, FakeTaskInstance
from tests.provider.conftest import connection_to
from tests.server_process import RunningServer
from tests.system.scoring_proxy import scoring_proxy

# Airflow 3.0's own way of making paths: nothing that we could do otherwise.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in a future version of UPath:PendingDeprecationWarning"
)

Scored = Callable[..., str]


def results(**kwargs: Any) -> BatchResultsOperator:
    named = {"service_name": "double", "service_version": "1", "poll_interval": 0.05, **kwargs}
    return BatchResultsOperator(task_id="results", **named)


@pytest.fixture(scope="module")
def batches() -> dict[str, str]:
    """Executions that several tests read."""
    return {}


@pytest.fixture
def scored(hook: MLBatchHook, batches: dict[str, str]) -> Scored:
    """Score records; the same records give the same execution."""

    def score(service: str, records: Any, version: str = "1") -> str:
        key = json.dumps([service, version, records])
        if key not in batches:
            execution_id = hook.start_batch(service, version, records, 4)
            hook.watch_batch(service, version, execution_id, poll_interval=0.05)
            batches[key] = execution_id
        return batches[key]

    return score


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Five rows: an id, a number under another name than the input's, a text."""
    path = tmp_path / "in.csv"
    path.write_text("id,power,note\n" + "".join(f"r{n},{n},n {n}\n" for n in range(5)))
    return path


FIVE = {"x": [0, 1, 2, 3, 4]}
MIXED = {"x": [4, -1, 9, -2, 16]}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table in any format, by another reader than ours."""
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.splitlines()]
    delimiter = "\t" if ".tsv" in path.name else ","
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    return [{name: _value(cell) for name, cell in row.items()} for row in rows]


def _value(cell: str) -> Any:
    if cell in ("true", "false", ""):
        return {"true": True, "false": False, "": None}[cell]
    with contextlib.suppress(ValueError):
        return float(cell)
    return cell


# --- XCom ----------------------------------------------------------------------------------------


def test_xcom(context: Any, scored: Scored) -> None:
    execution_id = scored("picky", MIXED)
    rows = results(service_name="picky", execution_id=execution_id, max_failed_records=2).execute(
        context
    )
    assert [row["y"] for row in rows] == [2.0, None, 3.0, None, 4.0]
    assert rows[0] == {"index": 0, "y": 2.0, "success": True, "error": None}
    assert rows[1]["index"] == 1
    assert rows[1]["success"] is False
    assert "x is negative: -1" in rows[1]["error"]
    assert json.loads(json.dumps(rows)) == rows


def test_xcom_of_every_type(context: Any, scored: Scored) -> None:
    record = {
        "a": True,
        "b": 2,
        "c": 0.5,
        "d": "größe",
        "e": [1, 2],
        "f": [[1, 2], [3, 4]],
        "g": {"p": [1, 2], "q": ["x", None]},
    }
    execution_id = scored("every-type", [record])
    rows = results(service_name="every-type", execution_id=execution_id).execute(context)
    assert rows == [{"index": 0, **record, "success": True, "error": None}]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_xcom_has_a_limit(context: Any, scored: Scored) -> None:
    with pytest.raises(AirflowFailException, match="max_xcom_records: found 5 .*give output_path"):
        results(execution_id=scored("double", FIVE), max_xcom_records="4").execute(context)


def test_xcom_refuses_outputs_with_its_own_keys(
    context: Any, scored: Scored, tmp_path: Path
) -> None:
    execution_id = scored("ill-named", {"x": [1]})
    operator = results(service_name="ill-named", execution_id=execution_id)
    with pytest.raises(AirflowFailException, match="the output 'success' .*give output_path"):
        operator.execute(context)
    operator.output_path = str(tmp_path / "out.csv")
    with pytest.raises(AirflowFailException, match="outputs: found 'mlbatch_index'"):
        operator.execute(context)
    assert list(tmp_path.iterdir()) == []


def test_xcom_names_inputs_when_the_table_is_known(
    context: Any, scored: Scored, tmp_path: Path
) -> None:
    path = tmp_path / "in.csv"
    path.write_text("power\n7\n4\n-1\n9\n-2\n16\n")
    operator = results(
        service_name="picky",
        execution_id=scored("picky", MIXED),
        input_path=str(path),
        columns={"x": "power"},
        row_range=(1, 6),
    )
    told = r"2 of 5 records failed.*record 2 \(power=-1.0\): .*; record 4 \(power=-2.0\): "
    with pytest.raises(AirflowFailException, match=told):
        operator.execute(context)


def test_xcom_needs_no_table_for_failures_that_are_allowed(
    context: Any, scored: Scored, tmp_path: Path
) -> None:
    """It was moved away after it had been scored."""
    gone = str(tmp_path / "gone.csv")
    operator = results(
        service_name="picky",
        execution_id=scored("picky", MIXED),
        input_path=gone,
        row_range=(1, 6),
        max_failed_records=2,
    )
    assert [row["success"] for row in operator.execute(context)] == [True, False] * 2 + [True]
    summary = context["ti"].pushed["mlbatch_summary"]
    assert [failure["index"] for failure in summary["first_failures"]] == [2, 4]
    operator.max_failed_records = 1
    with pytest.raises(AirflowFailException, match="gone.csv"):
        operator.execute(context)


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["o.parquet", "o.csv", "o.tsv", "o.jsonl", "o.csv.gz", "o.tsv.gz", "o.jsonl.gz"]
)
def test_formats(context: Any, scored: Scored, table: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    manifest = results(
        execution_id=scored("double", FIVE),
        input_path=str(table),
        columns={"x": "power"},
        output_path=f"file://{path}",
        id_columns=["note"],
        keep_columns=["id"],
    ).execute(context)
    rows = read(path)
    assert [list(row) for row in rows] == 5 * [
        ["note", "id", "y", "mlbatch_index", "mlbatch_success", "mlbatch_error"]
    ]
    assert [(row["note"], row["id"], row["y"]) for row in rows] == [
        (f"n {n}", f"r{n}", 2.0 * n) for n in range(5)
    ]
    assert [row["mlbatch_index"] for row in rows] == [0, 1, 2, 3, 4]
    assert {(row["mlbatch_success"], row["mlbatch_error"]) for row in rows} == {(True, None)}
    # In place, and nothing beside it but the manifest that the XCom is.
    assert sorted(each.name for each in path.parent.iterdir()) == [name, f"{name}.manifest.json"]
    assert json.loads(path.with_name(f"{name}.manifest.json").read_text()) == manifest


def test_format_named(context: Any, scored: Scored, tmp_path: Path) -> None:
    path = tmp_path / "scores"
    results(execution_id=scored("double", FIVE), output_path=str(path), format="parquet").execute(
        context
    )
    assert parquet.read_table(path).num_rows == 5


def test_manifest(context: Any, scored: Scored, tmp_path: Path, hook: MLBatchHook) -> None:
    table = tmp_path / "in.csv"
    table.write_text("x\n4\n-1\n9\n-2\n16\n")
    execution_id = scored("picky", MIXED)
    manifest = results(
        service_name="picky",
        execution_id=execution_id,
        input_path=str(table),
        output_path=str(tmp_path / "out.parquet"),
        rejects_path=str(tmp_path / "rejects.csv"),
        max_failed_records="0.4",
    ).execute(context)
    assert (manifest["rows"], manifest["succeeded"], manifest["failed"]) == (5, 3, 2)
    assert manifest["execution_ids"] == [execution_id]
    assert (manifest["server"], manifest["service_name"]) == (hook.url, "picky")
    assert [column["name"] for column in manifest["columns"]] == [
        *("x", "y", "mlbatch_index", "mlbatch_success", "mlbatch_error")
    ]
    for told, name in ((manifest["files"][0], "out.parquet"), (manifest["rejects"], "rejects.csv")):
        data = (tmp_path / name).read_bytes()
        assert told["name"] == name
        assert told["bytes"] == len(data)
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["rejects"]["rows"] == 2
    assert "correct horse" not in json.dumps(manifest)


@pytest.mark.parametrize(
    ("keep", "ids", "expected"),
    [
        ("all", None, ["id", "power", "note"]),
        (None, ["note"], ["note"]),
        ("None", ["note"], ["note"]),
        (["power"], [], ["power"]),
        ("['power']", "['id']", ["id", "power"]),
        (["power", "id"], ["id"], ["id", "power"]),
    ],
)
def test_kept_columns(
    context: Any,
    scored: Scored,
    table: Path,
    tmp_path: Path,
    keep: Any,
    ids: Any,
    expected: list[str],
) -> None:
    results(
        execution_id=scored("double", FIVE),
        input_path=str(table),
        columns={"x": "power"},
        output_path=str(tmp_path / "out.csv"),
        keep_columns=keep,
        id_columns=ids,
    ).execute(context)
    header = (tmp_path / "out.csv").read_text().splitlines()[0].replace('"', "").split(",")
    assert header[:-4] == expected


@pytest.mark.parametrize("given", [(1, 3), ["1", "3"], "(1, 3)", "[1, 3]"])
def test_row_range(context: Any, scored: Scored, table: Path, tmp_path: Path, given: Any) -> None:
    manifest = results(
        execution_id=scored("double", {"x": [1, 2]}),
        input_path=str(table),
        columns={"x": "power"},
        row_range=given,
        output_path=str(tmp_path / "out.jsonl"),
    ).execute(context)
    rows = read(tmp_path / "out.jsonl")
    assert [(row["id"], row["y"], row["mlbatch_index"]) for row in rows] == [
        ("r1", 2.0, 1),
        ("r2", 4.0, 2),
    ]
    assert manifest["files"][0]["first_index"] == 1


def test_a_range_of_json_lines_has_the_columns_of_the_table(
    context: Any, scored: Scored, tmp_path: Path
) -> None:
    """A key that no row of the range shows is null there; one that no row at all has is refused."""
    table = tmp_path / "in.jsonl"
    table.write_text('{"x": 1}\n{"x": 2}\n{"x": 3, "id": "r2", "note": "n"}\n')
    arguments = {
        "execution_id": scored("double", {"x": [1, 2]}),
        "input_path": str(table),
        "row_range": (0, 2),
        "keep_columns": ["note"],
    }
    for name in ("out.csv", "out.parquet"):
        target = tmp_path / name
        results(**arguments, id_columns=["id"], output_path=str(target)).execute(context)
        rows = read(target)
        assert list(rows[0])[:3] == ["id", "note", "y"]
        assert [(row["id"], row["note"], row["y"]) for row in rows] == [
            (None, None, 2.0),
            (None, None, 4.0),
        ]
    operator = results(**arguments, id_columns=["no"], output_path=str(tmp_path / "o.csv"))
    with pytest.raises(AirflowFailException, match="id_columns: found 'no'.*'x', 'note'"):
        operator.execute(context)


@pytest.mark.parametrize(
    ("column_types", "types"),
    [
        ("text", ["string", "double", "string", "string"]),
        ("infer", ["string", "double", "integer", "logical"]),
        ("{'count': 'numeric'}", ["string", "double", "double", "string"]),
        ({"x": "character", "ok": "logical"}, ["string", "string", "string", "logical"]),
    ],
)
def test_types_of_kept_columns(
    context: Any, scored: Scored, tmp_path: Path, column_types: Any, types: list[str]
) -> None:
    (tmp_path / "in.csv").write_text("id,x,count,ok\n007,0,1,TRUE\n8,1.0,NA,false\nx,2,,\n")
    named = {"integer": "int64", "logical": "bool"}
    for row_range in (None, [0, 2]):
        rows = results(
            execution_id=scored("double", {"x": [0, 1, 2][: 2 if row_range else 3]}),
            input_path=str(tmp_path / "in.csv"),
            row_range=row_range,
            output_path=str(tmp_path / "out.parquet"),
            column_types=column_types,
        )
        rows.execute(context)
        table = parquet.read_table(tmp_path / "out.parquet")
        found = [str(table.schema.field(name).type) for name in ("id", "x", "count", "ok")]
        # A range of rows has the types of the whole table: its own ids are numbers.
        assert found == [named.get(name, name) for name in types]
    if column_types == "infer":
        assert table["count"].to_pylist() == [1, None]
        assert table["ok"].to_pylist() == [True, False]


def test_text_stays_as_it_stands_in_text(context: Any, scored: Scored, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x,n\n0.0,1\n1,02\n")
    results(
        execution_id=scored("double", {"x": [0, 1]}),
        input_path=str(tmp_path / "in.csv"),
        output_path=str(tmp_path / "out.tsv"),
        column_types="infer",
    ).execute(context)
    rows = list(csv.reader((tmp_path / "out.tsv").read_text().splitlines(), delimiter="\t"))
    assert [row[:2] for row in rows] == [["x", "n"], ["0.0", "1"], ["1", "02"]]


@pytest.mark.parametrize(
    ("column_types", "words"),
    [
        ("guess", "column_types: found 'guess', expected 'text', 'infer', or a dict"),
        ({"id": "date"}, "column_types, 'id': found 'date', expected one of logical, integer"),
        ({"id": "vector"}, "column_types, 'id': found 'vector'"),
        ({"di": "integer"}, "column_types: found 'di', expected columns that are kept"),
        ({"id": "integer"}, "row 0, column 'id': found 'r0'.*expected a whole number"),
    ],
)
def test_types_that_cannot_be(
    context: Any,
    scored: Scored,
    table: Path,
    tmp_path: Path,
    column_types: Any,
    words: str,
) -> None:
    rows = results(
        execution_id=scored("double", FIVE),
        input_path=str(table),
        columns={"x": "power"},
        output_path=str(tmp_path / "out.parquet"),
        column_types=column_types,
    )
    with pytest.raises(AirflowFailException, match=words):
        rows.execute(context)
    assert not (tmp_path / "out.parquet").exists()


def test_quotes_as_ordinary_text(context: Any, scored: Scored, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('size,x\n5",-4\n"7,9\n')
    rows = results(
        service_name="picky",
        execution_id=scored("picky", {"x": [-4, 9]}),
        input_path=str(tmp_path / "in.csv"),
        input_quoting="{{ 'none' }}",
        output_path=str(tmp_path / "out.parquet"),
        rejects_path=str(tmp_path / "rejects.parquet"),
        max_failed_records=1,
        rescore_failed=1,
    )
    rows.render_template_fields(context)
    rows.execute(context)
    assert [row["size"] for row in read(tmp_path / "out.parquet")] == ['5"', '"7']
    assert [row["size"] for row in read(tmp_path / "rejects.parquet")] == ['5"']


def test_paths_as_objects(context: Any, scored: Scored, table: Path, tmp_path: Path) -> None:
    manifest = results(
        execution_id=scored("double", FIVE),
        input_path=table,
        columns={"x": "power"},
        output_path=ObjectStoragePath(f"file://{tmp_path}/out.csv"),
        rejects_path=tmp_path / "rejects.csv",
    ).execute(context)
    assert json.loads(json.dumps(manifest))["rejects_path"] == f"{tmp_path}/rejects.csv"
    assert [row["y"] for row in read(tmp_path / "out.csv")] == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("given", [None, "None", ""])
@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.jsonl"])
def test_a_table_without_rows_has_no_batch(
    context: Any, tmp_path: Path, given: Any, name: str
) -> None:
    """What on_empty="succeed" leaves to the task after it."""
    (tmp_path / "in.csv").write_text("id,x\n")
    manifest = results(
        execution_id=given,
        input_path=str(tmp_path / "in.csv"),
        output_path=str(tmp_path / name),
        rejects_path=str(tmp_path / "rejects.csv"),
        rescore_failed=1,
    ).execute(context)
    assert (manifest["rows"], manifest["failed"], manifest["execution_ids"]) == (0, 0, [])
    columns = ["id", "x", "y", "mlbatch_index", "mlbatch_success", "mlbatch_error"]
    assert [column["name"] for column in manifest["columns"]] == columns
    assert read(tmp_path / name) == []
    assert results(execution_id=given, input_path=str(tmp_path / "in.csv")).execute(context) == []


@pytest.mark.parametrize(("attempt", "wanted"), [(1, NoBatchError), (2, AirflowFailException)])
def test_no_batch_for_rows_fails_the_attempt(
    context: Any,
    table: Path,
    tmp_path: Path,
    attempt: int,
    wanted: type[Exception],
) -> None:
    """The task that starts it may have been cleared: the next attempt finds it."""
    context["ti"].try_number = attempt
    told = "execution_id: found None, expected the id of a batch"
    for arguments in ({"input_path": str(table)}, {}):
        operator = results(execution_id=None, output_path=str(tmp_path / "o.csv"), **arguments)
        with pytest.raises(wanted, match=told):
            operator.execute(context)
    assert not (tmp_path / "o.csv").exists()


def test_without_input(context: Any, scored: Scored, tmp_path: Path) -> None:
    results(execution_id=scored("double", FIVE), output_path=str(tmp_path / "out.jsonl")).execute(
        context
    )
    assert next(list(row) for row in read(tmp_path / "out.jsonl")) == [
        *("y", "mlbatch_index", "mlbatch_success", "mlbatch_error")
    ]


def test_one_row_frames_are_spread(context: Any, scored: Scored, tmp_path: Path) -> None:
    execution_id = scored("TxService", {"hp": [120.0, 110.0], "wt": [2.8, 2.62]}, "1.0")
    results(
        service_name="TxService",
        service_version="1.0",
        execution_id=execution_id,
        output_path=str(tmp_path / "out.parquet"),
    ).execute(context)
    schema = parquet.read_schema(tmp_path / "out.parquet")
    assert schema.field("answer_am_Pred").type == pa.float64()
    assert "answer" not in schema.names


def test_frames_stay_whole_when_asked(context: Any, scored: Scored, tmp_path: Path) -> None:
    execution_id = scored("TxService", {"hp": [120.0, 110.0], "wt": [2.8, 2.62]}, "1.0")
    results(
        service_name="TxService",
        service_version="1.0",
        execution_id=execution_id,
        output_path=str(tmp_path / "out.parquet"),
        data_frames="nested",
    ).execute(context)
    rows = read(tmp_path / "out.parquet")
    assert [list(row["answer"]) for row in rows] == [["am_Pred"]] * 2


def test_nested_outputs(context: Any, scored: Scored, tmp_path: Path) -> None:
    record = {
        "a": True,
        "b": 2,
        "c": 0.5,
        "d": "größe",
        "e": [1, 2],
        "f": [[1, 2], [3, 4]],
        "g": {"p": [1, 2], "q": ["x", None]},
    }
    empty: dict[str, Any] = {
        **dict.fromkeys("abcd"),
        "e": [],
        "f": None,
        "g": {"p": [3], "q": ["z"]},
    }
    execution_id = scored("every-type", [record, empty])
    for name in ("out.parquet", "out.jsonl"):
        results(
            service_name="every-type",
            execution_id=execution_id,
            output_path=str(tmp_path / name),
        ).execute(context)
        rows = [{key: row[key] for key in record} for row in read(tmp_path / name)]
        assert rows == [record, empty]
    results(
        service_name="every-type", execution_id=execution_id, output_path=str(tmp_path / "out.csv")
    ).execute(context)
    first = arrow_csv.read_csv(tmp_path / "out.csv").to_pylist()[0]
    assert json.loads(first["g"]) == record["g"]
    assert json.loads(first["f"]) == record["f"]


# --- refused, and nothing is written -------------------------------------------------------------


def test_a_running_batch_is_refused(context: Any, hook: MLBatchHook, tmp_path: Path) -> None:
    execution_id = hook.start_batch("slow", "1", {"x": [1.0], "seconds": [30.0]})
    try:
        operator = results(
            service_name="slow", execution_id=execution_id, output_path=str(tmp_path / "out.csv")
        )
        with pytest.raises(BatchError, match=r"is not complete .*; wait for it with"):
            operator.execute(context)
    finally:
        hook.cancel_batch("slow", "1", execution_id)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NoBatchError, match="Execution not found"):
        operator.execute(context)


@pytest.mark.parametrize("rows", [4, 6])
def test_counts_must_agree(context: Any, scored: Scored, tmp_path: Path, rows: int) -> None:
    (tmp_path / "in.csv").write_text("x\n" + "1\n" * rows)
    with pytest.raises(AirflowFailException, match=f"5 results for {rows} rows"):
        results(
            execution_id=scored("double", FIVE),
            input_path=str(tmp_path / "in.csv"),
            output_path=str(tmp_path / "out.csv"),
            rejects_path=str(tmp_path / "rejects.csv"),
        ).execute(context)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"max_failed_records": "some"}, "max_failed_records: found 'some'"),
        ({"data_frames": "flat"}, "data_frames: found 'flat', expected 'auto', 'columns' or"),
        ({"max_failed_records": -1}, "max_failed_records: found -1"),
        ({"rescore_failed": "-1"}, "rescore_failed: found '-1'"),
        ({"rescore_failed": True}, "rescore_failed: found True"),
        ({"parallel_count": 0}, "parallel_count: found 0"),
        ({"columns": "x=power"}, "^columns: found 'x=power', expected a dict of"),
        ({"columns": ["x"]}, r"^columns: found \['x'\], expected a dict of"),
        ({"row_range": "two"}, "row_range: found 'two'"),
        ({"row_range": (3, 2)}, r"row_range: found \(3, 2\)"),
        ({"output_path": "{tmp}/out.xlsx"}, "found no known format"),
        ({"format": "xlsx"}, "format: found 'xlsx'"),
        ({"rejects_path": "{tmp}/rejects"}, "found no known format"),
        ({"rejects_path": "{tmp}/out.csv"}, "rejects_path: .*another path than output_path"),
        ({"output_path": "file://{tmp}/in.csv"}, "output_path: .*another path than input_path"),
        ({"output_path": "{tmp}/no/../in.csv"}, "output_path: .*another path than input_path"),
        ({"input_path": None, "rescore_failed": 1}, "rescore_failed needs input_path"),
        ({"input_path": None, "id_columns": ["id"]}, "id_columns needs input_path"),
        ({"input_path": None, "columns": "x=power"}, "^columns: found 'x=power'"),
        ({"input_path": None, "keep_columns": ["id"]}, "keep_columns needs input_path"),
        ({"input_path": None, "row_range": (0, 1)}, "row_range needs input_path"),
        ({"output_path": None, "rejects_path": "{tmp}/r.csv"}, "rejects_path needs output_path"),
        ({"output_path": None, "id_columns": ["id"]}, "id_columns needs output_path"),
        ({"id_columns": ["nobody"]}, "id_columns: found 'nobody'"),
        ({"id_columns": ["nobody"], "rescore_failed": 2}, "id_columns: found 'nobody'"),
        ({"keep_columns": "power"}, "keep_columns: found 'power'|'power'"),
        ({"input_path": "{tmp}/nothing.csv"}, "found no such file"),
        ({"service_version": "2"}, "404 .*not found"),
        ({"execution_id": ["a", "b"]}, "execution_id: found .*, expected the id of one batch"),
    ],
)
def test_bad_arguments(
    context: Any,
    scored: Scored,
    hook: MLBatchHook,
    tmp_path: Path,
    given: dict[str, Any],
    told: str,
) -> None:
    (tmp_path / "in.csv").write_text(
        "id,x\n" + "".join(f"r{n},{x}\n" for n, x in enumerate(MIXED["x"]))
    )
    arguments: dict[str, Any] = {
        "execution_id": scored("picky", MIXED),
        "service_name": "picky",
        "input_path": "{tmp}/in.csv",
        "output_path": "{tmp}/out.csv",
        **given,
    }
    for name, value in arguments.items():
        if isinstance(value, str):
            arguments[name] = value.replace("{tmp}", str(tmp_path))
    if given == {"keep_columns": "power"}:
        # The text of a single name is a list of one, and that column is not there.
        told = "keep_columns: found 'power'"
    before = hook.list_batch_executions("picky", "1")
    with pytest.raises(AirflowFailException, match=told):
        results(**arguments).execute(context)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert hook.list_batch_executions("picky", "1") == before


# --- records that fail ---------------------------------------------------------------------------


THOUSAND = {"x": [-1 if n in (17, 400, 999) else n for n in range(1000)]}


@pytest.fixture
def thousand(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    path.write_text("id,x\n" + "".join(f"r{n},{x}\n" for n, x in enumerate(THOUSAND["x"])))
    return path


@pytest.mark.parametrize("allowed", [3, "3", 0.003, "0.003", 0.5])
def test_policy_allows(
    context: Any, scored: Scored, thousand: Path, tmp_path: Path, allowed: Any
) -> None:
    manifest = results(
        service_name="picky",
        execution_id=scored("picky", THOUSAND),
        input_path=str(thousand),
        output_path=str(tmp_path / "out.parquet"),
        rejects_path=str(tmp_path / "rejects.jsonl"),
        max_failed_records=allowed,
    ).execute(context)
    assert (manifest["rows"], manifest["failed"]) == (1000, 3)
    failed = [row for row in read(tmp_path / "out.parquet") if not row["mlbatch_success"]]
    assert [row["id"] for row in failed] == ["r17", "r400", "r999"]
    check_rejects(tmp_path / "rejects.jsonl")


def check_rejects(path: Path) -> None:
    """Exactly the three, with their inputs."""
    rejects = read(path)
    assert [(row["id"], row["x"], row["mlbatch_index"]) for row in rejects] == [
        ("r17", "-1", 17),
        ("r400", "-1", 400),
        ("r999", "-1", 999),
    ]
    assert all("x is negative" in row["mlbatch_error"] for row in rejects)


@pytest.mark.parametrize("allowed", [0, "2", 0.0029])
def test_policy_refuses(
    context: Any, scored: Scored, thousand: Path, tmp_path: Path, allowed: Any
) -> None:
    operator = results(
        service_name="picky",
        execution_id=scored("picky", THOUSAND),
        input_path=str(thousand),
        output_path=str(tmp_path / "out.csv"),
        rejects_path=str(tmp_path / "rejects.jsonl"),
        keep_columns=None,
        max_failed_records=allowed,
    )
    told = r"3 of 1,000 records failed.*; they are: record 17 \(x=.*-1.*\): .*x is negative"
    with pytest.raises(AirflowFailException, match=told) as caught:
        operator.execute(context)
    assert isinstance(caught.value.__cause__, RecordsFailedError)
    assert [failure["index"] for failure in caught.value.__cause__.failures] == [17, 400, 999]
    # The table is not there, but what is wrong with it is.
    assert not (tmp_path / "out.csv").exists()
    check_rejects(tmp_path / "rejects.jsonl")


def test_a_failure_leaves_the_table_of_an_earlier_run(
    context: Any, scored: Scored, tmp_path: Path
) -> None:
    def write(service: str, records: Any) -> None:
        results(
            service_name=service,
            execution_id=scored(service, records),
            output_path=str(tmp_path / "out.csv"),
        ).execute(context)

    write("double", FIVE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(AirflowFailException):
        write("picky", MIXED)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write("double", {"x": [7]})
    assert len(read(tmp_path / "out.csv")) == 1
    manifest = json.loads((tmp_path / "out.csv.manifest.json").read_text())
    assert manifest["rows"] == 1


# --- a second try --------------------------------------------------------------------------------


@pytest.fixture
def flaky_table(tmp_path: Path) -> Path:
    """Four records; the second and the fourth fail for the first time."""
    path = tmp_path / "in.csv"
    keys = [f"{tmp_path.name}-{n}" for n in range(4)]
    path.write_text(
        "key,x\n" + "".join(f"{k},{x}\n" for k, x in zip(keys, [1, -2, 3, -4], strict=True))
    )
    return path


def flaky_batch(hook: MLBatchHook, table: Path) -> str:
    rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
    records = [{"key": key, "x": float(x)} for key, x in rows]
    execution_id = hook.start_batch("flaky", "1", records)
    hook.watch_batch("flaky", "1", execution_id, poll_interval=0.05)
    return execution_id


def test_rescored_records_are_whole(
    context: Any,
    hook: MLBatchHook,
    flaky_table: Path,
    tmp_path: Path,
    store: FakeStateStore,
) -> None:
    execution_id = flaky_batch(hook, flaky_table)
    before = hook.list_batch_executions("flaky", "1")
    manifest = results(
        service_name="flaky",
        execution_id=execution_id,
        input_path=str(flaky_table),
        output_path=str(tmp_path / "out.csv"),
        rejects_path=str(tmp_path / "rejects.csv"),
        rescore_failed=1,
    ).execute(context)
    assert [(row["x"], row["y"]) for row in read(tmp_path / "out.csv")] == [
        *((1.0, 1.0), (-2.0, 2.0), (3.0, 3.0), (-4.0, 4.0))
    ]
    assert (manifest["succeeded"], manifest["failed"]) == (4, 0)
    assert read(tmp_path / "rejects.csv") == []
    # The further batch is told of, and gone.
    first, second = manifest["execution_ids"]
    assert first == execution_id
    with pytest.raises(ExecutionNotFoundError):
        hook.get_batch_status("flaky", "1", second)
    assert hook.list_batch_executions("flaky", "1") == before
    assert store.texts == {}


def test_failed_records_are_not_scored_again_by_a_task_that_was_told_to_stop(
    context: Any, hook: MLBatchHook, scored: Scored, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("x\n-4\n9\n")
    context["ti"].state = "failed"
    rows = results(
        service_name="picky",
        execution_id=scored("picky", {"x": [-4, 9]}),
        input_path=str(tmp_path / "in.csv"),
        output_path=str(tmp_path / "out.csv"),
        rescore_failed=1,
    )
    before = hook.list_batch_executions("picky", "1")
    rows.on_kill()
    rows.timing = Timing(sleep=lambda seconds: None)
    with pytest.raises(SubmissionStoppedError, match="told to stop"):
        rows.execute(context)
    assert hook.list_batch_executions("picky", "1") == before
    assert not (tmp_path / "out.csv").exists()


def test_a_task_that_was_told_to_stop_does_not_touch_a_published_dataset(
    context: Any, scored: Scored, tmp_path: Path
) -> None:
    """It was suspended, and its retry has written the part meanwhile."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("_SUCCESS", "manifest.json", "part-00000.csv"):
        (folder / name).write_text("published")
    (tmp_path / "in.csv").write_text("x\n1\n2\n")
    rows = ShardResultsOperator(
        task_id="write",
        service_name="double",
        service_version="1",
        execution_id=scored("double", {"x": [1, 2]}),
        input_path=str(tmp_path / "in.csv"),
        output_path=str(folder),
        format="csv",
        shard={"shard": 0, "start": 0, "stop": 2},
    )
    rows.on_kill()
    rows.timing = Timing(sleep=lambda seconds: None)
    with pytest.raises(SubmissionStoppedError, match="writes nothing"):
        rows.execute(context)
    assert {path.read_text() for path in folder.iterdir()} == {"published"}
    assert len(list(folder.iterdir())) == 3


def test_killed_while_failed_records_are_sent_again(
    context: Any,
    hook: MLBatchHook,
    server: RunningServer,
    scored: Scored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever learns the id cancels the batch, once."""
    (tmp_path / "in.csv").write_text("x\n-4\n9\n")
    rows = results(
        service_name="picky",
        execution_id=scored("picky", {"x": [-4, 9]}),
        input_path=str(tmp_path / "in.csv"),
        output_path=str(tmp_path / "out.csv"),
        rescore_failed=1,
    )
    before = hook.list_batch_executions("picky", "1")
    with scoring_proxy(server.url) as proxy:
        connection = connection_to(server).replace(server.url.rpartition(":")[2], str(proxy.port))
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection)
        held = proxy.hold("POST", r"/batch\?", "reply")

        def kill() -> None:
            held.wait(60)
            context["ti"].state = "failed"
            rows.on_kill()
            held.forward()

        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(AirflowException, match="the task was killed and its batch"):
            rows.execute(context)
        assert len(proxy.passed("DELETE", "/batch/")) == 1
    assert hook.list_batch_executions("picky", "1") == before


@pytest.mark.parametrize("lost", [1, 2])
def test_a_further_batch_is_not_forgotten_before_it_is_gone(
    context: Any,
    hook: MLBatchHook,
    server: RunningServer,
    flaky_table: Path,
    store: FakeStateStore,
    monkeypatch: pytest.MonkeyPatch,
    lost: int,
) -> None:
    """The task is killed, and the line breaks before the server has seen the DELETE."""
    first = flaky_batch(hook, flaky_table)
    before = hook.list_batch_executions("flaky", "1")

    def rows() -> BatchResultsOperator:
        return results(
            service_name="flaky", execution_id=first, input_path=str(flaky_table), rescore_failed=1
        )

    killed = rows()
    killed.timing = Timing(policy=Policy(repeat_seconds=0.0))
    with scoring_proxy(server.url) as proxy, monkeypatch.context() as through_proxy:
        connection = connection_to(server).replace(server.url.rpartition(":")[2], str(proxy.port))
        through_proxy.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection)
        for _ in range(lost):
            proxy.hold("DELETE", "/batch/", "request").drop()
        held = proxy.hold("POST", r"/batch\?", "reply")

        def kill() -> None:
            held.wait(60)
            context["ti"].state = "restarting"
            killed.on_kill()
            held.forward()

        threading.Thread(target=kill, daemon=True).start()
        with pytest.raises(AirflowException, match="the task was killed and its batch"):
            killed.execute(context)
    if lost > 1:
        (left,) = {*hook.list_batch_executions("flaky", "1")} - {*before}
        assert store.get(STORE_KEY) == left
        assert [row["success"] for row in rows().execute(context)] == [True] * 4
    assert sorted(hook.list_batch_executions("flaky", "1")) == sorted(before)
    assert store.texts == {}


def test_rescored_through_xcom(context: Any, hook: MLBatchHook, flaky_table: Path) -> None:
    rows = results(
        service_name="flaky",
        execution_id=flaky_batch(hook, flaky_table),
        input_path=str(flaky_table),
        rescore_failed="1",
    ).execute(context)
    assert [row["y"] for row in rows] == [1.0, 2.0, 3.0, 4.0]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]


def test_rescoring_in_vain(context: Any, scored: Scored, hook: MLBatchHook, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x\n4\n-1\n9\n-2\n16\n")
    operator = results(
        service_name="picky",
        execution_id=scored("picky", MIXED),
        input_path=str(tmp_path / "in.csv"),
        output_path=str(tmp_path / "out.csv"),
        rescore_failed=2,
    )
    before = hook.list_batch_executions("picky", "1")
    # Not AirflowFailException: the next attempt scores them again, and may have more luck.
    with pytest.raises(RecordsFailedError, match="2 of 5 records failed"):
        operator.execute(context)
    assert hook.list_batch_executions("picky", "1") == before


def test_a_batch_that_a_dead_attempt_left_is_deleted(
    context: Any,
    hook: MLBatchHook,
    flaky_table: Path,
    tmp_path: Path,
    store: FakeStateStore,
) -> None:
    execution_id = flaky_batch(hook, flaky_table)
    left = hook.start_batch("flaky", "1", [{"key": "left", "x": 1.0}])
    store.set(STORE_KEY, left)
    results(
        service_name="flaky",
        execution_id=execution_id,
        input_path=str(flaky_table),
        output_path=str(tmp_path / "out.csv"),
        rescore_failed=1,
    ).execute(context)
    with pytest.raises(ExecutionNotFoundError):
        hook.get_batch_status("flaky", "1", left)
    assert store.texts == {}


def test_on_kill_cancels_a_second_try(
    context: Any, hook: MLBatchHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("x,seconds\n1,0\n")
    operator = results(
        service_name="slow", execution_id="none", input_path=str(tmp_path / "in.csv")
    )
    operator.on_kill()  # nothing has begun
    left = hook.start_batch("slow", "1", [{"x": 1.0, "seconds": 60.0}])
    operator.hook.get_server_status()
    operator._begin(FakeTaskInstance("failed"))
    operator._own_execution_id = left
    operator.on_kill()
    with pytest.raises(ExecutionNotFoundError):
        hook.get_batch_status("slow", "1", left)


# --- Airflow -------------------------------------------------------------------------------------


def test_a_fixed_path_is_an_outlet(context: Any, scored: Scored, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    operator = results(execution_id=scored("double", FIVE), output_path=str(path))
    assert operator.outlets == [Asset(uri=f"file://{path}")]
    operator.execute(context)
    told = context["outlet_events"][operator.outlets[0]].extra
    assert (told["rows"], told["succeeded"], told["failed"]) == (5, 5, 0)
    assert told["execution_id"] == operator.execution_id


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/data/a b/größe.csv", "file:///data/a b/gr%C3%B6%C3%9Fe.csv"),
        ("s3://bucket/key.parquet", "s3://bucket/key.parquet"),
        ("s3://my_conn@bucket/key.parquet", "s3://bucket/key.parquet"),
        ("{{ params.path }}", None),
        ("relative/out.csv", None),
    ],
)
def test_outlet_uris(path: str, uri: str | None) -> None:
    outlets = results(execution_id="1", output_path=path).outlets
    assert [outlet.uri for outlet in outlets] == ([uri] if uri else [])


def test_own_outlets_are_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "out.csv")
    own = Asset(name="scores", uri=f"file://{path}")
    assert results(execution_id="1", output_path=path, outlets=[own]).outlets == [own]
    other = Asset(name="other", uri="s3://bucket/other")
    both = [other, Asset(uri=f"file://{path}")]
    assert results(execution_id="1", output_path=path, outlets=other).outlets == both
    with DAG("with_defaults", default_args={"outlets": [other]}):
        assert results(execution_id="1", output_path=path).outlets == both


def test_an_alias_learns_the_asset(context: Any, scored: Scored, tmp_path: Path) -> None:
    alias = AssetAlias("scores")
    operator = results(
        execution_id=scored("double", FIVE),
        output_path="{{ params.folder }}/out.csv",
        outlets=[alias],
    )
    assert operator.outlets == [alias]
    operator.render_template_fields({"params": {"folder": str(tmp_path)}})
    operator.execute(context)
    (event,) = context["outlet_events"][alias].asset_alias_events
    assert event.dest_asset_key.uri == f"file://{tmp_path}/out.csv"
    assert event.extra["rows"] == 5


@pytest.mark.parametrize("native", [False, True])
def test_templates_and_default_args(
    context: Any, scored: Scored, table: Path, tmp_path: Path, native: bool
) -> None:
    defaults = {"service_name": "double", "service_version": "1", "max_failed_records": "{{ p }}"}
    with DAG("templates", default_args=defaults, render_template_as_native_obj=native):
        operator = BatchResultsOperator(  # type: ignore[call-arg]  # from default_args
            task_id="results",
            execution_id="{{ id }}",
            input_path="{{ tmp }}/in.csv",
            output_path="{{ tmp }}/out-{{ ds }}.csv",
            columns={"x": "{{ column }}"},
            row_range=["{{ start }}", "{{ start + 5 }}"],  # type: ignore[list-item]
            id_columns=["{{ 'id' }}"],
            keep_columns="{{ none_of_them }}",
            rescore_failed="{{ p }}",  # type: ignore[arg-type]
        )
    values: Any = {"id": scored("double", FIVE), "tmp": str(tmp_path), "ds": "2026-01-01", "p": 5}
    values |= {"column": "power", "start": 0, "none_of_them": "all"}
    operator.render_template_fields(values)
    operator.execute(context)
    assert len(read(tmp_path / "out-2026-01-01.csv")) == 5


# --- killed --------------------------------------------------------------------------------------

KILLED = textwrap.dedent(
    """
    import sys, time
    from airflow_mlbatch.datasets.writers import TableWriter
    from airflow_mlbatch.operators import BatchResultsOperator
    from airflow.sdk.execution_time.context import OutletEventAccessors
    from tests.provider.airflow_side import FakeTaskInstance

    write = TableWriter.write

    def slowly(self, batch):
        write(self, batch)
        print("wrote", batch.num_rows, flush=True)
        if sys.argv[4] == "slowly":
            time.sleep(60)

    TableWriter.write = slowly
    BatchResultsOperator(
        task_id="results", service_name="long", service_version="1", execution_id=sys.argv[1],
        input_path=sys.argv[2], output_path=sys.argv[3],
    ).execute({"ti": FakeTaskInstance(), "outlet_events": OutletEventAccessors()})
    """
)


def test_killed_in_the_middle_of_writing(scored: Scored, tmp_path: Path) -> None:
    name = "out.parquet"
    execution_id = scored("long", {"x": list(range(1500))})
    (tmp_path / "in.csv").write_text("x\n" + "".join(f"{n}\n" for n in range(1500)))
    folder = tmp_path / "out"

    def start(pace: str) -> subprocess.Popen[str]:
        arguments = [execution_id, str(tmp_path / "in.csv"), str(folder / name), pace]
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, *arguments],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def visible() -> set[str]:
        return {path.name for path in folder.iterdir() if not path.name.startswith(".")}

    with start("slowly") as process:
        try:
            assert process.stdout is not None
            assert any(line.startswith("wrote ") for line in process.stdout)
            assert visible() == set()
            # The one that is being written, under another name.
            assert len(list(folder.iterdir())) == 1
        finally:
            process.send_signal(signal.SIGKILL)
    assert visible() == set()
    assert len(list(folder.iterdir())) == 1
    with start("at once") as process:
        assert process.stdout is not None
        for _ in process.stdout:
            # Whatever is there under the final name is whole: at first nothing, then everything.
            if name in visible():
                check_long(folder / name)
    assert process.returncode == 0
    check_long(folder / name)
    assert {path.name for path in folder.iterdir()} == {name, f"{name}.manifest.json"}


def check_long(path: Path) -> None:
    rows = read(path)
    assert [int(row["x"]) for row in rows] == list(range(1500))
    assert [row["text"] for row in rows] == [f"n{n:04d}" * 400 for n in range(1500)]
