"""The note by which the pages know which batch a task has to do with.

Law: the pages ask a server for nothing else. What they show is what a task has recorded here, never what
a request names. The record by which score tasks of one run know their batches apart is another one
(see :mod:`airflow_mlbatch.operators.siblings`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_mlbatch.links.batch_execution import BatchExecutionLink, page_of

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["PLANNED_KEY", "STARTED_KEY", "WATCHED_KEY", "note_batch", "note_table"]

# XCom keys: of the task that started the batch, and of those that wait for it or read its results. The
# list of batches shows the first kind only.
STARTED_KEY = "mlbatch_started_batch"
WATCHED_KEY = "mlbatch_watched_batch"
# Of the task that has cut a table into shards: the list shows the table in the place of its shards.
PLANNED_KEY = "mlbatch_planned_table"


def note_batch(context: Context, operator: Any, key: str = WATCHED_KEY, **more: Any) -> None:
    """Record which batch a task has to do with, and where its page is.

    The link is pushed here, too: Airflow itself stores it at the end of a segment only, and a task
    that waits on its worker has but one.

    :param operator: names connection, service and version; ``linked_execution_id`` is known
    :param more: what else the page may show, JSON
    """
    ti: Any = context["ti"]
    note = {
        "conn_id": operator.mlbatch_conn_id,
        "service_name": str(operator.service_name),
        "service_version": str(operator.service_version),
        "execution_id": operator.linked_execution_id,
        **more,
    }
    ti.xcom_push(key=key, value=note)
    ti.xcom_push(key=BatchExecutionLink().xcom_key, value=page_of(operator, ti))


def note_table(context: Context, operator: Any, *, rows: int, shards: int) -> None:
    """Record that a table was cut into shards, whose tasks belong to the same task group.

    :param operator: the ``plan`` of a task group; names connection, service, version and output path
    :param rows: of the table
    :param shards: how many there are
    """
    ti: Any = context["ti"]
    prefix = ti.task_id.removesuffix("plan")
    note = {
        "conn_id": operator.mlbatch_conn_id,
        "service_name": str(operator.service_name),
        "service_version": str(operator.service_version),
        "output_path": str(operator.output_path),
        "rows": rows,
        "shards": shards,
        "score_task_id": f"{prefix}shards.score",
        "write_task_id": f"{prefix}shards.write",
        "commit_task_id": f"{prefix}commit",
    }
    ti.xcom_push(key=PLANNED_KEY, value=note)
