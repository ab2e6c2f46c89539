"""Reads a batch's results: into XCom, or into a table beside its inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator

from airflow_mlbatch.batch_task import BatchTask, owner_of
from airflow_mlbatch.errors import InputError, NoBatchError, RecordsFailedError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import settle_version
from airflow_mlbatch.hooks.outcomes import completed, reading_of_another_task
from airflow_mlbatch.hooks.task_fate import can_be_retried
from airflow_mlbatch.links import BatchExecutionLink, is_id, note_batch
from airflow_mlbatch.operators.assets import emit, with_outlet
from airflow_mlbatch.operators.batch_summary import BatchSummary, summarised
from airflow_mlbatch.operators.locations import comparable, location, paths_told
from airflow_mlbatch.operators.places import input_table
from airflow_mlbatch.operators.rendered import as_seconds, as_whole_number
from airflow_mlbatch.protocol.flows import PARALLEL_COUNT
from airflow_mlbatch.protocol.submission import Payload

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.datasets.failures import Failure, FailureLog, FailurePolicy
    from airflow_mlbatch.datasets.manifest import Counts
    from airflow_mlbatch.datasets.quoting import Quoting
    from airflow_mlbatch.datasets.rows import TableRows
    from airflow_mlbatch.datasets.scored import DataFrames
    from airflow_mlbatch.datasets.tables import InputTable
    from airflow_mlbatch.datasets.writers import WrittenTable
    from airflow_mlbatch.protocol.results import RecordBlock, RecordResult
    from airflow_mlbatch.protocol.services import Service

__all__ = ["BatchResultsOperator", "ScoredTable", "attempt_of"]

# What a row has in XCom beside the outputs.
_XCOM_KEYS = ("index", "success", "error")
# Where the id of a batch of failed records is kept until it is deleted, over the attempts of a task.
_RESCORING_KEY = "mlbatch_rescoring"


@dataclass
class Rescored:
    """What further tries of the failed records brought.

    :param results: by index in the first batch
    :param execution_ids: of the further batches, which are deleted already
    """

    results: dict[int, RecordResult] = field(default_factory=dict)
    execution_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ScoredTable:
    """A scored table that is in place.

    :param failures: how many records failed, and the first of them
    :param execution_ids: every batch that its rows come from
    """

    written: WrittenTable
    rejects: WrittenTable | None
    failures: FailureLog
    execution_ids: list[str]

    @property
    def counts(self) -> Counts:
        """Rows, and what became of them."""
        from airflow_mlbatch.datasets.manifest import Counts

        total, failed = self.failures.total, self.failures.failed
        return Counts(total, total - failed, failed)


class BatchResultsOperator(BatchTask, BaseOperator):
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
        self.max_failed_records = max_failed_records
        self.rejects_path = rejects_path
        self.rejects_conn_id = rejects_conn_id
        self.rescore_failed = rescore_failed
        self.parallel_count = parallel_count
        self.poll_interval = poll_interval
        self.max_xcom_records = max_xcom_records
        self.mlbatch_conn_id = mlbatch_conn_id
        # The arguments as execute() understood them.
        self._tries, self._parallel, self._pause = 0, 1, 5.0
        self._table: InputTable | None = None
        self._summary = BatchSummary()

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
            self._check()
            settle_version(self, context, self.hook)
            most = as_whole_number("max_xcom_records", self.max_xcom_records)
            has_batch = self._has_batch()
            if has_batch:
                note_batch(context, self)
            total = self._complete() if has_batch else 0
            if self.output_path is None and total > most:
                raise InputError(
                    f"max_xcom_records: found {total:,} records, expected at most {most:,}; "
                    "give output_path to write them to storage"
                )
            service = self.hook.get_service(self.service_name, self.service_version)
            self._check_columns(service)
            try:
                rescored = self._rescore(context, service)
                if self.output_path is None:
                    return self._to_xcom(service, policy, rescored)
                table = self._to_table(context, service, policy, rescored)
                self._summary.take_failures(table.failures.failed, table.failures.first)
                if has_batch:
                    note_batch(context, self, failed=table.counts.failed)
            except RecordsFailedError as error:
                # The same results would be judged in the same way.
                error.is_permanent = not self._tries
                raise
            return self._published(context, table)

    def on_kill(self) -> None:
        """Cancel a batch of failed records that this task has started, if Airflow has ended it."""
        self._end_early()

    # --- before reading --------------------------------------------------------------------------

    def _check(self) -> None:
        """What the server need not be asked for."""
        from airflow_mlbatch.datasets.formats import table_format
        from airflow_mlbatch.datasets.scored import is_spread

        is_spread(self.data_frames)
        self._tries = as_whole_number("rescore_failed", self.rescore_failed)
        self._parallel = as_whole_number("parallel_count", self.parallel_count, least=1)
        self._pause = as_seconds("poll_interval", self.poll_interval)
        self._table = input_table(self)
        if self._table is None and self._tries:
            raise InputError("rescore_failed needs input_path, the table that was scored")
        if self.output_path is None:
            self._check_without_output()
            return
        self._check_places()
        table_format(self._output(), self.format)
        if self.rejects_path is not None:
            table_format(self._rejects(), None)

    def _check_without_output(self) -> None:
        """Arguments that say how a table is written need one."""
        table = self._table
        needing = {
            "id_columns": table is not None and bool(table.id_columns),
            "keep_columns": table is not None and isinstance(table.keep_columns, list),
            "column_types": table is not None and table.column_types != "text",
            "rejects_path": self.rejects_path is not None,
        }
        for name, is_given in needing.items():
            if is_given:
                raise InputError(f"{name} needs output_path, the table to be written")

    def _check_places(self) -> None:
        """No table is written over another one."""
        places = {"input_path": self.input_path, "output_path": self.output_path}
        places["rejects_path"] = self.rejects_path
        seen: dict[str, str] = {}
        for name, path in places.items():
            if path is None:
                continue
            first = seen.setdefault(comparable(path), name)
            if first != name:
                raise InputError(
                    f"{name}: found {str(path)!r:.200}, expected another path than {first}"
                )

    def _check_columns(self, service: Service) -> None:
        """What only the service and the input can tell; before failed records are scored again."""
        if self.output_path is None:
            clashes = [each.name for each in service.outputs if each.name in _XCOM_KEYS]
            if clashes:
                raise InputError(
                    f"output_path: found nothing, but the output {clashes[0]!r} has the name of a key "
                    "that the XCom adds; expected a path, where the added columns have other names"
                )
        elif self._tries:
            with self._scored_rows(service):
                pass

    def _has_batch(self) -> bool:
        """Whether there is one: ``on_empty="succeed"`` starts none for a table without rows.

        :raises NoBatchError: there is none, and there are rows
        """
        if is_id(self.execution_id):
            self._link_to(self.execution_id)
            return True
        if self._table is None or self._table.has_rows():
            raise NoBatchError(
                f"execution_id: found {self.execution_id!r}, expected the id of a batch. Has the task "
                "that starts it been cleared? Then the next attempt finds the new batch. There may be "
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

    def _first_row(self) -> int:
        return 0 if self._table is None else self._table.first_row

    # --- a second try for failed records ---------------------------------------------------------

    def _rescore(self, context: Context, service: Service) -> Rescored:
        rescored = Rescored()
        if not self._tries:
            return rescored
        store: Any = context.get("task_state_store")
        self._drop_leftover(store)
        failed: list[int] = []

        def note(block: RecordBlock) -> None:
            failed.extend(
                block.first_index + place
                for place, success in enumerate(block.success)
                if not success
            )

        self._read(self.execution_id, note, restart=failed.clear)
        for number in range(1, self._tries + 1):
            if not failed:
                break
            self.log.info("scoring %s failed records again, try %s", f"{len(failed):,}", number)
            for record in self._score_again(store, service, failed, rescored):
                rescored.results[failed[record.index]] = record
            failed = [index for index in failed if not rescored.results[index].success]
        return rescored

    def _drop_leftover(self, store: Any) -> None:
        """Delete the batch of failed records that an attempt left when it died."""
        left = store.get(_RESCORING_KEY) if store is not None else None
        if isinstance(left, str):
            self.hook.cancel_batch(self.service_name, self.service_version, left)
            store.delete(_RESCORING_KEY)

    def _score_again(
        self, store: Any, service: Service, indexes: list[int], rescored: Rescored
    ) -> list[RecordResult]:
        """Results of some records in a batch of their own, which is deleted afterwards."""
        assert self._table is not None
        body, _ = self._table.encode(service.inputs, indexes)
        named = (self.service_name, self.service_version)
        payload = Payload(*named, body, len(indexes), self._parallel)
        round_of = f"try {len(rescored.execution_ids)} of {self.execution_id}"
        execution_id = self.hook.start_encoded_batch(
            *named,
            body,
            self._parallel,
            idempotency_key=owner_of(self._ti).key(payload.fingerprint(round_of)),
            before_send=self._stop_if_told,
        )
        self._own_execution_id = execution_id
        if store is not None:
            store.set(_RESCORING_KEY, execution_id)
        rescored.execution_ids.append(execution_id)
        try:
            self._cancel_if_unwanted(execution_id)
            status = self.hook.watch_batch(*named, execution_id, poll_interval=self._pause)
            completed(execution_id, status)
            records: list[RecordResult] = []
            self._read(
                execution_id, lambda block: records.extend(block), restart=lambda: records.clear()
            )
        finally:
            if not self._has_cancelled:
                self.hook.cancel_batch(*named, execution_id)
            self._own_execution_id = None
            if store is not None:
                store.delete(_RESCORING_KEY)
        return records

    def _read(
        self, execution_id: str | None, take: Callable[[RecordBlock], None], restart: Any = None
    ) -> None:
        if execution_id is None:
            return
        self.hook.read_batch_results(
            self.service_name, self.service_version, execution_id, take, restart=restart
        )

    # --- into XCom -------------------------------------------------------------------------------

    def _to_xcom(
        self, service: Service, policy: FailurePolicy, rescored: Rescored
    ) -> list[dict[str, Any]]:
        from airflow_mlbatch.datasets.failures import splice

        rows: list[dict[str, Any]] = []

        def take(block: RecordBlock) -> None:
            for record in splice(block, rescored.results):
                own = {"index": record.index, "success": record.success, "error": record.error}
                # Also before an output of such a name that the service did not declare.
                rows.append({"index": record.index, **record.outputs, **own})

        self._read(self.execution_id, take, restart=rows.clear)
        failed = [row for row in rows if not row["success"]]
        failures = self._failures(service, failed) if failed else []
        self._summary.take_failures(len(failed), failures)
        policy.judge(len(failed), len(rows), failures, what=f"execution {self.execution_id}")
        return rows

    def _failures(self, service: Service, failed: list[dict[str, Any]]) -> list[Failure]:
        """The first of them, with their inputs where the table is known."""
        from airflow_mlbatch.datasets.failures import Failure
        from airflow_mlbatch.protocol.failures import SHOWN_FAILURES

        shown = failed[:SHOWN_FAILURES]
        inputs: list[dict[str, Any]] = [{} for _ in shown]
        if self._table is not None:
            inputs = self._table.read_inputs(service.inputs, [row["index"] for row in shown])
        return [
            Failure(self._first_row() + row["index"], row["error"] or "", found)
            for row, found in zip(shown, inputs, strict=True)
        ]

    # --- into a table ----------------------------------------------------------------------------

    def _output(self) -> Any:
        """Where the table goes."""
        assert self.output_path is not None
        return location(self.output_path, self.output_conn_id)

    def _rejects(self) -> Any:
        """Where the failed rows go, or ``None``."""
        if self.rejects_path is None:
            return None
        return location(self.rejects_path, self.rejects_conn_id)

    def _manifest(self) -> Any:
        """Where the table's manifest goes, or ``None`` when somebody else writes it."""
        from airflow_mlbatch.datasets.manifest import manifest_path

        return manifest_path(self._output())

    def _to_table(
        self, context: Context, service: Service, policy: FailurePolicy, rescored: Rescored
    ) -> ScoredTable:
        from airflow_mlbatch.datasets.failures import FailureLog

        output = self._output()
        table = self._table
        log = FailureLog(None if table is None else table.input_columns(service.inputs))
        written, rejects = self._write(output, attempt_of(context), service, policy, rescored, log)
        self.log.info(
            "wrote %s rows (%s failed) to %s", f"{log.total:,}", f"{log.failed:,}", output
        )
        ids = [] if self.execution_id is None else [self.execution_id]
        return ScoredTable(written, rejects, log, [*ids, *rescored.execution_ids])

    def _published(self, context: Context, table: ScoredTable) -> dict[str, Any]:
        """Write the manifest beside the table, tell Airflow about the asset; the XCom."""
        from airflow_mlbatch.datasets.manifest import table_manifest, write_manifest

        assert self.output_path is not None
        manifest = table_manifest(
            table.written,
            table.counts,
            execution_ids=table.execution_ids,
            server=self.hook.url,
            service_name=self.service_name,
            service_version=self.service_version,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            first_index=self._first_row(),
            rejects=table.rejects,
            extra=paths_told(output_path=self.output_path, rejects_path=self.rejects_path),
        )
        write_manifest(self._manifest(), manifest, attempt_of(context))
        counts = {name: manifest[name] for name in ("rows", "succeeded", "failed")}
        told = {**counts, "execution_id": self.execution_id or ""}
        emit(context, self.outlets, str(self.output_path), told)
        return manifest

    def _write(
        self,
        output: Any,
        attempt: str,
        service: Service,
        policy: FailurePolicy,
        rescored: Rescored,
        log: FailureLog,
    ) -> tuple[WrittenTable, WrittenTable | None]:
        """The table and its rejects; the rejects are written also when there are too many of them."""
        from airflow_mlbatch.datasets.failures import splice
        from airflow_mlbatch.datasets.formats import table_format
        from airflow_mlbatch.datasets.results import write_results
        from airflow_mlbatch.datasets.scored import ScoredRows

        with self._scored_rows(service) as (rows, kept):
            kind, table = table_format(output, self.format).name, self._table
            scored = ScoredRows(
                service.outputs,
                format=kind,
                rows=rows,
                kept=kept,
                first_index=self._first_row(),
                data_frames=self.data_frames,
                types=None if table is None else table.types_of(kept, service.inputs, kind),
            )
            return write_results(
                lambda take: self._read(
                    self.execution_id, lambda block: take(splice(block, rescored.results))
                ),
                scored,
                output,
                log,
                policy,
                format=self.format,
                rejects=self._rejects(),
                manifest=self._manifest(),
                what=f"execution {self.execution_id}",
                attempt=attempt,
            )

    def _scored_rows(
        self, service: Service
    ) -> AbstractContextManager[tuple[TableRows | None, list[str]]]:
        if self._table is None:
            return contextlib.nullcontext((None, []))
        return self._table.open_scored(service, has_rejects=self.rejects_path is not None)


def attempt_of(context: Context) -> str:
    """Names this piece of work, the same in each of its tries."""
    ti: Any = context["ti"]
    return f"{ti.dag_id}/{ti.run_id}/{ti.task_id}/{ti.map_index}"
