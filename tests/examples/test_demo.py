"""`mlbatch demo`, as somebody runs it who has just cloned the project."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from airflow_mlbatch.demo import show
from airflow_mlbatch.demo.airflow_home import DemoHome
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-u", "-m", "airflow_mlbatch.cli"]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """Of a user, who has neither an Airflow nor exceptions from a proxy."""
    names = ("AIRFLOW_", "NO_PROXY", "no_proxy")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(names)},
        "PYTHONPATH": str(ROOT),
        **more,
    }


@contextmanager
def started(command: str, folder: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """`mlbatch` at work; killed in the end if it is still there."""
    process = subprocess.Popen(
        [*COMMAND, command, "--folder", str(folder)],
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(command: str, folder: Path, **env: str) -> tuple[int, list[str]]:
    """Exit code and what was printed."""
    with started(command, folder, **env) as process:
        printed, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, printed.splitlines()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str], Path]:
    """What one run printed, what a second one in its folder said meanwhile, and the folder."""
    folder = tmp_path_factory.mktemp("demo") / "mlbatch-demo"
    proxy = f"http://127.0.0.1:{closed_port()}"
    with started("demo", folder, HTTP_PROXY=proxy, http_proxy=proxy) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("Airflow"):
                break
        code, second = ended("demo", folder)
        assert code == 2
        lines.extend(process.stdout)
        assert process.wait(PATIENCE) == 0, "".join(lines)
    return [line.rstrip() for line in lines], second, folder


def test_it_shows_the_way_from_the_table_to_its_scores(demo: Any) -> None:
    lines, _, folder = demo
    text = "\n".join(lines)
    for task in ("score", "wait", "results", "artifacts"):
        assert task in lines
    assert "32 of 32 records, 100 %" in text
    assert "32 scored cars" in text
    assert "Maserati Bora" in text
    assert "manualTransmission(120, 2.8) = 0.6418125, expected 0.6418125: as in" in text
    with (folder / "data" / "scored" / "scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 32
    assert len(list((folder / "data" / "scored" / "artifacts").rglob("*.png"))) == 32


def test_the_readme_shows_what_it_prints(demo: Any) -> None:
    lines, _, folder = demo
    printed = {_shape(line.replace(str(folder), "mlbatch-demo")) for line in lines}
    (block,) = re.findall(r"```console\n\$ make demo\n(.*?)```", _readme(), re.DOTALL)
    for line in block.splitlines():
        assert _shape(line) in printed, line


def _readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def _shape(line: str) -> str:
    """A line without what differs from run to run: ids, ports, and counts on the way."""
    line = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", line)
    line = re.sub(r"\d+ of 32 records, \d+ %", "N of 32 records", line)
    return re.sub(r"127\.0\.0\.1:\d+|[\d,]+ bytes", "N", line).rstrip()


def test_a_second_one_in_the_same_folder_is_refused_and_harms_nothing(demo: Any) -> None:
    _, second, _ = demo
    assert second[-2].endswith("server is in use by another server")
    assert second[-1].startswith("mlbatch demo: the scoring server ended with exit code 2")
    assert "choose another --folder" in second[-1]


def test_a_second_run_replaces_the_first(demo: Any) -> None:
    folder = demo[2]
    left = folder / "data" / "scored" / "left.csv"
    left.write_text("of the first run")
    code, lines = ended("demo", folder)
    assert code == 0, lines
    assert not left.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    with started("demo", tmp_path / "demo") as process:
        assert process.stdout is not None
        assert any(line.startswith("scoring server") for line in process.stdout)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(number)
        assert process.wait(PATIENCE) == 130
        _, left = psutil.wait_procs(children, timeout=PATIENCE)
        assert left == []
        assert "Traceback" not in process.stdout.read()


@pytest.mark.parametrize("command", ["demo", "ui"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    code, lines = ended(command, tmp_path / "file")
    assert code == 2
    (line,) = lines
    assert line.startswith(f"mlbatch {command}: folder: {tmp_path / 'file'} cannot be used: ")


def test_without_what_draws_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['matplotlib'] = None\n")
    code, lines = ended("demo", tmp_path / "demo", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert code == 2
    assert (
        "mlbatch serve: the demonstration needs matplotlib: pip install 'airflow-mlbatch[demo]'"
        in (lines)
    )


def test_a_dag_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = DemoHome(tmp_path)
    home.make()
    file = tmp_path / "fails.py"
    file.write_text(
        "from airflow_mlbatch.hooks.outcomes import airflow_errors\n"
        "from airflow_mlbatch.errors import ForbiddenError\n"
        "with airflow_errors():\n"
        "    raise ForbiddenError('403 [not] for you', 403)\n"
    )
    assert not show._run_dag(file, home, environment(), Console(soft_wrap=True))
    # Once, though the traceback has it twice.
    assert capsys.readouterr().out == "  403 [not] for you\n"
    assert home.log.read_text().count("403 [not] for you") == 2


def test_a_process_of_airflow_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    home = DemoHome(tmp_path)
    home.make()
    broken = {**environment(), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "nonsense"}
    with pytest.raises(
        Exception, match=r"airflow db migrate ended with exit code \d+; its whole log"
    ):
        home.migrate({**broken, "AIRFLOW_HOME": str(tmp_path / "airflow")})
