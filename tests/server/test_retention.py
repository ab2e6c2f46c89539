"""Finished executions deleted by age and by size: what the list, the disk and the log say afterwards."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.patience import wait_until
from tests.server.api import Api, log_in
from tests.server.processes import assert_gone
from tests.server_process import RunningServer, running_server

ROOT = Path(__file__).resolve().parents[2]
# Loaded by Python before anything else: the clock goes forward by the days that a file names.
CLOCK = """
import os, time

_time = time.time


def _shifted():
    try:
        with open(os.environ["DAYS_FILE"]) as file:
            return _time() + 86400 * float(file.read() or 0)
    except OSError:
        return _time()


time.time = _shifted
"""
SERVICES = """
import time
from pathlib import Path

from airflow_mlbatch.server import service


@service("echo", "1", inputs={"text": str}, outputs={"text": str})
def echo(text):
    return text


@service("files", "1", inputs={"kb": int}, outputs={"kb": int}, artifacts=["file.bin"])
def files(kb):
    Path("file.bin").write_bytes(bytes(1000 * kb))
    return kb


@service("gated", "1", inputs={"gate": str}, outputs={})
def gated(gate):
    while not Path(gate).exists():
        time.sleep(0.01)
"""
BIG = [{"text": "x" * 1_000}] * 100
"""Records of 100 kB; the service answers with as much."""


class World:
    """A server whose clock can be set forward, and somebody who looks at it.

    A token lives for a year here, so that a clock that jumps does not end it.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "sitecustomize.py").write_text(CLOCK)
        (folder / "services.py").write_text(SERVICES)
        self.days = folder / "days"
        self.data = folder / "data"
        self.server_arguments = (
            *("--services", str(folder / "services.py"), "--workers", "2"),
            *("--token-lifetime", "31536000"),
            *arguments,
        )
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "DAYS_FILE": str(self.days),
        }
        self.server: RunningServer
        self.api: Api

    def set_clock(self, days: float) -> None:
        """Let so many days pass from now on."""
        beside = self.days.with_suffix(".new")
        beside.write_text(str(days))
        beside.replace(self.days)

    def listed(self, service: str) -> list[str]:
        reply = self.api.get(f"/api/{service}/1/batch")
        assert reply.status_code == 200, reply.text
        return list(reply.json())

    def wait_for_list(self, service: str, paths: list[str]) -> None:
        wait_until(lambda: self.listed(service) == [id_of(path) for path in paths])

    def on_disk(self) -> tuple[set[str], dict[str, set[int]]]:
        """The folders of artifacts, and the executions that each table knows."""
        numbers = {}
        with closing(sqlite3.connect(self.data / "mlbatch.sqlite")) as database:
            numbers["executions"] = {
                row[0] for row in database.execute("SELECT number FROM executions")
            }
            for table in ("records", "results", "endings"):
                found = database.execute(f"SELECT DISTINCT execution FROM {table}")
                numbers[table] = {row[0] for row in found}
        return set(os.listdir(self.data / "executions")), numbers

    def agrees(self, service: str) -> bool:
        """Whether list and disk tell the same."""
        folders, numbers = self.on_disk()
        is_clean = all(numbers[table] <= numbers["executions"] for table in numbers)
        trash = os.listdir(self.data / "trash")
        return is_clean and folders <= set(self.listed(service)) and not trash

    def said(self) -> list[str]:
        """What the log says about deletions."""
        lines = [line.removeprefix("mlbatch serve: ") for line in self.server.lines]
        return [line for line in lines if line.startswith("deleted")]


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A server with the arguments that the test is parametrized with."""
    it = World(tmp_path, *request.param)
    with running_server(*it.server_arguments, data_dir=it.data, env=it.environment) as it.server:
        it.api = Api(it.server.url)
        yield it


def id_of(path: str) -> str:
    return path.rpartition("/")[2]


def complete(world: World, service: str, records: list[Any]) -> str:
    path = world.api.start(service, records)
    world.api.wait(path)
    # Its age counts from now on.
    wait_until(lambda: len(world.on_disk()[1]["endings"]) >= len(world.listed(service)))
    return path


@pytest.mark.parametrize("world", [("--keep-days", "30")], indirect=True)
def test_by_age(world: World) -> None:
    old = complete(world, "files", [{"kb": 1}, {"kb": 2}])
    world.set_clock(10)
    young = complete(world, "files", [{"kb": 3}])
    world.set_clock(29)
    third = complete(world, "files", [{"kb": 4}])
    assert world.listed("files") == [id_of(old), id_of(young), id_of(third)]
    world.set_clock(31)
    world.wait_for_list("files", [young, third])
    assert world.api.get(old).status_code == 404
    assert world.api.get(f"{old}/0/files").status_code == 404
    wait_until(lambda: world.agrees("files"))
    # What is kept is whole.
    assert len(world.api.get(f"{young}/0/files/file.bin").content) == 3_000
    assert world.said() == [
        f"deleted execution {id_of(old)} of files 1: it ended 31.0 days ago (--keep-days 30)"
    ]
    assert world.api.get("/status").json()["details"]["retention"] == {
        "keepDays": 30.0,
        "keepGb": None,
        "deletedExecutions": 1,
    }


@pytest.mark.parametrize("world", [("--keep-days", "0.5")], indirect=True)
def test_what_runs_is_never_deleted(world: World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    running = world.api.start("gated", [{"gate": str(gate)}])
    done = complete(world, "files", [{"kb": 1}])
    wait_until(lambda: world.api.batch(running)["state"] == "inProgress")
    world.set_clock(100)
    world.wait_for_list("files", [])
    assert world.api.get(done).status_code == 404
    assert world.api.batch(running)["state"] == "inProgress"
    gate.touch()
    assert world.api.wait(running)[0]["success"]
    # Its age begins with its end, however long it took.
    assert world.listed("gated") == [id_of(running)]


@pytest.mark.parametrize("world", [("--keep-gb", "0.0005")], indirect=True)
def test_by_size_oldest_first(world: World) -> None:
    # Each takes 200 kB: its records and its results.
    paths = [complete(world, "echo", BIG) for _ in range(2)]
    assert world.listed("echo") == [id_of(path) for path in paths]
    paths.append(world.api.start("echo", BIG))
    world.api.wait(paths[-1])
    world.wait_for_list("echo", paths[1:])
    wait_until(lambda: world.agrees("echo"))
    (line,) = world.said()
    assert line.startswith(
        f"deleted execution {id_of(paths[0])} of echo 1: finished executions take "
    )
    assert line.endswith(" GB (--keep-gb 0.0005)")
    # What is kept is whole.
    assert [item["outputParameters"] for item in world.api.wait(paths[1])] == BIG


@pytest.mark.parametrize("world", [("--keep-gb", "0.0005")], indirect=True)
def test_artifacts_count(world: World) -> None:
    paths = [complete(world, "files", [{"kb": 300}])]
    paths.append(world.api.start("files", [{"kb": 300}]))
    world.api.wait(paths[-1])
    world.wait_for_list("files", paths[1:])
    wait_until(lambda: world.agrees("files"))
    assert len(world.api.get(f"{paths[1]}/0/files/file.bin").content) == 300_000


@pytest.mark.parametrize("world", [()], indirect=True)
def test_a_limit_that_comes_later_knows_the_ages(world: World) -> None:
    old = complete(world, "files", [{"kb": 1}])
    world.set_clock(20)
    young = complete(world, "files", [{"kb": 2}])
    world.set_clock(31)
    assert world.listed("files") == [id_of(old), id_of(young)]
    world.server.stop()
    with running_server(
        *world.server_arguments, "--keep-days", "30", data_dir=world.data, env=world.environment
    ) as world.server:
        world.api = Api(world.server.url)
        world.wait_for_list("files", [young])


@pytest.mark.parametrize("world", [("--keep-days", "1")], indirect=True)
def test_killed_at_any_moment_of_a_sweep(world: World) -> None:
    """Whatever is left, list and disk agree again after the next start, and the sweep goes on."""
    token = log_in(world.server.url)["access_token"]
    # Killed as soon as the first one of ten is gone, or the fourth, or the last.
    for day, fewer in enumerate((10, 7, 4, 1)):
        world.api = Api(world.server.url, token)
        world.set_clock(2 * day)
        paths = [world.api.start("files", [{"kb": 1}] * 20) for n in range(10)]
        for path in paths:
            world.api.wait(path)
        wait_until(lambda: len(world.on_disk()[1]["endings"]) == len(world.listed("files")))
        family = psutil.Process(world.server.pid).children(recursive=True)
        world.set_clock(2 * day + 1.5)
        wait_until(lambda fewer=fewer: len(world.listed("files")) < fewer, pause=0.0)  # type: ignore[misc]
        world.server.kill()
        assert_gone(family)
        world.server.start()
        world.api = Api(world.server.url, token)
        world.wait_for_list("files", [])
        wait_until(lambda: world.agrees("files"))
        folders, numbers = world.on_disk()
        assert not folders
        assert not any(numbers.values())


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "a day"])
def test_limits_that_make_no_sense(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    from airflow_mlbatch.cli import main

    for option in ("--keep-days", "--keep-gb"):
        with pytest.raises(SystemExit):
            main(["serve", "--demo", option, value])
        assert f"{option}: found {value!r}, expected a number above 0" in capsys.readouterr().err
