"""Takes stored executions up, has their records scored, and ends them.

Law: everything here runs on the event loop, so nothing needs a lock; what takes long (storing many
rows, starting a process) runs elsewhere and is awaited. The desk keeps what waits, an engine scores
it.
"""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.protocol.states import BatchState
from airflow_mlbatch.server.catalogue import Catalogue, Entry
from airflow_mlbatch.server.desk import RETRY_SECONDS, Call, Desk
from airflow_mlbatch.server.engines import Engine
from airflow_mlbatch.server.jobs import Job
from airflow_mlbatch.server.process_engine import ProcessEngine
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.scoring import failure
from airflow_mlbatch.server.store import Execution, StorageError

if TYPE_CHECKING:
    from airflow_mlbatch.server.dask_engine import DaskEngine

__all__ = ["BusyError", "Runner"]

_MOST_WAITING_CALLS = 1_000
_CANCEL_GRACE_SECONDS = 0.3


class BusyError(Exception):
    """Too many request/response calls are waiting for a worker."""


class Runner:
    """Has executions and calls scored.

    :param processes: the workers of this machine, which load the services first and answer calls
    :param cluster: what scores batches in their place
    :param max_parallel: most records of one execution at once
    """

    def __init__(
        self,
        desk: Desk,
        processes: ProcessEngine,
        cluster: DaskEngine | None,
        max_parallel: int,
    ) -> None:
        self._desk, self._store = desk, desk.store
        self._processes, self._cluster = processes, cluster
        self._engines: list[Engine] = [processes] if cluster is None else [processes, cluster]
        self._max_parallel = max_parallel
        self._leaving: dict[str, Job] = {}
        self._chores: list[asyncio.Task[None]] = []

    # --- life ---

    async def start(self) -> list[Service]:
        """Start the engines; returns the services that there are.

        :raises InputError: the services cannot be loaded
        """
        chores = (self._desk.saver.run(), self._clean_always())
        self._chores = [asyncio.create_task(chore) for chore in chores]
        for engine in self._engines:
            await engine.start()
        return self._processes.services

    async def resume(self, catalogue: Catalogue) -> None:
        """Go on with what the last server on this folder left unfinished."""
        self._desk.catalogue = catalogue
        for execution in self._store.unfinished():
            program = catalogue.program_of(execution.number)
            entry = catalogue.get(execution.service, execution.version)
            if program is not None or (entry is not None and entry.program is None):
                self.add(execution, program, self._store.done_positions(execution.number))
                continue
            outcome = failure(
                f"service {execution.service!r} version {execution.version!r} "
                "is no longer published on this server"
            )
            await self._store.write(self._store.fail_execution, execution.number, outcome)
        self.clean_up()

    async def stop(self) -> None:
        """Stop the engines and store what they have reported."""
        await asyncio.gather(*(engine.stop() for engine in self._engines))
        for task in self._chores:
            task.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        for call in self._desk.calls:
            call.answer.cancel()
        with suppress(StorageError):
            await self._desk.saver.save()

    # --- what the API asks for ---

    def add(
        self,
        execution: Execution,
        program: Program | None = None,
        done_positions: Iterable[range] = (),
    ) -> None:
        """Take a stored execution up; some of its records may have an outcome already.

        :param program: what runs, where that was published over HTTP
        """
        pace = self._engines[-1].pace
        is_vectorized = program is None and self._is_vectorized(execution)
        job = Job.of(execution, self._max_parallel, done_positions, program, pace, is_vectorized)
        if job.left:
            self._desk.jobs.add(job)
            self._desk.wake.set()

    def _is_vectorized(self, execution: Execution) -> bool:
        catalogue = self._desk.catalogue
        entry = catalogue.get(execution.service, execution.version) if catalogue else None
        return entry is not None and entry.service.is_vectorized

    def status(self, execution: Execution) -> BatchStatus:
        """What a poll is told: the stored counts, and of the running states the right one."""
        status = execution.status
        if status.is_terminal:
            return status
        job = self._desk.jobs.get(execution.id)
        state = BatchState.PENDING if job is None else BatchState.READY
        if execution.completed or (job is not None and job.is_started):
            state = BatchState.IN_PROGRESS
        return BatchStatus(state, status.completed_item_count, status.total_item_count)

    async def cancel(self, execution: Execution) -> None:
        """Stop the work on an execution; returns when no worker is on it any more."""
        # Somebody may be at it already: then both wait for its end.
        job = self._desk.jobs.remove(execution.id) or self._leaving.get(execution.id)
        if job is None:
            return
        self._leaving[execution.id] = job
        job.cancel()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _CANCEL_GRACE_SECONDS
        # A worker that is about to finish is cheaper to wait for than to replace.
        while job.busy:
            if loop.time() > deadline:
                for engine in self._engines:
                    engine.end_work_on(job)
            await asyncio.sleep(0.01)
        self._leaving.pop(execution.id, None)
        self._desk.saver.drop(execution.number)

    async def delete(self, execution: Execution) -> bool:
        """Stop the work on an execution and forget it, with all that belongs to it.

        :return: false when it was gone already
        """
        await self.cancel(execution)
        if not await self._store.write(self._store.remove_execution, execution.number):
            return False
        await asyncio.to_thread(self._desk.folder.discard, execution.id)
        self.clean_up()
        return True

    async def call(self, entry: Entry, record: bytes) -> bytes:
        """Score one record now, ahead of the batches; returns the outcome as it is sent.

        :raises BusyError: too many calls wait already
        :raises StorageError: the disk is full
        """
        calls = self._desk.calls
        if len(calls) >= _MOST_WAITING_CALLS:
            raise BusyError
        folder = self._desk.folder.work / f"call-{uuid.uuid4()}"
        call = Call(entry, record, folder, asyncio.get_running_loop().create_future())
        calls.append(call)
        self._desk.wake.set()
        try:
            return await call.answer
        finally:
            with suppress(ValueError):
                calls.remove(call)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def try_out(self, program: Program) -> None:
        """Load a program once, on this machine.

        :raises InputError: it cannot be loaded; says why
        """
        await self._processes.try_out(program)

    def clean_up(self) -> None:
        """Remove, in the background, what deleted executions and services have left behind."""
        self._desk.clean_up()

    @property
    def ready_workers(self) -> int:
        """Worker processes that have loaded the services."""
        return self._processes.ready_workers

    @property
    def worker_problem(self) -> str:
        """Why no worker process starts; empty when they do."""
        return self._processes.problem

    @property
    def cluster_health(self) -> dict[str, Any] | None:
        """The cluster as ``GET /status`` shows it; ``None`` where there is none."""
        return None if self._cluster is None else self._cluster.health()

    @property
    def active_executions(self) -> int:
        """Executions with records to score."""
        return len(self._desk.jobs)

    @property
    def storage_problem(self) -> str:
        """Why outcomes cannot be stored at the moment; empty when they can."""
        return self._desk.saver.problem

    async def _clean_always(self) -> None:
        desk = self._desk
        while True:
            await desk.has_rubbish.wait()
            desk.has_rubbish.clear()
            try:
                if desk.catalogue is not None:
                    await desk.catalogue.collect(desk.programs_in_use())
                await asyncio.to_thread(desk.folder.empty_trash)
                while await self._store.write(self._store.purge):
                    continue  # Others write in between: each step is a transaction of its own.
            except StorageError:
                await asyncio.sleep(RETRY_SECONDS)
                desk.has_rubbish.set()
