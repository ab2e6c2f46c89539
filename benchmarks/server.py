"""The embedded server, from the first request of a batch to its last result."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lines import MB, Benchmark, Line, Say, at_most, mb, seconds
from benchmarks.pieces import Stopwatch, run, watched
from benchmarks.services import NAME, VERSION
from benchmarks.surroundings import flows_to, scoring_server

RECORDS = 100_000
_MOST_SECONDS = 30
_MOST_BYTES = 600 * MB


def whole_batch(url: str, password: str, records: int) -> dict[str, Any]:
    """Submit, wait, read back, check."""
    import numpy as np

    from airflow_mlbatch.protocol.records import encode_records
    from airflow_mlbatch.protocol.results import RecordBlock
    from airflow_mlbatch.transport.blocking import BlockingDriver

    endpoint, flows = flows_to(url, password)
    driver = BlockingDriver(endpoint)
    service = driver.run(flows.get_service(NAME, VERSION))
    table = {"x": np.arange(records, dtype=float)}
    answers: list[float] = []

    def take(block: RecordBlock) -> None:
        assert all(block.success)
        answers.extend(block.outputs["y"])

    with Stopwatch() as whole:
        with Stopwatch() as submission:
            body, _ = encode_records(service.inputs, table)
            execution_id = driver.run(flows.start_batch(NAME, VERSION, body, 10))
        with Stopwatch() as scoring:
            named = (NAME, VERSION, execution_id)
            driver.run(flows.watch_batch(*named, poll_interval=0.2))
        with Stopwatch() as reading:
            driver.run(flows.read_batch_results(*named, service.outputs, take))
    assert answers == [2.0 * place for place in range(records)]
    return {
        "seconds": whole.seconds,
        "submission": submission.seconds,
        "scoring": scoring.seconds,
        "reading": reading.seconds,
    }


def _run(say: Say) -> list[Line]:
    with (
        tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as folder,
        scoring_server(Path(folder, "data"), "--workers", "2") as server,
        watched({"server": server.pid}) as watch,
    ):
        found = run(whole_batch, url=server.url, password=server.password, records=RECORDS)
    parts = (
        f"submitted in {seconds(found['submission'])}, scored in {seconds(found['scoring'])}, "
        f"read back in {seconds(found['reading'])}"
    )
    say(f"{seconds(found['seconds'])}: {parts}; {mb(watch.total)}")
    what = f"the embedded server, {RECORDS:,} records of a trivial service"
    return [
        at_most(
            f"{what}: submitted, scored, read back",
            found["seconds"],
            _MOST_SECONDS,
            seconds,
            f"two workers; {parts}; each result compared",
        ),
        at_most(
            f"{what}: memory at the peak",
            watch.total,
            _MOST_BYTES,
            mb,
            f"the sum of its {watch.counts['server']} processes, shared pages counted for each",
        ),
    ]


BENCHMARK = Benchmark("server", 50, _run)
