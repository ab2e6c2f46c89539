"""Files of records into storage: many at once, each whole or not there, none fetched twice.

Law: memory depends on the number of connections, never on a file's size. What is in place is noted in
a journal beside the files, so that a retry fetches only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from airflow_mlbatch.datasets import locations
from airflow_mlbatch.datasets.artifacts import ArtifactNames
from airflow_mlbatch.datasets.collected import note_written
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.staging import (
    StagedFile,
    remove_leftovers,
    staging_place,
    write_whole,
)
from airflow_mlbatch.errors import ContractError, InputError
from airflow_mlbatch.protocol.messages import Sink

__all__ = [
    "ArtifactDownload",
    "DownloadedFile",
    "Fetch",
    "download_files",
    "download_records",
    "in_threads",
    "is_wanted",
]

# Carries out the request for one file: takes a function that opens a sink for its content.
Fetch = Callable[[Callable[[], Sink]], None]

MANIFEST = "manifest.json"
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
    places = ArtifactNames("{file_name}").places(0, file_names)
    targets = {name: dest / place for name, place in places.items()}
    for name, target in targets.items():
        staged = StagedFile(target)
        _fetch_into(staged, lambda open_sink, name=name: fetch(name, open_sink))  # type: ignore[misc]
    return [str(targets[name]) for name in file_names]


class ArtifactDownload:
    """Files of many records of one execution.

    :param dest: a folder, anywhere
    :param template: where a file goes below it, from ``{index}`` and ``{file_name}``
    :param execution_id: whose files they are: what is left of another execution's is fetched anew
    :param attempt: names this piece of work, the same in each of its tries, so that two may share
        a destination
    """

    def __init__(
        self, dest: StoragePath, template: str, execution_id: str, attempt: str = ""
    ) -> None:
        self._dest, self._execution_id = dest, execution_id
        self._attempt = f"{attempt}/{execution_id}"
        mark = hashlib.sha256(self._attempt.encode()).hexdigest()[:12]
        self._journal = dest / f".mlbatch-artifacts-{mark}.json"
        self._names = ArtifactNames(template, reserved=MANIFEST)
        self._lock = threading.Lock()
        self._swept: set[str] = set()
        self._done = self._read_journal()
        self._written_at = time.monotonic()
        self.fetched_count = 0

    def places(self, index: int, file_names: Sequence[str]) -> Mapping[str, str]:
        """Where the files of one record go, below the destination.

        :param file_names: all that the record has, so that a name's place is the same whichever of
            them are wanted
        :raises UnsafeNameError: a name points elsewhere, or two share a place
        """
        with self._lock:
            return self._names.places(index, file_names)

    def fetch(self, index: int, file_name: str, place: str, fetch: Fetch) -> DownloadedFile:
        """Put one file in place, unless an earlier attempt did. Any thread may call it.

        :param place: from :meth:`places`
        """
        target = self._dest / place
        with self._lock:
            done = self._done.get((index, file_name))
        if done is not None and done.path == place and locations.file_size(target) == done.bytes:
            return done
        self._sweep(target.parent)
        size, sha256 = _fetch_into(StagedFile(target, self._attempt, is_swept=True), fetch)
        file = DownloadedFile(index, file_name, place, size, sha256)
        with self._lock:
            self._done[index, file_name] = file
            self.fetched_count += 1
            if time.monotonic() - self._written_at > _JOURNAL_SECONDS:
                self._write_journal()
        return file

    def _sweep(self, folder: StoragePath) -> None:
        """Remove what an earlier attempt left in a folder, before this one writes there."""
        # Not once for each folder: in an object store, other threads have staged theirs there by then.
        place = staging_place(folder)
        with self._lock:
            if place not in self._swept:
                remove_leftovers(folder, self._attempt)
                self._swept.add(place)

    def keep(self) -> None:
        """Note what is in place, because the attempt ends here."""
        with self._lock:
            self._write_journal()

    def finish(self, files: Iterable[DownloadedFile], **about: Any) -> StoragePath:
        """Write the manifest, and drop the journal.

        What another task has put there of the same execution stays in the manifest.

        :param about: what else the manifest is to say
        """
        manifest = self._dest / MANIFEST
        known = self._read_files(manifest)
        known.update({(file.index, file.file_name): file for file in files})
        ordered = [known[key] for key in sorted(known)]
        document = {
            "execution_id": self._execution_id,
            **about,
            "file_count": len(ordered),
            "byte_count": sum(file.bytes for file in ordered),
            "files": [asdict(file) for file in ordered],
        }
        write_whole(manifest, json.dumps(document, indent=1).encode(), self._attempt)
        locations.remove(self._journal)
        note_written(self._dest)
        return manifest

    def _read_journal(self) -> dict[tuple[int, str], DownloadedFile]:
        return {**self._read_files(self._dest / MANIFEST), **self._read_files(self._journal)}

    def _read_files(self, path: StoragePath) -> dict[tuple[int, str], DownloadedFile]:
        """Files of this execution that a journal or a manifest lists."""
        if not locations.exists(path):
            return {}
        try:
            found = json.loads(locations.read_bytes(path))
            if found["execution_id"] != self._execution_id:
                return {}
            files = [DownloadedFile(**file) for file in found["files"]]
        except (ValueError, KeyError, TypeError):
            return {}  # not one of ours: everything is fetched
        return {(file.index, file.file_name): file for file in files}

    def _write_journal(self) -> None:
        document = {
            "execution_id": self._execution_id,
            "files": [asdict(file) for file in self._done.values()],
        }
        write_whole(self._journal, json.dumps(document).encode(), self._attempt)
        self._written_at = time.monotonic()


def is_wanted(file_name: str, globs: Sequence[str] | None) -> bool:
    """Whether a file has one of some names or globs; ``None`` for all files."""
    # By itself too: a name may hold brackets.
    return globs is None or any(file_name == glob or fnmatchcase(file_name, glob) for glob in globs)


def download_records(
    download: ArtifactDownload,
    indexes: Iterable[int],
    globs: Sequence[str] | None,
    list_names: Callable[[int], Sequence[str]],
    fetch: Callable[[int, str, Callable[[], Sink]], None],
    max_connections: int,
) -> Iterator[list[DownloadedFile]]:
    """Files of many records, several at once; what is in place is noted where it ends early.

    :param download: where they go
    :param globs: names or globs of the wanted files; ``None`` for all
    :param list_names: the files that a record left
    :param fetch: carries out the request for a file of a record, with a function that opens a sink
    :return: the files of each record, as they end
    """

    def store(index: int) -> list[DownloadedFile]:
        places = download.places(index, list_names(index))
        return [
            download.fetch(index, name, place, partial(fetch, index, name))
            for name, place in places.items()
            if is_wanted(name, globs)
        ]

    try:
        yield from in_threads((partial(store, index) for index in indexes), max_connections)
    except BaseException:
        download.keep()
        raise


def in_threads(jobs: Iterable[Callable[[], Any]], max_workers: int) -> Iterator[Any]:
    """Results of jobs as they end, some at once; the first that fails stops the rest.

    No more jobs are drawn than are under way twice over, so that a million of them take no memory.
    """
    waiting: set[Future[Any]] = set()
    # Not `wait`: it looks at all of them for each that ends.
    ended: SimpleQueue[Future[Any]] = SimpleQueue()
    drawn = iter(jobs)
    with ThreadPoolExecutor(max_workers) as pool:
        try:
            while True:
                for job in islice(drawn, 2 * max_workers - len(waiting)):
                    future = pool.submit(job)
                    waiting.add(future)
                    future.add_done_callback(ended.put)
                if not waiting:
                    return
                future = ended.get()
                waiting.remove(future)
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


def _fetch_into(whole: StagedFile, fetch: Fetch) -> tuple[int, str]:
    """Stream one file into place; returns its size and checksum."""
    staged: StagedFile | None = None

    def open_sink() -> Sink:
        nonlocal staged
        if staged is not None:
            # The line was lost in the middle, and the content starts over.
            staged.__exit__(ConnectionError, ConnectionError("starts over"), None)
        staged = whole.again()
        staged.__enter__()
        return _FileSink(staged)

    try:
        fetch(open_sink)
        if staged is None:
            raise ContractError(f"{whole.path}: the server sent no file")
    except BaseException:
        if staged is not None:
            staged.__exit__(*sys.exc_info())
        raise
    staged.__exit__(None, None, None)
    return staged.size, staged.sha256
