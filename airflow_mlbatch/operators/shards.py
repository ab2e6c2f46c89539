"""A large table in shards: the plan, the part of each shard, and the dataset at the end.

Law: memory depends on the shard, never on the table; the dataset is published only when every row of
the input is there exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_mlbatch.errors import BatchError, InputError, RecordsFailedError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.latest_version import settle_version
from airflow_mlbatch.hooks.outcomes import airflow_errors
from airflow_mlbatch.links import note_table
from airflow_mlbatch.operators.assets import emit, with_outlet
from airflow_mlbatch.operators.batch_results import BatchResultsOperator, attempt_of
from airflow_mlbatch.operators.empty import OnEmpty, check_on_empty, judge_empty
from airflow_mlbatch.operators.lineage import CommitLineage
from airflow_mlbatch.operators.locations import comparable, location, path_texts
from airflow_mlbatch.operators.places import dataset_part, input_table, origin_of
from airflow_mlbatch.operators.rendered import as_whole_number

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.datasets.destinations import Destination
    from airflow_mlbatch.datasets.quoting import Quoting
    from airflow_mlbatch.datasets.tables import InputTable
    from airflow_mlbatch.protocol.services import Service
    from airflow_mlbatch.protocol.types import TypeName

__all__ = ["DatasetCommitOperator", "ShardPlanOperator", "ShardResultsOperator"]

_DEFAULT_MAP_LENGTH = 1024


class ShardPlanOperator(BaseOperator):
    """Cuts a table into shards; its XCom maps the tasks that score them.

    For each shard: ``shard`` (``shard``, ``start``, ``stop``), ``row_range``,
    ``max_failed_records`` as the most failures that the whole table may have, and ``column_types``,
    the same for all.

    :param service_name: a published service
    :param service_version: its version; ``latest`` for that of the run
    :param input_path: the table
    :param input_conn_id: the connection of its storage
    :param input_format: its format, where the name does not tell
    :param input_quoting: ``double`` for CSV and TSV with quotes around cells, ``none`` where a quote
        is a character like any other
    :param columns: the table's column for an input, where their names differ
    :param output_path: the folder of the dataset; what an earlier run published there stops being
        called complete
    :param output_conn_id: the connection of that storage
    :param rejects_path: the folder of the failed rows; what an earlier run left there is removed
    :param rejects_conn_id: the connection of that storage
    :param format: of the parts to be written
    :param keep_columns: columns of the input for the parts, checked here
    :param column_types: types of kept columns of CSV and TSV; ``"infer"`` is settled here, for all shards
    :param id_columns: columns of the input that come first there
    :param console_column: the name of a column for console output, checked here
    :param records_per_batch: most records of a shard
    :param max_failed_records: a count, or a fraction of the records of the table
    :param on_empty: what to do about a table without rows: ``skip``, ``fail`` or ``succeed``
    :param mlbatch_conn_id: connection of type ``mlbatch``
    """

    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "input_path",
        "input_conn_id",
        "input_format",
        "input_quoting",
        "columns",
        "output_path",
        "output_conn_id",
        "rejects_path",
        "rejects_conn_id",
        "format",
        "keep_columns",
        "column_types",
        "id_columns",
        "console_column",
        "records_per_batch",
        "max_failed_records",
        "mlbatch_conn_id",
    )

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        input_path: str,
        output_path: str,
        input_conn_id: str | None = None,
        input_format: str | None = None,
        input_quoting: Quoting = "double",
        columns: Mapping[str, str] | None = None,
        output_conn_id: str | None = None,
        rejects_path: str | None = None,
        rejects_conn_id: str | None = None,
        format: str | None = None,
        keep_columns: Any = "all",
        column_types: Any = "text",
        id_columns: Sequence[str] | None = None,
        console_column: str | None = None,
        records_per_batch: int = 100_000,
        max_failed_records: float = 0,
        on_empty: OnEmpty = "skip",
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.service_name = service_name
        self.service_version = service_version
        self.input_path = input_path
        self.input_conn_id = input_conn_id
        self.input_format = input_format
        self.input_quoting: Any = input_quoting
        self.columns = columns
        self.output_path = output_path
        self.output_conn_id = output_conn_id
        self.rejects_path = rejects_path
        self.rejects_conn_id = rejects_conn_id
        self.format = format
        self.keep_columns = keep_columns
        self.column_types = column_types
        self.id_columns = id_columns
        self.console_column = console_column
        self.records_per_batch = records_per_batch
        self.max_failed_records = max_failed_records
        self.on_empty = on_empty
        self.mlbatch_conn_id = mlbatch_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Count, check the columns, and cut."""
        from airflow_mlbatch.datasets.failures import FailurePolicy
        from airflow_mlbatch.datasets.parts import plan_shards

        with airflow_errors():
            policy = FailurePolicy(self.max_failed_records)
            size = as_whole_number("records_per_batch", self.records_per_batch, least=1)
            self._check()
            table = input_table(self)
            assert table is not None
            row_count = table.count_rows()
            if row_count == 0:
                self.log.info("%s", judge_empty(self.on_empty, self.input_path))
            most = conf.getint("core", "max_map_length", fallback=_DEFAULT_MAP_LENGTH)
            shards = plan_shards(row_count, size, most)
            hook = MLBatchHook(self.mlbatch_conn_id)
            settle_version(self, context, hook)
            types = self._check_columns(hook, table, row_count)
            self._take_back()
        note_table(context, self, rows=row_count, shards=len(shards))
        self.log.info("planned %s shards of %s rows", f"{len(shards):,}", f"{row_count:,}")
        return [
            {
                "shard": shard,
                "row_range": [shard["start"], shard["stop"]],
                "max_failed_records": policy.most_failed(row_count),
                "column_types": types,
            }
            for shard in shards
        ]

    def _check(self) -> None:
        from airflow_mlbatch.datasets.formats import named_format

        check_on_empty(self.on_empty)
        named_format(self.format or "parquet")
        # Files called part-… that are not of this run are removed from these folders.
        source = comparable(self.input_path).rpartition("/")[0]
        folder = comparable(self.output_path)
        if source == folder:
            raise InputError(
                f"output_path: found {str(self.output_path)!r:.200}, which holds input_path; "
                "expected a folder of its own"
            )
        if self.rejects_path is None:
            return
        if comparable(self.rejects_path) in (folder, source):
            raise InputError(
                f"rejects_path: found {str(self.rejects_path)!r:.200}, expected a folder of its own"
            )

    def _check_columns(
        self, hook: MLBatchHook, table: InputTable, row_count: int
    ) -> dict[str, TypeName]:
        """A column that is not there is one clear error here, not one for each shard.

        :return: the types of the kept columns, the same for each shard
        """
        service = hook.get_service(self.service_name, self.service_version)
        table.check_inputs(service.inputs, row_count)
        return self._check_writable(table, service)

    def _check_writable(self, table: InputTable, service: Service) -> dict[str, TypeName]:
        """What each shard would find only after it was scored: columns that cannot be written."""
        import pyarrow as pa

        from airflow_mlbatch.datasets.failures import rejects_schema
        from airflow_mlbatch.datasets.formats import named_format
        from airflow_mlbatch.datasets.scored import check_console_column
        from airflow_mlbatch.datasets.writers import check_writable

        with table.open() as rows:
            present = rows.schema
        kept = table.kept_columns(service.outputs, present.names)
        check_console_column(self.console_column, kept, service.outputs)
        kind = named_format(self.format or "parquet").name
        check_writable(pa.schema([present.field(name) for name in kept]), kind, "output_path")
        if self.rejects_path is not None:
            check_writable(rejects_schema(present), kind, "rejects_path")
        return table.types_of(kept, service.inputs, kind)

    def _take_back(self) -> None:
        """What an earlier run published is complete no more."""
        from airflow_mlbatch.datasets.parts import begin_dataset, remove_other_parts

        begin_dataset(location(self.output_path, self.output_conn_id))
        if self.rejects_path is not None:
            # Also if this run fails, what it rejects is not mixed up with an earlier run's.
            remove_other_parts(location(self.rejects_path, self.rejects_conn_id), set())


class ShardResultsOperator(BatchResultsOperator):
    """Writes the part of one shard; its XCom is what the commit has to know about it.

    ``output_path`` and ``rejects_path`` are folders here.

    :param shard: ``shard``, ``start`` and ``stop``, from the plan
    """

    template_fields: Sequence[str] = (*BatchResultsOperator.template_fields, "shard")
    # Tasks that wait for the dataset wait for the commit, and not for each part.
    has_outlet: ClassVar[bool] = False

    def __init__(self, *, shard: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shard = shard

    def destination(self) -> Destination:
        """The part of the shard."""
        return dataset_part(self, self.shard)

    def _outputs(self, *tables: Any) -> list[Any]:
        return []  # The commit tells of the dataset that the part belongs to.


class DatasetCommitOperator(CommitLineage, BaseOperator):
    """Publishes a dataset when every row of the input is in exactly one of its parts.

    :param parts_task_id: the mapped task that wrote the parts
    :param plan_task_id: the task that planned them
    :param max_failed_records: a count, or a fraction of the records of the table
    :param rejects_path: the folder of the failed rows; parts of earlier runs are removed from it
    :param format: of the parts
    :param input_path: the table, whose columns are wanted where it has no rows
    :param input_conn_id: the connection of its storage
    :param input_format: its format, where the name does not tell
    :param input_quoting: ``double`` for CSV and TSV with quotes around cells, ``none`` where a quote
        is a character like any other
    :param columns: the table's column for an input, where their names differ
    :param keep_columns: columns of the input in the dataset
    :param column_types: types of kept columns of CSV and TSV
    :param id_columns: columns of the input that come first there
    :param console_column: the column for what each record has printed
    """

    template_fields: Sequence[str] = (
        "service_name",
        "service_version",
        "output_path",
        "output_conn_id",
        "max_failed_records",
        "rejects_path",
        "rejects_conn_id",
        "format",
        "input_path",
        "input_conn_id",
        "input_format",
        "input_quoting",
        "columns",
        "keep_columns",
        "column_types",
        "id_columns",
        "console_column",
        "mlbatch_conn_id",
    )

    def __init__(
        self,
        *,
        service_name: str,
        service_version: str,
        output_path: str,
        parts_task_id: str,
        plan_task_id: str,
        output_conn_id: str | None = None,
        format: str = "parquet",
        max_failed_records: float = 0,
        rejects_path: str | None = None,
        rejects_conn_id: str | None = None,
        input_path: str | None = None,
        input_conn_id: str | None = None,
        input_format: str | None = None,
        input_quoting: Quoting = "double",
        columns: Mapping[str, str] | None = None,
        keep_columns: Any = "all",
        column_types: Any = "text",
        id_columns: Sequence[str] | None = None,
        console_column: str | None = None,
        mlbatch_conn_id: str = MLBatchHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**with_outlet(kwargs, output_path))
        self.service_name = service_name
        self.service_version = service_version
        self.output_path = output_path
        self.output_conn_id = output_conn_id
        self.parts_task_id = parts_task_id
        self.plan_task_id = plan_task_id
        self.format = format
        self.max_failed_records = max_failed_records
        self.rejects_path = rejects_path
        self.rejects_conn_id = rejects_conn_id
        self.input_path = input_path
        self.input_conn_id = input_conn_id
        self.input_format = input_format
        self.input_quoting: Any = input_quoting
        self.columns = columns
        self.keep_columns = keep_columns
        self.column_types = column_types
        self.id_columns = id_columns
        self.console_column = console_column
        self.mlbatch_conn_id = mlbatch_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Check, judge, publish; the XCom is the counts and the path of the manifest."""
        from airflow_mlbatch.datasets.failures import FailurePolicy
        from airflow_mlbatch.datasets.parts import (
            MANIFEST_NAME,
            judge_parts,
            publish_dataset,
            remove_other_parts,
        )

        hook = MLBatchHook(self.mlbatch_conn_id)
        with airflow_errors():
            policy = FailurePolicy(self.max_failed_records)
            settle_version(self, context, hook)
            self._note_lineage(hook)
            plan = self._plan(context)
            parts = self._parts(context, len(plan))
            row_count = plan[-1]["shard"]["stop"] if plan else 0
            if self.rejects_path is not None:
                rejects = location(self.rejects_path, self.rejects_conn_id)
                remove_other_parts(rejects, {part["name"] for part in parts})
            try:
                judge_parts(policy, parts, row_count, what=self.service_name)
            except RecordsFailedError as error:
                error.is_permanent = True  # the parts are what they are
                raise
            folder = location(self.output_path, self.output_conn_id)
            manifest = publish_dataset(
                folder,
                parts,
                row_count,
                origin_of(self, hook.url),
                schema=None if plan else self._empty_schema(hook),
                format=self.format,
                extra=path_texts(output_path=self.output_path, rejects_path=self.rejects_path),
                attempt=attempt_of(context),
            )
        self._written = manifest
        summary = {name: manifest[name] for name in ("rows", "succeeded", "failed")}
        emit(context, self.outlets, str(self.output_path), summary)
        self.log.info(
            "published %s rows in %s parts (%s failed) to %s",
            f"{manifest['rows']:,}",
            f"{len(manifest['files']):,}",
            f"{manifest['failed']:,}",
            self.output_path,
        )
        return {
            **summary,
            "output_path": str(self.output_path),
            "manifest_path": str(folder / MANIFEST_NAME),
            "parts": len(manifest["files"]),
        }

    def _plan(self, context: Context) -> list[dict[str, Any]]:
        plan = context["ti"].xcom_pull(task_ids=self.plan_task_id)
        if plan is None:
            raise BatchError(
                f"plan_task_id: found None from {self.plan_task_id}, expected its plan. If that "
                "task was cleared, a retry finds the new plan as soon as it is made"
            )
        if not isinstance(plan, list):
            raise InputError(f"plan_task_id: found {plan!r:.80} from {self.plan_task_id}")
        return plan

    def _parts(self, context: Context, shards: int) -> list[dict[str, Any]]:
        # Without map_indexes, Airflow pulls those of all instances; one alone comes bare.
        pulled: Any = context["ti"].xcom_pull(task_ids=self.parts_task_id)
        if isinstance(pulled, Mapping):
            pulled = [pulled]
        # Also of instances that are gone: a run that is cleared may plan fewer shards than before.
        parts = [dict(part) for part in pulled or () if part and part["shard"] < shards]
        if len(parts) < shards:
            raise BatchError(
                f"parts_task_id: found {len(parts):,} parts from {self.parts_task_id}, expected "
                f"{shards:,}. If the task of a shard was cleared, a retry finds its part as soon as it is "
                "written again"
            )
        return parts

    def _empty_schema(self, hook: MLBatchHook) -> Any:
        """The columns of a dataset without rows: the kept ones, the outputs, and our own."""
        from airflow_mlbatch.datasets.formats import named_format
        from airflow_mlbatch.datasets.scored import ScoredRows

        service = hook.get_service(self.service_name, self.service_version)
        kind, table = named_format(self.format).name, input_table(self)
        console = self.console_column
        if table is None:
            return ScoredRows(service.outputs, format=kind, console_column=console).schema
        with table.open() as rows:
            kept = table.kept_columns(service.outputs, rows.schema.names)
            types = table.types_of(kept, service.inputs, kind)
            return ScoredRows(
                service.outputs,
                format=kind,
                rows=rows,
                kept=kept,
                types=types,
                console_column=console,
            ).schema
