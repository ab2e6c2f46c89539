"""Parquet in, Parquet out, and a Dag that starts when the scores are there.

A fixed `output_path` is an asset of Airflow by itself: when the table is in place, Airflow learns of
it together with the counts, and `mlbatch_read_scores` starts. Paths with templates are known only
when a task runs: give such a task `outlets=[AssetAlias("scores")]` and schedule on the alias.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, task

from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator

log = logging.getLogger(__name__)

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108
CARS = str(EXAMPLE_DATA / "scored" / "assets" / "cars.parquet")
SCORES = str(EXAMPLE_DATA / "scored" / "assets" / "scores.parquet")

with DAG(
    dag_id="mlbatch_write_scores",
    description="Score a Parquet table and announce the scored table as an asset.",
    schedule=None,
    default_args={
        "service_name": "TxService",
        "service_version": "1.0",
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as write_scores:

    @task
    def make_cars() -> str:
        """Stands for whatever writes the table in your house."""
        import pandas as pd

        Path(CARS).parent.mkdir(parents=True, exist_ok=True)
        pd.read_csv(EXAMPLE_DATA / "mtcars.csv").to_parquet(CARS, index=False)
        return CARS

    cars = make_cars()
    score = BatchScoreOperator(
        task_id="score",
        input_path=cars,
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
    )
    # [START howto_operator_batch_results_asset]
    BatchResultsOperator(
        task_id="results",
        execution_id=score.output,
        input_path=cars,
        id_columns=["model"],
        keep_columns=["am"],
        output_path=SCORES,
    )
    # [END howto_operator_batch_results_asset]

# [START howto_schedule_on_scores]
with DAG(
    dag_id="mlbatch_read_scores",
    description="Starts when mlbatch_write_scores has written its table, and counts the right scores.",
    schedule=[Asset(uri=f"file://{SCORES}")],
    # A paused Dag would not start by itself.
    is_paused_upon_creation=False,
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    tags=["mlbatch"],
    doc_md=__doc__,
) as read_scores:

    @task
    def count_correct(triggering_asset_events: Any = None) -> float:
        """How often the model is right; the counts come with the event."""
        import pandas as pd

        for events in (triggering_asset_events or {}).values():
            for event in events:
                log.info("%s rows, %s failed", event.extra["rows"], event.extra["failed"])
        scores = pd.read_parquet(SCORES)
        is_right = (scores["answer_am_Pred"] > 0.5) == (scores["am"] == 1)
        return float(is_right.mean())

    count_correct()
# [END howto_schedule_on_scores]

if __name__ == "__main__":
    raise SystemExit(
        write_scores.test().state != "success" or read_scores.test().state != "success"
    )
