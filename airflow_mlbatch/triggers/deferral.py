"""Airflow's own time-out of a deferral.

Law: a deadline is kept inside the trigger, which can still say how far the batch came. Airflow's
comes later and catches a trigger that is stuck or never ran.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

__all__ = ["is_out_of_time", "time_left"]

_BACKSTOP = timedelta(minutes=10)


def time_left(deadline: float) -> timedelta:
    """How long a task may stay deferred.

    :param deadline: of the trigger, in epoch seconds
    """
    return timedelta(seconds=max(deadline - time.time(), 0.0)) + _BACKSTOP


def is_out_of_time(next_method: str, next_kwargs: Mapping[str, Any] | None) -> bool:
    """Whether a task is resumed because nobody kept its deadline in the triggerer.

    The words are those that Airflow's scheduler writes when the time-out of a deferral passes.
    """
    return next_method == "__fail__" and (next_kwargs or {}).get("error") == "Trigger timeout"
