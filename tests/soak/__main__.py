"""``make soak``: real Airflow, Dag runs in all modes, faults at random moments, and a judgement.

Exit code 0 means that no promise was broken, 1 that one was, 2 that the soak test itself could not run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.soak.faults import Faults
from tests.soak.judge import Evidence, Judge
from tests.soak.runs import MODES, SoakRun, write_table
from tests.soak.world import World, running_world
from tests.system.airflow_processes import eventually

_TICK_SECONDS = 0.5
_LOOK_SECONDS = 2.0
_PROGRESS_SECONDS = 30.0
# After the last fault: by then, every run that can end has ended.
_LAST_RUNS_SECONDS = 420.0
_TABLE_SIZES = (24, 24, 24, 18)
_SECONDS_OF_A_RECORD = (0.1, 2.5)


def main() -> int:
    """Run a soak test; returns the exit code."""
    options = _options()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mlbatch-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    # The database's user has to get in.
    folder.chmod(0o755)
    # As an exception, so that whatever runs is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    soak = Soak(options, folder)
    _say(f"soak: seed {options.seed}, {options.runs} runs, in {folder}")
    evidence = soak.run()
    judge = Judge(evidence)
    violations = judge.judge()
    for violation in violations:
        for line in judge.report(violation):
            _say(line)
    for line in soak.summary(judge):
        _say(line)
    if violations:
        _say(f"soak: all that was written is in {folder}")
    elif options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if violations else 0


class Soak:
    """One soak test."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._random = random.Random(f"runs of {options.seed}")
        self._modes: list[str] = []
        self._runs: list[SoakRun] = []
        self._fault_log: list[tuple[float, str]] = []
        self._faults: Faults | None = None
        self._began_at = time.time()
        self._took = 0.0

    def run(self) -> Evidence:
        """Everything from the first process to the last; returns what is to be judged."""
        line_random = random.Random(f"line of {self._options.seed}")
        has_keys = not self._options.without_keys
        with running_world(self._folder, line_random, self._note_fault, has_keys) as world:
            _say("soak: Airflow and the scoring server run")
            self._began_at = time.time()
            options = self._options
            self._faults = Faults(
                world,
                self._runs,
                options.seed,
                options.pause,
                options.at_once,
                self._note_fault,
            )
            self._go_through(world)
            self._faults.heal()
            self._finish(world)
            orphans_deleted_at = _delete_orphans(world)
            world.remember_executions()
            self._took = time.time() - self._began_at
            return Evidence(
                runs=self._runs,
                starts=world.line.starts(),
                single_calls=world.line.calls_of_one(),
                deletions=world.line.deletions,
                server_deaths=world.server_deaths,
                calls=world.calls,
                first_records=world.seen,
                running=[one for one, state, _ in world.executions() if state == "pending"],
                tasks={run.number: run.run.tasks() for run in self._runs},
                faults=self._fault_log,
                orphans_deleted_at=orphans_deleted_at,
                has_keys=has_keys,
            )

    def summary(self, judge: Judge) -> Iterator[str]:
        """What has happened, in numbers."""
        assert self._faults is not None
        modes = Counter(run.mode for run in self._runs)
        states = Counter(run.state or "not over" for run in self._runs)
        actions = Counter(action.what for run in self._runs for action in run.actions)
        yield f"runs: {len(self._runs)} in {self._took / 60:.1f} minutes; " + _listed(states)
        yield f"modes: {_listed(modes)}"
        yield f"faults: {sum(self._faults.counts.values())}; {_listed(self._faults.counts)}"
        yield f"actions of users among them: {_listed(actions)}"
        yield f"besides: {_listed(judge.remarks)}"
        yield f"violations: {len(judge.violations)}"

    # --- while it runs -------------------------------------------------------------------------------

    def _go_through(self, world: World) -> None:
        assert self._faults is not None
        look_at = progress_at = 0.0
        while len(self._runs) < self._options.runs or self._active():
            self._attempt(self._faults.tick)
            if time.time() >= look_at:
                world.restart_what_ended()
                world.end_idle_survivors()
                self._attempt(lambda: self._look(world))
                look_at = time.time() + _LOOK_SECONDS
            if time.time() >= progress_at:
                self._tell_progress()
                progress_at = time.time() + _PROGRESS_SECONDS
            if (
                len(self._runs) == self._options.runs
                and len(self._active()) <= self._options.at_once // 2
            ):
                # The faults end with the last runs, which are to show that everything comes to an end.
                return
            time.sleep(_TICK_SECONDS)

    def _look(self, world: World) -> None:
        """See which runs have ended, and start others."""
        listed = world.airflow.ask("GET", "/dags/~/dagRuns", state=["queued", "running"], limit=500)
        going_on = {run["dag_run_id"] for run in listed["dag_runs"]}
        for run in self._active():
            if run.run.run_id not in going_on:
                state = run.run.state()
                if state in ("success", "failed"):
                    run.state, run.ended_at = state, time.time()
        if len(self._runs) < self._options.runs and len(self._active()) < self._options.at_once:
            self._start_one(world)

    def _start_one(self, world: World) -> None:
        if not self._modes:
            self._modes = self._random.sample(MODES, len(MODES))
        number, mode = len(self._runs) + 1, self._modes.pop()
        folder = self._folder / "tables" / f"run-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        count = self._random.choice(_TABLE_SIZES)
        table = write_table(folder, number, count, self._random.uniform(*_SECONDS_OF_A_RECORD))
        name = "scored" if mode.startswith("group") else "scored.csv"
        run = world.airflow.trigger(
            f"soak_{mode}", input_path=str(table), output_path=str(folder / name)
        )
        self._runs.append(SoakRun(number, mode, count, folder, run, time.time()))

    def _finish(self, world: World) -> None:
        """Wait until the last runs are over."""

        def are_over() -> bool:
            world.restart_what_ended()
            world.end_idle_survivors()
            self._attempt(lambda: self._look(world))
            return not self._active()

        try:
            eventually(are_over, _LAST_RUNS_SECONDS, pause=_LOOK_SECONDS)
        except AssertionError:
            _say("soak: some runs have not ended")
        self._tell_progress()

    def _attempt(self, work: object) -> None:
        """Airflow may refuse or be slow while faults happen: it is asked again later."""
        assert callable(work)
        try:
            work()
        except (AssertionError, requests.RequestException) as error:
            self._note_fault(f"not done: {str(error)[:100]}")

    def _active(self) -> list[SoakRun]:
        return [run for run in self._runs if not run.state]

    def _note_fault(self, text: str) -> None:
        self._fault_log.append((time.time(), text))
        with (self._folder / "faults.log").open("a") as log:
            log.write(f"{time.time() - self._began_at:8.1f}  {text}\n")

    def _tell_progress(self) -> None:
        assert self._faults is not None
        over = len(self._runs) - len(self._active())
        minutes = (time.time() - self._began_at) / 60
        faults = sum(self._faults.counts.values())
        _say(f"soak: {minutes:5.1f} min, {over} of {self._options.runs} runs over, {faults} faults")


def _delete_orphans(world: World) -> float:
    """Have the executions deleted that nobody wants any more; returns when that began."""
    began_at = time.time()
    deletions = [world.airflow.trigger(f"soak_{mode}", orphans=True) for mode in MODES]
    for deletion in deletions:
        state = deletion.wait_for_end()
        assert state == "success", f"deleting orphans: {state}\n{deletion.logs()}"
    return began_at


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _say(line: str) -> None:
    print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    option = parser.add_argument
    option("--seed", type=int, help="decides which faults happen; left out, the clock does")
    option("--runs", type=int, default=200, help="how many Dag runs")
    option("--at-once", type=int, default=8, help="most Dag runs at the same time")
    option("--pause", type=float, default=7.0, help="mean seconds between two faults, at least")
    option(
        "--without-keys",
        action="store_true",
        help="against a server that knows no idempotency keys",
    )
    option(
        "--folder", type=Path, help="for everything that is written; kept. Left out, one is made"
    )
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int(time.time())
    return options


if __name__ == "__main__":
    sys.exit(main())
