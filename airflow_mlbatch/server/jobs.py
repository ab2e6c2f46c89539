"""What is left to score, and whose turn it is.

Law: a position is handed out to one worker at a time, and never again once it has an outcome.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from airflow_mlbatch.server.blocks import MOST_BLOCK_BYTES, Block, joined
from airflow_mlbatch.server.programs import Program
from airflow_mlbatch.server.store import Execution, Store

if TYPE_CHECKING:
    import msgspec

__all__ = ["Job", "Jobs", "Pace", "Suspect"]

# A call for many records should be large: it costs the same whatever it is for.
_MOST_RECORDS_A_CALL, _MOST_BYTES_A_CALL, _GROWTH_OF_CALLS = 10_000, 1024 * 1024, 8


@dataclass(frozen=True)
class Pace:
    """How many records are handed out at once.

    :param seconds: how long a task should take: long enough that handing it over costs nothing beside
        it, short enough that other executions, and a cancellation, do not wait
    :param most_records: of a task
    :param growth: a task has at most so many times the records of the last one
    :param window_bytes: what is read ahead of each execution, of which there may be a thousand
    """

    seconds: float = 0.05
    most_records: int = 4096
    growth: int = 2
    window_bytes: int = MOST_BLOCK_BYTES


class Suspect(NamedTuple):
    """A record that machines were lost with.

    :param losses: how many of them
    """

    record: Block
    losses: int


class _Run:
    """Records in a row that wait to be handed out, cut open once.

    :param is_alone: whether they must not be handed out together with others
    """

    def __init__(self, block: Block, is_alone: bool = False) -> None:
        self._block, self.is_alone = block, is_alone
        self._pieces: list[msgspec.Raw] = []
        self.first = block.first

    def __len__(self) -> int:
        return self._block.end - self.first

    @property
    def size(self) -> int:
        """About so many bytes of text."""
        return len(self._block.texts) * len(self) // self._block.length

    def take(self, count: int) -> Block:
        """The next so many records."""
        if count == self._block.length:
            first, self.first = self.first, self._block.end
            return Block(first, count, self._block.texts)
        if not self._pieces:
            self._pieces = self._block.split()
        place = self.first - self._block.first
        taken = Block(self.first, count, b",".join(self._pieces[place : place + count]))
        self.first += count
        return taken


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
    :param pace: how its tasks are cut
    :param suspects: records that machines were lost with; an engine hands them out one by one
    :param is_vectorized: whether a task is one call for all of its records
    """

    execution: Execution
    limit: int
    done: bytearray
    left: int
    window: deque[_Run] = field(default_factory=deque)
    next_position: int = 0
    busy: int = 0
    task_size: int = 1
    is_started: bool = False
    is_cancelled: bool = False
    program: Program | None = None
    failed_loads: int = 0
    pace: Pace = Pace()
    suspects: deque[Suspect] = field(default_factory=deque)
    is_vectorized: bool = False

    @classmethod
    def of(
        cls,
        execution: Execution,
        max_parallel: int,
        done_positions: Iterable[range],
        program: Program | None = None,
        pace: Pace = Pace(),
        is_vectorized: bool = False,
    ) -> Job:
        """Take an execution up where it is."""
        done = bytearray(execution.total)
        for positions in done_positions:
            done[positions.start : positions.stop] = b"\1" * len(positions)
        left = execution.total - sum(done)
        limit = min(execution.parallel_count, max_parallel)
        is_started = left < execution.total
        return cls(
            execution,
            limit,
            done,
            left,
            is_started=is_started,
            program=program,
            pace=pace,
            is_vectorized=is_vectorized,
        )

    def has_work(self, store: Store) -> bool:
        """Whether there is a record to hand out now; reads ahead."""
        if self.is_cancelled or self.busy >= self.limit:
            return False
        while self._wants_more() and self.next_position < self.execution.total:
            blocks = store.records(
                self.execution.number, self.next_position, self.pace.window_bytes
            )
            if not blocks:
                self.next_position = self.execution.total
                break
            self.next_position = blocks[-1].end
            self.window.extend(_Run(part) for block in blocks for part in self.missing(block))
        return bool(self.window or self.suspects)

    def _wants_more(self) -> bool:
        if not self.window or not self.is_vectorized:
            return not self.window
        size, count = sum(run.size for run in self.window), sum(map(len, self.window))
        return count < self.task_size and size < _MOST_BYTES_A_CALL

    def missing(self, block: Block) -> Iterator[Block]:
        """The parts of a block that have no outcome."""
        position = self.done.find(0, block.first, block.end)
        while position >= 0:
            end = self.done.find(1, position, block.end)
            end = block.end if end < 0 else end
            yield block.part(position, end)
            position = self.done.find(0, end, block.end)

    def hand_out(self, workers: int) -> Block:
        """The records of the next task."""
        return self._take(self._wanted(workers))

    def hand_out_blocks(self, workers: int) -> list[Block]:
        """The same, where a task may have more records than a block."""
        wanted, blocks = self._wanted(workers), []
        while wanted > 0 and self.window:
            blocks.append(self._take(wanted))
            wanted -= blocks[-1].length
        return blocks

    def _wanted(self, workers: int) -> int:
        # The end of a batch is shared out: no worker waits while another has a heap.
        share = -(-self.left // (2 * workers))
        return max(1, min(self.task_size, share))

    def _take(self, most: int) -> Block:
        is_alone = self.window[0].is_alone
        blocks: list[Block] = []
        while most:
            run = self.window[0]
            blocks.append(run.take(min(most, len(run))))
            most -= blocks[-1].length
            if not len(run):
                self.window.popleft()
            if not self.is_vectorized or is_alone or not self._goes_on_at(blocks[-1].end):
                break
        return joined(blocks)

    def _goes_on_at(self, position: int) -> bool:
        return (
            bool(self.window) and self.window[0].first == position and not self.window[0].is_alone
        )

    def put_back(self, *blocks: Block, are_alone: bool = False) -> None:
        """Records that were handed out and not scored come next, in this order.

        :param are_alone: whether each block has to be tried by itself
        """
        if not self.is_cancelled:
            self.window.extendleft(
                _Run(block, are_alone) for block in reversed(blocks) if block.length
            )

    def put_back_suspects(self, blocks: Iterable[Block], losses: int) -> None:
        """Records that so many machines were lost with come next, one by one."""
        if not self.is_cancelled:
            found = [Suspect(single, losses) for block in blocks for single in block.singles()]
            self.suspects.extendleft(reversed(found))

    def finish(self, block: Block) -> Iterator[Block]:
        """Records have outcomes; those parts of them that are the first."""
        if self.is_cancelled:
            return
        for part in self.missing(block):
            self.done[part.first : part.end] = b"\1" * part.length
            self.left -= part.length
            yield part

    def learn(self, seconds_per_record: float) -> None:
        """Choose the size of the next task by the time that the last one took."""
        most, growth = self.pace.most_records, self.pace.growth
        if self.is_vectorized:
            most, growth = max(most, _MOST_RECORDS_A_CALL), max(growth, _GROWTH_OF_CALLS)
        wanted = int(self.pace.seconds / max(seconds_per_record, 1e-6))
        self.task_size = max(1, min(wanted, growth * self.task_size, most))

    def cancel(self) -> None:
        """Hand nothing out any more."""
        self.is_cancelled = True
        self.window.clear()
        self.suspects.clear()


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
