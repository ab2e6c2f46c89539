"""A Dag whose lineage the tests look at. Run as a program, with OpenLineage's provider set up."""

from __future__ import annotations

import os
import sys

from airflow.sdk import DAG, task

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.task_groups import BatchScoreTaskGroup

TABLES = os.environ.get("MLBATCH_TEST_TABLES", "/nowhere")
BUCKET = os.environ.get("MLBATCH_TEST_BUCKET", "s3://nowhere")
SERVICE = {"service_name": "picky", "service_version": "1"}
TABLE = {"input_path": f"{TABLES}/in.csv", "columns": {"x": "size"}}

with DAG("lineage", schedule=None, default_args={"retries": 0}) as dag:
    score = BatchScoreOperator(
        task_id="score", wait_for_completion=True, poll_interval=0.1, **SERVICE, **TABLE
    )
    later = BatchScoreOperator(
        task_id="later",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=0.1,
        **SERVICE,
        **TABLE,
    )
    read = {"execution_id": score.output, "max_failed_records": 1, **SERVICE}
    results = BatchResultsOperator(
        task_id="results",
        output_path=f"{TABLES}/out.parquet",
        rejects_path=f"{TABLES}/rejects.csv",
        **read,
        **TABLE,
    )
    store = {"input_conn_id": "aws_test", "output_conn_id": "aws_test"}
    in_s3 = BatchResultsOperator(
        task_id="in_s3",
        input_path=f"{BUCKET}/in.csv",
        output_path=f"{BUCKET}/folder/out.csv",
        columns={"x": "size"},
        keep_columns=None,
        **read,
        **store,
    )
    files = ArtifactDownloadOperator(
        task_id="files", execution_id=score.output, dest=f"{TABLES}/files", **SERVICE
    )
    group = BatchScoreTaskGroup(
        "large",
        output_path=f"{TABLES}/large",
        records_per_batch=2,
        max_failed_records=1,
        poll_interval=0.1,
        **SERVICE,
        **TABLE,
    )
    too_many = BatchResultsOperator(
        task_id="too_many",
        output_path=f"{TABLES}/never.parquet",
        **{**read, "max_failed_records": 0},
        **TABLE,
    )

    @task
    def by_hand(execution_id: str) -> None:
        """What OpenLineage knows of this task is what the hook has told the collector."""
        batch = MLBatchHook().batch("picky", "1", execution_id)
        for _ in range(2):
            batch.to_frame(f"{TABLES}/by_hand.csv")

    by_hand(score.output)

if __name__ == "__main__":
    print({ti.task_id: str(ti.state) for ti in dag.test().get_task_instances()}, file=sys.stderr)
