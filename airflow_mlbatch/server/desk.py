"""What there is to score, and where outcomes go: the desk between the runner and its engines.

Law: everything here runs on the event loop, so nothing needs a lock. An engine takes records from
here and brings an outcome, or the record itself, back for each of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.catalogue import Catalogue, Entry
from airflow_mlbatch.server.folder import DISK_FULL, DataFolder
from airflow_mlbatch.server.jobs import Job, Jobs
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.saving import Saver
from airflow_mlbatch.server.scoring import failure
from airflow_mlbatch.server.store import StorageError, Store

__all__ = ["RETRY_SECONDS", "Call", "Desk"]

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
_MOST_FAILED_LOADS = 3


@dataclass(eq=False)
class Call:
    """A request/response call: one record, whose outcome somebody waits for."""

    entry: Entry
    record: bytes
    folder: Path
    answer: asyncio.Future[bytes]

    def take(self, outcome: Block) -> None:
        """Answer with the outcome."""
        if not self.answer.done():
            self.answer.set_result(outcome.texts)

    def wait_for_space(self, record: Block) -> None:
        """Answer that the disk is full."""
        if not self.answer.done():
            self.answer.set_exception(StorageError(DISK_FULL))

    def fail(self, reason: str) -> None:
        """Answer that it cannot be scored, unless there is an answer."""
        if not self.answer.done():
            self.answer.set_result(failure(reason))


class Desk:
    """Keeps the batches and calls that wait, and takes their outcomes.

    :param store: where records come from and outcomes go
    """

    def __init__(self, store: Store, folder: DataFolder) -> None:
        self.store, self.folder = store, folder
        self.jobs = Jobs()
        self.calls: deque[Call] = deque()
        self.running_calls: list[Call] = []
        self.saver = Saver(store, folder, self._after_saving)
        self.catalogue: Catalogue | None = None
        self.wake = asyncio.Event()
        self.has_rubbish = asyncio.Event()

    # --- for engines ---

    def next_job(self) -> Job | None:
        """The batch whose turn it is; none while outcomes cannot be stored."""
        return None if self.saver.is_blocked else self.jobs.next(self.store)

    def take(self, job: Job, outcomes: Block) -> None:
        """Have the outcomes of records stored, where they are the first."""
        for part in job.finish(outcomes):
            self.saver.take(job.execution.number, part)

    def fail(self, job: Job, position: int, reason: str) -> None:
        """Take it that a record could not be scored."""
        self.take(job, Block(position, 1, failure(reason)))

    def wait_for_space(self) -> None:
        """An artifact could not be stored: have nothing scored until there is space."""
        self.saver.report_full_disk()

    async def after_failed_load(self, job: Job, reason: str) -> None:
        """Try again a few times, then end the batch: all that is left of it fails."""
        job.failed_loads += 1
        log.error("execution %s: the service cannot be loaded: %s", job.execution.id, reason)
        if job.failed_loads < _MOST_FAILED_LOADS:
            await asyncio.sleep(RETRY_SECONDS)
            return
        if self.jobs.remove(job.execution.id) is None:
            return
        job.cancel()
        outcome = failure(f"the service cannot be loaded: {reason}")
        while not await self._is_ended(job, outcome):
            self.wait_for_space()
            await asyncio.sleep(RETRY_SECONDS)
        self.clean_up()

    async def _is_ended(self, job: Job, outcome: bytes) -> bool:
        """Store that a batch cannot be run; whether the disk took it."""
        try:
            await self.saver.save()
            await self.store.write(self.store.fail_execution, job.execution.number, outcome)
        except StorageError as error:
            log.warning("execution %s: its end cannot be stored: %s", job.execution.id, error)
            return False
        return True

    def programs_in_use(self) -> set[str]:
        """Ids of the programs that calls and batches run, or wait for."""
        used: Iterable[Program | None] = (
            *(call.entry.program for call in (*self.calls, *self.running_calls)),
            *(job.program for job in self.jobs),
        )
        return {program.id for program in used if program is not None}

    def published_ids(self) -> set[str]:
        """Ids of the programs that are published now."""
        return {program.id for program in self.catalogue.programs()} if self.catalogue else set()

    # --- for both sides ---

    def clean_up(self) -> None:
        """Have what deleted executions and services have left behind removed in the background."""
        self.has_rubbish.set()
        # Idle workers look whether somebody still needs them.
        self.wake.set()

    def _after_saving(self, numbers: set[int]) -> None:
        if any(job.program is not None for job in self.jobs.forget_finished(numbers)):
            self.clean_up()
        self.wake.set()
