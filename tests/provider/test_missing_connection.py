"""A connection that does not exist fails a task at once; one that could not be asked for does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.secrets import BaseSecretsBackend

from airflow_mlbatch.errors import ConnectionConfigError, MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.sensors import BatchStateSensor
from airflow_mlbatch.triggers import BatchStateTrigger
from tests.provider.test_sensor import fire, run_to_its_end

NAMED: dict[str, Any] = {
    "service_name": "double",
    "service_version": "1",
    "mlbatch_conn_id": "nowhere",
}
OF_BATCH: dict[str, Any] = {**NAMED, "execution_id": "1"}
NONE = "connection 'nowhere': found none of this id, expected one of type 'mlbatch'"


class BrokenBackend(BaseSecretsBackend):
    """A secrets backend whose server is away."""

    def get_connection(self, conn_id: str, team_name: str | None = None) -> None:
        raise ConnectionError("vault token hvs.secret refused")

    def get_config(self, key: str) -> None:
        return None


TASKS: dict[str, Callable[[], Any]] = {
    "score": lambda: BatchScoreOperator(task_id="score", **NAMED, records=[{"x": 1}]),
    "score, deferrable": lambda: BatchScoreOperator(
        task_id="score", **NAMED, records=[{"x": 1}], wait_for_completion=True, deferrable=True
    ),
    "results": lambda: BatchResultsOperator(task_id="results", **OF_BATCH),
    "artifacts": lambda: ArtifactDownloadOperator(task_id="files", **OF_BATCH, indexes=[0]),
    "delete": lambda: BatchDeleteOperator(task_id="delete", **NAMED, execution_ids=["1"]),
    "sensor": lambda: BatchStateSensor(task_id="wait", **OF_BATCH),
    "sensor, reschedule": lambda: BatchStateSensor(task_id="wait", **OF_BATCH, mode="reschedule"),
    "sensor, deferrable": lambda: BatchStateSensor(task_id="wait", **OF_BATCH, deferrable=True),
}


@pytest.fixture(autouse=True)
def no_database(context: Any) -> None:
    context["ti"].get_first_reschedule_date = lambda context: None


@pytest.fixture
def broken_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AIRFLOW__SECRETS__BACKEND", f"{__name__}.BrokenBackend")
    yield
    # Airflow 3.3.2 would keep the backend for the tests that follow; 3.0 keeps none.
    with suppress(ImportError):
        from airflow.sdk.configuration import clear_secrets_backends_cache

        clear_secrets_backends_cache()


@pytest.mark.parametrize("name", TASKS)
def test_a_task_fails_for_good(name: str, context: Any) -> None:
    with pytest.raises(AirflowFailException, match=NONE):
        run_to_its_end(TASKS[name], context)


def test_the_hook_says_so_at_once() -> None:
    with pytest.raises(ConnectionConfigError, match=NONE):
        MLBatchHook("nowhere").list_services()
    is_well, words = MLBatchHook("nowhere").test_connection()
    assert not is_well
    assert words.startswith(NONE)


@pytest.mark.usefixtures("broken_backend")
@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_retried_when_a_backend_fails(name: str, context: Any) -> None:
    with pytest.raises(MLBatchError) as caught:
        run_to_its_end(TASKS[name], context)
    assert not caught.value.is_permanent
    assert "the secrets backend BrokenBackend failed with ConnectionError" in str(caught.value)
    assert "hvs.secret" not in str(caught.value)


@pytest.mark.usefixtures("broken_backend")
def test_a_trigger_sends_that_it_may_pass() -> None:
    payload = fire(BatchStateTrigger(**OF_BATCH)).payload
    assert payload["status"] == "error"
    assert payload["is_permanent"] is False
    assert "the secrets backend BrokenBackend failed" in payload["message"]
