"""Takes published versions of a service away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import airflow_errors
from airflow_mlbatch.operators.rendered import as_list

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["DeleteServiceOperator"]


class DeleteServiceOperator(BaseOperator):
    """Takes versions of a service away; returns those that this attempt has deleted.

    What is gone already is no error, so that a retry and a teardown may run it again. Batches that
    run go on with the code that they began with.

    :param service_name: a published service
    :param service_version: a version, or a list of versions
    :param mlbatch_conn_id: connection of type ``mlbatch``
    """

    template_fields: Sequence[str] = ("service_name", "service_version", "mlbatch_conn_id")
    ui_color = "#f3d9d9"

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str | Sequence[str],
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.service_name = service_name
        self.service_version = service_version
        self.mlbatch_conn_id = mlbatch_conn_id

    def execute(self, context: Context) -> list[str]:
        """Delete them one after another."""
        hook = MLBatchHook(self.mlbatch_conn_id)
        deleted = []
        with airflow_errors():
            for version in as_list(self.service_version, of=str):
                if hook.delete_service(self.service_name, version):
                    deleted.append(version)
                    self.log.info("deleted service %s version %s", self.service_name, version)
                else:
                    self.log.info("service %s version %s is gone", self.service_name, version)
        return deleted
