"""What services print: in the log where records failed, in a column where one is asked for."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from airflow import __version__ as airflow_version
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, task
from packaging.version import Version

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import BatchResultsOperator

# Airflow 3.0's own way of making paths: nothing that we could do otherwise.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in a future version of UPath:PendingDeprecationWarning"
)

Logged = Callable[[], str]


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Logged:
    """What was logged since the last call."""

    def text() -> str:
        printed, records = capsys.readouterr().out, caplog.text
        caplog.clear()
        # Airflow 3.0 leaves the log of a task to Python's logging, later ones print it in a test.
        return records if Version(airflow_version) < Version("3.1") else printed

    return text


def write_table(folder: Path, numbers: list[float]) -> Path:
    path = folder / "in.csv"
    rows = [f"{folder.name}-{n},{number}" for n, number in enumerate(numbers)]
    path.write_text("\n".join(["key,x", *rows]) + "\n", encoding="utf-8")
    return path


def score(hook: MLBatchHook, table: Path) -> str:
    execution_id = hook.start_batch("chatty", "1", str(table))
    hook.watch_batch("chatty", "1", execution_id, poll_interval=0.05)
    return execution_id


def results(execution_id: str, **arguments: Any) -> BatchResultsOperator:
    return BatchResultsOperator(
        task_id="results",
        service_name="chatty",
        service_version="1",
        execution_id=execution_id,
        poll_interval=0.05,
        **{"max_failed_records": 0.99, **arguments},
    )


def printed(table: Path, row: int, number: str) -> str:
    return f"this is {table.parent.name}-{row},\n::group::\x1b[31m x is {number}\n"


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_a_column_holds_what_each_record_has_printed(
    context: Any, hook: MLBatchHook, tmp_path: Path, suffix: str
) -> None:
    table, out = write_table(tmp_path, [4, 0, -1]), tmp_path / f"out.{suffix}"
    manifest = results(
        score(hook, table),
        input_path=str(table),
        output_path=str(out),
        rejects_path=str(tmp_path / f"rejects.{suffix}"),
        console_column="printed",
    ).execute(context)
    assert [column["name"] for column in manifest["columns"]] == [
        *("key", "x", "y", "mlbatch_index", "mlbatch_success", "mlbatch_error", "printed")
    ]
    nothing = None if suffix in ("parquet", "jsonl") else ""
    found = [row["printed"] for row in read(out)]
    assert found == [printed(table, 0, "4"), nothing, printed(table, 2, "-1")]
    assert "printed" not in read(tmp_path / f"rejects.{suffix}")[0]


def test_records_that_are_scored_again_have_what_their_last_try_has_printed(
    context: Any, hook: MLBatchHook, tmp_path: Path, logged: Logged
) -> None:
    table = write_table(tmp_path, [4, -1, -200])
    execution_id = score(hook, table)
    logged()
    rows = results(
        execution_id, input_path=str(table), rescore_failed=1, console_column="printed"
    ).execute(context)
    assert [row["success"] for row in rows] == [True, True, False]
    assert rows[1]["printed"] == printed(table, 1, "-1")
    # Only what has failed in the end is in the log.
    assert re.findall(r"record (\d+) failed and has printed", logged()) == ["2"]


@pytest.mark.parametrize("into_a_table", [True, False])
def test_the_log_shows_a_little_of_the_first_failed_records(
    context: Any, hook: MLBatchHook, tmp_path: Path, logged: Logged, into_a_table: bool
) -> None:
    table = write_table(tmp_path, [1, 0, -200, -2, -3, -4, -5, -6, -7])
    execution_id = score(hook, table)
    logged()
    arguments = {"output_path": str(tmp_path / "out.csv")} if into_a_table else {}
    with pytest.raises(AirflowFailException, match="7 of 9 records failed"):
        results(execution_id, max_failed_records=0, **arguments).execute(context)
    told = logged()
    assert re.findall(r"record (\d+) failed and has printed", told) == ["2", "3", "4", "5", "6"]
    assert told.count("more failed records have printed something; console_column") == 1
    # Neither colours nor marks of a log come through, and no record fills it.
    assert f"  | this is {tmp_path.name}-2," in told
    assert "  | ::group::�[31m x is -200" in told
    assert "\n::group::" not in told
    assert "\x1b[31m x is" not in told
    assert 300 < told.count("long ") < 400
    assert re.search(r"  \| … \(5,\d\d\d characters\)", told)


def test_the_log_names_rows_of_the_table(
    context: Any, hook: MLBatchHook, tmp_path: Path, logged: Logged
) -> None:
    table = write_table(tmp_path, [1, 2, 3, -4])
    (tmp_path / "part.csv").write_text(f"key,x\n{tmp_path.name}-3,-4\n", encoding="utf-8")
    execution_id = score(hook, tmp_path / "part.csv")
    with pytest.raises(AirflowFailException, match="1 of 1 records failed"):
        results(
            execution_id, input_path=str(table), row_range=(3, 4), max_failed_records=0
        ).execute(context)
    assert "record 3 failed and has printed" in logged()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("key", "found 'key', which is also the name of a kept column"),
        ("y", "found 'y', which is also the name"),
        ("mlbatch_error", "found 'mlbatch_error', which is also the name"),
        (" ", "found ' ', expected the name of a column"),
        (7, "found 7, expected the name of a column"),
    ],
)
@pytest.mark.parametrize("rescore_failed", [0, 1])
def test_a_name_that_is_taken_is_refused(
    context: Any, hook: MLBatchHook, tmp_path: Path, name: Any, told: str, rescore_failed: int
) -> None:
    table = write_table(tmp_path, [4, -1])
    execution_id = score(hook, table)
    before = hook.list_batch_executions("chatty", "1")
    with pytest.raises(AirflowFailException, match=f"^console_column: {told}"):
        results(
            execution_id,
            input_path=str(table),
            output_path=str(tmp_path / "out.csv"),
            console_column=name,
            rescore_failed=rescore_failed,
        ).execute(context)
    assert not (tmp_path / "out.csv").exists()
    assert hook.list_batch_executions("chatty", "1") == before


@pytest.mark.parametrize("name", ["y", "index", "error"])
def test_a_key_that_is_taken_is_refused(
    context: Any, hook: MLBatchHook, tmp_path: Path, name: str
) -> None:
    execution_id = score(hook, write_table(tmp_path, [4]))
    with pytest.raises(AirflowFailException, match=f"console_column: found '{name}'"):
        results(execution_id, console_column=name).execute(context)


def decorated(records: Any, **options: Any) -> Any:
    with DAG("flow", schedule=None):
        decorate = task.mlbatch(
            task_id="score",
            service_name="chatty",
            service_version="1",
            poll_interval=0.05,
            **options,
        )
        called: Any = decorate(lambda: records)()
        return called.operator


def test_the_decorated_task(
    context: Any, hook: MLBatchHook, tmp_path: Path, logged: Logged
) -> None:
    records = {"key": [f"{tmp_path.name}-{n}" for n in range(3)], "x": [4, 0, -1]}
    flow = decorated(records, console_column="printed", max_failed_records=1)
    rows = flow.execute(context)
    table = tmp_path / "in.csv"
    assert [row["printed"] for row in rows] == [
        printed(table, 0, "4"),
        None,
        printed(table, 2, "-1"),
    ]
    assert "record 2 failed and has printed" in logged()
    for options, told in (
        ({"console_column": "y"}, "console_column: found 'y', which is also the name"),
        ({"console_column": "printed", "returns": "execution_id"}, "with returns='execution_id'"),
    ):
        before = hook.list_batch_executions("chatty", "1")
        with pytest.raises(AirflowFailException, match=told):
            decorated(records, **options).execute(context)
        assert hook.list_batch_executions("chatty", "1") == before
