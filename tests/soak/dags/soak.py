"""A Dag for each way to wait for a batch, and the task group."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param

from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator
from airflow_mlbatch.sensors import BatchStateSensor
from airflow_mlbatch.task_groups import BatchScoreTaskGroup

ARGS: dict[str, Any] = {
    "service_name": "soak",
    "service_version": "1",
    # More than there are faults for one task: none may fail for want of another try.
    "retries": 30,
    "retry_delay": timedelta(seconds=1),
}
TABLE: dict[str, Any] = {
    "input_path": "{{ params.input_path }}",
}
PARAMS = {
    "input_path": Param("", type="string"),
    "output_path": Param("", type="string"),
}
SENSORS: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke", "deferrable": False},
    "reschedule": {"mode": "reschedule", "deferrable": False},
    "deferrable": {"deferrable": True},
}


def dag(name: str) -> DAG:
    return DAG(f"soak_{name}", schedule=None, default_args=ARGS, params=PARAMS, max_active_runs=50)


def results(execution_id: Any, **arguments: Any) -> BatchResultsOperator:
    return BatchResultsOperator(
        task_id="results",
        execution_id=execution_id,
        output_path="{{ params.output_path }}",
        **TABLE,
        **arguments,
    )


for waits in ("worker", "deferrable"):
    with dag(waits) as made:
        score = BatchScoreOperator(
            task_id="score",
            wait_for_completion=True,
            deferrable=waits == "deferrable",
            poll_interval=2,
            **TABLE,
        )
        results(score.output)
    globals()[made.dag_id] = made

for kind, arguments in SENSORS.items():
    with dag(f"sensor_{kind}") as made:
        score = BatchScoreOperator(task_id="score", **TABLE)
        waits_for = BatchStateSensor(
            task_id="sensor", execution_id=score.output, poke_interval=3, timeout=3600, **arguments
        )
        waits_for >> results(score.output)
    globals()[made.dag_id] = made

with dag("no_wait") as made:
    score = BatchScoreOperator(task_id="score", **TABLE)
    # Its retries are all that waits here.
    results(score.output, retry_delay=timedelta(seconds=10))
globals()[made.dag_id] = made

for waits in ("worker", "deferrable"):
    with dag(f"group_{waits}") as made:
        BatchScoreTaskGroup(
            group_id="scored",
            output_path="{{ params.output_path }}",
            records_per_batch=6,
            format="csv",
            deferrable=waits == "deferrable",
            poll_interval=2,
            **TABLE,
        )
    globals()[made.dag_id] = made
