"""Every cell of the table of faults, through the Airflow roles: what becomes of the task.

Law: nothing of ours is replaced but the clock. A task is run as Airflow runs it: an exception other
than those that it never retries brings another attempt, with the same state store; a deferral goes
through its trigger; a rescheduled sensor is a new object.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from airflow_mlbatch.errors import BatchTimeoutError, MLBatchError, SubmissionUnknownError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.operators import (
    ArtifactDownloadOperator,
    BatchResultsOperator,
    BatchScoreOperator,
)
from airflow_mlbatch.protocol.flows import Policy
from airflow_mlbatch.sensors import BatchStateSensor
from tests.faults.server import Act, Answer, FaultServer, Play, Request, as_json, closed_port
from tests.faults.table import (
    COMPLETE,
    EXECUTION,
    FAULTS,
    OTHER_BATCH,
    POLICY,
    SCENES,
    SECRETS,
    SERVICE,
    TOKENS,
    VERSION,
    Cell,
    Fault,
    Path,
    played_acts,
    script,
)
from tests.faults.talk import START, USER
from tests.patience import wait_until
from tests.provider.airflow_side import FakeStateStore, FakeTaskInstance
from tests.provider.conftest import SERVICES, connection_to
from tests.provider.test_sensor import run_to_its_end
from tests.server_process import RunningServer, running_server

NEVER_RETRIED = (AirflowFailException, AirflowSensorTimeout, AirflowSkipException)
RECORDS = [{"hp": 120, "wt": 2.8}] * 3
NAMED: dict[str, Any] = {"service_name": SERVICE, "service_version": VERSION}
OF_BATCH: dict[str, Any] = {**NAMED, "execution_id": EXECUTION}
BATCH_AT_WORK = {"state": "inProgress", "completedItemCount": 1, "totalItemCount": 3}
_BATCH = SCENES[Path.SUBMISSION].target
ROWS = [{"index": index, "answer": 0.5, "success": True, "error": None} for index in range(3)]
SUMMARY = {
    "execution_id": EXECUTION,
    "state": "complete",
    "completed_item_count": 3,
    "total_item_count": 3,
}


# --- the clock -----------------------------------------------------------------------------------


@dataclass
class Clock:
    """A clock that only waiting moves; stands in for ``time`` where a task asks for it."""

    now: float = START

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    async def sleep_on_loop(self, seconds: float) -> None:
        self.now += seconds

    def timing(self, policy: Policy = POLICY) -> Timing:
        """How a session keeps time by this clock."""
        return Timing(policy, self.time, self.sleep, self.sleep_on_loop)


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Connects:
    """The ports that this process connects to, in order: nobody else can count refused requests."""

    def __init__(self) -> None:
        self._ports: list[int] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            self._ports.append(arguments[1][1])

    def forget(self) -> None:
        self._ports.clear()

    def to(self, port: int) -> int:
        """How often, since the last :meth:`forget`."""
        return self._ports.count(port)


CONNECTS = Connects()


# --- the tasks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """A task that meets a fault.

    :param path: the path on which it meets it
    :param run: one attempt
    :param value: what it returns when all is well
    :param before: the good answers that it gets on that path first
    :param last: the request after which the line is refused, where that is not the first one
    :param has_polled: whether it polls once before it watches
    :param is_reader: whether it reads a batch that another task has started
    """

    path: Path
    run: Callable[[dict[str, Any]], Any]
    value: Any
    before: Sequence[Act] = ()
    last: str | None = None
    has_polled: bool = False
    is_hook: bool = False
    is_reader: bool = False

    def error(self, cell: Cell) -> type[MLBatchError] | None:
        """What the task raises when the fault stays."""
        return (self.is_reader and cell.reader_error) or cell.error

    def requests(self, cell: Cell) -> int:
        return cell.requests_after_a_poll if self.has_polled else cell.requests


def with_hook(call: Callable[[MLBatchHook], Any]) -> Callable[[dict[str, Any]], Any]:
    def run(context: Any) -> Any:
        hook = MLBatchHook(timing=context["timing"])
        try:
            return call(hook)
        finally:
            hook.close()

    return run


def sensor(mode: str) -> Callable[[dict[str, Any]], Any]:
    def make() -> BatchStateSensor:
        return BatchStateSensor(
            task_id="wait",
            **OF_BATCH,
            poke_interval=0.01,
            mode="reschedule" if mode == "reschedule" else "poke",
            deferrable=mode == "deferrable",
        )

    return lambda context: run_to_its_end(make, context)


def score(**kwargs: Any) -> Callable[[dict[str, Any]], Any]:
    def make() -> BatchScoreOperator:
        # Reading the failed records at the end is a conversation of its own.
        return BatchScoreOperator(
            task_id="score", **NAMED, records=RECORDS, report_failures=False, **kwargs
        )

    return lambda context: run_to_its_end(make, context)  # type: ignore[arg-type]


def results(context: Any) -> Any:
    operator = BatchResultsOperator(task_id="results", **OF_BATCH)
    operator.timing = context["timing"]
    return operator.execute(context)


def results_table(context: Any) -> Any:
    path = context["folder"] / "scores.csv"
    operator = BatchResultsOperator(task_id="results", **OF_BATCH, output_path=str(path))
    operator.timing = context["timing"]
    return operator.execute(context)["rows"], path.read_text().count("0.5")


def artifact(context: Any) -> Any:
    operator = ArtifactDownloadOperator(
        task_id="files", **OF_BATCH, indexes=[0], max_xcom_bytes=100_000
    )
    operator.timing = context["timing"]
    return [each["content"] for each in operator.execute(context)]


def artifact_file(context: Any) -> Any:
    dest = context["folder"] / "files"
    operator = ArtifactDownloadOperator(
        task_id="files", **OF_BATCH, indexes=[0], dest=str(dest), path_template="{file_name}"
    )
    operator.timing = context["timing"]
    return operator.execute(context)["file_count"], (dest / "Histogram.png").read_bytes()


_AFTER_POST = f"POST {_BATCH}"
ROLES: dict[str, Role] = {
    "hook, get_service": Role(
        Path.CALL,
        with_hook(lambda hook: hook.get_service(SERVICE, VERSION).name),
        SERVICE,
        is_hook=True,
    ),
    "hook, start_batch": Role(
        Path.SUBMISSION,
        with_hook(lambda hook: hook.start_encoded_batch(SERVICE, VERSION, b'[{"hp":1,"wt":1}]')),
        EXECUTION,
        is_hook=True,
    ),
    "hook, watch_batch": Role(
        Path.POLL,
        with_hook(lambda hook: hook.watch_batch(SERVICE, VERSION, EXECUTION).state.value),
        "complete",
        is_hook=True,
    ),
    "hook, get_batch": Role(
        Path.RESULTS,
        with_hook(
            lambda hook: [
                record.outputs["answer"]
                for record in hook.get_batch(SERVICE, VERSION, EXECUTION).records
            ]
        ),
        [0.5] * 3,
        last=f"GET {SCENES[Path.CALL].target}",
        is_hook=True,
    ),
    "hook, get_artifact": Role(
        Path.ARTIFACT,
        with_hook(
            lambda hook: hook.get_artifact(
                SERVICE, VERSION, EXECUTION, 0, "Histogram.png", max_bytes=100_000
            )
        ),
        b"a picture",
        is_hook=True,
    ),
    **{
        f"sensor, {mode}": Role(Path.POLL, sensor(mode), SUMMARY, has_polled=True, is_reader=True)
        for mode in ("poke", "reschedule", "deferrable")
    },
    "score, its service": Role(Path.CALL, score(), EXECUTION),
    "score": Role(Path.SUBMISSION, score(), EXECUTION, last=f"GET {_BATCH}"),
    "score, deferrable": Role(
        Path.SUBMISSION,
        score(wait_for_completion=True, deferrable=True, poll_interval=0.01),
        EXECUTION,
        last=f"GET {_BATCH}",
    ),
    "score, waiting": Role(
        Path.POLL,
        score(wait_for_completion=True, poll_interval=5),
        EXECUTION,
        last=_AFTER_POST,
    ),
    "score, deferred": Role(
        Path.POLL,
        score(wait_for_completion=True, deferrable=True, poll_interval=5),
        EXECUTION,
        last=_AFTER_POST,
        has_polled=True,
    ),
    "results": Role(
        Path.RESULTS,
        results,
        ROWS,
        before=[COMPLETE],
        last=f"GET {SCENES[Path.CALL].target}",
        is_reader=True,
    ),
    "results, table": Role(
        Path.RESULTS,
        results_table,
        (3, 3),
        before=[COMPLETE],
        last=f"GET {SCENES[Path.CALL].target}",
        is_reader=True,
    ),
    "artifacts": Role(
        Path.ARTIFACT,
        artifact,
        ["a picture"],
        last=f"GET {_BATCH}/{EXECUTION}/0/files",
        is_reader=True,
    ),
    "artifacts, files": Role(
        Path.ARTIFACT,
        artifact_file,
        (1, b"a picture"),
        last=f"GET {_BATCH}/{EXECUTION}/0/files",
        is_reader=True,
    ),
}


def _cells() -> Iterator[Any]:
    for fault in FAULTS:
        for name, role in ROLES.items():
            cell = fault.cells.get(role.path)
            if cell is None or (fault.name == OTHER_BATCH and role.has_polled):
                continue
            if fault.name == "more than the limit" and name.startswith("artifacts"):
                continue  # these have a limit of their own, or none: see below
            yield pytest.param(fault, role, cell, id=f"{fault.name}-{name}")


CELLS = list(_cells())
PASSING = [cell for cell in CELLS if cell.values[0].act and cell.values[2].error]


# --- as Airflow runs them ------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """How an attempt ended.

    :param is_retried: whether Airflow tries the task again
    """

    value: Any = None
    error: BaseException | None = None
    is_retried: bool = False

    @property
    def ours(self) -> type[BaseException] | None:
        """The class of our error, also where Airflow's stands before it."""
        error = self.error
        while error is not None and not isinstance(error, MLBatchError):
            error = error.__cause__
        return type(error) if error is not None else None


def attempt(role: Role, context: Any) -> End:
    try:
        return End(role.run(context))
    except Exception as error:
        if role.is_hook and isinstance(error, MLBatchError):
            # What its callers ask: a task of their own decides what Airflow sees.
            return End(None, error, not error.is_permanent)
        return End(None, error, not isinstance(error, NEVER_RETRIED))


@dataclass
class Stage:
    """A server that plays, and tasks that run against it."""

    clock: Clock
    context: Any
    monkeypatch: pytest.MonkeyPatch
    good: dict[str, list[Act]] = field(default_factory=lambda: _good())
    met: int = 0

    def play(self, fault: Fault, role: Role, *, passes: bool, tries: int = 1) -> list[End]:
        policy = replace(POLICY, small_seconds=fault.small_seconds)
        self.context["timing"] = self.clock.timing(policy)
        if fault.act is None and role.last is None:
            port = closed_port()
            self.connect(port, fault)
            return self.attempts(role, tries, port)
        acts = {
            **self.good,
            **({} if fault.act is None else script(fault, role.path, passes=passes)),
        }
        place = f"{SCENES[role.path].method} {SCENES[role.path].target}"
        acts[place] = [*role.before, *acts[place]]
        play = Play(acts)

        def refusing(request: Request) -> Act:
            act = play(request)
            if f"{request.method} {request.path}" == role.last:
                server.refuse()
                CONNECTS.forget()
                assert isinstance(act, Answer)
                return replace(act, close=True)
            return act

        with FaultServer(refusing if fault.act is None else play) as server:
            self.connect(server.port, fault)
            ends = self.attempts(role, tries, server.port if fault.act is None else None)
            place = f"{SCENES[role.path].method} {SCENES[role.path].target}"
            seen = [f"{request.method} {request.path}" for request in server.requests]
            self.met += seen.count(place)
            return ends

    def connect(self, port: int, fault: Fault) -> None:
        connection: dict[str, Any] = {
            "conn_type": "mlbatch",
            "host": "127.0.0.1",
            "port": port,
            "login": USER.username,
            "password": USER.password,
            "extra": {"read_timeout": fault.read_timeout},
        }
        if fault.act is None:
            # A ready token, or the login would be what meets the fault.
            connection |= {"password": "token-one"}
            connection["extra"]["auth"] = "token"
        self.monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", json.dumps(connection))

    def attempts(self, role: Role, tries: int, refused: int | None) -> list[End]:
        """Attempts until one needs no other.

        :param refused: the port where nobody listens, in the end
        """
        CONNECTS.forget()
        ends = [attempt(role, self.context)]
        while len(ends) < tries and ends[-1].is_retried:
            ends.append(attempt(role, self.context))
        self.met = 0 if refused is None else CONNECTS.to(refused)
        return ends

    def requests(self, role: Role) -> int:
        """How many met the fault."""
        return self.met - len(role.before)


def _good() -> dict[str, list[Act]]:
    """What is answered where no fault is."""
    played: dict[str, list[Act]] = {
        f"{scene.method} {scene.target}": [scene.good] for scene in SCENES.values()
    }
    return {
        **played,
        f"GET {_BATCH}": [as_json([])],
        f"GET {_BATCH}/{EXECUTION}/0/files": [as_json(["Histogram.png"])],
    }


@pytest.fixture
def stage(clock: Clock, context: Any, tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> Stage:
    context["folder"] = tmp_path
    context["timing"] = clock.timing()
    context["ti"].get_first_reschedule_date = lambda context: None
    return Stage(clock, context, monkeypatch)


@pytest.mark.parametrize(("fault", "role", "cell"), CELLS)
def test_a_fault_that_stays(stage: Stage, fault: Fault, role: Role, cell: Cell) -> None:
    (end,) = stage.play(fault, role, passes=False)

    error = role.error(cell)
    if error is None:
        assert end == End(role.value)
    else:
        assert end.ours is error, end.error
        assert cell.text in str(end.error)
        assert end.is_retried is not error.is_permanent
    assert stage.requests(role) == role.requests(cell)
    for secret in SECRETS:
        assert secret not in str(end.error)


@pytest.mark.parametrize(("fault", "role", "cell"), PASSING)
def test_a_fault_that_passes(stage: Stage, fault: Fault, role: Role, cell: Cell) -> None:
    """Airflow's second attempt succeeds where the first one has not forgiven the fault."""
    *before, end = stage.play(fault, role, passes=True, tries=2)

    met = len(played_acts(fault, role.path))
    error = role.error(cell)
    assert error is not None
    if error.is_permanent and not cell.is_retried:
        assert (end.ours, end.is_retried, before) == (error, False, [])
        assert stage.requests(role) == met
        return
    assert end == End(role.value), end.error
    assert len(before) == (0 if cell.is_retried else 1)
    # The second attempt reads the status anew before it meets the good answer.
    assert stage.requests(role) == met + 1 + len(before) * len(role.before)


UNKNOWN = [
    pytest.param(fault, id=fault.name)
    for fault in FAULTS
    if (cell := fault.cells.get(Path.SUBMISSION)) and cell.error is SubmissionUnknownError
]


@pytest.mark.parametrize("fault", UNKNOWN)
@pytest.mark.parametrize("name", ["score", "score, deferrable"])
def test_a_batch_whose_start_went_wrong_on_the_way_back(
    stage: Stage, name: str, fault: Fault
) -> None:
    """The server has it: it is found there, and nothing is sent twice."""
    role = ROLES[name]
    stage.good[f"GET {_BATCH}"] = [as_json([]), as_json([EXECUTION])]
    # What proves it: the service gives for our records what the execution holds.
    stage.good[f"POST {_BATCH.removesuffix('/batch')}"] = [
        as_json({"success": True, "outputParameters": {"answer": 0.5}})
    ]
    (end,) = stage.play(fault, role, passes=False)

    assert end == End(EXECUTION), end.error
    assert stage.requests(role) == 1


def test_a_file_beyond_the_limit_of_xcom(stage: Stage) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == "more than the limit")
    (end,) = stage.play(fault, ROLES["artifacts"], passes=False)
    assert isinstance(end.error, AirflowFailException)
    assert "max_xcom_bytes: found more than 100,000 bytes" in str(end.error)


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_server_in_trouble_at_the_deadline_hides_nothing(
    stage: Stage, deferrable: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """The batch cannot be cancelled, and still the task says how far it came."""
    play: dict[str, Any] = {
        **stage.good,
        "POST /login": [as_json(TOKENS)],
        f"GET {_BATCH}/{EXECUTION}": [as_json(BATCH_AT_WORK)],
        f"DELETE {_BATCH}/{EXECUTION}": [as_json({"message": "the server is busy"}, 503)],
    }
    run = score(wait_for_completion=True, deferrable=deferrable, poll_interval=5, timeout=60)
    with FaultServer(Play(play)) as server:
        stage.connect(server.port, FAULTS[0])
        end = attempt(Role(Path.POLL, run, None), stage.context)
    assert isinstance(end.error, AirflowFailException)
    assert end.ours is BatchTimeoutError
    assert "not complete at the deadline: 1 of 3 records" in str(end.error)
    assert "could not be cancelled" in "".join(capfd.readouterr())


# --- a server that restarts, and one whose tokens are short-lived --------------------------------

# No batch of these can end before the gate is open.
GATED = [{"gate": "open" if number > 18 else None, "x": number} for number in range(24)]
IN_THE_GATED: dict[str, Any] = {"service_name": "gated", "service_version": "1"}


def all_who_wait(watched: str) -> list[Callable[[], Any]]:
    """A sensor of each mode for a batch, and two operators that start and await one of their own."""

    def watching(mode: str) -> BatchStateSensor:
        return BatchStateSensor(
            task_id="wait",
            **IN_THE_GATED,
            execution_id=watched,
            poke_interval=0.2,
            mode="reschedule" if mode == "reschedule" else "poke",
            deferrable=mode == "deferrable",
        )

    def scoring(deferrable: bool) -> Any:
        return BatchScoreOperator(
            task_id="score",
            **IN_THE_GATED,
            records=GATED,
            wait_for_completion=True,
            poll_interval=0.2,
            deferrable=deferrable,
        )

    return [
        *(functools.partial(watching, mode) for mode in ("poke", "reschedule", "deferrable")),
        *(functools.partial(scoring, deferrable) for deferrable in (False, True)),
    ]


@pytest.fixture
def gated_server(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., AbstractContextManager[RunningServer]]:
    """Starts a server with more options; touching ``tmp_path / "open"`` opens its gate."""

    @contextmanager
    def run(*options: str) -> Iterator[RunningServer]:
        env = {"MLBATCH_TEST_MARKERS": str(tmp_path)}
        arguments = ("--services", str(SERVICES), *options)
        with running_server(*arguments, data_dir=tmp_path / "data", env=env) as server:
            monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server))
            yield server

    return run


@contextmanager
def all_waiting(hook: MLBatchHook, gate: FilePath) -> Iterator[None]:
    """Have them wait; in the end the gate is opened, and what they say is checked."""
    watched = hook.start_batch("gated", "1", GATED, parallel_count=2)
    makers = all_who_wait(watched)
    with ThreadPoolExecutor(len(makers)) as pool:
        ends = [pool.submit(run_to_its_end, make, _context()) for make in makers]
        try:
            wait_until(lambda: len(hook.list_batch_executions("gated", "1")) == 3)
            wait_until(
                lambda: hook.get_batch_status("gated", "1", watched).completed_item_count > 0
            )
            yield
            assert not any(end.done() for end in ends)
        finally:
            gate.touch()
    *seen, scored, deferred = [end.result() for end in ends]
    assert [summary["state"] for summary in seen] == ["complete"] * 3
    found = hook.list_batch_executions("gated", "1")
    assert sorted(found) == sorted([watched, scored, deferred])
    for execution_id in (scored, deferred):
        records = hook.get_batch("gated", "1", execution_id).records
        assert [record.outputs["y"] for record in records] == list(range(24))


def test_a_server_that_dies_in_mid_batch(gated_server: Any, tmp_path: FilePath) -> None:
    """SIGKILL, and a start on the same folder: all who wait go on, and nothing is scored twice."""
    with (
        gated_server() as server,
        contextlib.closing(MLBatchHook()) as hook,
        all_waiting(hook, tmp_path / "open"),
    ):
        server.kill()
        server.start()


def test_tokens_that_end_while_all_wait(gated_server: Any, tmp_path: FilePath) -> None:
    """Days of a batch, in short: each token and its successor have ended before the batch does."""
    lifetime = 3
    with (
        gated_server("--token-lifetime", str(lifetime)),
        contextlib.closing(MLBatchHook()) as hook,
        all_waiting(hook, tmp_path / "open"),
    ):
        time.sleep(2.5 * lifetime)


_numbers = itertools.count()


def _context() -> dict[str, Any]:
    ti: Any = FakeTaskInstance()
    # Another task each time: one task has one batch.
    ti.task_id = f"task-{next(_numbers)}"
    ti.get_first_reschedule_date = lambda context: None
    return {"ti": ti, "task_state_store": FakeStateStore()}
