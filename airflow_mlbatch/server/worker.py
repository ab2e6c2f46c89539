"""A worker process: loads the services and has records scored, one task after another.

Law: user code runs here and nowhere else. What cannot be put right in this process ends it, and the
server starts another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.server.outbox import Outbox
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.registry import Published, load_services
from airflow_mlbatch.server.scoring import ProgramScorer, RecordFolder, Scorer, sendable
from airflow_mlbatch.server.signals import bear_sigterm
from airflow_mlbatch.server.wire import LENGTH, Described, Hello, decode_task, frame

__all__ = ["WorkerSettings", "work"]

_MEMORY_CHECK_SECONDS = 0.1


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is started with.

    :param sources: modules and files that publish services
    :param scratch: where it makes the folders that records run in
    :param max_records: leave after so many records; 0 for never
    :param max_growth: leave when memory has grown by so many bytes since the services were loaded;
        0 for never
    :param program: the published service that it belongs to, in place of those of ``sources``
    :param max_memory: most bytes of memory for a program; 0 for no limit
    :param last_words: a file for what a program says on stderr while it is loaded
    """

    sources: Sequence[str]
    scratch: Path
    max_records: int
    max_growth: int
    program: Program | None = None
    max_memory: int = 0
    last_words: Path | None = None


def work(line: socket.socket, memory: Any, settings: WorkerSettings) -> None:
    """The life of a worker process: until the server hangs up, or it has to leave.

    :param memory: for outcomes that are not sent yet
    """
    _become_worker()
    with contextlib.suppress(ConnectionError):  # The server has gone.
        _work(line, memory, settings)


def _work(line: socket.socket, memory: Any, settings: WorkerSettings) -> None:
    folder = RecordFolder(settings.scratch / f"worker-{os.getpid()}")
    try:
        with _LastWords(settings.last_words):
            runners = _loaded(settings, folder)
    except MLBatchError as error:
        cause = error.__cause__
        details = "".join(traceback.format_exception(cause)) if cause is not None else ""
        line.sendall(frame(Hello([], sendable(str(error)), sendable(details))))
        return
    line.sendall(frame(Hello([Described.of(scorer.service) for scorer in runners.values()])))
    limits, outbox = _Limits(settings), Outbox(line, memory)
    with line, line.makefile("rb") as words:
        while True:
            head = words.read(LENGTH.size)
            if len(head) < LENGTH.size:
                break
            task = decode_task(words.read(*LENGTH.unpack(head)))
            if not runners[task.name, task.version].run(task, outbox, limits.are_reached):
                break
    folder.remove()


def _loaded(settings: WorkerSettings, folder: RecordFolder) -> dict[tuple[str, str], Scorer]:
    """What this worker can run.

    :raises MLBatchError: it cannot be loaded
    """
    if settings.program is None:
        # A server may have no service but those that are published on it.
        published = load_services(settings.sources) if settings.sources else {}
        return {key: _scorer(one, folder) for key, one in published.items()}
    _become_expendable(settings.max_memory)
    # What it writes while it is loaded is nobody's, and goes with the folder.
    folder.enter()
    try:
        return {settings.program.key: ProgramScorer(settings.program, folder)}
    finally:
        folder.leave()


def _scorer(published: Published, folder: RecordFolder) -> Scorer:
    if published.description.is_vectorized:
        from airflow_mlbatch.server.vectorized import VectorizedScorer

        return VectorizedScorer(published.description, folder, published.function)
    return Scorer(published.description, folder, published.function)


def _become_expendable(max_memory: int) -> None:
    """Let what was published by others harm this process only."""
    with contextlib.suppress(OSError):
        # Whom Linux kills first when memory runs out: not the server.
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        if max_memory:
            resource.setrlimit(resource.RLIMIT_AS, (max_memory, max_memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _LastWords:
    """Sends stderr into a file for a while, so that somebody can read it if this process dies."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        if self._path is None:
            return
        self._stderr = os.dup(2)
        with self._path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        faulthandler.enable(2, all_threads=False)

    def __exit__(self, *error: object) -> None:
        if self._path is None:
            return
        faulthandler.disable()
        os.dup2(self._stderr, 2)
        os.close(self._stderr)


def _become_worker() -> None:
    sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bear_sigterm()
    if hasattr(os, "setsid"):
        # A group of its own: what a service has started goes with the worker when it is killed.
        os.setsid()
    # What a library prints below Python goes to the log: stdout belongs to the ready line.
    os.dup2(2, 1)
    threading.Thread(target=_die_with_server, name="die-with-server", daemon=True).start()


def _die_with_server() -> None:
    server = parent_process()
    if server is None:
        return
    server.join()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


class _Limits:
    """Says when a worker has done its share."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._count = 0
        self._checked_at = 0.0
        self._memory_at_start = _resident_bytes()

    def are_reached(self, count: int) -> bool:
        """Count records; whether they were the last ones."""
        self._count += count
        if self._settings.max_records and self._count >= self._settings.max_records:
            return True
        now = time.monotonic()
        if not self._settings.max_growth or now - self._checked_at < _MEMORY_CHECK_SECONDS:
            return False
        self._checked_at = now
        return _resident_bytes() - self._memory_at_start > self._settings.max_growth


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
