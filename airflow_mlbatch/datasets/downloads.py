"""Files of records into storage: many at once, each whole or not there, none fetched twice.

Law: memory depends on the number of connections, never on a file's size. What is in place is noted in
a journal beside the files, so that a retry fetches only what is missing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airflow_mlbatch.datasets import locations
from airflow_mlbatch.datasets.artifacts import ArtifactNames
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.staging import StagedFile, write_whole
from airflow_mlbatch.errors import ContractError, InputError
from airflow_mlbatch.protocol.messages import Sink

__all__ = ["ArtifactDownload", "DownloadedFile", "Fetch", "download_files", "in_threads"]

# Carries out the request for one file: takes a function that opens a sink for its content.
Fetch = Callable[[Callable[[], Sink]], None]

MANIFEST = "manifest.json"
_JOURNAL = ".mlbatch-artifacts.json"
_JOURNAL_SECONDS = 5.0


@dataclass(frozen=True)
class DownloadedFile:
    """A file that is in place.

    :param index: zero-based place of the record
    :param file_name: its name on the server
    :param path: its place below the destination
    :param bytes: its size
    :param sha256: its checksum, in hexadecimal digits
    """

    index: int
    file_name: str
    path: str
    bytes: int
    sha256: str


def download_files(
    dest: Path, file_names: Sequence[str], fetch: Callable[[str, Callable[[], Sink]], None]
) -> list[str]:
    """Files of one record into a folder of this machine.

    :param fetch: carries out the request for a name
    :return: their paths, in the order of the names
    :raises InputError: there is no such folder
    :raises UnsafeNameError: a name would leave the folder or overwrite another file
    """
    if not dest.is_dir():
        raise InputError(f"dest: found no folder {str(dest)!r}, expected one that exists")
    names = ArtifactNames("{file_name}")
    targets = [(name, dest / names.place(0, name)) for name in file_names]
    for name, target in targets:
        _fetch_into(target, None, lambda open_sink, name=name: fetch(name, open_sink))  # type: ignore[misc]
    return [str(target) for _, target in targets]


class ArtifactDownload:
    """Files of many records of one execution.

    :param dest: a folder, anywhere
    :param template: where a file goes below it, from ``{index}`` and ``{file_name}``
    :param execution_id: whose files they are: what is left of another execution's is fetched anew
    """

    def __init__(self, dest: StoragePath, template: str, execution_id: str) -> None:
        self._dest, self._execution_id = dest, execution_id
        self._names = ArtifactNames(template)
        self._lock = threading.Lock()
        self._done = self._read_journal()
        self._written_at = time.monotonic()
        self.fetched_count = 0

    def fetch(self, index: int, file_name: str, fetch: Fetch) -> DownloadedFile:
        """Put one file in place, unless an earlier attempt did. Any thread may call it."""
        with self._lock:
            place = self._names.place(index, file_name)
            done = self._done.get((index, file_name))
        target = self._dest / place
        if done is not None and done.path == place and locations.file_size(target) == done.bytes:
            return done
        attempt = f"{self._execution_id}/{index}/{file_name}"
        size, sha256 = _fetch_into(target, attempt, fetch)
        file = DownloadedFile(index, file_name, place, size, sha256)
        with self._lock:
            self._done[index, file_name] = file
            self.fetched_count += 1
            if time.monotonic() - self._written_at > _JOURNAL_SECONDS:
                self._write_journal()
        return file

    def keep(self) -> None:
        """Note what is in place, because the attempt ends here."""
        with self._lock:
            self._write_journal()

    def finish(self, files: Iterable[DownloadedFile], **about: Any) -> StoragePath:
        """Write the manifest, and drop the journal.

        :param about: what else the manifest is to say
        """
        ordered = sorted(files, key=lambda file: (file.index, file.file_name))
        document = {
            "execution_id": self._execution_id,
            **about,
            "file_count": len(ordered),
            "byte_count": sum(file.bytes for file in ordered),
            "files": [asdict(file) for file in ordered],
        }
        manifest = self._dest / MANIFEST
        write_whole(manifest, json.dumps(document, indent=1).encode(), self._execution_id)
        locations.remove(self._dest / _JOURNAL)
        return manifest

    def _read_journal(self) -> dict[tuple[int, str], DownloadedFile]:
        for name in (_JOURNAL, MANIFEST):
            path = self._dest / name
            if not locations.exists(path):
                continue
            try:
                found = json.loads(locations.read_bytes(path))
                if found["execution_id"] == self._execution_id:
                    files = [DownloadedFile(**file) for file in found["files"]]
                    return {(file.index, file.file_name): file for file in files}
            except (ValueError, KeyError, TypeError):
                continue  # not one of ours: everything is fetched
        return {}

    def _write_journal(self) -> None:
        document = {
            "execution_id": self._execution_id,
            "files": [asdict(file) for file in self._done.values()],
        }
        write_whole(self._dest / _JOURNAL, json.dumps(document).encode(), self._execution_id)
        self._written_at = time.monotonic()


def in_threads(jobs: Iterable[Callable[[], Any]], max_workers: int) -> Iterator[Any]:
    """Results of jobs as they end, some at once; the first that fails stops the rest.

    No more jobs are drawn than are under way twice over, so that a million of them take no memory.
    """
    waiting: set[Future[Any]] = set()
    drawn = iter(jobs)
    with ThreadPoolExecutor(max_workers) as pool:
        try:
            while True:
                for job in drawn:
                    waiting.add(pool.submit(job))
                    if len(waiting) >= 2 * max_workers:
                        break
                if not waiting:
                    return
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield future.result()
        finally:
            for future in waiting:
                future.cancel()


class _FileSink:
    """Writes what arrives to a staged file."""

    def __init__(self, file: StagedFile) -> None:
        self._file = file

    def feed(self, data: bytes) -> bool:
        self._file.write(data)
        return False

    def close(self) -> None:
        """The file is put in place by whoever opened it."""


def _fetch_into(target: StoragePath, attempt: str | None, fetch: Fetch) -> tuple[int, str]:
    """Stream one file into place; returns its size and checksum."""
    staged: StagedFile | None = None

    def open_sink() -> Sink:
        nonlocal staged
        if staged is not None:
            # The line was lost in the middle, and the content starts over.
            staged.__exit__(ConnectionError, ConnectionError("starts over"), None)
        staged = StagedFile(target, attempt)
        staged.__enter__()
        return _FileSink(staged)

    try:
        fetch(open_sink)
        if staged is None:
            raise ContractError(f"{target}: the server sent no file")
    except BaseException:
        if staged is not None:
            staged.__exit__(*sys.exc_info())
        raise
    staged.__exit__(None, None, None)
    return staged.size, staged.sha256
