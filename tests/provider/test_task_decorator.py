"""`@task.mlbatch` in whole Dag runs on a live server, and called as a worker calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG, task

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import event_of
from tests.provider.conftest import connection_to
from tests.server_process import RunningServer
from tests.system.scoring_proxy import scoring_proxy

SERVICE: dict[str, Any] = {"service_name": "picky", "service_version": "1", "poll_interval": 0.05}

DAG_FILE = """
import json
import os
from airflow.sdk import DAG, task

service = {"service_name": "double", "service_version": "1", "poll_interval": 0.05}
with DAG("flow", schedule=None) as dag:

    @task.mlbatch(**service)
    def numbers(first):
        return [{"x": first}, {"x": first + 1}]

    @task.mlbatch(returns="execution_id", deferrable=True, **service)
    def deferred(results) -> dict[str, list[float]]:
        return {"x": [row["y"] for row in results]}

    @task
    def note(mapped, execution_id):
        with open(os.environ["OUTCOME"], "w") as file:
            json.dump([[[row["y"] for row in rows] for rows in mapped], execution_id], file)

    mapped = numbers.expand(first=[1.0, 5.0])
    note(mapped, deferred(numbers(3.0)))

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
"""


def test_a_dag_maps_defers_and_hands_results_on(
    airflow_database: str, hook: MLBatchHook, tmp_path: Path
) -> None:
    file, outcome = tmp_path / "flow.py", tmp_path / "outcome.json"
    file.write_text(DAG_FILE)
    environment = {
        **os.environ,
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path),
        "OUTCOME": str(outcome),
    }
    done = subprocess.run(
        [sys.executable, str(file)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    mapped, execution_id = json.loads(outcome.read_text())
    assert mapped == [[2.0, 4.0], [10.0, 12.0]]
    results = hook.get_batch_results("double", "1", execution_id)
    assert [record.outputs["y"] for record in results] == [12.0, 16.0]


def operator(function: Any, **options: Any) -> Any:
    with DAG("flow", schedule=None):
        called: Any = task.mlbatch(task_id="score", **{**SERVICE, **options})(function)()
        return called.operator


def test_results_are_those_of_the_results_operator(context: Any) -> None:
    score = operator(lambda: pd.DataFrame({"x": [4.0, -1.0]}), max_failed_records=1)
    rows = score.execute(context)
    assert rows[0] == {"index": 0, "y": 2.0, "success": True, "error": None}
    assert (rows[1]["index"], rows[1]["y"], rows[1]["success"]) == (1, None, False)
    assert "x is negative" in rows[1]["error"]


def test_a_path_is_a_table(context: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x\n9\n")
    rows = operator(lambda: tmp_path / "in.csv").execute(context)
    assert [row["y"] for row in rows] == [3.0]


def test_a_retry_scores_once(context: Any, hook: MLBatchHook) -> None:
    def numbers() -> dict[str, list[float]]:
        return {"x": [16.0]}

    first = operator(numbers, returns="execution_id").execute(context)
    context["ti"].try_number = 2
    assert operator(numbers, returns="execution_id").execute(context) == first
    assert [row["y"] for row in operator(numbers).execute(context)] == [4.0]
    known = hook.list_batch_executions("picky", "1")
    calls = [each for each in known if is_of(hook, each, 4.0)]
    assert calls == [first]


def is_of(hook: MLBatchHook, execution_id: str, y: float) -> bool:
    return [each.outputs["y"] for each in hook.get_batch_results("picky", "1", execution_id)] == [y]


@pytest.mark.parametrize("returns", ["results", "execution_id"])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_resumed_task_does_not_call_its_function(
    context: Any, hook: MLBatchHook, markers: Path, returns: str, is_late: bool
) -> None:
    """Nor is there another batch. Late is a task whose deadline no triggerer has kept."""
    gate, calls = f"{returns} {is_late}", []

    def numbers() -> list[dict[str, Any]]:
        calls.append(1)
        return [{"gate": gate, "x": 7.0}]

    options = {"service_name": "gated", "returns": returns, "deferrable": True}
    with pytest.raises(TaskDeferred) as deferred:
        operator(numbers, **options).execute(context)
    (markers / gate).touch()
    ours = deferred.value.trigger.execution_id
    status = hook.watch_batch("gated", "1", ours, poll_interval=0.05)
    resumed = (
        "execute_complete",
        {**(deferred.value.kwargs or {}), "event": event_of(ours, status)},
    )
    if is_late:
        resumed = ("__fail__", {"error": "Trigger timeout"})
    found = operator(numbers, **options).resume_execution(*resumed, context)
    assert (found if returns == "execution_id" else found[0]["y"]) in (ours, 7.0)
    assert len(calls) == 1


def test_the_results_are_read_once(
    context: Any,
    hook: MLBatchHook,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execution_id = hook.start_batch("picky", "1", {"x": [4.0, -1.0]})
    event = event_of(execution_id, hook.watch_batch("picky", "1", execution_id, poll_interval=0.05))
    with scoring_proxy(server.url) as proxy:
        connection = connection_to(server).replace(server.url.rpartition(":")[2], str(proxy.port))
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection)
        score = operator(nothing, max_failed_records=0.5)
        rows = score.execute_complete(context, event)
        assert len(proxy.passed("GET", "/batch/")) == 1
    assert [row["success"] for row in rows] == [True, False]
    summary = context["ti"].pushed["mlbatch_summary"]
    assert (summary["failed"], summary["first_failures"][0]["index"]) == (1, 1)


def test_an_empty_table_has_no_results(context: Any, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("x\n")
    assert operator(lambda: tmp_path / "in.csv", on_empty="succeed").execute(context) == []


def test_nothing_is_sent_for_too_many_records(context: Any, hook: MLBatchHook) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException

    before = hook.list_batch_executions("picky", "1")
    score = operator(lambda: {"x": [1.0, 2.0]}, max_xcom_records=1)
    with pytest.raises(AirflowFailException, match="max_xcom_records: found 2 records"):
        score.execute(context)
    assert hook.list_batch_executions("picky", "1") == before


def test_the_newest_version_scores(context: Any) -> None:
    (row,) = operator(lambda: {"x": [25.0]}, service_version="latest").execute(context)
    assert row["y"] == 5.0
    assert context["ti"].pushed["mlbatch_latest_version"]["service_version"] == "1"


def nothing() -> list[dict[str, float]]:
    return []


def test_default_arguments_hold() -> None:
    with DAG("flow", schedule=None, default_args={**SERVICE, "max_failed_records": 3}):
        called: Any = task.mlbatch(task_id="score")(nothing)()
        found = called.operator
    assert found.max_failed_records == 3
    assert operator(nothing).max_failed_records == 0
    assert operator(nothing, returns="execution_id").max_failed_records is None


async def too_late() -> list[dict[str, float]]:
    return []


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        (nothing, {"records": [{"x": 1.0}]}, "found records, which the function returns"),
        (nothing, {"input_path": "in.csv"}, "found input_path, which the function returns"),
        (nothing, {"multiple_outputs": True}, "found multiple_outputs=True"),
        (too_late, {}, "found an async function"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_makes_no_sense_is_said_when_the_dag_is_read(
    function: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        operator(function, **options)


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        (None, {}, "found None, expected the function to return records"),
        ([{"x": 1.0}], {"returns": "frame"}, "returns: found 'frame'"),
        ([{"x": 1.0}], {"wait_for_completion": False}, "expected 'execution_id'"),
        ([{"x": -1.0}], {}, "1 of 1 records failed"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_cannot_be_scored_is_said(
    context: Any, given: Any, options: dict[str, Any], words: str
) -> None:
    from airflow.providers.common.compat.sdk import AirflowFailException

    with pytest.raises(AirflowFailException, match=words):
        operator(lambda: given, **options).execute(context)
