"""Starts the scoring of a table."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, get_args

from airflow.providers.common.compat.sdk import (
    AirflowException,
    BaseOperator,
    conf,
)

from airflow_mlbatch.batch_task import BatchTask, owner_of
from airflow_mlbatch.errors import (
    BatchTimeoutError,
    ExecutionNotFoundError,
    InputError,
    MLBatchError,
)
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import settle_version
from airflow_mlbatch.hooks.outcomes import completed, status_of_event
from airflow_mlbatch.links import BatchExecutionLink, note_batch
from airflow_mlbatch.links.batch_note import STARTED_KEY
from airflow_mlbatch.operators.batch_summary import BatchSummary, summarised
from airflow_mlbatch.operators.empty import OnEmpty, check_on_empty, judge_empty
from airflow_mlbatch.operators.failed_records import check_limit, judge_records, most_failed
from airflow_mlbatch.operators.lineage import ScoreLineage
from airflow_mlbatch.operators.places import input_table
from airflow_mlbatch.operators.rendered import (
    as_seconds,
    as_table,
    as_whole_number,
    check_choice,
)
from airflow_mlbatch.operators.siblings import Siblings
from airflow_mlbatch.protocol.flows import PARALLEL_COUNT
from airflow_mlbatch.protocol.messages import Notice, Report
from airflow_mlbatch.protocol.recognition import Recognition
from airflow_mlbatch.protocol.submission import (
    OnAmbiguousSubmission,
    Payload,
    StateStore,
    Submission,
    Submitted,
    is_being_cancelled,
    mark_cancelling,
    mark_done,
    read_note,
)
from airflow_mlbatch.triggers import BatchStateTrigger
from airflow_mlbatch.triggers.deferral import Deadline, is_out_of_time

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.datasets.quoting import Quoting
    from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["BatchScoreOperator"]

# The id of the batch, pushed as soon as it is known: a task that fails later has no return value.
EXECUTION_ID_KEY = "mlbatch_execution_id"


class BatchScoreOperator(ScoreLineage, BatchTask, BaseOperator):
    """Starts a batch and returns its execution id.

    Give either ``records`` or ``input_path``. Everything is checked and cast to the service's declared
    inputs before anything is sent.

    The batch is started once for one task: a retry takes over the batch that an earlier attempt
    started, also when that attempt died while it did so. A server that knows idempotency keys, such as
    ``mlbatch serve``, is asked by key. For the vendor's server the task keeps a note in Airflow's task
    state store (3.3) and recognises its batch by the results. Airflow before 3.3 has no such store, so
    there a retry starts the batch again.

    :param service_name: a published service
    :param service_version: its version; ``latest`` for the one that was published last when the run
        first asked, which all its tasks and their retries keep to
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
    :param cancel_on_timeout: cancel the batch when ``timeout`` passes; otherwise it goes on without the
        task
    :param max_failed_records: fail the task when more records failed: a count, or a fraction of the
        records; ``None`` judges nothing. Needs ``wait_for_completion``
    :param stop_early: cancel the batch and fail as soon as partial results show more failed records
        than ``max_failed_records`` allows; the results of the other records are lost then
    :param report_failures: read the results at the end of the wait, and log how many records failed
        and the first of them
    :param cancel_on_kill: cancel the batch when a user kills, clears or marks the task while it runs
        or is deferred (deferred: Airflow 3.3)
    :param durable: keep the note about the batch in Airflow's task state store (3.3)
    :param on_ambiguous_submission: what to do when a worker died while it started the batch, the
        server knows no keys, and an execution could be that batch without any proof: ``fail``, or
        ``resubmit`` to start another one
    :param recognise_by_scoring: whether a few records may be scored by request/response to recognise
        the batch of a worker that died; set it to false for a service that must not be called so
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
        "max_failed_records",
        "mlbatch_conn_id",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"records": "json", "columns": "json"}
    operator_extra_links = (BatchExecutionLink(),)
    # Whether a task that is resumed has the records again.
    _keeps_records: ClassVar[bool] = True
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
        cancel_on_timeout: bool = True,
        max_failed_records: float | None = None,
        stop_early: bool = False,
        report_failures: bool = True,
        cancel_on_kill: bool = True,
        durable: bool = True,
        on_ambiguous_submission: OnAmbiguousSubmission = "fail",
        recognise_by_scoring: bool = True,
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
        self.cancel_on_timeout = cancel_on_timeout
        self.max_failed_records = max_failed_records
        self.stop_early = stop_early
        self.report_failures = report_failures
        self.cancel_on_kill = cancel_on_kill
        self.durable = durable
        self.on_ambiguous_submission = on_ambiguous_submission
        self.recognise_by_scoring = recognise_by_scoring
        self.mlbatch_conn_id = mlbatch_conn_id
        self.execution_id: str | None = None
        self._kept_in: StateStore | None = None
        self._has_adopted = False
        # The arguments as execute() understood them.
        self._parallel, self._pause = PARALLEL_COUNT, 30.0
        self._limit: float | None = None
        self._most_failed: int | None = None
        self._summary = BatchSummary()

    def execute(self, context: Context) -> str | None:
        """Start the batch, and wait for it if asked to."""
        started_at = time.time()
        self._begin(context["ti"])
        with self._errors(), summarised(context, self) as self._summary:
            self._check()
            self._take_records(context)
            settle_version(self, context, self.hook)
            siblings = self._siblings(context)
            self._tell_what_was_left(context, siblings)
            body, count = self._encode()
            self._note_lineage(self.hook)
            submission = self._submission(context, body, count, siblings)
            if count == 0:
                self.hook.run(submission.abandon(), self._log_report)
                self.log.info("%s", judge_empty(self.on_empty, self.input_path or "records"))
                return None
            try:
                self._submit_and_wait(context, submission, count, started_at)
            except ExecutionNotFoundError as error:
                if not self._was_cancelled_before(context, is_adopted=self._has_adopted):
                    raise
                self.log.warning("%s; an earlier attempt cancelled it: starting another one", error)
                self._submit_and_wait(context, submission, count, started_at)
        return self._succeeded(context)

    def execute_complete(
        self,
        context: Context,
        event: Any = None,
        limited_by: str = "timeout",
        is_proven: bool = True,
        is_adopted: bool = False,
        max_tries: int | None = None,
    ) -> str | None:
        """Judge what the trigger saw."""
        if event is None:
            # A clear at the moment of the deferral can leave a task that is resumed without an event.
            self.log.warning("the trigger sent no event; looking for the batch again")
            return self.execute(context)
        if max_tries not in (None, owner_of(context["ti"]).max_tries):
            # Airflow keeps the event of a task that is cleared while it is resumed, and resumes it again.
            self.log.warning("the task was cleared after its batch had ended; scoring again")
            return self.execute(context)
        self._begin(context["ti"])
        is_cancelled = False
        with self._errors(), summarised(context, self) as self._summary:
            settle_version(self, context, self.hook)
            if isinstance(event, dict) and isinstance(event.get("execution_id"), str):
                # First, because the link is stored again at the end, also where the task fails.
                self._running(event["execution_id"])
            try:
                execution_id, status = status_of_event(event)
            except BatchTimeoutError as error:
                self._give_up(error, limited_by)
                raise
            except ExecutionNotFoundError as error:
                if not self._was_cancelled_before(context, is_adopted=is_adopted):
                    raise
                self.log.warning("%s; an earlier attempt cancelled it: starting another one", error)
                is_cancelled = True
            else:
                self._complete(execution_id, status)
                if not is_proven:
                    self._confirm(context, execution_id)
                self._judge()
        # After the block: the other batch has a summary and errors of its own.
        return self.execute(context) if is_cancelled else self._succeeded(context)

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """As Airflow does it; but where no triggerer kept the deadline, that is made up for."""
        is_late = is_out_of_time(next_method, next_kwargs)
        note = read_note(self._store(context)) if is_late else None
        if note is None or note.get("execution_id") is None:
            return super().resume_execution(next_method, next_kwargs, context)
        self._begin(context["ti"])
        with self._errors(), summarised(context, self) as self._summary:
            self._check()
            settle_version(self, context, self.hook)
            self._running(note["execution_id"])
            now = time.time()
            # Which limit it was is not handed on: where it is not the task's, it is the attempt's.
            own = self._deadline(float(note["submitted_at"]), math.inf)
            limited_by = "timeout" if own.has_passed(now) else "execution_timeout"
            execution_id = note["execution_id"]
            status = self._watch(execution_id, Deadline(now, limited_by))
            self._complete(execution_id, status)
            if not note.get("is_proven", True):
                self._confirm(context, execution_id)
            self._judge()
        return self._succeeded(context)

    def on_kill(self) -> None:
        """Cancel the batch, if Airflow has ended the task that is told to stop."""
        self._end_early(self._note_cancellation, cancels=self.cancel_on_kill)

    # --- the records -----------------------------------------------------------------------------

    def _take_records(self, context: Context) -> None:
        """Find out what is to be scored; not done where a task is resumed with its batch.

        :raises InputError: there are no records, or two tables of them
        """
        if (self.records is None) == (self.input_path is None):
            found = "neither" if self.records is None else "both"
            raise InputError(f"records, input_path: found {found}, expected one of them")

    def _check(self) -> None:
        check_on_empty(self.on_empty)
        ways = get_args(OnAmbiguousSubmission)
        check_choice("on_ambiguous_submission", self.on_ambiguous_submission, ways)
        self._parallel = as_whole_number("parallel_count", self.parallel_count, least=1)
        check_limit(self)
        # What waits must be right before there is something to wait for.
        self._pause = as_seconds("poll_interval", self.poll_interval)
        self._limit = None if self.timeout is None else as_seconds("timeout", self.timeout)

    def _encode(self) -> tuple[bytes, int]:
        """The body of the request and the number of records in it."""
        from airflow_mlbatch.protocol.records import encode_records

        table = input_table(self)
        inputs = self.hook.get_service(self.service_name, self.service_version).inputs
        if table is None:
            return encode_records(inputs, as_table(self.records))
        return table.encode(inputs)

    # --- the batch -------------------------------------------------------------------------------

    def _siblings(self, context: Context) -> Siblings:
        batch = {
            "conn_id": self.mlbatch_conn_id,
            "service_name": str(self.service_name),
            "service_version": str(self.service_version),
            "waits": self.wait_for_completion,
        }
        return Siblings(context, score_task_ids(context), batch)

    def _tell_what_was_left(self, context: Context, siblings: Siblings) -> None:
        """At once: what an earlier attempt told the others was wiped when this one began."""
        note = read_note(self._store(context))
        if note is not None:
            siblings.tell(note["count"], note.get("execution_id"))

    def _submission(
        self, context: Context, body: bytes, count: int, siblings: Siblings
    ) -> Submission:
        payload = Payload(self.service_name, self.service_version, body, count, self._parallel)
        return Submission(
            self.hook.flows,
            self.hook.url,
            self._store(context),
            payload,
            owner=owner_of(context["ti"]),
            cancels=self.cancel_on_kill,
            on_ambiguous_submission=self.on_ambiguous_submission,
            claims=siblings,
            recognition=Recognition(
                self.hook.flows,
                self.service_name,
                self.service_version,
                body,
                random.random,
                is_allowed=self.recognise_by_scoring,
            ),
            stop_if_told=self._stop_if_told,
        )

    def _submit_and_wait(
        self, context: Context, submission: Submission, count: int, started_at: float
    ) -> None:
        submitted = self.hook.run(submission.run(), self._log_report)
        self._has_adopted = submitted.is_adopted
        if not submitted.is_adopted:
            self.log.info(
                "started execution %s of %s records", submitted.execution_id, f"{count:,}"
            )
        self._running(submitted.execution_id)
        context["ti"].xcom_push(key=EXECUTION_ID_KEY, value=submitted.execution_id)
        note_batch(context, self, STARTED_KEY, submitted_at=submitted.submitted_at, count=count)
        self._cancel_if_unwanted(submitted.execution_id)
        self._summary.total = count
        if self.wait_for_completion:
            self._most_failed = most_failed(self, count)
            self._wait(submitted, started_at)
            if not submitted.is_proven:
                self.hook.run(submission.confirm(submitted.execution_id), self._log_report)
            self._judge()

    def _was_cancelled_before(self, context: Context, *, is_adopted: bool) -> bool:
        """Whether a batch that is gone was cancelled by an earlier attempt, and by nobody else.

        A batch that a user has deleted is not started again.
        """
        if self._has_cancelled:
            return False
        store = self._store(context)
        if store is None:
            return is_adopted
        return is_being_cancelled(store)

    def _confirm(self, context: Context, execution_id: str) -> None:
        """Look at the results of a batch once more that was recognised by its first ones."""
        self._check()
        self._take_records(context)
        body, count = self._encode()
        submission = self._submission(context, body, count, self._siblings(context))
        self.hook.run(submission.confirm(execution_id), self._log_report)

    def _note_cancellation(self) -> None:
        """Leave a note that the batch is being cancelled, for an attempt that comes before it is."""
        if self._kept_in is not None:
            mark_cancelling(self._kept_in)

    def _store(self, context: Context) -> StateStore | None:
        self._kept_in = context.get("task_state_store") if self.durable else None
        return self._kept_in

    def _running(self, execution_id: str) -> None:
        self.execution_id = self._own_execution_id = execution_id
        self._link_to(execution_id)

    def _wait(self, submitted: Submitted, started_at: float) -> None:
        deadline = self._deadline(submitted.submitted_at, started_at)
        is_deferred = self.deferrable
        if is_deferred and not submitted.is_proven and not self._keeps_records:
            self.log.info(
                "waiting on the worker: the results have to be compared with records that only this "
                "process has"
            )
            is_deferred = False
        if is_deferred:
            try:
                status = self.hook.get_batch_status(
                    self.service_name, self.service_version, submitted.execution_id
                )
            except MLBatchError as error:
                if error.is_permanent:
                    raise
                # The trigger forgives what may pass, as the watch below does.
                self._log_report(Report(None, str(error)))
                self._defer(submitted, deadline)
            if not status.is_terminal:
                self._defer(submitted, deadline)
        else:
            status = self._watch(submitted.execution_id, deadline)
        self._complete(submitted.execution_id, status)

    def _watch(self, execution_id: str, deadline: Deadline) -> BatchStatus:
        try:
            return self.hook.watch_batch(
                self.service_name,
                self.service_version,
                execution_id,
                poll_interval=self._pause,
                deadline=deadline.at,
                most_failed=self._most_failed,
                on_report=self._log_report,
            )
        except BatchTimeoutError as error:
            self._give_up(error, deadline.limited_by)
            raise

    def _defer(self, submitted: Submitted, deadline: Deadline) -> NoReturn:
        trigger = BatchStateTrigger(
            service_name=self.service_name,
            service_version=self.service_version,
            execution_id=submitted.execution_id,
            mlbatch_conn_id=self.mlbatch_conn_id,
            poll_interval=self._pause,
            deadline=deadline.at,
            cancel_on_kill=self.cancel_on_kill,
            most_failed=self._most_failed,
        )
        self._has_deferred = self.cancel_on_kill
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            kwargs={
                "limited_by": deadline.limited_by,
                "is_proven": submitted.is_proven,
                "is_adopted": submitted.is_adopted,
                "max_tries": owner_of(self._ti).max_tries,
            },
            timeout=deadline.backstop,
        )
        raise AssertionError("defer does not return")

    def _deadline(self, submitted_at: float, started_at: float) -> Deadline:
        return Deadline.of_task(
            self, waiting_since=submitted_at, timeout=self._limit, started_at=started_at
        )

    def _give_up(self, error: BatchTimeoutError, limited_by: str) -> None:
        assert self.execution_id is not None
        outcome = "the batch was cancelled"
        # execution_timeout ends as on a worker, where Airflow calls on_kill() then.
        is_ended = self.cancel_on_timeout if limited_by == "timeout" else self.cancel_on_kill
        if not is_ended:
            outcome = "the batch goes on"
            self.log.warning("execution %s: %s", self.execution_id, outcome)
        else:
            try:
                self.hook.cancel_batch(self.service_name, self.service_version, self.execution_id)
            except MLBatchError as problem:
                # A server that is gone at the deadline must not hide that the deadline has passed.
                outcome = f"the batch could not be cancelled: {problem}"
                self.log.warning("execution %s: %s", self.execution_id, outcome)
        if limited_by == "execution_timeout":
            # As when Airflow itself stops a task for its execution_timeout: a retry may try again.
            raise AirflowException(f"execution_timeout: {error}; {outcome}") from error

    # --- what became of it -----------------------------------------------------------------------

    def _complete(self, execution_id: str, status: BatchStatus) -> None:
        self._summary.take_status(status)
        completed(execution_id, status)
        # A task that was deferred has not read its table again.
        self._note_lineage(self.hook)
        self._written = {"rows": status.completed_item_count}

    def _judge(self) -> None:
        judge_records(self, self._summary)

    def _succeeded(self, context: Context) -> str | None:
        store = self._store(context)
        if store is not None:
            mark_done(store)
        return self.execution_id

    def _log_report(self, report: Report) -> None:
        if isinstance(report, Notice):
            (self.log.warning if report.is_warning else self.log.info)("%s", report.text)
        elif report.warning is not None and self.execution_id is None:
            self.log.warning("%s", report.warning)
        elif report.warning is not None:
            self.log.warning("poll of execution %s: %s", self.execution_id, report.warning)
        else:
            self.log.info("execution %s: %s", self.execution_id, report.progress)


def score_task_ids(context: Context) -> list[str]:
    """The score tasks of the Dag that a task belongs to."""
    dag: Any = context.get("dag")
    if dag is None:
        ti: Any = context["ti"]
        return [ti.task_id]
    return [task.task_id for task in dag.tasks if _is_score_task(task)]


def owning_task_ids(context: Context) -> list[str]:
    """Those of them whose batch ends with the task."""
    dag: Any = context.get("dag")
    return [
        task.task_id
        for task in (dag.tasks if dag is not None else ())
        if _is_score_task(task) and _argument(task, "cancel_on_kill", True)
    ]


def _is_score_task(task: Any) -> bool:
    kind = getattr(task, "operator_class", type(task))
    return isinstance(kind, type) and issubclass(kind, BatchScoreOperator)


def _argument(task: Any, name: str, default: Any) -> Any:
    """An argument of an operator, mapped or not."""
    mapped = getattr(task, "partial_kwargs", None)
    return getattr(task, name, default) if mapped is None else mapped.get(name, default)
