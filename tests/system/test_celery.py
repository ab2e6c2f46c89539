"""A large table on Celery workers, one of which dies: every row is scored, and scored once."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from tests.server_process import RunningServer
from tests.system.airflow_processes import AirflowProcesses, eventually, running_airflow
from tests.system.debian import MissingPackageError, running_postgres, running_redis
from tests.system.scoring_proxy import ScoringProxy

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

ROWS, SHARDS = 200_000, 10
START = r"/api/plain/1/batch\?"
WORKERS = ("worker-1", "worker-2")
NEEDED = {
    "airflow.providers.celery": "apache-airflow-providers-celery",
    "psycopg2": "psycopg2-binary",
    "asyncpg": "asyncpg",
    "redis": "redis",
}


def is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


@pytest.fixture
def celery(
    tmp_path: Path, server: RunningServer, proxy: ScoringProxy
) -> Iterator[AirflowProcesses]:
    """Airflow with CeleryExecutor on PostgreSQL and Redis, and two workers."""
    missing = [package for module, package in NEEDED.items() if is_missing(module)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    try:
        with (
            running_postgres(tmp_path / "postgres") as database,
            running_redis(tmp_path / "redis") as broker,
            running_airflow(
                tmp_path / "airflow",
                f"http://127.0.0.1:{proxy.port}",
                server.password,
                database=f"postgresql+psycopg2://{database}",
                executor="CeleryExecutor",
                env={
                    "AIRFLOW__CELERY__BROKER_URL": broker,
                    "AIRFLOW__CELERY__RESULT_BACKEND": f"db+postgresql+psycopg2://{database}",
                    "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
                    # A message that a dead worker had taken is given to another one after this.
                    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "30",
                    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
                },
            ) as airflow,
        ):
            for name in WORKERS:
                start_worker(airflow, name)
            yield airflow
    except MissingPackageError as error:
        pytest.skip(str(error))


def start_worker(airflow: AirflowProcesses, name: str) -> None:
    pid_file = airflow.home / f"{name}.pid"
    options = ["--skip-serve-logs", "--celery-hostname", f"{name}@%h", "--pid", str(pid_file)]
    airflow.start(name, "celery", "worker", *options)
    log = airflow.logs / f"{name}.log"
    eventually(
        lambda: airflow.all_run() and " ready." in log.read_text(),
        what=f"{name} is ready, see {log}",
    )


def kill_worker_of(airflow: AirflowProcesses, pid: int) -> None:
    """SIGKILL for the worker that runs a task, and for everything below it."""
    above = {parent.pid for parent in psutil.Process(pid).parents()}
    (name,) = (name for name in WORKERS if airflow.pid(name) in above)
    family = psutil.Process(airflow.pid(name)).children(recursive=True)
    airflow.kill(name)
    for process in family:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_large_table_while_a_worker_is_killed(
    celery: AirflowProcesses, proxy: ScoringProxy, tmp_path: Path
) -> None:
    table, scored = tmp_path / "table.parquet", tmp_path / "scored"
    pq.write_table(pa.table({"x": [float(x) for x in range(ROWS)]}), table)
    held = proxy.hold("POST", START, "reply")
    run = celery.trigger("large_table", input_path=str(table), output_path=str(scored))
    pid = held.wait(300)
    kill_worker_of(celery, pid)
    held.drop()
    assert run.wait_for_end(900) == "success", run.logs()

    assert (scored / "_SUCCESS").exists()
    parts = pyarrow.dataset.dataset(scored, format="parquet", exclude_invalid_files=True)
    found = parts.to_table(columns=["x", "y"]).sort_by("x").to_pydict()
    assert found["x"] == [float(x) for x in range(ROWS)]
    assert found["y"] == [2.0 * x for x in range(ROWS)]
    assert len(proxy.passed("POST", START, 202)) == SHARDS
    assert proxy.passed("DELETE", "/api/plain/") == []
