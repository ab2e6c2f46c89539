"""Who may see and do what: every route, without a login, without a permission, from another site."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.plugins import BatchPagesPlugin
from tests.plugins.auth_manager import PRIVATE_DAG
from tests.plugins.conftest import MakeTask, Pages, note_of, token_of

OF_A_DAG = "/dags/{dag_id}/"
OF_A_TASK = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/{map_index}"


def routes(api_server: str) -> list[tuple[str, str]]:
    """Every method and path that the application answers."""
    (mounted,) = BatchPagesPlugin().fastapi_apps
    return [
        (method, route.path) for route in mounted["app"].routes for method in sorted(route.methods)
    ]


def filled(path: str, dag_id: str) -> str:
    values = {
        "dag_id": dag_id,
        "run_id": "run",
        "task_id": "score",
        "plan_task_id": "plan",
        "map_index": "-1",
        "index": "0",
        "name": "style.css",
        "file_name": "a.png",
    }
    return "mlbatch" + re.sub(r"\{(\w+)(?::path)?\}", lambda word: values[word[1]], path)


def test_every_route_refuses_who_has_no_login(api_server: str, nobody: Pages) -> None:
    walked = routes(api_server)
    assert len(walked) >= 8
    answers = {
        (method, path): nobody.ask(method, filled(path, "scores")).status_code
        for method, path in walked
    }
    assert answers == dict.fromkeys(walked, 401)
    # Neither is there a page about the application itself.
    for path in ("mlbatch/docs", "mlbatch/redoc", "mlbatch/openapi.json", "mlbatch/nothing"):
        assert nobody.get(path).status_code == 404


def test_every_route_about_a_task_or_a_table_has_the_dag_in_its_path(api_server: str) -> None:
    others = {path for _, path in routes(api_server) if not path.startswith(OF_A_DAG)}
    assert others == {"/", "/list", "/static/{name}"}


def test_every_route_about_a_dag_refuses_who_may_not_read_its_dag(
    api_server: str, pages: Pages, owner: Pages, make_task: MakeTask
) -> None:
    make_task(PRIVATE_DAG, run_id="run", note=note_of("cars", "some-id"))
    walked = [(m, path) for m, path in routes(api_server) if path.startswith(OF_A_DAG)]
    for method, path in walked:
        reply = pages.ask(method, filled(path, PRIVATE_DAG))
        assert reply.status_code == 403, (method, path, reply.text)
        assert "some-id" not in reply.text
    assert owner.get(filled(OF_A_TASK + "/status", PRIVATE_DAG)).status_code == 200


def test_a_token_that_is_none_is_refused(api_server: str, make_task: MakeTask) -> None:
    task = make_task(note=note_of("cars", "some-id"))
    forged = token_of("ada")[:-8] + "AAAAAAAA"
    assert Pages(api_server, forged).get(f"{task.path}/status").status_code in (401, 403)


def test_somebody_without_a_login_is_led_to_it(nobody: Pages, make_task: MakeTask) -> None:
    task = make_task(note=note_of("cars", "some-id"))
    reply = nobody.get(task.path, accept="text/html")
    assert reply.status_code == 401
    assert "You are not logged in" in reply.text
    assert "/auth/login?next=" in reply.text
    assert "some-id" not in reply.text


def test_what_a_note_names_is_not_for_the_request_to_choose(
    pages: Pages, make_task: MakeTask, hook: MLBatchHook
) -> None:
    execution_id = hook.start_batch("cars", "1", {"x": [1.0]})
    other = hook.start_batch("cars", "1", {"x": [1.0, 2.0]})
    task = make_task(note=note_of("cars", execution_id))
    asked = f"{task.path}/status?execution_id={other}&conn_id=other&dag_id=other"
    assert pages.get(asked).json()["batch"]["execution_id"] == execution_id


@pytest.mark.parametrize(
    "conn_type",
    ["postgres", "http"],
)
def test_only_connections_of_our_own_type_are_used(
    pages: Pages, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch, conn_type: str
) -> None:
    """A note is an XCom: who may write one must not make other passwords travel."""
    monkeypatch.setenv(
        "AIRFLOW_CONN_ELSEWHERE", f"{conn_type}://user:very-secret-word@127.0.0.1:9/"
    )
    note = {**note_of("cars", "some-id"), "conn_id": "elsewhere"}
    task = make_task(note=note)
    reply = pages.get(f"{task.path}/records")
    assert reply.status_code == 502
    assert f"has the type '{conn_type}', expected 'mlbatch'" in reply.json()["detail"]
    assert "very-secret-word" not in reply.text


def test_a_connection_that_is_not_there_is_named(pages: Pages, make_task: MakeTask) -> None:
    task = make_task(note={**note_of("cars", "some-id"), "conn_id": "nowhere"})
    detail = pages.get(f"{task.path}/records").json()["detail"]
    assert detail == "The API server does not find the connection 'nowhere'."


@pytest.mark.parametrize(
    "note",
    [
        None,
        "text",
        "[1]",
        {"conn_id": "mlbatch_default"},
        {**note_of("cars", ""), "execution_id": 7},
        {**note_of("cars", "x"), "conn_id": None},
    ],
)
def test_a_note_that_makes_no_sense_is_none(pages: Pages, make_task: MakeTask, note: Any) -> None:
    task = make_task(note=note)
    found = pages.get(f"{task.path}/status").json()
    assert found["batch"] is None
    reply = pages.get(f"{task.path}/records")
    assert (reply.status_code, reply.json()["detail"]) == (
        404,
        "This task has not recorded a batch.",
    )


# --- cancel --------------------------------------------------------------------------------------


@pytest.fixture
def running(hook: MLBatchHook, make_task: MakeTask) -> Any:
    """A batch that does not end by itself, and its task."""
    execution_id = hook.start_batch("held", "1", {"gate": ["never"], "x": [1.0]})
    task = make_task(note=note_of("held", execution_id), state="running")
    yield execution_id, task
    hook.cancel_batch("held", "1", execution_id)


def is_there(hook: MLBatchHook, execution_id: str) -> bool:
    return execution_id in hook.list_batch_executions("held", "1")


def test_a_batch_is_cancelled(pages: Pages, hook: MLBatchHook, running: Any) -> None:
    execution_id, task = running
    assert pages.get(f"{task.path}/status").json()["can_cancel"] is True
    reply = pages.ask("POST", f"{task.path}/cancel")
    assert (reply.status_code, reply.json()) == (200, {"was_there": True})
    assert not is_there(hook, execution_id)
    found = pages.get(f"{task.path}/status").json()["progress"]
    assert found["state"] == "gone"
    assert "cancelled or deleted" in found["problem"]
    # A second click finds nothing left to do.
    assert pages.ask("POST", f"{task.path}/cancel").json() == {"was_there": False}


def test_who_may_only_read_cannot_cancel(viewer: Pages, hook: MLBatchHook, running: Any) -> None:
    execution_id, task = running
    assert viewer.get(f"{task.path}/status").json()["can_cancel"] is False
    assert viewer.ask("POST", f"{task.path}/cancel").status_code == 403
    assert is_there(hook, execution_id)


def test_a_cancellation_is_a_post(pages: Pages, hook: MLBatchHook, running: Any) -> None:
    execution_id, task = running
    for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
        assert pages.ask(method, f"{task.path}/cancel").status_code == 405, method
    assert is_there(hook, execution_id)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "none"},
        # The newer header is believed, whatever the other says.
        {"sec_fetch_site": "cross-site", "origin": "{own}"},
    ],
)
def test_another_site_cannot_cancel(
    pages: Pages, hook: MLBatchHook, running: Any, headers: dict[str, str]
) -> None:
    execution_id, task = running
    own = "{0.scheme}://{0.netloc}".format(urlsplit(pages.root))
    named = {name: value.format(own=own) for name, value in headers.items()}
    reply = pages.ask("POST", f"{task.path}/cancel", **named)
    assert reply.status_code == 403
    assert reply.json()["detail"] == "This request comes from another site."
    assert is_there(hook, execution_id)


def test_the_own_site_can_cancel(pages: Pages, hook: MLBatchHook, running: Any) -> None:
    execution_id, task = running
    own = "{0.scheme}://{0.netloc}".format(urlsplit(pages.root))
    assert pages.ask("POST", f"{task.path}/cancel", origin=own).status_code == 200
    assert not is_there(hook, execution_id)


def test_a_cancellation_is_in_the_audit_log(pages: Pages, running: Any) -> None:
    _, task = running
    assert pages.ask("POST", f"{task.path}/cancel").status_code == 200
    logged = pages.get(f"api/v2/eventLogs?dag_id={task.dag_id}&event=mlbatch_cancel").json()
    (entry,) = [each for each in logged["event_logs"] if each["run_id"] == task.run_id]
    assert (entry["owner"], entry["task_id"]) == ("ada", "score")
