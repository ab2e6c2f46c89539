"""Records that fail: score them once more, put aside what still fails, and decide whether it is too much.

The service refuses three of the 32 cars. A tenth of them may fail, so the task succeeds: the scored
table holds every car, with `mlbatch_success` and `mlbatch_error` beside its score, and the three
are in the rejects with their inputs and the service's message. With `max_failed_records=0`, the
default, the task would fail and name the first of them, and the rejects would be written all the
same.

`rescore_failed=1` sends the failed records to the service once more before they are judged, which
helps when a service fails by chance (here it does not). The extra batch is deleted afterwards.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, Param

from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

with DAG(
    dag_id="mlbatch_failed_records",
    description="Score failed records once more, put the rest aside, and judge how many may fail.",
    schedule=None,
    default_args={
        "service_name": "carefulService",
        "service_version": "1.0",
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    params={
        "input_path": Param(str(EXAMPLE_DATA / "mtcars.csv"), type="string"),
        "output_dir": Param(str(EXAMPLE_DATA / "scored" / "failed_records"), type="string"),
        "max_failed_records": Param(0.1, type="number", description="a count, or a fraction"),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    score = BatchScoreOperator(
        task_id="score",
        input_path="{{ params.input_path }}",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
    )
    # [START howto_operator_batch_results_failed]
    BatchResultsOperator(
        task_id="results",
        execution_id=score.output,
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_dir }}/scores.parquet",
        id_columns=["model"],
        keep_columns=["hp", "wt"],
        max_failed_records="{{ params.max_failed_records }}",
        rejects_path="{{ params.output_dir }}/rejects.csv",
        rescore_failed=1,
        poll_interval=1,
    )
    # [END howto_operator_batch_results_failed]

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
