"""`mlbatch orphans`, on a live scoring server and on a server that speaks as Airflow's REST API does."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from airflow_mlbatch.cli import main
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import BatchScoreOperator
from tests.ports import ReservedPort
from tests.provider.airflow_side import FakeStateStore, FakeTaskInstance
from tests.provider.conftest import SERVICES, connection_to
from tests.server_process import RunningServer, running_server

USERNAME, PASSWORD, TOKEN = "airflow-user", "airflow-password", "airflow.token"


class AirflowSide(ThreadingHTTPServer):
    """Airflow's API server with one Dag; it gives out two task instances on a page.

    ``instances`` and ``xcoms`` are what it knows: values are kept as JSON text, as Airflow keeps them.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        # Another one for each test, since they share a scoring server.
        self.run_id = f"manual__2026-11-24T00:00:00+00:00_{uuid.uuid4().hex}"
        self.instances: list[dict[str, Any]] = []
        self.xcoms: dict[tuple[str, str, int, str], str] = {}
        self.status = 0  # of every answer, if it is not 0

    def add(self, task_id: str, map_index: int, state: str | None, operator: str) -> None:
        self.instances.append(
            {
                "dag_id": "dag",
                "dag_run_id": self.run_id,
                "task_id": task_id,
                "map_index": map_index,
                "state": state,
                "operator": operator,
            }
        )

    def task_instances(self, query: dict[str, list[str]]) -> dict[str, Any]:
        offset, limit = int(query["offset"][0]), min(int(query["limit"][0]), 2)
        found = self.instances[offset : offset + limit]
        return {"task_instances": found, "total_entries": len(self.instances)}


class Answers(BaseHTTPRequestHandler):
    server: AirflowSide

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/auth/token":
            self._answer(404, {"detail": "Not Found"})
        elif given == {"username": USERNAME, "password": PASSWORD}:
            self._answer(201, {"access_token": TOKEN})
        else:
            self._answer(401, {"detail": "Invalid credentials"})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.split("/")[1:]]
        query = parse_qs(url.query)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._answer(401, {"detail": "Not authenticated"})
        elif self.server.status:
            self._answer(self.server.status, {"detail": "Forbidden"})
        elif parts[:4] != ["api", "v2", "dags", "dag"]:
            self._answer(404, {"detail": "The Dag was not found"})
        elif parts[4:] == ["dagRuns", "~", "taskInstances"]:
            self._answer(200, self.server.task_instances(query))
        else:
            _, run_id, _, task_id, _, key = parts[4:]
            value = self.server.xcoms.get((run_id, task_id, int(query["map_index"][0]), key))
            if value is None:
                self._answer(404, {"detail": f"XCom entry with key: `{key}` not found"})
            else:
                self._answer(200, {"key": key, "value": value})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that knows no idempotency keys, like the vendor's."""
    folder = tmp_path_factory.mktemp("plain-server")
    with running_server(
        "--services", str(SERVICES), "--without-idempotency-keys", data_dir=folder / "data"
    ) as running:
        yield running


@pytest.fixture(params=["key", "note"])
def known_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of servers, behind the connection `mlbatch_default`."""
    if request.param == "note":
        plain = request.getfixturevalue("plain_server")
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(plain))
    return str(request.param)


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[AirflowSide]:
    monkeypatch.setenv("AIRFLOW_USERNAME", USERNAME)
    monkeypatch.setenv("AIRFLOW_PASSWORD", PASSWORD)
    with AirflowSide() as side:
        thread = threading.Thread(target=side.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield side
        side.shutdown()
        thread.join()


def starts_batch(airflow: AirflowSide, task_id: str, map_index: int, state: str | None) -> str:
    """Run a score task, and let Airflow know what it has left in XCom, and its state."""
    ti = FakeTaskInstance()
    ti.run_id, ti.task_id, ti.map_index = airflow.run_id, task_id, map_index
    score: dict[str, Any] = {
        "service_name": "slow",
        "service_version": "1",
        "records": [{"x": len(airflow.instances), "seconds": 60}],
        "wait_for_completion": False,
    }
    operator = BatchScoreOperator(task_id=task_id, **score)
    context: Any = {"ti": ti, "task_state_store": FakeStateStore()}
    execution_id = operator.execute(context)
    airflow.add(task_id, map_index, state, "BatchScoreOperator")
    for key, value in ti.pushed.items():
        airflow.xcoms[airflow.run_id, task_id, map_index, key] = json.dumps(value)
    return str(execution_id)


def orphans(capsys: pytest.CaptureFixture[str], airflow_url: str, *arguments: str) -> int:
    """Run the command; what was printed before it is not looked at."""
    capsys.readouterr()
    named = ("--service", "slow", "--version", "1", "--dag-id", "dag")
    return main(["orphans", *named, "--airflow-url", airflow_url, *arguments])


def still_there() -> set[str]:
    hook = MLBatchHook()
    try:
        return set(hook.list_batch_executions("slow", "1"))
    finally:
        hook.close()


def test_what_ended_tasks_left_over_is_listed_and_then_deleted(
    known_by: str, airflow: AirflowSide, capsys: pytest.CaptureFixture[str]
) -> None:
    airflow.add("before", -1, "success", "PythonOperator")
    failed = starts_batch(airflow, "score", -1, "failed")
    mapped = starts_batch(airflow, "each", 3, "skipped")
    kept = {
        starts_batch(airflow, "score2", -1, "success"),
        starts_batch(airflow, "each", 4, "running"),
        starts_batch(airflow, "each", 5, None),
    }
    lines = [
        f"{failed} dag=dag run={airflow.run_id} task=score state=failed known_by={known_by}",
        f"{mapped} dag=dag run={airflow.run_id} task=each map_index=3 state=skipped known_by={known_by}",
    ]
    assert orphans(capsys, airflow.url) == 0
    assert capsys.readouterr().out.splitlines() == [*lines, "executions left over: 2"]
    assert still_there() >= {failed, mapped, *kept}

    assert orphans(capsys, airflow.url, "--delete", "--task-id", "each") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{lines[1]}: deleted",
        "executions left over: 1, deleted: 1",
    ]
    assert mapped not in still_there()
    assert still_there() >= {failed, *kept}

    assert orphans(capsys, airflow.url, "--delete") == 0
    assert orphans(capsys, airflow.url) == 0
    assert capsys.readouterr().out.strip() == "executions left over: 0"
    assert failed not in still_there()
    assert still_there() >= kept


def test_tasks_of_other_classes_are_looked_at_by_name(
    known_by: str, airflow: AirflowSide, capsys: pytest.CaptureFixture[str]
) -> None:
    execution_id = starts_batch(airflow, "special", -1, "failed")
    airflow.instances[-1]["operator"] = "SpecialScoreOperator"
    assert orphans(capsys, airflow.url) == 0
    assert execution_id not in capsys.readouterr().out
    assert orphans(capsys, airflow.url, "--task-id", "special") == 0
    assert capsys.readouterr().out.startswith(execution_id)


def test_an_address_in_place_of_a_connection_and_a_token_in_place_of_a_password(
    server: RunningServer,
    airflow: AirflowSide,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execution_id = starts_batch(airflow, "task", -1, "failed")
    for name in ("AIRFLOW_CONN_MLBATCH_DEFAULT", "AIRFLOW_USERNAME", "AIRFLOW_PASSWORD"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AIRFLOW_API_TOKEN", TOKEN)
    monkeypatch.setenv("MLBATCH_PASSWORD", server.password)
    assert orphans(capsys, airflow.url, "--url", server.url) == 0
    assert capsys.readouterr().out.startswith(execution_id)


def test_a_password_of_netrc_is_not_sent_in_place_of_the_token(
    airflow: AirflowSide,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts_batch(airflow, "task", -1, "failed")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert orphans(capsys, airflow.url) == 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AIRFLOW_PASSWORD": "wrong"}, "answered 401: Invalid credentials"),
        ({"AIRFLOW_API_TOKEN": "old"}, "answered 401: Not authenticated"),
        ({"AIRFLOW_API_TOKEN": "t\noken"}, "characters that no token has"),
        ({"AIRFLOW_PASSWORD": ""}, "AIRFLOW_PASSWORD: found nothing"),
        ({"AIRFLOW_USERNAME": ""}, "AIRFLOW_USERNAME: found nothing"),
    ],
)
def test_who_asks_airflow_has_to_be_known(
    airflow: AirflowSide,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    expected: str,
) -> None:
    starts_batch(airflow, "task", -1, "failed")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert_fails(airflow.url, capsys, expected)


def test_a_user_who_may_not_look(airflow: AirflowSide, capsys: pytest.CaptureFixture[str]) -> None:
    starts_batch(airflow, "task", -1, "failed")
    airflow.status = 403
    assert_fails(airflow.url, capsys, "answered 403: Forbidden")


def test_airflow_cannot_be_reached(
    airflow: AirflowSide, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ReservedPort()
    assert_fails(f"http://127.0.0.1:{place.number}", capsys, "cannot be reached: ConnectionError")
    place.close()


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", "http://[::1"])
def test_an_address_that_is_none(
    airflow: AirflowSide, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert_fails(url, capsys, f"--airflow-url: found {url!r}, expected an address such as")


def test_a_password_in_the_address_is_not_shown(
    airflow: AirflowSide, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_fails("http://me:secret@localhost", capsys, "--airflow-url: found a user in it")


def assert_fails(airflow_url: str, capsys: pytest.CaptureFixture[str], expected: str) -> None:
    assert orphans(capsys, airflow_url) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mlbatch orphans: ")
    assert err.count("\n") == 1
    assert expected in err
    assert "secret" not in err
