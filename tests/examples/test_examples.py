"""Every example Dag, run whole against the demonstration's server, as its file alone would run it."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_1_PLUS
from airflow.sdk import DAG

from airflow_mlbatch.demo.airflow_home import DemoHome, examples_folder
from airflow_mlbatch.demo.services import fit_logistic
from airflow_mlbatch.hooks import MLBatchHook
from tests.mail_server import MailServer, running_mail_server, text_of
from tests.provider.airflow_side import tell_of_assets
from tests.provider.conftest import connection_to
from tests.server.test_r_services import has_r, r
from tests.server_process import RunningServer, running_server

FILES = sorted(examples_folder().glob("*.py"))
HEAVY = {"pandas", "pyarrow", "numpy", "requests", "aiohttp", "msgspec", "starlette", "matplotlib"}


@dataclass
class Ran:
    """What the examples did.

    :param outcome: exit codes by file
    :param data: the folder of their tables
    :param log: everything that was printed
    :param environment: of the process that ran them
    """

    outcome: dict[str, Any]
    data: Path
    log: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(
        "--demo", "--allow-publish", data_dir=tmp_path_factory.mktemp("demo") / "server"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def mail() -> Iterator[MailServer]:
    with running_mail_server() as running:
        yield running


@pytest.fixture(scope="module")
def ran(
    server: RunningServer,
    mail: MailServer,
    airflow_database: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Ran:
    home = DemoHome(tmp_path_factory.mktemp("examples"))
    home.prepare()
    outcome = home.folder / "outcome.json"
    environment = {
        **os.environ,
        "AIRFLOW_CONN_MLBATCH_DEFAULT": connection_to(server),
        "AIRFLOW_CONN_SMTP_DEFAULT": mail.connection,
        "MLBATCH_EXAMPLE_DATA": str(home.data),
    }
    runner = Path(__file__).with_name("run.py")
    with home.log.open("w") as log:
        tell_of_assets(environment, log)
        subprocess.run(
            [sys.executable, str(runner), str(outcome), *map(str, FILES)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    written = re.sub(r"\x1b\[[0-9;]*m", "", home.log.read_text())
    assert outcome.exists(), written[-4000:]
    return Ran(json.loads(outcome.read_text()), home.data, written, environment)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_succeeds(ran: Ran, name: str) -> None:
    assert ran.outcome[name] in (0, False), ran.log[-4000:]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_score_mtcars(ran: Ran) -> None:
    rows = read_csv(ran.data / "scored" / "scores.csv")
    assert len(rows) == 32
    assert len(list((ran.data / "scored" / "artifacts").rglob("*.png"))) == 32


def test_guide_workflow(ran: Ran, server: RunningServer) -> None:
    assert "manualTransmission(120, 2.8) = 0.6418125" in ran.log
    guide = ran.data / "scored" / "guide"
    assert (guide / "Histogram.png").read_bytes().startswith(b"\x89PNG")
    assert (guide / "all" / "Histogram.png").exists()
    assert len(list((guide / "operators").rglob("*.png"))) == 32


def test_publish_guide(ran: Ran, tmp_path: Path) -> None:
    assert "published manualTransmission(120, 2.8) = 0.6418125" in ran.log
    folder = ran.data / "scored" / "publish_guide"
    rows = read_csv(folder / "scores.csv")
    answers = [float(row["answer"]) for row in rows]
    if has_r():
        assert "runtime R" in ran.log
        code = (
            "cars <- glm(am ~ hp + wt, data = mtcars, family = binomial);"
            "cat(sprintf('%.17g', predict(cars, mtcars, type = 'response')))"
        )
        expected = [float(word) for word in r(code, tmp_path).split()]
    else:
        assert "publishing the Python counterpart" in ran.log
        given = np.column_stack(
            [np.ones(len(rows)), *([float(row[name]) for row in rows] for name in ("hp", "wt"))]
        )
        wanted = np.array([float(row["am"]) for row in rows])
        expected = list(1 / (1 + np.exp(-given @ fit_logistic(given, wanted))))
    assert len(answers) == 32
    assert answers == pytest.approx(expected, abs=1e-12)
    pictures = list((folder / "pictures").rglob("*Histogram.png"))
    assert len(pictures) == 32
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)


def test_the_guides_python_counterpart(tmp_path: Path) -> None:
    """What the example publishes where the server has no R; this machine may have one."""
    from dags_examples import mlbatch_publish_guide as example

    with running_server(
        "--demo", "--allow-publish", "--workers", "1", data_dir=tmp_path / "server"
    ) as server:
        home = DemoHome(tmp_path / "home")
        home.prepare()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server))
            patch.setattr(example, "EXAMPLE_DATA", home.data)
            example.publish_python("counterpart")
            hook = MLBatchHook()
            found = hook.consume("counterpart", example.VERSION, {"hp": 120, "wt": 2.8})
    assert found.outputs["answer"] == pytest.approx(0.6418125, abs=5e-8)
    assert found.artifacts == ("Histogram.png",)


def test_promotion(ran: Ran) -> None:
    (promoted,) = re.findall(
        r"promoted version (\w+): error ([\d.]+), and ([\d.]+) with (\w+)", ran.log
    )
    assert float(promoted[1]) < float(promoted[2])
    assert promoted[3] == "baseline"
    folder = ran.data / "scored" / "promotion"
    manifests = [
        json.loads((folder / f"{name}.csv.manifest.json").read_text()) for name in ("old", "new")
    ]
    assert [each["service_version"] for each in manifests] == ["baseline", promoted[0]]
    assert [each["rows"] for each in manifests] == [11, 11]


def test_failed_records(ran: Ran) -> None:
    folder = ran.data / "scored" / "failed_records"
    rows = parquet.read_table(folder / "scores.parquet").to_pylist()
    assert len(rows) == 32
    heavy = {"Cadillac Fleetwood", "Lincoln Continental", "Chrysler Imperial"}
    assert {row["model"] for row in rows if not row["mlbatch_success"]} == heavy
    rejects = read_csv(folder / "rejects.csv")
    assert {row["model"] for row in rejects} == heavy
    assert all("at most 5.0" in row["mlbatch_error"] for row in rejects)
    # Scored a second time, in a batch of their own that the manifest names.
    manifest = json.loads((folder / "scores.parquet.manifest.json").read_text())
    assert len(manifest["execution_ids"]) == 2


def test_artifacts(ran: Ran) -> None:
    folder = ran.data / "scored" / "answers"
    assert sorted(path.name for path in folder.glob("*.csv")) == [
        f"{index:04d}-answer.csv" for index in range(32)
    ]
    assert (folder / "0000-answer.csv").read_text().splitlines()[0] == "am_Pred"


def test_assets(ran: Ran) -> None:
    table = parquet.read_table(ran.data / "scored" / "assets" / "scores.parquet")
    assert table.schema.names[:3] == ["model", "am", "answer_am_Pred"]
    assert table.num_rows == 32


def test_the_reader_is_scheduled_on_what_the_writer_makes() -> None:
    from dags_examples import mlbatch_assets

    (outlet,) = mlbatch_assets.write_scores.get_task("results").outlets
    # A paused Dag, as new ones are unless Airflow is told otherwise, would not start.
    assert mlbatch_assets.read_scores.is_paused_upon_creation is False
    condition: Any = mlbatch_assets.read_scores.timetable.asset_condition
    (awaited,) = condition.objects
    assert awaited.uri == outlet.uri


def test_many_tables(ran: Ran) -> None:
    folder = ran.data / "scored" / "many"
    tables = {path.name: parquet.read_table(path) for path in folder.glob("*.parquet")}
    assert {name: table.num_rows for name, table in tables.items()} == {
        "mtcars.csv.parquet": 32,
        "mtcars.tsv.parquet": 32,
    }
    assert len({str(table["answer"]) for table in tables.values()}) == 1


def test_taskflow(ran: Ran) -> None:
    assert "scored [11, 7, 14] cars" in ran.log
    assert len(read_csv(ran.data / "scored" / "taskflow" / "scores.csv")) == 32


def test_large_table(ran: Ran) -> None:
    folder = ran.data / "scored" / "large"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["rows"], manifest["failed"], len(manifest["files"])) == (32, 0, 4)
    assert (folder / "_SUCCESS").exists()


PAGE = 'href="http://localhost:8080/mlbatch/dags/mlbatch_alert_by_email/runs/'


def test_alert_by_email(ran: Ran, mail: MailServer) -> None:
    """Three of 32 cars may fail: the task succeeds, and its report names them."""
    (message,) = mail.about("mlbatch_alert_by_email")
    text = text_of(message)
    assert (message["Subject"], message["To"]) == (
        "Scored: mlbatch_alert_by_email",
        "data-team@example.com",
    )
    assert "carefulService 1.0:\n   3 of 32 records failed" in text
    assert len(re.findall(r"<li>record \d+: ValueError: .* at most 5\.0", text)) == 3
    assert PAGE in text
    mail.messages.clear()
    code = (
        "import runpy, sys\n"
        "dag = runpy.run_path(sys.argv[1])['dag']\n"
        "print(dag.test(run_conf={'max_failed_records': 0, 'to': 'me@example.com'}).state)\n"
    )
    (file,) = (file for file in FILES if file.stem == "mlbatch_alert_by_email")
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env=ran.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().splitlines()[-1] == "failed", done.stderr[-4000:]
    (message,) = mail.about("mlbatch_alert_by_email")
    text = text_of(message)
    assert (message["Subject"], message["To"]) == (
        "Scoring failed: mlbatch_alert_by_email",
        "me@example.com",
    )
    assert "max_failed_records" in text
    assert PAGE in text


def test_deadline_alert(ran: Ran, mail: MailServer, monkeypatch: pytest.MonkeyPatch) -> None:
    table = parquet.read_table(ran.data / "scored" / "deadline" / "scores.parquet")
    assert table.num_rows == 32
    if not AIRFLOW_V_3_1_PLUS:
        pytest.skip("Airflow 3.0 has no deadlines")
    from airflow.sdk.definitions.deadline import DeadlineReference
    from airflow.triggers.callback import CallbackTrigger

    from dags_examples import mlbatch_deadline_alert

    found: Any = mlbatch_deadline_alert.dag.deadline
    (alert,) = found if isinstance(found, list) else [found]
    assert alert.interval == timedelta(hours=1)
    assert alert.reference == DeadlineReference.DAGRUN_QUEUED_AT
    # As the scheduler hands it to the triggerer when the deadline is missed.
    run = {"dag_id": "mlbatch_deadline_alert", "dag_run_id": "manual__<1>"}
    context = {"dag_run": run, "deadline": {"id": "7", "deadline_time": "2026-12-01T12:00:00"}}
    trigger = CallbackTrigger(alert.callback.path, {**alert.callback.kwargs, "context": context})
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", mail.connection)

    async def fire() -> list[Any]:
        return [event.payload["state"] async for event in trigger.run()]

    assert asyncio.run(fire()) == ["running", "success"]
    (message,) = mail.about("mlbatch_deadline_alert")
    assert message["Subject"] == "Scores are late: mlbatch_deadline_alert"
    text = text_of(message)
    assert "Run manual__&lt;1&gt; of mlbatch_deadline_alert has no scores yet" in text
    assert "They were due at 2026-12-01T12:00:00" in text


def test_pick_up_batches(ran: Ran) -> None:
    (table,) = (ran.data / "scored" / "picked_up").glob("*.csv")
    first, second = read_csv(table)
    # The example of the vendor's guide, in a batch that no task has started.
    assert float(first["answer"]) == pytest.approx(0.6418125, abs=5e-8)
    assert second["mlbatch_success"] == "true"


def test_every_example_was_looked_at() -> None:
    looked_at = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    by_outcome = {"ways_to_wait"}  # there is nothing to see but that it succeeds
    assert {file.stem.removeprefix("mlbatch_") for file in FILES} <= looked_at | by_outcome


def test_examples_parse_without_a_server() -> None:
    """Neither a connection nor data, and no module that takes time to load."""
    code = (
        "import sys, runpy, airflow.sdk, airflow.providers.common.compat.sdk, airflow.triggers.base\n"
        # Whatever Airflow loads for its own names is not ours to save.
        "for name in airflow.sdk.__all__: getattr(airflow.sdk, name, None)\n"
        "before = set(sys.modules)\n"
        "for file in sys.argv[1:]:\n"
        "    runpy.run_path(file, run_name='parsed')\n"
        f"print(sorted({HEAVY!r} & (set(sys.modules) - before)))\n"
    )
    names = ("AIRFLOW_CONN_", "MLBATCH_")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, FILES)],
        env={name: value for name, value in os.environ.items() if not name.startswith(names)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_examples_are_ready_to_be_tried(file: Path) -> None:
    """Each says what it does, and a first attempt that fails is repeated while somebody watches."""
    dags = [each for each in runpy.run_path(str(file)).values() if isinstance(each, DAG)]
    assert dags
    for dag in dags:
        assert dag.description, dag.dag_id
        assert dag.description != dag.doc_md
        for task in dag.tasks:
            assert task.retries is not None and task.retries >= 1, task.task_id
            assert task.retry_delay <= timedelta(seconds=10), task.task_id


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_examples_explain_themselves(file: Path) -> None:
    text = file.read_text()
    assert text.startswith('"""')
    assert "doc_md=__doc__" in text
    assert "MLBATCH_EXAMPLE_DATA" in text
