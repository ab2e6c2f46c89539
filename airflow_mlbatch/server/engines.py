"""What an engine is: it has the records of the desk scored, somewhere.

Law: the desk knows no engine, and for batches the runner needs no more of one than this class says.
"""

from __future__ import annotations

from typing import Protocol

from airflow_mlbatch.server.jobs import Job, Pace

__all__ = ["Engine"]


class Engine(Protocol):
    """Takes records from the desk and brings their outcomes there."""

    @property
    def pace(self) -> Pace:
        """How many records it wants at once."""

    async def start(self) -> None:
        """Begin.

        :raises InputError: it cannot, whatever it would wait for
        """

    async def stop(self) -> None:
        """End everything that runs; records without an outcome are scored after the next start."""

    def end_work_on(self, job: Job) -> None:
        """End, at once, whatever runs for a cancelled batch; ``job.busy`` falls to 0 by and by."""
