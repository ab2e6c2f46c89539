"""Services that raise, print, litter, exit, hang or leak: each concerns its own record only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.patience import wait_until
from tests.server.api import Api
from tests.server.conftest import SERVICES
from tests.server.processes import assert_gone, lives
from tests.server_process import RunningServer, running_server

GOOD = {"mood": "pid"}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with one worker, and little patience for a record."""
    with running_server(
        "--services",
        SERVICES,
        "--workers",
        "1",
        "--record-timeout",
        "3",
        "--max-worker-growth",
        "200",
        data_dir=tmp_path_factory.mktemp("impatient") / "data",
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("raise", "ValueError: no such car"),
        ("sys.exit", "SystemExit: enough"),
        ("unheard of", "KeyError: 'unheard of'"),
        ("undeclared", "OutputError: output 'more' is not declared"),
        ("missing", "OutputError: output 'answer' is missing"),
        ("misfit", "OutputError: output 'answer': found 7 (int), expected text (character)"),
        ("os._exit", "the worker process ended with exit code 3"),
        ("segfault", "the worker process was killed by signal SIGSEGV"),
        ("fork and exit", "the worker process ended with exit code 4"),
    ],
)
def test_a_record_fails_alone(api: Api, mood: str, message: str) -> None:
    before, failed, after = api.score("moody", [GOOD, {"mood": mood}, GOOD])
    assert failed["success"] is False
    assert failed["errorMessage"] == message
    assert failed["outputParameters"] == {}
    assert before["success"] is True
    assert after["success"] is True


def test_a_call_fails_in_the_same_words(api: Api) -> None:
    assert api.consume("moody", mood="raise")["errorMessage"] == "ValueError: no such car"
    assert "exit code 3" in api.consume("moody", mood="os._exit")["errorMessage"]
    assert api.consume("moody", mood="pid")["success"] is True


def test_many_deaths_in_one_batch(api: Api) -> None:
    moods = ["pid", "os._exit", "pid", "pid", "segfault"] * 8
    results = api.score("moody", [{"mood": mood} for mood in moods])
    assert [item["success"] for item in results] == [mood == "pid" for mood in moods]


def test_what_was_scored_before_a_death_is_not_scored_again(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    moods = ["note"] * 60 + ["os._exit"] + ["note"] * 60 + ["segfault"] + ["note"] * 60
    with running_server(
        "--services", SERVICES, "--workers", "1", env={"NOTE_FILE": str(notes)}
    ) as server:
        results = Api(server.url).score("moody", [{"mood": mood} for mood in moods])
    told = [item["errorMessage"] for item in results]
    assert [message for message in told if "worker process" in message] == [
        "the worker process ended with exit code 3",
        "the worker process was killed by signal SIGSEGV",
    ]
    assert [mood for mood, message in zip(moods, told, strict=True) if "process" in message] == [
        "os._exit",
        "segfault",
    ]
    assert len(notes.read_text().split()) == moods.count("note")


def test_records_do_not_wait_for_a_long_one_behind_them(tmp_path: Path) -> None:
    with running_server(
        "--services", SERVICES, "--workers", "1", env={"STARTED_FILE": str(tmp_path / "started")}
    ) as server:
        own = Api(server.url)
        # The worker gets one record, then two, then four, of which the last but one hangs.
        records = [GOOD] * 5 + [{"mood": "start and hang"}] + [GOOD] * 20
        path = own.start("moody", records)
        wait_until(lambda: own.batch(path)["completedItemCount"] == 5)
        assert len(own.batch(path)["batchExecutionResults"]) == 5
        own.delete(path)


def test_what_is_printed_is_kept_with_its_record(api: Api, server: RunningServer) -> None:
    lines = len(server.lines)
    loud, quiet, endless, deep = api.score(
        "moody", [{"mood": mood} for mood in ("print", "pid", "print much", "stdout")]
    )
    assert loud["consoleOutput"] == "first line\nzwölf €"
    assert quiet["consoleOutput"] == ""
    assert 64_000 < len(endless["consoleOutput"]) < 70_000
    assert endless["consoleOutput"].endswith("more characters were printed)")
    assert deep["success"] is True
    assert len(server.lines) == lines


def test_a_closed_stdout_is_closed_to_nobody_else(impatient: RunningServer) -> None:
    records = [{"mood": "close stdout"}, {"mood": "print at once"}]
    first, second = Api(impatient.url).score("moody", records)
    assert first["consoleOutput"] == "last words\n"
    assert second["errorMessage"] == ""
    assert second["consoleOutput"] == "at once\n"


def test_what_a_service_has_started_goes_with_its_worker(impatient: RunningServer) -> None:
    api = Api(impatient.url)
    (started,) = api.score("moody", [{"mood": "start a child"}])
    child = psutil.Process(int(started["outputParameters"]["answer"]))
    assert lives(child)
    api.score("moody", [{"mood": "os._exit"}])
    assert_gone([child])


def test_a_death_is_told_by_its_cause(impatient: RunningServer) -> None:
    results = Api(impatient.url).score("moody", [{"mood": "segfault"}] * 20)
    assert {item["errorMessage"] for item in results} == {
        "the worker process was killed by signal SIGSEGV"
    }


def test_only_declared_regular_files_are_kept(api: Api) -> None:
    path = api.start("moody", [{"mood": "files"}, GOOD])
    first, second = api.wait(path)
    assert first["changedFiles"] == api.get(f"{path}/0/files").json() == ["kept.txt"]
    assert second["changedFiles"] == api.get(f"{path}/1/files").json() == []


def test_every_record_has_an_empty_folder(impatient: RunningServer) -> None:
    moods = ["files", "litter", "chdir", "remove folder"]
    records = [{"mood": mood} for one in moods for mood in (one, "list folder")]
    results = Api(impatient.url).score("moody", records)
    assert [item["outputParameters"]["answer"] for item in results[1::2]] == [""] * len(moods)
    assert all(item["success"] for item in results)


def test_a_service_does_not_see_the_password(api: Api) -> None:
    assert api.consume("moody", mood="environment")["outputParameters"] == {"answer": ""}


def test_a_record_that_hangs_is_ended(impatient: RunningServer) -> None:
    api = Api(impatient.url)
    before, hung, after = api.score("moody", [GOOD, {"mood": "hang"}, GOOD])
    assert hung["errorMessage"] == "the record took longer than 3 seconds"
    assert before["success"] is True
    assert after["success"] is True
    called = api.consume("moody", mood="hang")
    assert called["errorMessage"] == "the record took longer than 3 seconds"


def test_a_worker_that_grows_is_replaced_between_records(impatient: RunningServer) -> None:
    results = Api(impatient.url).score("leak", [{"mib": 60}] * 12)
    assert all(item["success"] for item in results)
    pids = [item["outputParameters"]["pid"] for item in results]
    assert len(set(pids)) >= 2
    assert max(pids.count(pid) for pid in set(pids)) <= 8


def test_a_worker_is_replaced_after_its_share(tmp_path: Path) -> None:
    with running_server(
        "--services",
        SERVICES,
        "--workers",
        "1",
        "--max-records-per-worker",
        "10",
        data_dir=tmp_path / "data",
    ) as server:
        results = Api(server.url).score("moody", [GOOD] * 35)
    pids = [item["outputParameters"]["answer"] for item in results]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [10, 10, 10, 5]


def test_deleting_a_batch_ends_its_work(impatient: RunningServer) -> None:
    with running_server("--services", SERVICES, "--workers", "2") as server:
        api = Api(server.url)
        # A child of a service dies with its worker, too: hence the whole tree.
        path = api.start("moody", [{"mood": "hang"}] * 10)
        while api.batch(path)["state"] != "inProgress":
            pass
        workers = {process.pid for process in psutil.Process(server.pid).children(recursive=True)}
        assert api.delete(path).status_code == 200
        assert api.get(path).status_code == 404
        # Nothing of it is in the way of the next one.
        assert all(item["success"] for item in api.score("moody", [GOOD] * 4))
        left = {process.pid for process in psutil.Process(server.pid).children(recursive=True)}
        assert len(workers - left) == 2
