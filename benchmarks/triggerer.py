"""2,000 deferred sensors in one triggerer: its processor time, its pauses, its logins.

Airflow's own runner process runs the triggers, and its own supervisor starts it; only what would come
from Airflow's database is handed over directly, so that nothing but triggers is measured.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import pieces
from benchmarks.lines import Benchmark, Line, Say, at_most, reported
from benchmarks.surroundings import airflow_environment, flows_to
from tests.server_process import running_server

SENSORS = 2_000
POLL_SECONDS = 10.0
_SERVICES = Path(__file__).parents[1] / "tests" / "system" / "services.py"
_GATE = "all"
_OURS = "airflow_mlbatch.triggers.batch_state.BatchStateTrigger"
_THREADS = "benchmarks.deferred.triggers.ThreadTrigger"


def start_batches(url: str, password: str, count: int) -> dict[str, Any]:
    """Batches of one record each that wait for a gate; returns their ids."""
    from airflow_mlbatch.transport.blocking import BlockingDriver

    endpoint, flows = flows_to(url, password)
    driver = BlockingDriver(endpoint)
    body = json.dumps([{"gate": _GATE, "x": 1}]).encode()
    ids = [driver.run(flows.start_batch("gated", "0", body, 1)) for _ in range(count)]
    driver.close()
    return {"ids": ids}


def watch_all(**arguments: Any) -> dict[str, Any]:
    """See :func:`benchmarks.deferred.process.watch_all`; Airflow is imported only there."""
    from benchmarks.deferred import process

    return process.watch_all(**arguments)


def _run(say: Say) -> list[Line]:
    ours = _measured(_OURS, say)
    threads = _measured(_THREADS, say)
    name = f"{SENSORS:,} deferred sensors in one triggerer, each polls every {POLL_SECONDS:g} s"
    return [
        at_most(f"{name}: logins", ours["logins"], 2, "{:.0f}".format),
        reported(
            f"{name}: processor time of the triggerer",
            f"{ours['cpu']:.0%} of a core",
            f"{ours['polls']:.0f} polls a second; a thread for each poll: {threads['cpu']:.0%}, "
            f"{threads['polls']:.0f} polls a second",
        ),
        reported(
            f"{name}: longest pause of its event loop",
            _ms(ours["pause"]),
            "by the wall, what else the machine did and Python's collections of garbage included; "
            f"without these {_ms(ours['busy'])}, and one callback {_ms(ours['callback'])}; "
            f"a thread for each poll: {_ms(threads['pause'])}, without these "
            f"{_ms(threads['busy'])}, one callback {_ms(threads['callback'])}",
        ),
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


def _measured(class_path: str, say: Say) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as place:
        folder = Path(place)
        gates = folder / "gates"
        gates.mkdir()
        with running_server(
            "--services",
            str(_SERVICES),
            data_dir=folder / "server",
            env={"MLBATCH_TEST_GATES": str(gates)},
        ) as server:
            say(f"{SENSORS:,} batches for {class_path.rpartition('.')[2]}")
            started = pieces.run(
                start_batches, url=server.url, password=server.password, count=SENSORS
            )
            ids_path = folder / "ids.json"
            ids_path.write_text(json.dumps(started["ids"]))
            before = _logins(server.data_dir)
            say("a trigger for each of them")
            told = pieces.run(
                watch_all,
                environment=airflow_environment(folder / "airflow", server.url, server.password),
                class_path=class_path,
                ids_path=str(ids_path),
                gate=str(gates / _GATE),
                poll_interval=POLL_SECONDS,
            )
            told["logins"] = _logins(server.data_dir) - before
    if told["done"] != SENSORS:
        raise RuntimeError(f"{told['done']} of {SENSORS} sensors saw the end of their batch")
    return told


def _logins(data_dir: Path) -> int:
    """How often somebody has logged in: the server keeps a pair of tokens for each login."""
    connection = sqlite3.connect(f"file:{data_dir / 'mlbatch.sqlite'}?mode=ro", uri=True)
    try:
        count: int = connection.execute("SELECT count(*) FROM pairs").fetchone()[0]
        return count
    finally:
        connection.close()


BENCHMARK = Benchmark("triggerer", 60, _run)
