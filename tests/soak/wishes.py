"""What the users of a soak test wanted, and what of it Airflow has done.

Law: a wish counts from the moment at which Airflow's database shows it. It concerns what was started
before the next attempt of the task began, and nothing later.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.soak.history import Change
from tests.soak.runs import Action, SoakRun

__all__ = ["Wish", "Wishes"]

# Airflow may do what it was asked for after the line to it broke.
_LATE_SECONDS = 60.0


@dataclass(frozen=True)
class Wish:
    """An action of a user that took effect.

    :param change: with which it did
    :param next_attempt_at: when the task began to run again; infinity where it never did
    :param is_raised: whether the maximum number of tries was raised until then
    """

    action: Action
    change: Change
    next_attempt_at: float
    is_raised: bool

    @property
    def at(self) -> float:
        """Epoch seconds when it took effect."""
        return self.change.at

    @property
    def never_ran(self) -> bool:
        """Whether Airflow has not run the task again."""
        return math.isinf(self.next_attempt_at)

    def explains_end_of(self, arrived_at: float) -> bool:
        """Whether it ends an execution whose start came at this time."""
        return arrived_at < self.next_attempt_at


class Wishes:
    """Finds the wishes that took effect."""

    def __init__(self, runs: Iterable[SoakRun], history: Iterable[Change]) -> None:
        self._changes: dict[tuple[str, str, int], list[Change]] = defaultdict(list)
        for change in history:
            self._changes[change.run_id, change.task_id, change.map_index].append(change)
        self._wishes: dict[tuple[int, int], list[Wish]] = {}
        # Those that Airflow has not done, by run.
        self.undone: list[tuple[SoakRun, Action]] = []
        for run in runs:
            self._find(run)

    def of(self, run: SoakRun, shard: int, *what: str) -> list[Wish]:
        """Those about the task that owns the batch of a shard, oldest first."""
        found = self._wishes.get((run.number, shard), [])
        return [wish for wish in found if not what or wish.action.what in what]

    def about(self, run: SoakRun) -> list[Wish]:
        """Those about any score task of a run."""
        return [
            wish
            for (number, _), wishes in self._wishes.items()
            if number == run.number
            for wish in wishes
        ]

    def changes_of(self, run: SoakRun) -> list[Change]:
        """What became of all tasks of a run."""
        return [
            change
            for (run_id, _, _), changes in self._changes.items()
            if run_id == run.run_id
            for change in changes
        ]

    def was_left_behind(self, run: SoakRun, shard: int, wish: Wish) -> bool:
        """Whether a clear has missed the task that reads the batch, although it was to clear that, too.

        A scheduler that starts that task at the same moment wins: Airflow lets it run with the old batch.
        """
        reader = "scored.shards.write" if run.is_group else "results"
        changes = self._changes[run.run_id, reader, shard]
        begun = [change.at for change in changes if change.state == "scheduled"]
        was_cleared = any(change.is_clear and change.at >= wish.action.at for change in changes)
        return bool(begun) and begun[-1] <= wish.at and not was_cleared

    def _find(self, run: SoakRun) -> None:
        shards = {action.map_index for action in run.actions if action.is_on_score}
        for shard in shards:
            changes = self._changes[run.run_id, run.score_task, shard]
            wishes = self._wishes[run.number, shard] = []
            for action in run.actions:
                if not (action.is_on_score and action.map_index == shard):
                    continue
                taken = {wish.change for wish in wishes}
                change = next(
                    (one for one in changes if one not in taken and _is_effect(action, one)), None
                )
                if change is None:
                    self.undone.append((run, action))
                else:
                    wishes.append(_wish(action, change, changes))
            wishes.sort(key=lambda wish: wish.at)


def _is_effect(action: Action, change: Change) -> bool:
    until = action.over_at + (0 if action.is_done else _LATE_SECONDS)
    if not action.at <= change.at <= until:
        return False
    if action.what == "clear":
        return change.is_clear
    return change.state == action.what != change.old_state


def _wish(action: Action, change: Change, changes: Sequence[Change]) -> Wish:
    later = changes[changes.index(change) + 1 :]
    running = (one.at for one in later if one.state == "running" != one.old_state)
    next_at = next(running, math.inf)
    is_raised = change.is_raise or any(one.is_raise and one.at < next_at for one in later)
    return Wish(action, change, next_at, is_raised)
