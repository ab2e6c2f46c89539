"""Deletes executions from the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import settle_version
from airflow_mlbatch.hooks.outcomes import airflow_errors
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.links import is_id
from airflow_mlbatch.operators.batch_score import EXECUTION_ID_KEY, owning_task_ids
from airflow_mlbatch.operators.rendered import as_list

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["BatchDeleteOperator"]


class BatchDeleteOperator(BaseOperator):
    """Cancels executions where they still run, and deletes their results and artifacts.

    What is gone already is no error, so that a retry and a teardown may run it again. Returns the ids
    that this attempt deleted.

    :param service_name: a published service
    :param service_version: its version; ``latest`` for that of the run
    :param execution_ids: one id, or a list of ids; ``None`` in the list (a batch that was never
        started) is passed over
    :param score_task_ids: the task of this run that started batches, or a list of them: theirs are
        deleted, also where the task failed later
    :param orphans: also delete what ended score tasks of this Dag have left over on the server, in any
        run that Airflow still knows: executions that no trigger or worker could cancel. They are known
        by idempotency key, or by the note that their task has left. What tasks with
        ``cancel_on_kill=False`` have started is left alone
    :param mlbatch_conn_id: connection of type ``mlbatch``
    """

    timing: Timing | None = None
    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "execution_ids",
        "mlbatch_conn_id",
    )
    ui_color = "#f3d9d9"

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        execution_ids: Any = None,
        score_task_ids: str | Sequence[str] = (),
        orphans: bool = False,
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.service_name = service_name
        self.service_version = service_version
        self.execution_ids = execution_ids
        self.score_task_ids = score_task_ids
        self.orphans = orphans
        self.mlbatch_conn_id = mlbatch_conn_id

    def execute(self, context: Context) -> list[str]:
        """Delete them one after another."""
        hook = MLBatchHook(self.mlbatch_conn_id, timing=self.timing)
        deleted = []
        with airflow_errors():
            ids = [*self._ids(), *self._ids_of_tasks(context)]
            if ids or self.orphans:
                # Not for nothing: a service whose batch was never started may have no version.
                settle_version(self, context, hook)
            ids += self._ids_of_orphans(hook, context)
            for execution_id in dict.fromkeys(ids):
                if hook.cancel_batch(self.service_name, self.service_version, execution_id):
                    deleted.append(execution_id)
                else:
                    self.log.info("execution %s was gone already", execution_id)
        self.log.info("deleted %s executions", f"{len(deleted):,}")
        return deleted

    def _ids_of_tasks(self, context: Context) -> list[str]:
        ti: Any = context["ti"]
        ids: list[str] = []
        for task_id in as_list(self.score_task_ids, of=str):
            pulled = ti.xcom_pull(task_ids=task_id, key=EXECUTION_ID_KEY)
            ids += [pulled] if isinstance(pulled, str) else [each for each in pulled or () if each]
        return ids

    def _ids_of_orphans(self, hook: MLBatchHook, context: Context) -> list[str]:
        if not self.orphans:
            return []
        from airflow_mlbatch.operators.run_records import RunRecords
        from airflow_mlbatch.protocol.orphans import find_orphans

        ti: Any = context["ti"]
        records = RunRecords(ti, owning_task_ids(context), EXECUTION_ID_KEY)
        found = hook.run(
            find_orphans(hook.flows, self.service_name, self.service_version, ti.dag_id, records)
        )
        for orphan in found:
            self.log.info("execution %s was left over by %s", orphan.execution_id, orphan.task)
        self.log.info("found %s executions whose task has ended without them", f"{len(found):,}")
        return [orphan.execution_id for orphan in found]

    def _ids(self) -> list[str]:
        found = as_list(self.execution_ids, of=(str, type(None)))
        ids = [execution_id for execution_id in found if is_id(execution_id)]
        for execution_id in ids:
            if not isinstance(execution_id, str):
                raise InputError(
                    f"execution_ids: found {execution_id!r:.80}, expected an id or a list of ids"
                )
        return ids
