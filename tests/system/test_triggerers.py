"""Triggerers come, go and stall; batches go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.system.airflow_processes import AirflowProcesses, Run, eventually
from tests.system.conftest import Case

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture
def second(airflow: AirflowProcesses) -> Iterator[str]:
    """Another triggerer beside the first."""
    airflow.start_triggerer("second")
    yield "second"
    if airflow.is_started("second"):
        airflow.kill("second")


def completes_uncancelled(case: Case, run: Run) -> None:
    case.wait_until_polled()
    case.open_gate()
    assert run.wait_for_end() == "success", run.logs()
    assert (case.started(), case.cancelled()) == (1, 0)


def test_a_restart_cancels_nothing(case: Case) -> None:
    run = case.trigger("score_deferred")
    run.wait_for_task("score", "deferred")
    case.wait_until_polled()
    case.airflow.stop("triggerer")
    assert case.cancelled() == 0
    case.airflow.start_triggerer("triggerer")
    completes_uncancelled(case, run)


@pytest.mark.quick
def test_the_other_takes_over_from_a_killed_one(case: Case, second: str) -> None:
    run = case.trigger("score_deferred")
    run.wait_for_task("score", "deferred")
    watching = eventually(lambda: watched_by(case, run.task("score")), what="a triggerer has it")
    case.wait_until_polled()
    case.airflow.kill(watching)
    completes_uncancelled(case, run)
    if watching == "triggerer":
        case.airflow.start_triggerer("triggerer")


def test_one_that_stalls_and_comes_back_cancels_nothing(case: Case, second: str) -> None:
    """It finds its triggers moved to the other one, which Airflow 3.3.2 reports as a kill."""
    airflow = case.airflow
    run = case.trigger("score_deferred")
    run.wait_for_task("score", "deferred")
    watching = eventually(lambda: watched_by(case, run.task("score")), what="a triggerer has it")
    case.wait_until_polled()
    group = airflow.pid(watching)
    os.killpg(group, signal.SIGSTOP)
    try:
        eventually(
            lambda: watched_by(case, run.task("score")) not in ("", watching), what="it has moved"
        )
        case.wait_until_polled()
    finally:
        os.killpg(group, signal.SIGCONT)
    eventually(lambda: "invoking on_kill" in run.log("score"), what="Airflow tells the trigger")
    # Only the trigger that has lost its task is over: the batch is not complete yet.
    eventually(lambda: "trigger completed" in run.log("score"), what="the trigger has judged")
    completes_uncancelled(case, run)


def test_one_that_comes_back_after_the_success_leaves_the_results(case: Case, second: str) -> None:
    """The other one has seen the batch complete. This one is told that its task has ended."""
    airflow = case.airflow
    run = case.trigger("score_deferred")
    run.wait_for_task("score", "deferred")
    watching = eventually(lambda: watched_by(case, run.task("score")), what="a triggerer has it")
    case.wait_until_polled()
    group = airflow.pid(watching)
    os.killpg(group, signal.SIGSTOP)
    try:
        eventually(
            lambda: watched_by(case, run.task("score")) not in ("", watching), what="it has moved"
        )
        case.open_gate()
        assert run.wait_for_end() == "success", run.logs()
        # It must not see by itself that the batch is complete.
        poll = case.hold("GET", "/batch/[^/]+", "request")
    finally:
        os.killpg(group, signal.SIGCONT)
    eventually(lambda: "invoking on_kill" in run.log("score"), what="Airflow tells the trigger")
    poll.forward()
    eventually(lambda: "nothing is cancelled" in run.log("score"), what="the trigger has judged")
    assert (case.started(), case.cancelled()) == (1, 0)


def watched_by(case: Case, task: dict[str, object]) -> str:
    """The name of the triggerer that watches for a task."""
    job = task.get("triggerer_job") or {}
    assert isinstance(job, dict)
    return case.airflow.triggerer_of(job["id"]) if job else ""
