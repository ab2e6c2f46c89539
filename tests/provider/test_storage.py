"""Tables in object storage, through Airflow's own paths and the connection of that storage."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator
from tests.provider.conftest import on_object_stores

SERVICE: dict[str, Any] = {"service_name": "picky", "service_version": "1"}


@on_object_stores
def test_from_bucket_to_bucket(
    context: Any,
    request: pytest.FixtureRequest,
    storage: str,
    scheme: str,
    connection_id: str,
) -> None:
    bucket, fs = request.getfixturevalue(storage)
    held = io.BytesIO()
    parquet.write_table(pa.table({"id": ["a", "b", "c"], "power": [4.0, -1.0, 9.0]}), held)
    fs.pipe_file(f"{bucket}/in/cars.parquet", held.getvalue())
    table: dict[str, Any] = {
        "input_path": f"{scheme}://{bucket}/in/cars.parquet",
        "input_conn_id": connection_id,
        "columns": {"x": "power"},
    }
    score = BatchScoreOperator(
        task_id="score", wait_for_completion=True, poll_interval=0.05, **SERVICE, **table
    )
    execution_id = score.execute(context)
    assert execution_id is not None
    results = BatchResultsOperator(
        task_id="results",
        execution_id=execution_id,
        output_path=f"{scheme}://{bucket}/out/cars.parquet",
        output_conn_id=connection_id,
        rejects_path=f"{scheme}://{bucket}/out/rejects.csv",
        rejects_conn_id=connection_id,
        max_failed_records=1,
        outlets=[],
        **SERVICE,
        **table,
    )
    results.outlets = []  # the events of outlets have tests of their own
    manifest = results.execute(context)
    MLBatchHook().cancel_batch("picky", "1", execution_id)
    fs.invalidate_cache()
    found = {path.rpartition("/")[2]: fs.cat_file(path) for path in fs.find(f"{bucket}/out")}
    assert set(found) == {"cars.parquet", "cars.parquet.manifest.json", "rejects.csv"}
    scored = parquet.read_table(io.BytesIO(found["cars.parquet"]))
    assert scored.column("id").to_pylist() == ["a", "b", "c"]
    assert scored.column("y").to_pylist() == [2.0, None, 3.0]
    assert scored.column("mlbatch_success").to_pylist() == [True, False, True]
    assert found["rejects.csv"].decode().splitlines()[1].startswith('"b",-1')
    assert json.loads(found["cars.parquet.manifest.json"]) == manifest


def test_a_bucket_that_is_not_there(context: Any, s3: tuple[str, Any]) -> None:
    score = BatchScoreOperator(
        task_id="score",
        input_path="s3://no-such-bucket/cars.parquet",
        input_conn_id="aws_test",
        **SERVICE,
    )
    with pytest.raises(AirflowFailException, match=r"s3://.*no-such-bucket/cars\.parquet"):
        score.execute(context)


def test_files_of_several_folders_at_once(s3: tuple[str, Any]) -> None:
    """One file is half there when another one, of another folder, begins and ends."""
    from airflow_mlbatch.datasets.downloads import ArtifactDownload
    from airflow_mlbatch.operators.locations import location

    bucket, fs = s3
    dest = location(f"s3://{bucket}/plots", "aws_test")
    download = ArtifactDownload(dest, "{index}/{file_name}", "some-execution", "some task")

    def fetch_second(open_sink: Any) -> None:
        open_sink().feed(b"second")

    def fetch_first(open_sink: Any) -> None:
        sink = open_sink()
        sink.feed(b"fir")
        download.fetch(1, "b.txt", "1/b.txt", fetch_second)
        sink.feed(b"st")

    assert download.fetch(0, "a.txt", "0/a.txt", fetch_first).bytes == 5
    fs.invalidate_cache()
    assert fs.cat_file(f"{bucket}/plots/0/a.txt") == b"first"
    assert fs.cat_file(f"{bucket}/plots/1/b.txt") == b"second"
