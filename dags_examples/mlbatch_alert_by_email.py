"""Send an e-mail when too many records failed, and a report when the table is scored.

The service refuses three of the 32 cars. A tenth of them may fail, so the task succeeds, and the
report says which cars failed. Trigger the Dag with `max_failed_records` 0 to see the alert. With
`stop_early=True` it comes as soon as enough records have failed, and the rest of the batch is cancelled.

Both mails are made from the XCom `mlbatch_summary`, which a score task leaves at its end. The
connection `smtp_default` says which mail server sends them. Without it the task ends as it would
anyway, and its log says that the mail could not be sent.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from airflow.providers.smtp.notifications.smtp import SmtpNotifier
from airflow.sdk import DAG, Param

from airflow_mlbatch.operators import BatchScoreOperator

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

# [START howto_alert_by_email]
# Whatever comes from a service is escaped: `| e`. A task that failed before it had a batch has left
# no summary; then the exception says why.
MAIL = """
{% set batch = ti.xcom_pull(task_ids=ti.task_id, key="mlbatch_summary", map_indexes=ti.map_index) %}
<p>Task {{ ti.task_id | e }} of Dag {{ ti.dag_id | e }}, run {{ run_id | e }}</p>
{% if batch %}
<p>{{ batch.service_name | e }} {{ batch.service_version | e }}:
   {{ batch.failed }} of {{ batch.total }} records failed (execution {{ batch.execution_id | e }}).
   <a href="{{ batch.page | e }}">Open the batch</a></p>
<ul>
{% for failure in batch.first_failures %}
<li>record {{ failure.index }}: {{ failure.error | e }}</li>
{% endfor %}
</ul>
{% endif %}
{% if exception %}<p>{{ exception | e }}</p>{% endif %}
"""

alert = SmtpNotifier(
    to="{{ params.to }}",
    from_email="airflow@example.com",
    subject="Scoring failed: {{ ti.dag_id }}",
    html_content=MAIL,
)
report = SmtpNotifier(
    to="{{ params.to }}",
    from_email="airflow@example.com",
    subject="Scored: {{ ti.dag_id }}",
    html_content=MAIL,
)
# [END howto_alert_by_email]

with DAG(
    dag_id="mlbatch_alert_by_email",
    description="Send an e-mail when too many records fail, and a report when a table is scored.",
    schedule=None,
    default_args={
        "service_name": "carefulService",
        "service_version": "1.0",
        "retries": 1,
        "retry_delay": timedelta(seconds=10),
    },
    params={
        "input_path": Param(str(EXAMPLE_DATA / "mtcars.csv"), type="string"),
        "max_failed_records": Param(0.1, type="number", description="a count, or a fraction"),
        "to": Param("data-team@example.com", type="string", description="who gets the mail"),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    # [START howto_alert_on_score]
    BatchScoreOperator(
        task_id="score",
        input_path="{{ params.input_path }}",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
        max_failed_records="{{ params.max_failed_records }}",
        stop_early=True,
        on_failure_callback=alert,
        on_success_callback=report,
    )
    # [END howto_alert_on_score]

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
