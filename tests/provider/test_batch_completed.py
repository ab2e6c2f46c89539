"""A watcher fires once for each batch that ends, whoever started it, also across restarts."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.triggers import BatchCompletedTrigger
from tests.faults.server import FaultServer, Play, as_json
from tests.provider.airflow_side import FakeStateStore
from tests.provider.conftest import connection_to
from tests.server_process import RunningServer, running_server

INTERVAL = 10.0
Watch = Callable[..., list[dict[str, Any]]]


class StoppedError(Exception):
    """The triggerer stops here."""


class AssetStore(FakeStateStore):
    """What Airflow 3.3.2 gives the watcher of one asset."""

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self.set(key, value)


@pytest.fixture(params=[AssetStore, FakeStateStore], ids=["3.3.2", "3.3.0"])
def asset_store(request: pytest.FixtureRequest) -> Any:
    """The store as two versions of Airflow have it: the older one has the blocking calls only."""
    return request.param()


def watch(
    store: Any = None,
    *,
    looks: int = 1,
    seconds: float | None = None,
    pauses: Callable[[float], None] = lambda seconds: None,
    **kwargs: Any,
) -> list[dict[str, Any]]:
    """What a triggerer sees of a watcher that it starts now and stops after some looks at the server.

    :param seconds: stop after so many instead
    :param pauses: called with the length of each pause
    """
    limit = INTERVAL * looks if seconds is None else seconds
    passed = 0.0

    async def sleep(length: float) -> None:
        nonlocal passed
        passed += length
        pauses(length)
        if passed >= limit:
            raise StoppedError

    given = BatchCompletedTrigger(**{**GATED, "poll_interval": INTERVAL, **kwargs})
    trigger = BatchCompletedTrigger(**json.loads(json.dumps(given.serialize()[1])))
    assert trigger.serialize() == given.serialize()
    trigger.timing = Timing(sleep_on_loop=sleep)
    trigger.asset_state_store = store
    events: list[TriggerEvent] = []

    async def run() -> None:
        try:
            async for event in trigger.run():
                events.append(event)  # noqa: PERF401 - kept, also where the watch is stopped
        finally:
            await trigger.cleanup()

    with pytest.raises(StoppedError):
        asyncio.run(run())
    return [json.loads(json.dumps(event.payload)) for event in events]


GATED: dict[str, Any] = {"service_name": "gated", "service_version": "1"}


@pytest.fixture
def start(hook: MLBatchHook) -> Callable[..., str]:
    """Starts a batch as an R user does; it completes at once, or when its gate opens."""

    def start(gate: str | None = None) -> str:
        execution_id = hook.start_batch("gated", "1", {"gate": [None, gate], "x": [1.0, 2.0]})
        if gate is None:
            wait_for(execution_id)
        return execution_id

    def wait_for(execution_id: str) -> None:
        hook.watch_batch("gated", "1", execution_id, poll_interval=0.02)

    start.wait_for = wait_for  # type: ignore[attr-defined]
    return start


def ids(events: list[dict[str, Any]]) -> list[str]:
    return [event["execution_id"] for event in events]


def test_a_batch_fires_once_when_it_completes(asset_store: Any, start: Any, markers: Path) -> None:
    start()
    gate = f"watched-{secrets.token_hex(4)}"
    running = start(gate)
    assert watch(asset_store, looks=2) == []
    (markers / gate).touch()
    start.wait_for(running)
    assert watch(asset_store, looks=3) == [
        {
            "mlbatch_conn_id": "mlbatch_default",
            "service_name": "gated",
            "service_version": "1",
            "execution_id": running,
            "state": "complete",
            "completed_item_count": 2,
            "total_item_count": 2,
            "message": "",
        }
    ]
    assert watch(asset_store, looks=2) == []


def test_what_completes_between_two_looks_fires(start: Any) -> None:
    started: list[str] = []

    def pause(seconds: float) -> None:
        if len(started) < 2:
            started.append(start())

    assert ids(watch(None, looks=4, pauses=pause)) == started


def test_what_completes_while_no_triggerer_runs_fires_after_the_restart(
    asset_store: Any, start: Any
) -> None:
    start()
    assert watch(asset_store) == []
    meanwhile = [start(), start()]
    assert sorted(ids(watch(asset_store))) == sorted(meanwhile)
    assert watch(asset_store) == []


def test_without_a_store_each_restart_begins_anew(start: Any) -> None:
    assert watch(None) == []
    start()
    assert watch(None, looks=2) == []


def test_those_that_were_there_before_fire_if_asked_for(asset_store: Any, start: Any) -> None:
    before = start()
    found = ids(watch(asset_store, looks=2, include_existing=True))
    assert found.count(before) == 1
    assert watch(asset_store, include_existing=True) == []


def test_a_triggerer_that_dies_before_it_handed_the_event_on_loses_nothing(
    asset_store: Any, start: Any
) -> None:
    watch(asset_store)
    execution_id = start()
    assert ids(watch(asset_store, seconds=0.1)) == [execution_id]
    assert ids(watch(asset_store)) == [execution_id]
    assert watch(asset_store) == []


def test_what_the_server_has_no_more_is_not_kept(
    asset_store: Any, start: Any, hook: MLBatchHook
) -> None:
    execution_id = start()
    watch(asset_store)
    (kept,) = [json.loads(text) for text in asset_store.texts.values()]
    assert execution_id in kept["execution_ids"]
    hook.cancel_batch("gated", "1", execution_id)
    watch(asset_store)
    (kept,) = [json.loads(text) for text in asset_store.texts.values()]
    assert execution_id not in kept["execution_ids"]


def test_what_is_kept_has_a_name_that_users_understand(asset_store: Any) -> None:
    watch(asset_store)
    watch(asset_store, states=["complete", "failed"])
    assert list(asset_store.texts) == [
        "complete executions of gated 1, mlbatch_default",
        "complete or failed executions of gated 1, mlbatch_default",
    ]


def test_failed_batches_fire_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"completedItemCount": 1, "totalItemCount": 3}
    play = {
        "POST /login": [as_json({"access_token": "token", "expires_in": 3600})],
        "GET /api/gated/1/batch": [as_json(["broken", "whole"])],
        "GET /api/gated/1/batch/broken": [as_json({"state": "failed", **counts})],
        "GET /api/gated/1/batch/whole": [as_json({"state": "complete", **counts})],
    }
    with FaultServer(Play(play)) as server:
        connection = {"conn_type": "mlbatch", "host": "127.0.0.1", "port": server.port}
        text = json.dumps({**connection, "login": "ada", "password": "secret"})
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", text)
        fired = {
            states: {each["state"] for each in watch(include_existing=True, states=list(states))}
            for states in (("complete",), ("failed",), ("complete", "failed"))
        }
    assert fired == {states: set(states) for states in fired}


def test_a_server_that_is_away_is_looked_for_again(
    start: Any,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    execution_id = start()
    monkeypatch.delenv("AIRFLOW_CONN_MLBATCH_DEFAULT")

    def mend(seconds: float) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server))

    found = ids(watch(looks=2, pauses=mend, include_existing=True))
    assert found.count(execution_id) == 1
    log = capsys.readouterr().out
    assert log.count("service 'gated' version '1' cannot be watched now") == 1
    assert "connection 'mlbatch_default': found none of this id" in log


def test_a_service_that_is_not_published_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_server("--demo", data_dir=tmp_path / "server") as server:
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server))
        assert watch(looks=2) == []
    assert capsys.readouterr().out.count("service 'gated' version '1' cannot be watched now") == 2


class FailingStore(AssetStore):
    """Airflow's API server is away for a while."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the API server is away")

    def get(self, key: str, default: Any = None) -> Any:
        self._fail()
        return super().get(key, default)

    def set(self, key: str, value: Any) -> None:
        self._fail()
        super().set(key, value)


def test_a_store_that_cannot_be_read_is_asked_again(start: Any) -> None:
    store = FailingStore(0)
    watch(store)
    execution_id = start()
    store.failures = 2
    assert ids(watch(store, looks=4)) == [execution_id]


def test_a_store_that_cannot_be_written_is_written_at_the_next_look(start: Any) -> None:
    store = FailingStore(0)
    watch(store)
    start()

    def break_it(seconds: float) -> None:
        store.failures = int(seconds < INTERVAL / 2)  # right after the event

    assert len(watch(store, looks=2, pauses=break_it)) == 1
    assert watch(store) == []


class SeveralAssets:
    """What Airflow gives a watcher that several assets share."""

    async def aget(self, key: str) -> Any:
        raise ValueError("Task has 2 concrete inlets and outlets")

    async def aset(self, key: str, value: Any) -> None:
        raise ValueError("Task has 2 concrete inlets and outlets")


def test_several_assets_with_one_watcher_are_warned_about(
    start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(SeveralAssets(), looks=2) == []
    assert capsys.readouterr().out.count("several assets have the same watcher") == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"service_name": ""}, "service_name: found '', expected text"),
        ({"service_version": 1}, "service_version: found 1, expected text"),
        ({"service_version": "latest"}, "expected the name of one version"),
        (
            {"states": "complete"},
            "states: found 'complete', expected a list of complete and failed",
        ),
        ({"states": []}, "states"),
        ({"states": ["done"]}, "states: found ['done']"),
        ({"poll_interval": 0}, "poll_interval: found 0, expected more than 0"),
        ({"poll_interval": "5"}, "poll_interval: found '5', expected seconds"),
    ],
)
def test_a_mistake_fails_the_file_of_the_dag(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError) as caught:
        BatchCompletedTrigger(**{**GATED, **wrong})
    assert words in str(caught.value)


def test_airflow_takes_it_as_the_watcher_of_an_asset() -> None:
    from airflow.sdk import Asset, AssetWatcher

    trigger = BatchCompletedTrigger(**GATED)
    asset = Asset("gated batches", watchers=[AssetWatcher(name="gated", trigger=trigger)])
    assert asset.watchers[0].trigger is trigger
