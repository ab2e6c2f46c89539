"""A live scoring server for the Airflow roles, and a task context without an Airflow database."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_mlbatch.hooks import MLBatchHook
from tests.provider.airflow_side import FakeStateStore, FakeTaskInstance
from tests.server_process import RunningServer, running_server
from tests.storage_servers import azure_connection_string, running_azurite, running_moto

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


@pytest.fixture(scope="session")
def markers(server: RunningServer) -> Path:
    """The folder of the services' markers: a file there opens the gate of its name."""
    return server.data_dir.with_name("markers")


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
def context(store: FakeStateStore) -> Any:
    """The part of a task's context that the operators use."""
    return {
        "ti": FakeTaskInstance(),
        "task_state_store": store,
        "outlet_events": OutletEventAccessors(),
    }


# The fixture that makes a bucket, the scheme of its paths, and the connection to it.
on_object_stores = pytest.mark.parametrize(
    ("storage", "scheme", "connection_id"),
    [("s3", "s3", "aws_test"), ("azure", "abfs", "azure_test")],
)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a moto server."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra: s3)")
    pytest.importorskip("airflow.providers.amazon", reason="not installed (extra: s3)")
    with running_moto() as url:
        yield url


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """An empty bucket, the connection `aws_test` to it, and another way to look into it."""
    connection, fs = connection_to_s3(s3_server)
    monkeypatch.setenv("AIRFLOW_CONN_AWS_TEST", connection)
    bucket = f"bucket-{uuid.uuid4().hex}"
    fs.mkdir(bucket)
    return bucket, fs


def connection_to_s3(s3_server: str) -> tuple[str, Any]:
    """A connection as an environment variable holds it, and another way to look into the storage."""
    import s3fs

    connection = {
        "conn_type": "aws",
        "login": "test",
        "password": "test",
        "extra": {"endpoint_url": s3_server, "region_name": "eu-west-1"},
    }
    fs = s3fs.S3FileSystem(
        key="test",
        secret="test",
        client_kwargs={"endpoint_url": s3_server, "region_name": "eu-west-1"},
        skip_instance_cache=True,
    )
    return json.dumps(connection), fs


@pytest.fixture(scope="session")
def azurite() -> Iterator[str]:
    """The address of an Azurite blob service."""
    pytest.importorskip("adlfs", reason="adlfs is not installed (extra: azure)")
    pytest.importorskip("airflow.providers.microsoft.azure", reason="not installed (extra: azure)")
    with running_azurite() as url:
        yield url


@pytest.fixture
def azure(azurite: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """An empty container, the connection `azure_test` to it, and another way to look into it."""
    import adlfs

    account = azure_connection_string(azurite)
    connection = {"conn_type": "wasb", "extra": {"connection_string": account}}
    monkeypatch.setenv("AIRFLOW_CONN_AZURE_TEST", json.dumps(connection))
    fs = adlfs.AzureBlobFileSystem(connection_string=account, skip_instance_cache=True)
    container = f"container-{uuid.uuid4().hex}"
    fs.mkdir(container)
    return container, fs
