"""`service_version="latest"`: one version for each run, on a live server where others are published."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import event_of
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
    PublishServiceOperator,
)
from airflow_mlbatch.sensors import BatchStateSensor
from tests.provider.airflow_side import FakeStateStore, FakeTaskInstance
from tests.provider.conftest import connection_to
from tests.server_process import RunningServer, running_server

NUMBER: dict[str, Any] = {"inputs": {"x": float}, "outputs": {"y": float}}
DAGS = Path(__file__).parent / "dags"
LATEST: dict[str, Any] = {"service_version": "latest"}


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    data = tmp_path_factory.mktemp("open-server") / "data"
    with running_server("--allow-publish", "--workers", "1", data_dir=data) as running:
        yield running


@pytest.fixture(autouse=True)
def connection(open_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(open_server))
    return "mlbatch_default"


def publish(hook: MLBatchHook, service: str, version: str) -> None:
    """Versions tell what they are: the answer is their number."""
    code = f"y = {float(version)}\nopen('v.txt', 'w').write('{version}')"
    hook.publish_service(service, version, code=code, artifacts=["v.txt"], **NUMBER)


def score(service: str, **more: Any) -> BatchScoreOperator:
    arguments = {"records": [{"x": 1}], "wait_for_completion": True, **LATEST, **more}
    return BatchScoreOperator(task_id="score", service_name=service, poll_interval=0.1, **arguments)


def attempt_after(context: Any) -> Any:
    """What Airflow hands to the next attempt: the task's note is there, its XCom is not."""
    return {**context, "ti": FakeTaskInstance()}


def answers(hook: MLBatchHook, service: str, version: str, execution_id: str) -> list[float]:
    results = hook.get_batch_results(service, version, execution_id)
    return [result.outputs["y"] for result in results]


def test_one_version_from_the_score_to_the_files(
    hook: MLBatchHook, context: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Newest is what was published last, not what has the highest number.
    publish(hook, "chain", "10")
    publish(hook, "chain", "9")
    execution_id = score("chain").execute(context)
    assert execution_id is not None
    pushed = context["ti"].pushed
    assert pushed["mlbatch_latest_version"] == {
        "conn_id": "mlbatch_default",
        "service_name": "chain",
        "service_version": "9",
        "created_at": hook.get_service("chain", "9").created_at,
    }
    assert pushed["mlbatch_started_batch"]["service_version"] == "9"
    assert "service chain: version 9 was published last, 20" in capsys.readouterr().out
    # What is published while the run goes on is not for this run.
    publish(hook, "chain", "11")
    table, output = tmp_path / "in.csv", tmp_path / "out.csv"
    table.write_text("x\n1\n")
    batch: dict[str, Any] = {"service_name": "chain", "execution_id": execution_id, **LATEST}
    BatchStateSensor(task_id="wait", **batch).execute(context)
    results = BatchResultsOperator(
        task_id="results", input_path=str(table), output_path=str(output), **batch
    )
    manifest = results.execute(context)
    assert (manifest["service_name"], manifest["service_version"]) == ("chain", "9")
    (row,) = read_csv(output)
    assert float(row["y"]) == 9
    files = ArtifactDownloadOperator(task_id="files", dest=str(tmp_path / "files"), **batch)
    files.execute(context)
    (file,) = (tmp_path / "files").rglob("*v.txt")
    assert file.read_text() == "9"
    delete = BatchDeleteOperator(
        task_id="delete", service_name="chain", execution_ids=execution_id, **LATEST
    )
    assert delete.execute(context) == [execution_id]
    # Another run finds the new one.
    fresh: Any = {**context, "ti": FakeTaskInstance(), "task_state_store": FakeStateStore()}
    assert answers(hook, "chain", "11", score("chain").execute(fresh) or "") == [11.0]


def test_a_retry_keeps_the_version(hook: MLBatchHook, context: Any) -> None:
    publish(hook, "retried", "1")
    first = score("retried").execute(context)
    publish(hook, "retried", "2")
    # The worker died before Airflow learned of the success: the same batch is taken over.
    assert score("retried").execute(attempt_after(context)) == first
    assert hook.list_batch_executions("retried", "2") == []
    # Other records are another batch, of the same version.
    other = score("retried", records=[{"x": 2}]).execute(attempt_after(context))
    assert answers(hook, "retried", "1", other or "") == [1.0]


def test_a_deferred_task_keeps_the_version(hook: MLBatchHook, context: Any) -> None:
    publish(hook, "deferred", "1")
    hook.publish_service("deferred", "2", code="import time\ntime.sleep(3)\ny = 2.0", **NUMBER)
    with pytest.raises(TaskDeferred) as deferred:
        score("deferred", deferrable=True).execute(context)
    assert deferred.value.trigger.serialize()[1]["service_version"] == "2"
    publish(hook, "deferred", "3")
    execution_id = deferred.value.trigger.serialize()[1]["execution_id"]
    status = hook.watch_batch("deferred", "2", execution_id, poll_interval=0.1)
    task = score("deferred", deferrable=True)
    task.execute_complete(context, event_of(execution_id, status))
    assert task.service_version == "2"


@pytest.mark.skipif(
    not AIRFLOW_V_3_1_PLUS, reason="running whole Dags asks things of Airflow that 3.0 cannot say"
)
def test_all_shards_of_a_table_have_one_version(
    hook: MLBatchHook, open_server: RunningServer, airflow_database: str, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text("x\n" + "1\n" * 5)
    outcome = tmp_path / "outcome.json"
    done = subprocess.run(
        [sys.executable, str(DAGS / "run.py"), str(outcome), "latest_in_shards"],
        env={
            **os.environ,
            "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
            "AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(open_server),
            "MLBATCH_TEST_TABLES": str(tmp_path),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert outcome.exists(), told[-4000:]
    (run,) = json.loads(outcome.read_text())
    assert run["state"] == "success", told[-4000:]
    assert hook.get_latest_service("sharded").version == "2"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["service_version"] == "1"
    rows = [row for part in (tmp_path / "out").glob("*.csv") for row in read_csv(part)]
    assert [float(row["y"]) for row in rows] == [1.0] * 5
    assert hook.list_batch_executions("sharded", "2") == []
    # The cleanup has deleted the batches of the right version.
    assert hook.list_batch_executions("sharded", "1") == []


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_without_a_state_store(hook: MLBatchHook, context: Any) -> None:
    del context["task_state_store"]
    publish(hook, "stateless", "1")
    assert score("stateless").execute(context)
    publish(hook, "stateless", "2")
    # Another task of the run has told.
    BatchDeleteOperator(
        task_id="delete", service_name="stateless", execution_ids=["gone"], **LATEST
    ).execute(context)
    assert context["ti"].pushed["mlbatch_latest_version"]["service_version"] == "1"


def test_nothing_to_delete_needs_no_version(context: Any) -> None:
    """A teardown of a run whose batch was never started, because nobody has published the service."""
    delete = BatchDeleteOperator(
        task_id="delete", service_name="nobody's", execution_ids=["None", None], **LATEST
    )
    assert delete.execute(context) == []


def test_a_service_without_versions(context: Any) -> None:
    with pytest.raises(AirflowFailException, match="service 'nothing' has no version"):
        score("nothing").execute(context)


def test_nobody_publishes_under_this_word(context: Any) -> None:
    publishing = PublishServiceOperator(
        task_id="publish", service_name="any", code="y = x", **LATEST, **NUMBER
    )
    with pytest.raises(AirflowFailException, match="expected a name of its own"):
        publishing.execute(context)


def test_the_note_is_plain_json(hook: MLBatchHook, context: Any) -> None:
    publish(hook, "plain", "1")
    score("plain").execute(context)
    store: FakeStateStore = context["task_state_store"]
    assert json.loads(store.texts["mlbatch_latest_version"])["service_version"] == "1"
