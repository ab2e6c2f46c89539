"""Publishes a service, once, however often the task is tried."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_mlbatch.errors import ServiceExistsError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import check_own_name
from airflow_mlbatch.hooks.outcomes import airflow_errors

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.deployments import Code, Deployment

__all__ = ["PublishServiceOperator"]

STORE_KEY = "mlbatch_published_service"


class PublishServiceOperator(BaseOperator):
    """Publishes code and models as a version of a service; returns the version.

    A version that is there already is never overwritten, unless ``overwrite`` says so. Where it is
    exactly what the task would publish, the task succeeds. A server tells of code and description, but
    not of models: with these, only a retry or a cleared task recognises what an earlier attempt has
    published, by a note in Airflow's task state store (3.3).

    :param service_name: what consumers ask for
    :param service_version: what this form of it is called, for example ``{{ ts_nodash }}``
    :param code: as :meth:`MLBatchHook.publish_service` takes it
    :param init_code: likewise
    :param models: what the code finds as globals. A text is the path of a file that holds a pickle,
        or what R has saved (``.rds``, ``.RData``), anywhere that ``ObjectStoragePath`` reaches;
        any other object is pickled.
    :param models_conn_id: connection to the storage of these paths
    :param inputs: name and type of each input
    :param outputs: name and type of each output
    :param artifacts: names of the files that a record may leave
    :param description: what the service list says about it
    :param operation_id: what generated clients call it; a function's name unless given
    :param runtime_type: ``Python`` or ``R``
    :param overwrite: whether a version that is there is replaced as a whole
    :param mlbatch_conn_id: connection of type ``mlbatch``
    """

    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "models",
        "models_conn_id",
        "description",
        "mlbatch_conn_id",
    )
    ui_color = "#dff0d8"

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        code: Code,
        init_code: Code | None = None,
        models: Mapping[str, Any] | None = None,
        models_conn_id: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        artifacts: Sequence[str] | None = None,
        description: str | None = None,
        operation_id: str | None = None,
        runtime_type: str = "Python",
        overwrite: bool = False,
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.service_name = service_name
        self.service_version = service_version
        self.code = code
        self.init_code = init_code
        self.models = models
        self.models_conn_id = models_conn_id
        self.inputs = inputs
        self.outputs = outputs
        self.artifacts = artifacts
        self.description = description
        self.operation_id = operation_id
        self.runtime_type = runtime_type
        self.overwrite = overwrite
        self.mlbatch_conn_id = mlbatch_conn_id

    def execute(self, context: Context) -> str:
        """Publish it, or find that an earlier attempt has."""
        hook = MLBatchHook(self.mlbatch_conn_id)
        store: Any = context.get("task_state_store")
        named = f"service {self.service_name!r} version {self.service_version!r}"
        with airflow_errors():
            check_own_name(self.service_version)
            deployment = self._deployment()
            note = [hook.url, self.service_name, self.service_version, _digest(deployment)]
            is_noted = store is not None and store.get(STORE_KEY) == note
            if store is not None:
                store.set(STORE_KEY, note)
            try:
                found = hook.publish_deployment(
                    self.service_name,
                    self.service_version,
                    deployment,
                    overwrite=self.overwrite,
                )
            except ServiceExistsError:
                if not is_noted:
                    # Somebody else's: a later attempt must not take it for its own.
                    if store is not None:
                        store.delete(STORE_KEY)
                    raise
                self.log.info("%s was published by an earlier attempt of this task", named)
                return self.service_version
        self.log.info("%s %s", found.value, named)
        return self.service_version

    def _deployment(self) -> Deployment:
        from airflow_mlbatch.deployments import deployment_of

        models = None
        if self.models is not None:
            models = {name: self._model(value) for name, value in self.models.items()}
        return deployment_of(
            self.service_name,
            code=self.code,
            init_code=self.init_code,
            models=models,
            inputs=self.inputs,
            outputs=self.outputs,
            artifacts=self.artifacts,
            description=self.description,
            operation_id=self.operation_id,
            runtime_type=self.runtime_type,
        )

    def _model(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        from airflow.sdk import ObjectStoragePath

        from airflow_mlbatch.errors import InputError

        try:
            return ObjectStoragePath(value, conn_id=self.models_conn_id).read_bytes()
        except OSError as error:
            raise InputError(f"models: {value!r} cannot be read: {error}") from None


def _digest(deployment: Deployment) -> str:
    """What tells one deployment from another."""
    from airflow_mlbatch.protocol.publications import write_publication

    digest = hashlib.sha256(write_publication(deployment.publication))
    for name, content in sorted((deployment.objects or {}).items()):
        digest.update(f"\n{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
