"""One batch, waited for on a worker or in a triggerer; its records come from a run's parameters."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator
from airflow_mlbatch.sensors import BatchStateSensor

SERVICE = {"service_name": "gated", "service_version": "{{ params.version }}"}
ARGS = {**SERVICE, "retries": 3, "retry_delay": timedelta(seconds=1)}
PARAMS = {
    "version": Param("0", type="string"),
    "input_path": Param("", type="string"),
    "output_path": Param("", type="string"),
}

for mode in ("running", "deferred"):
    with DAG(f"score_{mode}", schedule=None, default_args=ARGS, params=PARAMS) as dag:
        score = BatchScoreOperator(
            task_id="score",
            input_path="{{ params.input_path }}",
            wait_for_completion=True,
            deferrable=mode == "deferred",
            poll_interval=1,
        )
        BatchResultsOperator(
            task_id="results",
            execution_id=score.output,
            input_path="{{ params.input_path }}",
            output_path="{{ params.output_path }}",
        )
    globals()[dag.dag_id] = dag

with DAG("sense", schedule=None, default_args=ARGS, params=PARAMS) as sense:
    started = BatchScoreOperator(task_id="score", input_path="{{ params.input_path }}")
    waits = [
        BatchStateSensor(
            task_id=f"sensor_{number}",
            execution_id=started.output,
            deferrable=True,
            poke_interval=1,
            timeout=900,
        )
        for number in range(2)
    ]
