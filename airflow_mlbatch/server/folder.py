"""The data folder: what lies where, and that only one server uses it.

::

    lock                     held while a server runs
    account.json             see auth; mode 0600
    mlbatch.sqlite           see store; mode 0600
    executions/<id>/<index>/ artifacts
    services/<id>/           objects of published services, one folder for each form of a service
    work/                    folders that records run in, sessions and snapshots; nothing in it
                             outlives the server
    trash/                   what is being removed
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server.store import StorageError

__all__ = ["DISK_FULL", "DataFolder", "has_room", "is_disk_full", "link_files"]

DISK_FULL = "storage: the disk is full"
# What is left of a disk that counts as full: logins and deletions have to be written, too, or nobody
# could make room.
_LEAST_FREE_BYTES = 16 * 1024 * 1024


def has_room(folder: Path, size: int = 0) -> bool:
    """Whether so many bytes may be added in a folder."""
    return shutil.disk_usage(folder).free >= _LEAST_FREE_BYTES + size


def is_disk_full(error: BaseException) -> bool:
    """Whether something failed because a disk, or what this user may have of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def link_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Make a folder with the same files as another one, without copying them where that is possible.

    When it returns, the folder is on the disk, and so are the files if those of the other one were.
    """
    target.mkdir(mode=0o700)
    for name in names:
        try:
            os.link(source / name, target / name)
        except FileNotFoundError:
            raise
        except OSError:
            # Not every file system has hard links.
            shutil.copyfile(source / name, target / name)
            _sync(target / name)
    _sync(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DataFolder:
    """Opens and locks a data folder, and makes it where there is none.

    :raises InputError: it cannot be used, or another server uses it
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = path / "mlbatch.sqlite"
        self.work = path / "work"
        self._executions = path / "executions"
        self._services = path / "services"
        self._trash = path / "trash"
        try:
            self._is_on_trial = _made(path)
            self._lock = (path / "lock").open("a+b")
        except OSError as error:
            raise InputError(f"data folder: {path} cannot be used: {error}") from None
        if not _try_lock(self._lock):
            self._lock.close()
            raise InputError(f"data folder: {path} is in use by another server")
        try:
            self._tidy()
        except OSError as error:
            self._lock.close()
            raise InputError(f"data folder: {path} cannot be used: {error}") from None

    def keep(self) -> None:
        """The server has started: the folder stays."""
        self._is_on_trial = False

    def close(self) -> None:
        """Let another server have it; where it was made for a server that did not start, remove it."""
        if self._is_on_trial:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def artifacts(self, execution_id: str) -> Path:
        """Where the artifacts of an execution lie, one folder for each index."""
        return self._executions / execution_id

    def check_room(self, size: int = 0) -> None:
        """Before something is added.

        :param size: its bytes, as far as they are known
        :raises StorageError: there is no room for it
        """
        # The database takes it twice: in its log first, and then in its place.
        if not has_room(self.path, 2 * size):
            raise StorageError(DISK_FULL)

    def discard(self, execution_id: str) -> None:
        """Have the artifacts of an execution out of the way; :meth:`empty_trash` removes them."""
        with suppress(FileNotFoundError):
            os.replace(self.artifacts(execution_id), self._trash / uuid.uuid4().hex)

    def discard_unknown(self, known_ids: set[str]) -> None:
        """Discard what belongs to no execution: left by a server that stopped while deleting."""
        for entry in os.listdir(self._executions):
            if entry not in known_ids:
                self.discard(entry)

    def program(self, program_id: str) -> Path:
        """Where the objects of a published service lie."""
        return self._services / program_id

    def discard_program(self, program_id: str) -> None:
        """Have the objects of a published service out of the way."""
        with suppress(FileNotFoundError):
            os.replace(self.program(program_id), self._trash / uuid.uuid4().hex)

    def discard_unknown_programs(self, known_ids: set[str]) -> None:
        """Discard what belongs to no program: left by a server that stopped while publishing."""
        for entry in os.listdir(self._services):
            if entry not in known_ids:
                self.discard_program(entry)

    def empty_trash(self) -> None:
        """Remove what was discarded."""
        for entry in self._trash.iterdir():
            shutil.rmtree(entry, ignore_errors=True)

    def _tidy(self) -> None:
        # Left by a server that was killed: workers of it that still live end by themselves.
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self.work, self._executions, self._services, self._trash):
            # Also where the data folder itself is open to others: records are nobody else's.
            folder.mkdir(mode=0o700, exist_ok=True)


def _made(path: Path) -> bool:
    """Whether there was no such folder before."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        return False
    return True


def _try_lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or this process ends, however it ends."""
    try:
        import fcntl
    except ImportError:
        return _try_lock_on_windows(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _try_lock_on_windows(file: IO[bytes]) -> bool:
    import msvcrt

    try:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
