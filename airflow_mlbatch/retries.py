"""How long a failed task waits for its next attempt (Airflow 3.3 and later)."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_mlbatch.errors import UnavailableError

if TYPE_CHECKING:
    from airflow.sdk import Context

try:
    from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
except ImportError as error:
    raise ImportError(
        "airflow_mlbatch.retries needs retry policies, which Airflow has from 3.3; on an earlier one use "
        "retry_delay and retry_exponential_backoff"
    ) from error

__all__ = ["BusyServerRetryPolicy"]

_BUSY = (429, 503)


class BusyServerRetryPolicy(RetryPolicy):
    """Waits longer for a scoring server that said it is busy (429 or 503).

    Every other failure is left to the task's own ``retry_delay``; so is the number of attempts, which
    ``retries`` says. It runs in the worker, when all repeats of the request have failed.

    :param first_wait: pause before the next attempt when the first one met a busy server; it doubles
        with each attempt
    :param longest_wait: longest pause
    :param spread: how much a pause may be longer by chance, as a fraction, so that many tasks which failed
        together do not come back together
    """

    def __init__(
        self,
        first_wait: timedelta = timedelta(minutes=5),
        longest_wait: timedelta = timedelta(hours=1),
        spread: float = 0.25,
    ) -> None:
        self.first_wait = first_wait
        self.longest_wait = longest_wait
        self.spread = spread

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Choose the pause after a failure.

        :param exception: what the task failed with
        :param try_number: of the attempt that failed, from 1
        :param max_tries: not looked at: Airflow counts the attempts
        :param context: not looked at
        """
        if not isinstance(exception, UnavailableError) or exception.status not in _BUSY:
            return RetryDecision.default()
        # Not 2 ** 10000.
        doubled = self.first_wait * 2 ** min(max(try_number - 1, 0), 30)
        longer = 1 + self.spread * random.random()  # noqa: S311
        pause = min(doubled, self.longest_wait) * longer
        return RetryDecision.retry(
            pause,
            reason=f"the scoring server is busy ({exception.status}): next attempt in {pause}",
        )
