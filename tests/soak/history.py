"""Writes down what becomes of each task instance in Airflow's database, at the moment it happens.

Airflow keeps only the newest state. To know whether a user's wish took effect, and when the next
attempt began, one needs them all. So PostgreSQL itself notes each change of a row.

Law: nothing of Airflow's is changed. A change that Airflow rolls back is not noted either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy

__all__ = ["Change", "keep_history", "read_history"]

_STATEMENTS = (
    "CREATE SCHEMA soak",
    """CREATE TABLE soak.changes (
        number bigserial PRIMARY KEY, at double precision, run_id text, task_id text,
        map_index integer, old_state text, state text, old_max_tries integer, max_tries integer,
        try_number integer)""",
    """CREATE FUNCTION soak.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO soak.changes (at, run_id, task_id, map_index, old_state, state, old_max_tries,
            max_tries, try_number)
        VALUES (extract(epoch FROM clock_timestamp()), NEW.run_id, NEW.task_id, NEW.map_index,
            OLD.state, NEW.state, OLD.max_tries, NEW.max_tries, NEW.try_number);
        RETURN NULL;
    END $$""",
    """CREATE TRIGGER soak_note AFTER UPDATE ON task_instance FOR EACH ROW
    WHEN ((OLD.state, OLD.max_tries, OLD.try_number)
        IS DISTINCT FROM (NEW.state, NEW.max_tries, NEW.try_number))
    EXECUTE FUNCTION soak.note()""",
)
_COLUMNS = "at, run_id, task_id, map_index, old_state, state, old_max_tries, max_tries, try_number"


@dataclass(frozen=True)
class Change:
    """A change of a task instance.

    :param at: epoch seconds
    :param old_state: before; empty for none, as is ``state``
    """

    at: float
    run_id: str
    task_id: str
    map_index: int
    old_state: str
    state: str
    old_max_tries: int
    max_tries: int
    try_number: int

    @property
    def is_clear(self) -> bool:
        """Whether a user has cleared the task: nothing else does this to a row."""
        has_restarted = self.state == "restarting" != self.old_state
        # Where the task ran, Airflow raises the maximum later by itself, when it has ended it.
        return has_restarted or (self.is_raise and self.old_state != "restarting")

    @property
    def is_raise(self) -> bool:
        """Whether the maximum number of tries was raised: the next attempt scores again."""
        return self.max_tries > self.old_max_tries

    def __str__(self) -> str:
        """How a report tells it."""
        raised = f", tries up to {self.max_tries + 1}" if self.is_raise else ""
        return (
            f"Airflow: {self.task_id}[{self.map_index}] {self.old_state or 'no state'} ->"
            f" {self.state or 'no state'} (try {self.try_number}{raised})"
        )


def keep_history(database: str) -> None:
    """Have the database of an Airflow note each change from now on.

    :param database: its address for SQLAlchemy
    """
    engine = sqlalchemy.create_engine(database)
    try:
        with engine.begin() as connection:
            for statement in _STATEMENTS:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def read_history(database: str) -> Iterator[Change]:
    """All changes, oldest first."""
    engine = sqlalchemy.create_engine(database)
    try:
        with engine.begin() as connection:
            rows = connection.exec_driver_sql(
                f"SELECT {_COLUMNS} FROM soak.changes ORDER BY number"
            )
            for row in rows:
                at, run_id, task_id, map_index, old_state, state, *tries = row
                yield Change(
                    at,
                    run_id,
                    task_id,
                    map_index,
                    old_state or "",
                    state or "",
                    *(-1 if each is None else each for each in tries),
                )
    finally:
        engine.dispose()
