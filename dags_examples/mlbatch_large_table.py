"""Score a table of any size: shards in parallel, one dataset at the end, nothing left on the server.

A failed shard is retried alone. Every row of the input is in the dataset exactly once, or the dataset
is not published.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_mlbatch.task_groups import BatchScoreTaskGroup

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

with DAG(
    dag_id="mlbatch_large_table",
    description="Score a table of any size in shards, and publish one dataset at the end.",
    schedule=None,
    params={
        "input_path": Param(str(EXAMPLE_DATA / "mtcars.csv"), type="string"),
        "output_path": Param(str(EXAMPLE_DATA / "scored" / "large"), type="string"),
        "records_per_batch": Param(10, type="integer", minimum=1),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    # [START howto_task_group_batch_score]
    BatchScoreTaskGroup(
        "score_table",
        service_name="mtService",
        service_version="v1.0.0",
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_path }}",
        records_per_batch="{{ params.records_per_batch }}",
        max_active_batches=4,
        id_columns=["model"],
        max_failed_records=0.01,
        rescore_failed=1,
        rejects_path="{{ params.output_path }}-rejects",
        poll_interval=1,
        timeout=3600,
        cleanup=True,
        task_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    )
    # [END howto_task_group_batch_score]

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
