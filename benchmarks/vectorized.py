"""Services that take many records at once, against the same models called record by record."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lines import Benchmark, Line, Say, seconds
from benchmarks.pieces import Stopwatch, run
from benchmarks.surroundings import flows_to
from tests.server_process import RunningServer, running_server

_SERVICES = Path(__file__).with_name("columns.py")
_ROUNDS = 2
# What is compared is a rate: the quick ones get more records, so that their start does not count.
_CASES = (
    ("linear", "a linear model", 10_000, 600_000, 50),
    ("forest", "100 trees", 600, 60_000, 20),
)


def scoring(url: str, password: str, name: str, records: int) -> dict[str, Any]:
    """Have records scored; the time is from the reply to the start of the batch to its end."""
    import numpy as np

    from airflow_mlbatch.protocol.records import encode_records
    from airflow_mlbatch.protocol.results import RecordBlock
    from airflow_mlbatch.transport.blocking import BlockingDriver
    from benchmarks.columns import MODELS, VERSION

    endpoint, flows = flows_to(url, password)
    driver = BlockingDriver(endpoint)
    service = driver.run(flows.get_service(name, VERSION))
    random = np.random.default_rng(7)
    table = {"x": random.random(records), "z": random.random(records)}
    body, _ = encode_records(service.inputs, table)
    answers: list[float] = []

    def take(block: RecordBlock) -> None:
        assert all(block.success)
        answers.extend(block.outputs["y"])

    execution_id = driver.run(flows.start_batch(name, VERSION, body, 10))
    with Stopwatch() as watch:
        driver.run(flows.watch_batch(name, VERSION, execution_id, poll_interval=0.05))
    driver.run(flows.read_batch_results(name, VERSION, execution_id, service.outputs, take))
    import pandas as pd

    model = MODELS[name.removesuffix(" vectorized")]
    with Stopwatch() as bare:
        expected = model.predict(pd.DataFrame(table))
    assert np.allclose(answers, expected, rtol=1e-12, atol=0)
    return {"seconds": watch.seconds / records, "bare": bare.seconds / records}


def _fastest(server: RunningServer, name: str, records: int) -> dict[str, Any]:
    where: dict[str, Any] = {"url": server.url, "password": server.password}
    runs = [run(scoring, **where, name=name, records=records) for _ in range(_ROUNDS)]
    return min(runs, key=lambda one: float(one["seconds"]))


def _run(say: Say) -> list[Line]:
    lines = []
    arguments = ("--services", str(_SERVICES), "--workers", "2")
    with (
        tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as folder,
        running_server(*arguments, data_dir=Path(folder, "data")) as server,
    ):
        for name, what, few, many, least in _CASES:
            plain = _fastest(server, name, few)
            chunks = _fastest(server, f"{name} vectorized", many)
            times = plain["seconds"] / chunks["seconds"]
            rates = f"{_rate(chunks)} against {_rate(plain)}"
            say(f"{what}: {times:.0f} times as fast; {rates}")
            lines.append(
                Line(
                    f"a vectorized service with {what}, two workers: records scored in a second",
                    f"{times:.0f} times as many",
                    f"at least {least} times",
                    times >= least,
                    f"{rates} by the plain service that calls the same model for each record; both "
                    f"from the start of the batch to its end on disk; the model alone, called once: "
                    f"{_bare_rate(chunks)}",
                )
            )
    return lines


def _rate(found: dict[str, Any]) -> str:
    return f"{1 / found['seconds']:,.0f} a second ({seconds(found['seconds'] * 1e6)} a million)"


def _bare_rate(found: dict[str, Any]) -> str:
    return f"{1 / found['bare']:,.0f} a second"


BENCHMARK = Benchmark("vectorized", 55, _run)
