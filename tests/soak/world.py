"""Everything that the soak test starts: PostgreSQL, the scoring server, the line, Airflow.

Law: only processes that were started here are touched, by their ids, and all of them end with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from airflow_mlbatch.server.store import stored_text
from tests.server_process import RunningServer, running_server
from tests.soak.evidence import Death, Seen
from tests.soak.history import keep_history
from tests.soak.line import SoakLine
from tests.soak.runs import SoakRun
from tests.system.airflow_processes import AirflowProcesses, Run, running_airflow
from tests.system.debian import running_postgres

__all__ = ["TRIGGERERS", "Task", "World", "running_world"]

HERE = Path(__file__).parent
TRIGGERERS = ("triggerer-1", "triggerer-2")
_COMMANDS = {
    "scheduler": ("scheduler", "--skip-serve-logs"),
    **dict.fromkeys(TRIGGERERS, ("triggerer", "--skip-serve-logs")),
}
_SCORING_WORKERS = "16"
# Airflow's API server answers in forty threads. If all of them wait for locks, none is left to commit
# the transactions that hold these: without a limit it would stand still for ever.
# A scheduler that is killed alone leaves its line to the database to its workers, and with it the locks
# of what it was doing: they would be held as long as these live.
_DATABASE_SETTINGS = (
    "lock_timeout=10s",
    "idle_in_transaction_session_timeout=30s",
    "max_connections=200",
)
# Deaths are noticed soon, so that a soak test of less than an hour sees what follows from them.
_SETTINGS = {
    "CORE__PARALLELISM": "10",
    "CORE__MAX_ACTIVE_TASKS_PER_DAG": "64",
    "CORE__MAX_ACTIVE_RUNS_PER_DAG": "64",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__TASK_QUEUED_TIMEOUT": "60",
    "SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
    "SCHEDULER__NUM_STUCK_IN_QUEUED_RETRIES": "20",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "600",
}


@dataclass(frozen=True)
class Task:
    """The processes of a task that runs.

    :param pid: runs the task; 0 where it has ended already
    :param worker: speaks to Airflow for it; 0 where it has died already
    """

    pid: int
    worker: int

    @property
    def both(self) -> list[int]:
        """Those that are there, the worker first: it must not see the other one end."""
        return [pid for pid in (self.worker, self.pid) if pid]


class World:
    """What runs, and how it is started again after a fault."""

    def __init__(
        self,
        airflow: AirflowProcesses,
        server: RunningServer,
        line: SoakLine,
        calls: Path,
        database: str,
    ) -> None:
        self.airflow, self.server, self.line, self.calls = airflow, server, line, calls
        self.database = database
        self.server_deaths: list[Death] = []
        # Each execution that the database of the scoring server has ever shown.
        self.seen: dict[str, Seen] = {}
        self._schedulers = {airflow.pid("scheduler")}
        self._is_server_up = True

    def is_up(self, name: str) -> bool:
        """Whether a process of Airflow, or ``server``, runs."""
        if name == "server":
            return self._is_server_up
        return self.airflow.is_started(name)

    def start(self, name: str) -> None:
        """Start what is down."""
        if self.is_up(name):
            return
        if name == "server":
            self.remember_executions()
            self.server.start()
            self._is_server_up = True
            return
        pid = self.airflow.start(name, *_COMMANDS[name])
        if name == "scheduler":
            self._schedulers.add(pid)

    def end_server(self, is_kill: bool) -> None:
        """Take the scoring server down."""
        self._is_server_up, asked_at = False, time.time()
        if is_kill:
            self.server.kill()
        else:
            self.server.stop()
        self.server_deaths.append(Death(asked_at, time.time()))

    def run_of(self, run: SoakRun) -> Run:
        """The run in Airflow."""
        return Run(self.airflow, run.dag_id, run.run_id)

    def restart_what_ended(self) -> None:
        """Start what has ended by itself again, as an init system does."""
        for name in _COMMANDS:
            if self.is_up(name) and self.airflow.has_ended(name):
                self.airflow.kill_alone(name)
                self.start(name)

    def tasks(self) -> list[Task]:
        """The tasks that run now, in the order of their process ids."""
        workers: dict[int, int] = {}
        found: list[Task] = []
        for process, is_worker in self._below_schedulers():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = process.ppid()
                if is_worker:
                    workers[process.pid] = parent
                else:
                    found.append(Task(process.pid, parent))
        return sorted(
            (Task(task.pid, task.worker if task.worker in workers else 0) for task in found),
            key=lambda task: task.pid,
        )

    def end_idle_survivors(self) -> None:
        """End the workers of a dead scheduler that have nothing to do: they would wait for ever."""
        running = self.airflow.pid("scheduler") if self.is_up("scheduler") else 0
        for process, is_worker in self._below_schedulers():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                is_idle = is_worker and "<idle>" in " ".join(process.cmdline())
                if is_idle and os.getsid(process.pid) != running:
                    self.airflow.send(process.pid, signal.SIGKILL)

    def remember_executions(self) -> set[str]:
        """Look into the database of the scoring server; returns the executions that have not ended."""
        path = self.server.data_dir / "mlbatch.sqlite"
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
        ) as db:
            rows = db.execute(
                "SELECT id, state, idempotency_key, number FROM executions"
            ).fetchall()
            for execution_id, _, key, number in rows:
                if execution_id in self.seen:
                    continue
                record = stored_text(db, "records", number, 0)
                if record is not None:  # Not deleted meanwhile.
                    first = json.loads(record)
                    whose = (int(first["run"]), int(first["record"]))
                    self.seen[execution_id] = Seen(time.time(), execution_id, *whose, key or "")
        return {execution_id for execution_id, state, *_ in rows if state == "pending"}

    def _below_schedulers(self) -> Iterator[tuple[psutil.Process, bool]]:
        """Processes that a scheduler, alive or dead, has left; and whether each is a worker."""
        for pid in psutil.pids():
            try:
                if pid in self._schedulers or os.getsid(pid) not in self._schedulers:
                    continue
                process = psutil.Process(pid)
                title = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and "airflow worker" in title:
                    yield process, "LocalExecutor" in title
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue


@contextlib.contextmanager
def running_world(
    folder: Path, line_random: random.Random, on_fault: Callable[[str], None], has_keys: bool
) -> Iterator[World]:
    """Start everything; ends everything, whatever happens."""
    calls = folder / "calls.log"
    calls.touch()
    # Airflow reads its Dags again and again: those of this run stay as they are.
    dags = shutil.copytree(HERE / "dags", folder / "dags")
    arguments = ["--services", str(HERE / "services.py"), "--workers", _SCORING_WORKERS]
    if not has_keys:
        arguments.append("--without-idempotency-keys")
    with contextlib.ExitStack() as stack:
        database = stack.enter_context(running_postgres(folder / "postgres", *_DATABASE_SETTINGS))
        server = stack.enter_context(
            running_server(
                *arguments,
                data_dir=folder / "scoring-server",
                env={"MLBATCH_SOAK_CALLS": str(calls)},
            )
        )
        line = SoakLine(server.url, line_random, on_fault, folder / "line.log")
        stack.callback(line.close)
        database = f"postgresql+psycopg2://{database}"
        airflow = stack.enter_context(
            running_airflow(
                folder / "airflow",
                f"http://127.0.0.1:{line.port}",
                server.password,
                TRIGGERERS,
                dags=dags,
                database=database,
                env={f"AIRFLOW__{name}": value for name, value in _SETTINGS.items()},
            )
        )
        keep_history(database)
        yield World(airflow, server, line, calls, database)
