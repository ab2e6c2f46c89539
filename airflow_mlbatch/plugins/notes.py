"""Which batch a task has to do with, as the task recorded it.

Law: the only module of the pages that reads Airflow's database, in short sessions that are closed
before anybody is asked over the network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import and_, func, select, tuple_

from airflow_mlbatch.links.batch_note import STARTED_KEY, WATCHED_KEY

__all__ = ["Batch", "BatchTask", "dags_with_batches", "find_task", "list_tasks", "services_of"]

_MOST_WATCHERS = 5_000


@dataclass(frozen=True)
class Batch:
    """An execution on a server, by the names that lead to it."""

    conn_id: str
    service_name: str
    service_version: str
    execution_id: str


@dataclass(frozen=True)
class BatchTask:
    """A task instance and the batch that it started or waits for.

    :param batch: ``None`` before the task has recorded one
    :param note: what else it recorded
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str | None
    start: datetime | None
    end: datetime | None
    batch: Batch | None
    note: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For the page; times in epoch seconds."""
        return {
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "map_index": self.map_index,
            "state": self.state,
            "start": self.start.timestamp() if self.start else None,
            "end": self.end.timestamp() if self.end else None,
        }


_COLUMNS = (
    TaskInstance.dag_id,
    TaskInstance.run_id,
    TaskInstance.task_id,
    TaskInstance.map_index,
    TaskInstance.state,
    TaskInstance.start_date,
    TaskInstance.end_date,
)
_SAME_TASK = and_(
    XComModel.dag_id == TaskInstance.dag_id,
    XComModel.run_id == TaskInstance.run_id,
    XComModel.task_id == TaskInstance.task_id,
    XComModel.map_index == TaskInstance.map_index,
)


def find_task(dag_id: str, run_id: str, task_id: str, map_index: int) -> BatchTask | None:
    """A task instance, or ``None`` where there is none."""
    query = (
        select(*_COLUMNS, XComModel.value)
        .outerjoin(XComModel, and_(_SAME_TASK, XComModel.key.in_((STARTED_KEY, WATCHED_KEY))))
        .where(
            TaskInstance.dag_id == dag_id,
            TaskInstance.run_id == run_id,
            TaskInstance.task_id == task_id,
            TaskInstance.map_index == map_index,
        )
        .limit(1)
    )
    with create_session() as session:
        row = session.execute(query).first()
    return None if row is None else _task(row)


def list_tasks(
    dag_ids: set[str],
    *,
    service: str | None = None,
    state: str | None = None,
    offset: int,
    limit: int,
) -> tuple[list[BatchTask], int]:
    """A page of the tasks that started batches, newest first, and the number of all of them.

    :param dag_ids: only of these Dags
    :param service: only batches of this service
    :param state: only tasks in this state
    """
    wanted = [XComModel.key == STARTED_KEY, XComModel.dag_id.in_(dag_ids)]
    if service:
        wanted.append(XComModel.value["service_name"].as_string() == service)
    if state:
        wanted.append(TaskInstance.state == state)
    joined = select(*_COLUMNS, XComModel.value).join(XComModel, _SAME_TASK).where(*wanted)
    newest_first = joined.order_by(
        XComModel.timestamp.desc(),
        XComModel.dag_run_id.desc(),
        XComModel.task_id,
        XComModel.map_index,
    )
    counting = select(func.count()).select_from(TaskInstance).join(XComModel, _SAME_TASK)
    with create_session() as session:
        rows = session.execute(newest_first.offset(offset).limit(limit)).all()
        total = session.scalar(counting.where(*wanted)) or 0
    return [_task(row) for row in rows], total


def dags_with_batches() -> set[str]:
    """Ids of the Dags that have started batches."""
    query = select(XComModel.dag_id).where(XComModel.key == STARTED_KEY).distinct()
    with create_session() as session:
        return set(session.scalars(query))


def services_of(dag_ids: set[str]) -> list[str]:
    """Names of the services that these Dags have started batches of."""
    name = XComModel.value["service_name"].as_string()
    query = (
        select(name).where(XComModel.key == STARTED_KEY, XComModel.dag_id.in_(dag_ids)).distinct()
    )
    with create_session() as session:
        return sorted(found for found in session.scalars(query) if found)


def failed_counts(tasks: Sequence[BatchTask]) -> dict[str, int]:
    """How many records failed, by execution id, where a results task has counted them."""
    runs = {(task.dag_id, task.run_id) for task in tasks}
    if not runs:
        return {}
    query = (
        select(XComModel.value)
        .where(
            XComModel.key == WATCHED_KEY,
            tuple_(XComModel.dag_id, XComModel.run_id).in_(runs),
        )
        .limit(_MOST_WATCHERS)
    )
    with create_session() as session:
        notes = [_note(value) for value in session.scalars(query)]
    return {
        note["execution_id"]: note["failed"]
        for note in notes
        if isinstance(note.get("failed"), int) and isinstance(note.get("execution_id"), str)
    }


def _task(row: Any) -> BatchTask:
    *columns, value = row
    dag_id, run_id, task_id, map_index, state, start, end = columns
    note = _note(value)
    return BatchTask(
        dag_id=dag_id,
        run_id=run_id,
        task_id=task_id,
        map_index=map_index,
        state=None if state is None else str(getattr(state, "value", state)),
        start=start,
        end=end,
        batch=_batch(note),
        note=note,
    )


def _note(value: Any) -> dict[str, Any]:
    """What a task pushed; some versions of Airflow store it as JSON inside of JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _batch(note: Mapping[str, Any]) -> Batch | None:
    names = [
        note.get(key) for key in ("conn_id", "service_name", "service_version", "execution_id")
    ]
    if not all(isinstance(name, str) and name for name in names):
        return None
    conn_id, service_name, service_version, execution_id = map(str, names)
    return Batch(conn_id, service_name, service_version, execution_id)


def log_action(
    event: str, user: Any, dag_id: str, run_id: str, task_id: str, map_index: int
) -> None:
    """Write to Airflow's audit log who did what."""
    with create_session() as session:
        session.add(
            Log(
                event,
                owner=user.get_name(),
                dag_id=dag_id,
                run_id=run_id,
                task_id=task_id,
                map_index=map_index,
            )
        )
