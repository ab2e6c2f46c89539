"""Batches on a Dask cluster: real schedulers and workers on this machine, some of which are killed."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.certificates import Papers
from tests.patience import wait_until
from tests.ports import ReservedPort
from tests.server.processes import assert_gone
from tests.server.publishing import NUMBER, Publisher
from tests.server_process import running_server

pytest.importorskip("distributed", reason="distributed is not installed (extra: dask)")

from tests.server.dask_cluster import SERVICES, Place, dask_worker_of, records, running_place

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shared_place(tmp_path_factory: pytest.TempPathFactory, papers: Papers) -> Iterator[Place]:
    """A cluster of two workers."""
    with running_place(tmp_path_factory.mktemp("dask"), papers) as place:
        place.cluster.add_worker()
        place.cluster.add_worker()
        yield place


@pytest.fixture
def place(shared_place: Place) -> Place:
    """The same, whole again and without traces."""
    while len(shared_place.cluster.workers) < 2:
        shared_place.cluster.add_worker()
    shared_place.wait_for_workers(2)
    shared_place.forget()
    return shared_place


# --- what a cluster does ----------------------------------------------------------------------------


def test_records_are_scored_on_the_cluster_and_come_back_in_order(place: Place) -> None:
    path = place.api.start("where", records(300))
    results = place.api.wait(path)
    found = [result["outputParameters"] for result in results]
    assert [one["n"] for one in found] == [3 * n for n in range(300)]
    assert all(one["folder"].startswith(str(place.cluster.folder)) for one in found)
    assert [result["changedFiles"] for result in results] == [
        [] if n % 10 else ["n.txt"] for n in range(300)
    ]
    assert place.api.get(f"{path}/290/files/n.txt").text == "290\n" * 100


def test_status_reports_the_workers(place: Place) -> None:
    place.api.score("where", records(20))
    found = place.dask
    assert (found["statusCode"], found["details"]["problem"]) == ("pass", "")
    workers = found["details"]["workers"]
    assert {(one["threads"], one["problem"]) for one in workers} == {(1, "")}
    assert len({one["name"] for one in workers}) == 2
    assert any(one["recordsPerSecond"] > 0 for one in workers)


def test_a_call_is_answered_by_the_server_itself(place: Place) -> None:
    answer = place.api.consume("where", n=2)["outputParameters"]
    assert answer["n"] == 6
    assert answer["folder"].startswith(str(place.server.data_dir))


def test_a_record_that_kills_its_process_fails_alone(place: Place) -> None:
    results = place.api.score("exit", records(50))
    assert [n for n, result in enumerate(results) if not result["success"]] == [7]
    assert results[7]["errorMessage"] == "the worker process ended with exit code 3"


def test_records_that_end_a_call_for_many_fail_alone(place: Place) -> None:
    results = place.api.score("exit columns", records(200))
    failed = {n: one["errorMessage"] for n, one in enumerate(results) if not one["success"]}
    assert failed == dict.fromkeys([49, 99, 149, 199], "the worker process ended with exit code 3")
    scored = [one["outputParameters"] for one in results if one["success"]]
    assert [one["n"] for one in scored] == [n for n in range(200) if n % 50 != 49]
    assert max(one["of"] for one in scored) > 1


def test_a_cancellation_ends_the_processes_on_every_machine(place: Place) -> None:
    path = place.api.start("hang", records(5))
    wait_until(lambda: len(list(place.traces.iterdir())) == 2)
    processes = [psutil.Process(pid) for n in range(5) for pid in place.runs(n)]
    assert len({dask_worker_of(process.pid) for process in processes}) == 2
    assert place.api.delete(path).status_code == 200
    assert_gone(processes)
    assert len(place.api.score("where", records(4))) == 4


def test_a_published_service_reaches_the_workers_in_each_of_its_forms(place: Place) -> None:
    for factor, is_update in ((2.0, False), (5.0, True)):
        reply = place.api.publish(
            "scaled", "1", "y = x * model['factor']", {"model": {"factor": factor}},
            is_update=is_update, **NUMBER,
        )  # fmt: skip
        assert reply.status_code in (200, 201), reply.text
        results = place.api.score("scaled", [{"x": x} for x in range(8)])
        assert [one["outputParameters"]["y"] for one in results] == [x * factor for x in range(8)]


def test_artifacts_that_are_too_large_fail_their_record(place: Place) -> None:
    first, second = place.api.score("large", [{"size": 1_000_000}, {"size": 1_000_001}])
    assert first["success"]
    assert second["errorMessage"] == (
        "artifacts: found 1,000,001 bytes, expected at most 1,000,000 (--dask-artifact-bytes): "
        "use --dask-shared-folder for larger ones"
    )


# --- what may happen to it --------------------------------------------------------------------------


def test_a_lost_worker_costs_its_records_one_more_try(place: Place) -> None:
    path = place.api.start("hang once", records(12), parallel=2)
    wait_until(lambda: bool(place.runs(3)))
    lost = dask_worker_of(place.runs(3)[0])
    (worker,) = (one for one in place.cluster.workers if one.pid == lost)
    left_behind = worker.children(recursive=True)
    place.cluster.kill_worker(worker)
    results = place.api.wait(path)
    assert [one["outputParameters"]["n"] for one in results] == list(range(12))
    assert len(place.runs(3)) == 2
    assert_gone(left_behind)


def test_a_worker_whose_scoring_process_is_killed_starts_another(place: Place) -> None:
    place.cluster.kill_worker(place.cluster.workers[0])
    path = place.api.start("hang", records(1))
    wait_until(lambda: bool(place.runs(0)))
    process = psutil.Process(place.runs(0)[0]).parents()[1]
    # What it is told last, to end this batch, it never reads.
    process.suspend()
    assert place.api.delete(path).status_code == 200
    process.kill()
    results = place.api.score("where", records(4))
    assert [one["outputParameters"]["n"] for one in results] == [0, 3, 6, 9]


def test_files_that_are_lost_on_a_worker_are_sent_again(place: Place) -> None:
    place.api.score("where", records(20))
    for parcels in place.cluster.folder.glob("worker-*/**/parcels"):
        shutil.rmtree(parcels)
    results = place.api.score("where", records(4))
    assert [one["outputParameters"]["n"] for one in results] == [0, 3, 6, 9]


def test_a_record_that_chance_loses_two_workers_with_is_scored_on_one_of_its_own(
    place: Place,
) -> None:
    count = 2_000
    path = place.api.start("hang twice", records(count), parallel=2)
    known: set[int] = set()
    for tries in (1, 2):
        wait_until(lambda tries=tries: len(place.runs(0)) == tries)  # type: ignore[misc]
        (process,) = set(place.runs(0)) - known
        known.add(process)
        lost = dask_worker_of(process)
        if tries == 2:
            place.cluster.add_worker(threads=2)
            place.wait_for_workers(2)
        (worker,) = (one for one in place.cluster.workers if one.pid == lost)
        place.cluster.kill_worker(worker)
    wait_until(lambda: len(place.runs(0)) == 3)
    place.wait_for_workers(1)
    # The other thread stays idle, though there is much to do.
    assert [one["busy"] for one in place.dask["details"]["workers"]] == [1]
    assert place.api.batch(path)["completedItemCount"] < count - 2
    (place.traces / "word").touch()
    results = place.api.wait(path)
    assert [one["outputParameters"]["n"] for one in results] == list(range(count))
    assert len(place.runs(0)) == 3


def test_a_record_that_ends_its_machine_again_and_again_fails_alone(place: Place) -> None:
    place.cluster.add_worker()
    place.cluster.add_worker(threads=2)
    place.wait_for_workers(4)
    results = place.api.score("murder", records(12))
    assert [n for n, result in enumerate(results) if not result["success"]] == [3]
    assert results[3]["errorMessage"] == (
        "three Dask workers were lost while they scored it, the last of them while it scored nothing "
        "else"
    )
    assert len(place.runs(3)) == 3
    for worker in list(place.cluster.workers):
        if worker.poll() is not None:
            place.cluster.kill_worker(worker)


def test_the_processes_end_with_the_server(place: Place) -> None:
    place.api.start("hang", records(1))
    wait_until(lambda: bool(place.runs(0)))
    process = psutil.Process(place.runs(0)[0])
    place.server.kill()
    assert_gone([process])
    place.server.start()
    place.api = Publisher(place.server.url)
    wait_until(lambda: len(place.runs(0)) == 2)
    (path,) = place.api.get("/api/hang/1/batch").json()
    assert place.api.delete(f"/api/hang/1/batch/{path}").status_code == 200


def test_batches_wait_for_a_scheduler_that_has_gone(place: Place) -> None:
    path = place.api.start("hang once", records(6), parallel=2)
    wait_until(lambda: bool(place.runs(3)))
    place.cluster.kill_scheduler()
    wait_until(lambda: "cannot be reached, batches wait for it" in place.dask["details"]["problem"])
    assert place.api.batch(path)["state"] == "inProgress"
    for worker in list(place.cluster.workers):
        place.cluster.kill_worker(worker)
    place.cluster.start_scheduler()
    place.cluster.add_worker()
    results = place.api.wait(path)
    assert [one["outputParameters"]["n"] for one in results] == list(range(6))


def test_artifacts_of_any_size_come_through_a_shared_folder(tmp_path: Path, papers: Papers) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    with running_place(tmp_path, papers, "--dask-shared-folder", str(shared)) as place:
        # Nobody is there yet: the batch waits.
        path = place.api.start("large", [{"size": 3_000_000}, {"size": 0}])
        wait_until(lambda: "the cluster has no workers" in place.dask["details"]["problem"])
        place.cluster.add_worker()
        assert all(result["success"] for result in place.api.wait(path))
        assert len(place.api.get(f"{path}/0/files/large.bin").content) == 3_000_000
        # What cannot be copied fails its record, and stops nothing.
        results = place.api.score("vanish", records(4))
        assert [n for n, one in enumerate(results) if not one["success"]] == [2]
        assert "artifacts cannot be stored: FileNotFoundError" in results[2]["errorMessage"]
        wait_until(lambda: not list(shared.iterdir()))


def test_the_cluster_of_the_page_runs(tmp_path: Path) -> None:
    """Three commands, as they stand there; this worker has Dask's nanny around it."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    block = page.partition("## A cluster on one host")[2].partition("```console\n")[2]
    place = ReservedPort()
    commands = [
        shlex.split(line.replace("8786", str(place.number)))[1:]
        for line in block.partition("```")[0].splitlines()
    ]
    (tmp_path / "factor.txt").write_text("1")
    shutil.copy(SERVICES, tmp_path / "services.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DASK_TEMPORARY_DIRECTORY": str(tmp_path),
    }
    assert [command[:2] for command in commands] == [
        ["dask", "scheduler"],
        ["dask", "worker"],
        ["mlbatch", "serve"],
    ]
    log = (tmp_path / "log").open("wb")
    dask = [
        subprocess.Popen(
            [sys.executable, "-m", *command, "--no-dashboard"],
            env=environment,
            stdout=log,
            stderr=log,
        )
        for command in commands[:2]
    ]
    try:
        options = ["--dask-file", str(tmp_path / "factor.txt"), *commands[2][2:]]
        options[options.index("services.py")] = str(tmp_path / "services.py")
        with running_server(*options, data_dir=tmp_path / "data") as server:
            results = Publisher(server.url).score("where", records(20))
        assert [one["outputParameters"]["n"] for one in results] == list(range(20))
    finally:
        for process in reversed(dask):
            process.terminate()
            process.wait()
        log.close()
        place.close()


# --- the command line -------------------------------------------------------------------------------


def serve(*options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "airflow_mlbatch.cli", "serve", "--allow-publish", *options]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False
    )


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    package = tmp_path / "distributed"
    package.mkdir()
    (package / "__init__.py").write_text("raise ModuleNotFoundError(name='distributed')")
    done = serve(
        *("--engine", "dask", "--scheduler", "tcp://127.0.0.1:1"),
        *("--data-dir", str(tmp_path / "data"), "--port", "0"),
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (
        2,
        (
            "mlbatch serve: --engine dask needs the package distributed, which is not installed: "
            "pip install 'airflow-mlbatch[dask]'\n"
        ),
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--scheduler", "tls://a:1"], "--scheduler needs --engine dask"),
        (
            ["--engine", "dask"],
            (
                "--scheduler: found nothing, expected tls://HOST:PORT, or tcp://HOST:PORT for a cluster "
                "that others cannot reach"
            ),
        ),
        (
            ["--engine", "dask", "--scheduler", "tls://a:1"],
            "--dask-ca: found nothing, expected a file, for tls://",
        ),
        (
            ["--engine", "dask", "--scheduler", "tcp://a:1", "--dask-key", "k"],
            "--dask-key: found k, expected a scheduler with tls://",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: list[str], told: str) -> None:
    done = serve(*options)
    assert (done.returncode, done.stderr) == (2, f"mlbatch serve: {told}\n")


def test_nothing_of_dask_is_imported_without_it() -> None:
    code = "import sys, airflow_mlbatch.server.serving; print('distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- the proof --------------------------------------------------------------------------------------


def score_while_workers_come_and_go(place: Place, count: int) -> None:
    """Two workers are killed at random moments, and one comes."""
    chance = random.Random(count)
    place.cluster.add_worker()
    place.wait_for_workers(3)
    path = place.api.start("nap", records(count), parallel=100)

    def completed() -> int:
        return int(place.api.batch(path)["completedItemCount"])

    def wait_for(share: float) -> None:
        """With patience for each step: the whole takes as long as it takes."""
        while (before := completed()) < share * count:
            wait_until(lambda: completed() > before)

    for part in (0.2, 0.5):
        wait_for(part + 0.2 * chance.random())
        place.cluster.kill_worker(chance.choice(place.cluster.workers))
        if part == 0.2:
            place.cluster.add_worker()
    wait_for(1)
    results = place.api.wait(path)
    assert [one["outputParameters"].get("n") for one in results] == list(range(count))
    for n in range(0, count, 1000):
        assert place.api.get(f"{path}/{n}/files/n.txt").text == f"{n}\n" * 1000


def test_workers_come_and_go(place: Place) -> None:
    score_while_workers_come_and_go(place, 3_000)


@pytest.mark.system
@pytest.mark.timeout(3600)
def test_workers_come_and_go_during_200_000_records(place: Place) -> None:
    score_while_workers_come_and_go(place, 200_000)
