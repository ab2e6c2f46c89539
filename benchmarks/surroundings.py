"""What the package's roles need around them: a server, an Airflow of their own, a connection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.server_process import RunningServer, running_server

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.flows import Flows
    from airflow_mlbatch.transport.endpoint import Endpoint

__all__ = ["airflow_environment", "flows_to", "scoring_server"]

_SERVICES = Path(__file__).with_name("services.py")


@contextmanager
def scoring_server(data_dir: Path, *arguments: str) -> Iterator[RunningServer]:
    """The embedded server with the services of the benchmarks."""
    with running_server("--services", str(_SERVICES), *arguments, data_dir=data_dir) as server:
        yield server


def airflow_environment(folder: Path, url: str, password: str) -> dict[str, str]:
    """Variables for a process that runs operators by themselves, without Airflow's processes."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = {
        "conn_type": "mlbatch",
        "host": host,
        "port": int(port),
        "login": "admin",
        "password": password,
    }
    return {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "True",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_MLBATCH_DEFAULT": json.dumps(connection),
        # The servers listen on this machine: no proxy of the environment comes between.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def flows_to(url: str, password: str) -> tuple[Endpoint, Flows]:
    """What a driver and its conversations need to know, without Airflow."""
    from airflow_mlbatch.protocol.flows import Flows, PasswordLogin
    from airflow_mlbatch.transport.endpoint import Endpoint

    return Endpoint(url), Flows(PasswordLogin("admin", password), url)
