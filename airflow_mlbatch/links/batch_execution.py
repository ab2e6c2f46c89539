"""The link from a task to the page of its batch.

``get_link`` runs on the worker at the end of each segment of a task, with the operator that ran, and
what it returns is stored: so it only hands out what the operator found out.

The address is relative: Airflow's pages resolve it against the path of their ``base_url``, which a
worker does not need to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import BaseOperatorLink, conf
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS

from airflow_mlbatch.errors import InputError, NoBatchError

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

__all__ = [
    "PAGES_PREFIX",
    "BatchExecutionLink",
    "batch_page",
    "checked_id",
    "is_id",
    "page_of",
    "pages_are_on",
]

# Where the API server mounts the pages.
PAGES_PREFIX = "mlbatch"


def is_id(execution_id: Any) -> bool:
    """Whether there is an execution: a template makes the text ``None`` of an id that is none."""
    return execution_id not in (None, "", "None")


def checked_id(execution_id: Any) -> str:
    """The id of an execution.

    :raises NoBatchError: there is no execution, or not yet
    :raises InputError: what there is cannot be an id
    """
    if not is_id(execution_id):
        raise NoBatchError(
            f"execution_id: found {execution_id!r}, expected the id of a batch. If the task that "
            "starts it was cleared, a retry finds the new batch as soon as it is started. A table "
            "without records has none when on_empty='succeed'; on_empty='skip' skips this task, too"
        )
    # A list that went through a template is text.
    is_text = isinstance(execution_id, str) and execution_id.strip()[:1] not in ("", "[", "{", "(")
    if not is_text and (isinstance(execution_id, bool) or not isinstance(execution_id, int)):
        raise InputError(
            f"execution_id: found {execution_id!r:.80}, expected the id of one batch as text"
        )
    return str(execution_id)


def pages_are_on() -> bool:
    """Whether Airflow's pages show batches: ``[mlbatch] ui_enabled``.

    Never on Airflow 3.0: its login does not reach a page that a browser opens by its address.
    """
    return AIRFLOW_V_3_1_PLUS and bool(conf.getboolean("mlbatch", "ui_enabled", fallback=True))


def batch_page(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """The page of a task's batch, relative to ``base_url``; ``map_index`` is -1 if not mapped."""
    dag, run, task = (quote(part, safe="") for part in (dag_id, run_id, task_id))
    return f"{PAGES_PREFIX}/dags/{dag}/runs/{run}/tasks/{task}/{map_index}"


def page_of(operator: Any, ti: Any) -> str:
    """The page of a running task's batch; empty before there is one, or where the pages are off."""
    if not getattr(operator, "linked_execution_id", "") or not pages_are_on():
        return ""
    map_index = getattr(ti, "map_index", -1)
    return batch_page(ti.dag_id, ti.run_id, ti.task_id, -1 if map_index is None else map_index)


class BatchExecutionLink(BaseOperatorLink):
    """Opens the page of the batch; the operator keeps its id in ``linked_execution_id``."""

    name = "Batch execution"

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """The address, or nothing where there is no page to open.

        Airflow calls this at the end of each segment of a task, also where it has refused the
        deferral that the segment ended with. Nothing else is called then, so a task that owns its
        batch looks here whether that is still wanted.
        """
        segment_ended = getattr(operator, "segment_ended", None)
        if segment_ended is not None:
            segment_ended()
        return page_of(operator, ti_key)
