"""How far each batch is: one poll for all viewers.

Law: requests read the board and never wait for a server longer than a moment. Polls run in a few
threads of the board's own, at most one for a batch at a time, and only for batches that somebody
looks at.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from airflow_mlbatch.errors import ExecutionNotFoundError, MLBatchError
from airflow_mlbatch.plugins.notes import Batch
from airflow_mlbatch.plugins.servers import sentence
from airflow_mlbatch.protocol.progress import recent_rate
from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["INTERVAL_SECONDS", "Board", "Seen"]

INTERVAL_SECONDS = 2.0
# What does not change any more is looked at again in case that it was deleted.
_ENDED_SECONDS = 60.0
_PROBLEM_SECONDS = 5.0
_THREADS = 4
_MOST_WAITING = 200
_MOST_BATCHES = 2_000
_MOST_SAMPLES = 240
# The rate is that of the last so many seconds.
_RATE_SECONDS = 30.0


@dataclass
class Seen:
    """What is known of a batch.

    :param status: of the last poll that was answered
    :param problem: why the last poll was not, as a sentence
    :param is_gone: the server does not have it any more
    :param samples: epoch seconds and records done, of a batch that was seen running
    """

    status: BatchStatus | None = None
    problem: str | None = None
    is_gone: bool = False
    asked_at: float | None = None
    samples: list[tuple[float, int]] = field(default_factory=list)

    def as_dict(self, submitted_at: float | None) -> dict[str, Any]:
        """For the page; counts of records, epoch seconds, records a second."""
        status, rate = self.status, self.rate(submitted_at)
        left = None
        if status is not None and not status.is_terminal and rate:
            left = (status.total_item_count - status.completed_item_count) / rate
        return {
            "state": "gone" if self.is_gone else status.state.value if status else None,
            "is_ended": self.is_gone or (status is not None and status.is_terminal),
            "done": status.completed_item_count if status else None,
            "total": status.total_item_count if status else None,
            "message": status.message if status else "",
            "rate": rate,
            "seconds_left": left,
            "samples": self.samples,
            "asked_at": self.asked_at,
            "problem": self.problem,
        }

    def rate(self, submitted_at: float | None) -> float | None:
        """Records a second lately; from the start of the batch where it was not watched."""
        if not self.samples:
            return None
        lately = recent_rate(self.samples, _RATE_SECONDS)
        if lately is None and submitted_at is not None:
            return recent_rate([(submitted_at, 0), self.samples[-1]])
        return lately


class Board:
    """The last status of each batch that somebody looked at.

    :param poll: asks for a status
    :param clock: epoch seconds
    """

    def __init__(
        self, poll: Callable[[Batch], BatchStatus], clock: Callable[[], float] = time.time
    ) -> None:
        self._poll, self._clock = poll, clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[Batch, Seen] = OrderedDict()
        self._polls: dict[Batch, Future[None]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def look(self, batch: Batch, wait: float = 0.0) -> Seen:
        """What is known of a batch; asks for news where that is old.

        :param wait: most seconds for a first answer; what is known already is given at once
        """
        with self._lock:
            seen = self._seen.get(batch) or Seen()
            poll = self._polls.get(batch)
            if poll is None and self._is_old(seen) and len(self._polls) < _MOST_WAITING:
                poll = self._polls[batch] = self._pool().submit(self._ask, batch)
        if poll is not None and seen.asked_at is None and wait:
            with suppress(NotYet):
                poll.result(wait)
        with self._lock:
            return self._seen.get(batch) or seen

    def forget(self, batch: Batch) -> None:
        """Ask anew next time: something was done to the batch."""
        with self._lock:
            self._seen.pop(batch, None)

    def close(self) -> None:
        """End the threads; the next look starts new ones."""
        with self._lock:
            threads, self._threads = self._threads, None
            self._polls.clear()
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def _pool(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mlbatch-board")
        return self._threads

    def _is_old(self, seen: Seen) -> bool:
        if seen.asked_at is None:
            return True
        fresh = INTERVAL_SECONDS
        if seen.is_gone or (seen.status is not None and seen.status.is_terminal):
            fresh = _ENDED_SECONDS
        elif seen.problem is not None:
            fresh = _PROBLEM_SECONDS
        return self._clock() - seen.asked_at >= fresh

    def _ask(self, batch: Batch) -> None:
        try:
            status, problem, is_gone = self._poll(batch), None, False
        except MLBatchError as error:
            status, problem = None, sentence(error, batch.conn_id)
            is_gone = isinstance(error, ExecutionNotFoundError)
        except Exception as error:
            # Whatever it is, the page says so and the next poll follows.
            status, problem, is_gone = None, f"{type(error).__name__}: {error}", False
        with self._lock:
            before = self._seen.pop(batch, None) or Seen()
            self._seen[batch] = self._after(before, status, problem, is_gone)
            while len(self._seen) > _MOST_BATCHES:
                self._seen.popitem(last=False)
            self._polls.pop(batch, None)

    def _after(
        self, before: Seen, status: BatchStatus | None, problem: str | None, is_gone: bool
    ) -> Seen:
        now, samples = self._clock(), before.samples
        if status is not None and (not status.is_terminal or samples):
            last = before.status
            if last is None or not last.is_terminal:
                samples = [*samples, (now, status.completed_item_count)]
            if len(samples) > _MOST_SAMPLES:
                # Half as many samples over the same time; the first and the last stay.
                samples = [*samples[:-1:2], samples[-1]]
        return Seen(status or before.status, problem, is_gone, now, samples)
