"""The methods of the hook that publish services, change them, and take them away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_mlbatch.protocol.publications import Published

if TYPE_CHECKING:
    from airflow_mlbatch.deployments import Code, Deployment
    from airflow_mlbatch.protocol.flows import Flows
    from airflow_mlbatch.protocol.messages import Flow
    from airflow_mlbatch.protocol.services import Service

__all__ = ["PublishingMethods"]

T = TypeVar("T")


class PublishingMethods:
    """See :class:`~airflow_mlbatch.hooks.MLBatchHook`."""

    if TYPE_CHECKING:
        _services: dict[tuple[str, str], Service]

        @property
        def flows(self) -> Flows:
            """The conversations of this hook."""

        def run(self, flow: Flow[T]) -> T:
            """Hold one of them."""

    def publish_service(
        self,
        service_name: str,
        service_version: str,
        *,
        code: Code,
        init_code: Code | None = None,
        models: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        artifacts: Sequence[str] | None = None,
        description: str | None = None,
        operation_id: str | None = None,
        runtime_type: str = "Python",
        overwrite: bool = False,
    ) -> bool:
        """Publish code and objects as a version of a service.

        :param code: what runs for each record: source text, the ``Path`` of a file with it, or a
            function. Of a function the source is sent, and a call of it with the declared inputs in
            their order; several outputs are returned as a dict.
        :param init_code: what runs before that, once for each worker: text, ``Path``, or a function
            that is called without arguments
        :param models: what the code finds as globals: objects, which are pickled, or the ``Path`` of
            a file that holds a pickle or what R has saved (``.rds``, ``.RData``)
        :param inputs: name and type of each input: one of the seven words of the contract, or a
            Python type as in ``@service``
        :param outputs: name and type of each output
        :param artifacts: names of the files that a record may leave
        :param operation_id: what generated clients call the service; a function's name unless given
        :param runtime_type: ``Python`` or ``R``
        :param overwrite: whether a version that is there already is replaced as a whole
        :return: whether there was one; without ``overwrite`` it is left as it is
        :raises ServiceExistsError: there is one with something else, or with objects, which cannot be
            compared; and it is not to be overwritten
        :raises InputError: an argument cannot be used; nothing was sent
        """
        from airflow_mlbatch.deployments import deployment_of

        deployment = deployment_of(
            service_name,
            code=code,
            init_code=init_code,
            models=models,
            inputs=inputs,
            outputs=outputs,
            artifacts=artifacts,
            description=description,
            operation_id=operation_id,
            runtime_type=runtime_type,
        )
        found = self.publish_deployment(
            service_name, service_version, deployment, overwrite=overwrite
        )
        return found is not Published.NEW

    def publish_deployment(
        self,
        service_name: str,
        service_version: str,
        deployment: Deployment,
        *,
        overwrite: bool = False,
    ) -> Published:
        """:meth:`publish_service` with what :func:`airflow_mlbatch.deployments.deployment_of` has read.

        :return: what became of it
        """
        self._services.pop((service_name, service_version), None)
        return self.run(
            self.flows.publish_service(
                service_name,
                service_version,
                deployment.publication,
                deployment.objects or {},
                overwrite,
            )
        )

    def update_service(
        self,
        service_name: str,
        service_version: str,
        *,
        code: Code | None = None,
        init_code: Code | None = None,
        models: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        artifacts: Sequence[str] | None = None,
        description: str | None = None,
        operation_id: str | None = None,
    ) -> None:
        """Change what is given of a published version; the rest stays.

        Batches that run go on with what they began with.

        :param code: as in :meth:`publish_service`; a function is called with the inputs and outputs
            that are given here
        :param models: in the place of all that are there
        :raises ServiceNotFoundError: it is not published
        """
        from airflow_mlbatch.deployments import deployment_of

        if callable(code) and (inputs is None or outputs is None):
            there = self.run(self.flows.get_service(service_name, service_version))
            inputs = inputs or {one.name: one.type for one in there.inputs}
            outputs = outputs or {one.name: one.type for one in there.outputs}
        deployment = deployment_of(
            service_name,
            code=code,
            init_code=init_code,
            models=models,
            inputs=inputs,
            outputs=outputs,
            artifacts=artifacts,
            description=description,
            operation_id=operation_id,
        )
        self._services.pop((service_name, service_version), None)
        self.run(
            self.flows.update_service(
                service_name, service_version, deployment.publication, deployment.objects
            )
        )

    def delete_service(self, service_name: str, service_version: str) -> bool:
        """Take a published version away; batches that run go on.

        :return: false when it was gone already
        """
        self._services.pop((service_name, service_version), None)
        return self.run(self.flows.delete_service(service_name, service_version))

    def get_latest_service(self, service_name: str) -> Service:
        """The version of a service that was published last.

        :raises ServiceNotFoundError: none is published
        """
        return self.run(self.flows.get_latest_service(service_name))
