"""A live scoring server, and the command line as a person or a script meets it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from tests.patience import PATIENCE
from tests.provider.conftest import markers, server  # noqa: F401
from tests.server_process import RunningServer


@pytest.fixture
def hook(server: RunningServer) -> Iterator[MLBatchHook]:  # noqa: F811
    """For a look at the server beside the command under test."""
    hook = MLBatchHook.at(server.url, server.username, server.password)
    yield hook
    hook.close()


@pytest.fixture(autouse=True)
def environment(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The server by its address, in the variables that the commands read."""
    monkeypatch.setenv("MLBATCH_URL", server.url)
    monkeypatch.setenv("MLBATCH_PASSWORD", server.password)


def command(*arguments: str) -> list[str]:
    """What starts a process of its own."""
    return [sys.executable, "-m", "airflow_mlbatch.cli", *arguments]


def mlbatch(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in a pipe."""
    return subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **env},
        check=False,
    )
