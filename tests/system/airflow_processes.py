"""A whole Airflow in processes of its own: API server, scheduler, Dag processor, triggerers, workers.

Law: Airflow is only ever started, signalled and asked over HTTP, as those who run it do. Nothing here
imports it. Each process leads a group of its own, and is ended by its id.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psutil
import requests

from tests.ports import ReservedPort

__all__ = ["AirflowProcesses", "Run", "connection_to", "eventually", "running_airflow"]

T = TypeVar("T")

_ROOT = Path(__file__).resolve().parents[2]
DAGS = Path(__file__).parent / "dags"
# Generous: other work may share the machine. Nothing is judged by these.
START_SECONDS = 180.0
STEP_SECONDS = 120.0
_STOP_SECONDS = 30.0
_FAREWELL_SECONDS = 3.0
_DATABASE_TRIES, _DATABASE_PAUSE = 20, 0.5

# Short, so that a death is noticed within a test; what a user would see is the same, only sooner.
_SETTINGS = {
    "CORE__LOAD_EXAMPLES": "False",
    "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
    "CORE__PARALLELISM": "8",
    "DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
    "LOGGING__LOGGING_LEVEL": "INFO",
    "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
    "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "TRIGGERER__JOB_HEARTBEAT_SEC": "1",
    "TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    "API__WORKERS": "1",
    "USAGE_DATA_COLLECTION__ENABLED": "False",
}


def eventually(
    look: Callable[[], T], seconds: float = STEP_SECONDS, what: str = "", pause: float = 0.2
) -> T:
    """Look again and again until what is found is true.

    :raises AssertionError: it was not within the limit; says what was found last
    """
    until = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds:g} s: {what or look}; last: {found!r}")
        time.sleep(pause)


class AirflowProcesses:
    """A running Airflow.

    :param home: its AIRFLOW_HOME, made if it is not there
    :param env: variables for all its processes
    :param dags: the folder of its Dags
    :param database: SQLAlchemy address; SQLite in ``home`` by default
    :param executor: of the scheduler
    :param login: name and password, where not everybody is an admin
    """

    def __init__(
        self,
        home: Path,
        env: Mapping[str, str],
        *,
        dags: Path = DAGS,
        database: str | None = None,
        executor: str = "LocalExecutor",
        login: tuple[str, str] | None = None,
    ) -> None:
        self._login = login
        self.home, self.logs, self._dags_folder = home, home / "processes", dags
        self.logs.mkdir(parents=True)
        # The other processes are told the API server's address before it listens.
        self._place = ReservedPort()
        self.url = f"http://127.0.0.1:{self._place.number}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # Each process leads a session. Its id stays taken while one member lives, also without the leader.
        self._sessions: set[int] = set()
        self._triggerers: dict[int, str] = {}
        self._session = requests.Session()
        self._session.trust_env = False
        settings = {
            **_SETTINGS,
            "CORE__DAGS_FOLDER": str(dags),
            "CORE__EXECUTOR": executor,
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__FERNET_KEY": "jVlHcsHZ7SkJxPQz9dH0y1bDpBV0Wt7Yb5fK6mXH8bE=",
            "API__PORT": str(self._place.number),
            "API__HOST": "127.0.0.1",
            "API__BASE_URL": self.url,
            "API__SECRET_KEY": secrets.token_hex(16),
            "API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "DATABASE__SQL_ALCHEMY_CONN": database or f"sqlite:///{home / 'airflow.db'}",
        }
        self.env = {
            **{name: value for name, value in os.environ.items() if "AIRFLOW_" not in name},
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
            "AIRFLOW_HOME": str(home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "PYTHONPATH": str(_ROOT),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            **env,
        }

    # --- processes -------------------------------------------------------------------------------

    def up(self, *triggerers: str) -> None:
        """Make the database, start everything but workers, and wait until all Dags are known."""
        self._finish("db", "migrate")
        self.start("api-server", "api-server")
        eventually(self._is_healthy, START_SECONDS, f"{self.url} answers; see {self.logs}", 0.5)
        self.start("dag-processor", "dag-processor")
        self.start("scheduler", "scheduler", "--skip-serve-logs")
        for name in triggerers:
            self.start_triggerer(name)
        wanted = len(list(self._dags_folder.glob("*.py")))
        eventually(
            lambda: len({dag["fileloc"] for dag in self._dags()}) == wanted,
            START_SECONDS,
            f"Dags of {wanted} files are there; see {self.logs}",
        )
        for part in ("scheduler", "triggerer") if triggerers else ("scheduler",):
            self._wait_until_healthy(part)

    def _wait_until_healthy(self, part: str) -> None:
        eventually(lambda: self._health().get(part) == "healthy", START_SECONDS, part)

    def start(self, name: str, *command: str) -> int:
        """Start a process of Airflow; returns its id, which is also that of its group."""
        assert name not in self._processes, f"{name} runs already"
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *command],
                cwd=self.home,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        self._sessions.add(process.pid)
        return process.pid

    def start_triggerer(self, name: str) -> None:
        """Start a triggerer, and wait until it takes part."""
        before = self.triggerers_alive()
        self.start(name, "triggerer", "--skip-serve-logs")
        (job,) = eventually(
            lambda: self.triggerers_alive() - before, START_SECONDS, f"{name} is alive"
        )
        self._triggerers[job] = name

    def triggerer_of(self, job: int) -> str:
        """The name of the triggerer with this job."""
        return self._triggerers[job]

    def is_started(self, name: str) -> bool:
        """Whether it was started and not ended since."""
        return name in self._processes

    def has_ended(self, name: str) -> bool:
        """Whether a process that was started has ended by itself."""
        return self._processes[name].poll() is not None

    def all_run(self) -> bool:
        """True.

        :raises AssertionError: a process has ended by itself
        """
        for name, process in self._processes.items():
            assert process.poll() is None, f"{name} has ended, see {self.logs / name}.log"
        return True

    def pid(self, name: str) -> int:
        """The id of a process and of its group."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL for a process and all its children, as when a machine dies."""
        process = self._processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_alone(self, name: str) -> None:
        """SIGKILL for a process, whose children go on without it."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def is_below(self, pid: int) -> bool:
        """Whether somebody whom this Airflow has started did start a process: no leader of a session."""
        with contextlib.suppress(ProcessLookupError):
            return pid not in self._sessions and os.getsid(pid) in self._sessions
        return False

    def send(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to the process of a task or of its worker; nobody else's is touched."""
        assert self.is_below(pid), f"{pid} is no child of this Airflow"
        os.kill(pid, number)

    def family(self, pid: int) -> list[int]:
        """A process that was started here, and all that it has started."""
        assert pid in self._sessions
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]

    def worker_of(self, pid: int) -> int:
        """The process that started the one of a task, and speaks to Airflow for it."""
        worker = psutil.Process(pid).ppid()
        assert self.is_below(worker), f"{worker} is no worker of this Airflow"
        return worker

    def stop(self, name: str) -> None:
        """SIGTERM for a process, as when it is restarted; its children are its own business."""
        process = self._processes.pop(name)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        # Whoever is left of the group was not ended by its parent.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def down(self) -> None:
        """End everything that runs."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_FAREWELL_SECONDS)
        for name in list(self._processes):
            self.kill(name)
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._place.close()

    def _left(self) -> Iterator[int]:
        """Processes whose leader is gone: workers without a scheduler, and their tasks."""
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) in self._sessions:
                    yield pid

    def _finish(self, *command: str) -> None:
        name = "-".join(command)
        self.start(name, *command)
        code = self._processes.pop(name).wait(START_SECONDS)
        assert code == 0, f"airflow {' '.join(command)}: see {self.logs / name}.log"

    # --- the API ---------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """A request to Airflow's public API; returns the decoded reply.

        SQLite lets one write at a time, and Airflow tells a reader who then wants to write, too, that
        its database has an error: what was asked has not been done, and is asked for again.
        """
        if "Authorization" not in self._session.headers:
            self._session.headers["Authorization"] = f"Bearer {self._token()}"
        for _ in range(_DATABASE_TRIES):
            reply = self._session.request(
                method, f"{self.url}/api/v2{path}", json=body, params=params, timeout=60
            )
            if reply.status_code != 500 or "Database error" not in reply.text:
                break
            time.sleep(_DATABASE_PAUSE)
        assert reply.ok, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json() if reply.content else None

    def _token(self) -> str:
        address = f"{self.url}/auth/token"
        if self._login is None:
            reply = self._session.get(address, timeout=60)
        else:
            name, password = self._login
            named = {"username": name, "password": password}
            reply = self._session.post(address, json=named, timeout=60)
        return str(reply.json()["access_token"])

    def trigger(self, dag_id: str, **conf: Any) -> Run:
        """Start a run of a Dag."""
        run_id = f"test-{secrets.token_hex(4)}"
        body = {"dag_run_id": run_id, "logical_date": None, "conf": conf}
        self.ask("POST", f"/dags/{dag_id}/dagRuns", body)
        return Run(self, dag_id, run_id)

    def triggerers_alive(self) -> set[int]:
        """Ids of the triggerers' jobs that run and have shown signs of life."""
        listed = self.ask("GET", "/jobs", job_type="TriggererJob", is_alive=True, limit=100)
        return {job["id"] for job in listed["jobs"]}

    def _is_healthy(self) -> bool:
        try:
            return self._session.get(f"{self.url}/api/v2/monitor/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    def _health(self) -> dict[str, str]:
        self.all_run()
        return {part: one["status"] for part, one in self.ask("GET", "/monitor/health").items()}

    def _dags(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", "/dags", limit=100)["dags"]
        return found


class Run:
    """A run of a Dag."""

    def __init__(self, airflow: AirflowProcesses, dag_id: str, run_id: str) -> None:
        self.airflow, self.dag_id, self.run_id = airflow, dag_id, run_id
        self._path = f"/dags/{dag_id}/dagRuns/{quote(run_id)}"

    def __repr__(self) -> str:
        """What a failed wait shows."""
        return f"{self.dag_id}/{self.run_id}"

    def state(self) -> str:
        """Of the run."""
        return str(self.airflow.ask("GET", self._path)["state"])

    def task(self, task_id: str) -> dict[str, Any]:
        """A task instance as the API shows it."""
        found: dict[str, Any] = self.airflow.ask("GET", f"{self._path}/taskInstances/{task_id}")
        return found

    def tasks(self) -> list[dict[str, Any]]:
        """All task instances."""
        found = self.airflow.ask("GET", f"{self._path}/taskInstances", limit=1000)
        return list(found["task_instances"])

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        """What a task has left for others."""
        path = f"{self._path}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.airflow.ask("GET", path, deserialize=False)["value"]

    def wait_for_task(self, task_id: str, *states: str, seconds: float = STEP_SECONDS) -> None:
        """Wait until a task is in one of these states."""
        eventually(
            lambda: self.task(task_id)["state"] in states,
            seconds,
            f"{self} {task_id} is {' or '.join(states)}, see {self.airflow.home / 'logs'}",
        )

    def wait_for_end(self, seconds: float = 2 * STEP_SECONDS) -> str:
        """Wait until the run is over; returns its state."""

        def over() -> str:
            state = self.state()
            return state if state in ("success", "failed") else ""

        try:
            return eventually(over, seconds, f"{self} is over", 0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def mark(self, task_id: str, state: str, map_index: int = -1) -> None:
        """Mark a task ``failed`` or ``success``, as the button does."""
        path = f"{self._path}/taskInstances/{task_id}/{map_index}"
        self.airflow.ask("PATCH", path, {"new_state": state})

    def clear(self, *task_ids: str | tuple[str, int], downstream: bool = False) -> None:
        """Clear tasks, as the button does; a mapped one may be given with its index."""
        body = {
            "dry_run": False,
            "dag_run_id": self.run_id,
            "task_ids": list(task_ids),
            "only_failed": False,
            "reset_dag_runs": True,
            "include_downstream": downstream,
        }
        self.airflow.ask("POST", f"/dags/{self.dag_id}/clearTaskInstances", body)

    def log(self, task_id: str) -> str:
        """All logs of a task, those of its trigger included, as a failed test shows them."""
        folder = self.airflow.home / "logs" / f"dag_id={self.dag_id}" / f"run_id={self.run_id}"
        files = sorted((folder / f"task_id={task_id}").glob("**/*.log*"))
        return "\n".join(f"--- {file.name}\n{_readable(file.read_text())}" for file in files)

    def logs(self) -> str:
        """The ends of the logs of all its tasks."""
        task_ids = sorted({task["task_id"] for task in self.tasks()})
        return "\n".join(f"=== {task_id}\n{self.log(task_id)[-4000:]}" for task_id in task_ids)


def _readable(lines: str) -> str:
    """Time, level, text and error of each line."""
    shown = []
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            shown.append(line)
            continue
        errors = [
            f"{error.get('exc_type')}: {error.get('exc_value')}"
            for error in entry.get("error_detail") or []
        ]
        words = [entry.get("timestamp"), entry.get("level"), entry.get("event"), *errors]
        shown.append(" ".join(str(word) for word in words)[:500])
    return "\n".join(shown)


def connection_to(url: str, password: str) -> str:
    """An Airflow connection to a scoring server, as a variable of the environment has it."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = {
        "conn_type": "mlbatch",
        "host": host,
        "port": int(port),
        "login": "admin",
        "password": password,
    }
    return json.dumps(connection)


@contextlib.contextmanager
def running_airflow(
    home: Path,
    url: str,
    password: str,
    triggerers: tuple[str, ...] = ("triggerer",),
    **options: Any,
) -> Iterator[AirflowProcesses]:
    """Run Airflow with the connection `mlbatch_default` to this server."""
    env = {"AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(url, password), **options.pop("env", {})}
    airflow = AirflowProcesses(home, env, **options)
    try:
        airflow.up(*triggerers)
        yield airflow
    finally:
        airflow.down()
