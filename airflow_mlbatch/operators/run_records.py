"""What a running task can learn from Airflow about the score tasks of its Dag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from airflow_mlbatch.hooks.task_fate import is_ended
from airflow_mlbatch.operators.siblings import BATCH_XCOM
from airflow_mlbatch.protocol.orphans import EndedTask

__all__ = ["RunRecords"]


class RunRecords:
    """What Airflow knows about runs, asked through the supervisor of a running task.

    Implements :class:`airflow_mlbatch.protocol.orphans.AirflowRecords`.

    :param ti: the running task instance
    :param task_ids: the score tasks to look at
    :param result_key: the XCom in which a score task leaves the id of its execution
    """

    def __init__(self, ti: Any, task_ids: Sequence[str], result_key: str) -> None:
        self._ti, self._task_ids, self._result_key = ti, list(task_ids), result_key

    def ended_tasks(self) -> Iterator[EndedTask]:
        """The instances that have ended, in all runs that Airflow still knows."""
        for task_id in self._task_ids:
            # One by one: an instance of a mapped task is named like a task with a number at its end.
            states = self._ti.get_task_states(dag_id=self._ti.dag_id, task_ids=[task_id])
            for run_id, of_run in states.items():
                for name, state in of_run.items():
                    if is_ended(state):
                        map_index = -1 if name == task_id else int(name[len(task_id) + 1 :])
                        yield EndedTask(self._ti.dag_id, run_id, task_id, map_index, str(state))

    def batch_note(self, task: EndedTask) -> Mapping[str, Any] | None:
        """The note about its batch that a task instance has left in XCom."""
        note = self._pull(task, BATCH_XCOM)
        return note if isinstance(note, Mapping) else None

    def result_id(self, task: EndedTask) -> str | None:
        """The execution that a successful task instance has returned."""
        found = self._pull(task, self._result_key)
        return found if isinstance(found, str) else None

    def _pull(self, task: EndedTask, key: str) -> Any:
        return self._ti.xcom_pull(
            task_ids=task.task_id, key=key, map_indexes=task.map_index, run_id=task.run_id
        )
