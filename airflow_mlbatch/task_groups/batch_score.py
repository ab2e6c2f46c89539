"""Scores a table of any size: shards in parallel, one dataset at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import TaskGroup, task_group

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.operators.batch_delete import BatchDeleteOperator
from airflow_mlbatch.operators.batch_score import BatchScoreOperator
from airflow_mlbatch.operators.empty import OnEmpty
from airflow_mlbatch.operators.shards import (
    DatasetCommitOperator,
    ShardPlanOperator,
    ShardResultsOperator,
)
from airflow_mlbatch.protocol.flows import PARALLEL_COUNT

if TYPE_CHECKING:
    from airflow_mlbatch.datasets.quoting import Quoting
    from airflow_mlbatch.datasets.scored import DataFrames
    from airflow_mlbatch.protocol.submission import OnAmbiguousSubmission

__all__ = ["BatchScoreTaskGroup"]


class BatchScoreTaskGroup(TaskGroup):
    """Scores a large table: ``plan``, then for each shard ``score`` and ``write``, then ``commit``.

    The shards are mapped tasks, so they run on whatever executor there is, and a failed one is
    retried alone. The dataset is a folder of parts with ``manifest.json`` and, once every input row
    is there exactly once, ``_SUCCESS``.

    Reading a slice of Parquet reads that slice; a slice of a text table has to be looked for from
    the beginning of the file, so large tables are better kept as Parquet.

    :param group_id: name of the group
    :param service_name: a published service; as the next, also from ``default_args``
    :param service_version: its version; ``latest`` for the one that was published last when the run
        first asked: all shards and their retries keep to that
    :param input_path: the table
    :param input_conn_id: the connection of the table's storage
    :param input_format: of the table, where its name does not tell
    :param input_quoting: ``double`` for CSV and TSV with quotes around cells, ``none`` where a quote
        is a character like any other
    :param output_path: the folder of the scored dataset
    :param output_conn_id: the connection of its storage
    :param records_per_batch: most records of a shard; memory grows with it
    :param max_active_batches: most batches at once in one run; Airflow counts waiting (deferred)
        ones since 3.3, before that only those that are being started
    :param format: of the parts: ``parquet``, ``csv``, ``tsv`` or ``jsonl``
    :param columns: the table's column for an input, where their names differ
    :param keep_columns: ``"all"`` columns of the input, a list of them, or ``None``
    :param column_types: types of kept columns of CSV and TSV that feed no input: ``"text"``, each cell
        as it stands; ``"infer"``, by a look at the whole table; or a dict of columns and types
        (``logical``, ``integer``, ``numeric``, ``character``)
    :param id_columns: columns of the input that come first
    :param data_frames: outputs of type data.frame: ``columns`` for frames of one row, ``nested`` to
        keep them whole, ``auto`` to go by the first ones of each shard
    :param console_column: the name of a column for what each record has printed
    :param max_failed_records: a count, or a fraction of the records of the whole table
    :param rejects_path: a folder for the failed rows, with their inputs and errors
    :param rejects_conn_id: the connection of its storage
    :param rescore_failed: how often failed records are scored again before they are judged
    :param on_empty: what to do about a table without rows: ``skip``, ``fail`` or ``succeed``
    :param parallel_count: how many records of a batch the server may score at once
    :param deferrable: wait for the batches in the triggerer
    :param poll_interval: seconds (or a ``timedelta``) between polls
    :param timeout: seconds (or a ``timedelta``) from its submission until a batch is cancelled and
        its task fails
    :param on_ambiguous_submission: see
        :class:`~airflow_mlbatch.operators.batch_score.BatchScoreOperator`
    :param recognise_by_scoring: likewise
    :param cleanup: delete the batches on the server at the end, also when the run failed
    :param mlbatch_conn_id: connection of type ``mlbatch``; ``mlbatch_default`` unless given
    :param task_args: arguments for all tasks of the group (``retries``, ``pool``, …)
    """

    def __init__(
        self,
        group_id: str,
        *,
        service_name: str | None = None,
        service_version: str | None = None,
        input_path: str,
        output_path: str,
        input_conn_id: str | None = None,
        input_format: str | None = None,
        input_quoting: Quoting = "double",
        output_conn_id: str | None = None,
        format: str = "parquet",
        records_per_batch: int = 100_000,
        max_active_batches: int | None = None,
        columns: Mapping[str, str] | None = None,
        keep_columns: Any = "all",
        column_types: Any = "text",
        id_columns: Sequence[str] | None = None,
        data_frames: DataFrames = "auto",
        console_column: str | None = None,
        max_failed_records: float = 0,
        rejects_path: str | None = None,
        rejects_conn_id: str | None = None,
        rescore_failed: int = 0,
        on_empty: OnEmpty = "skip",
        parallel_count: int = PARALLEL_COUNT,
        deferrable: bool = True,
        poll_interval: float | timedelta = 30.0,
        timeout: float | timedelta | None = None,
        on_ambiguous_submission: OnAmbiguousSubmission = "fail",
        recognise_by_scoring: bool = True,
        cleanup: bool = False,
        mlbatch_conn_id: str | None = None,
        task_args: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(group_id=group_id, **kwargs)
        if next(self.iter_mapped_task_groups(), None) is not None:
            raise InputError(
                f"{self.group_id}: found inside a mapped task group, expected a place outside, because "
                "Airflow does not map the shards once more; make a group for each table, in a loop"
            )
        named = {
            "service_name": service_name,
            "service_version": service_version,
            "mlbatch_conn_id": mlbatch_conn_id,
        }
        # What is not given here may stand in default_args.
        service: dict[str, Any] = {
            **{name: value for name, value in named.items() if value is not None},
            **(task_args or {}),
        }
        table: dict[str, Any] = {
            "input_path": input_path,
            "input_conn_id": input_conn_id,
            "input_format": input_format,
            "input_quoting": input_quoting,
            "columns": columns,
        }
        # The plan checks what a shard writes, and the commit joins it: so all three are told the same.
        parts: dict[str, Any] = {
            "output_path": output_path,
            "output_conn_id": output_conn_id,
            "format": format,
            "keep_columns": keep_columns,
            "id_columns": id_columns,
            "console_column": console_column,
            "rejects_path": rejects_path,
            "rejects_conn_id": rejects_conn_id,
        }
        # The failed records of a shard are scored again as the shard was.
        batch: dict[str, Any] = {"parallel_count": parallel_count, "poll_interval": poll_interval}
        # Airflow's own has no types.
        id_of: Callable[[str], str] = self.child_id
        with self:
            plan = ShardPlanOperator(
                task_id="plan",
                records_per_batch=records_per_batch,
                max_failed_records=max_failed_records,
                on_empty=on_empty,
                column_types=column_types,
                **table,
                **parts,
                **service,
            )

            @task_group(group_id="shards")
            def shards(
                shard: Any, row_range: Any, max_failed_records: Any, column_types: Any
            ) -> None:
                score = BatchScoreOperator(
                    task_id="score",
                    row_range=row_range,
                    wait_for_completion=True,
                    deferrable=deferrable,
                    timeout=timeout,
                    # The task that writes the part reads the results, and reports what failed.
                    report_failures=False,
                    on_ambiguous_submission=on_ambiguous_submission,
                    recognise_by_scoring=recognise_by_scoring,
                    max_active_tis_per_dagrun=max_active_batches,
                    **batch,
                    **table,
                    **service,
                )
                ShardResultsOperator(
                    task_id="write",
                    execution_id=score.output,
                    shard=shard,
                    row_range=row_range,
                    max_failed_records=max_failed_records,
                    column_types=column_types,
                    data_frames=data_frames,
                    rescore_failed=rescore_failed,
                    **batch,
                    **table,
                    **parts,
                    **service,
                )

            mapped = shards.expand_kwargs(plan.output)
            commit = DatasetCommitOperator(
                task_id="commit",
                parts_task_id=id_of("shards.write"),
                plan_task_id=plan.task_id,
                max_failed_records=max_failed_records,
                # An empty table may be planned with no shard at all: those tasks are skipped then.
                trigger_rule="none_failed_min_one_success",
                column_types=column_types,
                **table,
                **parts,
                **service,
            )
            plan >> mapped >> commit
            plan >> commit
            if cleanup:
                delete = BatchDeleteOperator(
                    task_id="cleanup",
                    score_task_ids=[id_of("shards.score")],
                    **service,
                )
                commit >> delete.as_teardown()
