"""Ends that users cause: the batch is cancelled within ten seconds, and only when it should be."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil
import pytest

from tests.system.airflow_processes import Run, eventually
from tests.system.conftest import Case

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

# The promise to the user, not a measure of this machine. Half of it may be Airflow's: a worker asks
# every five seconds whether its task is still wanted.
LIMIT = 10.0


def waiting(case: Case, state: str) -> Run:
    """A run whose batch has begun and whose task waits for it, running or deferred."""
    run = case.trigger(f"score_{state}")
    run.wait_for_task("score", state)
    case.wait_until_polled()
    return run


def unused() -> float:
    """Processor time that nobody wanted so far, in seconds."""
    return psutil.cpu_times().idle


def is_cancelled_once(case: Case, end: Callable[[], None]) -> None:
    """End the task, and see the batch cancelled in time.

    Where other work keeps the processors busy only the time counts in which one of them was free:
    what is late then is so for want of it.
    """
    end()
    ended, before = time.time(), unused()
    eventually(lambda: case.cancelled() >= 1, what="a DELETE")
    free = unused() - before
    (first,) = case.passed("DELETE", "/batch/")
    assert first.status == 200
    assert min(first.at - ended, free) <= LIMIT


QUICK = pytest.mark.quick


@pytest.mark.parametrize("state", ["running", "deferred"])
@pytest.mark.parametrize("end", [pytest.param("failed", marks=QUICK), "success"])
def test_mark(case: Case, state: str, end: str) -> None:
    run = waiting(case, state)
    is_cancelled_once(case, lambda: run.mark("score", end))
    assert run.task("score")["state"] == end
    run.wait_for_end()
    assert case.cancelled() == 1


@QUICK
@pytest.mark.parametrize("state", ["running", "deferred"])
def test_clear(case: Case, state: str) -> None:
    """What the user no longer wants is cancelled; the next attempt starts anew and completes."""
    run = waiting(case, state)
    is_cancelled_once(case, lambda: run.clear("score"))
    eventually(lambda: case.started() == 2, what="the next attempt starts a batch")
    case.open_gate()
    assert run.wait_for_end() == "success", run.logs()
    assert case.scores() == [2.0 * x for x in range(case.RECORDS)]
    assert (case.started(), case.cancelled()) == (2, 1)


def test_clear_of_a_success_scores_again(case: Case) -> None:
    case.open_gate()
    run = case.trigger("score_deferred")
    assert run.wait_for_end() == "success", run.logs()
    run.clear("score", "results")
    eventually(lambda: case.started() == 2, what="the next attempt starts a batch")
    assert run.wait_for_end() == "success", run.logs()
    assert case.cancelled() == 0


@pytest.mark.parametrize("end", ["failed", "clear"])
def test_a_sensor_cancels_nothing(case: Case, end: str) -> None:
    run = case.trigger("sense")
    for number in range(2):
        run.wait_for_task(f"sensor_{number}", "deferred")
    case.wait_until_polled()
    if end == "clear":
        run.clear("sensor_0")
    else:
        run.mark("sensor_0", "failed")
    case.wait_until_polled()
    case.open_gate()
    run.wait_for_task("sensor_1", "success")
    if end == "clear":
        assert run.wait_for_end() == "success", run.logs()
    assert case.cancelled() == 0
