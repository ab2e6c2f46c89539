"""What our errors mean to Airflow, and how an outcome travels from a trigger to its task.

Law: one translation for synchronous and deferred code, so that a batch ends in the same way whoever
watched it. What crossed a process boundary is checked: an unknown event fails the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_mlbatch import errors
from airflow_mlbatch.errors import (
    AnswerError,
    BatchError,
    BatchFailedError,
    ContractError,
    ExecutionNotFoundError,
    InputError,
    MLBatchError,
    NoBatchError,
    RecordsFailedError,
)
from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.protocol.states import BatchState

__all__ = [
    "airflow_errors",
    "completed",
    "event_of",
    "reading_of_another_task",
    "status_of_event",
    "summary",
]


@contextmanager
def airflow_errors() -> Iterator[None]:
    """Turn permanent errors into the exception that Airflow does not retry; leave the others."""
    try:
        yield
    except MLBatchError as error:
        if not error.is_permanent:
            raise
        if isinstance(error, InputError | AnswerError):
            # Its sentence says all: pages of our own code would only hide it in the task's log.
            error = error.with_traceback(None)
        raise AirflowFailException(str(error)) from error


@contextmanager
def reading_of_another_task(*, is_retried: bool) -> Iterator[None]:
    """For a task that reads the batch of another one, which a user can clear at any moment.

    Then there is no id for a while, or the batch of this id is gone. The next attempt reads the id
    anew, so that fails this attempt only.

    :param is_retried: whether another attempt can come; otherwise the error is permanent
    """
    try:
        yield
    except (NoBatchError, ExecutionNotFoundError) as error:
        if not is_retried:
            error.is_permanent = True
            raise
        if isinstance(error, NoBatchError):
            raise
        raise NoBatchError(
            f"{error}. If the task that started the batch was cleared, the next attempt finds the "
            "new one"
        ) from error


def completed(execution_id: str, status: BatchStatus) -> BatchStatus:
    """The status of an execution whose results are all there.

    :raises BatchFailedError: it failed; with the server's words about it, where there are any
    :raises BatchError: it still runs
    """
    if status.state.is_failure:
        text = f"execution {execution_id} failed on the server after {status}"
        raise BatchFailedError(f"{text}: {status.message}" if status.message else text)
    if not status.is_terminal:
        raise BatchError(
            f"execution {execution_id} is not complete ({status}); wait for it with "
            "BatchStateSensor, or score with wait_for_completion=True"
        )
    return status


def summary(execution_id: str, status: BatchStatus) -> dict[str, Any]:
    """A status as XCom takes it."""
    return {
        "execution_id": execution_id,
        "state": status.state.value,
        "completed_item_count": status.completed_item_count,
        "total_item_count": status.total_item_count,
    }


def event_of(execution_id: str, outcome: BatchStatus | MLBatchError) -> dict[str, Any]:
    """An outcome as a trigger's event: plain JSON, no secrets."""
    if isinstance(outcome, BatchStatus):
        return {
            "status": "done",
            **summary(execution_id, outcome),
            "message": outcome.message,
        }
    event: dict[str, Any] = {
        "status": "error",
        "execution_id": execution_id,
        "error": type(outcome).__name__,
        "message": str(outcome),
        "is_permanent": outcome.is_permanent,
    }
    if isinstance(outcome, AnswerError):
        event["http_status"] = outcome.status
    if isinstance(outcome, RecordsFailedError):
        event.update(failures=list(outcome.failures), counts=outcome.counts)
    return event


def status_of_event(event: Any) -> tuple[str, BatchStatus]:
    """Read an event back: the execution id and its status.

    :raises MLBatchError: the error that the trigger met, of the same class
    :raises ContractError: this is no event of ours
    """
    if not isinstance(event, dict) or not isinstance(event.get("execution_id"), str):
        raise ContractError(
            f"trigger event: found {event!r:.200}, expected one with an execution_id"
        )
    if event.get("status") == "done":
        state = BatchState.parse(event.get("state"))
        done, total = event.get("completed_item_count"), event.get("total_item_count")
        if state.is_terminal and isinstance(done, int) and isinstance(total, int):
            message = str(event.get("message") or "")
            return event["execution_id"], BatchStatus(state, done, total, message)
    if event.get("status") == "error" and isinstance(event.get("message"), str):
        raise _error_of(event)
    raise ContractError(f"trigger event: found {event!r:.200}, expected the end of a batch")


def _error_of(event: dict[str, Any]) -> MLBatchError:
    kind = getattr(errors, str(event.get("error")), None)
    if kind is RecordsFailedError:
        return _records_failed(event)
    if isinstance(kind, type) and issubclass(kind, MLBatchError):
        if issubclass(kind, AnswerError):
            return kind(event["message"], int(event.get("http_status") or 0))
        try:
            return kind(event["message"])
        except TypeError:
            pass  # an error with a longer signature: its base says the same
    error = MLBatchError(event["message"])
    error.is_permanent = bool(event.get("is_permanent"))
    return error


def _records_failed(event: dict[str, Any]) -> RecordsFailedError:
    failures, counts = event.get("failures"), event.get("counts")
    error = RecordsFailedError(
        event["message"],
        failures if isinstance(failures, list) else (),
        **(counts if isinstance(counts, dict) else {}),
    )
    error.is_permanent = bool(event.get("is_permanent"))
    return error
