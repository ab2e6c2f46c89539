"""The services that the benchmarks have scored."""

from __future__ import annotations

import time

from airflow_mlbatch.server import service

NAME, VERSION = "double", "1"


@service(NAME, version=VERSION, inputs={"x": float}, outputs={"y": float})
def double(x: float) -> float:
    """As little as a service can do."""
    return 2 * x


@service("nap", version="1", inputs={"n": int}, outputs={"n": int})
def nap(n: int) -> int:
    """Five milliseconds, of no processor."""
    time.sleep(0.005)
    return n
