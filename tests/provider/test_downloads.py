"""Files of records into a folder: whole or not there, none fetched twice, never elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_mlbatch.datasets.downloads import (
    ArtifactDownload,
    DownloadedFile,
    download_files,
    in_threads,
)
from airflow_mlbatch.errors import ConnectionLostError, ContractError, InputError, UnsafeNameError
from airflow_mlbatch.protocol.messages import Sink

Open = Callable[[], Sink]


@pytest.fixture(autouse=True)
def connection() -> None:
    """No server is needed here."""


def send(*pieces: bytes) -> Callable[[Open], None]:
    """A request whose reply comes in these pieces."""

    def fetch(open_sink: Open) -> None:
        sink = open_sink()
        for piece in pieces:
            sink.feed(piece)
        sink.close()

    return fetch


def put(download: ArtifactDownload, index: int, name: str, *pieces: bytes) -> DownloadedFile:
    place = download.places(index, [name])[name]
    return download.fetch(index, name, place, send(*pieces))


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_of_one_record(tmp_path: Path) -> None:
    contents = {"b.txt": b"b", "a.txt": b"", "A.TXT": b"A"}
    paths = download_files(
        tmp_path, list(contents), lambda name, open_sink: send(contents[name])(open_sink)
    )
    assert [Path(path).read_bytes() for path in paths] == [b"b", b"", b"A"]
    # Names that differ only in case have places that differ in more.
    assert len({path.casefold() for path in paths}) == 3
    assert len(below(tmp_path)) == 3


@pytest.mark.parametrize("name", ["../x", "/etc/x", "C:x", "a\\b", "..", "a\0b", ""])
def test_hostile_names_of_one_record(tmp_path: Path, name: str) -> None:
    dest = tmp_path / "dest"
    dest.mkdir()
    with pytest.raises(UnsafeNameError):
        download_files(dest, ["good.txt", name], lambda _, open_sink: send(b"x")(open_sink))
    assert below(tmp_path) == set()  # not even the good one: names are judged first


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dest: found no folder"):
        download_files(tmp_path / "nobody", ["x"], lambda _, open_sink: None)


def test_a_file_that_starts_over(tmp_path: Path) -> None:
    def fetch(open_sink: Open) -> None:
        open_sink().feed(b"the first half, then the line was lost")
        send(b"all of ", b"it")(open_sink)

    download = ArtifactDownload(tmp_path, "{index}/{file_name}", "e")
    file = download.fetch(3, "x", download.places(3, ["x"])["x"], fetch)
    assert (tmp_path / "3" / "x").read_bytes() == b"all of it"
    assert file.bytes == 9
    assert below(tmp_path) == {"3/x"}


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    def fetch(open_sink: Open) -> None:
        open_sink().feed(b"half")
        raise ConnectionLostError("lost")

    download = ArtifactDownload(tmp_path, "{file_name}", "e")
    (tmp_path / "x").write_bytes(b"of an earlier run")
    with pytest.raises(ConnectionLostError):
        download.fetch(0, "x", "x", fetch)
    with pytest.raises(ContractError, match="the server sent no file"):
        download.fetch(0, "x", "x", lambda open_sink: None)
    assert (tmp_path / "x").read_bytes() == b"of an earlier run"
    assert below(tmp_path) == {"x"}


def test_a_retry_fetches_what_is_missing(tmp_path: Path) -> None:
    first = ArtifactDownload(tmp_path, "{index}/{file_name}", "e", "task")
    done = [put(first, index, "x", b"content") for index in range(3)]
    first.keep()
    (tmp_path / "1" / "x").unlink()
    (tmp_path / "2" / "x").write_bytes(b"cut")
    second = ArtifactDownload(tmp_path, "{index}/{file_name}", "e", "task")
    again = [put(second, index, "x", b"content") for index in range(4)]
    assert second.fetched_count == 3
    assert again[:3] == done
    second.finish(again)
    assert below(tmp_path) == {"manifest.json", *(f"{index}/x" for index in range(4))}
    # After success the manifest says what is there.
    third = ArtifactDownload(tmp_path, "{index}/{file_name}", "e", "task")
    assert [put(third, index, "x", b"content") for index in range(4)] == again
    assert third.fetched_count == 0


def test_another_execution_is_fetched_anew(tmp_path: Path) -> None:
    first = ArtifactDownload(tmp_path, "{index}/{file_name}", "e1")
    first.finish([put(first, 0, "x", b"one")])
    second = ArtifactDownload(tmp_path, "{index}/{file_name}", "e2")
    file = put(second, 0, "x", b"two")
    assert (tmp_path / "0" / "x").read_bytes() == b"two"
    second.finish([file])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["execution_id"], manifest["file_count"]) == ("e2", 1)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"execution_id":"e","files":[{"no":1}]}'])
def test_a_journal_of_another_kind_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    download = ArtifactDownload(tmp_path, "{file_name}", "e")
    download.finish([put(download, 0, "x", b"x")])
    assert json.loads((tmp_path / "manifest.json").read_text())["file_count"] == 1


def test_leftovers_of_a_killed_attempt_are_removed(tmp_path: Path) -> None:
    # The folder of a process that died: its staged file is copied back after it was cleaned up.
    first = ArtifactDownload(tmp_path, "{file_name}", "e", "task")
    names: list[str] = []

    def half(open_sink: Open) -> None:
        open_sink().feed(b"half")
        names.extend(below(tmp_path))
        raise ConnectionLostError("lost")

    with pytest.raises(ConnectionLostError):
        first.fetch(0, "x", "x", half)
    (staged,) = names
    others = ["keep.part", f"{staged}.txt", ".x.0123456789ab.01234567.part"]
    for name in [staged, staged.replace(".x.", ".y."), *others]:
        (tmp_path / name).write_bytes(b"left")
    second = ArtifactDownload(tmp_path, "{file_name}", "e", "task")
    second.finish([put(second, 0, "x", b"whole")])
    assert below(tmp_path) == {"x", "manifest.json", *others}


def test_two_tasks_share_a_folder(tmp_path: Path) -> None:
    """As the mapped instances of one task do, each with some of the indexes."""
    barrier = threading.Barrier(8)

    def task(number: int) -> None:
        download = ArtifactDownload(tmp_path, "{index}-{file_name}", "e", f"task/{number}")
        barrier.wait()
        files = [put(download, index, "x", b"x" * index) for index in range(number, 80, 8)]
        download.keep()
        download.finish(files)

    for _ in in_threads([lambda n=n: task(n) for n in range(8)], 8):  # type: ignore[misc]
        pass
    assert below(tmp_path) == {"manifest.json", *(f"{index}-x" for index in range(80))}
    # One after another, each adds its own to the manifest.
    last = ArtifactDownload(tmp_path, "{index}-{file_name}", "e", "task/8")
    last.finish([put(last, 80, "x", b"new")])
    files = json.loads((tmp_path / "manifest.json").read_text())["files"]
    assert files[-1]["path"] == "80-x"
    assert len(files) > 10


def test_names_alike_but_for_case(tmp_path: Path) -> None:
    download = ArtifactDownload(tmp_path, "{index}/{file_name}", "e")
    places = download.places(0, ["b.png", "B.png"])
    assert len({place.casefold() for place in places.values()}) == 2
    # Whatever the order, and whatever is wanted of them, a name has the same place.
    assert ArtifactDownload(tmp_path, "{index}/{file_name}", "e").places(
        0, ["B.png", "b.png"]
    ) == dict(sorted(places.items()))
    flat = ArtifactDownload(tmp_path, "{file_name}", "e")
    flat.places(0, ["x"])
    with pytest.raises(UnsafeNameError, match="of record 1: found its place 'x' taken"):
        flat.places(1, ["x"])


def test_jobs_in_threads() -> None:
    running = most = 0
    lock = threading.Lock()
    drawn: list[int] = []

    def job(number: int) -> Callable[[], int]:
        drawn.append(number)

        def run() -> int:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1
            return number

        return run

    assert sorted(in_threads(map(job, range(500)), 5)) == list(range(500))
    assert most <= 5


def test_jobs_are_not_drawn_ahead() -> None:
    drawn: list[int] = []

    def job(number: int) -> Callable[[], int]:
        drawn.append(number)
        return lambda: number

    results = in_threads(map(job, range(1_000_000)), 4)
    next(results)
    assert len(drawn) <= 16
    results.close()  # type: ignore[attr-defined]


def test_the_first_failure_stops_the_rest() -> None:
    started: list[int] = []

    def job(number: int) -> Callable[[], None]:
        def run() -> None:
            started.append(number)
            if number == 3:
                raise ConnectionLostError("lost")

        return run

    with pytest.raises(ConnectionLostError):
        list(in_threads(map(job, range(10_000)), 2))
    assert len(started) < 50
