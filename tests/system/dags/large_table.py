"""A table in shards, as BatchScoreTaskGroup scores it."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_mlbatch.task_groups import BatchScoreTaskGroup

with DAG(
    "large_table",
    schedule=None,
    params={"input_path": Param("", type="string"), "output_path": Param("", type="string")},
) as dag:
    BatchScoreTaskGroup(
        group_id="scored",
        service_name="plain",
        service_version="1",
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_path }}",
        records_per_batch=20_000,
        parallel_count=100,
        poll_interval=1,
        task_args={"retries": 4, "retry_delay": timedelta(seconds=1)},
    )
