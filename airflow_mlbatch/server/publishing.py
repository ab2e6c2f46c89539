"""Brings services onto the running server, changes them, and takes them away.

Law: a program is tried out in a worker of its own before anybody can ask for it, and its files are on
the disk before its row is. What fails on the way leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.publications import Publication
from airflow_mlbatch.protocol.services import Service, write_creation_time
from airflow_mlbatch.server.catalogue import Catalogue, Entry
from airflow_mlbatch.server.folder import DataFolder, link_files
from airflow_mlbatch.server.programs import Program, StoredObject, described
from airflow_mlbatch.server.replies import Refusal, service_not_found
from airflow_mlbatch.server.runner import Runner
from airflow_mlbatch.server.sessions import Sessions

__all__ = ["Publishing"]


class Publishing:
    """What a server that accepts services has beside the others.

    :param username: who publishes
    """

    def __init__(
        self, catalogue: Catalogue, runner: Runner, folder: DataFolder, username: str
    ) -> None:
        self.sessions = Sessions(folder)
        self._catalogue, self._runner, self._folder = catalogue, runner, folder
        self._username = username
        self._turns: dict[tuple[str, str], _Turn] = {}

    async def publish(self, name: str, version: str, publication: Publication) -> None:
        """Publish a version.

        :raises Refusal: it is there already
        :raises InputError: it cannot be used; says why
        """
        async with self._alone(name, version):
            if self._catalogue.get(name, version) is not None:
                raise _conflict(name, version)
            service = replace(
                described(name, version, publication),
                published_by=self._username,
                created_at=write_creation_time(datetime.now(timezone.utc)),
                my_permission="read/write",
            )
            async with self._program(service, publication, None) as program:
                if not await self._catalogue.add(program):
                    raise _conflict(name, version)

    async def update(self, name: str, version: str, publication: Publication) -> None:
        """Change what the request mentions of a version; a snapshot replaces all its objects.

        :raises Refusal: there is no such version, or it comes from a module
        """
        async with self._alone(name, version):
            before = self._changeable(name, version)
            service = described(name, version, publication, before.service)
            async with self._program(service, publication, before) as program:
                await self._catalogue.replace(program)
        self._runner.clean_up()

    async def delete(self, name: str, version: str) -> None:
        """Take a version away; batches that have begun with it go on.

        :raises Refusal: there is no such version, or it comes from a module
        """
        async with self._alone(name, version):
            self._changeable(name, version)
            await self._catalogue.remove(name, version)
        self._runner.clean_up()

    def _changeable(self, name: str, version: str) -> Entry:
        entry = self._catalogue.get(name, version)
        if entry is None:
            raise service_not_found(self._catalogue.services(), name, version)
        if entry.program is None:
            raise Refusal(
                403,
                f"Web service {name!r} version {version!r} comes from a module of the server: "
                "it cannot be changed over HTTP",
            )
        return entry

    @asynccontextmanager
    async def _program(
        self, service: Service, publication: Publication, before: Entry | None
    ) -> AsyncIterator[Program]:
        """A program that was tried out; its files go when it does not become true."""
        program_id = uuid.uuid4().hex
        try:
            source, objects = self._objects(service, publication, before)
            folder = self._folder.program(program_id)
            await self._link(source, folder, objects)
            program = Program(program_id, service, folder, tuple(objects))
            await self._runner.try_out(program)
            yield program
        except Exception:
            # Not when the server stops: nobody knows then whether it has become true, and the next
            # server finds out.
            self._folder.discard_program(program_id)
            self._runner.clean_up()
            raise

    async def _link(self, source: Path, folder: Path, objects: Sequence[StoredObject]) -> None:
        self._folder.check_room()
        try:
            await asyncio.to_thread(link_files, source, folder, [one.file for one in objects])
        except FileNotFoundError:
            raise Refusal(404, "Snapshot not found: it was deleted meanwhile") from None

    def _objects(
        self, service: Service, publication: Publication, before: Entry | None
    ) -> tuple[Path, Sequence[StoredObject]]:
        """Where the objects lie that the program gets."""
        if publication.snapshot_id is None:
            old = before.program if before is not None else None
            return (old.folder, old.objects) if old is not None else (self._folder.work, ())
        snapshot = self.sessions.snapshot(publication.snapshot_id)
        if snapshot.runtime != service.runtime_type:
            raise InputError(
                f"snapshotId: found a snapshot of a session with runtimeType {snapshot.runtime!r}, "
                f"expected one with {service.runtime_type!r} as the service"
            )
        return snapshot.folder, snapshot.objects

    @asynccontextmanager
    async def _alone(self, name: str, version: str) -> AsyncIterator[None]:
        """One change of a version at a time."""
        key = (name, version)
        turn = self._turns.setdefault(key, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]


@dataclass
class _Turn:
    """Those who want to change one version, one after another."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


def _conflict(name: str, version: str) -> Refusal:
    return Refusal(
        409,
        f"Web service {name!r} version {version!r} is there already: "
        "update it (PATCH), delete it, or publish another version",
    )
