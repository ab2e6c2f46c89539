"""What the score tasks of one run tell about their batches.

Law: a task tells the others through XCom that it is about to start a batch, before the request goes
out, and the batch's id as soon as it is known. An execution is looked for on the server first, and the
others are asked afterwards.

This only shortens the search on a server that knows no idempotency keys: what another task of the run
claims need not be compared. Nothing depends on it, because tasks of other runs tell nothing here.
The page of a batch and the search for orphans read the same note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["BATCH_XCOM", "Siblings"]

# The same name as that of the note in the task state store: it is about the same batch.
BATCH_XCOM = "mlbatch_batch"


class Siblings:
    """The other score tasks of a run, mapped instances included.

    :param context: of the task that asks
    :param task_ids: of all score tasks of the Dag
    :param batch: what the note says beside counts and ids: the connection, service and version, and
        whether the task waits for its batch
    """

    def __init__(self, context: Context, task_ids: Sequence[str], batch: Mapping[str, Any]) -> None:
        self._ti: Any = context["ti"]
        self._task_ids, self._batch = list(task_ids), batch
        self._service = {key: batch[key] for key in ("service_name", "service_version")}
        map_index = getattr(self._ti, "map_index", -1)
        self._me = {"task_id": self._ti.task_id, "map_index": map_index}
        self._exist = map_index >= 0 or self._task_ids != [self._ti.task_id]

    def tell(self, count: int, execution_id: str | None = None) -> None:
        """Tell the others of a batch.

        :param count: the number of its records
        :param execution_id: its id; ``None`` while it is being started
        """
        note = {**self._me, **self._batch, "count": count, "execution_id": execution_id}
        self._ti.xcom_push(key=BATCH_XCOM, value=note)

    def claimed(self) -> set[str]:
        """Executions that belong to others."""
        return {note["execution_id"] for note in self._notes() if note.get("execution_id")}

    def starting(self, count: int) -> int:
        """How many others have begun to start a batch of so many records and have no id yet.

        One that died meanwhile stays among them until it is tried again.
        """
        like_ours = {**self._service, "count": count, "execution_id": None}
        return sum(like_ours.items() <= note.items() for note in self._notes())

    def _notes(self) -> Iterator[dict[str, Any]]:
        if not self._exist:
            return
        # Without map_indexes, Airflow pulls those of all instances.
        for note in self._ti.xcom_pull(task_ids=self._task_ids, key=BATCH_XCOM) or ():
            if isinstance(note, dict) and not self._me.items() <= note.items():
                yield note
