"""What a score task says and decides about records that failed, and what it leaves for an alert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS

from airflow_mlbatch.errors import ExecutionNotFoundError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import event_of, status_of_event
from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator
from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.protocol.submission import mark_cancelling
from tests.provider.test_sensor import fire

both_ways = pytest.mark.parametrize("deferrable", [False, True])
# Of seven records, the first and the last fail, in a table of which only these rows are scored.
NUMBERS = [-1.0, 1.0, 4.0, 9.0, 16.0, 25.0, -2.0]
# On Airflow 3.0 the pages are off, and these tasks have no other address.
PAGE = "http://localhost:8080/mlbatch/dags/dag/runs/run/tasks/task/-1" if AIRFLOW_V_3_1_PLUS else ""


def see(page: str) -> str:
    """How an error ends that has an address to lead to."""
    assert page == PAGE
    return f", see {page}" if page else ""


def score(x: list[float], gate: list[str | None] | None = None, **kwargs: Any) -> Any:
    return BatchScoreOperator(
        task_id="score",
        service_name="fussy",
        service_version="1",
        records={"x": x, "gate": gate or [None] * len(x)},
        wait_for_completion=True,
        poll_interval=0.05,
        **kwargs,
    )


def run(make: Callable[[], Any], context: Any) -> Any:
    """Run a task to its end; the segment after a deferral is a new object."""
    try:
        return make().execute(context)
    except TaskDeferred as deferred:
        event = json.loads(json.dumps(fire(deferred.trigger).payload))
        return make().execute_complete(context, event, **(deferred.kwargs or {}))


def summary_of(context: Any) -> dict[str, Any]:
    found: dict[str, Any] = context["ti"].pushed["mlbatch_summary"]
    return found


@both_ways
def test_failed_records_are_reported_at_the_end(
    context: Any, deferrable: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    execution_id = run(lambda: score(NUMBERS, deferrable=deferrable), context)
    told = f"execution {execution_id}: 2 of 7 records failed: record 0: ValueError: x is negative: -1.0"
    assert told in capfd.readouterr().out
    found = summary_of(context)
    assert [failure["index"] for failure in found.pop("first_failures")] == [0, 6]
    assert found == {
        "service_name": "fussy",
        "service_version": "1",
        "execution_id": execution_id,
        "state": "complete",
        "total": 7,
        "completed": 7,
        "succeeded": 5,
        "failed": 2,
        "error": None,
        "page": PAGE,
    }


def test_where_nothing_failed_that_is_said_too(
    context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    execution_id = score([1, 2]).execute(context)
    assert f"execution {execution_id}: 0 of 2 records failed" in capfd.readouterr().out
    assert summary_of(context)["first_failures"] == []


def test_indexes_are_rows_of_the_table(context: Any, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("x\n1\n2\n-3\n4\n", encoding="utf-8")
    operator: Any = BatchScoreOperator(
        task_id="score",
        service_name="picky",
        service_version="1",
        input_path=str(table),
        row_range=(1, 4),
        wait_for_completion=True,
        poll_interval=0.05,
    )
    operator.execute(context)
    (failure,) = summary_of(context)["first_failures"]
    assert failure["index"] == 2


@both_ways
@pytest.mark.parametrize("limit", [1, "1", 0.2])
def test_too_many_failed_records(
    hook: MLBatchHook, context: Any, deferrable: bool, limit: Any
) -> None:
    with pytest.raises(AirflowFailException) as failed:
        run(lambda: score(NUMBERS, deferrable=deferrable, max_failed_records=limit), context)
    found = summary_of(context)
    execution_id, page = found["execution_id"], found["page"]
    text = str(failed.value)
    assert text.startswith(f"execution {execution_id}: 2 of 7 records failed, max_failed_records=")
    assert "record 6: ValueError: x is negative: -2.0" in text
    assert text.endswith(f"; service 'fussy', version '1'{see(page)}")
    assert text.startswith(found["error"])
    assert (found["state"], found["failed"], found["succeeded"]) == ("complete", 2, 5)
    assert [failure["error"] for failure in found["first_failures"]] == [
        "ValueError: x is negative: -1.0",
        "ValueError: x is negative: -2.0",
    ]
    # The results of the others can still be read.
    assert len(hook.get_batch_results("fussy", "1", execution_id)) == 7


@both_ways
@pytest.mark.parametrize("limit", [2, 0.3, "None"])
def test_not_too_many_failed_records(context: Any, deferrable: bool, limit: Any) -> None:
    assert run(lambda: score(NUMBERS, deferrable=deferrable, max_failed_records=limit), context)
    assert summary_of(context)["failed"] == 2


@both_ways
def test_a_batch_that_cannot_meet_the_policy_any_more_is_stopped(
    hook: MLBatchHook, context: Any, deferrable: bool
) -> None:
    """The gate of the last record never opens, so nothing else ends this batch."""

    def make() -> Any:
        x, gate = [-1.0, -2.0, 3.0, -4.0, 5.0], [None, None, None, None, "never opened"]
        limit: dict[str, Any] = {"max_failed_records": 2, "stop_early": True}
        return score(x, gate, deferrable=deferrable, parallel_count=1, **limit)

    with pytest.raises(AirflowFailException) as failed:
        run(make, context)
    found = summary_of(context)
    text = str(failed.value)
    assert f"execution {found['execution_id']}: 3 of 4 results so far are failures with" in text
    assert "max_failed_records allows 2 of 5 records; the batch was cancelled (stop_early)" in text
    assert "x is negative: -1.0" in text
    assert text.endswith(f"version '1'{see(found['page'])}")
    assert (found["total"], found["completed"], found["failed"]) == (5, 4, 3)
    first: dict[str, Any] = {
        "index": None,
        "inputs": {},
        "error": "ValueError: x is negative: -1.0",
    }
    assert found["first_failures"][0] == first
    with pytest.raises(ExecutionNotFoundError):
        hook.get_batch_status("fussy", "1", found["execution_id"])


@both_ways
def test_a_batch_that_can_still_meet_the_policy_goes_on(context: Any, deferrable: bool) -> None:
    limit: dict[str, Any] = {"max_failed_records": 2, "stop_early": True}
    assert run(lambda: score(NUMBERS, deferrable=deferrable, **limit), context)


def test_without_a_policy_unreadable_results_are_only_a_warning(
    context: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """As where somebody deletes the batch at the moment of its end."""
    event = event_of("gone", BatchStatus(BatchState.COMPLETE, 7, 7))
    assert score(NUMBERS).execute_complete(context, event) == "gone"
    assert "how many records failed is not known: " in capfd.readouterr().out
    found = summary_of(context)
    assert (found["total"], found["failed"]) == (7, None)
    with pytest.raises(AirflowFailException, match="no such execution|not found"):
        score(NUMBERS, max_failed_records=3).execute_complete(context, event)


def test_the_report_can_be_left_out(context: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert score(NUMBERS, report_failures=False).execute(context)
    assert "records failed" not in capfd.readouterr().out
    assert summary_of(context)["failed"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_failed_records": -1}, "max_failed_records: found -1, expected a count"),
        ({"max_failed_records": 1.5}, "max_failed_records: found 1.5, expected a count"),
        ({"stop_early": True}, "stop_early: found True without max_failed_records"),
        (
            {"max_failed_records": 1, "wait_for_completion": False},
            "max_failed_records: found 1 with wait_for_completion=False",
        ),
    ],
)
def test_arguments_that_do_not_fit(context: Any, arguments: dict[str, Any], message: str) -> None:
    operator: Any = BatchScoreOperator(
        task_id="score",
        service_name="fussy",
        service_version="1",
        records=[{"x": 1, "gate": None}],
        **{"wait_for_completion": True, **arguments},
    )
    with pytest.raises(AirflowFailException, match=message):
        operator.execute(context)
    assert "mlbatch_summary" not in context["ti"].pushed


def test_a_batch_that_is_gone_leaves_a_summary_too(context: Any) -> None:
    event = event_of("some-id", ExecutionNotFoundError("no such execution", 404))
    with pytest.raises(AirflowFailException):
        score([1]).execute_complete(context, event)
    found = summary_of(context)
    assert (found["execution_id"], found["error"]) == ("some-id", "no such execution")
    assert (found["state"], found["failed"], found["succeeded"]) == (None, None, None)


@pytest.mark.parametrize("counts", [None, {"failed": 1}])
def test_an_event_of_too_many_failures_may_know_little(counts: Any) -> None:
    event = {"status": "error", "execution_id": "id", "error": "RecordsFailedError"}
    with pytest.raises(Exception, match="many failed") as told:
        status_of_event({**event, "message": "many failed", "counts": counts, "failures": 7})
    assert told.value.failures == ()  # type: ignore[attr-defined]


def test_the_results_task_leaves_a_summary_too(hook: MLBatchHook, context: Any) -> None:
    records = [{"x": x, "gate": None} for x in NUMBERS]
    execution_id = hook.start_batch("fussy", "1", records)
    hook.watch_batch("fussy", "1", execution_id, poll_interval=0.05)

    def read(**kwargs: Any) -> Any:
        operator: Any = BatchResultsOperator(
            task_id="read",
            service_name="fussy",
            service_version="1",
            execution_id=execution_id,
            **kwargs,
        )
        return operator.execute(context)

    read(max_failed_records=2)
    good = summary_of(context)
    assert (good["failed"], good["succeeded"], good["error"]) == (2, 5, None)
    with pytest.raises(AirflowFailException) as failed:
        read()
    bad = summary_of(context)
    assert (bad["failed"], bad["succeeded"]) == (2, 5)
    assert good["first_failures"] == bad["first_failures"]
    assert str(failed.value).startswith(bad["error"])
    assert str(failed.value).endswith(f"; service 'fussy', version '1'{see(bad['page'])}")


def test_where_pages_are_off_an_alert_leads_to_the_task(
    context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__MLBATCH__UI_ENABLED", "False")
    context["ti"].log_url = "https://airflow/the/task"
    score([1]).execute(context)
    assert summary_of(context)["page"] == "https://airflow/the/task"


@pytest.mark.skipif(not AIRFLOW_V_3_1_PLUS, reason="the pages are off on Airflow 3.0")
def test_the_address_is_that_of_airflow(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/here/")
    score([1]).execute(context)
    page = "https://airflow.example.com/here/mlbatch/dags/dag/runs/run/tasks/task/-1"
    assert summary_of(context)["page"] == page


@pytest.mark.parametrize("limit", [None, 1])
def test_a_batch_in_place_of_a_cancelled_one_has_the_only_summary(
    hook: MLBatchHook, context: Any, limit: int | None
) -> None:
    """An earlier attempt's DELETE arrives after this one was deferred."""
    with pytest.raises(TaskDeferred) as deferred:
        score(NUMBERS, ["a gate"] * 7, deferrable=True).execute(context)
    old = deferred.value.trigger.execution_id
    mark_cancelling(context["task_state_store"])
    hook.cancel_batch("fussy", "1", old)
    event = event_of(old, ExecutionNotFoundError("no such execution", 404))
    operator = score(NUMBERS, max_failed_records=limit)
    if limit is None:
        operator.execute_complete(context, event)
    else:
        with pytest.raises(AirflowFailException) as failed:
            operator.execute_complete(context, event)
        assert str(failed.value).count("; service 'fussy', version '1'") == 1
    found = summary_of(context)
    assert found["execution_id"] == operator.execution_id != old
    assert (found["state"], found["total"], found["failed"]) == ("complete", 7, 2)
    assert len(found["first_failures"]) == 2
    assert (found["error"] is None) == (limit is None)
    assert "version '1'" not in (found["error"] or "")
