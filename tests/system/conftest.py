"""One Airflow, one scoring server and one proxy between them, for all system tests of a session."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server_process import RunningServer, running_server
from tests.system.airflow_processes import (
    AirflowProcesses,
    Run,
    connection_to,
    eventually,
    running_airflow,
)
from tests.system.scoring_proxy import Held, Passed, ScoringProxy, scoring_proxy
from tests.system.services import VERSIONS

SERVICES = Path(__file__).parent / "services.py"
KEYLESS = "mlbatch_keyless"


@pytest.fixture(scope="session")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a file opens the gate of its name."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, gates: Path) -> Iterator[RunningServer]:
    """The scoring server; a batch behind a closed gate occupies one of its workers."""
    data_dir = tmp_path_factory.mktemp("scoring-server")
    arguments = ("--services", str(SERVICES), "--workers", "8")
    with running_server(
        *arguments, data_dir=data_dir, env={"MLBATCH_TEST_GATES": str(gates)}
    ) as running:
        yield running


@pytest.fixture(scope="session")
def proxy(server: RunningServer) -> Iterator[ScoringProxy]:
    """What Airflow takes for the server."""
    with scoring_proxy(server.url) as running:
        yield running


@pytest.fixture(scope="session")
def keyless_server(
    tmp_path_factory: pytest.TempPathFactory, gates: Path
) -> Iterator[RunningServer]:
    """A scoring server that knows no idempotency keys, as the vendor's."""
    data_dir = tmp_path_factory.mktemp("keyless-server")
    arguments = ("--services", str(SERVICES), "--workers", "8", "--without-idempotency-keys")
    with running_server(
        *arguments, data_dir=data_dir, env={"MLBATCH_TEST_GATES": str(gates)}
    ) as running:
        yield running


@pytest.fixture(scope="session")
def keyless_proxy(keyless_server: RunningServer) -> Iterator[ScoringProxy]:
    """What Airflow takes for that server."""
    with scoring_proxy(keyless_server.url) as running:
        yield running


@pytest.fixture(scope="session")
def airflow(
    tmp_path_factory: pytest.TempPathFactory,
    server: RunningServer,
    proxy: ScoringProxy,
    keyless_proxy: ScoringProxy,
) -> Iterator[AirflowProcesses]:
    """Airflow on SQLite, with one triggerer named `triggerer`."""
    home = tmp_path_factory.mktemp("airflow")
    url = f"http://127.0.0.1:{proxy.port}"
    keyless = connection_to(f"http://127.0.0.1:{keyless_proxy.port}", server.password)
    env = {f"AIRFLOW_CONN_{KEYLESS.upper()}": keyless}
    with running_airflow(home, url, server.password, env=env) as running:
        yield running


class Case:
    """A batch of its own: a version of the service, a table, a gate.

    :param conn_id: the connection to the server behind the proxy
    """

    RECORDS = 5

    def __init__(
        self,
        number: int,
        folder: Path,
        gates: Path,
        airflow: AirflowProcesses,
        proxy: ScoringProxy,
        conn_id: str = "mlbatch_default",
    ) -> None:
        self.version, self.airflow, self.proxy = str(number), airflow, proxy
        self.has_keys = conn_id != KEYLESS
        self.folder, self._conn_id = folder, conn_id
        self._gate = gates / f"gate-{number}"
        self.write_table(first=0)

    def write_table(self, first: int, name: str = "table.csv") -> Path:
        """A table whose ``x`` begin with ``first``."""
        with (self.folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["gate", "x"])
            # The last record waits, so that there is always progress to be seen.
            gates_of_records = [""] * (self.RECORDS - 1) + [self._gate.name]
            writer.writerows([gate, first + x] for x, gate in enumerate(gates_of_records))
        return self.folder / name

    def trigger(self, dag_id: str, table: str = "table.csv", **params: Any) -> Run:
        """Start a run that scores this case's table."""
        return self.airflow.trigger(
            dag_id,
            version=self.version,
            conn_id=self._conn_id,
            input_path=str(self.folder / table),
            output_path=str(self.folder / f"scored-{table}"),
            **params,
        )

    def open_gate(self) -> None:
        """Let the batch complete."""
        self._gate.touch()

    def hold(self, method: str, pattern: str, at: str) -> Held:
        """Stop the next request of this case; the pattern follows its version in the path."""
        return self.proxy.hold(method, self._pattern(pattern), at)  # type: ignore[arg-type]

    def passed(self, method: str, pattern: str, status: int | None = None) -> list[Passed]:
        """What the server has seen of this case."""
        return self.proxy.passed(method, self._pattern(pattern), status)

    def started(self) -> int:
        """How many batches the server has begun; a repeated key begins none."""
        return len({one.execution_id for one in self.passed("POST", r"/batch\?", 202)})

    def cancelled(self) -> int:
        """How many requests to cancel the server has seen."""
        return len(self.passed("DELETE", "/batch/"))

    def wait_until_polled(self) -> None:
        """Wait until the server is asked for the batch's state from now on."""
        before = len(self.passed("GET", "/batch/[^/]+$"))
        eventually(lambda: len(self.passed("GET", r"/batch/[^/]+")) > before, what="a poll")

    def scores(self, table: str = "table.csv") -> list[float]:
        """The scored column, in the table's order."""
        with (self.folder / f"scored-{table}").open(newline="") as file:
            return [float(row["y"]) for row in csv.DictReader(file)]

    def _pattern(self, pattern: str) -> str:
        return f"/api/gated/{self.version}{pattern}"


@pytest.fixture(scope="session")
def make_case(
    tmp_path_factory: pytest.TempPathFactory,
    gates: Path,
    airflow: AirflowProcesses,
    proxy: ScoringProxy,
    keyless_proxy: ScoringProxy,
) -> Iterator[Callable[..., Case]]:
    """Makes batches that no other test has to do with."""
    made: list[Case] = []

    def make(*, keyless: bool = False) -> Case:
        assert len(made) < VERSIONS
        between = (keyless_proxy, KEYLESS) if keyless else (proxy, "mlbatch_default")
        made.append(Case(len(made), tmp_path_factory.mktemp("case"), gates, airflow, *between))
        return made[-1]

    yield make
    for case in made:
        case.open_gate()


@pytest.fixture
def case(make_case: Callable[[], Case]) -> Iterator[Case]:
    """A batch of its own for a test."""
    made = make_case()
    yield made
    made.open_gate()
