"""What the tasks about one batch have in common: a hook, a link, an end that comes too soon."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import AirflowException

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import airflow_errors
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.links.batch_execution import batch_url

__all__ = ["BatchTask"]


class BatchTask:
    """Mixed into operators and sensors; without an ``__init__``, which is Airflow's business.

    ``batch_url`` is the address of the execution once it is known, for the link. ``timing`` is how the
    hook keeps time; ``None`` for the usual way.
    """

    service_name: str
    service_version: str
    mlbatch_conn_id: str
    batch_url: str = ""
    timing: Timing | None = None
    _hook: MLBatchHook | None = None
    _has_cancelled: bool = False

    @property
    def hook(self) -> MLBatchHook:
        """The hook of the connection; made on first use, in the process that runs the task."""
        if self._hook is None:
            self._hook = MLBatchHook(self.mlbatch_conn_id, timing=self.timing)
        return self._hook

    def _link_to(self, execution_id: str) -> None:
        self.batch_url = batch_url(
            self.hook.url, self.service_name, self.service_version, execution_id
        )

    def _cancel_at_once(self, execution_id: str | None) -> None:
        """What ``on_kill`` has time for; nothing where this process has not talked to the server."""
        if execution_id is not None and self._hook is not None:
            self._has_cancelled = True
            self._hook.cancel_batch_at_once(self.service_name, self.service_version, execution_id)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """:func:`airflow_errors`, but what follows from our own ``on_kill`` is left to a retry.

        After ``on_kill`` Airflow lets the task run on, and it finds its batch gone. A user has given
        the task its state already; but a worker that shuts down kills its tasks in the same way.
        """
        self._has_cancelled = False
        with airflow_errors():
            try:
                yield
            except MLBatchError as error:
                if self._has_cancelled:
                    raise AirflowException(
                        f"the task was killed and its batch cancelled: {error}"
                    ) from error
                raise
