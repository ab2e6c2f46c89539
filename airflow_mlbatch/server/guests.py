"""The workers that share one place of an engine, each with services of its own.

Law: each belongs to what it has loaded for its whole life. A few stay for the next record, those that
were needed longest ago leave first; of a whole place only one works at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Generic, Protocol, TypeVar

from airflow_mlbatch.server.processes import Worker

__all__ = ["Guests"]

_MOST_GUESTS = 4


class HasId(Protocol):
    """What a worker belongs to."""

    @property
    def id(self) -> str:
        """Stands for its content."""


P = TypeVar("P", bound=HasId)


class Guests(Generic[P]):
    """Finds the worker that has loaded something, or starts one.

    :param start: starts one
    """

    def __init__(self, start: Callable[[P], Awaitable[Worker]]) -> None:
        self._start = start
        # The one that was needed last stands last.
        self._workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    async def get(self, program: P) -> Worker:
        """The worker of a program, or of other services.

        :raises InputError: it cannot load them
        """
        worker = self._workers.get(program.id)
        if worker is not None and not worker.is_alive:
            await self.bury(worker)
            worker = None
        if worker is None:
            while len(self._workers) >= _MOST_GUESTS:
                await self.bury(next(iter(self)))
            worker = await self._start(program)
        self._workers.pop(program.id, None)
        self._workers[program.id] = worker
        return worker

    async def keep(self, program_ids: Collection[str]) -> None:
        """Send those away whose program nobody needs any more."""
        for program_id, worker in list(self._workers.items()):
            if program_id not in program_ids:
                await self.bury(worker)

    async def bury(self, worker: Worker) -> None:
        """See that a worker is gone: it ends when its line does, and is ended when it does not."""
        self._workers = {key: one for key, one in self._workers.items() if one is not worker}
        await worker.end()

    async def end_all(self) -> None:
        """Send all away."""
        for worker in self:
            await self.bury(worker)
