"""SIGKILL wherever it hurts: the server sees one execution, and the results are complete."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.system.airflow_processes import Run
from tests.system.conftest import Case

pytestmark = [pytest.mark.system, pytest.mark.quick, pytest.mark.timeout(900)]

BATCHES, START, STATE = r"/batch(\?|$)", r"/batch\?", r"/batch/[^/]+"
# Much of a case is waiting for Airflow.
AT_ONCE = 4


def kill(case: Case, pid: int) -> None:
    """SIGKILL for the process of a task."""
    case.airflow.send(pid, signal.SIGKILL)


def completes_with_one_execution(case: Case, run: Run, attempts: int = 2) -> None:
    case.open_gate()
    assert run.wait_for_end() == "success", run.logs()
    assert case.scores() == [2.0 * x for x in range(case.RECORDS)]
    assert case.started() == 1
    assert case.cancelled() == 0
    assert run.task("score")["try_number"] == attempts


# --- moments in the life of a worker ------------------------------------------------------------


def before_the_intent(case: Case, mode: str) -> None:
    held = case.hold("GET", BATCHES, "request")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(300))
    held.drop()
    completes_with_one_execution(case, run)


def before_the_post(case: Case, mode: str) -> None:
    """The request has left the worker and never arrives."""
    held = case.hold("POST", START, "request")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(300))
    held.drop()
    completes_with_one_execution(case, run)


def while_the_post_is_answered_late(case: Case, mode: str) -> None:
    held = case.hold("POST", START, "reply")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(300))
    held.drop()
    completes_with_one_execution(case, run)


def while_the_post_is_still_on_its_way(case: Case, mode: str) -> None:
    """The server takes the request in only after the next attempt has begun to look for it."""
    held = case.hold("POST", START, "request")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(300))
    looks = case.hold("GET", BATCHES, "after")
    looks.wait(300)
    looks.forward()
    held.forward()
    completes_with_one_execution(case, run)


def right_after_the_reply(case: Case, mode: str) -> None:
    """The reply lies in the worker's socket; the worker never gets to read it."""
    before, after = case.hold("POST", START, "reply"), case.hold("POST", START, "after")
    run = case.trigger(f"score_{mode}")
    pid = before.wait(300)
    case.airflow.send(pid, signal.SIGSTOP)
    before.forward()
    after.wait(60)
    after.forward()
    kill(case, pid)
    completes_with_one_execution(case, run)


def at_the_first_poll(case: Case, mode: str) -> None:
    """The id is noted; in deferred mode this is the poll before the task defers."""
    held = case.hold("GET", STATE, "request")
    run = case.trigger(f"score_{mode}")
    kill(case, held.wait(300))
    held.drop()
    completes_with_one_execution(case, run)


def while_polling_with_its_supervisor(case: Case, mode: str) -> None:
    """The whole worker dies: nobody reports anything, and Airflow misses its heartbeat."""
    run = case.trigger(f"score_{mode}")
    case.wait_until_polled()
    held = case.hold("GET", STATE, "request")
    pid = held.wait(300)
    case.airflow.send(case.airflow.worker_of(pid), signal.SIGKILL)
    kill(case, pid)
    held.drop()
    completes_with_one_execution(case, run)


IN_EITHER_MODE: list[Callable[[Case, str], None]] = [
    before_the_post,
    while_the_post_is_still_on_its_way,
    before_the_intent,
    while_the_post_is_answered_late,
    right_after_the_reply,
    at_the_first_poll,
]
MOMENTS = [(moment, mode) for moment in IN_EITHER_MODE for mode in ("running", "deferred")]
MOMENTS.append((while_polling_with_its_supervisor, "running"))
NAMES = [f"{moment.__name__}-{mode}" for moment, mode in MOMENTS]


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, make_case: Callable[[], Case]
) -> Iterator[dict[str, Future[None]]]:
    """What becomes of the cases that are to be tested; they run side by side."""
    wanted = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    pool = ThreadPoolExecutor(AT_ONCE)
    yield {
        name: pool.submit(moment, make_case(), mode)
        for name, (moment, mode) in zip(NAMES, MOMENTS, strict=True)
        if name in wanted
    }
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_worker_is_killed(name: str, outcomes: dict[str, Future[None]]) -> None:
    outcomes[name].result()


def test_the_triggerer_is_killed_while_deferred(case: Case) -> None:
    run = case.trigger("score_deferred")
    run.wait_for_task("score", "deferred")
    case.wait_until_polled()
    case.airflow.kill("triggerer")
    case.airflow.start_triggerer("triggerer")
    completes_with_one_execution(case, run, attempts=1)
