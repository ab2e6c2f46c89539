"""A live server with the demo's services and the tests' own, and somebody logged in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.api import Api
from tests.server_process import RunningServer, running_server

SERVICES = str(Path(__file__).with_name("services.py"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server that most tests share; those that stop or fill a server have their own."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(
        "--demo",
        "--services",
        SERVICES,
        "--workers",
        "2",
        "--max-body-bytes",
        "1000000",
        "--max-records",
        "5000",
        data_dir=folder / "data",
        env={"COUNT_FILE": str(folder / "count.txt")},
    ) as running:
        yield running


@pytest.fixture(scope="session")
def api(server: RunningServer) -> Api:
    """A logged-in client."""
    return Api(server.url)
