"""Read batches that somebody else has started, as soon as they are complete.

Colleagues start batches by hand, from R or from a notebook. A watcher in the triggerer looks at the
server and tells Airflow of each execution that completes. This Dag then writes its results, a table for
each.

When several batches complete at about the same time, Airflow may start one run for all of them. So the
run reads every event that it was started by. Trigger the Dag by hand to read certain executions.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, Param, task

from airflow_mlbatch.operators import BatchResultsOperator
from airflow_mlbatch.triggers import BatchCompletedTrigger

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108
SERVICE = {"service_name": "mtService", "service_version": "v1.0.0"}

# [START howto_trigger_batch_completed]
completed = Asset(
    "mtService_batches",
    watchers=[
        AssetWatcher(
            name="mtService_completed",
            trigger=BatchCompletedTrigger(**SERVICE, poll_interval=10),
        )
    ],
)
# [END howto_trigger_batch_completed]

# [START howto_read_completed_batches]
with DAG(
    dag_id="mlbatch_pick_up_batches",
    description="Write the results of each batch of mtService that completes, whoever started it.",
    schedule=[completed],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=10)},
    params={
        "output_dir": Param(str(EXAMPLE_DATA / "scored" / "picked_up"), type="string"),
        "execution_ids": Param([], type="array", description="to be read in a run by hand"),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:

    @task
    def find_batches(
        triggering_asset_events: Any = None, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        """The executions that this run is about, and where their results go."""
        assert params is not None
        events = [each for found in (triggering_asset_events or {}).values() for each in found]
        ids = [each.extra["payload"]["execution_id"] for each in events]
        return [
            {"execution_id": each, "output_path": f"{params['output_dir']}/{each}.csv"}
            # An event may come twice.
            for each in dict.fromkeys(ids or params["execution_ids"])
        ]

    BatchResultsOperator.partial(task_id="results", **SERVICE).expand_kwargs(find_batches())
# [END howto_read_completed_batches]

if __name__ == "__main__":
    from airflow_mlbatch.hooks import MLBatchHook

    hook = MLBatchHook()
    named = (SERVICE["service_name"], SERVICE["service_version"])
    execution_id = hook.start_batch(*named, {"hp": [120.0, 250.0], "wt": [2.8, 3.5]})
    hook.watch_batch(*named, execution_id, poll_interval=0.1)
    hook.close()
    raise SystemExit(dag.test(run_conf={"execution_ids": [execution_id]}).state != "success")
