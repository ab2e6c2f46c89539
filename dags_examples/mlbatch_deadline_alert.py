"""Send an e-mail when the scores are not there in time.

A deadline alert (Airflow 3.1 and later) belongs to the run of a Dag. It fires while the tasks still run,
or wait in the triggerer, or have not begun because the pool is full. The scheduler finds that the
deadline is missed, and the triggerer sends the mail. The run goes on: the scores come late, and nothing
is cancelled. To give up on a late batch, use `timeout` of the score task.

The connection `smtp_default` says which mail server sends it.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import DAG, Param

from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

# [START howto_deadline_alert]
try:
    from airflow.sdk.definitions.deadline import AsyncCallback, DeadlineAlert, DeadlineReference
except ImportError:
    # Airflow 3.0 has no deadlines: the Dag runs there, and nobody is told that it is late.
    deadline: dict[str, Any] = {}
else:
    late = AsyncCallback(
        SmtpNotifier,
        kwargs={
            "to": "data-team@example.com",
            "from_email": "airflow@example.com",
            "subject": "Scores are late: {{ dag_run.dag_id }}",
            "html_content": (
                "<p>Run {{ dag_run.dag_run_id | e }} of {{ dag_run.dag_id | e }} has no scores yet. "
                "They were due at {{ deadline.deadline_time }}.</p>"
            ),
        },
    )
    # Counted from when the run was queued, so that waiting for a worker counts, too.
    deadline = {
        "deadline": DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(hours=1),
            callback=late,
        )
    }
# [END howto_deadline_alert]

with DAG(
    dag_id="mlbatch_deadline_alert",
    description="Send an e-mail when the scores are not there an hour after the run was queued.",
    schedule=None,
    default_args={
        "service_name": "mtService",
        "service_version": "v1.0.0",
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    params={
        "input_path": Param(str(EXAMPLE_DATA / "mtcars.csv"), type="string"),
        "output_path": Param(
            str(EXAMPLE_DATA / "scored" / "deadline" / "scores.parquet"), type="string"
        ),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
    **deadline,
) as dag:
    score = BatchScoreOperator(
        task_id="score",
        input_path="{{ params.input_path }}",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
    )
    BatchResultsOperator(
        task_id="results",
        execution_id=score.output,
        input_path="{{ params.input_path }}",
        output_path="{{ params.output_path }}",
    )

if __name__ == "__main__":
    # Only a scheduler watches deadlines, and dag.test() of Airflow 3.3.2 cannot end a run that has one.
    dag.deadline = None
    raise SystemExit(dag.test().state != "success")
