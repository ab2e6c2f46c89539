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
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_mlbatch.batch_task import BatchTask
from airflow_mlbatch.errors import BatchFailedError, BatchTimeoutError, MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import settle_version
from airflow_mlbatch.hooks.outcomes import (
    airflow_errors,
    completed,
    reading_of_another_task,
    status_of_event,
    summary,
)
from airflow_mlbatch.hooks.task_fate import can_be_retried
from airflow_mlbatch.links import BatchExecutionLink, note_batch
from airflow_mlbatch.protocol.progress import Pace
from airflow_mlbatch.protocol.results import BatchStatus
from airflow_mlbatch.triggers import BatchStateTrigger
from airflow_mlbatch.triggers.deferral import Deadline, is_out_of_time

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.protocol.messages import Report

__all__ = ["BatchStateSensor"]

# Where a retry finds when the first attempt began to wait.
_STORE_KEY = "mlbatch_waiting_since"
# A poll that fails is tried again within the same poke, and not only after a poke_interval of hours.
_LONGEST_PAUSE = 30.0


class BatchStateSensor(BatchTask, BaseSensorOperator):
    """Waits until a batch execution is complete; fails when it failed or is gone.

    Its XCom is the batch's summary: ``execution_id``, ``state``, ``completed_item_count``,
    ``total_item_count``. Records that failed do not fail the sensor; results are judged where they
    are read.

    :param service_name: a published service
    :param service_version: its version; ``latest`` for that of the run
    :param execution_id: what :class:`~airflow_mlbatch.operators.BatchScoreOperator` returned
    :param mlbatch_conn_id: connection of type ``mlbatch``
    :param deferrable: wait in the triggerer instead of on a worker
    :param poke_interval: seconds (or a ``timedelta``) between polls, in all modes
    :param timeout: seconds (or a ``timedelta``) until the sensor fails with ``AirflowSensorTimeout``;
        retries do not start it anew (Airflow 3.3; before that only in reschedule mode)
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
        self._started_at = 0.0
        self._since: float | None = None
        self._pace = Pace()

    def execute(self, context: Context) -> Any:
        """Poll, in the way that was asked for."""
        self._started_at, self._since = time.time(), None
        self._begin(context["ti"])
        # Airflow's own loop, for a deferrable sensor too: there it ends in the first poke, and it
        # judges what that raises by soft_fail, never_fail and silent_fail.
        result = super().execute(context)
        self._forget_the_time(context)
        return result

    def poke(self, context: Context) -> PokeReturnValue:
        """One poll; as patient with a server in trouble as the trigger is.

        :raises TaskDeferred: the batch still runs and the sensor is deferrable
        """
        with self._errors():
            if not self.linked_execution_id:
                settle_version(self, context, self.hook)
                self._link_to(self.execution_id)
                note_batch(context, self)
            deadline = self._deadline(context)
            try:
                status = self._status()
            except MLBatchError as error:
                if error.is_permanent:
                    raise
                self.log.warning("poll of execution %s: %s", self.execution_id, error)
                if self.deferrable:
                    # The trigger forgives what may pass.
                    self._defer(deadline)
                status = self.hook.poll_batch(
                    self.service_name,
                    self.service_version,
                    self.execution_id,
                    poll_interval=min(self.poke_interval, _LONGEST_PAUSE),
                    deadline=deadline.at,
                    on_report=self._log_problem,
                )
            self._pace.take(time.time(), status)
            self.log.info("execution %s: %s", self.execution_id, self._pace.line(status))
            if status.is_terminal:
                return PokeReturnValue(is_done=True, xcom_value=self._ended(status))
            if self.deferrable:
                self._defer(deadline)
            if deadline.has_passed(time.time()):
                # In the trigger's words: Airflow's own do not say how far the batch came.
                raise BatchTimeoutError(
                    f"execution {self.execution_id} is not complete at the deadline: {status}"
                )
        return PokeReturnValue(is_done=False)

    def execute_complete(
        self,
        context: Context,
        event: Any = None,
        deadline: float | None = None,
        limited_by: str = "timeout",
    ) -> Any:
        """Judge what the trigger saw."""
        if self._is_about_another(event):
            # Airflow keeps the event of a task that is cleared while it is resumed, and resumes it again.
            self.log.warning(
                "the trigger watched execution %s, and this task waits for %s: looking at that one",
                event["execution_id"],
                self.execution_id,
            )
            return self.execute(context)
        self._begin(context["ti"])
        try:
            with self._errors(limited_by):
                settle_version(self, context, self.hook)
                # First, because the link is stored again at the end, also where the task fails.
                self._link_to(self.execution_id)
                self.execution_id, status = status_of_event(event)
            result = self._ended(status)
        except (MLBatchError, AirflowException) as error:
            if type(error) is AirflowException:
                # As Airflow does where it enforces execution_timeout itself.
                self._is_out_of_time = True
                self.on_kill()
            # What Airflow's loop does about errors; soft_fail it sees to itself.
            if isinstance(error, MLBatchError) and self.silent_fail:
                self.log.warning("watching execution %s: %s", self.execution_id, error)
                self._defer(
                    self._deadline(context) if deadline is None else Deadline(deadline, limited_by)
                )
            if self.never_fail:
                raise AirflowSkipException("Skipping due to never_fail is set to True.") from error
            raise
        self._forget_the_time(context)
        return result

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """As Airflow does it; but where no triggerer kept the deadline, there is one last poll."""
        if is_out_of_time(next_method, next_kwargs):
            self.deferrable, self.timeout = False, 0
            return self.execute(context)
        return super().resume_execution(next_method, next_kwargs, context)

    def on_kill(self) -> None:
        """Cancel the batch, if that was asked for and Airflow has ended the task."""
        if self.cancel_on_kill:
            self._end_early()

    def _begin(self, ti: Any) -> None:
        super()._begin(ti)
        # Only on request does the batch end with the sensor that waits for it.
        self._own_execution_id = self.execution_id if self.cancel_on_kill else None

    def _is_about_another(self, event: Any) -> bool:
        """Whether an event names another execution than the one that this task waits for now."""
        found = event.get("execution_id") if isinstance(event, dict) else None
        return isinstance(found, str) and found != str(self.execution_id)

    def _status(self) -> BatchStatus:
        return self.hook.get_batch_status(
            self.service_name, self.service_version, self.execution_id
        )

    def _ended(self, status: BatchStatus) -> dict[str, Any]:
        try:
            completed(self.execution_id, status)
        except BatchFailedError as error:
            # The same execution would be found failed at every retry.
            raise AirflowFailException(str(error)) from error
        return summary(self.execution_id, status)

    def _defer(self, deadline: Deadline) -> NoReturn:
        self._has_deferred = self.cancel_on_kill
        self.defer(
            trigger=BatchStateTrigger(
                service_name=self.service_name,
                service_version=self.service_version,
                execution_id=self.execution_id,
                mlbatch_conn_id=self.mlbatch_conn_id,
                poll_interval=self.poke_interval,
                deadline=deadline.at,
                cancel_on_kill=self.cancel_on_kill,
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline.at, "limited_by": deadline.limited_by},
            timeout=deadline.backstop,
        )
        raise AssertionError("defer does not return")

    # --- time ------------------------------------------------------------------------------------

    def _deadline(self, context: Context) -> Deadline:
        if self._since is None:
            self._since = self._waiting_since(context)
        return Deadline.of_task(
            self,
            waiting_since=self._since,
            timeout=self.timeout,
            started_at=self._started_at,
        )

    def _waiting_since(self, context: Context) -> float:
        """When the task began to wait for this batch, in epoch seconds.

        A retry goes on with the time of the first attempt (Airflow 3.3), a cleared task begins anew:
        its limit of attempts has grown.
        """
        ti: Any = context["ti"]
        if self._keeps_time(context):
            store: Any = context["task_state_store"]
            wait = {
                "execution_id": self.execution_id,
                "max_tries": getattr(ti, "max_tries", None),
            }
            left = store.get(_STORE_KEY)
            if isinstance(left, dict) and {key: left.get(key) for key in wait} == wait:
                return float(left["at"])
            store.set(_STORE_KEY, {**wait, "at": self._started_at})
        elif self.reschedule:
            first = ti.get_first_reschedule_date(context)
            if first is not None:
                return float(first.timestamp())
        return self._started_at

    def _forget_the_time(self, context: Context) -> None:
        if self._keeps_time(context):
            context["task_state_store"].delete(_STORE_KEY)

    def _keeps_time(self, context: Context) -> bool:
        """Whether there can be a retry, and a place to leave it a note."""
        return bool(self.retries) and context.get("task_state_store") is not None

    def _log_problem(self, report: Report) -> None:
        if report.warning is not None:
            self.log.warning("poll of execution %s: %s", self.execution_id, report.warning)

    @contextmanager
    def _errors(self, limited_by: str = "timeout") -> Iterator[None]:
        """:func:`airflow_errors`, with the exception that Airflow has for a sensor's time-out."""
        # With silent_fail the sensor would go on in this attempt, with the id that it has.
        is_retried = not self.silent_fail and can_be_retried(self._ti)
        try:
            with airflow_errors(), reading_of_another_task(is_retried=is_retried):
                yield
        except AirflowFailException as error:
            if isinstance(error.__cause__, BatchTimeoutError):
                if limited_by == "execution_timeout":
                    # As when Airflow itself stops a task for it: a retry may try again.
                    raise AirflowException(f"execution_timeout: {error}") from error
                raise AirflowSensorTimeout(str(error)) from error
            raise
