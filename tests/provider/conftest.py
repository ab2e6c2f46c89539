"""A live scoring server for the Airflow roles, and a task context without an Airflow database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_mlbatch.hooks import MLBatchHook
from tests.provider.airflow_side import FakeStateStore, FakeTaskInstance
from tests.server_process import RunningServer, running_server

SERVICES = Path(__file__).parent / "services.py"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests of this folder, with the demo services and those of the tests."""
    folder = tmp_path_factory.mktemp("scoring-server")
    markers = folder / "markers"
    markers.mkdir()
    with running_server(
        *("--demo", "--services", str(SERVICES)),
        data_dir=folder / "data",
        env={"MLBATCH_TEST_MARKERS": str(markers)},
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def connection(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection `mlbatch_default` points to the server."""
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server))
    return "mlbatch_default"


def connection_to(server: RunningServer) -> str:
    """An Airflow connection as its environment variable holds it."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    return json.dumps(
        {
            "conn_type": "mlbatch",
            "host": host,
            "port": int(port),
            "login": "admin",
            "password": server.password,
        }
    )


@pytest.fixture
def hook() -> Iterator[MLBatchHook]:
    """For a look at the server beside the operator under test."""
    hook = MLBatchHook()
    yield hook
    hook.close()


@pytest.fixture
def store() -> FakeStateStore:
    """What Airflow 3.3 keeps for a task across its attempts."""
    return FakeStateStore()


@pytest.fixture
def context(store: FakeStateStore) -> dict[str, Any]:
    """The part of a task's context that the operators use."""
    return {
        "ti": FakeTaskInstance(),
        "task_state_store": store,
        "outlet_events": OutletEventAccessors(),
    }
