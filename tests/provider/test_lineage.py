"""What OpenLineage hears of a real Dag run, field by field."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from airflow.providers.common.compat.sdk import AirflowException

from airflow_mlbatch.hooks.locations import location
from airflow_mlbatch.operators import BatchResultsOperator, BatchScoreOperator
from airflow_mlbatch.operators.lineage_facets import Origin, Table, dataset_name
from airflow_mlbatch.protocol.services import Parameter, Service
from tests.provider.airflow_side import tell_of_assets
from tests.provider.conftest import connection_to, connection_to_s3
from tests.server_process import RunningServer

PAGE = Path(__file__).parents[2] / "docs" / "lineage.md"
DAG_FILE = Path(__file__).with_name("dags") / "lineage.py"
TABLE = b"id,size\na,4\nb,-1\nc,9\n"
SHOWN_URL = "http://mlserver:12800"
OWN = [
    {"name": "mlbatch_index", "type": "int64"},
    {"name": "mlbatch_success", "type": "bool"},
    {"name": "mlbatch_error", "type": "string"},
]


@dataclass(frozen=True)
class Run:
    """A Dag run that is over.

    :param events: the last one of each task
    :param folder: of the tables
    :param url: of the scoring server
    """

    events: dict[str, dict[str, Any]]
    folder: Path
    url: str

    def inputs(self, task_id: str) -> list[dict[str, Any]]:
        return [plain(each) for each in self.events[f"lineage.{task_id}"]["inputs"]]

    def outputs(self, task_id: str) -> list[dict[str, Any]]:
        return [plain(each) for each in self.events[f"lineage.{task_id}"]["outputs"]]

    # --- what is expected ------------------------------------------------------------------------

    @property
    def table(self) -> dict[str, Any]:
        """The table that is scored, as an input."""
        fields = [{"name": "id", "type": "string"}, {"name": "size", "type": "string"}]
        return {
            "namespace": "file",
            "name": f"{self.folder}/in.csv",
            "facets": {"schema": {"fields": fields}},
        }

    @property
    def results(self) -> dict[str, Any]:
        """The results on the server, as an input."""
        return {
            "namespace": self.url,
            "name": "picky/1",
            "facets": {"schema": {"fields": [{"name": "y", "type": "numeric"}]}},
        }

    def from_table(self, column: str, subtype: str, description: str = "") -> dict[str, Any]:
        made = {"type": "DIRECT", "subtype": subtype, "masking": False, "description": description}
        return {
            "namespace": "file",
            "name": f"{self.folder}/in.csv",
            "field": column,
            "transformations": [made],
        }

    @property
    def scored(self) -> dict[str, Any]:
        """What comes from the input."""
        return self.from_table("size", "TRANSFORMATION", "scored by picky, version 1")

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a scored table, and where they come from."""
        identity = {"type": "DIRECT", "subtype": "IDENTITY", "masking": False, "description": ""}
        result = {"namespace": self.url, "name": "picky/1", "field": "y"}
        return {
            "schema": {
                "fields": [
                    {"name": "id", "type": "string"},
                    {"name": "size", "type": "double"},
                    {"name": "y", "type": "double"},
                    *OWN,
                ]
            },
            "columnLineage": {
                "fields": {
                    "id": {"inputFields": [self.from_table("id", "IDENTITY")]},
                    "size": {"inputFields": [self.from_table("size", "IDENTITY")]},
                    "y": {"inputFields": [{**result, "transformations": [identity]}, self.scored]},
                },
            },
        }


def plain(found: Any) -> Any:
    """Without empty values, and what the OpenLineage client adds to everything."""
    if isinstance(found, list):
        return [plain(each) for each in found]
    if not isinstance(found, dict):
        return found
    return {
        key: plain(value)
        for key, value in found.items()
        if key not in ("_producer", "_schemaURL") and value not in ({}, [], None)
    }


# Of the session, so that it comes first, and the reason to skip is this one.
@pytest.fixture(scope="session")
def openlineage() -> None:
    pytest.importorskip(
        "airflow.providers.openlineage",
        reason="apache-airflow-providers-openlineage is not installed (group lineage)",
    )


@pytest.fixture(scope="module")
def run(
    openlineage: None,
    server: RunningServer,
    s3_server: str,
    airflow_database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    connection, fs = connection_to_s3(s3_server)
    fs.mkdir("lineage")
    fs.pipe_file("lineage/in.csv", TABLE)
    folder = tmp_path_factory.mktemp("lineage")
    for name in ("in.csv", "by_hand.csv"):
        (folder / name).write_bytes(TABLE)
    events = folder / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(events), "append": True}
    environment = {
        **os.environ,
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAG_FILE.parent),
        "AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(server),
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        # A busy machine takes longer than the ten seconds after which an event is given up.
        "AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT": "120",
        "AIRFLOW_CONN_AWS_TEST": connection,
        "MLBATCH_TEST_TABLES": str(folder),
        "MLBATCH_TEST_BUCKET": "s3://lineage",
    }
    with (folder / "log").open("w") as log:
        tell_of_assets(environment, log)
        subprocess.run(
            [sys.executable, str(DAG_FILE)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    assert events.exists(), (folder / "log").read_text()[-6000:]
    found = [json.loads(line) for line in events.read_text().splitlines()]
    last = {each["job"]["name"]: each for each in found if each["eventType"] != "START"}
    return Run(last, folder, server.url)


@pytest.mark.parametrize("task_id", ["score", "later"])
def test_scoring(run: Run, task_id: str) -> None:
    assert run.events[f"lineage.{task_id}"]["eventType"] == "COMPLETE"
    assert run.inputs(task_id) == [run.table]
    facets = {
        **run.results["facets"],
        "columnLineage": {"fields": {"y": {"inputFields": [run.scored]}}},
    }
    counts = {"outputStatistics": {"rowCount": 3}}
    assert run.outputs(task_id) == [{**run.results, "facets": facets, "outputFacets": counts}]


def test_results(run: Run) -> None:
    assert run.events["lineage.results"]["eventType"] == "COMPLETE"
    assert run.inputs("results") == [run.table, run.results]
    scored, rejects = run.outputs("results")
    out, rejected = run.folder / "out.parquet", run.folder / "rejects.csv"
    assert scored == {
        "namespace": "file",
        "name": str(out),
        "facets": run.columns,
        "outputFacets": {
            "outputStatistics": {"rowCount": 3, "size": out.stat().st_size, "fileCount": 1}
        },
    }
    (shown,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    example = json.loads(shown.replace("/data", str(run.folder)).replace(SHOWN_URL, run.url))
    example["outputFacets"]["outputStatistics"]["size"] = out.stat().st_size
    assert example == scored
    table = parquet.read_table(out)
    assert run.columns["schema"]["fields"] == [
        {"name": field.name, "type": str(field.type)} for field in table.schema
    ]
    assert rejects == {
        "namespace": "file",
        "name": str(rejected),
        "facets": {
            "schema": {"fields": [*run.table["facets"]["schema"]["fields"], OWN[0], OWN[2]]},
            "columnLineage": {
                "fields": {
                    name: {"inputFields": [run.from_table(name, "IDENTITY")]}
                    for name in ("id", "size")
                }
            },
        },
        "outputFacets": {"outputStatistics": {"rowCount": 1, "size": rejected.stat().st_size}},
    }


def test_results_in_object_storage(run: Run) -> None:
    table, results = run.inputs("in_s3")
    assert table == {**run.table, "namespace": "s3://lineage", "name": "in.csv"}
    assert results == run.results
    (scored,) = run.outputs("in_s3")
    assert (scored["namespace"], scored["name"]) == ("s3://lineage", "folder/out.csv")
    assert scored["facets"]["schema"]["fields"] == [{"name": "y", "type": "double"}, *OWN]
    (from_results, from_table) = scored["facets"]["columnLineage"]["fields"]["y"]["inputFields"]
    assert from_results["namespace"] == run.url
    assert from_table == {**run.scored, "namespace": "s3://lineage", "name": "in.csv"}
    assert scored["outputFacets"]["outputStatistics"]["rowCount"] == 3


def test_files(run: Run) -> None:
    assert run.inputs("files") == [run.results]
    notes = list((run.folder / "files").rglob("note.txt"))
    size = sum(note.stat().st_size for note in notes)
    assert run.outputs("files") == [
        {
            "namespace": "file",
            "name": f"{run.folder}/files",
            "outputFacets": {"outputStatistics": {"fileCount": 2, "size": size}},
        }
    ]


def test_a_table_in_shards_is_told_by_its_commit(run: Run) -> None:
    assert run.events["lineage.large.commit"]["eventType"] == "COMPLETE"
    assert run.inputs("large.commit") == [run.table, run.results]
    parts = list((run.folder / "large").glob("part-*"))
    size = sum(part.stat().st_size for part in parts)
    assert run.outputs("large.commit") == [
        {
            "namespace": "file",
            "name": f"{run.folder}/large",
            "facets": run.columns,
            "outputFacets": {
                "outputStatistics": {"rowCount": 3, "size": size, "fileCount": len(parts)}
            },
        }
    ]
    assert run.outputs("large.shards.write") == []


def test_airflows_lineage_collector_hears_once_of_each_table(run: Run) -> None:
    """The task tells OpenLineage nothing itself, so the provider takes what was collected."""
    assert run.events["lineage.by_hand"]["eventType"] == "COMPLETE"
    # `dag.test()` runs all tasks in one process, which has one collector.
    own = [each for each in run.inputs("by_hand") if "by_hand" in each["name"]]
    assert own == [{"namespace": "file", "name": f"{run.folder}/by_hand.csv"}]


def test_a_failure_tells_what_was_meant_and_why_it_failed(run: Run) -> None:
    event = run.events["lineage.too_many"]
    assert event["eventType"] == "FAIL"
    assert run.inputs("too_many") == [run.table, run.results]
    assert run.outputs("too_many") == [{"namespace": "file", "name": f"{run.folder}/never.parquet"}]
    message = event["run"]["facets"]["errorMessage"]["message"]
    assert "1 of 3 records failed, max_failed_records=0 allows 0" in message


# --- what is known and what is not ---------------------------------------------------------------


@pytest.fixture
def listening(openlineage: None) -> Iterator[None]:
    """As in a task of an Airflow that has the provider switched on."""
    name = "airflow.providers.openlineage.plugins.listener"
    importlib.import_module(name)
    yield
    del sys.modules[name]


def told_by(found: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs as an event has them, of what a method of an operator returns."""
    from openlineage.client.serde import Serde

    inputs, outputs = (
        [plain(Serde.to_dict(each)) for each in side] for side in (found.inputs, found.outputs)
    )
    return inputs, outputs


def test_json_lines_tell_no_columns_and_frames_come_from_one_output(
    listening: None, context: Any, server: RunningServer, tmp_path: Path
) -> None:
    values = {"a": True, "b": 2, "c": 0.5, "d": "text", "e": [1, 2], "f": [[1, 2]], "g": {"p": [1]}}
    row = {name.upper(): value for name, value in values.items()}
    table, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    table.write_text(json.dumps({**row, "note": "kept"}) + "\n", encoding="utf-8")
    service: dict[str, Any] = {"service_name": "every-type", "service_version": "1"}
    source: dict[str, Any] = {
        "input_path": str(table),
        "columns": {name.lower(): name for name in row},
    }
    score = BatchScoreOperator(
        task_id="score", wait_for_completion=True, poll_interval=0.05, **service, **source
    )
    execution_id = score.execute(context)
    results = BatchResultsOperator(
        task_id="results", execution_id=execution_id, output_path=str(out), **service, **source
    )
    results.execute(context)
    inputs, (scored,) = told_by(results.get_openlineage_facets_on_complete(None))
    assert inputs[0] == {"namespace": "file", "name": str(table)}
    assert [(each["name"], each["type"]) for each in inputs[1]["facets"]["schema"]["fields"]] == [
        *(("a", "logical"), ("b", "integer"), ("c", "numeric"), ("d", "character")),
        *(("e", "vector"), ("f", "matrix"), ("g", "data.frame")),
    ]
    fields = scored["facets"]["columnLineage"]["fields"]
    assert list(fields) == [*row, "note", "a", "b", "c", "d", "e", "f", "g_p"]
    assert [each["field"] for each in fields["note"]["inputFields"]] == ["note"]
    of_frame, *of_table = fields["g_p"]["inputFields"]
    assert (of_frame["namespace"], of_frame["field"]) == (server.url, "g")
    assert of_frame["transformations"][0]["subtype"] == "TRANSFORMATION"
    assert [each["field"] for each in of_table] == list(row)
    assert fields["a"]["inputFields"][0]["transformations"][0]["subtype"] == "IDENTITY"


def test_records_have_no_dataset(listening: None, context: Any, server: RunningServer) -> None:
    score = BatchScoreOperator(
        task_id="score", service_name="double", service_version="1", records={"x": [1, 2]}
    )
    score.execute(context)
    inputs, (results,) = told_by(score.get_openlineage_facets_on_complete(None))
    assert inputs == []
    # How many rows there are is not known yet: the task has not waited.
    assert results == {
        "namespace": server.url,
        "name": "double/1",
        "facets": {"schema": {"fields": [{"name": "y", "type": "numeric"}]}},
    }


def test_what_a_task_has_not_found_out_is_left_out(
    listening: None, context: Any, server: RunningServer, tmp_path: Path
) -> None:
    score = BatchScoreOperator(
        task_id="score",
        service_name="never-published",
        service_version="1",
        input_path=str(tmp_path / "in.csv"),
    )
    with pytest.raises(AirflowException):
        score.execute(context)
    inputs, outputs = told_by(score.get_openlineage_facets_on_failure(None))
    assert inputs == [{"namespace": "file", "name": f"{tmp_path}/in.csv"}]
    assert outputs == [{"namespace": server.url, "name": "never-published/1"}]


def test_without_a_connection_the_server_is_no_dataset(
    openlineage: None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = BatchResultsOperator(
        task_id="results",
        service_name="double",
        service_version="1",
        execution_id="1",
        output_path=str(tmp_path / "out.csv"),
        mlbatch_conn_id="nowhere",
    )
    inputs, outputs = told_by(results.get_openlineage_facets_on_failure(None))
    assert inputs == []
    assert outputs == [{"namespace": "file", "name": f"{tmp_path}/out.csv"}]
    logged = caplog.text + capsys.readouterr().out
    assert "OpenLineage is not told of the scoring server: connection 'nowhere'" in logged


def test_a_service_with_very_many_columns_tells_no_column_lineage(
    openlineage: None, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = tuple(Parameter(f"x{n}", "numeric") for n in range(300))
    outputs = tuple(Parameter(f"y{n}", "numeric") for n in range(100))
    origin = Origin(Service("wide", "1", inputs, outputs), Table("file", "/in.csv"), None)
    columns = [(output.name, "double") for output in outputs]
    assert list(origin.facets(Table("file", "/few.csv", columns[:50]))) == ["columnLineage"]
    assert origin.facets(Table("file", "/out.csv", columns)) == {}
    assert "no column lineage of /out.csv: 100 columns may come from 300 inputs" in caplog.text


# --- names ---------------------------------------------------------------------------------------


def test_local_files_have_the_names_that_other_providers_give_them(openlineage: None) -> None:
    from airflow.providers.common.io.assets.file import convert_asset_to_openlineage, create_asset

    theirs = convert_asset_to_openlineage(create_asset(path="/data/cars.csv"), None)
    assert (theirs.namespace, theirs.name) == ("file", "/data/cars.csv")
    for path in ("/data/cars.csv", "file:///data/cars.csv", "/data/../data/cars.csv"):
        assert dataset_name(location(path)) == (theirs.namespace, theirs.name)
    assert dataset_name(location("cars.csv")) == ("file", os.path.abspath("cars.csv"))


def test_objects_have_the_names_that_other_providers_give_them(
    openlineage: None, s3: tuple[str, Any]
) -> None:
    from airflow.providers.amazon.aws.assets.s3 import convert_asset_to_openlineage, create_asset

    bucket, _ = s3
    for key in ("folder/cars.csv", ""):
        theirs = convert_asset_to_openlineage(create_asset(bucket=bucket, key=key), None)
        for path in (f"s3://{bucket}/{key}", f"s3://aws_test@{bucket}/{key}"):
            place = location(path, None if "@" in path else "aws_test")
            assert dataset_name(place) == (theirs.namespace, theirs.name)


def test_blobs_have_the_names_of_the_conventions(openlineage: None, azure: tuple[str, Any]) -> None:
    from openlineage.client.naming.dataset import ABFSS

    container, _ = azure
    theirs = ABFSS(container, "devstoreaccount1", "folder/cars.csv")
    for scheme in ("abfs", "abfss"):
        place = location(f"{scheme}://{container}/folder/cars.csv", "azure_test")
        assert dataset_name(place) == (theirs.get_namespace(), theirs.get_name())


# --- the lineage collector ------------------------------------------------------------------------

# A task of Airflow's, with a plugin that reads what is collected, or without one.
COLLECTED = """
import sys
from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector
from airflow.sdk.execution_time import task_runner
from airflow_mlbatch.datasets.readers import open_rows
from airflow_mlbatch.datasets.writers import open_table
from airflow_mlbatch.hooks.locations import location

def copy():
    rows = open_rows(location(sys.argv[1]))
    with open_table(location(sys.argv[2]), schema=rows.schema) as table:
        for batch in rows:
            table.write(batch)

copy()  # At a prompt nothing is collected.
task_runner.SUPERVISOR_COMMS = object()
for _ in range(2):
    copy()
found = get_hook_lineage_collector().collected_assets
print([each.asset.uri for each in found.inputs], [each.asset.uri for each in found.outputs])
"""
PLUGIN = """
from airflow.plugins_manager import AirflowPlugin
from airflow.providers.common.compat.sdk import HookLineageReader

class Reading(AirflowPlugin):
    name = "reading"
    hook_lineage_readers = [HookLineageReader]
"""


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "not read"])
def test_what_is_collected(tmp_path: Path, is_read: bool) -> None:
    (tmp_path / "plugins").mkdir()
    if is_read:
        (tmp_path / "plugins" / "reading.py").write_text(PLUGIN, encoding="utf-8")
    table, copy = tmp_path / "größe.csv", tmp_path / "copy.csv"
    table.write_bytes(TABLE)
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED, str(table), str(copy)],
        env={**os.environ, "AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path / "plugins")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = [f"file://{tmp_path}/gr%C3%B6%C3%9Fe.csv"]
    written = [f"file://{copy}"]
    assert done.stdout.splitlines()[-1] == (f"{read} {written}" if is_read else "[] []")


def test_console_output_comes_from_no_column(openlineage: None) -> None:
    service = Service("loud", "1", (Parameter("x", "numeric"),), (Parameter("y", "numeric"),))
    origin = Origin(service, Table("file", "/in.csv"), None, "printed")
    table = Table("file", "/out.csv", [("x", "double"), ("y", "double"), ("printed", "string")])
    assert list(origin.facets(table)["columnLineage"].fields) == ["x", "y"]
