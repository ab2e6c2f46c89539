"""What a score task that waits says and decides about records that failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import InputError, MLBatchError, RecordsFailedError
from airflow_mlbatch.operators.rendered import as_row_range, is_none

if TYPE_CHECKING:
    from airflow_mlbatch.datasets.failures import FailurePolicy
    from airflow_mlbatch.operators.batch_score import BatchScoreOperator
    from airflow_mlbatch.operators.batch_summary import BatchSummary
    from airflow_mlbatch.protocol.failures import FailureCount

__all__ = ["check_limit", "judge_count", "judge_records", "most_failed"]


def _policy(task: BatchScoreOperator) -> FailurePolicy | None:
    from airflow_mlbatch.datasets.failures import FailurePolicy

    found: Any = task.max_failed_records
    return None if is_none(found) else FailurePolicy(found)


def check_limit(task: BatchScoreOperator) -> None:
    """Check the arguments about failed records.

    :raises InputError: they cannot be used, or not together
    """
    policy = _policy(task)
    if policy is not None and not task.wait_for_completion:
        raise InputError(
            f"max_failed_records: found {task.max_failed_records!r} with wait_for_completion=False, "
            "expected wait_for_completion=True; or give it to the task that reads the results"
        )
    if policy is None and task.stop_early:
        raise InputError(
            "stop_early: found True without max_failed_records, expected a count or a fraction there"
        )


def most_failed(task: BatchScoreOperator, total: int) -> int | None:
    """With how many failed records the batch is stopped early; ``None`` where it is not.

    :param total: records of the batch
    """
    policy = _policy(task)
    return policy.most_failed(total) if policy is not None and task.stop_early else None


def judge_records(task: BatchScoreOperator, summary: BatchSummary) -> None:
    """Look at the results of a complete batch, say how many records failed, and judge that.

    :param summary: takes the counts
    :raises RecordsFailedError: more failed than ``max_failed_records`` allows
    """
    policy = _policy(task)
    if policy is None and not task.report_failures:
        return
    try:
        found = task.hook.count_failures(
            task.service_name, task.service_version, task.linked_execution_id
        )
    except MLBatchError as error:
        if policy is not None:
            raise
        # The batch is complete, and this task was not asked to judge its records.
        task.log.warning("how many records failed is not known: %s", error)
        return
    judge_count(task, summary, found)


def judge_count(task: BatchScoreOperator, summary: BatchSummary, found: FailureCount) -> None:
    """:func:`judge_records` for a task that has read all results.

    :param summary: takes the counts
    :param found: from those results
    :raises RecordsFailedError: more failed than ``max_failed_records`` allows
    """
    from airflow_mlbatch.datasets.failures import Failure

    policy, execution_id = _policy(task), task.linked_execution_id
    rows = as_row_range(task.row_range)
    first_row = 0 if rows is None else rows.start
    failures = [Failure(first_row + place, error) for place, error in found.first]
    summary.completed = summary.total = found.seen
    summary.take_failures(found.failed, failures)
    if policy is not None:
        try:
            policy.judge(found.failed, found.seen, failures, what=f"execution {execution_id}")
        except RecordsFailedError as error:
            # A retry would take over this batch and read the same results.
            error.is_permanent = True
            raise
    message = f"{found.failed:,} of {found.seen:,} records failed"
    if not found.failed:
        task.log.info("execution %s: %s", execution_id, message)
        return
    message += "; the first: " if found.failed > len(failures) else ": "
    task.log.warning("execution %s: %s", execution_id, message + "; ".join(map(str, failures)))
