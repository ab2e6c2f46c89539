"""The address of an execution on the server.

``get_link`` runs on the worker at the end of each segment of a task, with the operator that ran, and
what it returns is stored: so it only hands out what the operator found out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol import routes

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

__all__ = ["BatchExecutionLink", "batch_url", "is_id"]


def is_id(execution_id: Any) -> bool:
    """Whether there is an execution: a template makes the text ``None`` of an id that is none."""
    return execution_id not in (None, "", "None")


def batch_url(server_url: str, service_name: str, service_version: str, execution_id: str) -> str:
    """Where the server shows an execution's state and results.

    :raises InputError: there is no execution
    """
    if not is_id(execution_id):
        raise InputError(
            f"execution_id: found {execution_id!r}, expected the id of a batch; "
            "a table without records has none when on_empty='succeed'"
        )
    return server_url + routes.BATCH.path(
        name=service_name, version=service_version, executionId=execution_id
    )


class BatchExecutionLink(BaseOperatorLink):
    """Opens the execution on the server; the operator keeps the address in ``batch_url``."""

    name = "Batch execution"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The address, or nothing before there is an execution.

        Airflow calls this at the end of each segment of a task, also where it has refused the
        deferral that the segment ended with. Nothing else is called then, so a task that owns its
        batch looks here whether that is still wanted.
        """
        segment_ended = getattr(operator, "segment_ended", None)
        if segment_ended is not None:
            segment_ended()
        return str(getattr(operator, "batch_url", "") or "")
