"""Failed records while a batch runs: when results are looked at, and what ends the batch; progress."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from airflow_mlbatch.errors import (
    BatchTimeoutError,
    ContractError,
    MLBatchError,
    RecordsFailedError,
)
from airflow_mlbatch.protocol.failures import FailureCountSink
from airflow_mlbatch.protocol.messages import Reply
from airflow_mlbatch.protocol.progress import Pace
from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.protocol.states import BatchState
from tests.protocol.test_conversations import CUT, START, World, always, reply, sized, tokens

FAILS = {"success": False, "errorMessage": "no such car"}
FINE = {"success": True, "errorMessage": "", "outputParameters": {"y": 1.0}}


def at_work(done: int, state: str = "inProgress", total: int = 100) -> Reply:
    return sized({"state": state, "completedItemCount": done, "totalItemCount": total})


def results(*records: dict[str, Any], state: str = "inProgress") -> Reply:
    status = {"state": state, "completedItemCount": len(records), "totalItemCount": 100}
    return sized({**status, "batchExecutionResults": list(records)})


def watch(
    *answers: Any, most_failed: int | None = 1, deadline: float | None = None
) -> tuple[World, Any]:
    world = World([tokens(1), *answers])
    flow = always(repeat_seconds=0).watch_with_limit(
        "s", "1", "id", poll_interval=10, deadline=deadline, most_failed=most_failed
    )
    try:
        return world, world.run(flow)
    except MLBatchError as error:
        return world, error


def looks(world: World) -> int:
    return sum("showPartialResults=true" in line for line in world.lines)


def test_without_a_limit_no_result_is_read() -> None:
    world, found = watch(at_work(50), at_work(100, "complete"), most_failed=None)
    assert found.state is BatchState.COMPLETE
    assert looks(world) == 0


def test_too_many_failures_end_the_batch() -> None:
    world, error = watch(at_work(3), results(FAILS, FINE, FAILS), reply(None))
    assert type(error) is RecordsFailedError
    assert str(error) == (
        "execution id: 2 of 3 results so far are failures with a message, and max_failed_records "
        "allows 1 of 100 records; the batch was cancelled (stop_early); the first messages are: "
        "no such car; no such car"
    )
    assert error.is_permanent
    assert error.counts == {"failed": 2, "completed": 3, "total": 100}
    assert world.lines[-1] == "DELETE /api/s/1/batch/id"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.failures, again.counts) == (str(error), error.failures, error.counts)


def test_a_batch_that_cannot_be_cancelled_says_so() -> None:
    _, error = watch(at_work(2), results(FAILS, FAILS), reply({"message": "not yours"}, 403))
    assert (
        "; stop_early: the batch could not be cancelled: DELETE /api/s/1/batch/id: 403 not yours"
        in str(error)
    )


def test_results_are_looked_at_seldom() -> None:
    """Not before the limit can be passed, and then only after half as many again."""
    world, found = watch(
        *(at_work(1), at_work(10), results(FINE, FAILS), at_work(12), at_work(14)),
        *(at_work(15), results(FINE, FAILS), at_work(20), at_work(100, "complete")),
    )
    assert found.state is BatchState.COMPLETE
    assert looks(world) == 2
    assert world.waits == [10] * 6


def test_a_look_that_fails_is_a_warning() -> None:
    world, found = watch(at_work(10), CUT, at_work(15), results(FINE), at_work(100, "complete"))
    assert found.state is BatchState.COMPLETE
    assert "looking for failed records" in str([report.problem for report in world.reports])


def test_a_failure_without_words_may_be_a_record_that_is_not_scored_yet() -> None:
    silent = {"success": False, "errorMessage": ""}
    _, found = watch(at_work(2), results(silent, silent, silent), at_work(100, "complete"))
    assert found.state is BatchState.COMPLETE


def test_the_messages_are_those_that_were_counted() -> None:
    silent = {"success": False, "errorMessage": ""}
    _, error = watch(at_work(7), results(*[silent] * 6, FAILS, FAILS), reply(None))
    assert "2 of 8 results so far are failures with a message" in str(error)
    assert str(error).endswith("the first messages are: no such car; no such car")
    assert [failure["error"] for failure in error.failures] == ["no such car"] * 2


def count(*records: dict[str, Any], total: int) -> Any:
    status = {"state": "complete", "completedItemCount": total, "totalItemCount": total}
    world = World([tokens(1), sized({**status, "batchExecutionResults": list(records)})])
    try:
        return world.run(always(repeat_seconds=0).count_failures("s", "1", "id"))
    except MLBatchError as error:
        return error


def test_a_count_is_of_all_records() -> None:
    assert count(FINE, FAILS, total=2).failed == 1
    fewer, more = count(FINE, FAILS, total=3), count(FINE, FAILS, FINE, total=2)
    assert str(fewer) == "execution id: complete with 2 results, expected 3"
    assert str(more) == "execution id: complete with 3 results, expected 2"
    assert type(fewer) is type(more) is ContractError


def test_the_deadline_is_that_of_the_watch() -> None:
    world, error = watch(
        *(at_work(10), results(FINE), at_work(15), results(FINE), at_work(16)), deadline=START + 12
    )
    assert type(error) is BatchTimeoutError
    assert world.now == START + 12


@pytest.mark.parametrize(
    "records",
    [
        [FINE, FAILS, FINE, {**FAILS, "errorMessage": ""}],
        # As other servers spell it.
        [
            {"Success": True},
            {"Success": False, "ErrorMessage": "no such car"},
            FINE,
            {"success": False},
        ],
    ],
)
def test_failures_are_counted_in_any_spelling(records: list[dict[str, Any]]) -> None:
    sink = FailureCountSink()
    document = results(*records, state="complete").body
    for start in range(0, len(document), 7):
        sink.feed(document[start : start + 7])
    sink.close()
    found = sink.found
    assert (found.seen, found.failed, found.explained) == (4, 2, 1)
    assert found.first == [(1, "no such car"), (3, "the server gave no message")]


def test_only_the_first_failures_are_kept_and_long_ones_cut() -> None:
    sink = FailureCountSink()
    sink.feed(results(*[{**FAILS, "errorMessage": "x" * 1000}] * 9).body)
    sink.close()
    assert sink.found.failed == 9
    assert [place for place, _ in sink.found.first] == [0, 1, 2, 3, 4]
    assert sink.found.first[0][1] == "x" * 300 + "…"


# --- progress ------------------------------------------------------------------------------------


def line_after(*samples: tuple[float, int], total: int = 1000, state: str = "inProgress") -> str:
    pace = Pace()
    for now, done in samples:
        status = BatchStatus(BatchState.parse(state), done, total)
        pace.take(START + now, status)
    return pace.line(status)


@pytest.mark.parametrize(
    ("samples", "line"),
    [
        ([(0, 10)], "10 of 1,000 records, 1 %"),
        ([(0, 0), (10, 0)], "0 of 1,000 records, 0 %"),
        ([(0, 0), (10, 50)], "50 of 1,000 records, 5 %, 5 records/s, 3 min 10 s left"),
        ([(0, 0), (10, 500)], "500 of 1,000 records, 50 %, 50 records/s, 10 s left"),
        ([(0, 0), (100, 4)], "4 of 1,000 records, 0 %, 0.04 records/s, 6 h 55 min left"),
        # The rate is that of the last polls.
        (
            [(0, 0), *((100 + 10 * n, n) for n in range(7))],
            "6 of 1,000 records, 0 %, 0.1 records/s, 2 h 45 min left",
        ),
        # A server that went back: what was before says nothing any more.
        ([(0, 500), (10, 600), (20, 100)], "100 of 1,000 records, 10 %"),
    ],
)
def test_progress(samples: list[tuple[float, int]], line: str) -> None:
    assert line_after(*samples) == line


def test_at_its_end_a_batch_has_no_time_left() -> None:
    assert line_after((0, 0), (10, 1000), state="complete") == "1,000 of 1,000 records, 100 %"


def test_progress_of_a_watch() -> None:
    world, _ = watch(
        *(at_work(10), results(FAILS), at_work(20), results(FAILS), at_work(100, "complete"))
    )
    assert [report.progress for report in world.reports] == [
        "10 of 100 records, 10 %",
        "20 of 100 records, 20 %, 1 records/s, 1 min 20 s left, 1 failed of the 1 looked at",
        "100 of 100 records, 100 %, 1 failed of the 1 looked at",
    ]
