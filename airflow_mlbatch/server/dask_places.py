"""The workers of a Dask cluster, and which of them gets which records.

Law: a record that was on a worker when that was lost is a suspect: it is scored once more, in a chunk of
its own, and never beside another suspect. A worker may be lost for many reasons, so only one that
scored nothing else is evidence against a record. Such a worker it gets when a second one was lost with
it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.desk import Desk
from airflow_mlbatch.server.jobs import Job
from airflow_mlbatch.server.parcels import Parcel

__all__ = ["ALONE_AFTER", "Piece", "Place", "Places"]

log = logging.getLogger(__name__)

# A record that so many workers were lost with is scored on one that does nothing else, and fails when
# that one is lost, too.
ALONE_AFTER = 2
_UNFIT_SECONDS = 10
_ALIVE = ("running", "paused", "closing_gracefully")


@dataclass(eq=False)
class Place:
    """A Dask worker.

    :param home: the folder of its process: another process at the same address has another one
    :param lost: done when it has gone
    :param parcels: ids of those that it has
    :param unloadable: ids of those that it could not load
    :param chunks: what it is on
    :param is_willing: whether Dask would begin something on it
    :param unfit_until: no chunk before that time of the event loop; ``problem`` says why
    """

    address: str
    home: str
    name: str
    threads: int
    lost: asyncio.Future[None]
    parcels: set[str] = field(default_factory=set)
    unloadable: set[str] = field(default_factory=set)
    chunks: list[Piece] = field(default_factory=list)
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    seconds_per_record: float = 0.0
    is_willing: bool = True
    problem: str = ""
    unfit_until: float = 0.0

    def is_fit(self, now: float) -> bool:
        """Whether it can take a chunk, now or when another one has ended."""
        is_alone = any(piece.losses >= ALONE_AFTER for piece in self.chunks)
        is_able = self.is_willing and now >= self.unfit_until
        return is_able and self.threads > 0 and not is_alone

    @property
    def is_full(self) -> bool:
        """Whether each of its threads has a chunk."""
        return len(self.chunks) >= self.threads

    @property
    def has_suspect(self) -> bool:
        """Whether it is on a record that another worker was lost with."""
        return any(piece.losses for piece in self.chunks)

    def learn(self, parcel_id: str, seconds_per_record: float) -> None:
        """Note that it can score with a parcel, and how fast."""
        self.unloadable.discard(parcel_id)
        self.seconds_per_record, self.problem = seconds_per_record, ""

    def leave_out(self, error: Exception | str) -> None:
        """Give it nothing for a while."""
        message = str(error)
        if not isinstance(error, (str, InputError)):
            message = f"{type(error).__name__}: {message}"
        problem = " ".join(message.split())
        if problem != self.problem:
            log.error("Dask worker %s cannot score: %s", self.address, problem)
        self.problem = problem
        # Its files may be what is wrong: it is asked again whether it has them.
        self.parcels.clear()
        self.unfit_until = asyncio.get_running_loop().time() + _UNFIT_SECONDS

    def shown(self) -> dict[str, Any]:
        """As ``GET /status`` shows it."""
        rate = self.threads / self.seconds_per_record if self.seconds_per_record else 0.0
        return {
            "address": self.address,
            "name": self.name,
            "threads": self.threads,
            "busy": len(self.chunks),
            "recordsPerSecond": round(rate, 1),
            "problem": self.problem,
        }


@dataclass(eq=False)
class Piece:
    """A chunk on its way.

    :param losses: how many workers were lost with its record; 0 for records that none was lost with
    """

    id: str
    job: Job
    place: Place
    parcel: Parcel
    records: list[Block]
    losses: int
    is_stopping: bool = False
    task: asyncio.Task[None] | None = None


class Places:
    """The workers that there are.

    :param begin: has a worker score some records; told how many workers were lost with them before
    """

    def __init__(self, desk: Desk, begin: Callable[[Job, Place, list[Block], int], None]) -> None:
        self._desk, self._begin = desk, begin
        self._by_address: dict[str, Place] = {}

    def __iter__(self) -> Iterator[Place]:
        return iter(list(self._by_address.values()))

    def pieces(self) -> Iterator[Piece]:
        """All chunks that are out."""
        for place in self:
            yield from list(place.chunks)

    def note(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Take note of the workers that there are, and of those that have gone.

        :param found: what the scheduler says about each, by its address
        """
        found = {address: worker for address, worker in found.items() if worker["status"] in _ALIVE}
        for address, place in list(self._by_address.items()):
            if address not in found or found[address]["local_directory"] != place.home:
                del self._by_address[address]
                place.lost.set_result(None)
                log.warning("the Dask worker %s has gone", address)
        for address, worker in found.items():
            if address not in self._by_address:
                home, name = worker["local_directory"], str(worker["name"])
                lost = asyncio.get_running_loop().create_future()
                self._by_address[address] = Place(address, home, name, worker["nthreads"], lost)
            self._by_address[address].is_willing = worker["status"] == "running"

    async def forget_all(self) -> None:
        """Without the scheduler nothing is known of the workers: what is out comes back."""
        tasks = [piece.task for piece in self.pieces() if piece.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for place in self:
            place.lost.cancel()
        self._by_address.clear()

    def hand_out(self) -> None:
        """Give each free thread of each worker a chunk, as long as there are records."""
        desk = self._desk
        fruitless = 0
        while fruitless <= len(desk.jobs):
            now = asyncio.get_running_loop().time()
            fit = [place for place in self if place.is_fit(now)]
            free = [place for place in fit if not place.is_full]
            job = desk.next_job() if free else None
            if job is None:
                return
            free.sort(key=lambda place: len(place.chunks) / place.threads)
            reserved = self._reserved(fit)
            others = [place for place in free if place is not reserved]
            has_begun = (
                self._begin_alone(job, reserved)
                or self._begin_suspect(job, others)
                or self._begin_next(job, others)
            )
            fruitless += not has_begun

    def _reserved(self, fit: list[Place]) -> Place | None:
        """The worker that gets nothing more, because a record waits for one that is empty."""
        if any(map(_wants_alone, self._desk.jobs)):
            return min(fit, key=lambda place: len(place.chunks), default=None)
        return None

    def _begin_alone(self, job: Job, place: Place | None) -> bool:
        if place is None or place.chunks or not _wants_alone(job):
            return False
        record, losses = job.suspects.popleft()
        self._begin(job, place, [record], losses)
        return True

    def _begin_suspect(self, job: Job, free: list[Place]) -> bool:
        places = [place for place in free if not place.has_suspect]
        if not places or not job.suspects or _wants_alone(job):
            return False
        record, losses = job.suspects.popleft()
        self._begin(job, places[0], [record], losses)
        return True

    def _begin_next(self, job: Job, free: list[Place]) -> bool:
        if not free or not job.window:
            return False
        threads = sum(place.threads for place in self)
        self._begin(job, free[0], job.hand_out_blocks(threads), 0)
        return True


def _wants_alone(job: Job) -> bool:
    """Whether the record that is tried next may run on no worker that does anything else."""
    return bool(job.suspects) and job.suspects[0].losses >= ALONE_AFTER
