"""When a task that waits is too late, and Airflow's own time-out of a deferral.

Law: a deadline is kept inside the trigger, which can still say how far the batch came. Airflow's
comes later and catches a trigger that is stuck or never ran.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

__all__ = ["Deadline", "is_out_of_time"]

_BACKSTOP = timedelta(minutes=10)


@dataclass(frozen=True)
class Deadline:
    """When a task gives up, and which of its arguments says so.

    :param at: epoch seconds; ``None`` for no limit
    :param limited_by: ``timeout`` or ``execution_timeout``
    """

    at: float | None
    limited_by: str = "timeout"

    @classmethod
    def of_task(
        cls,
        operator: Any,
        *,
        waiting_since: float,
        timeout: float | None,
        started_at: float,
    ) -> Deadline:
        """The earlier one of a task's two limits.

        Airflow does not enforce ``execution_timeout`` while a task is deferred. So it is part of the
        deadline of a deferrable one.

        :param operator: a deferrable operator or sensor
        :param waiting_since: epoch seconds from which ``timeout`` counts, across retries
        :param timeout: seconds; ``None`` for no limit
        :param started_at: epoch seconds at which this attempt began
        """
        own = cls(None if timeout is None else waiting_since + timeout)
        if not operator.deferrable or operator.execution_timeout is None:
            return own
        seconds = operator.execution_timeout.total_seconds()
        of_attempt = cls(started_at + seconds, "execution_timeout")
        return own if own.is_before(of_attempt) else of_attempt

    def is_before(self, other: Deadline) -> bool:
        """Whether this one passes first, or at the same time."""
        return self._at <= other._at

    def has_passed(self, now: float) -> bool:
        """Whether it is too late.

        :param now: epoch seconds
        """
        return self._at <= now

    @property
    def backstop(self) -> timedelta | None:
        """How long a task may stay deferred; ``None`` for no limit."""
        if self.at is None:
            return None
        return timedelta(seconds=max(self.at - time.time(), 0.0)) + _BACKSTOP

    @property
    def _at(self) -> float:
        return math.inf if self.at is None else self.at


def is_out_of_time(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Whether a task is resumed because nobody kept its deadline in the triggerer.

    The words are those that Airflow's scheduler writes when the time-out of a deferral passes.
    """
    return next_method == "__fail__" and (next_kwargs or {}).get("error") == "Trigger timeout"
