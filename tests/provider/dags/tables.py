"""Dags that the tests run whole: large tables in shards, mapped tables, assets."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, AssetAlias, task

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchDeleteOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.operators.siblings import Siblings
from airflow_mlbatch.sensors import BatchStateSensor
from airflow_mlbatch.task_groups import BatchScoreTaskGroup

TABLES = os.environ.get("MLBATCH_TEST_TABLES", "/nowhere")
DAGS: dict[str, DAG] = {}
RETRIES: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(0)}


def large(case: str, service_name: str, output: str = "out", **kwargs: Any) -> DAG:
    """A Dag of one task group, whose table and dataset are in a folder of the same name."""
    params = {"input": kwargs.pop("input", "in.csv")}
    with DAG(f"large_{case}", schedule=None, params=params) as dag:
        BatchScoreTaskGroup(
            "table",
            service_name=service_name,
            service_version="1",
            input_path=f"file://{TABLES}/{case}/{{{{ params.input }}}}",
            output_path=f"file://{TABLES}/{case}/{output}",
            poll_interval=0.1,
            task_args=RETRIES,
            **kwargs,
        )
    DAGS[dag.dag_id] = dag
    return dag


large("many", "double", input="in.parquet", records_per_batch=300, cleanup=True, id_columns=["id"])
large("single", "double", format="csv", keep_columns=None, max_active_batches=1)
large(
    "jsonl",
    "double",
    output="{{ ds[:0] }}out",
    format="jsonl",
    records_per_batch=6,
    deferrable=False,
)
large("text", "double", records_per_batch=2, input_quoting="none", column_types="infer")
large("stubborn", "stubborn", records_per_batch=5, rescore_failed=1, console_column="printed")
POLICY: dict[str, Any] = {
    "records_per_batch": "40",
    "rejects_path": f"{TABLES}/{{{{ dag.dag_id }}}}-rejects",
    "cleanup": True,
}
large("allowed", "picky", max_failed_records=0.03, **POLICY)
large("refused", "picky", max_failed_records="2", **POLICY)
large("crowded", "picky", max_failed_records=2, **POLICY)
for decision in ("skip", "fail", "succeed"):
    large(f"empty_{decision}", "double", on_empty=decision, cleanup=True)


@task
def publish(version: str) -> None:
    """Versions tell what they are: the answer is their number."""
    number = {"inputs": {"x": "numeric"}, "outputs": {"y": "numeric"}}
    MLBatchHook().publish_service("sharded", version, code=f"y = {version}.0", **number)


with DAG("latest_in_shards", schedule=None) as latest_in_shards:
    first = publish.override(task_id="first")("1")
    group = BatchScoreTaskGroup(
        "table",
        service_name="sharded",
        service_version="latest",
        input_path=f"{TABLES}/in.csv",
        output_path=f"{TABLES}/out",
        format="csv",
        records_per_batch=2,
        poll_interval=0.1,
        cleanup=True,
        task_args=RETRIES,
    )
    first >> group
    # When the run has planned, and before the first shard is scored.
    plan, score_shard = (
        latest_in_shards.get_task(f"table.{name}") for name in ("plan", "shards.score")
    )
    plan >> publish.override(task_id="second")("2") >> score_shard
DAGS["latest_in_shards"] = latest_in_shards

NAMED: dict[str, Any] = {"service_name": "double", "service_version": "1"}

with DAG("mapped_tables", schedule=None, default_args={**NAMED, **RETRIES}) as mapped_tables:

    @task
    def list_tables() -> list[str]:
        return [f"{TABLES}/mapped/{name}.csv" for name in "abc"]

    @task
    def compare_with_what_was_told(ids: list[str], **context: Any) -> None:
        service = {"service_name": "double", "service_version": "1"}
        told = Siblings(context, ["score"], service)
        assert told.claimed() == set(ids)
        assert told.starting(2) == 0

    names = list_tables()
    score = BatchScoreOperator.partial(
        task_id="score", wait_for_completion=True, deferrable=True, poll_interval=0.1
    ).expand(input_path=names)
    compare_with_what_was_told(score.output)
    BatchResultsOperator.partial(
        task_id="results", outlets=[AssetAlias("mapped_tables")]
    ).expand_kwargs(
        score.output.zip(names).map(
            lambda pair: {
                "execution_id": pair[0],
                "input_path": pair[1],
                "output_path": pair[1].replace(".csv", ".scored.parquet"),
            }
        )
    )

FILES: dict[str, Any] = {"service_name": "files", "service_version": "1"}

with DAG("mapped_roles", schedule=None, default_args={**FILES, **RETRIES}) as mapped_roles:
    batches = BatchScoreOperator.partial(task_id="score").expand(
        records=[[{"name": "a"}], [{"name": "b"}, {"name": "c"}]]
    )
    wait = BatchStateSensor.partial(task_id="wait", deferrable=True, poke_interval=0.1).expand(
        execution_id=batches.output
    )
    files = ArtifactDownloadOperator.partial(
        task_id="files", file_names=["data.bin"], dest=f"{TABLES}/roles/{{{{ ti.map_index }}}}"
    ).expand(execution_id=batches.output)
    delete = BatchDeleteOperator.partial(task_id="delete").expand(execution_ids=batches.output)
    wait >> files >> delete

with DAG("fixed_path", schedule=None, default_args=NAMED) as fixed_path:
    one = BatchScoreOperator(
        task_id="score", records=[{"x": 1}, {"x": 2}], wait_for_completion=True, poll_interval=0.1
    )
    BatchResultsOperator(
        task_id="results", execution_id=one.output, output_path=f"{TABLES}/fixed/out.jsonl"
    )

DAGS |= {dag.dag_id: dag for dag in (mapped_tables, mapped_roles, fixed_path)}
