"""Files that records left, from a server at the other end of a line to a folder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.lines import KIB, MB, Benchmark, Line, Say, at_most, mb, ratio, seconds
from benchmarks.pieces import ROOT, Stopwatch, run
from benchmarks.slow_server import DELAY_SECONDS, FILE_NAME
from benchmarks.surroundings import airflow_environment

_FILES, _FILE_BYTES = 2_000, 10 * KIB
_LARGE_BYTES = 1024**3
_LEAST = 10
_MOST_BYTES = 150 * MB
_USUAL_CONNECTIONS, _MORE_CONNECTIONS = 16, 64
_NAMED = ("service", "1", "execution")


def with_operator(dest: str, max_connections: int) -> dict[str, Any]:
    """All files of all records, by one task."""
    from airflow_mlbatch.operators import ArtifactDownloadOperator
    from tests.provider.airflow_side import FakeTaskInstance

    operator = ArtifactDownloadOperator(
        task_id="files",
        service_name=_NAMED[0],
        service_version=_NAMED[1],
        execution_id=_NAMED[2],
        dest=dest,
        max_connections=max_connections,
    )
    context: Any = {"ti": FakeTaskInstance(), "outlet_events": {}}
    with Stopwatch() as watch:
        manifest = operator.execute(context)
    return {"seconds": watch.seconds, "cpu_seconds": watch.cpu_seconds, **_counted(manifest)}


def one_after_another(dest: str, records: int) -> dict[str, Any]:
    """For each record its file names, then its files, with the same hook."""
    from airflow_mlbatch.hooks import MLBatchHook

    hook = MLBatchHook()
    count = byte_count = 0
    with Stopwatch() as watch:
        for index in range(records):
            folder = Path(dest, str(index))
            folder.mkdir(parents=True)
            for name in hook.list_artifacts(*_NAMED, index):
                content = hook.get_artifact(*_NAMED, index, name)
                (folder / name).write_bytes(content)
                count += 1
                byte_count += len(content)
    return {"seconds": watch.seconds, "files": count, "bytes": byte_count}


def _counted(manifest: dict[str, Any]) -> dict[str, Any]:
    return {"files": manifest["file_count"], "bytes": manifest["byte_count"]}


@contextmanager
def _slow_server(records: int, file_bytes: int) -> Iterator[str]:
    """A server in a process of its own; its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_server", str(records), str(file_bytes)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def _run(say: Say) -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as name:
        return [_many(Path(name), say), _large(Path(name), say)]


def _many(folder: Path, say: Say) -> Line:
    with _slow_server(_FILES, _FILE_BYTES) as url:
        environment = airflow_environment(folder, url, "password")

        def fetched(place: str, connections: int) -> dict[str, Any]:
            found = run(
                with_operator,
                environment=environment,
                dest=str(folder / place),
                max_connections=connections,
            )
            say(f"{connections} connections: {seconds(found['seconds'])}")
            assert (found["files"], found["bytes"]) == (_FILES, _FILES * _FILE_BYTES)
            assert Path(folder, place, "7", FILE_NAME).stat().st_size == _FILE_BYTES
            return found

        tries = [fetched(f"usual-{number}", _USUAL_CONNECTIONS) for number in range(2)]
        more = fetched("more", _MORE_CONNECTIONS)
        slow = run(
            one_after_another, environment=environment, dest=str(folder / "slow"), records=_FILES
        )
        say(f"one after another: {seconds(slow['seconds'])}")
        assert (slow["files"], slow["bytes"]) == (_FILES, _FILES * _FILE_BYTES)
    return ratio(
        f"{_FILES:,} artifacts of {_FILE_BYTES // KIB} KiB from a server that answers after "
        f"{1000 * DELAY_SECONDS:g} ms",
        ours=min(one["seconds"] for one in tries),
        theirs=slow["seconds"],
        least=_LEAST,
        details=f"`ArtifactDownloadOperator` with its {_USUAL_CONNECTIONS} connections "
        f"({seconds(more['seconds'])} with {_MORE_CONNECTIONS}); against the hook's `list_artifacts`, "
        "`get_artifact` and `write_bytes`, record after record over one connection",
    )


def _large(folder: Path, say: Say) -> Line:
    def fetched(size: int) -> dict[str, Any]:
        with _slow_server(1, size) as url:
            found = run(
                with_operator,
                environment=airflow_environment(folder, url, "password"),
                dest=str(folder / f"one-{size}"),
                max_connections=_USUAL_CONNECTIONS,
            )
        say(f"one file of {size:,} bytes: {seconds(found['seconds'])}, {mb(found['peak_bytes'])}")
        assert (found["files"], found["bytes"]) == (1, size)
        return found

    small, large = fetched(_FILE_BYTES), fetched(_LARGE_BYTES)
    return at_most(
        "one artifact of 1 GiB: memory at the peak",
        large["peak_bytes"],
        _MOST_BYTES,
        mb,
        "of the process that runs `ArtifactDownloadOperator`, Airflow included; with one artifact of "
        f"{_FILE_BYTES // KIB} KiB it is {mb(small['peak_bytes'])}; {seconds(large['seconds'])}",
    )


BENCHMARK = Benchmark("artifacts", 40, _run)
