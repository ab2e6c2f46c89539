"""`mlbatch serve` from the outside: what it prints, and how it refuses."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_process import RunningServer, running_server

WRONG = """
from airflow_mlbatch.server import service

@service("s", "1", inputs={"x": complex}, outputs={})
def function(x):
    pass
"""


def mlbatch(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "airflow_mlbatch.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MLBATCH_PASSWORD": "secret", **env},
        check=False,
    )


def assert_refused(found: subprocess.CompletedProcess[str], words: str) -> None:
    """One clear line on stderr, nothing on stdout, exit code 2."""
    assert found.returncode == 2, found.stderr
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith("mlbatch serve: ")
    assert words in line


def test_it_prints_one_line_with_the_address_when_it_is_ready(server: RunningServer) -> None:
    (line,) = server.lines
    assert re.fullmatch(
        r"mlbatch serve: ready on http://127\.0\.0\.1:\d+ "
        r"\(services: TxService 1\.0, .*mtService v1\.0\.0.*\)",
        line,
    )


def test_it_stops_politely(tmp_path: Path) -> None:
    with running_server("--demo", "--workers", "1", data_dir=tmp_path / "data") as server:
        assert server.stop() == 0
        assert server.log.read_text() == ""
        assert not (tmp_path / "data" / "mlbatch.sqlite-wal").exists()


def test_nothing_to_serve() -> None:
    assert_refused(mlbatch("serve"), "give --services SOURCE or --demo")


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("no.such.module", None, "services 'no.such.module': there is no such module or file"),
        ("missing.py", None, "there is no such file"),
        ("broken.py", "import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("typo.py", "def f(:", "SyntaxError"),
        ("quits.py", "raise SystemExit('no')", "SystemExit: no"),
        ("dies.py", "import os; os._exit(9)", "died while loading them (the worker process ended"),
        ("empty.py", "x = 1", "found no function marked with @service"),
        (
            "wrong.py",
            WRONG,
            "service 's' version '1', inputs, 'x': found type <class 'complex'>, expected one of",
        ),
    ],
)
def test_services_that_cannot_be_loaded(
    tmp_path: Path, source: str, content: str | None, words: str
) -> None:
    if source.endswith(".py"):
        source = str(tmp_path / source)
    if content is not None:
        Path(source).write_text(content)
    found = mlbatch("serve", "--services", source, "--port", "0", "--data-dir", str(tmp_path / "d"))
    assert found.returncode == 2
    assert found.stdout == ""
    # Above it may stand the traceback of the services' own mistake.
    assert words in found.stderr.splitlines()[-1]


def test_a_folder_that_another_server_uses(server: RunningServer) -> None:
    found = mlbatch("serve", "--demo", "--port", "0", "--data-dir", str(server.data_dir))
    assert_refused(found, f"data folder: {server.data_dir} is in use by another server")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = mlbatch("serve", "--demo", "--port", port, "--data-dir", str(tmp_path / "d"))
    assert_refused(found, f"address 127.0.0.1:{port} cannot be used")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = mlbatch("serve", "--demo", "--port", "0", "--data-dir", str(tmp_path / "file"))
    assert_refused(found, "cannot be used")


def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "mlbatch.sqlite").write_bytes(b"this is no database" * 100)
    found = mlbatch("serve", "--demo", "--port", "0", "--data-dir", str(tmp_path))
    assert_refused(found, "mlbatch.sqlite cannot be used: file is not a database")


def test_an_empty_password(tmp_path: Path) -> None:
    found = mlbatch("serve", "--demo", "--data-dir", str(tmp_path), MLBATCH_PASSWORD="")
    assert_refused(found, "MLBATCH_PASSWORD: found nothing")


@pytest.mark.parametrize(
    "option", ["--workers=0", "--port=70000", "--max-records=x", "--record-timeout=-1"]
)
def test_a_value_that_makes_no_sense(option: str) -> None:
    found = mlbatch("serve", "--demo", option)
    assert found.returncode == 2
    assert option.partition("=")[0] in found.stderr


def test_services_from_a_module_beside_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "neighbour.py").write_text("FACTOR = 3\n")
    (tmp_path / "mine.py").write_text(
        "from airflow_mlbatch.server import service\n"
        "from neighbour import FACTOR\n"
        "@service('triple', '1', inputs={'x': int}, outputs={'y': int})\n"
        "def triple(x): return FACTOR * x\n"
    )
    monkeypatch.chdir(tmp_path)
    for source in ("mine", "mine.py"):
        with running_server("--services", source, "--workers", "1") as server:
            assert "(services: triple 1)" in server.lines[0]
