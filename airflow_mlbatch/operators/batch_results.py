"""Reads a batch's results: into XCom, or into a table beside its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_mlbatch.batch_task import KILL_SECONDS, BatchTask, owner_of
from airflow_mlbatch.errors import InputError, NoBatchError, RecordsFailedError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import settle_version
from airflow_mlbatch.hooks.outcomes import completed, reading_of_another_task
from airflow_mlbatch.hooks.task_fate import can_be_retried
from airflow_mlbatch.links import BatchExecutionLink, is_id, note_batch
from airflow_mlbatch.operators.assets import emit, with_outlet
from airflow_mlbatch.operators.batch_summary import BatchSummary, summarised
from airflow_mlbatch.operators.console_output import ConsoleLog
from airflow_mlbatch.operators.lineage import ResultsLineage
from airflow_mlbatch.operators.places import check_output, input_table, origin_of, single_table
from airflow_mlbatch.operators.rendered import as_seconds, as_whole_number
from airflow_mlbatch.operators.rescoring import Rescoring
from airflow_mlbatch.protocol.flows import PARALLEL_COUNT

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.datasets.destinations import Destination, ScoredTable
    from airflow_mlbatch.datasets.failures import FailurePolicy
    from airflow_mlbatch.datasets.quoting import Quoting
    from airflow_mlbatch.datasets.scored import DataFrames
    from airflow_mlbatch.datasets.tables import InputTable
    from airflow_mlbatch.protocol.results import RecordBlock
    from airflow_mlbatch.protocol.services import Service

__all__ = ["BatchResultsOperator", "attempt_of"]


class BatchResultsOperator(ResultsLineage, BatchTask, BaseOperator):
    """Writes one row for each record of a complete batch, in order, or returns them through XCom.

    With ``output_path`` the row holds the kept input columns, the outputs (scalars as they are, a
    one-row data.frame as columns ``{output}_{column}``, other values nested), ``mlbatch_index``,
    ``mlbatch_success`` and ``mlbatch_error``. The table appears whole or not at all, with
    ``{name}.manifest.json`` beside it, and the manifest is the XCom. There must be as many rows as
    the input has.

    Without it the XCom is a list with one dict for each record: ``index`` (its place in the batch),
    the outputs, ``success`` and ``error``.

    The task fails when more records failed than ``max_failed_records`` allows; the error names the
    first of them. It is retried only where a retry can help: when failed records are scored again.

    A fixed ``output_path`` is an asset outlet by itself, with the counts as the event's metadata; for
    a templated or a mapped one give ``outlets=[AssetAlias(…)]``.

    :param service_name: a published service
    :param service_version: its version; ``latest`` for that of the run
    :param execution_id: a complete batch; ``None`` for an ``input_path`` without rows, for which
        ``on_empty="succeed"`` has started none
    :param output_path: a file to write, anywhere that Airflow's ``ObjectStoragePath`` reaches
    :param output_conn_id: the connection of that storage
    :param format: ``parquet``, ``csv``, ``tsv`` or ``jsonl``, where the name does not tell
    :param input_path: the table that was scored; needed for its columns, and for ``rescore_failed``
    :param input_conn_id: the connection of that storage
    :param input_format: its format, where the name does not tell
    :param input_quoting: ``double`` for CSV and TSV with quotes around cells, ``none`` where a quote
        is a character like any other
    :param columns: the table's column for an input, as for the scoring
    :param row_range: ``(start, stop)`` of the table that was scored, as for the scoring
    :param keep_columns: ``"all"`` columns of the input, a list of them, or ``None``
    :param column_types: types of kept columns of CSV and TSV that feed no input: ``"text"``, each cell
        as it stands; ``"infer"``, by a look at the whole table; or a dict of columns and types
        (``logical``, ``integer``, ``numeric``, ``character``)
    :param id_columns: columns of the input that come first
    :param data_frames: outputs of type data.frame: ``columns`` for frames of one row, ``nested`` to
        keep them whole, ``auto`` to go by the first ones
    :param console_column: the name of a column (or, in XCom, of a key) for what each record has printed
    :param max_failed_records: a count, or a fraction of the records; 0 by default
    :param rejects_path: where the failed rows go, with their inputs and errors
    :param rejects_conn_id: the connection of that storage
    :param rescore_failed: how often the failed records are scored again, in a batch of their own,
        before they are judged
    :param parallel_count: how many records the server may score at once when it does so
    :param poll_interval: seconds (or a ``timedelta``) between polls then
    :param max_xcom_records: most records that may go through XCom
    :param mlbatch_conn_id: connection of type ``mlbatch``
    """

    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "execution_id",
        "output_path",
        "output_conn_id",
        "format",
        "input_path",
        "input_conn_id",
        "input_format",
        "input_quoting",
        "columns",
        "row_range",
        "keep_columns",
        "column_types",
        "id_columns",
        "data_frames",
        "console_column",
        "max_failed_records",
        "rejects_path",
        "rejects_conn_id",
        "rescore_failed",
        "parallel_count",
        "max_xcom_records",
        "mlbatch_conn_id",
    )
    operator_extra_links = (BatchExecutionLink(),)
    ui_color = "#fdf0d0"
    # The batch that ends with this task is one of failed records, which only this task reads.
    _keeps_results = False
    # Whether output_path is what readers wait for, rather than a piece of it.
    has_outlet: ClassVar[bool] = True

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        execution_id: str | None,
        output_path: str | None = None,
        output_conn_id: str | None = None,
        format: str | None = None,
        input_path: str | None = None,
        input_conn_id: str | None = None,
        input_format: str | None = None,
        input_quoting: Quoting = "double",
        columns: Mapping[str, str] | None = None,
        row_range: Sequence[int] | None = None,
        keep_columns: Any = "all",
        column_types: Any = "text",
        id_columns: Sequence[str] | None = None,
        data_frames: DataFrames = "auto",
        console_column: str | None = None,
        max_failed_records: float = 0,
        rejects_path: str | None = None,
        rejects_conn_id: str | None = None,
        rescore_failed: int = 0,
        parallel_count: int = PARALLEL_COUNT,
        poll_interval: float | timedelta = 5.0,
        max_xcom_records: int = 10_000,
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**(with_outlet(kwargs, output_path) if self.has_outlet else kwargs))
        self.service_name = service_name
        self.service_version = service_version
        self.execution_id: Any = execution_id
        self.output_path = output_path
        self.output_conn_id = output_conn_id
        self.format = format
        self.input_path = input_path
        self.input_conn_id = input_conn_id
        self.input_format = input_format
        self.input_quoting: Any = input_quoting
        self.columns = columns
        self.row_range = row_range
        self.keep_columns = keep_columns
        self.column_types = column_types
        self.id_columns = id_columns
        self.data_frames = data_frames
        self.console_column = console_column
        self.max_failed_records = max_failed_records
        self.rejects_path = rejects_path
        self.rejects_conn_id = rejects_conn_id
        self.rescore_failed = rescore_failed
        self.parallel_count = parallel_count
        self.poll_interval = poll_interval
        self.max_xcom_records = max_xcom_records
        self.mlbatch_conn_id = mlbatch_conn_id
        self._summary = BatchSummary()

    def destination(self) -> Destination | None:
        """Where the results go, from the rendered arguments; ``None`` for XCom."""
        return single_table(self)

    def execute(self, context: Context) -> Any:
        """Read, judge, write."""
        self._begin(context["ti"])
        from airflow_mlbatch.datasets.failures import FailurePolicy

        with (
            self._errors(),
            reading_of_another_task(is_retried=can_be_retried(context["ti"])),
            summarised(context, self) as self._summary,
        ):
            policy = FailurePolicy(self.max_failed_records)
            most = as_whole_number("max_xcom_records", self.max_xcom_records)
            source, rescoring = input_table(self), self._rescoring(context)
            destination = self._checked_destination(source)
            settle_version(self, context, self.hook)
            has_batch = self._has_batch(source)
            if has_batch:
                note_batch(context, self)
            total = self._complete() if has_batch else 0
            if destination is None and total > most:
                raise InputError(
                    f"max_xcom_records: found {total:,} records, expected at most {most:,}; "
                    "give output_path to write them to storage"
                )
            service = self.hook.get_service(self.service_name, self.service_version)
            self._note_lineage(self.hook)
            try:
                if destination is None:
                    return self._to_xcom(service, source, policy, rescoring)
                return self._to_table(context, service, source, destination, policy, rescoring)
            except RecordsFailedError as error:
                # The same results would be judged in the same way.
                error.is_permanent = not rescoring.tries
                raise

    def on_kill(self) -> None:
        """Cancel a batch of failed records that this task has started, if Airflow has ended it."""
        self._end_early()

    # --- before reading --------------------------------------------------------------------------

    def _rescoring(self, context: Context) -> Rescoring:
        return Rescoring(
            self,
            tries=as_whole_number("rescore_failed", self.rescore_failed),
            parallel_count=as_whole_number("parallel_count", self.parallel_count, least=1),
            poll_interval=as_seconds("poll_interval", self.poll_interval),
            owner=owner_of(context["ti"]),
            store=context.get("task_state_store"),
            before_send=self._stop_if_told,
            own=self._own,
            let_go=self._let_go,
        )

    def _own(self, execution_id: str) -> None:
        self._own_execution_id = execution_id
        self._cancel_if_unwanted(execution_id)

    def _let_go(self, execution_id: str) -> None:
        if self._deciding is not None:
            # A kill may be cancelling it at this moment.
            self._deciding.join(KILL_SECONDS)
        if not self._is_answered:
            self.hook.cancel_batch(self.service_name, self.service_version, execution_id)
        self._own_execution_id = None

    def _checked_destination(self, source: InputTable | None) -> Destination | None:
        """Where the results go, after all checks for which the server need not be asked."""
        from airflow_mlbatch.datasets.scored import is_spread

        is_spread(self.data_frames)
        if source is None and as_whole_number("rescore_failed", self.rescore_failed):
            raise InputError("rescore_failed needs input_path, the table that was scored")
        check_output(self, source)
        destination = self.destination()
        if destination is not None:
            destination.check()
        return destination

    def _has_batch(self, source: InputTable | None) -> bool:
        """Whether there is one: ``on_empty="succeed"`` starts none for a table without rows.

        :raises NoBatchError: there is none, and there are rows
        """
        if is_id(self.execution_id):
            self._link_to(self.execution_id)
            return True
        if source is None or source.has_rows():
            raise NoBatchError(
                f"execution_id: found {self.execution_id!r}, expected the id of a batch. If the task "
                "that starts it was cleared, a retry finds the new batch as soon as it is started. There may be "
                "none only for an input_path without rows"
            )
        self.execution_id = None
        return False

    def _complete(self) -> int:
        """The number of records of the batch.

        :raises BatchError: it still runs
        """
        status = self.hook.get_batch_status(
            self.service_name, self.service_version, self.execution_id
        )
        self._summary.take_status(status)
        return completed(self.execution_id, status).total_item_count

    # --- into XCom, or into a table --------------------------------------------------------------

    def _to_xcom(
        self,
        service: Service,
        source: InputTable | None,
        policy: FailurePolicy,
        rescoring: Rescoring,
    ) -> list[dict[str, Any]]:
        from airflow_mlbatch.datasets.result_dicts import ResultDicts, check_output_names

        check_output_names(
            service.outputs,
            "give output_path: the columns that a table adds have other names",
            self.console_column,
        )
        tries = rescoring.run(self.execution_id, service.inputs, source)
        results = ResultDicts(self.console_column)
        take = self._console_log(source).beside(results.take)
        rescoring.read(
            self.execution_id,
            lambda block: take(tries.splice(block)),
            restart=results.forget,
        )
        failed, total = len(results.failed), len(results.rows)
        # What the policy allows is not worth another look at the table.
        is_bad = not policy.allows(failed, total)
        failures = results.first_failures(source, service.inputs if is_bad else None)
        self._summary.take_failures(failed, failures)
        policy.judge(failed, total, failures, what=f"execution {self.execution_id}")
        return results.rows

    def _to_table(
        self,
        context: Context,
        service: Service,
        source: InputTable | None,
        destination: Destination,
        policy: FailurePolicy,
        rescoring: Rescoring,
    ) -> dict[str, Any]:
        from airflow_mlbatch.datasets.results import ResultsJob

        job = ResultsJob(
            service, source, destination, policy, self.data_frames, self.console_column
        )
        if rescoring.tries:
            # What is wrong with the columns is said before failed records are scored again.
            job.check()
        tries = rescoring.run(self.execution_id, service.inputs, source)
        ids = [] if self.execution_id is None else [self.execution_id]
        # Its retry may have written everything, and the dataset may be published.
        self._stop_if_told("writes nothing")
        console = self._console_log(source)

        def read(take: Callable[[RecordBlock], None]) -> None:
            look_and_take = console.beside(take)
            rescoring.read(self.execution_id, lambda block: look_and_take(tries.splice(block)))

        table = job.write(
            read,
            execution_ids=[*ids, *tries.execution_ids],
            what=f"execution {self.execution_id}",
            attempt=attempt_of(context),
        )
        self.log.info(
            "wrote %s rows (%s failed) to %s",
            f"{table.counts.rows:,}",
            f"{table.counts.failed:,}",
            destination.table,
        )
        self._summary.take_failures(table.failures.failed, table.failures.first)
        if self.execution_id is not None:
            note_batch(context, self, failed=table.counts.failed)
        return self._published(context, destination, table)

    def _console_log(self, source: InputTable | None) -> ConsoleLog:
        return ConsoleLog(self.log, 0 if source is None else source.first_row)

    def _published(
        self, context: Context, destination: Destination, table: ScoredTable
    ) -> dict[str, Any]:
        """Say what is in place, also to Airflow where it is an asset; the XCom."""
        from dataclasses import asdict

        manifest = destination.publish(table, origin_of(self, self.hook.url), attempt_of(context))
        if self.has_outlet:
            extra = {**asdict(table.counts), "execution_id": self.execution_id or ""}
            emit(context, self.outlets, str(self.output_path), extra)
        self._written = manifest
        return manifest


def attempt_of(context: Context) -> str:
    """Names this piece of work, the same in each of its tries."""
    ti: Any = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"
