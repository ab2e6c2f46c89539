"""Waits for a batch on the triggerer's event loop.

Law: ``__init__`` only assigns, every keyword has a default and none is ever removed; no secret in a
keyword or an event; nothing remote is cancelled in ``cleanup``, which runs at every restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.triggers.lazily import loaded

if TYPE_CHECKING:
    from airflow_mlbatch.hooks.async_session import AsyncSession
    from airflow_mlbatch.hooks.task_fate import Fate
    from airflow_mlbatch.hooks.timing import Timing
    from airflow_mlbatch.protocol.messages import Report
    from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["BatchStateTrigger"]

# Airflow gives on_kill() thirty seconds; what the question leaves is for the login and the DELETE.
_QUESTION_SECONDS = 20.0
_preparation: asyncio.Task[None] | None = None


class BatchStateTrigger(BaseTrigger):
    """Sends one event when an execution is complete, failed, gone, or past its deadline.

    :param service_name: a published service
    :param service_version: its version
    :param execution_id: what started the batch returned
    :param mlbatch_conn_id: connection of type ``mlbatch``
    :param poll_interval: seconds between polls
    :param deadline: epoch seconds, because monotonic clocks do not survive a move to another
        triggerer; ``None`` waits for ever
    :param cancel_on_kill: cancel the execution when a user kills, clears or marks the deferred task
        (Airflow 3.3; earlier versions do not tell a trigger)
    :param most_failed: how many records may fail; once partial results show more, the execution is
        cancelled and the event is an error; ``None`` looks at no results
    """

    timing: Timing | None = None
    """How its session keeps time; ``None`` for the usual way."""

    def __init__(
        self,
        service_name: str = "",
        service_version: str = "",
        execution_id: str = "",
        mlbatch_conn_id: str = "mlbatch_default",
        poll_interval: float = 30.0,
        deadline: float | None = None,
        cancel_on_kill: bool = False,
        most_failed: int | None = None,
    ) -> None:
        super().__init__()
        self.service_name = service_name
        self.service_version = service_version
        self.execution_id = execution_id
        self.mlbatch_conn_id = mlbatch_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.cancel_on_kill = cancel_on_kill
        self.most_failed = most_failed
        self._session: AsyncSession | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and every keyword."""
        return (
            "airflow_mlbatch.triggers.batch_state.BatchStateTrigger",
            {
                "service_name": self.service_name,
                "service_version": self.service_version,
                "execution_id": self.execution_id,
                "mlbatch_conn_id": self.mlbatch_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "cancel_on_kill": self.cancel_on_kill,
                "most_failed": self.most_failed,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch the batch, and send one event.

        Whatever goes wrong becomes an event, too. An exception would make the task retry, and the
        batch run twice.
        """
        event_of = await loaded("outcomes", "event_of")
        outcome: BatchStatus | MLBatchError
        try:
            session = await self._acquired()
            self._prepare_for_kill()
            outcome = await session.run(
                session.flows.watch_with_limit(
                    self.service_name,
                    self.service_version,
                    self.execution_id,
                    poll_interval=self.poll_interval,
                    deadline=self.deadline,
                    most_failed=self.most_failed,
                ),
                self._log_report,
            )
        except MLBatchError as error:
            outcome = error
        except Exception as error:
            self.log.exception("watching execution %s failed", self.execution_id)
            outcome = MLBatchError(f"watching the batch failed: {type(error).__name__}: {error}")
        # Whoever runs a Dag without a triggerer never calls cleanup(). A killed trigger does not come
        # here: on_kill() goes on with the session.
        await self.cleanup()
        yield TriggerEvent(event_of(self.execution_id, outcome))

    async def on_kill(self) -> None:
        """Cancel the batch of a task that has ended without it (Airflow 3.3), if it still runs.

        The task may have ended with it: two triggerers can watch the same batch for a while, and the
        later one is ended when the task has succeeded. Its results are wanted then.

        Airflow also calls this when the task was cleared, and, in 3.3.2, when the trigger moves to
        another triggerer (apache/airflow#73454). Then the next attempt, or the trigger that goes on
        elsewhere, decides about the batch.
        """
        if not self.cancel_on_kill:
            return
        fate = await self._fate()
        if fate is not None and not fate.is_end_of_batch:
            self.log.info(
                "execution %s is not cancelled: its task has not ended, and its next attempt decides",
                self.execution_id,
            )
            return
        if fate is None:
            self.log.warning(
                "execution %s is not cancelled: Airflow did not say what became of its task; "
                "BatchDeleteOperator(orphans=True) and `mlbatch orphans` find it if it is left over",
                self.execution_id,
            )
            return
        session = await self._acquired()
        flow = session.flows.cancel_running_batch(
            self.service_name, self.service_version, self.execution_id
        )
        was_running = await session.run(flow, self._log_report)
        self.log.info(
            "the task %s: execution %s %s",
            fate.value,
            self.execution_id,
            "is cancelled" if was_running else "is over or gone already, so nothing is cancelled",
        )

    async def cleanup(self) -> None:
        """Give the shared session back; the batch goes on."""
        session, self._session = self._session, None
        if session is not None:
            await session.release()

    async def _acquired(self) -> AsyncSession:
        if self._session is None:
            acquire_session = await loaded("async_session", "acquire_session")
            self._session = await acquire_session(self.mlbatch_conn_id, self.timing)
        return self._session

    async def _fate(self) -> Fate | None:
        """What became of the task; ``None`` where Airflow does not say it in time."""
        task = self.task_instance
        if task is None:
            return None
        fate_from_states = await loaded("task_fate", "fate_from_states")
        try:
            states = await asyncio.wait_for(_states_of(task), _QUESTION_SECONDS)
        except Exception:
            self.log.warning("asking for the state of the task failed", exc_info=True)
            return None
        fate: Fate = fate_from_states(states, task.run_id)
        return fate

    def _prepare_for_kill(self) -> None:
        """Ask once in a process for a task's state, before it matters.

        The first such question makes the triggerer build Airflow's whole API in its process, and that
        takes seconds which a user who kills a task would wait for.
        """
        global _preparation
        can_be_killed = self.cancel_on_kill and hasattr(BaseTrigger, "on_kill")
        if _preparation is None and can_be_killed and self.task_instance is not None:
            _preparation = asyncio.create_task(_look_at(self.task_instance))

    def _log_report(self, report: Report) -> None:
        if report.warning is not None:
            self.log.warning("poll of execution %s: %s", self.execution_id, report.warning)
        else:
            self.log.info("execution %s: %s", self.execution_id, report.progress)


async def _states_of(task: Any) -> dict[str, dict[str, Any]]:
    """The state that a task has now, as Airflow's API tells it: by run and by task."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
    from asgiref.sync import sync_to_async

    states: dict[str, dict[str, Any]] = await sync_to_async(RuntimeTaskInstance.get_task_states)(
        dag_id=task.dag_id,
        map_index=task.map_index,
        task_ids=[task.task_id],
        run_ids=[task.run_id],
    )
    return states


async def _look_at(task: Any) -> None:
    with contextlib.suppress(Exception):
        await _states_of(task)
