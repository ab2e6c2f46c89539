"""Services that a Dask cluster scores; they tell where they ran, and how often."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import pandas as pd
import psutil

from airflow_mlbatch.server import service

# Sent along with this file.
FACTOR = int(Path(__file__).with_name("factor.txt").read_text())


def note(n: int) -> int:
    """Leave a trace of this run; returns how many there are of the record."""
    traces = Path(os.environ["TRACES"])
    (traces / f"{n}-{os.getpid()}-{uuid.uuid4().hex}").touch()
    return len(list(traces.glob(f"{n}-*")))


@service("where", "1", inputs={"n": int}, outputs={"n": int, "folder": str}, artifacts=["n.txt"])
def where(n: int) -> dict[str, object]:
    """The number times the factor, and the folder that it ran in."""
    if n % 10 == 0:
        Path("n.txt").write_text(f"{n}\n" * 100)
    return {"n": n * FACTOR, "folder": os.getcwd()}


@service("exit", "1", inputs={"n": int}, outputs={"n": int})
def exit_at_seven(n: int) -> int:
    """Ends its process at one record."""
    if n == 7:
        os._exit(3)
    return n


@service("exit columns", "1", inputs={"n": int}, outputs={"n": int, "of": int}, vectorized=True)
def exit_at_nines(table: pd.DataFrame) -> dict[str, object]:
    """Ends its process at some records; tells for how many it was called."""
    if (table["n"] % 50 == 49).any():
        os._exit(3)
    return {"n": table["n"], "of": [len(table)] * len(table)}


@service("hang", "1", inputs={"n": int}, outputs={"n": int})
def hang(n: int) -> int:
    """Never ends."""
    note(n)
    time.sleep(600)
    return n


@service("hang once", "1", inputs={"n": int}, outputs={"n": int})
def hang_once(n: int) -> int:
    """Never ends at record 3 when it is scored for the first time."""
    if note(n) == 1 and n == 3:
        time.sleep(600)
    return n


@service("hang twice", "1", inputs={"n": int}, outputs={"n": int})
def hang_twice(n: int) -> int:
    """Never ends at record 0 when it is scored for the first two times; then it waits for the word.

    Others take their time until then.
    """
    traces = Path(os.environ["TRACES"])
    if n == 0 and note(n) < 3:
        time.sleep(600)
    while n == 0 and not (traces / "word").exists():
        time.sleep(0.02)
    if not (traces / "word").exists():
        time.sleep(0.2)
    return n


@service("murder", "1", inputs={"n": int}, outputs={"n": int})
def murder(n: int) -> int:
    """Ends the whole machine, as far as Dask can tell, at record 3."""
    note(n)
    if n == 3:
        # This process, the one that forks, the one beside the Dask worker, the Dask worker.
        psutil.Process().parents()[2].kill()
        time.sleep(600)
    return n


@service("large", "1", inputs={"size": int}, outputs={"size": int}, artifacts=["large.bin"])
def large(size: int) -> int:
    """An artifact of any size."""
    Path("large.bin").write_bytes(bytes(size))
    return size


@service("nap", "1", inputs={"n": int}, outputs={"n": int}, artifacts=["n.txt"])
def nap(n: int) -> int:
    """Takes five milliseconds, of no processor."""
    time.sleep(0.005)
    if n % 1000 == 0:
        Path("n.txt").write_text(f"{n}\n" * 1000)
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
