"""Batches that somebody starts by hand are picked up by a Dag, also across a restart of the triggerer."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from airflow import __version__ as airflow_version
from packaging.version import Version

from tests.server_process import RunningServer, running_server
from tests.system.airflow_processes import AirflowProcesses, eventually, running_airflow

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        Version(airflow_version) < Version("3.3"), reason="this Airflow keeps nothing for watchers"
    ),
]

DAG_ID = "mlbatch_pick_up_batches"
EXAMPLE = Path(__file__).parents[2] / "dags_examples" / f"{DAG_ID}.py"


@dataclass
class World:
    """Airflow with the example Dag, and the server that others use, too."""

    airflow: AirflowProcesses
    server: RunningServer
    written: Path

    def start_by_hand(self) -> str:
        """What an R user does: log in and start a batch, without Airflow."""
        with requests.Session() as session:
            session.trust_env = False
            user = {"username": "admin", "password": self.server.password}
            reply = session.post(f"{self.server.url}/login", json=user, timeout=60)
            headers = {"Authorization": f"Bearer {reply.json()['access_token']}"}
            records = [{"hp": 120, "wt": 2.8}, {"hp": 250, "wt": 3.5}]
            reply = session.post(
                f"{self.server.url}/api/mtService/v1.0.0/batch?parallelCount=2",
                json=records,
                headers=headers,
                timeout=60,
            )
        assert reply.status_code == 202, reply.text
        return str(reply.json()["batchExecutionId"])

    def events(self) -> list[str]:
        """The executions that Airflow was told of, oldest first."""
        listed = self.airflow.ask("GET", "/assets/events", limit=100, order_by="timestamp")
        return [each["extra"]["payload"]["execution_id"] for each in listed["asset_events"]]

    def wait_until_read(self, execution_id: str) -> None:
        """Wait until a run has written the results of an execution."""
        table = self.written / f"{execution_id}.csv"
        eventually(table.exists, what=f"{table}; events: {self.events()}")
        with table.open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 2


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    dags, data = tmp_path / "dags", tmp_path / "data"
    dags.mkdir()
    shutil.copy(EXAMPLE, dags)
    env = {"MLBATCH_EXAMPLE_DATA": str(data)}
    with (
        running_server("--demo", data_dir=tmp_path / "server") as server,
        running_airflow(
            tmp_path / "airflow", server.url, server.password, (), env=env, dags=dags
        ) as airflow,
    ):
        yield World(airflow, server, data / "scored" / "picked_up")


def test_each_batch_is_picked_up_once(world: World) -> None:
    airflow = world.airflow
    before = world.start_by_hand()
    airflow.start_triggerer("first")
    kept = eventually(lambda: stored(airflow), what="the watcher has looked at the server")
    assert kept == {"execution_ids": [before]}
    while_it_runs = world.start_by_hand()
    world.wait_until_read(while_it_runs)
    eventually(lambda: while_it_runs in stored(airflow)["execution_ids"], what="it is kept")
    airflow.stop("first")
    while_nobody_looks = world.start_by_hand()
    airflow.start_triggerer("second")
    world.wait_until_read(while_nobody_looks)
    last = world.start_by_hand()
    world.wait_until_read(last)
    assert world.events() == [while_it_runs, while_nobody_looks, last]
    assert not (world.written / f"{before}.csv").exists()


def stored(airflow: AirflowProcesses) -> dict[str, list[str]]:
    """What Airflow's page about the asset shows of its watcher."""
    (asset,) = airflow.ask("GET", "/assets")["assets"]
    listed = airflow.ask("GET", f"/assets/{asset['id']}/state-store")["asset_state_store"]
    found = {each["key"]: each["value"] for each in listed}
    value = found.get("complete executions of mtService v1.0.0, mlbatch_default")
    return json.loads(value) if isinstance(value, str) else value or {}
