"""Score what functions return, with `@task.mlbatch`: no table, no ids, no task that waits.

`score_by_cylinders` is mapped: one batch for each number of cylinders, all at once, each scored while
no worker is held. Its function returns a DataFrame, and the task returns the results, so that
`show` reads them like the result of any other function.

`score_table` returns a path, and gives the id of its batch to the task that writes the scored table.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_mlbatch.operators import BatchResultsOperator

log = logging.getLogger(__name__)
EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

with DAG(
    dag_id="mlbatch_taskflow",
    description="Score records that functions return, and hand the results to other functions.",
    schedule=None,
    default_args={
        "service_name": "mtService",
        "service_version": "v1.0.0",
        "poll_interval": 1,
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    params={
        "input_path": Param(str(EXAMPLE_DATA / "mtcars.csv"), type="string"),
        "output_path": Param(
            str(EXAMPLE_DATA / "scored" / "taskflow" / "scores.csv"), type="string"
        ),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    # [START howto_task_mlbatch]
    @task.mlbatch(deferrable=True)
    def score_by_cylinders(cylinders: int, params: dict[str, str]) -> Any:
        """The cars with so many cylinders."""
        import pandas as pd

        cars = pd.read_csv(params["input_path"])
        return cars[cars["cyl"] == cylinders]

    @task
    def show(results: list[list[dict[str, Any]]]) -> None:
        """How many cars were scored."""
        log.info("scored %s cars", [len(rows) for rows in results])

    show(score_by_cylinders.expand(cylinders=[4, 6, 8]))
    # [END howto_task_mlbatch]

    # [START howto_task_mlbatch_path]
    @task.mlbatch(returns="execution_id", deferrable=True)
    def score_table(params: dict[str, str]) -> str:
        """The path of a table."""
        return params["input_path"]

    BatchResultsOperator(
        task_id="results",
        execution_id=score_table(),
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_path }}",
    )
    # [END howto_task_mlbatch_path]

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
