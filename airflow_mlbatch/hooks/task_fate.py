"""What became of a task: whether its batch is still wanted when its process is told to stop.

A process is stopped for many reasons that look alike from inside. A user marks or clears the task, but
a scheduler dies as well, a heartbeat is missed, or a node is drained. Only the state that Airflow has
for the task tells them apart.

Law: nobody sends a DELETE before the task's state is known, or before it is known that nobody can be
asked and no further attempt can come.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["Fate", "ask_for_fate", "can_be_retried", "fate_from_states", "is_ended"]

# A task instance in one of these states has ended. Nobody will look at its batch.
_ENDED = ("failed", "success", "skipped", "removed", "upstream_failed")
# A user cleared the task while it ran. Its limit of tries stays as it is, so only this state tells.
_RESTARTING = "restarting"


class Fate(Enum):
    """What became of a task whose process is told to stop."""

    ENDED = "has ended"
    RESTARTING = "was cleared while it ran"
    # Waiting to run again, deferred, or running here or elsewhere: the next attempt decides.
    GOES_ON = "goes on"

    @property
    def is_end_of_batch(self) -> bool:
        """Whether the batch of this attempt is not wanted any more."""
        return self is not Fate.GOES_ON


def is_ended(state: Any) -> bool:
    """Whether a task instance in this state has ended; one without a state waits to run."""
    return state is not None and str(state) in _ENDED


def fate_from_states(states: Mapping[str, Mapping[str, Any]], run_id: str) -> Fate:
    """Read Airflow's answer to a question about one task instance.

    :param states: by run and by task; a task that waits for its next attempt may have no state
    """
    of_run = states.get(run_id) or {}
    if not of_run:
        return Fate.ENDED  # The task instance was deleted, with its run or alone.
    state = next(iter(of_run.values()))
    if str(state) == _RESTARTING:
        return Fate.RESTARTING
    return Fate.ENDED if is_ended(state) else Fate.GOES_ON


def ask_for_fate(ti: Any, seconds: float) -> Fate | None:
    """Ask Airflow through the task's supervisor; ``None`` without an answer in time.

    The question is asked in a thread. The main thread may hold the line to the supervisor at this
    moment, in which case the answer only comes after the signal handler has returned.

    :param ti: the running task instance
    :param seconds: how long to wait for the answer
    """
    answers: queue.Queue[Fate | None] = queue.Queue()

    def ask() -> None:
        try:
            map_index = getattr(ti, "map_index", -1)
            states = ti.get_task_states(
                dag_id=ti.dag_id,
                map_index=-1 if map_index is None else map_index,
                task_ids=[ti.task_id],
                run_ids=[ti.run_id],
            )
            answers.put(fate_from_states(states, ti.run_id))
        except Exception:
            answers.put(None)

    threading.Thread(target=ask, name="mlbatch-task-fate", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None


def can_be_retried(ti: Any) -> bool:
    """Whether another attempt can come after this one; assumed where the task does not know."""
    try_number, max_tries = getattr(ti, "try_number", None), getattr(ti, "max_tries", None)
    if not isinstance(try_number, int) or not isinstance(max_tries, int):
        return True
    return try_number <= max_tries
