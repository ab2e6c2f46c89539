"""Services for the process beside a Dask worker."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow_mlbatch.server import service

# What a library might do: keep something beside itself.
Path(__file__).with_name("cache").write_bytes(bytes(1024 * 1024))
# Seconds that this module takes to be loaded, at least.
time.sleep(float(os.environ.get("LOAD_SECONDS", "0")))


@service("process", "1", inputs={"n": int}, outputs={"process": int})
def process(n: int) -> int:
    """Which process scores a record."""
    return os.getpid()


@service("hang", "1", inputs={"n": int}, outputs={"n": int})
def hang(n: int) -> int:
    """Never ends."""
    Path(os.environ["TRACES"], str(os.getpid())).touch()
    time.sleep(600)
    return n


@service("vanish", "1", inputs={"n": int}, outputs={"n": int}, artifacts=["n.txt"])
def vanish(n: int) -> int:
    """The file of record 2 leads nowhere when it is wanted."""
    Path("n.txt").write_text(f"{n}\n")
    if n == 2:
        replace = os.replace

        def lose(source: str, target: str) -> None:
            os.replace = replace
            os.symlink("/nowhere", target)

        setattr(os, "replace", lose)  # noqa: B010
    return n
