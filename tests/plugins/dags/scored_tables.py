"""A table that is scored at once, and one in shards; the pages look at both afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator
from airflow_mlbatch.task_groups import BatchScoreTaskGroup

FOLDER = Path(os.environ.get("MLBATCH_TEST_TABLES", "/nowhere"))
SERVICE: dict[str, Any] = {"service_name": "cars", "service_version": "1"}

with DAG(dag_id="scored_tables", schedule=None) as dag:
    score = BatchScoreOperator(
        task_id="score",
        input_path=str(FOLDER / "cars.csv"),
        columns={"x": "speed"},
        row_range=[10, 130],
        poll_interval=0.1,
        deferrable=False,
        **SERVICE,
    )
    BatchResultsOperator(
        task_id="results",
        execution_id=score.output,
        input_path=str(FOLDER / "cars.csv"),
        columns={"x": "speed"},
        row_range=[10, 130],
        output_path=str(FOLDER / "scored.parquet"),
        # Not in the format of the table: the rejects have that of their name.
        format="parquet",
        rejects_path=str(FOLDER / "rejects.csv"),
        max_failed_records=0.5,
        **SERVICE,
    )
    BatchScoreTaskGroup(
        "large",
        input_path=str(FOLDER / "cars.csv"),
        columns={"x": "speed"},
        output_path=str(FOLDER / "large"),
        records_per_batch=60,
        max_failed_records=0.5,
        poll_interval=0.1,
        **SERVICE,
    )

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
