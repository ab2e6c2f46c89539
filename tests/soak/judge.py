"""Judges a soak test by what the scoring server, its service, Airflow's database and the tables say.

Law: nothing that our own operators report counts here. What a user wanted, and Airflow did, explains
what follows from it, and nothing else does. Each exemption is told.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.evidence import Call, Evidence, Seen, Start
from tests.soak.runs import SoakRun
from tests.soak.services import score_of
from tests.soak.wishes import Wishes

__all__ = ["Judge", "Violation"]

# What a service had just done when its server died is done again, because nobody was told.
_UNTOLD_SECONDS = 5.0
_MOST_LINES = 80
_ADVICE = "on_ambiguous_submission='resubmit'"


@dataclass(frozen=True)
class Violation:
    """A broken promise."""

    rule: str
    run: SoakRun | None
    told: str


@dataclass
class _Execution:
    """An execution: whose it is, and when its start came; 0 where nobody saw it come."""

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
        self._wishes = Wishes(evidence.runs, evidence.history)
        self._executions: dict[str, _Execution] = {}
        self.violations: list[Violation] = []
        # What is no violation and yet worth knowing: how often, and what it was.
        self.remarks: Counter[str] = Counter()
        self.told: list[str] = []
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
        self.remarks["wishes that Airflow did not do"] = len(self._wishes.undone)
        return self.violations

    def report(self) -> Iterator[str]:
        """The violations, line by line, and below those of a run what is known of it."""
        by_run: dict[int, list[Violation]] = defaultdict(list)
        for violation in self.violations:
            by_run[violation.run.number if violation.run else 0].append(violation)
        for number, violations in sorted(by_run.items()):
            yield from (f"VIOLATION {one.rule}: {one.told}" for one in violations)
            if number:
                yield from self.story(self._runs[number])

    def story(self, run: SoakRun) -> Iterator[str]:
        """What is known of a run, line by line."""
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
        yield f"    began at {run.started_at:.3f}; logs: {run.logs}"

    # --- what there is -------------------------------------------------------------------------------

    def _learn(self) -> None:
        unanswered = [start for start in self._evidence.starts if not start.execution_id]
        for start in self._evidence.starts:
            if start.execution_id:
                self._know(start.execution_id, start.number, start.record, start.arrived_at)
                if start.key:
                    self._executions[start.execution_id].keys.add(start.key)
        for seen in self._evidence.seen:
            if seen.execution_id in self._executions:
                continue
            # The server died before it had answered the start.
            lost = _start_of(seen, unanswered)
            if lost is None:
                self.remarks["executions whose start nobody saw"] += 1
            else:
                unanswered.remove(lost)
            arrived_at = 0.0 if lost is None else lost.arrived_at
            self._know(seen.execution_id, seen.number, seen.record, arrived_at)
            if seen.key:
                self._executions[seen.execution_id].keys.add(seen.key)

    def _know(self, execution_id: str, number: int, record: int, arrived_at: float) -> None:
        shard = self._runs[number].shard_of(record)
        made = _Execution(execution_id, number, shard, arrived_at)
        known = self._executions.setdefault(execution_id, made)
        known.arrived_at = min(known.arrived_at, arrived_at)

    def _of(self, run: SoakRun, shard: int | None = None) -> list[_Execution]:
        """The executions of a run, in the order in which their starts came."""
        found = [
            execution
            for execution in self._executions.values()
            if execution.number == run.number and shard in (None, execution.shard)
        ]
        return sorted(found, key=lambda execution: execution.arrived_at)

    def _events(self, run: SoakRun) -> Iterator[tuple[float, str]]:
        yield run.started_at, "the run begins"
        for start in self._evidence.starts:
            if start.number != run.number:
                continue
            shard = run.shard_of(start.record)
            key = f", key {start.key[-12:]}" if start.key else ""
            yield start.arrived_at, f"start of shard {shard} comes{key}"
            yield start.at, f"start is passed on: execution {start.execution_id or 'not told'}"
        ids = set()
        for execution in self._of(run):
            ids.add(execution.execution_id)
            if not any(
                start.execution_id == execution.execution_id for start in self._evidence.starts
            ):
                at = execution.arrived_at or run.started_at
                yield at, f"execution {execution.execution_id}: its start was never answered"
        for deletion in self._evidence.deletions:
            if deletion.execution_id in ids:
                yield deletion.at, f"DELETE of execution {deletion.execution_id}"
        for action in run.actions:
            text = f"user: {action.what} {action.task_id}[{action.map_index}], which was {action.found}"
            done = "done" if action.is_done else "no answer"
            yield action.at, f"{text}; {done} after {action.over_at - action.at:.1f} s"
        for change in self._wishes.changes_of(run):
            yield change.at, str(change)
        if run.ended_at:
            yield run.ended_at, f"the run is seen to have ended: {run.state}"

    def _add(self, rule: str, run: SoakRun | None, told: str) -> None:
        self.violations.append(Violation(rule, run, told))

    def _exempt(self, what: str, told: str) -> None:
        self.remarks[what] += 1
        self.told.append(f"{what}: {told}")

    # --- the rules -----------------------------------------------------------------------------------

    def _judge_ends(self) -> None:
        """A run ends in success, unless a user has ended it, or what to do is said where no key is known."""
        for run in self._evidence.runs:
            if run.state == "success":
                continue
            if not run.state:
                self._add("the run ends", run, f"{run} has not ended")
                continue
            failed = [
                task for task in self._evidence.tasks[run.number] if task["state"] == "failed"
            ]
            unexplained = [task for task in failed if not self._is_failure_wanted(run, task)]
            if failed and not unexplained:
                self.remarks["runs that a user ended"] += 1
            elif unexplained and all(self._is_told_ambiguous(run, task) for task in unexplained):
                self._exempt("runs that failed as ambiguous, and say what to do", str(run))
            else:
                names = ", ".join(f"{one['task_id']}[{one['map_index']}]" for one in unexplained)
                told = (
                    f"{run} has {run.state}, and no user wanted that; failed: {names or 'no task'}"
                )
                self._add("the run succeeds", run, told)

    def _is_failure_wanted(self, run: SoakRun, task: dict[str, Any]) -> bool:
        """Whether a user has marked the task as failed, or has taken the batch away that it needs."""
        if task["task_id"] == run.score_task:
            wishes = self._wishes.of(run, task["map_index"])
            return bool(wishes) and wishes[-1].action.what == "failed"
        shards = {execution.shard for execution in self._of(run)} | {-1}
        shards |= {action.map_index for action in run.actions if action.is_on_score}
        # The tasks of a shard carry its index; a task without one follows all shards.
        concerned = {task["map_index"]} if task["map_index"] >= 0 else shards
        return any(
            wishes[-1].action.what in ("failed", "success")
            for wishes in (self._wishes.of(run, shard) for shard in concerned)
            if wishes
        )

    def _is_told_ambiguous(self, run: SoakRun, task: dict[str, Any]) -> bool:
        if self._evidence.has_keys or task["task_id"] != run.score_task:
            return False
        folder = run.logs / f"task_id={task['task_id']}"
        if task["map_index"] >= 0:
            folder /= f"map_index={task['map_index']}"
        log = folder / f"attempt={task['try_number']}.log"
        return log.exists() and _ADVICE in log.read_text()

    def _judge_tables(self) -> None:
        """Each table, also one of a run that failed, holds its own scores, complete, exactly once."""
        for run in self._evidence.runs:
            problem = self._problem_of_table(run)
            if problem:
                self._add("a table holds its own scores", run, f"{run}: {problem}")

    def _problem_of_table(self, run: SoakRun) -> str:
        is_whole = (run.output / "_SUCCESS").exists() if run.is_group else run.output.exists()
        if not is_whole and run.state == "success":
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
        """One execution for each table or shard, and after each clear one more."""
        for run in self._evidence.runs:
            for shard in {execution.shard for execution in self._of(run)}:
                self._judge_shard(run, shard)
            self._judge_keys(run)
            self._judge_clears(run)

    def _judge_shard(self, run: SoakRun, shard: int) -> None:
        found = self._of(run, shard)
        clears = self._wishes.of(run, shard, "clear")
        for earlier, execution in enumerate(found):
            if not execution.arrived_at:
                continue
            before = sum(wish.at <= execution.arrived_at for wish in clears)
            if earlier <= before:
                continue
            if self._evidence.has_keys:
                ids = ", ".join(one.execution_id for one in found)
                told = (
                    f"{run}, shard {shard}: execution {execution.execution_id} is number"
                    f" {earlier + 1}, after {before} clears; all: {ids}"
                )
                self._add("one execution", run, told)
            else:
                self.remarks["batches that were started again without a key"] += 1
            return

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
                told = f"{run}: key {key[-12:]} has executions {', '.join(left)}"
                self._add("one execution for a key", run, told)

    def _judge_clears(self, run: SoakRun) -> None:
        """A table that was scored, or was being scored, and is cleared is scored again.

        Where a clear has raised nothing, the next attempt may go on with the batch.
        """
        if run.state != "success":
            return
        for shard in {execution.shard for execution in self._of(run)}:
            starts = [one.arrived_at for one in self._of(run, shard)]
            for wish in self._wishes.of(run, shard, "clear"):
                if not wish.is_raised or not any(at < wish.at for at in starts):
                    continue
                if any(at >= wish.next_attempt_at for at in starts):
                    continue
                told = f"{run}, shard {shard}: cleared {wish.at - run.started_at:.1f} s after its begin"
                if wish.never_ran:
                    # Then none of our code has run either.
                    self._exempt("cleared tasks that Airflow did not run again", told)
                else:
                    self._add(
                        "a cleared table is scored again", run, f"{told}, and not scored again"
                    )

    def _judge_deletions(self) -> None:
        """Each deleted execution is explained by a wish that came before, and concerns it."""
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
            is_explained = any(
                wish.at <= deletion.at and wish.explains_end_of(execution.arrived_at)
                for wish in self._wishes.of(run, execution.shard)
            )
            if is_explained:
                self.remarks["executions deleted as wished"] += 1
            else:
                told = f"{run}: DELETE of {deletion.execution_id}, which no user asked for"
                self._add("a DELETE was asked for", run, told)
        self.remarks["repeated DELETEs"] = sum(count - 1 for count in seen.values())

    def _judge_calls(self) -> None:
        """The service has scored each record once for each execution, and once for each single call."""
        done = Counter(
            (call.number, call.record)
            for call in self._evidence.read_calls()
            if call.done_at and not self._is_untold(call)
        )
        allowed = Counter((call.number, call.record) for call in self._evidence.single_calls)
        judged: set[tuple[int, int]] = set()
        for (number, record), count in sorted(done.items()):
            run = self._runs[number]
            shard = run.shard_of(record)
            executions = len(self._of(run, shard))
            if count > executions + allowed[number, record] and (number, shard) not in judged:
                judged.add((number, shard))
                told = f"{run}: record {record} was scored {count} times by {executions} executions"
                self._add("a record is scored once", run, told)
        self.remarks["calls of the service"] = sum(done.values())
        self.remarks["of these, single records"] = sum(allowed.values())

    def _is_untold(self, call: Call) -> bool:
        """Whether the server died before it had kept the result; its workers outlive it for one record."""
        return any(
            call.began_at <= death.over_at and call.done_at >= death.asked_at - _UNTOLD_SECONDS
            for death in self._evidence.server_deaths
        )

    def _judge_leftovers(self) -> None:
        """All runs are over and orphans were deleted: no execution runs any more."""
        if self._evidence.problem_of_orphans:
            self._add("orphans are deleted", None, self._evidence.problem_of_orphans)
            return
        for execution_id in self._evidence.running:
            execution = self._executions[execution_id]
            run = self._runs[execution.number]
            if not run.state:
                continue
            told = f"{run}: execution {execution_id} still runs"
            if self._evidence.has_keys or len(self._of(run, execution.shard)) < 2:
                self._add("nothing is left running", run, told)
            else:
                # A second one, whose reply was lost: without a key, nothing ties it to its task.
                self._exempt("second executions that still run, without a key", told)

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
                if execution_id not in text:
                    continue
                told = f"{run}: execution {execution_id}, which its table was written from, was deleted"
                if self._was_replaced(run, self._executions[execution_id]):
                    self._exempt("tables of a batch that a user had cleared", told)
                else:
                    self._add("only orphans are deleted", run, told)

    def _was_replaced(self, run: SoakRun, execution: _Execution) -> bool:
        """Whether a user has cleared a batch, another one took its place, and Airflow did not clear its
        reader."""
        later = [one.arrived_at for one in self._of(run, execution.shard)]
        return any(
            execution.arrived_at < wish.at
            and any(at >= wish.next_attempt_at for at in later)
            and self._wishes.was_left_behind(run, execution.shard, wish)
            for wish in self._wishes.of(run, execution.shard, "clear")
        )


def _start_of(seen: Seen, unanswered: list[Start]) -> Start | None:
    """The last unanswered start that can have led to an execution."""
    fitting = [
        start
        for start in unanswered
        if (start.number, start.record) == (seen.number, seen.record)
        and start.at <= seen.at
        and (not seen.key or start.key == seen.key)
    ]
    return max(fitting, key=lambda start: start.at, default=None)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
