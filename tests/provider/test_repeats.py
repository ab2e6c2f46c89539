"""The logs of the Airflow roles say what is repeated, which try it is and when the next one comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.sensors import BatchStateSensor
from airflow_mlbatch.triggers import BatchStateTrigger
from tests.faults.server import FaultServer, Play, as_json
from tests.faults.table import COMPLETE, EXECUTION, SCENES, SERVICE, VERSION, Path
from tests.provider.test_faults import Clock, clock
from tests.provider.test_sensor import fire, run_to_its_end

__all__ = ["clock"]

NAMED: dict[str, Any] = {"service_name": SERVICE, "service_version": VERSION}
OF_BATCH: dict[str, Any] = {**NAMED, "execution_id": EXECUTION}
BATCH = f"/api/{SERVICE}/{VERSION}/batch"
BUSY = as_json({"message": "too busy"}, 503)
TOKENS = as_json({"access_token": "token-one", "expires_in": 3600})


@pytest.fixture
def busy_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """Each of its addresses is busy for the first two requests."""
    scenes = {f"{scene.method} {scene.target}": scene.good for scene in SCENES.values()}
    scenes |= {
        f"GET {BATCH}": as_json([]),
        f"GET {BATCH}/{EXECUTION}": COMPLETE,
        f"DELETE {BATCH}/{EXECUTION}": as_json({}),
        f"GET {BATCH}/{EXECUTION}/0/files": as_json([]),
    }
    play = {place: [BUSY, BUSY, good] for place, good in scenes.items()}
    # Who starts a batch repeats nothing that the server may have.
    play[f"POST {BATCH}"] = [scenes[f"POST {BATCH}"]]
    with FaultServer(Play({**play, "POST /login": [TOKENS]})) as server:
        connection = {
            "conn_type": "mlbatch",
            "host": "127.0.0.1",
            "port": server.port,
            "login": "ada",
            "password": "correct horse",
        }
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", json.dumps(connection))
        yield server


def sensor(**kwargs: Any) -> Callable[[], Any]:
    return lambda: BatchStateSensor(task_id="wait", **OF_BATCH, poke_interval=0.01, **kwargs)


TASKS: dict[str, tuple[Callable[[], Any], str]] = {
    "sensor": (sensor(), f"GET {BATCH}/{EXECUTION}"),
    "sensor, reschedule": (sensor(mode="reschedule"), f"GET {BATCH}/{EXECUTION}"),
    "sensor, deferrable": (sensor(deferrable=True), f"GET {BATCH}/{EXECUTION}"),
    "score": (
        lambda: BatchScoreOperator(task_id="score", **NAMED, records=[{"hp": 1, "wt": 1}]),
        f"GET {BATCH}",
    ),
    "score, waiting": (
        lambda: BatchScoreOperator(
            task_id="score", **NAMED, records=[{"hp": 1, "wt": 1}], wait_for_completion=True
        ),
        f"GET {BATCH}/{EXECUTION}",
    ),
    "results": (
        lambda: BatchResultsOperator(task_id="results", **OF_BATCH),
        f"GET {SCENES[Path.CALL].target}",
    ),
    "artifacts": (
        lambda: ArtifactDownloadOperator(task_id="files", **OF_BATCH, indexes=[0]),
        f"GET {BATCH}/{EXECUTION}/0/files",
    ),
    "delete": (
        lambda: BatchDeleteOperator(task_id="delete", **NAMED, execution_ids=[EXECUTION]),
        f"DELETE {BATCH}/{EXECUTION}",
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_logs_its_repeats(
    busy_server: FaultServer,
    context: Any,
    clock: Clock,
    name: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make, repeated = TASKS[name]
    context["timing"] = clock.timing()
    context["ti"].get_first_reschedule_date = lambda context: None
    run_to_its_end(make, context)

    logged = "".join(capfd.readouterr())
    for number, pause in ((1, "0.5"), (2, "1")):
        assert f"{repeated}: 503 too busy (try {number} failed, the next in {pause} s)" in logged


def test_the_hook_logs_its_repeats(
    busy_server: FaultServer, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = MLBatchHook(timing=clock.timing())
    hook.get_service(SERVICE, VERSION)
    hook.close()
    logged = "".join(capfd.readouterr())
    assert "503 too busy (try 2 failed, the next in 1 s)" in logged


def test_a_trigger_logs_the_repeats_within_a_poll(
    busy_server: FaultServer, clock: Clock, capfd: pytest.CaptureFixture[str]
) -> None:
    event = fire(BatchStateTrigger(**OF_BATCH), clock.timing())
    assert event.payload["state"] == "complete"
    logged = "".join(capfd.readouterr())
    for number, pause in ((1, "0.5"), (2, "1")):
        assert (
            f"poll of execution {EXECUTION}: GET {BATCH}/{EXECUTION}: 503 too busy "
            f"(try {number} failed, the next in {pause} s)"
        ) in logged
