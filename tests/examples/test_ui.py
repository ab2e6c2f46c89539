"""`mlbatch ui`, as somebody with a browser uses it: Dags, connection, a run, and an end of all of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_mlbatch.demo.airflow_home import examples_folder
from tests.patience import PATIENCE
from tests.ports import ReservedPort

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

# The asset of another example starts it.
STARTS_BY_ITSELF = "mlbatch_read_scores"


class Pages:
    """What Airflow's pages ask their server for."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = self("GET", "/auth/token")["access_token"]

    def __call__(self, verb: str, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if hasattr(self, "_token"):
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=verb)
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return json.load(reply)

    def start(self, dag_id: str) -> None:
        self("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"logical_date": None})

    def runs(self) -> dict[str, str]:
        """The state of each Dag's run, by its Dag."""
        found = self("GET", "/api/v2/dags/~/dagRuns?limit=100")["dag_runs"]
        return {run["dag_id"]: run["state"] for run in found}

    def second_attempts(self) -> dict[str, str]:
        """The log of the first attempt of each task that needed another one."""
        path = "/api/v2/dags/~/dagRuns/~/taskInstances?limit=1000"
        tasks = self("GET", path)["task_instances"]
        return {
            f"{task['dag_id']}.{task['task_id']}": json.dumps(self("GET", log_of(task)))[-3000:]
            for task in tasks
            if task["try_number"] > 1
        }


def log_of(task: dict[str, Any]) -> str:
    run = f"/api/v2/dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}"
    return f"{run}/taskInstances/{task['task_id']}/logs/1?map_index={task['map_index']}"


def test_ui(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = ReservedPort()
    request.addfinalizer(place.close)
    port = place.number
    command = [sys.executable, "-u", "-m", "airflow_mlbatch.cli", "ui", "--folder", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if "AIRFLOW_" not in name}
    with subprocess.Popen(
        [*command, "--port", str(port)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        started: list[psutil.Process] = []
        try:
            assert process.stdout is not None
            assert any("is up" in line for line in process.stdout)
            started = psutil.Process(process.pid).children(recursive=True)
            assert len(started) >= 6  # scoring server, scheduler, triggerer, …
            look_around(Pages(f"http://127.0.0.1:{port}"))
            # The port is taken now, and that is said before anything is touched.
            second = subprocess.run(
                [*command, "--port", str(port)], env=environment, capture_output=True, text=True
            )
            assert second.returncode == 1
            assert f"port: found {port} in use" in second.stdout
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
            left = [each for each in started if each.is_running() and each.status() != "zombie"]
            for each in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
    assert process.returncode == 0
    assert left == []
    assert not (tmp_path / "connections.json").exists()
    assert (tmp_path / "data" / "scored" / "scores.csv").exists()


def look_around(pages: Pages) -> None:
    files = [file.read_text() for file in examples_folder().glob("*.py")]
    dag_ids = {dag_id for text in files for dag_id in re.findall(r'dag_id="(\w+)"', text)}
    while {dag["dag_id"] for dag in pages("GET", "/api/v2/dags?limit=100")["dags"]} < dag_ids:
        time.sleep(1)
    assert pages("GET", "/api/v2/importErrors")["import_errors"] == []
    (connection,) = pages("GET", "/api/v2/connections")["connections"]
    assert (connection["connection_id"], connection["conn_type"]) == ("mlbatch_default", "mlbatch")
    assert connection["password"] in (None, "***")
    tested = pages("POST", "/api/v2/connections/test", connection)
    assert tested["status"] is True, tested
    for dag_id in dag_ids - {STARTS_BY_ITSELF}:
        pages.start(dag_id)
    runs: dict[str, str] = {}
    while set(runs) != dag_ids or not {*runs.values()} <= {"success", "failed"}:
        runs = pages.runs()
        time.sleep(1)
    second = pages.second_attempts()
    assert {dag_id for dag_id in runs if runs[dag_id] != "success"} == set(), second
    assert second == {}
    (run,) = pages("GET", f"/api/v2/dags/{STARTS_BY_ITSELF}/dagRuns")["dag_runs"]
    assert run["run_type"] == "asset_triggered"
