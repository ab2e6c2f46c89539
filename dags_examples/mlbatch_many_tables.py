"""One set of tasks for each of many tables, whose number is known only when the Dag runs.

`list_tables` tells the tables; `score` and `results` are mapped over them with
`.partial().expand()`, so that each table has a task instance of its own in Airflow's grid and fails,
waits and is retried alone. The paths are known only then, so the written tables are announced through
an `AssetAlias`: a Dag with `schedule=[AssetAlias("mlbatch_many_tables")]` starts for each of them.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, AssetAlias, Param, task

from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

with DAG(
    dag_id="mlbatch_many_tables",
    description="Score each of many tables in mapped tasks of its own.",
    schedule=None,
    default_args={
        "service_name": "mtService",
        "service_version": "v1.0.0",
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    params={"folder": Param(str(EXAMPLE_DATA), type="string")},
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:

    @task
    def list_tables(params: dict[str, str]) -> list[str]:
        """Every table of the folder."""
        return sorted(str(path) for path in Path(params["folder"]).glob("*.[ct]sv"))

    @task
    def name_outputs(tables: list[str]) -> list[str]:
        """Where the scores of each go."""
        return [
            str(Path(table).parent / "scored" / "many" / f"{Path(table).name}.parquet")
            for table in tables
        ]

    # [START howto_operator_mapped]
    tables = list_tables()
    score = BatchScoreOperator.partial(
        task_id="score", wait_for_completion=True, deferrable=True, poll_interval=1
    ).expand(input_path=tables)
    BatchResultsOperator.partial(
        task_id="results", outlets=[AssetAlias("mlbatch_many_tables")]
    ).expand_kwargs(
        score.output.zip(tables, name_outputs(tables)).map(
            lambda found: {
                "execution_id": found[0],
                "input_path": found[1],
                "output_path": found[2],
            }
        )
    )
    # [END howto_operator_mapped]

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
