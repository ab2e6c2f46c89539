"""An API server with the pages on a real port, a scoring server, and tasks in the database."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
import requests

from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.links import batch_page
from tests.server_process import RunningServer, running_server

SERVICES = Path(__file__).parent / "services.py"


@pytest.fixture(scope="session")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a file opens the gate of its name."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="session")
def server(gates: Path) -> Iterator[RunningServer]:
    """The scoring server of all tests of this folder."""
    env = {"MLBATCH_TEST_GATES": str(gates)}
    with running_server("--services", str(SERVICES), env=env) as running:
        yield running


@pytest.fixture(autouse=True)
def connection(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection `mlbatch_default` points to the server."""
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server.url, server.password))
    return "mlbatch_default"


def connection_to(url: str, password: str) -> str:
    """An Airflow connection as its environment variable holds it."""
    return json.dumps({"conn_type": "mlbatch", "host": url, "login": "admin", "password": password})


@pytest.fixture
def hook() -> Iterator[MLBatchHook]:
    """Starts batches as a task does."""
    hook = MLBatchHook()
    yield hook
    hook.close()


# --- Airflow -------------------------------------------------------------------------------------


class Pages:
    """A user's view of Airflow.

    :param root: where Airflow is, with the path of its base_url
    """

    def __init__(self, root: str, token: str | None) -> None:
        self.root, self.token = root, token
        self._session = requests.Session()
        self._session.trust_env = False
        if token is not None:
            self._session.cookies["_token"] = token

    def get(self, path: str, **headers: str) -> requests.Response:
        """GET a path below the root."""
        return self.ask("GET", path, **headers)

    def ask(self, method: str, path: str, **headers: str) -> requests.Response:
        """Any request; underscores in the names of headers become hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._session.request(
            method, f"{self.root}/{path}", headers=named, timeout=60, allow_redirects=False
        )


@contextlib.contextmanager
def running_api_server(base_path: str = "") -> Iterator[str]:
    """Airflow's own application in a thread; yields its address, with the path."""
    import uvicorn
    from airflow.api_fastapi import app as airflow_app

    before = airflow_app.API_ROOT_PATH
    airflow_app.API_ROOT_PATH = base_path + "/"
    app = airflow_app.create_app(apps="core")
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive(), "the API server did not start"
        time.sleep(0.05)
    (port,) = {listener.getsockname()[1] for each in running.servers for listener in each.sockets}
    try:
        yield f"http://127.0.0.1:{port}{base_path}"
    finally:
        running.should_exit = True
        thread.join(30)
        airflow_app.API_ROOT_PATH = before


@pytest.fixture(scope="session")
def api_server(airflow_database: str) -> Iterator[str]:
    """The address of an API server with an auth manager that knows rights of single Dags."""
    with pytest.MonkeyPatch.context() as patch:
        manager = "tests.plugins.auth_manager.PerDagAuthManager"
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", manager)
        patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "0123456789abcdef" * 4)
        patch.setenv("AIRFLOW__API__HOST", "127.0.0.1")
        with running_api_server() as url:
            yield url


def token_of(name: str, role: str = "ADMIN") -> str:
    """A token as Airflow's login gives it."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return str(get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role)))


@pytest.fixture
def pages(api_server: str) -> Pages:
    """As a user who may do everything, but sees one Dag less than its owner."""
    return Pages(api_server, token_of("ada"))


@pytest.fixture
def owner(api_server: str) -> Pages:
    """As the owner of the private Dag."""
    return Pages(api_server, token_of("owner"))


@pytest.fixture
def viewer(api_server: str) -> Pages:
    """As a user who may read and not change."""
    return Pages(api_server, token_of("vera", "VIEWER"))


@pytest.fixture
def nobody(api_server: str) -> Pages:
    """Without a login."""
    return Pages(api_server, None)


# --- tasks ---------------------------------------------------------------------------------------


class Task:
    """A task instance that has recorded a batch."""

    def __init__(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
        self.path = batch_page(dag_id, run_id, task_id, map_index)
        self.dag_id, self.run_id = dag_id, run_id


MakeTask = Callable[..., Task]


@pytest.fixture(scope="module", autouse=True)
def no_other_batches(airflow_database: str) -> None:
    """Other tests of this process may have run whole Dags: what these have recorded goes."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        session.execute(delete(XComModel))


@pytest.fixture
def make_task(airflow_database: str) -> Iterator[MakeTask]:
    """Puts a Dag, a run, a task instance and its note into the database, as a worker leaves them."""
    made: set[str] = set()

    def make(
        dag_id: str = "scores",
        *,
        note: Any = None,
        state: str = "success",
        task_id: str = "score",
        map_index: int = -1,
        key: str = "mlbatch_started_batch",
        run_id: str = "",
    ) -> Task:
        made.add(dag_id)
        run_id = run_id or f"manual__{uuid4()}+00:00"
        insert_tasks(dag_id, run_id, [(task_id, map_index, state, key, note)])
        return Task(dag_id, run_id, task_id, map_index)

    yield make
    remove_dags(made)


# --- a Dag that really ran ------------------------------------------------------------------------

_DAGS = Path(__file__).parent / "dags"
RAN_DAG_ID = "scored_tables"
RAN_ROWS = 150


@dataclass
class Ran:
    """A run of the Dag, and the folder of its tables."""

    run_id: str
    folder: Path

    def task(self, task_id: str, map_index: int = -1) -> str:
        return batch_page(RAN_DAG_ID, self.run_id, task_id, map_index)

    @property
    def table(self) -> str:
        return f"mlbatch/dags/{RAN_DAG_ID}/runs/{quote(self.run_id, safe='')}/tables/large.plan"


@pytest.fixture(scope="module")
def ran(
    server: RunningServer, airflow_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("tables")
    # Each tenth speed is negative, which fails.
    rows = [f"car {row},{-1 if row % 10 == 9 else row}" for row in range(RAN_ROWS)]
    (folder / "cars.csv").write_text("\n".join(["model,speed", *rows]) + "\n", encoding="utf-8")
    environment = {
        **os.environ,
        "AIRFLOW__CORE__DAGS_FOLDER": str(_DAGS),
        "AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(server.url, server.password),
        "MLBATCH_TEST_TABLES": str(folder),
    }
    done = subprocess.run(
        [sys.executable, str(_DAGS / "scored_tables.py")],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    yield Ran(_run_of(RAN_DAG_ID), folder)
    remove_dags({RAN_DAG_ID})


def _run_of(dag_id: str) -> str:
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        (run_id,) = session.scalars(select(DagRun.run_id).where(DagRun.dag_id == dag_id))
    return str(run_id)


def note_of(service: str, execution_id: str, version: str = "1", **more: Any) -> dict[str, Any]:
    """What a score task records."""
    return {
        "conn_id": "mlbatch_default",
        "service_name": service,
        "service_version": version,
        "execution_id": execution_id,
        "submitted_at": time.time() - 10,
        **more,
    }


def insert_tasks(dag_id: str, run_id: str, tasks: list[tuple[str, int, str, str, Any]]) -> None:
    """Rows of a Dag, one run and its task instances."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import insert, select

    now = datetime.now(timezone.utc)
    with create_session() as session:
        if session.get(DagBundleModel, "tests") is None:
            session.add(DagBundleModel(name="tests"))
            session.flush()
        if session.get(DagModel, dag_id) is None:
            session.add(DagModel(dag_id=dag_id, bundle_name="tests", fileloc="tests.py"))
            session.flush()
        session.execute(
            insert(DagRun.__table__).values(
                dag_id=dag_id,
                run_id=run_id,
                run_type="manual",
                state="running",
                run_after=now,
                logical_date=None,
                clear_number=0,
                log_template_id=None,
            )
        )
        dag_run_id = session.scalar(select(DagRun.id).where(DagRun.run_id == run_id))
        names = {"dag_id": dag_id, "run_id": run_id}
        session.execute(
            insert(TaskInstance.__table__),
            [
                {
                    **names,
                    "id": uuid4(),
                    "task_id": task_id,
                    "map_index": map_index,
                    "state": state,
                    "start_date": now,
                    "end_date": now if state in ("success", "failed") else None,
                    "pool": "default_pool",
                    "pool_slots": 1,
                    "span_status": "not_started",
                }
                for task_id, map_index, state, _, _ in tasks
            ],
        )
        notes = [
            {
                **names,
                "dag_run_id": dag_run_id,
                "task_id": task_id,
                "map_index": map_index,
                "key": key,
                "value": note,
                "timestamp": datetime.now(timezone.utc),
            }
            for task_id, map_index, _, key, note in tasks
            if note is not None
        ]
        if notes:
            session.execute(insert(XComModel.__table__), notes)


def remove_dags(dag_ids: set[str]) -> None:
    """Everything that a test has put in."""
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    with create_session() as session:
        for model in (XComModel, TaskInstance, DagRun, DagModel):
            session.execute(delete(model).where(model.dag_id.in_(dag_ids)))


def eventually(look: Callable[[], Any], what: str = "", seconds: float = 60) -> Any:
    """Look again and again until what is found is true."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, f"not in time: {what}; last {found!r}"
        time.sleep(0.05)
    return found
