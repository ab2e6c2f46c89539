"""Failed records are scored again, in a batch of their own, before they are judged.

Law: such a batch is deleted when its results were read, also where that fails. Its id is kept until
then, so that the next attempt deletes what a worker that died has left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from airflow_mlbatch.batch_task import BatchTask
from airflow_mlbatch.hooks.outcomes import completed
from airflow_mlbatch.protocol.submission import Owner, Payload, StateStore

if TYPE_CHECKING:
    from airflow_mlbatch.datasets.second_tries import SecondTries
    from airflow_mlbatch.datasets.tables import InputTable
    from airflow_mlbatch.protocol.results import RecordBlock, RecordResult
    from airflow_mlbatch.protocol.services import Parameter

__all__ = ["STORE_KEY", "Rescoring"]

# Where the id of a batch of failed records is kept until it is deleted, over the attempts of a task.
STORE_KEY = "mlbatch_batch_of_failed_records"


class Rescoring:
    """Further tries of the failed records of a batch.

    :param task: the task that reads the results
    :param tries: how often they are scored again; 0 for not at all
    :param parallel_count: how many of them the server may score at once
    :param poll_interval: seconds between polls
    :param owner: the task instance
    :param store: Airflow's task state store, or ``None`` where there is none
    :param before_send: called before a batch is started; raises where none may be any more
    :param own: called with the id of a batch that ends with the task
    :param let_go: called when it is not needed any more; deletes it
    """

    def __init__(
        self,
        task: BatchTask,
        *,
        tries: int,
        parallel_count: int,
        poll_interval: float,
        owner: Owner,
        store: StateStore | None,
        before_send: Callable[[], None],
        own: Callable[[str], None],
        let_go: Callable[[str], None],
    ) -> None:
        self._task, self.tries, self._owner, self._store = task, tries, owner, store
        self._parallel, self._pause = parallel_count, poll_interval
        self._before_send, self._own, self._let_go = before_send, own, let_go

    @property
    def _service(self) -> tuple[str, str]:
        return self._task.service_name, self._task.service_version

    def run(
        self, execution_id: str | None, inputs: Sequence[Parameter], table: InputTable | None
    ) -> SecondTries:
        """Score the failed records again, until none is left or there were enough tries.

        :param execution_id: the first batch; ``None`` where there is none
        :param inputs: those of the service
        :param table: the table that was scored; needed where there is a try
        """
        from airflow_mlbatch.datasets.second_tries import SecondTries

        found = SecondTries()
        if not self.tries:
            return found
        assert table is not None
        self._delete_leftover()
        self.read(execution_id, found.note, restart=found.forget)
        for number in range(1, self.tries + 1):
            if not found.failed:
                break
            self._task.log.info(
                "scoring %s failed records again, try %s", f"{len(found.failed):,}", number
            )
            body, count = table.encode(inputs, found.failed)
            found.take(self._score(f"try {number - 1} of {execution_id}", body, count, found))
        return found

    def read(
        self,
        execution_id: str | None,
        take: Callable[[RecordBlock], None],
        restart: Callable[[], None] | None = None,
    ) -> None:
        """Read the results of a batch; of none, nothing."""
        if execution_id is not None:
            self._task.hook.read_batch_results(*self._service, execution_id, take, restart=restart)

    def _delete_leftover(self) -> None:
        """Delete the batch of failed records that an attempt left when it died."""
        left = self._store.get(STORE_KEY) if self._store is not None else None
        if self._store is not None and isinstance(left, str):
            self._task.hook.cancel_batch(*self._service, left)
            self._store.delete(STORE_KEY)

    def _score(self, name: str, body: bytes, count: int, found: SecondTries) -> list[RecordResult]:
        """Results of some records in a batch of their own, which is deleted afterwards."""
        hook = self._task.hook
        payload = Payload(*self._service, body, count, self._parallel)
        execution_id = hook.start_encoded_batch(
            *self._service,
            body,
            self._parallel,
            idempotency_key=self._owner.key(payload.fingerprint(name)),
            before_send=self._before_send,
        )
        if self._store is not None:
            self._store.set(STORE_KEY, execution_id)
        found.execution_ids.append(execution_id)
        try:
            self._own(execution_id)
            status = hook.watch_batch(*self._service, execution_id, poll_interval=self._pause)
            completed(execution_id, status)
            records: list[RecordResult] = []
            self.read(execution_id, records.extend, restart=records.clear)
        finally:
            self._let_go(execution_id)
            if self._store is not None:
                self._store.delete(STORE_KEY)
        return records
