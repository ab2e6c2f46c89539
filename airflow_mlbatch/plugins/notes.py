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
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import and_, case, func, or_, select, tuple_
from sqlalchemy.orm import aliased

from airflow_mlbatch.links.batch_note import PLANNED_KEY, STARTED_KEY, WATCHED_KEY

__all__ = [
    "SAME_TASK",
    "Batch",
    "BatchTask",
    "dags_with_batches",
    "find_task",
    "list_tasks",
    "rendered_fields",
    "services_of",
    "starter_of",
    "state_text",
    "writers_of",
]

_MOST_WATCHERS = 5_000
_MOST_WRITERS = 10
_LISTED_KEYS = (STARTED_KEY, PLANNED_KEY)
_TABLE_ENDS = ("success", "failed", "skipped", "removed")


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

    :param batch: ``None`` before the task has recorded one, and for a task that has planned a table
    :param note: what else it recorded
    :param is_table: the task has planned a table, whose shards are other tasks'
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
    is_table: bool = False

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
SAME_TASK = and_(
    XComModel.dag_id == TaskInstance.dag_id,
    XComModel.run_id == TaskInstance.run_id,
    XComModel.task_id == TaskInstance.task_id,
    XComModel.map_index == TaskInstance.map_index,
)


def find_task(
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int,
    keys: Sequence[str] = (STARTED_KEY, WATCHED_KEY),
) -> BatchTask | None:
    """A task instance, or ``None`` where there is none.

    :param keys: of the notes that are looked for
    """
    query = (
        select(*_COLUMNS, XComModel.key, XComModel.value)
        .outerjoin(XComModel, and_(SAME_TASK, XComModel.key.in_(keys)))
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
    """A page of what is scored, newest first, and how much there is in all.

    That is each task that started a batch. A table in shards stands there once, by the task that has
    planned it, and its shards do not.

    :param dag_ids: only of these Dags
    :param service: only batches of this service
    :param state: only tasks in this state; a table is ``running`` until it is committed
    """
    commit = aliased(TaskInstance)
    is_table = XComModel.key == PLANNED_KEY
    same_commit = and_(
        is_table,
        commit.dag_id == XComModel.dag_id,
        commit.run_id == XComModel.run_id,
        commit.task_id == XComModel.value["commit_task_id"].as_string(),
        commit.map_index == -1,
    )
    table_state = case(
        (commit.state == "upstream_failed", "failed"),
        (commit.state.in_(_TABLE_ENDS), commit.state),
        else_="running",
    )
    shown_state = case((is_table, table_state), else_=TaskInstance.state)
    wanted = [
        XComModel.dag_id.in_(dag_ids),
        or_(is_table, and_(XComModel.key == STARTED_KEY, _is_no_shard())),
    ]
    if service:
        wanted.append(XComModel.value["service_name"].as_string() == service)
    if state:
        wanted.append(shown_state == state)
    columns = [shown_state if each is TaskInstance.state else each for each in _COLUMNS]
    joined = (
        select(*columns, XComModel.key, XComModel.value)
        .join(XComModel, SAME_TASK)
        .outerjoin(commit, same_commit)
        .where(*wanted)
    )
    newest_first = joined.order_by(
        XComModel.timestamp.desc(),
        XComModel.dag_run_id.desc(),
        XComModel.task_id,
        XComModel.map_index,
    )
    counting = joined.with_only_columns(func.count(), maintain_column_froms=True)
    with create_session() as session:
        rows = session.execute(newest_first.offset(offset).limit(limit)).all()
        total = session.scalar(counting) or 0
    return [_task(row) for row in rows], total


def _is_no_shard() -> Any:
    """Whether a task is none of those that score the shards of a planned table."""
    planned = aliased(XComModel)
    score_task_id = planned.value["score_task_id"].as_string()
    # A list that is made once, because a run may have thousands of shards.
    shards = select(planned.dag_run_id, score_task_id).where(
        planned.key == PLANNED_KEY, score_task_id.is_not(None)
    )
    return tuple_(XComModel.dag_run_id, XComModel.task_id).not_in(shards)


def dags_with_batches() -> set[str]:
    """Ids of the Dags that have started batches."""
    query = select(XComModel.dag_id).where(XComModel.key.in_(_LISTED_KEYS)).distinct()
    with create_session() as session:
        return set(session.scalars(query))


def services_of(dag_ids: set[str]) -> list[str]:
    """Names of the services that these Dags have started batches of."""
    name = XComModel.value["service_name"].as_string()
    query = (
        select(name)
        .where(XComModel.key.in_(_LISTED_KEYS), XComModel.dag_id.in_(dag_ids))
        .distinct()
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


def rendered_fields(task: BatchTask) -> dict[str, Any]:
    """The arguments of a task as its worker has rendered them; empty where Airflow has none.

    Airflow keeps them for the last runs of a task only (``[core] max_num_rendered_ti_fields_per_task``).
    A worker writes them and no route of Airflow's API does, so the paths in them are the Dag author's.
    """
    fields = RenderedTaskInstanceFields
    query = select(fields.rendered_fields).where(
        fields.dag_id == task.dag_id,
        fields.run_id == task.run_id,
        fields.task_id == task.task_id,
        fields.map_index == task.map_index,
    )
    with create_session() as session:
        found = session.scalar(query)
    return dict(found) if isinstance(found, dict) else {}


def starter_of(task: BatchTask) -> BatchTask | None:
    """The task of the same run that started the batch that a task has to do with."""
    if task.batch is None:
        return None
    query = (
        select(*_COLUMNS, XComModel.key, XComModel.value)
        .join(XComModel, SAME_TASK)
        .where(*_about(task, task.batch), XComModel.key == STARTED_KEY)
        .limit(1)
    )
    with create_session() as session:
        row = session.execute(query).first()
    return None if row is None else _task(row)


def writers_of(task: BatchTask) -> list[dict[str, Any]]:
    """The rendered arguments of the tasks of the same run that have written the batch to a table."""
    if task.batch is None:
        return []
    fields = RenderedTaskInstanceFields
    same_task = and_(
        fields.dag_id == XComModel.dag_id,
        fields.run_id == XComModel.run_id,
        fields.task_id == XComModel.task_id,
        fields.map_index == XComModel.map_index,
    )
    query = (
        select(fields.rendered_fields)
        .join(XComModel, same_task)
        .join(TaskInstance, SAME_TASK)
        .where(
            *_about(task, task.batch),
            XComModel.key == WATCHED_KEY,
            TaskInstance.state == "success",
        )
        .order_by(XComModel.task_id)
        .limit(_MOST_WRITERS)
    )
    with create_session() as session:
        found = list(session.scalars(query))
    return [dict(each) for each in found if isinstance(each, dict) and each.get("output_path")]


def _about(task: BatchTask, batch: Batch) -> list[Any]:
    """Notes of the task's run about a batch."""
    return [
        XComModel.dag_id == task.dag_id,
        XComModel.run_id == task.run_id,
        XComModel.value["execution_id"].as_string() == batch.execution_id,
    ]


def _task(row: Any) -> BatchTask:
    *columns, key, value = row
    dag_id, run_id, task_id, map_index, state, start, end = columns
    note = _note(value)
    return BatchTask(
        dag_id=dag_id,
        run_id=run_id,
        task_id=task_id,
        map_index=map_index,
        state=state_text(state),
        start=start,
        end=end,
        batch=_batch(note),
        note=note,
        is_table=key == PLANNED_KEY,
    )


def state_text(state: Any) -> str | None:
    """The state of a task instance; some versions of Airflow give a member of an enumeration."""
    return None if state is None else str(getattr(state, "value", state))


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
