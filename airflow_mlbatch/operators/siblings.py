"""The score tasks of one run, any of which could take another's batch for its own.

Law: each tells the others through XCom that it is about to start a batch, before the request goes
out, and the batch's id as soon as it is known. An execution is looked for on the server first and the
others are asked afterwards: then whose it is has been told, or that it is being started.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

__all__ = ["Siblings"]

_XCOM_KEY = "mlbatch_submission"


class Siblings:
    """The other score tasks of a run, mapped instances included.

    :param context: of the task that asks
    :param task_ids: of all score tasks of the Dag
    :param service: name and version of what the task scores with
    """

    def __init__(self, context: Context, task_ids: Sequence[str], service: tuple[str, str]) -> None:
        self._ti: Any = context["ti"]
        self._task_ids, self._service = list(task_ids), list(service)
        map_index = getattr(self._ti, "map_index", -1)
        self._me = {"task_id": self._ti.task_id, "map_index": map_index}
        self.exist = map_index >= 0 or self._task_ids != [self._ti.task_id]

    def tell(self, count: int, execution_id: str | None = None) -> None:
        """Tell the others of a batch.

        :param count: the number of its records
        :param execution_id: its id; ``None`` while it is being started
        """
        if self.exist:
            batch = {"service": self._service, "count": count, "execution_id": execution_id}
            self._ti.xcom_push(key=_XCOM_KEY, value={**self._me, **batch})

    def claimed(self) -> set[str]:
        """Executions that belong to others."""
        return {told["execution_id"] for told in self._told() if told["execution_id"]}

    def starting(self, count: int) -> int:
        """How many others have begun to start a batch of so many records and have no id yet.

        One that died meanwhile stays among them until it is tried again.
        """
        like_ours = {"service": self._service, "count": count, "execution_id": None}
        return sum(like_ours.items() <= told.items() for told in self._told())

    def _told(self) -> Iterator[dict[str, Any]]:
        if not self.exist:
            return
        # Without map_indexes, Airflow pulls those of all instances.
        for told in self._ti.xcom_pull(task_ids=self._task_ids, key=_XCOM_KEY) or ():
            if isinstance(told, dict) and not self._me.items() <= told.items():
                yield told
