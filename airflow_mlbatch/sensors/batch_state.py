"""Waits until a batch is over.

Law: a sensor watches a batch that it does not own; killing it cancels nothing unless asked. The three
modes (poke, reschedule, deferrable) end in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_mlbatch.errors import BatchFailedError, BatchTimeoutError, MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import airflow_errors, checked, status_of_event, summary
from airflow_mlbatch.links import BatchExecutionLink, BatchTask
from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.triggers import BatchStateTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.protocol.messages import Report

__all__ = ["BatchStateSensor"]

# The deadline is kept inside the trigger, which can still say how far the batch came. Airflow's own
# time-out of a deferral runs no code of ours: it only catches a trigger that is stuck.
BACKSTOP = timedelta(minutes=10)
# A poll that fails is tried again within the same poke, and not only after a poke_interval of hours.
_LONGEST_PAUSE = 30.0


class BatchStateSensor(BatchTask, BaseSensorOperator):
    """Waits until a batch execution is complete; fails when it failed or is gone.

    Its XCom is the batch's summary: ``execution_id``, ``state``, ``completed_item_count``,
    ``total_item_count``. Records that failed do not fail the sensor; results are judged where they
    are read.

    :param service_name: a published service
    :param service_version: its version
    :param execution_id: what :class:`~airflow_mlbatch.operators.BatchScoreOperator` returned
    :param mlbatch_conn_id: connection of type ``mlbatch``
    :param deferrable: wait in the triggerer instead of on a worker
    :param poke_interval: seconds between polls, in all modes
    :param timeout: seconds until the sensor fails with ``AirflowSensorTimeout``
    :param cancel_on_kill: cancel the execution when the deferred or running sensor is killed; off,
        because a sensor does not own the batch
    """

    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "execution_id",
        "mlbatch_conn_id",
    )
    operator_extra_links = (BatchExecutionLink(),)
    ui_color = "#d8e8f5"

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        execution_id: str,
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poke_interval: float | timedelta = 30.0,
        cancel_on_kill: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.service_name = service_name
        self.service_version = service_version
        self.execution_id = execution_id
        self.mlbatch_conn_id = mlbatch_conn_id
        self.deferrable = deferrable
        self.cancel_on_kill = cancel_on_kill
        self._started_at: float | None = None

    def execute(self, context: Context) -> Any:
        """Poll, in the way that was asked for."""
        self._started_at = time.time()
        if not self.deferrable:
            return super().execute(context)
        with airflow_errors():
            self._link_to(self.execution_id)
            try:
                status = self._status()
            except MLBatchError as error:
                if error.is_permanent:
                    raise
                # The trigger forgives what may pass.
                self.log.warning("poll of execution %s: %s", self.execution_id, error)
                self._defer()
        result = self._judged(status)
        return result.xcom_value if result.is_done else self._defer()

    def _defer(self) -> NoReturn:
        timeout = timedelta(seconds=self.timeout)
        self.defer(
            trigger=BatchStateTrigger(
                service_name=self.service_name,
                service_version=self.service_version,
                execution_id=self.execution_id,
                mlbatch_conn_id=self.mlbatch_conn_id,
                poll_interval=self.poke_interval,
                deadline=time.time() + self.timeout,
                cancel_on_kill=self.cancel_on_kill,
            ),
            method_name="execute_complete",
            timeout=timeout + BACKSTOP,
        )
        raise AssertionError("defer does not return")

    def poke(self, context: Context) -> PokeReturnValue:
        """One poll; as patient with a server in trouble as the trigger is."""
        with _sensor_errors():
            self._link_to(self.execution_id)
            try:
                status = self._status()
            except MLBatchError as error:
                if error.is_permanent:
                    raise
                self.log.warning("poll of execution %s: %s", self.execution_id, error)
                status = self.hook.poll_batch(
                    self.service_name,
                    self.service_version,
                    self.execution_id,
                    poll_interval=min(self.poke_interval, _LONGEST_PAUSE),
                    deadline=self._deadline(context),
                    on_report=self._log_problem,
                )
        return self._judged(status)

    def _status(self) -> BatchStatus:
        return self.hook.get_batch_status(
            self.service_name, self.service_version, self.execution_id
        )

    def _judged(self, status: BatchStatus) -> PokeReturnValue:
        self.log.info("execution %s: %s", self.execution_id, status)
        if not status.is_terminal:
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._ended(status))

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Judge what the trigger saw."""
        with _sensor_errors():
            self.execution_id, status = status_of_event(event)
        self._link_to(self.execution_id)
        return self._ended(status)

    def on_kill(self) -> None:
        """Cancel the batch if that was asked for."""
        if self.cancel_on_kill:
            self._cancel_at_once(self.execution_id)

    def _ended(self, status: BatchStatus) -> dict[str, Any]:
        try:
            checked(self.execution_id, status)
        except BatchFailedError as error:
            # The same execution would be found failed at every retry.
            raise AirflowFailException(str(error)) from error
        return summary(self.execution_id, status)

    def _deadline(self, context: Context) -> float:
        """When Airflow would find the sensor too late, in epoch seconds."""
        started_at = self._started_at
        if self.reschedule:
            ti: Any = context["ti"]
            first = ti.get_first_reschedule_date(context)
            started_at = started_at if first is None else first.timestamp()
        return (time.time() if started_at is None else started_at) + self.timeout

    def _log_problem(self, report: Report) -> None:
        if report.problem is not None:
            self.log.warning("poll of execution %s: %s", self.execution_id, report.problem)


@contextmanager
def _sensor_errors() -> Iterator[None]:
    """:func:`airflow_errors`, with the exception that Airflow has for a sensor's time-out."""
    try:
        with airflow_errors():
            yield
    except AirflowFailException as error:
        if isinstance(error.__cause__, BatchTimeoutError):
            raise AirflowSensorTimeout(str(error)) from error
        raise
