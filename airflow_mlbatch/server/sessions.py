"""Sessions and snapshots: where the objects of a service wait until it is published.

Law: a client's word never becomes the name of a file. An object's content is only stored here,
never opened. All of it lies in the work folder, so that none of it outlives the server.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server.folder import DataFolder, link_files
from airflow_mlbatch.server.programs import StoredObject
from airflow_mlbatch.server.replies import Refusal

__all__ = ["Sessions", "Snapshot"]

SESSION_SECONDS = 3600.0
SNAPSHOT_SECONDS = 24 * 3600.0
_MOST_SESSIONS = 200
_MOST_SNAPSHOTS = 1_000
_MOST_OBJECTS = 1_000
_LONGEST_NAME = 255
_WRITE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Snapshot:
    """Objects as they were at one moment.

    :param runtime: ``R`` or ``Python``
    :param folder: where their files lie
    """

    id: str
    runtime: str
    folder: Path
    objects: tuple[StoredObject, ...]
    used_at: float


@dataclass
class _Session:
    id: str
    runtime: str
    folder: Path
    used_at: float
    objects: dict[str, StoredObject] = field(default_factory=dict)


class Sessions:
    """The sessions and snapshots of a running server."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._sessions: dict[str, _Session] = {}
        self._snapshots: dict[str, Snapshot] = {}

    async def create(self, runtime: str) -> str:
        """Open a session; returns its id.

        :raises Refusal: there are too many
        """
        await self._forget_old()
        if len(self._sessions) >= _MOST_SESSIONS:
            raise Refusal(429, "Too many sessions are open: close some", {"retry-after": "60"})
        session = _Session(str(uuid.uuid4()), runtime, self._new_folder(), time.monotonic())
        self._sessions[session.id] = session
        await asyncio.to_thread(session.folder.mkdir)
        return session.id

    async def set_object(self, session_id: str, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Store an object, in place of one of the same name; its content goes by in pieces.

        :raises Refusal: there is no such session
        :raises InputError: the name cannot be that of a global
        """
        session = self._session(session_id)
        _check_object_name(name, session.runtime)
        if name not in session.objects and len(session.objects) >= _MOST_OBJECTS:
            raise InputError(f"session: found {_MOST_OBJECTS} objects, expected no more than that")
        file = uuid.uuid4().hex
        path = session.folder / file
        try:
            stored = await self._save(path, StoredObject(name, file, 0, ""), pieces)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        # It may have been closed meanwhile.
        session = self._session(session_id)
        old = session.objects.pop(name, None)
        session.objects[name] = stored
        if old is not None:
            await asyncio.to_thread((session.folder / old.file).unlink, missing_ok=True)

    async def create_snapshot(self, session_id: str) -> str:
        """Keep the objects of a session as they are; returns the snapshot's id."""
        session = self._session(session_id)
        if len(self._snapshots) >= _MOST_SNAPSHOTS:
            raise Refusal(429, "Too many snapshots: delete some", {"retry-after": "60"})
        objects = tuple(session.objects.values())
        folder = self._new_folder()
        await asyncio.to_thread(link_files, session.folder, folder, [one.file for one in objects])
        snapshot = Snapshot(str(uuid.uuid4()), session.runtime, folder, objects, time.monotonic())
        self._snapshots[snapshot.id] = snapshot
        return snapshot.id

    async def close(self, session_id: str) -> None:
        """End a session; its snapshots stay."""
        session = self._session(session_id)
        del self._sessions[session.id]
        await asyncio.to_thread(shutil.rmtree, session.folder, ignore_errors=True)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot; what was published from it has a copy of its own."""
        snapshot = self.snapshot(snapshot_id)
        del self._snapshots[snapshot.id]
        await asyncio.to_thread(shutil.rmtree, snapshot.folder, ignore_errors=True)

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """Find a snapshot.

        :raises Refusal: there is none of this id
        """
        found = self._snapshots.get(snapshot_id)
        if found is None:
            raise Refusal(404, "Snapshot not found")
        self._snapshots[snapshot_id] = found = replace(found, used_at=time.monotonic())
        return found

    def _session(self, session_id: str) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            raise Refusal(404, "Session not found")
        session.used_at = time.monotonic()
        return session

    def _new_folder(self) -> Path:
        return self._folder.work / f"objects-{uuid.uuid4().hex}"

    async def _save(
        self, path: Path, stored: StoredObject, pieces: AsyncIterator[bytes]
    ) -> StoredObject:
        digest, size, waiting = hashlib.sha256(), 0, bytearray()

        def write(content: bytes) -> None:
            digest.update(content)
            file.write(content)

        def finish(content: bytes) -> None:
            write(content)
            file.flush()
            os.fsync(file.fileno())

        with path.open("xb", buffering=0) as file:
            async for piece in pieces:
                waiting += piece
                size += len(piece)
                if len(waiting) >= _WRITE_BYTES:
                    self._folder.check_room()
                    await asyncio.to_thread(write, bytes(waiting))
                    waiting.clear()
            self._folder.check_room()
            await asyncio.to_thread(finish, bytes(waiting))
        return StoredObject(stored.name, stored.file, size, digest.hexdigest())

    async def _forget_old(self) -> None:
        now = time.monotonic()
        for session in list(self._sessions.values()):
            if now - session.used_at > SESSION_SECONDS:
                await self.close(session.id)
        for snapshot in list(self._snapshots.values()):
            if now - snapshot.used_at > SNAPSHOT_SECONDS:
                await self.delete_snapshot(snapshot.id)


def _check_object_name(name: str, runtime: str) -> None:
    is_name = name.isidentifier() if runtime == "Python" else bool(name.strip())
    if not is_name or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise InputError(
            f"object name: found {name!r:.80}, expected a name that {runtime} code can use"
        )
