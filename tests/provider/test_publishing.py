"""Services published with the hook, the operators and the command line, on a live server."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_mlbatch.errors import InputError, ServiceExistsError, ServiceNotFoundError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators import DeleteServiceOperator, PublishServiceOperator
from tests.provider.airflow_side import FakeStateStore
from tests.provider.conftest import connection_to
from tests.server_process import PASSWORD, RunningServer, running_server

NUMBER: dict[str, Any] = {"inputs": {"x": float}, "outputs": {"y": float}}


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that accepts services."""
    data = tmp_path_factory.mktemp("open-server") / "data"
    with running_server("--allow-publish", "--workers", "1", data_dir=data) as running:
        yield running


@pytest.fixture(autouse=True)
def connection(open_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(open_server))
    return "mlbatch_default"


coefficients = np.array([1.0, 2.0])


def straight_line(x):  # type: ignore[no-untyped-def]
    """What is above it travels with the models."""
    return float(coefficients[0] + coefficients[1] * x)


def both(x):  # type: ignore[no-untyped-def]
    return {"half": x / 2, "twice": x * 2}


def published(hook: MLBatchHook, name: str, version: str = "1", **inputs: Any) -> Any:
    result = hook.consume(name, version, inputs)
    assert result.success, result.error
    return dict(result.outputs)


# --- the hook ---------------------------------------------------------------------------------------


def test_a_function_with_its_model(hook: MLBatchHook) -> None:
    is_overwritten = hook.publish_service(
        "line", "1", code=straight_line, models={"coefficients": coefficients}, **NUMBER
    )
    assert is_overwritten is False
    service = hook.get_service("line", "1")
    assert service.operation_id == "straight_line"
    assert service.code.endswith("y = straight_line(x)")
    assert published(hook, "line", x=3) == {"y": 7.0}


def test_a_function_with_several_outputs(hook: MLBatchHook) -> None:
    hook.publish_service(
        "both", "1", code=both, inputs={"x": float}, outputs={"half": float, "twice": float}
    )
    assert published(hook, "both", x=3) == {"half": 1.5, "twice": 6.0}


def test_text_and_files(hook: MLBatchHook, tmp_path: Path) -> None:
    code, model = tmp_path / "score.py", tmp_path / "model.pkl"
    code.write_text("y = scaled(x)")
    model.write_bytes(pickle.dumps(3))
    init = "def scaled(x):\n    return factor * x"
    hook.publish_service(
        "files", "1", code=code, init_code=init, models={"factor": model}, **NUMBER
    )
    assert published(hook, "files", x=2) == {"y": 6.0}


def test_a_version_is_overwritten_only_when_told_to(hook: MLBatchHook) -> None:
    hook.publish_service("again", "1", code="y = n", models={"n": 1}, description="old", **NUMBER)
    with pytest.raises(ServiceExistsError, match="is published already"):
        hook.publish_service("again", "1", code="y = x", **NUMBER)
    assert published(hook, "again", x=0) == {"y": 1.0}
    code = "y = 1 if 'n' in globals() else 2"
    assert hook.publish_service("again", "1", code=code, overwrite=True, **NUMBER) is True
    # Nothing is left of what was there: neither its objects nor its description.
    assert published(hook, "again", x=0) == {"y": 2.0}
    assert hook.get_service("again", "1").description == ""


def test_an_update_changes_what_it_names(hook: MLBatchHook) -> None:
    hook.publish_service("partly", "1", code="y = n", models={"n": 1}, description="d", **NUMBER)
    hook.update_service("partly", "1", models={"n": 2})
    assert published(hook, "partly", x=0) == {"y": 2.0}
    hook.update_service("partly", "1", code="y = n * 10")
    assert published(hook, "partly", x=0) == {"y": 20.0}
    assert hook.get_service("partly", "1").description == "d"
    with pytest.raises(ServiceNotFoundError):
        hook.update_service("nobody", "1", code="y = 1")


def test_deleting(hook: MLBatchHook) -> None:
    hook.publish_service("brief", "1", code="y = x", **NUMBER)
    assert hook.delete_service("brief", "1") is True
    assert hook.delete_service("brief", "1") is False
    with pytest.raises(ServiceNotFoundError):
        hook.get_service("brief", "1")


def test_the_latest_version(hook: MLBatchHook) -> None:
    with pytest.raises(ServiceNotFoundError):
        hook.get_latest_service("series")
    for version in ("2", "10", "1"):
        hook.publish_service("series", version, code="y = x", **NUMBER)
        assert hook.get_latest_service("series").version == version
    # An update does not make it newer.
    hook.update_service("series", "2", code="y = 0")
    assert hook.get_latest_service("series").version == "1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"code": lambda x: x}, "expected source text, a Path, or a function with a name"),
        ({"code": Path("nowhere.py")}, "code: nowhere.py cannot be read"),
        ({"code": "y = x", "inputs": {"x": "number"}}, "inputs, 'x': found type 'number'"),
        ({"code": "y = x", "models": {"m": Path("no.pkl")}}, "models, 'm': no.pkl cannot be read"),
        ({"code": straight_line, "runtime_type": "R"}, "expected R source text or a Path"),
        ({"code": "1", "runtime_type": "R", "models": {"m": 1}}, "a file that R has written"),
        ({"code": "1", "runtime_type": "Perl"}, "expected one of R, Python"),
    ],
)
def test_what_cannot_be_sent(hook: MLBatchHook, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        hook.publish_service("wrong", "1", **arguments)
    assert message in str(caught.value)


def test_the_server_says_what_is_wrong_with_the_code(hook: MLBatchHook) -> None:
    with pytest.raises(Exception, match="SyntaxError"):
        hook.publish_service("wrong", "1", code="y = (", models={"n": 1}, **NUMBER)


# --- the operators ----------------------------------------------------------------------------------


def publishing(service: str, **more: Any) -> PublishServiceOperator:
    arguments = {"service_name": service, "service_version": "1", "code": "y = n", **NUMBER, **more}
    return PublishServiceOperator(task_id="publish", **arguments)


def test_a_retry_finds_what_it_has_published(hook: MLBatchHook, context: Any) -> None:
    assert publishing("retried", models={"n": 1}).execute(context) == "1"
    created = hook.get_service("retried", "1").created_at
    # The worker died after the publication: the next attempt knows no more than the note.
    assert publishing("retried", models={"n": 1}).execute(context) == "1"
    assert MLBatchHook().get_service("retried", "1").created_at == created
    with pytest.raises(AirflowFailException, match="is published already"):
        publishing("retried", models={"n": 2}).execute(context)
    # Nor does the failed attempt make the version the task's own.
    with pytest.raises(AirflowFailException):
        publishing("retried", models={"n": 2}).execute(context)
    assert published(hook, "retried", x=0) == {"y": 1.0}


def test_the_version_of_another_task_is_not_taken_over(hook: MLBatchHook, context: Any) -> None:
    publishing("foreign", models={"n": 1}).execute(context)
    other: Any = {**context, "task_state_store": FakeStateStore()}
    for _ in range(2):
        with pytest.raises(AirflowFailException, match="is published already"):
            publishing("foreign", models={"n": 1}).execute(other)
    assert publishing("foreign", models={"n": 5}, overwrite=True).execute(other) == "1"
    assert published(hook, "foreign", x=0) == {"y": 5.0}


def test_models_from_files_anywhere(hook: MLBatchHook, context: Any, tmp_path: Path) -> None:
    model = tmp_path / "model.pkl"
    model.write_bytes(pickle.dumps(4))
    publishing("stored", models={"n": f"file://{model}"}).execute(context)
    assert published(hook, "stored", x=0) == {"y": 4.0}
    with pytest.raises(AirflowFailException, match="cannot be read"):
        publishing("unstored", models={"n": f"file://{tmp_path}/none.pkl"}).execute(context)


@pytest.mark.parametrize(
    "other",
    [
        {"code": "y = x + 1"},
        {"init_code": "n = 1"},
        {"description": "another"},
        {"operation_id": "another"},
        {"inputs": {"x": int}},
        {"inputs": {"z": float, "x": float}},
        {"outputs": {"y": float, "z": float}},
        {"artifacts": ["y.txt"]},
        {"models": {"n": 1}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_without_a_state_store(hook: MLBatchHook, context: Any, other: dict[str, Any]) -> None:
    """The very same version is no conflict, and any other one is."""
    del context["task_state_store"]
    name = f"stateless {other}"
    same = {"code": "y = x", "description": "what it is for", "operation_id": "same"}
    for _ in range(2):
        assert publishing(name, **same).execute(context) == "1"
        created = hook.get_service(name, "1").created_at
    assert MLBatchHook().get_service(name, "1").created_at == created
    assert hook.publish_service(name, "1", **{**NUMBER, **same}) is True
    with pytest.raises(AirflowFailException, match="is published already"):
        publishing(name, **{**same, **other}).execute(context)


def test_nobody_knows_what_the_models_of_a_version_are(hook: MLBatchHook, context: Any) -> None:
    del context["task_state_store"]
    assert publishing("modelled", models={"n": 1}).execute(context) == "1"
    for models in ({"n": 1}, None):
        with pytest.raises(AirflowFailException, match="same code, but its objects cannot be comp"):
            publishing("modelled", models=models).execute(context)


def test_the_command_line_knows_the_server_as_other_commands_do(
    hook: MLBatchHook, open_server: RunningServer, tmp_path: Path
) -> None:
    """By the Airflow connection, which is the default; `--url` is in the other tests."""
    source = tmp_path / "my_services.py"
    source.write_text(
        SOURCE.replace('"powers"', '"powers by name"').replace('"signs"', '"signs by name"')
    )
    environment = {name: text for name, text in os.environ.items() if name != "MLBATCH_URL"}
    for arguments in (
        ("publish", str(source)),
        ("unpublish", "powers by name", "1", "--conn-id", "mlbatch_default"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "airflow_mlbatch.cli", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    with pytest.raises(ServiceNotFoundError):
        hook.get_service("powers by name", "1")
    assert hook.get_service("signs by name", "1").version == "1"


def test_deleting_is_repeatable(hook: MLBatchHook, context: Any) -> None:
    for version in ("1", "2"):
        hook.publish_service("doomed", version, code="y = x", **NUMBER)
    operator = DeleteServiceOperator(
        task_id="delete", service_name="doomed", service_version="['1', '2', '3']"
    )
    assert operator.execute(context) == ["1", "2"]
    assert operator.execute(context) == []


# --- the command line -------------------------------------------------------------------------------

SOURCE = '''
"""Services of a user."""
import math

from airflow_mlbatch.server import service

BASE = 2


@service(
    "powers", "1", inputs={"x": float}, outputs={"y": float}
)
def power(x: float) -> float:
    """A power of two."""
    return math.pow(BASE, x)


@service("signs", "1", inputs={"x": float}, outputs={"up": float, "down": float})
def signs(x: float) -> dict[str, float]:
    return {"up": x, "down": -x}
'''


def mlbatch(
    *arguments: str, server: RunningServer, password: str = PASSWORD
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "airflow_mlbatch.cli", *arguments, "--url", server.url],
        # What Airflow says about a configuration for tests is no message of the command.
        env={**os.environ, "MLBATCH_PASSWORD": password, "AIRFLOW__CORE__UNIT_TEST_MODE": "False"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_publishing_a_file(hook: MLBatchHook, open_server: RunningServer, tmp_path: Path) -> None:
    source = tmp_path / "my_services.py"
    source.write_text(SOURCE)
    done = mlbatch("publish", str(source), server=open_server)
    assert (done.returncode, done.stdout) == (0, "published powers 1\npublished signs 1\n")
    assert published(hook, "powers", x=3) == {"y": 8.0}
    assert published(hook, "signs", x=3) == {"up": 3.0, "down": -3.0}
    assert hook.get_service("powers", "1").description == "A power of two."
    again = mlbatch("publish", str(source), server=open_server)
    assert (again.returncode, again.stdout) == (
        0,
        "found already powers 1\nfound already signs 1\n",
    )
    source.write_text(SOURCE.replace("BASE = 2", "BASE = 4"))
    again = mlbatch("publish", str(source), server=open_server)
    assert again.returncode == 2
    assert "'powers' version '1' is published already: publish another" in again.stderr
    source.write_text(SOURCE.replace("BASE = 2", "BASE = 3"))
    assert mlbatch("publish", str(source), "--overwrite", server=open_server).stdout == (
        "overwrote powers 1\noverwrote signs 1\n"
    )
    assert published(hook, "powers", x=3) == {"y": 27.0}
    gone = mlbatch("unpublish", "powers", "1", server=open_server)
    assert (gone.returncode, gone.stdout) == (0, "deleted powers 1\n")
    gone = mlbatch("unpublish", "powers", "1", server=open_server)
    assert (gone.returncode, gone.stdout) == (0, "gone already: powers 1\n")


def test_what_the_command_line_refuses(open_server: RunningServer, tmp_path: Path) -> None:
    for arguments, password, code, words in (
        (("unpublish", "a", "1"), "", 2, "MLBATCH_PASSWORD: found nothing"),
        (("unpublish", "a", "1"), "wrong", 5, "Invalid username or password"),
        (("publish", str(tmp_path / "none.py")), PASSWORD, 2, "there is no such file"),
    ):
        done = mlbatch(*arguments, server=open_server, password=password)
        assert done.returncode == code, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("mlbatch ")]
        assert words in line
