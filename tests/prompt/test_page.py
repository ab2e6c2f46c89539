"""docs/command_line.md: each command that it shows is run, and prints what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.prompt.exits import Exit
from tests.prompt.conftest import mlbatch
from tests.server_process import running_server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command_line.md").read_text("utf-8")
SHOWN_ID = "0f3c1a52-7a0e-4c61-9f0b-6a1f3f1f7f10"
SHOWN_URL = "http://localhost:12800"


def shown() -> list[tuple[str, str]]:
    """Each command, and what the page shows of its output."""
    sessions = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    steps = [
        step for session in sessions for step in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]
    ]
    parted = [step.partition("\n") for step in steps]
    return [(line, output) for line, _, output in parted if not line.startswith("export ")]


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.chdir(tmp_path)
    Path("cars.csv").write_text("car,hp,wt\nMazda,120,2.8\nFiat,66,2.2\nDatsun,110,2.62\n")
    assert len(shown()) > 10
    with running_server("--demo", "--workers", "1", data_dir=tmp_path / "server") as server:
        monkeypatch.setenv("MLBATCH_URL", server.url)
        hook = MLBatchHook.at(server.url, server.username, server.password)
        inputs = {"hp": [120.0, 66.0, 110.0], "wt": [2.8, 2.2, 2.62]}
        execution_id = hook.start_batch("mtService", "v1.0.0", inputs)
        hook.watch_batch("mtService", "v1.0.0", execution_id, poll_interval=0.1)
        hook.close()
        for line, output in shown():
            name, *arguments = shlex.split(line.replace(SHOWN_ID, execution_id))
            assert name == "mlbatch"
            done = mlbatch(*arguments)
            assert done.returncode == 0, done.stderr
            expected = output.replace(SHOWN_ID, execution_id).replace(SHOWN_URL, server.url)
            # Pictures differ in size from one version of the plotting library to the next.
            blank = re.compile(r" +|(?<= )\d,\d{3}(?= )")
            assert blank.sub(" ", done.stdout) == blank.sub(" ", expected), line
    assert Path("scored.parquet").stat().st_size > 0
    assert len(list(Path("plots").glob("*/Histogram.png"))) == 3


def test_the_page_lists_the_exit_codes() -> None:
    table = PAGE.partition("| code | meaning |")[2].partition("\n\n")[0]
    assert [int(row.split("|")[1]) for row in table.splitlines()[2:]] == list(Exit)
