"""Ends that come at an awkward moment: the batch is still cancelled, and cancelled once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

import psutil
import pytest

from tests.system.airflow_processes import AirflowProcesses, Run, eventually
from tests.system.conftest import Case

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

START, STATE = r"/batch\?", r"/batch/[^/]+"
# Airflow's own words in the log of a task that is to end.
NOT_WANTED = "Server indicated the task shouldn't be running anymore"


def is_cancelled_once(case: Case, run: Run) -> None:
    """One DELETE comes, and no other until the run is over."""
    eventually(lambda: case.cancelled() > 0, what="a DELETE")
    run.wait_for_end()
    assert case.cancelled() == 1
    assert case.passed("DELETE", "/batch/")[0].status == 200


def starts_anew(case: Case, run: Run) -> None:
    """After a clear: the batch is cancelled, and another one is scored."""
    eventually(lambda: case.cancelled() > 0, what="a DELETE")
    eventually(lambda: case.started() == 2, what="the next attempt starts a batch")
    case.open_gate()
    assert run.wait_for_end() == "success", run.logs()
    assert case.scores() == [2.0 * x for x in range(case.RECORDS)]
    assert (case.started(), case.cancelled()) == (2, 1)


def orphans_are_deleted(case: Case) -> None:
    """What the operator for orphans does: it finds what nobody could cancel."""
    assert case.trigger("score_deferred", orphans=True).wait_for_end() == "success"


# --- a task that is about to defer ----------------------------------------------------------------


@pytest.mark.parametrize("end", ["failed", "success", "clear"])
def test_an_end_while_the_task_defers(case: Case, end: str) -> None:
    """Airflow refuses the deferral, and tells nobody."""
    held = case.hold("GET", STATE, "request")
    run = case.trigger("score_deferred")
    held.wait(300)
    if end == "clear":
        run.clear("score")
    else:
        run.mark("score", end)
    held.forward()
    if end == "clear":
        starts_anew(case, run)
    else:
        is_cancelled_once(case, run)


# --- a triggerer that cannot cancel -----------------------------------------------------------------


@pytest.fixture
def no_triggerer(airflow: AirflowProcesses) -> Iterator[Callable[[], None]]:
    """Ends the triggerer; it is there again after the test."""

    def end() -> None:
        airflow.kill("triggerer")

    yield end
    if not airflow.is_started("triggerer"):
        airflow.start_triggerer("triggerer")


def test_without_a_triggerer(
    make_case: Callable[..., Case], no_triggerer: Callable[[], None]
) -> None:
    """Orphans are found later, whether their trigger has ever run or not; nothing else is deleted."""
    watched, unwatched, wanted = cases = [make_case(), make_case(), make_case()]
    runs = {case: case.trigger("score_deferred") for case in (watched, wanted)}
    for case, run in runs.items():
        run.wait_for_task("score", "deferred")
        case.wait_until_polled()
    no_triggerer()
    runs[unwatched] = unwatched.trigger("score_deferred")
    runs[unwatched].wait_for_task("score", "deferred")
    for case in (watched, unwatched):
        runs[case].mark("score", "failed")
    watched.airflow.start_triggerer("triggerer")
    for case in cases:
        orphans_are_deleted(case)
    # The new triggerer ends the triggers of tasks that have ended. Where it does so at the moment at
    # which the orphans are deleted, both send the DELETE, and the second one is answered with 404.
    assert [len(case.passed("DELETE", "/batch/", 200)) for case in cases] == [1, 1, 0]
    assert wanted.cancelled() == 0
    wanted.open_gate()
    assert runs[wanted].wait_for_end() == "success", runs[wanted].logs()
    assert wanted.cancelled() == 0


def test_a_triggerer_that_is_too_slow(case: Case) -> None:
    """Airflow gives the trigger half a minute to cancel, and then tells it to stop."""
    run = case.trigger("score_deferred")
    run.wait_for_task("score", "deferred")
    case.wait_until_polled()
    # A request that is not answered is repeated.
    held = [case.hold("DELETE", "/batch/", "request") for _ in range(3)]
    run.mark("score", "failed")
    held[0].wait(60)
    eventually(lambda: "trigger completed" in run.log("score"), what="the trigger is stopped")
    for one in held:
        one.drop() if one.has_come else one.forward()
    assert case.cancelled() == 0
    orphans_are_deleted(case)
    is_cancelled_once(case, run)


@contextlib.contextmanager
def suspended(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP for processes, and SIGCONT at the end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


# --- a clear around the moment of the start ---------------------------------------------------------


def at_once(run: Run, pid: int) -> None:
    """Before anybody has told the worker."""


def when_it_is_told(run: Run, pid: int) -> None:
    """While the worker ends, which has five seconds for it."""
    eventually(lambda: NOT_WANTED in run.log("score"), what="the worker is told")


def when_it_is_dead(run: Run, pid: int) -> None:
    """After the worker was killed: it has never learned the id."""
    eventually(lambda: not psutil.pid_exists(pid), what="the worker is dead")


@pytest.mark.parametrize("mode", ["running", "deferred"])
@pytest.mark.parametrize("answered", [at_once, when_it_is_told, when_it_is_dead])
def test_a_clear_while_the_batch_starts(
    case: Case, mode: str, answered: Callable[[Run, int], None]
) -> None:
    held = case.hold("POST", START, "reply")
    run = case.trigger(f"score_{mode}")
    pid = held.wait(300)
    run.clear("score")
    answered(run, pid)
    held.forward()
    starts_anew(case, run)


# --- a signal between the reply and what is done about it --------------------------------------------


def test_a_signal_right_after_the_reply(case: Case) -> None:
    """The batch has begun, and Airflow is slow to take in its id when the task is told to end."""
    held = case.hold("POST", START, "reply")
    run = case.trigger("score_running")
    pid = held.wait(300)
    run.mark("score", "failed")
    with suspended(case.airflow.family(case.airflow.pid("api-server"))):
        held.forward()
        # The worker reads the reply, and waits for Airflow now.
        eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, what="it waits")
        time.sleep(1)
        case.airflow.send(pid, signal.SIGTERM)
        time.sleep(1)
    is_cancelled_once(case, run)
