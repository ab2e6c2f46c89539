"""Has stored records scored in worker processes.

Law: everything here runs on the event loop, so nothing needs a lock; what takes long (storing many
rows, starting a process) runs elsewhere and is awaited. A record whose worker died on it fails;
those that wait behind it are handed out again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.results import BatchStatus, write_record_result
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.server.catalogue import Catalogue, Entry
from airflow_mlbatch.server.folder import DISK_FULL, DataFolder
from airflow_mlbatch.server.guests import Guests
from airflow_mlbatch.server.jobs import Job, Jobs
from airflow_mlbatch.server.processes import ServicesError, Worker, start_worker
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.saving import Saver
from airflow_mlbatch.server.store import Execution, StorageError, Store
from airflow_mlbatch.server.wire import Outcome, Task
from airflow_mlbatch.server.worker import WorkerSettings

__all__ = ["BusyError", "Runner", "RunnerSettings"]

log = logging.getLogger(__name__)

_MOST_WAITING_CALLS = 1_000
_WATCH_SECONDS = 0.1
_CANCEL_GRACE_SECONDS = 0.3
_STOP_GRACE_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_MOST_TRIALS = 2
_MOST_FAILED_LOADS = 3


class BusyError(Exception):
    """Too many request/response calls are waiting for a worker."""


@dataclass(frozen=True)
class RunnerSettings:
    """How records are run.

    :param workers: number of worker processes
    :param max_parallel: most records of one execution at once
    :param record_timeout: seconds that a record may take; 0 for no limit
    :param load_timeout: seconds that a published service may take to be loaded
    """

    workers: int
    max_parallel: int
    record_timeout: float
    load_timeout: float


@dataclass(eq=False)
class _Call:
    """A request/response call: one record, whose outcome somebody waits for."""

    entry: Entry
    record: bytes
    folder: Path
    answer: asyncio.Future[bytes]


class Runner:
    """Scores records in worker processes.

    :param store: where records come from and outcomes go
    """

    def __init__(
        self, store: Store, folder: DataFolder, worker: WorkerSettings, settings: RunnerSettings
    ) -> None:
        self._store, self._folder = store, folder
        self._worker_settings, self._settings = worker, settings
        self._jobs = Jobs()
        self._leaving: dict[str, Job] = {}
        self._calls: deque[_Call] = deque()
        self._running_calls: list[_Call] = []
        self._workers: dict[int, Worker] = {}
        self._guests: dict[int, Guests] = {}
        self._saver = Saver(store, folder, self._after_saving)
        self._wake = asyncio.Event()
        self._has_rubbish = asyncio.Event()
        self._slots: list[asyncio.Task[None]] = []
        self._chores: list[asyncio.Task[None]] = []
        self._services: asyncio.Future[list[Service]]
        self._trials = asyncio.Semaphore(_MOST_TRIALS)
        self._catalogue: Catalogue | None = None
        self._is_stopping = False
        self.worker_problem = ""

    # --- life ---

    async def start(self) -> list[Service]:
        """Start the workers and learn from the first one which services there are.

        :raises InputError: the services cannot be loaded
        """
        self._services = asyncio.get_running_loop().create_future()
        slots = (self._run_slot(slot) for slot in range(self._settings.workers))
        chores = (self._saver.run(), self._watch_records(), self._clean_always())
        self._slots = [asyncio.create_task(slot) for slot in slots]
        self._chores = [asyncio.create_task(chore) for chore in chores]
        return await self._services

    async def resume(self, catalogue: Catalogue) -> None:
        """Go on with what the last server on this folder left unfinished."""
        self._catalogue = catalogue
        for execution in self._store.unfinished():
            program = catalogue.program_of(execution.number)
            entry = catalogue.get(execution.service, execution.version)
            if program is not None or (entry is not None and entry.program is None):
                self.add(execution, program, self._store.done_positions(execution.number))
                continue
            outcome = _failure(
                f"service {execution.service!r} version {execution.version!r} "
                "is no longer published on this server"
            )
            await self._store.write(self._store.fail_execution, execution.number, outcome)
        self.clean_up()

    async def stop(self) -> None:
        """Stop the workers and store what they have reported."""
        self._is_stopping = True
        self._wake.set()
        for slot, task in enumerate(self._slots):
            if slot not in self._workers:
                task.cancel()
        if self._slots:
            await asyncio.wait(self._slots, timeout=_STOP_GRACE_SECONDS)
        for worker in self._all_workers():
            worker.kill("the server stops")
        if self._slots:
            await asyncio.wait(self._slots, timeout=_STOP_GRACE_SECONDS)
        for task in (*self._slots, *self._chores):
            task.cancel()
        await asyncio.gather(*self._slots, *self._chores, return_exceptions=True)
        for call in self._calls:
            call.answer.cancel()
        with suppress(StorageError):
            await self._saver.save()

    # --- what the API asks for ---

    def add(
        self,
        execution: Execution,
        program: Program | None = None,
        done_positions: Iterable[int] = (),
    ) -> None:
        """Take a stored execution up; some of its records may have an outcome already.

        :param program: what runs, where that was published over HTTP
        """
        job = Job.of(execution, self._settings.max_parallel, done_positions, program)
        if job.left:
            self._jobs.add(job)
            self._wake.set()

    def status(self, execution: Execution) -> BatchStatus:
        """What a poll is told: the stored counts, and of the running states the right one."""
        status = execution.status
        if status.is_terminal:
            return status
        job = self._jobs.get(execution.id)
        state = BatchState.PENDING if job is None else BatchState.READY
        if execution.completed or (job is not None and job.is_started):
            state = BatchState.IN_PROGRESS
        return BatchStatus(state, status.completed_item_count, status.total_item_count)

    async def cancel(self, execution: Execution) -> None:
        """Stop the work on an execution; returns when no worker is on it any more."""
        # Somebody may be at it already: then both wait for its end.
        job = self._jobs.remove(execution.id) or self._leaving.get(execution.id)
        if job is None:
            return
        self._leaving[execution.id] = job
        job.cancel()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CANCEL_GRACE_SECONDS
        # A worker that is about to finish is cheaper to wait for than to replace.
        while job.busy:
            if loop.time() > deadline:
                for worker in self._all_workers():
                    if worker.purpose is job:
                        worker.kill("the execution was cancelled")
            await asyncio.sleep(0.01)
        self._leaving.pop(execution.id, None)
        self._saver.drop(execution.number)

    async def delete(self, execution: Execution) -> bool:
        """Stop the work on an execution and forget it, with all that belongs to it.

        :return: false when it was gone already
        """
        await self.cancel(execution)
        if not await self._store.write(self._store.remove_execution, execution.number):
            return False
        await asyncio.to_thread(self._folder.discard, execution.id)
        self.clean_up()
        return True

    async def call(self, entry: Entry, record: bytes) -> bytes:
        """Score one record now, ahead of the batches; returns the outcome as it is sent.

        :raises BusyError: too many calls wait already
        :raises StorageError: the disk is full
        """
        if len(self._calls) >= _MOST_WAITING_CALLS:
            raise BusyError
        folder = self._folder.work / f"call-{uuid.uuid4()}"
        call = _Call(entry, record, folder, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._wake.set()
        try:
            return await call.answer
        finally:
            with suppress(ValueError):
                self._calls.remove(call)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def try_out(self, program: Program) -> None:
        """Load a program in a worker of its own, which ends then.

        :raises InputError: it cannot be loaded; says why, or the last words of the worker
        """
        last_words = self._folder.work / f"last-words-{uuid.uuid4().hex}"
        settings = replace(self._worker_settings, program=program, last_words=last_words)
        try:
            async with self._trials:
                worker = await start_worker(settings, self._settings.load_timeout)
                await worker.end()
        finally:
            last_words.unlink(missing_ok=True)

    def clean_up(self) -> None:
        """Remove, in the background, what deleted executions and services have left behind."""
        self._has_rubbish.set()
        # Idle workers look whether somebody still needs them.
        self._wake.set()

    @property
    def ready_workers(self) -> int:
        """Worker processes that have loaded the services."""
        return len(self._workers)

    @property
    def active_executions(self) -> int:
        """Executions with records to score."""
        return len(self._jobs)

    @property
    def storage_problem(self) -> str:
        """Why outcomes cannot be stored at the moment; empty when they can."""
        return self._saver.problem

    # --- one worker after another ---

    async def _run_slot(self, slot: int) -> None:
        """Have a worker in this slot, always."""
        while not self._is_stopping:
            try:
                worker = await start_worker(self._worker_settings)
            except (InputError, OSError) as error:
                self._report(error)
                if not self._services.done():
                    self._services.set_exception(InputError(str(error)))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self.worker_problem = ""
            if not self._services.done():
                self._services.set_result(worker.services)
            self._workers[slot] = worker
            guests = self._guests[slot] = Guests(self._start_guest)
            try:
                await self._feed(worker, guests)
            except Exception:
                log.exception("the work with worker process %s failed", worker.pid)
                await asyncio.sleep(_RETRY_SECONDS)
            finally:
                del self._workers[slot], self._guests[slot]
                await guests.end_all()
                await worker.end()

    def _report(self, error: InputError | OSError) -> None:
        """Note why no worker starts; the traceback is shown once, not by each worker and try."""
        details = error.details.rstrip() if isinstance(error, ServicesError) else ""
        if details and str(error) != self.worker_problem:
            log.error("%s", details)
        self.worker_problem = str(error)

    async def _feed(self, worker: Worker, guests: Guests) -> None:
        """Give a worker one task after another, until it is gone.

        :param guests: the workers of published services that share its place: one of them all works
            at a time
        """
        is_alive = True
        while is_alive and not self._is_stopping:
            if self._calls:
                is_alive = await self._serve_call(worker, guests, self._calls.popleft())
                continue
            job = None if self._saver.is_blocked else self._jobs.next(self._store)
            if job is not None:
                is_alive = await self._serve_job(worker, guests, job)
                continue
            self._wake.clear()
            await guests.keep(self._programs_in_use() | self._published_ids())
            is_alive = await worker.is_alive_until(self._wake)

    async def _serve_call(self, worker: Worker, guests: Guests, call: _Call) -> bool:
        """Whether the worker of this place can go on; a guest that cannot is replaced."""
        program = call.entry.program
        if program is None:
            return await self._run_call(worker, call)
        self._running_calls.append(call)
        try:
            try:
                guest = await guests.get(program)
            except (InputError, OSError) as error:
                if not call.answer.done():
                    call.answer.set_result(_failure(f"the service cannot be loaded: {error}"))
                return True
            if not await self._run_call(guest, call):
                await guests.bury(guest)
        finally:
            self._running_calls.remove(call)
        return True

    async def _serve_job(self, worker: Worker, guests: Guests, job: Job) -> bool:
        """As :meth:`_serve_call`, for some records of a batch."""
        if job.program is None:
            return await self._run_task(worker, job)
        try:
            guest = await guests.get(job.program)
        except (InputError, OSError) as error:
            await self._after_failed_load(job, str(error))
            return True
        job.failed_loads = 0
        # Others had their turn meanwhile, or it was cancelled.
        if job.has_work(self._store) and not await self._run_task(guest, job):
            await guests.bury(guest)
        return True

    async def _after_failed_load(self, job: Job, reason: str) -> None:
        """Try again a few times, then end the batch: all that is left of it fails."""
        job.failed_loads += 1
        log.error("execution %s: the service cannot be loaded: %s", job.execution.id, reason)
        if job.failed_loads < _MOST_FAILED_LOADS:
            await asyncio.sleep(_RETRY_SECONDS)
            return
        if self._jobs.remove(job.execution.id) is None:
            return
        job.cancel()
        outcome = _failure(f"the service cannot be loaded: {reason}")
        with suppress(StorageError):
            await self._saver.save()
        await self._store.write(self._store.fail_execution, job.execution.number, outcome)
        self.clean_up()

    async def _start_guest(self, program: Program) -> Worker:
        settings = replace(self._worker_settings, program=program)
        return await start_worker(settings, self._settings.load_timeout)

    def _all_workers(self) -> Iterator[Worker]:
        yield from list(self._workers.values())
        for guests in list(self._guests.values()):
            yield from guests

    def _programs_in_use(self) -> set[str]:
        """Ids of the programs that calls and batches run, or wait for."""
        used = [call.entry.program for call in (*self._calls, *self._running_calls)]
        used += [job.program for job in self._jobs]
        return {program.id for program in used if program is not None}

    def _published_ids(self) -> set[str]:
        return {program.id for program in self._catalogue.programs()} if self._catalogue else set()

    async def _run_task(self, worker: Worker, job: Job) -> bool:
        execution, records = job.execution, job.hand_out(self._settings.workers)
        keep_in = str(self._folder.artifacts(execution.id))
        task = Task(execution.service, execution.version, keep_in, records)
        loop = asyncio.get_running_loop()
        job.busy += 1
        job.is_started = True
        began = loop.time()
        try:
            is_alive = await worker.run(task, job, lambda outcome: self._take(job, outcome))
            job.learn((loop.time() - began) / len(records))
            if not is_alive:
                self._after_death(worker, job)
            return is_alive
        finally:
            job.busy -= 1
            self._wake.set()

    def _take(self, job: Job, outcome: Outcome) -> None:
        if outcome.result:
            self._finish(job, outcome.position, outcome.result)
            return
        job.put_back(self._store.records(job.execution.number, outcome.position, 1))
        self._saver.report_full_disk()

    def _finish(self, job: Job, position: int, result: bytes) -> None:
        if job.finish(position):
            self._saver.take((job.execution.number, position, result))

    def _after_death(self, worker: Worker, job: Job) -> None:
        """Fail the record that the worker died on and hand its others out again."""
        left = list(worker.unfinished)
        is_stopped = self._is_stopping and worker.is_killed
        if left and not worker.has_left and not is_stopped:
            position, _ = left.pop(0)
            self._finish(job, position, _failure(worker.cause_of_death))
        job.put_back(left)

    async def _run_call(self, worker: Worker, call: _Call) -> bool:
        if call.answer.done():
            return True
        service = call.entry.service
        records = [(0, call.record)]
        task = Task(service.name, service.version, str(call.folder), records, with_files=True)
        outcomes: list[Outcome] = []
        is_alive = await worker.run(task, call, outcomes.append)
        if call.answer.done():
            return is_alive
        if not outcomes:
            call.answer.set_result(_failure(worker.cause_of_death))
        elif not outcomes[0].result:
            call.answer.set_exception(StorageError(DISK_FULL))
        else:
            call.answer.set_result(outcomes[0].result)
        return is_alive

    # --- chores ---

    def _after_saving(self, numbers: set[int]) -> None:
        if any(job.program is not None for job in self._jobs.forget_finished(numbers)):
            self.clean_up()
        self._wake.set()

    async def _watch_records(self) -> None:
        """End workers whose record takes too long, and what dead workers have left running."""
        limit = self._settings.record_timeout
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = asyncio.get_running_loop().time()
            for worker in self._all_workers():
                if worker.purpose is None:
                    continue
                if limit and now - worker.record_began > limit:
                    worker.kill(f"the record took longer than {limit:g} seconds")
                worker.sweep()

    async def _clean_always(self) -> None:
        while True:
            await self._has_rubbish.wait()
            self._has_rubbish.clear()
            try:
                if self._catalogue is not None:
                    await self._catalogue.collect(self._programs_in_use())
                await asyncio.to_thread(self._folder.empty_trash)
                while await self._store.write(self._store.purge):
                    continue  # Others write in between: each step is a transaction of its own.
            except StorageError:
                await asyncio.sleep(_RETRY_SECONDS)
                self._has_rubbish.set()


def _failure(reason: str) -> bytes:
    return write_record_result(success=False, outputs={}, error=reason)
