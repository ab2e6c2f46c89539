"""The process beside a Dask worker, which the test speaks to in the place of that worker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.chunks import Chunk, Done, Rules
from airflow_mlbatch.server.parcels import ParcelShelf, built_in_parcel
from airflow_mlbatch.server.wire import LENGTH, frame
from tests.patience import PATIENCE, wait_until
from tests.server.processes import assert_gone

ROOT = Path(__file__).resolve().parents[2]
SERVICES = Path(__file__).with_name("host_services.py")
RULES = Rules(
    seconds=60,
    record_timeout=0,
    load_timeout=PATIENCE,
    max_records=0,
    max_growth=0,
    max_memory=0,
    artifact_bytes=1_000_000,
    shared_folder="",
)


class Host:
    """The process.

    :param folder: where everything of it lies
    """

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder, self.traces = folder, folder / "traces"
        self.traces.mkdir()
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "airflow_mlbatch.server.dask_host", str(folder)]
            self.process = psutil.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": str(ROOT), "TRACES": str(self.traces), **env},
            )
        ours.settimeout(PATIENCE)
        self._line, self._words = ours, ours.makefile("rb")
        self.parcel = self._filled_shelf()

    def _filled_shelf(self) -> str:
        shelf = ParcelShelf(self.folder / "parcels")
        parcel = built_in_parcel([str(SERVICES)], [], [], self.folder / "copy")
        word = shelf.begin(parcel.id)
        for path, piece in parcel.pieces():
            shelf.add(word, path, piece)
        shelf.finish(word, parcel.manifest)
        return parcel.id

    @property
    def parcel_folder(self) -> Path:
        """Where the files of the services are."""
        return self.folder / "parcels" / self.parcel

    def begin(self, service: str, count: int, rules: Rules = RULES) -> None:
        """Have records scored."""
        texts = b",".join(b'{"n":%d}' % n for n in range(count))
        chunk = Chunk("c", self.parcel, service, "1", [Block(0, count, texts)], rules)
        self._line.sendall(frame(chunk))

    def done(self) -> Done:
        """What became of them."""
        body = self._words.read(*LENGTH.unpack(self._words.read(LENGTH.size)))
        return msgspec.msgpack.decode(body, type=Done)

    def score(self, service: str, count: int, rules: Rules = RULES) -> Done:
        """Both."""
        self.begin(service, count, rules)
        return self.done()

    def close(self) -> None:
        """Hang up, as a Dask worker that ends."""
        self._words.close()
        self._line.close()
        assert self.process.wait(PATIENCE) == 0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def outcomes(done: Done) -> dict[int, dict[str, object]]:
    """The outcome of each position."""
    return {
        position: msgspec.json.decode(text)
        for block in done.outcomes
        for position, text in enumerate(block.split(), block.first)
    }


def processes(done: Done) -> list[int]:
    """Where the records were scored."""
    return [one["outputParameters"]["process"] for _, one in sorted(outcomes(done).items())]  # type: ignore[index]


def test_a_file_that_cannot_be_read_fails_its_record(host: Host) -> None:
    done = host.score("vanish", 5)
    found = outcomes(done)
    assert done.problem == ""
    assert [n for n in range(5) if not found[n]["success"]] == [2]
    assert str(found[2]["errorMessage"]).startswith(
        "artifacts cannot be read: FileNotFoundError: [Errno 2] No such file or directory"
    )
    assert done.files == {n: {"n.txt": b"%d\n" % n} for n in (0, 1, 3, 4)}


def test_files_of_the_services_that_are_damaged_may_come_again(host: Host) -> None:
    (host.parcel_folder / "manifest.json").write_bytes(b'{"id": "serv')
    done = host.score("process", 1)
    assert done.problem == "the files of the services are not on this worker any more"
    assert not done.is_unloadable
    assert not host.parcel_folder.exists()


def test_services_that_cannot_be_loaded(host: Host) -> None:
    (file,) = host.parcel_folder.glob("*/*.py")
    file.write_text("import nothing_of_this_name\n")
    done = host.score("process", 1)
    assert "nothing_of_this_name" in done.problem
    assert done.is_unloadable


def test_a_full_disk_is_not_the_fault_of_the_services(small_disk: Path) -> None:
    host = Host(small_disk)
    try:
        filler = small_disk / "filler"
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(bytes(free - free % 4096))
        done = host.score("process", 1)
        assert (done.problem, done.is_unloadable) == ("the disk of the worker is full", False)
        filler.unlink()
        assert len(processes(host.score("process", 1))) == 1
    finally:
        host.close()


def test_a_polite_signal_ends_everything(host: Host) -> None:
    host.begin("hang", 1)
    wait_until(lambda: any(host.traces.iterdir()))
    below = host.process.children(recursive=True)
    assert int(next(host.traces.iterdir()).name) in {one.pid for one in below}
    host.process.send_signal(signal.SIGTERM)
    assert host.process.wait(PATIENCE) == 0
    assert_gone(below)


def test_other_rules_need_other_processes(host: Host) -> None:
    (first,) = set(processes(host.score("process", 3)))
    assert processes(host.score("process", 1)) == [first]
    rules = msgspec.structs.replace(RULES, max_records=1)
    assert len({first, *processes(host.score("process", 3, rules))}) == 4


def test_the_time_to_load_does_not_count(tmp_path: Path) -> None:
    host = Host(tmp_path, LOAD_SECONDS="1")
    try:
        began = time.monotonic()
        done = host.score("process", 1)
        assert 0 < done.seconds < time.monotonic() - began - 1
    finally:
        host.close()
