"""Pieces of a benchmark, each in a process of its own, and the memory of processes.

Law: the peak that is told of a process is its own. Linux lets a new process inherit the peak of the
one that started it in ``ru_maxrss``, so that is asked only where nothing better is known.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

__all__ = ["ROOT", "PieceError", "Stopwatch", "Watch", "in_turns", "run", "watched"]

ROOT = Path(__file__).resolve().parent.parent
_MAIN = "from benchmarks.pieces import main; main()"
_LINES_SHOWN = 30
_SAMPLE_SECONDS = 0.05


class PieceError(Exception):
    """A piece did not come to its end."""


class Stopwatch:
    """Wall time and the CPU time of this process, of a ``with`` block."""

    def __enter__(self) -> Stopwatch:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds = time.process_time() - self._cpu_began
        self.seconds = time.perf_counter() - self._began


def run(
    piece: Callable[..., Mapping[str, Any]],
    *,
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Call a function of a module in a new process.

    :param piece: takes and returns what JSON can carry
    :param environment: variables on top of this process' own
    :return: what the function returned, and ``peak_bytes``, the most memory that the process held
    :raises PieceError: it raised; the message is what it printed last
    """
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as folder:
        answer = Path(folder, "answer.json")
        name = f"{piece.__module__}:{piece.__qualname__}"
        ended = subprocess.run(
            [sys.executable, "-c", _MAIN, name, json.dumps(arguments), str(answer)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if ended.returncode or not answer.exists():
            last = "\n".join(ended.stdout.splitlines()[-_LINES_SHOWN:])
            raise PieceError(f"{name} ended with exit code {ended.returncode}:\n{last}")
        found: dict[str, Any] = json.loads(answer.read_bytes())
        return found


def in_turns(
    times: int, *ways: tuple[Callable[..., Mapping[str, Any]], Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The fastest of some runs of each way; what else the machine does meets all of them alike.

    :param ways: pieces and their arguments; each returns its ``seconds``
    :return: for each way its fastest run, with the highest peak of memory of all its runs
    """
    rounds = [[run(piece, **arguments) for piece, arguments in ways] for _ in range(times)]
    return [
        {
            **min(runs, key=lambda one: float(one["seconds"])),
            "peak_bytes": max(one["peak_bytes"] for one in runs),
        }
        for runs in zip(*rounds, strict=True)
    ]


def main() -> None:
    """The life of a piece's process."""
    name, arguments, answer = sys.argv[1:]
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(answer).write_text(json.dumps({**found, "peak_bytes": own_peak()}))


def own_peak() -> int:
    """The most memory that this process has held, in bytes."""
    with suppress(OSError, StopIteration):
        return _peak_of(os.getpid())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _peak_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


class Watch:
    """Memory of processes and of all that they start, looked at twenty times a second.

    What processes share counts for each of them: the sum is never too low. ``peaks`` holds the
    largest process of each name, ``counts`` how many of a name there were at once, ``total`` the
    largest sum.

    :param roots: the processes, by name
    :param name_of: what a process is called; it gets the name of its root
    """

    def __init__(
        self, roots: Mapping[str, int], name_of: Callable[[psutil.Process, str], str]
    ) -> None:
        self._roots = {name: psutil.Process(pid) for name, pid in roots.items()}
        self._name_of = name_of
        self._is_over = threading.Event()
        self.total = 0
        self.peaks: dict[str, int] = {}
        self.counts: dict[str, int] = {}

    def look_until_over(self) -> None:
        """Take samples until :meth:`stop`."""
        while not self._is_over.wait(_SAMPLE_SECONDS):
            self._look()

    def stop(self) -> None:
        """End :meth:`look_until_over`."""
        self._is_over.set()

    def _look(self) -> None:
        total = 0
        counts: dict[str, int] = {}
        for root, process in self._processes():
            with suppress(psutil.Error, OSError):
                size, name = process.memory_info().rss, self._name_of(process, root)
                total += size
                counts[name] = counts.get(name, 0) + 1
                self.peaks[name] = max(self.peaks.get(name, 0), size)
        for name, count in counts.items():
            self.counts[name] = max(self.counts.get(name, 0), count)
        self.total = max(self.total, total)

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        for name, root in self._roots.items():
            with suppress(psutil.Error):
                yield name, root
                for child in root.children(recursive=True):
                    yield name, child


@contextmanager
def watched(
    roots: Mapping[str, int],
    name_of: Callable[[psutil.Process, str], str] = lambda process, root: root,
) -> Iterator[Watch]:
    """Watch processes during a ``with`` block."""
    watch = Watch(roots, name_of)
    thread = threading.Thread(target=watch.look_until_over, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()
