"""What the soak test knows of its Dag runs: what it asked for, and what it did to them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MODES", "SHARD_SIZE", "Action", "SoakRun", "write_table"]

MODES = (
    "worker",
    "deferrable",
    "sensor_poke",
    "sensor_reschedule",
    "sensor_deferrable",
    "no_wait",
    "group_worker",
    "group_deferrable",
)
# As the Dag has it: records of one batch of a task group.
SHARD_SIZE = 6


@dataclass(frozen=True)
class Action:
    """Something that a user did to a task.

    :param at: epoch seconds before it was asked for
    :param what: ``clear``, ``failed`` or ``success``
    :param task_id: of the task
    :param map_index: -1 for a task that is not mapped
    :param found: the task's state before
    :param over_at: when Airflow had answered, or was given up
    :param is_done: whether it has said that it did it; it may do so all the same
    """

    at: float
    what: str
    task_id: str
    map_index: int
    found: str
    over_at: float = 0.0
    is_done: bool = False

    @property
    def is_on_score(self) -> bool:
        """Whether it concerns a task that owns a batch."""
        return self.task_id.endswith("score")


@dataclass
class SoakRun:
    """A Dag run of the soak test.

    :param number: its records carry it
    :param mode: how its Dag waits
    :param count: of its records
    :param folder: of its tables
    :param run_id: of the Dag run
    """

    number: int
    mode: str
    count: int
    folder: Path
    run_id: str
    started_at: float
    actions: list[Action] = field(default_factory=list)
    state: str = ""
    ended_at: float = 0.0

    @property
    def dag_id(self) -> str:
        """The Dag that waits in this mode."""
        return f"soak_{self.mode}"

    @property
    def is_group(self) -> bool:
        """Whether a task group scores it, in shards."""
        return self.mode.startswith("group")

    @property
    def score_task(self) -> str:
        """The id of the task that starts its batches."""
        return "scored.shards.score" if self.is_group else "score"

    @property
    def output(self) -> Path:
        """The scored table, or the folder of its parts."""
        return self.folder / ("scored" if self.is_group else "scored.csv")

    @property
    def logs(self) -> Path:
        """Where Airflow keeps the logs of its tasks."""
        home = self.folder.parents[1] / "airflow" / "logs"
        return home / f"dag_id={self.dag_id}" / f"run_id={self.run_id}"

    def shard_of(self, record: int) -> int:
        """The map index of the task that scores a record."""
        return record // SHARD_SIZE if self.is_group else -1

    def __str__(self) -> str:
        """How a report names it."""
        return f"run {self.number} ({self.dag_id}/{self.run_id}, {self.count} records)"


def write_table(folder: Path, number: int, count: int, seconds: float) -> Path:
    """The table that a run scores."""
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "record", "seconds"])
        writer.writerows([number, record, seconds] for record in range(count))
    return path
