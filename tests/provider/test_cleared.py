"""A cleared task: what its trigger is about to cancel is not taken over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import BatchScoreOperator


@pytest.fixture(autouse=True)
def nothing_goes_on(hook: MLBatchHook) -> Iterator[None]:
    """No batch ends before its test does, and none keeps the server busy afterwards."""
    yield
    for execution_id in hook.list_batch_executions("slow", "1"):
        hook.cancel_batch("slow", "1", execution_id)


def left_behind(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """A batch whose attempt has died."""

    def die(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MLBatchHook, "watch_batch", die)
        operator(wait_for_completion=True).execute(context)
    execution_id: str = context["ti"].pushed["mlbatch_execution_id"]
    return execution_id


def operator(**arguments: Any) -> BatchScoreOperator:
    arguments = {"poll_interval": 0.05, **arguments}
    return BatchScoreOperator(
        task_id="score",
        service_name="slow",
        service_version="1",
        records=[{"x": 1, "seconds": 60}],
        **arguments,
    )


def test_the_trigger_is_waited_for(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    context["ti"].max_tries = 3
    old = left_behind(context, monkeypatch)
    context["ti"].max_tries = 4
    cancel = threading.Timer(1, MLBatchHook().cancel_batch, ("slow", "1", old))
    cancel.start()
    new = operator().execute(context)
    cancel.join()
    assert new not in (None, old)


@pytest.mark.parametrize("arguments", [{}, {"cancel_on_kill": False}])
def test_what_nobody_cancels_is_taken_over(
    context: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    """And at once where cancelling was opted out of."""
    monkeypatch.setattr("airflow_mlbatch.operators.submission._CANCELLING_SECONDS", 0.5)
    context["ti"].max_tries = 3
    old = left_behind(context, monkeypatch)
    context["ti"].max_tries = 4
    waits: list[float] = []
    monkeypatch.setattr(
        "airflow_mlbatch.operators.submission.time.sleep", recording(waits, time.sleep)
    )
    assert operator(**arguments).execute(context) == old
    assert bool(waits) is not bool(arguments)


def recording(waits: list[float], sleep: Any) -> Any:
    def wait(seconds: float) -> None:
        waits.append(seconds)
        sleep(seconds)

    return wait


def test_a_retry_does_not_wait(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    context["ti"].max_tries = 3
    old = left_behind(context, monkeypatch)
    monkeypatch.setattr("airflow_mlbatch.operators.submission._CANCELLING_PAUSE", "never used")
    assert operator().execute(context) == old
