"""The commands about batches, on a live server: what they print, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from airflow_mlbatch.cli import main
from airflow_mlbatch.hooks import MLBatchHook
from tests.patience import wait_until
from tests.ports import ReservedPort
from tests.provider.conftest import connection_to
from tests.server_process import RunningServer


@pytest.fixture
def picky(hook: MLBatchHook) -> str:
    """A complete batch whose second record failed."""
    execution_id = hook.start_batch("picky", "1", {"x": [4.0, -1.0, 9.0]})
    hook.watch_batch("picky", "1", execution_id, poll_interval=0.05)
    return execution_id


@pytest.fixture
def gated(hook: MLBatchHook, markers: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A batch of which one record is done and the other waits."""
    gate = f"gate-{request.node.name}"
    execution_id = hook.start_batch("gated", "1", {"gate": [None, gate], "x": [1.0, 2.0]})
    named = ("gated", "1", execution_id)
    wait_until(lambda: hook.get_batch_status(*named).completed_item_count == 1)
    yield execution_id
    (markers / gate).touch()


class Ran:
    """A command that was run in this process.

    ``code``, ``out``, ``err``; ``json`` is what it printed.
    """

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        try:
            self.code = main(arguments)
        except SystemExit as end:
            self.code = int(end.code or 0)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


# --- services, test ------------------------------------------------------------------------------


def test_services_are_listed_with_all_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    found = {each["name"]: each for each in Ran(capsys, "services", "--json").json}
    assert found["picky"]["inputs"] == [{"name": "x", "type": "numeric"}]
    assert found["picky"]["artifacts"] == ["note.txt"]
    assert found["my service/β"]["version"] == "v 1"
    (one,) = Ran(capsys, "services", "double", "--json").json
    assert one["outputs"] == [{"name": "y", "type": "numeric"}]


def test_a_service_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "services", "nothing")
    assert (ran.code, ran.out) == (4, "")
    assert ran.err.startswith("mlbatch services: ")
    assert ran.err.count("\n") == 1


def test_the_health_of_a_server(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "test", "--json")
    assert ran.code == 0
    assert (ran.json["url"], ran.json["status"]) == (server.url, "pass")


# --- which server --------------------------------------------------------------------------------


def test_a_wrong_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLBATCH_PASSWORD", "not the password")
    ran = Ran(capsys, "test")
    assert (ran.code, ran.out) == (5, "")
    assert "not the password" not in ran.err


def test_nobody_listens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ReservedPort()
    monkeypatch.setenv("MLBATCH_URL", f"http://127.0.0.1:{place.number}")
    ran = Ran(capsys, "test")
    place.close()
    assert (ran.code, ran.out) == (1, "")


def test_a_connection_of_airflow(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLBATCH_PASSWORD")
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", connection_to(server))
    assert Ran(capsys, "test", "--conn-id", "other").code == 0
    monkeypatch.delenv("MLBATCH_URL")
    ran = Ran(capsys, "test")
    assert ran.code == 2
    assert "connection 'mlbatch_default': found none of this id" in ran.err
    monkeypatch.setenv("AIRFLOW_CONN_MLBATCH_DEFAULT", connection_to(server))
    assert Ran(capsys, "test").code == 0


def test_an_address_and_a_user(
    server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLBATCH_URL", "http://nowhere.invalid")
    assert Ran(capsys, "test", "--url", server.url).code == 0
    assert Ran(capsys, "test", "--url", server.url, "--username", "nobody").code == 5
    monkeypatch.setenv("MLBATCH_USERNAME", "nobody")
    assert Ran(capsys, "test", "--url", server.url).code == 5
    assert Ran(capsys, "test", "--url", server.url, "--username", "admin").code == 0


def test_a_token_in_place_of_a_password(
    server: RunningServer,
    hook: MLBatchHook,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import requests

    login = {"username": server.username, "password": server.password}
    token = requests.post(f"{server.url}/login", json=login).json()["access_token"]
    monkeypatch.delenv("MLBATCH_PASSWORD")
    monkeypatch.setenv("MLBATCH_TOKEN", token)
    assert Ran(capsys, "batches", "--ids").code == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("test", "--url", "localhost"), "--url: found 'localhost', expected http:// or https://"),
        (("test", "--conn-id", "x", "--username", "me"), "--username: found it without an address"),
        (("test", "--conn-id", "x", "--url", "http://x"), "not allowed with argument"),
        (("batches", "--version", "1"), "--version: found it without --service"),
        (("status", "x", "--timeout", "3"), "--timeout: found it without --wait"),
        (("status", "x", "--wait", "--timeout", "0"), "found '0', expected a number above 0"),
        (("results", "x", "--format", "parquet"), "--output: found nothing"),
        (("results", "x", "--json", "--format", "csv"), "--json: found it beside --format csv"),
        (("results", "x", "--partial", "--json"), "--partial: found it with the format jsonl"),
        (("results", "x", "--input", "x.csv"), "--input: found it with a table on the screen"),
        (("results", "x", "--output", "x.docx"), "found no known format"),
        (("results", ""), "found '', expected some text"),
        (("cancel", "x"), "--yes: found neither it nor anybody to ask"),
    ],
)
def test_what_cannot_be_used_is_said(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    ran = Ran(capsys, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err


def test_a_password_that_nobody_can_be_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLBATCH_PASSWORD")
    ran = Ran(capsys, "test")
    assert ran.code == 2
    assert "MLBATCH_PASSWORD: found nothing in the environment" in ran.err


# --- batches, status -----------------------------------------------------------------------------


def test_batches_and_how_far_they_are(
    picky: str, gated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {each["execution_id"]: each for each in Ran(capsys, "batches", "--json").json}
    assert found[gated] == {
        "service_name": "gated",
        "service_version": "1",
        "execution_id": gated,
        "state": "inProgress",
        "completed_item_count": 1,
        "total_item_count": 2,
    }
    assert found[picky]["state"] == "complete"
    assert gated not in Ran(capsys, "batches", "--service", "picky").out
    named = ("--service", "picky", "--version", "1")
    assert picky in Ran(capsys, "batches", *named, "--ids").out.splitlines()


def test_the_status_tells_a_script_what_became_of_a_batch(
    picky: str, gated: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Ran(capsys, "status", picky).code == 0
    running = Ran(capsys, "status", gated, "--json")
    assert (running.code, running.json["completed_item_count"]) == (6, 1)
    assert Ran(capsys, "results", gated).code == 6
    late = Ran(capsys, "status", gated, "--wait", "--poll-interval", "0.05", "--timeout", "0.01")
    assert (late.code, late.out) == (6, "")
    assert "records: 1 of 2, 50 %" in late.err


def test_a_batch_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for service in ((), ("--service", "picky", "--version", "1")):
        ran = Ran(capsys, "status", "8a1d3c1e-0000-4000-8000-000000000000", *service)
        assert (ran.code, ran.out) == (4, "")
        assert ran.err.count("\n") == 1


# --- results -------------------------------------------------------------------------------------


def test_results_on_the_screen(picky: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "results", picky)
    assert ran.code == 0
    first, second, third, fourth = ran.out.splitlines()
    assert first.split() == ["INDEX", "Y", "SUCCESS", "ERROR"]
    assert second.split() == ["0", "2", "true"]
    assert third.split()[:2] == ["1", "false"]
    assert "x is negative: -1.0" in third
    assert fourth.split() == ["2", "3", "true"]
    limited = Ran(capsys, "results", picky, "--limit", "1")
    assert len(limited.out.splitlines()) == 2
    assert "1 of 3 records" in limited.err


@pytest.mark.parametrize("format", ["csv", "tsv", "jsonl", "parquet"])
def test_results_in_a_file_beside_their_inputs(
    format: str, picky: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = tmp_path / "in.csv", tmp_path / f"out.{format}"
    table.write_text("name,x\na,4\nb,-1\nc,9\n")
    ran = Ran(capsys, "results", picky, "--input", str(table), "--output", str(output))
    assert (ran.code, ran.out) == (0, "")
    assert "1 of 3 records failed" in ran.err
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        "csv": pd.read_csv,
        "tsv": lambda path: pd.read_csv(path, sep="\t"),
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    frame = readers[format](output)
    assert list(frame["name"]) == ["a", "b", "c"]
    assert list(frame["y"].fillna(-1)) == [2.0, -1.0, 3.0]
    assert list(frame["mlbatch_success"]) == [True, False, True]


def test_results_in_a_pipe_are_those_of_the_file(
    picky: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    for suffix in ("csv", "tsv", "jsonl"):
        output = tmp_path / f"out.{suffix}"
        assert main(["results", picky, "--output", str(output)]) == 0
        capsysbinary.readouterr()
        assert main(["results", picky, "--format", suffix]) == 0
        assert capsysbinary.readouterr().out == output.read_bytes()


def test_too_many_failed_records(
    picky: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.csv"
    many = ("results", picky, "--output", str(output), "--max-failed-records")
    ran = Ran(capsys, *many, "0")
    assert ran.code == 3
    assert "1 of 3 records failed" in ran.err
    assert not output.exists()
    assert Ran(capsys, *many, "0.5").code == 0
    assert output.exists()


def test_partial_results_have_no_index(gated: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "results", gated, "--partial")
    assert ran.code == 0
    head, *rows = ran.out.splitlines()
    assert head.split() == ["Y", "SUCCESS", "ERROR"]
    assert [row.split() for row in rows] == [["1", "true"]]
    assert "1 of 2 records" in ran.err


def test_another_table_than_the_one_that_was_scored(
    picky: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "in.csv"
    table.write_text("x\n4\n")
    ran = Ran(capsys, "results", picky, "--input", str(table), "--output", str(tmp_path / "o.csv"))
    assert ran.code == 2
    assert "results" in ran.err
    assert not (tmp_path / "o.csv").exists()


def test_what_a_service_says_moves_no_cursor(
    hook: MLBatchHook, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"a": True, "b": 1, "c": 1.0, "d": "\x1b[2J[red]\r\nx", "e": [1], "f": [[1]]}
    execution_id = hook.start_batch("every-type", "1", [{**given, "g": {"h": [1]}}])
    hook.watch_batch("every-type", "1", execution_id, poll_interval=0.05)
    ran = Ran(capsys, "results", execution_id)
    assert "�[2J[red] x" in ran.out
    assert len(ran.out.splitlines()) == 2
    assert "\x1b" not in ran.out


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def files(hook: MLBatchHook) -> str:
    execution_id = hook.start_batch("files", "1", {"name": ["a", "b"]})
    hook.watch_batch("files", "1", execution_id, poll_interval=0.05)
    return execution_id


def test_files_are_listed(files: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = Ran(capsys, "artifacts", files, "--json").json
    names = ["data.bin", "empty.log", "größe.txt"]
    assert [(each["index"], each["file_name"]) for each in found] == [
        (index, name) for index in (0, 1) for name in names
    ]
    some = Ran(capsys, "artifacts", files, "--index", "1", "--name", "*.bin", "--json").json
    assert some == [{"index": 1, "file_name": "data.bin"}]
    assert Ran(capsys, "artifacts", files, "--index", "2").code == 2


def test_files_are_downloaded_once(
    files: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    ran = Ran(capsys, "artifacts", files, "--output", str(folder), "--json")
    assert ran.code == 0
    assert "6 files" in ran.err
    assert "records: 2 of 2, 100 %" in ran.err
    assert {Path(each["path"]).read_bytes() for each in ran.json if each["bytes"] == 1024} == {
        bytes(range(256)) * 4
    }
    assert (folder / "1" / "größe.txt").read_text("utf-8") == "größe b\n"
    (folder / "0" / "data.bin").unlink()
    again = Ran(capsys, "artifacts", files, "--output", str(folder))
    assert "6 files" in again.err
    assert "5 were there already" in again.err
    assert (folder / "0" / "data.bin").exists()


def test_a_folder_that_is_a_file(
    files: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    ran = Ran(capsys, "artifacts", files, "--output", str(tmp_path / "file"))
    assert (ran.code, ran.out) == (2, "")


# --- cancel --------------------------------------------------------------------------------------


def test_several_batches_are_cancelled(
    picky: str, gated: str, hook: MLBatchHook, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Ran(capsys, "cancel", picky, gated, "--yes", "--json")
    assert ran.code == 0
    assert [each["is_cancelled"] for each in ran.json] == [True, True]
    assert gated not in hook.list_batch_executions("gated", "1")
    named = ("--service", "picky", "--version", "1")
    again = Ran(capsys, "cancel", picky, *named, "--yes")
    assert again.code == 4
    assert "was gone already" in again.out


def test_help_is_said_without_airflow() -> None:
    assert "airflow" not in loaded("import airflow_mlbatch.cli as c; c.main(['results', '--help'])")


def loaded(code: str) -> set[str]:
    text = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint('\\n', ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}
