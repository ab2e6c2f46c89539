"""A triggerer without a database: Airflow's own supervisor, and its own runner in a process below."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from airflow.executors.workloads import RunTrigger  # type: ignore[attr-defined]
from airflow.jobs.triggerer_job_runner import TriggerRunnerSupervisor
from airflow.models.trigger import Trigger  # noqa: TID251

if TYPE_CHECKING:
    from airflow.triggers.base import TriggerEvent

__all__ = ["watch_all"]

_LIMIT_SECONDS = 300.0
# How many triggers are taken on at once: an Airflow triggerer takes portions, too.
_PORTION = 100
_PULSE = re.compile(rb"pulse ([\d.]+) ([\d.]+) ([\d.]+)")


class Supervisor(TriggerRunnerSupervisor):
    """Is told what to run instead of looking it up, and counts what the triggers log and fire."""

    def prepare(self) -> None:
        """Forget what was counted."""
        self.polls = 0
        self.pulse = (0.0, 0.0, 0.0)
        self.fired: dict[int, Any] = {}
        self.failures: list[Any] = []

    def load_triggers(self) -> None:
        """There is nothing to load."""

    def heartbeat(self) -> None:
        """Nobody listens."""

    def emit_metrics(self) -> None:
        """Nobody listens."""

    def clean_unused(self) -> None:
        """Nothing is stored."""

    def on_trigger_event(self, trigger_id: int, event: TriggerEvent) -> None:
        """An outcome."""
        self.fired[trigger_id] = event.payload

    def on_trigger_failure(self, trigger_id: int, exc: list[str] | None) -> None:
        """There should be none."""
        self.failures.append(exc)

    def _process_log_messages_from_subprocess(self) -> Generator[None, bytes | bytearray, None]:
        while True:
            line = yield
            if found := _PULSE.search(line):
                pause, busy, callback = map(max, self.pulse, map(float, found.groups()))
                self.pulse = (pause, busy, callback)
            elif b" records, " in line:
                self.polls += 1

    def run_until(self, is_so: Callable[[], bool]) -> None:
        """Serve the runner until something is so.

        :raises TimeoutError: it was not to be
        """
        limit = time.monotonic() + _LIMIT_SECONDS
        while not is_so():
            if time.monotonic() > limit or not self.is_alive():
                raise TimeoutError(f"{len(self.fired)} fired, failed: {self.failures[:3]}")
            self.run_once()

    def run_for(self, seconds: float) -> None:
        """Serve the runner for a while."""
        end = time.monotonic() + seconds
        self.run_until(lambda: time.monotonic() > end)

    def take_on(self, triggers: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Run these, by class path and keywords."""
        for number, (class_path, keywords) in enumerate(triggers, 1):
            encrypted = Trigger.encrypt_kwargs(keywords)
            self.creating_triggers.append(
                RunTrigger(id=number, classpath=class_path, encrypted_kwargs=encrypted, ti=None)
            )
            if number % _PORTION == 0:
                self.run_until(lambda: not self.creating_triggers)


def watch_all(class_path: str, ids_path: str, gate: str, poll_interval: float) -> dict[str, Any]:
    """Run a trigger for each batch, measure while all of them poll, then let the batches complete.

    :param ids_path: a JSON list of execution ids of the service ``gated``
    :param gate: the file that lets them complete
    """
    ids = json.loads(Path(ids_path).read_text())
    supervisor = Supervisor.start(job=None, capacity=len(ids) + 1)
    supervisor.prepare()
    try:
        names = {"service_name": "gated", "service_version": "0", "poll_interval": poll_interval}
        ours = [(class_path, {**names, "execution_id": execution_id}) for execution_id in ids]
        supervisor.take_on([("benchmarks.deferred.triggers.PulseTrigger", {}), *ours])
        supervisor.run_until(lambda: supervisor.polls >= len(ids))
        supervisor.run_for(poll_interval)
        supervisor.prepare()
        told = _measure(supervisor, 3 * poll_interval)
        Path(gate).touch()
        supervisor.run_until(lambda: len(supervisor.fired) == len(ids))
        done = sum(event["status"] == "done" for event in supervisor.fired.values())
    finally:
        supervisor.kill(force=True)
    return {**told, "done": done}


def _measure(supervisor: Supervisor, seconds: float) -> dict[str, Any]:
    times, began = psutil.Process(supervisor.pid).cpu_times(), time.monotonic()
    supervisor.run_for(seconds)
    later, took = psutil.Process(supervisor.pid).cpu_times(), time.monotonic() - began
    cpu = later.user + later.system - times.user - times.system
    return {
        "cpu": cpu / took,
        "polls": supervisor.polls / took,
        **dict(zip(("pause", "busy", "callback"), supervisor.pulse, strict=True)),
    }
