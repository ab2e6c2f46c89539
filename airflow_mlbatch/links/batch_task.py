"""What the tasks about one batch have in common: a hook, a link, an end that comes too soon."""

from __future__ import annotations

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.links.batch_execution import batch_url

__all__ = ["BatchTask"]


class BatchTask:
    """Mixed into operators and sensors; without an ``__init__``, which is Airflow's business.

    ``batch_url`` is the address of the execution once it is known, for the link.
    """

    service_name: str
    service_version: str
    mlbatch_conn_id: str
    batch_url: str = ""
    _hook: MLBatchHook | None = None

    @property
    def hook(self) -> MLBatchHook:
        """The hook of the connection; made on first use, in the process that runs the task."""
        if self._hook is None:
            self._hook = MLBatchHook(self.mlbatch_conn_id)
        return self._hook

    def _link_to(self, execution_id: str) -> None:
        self.batch_url = batch_url(
            self.hook.url, self.service_name, self.service_version, execution_id
        )

    def _cancel_at_once(self, execution_id: str | None) -> None:
        """What ``on_kill`` has time for; nothing where this process has not talked to the server."""
        if execution_id is not None and self._hook is not None:
            self._hook.cancel_batch_at_once(self.service_name, self.service_version, execution_id)
