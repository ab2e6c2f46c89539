"""`mlbatch serve` from the outside: what it prints, and how it refuses."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from airflow_mlbatch.server.store import Store
from tests.patience import PATIENCE
from tests.ports import ReservedPort
from tests.server.api import Api
from tests.server.conftest import SERVICES
from tests.server_process import PASSWORD, RunningServer, running_server

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
        timeout=PATIENCE,
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
    assert_refused(mlbatch("serve"), "give --services SOURCE, --demo or --allow-publish")


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("no.such.module", None, "services 'no.such.module': there is no such module or file"),
        ("missing.py", None, "there is no such file"),
        ("broken.py", "import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("typo.py", "def f(:", "SyntaxError"),
        ("lines.py", "raise ValueError('one\\ntwo')", "lines.py': ValueError: one two"),
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
    arguments = ["--services", source, "--workers", "3", "--port", "0"]
    found = mlbatch("serve", *arguments, "--data-dir", str(tmp_path / "d"))
    assert found.returncode == 2
    assert found.stdout == ""
    # Above it may stand the traceback of the services' own mistake, once.
    assert words in found.stderr.splitlines()[-1]
    assert found.stderr.count("Traceback") <= 1
    assert not (tmp_path / "d").exists()


def test_a_folder_that_was_there_stays_when_the_server_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    found = mlbatch("serve", "--services", "nowhere", "--port", "0", "--data-dir", str(tmp_path))
    assert_refused(found, "nowhere")
    assert (tmp_path / "note").read_text() == "mine"


def test_two_files_of_one_name_that_publish_one_service(tmp_path: Path) -> None:
    text = (
        "from airflow_mlbatch.server import service\n"
        "@service('s', '1', inputs={'x': int}, outputs={'y': int})\n"
        "def function(x): return x\n"
    )
    arguments = ["--port", "0", "--data-dir", str(tmp_path / "d")]
    for folder in ("a", "b"):
        source = tmp_path / folder / "services.py"
        source.parent.mkdir()
        source.write_text(text)
        arguments += ["--services", str(source)]
    found = mlbatch("serve", *arguments)
    assert_refused(found, "service 's' version '1': published twice, by ")
    assert str(tmp_path / "a") in found.stderr
    assert str(tmp_path / "b") in found.stderr


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


def spoil(path: Path, content: bytes | None) -> None:
    """Put something into the place of a file: these bytes, or a folder."""
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("account.json", b"{", "account.json cannot be read"),
        (
            "account.json",
            b'{"username": "admin", "salt": "zz", "password_hash": ""}',
            "account.json cannot be read",
        ),
        ("account.json", None, "account.json cannot be read"),
        ("lock", None, "cannot be used"),
        ("work", b"", "cannot be used"),
        ("mlbatch.sqlite", None, "mlbatch.sqlite cannot be used"),
    ],
)
def test_a_folder_with_something_wrong_in_it(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    spoil(tmp_path / name, content)
    found = mlbatch("serve", "--demo", "--port", "0", "--data-dir", str(tmp_path))
    assert_refused(found, words)
    assert str(tmp_path) in found.stderr


def test_a_database_that_lacks_a_table(tmp_path: Path) -> None:
    path = tmp_path / "mlbatch.sqlite"
    Store(path).close()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE pairs")
    found = mlbatch("serve", "--demo", "--port", "0", "--data-dir", str(tmp_path))
    assert_refused(found, "cannot be used: storage: no such table")


def test_a_folder_that_others_may_read_shows_them_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with running_server("--demo", "--workers", "1", data_dir=data) as server:
        api = Api(server.url)
        api.wait(api.start("TxService", [{"hp": 120, "wt": 2.8}], "1.0"))
        for path in data.iterdir():
            if path.name != "lock":
                assert stat.S_IMODE(path.stat().st_mode) in (0o600, 0o700), path


def test_a_password_that_nobody_would_see_is_not_made_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow_mlbatch.cli", "serve", "--demo", "--workers", "1"]
    command += ["--port", "0", "--data-dir", str(tmp_path / "data")]
    no_password = {**os.environ}
    no_password.pop("MLBATCH_PASSWORD", None)
    for redirection in (">&-", ">/dev/full"):
        found = subprocess.run(
            ["/bin/sh", "-c", f"exec {shlex.join(command)} {redirection}"],
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            env=no_password,
            check=False,
        )
        assert found.returncode == 2
        (line,) = found.stderr.splitlines()
        assert "stdout: the password that was made up cannot be shown" in line
        assert line.endswith("set MLBATCH_PASSWORD")
        assert not (tmp_path / "data" / "account.json").exists()


def test_nobody_listens_to_what_it_says(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = ReservedPort()
    request.addfinalizer(place.close)
    port = place.number
    command = [sys.executable, "-m", "airflow_mlbatch.cli", "serve", "--services", SERVICES]
    command += ["--port", str(port), "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(
        ["/bin/sh", "-c", f"exec {shlex.join(command)} <&- >&- 2>&-"],
        env={**os.environ, "MLBATCH_PASSWORD": PASSWORD},
    ) as server:
        try:
            while server.poll() is None:
                try:
                    api = Api(f"http://127.0.0.1:{port}")
                    break
                except requests.ConnectionError:
                    time.sleep(0.05)
            results = api.score(
                "moody", [{"mood": "stdout"}, {"mood": "os._exit"}, {"mood": "pid"}]
            )
            assert [item["success"] for item in results] == [True, False, True]
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_the_packages_of_the_server(tmp_path: Path, package: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = mlbatch("serve", "--demo", PYTHONPATH=path)
    assert_refused(found, f"needs the package {package}, which is not installed")
    assert_refused(found, "pip install 'airflow-mlbatch[server]'")


def test_an_empty_password(tmp_path: Path) -> None:
    found = mlbatch("serve", "--demo", "--data-dir", str(tmp_path), MLBATCH_PASSWORD="")
    assert_refused(found, "MLBATCH_PASSWORD: found nothing")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--workers=0", "a whole number from 1"),
        ("--port=70000", "a port from 0 to 65535"),
        ("--port=http", "a port from 0 to 65535"),
        ("--max-records=x", "a whole number from 1"),
        ("--max-worker-growth=1.5", "a whole number from 0"),
        ("--record-timeout=-1", "seconds from 0"),
        ("--record-timeout=nan", "seconds from 0"),
        ("--host=", "some text"),
        ("--services=", "some text"),
        ("--username=", "some text"),
        ("--data-dir=", "the path of a folder"),
    ],
)
def test_a_value_that_makes_no_sense(option: str, expected: str) -> None:
    found = mlbatch("serve", "--demo", option)
    assert found.returncode == 2
    name, _, value = option.partition("=")
    last = found.stderr.splitlines()[-1]
    assert last == f"mlbatch serve: error: argument {name}: found {value!r}, expected {expected}"


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
