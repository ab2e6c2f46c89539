"""The line between Airflow and the scoring server: slow, and sometimes lossy.

Law: what passes is not changed. Each request is passed on, later than it came, or the line is dropped;
every start and every wish to delete that may have reached the server is written down.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.evidence import Deletion, SingleCall, Start
from tests.system.scoring_proxy import At, Held, Passed, ScoringProxy

__all__ = ["LineFault", "SoakLine", "Stop"]

# Requests that start and delete take a moment, as they do far away: faults at random times meet them.
_SLOW_SHARE, _SLOWEST_SECONDS = 0.4, 3.0
_SLOW = re.compile("/batch")
_DELETION = re.compile("/batch/([^/?]+)$")
_START = re.compile(r"/batch(\?|$)")
_SINGLE_CALL = re.compile(r"/api/[^/]+/[^/?]+$")


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
    :param log: a file; each request becomes a line in it
    """

    def __init__(
        self,
        upstream: str,
        random: random.Random,
        on_fault: Callable[[str], None],
        log: Path,
    ) -> None:
        self._random, self._on_fault, self._log = random, on_fault, log
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

    def starts(self) -> list[Start]:
        """The starts that the server has answered with an execution, or may have taken in."""
        return [
            Start(
                one.arrived_at, one.at, *_record(json.loads(one.body)[0]), one.key, one.execution_id
            )
            for one in self._posts(_START)
            if one.execution_id or not one.status
        ]

    def single_calls(self) -> list[SingleCall]:
        """The records that were scored by request and response, or may have been."""
        return [
            SingleCall(one.arrived_at, *_record(json.loads(one.body)))
            for one in self._posts(_SINGLE_CALL)
            if not 400 <= one.status < 500
        ]

    def _posts(self, path: re.Pattern[str]) -> list[Passed]:
        return [
            one
            for one in (*self.passed("POST", path.pattern), *self.unanswered())
            if one.method == "POST" and path.search(one.path)
        ]

    def note(self, passed: Passed) -> None:
        """Called by the proxy when the server has answered, or will not."""
        super().note(passed)
        line = (
            f"{passed.arrived_at:.3f} +{time.time() - passed.arrived_at:.3f} {passed.method}"
            f" {passed.path} {passed.status or 'no answer'} {passed.key} {passed.execution_id}"
        )
        with self._guard, self._log.open("a") as log:
            log.write(line.rstrip() + "\n")

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


def _record(record: Mapping[str, Any]) -> tuple[int, int]:
    """The run that a record is of, and its number."""
    return int(record["run"]), int(record["record"])
