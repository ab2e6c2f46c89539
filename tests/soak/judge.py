"""Judges a soak test by what the scoring server, its service and the tables say.

Law: nothing that our own operators report counts here. What a user did explains what follows from it,
and nothing else does.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.line import Deletion
from tests.soak.runs import SoakRun
from tests.soak.services import score_of
from tests.system.scoring_proxy import Passed

__all__ = ["Evidence", "Judge", "Violation"]

# What a service had just done when its server died is done again, because nobody was told.
_UNTOLD_SECONDS = 5.0
# How long after a user's wish a start may still come from the attempt that it was about.
_LATE_START_SECONDS = 60.0
_MOST_LINES = 40
_ADVICE = "on_ambiguous_submission"


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    rule: str
    run: SoakRun | None
    told: str


@dataclass
class Evidence:
    """What a soak test leaves behind.

    :param first_records: of each execution that the server's database has shown
    :param running: the executions that have not ended
    :param tasks: of each run, its task instances as Airflow shows them
    :param faults: time and text of each
    :param orphans_deleted_at: when all runs were over, and what they left was looked for
    """

    runs: Sequence[SoakRun]
    starts: Sequence[Passed]
    single_calls: Sequence[Passed]
    deletions: Sequence[Deletion]
    server_deaths: Sequence[float]
    calls: Path
    first_records: Mapping[str, Mapping[str, Any]]
    running: Sequence[str]
    tasks: Mapping[int, Sequence[Mapping[str, Any]]]
    faults: Sequence[tuple[float, str]]
    orphans_deleted_at: float
    has_keys: bool


@dataclass
class _Execution:
    """An execution: whose it is, and when its start came."""

    execution_id: str
    number: int
    shard: int
    arrived_at: float
    keys: set[str] = field(default_factory=set)


class Judge:
    """Holds the evidence against the rules."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._runs = {run.number: run for run in evidence.runs}
        self._executions: dict[str, _Execution] = {}
        self.violations: list[Violation] = []
        # What is no violation and yet worth knowing.
        self.remarks: Counter[str] = Counter()
        self._learn()

    def judge(self) -> list[Violation]:
        """All violations."""
        self._judge_ends()
        self._judge_tables()
        self._judge_executions()
        self._judge_deletions()
        self._judge_calls()
        self._judge_leftovers()
        self._judge_orphans()
        return self.violations

    def report(self, violation: Violation) -> Iterator[str]:
        """A violation and its evidence, line by line."""
        yield f"VIOLATION {violation.rule}: {violation.told}"
        run = violation.run
        if run is None:
            return
        events = [*self._events(run)]
        since, until = min(at for at, _ in events) - 5, max(at for at, _ in events) + 5
        events += [
            (at, f"fault {text}") for at, text in self._evidence.faults if since < at < until
        ]
        for at, text in sorted(events)[-_MOST_LINES:]:
            yield f"    {at - run.started_at:8.1f} s  {text}"
        for task in self._evidence.tasks[run.number]:
            yield (
                f"    {task['task_id']}[{task['map_index']}]: {task['state']},"
                f" try {task['try_number']} of {task['max_tries'] + 1}"
            )
        yield f"    logs: {run.logs}"

    # --- what there is -------------------------------------------------------------------------------

    def _learn(self) -> None:
        for start in self._evidence.starts:
            first = json.loads(start.body)[0]
            known = self._know(start.execution_id, first, start.arrived_at)
            if start.key:
                known.keys.add(start.key)
        for execution_id, first in self._evidence.first_records.items():
            # Its start was never answered: when it came is not known, and a death of the server is why.
            self._know(execution_id, first, 0.0)

    def _know(self, execution_id: str, first: Mapping[str, Any], arrived_at: float) -> _Execution:
        run = self._runs[int(first["run"])]
        shard = run.shard_of(int(first["record"]))
        made = _Execution(execution_id, run.number, shard, arrived_at)
        return self._executions.setdefault(execution_id, made)

    def _of(self, run: SoakRun, shard: int | None = None) -> list[_Execution]:
        return [
            execution
            for execution in self._executions.values()
            if execution.number == run.number and shard in (None, execution.shard)
        ]

    def _events(self, run: SoakRun) -> Iterator[tuple[float, str]]:
        yield run.started_at, "the run begins"
        ids = {execution.execution_id for execution in self._of(run)}
        for start in self._evidence.starts:
            if start.execution_id in ids:
                shard = self._executions[start.execution_id].shard
                key = f", key {start.key[:12]}" if start.key else ""
                yield start.arrived_at, f"start of shard {shard} comes{key}"
                yield start.at, f"start is passed on: execution {start.execution_id}"
        for execution in self._of(run):
            if not execution.arrived_at:
                yield run.started_at, f"execution {execution.execution_id}: start never answered"
        for deletion in self._evidence.deletions:
            if deletion.execution_id in ids:
                yield deletion.at, f"DELETE of execution {deletion.execution_id}"
        for action in run.actions:
            text = f"user: {action.what} {action.task_id}[{action.map_index}], {action.found}"
            yield action.at, text
        if run.ended_at:
            yield run.ended_at, f"the run is seen to have ended: {run.state}"

    def _add(self, rule: str, run: SoakRun | None, told: str) -> None:
        self.violations.append(Violation(rule, run, told))

    # --- the rules -----------------------------------------------------------------------------------

    def _judge_ends(self) -> None:
        """A run ends in success, unless a user has ended it, or what to do is said where no key is known."""
        for run in self._evidence.runs:
            if run.state == "success":
                continue
            if not run.state:
                self._add("the run ends", run, f"{run} has not ended")
            elif any(action.what in ("failed", "success") for action in run.actions):
                self.remarks["runs that a user ended"] += 1
            elif not self._evidence.has_keys and _ADVICE in run.run.logs():
                self.remarks["runs that failed as ambiguous, and say what to do"] += 1
            else:
                self._add(
                    "the run succeeds", run, f"{run} has {run.state}, and no user wanted that"
                )

    def _judge_tables(self) -> None:
        """Each table, also one of a run that failed, holds its own scores, complete, exactly once."""
        for run in self._evidence.runs:
            problem = self._problem_of_table(run)
            if problem:
                self._add("a table holds its own scores", run, f"{run}: {problem}")

    def _problem_of_table(self, run: SoakRun) -> str:
        is_whole = (run.output / "_SUCCESS").exists() if run.is_group else run.output.exists()
        was_ended = any(action.what in ("failed", "success") for action in run.actions)
        if not is_whole and run.state == "success" and not was_ended:
            return "success without a table"
        paths = sorted(run.output.glob("part-*.csv")) if run.is_group else [run.output]
        rows = [row for path in paths if path.exists() for row in _rows(path)]
        wrong = [
            row
            for row in rows
            if int(row["run"]) != run.number
            or float(row["y"]) != score_of(run.number, int(row["record"]))
        ]
        if wrong:
            return f"{len(wrong)} rows with scores of others, as {wrong[0]}"
        records = [int(row["record"]) for row in rows]
        if is_whole and records != list(range(run.count)):
            return f"records {records}, expected 0 to {run.count - 1}"
        return ""

    def _judge_executions(self) -> None:
        """One execution for each table or shard, and one more for each time that it was cleared."""
        for run in self._evidence.runs:
            for shard in {execution.shard for execution in self._of(run)}:
                found = self._of(run, shard)
                clears = run.actions_on_score(shard, "clear")
                if len(found) <= 1 + len(clears):
                    continue
                if self._evidence.has_keys:
                    told = (
                        f"{run}, shard {shard}: {len(found)} executions with {len(clears)} clears: "
                        + ", ".join(execution.execution_id for execution in found)
                    )
                    self._add("one execution", run, told)
                else:
                    self.remarks["tables that were scored again"] += 1
        for run in self._evidence.runs:
            self._judge_keys(run)
            self._judge_clears(run)

    def _judge_keys(self, run: SoakRun) -> None:
        """Executions with one key follow a deletion of the one before."""
        if not self._evidence.has_keys:
            return
        deleted = {deletion.execution_id for deletion in self._evidence.deletions}
        by_key: dict[str, list[_Execution]] = defaultdict(list)
        for execution in self._of(run):
            for key in execution.keys:
                by_key[key].append(execution)
        for key, found in by_key.items():
            left = [one.execution_id for one in found if one.execution_id not in deleted]
            if len(left) > 1:
                told = f"{run}: key {key[:12]} has executions {', '.join(left)}"
                self._add("one execution for a key", run, told)

    def _judge_clears(self, run: SoakRun) -> None:
        """A table that was scored and is cleared is scored again."""
        for action in run.actions:
            if not (action.is_on_score and action.is_done) or run.state != "success":
                continue
            if (action.what, action.found) != ("clear", "success"):
                continue
            later = [one for one in self._of(run, action.map_index) if one.arrived_at >= action.at]
            if not later:
                told = (
                    f"{run}: {action.task_id}[{action.map_index}] was cleared and not scored again"
                )
                self._add("a cleared table is scored again", run, told)

    def _judge_deletions(self) -> None:
        """Each deleted execution is explained by a wish of its own, which came after its start."""
        explained: set[tuple[int, float]] = set()
        seen: Counter[str] = Counter()
        for deletion in sorted(self._evidence.deletions, key=lambda each: each.at):
            if deletion.at >= self._evidence.orphans_deleted_at:
                continue
            seen[deletion.execution_id] += 1
            if seen[deletion.execution_id] > 1:
                continue
            execution = self._executions.get(deletion.execution_id)
            if execution is None:
                self._add("a DELETE was asked for", None, f"DELETE of unknown {deletion}")
                continue
            run = self._runs[execution.number]
            wishes = [
                action
                for action in run.actions_on_score(execution.shard, "clear", "failed", "success")
                if action.at <= deletion.at
                and execution.arrived_at <= action.at + _LATE_START_SECONDS
                and (run.number, action.at) not in explained
            ]
            if not wishes:
                told = f"{run}: DELETE of {deletion.execution_id}, which no user asked for"
                self._add("a DELETE was asked for", run, told)
                continue
            explained.add((run.number, wishes[-1].at))
        self.remarks["executions deleted as wished"] = len(explained)
        self.remarks["repeated DELETEs"] = sum(count - 1 for count in seen.values())

    def _judge_calls(self) -> None:
        """The service has scored each record once for each execution, and once for each single call."""
        done: Counter[tuple[int, int]] = Counter()
        for line in self._evidence.calls.read_text().splitlines():
            at, what, run, record = line.split()
            untold = any(
                0 <= death - float(at) < _UNTOLD_SECONDS for death in self._evidence.server_deaths
            )
            if what == "is_done" and not untold:
                done[int(run), int(record)] += 1
        allowed: Counter[tuple[int, int]] = Counter()
        for call in self._evidence.single_calls:
            record = json.loads(call.body)
            allowed[int(record["run"]), int(record["record"])] += 1
        for (number, record), count in sorted(done.items()):
            run = self._runs[number]
            executions = len(self._of(run, run.shard_of(record)))
            if count > executions + allowed[number, record]:
                told = f"{run}: record {record} was scored {count} times by {executions} executions"
                self._add("a record is scored once", run, told)
                break
        self.remarks["calls of the service"] = sum(done.values())
        self.remarks["of these, single records"] = sum(allowed.values())

    def _judge_leftovers(self) -> None:
        """All runs are over and orphans were deleted: no execution runs any more."""
        for execution_id in self._evidence.running:
            execution = self._executions[execution_id]
            run = self._runs[execution.number]
            if run.state:
                self._add(
                    "nothing is left running", run, f"{run}: execution {execution_id} still runs"
                )

    def _judge_orphans(self) -> None:
        """Who looked for orphans has not deleted what a table was written from."""
        orphans = {
            deletion.execution_id
            for deletion in self._evidence.deletions
            if deletion.at >= self._evidence.orphans_deleted_at
        }
        self.remarks["orphans deleted at the end"] = len(orphans)
        for run in self._evidence.runs:
            name = "scored/manifest.json" if run.is_group else "scored.csv.manifest.json"
            manifest = run.folder / name
            if run.state != "success" or not manifest.exists():
                continue
            text = manifest.read_text()
            for execution_id in orphans:
                if execution_id in text:
                    told = f"{run}: execution {execution_id} of a successful task was deleted"
                    self._add("only orphans are deleted", run, told)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
