"""A Dag for each way to wait for a batch, and the task group."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param
from airflow.sdk.exceptions import AirflowSkipException

from airflow_mlbatch.operators import (
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
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
    # Such a run scores nothing: it deletes what other runs of its Dag have left over.
    "orphans": Param(False, type="boolean"),
}
SENSORS: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke", "deferrable": False},
    "reschedule": {"mode": "reschedule", "deferrable": False},
    "deferrable": {"deferrable": True},
}


def dag(name: str) -> DAG:
    return DAG(f"soak_{name}", schedule=None, default_args=ARGS, params=PARAMS, max_active_runs=50)


def skip_for_orphans(context: Any) -> None:
    if context["params"]["orphans"]:
        raise AirflowSkipException("this run only deletes orphans")


def scoring(**arguments: Any) -> BatchScoreOperator:
    score = BatchScoreOperator(task_id="score", pre_execute=skip_for_orphans, **TABLE, **arguments)
    score >> deletion_of_orphans()
    return score


def deletion_of_orphans() -> BatchDeleteOperator:
    # Where nothing was skipped, Airflow skips this one without starting it.
    return BatchDeleteOperator(task_id="delete_orphans", orphans=True, trigger_rule="all_skipped")


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
        score = scoring(wait_for_completion=True, deferrable=waits == "deferrable", poll_interval=2)
        results(score.output)
    globals()[made.dag_id] = made

for kind, arguments in SENSORS.items():
    with dag(f"sensor_{kind}") as made:
        score = scoring()
        waits_for = BatchStateSensor(
            task_id="sensor", execution_id=score.output, poke_interval=3, timeout=3600, **arguments
        )
        waits_for >> results(score.output)
    globals()[made.dag_id] = made

with dag("no_wait") as made:
    score = scoring()
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
            task_args={"pre_execute": skip_for_orphans},
            **TABLE,
        )
        made.get_task("scored.plan") >> deletion_of_orphans()
    globals()[made.dag_id] = made
