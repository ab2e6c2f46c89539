"""Conversations that publish services, change them, and take them away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from airflow_mlbatch.errors import (
    ConnectionLostError,
    ContractError,
    MLBatchError,
    RejectedError,
    ServiceExistsError,
    ServiceNotFoundError,
    UnavailableError,
)
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.flows.services import ServiceFlows
from airflow_mlbatch.protocol.flows.session import discreet, of_service
from airflow_mlbatch.protocol.messages import Flow, Now, Report, Wait
from airflow_mlbatch.protocol.publications import (
    DEFAULT_RUNTIME,
    Publication,
    Published,
    read_id,
    write_publication,
)
from airflow_mlbatch.protocol.routes import Route
from airflow_mlbatch.protocol.services import Service, newest

__all__ = ["PublishingFlows"]

_CONFLICT = 409
_LOOK_SECONDS = 2.0
# What an overwritten version must not keep from the one before.
_NOTHING = Publication(
    init_code="", description="", operation_id="", inputs=(), outputs=(), artifacts=()
)


class PublishingFlows(ServiceFlows):
    """What publishing needs: a session with the objects, a snapshot of it, and the service."""

    @discreet
    def publish_service(
        self,
        service_name: str,
        service_version: str,
        publication: Publication,
        objects: Mapping[str, bytes],
        overwrite: bool = False,
    ) -> Flow[Published]:
        """Publish a version.

        To publish what is there already changes nothing. A service's description does not tell its
        objects, so that is only known of one without any.

        :param objects: what the code finds as globals, each serialized
        :param overwrite: whether a version that is there is replaced, with all that belongs to it
        :return: what became of it
        :raises ServiceExistsError: the version is there with something else, and is not to be overwritten
        """
        there = yield from self._published(service_name, service_version)
        exists = there is not None
        if there is not None and not overwrite:
            is_same = _is_same(there, publication)
            if is_same and not objects and not there.snapshot_id:
                return Published.FOUND
            raise _exists(service_name, service_version, is_same=is_same)
        route = routes.UPDATE_VERSION if exists else routes.PUBLISH_VERSION
        if exists:
            publication = _complete(publication)
        yield from self._send(
            route,
            service_name,
            service_version,
            publication,
            objects if objects or exists else None,
        )
        return Published.OVERWRITTEN if exists else Published.NEW

    @discreet
    def update_service(
        self,
        service_name: str,
        service_version: str,
        publication: Publication,
        objects: Mapping[str, bytes] | None = None,
    ) -> Flow[None]:
        """Change what is given of a version; the rest stays.

        :param objects: in the place of all that are there; ``None`` leaves them
        :raises ServiceNotFoundError: it is not published
        """
        if objects is not None and publication.runtime_type is None:
            service = yield from self.get_service(service_name, service_version)
            publication = replace(publication, runtime_type=service.runtime_type or None)
        yield from self._send(
            routes.UPDATE_VERSION, service_name, service_version, publication, objects
        )

    @discreet
    def delete_service(self, service_name: str, service_version: str) -> Flow[bool]:
        """Take a version away.

        :return: false when it was gone already, which is what a repeat after a lost line finds
        """
        try:
            yield from self._call(routes.DELETE_VERSION, of_service(service_name, service_version))
        except ServiceNotFoundError:
            return False
        return True

    @discreet
    def get_latest_service(self, service_name: str) -> Flow[Service]:
        """The version that was published last.

        :raises ServiceNotFoundError: none is published
        """
        found = yield from self.list_services(service_name)
        if not found:
            raise ServiceNotFoundError(f"service {service_name!r}: no version is published", 404)
        return newest(found)

    def _published(self, service_name: str, service_version: str) -> Flow[Service | None]:
        try:
            return (yield from self.get_service(service_name, service_version))
        except ServiceNotFoundError:
            return None

    def _send(
        self,
        route: Route,
        service_name: str,
        service_version: str,
        publication: Publication,
        objects: Mapping[str, bytes] | None,
    ) -> Flow[None]:
        """Send a publication with a snapshot of the objects, and clear away what led to it."""
        opened: list[tuple[Route, str]] = []
        try:
            if objects is not None:
                runtime = publication.runtime_type or DEFAULT_RUNTIME
                snapshot_id = yield from self._snapshot(runtime, objects, opened)
                publication = replace(publication, snapshot_id=snapshot_id)
            yield from self._send_one(route, service_name, service_version, publication)
        except MLBatchError:
            yield from self._clear_away(opened)
            raise
        yield from self._clear_away(opened)

    def _snapshot(
        self, runtime: str, objects: Mapping[str, bytes], opened: list[tuple[Route, str]]
    ) -> Flow[str]:
        body = msgspec.json.encode({"runtimeType": runtime})
        reply = yield from self._call(routes.CREATE_SESSION, body=body)
        session_id = read_id(reply.body, "sessionId")
        opened.append((routes.CLOSE_SESSION, session_id))
        for name, content in objects.items():
            yield from self._call(
                routes.SET_OBJECT,
                {"id": session_id, "objectName": name},
                headers={"content-type": "application/octet-stream"},
                body=content,
                is_small=False,
            )
        reply = yield from self._call(
            routes.CREATE_SNAPSHOT, {"id": session_id}, body=b'{"name":null}', is_small=False
        )
        snapshot_id = read_id(reply.body, "snapshotId")
        opened.append((routes.DELETE_SNAPSHOT, snapshot_id))
        return snapshot_id

    def _send_one(
        self, route: Route, service_name: str, service_version: str, publication: Publication
    ) -> Flow[None]:
        try:
            reply = yield from self._call(
                route,
                of_service(service_name, service_version),
                body=write_publication(publication),
                # The server may load the service before it answers.
                is_small=False,
            )
            if reply.status != route.success:
                # A page of whatever stands in between, for example.
                raise ContractError(
                    f"reply to a publication: found status {reply.status}, expected {route.success}"
                )
        except RejectedError as error:
            if error.status == _CONFLICT:
                raise _exists(service_name, service_version) from error
            raise
        except (ConnectionLostError, ContractError, UnavailableError) as error:
            # The server may have done it, or may be doing it.
            if route is not routes.PUBLISH_VERSION or not (
                yield from self._has_arrived(service_name, service_version, publication, error)
            ):
                raise

    def _has_arrived(
        self,
        service_name: str,
        service_version: str,
        publication: Publication,
        error: MLBatchError,
    ) -> Flow[bool]:
        """Look for a while whether a publication whose reply was lost became true."""
        yield Report(None, str(error))
        # A reply that cannot be read has been given: there is nothing to wait for.
        until = (yield Now()) + (0.0 if error.is_permanent else self._policy.repeat_seconds)
        while True:
            try:
                found = yield from self.get_service(service_name, service_version)
                return _is_of(found, publication)
            except ServiceNotFoundError:
                if (yield Now()) >= until:
                    return False
                yield Wait(_LOOK_SECONDS)

    def _clear_away(self, opened: list[tuple[Route, str]]) -> Flow[None]:
        for route, its_id in opened:
            try:
                yield from self._call(route, {"id": its_id})
            except MLBatchError as error:
                # The service does not need it any more, and the server forgets it in time.
                yield Report(None, str(error))


def _complete(publication: Publication) -> Publication:
    """With a word for everything, so that nothing stays of what is overwritten."""
    empty = {
        name: getattr(_NOTHING, name)
        for name in publication.__dataclass_fields__
        if getattr(publication, name) is None and getattr(_NOTHING, name) is not None
    }
    return replace(publication, **empty)


def _is_of(service: Service, publication: Publication) -> bool:
    """Whether a service is what was published, as far as its description says."""
    if publication.snapshot_id is not None and service.snapshot_id:
        return service.snapshot_id == publication.snapshot_id
    return service.code == publication.code


def _is_same(service: Service, publication: Publication) -> bool:
    """Whether a service is what would be published, as far as its whole description says."""
    wanted = _complete(publication)
    return (
        (service.code, service.init_code) == (wanted.code or "", wanted.init_code)
        and (service.description, service.operation_id) == (wanted.description, wanted.operation_id)
        and tuple((one.name, one.type) for one in service.inputs) == wanted.inputs
        and tuple((one.name, one.type) for one in service.outputs) == wanted.outputs
        and service.artifacts == wanted.artifacts
        and service.runtime_type.casefold() == (wanted.runtime_type or DEFAULT_RUNTIME).casefold()
    )


def _exists(
    service_name: str, service_version: str, *, is_same: bool = False
) -> ServiceExistsError:
    remark = " with the same code, but its objects cannot be compared" if is_same else ""
    return ServiceExistsError(
        f"service {service_name!r} version {service_version!r} is published already{remark}: publish "
        "another version, or say that it is to be overwritten",
        _CONFLICT,
    )
