"""Many clients, a full disk, executions that share the workers."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import psutil
import pytest
import requests

from tests.patience import PATIENCE
from tests.server.api import Api, log_in
from tests.server.conftest import SERVICES
from tests.server.processes import lives
from tests.server_process import RunningServer, running_server


def test_many_clients_at_once(server: RunningServer) -> None:
    token = log_in(server.url)["access_token"]
    ready = threading.Barrier(200)

    def client(number: int) -> list[float]:
        api = Api(server.url, token)
        ready.wait(PATIENCE)
        results = api.score("double", [{"x": number}, {"x": number + 0.5}])
        return [item["outputParameters"]["y"] for item in results]

    with ThreadPoolExecutor(200) as clients:
        found = list(clients.map(client, range(200)))
    assert found == [[2.0 * number, 2.0 * number + 1] for number in range(200)]


def test_a_small_batch_does_not_wait_for_a_large_one(api: Api) -> None:
    # Minutes of work: however slow this machine is today, the others are not done by its end.
    large = api.start("sleep", [{"seconds": 0.1}] * 4000)
    results = api.score("double", [{"x": 1}] * 3)
    assert len(results) == 3
    assert api.consume("double", x=1)["success"] is True
    found = api.batch(large)
    assert found["completedItemCount"] < 2000
    api.delete(large)


def test_deleting_a_batch_leaves_the_others_alone(api: Api) -> None:
    doomed = api.start("sleep", [{"seconds": 600}] * 4)
    kept = api.start("sleep", [{"seconds": 0.01}] * 50)
    assert api.delete(doomed).status_code == 200
    results = api.wait(kept)
    assert all(item["success"] for item in results)
    assert api.get(doomed).status_code == 404


def test_a_batch_that_is_deleted_twice_at_once() -> None:
    with (
        running_server("--services", SERVICES, "--workers", "2") as server,
        ThreadPoolExecutor(8) as clients,
    ):
        api = Api(server.url)
        path = api.start("sleep", [{"seconds": 600}] * 4)
        while api.batch(path)["state"] != "inProgress":
            time.sleep(0.01)
        workers = psutil.Process(server.pid).children(recursive=True)
        replies = [clients.submit(api.delete, path) for _ in range(8)]
        first = next(reply for reply in as_completed(replies) if reply.result().status_code == 200)
        # Whoever is told that it is gone finds it gone.
        assert sum(not lives(process) for process in workers) >= 1
        codes = [reply.result().status_code for reply in replies if reply is not first]
        assert codes == [404] * 7


def test_a_batch_that_is_deleted_while_it_is_read() -> None:
    with running_server("--services", SERVICES, "--workers", "1") as server:
        api = Api(server.url)
        path = api.start("moody", [{"mood": "print much"}] * 600)
        api.wait(path)
        with api.get(path, stream=True) as reply:
            pieces = reply.iter_content(100_000)
            next(pieces)
            api.delete(path)
            # What it has left behind is removed by and by.
            with contextlib.closing(sqlite3.connect(server.data_dir / "mlbatch.sqlite")) as rows:
                while rows.execute("SELECT 1 FROM results LIMIT 1").fetchone():
                    time.sleep(0.01)
            with pytest.raises(requests.exceptions.RequestException):
                list(pieces)
        assert "Traceback" not in server.log.read_text()


def test_many_batches_at_once_need_little_memory() -> None:
    batches, records = 6, 60_000
    with running_server("--services", SERVICES, "--workers", "1") as server:
        api = Api(server.url)
        process = psutil.Process(server.pid)
        body = b"[" + b",".join([b'{"seconds":0.001}'] * records) + b"]"

        def start() -> None:
            reply = api.post("/api/sleep/1/batch", data=body)
            path = f"/api/sleep/1/batch/{reply.json()['batchExecutionId']}"
            while api.batch(path, partial=False)["state"] != "inProgress":
                time.sleep(0.01)

        start()  # Warms it up.
        before = process.memory_info().rss
        for _ in range(batches):
            start()
        # All of them would be 6 MB as JSON text, and ten times that as objects.
        assert process.memory_info().rss - before < 25_000_000


def test_polls_of_a_running_batch_never_go_back(api: Api) -> None:
    path = api.start("sleep", [{"seconds": 0.002}] * 300)
    states: list[str] = []
    counts: list[int] = []
    while not states or states[-1] != "complete":
        found = api.batch(path)
        states.append(found["state"])
        counts.append(found["completedItemCount"])
        assert len(found["batchExecutionResults"]) <= found["completedItemCount"]
    order = ["pending", "ready", "inProgress", "complete"]
    assert [order.index(state) for state in states] == sorted(map(order.index, states))
    assert counts == sorted(counts)
    assert counts[-1] == 300


def test_room_can_be_made_on_a_full_disk(small_disk: Path) -> None:
    with running_server("--services", SERVICES, data_dir=small_disk / "data") as server:
        api = Api(server.url)
        large = api.start("moody", [{"mood": "print much"}] * 3000)
        while api.get("/status").json()["components"]["database"]["statusCode"] != "fail":
            time.sleep(0.01)
        done = api.batch(large, partial=False)["completedItemCount"]
        assert 0 < done < 3000
        refused = Api(server.url).post("/api/double/1/batch", [{"x": 1}])
        assert refused.status_code == 507
        assert refused.json()["message"] == "storage: the disk is full"
        assert api.delete(large).status_code == 200
        while api.get("/status").json()["components"]["database"]["statusCode"] != "pass":
            time.sleep(0.01)
        # How much room there is goes up and down while the database gives it back.
        while (reply := api.post("/api/double/1/batch", [{"x": 1}])).status_code == 507:
            time.sleep(0.01)
        assert len(api.wait(f"/api/double/1/batch/{reply.json()['batchExecutionId']}")) == 1


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit, which is Linux's")
def test_a_disk_that_takes_nothing_more_and_then_does(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running_server("--services", SERVICES, "--workers", "1", data_dir=data) as server:
        api = Api(server.url)
        path = api.start("sleep", [{"seconds": 0.005}] * 400)
        while api.batch(path)["completedItemCount"] == 0:
            time.sleep(0.01)
        # From here on the server can write no file beyond the size that its log has now.
        size = (data / "mlbatch.sqlite-wal").stat().st_size
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, hard))

        def status() -> str:
            return str(api.get("/status").json()["components"]["database"]["statusCode"])

        while status() != "fail":
            time.sleep(0.01)
        refused = api.post("/api/double/1/batch", [{"x": 1}] * 5000)
        assert refused.status_code in (500, 507)
        assert refused.json()["message"].startswith("storage: ")
        assert api.batch(path)["state"] == "inProgress"

        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (hard, hard))
        results = api.wait(path)
        assert all(item["success"] for item in results)
        assert status() == "pass"
        assert api.score("double", [{"x": 1}])[0]["success"] is True


def test_services_that_cannot_be_loaded_any_more_and_then_can(tmp_path: Path) -> None:
    source = tmp_path / "fragile.py"
    source.write_text(Path(SERVICES).read_text())
    with running_server("--services", str(source), "--workers", "1") as server:
        api = Api(server.url)
        text = source.read_text()
        source.write_text("raise ValueError('in the middle of an upgrade')")
        path = api.start("moody", [{"mood": "pid"}, {"mood": "os._exit"}, {"mood": "pid"}])
        while (found := api.get("/status").json())["statusCode"] != "fail":
            time.sleep(0.01)
        assert "in the middle of an upgrade" in found["components"]["workers"]["details"]["problem"]
        source.write_text(text)
        assert [item["success"] for item in api.wait(path)] == [True, False, True]
        assert api.get("/status").json()["statusCode"] == "pass"


def test_a_client_that_leaves_in_the_middle_harms_nobody(api: Api) -> None:
    path = api.start("double", [{"x": n} for n in range(5000)])
    api.wait(path)
    for _ in range(20):
        with requests.get(
            api.url + path, headers=dict(api.session.headers), stream=True, timeout=60
        ) as reply:
            next(reply.iter_content(100))
    assert api.get("/status").json()["statusCode"] == "pass"
    assert len(api.batch(path)["batchExecutionResults"]) == 5000
