"""A ``BatchScoreTaskGroup`` as one table that is being scored.

Law: like :mod:`airflow_mlbatch.plugins.notes`, this reads Airflow's database and nothing else. Which
tasks belong to a table stands in the note of the task that has planned it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import and_, func, select
from sqlalchemy.orm import aliased

from airflow_mlbatch.links.batch_note import PLANNED_KEY
from airflow_mlbatch.plugins.notes import SAME_TASK, BatchTask, find_task, state_text

__all__ = ["Shard", "find_table", "shards_of", "summary", "table_of"]

# A shard is under way while one of its tasks is in one of these states.
_ACTIVE = frozenset(
    {
        "queued",
        "running",
        "restarting",
        "deferred",
        "up_for_retry",
        "up_for_reschedule",
    }
)
_FAILED = frozenset({"failed", "upstream_failed"})


@dataclass
class Shard:
    """A range of rows: the states of the tasks that score and write it, and what was written."""

    map_index: int
    start: int | None = None
    stop: int | None = None
    states: dict[str, str | None] = field(default_factory=dict)
    rows: int | None = None
    failed: int | None = None

    @property
    def state(self) -> str:
        """``done``, ``failed``, ``active`` or ``waiting``."""
        return _state(self.states.get("score"), self.states.get("write"))

    def as_dict(self) -> dict[str, Any]:
        """For the page."""
        return {
            "map_index": self.map_index,
            "start": self.start,
            "stop": self.stop,
            "state": self.state,
            "score": self.states.get("score"),
            "write": self.states.get("write"),
            "rows": self.rows,
            "failed": self.failed,
        }


def _state(score: str | None, write: str | None) -> str:
    if write == "success":
        return "done"
    if _FAILED & {score, write}:
        return "failed"
    if _ACTIVE & {score, write} or score == "success":
        return "active"
    return "waiting"


def find_table(dag_id: str, run_id: str, plan_task_id: str) -> BatchTask | None:
    """The task that has planned a table, with its note; ``None`` where it has not."""
    task = find_task(dag_id, run_id, plan_task_id, -1, keys=(PLANNED_KEY,))
    return task if task is not None and task.note else None


def table_of(task: BatchTask) -> str | None:
    """The id of the task that has planned the table of which a task scores or writes a shard."""
    if task.map_index < 0:
        return None
    query = select(XComModel.task_id, XComModel.value).where(
        XComModel.dag_id == task.dag_id,
        XComModel.run_id == task.run_id,
        XComModel.key == PLANNED_KEY,
    )
    with create_session() as session:
        for plan_task_id, note in session.execute(query):
            ids = (note.get("score_task_id"), note.get("write_task_id"))
            if task.task_id in ids:
                return str(plan_task_id)
    return None


def summary(plan: BatchTask) -> dict[str, Any]:
    """What a table shows in the list and at the head of its page; counts of shards and rows."""
    note = plan.note
    return {
        "service_name": note.get("service_name"),
        "service_version": note.get("service_version"),
        "conn_id": note.get("conn_id"),
        "output_path": note.get("output_path"),
        "score_task_id": note.get("score_task_id"),
        "commit": _commit_state(plan),
        "planned": {"rows": note.get("rows"), "shards": note.get("shards")},
        "shards": _count_shards(plan),
        "written": _written_rows(plan),
    }


def _commit_state(plan: BatchTask) -> str | None:
    """The state of the task that publishes the dataset."""
    query = select(TaskInstance.state).where(
        TaskInstance.dag_id == plan.dag_id,
        TaskInstance.run_id == plan.run_id,
        TaskInstance.task_id == str(plan.note.get("commit_task_id")),
    )
    with create_session() as session:
        return state_text(session.scalar(query))


def _count_shards(plan: BatchTask) -> dict[str, int]:
    """How many shards of a table are done, failed, active, and waiting; counted by the database."""
    score_id, write_id = _task_ids(plan)
    score, write = aliased(TaskInstance), aliased(TaskInstance)
    same_shard = and_(
        write.dag_id == score.dag_id,
        write.run_id == score.run_id,
        write.task_id == write_id,
        write.map_index == score.map_index,
    )
    query = (
        select(score.state, write.state, func.count())
        .select_from(score)
        .outerjoin(write, same_shard)
        .where(
            score.dag_id == plan.dag_id,
            score.run_id == plan.run_id,
            score.task_id == score_id,
            score.map_index >= 0,
        )
        .group_by(score.state, write.state)
    )
    counts = dict.fromkeys(("done", "failed", "active", "waiting"), 0)
    with create_session() as session:
        for of_score, of_write, number in session.execute(query):
            counts[_state(state_text(of_score), state_text(of_write))] += number
    # Airflow makes the task instances some moments after the plan.
    counts["waiting"] += max(0, _planned(plan) - sum(counts.values()))
    return counts


def shards_of(plan: BatchTask, offset: int, limit: int) -> list[Shard]:
    """A page of the shards of a table, in the order of its rows."""
    score, write = _task_ids(plan)
    last = min(offset + limit, _planned(plan))
    shards = {index: Shard(index) for index in range(offset, last)}
    tasks = select(TaskInstance.map_index, TaskInstance.task_id, TaskInstance.state).where(
        TaskInstance.dag_id == plan.dag_id,
        TaskInstance.run_id == plan.run_id,
        TaskInstance.task_id.in_((score, write)),
        TaskInstance.map_index.between(offset, last - 1),
    )
    written = _parts(plan).where(XComModel.map_index.between(offset, last - 1))
    with create_session() as session:
        for shard, planned in zip(shards.values(), _plan(session, plan)[offset:last], strict=False):
            shard.start, shard.stop = _range(planned)
        for map_index, task_id, state in session.execute(tasks):
            role = "score" if task_id == score else "write"
            shards[map_index].states[role] = state_text(state)
        for map_index, part in session.execute(written):
            _add_part(shards[map_index], part)
    return list(shards.values())


def _written_rows(plan: BatchTask) -> dict[str, int]:
    """Rows written so far, those of them whose record failed, and the parts that hold them."""
    number = {name: XComModel.value[name].as_integer() for name in ("rows", "failed")}
    query = _parts(plan).with_only_columns(
        func.coalesce(func.sum(number["rows"]), 0),
        func.coalesce(func.sum(number["failed"]), 0),
        func.count(),
    )
    with create_session() as session:
        rows, failed, parts = session.execute(query).one()
    return {"rows": int(rows), "failed": int(failed), "parts": int(parts)}


def _parts(plan: BatchTask) -> Any:
    """What the tasks that write the parts have returned, of those that have succeeded."""
    _, write = _task_ids(plan)
    return (
        select(XComModel.map_index, XComModel.value)
        .join(TaskInstance, SAME_TASK)
        .where(
            XComModel.dag_id == plan.dag_id,
            XComModel.run_id == plan.run_id,
            XComModel.task_id == write,
            XComModel.key == "return_value",
            TaskInstance.state == "success",
        )
    )


def _plan(session: Any, plan: BatchTask) -> list[Any]:
    """The shards as the plan has returned them."""
    query = select(XComModel.value).where(
        XComModel.dag_id == plan.dag_id,
        XComModel.run_id == plan.run_id,
        XComModel.task_id == plan.task_id,
        XComModel.key == "return_value",
    )
    found = session.scalar(query)
    # An XCom backend of its own may keep the value elsewhere.
    return found if isinstance(found, list) else []


def _range(planned: Any) -> tuple[int | None, int | None]:
    found = planned.get("row_range") if isinstance(planned, Mapping) else None
    return (found[0], found[1]) if isinstance(found, list) and len(found) == 2 else (None, None)


def _add_part(shard: Shard, part: Any) -> None:
    if isinstance(part, Mapping):
        shard.rows, shard.failed = part.get("rows"), part.get("failed")


def _task_ids(plan: BatchTask) -> tuple[str, str]:
    return str(plan.note.get("score_task_id")), str(plan.note.get("write_task_id"))


def _planned(plan: BatchTask) -> int:
    shards = plan.note.get("shards")
    return shards if isinstance(shards, int) else 0
