"""What a soak test leaves behind, in one file, so that it can be judged again.

Law: facts only, and none of them from our own operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.soak.history import Change
from tests.soak.runs import SoakRun

__all__ = ["Call", "Death", "Deletion", "Evidence", "Seen", "SingleCall", "Start"]


@dataclass(frozen=True)
class Start:
    """A request to start a batch that has reached the server, or may have.

    :param arrived_at: epoch seconds when it came to the line
    :param at: when it was passed on
    :param number: of the run that its records are of
    :param record: its first record
    :param execution_id: what it was answered with; empty where the server died meanwhile
    """

    arrived_at: float
    at: float
    number: int
    record: int
    key: str
    execution_id: str


@dataclass(frozen=True)
class SingleCall:
    """A record that was sent to be scored by request and response."""

    at: float
    number: int
    record: int


@dataclass(frozen=True)
class Deletion:
    """A wish to delete an execution, whatever became of it."""

    at: float
    execution_id: str


@dataclass(frozen=True)
class Death:
    """An end of the scoring server.

    :param asked_at: when it was signalled
    :param over_at: when it had ended
    """

    asked_at: float
    over_at: float


@dataclass(frozen=True)
class Seen:
    """An execution that the database of the scoring server has shown.

    :param at: when that was, first
    :param number: of the run that its records are of
    :param record: its first record
    """

    at: float
    execution_id: str
    number: int
    record: int
    key: str


@dataclass(frozen=True)
class Call:
    """What the service has computed, as it wrote it down itself.

    :param done_at: 0 where it never came to an end
    """

    began_at: float
    done_at: float
    number: int
    record: int


@dataclass
class Evidence:
    """What a soak test leaves behind.

    :param calls: the log of the service
    :param running: executions that had not ended after all runs were over and orphans deleted
    :param tasks: of each run, its task instances as Airflow shows them at the end
    :param history: what became of each task instance
    :param faults: time and text of each
    :param counts: how many there were of each kind
    :param minutes: from the first run to the last
    :param orphans_deleted_at: when all runs were over, and what they left was looked for
    :param problem_of_orphans: why that failed, or nothing
    """

    runs: list[SoakRun]
    starts: list[Start]
    single_calls: list[SingleCall]
    deletions: list[Deletion]
    server_deaths: list[Death]
    calls: Path
    seen: list[Seen]
    running: list[str]
    tasks: dict[int, list[dict[str, Any]]]
    history: list[Change]
    faults: list[tuple[float, str]]
    counts: dict[str, int]
    minutes: float
    orphans_deleted_at: float
    problem_of_orphans: str
    has_keys: bool

    def save(self, path: Path) -> None:
        """Write it down."""
        path.write_bytes(msgspec.json.encode(self, enc_hook=str))

    @classmethod
    def load(cls, path: Path) -> Evidence:
        """Read what was saved."""
        return msgspec.json.decode(
            path.read_bytes(), type=cls, dec_hook=lambda kind, found: kind(found)
        )

    def read_calls(self) -> Iterator[Call]:
        """What the service has computed, in the order in which it ended."""
        begun: dict[tuple[str, str, str], float] = {}
        for line in self.calls.read_text().splitlines():
            at, what, number, record, pid = line.split()
            call = (number, record, pid)
            if what == "begins":
                begun[call] = float(at)
            else:
                yield Call(begun.pop(call), float(at), int(number), int(record))
        for (number, record, _), began_at in begun.items():
            yield Call(began_at, 0.0, int(number), int(record))
