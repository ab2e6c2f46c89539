"""Worker processes as the server sees them: started, spoken to, killed, buried."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgspec

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.documents import shown
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.server.blocks import Block, parts_of
from airflow_mlbatch.server.outbox import Journal, shared_memory
from airflow_mlbatch.server.wire import (
    LENGTH,
    Again,
    Hello,
    Outcomes,
    Task,
    ToServer,
    frame,
    to_server,
)
from airflow_mlbatch.server.worker import WorkerSettings, work

__all__ = ["ServicesError", "Work", "Worker", "start_worker", "watch_records"]

_START_SECONDS = 300
_WATCH_SECONDS = 0.1
_BURY_SECONDS = 5
_LAST_WORDS_READ = 4_000
_LAST_WORDS_SHOWN = 280
_READ_BYTES = 1024 * 1024
# A worker that says nothing for so long is on a long record; those before it should not wait for it.
_LONG_SECONDS = 0.25


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


@dataclass(frozen=True)
class Work:
    """What a worker has to do with records.

    :param purpose: what it belongs to, for those who look for the worker that is on it
    :param keep_in: folder for the artifacts
    :param with_files: whether the artifacts also go into the results
    """

    purpose: object
    name: str
    version: str
    keep_in: str
    with_files: bool = False

    def task(self, serial: int, records: Block) -> Task:
        """The message about some records."""
        return Task(serial, self.name, self.version, self.keep_in, *records, self.with_files)


class Worker:
    """A worker process that has loaded the services.

    :param journal: where it keeps outcomes that it has not sent yet
    :param scratch: where it makes its folder
    """

    def __init__(
        self,
        process: BaseProcess,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        journal: Journal,
        scratch: Path,
    ) -> None:
        self._journal, self._scratch = journal, scratch
        self._process, self._reader, self._writer = process, reader, writer
        self._killed_because = ""
        self.services: list[Service] = []
        self.purpose: object = None
        self._take: Callable[[Block], None] | None = None
        self._task = self.unfinished = Block(0, 0, b"")
        self._next = 0
        self._is_vectorized = False
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

    async def run(
        self,
        work: Work,
        records: Block,
        take: Callable[[Block], None],
        put_back: Callable[[Block], None],
    ) -> bool:
        """Have records scored.

        :param work: what the records belong to
        :param take: called with outcomes as they arrive
        :param put_back: called with records that have to be run again on a disk with space
        :return: whether the worker can take another task; if not, :meth:`bequest` tells what is left
        """
        self.purpose, self._take = work.purpose, take
        self._task, self._next = records, records.first
        self._is_vectorized = any(
            one.is_vectorized and (one.name, one.version) == (work.name, work.version)
            for one in self.services
        )
        self._journal.serial += 1
        self.record_began = asyncio.get_running_loop().time()
        try:
            self._writer.write(frame(work.task(self._journal.serial, records)))
            return await self._heard_all(put_back)
        except BaseException:
            # What it still says about this task must not be taken for an answer to the next one.
            self.kill("its task was given up")
            raise
        finally:
            self.unfinished = self._task.part(self._next, self._task.end)
            self.purpose = self._take = None

    async def _heard_all(self, put_back: Callable[[Block], None]) -> bool:
        # What was read from the journal comes on the line, too: this counts what the line has said.
        heard = self._task.first
        while heard < self._task.end:
            message = await self._receive()
            self.record_began = asyncio.get_running_loop().time()
            if isinstance(message, Outcomes):
                self._accept(Block(message.first, message.count, message.texts))
                heard = message.first + message.count
            elif isinstance(message, Again):
                self._next = heard = message.first + message.count
                put_back(self._task.part(message.first, heard))
            else:
                await self.end()
                self._accept(self._journal.read())
                return False
            if message.is_last:
                self.has_left = True
                return False
        return True

    def _accept(self, outcomes: Block | None) -> None:
        """Hand on outcomes that are new: some may have been read from the journal before."""
        if outcomes is None or self._take is None:
            return
        if outcomes.first <= self._next < outcomes.end <= self._task.end:
            new = outcomes.part(self._next, outcomes.end)
            self._next = new.end
            self._take(new)

    def look_after(self) -> None:
        """While it is on a long record, take the outcomes of those before it."""
        if asyncio.get_running_loop().time() - self.record_began > _LONG_SECONDS:
            self._accept(self._journal.read())

    def bequest(self) -> tuple[int | None, list[Block]]:
        """What a dead worker leaves: the position of the record it died on, and what is tried next.

        Who has left by itself died on none. Records that were scored in one call show which of them
        it was when each of these blocks is tried by itself.
        """
        left = self.unfinished
        if self.has_left or not left.length:
            return None, [left]
        if left.length > 1 and self._is_vectorized:
            return None, parts_of(left)
        return left.first, [left.part(left.first + 1, left.end)]

    @property
    def is_alive(self) -> bool:
        """Whether it can still be given a task."""
        return self._process.is_alive() and not self._reader.at_eof() and not self.is_killed

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
        context = _context()
        memory = shared_memory(context)
        process = context.Process(  # type: ignore[attr-defined]
            target=work, args=(theirs, memory, settings), name="mlbatch-worker"
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
    worker = Worker(process, reader, writer, Journal(memory), settings.scratch)
    try:
        await worker.hear_hello(settings, seconds)
    except BaseException:
        worker.kill("it cannot be used")
        await _to_the_end(worker.end())
        raise
    return worker


async def watch_records(working: Callable[[], Iterable[tuple[Worker, float]]]) -> None:
    """End workers whose record takes too long, and what dead workers have left running; for ever.

    :param working: the workers that are on a record, and the seconds that it may take: 0 for no limit
    """
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        now = asyncio.get_running_loop().time()
        for worker, limit in working():
            if limit and now - worker.record_began > limit:
                worker.kill(f"the record took longer than {limit:g} seconds")
            worker.look_after()
            worker.sweep()


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
