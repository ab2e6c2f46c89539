"""Batches waited for on a worker or in a triggerer; their records come from a run's parameters."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
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

SERVICE: dict[str, Any] = {
    "service_name": "gated",
    "service_version": "{{ params.version }}",
    "mlbatch_conn_id": "{{ params.conn_id }}",
}
ARGS = {**SERVICE, "retries": 3, "retry_delay": timedelta(seconds=1)}
PARAMS = {
    "version": Param("0", type="string"),
    "conn_id": Param("mlbatch_default", type="string"),
    "input_path": Param("", type="string"),
    "output_path": Param("", type="string"),
    "returned_path": Param("", type="string"),
    # Such a run scores nothing: it deletes what other runs of its Dag have left over.
    "orphans": Param(False, type="boolean"),
}


def skip_for_orphans(context: Any) -> None:
    if context["params"]["orphans"]:
        raise AirflowSkipException("this run only deletes orphans")


def stay(context: Any, result: Any) -> None:
    """Does not let the first attempt end, if a test wants to meet it after ``execute`` has returned."""
    returned = context["params"]["returned_path"]
    if not returned or context["ti"].try_number > 1:
        return
    Path(returned).write_text(str(os.getpid()))
    time.sleep(300)


for mode in ("running", "deferred"):
    with DAG(f"score_{mode}", schedule=None, default_args=ARGS, params=PARAMS) as dag:
        score = BatchScoreOperator(
            task_id="score",
            input_path="{{ params.input_path }}",
            wait_for_completion=True,
            deferrable=mode == "deferred",
            poll_interval=1,
            pre_execute=skip_for_orphans,
            post_execute=stay,
        )
        # Where nothing was skipped, Airflow skips this one without starting it.
        score >> BatchDeleteOperator(
            task_id="delete_orphans", orphans=True, trigger_rule="all_skipped"
        )
        BatchResultsOperator(
            task_id="results",
            execution_id=score.output,
            input_path="{{ params.input_path }}",
            output_path="{{ params.output_path }}",
        )
    globals()[dag.dag_id] = dag

with DAG("score_shards", schedule=None, default_args=ARGS, params=PARAMS) as shards:
    BatchScoreTaskGroup(
        group_id="scored",
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_path }}",
        records_per_batch=2,
        format="csv",
        poll_interval=1,
        task_args=SERVICE,
    )

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
