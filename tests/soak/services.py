"""The service that the soak test scores with. It writes down each of its calls.

Law: the log is only ever appended to. A line that says that a record begins is there before anything
is computed, and the one that says that it is done is there before the server hears of it.
"""

from __future__ import annotations

import os
import time

from airflow_mlbatch.server import service

NAME, VERSION = "soak", "1"
_RECORDS_OF_A_RUN = 1000


def score_of(run: int, record: int) -> float:
    """What the service answers: no two records of a soak test have the same score."""
    return run * _RECORDS_OF_A_RUN + record + 0.5


@service(
    NAME,
    version=VERSION,
    inputs={"run": int, "record": int, "seconds": float},
    outputs={"y": float},
)
def soak(run: int, record: int, seconds: float) -> float:
    _note("begins", run, record)
    time.sleep(seconds)
    _note("is_done", run, record)
    return score_of(run, record)


def _note(what: str, run: int, record: int) -> None:
    """One line in one write: those of many processes do not mix."""
    line = f"{time.time():.3f} {what} {run} {record} {os.getpid()}\n"
    descriptor = os.open(os.environ["MLBATCH_SOAK_CALLS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
