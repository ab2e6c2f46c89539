"""Takes stored records and has them scored in worker processes.

Law: everything here runs on the event loop, so nothing needs a lock; what takes long (SQLite,
starting a process) runs elsewhere and is awaited. A record is handed out again only when its worker
was not on it; a record whose worker died on it fails.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.results import BatchStatus, write_record_result
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.server.folder import DataFolder
from airflow_mlbatch.server.processes import Worker, start_worker
from airflow_mlbatch.server.store import Execution, Result, StorageError, Store
from airflow_mlbatch.server.wire import Outcome, Task
from airflow_mlbatch.server.worker import LEAST_FREE_BYTES, WorkerSettings

__all__ = ["BusyError", "Runner", "RunnerSettings"]

# A task should take about so long: long enough that handing it over costs nothing beside it, short
# enough that other executions, and a cancellation, do not wait.
_TASK_SECONDS = 0.05
_MOST_RECORDS_A_TASK = 256
_WINDOW_BYTES = 1024 * 1024
_FLUSH_SECONDS = 0.05
_FLUSH_RESULTS = 2_000
_MOST_UNSAVED_BYTES = 32 * 1024 * 1024
_MOST_UNSAVED_RESULTS = 20_000
_MOST_WAITING_CALLS = 1_000
_WATCH_SECONDS = 0.1
_CANCEL_GRACE_SECONDS = 0.3
_RETRY_SECONDS = 1.0
_DISK_FULL = "storage: the disk is full"


class BusyError(Exception):
    """Too many request/response calls are waiting for a worker."""


@dataclass(frozen=True)
class RunnerSettings:
    """How records are run.

    :param workers: number of worker processes
    :param max_parallel: most records of one execution at once
    :param record_timeout: seconds that a record may take; 0 for no limit
    """

    workers: int
    max_parallel: int = 100
    record_timeout: float = 0


@dataclass(eq=False)
class _Job:
    """An execution with records to score.

    :param window: the next records, read ahead from the store
    :param next_position: where reading on begins
    :param done: for each position whether it has an outcome
    :param busy: how many workers are on it
    """

    execution: Execution
    limit: int
    done: bytearray
    left: int
    window: deque[tuple[int, bytes]] = field(default_factory=deque)
    next_position: int = 0
    busy: int = 0
    task_size: int = 1
    is_started: bool = False
    is_cancelled: bool = False

    @property
    def can_start(self) -> bool:
        has_records = bool(self.window) or self.next_position < self.execution.total
        return has_records and self.busy < self.limit and not self.is_cancelled


@dataclass(eq=False)
class _Call:
    """A request/response call: one record, whose outcome somebody waits for."""

    service: Service
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
        self._jobs: dict[str, _Job] = {}
        self._turns: deque[_Job] = deque()
        self._calls: deque[_Call] = deque()
        self._workers: dict[int, Worker] = {}
        self._unsaved: list[Result] = []
        self._unsaved_bytes = 0
        self._wake = asyncio.Event()
        self._has_unsaved = asyncio.Event()
        self._has_rubbish = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._services: asyncio.Future[list[Service]]
        self._is_stopping = False
        self.storage_problem = ""
        self.worker_problem = ""

    # --- life ---

    async def start(self) -> list[Service]:
        """Start the workers and learn from the first one which services there are.

        :raises InputError: the services cannot be loaded
        """
        self._services = asyncio.get_running_loop().create_future()
        for slot in range(self._settings.workers):
            self._tasks.append(asyncio.create_task(self._run_slot(slot)))
        self._tasks.append(asyncio.create_task(self._save_always()))
        self._tasks.append(asyncio.create_task(self._watch_records()))
        self._tasks.append(asyncio.create_task(self._clean_always()))
        return await self._services

    async def resume(self, services: set[tuple[str, str]]) -> None:
        """Go on with what the last server on this folder left unfinished."""
        for execution in self._store.unfinished():
            if (execution.service, execution.version) in services:
                self.add(execution, self._store.done_positions(execution.number))
                continue
            outcome = write_record_result(
                success=False,
                outputs={},
                error=f"service {execution.service!r} version {execution.version!r} "
                "is no longer published on this server",
            )
            await self._store.write(self._store.fail_execution, execution.number, outcome)
        self.clean_up()

    async def stop(self) -> None:
        """Stop the workers and store what they have reported."""
        self._is_stopping = True
        self._wake.set()
        for _ in range(20):
            if not any(worker.task for worker in self._workers.values()):
                break
            await asyncio.sleep(_TASK_SECONDS)
        for worker in self._workers.values():
            worker.kill("the server stops")
        slots, others = self._tasks[: self._settings.workers], self._tasks[self._settings.workers :]
        await asyncio.gather(*slots, return_exceptions=True)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for call in self._calls:
            call.answer.cancel()
        with suppress(StorageError):
            await self._save()

    # --- what the API asks for ---

    def add(self, execution: Execution, done_positions: Iterable[int] = ()) -> None:
        """Take a stored execution up; some of its records may have an outcome already."""
        done = bytearray(execution.total)
        for position in done_positions:
            done[position] = 1
        left = execution.total - sum(done)
        if not left:
            return
        limit = min(execution.parallel_count, self._settings.max_parallel)
        job = _Job(execution, limit, done, left, is_started=left < execution.total)
        self._jobs[execution.id] = job
        self._turns.append(job)
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

    async def cancel(self, execution_id: str) -> None:
        """Stop the work on an execution; returns when no worker is on it any more."""
        job = self._jobs.pop(execution_id, None)
        if job is None:
            return
        job.is_cancelled = True
        with suppress(ValueError):
            self._turns.remove(job)
        job.window.clear()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CANCEL_GRACE_SECONDS
        # A worker that is about to finish is cheaper to wait for than to replace.
        while job.busy:
            if loop.time() > deadline:
                for worker in self._workers.values():
                    if worker.job is job:
                        worker.kill("the execution was cancelled")
            await asyncio.sleep(0.01)
        number = job.execution.number
        self._unsaved = [result for result in self._unsaved if result[0] != number]

    async def call(self, service: Service, record: bytes) -> bytes:
        """Score one record now, ahead of the batches; returns the outcome as it is sent.

        :raises BusyError: too many calls wait already
        :raises StorageError: the disk is full
        """
        if len(self._calls) >= _MOST_WAITING_CALLS:
            raise BusyError
        folder = self._folder.work / f"call-{uuid.uuid4()}"
        call = _Call(service, record, folder, asyncio.get_running_loop().create_future())
        self._calls.append(call)
        self._wake.set()
        try:
            return await call.answer
        finally:
            with suppress(ValueError):
                self._calls.remove(call)
            if folder.exists():
                await asyncio.to_thread(shutil.rmtree, folder, True)

    def clean_up(self) -> None:
        """Remove, in the background, what deleted executions have left behind."""
        self._has_rubbish.set()

    @property
    def ready_workers(self) -> int:
        """Worker processes that have loaded the services."""
        return len(self._workers)

    @property
    def active_executions(self) -> int:
        """Executions with records to score."""
        return len(self._jobs)

    # --- one worker after another ---

    async def _run_slot(self, slot: int) -> None:
        while not self._is_stopping:
            try:
                worker = await start_worker(self._worker_settings)
            except (InputError, OSError) as error:
                self.worker_problem = str(error)
                if not self._services.done():
                    self._services.set_exception(InputError(str(error)))
                    return
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self.worker_problem = ""
            if not self._services.done():
                self._services.set_result(worker.services)
            self._workers[slot] = worker
            try:
                await self._feed(worker)
            finally:
                del self._workers[slot]
                await worker.end()

    async def _feed(self, worker: Worker) -> None:
        while not self._is_stopping:
            if self._calls and not self._is_blocked:
                is_alive = await self._run_call(worker, self._calls.popleft())
            elif (job := self._next_job()) is not None:
                is_alive = await self._run_task(worker, job)
            else:
                self._wake.clear()
                is_alive = await worker.is_alive_until(self._wake)
            if not is_alive:
                return

    @property
    def _is_blocked(self) -> bool:
        """Whether outcomes pile up here because the disk does not take them."""
        return bool(self.storage_problem) or (
            self._unsaved_bytes > _MOST_UNSAVED_BYTES or len(self._unsaved) > _MOST_UNSAVED_RESULTS
        )

    def _next_job(self) -> _Job | None:
        """The execution whose turn it is, each in turn."""
        if self._is_blocked:
            return None
        for _ in range(len(self._turns)):
            job = self._turns[0]
            self._turns.rotate(-1)
            if job.can_start and self._fill(job):
                return job
        return None

    def _fill(self, job: _Job) -> bool:
        """Read ahead; whether there is a record to hand out."""
        while not job.window and job.next_position < job.execution.total:
            rows = self._store.records(job.execution.number, job.next_position, _WINDOW_BYTES)
            if not rows:
                job.next_position = job.execution.total
                break
            job.next_position = rows[-1][0] + 1
            job.window.extend(row for row in rows if not job.done[row[0]])
        return bool(job.window)

    async def _run_task(self, worker: Worker, job: _Job) -> bool:
        execution = job.execution
        # The end of a batch is shared out: no worker waits while another has a heap.
        share = -(-job.left // (2 * self._settings.workers))
        size = max(1, min(job.task_size, share, len(job.window)))
        records = [job.window.popleft() for _ in range(size)]
        task = Task(
            execution.service,
            execution.version,
            str(self._folder.artifacts(execution.id)),
            records,
        )
        job.busy += 1
        job.is_started = True
        try:
            began = asyncio.get_running_loop().time()
            is_alive = await worker.run(task, job, lambda outcome: self._take(job, outcome))
            seconds = asyncio.get_running_loop().time() - began
            job.task_size = _task_size(job.task_size, seconds / size)
            if not is_alive:
                self._after_death(worker, job)
            return is_alive
        finally:
            job.busy -= 1
            self._wake.set()

    def _take(self, job: _Job, outcome: Outcome) -> None:
        if outcome.result:
            self._finish(job, outcome.position, outcome.result)
            return
        self.storage_problem = _DISK_FULL
        self._has_unsaved.set()
        record = self._store.records(job.execution.number, outcome.position, 1)
        job.window.extendleft(record)

    def _finish(self, job: _Job, position: int, result: bytes) -> None:
        if job.is_cancelled or job.done[position]:
            return
        job.done[position] = 1
        job.left -= 1
        self._unsaved.append((job.execution.number, position, result))
        self._unsaved_bytes += len(result)
        self._has_unsaved.set()
        if not job.left:
            self._turns.remove(job)

    def _after_death(self, worker: Worker, job: _Job) -> None:
        """Fail the record that the worker died on and hand its others out again."""
        left = worker.unfinished
        if left and not worker.has_left and not (self._is_stopping and worker.is_killed):
            position, _ = left.pop(0)
            self._finish(job, position, _failed(worker.cause_of_death))
        if not job.is_cancelled:
            job.window.extendleft(reversed(left))

    async def _run_call(self, worker: Worker, call: _Call) -> bool:
        if call.answer.done():
            return True
        service = call.service
        task = Task(service.name, service.version, str(call.folder), [(0, call.record)], True)
        outcomes: list[Outcome] = []
        is_alive = await worker.run(task, call, outcomes.append)
        if call.answer.done():
            return is_alive
        if not outcomes:
            call.answer.set_result(_failed(worker.cause_of_death))
        elif not outcomes[0].result:
            call.answer.set_exception(StorageError(_DISK_FULL, is_full=True))
        else:
            call.answer.set_result(outcomes[0].result)
        return is_alive

    async def _watch_records(self) -> None:
        """End workers whose record takes too long, and what dead workers have left running."""
        limit = self._settings.record_timeout
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            now = asyncio.get_running_loop().time()
            for worker in self._workers.values():
                if worker.task is None:
                    continue
                if limit and now - worker.record_began > limit:
                    worker.kill(f"the record took longer than {limit:g} seconds")
                worker.sweep()

    # --- storing outcomes ---

    async def _save_always(self) -> None:
        while True:
            await self._has_unsaved.wait()
            if len(self._unsaved) < _FLUSH_RESULTS:
                await asyncio.sleep(_FLUSH_SECONDS)
            self._has_unsaved.clear()
            try:
                await self._save()
                if self.storage_problem == _DISK_FULL and not self._has_space():
                    raise StorageError(_DISK_FULL, is_full=True)
                self.storage_problem = ""
            except StorageError as error:
                self.storage_problem = str(error)
                await asyncio.sleep(_RETRY_SECONDS)
                self._has_unsaved.set()
            self._wake.set()

    async def _clean_always(self) -> None:
        while True:
            await self._has_rubbish.wait()
            self._has_rubbish.clear()
            await asyncio.to_thread(self._folder.empty_trash)
            with suppress(StorageError):
                while await self._store.write(self._store.purge):
                    pass

    def _has_space(self) -> bool:
        return shutil.disk_usage(self._folder.path).free >= LEAST_FREE_BYTES

    async def _save(self) -> None:
        results, self._unsaved = self._unsaved, []
        self._unsaved_bytes = 0
        if not results:
            return
        try:
            await self._store.write(self._store.add_results, results)
        except BaseException:
            self._unsaved[:0] = results
            self._unsaved_bytes = sum(len(result[2]) for result in self._unsaved)
            raise
        for number in {result[0] for result in results}:
            self._forget_finished(number)

    def _forget_finished(self, number: int) -> None:
        for job in list(self._jobs.values()):
            if job.execution.number == number and not job.left:
                if any(result[0] == number for result in self._unsaved):
                    return
                del self._jobs[job.execution.id]


def _task_size(size: int, seconds_per_record: float) -> int:
    wanted = int(_TASK_SECONDS / max(seconds_per_record, 1e-6))
    return max(1, min(wanted, 2 * size, _MOST_RECORDS_A_TASK))


def _failed(reason: str) -> bytes:
    return write_record_result(success=False, outputs={}, error=reason)
