"""What goes wrong in a soak test, and when: all of it follows from the seed.

Law: the seed decides which fault comes next, how long after the one before, and which of those whom it
could hit it hits. What these are doing at that moment is left to chance.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tests.soak.line import LineFault
from tests.soak.runs import Action, SoakRun
from tests.soak.world import TRIGGERERS, Task, World

__all__ = ["Faults"]

T = TypeVar("T")

_FAULTS_PER_RUN = 1.25
_LONGEST_OUTAGE = 10.0
# Longer than it takes Airflow to miss a heartbeat, and to start the next attempt.
_LONGEST_STOP = 45.0
_LONGEST_HOLD = 60.0
_GRACE_SECONDS = 15.0
_WAITING = ("running", "deferred", "up_for_retry", "up_for_reschedule", "queued", "scheduled")
# A run that has ended is cleared only within this time.
_CLEARED_AFTER = 90.0


class Faults:
    """Makes things go wrong.

    :param runs: the Dag runs so far, which grow
    :param pause: mean seconds between two faults, at least
    :param at_once: faults in advance, for the first runs
    :param say: is told of each fault when it happens
    """

    def __init__(
        self,
        world: World,
        runs: Sequence[SoakRun],
        seed: int,
        pause: float,
        at_once: int,
        say: Callable[[str], None],
    ) -> None:
        self._world, self._runs, self._seed, self._say = world, runs, seed, say
        self._pause, self._at_once = pause, at_once
        self._random = random.Random(f"faults of {seed}")
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._suspensions: list[threading.Timer] = []
        self._number = 0
        self._next_at = time.time() + self._random.expovariate(1 / pause)
        self.counts: Counter[str] = Counter()

    def tick(self) -> None:
        """Do what is due."""
        while self._later and self._later[0][0] <= time.time():
            heapq.heappop(self._later)[2]()
        if time.time() >= self._next_at and self._is_one_due():
            self._make_one()

    def heal(self) -> None:
        """End all that is still going on."""
        for suspension in self._suspensions:
            suspension.join()
        while self._later:
            heapq.heappop(self._later)[2]()
        self._world.line.heal()
        for name in ("server", "scheduler", *TRIGGERERS):
            self._world.start(name)

    def _is_one_due(self) -> bool:
        """On a slow machine, faults wait for the runs: nobody would come to an end otherwise."""
        over = sum(bool(run.state) for run in self._runs)
        return sum(self.counts.values()) < self._at_once + _FAULTS_PER_RUN * over

    def _make_one(self) -> None:
        self._number += 1
        # The details have a source of their own: what cannot be done now changes nothing later.
        details = random.Random(f"fault {self._number} of {self._seed}")
        kind = self._random.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
        self._next_at = time.time() + self._random.expovariate(1 / self._pause)
        done = _KINDS[kind][1](self, details)
        if done:
            self.counts[kind] += 1
            self._say(f"{kind}: {done}")

    def _at(self, seconds: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.time() + seconds, self._number, work))

    def _suspend_for(self, seconds: float, resume: Callable[[], object]) -> None:
        """Whoever is suspended may hold a lock that Airflow needs to answer us: a thread resumes it."""
        timer = threading.Timer(seconds, resume)
        timer.daemon = True
        timer.start()
        self._suspensions.append(timer)

    # --- workers -----------------------------------------------------------------------------------

    def _task(self, details: random.Random) -> Task | None:
        return _one_of(details, self._world.tasks())

    def _send(self, pids: Sequence[int], number: signal.Signals) -> str:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, AssertionError):
                self._world.airflow.send(pid, number)
        return f"{number.name} to {', '.join(map(str, pids))}" if pids else ""

    def kill_task(self, details: random.Random) -> str:
        task = self._task(details)
        return self._send([task.pid], signal.SIGKILL) if task else ""

    def kill_worker(self, details: random.Random) -> str:
        task = self._task(details)
        return self._send(task.both, signal.SIGKILL) if task else ""

    def kill_supervisor(self, details: random.Random) -> str:
        task = self._task(details)
        return self._send([task.worker], signal.SIGKILL) if task and task.worker else ""

    def end_task(self, details: random.Random) -> str:
        task = self._task(details)
        return self._send([task.pid], signal.SIGTERM) if task else ""

    def end_worker(self, details: random.Random) -> str:
        task = self._task(details)
        return self._send([task.worker], signal.SIGTERM) if task and task.worker else ""

    def suspend_worker(self, details: random.Random) -> str:
        task, seconds = self._task(details), details.uniform(1, _LONGEST_STOP)
        if task is None:
            return ""
        done = self._send(task.both, signal.SIGSTOP)
        self._suspend_for(seconds, lambda: self._send(task.both, signal.SIGCONT))
        return f"{done} for {seconds:.1f} s"

    # --- Airflow's other processes, and the server ---------------------------------------------------

    def _back_later(self, name: str, details: random.Random) -> str:
        seconds = details.uniform(0, _LONGEST_OUTAGE)
        self._at(seconds, lambda: self._world.start(name))
        return f"{name}, for {seconds:.1f} s"

    def kill_scheduler_alone(self, details: random.Random) -> str:
        if not self._world.is_up("scheduler"):
            return ""
        self._world.airflow.kill_alone("scheduler")
        return self._back_later("scheduler", details)

    def kill_scheduler_and_workers(self, details: random.Random) -> str:
        """As when their machine loses its power."""
        if not self._world.is_up("scheduler"):
            return ""
        tasks = self._world.tasks()
        self._world.airflow.kill("scheduler")
        self._send([pid for task in tasks for pid in task.both], signal.SIGKILL)
        return self._back_later("scheduler", details)

    def end_scheduler(self, details: random.Random) -> str:
        return self._end("scheduler", details)

    def suspend_scheduler(self, details: random.Random) -> str:
        return self._suspend("scheduler", details)

    def kill_triggerer(self, details: random.Random) -> str:
        name = details.choice(TRIGGERERS)
        if not self._world.is_up(name):
            return ""
        self._world.airflow.kill(name)
        return self._back_later(name, details)

    def end_triggerer(self, details: random.Random) -> str:
        return self._end(details.choice(TRIGGERERS), details)

    def suspend_triggerer(self, details: random.Random) -> str:
        return self._suspend(details.choice(TRIGGERERS), details)

    def kill_server(self, details: random.Random) -> str:
        return self._end_server(details, is_kill=True)

    def end_server(self, details: random.Random) -> str:
        return self._end_server(details, is_kill=False)

    def _end_server(self, details: random.Random, is_kill: bool) -> str:
        if not self._world.is_up("server"):
            return ""
        self._world.end_server(is_kill)
        return self._back_later("server", details)

    def _end(self, name: str, details: random.Random) -> str:
        """SIGTERM; whoever has not ended by himself after a while is killed, and started again."""
        airflow = self._world.airflow
        if not self._world.is_up(name) or airflow.has_ended(name):
            return ""
        pid = airflow.pid(name)
        os.kill(pid, signal.SIGTERM)

        def back() -> None:
            if self._world.is_up(name) and airflow.pid(name) == pid:
                airflow.kill_alone(name)
                self._world.start(name)

        self._at(_GRACE_SECONDS, back)
        return name

    def _suspend(self, name: str, details: random.Random) -> str:
        airflow, seconds = self._world.airflow, details.uniform(1, _LONGEST_STOP / 2)
        if not self._world.is_up(name) or airflow.has_ended(name):
            return ""
        pid = airflow.pid(name)
        family = airflow.family(pid) if name != "scheduler" else [pid]
        for one in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)

        def go_on() -> None:
            if self._world.is_up(name) and airflow.pid(name) == pid:
                for one in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one, signal.SIGCONT)

        self._suspend_for(seconds, go_on)
        return f"{name}, for {seconds:.1f} s"

    # --- the line ------------------------------------------------------------------------------------

    def lose_request(self, details: random.Random) -> str:
        return self._line(details, "request", is_lost=True, seconds=0)

    def lose_reply(self, details: random.Random) -> str:
        return self._line(details, "reply", is_lost=True, seconds=0)

    def hold_request(self, details: random.Random) -> str:
        return self._line(details, "request", False, details.uniform(1, _LONGEST_HOLD))

    def hold_reply(self, details: random.Random) -> str:
        return self._line(details, "reply", False, details.uniform(1, _LONGEST_HOLD))

    def _line(self, details: random.Random, at: Any, is_lost: bool, seconds: float) -> str:
        method = details.choices(["POST", "GET", "DELETE"], [6, 3, 1])[0]
        fault = LineFault(method, at, seconds, is_lost)
        self._world.line.arm(fault)
        return str(fault)

    # --- users ---------------------------------------------------------------------------------------

    def clear(self, details: random.Random) -> str:
        """Clear a task that owns a batch while its run goes on, and what follows it."""
        return self._act(details, "clear", self._active(), (*_WAITING, "success"))

    def clear_when_ended(self, details: random.Random) -> str:
        """Clear a task whose run has succeeded: the table is to be scored again."""
        since = time.time() - _CLEARED_AFTER
        ended = [run for run in self._runs if run.state == "success" and run.ended_at > since]
        return self._act(details, "clear", ended, ("success",))

    def mark_failed(self, details: random.Random) -> str:
        return self._act(details, "failed", self._active(), _WAITING)

    def mark_success(self, details: random.Random) -> str:
        return self._act(details, "success", self._active(), _WAITING)

    def clear_sensor(self, details: random.Random) -> str:
        sensors = [run for run in self._active() if run.mode.startswith("sensor")]
        return self._act(details, "clear", sensors, _WAITING, "sensor")

    def _active(self) -> list[SoakRun]:
        return [run for run in self._runs if not run.state]

    def _act(
        self,
        details: random.Random,
        what: str,
        runs: Sequence[SoakRun],
        states: Sequence[str],
        task_id: str | None = None,
    ) -> str:
        chosen = _one_of(details, runs)
        if chosen is None:
            return ""
        wanted = task_id or chosen.score_task
        run = self._world.run_of(chosen)
        tasks = [task for task in run.tasks() if task["task_id"] == wanted]
        task = _one_of(details, [task for task in tasks if task["state"] in states])
        # Before it is mapped, the task stands for all of its shards.
        if task is None or (chosen.is_group and task["map_index"] < 0 and task_id is None):
            return ""
        action = Action(time.time(), what, wanted, task["map_index"], task["state"])
        chosen.actions.append(action)
        # A run that had ended goes on, perhaps also where Airflow does not say that it has cleared it.
        chosen.state = ""
        is_done = False
        try:
            if what == "clear":
                named = wanted if action.map_index < 0 else (wanted, action.map_index)
                run.clear(named, downstream=True)
            else:
                run.mark(wanted, what, action.map_index)
            is_done = True
        finally:
            chosen.actions[-1] = replace(action, over_at=time.time(), is_done=is_done)
        return f"{run}, {wanted}[{action.map_index}], which was {action.found}"


def _one_of(details: random.Random, found: Sequence[T]) -> T | None:
    return details.choice(found) if found else None


_KINDS: dict[str, tuple[float, Callable[[Faults, random.Random], str]]] = {
    "kill_task": (12, Faults.kill_task),
    "kill_worker": (9, Faults.kill_worker),
    "kill_supervisor": (3, Faults.kill_supervisor),
    "end_task": (4, Faults.end_task),
    "end_worker": (4, Faults.end_worker),
    "suspend_worker": (8, Faults.suspend_worker),
    "kill_scheduler_alone": (6, Faults.kill_scheduler_alone),
    "kill_scheduler_and_workers": (3, Faults.kill_scheduler_and_workers),
    "end_scheduler": (1, Faults.end_scheduler),
    "suspend_scheduler": (3, Faults.suspend_scheduler),
    "kill_triggerer": (6, Faults.kill_triggerer),
    "end_triggerer": (3, Faults.end_triggerer),
    "suspend_triggerer": (4, Faults.suspend_triggerer),
    "kill_server": (11, Faults.kill_server),
    "end_server": (5, Faults.end_server),
    "lose_request": (5, Faults.lose_request),
    "lose_reply": (5, Faults.lose_reply),
    "hold_request": (5, Faults.hold_request),
    "hold_reply": (5, Faults.hold_reply),
    "clear": (11, Faults.clear),
    "clear_when_ended": (6, Faults.clear_when_ended),
    "mark_failed": (5, Faults.mark_failed),
    "mark_success": (3, Faults.mark_success),
    "clear_sensor": (3, Faults.clear_sensor),
}
