"""Score a table: start a batch, wait without holding a worker, write the scores, fetch the plots.

`make demo` runs this Dag. It scores the 32 cars of the built-in mtcars table with the built-in
service `mtService`; give your own paths when you trigger it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.sensors import BatchStateSensor

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

with DAG(
    dag_id="mlbatch_score_mtcars",
    description="Score the mtcars table, wait in the triggerer, write the scores and fetch the plots.",
    schedule=None,
    default_args={
        "service_name": "mtService",
        "service_version": "v1.0.0",
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    params={
        "input_path": Param(str(EXAMPLE_DATA / "mtcars.csv"), type="string"),
        "output_dir": Param(str(EXAMPLE_DATA / "scored"), type="string"),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    # [START howto_operator_batch_score]
    score = BatchScoreOperator(
        task_id="score",
        input_path="{{ params.input_path }}",
        parallel_count=5,
    )
    # [END howto_operator_batch_score]
    # [START howto_sensor_batch_state]
    wait = BatchStateSensor(
        task_id="wait",
        execution_id=score.output,
        deferrable=True,
        poke_interval=1,
        timeout=600,
    )
    # [END howto_sensor_batch_state]
    # [START howto_operator_batch_results]
    results = BatchResultsOperator(
        task_id="results",
        execution_id=score.output,
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_dir }}/scores.csv",
    )
    # [END howto_operator_batch_results]
    artifacts = ArtifactDownloadOperator(
        task_id="artifacts",
        execution_id=score.output,
        file_names=["*.png"],
        dest="{{ params.output_dir }}/artifacts",
    )
    wait >> [results, artifacts]

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
