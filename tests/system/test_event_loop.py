"""A triggerer runs thousands of triggers on one thread: none of ours holds it for 50 milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from airflow_mlbatch.protocol.flows import Flows, PasswordLogin
from airflow_mlbatch.transport.blocking import BlockingDriver
from airflow_mlbatch.transport.endpoint import Endpoint
from tests.server_process import PASSWORD, running_server

SERVICES = Path(__file__).parent / "services.py"
RECORDS = 200_000
LIMIT = 0.050


def watch(url: str, service_name: str, execution_id: str) -> dict[str, object]:
    """Run the trigger in a process of its own; its event, once no callback was too long."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = {"conn_type": "mlbatch", "host": host, "port": int(port)}
    connection |= {"login": "admin", "password": PASSWORD}
    keywords = {
        "service_name": service_name,
        "service_version": "1",
        "execution_id": execution_id,
        "poll_interval": 0.1,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.system.loop_meter", json.dumps(keywords)],
        env={**os.environ, "AIRFLOW_CONN_MLBATCH_DEFAULT": json.dumps(connection)},
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["longest"] and told["longest"][0][0] < LIMIT, told["longest"]
    event: dict[str, object] = told["event"]
    return event


def done(execution_id: str) -> dict[str, object]:
    return {
        "status": "done",
        "execution_id": execution_id,
        "state": "complete",
        "completed_item_count": RECORDS,
        "total_item_count": RECORDS,
        "message": "",
    }


def test_a_finished_batch_of_200_000_results() -> None:
    with running_server("--services", str(SERVICES)) as server:
        flows = Flows(PasswordLogin(server.username, server.password), server.url)
        driver = BlockingDriver(Endpoint(server.url))
        body = b"[" + b",".join(b'{"x":%d}' % x for x in range(RECORDS)) + b"]"
        execution_id = driver.run(flows.start_batch("plain", "1", body, 100))
        driver.run(flows.watch_batch("plain", "1", execution_id, poll_interval=0.5))
        driver.close()
        assert watch(server.url, "plain", execution_id) == done(execution_id)


@pytest.fixture
def results_first() -> Iterator[str]:
    """A server that tells a batch's state after its results, as JSON allows it to."""
    result = b'{"success":true,"errorMessage":"","consoleOutput":"","changedFiles":[],'
    result += b'"outputParameters":{"y":0.6418125}}'
    batch = b'{"batchExecutionResults":[' + b",".join([result] * RECORDS) + b"],"
    batch += b'"completedItemCount":%d,"totalItemCount":%d,' % (RECORDS, RECORDS)
    batch += b'"state":"Complete"}'
    login = b'{"access_token":"t","expires_in":3600,"refresh_token":"r","token_type":"Bearer"}'

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(batch)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(login)

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_state_that_comes_after_200_000_results(results_first: str) -> None:
    assert watch(results_first, "plain", "some-id") == done("some-id")
