"""A table in shards, as the benchmark `large_table` has it scored."""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_mlbatch.task_groups import BatchScoreTaskGroup

with DAG(
    "large_table",
    schedule=None,
    params={
        "input_path": Param("", type="string"),
        "output_path": Param("", type="string"),
    },
):
    BatchScoreTaskGroup(
        "score",
        service_name="double",
        service_version="1",
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_path }}",
        records_per_batch=100_000,
        poll_interval=2,
    )
