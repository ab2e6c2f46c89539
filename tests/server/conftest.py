"""A live server with the demo's services and the tests' own, and somebody logged in."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Papers, make_papers
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    # Lazily: the last of a server's processes may still be about to end.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))
