"""Worker processes as the server sees them: started, spoken to, killed, buried."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.documents import shown
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.server.wire import LENGTH, Hello, Outcome, Task, ToServer, frame, to_server
from airflow_mlbatch.server.worker import WorkerSettings, work

__all__ = ["ServicesError", "Worker", "start_worker"]

_START_SECONDS = 300
_BURY_SECONDS = 5
_LAST_WORDS_READ = 4_000
_LAST_WORDS_SHOWN = 280
_READ_BYTES = 1024 * 1024


def _context() -> BaseContext:
    # The server has threads, so it must not fork itself. A fork server that has imported this
    # package, but no service, starts a worker in a few milliseconds; forking after a service was
    # loaded would be quicker still, but libraries that run threads (OpenMP) do not survive it.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["airflow_mlbatch.server.worker", "airflow_mlbatch.server.fork_server"]
        )
        return context
    return multiprocessing.get_context("spawn")


class ServicesError(InputError):
    """A worker cannot load the services.

    :param details: the traceback, where they raised something
    """

    def __init__(self, problem: str, details: str) -> None:
        super().__init__(problem)
        self.details = details


class Worker:
    """A worker process that has loaded the services.

    :param scratch: where it makes its folder
    """

    def __init__(
        self,
        process: BaseProcess,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        scratch: Path,
    ) -> None:
        self._scratch = scratch
        self._process, self._reader, self._writer = process, reader, writer
        self._killed_because = ""
        self.services: list[Service] = []
        self.purpose: object = None
        self.unfinished: list[tuple[int, bytes]] = []
        self.record_began = 0.0
        self.has_left = False
        self.cause_of_death = ""
        self._is_found_dead = False
        self._is_ending = False

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid

    @property
    def is_killed(self) -> bool:
        """Whether this server has ended it."""
        return bool(self._killed_because)

    async def hear_hello(self, settings: WorkerSettings, seconds: float) -> None:
        """Wait until it has loaded the services.

        :raises ServicesError: it cannot, and says why
        :raises InputError: it died, or says nothing
        """
        what, them = "services", "them"
        if settings.program is not None:
            name, version = settings.program.key
            what, them = f"service {name!r} version {version!r}", "it"
        try:
            hello = await asyncio.wait_for(self._receive(), seconds)
        except asyncio.TimeoutError:
            raise InputError(f"{what}: found nothing loaded within {seconds:g} seconds") from None
        if not isinstance(hello, Hello):
            await self.end()
            raise InputError(
                f"{what}: the worker died while loading {them} ({self.cause_of_death})"
                + await asyncio.to_thread(_last_words, settings.last_words)
            )
        if hello.problem:
            problem = hello.problem if settings.program is None else f"{what}, {hello.problem}"
            raise ServicesError(problem, hello.details)
        self.services = [described.service() for described in hello.services]

    async def run(self, task: Task, purpose: object, take: Callable[[Outcome], None]) -> bool:
        """Have records scored.

        :param purpose: what the task belongs to, for those who look for the worker that is on it
        :param take: called with each outcome as it arrives
        :return: whether the worker can take another task; if not, ``unfinished`` holds the records
            without an outcome, the one it died on first
        """
        self.purpose, self.unfinished = purpose, list(task.records)
        loop = asyncio.get_running_loop()
        self.record_began = loop.time()
        try:
            self._writer.write(frame(task))
            for place in range(len(task.records)):
                outcome = await self._receive()
                if not isinstance(outcome, Outcome):
                    self.unfinished = list(task.records[place:])
                    await self.end()
                    return False
                self.record_began = loop.time()
                take(outcome)
                if outcome.is_last:
                    self.has_left = True
                    self.unfinished = list(task.records[place + 1 :])
                    return False
            self.unfinished = []
            return True
        finally:
            self.purpose = None

    @property
    def is_alive(self) -> bool:
        """Whether it can still be given a task."""
        return self._process.is_alive() and not self._reader.at_eof()

    async def is_alive_until(self, event: asyncio.Event) -> bool:
        """Wait for an event or for the death of this worker; whether it lives."""
        waiting = asyncio.ensure_future(event.wait())
        dying = asyncio.ensure_future(self._reader.read(1))
        # Nothing is said while there is no task, so that a word (or the end) means trouble.
        done, _ = await asyncio.wait({waiting, dying}, return_when=asyncio.FIRST_COMPLETED)
        for one in (waiting, dying):
            one.cancel()
        await asyncio.gather(waiting, dying, return_exceptions=True)
        return dying not in done

    def kill(self, reason: str) -> None:
        """End it at once, with everything that its service has started."""
        self._killed_because = self._killed_because or reason
        self._kill_group()
        with suppress(OSError, ValueError):
            self._process.kill()

    def sweep(self) -> None:
        """When it is dead, end what its service has started.

        A child that it forked holds its end of the line open: the server would go on listening.
        """
        # Two that ask for its end at the same time would each get half of the answer.
        if self._is_ending or self._process.is_alive():
            return
        self._kill_group()
        if self._is_found_dead:
            # A child that has left the group, too, is still there: what the worker said before it
            # died has been read since the last time.
            self._writer.transport.abort()
        self._is_found_dead = True

    def _kill_group(self) -> None:
        if self._process.pid is not None and hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Make sure that it is dead, with everything that its service has started, and why."""
        self._is_ending = True
        self._writer.close()
        await asyncio.to_thread(self._process.join, 1 if self.has_left else 0.5)
        if self._process.is_alive():
            self.kill("")
            await asyncio.to_thread(self._process.join, _BURY_SECONDS)
        self._kill_group()
        if self._process.pid is not None:
            await asyncio.to_thread(_remove_folder, self._scratch, self._process.pid)
        self.cause_of_death = self._killed_because or _cause(self._process.exitcode)

    async def _receive(self) -> ToServer | None:
        """The next message; ``None`` when it is dead."""
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            return to_server(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError, msgspec.DecodeError):
            return None


async def start_worker(settings: WorkerSettings, seconds: float = _START_SECONDS) -> Worker:
    """Start a worker process and wait until it has loaded the services.

    :param seconds: how long that may take
    :raises InputError: the services cannot be loaded
    """
    ours, theirs = socket.socketpair()
    with theirs:
        process = _context().Process(  # type: ignore[attr-defined]
            target=work, args=(theirs, settings), name="mlbatch-worker"
        )
        try:
            await _to_the_end(asyncio.to_thread(process.start))
        except BaseException:
            ours.close()
            if process.pid is not None:
                process.kill()
            raise
    ours.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=ours, limit=_READ_BYTES)
    worker = Worker(process, reader, writer, settings.scratch)
    try:
        await worker.hear_hello(settings, seconds)
    except BaseException:
        worker.kill("it cannot be used")
        await _to_the_end(worker.end())
        raise
    return worker


def _remove_folder(scratch: Path, pid: int) -> None:
    """Remove what a worker that was killed has left."""
    shutil.rmtree(scratch / f"worker-{pid}", ignore_errors=True)


def _last_words(path: Path | None) -> str:
    """The end of what a worker has said on stderr, as a part of a sentence."""
    try:
        text = path.read_bytes()[-_LAST_WORDS_READ:].decode("utf-8", "replace") if path else ""
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for place, line in enumerate(lines):
        if line.startswith("Fatal Python error"):
            # What follows is the stack of the loader, not of what it was loading.
            del lines[place + 1 :]
            break
    said = "; ".join(lines)[-_LAST_WORDS_SHOWN:]
    return f"; its last words: {shown(said.encode())}" if said else ""


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await something that must not stop half-way, whoever cancels it.

    A process that starts after everybody has turned away is buried by nobody: this one would wait
    for it for ever when it exits.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    await task


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "the worker process vanished"
    if exit_code >= 0:
        return f"the worker process ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = str(-exit_code)
    return f"the worker process was killed by signal {name}"
