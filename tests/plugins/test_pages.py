"""The pages about batches, as a browser asks for them over HTTP."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.plugins import BatchPagesPlugin
from airflow_mlbatch.plugins.board import INTERVAL_SECONDS
from tests.plugins.auth_manager import PRIVATE_DAG
from tests.plugins.conftest import (
    MakeTask,
    Pages,
    connection_to,
    eventually,
    insert_tasks,
    note_of,
    running_api_server,
    token_of,
)
from tests.plugins.large_batch import LargeBatch, large_batch
from tests.ports import ReservedPort
from tests.server_process import RunningServer
from tests.system.scoring_proxy import scoring_proxy


def status_of(pages: Pages, path: str) -> dict[str, Any]:
    """What the page of a batch shows, once the server was asked."""

    def look() -> Any:
        reply = pages.get(f"{path}/status")
        assert reply.status_code == 200, reply.text
        found = reply.json()
        return found if found["progress"]["asked_at"] else None

    found: dict[str, Any] = eventually(look, "the server was asked")
    return found


def test_a_complete_batch(
    pages: Pages, hook: MLBatchHook, make_task: MakeTask, server: RunningServer
) -> None:
    execution_id = hook.start_batch("cars", "1", {"x": [1.0, 4.0, -1.0]})
    hook.watch_batch("cars", "1", execution_id, poll_interval=0.05)
    task = make_task(note=note_of("cars", execution_id, count=3), map_index=2)
    found = status_of(pages, task.path)
    assert found["task"]["map_index"] == 2
    assert found["progress"]["state"] == "complete"
    assert found["progress"]["is_ended"] is True
    assert (found["progress"]["done"], found["progress"]["total"]) == (3, 3)
    assert found["batch"]["conn_id"] == "mlbatch_default"
    assert found["batch"]["execution_id"] == execution_id
    assert found["batch"]["server"] == server.url
    assert server.password not in str(found)
    records = pages.get(f"{task.path}/records").json()
    assert records["is_whole"] is True
    assert [each["name"] for each in records["outputs"]] == ["y", "isLarge", "kind"]
    first, _, last = records["records"]
    assert first["outputs"] == {"y": 1.0, "isLarge": False, "kind": "odd"}
    assert first["artifacts"] == ["plot.png", "note.txt"]
    assert first["console"].strip() == "looking at 1.0"
    assert (last["success"], last["error"]) == (False, "ValueError: x is negative: -1.0")


def test_a_running_batch_has_a_rate(pages: Pages, hook: MLBatchHook, make_task: MakeTask) -> None:
    execution_id = hook.start_batch("held", "1", {"gate": [None, "never"], "x": [1.0, 2.0]})
    task = make_task(note=note_of("held", execution_id, count=2), state="deferred")

    def half_way() -> Any:
        progress = status_of(pages, task.path)["progress"]
        return progress if progress["done"] == 1 else None

    progress = eventually(half_way, "one record is done")
    assert progress["state"] in ("inProgress", "inprogress")
    assert progress["rate"] is not None
    assert progress["samples"][-1][1] == 1
    hook.cancel_batch("held", "1", execution_id)


def test_a_server_that_is_down_is_a_sentence(
    pages: Pages, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ReservedPort()
    address = connection_to(f"http://127.0.0.1:{place.number}", "secret-password")
    monkeypatch.setenv("AIRFLOW_CONN_DOWN", address)
    task = make_task(note={**note_of("cars", "some-id"), "conn_id": "down"})
    progress = status_of(pages, task.path)["progress"]
    assert progress["state"] is None
    assert progress["problem"].startswith("The scoring server of connection 'down' does not answer")
    reply = pages.get(f"{task.path}/records")
    assert reply.status_code == 502
    assert "does not answer" in reply.json()["detail"]
    assert "secret-password" not in reply.text
    place.close()


def test_a_batch_that_is_gone_is_a_sentence(pages: Pages, make_task: MakeTask) -> None:
    task = make_task(note=note_of("cars", "no-such-execution"))
    progress = status_of(pages, task.path)["progress"]
    assert (progress["state"], progress["is_ended"]) == ("gone", True)
    reply = pages.get(f"{task.path}/records")
    assert reply.status_code == 410
    assert "cancelled or deleted" in reply.json()["detail"]


def test_a_task_that_is_not_there_is_a_sentence(pages: Pages) -> None:
    reply = pages.get("mlbatch/dags/none/runs/none/tasks/none/-1/status")
    assert reply.status_code == 404
    assert "no such task instance" in reply.json()["detail"]


# --- files ---------------------------------------------------------------------------------------


def test_only_pictures_are_shown(pages: Pages, hook: MLBatchHook, make_task: MakeTask) -> None:
    execution_id = hook.start_batch("hostile-files", "1", {"x": [1.0]})
    hook.watch_batch("hostile-files", "1", execution_id, poll_interval=0.05)
    task = make_task(note=note_of("hostile-files", execution_id))
    found = {
        name: pages.get(f"{task.path}/records/0/files/{name}").headers
        for name in ("page.html", "drawing.svg", "fake.png", "real.png")
    }
    picture = found.pop("real.png")
    assert picture["content-type"] == "image/png"
    assert picture["content-disposition"].startswith("inline")
    for name, headers in found.items():
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"
    for headers in (picture, *found.values()):
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; sandbox"
    missing = pages.get(f"{task.path}/records/0/files/none.png")
    assert missing.status_code == 404


# --- large and many ------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server with a complete batch of a million records."""
    with large_batch() as running:
        monkeypatch.setenv("AIRFLOW_CONN_LARGE", connection_to(running.url, "secret"))
        yield running


def test_a_million_records_cost_one_mebibyte(
    pages: Pages, make_task: MakeTask, large: LargeBatch
) -> None:
    task = make_task(note={**note_of("large", "the-batch"), "conn_id": "large"})
    before = time.process_time()
    found = status_of(pages, task.path)["progress"]
    reply = pages.get(f"{task.path}/records")
    # Of this process: the API server's threads, the test's own and those of the server that sends.
    assert time.process_time() - before < 1.0
    assert (found["state"], found["total"]) == ("complete", 1_000_000)
    told = reply.json()
    assert told["is_whole"] is False
    assert told["bytes_read"] <= 1024 * 1024
    assert len(told["records"]) > 5_000
    assert [each["index"] for each in told["records"]] == list(range(len(told["records"])))
    # The rest was never sent: what is more than was read lies in the buffers of the line.
    assert eventually(lambda: large.has_hung_up, "the browser's side hung up")
    assert large.bytes_sent < 30 * 1024 * 1024


def test_many_viewers_share_one_poll_an_interval(
    pages: Pages,
    hook: MLBatchHook,
    make_task: MakeTask,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execution_id = hook.start_batch("held", "1", {"gate": ["never"], "x": [1.0]})
    with scoring_proxy(server.url) as proxy:
        address = connection_to(f"http://127.0.0.1:{proxy.port}", server.password)
        monkeypatch.setenv("AIRFLOW_CONN_PROXY", address)
        note = {**note_of("held", execution_id), "conn_id": "proxy"}
        task = make_task(note=note, state="deferred")
        started = time.monotonic()

        def view() -> None:
            viewer = Pages(pages.root, pages.token)
            for _ in range(4):
                assert viewer.get(f"{task.path}/status").status_code == 200
                assert viewer.get("mlbatch/list").status_code == 200

        viewers = [threading.Thread(target=view) for _ in range(20)]
        for each in viewers:
            each.start()
        for each in viewers:
            each.join()
        intervals = (time.monotonic() - started) / INTERVAL_SECONDS
        polls = len(proxy.passed("GET", "/batch/"))
        assert 1 <= polls <= intervals + 1
    hook.cancel_batch("held", "1", execution_id)


# --- the list ------------------------------------------------------------------------------------


def listed(pages: Pages, query: str = "") -> dict[str, Any]:
    reply = pages.get(f"mlbatch/list?{query}")
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_the_list_shows_nothing_of_other_dags(
    pages: Pages, owner: Pages, make_task: MakeTask
) -> None:
    make_task("open", note=note_of("cars", "open-id"))
    make_task(PRIVATE_DAG, note=note_of("private-service", "private-id"))
    for query in ("", f"dag_id={PRIVATE_DAG}", "service=private-service", "dag_id=~"):
        reply = pages.get(f"mlbatch/list?{query}")
        assert reply.status_code == 200
        assert "private" not in reply.text, query
    assert listed(pages)["dags"] == ["open"]
    found = listed(owner)
    assert found["dags"] == ["open", PRIVATE_DAG]
    assert found["total"] == 2


def test_filters(pages: Pages, make_task: MakeTask) -> None:
    make_task("one", note=note_of("cars", "a"), state="success")
    make_task("one", note=note_of("held", "b"), state="failed")
    make_task("two", note=note_of("cars", "c"), state="success")
    # Who waits for a batch or reads it is not listed once more.
    make_task("two", note=note_of("cars", "c"), key="mlbatch_watched_batch")

    def ids(query: str) -> list[str]:
        return [each["batch"]["execution_id"] for each in listed(pages, query)["batches"]]

    assert ids("") == ["c", "b", "a"]
    assert ids("dag_id=one") == ["b", "a"]
    assert ids("service=cars") == ["c", "a"]
    assert ids("state=failed") == ["b"]
    assert ids("dag_id=one&service=cars&state=success") == ["a"]
    assert ids("service=%27%20OR%201=1") == []
    assert listed(pages)["services"] == ["cars", "held"]


def test_failed_records_are_those_that_a_results_task_counted(
    pages: Pages, make_task: MakeTask
) -> None:
    make_task("one", note=note_of("cars", "b"))
    counted = {**note_of("cars", "a"), "failed": 7}
    tasks = [
        ("score", -1, "success", "mlbatch_started_batch", note_of("cars", "a")),
        ("results", -1, "success", "mlbatch_watched_batch", counted),
    ]
    insert_tasks("one", "a-run", tasks)
    rows = {each["batch"]["execution_id"]: each["failed"] for each in listed(pages)["batches"]}
    assert rows == {"a": 7, "b": None}


def test_ten_thousand_tasks_are_paged_in_the_database(
    pages: Pages,
    make_task: MakeTask,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_task("many", note=note_of("cars", "first"))
    with scoring_proxy(server.url) as proxy:
        address = connection_to(f"http://127.0.0.1:{proxy.port}", server.password)
        monkeypatch.setenv("AIRFLOW_CONN_MANY", address)
        notes = [
            (
                "score",
                place,
                "success",
                "mlbatch_started_batch",
                {**note_of("cars", f"id-{place}"), "conn_id": "many"},
            )
            for place in range(10_000)
        ]
        insert_tasks("many", "large-run", notes)
        found = listed(pages)
        assert found["total"] == 10_001
        assert len(found["batches"]) == found["page_size"] == 25
        later = listed(pages, "offset=9990")
        assert len(later["batches"]) == 11
        asked = {each["batch"]["execution_id"] for each in (*found["batches"], *later["batches"])}

        def all_were_asked_for() -> Any:
            # A page looks again and again; a poll that failed is repeated then.
            listed(pages)
            listed(pages, "offset=9990")
            found = proxy.passed("GET", "/batch/")
            return len({each.path for each in found}) >= 35 and found

        seen = eventually(all_were_asked_for, "the visible batches were asked for")
        # Only of what somebody looks at.
        assert {each.path.split("?")[0].rpartition("/")[2] for each in seen} <= asked


# --- where Airflow is ----------------------------------------------------------------------------


def test_a_base_url_with_a_path(pages: Pages, hook: MLBatchHook, make_task: MakeTask) -> None:
    task = make_task(note=note_of("cars", "some-id"))
    with running_api_server("/some/where") as root:
        there = Pages(root, token_of("ada"))
        html = there.get(task.path, accept="text/html").text
        assert '<base href="/some/where/mlbatch/">' in html
        assert there.get("mlbatch/static/batch.js").status_code == 200
        assert there.get("mlbatch/").status_code == 200
        assert there.get(f"{task.path}/status").json()["progress"]
        login = Pages(root, None).get(task.path, accept="text/html").text
        assert "/some/where/" in login


def test_every_answer_has_a_policy(pages: Pages, nobody: Pages, make_task: MakeTask) -> None:
    task = make_task(note=note_of("cars", "some-id"))
    for reply in (
        pages.get("mlbatch/"),
        pages.get(task.path),
        pages.get(f"{task.path}/status"),
        nobody.get(task.path, accept="text/html"),
    ):
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "frame-ancestors 'self'" in policy
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_registered_where_the_pages_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    on = BatchPagesPlugin()
    assert [view["name"] for view in on.external_views] == ["Batches"]
    monkeypatch.setenv("AIRFLOW__MLBATCH__UI_ENABLED", "False")
    off = BatchPagesPlugin()
    assert (off.fastapi_apps, off.external_views) == ([], [])
