"""An Airflow of its own for the demonstration: a folder, a database, a connection, the examples.

Law: Airflow is only ever started as a process, with its settings in the environment, as a user would
start it. Nothing here imports it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from airflow_mlbatch.errors import InputError, MLBatchError

__all__ = ["DemoHome"]


class DemoHome:
    """A folder that holds everything that a demonstration makes.

    :param folder: made if it is not there
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.log = self.folder / "airflow.log"
        self.scored = self.data / "scored"

    def make(self) -> None:
        """Make the folder where there is none.

        :raises InputError: it cannot be made or written
        """
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab"):
                pass
        except OSError as error:
            raise InputError(f"folder: {self.folder} cannot be used: {error}") from None

    def prepare(self) -> None:
        """Lay out the example tables, and remove the results of an earlier demonstration."""
        shutil.rmtree(self.scored, ignore_errors=True)
        self.data.mkdir(parents=True, exist_ok=True)
        for name in ("mtcars.csv", "mtcars.tsv"):
            table = resources.files("airflow_mlbatch.demo") / "data" / name
            (self.data / name).write_bytes(table.read_bytes())
        self.log.write_bytes(b"")

    def environment(self, url: str, password: str) -> dict[str, str]:
        """The environment of Airflow's processes, with the connection to the server in it."""
        return {
            **self.environment_without_connection(),
            "AIRFLOW_CONN_MLBATCH_DEFAULT": json.dumps(_connection(url, password)),
        }

    def environment_without_connection(self) -> dict[str, str]:
        """The environment of Airflow's processes."""
        return {
            **{name: value for name, value in os.environ.items() if "AIRFLOW_" not in name},
            "AIRFLOW_HOME": str(self.folder / "airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(examples_folder()),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "MLBATCH_EXAMPLE_DATA": str(self.data),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }

    def environment_of_pages(
        self, port: int, log_ports: tuple[int, int], slots: int
    ) -> dict[str, str]:
        """The environment of Airflow standalone, which has its pages on ``port``.

        Somebody may start all examples at once. A request then waits for up to a minute, and not
        for the five seconds after which Airflow and SQLite give up by default.

        :param log_ports: where the workers and the triggerer serve their logs; another Airflow on
            this machine may use the default ports
        :param slots: how many tasks run at once
        """
        database = self.folder / "airflow" / "airflow.db"
        return {
            **self.environment_without_connection(),
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__CORE__PARALLELISM": str(slots),
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{database}?timeout=60",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(log_ports[0]),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(log_ports[1]),
        }

    def migrate(self, environment: dict[str, str]) -> None:
        """Make Airflow's database, or bring it up to date.

        :raises MLBatchError: names the log that tells why not
        """
        self._run_airflow(environment, "db", "migrate")

    def keep_connection(self, environment: dict[str, str], url: str, password: str) -> None:
        """Write the connection to Airflow's database, where its pages show it.

        :raises MLBatchError: names the log that tells why not
        """
        # Through a file of our own: what stands on a command line, everybody on the machine reads.
        file = self.folder / "connections.json"
        file.touch(mode=0o600)
        try:
            file.write_text(json.dumps({"mlbatch_default": _connection(url, password)}))
            self._run_airflow(environment, "connections", "import", "--overwrite", str(file))
        finally:
            file.unlink()

    def _run_airflow(self, environment: dict[str, str], *command: str) -> None:
        with self.log.open("ab") as log:
            done = subprocess.run(
                [sys.executable, "-m", "airflow", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode != 0:
            problem = f"airflow {command[0]} {command[1]} ended with exit code {done.returncode}"
            raise MLBatchError(f"{problem}; its whole log: {self.log}")


def _connection(url: str, password: str) -> dict[str, object]:
    host, _, port = url.removeprefix("http://").partition(":")
    return {
        "conn_type": "mlbatch",
        "description": "The demonstration's scoring server",
        "host": host,
        "port": int(port),
        "login": "admin",
        "password": password,
    }


def examples_folder() -> Path:
    """The folder of example Dags: in a checkout beside the package, in an installation inside it.

    :raises FileNotFoundError: it is in neither place
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "dags_examples", package / "dags_examples"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("there is no folder dags_examples beside or inside the package")
