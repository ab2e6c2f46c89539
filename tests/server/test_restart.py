"""A server that stops in the middle of its work, and the next one on its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_until
from tests.server.api import Api, log_in
from tests.server.conftest import SERVICES
from tests.server.processes import assert_gone
from tests.server_process import running_server

RECORDS = 2_000


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_batch_goes_on_where_it_was(tmp_path: Path, number: signal.Signals) -> None:
    trace = tmp_path / "trace.txt"
    with running_server(
        "--services", SERVICES, data_dir=tmp_path / "data", env={"COUNT_FILE": str(trace)}
    ) as server:
        token = log_in(server.url)["access_token"]
        api = Api(server.url, token)
        path = api.start("count", [{"n": n} for n in range(RECORDS)])
        seen = 0
        stopped_in: set[str] = set()
        for limit in (300, 900):
            while seen < limit:
                time.sleep(0.01)
                seen = api.batch(path, partial=False)["completedItemCount"]
            family = psutil.Process(server.pid).children(recursive=True)
            server.kill() if number == signal.SIGKILL else server.stop()
            assert_gone(family)
            server.start()
            found = api.batch(path)  # with the token of the first server
            assert found["completedItemCount"] >= seen
            stopped_in.add(found["state"])
        results = api.wait(path)
        assert stopped_in != {"complete"}, "it was never stopped in the middle: this shows nothing"
        assert [item["outputParameters"] for item in results] == [{"n": n} for n in range(RECORDS)]
        runs = Counter(int(line) for line in trace.read_text().split())
        assert set(runs) == set(range(RECORDS))
        if number == signal.SIGTERM:
            # Asked politely it stores what it has: no record is run twice.
            assert max(runs.values()) == 1
        for index in (0, 1900):
            assert api.get(f"{path}/{index}/files/n.txt").text == str(index)


def test_a_signal_to_all_its_processes_at_once_fails_no_record(tmp_path: Path) -> None:
    # As systemd stops a service, and a shell what runs in its foreground.
    with running_server("--services", SERVICES, "--workers", "2") as server:
        path = Api(server.url).start("sleep", [{"seconds": 0.1}] * 60)
        while Api(server.url).batch(path)["completedItemCount"] == 0:
            time.sleep(0.01)
        family = psutil.Process(server.pid).children(recursive=True)
        for process in family:
            process.send_signal(signal.SIGTERM)
        # They bear it, and wait for the server's own word.
        seen = Api(server.url).batch(path)["completedItemCount"]
        while Api(server.url).batch(path)["completedItemCount"] < seen + 5:
            time.sleep(0.01)
        assert server.stop() == 0
        assert_gone(family)
        server.start()
        assert [item["errorMessage"] for item in Api(server.url).wait(path)] == [""] * 60


def test_a_call_that_a_stop_interrupts(tmp_path: Path) -> None:
    started = tmp_path / "started"
    with (
        running_server(
            "--services", SERVICES, "--workers", "1", env={"STARTED_FILE": str(started)}
        ) as server,
        ThreadPoolExecutor(1) as client,
    ):
        api = Api(server.url)
        reply = client.submit(api.post, "/api/moody/1", {"mood": "start and hang"})
        while not started.exists():
            time.sleep(0.01)
        assert server.stop() == 0
        assert reply.result().status_code == 503
        assert reply.result().json()["message"] == "The server stops: try again later"
        assert "Traceback" not in server.log.read_text()


def test_what_a_service_starts_hears_its_signals() -> None:
    with running_server("--services", SERVICES, "--workers", "1") as server:
        moods = ["terminate", "fork and terminate", "pool"]
        results = Api(server.url).score("moody", [{"mood": mood} for mood in moods])
    found = [item["outputParameters"] for item in results]
    assert found == [{"answer": "-15"}, {"answer": "-15"}, {"answer": "3"}]


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "airflow_mlbatch.cli", "serve", "--services", SERVICES]
    command += ["--port", "0", "--data-dir", str(tmp_path / "data"), "--workers", "2"]
    environment = {**os.environ, "MLBATCH_PASSWORD": "secret"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        # The first worker is being started as soon as there is a process to start it.
        while not any(map(is_fork_server, psutil.Process(server.pid).children())):
            time.sleep(0.001)
        server.send_signal(signal.SIGINT)
        assert server.communicate(timeout=PATIENCE) == ("", "")
        assert server.returncode == 130


def is_fork_server(process: psutil.Process) -> bool:
    """Whether it is the one that starts workers."""
    try:
        return "forkserver" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_complete_batches_survive(tmp_path: Path) -> None:
    with running_server("--demo", "--workers", "1", data_dir=tmp_path / "data") as server:
        api = Api(server.url)
        path = api.start("TxService", [{"hp": 120, "wt": 2.8}], "1.0")
        results = api.wait(path)
        table = api.get(f"{path}/0/files/answer.csv").content
        server.restart()
        assert api.wait(path) == results
        assert api.get(f"{path}/0/files/answer.csv").content == table


def test_a_batch_whose_service_is_gone_fails_and_says_why(tmp_path: Path) -> None:
    with running_server(
        "--services", SERVICES, "--workers", "1", data_dir=tmp_path / "data"
    ) as server:
        path = Api(server.url).start("sleep", [{"seconds": 0}, {"seconds": 60}])
        while Api(server.url).batch(path)["completedItemCount"] == 0:
            time.sleep(0.01)
        server.kill()
    with running_server("--demo", "--workers", "1", data_dir=tmp_path / "data") as server:
        api = Api(server.url)
        found = api.batch(path)
        assert found["state"] == "failed"
        first, second = found["batchExecutionResults"]
        assert first["success"] is True
        assert second["success"] is False
        assert second["errorMessage"] == (
            "service 'sleep' version '1' is no longer published on this server"
        )
        assert api.delete(path).status_code == 200
        assert api.get(path).json()["message"].startswith("Web service not found: ")


def test_workers_do_not_outlive_a_killed_server() -> None:
    with running_server("--services", SERVICES) as server:
        api = Api(server.url)
        path = api.start("moody", [{"mood": "hang"}] * 4)
        while api.batch(path)["state"] != "inProgress":
            time.sleep(0.01)
        family = psutil.Process(server.pid).children(recursive=True)
        assert family
        server.kill()
        assert_gone(family)


def test_what_a_killed_server_has_left_lying_about_is_removed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_server("--demo", "--workers", "1", data_dir=data) as server:
        server.kill()
        for litter in ("work/worker-1/1", "executions/unknown/0", "trash/old/0"):
            (data / litter).mkdir(parents=True)
        server.start()
        assert not (data / "work" / "worker-1").exists()
        assert not (data / "executions" / "unknown").exists()
        wait_until(lambda: not any((data / "trash").iterdir()))
