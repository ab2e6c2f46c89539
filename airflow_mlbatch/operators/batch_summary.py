"""What an alert needs to know about a batch: an XCom, and the end of the error's sentence.

Law: the summary is pushed at each end of a task that knows its batch, whether it succeeds or fails.
What is not known is ``None``, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, AirflowSkipException, conf

from airflow_mlbatch.errors import BatchError, MLBatchError, RecordsFailedError
from airflow_mlbatch.links.batch_execution import page_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.datasets.failures import Failure
    from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["SUMMARY_XCOM", "BatchSummary", "summarised"]

SUMMARY_XCOM = "mlbatch_summary"


@dataclass
class BatchSummary:
    """What is known of a batch at the end of a task.

    :param first_failures: each ``{"index", "inputs", "error"}``; long texts are cut
    """

    state: str | None = None
    total: int | None = None
    completed: int | None = None
    failed: int | None = None
    first_failures: list[Mapping[str, Any]] = field(default_factory=list)
    error: str | None = None

    def take_status(self, status: BatchStatus) -> None:
        """Take the status of a poll."""
        self.state = status.state.value
        self.total, self.completed = status.total_item_count, status.completed_item_count

    def take_failures(self, failed: int, first: Sequence[Failure]) -> None:
        """Take how many records of a complete batch failed, and the first of them."""
        self.failed, self.first_failures = failed, [failure.as_dict() for failure in first]

    def take_error(self, error: BaseException) -> None:
        """Take what fails the task."""
        self.error = str(error)
        if isinstance(error, RecordsFailedError):
            self.first_failures = [*error.failures]
            self.total = error.counts.get("total", self.total)
            self.completed = error.counts.get("completed", self.completed)
            self.failed = error.counts.get("failed", self.failed)

    def as_xcom(self, operator: Any, page: str) -> dict[str, Any]:
        """For XCom: plain JSON."""
        succeeded = None
        if self.completed is not None and self.failed is not None:
            succeeded = self.completed - self.failed
        return {
            "service_name": str(operator.service_name),
            "service_version": str(operator.service_version),
            "execution_id": operator.linked_execution_id,
            "state": self.state,
            "total": self.total,
            "completed": self.completed,
            "succeeded": succeeded,
            "failed": self.failed,
            "first_failures": [dict(failure) for failure in self.first_failures],
            "error": self.error,
            "page": page,
        }


@contextmanager
def summarised(context: Context, operator: Any) -> Iterator[BatchSummary]:
    """Push a summary of the operator's batch at the end of the block, however it ends.

    Not where the task is deferred or skipped, because then it has not ended, or has no batch. The
    sentence of an error about the batch gets what an alert needs that only has the exception.
    """
    summary = BatchSummary()
    try:
        yield summary
    except AirflowSkipException:
        raise
    except (MLBatchError, AirflowException) as error:
        summary.take_error(error)
        if operator.linked_execution_id:
            page = _push(context, operator, summary)
            if isinstance(error, BatchError):
                text = f"{error}; service {operator.service_name!r}, version "
                text += f"{str(operator.service_version)!r}" + (f", see {page}" if page else "")
                error.args = (text, *error.args[1:])
        raise
    if operator.linked_execution_id:
        _push(context, operator, summary)


def _push(context: Context, operator: Any, summary: BatchSummary) -> str:
    ti: Any = context["ti"]
    page = _address(operator, ti)
    ti.xcom_push(key=SUMMARY_XCOM, value=summary.as_xcom(operator, page))
    return page


def _address(operator: Any, ti: Any) -> str:
    """The page of the batch, for a reader outside of Airflow; that of the task where there is none."""
    page = page_of(operator, ti)
    if not page:
        return str(getattr(ti, "log_url", "") or "")
    # The same address that Airflow writes into its own alerts.
    base_url = conf.get("api", "base_url", fallback="") or "http://localhost:8080/"
    return f"{base_url.rstrip('/')}/{page}"
