"""The pause that a failed task makes for a busy server: chosen by Airflow's own worker code."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_mlbatch.errors import (
    AnswerError,
    ConnectionLostError,
    MLBatchError,
    RejectedError,
    UnavailableError,
)
from airflow_mlbatch.hooks.outcomes import event_of, status_of_event

retries = pytest.importorskip(
    "airflow_mlbatch.retries", reason="needs Airflow 3.3", exc_type=ImportError
)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "busy_server.md"


def decided(error: BaseException, try_number: int, **options: Any) -> Any:
    """What Airflow's worker makes of the policy."""
    import structlog
    from airflow.sdk.execution_time.task_runner import _evaluate_retry_policy

    policy = retries.BusyServerRetryPolicy(**options)
    ti: Any = SimpleNamespace(
        task=SimpleNamespace(retry_policy=policy),
        try_number=try_number,
        _ti_context_from_server=SimpleNamespace(max_tries=5),
    )
    decision = _evaluate_retry_policy(ti, error, structlog.get_logger())
    assert decision is not None
    return decision


def busy(status: int) -> UnavailableError:
    return UnavailableError(f"answered {status}", status)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_given_longer_each_time(status: int) -> None:
    pauses = [decided(busy(status), number, spread=0).retry_delay for number in (1, 2, 3, 4, 5, 99)]
    assert pauses == [timedelta(minutes=minutes) for minutes in (5, 10, 20, 40, 60, 60)]
    decision = decided(busy(status), 1)
    assert decision.action.value == "retry"
    assert f"busy ({status})" in decision.reason


def test_pauses_are_spread_so_that_tasks_do_not_come_back_together() -> None:
    pauses = [decided(busy(503), 1, spread=0.5).retry_delay for _ in range(50)]
    assert len(set(pauses)) > 1
    assert min(pauses) >= timedelta(minutes=5)
    assert max(pauses) <= timedelta(minutes=7.5)


@pytest.mark.parametrize(
    "error",
    [busy(500), busy(502), RejectedError("no", 429), ConnectionLostError("lost"), ValueError("x")],
    ids=str,
)
def test_other_failures_are_left_to_the_task(error: Exception) -> None:
    assert decided(error, 1).action.value == "default"


def test_a_server_that_was_busy_while_the_task_was_deferred() -> None:
    event = event_of("id", busy(429))
    with pytest.raises(UnavailableError) as caught:
        status_of_event(event)
    assert decided(caught.value, 1).action.value == "retry"


def test_an_event_of_an_older_trigger_has_no_status() -> None:
    event = {
        name: value for name, value in event_of("id", busy(429)).items() if name != "http_status"
    }
    with pytest.raises(MLBatchError) as caught:
        status_of_event(event)
    assert isinstance(caught.value, AnswerError)
    assert caught.value.status == 0


def test_the_dag_of_the_page_is_one_that_airflow_can_store() -> None:
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    (shown,) = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    with DAG("busy", schedule=None) as dag:
        exec(shown)
    assert isinstance(dag.get_task("score").retry_policy, retries.BusyServerRetryPolicy)
    stored = DagSerialization.to_dict(dag)
    assert "retry_policy" in str(stored)
