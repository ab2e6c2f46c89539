"""What the server has run inside a Dask worker: chunks, and the arrival of parcels.

Law: no user code runs here. A chunk is handed to the process beside this worker (``dask_host``), and
this side only waits for it. When nobody wants the chunk any more, because it was cancelled or because
the server has gone, its processes are ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from pathlib import Path

import msgspec
from distributed.worker import Worker, get_worker

from airflow_mlbatch import __version__
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server.chunks import Done, Stop
from airflow_mlbatch.server.parcels import Manifest, ParcelShelf
from airflow_mlbatch.server.wire import LENGTH, frame, framed

__all__ = [
    "HostEndedError",
    "add_piece",
    "begin_parcel",
    "finish_parcel",
    "run_chunk",
    "stop_chunks",
]

_LOOK_SECONDS = 0.25
_END_SECONDS = 2


class HostEndedError(Exception):
    """The process that scores the chunks of a Dask worker has ended."""


def begin_parcel(version: str, parcel_id: str, in_use: Collection[str]) -> str:
    """Prepare to take a parcel, and throw away those that are not in use.

    :return: the word under which its pieces come; empty when it is here already
    :raises InputError: this worker has another release of the package
    """
    if version != __version__:
        raise InputError(
            f"found airflow-mlbatch {__version__}, expected {version} as on the server"
        )
    shelf = _place().shelf
    shelf.keep({*in_use, parcel_id})
    return "" if shelf.has(parcel_id) else shelf.begin(parcel_id)


def add_piece(word: str, path: str, piece: bytes) -> None:
    """Take the next piece of a file."""
    _place().shelf.add(word, path, piece)


def finish_parcel(word: str, manifest: bytes) -> None:
    """Make a parcel available.

    :raises InputError: it did not arrive whole
    """
    _place().shelf.finish(word, msgspec.msgpack.decode(manifest, type=Manifest))


def run_chunk(chunk_id: str, home: str, chunk: bytes) -> bytes:
    """Score a chunk.

    :param home: the folder of the worker that it was sent to
    :return: a :class:`Done`
    :raises HostEndedError: this is another worker at the same address, or its processes have died
    """
    worker = get_worker()
    if worker.local_directory != home:
        raise HostEndedError("the worker was started again")
    key = worker.get_current_task()

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        is_running = task is not None and task.state in ("executing", "long-running")
        return is_running and worker.status.name not in ("closing", "closed", "failed")

    return _place().run(chunk_id, chunk, is_wanted)


def stop_chunks(ids: list[str], dask_worker: Worker) -> None:
    """End chunks at once; Dask passes the worker."""
    place = _places.get(dask_worker.local_directory)
    if place is not None:
        place.stop(ids)


class _Place:
    """What belongs to one Dask worker.

    :param folder: that Dask removes with the worker
    """

    def __init__(self, folder: Path) -> None:
        self.shelf = ParcelShelf(folder / "parcels")
        self._folder = folder
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[bytes]] = {}
        self._line: socket.socket | None = None

    def run(self, chunk_id: str, chunk: bytes, is_wanted: Callable[[], bool]) -> bytes:
        """Wait for a chunk, as long as somebody wants it."""
        answer = self._send(chunk_id, chunk)
        while True:
            try:
                return answer.result(_LOOK_SECONDS)
            except NotYet:
                if not is_wanted():
                    self.stop([chunk_id])

    def stop(self, ids: list[str]) -> None:
        """End chunks at once."""
        with self._lock:
            if self._line is not None:
                self._line.sendall(frame(Stop(ids)))

    def _send(self, chunk_id: str, chunk: bytes) -> Future[bytes]:
        answer: Future[bytes] = Future()
        with self._lock:
            if self._line is None:
                self._line = self._start()
            self._waiting[chunk_id] = answer
            try:
                self._line.sendall(framed(chunk))
            except OSError as error:
                del self._waiting[chunk_id]
                raise HostEndedError(str(error)) from None
        return answer

    def _start(self) -> socket.socket:
        """Start the process that scores, and listen to it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs:
            module = "airflow_mlbatch.server.dask_host"
            command = [sys.executable, "-m", module, str(self._folder), str(theirs.fileno())]
            # A session of its own: a signal to Dask's processes must not take it for one of them.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__,
                pass_fds=[theirs.fileno()],
                start_new_session=os.name == "posix",
            )
        threading.Thread(
            target=self._listen, args=(process, ours), name="mlbatch-host", daemon=True
        ).start()
        return ours

    def _listen(self, process: subprocess.Popen[bytes], line: socket.socket) -> None:
        read = msgspec.msgpack.Decoder(Done)
        # A process that ends with something unread resets the line.
        with suppress(OSError), line.makefile("rb") as words:
            while len(head := words.read(LENGTH.size)) == LENGTH.size:
                body = words.read(*LENGTH.unpack(head))
                try:
                    done = read.decode(body)
                except ValueError:
                    break  # It was cut off in the middle.
                with self._lock:
                    answer = self._waiting.pop(done.id)
                answer.set_result(body)
        with self._lock:
            self._line = None
            waiting, self._waiting = self._waiting, {}
        line.close()
        try:
            code = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for answer in waiting.values():
            answer.set_exception(HostEndedError(f"the scoring process ended with exit code {code}"))


_places: dict[str, _Place] = {}
_places_lock = threading.Lock()


def _place() -> _Place:
    home = get_worker().local_directory
    with _places_lock:
        if home not in _places:
            _places[home] = _Place(Path(home, "mlbatch"))
        return _places[home]
