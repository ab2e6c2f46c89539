"""Has records scored in worker processes of this machine: the engine that is built in.

Law: as the desk's. A record whose worker died on it fails; those that wait behind it are handed out
again.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.desk import RETRY_SECONDS, Call, Desk
from airflow_mlbatch.server.folder import has_room
from airflow_mlbatch.server.guests import Guests
from airflow_mlbatch.server.jobs import Job, Pace
from airflow_mlbatch.server.processes import (
    ServicesError,
    Work,
    Worker,
    start_worker,
    watch_records,
)
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.worker import WorkerSettings

__all__ = ["ProcessEngine", "ProcessEngineSettings"]

log = logging.getLogger(__name__)

_STOP_GRACE_SECONDS = 1.0
_MOST_TRIALS = 2


@dataclass(frozen=True)
class ProcessEngineSettings:
    """How records are run.

    :param workers: number of worker processes
    :param record_timeout: seconds that a record may take; 0 for no limit
    :param load_timeout: seconds that a published service may take to be loaded
    :param has_batches: whether it scores batches, too, and not only request/response calls
    """

    workers: int
    record_timeout: float
    load_timeout: float
    has_batches: bool = True


class ProcessEngine:
    """Keeps worker processes and gives them the records of the desk."""

    pace = Pace()

    def __init__(self, desk: Desk, worker: WorkerSettings, settings: ProcessEngineSettings) -> None:
        self._desk = desk
        self._worker_settings, self._settings = worker, settings
        self._workers: dict[int, Worker] = {}
        self._guests: dict[int, Guests[Program]] = {}
        self._slots: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self._services: asyncio.Future[list[Service]]
        self._trials = asyncio.Semaphore(_MOST_TRIALS)
        self._is_stopping = False
        self.problem = ""

    # --- life ---

    async def start(self) -> None:
        """Start the workers, and wait until one of them has loaded the services.

        :raises InputError: the services cannot be loaded
        """
        self._services = asyncio.get_running_loop().create_future()
        slots = (self._run_slot(slot) for slot in range(self._settings.workers))
        self._slots = [asyncio.create_task(slot) for slot in slots]
        self._watch = asyncio.create_task(watch_records(self._working))
        await self._services

    async def stop(self) -> None:
        """Stop the workers."""
        self._is_stopping = True
        self._desk.wake.set()
        for slot, task in enumerate(self._slots):
            if slot not in self._workers:
                task.cancel()
        if self._slots:
            await asyncio.wait(self._slots, timeout=_STOP_GRACE_SECONDS)
        for worker in self._all_workers():
            worker.kill("the server stops")
        if self._slots:
            await asyncio.wait(self._slots, timeout=_STOP_GRACE_SECONDS)
        tasks = [*self._slots, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def end_work_on(self, job: Job) -> None:
        """Kill the workers that are on a batch."""
        for worker in self._all_workers():
            if worker.purpose is job:
                worker.kill("the execution was cancelled")

    async def try_out(self, program: Program) -> None:
        """Load a program in a worker of its own, which ends then.

        :raises InputError: it cannot be loaded; says why, or the last words of the worker
        """
        last_words = self._desk.folder.work / f"last-words-{uuid.uuid4().hex}"
        settings = replace(self._worker_settings, program=program, last_words=last_words)
        try:
            async with self._trials:
                worker = await start_worker(settings, self._settings.load_timeout)
                await worker.end()
        finally:
            last_words.unlink(missing_ok=True)

    @property
    def services(self) -> list[Service]:
        """What the first worker has loaded."""
        return self._services.result()

    @property
    def ready_workers(self) -> int:
        """Worker processes that have loaded the services."""
        return len(self._workers)

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
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self.problem = ""
            if not self._services.done():
                self._services.set_result(worker.services)
            self._workers[slot] = worker
            guests = self._guests[slot] = Guests(self._start_guest)
            try:
                await self._feed(worker, guests)
            except Exception:
                log.exception("the work with worker process %s failed", worker.pid)
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                del self._workers[slot], self._guests[slot]
                await guests.end_all()
                await worker.end()

    def _report(self, error: InputError | OSError) -> None:
        """Note why no worker starts; the traceback is shown once, not by each worker and try."""
        details = error.details.rstrip() if isinstance(error, ServicesError) else ""
        if details and str(error) != self.problem:
            log.error("%s", details)
        self.problem = str(error)

    async def _feed(self, worker: Worker, guests: Guests[Program]) -> None:
        """Give a worker one task after another, until it is gone.

        :param guests: the workers of published services that share its place: one of them all works
            at a time
        """
        desk = self._desk
        is_alive = True
        while is_alive and not self._is_stopping:
            if desk.calls:
                is_alive = await self._serve_call(worker, guests, desk.calls.popleft())
                continue
            job = desk.next_job() if self._settings.has_batches else None
            if job is not None:
                is_alive = await self._serve_job(worker, guests, job)
                continue
            desk.wake.clear()
            await guests.keep(desk.programs_in_use() | desk.published_ids())
            is_alive = await worker.is_alive_until(desk.wake)

    async def _serve_call(self, worker: Worker, guests: Guests[Program], call: Call) -> bool:
        """Whether the worker of this place can go on; a guest that cannot is replaced."""
        program = call.entry.program
        if program is None:
            return await self._run_call(worker, call)
        self._desk.running_calls.append(call)
        try:
            try:
                guest = await guests.get(program)
            except (InputError, OSError) as error:
                call.fail(f"the service cannot be loaded: {error}")
                return True
            if not await self._run_call(guest, call):
                await guests.bury(guest)
        finally:
            self._desk.running_calls.remove(call)
        return True

    async def _serve_job(self, worker: Worker, guests: Guests[Program], job: Job) -> bool:
        """As :meth:`_serve_call`, for some records of a batch."""
        if job.program is None:
            return await self._run_task(worker, job)
        try:
            guest = await guests.get(job.program)
        except (InputError, OSError) as error:
            if has_room(self._desk.folder.path):
                await self._desk.after_failed_load(job, str(error))
            else:
                self._desk.wait_for_space()
            return True
        job.failed_loads = 0
        # Others had their turn meanwhile, or it was cancelled.
        if job.has_work(self._desk.store) and not await self._run_task(guest, job):
            await guests.bury(guest)
        return True

    async def _start_guest(self, program: Program) -> Worker:
        settings = replace(self._worker_settings, program=program)
        return await start_worker(settings, self._settings.load_timeout)

    def _all_workers(self) -> Iterator[Worker]:
        yield from list(self._workers.values())
        for guests in list(self._guests.values()):
            yield from guests

    async def _run_task(self, worker: Worker, job: Job) -> bool:
        desk, execution = self._desk, job.execution
        records = job.hand_out(self._settings.workers)
        keep_in = str(desk.folder.artifacts(execution.id))
        loop = asyncio.get_running_loop()
        job.busy += 1
        job.is_started = True
        began = loop.time()

        def put_back(record: Block) -> None:
            job.put_back(record)
            desk.wait_for_space()

        try:
            work = Work(job, execution.service, execution.version, keep_in)
            is_alive = await worker.run(work, records, partial(desk.take, job), put_back)
            job.learn((loop.time() - began) / records.length)
            if not is_alive:
                self._after_death(worker, job)
            return is_alive
        finally:
            job.busy -= 1
            desk.wake.set()

    def _after_death(self, worker: Worker, job: Job) -> None:
        """Fail the record that the worker died on, where that is known, and hand the others out again."""
        if self._is_stopping and worker.is_killed:
            return
        position, left = worker.bequest()
        if position is not None:
            self._desk.fail(job, position, worker.cause_of_death)
        job.put_back(*left, are_alone=len(left) > 1)

    async def _run_call(self, worker: Worker, call: Call) -> bool:
        if call.answer.done():
            return True
        service = call.entry.service
        work = Work(call, service.name, service.version, str(call.folder), with_files=True)
        is_alive = await worker.run(work, Block(0, 1, call.record), call.take, call.wait_for_space)
        if not is_alive and not worker.has_left:
            call.fail(worker.cause_of_death)
        return is_alive

    def _working(self) -> Iterator[tuple[Worker, float]]:
        for worker in self._all_workers():
            if worker.purpose is not None:
                yield worker, self._settings.record_timeout
