"""``make soak``: real Airflow, Dag runs in all modes, faults at random moments, and a judgement.

Exit code 0 means that no promise was broken, 1 that one was, 2 that the soak test itself could not run.
"""

from __future__ import annotations

import argparse
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import requests

from tests.soak.evidence import Evidence
from tests.soak.faults import Faults
from tests.soak.history import read_history
from tests.soak.judge import Judge
from tests.soak.runs import MODES, SoakRun, write_table
from tests.soak.world import World, running_world
from tests.system.airflow_processes import eventually

_TICK_SECONDS = 0.5
_LOOK_SECONDS = 2.0
_PROGRESS_SECONDS = 30.0
# After the last fault: by then, a task whose batch a user has taken away has used up its retries.
_LAST_RUNS_SECONDS = 900.0
_TABLE_SIZES = (24, 24, 24, 18)
_STARTING_TRIES = 20
_SECONDS_OF_A_RECORD = (0.1, 2.5)


def main() -> int:
    """Run a soak test, or judge one again; returns the exit code."""
    options = _options()
    folder = options.judge or options.folder or Path(tempfile.mkdtemp(prefix="mlbatch-soak-"))
    evidence = folder / "evidence.json"
    if options.judge is None:
        folder.mkdir(parents=True, exist_ok=True)
        # The database's user has to get in.
        folder.chmod(0o755)
        # As an exception, so that whatever runs is ended.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        _say(f"soak: seed {options.seed}, {options.runs} runs, in {folder}; starting Airflow")
        soak = Soak(options, folder)
        try:
            # What cannot be judged today can be judged tomorrow.
            soak.run().save(evidence)
        except BaseException:
            _say(f"soak: not finished; all that was written is in {folder}")
            raise
        _say("soak: all processes have ended; judging")
    return _judge(Evidence.load(evidence), options, folder)


def _judge(evidence: Evidence, options: argparse.Namespace, folder: Path) -> int:
    """Say what has come out; returns the exit code."""
    judge = Judge(evidence)
    violations = judge.judge()
    for line in judge.report():
        _say(line)
    for told in judge.told:
        _say(f"soak: {told}")
    for line in _summary(evidence, judge):
        _say(line)
    is_kept = options.judge or options.folder or violations or judge.told
    if is_kept:
        _say(f"soak: logs of tasks and triggers: {folder}/airflow/logs/dag_id=*/run_id=*")
        _say(f"soak: logs of schedulers and triggerers: {folder}/airflow/processes/*.log")
        _say(f"soak: requests: {folder}/line.log; calls: {evidence.calls}; {folder}/faults.log")
        _say(f"soak: scoring server: {folder}/scoring-server.log; evidence: {folder}/evidence.json")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if violations else 0


def _summary(evidence: Evidence, judge: Judge) -> Iterator[str]:
    """What has happened, in numbers."""
    runs = evidence.runs
    modes = Counter(run.mode for run in runs)
    states = Counter(run.state or "not over" for run in runs)
    actions = Counter(action.what for run in runs for action in run.actions)
    faults = sum(evidence.counts.values())
    yield f"runs: {len(runs)} in {evidence.minutes:.1f} minutes; {_listed(states)}"
    yield f"modes: {_listed(modes)}"
    yield f"faults: {faults}; {_listed(evidence.counts)}"
    yield f"actions of users among them: {_listed(actions)}"
    yield f"besides: {_listed(judge.remarks)}"
    yield f"violations: {len(judge.violations)}"


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
        self._progress_at = 0.0

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
            self._tell_progress("no further faults")
            self._faults.heal()
            self._finish(world)
            orphans_deleted_at = time.time()
            problem_of_orphans = self._delete_orphans(world)
            running = world.remember_executions()
            self._tell_progress("writing down what there is")
            return Evidence(
                runs=self._runs,
                starts=world.line.starts(),
                single_calls=world.line.single_calls(),
                deletions=world.line.deletions,
                server_deaths=world.server_deaths,
                calls=world.calls,
                seen=list(world.seen.values()),
                running=sorted(running),
                tasks={run.number: world.run_of(run).tasks() for run in self._runs},
                history=list(read_history(world.database)),
                faults=self._fault_log,
                counts=dict(self._faults.counts),
                minutes=(time.time() - self._began_at) / 60,
                orphans_deleted_at=orphans_deleted_at,
                problem_of_orphans=problem_of_orphans,
                has_keys=has_keys,
            )

    # --- while it runs -------------------------------------------------------------------------------

    def _go_through(self, world: World) -> None:
        assert self._faults is not None
        look_at = 0.0
        while len(self._runs) < self._options.runs or self._active():
            self._attempt(self._faults.tick)
            if time.time() >= look_at:
                self._attempt(lambda: self._look(world))
                if len(self._runs) < self._options.runs:
                    if len(self._active()) < self._options.at_once:
                        self._start_one(world)
                elif len(self._active()) <= self._options.at_once // 2:
                    # The faults end with the last runs, which are to show that all comes to an end.
                    return
                look_at = time.time() + _LOOK_SECONDS
            time.sleep(_TICK_SECONDS)

    def _look(self, world: World) -> None:
        """Start again what has ended by itself, and see which runs have ended."""
        if time.time() >= self._progress_at:
            self._tell_progress()
        world.restart_what_ended()
        world.end_idle_survivors()
        world.remember_executions()
        listed = world.airflow.ask("GET", "/dags/~/dagRuns", state=["queued", "running"], limit=500)
        going_on = {run["dag_run_id"] for run in listed["dag_runs"]}
        for run in self._active():
            state = "" if run.run_id in going_on else world.run_of(run).state()
            if state in ("success", "failed"):
                run.state, run.ended_at = state, time.time()

    def _start_one(self, world: World) -> None:
        if not self._modes:
            self._modes = self._random.sample(MODES, len(MODES))
        number, mode = len(self._runs) + 1, self._modes.pop()
        folder = self._folder / "tables" / f"run-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        count = self._random.choice(_TABLE_SIZES)
        table = write_table(folder, number, count, self._random.uniform(*_SECONDS_OF_A_RECORD))
        run = SoakRun(number, mode, count, folder, f"soak-{secrets.token_hex(4)}", time.time())
        conf = {"input_path": str(table), "output_path": str(run.output)}
        body = {"dag_run_id": run.run_id, "logical_date": None, "conf": conf}
        for _ in range(_STARTING_TRIES):
            try:
                world.airflow.ask("POST", f"/dags/{run.dag_id}/dagRuns", body)
                break
            except (AssertionError, requests.RequestException) as error:
                if ": 409 " in str(error):
                    break  # Airflow did it the time before, and could not say so.
                self._note_fault(f"run {number} not started yet: {str(error)[:200]}")
                time.sleep(1)
        else:
            raise AssertionError(
                f"Airflow does not start run {number}; see {self._folder}/faults.log"
            )
        self._runs.append(run)

    def _finish(self, world: World) -> None:
        """Wait until the last runs are over."""

        def are_over() -> bool:
            self._attempt(lambda: self._look(world))
            return not self._active()

        try:
            eventually(are_over, _LAST_RUNS_SECONDS, pause=_LOOK_SECONDS)
        except AssertionError:
            _say("soak: some runs have not ended")

    def _delete_orphans(self, world: World) -> str:
        """Have the executions deleted that nobody wants any more; returns what went wrong."""
        self._tell_progress("deleting orphans")
        deletions = [world.airflow.trigger(f"soak_{mode}", orphans=True) for mode in MODES]
        problems = []
        for deletion in deletions:
            try:
                state = deletion.wait_for_end()
            except AssertionError as error:
                state = str(error)
            if state != "success":
                problems.append(f"{deletion}: {state[:500]}")
        return "; ".join(problems)

    def _attempt(self, work: Callable[[], object]) -> None:
        """Airflow may refuse or be slow while faults happen: it is asked again later."""
        try:
            work()
        except (AssertionError, requests.RequestException) as error:
            self._note_fault(f"not done: {str(error)[:200]}")
        except Exception:
            # A fault of this test. It is told, and the runs so far are still judged.
            _say(f"soak: not done:\n{traceback.format_exc()}")
            self._note_fault(f"not done: {traceback.format_exc()}")

    def _active(self) -> list[SoakRun]:
        return [run for run in self._runs if not run.state]

    def _note_fault(self, text: str) -> None:
        self._fault_log.append((time.time(), text))
        with (self._folder / "faults.log").open("a") as log:
            log.write(f"{time.time() - self._began_at:8.1f}  {text}\n")

    def _tell_progress(self, what: str = "") -> None:
        assert self._faults is not None
        self._progress_at = time.time() + _PROGRESS_SECONDS
        over = len(self._runs) - len(self._active())
        minutes = (time.time() - self._began_at) / 60
        faults = sum(self._faults.counts.values())
        done = f"{over} of {self._options.runs} runs over, {faults} faults"
        _say(f"soak: {minutes:5.1f} min, {done}{what and f'; {what}'}")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _say(line: str) -> None:
    print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    option = parser.add_argument
    option("--seed", type=int, help="decides which faults happen; left out, the clock does")
    option("--runs", type=int, default=200, help="how many Dag runs")
    option("--at-once", type=int, default=8, help="most Dag runs at the same time")
    option("--pause", type=float, default=3.0, help="mean seconds between two faults, at least")
    option(
        "--without-keys",
        action="store_true",
        help="against a server that knows no idempotency keys",
    )
    option(
        "--folder", type=Path, help="for everything that is written; kept. Left out, one is made"
    )
    option("--judge", type=Path, help="judge again what a soak test has left in this folder")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = int(time.time())
    return options


if __name__ == "__main__":
    sys.exit(main())
