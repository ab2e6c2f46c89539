"""How fast a batch goes and how long it will still take, from the polls of its status."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["Pace", "recent_rate"]

Sample = tuple[float, int]
"""Epoch seconds, and how many records were done by then."""

# Polls may be half a minute apart: so many of them give a rate that is neither old nor a matter of luck.
_MOST_SAMPLES = 6
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def recent_rate(samples: Sequence[Sample], seconds: float = math.inf) -> float | None:
    """Records a second, over the samples of the last seconds; ``None`` where they do not tell."""
    if not samples:
        return None
    until, done = samples[-1]
    since, before = next(sample for sample in samples if sample[0] >= until - seconds)
    return (done - before) / (until - since) if until > since else None


class Pace:
    """Watches the polls of one batch; makes the line that tells how far it is.

    ``failures`` are the words about records that failed, where somebody has looked for them.
    """

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=_MOST_SAMPLES)
        self.failures = ""

    def take(self, now: float, status: BatchStatus) -> None:
        """Take the status of a poll, and when it came, in epoch seconds."""
        if self._samples and status.completed_item_count < self._samples[-1][1]:
            self._samples.clear()  # the server went back, and so no rate follows from what was
        self._samples.append((now, status.completed_item_count))

    def line(self, status: BatchStatus) -> str:
        """Records done, their rate and the time that is left, as far as that is known."""
        parts = [str(status)]
        rate = recent_rate(self._samples)
        if rate and not status.is_terminal:
            left = (status.total_item_count - status.completed_item_count) / rate
            parts.append(f"{_number(rate)} records/s, {_duration(left)} left")
        return ", ".join([*parts, self.failures] if self.failures else parts)


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _duration(seconds: float) -> str:
    """The two largest units: ``1 h 5 min``, ``42 s``."""
    rest = max(1, round(seconds))
    parts: list[str] = []
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count:,} {unit}" if count else "")
    return " ".join(filter(None, parts[:2]))
