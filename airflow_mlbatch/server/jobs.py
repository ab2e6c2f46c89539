"""What is left to score, and whose turn it is.

Law: a position is handed out to one worker at a time, and never again once it has an outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.store import Execution, Store

__all__ = ["Job", "Jobs"]

# A task should take about so long: long enough that handing it over costs nothing beside it, short
# enough that other executions, and a cancellation, do not wait.
TASK_SECONDS = 0.05
_MOST_RECORDS_A_TASK = 256
# Each of a thousand executions holds so much, and records cost several times their text.
_WINDOW_BYTES = 64 * 1024

Record = tuple[int, bytes]
"""Position and JSON text."""


@dataclass(eq=False)
class Job:
    """An execution with records to score.

    :param limit: most records at once
    :param done: for each position whether it has an outcome
    :param left: how many positions have none
    :param window: the next records, read ahead from the store
    :param next_position: where reading on begins
    :param busy: how many workers are on it
    :param program: what runs, where that was published over HTTP
    :param failed_loads: how many workers in a row could not load that
    """

    execution: Execution
    limit: int
    done: bytearray
    left: int
    window: deque[Record] = field(default_factory=deque)
    next_position: int = 0
    busy: int = 0
    task_size: int = 1
    is_started: bool = False
    is_cancelled: bool = False
    program: Program | None = None
    failed_loads: int = 0

    @classmethod
    def of(
        cls,
        execution: Execution,
        max_parallel: int,
        done_positions: Iterable[int],
        program: Program | None = None,
    ) -> Job:
        """Take an execution up where it is."""
        done = bytearray(execution.total)
        for position in done_positions:
            done[position] = 1
        left = execution.total - sum(done)
        limit = min(execution.parallel_count, max_parallel)
        is_started = left < execution.total
        return cls(execution, limit, done, left, is_started=is_started, program=program)

    def has_work(self, store: Store) -> bool:
        """Whether there is a record to hand out now; reads ahead."""
        if self.is_cancelled or self.busy >= self.limit:
            return False
        while not self.window and self.next_position < self.execution.total:
            rows = store.records(self.execution.number, self.next_position, _WINDOW_BYTES)
            if not rows:
                self.next_position = self.execution.total
                break
            self.next_position = rows[-1][0] + 1
            self.window.extend(row for row in rows if not self.done[row[0]])
        return bool(self.window)

    def hand_out(self, workers: int) -> list[Record]:
        """The records of the next task."""
        # The end of a batch is shared out: no worker waits while another has a heap.
        share = -(-self.left // (2 * workers))
        size = max(1, min(self.task_size, share, len(self.window)))
        return [self.window.popleft() for _ in range(size)]

    def put_back(self, records: Iterable[Record]) -> None:
        """Records that were handed out and not scored come next."""
        if not self.is_cancelled:
            self.window.extendleft(reversed(list(records)))

    def finish(self, position: int) -> bool:
        """A record has an outcome; whether it is its first."""
        if self.is_cancelled or self.done[position]:
            return False
        self.done[position] = 1
        self.left -= 1
        return True

    def learn(self, seconds_per_record: float) -> None:
        """Choose the size of the next task by the time that the last one took."""
        wanted = int(TASK_SECONDS / max(seconds_per_record, 1e-6))
        self.task_size = max(1, min(wanted, 2 * self.task_size, _MOST_RECORDS_A_TASK))

    def cancel(self) -> None:
        """Hand nothing out any more."""
        self.is_cancelled = True
        self.window.clear()


class Jobs:
    """The executions that are not complete, each having its turn."""

    def __init__(self) -> None:
        self._by_id: dict[str, Job] = {}
        self._turns: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, execution_id: str) -> Job | None:
        """Find a job."""
        return self._by_id.get(execution_id)

    def add(self, job: Job) -> None:
        """Have its records scored."""
        self._by_id[job.execution.id] = job
        self._turns.append(job)

    def remove(self, execution_id: str) -> Job | None:
        """Forget a job."""
        job = self._by_id.pop(execution_id, None)
        if job is not None and job in self._turns:
            self._turns.remove(job)
        return job

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._by_id.values()))

    def forget_finished(self, numbers: set[int]) -> list[Job]:
        """Forget those of these executions whose last outcome is stored; returns them."""
        finished = [job for job in self if job.execution.number in numbers and not job.left]
        for job in finished:
            self.remove(job.execution.id)
        return finished

    def next(self, store: Store) -> Job | None:
        """The job whose turn it is and that has a record to hand out."""
        for _ in range(len(self._turns)):
            job = self._turns[0]
            self._turns.rotate(-1)
            if job.has_work(store):
                return job
        return None
