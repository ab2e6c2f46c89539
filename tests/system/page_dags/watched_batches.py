"""Batches to look at: a large one, mapped ones, and one that waits until somebody cancels it."""

from __future__ import annotations

import os

from airflow.sdk import DAG

from airflow_mlbatch.operators import BatchScoreOperator
from tests.plugins.auth_manager import PRIVATE_DAG

with DAG(dag_id=PRIVATE_DAG, schedule=None, default_args={"service_version": "1"}):
    BatchScoreOperator(
        task_id="large",
        service_name="cars",
        input_path=os.environ.get("MLBATCH_TEST_TABLE", "/nowhere.csv"),
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
    )
    BatchScoreOperator.partial(
        task_id="mapped", service_name="cars", wait_for_completion=True, deferrable=False
    ).expand(records=[[{"x": 1.0}], [{"x": 2.0}, {"x": -2.0}]])
    BatchScoreOperator(
        task_id="held",
        service_name="held",
        records=[{"x": 1.0}],
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
    )
