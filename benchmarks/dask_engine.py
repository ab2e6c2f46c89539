"""A Dask cluster against the built-in workers: what carrying the records costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.lines import Benchmark, Line, Say, at_most, seconds
from benchmarks.surroundings import scoring_server
from tests.certificates import make_papers
from tests.patience import wait_until
from tests.server.api import Api
from tests.server.dask_cluster import Cluster

_RECORDS_A_WORKER = 2_000
_MOST_OVERHEAD = 0.10
_TRIES = 2


def _scored(api: Api, count: int) -> float:
    """The faster of some runs, each result compared."""
    records = [{"n": n} for n in range(count)]
    times = []
    # The first starts the processes and loads the services.
    for _ in range(1 + _TRIES):
        began = time.perf_counter()
        results = api.score("nap", records, parallel=100)
        times.append(time.perf_counter() - began)
        assert [one["outputParameters"]["n"] for one in results] == list(range(count))
    return min(times[1:])


@contextmanager
def _cluster(folder: Path, workers: int) -> Iterator[Api]:
    """A server with a cluster of so many workers behind it."""
    cluster = Cluster(folder / "cluster", make_papers(folder))
    try:
        cluster.start_scheduler()
        for _ in range(workers):
            cluster.add_worker()
        with scoring_server(folder / "data", "--workers", "1", *cluster.options) as server:
            api = Api(server.url)

            def are_there() -> bool:
                found = api.get("/status").json()["components"]["dask"]["details"]["workers"]
                return len(found) == workers

            wait_until(are_there)
            yield api
    finally:
        cluster.close()


def _run(say: Say) -> list[Line]:
    lines = []
    for workers in (1, 2, 3):
        count = _RECORDS_A_WORKER * workers
        with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as folder:
            options = ("--workers", str(workers))
            with scoring_server(Path(folder, "built-in"), *options) as server:
                built_in = _scored(Api(server.url), count)
            with _cluster(Path(folder), workers) as api:
                ours = _scored(api, count)
        told = f"{seconds(ours)} against {seconds(built_in)}"
        say(f"{workers} workers: {told}")
        lines.append(
            at_most(
                f"Dask cluster of {workers}, {count:,} records of 5 ms: overhead over as many built-in "
                "workers",
                ours / built_in - 1,
                _MOST_OVERHEAD,
                lambda share: f"{share:.0%}",
                f"{told}, read back included; the records sleep; TLS between all processes, which are "
                "on one machine",
            )
        )
    return lines


BENCHMARK = Benchmark("dask", 55, _run)
