"""One execution for one task: with a server that knows idempotency keys, and with one like the vendor's.

A worker dies on the wire here: a proxy stops its request or the reply, interrupts this process, and
drops the line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)
from airflow.sdk import DAG

from airflow_mlbatch.errors import (
    SubmissionStoppedError,
    SubmissionUndecidedError,
    SubmissionUnknownError,
)
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import event_of
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.operators import BatchDeleteOperator, BatchScoreOperator
from airflow_mlbatch.operators.decorated import mlbatch_task
from airflow_mlbatch.protocol import submission
from airflow_mlbatch.protocol.submission import NOTE_KEY, is_being_cancelled, mark_cancelling
from tests.provider.airflow_side import FakeStateStore, FakeTaskInstance
from tests.provider.conftest import SERVICES, connection_to
from tests.server_process import RunningServer, running_server
from tests.system.scoring_proxy import Held, ScoringProxy, scoring_proxy

Kind = Literal["keys", "plain"]
START = r"/batch(\?|$)"


class Clock:
    """A clock that sleeping moves on, so that nobody waits."""

    def __init__(self) -> None:
        self.now = time.time()
        self.slept = 0.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.fixture(scope="session")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that knows no idempotency keys, like the vendor's."""
    folder = tmp_path_factory.mktemp("plain-server")
    markers = folder / "markers"
    markers.mkdir()
    with running_server(
        *("--services", str(SERVICES), "--without-idempotency-keys"),
        data_dir=folder / "data",
        env={"MLBATCH_TEST_MARKERS": str(markers)},
    ) as running:
        yield running


@dataclass
class Side:
    """The server of a test, and the wire to it."""

    kind: Kind
    proxy: ScoringProxy
    markers: Path
    hook: MLBatchHook

    def executions(self, service: str = "double") -> set[str]:
        return set(self.hook.list_batch_executions(service, "1"))

    def deletes(self) -> list[str]:
        return [passed.path.rpartition("/")[2] for passed in self.proxy.passed("DELETE", "/batch/")]

    def posts(self) -> int:
        return len(self.proxy.passed("POST", START))

    def results(self, execution_id: str | None, service: str = "double") -> list[Any]:
        assert execution_id is not None
        self.hook.watch_batch(service, "1", execution_id, poll_interval=0.05)
        found = self.hook.get_batch_results(service, "1", execution_id)
        return [record.outputs["y"] for record in found]


def side_of(kind: Kind, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    with scoring_proxy(server.url) as proxy:
        connection = connection_to(server).replace(server.url.rpartition(":")[2], str(proxy.port))
        monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection)
        monkeypatch.setenv("AIRFLOW_CONN_DIRECT", connection_to(server))
        hook = MLBatchHook("direct")
        yield Side(kind, proxy, server.data_dir.with_name("markers"), hook)
        hook.close()


@pytest.fixture(params=["keys", "plain"])
def side(
    request: pytest.FixtureRequest,
    server: RunningServer,
    plain_server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Side]:
    """Both kinds of servers."""
    running = server if request.param == "keys" else plain_server
    yield from side_of(request.param, running, monkeypatch)


@pytest.fixture
def keyed(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    yield from side_of("keys", server, monkeypatch)


@pytest.fixture
def plain(plain_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Side]:
    yield from side_of("plain", plain_server, monkeypatch)


class Task:
    """One task of a run, over its attempts."""

    def __init__(self, run_id: str = "run", **arguments: Any) -> None:
        self.ti = FakeTaskInstance()
        self.ti.run_id = run_id
        self.store: FakeStateStore | None = FakeStateStore()
        self.clock = Clock()
        self.arguments: dict[str, Any] = {
            "service_name": "double",
            "service_version": "1",
            "records": [{"x": 1}, {"x": 2}, {"x": 3}],
            **arguments,
        }

    @property
    def context(self) -> Any:
        found: dict[str, Any] = {"ti": self.ti}
        return found if self.store is None else {**found, "task_state_store": self.store}

    @property
    def note(self) -> dict[str, Any]:
        assert self.store is not None
        note: dict[str, Any] = self.store.get(NOTE_KEY)
        return note

    def operator(self, **arguments: Any) -> BatchScoreOperator:
        operator = BatchScoreOperator(
            task_id="task", poll_interval=0.05, **{**self.arguments, **arguments}
        )
        operator.timing = Timing(clock=self.clock.time, sleep=self.clock.sleep)
        return operator

    def attempt(self, **arguments: Any) -> str | None:
        """Run the task once more, as Airflow does: what it pushed before is wiped."""
        self.ti.pushed.clear()
        return self.operator(**arguments).execute(self.context)

    def is_cleared(self) -> None:
        """A user clears the task when it has ended or is deferred."""
        self.ti.max_tries += 1

    def dies(self, side: Side, at: Literal["request", "reply"], **arguments: Any) -> None:
        """An attempt whose worker dies before its start request arrives, or after it has."""
        with died(side, "POST", START, at):
            self.attempt(**arguments)


@contextlib.contextmanager
def died(side: Side, method: str, pattern: str, at: Literal["request", "reply"]) -> Iterator[None]:
    """The process dies when a request, or the reply to it, is on the wire."""
    held = side.proxy.hold(method, pattern, at)

    def kill() -> None:
        held.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        held.drop()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    killer.join()


# --- one execution ---------------------------------------------------------------------------------


def test_a_worker_dies_before_its_request_arrives(side: Side) -> None:
    task, before = Task(), side.executions()
    task.dies(side, "request")
    assert side.executions() == before
    ours = task.attempt()
    assert side.executions() - before == {ours}
    assert side.results(ours) == [2, 4, 6]


def test_a_worker_dies_before_the_reply_arrives(side: Side) -> None:
    task, before = Task(), side.executions()
    task.dies(side, "reply")
    (ours,) = side.executions() - before
    assert task.attempt() == ours
    assert side.executions() - before == {ours}


def test_the_reply_is_lost(side: Side) -> None:
    task, before = Task(), side.executions()
    held = side.proxy.hold("POST", START, "reply")
    threading.Thread(target=lambda: (held.wait(60), held.drop()), daemon=True).start()
    ours = task.attempt()
    assert side.executions() - before == {ours}


def test_the_batch_of_another_run_is_not_taken(side: Side) -> None:
    """Both tables have equally many records, and the other batch is the only new one."""
    ours, theirs = Task("a"), Task("b", records=[{"x": 7}, {"x": 8}, {"x": 9}])
    ours.dies(side, "request")
    other = theirs.attempt()
    assert side.results(other) == [14, 16, 18]
    mine = ours.attempt()
    assert mine != other
    assert side.results(mine) == [2, 4, 6]


def test_among_those_of_other_runs_ours_is_found(side: Side) -> None:
    ours, theirs = Task("a"), Task("b", records=[{"x": 7}, {"x": 8}, {"x": 9}])
    before = side.executions()
    ours.dies(side, "reply")
    (mine,) = side.executions() - before
    other = theirs.attempt()
    side.results(other)
    assert ours.attempt() == mine
    assert side.executions() - before == {mine, other}


def test_the_tasks_of_a_run_with_equal_records_have_a_batch_each(keyed: Side) -> None:
    first, second = Task(), Task()
    second.ti.task_id = "other"
    assert first.attempt() != second.attempt()


def test_a_request_that_arrives_late(keyed: Side) -> None:
    """Its worker is long dead, and the next attempt has started the batch."""
    task, before = Task(), keyed.executions()
    held = keyed.proxy.hold("POST", START, "request")

    def kill() -> None:
        held.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        task.attempt()
    ours = task.attempt()
    arrived = len(keyed.proxy.passed("POST", START))
    held.forward()
    eventually(lambda: len(keyed.proxy.passed("POST", START)) > arrived)
    assert keyed.executions() - before == {ours}


def eventually(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not happen within a minute")


# --- the end of a task -------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
def test_airflow_does_not_learn_of_the_success(side: Side, waits: bool) -> None:
    """The worker dies between the end of execute() and Airflow's record of it."""
    task = Task(wait_for_completion=waits)
    first = task.attempt()
    assert task.attempt() == first
    assert side.posts() == 1


def test_a_cleared_task_scores_again(side: Side) -> None:
    task = Task()
    first = task.attempt()
    task.is_cleared()
    second = task.attempt()
    assert second != first
    assert {first, second} <= side.executions()
    assert side.deletes() == []


def test_the_note_stays_small(side: Side) -> None:
    task = Task()
    for _ in range(3):
        task.attempt()
        task.is_cleared()
    assert task.store is not None
    assert set(task.store.texts) == {NOTE_KEY}
    assert len(task.store.texts[NOTE_KEY]) < 1000
    assert task.note["state"] == "done"


@pytest.mark.parametrize("cancels", [True, False])
def test_a_task_is_cleared_while_it_is_deferred(side: Side, cancels: bool) -> None:
    task = slow_task(deferrable=True, cancel_on_kill=cancels)
    with pytest.raises(TaskDeferred) as deferred:
        task.attempt()
    old = deferred.value.trigger.execution_id
    task.is_cleared()
    new = task.attempt(wait_for_completion=False)
    assert new not in (None, old)
    assert (old in side.executions("slow")) is not cancels
    assert side.deletes() == ([old] if cancels else [])


def test_a_task_that_is_cleared_while_it_is_resumed_scores_again(side: Side) -> None:
    """Airflow runs it again with the event of the old batch."""
    task = slow_task(deferrable=True)
    task.arguments["records"] = [{"x": 1, "seconds": 1}]
    with pytest.raises(TaskDeferred) as deferred:
        task.attempt()
    old = deferred.value.trigger.execution_id
    event = event_of(old, side.hook.watch_batch("slow", "1", old, poll_interval=0.05))
    kwargs = {"event": event, **(deferred.value.kwargs or {})}
    assert task.operator().execute_complete(task.context, **kwargs) == old
    task.is_cleared()
    with pytest.raises(TaskDeferred) as again:
        task.operator().execute_complete(task.context, **kwargs)
    assert again.value.trigger.execution_id != old
    assert side.posts() == 2
    assert side.deletes() == []


def test_a_task_is_cleared_and_its_batch_is_cancelled_already(side: Side) -> None:
    task = slow_task(deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.attempt()
    old = deferred.value.trigger.execution_id
    side.hook.cancel_batch("slow", "1", old)
    task.is_cleared()
    assert task.attempt(wait_for_completion=False) != old
    assert side.deletes() == []


@pytest.mark.parametrize("at", ["request", "reply"])
def test_a_task_is_cleared_around_its_request(side: Side, at: Any) -> None:
    """The kill handler could only leave its note: there was no id yet."""
    task, before = Task(), side.executions()
    task.dies(side, at)
    assert task.store is not None
    mark_cancelling(task.store)
    old = side.executions() - before
    new = task.attempt()
    assert side.executions() - before == {new}
    assert set(side.deletes()) == old


@pytest.fixture(autouse=True)
def nothing_goes_on(server: RunningServer) -> Iterator[None]:
    """No batch keeps a server busy after its test."""
    yield
    for conn_id in ("direct",):
        if f"AIRFLOW_CONN_{conn_id.upper()}" in os.environ:
            hook = MLBatchHook(conn_id)
            for execution_id in hook.list_batch_executions("slow", "1"):
                hook.cancel_batch("slow", "1", execution_id)
            hook.close()


def slow_task(**arguments: Any) -> Task:
    """A task whose batch does not end."""
    return Task(
        service_name="slow",
        records=[{"x": 1, "seconds": 60}],
        **{"wait_for_completion": True, **arguments},
    )


# --- changed records ---------------------------------------------------------------------------------


def left_running(task: Task, side: Side) -> str:
    """The worker dies while it waits; returns the id of its batch."""
    with died(side, "GET", "/batch/", "reply"):
        task.attempt()
    execution_id: str = task.note["execution_id"]
    return execution_id


def test_a_retry_takes_over_what_runs(side: Side) -> None:
    task = slow_task()
    old = left_running(task, side)
    assert task.attempt(wait_for_completion=False) == old
    assert side.posts() == 1


@pytest.mark.parametrize("cancels", [True, False])
def test_other_records_are_another_batch(side: Side, cancels: bool) -> None:
    task = slow_task(cancel_on_kill=cancels)
    old = left_running(task, side)
    new = task.attempt(records=[{"x": 2, "seconds": 0}])
    assert new not in (None, old)
    assert (old in side.executions("slow")) is not cancels


@pytest.mark.parametrize("cancels", [True, False])
def test_an_emptied_table_has_other_records_too(side: Side, cancels: bool) -> None:
    task = slow_task(cancel_on_kill=cancels)
    old = left_running(task, side)
    with pytest.raises(AirflowSkipException):
        task.attempt(records=[])
    assert (old in side.executions("slow")) is not cancels
    assert task.store is not None
    assert task.store.texts == {}


def test_other_records_are_scored_although_the_old_service_is_gone(side: Side) -> None:
    """The new version of a Dag scores with a new version of the service."""
    task = slow_task()
    left_running(task, side)
    assert task.store is not None
    task.store.set(NOTE_KEY, {**task.note, "service_version": "0"})
    assert task.attempt(records=[{"x": 1, "seconds": 0}]) is not None


def test_a_batch_that_was_deleted_is_started_again(side: Side) -> None:
    task = slow_task()
    old = left_running(task, side)
    side.hook.cancel_batch("slow", "1", old)
    new = task.attempt(wait_for_completion=False)
    assert new != old
    assert new in side.executions("slow")


# --- without a task state store ------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_keys_need_no_store(keyed: Side, durable: bool) -> None:
    task, before = Task(durable=durable), keyed.executions()
    if durable:
        task.store = None  # as with Airflow before 3.3
    task.dies(keyed, "reply")
    ours = task.attempt()
    assert task.attempt() == ours
    assert keyed.executions() - before == {ours}


def test_without_keys_and_store_a_retry_starts_again(plain: Side) -> None:
    task, before = Task(), plain.executions()
    task.store = None
    task.dies(plain, "reply")
    (first,) = plain.executions() - before
    assert task.attempt() != first


def test_a_lost_reply_needs_no_store(plain: Side) -> None:
    task, before = Task(), plain.executions()
    task.store = None
    held = plain.proxy.hold("POST", START, "reply")
    threading.Thread(target=lambda: (held.wait(60), held.drop()), daemon=True).start()
    ours = task.attempt()
    assert plain.executions() - before == {ours}


# --- what cannot be proved -----------------------------------------------------------------------------


# More than are compared.
MANY = [{"x": x} for x in range(60)]


def ambiguous(side: Side, service: str, **arguments: Any) -> tuple[Task, str]:
    """A task whose request was lost, and the batch of somebody else that could be its own."""
    task = Task(service_name=service, records=MANY, **arguments)
    task.dies(side, "request")
    other = side.hook.start_batch(service, "1", MANY)
    side.hook.watch_batch(service, "1", other, poll_interval=0.05)
    return task, other


UNPROVABLE: list[Any] = [
    ("constant", {}, "results of our records do not differ"),
    ("dice", {}, "two different results"),
    ("double", {"recognise_by_scoring": False}, "must not be called"),
]


@pytest.mark.parametrize(("service", "arguments", "reason"), UNPROVABLE)
def test_what_nothing_can_prove_fails(
    plain: Side, service: str, arguments: dict[str, Any], reason: str
) -> None:
    task, other = ambiguous(plain, service, **arguments)
    with pytest.raises(AirflowFailException, match=reason) as raised:
        task.attempt()
    assert other in str(raised.value)
    assert "on_ambiguous_submission='resubmit'" in str(raised.value)


@pytest.mark.parametrize(("service", "arguments", "reason"), UNPROVABLE)
def test_what_nothing_can_prove_is_started_again_on_request(
    plain: Side, service: str, arguments: dict[str, Any], reason: str
) -> None:
    task, other = ambiguous(plain, service, **arguments)
    new = task.attempt(on_ambiguous_submission="resubmit")
    assert new not in (None, other)


def test_resubmit_holds_within_an_attempt(plain: Side) -> None:
    task = Task(service_name="constant", records=MANY, on_ambiguous_submission="resubmit")
    held = plain.proxy.hold("POST", START, "request")
    others: list[str] = []

    def lose() -> None:
        held.wait(60)
        others.append(plain.hook.start_batch("constant", "1", [{"x": 9}] * len(MANY)))
        plain.hook.watch_batch("constant", "1", others[0], poll_interval=0.05)
        held.drop()

    threading.Thread(target=lose, daemon=True).start()
    assert task.attempt() not in (None, *others)


def test_an_equal_table_is_as_good_as_ours(plain: Side) -> None:
    """Its results are those of our records, whoever started it."""
    task = Task()
    task.dies(plain, "request")
    other = plain.hook.start_batch("double", "1", [{"x": 1}, {"x": 2}, {"x": 3}])
    plain.hook.watch_batch("double", "1", other, poll_interval=0.05)
    assert task.attempt() == other


def test_what_time_can_decide_is_left_to_a_retry(plain: Side) -> None:
    gate = "nothing is completed yet"
    records = [{"gate": gate, "x": x} for x in (1, 2, 3)]
    task = Task(service_name="gated", records=records)
    before = plain.executions("gated")
    task.dies(plain, "reply")
    (ours,) = plain.executions("gated") - before
    with pytest.raises(SubmissionUndecidedError, match="none of its records is completed yet"):
        task.attempt()
    (plain.markers / gate).touch()
    plain.hook.watch_batch("gated", "1", ours, poll_interval=0.05)
    assert task.attempt() == ours


def test_a_batch_recognised_by_its_first_results_is_compared_once_more(plain: Side) -> None:
    """The first records are the same, the last ones are not."""
    gate = "the rest of the table"
    ours = [{"gate": None, "x": x} for x in range(8)] + [
        {"gate": gate, "x": 100 + x} for x in range(8)
    ]
    theirs = [*ours[:8], *({"gate": gate, "x": 900 + x} for x in range(8))]
    task = Task(service_name="gated", records=ours, wait_for_completion=True)
    task.dies(plain, "request")
    other = plain.hook.start_batch("gated", "1", theirs, parallel_count=1)
    eventually(lambda: plain.hook.get_batch_status("gated", "1", other).completed_item_count == 8)
    # The comparison calls the service, and the records behind the gate would wait: it is opened when
    # the batch has been taken for ours.
    opener = threading.Thread(target=open_when_told, args=(plain, task, gate), daemon=True)
    opener.start()
    with pytest.raises(SubmissionUndecidedError, match="its results are not used"):
        task.attempt()
    mine = task.attempt(wait_for_completion=False)
    assert mine != other
    assert plain.results(mine, "gated") == [each["x"] for each in ours]


def test_a_function_is_called_by_attempts_and_not_by_what_resumes_them(plain: Side) -> None:
    """Its records are gone by then. So a batch that has to be compared with them is not waited for
    in the triggerer."""
    gate = "what the function returns"
    ours = [{"gate": None, "x": x} for x in range(8)] + [{"gate": gate, "x": x} for x in range(8)]
    task, calls = Task(service_name="gated", deferrable=True, parallel_count=1), []

    def records() -> list[dict[str, Any]]:
        calls.append(1)
        return ours

    def operator() -> Any:
        given = {name: each for name, each in task.arguments.items() if name != "records"}
        with DAG("dag", schedule=None):
            scoring: Any = mlbatch_task(records, task_id="task", poll_interval=0.05, **given)
            found = scoring().operator
        found.timing = Timing(clock=task.clock.time, sleep=task.clock.sleep)
        return found

    with died(plain, "POST", START, "reply"):
        operator().execute(task.context)
    (known,) = [each for each in plain.executions("gated") if is_of_size(plain, each, 16)]
    eventually(lambda: plain.hook.get_batch_status("gated", "1", known).completed_item_count == 8)
    threading.Thread(target=open_when_told, args=(plain, task, gate), daemon=True).start()
    rows = operator().execute(task.context)
    assert [row["y"] for row in rows] == [each["x"] for each in ours]
    assert not task.note.get("is_proven", True)
    assert (len(calls), plain.posts()) == (2, 1)


def is_of_size(side: Side, execution_id: str, size: int) -> bool:
    status = side.hook.get_batch_status("gated", "1", execution_id)
    return not status.is_terminal and status.total_item_count == size


def open_when_told(side: Side, task: Task, gate: str) -> None:
    eventually(lambda: task.ti.pushed.get("mlbatch_execution_id"))
    (side.markers / gate).touch()


def test_any_number_of_executions_is_known(plain: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one key of the store cannot hold has keys of its own."""
    monkeypatch.setattr(submission, "_DIGESTS_OF_A_KEY", 2)
    for _ in range(7):
        plain.hook.start_batch("double", "1", [{"x": 9}] * 3)
    task, before = Task(), plain.executions()
    task.dies(plain, "reply")
    assert task.store is not None
    assert len(task.store.texts) > 3
    (ours,) = plain.executions() - before
    assert task.attempt() == ours
    assert set(task.store.texts) == {NOTE_KEY}


def test_no_new_execution_within_the_time_is_an_error_of_the_line(plain: Side) -> None:
    task = Task()
    held = plain.proxy.hold("POST", START, "request")
    threading.Thread(target=lambda: (held.wait(60), held.drop()), daemon=True).start()
    with pytest.raises(SubmissionUnknownError):
        task.attempt()
    assert task.clock.slept >= 30


# --- the tasks of one run ------------------------------------------------------------------------------


class Mapped(Task):
    """A mapped instance; what the instances of the run have told is shared."""

    def __init__(self, told: dict[int, dict[str, Any]], map_index: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ti.map_index = map_index
        self.ti.pushed = told.setdefault(map_index, {})
        self.ti.xcom_pull = lambda task_ids=None, key="return_value", **rest: [  # type: ignore[method-assign]
            keys[key] for keys in told.values() if key in keys
        ]


def test_what_another_task_of_the_run_claims_is_not_looked_at(plain: Side) -> None:
    told: dict[int, dict[str, Any]] = {}
    first = Mapped(told, 0, service_name="constant", records=MANY)
    second = Mapped(told, 1, service_name="constant", records=MANY)
    second.dies(plain, "request")
    theirs = first.attempt()
    ours = second.attempt()
    assert ours not in (None, theirs)


def test_a_task_that_has_not_spoken_yet_is_waited_for(plain: Side) -> None:
    """Both workers died, and one of the two requests has arrived; nothing proves whose it is."""
    told: dict[int, dict[str, Any]] = {}
    first = Mapped(told, 0, service_name="constant", records=MANY)
    second = Mapped(told, 1, service_name="constant", records=MANY)
    second.dies(plain, "request")
    first.dies(plain, "reply")
    for task in (second, first):
        with pytest.raises(SubmissionUndecidedError, match="1 other tasks of this run"):
            task.attempt()


# --- why a process is stopped ----------------------------------------------------------------------------

ENDED = ["failed", "success", "skipped", "removed", "upstream_failed", "restarting"]
GOES_ON = ["running", "queued", "scheduled", "up_for_retry", "deferred", None]


def killed(task: Task) -> BatchScoreOperator:
    """A running operator that has started its batch and is told to stop."""
    operator = task.operator(wait_for_completion=False)
    operator.execute(task.context)
    operator.on_kill()
    return operator


@pytest.mark.parametrize("state", ENDED)
def test_the_batch_of_a_task_that_has_ended_is_cancelled_once(keyed: Side, state: str) -> None:
    task = slow_task()
    task.ti.state = state
    operator = killed(task)
    operator.on_kill()
    assert keyed.deletes() == [operator.execution_id]


@pytest.mark.parametrize("state", ENDED)
def test_a_kill_leaves_the_results_of_a_complete_batch_alone(side: Side, state: str) -> None:
    task = Task(wait_for_completion=True)
    ours = task.attempt()
    task.ti.state = state
    operator = task.operator()
    assert operator.execute(task.context) == ours
    operator.on_kill()
    assert side.deletes() == []
    assert side.results(ours) == [2, 4, 6]


def test_a_server_that_does_not_say_how_far_a_batch_is_keeps_it(keyed: Side) -> None:
    """Its results could be complete by now."""
    task = slow_task()
    task.ti.state = "failed"
    operator = task.operator(wait_for_completion=False)
    operator.execute(task.context)
    held = keyed.proxy.hold("GET", "/batch/", "request")
    threading.Thread(target=lambda: (held.wait(60), held.drop()), daemon=True).start()
    operator.on_kill()
    assert held.has_come
    assert keyed.deletes() == []


@pytest.mark.parametrize("state", GOES_ON)
def test_the_batch_of_a_task_that_goes_on_is_left_to_its_next_attempt(
    keyed: Side, state: str | None
) -> None:
    task = slow_task()
    task.ti.state = state
    operator = killed(task)
    assert keyed.deletes() == []
    assert task.attempt(wait_for_completion=False) == operator.execution_id
    assert keyed.posts() == 1


def test_a_run_that_was_deleted_has_ended(keyed: Side) -> None:
    task = slow_task()
    task.ti.get_task_states = lambda **asked: {}  # type: ignore[method-assign]
    assert keyed.deletes() == []
    operator = killed(task)
    assert keyed.deletes() == [operator.execution_id]


@pytest.mark.parametrize("try_number", [1, 2])
def test_without_an_answer_the_batch_is_left_where_an_attempt_can_come(
    keyed: Side, try_number: int
) -> None:
    def no_answer(**asked: Any) -> Any:
        raise RuntimeError("the supervisor is gone")

    task = slow_task()
    task.ti.try_number, task.ti.max_tries = try_number, 1
    task.ti.get_task_states = no_answer  # type: ignore[method-assign]
    operator = killed(task)
    assert keyed.deletes() == ([] if try_number == 1 else [operator.execution_id])


def test_cancel_on_kill_can_be_opted_out_of(keyed: Side) -> None:
    task = slow_task(cancel_on_kill=False)
    task.ti.state = "failed"
    killed(task)
    assert keyed.deletes() == []


def test_a_kill_before_there_is_anything_to_cancel(keyed: Side) -> None:
    slow_task().operator().on_kill()
    assert keyed.deletes() == []


def test_killed_while_the_request_is_on_its_way(side: Side) -> None:
    """Whoever learns the id cancels it, and the task does not go on."""
    task = slow_task()
    task.ti.state = "failed"
    operator = task.operator()
    held = side.proxy.hold("POST", START, "reply")

    def kill() -> None:
        held.wait(60)
        operator.on_kill()
        held.forward()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(AirflowException, match="the task was killed and its batch") as raised:
        operator.execute(task.context)
    killer.join()
    assert not isinstance(raised.value, AirflowFailException)
    assert side.deletes() == [operator.execution_id]


def test_a_cancelled_batch_is_not_waited_for(keyed: Side) -> None:
    """Airflow lets the task run on after ``on_kill``: it finds its batch gone."""
    task = slow_task()
    operator = task.operator()
    held = keyed.proxy.hold("GET", "/batch/", "reply")

    def kill() -> None:
        held.wait(60)
        task.ti.state = "failed"
        operator.on_kill()
        held.forward()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(AirflowException, match="the task was killed and its batch"):
        operator.execute(task.context)
    assert keyed.deletes() == [operator.execution_id]
    assert task.store is not None
    assert is_being_cancelled(task.store)


def test_an_attempt_whose_batch_its_predecessor_cancelled_starts_another(side: Side) -> None:
    task = slow_task()
    old = left_running(task, side)
    held = side.proxy.hold("GET", f"{old}", "reply")

    def cancel() -> None:
        held.wait(60)
        assert task.store is not None
        mark_cancelling(task.store)
        side.hook.cancel_batch("slow", "1", old)
        held.forward()

    threading.Thread(target=cancel, daemon=True).start()
    operator = task.operator(deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(task.context)
    new = deferred.value.trigger.execution_id
    assert new != old
    assert new in side.executions("slow")


def test_a_batch_that_a_user_has_deleted_is_not_started_again(side: Side) -> None:
    task = slow_task()
    operator = task.operator()
    held = side.proxy.hold("GET", "/batch/", "reply")

    def delete() -> None:
        held.wait(60)
        side.hook.cancel_batch("slow", "1", task.note["execution_id"])
        held.forward()

    threading.Thread(target=delete, daemon=True).start()
    with pytest.raises(AirflowFailException, match="not found"):
        operator.execute(task.context)
    assert side.posts() == 1


@pytest.mark.parametrize("state", ["failed", "success", "restarting", "deferred", None])
def test_a_deferral_that_airflow_refuses_cancels_like_a_kill(
    keyed: Side, state: str | None
) -> None:
    task = slow_task(deferrable=True)
    operator = task.operator()
    with pytest.raises(TaskDeferred):
        operator.execute(task.context)
    task.ti.state = state
    # Airflow stores the links of a task at the end of each segment.
    (link,) = operator.operator_extra_links
    key: Any = task.ti
    link.get_link(operator, ti_key=key)
    is_cancelled = state in ("failed", "success", "restarting")
    assert keyed.deletes() == ([operator.execution_id] if is_cancelled else [])


def test_a_task_that_is_resumed_without_an_event_looks_for_its_batch(side: Side) -> None:
    task = slow_task(deferrable=True)
    with pytest.raises(TaskDeferred) as first:
        task.attempt()
    with pytest.raises(TaskDeferred) as second:
        task.operator().execute_complete(task.context, None)
    assert first.value.trigger.execution_id == second.value.trigger.execution_id
    assert side.posts() == 1


# --- a task that was told to stop starts nothing ----------------------------------------------------------


def told_to_stop(task: Task, at: Held, then: Literal["forward", "drop"]) -> None:
    """Run an attempt that is told to stop while a request of it, or the reply, is on the wire."""
    operator = task.operator()

    def stop() -> None:
        at.wait(60)
        operator.on_kill()
        at.forward() if then == "forward" else at.drop()

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    with pytest.raises(SubmissionStoppedError, match="told to stop"):
        operator.execute(task.context)
    stopper.join()


# What the user has ended, and what another worker may run at this moment.
FATES = ["failed", "restarting", "running", None]


@pytest.mark.parametrize("state", FATES)
@pytest.mark.parametrize("arguments", [{}, {"cancel_on_kill": False}, {"durable": False}])
def test_told_to_stop_before_it_has_started_a_batch(
    side: Side, state: str | None, arguments: dict[str, Any]
) -> None:
    task, before = Task(**arguments), side.executions()
    task.ti.state = state
    told_to_stop(task, side.proxy.hold("GET", r"/batch\?", "reply"), "forward")
    assert (side.posts(), side.executions()) == (0, before)
    assert side.deletes() == []


def test_told_to_stop_before_it_has_read_its_connection(side: Side) -> None:
    task = Task()
    operator = task.operator()
    operator.on_kill()
    with pytest.raises(SubmissionStoppedError):
        operator.execute(task.context)
    assert side.posts() == 0


@pytest.mark.parametrize("state", FATES)
def test_told_to_stop_while_it_looks_for_the_batch_of_the_attempt_before(
    plain: Side, state: str | None
) -> None:
    """The request of that attempt never arrived."""
    task, before = Task(), plain.executions()
    task.dies(plain, "request")
    task.ti.state, posts = state, plain.posts()
    told_to_stop(task, plain.proxy.hold("GET", "/batch$", "reply"), "forward")
    assert (plain.posts(), plain.executions()) == (posts, before)
    # Whoever comes next starts it.
    assert task.attempt() in plain.executions() - before


def test_told_to_stop_while_its_own_batch_appears(plain: Side) -> None:
    """The attempt that was marked as failed finds the batch of the one before, and cancels it."""
    gate = "the batch that was looked for"
    records = [*({"gate": None, "x": x} for x in range(4)), {"gate": gate, "x": 9}]
    task = Task(service_name="gated", records=records)
    before = plain.executions("gated")
    task.dies(plain, "reply")
    (ours,) = plain.executions("gated") - before
    eventually(lambda: plain.hook.get_batch_status("gated", "1", ours).completed_item_count == 4)
    task.ti.state = "failed"
    operator = task.operator()
    held = plain.proxy.hold("GET", "/batch$", "reply")
    threading.Thread(
        target=lambda: (held.wait(60), operator.on_kill(), held.forward()), daemon=True
    ).start()
    with pytest.raises(AirflowException, match="the task was killed and its batch"):
        operator.execute(task.context)
    assert plain.deletes() == [ours]
    assert plain.executions("gated") == before


@pytest.mark.parametrize("state", FATES)
def test_told_to_stop_between_two_tries_of_its_request(keyed: Side, state: str | None) -> None:
    """A server that knows keys is asked again after a lost line, but not for a task that ends."""
    task, before = Task(), keyed.executions()
    task.ti.state = state
    told_to_stop(task, keyed.proxy.hold("POST", START, "request"), "drop")
    assert keyed.executions() == before


@pytest.mark.parametrize("state", ["failed", "restarting"])
def test_told_to_stop_after_a_try_that_has_arrived(keyed: Side, state: str) -> None:
    """The reply is lost. The batch is there, so whoever ends the task cancels it."""
    task = slow_task()
    before = keyed.executions("slow")
    task.ti.state = state
    operator = task.operator()
    held = keyed.proxy.hold("POST", START, "reply")
    threading.Thread(
        target=lambda: (held.wait(60), operator.on_kill(), held.drop()), daemon=True
    ).start()
    with pytest.raises(AirflowException, match="the task was killed and its batch"):
        operator.execute(task.context)
    assert keyed.posts() == 1
    assert keyed.executions("slow") == before


def test_a_process_that_is_told_to_stop_waits_for_its_end(keyed: Side) -> None:
    """Another worker may run the task: an error of this one would end that attempt."""
    task = Task()
    task.ti.state = "running"
    told_to_stop(task, keyed.proxy.hold("GET", r"/batch\?", "reply"), "forward")
    assert task.clock.slept >= 10


# --- orphans -------------------------------------------------------------------------------------------


class Dag:
    """The part of a Dag that the search for orphans looks at."""

    def __init__(self, *tasks: BatchScoreOperator) -> None:
        self.tasks = tasks


def orphans(task: Task, states: dict[str, dict[str, str | None]], **arguments: Any) -> list[str]:
    """Delete what ended tasks have left over; all runs are asked about."""
    ti = FakeTaskInstance()
    ti.pushed = task.ti.pushed
    ti.get_task_states = lambda **asked: states  # type: ignore[method-assign]
    operator = BatchDeleteOperator(
        task_id="sweep", service_name="slow", service_version="1", orphans=True
    )
    context: Any = {"ti": ti, "dag": Dag(task.operator(**arguments))}
    return operator.execute(context)


@pytest.mark.parametrize(
    ("state", "is_orphan"),
    [("failed", True), ("skipped", True), ("success", False), ("running", False), (None, False)],
)
def test_orphans_are_what_ended_tasks_have_left_over(
    side: Side, state: str | None, is_orphan: bool
) -> None:
    task = slow_task(wait_for_completion=False)
    ours = task.attempt()
    somebody_elses = side.hook.start_batch("slow", "1", [{"x": 1, "seconds": 60}])
    states = {"run": {"task": state}}
    assert orphans(task, states) == ([ours] if is_orphan else [])
    assert somebody_elses in side.executions("slow")


def test_a_user_marks_a_waiting_task_as_a_success(side: Side) -> None:
    """And the triggerer that would have cancelled the batch is down."""
    task = slow_task(deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        task.attempt()
    ours = deferred.value.trigger.execution_id
    assert orphans(task, {"run": {"task": "success"}}) == [ours]


def test_what_a_success_did_not_return_is_an_orphan(keyed: Side) -> None:
    """A cleared task has scored again; the results of its first success are nobody's now."""
    task = slow_task(wait_for_completion=False)
    first = task.attempt()
    task.is_cleared()
    second = task.attempt()
    assert orphans(task, {"run": {"task": "success"}}) == [first]
    assert second in keyed.executions("slow")


def test_a_task_that_keeps_its_batch_leaves_no_orphans(side: Side) -> None:
    task = slow_task(wait_for_completion=False, cancel_on_kill=False)
    task.attempt()
    assert orphans(task, {"run": {"task": "failed"}}) == []
