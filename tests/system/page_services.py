"""Services for batches that somebody watches in a browser."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow_mlbatch.server import service


def _wait_for(gate: str) -> None:
    while not Path(os.environ["MLBATCH_TEST_GATES"], gate).exists():
        time.sleep(0.02)


@service("cars", version="1", inputs={"x": float}, outputs={"y": float})
def cars(x: float) -> float:
    """Fails on negative numbers; large ones wait for a gate, so that a bar can be seen moving."""
    if abs(x) >= 50_000:
        _wait_for("half")
    if x < 0:
        raise ValueError(f"x is negative: {x:g}")
    return x / 2


@service("held", version="1", inputs={"x": float}, outputs={"y": float})
def held(x: float) -> float:
    _wait_for("held")
    return x
