"""One execution for a table, and the right one: each case as it once went wrong, with and without keys."""

from __future__ import annotations

import csv
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.server_process import RunningServer
from tests.system.airflow_processes import Run, eventually
from tests.system.conftest import Case

pytestmark = [pytest.mark.system, pytest.mark.quick, pytest.mark.timeout(900)]

START, STATE = r"/batch\?", r"/batch/[^/]+"
SERVERS = ("keys", "keyless")
FIRST_OF_OTHER = 100


def of_own_records(case: Case, table: str = "table.csv", first: int = 0) -> None:
    """The scored table holds the scores of its own records, each once and in order."""
    assert case.scores(table) == [2.0 * (first + x) for x in range(case.RECORDS)]


def completes_with_one_execution(case: Case, run: Run) -> None:
    case.open_gate()
    assert run.wait_for_end() == "success", run.logs()
    of_own_records(case)
    assert case.started() == 1
    assert case.cancelled() == 0
    # Otherwise nothing has happened to the first attempt.
    assert run.task("score")["try_number"] > 1


# --- 1: another run starts as many records while a start is in doubt -----------------------------


def is_not_scored_by_another_run(case: Case, run: Run) -> None:
    """A run of the same Dag starts a batch of as many records: each table gets its own scores."""
    case.write_table(FIRST_OF_OTHER, "other.csv")
    other = case.trigger(run.dag_id, "other.csv")
    eventually(lambda: case.started() > 0, what="a batch begins")
    other.wait_for_task("score", "running", "deferred", "success")
    case.open_gate()
    assert (run.wait_for_end(), other.wait_for_end()) == ("success", "success"), run.logs()
    of_own_records(case)
    of_own_records(case, "other.csv", FIRST_OF_OTHER)
    assert (case.started(), case.cancelled()) == (2, 0)


def lost_start(case: Case, mode: str) -> None:
    """The request never arrives; its worker lives."""
    held = case.hold("POST", START, "request")
    run = case.trigger(f"score_{mode}")
    held.wait(300)
    held.drop()
    is_not_scored_by_another_run(case, run)


def lost_start_of_a_dead_worker(case: Case, mode: str) -> None:
    """The request never arrives, and its worker dies with its supervisor."""
    held = case.hold("POST", START, "request")
    run = case.trigger(f"score_{mode}")
    pid = held.wait(300)
    case.airflow.send(case.airflow.worker_of(pid), signal.SIGKILL)
    case.airflow.send(pid, signal.SIGKILL)
    held.drop()
    is_not_scored_by_another_run(case, run)


# --- 2: a worker that dies when its work is done ---------------------------------------------------


def killed_after_execute(case: Case, mode: str) -> None:
    """``execute`` has returned, and Airflow has not recorded it yet."""
    returned = case.folder / "returned"
    run = case.trigger(f"score_{mode}", returned_path=str(returned))
    eventually(lambda: case.started() == 1, what="the batch begins")
    case.open_gate()
    pid = eventually(lambda: returned.exists() and returned.read_text(), what="execute returns")
    case.airflow.send(int(pid), signal.SIGKILL)
    completes_with_one_execution(case, run)


MOMENTS: list[tuple[Callable[[Case, str], None], str, str]] = [
    (moment, mode, server)
    for moment, modes in (
        (lost_start, ["running"]),
        (lost_start_of_a_dead_worker, ["deferred"]),
        (killed_after_execute, ["running", "deferred"]),
    )
    for mode in modes
    for server in SERVERS
]
NAMES = [f"{moment.__name__}-{mode}-{server}" for moment, mode, server in MOMENTS]
AT_ONCE = 4


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, make_case: Callable[..., Case]
) -> Iterator[dict[str, Future[None]]]:
    """What becomes of the cases that are to be tested; they run side by side."""
    wanted = {item.callspec.id for item in request.session.items if hasattr(item, "callspec")}
    pool = ThreadPoolExecutor(AT_ONCE)
    yield {
        name: pool.submit(moment, make_case(keyless=server == "keyless"), mode)
        for name, (moment, mode, server) in zip(NAMES, MOMENTS, strict=True)
        if name in wanted
    }
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_gets_its_own_execution(name: str, outcomes: dict[str, Future[None]]) -> None:
    outcomes[name].result()


# --- 3: nobody has asked for the end of the task --------------------------------------------------


@pytest.fixture
def pair(make_case: Callable[..., Case]) -> Iterator[list[Case]]:
    """A case for each kind of server: they go through the same at once."""
    made = [make_case(), make_case(keyless=True)]
    yield made
    for case in made:
        case.open_gate()


def worker_that_polls(case: Case) -> int:
    """The process of a task that waits for this batch."""
    held = case.hold("GET", STATE, "request")
    pid = held.wait(300)
    held.forward()
    return pid


def is_tried_again(run: Run) -> bool:
    return bool(run.task("score")["try_number"] > 1)


def has_ended(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def is_left_alone(cases: list[Case], runs: list[Run], old: list[int]) -> None:
    """The next attempt has the batch, and what is left of the first one has ended without a word."""
    for run in runs:
        eventually(partial(is_tried_again, run), what="the next attempt")
    for pid in old:
        eventually(partial(has_ended, pid), what=f"the end of {pid}")
    for case, run in zip(cases, runs, strict=True):
        assert case.cancelled() == 0
        case.wait_until_polled()
        completes_with_one_execution(case, run)


def test_a_scheduler_that_dies_alone_cancels_nothing(pair: list[Case]) -> None:
    runs = [case.trigger("score_running") for case in pair]
    old = [worker_that_polls(case) for case in pair]
    airflow = pair[0].airflow
    airflow.kill_alone("scheduler")
    airflow.start("scheduler", "scheduler", "--skip-serve-logs")
    is_left_alone(pair, runs, old)


def test_a_suspended_worker_cancels_nothing(pair: list[Case]) -> None:
    """Airflow misses its heartbeat and starts the next attempt; then it goes on."""
    runs = [case.trigger("score_running") for case in pair]
    old = [worker_that_polls(case) for case in pair]
    airflow = pair[0].airflow
    stopped = [pid for task in old for pid in (airflow.worker_of(task), task)]
    for pid in stopped:
        airflow.send(pid, signal.SIGSTOP)
    try:
        for case, run in zip(pair, runs, strict=True):
            eventually(partial(is_tried_again, run), what="the next attempt")
            run.wait_for_task("score", "running")
            case.wait_until_polled()
    finally:
        for pid in stopped:
            airflow.send(pid, signal.SIGCONT)
    is_left_alone(pair, runs, old)


# --- 4: the server restarts while shards are being submitted ---------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
def test_a_group_outlives_a_restart_of_the_server(
    kind: str,
    make_case: Callable[..., Case],
    server: RunningServer,
    keyless_server: RunningServer,
) -> None:
    """Of four requests in flight the server has taken in one; none is answered."""
    case = make_case(keyless=kind == "keyless")
    case.open_gate()
    case.RECORDS = 8
    case.write_table(first=0)
    held = [case.hold("POST", START, "request") for _ in range(3)]
    held.append(case.hold("POST", START, "reply"))
    run = case.trigger("score_shards")
    for one in held:
        one.wait(300)
    restarted = keyless_server if kind == "keyless" else server
    restarted.kill()
    for one in held:
        one.drop()
    restarted.start()
    assert run.wait_for_end() == "success", run.logs()
    assert dataset(case.folder / "scored-table.csv") == {x: 2.0 * x for x in range(8)}
    assert (case.started(), case.cancelled()) == (4, 0)


def dataset(folder: Path) -> dict[float, float]:
    """Scores by record, of a dataset that is complete."""
    assert (folder / "_SUCCESS").exists()
    rows = []
    for part in folder.glob("part-*"):
        with part.open(newline="") as file:
            rows += [(float(row["x"]), float(row["y"])) for row in csv.DictReader(file)]
    assert len(rows) == len(dict(rows))
    return dict(rows)


# --- 6: a request that arrives late -----------------------------------------------------------------


def test_a_late_request_starts_no_second_batch(case: Case) -> None:
    """It is on its way for so long that its worker is dead and the next attempt has begun."""
    held = case.hold("POST", START, "request")
    run = case.trigger("score_running")
    case.airflow.send(held.wait(300), signal.SIGKILL)
    eventually(lambda: case.started() == 1, what="the next attempt starts a batch")
    held.forward()
    eventually(lambda: len(case.passed("POST", START)) == 2, what="the late request arrives")
    completes_with_one_execution(case, run)
