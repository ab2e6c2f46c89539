"""The sensor in its three modes, and the trigger behind one of them, against a live server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import TriggerEvent

from airflow_mlbatch.errors import (
    ConnectionLostError,
    ContractError,
    ExecutionNotFoundError,
    MLBatchError,
    NoBatchError,
)
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import event_of
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.sensors import BatchStateSensor
from airflow_mlbatch.triggers import BatchStateTrigger
from tests.provider.conftest import SERVICES, connection_to
from tests.server.api import Api
from tests.server_process import RunningServer, running_server
from tests.system.scoring_proxy import scoring_proxy

MODES = ["poke", "reschedule", "deferrable"]


def sensor_for(
    execution_id: str, mode: str, service: str = "slow", **kwargs: Any
) -> BatchStateSensor:
    kwargs.setdefault("timeout", 600)
    return BatchStateSensor(
        task_id="wait",
        service_name=service,
        service_version="1",
        execution_id=execution_id,
        poke_interval=0.05,
        mode="reschedule" if mode == "reschedule" else "poke",
        deferrable=mode == "deferrable",
        **kwargs,
    )


def fire(trigger: BatchStateTrigger, timing: Timing | None = None) -> TriggerEvent:
    """Run a trigger as a triggerer does, out of its serialized form, and return its one event."""
    path, kwargs = trigger.serialize()
    assert path == "airflow_mlbatch.triggers.batch_state.BatchStateTrigger"
    stored = BatchStateTrigger(**json.loads(json.dumps(kwargs)))
    assert stored.serialize() == trigger.serialize()
    stored.timing = timing

    async def run() -> list[TriggerEvent]:
        try:
            return [event async for event in stored.run()]
        finally:
            await stored.cleanup()

    (event,) = asyncio.run(run())
    return event


def run_to_its_end(make: Callable[[], BatchStateSensor], context: Any) -> Any:
    """What Airflow does about a sensor until it has ended, with a new object for every segment.

    :param context: of the task; its ``timing``, where it has one, is that of every segment
    """
    timing = context.get("timing")

    def segment() -> BatchStateSensor:
        operator = make()
        operator.timing = timing
        return operator

    while True:
        try:
            return segment().execute(context)
        except AirflowRescheduleException:
            time.sleep(0.05)
        except TaskDeferred as deferred:
            payload = json.loads(json.dumps(fire(deferred.trigger, timing).payload))
            return segment().resume_execution(
                deferred.method_name, {**(deferred.kwargs or {}), "event": payload}, context
            )


@pytest.fixture
def hook() -> MLBatchHook:
    return MLBatchHook()


@pytest.fixture(autouse=True)
def no_database_for_reschedules(context: Any) -> None:
    context["ti"].get_first_reschedule_date = lambda context: None


@pytest.mark.parametrize("mode", MODES)
def test_waits_for_the_end_and_logs_the_way_there(
    hook: MLBatchHook,
    context: Any,
    mode: str,
    markers: Path,
    server: RunningServer,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = [{"gate": f"sensor {mode}" if x > 2 else None, "x": x} for x in range(8)]
    execution_id = hook.start_batch("gated", "1", records, parallel_count=1)
    while hook.get_batch_status("gated", "1", execution_id).completed_item_count < 3:
        time.sleep(0.02)
    with scoring_proxy(server.url) as proxy:
        connection = connection_to(server).replace(server.url.rpartition(":")[2], str(proxy.port))
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection)
        # The first poll of the sensor sees the batch half done, whatever else this machine does.
        first = proxy.hold("GET", f"/batch/{execution_id}", "reply")

        def open_gate() -> None:
            first.wait(60)
            (markers / f"sensor {mode}").touch()
            first.forward()

        threading.Thread(target=open_gate, daemon=True).start()
        summary = run_to_its_end(lambda: sensor_for(execution_id, mode, "gated"), context)
    assert summary == {
        "execution_id": execution_id,
        "state": "complete",
        "completed_item_count": 8,
        "total_item_count": 8,
    }
    printed = capfd.readouterr().out
    for progress in ("3 of 8 records, 37 %", "8 of 8 records, 100 %"):
        assert f"execution {execution_id}: {progress}" in printed


# The task that starts the batch may have been cleared: the next attempt reads the id anew.
ATTEMPTS = [(1, NoBatchError), (2, AirflowFailException)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("attempt", "wanted"), ATTEMPTS)
def test_a_batch_that_is_gone_fails_the_attempt(
    context: Any, mode: str, attempt: int, wanted: type[Exception]
) -> None:
    context["ti"].try_number = attempt
    with pytest.raises(wanted, match="(?i)404 execution not found"):
        run_to_its_end(lambda: sensor_for("never-there", mode), context)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("found", [None, "None", ""])
@pytest.mark.parametrize(("attempt", "wanted"), ATTEMPTS)
def test_a_batch_that_is_not_started_fails_the_attempt(
    context: Any, mode: str, found: Any, attempt: int, wanted: type[Exception]
) -> None:
    """A score task that is being cleared, or that had nothing to score, hands on no id."""
    context["ti"].try_number = attempt
    told = f"execution_id: found {found!r}, expected the id .* on_empty='succeed'"
    with pytest.raises(wanted, match=told):
        run_to_its_end(lambda: sensor_for(found, mode), context)


def test_a_retry_finds_the_batch_of_the_cleared_task(hook: MLBatchHook, context: Any) -> None:
    """As Airflow does it: each attempt renders the id anew."""

    def attempt() -> Any:
        sensor = sensor_for("{{ ti.xcom_pull('score') }}", "poke")
        sensor.render_template_fields(context)
        return sensor.execute(context)

    with pytest.raises(NoBatchError, match="found 'None'"):
        attempt()
    context["ti"].pushed["return_value"] = "the batch of before"
    with pytest.raises(NoBatchError, match="(?i)404 execution not found"):
        attempt()
    context["ti"].pushed["return_value"] = hook.start_batch("slow", "1", {"x": [1], "seconds": [0]})
    assert attempt()["state"] == "complete"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("found", [["a", "b"], "['a', 'b']", {"id": "a"}, True, 1.5, " "])
def test_what_is_no_id_fails_at_once(context: Any, mode: str, found: Any) -> None:
    with pytest.raises(AirflowFailException, match="expected the id of one batch as text"):
        run_to_its_end(lambda: sensor_for(found, mode), context)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_that_goes_while_watched_fails(hook: MLBatchHook, context: Any, mode: str) -> None:
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [600]})
    made = 0

    def make() -> BatchStateSensor:
        nonlocal made
        made += 1
        if made == 2:
            hook.cancel_batch("slow", "1", execution_id)
        return sensor_for(execution_id, mode)

    if mode == "reschedule":
        with pytest.raises(NoBatchError, match=execution_id):
            run_to_its_end(make, context)
        return
    # The others watch within one object: the server loses the batch behind their backs.
    timer = threading.Timer(0.3, hook.cancel_batch, ("slow", "1", execution_id))
    timer.start()
    with pytest.raises(NoBatchError, match=execution_id):
        run_to_its_end(lambda: sensor_for(execution_id, mode), context)
    timer.join()


POLICIES = [None, "soft_fail", "never_fail", "silent_fail"]


def skips(policy: str | None) -> bool:
    return policy in ("soft_fail", "never_fail")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", MODES)
def test_timeout(hook: MLBatchHook, context: Any, mode: str, policy: str | None) -> None:
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [600]})
    arguments: dict[str, Any] = {policy: True} if policy else {}
    with pytest.raises(AirflowSkipException if skips(policy) else AirflowSensorTimeout) as raised:
        run_to_its_end(
            lambda: sensor_for(execution_id, mode, timeout=0.3, retries=1, **arguments), context
        )
    told: BaseException | None = raised.value
    while isinstance(told, AirflowSkipException):
        told = told.__cause__
    assert "is not complete at the deadline: 0 of 1 records, 0 %" in str(told)
    assert execution_id in hook.list_batch_executions("slow", "1"), "a sensor cancels nothing"
    hook.cancel_batch("slow", "1", execution_id)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", MODES)
def test_a_batch_that_is_gone_is_judged_by_the_policy(
    context: Any, mode: str, policy: str | None
) -> None:
    arguments: dict[str, Any] = {policy: True} if policy else {}
    # While another attempt can come, soft_fail waits for it, as with every error that may pass.
    ends = {"never_fail": AirflowSkipException, "silent_fail": AirflowFailException}
    with pytest.raises(ends.get(policy or "", NoBatchError)):
        run_to_its_end(lambda: sensor_for("never-there", mode, **arguments), context)
    context["ti"].try_number = context["ti"].max_tries + 1
    with pytest.raises(AirflowSkipException if skips(policy) else AirflowFailException):
        run_to_its_end(lambda: sensor_for("never-there", mode, **arguments), context)


@contextlib.contextmanager
def dies_at_its_second_poll(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The process is interrupted while its second poll is on the wire, if there is one."""
    over = threading.Event()
    with scoring_proxy(server.url) as proxy, monkeypatch.context() as through_proxy:
        connection = connection_to(server).replace(server.url.rpartition(":")[2], str(proxy.port))
        through_proxy.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection)
        proxy.hold("GET", "/batch/", "request").forward()
        second = proxy.hold("GET", "/batch/", "request")

        def kill() -> None:
            while not second.has_come:
                if over.wait(0.01):
                    return
            os.kill(os.getpid(), signal.SIGINT)
            second.drop()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        try:
            yield
        finally:
            over.set()
            killer.join()


@pytest.mark.parametrize("mode", MODES)
def test_a_retry_goes_on_with_the_time_of_the_first_attempt(
    hook: MLBatchHook,
    context: Any,
    mode: str,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context["ti"].max_tries = 3
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [600]})
    late: list[str] = []

    def attempt(timeout: float) -> None:
        sensor = sensor_for(execution_id, mode, timeout=timeout, retries=3)
        try:
            with dies_at_its_second_poll(server, monkeypatch):
                sensor.execute(context)
        except AirflowSensorTimeout as error:
            late.append(str(error))
        except TaskDeferred as deferred:
            if deferred.trigger.deadline <= time.time():
                late.append("the trigger has no time left")
        except (AirflowRescheduleException, KeyboardInterrupt):
            pass

    attempt(timeout=600)
    assert not late
    time.sleep(0.05)
    attempt(timeout=0.05)
    assert len(late) == 1
    context["ti"].max_tries = 7  # somebody has cleared the task
    attempt(timeout=600)
    attempt(timeout=600)
    assert len(late) == 1
    assert context["task_state_store"].get("mlbatch_waiting_since")["max_tries"] == 7
    hook.cancel_batch("slow", "1", execution_id)


@pytest.mark.parametrize("mode", MODES)
def test_success_forgets_when_it_began(hook: MLBatchHook, context: Any, mode: str) -> None:
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [0.2]})
    run_to_its_end(lambda: sensor_for(execution_id, mode, retries=1), context)
    assert context["task_state_store"].texts == {}


@pytest.mark.parametrize("cancel_on_kill", [False, True])
def test_execution_timeout_while_deferred(
    hook: MLBatchHook, context: Any, cancel_on_kill: bool
) -> None:
    """As on a worker: the attempt is over, not the wait, and only who asked for it loses the batch."""
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [600]})
    with pytest.raises(AirflowException, match="execution_timeout: .* 0 of 1") as raised:
        run_to_its_end(
            lambda: sensor_for(
                execution_id,
                "deferrable",
                execution_timeout=timedelta(seconds=0.3),
                cancel_on_kill=cancel_on_kill,
            ),
            context,
        )
    assert not isinstance(raised.value, (AirflowFailException, AirflowSensorTimeout))
    is_there = execution_id in hook.list_batch_executions("slow", "1")
    assert is_there is not cancel_on_kill
    hook.cancel_batch("slow", "1", execution_id)


@pytest.mark.parametrize("seconds", [0, 60])
@pytest.mark.parametrize("soft_fail", [False, True])
def test_where_no_triggerer_kept_the_deadline_there_is_one_last_poll(
    hook: MLBatchHook, context: Any, soft_fail: bool, seconds: float
) -> None:
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [seconds]})
    sensor = sensor_for(execution_id, "deferrable", soft_fail=soft_fail)
    out_of_time = (TRIGGER_FAIL_REPR, {"error": TriggerFailureReason.TRIGGER_TIMEOUT.value})
    if seconds:
        wanted = AirflowSkipException if soft_fail else AirflowSensorTimeout
        with pytest.raises(wanted) as raised:
            sensor.resume_execution(*out_of_time, context)
        told = raised.value.__cause__ if soft_fail else raised.value
        assert "is not complete at the deadline: 0 of 1" in str(told)
    else:
        hook.watch_batch("slow", "1", execution_id, poll_interval=0.05)
        assert sensor.resume_execution(*out_of_time, context)["state"] == "complete"
    hook.cancel_batch("slow", "1", execution_id)


@pytest.mark.parametrize("error", [ConnectionLostError("reset"), ExecutionNotFoundError("gone")])
def test_the_link_stays_where_a_deferred_wait_fails(context: Any, error: MLBatchError) -> None:
    """Airflow stores it again at the end of each segment, with the operator that ran last."""
    sensor = sensor_for("some-id", "deferrable")
    with pytest.raises((MLBatchError, AirflowException)):
        sensor.execute_complete(context, event_of("some-id", error))
    assert sensor.linked_execution_id == "some-id"


def test_the_deferral_has_its_deadline_in_the_trigger(hook: MLBatchHook, context: Any) -> None:
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [600]})
    before = time.time()
    with pytest.raises(TaskDeferred) as deferred:
        sensor_for(execution_id, "deferrable", timeout=600).execute(context)
    trigger = deferred.value.trigger
    assert before + 600 <= trigger.deadline <= time.time() + 600
    assert deferred.value.timeout > timedelta(seconds=600)
    assert "password" not in repr(trigger)
    password = hook.get_connection("mlbatch_default").password
    assert password and password not in repr(trigger)
    hook.cancel_batch("slow", "1", execution_id)


@pytest.fixture(scope="module")
def server_of_a_failed_batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that has forgotten a service while a batch of it was under way."""
    folder = tmp_path_factory.mktemp("failed")
    with running_server("--services", str(SERVICES), data_dir=folder / "data") as server:
        api = Api(server.url)
        api.start("slow", [{"x": 1, "seconds": 60}])
        server.kill()
    with running_server("--demo", "--workers", "1", data_dir=folder / "data") as server:
        yield server


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_that_failed_fails_the_task_with_the_servers_message(
    server_of_a_failed_batch: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    context: Any,
    mode: str,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server_of_a_failed_batch))
    (execution_id,) = MLBatchHook().list_batch_executions("slow", "1")
    told = r"1 of 1 records, 100 %: service 'slow' .* is no longer published on this server$"
    with pytest.raises(AirflowFailException, match=told):
        run_to_its_end(lambda: sensor_for(execution_id, mode), context)


@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_batch_that_failed_while_the_sensor_was_deferred(context: Any, soft_fail: bool) -> None:
    """As the first poll has it; soft_fail is judged by Airflow, which shows the cause."""
    failed = BatchStatus(BatchState.FAILED, 3, 5, "no such model")
    event = json.loads(json.dumps(event_of("some-id", failed)))
    sensor = sensor_for("some-id", "deferrable", soft_fail=soft_fail)
    wanted = AirflowSkipException if soft_fail else AirflowFailException
    with pytest.raises(wanted) as caught:
        sensor.resume_execution("execute_complete", {"event": event}, context)
    told = caught.value.__cause__ if soft_fail else caught.value
    assert str(told) == (
        "execution some-id failed on the server after 3 of 5 records, 60 %: no such model"
    )


@pytest.mark.parametrize(
    "event",
    [
        None,
        {},
        {"status": "done"},
        {"status": "done", "execution_id": "1", "state": "inProgress"},
        {"status": "splendid", "execution_id": "1"},
        {"status": "done", "execution_id": "1", "state": "complete", "completed_item_count": None},
    ],
)
def test_an_event_that_makes_no_sense_fails_the_task(context: Any, event: Any) -> None:
    with pytest.raises(ContractError, match="trigger event"):
        sensor_for("1", "deferrable").execute_complete(context, event)


@pytest.mark.parametrize("is_over", [False, True])
def test_an_event_about_another_batch_is_no_answer(
    hook: MLBatchHook,
    context: Any,
    capfd: pytest.CaptureFixture[str],
    is_over: bool,
) -> None:
    """Airflow keeps the event of a task that is cleared while it is resumed."""
    new = hook.start_batch("slow", "1", {"x": [1], "seconds": [0 if is_over else 600]})
    old = event_of("some-id", BatchStatus(BatchState.COMPLETE, 7, 7))
    sensor = sensor_for(new, "deferrable")
    if is_over:
        hook.watch_batch("slow", "1", new, poll_interval=0.05)
        found = sensor.resume_execution("execute_complete", {"event": old}, context)
        assert (found["execution_id"], found["total_item_count"]) == (new, 1)
    else:
        with pytest.raises(TaskDeferred) as deferred:
            sensor.resume_execution("execute_complete", {"event": old}, context)
        assert deferred.value.trigger.execution_id == new
        hook.cancel_batch("slow", "1", new)
    assert f"watched execution some-id, and this task waits for {new}" in capfd.readouterr().out


@pytest.mark.parametrize("policy", [None, "soft_fail", "never_fail"])
@pytest.mark.parametrize("mode", ["poke", "deferrable"])
def test_a_passing_problem_is_retried_by_airflow_in_every_mode(
    context: Any, mode: str, policy: str | None
) -> None:
    arguments: dict[str, Any] = {policy: True} if policy else {}
    sensor = sensor_for("some-id", mode, **arguments)
    lost = ConnectionLostError("connection refused")
    with pytest.raises(AirflowSkipException if policy == "never_fail" else ConnectionLostError):
        if mode == "deferrable":
            event = event_of("some-id", lost)
            sensor.resume_execution("execute_complete", {"event": event}, context)
        else:
            sensor.hook.get_batch_status = _raiser(lost)  # type: ignore[method-assign]
            sensor.hook.poll_batch = _raiser(lost)  # type: ignore[method-assign]
            sensor.execute(context)


def test_silent_fail_goes_on_waiting_until_the_deadline(hook: MLBatchHook, context: Any) -> None:
    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [600]})
    with pytest.raises(TaskDeferred) as first:
        sensor_for(execution_id, "deferrable", silent_fail=True).execute(context)
    event = event_of(execution_id, ConnectionLostError("connection refused"))
    for kwargs in (first.value.kwargs, {}):  # `dag.test()` loses them
        with pytest.raises(TaskDeferred) as again:
            sensor_for(execution_id, "deferrable", silent_fail=True).resume_execution(
                "execute_complete", {**(kwargs or {}), "event": event}, context
            )
        assert again.value.trigger.execution_id == execution_id
        if kwargs:
            assert again.value.trigger.deadline == first.value.trigger.deadline
    hook.cancel_batch("slow", "1", execution_id)


def _raiser(error: Exception) -> Callable[..., Any]:
    def raise_it(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raise_it


def test_triggers_of_one_process_share_a_login(hook: MLBatchHook) -> None:
    from airflow_mlbatch.hooks import async_session

    ids = [hook.start_batch("slow", "1", {"x": [1], "seconds": [0.3]}) for _ in range(20)]
    sessions = set()

    async def run_all() -> list[Any]:
        async def one(execution_id: str) -> Any:
            trigger = BatchStateTrigger(
                service_name="slow",
                service_version="1",
                execution_id=execution_id,
                poll_interval=0.1,
            )
            try:
                async for event in trigger.run():
                    sessions.add(id(trigger._session))
                    return event.payload
            finally:
                await trigger.cleanup()

        return await asyncio.gather(*map(one, ids))

    events = asyncio.run(run_all())
    assert [event["state"] for event in events] == ["complete"] * 20
    assert len(sessions) == 1
    assert not async_session._sessions, "the last one closes the session"


def test_a_trigger_without_its_connection_sends_an_event() -> None:
    os.environ.pop("AIRFLOW_CONN_NOWHERE", None)
    event = fire(BatchStateTrigger(execution_id="1", mlbatch_conn_id="nowhere"))
    assert event.payload["status"] == "error"
    assert event.payload["is_permanent"] is True
    assert "connection 'nowhere': found none of this id" in event.payload["message"]


@pytest.mark.parametrize(
    ("cancel_on_kill", "state", "is_cancelled"),
    [
        (False, "failed", False),
        (True, "failed", True),
        (True, "success", True),
        # The trigger moves to another triggerer (apache/airflow#73454), or the task was cleared.
        (True, "deferred", False),
        (True, None, False),
    ],
)
def test_a_killed_trigger_cancels_what_has_ended(
    hook: MLBatchHook,
    cancel_on_kill: bool,
    state: str | None,
    is_cancelled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What Airflow would answer.
    monkeypatch.setattr(
        RuntimeTaskInstance, "get_task_states", lambda **asked: {"run": {"task": state}}
    )

    async def kill(execution_id: str) -> None:
        trigger = BatchStateTrigger(
            "slow", "1", execution_id, poll_interval=60, cancel_on_kill=cancel_on_kill
        )
        ids = {"dag_id": "dag", "run_id": "run", "task_id": "task", "map_index": -1}
        monkeypatch.setattr(trigger, "task_instance", SimpleNamespace(**ids), raising=False)
        await trigger.on_kill()
        await trigger.cleanup()

    execution_id = hook.start_batch("slow", "1", {"x": [1], "seconds": [600]})
    asyncio.run(kill(execution_id))
    assert (execution_id not in hook.list_batch_executions("slow", "1")) is is_cancelled
    hook.cancel_batch("slow", "1", execution_id)
    # The results of a batch that is over are left alone, and one that is gone is no problem.
    over = hook.start_batch("slow", "1", {"x": [1], "seconds": [0]})
    hook.watch_batch("slow", "1", over, poll_interval=0.05)
    asyncio.run(kill(over))
    assert hook.get_batch_results("slow", "1", over)[0].outputs == {"y": 1.0}
    hook.cancel_batch("slow", "1", over)
    asyncio.run(kill(over))
