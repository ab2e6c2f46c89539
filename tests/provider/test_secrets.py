"""No password, token or client secret where people or databases read: logs, errors, XCom, files.

The server of these tests is the careless kind: it quotes the request, with its headers and its body,
in every error, and the password and the tokens besides.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_mlbatch.demo.airflow_home import DemoHome
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.sensors import BatchStateSensor
from tests.faults.server import Act, Answer, FaultServer, Request, as_json, closed_port
from tests.faults.table import COMPLETE, EXECUTION, POLICY, SCENES, SERVICE, VERSION
from tests.faults.table import Path as At
from tests.provider.airflow_side import FakeStateStore
from tests.provider.test_faults import Clock, clock
from tests.provider.test_sensor import fire
from tests.server_process import running_server

__all__ = ["clock"]

PASSWORD = 'pässwörd <"&"> Quetzalcoatl-42'
CLIENT_SECRET = "client-secret-Xolotl-77~"
ROOT = Path(__file__).parents[2]
NAMED: dict[str, Any] = {"service_name": SERVICE, "service_version": VERSION}
OF_BATCH: dict[str, Any] = {**NAMED, "execution_id": EXECUTION}
_BATCH = SCENES[At.SUBMISSION].target
_AT_WORK = as_json({"state": "inProgress", "completedItemCount": 1, "totalItemCount": 3})
# The beginning of a secret is one, too.
_TELLING = 10


@dataclass
class Careless:
    """A server that quotes what it knows.

    :param status: of the errors
    :param fails_at: the requests that it answers so: ``"METHOD /path"``, or ``None`` for none
    :param good_first: how often it answers them well before
    """

    status: int
    fails_at: str | None
    good_first: int = 0
    tokens: list[str] = field(default_factory=list)

    def __call__(self, request: Request) -> Act:
        place = f"{request.method} {request.path}"
        if place == self.fails_at:
            self.good_first -= 1
            if self.good_first < 0:
                return self.quote(request)
        if request.path.startswith("/login"):
            return as_json(self.issue())
        good: dict[str, Act] = {
            f"{scene.method} {scene.target}": scene.good for scene in SCENES.values()
        }
        good |= {
            f"GET {_BATCH}": as_json([]),
            f"GET {_BATCH}/{EXECUTION}": COMPLETE,
            f"GET {_BATCH}/{EXECUTION}/0/files": as_json(["Histogram.png"]),
            f"DELETE {_BATCH}/{EXECUTION}": as_json({}),
            "GET /status": as_json({"statusCode": "pass"}),
        }
        if place == f"GET {_BATCH}/{EXECUTION}" and self.good_first > 0:
            return _AT_WORK
        return good.get(place, as_json({"message": "not found"}, 404))

    def issue(self) -> dict[str, Any]:
        number = len(self.tokens)
        pair = [f"{kind}-token-Tezcatlipoca-{number}-{'z' * 30}" for kind in ("access", "refresh")]
        self.tokens += pair
        return {"access_token": pair[0], "refresh_token": pair[1], "expires_in": 3600}

    def quote(self, request: Request) -> Act:
        told = [*request.headers.values(), request.body.decode(), PASSWORD, *self.tokens]
        words = " | ".join(told)
        if self.status == 200:
            page = f"<html><p>{words}</p></html>".encode()
            return Answer(200, page, [("Content-Type", "text/html")])
        return as_json({"message": words, "code": self.status}, self.status)


@dataclass
class Seen:
    """Everything that somebody else may read."""

    things: list[str] = field(default_factory=list)

    def see(self, thing: Any) -> None:
        self.things += [repr(thing), str(thing)]
        if isinstance(thing, BaseException):
            self.things += traceback.format_exception(thing)
            for cause in (thing.__cause__, thing.__context__):
                if cause is not None:
                    self.see(cause)

    def holds(self, secret: str) -> str | None:
        """What shows a secret, in the spellings of a text and of JSON."""
        for spelling in {secret, json.dumps(secret)[1:-1]}:
            for thing in self.things:
                if spelling[:_TELLING] in thing:
                    return thing
        return None


def operators(folder: Path) -> list[Callable[[], Any]]:
    score = {**NAMED, "records": [{"hp": 120, "wt": 2.8}], "task_id": "score"}
    watch = {**OF_BATCH, "task_id": "wait", "poke_interval": 0.01}
    return [
        lambda: BatchScoreOperator(**score),
        lambda: BatchScoreOperator(**score, wait_for_completion=True, poll_interval=1),
        lambda: BatchScoreOperator(**score, wait_for_completion=True, deferrable=True),
        lambda: BatchStateSensor(**watch),
        lambda: BatchStateSensor(**watch, mode="reschedule"),
        lambda: BatchStateSensor(**watch, deferrable=True),
        lambda: BatchResultsOperator(task_id="results", **OF_BATCH),
        lambda: BatchResultsOperator(
            task_id="table", **OF_BATCH, output_path=str(folder / "scores.csv")
        ),
        lambda: ArtifactDownloadOperator(
            task_id="files", **OF_BATCH, indexes=[0], dest=str(folder / "files")
        ),
        lambda: BatchDeleteOperator(task_id="delete", **NAMED, execution_ids=[EXECUTION]),
    ]


def run(make: Callable[[], Any], context: Any, seen: Seen, timing: Timing) -> None:
    """A task to its end, whatever that is; all that it shows on the way is seen."""
    step: Callable[[Any], Any] = lambda operator: operator.execute(context)  # noqa: E731
    while True:
        operator = make()
        operator.timing = timing
        try:
            seen.see(step(operator))
            return
        except AirflowRescheduleException:
            continue
        except TaskDeferred as deferred:
            event = fire(deferred.trigger, timing)
            for thing in (deferred, deferred.trigger, deferred.trigger.serialize(), event):
                seen.see(thing)
            given = {**(deferred.kwargs or {}), "event": event.payload}
            name = deferred.method_name
            step = lambda operator: operator.resume_execution(name, given, context)  # noqa: E731, B023
        except Exception as error:
            seen.see(error)
            return
        finally:
            fields = {name: getattr(operator, name) for name in operator.template_fields}
            seen.see(fields)
            seen.see(getattr(operator, "linked_execution_id", ""))


def call_hook(seen: Seen, timing: Timing) -> None:
    hook = MLBatchHook(timing=timing)
    calls: list[Callable[[], Any]] = [
        hook.test_connection,
        hook.list_services,
        lambda: hook.start_encoded_batch(SERVICE, VERSION, b"[{}]"),
        lambda: hook.get_batch(SERVICE, VERSION, EXECUTION),
        lambda: hook.cancel_batch(SERVICE, VERSION, EXECUTION),
        lambda: hook.cancel_batch_at_once(SERVICE, VERSION, EXECUTION),
        lambda: hook.get_artifact(SERVICE, VERSION, EXECUTION, 0, "Histogram.png"),
    ]
    for call in calls:
        try:
            seen.see(call())
        except Exception as error:
            seen.see(error)
    for thing in (hook, hook.flows, hook._read_settings(), vars(hook)):
        seen.see(thing)
    hook.close()


PLACES = [
    ("login", "POST /login", 0),
    ("renewal", "POST /login/refreshToken", 0),
    ("service", f"GET {SCENES[At.CALL].target}", 0),
    ("submission", f"POST {_BATCH}", 0),
    ("poll", f"GET {_BATCH}/{EXECUTION}", 0),
    ("later poll", f"GET {_BATCH}/{EXECUTION}", 1),
    ("artifact", f"GET {SCENES[At.ARTIFACT].target}", 0),
    ("delete", f"DELETE {_BATCH}/{EXECUTION}", 0),
    ("nowhere", None, 0),
]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 500, 503])
@pytest.mark.parametrize(("place", "good_first"), [each[1:] for each in PLACES], ids=str)
def test_nothing_shows_a_secret(
    place: str | None,
    good_first: int,
    status: int,
    clock: Clock,
    context: Any,
    store: FakeStateStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if status == 200 and place is not None and place.endswith(".png"):
        pytest.skip("a file holds what the server says")
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "airflow_mlbatch")
    context["ti"].get_first_reschedule_date = lambda context: None
    seen, tokens = Seen(), []
    for make in [*operators(tmp_path), None]:
        server_side = Careless(status, place, good_first)
        with FaultServer(server_side) as server:
            connection = {
                "conn_type": "mlbatch",
                "host": "127.0.0.1",
                "port": server.port,
                "login": "ada",
                "password": PASSWORD,
            }
            monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", json.dumps(connection))
            if make is None:
                call_hook(seen, clock.timing())
            else:
                run(make, context, seen, clock.timing())
        tokens += server_side.tokens
    seen.things += [caplog.text, *capfd.readouterr(), *store.texts.values()]
    seen.see(context["ti"].pushed)
    seen.things += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]

    assert tokens or place == "POST /login"
    for secret in {PASSWORD, *tokens}:
        assert seen.holds(secret) is None


@pytest.mark.parametrize("text", ["https://ada:{}@example.com:99999", "https://ada:{}@example.com"])
def test_a_password_in_the_wrong_field(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    connection = {"conn_type": "mlbatch", "host": text.format("Quetzalcoatl-42")}
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", json.dumps(connection))
    is_well, told = MLBatchHook().test_connection()
    assert not is_well
    assert "host: " in told
    assert "Quetzalcoatl" not in told


@pytest.mark.parametrize("secret", [CLIENT_SECRET, 774477447744])
def test_a_client_secret(
    secret: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Neither where the authority cannot be reached nor where the secret is no text."""
    pytest.importorskip("azure.identity")
    caplog.set_level(logging.DEBUG)
    extra = {
        "auth": "entra",
        "resource": "api://scoring",
        "tenant_id": "tenant",
        "client_id": "client",
        "client_secret": secret,
        "authority": f"https://127.0.0.1:{closed_port()}",
    }
    connection = {"conn_type": "mlbatch", "host": "127.0.0.1", "port": 1, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", json.dumps(connection))
    seen = Seen()
    try:
        MLBatchHook(timing=Timing(POLICY)).list_services()
    except Exception as error:
        seen.see(error)
    assert seen.things
    seen.things += [caplog.text, *capfd.readouterr()]
    assert seen.holds(str(secret)) is None


# --- a whole Dag ---------------------------------------------------------------------------------


@dataclass
class Recorder:
    """Passes requests on to a server, and keeps the tokens that go by."""

    port: int
    tokens: set[str] = field(default_factory=set)

    def __call__(self, request: Request) -> Act:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in ("host", "connection", "content-length")
        }
        line.request(request.method, request.target, request.body or None, headers)
        reply = line.getresponse()
        body = reply.read()
        line.close()
        if request.path.startswith("/login"):
            found = json.loads(body)
            self.tokens |= {found["access_token"], found["refresh_token"]}
        kept = [
            (name, value)
            for name, value in reply.getheaders()
            if name.lower() in ("content-type", "content-encoding")
        ]
        return Answer(reply.status, body, kept)


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[tuple[FaultServer, Recorder, str]]:
    with running_server("--demo", data_dir=tmp_path / "server") as server:
        recorder = Recorder(int(server.url.rpartition(":")[2]))
        with FaultServer(recorder, patience=60) as front:
            yield front, recorder, server.password


def test_a_whole_dag_leaves_none_in_log_database_or_files(
    airflow_database: str, recorded: tuple[FaultServer, Recorder, str], tmp_path: Path
) -> None:
    front, recorder, password = recorded
    home = DemoHome(tmp_path / "home")
    home.prepare()
    connection = {
        "conn_type": "mlbatch",
        "host": "127.0.0.1",
        "port": front.port,
        "login": "admin",
        "password": password,
    }
    ended = subprocess.run(
        [sys.executable, str(ROOT / "dags_examples" / "mlbatch_score_mtcars.py")],
        env={
            **os.environ,
            "AIRFLOW_CONN_MLBATCH_DEFAULT": json.dumps(connection),
            # At DEBUG, Airflow's own supervisor prints each secret that it is told to mask.
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            "MLBATCH_EXAMPLE_DATA": str(home.data),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout.decode()[-4000:]
    assert b"execution" in ended.stdout
    assert len(recorder.tokens) >= 2
    places = [path for path in Path(airflow_database).rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in places)
    written = [path for path in home.data.rglob("*") if path.is_file()]
    assert any(path.name.endswith("manifest.json") for path in written)
    found = {path: path.read_bytes() for path in [*places, *written]}
    found[Path("log")] = ended.stdout
    for secret in (password, *recorder.tokens):
        for path, content in found.items():
            assert secret.encode() not in content, path
