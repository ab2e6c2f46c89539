"""Finds executions whose task has ended without them.

A trigger that never started, or a triggerer that is down, cancels nothing. So a batch can outlive its
task. Whose an execution is has to be known before it is deleted:

- By key: a server that knows idempotency keys is asked for the keys of a task instance.
- By note: otherwise, the note that a task leaves in XCom names its execution.

Law: an execution that no key and no note ties to a task instance is never touched; neither is one
whose task has not ended, nor the one that a successful task has returned. A task that waits for its
batch and has succeeded while that still runs was marked by a user.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airflow_mlbatch.errors import ExecutionNotFoundError
from airflow_mlbatch.protocol.messages import Flow
from airflow_mlbatch.protocol.submission import Owner

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.flows import Flows
    from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["AirflowRecords", "EndedTask", "Orphan", "find_orphans"]

_SUCCESS = "success"


@dataclass(frozen=True)
class EndedTask:
    """A task instance that has ended.

    :param map_index: -1 for a task that is not mapped
    :param state: the state that Airflow has for it
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    state: str

    def __str__(self) -> str:
        mapped = f"[{self.map_index}]" if self.map_index >= 0 else ""
        return f"{self.dag_id}.{self.task_id}{mapped} of run {self.run_id} ({self.state})"


@dataclass(frozen=True)
class Orphan:
    """An execution whose task has ended without it.

    :param known_by: ``key`` or ``note``
    """

    execution_id: str
    task: EndedTask
    known_by: str


class AirflowRecords(Protocol):
    """What Airflow knows about the score tasks of a Dag."""

    def ended_tasks(self) -> Iterable[EndedTask]:
        """Their instances that have ended, in all runs that are looked at."""

    def batch_note(self, task: EndedTask) -> Mapping[str, Any] | None:
        """The note about its batch that a task instance has left in XCom."""

    def result_id(self, task: EndedTask) -> str | None:
        """The execution that a successful task instance has returned; ``None`` if it is not known."""


def find_orphans(
    flows: Flows, service_name: str, service_version: str, dag_id: str, records: AirflowRecords
) -> Flow[list[Orphan]]:
    """The executions of a service that were left over by ended score tasks of a Dag.

    :param records: what Airflow knows of the Dag's score tasks
    """
    service = (service_name, service_version)
    of_dag, has_keys = yield from flows.find_batch_executions(
        *service, Owner.dag_key_prefix(dag_id), is_prefix=True
    )
    if not of_dag:
        return []  # With keys: none of this Dag's. Without: none at all.
    orphans: list[Orphan] = []
    left = set(of_dag)
    for task in records.ended_tasks():
        if not left:
            break
        known_by = "key" if has_keys else "note"
        if has_keys:
            ids = yield from _ids_by_key(flows, service, task)
        else:
            ids = _ids_by_note(service, records.batch_note(task))
        wanted = records.result_id(task) if ids and task.state == _SUCCESS else None
        for execution_id in ids:
            if execution_id not in left:
                continue
            left.discard(execution_id)
            status = yield from _status(flows, service, execution_id)
            if status is None:
                continue
            is_result = task.state == _SUCCESS and wanted in (None, execution_id)
            if is_result and (status.is_terminal or not _waits(records, task)):
                continue
            orphans.append(Orphan(execution_id, task, known_by))
    return orphans


def _waits(records: AirflowRecords, task: EndedTask) -> bool:
    """Whether a task waits for its batch; one that does cannot have succeeded while that runs."""
    return bool((records.batch_note(task) or {}).get("waits"))


def _ids_by_key(flows: Flows, service: tuple[str, str], task: EndedTask) -> Flow[list[str]]:
    owner = Owner(task.dag_id, task.run_id, task.task_id, task.map_index)
    ids, _ = yield from flows.find_batch_executions(*service, owner.key_prefix, is_prefix=True)
    return ids


def _ids_by_note(service: tuple[str, str], note: Mapping[str, Any] | None) -> list[str]:
    if note is None or not isinstance(note.get("execution_id"), str):
        return []
    is_of_service = (note.get("service_name"), note.get("service_version")) == service
    return [note["execution_id"]] if is_of_service else []


def _status(flows: Flows, service: tuple[str, str], execution_id: str) -> Flow[BatchStatus | None]:
    try:
        return (yield from flows.get_batch_status(*service, execution_id))
    except ExecutionNotFoundError:
        return None
