"""Whole Dags against a live server: tables in shards, mapped tables, assets.

One process runs all Dags, because starting Airflow takes longer than most of them; what each did is
looked at afterwards, from the outside.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import DAG, task_group

from airflow_mlbatch.errors import BatchError, InputError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import BatchDeleteOperator
from airflow_mlbatch.operators.shards import (
    DatasetCommitOperator,
    ShardPlanOperator,
    ShardResultsOperator,
)
from airflow_mlbatch.task_groups import BatchScoreTaskGroup
from tests.patience import PATIENCE
from tests.provider.airflow_side import tell_of_assets
from tests.provider.conftest import connection_to
from tests.server_process import RunningServer

# Airflow 3.0's own way of making paths: nothing that we could do otherwise.
pytestmark = pytest.mark.filterwarnings(
    "ignore:in a future version of UPath:PendingDeprecationWarning"
)

DAGS = Path(__file__).parent / "dags"
NAMED: dict[str, Any] = {"service_name": "double", "service_version": "1"}
RUNS = [
    "large_many",
    "large_many:input=shorter.parquet",
    "large_single",
    "large_jsonl",
    "large_text",
    "large_stubborn",
    "large_allowed",
    "large_refused",
    "large_crowded",
    "large_empty_skip",
    "large_empty_fail",
    "large_empty_succeed",
    "mapped_tables",
    "mapped_roles",
    "fixed_path",
]


@dataclass
class Ran:
    """What the Dags did.

    :param runs: by the words that asked for it
    :param folder: holds the tables
    :param log: everything that was printed
    :param kept_before: executions of the failing service that other tests have started
    """

    runs: dict[str, dict[str, Any]]
    folder: Path
    log: str
    kept_before: set[str]

    def states(self, run: str) -> dict[str, str]:
        return {name: task["state"] for name, task in self.runs[run]["tasks"].items()}


@pytest.fixture(scope="module")
def ran(
    server: RunningServer, airflow_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Ran:
    folder = tmp_path_factory.mktemp("tables")
    make_tables(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server))
        hook = MLBatchHook()
        kept_before = set(hook.list_batch_executions("picky", "1"))
        hook.close()
    outcome = folder / "outcome.json"
    environment = {
        **os.environ,
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(server),
        "MLBATCH_TEST_TABLES": str(folder),
    }
    with (folder / "log").open("w") as log:
        tell_of_assets(environment, log)
        subprocess.run(
            [sys.executable, str(DAGS / "run.py"), str(outcome), *RUNS],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    written = re.sub(r"\x1b\[[0-9;]*m", "", (folder / "log").read_text())
    assert outcome.exists(), written[-4000:]
    told = json.loads(outcome.read_text())
    return Ran(dict(zip(RUNS, told, strict=True)), folder, written, kept_before)


def make_tables(folder: Path) -> None:
    for case in (
        *("many", "single", "jsonl", "text", "stubborn", "allowed", "refused", "crowded"),
        *("empty_skip", "empty_fail", "empty_succeed", "mapped"),
    ):
        (folder / case).mkdir()
    for name, rows in (("in", 1000), ("shorter", 320)):
        table = pa.table({"x": list(range(rows)), "id": [f"r{n}" for n in range(rows)]})
        parquet.write_table(table, folder / "many" / f"{name}.parquet", row_group_size=64)
    for case, rows in (("single", 7), ("jsonl", 10)):
        write_csv(folder / case, {"x": list(range(rows))})
    # Alone, each shard of two rows would take its codes and levels for something else.
    lines = ["size,x,code,level,day", '5",0,1,1,07', '"7,1,2,2,1', "9,2,a,2.5,2", "11,3,4,NA,3"]
    (folder / "text" / "in.csv").write_text("\n".join(lines))
    numbers = [-n if n in (6, 8) else n for n in range(15)]
    write_csv(folder / "stubborn", {"key": [f"key{n}" for n in range(15)], "x": numbers})
    for case, failing in (
        ("allowed", (41, 43, 47)),
        ("refused", (5, 41, 99)),
        ("crowded", (41, 43, 47)),
    ):
        write_csv(folder / case, {"x": [-1 if n in failing else n for n in range(100)]})
    for decision in ("skip", "fail", "succeed"):
        write_csv(folder / f"empty_{decision}", {"x": [], "id": []})
    for place, name in enumerate("abc"):
        write_csv(folder / "mapped", {"x": [place, place + 1]}, f"{name}.csv")


def write_csv(folder: Path, columns: dict[str, list[Any]], name: str = "in.csv") -> None:
    with (folder / name).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("part-"))


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest, after a look whether it tells the truth."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    assert (folder / "_SUCCESS").exists()
    assert [file["name"] for file in manifest["files"]] == parts(folder)
    for file in manifest["files"]:
        data = (folder / file["name"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(file["rows"] for file in manifest["files"]) == manifest["rows"]
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "_SUCCESS", *parts(folder)}
    return manifest


# --- what the Dags did ---------------------------------------------------------------------------


def test_many_shards(ran: Ran, hook: MLBatchHook) -> None:
    assert ran.runs["large_many"]["state"] == "success"
    states = ran.states("large_many")
    assert len(states) == 2 * 4 + 3
    assert set(states.values()) == {"success"}
    # The second run, of a shorter table, has replaced the dataset of the first.
    assert ran.runs[RUNS[1]]["state"] == "success"
    assert len(ran.states(RUNS[1])) == 2 * 2 + 3
    folder = ran.folder / "many" / "out"
    manifest = manifest_of(folder)
    assert (manifest["rows"], manifest["failed"], len(manifest["files"])) == (320, 0, 2)
    rows = pa.concat_tables(parquet.read_table(folder / name) for name in parts(folder)).to_pylist()
    assert [list(row) for row in rows[:1]] == [
        ["id", "x", "y", "mlbatch_index", "mlbatch_success", "mlbatch_error"]
    ]
    assert [(row["id"], row["x"], row["y"], row["mlbatch_index"]) for row in rows] == [
        (f"r{n}", n, 2.0 * n, n) for n in range(320)
    ]
    # cleanup=True has deleted the executions of both.
    assert set(hook.list_batch_executions("double", "1")).isdisjoint(manifest["execution_ids"])


def test_the_dataset_is_announced_once(ran: Ran) -> None:
    """By the commit with the counts of the whole, and not by each part on the way."""
    for run, rows in zip(RUNS[:2], (1000, 320), strict=True):
        (event,) = ran.runs[run]["events"]
        assert event["uri"] == f"file://{ran.folder}/many/out"
        assert event["task"] == "table.commit"
        assert event["extra"] == {"rows": rows, "succeeded": rows, "failed": 0}


def test_single_shard_of_csv(ran: Ran) -> None:
    assert ran.runs["large_single"]["state"] == "success"
    manifest = manifest_of(ran.folder / "single" / "out")
    assert [file["name"] for file in manifest["files"]] == ["part-00000.csv"]
    with (ran.folder / "single" / "out" / "part-00000.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(row["y"]), row["mlbatch_index"]) for row in rows] == [
        (2.0 * n, str(n)) for n in range(7)
    ]
    assert "x" not in rows[0]


def test_shards_of_json_lines(ran: Ran) -> None:
    folder = ran.folder / "jsonl" / "out"
    manifest_of(folder)
    assert parts(folder) == [f"part-{n:05d}.jsonl" for n in range(2)]
    texts = [(folder / name).read_text() for name in parts(folder)]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    assert [(row["y"], row["mlbatch_index"]) for row in lines] == [(2.0 * n, n) for n in range(10)]
    # A templated path is no asset that could be known beforehand.
    assert ran.runs["large_jsonl"]["events"] == []


def test_shards_of_text_with_quotes_in_it(ran: Ran) -> None:
    folder = ran.folder / "text" / "out"
    assert manifest_of(folder)["rows"] == 4
    tables = [parquet.read_table(folder / name) for name in parts(folder)]
    assert pa.concat_tables(tables)["size"].to_pylist() == ['5"', '"7', "9", "11"]


def test_shards_agree_on_the_types_of_text(ran: Ran) -> None:
    folder = ran.folder / "text" / "out"
    tables = [parquet.read_table(folder / name) for name in parts(folder)]
    assert len(tables) == 2
    for table in tables:
        types = {name: str(table.schema.field(name).type) for name in table.schema.names[:5]}
        assert types == {
            "size": "string",
            "x": "double",
            "code": "string",
            "level": "double",
            "day": "string",
        }
    whole = pa.concat_tables(tables)
    assert whole["level"].to_pylist() == [1.0, 2.0, 2.5, None]
    assert whole["code"].to_pylist() == ["1", "2", "a", "4"]


def test_a_shard_is_retried_alone(ran: Ran) -> None:
    assert ran.runs["large_stubborn"]["state"] == "success"
    tasks = ran.runs["large_stubborn"]["tasks"]
    tries = {
        name.removeprefix("table.shards."): task["try_number"]
        for name, task in tasks.items()
        if "shards" in name
    }
    assert tries == {
        **{f"score[{n}]": 1 for n in range(3)},
        "write[0]": 1,
        "write[1]": 2,
        "write[2]": 1,
    }
    manifest = manifest_of(ran.folder / "stubborn" / "out")
    assert (manifest["rows"], manifest["failed"]) == (15, 0)
    # The second shard has two batches: its own, and that of its failed rows.
    assert [len(file["execution_ids"]) for file in manifest["files"]] == [1, 2, 1]
    # What a second try has printed is in the table; the other shards have printed nothing.
    assert manifest["columns"][-1] == {"name": "printed", "type": "string"}
    out = ran.folder / "stubborn" / "out"
    rows = [row for name in parts(out) for row in parquet.read_table(out / name).to_pylist()]
    assert {row["mlbatch_index"]: row["printed"] for row in rows if row["printed"]} == {
        6: "gave in to key6\n",
        8: "gave in to key8\n",
    }


def test_policy_over_the_whole_table(ran: Ran) -> None:
    """Three of a hundred are allowed, also when they are three of forty in one shard."""
    assert ran.runs["large_allowed"]["state"] == "success"
    manifest = manifest_of(ran.folder / "allowed" / "out")
    assert (manifest["rows"], manifest["succeeded"], manifest["failed"]) == (100, 97, 3)
    check_rejects(ran.folder / "large_allowed-rejects", [41, 43, 47], whole=3)


def check_rejects(folder: Path, indexes: list[int], *, whole: int) -> None:
    assert len(parts(folder)) == whole
    rows = pa.concat_tables(parquet.read_table(folder / name) for name in parts(folder)).to_pylist()
    assert [(row["mlbatch_index"], row["x"]) for row in rows] == [(n, "-1") for n in indexes]
    assert all("x is negative" in row["mlbatch_error"] for row in rows)


@pytest.mark.parametrize(
    ("case", "failed_task"), [("refused", "table.commit"), ("crowded", "table.shards.write[1]")]
)
def test_too_many_failures(ran: Ran, hook: MLBatchHook, case: str, failed_task: str) -> None:
    """Too many in all shards together are seen by the commit, too many in one by that one."""
    run = f"large_{case}"
    assert ran.runs[run]["state"] == "failed"
    states = ran.states(run)
    assert states[failed_task] == "failed"
    assert states["table.commit"] in ("failed", "upstream_failed")
    # Nothing is published, nothing is left on the server, the rejects are there.
    assert not (ran.folder / case / "out" / "_SUCCESS").exists()
    assert not (ran.folder / case / "out" / "manifest.json").exists()
    assert states["table.cleanup"] == "success"
    assert set(hook.list_batch_executions("picky", "1")) <= ran.kept_before
    check_rejects(
        ran.folder / f"{run}-rejects", [5, 41, 99] if case == "refused" else [41, 43, 47], whole=3
    )
    assert ran.runs[run]["events"] == []
    assert ran.runs[run]["tasks"][failed_task]["try_number"] == 1  # a retry would not help
    text = " ".join(ran.log.split())
    first = 5 if case == "refused" else 41
    assert re.search(
        rf"3 of (?:100|40) records failed, .*? record {first} \(x=.?-1.*?x is negative", text
    )


def test_empty_tables(ran: Ran) -> None:
    assert ran.runs["large_empty_skip"]["state"] == "success"
    assert ran.states("large_empty_skip")["table.plan"] == "skipped"
    assert ran.states("large_empty_skip")["table.commit"] == "skipped"
    assert ran.runs["large_empty_fail"]["state"] == "failed"
    assert ran.states("large_empty_fail")["table.plan"] == "failed"
    for decision in ("skip", "fail"):
        assert not (ran.folder / f"empty_{decision}" / "out").exists()
    assert ran.runs["large_empty_succeed"]["state"] == "success"
    assert ran.states("large_empty_succeed")["table.commit"] == "success"
    folder = ran.folder / "empty_succeed" / "out"
    manifest = manifest_of(folder)
    assert manifest["rows"] == 0
    table = parquet.read_table(folder / "part-00000.parquet")
    assert table.num_rows == 0
    assert table.schema.names == [
        *("x", "id", "y", "mlbatch_index", "mlbatch_success", "mlbatch_error")
    ]


def test_mapped_tables(ran: Ran) -> None:
    run = ran.runs["mapped_tables"]
    assert run["state"] == "success", ran.log[-3000:]
    for place, name in enumerate("abc"):
        rows = parquet.read_table(ran.folder / "mapped" / f"{name}.scored.parquet").to_pylist()
        assert [row["y"] for row in rows] == [2.0 * place, 2.0 * (place + 1)]
    # Paths that are known only when the tasks run reach Airflow through the alias.
    assert sorted(event["uri"] for event in run["events"]) == [
        f"file://{ran.folder}/mapped/{name}.scored.parquet" for name in "abc"
    ]
    assert {event["extra"]["rows"] for event in run["events"]} == {2}


def test_every_role_is_mappable(ran: Ran) -> None:
    run = ran.runs["mapped_roles"]
    assert run["state"] == "success", ran.log[-3000:]
    assert set(run["tasks"]) == {
        f"{task_id}[{place}]"
        for task_id in ("score", "wait", "files", "delete")
        for place in range(2)
    }
    found = sorted(str(file.relative_to(ran.folder)) for file in ran.folder.glob("roles/*/*/*"))
    assert found == ["roles/0/0/data.bin", "roles/1/0/data.bin", "roles/1/1/data.bin"]
    assert ran.log.count("deleted 1 executions") == 2


def test_fixed_path(ran: Ran) -> None:
    (event,) = ran.runs["fixed_path"]["events"]
    assert event["uri"] == f"file://{ran.folder}/fixed/out.jsonl"
    assert (event["extra"]["rows"], event["extra"]["failed"]) == (2, 0)
    assert isinstance(event["extra"]["execution_id"], str)


# --- single tasks --------------------------------------------------------------------------------


def plan(folder: Path, **kwargs: Any) -> ShardPlanOperator:
    arguments = {
        "service_name": "double",
        "service_version": "1",
        "input_path": f"{folder}/in.csv",
        "output_path": f"{folder}/out",
        **kwargs,
    }
    return ShardPlanOperator(task_id="plan", **arguments)


def test_plan(context: Any, tmp_path: Path) -> None:
    write_csv(tmp_path, {"x": list(range(25))})
    (tmp_path / "out").mkdir()
    for name in ("_SUCCESS", "manifest.json", "part-00000.parquet"):
        (tmp_path / "out" / name).touch()
    planned = plan(tmp_path, records_per_batch="10", max_failed_records="0.1").execute(context)
    assert [each["row_range"] for each in planned] == [[0, 10], [10, 20], [20, 25]]
    assert {each["max_failed_records"] for each in planned} == {2}
    assert json.loads(json.dumps(planned)) == planned
    # The dataset of an earlier run does not pass for complete any more.
    assert parts(tmp_path / "out") == [path.name for path in (tmp_path / "out").iterdir()]


def test_a_fraction_is_taken_as_it_was_written(context: Any, tmp_path: Path) -> None:
    write_csv(tmp_path, {"x": list(range(100))})
    (planned,) = plan(tmp_path, max_failed_records=0.29).execute(context)
    assert planned["max_failed_records"] == 29


def test_plan_beyond_the_map_length(context: Any, tmp_path: Path) -> None:
    write_csv(tmp_path, {"x": list(range(2049))})
    told = (
        "records_per_batch: found 1, which cuts 2,049 rows into 2,049 shards, but .core. "
        "max_map_length allows 1,024; choose records_per_batch=3 or more"
    )
    with pytest.raises(AirflowFailException, match=told):
        plan(tmp_path, records_per_batch=1).execute(context)
    assert not (tmp_path / "out").exists()
    assert len(plan(tmp_path, records_per_batch=3).execute(context)) == 683


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"on_empty": "panic"}, "on_empty: found 'panic'"),
        ({"records_per_batch": 0}, "records_per_batch: found 0"),
        ({"records_per_batch": "ten"}, "records_per_batch: found 'ten'"),
        ({"max_failed_records": 1.5}, "max_failed_records: found 1.5"),
        ({"columns": {"x": "nobody"}}, "field 'x': found no such column .*'nobody'"),
        ({"columns": {"z": "x"}}, "columns: found 'z'"),
        ({"input_path": "{tmp}/nothing.csv"}, "found no such file"),
        ({"input_path": "{tmp}/in.xlsx"}, "found no known format"),
        ({"service_version": "2"}, "404"),
        ({"output_path": "{tmp}"}, "output_path: found .* which holds input_path"),
        ({"output_path": "file://{tmp}/"}, "output_path: found .* which holds input_path"),
        ({"rejects_path": "{tmp}/out/"}, "rejects_path: found .* expected a folder of its own"),
        ({"rejects_path": "{tmp}"}, "rejects_path: found .* expected a folder of its own"),
        ({"output_path": "{tmp}/no/.."}, "output_path: found .* which holds input_path"),
        ({"format": "xlsx"}, "format: found 'xlsx', expected one of"),
        ({"format": "parquet.gz"}, "format: found 'parquet.gz', expected plain Parquet"),
        ({"console_column": "x"}, "console_column: found 'x', which is also the name of a kept"),
        ({"id_columns": ["id"]}, "id_columns: found 'id', expected columns of the input"),
        ({"keep_columns": "['x', 'y']"}, "keep_columns: found 'y', expected columns"),
        ({"columns": {"x": "y"}, "input_path": "{tmp}/y.csv"}, "keep_columns: found 'y', which"),
        ({"input_path": "{tmp}/m.jsonl"}, "output_path: found 'a' of type .*Parquet cannot hold"),
        ({"input_path": "{tmp}/b.parquet", "format": "csv"}, "output_path: found 'b' of type bin"),
        (
            {
                "input_path": "{tmp}/b.parquet",
                "format": "jsonl",
                "keep_columns": None,
                "rejects_path": "{tmp}/r",
            },
            "rejects_path: found 'b' of type binary",
        ),
    ],
)
def test_bad_plans(context: Any, tmp_path: Path, given: dict[str, Any], told: str) -> None:
    write_csv(tmp_path, {"x": [1, 2]})
    write_csv(tmp_path, {"y": [1, 2]}, "y.csv")
    (tmp_path / "m.jsonl").write_text('{"x": 1, "a": 1}\n{"x": 2, "a": "1"}\n')
    parquet.write_table(pa.table({"x": [1], "b": [b"1"]}), tmp_path / "b.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_SUCCESS").touch()
    given = {
        name: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for name, value in given.items()
    }
    with pytest.raises(AirflowFailException, match=told):
        plan(tmp_path, **given).execute(context)
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_plan_skips_an_empty_table(context: Any, tmp_path: Path) -> None:
    write_csv(tmp_path, {"x": []})
    with pytest.raises(AirflowSkipException, match="no records to score"):
        plan(tmp_path).execute(context)


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("pq", "part-00000.parquet"),
        ("NDJSON", "part-00000.jsonl"),
        (".csv.gz", "part-00000.csv.gz"),
    ],
)
def test_a_format_by_another_of_its_names(
    context: Any,
    hook: MLBatchHook,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    name: str,
) -> None:
    write_csv(tmp_path, {"x": [1, 2]})
    planned = plan(tmp_path, format=format).execute(context)
    told = write_shards(context, hook, tmp_path, planned, format=format)
    assert [part["name"] for part in told] == [name]
    assert commit(context, monkeypatch, tmp_path, planned, told, format=format)["rows"] == 2
    assert parts(tmp_path / "out") == [name]


def test_a_group_takes_its_service_from_default_args() -> None:
    given = {"service_name": "double", "service_version": "1", "mlbatch_conn_id": "mine"}
    with DAG("by_default", default_args={**given, "retries": 3}) as dag:
        BatchScoreTaskGroup("a", input_path="/in.csv", output_path="/a", cleanup=True)
        BatchScoreTaskGroup("b", service_version="2", input_path="/in.csv", output_path="/b")
    tasks: list[Any] = dag.tasks
    for task in tasks:
        version = "2" if task.task_id.startswith("b.") else "1"
        assert (task.service_name, task.service_version) == ("double", version)
        assert (task.mlbatch_conn_id, task.retries) == ("mine", 3)
    assert len(dag.tasks) == 9
    with DAG("without"), pytest.raises(TypeError, match="service_name"):
        BatchScoreTaskGroup("a", service_version="1", input_path="/in.csv", output_path="/a")


def test_a_group_inside_a_mapped_one_is_refused() -> None:
    @task_group
    def tables(path: str) -> None:
        BatchScoreTaskGroup("t", input_path=path, output_path="/o", **NAMED)

    with DAG("twice_mapped"), pytest.raises(InputError, match="tables.t: found inside a mapped"):
        tables.expand(path=["/a.csv", "/b.csv"])


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_a_dataset_without_rows_has_the_columns_of_any_other(
    context: Any,
    hook: MLBatchHook,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
) -> None:
    given = {
        "format": format,
        "keep_columns": "['x']",
        "id_columns": ["id"],
        "console_column": "printed",
    }
    write_csv(tmp_path, {"note": [], "x": [], "id": []})
    planned = plan(tmp_path, on_empty="succeed", **given).execute(context)
    assert planned == []
    source = f"{tmp_path}/in.csv"
    commit(context, monkeypatch, tmp_path, planned, [], input_path=source, **given)
    columns = [column["name"] for column in manifest_of(tmp_path / "out")["columns"]]
    own = ["mlbatch_index", "mlbatch_success", "mlbatch_error", "printed"]
    assert columns == ["id", "x", "y", *own]


def test_a_part_is_no_asset(tmp_path: Path) -> None:
    operator = ShardResultsOperator(
        task_id="write",
        service_name="double",
        service_version="1",
        execution_id="e",
        output_path=f"{tmp_path}/out",
        shard={"shard": 0, "start": 0, "stop": 1},
    )
    assert operator.outlets == []


def test_commit_wants_a_plan(context: Any, tmp_path: Path) -> None:
    operator = DatasetCommitOperator(
        task_id="commit",
        service_name="double",
        service_version="1",
        output_path=f"{tmp_path}/out",
        parts_task_id="write",
        plan_task_id="plan",
    )
    # Its task may have been cleared: the next attempt finds the plan.
    with pytest.raises(BatchError, match="plan_task_id: found None from plan"):
        operator.execute(context)
    context["ti"].pushed["return_value"] = "something else"
    with pytest.raises(
        AirflowFailException, match="plan_task_id: found 'something else' from plan"
    ):
        operator.execute(context)


def test_commit_waits_for_the_part_of_a_cleared_shard(
    context: Any, hook: MLBatchHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path, {"x": list(range(7))})
    planned = plan(tmp_path, records_per_batch=3).execute(context)
    told = write_shards(context, hook, tmp_path, planned)
    with pytest.raises(BatchError, match="found 2 parts from .*, expected 3"):
        commit(context, monkeypatch, tmp_path, planned, told[:2])
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    assert commit(context, monkeypatch, tmp_path, planned, told)["rows"] == 7


def test_commit_passes_over_shards_of_an_earlier_plan(
    context: Any, hook: MLBatchHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cleared after its table has shrunk: Airflow keeps what the shards that are no
    longer mapped had told."""
    write_csv(tmp_path, {"x": list(range(7))})
    planned = plan(tmp_path, records_per_batch=3).execute(context)
    before = write_shards(context, hook, tmp_path, planned)
    write_csv(tmp_path, {"x": list(range(2))})
    planned = plan(tmp_path, records_per_batch=3).execute(context)
    told = [*write_shards(context, hook, tmp_path, planned), *before[1:]]
    assert commit(context, monkeypatch, tmp_path, planned, told)["rows"] == 2
    assert manifest_of(tmp_path / "out")["rows"] == 2


def test_a_shard_that_is_written_anew_takes_the_mark_back(
    context: Any, hook: MLBatchHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path, {"x": list(range(4))})
    planned = plan(tmp_path, records_per_batch=2).execute(context)
    told = write_shards(context, hook, tmp_path, planned)
    commit(context, monkeypatch, tmp_path, planned, told)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    told[1:] = write_shards(context, hook, tmp_path, planned[1:])
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == parts(tmp_path / "out")
    commit(context, monkeypatch, tmp_path, planned, told)
    assert manifest_of(tmp_path / "out")["rows"] == 4


def write_shards(
    context: Any,
    hook: MLBatchHook,
    folder: Path,
    planned: list[dict[str, Any]],
    **kwargs: Any,
) -> list[dict[str, Any]]:
    """Score and write the shards of the table; what the mapped tasks would tell."""
    told = []
    for each in planned:
        start, stop = each["row_range"]
        execution_id = hook.start_batch("double", "1", {"x": list(range(start, stop))})
        hook.watch_batch("double", "1", execution_id, poll_interval=0.05)
        write = ShardResultsOperator(
            task_id="write",
            service_name="double",
            service_version="1",
            execution_id=execution_id,
            input_path=f"{folder}/in.csv",
            output_path=f"{folder}/out",
            **each,
            **kwargs,
        )
        told.append(write.execute(context))
    return told


def commit(
    context: Any,
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    planned: list[dict[str, Any]],
    told: list[dict[str, Any]],
    **kwargs: Any,
) -> dict[str, Any]:
    """Publish what the tasks before have told."""
    pulled = {"plan": planned, "write": told}
    monkeypatch.setattr(context["ti"], "xcom_pull", lambda task_ids, **more: pulled[task_ids])
    operator = DatasetCommitOperator(
        task_id="commit",
        service_name="double",
        service_version="1",
        output_path=f"{folder}/out",
        parts_task_id="write",
        plan_task_id="plan",
        **kwargs,
    )
    return operator.execute(context)


@pytest.mark.parametrize(
    "given", ["{ids[0]}", "['{ids[0]}', '{ids[1]}', None]", "list", "None", None]
)
def test_delete(context: Any, hook: MLBatchHook, given: Any) -> None:
    ids = [hook.start_batch("double", "1", {"x": [1]}) for _ in range(2)]
    wanted: Any = [*ids, None, ids[0]] if given == "list" else given
    if isinstance(given, str) and given != "list":
        wanted = given.format(ids=ids)
    operator = BatchDeleteOperator(
        task_id="delete", service_name="double", service_version="1", execution_ids=wanted
    )
    deleted = operator.execute(context)
    assert deleted == {"{ids[0]}": ids[:1], "None": [], None: []}.get(given, ids)
    assert operator.execute(context) == []  # what is gone is no error
    for left in set(ids) - set(deleted):
        hook.cancel_batch("double", "1", left)


@pytest.mark.parametrize("given", [5, [5], {"a": 1}])
def test_delete_refuses(context: Any, given: Any) -> None:
    operator = BatchDeleteOperator(
        task_id="delete", service_name="double", service_version="1", execution_ids=given
    )
    with pytest.raises(AirflowFailException, match="execution_ids: found"):
        operator.execute(context)


def test_parsing_a_large_table_loads_nothing_heavy() -> None:
    """A Dag file is parsed every half minute: the same rule as for the package's own modules."""
    code = (
        "import sys, airflow.sdk, airflow.providers.common.compat.sdk, airflow.triggers.base\n"
        # Whatever Airflow loads for its own names is not ours to save.
        "for name in airflow.sdk.__all__: getattr(airflow.sdk, name, None)\n"
        "from airflow.sdk import DAG\n"
        "before = set(sys.modules)\n"
        "from airflow_mlbatch.task_groups import BatchScoreTaskGroup\n"
        "with DAG('d'):\n"
        "    BatchScoreTaskGroup('t', service_name='s', service_version='1',"
        " input_path='/in.parquet', output_path='/out', cleanup=True, rejects_path='/r')\n"
        "heavy = {'pandas', 'pyarrow', 'numpy', 'requests', 'aiohttp', 'msgspec', 'starlette',"
        " 'fastapi', 'matplotlib', 's3fs', 'adlfs'}\n"
        "print(sorted(heavy & (set(sys.modules) - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"
