"""A table of a million rows through `BatchScoreTaskGroup`, with all of Airflow's processes."""

from __future__ import annotations

import datetime
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.lines import Benchmark, Line, Say, mb, reported, seconds
from benchmarks.pieces import run, watched
from benchmarks.services import NAME, VERSION
from benchmarks.surroundings import flows_to, scoring_server
from tests.system.airflow_processes import running_airflow

if TYPE_CHECKING:
    import psutil

    from benchmarks.pieces import Watch

ROWS, ROWS_OF_A_BATCH = 1_000_000, 100_000
_DAGS = Path(__file__).with_name("dags")
_PARTS = ("api-server", "dag-processor", "scheduler", "triggerer")
_MOST_SECONDS = 1800.0
_SETTINGS = {
    "AIRFLOW__CORE__PARALLELISM": "4",
    # As Airflow has it: on a busy machine nobody is to be taken for dead.
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",
}


def make_table(path: str, rows: int) -> dict[str, Any]:
    """The input."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as parquet

    place = np.arange(rows)
    table = pa.table({"row": place, "x": place * 0.5})
    parquet.write_table(table, path, row_group_size=128 * 1024)
    return {}


def check(path: str, rows: int, url: str, password: str) -> dict[str, Any]:
    """Each row of the input is there once, in its place, with its own score."""
    import numpy as np
    import pyarrow.parquet as parquet

    from airflow_mlbatch.transport.blocking import BlockingDriver

    folder = Path(path)
    assert (folder / "_SUCCESS").exists()
    parts = sorted(folder.glob("part-*.parquet"))
    columns = ["row", "y", "mlbatch_index", "mlbatch_success"]
    tables = [parquet.read_table(part, columns=columns) for part in parts]
    row, y, index, success = (
        np.concatenate([table.column(name).to_numpy() for table in tables]) for name in columns
    )
    assert np.array_equal(index, np.arange(rows))
    assert np.array_equal(row, index)
    assert np.array_equal(y, index * 1.0)
    assert success.all()
    endpoint, flows = flows_to(url, password)
    executions = BlockingDriver(endpoint).run(flows.list_batch_executions(NAME, VERSION))
    return {"parts": len(parts), "executions": len(executions)}


def _name_of(process: psutil.Process, root: str) -> str:
    """What a process of Airflow says that it is; for a task, the id of its task instance."""
    _, is_worker, doing = " ".join(process.cmdline()).strip().partition("airflow worker -- ")
    if not is_worker:
        return root
    return "executor's worker" if doing.startswith("LocalExecutor") else doing


def _run(say: Say) -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as name:
        folder = Path(name)
        table, scored = str(folder / "table.parquet"), str(folder / "scored")
        run(make_table, path=table, rows=ROWS)
        with (
            scoring_server(folder / "data", "--workers", "2") as server,
            running_airflow(
                folder / "airflow", server.url, server.password, dags=_DAGS, env=_SETTINGS
            ) as airflow,
        ):
            say("Airflow is up")
            roots = {part: airflow.pid(part) for part in _PARTS} | {"scoring server": server.pid}
            with watched(roots, _name_of) as watch:
                began = time.monotonic()
                dag_run = airflow.trigger("large_table", input_path=table, output_path=scored)
                state = dag_run.wait_for_end(_MOST_SECONDS)
                took = time.monotonic() - began
            say(f"{state} after {seconds(took)}")
            assert state == "success", dag_run.logs()
            tasks = dag_run.tasks()
            checked = run(check, path=scored, rows=ROWS, url=server.url, password=server.password)
    assert checked["parts"] == checked["executions"] == ROWS // ROWS_OF_A_BATCH
    what = f"{ROWS:,} rows through `BatchScoreTaskGroup` with all of Airflow's processes"
    return [
        Line(
            f"{what}: complete, each row exactly once",
            f"{ROWS:,} rows in {checked['parts']} parts",
            f"{ROWS:,} rows",
            details=f"each row compared; {checked['executions']} executions on the server for "
            f"{ROWS // ROWS_OF_A_BATCH} shards",
        ),
        reported(
            f"{what}: time from the start of the run to its end",
            seconds(took),
            f"LocalExecutor with 4 slots, SQLite, embedded server with two workers; {_times(tasks)}",
        ),
        reported(
            f"{what}: memory at the peak",
            f"{mb(watch.total)} in all",
            f"the largest process of each kind: {_peaks(watch, tasks)}",
        ),
    ]


def _peaks(watch: Watch, tasks: list[dict[str, Any]]) -> str:
    """The largest process of each kind, the largest first."""
    names = {task["id"]: f"task {task['task_id'].rpartition('.')[2]}" for task in tasks}
    peaks: dict[str, int] = {}
    for found, peak in watch.peaks.items():
        name = names.get(found, found)
        peaks[name] = max(peaks.get(name, 0), peak)
    ordered = sorted(peaks.items(), key=lambda one: -one[1])
    return ", ".join(f"{name} {mb(peak)}" for name, peak in ordered)


def _times(tasks: list[dict[str, Any]]) -> str:
    """How long each task of the group took, all of its map together."""
    ends: dict[str, list[datetime.datetime]] = {}
    for task in tasks:
        moments = [task["start_date"], task["end_date"]]
        ends.setdefault(task["task_id"], []).extend(
            datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")) for moment in moments
        )
    return ", ".join(
        f"{task_id.rpartition('.')[2]} {seconds((max(found) - min(found)).total_seconds())}"
        for task_id, found in sorted(ends.items(), key=lambda one: min(one[1]))
    )


BENCHMARK = Benchmark("large_table", 70, _run)
