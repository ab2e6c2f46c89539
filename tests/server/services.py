"""Services that behave, and services that do not."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from airflow_mlbatch.server import service

NUMBER = {"x": float}


@service("double", "1", inputs=NUMBER, outputs={"y": float})
def double(x: float | None) -> float | None:
    """Twice the number."""
    return None if x is None else 2 * x


@service("my service/β", "v 1?", inputs=NUMBER, outputs={"y": float}, artifacts=["täble 1.csv"])
def strange_name(x: float) -> float:
    """A name that has to be quoted."""
    Path("täble 1.csv").write_text(f"{x}\n")
    return x


@service(
    "types",
    "1",
    inputs={
        "a": bool,
        "b": int,
        "c": float,
        "d": str,
        "e": list,
        "f": "matrix",
        "g": "data.frame",
    },
    outputs={
        "a": "logical",
        "b": "integer",
        "c": "numeric",
        "d": "character",
        "e": "vector",
        "f": "matrix",
        "g": dict,
        "kinds": str,
    },
)
def types(**inputs: Any) -> dict[str, Any]:
    """Everything back, and what it was in Python."""
    kinds = " ".join(type(value).__name__ for value in inputs.values())
    return {**inputs, "kinds": kinds}


@service("numpy", "1", inputs={"n": int}, outputs={"mean": float, "table": "data.frame"})
def numpy_values(n: int) -> dict[str, Any]:
    """NumPy and pandas values, as a model returns them."""
    import numpy
    import pandas

    values = numpy.arange(n, dtype="float32")
    return {"mean": values.mean(), "table": pandas.DataFrame({"v": values, "w": values > 0})}


@service("sleep", "1", inputs={"seconds": float}, outputs={"seconds": float})
def sleep(seconds: float) -> float:
    """Takes its time."""
    time.sleep(seconds)
    return seconds


def _print() -> None:
    print("first line")
    print("zwölf €", end="")


def _raise() -> None:
    raise ValueError("no such car")


def _fork_and_exit() -> None:
    # The child holds the worker's line to the server open.
    if os.fork() == 0:
        time.sleep(600)
    os._exit(4)


def _terminate() -> str:
    child = subprocess.Popen(["sleep", "600"])
    child.terminate()
    return str(child.wait())


def _fork_and_terminate() -> str:
    # At once, while the child is being made. The first that does not hear it ends the trial.
    for _ in range(20):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if exit_code != -signal.SIGTERM:
            break
    return str(exit_code)


def _pool() -> str:
    # It ends its processes with a signal, and waits for them.
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return str(sum(pool.map(abs, [1, -2])))


def _close_stdout() -> None:
    print("last words")
    sys.stdout.close()


def _start_and_hang() -> None:
    Path(os.environ["STARTED_FILE"]).touch()
    time.sleep(600)


def _start_child() -> str:
    return str(subprocess.Popen(["sleep", "600"]).pid)


def _leave_files() -> None:
    Path("kept.txt").write_text("kept")
    Path("dropped.txt").write_text("dropped")
    Path("b.txt").symlink_to("/etc/hostname")


def _note() -> None:
    with open(os.environ["NOTE_FILE"], "a") as file:
        file.write("run\n")


MOODS: dict[str, Callable[[], Any]] = {
    "print": _print,
    "print much": lambda: print("x" * 1_000_000),
    "stdout": lambda: print("not the ready line", file=sys.__stdout__, flush=True),
    "raise": _raise,
    "sys.exit": lambda: sys.exit("enough"),
    "os._exit": lambda: os._exit(3),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "fork and exit": _fork_and_exit,
    "print at once": lambda: print("at once", flush=True),
    "close stdout": _close_stdout,
    "start and hang": _start_and_hang,
    "start a child": _start_child,
    "terminate": _terminate,
    "fork and terminate": _fork_and_terminate,
    "pool": _pool,
    "hang": lambda: time.sleep(600),
    "undeclared": lambda: {"answer": "yes", "more": "no"},
    "missing": dict,
    "misfit": lambda: 7,
    "files": _leave_files,
    "litter": lambda: str(Path("litter.txt").write_text("x")),
    "list folder": lambda: ",".join(sorted(os.listdir())),
    "chdir": lambda: os.chdir("/"),
    "remove folder": lambda: shutil.rmtree(os.getcwd()),
    "note": _note,
    "pid": lambda: str(os.getpid()),
    "environment": lambda: " ".join(name for name in os.environ if "PASSWORD" in name),
}


@service(
    "moody", "1", inputs={"mood": str}, outputs={"answer": str}, artifacts=["kept.txt", "b.txt"]
)
def moody(mood: str) -> Any:
    """Does what it is told, which is seldom good."""
    return MOODS[mood]()


@service("count", "1", inputs={"n": int}, outputs={"n": int}, artifacts=["n.txt"])
def count(n: int) -> int:
    """Leaves a trace of each run beside the data, so that a test can see what was run how often."""
    with open(os.environ["COUNT_FILE"], "a") as file:
        file.write(f"{n}\n")
    if n % 100 == 0:
        Path("n.txt").write_text(str(n))
    time.sleep(0.001)
    return n


@service("alone", "1", inputs={"folder": str}, outputs={"others": int})
def alone(folder: str) -> int:
    """Tells how many others are at it at the same time."""
    mark = Path(folder, str(os.getpid()))
    mark.touch()
    # Long enough for another worker to be seen, were there one.
    time.sleep(0.03)
    others = len(os.listdir(folder)) - 1
    mark.unlink()
    return others


leaked: list[bytearray] = []


@service("leak", "1", inputs={"mib": int}, outputs={"pid": int})
def leak(mib: int) -> int:
    """Never forgets."""
    leaked.append(bytearray(os.urandom(1024) * 1024 * mib))
    return os.getpid()


@service("no outputs", "1", inputs={}, outputs={})
def no_outputs() -> None:
    """Nothing in, nothing out."""


@service("columns", "1", inputs={"x": float}, outputs={"y": float, "calls": int}, vectorized=True)
def columns(table: pd.DataFrame) -> dict[str, Any]:
    """Twice the numbers, and for how many records it was called."""
    return {"y": 2 * table["x"], "calls": [len(table)] * len(table)}


@service(
    "column types",
    "1",
    inputs={
        "a": bool,
        "b": int,
        "c": float,
        "d": str,
        "e": list,
        "f": "matrix",
        "g": "data.frame",
    },
    outputs={
        "a": bool,
        "b": int,
        "c": float,
        "d": str,
        "e": list,
        "f": "matrix",
        "g": dict,
        "kinds": str,
    },
    vectorized=True,
)
def column_types(table: pd.DataFrame) -> pd.DataFrame:
    """Everything back, and what the columns were."""
    table["kinds"] = " ".join(map(str, table.dtypes))
    return table


COLUMN_MOODS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "raise": lambda table: _raise(),
    "exit": lambda table: os._exit(3),
    "hang": lambda table: time.sleep(600),
    "print": lambda table: print(f"{len(table)} records", end=""),
    "note": lambda table: _note(),
}
COLUMN_ANSWERS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "undeclared": lambda table: {"answer": table["mood"], "more": table["mood"]},
    "missing": lambda table: {},
    "short": lambda table: list(table["mood"])[1:],
    "scalar": lambda table: "yes",
    "scalar in a dict": lambda table: {"answer": "yes"},
    "misfit": lambda table: [7 if mood == "misfit" else mood for mood in table["mood"]],
    "shuffled": lambda table: table["mood"][::-1],
    "twice": lambda table: table[["mood", "mood"]].set_axis(["answer", "answer"], axis=1),
    "array": lambda table: table["mood"].to_numpy(),
    "frame": lambda table: table.rename(columns={"mood": "answer"}),
}


@service("moody columns", "1", inputs={"mood": str}, outputs={"answer": str}, vectorized=True)
def moody_columns(table: pd.DataFrame) -> Any:
    """Does what any of its records tells it."""
    moods = set(table["mood"])
    for mood, act in COLUMN_MOODS.items():
        if mood in moods:
            act(table)
    for mood, answer in COLUMN_ANSWERS.items():
        if mood in moods:
            return answer(table)
    return table["mood"]


@service("no columns", "1", inputs={}, outputs={}, vectorized=True)
def no_columns(table: pd.DataFrame) -> None:
    """Nothing in, nothing out."""
    assert list(table.columns) == []
