"""Starts the scoring of a table."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, get_args

from airflow.providers.common.compat.sdk import (
    AirflowException,
    BaseOperator,
    conf,
)

from airflow_mlbatch.errors import BatchError, BatchTimeoutError, InputError, MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.outcomes import airflow_errors, completed, status_of_event
from airflow_mlbatch.links import BatchExecutionLink, BatchTask
from airflow_mlbatch.operators.empty import OnEmpty, check_on_empty, judge_empty
from airflow_mlbatch.operators.locations import location
from airflow_mlbatch.operators.rendered import (
    as_columns,
    as_row_range,
    as_seconds,
    as_table,
    as_whole_number,
    check_choice,
)
from airflow_mlbatch.operators.siblings import Siblings
from airflow_mlbatch.operators.submission import (
    STORE_KEY,
    OnAmbiguousSubmission,
    Payload,
    StateStore,
    Submission,
    Submitted,
    left_behind,
)
from airflow_mlbatch.protocol.flows import PARALLEL_COUNT
from airflow_mlbatch.protocol.messages import Report
from airflow_mlbatch.triggers import BatchStateTrigger
from airflow_mlbatch.triggers.deferral import is_out_of_time, time_left

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.datasets.quoting import Quoting
    from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["BatchScoreOperator"]

# The id of the batch, pushed as soon as it is known: a task that fails later has no return value.
EXECUTION_ID_KEY = "mlbatch_execution_id"


class BatchScoreOperator(BatchTask, BaseOperator):
    """Starts a batch and returns its execution id.

    Give either ``records`` or ``input_path``. Everything is checked and cast to the service's declared
    inputs before anything is sent.

    With Airflow 3.3 the batch is started once for one task: a retry takes over the batch that an
    earlier attempt started, also when that attempt died while it did so. Earlier versions have no
    place to keep the id, so there a retry starts the batch again.

    :param service_name: a published service
    :param service_version: its version
    :param records: a list of dicts, a dict of equally long columns, or a pandas DataFrame
    :param input_path: a CSV, TSV, Parquet or JSON Lines file, anywhere that Airflow's
        ``ObjectStoragePath`` reaches
    :param input_conn_id: the connection of that storage
    :param input_format: ``csv``, ``tsv``, ``parquet`` or ``jsonl`` where the name does not tell
    :param input_quoting: ``double`` for CSV and TSV with quotes around cells, ``none`` where a quote
        is a character like any other
    :param columns: the table's column for an input, where their names differ
    :param row_range: ``(start, stop)``, zero-based, ``stop`` not included: only these rows
    :param on_empty: what to do about a table without rows: ``skip`` the task (default), ``fail``, or
        ``succeed`` with ``None`` for an id
    :param parallel_count: how many records the server may score at once
    :param wait_for_completion: return only when the batch is complete
    :param deferrable: wait in the triggerer; without ``wait_for_completion`` there is nothing to defer
    :param poll_interval: seconds (or a ``timedelta``) between polls while waiting
    :param timeout: seconds (or a ``timedelta``) from the submission, across retries, until the batch
        is cancelled and the task fails; ``None`` for no limit
    :param cancel_on_kill: cancel the batch when a user kills, clears or marks the task while it runs
        or is deferred (deferred: Airflow 3.3)
    :param durable: keep the submission in Airflow's task state store (3.3)
    :param on_ambiguous_submission: what to do when a worker died while it started the batch and the
        server has several that could be it, or one that another score task of the run may have
        started: ``fail``, or ``resubmit``
    :param mlbatch_conn_id: connection of type ``mlbatch``
    """

    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "records",
        "input_path",
        "input_conn_id",
        "input_format",
        "input_quoting",
        "columns",
        "row_range",
        "parallel_count",
        "mlbatch_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"records": "json", "columns": "json"}
    operator_extra_links = (BatchExecutionLink(),)
    ui_color = "#cfe3f7"

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        records: Any = None,
        input_path: str | None = None,
        input_conn_id: str | None = None,
        input_format: str | None = None,
        input_quoting: Quoting = "double",
        columns: Mapping[str, str] | None = None,
        row_range: Sequence[int] | None = None,
        on_empty: OnEmpty = "skip",
        parallel_count: int = PARALLEL_COUNT,
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 30.0,
        timeout: float | timedelta | None = None,
        cancel_on_kill: bool = True,
        durable: bool = True,
        on_ambiguous_submission: OnAmbiguousSubmission = "fail",
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.service_name = service_name
        self.service_version = service_version
        self.records = records
        self.input_path = input_path
        self.input_conn_id = input_conn_id
        self.input_format = input_format
        self.input_quoting: Any = input_quoting
        self.columns = columns
        self.row_range = row_range
        self.on_empty = on_empty
        self.parallel_count = parallel_count
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.cancel_on_kill = cancel_on_kill
        self.durable = durable
        self.on_ambiguous_submission = on_ambiguous_submission
        self.mlbatch_conn_id = mlbatch_conn_id
        self.execution_id: str | None = None
        # The arguments as execute() understood them.
        self._parallel, self._pause = PARALLEL_COUNT, 30.0
        self._limit: float | None = None
        self._is_killed = False

    def execute(self, context: Context) -> str | None:
        """Start the batch, and wait for it if asked to."""
        started_at = time.time()
        self._is_killed = False
        with self._errors():
            self._check()
            service = (self.service_name, self.service_version)
            siblings = Siblings(context, _score_tasks(context), service)
            self._tell_of_what_was_left(context, siblings)
            body, count = self._encode()
            submission = self._submission(context, body, count, siblings)
            if count == 0:
                submission.abandon()
                self.log.info("%s", judge_empty(self.on_empty, self.input_path or "records"))
                return None
            submitted = submission.run()
            if not submitted.is_adopted:
                self.log.info(
                    "started execution %s of %s records", submitted.execution_id, f"{count:,}"
                )
            self._running(submitted.execution_id)
            context["ti"].xcom_push(key=EXECUTION_ID_KEY, value=submitted.execution_id)
            if self._is_killed:
                self._cancel_at_once(submitted.execution_id)
                raise BatchError(f"execution {submitted.execution_id} had just been started")
            if self.wait_for_completion:
                self._wait(submitted, started_at)
        return self._succeeded(context)

    def execute_complete(
        self, context: Context, event: Any = None, limited_by: str = "timeout"
    ) -> str | None:
        """Judge what the trigger saw."""
        with airflow_errors():
            if isinstance(event, dict) and isinstance(event.get("execution_id"), str):
                # First, because the link is stored again at the end, also where the task fails.
                self._running(event["execution_id"])
            try:
                execution_id, status = status_of_event(event)
            except BatchTimeoutError as error:
                self._give_up(error, limited_by)
                raise
            completed(execution_id, status)
        return self._succeeded(context)

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """As Airflow does it; but where no triggerer kept the deadline, that is made up for."""
        is_late = is_out_of_time(next_method, next_kwargs)
        left = left_behind(self._store(context)) if is_late else None
        if left is None or left.get("execution_id") is None:
            return super().resume_execution(next_method, next_kwargs, context)
        with self._errors():
            self._check()
            self._running(left["execution_id"])
            now = time.time()
            # Which limit it was is not handed on: the earlier one is that of the attempt.
            ends_at, _ = self._deadline(float(left["at"]), math.inf)
            limited_by = (
                "timeout" if ends_at is not None and ends_at <= now else "execution_timeout"
            )
            completed(left["execution_id"], self._watch(left["execution_id"], now, limited_by))
        return self._succeeded(context)

    def on_kill(self) -> None:
        """Cancel the batch of a task that is killed on its worker."""
        if self.cancel_on_kill:
            # While a batch is being started there is no id yet: execute() cancels it when there is.
            self._is_killed = True
            self._cancel_at_once(self.execution_id)

    # --- the records -----------------------------------------------------------------------------

    def _check(self) -> None:
        if (self.records is None) == (self.input_path is None):
            found = "neither" if self.records is None else "both"
            raise InputError(f"records, input_path: found {found}, expected one of them")
        check_on_empty(self.on_empty)
        ways = get_args(OnAmbiguousSubmission)
        check_choice("on_ambiguous_submission", self.on_ambiguous_submission, ways)
        self._parallel = as_whole_number("parallel_count", self.parallel_count, least=1)
        if self.input_path is None:
            of_a_table = {
                "columns": as_columns(self.columns),
                "row_range": as_row_range(self.row_range),
            }
            for field, given in of_a_table.items():
                if given is not None:
                    raise InputError(f"input_path: found nothing, expected the table for {field}")
        # What waits must be right before there is something to wait for.
        self._pause = as_seconds("poll_interval", self.poll_interval)
        self._limit = None if self.timeout is None else as_seconds("timeout", self.timeout)

    def _encode(self) -> tuple[bytes, int]:
        """The body of the request and the number of records in it."""
        from airflow_mlbatch.protocol.records import encode_records

        inputs = self.hook.get_service(self.service_name, self.service_version).inputs
        if self.input_path is None:
            return encode_records(inputs, as_table(self.records))
        from airflow_mlbatch.datasets.readers import encode_inputs

        return encode_inputs(
            location(self.input_path, self.input_conn_id),
            inputs,
            columns=as_columns(self.columns),
            row_range=as_row_range(self.row_range),
            format=self.input_format,
            quoting=self.input_quoting,
        )

    # --- the batch -------------------------------------------------------------------------------

    def _tell_of_what_was_left(self, context: Context, siblings: Siblings) -> None:
        """At once: what an earlier attempt told the others was wiped when this one began."""
        left = left_behind(self._store(context)) if siblings.exist else None
        if left is not None:
            siblings.tell(left["count"], left.get("execution_id"))

    def _submission(
        self, context: Context, body: bytes, count: int, siblings: Siblings
    ) -> Submission:
        payload = Payload(self.service_name, self.service_version, body, count, self._parallel)
        store = self._store(context)
        if self.durable and store is None:
            self.log.info(
                "this version of Airflow keeps no task state (3.3 does): a retry of this task starts "
                "the batch again"
            )
        return Submission(
            self.hook,
            store,
            payload,
            cancels=self.cancel_on_kill,
            on_ambiguous_submission=self.on_ambiguous_submission,
            log=self.log,
            siblings=siblings,
            max_tries=getattr(context["ti"], "max_tries", None),
        )

    def _store(self, context: Context) -> StateStore | None:
        return context.get("task_state_store") if self.durable else None

    def _running(self, execution_id: str) -> None:
        self.execution_id = execution_id
        self._link_to(execution_id)

    def _wait(self, submitted: Submitted, started_at: float) -> None:
        deadline, limited_by = self._deadline(submitted.submitted_at, started_at)
        if self.deferrable:
            try:
                status = self.hook.get_batch_status(
                    self.service_name, self.service_version, submitted.execution_id
                )
            except MLBatchError as error:
                if error.is_permanent:
                    raise
                # The trigger forgives what may pass, as the watch below does.
                self._log_report(Report(None, str(error)))
                self._defer(submitted.execution_id, deadline, limited_by)
            if not status.is_terminal:
                self._defer(submitted.execution_id, deadline, limited_by)
        else:
            status = self._watch(submitted.execution_id, deadline, limited_by)
        completed(submitted.execution_id, status)

    def _watch(self, execution_id: str, deadline: float | None, limited_by: str) -> BatchStatus:
        try:
            return self.hook.watch_batch(
                self.service_name,
                self.service_version,
                execution_id,
                poll_interval=self._pause,
                deadline=deadline,
                on_report=self._log_report,
            )
        except BatchTimeoutError as error:
            self._give_up(error, limited_by)
            raise

    def _defer(self, execution_id: str, deadline: float | None, limited_by: str) -> NoReturn:
        trigger = BatchStateTrigger(
            service_name=self.service_name,
            service_version=self.service_version,
            execution_id=execution_id,
            mlbatch_conn_id=self.mlbatch_conn_id,
            poll_interval=self._pause,
            deadline=deadline,
            cancel_on_kill=self.cancel_on_kill,
        )
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            kwargs={"limited_by": limited_by},
            timeout=None if deadline is None else time_left(deadline),
        )
        raise AssertionError("defer does not return")

    def _deadline(self, submitted_at: float, started_at: float) -> tuple[float | None, str]:
        """When to give up, in epoch seconds, and which argument says so.

        Airflow does not enforce ``execution_timeout`` while a task is deferred, so it is part of it.
        """
        deadlines = {}
        if self._limit is not None:
            deadlines["timeout"] = submitted_at + self._limit
        if self.deferrable and self.execution_timeout is not None:
            deadlines["execution_timeout"] = started_at + self.execution_timeout.total_seconds()
        if not deadlines:
            return None, "timeout"
        limited_by = min(deadlines, key=deadlines.__getitem__)
        return deadlines[limited_by], limited_by

    def _give_up(self, error: BatchTimeoutError, limited_by: str) -> None:
        assert self.execution_id is not None
        told = "the batch was cancelled"
        if limited_by == "execution_timeout" and not self.cancel_on_kill:
            # On a worker Airflow calls on_kill() then: a retry takes the batch over.
            told = "the batch goes on"
        else:
            try:
                self.hook.cancel_batch(self.service_name, self.service_version, self.execution_id)
            except MLBatchError as problem:
                # A server that is gone at the deadline must not hide that the deadline has passed.
                told = f"the batch could not be cancelled: {problem}"
                self.log.warning("execution %s: %s", self.execution_id, told)
        if limited_by == "execution_timeout":
            # As when Airflow itself stops a task for its execution_timeout: a retry may try again.
            raise AirflowException(f"execution_timeout: {error}; {told}") from error

    def _succeeded(self, context: Context) -> str | None:
        """Forget the submission, as the last step: a cleared task that had succeeded scores again."""
        store = self._store(context)
        if store is not None:
            store.delete(STORE_KEY)
        return self.execution_id

    def _log_report(self, report: Report) -> None:
        if report.warning is not None:
            self.log.warning("poll of execution %s: %s", self.execution_id, report.warning)
        else:
            status: BatchStatus = report.status
            self.log.info("execution %s: %s", self.execution_id, status)


def _score_tasks(context: Context) -> list[str]:
    """The score tasks of the Dag that a task belongs to."""
    dag: Any = context.get("dag")
    if dag is None:
        ti: Any = context["ti"]
        return [ti.task_id]
    kinds = {task.task_id: getattr(task, "operator_class", type(task)) for task in dag.tasks}
    return [
        task_id
        for task_id, kind in kinds.items()
        if isinstance(kind, type) and issubclass(kind, BatchScoreOperator)
    ]
