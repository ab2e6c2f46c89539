"""The vendor's guide to batch scoring, from its first line to its last, as a Dag.

Each task does one step of the guide with `MLBatchHook`, whose methods carry the names of the R
functions in snake case: who knows one knows the other. The last five tasks do the same with
operators, which is what a Dag that runs every night should do: they wait without holding a worker,
survive restarts and write whole files.

| the guide, in R                                          | here                                     |
| -------------------------------------------------------- | ---------------------------------------- |
| `getService("mtService", "v1.0.0")`                      | `get_service`                            |
| `api$manualTransmission(120, 2.8)`                       | `consume`                                |
| `txService$batch(records, parallelCount = 5)$start()`    | `start_batch(…, parallel_count=5)`       |
| `txService$getBatchExecutions()`                         | `list_batch_executions`                  |
| `txService$getBatch(id)`                                 | `get_batch`                              |
| `txBatch$results(showPartialResult = TRUE)`              | `get_batch_results(…, partial=True)`     |
| `batchRes$execution(1)`                                  | `results[0]`                             |
| `txBatch$cancel()`                                       | `cancel_batch`                           |
| `txBatch$listArtifacts(1)`                               | `list_artifacts(…, 0)`                   |
| `txBatch$artifact(1, "Histogram.png")`                   | `get_artifact(…, 0, "Histogram.png")`    |
| `txBatch$download(1, dest = "…")`                        | `download_artifacts(…, 0, dest="…")`     |

R counts records from one; here, as in Python and in the server's addresses, the first is 0.
"""

from __future__ import annotations

import csv
import logging
import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, task

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.sensors import BatchStateSensor

log = logging.getLogger(__name__)

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108
SERVICE = ("mtService", "v1.0.0")


# [START howto_hook_services]
@task
def get_the_service() -> dict[str, str]:
    """What the service wants, and what it gives."""
    hook = MLBatchHook()
    log.info("the server says %r", hook.get_server_status().status_code)
    log.info("published: %s", [f"{each.name} {each.version}" for each in hook.list_services()])
    log.info("its Swagger document: %s", hook.get_swagger(*SERVICE)["info"]["title"])
    service = hook.get_service(*SERVICE)
    return {each.name: each.type for each in [*service.inputs, *service.outputs]}


@task
def consume_one_record() -> float:
    """Request and response: one record, at once."""
    answer = MLBatchHook().consume(*SERVICE, {"hp": 120, "wt": 2.8}).outputs["answer"]
    log.info("manualTransmission(120, 2.8) = %.7f", answer)
    return float(answer)


# [END howto_hook_services]


# [START howto_hook_batches]
@task
def start_from_records() -> str:
    """A list of dicts; a dict of columns or a pandas DataFrame will do as well."""
    records = [{"hp": 110, "wt": 2.62}, {"hp": 110, "wt": 2.875}]
    return MLBatchHook().start_batch(*SERVICE, records, parallel_count=5)


@task
def start_from_file(name: str, delimiter: str) -> str:
    """A CSV or TSV file: columns that the service does not declare stay here."""
    with (EXAMPLE_DATA / name).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter=delimiter))
    numbers = [{"hp": float(row["hp"]), "wt": float(row["wt"])} for row in rows]
    return MLBatchHook().start_batch(*SERVICE, numbers, parallel_count=5)


@task
def watch_partial_results(execution_id: str) -> list[float]:
    """Ask again and again, and look at what is there already."""
    hook = MLBatchHook()
    while True:
        results = hook.get_batch_results(*SERVICE, execution_id, partial=True)
        done, total = results.completed_item_count, results.total_item_count
        log.info("%s of %s records are scored", done, total)
        if results.state.is_terminal:
            break
        time.sleep(1)
    if results.state.value == "failed":
        raise RuntimeError("the batch execution failed")
    log.info("the first: %s", results[0].outputs)
    return [record.outputs["answer"] for record in results]


@task
def find_batches(execution_ids: list[str]) -> dict[str, str]:
    """Batches that somebody started: their ids from the server's list, then each by its id."""
    hook = MLBatchHook()
    kept = [each for each in hook.list_batch_executions(*SERVICE) if each in execution_ids]
    return {each: hook.get_batch(*SERVICE, each).state.value for each in kept}


@task
def cancel_a_batch() -> bool:
    """Cancel one; its results and files are gone then."""
    hook = MLBatchHook()
    execution_id = hook.start_batch(*SERVICE, {"hp": [100] * 500, "wt": [3] * 500})
    return hook.cancel_batch(*SERVICE, execution_id)


# [END howto_hook_batches]


# [START howto_hook_artifacts]
@task
def artifacts_of(execution_id: str) -> list[str]:
    """List a record's files, look into one, download one, download all."""
    hook = MLBatchHook()
    for name in hook.list_artifacts(*SERVICE, execution_id, 0):
        content = hook.get_artifact(*SERVICE, execution_id, 0, name)
        log.info("%s: %s bytes", name, f"{len(content):,}")
    dest = EXAMPLE_DATA / "scored" / "guide"
    (dest / "all").mkdir(parents=True, exist_ok=True)
    one = hook.download_artifacts(*SERVICE, execution_id, 0, ["Histogram.png"], dest=dest)
    return one + hook.download_artifacts(*SERVICE, execution_id, 0, dest=dest / "all")


# [END howto_hook_artifacts]


with DAG(
    dag_id="mlbatch_guide_workflow",
    description="Every step of the vendor's guide, by hand with the hook and then with operators.",
    schedule=None,
    default_args={
        "service_name": SERVICE[0],
        "service_version": SERVICE[1],
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    by_records = start_from_records()
    by_csv = start_from_file.override(task_id="start_from_csv")("mtcars.csv", ",")
    by_tsv = start_from_file.override(task_id="start_from_tsv")("mtcars.tsv", "\t")
    get_the_service() >> consume_one_record() >> [by_records, by_csv, by_tsv]
    answers = watch_partial_results(by_records)
    found = find_batches([by_records, by_csv, by_tsv])
    files = artifacts_of(by_records)
    answers >> files
    cancel_a_batch()

    # The same with operators.
    score = BatchScoreOperator(
        task_id="score", input_path=str(EXAMPLE_DATA / "mtcars.tsv"), parallel_count=5
    )
    wait = BatchStateSensor(
        task_id="wait", execution_id=score.output, deferrable=True, poke_interval=1
    )
    results = BatchResultsOperator(task_id="results", execution_id=score.output)
    pictures = ArtifactDownloadOperator(
        task_id="pictures",
        execution_id=score.output,
        dest=str(EXAMPLE_DATA / "scored" / "guide" / "operators"),
    )
    # [START howto_operator_batch_delete]
    delete = BatchDeleteOperator(
        task_id="delete", execution_ids=[by_records, by_csv, by_tsv, score.output]
    )
    # [END howto_operator_batch_delete]
    wait >> [results, pictures] >> delete
    [found, files, answers] >> delete

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
