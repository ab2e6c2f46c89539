"""Services for the tests of the Airflow roles: quick, slow, failing, of every type."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

from airflow_mlbatch.server import service


@service("double", version="1", inputs={"x": float}, outputs={"y": float})
def double(x: float) -> float:
    return 2 * x


@service("constant", version="1", inputs={"x": float}, outputs={"y": float})
def constant(x: float) -> float:
    """Gives every record the same result."""
    return 1.0


@service("dice", version="1", inputs={"x": float}, outputs={"y": float})
def dice(x: float) -> float:
    """Gives the same record another result each time."""
    return random.random()


@service("my service/β", version="v 1", inputs={"x": float}, outputs={"y": float})
def oddly_named(x: float) -> float:
    return x + 1


@service("slow", version="1", inputs={"x": float, "seconds": float}, outputs={"y": float})
def slow(x: float, seconds: float) -> float:
    time.sleep(seconds)
    return x


@service("gated", version="1", inputs={"gate": str, "x": float}, outputs={"y": float})
def gated(gate: str | None, x: float) -> float:
    """Waits until the marker of its gate is there, if it has one."""
    while gate is not None and not Path(os.environ["MLBATCH_TEST_MARKERS"], gate).exists():
        time.sleep(0.02)
    return x


@service("picky", version="1", inputs={"x": float}, outputs={"y": float}, artifacts=["note.txt"])
def picky(x: float) -> float:
    """Fails on negative numbers, and leaves a note about the others."""
    if x < 0:
        raise ValueError(f"x is negative: {x}")
    Path("note.txt").write_text(f"x was {x}", encoding="utf-8")
    return x**0.5


@service("flaky", version="1", inputs={"key": str, "x": float}, outputs={"y": float})
def flaky(key: str, x: float) -> float:
    """Fails the first time that it sees a key of a negative number."""
    if x < 0:
        marker = Path(os.environ["MLBATCH_TEST_MARKERS"]) / key
        try:
            marker.touch(exist_ok=False)
        except FileExistsError:
            return -x
        raise RuntimeError(f"first time for {key}")
    return x


@service(
    "every-type",
    version="1",
    inputs={
        "a": bool,
        "b": int,
        "c": float,
        "d": str,
        "e": "vector",
        "f": "matrix",
        "g": "data.frame",
    },
    outputs={
        "a": bool,
        "b": int,
        "c": float,
        "d": str,
        "e": "vector",
        "f": "matrix",
        "g": "data.frame",
    },
)
def every_type(**inputs: Any) -> dict[str, Any]:
    return inputs


@service(
    "ill-named", version="1", inputs={"x": float}, outputs={"success": float, "mlbatch_index": int}
)
def ill_named(x: float) -> dict[str, Any]:
    """Its outputs have names that the results use themselves."""
    return {"success": x, "mlbatch_index": 1}


@service("long", version="1", inputs={"x": int}, outputs={"text": str})
def long_text(x: int) -> str:
    """An answer of two thousand letters, so that a few records fill many blocks."""
    return f"n{x:04d}" * 400


@service(
    "files",
    version="1",
    inputs={"name": str},
    outputs={"size": int},
    artifacts=["größe.txt", "data.bin", "empty.log"],
)
def files(name: str) -> int:
    """Leaves a text, a file that is none, and nothing in a third."""
    Path("größe.txt").write_text(f"größe {name}\n", encoding="utf-8")
    Path("data.bin").write_bytes(bytes(range(256)) * 4)
    Path("empty.log").touch()
    return 1024


@service("chatty", version="1", inputs={"key": str, "x": float}, outputs={"y": float})
def chatty(key: str, x: float) -> float:
    """Prints something about numbers that are not 0; fails the first time that it sees a negative one."""
    if x:
        print(f"this is {key},\n::group::\x1b[31m x is {x:g}")
    if x < -100:
        print("long " * 1000)
        raise ValueError("far too small")
    return flaky(f"chatty-{key}", x)


@service("stubborn", version="1", inputs={"key": str, "x": float}, outputs={"y": float})
def stubborn(key: str, x: float) -> float:
    """Fails the first two times that it sees a key of a negative number."""
    if x < 0:
        seen = Path(os.environ["MLBATCH_TEST_MARKERS"]) / f"stubborn-{key}"
        with seen.open("a+") as file:
            file.write("x")
            file.seek(0)
            times = len(file.read())
        if times <= 2:
            raise RuntimeError(f"time {times} for {key}")
        print(f"gave in to {key}")
    return abs(x)


@service("fussy", version="1", inputs={"gate": str, "x": float}, outputs={"y": float})
def fussy(gate: str | None, x: float) -> float:
    """Fails on negative numbers; waits for its gate, if it has one."""
    if x < 0:
        raise ValueError(f"x is negative: {x}")
    return gated(gate, x)
