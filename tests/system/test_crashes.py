"""SIGKILL wherever it hurts: the server sees one execution, and the results are complete."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.system.airflow_processes import AirflowProcesses, Run
from tests.system.conftest import Case

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

BATCHES, START, STATE = "/batch$", r"/batch\?", r"/batch/[^/]+"
MODES = pytest.mark.parametrize("mode", ["running", "deferred"])


def kill(case: Case, pid: int) -> None:
    """SIGKILL for the process of a task."""
    assert_is_a_task(case.airflow, pid)
    os.kill(pid, signal.SIGKILL)


def assert_is_a_task(airflow: AirflowProcesses, pid: int) -> None:
    """Nobody else's process is killed: it descends from our scheduler, two steps down."""
    parents = [parent.pid for parent in psutil.Process(pid).parents()]
    assert airflow.pid("scheduler") in parents[1:]


def completes_with_one_execution(case: Case, run: Run) -> None:
    case.open_gate()
    assert run.wait_for_end() == "success", run.logs()
    assert case.scores() == [2.0 * x for x in range(case.RECORDS)]
    assert case.started() == 1
    assert case.cancelled() == 0


@MODES
def test_before_the_intent(case: Case, mode: str) -> None:
    held = case.hold("GET", BATCHES, "request")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(120))
    held.drop()
    completes_with_one_execution(case, run)
    assert run.task("score")["try_number"] == 2


@MODES
def test_before_the_post(case: Case, mode: str) -> None:
    """The request has left the worker and never arrives."""
    held = case.hold("POST", START, "request")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(120))
    held.drop()
    completes_with_one_execution(case, run)
    assert run.task("score")["try_number"] == 2


@MODES
def test_while_the_post_is_answered_late(case: Case, mode: str) -> None:
    held = case.hold("POST", START, "reply")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(120))
    held.drop()
    completes_with_one_execution(case, run)
    assert run.task("score")["try_number"] == 2


def test_while_the_post_is_still_on_its_way(case: Case) -> None:
    """The server takes the request in only after the next attempt has begun to look for it."""
    held = case.hold("POST", START, "request")
    run = case.trigger("score_running")
    kill(case, held.wait(120))
    looks = case.hold("GET", BATCHES, "after")
    looks.wait(120)
    looks.forward()
    held.forward()
    completes_with_one_execution(case, run)


@MODES
def test_right_after_the_reply(case: Case, mode: str) -> None:
    """The reply lies in the worker's socket; the worker never gets to read it."""
    before, after = case.hold("POST", START, "reply"), case.hold("POST", START, "after")
    run = case.trigger(f"score_{mode}")
    pid = before.wait(120)
    assert_is_a_task(case.airflow, pid)
    os.kill(pid, signal.SIGSTOP)
    before.forward()
    after.wait(60)
    after.forward()
    kill(case, pid)
    completes_with_one_execution(case, run)
    assert run.task("score")["try_number"] == 2


@MODES
def test_after_the_id_is_noted(case: Case, mode: str) -> None:
    """In deferred mode this is the poll before the task defers."""
    held = case.hold("GET", STATE, "request")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(120))
    held.drop()
    completes_with_one_execution(case, run)
    assert run.task("score")["try_number"] == 2


def test_while_polling_with_its_supervisor(case: Case) -> None:
    """The whole worker dies: nobody reports anything, and Airflow misses its heartbeat."""
    run = case.trigger("score_running")
    case.wait_until_polled()
    held = case.hold("GET", STATE, "request")
    pid = held.wait(120)
    assert_is_a_task(case.airflow, pid)
    supervisor = psutil.Process(pid).ppid()
    assert supervisor != case.airflow.pid("scheduler")
    os.kill(supervisor, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    held.drop()
    completes_with_one_execution(case, run)
    assert run.task("score")["try_number"] == 2


def test_the_triggerer_while_deferred(case: Case) -> None:
    run = case.trigger("score_deferred")
    run.wait_for_task("score", "deferred")
    case.wait_until_polled()
    case.airflow.kill("triggerer")
    case.airflow.start_triggerer("triggerer")
    completes_with_one_execution(case, run)
