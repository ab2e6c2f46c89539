"""Conversations about the server and its services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_mlbatch.errors import ContractError, ServiceNotFoundError
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.documents import ServerStatus, document, read_server_status
from airflow_mlbatch.protocol.flows.session import Session, discreet, of_service
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.protocol.records import encode_record
from airflow_mlbatch.protocol.results import RecordResult, read_record_result
from airflow_mlbatch.protocol.services import Service, read_services

__all__ = ["ServiceFlows"]


class ServiceFlows(Session):
    """What a session can ask about the server and its services."""

    @discreet
    def get_server_status(self) -> Flow[ServerStatus]:
        """``GET /status``."""
        reply = yield from self._call(routes.STATUS)
        return read_server_status(reply.body)

    @discreet
    def list_services(self, service_name: str | None = None) -> Flow[list[Service]]:
        """All services, or all versions of one."""
        if service_name is None:
            reply = yield from self._call(routes.SERVICES)
        else:
            reply = yield from self._call(routes.SERVICE_VERSIONS, {"name": service_name})
        return read_services(reply.body)

    @discreet
    def get_service(self, service_name: str, service_version: str) -> Flow[Service]:
        """One version of a service.

        :raises ServiceNotFoundError: it is not published
        """
        named = of_service(service_name, service_version)
        reply = yield from self._call(routes.SERVICE, named)
        found = read_services(reply.body)
        for service in found:
            if service.version == str(service_version):
                return service
        raise ServiceNotFoundError(
            f"service {service_name!r} version {service_version!r}: not in the server's answer", 404
        )

    @discreet
    def get_swagger(self, service_name: str, service_version: str) -> Flow[dict[str, Any]]:
        """The Swagger 2.0 document of a service."""
        reply = yield from self._call(routes.SWAGGER, of_service(service_name, service_version))
        found = document(reply.body, "Swagger document")
        if not isinstance(found, dict):
            raise ContractError(f"Swagger document: found {found!r:.80}, expected an object")
        return found

    @discreet
    def consume(self, service: Service, inputs: Mapping[str, Any]) -> Flow[RecordResult]:
        """Score one record and wait for its result (request/response).

        :raises RecordError: an input does not fit
        """
        body = encode_record(service.inputs, inputs)
        named = of_service(service.name, service.version)
        reply = yield from self._call(routes.CONSUME, named, body=body, is_small=False)
        return read_record_result(reply.body, service.outputs)

    @discreet
    def consume_encoded(
        self, service_name: str, service_version: str, body: bytes
    ) -> Flow[RecordResult]:
        """Score one record that is already a JSON object; its outputs are read as they come."""
        named = of_service(service_name, service_version)
        reply = yield from self._call(routes.CONSUME, named, body=body, is_small=False)
        return read_record_result(reply.body, None)
