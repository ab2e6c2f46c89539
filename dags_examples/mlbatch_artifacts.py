"""Files of records: all to storage, one by one through XCom.

`to_storage` streams the plots of all records to a folder, many at once, each whole or not there;
the names come from `path_template`. `dest` may be any location that Airflow's
`ObjectStoragePath` opens (`s3://bucket/plots` with `dest_conn_id="my_aws"`). The manifest, which
is also the task's XCom, lists every file with its checksum. A retry fetches only what is missing.

`to_xcom` takes a small file of a single record through XCom: text as text, anything else as
base64, up to `max_xcom_bytes`.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_mlbatch.operators import ArtifactDownloadOperator, BatchScoreOperator

log = logging.getLogger(__name__)

EXAMPLE_DATA = Path(os.environ.get("MLBATCH_EXAMPLE_DATA", "/tmp/mlbatch"))  # noqa: S108

with DAG(
    dag_id="mlbatch_artifacts",
    description="Download the files of many records: to storage, and through XCom.",
    schedule=None,
    default_args={
        "service_name": "TxService",
        "service_version": "1.0",
        "retries": 2,
        "retry_delay": timedelta(seconds=10),
    },
    params={
        "input_path": Param(str(EXAMPLE_DATA / "mtcars.csv"), type="string"),
        "dest": Param(str(EXAMPLE_DATA / "scored" / "answers"), type="string"),
    },
    tags=["mlbatch"],
    doc_md=__doc__,
) as dag:
    score = BatchScoreOperator(
        task_id="score",
        input_path="{{ params.input_path }}",
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
    )
    # [START howto_operator_artifact_download]
    to_storage = ArtifactDownloadOperator(
        task_id="to_storage",
        execution_id=score.output,
        file_names=["*.csv"],
        dest="{{ params.dest }}",
        path_template="{index:04d}-{file_name}",
        max_connections=8,
    )
    # [END howto_operator_artifact_download]
    # [START howto_operator_artifact_download_xcom]
    to_xcom = ArtifactDownloadOperator(
        task_id="to_xcom",
        execution_id=score.output,
        indexes=[0],
        file_names=["answer.csv"],
        max_xcom_bytes=1024,
    )
    # [END howto_operator_artifact_download_xcom]

    @task
    def compare(manifest: dict[str, Any], files: list[dict[str, Any]]) -> None:
        """What both brought is the same."""
        log.info("%s files, listed in %s", manifest["file_count"], manifest["manifest_path"])
        first = Path(manifest["dest"], manifest["files"][0]["path"])
        assert first.read_bytes().decode() == files[0]["content"]

    compare(to_storage.output, to_xcom.output)

if __name__ == "__main__":
    raise SystemExit(dag.test().state != "success")
