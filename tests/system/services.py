"""Services whose batches last exactly as long as a test wants."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow_mlbatch.server import service

# One version for one case: each then has a list of executions of its own on the server.
VERSIONS = 100


def _gated(gate: str | None, x: float) -> float:
    """Twice ``x``, once the file named by ``gate`` is there; at once without a name."""
    if gate is not None:
        path = Path(os.environ["MLBATCH_TEST_GATES"], gate)
        while not path.exists():
            time.sleep(0.05)
    return 2 * x


for _version in range(VERSIONS):
    service("gated", version=str(_version), inputs={"gate": str, "x": float}, outputs={"y": float})(
        _gated
    )


@service("plain", version="1", inputs={"x": float}, outputs={"y": float})
def plain(x: float) -> float:
    return 2 * x


@service("steady", version="1", inputs={"x": float}, outputs={"y": float})
def steady(x: float) -> float:
    """A tenth of a second for each record, so that a batch can be met while it runs."""
    time.sleep(0.1)
    return 2 * x
