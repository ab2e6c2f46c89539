"""A file that appears whole or not at all.

Law: under the final name there is the old file or the complete new one, at every moment, also when
the process is killed. How depends on what the filesystem can do:

local files
    are written beside the target, to ``.{name}.{token}.{random}.part``, flushed to the disk, and
    moved with one rename that replaces.
object stores (S3, Azure Blob, Google Cloud Storage, …)
    have no rename, only copies; but an upload appears in one step when it is complete. So the file
    is spooled to this machine's temporary folder and uploaded under its final name at the end.
    Writing through fsspec's own buffered files would not do: an exception closes them, and closing
    completes the upload of half a file; the one for Azure also deletes the old blob when it begins.
    An upload that is killed leaves parts that no listing shows, which a lifecycle rule of the
    bucket drops.
other filesystems (SFTP, SMB, HDFS, …)
    are written beside the target and renamed; where a rename does not replace, the old file is
    removed just before.

``token`` is made from the caller's attempt key, which names the piece of work and not the try: a
retry removes what an earlier try of the same work left, and never what somebody else is writing. A
try that was given up but still runs finds its file gone when it wants to move it, and fails. If it
wakes up after its retry has begun, it is the retry that fails; the next one writes the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from airflow_mlbatch.datasets import locations
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.errors import DatasetError

__all__ = ["StagedFile", "remove_leftovers", "staging_place", "write_whole"]


class StagedFile:
    """A binary file to write to; in place under ``path`` after the ``with`` block, if it went well.

    :param path: the final name; an existing file is replaced
    :param attempt: names this piece of work, the same in each of its tries; ``None`` cleans nothing
    :param is_swept: the caller has called :func:`remove_leftovers`; who writes many files into one
        folder lists it once, not for each
    :raises DatasetError: when the staged file vanished, because another try of the same work began
    """

    def __init__(
        self, path: StoragePath, attempt: str | None = None, *, is_swept: bool = False
    ) -> None:
        self.path, self._attempt, self._token = path, attempt, _token(attempt)
        self._is_swept = is_swept or attempt is None
        self._filesystem, self._key = locations.resolve(path)
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._staged = ""
        self.size = 0
        self.closed = False

    @property
    def sha256(self) -> str:
        """Checksum of what was written, in hexadecimal digits."""
        return self._digest.hexdigest()

    def again(self) -> StagedFile:
        """Another one for the same place."""
        return StagedFile(self.path, self._attempt, is_swept=self._is_swept)

    def __enter__(self) -> StagedFile:
        parent, _, name = self._key.rpartition("/")
        self._name = name
        if locations.is_object_store(self._filesystem):
            self._folder, self._is_spooled = tempfile.gettempdir(), True
        else:
            locations.make_parents(self._filesystem, self._key)
            self._folder, self._is_spooled = parent, False
        self._remove_leftovers()
        stage = f"{self._mark()}{secrets.token_hex(4)}.part"
        self._staged = f"{self._folder}/{stage}"
        if self._is_on_this_machine:
            self._file = open(self._staged, "xb")
        else:
            self._file = cast("BinaryIO", self._filesystem.open(self._staged, "wb"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closed = True
        if error is not None:
            self._give_up()
            return
        try:
            self._put_in_place()
        except BaseException:
            self._give_up()
            raise

    # What Arrow, gzip and copy loops need of a file.

    def write(self, data: Any) -> int:
        """Append bytes."""
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)
        count = memoryview(data).nbytes
        self.size += count
        return count

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        return None

    def close(self) -> None:
        """Writers call it when they are through; the file is closed by the ``with`` block."""

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    @property
    def _is_on_this_machine(self) -> bool:
        return self._is_spooled or locations.is_local(self._filesystem)

    def _mark(self) -> str:
        if not self._is_spooled:
            return f".{self._name}.{self._token}."
        # In the temporary folder the names of many targets meet: the whole address tells them apart.
        whole = hashlib.sha256(str(self.path).encode()).hexdigest()[:12]
        return f"mlbatch.{whole}.{self._token}."

    def _remove_leftovers(self) -> None:
        if self._is_swept:
            return
        mark = self._mark()
        if self._is_on_this_machine:
            names = [entry for entry in os.listdir(self._folder) if entry.startswith(mark)]
        else:
            found = locations.list_names(self._filesystem, self._folder)
            names = [name for name in found if name.startswith(mark)]
        for name in names:
            if name.endswith(".part"):
                self._delete(f"{self._folder}/{name}")

    def _delete(self, staged: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._is_on_this_machine:
                os.unlink(staged)
            else:
                self._filesystem.rm_file(staged)

    def _put_in_place(self) -> None:
        assert self._file is not None
        if self._is_on_this_machine:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        try:
            if self._is_spooled:
                self._upload()
            elif self._is_on_this_machine:
                os.replace(self._staged, self._key)
                _flush_folder(self._folder)
            else:
                self._move()
        except FileNotFoundError:
            if Path(self._staged).exists():
                raise
            error = DatasetError(
                f"{self.path}: the file being written is gone; another try of the same work has begun"
            )
            # Perhaps one that was given up before this one began, and was suspended until now: then
            # nobody but the next try writes the file.
            error.is_permanent = False
            raise error from None

    def _upload(self) -> None:
        self._filesystem.put_file(self._staged, self._key)
        self._filesystem.invalidate_cache(locations.parent_key(self._key))
        self._delete(self._staged)

    def _move(self) -> None:
        try:
            self._filesystem.mv(self._staged, self._key)
        except OSError:
            if not self._filesystem.exists(self._key):
                raise
            self._filesystem.rm_file(self._key)
            self._filesystem.mv(self._staged, self._key)

    def _give_up(self) -> None:
        with contextlib.suppress(Exception):
            if self._file is not None:
                self._file.close()
        with contextlib.suppress(Exception):
            self._delete(self._staged)


def write_whole(path: StoragePath, data: bytes, attempt: str | None = None) -> None:
    """Write a small file in one step, replacing the one that is there."""
    with StagedFile(path, attempt) as file:
        file.write(data)


def staging_place(folder: StoragePath) -> str:
    """Where the files of a folder are staged: for every folder of an object store it is the same."""
    filesystem, key = locations.resolve(folder)
    return tempfile.gettempdir() if locations.is_object_store(filesystem) else key


def remove_leftovers(folder: StoragePath, attempt: str) -> None:
    """Remove what earlier tries of a piece of work left where the files of a folder are staged.

    To be called before anything is staged by this try in :func:`staging_place`.
    """
    filesystem, _ = locations.resolve(folder)
    key = staging_place(folder)
    staged = re.compile(
        rf"^(\..+|mlbatch\.[0-9a-f]{{12}})\.{_token(attempt)}\.[0-9a-f]{{8}}\.part$"
    )
    if locations.is_object_store(filesystem):
        names = os.listdir(key)
    else:
        names = locations.list_names(filesystem, key)
    for name in filter(staged.match, names):
        with contextlib.suppress(FileNotFoundError):
            if locations.is_object_store(filesystem):
                os.unlink(f"{key}/{name}")
            else:
                filesystem.rm_file(f"{key}/{name}")


@contextlib.contextmanager
def gzip_into(file: StagedFile) -> Iterator[BinaryIO]:
    """Pack with gzip into a staged file; the same content gives the same bytes."""
    import gzip

    with gzip.GzipFile(filename="", mode="wb", fileobj=cast("BinaryIO", file), mtime=0) as packed:
        yield cast("BinaryIO", packed)


_NOBODY = "once"


def _token(attempt: str | None) -> str:
    return _NOBODY if attempt is None else hashlib.sha256(attempt.encode()).hexdigest()[:12]


def _flush_folder(folder: str) -> None:
    # Without this a power cut right after the rename can bring the old name back.
    with contextlib.suppress(OSError):
        handle = os.open(folder or "/", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
