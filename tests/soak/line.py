"""The line between Airflow and the scoring server: slow, and sometimes lossy.

Law: what passes is not changed. Each request is passed on, later than it came, or the line is dropped;
every start that was answered and every wish to delete is written down.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.system.scoring_proxy import At, Held, Passed, ScoringProxy

__all__ = ["Deletion", "LineFault", "SoakLine", "Stop"]

# Requests that start and delete take a moment, as they do far away: faults at random times meet them.
_SLOW_SHARE, _SLOWEST_SECONDS = 0.4, 3.0
_SLOW = re.compile("/batch")
_DELETION = re.compile("/batch/([^/?]+)$")


@dataclass(frozen=True)
class Deletion:
    """A wish to delete an execution, whatever became of it."""

    at: float
    execution_id: str


@dataclass(frozen=True)
class LineFault:
    """What befalls the next request of a kind.

    :param at: ``request`` before the server sees it, ``reply`` afterwards
    :param seconds: for which it is held
    :param is_lost: whether the line is dropped then
    """

    method: str
    at: At
    seconds: float
    is_lost: bool

    def __str__(self) -> str:
        """How the log of faults names it."""
        end = "lost" if self.is_lost else "passed on"
        return f"{self.at} of the next {self.method}: {end} after {self.seconds:.1f} s"


class Stop(Held):
    """A request that stands still for a while."""

    def __init__(self, method: str, at: At, seconds: float, is_lost: bool) -> None:
        super().__init__(method, "", at)
        self._seconds, self._is_lost = seconds, is_lost

    def stop(self, find_sender: Callable[[], int]) -> bool:
        """Wait, or until everything is to go on."""
        self._goes_on.wait(self._seconds)
        return self._is_lost


class SoakLine(ScoringProxy):
    """A proxy with faults.

    :param random: decides how slow each request is
    :param on_fault: is told of each fault when it happens
    """

    def __init__(
        self, upstream: str, random: random.Random, on_fault: Callable[[str], None]
    ) -> None:
        self._random, self._on_fault = random, on_fault
        self._faults: list[LineFault] = []
        self._stops: list[Stop] = []
        self._is_healed = False
        self.deletions: list[Deletion] = []
        self._guard = threading.Lock()
        super().__init__(upstream)

    def arm(self, fault: LineFault) -> None:
        """Have this fault befall the next request of its kind."""
        with self._guard:
            self._faults.append(fault)

    def heal(self) -> None:
        """Let everything pass from now on."""
        with self._guard:
            self._is_healed = True
            self._faults.clear()
            stops = list(self._stops)
        for stop in stops:
            stop.forward()

    def starts(self) -> list[Passed]:
        """The starts that the server has answered with an execution."""
        return self.passed("POST", r"/batch(\?|$)", 202)

    def calls_of_one(self) -> list[Passed]:
        """The records that were scored by request and response."""
        return self.passed("POST", r"/api/[^/]+/[^/]+$")

    def claim(self, method: str, path: str, at: At) -> Held | None:
        """Called by the proxy at each step of a request."""
        path = path.partition("?")[0]
        deleted = _DELETION.search(path)
        with self._guard:
            if method == "DELETE" and at == "request" and deleted:
                self.deletions.append(Deletion(time.time(), deleted[1]))
            if self._is_healed or at == "after" or not _SLOW.search(path):
                return None
            stop = self._next_stop(method, path, at)
            if stop is not None:
                self._stops.append(stop)
            return stop

    def _next_stop(self, method: str, path: str, at: At) -> Stop | None:
        for fault in self._faults:
            if (fault.method, fault.at) == (method, at):
                self._faults.remove(fault)
                self._on_fault(f"line: {fault}: {path}")
                return Stop(method, at, fault.seconds, fault.is_lost)
        if method != "GET" and self._random.random() < _SLOW_SHARE:
            return Stop(method, at, self._random.uniform(0, _SLOWEST_SECONDS), False)
        return None
