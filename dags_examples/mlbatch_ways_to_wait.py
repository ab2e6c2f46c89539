"""Five ways to wait for a batch; the outcome is the same.

| way                   | who waits                                                                   |
| --------------------- | --------------------------------------------------------------------------- |
| `poke`                | a worker: for batches of a minute or less                                   |
| `reschedule`          | the sensor leaves its worker between polls: where there is no triggerer     |
| `deferrable`          | the triggerer, thousands of batches in one process: the usual choice        |
| `wait_for_completion` | the task that starts the batch, here deferred as well                       |
| nobody                | a later Dag, or a later task, looks for the batch by its id                 |

A sensor watches a batch that it does not own: killing it cancels nothing. A task with
`wait_for_completion=True` owns its batch and cancels it when it is killed, unless
`cancel_on_kill=False`.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG

from airflow_mlbatch.operators import BatchDeleteOperator, BatchScoreOperator
from airflow_mlbatch.sensors import BatchStateSensor

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

with DAG(
    dag_id="mlbatch_ways_to_wait",
    description="Wait for a batch in each of five ways; the outcome is the same.",
    schedule=None,
    default_args={
        "service_name": "mtService",
        "service_version": "v1.0.0",
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    score = BatchScoreOperator(
        task_id="score", input_path=str(EXAMPLE_DATA / "mtcars.csv"), parallel_count=5
    )
    # [START howto_sensor_batch_state_modes]
    waits = [
        BatchStateSensor(
            task_id="poke",
            execution_id=score.output,
            mode="poke",
            poke_interval=1,
            timeout=600,
        ),
        BatchStateSensor(
            task_id="reschedule",
            execution_id=score.output,
            mode="reschedule",
            poke_interval=1,
            timeout=600,
        ),
        BatchStateSensor(
            task_id="deferrable",
            execution_id=score.output,
            deferrable=True,
            poke_interval=1,
            timeout=600,
        ),
    ]
    # [END howto_sensor_batch_state_modes]
    # [START howto_operator_batch_score_wait]
    score_and_wait = BatchScoreOperator(
        task_id="score_and_wait",
        records=[{"hp": 110, "wt": 2.62}, {"hp": 110, "wt": 2.875}],
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
        timeout=600,
    )
    # [END howto_operator_batch_score_wait]
    delete = BatchDeleteOperator(
        task_id="delete", execution_ids=[score.output, score_and_wait.output]
    )
    waits >> delete

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
